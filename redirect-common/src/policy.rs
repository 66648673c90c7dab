//! What the operator decides, in the shape the maps hold it: [subscriber](crate::subscriber) -> class -> relay.
//!
//! Numbers below [`crate::maps::CLASSES_MAX`] and [`crate::maps::RELAYS_MAX`] name classes and relays; 0 names none. Fields are integers
//! because a map may hold any bytes: the getters turn them into enums and read an unknown number as the harmless choice, pass.

use core::net::{SocketAddrV4, SocketAddrV6};

use crate::subscriber::Lengths;

/// What is done with a subscriber's port-25 flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    Pass = 0,
    Block = 1,
    Redirect = 2,
    Reject = 3,
}

/// What is done with a flow that should be redirected and cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fallback {
    Pass = 0,
    Block = 1,
    Reject = 2,
}

/// What becomes of a live flow whose subscriber gets another class, or whose class gets another action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnClassChange {
    /// Its next segment is answered with a reset.
    Reset = 0,
    /// It goes on to its end.
    Keep = 1,
}

/// What is done with a flow that should be redirected while no daemon looks after the relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnDaemonDown {
    /// It is redirected by what the maps hold.
    Keep = 0,
    Pass = 1,
    Block = 2,
    Reject = 3,
}

/// Places in the pool of a class.
pub const POOL_SLOTS: usize = 32;

/// What one subscriber (an IPv4 address, an IPv6 /64) may do; 0 stands for "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// New connections per second.
    pub rate: u32,
    /// New connections at once, before the rate counts; at least 1 where there is a rate.
    pub burst: u32,
    /// Connections open at the same time.
    pub open_max: u32,
    /// SYNs refused within [`LOCK_WINDOW_S`](crate::limit::LOCK_WINDOW_S) after which the subscriber is locked.
    pub lock_after: u32,
    /// How long a lock lasts, in seconds.
    pub lock_s: u32,
}

/// A class: the value of the class map, indexed by the class's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    interval_ns: u64,
    tolerance_ns: u64,
    open_max: u32,
    lock_after: u32,
    lock_s: u32,
    present: u8,
    action: u8,
    on_relay_down: u8,
    on_class_change: u8,
    on_daemon_down: u8,
    _pad: [u8; 7],
    /// Numbers of relays, as often as their weights have it; 0 where none can take the flow.
    pool_ipv4: [u8; POOL_SLOTS],
    pool_ipv6: [u8; POOL_SLOTS],
}

impl Class {
    /// `relay` is the number of the relay that every redirected flow goes to; 0 where the action needs none.
    pub const fn new(action: Action, on_relay_down: Fallback, relay: u8) -> Self {
        Self {
            interval_ns: 0,
            tolerance_ns: 0,
            open_max: 0,
            lock_after: 0,
            lock_s: 0,
            present: 1,
            action: action as u8,
            on_relay_down: on_relay_down as u8,
            on_class_change: OnClassChange::Reset as u8,
            on_daemon_down: OnDaemonDown::Keep as u8,
            _pad: [0; 7],
            pool_ipv4: [relay; POOL_SLOTS],
            pool_ipv6: [relay; POOL_SLOTS],
        }
    }

    /// The same with a pool of relays for each family.
    #[must_use]
    pub const fn with_pools(self, pool_ipv4: [u8; POOL_SLOTS], pool_ipv6: [u8; POOL_SLOTS]) -> Self {
        Self { pool_ipv4, pool_ipv6, ..self }
    }

    #[must_use]
    pub const fn with_on_class_change(self, on_class_change: OnClassChange) -> Self {
        Self { on_class_change: on_class_change as u8, ..self }
    }

    #[must_use]
    pub const fn with_on_daemon_down(self, on_daemon_down: OnDaemonDown) -> Self {
        Self { on_daemon_down: on_daemon_down as u8, ..self }
    }

    #[must_use]
    pub const fn with_limits(self, limits: Limits) -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        let interval_ns = if limits.rate == 0 { 0 } else { SECOND_NS / limits.rate as u64 };
        Self {
            interval_ns,
            tolerance_ns: interval_ns * limits.burst.saturating_sub(1) as u64,
            open_max: limits.open_max,
            lock_after: limits.lock_after,
            lock_s: limits.lock_s,
            ..self
        }
    }

    /// Whether the slot holds a class; the class map is an array, so a slot that was never written reads as zeros.
    pub const fn is_present(&self) -> bool {
        self.present != 0
    }

    pub const fn action(&self) -> Action {
        match self.action {
            1 => Action::Block,
            2 => Action::Redirect,
            3 => Action::Reject,
            _ => Action::Pass,
        }
    }

    pub const fn on_relay_down(&self) -> Fallback {
        match self.on_relay_down {
            1 => Fallback::Block,
            2 => Fallback::Reject,
            _ => Fallback::Pass,
        }
    }

    pub const fn on_daemon_down(&self) -> OnDaemonDown {
        match self.on_daemon_down {
            1 => OnDaemonDown::Pass,
            2 => OnDaemonDown::Block,
            3 => OnDaemonDown::Reject,
            _ => OnDaemonDown::Keep,
        }
    }

    pub const fn on_class_change(&self) -> OnClassChange {
        match self.on_class_change {
            1 => OnClassChange::Keep,
            _ => OnClassChange::Reset,
        }
    }

    /// Whether a live flow that a class with the number `before` redirected may go on where this class, `number`, has the say.
    #[inline(always)]
    pub const fn lets_go_on(&self, number: u16, before: u16) -> bool {
        number == before && matches!(self.action(), Action::Redirect)
            || matches!(self.on_class_change(), OnClassChange::Keep)
    }

    pub const fn has_limits(&self) -> bool {
        self.interval_ns != 0 || self.open_max != 0
    }

    /// Nanoseconds from one new connection to the next; 0 where any number may come.
    pub const fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    /// How far ahead of that pace a subscriber may be, in nanoseconds.
    pub const fn tolerance_ns(&self) -> u64 {
        self.tolerance_ns
    }

    /// 0 where any number may be open.
    pub const fn open_max(&self) -> u32 {
        self.open_max
    }

    /// 0 where nobody is locked.
    pub const fn lock_after(&self) -> u32 {
        self.lock_after
    }

    pub const fn lock_s(&self) -> u32 {
        self.lock_s
    }

    /// The relay in a place of the pool of IPv4; `slot` counts modulo [`POOL_SLOTS`].
    #[inline(always)]
    pub const fn relay_ipv4(&self, slot: usize) -> u8 {
        self.pool_ipv4[slot % POOL_SLOTS]
    }

    /// As [`Class::relay_ipv4`].
    #[inline(always)]
    pub const fn relay_ipv6(&self, slot: usize) -> u8 {
        self.pool_ipv6[slot % POOL_SLOTS]
    }

    /// Every relay that the pools name, as often as they name it.
    pub fn relays(&self) -> impl Iterator<Item = u8> + '_ {
        self.pool_ipv4.iter().chain(&self.pool_ipv6).copied().filter(|relay| *relay != 0)
    }
}

/// A relay's endpoints: the value of the relay map, indexed by the relay's number. Port 0 means no endpoint in that family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    ipv4: [u8; 4],
    ipv6: [u8; 16],
    ipv4_port: [u8; 2],
    ipv6_port: [u8; 2],
    flags: u8,
    _pad: [u8; 3],
}

/// This host serves the relay: what is forwarded is not its answer, whatever it says.
const OWN: u8 = 1;
/// Its listening sockets stand in the socket map and take connections to foreign destinations.
const STEERED: u8 = 2;
/// Flows may not be rewritten toward it.
const UNREWRITTEN: u8 = 4;
/// The daemon itself serves it.
const EMBEDDED: u8 = 8;

impl Relay {
    pub fn new(ipv4: Option<SocketAddrV4>, ipv6: Option<SocketAddrV6>) -> Self {
        let mut relay = Self::default();
        if let Some(endpoint) = ipv4 {
            relay.ipv4 = endpoint.ip().octets();
            relay.ipv4_port = endpoint.port().to_be_bytes();
        }
        if let Some(endpoint) = ipv6 {
            relay.ipv6 = endpoint.ip().octets();
            relay.ipv6_port = endpoint.port().to_be_bytes();
        }
        relay
    }

    /// The same, known to be served by this host.
    #[must_use]
    pub const fn own(self) -> Self {
        Self { flags: self.flags | OWN, ..self }
    }

    /// The same, whose listening sockets stand in the socket map; `only` where its endpoint is none that a packet could be rewritten to.
    #[must_use]
    pub const fn steered(self, only: bool) -> Self {
        Self { flags: self.flags | STEERED | if only { UNREWRITTEN } else { 0 }, ..self }
    }

    /// The same, known to live no longer than the daemon.
    #[must_use]
    pub const fn embedded(self) -> Self {
        Self { flags: self.flags | EMBEDDED, ..self }
    }

    #[inline(always)]
    pub const fn is_embedded(&self) -> bool {
        self.flags & EMBEDDED != 0
    }

    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.flags & OWN != 0
    }

    #[inline(always)]
    pub const fn is_steered(&self) -> bool {
        self.flags & STEERED != 0
    }

    #[inline(always)]
    pub const fn is_rewritten(&self) -> bool {
        self.flags & UNREWRITTEN == 0
    }

    /// Address and port in network byte order, where the relay has an IPv4 endpoint.
    #[inline(always)]
    pub fn ipv4(&self) -> Option<([u8; 4], [u8; 2])> {
        (self.ipv4_port != [0; 2]).then_some((self.ipv4, self.ipv4_port))
    }

    /// Address and port in network byte order, where the relay has an IPv6 endpoint.
    #[inline(always)]
    pub fn ipv6(&self) -> Option<([u8; 16], [u8; 2])> {
        (self.ipv6_port != [0; 2]).then_some((self.ipv6, self.ipv6_port))
    }
}

/// The one entry of the settings map, written by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Revision of the configuration that the maps hold.
    pub revision: u64,
    /// Coarse clock, seconds since boot. The daemon advances it once a second, so the packet path reads the time without a clock call.
    pub clock_s: u32,
    /// Always 0: see [`Tables::zero`](crate::tables::Tables::zero).
    zero: u32,
    /// What a steered packet's mark gets, within `mark_mask`; 0 while nothing is to be steered.
    pub mark: u32,
    /// The bits of a packet's mark that are ours.
    pub mark_mask: u32,
    /// Events that each CPU reports within a second.
    pub events_per_second: u32,
    /// When the clock went on after it had stood still: no flow counts as idle for longer. 0 where it never did.
    pub resumed_s: u32,
    /// The daemon counts as down when the clock has stood still for longer; 0 where it never does.
    pub daemon_timeout_s: u32,
    /// Which column of a [`Subscriber`](crate::subscriber::Subscriber) counts.
    pub column: u32,
    /// Of the prefixes that are subscribers.
    pub lengths: Lengths,
}

impl Settings {
    #[inline(always)]
    pub const fn zero(&self) -> u32 {
        self.zero
    }

    /// Whether the daemon is down at `now_ns`, in nanoseconds since boot.
    #[inline(always)]
    pub const fn is_daemon_down(&self, now_ns: u64) -> bool {
        const SECOND_NS: u64 = 1_000_000_000;
        self.daemon_timeout_s != 0 && now_ns / SECOND_NS > self.clock_s as u64 + self.daemon_timeout_s as u64
    }

    /// Tells states of the policy apart: the low half of the revision.
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        self.revision as u32
    }
}

const _: () = assert!(size_of::<Class>() == 104);
const _: () = assert!(size_of::<Relay>() == 28 && align_of::<Relay>() == 1 && size_of::<Settings>() == 64);

#[cfg(feature = "user")]
mod pod {
    use super::{Class, Relay, Settings};

    // SAFETY: repr(C) integers and byte arrays only, sizes asserted above to leave no hidden padding, every bit pattern valid.
    unsafe impl aya::Pod for Class {}
    // SAFETY: as for Class.
    unsafe impl aya::Pod for Relay {}
    // SAFETY: as for Class.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_down_after_its_time() {
        let settings = Settings { clock_s: 100, daemon_timeout_s: 30, ..Settings::default() };
        let at = |now_s: u64| settings.is_daemon_down(now_s * 1_000_000_000 + 999_999_999);
        assert_eq!([0, 100, 130, 131, u64::MAX >> 31].map(at), [false, false, false, true, true]);
        assert!(!Settings { daemon_timeout_s: 0, ..settings }.is_daemon_down(u64::MAX));
    }
}
