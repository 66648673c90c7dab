//! The sweep through the kernel's tables: what is idle goes, what counted as open is counted off, what is settled is forgotten.
//!
//! The programs are not even loaded: the entries are written by hand, as the programs would leave them, and the clock is an argument.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap as BpfHashMap, Map, MapData},
};
use redirect_common::{
    address::{Address, Host, V4, V6},
    flow::{CLOSED_IDLE_S, ESTABLISHED_IDLE_S, Flags, Flow, TRANSITORY_IDLE_S, Tuple},
    maps::names,
};
use redirect_ctl::dataplane::{
    Collected, Dataplane as _, FlowDelivery,
    FlowState::{Closed, Established, HalfOpen},
    kernel::{KernelDataplane, OBJECT},
};

const NOW_S: u32 = 100_000;

/// The maps, once for the data plane and once for the test.
struct Tables {
    dataplane: KernelDataplane,
    flows_v4: BpfHashMap<MapData, Tuple<V4>, Flow<V4>>,
    flows_v6: BpfHashMap<MapData, Tuple<V6>, Flow<V6>>,
    half_open_v4: BpfHashMap<MapData, Tuple<V4>, Flow<V4>>,
    open: BpfHashMap<MapData, Host, u32>,
    reaped: BpfHashMap<MapData, Host, u32>,
}

impl Tables {
    fn new() -> Self {
        let object = EbpfLoader::new().load(OBJECT).expect("making maps needs root");
        Self {
            flows_v4: again(&object, names::FLOWS_V4),
            flows_v6: again(&object, names::FLOWS_V6),
            half_open_v4: again(&object, names::HALF_OPEN_V4),
            open: again(&object, names::OPEN),
            reaped: again(&object, names::REAPED),
            dataplane: KernelDataplane::new(object).unwrap(),
        }
    }

    /// A whole sweep, in steps of a few entries.
    fn sweep(&mut self, now_s: u32) -> Collected {
        let mut removed = 0;
        loop {
            let collected = self.dataplane.collect(now_s, 8).unwrap();
            removed += collected.removed;
            if collected.sweep_done.is_some() {
                return Collected { removed, ..collected };
            }
        }
    }

    fn counts(&self) -> (BTreeMap<IpAddr, u32>, BTreeMap<IpAddr, u32>) {
        let list = |map: &BpfHashMap<MapData, Host, u32>| {
            map.iter().map(|entry| entry.unwrap()).map(|(host, count)| (host.to_ip(), count)).collect()
        };
        (list(&self.open), list(&self.reaped))
    }
}

fn again<K: Pod, V: Pod>(object: &Ebpf, name: &str) -> BpfHashMap<MapData, K, V> {
    let (Map::HashMap(data) | Map::LruHashMap(data)) = object.map(name).unwrap() else { panic!("{name} is no hash") };
    let descriptor = data.fd().as_fd().try_clone_to_owned().unwrap();
    BpfHashMap::try_from(Map::HashMap(MapData::from_fd(descriptor).unwrap())).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn host(text: &str) -> Host {
    ip(text).into()
}

fn v4(text: &str) -> V4 {
    V4::from(text.parse::<std::net::Ipv4Addr>().unwrap())
}

fn v6(text: &str) -> V6 {
    V6::from(text.parse::<std::net::Ipv6Addr>().unwrap())
}

fn port(number: u16) -> [u8; 2] {
    number.to_be_bytes()
}

/// A rewritten flow as two entries with their keys, last seen at `seen_s`; the forward one counts as open.
fn pair<A: Address>(client: A, server: A, relay: A, number: u16, seen_s: u32) -> [(Tuple<A>, Flow<A>); 2] {
    let key = Tuple::new([client, server], [port(number), port(25)]);
    let to = Tuple::new([client, relay], [port(number), port(2525)]);
    let mut forward = Flow::forward(to, 1, 7, seen_s);
    forward.set_counted(true);
    [(key, forward), (to.reversed(), Flow::reply(key.reversed(), 1, false, seen_s))]
}

fn insert<A: Address>(map: &mut BpfHashMap<MapData, Tuple<A>, Flow<A>>, entries: &[(Tuple<A>, Flow<A>)])
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    for (key, flow) in entries {
        map.insert(key, flow, 0).unwrap();
    }
}

#[test]
fn what_ended_unseen_no_longer_counts_as_open() {
    let mut tables = Tables::new();
    let [client, server, relay] = ["10.20.0.5", "203.0.113.9", "192.0.2.25"].map(v4);
    // Two that are idle for too long, one that is not, and the same of IPv6, where the addresses of a /64 count together.
    for number in [1, 2] {
        insert(&mut tables.flows_v4, &pair(client, server, relay, number, NOW_S - ESTABLISHED_IDLE_S - 1));
    }
    insert(&mut tables.flows_v4, &pair(client, server, relay, 3, NOW_S - ESTABLISHED_IDLE_S));
    let [server, relay] = ["2001:db8:113::9", "2001:db8:2::25"].map(v6);
    for address in ["fd00:20::5", "fd00:20::6"] {
        insert(&mut tables.flows_v6, &pair(v6(address), server, relay, 1, NOW_S - ESTABLISHED_IDLE_S - 1));
    }
    // One whose end the packets have seen: they have counted it off themselves.
    let mut closed = pair(v6("fd00:20::7"), server, relay, 1, NOW_S - CLOSED_IDLE_S - 1);
    closed[0].1.set_counted(false);
    closed[0].1.note(Flags(Flags::RST), NOW_S - CLOSED_IDLE_S - 1);
    insert(&mut tables.flows_v6, &closed);
    // And a forward entry that lost its other half.
    let [client, server, relay] = ["10.20.0.6", "203.0.113.9", "192.0.2.25"].map(v4);
    insert(&mut tables.flows_v4, &pair(client, server, relay, 1, NOW_S - TRANSITORY_IDLE_S - 1)[..1]);
    for (address, count) in [("10.20.0.5", 3), ("10.20.0.6", 1), ("fd00:20::", 2)] {
        tables.open.insert(host(address), count, 0).unwrap();
    }

    let collected = tables.sweep(NOW_S);
    assert_eq!(collected.removed, 2 * 2 + 3 * 2 + 1);
    let counts = collected.sweep_done.unwrap();
    assert_eq!((counts.half_open, counts.established), (0, 1));
    assert_eq!(counts.by_relay, [("192.0.2.25:2525".parse().unwrap(), 1)].into());
    let opened = BTreeMap::from([(ip("10.20.0.5"), 3), (ip("10.20.0.6"), 1), (ip("fd00:20::"), 2)]);
    let reaped = BTreeMap::from([(ip("10.20.0.5"), 2), (ip("10.20.0.6"), 1), (ip("fd00:20::"), 2)]);
    assert_eq!(tables.counts(), (opened, reaped));
    assert_eq!(tables.flows_v6.iter().count(), 0);

    // Whoever has nothing open for another sweep is forgotten; a connection more in between, and he is not.
    tables.open.insert(host("10.20.0.6"), 2, 0).unwrap();
    tables.sweep(NOW_S);
    let (opened, reaped) = tables.counts();
    assert_eq!(opened, [(ip("10.20.0.5"), 3), (ip("10.20.0.6"), 2)].into());
    assert_eq!(reaped, [(ip("10.20.0.5"), 2), (ip("10.20.0.6"), 1)].into());

    // The last one goes as well.
    tables.sweep(NOW_S + ESTABLISHED_IDLE_S);
    tables.sweep(NOW_S + ESTABLISHED_IDLE_S);
    let (opened, reaped) = tables.counts();
    assert_eq!((opened, reaped), ([(ip("10.20.0.6"), 2)].into(), [(ip("10.20.0.6"), 1)].into()));
}

#[test]
fn steered_flows_are_listed_found_and_collected_by_their_one_entry() {
    let mut tables = Tables::new();
    let server = v4("203.0.113.9");
    let key = |client: &str| Tuple::new([v4(client), server], [port(40_000), port(25)]);
    let steered = |client: &str, seen_s, flags| {
        let mut flow = Flow::steered(key(client), 3, 7, seen_s);
        flow.set_counted(flags == 0);
        flow.note(Flags(flags), seen_s);
        (key(client), flow)
    };
    insert(
        &mut tables.flows_v4,
        &[
            steered("10.20.0.1", NOW_S - ESTABLISHED_IDLE_S, 0),
            steered("10.20.0.2", NOW_S - ESTABLISHED_IDLE_S - 1, 0),
            steered("10.20.0.3", NOW_S - CLOSED_IDLE_S, Flags::FIN),
            steered("10.20.0.4", NOW_S - CLOSED_IDLE_S - 1, Flags::FIN),
        ],
    );
    insert(&mut tables.half_open_v4, &[steered("10.20.0.5", NOW_S - TRANSITORY_IDLE_S, 0)]);
    tables.open.insert(host("10.20.0.2"), 1, 0).unwrap();

    let mut listed = tables.dataplane.flows().unwrap();
    listed.sort_by_key(|flow| flow.client);
    let states: Vec<_> = listed.iter().map(|flow| flow.state).collect();
    assert_eq!(states, [Established, Established, Closed, Closed, HalfOpen]);
    for flow in &listed {
        assert_eq!((flow.delivery, flow.relay, flow.mapped_port), (FlowDelivery::Steer, None, 40_000));
        assert_eq!((flow.server, flow.class), ("203.0.113.9:25".parse().unwrap(), 3));
    }

    // The relay's socket has the server's address.
    let reader = tables.dataplane.reader();
    let original =
        |client: &str, local: &str| reader.original(client.parse().unwrap(), local.parse().unwrap()).unwrap();
    let found = original("10.20.0.1:40000", "203.0.113.9:25").unwrap();
    assert_eq!(
        (found.client.to_string(), found.server.to_string(), found.class),
        ("10.20.0.1:40000".to_owned(), "203.0.113.9:25".to_owned(), 3)
    );
    assert_eq!(original("10.20.0.5:40000", "203.0.113.9:25").map(|found| found.class), Some(3), "half-open");
    assert_eq!(original("10.20.0.1:40001", "203.0.113.9:25"), None);
    assert_eq!(original("203.0.113.9:25", "10.20.0.1:40000"), None, "the other way round");

    let collected = tables.sweep(NOW_S);
    assert_eq!(collected.removed, 2);
    let counts = collected.sweep_done.unwrap();
    assert_eq!((counts.half_open, counts.established), (1, 1));
    assert_eq!(counts.by_relay, BTreeMap::new());
    let left: Vec<_> = tables.dataplane.flows().unwrap().iter().map(|flow| flow.client.ip().to_string()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(tables.counts().1, [(ip("10.20.0.2"), 1)].into());
}

#[test]
fn rewritten_flows_are_found_by_what_the_relay_sees_and_not_by_what_it_does_not() {
    let mut tables = Tables::new();
    let [client, server, relay] = ["10.20.0.5", "203.0.113.9", "192.0.2.25"].map(v4);
    insert(&mut tables.flows_v4, &pair(client, server, relay, 40_000, NOW_S));
    let reader = tables.dataplane.reader();
    let original = |peer: &str, local: &str| reader.original(peer.parse().unwrap(), local.parse().unwrap()).unwrap();
    let found = original("10.20.0.5:40000", "192.0.2.25:2525").unwrap();
    assert_eq!((found.server, found.class), ("203.0.113.9:25".parse().unwrap(), 1));
    // The forward entry of a rewritten flow explains no socket.
    assert_eq!(original("10.20.0.5:40000", "203.0.113.9:25"), None);
}

#[test]
fn locks_are_kept_until_they_run_out() {
    let mut tables = Tables::new();
    let dataplane = &mut tables.dataplane;
    dataplane.set_lock(host("10.20.0.5"), NOW_S).unwrap();
    dataplane.set_lock(host("fd00:20::7"), NOW_S + 1).unwrap();
    dataplane.set_lock(host("fd00:20::8"), NOW_S + 2).unwrap();
    let locks = BTreeMap::from([(host("10.20.0.5"), NOW_S), (host("fd00:20::"), NOW_S + 2)]);
    assert_eq!(dataplane.locks().unwrap(), locks);
    assert_eq!(dataplane.remove_lock(host("10.20.0.6")).unwrap(), None);
    tables.sweep(NOW_S);
    let dataplane = &mut tables.dataplane;
    assert_eq!(dataplane.locks().unwrap(), [(host("fd00:20::"), NOW_S + 2)].into());
    assert_eq!(dataplane.remove_lock(host("fd00:20::9")).unwrap(), Some(NOW_S + 2));
    assert_eq!(dataplane.locks().unwrap(), BTreeMap::new());
}
