//! Frames written by hand: building them, putting them on a link, and taking them off behind the hooks.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket},
};

use crate::{
    lab::{CLIENT_MAC, ROUTER_MAC},
    netns::Namespace,
};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_FRAGMENT_V6: u8 = 44;
pub const PROTOCOL_ICMPV6: u8 = 58;

/// A socket that puts frames on the link of a device as they are. To close one takes the kernel longer than to send a
/// thousand frames, so keep it.
pub struct Wire {
    socket: OwnedFd,
    to: LinkAddr,
}

impl Wire {
    pub fn open(host: &Namespace, device: &str) -> Result<Self> {
        host.enter(|| {
            let index = if_nametoindex(device).with_context(|| format!("find {device}"))?;
            let to = link_address(i32::try_from(index).context("an interface index is small")?)?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
            Ok(Self { socket: socket.context("open a packet socket")?, to })
        })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.to, MsgFlags::empty());
        sent.with_context(|| format!("send a frame of {} bytes", frame.len())).map(drop)
    }
}

/// The device with this index as a destination for frames (packet(7)).
fn link_address(index: i32) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).context("AF_PACKET is a small constant")?,
        sll_protocol: 0,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).context("sockaddr_ll is small")?;
    // SAFETY: the pointer is to a whole sockaddr_ll of this length that lives until the call returns, and the call copies it.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.context("a sockaddr_ll is a link address")
}

/// An Ethernet frame from the client to the router.
#[must_use]
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&ROUTER_MAC[..], &CLIENT_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 or IPv6 packet without options, in its Ethernet frame.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet(ETHERTYPE_IPV4, &ipv4(from, to, protocol, 0x4000, &[], payload)),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet(ETHERTYPE_IPV6, &ipv6(from, to, protocol, payload)),
        _ => panic!("a packet has addresses of one family, not {from} and {to}"),
    }
}

/// `fragment` is the word of flags and offset; `options` come in multiples of four bytes.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_length = 20 + options.len();
    let words = u8::try_from(header_length / 4).expect("an IPv4 header has at most 60 bytes");
    let total = u16::try_from(header_length + payload.len()).expect("a frame of the lab is below the MTU");
    let mut header = vec![0x40 | words, 0];
    header.extend(total.to_be_bytes());
    header.extend(0x2525_u16.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let checksum = checksum(&[&header]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&header, payload].concat()
}

#[must_use]
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a frame of the lab is below the MTU");
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([next_header, 64]);
    header.extend(from.octets());
    header.extend(to.octets());
    [&header, payload].concat()
}

/// A TCP segment with its checksum.
#[must_use]
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(0x0102_0304_u32.to_be_bytes());
    segment.extend(0_u32.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    with_checksum(segment, 16, from.0, to.0, PROTOCOL_TCP)
}

/// A UDP datagram with its checksum.
#[must_use]
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a frame of the lab is below the MTU");
    let mut datagram = Vec::new();
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    with_checksum(datagram, 6, from.0, to.0, PROTOCOL_UDP)
}

/// An echo request of ICMP or `ICMPv6`.
#[must_use]
pub fn echo(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (8, PROTOCOL_ICMP) } else { (128, PROTOCOL_ICMPV6) };
    let mut message = vec![kind, 0, 0, 0, 0x25, 0x25, 0, 1];
    message.extend(payload);
    if from.is_ipv4() {
        let checksum = checksum(&[&message]);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        return message;
    }
    with_checksum(message, 2, from, to, protocol)
}

fn with_checksum(mut message: Vec<u8>, at: usize, from: IpAddr, to: IpAddr, protocol: u8) -> Vec<u8> {
    let checksum = checksum(&[&pseudo_header(from, to, protocol, message.len()), &message]);
    message[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// What TCP, UDP and `ICMPv6` put into their checksum beside themselves (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = u32::try_from(length).expect("a packet is shorter than 4 GiB");
    // The short form of IPv4 sums to the same: what differs is the place of two numbers.
    [&octets(from)[..], &octets(to), &length.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// The Internet checksum (RFC 1071) over parts of even length, the last excepted.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    // Eight bytes at a time: a sum of wider words folds to the same (section 2).
    let mut sum = 0_u128;
    for chunk in parts.iter().flat_map(|part| part.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum += u128::from(u64::from_be_bytes(word));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("the carry is folded back")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_rfc() {
        // RFC 1071 section 3: the sum of these is ddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7, 0]]), !0xddf2);
    }
}
