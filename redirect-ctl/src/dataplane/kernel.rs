//! [`Dataplane`] on the running kernel: the compiled programs, their maps and their attachments.

mod batch;
pub mod buckets;
mod counters;
mod events;
mod explain;
mod flows;
mod hosts;
pub mod inspect;
pub(crate) mod interface;
mod memory;
pub mod pins;
mod selftest;
mod steering;
mod subscribers;
mod sys;
mod table;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, MapError},
    programs::{Program, SchedClassifier, SkLookup, Xdp},
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use redirect_common::{
    address::{Host, V4, V6},
    bucket::{PLACES_V4, PLACES_V6, buckets},
    event::Event,
    maps::{CLASSES_MAX, ENTRIES_PER_FLOW, FLOWS_MAX, RELAYS_MAX, SUBSCRIBERS_MAX, names},
    parse::Family,
    policy::{Class, Relay, Settings},
};

use self::{
    counters::Counters,
    events::Events,
    flows::{Clock, Collector, Flows},
    interface::Attached,
    memory::Memory,
    pins::{Inheritance, Maps, PinnedLink, Pins},
    steering::Steering,
    subscribers::{SettingsMap, Subscribers, switch_column},
    table::Table,
};
use super::{
    Attachment, ClassId, Collected, Counters as CounterRows, Dataplane, Error, Explanation, FlowReader, FlowRecord,
    MapMemory, Mark, OnExit, Operation, Original, Probe, RelayId,
};

/// The compiled programs and map definitions.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("REDIRECT_BPF_OBJECT"));

/// Sizes of the maps, fixed when they are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Established flows of each family.
    pub flows_max: u32,
    /// Hosts of each family, and prefixes of each family.
    pub subscribers_max: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self { flows_max: FLOWS_MAX, subscribers_max: SUBSCRIBERS_MAX }
    }
}

impl Capacities {
    /// Of each subscriber map of IPv4, and of IPv6.
    fn buckets(self) -> [u32; 2] {
        [PLACES_V4, PLACES_V6].map(|places| buckets(self.subscribers_max, places))
    }

    /// Entries of the maps, by their names.
    fn of_maps(self) -> [(&'static str, u32); 6] {
        let [v4, v6] = self.buckets();
        let flows = self.flows_max * ENTRIES_PER_FLOW;
        [
            (names::FLOWS_V4, flows),
            (names::FLOWS_V6, flows),
            (names::HOSTS_V4, v4),
            (names::HOSTS_V6, v6),
            (names::PREFIXES_V4, v4),
            (names::PREFIXES_V6, v6),
        ]
    }

    /// What the programs are told of the subscriber maps, by the names of the object's variables.
    fn of_variables(self) -> [(&'static str, u32); 2] {
        let [v4, v6] = self.buckets();
        [(names::BUCKETS_V4, v4), (names::BUCKETS_V6, v6)]
    }
}

/// Creates the maps and loads every program, attached to nothing.
pub fn load(capacities: Capacities) -> Result<Ebpf, Error> {
    load_object(OBJECT, capacities, &[])
}

/// Maps of `reused` are opened where they are pinned; somebody has made sure that they are what the object wants.
fn load_object(object: &[u8], capacities: Capacities, reused: &[(&str, PathBuf)]) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for (name, capacity) in capacities.of_maps() {
        loader.map_max_entries(name, capacity);
    }
    let variables = capacities.of_variables();
    for (name, value) in &variables {
        loader.override_global(name, value, true);
    }
    for (name, path) in reused {
        loader.map_pin_path(name, path);
    }
    let mut object = loader.load(object).map_err(|error| not_loaded(&error))?;
    match program::<Xdp>(&mut object, names::XDP_INGRESS)?.load() {
        Ok(()) => {}
        // Frames in several buffers need Linux 5.18; below it there is tc.
        Err(error) if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 18, 0)) => {
            tracing::warn!(error = %not_loaded(&error), "no XDP on this kernel; hook = \"auto\" is tc");
        }
        Err(error) => return Err(not_loaded(&error)),
    }
    for name in [names::TC_INGRESS, names::TC_EGRESS, names::TC_INGRESS_IP, names::TC_EGRESS_IP, names::EXPLAIN] {
        program::<SchedClassifier>(&mut object, name)?.load().map_err(|error| not_loaded(&error))?;
    }
    program::<SkLookup>(&mut object, names::SOCKET_LOOKUP)?.load().map_err(|error| not_loaded(&error))?;
    Ok(object)
}

/// An error and the whole chain of its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The verifier's log, where there is one, is the last of the causes.
fn not_loaded(error: &dyn std::error::Error) -> Error {
    let mut reason = with_causes(error);
    if reason.contains("EPERM") || reason.contains("Operation not permitted") {
        reason = format!("{reason}; redirectd needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    }
    Error::Load { reason }
}

fn program<'a, P>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = object.program_mut(name).ok_or_else(|| Error::Load { reason: format!("no program {name}") })?;
    program.try_into().map_err(|error| not_loaded(&error))
}

fn take<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &str) -> Result<M, Error> {
    let map = object.take_map(name).ok_or_else(|| Error::Load { reason: format!("no map {name}") })?;
    M::try_from(map).map_err(|error| not_loaded(&error))
}

/// What the maps say about subscribers at the moment.
struct Policy<'a> {
    subscribers: &'a Subscribers,
    classes: &'a Array<MapData, Class>,
    settings: Settings,
}

impl Policy<'_> {
    /// The class of an address, and its number.
    fn class_of(&self, ip: IpAddr) -> Result<Option<(ClassId, Class)>, Error> {
        let Some((_, number)) = self.subscribers.longest_match(ip, &self.settings)? else { return Ok(None) };
        let class = found(self.classes.get(&number.into(), 0)).map_err(|error| system("read a class", error))?;
        Ok(class.filter(Class::is_present).map(|class| (number, class)))
    }
}

/// The data plane in the kernel. Dropping it detaches the programs that are not pinned, and frees their maps.
pub struct KernelDataplane {
    object: Ebpf,
    /// What the programs have to say, which is next to nothing.
    log: EbpfLogger<&'static dyn log::Log>,
    subscribers: Subscribers,
    classes: Array<MapData, Class>,
    relays: Array<MapData, Relay>,
    relay_ports: Array<MapData, u64>,
    settings: SettingsMap,
    counters: Counters,
    memory: Memory,
    events: Events,
    flows: Arc<Flows>,
    locks: Table<Host, u32>,
    collector: Collector,
    attached: BTreeMap<String, Attached>,
    steering: Steering,
    pins: Option<Pins>,
    on_exit: OnExit,
    /// Until the programs have taken over.
    maps: Option<Maps>,
}

impl Drop for KernelDataplane {
    /// Tables of programs that are gone are of no use to anybody.
    fn drop(&mut self) {
        if let Some(pins) = self.pins.take().filter(|pins| self.on_exit == OnExit::Detach && !pins.hold_links())
            && let Err(error) = pins.remove_all()
        {
            tracing::warn!(%error, "pins are left behind; `redirect-ctl uninstall` removes them");
        }
    }
}

/// With what a daemon starts.
pub struct Start<'o> {
    /// The compiled programs: [`OBJECT`].
    pub object: &'o [u8],
    pub capacities: Capacities,
    /// Where programs, maps and links stay while no daemon runs; `None` where they go with the process.
    pub pins: Option<Pins>,
    pub on_exit: OnExit,
}

/// Seconds that the packet path's clock may have stood still without anybody calling flows idle for it.
const CLOCK_GAP_S: u32 = 30;

impl KernelDataplane {
    /// Loads the programs, on the maps of a daemon before this one as far as they are alike, and tries them out. That daemon's programs go on
    /// until [`Dataplane::take_over`].
    pub fn start(start: Start<'_>, now_s: u32) -> Result<Self, Error> {
        let Start { object, capacities, pins, on_exit } = start;
        let Some(mut pins) = pins else { return Self::new(load_object(object, capacities, &[])?) };
        if pins.hold_links() {
            selftest::on_tables_of_its_own(load_object(object, selftest::CAPACITIES, &[])?)?;
        }
        let mut maps = pins.maps(object, &capacities.of_maps())?;
        let reused: Vec<_> = maps.reused(&pins).collect();
        let loaded = load_object(object, capacities, &reused)?;
        pins.settle(&loaded, &mut maps)?;
        let Inheritance { reused, copied, entries_left_out, flows_lost } = maps.inheritance;
        tracing::info!(reused, copied, "maps of the daemon before this one");
        if entries_left_out > 0 {
            tracing::warn!(entries_left_out, "the new tables are smaller than what the old ones hold");
        }
        if flows_lost > 0 {
            tracing::warn!(flows_lost, "the old tables are of another layout; their redirected connections will break");
        }
        Self::with_pins(loaded, Some(pins), on_exit, Some(maps), now_s)
    }

    /// Creates the maps and loads the programs; attaches nothing.
    pub fn load(capacities: Capacities) -> Result<Self, Error> {
        Self::new(load(capacities)?)
    }

    /// Takes over the maps and programs of an object that was made from [`OBJECT`].
    pub fn new(object: Ebpf) -> Result<Self, Error> {
        Self::with_pins(object, None, OnExit::Detach, None, 0)
    }

    fn with_pins(
        mut object: Ebpf,
        pins: Option<Pins>,
        on_exit: OnExit,
        maps: Option<Maps>,
        now_s: u32,
    ) -> Result<Self, Error> {
        let log = EbpfLogger::init(&mut object).map_err(|error| not_loaded(&error))?;
        let memory = Memory::of(&object)?;
        let flows = Arc::new(Flows::take(&mut object)?);
        let mut settings = SettingsMap::take(&mut object)?;
        let mut dataplane = Self {
            subscribers: Subscribers::take(&mut object, &mut settings)?,
            classes: take(&mut object, names::CLASSES)?,
            relays: take(&mut object, names::RELAYS)?,
            relay_ports: take(&mut object, names::RELAY_PORTS)?,
            settings,
            counters: Counters::take(&mut object)?,
            events: Events::take(&mut object)?,
            memory,
            collector: Collector::take(&mut object)?,
            locks: Table::take(&mut object, names::LOCKS)?,
            steering: Steering::take(&mut object, pins.as_ref())?,
            flows,
            attached: BTreeMap::new(),
            log,
            object,
            pins,
            on_exit,
            maps,
        };
        dataplane.resume(now_s)?;
        Ok(dataplane)
    }

    /// Finds what a daemon before this one left at work.
    fn resume(&mut self, now_s: u32) -> Result<(), Error> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for (ifindex, links) in pins.device_links()? {
            if let Some((name, attached)) = Attached::adopt(ifindex, links)? {
                tracing::info!(interface = name, mode = %attached.attachment.mode, "found attached");
                self.attached.insert(name, attached);
            }
        }
        if !self.maps.as_ref().is_some_and(Maps::continues) {
            return Ok(());
        }
        let attached = self.attached.iter().map(|(name, attached)| (attached.index, name.clone()));
        self.counters.resume(&attached.collect())?;
        // A mark without what it is for: the settings are of a network namespace that is gone, or somebody has removed the link.
        if !self.steering.is_attached() && self.is_steering()? {
            self.settings.change(|settings| (settings.mark, settings.mark_mask) = (0, 0))?;
        }
        if now_s.saturating_sub(self.settings.get()?.clock_s) > CLOCK_GAP_S {
            self.settings.change(|settings| settings.resumed_s = now_s)?;
        }
        Ok(())
    }

    /// For how long the clock may stand still before the daemon counts as down; for ever before this is called.
    pub fn set_daemon_timeout(&mut self, seconds: u32) -> Result<(), Error> {
        self.settings.change(|settings| settings.daemon_timeout_s = seconds)
    }

    /// How many events each CPU reports within a second; none before this is called.
    pub fn report_events(&mut self, per_second: u32) -> Result<(), Error> {
        self.settings.change(|settings| settings.events_per_second = per_second)
    }

    /// Marks a relay's ports before the relay is used. A port stays marked until the maps go: flows of an earlier endpoint may live, and a
    /// mark too many costs its packets one look-up.
    fn mark_ports(&mut self, relay: &Relay) -> Result<(), Error> {
        let ports = [relay.ipv4().map(|(_, port)| port), relay.ipv6().map(|(_, port)| port)];
        for port in ports.into_iter().flatten().map(u16::from_be_bytes) {
            let word = u32::from(port / 64);
            let marked = self.relay_ports.get(&word, 0).map_err(|error| system("read the relay ports", error))?;
            let ports = marked | 1 << (port % 64);
            self.relay_ports.set(word, ports, 0).map_err(|error| system("write the relay ports", error))?;
        }
        Ok(())
    }

    fn detach(&mut self, name: &str) -> Result<(), Error> {
        if let Some(attached) = self.attached.remove(name) {
            attached.detach()?;
        }
        self.counters.close(name)
    }

    /// Every pinned link and the name of the program that belongs to it: the ways back before the ways in.
    fn pinned_links(&self) -> Result<Vec<(&PinnedLink, &'static str)>, Error> {
        let mut links: Vec<_> = self.steering.pinned().into_iter().collect();
        for (name, attached) in &self.attached {
            links.extend(attached.pinned(name)?);
        }
        Ok(links)
    }

    /// Has the links run the programs of this object. After an error they run what they ran before.
    fn swap_programs(&self, pins: &Pins) -> Result<(), Error> {
        let mut swapped = Vec::new();
        for (link, name) in self.pinned_links()? {
            let old = pins.old_program(name);
            let new = fd_of(&self.object, name)?;
            match link.update(new, None) {
                Ok(()) => swapped.push((link, new, old)),
                Err(error) => {
                    for (link, new, old) in swapped.into_iter().rev() {
                        let back = old.as_ref().map(|old| link.update(old.as_fd(), Some(new)));
                        if let Some(Err(error)) = back {
                            tracing::error!(%error, "a program cannot be put back");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Dataplane for KernelDataplane {
    fn relays(&self) -> Result<BTreeMap<RelayId, Relay>, Error> {
        let mut relays = slots(&self.relays, RELAYS_MAX, "read the relays")?;
        relays.retain(|_, relay| *relay != Relay::default());
        Ok(relays)
    }

    fn classes(&self) -> Result<BTreeMap<ClassId, Class>, Error> {
        let mut classes = slots(&self.classes, CLASSES_MAX, "read the classes")?;
        classes.retain(|_, class: &mut Class| class.is_present());
        Ok(classes)
    }

    fn subscribers(&self) -> Result<BTreeMap<IpNet, ClassId>, Error> {
        self.subscribers.list()
    }

    fn subscriber(&self, prefix: &IpNet) -> Result<Option<ClassId>, Error> {
        Ok(self.subscribers.get(prefix))
    }

    fn interfaces(&self) -> BTreeMap<String, Attachment> {
        let alive = self.attached.iter().filter(|(name, attached)| attached.is_alive(name));
        alive.map(|(name, attached)| (name.clone(), attached.attachment)).collect()
    }

    fn revision(&self) -> Result<u64, Error> {
        self.settings.get().map(|settings| settings.revision)
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::SetRelay { id, relay } => {
                self.mark_ports(relay)?;
                self.relays.set((*id).into(), relay, 0).map_err(|error| system(&operation.to_string(), error))
            }
            Operation::ClearRelay { id } => self
                .relays
                .set((*id).into(), Relay::default(), 0)
                .map_err(|error| system(&operation.to_string(), error)),
            Operation::SetClass { id, class } => {
                self.classes.set((*id).into(), class, 0).map_err(|error| system(&operation.to_string(), error))
            }
            Operation::ClearClass { id } => self
                .classes
                .set((*id).into(), Class::default(), 0)
                .map_err(|error| system(&operation.to_string(), error)),
            Operation::SetSubscriber { prefix, class } => self.subscribers.set(prefix, *class, &mut self.settings),
            Operation::RemoveSubscriber { prefix } => self.subscribers.remove(prefix, &mut self.settings),
            Operation::StageSubscribers(changes) => self.subscribers.stage(changes, &mut self.settings),
            Operation::SwitchSubscribers => switch_column(&mut self.settings),
            Operation::SettleSubscribers(changes) => self.subscribers.settle(changes, &mut self.settings),
            Operation::Attach { name, role, hook } => {
                // Whatever is there is of an interface that is gone, or with another hook.
                self.detach(name)?;
                self.counters.open(name, interface::index(name)?)?;
                match interface::attach(&mut self.object, self.pins.as_ref(), name, *role, *hook) {
                    Ok(attached) => {
                        self.attached.insert(name.clone(), attached);
                        Ok(())
                    }
                    Err(error) => {
                        self.counters.close(name)?;
                        Err(error)
                    }
                }
            }
            Operation::Detach { name } => self.detach(name),
            Operation::SetRevision(revision) => self.settings.change(|settings| settings.revision = *revision),
        }
    }

    fn set_socket(&mut self, relay: RelayId, family: Family, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.steering.set_socket(relay, family, socket)
    }

    fn clear_socket(&mut self, relay: RelayId, family: Family) -> Result<(), Error> {
        self.steering.clear_socket(relay, family)
    }

    fn set_steering(&mut self, mark: Option<Mark>) -> Result<(), Error> {
        if mark.is_some() {
            self.steering.look_sockets_up(&mut self.object, self.pins.as_ref(), true)?;
        }
        self.settings.change(|settings| {
            (settings.mark, settings.mark_mask) = mark.map_or((0, 0), |mark| (mark.value, mark.mask));
        })?;
        self.steering.look_sockets_up(&mut self.object, self.pins.as_ref(), mark.is_some())
    }

    fn tick(&mut self, now_s: u32) -> Result<(), Error> {
        self.log.flush();
        self.settings.change(|settings| settings.clock_s = now_s)
    }

    fn collect(&mut self, now_s: u32, budget: usize) -> Result<Collected, Error> {
        let settings = self.settings.get()?;
        let policy = Policy { subscribers: &self.subscribers, classes: &self.classes, settings };
        let clock = Clock { now_s, resumed_s: settings.resumed_s };
        self.collector.collect(&self.flows, &self.locks, &policy, clock, budget)
    }

    fn counters(&self) -> Result<CounterRows, Error> {
        self.counters.read()
    }

    fn explain(&self, probe: &Probe) -> Result<Explanation, Error> {
        let attached = match &probe.interface {
            Some(name) => {
                let attached = self.attached.get_key_value(name);
                Some(attached.ok_or_else(|| Error::NoSuchInterface { name: name.clone() })?)
            }
            None => self.attached.first_key_value(),
        };
        let program = self.object.program(names::EXPLAIN);
        let program = program.ok_or_else(|| Error::Load { reason: format!("no program {}", names::EXPLAIN) })?;
        let program = program.try_into().map_err(|error: aya::programs::ProgramError| not_loaded(&error))?;
        let index = attached.map(|(_, attached)| attached.index);
        let mode = attached.map(|(_, attached)| attached.attachment.mode);
        let answer = explain::explain(program, probe.client, probe.server, index, mode)?;
        Ok(Explanation {
            reason: answer.reason,
            class: answer.class.into(),
            relay: answer.relay.into(),
            mapped_port: answer.client.port(),
            endpoint: answer.server,
            subscriber: self.subscribers.longest_match(probe.client.ip(), &self.settings.get()?)?,
            open: self.collector.open(Host::from(probe.client.ip()))?,
            locked_until_s: self.locks.get(&Host::from(probe.client.ip()))?,
            interface: attached.map(|(name, attached)| (name.clone(), attached.attachment.mode)),
            program_tag: answer.program_tag,
            revision: self.revision()?,
        })
    }

    fn memory(&self) -> Result<Vec<MapMemory>, Error> {
        self.memory.read()
    }

    fn flows(&self) -> Result<Vec<FlowRecord>, Error> {
        self.flows.list()
    }

    fn events(&mut self) -> Vec<Event> {
        self.events.read()
    }

    fn events_lost(&self) -> Result<u64, Error> {
        self.events.lost()
    }

    fn locks(&self) -> Result<BTreeMap<Host, u32>, Error> {
        self.locks.list()
    }

    fn set_lock(&mut self, host: Host, until_s: u32) -> Result<(), Error> {
        self.locks.set(&host, &until_s)
    }

    fn remove_lock(&mut self, host: Host) -> Result<Option<u32>, Error> {
        let until_s = self.locks.get(&host)?;
        self.locks.remove(&host)?;
        Ok(until_s)
    }

    fn reader(&self) -> Arc<dyn FlowReader> {
        Arc::clone(&self.flows) as Arc<dyn FlowReader>
    }

    fn take_over(&mut self) -> Result<(), Error> {
        let Some(mut maps) = self.maps.take() else { return Ok(()) };
        selftest::on_live_tables(self)?;
        let Some(mut pins) = self.pins.take() else { return Ok(()) };
        let swapped = self.swap_programs(&pins);
        let committed = swapped.and_then(|()| pins.commit(&mut self.object, &mut maps));
        self.pins = Some(pins);
        committed
    }

    fn outlives(&self) -> bool {
        self.pins.as_ref().is_some_and(Pins::hold_links)
    }

    fn is_steering(&self) -> Result<bool, Error> {
        Ok(self.settings.get()?.mark != 0)
    }
}

/// Removes what a daemon left in the kernel: links, programs, maps and, below Linux 6.6, filters. Returns how many links there were.
pub fn remove_all(pins: Option<Pins>) -> Result<usize, Error> {
    let links = pins.map(Pins::remove_all).transpose()?;
    interface::remove_all_filters()?;
    Ok(links.unwrap_or(0))
}

fn fd_of<'o>(object: &'o Ebpf, name: &str) -> Result<BorrowedFd<'o>, Error> {
    let missing = || Error::Load { reason: format!("no program {name}") };
    let program = match object.program(name).ok_or_else(missing)? {
        Program::Xdp(program) => program.fd(),
        Program::SchedClassifier(program) => program.fd(),
        Program::SkLookup(program) => program.fd(),
        _ => return Err(missing()),
    };
    program.map(AsFd::as_fd).map_err(|error| not_loaded(&error))
}

impl FlowReader for Flows {
    fn original(&self, peer: SocketAddr, local: SocketAddr) -> Result<Option<Original>, Error> {
        match (canonical(peer), canonical(local)) {
            (SocketAddr::V4(peer), SocketAddr::V4(local)) => self.v4.original(end_v4(peer), end_v4(local)),
            (SocketAddr::V6(peer), SocketAddr::V6(local)) => self.v6.original(end_v6(peer), end_v6(local)),
            _ => Ok(None),
        }
    }
}

/// A socket that listens on both families shows IPv4 peers as IPv6 addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn end_v4(address: SocketAddrV4) -> (V4, [u8; 2]) {
    ((*address.ip()).into(), address.port().to_be_bytes())
}

fn end_v6(address: SocketAddrV6) -> (V6, [u8; 2]) {
    ((*address.ip()).into(), address.port().to_be_bytes())
}

/// Every used slot of an array; slot 0 stands for "none".
fn slots<V: Pod>(map: &Array<MapData, V>, len: u32, what: &str) -> Result<BTreeMap<u16, V>, Error> {
    let slot = |id: u16| Ok((id, map.get(&id.into(), 0).map_err(|error| system(what, error))?));
    (1..u16::try_from(len).unwrap_or(u16::MAX)).map(slot).collect()
}

/// `None` where the key is not in the map.
fn found<V>(result: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error, MapError::KeyNotFound) || errno(&error) == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn system(what: &str, error: MapError) -> Error {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    };
    Error::System { what: what.to_owned(), source }
}
