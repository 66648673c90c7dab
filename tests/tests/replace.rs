//! A change of many subscribers while packets come: each packet meets all of it or nothing of it, in every map and both families.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use aya::programs::ProgramFd;
use ipnet::IpNet;
use redirect_common::{
    address::V6,
    bucket::{PLACES_V6, buckets, way},
    maps::names,
    policy::{Action, Class, Fallback},
    testkit::{FrameBuilder, Ip},
};
use redirect_ctl::{
    dataplane::{
        ClassId, Dataplane as _, Error, Operation,
        kernel::{Capacities, KernelDataplane, load},
    },
    reconcile::plan::{Actual, Desired, Order, plan},
};
use redirect_tests::bpf::answer;

/// One class for each table, so that what a packet meets tells of which table it is.
const TABLES: u16 = 60;

/// A data plane without interfaces, and the program that tells the class of a packet.
fn dataplane(subscribers_max: u32) -> (KernelDataplane, ProgramFd) {
    let object = load(Capacities { flows_max: 16, subscribers_max }).expect("loading the programs needs root");
    let explain = object.program(names::EXPLAIN).unwrap().fd().unwrap().try_clone().unwrap();
    let mut dataplane = KernelDataplane::new(object).unwrap();
    for id in 1..=TABLES {
        let class = Class::new(Action::Block, Fallback::Pass, 0);
        dataplane.apply(&Operation::SetClass { id, class }).unwrap();
    }
    (dataplane, explain)
}

/// The class of a client's SYN; 0 for none.
fn class_of(program: &ProgramFd, client: IpAddr) -> ClassId {
    let octets = match client {
        IpAddr::V4(client) => client.octets().to_vec(),
        IpAddr::V6(client) => client.octets().to_vec(),
    };
    let ip = if client.is_ipv4() { Ip::V4 } else { Ip::V6 };
    let builder = FrameBuilder::syn(ip);
    let server = if client.is_ipv4() { builder.server_v4().to_vec() } else { builder.server_v6().to_vec() };
    let told = answer(program.as_fd(), &builder.build_between(&octets, 40_000, &server, 25)).unwrap();
    ClassId::from(told.to_le_bytes()[1])
}

fn clients() -> Vec<IpAddr> {
    let clients = ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1", "fd00:1::1", "fd00:2::1", "fd00:3::1"];
    clients.map(|client| client.parse().unwrap()).into()
}

/// Covers every client by its own class; by what, differs from table to table. `crowd` others make the change last.
fn table(number: ClassId, crowd: u32) -> BTreeMap<IpNet, ClassId> {
    let odd = number % 2 == 1;
    let prefixes = [
        "10.0.0.0/8",
        "10.1.0.1/32",
        if odd { "10.2.0.1/32" } else { "10.2.0.0/16" },
        ["10.3.0.0/24", "10.3.0.0/20", "10.3.0.0/31"][usize::from(number % 3)],
        if odd { "10.4.0.1/32" } else { "10.5.0.1/32" },
        "fd00:1::1/128",
        if odd { "fd00:2::/64" } else { "fd00:2::/48" },
        ["fd00:3::1/128", "fd00:3::/63", "fd00::/16"][usize::from(number % 3)],
        "fd00::/15",
    ];
    let others = (0..crowd).map(|at| {
        let address = IpAddr::V4((0x0a40_0000 + at * 16).into());
        (IpNet::new(address, if at % 2 == 0 { 32 } else { 28 }).unwrap(), number)
    });
    prefixes.into_iter().map(|prefix| (prefix.parse().unwrap(), number)).chain(others).collect()
}

/// What leads from the state of the kernel to a table.
fn operations(dataplane: &KernelDataplane, subscribers: BTreeMap<IpNet, ClassId>, order: Order) -> Vec<Operation> {
    let classes = dataplane.classes().unwrap();
    let actual =
        Actual { classes: classes.clone(), subscribers: dataplane.subscribers().unwrap(), ..Actual::default() };
    plan(&Desired { classes, subscribers, ..Desired::default() }, &actual, order)
}

fn replace(dataplane: &mut KernelDataplane, subscribers: &BTreeMap<IpNet, ClassId>, order: Order) -> Result<(), Error> {
    let operations = operations(dataplane, subscribers.clone(), order);
    operations.iter().try_for_each(|operation| dataplane.apply(operation))
}

#[test]
fn a_packet_meets_the_old_table_or_the_new_one() {
    const CROWD: u32 = 4_000;
    let (mut dataplane, program) = dataplane(16_384);
    replace(&mut dataplane, &table(1, CROWD), Order::AtOnce).unwrap();
    let done = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut last, mut seen) = (1, BTreeSet::new());
            while !done.load(Ordering::Relaxed) {
                for client in clients() {
                    let class = class_of(&program, client);
                    assert!(class >= last, "{client} met table {class}, and a packet before it table {last}");
                    last = class;
                    seen.insert(class);
                }
            }
            seen
        });
        for number in 2..=TABLES {
            replace(&mut dataplane, &table(number, CROWD), Order::AtOnce).unwrap();
            if watch.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    assert!(seen.len() > usize::from(TABLES) / 2, "packets came all the while: {seen:?}");
    assert_eq!(dataplane.subscribers().unwrap(), table(TABLES, CROWD));
}

/// All of them begin in one bucket, which has no place for most.
#[test]
fn a_packet_meets_its_own_entry_while_neighbours_come_and_go() {
    const ROUNDS: u32 = 300;
    const SUBSCRIBERS_MAX: u32 = 16;
    let (mut dataplane, program) = dataplane(SUBSCRIBERS_MAX);
    let set = |client: IpAddr, class: ClassId| Operation::SetSubscriber { prefix: client.into(), class };
    let begin_in_the_first = (1u16..).map(|host| Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, host])).filter(|client| {
        let mut way = way(V6::from(*client), buckets(SUBSCRIBERS_MAX, PLACES_V6));
        way.next() == Some(0)
    });
    let clients: Vec<IpAddr> = begin_in_the_first.map(IpAddr::from).take(SUBSCRIBERS_MAX as usize).collect();
    // Those that stay come last, and find no place where they begin.
    let (comes_and_goes, stays) = clients.split_at(8);
    for client in comes_and_goes {
        dataplane.apply(&set(*client, 2)).unwrap();
    }
    for (class, client) in (3..).zip(stays) {
        dataplane.apply(&set(*client, class)).unwrap();
    }
    let done = AtomicBool::new(false);
    let met = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut met = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for (class, client) in (3..).zip(stays) {
                    assert_eq!(class_of(&program, *client), class, "{client}");
                }
                met.extend(comes_and_goes.iter().map(|client| class_of(&program, *client)));
            }
            met
        });
        for round in 0..ROUNDS {
            for client in comes_and_goes.iter().cycle().skip(round as usize % 8).take(5) {
                dataplane.apply(&set(*client, 2)).unwrap();
            }
            for client in comes_and_goes.iter().cycle().skip(round as usize * 3 % 8).take(6) {
                dataplane.apply(&Operation::RemoveSubscriber { prefix: (*client).into() }).unwrap();
            }
            if watch.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    assert_eq!(met, [0, 2].into(), "with a class of its own, or without");
}

#[test]
fn a_change_that_was_cut_short_is_repaired_and_shows_nothing_half_done() {
    let (mut dataplane, program) = dataplane(1_024);
    replace(&mut dataplane, &table(1, 8), Order::AtOnce).unwrap();
    let mut number = 1;
    for cut in 1..=3 {
        // To another table, which is not reached, and from there to one more.
        let operations = operations(&dataplane, table(number + 1, 8), Order::AtOnce);
        assert_eq!(operations.len(), 3, "{operations:?}");
        for operation in &operations[..cut] {
            dataplane.apply(operation).unwrap();
        }
        let met: BTreeSet<_> = clients().into_iter().map(|client| class_of(&program, client)).collect();
        assert_eq!(met, [if cut == 1 { number } else { number + 1 }].into());
        number += 2;
        replace(&mut dataplane, &table(number, 8), Order::AtOnce).unwrap();
        assert_eq!(dataplane.subscribers().unwrap(), table(number, 8), "cut after {cut}");
        assert!(clients().into_iter().all(|client| class_of(&program, client) == number));
    }
}

#[test]
fn a_change_that_does_not_fit_is_refused_before_a_packet_meets_any_of_it() {
    let subscribers = |network: u8, len: u8, class| -> BTreeMap<IpNet, ClassId> {
        (0..6).map(|at| (IpNet::new([10, network, 0, at * 2].into(), len).unwrap(), class)).collect()
    };
    for len in [32, 31] {
        let (mut dataplane, program) = dataplane(8);
        let (before, after) = (subscribers(1, len, 1), subscribers(2, len, 2));
        replace(&mut dataplane, &before, Order::AtOnce).unwrap();
        let refused = replace(&mut dataplane, &after, Order::AtOnce);
        assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        for (prefix, class) in &before {
            assert_eq!(class_of(&program, prefix.addr()), *class);
        }
        assert!(after.keys().all(|prefix| class_of(&program, prefix.addr()) == 0));
        replace(&mut dataplane, &after, Order::RemovalsFirst).unwrap();
        assert_eq!(dataplane.subscribers().unwrap(), after);
        assert!(after.iter().all(|(prefix, class)| class_of(&program, prefix.addr()) == *class));
        assert!(before.keys().all(|prefix| class_of(&program, prefix.addr()) == 0));
    }
}

#[test]
fn lengths_are_in_use_as_long_as_a_prefix_has_them() {
    let (mut dataplane, program) = dataplane(1_024);
    let address: IpAddr = "fd00::1".parse().unwrap();
    let client = SocketAddr::new(address, 40_000);
    let probe = redirect_ctl::dataplane::Probe { client, server: "[2001:db8::9]:25".parse().unwrap(), interface: None };
    // Every length at once, the longest first; each one gone lets the next shorter one decide.
    let class_of_len = |len: u8| ClassId::from(len % 59) + 1;
    for len in 0..=128 {
        let prefix = IpNet::new(address, len).unwrap().trunc();
        dataplane.apply(&Operation::SetSubscriber { prefix, class: class_of_len(len) }).unwrap();
        assert_eq!(class_of(&program, address), class_of_len(len));
    }
    for len in (0..=128).rev() {
        let prefix = IpNet::new(address, len).unwrap().trunc();
        assert_eq!(class_of(&program, address), class_of_len(len));
        assert_eq!(dataplane.explain(&probe).unwrap().subscriber, Some((prefix, class_of_len(len))));
        dataplane.apply(&Operation::RemoveSubscriber { prefix }).unwrap();
    }
    assert_eq!(class_of(&program, address), 0);
    assert_eq!(dataplane.explain(&probe).unwrap().subscriber, None);
}
