//! The framing of a message body after DATA (RFC 5321 sections 4.1.1.4 and 4.5.2), written once.
//!
//! The end is the exact octets CRLF "." CRLF and nothing else. A CR without LF, an LF without CR and a NUL are faults:
//! they never end a message, never start a line, and a message with one of them is never completed at the gateway.
//!
//! The dot stuffing of the client is kept, for the gateway wants the same: body octets pass through as slices of the
//! caller's input. Only a dot that begins a line is held back until the octet after it shows that it is not the end.
//!
//! ```text
//!  Line --"."--> Dot --CR--> DotCr --LF--> the end
//!   |             |            `--other--> fault, Text
//!   |             `--other--> Text
//!   `--other--> Text --CR--> Cr --LF--> Line
//!                 ^           `--other--> fault, Text
//!                 `-- LF, NUL: fault
//! ```
//!
//! Line length is not a fault: a line beyond the 1000 octets of RFC 5321 section 4.5.3.1.6 passes unchanged, in constant
//! memory, and the gateway decides about it. To cut it would break signatures.

/// Why a body can never be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    BareCr,
    BareLf,
    Nul,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Line,
    Dot,
    DotCr,
    Text,
    Cr,
}

/// What one slice of input amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan<'a> {
    /// A dot held back from the previous slice belongs before `text`.
    pub(crate) dot: bool,
    /// Octets to forward, still stuffed. Empty once the body is faulty.
    pub(crate) text: &'a [u8],
    /// Octets of the input that belong to the body and its end mark.
    pub(crate) consumed: usize,
    /// The end mark is complete. `text` does not include it; every line of the body has its CRLF.
    pub(crate) end: bool,
}

/// The place within one body.
#[derive(Debug)]
pub(crate) struct Scanner {
    at: At,
    fault: Option<Fault>,
    /// Dots that stuffing added so far: RFC 1870 does not count them as message octets.
    stuffed: u64,
}

impl Scanner {
    /// DATA's own CRLF counts as the one before the first line, so an immediate ".CRLF" is an empty message.
    pub(crate) const fn new() -> Self {
        Self { at: At::Line, fault: None, stuffed: 0 }
    }

    pub(crate) const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    pub(crate) const fn stuffed(&self) -> u64 {
        self.stuffed
    }

    /// Advances over `input`, up to its end or the end of the body.
    pub(crate) fn scan<'a>(&mut self, input: &'a [u8]) -> Scan<'a> {
        let mut dot = false;
        let mut dot_at = None;
        let mut i = 0;
        while i < input.len() {
            match self.at {
                At::Line if input[i] == b'.' => {
                    dot_at = Some(i);
                    self.at = At::Dot;
                    i += 1;
                }
                At::Line => self.at = At::Text,
                At::Text => i = self.text(input, i),
                At::Cr if input[i] == b'\n' => {
                    self.at = At::Line;
                    i += 1;
                }
                At::Cr => self.fail(Fault::BareCr),
                At::Dot if input[i] == b'\r' => {
                    self.at = At::DotCr;
                    i += 1;
                }
                At::Dot => {
                    dot |= dot_at.take().is_none();
                    self.stuffed += 1;
                    self.at = At::Text;
                }
                At::DotCr if input[i] == b'\n' => {
                    return self.found(dot, &input[..dot_at.unwrap_or(0)], i + 1, true);
                }
                At::DotCr => {
                    dot_at = None;
                    self.fail(Fault::BareCr);
                }
            }
        }
        let held = matches!(self.at, At::Dot | At::DotCr);
        let text = if held { &input[..dot_at.unwrap_or(0)] } else { input };
        self.found(dot, text, input.len(), false)
    }

    /// From `i`, somewhere within a line, to just after the next octet that matters, or to the end of the input.
    fn text(&mut self, input: &[u8], mut i: usize) -> usize {
        while let Some(found) = memchr::memchr3(b'\r', b'\n', 0, &input[i..]) {
            i += found + 1;
            match input[i - 1] {
                // A whole CRLF before anything but a dot needs no state: this is the path of nearly every line.
                b'\r' if input.len() > i + 1 && input[i] == b'\n' && input[i + 1] != b'.' => i += 1,
                b'\r' => {
                    self.at = At::Cr;
                    return i;
                }
                b'\n' => self.fail(Fault::BareLf),
                _ => self.fail(Fault::Nul),
            }
        }
        input.len()
    }

    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.at = At::Text;
    }

    fn found<'a>(&self, dot: bool, text: &'a [u8], consumed: usize, end: bool) -> Scan<'a> {
        match self.fault {
            None => Scan { dot, text, consumed, end },
            Some(_) => Scan { dot: false, text: &[], consumed, end },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rules again, octet by octet over the whole input, in the plainest way: (forwarded, octets consumed, fault) at
    /// the end of the body, or `None` if it does not end.
    fn reference(input: &[u8]) -> Option<(Vec<u8>, usize, bool)> {
        let with_start = [b"\r\n", input].concat();
        let end = with_start.windows(5).position(|w| w == b"\r\n.\r\n")?;
        let body = &with_start[2..(end + 2).max(2)];
        Some((body.to_vec(), end + 3, faulty(body)))
    }

    fn faulty(body: &[u8]) -> bool {
        let text = String::from_utf8_lossy(body).replace("\r\n", "");
        text.contains(['\r', '\n', '\0'])
    }

    /// Feeds the segments; returns the same triple as `reference`.
    fn run(segments: &[&[u8]]) -> Option<(Vec<u8>, usize, bool)> {
        let mut scanner = Scanner::new();
        let mut forwarded = Vec::new();
        let mut consumed = 0;
        for segment in segments {
            let scan = scanner.scan(segment);
            if scan.dot {
                forwarded.push(b'.');
            }
            forwarded.extend_from_slice(scan.text);
            consumed += scan.consumed;
            if scan.end {
                return Some((forwarded, consumed, scanner.fault().is_some()));
            }
            assert_eq!(scan.consumed, segment.len(), "only the end leaves octets behind");
        }
        None
    }

    /// `input` gives the reference's answer whole, cut in two at every point, and octet by octet.
    fn check(input: &[u8]) {
        let expected = reference(input);
        let same = |segments: &[&[u8]]| match (run(segments), &expected) {
            (None, None) => {}
            (Some((_, consumed, true)), Some((_, length, true))) => assert_eq!(consumed, *length, "{segments:?}"),
            (got, want) => assert_eq!(got.as_ref(), want.as_ref(), "{segments:?}"),
        };
        same(&[input]);
        for split in 0..=input.len() {
            let (a, b) = input.split_at(split);
            same(&[a, b]);
        }
        same(&input.chunks(1).collect::<Vec<_>>());
        same(&input.chunks(2).collect::<Vec<_>>());
    }

    #[test]
    fn bodies() {
        for body in [
            "",                     // nothing at all
            "x\r\n",                // one line
            "\r\n",                 // one empty line
            "..\r\n",               // a line of one dot, stuffed
            "..x\r\n..\r\n...\r\n", // every line stuffed
            ".x\r\n",               // a dot that stuffing did not double: section 4.5.2 removes it all the same
            "a.\r\nb.\r\n",         // dots elsewhere mean nothing
            "a\r\n\r\n\r\nb\r\n",   // empty lines
            "Received: x\r\n\r\nb\r\n",
        ] {
            check(format!("{body}.\r\n").as_bytes());
            check(format!("{body}.\r\nMAIL FROM:<a@b>\r\n").as_bytes());
        }
    }

    #[test]
    fn an_unfinished_body_does_not_end() {
        for body in ["", "x", "x\r\n", "x\r\n.", "x\r\n.\r", ".", ".\r", "\n.\n", "x\n.\r\n", "x\r.\r\n", "x\r\n..\r\n"]
        {
            assert_eq!(run(&[body.as_bytes()]), None, "{body:?}");
            check(body.as_bytes());
        }
    }

    #[test]
    fn smuggling_forms_do_not_end_a_body() {
        for form in SMUGGLING {
            let body = format!("a{form}MAIL FROM:<evil@x>\r\n");
            assert_eq!(run(&[body.as_bytes()]), None, "{form:?}");
            let whole = format!("{body}.\r\n");
            let (_, consumed, fault) = run(&[whole.as_bytes()]).unwrap();
            assert!(fault, "{form:?}");
            assert_eq!(consumed, whole.len(), "{form:?}");
            check(whole.as_bytes());
        }
    }

    pub(crate) const SMUGGLING: [&str; 12] = [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r\n.\r",
        "\r.\r\n",
        "\r\n.\r\r\n",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\n.\r\0\n",
        "\n\n.\r\n",
        "\r\r\n..\r\r\n",
    ];

    #[test]
    fn size_does_not_count_stuffing() {
        let mut scanner = Scanner::new();
        let scan = scanner.scan(b"..a\r\n...\r\n.\r\n");
        assert_eq!(scan.text.len() as u64 - scanner.stuffed(), 8);
    }

    proptest! {
        /// Over the protocol's own alphabet nearly every input is an edge case.
        #[test]
        fn agrees_with_the_reference(input in proptest::collection::vec(proptest::sample::select(b"\r\n.a\0".to_vec()), 0..24)) {
            check(&input);
        }

        #[test]
        fn agrees_on_lines(lines in proptest::collection::vec("[.a\r\n]{0,3}", 0..8)) {
            check(lines.join("\r\n").as_bytes());
        }

        #[test]
        fn any_octets(input in proptest::collection::vec(any::<u8>(), 0..64)) {
            check(&input);
        }
    }
}
