//! The two address families, as far as the data plane tells them apart.
//!
//! Addresses are kept in network byte order, but in words as wide as they come: copying sixteen single bytes is what a compiler makes of an
//! array of bytes.

use core::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    checksum::Delta,
    policy::{Class, Relay},
    subscriber::{Lengths, PrefixV4, PrefixV6, longest_v4, longest_v6},
    wire::{Ipv4, Ipv6, Wire},
};

/// An IPv4 address; the word's bytes in memory are those on the wire.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct V4(pub u32);

/// An IPv6 address; the words' bytes in memory are those on the wire.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct V6(pub [u64; 2]);

/// One subscriber as limits count him; its bytes in memory are the first eight of an IPv6 address. IPv4 addresses lie in `ffff:ffff::/32`,
/// which is multicast, so that no source address of IPv6 is there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(u64);

impl Host {
    /// The address, or the first of the /64.
    pub fn to_ip(self) -> IpAddr {
        match self.0.to_ne_bytes() {
            [0xff, 0xff, 0xff, 0xff, a, b, c, d] => IpAddr::from([a, b, c, d]),
            _ => V6([self.0, 0]).to_ip(),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => V4::from(address).host(),
            IpAddr::V6(address) => V6::from(address).host(),
        }
    }
}

/// What parsing, tables and editing need to know of an address family.
pub trait Address: Copy + Debug + Default + Eq + Ord + 'static {
    /// The address as it lies on the wire.
    type Octets: Wire;
    /// The IP header, without options.
    type Header: Wire;
    /// A prefix shorter than an address, as the key of a hash.
    type Prefix: Copy + Debug + Ord + 'static;
    /// 4 or 6.
    const FAMILY: u8;
    /// Length of an address, in bits.
    const BITS: u8;
    /// The unspecified address.
    const ZERO: Self;
    /// Offset of the source address in the IP header, in bytes; the destination follows it.
    const OFFSET: usize;
    /// Offset of the header's own checksum, in bytes, where the family has one.
    const HEADER_CHECKSUM: Option<usize>;

    fn from_octets(octets: Self::Octets) -> Self;

    /// Source and destination.
    fn of(header: &Self::Header) -> [Self; 2];

    /// What the header says of the datagram's length, itself included, in bytes.
    fn datagram_len(header: &Self::Header) -> usize;

    fn octets(self) -> Self::Octets;

    /// The first `len` bits, less than [`Self::BITS`].
    fn prefix(self, len: u8) -> Self::Prefix;

    /// The first address of a prefix, and its length in bits.
    fn of_prefix(prefix: Self::Prefix) -> (Self, u8);

    /// What `look_up` finds for the prefixes of the address that have one of `lengths`, the longest first.
    fn longest_match<R>(self, lengths: &Lengths, look_up: impl Fn(&Self::Prefix) -> Option<R>) -> Option<R>;

    /// The relay's endpoint in this family.
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])>;

    /// The number of the relay in a place of the class's pool of this family; 0 for none.
    fn relay(class: &Class, slot: usize) -> u8;

    /// Who counts as one subscriber where limits are counted: an IPv4 address, an IPv6 /64.
    fn host(self) -> Host;

    /// The octets in the first bytes of sixteen.
    fn padded(self) -> [u8; 16];

    /// What replacing `self` by `new` does to a checksum that covers it.
    fn delta(self, new: Self) -> Delta;

    /// The sum of the address's words: its part of a pseudo header.
    fn sum(self) -> Delta;

    /// A few bits that differ between addresses, for spreading; not a hash to rely on.
    fn spread(self) -> u32;

    fn to_ip(self) -> IpAddr;
}

impl Address for V4 {
    type Octets = [u8; 4];
    type Header = Ipv4;
    type Prefix = PrefixV4;
    const FAMILY: u8 = 4;
    const BITS: u8 = 32;
    const ZERO: Self = Self(0);
    const OFFSET: usize = 12;
    const HEADER_CHECKSUM: Option<usize> = Some(10);

    #[inline(always)]
    fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    #[inline(always)]
    fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    fn prefix(self, len: u8) -> PrefixV4 {
        PrefixV4::new(u32::from_be(self.0), 1 << 31 >> len)
    }

    fn of_prefix(prefix: PrefixV4) -> (Self, u8) {
        let (bits, len) = prefix.parts();
        (Self(bits.to_be()), len)
    }

    #[inline(always)]
    fn longest_match<R>(self, lengths: &Lengths, look_up: impl Fn(&PrefixV4) -> Option<R>) -> Option<R> {
        longest_v4(u32::from_be(self.0), lengths.v4, look_up)
    }

    #[inline(always)]
    fn of(header: &Ipv4) -> [Self; 2] {
        [header.source, header.destination].map(Self::from_octets)
    }

    #[inline(always)]
    fn datagram_len(header: &Ipv4) -> usize {
        usize::from(u16::from_be_bytes(header.total_len))
    }

    #[inline(always)]
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])> {
        relay.ipv4().map(|(octets, port)| (Self::from_octets(octets), port))
    }

    #[inline(always)]
    fn relay(class: &Class, slot: usize) -> u8 {
        class.relay_ipv4(slot)
    }

    #[inline(always)]
    fn host(self) -> Host {
        let [a, b, c, d] = self.octets();
        Host(u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, a, b, c, d]))
    }

    #[inline(always)]
    fn padded(self) -> [u8; 16] {
        let [a, b, c, d] = self.octets();
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn delta(self, new: Self) -> Delta {
        Delta::of(self.0, new.0)
    }

    #[inline(always)]
    fn sum(self) -> Delta {
        Delta::ZERO.plus(self.0)
    }

    #[inline(always)]
    fn spread(self) -> u32 {
        self.0
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.octets()))
    }
}

impl V6 {
    /// Four words as they lie in memory.
    #[inline(always)]
    pub const fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        Self([pair(a, b), pair(c, d)])
    }

    #[inline(always)]
    const fn quarters(self) -> [u32; 4] {
        let [high, low] = self.0;
        [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]
    }
}

/// Eight bytes in memory of two times four.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    first as u64 | (second as u64) << 32
}

impl Address for V6 {
    type Octets = [u8; 16];
    type Header = Ipv6;
    type Prefix = PrefixV6;
    const FAMILY: u8 = 6;
    const BITS: u8 = 128;
    const ZERO: Self = Self([0; 2]);
    const OFFSET: usize = 8;
    const HEADER_CHECKSUM: Option<usize> = None;

    #[inline(always)]
    #[expect(clippy::many_single_char_names, reason = "sixteen bytes in their order")]
    fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    #[inline(always)]
    #[expect(clippy::many_single_char_names, reason = "sixteen bytes in their order")]
    fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    fn prefix(self, len: u8) -> PrefixV6 {
        let (bits, mark) = (self.0.map(u64::from_be), 1 << 63 >> (len % 64));
        if len < 64 { PrefixV6::short(bits, mark) } else { PrefixV6::long(bits, mark) }
    }

    fn of_prefix(prefix: PrefixV6) -> (Self, u8) {
        let (bits, len) = prefix.parts();
        (Self(bits.map(u64::to_be)), len)
    }

    #[inline(always)]
    fn longest_match<R>(self, lengths: &Lengths, look_up: impl Fn(&PrefixV6) -> Option<R>) -> Option<R> {
        longest_v6(self.0.map(u64::from_be), lengths.v6, look_up)
    }

    #[inline(always)]
    fn of(header: &Ipv6) -> [Self; 2] {
        [header.source, header.destination].map(Self::from_octets)
    }

    #[inline(always)]
    fn datagram_len(header: &Ipv6) -> usize {
        size_of::<Ipv6>() + usize::from(u16::from_be_bytes(header.payload_len))
    }

    #[inline(always)]
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])> {
        relay.ipv6().map(|(octets, port)| (Self::from_octets(octets), port))
    }

    #[inline(always)]
    fn relay(class: &Class, slot: usize) -> u8 {
        class.relay_ipv6(slot)
    }

    #[inline(always)]
    fn host(self) -> Host {
        Host(self.0[0])
    }

    #[inline(always)]
    fn padded(self) -> [u8; 16] {
        self.octets()
    }

    #[inline(always)]
    fn delta(self, new: Self) -> Delta {
        let (old, new) = (self.quarters(), new.quarters());
        Delta::of(old[0], new[0])
            .and(Delta::of(old[1], new[1]))
            .and(Delta::of(old[2], new[2]))
            .and(Delta::of(old[3], new[3]))
    }

    #[inline(always)]
    fn sum(self) -> Delta {
        let [a, b, c, d] = self.quarters();
        Delta::ZERO.plus(a).plus(b).plus(c).plus(d)
    }

    #[inline(always)]
    fn spread(self) -> u32 {
        let [a, b, c, d] = self.quarters();
        a ^ b ^ c ^ d
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.octets()))
    }
}

impl From<Ipv4Addr> for V4 {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_octets(address.octets())
    }
}

impl From<Ipv6Addr> for V6 {
    fn from(address: Ipv6Addr) -> Self {
        Self::from_octets(address.octets())
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: a transparent integer.
    unsafe impl aya::Pod for super::V4 {}
    // SAFETY: transparent integers.
    unsafe impl aya::Pod for super::V6 {}
    // SAFETY: a transparent integer.
    unsafe impl aya::Pod for super::Host {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_survive() {
        let v4 = Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!((V4::from(v4).octets(), V4::from(v4).to_ip()), (v4.octets(), v4.into()));
        let v6: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        assert_eq!((V6::from(v6).octets(), V6::from(v6).to_ip()), (v6.octets(), v6.into()));
        assert_eq!(V4::from(v4).padded()[..4], v4.octets());
    }

    #[test]
    fn a_subscriber_is_an_address_or_a_64() {
        let host = |text: &str| Host::from(text.parse::<IpAddr>().unwrap());
        for (address, first) in [("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")] {
            assert_eq!(host(address).to_ip(), first.parse::<IpAddr>().unwrap());
        }
        assert_eq!(host("fd00::1"), host("fd00::2"));
        assert_ne!(host("2001:db8:ffff:ffff::1"), host("32.1.13.184"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
    }
}
