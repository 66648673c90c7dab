//! What would become of a packet, without any of it happening.

use proptest::prelude::*;
use redirect_common::{dry_run::DryRun, handle::handle};

use super::*;

fn any_frame() -> impl Strategy<Value = (FrameBuilder, bool)> {
    let flags = prop::sample::select(vec![Flags::SYN, Flags::ACK, Flags::ACK, Flags::FIN | Flags::ACK, Flags::RST]);
    let fragment = prop::sample::select(vec![0x4000u16, 0x4000, 0x4000, 0x2000, 3]);
    (any::<bool>(), 0..2u8, 0..3u16, flags, fragment, any::<bool>()).prop_map(
        |(v4, last, port, flags, fragment, up)| {
            let ip = if v4 { Ip::V4 } else { Ip::V6 };
            let flags = if !up && flags == Flags::SYN { Flags::SYN | Flags::ACK } else { flags };
            let extensions = if v4 || fragment == 0x4000 { vec![] } else { vec![44] };
            let syn = FrameBuilder {
                client: [0, last],
                client_port: 40_000 + port,
                fragment,
                extensions,
                ..FrameBuilder::syn(ip)
            };
            (with(flags, &syn), up)
        },
    )
}

proptest! {
    #[test]
    fn a_dry_run_tells_what_a_run_does_and_changes_nothing(
        frames in prop::collection::vec((any_frame(), 0..4u16, any::<bool>()), 1..80),
    ) {
        let limits = Limits { rate: 1, burst: 4, open_max: 2, lock_after: 3, lock_s: 2 };
        let mut tables = tables(REDIRECT);
        for class in [REDIRECT, OTHER] {
            tables.classes.insert(class, redirecting().with_limits(limits));
        }
        tables.established_max = 4;
        for ((builder, up), class, tick) in frames {
            if tick {
                tables.now_s += 1;
                tables.now_ns += 500_000_000;
                tables.epoch += 1;
                set_class(&tables, [REDIRECT, OTHER, KEEP, STEER][usize::from(class)]);
            }
            let (frame, direction) = if up {
                (builder.build(), Direction::Forward)
            } else {
                let frame = builder.build_between(&relay(builder.ip), RELAY_PORT, &client(&builder), builder.client_port);
                (frame, Direction::Reply)
            };
            let dry_tables = DryRun::new(tables.clone());
            let (mut dry, mut wet) = (frame.clone(), frame);
            let told = handle(&mut dry, Link::Ethernet, &dry_tables, direction);
            prop_assert_eq!(&dry_tables.into_inner(), &tables);
            let done = handle(&mut wet, Link::Ethernet, &tables, direction);
            prop_assert_eq!((told, dry), (done, wet));
        }
    }
}

#[test]
fn a_dry_run_reckons_with_the_connection_that_a_syn_would_end() {
    for ip in IPS {
        let mut tables = tables(REDIRECT);
        for class in [REDIRECT, OTHER] {
            tables.classes.insert(class, redirecting().with_limits(Limits { open_max: 1, ..Limits::default() }));
        }
        let syn = FrameBuilder::syn(ip);
        establish(&tables, &syn);
        let told = |tables: &MemoryTables, syn: &FrameBuilder| {
            let dry = DryRun::new(tables.clone());
            handle(&mut syn.build(), Link::Ethernet, &dry, Direction::Forward).reason
        };
        let another = FrameBuilder { client_port: 41_000, ..syn.clone() };
        assert_eq!(told(&tables, &another), Reason::OpenLimited);
        set_class(&tables, OTHER);
        tables.epoch += 1;
        assert_eq!(told(&tables, &another), Reason::OpenLimited);
        assert_eq!(told(&tables, &syn), Reason::FlowNew);
        assert_eq!(up(&tables, &syn), Reason::FlowNew);
    }
}
