//! Names, capacities and cost of the maps, and the number of their layout.
//!
//! | map | kind | key -> value | default entries | memory |
//! |---|---|---|---|---|
//! | `HOSTS_V4`, `HOSTS_V6` | array of [buckets](crate::bucket) | address -> [`Subscriber`](crate::subscriber::Subscriber) | 65,536 | 18.3 and 42.7 B an entry |
//! | `PREFIXES_V4`, `PREFIXES_V6` | array of buckets | [prefix](crate::subscriber::PrefixV4) -> Subscriber | 65,536 | 18.3 and 42.7 B an entry |
//! | `CLASSES`, `RELAYS` | array | number -> [`Class`](crate::policy::Class), [`Relay`](crate::policy::Relay) | 64 | 8 KiB together |
//! | `HALF_OPEN_V4`, `HALF_OPEN_V6` | LRU hash | tuple -> [`Flow`](crate::flow::Flow) | 65,536 (two a flow) | 112 and 160 B an entry |
//! | `FLOWS_V4`, `FLOWS_V6` | hash | tuple -> Flow | 131,072 (two a flow) | 112 and 160 B an entry |
//! | `FRAGMENTS_V4`, `FRAGMENTS_V6` | LRU hash | datagram -> [`Fate`](crate::fragment::Fate) | 4,096 | 96 and 144 B an entry |
//! | `RATES` | LRU hash | [`Host`](crate::address::Host) -> [`Rate`](crate::limit::Rate) | 65,536 | 88 B an entry |
//! | `OPEN`, `REAPED` | hash | Host -> connections | 65,536 | 80 B an entry, allocated on use |
//! | `LOCKS` | LRU hash | Host -> seconds since boot | 16,384 | 80 B an entry |
//! | `SOCKETS` | socket map | relay and family -> listening socket | 128 | 1 KiB |
//! | `RELAY_PORTS` | array | port / 64 -> 64 bits | 1,024 | 8 KiB |
//! | `SETTINGS` | array | 0 -> [`Settings`](crate::policy::Settings) | 1 | |
//! | `RESETS` | per-CPU array | 0 -> [`Resets`] | 1 | 8 B a CPU |
//! | `EVENTS` | ring buffer | [`Event`](crate::event::Event) | 256 KiB | |
//! | `EVENT_BUDGET` | per-CPU array | 0 -> [`Budget`] | 1 | 16 B a CPU |
//! | `INTERFACES` | array | ifindex modulo 1,024 -> [`Interface`] | 1,024 | 8 KiB |
//! | `COUNTERS` | per-CPU array | class x reason -> [`Count`]; class 0 stays empty | 4,096 | 64 KiB a CPU |
//! | `INTERFACE_COUNTERS` | per-CPU array | interface x reason -> Count | 2,048 | 32 KiB a CPU |
//!
//! An entry of a hash costs the element header of 48 B, key and value rounded up to 8 B each, and a bucket of 16 B.

use crate::reason::Reason;

/// Changes whenever a key, a value or the meaning of one does. User space refuses to reuse maps of another layout.
pub const LAYOUT: u32 = 4;

/// Slots for classes; slot 0 stands for "no class".
pub const CLASSES_MAX: u32 = 64;
/// Slots for relays; slot 0 stands for "no relay". A pool names them in a byte.
pub const RELAYS_MAX: u32 = 64;
/// Subscribers that each subscriber map has room for, where the daemon's configuration does not say otherwise.
pub const SUBSCRIBERS_MAX: u32 = 65_536;
/// Established flows of each family, where the daemon's configuration does not say otherwise.
pub const FLOWS_MAX: u32 = 65_536;
/// Half-open flows of each family. A SYN flood recycles these and no others.
pub const HALF_OPEN_MAX: u32 = 32_768;
/// Entries that a flow takes: one for each direction.
pub const ENTRIES_PER_FLOW: u32 = 2;
/// One bit for each TCP port.
pub const RELAY_PORT_WORDS: u32 = 65_536 / 64;
/// Datagrams in fragments that are remembered, of each family.
pub const FRAGMENTS_MAX: u32 = 4_096;
/// Subscribers whose pace is remembered; the one unheard for longest is forgotten first.
pub const RATES_MAX: u32 = 65_536;
/// Subscribers whose open connections are counted. Beyond them the limit of open connections is not enforced.
pub const OPEN_MAX: u32 = 65_536;
/// Locked subscribers; the lock unused for longest goes first.
pub const LOCKS_MAX: u32 = 16_384;
/// Bytes of the ring buffer of events; a power of two and of pages.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Reasons have this many places, so that an index is a shift.
pub const REASONS_MAX: u32 = 64;
/// One counter for each class and reason.
pub const COUNTERS_MAX: u32 = CLASSES_MAX * REASONS_MAX;
/// Places for interfaces; place 0 is for those that have none of their own.
pub const INTERFACES_MAX: u32 = 32;
/// Entries that lead from an interface's index to its place.
pub const INTERFACE_INDICES: u32 = 1_024;
/// One counter for each interface and reason.
pub const INTERFACE_COUNTERS_MAX: u32 = INTERFACES_MAX * REASONS_MAX;

const _: () = assert!(Reason::COUNT <= REASONS_MAX as usize);

/// A counter's index. Classes beyond the table count as "no class".
#[inline(always)]
pub const fn counter_index(class: u16, reason: Reason) -> u32 {
    let class = if (class as u32) < CLASSES_MAX { class as u32 } else { 0 };
    class * REASONS_MAX + reason as u32
}

/// The index of an interface's counter; `slot` counts modulo [`INTERFACES_MAX`].
#[inline(always)]
pub const fn interface_counter_index(slot: u32, reason: Reason) -> u32 {
    slot % INTERFACES_MAX * REASONS_MAX + reason as u32
}

/// The index of a relay's listening socket.
#[inline(always)]
pub const fn socket_index(relay: u8, family: u8) -> u32 {
    relay as u32 * 2 + (family == 6) as u32
}

/// The mark of a packet that the program [`names::EXPLAIN`] is to take as XDP does.
pub const TAKEN_BY_XDP: u32 = 1;

/// Which place an interface has: the value of `INTERFACES`. Of two interfaces whose indices are equal modulo 1,024, one gets place 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub ifindex: u32,
    pub slot: u32,
}

/// Events that one CPU has reported in the current second, and those that it has not: the value of `EVENT_BUDGET`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    pub second_s: u32,
    pub reported: u32,
    /// Since the start: over the budget, or the ring buffer was full.
    pub lost: u64,
}

/// Packets, and bytes of whole frames, that left by one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Resets that one CPU sends within a second: a bound for a flood that forges its sources, far above what subscribers cause.
pub const RESETS_PER_SECOND_MAX: u32 = 1_000_000;

/// Resets sent in the current second: the value of `RESETS`, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    pub second_s: u32,
    pub sent: u32,
}

/// Names as they stand in the BPF object.
pub mod names {
    pub const HOSTS_V4: &str = "HOSTS_V4";
    pub const HOSTS_V6: &str = "HOSTS_V6";
    pub const PREFIXES_V4: &str = "PREFIXES_V4";
    pub const PREFIXES_V6: &str = "PREFIXES_V6";
    pub const CLASSES: &str = "CLASSES";
    pub const RELAYS: &str = "RELAYS";
    pub const HALF_OPEN_V4: &str = "HALF_OPEN_V4";
    pub const HALF_OPEN_V6: &str = "HALF_OPEN_V6";
    pub const FLOWS_V4: &str = "FLOWS_V4";
    pub const FLOWS_V6: &str = "FLOWS_V6";
    pub const RELAY_PORTS: &str = "RELAY_PORTS";
    pub const SETTINGS: &str = "SETTINGS";
    pub const RESETS: &str = "RESETS";
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    pub const RATES: &str = "RATES";
    pub const OPEN: &str = "OPEN";
    pub const REAPED: &str = "REAPED";
    pub const LOCKS: &str = "LOCKS";
    pub const SOCKETS: &str = "SOCKETS";
    pub const EVENTS: &str = "EVENTS";
    pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
    pub const INTERFACES: &str = "INTERFACES";
    pub const COUNTERS: &str = "COUNTERS";
    pub const INTERFACE_COUNTERS: &str = "INTERFACE_COUNTERS";
    /// Variables.
    pub const BUCKETS_V4: &str = "BUCKETS_V4";
    pub const BUCKETS_V6: &str = "BUCKETS_V6";
    /// Programs.
    pub const XDP_INGRESS: &str = "redirect_xdp";
    pub const TC_INGRESS: &str = "redirect_in";
    pub const TC_EGRESS: &str = "redirect_out";
    /// For devices whose frames begin with an IP header.
    pub const TC_INGRESS_IP: &str = "redirect_in_ip";
    pub const TC_EGRESS_IP: &str = "redirect_out_ip";
    /// Hands a steered connection to its relay's socket.
    pub const SOCKET_LOOKUP: &str = "redirect_socket";
    /// Tells what a packet would meet, and does nothing.
    pub const EXPLAIN: &str = "redirect_explain";
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: two u64, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Count {}
    // SAFETY: two u32, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Resets {}
    // SAFETY: two u32, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Interface {}
    // SAFETY: two u32 and a u64 in this order, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Budget {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_and_reason_has_a_counter_of_its_own() {
        let last = Reason::ALL[Reason::COUNT - 1];
        assert_eq!(counter_index(0, Reason::ALL[0]), 0);
        assert_eq!(counter_index(1, Reason::ALL[0]), REASONS_MAX);
        assert!(counter_index(u16::try_from(CLASSES_MAX).unwrap() - 1, last) < COUNTERS_MAX);
        assert_eq!(counter_index(u16::MAX, last), Reason::COUNT as u32 - 1);
    }
}
