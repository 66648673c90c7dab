//! The loaded programs and their maps, run frame by frame with `BPF_PROG_TEST_RUN`.
//!
//! Needs root. Touches no interface: the programs are loaded and attached to nothing.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf, Pod, TestRunOptions,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{ProgramError, SchedClassifier, TestRun as _, Xdp},
};
use redirect_common::{
    address::{Address, Host, V4, V6},
    bucket::{Key, PLACES_V4, PLACES_V6},
    event::Event,
    flow::{Direction, Flow, Tuple},
    limit::Rate,
    maps::{Count, INTERFACES_MAX, Resets, counter_index, interface_counter_index, names},
    parse::Link,
    policy::{Class, Relay, Settings},
    reason::{Reason, Verdict},
    subscriber::{PrefixV4, PrefixV6, Subscriber},
    testkit::MemoryTables,
};
use redirect_ctl::dataplane::kernel::{Capacities, buckets::Buckets, load};

use crate::bpf::Kind;

/// A program of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
    /// On a device whose frames begin with an IP header.
    TcIngressIp,
    TcEgressIp,
}

impl Hook {
    /// Those that take Ethernet frames.
    pub const ETHERNET: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => names::XDP_INGRESS,
            Self::TcIngress => names::TC_INGRESS,
            Self::TcEgress => names::TC_EGRESS,
            Self::TcIngressIp => names::TC_INGRESS_IP,
            Self::TcEgressIp => names::TC_EGRESS_IP,
        }
    }

    pub const fn link(self) -> Link {
        match self {
            Self::Xdp | Self::TcIngress | Self::TcEgress => Link::Ethernet,
            Self::TcIngressIp | Self::TcEgressIp => Link::Ip,
        }
    }

    pub const fn direction(self) -> Direction {
        match self {
            Self::Xdp | Self::TcIngress | Self::TcIngressIp => Direction::Forward,
            Self::TcEgress | Self::TcEgressIp => Direction::Reply,
        }
    }

    /// The kind of its programs, what they answer to pass a frame, and where in their context the frame begins and ends, in bytes.
    pub(crate) const fn kind(self) -> (Kind, i32, [i16; 2]) {
        const XDP_PASS: i32 = 2;
        const TC_ACT_UNSPEC: i32 = -1;
        match self {
            // `struct xdp_md`.
            Self::Xdp => (Kind::Xdp, XDP_PASS, [0, 4]),
            // `struct __sk_buff`.
            _ => (Kind::Classifier, TC_ACT_UNSPEC, [76, 80]),
        }
    }

    /// What the program answers for a verdict.
    pub const fn code(self, verdict: Verdict) -> u32 {
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        const TC_ACT_UNSPEC: u32 = u32::MAX;
        const TC_ACT_SHOT: u32 = 2;
        const TC_ACT_REDIRECT: u32 = 7;
        const XDP_TX: u32 = 3;
        match (self, verdict) {
            (Self::Xdp, Verdict::Pass | Verdict::Redirect | Verdict::Steer) => XDP_PASS,
            (Self::Xdp, Verdict::Drop) => XDP_DROP,
            (_, Verdict::Pass | Verdict::Redirect | Verdict::Steer) => TC_ACT_UNSPEC,
            (Self::Xdp, Verdict::Reject) => XDP_TX,
            (_, Verdict::Drop) => TC_ACT_SHOT,
            (_, Verdict::Reject) => TC_ACT_REDIRECT,
        }
    }
}

/// Classes that tests use, and 0 for none.
const CLASSES: u16 = 16;

/// A policy and a clock, to be set both in the kernel and on the host.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub subscribers: Vec<(IpAddr, u8, u16)>,
    pub classes: BTreeMap<u16, Class>,
    pub relays: BTreeMap<u16, Relay>,
}

/// The entries of a flow table.
pub type Entries<A> = BTreeMap<Tuple<A>, Flow<A>>;

/// The loaded programs.
pub struct Kernel {
    object: Ebpf,
    settings: Array<MapData, Settings>,
    resets: PerCpuArray<MapData, Resets>,
    counters: PerCpuArray<MapData, Count>,
    interface_counters: PerCpuArray<MapData, Count>,
    events: RingBuf<MapData>,
    hosts_v4: Buckets<V4, PLACES_V4>,
    hosts_v6: Buckets<V6, PLACES_V6>,
    prefixes_v4: Buckets<PrefixV4, PLACES_V4>,
    prefixes_v6: Buckets<PrefixV6, PLACES_V6>,
}

impl Kernel {
    /// Loads the programs with small maps.
    ///
    /// # Panics
    /// Without the privilege to load programs: these tests need root.
    pub fn load(policy: &Policy, flows_max: u32) -> Self {
        let subscribers_max = u32::try_from(policy.subscribers.len()).expect("a test has few subscribers").max(1024);
        let mut object = load(Capacities { flows_max, subscribers_max }).expect("loading the programs needs root");
        let settings = take(&mut object, names::SETTINGS);
        let resets = take(&mut object, names::RESETS);
        let counters = take(&mut object, names::COUNTERS);
        let interface_counters = take(&mut object, names::INTERFACE_COUNTERS);
        let events = take(&mut object, names::EVENTS);
        let hosts_v4 = Buckets::take(&mut object, names::HOSTS_V4).expect("the object has the map");
        let hosts_v6 = Buckets::take(&mut object, names::HOSTS_V6).expect("the object has the map");
        let prefixes_v4 = Buckets::take(&mut object, names::PREFIXES_V4).expect("the object has the map");
        let prefixes_v6 = Buckets::take(&mut object, names::PREFIXES_V6).expect("the object has the map");
        let mut kernel = Self {
            object,
            settings,
            resets,
            counters,
            interface_counters,
            events,
            hosts_v4,
            hosts_v6,
            prefixes_v4,
            prefixes_v6,
        };
        for (id, relay) in &policy.relays {
            kernel.set_relay(*id, relay);
        }
        for (id, class) in &policy.classes {
            kernel.set_class(*id, class);
        }
        for &(address, len, class) in &policy.subscribers {
            kernel.set_subscriber(address, len, class);
        }
        kernel
    }

    fn set_relay(&mut self, id: u16, relay: &Relay) {
        let mut relays: Array<_, Relay> = map(&mut self.object, names::RELAYS);
        relays.set(id.into(), relay, 0).expect("a relay is set");
        let mut relay_ports: Array<_, u64> = map(&mut self.object, names::RELAY_PORTS);
        for port in [relay.ipv4().map(|(_, port)| port), relay.ipv6().map(|(_, port)| port)].into_iter().flatten() {
            let port = u16::from_be_bytes(port);
            let word = u32::from(port / 64);
            let ports = relay_ports.get(&word, 0).expect("a word of ports is read") | 1 << (port % 64);
            relay_ports.set(word, ports, 0).expect("a word of ports is set");
        }
    }

    pub fn set_class(&mut self, id: u16, class: &Class) {
        let mut classes: Array<_, Class> = map(&mut self.object, names::CLASSES);
        classes.set(id.into(), class, 0).expect("a class is set");
    }

    pub fn set_subscriber(&mut self, address: IpAddr, len: u8, class: u16) {
        match address {
            IpAddr::V4(address) => {
                self.set(|settings| settings.lengths.set::<V4>(len, true));
                set_subscriber(&mut self.hosts_v4, &mut self.prefixes_v4, V4::from(address), len, class);
            }
            IpAddr::V6(address) => {
                self.set(|settings| settings.lengths.set::<V6>(len, true));
                set_subscriber(&mut self.hosts_v6, &mut self.prefixes_v6, V6::from(address), len, class);
            }
        }
    }

    /// Sets what is known of a subscriber's pace.
    pub fn set_rate(&mut self, host: Host, rate: Rate) {
        hash(&mut self.object, names::RATES).insert(host, rate, 0).expect("a rate is set");
    }

    /// Empties a map, as the collection of idle flows may.
    pub fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut entries = hash::<K, V>(&mut self.object, name);
        let keys: Vec<_> = entries.keys().collect();
        for key in keys {
            entries.remove(&key.expect("a key is read")).expect("an entry is removed");
        }
    }

    /// What the programs have told since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            assert_eq!(record.len(), size_of::<Event>());
            // SAFETY: a record is as long as an event, which is integers that any bits are valid for.
            events.push(unsafe { record.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    pub fn set_clock(&mut self, now_s: u32) {
        self.set(|settings| settings.clock_s = now_s);
    }

    /// Changes the settings.
    pub fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.get(&0, 0).expect("the settings are read");
        change(&mut settings);
        self.settings.set(0, settings, 0).expect("the settings are set");
    }

    /// Sets what every CPU has sent.
    pub fn set_resets(&mut self, resets: Resets) {
        let cpus = self.resets.get(&0, 0).expect("the resets are read").len();
        let values = PerCpuValues::try_from(vec![resets; cpus]).expect("one value for each CPU");
        self.resets.set(0, values, 0).expect("the resets are set");
    }

    /// Runs a program on a frame: what it answers and what the frame has become. `None` where the kernel's harness itself refuses the
    /// frame, as it does with socket buffers shorter than an Ethernet header.
    pub fn run(&self, hook: Hook, frame: &[u8]) -> Option<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        match self.test_run(hook, options) {
            Ok(result) => {
                out.truncate(result.data_size_out as usize);
                Some((result.return_value, out))
            }
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(22) => None,
            Err(error) => panic!("{hook:?} cannot run: {error:?}"),
        }
    }

    /// What would become of a frame that comes in, by the program that tells.
    pub fn explain(&self, frame: &[u8]) -> Reason {
        let program = self.object.program(names::EXPLAIN).expect("the object has the program");
        let program = <&SchedClassifier>::try_from(program).expect("it is a classifier");
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let told = program.test_run(options).expect("a whole frame can be run").return_value;
        Reason::ALL[(told & 0xff) as usize]
    }

    /// As [`Kernel::run`] with a socket buffer that came in by another device, and so was forwarded.
    pub fn run_forwarded(&self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        /// Offset of `ingress_ifindex` in `struct __sk_buff` (include/uapi/linux/bpf.h).
        const INGRESS_IFINDEX: usize = 36;
        let mut context = [0; INGRESS_IFINDEX + 4];
        context[INGRESS_IFINDEX..].copy_from_slice(&1u32.to_ne_bytes());
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = self.test_run(hook, options).expect("a whole frame can be run");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Nanoseconds for a run, averaged over `repeat` runs. The frame is not restored in between.
    pub fn time(&self, hook: Hook, frame: &[u8], repeat: u32) -> u64 {
        let mut out = vec![0; frame.len() + 64];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat, ..TestRunOptions::default() };
        let result = self.test_run(hook, options).expect("a whole frame can be run");
        u64::try_from(result.duration.as_nanos()).expect("a run is short")
    }

    fn test_run(&self, hook: Hook, options: TestRunOptions<'_>) -> Result<aya::TestRunResult, ProgramError> {
        let program = self.object.program(hook.program()).expect("the object has the program");
        match hook {
            Hook::Xdp => <&Xdp>::try_from(program)?.test_run(options),
            _ => <&SchedClassifier>::try_from(program)?.test_run(options),
        }
    }

    /// A program, for [`Many`](crate::many::Many).
    pub fn program(&self, hook: Hook) -> BorrowedFd<'_> {
        let program = self.object.program(hook.program()).expect("the object has the program");
        program.fd().expect("it is loaded").as_fd()
    }

    /// The sum over all CPUs of one counter; class 0 has what of the interfaces' counters no class has.
    pub fn count(&self, class: u16, reason: Reason) -> Count {
        let total = |counters: &PerCpuArray<MapData, Count>, index| {
            let counts = counters.get(&index, 0).expect("a counter is read");
            counts.iter().fold((0, 0), |sum, count| (sum.0 + count.packets, sum.1 + count.bytes))
        };
        let classed = |class| total(&self.counters, counter_index(class, reason));
        let (packets, bytes) = match class {
            0 => {
                let all = (0..INTERFACES_MAX)
                    .map(|slot| total(&self.interface_counters, interface_counter_index(slot, reason)));
                let all = all.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
                (1..CLASSES).map(classed).fold(all, |left, count| (left.0 - count.0, left.1 - count.1))
            }
            class => classed(class),
        };
        Count { packets, bytes }
    }

    /// Packets of every class that left for one reason.
    pub fn count_all_classes(&self, reason: Reason) -> u64 {
        (0..CLASSES).map(|class| self.count(class, reason).packets).sum()
    }

    /// Every counter that is not zero.
    pub fn counts(&self) -> BTreeMap<(u16, Reason), Count> {
        let all = (0..CLASSES).flat_map(|class| Reason::ALL.iter().map(move |reason| (class, *reason)));
        all.map(|(class, reason)| ((class, reason), self.count(class, reason)))
            .filter(|(_, count)| count.packets > 0)
            .collect()
    }

    pub fn flows<A>(&self, name: &str) -> Entries<A>
    where
        A: Address,
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        self.entries(name)
    }

    /// Enters IPv4 flows that are established and rewritten to where they go anyway, both entries of each.
    pub fn enter_flows(&mut self, flows: impl Iterator<Item = Tuple<V4>>, class: u16) {
        let epoch = self.settings.get(&0, 0).expect("the settings are read").epoch();
        let mut table = hash::<Tuple<V4>, Flow<V4>>(&mut self.object, names::FLOWS_V4);
        for tuple in flows {
            let answer = tuple.reversed();
            table.insert(tuple, Flow::forward(tuple, class, epoch, 0), 0).expect("a flow is entered");
            table.insert(answer, Flow::reply(answer, class, false, 0), 0).expect("its answers are entered");
        }
    }

    /// The flow table of IPv4.
    pub fn flow_table(&self) -> BorrowedFd<'_> {
        match self.object.map(names::FLOWS_V4) {
            Some(Map::HashMap(map)) => map.fd().as_fd(),
            _ => panic!("the object has the map, and it is a hash"),
        }
    }

    /// The entries of a hash.
    pub fn entries<K: Pod + Ord, V: Pod>(&self, name: &str) -> BTreeMap<K, V> {
        let map = self.object.map(name).expect("the object has the map");
        let map: BpfHashMap<_, K, V> = map.try_into().expect("the map is a hash");
        map.iter().map(|entry| entry.expect("an entry is read")).collect()
    }

    /// How many instructions the verifier has walked of each program, and whether it had its types.
    pub fn verified_instructions(&self) -> Vec<(&'static str, u32, bool)> {
        [
            names::XDP_INGRESS,
            names::TC_INGRESS,
            names::TC_EGRESS,
            names::TC_INGRESS_IP,
            names::TC_EGRESS_IP,
            names::EXPLAIN,
            names::SOCKET_LOOKUP,
        ]
        .into_iter()
        .map(|name| {
            let info = self.object.program(name).expect("the object has the program").info();
            let info = info.expect("a loaded program has info");
            (name, info.verified_instruction_count().unwrap_or(0), info.btf_id().is_some())
        })
        .collect()
    }
}

fn take<M: TryFrom<Map>>(object: &mut Ebpf, name: &str) -> M
where
    M::Error: std::fmt::Debug,
{
    M::try_from(object.take_map(name).expect("the object has the map")).expect("the map has its kind")
}

fn map<'o, M: TryFrom<&'o mut Map>>(object: &'o mut Ebpf, name: &str) -> M
where
    M::Error: std::fmt::Debug,
{
    M::try_from(object.map_mut(name).expect("the object has the map")).expect("the map has its kind")
}

fn hash<'o, K: Pod, V: Pod>(object: &'o mut Ebpf, name: &str) -> BpfHashMap<&'o mut MapData, K, V> {
    map(object, name)
}

fn set_subscriber<A, const PLACES: usize>(
    hosts: &mut Buckets<A, PLACES>,
    prefixes: &mut Buckets<A::Prefix, PLACES>,
    address: A,
    len: u8,
    class: u16,
) where
    A: Address<Prefix: Key + Pod> + Key + Pod,
{
    let subscriber = Subscriber::new(class);
    let set =
        if len == A::BITS { hosts.set(&address, subscriber) } else { prefixes.set(&address.prefix(len), subscriber) };
    set.expect("there is room for a subscriber");
}

/// The same policy in memory.
pub fn model(policy: &Policy, flows_max: u32) -> MemoryTables {
    let tables = MemoryTables {
        classes: policy.classes.clone(),
        relays: policy.relays.clone(),
        established_max: flows_max as usize * 2,
        ..MemoryTables::default()
    };
    for &(address, len, class) in &policy.subscribers {
        match address {
            IpAddr::V4(_) => tables.v4.borrow_mut().prefixes.insert((len, address), class),
            IpAddr::V6(_) => tables.v6.borrow_mut().prefixes.insert((len, address), class),
        };
    }
    tables
}
