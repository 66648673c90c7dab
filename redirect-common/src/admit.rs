//! A segment of no flow: the class of its source decides what becomes of it, within the subscriber's limits.

use crate::{
    address::Address,
    flow::{Flow, Tuple},
    handle::{Moment, Outcome, promote_steered},
    parse::Segment,
    policy::{Action, Class, Fallback, OnClassChange, OnDaemonDown, Relay},
    reason::Reason,
    tables::{FamilyTables, Socket, Table, Tables},
};

/// Client ports tried toward the relay before a flow counts as clashing: the client's own and seven others. With a thousand flows of one
/// client to one relay, all eight are taken once in 10^14 times.
pub const PORT_TRIES: u32 = 8;

/// Decides by policy. [`Reason::FlowNew`] stands for a flow that may be opened: [`open_flow`] does it.
#[inline(never)]
pub(crate) fn admit<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    moment: &Moment,
) -> Outcome {
    let number = moment.class;
    let Some(class) = tables.class(number) else { return Outcome::unclassed(Reason::NoClass) };
    let opens = segment.flags.opens();
    let reason = match class.action() {
        Action::Block => Reason::ClassBlock,
        Action::Reject => Reason::ClassReject,
        Action::Pass | Action::Redirect
            if opens && let Some(reason) = limit(tables, &segment.tuple, class, moment.now_s) =>
        {
            reason
        }
        Action::Pass => Reason::ClassPass,
        Action::Redirect if opens => Reason::FlowNew,
        Action::Redirect => join_flow(tables, segment, number, class.on_class_change(), moment),
    };
    Outcome::new(reason, number)
}

/// Why a subscriber may not open this connection, if so.
#[inline(never)]
fn limit<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    class: &Class,
    now_s: u32,
) -> Option<Reason> {
    let host = key.addresses[0].host();
    if tables.locked_until_s(host).is_some_and(|until_s| now_s < until_s) {
        return Some(Reason::Locked);
    }
    // A SYN that is sent again is no other connection.
    if !class.has_limits() || tables.flow(Table::HalfOpen, key, |_| ()).is_some() {
        return None;
    }
    let reason = if class.open_max() != 0 && tables.open(host) >= class.open_max() {
        Reason::OpenLimited
    } else if class.interval_ns() != 0 {
        let clock_ns = tables.now_ns();
        match tables.rate(host, |rate| rate.take(class, clock_ns)) {
            Some(false) => Reason::RateLimited,
            Some(true) | None => return None,
        }
    } else {
        return None;
    };
    if tables.rate(host, |rate| rate.refuse(class, now_s)) == Some(true) {
        tables.lock(host, now_s.saturating_add(class.lock_s()));
    }
    Some(reason)
}

/// A SYN to redirect: the class's pool says which relay, the relay how. `to` becomes what it leaves with.
#[inline(never)]
pub(crate) fn open_flow<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    number: u16,
    moment: &Moment,
    to: &mut Tuple<A>,
) -> Reason {
    let Some(class) = tables.class(number) else { return Reason::NoClass };
    if moment.daemon_down
        && let Some(reason) = without_daemon(class)
    {
        return reason;
    }
    let place = spread(key, 0) as usize;
    let relay_id = A::relay(class, place);
    let relay = tables.relay(relay_id.into()).filter(|relay| !(moment.daemon_down && relay.is_embedded()));
    let fallback = class.on_relay_down();
    let down = match fallback {
        Fallback::Pass => Reason::RelayDownPass,
        Fallback::Block => Reason::RelayDownBlock,
        Fallback::Reject => Reason::RelayDownReject,
    };
    let Some((relay, (address, port))) = relay.and_then(|relay| Some((relay, A::endpoint(relay)?))) else {
        return down;
    };
    if moment.steering && relay.is_steered() {
        enter_steered(tables, key, number, relay_id, moment.now_s);
        return Reason::SteerNew;
    }
    if !relay.is_rewritten() {
        return down;
    }
    // While a port is looked for, `to` is the tuple of the answers.
    *to = Tuple::new([address, key.addresses[0]], [port, key.ports[0]]);
    for attempt in 1..=PORT_TRIES {
        if reserve(tables, to, key, Owner { class: number, own: relay.is_own() }, moment.now_s) {
            *to = to.reversed();
            enter_forward(tables, key, to, number, moment);
            return Reason::FlowNew;
        }
        to.ports[1] = other_port(key, attempt);
    }
    *to = *key;
    match fallback {
        Fallback::Pass => Reason::ClashPass,
        Fallback::Block => Reason::ClashBlock,
        Fallback::Reject => Reason::ClashReject,
    }
}

/// What the class says of flows while the daemon is down, if anything.
#[inline(always)]
const fn without_daemon(class: &Class) -> Option<Reason> {
    match class.on_daemon_down() {
        OnDaemonDown::Keep => None,
        OnDaemonDown::Pass => Some(Reason::DaemonDownPass),
        OnDaemonDown::Block => Some(Reason::DaemonDownBlock),
        OnDaemonDown::Reject => Some(Reason::DaemonDownReject),
    }
}

/// Not inlined, for smaller frames of its callers.
#[inline(never)]
pub(crate) fn daemon_is_down<T: Tables>(tables: &T) -> bool {
    tables.is_daemon_down()
}

/// Enters the entry of a half-open flow that is steered to the relay `relay`, over what an earlier SYN has left there.
#[inline(never)]
fn enter_steered<T: FamilyTables<A>, A: Address>(tables: &T, key: &Tuple<A>, class: u16, relay: u8, now_s: u32) {
    tables.enter(key, true, || Flow::steered(*key, class, relay.into(), now_s));
}

/// Enters the forward entry of a half-open flow that leaves with `to`, likewise.
#[inline(never)]
fn enter_forward<T: FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    to: &Tuple<A>,
    class: u16,
    moment: &Moment,
) {
    tables.enter(key, true, || Flow::forward(*to, class, moment.epoch, moment.now_s));
}

/// Whose the answers of a flow are.
#[derive(Clone, Copy)]
struct Owner {
    class: u16,
    own: bool,
}

/// Takes the tuple of the relay's answers for the flow `key`, unless another flow has it. An earlier SYN of the same flow may have left its entry.
#[inline(never)]
fn reserve<T, A>(tables: &T, reply_key: &Tuple<A>, key: &Tuple<A>, owner: Owner, now_s: u32) -> bool
where
    T: FamilyTables<A>,
    A: Address,
{
    match tables.flow(Table::Established, reply_key, |old| old.answers(key)) {
        Some(false) => return false,
        // The other half of an earlier connection of this very tuple: its forward entry is gone, or we would not be here.
        Some(true) => tables.remove(Table::Established, reply_key),
        None => {}
    }
    let reply = || Flow::reply(key.reversed(), owner.class, owner.own, now_s);
    if tables.enter(reply_key, false, reply) {
        return true;
    }
    let renewed = tables.flow(Table::HalfOpen, reply_key, |old| {
        let ours = old.answers(key);
        if ours {
            *old = reply();
        }
        ours
    });
    renewed == Some(true)
}

/// A segment in mid-stream that no table knows. It may be of a steered flow that lost its entry: the kernel knows by the socket.
#[inline(never)]
fn join_flow<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    segment: &Segment<A>,
    class: u16,
    on_class_change: OnClassChange,
    moment: &Moment,
) -> Reason {
    let Moment { now_s, epoch, steering, .. } = *moment;
    let socket = if steering { tables.socket(&segment.tuple) } else { Socket::None };
    match (socket, on_class_change) {
        (Socket::Connected, _) => promote_steered(tables, &segment.tuple, class, epoch, now_s),
        (Socket::Waiting, _) => Reason::SteerHalfOpen,
        (Socket::None, OnClassChange::Reset)
            if !segment.flags.resets() && !would_pass(tables, &segment.tuple, class, steering) =>
        {
            Reason::NoFlowReject
        }
        (Socket::None, _) => Reason::NoFlow,
    }
}

/// Whether a SYN of this tuple would be let pass because no relay can take it. Then the connection passes as a whole.
#[inline(never)]
fn would_pass<T: Tables + FamilyTables<A>, A: Address>(
    tables: &T,
    key: &Tuple<A>,
    number: u16,
    steering: bool,
) -> bool {
    let Some(class) = tables.class(number) else { return true };
    if class.on_daemon_down() == OnDaemonDown::Pass && daemon_is_down(tables) {
        return true;
    }
    let relay = tables.relay(A::relay(class, spread(key, 0) as usize).into());
    let takes = |relay: &Relay| {
        A::endpoint(relay).is_some()
            && (relay.is_rewritten() || steering && relay.is_steered())
            && !(relay.is_embedded() && daemon_is_down(tables))
    };
    class.on_relay_down() == Fallback::Pass && !relay.is_some_and(takes)
}

/// Another client port, the same for the same flow, so that a retransmitted SYN finds its own reservation.
#[inline(always)]
fn other_port<A: Address>(key: &Tuple<A>, attempt: u32) -> [u8; 2] {
    const FIRST: u32 = 1024;
    // `spread` has 16 bits, so this is the port range scaled, without a division.
    ((FIRST + ((spread(key, attempt) * (65_536 - FIRST)) >> 16)) as u16).to_be_bytes()
}

/// Sixteen bits that differ well between flows and attempts, and are the same for the same ones.
#[inline(always)]
fn spread<A: Address>(key: &Tuple<A>, attempt: u32) -> u32 {
    // Multiplicative hashing; the constant is 2^32 divided by the golden ratio.
    const FACTOR: u32 = 0x9e37_79b9;
    let port = u32::from(u16::from_be_bytes(key.ports[0]));
    let [source, destination] = key.addresses;
    let seed = destination.spread() ^ source.spread().rotate_left(8) ^ port.rotate_left(16) ^ attempt;
    let spread = seed.wrapping_mul(FACTOR);
    (spread ^ (spread >> 15)).wrapping_mul(FACTOR) >> 16
}
