//! Names, capacities and cost of the maps, and the number of their layout.
//!
//! | map | kind | key -> value | default entries | memory |
//! |---|---|---|---|---|
//! | `HOSTS_V4`, `HOSTS_V6` | hash | address -> [`Subscriber`](crate::policy::Subscriber) | 65,536 | 80 and 88 B an entry |
//! | `PREFIXES_V4`, `PREFIXES_V6` | LPM trie | prefix -> Subscriber | 65,536 | up to 144 B an entry, inner nodes included; allocated on use |
//! | `CLASSES`, `RELAYS` | array | number -> [`Class`](crate::policy::Class), [`Relay`](crate::policy::Relay) | 64 | 2 KiB together |
//! | `HALF_OPEN_V4`, `HALF_OPEN_V6` | LRU hash | tuple -> [`Flow`](crate::flow::Flow) | 65,536 (two a flow) | 112 and 160 B an entry |
//! | `FLOWS_V4`, `FLOWS_V6` | hash | tuple -> Flow | 131,072 (two a flow) | 112 and 160 B an entry |
//! | `RELAY_PORTS` | array | port / 64 -> 64 bits | 1,024 | 8 KiB |
//! | `SETTINGS` | array | 0 -> [`Settings`](crate::policy::Settings) | 1 | |
//! | `RESETS` | per-CPU array | 0 -> [`Resets`] | 1 | 8 B a CPU |
//! | `COUNTERS` | per-CPU array | class x reason -> [`Count`] | 2,048 | 32 KiB a CPU |
//!
//! An entry of a hash costs the element header of 48 B, key and value rounded up to 8 B each, and a bucket of 16 B.

use crate::reason::Reason;

/// Changes whenever a key, a value or the meaning of one does. User space refuses to reuse maps of another layout.
pub const LAYOUT: u32 = 1;

/// Slots for classes; slot 0 stands for "no class".
pub const CLASSES_MAX: u32 = 64;
/// Slots for relays; slot 0 stands for "no relay".
pub const RELAYS_MAX: u32 = 64;
/// Entries of each subscriber map, where the daemon's configuration does not say otherwise.
pub const SUBSCRIBERS_MAX: u32 = 65_536;
/// Established flows of each family, where the daemon's configuration does not say otherwise.
pub const FLOWS_MAX: u32 = 65_536;
/// Half-open flows of each family. A SYN flood recycles these and no others.
pub const HALF_OPEN_MAX: u32 = 32_768;
/// Entries that a flow takes: one for each direction.
pub const ENTRIES_PER_FLOW: u32 = 2;
/// One bit for each TCP port.
pub const RELAY_PORT_WORDS: u32 = 65_536 / 64;
/// One counter for each class and reason.
pub const COUNTERS_MAX: u32 = CLASSES_MAX * Reason::COUNT as u32;

/// A counter's index. Classes beyond the table count as "no class".
#[inline(always)]
pub const fn counter_index(class: u16, reason: Reason) -> u32 {
    let class = if (class as u32) < CLASSES_MAX { class as u32 } else { 0 };
    class * Reason::COUNT as u32 + reason as u32
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
    pub const COUNTERS: &str = "COUNTERS";
    /// Programs.
    pub const XDP_INGRESS: &str = "redirect_xdp";
    pub const TC_INGRESS: &str = "redirect_in";
    pub const TC_EGRESS: &str = "redirect_out";
    /// For devices whose frames begin with an IP header.
    pub const TC_INGRESS_IP: &str = "redirect_in_ip";
    pub const TC_EGRESS_IP: &str = "redirect_out_ip";
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: two u64, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Count {}
    // SAFETY: two u32, no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Resets {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_and_reason_has_a_counter_of_its_own() {
        let last = Reason::ALL[Reason::COUNT - 1];
        assert_eq!(counter_index(0, Reason::ALL[0]), 0);
        assert_eq!(counter_index(1, Reason::ALL[0]), Reason::COUNT as u32);
        assert_eq!(counter_index(u16::try_from(CLASSES_MAX).unwrap() - 1, last), COUNTERS_MAX - 1);
        assert_eq!(counter_index(u16::MAX, last), Reason::COUNT as u32 - 1);
    }
}
