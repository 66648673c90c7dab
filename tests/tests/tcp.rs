//! What TCP does beyond a conversation in turns: closing one side, not reading, and using a port again and again. The relay is played by
//! the test, so that each side does exactly that.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use redirect_tests::{
    Family, Mode, NUMBERED_SERVERS, Scene,
    capture::{Capture, Packet, TCP_ACK, TCP_SYN},
    in_every_mode,
    smtp::port_25,
    tcp::{PATIENCE, Place, Relay, carry, dial, forget, hear, hear_end, noise},
    wait_until,
};

in_every_mode!(
    either_side_may_finish_first,
    a_receiver_that_does_not_read_loses_nothing,
    a_port_is_used_again_at_once,
    a_client_that_forgot_its_connection_gets_another,
    a_relay_that_forgot_its_connection_resets_it,
    one_port_reaches_a_hundred_servers,
);

/// Silence in which neither side forgets the other; some retransmission timers fit in.
const PAUSE: Duration = Duration::from_secs(2);

fn bulk(seed: u64) -> Vec<u8> {
    noise(seed).take(1 << 20).collect()
}

/// A connection from this port of the redirected subscriber to the server, and its end at the relay.
#[track_caller]
fn connection(scene: &Scene, relay: &Relay, family: Family, port: u16) -> (TcpStream, TcpStream) {
    let from = (family.redirected(), port);
    let mut client = dial(&scene.lab.client, from, port_25(family.server()), PATIENCE).unwrap();
    let mut relay = relay.accept(family).unwrap();
    relay.write_all(b"220 relay\r\n").unwrap();
    hear(&mut client, b"220 relay\r\n").unwrap();
    (client, relay)
}

/// A new connection for each family and each side that may go first; that side comes first here.
fn four_connections(scene: &Scene, played: &Relay) -> Vec<(TcpStream, TcpStream)> {
    let each = Family::BOTH.into_iter().flat_map(|family| [(family, true), (family, false)]);
    let connection = |(family, client_first)| {
        let (client, relay) = connection(scene, played, family, 0);
        if client_first { (client, relay) } else { (relay, client) }
    };
    each.map(connection).collect()
}

fn either_side_may_finish_first(scene: &mut Scene) {
    let played = scene.play_relay(Place::Router).unwrap();
    let mut connections = four_connections(scene, &played);
    for (first, last) in &mut connections {
        first.shutdown(Shutdown::Write).unwrap();
        hear_end(last).unwrap();
        carry(last, first, &bulk(1)).unwrap();
    }
    thread::sleep(PAUSE);
    for (mut first, mut last) in connections {
        carry(&mut last, &mut first, &bulk(2)).unwrap();
        drop(last);
        hear_end(&first).unwrap();
    }
}

/// Says bytes without end until the receiver's buffer is full, and the sender's as well; returns what was said.
fn say_until_it_stalls(sender: &mut TcpStream, mut bytes: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut said = Vec::new();
    let mut chunk = Vec::new();
    // Nothing else is in the way, so a wait of this length has no other reason.
    sender.set_write_timeout(Some(PAUSE / 4)).unwrap();
    loop {
        if chunk.is_empty() {
            chunk = bytes.by_ref().take(64 * 1024).collect();
        }
        match sender.write(&chunk) {
            Ok(length) => said.extend(chunk.drain(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("after {} bytes: {error}", said.len()),
        }
    }
    sender.set_write_timeout(Some(PATIENCE)).unwrap();
    said
}

fn a_receiver_that_does_not_read_loses_nothing(scene: &mut Scene) {
    let played = scene.play_relay(Place::Router).unwrap();
    let mut connections = four_connections(scene, &played);
    let said: Vec<_> = connections.iter_mut().map(|(sender, _)| say_until_it_stalls(sender, noise(3))).collect();
    // Meanwhile the senders probe the closed windows.
    thread::sleep(PAUSE);
    for ((sender, receiver), said) in connections.iter_mut().zip(said) {
        hear(receiver, &said).unwrap();
        carry(sender, receiver, &bulk(4)).unwrap();
        carry(receiver, sender, &bulk(5)).unwrap();
    }
}

fn a_port_is_used_again_at_once(scene: &mut Scene) {
    const PORT: u16 = 40_100;
    const AGAIN: usize = 10;
    let played = scene.play_relay(Place::Router).unwrap();
    // So the client, too, takes a port while a connection of it is in TIME_WAIT; a second after its end, says tcp(7).
    scene.lab.client.sysctl(&[("ipv4/tcp_tw_reuse", "1")]).unwrap();
    for family in Family::BOTH {
        let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "tcp").unwrap();
        for _ in 0..AGAIN {
            let (client, relay) = connection(scene, &played, family, PORT);
            relay.shutdown(Shutdown::Write).unwrap();
            hear_end(&client).unwrap();
            drop(client);
            hear_end(&relay).unwrap();
        }
        let (client, relay) = connection(scene, &played, family, PORT);
        client.shutdown(Shutdown::Write).unwrap();
        hear_end(&relay).unwrap();
        drop((relay, client));
        let from = SocketAddr::new(family.redirected(), PORT);
        let mut client = wait_until("port that is free again", PATIENCE, || {
            match dial(&scene.lab.client, from, port_25(family.server()), PATIENCE) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(None),
                outcome => Ok(Some(outcome?)),
            }
        })
        .unwrap();
        carry(&mut client, &mut played.accept(family).unwrap(), &bulk(6)).unwrap();

        // At once: with its first SYN.
        let opens = |packet: &Packet| {
            packet.tcp().is_some_and(|segment| segment.flags & (TCP_SYN | TCP_ACK) == TCP_SYN && segment.from == from)
        };
        let syns = capture.stop().unwrap().iter().filter(|packet| opens(packet)).count();
        assert_eq!(syns, AGAIN + 2);
    }
}

fn a_client_that_forgot_its_connection_gets_another(scene: &mut Scene) {
    const PORT: u16 = 40_200;
    let played = scene.play_relay(Place::Router).unwrap();
    for family in Family::BOTH {
        let (client, relay) = connection(scene, &played, family, PORT);
        forget(&client).unwrap();
        // The relay does not know a SYN there; the client resets what it does not know; its next SYN opens (RFC 9293 section 3.5.1).
        let (mut client, mut next) = connection(scene, &played, family, PORT);
        let error = hear_end(&relay).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        carry(&mut client, &mut next, &bulk(7)).unwrap();
        check_established(scene, &client);
    }
}

fn a_relay_that_forgot_its_connection_resets_it(scene: &mut Scene) {
    const PORT: u16 = 40_300;
    let played = scene.play_relay(Place::Router).unwrap();
    for family in Family::BOTH {
        let (mut client, relay) = connection(scene, &played, family, PORT);
        forget(&relay).unwrap();
        client.write_all(b"NOOP\r\n").unwrap();
        let error = hear_end(&client).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
        drop(client);
        let (mut client, mut relay) = connection(scene, &played, family, PORT);
        carry(&mut client, &mut relay, &bulk(8)).unwrap();
        check_established(scene, &client);
    }
}

/// What came before on the same port does not shorten the life of a connection.
#[track_caller]
fn check_established(scene: &Scene, client: &TcpStream) {
    let local = client.local_addr().unwrap();
    let mut flows = scene.flows(local.ip()).unwrap();
    flows.retain(|flow| flow["client"] == local.to_string());
    let states: Vec<_> = flows.iter().map(|flow| &flow["state"]).collect();
    assert_eq!(states, ["established"]);
}

fn one_port_reaches_a_hundred_servers(scene: &mut Scene) {
    const PORT: u16 = 40_400;
    let played = scene.play_relay(Place::Router).unwrap();
    scene.lab.number_servers().unwrap();
    let bytes = bulk(9);
    for family in Family::BOTH {
        let from = SocketAddr::new(family.redirected(), PORT);
        let servers: Vec<_> = (1..=NUMBERED_SERVERS).map(|number| port_25(family.numbered_server(number))).collect();
        let mut clients: Vec<_> =
            servers.iter().map(|server| dial(&scene.lab.client, from, *server, PATIENCE).unwrap()).collect();
        let accepted = servers.iter().map(|_| played.accept(family).unwrap());
        let ends = |relay: &TcpStream| (relay.peer_addr().unwrap(), relay.local_addr().unwrap());
        let mut relays: BTreeMap<_, _> = accepted.map(|relay| (ends(&relay), relay)).collect();
        assert_eq!(relays.len(), servers.len(), "no two look alike to the relay");

        // The relay greets everybody by the server that was meant, and then everybody speaks to everybody. Where nothing is rewritten its socket
        // knows the server, else the flow of this client's port.
        let by_port = scene.originals(family.redirected()).unwrap();
        let original = |(peer, local): &(SocketAddr, SocketAddr)| match scene.mode {
            Mode::Steer => *local,
            Mode::Xdp | Mode::Tc | Mode::TcWithoutOffloads => by_port[peer],
        };
        for (ends, relay) in &mut relays {
            relay.write_all(format!("220 {}\r\n", original(ends)).as_bytes()).unwrap();
        }
        for (client, server) in clients.iter_mut().zip(&servers) {
            hear(client, format!("220 {server}\r\n").as_bytes()).unwrap();
            client.write_all(format!("EHLO {server}\r\n").as_bytes()).unwrap();
        }
        for (ends, relay) in &mut relays {
            hear(relay, format!("EHLO {}\r\n", original(ends)).as_bytes()).unwrap();
        }
        let mut by_server: BTreeMap<_, _> = relays.into_iter().map(|(ends, relay)| (original(&ends), relay)).collect();
        for (client, server) in clients.iter_mut().zip(&servers) {
            let relay = by_server.get_mut(server).unwrap();
            carry(client, relay, &bytes[..100_000]).unwrap();
            carry(relay, client, &bytes[200_000..300_000]).unwrap();
        }
    }
}
