//! The flow tables as user space sees them: listed, looked up, and swept for what is idle.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfHashMap, Map, MapData},
};
use redirect_common::{
    address::{Address, V4, V6},
    flow::{Direction, Flow, State, TRANSITORY_IDLE_S, Tuple, state},
    maps::names,
};

use super::{
    super::{Collected, Error, FlowCounts, FlowRecord, FlowState, Original},
    batch::{self, Position},
    found, not_loaded, system,
};

/// Entries read in one call while listing.
const LIST_BATCH: usize = 4096;

/// Address and port in network byte order.
type End<A> = (A, [u8; 2]);
/// Entries read at once.
type Batch<A> = Vec<(Tuple<A>, Flow<A>)>;

/// One flow table.
struct Table<A: Address> {
    fd: OwnedFd,
    // Reads need no lock in the kernel; the library wants exclusive access to remove.
    map: Mutex<BpfHashMap<MapData, Tuple<A>, Flow<A>>>,
}

impl<A: Address> Table<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    fn take(object: &mut Ebpf, name: &str) -> Result<Self, Error> {
        let map = object.take_map(name).ok_or_else(|| Error::Load { reason: format!("no map {name}") })?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            return Err(Error::Load { reason: format!("map {name} is no hash") });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| Error::System { what: format!("duplicate the descriptor of {name}"), source })?;
        Ok(Self { fd, map: Mutex::new(BpfHashMap::try_from(map).map_err(|error| not_loaded(&error))?) })
    }

    fn get(&self, key: &Tuple<A>) -> Result<Option<Flow<A>>, Error> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        found(map.get(key, 0)).map_err(|error| system("look a flow up", error))
    }

    /// Whether there was anything to remove.
    fn remove(&self, key: &Tuple<A>) -> Result<bool, Error> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = found(map.remove(key)).map_err(|error| system("remove a flow", error))?;
        Ok(removed.is_some())
    }

    fn batch(&self, position: Option<Position>, count: usize) -> Result<(Batch<A>, Option<Position>), Error> {
        batch::look_up(self.fd.as_fd(), position, count)
            .map_err(|source| Error::System { what: "read the flow table".to_owned(), source })
    }

    fn list(&self) -> Result<BTreeMap<Tuple<A>, Flow<A>>, Error> {
        let mut entries = BTreeMap::new();
        let mut position = None;
        loop {
            let (batch, next) = self.batch(position, LIST_BATCH)?;
            entries.extend(batch);
            match next {
                Some(_) => position = next,
                None => return Ok(entries),
            }
        }
    }
}

/// Both flow tables of one family.
pub(super) struct FamilyFlows<A: Address> {
    half_open: Table<A>,
    established: Table<A>,
}

impl<A: Address> FamilyFlows<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    pub(super) fn original(&self, peer: End<A>, local: End<A>) -> Result<Option<Original>, Error> {
        let key = Tuple::new([local.0, peer.0], [local.1, peer.1]);
        let flow = match self.established.get(&key)? {
            Some(flow) => Some(flow),
            None => self.half_open.get(&key)?,
        };
        let flow = flow.filter(|flow| flow.serves(Direction::Reply, &key));
        Ok(flow.map(|flow| Original { client: end(&flow.to, 1), server: end(&flow.to, 0), class: flow.class }))
    }

    fn list(&self, records: &mut Vec<FlowRecord>) -> Result<(), Error> {
        let established = self.established.list()?;
        for (table, half_open) in [(&established, false), (&self.half_open.list()?, true)] {
            for (key, flow) in table {
                if !flow.serves(Direction::Forward, key) {
                    continue;
                }
                let reply = table.get(&flow.to.reversed());
                let state = match reply {
                    _ if half_open => State::HalfOpen,
                    Some(reply) => state(flow, reply),
                    None => State::Established,
                };
                records.push(FlowRecord {
                    client: end(key, 0),
                    server: end(key, 1),
                    relay: end(&flow.to, 1),
                    mapped_port: u16::from_be_bytes(flow.to.ports[0]),
                    class: flow.class,
                    state: flow_state(state),
                    created_s: flow.created_s,
                    seen_s: reply.map_or(flow.seen_s, |reply| flow.seen_s.max(reply.seen_s)),
                });
            }
        }
        Ok(())
    }

    /// Removes what is idle of a batch of half-open entries. Each entry ages by itself: the table recycles them anyway.
    fn collect_half_open(&self, batch: &Batch<A>, now_s: u32, counts: &mut FlowCounts) -> Result<usize, Error> {
        let mut removed = 0;
        for (key, flow) in batch {
            if idle_s(now_s, flow.seen_s) > TRANSITORY_IDLE_S {
                removed += usize::from(self.half_open.remove(key)?);
            } else if flow.serves(Direction::Forward, key) {
                counts.half_open += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the idle pairs of a batch of established entries, and halves without their other half.
    fn collect_established(&self, batch: &Batch<A>, now_s: u32, counts: &mut FlowCounts) -> Result<usize, Error> {
        let mut removed = 0;
        for (key, flow) in batch {
            let other_key = flow.to.reversed();
            let Some(other) = self.established.get(&other_key)? else {
                // The data plane inserts and removes pairs entry by entry, so a half may be on its way in: it gets time.
                if idle_s(now_s, flow.seen_s) > TRANSITORY_IDLE_S {
                    removed += usize::from(self.established.remove(key)?);
                }
                continue;
            };
            // Each pair is judged once, at its forward entry.
            if !flow.serves(Direction::Forward, key) {
                continue;
            }
            let state = state(flow, &other);
            if idle_s(now_s, flow.seen_s.max(other.seen_s)) > state.idle_max_s() {
                // The forward entry first: from then on nothing more goes to the relay.
                removed += usize::from(self.established.remove(key)?);
                removed += usize::from(self.established.remove(&other_key)?);
            } else if state != State::Closed {
                counts.established += 1;
            }
        }
        Ok(removed)
    }
}

/// An entry may have been seen after `now_s` was read.
const fn idle_s(now_s: u32, seen_s: u32) -> u32 {
    now_s.saturating_sub(seen_s)
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
}

impl Stage {
    /// `None` after the last.
    const fn next(self) -> Option<Self> {
        match self {
            Self::HalfOpenV4 => Some(Self::EstablishedV4),
            Self::EstablishedV4 => Some(Self::HalfOpenV6),
            Self::HalfOpenV6 => Some(Self::EstablishedV6),
            Self::EstablishedV6 => None,
        }
    }
}

/// A sweep through all flow tables, a few entries at a time.
#[derive(Debug, Default)]
pub(super) struct Collector {
    stage: Stage,
    position: Option<Position>,
    counts: FlowCounts,
}

impl Collector {
    pub(super) fn collect(&mut self, flows: &Flows, now_s: u32, budget: usize) -> Result<Collected, Error> {
        let counts = &mut self.counts;
        let (examined, removed, next) = match self.stage {
            Stage::HalfOpenV4 => {
                let (batch, next) = flows.v4.half_open.batch(self.position, budget)?;
                (batch.len(), flows.v4.collect_half_open(&batch, now_s, counts)?, next)
            }
            Stage::EstablishedV4 => {
                let (batch, next) = flows.v4.established.batch(self.position, budget)?;
                (batch.len(), flows.v4.collect_established(&batch, now_s, counts)?, next)
            }
            Stage::HalfOpenV6 => {
                let (batch, next) = flows.v6.half_open.batch(self.position, budget)?;
                (batch.len(), flows.v6.collect_half_open(&batch, now_s, counts)?, next)
            }
            Stage::EstablishedV6 => {
                let (batch, next) = flows.v6.established.batch(self.position, budget)?;
                (batch.len(), flows.v6.collect_established(&batch, now_s, counts)?, next)
            }
        };
        self.position = next;
        let mut sweep_done = None;
        if next.is_none() {
            self.stage = self.stage.next().unwrap_or_else(|| {
                sweep_done = Some(std::mem::take(&mut self.counts));
                Stage::default()
            });
        }
        Ok(Collected { examined, removed, sweep_done })
    }
}
