//! What must hold of the parsers whatever octets they are given. Each function panics where it does not.
//!
//! The fuzz targets call them; so do the tests of this module, with inputs that once were found or are near an edge. The
//! first octet of an input says how the rest is cut and what was offered, so that one corpus serves every case.

use crate::{
    address,
    buffer::Buffer,
    chunk::Stuffer,
    command::{self, Command, Grammar},
    data::Scanner,
    limits::{ANY_LINE_MAX, AUTH_LINE_MAX, REPLY_LINE_MAX, REPLY_LINES_MAX},
    mend::Mender,
    policy::LineEndings,
    reply::{Reply, ReplyError, ReplyReader},
};

/// How the octets after the first are cut: into pieces of 1 to 32 octets, or not at all.
fn pieces(how: u8, octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    let size = match how % 33 {
        0 => octets.len().max(1),
        size => size.into(),
    };
    octets.chunks(size)
}

/// Commands: a line is judged once, whatever follows it and however it came; what it says is written in one form.
pub fn command(input: &[u8]) {
    let Some((&how, octets)) = input.split_first() else { return };
    let grammar = Grammar { smtputf8: how & 1 != 0, dsn: how & 2 != 0, auth: how & 4 != 0, priority: how & 8 != 0 };
    let mut rest = octets;
    while let Some((length, parsed)) = command::next(rest, grammar) {
        assert!((1..=rest.len()).contains(&length), "{length} of {}", rest.len());
        for cut in 0..length {
            match command::next(&rest[..cut], grammar) {
                None => {}
                // Noise need not end before it is known for what it is.
                Some((taken, Err(refusal))) => assert!(refusal.close && taken <= cut, "judged too early"),
                Some((_, Ok(command))) => panic!("{command:?} after {cut} of {length} octets"),
            }
        }
        assert!(length <= AUTH_LINE_MAX || parsed.is_err(), "a line of {length} octets is accepted");
        match &parsed {
            Ok(Command::Mail(mail)) => {
                let written = mail.sender.to_string();
                assert_eq!(address::sender(&written), Ok((mail.sender.clone(), "")), "{written}");
                assert!(written.is_ascii() || mail.smtputf8);
                assert_clean(&written);
            }
            Ok(Command::Rcpt(rcpt)) => {
                let written = rcpt.recipient.to_string();
                assert_eq!(address::recipient(&written), Ok((rcpt.recipient.clone(), "")), "{written}");
                assert!(written.is_ascii() || grammar.smtputf8);
                assert_clean(&written);
                assert!(grammar.dsn || !rcpt.is_extended());
            }
            Ok(Command::Auth(login)) => assert!(!format!("{login:?}").contains(char::is_control)),
            Err(refusal) if refusal.close => return,
            _ => {}
        }
        rest = &rest[length..];
    }
    assert!(rest.len() < ANY_LINE_MAX.max(AUTH_LINE_MAX), "{} octets wait for the end of a line", rest.len());
}

/// The response to a challenge of AUTH: as a command line.
pub fn response(input: &[u8]) {
    match command::response(input) {
        None => assert!(input.len() < AUTH_LINE_MAX),
        Some((length, response)) => {
            assert!((1..=input.len()).contains(&length));
            if let Ok(response) = response {
                assert!(length <= AUTH_LINE_MAX && input[..length].ends_with(b"\r\n"));
                assert!(!response.0.contains(['\r', '\n', '\0']));
            }
        }
    }
}

fn assert_clean(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn has_bare_line_end(octets: &[u8]) -> bool {
    String::from_utf8_lossy(octets).replace("\r\n", "").contains(['\r', '\n', '\0'])
}

/// The body of a message after DATA, read strictly and with bare LFs made whole.
pub fn body(input: &[u8]) {
    data(input);
    mended(input);
}

/// The body of a message after DATA: the end is CRLF "." CRLF and nothing else, and what is forwarded is what came.
pub fn data(input: &[u8]) {
    let Some((&how, octets)) = input.split_first() else { return };
    let whole = [b"\r\n", octets].concat();
    let end = whole.windows(5).position(|window| window == b"\r\n.\r\n");
    let mut scanner = Scanner::new();
    let (mut forwarded, mut taken, mut ended) = (Vec::new(), 0, false);
    for piece in pieces(how, octets) {
        let scan = scanner.scan(piece);
        assert!(scan.consumed <= piece.len());
        assert!(scan.end || scan.consumed == piece.len(), "only an end leaves octets behind");
        if scan.dot {
            forwarded.push(b'.');
        }
        forwarded.extend_from_slice(scan.text);
        taken += scan.consumed;
        if scan.end {
            ended = true;
            break;
        }
    }
    assert_eq!(ended.then_some(taken), end.map(|at| at + 3), "the end of {octets:?}");
    let body = &whole[2..end.map_or(whole.len(), |at| (at + 2).max(2))];
    if ended {
        assert_eq!(scanner.fault().is_some(), has_bare_line_end(body));
        if scanner.fault().is_none() {
            assert_eq!(forwarded, body);
        }
    } else if scanner.fault().is_none() {
        assert!(body.starts_with(&forwarded), "nothing but what came is forwarded");
        assert!(body.len() - forwarded.len() <= 2, "no more than a dot and a CR is held back");
    }
}

/// The same where bare LFs are line ends: the end is where it was, what is forwarded has whole lines, and ends only there.
pub fn mended(input: &[u8]) {
    let Some((&how, octets)) = input.split_first() else { return };
    let whole = [b"\r\n", octets].concat();
    let end = whole.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 3);
    let (mut mender, mut scanner) = (Mender::new(), Scanner::new());
    let (mut text, mut taken) = (Vec::new(), 0);
    for piece in pieces(how, octets) {
        let (lines, consumed) = mender.mend(piece);
        let scan = scanner.scan(&lines);
        assert_eq!(scan.consumed, lines.len(), "the scanner leaves nothing behind");
        text.extend_from_slice(&lines);
        taken += consumed;
        assert!(scan.end || consumed == piece.len());
        assert_eq!(scan.end, end == Some(taken));
        if scan.end {
            break;
        }
    }
    assert!(!text.iter().enumerate().any(|(at, octet)| *octet == b'\n' && (at == 0 || text[at - 1] != b'\r')));
    let at_end = [b"\r\n", text.as_slice()].concat();
    let found = at_end.windows(5).position(|window| window == b"\r\n.\r\n");
    assert_eq!(found.is_some(), end.is_some_and(|end| end <= taken));
    assert!(found.is_none_or(|at| at + 5 == at_end.len()), "an end within the message");
    let plain = |text: &[u8]| -> Vec<u8> { text.iter().copied().filter(|octet| !b"\r\n.".contains(octet)).collect() };
    if end.is_some() {
        assert_eq!(plain(&text), plain(&octets[..taken]), "nothing but line ends and dots is added");
    }
}

/// The text of a message in chunks: what the gateway unstuffs is what the client wrote, however it was cut.
pub fn chunks(input: &[u8]) {
    let Some((&how, octets)) = input.split_first() else { return };
    let mut stuffer = Stuffer::new(LineEndings::Reject);
    let mut wire = Vec::new();
    for piece in pieces(how, octets) {
        stuffer.text(piece, |slice| wire.extend_from_slice(slice));
    }
    stuffer.end(|slice| wire.extend_from_slice(slice));
    assert_eq!(stuffer.fault().is_some(), has_bare_line_end(octets));
    if stuffer.fault().is_some() {
        return;
    }
    wire.extend_from_slice(b".\r\n");
    let mut scanner = Scanner::new();
    let scan = scanner.scan(&wire);
    assert!(scan.end && scan.consumed == wire.len() && scanner.fault().is_none(), "the gateway finds another end");
    let lines = scan.text.split_inclusive(|octet| *octet == b'\n');
    let mut unstuffed: Vec<u8> = lines.flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect();
    if !octets.is_empty() && !octets.ends_with(b"\r\n") {
        unstuffed.truncate(unstuffed.len() - 2);
    }
    assert_eq!(unstuffed, octets);
}

/// Replies of a gateway: the same ones however they were cut, and each as short clean lines for the client.
pub fn reply(input: &[u8]) {
    let Some((&how, octets)) = input.split_first() else { return };
    let (replies, end) = read(&mut pieces(how, octets));
    assert_eq!((&replies, &end), (&read(&mut std::iter::once(octets)).0, &read(&mut octets.chunks(1)).1));
    for reply in &replies {
        assert!((200..600).contains(&reply.code), "{reply:?}");
        let mut out = Buffer::default();
        reply.write(&mut out);
        let text = str::from_utf8(out.filled()).expect("a reply to a client is text");
        assert!(text.ends_with("\r\n"));
        let lines: Vec<_> = text.split_terminator("\r\n").collect();
        assert!(lines.len() <= REPLY_LINES_MAX);
        for (i, line) in lines.iter().enumerate() {
            assert!(line.len() + 2 <= REPLY_LINE_MAX, "{line:?}");
            assert!(line.starts_with(&reply.code.to_string()), "{line:?}");
            assert_eq!(line.as_bytes()[3], if i + 1 == lines.len() { b' ' } else { b'-' }, "{line:?}");
            assert!(line.bytes().all(|octet| matches!(octet, b'\t' | b' '..=b'~')), "{line:?}");
        }
    }
}

fn read(pieces: &mut dyn Iterator<Item = &[u8]>) -> (Vec<Reply>, Option<ReplyError>) {
    let mut reader = ReplyReader::default();
    let mut replies = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.read(&mut piece, |_| {}) {
                Ok(None) => {}
                Ok(Some(reply)) => replies.push(reply),
                Err(error) => return (replies, Some(error)),
            }
        }
    }
    (replies, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEEDS: [&str; 16] = [
        "EHLO pc\r\nMAIL FROM:<a@b> SIZE=9 BODY=8BITMIME\r\nRCPT TO:<\"a b\"@[IPv6:::1]> NOTIFY=NEVER\r\nDATA\r\n",
        "MAIL FROM:<\u{3b4}@b\u{fc}cher.example> SMTPUTF8 RET=FULL ENVID=a+2B AUTH=<> MT-PRIORITY=-3\r\nBDAT 5 LAST\r\nx\r\n\r\n",
        "AUTH PLAIN AGEAYg==\r\nAUTH LOGIN\r\nSTARTTLS\r\nBDAT -1\r\n",
        "GET / HTTP/1.1\r\n",
        "x\r\n..\r\n.\r\nQUIT\r\n",
        ".\r\n",
        "..\r\n.x\r\n.\r\n.\r\n",
        "a\n.\nb\r\n.\r\n",
        "a\r\n.\rb\r\n.\r\r\n.\r\n",
        "a\r\n\0.\r\n.\r\n",
        ".\r",
        "250 2.1.5 fine\r\n550-5.1.1 a\r\n550 5.1.1 b\r\n",
        "250-a\r\n550 b\r\n",
        "250 a\n",
        "354\r\n421 4.3.2 \r\n",
        "250 \u{e9}\r\n",
    ];

    /// Every property on one input, with every way of cutting it.
    fn all(octets: &[u8]) {
        for how in 0..33 {
            let input = [&[how], octets].concat();
            for property in [command, data, mended, chunks, reply] {
                property(&input);
            }
        }
        response(octets);
    }

    #[test]
    fn seeds_and_all_their_beginnings() {
        for seed in SEEDS {
            for cut in 0..=seed.len() {
                all(&seed.as_bytes()[..cut]);
            }
        }
    }

    #[test]
    fn long_lines() {
        for verb in ["", "NOOP ", "AUTH PLAIN ", "MAIL FROM:<a@b> ", "250 "] {
            for length in [510, 511, 512, 513, 1181, 1182, 12_287, 12_288, 12_289] {
                for end in ["", "\r\n"] {
                    let line = format!("{verb}{}{end}", "A".repeat(length - verb.len()));
                    for how in [0, 7] {
                        let input = [&[how], line.as_bytes()].concat();
                        data(&input);
                        chunks(&input);
                        reply(&input);
                    }
                    response(line.as_bytes());
                }
            }
        }
        command(&[&[4], "A".repeat(600).as_bytes()].concat());
    }

    proptest! {
        #[test]
        fn any_octets(input in proptest::collection::vec(any::<u8>(), 0..80)) {
            all(&input);
        }

        #[test]
        fn any_mail(input in "(MAIL FROM:|RCPT TO:|AUTH |BDAT |EHLO |\r\n|\\.|<|>|@|\"|a|b| |[0-9]|SIZE=|ORCPT=rfc822;|\u{3b4}|250|-){0,24}") {
            all(input.as_bytes());
        }
    }
}
