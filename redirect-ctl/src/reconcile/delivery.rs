//! How flows reach a relay: rewritten toward its endpoint, steered to its sockets, or not at all. Pure.

use std::net::SocketAddr;

use redirect_common::policy;

use crate::desired::{Delivery, Relay, Source};

/// A relay without endpoints (the embedded one of a file that lists no listener) is none to the kernel.
pub(super) fn is_known(relay: &Relay) -> bool {
    relay.spec.endpoints().next().is_some()
}

/// The daemon itself serves it.
pub(super) fn is_embedded(relay: &Relay) -> bool {
    relay.source == Source::File
}

/// Whether new flows may go to an endpoint, as far as their delivery is concerned.
pub(super) fn takes_flows(relay: &Relay, endpoint: SocketAddr, can_steer: impl Fn(SocketAddr) -> bool) -> bool {
    relay.spec.delivery != Delivery::Steer || can_steer(endpoint)
}

/// What the kernel is to know of a relay; `can_steer` says to which endpoints flows can be steered.
///
/// `auto` steers if it can in every family, and rewrites else; where a packet came in by XDP, it is rewritten all the same. `steer` never
/// rewrites: its endpoints may be such as no packet could be sent to.
pub(super) fn kernel_relay(relay: &Relay, can_steer: impl Fn(SocketAddr) -> bool) -> policy::Relay {
    let spec = &relay.spec;
    let endpoints = policy::Relay::new(spec.ipv4, spec.ipv6);
    let endpoints = match spec.delivery {
        Delivery::Auto if spec.endpoints().all(can_steer) => endpoints.steered(false),
        Delivery::Auto | Delivery::Rewrite => endpoints,
        Delivery::Steer => endpoints.steered(true),
    };
    match relay.source {
        // The embedded one.
        Source::File => endpoints.own().embedded(),
        Source::Api => endpoints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{RelaySpec, RelayStatus};

    const V4: &str = "10.20.0.1:2525";
    const V6: &str = "[fd00:20::1]:2525";

    fn relay(delivery: Delivery) -> Relay {
        let (ipv4, ipv6) = (V4.parse().ok(), V6.parse().ok());
        let (name, status) = ("r".parse().unwrap(), RelayStatus::Enabled);
        Relay { id: 1, spec: RelaySpec { name, ipv4, ipv6, delivery, status }, source: Source::Api }
    }

    #[test]
    fn how_flows_reach_a_relay() {
        use Delivery::{Auto, Rewrite, Steer};
        let both = policy::Relay::new(V4.parse().ok(), V6.parse().ok());
        // Delivery, endpoints that can be steered to, what the kernel is told, and which endpoints take flows.
        let cases: &[(Delivery, &[&str], policy::Relay, &[&str])] = &[
            (Rewrite, &[], both, &[V4, V6]),
            (Rewrite, &[V4, V6], both, &[V4, V6]),
            (Auto, &[], both, &[V4, V6]),
            (Auto, &[V4], both, &[V4, V6]),
            (Auto, &[V4, V6], both.steered(false), &[V4, V6]),
            (Steer, &[V4, V6], both.steered(true), &[V4, V6]),
            (Steer, &[V4], both.steered(true), &[V4]),
            (Steer, &[], both.steered(true), &[]),
        ];
        for (delivery, ready, expected, taking) in cases {
            let can_steer = |endpoint: SocketAddr| ready.contains(&endpoint.to_string().as_str());
            let relay = relay(*delivery);
            assert_eq!(kernel_relay(&relay, can_steer), *expected, "{delivery} {ready:?}");
            for endpoint in [V4, V6] {
                let takes = takes_flows(&relay, endpoint.parse().unwrap(), can_steer);
                assert_eq!(takes, taking.contains(&endpoint), "{delivery} {ready:?} {endpoint}");
            }
            let embedded = Relay { source: Source::File, ..relay };
            assert_eq!(kernel_relay(&embedded, can_steer), expected.own().embedded(), "{delivery} {ready:?}");
        }
        let nowhere = RelaySpec { ipv4: None, ipv6: None, ..relay(Auto).spec };
        assert!(is_known(&relay(Steer)) && !is_known(&Relay { spec: nowhere, ..relay(Auto) }));
    }
}
