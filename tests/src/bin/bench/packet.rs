//! What each step on the packet path costs, by `BPF_PROG_TEST_RUN`, beside a program of the same hook that only passes.
//!
//! Two traps of that call are avoided. It does not restore a rewritten frame between repeats, so the relay of these rows has the very
//! address and port that the client dials: every byte is written and every checksum updated, and the frame stays what it was; a program before
//! the one under test makes it another client's. And the call's own cost, 28 to 40 ns, is in both columns; "net" is the difference. The rows
//! beside `lookup` have that cost taken off both columns already: their ratio is that of what the programs themselves cost.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use redirect_common::{
    address::V4,
    flow::{Flags, Tuple},
    policy::{Action, Class, Fallback, Relay},
    reason::Reason,
    testkit::{FrameBuilder, Ip},
};
use redirect_tests::{
    floor::Floor,
    kernel::{Hook, Kernel, Policy},
    many::{Clients, Many},
};

use crate::report::{Report, Row, Unit};

/// Turns of ours and theirs.
const TURNS: usize = 9;
/// Runs in a turn, for frames that may be repeated.
const REPEAT: u32 = 1_000_000;
/// Runs in a turn, for frames each of which opens a flow.
const NEW_FLOWS: u32 = 200_000;
/// Subscribers, and flows, where there are many.
const MANY: u32 = 1_000_000;
/// `10.128.0.0`, or the end of an IPv6 address.
const CLIENTS: u32 = 0x0a80_0000;
/// Odd, so that different numbers have different products; 2^32 divided by the golden ratio.
const SCATTER: u32 = 0x9e37_79b1;
const FLOOR: &str = "pass";

fn policy() -> Policy {
    let relay = Relay::new(
        Some("203.0.113.9:25".parse().expect("an address")),
        Some("[2001:db8::9]:25".parse().expect("an address")),
    );
    Policy {
        subscribers: [("10.0.0.0", 8, 1), ("10.20.2.0", 24, 2), ("fd00:20::", 64, 1), ("fd00:20::2:0", 112, 2)]
            .map(|(address, len, class)| (address.parse().expect("an address"), len, class))
            .into(),
        classes: [
            (1, Class::new(Action::Redirect, Fallback::Pass, 1)),
            (2, Class::new(Action::Block, Fallback::Pass, 0)),
        ]
        .into(),
        relays: [(1, relay)].into(),
    }
}

/// Establishes the flow of [`FrameBuilder::syn`] and returns a data segment of it.
fn establish(kernel: &Kernel, ingress: Hook, ip: Ip) -> anyhow::Result<Vec<u8>> {
    let syn = FrameBuilder::syn(ip);
    let answer = FrameBuilder { flags: Flags::SYN | Flags::ACK, sequence: 5000, reversed: true, ..syn.clone() };
    let data = FrameBuilder { flags: Flags::ACK, acknowledgment: 5001, payload: vec![0; 1000], ..syn.clone() };
    for (hook, frame) in [(ingress, syn.build()), (Hook::TcEgress, answer.build()), (ingress, data.build())] {
        kernel.run(hook, &frame).context("a whole frame runs")?;
    }
    anyhow::ensure!(kernel.count(1, Reason::FlowPromoted).packets > 0, "the flow is established");
    Ok(data.build())
}

/// A frame repeated, and the reason that must have counted every run.
fn repeated(kernel: &Kernel, hook: Hook, frame: &[u8], class: u16, reason: Reason, name: &str) -> anyhow::Result<Row> {
    let floor = Floor::load(hook)?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let before = kernel.count(class, reason).packets;
        let ours = kernel.time(hook, frame, REPEAT);
        let counted = kernel.count(class, reason).packets - before;
        anyhow::ensure!(counted == u64::from(REPEAT), "{name}: {counted} of {REPEAT} runs left by {}", reason.name());
        turns.push((as_f64(ours), as_f64(floor.time(frame, REPEAT)?)));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, FLOOR, &turns))
}

/// A frame that comes from another client each time, and the reason that must have counted every run.
fn from_many(kernel: &Kernel, hook: Hook, ip: Ip, what: &Frames, name: &str) -> anyhow::Result<Row> {
    let floor = Floor::load(hook)?;
    let many = |program| Many::load(hook, program, &what.clients, ip == Ip::V6);
    let (ours, pass) = (many(kernel.program(hook))?, many(floor.as_fd())?);
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push((as_f64(what.run(kernel, &ours, name)?), as_f64(pass.time(&what.frame, what.repeat)?)));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, FLOOR, &turns))
}

/// The same beside the look-up alone, both without what passing costs.
fn beside_lookup(kernel: &Kernel, hook: Hook, what: &Frames, name: &str) -> anyhow::Result<Row> {
    let (pass, lookup) = (Floor::load(hook)?, Floor::load_with_lookup(hook, kernel.flow_table())?);
    let many = |program| Many::load(hook, program, &what.clients, false);
    let (ours, lookup, pass) = (many(kernel.program(hook))?, many(lookup.as_fd())?, many(pass.as_fd())?);
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let floor = as_f64(pass.time(&what.frame, what.repeat)?);
        let ours = as_f64(what.run(kernel, &ours, name)?);
        turns.push((ours - floor, as_f64(lookup.time(&what.frame, what.repeat)?) - floor));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, "lookup", &turns))
}

/// A frame, whose it is, and by what reason it leaves.
struct Frames {
    frame: Vec<u8>,
    clients: Clients,
    repeat: u32,
    reason: Reason,
}

impl Frames {
    /// SYNs, each of a new flow: so many that the table of half-open flows has forgotten those of the last round.
    fn syns(ip: Ip, clients: Clients) -> Self {
        // Not the port of established flows.
        let syn = FrameBuilder { client_port: 50_000, ..FrameBuilder::syn(ip) };
        Self { frame: syn.build(), clients, repeat: NEW_FLOWS, reason: Reason::FlowNew }
    }

    /// Data of established flows.
    fn data(clients: Clients) -> Self {
        let segment = FrameBuilder { flags: Flags::ACK, payload: vec![0; 1000], ..FrameBuilder::syn(Ip::V4) };
        Self { frame: segment.build(), clients, repeat: REPEAT, reason: Reason::FlowEstablished }
    }

    fn run(&self, kernel: &Kernel, program: &Many, name: &str) -> anyhow::Result<u64> {
        let before = kernel.count(1, self.reason).packets;
        let time = program.time(&self.frame, self.repeat)?;
        let counted = kernel.count(1, self.reason).packets - before;
        let (repeat, reason) = (self.repeat, self.reason.name());
        anyhow::ensure!(counted == u64::from(repeat), "{name}: {counted} of {repeat} left by {reason}");
        Ok(time)
    }

    /// The flow of each client.
    fn flows(&self) -> impl Iterator<Item = Tuple<V4>> {
        let Clients { count, .. } = self.clients;
        let FrameBuilder { client_port, server_port, .. } = FrameBuilder::syn(Ip::V4);
        let ports = [client_port, server_port].map(u16::to_be_bytes);
        let server = Ipv4Addr::new(203, 0, 113, 9);
        let client = |number| Ipv4Addr::from(self.clients.address(number));
        (0..count).map(move |number| Tuple::new([client(number), server].map(V4::from), ports))
    }
}

/// Half of a million subscribers are hosts, scattered over all addresses.
const HOSTS: Clients = Clients { count: MANY / 2, base: 0, multiplier: SCATTER, shift: 0 };
/// The others are prefixes of 28 bits.
const PREFIXES: Clients = Clients { shift: 4, ..HOSTS };

fn crowd() -> impl Iterator<Item = (IpAddr, u8, u16)> {
    let subscriber = |clients: Clients, len| {
        (0..clients.count).map(move |number| (Ipv4Addr::from(clients.address(number)).into(), len, 1))
    };
    subscriber(HOSTS, 32).chain(subscriber(PREFIXES, 28))
}

/// With a million flows and a million subscribers.
fn crowded(hook: Hook, label: &str) -> anyhow::Result<Vec<Row>> {
    let mut policy = policy();
    policy.subscribers.extend(crowd());
    let mut kernel = Kernel::load(&policy, MANY);
    let data = Frames::data(Clients::from(CLIENTS, MANY));
    kernel.enter_flows(data.flows(), 1);
    let mut rows = bystanders(&kernel, hook, &format!("{label}_1m"))?;
    rows.push(beside_lookup(&kernel, hook, &data, &format!("{label}_1m_redirected_established_ipv4"))?);
    for (clients, kind) in [(HOSTS, "host"), (PREFIXES, "prefix")] {
        let name = format!("{label}_1m_new_flow_of_{kind}");
        rows.push(from_many(&kernel, hook, Ip::V4, &Frames::syns(Ip::V4, clients), &name)?);
    }
    Ok(rows)
}

/// What is none of our business, in each shape.
fn bystanders(kernel: &Kernel, hook: Hook, label: &str) -> anyhow::Result<Vec<Row>> {
    let web = |ip, payload| FrameBuilder {
        server_port: 443,
        flags: Flags::ACK,
        payload: vec![0; payload],
        ..FrameBuilder::syn(ip)
    };
    let rows = [
        (web(Ip::V4, 64 - 54), Reason::OtherPort, "tcp_64"),
        (web(Ip::V4, 1500 - 40), Reason::OtherPort, "tcp_1500"),
        (web(Ip::V6, 0), Reason::OtherPort, "tcp_ipv6"),
        (FrameBuilder { tags: vec![0x88a8, 0x8100], ..web(Ip::V4, 0) }, Reason::OtherPort, "tcp_qinq"),
        (FrameBuilder { protocol: 17, ..web(Ip::V4, 0) }, Reason::NotTcp, "udp"),
        (FrameBuilder { protocol: 17, ..web(Ip::V6, 0) }, Reason::NotTcp, "udp_ipv6"),
    ];
    let row = |(frame, reason, shape): (FrameBuilder, Reason, &str)| {
        repeated(kernel, hook, &frame.build(), 0, reason, &format!("{label}_bystander_{shape}"))
    };
    rows.into_iter().map(row).collect()
}

fn as_f64(nanoseconds: u64) -> f64 {
    u32::try_from(nanoseconds).map_or(f64::INFINITY, f64::from)
}

pub(crate) fn run() -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    for (hook, label) in [(Hook::Xdp, "xdp"), (Hook::TcIngress, "tc")] {
        let kernel = Kernel::load(&policy(), 65_536);
        let floor = Floor::load(hook)?;
        let small = FrameBuilder { payload: vec![0; 64 - 54], ..FrameBuilder::syn(Ip::V4) }.build();
        let floor_turns: Result<Vec<_>, std::io::Error> = (0..TURNS)
            .map(|_| Ok((as_f64(floor.time(&small, REPEAT)?), as_f64(floor.time(&small, REPEAT)?))))
            .collect();
        rows.push(Row::new(&format!("{label}_floor"), Unit::NANOSECONDS, FLOOR, &floor_turns?));
        rows.extend(bystanders(&kernel, hook, label)?);
        for (ip, family) in [(Ip::V4, "ipv4"), (Ip::V6, "ipv6")] {
            let data = establish(&kernel, hook, ip)?;
            rows.push(repeated(
                &kernel,
                hook,
                &data,
                1,
                Reason::FlowEstablished,
                &format!("{label}_redirected_established_{family}"),
            )?);
            let blocked = FrameBuilder { client: [2, 5], ..FrameBuilder::syn(ip) }.build();
            rows.push(repeated(
                &kernel,
                hook,
                &blocked,
                2,
                Reason::ClassBlock,
                &format!("{label}_blocked_syn_{family}"),
            )?);
            let syns = Frames::syns(ip, Clients::from(CLIENTS, MANY));
            rows.push(from_many(&kernel, hook, ip, &syns, &format!("{label}_new_flow_{family}"))?);
        }
        for (count, name) in [(1, "hot"), (1000, "1k")] {
            let mut kernel = Kernel::load(&policy(), 1024);
            let data = Frames::data(Clients::from(CLIENTS, count));
            kernel.enter_flows(data.flows(), 1);
            let name = format!("{label}_{name}_redirected_established_ipv4");
            rows.push(beside_lookup(&kernel, hook, &data, &name)?);
        }
        rows.extend(crowded(hook, label)?);
    }
    Ok(Report { suite: "packet", rows })
}
