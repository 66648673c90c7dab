//! The loaded programs against the host's function: the same verdict, reason, bytes and tables, on frames whole and broken.
//!
//! Equality shows that what runs in the kernel is what the host tests have proved; `oracle.rs` shows that both are right.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    thread,
};

use aya_obj::{Function, Object, generated::bpf_insn};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket},
};
use redirect_common::{
    address::{Host, V4, V6},
    admit::PORT_TRIES,
    event::Event,
    flow::{Direction, Flags, Flow, Tuple},
    limit::Rate,
    maps::{RESETS_PER_SECOND_MAX, Resets, names},
    parse::Link,
    policy::{Action, Class, Fallback, Limits, OnClassChange, Relay},
    reason::{Reason, Verdict},
    tables::Socket,
    testkit::{FrameBuilder, Ip, MemoryTables, process},
};
use redirect_ctl::dataplane::kernel::OBJECT;
use redirect_tests::{
    kernel::{Hook, Kernel, Policy, model},
    stack,
    tcp::PATIENCE,
    wait_until,
};

const RELAY_PORT: u16 = 2525;
/// Small, so that mutated frames meet a full table too.
const FLOWS_MAX: u32 = 2;

const REDIRECT: u16 = 1;
const PASS: u16 = 2;
const BLOCK: u16 = 3;
const NO_RELAY_PASS: u16 = 4;
const NO_RELAY_BLOCK: u16 = 5;
const REJECT: u16 = 6;
const NO_RELAY_REJECT: u16 = 7;
const KEEP: u16 = 8;
/// Stands in the subscriber table only.
const MISSING: u16 = 9;
const STEER: u16 = 10;
/// To a relay whose endpoint is none that a packet could be rewritten to.
const STEER_ONLY: u16 = 11;
const RATE: u16 = 12;
const OPEN: u16 = 13;

/// Subscribers that get another class now and then.
const WAVERING: [&str; 2] = ["10.20.0.6", "fd00:20::6"];

fn policy() -> Policy {
    let relay = Relay::new(
        Some("10.20.0.1:2525".parse::<SocketAddrV4>().unwrap()),
        Some("[fd00:20::1]:2525".parse::<SocketAddrV6>().unwrap()),
    )
    .own();
    // So far ahead of its pace a subscriber may be that time plays no part in a test.
    let pace = Limits { rate: 1, burst: 1_000_000, lock_after: 4, lock_s: 2, ..Limits::default() };
    let subscriber = |prefix: &str, class| {
        let (address, len) = prefix.split_once('/').unwrap();
        (address.parse().unwrap(), len.parse().unwrap(), class)
    };
    Policy {
        subscribers: vec![
            subscriber("10.20.0.0/16", REDIRECT),
            subscriber("10.20.1.0/24", PASS),
            subscriber("10.20.1.7/32", BLOCK),
            subscriber("10.20.2.0/24", BLOCK),
            subscriber("10.20.3.0/25", NO_RELAY_PASS),
            subscriber("10.20.3.128/25", NO_RELAY_BLOCK),
            subscriber("10.20.4.0/24", MISSING),
            subscriber("10.20.5.0/24", REJECT),
            subscriber("10.20.6.0/24", NO_RELAY_REJECT),
            subscriber("10.20.7.0/24", STEER),
            subscriber("10.20.8.0/24", RATE),
            subscriber("10.20.9.0/24", OPEN),
            subscriber("10.20.10.0/24", KEEP),
            subscriber("10.20.11.0/24", STEER_ONLY),
            subscriber("10.20.0.6/32", REDIRECT),
            subscriber("fd00:20::/64", REDIRECT),
            subscriber("fd00:20::1:0/112", PASS),
            subscriber("fd00:20::1:7/128", BLOCK),
            subscriber("fd00:20::2:0/112", BLOCK),
            subscriber("fd00:20::3:0/113", NO_RELAY_PASS),
            subscriber("fd00:20::3:80/121", NO_RELAY_BLOCK),
            subscriber("fd00:20::4:0/112", MISSING),
            subscriber("fd00:20::5:0/112", REJECT),
            subscriber("fd00:20::6:0/112", NO_RELAY_REJECT),
            subscriber("fd00:20::7:0/112", STEER),
            subscriber("fd00:20::8:0/112", RATE),
            subscriber("fd00:20::9:0/112", OPEN),
            subscriber("fd00:20::a:0/112", KEEP),
            subscriber("fd00:20::b:0/112", STEER_ONLY),
            subscriber("fd00:20::6/128", REDIRECT),
        ],
        classes: [
            (REDIRECT, Class::new(Action::Redirect, Fallback::Pass, 1)),
            (PASS, Class::new(Action::Pass, Fallback::Pass, 0)),
            (BLOCK, Class::new(Action::Block, Fallback::Pass, 0)),
            (NO_RELAY_PASS, Class::new(Action::Redirect, Fallback::Pass, 2)),
            (NO_RELAY_BLOCK, Class::new(Action::Redirect, Fallback::Block, 2)),
            (REJECT, Class::new(Action::Reject, Fallback::Pass, 0)),
            (NO_RELAY_REJECT, Class::new(Action::Redirect, Fallback::Reject, 2)),
            (KEEP, Class::new(Action::Redirect, Fallback::Reject, 1).with_on_class_change(OnClassChange::Keep)),
            (STEER, Class::new(Action::Redirect, Fallback::Pass, 3)),
            (STEER_ONLY, Class::new(Action::Redirect, Fallback::Block, 4)),
            (RATE, Class::new(Action::Redirect, Fallback::Block, 1).with_limits(pace)),
            (
                OPEN,
                Class::new(Action::Redirect, Fallback::Pass, 1)
                    .with_limits(Limits { open_max: 1, ..Limits::default() }),
            ),
        ]
        .into(),
        relays: [(1, relay), (3, relay.steered(false)), (4, relay.steered(true))].into(),
    }
}

/// xorshift64: reproducible, and no dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()].clone()
    }

    fn byte(&mut self, bound: u64) -> u8 {
        u8::try_from(self.below(bound)).unwrap()
    }
}

/// What comes one after another. A handshake that random frames make up is rare.
struct Traffic {
    link: Link,
    random: Random,
    /// Of a handshake that has begun.
    next: VecDeque<(Direction, Vec<u8>)>,
    /// Of the last handshakes.
    live: VecDeque<FrameBuilder>,
}

impl Traffic {
    fn new(link: Link, seed: u64) -> Self {
        Self { link, random: Random(seed), next: VecDeque::new(), live: VecDeque::new() }
    }

    /// The next frame, and whether it is broken.
    fn next(&mut self) -> (Direction, Vec<u8>, bool) {
        const LIVE_MAX: usize = 6;
        let random = &mut self.random;
        if self.next.is_empty() && random.below(24) == 0 {
            let client = random.pick(&[[0, 5], [0, 6], [0, 6], [7, 5], [8, 5], [9, 5], [10, 5]]);
            let client_port = 40_000 + u16::from(random.byte(3));
            let ip = random.pick(&[Ip::V4, Ip::V6]);
            let syn = FrameBuilder { link: self.link, client, client_port, server: 1, ..FrameBuilder::syn(ip) };
            let answer = relay_answer(&FrameBuilder { flags: Flags::SYN | Flags::ACK, sequence: 5000, ..syn.clone() });
            let ack = FrameBuilder { flags: Flags::ACK, acknowledgment: 5001, ..syn.clone() };
            let handshake =
                [(Direction::Forward, syn.build()), (Direction::Reply, answer), (Direction::Forward, ack.build())];
            self.next.extend(handshake);
            self.live.push_back(ack);
            if self.live.len() > LIVE_MAX {
                self.live.pop_front();
            }
        }
        if let Some((direction, frame)) = self.next.pop_front() {
            return (direction, frame, false);
        }
        if !self.live.is_empty() && random.below(4) == 0 {
            let of = usize::try_from(random.below(self.live.len() as u64)).unwrap();
            let flags =
                random.pick(&[Flags::ACK, Flags::ACK, Flags::ACK, Flags::FIN | Flags::ACK, Flags::RST, Flags::SYN]);
            return (Direction::Forward, FrameBuilder { flags, ..self.live[of].clone() }.build(), false);
        }
        let mut frame = frame(self.link, random);
        let mutated = random.below(2) == 0;
        if mutated {
            mutate(&mut frame, random);
        }
        (random.pick(&[Direction::Forward, Direction::Forward, Direction::Reply]), frame, mutated)
    }
}

/// A frame that a subscriber, a server or the relay might send: few endpoints, so that frames meet flows of earlier ones.
fn frame(link: Link, random: &mut Random) -> Vec<u8> {
    let ip = random.pick(&[Ip::V4, Ip::V6]);
    let plain = random.below(2) == 0;
    let builder = FrameBuilder {
        link,
        tags: random.pick(&[vec![], vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100, 0x8100], vec![0x8100; 3]]),
        pppoe: random.pick(&[false, false, true]),
        ip_options: random.pick(&[0, 0, 0, 4, 40]),
        extensions: if plain {
            vec![]
        } else {
            random.pick(&[vec![0], vec![60, 0], vec![43], vec![44], vec![44], vec![0, 44], vec![0, 60, 60, 60]])
        },
        segments_left: random.pick(&[0, 0, 0, 1]),
        protocol: random.pick(&[6, 6, 6, 6, 6, 6, 6, 17]),
        fragment: if plain { 0x4000 } else { random.pick(&[0x4000, 0, 0x2000, 0x2000, 0x00b9, 0x0002]) },
        identification: 7 + u16::from(random.byte(2)),
        client: random.pick(&[
            [0, 5],
            [0, 5],
            [0, 5],
            [0, 6],
            [0, 6],
            [1, 5],
            [1, 7],
            [2, 5],
            [3, 5],
            [3, 0x85],
            [4, 5],
            [5, 5],
            [6, 5],
            [7, 5],
            [7, 5],
            [8, 5],
            [9, 5],
            [9, 5],
            [10, 5],
            [11, 5],
        ]),
        server: random.byte(3),
        client_port: 40_000 + u16::from(random.byte(3)),
        server_port: random.pick(&[25, 25, 25, 25, 25, 587, RELAY_PORT]),
        flags: random.pick(&[
            Flags::SYN,
            Flags::SYN,
            Flags::SYN | Flags::ACK,
            Flags::ACK,
            Flags::ACK,
            Flags::ACK | 8,
            Flags::FIN | Flags::ACK,
            Flags::RST,
            Flags::SYN | Flags::FIN,
            0,
        ]),
        sequence: random.pick(&[1000, 5000, 5000, u32::MAX]),
        acknowledgment: random.pick(&[5001, 5001, 0, 1001]),
        tcp_offset: random.pick(&[5, 5, 5, 5, 4, 15]),
        payload: vec![random.byte(256); usize::from(random.byte(9))],
        ..FrameBuilder::syn(ip)
    };
    match random.below(12) {
        0..=6 => builder.build(),
        7..=9 => relay_answer(&builder),
        number => icmp_error(&builder, number == 10, random),
    }
}

/// An error about a packet of the flow that `builder` stands for: of the server's answer as the subscriber sees it, or of the subscriber's
/// packet as the relay does.
fn icmp_error(builder: &FrameBuilder, of_answer: bool, random: &mut Random) -> Vec<u8> {
    let quoted = FrameBuilder { link: Link::Ip, server_port: 25, ..builder.clone() };
    let (client, server) = match builder.ip {
        Ip::V4 => (builder.client_v4().to_vec(), builder.server_v4().to_vec()),
        Ip::V6 => (builder.client_v6().to_vec(), builder.server_v6().to_vec()),
    };
    let relay = relay_address(builder.ip);
    let (mut quote, complainer, receiver) = if of_answer {
        (quoted.build_between(&server, 25, &client, builder.client_port), client, server)
    } else {
        (quoted.build_between(&client, builder.client_port, &relay, RELAY_PORT), relay, client)
    };
    quote.truncate(random.pick(&[usize::MAX, usize::MAX, 48, 28, 23]));
    let hop = vec![9; receiver.len()];
    let kind = match builder.ip {
        Ip::V4 => random.pick(&[3, 3, 11, 12, 8]),
        Ip::V6 => random.pick(&[1, 2, 3, 4, 128]),
    };
    let (source, receiver) = (random.pick(&[complainer, hop.clone()]), random.pick(&[receiver.clone(), receiver, hop]));
    FrameBuilder { extensions: vec![], ..builder.clone() }.icmp_error(&source, &receiver, kind, &quote)
}

fn relay_address(ip: Ip) -> Vec<u8> {
    match ip {
        Ip::V4 => vec![10, 20, 0, 1],
        Ip::V6 => [&[0xfd, 0, 0, 0x20][..], &[0; 11], &[1]].concat(),
    }
}

/// The frame from the relay to the client instead.
fn relay_answer(builder: &FrameBuilder) -> Vec<u8> {
    let client = match builder.ip {
        Ip::V4 => builder.client_v4().to_vec(),
        Ip::V6 => builder.client_v6().to_vec(),
    };
    builder.build_between(&relay_address(builder.ip), RELAY_PORT, &client, builder.client_port)
}

/// Breaks a frame in a few places, or cuts it.
fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = usize::try_from(random.below(frame.len() as u64)).unwrap();
        frame[at] = random.byte(256);
    }
    if random.below(4) == 0 {
        let len = 14 + usize::try_from(random.below(frame.len() as u64 - 13)).unwrap();
        frame.truncate(len);
    }
}

/// Where a frame's checksum is 0x0000 on one side and 0xffff on the other, both mean zero (RFC 1624 section 3); the kernel's helper and
/// ours differ in the form that an incremental update of a wrong checksum can end in.
fn equal_but_for_the_form_of_zero(left: &[u8], right: &[u8]) -> bool {
    let zero = |pair: &[u8]| pair == [0, 0] || pair == [0xff, 0xff];
    let differing: Vec<usize> = (0..left.len().min(right.len())).filter(|&at| left[at] != right[at]).collect();
    left.len() == right.len()
        && match differing[..] {
            [] => true,
            [first, second] if second == first + 1 => zero(&left[first..=second]) && zero(&right[first..=second]),
            _ => false,
        }
}

fn assert_tables_agree(kernel: &Kernel, host: &MemoryTables) {
    let v4 = host.v4.borrow();
    let v6 = host.v6.borrow();
    assert_eq!(kernel.flows(names::HALF_OPEN_V4), v4.half_open);
    assert_eq!(kernel.flows(names::FLOWS_V4), v4.established);
    assert_eq!(kernel.flows(names::HALF_OPEN_V6), v6.half_open);
    assert_eq!(kernel.flows(names::FLOWS_V6), v6.established);
    assert_eq!(kernel.entries(names::FRAGMENTS_V4), v4.fates);
    assert_eq!(kernel.entries(names::FRAGMENTS_V6), v6.fates);
    assert_eq!(kernel.entries::<Host, u32>(names::OPEN), *host.open.borrow());
    assert_eq!(kernel.entries::<Host, u32>(names::LOCKS), *host.locks.borrow());
    // Their clocks are not the same.
    let refusals = |rates: &BTreeMap<Host, Rate>| -> BTreeMap<Host, _> {
        rates.iter().map(|(host, rate)| (*host, (rate.window_s, rate.refused))).collect()
    };
    assert_eq!(refusals(&kernel.entries(names::RATES)), refusals(&host.rates.borrow()));
    assert_eq!(kernel.counts(), *host.counts.borrow());
}

/// What user space has been told, but for the interface.
fn assert_events_agree(kernel: &mut Kernel, host: &MemoryTables) {
    let told = |events: Vec<Event>| -> Vec<_> {
        events.into_iter().map(|event| (event.class, event.reason(), event.ends())).collect()
    };
    assert_eq!(told(kernel.events()), told(host.events.take()));
}

/// What the daemon and the operator do while packets come: the clock advances, idle flows are collected, subscribers get other classes, and
/// one's pace is up or forgotten.
fn run_daemon(number: u32, kernel: &mut Kernel, host: &mut MemoryTables, random: &mut Random) {
    if number.is_multiple_of(64) {
        host.now_s += 1;
        kernel.set_clock(host.now_s);
        assert_events_agree(kernel, host);
    }
    if number.is_multiple_of(512) {
        let exhausted = Rate { due_ns: u64::MAX / 2, ..Rate::default() };
        for client in ["10.20.8.5", "fd00:20::"] {
            let subscriber = Host::from(client.parse::<IpAddr>().unwrap());
            let rate = random.pick(&[Rate::default(), exhausted]);
            kernel.set_rate(subscriber, rate);
            host.rates.borrow_mut().insert(subscriber, rate);
        }
    }
    if number.is_multiple_of(256) {
        host.epoch += 1;
        kernel.set(|settings| settings.revision += 1);
        for client in WAVERING.map(|client| client.parse::<IpAddr>().unwrap()) {
            let class = random.pick(&[REDIRECT, PASS, BLOCK, KEEP, STEER, OPEN]);
            let len = if client.is_ipv4() { 32 } else { 128 };
            kernel.set_subscriber(client, len, class);
            match client {
                IpAddr::V4(_) => host.v4.borrow_mut().prefixes.insert((len, client), class),
                IpAddr::V6(_) => host.v6.borrow_mut().prefixes.insert((len, client), class),
            };
        }
    }
    if number.is_multiple_of(320) {
        kernel.clear::<Tuple<V4>, Flow<V4>>(names::FLOWS_V4);
        kernel.clear::<Tuple<V6>, Flow<V6>>(names::FLOWS_V6);
        kernel.clear::<Host, u32>(names::OPEN);
        host.v4.borrow_mut().established.clear();
        host.v6.borrow_mut().established.clear();
        host.open.borrow_mut().clear();
    }
}

/// Runs `frames` frames through an ingress and an egress program, and the host's function. Returns what was never seen.
fn differential(ingress: Hook, egress: Hook, frames: u32, seed: u64, connected: &[Connection]) -> Vec<Reason> {
    let policy = policy();
    let mut kernel = Kernel::load(&policy, FLOWS_MAX);
    let mut host = model(&policy, FLOWS_MAX);
    kernel.set(|settings| {
        (settings.mark, settings.mark_mask) = (0x0100_0000, 0x0f00_0000);
        settings.events_per_second = u32::MAX;
    });
    // A frame in the driver has no mark.
    host.steering = ingress != Hook::Xdp;
    for connection in connected {
        connection.note(&host);
    }
    let mut traffic = Traffic::new(ingress.link(), seed);
    let mut refused = 0;
    for number in 0..frames {
        run_daemon(number, &mut kernel, &mut host, &mut traffic.random);
        let (direction, frame, mutated) = traffic.next();
        let hook = if direction == Direction::Forward { ingress } else { egress };
        let Some((code, out)) = kernel.run(hook, &frame) else {
            assert!(mutated, "the harness takes whole frames: {frame:02x?}");
            refused += 1;
            continue;
        };
        let mut expected = frame.clone();
        let reason = process(&mut expected, hook.link(), &host, hook.direction());
        let verdict = reason.verdict();
        assert_eq!(code, hook.code(verdict), "{number}, {hook:?}: {reason:?} of {frame:02x?}");
        let same = match hook {
            Hook::Xdp => out == expected,
            _ => equal_but_for_the_form_of_zero(&out, &expected),
        };
        assert!(same, "{number}, {hook:?}: {reason:?} of {frame:02x?}\n{out:02x?} instead of\n{expected:02x?}");
        if matches!(verdict, Verdict::Pass | Verdict::Drop | Verdict::Steer) {
            assert_eq!(expected, frame, "{verdict:?} leaves a frame as it is");
        }
    }
    assert_events_agree(&mut kernel, &host);
    assert_tables_agree(&kernel, &host);
    assert!(refused * 10 < frames, "the harness refused {refused} of {frames} frames");

    let taken: Vec<Reason> = kernel.counts().keys().map(|(_, reason)| *reason).collect();
    Reason::ALL.iter().copied().filter(|reason| !taken.contains(reason)).collect()
}

/// Those that have tests of their own, below and in `heartbeat.rs`.
const NEVER_SEEN: [Reason; 9] = [
    Reason::EditFailed,
    Reason::ClashPass,
    Reason::ClashBlock,
    Reason::ClashReject,
    Reason::RejectLimited,
    Reason::ReplyForwarded,
    Reason::DaemonDownPass,
    Reason::DaemonDownBlock,
    Reason::DaemonDownReject,
];

/// Frames for each pair of programs: `FRAMES=1000000 cargo test …` runs a million.
fn frames() -> u32 {
    std::env::var("FRAMES").map_or(120_000, |frames| frames.parse().expect("FRAMES is a number"))
}

/// A differential that never gets anywhere proves nothing: every way out must have been taken.
fn assert_all_seen(missing: &[Reason], but: &[Reason]) {
    let missing: Vec<_> =
        missing.iter().filter(|reason| !NEVER_SEEN.contains(reason) && !but.contains(reason)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}

/// A connection of a steered subscriber, in the namespace of its own that its thread is in.
struct Connection {
    client: SocketAddr,
    server: SocketAddr,
    _ends: [OwnedFd; 2],
}

impl Connection {
    fn open(client: SocketAddr, server: SocketAddr) -> Self {
        let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let listener = TcpListener::bind(server).unwrap();
        let from = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(from.as_raw_fd(), &SockaddrStorage::from(client)).unwrap();
        // An IPv6 address works a moment after it was added.
        let connected = || match connect(from.as_raw_fd(), &SockaddrStorage::from(server)) {
            Err(Errno::ENETUNREACH) => Ok(None),
            outcome => Ok(Some(outcome?)),
        };
        wait_until("route to the server", PATIENCE, connected).unwrap();
        let to = listener.accept().unwrap().0;
        Self { client, server, _ends: [from, to.into()] }
    }

    /// Tells the host's tables.
    fn note(&self, host: &MemoryTables) {
        let ports = [self.client.port(), self.server.port()].map(u16::to_be_bytes);
        match (self.client.ip(), self.server.ip()) {
            (IpAddr::V4(client), IpAddr::V4(server)) => {
                let tuple = Tuple::new([client, server].map(V4::from), ports);
                host.v4.borrow_mut().sockets.insert(tuple, Socket::Connected);
            }
            (IpAddr::V6(client), IpAddr::V6(server)) => {
                let tuple = Tuple::new([client, server].map(V6::from), ports);
                host.v6.borrow_mut().sockets.insert(tuple, Socket::Connected);
            }
            _ => panic!("both ends are of one family"),
        }
    }
}

/// Runs `inside` in a network namespace that nobody else sees, with steered subscribers' connections.
fn with_connections<T: Send>(inside: impl FnOnce(&[Connection]) -> T + Send) -> T {
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace needs root");
        let ip = |arguments: &str| {
            let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        };
        ip("link set lo up");
        let ends = [
            ("10.20.7.5:40000", "203.0.113.1:25"),
            ("10.20.7.5:40001", "203.0.113.2:25"),
            ("[fd00:20::7:5]:40000", "[2001:db8::1]:25"),
            ("[fd00:20::7:5]:40001", "[2001:db8::2]:25"),
        ];
        let ends: [(SocketAddr, SocketAddr); 4] =
            ends.map(|(client, server)| (client.parse().unwrap(), server.parse().unwrap()));
        let addresses: BTreeSet<IpAddr> = ends.iter().flat_map(|(client, server)| [client.ip(), server.ip()]).collect();
        for address in addresses {
            ip(&format!("address add {address} dev lo{}", if address.is_ipv6() { " nodad" } else { "" }));
        }
        inside(&ends.map(|(client, server)| Connection::open(client, server)))
    };
    thread::scope(|scope| scope.spawn(alone).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn xdp_agrees_with_the_host() {
    let missing = differential(Hook::Xdp, Hook::TcEgress, frames(), 0x9e37_79b9_7f4a_7c15, &[]);
    let steered = Reason::ALL.iter().copied().filter(|reason| reason.verdict() == Verdict::Steer);
    assert_all_seen(&missing, &steered.collect::<Vec<_>>());
}

#[test]
fn tc_agrees_with_the_host() {
    let missing = with_connections(|connections| {
        differential(Hook::TcIngress, Hook::TcEgress, frames(), 0x2545_f491_4f6c_dd1d, connections)
    });
    assert_all_seen(&missing, &[]);
}

#[test]
fn tc_without_ethernet_agrees_with_the_host() {
    let missing = with_connections(|connections| {
        differential(Hook::TcIngressIp, Hook::TcEgressIp, frames(), 0xa076_1d64_78bd_642f, connections)
    });
    assert_all_seen(&missing, &[]);
}

/// The client ports that the data plane would try toward the relay for a flow to server 9, found by taking them away one after another.
fn ports_tried(policy: &Policy, ip: Ip) -> Vec<u16> {
    let mut taken = vec![FrameBuilder::syn(ip).client_port];
    while taken.len() < usize::try_from(PORT_TRIES).unwrap() {
        let host = model(policy, FLOWS_MAX);
        for &client_port in &taken {
            let mut frame = FrameBuilder { client_port, server: 77, ..FrameBuilder::syn(ip) }.build();
            process(&mut frame, Link::Ethernet, &host, Direction::Forward);
        }
        let mut frame = FrameBuilder::syn(ip).build();
        assert_eq!(
            process(&mut frame, Link::Ethernet, &host, Direction::Forward).verdict(),
            Verdict::Redirect,
            "{} ports are taken",
            taken.len()
        );
        let l4 = frame.len() - 20;
        let port = u16::from_be_bytes([frame[l4], frame[l4 + 1]]);
        assert!(!taken.contains(&port) && port >= 1024, "{port} is free and not reserved");
        taken.push(port);
    }
    taken
}

#[test]
fn a_clash_is_mapped_to_another_port_and_decided_by_the_class_when_none_is_free() {
    for (fallback, reason) in [
        (Fallback::Pass, Reason::ClashPass),
        (Fallback::Block, Reason::ClashBlock),
        (Fallback::Reject, Reason::ClashReject),
    ] {
        for (ip, hook) in
            [(Ip::V4, Hook::Xdp), (Ip::V6, Hook::Xdp), (Ip::V4, Hook::TcIngress), (Ip::V6, Hook::TcIngress)]
        {
            let mut policy = policy();
            policy.classes.insert(REDIRECT, Class::new(Action::Redirect, fallback, 1));
            let kernel = Kernel::load(&policy, FLOWS_MAX);
            for client_port in ports_tried(&policy, ip) {
                kernel.run(hook, &FrameBuilder { client_port, server: 77, ..FrameBuilder::syn(ip) }.build()).unwrap();
            }
            let frame = FrameBuilder::syn(ip).build();
            let (code, out) = kernel.run(hook, &frame).unwrap();
            assert_eq!(code, hook.code(reason.verdict()), "{ip:?} {hook:?}");
            assert_eq!(out == frame, reason.verdict() != Verdict::Reject, "{ip:?} {hook:?}");
            assert_eq!(kernel.count(REDIRECT, reason).packets, 1);
            assert_eq!(kernel.count(REDIRECT, Reason::FlowNew).packets, u64::from(PORT_TRIES));
        }
    }
}

#[test]
fn what_is_forwarded_is_no_answer_of_our_relay() {
    for ip in [Ip::V4, Ip::V6] {
        let kernel = Kernel::load(&policy(), FLOWS_MAX);
        kernel.run(Hook::TcIngress, &FrameBuilder::syn(ip).build()).unwrap();
        let answer = relay_answer(&FrameBuilder { flags: Flags::RST, ..FrameBuilder::syn(ip) });
        let forged = kernel.run_forwarded(Hook::TcEgress, &answer);
        assert_eq!(forged, (Hook::TcEgress.code(Verdict::Pass), answer.clone()));
        assert_eq!(kernel.count(REDIRECT, Reason::ReplyForwarded).packets, 1);
        assert_ne!(kernel.run(Hook::TcEgress, &answer).unwrap().1, answer, "the relay's own is translated");

        // A relay elsewhere can only answer by way of us.
        let mut policy = policy();
        let endpoints = (Some("10.20.0.1:2525".parse().unwrap()), Some("[fd00:20::1]:2525".parse().unwrap()));
        policy.relays.insert(1, Relay::new(endpoints.0, endpoints.1));
        let kernel = Kernel::load(&policy, FLOWS_MAX);
        kernel.run(Hook::TcIngress, &FrameBuilder::syn(ip).build()).unwrap();
        assert_ne!(kernel.run_forwarded(Hook::TcEgress, &answer).1, answer, "translated");
    }
}

#[test]
fn resets_are_bounded() {
    for (hook, ip) in [(Hook::Xdp, Ip::V4), (Hook::TcIngress, Ip::V6)] {
        let mut kernel = Kernel::load(&policy(), FLOWS_MAX);
        kernel.set_clock(7);
        let frame = FrameBuilder { client: [5, 5], ..FrameBuilder::syn(ip) }.build();
        kernel.set_resets(Resets { second_s: 7, sent: RESETS_PER_SECOND_MAX - 1 });
        assert_eq!(kernel.run(hook, &frame).unwrap().0, hook.code(Verdict::Reject), "the last one of the second");
        kernel.set_resets(Resets { second_s: 7, sent: RESETS_PER_SECOND_MAX });
        assert_eq!(kernel.run(hook, &frame).unwrap(), (hook.code(Verdict::Drop), frame.clone()));
        assert_eq!(kernel.count(REJECT, Reason::RejectLimited).packets, 1);
        kernel.set_clock(8);
        assert_eq!(kernel.run(hook, &frame).unwrap().0, hook.code(Verdict::Reject), "another second");
    }
}

#[test]
fn a_syn_on_a_live_flow_is_explained_as_it_is_decided() {
    for ip in [Ip::V4, Ip::V6] {
        let mut kernel = Kernel::load(&policy(), FLOWS_MAX);
        let syn = FrameBuilder { client: [0, 6], ..FrameBuilder::syn(ip) };
        let answer = FrameBuilder { flags: Flags::SYN | Flags::ACK, sequence: 5000, ..syn.clone() };
        let ack = FrameBuilder { flags: Flags::ACK, acknowledgment: 5001, ..syn.clone() };
        kernel.run(Hook::TcIngress, &syn.build()).unwrap();
        kernel.run(Hook::TcEgress, &relay_answer(&answer)).unwrap();
        kernel.run(Hook::TcIngress, &ack.build()).unwrap();
        // The daemon is not done with it, so the flow goes on; but no class that refuses connections lets a SYN get there.
        for (class, counts_for, reason) in [
            (PASS, REDIRECT, Reason::FlowEstablished),
            (BLOCK, BLOCK, Reason::ClassBlock),
            (REJECT, REJECT, Reason::ClassReject),
        ] {
            for client in WAVERING.map(|client| client.parse::<IpAddr>().unwrap()) {
                kernel.set_subscriber(client, if client.is_ipv4() { 32 } else { 128 }, class);
            }
            assert_eq!(kernel.explain(&syn.build()), reason, "{ip:?}");
            assert_eq!(kernel.count(counts_for, reason).packets, 0, "nothing has happened");
            kernel.run(Hook::TcIngress, &syn.build()).unwrap();
            assert_eq!(kernel.count(counts_for, reason).packets, 1);
        }
    }
}

/// The verifier gives up at a million instructions walked. Older kernels walk more of them than newer ones, so there must be room.
#[test]
fn programs_are_far_from_the_verifiers_limit() {
    for (name, instructions, has_types) in Kernel::load(&policy(), FLOWS_MAX).verified_instructions() {
        println!("{name}: {instructions} verified instructions");
        // What explains works on copies, and is to be loaded once and met by no packet.
        let bound = if name == "redirect_explain" { 350_000 } else { 280_000 };
        assert!(instructions > 0 && instructions < bound, "{name}: {instructions}");
        assert!(has_types, "{name}: the kernel refuses the types, by which it knows what to verify once");
    }
}

/// What an established flow's segment costs, by the program itself: two look-ups, of the settings, which are an array, and of the flow; the
/// helpers of socket buffers edit them. There is no longest-prefix match, no clock, no atomic addition, and no function beyond.
#[test]
fn the_established_path_is_one_look_up_of_a_flow() {
    /// `bpf_skb_store_bytes`, `bpf_l4_csum_replace`, `bpf_csum_update`.
    const EDITORS: [i32; 3] = [9, 11, 40];
    let object = Object::parse(OBJECT).unwrap();
    let paths = object.functions.values().filter(|function| {
        // What explains works on copies.
        ["send_on", "send_back"].iter().any(|name| function.name.contains(name)) && !function.name.contains("DryRun")
    });
    let mut seen = 0;
    for function in paths {
        let name = &function.name;
        let mut calls = function.instructions.iter().filter(|instruction| instruction.code == CALL);
        assert!(calls.all(|call| call.src_reg() == 0), "{name} calls another function");
        let (look_ups, others): (Vec<_>, Vec<_>) = helpers(function).into_iter().partition(|helper| *helper == LOOK_UP);
        assert_eq!(look_ups.len(), 2, "{name}");
        let editors = if name.contains("XdpFrame") { &[][..] } else { &EDITORS };
        assert!(others.iter().all(|helper| editors.contains(helper)), "{name}: {others:?}");
        assert!(!has_atomics(function), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 5, "of socket buffers four: of each family, and each way; of XDP that of IPv6");
}

/// XDP sends a plain segment of IPv4 on in the program itself. That has look-ups beside it, of what other packets need, and calls no function but
/// on their behalf.
#[test]
fn the_established_path_of_ipv4_in_xdp_takes_no_call() {
    /// `bpf_ringbuf_reserve`, `bpf_ringbuf_submit`, `bpf_ringbuf_discard`: the log, of what never happens.
    const LOG: [i32; 3] = [131, 132, 133];
    const OTHERS: [&str; 9] = [
        "follow_first",
        "handle_segment",
        "parse_pulling",
        "prefix_v4",
        "refuse_frame",
        "refuse_opening_apart",
        "report",
        "send_on_apart",
        "translate_error",
    ];
    let object = Object::parse(OBJECT).unwrap();
    let program = object.functions.values().find(|function| function.name == "redirect_xdp").unwrap();
    let callees = callees(program);
    let is_known = |callee: &String| OTHERS.iter().any(|name| callee.contains(name));
    assert!(!callees.is_empty() && callees.iter().all(is_known), "{callees:?}");
    let ipv4 = |callee: &&String| callee.contains("_apart") && !callee.contains("2V6");
    assert_eq!(callees.iter().find(ipv4), None);
    let others: Vec<_> = helpers(program).into_iter().filter(|helper| *helper != LOOK_UP).collect();
    assert!(others.iter().all(|helper| LOG.contains(helper)), "{others:?}");
    assert!(!has_atomics(program));
}

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `bpf_map_lookup_elem`.
const LOOK_UP: i32 = 1;

/// The numbers of the helpers that a function calls.
fn helpers(function: &Function) -> Vec<i32> {
    let calls = function.instructions.iter().filter(|instruction| instruction.code == CALL);
    calls.filter(|call| call.src_reg() == 0).map(|call| call.imm).collect()
}

/// The names of the functions that a program calls itself.
fn callees(program: &Function) -> BTreeSet<String> {
    let object = Object::parse(OBJECT).unwrap();
    let mut linked = object.clone();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    linked.relocate_calls(&sections).unwrap();
    // The program, and behind it the functions, of which linking changes numbers only.
    let linked = linked.functions.values().find(|function| function.name == program.name).unwrap();
    let shape = |instruction: &bpf_insn| (instruction.code, instruction.dst_reg(), instruction.off);
    let name = |start: usize| {
        let is_there = |function: &&Function| {
            let there = linked.instructions[start..].iter().map(shape);
            let own = function.instructions.iter().map(shape);
            own.len() <= there.len() && own.eq(there.take(function.instructions.len()))
        };
        object.functions.values().find(is_there).unwrap().name.clone()
    };
    let own = linked.instructions.iter().take(program.instructions.len()).enumerate();
    own.filter(|(_, call)| call.code == CALL && call.src_reg() == 1)
        .map(|(at, call)| name(at.checked_add_signed(call.imm as isize + 1).unwrap()))
        .collect()
}

fn has_atomics(function: &Function) -> bool {
    /// `BPF_STX | BPF_ATOMIC`, without the size.
    const ATOMIC: u8 = 0xc3;
    const SIZE: u8 = 0x18;
    function.instructions.iter().any(|instruction| instruction.code & !SIZE == ATOMIC)
}

/// The kernel at hand may be more generous than others.
#[test]
fn stacks_fit_on_every_kernel() {
    for (name, chain) in stack::deepest(OBJECT).unwrap() {
        println!("{name}: {chain:?}");
        assert!(chain.iter().sum::<usize>() <= stack::BYTES_MAX, "{name}: {chain:?}");
    }
}
