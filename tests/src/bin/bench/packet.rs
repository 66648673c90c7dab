//! What each step on the packet path costs, by `BPF_PROG_TEST_RUN`, beside a program of the same hook that only passes.
//!
//! Two traps of that call are avoided. It does not restore a rewritten frame between repeats, so the relay of these rows has the very
//! address and port that the client dials: every byte is written and every checksum updated, and the frame stays what it was. And its own
//! cost, 28 to 40 ns, is in both columns; "net" is the difference. The rows beside `lookup` have that cost taken off both columns already:
//! their ratio is that of what the programs themselves cost.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use redirect_common::{
    address::{Address as _, V4},
    flow::{Flags, Tuple},
    policy::{Action, Class, Fallback, Relay},
    reason::Reason,
    testkit::{FrameBuilder, Ip},
};
use redirect_tests::{
    floor::Floor,
    kernel::{Hook, Kernel, Policy},
};

use crate::report::{Report, Row, Unit};

/// Turns of ours and theirs.
const TURNS: usize = 9;
/// Runs in a turn, for frames that may be repeated.
const REPEAT: u32 = 1_000_000;
/// Runs in a turn, for frames each of which is new.
const NEW_FLOWS: usize = 20_000;
/// Subscribers, and flows, where there are many.
const MANY: usize = 1_000_000;
/// A prime beyond what the caches hold, which leads through many flows in an order that no cache foresees.
const SCATTER: usize = 611_953;
/// Odd, so that different numbers have different products; 2^32 divided by the golden ratio.
const SCATTER_BITS: u32 = 0x9e37_79b1;
const FLOOR: &str = "pass";

fn policy() -> Policy {
    let relay = Relay::new(
        Some("203.0.113.9:25".parse().expect("an address")),
        Some("[2001:db8::9]:25".parse().expect("an address")),
    );
    Policy {
        subscribers: [("10.20.0.0", 16, 1), ("10.20.2.0", 24, 2), ("fd00:20::", 64, 1), ("fd00:20::2:0", 112, 2)]
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

/// SYNs of ever new clients, one run each.
fn new_flows(kernel: &Kernel, hook: Hook, ip: Ip, next_port: &mut u32, name: &str) -> anyhow::Result<Row> {
    let frames = (0..NEW_FLOWS * TURNS).map(|_| {
        *next_port += 1;
        let [_, high, low_host, low_port] = next_port.to_be_bytes();
        let client_port = 1024 + u16::from(low_port);
        FrameBuilder { client: [high.wrapping_add(16), low_host], client_port, ..FrameBuilder::syn(ip) }.build()
    });
    one_by_one(kernel, hook, frames, Reason::FlowNew, name)
}

/// Frames that are all different, one run each, and the reason that must have counted every one.
fn one_by_one(
    kernel: &Kernel,
    hook: Hook,
    mut frames: impl Iterator<Item = Vec<u8>>,
    reason: Reason,
    name: &str,
) -> anyhow::Result<Row> {
    let floor = Floor::load(hook)?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let before = kernel.count(1, reason).packets;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for frame in frames.by_ref().take(NEW_FLOWS) {
            ours.push(kernel.time(hook, &frame, 1));
            theirs.push(floor.time(&frame, 1)?);
        }
        let counted = kernel.count(1, reason).packets - before;
        anyhow::ensure!(counted == NEW_FLOWS as u64, "{name}: {counted} of {NEW_FLOWS} left by {}", reason.name());
        turns.push((median(ours), median(theirs)));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, FLOOR, &turns))
}

/// Segments of established flows beside the look-up alone, both without what passing costs. The flows take turns, so that of many flows each
/// is out of the caches when its turn comes; a single one stays in them, and its frame is repeated.
fn beside_lookup(kernel: &Kernel, hook: Hook, flows: &[Tuple<V4>], name: &str) -> anyhow::Result<Row> {
    let (pass, lookup) = (Floor::load(hook)?, Floor::load_with_lookup(hook, kernel.flow_table())?);
    let repeat = if flows.len() == 1 { REPEAT } else { 1 };
    let runs = if flows.len() == 1 { 1 } else { NEW_FLOWS };
    let mut turns = Vec::new();
    let mut order = (0..flows.len()).cycle().map(|number| number * SCATTER % flows.len());
    for _ in 0..TURNS {
        let before = kernel.count(1, Reason::FlowEstablished).packets;
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..runs {
            // Each program gets a flow that no other has just touched.
            let mut next = || segment(&flows[order.next().expect("a cycle has no end")]);
            times[0].push(kernel.time(hook, &next(), repeat));
            times[1].push(lookup.time(&next(), repeat)?);
            times[2].push(pass.time(&next(), repeat)?);
        }
        let counted = kernel.count(1, Reason::FlowEstablished).packets - before;
        anyhow::ensure!(counted == runs as u64 * u64::from(repeat), "{name}: {counted} were of established flows");
        let [ours, lookup, pass] = times.map(median);
        turns.push((ours - pass, lookup - pass));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, "lookup", &turns))
}

/// Flows from `10.32.0.0/11` on, as many as `count`.
fn flows(count: usize) -> Vec<Tuple<V4>> {
    let tuple = |number: u32| {
        let [port, ..] = number.to_le_bytes();
        let client = Ipv4Addr::from((0x0a20 << 16) + (number >> 8));
        let server = Ipv4Addr::new(203, 0, 113, 9);
        Tuple::new([client, server].map(V4::from), [40_000 + u16::from(port), 25].map(u16::to_be_bytes))
    };
    (0..).take(count).map(tuple).collect()
}

/// A data segment of a flow.
fn segment(flow: &Tuple<V4>) -> Vec<u8> {
    let [client, server] = flow.addresses.map(V4::octets);
    let [client_port, server_port] = flow.ports.map(u16::from_be_bytes);
    let data = FrameBuilder { flags: Flags::ACK, payload: vec![0; 1000], ..FrameBuilder::syn(Ip::V4) };
    data.build_between(&client, client_port, &server, server_port)
}

/// Subscribers in number: half of them hosts, half prefixes of 28 bits, scattered over all addresses.
struct Crowd;

impl Crowd {
    fn host(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(number.wrapping_mul(SCATTER_BITS))
    }

    fn prefix(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(number.wrapping_mul(SCATTER_BITS) << 4)
    }

    fn subscribers() -> impl Iterator<Item = (IpAddr, u8, u16)> {
        let half = MANY / 2;
        let hosts = (0..).take(half).map(|number| (Self::host(number).into(), 32, 1));
        hosts.chain((0..).take(half).map(|number| (Self::prefix(number).into(), 28, 1)))
    }

    /// SYNs of subscribers, each of another one.
    fn syns(address: fn(u32) -> Ipv4Addr) -> impl Iterator<Item = Vec<u8>> {
        let half = u32::try_from(MANY / 2).expect("a number of subscribers");
        (1..).map(move |number: u32| {
            let client = address((number * 7919) % half).octets();
            FrameBuilder::syn(Ip::V4).build_between(&client, 40_000, &[203, 0, 113, 9], 25)
        })
    }
}

/// With a million flows and a million subscribers.
fn crowded(hook: Hook, label: &str) -> anyhow::Result<Vec<Row>> {
    let mut policy = policy();
    policy.subscribers.extend(Crowd::subscribers());
    let mut kernel = Kernel::load(&policy, u32::try_from(MANY)?);
    let flows = flows(MANY);
    kernel.enter_flows(&flows, 1);
    let mut rows = bystanders(&kernel, hook, &format!("{label}_1m"))?;
    rows.push(beside_lookup(&kernel, hook, &flows, &format!("{label}_1m_redirected_established_ipv4"))?);
    for (address, kind) in [(Crowd::host as fn(u32) -> Ipv4Addr, "host"), (Crowd::prefix, "prefix")] {
        let name = format!("{label}_1m_new_flow_of_{kind}");
        rows.push(one_by_one(&kernel, hook, Crowd::syns(address), Reason::FlowNew, &name)?);
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

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    as_f64(values[values.len() / 2])
}

fn as_f64(nanoseconds: u64) -> f64 {
    u32::try_from(nanoseconds).map_or(f64::INFINITY, f64::from)
}

pub(crate) fn run() -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    let mut next_port = 0;
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
            rows.push(new_flows(&kernel, hook, ip, &mut next_port, &format!("{label}_new_flow_{family}"))?);
        }
        for (count, name) in [(1, "hot"), (1000, "1k")] {
            let mut kernel = Kernel::load(&policy(), 1024);
            let flows = flows(count);
            kernel.enter_flows(&flows, 1);
            let name = format!("{label}_{name}_redirected_established_ipv4");
            rows.push(beside_lookup(&kernel, hook, &flows, &name)?);
        }
        rows.extend(crowded(hook, label)?);
    }
    Ok(Report { suite: "packet", rows })
}
