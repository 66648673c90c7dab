//! What one subscriber may do.

use redirect_common::address::Host;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

fn limited(limits: Limits) -> MemoryTables {
    let mut tables = tables(REDIRECT);
    tables.now_ns = 77 * SECOND_NS;
    tables.classes.insert(REDIRECT, redirecting().with_limits(limits));
    tables
}

fn syn(ip: Ip, client_port: u16) -> FrameBuilder {
    FrameBuilder { client_port, ..FrameBuilder::syn(ip) }
}

#[test]
fn a_burst_passes_and_then_the_rate_holds() {
    for ip in IPS {
        let mut tables = limited(Limits { rate: 2, burst: 3, ..Limits::default() });
        let passed = |tables: &MemoryTables, from: u16| {
            (from..from + 10).filter(|port| up(tables, &syn(ip, *port)) == Reason::FlowNew).count()
        };
        assert_eq!(passed(&tables, 2000), 3);
        assert_eq!(up(&tables, &syn(ip, 2000)), Reason::FlowNew, "a SYN that is sent again is no other connection");
        assert_eq!(
            up(&tables, &FrameBuilder { client: [9, 9], ..syn(ip, 2000) }),
            match ip {
                Ip::V4 => Reason::FlowNew,
                // One /64 is one subscriber.
                Ip::V6 => Reason::RateLimited,
            }
        );
        tables.now_ns += SECOND_NS / 2;
        assert_eq!(passed(&tables, 3000), 1);
        tables.now_ns += 100 * SECOND_NS;
        assert_eq!(passed(&tables, 4000), 3, "silence earns no more than the burst");
    }
}

#[test]
fn open_connections_are_bounded_and_a_fin_or_reset_makes_room() {
    for ip in IPS {
        for end in [Flags::FIN | Flags::ACK, Flags::RST] {
            let tables = limited(Limits { open_max: 2, ..Limits::default() });
            let host = Host::from(match ip {
                Ip::V4 => IpAddr::from([10, 20, 0, 5]),
                Ip::V6 => "fd00:20::5".parse().unwrap(),
            });
            establish(&tables, &syn(ip, 1));
            establish(&tables, &syn(ip, 2));
            assert_eq!(tables.open.borrow()[&host], 2);
            assert_eq!(up(&tables, &syn(ip, 3)), Reason::OpenLimited);
            assert_eq!(up(&tables, &with(end, &syn(ip, 1))), Reason::FlowEstablished);
            assert_eq!(up(&tables, &with(end, &syn(ip, 1))), Reason::FlowEstablished, "counted off once");
            assert_eq!(tables.open.borrow()[&host], 1);
            establish(&tables, &syn(ip, 3));
            assert_eq!(up(&tables, &syn(ip, 4)), Reason::OpenLimited);
        }
    }
}

#[test]
fn who_does_not_stop_is_locked_until_the_lock_expires() {
    for ip in IPS {
        let mut tables = limited(Limits { rate: 1, burst: 1, lock_after: 3, lock_s: 30, ..Limits::default() });
        let refused = Reason::RateLimited;
        let reasons: Vec<Reason> = (1..=6).map(|port| up(&tables, &syn(ip, port))).collect();
        assert_eq!(reasons, [Reason::FlowNew, refused, refused, refused, Reason::Locked, Reason::Locked]);
        assert_eq!(up(&tables, &with(Flags::ACK, &syn(ip, 1))), Reason::FlowHalfOpen, "what is open goes on");
        tables.now_ns += 60 * SECOND_NS;
        tables.now_s += 29;
        assert_eq!(up(&tables, &syn(ip, 7)), Reason::Locked);
        tables.now_s += 1;
        assert_eq!(up(&tables, &syn(ip, 7)), Reason::FlowNew);
    }
}

#[test]
fn a_class_that_passes_has_limits_too() {
    let mut tables = limited(Limits::default());
    let limits = Limits { rate: 1, burst: 1, ..Limits::default() };
    tables.classes.insert(REDIRECT, Class::new(Action::Pass, Fallback::Pass, 0).with_limits(limits));
    assert_eq!([1, 2].map(|port| up(&tables, &syn(Ip::V4, port))), [Reason::ClassPass, Reason::RateLimited]);
    assert_eq!(up(&tables, &with(Flags::ACK, &syn(Ip::V4, 2))), Reason::ClassPass, "SYNs only");
}
