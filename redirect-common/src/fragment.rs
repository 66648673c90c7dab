//! Datagrams in fragments: what became of the first one becomes of those that follow.
//!
//! Only the first fragment has ports. It is decided like a whole segment, provided that it holds the whole TCP header, and what was decided is
//! remembered by the datagram's identification (RFC 791 section 3.2, RFC 8200 section 4.5). A fragment that overtakes its first one passes:
//! without a first fragment nobody can make anything of it.

use core::hint::black_box;

use crate::{
    address::Address,
    edit::EditError,
    flow::{Direction, Tuple},
    handle::Outcome,
    packet::PacketMut,
    parse::Headers,
    policy::{Action, Fallback},
    reason::{Reason, Verdict},
    tables::{FamilyTables, Tables},
};

/// Seconds after which a fate no longer counts: as long as Linux waits for the rest of a datagram (`IP_FRAG_TIME`).
pub const FATE_S: u32 = 30;

/// A datagram in fragments: the key of `FRAGMENTS_V4` and `FRAGMENTS_V6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram<A> {
    pub addresses: [A; 2],
    /// As it lies in the header; that of IPv4 fills the first two bytes.
    pub id: u32,
    _pad: u32,
}

impl<A> Datagram<A> {
    #[inline(always)]
    pub const fn new(addresses: [A; 2], id: u32) -> Self {
        Self { addresses, id, _pad: 0 }
    }
}

/// What became of a first fragment: the value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate<A> {
    /// The addresses that it left with.
    pub addresses: [A; 2],
    /// When, in seconds of the coarse clock.
    at_s: u32,
    /// Number of the class that decided.
    pub class: u16,
    verdict: u8,
    _pad: u8,
}

impl<A: Address> Fate<A> {
    #[inline(always)]
    pub const fn new(addresses: [A; 2], class: u16, verdict: Verdict, at_s: u32) -> Self {
        Self { addresses, at_s, class, verdict: verdict as u8, _pad: 0 }
    }

    /// `None` where it is too old to be of this datagram.
    #[inline(always)]
    pub const fn verdict(&self, now_s: u32) -> Option<Verdict> {
        const REDIRECT: u8 = Verdict::Redirect as u8;
        const STEER: u8 = Verdict::Steer as u8;
        if now_s.wrapping_sub(self.at_s) > FATE_S {
            return None;
        }
        match self.verdict {
            REDIRECT => Some(Verdict::Redirect),
            STEER => Some(Verdict::Steer),
            _ => Some(Verdict::Drop),
        }
    }
}

/// Remembers for the others what became of a first fragment of `tuple` that left with the tuple `to`.
#[inline(never)]
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "a function of BPF takes five arguments, and a pair counts as two"
)]
pub(crate) fn settle_first<T, A>(tables: &T, headers: &Headers, tuple: &Tuple<A>, to: &Tuple<A>, outcome: &Outcome)
where
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let verdict = outcome.reason.verdict();
    if verdict != Verdict::Pass {
        let fate = Fate::new(to.addresses, outcome.class, verdict, tables.now_s());
        tables.set_fate(&Datagram::new(tuple.addresses, headers.fragment_id), &fate);
    }
}

/// A first fragment without the whole TCP header.
#[inline(never)]
pub(crate) fn decide_short<P, T, A>(frame: &P, tables: &T, headers: &Headers, direction: Direction) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    // So that the frame is handed over, and not pointers into the packet, which the verifier loses on the way.
    let Some(addresses) = black_box(frame).at::<[A::Octets; 2]>(headers.l3 + A::OFFSET).copied() else {
        return Outcome::unclassed(Reason::Truncated);
    };
    let datagram = &Datagram::new(addresses.map(A::from_octets), headers.fragment_id);
    if direction == Direction::Reply {
        return Outcome::unclassed(Reason::Fragment);
    }
    let number = tables.class_number(&datagram.addresses[0]);
    let Some(class) = tables.class(number) else { return Outcome::unclassed(Reason::Fragment) };
    let passes = match class.action() {
        Action::Pass => true,
        Action::Redirect => class.on_relay_down() == Fallback::Pass,
        Action::Block | Action::Reject => false,
    };
    if passes {
        return Outcome::new(Reason::Fragment, number);
    }
    let fate = Fate::new(datagram.addresses, number, Verdict::Drop, tables.now_s());
    tables.set_fate(datagram, &fate);
    Outcome::new(Reason::FragmentBlock, number)
}

/// A fragment without ports: it does as its first one did.
#[inline(never)]
pub(crate) fn follow_first<P, T, A>(frame: &mut P, tables: &T, headers: &Headers) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Some(addresses) = frame.at::<[A::Octets; 2]>(headers.l3 + A::OFFSET).copied() else {
        return Outcome::unclassed(Reason::Truncated);
    };
    let addresses = addresses.map(A::from_octets);
    let Some(fate) = tables.fate(&Datagram::new(addresses, headers.fragment_id)) else {
        return Outcome::unclassed(Reason::Fragment);
    };
    let reason = match fate.verdict(tables.now_s()) {
        None => return Outcome::unclassed(Reason::Fragment),
        Some(Verdict::Redirect) => match frame.edit_addresses(headers.l3, &addresses, &fate.addresses) {
            Ok(()) => Reason::FragmentRedirect,
            Err(EditError) => Reason::EditFailed,
        },
        Some(Verdict::Steer) => Reason::FragmentSteer,
        Some(Verdict::Pass | Verdict::Drop | Verdict::Reject) => Reason::FragmentBlock,
    };
    Outcome::new(reason, fate.class)
}

#[cfg(feature = "user")]
mod pod {
    use super::{Datagram, Fate};
    use crate::address::{V4, V6};

    const _: () = assert!(size_of::<Datagram<V4>>() == 16 && size_of::<Datagram<V6>>() == 40);
    const _: () = assert!(size_of::<Fate<V4>>() == 16 && size_of::<Fate<V6>>() == 40);

    // SAFETY: repr(C) integers with explicit padding, size asserted above, every bit pattern valid.
    unsafe impl aya::Pod for Datagram<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Datagram<V6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Fate<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Fate<V6> {}
}
