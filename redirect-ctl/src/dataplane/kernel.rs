//! [`Dataplane`] on the running kernel: the compiled programs, their maps and their attachments.

mod batch;
mod counters;
mod events;
mod explain;
mod flows;
mod hosts;
pub mod inspect;
pub(crate) mod interface;
mod memory;
mod steering;
mod table;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::BorrowedFd,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
    programs::{SchedClassifier, SkLookup, Xdp},
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use redirect_common::{
    address::{Address, Host, V4, V6},
    event::Event,
    maps::{CLASSES_MAX, ENTRIES_PER_FLOW, FLOWS_MAX, RELAYS_MAX, SUBSCRIBERS_MAX, names},
    parse::Family,
    policy::{Class, Relay, Settings, Subscriber},
};

use self::{
    counters::Counters,
    events::Events,
    flows::{Collector, Flows},
    interface::Attached,
    memory::Memory,
    steering::Steering,
    table::Table,
};
use super::{
    Attachment, ClassId, Collected, Counters as CounterRows, Dataplane, Error, Explanation, FlowReader, FlowRecord,
    MapMemory, Mark, Operation, Original, Probe, RelayId,
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

/// Creates the maps and loads every program, attached to nothing.
pub fn load(capacities: Capacities) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for name in [names::FLOWS_V4, names::FLOWS_V6] {
        loader.map_max_entries(name, capacities.flows_max * ENTRIES_PER_FLOW);
    }
    for name in [names::HOSTS_V4, names::HOSTS_V6, names::PREFIXES_V4, names::PREFIXES_V6] {
        loader.map_max_entries(name, capacities.subscribers_max);
    }
    let mut object = loader.load(OBJECT).map_err(|error| not_loaded(&error))?;
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

/// The maps that hold the subscribers of one family.
struct SubscriberMaps<A: Address>
where
    A: Pod,
    A::Octets: Pod,
{
    hosts: BpfHashMap<MapData, A, Subscriber>,
    prefixes: LpmTrie<MapData, A::Octets, Subscriber>,
}

/// What the maps say about subscribers at the moment.
struct Policy<'a> {
    v4: &'a SubscriberMaps<V4>,
    v6: &'a SubscriberMaps<V6>,
    classes: &'a Array<MapData, Class>,
    /// Tells states of the policy apart.
    epoch: u32,
}

impl Policy<'_> {
    /// The subscriber that an address belongs to, found as the programs find it.
    fn longest_match(&self, ip: IpAddr) -> Result<Option<(IpNet, ClassId)>, Error> {
        let exact = match ip {
            IpAddr::V4(ip) => self.v4.hosts.get(&ip.into(), 0),
            IpAddr::V6(ip) => self.v6.hosts.get(&ip.into(), 0),
        };
        let failed = |error| system(&format!("look {ip} up"), error);
        let subscriber = match found(exact).map_err(failed)? {
            Some(subscriber) => Some(subscriber),
            None => found(match IpNet::from(ip) {
                IpNet::V4(net) => self.v4.prefixes.get(&key_v4(net), 0),
                IpNet::V6(net) => self.v6.prefixes.get(&key_v6(net), 0),
            })
            .map_err(failed)?,
        };
        let subscriber = subscriber.map(|subscriber| {
            let prefix = net(ip, subscriber.prefix_len().into())?.trunc();
            Ok((prefix, subscriber.class()))
        });
        subscriber.transpose()
    }

    /// The class of an address, and its number.
    fn class_of(&self, ip: IpAddr) -> Result<Option<(ClassId, Class)>, Error> {
        let Some((_, number)) = self.longest_match(ip)? else { return Ok(None) };
        let class = found(self.classes.get(&number.into(), 0)).map_err(|error| system("read a class", error))?;
        Ok(class.filter(Class::is_present).map(|class| (number, class)))
    }
}

/// The data plane in the kernel. Dropping it detaches the programs and frees the maps.
pub struct KernelDataplane {
    object: Ebpf,
    /// What the programs have to say, which is next to nothing.
    log: EbpfLogger<&'static dyn log::Log>,
    v4: SubscriberMaps<V4>,
    v6: SubscriberMaps<V6>,
    classes: Array<MapData, Class>,
    relays: Array<MapData, Relay>,
    relay_ports: Array<MapData, u64>,
    settings: Array<MapData, Settings>,
    counters: Counters,
    memory: Memory,
    events: Events,
    flows: Arc<Flows>,
    locks: Table<Host, u32>,
    collector: Collector,
    attached: BTreeMap<String, Attached>,
    steering: Steering,
}

impl KernelDataplane {
    /// Creates the maps and loads the programs; attaches nothing.
    pub fn load(capacities: Capacities) -> Result<Self, Error> {
        Self::new(load(capacities)?)
    }

    /// Takes over the maps and programs of an object that was made from [`OBJECT`].
    pub fn new(mut object: Ebpf) -> Result<Self, Error> {
        let log = EbpfLogger::init(&mut object).map_err(|error| not_loaded(&error))?;
        let memory = Memory::of(&object)?;
        let flows = Arc::new(Flows::take(&mut object)?);
        Ok(Self {
            v4: SubscriberMaps {
                hosts: take(&mut object, names::HOSTS_V4)?,
                prefixes: take(&mut object, names::PREFIXES_V4)?,
            },
            v6: SubscriberMaps {
                hosts: take(&mut object, names::HOSTS_V6)?,
                prefixes: take(&mut object, names::PREFIXES_V6)?,
            },
            classes: take(&mut object, names::CLASSES)?,
            relays: take(&mut object, names::RELAYS)?,
            relay_ports: take(&mut object, names::RELAY_PORTS)?,
            settings: take(&mut object, names::SETTINGS)?,
            counters: Counters::take(&mut object)?,
            events: Events::take(&mut object)?,
            memory,
            collector: Collector::take(&mut object)?,
            locks: Table::take(&mut object, names::LOCKS)?,
            steering: Steering::take(&mut object)?,
            flows,
            attached: BTreeMap::new(),
            log,
            object,
        })
    }

    /// How many events each CPU reports within a second; none before this is called.
    pub fn report_events(&mut self, per_second: u32) -> Result<(), Error> {
        let mut settings = self.settings()?;
        settings.events_per_second = per_second;
        self.store_settings(settings)
    }

    fn settings(&self) -> Result<Settings, Error> {
        self.settings.get(&0, 0).map_err(|error| system("read the settings", error))
    }

    fn store_settings(&mut self, settings: Settings) -> Result<(), Error> {
        self.settings.set(0, settings, 0).map_err(|error| system("write the settings", error))
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
        self.attached.remove(name);
        self.counters.close(name)
    }

    fn policy(&self) -> Result<Policy<'_>, Error> {
        let epoch = self.settings()?.epoch();
        Ok(Policy { v4: &self.v4, v6: &self.v6, classes: &self.classes, epoch })
    }

    fn set_subscriber(&mut self, prefix: &IpNet, subscriber: Subscriber) -> Result<(), Error> {
        let result = match prefix {
            IpNet::V4(net) if is_host(prefix) => self.v4.hosts.insert(V4::from(net.addr()), subscriber, 0),
            IpNet::V4(net) => self.v4.prefixes.insert(&key_v4(*net), subscriber, 0),
            IpNet::V6(net) if is_host(prefix) => self.v6.hosts.insert(V6::from(net.addr()), subscriber, 0),
            IpNet::V6(net) => self.v6.prefixes.insert(&key_v6(*net), subscriber, 0),
        };
        result.map_err(|error| match errno(&error) {
            Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC) => {
                Error::Full { table: "the subscriber table", key: "dataplane.subscribers_max" }
            }
            _ => system(&format!("set subscriber {prefix}"), error),
        })
    }

    fn remove_subscriber(&mut self, prefix: &IpNet) -> Result<(), Error> {
        let result = match prefix {
            IpNet::V4(net) if is_host(prefix) => self.v4.hosts.remove(&net.addr().into()),
            IpNet::V4(net) => self.v4.prefixes.remove(&key_v4(*net)),
            IpNet::V6(net) if is_host(prefix) => self.v6.hosts.remove(&net.addr().into()),
            IpNet::V6(net) => self.v6.prefixes.remove(&key_v6(*net)),
        };
        found(result).map(drop).map_err(|error| system(&format!("remove subscriber {prefix}"), error))
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

    fn subscribers(&self) -> Result<BTreeMap<IpNet, Subscriber>, Error> {
        let failed = |error| system("read the subscribers", error);
        let mut subscribers = BTreeMap::new();
        for entry in &self.v4.hosts {
            let (address, subscriber) = entry.map_err(failed)?;
            subscribers.insert(IpNet::from(address.to_ip()), subscriber);
        }
        for entry in &self.v6.hosts {
            let (address, subscriber) = entry.map_err(failed)?;
            subscribers.insert(IpNet::from(address.to_ip()), subscriber);
        }
        for entry in &self.v4.prefixes {
            let (key, subscriber) = entry.map_err(failed)?;
            subscribers.insert(net(key.data().into(), key.prefix_len())?, subscriber);
        }
        for entry in &self.v6.prefixes {
            let (key, subscriber) = entry.map_err(failed)?;
            subscribers.insert(net(key.data().into(), key.prefix_len())?, subscriber);
        }
        Ok(subscribers)
    }

    fn subscriber(&self, prefix: &IpNet) -> Result<Option<Subscriber>, Error> {
        let result = match prefix {
            IpNet::V4(net) if is_host(prefix) => self.v4.hosts.get(&net.addr().into(), 0),
            IpNet::V4(net) => self.v4.prefixes.get(&key_v4(*net), 0),
            IpNet::V6(net) if is_host(prefix) => self.v6.hosts.get(&net.addr().into(), 0),
            IpNet::V6(net) => self.v6.prefixes.get(&key_v6(*net), 0),
        };
        let subscriber = found(result).map_err(|error| system(&format!("read subscriber {prefix}"), error))?;
        // A trie answers with the longest prefix that covers the key, which may be a shorter one.
        Ok(subscriber.filter(|subscriber| subscriber.prefix_len() == prefix.prefix_len()))
    }

    fn interfaces(&self) -> BTreeMap<String, Attachment> {
        let alive = self.attached.iter().filter(|(name, attached)| attached.is_alive(name));
        alive.map(|(name, attached)| (name.clone(), attached.attachment)).collect()
    }

    fn revision(&self) -> Result<u64, Error> {
        self.settings().map(|settings| settings.revision)
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
            Operation::SetSubscriber { prefix, subscriber } => self.set_subscriber(prefix, *subscriber),
            Operation::RemoveSubscriber { prefix } => self.remove_subscriber(prefix),
            Operation::Attach { name, role, hook } => {
                // Whatever is there is of an interface that is gone, or with another hook.
                self.detach(name)?;
                self.counters.open(name, interface::index(name)?)?;
                match interface::attach(&mut self.object, name, *role, *hook) {
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
            Operation::SetRevision(revision) => {
                let mut settings = self.settings()?;
                settings.revision = *revision;
                self.store_settings(settings)
            }
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
            self.steering.look_sockets_up(&mut self.object, true)?;
        }
        let mut settings = self.settings()?;
        (settings.mark, settings.mark_mask) = mark.map_or((0, 0), |mark| (mark.value, mark.mask));
        self.store_settings(settings)?;
        self.steering.look_sockets_up(&mut self.object, mark.is_some())
    }

    fn tick(&mut self, now_s: u32) -> Result<(), Error> {
        self.log.flush();
        let mut settings = self.settings()?;
        settings.clock_s = now_s;
        self.store_settings(settings)
    }

    fn collect(&mut self, now_s: u32, budget: usize) -> Result<Collected, Error> {
        let epoch = self.settings()?.epoch();
        let policy = Policy { v4: &self.v4, v6: &self.v6, classes: &self.classes, epoch };
        self.collector.collect(&self.flows, &self.locks, &policy, now_s, budget)
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
            subscriber: self.policy()?.longest_match(probe.client.ip())?,
            open: self.collector.open(Host::from(probe.client.ip()))?,
            locked_until_s: self.locks.get(&Host::from(probe.client.ip()))?,
            interface: attached.map(|(name, attached)| (name.clone(), attached.attachment.mode)),
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

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn key_v4(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}

fn key_v6(net: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}

fn net(address: IpAddr, prefix_len: u32) -> Result<IpNet, Error> {
    let prefix_len = u8::try_from(prefix_len).unwrap_or(u8::MAX);
    IpNet::new(address, prefix_len).map_err(|error| Error::System {
        what: "read a prefix from the kernel".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })
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
