//! What a subscriber's connection meets: whom it talks to, what it sees of that, and what its class makes of it.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use redirect_tests::{
    Family, Mode, SILENCE, Scene,
    capture::{Capture, Packet, Segment, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    in_every_mode,
    smtp::{Client, PATIENCE, port_25},
    wait_until,
};

const FROM: &str = "guest@client.example";
const TO: &str = "friend@internet.example";

in_every_mode!(
    the_client_sees_only_the_server_it_dialled,
    a_reset_comes_from_the_server_that_was_dialled,
    a_dead_relay_refuses_in_the_name_of_the_server,
    one_port_to_two_servers,
    a_bypassing_subscriber_reaches_the_server,
    a_blocked_subscriber_reaches_nobody,
    a_class_counts_from_the_next_connection,
    flows_are_listed,
);

fn connect(scene: &Scene, from: IpAddr, to: IpAddr) -> io::Result<Client> {
    Client::connect_within(&scene.lab.client, (from, 0), port_25(to), SILENCE)
}

/// Every segment is between the client and the server that it dialled, on both ports.
#[track_caller]
fn check_addresses(scene: &Scene, segments: &[Segment], client: SocketAddr, server: SocketAddr) {
    assert!(!segments.is_empty());
    for segment in segments {
        let ends = [segment.from, segment.to];
        assert!(ends == [client, server] || ends == [server, client], "{segment:?} between {client} and {server}");
        // What the client's own stack sends with offloads is finished behind the capture.
        if !scene.mode.offloads() {
            assert!(segment.from == server || segment.checksum_holds, "checksum of {segment:?}");
        }
    }
}

fn tcp(capture: Capture) -> Vec<Segment> {
    capture.stop().unwrap().iter().filter_map(Packet::tcp).collect()
}

fn the_client_sees_only_the_server_it_dialled(scene: &mut Scene) {
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        // All of TCP: a packet of the relay's address or port would be an error even if the client's stack dropped it.
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();
        let client = connect(scene, from, to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), port_25(to));
        let local = client.local_addr().unwrap();
        let message = b"Subject: s\r\n\r\n0123456789abcdef\r\n".repeat(2000);
        assert_eq!(client.converse(FROM, TO, &message).unwrap().code, 250);
        capture
            .wait_for("the server's FIN", |packet| {
                packet.tcp().is_some_and(|segment| segment.from.ip() == to && segment.has(TCP_FIN))
            })
            .unwrap();

        let segments = tcp(capture);
        check_addresses(scene, &segments, local, port_25(to));
        let server_sent = |flags| segments.iter().any(|segment| segment.from.ip() == to && segment.has(flags));
        assert!(server_sent(TCP_SYN | TCP_ACK) && server_sent(TCP_FIN));
        assert!(
            segments
                .iter()
                .any(|segment| segment.from.ip() == to && segment.data.starts_with(b"220 relay.example.net"))
        );
    }
}

fn a_reset_comes_from_the_server_that_was_dialled(scene: &mut Scene) {
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();
        let mut client = connect(scene, from, to).unwrap();
        let local = client.local_addr().unwrap();
        client.hello().unwrap();
        client.expect("QUIT", 221).unwrap();
        assert_eq!(client.drain().unwrap(), b"", "the relay closes after QUIT");
        // Data for a socket that is closed draws a reset.
        client.send(b"NOOP\r\n").unwrap();
        capture
            .wait_for("the server's RST", |packet| {
                packet.tcp().is_some_and(|segment| segment.from.ip() == to && segment.has(TCP_RST))
            })
            .unwrap();
        check_addresses(scene, &tcp(capture), local, port_25(to));
    }
}

fn a_dead_relay_refuses_in_the_name_of_the_server(scene: &mut Scene) {
    scene.ctl(&["relay", "set", "dead", "--ipv4", "10.20.0.1:2599", "--ipv6", "[fd00:20::1]:2599"]).unwrap();
    scene
        .ctl(&["class", "set", "lost", "--action", "redirect", "--relay", "dead", "--on-relay-down", "block"])
        .unwrap();
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        scene.ctl(&["subscriber", "set", &from.to_string(), "--class", "lost"]).unwrap();
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();
        let error = connect(scene, from, to).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ConnectionRefused));
        let reset = |segment: &Segment| segment.from == port_25(to) && segment.has(TCP_RST);
        capture.wait_for("the server's RST", |packet| packet.tcp().is_some_and(|segment| reset(&segment))).unwrap();
        let segments = tcp(capture);
        let local = segments[0].from;
        assert_eq!(local.ip(), from);
        check_addresses(scene, &segments, local, port_25(to));
    }
    assert_eq!(scene.internet.peers(), []);
}

fn one_port_to_two_servers(scene: &mut Scene) {
    for (family, port) in Family::BOTH.into_iter().zip([40_025, 40_026]) {
        let before = scene.gateway.mails().len();
        let from = SocketAddr::new(family.redirected(), port);
        let servers = [family.server(), family.other_server()].map(port_25);
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();

        let mut clients = servers.map(|server| Client::connect(&scene.lab.client, from, server).unwrap());
        for client in &clients {
            assert_eq!(client.local_addr().unwrap(), from);
        }
        // In turns, so that a segment in the wrong conversation shows.
        for client in &mut clients {
            client.hello().unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect(&format!("MAIL FROM:<{number}@client.example>"), 250).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect(&format!("RCPT TO:<{number}@internet.example>"), 250).unwrap();
        }
        for client in &mut clients {
            client.expect("DATA", 354).unwrap();
        }
        let bodies = [b"first\r\n".repeat(10_000), b"second\r\n".repeat(10_000)];
        for (client, body) in clients.iter_mut().zip(&bodies) {
            client.send(body).unwrap();
        }
        for client in &mut clients {
            client.send(b".\r\n").unwrap();
            assert_eq!(client.reply().unwrap().code, 250);
        }
        for client in &mut clients {
            client.expect("QUIT", 221).unwrap();
        }

        let mails = scene.gateway.mails();
        let mails = mails.get(before..).unwrap();
        assert_eq!(mails.len(), 2);
        for (number, body) in bodies.iter().enumerate() {
            let mail = mails.iter().find(|mail| mail.from == format!("{number}@client.example")).unwrap();
            assert_eq!(mail.to, [format!("{number}@internet.example")]);
            assert!(mail.split_received().unwrap().1 == body, "the body of conversation {number}");
        }
        let segments = tcp(capture);
        for segment in &segments {
            let ends = [segment.from, segment.to];
            assert!(ends.contains(&from) && servers.iter().any(|server| ends.contains(server)), "{segment:?}");
        }
    }
    assert_eq!(scene.internet.peers(), []);
}

fn a_bypassing_subscriber_reaches_the_server(scene: &mut Scene) {
    for family in Family::BOTH {
        let (from, to) = (family.bypass(), family.server());
        let before = scene.internet.mails().len();
        let mut client = connect(scene, from, to).unwrap();
        let local = client.local_addr().unwrap();
        let greeting = client.hello().unwrap();
        assert_eq!(greeting.lines, [format!("internet {to} ESMTP")]);
        assert_eq!(client.deliver(FROM, TO, b"x\r\n").unwrap().code, 250);
        let mails = scene.internet.mails();
        assert_eq!(mails.len(), before + 1);
        let mail = mails.last().unwrap();
        assert_eq!((mail.peer, mail.server), (local, port_25(to)));
        assert_eq!(mail.data, b"x\r\n");
    }
    assert_eq!(scene.gateway.peers(), []);
}

fn a_blocked_subscriber_reaches_nobody(scene: &mut Scene) {
    let captures = [(&scene.lab.internet, "eth0"), (&scene.lab.gateway, "eth0"), (&scene.lab.client, "eth0")]
        .map(|(host, device)| Capture::start(&scene.lab, host, device, "tcp").unwrap());
    for family in Family::BOTH {
        let error = connect(scene, family.blocked(), family.server()).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::TimedOut), "no answer at all");
    }
    let [internet, gateway, client] = captures.map(tcp);
    assert_eq!(internet, []);
    assert_eq!(gateway, []);
    assert!(client.iter().all(|segment| segment.flags == TCP_SYN), "the client hears nothing: {client:?}");
    assert_eq!(scene.internet.peers(), []);
    assert_eq!(scene.gateway.peers(), []);
}

fn a_class_counts_from_the_next_connection(scene: &mut Scene) {
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        let subscriber = from.to_string();
        let greeting = |scene: &Scene| {
            let mut client = connect(scene, from, to)?;
            client.reply().map(|reply| reply.lines.join(" "))
        };
        for _ in 0..2 {
            scene.ctl(&["subscriber", "set", &subscriber, "--class", "bypass"]).unwrap();
            assert_eq!(greeting(scene).unwrap(), format!("internet {to} ESMTP"));
            scene.ctl(&["subscriber", "set", &subscriber, "--class", "blocked"]).unwrap();
            assert_eq!(greeting(scene).unwrap_err().kind(), io::ErrorKind::TimedOut);
            scene.ctl(&["subscriber", "set", &subscriber, "--class", "misconfigured"]).unwrap();
            assert!(greeting(scene).unwrap().starts_with("relay.example.net "));
            // Without its own entry the network's class holds: configured.
            scene.ctl(&["subscriber", "delete", &subscriber]).unwrap();
            assert!(greeting(scene).unwrap().starts_with("relay.example.net "));
        }
    }
}

fn flows_are_listed(scene: &mut Scene) {
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        let mut client = connect(scene, from, to).unwrap();
        client.hello().unwrap();
        let local = client.local_addr().unwrap();
        let listed =
            |scene: &Scene| scene.flows(from).unwrap().into_iter().find(|flow| flow["client"] == local.to_string());
        let flow = listed(scene).unwrap();
        assert_eq!(flow["server"], port_25(to).to_string());
        // A steered flow goes to a socket, not to an address.
        let relay = (scene.mode != Mode::Steer).then(|| SocketAddr::new(family.router(), 2525).to_string());
        assert_eq!((&flow["delivery"], &flow["relay"]), (&scene.mode.delivery().into(), &relay.into()));
        assert_eq!(flow["mapped_port"], local.port());
        assert_eq!(flow["class"], "configured");
        assert_eq!(flow["state"], "established");
        client.expect("QUIT", 221).unwrap();
        drop(client);
        wait_until("end of the flow", PATIENCE, || {
            Ok(listed(scene).is_none_or(|flow| flow["state"] != "established").then_some(()))
        })
        .unwrap();
    }
}
