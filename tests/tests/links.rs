//! What links may be like: bulk in both directions arrives intact, whatever offloads and MTUs they have, and every checksum is right.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::net::TcpStream;

use nix::sys::socket::{getsockopt, sockopt};
use redirect_tests::{
    Family, Mode, Namespace, Scene,
    capture::{Capture, Segment},
    in_every_mode,
    smtp::port_25,
    tcp::{PATIENCE, Place, Relay, carry, dial, noise},
};

in_every_mode!(every_mtu_will_do);

const MTU: usize = 1500;

fn bulk(length: usize) -> Vec<u8> {
    noise(0x2525).take(length).collect()
}

/// Returns the client's end.
fn carry_both_ways(scene: &Scene, relay: &Relay, family: Family, port: u16, bytes: &[u8]) -> TcpStream {
    let from = (family.redirected(), port);
    let mut client = dial(&scene.lab.client, from, port_25(family.server()), PATIENCE).unwrap();
    let mut relay = relay.accept(family).unwrap();
    carry(&mut client, &mut relay, bytes).unwrap();
    carry(&mut relay, &mut client, bytes).unwrap();
    client
}

fn every_mtu_will_do(scene: &mut Scene) {
    let bytes = bulk(2 << 20);
    let resize = |host: &Namespace, device: &str, mtu: i32| {
        host.ip(&[format!("link set {device} mtu {mtu}")]).unwrap();
    };
    // Of the subscribers' link, and of the link to the DMZ.
    let mtus = [(1280, 1500), (1492, 9000), (1500, 1500), (9000, 9000), (9000, 1280)];
    for place in [Place::Router, Place::Dmz] {
        let relay = scene.play_relay(place).unwrap();
        for (lan, dmz) in mtus {
            resize(&scene.lab.client, "eth0", lan);
            resize(&scene.lab.router, "lan0", lan);
            resize(&scene.lab.router, "mx0", dmz);
            resize(&scene.lab.gateway, "eth0", dmz);
            for family in Family::BOTH {
                let client = carry_both_ways(scene, &relay, family, 0, &bytes);
                let mtu = if place == Place::Dmz { lan.min(dmz) } else { lan };
                // Both headers, and timestamps with their padding.
                let headers = if family == Family::V4 { 20 + 20 + 12 } else { 40 + 20 + 12 };
                let segment_max = getsockopt(&client, sockopt::TcpMaxSeg).unwrap();
                assert_eq!(i32::try_from(segment_max).unwrap(), mtu - headers, "MTUs {lan} and {dmz}");
            }
        }
    }
}

#[test]
fn every_offload_will_do_in_the_driver() {
    // There, the sender has to finish its checksums; a device that does not compute them does not cut segments either.
    let all = Offloads::all();
    every_offload_will_do(Mode::Xdp, &all.into_iter().filter(|offloads| !offloads.tx).collect::<Vec<_>>());
}

#[test]
fn every_offload_will_do_behind_the_driver() {
    every_offload_will_do(Mode::Tc, &Offloads::all());
}

#[test]
fn every_offload_will_do_for_a_steered_flow() {
    every_offload_will_do(Mode::Steer, &Offloads::all());
}

/// What a device does for its host: finish checksums (tx), cut large segments into those of the link (tso, and gso for devices without), and
/// join them again (gro).
#[expect(clippy::struct_excessive_bools, reason = "the switches of a device")]
#[derive(Clone, Copy, Debug)]
struct Offloads {
    tx: bool,
    tso: bool,
    gso: bool,
    gro: bool,
}

impl Offloads {
    /// Those that there are: to cut segments is to compute their checksums.
    fn all() -> Vec<Self> {
        let all = (0..16).map(|bits: u8| {
            let [tx, tso, gso, gro] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            Self { tx, tso, gso, gro }
        });
        all.filter(|offloads| offloads.tx || !offloads.tso).collect()
    }

    fn set(self, scene: &Scene, host: &Namespace, device: &str) {
        let features = [("tx", self.tx), ("tso", self.tso), ("gso", self.gso), ("gro", self.gro)];
        scene.lab.features(host, device, &features).unwrap();
    }
}

/// The client's port of the first connection; those that follow have the next ones.
const FIRST_PORT: u16 = 42_000;

fn every_offload_will_do(mode: Mode, all: &[Offloads]) {
    let scene = Scene::new(mode).unwrap();
    let mut larger_than_the_mtu = vec![false; all.len()];
    let mut checked = 0;
    // Only what is on the router can be steered to.
    let places: &[_] = if mode == Mode::Steer { &[Place::Router] } else { &[Place::Router, Place::Dmz] };
    for &place in places {
        for (at_the_client, segment) in captured(&scene, place, all) {
            let of_the_client = Family::BOTH.map(Family::redirected).contains(&segment.from.ip());
            let client = if of_the_client { segment.from } else { segment.to };
            let number = usize::from(client.port() - FIRST_PORT);
            let (offloads, length) = (all[number], segment.data.len());
            let sent = of_the_client == at_the_client;
            let unfinished = offloads.tx && (sent || place == Place::Router);
            // What is joined again was found to be right before, and then looks like what never was cut.
            let joined = offloads.gro && !sent;
            let right = segment.checksum_holds || (unfinished || joined) && segment.checksum_is_left_to_the_device;
            assert!(right, "{place:?} {offloads:?}: {length} bytes of {} for {}", segment.from, segment.to);
            larger_than_the_mtu[number] |= sent && length > MTU;
            checked += 1;
        }
    }
    assert!(checked > 1000, "{checked}");
    // The devices did what they were told to.
    let cut_by_the_device: Vec<_> = all.iter().map(|offloads| offloads.tso).collect();
    assert_eq!(larger_than_the_mtu, cut_by_the_device, "{all:?}");
}

/// What the client (true) and the DMZ send and receive of bulk both ways with each of these, from ports that count from [`FIRST_PORT`].
fn captured(scene: &Scene, place: Place, all: &[Offloads]) -> Vec<(bool, Segment)> {
    let (client, router, dmz) = (&scene.lab.client, &scene.lab.router, &scene.lab.gateway);
    // Of the segments with data one part, by a bit pattern of their sequence numbers, and of the large ones a larger part: all of them would
    // be gigabytes.
    let one_in = |part| format!("((ip and tcp[6] % {part} = 0) or (ip6 and ip6[46] % {part} = 0))");
    let filter = format!("(greater 200 and {}) or (greater 9000 and {})", one_in(64), one_in(8));
    let captures = [client, dmz].map(|host| {
        // tcpdump has room for large packets only where there may be some when it starts.
        scene.lab.features(host, "eth0", &[("gro", true)]).unwrap();
        Capture::start(&scene.lab, host, "eth0", &filter).unwrap()
    });
    let relay = scene.play_relay(place).unwrap();
    let bytes = bulk(8 << 20);
    for (offloads, port) in all.iter().zip(FIRST_PORT..) {
        offloads.set(scene, client, "eth0");
        if place == Place::Router {
            offloads.set(scene, router, "lan0");
        } else {
            offloads.set(scene, dmz, "eth0");
            // So that the router finishes what was left to a device, which shows whether the rewriting left it right.
            for device in ["lan0", "mx0"] {
                Offloads { tx: false, tso: false, ..*offloads }.set(scene, router, device);
            }
        }
        for family in Family::BOTH {
            carry_both_ways(scene, &relay, family, port, &bytes);
        }
    }
    let segments = |capture: Capture| {
        let segments = capture.stop().unwrap().into_iter().filter_map(|packet| packet.tcp());
        segments.filter(|segment| !segment.data.is_empty()).collect::<Vec<_>>()
    };
    let [client, dmz] = captures.map(segments);
    client.into_iter().map(|segment| (true, segment)).chain(dmz.into_iter().map(|segment| (false, segment))).collect()
}
