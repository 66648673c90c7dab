//! What strangers and abusers cannot do: floods of SYNs against established flows and new ones, and many CPUs against one subscriber's limit.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{sync::Barrier, thread, time::Instant};

use redirect_common::{
    address::V4,
    flow::{Flags, Flow, Tuple},
    maps::names,
    policy::{Action, Class, Fallback, Limits, Relay},
    reason::Reason,
    testkit::{FrameBuilder, Ip},
};
use redirect_tests::kernel::{Hook, Kernel, Policy};

const CLASS: u16 = 1;
const RELAY: [u8; 4] = [10, 20, 0, 1];
const RELAY_PORT: u16 = 2525;

fn policy(limits: Limits) -> Policy {
    let relay = Relay::new(Some("10.20.0.1:2525".parse().unwrap()), None);
    Policy {
        subscribers: vec![("10.0.0.0".parse().unwrap(), 8, CLASS)],
        classes: [(CLASS, Class::new(Action::Redirect, Fallback::Block, 1).with_limits(limits))].into(),
        relays: [(1, relay)].into(),
    }
}

/// Runs a segment of the flow that `builder` stands for and checks that it leaves for `reason`.
fn expect(kernel: &Kernel, builder: &FrameBuilder, hook: Hook, reason: Reason) {
    let frame = match hook {
        Hook::TcEgress => builder.build_between(&RELAY, RELAY_PORT, &builder.client_v4(), builder.client_port),
        _ => builder.build(),
    };
    let before = kernel.count(CLASS, reason).packets;
    let (code, _) = kernel.run(hook, &frame).unwrap();
    assert_eq!(code, hook.code(reason.verdict()));
    assert_eq!(kernel.count(CLASS, reason).packets, before + 1, "{reason:?}, client port {}", builder.client_port);
}

fn honest(client_port: u16) -> [FrameBuilder; 3] {
    let syn = FrameBuilder { client_port, ..FrameBuilder::syn(Ip::V4) };
    let answer = FrameBuilder { flags: Flags::SYN | Flags::ACK, sequence: 5000, ..syn.clone() };
    let ack = FrameBuilder { flags: Flags::ACK, acknowledgment: 5001, ..syn.clone() };
    [syn, answer, ack]
}

/// Goes on both ways.
fn expect_alive(kernel: &Kernel, client_port: u16) {
    let [_, _, ack] = honest(client_port);
    expect(kernel, &ack, Hook::TcIngress, Reason::FlowEstablished);
    expect(kernel, &ack, Hook::TcEgress, Reason::ReplyEstablished);
}

/// SYNs of distinct sources, from the `first` on.
fn flood(kernel: &Kernel, first: u32, count: u32) {
    const FIRST_SOURCE: u32 = u32::from_be_bytes([10, 32, 0, 0]);
    const SOURCE: usize = 26;
    let mut frame = FrameBuilder::syn(Ip::V4).build();
    for number in first..first + count {
        frame[SOURCE..SOURCE + 4].copy_from_slice(&(FIRST_SOURCE + number).to_be_bytes());
        kernel.run(Hook::TcIngress, &frame).unwrap();
    }
}

#[test]
fn a_flood_of_a_million_syns_neither_evicts_nor_refuses_an_established_flow() {
    const SYNS: u32 = 1_000_000;
    const ROUNDS: u32 = 20;
    /// Between the segments of an honest handshake.
    const BETWEEN: u32 = 1_000;
    let kernel = Kernel::load(&policy(Limits::default()), 64);
    let established = |port: u16, between: u32, first: u32| {
        let [syn, answer, ack] = honest(port);
        expect(&kernel, &syn, Hook::TcIngress, Reason::FlowNew);
        flood(&kernel, first, between);
        expect(&kernel, &answer, Hook::TcEgress, Reason::ReplyHalfOpen);
        flood(&kernel, first + between, between);
        expect(&kernel, &ack, Hook::TcIngress, Reason::FlowPromoted);
    };
    let mut ports: Vec<u16> = (40_000..40_010).collect();
    for port in &ports {
        established(*port, 0, 0);
    }
    for round in 0..ROUNDS {
        let first = round * (SYNS / ROUNDS);
        flood(&kernel, first, SYNS / ROUNDS - 2 * BETWEEN);
        let port = 41_000 + u16::try_from(round).unwrap();
        established(port, BETWEEN, first + SYNS / ROUNDS - 2 * BETWEEN);
        ports.push(port);
        for port in &ports {
            expect_alive(&kernel, *port);
        }
    }
    assert_eq!(kernel.count(CLASS, Reason::FlowNew).packets, u64::from(SYNS) + ports.len() as u64);
    assert_eq!(kernel.flows::<V4>(names::FLOWS_V4).len(), 2 * ports.len());
}

#[test]
fn what_becomes_of_a_flow_that_finds_the_table_full_is_up_to_its_class() {
    for (fallback, reason) in [
        (Fallback::Pass, Reason::FlowUnpromoted),
        (Fallback::Block, Reason::FlowUnpromotedBlock),
        (Fallback::Reject, Reason::FlowUnpromotedReject),
    ] {
        let mut policy = policy(Limits::default());
        policy.classes.insert(CLASS, Class::new(Action::Redirect, fallback, 1));
        let mut kernel = Kernel::load(&policy, 1);
        let [[syn, answer, ack], [other_syn, other_answer, other_ack]] = [40_000, 40_001].map(honest);
        expect(&kernel, &syn, Hook::TcIngress, Reason::FlowNew);
        expect(&kernel, &answer, Hook::TcEgress, Reason::ReplyHalfOpen);
        expect(&kernel, &ack, Hook::TcIngress, Reason::FlowPromoted);
        expect(&kernel, &other_syn, Hook::TcIngress, Reason::FlowNew);
        expect(&kernel, &other_answer, Hook::TcEgress, Reason::ReplyHalfOpen);
        for _ in 0..2 {
            expect(&kernel, &other_ack, Hook::TcIngress, reason);
            expect(&kernel, &other_ack, Hook::TcEgress, Reason::ReplyHalfOpen);
        }
        expect_alive(&kernel, 40_000);

        // Once there is a place it gets it, whatever the segment is if the relay has talked on.
        kernel.clear::<Tuple<V4>, Flow<V4>>(names::FLOWS_V4);
        let acknowledgment = if fallback == Fallback::Pass { 6000 } else { 5001 };
        expect(&kernel, &FrameBuilder { acknowledgment, ..other_ack }, Hook::TcIngress, Reason::FlowPromoted);
        expect_alive(&kernel, 40_001);
    }
}

#[test]
fn several_cpus_exceed_a_burst_by_no_more_than_the_limits_bound() {
    const BURST: u32 = 200;
    const SYNS: u16 = 3_000;
    let cpus = thread::available_parallelism().unwrap().get().clamp(2, 8);
    let limits = Limits { rate: 1, burst: BURST, ..Limits::default() };
    let kernel = &Kernel::load(&policy(limits), 64);
    let (barrier, start) = (&Barrier::new(cpus), Instant::now());
    thread::scope(|scope| {
        for cpu in 0..cpus {
            scope.spawn(move || {
                let server = u8::try_from(cpu % 250).unwrap();
                barrier.wait();
                for client_port in 1..=SYNS {
                    let syn = FrameBuilder { client_port, server, ..FrameBuilder::syn(Ip::V4) };
                    kernel.run(Hook::TcIngress, &syn.build()).unwrap();
                }
            });
        }
    });
    let due = u64::from(BURST) + start.elapsed().as_secs() + 1;
    let admitted = kernel.count(CLASS, Reason::FlowNew).packets;
    println!("{admitted} of {due} due, on {cpus} CPUs");
    assert!(admitted >= u64::from(BURST), "never fewer: {admitted}");
    assert!(admitted <= due * cpus as u64, "{admitted} for {due} due on {cpus} CPUs");
    let refused = kernel.count(CLASS, Reason::RateLimited).packets;
    assert_eq!(admitted + refused, u64::from(SYNS) * cpus as u64, "and every other is counted");
}
