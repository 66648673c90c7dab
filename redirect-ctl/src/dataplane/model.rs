//! The data plane in memory, with faults on demand: tests run the whole daemon on it, and the chaos test makes it fail at random.
//!
//! It is stricter than the kernel: an operation after which a packet could be misrouted (a subscriber whose class is absent, a class whose
//! relay is absent, an attachment twice) panics instead of being carried out, so that a wrong order cannot hide.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use redirect_common::{
    address::Host,
    event::Event,
    parse::Family,
    policy::{Action, Class, Fallback, Relay},
    reason::Reason,
};

use super::{
    Attachment, ClassId, Collected, Counter, Counters, Dataplane, Error, Explanation, FlowCounts, FlowReader,
    FlowRecord, FlowState, Hook, InterfaceCounter, MapMemory, Mark, Mode, Operation, Original, Probe, RelayId,
};

/// A data plane without a kernel. Clones share the state: a test keeps one and gives the other to the daemon.
#[derive(Clone, Default)]
pub struct ModelDataplane {
    state: Arc<Mutex<State>>,
}

/// What the model holds, and the faults that it is told to have.
#[derive(Default)]
pub struct State {
    pub relays: BTreeMap<RelayId, Relay>,
    pub classes: BTreeMap<ClassId, Class>,
    pub subscribers: BTreeMap<IpNet, ClassId>,
    /// What the column that does not count says, where that is something else.
    pub idle: BTreeMap<IpNet, Option<ClassId>>,
    pub interfaces: BTreeMap<String, Attachment>,
    /// Relays, and whether by IPv6, whose sockets flows are steered to.
    pub sockets: BTreeSet<(RelayId, bool)>,
    pub mark: Option<Mark>,
    pub revision: u64,
    pub clock_s: u32,
    pub counters: Vec<Counter>,
    pub interface_counters: Vec<InterfaceCounter>,
    pub memory: Vec<MapMemory>,
    pub flows: Vec<FlowRecord>,
    /// Those that wait to be read.
    pub events: Vec<Event>,
    pub events_lost: u64,
    /// Until when subscribers are locked.
    pub locks: BTreeMap<Host, u32>,
    /// Interfaces that the host has; `None`: every name exists.
    pub existing: Option<BTreeSet<String>>,
    /// Entries that the tables of subscribers hold together; `None`: any number.
    pub subscribers_max: Option<usize>,
    /// Decides for each operation, read or write, whether it fails.
    pub fault: Option<Fault>,
    /// Every operation that was carried out, in order.
    pub log: Vec<Operation>,
    /// How often all subscribers were read.
    pub full_reads: u64,
}

/// Tells by the name of an operation whether it fails.
pub type Fault = Box<dyn FnMut(&str) -> bool + Send>;

impl ModelDataplane {
    /// A view into the state, for a test to look at and to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already; the others go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, what: &str) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.state();
        let fails = state.fault.as_mut().is_some_and(|fault| fault(what));
        if fails { Err(Error::Injected { what: what.to_owned() }) } else { Ok(state) }
    }
}

impl State {
    /// Panics where a packet could be misrouted.
    #[track_caller]
    pub fn check(&self) {
        for (id, class) in &self.classes {
            let absent = class.relays().find(|relay| !self.relays.contains_key(&RelayId::from(*relay)));
            assert_eq!(absent, None, "class {id} points at an absent relay");
        }
        for (prefix, class) in &self.subscribers {
            assert!(self.classes.contains_key(class), "subscriber {prefix} points at absent class {class}");
        }
    }

    /// Entries of the tables of subscribers.
    pub fn held(&self) -> usize {
        self.subscribers.len() + self.idle.keys().filter(|prefix| !self.subscribers.contains_key(prefix)).count()
    }

    fn make_room(&self, prefix: &IpNet) -> Result<(), Error> {
        let is_there = self.subscribers.contains_key(prefix) || self.idle.contains_key(prefix);
        if !is_there && self.subscribers_max.is_some_and(|max| self.held() >= max) {
            return Err(Error::Full { table: "the model", key: "dataplane.subscribers_max" });
        }
        Ok(())
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::SetRelay { id, relay } => {
                self.relays.insert(*id, *relay);
            }
            Operation::ClearRelay { id } => {
                assert!(
                    !self.classes.values().any(|class| class.relays().any(|relay| RelayId::from(relay) == *id)),
                    "relay {id} is cleared under a class"
                );
                self.relays.remove(id);
            }
            Operation::SetClass { id, class } => {
                let absent = class.relays().find(|relay| !self.relays.contains_key(&RelayId::from(*relay)));
                assert_eq!(absent, None, "class {id} before its relay");
                self.classes.insert(*id, *class);
            }
            Operation::ClearClass { id } => {
                // At a million subscribers this scan is slow, and only the model does it.
                assert!(
                    !self.subscribers.values().chain(self.idle.values().flatten()).any(|class| class == id),
                    "class {id} is cleared under a subscriber"
                );
                self.classes.remove(id);
            }
            Operation::SetSubscriber { prefix, class } => {
                assert!(self.classes.contains_key(class), "subscriber {prefix} before its class {class}");
                self.make_room(prefix)?;
                self.subscribers.insert(*prefix, *class);
                self.idle.remove(prefix);
            }
            Operation::RemoveSubscriber { prefix } => {
                self.subscribers.remove(prefix);
                self.idle.remove(prefix);
            }
            Operation::StageSubscribers(changes) => {
                for (prefix, class) in changes {
                    self.make_room(prefix)?;
                    if self.subscribers.get(prefix).copied() == *class {
                        self.idle.remove(prefix);
                    } else {
                        self.idle.insert(*prefix, *class);
                    }
                }
            }
            Operation::SwitchSubscribers => {
                for (prefix, class) in &mut self.idle {
                    *class = match class.take() {
                        Some(class) => self.subscribers.insert(*prefix, class),
                        None => self.subscribers.remove(prefix),
                    };
                }
            }
            Operation::SettleSubscribers(changes) => {
                for (prefix, class) in changes {
                    assert_eq!(self.subscribers.get(prefix), class.as_ref(), "{prefix} is settled before it holds");
                    self.idle.remove(prefix);
                }
            }
            Operation::Attach { name, role, hook } => {
                if self.existing.as_ref().is_some_and(|existing| !existing.contains(name)) {
                    return Err(Error::NoSuchInterface { name: name.clone() });
                }
                let mode = if *hook == Hook::Xdp { Mode::Xdp } else { Mode::Tcx };
                let before = self
                    .interfaces
                    .insert(name.clone(), Attachment { role: *role, hook: *hook, mode, restart_safe: true });
                assert!(before.is_none(), "{name} is attached twice");
            }
            Operation::Detach { name } => {
                assert!(self.interfaces.remove(name).is_some(), "{name} is detached without being attached");
            }
            Operation::SetRevision(revision) => self.revision = *revision,
        }
        self.log.push(operation.clone());
        Ok(())
    }
}

impl Dataplane for ModelDataplane {
    fn relays(&self) -> Result<BTreeMap<RelayId, Relay>, Error> {
        Ok(self.attempt("read relays")?.relays.clone())
    }

    fn classes(&self) -> Result<BTreeMap<ClassId, Class>, Error> {
        Ok(self.attempt("read classes")?.classes.clone())
    }

    fn subscribers(&self) -> Result<BTreeMap<IpNet, ClassId>, Error> {
        let mut state = self.attempt("read subscribers")?;
        state.full_reads += 1;
        let mut subscribers = state.subscribers.clone();
        subscribers.extend(state.idle.keys().map(|prefix| (*prefix, 0)));
        Ok(subscribers)
    }

    fn subscriber(&self, prefix: &IpNet) -> Result<Option<ClassId>, Error> {
        let state = self.attempt("read subscriber")?;
        Ok(if state.idle.contains_key(prefix) { Some(0) } else { state.subscribers.get(prefix).copied() })
    }

    fn interfaces(&self) -> BTreeMap<String, Attachment> {
        self.state().interfaces.clone()
    }

    fn revision(&self) -> Result<u64, Error> {
        Ok(self.attempt("read revision")?.revision)
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), Error> {
        self.attempt(&operation.to_string())?.apply(operation)
    }

    fn set_socket(&mut self, relay: RelayId, family: Family, _socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.attempt("set socket")?.sockets.insert((relay, family == Family::V6));
        Ok(())
    }

    fn clear_socket(&mut self, relay: RelayId, family: Family) -> Result<(), Error> {
        self.attempt("clear socket")?.sockets.remove(&(relay, family == Family::V6));
        Ok(())
    }

    fn set_steering(&mut self, mark: Option<Mark>) -> Result<(), Error> {
        self.attempt("set steering")?.mark = mark;
        Ok(())
    }

    fn tick(&mut self, now_s: u32) -> Result<(), Error> {
        self.attempt("tick")?.clock_s = now_s;
        Ok(())
    }

    /// One call is one sweep; a flow goes when it was silent for as long as the design says.
    fn collect(&mut self, now_s: u32, budget: usize) -> Result<Collected, Error> {
        let mut state = self.attempt("collect")?;
        let before = state.flows.len();
        state.flows.retain(|flow| {
            let idle_max_s = match flow.state {
                FlowState::HalfOpen | FlowState::Closing => 240,
                FlowState::Established => 7_440,
                FlowState::Closed => 10,
            };
            now_s.saturating_sub(flow.seen_s) < idle_max_s
        });
        let mut counts = FlowCounts::default();
        for flow in &state.flows {
            match flow.state {
                FlowState::HalfOpen => counts.half_open += 1,
                FlowState::Closed => {}
                FlowState::Established | FlowState::Closing => {
                    counts.established += 1;
                    if let Some(relay) = flow.relay {
                        *counts.by_relay.entry(relay).or_default() += 1;
                    }
                }
            }
        }
        Ok(Collected {
            examined: before.min(budget),
            removed: before - state.flows.len(),
            unwanted: Vec::new(),
            sweep_done: Some(counts),
        })
    }

    fn counters(&self) -> Result<Counters, Error> {
        let state = self.attempt("read counters")?;
        Ok(Counters { classes: state.counters.clone(), interfaces: state.interface_counters.clone() })
    }

    /// Knows subscribers, classes and relays; neither flows nor limits, and no lock stops anybody.
    fn explain(&self, probe: &Probe) -> Result<Explanation, Error> {
        let state = self.attempt("explain")?;
        let within = state.subscribers.iter().filter(|(prefix, _)| prefix.contains(&probe.client.ip()));
        let subscriber = within.max_by_key(|(prefix, _)| prefix.prefix_len());
        let class = subscriber.and_then(|(_, subscriber)| state.classes.get(subscriber));
        let chosen = class.map_or(0, |class| match probe.client {
            SocketAddr::V4(_) => class.relay_ipv4(0),
            SocketAddr::V6(_) => class.relay_ipv6(0),
        });
        let endpoint = state.relays.get(&chosen.into()).and_then(|relay| match probe.client {
            SocketAddr::V4(_) => relay.ipv4().map(|(ip, port)| SocketAddr::from((ip, u16::from_be_bytes(port)))),
            SocketAddr::V6(_) => relay.ipv6().map(|(ip, port)| SocketAddr::from((ip, u16::from_be_bytes(port)))),
        });
        let reason = match class.map(|class| (class.action(), class.on_relay_down())) {
            None => Reason::NoClass,
            Some((Action::Pass, _)) => Reason::ClassPass,
            Some((Action::Block, _)) => Reason::ClassBlock,
            Some((Action::Reject, _)) => Reason::ClassReject,
            Some((Action::Redirect, _)) if endpoint.is_some() => Reason::FlowNew,
            Some((Action::Redirect, Fallback::Pass)) => Reason::RelayDownPass,
            Some((Action::Redirect, Fallback::Block)) => Reason::RelayDownBlock,
            Some((Action::Redirect, Fallback::Reject)) => Reason::RelayDownReject,
        };
        let interface = match &probe.interface {
            Some(name) => state.interfaces.get_key_value(name),
            None => state.interfaces.first_key_value(),
        };
        Ok(Explanation {
            reason,
            class: subscriber.map_or(0, |(_, class)| *class),
            relay: if reason == Reason::FlowNew { chosen.into() } else { 0 },
            mapped_port: probe.client.port(),
            endpoint: endpoint.unwrap_or(probe.server),
            subscriber: subscriber.map(|(prefix, class)| (*prefix, *class)),
            open: 0,
            locked_until_s: state.locks.get(&Host::from(probe.client.ip())).copied(),
            interface: interface.map(|(name, attachment)| (name.clone(), attachment.mode)),
            // It has no programs.
            program_tag: 0,
            revision: state.revision,
        })
    }

    fn memory(&self) -> Result<Vec<MapMemory>, Error> {
        Ok(self.attempt("read memory")?.memory.clone())
    }

    fn flows(&self) -> Result<Vec<FlowRecord>, Error> {
        Ok(self.attempt("read flows")?.flows.clone())
    }

    fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    fn events_lost(&self) -> Result<u64, Error> {
        Ok(self.attempt("read lost events")?.events_lost)
    }

    fn locks(&self) -> Result<BTreeMap<Host, u32>, Error> {
        Ok(self.attempt("read locks")?.locks.clone())
    }

    fn set_lock(&mut self, host: Host, until_s: u32) -> Result<(), Error> {
        self.attempt("set lock")?.locks.insert(host, until_s);
        Ok(())
    }

    fn remove_lock(&mut self, host: Host) -> Result<Option<u32>, Error> {
        Ok(self.attempt("remove lock")?.locks.remove(&host))
    }

    fn reader(&self) -> Arc<dyn FlowReader> {
        Arc::new(self.clone())
    }
}

impl FlowReader for ModelDataplane {
    fn original(&self, peer: SocketAddr, local: SocketAddr) -> Result<Option<Original>, Error> {
        let state = self.attempt("read flow").map_err(|error| Error::System {
            what: "read the flow table".to_owned(),
            source: io::Error::other(error.to_string()),
        })?;
        // The relay sees the client's address with the mapped port.
        let by_tuple: HashMap<_, _> = state
            .flows
            .iter()
            .map(|flow| {
                ((SocketAddr::new(flow.client.ip(), flow.mapped_port), flow.relay.unwrap_or(flow.server)), flow)
            })
            .collect();
        Ok(by_tuple.get(&(peer, local)).map(|flow| Original {
            client: flow.client,
            server: flow.server,
            class: flow.class,
        }))
    }
}
