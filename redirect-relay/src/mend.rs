//! Bare LFs made into CRLFs, for classes of old devices: what comes after DATA, before anybody else reads it.
//!
//! The message ends with CRLF "." CRLF as the client sent it, and with nothing else. A line of one dot that an LF begins or
//! ends is text: it gets a second dot, which the gateway takes away again. A CR without LF and NUL stay for the scanner, to
//! which they are faults.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// `exact`: behind a CRLF.
    Line {
        exact: bool,
    },
    Dot {
        exact: bool,
    },
    DotCr {
        exact: bool,
    },
    Text,
    Cr,
}

/// The place within one body.
#[derive(Debug)]
pub(crate) struct Mender {
    at: At,
}

impl Mender {
    pub(crate) const fn new() -> Self {
        Self { at: At::Line { exact: true } }
    }

    /// What `input` stands for, up to its end or that of the message; how many octets of it that were.
    pub(crate) fn mend(&mut self, input: &[u8]) -> (Vec<u8>, usize) {
        let mut out = Vec::with_capacity(input.len() + input.len() / 16);
        let mut i = 0;
        while i < input.len() {
            // What is written, whether the octet is used up by it, and what follows.
            let (text, taken, at): (&[u8], bool, At) = match (self.at, input[i]) {
                (At::Text, b'\r') => (b"", true, At::Cr),
                (At::Text, b'\n') => (b"\r\n", true, At::Line { exact: false }),
                (At::Text, _) => {
                    let end = memchr::memchr2(b'\r', b'\n', &input[i..]).map_or(input.len(), |found| i + found);
                    out.extend_from_slice(&input[i..end]);
                    i = end;
                    continue;
                }
                (At::Cr, b'\n') => (b"\r\n", true, At::Line { exact: true }),
                (At::Cr, _) => (b"\r", false, At::Text),
                (At::Line { exact }, b'.') => (b"", true, At::Dot { exact }),
                (At::Line { .. }, _) => (b"", false, At::Text),
                (At::Dot { exact }, b'\r') => (b"", true, At::DotCr { exact }),
                (At::Dot { .. }, b'\n') => (b"..\r\n", true, At::Line { exact: false }),
                (At::Dot { .. }, _) => (b".", false, At::Text),
                (At::DotCr { exact: true }, b'\n') => {
                    out.extend_from_slice(b".\r\n");
                    return (out, i + 1);
                }
                (At::DotCr { exact: false }, b'\n') => (b"..\r\n", true, At::Line { exact: true }),
                (At::DotCr { .. }, _) => (b".\r", false, At::Text),
            };
            out.extend_from_slice(text);
            i += usize::from(taken);
            self.at = at;
        }
        (out, input.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rules in the plainest way: what the scanner gets of a whole message, and how many octets that took.
    fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
        let with_start = [b"\r\n", input].concat();
        let end = with_start.windows(5).position(|window| window == b"\r\n.\r\n")?;
        let mut out = Vec::new();
        let mut exact = true;
        for line in input[..end].split_inclusive(|octet| *octet == b'\n') {
            let text = line.strip_suffix(b"\n").expect("a line before the end has one");
            let (text, crlf) = text.strip_suffix(b"\r").map_or((text, false), |text| (text, true));
            assert!(!(exact && crlf && text == b"."), "that would be the end");
            out.extend_from_slice(if text == b"." { b".." } else { text });
            out.extend_from_slice(b"\r\n");
            exact = crlf;
        }
        out.extend_from_slice(b".\r\n");
        Some((out, end + 3))
    }

    fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, usize) {
        let mut mender = Mender::new();
        let (mut out, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            let (text, octets) = mender.mend(piece);
            out.extend(text);
            taken += octets;
            if octets < piece.len() {
                break;
            }
        }
        (out, taken)
    }

    /// Whole, cut in two at every point and octet by octet; a message that has no end is given up to what is held back.
    fn check(input: &[u8]) {
        let whole = run(std::iter::once(input));
        if let Some(expected) = reference(input) {
            assert_eq!(whole, expected, "{:?}", input.escape_ascii().to_string());
        } else {
            assert_eq!(whole.1, input.len());
        }
        for split in 0..=input.len() {
            let (head, tail) = input.split_at(split);
            // An end in the first piece leaves all of the second.
            let first = run(std::iter::once(head));
            if reference(head).is_some() {
                assert_eq!(first, whole, "{input:?} at {split}");
            } else {
                assert_eq!(run([head, tail].into_iter()), whole, "{input:?} at {split}");
            }
        }
        if reference(input).is_none_or(|(_, taken)| taken == input.len()) {
            assert_eq!(run(input.chunks(1)), whole, "{input:?}");
        }
    }

    #[test]
    fn lines_of_old_devices() {
        let mended = |input: &str| {
            check(input.as_bytes());
            let (out, taken) = run(std::iter::once(input.as_bytes()));
            (String::from_utf8(out).unwrap(), taken)
        };
        assert_eq!(mended("a\nb\n\nc\r\n.\r\nQUIT\n"), ("a\r\nb\r\n\r\nc\r\n.\r\n".into(), 11));
        assert_eq!(mended(".\r\n"), (".\r\n".into(), 3));
        assert_eq!(mended("\n.\r\n.\r\n").0, "\r\n..\r\n.\r\n");
        assert_eq!(mended("..x\n..\r\n.\r\n").0, "..x\r\n..\r\n.\r\n");
        assert_eq!(mended("a\rb\0\r\n.\r\n").0, "a\rb\0\r\n.\r\n", "faults stay");
    }

    #[test]
    fn smuggling_forms_are_text() {
        for form in ["\n.\n", "\n.\r\n", "\r\n.\n", "\n\n.\r\n"] {
            let input = format!("a{form}MAIL FROM:<evil@x>\r\n.\r\n");
            check(input.as_bytes());
            let (out, taken) = run(std::iter::once(input.as_bytes()));
            assert_eq!(taken, input.len(), "{form:?}");
            assert!(String::from_utf8(out).unwrap().contains("\r\n..\r\nMAIL"), "{form:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(input in proptest::collection::vec(proptest::sample::select(b"\r\n.a\0".to_vec()), 0..24)) {
            check(&input);
        }
    }
}
