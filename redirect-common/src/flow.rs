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
//! A flow that is steered is not rewritten, and the kernel's own TCP table knows the rest: it has a forward entry only, whose `to` is its key.
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
//! A steered flow is established once the kernel has a connected socket for it. Whenever the policy has changed, the next segment of an
//! established flow is judged anew: the flow goes on, or it is doomed. A doomed flow answers its client with resets until the client is
//! silent or opens a new one; only the client's own resets still reach the relay.
//!
//! Half-open flows live in a table of their own that recycles its oldest entries. Only a client that has seen the relay's initial sequence
//! number gets into the established table, so a flood of forged SYNs can neither evict nor refuse an established flow. While that table is full,
//! the class says what becomes of a client that would get in: it is refused, or goes on half-open and gets in with a later segment.

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

    /// The sender has no more to say.
    #[inline(always)]
    pub const fn ends(self) -> bool {
        self.0 & (Self::FIN | Self::RST) != 0
    }

    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }
}

/// Bits of an entry, beside its direction in the lowest.
const DIRECTION: u8 = 0x01;
/// Not rewritten: packets go to a socket of this host as they are.
const STEERED: u8 = 0x02;
/// Counts among the connections that its subscriber has open.
const COUNTED: u8 = 0x04;
/// Its class does not want it any more.
const DOOMED: u8 = 0x08;
/// In a reply's entry: the relay is this host's own.
const OWN: u8 = 0x10;
/// In the forward entry of a half-open flow: the client has the relay's answer, and only a place is missing.
const PROVEN: u8 = 0x20;

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
    /// In a reply's entry the initial sequence number of the relay, once its SYN-ACK was seen. In a forward entry the epoch of the policy that
    /// the flow was judged by; while a steered flow is half-open, the number of its relay.
    word: u32,
    /// Number of the class that decided.
    pub class: u16,
    bits: u8,
    /// Which of SYN (with ACK), FIN and RST the sender of this direction has sent, as TCP control bits.
    sent: u8,
}

const _: () = assert!(size_of::<Tuple<V4>>() == 16 && size_of::<Tuple<V6>>() == 40);
const _: () = assert!(size_of::<Flow<V4>>() == 32 && size_of::<Flow<V6>>() == 56);

impl<A: Address> Flow<A> {
    /// The forward entry of a rewritten flow, judged by the policy of `epoch`.
    #[inline(always)]
    pub const fn forward(to: Tuple<A>, class: u16, epoch: u32, now_s: u32) -> Self {
        let bits = Direction::Forward as u8;
        Self { to, created_s: now_s, seen_s: now_s, word: epoch, class, bits, sent: 0 }
    }

    /// The entry of its answers; `own` where the relay is this host's own.
    #[inline(always)]
    pub const fn reply(to: Tuple<A>, class: u16, own: bool, now_s: u32) -> Self {
        let bits = Direction::Reply as u8 | if own { OWN } else { 0 };
        Self { to, created_s: now_s, seen_s: now_s, word: 0, class, bits, sent: 0 }
    }

    /// The entry of a steered flow with the key `tuple`; `word` is the number of the relay while half-open, then the epoch.
    #[inline(always)]
    pub const fn steered(tuple: Tuple<A>, class: u16, word: u32, now_s: u32) -> Self {
        let bits = Direction::Forward as u8 | STEERED;
        Self { to: tuple, created_s: now_s, seen_s: now_s, word, class, bits, sent: 0 }
    }

    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        if self.bits & DIRECTION == Direction::Forward as u8 { Direction::Forward } else { Direction::Reply }
    }

    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.bits & OWN != 0
    }

    #[inline(always)]
    pub const fn is_steered(&self) -> bool {
        self.bits & STEERED != 0
    }

    #[inline(always)]
    pub const fn is_counted(&self) -> bool {
        self.bits & COUNTED != 0
    }

    #[inline(always)]
    pub const fn is_doomed(&self) -> bool {
        self.bits & DOOMED != 0
    }

    /// Whether only a place among the established flows is missing.
    #[inline(always)]
    pub const fn is_proven(&self) -> bool {
        self.bits & PROVEN != 0
    }

    /// Remembers that the client has the relay's answer.
    #[inline(always)]
    pub const fn prove(&mut self) {
        self.bits |= PROVEN;
    }

    /// Says whether the flow counts among those that its subscriber has open.
    #[inline(always)]
    pub const fn set_counted(&mut self, counted: bool) {
        self.bits = if counted { self.bits | COUNTED } else { self.bits & !COUNTED };
    }

    #[inline(always)]
    pub const fn doom(&mut self) {
        self.bits |= DOOMED;
    }

    /// In a forward entry.
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        self.word
    }

    /// In a forward entry.
    #[inline(always)]
    pub const fn set_epoch(&mut self, epoch: u32) {
        self.word = epoch;
    }

    /// The number of the relay of a steered flow that is half-open.
    #[inline(always)]
    pub const fn steered_relay(&self) -> u32 {
        self.word
    }

    /// Whether this entry is for packets of `tuple` going in `direction`.
    ///
    /// A map may give the memory of a removed entry to another flow while a packet still holds it, so the subscriber's address, which no
    /// rewriting changes, is compared as well.
    #[inline(always)]
    pub fn serves(&self, direction: Direction, tuple: &Tuple<A>) -> bool {
        self.bits & DIRECTION == direction as u8
            && match direction {
                Direction::Forward => self.to.addresses[0] == tuple.addresses[0],
                Direction::Reply => self.to.addresses[1] == tuple.addresses[1],
            }
    }

    /// Whether this is the reply's entry of the flow with the key `key`.
    #[inline(always)]
    pub fn answers(&self, key: &Tuple<A>) -> bool {
        let [[source, destination], [answer_source, answer_destination]] = [key.addresses, self.to.addresses];
        self.to.ports_word() == key.reversed().ports_word()
            && answer_source == destination
            && answer_destination == source
    }

    /// Whether a segment with `flags` needs more than to be sent on: the policy has changed, the flow is doomed or ends while it is counted, or
    /// its tuple may be opened anew.
    #[inline(always)]
    pub const fn needs_judging(&self, flags: Flags, epoch: u32) -> bool {
        self.word != epoch || self.bits & DOOMED != 0 || flags.ends() && self.is_counted() || flags.opens()
    }

    /// Takes note of a segment. Writes only what changes: an unchanged cache line stays shared between CPUs.
    #[inline(always)]
    pub fn note(&mut self, flags: Flags, now_s: u32) {
        if self.seen_s != now_s {
            self.seen_s = now_s;
        }
        if flags.ends() {
            self.sent |= flags.0 & (Flags::FIN | Flags::RST);
        }
    }

    /// Takes note of the relay's SYN-ACK.
    #[inline(always)]
    pub fn note_answer(&mut self, isn: u32) {
        self.word = isn;
        self.sent = Flags::SYN;
    }

    /// Whether `acknowledgment` shows that its sender has received the SYN-ACK noted here.
    #[inline(always)]
    pub const fn answer_seen_by(&self, acknowledgment: u32) -> bool {
        self.sent & Flags::SYN != 0 && acknowledgment == self.word.wrapping_add(1)
    }

    /// The sender of this direction has said goodbye; a SYN on the same tuple is a new connection.
    #[inline(always)]
    pub const fn has_closed(&self) -> bool {
        self.sent & (Flags::FIN | Flags::RST) != 0
    }

    #[inline(always)]
    pub const fn has_reset(&self) -> bool {
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
    /// The client has reset, both sides have closed, or the flow is doomed.
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

/// The state of a flow in the established table, from its two entries. For a steered flow, which has one, give it twice.
///
/// A close by the relay alone changes nothing: the subscriber may go on sending, and its FIN will follow (RFC 5382 section 5 leaves the
/// mapping to the inside). A reset by the relay is transitory: the client's stack answers a reset with silence, and the segment came from
/// the operator's own relay, not from an off-path stranger.
pub const fn state<A: Address>(forward: &Flow<A>, reply: &Flow<A>) -> State {
    if forward.is_doomed() {
        return State::Closed;
    }
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
        let mut entries = [Flow::<V4>::forward(Tuple::default(), 1, 0, 0), Flow::reply(Tuple::default(), 1, false, 0)];
        entries[0].note(Flags(forward), 1);
        entries[1].note(Flags(reply), 1);
        state(&entries[0], &entries[1])
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
        let mut reply = Flow::<V4>::reply(Tuple::default(), 1, false, 0);
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
