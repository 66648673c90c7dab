//! A second reading of frames, from the same RFCs as `parse` and without a line of it: what the checks of `properties` rest upon.
//!
//! It walks a frame from front to back and takes what it needs of what is left, so no offset is ever computed before the bytes are there.

use std::{net::IpAddr, ops::Range, vec::Vec};

use super::{Ip, internet_checksum};
use crate::parse::Link;

/// What a datagram is to the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A whole TCP segment.
    Segment,
    /// The first fragment of one.
    First,
    /// Any other fragment of one.
    Later,
    /// An ICMP error.
    Error,
}

/// Where things are in a frame that is ours to decide; offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub family: Ip,
    pub part: Part,
    pub ip: usize,
    /// Of what follows the IP header and its extensions.
    pub transport: usize,
    /// Of the datagram's end.
    pub end: usize,
}

/// Address and port.
pub type End = (IpAddr, u16);

/// The part of a frame that has not been read, and where it begins.
#[derive(Clone, Copy)]
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        *self = Self { bytes: tail, at: self.at + len };
        Some(head)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    /// Nothing is left behind the next `len` bytes.
    fn ends_after(self, len: usize) -> Option<Self> {
        Some(Self { bytes: self.bytes.get(..len)?, at: self.at })
    }
}

impl Reading {
    /// `None` where the frame is none of our business, or not whole.
    pub fn of(frame: &[u8], link: Link) -> Option<Self> {
        let mut rest = Rest { bytes: frame, at: 0 };
        if link == Link::Ip {
            return match frame.first()? >> 4 {
                4 => ipv4(rest),
                6 => ipv6(rest),
                _ => None,
            };
        }
        rest.take(12)?;
        let mut kind = rest.number()?;
        for _ in 0..2 {
            if kind == 0x8100 || kind == 0x88a8 {
                rest.take(2)?;
                kind = rest.number()?;
            }
        }
        match kind {
            0x0800 => ipv4(rest),
            0x86dd => ipv6(rest),
            0x8864 => {
                let header = rest.take(4)?;
                let payload_len = rest.number()?;
                let mut payload = rest.ends_after(payload_len.into())?;
                match (header[0], header[1], payload.number()?) {
                    (0x11, 0, 0x0021) => ipv4(payload),
                    (0x11, 0, 0x0057) => ipv6(payload),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Source and destination address.
    pub fn addresses(&self, frame: &[u8]) -> [IpAddr; 2] {
        addresses(self.family, &frame[self.ip..])
    }

    /// Source and destination, where the ports are there.
    pub fn ends(&self, frame: &[u8]) -> Option<[End; 2]> {
        if matches!(self.part, Part::Later | Part::Error) {
            return None;
        }
        let [source, destination] = self.addresses(frame);
        let [source_port, destination_port] = ports(&frame[self.transport..])?;
        Some([(source, source_port), (destination, destination_port)])
    }

    /// The TCP header of a segment.
    pub fn tcp<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.transport..self.transport + 20]
    }

    /// The packet that an error quotes, where it is TCP with ports.
    pub fn quote(&self, frame: &[u8]) -> Option<Quote> {
        if self.part != Part::Error {
            return None;
        }
        let ip = self.transport + 8;
        let quoted = frame.get(ip..self.end)?;
        let header_len = match self.family {
            Ip::V4 => {
                let later = quoted.get(6..8)?[0] & 0x1f != 0 || quoted[7] != 0;
                let len = usize::from(quoted[0] & 15) * 4;
                (quoted[0] >> 4 == 4 && len >= 20 && *quoted.get(9)? == 6 && !later).then_some(len)?
            }
            Ip::V6 => (quoted.first()? >> 4 == 6 && *quoted.get(6)? == 6).then_some(40)?,
        };
        let tcp = quoted.get(header_len..)?;
        let [source_port, destination_port] = ports(tcp)?;
        let [source, destination] = addresses(self.family, quoted);
        let ends = [(source, source_port), (destination, destination_port)];
        Some(Quote { ip, transport: ip + header_len, has_checksum: tcp.len() >= 18, ends })
    }

    /// What redirecting may change, of a frame that it does change.
    pub fn changeable(&self, frame: &[u8]) -> Vec<Range<usize>> {
        let mut ranges = Vec::from([ip_fields(self.family, self.ip)]);
        match self.part {
            Part::Later => {}
            Part::Segment | Part::First => ranges.extend(tcp_fields(self.transport, true)),
            Part::Error => {
                let quote = self.quote(frame).expect("only errors with a quote are changed");
                ranges.push(self.transport + 2..self.transport + 4);
                ranges.push(ip_fields(self.family, quote.ip));
                ranges.extend(tcp_fields(quote.transport, quote.has_checksum));
            }
        }
        ranges
    }

    /// For every checksum in the frame how far it is from right: 0 where it is right. Whatever is changed, this must stay.
    pub fn errors(&self, frame: &[u8]) -> Vec<(&'static str, u16)> {
        let mut errors = Vec::new();
        let mut note = |name, covered: &[&[u8]]| errors.push((name, internet_checksum(covered) % 0xffff));
        let datagram = &frame[..self.end];
        let pseudo_header = |ip: usize, protocol, len: usize| {
            let at = if self.family == Ip::V4 { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
            let len = u32::try_from(len).expect("a frame is short").to_be_bytes();
            [&frame[at], &len[..], &[0, protocol][..]].concat()
        };
        if self.family == Ip::V4
            && let Some(header) = frame.get(self.ip..self.transport)
        {
            note("IPv4", &[header]);
        }
        match (self.part, datagram.get(self.transport..)) {
            (Part::Later, _) | (_, None) => {}
            (Part::Segment | Part::First, Some(tcp)) => note("TCP", &[&pseudo_header(self.ip, 6, tcp.len()), tcp]),
            (Part::Error, Some(icmp)) if self.family == Ip::V4 => note("ICMP", &[icmp]),
            (Part::Error, Some(icmp)) => note("ICMPv6", &[&pseudo_header(self.ip, 58, icmp.len()), icmp]),
        }
        if let Some(quote) = self.quote(frame) {
            if self.family == Ip::V4 {
                note("quoted IPv4", &[&frame[quote.ip..quote.transport]]);
            }
            if quote.has_checksum {
                let tcp = &datagram[quote.transport..];
                note("quoted TCP", &[&pseudo_header(quote.ip, 6, tcp.len()), tcp]);
            }
        }
        errors
    }
}

/// A packet inside an ICMP error; offsets are in bytes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    pub ip: usize,
    pub transport: usize,
    /// The quote reaches to the end of TCP's checksum.
    pub has_checksum: bool,
    pub ends: [End; 2],
}

/// Checksum and addresses.
const fn ip_fields(family: Ip, ip: usize) -> Range<usize> {
    match family {
        Ip::V4 => ip + 10..ip + 20,
        Ip::V6 => ip + 8..ip + 40,
    }
}

/// Ports and checksum.
fn tcp_fields(tcp: usize, has_checksum: bool) -> Vec<Range<usize>> {
    let checksum = has_checksum.then_some(tcp + 16..tcp + 18);
    std::iter::once(tcp..tcp + 4).chain(checksum).collect()
}

fn addresses(family: Ip, ip: &[u8]) -> [IpAddr; 2] {
    match family {
        Ip::V4 => [12, 16].map(|at| <[u8; 4]>::try_from(&ip[at..at + 4]).expect("four bytes").into()),
        Ip::V6 => [8, 24].map(|at| <[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes").into()),
    }
}

fn ports(tcp: &[u8]) -> Option<[u16; 2]> {
    let ports = tcp.first_chunk::<4>()?;
    Some([u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])])
}

/// RFC 791. A length of 0 is that of a super-packet: all that is left.
fn ipv4(rest: Rest<'_>) -> Option<Reading> {
    let header = Rest::take(&mut { rest }, 20)?;
    let header_len = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    let len = match u16::from_be_bytes([header[2], header[3]]) {
        0 => rest.bytes.len(),
        len => len.into(),
    };
    let mut behind = rest.ends_after(len)?;
    let end = rest.at + len;
    behind.take(header_len)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let part = match (fragment & 0x1fff != 0, fragment & 0x2000 != 0) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => Part::Segment,
    };
    let reading = Reading { family: Ip::V4, part, ip: rest.at, transport: rest.at + header_len, end };
    match header[9] {
        6 if part == Part::Later => Some(reading),
        6 => tcp(reading, behind),
        1 if part == Part::Segment => error(reading, behind, &[3, 11, 12]),
        _ => None,
    }
}

/// RFC 8200. A length of 0 is that of a jumbogram: all that is left.
fn ipv6(rest: Rest<'_>) -> Option<Reading> {
    let mut behind = rest;
    let header = behind.take(40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let len = match u16::from_be_bytes([header[4], header[5]]) {
        0 => behind.bytes.len(),
        len => len.into(),
    };
    behind = behind.ends_after(len)?;
    let end = behind.at + len;
    let (mut part, mut next) = (Part::Segment, header[6]);
    for followed in 0.. {
        let reading = Reading { family: Ip::V6, part, ip: rest.at, transport: behind.at, end };
        match next {
            // What follows the options stands in the first fragment.
            6 | 60 if part == Part::Later => return Some(reading),
            6 => return tcp(reading, behind),
            58 if part == Part::Segment => return error(reading, behind, &[1, 2, 3, 4]),
            0 | 43 | 44 | 60 if followed < 4 && part != Part::Later => {
                let extension = behind.take(8)?;
                match next {
                    43 if extension[3] != 0 => return None,
                    44 => part = if extension[2] == 0 && extension[3] < 8 { Part::First } else { Part::Later },
                    _ => {}
                }
                if next != 44 {
                    behind.take(8 * usize::from(extension[1]))?;
                }
                next = extension[0];
            }
            _ => return None,
        }
    }
    None
}

/// RFC 9293: a segment has its whole header in the datagram, a first fragment its ports.
fn tcp(reading: Reading, mut rest: Rest<'_>) -> Option<Reading> {
    let needed = match reading.part {
        Part::Segment => usize::from(*rest.bytes.get(12)? >> 4) * 4,
        _ => 4,
    };
    (reading.part != Part::Segment || needed >= 20).then_some(())?;
    rest.take(needed)?;
    Some(reading)
}

fn error(reading: Reading, mut rest: Rest<'_>, kinds: &[u8]) -> Option<Reading> {
    let kind = rest.take(8)?[0];
    kinds.contains(&kind).then_some(Reading { part: Part::Error, ..reading })
}
