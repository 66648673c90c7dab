//! Live flows whose subscriber gets another class, and what user space is told.

use super::*;

#[test]
fn a_live_flow_is_reset_and_the_clients_own_resets_reach_the_relay() {
    for ip in IPS {
        let mut tables = tables(REDIRECT);
        let syn = FrameBuilder::syn(ip);
        let ack = with(Flags::ACK, &syn);
        establish(&tables, &syn);
        set_class(&tables, BLOCK);
        assert_eq!(up(&tables, &ack), Reason::FlowEstablished, "the daemon has not finished yet");
        tables.epoch += 1;
        for _ in 0..2 {
            let (reason, out) = send(&tables, &ack.build(), Direction::Forward);
            assert_eq!(reason, Reason::ClassChanged);
            assert_eq!(out[l4(ip) + 13], Flags::RST);
            assert_eq!(out[l4(ip) + 4..][..4], 5001u32.to_be_bytes(), "what the client acknowledges is next");
        }
        assert_eq!(down(&tables, &ack), Reason::ReplyEstablished);
        let (reason, out) = send(&tables, &with(Flags::RST, &syn).build(), Direction::Forward);
        assert_eq!(reason, Reason::FlowEstablished);
        let at = if ip == Ip::V4 { 30 } else { 38 };
        assert_eq!(out[at..at + relay(ip).len()], relay(ip));
        // Who gets his old class back does not get his connection back.
        set_class(&tables, REDIRECT);
        tables.epoch += 1;
        assert_eq!(up(&tables, &ack), Reason::ClassChanged);
    }
}

/// Entries of established flows, and connections that count as open.
fn left(tables: &MemoryTables) -> (usize, u32) {
    let established = tables.v4.borrow().established.len() + tables.v6.borrow().established.len();
    (established, tables.open.borrow().values().sum())
}

#[test]
fn a_syn_follows_the_new_class_at_once() {
    let limited = || redirecting().with_limits(Limits { open_max: 1, ..Limits::default() });
    for ip in IPS {
        let syn = FrameBuilder::syn(ip);
        for doomed in [false, true] {
            let mut tables = tables(REDIRECT);
            tables.classes.extend([(REDIRECT, limited()), (OTHER, limited())]);
            establish(&tables, &syn);
            set_class(&tables, OTHER);
            tables.epoch += 1;
            if doomed {
                assert_eq!(up(&tables, &with(Flags::ACK, &syn)), Reason::ClassChanged);
            }
            assert_eq!(up(&tables, &syn), Reason::FlowNew, "doomed: {doomed}");
            assert_eq!(left(&tables), (0, 0), "the old flow is gone and no longer counts as open");
        }
        // A flow that survives is none that a SYN could end.
        let mut tables = tables(REDIRECT);
        establish(&tables, &syn);
        set_class(&tables, KEEP);
        tables.epoch += 1;
        assert_eq!(up(&tables, &syn), Reason::FlowEstablished);
    }
}

#[test]
fn a_syn_that_is_refused_leaves_the_old_flow_to_its_own_end() {
    for ip in IPS {
        for doomed in [false, true] {
            for (class, reason) in [(BLOCK, Reason::ClassBlock), (REJECT, Reason::ClassReject)] {
                let mut tables = tables(REDIRECT);
                let limits = Limits { open_max: 1, ..Limits::default() };
                tables.classes.insert(REDIRECT, redirecting().with_limits(limits));
                let syn = FrameBuilder::syn(ip);
                let ack = with(Flags::ACK, &syn);
                establish(&tables, &syn);
                set_class(&tables, class);
                tables.epoch += 1;
                if doomed {
                    assert_eq!(up(&tables, &ack), Reason::ClassChanged);
                }
                assert_eq!(up(&tables, &syn), reason, "{class}, doomed: {doomed}");
                assert_eq!(left(&tables), (2, u32::from(!doomed)), "nothing is looked up for a SYN that is refused");
                // Of the old flow nothing reaches the relay but the client's own resets.
                for flags in [Flags::ACK, Flags::FIN | Flags::ACK] {
                    assert_eq!(up(&tables, &with(flags, &syn)), Reason::ClassChanged);
                }
                assert_eq!(up(&tables, &with(Flags::RST, &syn)), Reason::FlowEstablished);
                assert_eq!(left(&tables), (2, 0));
                // Nor does it stand in the way of the connection that the subscriber may open later.
                set_class(&tables, REDIRECT);
                tables.epoch += 1;
                assert_eq!(up(&tables, &syn), Reason::FlowNew);
                assert_eq!(left(&tables), (0, 0));
            }
        }
    }
}

#[test]
fn a_live_flow_goes_on_where_the_new_class_keeps_such_or_nothing_has_changed() {
    for ip in IPS {
        for class in [KEEP, REDIRECT] {
            let mut tables = tables(REDIRECT);
            let syn = FrameBuilder::syn(ip);
            establish(&tables, &syn);
            set_class(&tables, class);
            tables.epoch += 1;
            assert_eq!(up(&tables, &with(Flags::ACK, &syn)), Reason::FlowEstablished);
        }
        // Nobody's subscriber any more: no class has a say.
        let mut tables = tables(REDIRECT);
        let syn = FrameBuilder::syn(ip);
        establish(&tables, &syn);
        tables.v4.borrow_mut().prefixes.clear();
        tables.v6.borrow_mut().prefixes.clear();
        tables.epoch += 1;
        assert_eq!(up(&tables, &with(Flags::ACK, &syn)), Reason::FlowEstablished);
    }
}

#[test]
fn a_segment_of_no_flow_is_reset_unless_the_class_keeps_such() {
    for ip in IPS {
        let ack = with(Flags::ACK, &FrameBuilder::syn(ip));
        assert_eq!(up(&tables(REDIRECT), &ack), Reason::NoFlowReject);
        assert_eq!(up(&tables(REDIRECT), &with(Flags::RST, &ack)), Reason::NoFlow, "resets get no answer");
        assert_eq!(up(&tables(KEEP), &ack), Reason::NoFlow);
    }
}

#[test]
fn user_space_is_told_of_each_begin_and_refusal_and_of_nothing_else() {
    for ip in IPS {
        let mut tables = tables(REDIRECT);
        let syn = FrameBuilder::syn(ip);
        establish(&tables, &syn);
        up(&tables, &with(Flags::ACK, &syn));
        set_class(&tables, BLOCK);
        tables.epoch += 1;
        up(&tables, &with(Flags::ACK, &syn));
        up(&tables, &FrameBuilder { client_port: 1, ..syn.clone() });
        let told: Vec<_> = tables.events.borrow().iter().map(|event| (event.reason().unwrap(), event.class)).collect();
        let expected = [(Reason::FlowNew, REDIRECT), (Reason::ClassChanged, REDIRECT), (Reason::ClassBlock, BLOCK)];
        assert_eq!(told, expected);
        let ends = tables.events.borrow()[0].ends();
        assert_eq!((ends.client.port(), ends.server.port(), ends.relay.port()), (40_000, 25, RELAY_PORT));
    }
}
