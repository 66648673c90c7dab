//! The two address families, as far as the data plane tells them apart.

use core::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{checksum::Delta, policy::Relay, wire::Wire};

/// An IPv4 address in network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address in network byte order.
pub type V6 = [u8; 16];

/// What parsing, tables and editing need to know of an address family.
pub trait Address: Wire + Debug + Default + Eq + Ord {
    /// Offset of the source address in the IP header, in bytes; the destination follows it.
    const OFFSET: usize;
    /// Offset of the header's own checksum, in bytes, where the family has one.
    const HEADER_CHECKSUM: Option<usize>;

    /// The relay's endpoint in this family.
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])>;

    /// What replacing `self` by `new` does to a checksum that covers it.
    fn delta(&self, new: &Self) -> Delta;

    /// A few bits that differ between addresses, for spreading; not a hash to rely on.
    fn spread(&self) -> u32;

    fn to_ip(self) -> IpAddr;
}

impl Address for V4 {
    const OFFSET: usize = 12;
    const HEADER_CHECKSUM: Option<usize> = Some(10);

    #[inline(always)]
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])> {
        relay.ipv4()
    }

    #[inline(always)]
    fn delta(&self, new: &Self) -> Delta {
        Delta::of(*self, *new)
    }

    #[inline(always)]
    fn spread(&self) -> u32 {
        u32::from_be_bytes(*self)
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self))
    }
}

/// Four of the sixteen bytes.
#[inline(always)]
const fn quarter(address: &V6, index: usize) -> [u8; 4] {
    let at = index * 4;
    [address[at], address[at + 1], address[at + 2], address[at + 3]]
}

impl Address for V6 {
    const OFFSET: usize = 8;
    const HEADER_CHECKSUM: Option<usize> = None;

    #[inline(always)]
    fn endpoint(relay: &Relay) -> Option<(Self, [u8; 2])> {
        relay.ipv6()
    }

    #[inline(always)]
    fn delta(&self, new: &Self) -> Delta {
        Delta::of(quarter(self, 0), quarter(new, 0))
            .and(Delta::of(quarter(self, 1), quarter(new, 1)))
            .and(Delta::of(quarter(self, 2), quarter(new, 2)))
            .and(Delta::of(quarter(self, 3), quarter(new, 3)))
    }

    #[inline(always)]
    fn spread(&self) -> u32 {
        u32::from_be_bytes(quarter(self, 0))
            ^ u32::from_be_bytes(quarter(self, 1))
            ^ u32::from_be_bytes(quarter(self, 2))
            ^ u32::from_be_bytes(quarter(self, 3))
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self))
    }
}
