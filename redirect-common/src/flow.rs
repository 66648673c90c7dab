//! A redirected flow: two entries, one for each direction, each naming the tuple that its packets leave with.
//!
//! ```text
//! key                                       entry.to
//! client:40000 -> server:25                 client:40000 -> relay:2525       Direction::Forward
//! relay:2525   -> client:40000              server:25    -> client:40000     Direction::Reply
//! ```
//!
//! So the key of the other entry is always `entry.to.reversed()`: the pair verifies itself.
//!
//! # Life
//!
//! ```text
//!            SYN             SYN-ACK of the relay        ACK of ISN + 1
//!   (none) ------> half-open ------------------> half-open ----------> established --FIN/RST of the client--> closing
//!                     |  ^ evicted by newer ones                          |                                      |
//!                     |  |                                                | idle 7440 s          idle 240 s / 10 s
//!                     +--+                                                +-----------> (none) <-----------------+
//! ```
//!
//! Half-open flows live in a table of their own that recycles its oldest entries. Only a client that has seen the relay's initial sequence
//! number gets into the established table, so a flood of forged SYNs can neither evict nor refuse an established flow.

use crate::address::{Address, V4, V6};

/// Idle time after which an established flow is collected, in seconds: 2 h 4 min (RFC 5382 REQ-5).
pub const ESTABLISHED_IDLE_S: u32 = 7440;
/// Idle time for half-open and half-closed flows, in seconds: 4 min (RFC 5382 REQ-5).
pub const TRANSITORY_IDLE_S: u32 = 240;
/// Idle time after a reset by the client or a close by both sides, in seconds: late retransmissions still find their flow.
pub const CLOSED_IDLE_S: u32 = 10;

/// Addresses and ports of a segment, source first, as they lie in the headers.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple<A> {
    pub addresses: [A; 2],
    pub ports: [[u8; 2]; 2],
    _pad: [u8; 4],
}

impl<A: Address> Tuple<A> {
    #[inline(always)]
    pub const fn new(addresses: [A; 2], ports: [[u8; 2]; 2]) -> Self {
        Self { addresses, ports, _pad: [0; 4] }
    }

    /// The tuple of the answers.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self::new([self.addresses[1], self.addresses[0]], [self.ports[1], self.ports[0]])
    }

    /// Both ports as they lie in memory.
    #[inline(always)]
    pub fn ports_word(&self) -> u32 {
        let [[a, b], [c, d]] = self.ports;
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// Which way the packets of an entry go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the subscriber toward the relay.
    Forward = 0,
    /// From the relay back to the subscriber.
    Reply = 1,
}

/// TCP control bits (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    /// The first segment of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::FIN | Self::RST) == Self::SYN
    }

    /// The answer to it.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::FIN | Self::RST) == Self::SYN | Self::ACK
    }

    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }

    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }
}

/// Beside the direction of a reply's entry: the relay is this host's own.
const OWN: u8 = 0x80;

/// An entry of a flow table. Packets update it in place; each direction writes its own entry only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    /// The tuple that the packets of this entry leave with.
    pub to: Tuple<A>,
    /// When the SYN came, in seconds of [`crate::policy::Settings::clock_s`].
    pub created_s: u32,
    /// When the last packet came, likewise.
    pub seen_s: u32,
    /// Initial sequence number of the relay, in the reply's entry once the SYN-ACK was seen.
    pub isn: u32,
    /// Number of the class that decided.
    pub class: u16,
    /// [`Direction`], and [`OWN`].
    direction: u8,
    /// Which of SYN (with ACK), FIN and RST the sender of this direction has sent, as TCP control bits.
    sent: u8,
}

const _: () = assert!(size_of::<Tuple<V4>>() == 16 && size_of::<Tuple<V6>>() == 40);
const _: () = assert!(size_of::<Flow<V4>>() == 32 && size_of::<Flow<V6>>() == 56);

impl<A: Address> Flow<A> {
    #[inline(always)]
    pub fn new(direction: Direction, to: Tuple<A>, class: u16, now_s: u32) -> Self {
        Self { to, created_s: now_s, seen_s: now_s, isn: 0, class, direction: direction as u8, sent: 0 }
    }

    /// The same, of a relay that is this host's own where `own` says so.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, own: bool) -> Self {
        Self { direction: if own { self.direction | OWN } else { self.direction }, ..self }
    }

    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.direction & OWN != 0
    }

    /// Whether this entry is for packets of `tuple` going in `direction`.
    ///
    /// A map may give the memory of a removed entry to another flow while a packet still holds it, so the subscriber's address, which no
    /// rewriting changes, is compared as well.
    #[inline(always)]
    pub fn serves(&self, direction: Direction, tuple: &Tuple<A>) -> bool {
        self.direction & !OWN == direction as u8
            && match direction {
                Direction::Forward => self.to.addresses[0] == tuple.addresses[0],
                Direction::Reply => self.to.addresses[1] == tuple.addresses[1],
            }
    }

    /// Takes note of a segment. Writes only what changes: an unchanged cache line stays shared between CPUs.
    #[inline(always)]
    pub fn note(&mut self, flags: Flags, now_s: u32) {
        if self.seen_s != now_s {
            self.seen_s = now_s;
        }
        if flags.0 & (Flags::FIN | Flags::RST) != 0 {
            self.sent |= flags.0 & (Flags::FIN | Flags::RST);
        }
    }

    /// Takes note of the relay's SYN-ACK.
    #[inline(always)]
    pub fn note_answer(&mut self, isn: u32) {
        self.isn = isn;
        self.sent = Flags::SYN;
    }

    /// Whether `acknowledgment` shows that its sender has received the SYN-ACK noted here.
    #[inline(always)]
    pub const fn answer_seen_by(&self, acknowledgment: u32) -> bool {
        self.sent & Flags::SYN != 0 && acknowledgment == self.isn.wrapping_add(1)
    }

    /// The sender of this direction has said goodbye; a SYN on the same tuple is a new connection.
    #[inline(always)]
    pub const fn has_closed(&self) -> bool {
        self.sent & (Flags::FIN | Flags::RST) != 0
    }

    const fn has_reset(&self) -> bool {
        self.sent & Flags::RST != 0
    }
}

/// What people see of a flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    HalfOpen,
    Established,
    /// One side has closed.
    Closing,
    /// The client has reset, or both sides have closed.
    Closed,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half_open",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    /// Seconds of silence after which the flow is collected.
    pub const fn idle_max_s(self) -> u32 {
        match self {
            Self::Established => ESTABLISHED_IDLE_S,
            Self::HalfOpen | Self::Closing => TRANSITORY_IDLE_S,
            Self::Closed => CLOSED_IDLE_S,
        }
    }
}

/// The state of a flow in the established table, from its two entries.
///
/// A close by the relay alone changes nothing: the subscriber may go on sending, and its FIN will follow (RFC 5382 section 5 leaves the
/// mapping to the inside). A reset by the relay is transitory: the client's stack answers a reset with silence, and the segment came from
/// the operator's own relay, not from an off-path stranger.
pub const fn state<A: Address>(forward: &Flow<A>, reply: &Flow<A>) -> State {
    match (forward.has_reset(), forward.has_closed(), reply.has_reset(), reply.has_closed()) {
        (true, ..) | (_, true, _, true) => State::Closed,
        (_, true, ..) | (_, _, true, _) => State::Closing,
        _ => State::Established,
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{Flow, Tuple};
    use crate::address::{V4, V6};

    // SAFETY: repr(C) byte arrays with explicit padding, size asserted above, every bit pattern valid.
    unsafe impl aya::Pod for Tuple<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tuple<V6> {}
    // SAFETY: repr(C) byte arrays and integers, size asserted above to leave no padding, every bit pattern valid.
    unsafe impl aya::Pod for Flow<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow<V6> {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(forward: u8, reply: u8) -> State {
        let entry = |direction, flags| {
            let mut flow = Flow::<V4>::new(direction, Tuple::default(), 1, 0);
            flow.note(Flags(flags), 1);
            flow
        };
        state(&entry(Direction::Forward, forward), &entry(Direction::Reply, reply))
    }

    #[test]
    fn states_follow_what_each_side_has_sent() {
        let (none, fin, rst) = (Flags::ACK, Flags::FIN | Flags::ACK, Flags::RST);
        for (forward, reply, expected) in [
            (none, none, State::Established),
            (none, fin, State::Established),
            (none, rst, State::Closing),
            (fin, none, State::Closing),
            (fin, fin, State::Closed),
            (fin, rst, State::Closed),
            (rst, none, State::Closed),
            (rst, fin, State::Closed),
        ] {
            assert_eq!(after(forward, reply), expected, "client sent {forward:#x}, relay sent {reply:#x}");
        }
    }

    #[test]
    fn only_the_acknowledgment_of_the_relays_number_proves_the_handshake() {
        let mut reply = Flow::<V4>::new(Direction::Reply, Tuple::default(), 1, 0);
        assert!(!reply.answer_seen_by(1), "no SYN-ACK yet");
        reply.note_answer(u32::MAX);
        assert!(reply.answer_seen_by(0), "sequence numbers wrap");
        assert!(!reply.answer_seen_by(1) && !reply.answer_seen_by(u32::MAX));
    }

    #[test]
    fn flags_that_no_handshake_has_open_nothing() {
        for (flags, opens) in [
            (Flags::SYN, true),
            (0xc2, true),
            (Flags::SYN | Flags::ACK, false),
            (Flags::SYN | Flags::FIN, false),
            (0x06, false),
            (0, false),
        ] {
            assert_eq!(Flags(flags).opens(), opens, "{flags:#x}");
        }
    }
}
