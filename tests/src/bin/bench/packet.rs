//! What each step on the packet path costs, by `BPF_PROG_TEST_RUN`, beside a program of the same hook that only passes.
//!
//! Two traps of that call are avoided. It does not restore a rewritten frame between repeats, so the relay of these rows has the very
//! address and port that the client dials: every byte is written and every checksum updated, and the frame stays what it was. And its own
//! cost, 28 to 40 ns, is in both columns; "net" is the difference.

use anyhow::Context as _;
use redirect_common::{
    flow::Flags,
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
const NEW_FLOWS: u32 = 20_000;
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
    let floor = Floor::load(hook)?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let before = kernel.count(1, Reason::FlowNew).packets;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..NEW_FLOWS {
            *next_port += 1;
            let [_, high, low_host, low_port] = next_port.to_be_bytes();
            let client_port = 1024 + u16::from(low_port);
            let frame =
                FrameBuilder { client: [high.wrapping_add(16), low_host], client_port, ..FrameBuilder::syn(ip) }
                    .build();
            ours.push(kernel.time(hook, &frame, 1));
            theirs.push(floor.time(&frame, 1)?);
        }
        let counted = kernel.count(1, Reason::FlowNew).packets - before;
        anyhow::ensure!(counted == u64::from(NEW_FLOWS), "{name}: {counted} of {NEW_FLOWS} SYNs were redirected");
        turns.push((median(ours), median(theirs)));
    }
    Ok(Row::new(name, Unit::NANOSECONDS, FLOOR, &turns))
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
        let other_port =
            |payload| FrameBuilder { server_port: 443, payload: vec![0; payload], ..FrameBuilder::syn(Ip::V4) }.build();
        let small = other_port(64 - 54);
        let floor_turns: Result<Vec<_>, std::io::Error> = (0..TURNS)
            .map(|_| Ok((as_f64(floor.time(&small, REPEAT)?), as_f64(floor.time(&small, REPEAT)?))))
            .collect();
        rows.push(Row::new(&format!("{label}_floor"), Unit::NANOSECONDS, FLOOR, &floor_turns?));
        for (frame, size) in [(small, "64"), (other_port(1500 - 40), "1500")] {
            rows.push(repeated(&kernel, hook, &frame, 0, Reason::OtherPort, &format!("{label}_bystander_tcp_{size}"))?);
        }
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
    }
    Ok(Report { suite: "packet", rows })
}
