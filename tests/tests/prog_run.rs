//! The loaded programs against the host's function: the same verdict, reason, bytes and tables, on frames whole and broken.
//!
//! Equality shows that what runs in the kernel is what the host tests have proved; `oracle.rs` shows that both are right.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::net::{SocketAddrV4, SocketAddrV6};

use redirect_common::{
    admit::PORT_TRIES,
    flow::{Direction, Flags},
    maps::{RESETS_PER_SECOND_MAX, Resets, names},
    parse::Link,
    policy::{Action, Class, Fallback, Relay},
    reason::{Reason, Verdict},
    testkit::{FrameBuilder, Ip, MemoryTables, process},
};
use redirect_tests::kernel::{Hook, Kernel, Policy, model};

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
/// Stands in the subscriber table only.
const MISSING: u16 = 9;

fn policy() -> Policy {
    let relay = Relay::new(
        Some("10.20.0.1:2525".parse::<SocketAddrV4>().unwrap()),
        Some("[fd00:20::1]:2525".parse::<SocketAddrV6>().unwrap()),
    )
    .own();
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
            subscriber("fd00:20::/64", REDIRECT),
            subscriber("fd00:20::1:0/112", PASS),
            subscriber("fd00:20::1:7/128", BLOCK),
            subscriber("fd00:20::2:0/112", BLOCK),
            subscriber("fd00:20::3:0/113", NO_RELAY_PASS),
            subscriber("fd00:20::3:80/121", NO_RELAY_BLOCK),
            subscriber("fd00:20::4:0/112", MISSING),
            subscriber("fd00:20::5:0/112", REJECT),
            subscriber("fd00:20::6:0/112", NO_RELAY_REJECT),
        ],
        classes: [
            (REDIRECT, Class::new(Action::Redirect, Fallback::Pass, 1)),
            (PASS, Class::new(Action::Pass, Fallback::Pass, 0)),
            (BLOCK, Class::new(Action::Block, Fallback::Pass, 0)),
            (NO_RELAY_PASS, Class::new(Action::Redirect, Fallback::Pass, 2)),
            (NO_RELAY_BLOCK, Class::new(Action::Redirect, Fallback::Block, 2)),
            (REJECT, Class::new(Action::Reject, Fallback::Pass, 0)),
            (NO_RELAY_REJECT, Class::new(Action::Redirect, Fallback::Reject, 2)),
        ]
        .into(),
        relays: [(1, relay)].into(),
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

/// A frame that a subscriber, a server or the relay might send: few endpoints, so that frames meet flows of earlier ones.
fn frame(link: Link, random: &mut Random) -> Vec<u8> {
    let ip = random.pick(&[Ip::V4, Ip::V6]);
    let builder = FrameBuilder {
        link,
        tags: random.pick(&[vec![], vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100, 0x8100], vec![0x8100; 3]]),
        pppoe: random.pick(&[false, false, true]),
        ip_options: random.pick(&[0, 0, 0, 4, 40]),
        extensions: random.pick(&[
            vec![],
            vec![],
            vec![],
            vec![0],
            vec![60, 0],
            vec![43],
            vec![44],
            vec![0, 60, 60, 60],
        ]),
        segments_left: random.pick(&[0, 0, 0, 1]),
        protocol: random.pick(&[6, 6, 6, 6, 6, 6, 6, 17]),
        fragment: random.pick(&[0x4000, 0x4000, 0x4000, 0, 0x2000, 0x00b9]),
        client: random.pick(&[
            [0, 5],
            [0, 5],
            [0, 5],
            [0, 6],
            [1, 5],
            [1, 7],
            [2, 5],
            [3, 5],
            [3, 0x85],
            [4, 5],
            [5, 5],
            [6, 5],
        ]),
        server: random.byte(3),
        client_port: 40_000 + u16::from(random.byte(4)),
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
        sequence: random.pick(&[1000, 5000, u32::MAX]),
        acknowledgment: random.pick(&[5001, 5001, 0, 1001]),
        tcp_offset: random.pick(&[5, 5, 5, 5, 4, 15]),
        payload: vec![random.byte(256); usize::from(random.byte(9))],
        ..FrameBuilder::syn(ip)
    };
    if random.below(3) > 0 {
        return builder.build();
    }
    relay_answer(&builder)
}

/// The frame from the relay to the client instead.
fn relay_answer(builder: &FrameBuilder) -> Vec<u8> {
    let (relay, client) = match builder.ip {
        Ip::V4 => (vec![10, 20, 0, 1], builder.client_v4().to_vec()),
        Ip::V6 => ([&[0xfd, 0, 0, 0x20][..], &[0; 11], &[1]].concat(), builder.client_v6().to_vec()),
    };
    builder.build_between(&relay, RELAY_PORT, &client, builder.client_port)
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
    assert_eq!(kernel.counts(), *host.counts.borrow());
}

/// Runs `frames` frames through an ingress and an egress program, and the host's function.
fn differential(ingress: Hook, egress: Hook, frames: u32, seed: u64) {
    let policy = policy();
    let mut kernel = Kernel::load(&policy, FLOWS_MAX);
    let mut host = model(&policy, FLOWS_MAX);
    let mut random = Random(seed);
    let mut refused = 0;
    for number in 0..frames {
        if number % 64 == 0 {
            host.now_s += 1;
            kernel.set_clock(host.now_s);
        }
        let mut frame = frame(ingress.link(), &mut random);
        let mutated = random.below(2) == 0;
        if mutated {
            mutate(&mut frame, &mut random);
        }
        let hook = random.pick(&[ingress, ingress, egress]);
        let Some((code, out)) = kernel.run(hook, &frame) else {
            assert!(mutated, "the harness takes whole frames: {frame:02x?}");
            refused += 1;
            continue;
        };
        let mut expected = frame.clone();
        let verdict = process(&mut expected, hook.link(), &host, hook.direction()).verdict();
        assert_eq!(code, hook.code(verdict), "{hook:?} {frame:02x?}");
        let same = match hook {
            Hook::Xdp => out == expected,
            _ => equal_but_for_the_form_of_zero(&out, &expected),
        };
        assert!(same, "{hook:?} made of {frame:02x?}\n{out:02x?} instead of\n{expected:02x?}");
        if matches!(verdict, Verdict::Pass | Verdict::Drop) {
            assert_eq!(expected, frame, "{verdict:?} leaves a frame as it is");
        }
    }
    assert_tables_agree(&kernel, &host);
    assert!(refused * 10 < frames, "the harness refused {refused} of {frames} frames");

    // A differential that never gets anywhere proves nothing: every way out must have been taken.
    let taken: Vec<Reason> = kernel.counts().keys().map(|(_, reason)| *reason).collect();
    let missing: Vec<Reason> = Reason::ALL.iter().copied().filter(|reason| !taken.contains(reason)).collect();
    // These have tests of their own, below.
    let unreachable = [
        Reason::EditFailed,
        Reason::ClashPass,
        Reason::ClashBlock,
        Reason::ClashReject,
        Reason::RejectLimited,
        Reason::ReplyForwarded,
    ];
    assert!(missing.iter().all(|reason| unreachable.contains(reason)), "never seen: {missing:?}");
}

#[test]
fn xdp_agrees_with_the_host() {
    differential(Hook::Xdp, Hook::TcEgress, 120_000, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn tc_agrees_with_the_host() {
    differential(Hook::TcIngress, Hook::TcEgress, 120_000, 0x2545_f491_4f6c_dd1d);
}

#[test]
fn tc_without_ethernet_agrees_with_the_host() {
    differential(Hook::TcIngressIp, Hook::TcEgressIp, 120_000, 0xa076_1d64_78bd_642f);
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

/// The verifier gives up at a million instructions walked. Older kernels walk more of them than newer ones, so there must be room.
#[test]
fn programs_are_far_from_the_verifiers_limit() {
    for (name, instructions) in Kernel::load(&policy(), FLOWS_MAX).verified_instructions() {
        println!("{name}: {instructions} verified instructions");
        assert!(instructions > 0 && instructions < 300_000, "{name}: {instructions}");
    }
}
