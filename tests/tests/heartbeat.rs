//! Without a sign of the daemon, the loaded programs decide as the host's function does.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::collections::BTreeMap;

use redirect_common::{
    flow::Direction,
    policy::{Action, Class, Fallback, OnDaemonDown, Relay},
    reason::Reason,
    testkit::{FrameBuilder, Ip, MemoryTables, process},
};
use redirect_ctl::reconcile::task::monotonic_s;
use redirect_tests::kernel::{Hook, Kernel, Policy};

const TIMEOUT_S: u32 = 30;

/// A class for each policy and each kind of relay, by the last byte of the client.
fn policy() -> Policy {
    let relay = Relay::new(Some("10.20.0.1:2525".parse().unwrap()), Some("[fd00:20::1]:2525".parse().unwrap())).own();
    let mut policy = Policy { relays: [(1, relay), (2, relay.embedded())].into(), ..Policy::default() };
    let policies = [OnDaemonDown::Keep, OnDaemonDown::Pass, OnDaemonDown::Block, OnDaemonDown::Reject];
    let classes = policies.into_iter().flat_map(|on_daemon_down| [1, 2].map(|relay| (on_daemon_down, relay)));
    for (id, (on_daemon_down, relay)) in (1..).zip(classes) {
        let class = Class::new(Action::Redirect, Fallback::Block, relay).with_on_daemon_down(on_daemon_down);
        policy.classes.insert(id, class);
        let client = FrameBuilder { client: [0, u8::try_from(id).unwrap()], ..FrameBuilder::syn(Ip::V4) };
        policy.subscribers.push((client.client_v4().into(), 32, id));
        policy.subscribers.push((client.client_v6().into(), 128, id));
    }
    policy
}

fn tables(policy: &Policy, daemon_down: bool) -> MemoryTables {
    let tables = MemoryTables {
        classes: policy.classes.clone(),
        relays: policy.relays.clone(),
        daemon_down,
        ..MemoryTables::default()
    };
    for (address, len, class) in &policy.subscribers {
        let key = (*len, *address);
        match address {
            std::net::IpAddr::V4(_) => tables.v4.borrow_mut().prefixes.insert(key, *class),
            std::net::IpAddr::V6(_) => tables.v6.borrow_mut().prefixes.insert(key, *class),
        };
    }
    tables
}

#[test]
fn without_a_daemon_the_programs_decide_as_the_host_does() {
    let policy = policy();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for hook in Hook::ETHERNET.into_iter().filter(|hook| hook.direction() == Direction::Forward) {
        for (silence_s, daemon_down) in [(0, false), (TIMEOUT_S - 5, false), (TIMEOUT_S + 2, true)] {
            let mut kernel = Kernel::load(&policy, 1_024);
            kernel.set(|settings| {
                settings.daemon_timeout_s = TIMEOUT_S;
                settings.clock_s = monotonic_s() - silence_s;
            });
            let tables = tables(&policy, daemon_down);
            for id in policy.classes.keys() {
                for ip in [Ip::V4, Ip::V6] {
                    let client = [0, u8::try_from(*id).unwrap()];
                    let frame = FrameBuilder { client, ..FrameBuilder::syn(ip) }.build();
                    let told = kernel.explain(&frame);
                    let mut expected = frame.clone();
                    let reason = process(&mut expected, hook.link(), &tables, hook.direction());
                    let (_, left) = kernel.run(hook, &frame).expect("a whole frame can be run");
                    assert_eq!((told, &left), (reason, &expected), "{hook:?} class {id} {silence_s} s");
                    *reasons.entry(reason.name()).or_default() += 1;
                }
            }
        }
    }
    let met = [
        Reason::FlowNew,
        Reason::RelayDownBlock,
        Reason::DaemonDownPass,
        Reason::DaemonDownBlock,
        Reason::DaemonDownReject,
    ];
    assert!(met.iter().all(|reason| reasons.contains_key(reason.name())) && reasons.len() == met.len(), "{reasons:?}");
}
