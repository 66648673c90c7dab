//! The whole data plane: a frame and the tables in, a reason and its verdict out, the frame edited where that is [`Verdict::Redirect`].
//!
//! Whatever is malformed, unknown or undecidable passes untouched and is counted: we must never be the outage.

use core::hint::black_box;

use crate::{
    SMTP_PORT,
    address::{Address, V4, V6},
    admit::{admit, daemon_is_down, open_flow},
    edit::{Edit, EditError},
    event::Event,
    flow::{Direction, Flags, Flow, Tuple},
    fragment::{decide_short, follow_first, settle_first},
    icmp::translate_error,
    packet::PacketMut,
    parse::{Family, Headers, Kind, L3_MASK, Link, Segment, Sight, glance, parse_pulling},
    policy::{Action, Class, Fallback},
    reason::{Reason, Verdict},
    tables::{FamilyTables, InsertError, Pulse, Socket, Table, Tables},
    wire::Tcp,
};

/// The way out, and the class that it counts for; 0 where no class had a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reason: Reason,
    pub class: u16,
}

impl Outcome {
    #[inline(always)]
    pub(crate) const fn new(reason: Reason, class: u16) -> Self {
        Self { reason, class }
    }

    #[inline(always)]
    pub(crate) const fn unclassed(reason: Reason) -> Self {
        Self::new(reason, 0)
    }
}

/// What holds for a packet besides its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now_s: u32,
    pub(crate) epoch: u32,
    /// Whether the packet could be handed to a socket of this host.
    pub(crate) steering: bool,
    /// Whether no daemon looks after the relays. Known only once a new flow is to be opened: it takes a clock call.
    pub(crate) daemon_down: bool,
    /// The number of the source's class, which may not be there; 0 for none.
    pub(crate) class: u16,
}

/// Decides a frame that goes in `direction`, edits it, and counts it by interface, class and reason. The reason's verdict is what happens
/// to it.
///
/// Where that is [`Verdict::Reject`] the frame is still as it came; [`refuse`](crate::refuse::refuse) makes the answer of it, in a
/// function and a stack frame apart from what every packet runs through.
#[inline(always)]
pub fn handle<P: PacketMut, T: Tables>(frame: &mut P, link: Link, tables: &T, direction: Direction) -> Outcome {
    let bytes = frame.len() as u64;
    let glance = glance(frame, link);
    let bystander = match glance.sight {
        Sight::NotTcp => Some(Reason::NotTcp),
        Sight::Ipv4 | Sight::Ipv6 if !is_ours(tables, glance.ports, direction) => Some(Reason::OtherPort),
        Sight::Ipv4 | Sight::Ipv6 | Sight::Unclear => None,
    };
    if let Some(reason) = bystander {
        tables.count(frame.ifindex(), 0, reason, bytes);
        return Outcome::unclassed(reason);
    }
    let mut outcome = Outcome::unclassed(Reason::OtherPort);
    let decided = match glance.sight {
        Sight::Ipv4 => decide_plain::<P, T, V4>(frame, glance.l3, tables, direction, &mut outcome),
        Sight::Ipv6 => decide_plain::<P, T, V6>(frame, glance.l3, tables, direction, &mut outcome),
        Sight::NotTcp | Sight::Unclear => false,
    };
    if !decided {
        look_closely(frame, link, tables, direction, &mut outcome);
    }
    tables.count(frame.ifindex(), outcome.class, outcome.reason, bytes);
    outcome
}

/// Whether a segment with these ports concerns us at all.
#[inline(always)]
fn is_ours<T: Tables>(tables: &T, [source, destination]: [[u8; 2]; 2], direction: Direction) -> bool {
    match direction {
        Direction::Forward => destination == SMTP_PORT.to_be_bytes(),
        Direction::Reply => tables.is_relay_port(source),
    }
}

/// Decides what a look-up or two suffice for. Where more has to be done it is `false`: the segment is as it came, all is to be decided anew, and
/// `outcome` holds the class of a segment that opens a connection. A glance has found the IP header at `l3` plain.
#[inline(always)]
fn decide_plain<P, T, A>(frame: &mut P, l3: usize, tables: &T, direction: Direction, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    // Before the call, for floods of what opens connections.
    let Some(tcp) = frame.at::<Tcp>(l3 + size_of::<A::Header>()) else { return false };
    match (Flags(tcp.flags).opens(), direction) {
        (false, Direction::Forward) if stays::<P, A>() => send_on::<P, T, A>(frame, l3, tables, outcome),
        (false, Direction::Forward) => send_on_apart::<P, T, A>(frame, l3, tables, outcome),
        (false, Direction::Reply) => send_back::<P, T, A>(frame, l3, tables, outcome),
        (true, Direction::Forward) => {
            // Here, and not in the function, which the verifier then walks once for all tags.
            let l3 = (l3 + tables.zero()) & L3_MASK;
            if stays::<P, A>() {
                refuse_opening::<P, T, A>(frame, l3, tables, outcome)
            } else {
                refuse_opening_apart::<P, T, A>(frame, l3, tables, outcome)
            }
        }
        (true, Direction::Reply) => false,
    }
}

/// Whether a plain segment is decided without a call, of which the return alone costs more than a glance. What is larger has no room on the
/// stack of the program itself, to which whatever that calls adds its own.
#[inline(always)]
const fn stays<P: PacketMut, A: Address>() -> bool {
    P::IN_PLACE && A::FAMILY == 4
}

/// What is neither a bystander nor decided by its plain headers. `outcome` holds the number of the source's class where it is known already.
#[inline(always)]
fn look_closely<P, T>(frame: &mut P, link: Link, tables: &T, direction: Direction, outcome: &mut Outcome)
where
    P: PacketMut,
    T: Tables,
{
    let zero = tables.zero();
    // As with the headers: the verifier is not to walk the rest once more for those whose class is known.
    outcome.class = outcome.class.wrapping_add(zero as u16);
    let mut headers = Headers::NONE;
    if let Some(plain) = glance(frame, link).headers(frame) {
        headers = plain.blurred(zero);
    } else {
        if let Some(reason) = parse_pulling(frame, link, zero, &mut headers) {
            *outcome = Outcome::unclassed(reason);
            return;
        }
        let has_ports = matches!(headers.kind, Kind::Segment | Kind::FirstFragment);
        if has_ports && !is_ours(tables, headers.ports, direction) {
            *outcome = Outcome::unclassed(Reason::OtherPort);
            return;
        }
    }
    match headers.family {
        Family::V4 => handle_datagram::<P, T, V4>(frame, tables, &headers, direction, outcome),
        Family::V6 => handle_datagram::<P, T, V6>(frame, tables, &headers, direction, outcome),
    }
}

#[inline(always)]
fn handle_datagram<P, T, A>(frame: &mut P, tables: &T, headers: &Headers, direction: Direction, outcome: &mut Outcome)
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    match headers.kind {
        Kind::Segment | Kind::FirstFragment => handle_segment::<P, T, A>(frame, tables, headers, direction, outcome),
        Kind::LaterFragment => *outcome = follow_first::<P, T, A>(frame, tables, headers),
        Kind::IcmpError => *outcome = translate_error::<P, T, A>(frame, tables, headers, direction),
    }
}

// From here on, functions are not inlined but for those of the established path and of refusals (`stays`): each gets a frame of its own on the
// BPF stack, which holds 512 bytes for the longest chain of calls.

/// Sends a segment that opens no connection on to the relay of its established flow, says by what way out, and does no more. `false` where it
/// does not.
#[inline(always)]
fn send_on<P, T, A>(frame: &mut P, l3: usize, tables: &T, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Pulse { now_s, epoch, zero } = tables.pulse();
    let l3 = (l3 + zero) & L3_MASK;
    let Some(segment) = Segment::<A>::read_plain(frame, l3) else { return false };
    let mut edited = Ok(());
    let rewrite = |to: &Tuple<A>| edited = edit_plain(frame, l3, &segment.tuple, to);
    let (reason, class) = match established(tables, &segment, now_s, epoch, rewrite) {
        Some((true, true, class)) => (Reason::SteerEstablished, class),
        Some((true, false, class)) => (Reason::FlowEstablished, class),
        Some((false, ..)) | None => return false,
    };
    *outcome = Outcome::new(if edited.is_ok() { reason } else { Reason::EditFailed }, class);
    true
}

/// As [`send_on`], with a frame of its own on the stack.
#[inline(never)]
fn send_on_apart<P, T, A>(frame: &mut P, l3: usize, tables: &T, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    send_on::<P, T, A>(frame, l3, tables, outcome)
}

/// As [`send_on`], from the relay back to the subscriber.
#[inline(never)]
fn send_back<P, T, A>(frame: &mut P, l3: usize, tables: &T, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Pulse { now_s, zero, .. } = tables.pulse();
    let l3 = (l3 + zero) & L3_MASK;
    let Some(segment) = Segment::<A>::read_plain(frame, l3) else { return false };
    let of_this_host = frame.is_of_this_host();
    let mut edited = Ok(());
    let rewrite = |to: &Tuple<A>| edited = edit_plain(frame, l3, &segment.tuple, to);
    let Some((true, class)) = answered(tables, Table::Established, &segment, of_this_host, now_s, rewrite) else {
        return false;
    };
    *outcome = Outcome::new(if edited.is_ok() { Reason::ReplyEstablished } else { Reason::EditFailed }, class);
    true
}

/// Edits a segment behind a plain header at `l3`.
#[inline(always)]
fn edit_plain<P, A>(frame: &mut P, l3: usize, from: &Tuple<A>, to: &Tuple<A>) -> Result<(), EditError>
where
    P: PacketMut,
    A: Address,
{
    frame.edit(&Edit { l3, l4: l3 + size_of::<A::Header>(), from, to })
}

/// Refuses a segment that opens a connection where its class refuses all of them. Nothing but the class is looked up for that: an older flow
/// of the same tuple is left to its next segment and to the sweep. `false` where the class does not: then `outcome` holds its number.
#[inline(always)]
fn refuse_opening<P, T, A>(frame: &P, l3: usize, tables: &T, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Some(segment) = Segment::<A>::read_plain(frame, l3) else { return false };
    outcome.class = tables.class_number(&segment.tuple.addresses[0]);
    outcome.reason = match refusal(tables, outcome.class) {
        Some(Reason::ClassReject) if !tables.take_reset(tables.now_s()) => Reason::RejectLimited,
        Some(reason) => reason,
        None => return false,
    };
    if outcome.reason.is_reported() && tables.take_event(tables.now_s()) {
        report(tables, frame.ifindex(), outcome, &segment.tuple, &segment.tuple);
    }
    true
}

/// As [`refuse_opening`], with a frame of its own on the stack.
#[inline(never)]
fn refuse_opening_apart<P, T, A>(frame: &P, l3: usize, tables: &T, outcome: &mut Outcome) -> bool
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    refuse_opening::<P, T, A>(black_box(frame), l3, tables, outcome)
}

#[inline(never)]
fn handle_segment<P, T, A>(frame: &mut P, tables: &T, headers: &Headers, direction: Direction, outcome: &mut Outcome)
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let fragmented = headers.kind == Kind::FirstFragment;
    if fragmented && headers.l4 + size_of::<Tcp>() > headers.end() {
        *outcome = decide_short::<P, T, A>(frame, tables, headers, direction);
        return;
    }
    let Some(segment) = Segment::<A>::read(frame, headers) else {
        *outcome = Outcome::unclassed(Reason::Truncated);
        return;
    };
    // Where the decision is to redirect, it also says with which tuple.
    let mut to = segment.tuple;
    match direction {
        Direction::Forward => forward(tables, &segment, frame.can_be_steered(), &mut to, outcome),
        Direction::Reply => *outcome = reply(tables, &segment, frame.is_of_this_host(), &mut to),
    }
    outcome.reason = match outcome.reason.verdict() {
        Verdict::Redirect => match edit(frame, headers, &segment.tuple, &to) {
            Ok(()) => outcome.reason,
            Err(EditError) => Reason::EditFailed,
        },
        // A reset answers a segment, and of this one only a part is here.
        Verdict::Reject if fragmented => Reason::FragmentBlock,
        Verdict::Reject if segment.flags.resets() => Reason::ResetUnanswered,
        Verdict::Reject if !tables.take_reset(tables.now_s()) => Reason::RejectLimited,
        Verdict::Pass | Verdict::Drop | Verdict::Reject | Verdict::Steer => outcome.reason,
    };
    if outcome.reason.is_reported() && tables.take_event(tables.now_s()) {
        report(tables, frame.ifindex(), outcome, &segment.tuple, &to);
    }
    if fragmented {
        settle_first(tables, headers, &segment.tuple, &to, outcome);
    }
}

/// Not inlined, for a smaller frame of `handle_segment`, which is in the longest chain of calls.
#[inline(never)]
fn edit<P, A>(frame: &mut P, headers: &Headers, from: &Tuple<A>, to: &Tuple<A>) -> Result<(), EditError>
where
    P: PacketMut,
    A: Address,
{
    black_box(frame).edit(&Edit { l3: headers.l3, l4: headers.l4, from, to })
}

/// Tells user space of a packet that matters.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "a function of BPF takes five arguments, and a pair counts as two"
)]
#[inline(never)]
fn report<T: Tables, A: Address>(tables: &T, ifindex: u32, outcome: &Outcome, tuple: &Tuple<A>, to: &Tuple<A>) {
    tables.report(&Event::new(ifindex, outcome.class, outcome.reason, tuple, to));
}

/// A segment from a subscriber to port 25. `outcome` holds the number of the source's class where it is known.
#[inline(always)]
fn forward<T, A>(tables: &T, segment: &Segment<A>, can_be_steered: bool, to: &mut Tuple<A>, outcome: &mut Outcome)
where
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Pulse { now_s, epoch, zero, .. } = tables.pulse();
    let mut moment = Moment { now_s, epoch, steering: false, daemon_down: false, class: outcome.class };
    *outcome = Outcome::unclassed(Reason::NoFlow);
    if is_established(tables, segment, &moment, to, outcome) {
        return;
    }
    if outcome.class == 0 && !segment.flags.opens() && shake_hands(tables, segment, &moment, to, outcome) {
        return;
    }
    // As with the headers, because the walk through all prefixes that follows is long.
    outcome.class = outcome.class.wrapping_add(zero as u16);
    if moment.class == 0 {
        moment.class = tables.class_number(&segment.tuple.addresses[0]);
    }
    if segment.flags.opens()
        && let Some(reason) = refusal(tables, moment.class)
    {
        *outcome = Outcome::new(reason, moment.class);
        return;
    }
    moment.steering = blurred(can_be_steered && tables.is_steering(), zero);
    if outcome.class != 0
        && let Some(reason) = judge(tables, segment, &moment, to)
    {
        outcome.reason = reason;
        return;
    }
    *outcome = admit(tables, segment, &moment);
    if outcome.reason != Reason::FlowNew {
        return;
    }
    moment.daemon_down = blurred(daemon_is_down(tables), zero);
    // Apart from admitting it, so that the two do not add up on the stack.
    outcome.reason = open_flow(tables, &segment.tuple, outcome.class, &moment, to);
}

/// The same, but the verifier does not know of which way it came, and walks what follows once: see [`Tables::zero`].
#[inline(always)]
const fn blurred(flag: bool, zero: usize) -> bool {
    (flag as usize + zero) & 1 != 0
}

/// Whether a segment is of an established flow and needs no more than to be sent on. Where it needs more, `outcome` holds the flow's class.
#[inline(never)]
fn is_established<T, A>(
    tables: &T,
    segment: &Segment<A>,
    moment: &Moment,
    to: &mut Tuple<A>,
    outcome: &mut Outcome,
) -> bool
where
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Moment { now_s, epoch, .. } = *moment;
    let (reason, class) = match established(tables, segment, now_s, epoch, |other| *to = *other) {
        Some((true, false, class)) => (Reason::FlowEstablished, class),
        Some((true, true, class)) => (Reason::SteerEstablished, class),
        Some((false, _, class)) => {
            outcome.class = class;
            return false;
        }
        None => return false,
    };
    *outcome = Outcome::new(reason, class);
    true
}

/// The established flow of a segment from a subscriber: whether the segment only has to be sent on; whether the flow is steered; and its class.
/// Where it only has to be rewritten, `rewrite` is called with the tuple that it leaves with.
#[inline(always)]
fn established<T: FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    now_s: u32,
    epoch: u32,
    rewrite: impl FnOnce(&Tuple<A>),
) -> Option<(bool, bool, u16)> {
    let flow = tables.flow(Table::Established, &segment.tuple, |flow| {
        flow.serves(Direction::Forward, &segment.tuple).then(|| {
            let plain = !flow.needs_judging(segment.flags, epoch);
            if plain {
                flow.note(segment.flags, now_s);
                if !flow.is_steered() {
                    rewrite(&flow.to);
                }
            }
            (plain, flow.is_steered(), flow.class)
        })
    });
    flow.flatten()
}

/// A segment of an established flow that needs more than to be sent on. `None` where policy decides as on a new one.
#[inline(never)]
fn judge<T, A>(tables: &T, segment: &Segment<A>, moment: &Moment, to: &mut Tuple<A>) -> Option<Reason>
where
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Moment { now_s, epoch, .. } = *moment;
    let key = &segment.tuple;
    // Before the flow is in hand: a dry run has one place for a copy.
    let is_reset = segment.flags.opens() && is_reset(tables, key);
    let judged = tables.flow(Table::Established, key, |flow| {
        *to = flow.to;
        if flow.epoch() != epoch && !flow.is_doomed() {
            if survives(tables, moment.class, flow.class) {
                flow.set_epoch(epoch);
            } else {
                flow.doom();
            }
        }
        // The client re-uses the port of a connection that it has closed, that the relay has reset, to which a client says nothing, or that
        // its class does not want any more. Of steered ones the kernel knows which those are.
        if segment.flags.opens() && (flow.has_closed() || flow.is_steered() || flow.is_doomed() || is_reset) {
            forget(tables, key, flow);
            return None;
        }
        flow.note(segment.flags, now_s);
        if flow.is_counted() && (segment.flags.ends() || flow.is_doomed()) {
            flow.set_counted(false);
            tables.remove_open(key.addresses[0].host());
        }
        Some(match (flow.is_doomed() && !segment.flags.resets(), flow.is_steered()) {
            (true, _) => Reason::ClassChanged,
            (false, true) => Reason::SteerEstablished,
            (false, false) => Reason::FlowEstablished,
        })
    });
    judged.flatten()
}

/// Whether the relay has reset this flow.
#[inline(never)]
fn is_reset<T: FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>) -> bool {
    let Some(reply_key) = tables.flow(Table::Established, key, |flow| flow.to.reversed()) else { return false };
    tables.flow(Table::Established, &reply_key, |reply| reply.has_reset()) == Some(true)
}

/// Whether a live flow that the class `before` redirected may go on by the policy as it is.
#[inline(always)]
fn survives<T: Tables>(tables: &T, number: u16, before: u16) -> bool {
    // Without a class nobody has a say any more.
    tables.class(number).is_none_or(|class| class.lets_go_on(number, before))
}

/// Removes an established flow.
#[inline(never)]
fn forget<T: Tables + FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, flow: &Flow<A>) {
    // Before the entry is free for another flow.
    let reply_key = flow.to.reversed();
    let steered = flow.is_steered();
    if flow.is_counted() {
        tables.remove_open(key.addresses[0].host());
    }
    tables.remove(Table::Established, key);
    if !steered {
        tables.remove(Table::Established, &reply_key);
    }
}

/// Decides a segment of a half-open flow, if it is one: promotes the flow once the client proves that it has seen the relay's answer.
#[inline(never)]
fn shake_hands<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    moment: &Moment,
    to: &mut Tuple<A>,
    outcome: &mut Outcome,
) -> bool {
    let Moment { now_s, epoch, .. } = *moment;
    let half_open = tables.flow(Table::HalfOpen, &segment.tuple, |flow| {
        flow.serves(Direction::Forward, &segment.tuple).then(|| {
            flow.note(segment.flags, now_s);
            *to = flow.to;
            (flow.is_steered(), flow.is_proven(), flow.class)
        })
    });
    let Some((steered, proven, class)) = half_open.flatten() else { return false };
    let reason = if steered {
        match tables.socket(&segment.tuple) {
            Socket::Connected => promote_steered(tables, &segment.tuple, class, epoch, now_s),
            Socket::Waiting | Socket::None => Reason::SteerHalfOpen,
        }
    } else if proven || segment.flags.acknowledges() && has_answer(tables, to, segment.acknowledgment) {
        promote(tables, &segment.tuple, to, class)
    } else {
        Reason::FlowHalfOpen
    };
    *outcome = Outcome::new(reason, class);
    true
}

/// Whether `acknowledgment` shows that the client has the relay's answer.
#[inline(never)]
fn has_answer<T: FamilyTables<A>, A: Address>(tables: &T, to: &Tuple<A>, acknowledgment: u32) -> bool {
    tables.flow(Table::HalfOpen, &to.reversed(), |reply| reply.answer_seen_by(acknowledgment)) == Some(true)
}

/// Moves a pair whose client has the relay's answer to the established table. The reply's entry goes first: its key is the one that others may
/// contend for. Both go from table to table: copies in between are too large for the BPF stack.
#[inline(never)]
fn promote<T: Tables + FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, to: &Tuple<A>, class: u16) -> Reason {
    let reply_key = to.reversed();
    let entered = tables.flow(Table::HalfOpen, &reply_key, |reply| tables.establish(&reply_key, reply));
    match entered {
        Some(Ok(())) => {}
        None | Some(Err(InsertError::Exists)) => return Reason::FlowHalfOpen,
        Some(Err(InsertError::Full)) => return stay_half_open(tables, key, class),
    }
    let entered = tables.flow(Table::HalfOpen, key, |flow| tables.establish(key, flow));
    if entered != Some(Ok(())) {
        tables.remove(Table::Established, &reply_key);
        return stay_half_open(tables, key, class);
    }
    count_open(tables, key, class);
    tables.remove(Table::HalfOpen, key);
    tables.remove(Table::HalfOpen, &reply_key);
    Reason::FlowPromoted
}

/// What becomes of a flow that the full table of established flows has no place for, by what its class says of flows that no relay can take.
/// The relay has answered, so none can pass on to the server: a flow of a class that says pass goes on as it is, until there is a place or
/// newer ones need its own.
#[inline(never)]
fn stay_half_open<T: Tables + FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, class: u16) -> Reason {
    match tables.class(class).map_or(Fallback::Pass, Class::on_relay_down) {
        Fallback::Pass => {
            tables.flow(Table::HalfOpen, key, Flow::prove);
            Reason::FlowUnpromoted
        }
        Fallback::Block => Reason::FlowUnpromotedBlock,
        Fallback::Reject => Reason::FlowUnpromotedReject,
    }
}

/// Enters a steered flow into the established table. Without a place there it costs a look-up of its socket with each segment.
#[inline(never)]
pub(crate) fn promote_steered<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    class: u16,
    epoch: u32,
    now_s: u32,
) -> Reason {
    if tables.establish(key, &Flow::steered(*key, class, epoch, now_s)).is_err() {
        return Reason::SteerUnpromoted;
    }
    count_open(tables, key, class);
    tables.remove(Table::HalfOpen, key);
    Reason::SteerPromoted
}

/// Counts a flow that has come into the established table where its class limits how many may be open.
#[inline(never)]
fn count_open<T: Tables + FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, class: u16) {
    let limited = tables.class(class).is_some_and(|class| class.open_max() != 0);
    if limited && tables.add_open(key.addresses[0].host()) {
        tables.flow(Table::Established, key, |flow| flow.set_counted(true));
    }
}

/// Why no connection of a class is opened, where it refuses all of them.
#[inline(always)]
fn refusal<T: Tables>(tables: &T, number: u16) -> Option<Reason> {
    match tables.class(number)?.action() {
        Action::Block => Some(Reason::ClassBlock),
        Action::Reject => Some(Reason::ClassReject),
        Action::Pass | Action::Redirect => None,
    }
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
    let mut look_up = |table| answered(tables, table, segment, of_this_host, now_s, |other| *to = *other);
    if let Some((genuine, class)) = look_up(Table::Established) {
        return Outcome::new(if genuine { Reason::ReplyEstablished } else { Reason::ReplyForwarded }, class);
    }
    match look_up(Table::HalfOpen) {
        Some((true, class)) => Outcome::new(Reason::ReplyHalfOpen, class),
        Some((false, class)) => Outcome::new(Reason::ReplyForwarded, class),
        None => Outcome::unclassed(Reason::ReplyNoFlow),
    }
}

/// The flow in `table` that a segment from a relay's port answers: whether it may speak for the relay, then after `rewrite` was called with the
/// tuple that it leaves with; and the class.
#[inline(always)]
fn answered<T: FamilyTables<A>, A: Address>(
    tables: &T,
    table: Table,
    segment: &Segment<A>,
    of_this_host: bool,
    now_s: u32,
    rewrite: impl FnOnce(&Tuple<A>),
) -> Option<(bool, u16)> {
    let flow = tables.flow(table, &segment.tuple, |flow| {
        flow.serves(Direction::Reply, &segment.tuple).then(|| {
            let genuine = of_this_host || !flow.is_own();
            if genuine {
                flow.note(segment.flags, now_s);
                if table == Table::HalfOpen && segment.flags.answers() {
                    flow.note_answer(segment.sequence);
                }
                rewrite(&flow.to);
            }
            (genuine, flow.class)
        })
    });
    flow.flatten()
}
