//! What the operator decides, in the shape the maps hold it: subscriber -> class -> relay.
//!
//! Numbers below [`crate::maps::CLASSES_MAX`] and [`crate::maps::RELAYS_MAX`] name classes and relays; 0 names none. Fields are integers
//! because a map may hold any bytes: the getters turn them into enums and read an unknown number as the harmless choice, pass.

use core::net::{SocketAddrV4, SocketAddrV6};

/// Who a source address is: the value of the subscriber maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subscriber {
    class: u16,
    prefix_len: u8,
    _pad: u8,
}

impl Subscriber {
    /// `prefix_len` is the length in bits of the prefix that this value belongs to; a longest-prefix match does not tell it.
    pub const fn new(class: u16, prefix_len: u8) -> Self {
        Self { class, prefix_len, _pad: 0 }
    }

    pub const fn class(self) -> u16 {
        self.class
    }

    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }
}

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

/// A class: the value of the class map, indexed by the class's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    present: u8,
    action: u8,
    on_relay_down: u8,
    _pad: u8,
    relay: u16,
    _pad2: u16,
}

impl Class {
    /// `relay` is the number of the relay that a redirected flow goes to; 0 where the action needs none.
    pub const fn new(action: Action, on_relay_down: Fallback, relay: u16) -> Self {
        Self { present: 1, action: action as u8, on_relay_down: on_relay_down as u8, _pad: 0, relay, _pad2: 0 }
    }

    /// Whether the slot holds a class; the class map is an array, so a slot that was never written reads as zeros.
    pub const fn is_present(self) -> bool {
        self.present != 0
    }

    pub const fn action(self) -> Action {
        match self.action {
            1 => Action::Block,
            2 => Action::Redirect,
            3 => Action::Reject,
            _ => Action::Pass,
        }
    }

    pub const fn on_relay_down(self) -> Fallback {
        match self.on_relay_down {
            1 => Fallback::Block,
            2 => Fallback::Reject,
            _ => Fallback::Pass,
        }
    }

    pub const fn relay(self) -> u16 {
        self.relay
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
    own: u8,
    _pad: [u8; 3],
}

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

    /// The same, known to be served by this host: what is forwarded is not its answer, whatever it says.
    #[must_use]
    pub const fn own(self) -> Self {
        Self { own: 1, ..self }
    }

    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.own != 0
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
}

impl Settings {
    pub const fn new(revision: u64, clock_s: u32) -> Self {
        Self { revision, clock_s, zero: 0 }
    }

    #[inline(always)]
    pub const fn zero(&self) -> u32 {
        self.zero
    }
}

const _: () = assert!(size_of::<Subscriber>() == 4 && size_of::<Class>() == 8);
const _: () = assert!(size_of::<Relay>() == 28 && align_of::<Relay>() == 1 && size_of::<Settings>() == 16);

#[cfg(feature = "user")]
mod pod {
    use super::{Class, Relay, Settings, Subscriber};

    // SAFETY: repr(C) integers and byte arrays only, sizes asserted above to leave no hidden padding, every bit pattern valid.
    unsafe impl aya::Pod for Subscriber {}
    // SAFETY: as for Subscriber.
    unsafe impl aya::Pod for Class {}
    // SAFETY: as for Subscriber.
    unsafe impl aya::Pod for Relay {}
    // SAFETY: as for Subscriber.
    unsafe impl aya::Pod for Settings {}
}
