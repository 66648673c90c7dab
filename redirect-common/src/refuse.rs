//! Refusing a connection: a segment becomes the TCP reset that answers it (RFC 9293 section 3.10.7.1).
//!
//! The frame goes back the way it came, so everything that carries it stays: VLAN tags, the PPPoE session, IP options and extension headers.
//! Addresses and ports change places, lengths shrink, and what followed the TCP header is cut off.

use crate::{
    address::{Address, V4, V6},
    checksum::Delta,
    edit::EditError,
    flow::Flags,
    packet::PacketMut,
    parse::{Family, Headers, L3_MASK, Link, Segment, parse_pulling},
    wire::{Ethernet, Ipv4, Ipv6, Tcp, protocol},
};

/// Hop limit of a reset: the sender is a few hops away, but no closer than it says.
const HOP_LIMIT: u8 = 64;
/// The shortest Ethernet frame, without its check sequence (IEEE 802.3). Not every driver pads what XDP sends.
const ETHERNET_LEN_MIN: usize = 60;

/// Turns a frame that [`handle`](crate::handle::handle) rejects into the reset that answers it; `zero` is
/// [`Tables::zero`](crate::tables::Tables::zero).
#[inline(always)]
pub fn refuse<P: PacketMut>(frame: &mut P, link: Link, zero: usize) -> Result<(), EditError> {
    let mut headers = Headers::NONE;
    if parse_pulling(frame, link, zero, &mut headers).is_some() {
        return Err(EditError);
    }
    match headers.family {
        Family::V4 => answer::<P, V4>(frame, link, &headers),
        Family::V6 => answer::<P, V6>(frame, link, &headers),
    }
}

/// Not inlined, so that the compiler does not reason from the parser's checks to this function's: the verifier cannot follow it.
#[inline(never)]
fn answer<P: PacketMut, A: Address>(frame: &mut P, link: Link, headers: &Headers) -> Result<(), EditError> {
    // From the front of the frame to its back, as in `edit::incremental`.
    if link == Link::Ethernet {
        let Ethernet { destination, source, .. } = *frame.at::<Ethernet>(0).ok_or(EditError)?;
        frame.write(0, source)?;
        frame.write(size_of_val(&source), destination)?;
    }
    let segment = &Segment::<A>::read(frame, headers).ok_or(EditError)?;
    let tcp_len = size_of::<Tcp>();
    let end = headers.l4 + tcp_len;
    let ip_len = ((end - headers.l3) as u16).to_be_bytes();
    let payload_len = payload_len(frame, headers)?;
    if headers.pppoe {
        // The length counts the protocol number and what follows it; both are the last of the header.
        let session_len = ((end - headers.l3 + 2) as u16).to_be_bytes();
        frame.write(headers.l3.wrapping_sub(4) & L3_MASK, session_len)?;
    }
    if A::HEADER_CHECKSUM.is_some() {
        shorten_ipv4(frame, headers.l3, ip_len)?;
    } else {
        let ip_payload_len = ((end - headers.l3 - size_of::<Ipv6>()) as u16).to_be_bytes();
        frame.write(headers.l3 + 4, ip_payload_len)?;
        frame.write(headers.l3 + 7, HOP_LIMIT)?;
    }
    let reply = segment.tuple.reversed();
    frame.write(headers.l3 + A::OFFSET, reply.addresses.map(A::octets))?;

    let tcp = reset(segment, payload_len);
    frame.write(headers.l4, tcp)?;
    let [source, destination] = reply.addresses;
    let pseudo_header =
        source.sum().and(destination.sum()).plus(u32::from_ne_bytes([0, protocol::TCP, 0, tcp_len as u8]));
    let segment = tcp.iter().fold(Delta::ZERO, |sum, word| sum.plus(u32::from_ne_bytes(*word)));
    frame.set_tcp_checksum(headers.l4, pseudo_header, segment)?;
    match link {
        Link::Ethernet => frame.truncate(end.max(ETHERNET_LEN_MIN)),
        Link::Ip => frame.truncate(end),
    }
}

/// Length of the TCP payload, in bytes.
#[inline(always)]
fn payload_len<P: PacketMut>(frame: &P, headers: &Headers) -> Result<u32, EditError> {
    let tcp_len = usize::from(frame.at::<Tcp>(headers.l4).ok_or(EditError)?.offset >> 4) * 4;
    // The parser has seen that the header fits.
    Ok(headers.end().wrapping_sub(headers.l4 + tcp_len) as u32)
}

/// Length and time to live, and what they do to the header's checksum.
#[inline(always)]
fn shorten_ipv4<P: PacketMut>(frame: &mut P, l3: usize, total_len: [u8; 2]) -> Result<(), EditError> {
    let old = *frame.at::<Ipv4>(l3).ok_or(EditError)?;
    let pair = |[a, b]: [u8; 2]| u32::from_ne_bytes([a, b, 0, 0]);
    let delta = Delta::of(pair(old.total_len), pair(total_len))
        .and(Delta::of(pair([old.ttl, old.protocol]), pair([HOP_LIMIT, old.protocol])));
    frame.write(l3 + 2, total_len)?;
    frame.write(l3 + 8, HOP_LIMIT)?;
    frame.write(l3 + 10, delta.apply(old.checksum))
}

/// The header of the answer, in words, its checksum zero. RFC 9293 section 3.10.7.1: the number that the segment acknowledges, or else an
/// acknowledgment of the segment.
#[inline(always)]
fn reset<A: Address>(segment: &Segment<A>, payload_len: u32) -> [[u8; 4]; 5] {
    let [[a, b], [c, d]] = segment.tuple.reversed().ports;
    let flags = segment.flags.0;
    let (sequence, acknowledgment, flags) = if flags & Flags::ACK != 0 {
        (segment.acknowledgment, 0, Flags::RST)
    } else {
        let len = payload_len + u32::from(flags & Flags::SYN != 0) + u32::from(flags & Flags::FIN != 0);
        (0, segment.sequence.wrapping_add(len), Flags::RST | Flags::ACK)
    };
    [[a, b, c, d], sequence.to_be_bytes(), acknowledgment.to_be_bytes(), [5 << 4, flags, 0, 0], [0; 4]]
}
