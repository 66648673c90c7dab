//! Flows that go to a socket of this host as they are.

use redirect_common::{
    address::{Address, V4, V6},
    flow::Tuple,
    tables::Socket,
};

use super::*;

fn tuple<A: Address>(source: A, destination: A) -> Tuple<A> {
    Tuple::new([source, destination], [40_000u16.to_be_bytes(), [0, 25]])
}

/// What this host's TCP knows of the flow of [`FrameBuilder::syn`].
fn set_socket(tables: &MemoryTables, socket: Socket) {
    let [client, server] = [[10, 20, 0, 5], [203, 0, 113, 9]].map(V4::from_octets);
    tables.v4.borrow_mut().sockets.insert(tuple(client, server), socket);
    let syn = FrameBuilder::syn(Ip::V6);
    let [client, server] = [syn.client_v6(), syn.server_v6()].map(V6::from_octets);
    tables.v6.borrow_mut().sockets.insert(tuple(client, server), socket);
}

#[test]
fn a_flow_is_established_once_the_kernel_has_its_socket() {
    for ip in IPS {
        let tables = tables(STEER);
        let syn = FrameBuilder::syn(ip);
        let ack = with(Flags::ACK, &syn);
        assert_eq!(up(&tables, &syn), Reason::SteerNew);
        assert_eq!(up(&tables, &ack), Reason::SteerHalfOpen, "no socket yet");
        set_socket(&tables, Socket::Waiting);
        assert_eq!(up(&tables, &ack), Reason::SteerHalfOpen, "a SYN was answered");
        set_socket(&tables, Socket::Connected);
        assert_eq!(up(&tables, &ack), Reason::SteerPromoted);
        assert_eq!(up(&tables, &ack), Reason::SteerEstablished);
    }
}

#[test]
fn a_flow_that_lost_its_entry_is_known_by_its_socket() {
    for ip in IPS {
        let tables = tables(STEER);
        let ack = with(Flags::ACK, &FrameBuilder::syn(ip));
        assert_eq!(up(&tables, &ack), Reason::NoFlowReject, "without a socket it is nobody's");
        set_socket(&tables, Socket::Waiting);
        assert_eq!(up(&tables, &ack), Reason::SteerHalfOpen);
        set_socket(&tables, Socket::Connected);
        assert_eq!(up(&tables, &ack), Reason::SteerPromoted);
        assert_eq!(up(&tables, &ack), Reason::SteerEstablished);
    }
}

#[test]
fn without_a_place_each_segment_is_still_steered() {
    for ip in IPS {
        let mut tables = tables(STEER);
        tables.established_max = 0;
        set_socket(&tables, Socket::Connected);
        let syn = FrameBuilder::syn(ip);
        assert_eq!(up(&tables, &syn), Reason::SteerNew);
        for _ in 0..2 {
            assert_eq!(up(&tables, &with(Flags::ACK, &syn)), Reason::SteerUnpromoted);
        }
    }
}

#[test]
fn a_syn_on_an_established_flow_is_decided_by_policy() {
    for ip in IPS {
        let tables = tables(STEER);
        set_socket(&tables, Socket::Connected);
        let syn = FrameBuilder::syn(ip);
        assert_eq!(
            [&syn, &with(Flags::ACK, &syn)].map(|frame| up(&tables, frame)),
            [Reason::SteerNew, Reason::SteerPromoted]
        );
        assert_eq!(up(&tables, &syn), Reason::SteerNew, "only the kernel knows whether it is over");
        set_class(&tables, BLOCK);
        assert_eq!(up(&tables, &syn), Reason::ClassBlock);
    }
}

#[test]
fn where_nothing_is_steered_the_relay_is_rewritten_to_or_counts_as_down() {
    for ip in IPS {
        let mut tables = tables(STEER);
        tables.steering = false;
        assert_eq!(up(&tables, &FrameBuilder::syn(ip)), Reason::FlowNew);
        let only = tables.relays[&2].steered(true);
        tables.relays.insert(2, only);
        assert_eq!(up(&tables, &FrameBuilder { client_port: 1, ..FrameBuilder::syn(ip) }), Reason::RelayDownPass);
    }
}
