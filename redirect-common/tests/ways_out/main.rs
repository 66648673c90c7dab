//! The ways out of the data plane beside plain redirecting: fragments, ICMP errors, limits, steering, changes of class, and dry runs, on
//! tables in memory.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

mod class_change;
mod dry_run;
mod fragments;
mod icmp;
mod limits;
mod steer;

use std::net::IpAddr;

use redirect_common::{
    flow::{Direction, Flags},
    parse::Link,
    policy::{Action, Class, Fallback, Limits, OnClassChange, Relay},
    reason::{Reason, Verdict},
    testkit::{FrameBuilder, Ip, MemoryTables, internet_checksum, process},
};

const IPS: [Ip; 2] = [Ip::V4, Ip::V6];
const REDIRECT: u16 = 1;
const BLOCK: u16 = 2;
const STEER: u16 = 3;
const KEEP: u16 = 4;
/// As `REDIRECT`, by another number.
const OTHER: u16 = 5;
const REJECT: u16 = 6;
const RELAY_PORT: u16 = 2525;

fn redirecting() -> Class {
    Class::new(Action::Redirect, Fallback::Pass, 1)
}

/// Everybody of `10.20.0.0/16` and `fd00:20::/64` is of `class`.
fn tables(class: u16) -> MemoryTables {
    let mut tables = MemoryTables { now_s: 100, steering: true, ..MemoryTables::default() };
    let relay = Relay::new(Some("10.20.0.1:2525".parse().unwrap()), Some("[fd00:20::1]:2525".parse().unwrap()));
    tables.relays = [(1, relay), (2, relay.steered(false))].into();
    tables.classes = [
        (REDIRECT, redirecting()),
        (BLOCK, Class::new(Action::Block, Fallback::Pass, 0)),
        (REJECT, Class::new(Action::Reject, Fallback::Pass, 0)),
        (STEER, Class::new(Action::Redirect, Fallback::Pass, 2)),
        (OTHER, redirecting()),
        (KEEP, redirecting().with_on_class_change(OnClassChange::Keep)),
    ]
    .into();
    set_class(&tables, class);
    tables
}

fn set_class(tables: &MemoryTables, class: u16) {
    let network = |text: &str| text.parse::<IpAddr>().unwrap();
    tables.v4.borrow_mut().prefixes.insert((16, network("10.20.0.0")), class);
    tables.v6.borrow_mut().prefixes.insert((64, network("fd00:20::")), class);
}

fn client(builder: &FrameBuilder) -> Vec<u8> {
    match builder.ip {
        Ip::V4 => builder.client_v4().to_vec(),
        Ip::V6 => builder.client_v6().to_vec(),
    }
}

fn server(builder: &FrameBuilder) -> Vec<u8> {
    match builder.ip {
        Ip::V4 => builder.server_v4().to_vec(),
        Ip::V6 => builder.server_v6().to_vec(),
    }
}

fn relay(ip: Ip) -> Vec<u8> {
    match ip {
        Ip::V4 => vec![10, 20, 0, 1],
        Ip::V6 => [&[0xfd, 0, 0, 0x20][..], &[0; 11], &[1]].concat(),
    }
}

/// Offset of the header behind that of IP, in a frame without tags, options and extension headers.
const fn l4(ip: Ip) -> usize {
    match ip {
        Ip::V4 => 34,
        Ip::V6 => 54,
    }
}

/// Decides a frame; what passes, is dropped or steered must stay as it is.
fn send(tables: &MemoryTables, frame: &[u8], direction: Direction) -> (Reason, Vec<u8>) {
    let mut out = frame.to_vec();
    let reason = process(&mut out, Link::Ethernet, tables, direction);
    if matches!(reason.verdict(), Verdict::Pass | Verdict::Drop | Verdict::Steer) {
        assert_eq!(out, frame, "{reason:?}");
    }
    (reason, out)
}

fn up(tables: &MemoryTables, builder: &FrameBuilder) -> Reason {
    send(tables, &builder.build(), Direction::Forward).0
}

fn down(tables: &MemoryTables, builder: &FrameBuilder) -> Reason {
    let frame = builder.build_between(&relay(builder.ip), RELAY_PORT, &client(builder), builder.client_port);
    send(tables, &frame, Direction::Reply).0
}

fn with(flags: u8, builder: &FrameBuilder) -> FrameBuilder {
    FrameBuilder { flags, sequence: 5000, acknowledgment: 5001, ..builder.clone() }
}

fn establish(tables: &MemoryTables, syn: &FrameBuilder) {
    assert_eq!(up(tables, syn), Reason::FlowNew);
    assert_eq!(down(tables, &with(Flags::SYN | Flags::ACK, syn)), Reason::ReplyHalfOpen);
    assert_eq!(up(tables, &with(Flags::ACK, syn)), Reason::FlowPromoted);
}
