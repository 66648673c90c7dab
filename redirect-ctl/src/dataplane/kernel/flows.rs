//! The flow tables as user space sees them: listed, looked up, and swept for what is idle, together with the tables that are kept by
//! subscriber.

use std::net::SocketAddr;

use aya::{Ebpf, Pod};
use redirect_common::{
    address::{Address, Host, V4, V6},
    flow::{Direction, Flow, State, TRANSITORY_IDLE_S, Tuple, state},
    maps::names,
};

use super::{
    super::{Collected, Connection, Error, FlowCounts, FlowDelivery, FlowRecord, FlowState, Original},
    Policy,
    batch::Position,
    hosts::{self, Open},
    table::{Batch, Table},
};

/// Address and port in network byte order.
type End<A> = (A, [u8; 2]);
type FlowTable<A> = Table<Tuple<A>, Flow<A>>;
type FlowBatch<A> = Batch<Tuple<A>, Flow<A>>;

/// Both flow tables of one family.
pub(super) struct FamilyFlows<A: Address> {
    half_open: FlowTable<A>,
    established: FlowTable<A>,
}

impl<A: Address> FamilyFlows<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    pub(super) fn original(&self, peer: End<A>, local: End<A>) -> Result<Option<Original>, Error> {
        let answers = Tuple::new([local.0, peer.0], [local.1, peer.1]);
        if let Some(flow) = self.get(&answers)?.filter(|flow| flow.serves(Direction::Reply, &answers)) {
            return Ok(Some(Original { client: end(&flow.to, 1), server: end(&flow.to, 0), class: flow.class }));
        }
        // Of a steered flow, the relay's socket has the tuple that the client sent.
        let sent = answers.reversed();
        let steered = self.get(&sent)?.filter(|flow| flow.is_steered() && flow.serves(Direction::Forward, &sent));
        Ok(steered.map(|flow| Original { client: end(&sent, 0), server: end(&sent, 1), class: flow.class }))
    }

    fn get(&self, key: &Tuple<A>) -> Result<Option<Flow<A>>, Error> {
        match self.established.get(key)? {
            Some(flow) => Ok(Some(flow)),
            None => self.half_open.get(key),
        }
    }

    fn list(&self, records: &mut Vec<FlowRecord>) -> Result<(), Error> {
        let established = self.established.list()?;
        for (table, half_open) in [(&established, false), (&self.half_open.list()?, true)] {
            for (key, flow) in table {
                if !flow.serves(Direction::Forward, key) {
                    continue;
                }
                let steered = flow.is_steered();
                let reply = if steered { Some(flow) } else { table.get(&flow.to.reversed()) };
                let state = match reply {
                    _ if half_open => State::HalfOpen,
                    Some(reply) => state(flow, reply),
                    None => State::Established,
                };
                records.push(FlowRecord {
                    client: end(key, 0),
                    server: end(key, 1),
                    relay: (!steered).then(|| end(&flow.to, 1)),
                    mapped_port: u16::from_be_bytes(flow.to.ports[0]),
                    class: flow.class,
                    state: flow_state(state),
                    delivery: if steered { FlowDelivery::Steer } else { FlowDelivery::Rewrite },
                    created_s: flow.created_s,
                    seen_s: reply.map_or(flow.seen_s, |reply| flow.seen_s.max(reply.seen_s)),
                });
            }
        }
        Ok(())
    }

    /// Removes what is idle of a batch of half-open entries. Each entry ages by itself: the table recycles them anyway.
    fn collect_half_open(&self, batch: &FlowBatch<A>, clock: Clock, counts: &mut FlowCounts) -> Result<usize, Error> {
        let mut removed = 0;
        for (key, flow) in batch {
            let forward = flow.serves(Direction::Forward, key);
            if !forward && !flow.serves(Direction::Reply, key) {
                // The data plane is about to fill it.
                continue;
            }
            if clock.idle_s(flow.seen_s) > TRANSITORY_IDLE_S {
                removed += usize::from(self.half_open.remove(key)?);
            } else if forward {
                counts.half_open += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the idle flows of a batch of established entries, and halves without their other half. Notes those that are unwanted.
    fn collect_established(
        &self,
        batch: &FlowBatch<A>,
        clock: Clock,
        open: &Open,
        counts: &mut FlowCounts,
        policy: Option<&Policy<'_>>,
        unwanted: &mut Vec<Connection>,
    ) -> Result<usize, Error> {
        let mut removed = 0;
        for (key, flow) in batch {
            let forward = flow.serves(Direction::Forward, key);
            let other_key = flow.to.reversed();
            let other = if flow.is_steered() { Some(*flow) } else { self.established.get(&other_key)? };
            let Some(other) = other else {
                // The data plane inserts and removes pairs entry by entry, so a half may be on its way in: it gets time.
                if clock.idle_s(flow.seen_s) > TRANSITORY_IDLE_S {
                    removed += usize::from(self.remove_unchanged(key, flow, open)?);
                }
                continue;
            };
            // Each pair is judged once, at its forward entry.
            if !forward {
                continue;
            }
            if is_unwanted(key, flow, policy)? {
                unwanted.push(connection(key, flow));
            }
            let state = state(flow, &other);
            if clock.idle_s(flow.seen_s.max(other.seen_s)) > state.idle_max_s() {
                // The forward entry first: from then on nothing more goes to the relay.
                if self.remove_unchanged(key, flow, open)? {
                    removed += 1;
                    if !flow.is_steered() {
                        removed += usize::from(self.established.remove(&other_key)?);
                    }
                }
            } else if state != State::Closed {
                counts.established += 1;
                if !flow.is_steered() {
                    *counts.by_relay.entry(end(&flow.to, 1)).or_default() += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Removes an entry, unless a packet has changed it since it was read: then the next sweep judges it. A forward entry that counted as an
    /// open connection does so no longer.
    fn remove_unchanged(&self, key: &Tuple<A>, flow: &Flow<A>, open: &Open) -> Result<bool, Error> {
        if self.established.get(key)? != Some(*flow) || !self.established.remove(key)? {
            return Ok(false);
        }
        if flow.is_counted() {
            open.reap(key.addresses[0].host())?;
        }
        Ok(true)
    }
}

/// Whether the class of an established flow does not want it any more: the data plane has found so, or will with the next segment. The policy is
/// only asked where it has changed.
fn is_unwanted<A: Address>(key: &Tuple<A>, flow: &Flow<A>, policy: Option<&Policy<'_>>) -> Result<bool, Error> {
    match policy {
        Some(policy) if !flow.is_doomed() && flow.epoch() != policy.settings.epoch() => {
            let class = policy.class_of(key.addresses[0].to_ip())?;
            Ok(class.is_some_and(|(number, class)| !class.lets_go_on(number, flow.class)))
        }
        _ => Ok(flow.is_doomed()),
    }
}

fn connection<A: Address>(key: &Tuple<A>, flow: &Flow<A>) -> Connection {
    let tuple = if flow.is_steered() { key } else { &flow.to };
    Connection { local: end(tuple, 1), peer: end(tuple, 0) }
}

/// The packet path's time, as far as idle flows are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now_s: u32,
    /// Since when the clock goes without a gap. Before, it stood still for a while, and flows looked older than they were.
    pub(super) resumed_s: u32,
}

impl Clock {
    /// An entry may have been seen after the time was read.
    fn idle_s(self, seen_s: u32) -> u32 {
        self.now_s.saturating_sub(seen_s.max(self.resumed_s))
    }
}

fn end<A: Address>(tuple: &Tuple<A>, index: usize) -> SocketAddr {
    SocketAddr::new(tuple.addresses[index].to_ip(), u16::from_be_bytes(tuple.ports[index]))
}

const fn flow_state(state: State) -> FlowState {
    match state {
        State::HalfOpen => FlowState::HalfOpen,
        State::Established => FlowState::Established,
        State::Closing => FlowState::Closing,
        State::Closed => FlowState::Closed,
    }
}

/// All flow tables.
pub(super) struct Flows {
    pub(super) v4: FamilyFlows<V4>,
    pub(super) v6: FamilyFlows<V6>,
}

impl Flows {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            v4: FamilyFlows {
                half_open: Table::take(object, names::HALF_OPEN_V4)?,
                established: Table::take(object, names::FLOWS_V4)?,
            },
            v6: FamilyFlows {
                half_open: Table::take(object, names::HALF_OPEN_V6)?,
                established: Table::take(object, names::FLOWS_V6)?,
            },
        })
    }

    pub(super) fn list(&self) -> Result<Vec<FlowRecord>, Error> {
        let mut records = Vec::new();
        self.v4.list(&mut records)?;
        self.v6.list(&mut records)?;
        Ok(records)
    }
}

/// The table that a sweep is in, in the order of the sweep.
#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    HalfOpenV4,
    EstablishedV4,
    HalfOpenV6,
    EstablishedV6,
    Open,
    Locks,
}

impl Stage {
    /// `None` after the last.
    const fn next(self) -> Option<Self> {
        match self {
            Self::HalfOpenV4 => Some(Self::EstablishedV4),
            Self::EstablishedV4 => Some(Self::HalfOpenV6),
            Self::HalfOpenV6 => Some(Self::EstablishedV6),
            Self::EstablishedV6 => Some(Self::Open),
            Self::Open => Some(Self::Locks),
            Self::Locks => None,
        }
    }
}

/// A sweep through all tables that fill up by themselves, a few entries at a time.
pub(super) struct Collector {
    stage: Stage,
    position: Option<Position>,
    counts: FlowCounts,
    open: Open,
    /// The epoch of the policy when the sweep began.
    sweeping: Option<u32>,
    /// And that of the last sweep: no flow is left that has not been judged by it.
    swept: Option<u32>,
}

impl Collector {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            stage: Stage::default(),
            position: None,
            counts: FlowCounts::default(),
            open: Open::take(object)?,
            sweeping: None,
            swept: None,
        })
    }

    /// Connections that a subscriber has open.
    pub(super) fn open(&self, host: Host) -> Result<u32, Error> {
        self.open.of(host)
    }

    pub(super) fn collect(
        &mut self,
        flows: &Flows,
        locks: &Table<Host, u32>,
        policy: &Policy<'_>,
        clock: Clock,
        budget: usize,
    ) -> Result<Collected, Error> {
        let mut unwanted = Vec::new();
        let epoch = policy.settings.epoch();
        self.sweeping.get_or_insert(epoch);
        let policy = (self.swept != Some(epoch)).then_some(policy);
        let (position, counts, open) = (self.position, &mut self.counts, &mut self.open);
        let (examined, removed, next) = match self.stage {
            Stage::HalfOpenV4 => {
                let (batch, next) = flows.v4.half_open.batch(position, budget)?;
                (batch.len(), flows.v4.collect_half_open(&batch, clock, counts)?, next)
            }
            Stage::EstablishedV4 => {
                let (batch, next) = flows.v4.established.batch(position, budget)?;
                (batch.len(), flows.v4.collect_established(&batch, clock, open, counts, policy, &mut unwanted)?, next)
            }
            Stage::HalfOpenV6 => {
                let (batch, next) = flows.v6.half_open.batch(position, budget)?;
                (batch.len(), flows.v6.collect_half_open(&batch, clock, counts)?, next)
            }
            Stage::EstablishedV6 => {
                let (batch, next) = flows.v6.established.batch(position, budget)?;
                (batch.len(), flows.v6.collect_established(&batch, clock, open, counts, policy, &mut unwanted)?, next)
            }
            Stage::Open => {
                let (batch, next) = open.counted.batch(position, budget)?;
                open.settle(&batch)?;
                (batch.len(), 0, next)
            }
            Stage::Locks => {
                let (batch, next) = locks.batch(position, budget)?;
                hosts::remove_expired(locks, &batch, clock.now_s)?;
                (batch.len(), 0, next)
            }
        };
        self.position = next;
        let mut sweep_done = None;
        if next.is_none() {
            self.stage = self.stage.next().unwrap_or_else(|| {
                self.open.end_sweep();
                self.swept = self.sweeping.take();
                sweep_done = Some(std::mem::take(&mut self.counts));
                Stage::default()
            });
        }
        Ok(Collected { examined, removed, unwanted, sweep_done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_idle_for_longer_than_the_clock_goes() {
        let clock = Clock { now_s: 10_000, resumed_s: 9_990 };
        assert_eq!([9_999, 9_990, 100, 10_001].map(|seen_s| clock.idle_s(seen_s)), [1, 10, 10, 0]);
        assert_eq!(Clock { resumed_s: 0, ..clock }.idle_s(100), 9_900);
    }
}
