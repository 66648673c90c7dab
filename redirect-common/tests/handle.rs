//! The data plane on tables in memory: after each packet, what it became, and which counters moved and no others.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use proptest::prelude::*;
use redirect_common::{
    address::V4,
    flow::{Direction, Flags, Flow, Tuple},
    parse::Link,
    policy::{Action, Class, Fallback, OnDaemonDown, Relay},
    reason::{Reason, Verdict},
    testkit::{FrameBuilder, Ip, MemoryTables, internet_checksum, process},
};

const REDIRECT: u16 = 1;
const PASS: u16 = 2;
const BLOCK: u16 = 3;
const IPS: [Ip; 2] = [Ip::V4, Ip::V6];

fn tables() -> MemoryTables {
    let mut tables = MemoryTables { now_s: 100, ..MemoryTables::default() };
    let relay = Relay::new(Some("10.20.0.1:2525".parse().unwrap()), Some("[fd00:20::1]:2525".parse().unwrap()));
    tables.relays.insert(1, relay);
    tables.classes.insert(REDIRECT, Class::new(Action::Redirect, Fallback::Pass, 1));
    tables.classes.insert(PASS, Class::new(Action::Pass, Fallback::Pass, 0));
    tables.classes.insert(BLOCK, Class::new(Action::Block, Fallback::Pass, 0));
    for (network, len, class) in [("10.20.0.0", 16, REDIRECT), ("10.20.1.0", 24, PASS), ("10.20.1.7", 32, BLOCK)] {
        tables.v4.borrow_mut().prefixes.insert((len, network.parse().unwrap()), class);
    }
    for (network, len, class) in
        [("fd00:20::", 64, REDIRECT), ("fd00:20::1:0", 112, PASS), ("fd00:20::1:7", 128, BLOCK)]
    {
        tables.v6.borrow_mut().prefixes.insert((len, network.parse().unwrap()), class);
    }
    tables
}

/// Where the addresses and the ports of a built frame are, and the port numbers.
struct Seen {
    source: Vec<u8>,
    destination: Vec<u8>,
    source_port: u16,
    destination_port: u16,
}

fn see(ip: Ip, frame: &[u8]) -> Seen {
    let (addresses, len, l4) = match ip {
        Ip::V4 => (26, 4, 34),
        Ip::V6 => (22, 16, 54),
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Seen {
        source: frame[addresses..addresses + len].to_vec(),
        destination: frame[addresses + len..addresses + 2 * len].to_vec(),
        source_port: port(l4),
        destination_port: port(l4 + 2),
    }
}

/// Both checksums, recomputed from scratch.
fn assert_checksums_right(ip: Ip, frame: &[u8]) {
    let seen = see(ip, frame);
    let l4 = match ip {
        Ip::V4 => 34,
        Ip::V6 => 54,
    };
    if ip == Ip::V4 {
        assert_eq!(internet_checksum(&[&frame[14..34]]), 0, "IPv4 header");
    }
    let ip_payload_len = match ip {
        Ip::V4 => usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20,
        Ip::V6 => usize::from(u16::from_be_bytes([frame[18], frame[19]])),
    };
    let tcp = &frame[l4..l4 + ip_payload_len];
    let len = u32::try_from(tcp.len()).unwrap().to_be_bytes();
    assert_eq!(internet_checksum(&[&seen.source, &seen.destination, &len, &[0, 6], tcp]), 0, "TCP");
}

/// The SYN of [`FrameBuilder::syn`] in a first fragment.
fn first_fragment(ip: Ip) -> FrameBuilder {
    match ip {
        Ip::V4 => FrameBuilder { fragment: 0x2000, ..FrameBuilder::syn(ip) },
        Ip::V6 => FrameBuilder { extensions: vec![44], ..FrameBuilder::syn(ip) },
    }
}

/// The same datagram with `len` bytes of TCP only.
fn cut_datagram(ip: Ip, frame: &[u8], len: u8) -> Vec<u8> {
    let (at, value, end) = match ip {
        Ip::V4 => (17, 20 + len, 34 + usize::from(len)),
        Ip::V6 => (19, 8 + len, 62 + usize::from(len)),
    };
    let mut frame = frame[..end].to_vec();
    frame[at] = value;
    frame
}

fn relay_address(ip: Ip) -> Vec<u8> {
    match ip {
        Ip::V4 => vec![10, 20, 0, 1],
        Ip::V6 => [&[0xfd, 0, 0, 0x20][..], &[0; 11], &[1]].concat(),
    }
}

/// Sends a frame and checks that it left by `reason`, and that nothing else was counted.
fn send(tables: &MemoryTables, frame: &[u8], direction: Direction, class: u16, reason: Reason) -> Vec<u8> {
    tables.counts.borrow_mut().clear();
    let mut out = frame.to_vec();
    assert_eq!(process(&mut out, Link::Ethernet, tables, direction), reason);
    let verdict = reason.verdict();
    assert_eq!(tables.packets(), [(class, reason, 1)]);
    assert_eq!(tables.counts.borrow()[&(class, reason)].bytes, frame.len() as u64);
    if matches!(verdict, Verdict::Pass | Verdict::Drop) {
        assert_eq!(out, frame, "{verdict:?} leaves a frame as it is");
    }
    out
}

fn up(tables: &MemoryTables, builder: &FrameBuilder, reason: Reason) -> Vec<u8> {
    let out = send(tables, &builder.build(), Direction::Forward, REDIRECT, reason);
    assert_checksums_right(builder.ip, &out);
    out
}

/// The relay's segment to where it saw the client.
fn down(tables: &MemoryTables, builder: &FrameBuilder, client_port: u16, reason: Reason) -> Vec<u8> {
    let client = match builder.ip {
        Ip::V4 => builder.client_v4().to_vec(),
        Ip::V6 => builder.client_v6().to_vec(),
    };
    let frame = builder.build_between(&relay_address(builder.ip), 2525, &client, client_port);
    let class = if reason == Reason::ReplyNoFlow { 0 } else { REDIRECT };
    let out = send(tables, &frame, Direction::Reply, class, reason);
    assert_checksums_right(builder.ip, &out);
    out
}

fn syn_ack(syn: &FrameBuilder) -> FrameBuilder {
    FrameBuilder { flags: Flags::SYN | Flags::ACK, sequence: 5000, ..syn.clone() }
}

fn ack(syn: &FrameBuilder) -> FrameBuilder {
    FrameBuilder { flags: Flags::ACK, acknowledgment: 5001, ..syn.clone() }
}

/// Opens and establishes a flow; returns the client port that the relay sees.
fn establish(tables: &MemoryTables, syn: &FrameBuilder) -> u16 {
    let port = see(syn.ip, &up(tables, syn, Reason::FlowNew)).source_port;
    down(tables, &syn_ack(syn), port, Reason::ReplyHalfOpen);
    up(tables, &ack(syn), Reason::FlowPromoted);
    port
}

fn entries(tables: &MemoryTables) -> (usize, usize) {
    let (v4, v6) = (tables.v4.borrow(), tables.v6.borrow());
    (v4.half_open.len() + v6.half_open.len(), v4.established.len() + v6.established.len())
}

#[test]
fn a_connection_reaches_the_relay_and_the_client_sees_the_server() {
    for ip in IPS {
        let tables = tables();
        let syn = FrameBuilder::syn(ip);
        let server = see(ip, &syn.build()).destination;

        let out = see(ip, &up(&tables, &syn, Reason::FlowNew));
        assert_eq!((out.destination, out.destination_port, out.source_port), (relay_address(ip), 2525, 40_000));
        let back = see(ip, &down(&tables, &syn_ack(&syn), 40_000, Reason::ReplyHalfOpen));
        assert_eq!((&back.source, back.source_port, back.destination_port), (&server, 25, 40_000));
        assert_eq!(entries(&tables), (2, 0));

        up(&tables, &ack(&syn), Reason::FlowPromoted);
        assert_eq!(entries(&tables), (0, 2), "promoted and gone from the half-open table");
        let data = FrameBuilder { flags: Flags::ACK, payload: b"EHLO".to_vec(), ..syn.clone() };
        assert_eq!(see(ip, &up(&tables, &data, Reason::FlowEstablished)).destination, relay_address(ip));
        for flags in [Flags::ACK, Flags::FIN | Flags::ACK, Flags::RST] {
            let back =
                see(ip, &down(&tables, &FrameBuilder { flags, ..syn.clone() }, 40_000, Reason::ReplyEstablished));
            assert_eq!((&back.source, back.source_port), (&server, 25), "{flags:#x}");
        }
    }
}

#[test]
fn classes_decide_by_the_longest_prefix() {
    for ip in IPS {
        let tables = tables();
        for (client, class, reason) in [
            ([0, 5], REDIRECT, Reason::FlowNew),
            ([1, 5], PASS, Reason::ClassPass),
            ([1, 7], BLOCK, Reason::ClassBlock),
        ] {
            let syn = FrameBuilder { client, ..FrameBuilder::syn(ip) };
            send(&tables, &syn.build(), Direction::Forward, class, reason);
        }
        // Mid-stream: a blocked subscriber's segments are dropped too, and one to redirect may not go on past the relay.
        for (client, class, reason) in [
            ([0, 5], REDIRECT, Reason::NoFlowReject),
            ([1, 5], PASS, Reason::ClassPass),
            ([1, 7], BLOCK, Reason::ClassBlock),
        ] {
            let data = FrameBuilder { client, flags: Flags::ACK, client_port: 50_000, ..FrameBuilder::syn(ip) };
            send(&tables, &data.build(), Direction::Forward, class, reason);
        }
        let stranger =
            FrameBuilder::syn(ip).build_between(&vec![9; relay_address(ip).len()], 1, &relay_address(ip), 25);
        send(&tables, &stranger, Direction::Forward, 0, Reason::NoClass);
    }
}

#[test]
fn a_first_fragment_too_short_to_decide_is_stopped_where_its_class_acts() {
    for (action, fallback, reason) in [
        (Action::Pass, Fallback::Pass, Reason::Fragment),
        (Action::Block, Fallback::Pass, Reason::FragmentBlock),
        (Action::Reject, Fallback::Pass, Reason::FragmentBlock),
        (Action::Redirect, Fallback::Pass, Reason::Fragment),
        (Action::Redirect, Fallback::Block, Reason::FragmentBlock),
        (Action::Redirect, Fallback::Reject, Reason::FragmentBlock),
    ] {
        let mut tables = tables();
        tables.classes.insert(REDIRECT, Class::new(action, fallback, 1));
        for ip in IPS {
            let frame = first_fragment(ip);
            let short = cut_datagram(ip, &frame.build(), 16);
            send(&tables, &short, Direction::Forward, REDIRECT, reason);
            let other_port = FrameBuilder { server_port: 443, ..frame.clone() };
            send(&tables, &other_port.build(), Direction::Forward, 0, Reason::OtherPort);
            let reply = frame.build_between(&relay_address(ip), 2525, &relay_address(ip), 40_000);
            send(&tables, &cut_datagram(ip, &reply, 16), Direction::Reply, 0, Reason::Fragment);
        }
    }
}

#[test]
fn a_subscriber_of_a_class_that_is_not_there_has_no_class() {
    let mut tables = tables();
    tables.classes.remove(&REDIRECT);
    send(&tables, &FrameBuilder::syn(Ip::V4).build(), Direction::Forward, 0, Reason::NoClass);
}

#[test]
fn without_a_relay_the_class_decides() {
    for (fallback, reason) in [
        (Fallback::Pass, Reason::RelayDownPass),
        (Fallback::Block, Reason::RelayDownBlock),
        (Fallback::Reject, Reason::RelayDownReject),
    ] {
        let mut tables = tables();
        tables.classes.insert(REDIRECT, Class::new(Action::Redirect, fallback, 1));
        tables.relays.insert(1, Relay::new(None, Some("[fd00:20::1]:2525".parse().unwrap())));
        send(&tables, &FrameBuilder::syn(Ip::V4).build(), Direction::Forward, REDIRECT, reason);
        up(&tables, &FrameBuilder::syn(Ip::V6), Reason::FlowNew);
        // A connection that passed goes on passing; one of before is reset where no other could begin.
        let then = if fallback == Fallback::Pass { Reason::NoFlow } else { Reason::NoFlowReject };
        send(&tables, &ack(&FrameBuilder::syn(Ip::V4)).build(), Direction::Forward, REDIRECT, then);
        tables.relays.insert(1, Relay::new(Some("10.20.0.1:2525".parse().unwrap()), None));
        send(&tables, &ack(&FrameBuilder::syn(Ip::V4)).build(), Direction::Forward, REDIRECT, Reason::NoFlowReject);
    }
}

#[test]
fn without_a_daemon_the_class_decides() {
    for (on_daemon_down, reason, then) in [
        (OnDaemonDown::Keep, Reason::FlowNew, Reason::FlowHalfOpen),
        (OnDaemonDown::Pass, Reason::DaemonDownPass, Reason::NoFlow),
        (OnDaemonDown::Block, Reason::DaemonDownBlock, Reason::NoFlowReject),
        (OnDaemonDown::Reject, Reason::DaemonDownReject, Reason::NoFlowReject),
    ] {
        let class = Class::new(Action::Redirect, Fallback::Block, 1).with_on_daemon_down(on_daemon_down);
        for ip in IPS {
            let syn = FrameBuilder::syn(ip);
            let mut tables = tables();
            tables.classes.insert(REDIRECT, class);
            let lives = tables.clone();
            up(&lives, &syn, Reason::FlowNew);
            tables.daemon_down = true;
            send(&tables, &syn.build(), Direction::Forward, REDIRECT, reason);
            send(&tables, &ack(&syn).build(), Direction::Forward, REDIRECT, then);
            // A flow of before goes on.
            let after = MemoryTables { daemon_down: true, ..lives };
            send(&after, &ack(&syn).build(), Direction::Forward, REDIRECT, Reason::FlowHalfOpen);
        }
    }
}

#[test]
fn the_embedded_relay_goes_with_the_daemon() {
    let mut tables = tables();
    let relay = tables.relays[&1].embedded();
    tables.relays.insert(1, relay);
    up(&tables, &FrameBuilder::syn(Ip::V4), Reason::FlowNew);
    tables.daemon_down = true;
    send(&tables, &FrameBuilder::syn(Ip::V6).build(), Direction::Forward, REDIRECT, Reason::RelayDownPass);
    send(&tables, &ack(&FrameBuilder::syn(Ip::V6)).build(), Direction::Forward, REDIRECT, Reason::NoFlow);
}

#[test]
fn a_rejected_segment_comes_back_as_a_reset_and_a_reset_never_does() {
    for ip in IPS {
        let mut tables = tables();
        tables.classes.insert(REDIRECT, Class::new(Action::Reject, Fallback::Pass, 0));
        let syn = FrameBuilder { payload: b"early".to_vec(), ..FrameBuilder::syn(ip) };
        let asked = see(ip, &syn.build());
        let out = up(&tables, &syn, Reason::ClassReject);
        let answer = see(ip, &out);
        assert_eq!((answer.source, answer.source_port), (asked.destination, 25));
        assert_eq!((answer.destination, answer.destination_port), (asked.source, 40_000));
        assert_eq!(out[..12], [[0x02; 6], [0x02; 6]].concat(), "the builder's stations have one address");

        let reset = FrameBuilder { flags: Flags::RST | Flags::ACK, ..FrameBuilder::syn(ip) };
        send(&tables, &reset.build(), Direction::Forward, REDIRECT, Reason::ResetUnanswered);
        tables.resets_left.set(0);
        send(&tables, &syn.build(), Direction::Forward, REDIRECT, Reason::RejectLimited);
        assert_eq!(entries(&tables), (0, 0));
    }
}

#[test]
fn one_client_port_to_two_servers_is_two_conversations() {
    for ip in IPS {
        let tables = tables();
        let first = FrameBuilder::syn(ip);
        let second = FrameBuilder { server: 10, ..first.clone() };
        let first_port = establish(&tables, &first);
        let second_port = establish(&tables, &second);
        assert_eq!(first_port, 40_000, "the first keeps its port");
        assert_ne!(second_port, first_port, "the second gets another");
        assert_eq!(entries(&tables), (0, 4));

        for (syn, port) in [(&first, first_port), (&second, second_port)] {
            let out = see(ip, &up(&tables, &ack(syn), Reason::FlowEstablished));
            assert_eq!(out.source_port, port);
            let back = see(ip, &down(&tables, &ack(syn), port, Reason::ReplyEstablished));
            assert_eq!(back.source, see(ip, &syn.build()).destination, "answers of each come from its own server");
            assert_eq!((back.source_port, back.destination_port), (25, 40_000));
        }
    }
}

#[test]
fn a_repeated_syn_keeps_its_port() {
    for ip in IPS {
        let tables = tables();
        establish(&tables, &FrameBuilder::syn(ip));
        let second = FrameBuilder { server: 10, ..FrameBuilder::syn(ip) };
        let port = see(ip, &up(&tables, &second, Reason::FlowNew)).source_port;
        for _ in 0..3 {
            assert_eq!(see(ip, &up(&tables, &second, Reason::FlowNew)).source_port, port);
        }
        assert_eq!(entries(&tables), (2, 2));
    }
}

#[test]
fn only_a_client_that_has_seen_the_relays_number_is_promoted() {
    for ip in IPS {
        let tables = tables();
        let syn = FrameBuilder::syn(ip);
        up(&tables, &syn, Reason::FlowNew);
        up(&tables, &ack(&syn), Reason::FlowHalfOpen);
        down(&tables, &syn_ack(&syn), 40_000, Reason::ReplyHalfOpen);
        for forged in [0, 5000, 5002, u32::MAX] {
            up(&tables, &FrameBuilder { acknowledgment: forged, ..ack(&syn) }, Reason::FlowHalfOpen);
        }
        up(&tables, &FrameBuilder { flags: Flags::RST | Flags::ACK, ..ack(&syn) }, Reason::FlowHalfOpen);
        assert_eq!(entries(&tables), (2, 0));
        up(&tables, &ack(&syn), Reason::FlowPromoted);
    }
}

/// Establishes one flow, fills the table with it, and opens another up to where the client has the relay's answer.
fn fill_up(ip: Ip, fallback: Fallback) -> (MemoryTables, FrameBuilder, FrameBuilder) {
    let mut tables = tables();
    tables.classes.insert(REDIRECT, Class::new(Action::Redirect, fallback, 1));
    let first = FrameBuilder::syn(ip);
    establish(&tables, &first);
    tables.established_max = 3;
    let second = FrameBuilder { client_port: 40_001, ..first.clone() };
    up(&tables, &second, Reason::FlowNew);
    down(&tables, &syn_ack(&second), 40_001, Reason::ReplyHalfOpen);
    (tables, first, second)
}

#[test]
fn a_full_table_leaves_established_flows_alone_and_lets_new_ones_go_on_where_the_class_says_pass() {
    for ip in IPS {
        let (mut tables, first, second) = fill_up(ip, Fallback::Pass);
        up(&tables, &ack(&second), Reason::FlowUnpromoted);
        assert_eq!(entries(&tables), (2, 2), "a half that found room is taken back");
        down(&tables, &ack(&second), 40_001, Reason::ReplyHalfOpen);
        up(&tables, &ack(&first), Reason::FlowEstablished);
        let later = FrameBuilder { acknowledgment: 6000, ..ack(&second) };
        up(&tables, &later, Reason::FlowUnpromoted);
        let reset = FrameBuilder { flags: Flags::RST, ..later.clone() };
        tables.established_max = 4;
        up(&tables, &reset, Reason::FlowPromoted);
        assert_eq!(entries(&tables), (0, 4), "any segment will do once there is a place");
        up(&tables, &later, Reason::FlowEstablished);
    }
}

#[test]
fn a_full_table_refuses_new_flows_where_the_class_says_so_and_takes_them_once_there_is_a_place() {
    for ip in IPS {
        for (fallback, reason) in
            [(Fallback::Block, Reason::FlowUnpromotedBlock), (Fallback::Reject, Reason::FlowUnpromotedReject)]
        {
            let (mut tables, first, second) = fill_up(ip, fallback);
            for _ in 0..2 {
                let out = send(&tables, &ack(&second).build(), Direction::Forward, REDIRECT, reason);
                if fallback == Fallback::Reject {
                    let (l4, flags) = if ip == Ip::V4 { (34, 47) } else { (54, 67) };
                    assert_eq!(out[flags], Flags::RST);
                    assert_eq!(out[l4 + 4..][..4], 5001u32.to_be_bytes(), "the number that the client waits for");
                }
            }
            assert_eq!(entries(&tables), (2, 2));
            // The client's own reset, in answer to what the relay repeats, ends the relay's side.
            up(&tables, &FrameBuilder { flags: Flags::RST, ..ack(&second) }, Reason::FlowHalfOpen);
            up(&tables, &ack(&first), Reason::FlowEstablished);
            tables.established_max = 4;
            up(&tables, &ack(&second), Reason::FlowPromoted);
        }
    }
}

#[test]
fn a_syn_on_a_live_flow_changes_nothing_and_on_a_closed_one_asks_policy_again() {
    for ip in IPS {
        let mut tables = tables();
        let syn = FrameBuilder::syn(ip);
        let port = establish(&tables, &syn);
        up(&tables, &syn, Reason::FlowEstablished);
        assert_eq!(entries(&tables), (0, 2), "the relay's stack answers it (RFC 5961 section 4)");

        // A client says nothing to a relay's reset, and may use its port again at once.
        let reset = FrameBuilder { flags: Flags::RST, ..syn_ack(&syn) };
        down(&tables, &reset, port, Reason::ReplyEstablished);
        establish(&tables, &syn);

        up(&tables, &FrameBuilder { flags: Flags::FIN | Flags::ACK, ..ack(&syn) }, Reason::FlowEstablished);
        tables.classes.insert(REDIRECT, Class::new(Action::Block, Fallback::Pass, 0));
        send(&tables, &syn.build(), Direction::Forward, REDIRECT, Reason::ClassBlock);
        assert_eq!(entries(&tables), (0, 2), "nothing is looked up for a SYN that is refused");
        tables.classes.insert(REDIRECT, Class::new(Action::Pass, Fallback::Pass, 0));
        send(&tables, &syn.build(), Direction::Forward, REDIRECT, Reason::ClassPass);
        assert_eq!(entries(&tables), (0, 0), "the closed flow is gone");
    }
}

#[test]
fn a_new_class_takes_effect_on_the_next_syn() {
    let mut tables = tables();
    let syn = FrameBuilder::syn(Ip::V4);
    up(&tables, &syn, Reason::FlowNew);
    tables.classes.insert(REDIRECT, Class::new(Action::Pass, Fallback::Pass, 0));
    send(&tables, &syn.build(), Direction::Forward, REDIRECT, Reason::ClassPass);
}

#[test]
fn replies_without_a_flow_and_bystanders_pass() {
    for ip in IPS {
        let tables = tables();
        down(&tables, &ack(&FrameBuilder::syn(ip)), 40_000, Reason::ReplyNoFlow);
        let server = FrameBuilder { reversed: true, ..FrameBuilder::syn(ip) };
        send(&tables, &server.build(), Direction::Reply, 0, Reason::OtherPort);
        send(
            &tables,
            &FrameBuilder { server_port: 587, ..FrameBuilder::syn(ip) }.build(),
            Direction::Forward,
            0,
            Reason::OtherPort,
        );
        assert_eq!(entries(&tables), (0, 0));
    }
}

#[test]
fn an_entry_given_to_another_subscriber_serves_nobody() {
    let tables = tables();
    let key: Tuple<V4> =
        Tuple::new([[10, 20, 0, 5].into_address(), [203, 0, 113, 9].into_address()], [[0x9c, 0x40], [0, 25]]);
    let other = Tuple::new([[10, 20, 0, 6].into_address(), [10, 20, 0, 1].into_address()], [[0x9c, 0x40], [9, 0xdd]]);
    tables.v4.borrow_mut().established.insert(key, Flow::forward(other, REDIRECT, 0, 100));
    send(&tables, &ack(&FrameBuilder::syn(Ip::V4)).build(), Direction::Forward, REDIRECT, Reason::NoFlowReject);
}

trait IntoAddress {
    fn into_address(self) -> V4;
}

impl IntoAddress for [u8; 4] {
    fn into_address(self) -> V4 {
        V4::from(std::net::Ipv4Addr::from(self))
    }
}

#[test]
fn the_clock_is_noted_once_a_second_and_only_where_it_moved() {
    let mut tables = tables();
    let syn = FrameBuilder::syn(Ip::V4);
    establish(&tables, &syn);
    let before = tables.v4.borrow().established.clone();
    up(&tables, &ack(&syn), Reason::FlowEstablished);
    assert_eq!(tables.v4.borrow().established, before, "nothing is written within a second");
    tables.now_s += 1;
    up(&tables, &ack(&syn), Reason::FlowEstablished);
    let seen: Vec<u32> = tables.v4.borrow().established.values().map(|flow| flow.seen_s).collect();
    assert!(seen.contains(&100) && seen.contains(&101), "each direction notes its own: {seen:?}");
}

fn any_frame() -> impl Strategy<Value = FrameBuilder> {
    let tags = prop::sample::select(vec![vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100, 0x8100]]);
    let parts =
        (prop::bool::ANY, tags, any::<[u8; 2]>(), any::<u8>(), any::<u16>(), any::<u8>(), any::<u32>(), any::<u32>());
    (parts, prop::collection::vec(any::<u8>(), 0..64)).prop_map(
        |((v4, tags, client, server, client_port, flags, sequence, acknowledgment), payload)| FrameBuilder {
            tags,
            client,
            server,
            client_port,
            flags,
            sequence,
            acknowledgment,
            payload,
            ..FrameBuilder::syn(if v4 { Ip::V4 } else { Ip::V6 })
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_decided_and_changed_only_when_redirected(bytes in prop::collection::vec(any::<u8>(), 0..256), reply in any::<bool>()) {
        let tables = tables();
        let mut out = bytes.clone();
        let direction = if reply { Direction::Reply } else { Direction::Forward };
        let verdict = process(&mut out, Link::Ethernet, &tables, direction).verdict();
        prop_assert!(verdict == Verdict::Redirect || out == bytes);
        prop_assert_eq!(tables.packets().len(), 1);
    }

    #[test]
    fn an_answer_undoes_what_the_question_had_done(syn in any_frame()) {
        let syn = FrameBuilder { client: [0, syn.client[1]], flags: Flags::SYN, tags: vec![], ..syn };
        let tables = tables();
        let out = see(syn.ip, &up(&tables, &syn, Reason::FlowNew));
        prop_assert_eq!(&out.destination, &relay_address(syn.ip));
        let back = see(syn.ip, &down(&tables, &syn_ack(&syn), out.source_port, Reason::ReplyHalfOpen));
        let asked = see(syn.ip, &syn.build());
        prop_assert_eq!((back.source, back.source_port), (asked.destination, asked.destination_port));
        prop_assert_eq!((back.destination, back.destination_port), (asked.source, asked.source_port));
    }

    #[test]
    fn pairs_stay_pairs(frames in prop::collection::vec((any_frame(), 0..4u8, 0..3u8, any::<bool>()), 1..60)) {
        // Few endpoints, so that the frames meet.
        let tables = tables();
        for (frame, port, flags, answered) in frames {
            let frame = FrameBuilder {
                client: [0, frame.client[1] % 2],
                server: frame.server % 2,
                client_port: 40_000 + u16::from(port),
                flags: [Flags::SYN, Flags::ACK, Flags::FIN | Flags::ACK][usize::from(flags)],
                acknowledgment: 5001,
                ..frame
            };
            let mut bytes = frame.build();
            if process(&mut bytes, Link::Ethernet, &tables, Direction::Forward).verdict() == Verdict::Redirect && answered && frame.tags.is_empty() {
                let client_port = see(frame.ip, &bytes).source_port;
                let client = see(frame.ip, &bytes).source;
                let mut answer = syn_ack(&frame).build_between(&relay_address(frame.ip), 2525, &client, client_port);
                process(&mut answer, Link::Ethernet, &tables, Direction::Reply);
            }
        }
        let v4 = tables.v4.borrow();
        let v6 = tables.v6.borrow();
        for (key, flow) in &v4.established {
            prop_assert!(v4.established.get(&flow.to.reversed()).is_some_and(|other| other.to == key.reversed()));
        }
        for (key, flow) in &v6.established {
            prop_assert!(v6.established.get(&flow.to.reversed()).is_some_and(|other| other.to == key.reversed()));
        }
    }
}
