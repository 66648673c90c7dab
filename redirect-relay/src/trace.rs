//! Trace information (RFC 5321 section 4.4): the one `Received:` field we add, and the count of those already there.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use jiff::{
    Timestamp,
    fmt::{StdFmtWrite, rfc2822},
    tz::TimeZone,
};

use crate::{buffer::Buffer, relay::Identity};

/// What the client said of itself in HELO or EHLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Helo {
    pub(crate) name: String,
    /// EHLO rather than HELO.
    pub(crate) extended: bool,
}

/// What the protocol's name in the field says of the session (RFC 3848, RFC 6531 section 4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct With {
    pub(crate) utf8: bool,
    /// What the client said of its priority (RFC 6710 section 4.1).
    pub(crate) priority: Option<i8>,
    pub(crate) encrypted: bool,
    pub(crate) authenticated: bool,
}

impl With {
    const fn protocol(self, extended: bool) -> &'static str {
        match (self.utf8, self.encrypted, self.authenticated) {
            _ if !extended => "SMTP",
            (false, false, false) => "ESMTP",
            (false, false, true) => "ESMTPA",
            (false, true, false) => "ESMTPS",
            (false, true, true) => "ESMTPSA",
            (true, false, false) => "UTF8SMTP",
            (true, false, true) => "UTF8SMTPA",
            (true, true, false) => "UTF8SMTPS",
            (true, true, true) => "UTF8SMTPSA",
        }
    }
}

/// Writes the field, folded, each line ending in CRLF. Text from outside is reduced to characters that cannot end a
/// line, a comment or a quoted string.
pub(crate) fn write_received(
    out: &mut Buffer,
    with: With,
    helo: &Helo,
    identity: &Identity,
    hostname: &str,
    now: Timestamp,
) {
    write_field(out, with, helo, identity, hostname).expect("a buffer in memory takes every write");
    // Its years are those of dates that such a field may have, and a clock that is outside of them says nothing.
    let _ = rfc2822::DateTimePrinter::new().print_zoned(&now.to_zoned(TimeZone::UTC), StdFmtWrite(&mut *out));
    out.extend(b"\r\n");
}

/// Up to the date. Each message has one, so it is put together without the machinery of `write!` where it can be.
fn write_field(out: &mut Buffer, with: With, helo: &Helo, identity: &Identity, hostname: &str) -> fmt::Result {
    let mut digits = itoa::Buffer::new();
    out.write_str("Received: from ")?;
    write_printable(out, &helo.name)?;
    out.write_str(" (")?;
    write_literal(out, identity.client.ip())?;
    for part in [")\r\n\tby ", hostname, " with ", with.protocol(helo.extended)] {
        out.write_str(part)?;
    }
    if let Some(priority) = with.priority {
        write!(out, " PRIORITY {priority}")?;
    }
    out.write_str(" (class ")?;
    write_printable(out, &identity.class)?;
    out.write_str(";\r\n\tfor original destination ")?;
    let original = identity.original.get();
    write_literal(out, original.ip())?;
    for part in [":", digits.format(original.port()), ");\r\n\t"] {
        out.write_str(part)?;
    }
    Ok(())
}

/// An address literal (RFC 5321 section 4.1.3).
fn write_literal(out: &mut Buffer, ip: IpAddr) -> fmt::Result {
    match ip {
        IpAddr::V4(ip) => {
            let mut digits = itoa::Buffer::new();
            for (mark, octet) in ["[", ".", ".", "."].into_iter().zip(ip.octets()) {
                out.write_str(mark)?;
                out.write_str(digits.format(octet))?;
            }
            out.write_str("]")
        }
        IpAddr::V6(ip) => write!(out, "[IPv6:{ip}]"),
    }
}

fn write_printable(out: &mut Buffer, text: &str) -> fmt::Result {
    let special = |c: char| !(c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    for (number, part) in text.split(special).enumerate() {
        if number > 0 {
            out.write_char('-')?;
        }
        out.write_str(part)?;
    }
    Ok(())
}

/// Counts the `Received:` fields of a header section that arrives in slices.
#[derive(Debug)]
pub(crate) struct Hops {
    at: At,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// So many octets of the name have matched since the line began.
    Name(usize),
    /// The whole name has matched; white space may precede the colon (RFC 5322 section 4.5).
    Colon,
    Line,
    Body,
}

const NAME: &[u8] = b"received";

impl Hops {
    pub(crate) const fn new() -> Self {
        Self { at: At::Name(0), count: 0 }
    }

    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// `text` continues the message; its lines end in CRLF, or in LF.
    pub(crate) fn feed(&mut self, text: &[u8]) {
        let mut i = 0;
        while i < text.len() {
            let octet = text[i];
            self.at = match self.at {
                At::Body => return,
                // An empty line ends the header section.
                At::Name(0) if octet == b'\r' || octet == b'\n' => At::Body,
                At::Name(matched) if octet.eq_ignore_ascii_case(&NAME[matched]) => {
                    i += 1;
                    if matched + 1 == NAME.len() { At::Colon } else { At::Name(matched + 1) }
                }
                At::Colon if octet == b':' => {
                    self.count = self.count.saturating_add(1);
                    At::Line
                }
                At::Colon if octet == b' ' || octet == b'\t' => {
                    i += 1;
                    At::Colon
                }
                At::Name(_) | At::Colon => At::Line,
                At::Line => match memchr::memchr(b'\n', &text[i..]) {
                    Some(found) => {
                        i += found + 1;
                        At::Name(0)
                    }
                    None => return,
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::addrs::{ClientAddr, OriginalDst};

    fn received(helo: &str, client: &str, original: &str, class: &str) -> String {
        let identity = Identity {
            client: ClientAddr::new(client.parse().unwrap()),
            original: OriginalDst::new(original.parse().unwrap()),
            class: class.into(),
            policy: Arc::default(),
        };
        let helo = Helo { name: helo.into(), extended: true };
        let mut out = Buffer::default();
        let now = Timestamp::from_second(1_795_310_763).unwrap();
        write_received(&mut out, With::default(), &helo, &identity, "relay.example", now);
        String::from_utf8(out.filled().to_vec()).unwrap()
    }

    #[test]
    fn the_field_is_folded_and_dated() {
        assert_eq!(
            received("pc.example", "203.0.113.7:5", "198.51.100.9:25", "configured"),
            "Received: from pc.example ([203.0.113.7])\r\n\
             \tby relay.example with ESMTP (class configured;\r\n\
             \tfor original destination [198.51.100.9]:25);\r\n\
             \tSun, 22 Nov 2026 01:26:03 +0000\r\n"
        );
    }

    #[test]
    fn ipv6_is_a_tagged_literal() {
        let field = received("[IPv6:::1]", "[2001:db8::7]:5", "[2001:db8::9]:25", "c");
        assert!(field.contains("from [IPv6:::1] ([IPv6:2001:db8::7])"), "{field}");
        assert!(field.contains("destination [IPv6:2001:db8::9]:25)"), "{field}");
    }

    #[test]
    fn the_protocol_tells_of_tls_and_auth() {
        let name =
            |utf8, encrypted, authenticated| With { utf8, encrypted, authenticated, priority: None }.protocol(true);
        assert_eq!(name(false, false, false), "ESMTP");
        assert_eq!(name(false, true, false), "ESMTPS");
        assert_eq!(name(false, false, true), "ESMTPA");
        assert_eq!(name(false, true, true), "ESMTPSA");
        assert_eq!(name(true, true, true), "UTF8SMTPSA");
        assert_eq!(With { encrypted: true, ..With::default() }.protocol(false), "SMTP");
    }

    #[test]
    fn nothing_can_be_injected() {
        let field = received("a) by evil; (\\\"", "192.0.2.1:1", "192.0.2.2:25", "x)\r\nBcc: y");
        assert!(field.contains("from a--by-evil----- ("), "{field}");
        assert!(field.contains("(class x---Bcc:-y;"), "{field}");
        assert_eq!(field.matches('\n').count(), 4);
    }

    #[test]
    fn hops() {
        let check = |text: &str, expected: u32| {
            for step in 1..=text.len().max(1) {
                let mut hops = Hops::new();
                text.as_bytes().chunks(step).for_each(|slice| hops.feed(slice));
                assert_eq!(hops.count(), expected, "{text:?} in steps of {step}");
            }
        };
        check("", 0);
        check("Received: a\r\n\tReceived: folded\r\nrEcEiVeD : b\r\n\r\nReceived: body\r\n", 2);
        check("X-Received: a\r\nReceivedd: b\r\nReceive: c\r\nReceived\r\nRec\r\nSubject: Received:\r\n", 0);
        check("Received:\r\nReceived:", 2);
        check("\r\nReceived: a\r\n", 0);
        check("Received: a\n\nReceived: body\n", 1);
    }
}
