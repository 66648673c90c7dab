//! A class that rejects: refused at once, in the name of the server that was dialled, and nothing reaches that server.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{io, net::IpAddr};

use redirect_tests::{
    Family, SILENCE, Scene,
    capture::{Capture, Packet, TCP_ACK, TCP_RST},
    in_every_mode,
    smtp::{Client, port_25},
};

in_every_mode!(
    a_rejected_subscriber_is_refused_at_once,
    a_connection_from_before_is_reset,
    a_redirect_without_a_relay_is_rejected_where_the_class_says_so,
);

fn connect(scene: &Scene, from: IpAddr, to: IpAddr) -> io::Result<Client> {
    Client::connect_within(&scene.lab.client, (from, 0), port_25(to), SILENCE)
}

fn a_rejected_subscriber_is_refused_at_once(scene: &mut Scene) {
    let _answering = scene.let_xdp_answer().unwrap();
    scene.ctl(&["class", "set", "refused", "--action", "reject"]).unwrap();
    for family in Family::BOTH {
        let (from, to) = (family.blocked(), family.server());
        scene.ctl(&["subscriber", "set", &from.to_string(), "--class", "refused"]).unwrap();
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();
        let error = connect(scene, from, to).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ConnectionRefused), "{from}");
        capture.wait_for("the reset", |packet| packet.tcp().is_some_and(|segment| segment.has(TCP_RST))).unwrap();
        let segments: Vec<_> = capture.stop().unwrap().iter().filter_map(Packet::tcp).collect();
        let [syn, reset] = &segments[..] else { panic!("one SYN, one reset: {segments:?}") };
        assert_eq!((reset.from, reset.to), (syn.to, syn.from));
        assert!(reset.has(TCP_RST | TCP_ACK) && reset.data.is_empty());
        // With offloads the reset inherits that its checksum is left to a device, and virtual devices never compute it.
        assert!(scene.mode.offloads() || reset.checksum_holds, "{reset:?}");
    }
    assert_eq!(scene.internet.peers(), []);
    assert_eq!(scene.gateway.peers(), []);
}

fn a_connection_from_before_is_reset(scene: &mut Scene) {
    let _answering = scene.let_xdp_answer().unwrap();
    scene.ctl(&["class", "set", "refused", "--action", "reject"]).unwrap();
    for family in Family::BOTH {
        let (from, to) = (family.bypass(), family.server());
        let mut client = connect(scene, from, to).unwrap();
        client.hello().unwrap();
        scene.ctl(&["subscriber", "set", &from.to_string(), "--class", "refused"]).unwrap();
        let error = client.command("NOOP").err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset), "{from}");
    }
}

fn a_redirect_without_a_relay_is_rejected_where_the_class_says_so(scene: &mut Scene) {
    let _answering = scene.let_xdp_answer().unwrap();
    scene.ctl(&["relay", "set", "half", "--ipv4", "10.20.0.1:2525"]).unwrap();
    scene
        .ctl(&["class", "set", "half", "--action", "redirect", "--relay", "half", "--on-relay-down", "reject"])
        .unwrap();
    for family in Family::BOTH {
        scene.ctl(&["subscriber", "set", &family.blocked().to_string(), "--class", "half"]).unwrap();
    }
    connect(scene, Family::V4.blocked(), Family::V4.server()).unwrap().hello().unwrap();
    let error = connect(scene, Family::V6.blocked(), Family::V6.server()).err().map(|error| error.kind());
    assert_eq!(error, Some(io::ErrorKind::ConnectionRefused));
}
