//! The whole data plane: a frame and the tables in, a verdict out, the frame edited where the verdict is [`Verdict::Redirect`].
//!
//! Whatever is malformed, unknown or undecidable passes untouched and is counted: we must never be the outage.

use crate::{
    SMTP_PORT,
    address::Address,
    edit::Edit,
    flow::{Direction, Flow, Tuple},
    packet::PacketMut,
    parse::{Parsed, Segment, parse},
    policy::{Action, Class, Fallback},
    reason::{Reason, Verdict},
    tables::{FamilyTables, InsertError, Table, Tables},
};

/// Client ports tried toward the relay before a flow counts as clashing: the client's own and seven others. With a thousand flows of one
/// client to one relay, all eight are taken once in 10^14 times.
pub const PORT_TRIES: u32 = 8;

/// What is to be done with a segment.
struct Decision<A> {
    reason: Reason,
    class: u16,
    /// The tuple to leave with, where the verdict is redirect.
    to: Option<Tuple<A>>,
}

impl<A: Address> Decision<A> {
    #[inline(always)]
    const fn leave(reason: Reason, class: u16) -> Self {
        Self { reason, class, to: None }
    }

    #[inline(always)]
    const fn rewrite(reason: Reason, class: u16, to: Tuple<A>) -> Self {
        Self { reason, class, to: Some(to) }
    }
}

/// Decides a frame that goes in `direction`, edits it, and counts it by class and reason.
#[inline(always)]
pub fn handle<P: PacketMut + ?Sized, T: Tables>(frame: &mut P, tables: &T, direction: Direction) -> Verdict {
    let bytes = frame.len() as u64;
    let mut parsed = parse(frame);
    if parsed == Err(Reason::Truncated) && frame.pull() {
        parsed = parse(frame);
    }
    let (reason, class) = match parsed {
        Ok(Parsed::V4(segment)) => handle_segment(frame, tables, &segment, direction),
        Ok(Parsed::V6(segment)) => handle_segment(frame, tables, &segment, direction),
        Err(reason) => (reason, 0),
    };
    tables.count(class, reason, bytes);
    reason.verdict()
}

#[inline(always)]
fn handle_segment<P, T, A>(frame: &mut P, tables: &T, segment: &Segment<A>, direction: Direction) -> (Reason, u16)
where
    P: PacketMut + ?Sized,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let decision = match direction {
        Direction::Forward if segment.tuple.destination_port != SMTP_PORT.to_be_bytes() => {
            return (Reason::OtherPort, 0);
        }
        Direction::Forward => forward(tables, segment),
        Direction::Reply if !tables.is_relay_port(segment.tuple.source_port) => return (Reason::OtherPort, 0),
        Direction::Reply => reply(tables, segment),
    };
    let Some(to) = decision.to else { return (decision.reason, decision.class) };
    match frame.edit(&Edit { l3: segment.l3, l4: segment.l4, from: segment.tuple, to }) {
        Ok(()) => (decision.reason, decision.class),
        Err(_) => (Reason::EditFailed, decision.class),
    }
}

/// A segment from a subscriber to port 25.
#[inline(always)]
fn forward<T: Tables + FamilyTables<A>, A: Address>(tables: &T, segment: &Segment<A>) -> Decision<A> {
    let now_s = tables.now_s();
    let opens = segment.flags.opens();

    let established = tables.flow(Table::Established, &segment.tuple, |flow| {
        let reopens = opens && flow.has_closed();
        if !reopens {
            flow.note(segment.flags, now_s);
        }
        (flow.is(Direction::Forward), reopens, flow.class, flow.to)
    });
    match established {
        Some((true, false, class, to)) => return Decision::rewrite(Reason::FlowEstablished, class, to),
        // The client re-uses the port of a connection that it has closed: policy decides anew.
        Some((true, true, _, to)) => {
            tables.remove(Table::Established, &segment.tuple);
            tables.remove(Table::Established, &to.reversed());
        }
        Some((false, ..)) | None => {}
    }
    if !opens {
        let half_open = tables.flow(Table::HalfOpen, &segment.tuple, |flow| {
            flow.note(segment.flags, now_s);
            *flow
        });
        match half_open {
            Some(flow) if flow.is(Direction::Forward) => return shake_hands(tables, segment, &flow),
            Some(_) | None => {}
        }
    }
    apply_policy(tables, segment, now_s)
}

/// A segment of a half-open flow: promotes the flow once the client proves that it has seen the relay's answer.
#[inline(always)]
fn shake_hands<T: FamilyTables<A>, A: Address>(tables: &T, segment: &Segment<A>, flow: &Flow<A>) -> Decision<A> {
    let reply_key = flow.to.reversed();
    let reply = tables.flow(Table::HalfOpen, &reply_key, |reply| *reply);
    let reason = match reply {
        Some(reply) if segment.flags.acknowledges() && reply.answer_seen_by(segment.acknowledgment) => {
            promote(tables, &segment.tuple, flow, &reply_key, &reply)
        }
        _ => Reason::FlowHalfOpen,
    };
    Decision::rewrite(reason, flow.class, flow.to)
}

/// Moves a pair to the established table, the reply's entry first: its key is the one that others may contend for.
#[inline(always)]
fn promote<T: FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    flow: &Flow<A>,
    reply_key: &Tuple<A>,
    reply: &Flow<A>,
) -> Reason {
    match tables.insert(Table::Established, reply_key, reply) {
        Ok(()) => {}
        Err(InsertError::Exists) => return Reason::FlowHalfOpen,
        Err(InsertError::Full) => return Reason::FlowUnpromoted,
    }
    if tables.insert(Table::Established, key, flow).is_err() {
        tables.remove(Table::Established, reply_key);
        return Reason::FlowUnpromoted;
    }
    tables.remove(Table::HalfOpen, key);
    tables.remove(Table::HalfOpen, reply_key);
    Reason::FlowPromoted
}

/// A segment of no flow: the class of its source decides.
#[inline(always)]
fn apply_policy<T: Tables + FamilyTables<A>, A: Address>(tables: &T, segment: &Segment<A>, now_s: u32) -> Decision<A> {
    let Some(subscriber) = tables.subscriber(&segment.tuple.source) else { return Decision::leave(Reason::NoClass, 0) };
    let number = subscriber.class();
    let Some(class) = tables.class(number) else { return Decision::leave(Reason::NoClass, 0) };
    match class.action() {
        Action::Pass => Decision::leave(Reason::ClassPass, number),
        Action::Block => Decision::leave(Reason::ClassBlock, number),
        Action::Redirect if segment.flags.opens() => open_flow(tables, segment, number, class, now_s),
        Action::Redirect => Decision::leave(Reason::NoFlow, number),
    }
}

/// A SYN to redirect: reserves a tuple toward the relay and enters the pair as half-open.
#[inline(always)]
fn open_flow<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    number: u16,
    class: Class,
    now_s: u32,
) -> Decision<A> {
    let Some((address, port)) = tables.relay(class.relay()).as_ref().and_then(A::endpoint) else {
        return match class.on_relay_down() {
            Fallback::Pass => Decision::leave(Reason::RelayDownPass, number),
            Fallback::Block => Decision::leave(Reason::RelayDownBlock, number),
        };
    };
    let key = segment.tuple;
    let answer_to = key.reversed();
    for attempt in 0..PORT_TRIES {
        let source_port = if attempt == 0 { key.source_port } else { other_port(&key, attempt) };
        let to = Tuple { source: key.source, destination: address, source_port, destination_port: port };
        let reply_key = to.reversed();
        let reply = Flow::new(Direction::Reply, answer_to, number, class.relay(), now_s);
        if !reserve(tables, &reply_key, &reply) {
            continue;
        }
        let flow = Flow::new(Direction::Forward, to, number, class.relay(), now_s);
        if tables.flow(Table::HalfOpen, &key, |old| *old = flow).is_none() {
            // A table that recycles its oldest entries has room; should another CPU be faster, its entry is as good.
            let _ = tables.insert(Table::HalfOpen, &key, &flow);
        }
        return Decision::rewrite(Reason::FlowNew, number, to);
    }
    match class.on_relay_down() {
        Fallback::Pass => Decision::leave(Reason::ClashPass, number),
        Fallback::Block => Decision::leave(Reason::ClashBlock, number),
    }
}

/// Takes the tuple of the relay's answers for this flow, unless another flow has it.
#[inline(always)]
fn reserve<T: FamilyTables<A>, A: Address>(tables: &T, reply_key: &Tuple<A>, reply: &Flow<A>) -> bool {
    match tables.flow(Table::Established, reply_key, |old| old.to == reply.to) {
        Some(false) => return false,
        // The other half of an earlier connection of this very tuple: its forward entry is gone, or we would not be here.
        Some(true) => tables.remove(Table::Established, reply_key),
        None => {}
    }
    if tables.insert(Table::HalfOpen, reply_key, reply).is_ok() {
        return true;
    }
    tables
        .flow(Table::HalfOpen, reply_key, |old| {
            let ours = old.to == reply.to;
            if ours {
                *old = *reply;
            }
            ours
        })
        .unwrap_or(false)
}

/// Another client port, well spread and the same for the same flow, so that a retransmitted SYN finds its own reservation.
#[inline(always)]
fn other_port<A: Address>(key: &Tuple<A>, attempt: u32) -> [u8; 2] {
    const FIRST: u32 = 1024;
    // Multiplicative hashing; the constant is 2^32 divided by the golden ratio.
    let seed = key.destination.spread() ^ u32::from_be_bytes(key.ports()).rotate_left(7) ^ attempt;
    let spread = seed.wrapping_mul(0x9e37_79b9);
    let spread = (spread ^ spread >> 15).wrapping_mul(0x9e37_79b9) >> 16;
    // `spread` has 16 bits, so this is the port range scaled, without a division.
    ((FIRST + (spread * (65_536 - FIRST) >> 16)) as u16).to_be_bytes()
}

/// A segment from a relay's port: gets back the tuple that the client expects.
#[inline(always)]
fn reply<T: Tables + FamilyTables<A>, A: Address>(tables: &T, segment: &Segment<A>) -> Decision<A> {
    let now_s = tables.now_s();
    let established = tables.flow(Table::Established, &segment.tuple, |flow| {
        flow.note(segment.flags, now_s);
        (flow.is(Direction::Reply), flow.class, flow.to)
    });
    if let Some((true, class, to)) = established {
        return Decision::rewrite(Reason::ReplyEstablished, class, to);
    }
    let half_open = tables.flow(Table::HalfOpen, &segment.tuple, |flow| {
        flow.note(segment.flags, now_s);
        if segment.flags.answers() {
            flow.note_answer(segment.sequence);
        }
        (flow.is(Direction::Reply), flow.class, flow.to)
    });
    match half_open {
        Some((true, class, to)) => Decision::rewrite(Reason::ReplyHalfOpen, class, to),
        Some(_) | None => Decision::leave(Reason::ReplyNoFlow, 0),
    }
}
