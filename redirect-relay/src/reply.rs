//! Replies (RFC 5321 section 4.2, RFC 2034): what we say to the client, and the strict reader of what a gateway says.

use std::borrow::Cow;

use crate::{
    buffer::Buffer,
    limits::{REPLY_LINE_MAX, REPLY_LINES_MAX, REPLY_TEXT_MAX},
    record::Status,
};

/// A reply with an enhanced status code (RFC 3463). Its class is the first digit of `code`, so the two cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    subject: u16,
    detail: u16,
    /// Lines are separated by LF and hold HT and printable ASCII only.
    text: Cow<'static, str>,
}

impl Reply {
    pub(crate) const fn new(code: u16, subject: u16, detail: u16, text: &'static str) -> Self {
        Self { code, subject, detail, text: Cow::Borrowed(text) }
    }

    pub(crate) const fn status(&self) -> Status {
        Status { code: self.code, subject: self.subject, detail: self.detail }
    }

    pub(crate) const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    pub(crate) const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// The same verdict under another code of the same class.
    pub(crate) fn with_code(self, code: u16) -> Self {
        debug_assert_eq!(self.code / 100, code / 100);
        Self { code, ..self }
    }

    /// What the reply says besides its codes; lines are separated by LF.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn write(&self, out: &mut Buffer) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let mark = if lines.peek().is_some() { '-' } else { ' ' };
            self.status().write(mark, out).expect("a buffer in memory takes every write");
            for part in [" ", line, "\r\n"] {
                out.extend(part.as_bytes());
            }
        }
    }
}

/// Why a gateway's reply cannot be believed. After one of these nobody knows which command the next reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("a reply line is too long")]
    LineTooLong,
    #[error("a reply has too many lines")]
    TooManyLines,
    #[error("a reply holds an octet outside printable ASCII")]
    Octet,
    #[error("a reply line does not begin with a code from 200 to 599")]
    Code,
    #[error("the lines of one reply carry different codes")]
    MixedCodes,
}

/// Reads replies from octets that arrive in any pieces; holds at most one line and [`REPLY_TEXT_MAX`] octets of text.
#[derive(Debug, Default)]
pub(crate) struct ReplyReader {
    line: Vec<u8>,
    lines: usize,
    code: u16,
    status: Option<(u16, u16)>,
    text: String,
}

impl ReplyReader {
    /// Takes octets off `input` up to the end of one reply; `None` when the input ran out first.
    ///
    /// `on_line` sees the text of each line after the code: the keywords of an EHLO reply.
    pub(crate) fn read(
        &mut self,
        input: &mut &[u8],
        mut on_line: impl FnMut(&str),
    ) -> Result<Option<Reply>, ReplyError> {
        while !input.is_empty() {
            let end = memchr::memchr(b'\n', input).map(|found| found + 1);
            let (head, rest) = input.split_at(end.unwrap_or(input.len()));
            if self.line.len() + head.len() > REPLY_LINE_MAX {
                return Err(ReplyError::LineTooLong);
            }
            *input = rest;
            // Nearly every line comes whole.
            if end.is_none() || !self.line.is_empty() {
                self.line.extend_from_slice(head);
            }
            if end.is_some() {
                let begun = std::mem::take(&mut self.line);
                let line = if begun.is_empty() { head } else { &begun };
                if let Some(reply) = self.line(line, &mut on_line)? {
                    return Ok(Some(reply));
                }
            }
        }
        Ok(None)
    }

    fn line(&mut self, line: &[u8], on_line: &mut impl FnMut(&str)) -> Result<Option<Reply>, ReplyError> {
        let line = line.strip_suffix(b"\r\n").ok_or(ReplyError::Octet)?;
        if !line.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
            return Err(ReplyError::Octet);
        }
        let line = str::from_utf8(line).map_err(|_| ReplyError::Octet)?;
        let (code, rest) = line.split_at_checked(3).ok_or(ReplyError::Code)?;
        let (last, text) = match rest.split_at_checked(1) {
            None => (true, ""),
            Some((" ", text)) => (true, text),
            Some(("-", text)) => (false, text),
            Some(_) => return Err(ReplyError::Code),
        };
        if !code.bytes().all(|b| b.is_ascii_digit()) || !matches!(code.as_bytes()[0], b'2'..=b'5') {
            return Err(ReplyError::Code);
        }
        let code = code.parse().map_err(|_| ReplyError::Code)?;
        self.lines += 1;
        if self.lines > REPLY_LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        if self.lines > 1 && code != self.code {
            return Err(ReplyError::MixedCodes);
        }
        self.code = code;
        on_line(text);
        self.keep(text);
        Ok(last.then(|| self.finish()))
    }

    /// The enhanced code is that of the first line; the others repeat it (RFC 2034 section 4) and lose it here.
    fn keep(&mut self, text: &str) {
        let (status, text) = match enhanced(text) {
            Some((class, subject, detail, text)) if class == self.code / 100 => (Some((subject, detail)), text),
            _ => (None, text),
        };
        if self.lines == 1 {
            self.status = status;
        }
        if self.text.len() + text.len() < REPLY_TEXT_MAX {
            if self.lines > 1 {
                self.text.push('\n');
            }
            // Our reply repeats an enhanced code that this line may not have had: keep it within the line's bound.
            self.text.push_str(text.get(..REPLY_LINE_MAX - 24).unwrap_or(text));
        }
    }

    /// Without an enhanced code, or with one that contradicts the reply, X.0.0 says "nothing more is known".
    fn finish(&mut self) -> Reply {
        let Self { code, status, text, .. } = std::mem::take(self);
        let (subject, detail) = status.unwrap_or_default();
        Reply { code, subject, detail, text: Cow::Owned(text) }
    }
}

/// `class.subject.detail text`
fn enhanced(text: &str) -> Option<(u16, u16, u16, &str)> {
    let (status, text) = text.split_once(' ').unwrap_or((text, ""));
    let mut parts = status.split('.').map(|part| {
        let digits = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if digits { part.parse::<u16>().ok() } else { None }
    });
    match (parts.next()??, parts.next()??, parts.next()??, parts.next()) {
        (class, subject, detail, None) => Some((class, subject, detail, text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads all of `input`, cut into pieces of every size; shows each reply as we would send it on.
    fn check(input: &str, expected: Result<&[&str], ReplyError>) {
        for step in 1..=input.len().max(1) {
            let mut reader = ReplyReader::default();
            let mut replies = Vec::new();
            let result = input.as_bytes().chunks(step).try_for_each(|mut piece| {
                while let Some(reply) = reader.read(&mut piece, |_| {})? {
                    let mut out = Buffer::default();
                    reply.write(&mut out);
                    replies.push(String::from_utf8(out.filled().to_vec()).unwrap());
                }
                Ok(())
            });
            let replies: Vec<_> = replies.iter().map(String::as_str).collect();
            assert_eq!(result.map(|()| replies.as_slice()), expected, "{input:?} in steps of {step}");
        }
    }

    #[test]
    fn replies() {
        check("250 2.1.5 fine\r\n", Ok(&["250 2.1.5 fine\r\n"]));
        check("250 fine\r\n", Ok(&["250 2.0.0 fine\r\n"]));
        check("250\r\n", Ok(&["250 2.0.0 \r\n"]));
        check("250 \r\n", Ok(&["250 2.0.0 \r\n"]));
        check("550 2.1.5 contradicts\r\n", Ok(&["550 5.0.0 2.1.5 contradicts\r\n"]));
        check("550 5.1.1.1 no\r\n", Ok(&["550 5.0.0 5.1.1.1 no\r\n"]));
        check("550-5.1.1 a\r\n550-5.1.1 b\r\n550 c\r\n", Ok(&["550-5.1.1 a\r\n550-5.1.1 b\r\n550 5.1.1 c\r\n"]));
        check("450 a\r\n451 4.3.0 b\r\n", Ok(&["450 4.0.0 a\r\n", "451 4.3.0 b\r\n"]));
        check("250-unfinished\r\n", Ok(&[]));
    }

    #[test]
    fn what_is_not_a_reply() {
        check("250-a\r\n550 b\r\n", Err(ReplyError::MixedCodes));
        check("250 a\n", Err(ReplyError::Octet));
        check("250 a\rb\r\n", Err(ReplyError::Octet));
        check("250 a\0\r\n", Err(ReplyError::Octet));
        check("250 \u{e9}\r\n", Err(ReplyError::Octet));
        check("999 a\r\n", Err(ReplyError::Code));
        check("150 a\r\n", Err(ReplyError::Code));
        check("25\r\n", Err(ReplyError::Code));
        check("25x a\r\n", Err(ReplyError::Code));
        check("250_a\r\n", Err(ReplyError::Code));
        check("2500 a\r\n", Err(ReplyError::Code));
        check("\r\n", Err(ReplyError::Code));
        check(&format!("250 {}\r\n", "a".repeat(600)), Err(ReplyError::LineTooLong));
        check(&"250-a\r\n".repeat(101), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut reader = ReplyReader::default();
        let mut result = Ok(None);
        for _ in 0..1000 {
            result = reader.read(&mut [b'2'; 100].as_slice(), |_| {});
            assert!(reader.line.len() <= REPLY_LINE_MAX);
        }
        assert_eq!(result, Err(ReplyError::LineTooLong));
    }

    proptest! {
        #[test]
        fn any_octets_give_short_clean_lines(input in proptest::collection::vec(proptest::sample::select(b"245.- a\r\n\0".to_vec()), 0..400)) {
            let mut reader = ReplyReader::default();
            let mut rest = input.as_slice();
            while let Ok(Some(reply)) = reader.read(&mut rest, |_| {}) {
                let mut out = Buffer::default();
                reply.write(&mut out);
                for line in out.filled().split_inclusive(|b| *b == b'\n') {
                    prop_assert!(line.len() <= REPLY_LINE_MAX);
                    prop_assert!(line.ends_with(b"\r\n"));
                    prop_assert!(line[..line.len() - 2].iter().all(|b| matches!(b, b'\t' | b' '..=b'~')));
                }
            }
        }
    }
}
