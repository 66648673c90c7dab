//! Datagrams in fragments.

use redirect_common::fragment::FATE_S;

use super::*;

/// The first fragment of a SYN with data, or a later one.
fn fragment(ip: Ip, first: bool, identification: u16) -> FrameBuilder {
    let extensions = if ip == Ip::V6 { vec![44] } else { vec![] };
    let fragment = if first { 0x2000 } else { 3 };
    FrameBuilder { fragment, extensions, identification, payload: vec![1; 24], ..FrameBuilder::syn(ip) }
}

fn destination(ip: Ip, frame: &[u8]) -> Vec<u8> {
    match ip {
        Ip::V4 => frame[30..34].to_vec(),
        Ip::V6 => frame[38..54].to_vec(),
    }
}

#[test]
fn later_fragments_follow_the_first_one_to_the_relay() {
    for ip in IPS {
        let mut tables = tables(REDIRECT);
        let [first, later] = [true, false].map(|first| fragment(ip, first, 7));
        assert_eq!(up(&tables, &later), Reason::Fragment, "one that overtakes its first one passes");
        let (reason, out) = send(&tables, &first.build(), Direction::Forward);
        assert_eq!((reason, destination(ip, &out)), (Reason::FlowNew, relay(ip)));
        let before = later.build();
        let (reason, out) = send(&tables, &before, Direction::Forward);
        assert_eq!((reason, destination(ip, &out)), (Reason::FragmentRedirect, relay(ip)));
        assert_eq!(out[l4(ip)..], before[l4(ip)..], "what looks like ports is data");
        if ip == Ip::V4 {
            assert_eq!(internet_checksum(&[&out[14..34]]), 0);
        }
        assert_eq!(up(&tables, &fragment(ip, false, 8)), Reason::Fragment, "of another datagram");
        tables.now_s += FATE_S;
        assert_eq!(up(&tables, &later), Reason::FragmentRedirect);
        tables.now_s += 1;
        assert_eq!(up(&tables, &later), Reason::Fragment, "too late for its datagram");
    }
}

#[test]
fn fragments_of_who_is_stopped_are_dropped() {
    for ip in IPS {
        for (class, first_reason) in [
            (Class::new(Action::Block, Fallback::Pass, 0), Reason::ClassBlock),
            // A reset answers a segment, and of this one only a part is there.
            (Class::new(Action::Reject, Fallback::Pass, 0), Reason::FragmentBlock),
            (Class::new(Action::Redirect, Fallback::Reject, 9), Reason::FragmentBlock),
            (Class::new(Action::Redirect, Fallback::Block, 9), Reason::RelayDownBlock),
        ] {
            let mut tables = tables(REDIRECT);
            tables.classes.insert(REDIRECT, class);
            assert_eq!(up(&tables, &fragment(ip, true, 7)), first_reason);
            assert_eq!(up(&tables, &fragment(ip, false, 7)), Reason::FragmentBlock);
        }
        let tables = tables(REDIRECT);
        assert_eq!(up(&tables, &FrameBuilder { flags: Flags::ACK, ..fragment(ip, true, 7) }), Reason::FragmentBlock);
    }
}

#[test]
fn a_fragment_that_would_be_rejected_takes_no_reset_and_is_told_as_what_it_is() {
    for ip in IPS {
        let mut tables = tables(REDIRECT);
        tables.classes.insert(REDIRECT, Class::new(Action::Reject, Fallback::Pass, 0));
        tables.resets_left.set(1);
        assert_eq!(up(&tables, &fragment(ip, true, 7)), Reason::FragmentBlock);
        assert_eq!(up(&tables, &FrameBuilder { flags: Flags::RST, ..fragment(ip, true, 8) }), Reason::FragmentBlock);
        assert!(tables.events.borrow().is_empty(), "nothing was answered, so nothing was rejected");
        assert_eq!(up(&tables, &FrameBuilder::syn(ip)), Reason::ClassReject, "the reset is still there");
        assert_eq!(up(&tables, &FrameBuilder::syn(ip)), Reason::RejectLimited);
    }
}

#[test]
fn fragments_of_a_steered_flow_are_steered_and_those_that_pass_pass() {
    for ip in IPS {
        let steering = tables(STEER);
        assert_eq!(up(&steering, &fragment(ip, true, 7)), Reason::SteerNew);
        assert_eq!(up(&steering, &fragment(ip, false, 7)), Reason::FragmentSteer);
        let mut passing = tables(REDIRECT);
        passing.classes.insert(REDIRECT, Class::new(Action::Pass, Fallback::Pass, 0));
        assert_eq!(up(&passing, &fragment(ip, true, 7)), Reason::ClassPass);
        assert_eq!(up(&passing, &fragment(ip, false, 7)), Reason::Fragment);
        assert!(passing.v4.borrow().fates.is_empty() && passing.v6.borrow().fates.is_empty(), "nothing to remember");
    }
}

#[test]
fn answers_in_fragments_come_from_the_server() {
    for ip in IPS {
        let tables = tables(REDIRECT);
        establish(&tables, &FrameBuilder::syn(ip));
        for (first, reason) in [(true, Reason::ReplyEstablished), (false, Reason::FragmentRedirect)] {
            let answer = with(Flags::ACK, &fragment(ip, first, 9));
            assert_eq!(down(&tables, &answer), reason);
        }
    }
}
