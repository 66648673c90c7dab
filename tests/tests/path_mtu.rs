//! Path MTU discovery (RFC 1191, RFC 8201) of redirected connections: a link in the middle is narrower than those at both ends, every packet
//! says that it must not be fragmented, and nobody clamps the segment size. Whoever sends learns of it only if the ICMP error that quotes
//! a rewritten packet gets to it, and names the connection as it knows it.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{net::IpAddr, process::Command};

use redirect_tests::{
    Family, Lab, Link, Namespace, Scene, Stretch, in_every_mode,
    smtp::port_25,
    tcp::{PATIENCE, Place, Relay, carry, dial, noise},
};

in_every_mode!(
    the_path_from_the_router_to_the_subscriber_is_narrow,
    the_path_from_the_dmz_to_the_subscriber_is_narrow,
    the_path_to_the_dmz_is_narrow,
);

fn the_path_from_the_router_to_the_subscriber_is_narrow(scene: &mut Scene) {
    check_path_to_the_subscriber(scene, Place::Router, &scene.lab.router);
}

fn the_path_from_the_dmz_to_the_subscriber_is_narrow(scene: &mut Scene) {
    check_path_to_the_subscriber(scene, Place::Dmz, &scene.lab.gateway);
}

fn check_path_to_the_subscriber(scene: &Scene, place: Place, host: &Namespace) {
    let relay = scene.play_relay(place).unwrap();
    let stretch = stretch(scene, Link::Subscribers);
    for mtu in [1492, 1280] {
        stretch.narrow(mtu).unwrap();
        for family in Family::BOTH {
            carry_both_ways(&scene.lab, &relay, family);
            assert_eq!(path_mtu(host, family.redirected()), Some(mtu), "{family:?}");
        }
    }
}

fn the_path_to_the_dmz_is_narrow(scene: &mut Scene) {
    let relay = scene.play_relay(Place::Dmz).unwrap();
    let lab = &scene.lab;

    // The router's own link; the relay announces segments that do not fit, as if a wider link of its own were behind.
    lab.router.ip(&["link set mx0 mtu 1492"]).unwrap();
    let wide = |family: Family, segment| {
        let router = if family == Family::V4 { "192.0.2.1" } else { "2001:db8:2::1" };
        format!("route replace default via {router} advmss {segment}")
    };
    lab.gateway.ip(&["link set eth0 mtu 1492".to_owned(), wide(Family::V4, 1460), wide(Family::V6, 1440)]).unwrap();
    for family in Family::BOTH {
        carry_both_ways(lab, &relay, family);
        assert_eq!(path_mtu(&lab.client, family.server()), Some(1492), "{family:?}");
    }

    lab.router.ip(&["link set mx0 mtu 1500"]).unwrap();
    lab.gateway.ip(&["link set eth0 mtu 1500"]).unwrap();
    stretch(scene, Link::Dmz).narrow(1280).unwrap();
    for family in Family::BOTH {
        carry_both_ways(lab, &relay, family);
        assert_eq!(path_mtu(&lab.client, family.server()), Some(1280), "{family:?}");
    }
}

fn stretch(scene: &Scene, link: Link) -> Stretch {
    let stretch = scene.lab.stretch(link).unwrap();
    // What takes the place of an end host at the router's link has the offloads that this had.
    scene.lab.offloads(&stretch.near, "eth0", scene.mode.offloads()).unwrap();
    stretch
}

fn carry_both_ways(lab: &Lab, relay: &Relay, family: Family) {
    let bytes: Vec<u8> = noise(0x2525).take(1 << 20).collect();
    let mut client = dial(&lab.client, (family.redirected(), 0), port_25(family.server()), PATIENCE).unwrap();
    let mut relay = relay.accept(family).unwrap();
    carry(&mut relay, &mut client, &bytes).unwrap();
    carry(&mut client, &mut relay, &bytes).unwrap();
}

/// What this host has learnt of the path to an address.
fn path_mtu(host: &Namespace, address: IpAddr) -> Option<u32> {
    let route = host.run(Command::new("ip").args(["route", "get", &address.to_string()]), PATIENCE).unwrap();
    let mut words = route.stdout.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}
