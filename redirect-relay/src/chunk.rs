//! The text of a message that comes in chunks (BDAT, RFC 3030), on its way to a gateway that gets it by DATA.
//!
//! The client counts octets, so nothing in them ends the message; but the gateway looks for CRLF "." CRLF. The text is
//! stuffed with dots for it, and held to the same rule as after DATA: a CR without LF, an LF without CR or a NUL is a
//! fault, for a careless server behind the gateway might take what surrounds it for an end (RFC 5321 section 4.1.1.4).
//! Lines know nothing of chunks: a CR may end one and its LF begin the next.

use crate::{data::Fault, policy::LineEndings};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Line,
    Text,
    Cr,
}

/// The place within the text, over all its chunks.
#[derive(Debug)]
pub(crate) struct Stuffer {
    at: At,
    fault: Option<Fault>,
    endings: LineEndings,
}

impl Stuffer {
    pub(crate) const fn new(endings: LineEndings) -> Self {
        Self { at: At::Line, fault: None, endings }
    }

    pub(crate) const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Gives `emit` the text with its stuffing, in slices. What came before a fault is given; nothing is after it.
    pub(crate) fn text(&mut self, input: &[u8], mut emit: impl FnMut(&[u8])) {
        let mut given = 0;
        let mut i = 0;
        while i < input.len() && self.fault.is_none() {
            match self.at {
                At::Line => {
                    if input[i] == b'.' {
                        emit(&input[given..i]);
                        emit(b".");
                        given = i;
                    }
                    self.at = At::Text;
                }
                At::Text => match memchr::memchr3(b'\r', b'\n', 0, &input[i..]) {
                    None => i = input.len(),
                    Some(found) => {
                        i += found + 1;
                        match input[i - 1] {
                            b'\r' => self.at = At::Cr,
                            b'\n' if self.endings == LineEndings::Normalize => {
                                emit(&input[given..i - 1]);
                                emit(b"\r\n");
                                given = i;
                                self.at = At::Line;
                            }
                            b'\n' => self.fault = Some(Fault::BareLf),
                            _ => self.fault = Some(Fault::Nul),
                        }
                    }
                },
                At::Cr if input[i] == b'\n' => {
                    self.at = At::Line;
                    i += 1;
                }
                At::Cr => self.fault = Some(Fault::BareCr),
            }
        }
        if self.fault.is_none() {
            emit(&input[given..]);
        }
    }

    /// The last chunk is over. A line without its end gets one, for DATA cannot say that it has none.
    pub(crate) fn end(&mut self, mut emit: impl FnMut(&[u8])) {
        match self.at {
            At::Line => {}
            At::Text => emit(b"\r\n"),
            At::Cr => self.fault = self.fault.or(Some(Fault::BareCr)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the gateway gets, or nothing for a message that it must not get.
    fn run(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        run_with(LineEndings::Reject, pieces)
    }

    fn run_with(endings: LineEndings, pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut stuffer = Stuffer::new(endings);
        let mut out = Vec::new();
        for piece in pieces {
            stuffer.text(piece, |slice| out.extend_from_slice(slice));
        }
        stuffer.end(|slice| out.extend_from_slice(slice));
        stuffer.fault().is_none().then_some(out)
    }

    /// The rules in the plainest way.
    fn reference(input: &[u8]) -> Option<Vec<u8>> {
        let text = String::from_utf8_lossy(input).into_owned();
        if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
            return None;
        }
        let mut out = Vec::new();
        for line in text.split_inclusive("\r\n") {
            if line.starts_with('.') {
                out.push(b'.');
            }
            out.extend_from_slice(line.as_bytes());
        }
        if !text.is_empty() && !text.ends_with("\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        Some(out)
    }

    /// Whole, cut in two at every point and octet by octet.
    fn check(input: &[u8]) {
        let mended = String::from_utf8_lossy(input).replace("\r\n", "\n").replace('\n', "\r\n");
        let ways = [(LineEndings::Reject, reference(input)), (LineEndings::Normalize, reference(mended.as_bytes()))];
        for (endings, expected) in ways {
            assert_eq!(run_with(endings, &[input]), expected, "{input:?}");
            for split in 0..=input.len() {
                let (head, tail) = input.split_at(split);
                assert_eq!(run_with(endings, &[head, tail]), expected, "{input:?} at {split}");
            }
            assert_eq!(run_with(endings, &input.chunks(1).collect::<Vec<_>>()), expected, "{input:?}");
        }
    }

    #[test]
    fn text() {
        for text in
            ["", "x", "x\r\n", ".", ".\r\n", "..\r\n", ".x\r\n.\r\n", "a\r\n\r\n.b", "\r\n", "x\r\n.\r\nQUIT\r\n"]
        {
            check(text.as_bytes());
            assert!(run(&[text.as_bytes()]).is_some(), "{text:?}");
        }
    }

    #[test]
    fn attack_12_smuggling_forms_are_faults() {
        for form in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\r\n\0.\r\n", "\r\n.\0\r\n"] {
            let text = format!("a{form}MAIL FROM:<evil@x>\r\n");
            check(text.as_bytes());
            assert_eq!(run(&[text.as_bytes()]), None, "{form:?}");
        }
        check(b"x\r");
        assert_eq!(run(&[b"x\r"]), None);
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(input in proptest::collection::vec(proptest::sample::select(b"\r\n.a\0".to_vec()), 0..20)) {
            check(&input);
        }

        /// The gateway's scanner finds the end where we put it, and nowhere else.
        #[test]
        fn the_gateway_reads_what_the_client_wrote(lines in proptest::collection::vec("[.a]{0,3}", 0..8)) {
            let text = lines.iter().fold(String::new(), |text, line| text + line + "\r\n");
            let mut wire = run(&[text.as_bytes()]).unwrap();
            wire.extend_from_slice(b".\r\n");
            let mut scanner = crate::data::Scanner::new();
            let scan = scanner.scan(&wire);
            prop_assert!(scan.end && scan.consumed == wire.len());
            let unstuffed: String = str::from_utf8(scan.text).unwrap().split_inclusive("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect();
            prop_assert_eq!(unstuffed, text);
        }
    }
}
