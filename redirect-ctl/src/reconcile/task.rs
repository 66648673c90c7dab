//! The only owner of the data plane: carries out plans, keeps the packet path's clock, collects idle flows, answers questions.
//!
//! It runs on a thread of its own, since every call into the kernel blocks. Others hold a [`Handle`]: they may ask, wait for a revision,
//! and say how far the data plane is to go, its [`Stage`]; nobody else touches a map.
//!
//! - A change reads and writes the keys that it touched. After any error the next attempt compares everything, after a wait that doubles;
//!   until then changes gather in the store.
//! - An interface that refuses (it may not exist yet) is tried again by itself and holds nothing else up.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use redirect_common::{
    address::Host,
    policy::{self, POOL_SLOTS},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    delivery,
    event::{self, EventCounts, EventRecord},
    keeper::{HostStatus, Keeper},
    plan::{Actual, Desired, Order, plan},
    pool::pool,
};
use crate::{
    dataplane::{
        self, ClassId, Counters, Dataplane, Explanation, FlowCounts, FlowRecord, MapMemory, Mode, Operation, Probe,
        RelayId,
    },
    desired::{Class, Relay, RelayStatus, Tables},
    health::Health,
    host, limits,
    metrics::meters::{METERS, observe, timed},
    store::{self, Scope, Store, Subscribers},
};

/// How far the data plane goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// No interface is attached yet but those of a daemon before this one; the embedded relay does not listen.
    #[default]
    Prepared,
    Attached,
    /// As before the start: the embedded relay is about to go, and what redirects goes on without a daemon.
    Leaving,
    /// Interfaces stay attached and flows go on, but the pools are empty: a new flow finds no relay, and the class decides.
    Draining,
    /// No interface is attached any more.
    Detached,
}

impl Stage {
    pub(super) const fn attaches(self) -> bool {
        matches!(self, Self::Attached | Self::Leaving | Self::Draining)
    }

    /// Whether a relay may get new flows.
    const fn takes_flows(self, embedded: bool) -> bool {
        match self {
            Self::Attached => true,
            Self::Prepared | Self::Leaving => !embedded,
            Self::Draining | Self::Detached => false,
        }
    }
}

/// What the reconciler knows about the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The revision that the kernel holds; 0 before the first full comparison.
    pub applied: u64,
    /// Why the kernel does not hold the newest revision.
    pub error: Option<String>,
    /// Why the packet path's clock stands still.
    pub clock_error: Option<String>,
    /// Why idle flows are not collected.
    pub collect_error: Option<String>,
    pub interfaces: BTreeMap<String, InterfaceStatus>,
    /// The stage of the last comparison that succeeded.
    pub stage: Stage,
    /// As of the last second.
    pub events: EventCounts,
    /// As of the last sweep.
    pub flows: FlowCounts,
    /// Idle flows removed since the start.
    pub flows_collected: u64,
    /// Comparisons of everything since the start.
    pub full_syncs: u64,
    pub host: HostStatus,
    /// Programs would stay at work if the daemon ended now.
    pub outlives: bool,
}

impl Observed {
    /// Everything that is wrong with the data plane, in one line.
    pub fn fault(&self) -> Option<String> {
        let faults: Vec<_> = [&self.error, &self.clock_error, &self.collect_error, &self.host.error]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

/// Whether an interface carries our programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStatus {
    pub mode: Option<Mode>,
    /// The programs stay where they are while no daemon runs.
    pub restart_safe: bool,
    pub error: Option<String>,
}

/// The reconciler has ended, or the data plane refused to answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the reconciler has stopped")]
    Stopped,
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
}

/// What the kernel lacks of what the store wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Of the store.
    pub revision: u64,
    /// That the kernel says it holds.
    pub applied: u64,
    /// What would be done about it.
    pub operations: Vec<Operation>,
}

/// Where an answer is wanted.
type Reply<T> = oneshot::Sender<Result<T, dataplane::Error>>;

enum Question {
    Flows(Reply<Vec<FlowRecord>>),
    Counters(Reply<Counters>),
    Locks(Reply<BTreeMap<Host, u32>>),
    SetLock(Host, u32, Reply<()>),
    RemoveLock(Host, Reply<Option<u32>>),
    Explain(Probe, Reply<Explanation>),
    Memory(Reply<Vec<MapMemory>>),
    Alive(Reply<()>),
    Drift(Reply<Drift>),
    Reconcile(Reply<Drift>),
}

/// The way to the reconciler. Clones share it.
#[derive(Clone)]
pub struct Handle {
    questions: mpsc::Sender<Question>,
    observed: watch::Receiver<Observed>,
    stage: watch::Sender<Stage>,
    events: broadcast::WeakSender<EventRecord>,
}

impl Handle {
    pub async fn flows(&self) -> Result<Vec<FlowRecord>, AskError> {
        self.ask(Question::Flows).await
    }

    pub async fn counters(&self) -> Result<Counters, AskError> {
        self.ask(Question::Counters).await
    }

    /// As [`Dataplane::explain`].
    pub async fn explain(&self, probe: Probe) -> Result<Explanation, AskError> {
        self.ask(|reply| Question::Explain(probe, reply)).await
    }

    /// As [`Dataplane::memory`].
    pub async fn memory(&self) -> Result<Vec<MapMemory>, AskError> {
        self.ask(Question::Memory).await
    }

    /// Waits until the reconciler has time; `false` where it has ended.
    pub async fn answers(&self) -> bool {
        self.ask(Question::Alive).await.is_ok()
    }

    /// Compares everything, and changes nothing.
    pub async fn drift(&self) -> Result<Drift, AskError> {
        self.ask(Question::Drift).await
    }

    /// Compares everything and mends it, whatever was to be waited for; what was done, and the revision that the kernel holds afterwards.
    pub async fn reconcile(&self) -> Result<Drift, AskError> {
        self.ask(Question::Reconcile).await
    }

    /// Events from now on, until the reconciler ends. Whoever is slow loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<EventRecord> {
        // Without a sender, a channel that is closed already.
        self.events.upgrade().unwrap_or_else(|| broadcast::Sender::new(1)).subscribe()
    }

    /// As [`Dataplane::locks`].
    pub async fn locks(&self) -> Result<BTreeMap<Host, u32>, AskError> {
        self.ask(Question::Locks).await
    }

    /// As [`Dataplane::set_lock`].
    pub async fn set_lock(&self, host: Host, until_s: u32) -> Result<(), AskError> {
        self.ask(|reply| Question::SetLock(host, until_s, reply)).await
    }

    /// As [`Dataplane::remove_lock`].
    pub async fn remove_lock(&self, host: Host) -> Result<Option<u32>, AskError> {
        self.ask(|reply| Question::RemoveLock(host, reply)).await
    }

    /// What [`Handle::observed`] tells, with a notice of every change.
    pub fn watch(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    pub fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Whether the kernel holds `revision`, at the latest after `wait`.
    pub async fn applied(&self, revision: u64, wait: Duration) -> bool {
        let mut observed = self.observed.clone();
        timeout(wait, observed.wait_for(|observed| observed.applied >= revision)).await.is_ok_and(|found| found.is_ok())
    }

    /// The data plane begins as [`Stage::Prepared`].
    pub fn set_stage(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    /// Whether the data plane is at `stage`, at the latest after `wait`.
    pub async fn reached(&self, stage: Stage, wait: Duration) -> bool {
        let mut observed = self.observed.clone();
        timeout(wait, observed.wait_for(|observed| observed.stage == stage)).await.is_ok_and(|found| found.is_ok())
    }

    /// Returns once `count` interfaces are attached or have said why not, at the latest after `wait`.
    pub async fn attempted(&self, count: usize, wait: Duration) {
        let mut observed = self.observed.clone();
        let _ = timeout(wait, observed.wait_for(|observed| observed.interfaces.len() >= count)).await;
    }

    /// Returns once no interface is attached, at the latest after `wait`; `false` if some still are.
    pub async fn detached(&self, wait: Duration) -> bool {
        let mut observed = self.observed.clone();
        let none = |observed: &Observed| observed.interfaces.values().all(|status| status.mode.is_none());
        timeout(wait, observed.wait_for(none)).await.is_ok_and(|found| found.is_ok())
    }

    async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Question) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(question(reply)).await.map_err(|_| AskError::Stopped)?;
        Ok(answer.await.map_err(|_| AskError::Stopped)??)
    }
}

/// The task. [`Reconciler::run`] needs a thread of its own.
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    store: Store,
    questions: mpsc::Receiver<Question>,
    observed: watch::Sender<Observed>,
    stage: watch::Receiver<Stage>,
    events: broadcast::Sender<EventRecord>,
    events_read: u64,
    health: watch::Receiver<Health>,
    /// Entries that a step of the collection looks at.
    collect_budget: usize,
    full_due: Instant,
    /// Set after an error: the next attempt compares everything, not before `at`.
    retry: Option<Retry>,
    order: Order,
    interface_retries: BTreeMap<String, InterfaceRetry>,
    ticked: Instant,
    /// Dropped after the data plane: programs are detached before what they rely on goes.
    keeper: Option<Keeper>,
}

#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    wait: Duration,
}

impl Retry {
    /// The wait doubles up to `most`.
    fn after(before: Option<Self>, most: Duration) -> Self {
        let wait = before.map_or(limits::RETRY_MIN, |before| (before.wait * 2).min(most));
        Self { at: Instant::now() + wait, wait }
    }
}

struct InterfaceRetry {
    retry: Retry,
    error: String,
}

/// Why an attempt ended early.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("read the kernel's state: {0}")]
    Read(#[from] dataplane::Error),
    #[error("{operation}: {source}")]
    Apply { operation: String, source: dataplane::Error },
}

impl<D: Dataplane> Reconciler<D> {
    /// `flows_max` is the capacity of the flow table of one family; it decides the pace of the collection. Without a host nothing but the data
    /// plane is changed.
    pub fn new(
        dataplane: D,
        host: Option<host::Host>,
        store: Store,
        health: watch::Receiver<Health>,
        flows_max: u32,
    ) -> (Self, Handle) {
        // What cannot be asked is asked again by the first comparison.
        let steering = dataplane.is_steering().unwrap_or(false);
        let (question_sender, questions) = mpsc::channel(limits::RECONCILE_QUEUE_MAX);
        let (observed, observed_receiver) = watch::channel(Observed::default());
        let (stage_sender, stage) = watch::channel(Stage::default());
        let events = broadcast::Sender::new(limits::EVENTS_QUEUE_MAX);
        let steps = limits::COLLECT_SWEEP.as_millis() / limits::COLLECT_INTERVAL.as_millis();
        // Two families, two directions.
        let entries = u128::from(flows_max) * 4 / steps;
        let (least, most) = limits::COLLECT_ENTRIES;
        let handle = Handle {
            questions: question_sender,
            observed: observed_receiver,
            stage: stage_sender,
            events: events.downgrade(),
        };
        let reconciler = Self {
            dataplane,
            store,
            questions,
            observed,
            stage,
            events,
            events_read: 0,
            health,
            collect_budget: usize::try_from(entries).unwrap_or(most).clamp(least, most),
            full_due: Instant::now(),
            retry: None,
            order: Order::default(),
            interface_retries: BTreeMap::new(),
            ticked: Instant::now(),
            keeper: host.map(|host| Keeper::new(host, steering)),
        };
        (reconciler, handle)
    }

    /// Compares everything once, so that a caller can refuse to start on a data plane that does not take the configuration.
    pub fn first_sync(&mut self) -> Result<(), String> {
        // Without a clock every flow would look as old as the machine.
        self.tick();
        self.sync();
        // The host may need others, such as a relay that starts later.
        let kernel = Observed { host: HostStatus::default(), ..self.observed.borrow().clone() };
        kernel.fault().map_or(Ok(()), Err)?;
        // The tables hold what the programs need.
        self.dataplane.take_over().map_err(|error| error.to_string())
    }

    /// Runs until `shutdown`. Attachments that are left are removed when the data plane is dropped.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut revisions = self.store.watch();
        let mut stage = self.stage.clone();
        let mut health = self.health.clone();
        let mut ticks = interval(limits::TICK);
        let mut collections = interval(limits::COLLECT_INTERVAL);
        let mut readings = interval(limits::EVENTS_INTERVAL);
        for timer in [&mut ticks, &mut collections, &mut readings] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let due = self.next_due();
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(question) = self.questions.recv() => self.answer(question),
                changed = revisions.changed() => {
                    // The store ended first: nothing more will be wanted.
                    if changed.is_err() {
                        return;
                    }
                    self.sync_unless_waiting();
                }
                Ok(()) = stage.changed() => self.sync_unless_waiting(),
                Ok(()) = health.changed() => self.sync_unless_waiting(),
                _ = ticks.tick() => {
                    self.tick();
                    if let Some(keeper) = &mut self.keeper {
                        keeper.tick(monotonic_s());
                    }
                    if self.interfaces_differ() || self.keeper.as_ref().is_some_and(Keeper::is_due) {
                        self.sync_unless_waiting();
                    }
                }
                _ = collections.tick() => self.collect(),
                _ = readings.tick() => self.read_events(),
                () = sleep_until(due.into()) => self.sync(),
            }
        }
    }

    /// When the next attempt is due that no event brings about.
    fn next_due(&self) -> Instant {
        if let Some(retry) = self.retry {
            return retry.at;
        }
        self.interface_retries.values().map(|interface| interface.retry.at).fold(self.full_due, Instant::min)
    }

    fn sync_unless_waiting(&mut self) {
        if self.retry.is_none_or(|retry| retry.at <= Instant::now()) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let scope = if self.retry.is_some() || self.full_due <= Instant::now() { Scope::All } else { Scope::Touched };
        let result = match self.attempt(scope) {
            Err(SyncError::Apply { source: dataplane::Error::Full { .. }, .. }) => {
                // Changes that came one after the other fit, but put together the new ones came before the old ones were gone.
                self.order = Order::RemovalsFirst;
                self.attempt(Scope::All)
            }
            other => other,
        };
        self.order = Order::AtOnce;
        match result {
            Ok(Synced { revision, stage, full }) => {
                if self.retry.take().is_some() {
                    tracing::info!(revision, "the kernel follows the store again");
                }
                if full {
                    self.full_due = Instant::now() + limits::FULL_SYNC_INTERVAL;
                }
                self.store.set_applied(revision);
                self.publish(|observed| {
                    observed.applied = revision;
                    observed.stage = stage;
                    observed.error = None;
                    observed.full_syncs += u64::from(full);
                });
            }
            Err(error) => {
                let error = error.to_string();
                self.retry = Some(Retry::after(self.retry, limits::RETRY_MAX));
                if self.observed.borrow().error.as_ref() != Some(&error) {
                    tracing::error!(error, "the kernel does not follow the store; trying again");
                }
                self.publish(|observed| observed.error = Some(error));
            }
        }
    }

    fn publish(&mut self, change: impl FnOnce(&mut Observed)) {
        let interfaces = self.interface_statuses();
        let outlives = self.dataplane.outlives();
        let host = self.keeper.as_ref().map(Keeper::status).unwrap_or_default();
        self.observed.send_if_modified(|observed| {
            let before = observed.clone();
            change(observed);
            observed.interfaces = interfaces;
            observed.outlives = outlives;
            observed.host = host;
            *observed != before
        });
    }

    fn interface_statuses(&self) -> BTreeMap<String, InterfaceStatus> {
        let attached = self.dataplane.interfaces();
        let mut statuses: BTreeMap<String, InterfaceStatus> = attached
            .into_iter()
            .map(|(name, attachment)| {
                let restart_safe = attachment.restart_safe;
                (name, InterfaceStatus { mode: Some(attachment.mode), restart_safe, error: None })
            })
            .collect();
        for (name, interface) in &self.interface_retries {
            statuses.entry(name.clone()).or_default().error = Some(interface.error.clone());
        }
        statuses
    }

    fn attempt(&mut self, scope: Scope) -> Result<Synced, SyncError> {
        let started = Instant::now();
        let stage = *self.stage.borrow();
        let view = self.store.view(scope)?;
        let tables = &view.snapshot.tables;
        if let Some(keeper) = &mut self.keeper {
            keeper.prepare(tables, stage, &mut self.dataplane);
        }
        let attached = self.dataplane.interfaces();
        let interfaces = self.wanted_interfaces(tables, &attached);
        let full = matches!(view.subscribers, Subscribers::All(_));
        let (subscribers, actual_subscribers) = match view.subscribers {
            Subscribers::All(all) => (all, self.dataplane.subscribers()?),
            Subscribers::Touched(touched) => {
                let mut actual = BTreeMap::new();
                for prefix in touched.keys() {
                    if let Some(subscriber) = self.dataplane.subscriber(prefix)? {
                        actual.insert(*prefix, subscriber);
                    }
                }
                (touched.into_iter().filter_map(|(prefix, class)| Some((prefix, class?))).collect(), actual)
            }
        };
        let (relays, classes) = self.policy(tables, stage);
        let desired = Desired { revision: view.snapshot.revision, relays, classes, subscribers, interfaces };
        let actual = Actual {
            revision: self.dataplane.revision()?,
            relays: self.dataplane.relays()?,
            classes: self.dataplane.classes()?,
            subscribers: actual_subscribers,
            interfaces: attached,
        };
        let operations = plan(&desired, &actual, self.order);
        let begun = (!operations.is_empty()).then(Instant::now);
        let mut operations = operations.iter().peekable();
        while let Some(operation) = operations.next() {
            if self.ticked.elapsed() >= limits::TICK {
                // A million writes take seconds; the packet path's clock must not stand still meanwhile.
                self.tick();
                self.read_events();
            }
            tracing::debug!(%operation, "apply");
            match (self.dataplane.apply(operation), interface_of(operation)) {
                (Ok(()), None) => {}
                (Ok(()), Some(name)) => self.interface_did(operation, name),
                (Err(source), None) => return Err(SyncError::Apply { operation: operation.to_string(), source }),
                (Err(source), Some(name)) => {
                    self.interface_failed(name, &source);
                    // Without the detach, the attach that follows it would meet its own predecessor.
                    operations.next_if(|next| interface_of(next) == Some(name));
                }
            }
        }
        if let Some(begun) = begun {
            observe(&METERS.map_update_time, begun.elapsed());
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.tidy(tables, &mut self.dataplane);
        }
        // Whoever was due and not part of the plan is as it should be.
        self.interface_retries.retain(|_, interface| interface.retry.at > started);
        Ok(Synced { revision: desired.revision, stage, full })
    }

    /// What the kernel should hold of relays and classes.
    fn policy(
        &self,
        tables: &Tables,
        stage: Stage,
    ) -> (BTreeMap<RelayId, policy::Relay>, BTreeMap<ClassId, policy::Class>) {
        let known = tables.relays.values().filter(|relay| delivery::is_known(relay));
        let relays = known
            .map(|relay| (relay.id, delivery::kernel_relay(relay, |endpoint| self.can_steer(relay, endpoint))))
            .collect();
        let health = self.health.borrow();
        let takes_flows = |relay: &Relay, endpoint| {
            stage.takes_flows(delivery::is_embedded(relay))
                && relay.spec.status == RelayStatus::Enabled
                && delivery::takes_flows(relay, endpoint, |endpoint| self.can_steer(relay, endpoint))
                && !health.is_down(relay.id, endpoint)
        };
        let classes = tables.classes.values();
        (relays, classes.map(|class| (class.id, kernel_class(class, tables, takes_flows))).collect())
    }

    /// What a comparison of everything would do now. Interfaces that refuse, and are left alone for a while, are among it.
    fn drift(&self) -> Result<Drift, dataplane::Error> {
        let stage = *self.stage.borrow();
        let (snapshot, subscribers) = self.store.peek().map_err(|error| dataplane::Error::System {
            what: "read the store".to_owned(),
            source: std::io::Error::other(error),
        })?;
        let (relays, classes) = self.policy(&snapshot.tables, stage);
        let attached = self.dataplane.interfaces();
        let interfaces = if stage == Stage::Prepared {
            attached.iter().map(|(name, found)| (name.clone(), (found.role, found.hook))).collect()
        } else {
            let wanted = snapshot.tables.interfaces.values().filter(|_| stage.attaches());
            wanted.map(|interface| (interface.name.as_str().to_owned(), (interface.role, interface.hook))).collect()
        };
        let desired = Desired { revision: snapshot.revision, relays, classes, subscribers, interfaces };
        let actual = Actual {
            revision: self.dataplane.revision()?,
            relays: self.dataplane.relays()?,
            classes: self.dataplane.classes()?,
            subscribers: self.dataplane.subscribers()?,
            interfaces: attached,
        };
        // An operation for each subscriber, which people can read; the columns of many at once say nothing to them.
        let operations = plan(&desired, &actual, Order::RemovalsFirst);
        Ok(Drift { revision: desired.revision, applied: actual.revision, operations })
    }

    /// A comparison of everything, at once.
    fn reconcile(&mut self) -> Result<Drift, dataplane::Error> {
        let found = self.drift()?;
        self.full_due = Instant::now();
        self.interface_retries.clear();
        self.sync();
        Ok(Drift { applied: self.observed.borrow().applied, ..found })
    }

    fn can_steer(&self, relay: &Relay, endpoint: SocketAddr) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| keeper.is_ready(relay.id, endpoint))
    }

    /// The interfaces that a plan is to deal with: without those that refused a moment ago.
    fn wanted_interfaces(
        &mut self,
        tables: &Tables,
        attached: &BTreeMap<String, dataplane::Attachment>,
    ) -> BTreeMap<String, (dataplane::Role, dataplane::Hook)> {
        if *self.stage.borrow() == Stage::Prepared {
            let left = attached.iter().map(|(name, found)| (name.clone(), (found.role, found.hook)));
            return left.collect();
        }
        let attach = self.stage.borrow().attaches();
        let wanted: BTreeMap<_, _> = tables
            .interfaces
            .values()
            .filter(|_| attach)
            .map(|interface| (interface.name.as_str().to_owned(), (interface.role, interface.hook)))
            .collect();
        self.interface_retries.retain(|name, _| wanted.contains_key(name) || attached.contains_key(name));
        let now = Instant::now();
        let mut due = wanted;
        for (name, interface) in &self.interface_retries {
            if interface.retry.at <= now {
                continue;
            }
            // Left as it is: wanted as attached, or neither.
            match attached.get(name) {
                Some(attachment) => due.insert(name.clone(), (attachment.role, attachment.hook)),
                None => due.remove(name),
            };
        }
        due
    }

    fn interface_did(&mut self, operation: &Operation, name: &str) {
        if matches!(operation, Operation::Attach { .. }) {
            // The data plane said so, with the mode that it chose.
            tracing::debug!(interface = name, "attached");
        } else {
            tracing::info!(interface = name, "detached");
        }
        self.interface_retries.remove(name);
    }

    fn interface_failed(&mut self, name: &str, error: &dataplane::Error) {
        let error = error.to_string();
        let before = self.interface_retries.get(name);
        if before.is_none_or(|before| before.error != error) {
            tracing::warn!(interface = name, error, "trying again");
        }
        let retry = Retry::after(before.map(|before| before.retry), limits::INTERFACE_RETRY_MAX);
        self.interface_retries.insert(name.to_owned(), InterfaceRetry { retry, error });
    }

    /// Whether the attachments are not those that are wanted: a device may have vanished with its programs.
    fn interfaces_differ(&mut self) -> bool {
        let tables = self.store.snapshot().tables;
        let attached = self.dataplane.interfaces();
        let wanted = self.wanted_interfaces(&tables, &attached);
        wanted.len() != attached.len()
            || wanted
                .iter()
                .any(|(name, wanted)| attached.get(name).is_none_or(|found| (found.role, found.hook) != *wanted))
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        self.count_events();
        let error = self.dataplane.tick(monotonic_s()).err().map(|error| format!("cannot advance the clock: {error}"));
        if self.observed.borrow().clock_error == error {
            return;
        }
        if let Some(error) = &error {
            tracing::error!(error, "trying again every second");
        }
        self.publish(|observed| observed.clock_error = error);
    }

    /// Reads them whether or not anybody listens, so that what counts as lost is.
    fn read_events(&mut self) {
        let events = self.dataplane.events();
        self.events_read += events.len() as u64;
        let now_s = monotonic_s();
        for record in event::records(&events, SystemTime::now()) {
            if let Some(keeper) = &mut self.keeper {
                keeper.arrived(&record, now_s);
            }
            // An error says that nobody listens.
            let _ = self.events.send(record);
        }
    }

    fn count_events(&mut self) {
        match self.dataplane.events_lost() {
            Ok(lost) => {
                let read = self.events_read;
                self.publish(|observed| observed.events = EventCounts { read, lost });
            }
            Err(error) => tracing::debug!(%error, "asking again in a second"),
        }
    }

    fn collect(&mut self) {
        match timed(&METERS.collect_time, || self.dataplane.collect(monotonic_s(), self.collect_budget)) {
            Ok(collected) => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.end(&collected.unwanted);
                }
                self.publish(|observed| {
                    observed.collect_error = None;
                    observed.flows_collected += collected.removed as u64;
                    if let Some(counts) = collected.sweep_done {
                        observed.flows = counts;
                    }
                });
            }
            Err(error) => {
                let error = Some(format!("cannot collect idle flows: {error}"));
                if self.observed.borrow().collect_error != error {
                    tracing::error!(error, "trying again");
                }
                self.publish(|observed| observed.collect_error = error);
            }
        }
    }

    fn answer(&mut self, question: Question) {
        // Whoever gave up waiting does not need the answer.
        match question {
            Question::Flows(reply) => drop(reply.send(self.dataplane.flows())),
            Question::Counters(reply) => drop(reply.send(self.dataplane.counters())),
            Question::Locks(reply) => drop(reply.send(self.dataplane.locks())),
            Question::SetLock(host, until_s, reply) => drop(reply.send(self.dataplane.set_lock(host, until_s))),
            Question::RemoveLock(host, reply) => drop(reply.send(self.dataplane.remove_lock(host))),
            Question::Explain(probe, reply) => drop(reply.send(self.dataplane.explain(&probe))),
            Question::Memory(reply) => drop(reply.send(self.dataplane.memory())),
            Question::Drift(reply) => drop(reply.send(self.drift())),
            Question::Reconcile(reply) => drop(reply.send(self.reconcile())),
            Question::Alive(reply) => drop(reply.send(Ok(()))),
        }
    }
}

impl<D> Drop for Reconciler<D>
where
    D: Dataplane,
{
    /// What steered packets rely on stays with the programs that steer them.
    fn drop(&mut self) {
        if self.dataplane.outlives()
            && let Some(keeper) = &mut self.keeper
        {
            keeper.leave();
        }
    }
}

struct Synced {
    revision: u64,
    stage: Stage,
    full: bool,
}

fn interface_of(operation: &Operation) -> Option<&str> {
    match operation {
        Operation::Attach { name, .. } | Operation::Detach { name } => Some(name),
        Operation::SetRelay { .. }
        | Operation::ClearRelay { .. }
        | Operation::SetClass { .. }
        | Operation::ClearClass { .. }
        | Operation::SetSubscriber { .. }
        | Operation::RemoveSubscriber { .. }
        | Operation::StageSubscribers(_)
        | Operation::SwitchSubscribers
        | Operation::SettleSubscribers(_)
        | Operation::SetRevision(_) => None,
    }
}

/// A class with the pools of both families, made of the relays whose endpoint there `takes_flows`.
fn kernel_class(class: &Class, tables: &Tables, takes_flows: impl Fn(&Relay, SocketAddr) -> bool) -> policy::Class {
    let family = |endpoint: fn(&Relay) -> Option<SocketAddr>| -> [u8; POOL_SLOTS] {
        let relays = class.relay_ids.iter().zip(&class.spec.relays).filter_map(|(id, member)| {
            let relay = tables.relays.get(id)?;
            let id = u8::try_from(*id).expect("numbers of relays are below RELAYS_MAX");
            takes_flows(relay, endpoint(relay)?).then_some((id, member.weight.get()))
        });
        pool(&relays.collect::<Vec<_>>())
    };
    policy::Class::new(class.spec.action.into(), class.spec.on_relay_down.into(), 0)
        .with_pools(
            family(|relay| relay.spec.ipv4.map(SocketAddr::V4)),
            family(|relay| relay.spec.ipv6.map(SocketAddr::V6)),
        )
        .with_on_class_change(class.spec.on_class_change.into())
        .with_on_daemon_down(class.spec.on_daemon_down.into())
        .with_limits(class.spec.limits.into())
}

/// `CLOCK_MONOTONIC` in seconds, the time base of the flow table.
pub fn monotonic_s() -> u32 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|time| u32::try_from(time.tv_sec()).ok())
        .expect("the monotonic clock exists and starts at the boot, so it fits for 136 years")
}
