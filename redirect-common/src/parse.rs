//! Frame bytes -> [`Headers`] -> [`Segment`], or the [`Reason`] why the frame is none of our business.
//!
//! Every field is hostile: lengths are checked against each other and against the frame, walks are bounded, and the ports of anything
//! but a whole TCP header in a whole datagram are never read.

use crate::{
    address::Address,
    flow::{Flags, Tuple},
    packet::Packet,
    reason::Reason,
    wire::{Ethernet, Extension, Icmp, Ipv4, Ipv6, Plain, Pppoe, Tcp, Vlan, ethertype, ppp, protocol},
};

/// VLAN tags followed in the frame itself. One more may sit in the packet's metadata, where the driver or the kernel put it.
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers followed.
pub const EXTENSIONS_MAX: usize = 4;

/// RFC 791 section 3.1; the don't-fragment bit is free to be set.
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// RFC 8200 section 4.5. A fragment header without offset and without more fragments (RFC 6946) is taken for a first fragment.
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;

/// What a frame is to us. Two bytes wide: the compiler puts neighbouring bytes together, and the verifier wants the pair aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// A TCP segment; its header is there whole.
    Segment,
    /// The first fragment of one: of its header only the ports are sure to be there.
    FirstFragment,
    /// Another fragment of one: no header at all.
    LaterFragment,
    /// An ICMP error, which quotes the packet that it is about.
    IcmpError,
}

impl Kind {
    /// The same, of which the verifier does not know which.
    #[inline(always)]
    const fn blurred(self, zero: usize) -> Self {
        match (self as u16).wrapping_add(zero as u16) & 3 {
            0 => Self::Segment,
            1 => Self::FirstFragment,
            2 => Self::LaterFragment,
            _ => Self::IcmpError,
        }
    }
}

/// Where the headers are. Small, because it lives on the BPF stack for as long as a packet is in the program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Offset of the IP header, in bytes.
    pub l3: usize,
    /// Offset of what follows the IP header and its extensions, in bytes.
    pub l4: usize,
    end: u32,
    /// Source and destination port, as they lie in the TCP header; zeros where there is none.
    pub ports: [[u8; 2]; 2],
    /// Identification of a datagram in fragments, as it lies in the header; that of IPv4 fills the first two bytes.
    pub fragment_id: u32,
    pub kind: Kind,
    pub family: Family,
    /// A PPPoE session header stands just before the IP header.
    pub pppoe: bool,
}

/// Above every offset of an IP header: Ethernet, two tags, PPPoE.
pub const L3_MASK: usize = 0x3f;
/// Above every offset of a TCP header: four extension headers of 2,048 bytes at most.
const L4_MASK: usize = 0x3fff;

impl Headers {
    /// Of no frame: beyond any.
    pub const NONE: Self = Self {
        l3: L3_MASK,
        l4: L4_MASK,
        end: 0,
        ports: [[0; 2]; 2],
        fragment_id: 0,
        kind: Kind::Segment,
        family: Family::V4,
        pppoe: false,
    };

    /// Offset of the datagram's end, in bytes; the frame may be longer.
    #[inline(always)]
    pub const fn end(&self) -> usize {
        self.end as usize
    }

    /// The same, of which the verifier knows the bounds only; `zero` is [`Tables::zero`](crate::tables::Tables::zero).
    #[inline(always)]
    #[must_use]
    pub const fn blurred(&self, zero: usize) -> Self {
        Self {
            l3: (self.l3 + zero) & L3_MASK,
            l4: (self.l4 + zero) & L4_MASK,
            end: self.end + zero as u32,
            ports: self.ports,
            fragment_id: self.fragment_id.wrapping_add(zero as u32),
            kind: self.kind.blurred(zero),
            family: self.family,
            pppoe: (self.pppoe as usize + zero) & 1 == 1,
        }
    }
}

const _: () = assert!(
    size_of::<Ethernet>() + VLAN_TAGS_MAX * size_of::<Vlan>() + size_of::<Pppoe>() < L3_MASK
        && L3_MASK + size_of::<Ipv6>() + EXTENSIONS_MAX * 2048 < L4_MASK
);

/// As wide as [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Family {
    V4,
    V6,
}

/// A TCP segment in an unfragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<A> {
    pub tuple: Tuple<A>,
    pub flags: Flags,
    pub sequence: u32,
    pub acknowledgment: u32,
}

impl<A: Address> Segment<A> {
    /// Reads the segment that [`parse`] found; `A` is its family.
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(frame: &P, headers: &Headers) -> Option<Self> {
        let addresses = frame.at::<[A::Octets; 2]>(headers.l3 + A::OFFSET)?.map(A::from_octets);
        let tcp = frame.at::<Tcp>(headers.l4)?;
        Some(Self::new(addresses, tcp))
    }

    /// Reads the segment behind a header at `l3` that a [`glance`] has found plain, by one check of the frame's bounds. `None` where its lengths
    /// contradict each other or the frame: [`parse`] has to decide.
    #[inline(always)]
    pub fn read_plain<P: Packet + ?Sized>(frame: &P, l3: usize) -> Option<Self> {
        let Plain { ip, tcp } = frame.at::<Plain<A::Header>>(l3)?;
        let len = A::datagram_len(ip);
        let header_len = usize::from(tcp.offset >> 4) * 4;
        if header_len < size_of::<Tcp>() || size_of::<A::Header>() + header_len > len || l3 + len > frame.len() {
            return None;
        }
        Some(Self::new(A::of(ip), tcp))
    }

    #[inline(always)]
    const fn new(addresses: [A; 2], tcp: &Tcp) -> Self {
        Self {
            tuple: Tuple::new(addresses, [tcp.source_port, tcp.destination_port]),
            flags: Flags(tcp.flags),
            sequence: u32::from_be_bytes(tcp.sequence),
            acknowledgment: u32::from_be_bytes(tcp.acknowledgment),
        }
    }
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    /// An IP header: the frames of PPP, TUN and tunnel devices.
    Ip,
}

/// What a glance at a frame sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// No TCP, and nothing that quotes any.
    NotTcp,
    /// A TCP header behind an IPv4 header without options, in no fragment; lengths may contradict each other.
    Ipv4,
    /// A TCP header behind an IPv6 header without extension headers; lengths may contradict each other.
    Ipv6,
    /// Only [`parse`] can tell.
    Unclear,
}

/// A [`Sight`], and what else a glance has read where that is a TCP header. No enum of both: the compiler copies what an enum does not hold, and
/// the verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    pub sight: Sight,
    /// As in [`Headers`].
    pub ports: [[u8; 2]; 2],
    /// As in [`Headers`].
    pub l3: usize,
    /// As it lies in the IP header.
    len: [u8; 2],
}

impl Glance {
    const NOT_TCP: Self = Self { sight: Sight::NotTcp, ports: [[0; 2]; 2], l3: 0, len: [0; 2] };
    const UNCLEAR: Self = Self { sight: Sight::Unclear, ..Self::NOT_TCP };

    /// What [`parse`] finds too, but for the identification; `None` where that has to decide.
    #[inline(always)]
    pub fn headers<P: Packet + ?Sized>(&self, frame: &P) -> Option<Headers> {
        let Self { sight, ports, l3, len } = *self;
        let len = usize::from(u16::from_be_bytes(len));
        let (family, l4, end) = match sight {
            Sight::Ipv4 => (Family::V4, l3 + size_of::<Ipv4>(), l3 + len),
            Sight::Ipv6 => (Family::V6, l3 + size_of::<Ipv6>(), l3 + size_of::<Ipv6>() + len),
            Sight::NotTcp | Sight::Unclear => return None,
        };
        let header_len = usize::from(frame.at::<Tcp>(l4)?.offset >> 4) * 4;
        if len == 0 || header_len < size_of::<Tcp>() || l4 + header_len > end || end > frame.len() {
            return None;
        }
        let (kind, end) = (Kind::Segment, end as u32);
        Some(Headers { l3, l4, end, ports, fragment_id: 0, kind, family, pppoe: false })
    }
}

/// Looks at a frame with as few loads as tell a bystander: this is all that most frames meet.
#[inline(always)]
pub fn glance<P: Packet + ?Sized>(frame: &P, link: Link) -> Glance {
    if link == Link::Ip {
        return match frame.at::<Ipv4>(0).map(|ip| ip.version_ihl >> 4) {
            Some(4) => glance_ipv4(frame, 0),
            Some(6) => glance_ipv6(frame, 0),
            _ => Glance::UNCLEAR,
        };
    }
    let Some(ethernet) = frame.at::<Ethernet>(0) else { return Glance::UNCLEAR };
    let mut ethertype = u16::from_be_bytes(ethernet.ethertype);
    let mut l3 = size_of::<Ethernet>();
    for _ in 0..VLAN_TAGS_MAX {
        if !is_vlan(ethertype) {
            break;
        }
        let Some(tag) = frame.at::<Vlan>(l3) else { return Glance::UNCLEAR };
        ethertype = u16::from_be_bytes(tag.ethertype);
        l3 += size_of::<Vlan>();
    }
    match ethertype {
        ethertype::IPV4 => glance_ipv4(frame, l3),
        ethertype::IPV6 => glance_ipv6(frame, l3),
        _ => Glance::UNCLEAR,
    }
}

#[inline(always)]
fn glance_ipv4<P: Packet + ?Sized>(frame: &P, l3: usize) -> Glance {
    /// Version 4, five words: no options.
    const PLAIN: u8 = 0x45;
    let Some(ip) = frame.at::<Ipv4>(l3) else { return Glance::UNCLEAR };
    let fragment = u16::from_be_bytes(ip.fragment) & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET);
    if ip.version_ihl != PLAIN || ip.protocol == protocol::ICMPV4 {
        return Glance::UNCLEAR;
    }
    if ip.protocol != protocol::TCP {
        return Glance::NOT_TCP;
    }
    match frame.at::<[[u8; 2]; 2]>(l3 + size_of::<Ipv4>()) {
        Some(&ports) if fragment == 0 => Glance { sight: Sight::Ipv4, ports, l3, len: ip.total_len },
        _ => Glance::UNCLEAR,
    }
}

#[inline(always)]
fn glance_ipv6<P: Packet + ?Sized>(frame: &P, l3: usize) -> Glance {
    let Some(ip) = frame.at::<Ipv6>(l3) else { return Glance::UNCLEAR };
    if ip.version_class_flow[0] >> 4 != 6 {
        return Glance::UNCLEAR;
    }
    match (ip.next_header, frame.at::<[[u8; 2]; 2]>(l3 + size_of::<Ipv6>())) {
        (protocol::UDP, _) => Glance::NOT_TCP,
        (protocol::TCP, Some(&ports)) => Glance { sight: Sight::Ipv6, ports, l3, len: ip.payload_len },
        _ => Glance::UNCLEAR,
    }
}

/// Parses a frame, and makes more of it readable where that is what it takes. `headers` holds what is found, [`Headers::blurred`], unless a
/// reason says why not.
#[inline(never)]
pub fn parse_pulling<P: Packet>(frame: &mut P, link: Link, zero: usize, headers: &mut Headers) -> Option<Reason> {
    let mut parsed = parse(frame, link);
    if parsed == Err(Reason::Truncated) && frame.pull() {
        parsed = parse(frame, link);
    }
    match parsed {
        Ok(found) => {
            *headers = found.blurred(zero);
            None
        }
        Err(reason) => Some(reason),
    }
}

/// Parses what of a frame is readable.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(frame: &P, link: Link) -> Result<Headers, Reason> {
    match link {
        Link::Ethernet => parse_ethernet(frame),
        // Either header is longer, and the verifier follows no check of a single byte.
        Link::Ip => match frame.at::<Ipv4>(0).ok_or(Reason::Truncated)?.version_ihl >> 4 {
            4 => parse_ipv4(frame, 0, frame.len(), false),
            6 => parse_ipv6(frame, 0, frame.len(), false),
            _ => Err(Reason::NotIp),
        },
    }
}

#[inline(always)]
fn parse_ethernet<P: Packet + ?Sized>(frame: &P) -> Result<Headers, Reason> {
    let mut ethertype = u16::from_be_bytes(frame.at::<Ethernet>(0).ok_or(Reason::Truncated)?.ethertype);
    let mut l3 = size_of::<Ethernet>();
    for _ in 0..VLAN_TAGS_MAX {
        if !is_vlan(ethertype) {
            break;
        }
        ethertype = u16::from_be_bytes(frame.at::<Vlan>(l3).ok_or(Reason::Truncated)?.ethertype);
        l3 += size_of::<Vlan>();
    }
    match ethertype {
        ethertype::IPV4 => parse_ipv4(frame, l3, frame.len(), false),
        ethertype::IPV6 => parse_ipv6(frame, l3, frame.len(), false),
        ethertype::PPPOE_SESSION => parse_pppoe(frame, l3),
        tag if is_vlan(tag) => Err(Reason::TooDeep),
        _ => Err(Reason::NotIp),
    }
}

/// RFC 2516 section 4.
#[inline(always)]
fn parse_pppoe<P: Packet + ?Sized>(frame: &P, offset: usize) -> Result<Headers, Reason> {
    let pppoe = frame.at::<Pppoe>(offset).ok_or(Reason::Truncated)?;
    if pppoe.version_type != 0x11 || pppoe.code != 0 {
        return Err(Reason::Malformed);
    }
    let l3 = offset + size_of::<Pppoe>();
    // The length counts what follows it, and so the protocol number too.
    let end = l3 - size_of::<[u8; 2]>() + usize::from(u16::from_be_bytes(pppoe.len));
    if end > frame.len() {
        return Err(Reason::Truncated);
    }
    match u16::from_be_bytes(pppoe.protocol) {
        ppp::IPV4 => parse_ipv4(frame, l3, end, true),
        ppp::IPV6 => parse_ipv6(frame, l3, end, true),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
const fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN)
}

/// RFC 791 section 3.1. The datagram has to end at `limit` at the latest.
#[inline(always)]
fn parse_ipv4<P: Packet + ?Sized>(frame: &P, l3: usize, limit: usize, pppoe: bool) -> Result<Headers, Reason> {
    let ip = frame.at::<Ipv4>(l3).ok_or(Reason::Truncated)?;
    let header_len = usize::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() {
        return Err(Reason::Malformed);
    }
    if ip.protocol != protocol::TCP && ip.protocol != protocol::ICMPV4 {
        return Err(Reason::NotTcp);
    }
    let end = match usize::from(u16::from_be_bytes(ip.total_len)) {
        // A super-packet beyond 64 KiB carries length 0 ("BIG TCP", kernel commit b1a78b9b9886).
        0 => limit,
        total_len => l3 + total_len,
    };
    if end > limit {
        return Err(Reason::Truncated);
    }
    let l4 = l3 + header_len;
    let fragment = u16::from_be_bytes(ip.fragment);
    let kind = match (fragment & IPV4_FRAGMENT_OFFSET, fragment & IPV4_MORE_FRAGMENTS) {
        (0, 0) => Kind::Segment,
        (0, _) => Kind::FirstFragment,
        _ => Kind::LaterFragment,
    };
    let [a, b] = ip.id;
    let fragment_id = u32::from_ne_bytes([a, b, 0, 0]);
    let protocol = ip.protocol;
    finish(
        frame,
        Headers { l3, l4, end: end as u32, ports: [[0; 2]; 2], fragment_id, kind, family: Family::V4, pppoe },
        protocol,
    )
}

/// RFC 8200 sections 3 and 4. The datagram has to end at `limit` at the latest.
#[inline(always)]
fn parse_ipv6<P: Packet + ?Sized>(frame: &P, l3: usize, limit: usize, pppoe: bool) -> Result<Headers, Reason> {
    let ip = frame.at::<Ipv6>(l3).ok_or(Reason::Truncated)?;
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let mut next_header = ip.next_header;
    let mut l4 = l3 + size_of::<Ipv6>();
    let end = match usize::from(u16::from_be_bytes(ip.payload_len)) {
        // A jumbogram (RFC 2675), which is also what a super-packet beyond 64 KiB looks like.
        0 => limit,
        payload_len => l4 + payload_len,
    };
    if end > limit {
        return Err(Reason::Truncated);
    }
    let (mut kind, mut fragment_id) = (Kind::Segment, 0);
    for _ in 0..EXTENSIONS_MAX {
        match next_header {
            protocol::TCP | protocol::ICMPV6 => break,
            protocol::FRAGMENT => {
                let fragment = frame.at::<Extension>(l4).ok_or(Reason::Truncated)?;
                kind = Kind::FirstFragment;
                fragment_id = u32::from_ne_bytes(fragment.rest);
                next_header = fragment.next_header;
                l4 += size_of::<Extension>();
                if u16::from_be_bytes([fragment.third, fragment.fourth]) & IPV6_FRAGMENT_OFFSET != 0 {
                    kind = Kind::LaterFragment;
                    break;
                }
            }
            protocol::HOP_BY_HOP | protocol::DESTINATION | protocol::ROUTING => {
                let extension = frame.at::<Extension>(l4).ok_or(Reason::Truncated)?;
                if next_header == protocol::ROUTING && extension.fourth != 0 {
                    return Err(Reason::SourceRouted);
                }
                next_header = extension.next_header;
                l4 += (usize::from(extension.len) + 1) * 8;
            }
            _ => return Err(Reason::NotTcp),
        }
    }
    let headers = Headers { l3, l4, end: end as u32, ports: [[0; 2]; 2], fragment_id, kind, family: Family::V6, pppoe };
    match next_header {
        protocol::TCP | protocol::ICMPV6 => finish(frame, headers, next_header),
        // What follows the options of a later fragment's datagram stands in the first one.
        protocol::DESTINATION if kind == Kind::LaterFragment => Ok(headers),
        protocol::FRAGMENT | protocol::HOP_BY_HOP | protocol::DESTINATION | protocol::ROUTING => Err(Reason::TooDeep),
        _ => Err(Reason::NotTcp),
    }
}

/// What can be known once the headers of IP are behind us: `next` is TCP or the family's ICMP.
#[inline(always)]
fn finish<P: Packet + ?Sized>(frame: &P, headers: Headers, next: u8) -> Result<Headers, Reason> {
    let Headers { kind, family, .. } = headers;
    let (l4, end) = (headers.l4, headers.end());
    if next != protocol::TCP {
        // Errors are short; one in fragments is nobody's honest work.
        if kind != Kind::Segment {
            return Err(Reason::NotTcp);
        }
        let kind = frame.at::<Icmp>(l4).ok_or(Reason::Truncated)?.kind;
        let is_error = match family {
            // RFC 792: destination unreachable, time exceeded, parameter problem.
            Family::V4 => matches!(kind, 3 | 11 | 12),
            // RFC 4443 section 3: those three and packet too big.
            Family::V6 => matches!(kind, 1..=4),
        };
        return if is_error { Ok(Headers { kind: Kind::IcmpError, ..headers }) } else { Err(Reason::NotTcp) };
    }
    match kind {
        Kind::Segment => Ok(Headers { ports: segment_ports(frame, l4, end)?, ..headers }),
        Kind::FirstFragment => Ok(Headers { ports: first_fragment_ports(frame, l4, end)?, ..headers }),
        Kind::LaterFragment | Kind::IcmpError => Ok(headers),
    }
}

/// The ports of a whole TCP header (RFC 9293 section 3.1). `end` is where the datagram says that it ends.
#[inline(always)]
fn segment_ports<P: Packet + ?Sized>(frame: &P, l4: usize, end: usize) -> Result<[[u8; 2]; 2], Reason> {
    let tcp = frame.at::<Tcp>(l4).ok_or(Reason::Truncated)?;
    let header_len = usize::from(tcp.offset >> 4) * 4;
    if header_len < size_of::<Tcp>() || l4 + header_len > end {
        return Err(Reason::Malformed);
    }
    Ok([tcp.source_port, tcp.destination_port])
}

/// A first fragment may be as short as eight bytes (RFC 791 section 3.2), so its ports are all that is read.
#[inline(always)]
fn first_fragment_ports<P: Packet + ?Sized>(frame: &P, l4: usize, end: usize) -> Result<[[u8; 2]; 2], Reason> {
    let ports = *frame.at::<[[u8; 2]; 2]>(l4).ok_or(Reason::Truncated)?;
    if l4 + size_of_val(&ports) > end {
        return Err(Reason::Malformed);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};
    use crate::testkit::{FrameBuilder, Ip};

    /// The reason why a frame is refused, or the tuple's ports where it is a segment.
    fn check(frame: &FrameBuilder, expected: Result<[[u8; 2]; 2], Reason>) {
        let bytes = frame.build();
        let got = parse(&bytes[..], frame.link).map(|headers| match headers.family {
            Family::V4 => Segment::<V4>::read(&bytes[..], &headers).unwrap().tuple.ports,
            Family::V6 => Segment::<V6>::read(&bytes[..], &headers).unwrap().tuple.ports,
        });
        assert_eq!(got, expected, "{frame:?}");
    }

    #[test]
    fn segments_are_found_behind_tags_options_and_extension_headers() {
        let ports = [[0x9c, 0x40], [0, 25]];
        for ip in [Ip::V4, Ip::V6] {
            for tags in [vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100, 0x8100]] {
                check(&FrameBuilder { tags: tags.clone(), ..FrameBuilder::syn(ip) }, Ok(ports));
                check(&FrameBuilder { tags, pppoe: true, ..FrameBuilder::syn(ip) }, Ok(ports));
            }
            check(&FrameBuilder { link: Link::Ip, ..FrameBuilder::syn(ip) }, Ok(ports));
        }
        for options in [4, 20, 40] {
            check(&FrameBuilder { ip_options: options, ..FrameBuilder::syn(Ip::V4) }, Ok(ports));
        }
        for extensions in [vec![0], vec![60], vec![43], vec![0, 60], vec![0, 60, 43, 60]] {
            check(&FrameBuilder { extensions, ..FrameBuilder::syn(Ip::V6) }, Ok(ports));
        }
    }

    #[test]
    fn what_is_no_whole_segment_is_named() {
        let v4 = || FrameBuilder::syn(Ip::V4);
        let v6 = || FrameBuilder::syn(Ip::V6);
        check(&FrameBuilder { tags: vec![0x8100; 3], ..v4() }, Err(Reason::TooDeep));
        check(&FrameBuilder { extensions: vec![0, 60, 60, 60, 60], ..v6() }, Err(Reason::TooDeep));
        check(&FrameBuilder { ethertype: Some(0x0806), ..v4() }, Err(Reason::NotIp));
        check(&FrameBuilder { protocol: 17, ..v4() }, Err(Reason::NotTcp));
        check(&FrameBuilder { protocol: 17, ..v6() }, Err(Reason::NotTcp));
        check(&FrameBuilder { fragment: 0x4000, ..v4() }, Ok([[0x9c, 0x40], [0, 25]]));
        check(&FrameBuilder { segments_left: 1, extensions: vec![43], ..v6() }, Err(Reason::SourceRouted));
        check(&FrameBuilder { tcp_offset: 4, ..v4() }, Err(Reason::Malformed));
        check(&FrameBuilder { tcp_offset: 15, ..v4() }, Err(Reason::Malformed));
        check(&FrameBuilder { tcp_offset: 15, ..v6() }, Err(Reason::Malformed));
    }

    #[test]
    fn of_a_first_fragment_the_ports_are_read_and_of_later_ones_nothing() {
        let ports = [[0x9c, 0x40], [0, 25]];
        let v4 = FrameBuilder { fragment: 0x2000, ..FrameBuilder::syn(Ip::V4) };
        let v6 = FrameBuilder { extensions: vec![0, 44], ..FrameBuilder::syn(Ip::V6) };
        let kind_and_ports = |bytes: &[u8]| parse(bytes, Link::Ethernet).map(|headers| (headers.kind, headers.ports));
        for frame in [&v4, &v6] {
            assert_eq!(kind_and_ports(&frame.build()), Ok((Kind::FirstFragment, ports)));
        }
        // Eight bytes of TCP are enough: lengths say so, and the frame ends there.
        let mut tiny = v4.build();
        tiny[17] = 28;
        assert_eq!(kind_and_ports(&tiny[..42]), Ok((Kind::FirstFragment, ports)));
        tiny[17] = 23;
        assert_eq!(parse(&tiny[..42], Link::Ethernet), Err(Reason::Malformed), "three bytes are not");
        for fragment in [0x00b9, 0x2001] {
            let later = FrameBuilder { fragment, ..FrameBuilder::syn(Ip::V4) }.build();
            let headers = parse(&later[..], Link::Ethernet).unwrap();
            assert_eq!((headers.kind, headers.ports, headers.fragment_id), (Kind::LaterFragment, [[0; 2]; 2], 7 << 8));
        }
        let mut later = v6.build();
        later[14 + 40 + 8 + 3] = 8;
        later[14 + 40 + 8 + 4..][..4].copy_from_slice(&[1, 2, 3, 4]);
        let headers = parse(&later[..], Link::Ethernet).unwrap();
        assert_eq!((headers.kind, headers.fragment_id), (Kind::LaterFragment, u32::from_ne_bytes([1, 2, 3, 4])));
        later[14 + 40 + 8] = 17;
        assert_eq!(parse(&later[..], Link::Ethernet), Err(Reason::NotTcp), "a fragment of UDP");
    }

    fn check_plain(bytes: &[u8], glance: &Glance, headers: &Headers) {
        fn check<A: Address>(bytes: &[u8], glance: &Glance, headers: &Headers) {
            let plain = Segment::<A>::read_plain(bytes, glance.l3);
            assert_eq!(plain.is_some(), glance.headers(bytes).is_some(), "{bytes:02x?}");
            assert!(plain.is_none() || plain == Segment::read(bytes, headers), "{bytes:02x?}");
        }
        match headers.family {
            Family::V4 => check::<V4>(bytes, glance, headers),
            Family::V6 => check::<V6>(bytes, glance, headers),
        }
    }

    /// A glance sees what the parser finds, but that it asks for less: where lengths contradict each other the frame passes either way.
    #[test]
    fn a_glance_sees_what_the_parser_finds() {
        let mut seen = [0; 4];
        let mut check = |bytes: &[u8], link| {
            let glance = glance(bytes, link);
            let parsed = parse(bytes, link);
            seen[glance.sight as usize] += 1;
            match glance.sight {
                Sight::NotTcp => {
                    assert!(matches!(parsed, Err(Reason::NotTcp | Reason::Truncated)), "{parsed:?}: {bytes:02x?}");
                }
                Sight::Ipv4 | Sight::Ipv6 => match parsed {
                    Ok(headers) => {
                        let id = headers.fragment_id;
                        let found = glance.headers(bytes).map(|found| Headers { fragment_id: id, ..found });
                        // Where no length is given, the parser is asked.
                        assert!(found == Some(headers) || found.is_none() && glance.len == [0; 2], "{bytes:02x?}");
                        assert_eq!(glance.ports, headers.ports, "{bytes:02x?}");
                        check_plain(bytes, &glance, &headers);
                    }
                    Err(reason) => {
                        assert!(matches!(reason, Reason::Truncated | Reason::Malformed), "{reason:?}: {bytes:02x?}");
                        assert_eq!(glance.headers(bytes), None, "{bytes:02x?}");
                    }
                },
                Sight::Unclear => assert_eq!(glance.headers(bytes), None, "{bytes:02x?}"),
            }
        };
        for ip in [Ip::V4, Ip::V6] {
            let plain = FrameBuilder { payload: b"MAIL".to_vec(), ..FrameBuilder::syn(ip) };
            for tags in [vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100; 3]] {
                for pppoe in [false, true] {
                    for protocol in [1, 6, 17, 58] {
                        for link in [Link::Ethernet, Link::Ip] {
                            let frame =
                                FrameBuilder { tags: tags.clone(), pppoe, protocol, link, ..plain.clone() }.build();
                            for len in 0..=frame.len() {
                                check(&frame[..len], link);
                            }
                            // Every byte up to the end of the TCP header takes every value.
                            for at in 0..frame.len() - 4 {
                                let mut changed = frame.clone();
                                for value in 0..=255 {
                                    changed[at] = value;
                                    check(&changed, link);
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(seen.iter().all(|times| *times > 1000), "{seen:?}");
    }

    #[test]
    fn of_icmp_only_whole_errors_are_ours() {
        for (ip, protocol, errors) in [(Ip::V4, 1, &[3, 11, 12][..]), (Ip::V6, 58, &[1, 2, 3, 4])] {
            let builder = FrameBuilder { protocol, ..FrameBuilder::syn(ip) };
            for icmp_type in 0..=255 {
                let mut frame = builder.build();
                let l4 = parse(&FrameBuilder::syn(ip).build()[..], Link::Ethernet).unwrap().l4;
                frame[l4] = icmp_type;
                let expected = if errors.contains(&icmp_type) { Ok(Kind::IcmpError) } else { Err(Reason::NotTcp) };
                assert_eq!(
                    parse(&frame[..], Link::Ethernet).map(|headers| headers.kind),
                    expected,
                    "{ip:?} {icmp_type}"
                );
            }
        }
        let mut fragment = FrameBuilder { protocol: 1, fragment: 0x2000, ..FrameBuilder::syn(Ip::V4) }.build();
        fragment[34] = 3;
        assert_eq!(parse(&fragment[..], Link::Ethernet), Err(Reason::NotTcp));
    }

    #[test]
    fn a_pppoe_frame_has_to_be_a_whole_session_frame_of_ip() {
        let frame = FrameBuilder { pppoe: true, ..FrameBuilder::syn(Ip::V4) };
        let changed = |at: usize, value: u8| {
            let mut bytes = frame.build();
            bytes[at] = value;
            parse(&bytes[..], Link::Ethernet)
        };
        assert_eq!(changed(14, 0x21), Err(Reason::Malformed), "version 2");
        assert_eq!(changed(15, 0x09), Err(Reason::Malformed), "a discovery code");
        assert_eq!(changed(21, 0x57), Err(Reason::Malformed), "IPv6 announced, IPv4 inside");
        assert_eq!(changed(20, 0xc0), Err(Reason::NotIp), "link control");
        assert_eq!(changed(19, 41), Err(Reason::Truncated), "the datagram is longer than the session frame");
        assert_eq!(changed(19, 43), Err(Reason::Truncated), "the session frame is longer than the frame");
        assert_eq!(changed(19, 0), Err(Reason::Truncated), "shorter than its own protocol number");
        assert!(changed(19, 42).is_ok(), "just right");
    }

    #[test]
    fn every_cut_of_a_frame_is_truncated_and_padding_is_no_payload() {
        for ip in [Ip::V4, Ip::V6] {
            let frame = FrameBuilder { tags: vec![0x8100], payload: b"MAIL".to_vec(), ..FrameBuilder::syn(ip) };
            let session = FrameBuilder { pppoe: true, ..frame.clone() }.build();
            for len in 0..session.len() {
                assert_eq!(
                    parse(&session[..len], Link::Ethernet),
                    Err(Reason::Truncated),
                    "{ip:?} in PPPoE cut to {len}"
                );
            }
            let whole = frame.build();
            for len in 0..whole.len() {
                assert_eq!(parse(&whole[..len], Link::Ethernet), Err(Reason::Truncated), "{ip:?} cut to {len}");
            }
            let padded = [&whole[..], &[0; 9]].concat();
            assert_eq!(parse(&padded[..], Link::Ethernet), parse(&whole[..], Link::Ethernet));
        }
    }
}
