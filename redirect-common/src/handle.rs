//! The whole data plane: a frame and the tables in, a reason and its verdict out, the frame edited where that is [`Verdict::Redirect`].
//!
//! Whatever is malformed, unknown or undecidable passes untouched and is counted: we must never be the outage.

use crate::{
    SMTP_PORT,
    address::{Address, V4, V6},
    edit::{Edit, EditError},
    flow::{Direction, Flow, Tuple},
    packet::PacketMut,
    parse::{Family, Headers, Link, Segment, parse_pulling},
    policy::{Action, Class, Fallback},
    reason::{Reason, Verdict},
    tables::{FamilyTables, InsertError, Table, Tables},
};

/// Client ports tried toward the relay before a flow counts as clashing: the client's own and seven others. With a thousand flows of one
/// client to one relay, all eight are taken once in 10^14 times.
pub const PORT_TRIES: u32 = 8;

/// The way out, and the class that it counts for; 0 where no class had a say.
#[derive(Clone, Copy)]
struct Outcome {
    reason: Reason,
    class: u16,
}

impl Outcome {
    #[inline(always)]
    const fn new(reason: Reason, class: u16) -> Self {
        Self { reason, class }
    }

    #[inline(always)]
    const fn unclassed(reason: Reason) -> Self {
        Self::new(reason, 0)
    }
}

/// Decides a frame that goes in `direction`, edits it, and counts it by class and reason. The reason's verdict is what happens to it.
///
/// Where that is [`Verdict::Reject`] the frame is still as it came; [`refuse`](crate::refuse::refuse) makes the answer of it, in a
/// function and a stack frame apart from what every packet runs through.
#[inline(always)]
pub fn handle<P: PacketMut, T: Tables>(frame: &mut P, link: Link, tables: &T, direction: Direction) -> Reason {
    let bytes = frame.len() as u64;
    let outcome = match parse_pulling(frame, link) {
        Ok(headers) => match headers.family {
            Family::V4 => handle_segment::<P, T, V4>(frame, tables, &headers, direction),
            Family::V6 => handle_segment::<P, T, V6>(frame, tables, &headers, direction),
        },
        Err(reason) => Outcome::unclassed(reason),
    };
    tables.count(outcome.class, outcome.reason, bytes);
    outcome.reason
}

#[inline(always)]
fn handle_segment<P, T, A>(frame: &mut P, tables: &T, headers: &Headers, direction: Direction) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let [source_port, destination_port] = headers.ports;
    let ours = match direction {
        Direction::Forward => destination_port == SMTP_PORT.to_be_bytes(),
        Direction::Reply => tables.is_relay_port(source_port),
    };
    if !ours {
        return Outcome::unclassed(Reason::OtherPort);
    }
    let headers = &headers.blurred(tables.zero());
    if headers.first_fragment {
        return handle_fragment::<P, T, A>(frame, tables, headers, direction);
    }
    let Some(segment) = Segment::<A>::read(frame, headers) else { return Outcome::unclassed(Reason::Truncated) };
    // Where the decision is to redirect, it also says with which tuple.
    let mut to = segment.tuple;
    let outcome = match direction {
        Direction::Forward => forward(tables, &segment, &mut to),
        Direction::Reply => reply(tables, &segment, frame.is_of_this_host(), &mut to),
    };
    match outcome.reason.verdict() {
        Verdict::Redirect => {
            match frame.edit(&Edit { l3: headers.l3, l4: headers.l4, from: &segment.tuple, to: &to }) {
                Ok(()) => outcome,
                Err(EditError) => Outcome::new(Reason::EditFailed, outcome.class),
            }
        }
        Verdict::Reject if segment.flags.resets() => Outcome::new(Reason::ResetUnanswered, outcome.class),
        Verdict::Reject if !tables.take_reset(tables.now_s()) => Outcome::new(Reason::RejectLimited, outcome.class),
        Verdict::Pass | Verdict::Drop | Verdict::Reject => outcome,
    }
}

/// A first fragment to port 25. Without it the others are nothing, so it alone decides. To redirect it would take the others too.
#[inline(always)]
fn handle_fragment<P, T, A>(frame: &P, tables: &T, headers: &Headers, direction: Direction) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let addresses = frame.at::<[A::Octets; 2]>(headers.l3 + A::OFFSET).copied();
    let (Direction::Forward, Some([source, _])) = (direction, addresses) else {
        return Outcome::unclassed(Reason::Fragment);
    };
    let Some((number, class)) = class_of(tables, &A::from_octets(source)) else {
        return Outcome::unclassed(Reason::Fragment);
    };
    let passes = match class.action() {
        Action::Pass => true,
        Action::Redirect => class.on_relay_down() == Fallback::Pass,
        Action::Block | Action::Reject => false,
    };
    Outcome::new(if passes { Reason::Fragment } else { Reason::FragmentBlock }, number)
}

/// A segment from a subscriber to port 25.
#[inline(always)]
fn forward<T: Tables + FamilyTables<A>, A: Address>(tables: &T, segment: &Segment<A>, to: &mut Tuple<A>) -> Outcome {
    let now_s = tables.now_s();
    let opens = segment.flags.opens();

    let established = tables.flow(Table::Established, &segment.tuple, |flow| {
        flow.serves(Direction::Forward, &segment.tuple).then(|| {
            let reopens = opens && flow.has_closed();
            if !reopens {
                flow.note(segment.flags, now_s);
            }
            *to = flow.to;
            (reopens, flow.class)
        })
    });
    match established.flatten() {
        Some((false, class)) => return Outcome::new(Reason::FlowEstablished, class),
        // The client re-uses the port of a connection that it has closed: policy decides anew.
        Some((true, _)) => forget(tables, &segment.tuple, to),
        None => {}
    }
    if !opens && let Some(outcome) = shake_hands(tables, segment, now_s, to) {
        return outcome;
    }
    apply_policy(tables, segment, now_s, to)
}

// From here on, functions that are not part of the established path are not inlined: each gets a frame of its own on the BPF stack, which
// holds 512 bytes for the longest chain of calls.

/// Removes an established pair.
#[inline(never)]
fn forget<T: FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, to: &Tuple<A>) {
    tables.remove(Table::Established, key);
    tables.remove(Table::Established, &to.reversed());
}

/// A segment of a half-open flow, if it is one: promotes the flow once the client proves that it has seen the relay's answer.
#[inline(never)]
fn shake_hands<T: FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    now_s: u32,
    to: &mut Tuple<A>,
) -> Option<Outcome> {
    let half_open = tables.flow(Table::HalfOpen, &segment.tuple, |flow| {
        flow.serves(Direction::Forward, &segment.tuple).then(|| {
            flow.note(segment.flags, now_s);
            *flow
        })
    });
    let flow = half_open.flatten()?;
    *to = flow.to;
    let reply_key = to.reversed();
    let answered = tables.flow(Table::HalfOpen, &reply_key, |reply| {
        (segment.flags.acknowledges() && reply.answer_seen_by(segment.acknowledgment)).then_some(*reply)
    });
    let reason = match answered.flatten() {
        Some(reply) => promote(tables, &segment.tuple, &flow, &reply_key, &reply),
        None => Reason::FlowHalfOpen,
    };
    Some(Outcome::new(reason, flow.class))
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
#[inline(never)]
fn apply_policy<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    now_s: u32,
    to: &mut Tuple<A>,
) -> Outcome {
    let Some((number, class)) = class_of(tables, &segment.tuple.addresses[0]) else {
        return Outcome::unclassed(Reason::NoClass);
    };
    let reason = match class.action() {
        Action::Pass => Reason::ClassPass,
        Action::Block => Reason::ClassBlock,
        Action::Reject => Reason::ClassReject,
        Action::Redirect if segment.flags.opens() => open_flow(tables, &segment.tuple, number, class, now_s, to),
        Action::Redirect => Reason::NoFlow,
    };
    Outcome::new(reason, number)
}

/// The class of a source address, and its number.
#[inline(always)]
fn class_of<T: Tables + FamilyTables<A>, A: Address>(tables: &T, source: &A) -> Option<(u16, Class)> {
    let number = tables.subscriber(source)?.class();
    Some((number, tables.class(number)?))
}

/// A SYN to redirect: reserves a tuple toward the relay and enters the pair as half-open.
#[inline(always)]
fn open_flow<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    number: u16,
    class: Class,
    now_s: u32,
    to: &mut Tuple<A>,
) -> Reason {
    let relay = tables.relay(class.relay()).unwrap_or_default();
    let Some((address, port)) = A::endpoint(&relay) else {
        return match class.on_relay_down() {
            Fallback::Pass => Reason::RelayDownPass,
            Fallback::Block => Reason::RelayDownBlock,
            Fallback::Reject => Reason::RelayDownReject,
        };
    };
    let [source, _] = key.addresses;
    *to = Tuple::new([source, address], [key.ports[0], port]);
    let mut flow = Flow::new(Direction::Reply, key.reversed(), number, now_s).of(relay.is_own());
    for attempt in 1..=PORT_TRIES {
        if reserve(tables, &to.reversed(), &flow) {
            flow = Flow::new(Direction::Forward, *to, number, now_s);
            if tables.flow(Table::HalfOpen, key, |old| *old = flow).is_none() {
                // A table that recycles its oldest entries has room; should another CPU be faster, its entry is as good.
                let _ = tables.insert(Table::HalfOpen, key, &flow);
            }
            return Reason::FlowNew;
        }
        to.ports[0] = other_port(key, attempt);
    }
    match class.on_relay_down() {
        Fallback::Pass => Reason::ClashPass,
        Fallback::Block => Reason::ClashBlock,
        Fallback::Reject => Reason::ClashReject,
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
    let renewed = tables.flow(Table::HalfOpen, reply_key, |old| {
        let ours = old.to == reply.to;
        if ours {
            *old = *reply;
        }
        ours
    });
    renewed == Some(true)
}

/// Another client port, well spread and the same for the same flow, so that a retransmitted SYN finds its own reservation.
#[inline(always)]
fn other_port<A: Address>(key: &Tuple<A>, attempt: u32) -> [u8; 2] {
    const FIRST: u32 = 1024;
    // Multiplicative hashing; the constant is 2^32 divided by the golden ratio.
    let port = u32::from(u16::from_be_bytes(key.ports[0]));
    let seed = key.addresses[1].spread() ^ port.rotate_left(16) ^ attempt;
    let spread = seed.wrapping_mul(0x9e37_79b9);
    let spread = (spread ^ (spread >> 15)).wrapping_mul(0x9e37_79b9) >> 16;
    // `spread` has 16 bits, so this is the port range scaled, without a division.
    ((FIRST + ((spread * (65_536 - FIRST)) >> 16)) as u16).to_be_bytes()
}

/// A segment from a relay's port: gets back the tuple that the client expects.
#[inline(always)]
fn reply<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    of_this_host: bool,
    to: &mut Tuple<A>,
) -> Outcome {
    let now_s = tables.now_s();
    // Which flow's, if any, and whether the segment may speak for its relay.
    let mut look_up = |table| {
        tables.flow(table, &segment.tuple, |flow| {
            flow.serves(Direction::Reply, &segment.tuple).then(|| {
                let genuine = of_this_host || !flow.is_own();
                if genuine {
                    flow.note(segment.flags, now_s);
                    if table == Table::HalfOpen && segment.flags.answers() {
                        flow.note_answer(segment.sequence);
                    }
                    *to = flow.to;
                }
                (genuine, flow.class)
            })
        })
    };
    if let Some((genuine, class)) = look_up(Table::Established).flatten() {
        return Outcome::new(if genuine { Reason::ReplyEstablished } else { Reason::ReplyForwarded }, class);
    }
    match look_up(Table::HalfOpen).flatten() {
        Some((true, class)) => Outcome::new(Reason::ReplyHalfOpen, class),
        Some((false, class)) => Outcome::new(Reason::ReplyForwarded, class),
        None => Outcome::unclassed(Reason::ReplyNoFlow),
    }
}
