//! A command line -> [`Command`], or the refusal it earns (RFC 5321 sections 4.1 and 4.3.2).
//!
//! Nothing is repaired: what is not exactly a command is refused. Lines that no mail client sends by mistake (another
//! protocol, a bare CR or LF, a relay's private verbs) also end the session.

use crate::{
    address::{self, AddressError, Recipient, Sender},
    limits::{COMMAND_LINE_MAX, DOMAIN_MAX, MAIL_LINE_MAX},
    reply::Reply,
    trace::Helo,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Hello(Helo),
    Mail(Mail),
    Rcpt(Recipient),
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
}

/// MAIL with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) sender: Sender,
    /// `SIZE=` (RFC 1870), octets. More digits than fit in the number are the largest number.
    pub(crate) size: Option<u64>,
    pub(crate) body: Option<Body>,
}

/// `BODY=` (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    SevenBit,
    EightBitMime,
}

/// The answer to a line that is no acceptable command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reply: Reply,
    /// The session ends with this reply.
    pub(crate) close: bool,
}

const fn refuse(code: u16, subject: u16, detail: u16, text: &'static str) -> Refusal {
    Refusal { reply: Reply::new(code, subject, detail, text), close: false }
}

const fn close(code: u16, subject: u16, detail: u16, text: &'static str) -> Refusal {
    Refusal { reply: Reply::new(code, subject, detail, text), close: true }
}

const NOT_SMTP: Refusal = close(500, 5, 2, "This is an SMTP server");
const LINE_ENDING: Refusal = close(500, 5, 2, "Lines end in CRLF, and contain no CR, LF or NUL");
const TOO_LONG: Refusal = close(500, 5, 2, "Line too long");
const NOT_OFFERED: Refusal = refuse(502, 5, 1, "Command not implemented");
const PRIVATE: Refusal = close(502, 5, 1, "Command not accepted from a client");
const UNKNOWN: Refusal = refuse(500, 5, 2, "Command unrecognized");
const SYNTAX: Refusal = refuse(501, 5, 2, "Syntax error");
const ARGUMENTS: Refusal = refuse(501, 5, 4, "Syntax error in arguments");
const EIGHT_BIT: Refusal = refuse(501, 5, 2, "Octets outside ASCII are not accepted");
const EIGHT_BIT_ADDRESS: Refusal = refuse(553, 6, 7, "SMTPUTF8 is not offered, the address must be ASCII");
const UNKNOWN_PARAMETER: Refusal = refuse(555, 5, 4, "Parameter not recognized or not implemented");
const DUPLICATE_PARAMETER: Refusal = refuse(501, 5, 4, "Parameter given twice");
const BAD_SENDER: Refusal = refuse(501, 1, 7, "Bad sender address syntax");
const BAD_RECIPIENT: Refusal = refuse(501, 1, 3, "Bad recipient address syntax");
const NO_SOURCE_ROUTE: Refusal = refuse(550, 7, 1, "Source routes are not accepted");
const NO_DETOUR: Refusal = refuse(550, 7, 1, "Relaying through the recipient's server is not accepted");

/// Takes one line off the front of `input`: its length with line end, and what it says. `None`: the line is not whole.
pub(crate) fn next(input: &[u8]) -> Option<(usize, Result<Command, Refusal>)> {
    let first = *input.first()?;
    // A TLS ClientHello or other noise need not hold a line end at all, so it is judged by its first octet.
    if !matches!(first, b'\r' | b'\n' | 0 | b' '..=b'~') {
        return Some((input.len(), Err(NOT_SMTP)));
    }
    let Some(end) = memchr::memchr(b'\n', input) else {
        return (input.len() >= MAIL_LINE_MAX).then_some((input.len(), Err(TOO_LONG)));
    };
    let length = end + 1;
    Some((length, line(&input[..length])))
}

fn line(line: &[u8]) -> Result<Command, Refusal> {
    if line.len() > MAIL_LINE_MAX {
        return Err(TOO_LONG);
    }
    let length = line.len();
    let line = line.strip_suffix(b"\r\n").ok_or(LINE_ENDING)?;
    if line.iter().any(|b| matches!(b, b'\r' | 0)) {
        return Err(LINE_ENDING);
    }
    let verb_end = line.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(line.len());
    let verb = line[..verb_end].to_ascii_uppercase();
    if verb.is_empty() && !line.is_empty() {
        return Err(NOT_SMTP);
    }
    if length > COMMAND_LINE_MAX && verb != b"MAIL" {
        return Err(TOO_LONG);
    }
    let Ok(rest) = str::from_utf8(&line[verb_end..]).map_err(|_| ()).and_then(|s| s.is_ascii().then_some(s).ok_or(()))
    else {
        return Err(if matches!(verb.as_slice(), b"MAIL" | b"RCPT") { EIGHT_BIT_ADDRESS } else { EIGHT_BIT });
    };
    if rest.bytes().any(|b| b.is_ascii_control()) {
        return Err(SYNTAX);
    }
    command(&verb, rest)
}

/// `rest` is what follows the verb, printable ASCII, with the space that should begin it.
fn command(verb: &[u8], rest: &str) -> Result<Command, Refusal> {
    let arguments = rest.trim_matches(' ');
    let separated = rest.is_empty() || rest.starts_with(' ');
    match verb {
        b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" | b"DELETE" | b"PATCH" | b"TRACE" | b"PRI"
        | b"SSH" => Err(NOT_SMTP),
        // What follows an unoffered BDAT is message text and not commands, and its extent would have to be believed.
        b"XCLIENT" | b"XFORWARD" | b"PROXY" | b"BDAT" => Err(PRIVATE),
        _ if !separated => Err(UNKNOWN),
        b"EHLO" => hello(arguments, true),
        b"HELO" => hello(arguments, false),
        b"MAIL" => mail(arguments),
        b"RCPT" => rcpt(arguments),
        b"DATA" => alone(arguments, Command::Data),
        b"RSET" => alone(arguments, Command::Rset),
        b"QUIT" => alone(arguments, Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"VRFY" if arguments.is_empty() => Err(ARGUMENTS),
        b"VRFY" => Ok(Command::Vrfy),
        b"STARTTLS" | b"AUTH" | b"EXPN" | b"ETRN" | b"ATRN" | b"TURN" | b"BURL" | b"HELP" | b"SEND" | b"SOML"
        | b"SAML" => Err(NOT_OFFERED),
        _ => Err(UNKNOWN),
    }
}

fn alone(arguments: &str, command: Command) -> Result<Command, Refusal> {
    if arguments.is_empty() { Ok(command) } else { Err(ARGUMENTS) }
}

/// Any one word will do as a name: clients that are not mail servers say all sorts of things here, and the relay knows
/// them by address. The word is reduced to harmless characters where it is repeated.
fn hello(name: &str, extended: bool) -> Result<Command, Refusal> {
    if name.is_empty() || name.contains(' ') || name.len() > DOMAIN_MAX {
        return Err(ARGUMENTS);
    }
    Ok(Command::Hello(Helo { name: name.to_owned(), extended }))
}

fn mail(arguments: &str) -> Result<Command, Refusal> {
    let path = keyword(arguments, "FROM:").ok_or(SYNTAX)?;
    let (sender, rest) = address::sender(path).map_err(|error| match error {
        AddressError::Syntax => BAD_SENDER,
        AddressError::SourceRoute => NO_SOURCE_ROUTE,
        AddressError::Detour => NO_DETOUR,
    })?;
    let mut mail = Mail { sender, size: None, body: None };
    for parameter in parameters(rest, BAD_SENDER)? {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.eq_ignore_ascii_case("SIZE") {
            let size = size(value).ok_or(ARGUMENTS)?;
            if mail.size.replace(size).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if name.eq_ignore_ascii_case("BODY") {
            let body = match value.to_ascii_uppercase().as_str() {
                "7BIT" => Body::SevenBit,
                "8BITMIME" => Body::EightBitMime,
                _ => return Err(ARGUMENTS),
            };
            if mail.body.replace(body).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else {
            return Err(UNKNOWN_PARAMETER);
        }
    }
    Ok(Command::Mail(mail))
}

fn rcpt(arguments: &str) -> Result<Command, Refusal> {
    let path = keyword(arguments, "TO:").ok_or(SYNTAX)?;
    let (recipient, rest) = address::recipient(path).map_err(|error| match error {
        AddressError::Syntax => BAD_RECIPIENT,
        AddressError::SourceRoute => NO_SOURCE_ROUTE,
        AddressError::Detour => NO_DETOUR,
    })?;
    match parameters(rest, BAD_RECIPIENT)?.next() {
        None => Ok(Command::Rcpt(recipient)),
        Some(_) => Err(UNKNOWN_PARAMETER),
    }
}

/// Spaces after the colon are not in the grammar, but old clients send them and they can mean nothing else.
fn keyword<'a>(arguments: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = arguments.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

/// What follows a path: nothing, or a space before each parameter.
fn parameters(rest: &str, otherwise: Refusal) -> Result<impl Iterator<Item = &str>, Refusal> {
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(otherwise);
    }
    Ok(rest.split(' ').filter(|parameter| !parameter.is_empty()))
}

/// `size-value = 1*20DIGIT`; 20 digits may exceed the number, and such a message is too large whatever its size.
fn size(value: &str) -> Option<u64> {
    let digits = (1..=20).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shows a command in short, and a refusal as its code, status and whether it closes.
    fn show(input: &[u8]) -> String {
        match next(input) {
            None => "more".into(),
            Some((_, Ok(command))) => match command {
                Command::Hello(helo) => format!("hello {} {}", helo.name, helo.extended),
                Command::Mail(mail) => format!("mail {} {:?} {:?}", mail.sender, mail.size, mail.body),
                Command::Rcpt(recipient) => format!("rcpt {recipient}"),
                command => format!("{command:?}").to_lowercase(),
            },
            Some((_, Err(refusal))) => {
                let mut out = crate::buffer::Buffer::default();
                refusal.reply.write(&mut out);
                let text = String::from_utf8_lossy(out.filled()).into_owned();
                let status = text.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
                if refusal.close { format!("{status} close") } else { status }
            }
        }
    }

    fn check(line: &str, expected: &str) {
        assert_eq!(show(format!("{line}\r\n").as_bytes()), expected, "{line:?}");
    }

    #[test]
    fn commands() {
        check("EHLO pc", "hello pc true");
        check("helo [192.0.2.1]", "hello [192.0.2.1] false");
        check("MAIL FROM:<>", "mail <> None None");
        check("mail from: <a@b>  size=7 BODY=8bitmime ", "mail <a@b> Some(7) Some(EightBitMime)");
        check("MAIL FROM:<a@b> BODY=7BIT", "mail <a@b> None Some(SevenBit)");
        check("MAIL FROM:<a@b> SIZE=99999999999999999999", "mail <a@b> Some(18446744073709551615) None");
        check("RCPT TO:<a@b>", "rcpt <a@b>");
        check("RCPT TO:<PostMaster>", "rcpt <postmaster>");
        check("DATA", "data");
        check("DATA ", "data");
        check("rset", "rset");
        check("NOOP whatever", "noop");
        check("QUIT", "quit");
        check("VRFY a", "vrfy");
    }

    #[test]
    fn syntax_errors() {
        check("", "500 5.5.2");
        check("FOO", "500 5.5.2");
        check("DATA<", "500 5.5.2");
        check("EHLO", "501 5.5.4");
        check("EHLO a b", "501 5.5.4");
        check(&format!("EHLO {}", "a".repeat(256)), "501 5.5.4");
        check("DATA x", "501 5.5.4");
        check("QUIT x", "501 5.5.4");
        check("VRFY", "501 5.5.4");
        check("MAIL", "501 5.5.2");
        check("MAIL TO:<a@b>", "501 5.5.2");
        check("MAIL FROM:a@b", "501 5.1.7");
        check("MAIL FROM:<a@b>SIZE=1", "501 5.1.7");
        check("RCPT TO:<a@b>x", "501 5.1.3");
        check("RCPT TO:<>", "501 5.1.3");
        check("NOOP \u{1}", "501 5.5.2");
        check("MAIL FROM:<a\tb@c>", "501 5.5.2");
    }

    #[test]
    fn parameters_that_were_not_offered() {
        check("MAIL FROM:<a@b> SMTPUTF8", "555 5.5.4");
        check("MAIL FROM:<a@b> AUTH=<>", "555 5.5.4");
        check("MAIL FROM:<a@b> SIZE=1 SIZE=1", "501 5.5.4");
        check("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=-1", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=999999999999999999999", "501 5.5.4");
        check("MAIL FROM:<a@b> BODY=BINARYMIME", "501 5.5.4");
        check("RCPT TO:<a@b> NOTIFY=NEVER", "555 5.5.4");
        check("RCPT TO:<a@b> ORCPT=rfc822;a@b", "555 5.5.4");
    }

    #[test]
    fn commands_that_were_not_offered() {
        for line in ["STARTTLS", "AUTH PLAIN AAAA", "EXPN x", "ETRN x", "TURN", "HELP", "BURL x"] {
            check(line, "502 5.5.1");
        }
        for line in ["XCLIENT ADDR=192.0.2.1", "XFORWARD NAME=x", "PROXY TCP4 a b 1 2", "BDAT 5 LAST"] {
            check(line, "502 5.5.1 close");
        }
    }

    #[test]
    fn other_protocols() {
        check("GET / HTTP/1.1", "500 5.5.2 close");
        check("POST / HTTP/1.1", "500 5.5.2 close");
        check("CONNECT a:25 HTTP/1.1", "500 5.5.2 close");
        check("SSH-2.0-x", "500 5.5.2 close");
        check(" EHLO a", "500 5.5.2 close");
        check("{}", "500 5.5.2 close");
        assert_eq!(show(b"\x16\x03\x01\x02"), "500 5.5.2 close", "a ClientHello, before any line end");
        assert_eq!(show(b"\xff"), "500 5.5.2 close");
    }

    #[test]
    fn line_endings() {
        for line in [
            "NOOP\n",
            "NOOP a\nb\r\n",
            "NOOP a\rb\r\n",
            "NOOP\r\r\n",
            "NOOP \0\r\n",
            "\n",
            "\0\r\n",
            "RCPT TO:<a@b\r>\r\n",
        ] {
            assert_eq!(show(line.as_bytes()), "500 5.5.2 close", "{line:?}");
        }
        assert_eq!(show(b"NOOP\r"), "more");
    }

    #[test]
    fn eight_bit_octets() {
        check("MAIL FROM:<\u{e9}@b>", "553 5.6.7");
        check("RCPT TO:<\u{e9}@b>", "553 5.6.7");
        check("EHLO \u{e9}", "501 5.5.2");
        assert_eq!(show(b"RCPT TO:<\xff@b>\r\n"), "553 5.6.7");
    }

    #[test]
    fn lengths() {
        let noop = |length: usize| format!("NOOP {}", "x".repeat(length - 7));
        check(&noop(512), "noop");
        check(&noop(513), "500 5.5.2 close");
        let mail = |length: usize| format!("MAIL FROM:<a@b>{}", " ".repeat(length - 17));
        check(&mail(555), "mail <a@b> None None");
        check(&mail(556), "500 5.5.2 close");
        assert_eq!(show(&[b'A'; 554]), "more");
        assert_eq!(show(&[b'A'; 555]), "500 5.5.2 close");
    }

    proptest! {
        #[test]
        fn any_octets(input in proptest::collection::vec(any::<u8>(), 0..700)) {
            if let Some((length, _)) = next(&input) {
                prop_assert!((1..=input.len()).contains(&length));
            }
        }

        /// A line is judged the same however much of what follows it has arrived.
        #[test]
        fn what_follows_does_not_matter(line in "[A-Z]{0,4}[ :<>@a-z]{0,12}", tail in "[ -~]{0,9}") {
            let whole = format!("{line}\r\n");
            prop_assert_eq!(next(whole.as_bytes()), next(format!("{whole}{tail}").as_bytes()));
        }
    }
}
