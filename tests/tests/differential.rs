//! The same conversations through ours and through nftables' `redirect`, `dnat` and `tproxy`, in the same lab: nobody sees a difference
//! but those that are named here.
//!
//! Compared are the packets at the client, at the servers on the Internet and, where the relay is there, in the DMZ; and what the relay
//! knows of each connection. [`redirect_tests::story`] says what of a connection is left out, and why. Of other packets only IPv4's
//! identification and checksum, IPv6's flow label and UDP's checksum are, which vary or are left to a device. Both ends of every connection
//! are this test's, and only one of them has something to do at a time, so there is one order of events.
//!
//! The known differences, each of which is asserted:
//! - **What a relay on the router calls itself**: its own endpoint where packets are rewritten, the server that was dialled where they
//!   are not.
//! - **The port that the relay sees** of a client that uses one port for two servers: another for the second where packets are rewritten,
//!   as both connections go to one endpoint.
//! - **Who tells the relay which server was dialled**: our API, `SO_ORIGINAL_DST`, or the socket's own name. A relay in the DMZ behind
//!   `dnat` learns it from nobody.
//! - **Segments of no connection**: ours answers them with a reset in the server's name. nftables takes them to the relay, whose host does
//!   the same: the client sees no difference, a DMZ does.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use redirect_tests::{
    Family, Lab, Mode, Scene,
    capture::{Capture, Packet, TCP_ACK},
    in_every_mode,
    raw::{self, Wire},
    smtp::port_25,
    story::{Story, stories},
    tcp::{Listener, PATIENCE, Place, Relay, carry, dial, hear, hear_end, noise, reset},
    wait_until,
};

in_every_mode!(everybody_sees_what_nftables_shows, everybody_sees_what_nftables_shows_with_the_relay_in_the_dmz);

/// Every mode of ours is compared with the same accounts of theirs.
static ON_THE_ROUTER: LazyLock<[(Rules, Account); 3]> = LazyLock::new(|| {
    [Rules::Redirect, Rules::Dnat, Rules::Tproxy].map(|rules| (rules, Account::of_nftables(rules, Place::Router)))
});
static IN_THE_DMZ: LazyLock<Account> = LazyLock::new(|| Account::of_nftables(Rules::Dnat, Place::Dmz));

fn everybody_sees_what_nftables_shows(scene: &mut Scene) {
    let ours = Account::of_ours(scene, Place::Router);
    for (rules, theirs) in ON_THE_ROUTER.iter() {
        compare(&ours, theirs, *rules);
    }
}

fn everybody_sees_what_nftables_shows_with_the_relay_in_the_dmz(scene: &mut Scene) {
    compare(&Account::of_ours(scene, Place::Dmz), &IN_THE_DMZ, Rules::Dnat);
}

#[track_caller]
fn compare(ours: &Account, theirs: &Account, rules: Rules) {
    assert_eq!(ours.visits, theirs.visits, "who reached the relay, by {rules:?}");
    for (ours, theirs) in [(&ours.client, &theirs.client), (&ours.server, &theirs.server), (&ours.dmz, &theirs.dmz)] {
        // One by one, so that a failure shows one.
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours, theirs, "by {rules:?}");
        }
        assert_eq!(ours.len(), theirs.len(), "connections, by {rules:?}");
    }
    assert_eq!(ours.others, theirs.others, "other packets, by {rules:?}");
}

/// What is in the router.
#[derive(Clone, Copy)]
enum Means<'a> {
    Ours(&'a Scene),
    Nftables(Rules),
}

impl Means<'_> {
    /// Whether packets on their way to a relay in this place are.
    fn rewrites(self, place: Place) -> bool {
        match self {
            Self::Ours(scene) => scene.mode != Mode::Steer || place == Place::Dmz,
            Self::Nftables(rules) => rules != Rules::Tproxy,
        }
    }

    /// Which server the client dialled, if anybody tells the relay.
    fn original(self, place: Place, connection: &TcpStream) -> Option<SocketAddr> {
        let (own, peer) = (connection.local_addr().unwrap(), connection.peer_addr().unwrap());
        match self {
            _ if !self.rewrites(place) => Some(own),
            Self::Ours(scene) => scene.originals(peer.ip()).unwrap().get(&peer).copied(),
            Self::Nftables(Rules::Tproxy) => unreachable!("it rewrites nothing"),
            Self::Nftables(Rules::Redirect | Rules::Dnat) if place == Place::Dmz => None,
            Self::Nftables(Rules::Redirect | Rules::Dnat) if own.is_ipv4() => {
                let original = getsockopt(connection, sockopt::OriginalDst).unwrap();
                Some((original.sin_addr.s_addr.to_ne_bytes(), u16::from_be(original.sin_port)).into())
            }
            Self::Nftables(Rules::Redirect | Rules::Dnat) => {
                let original = getsockopt(connection, sockopt::Ip6tOriginalDst).unwrap();
                Some((original.sin6_addr.s6_addr, u16::from_be(original.sin6_port)).into())
            }
        }
    }
}

/// How nftables brings port 25 to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    Redirect,
    Dnat,
    Tproxy,
}

impl Rules {
    fn install(self, lab: &Lab, relay: &Relay) {
        let (hook, verdict): (_, fn(&str, SocketAddr) -> String) = match self {
            Self::Redirect => {
                ("type nat hook prerouting priority dstnat", |_, relay| format!("redirect to :{}", relay.port()))
            }
            Self::Dnat => ("type nat hook prerouting priority dstnat", |word, relay| format!("dnat {word} to {relay}")),
            Self::Tproxy => ("type filter hook prerouting priority mangle", |word, relay| {
                format!("tproxy {word} to :{} meta mark set 25 accept", relay.port())
            }),
        };
        let rules = [(Family::V4, "ip", "10.20.0.0/16"), (Family::V6, "ip6", "fd00:20::/64")];
        let redirect = rules.map(|(family, word, subscribers)| {
            let others = format!("{{ {}, {} }}", family.bypass(), family.blocked());
            let verdict = verdict(word, relay.endpoint(family));
            format!("{word} saddr {subscribers} {word} saddr != {others} tcp dport 25 {verdict}\n")
        });
        let block = rules.map(|(family, word, _)| format!("{word} saddr {} tcp dport 25 drop\n", family.blocked()));
        let table = format!(
            "table inet port25 {{
                 chain prerouting {{\n {hook};\n {} }}
                 chain forward {{\n type filter hook forward priority filter;\n {} }}
             }}",
            redirect.concat(),
            block.concat()
        );
        let file = lab.folder().join("port25.nft");
        std::fs::write(&file, table).unwrap();
        run(lab, Command::new("nft").arg("-f").arg(file));
        if self == Self::Tproxy {
            // tproxy finds the socket; the packet still has to be routed to this host.
            for family in ["-4", "-6"] {
                run(lab, Command::new("ip").args([family, "rule", "add", "fwmark", "25", "lookup", "25"]));
                let everything = ["route", "add", "local", "default", "dev", "lo", "table", "25"];
                run(lab, Command::new("ip").arg(family).args(everything));
            }
        }
    }
}

fn run(lab: &Lab, command: &mut Command) {
    let finished = lab.router.run(command, PATIENCE).unwrap();
    assert!(finished.status.success(), "{command:?}: {}", finished.stderr);
}

/// What everybody saw.
struct Account {
    client: Vec<Story>,
    server: Vec<Story>,
    /// With the client's own port, where the relay saw another.
    dmz: Vec<Story>,
    /// What is no TCP, at the client, the server and in the DMZ.
    others: [Vec<Vec<u8>>; 3],
    /// The clients that reached the relay, by connection.
    visits: Vec<SocketAddr>,
}

impl Account {
    fn of_ours(scene: &Scene, place: Place) -> Self {
        let _answering = scene.let_xdp_answer().unwrap();
        let relay = scene.play_relay(place).unwrap();
        Self::take(&scene.lab, &relay, Means::Ours(scene))
    }

    fn of_nftables(rules: Rules, place: Place) -> Self {
        let lab = Lab::new().unwrap();
        // Only tproxy needs it, and with redirect it has the kernel take the SYN of a port's second connection for one of the first.
        let open = if rules == Rules::Tproxy { Relay::transparent } else { Relay::open };
        let relay = open(&lab, place).unwrap();
        rules.install(&lab, &relay);
        Self::take(&lab, &relay, Means::Nftables(rules))
    }

    fn take(lab: &Lab, relay: &Relay, means: Means) -> Self {
        const FILTER: &str = "tcp or udp or icmp or (icmp6 and ip6[40] < 130)";
        lab.number_servers().unwrap();
        let captures =
            [&lab.client, &lab.internet, &lab.gateway].map(|host| Capture::start(lab, host, "eth0", FILTER).unwrap());
        let mut visits = Vec::new();
        for family in Family::BOTH {
            let mut script = Script::new(lab, relay, means, family);
            script.perform();
            visits.extend(script.visits);
            exchange_datagrams(lab, family, &captures);
        }
        let [client, server, dmz] = captures.map(|capture| capture.stop().unwrap());
        let others = [&client, &server, &dmz].map(|packets| packets.iter().filter_map(other).collect());
        let [mut client, mut server, mut dmz] = [client, server, dmz].map(|packets| {
            let segments: Vec<_> = packets.iter().filter_map(Packet::tcp).collect();
            stories(&segments)
        });
        if relay.place == Place::Dmz {
            for family in Family::BOTH {
                check_stray(means, family, &mut client, &mut dmz);
            }
        }
        for story in &mut dmz {
            let visit = visits.iter().find(|visit: &&Visit| visit.seen_as == story.client);
            story.client = visit.expect("nobody else goes to the DMZ").client;
        }
        for stories in [&mut client, &mut server, &mut dmz] {
            stories.sort();
        }
        Self { client, server, dmz, others, visits: visits.into_iter().map(|visit| visit.client).collect() }
    }
}

/// What this packet is, if it is no TCP, without what varies.
fn other(packet: &Packet) -> Option<Vec<u8>> {
    if packet.tcp().is_some() {
        return None;
    }
    let mut bytes = packet.payload().to_vec();
    let (header, protocol) = if packet.ethertype() == Some(raw::ETHERTYPE_IPV4) {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
        (20, bytes[9])
    } else {
        bytes[1] &= 0xf0;
        bytes[2..4].fill(0);
        (40, bytes[6])
    };
    if protocol == raw::PROTOCOL_UDP {
        bytes[header + 6..header + 8].fill(0);
    }
    Some(bytes)
}

/// A connection as the relay knows it.
struct Visit {
    client: SocketAddr,
    seen_as: SocketAddr,
}

/// The stage, and where the script is.
struct Script<'a> {
    lab: &'a Lab,
    relay: &'a Relay,
    means: Means<'a>,
    family: Family,
    /// Of the last conversation's client. Given, so that they are the same in every account.
    port: u16,
    visits: Vec<Visit>,
}

/// Of the client's segment of no connection.
const STRAY_PORT: u16 = 41_000;

impl<'a> Script<'a> {
    fn new(lab: &'a Lab, relay: &'a Relay, means: Means<'a>, family: Family) -> Self {
        Self { lab, relay, means, family, port: 42_000, visits: Vec::new() }
    }

    fn perform(&mut self) {
        self.conversation_in_turns();
        self.bulk_both_ways();
        self.client_finishes_first();
        self.relay_finishes_first();
        self.client_resets();
        self.relay_resets();
        self.data_for_a_closed_relay();
        self.one_port_again();
        self.five_at_once();
        self.one_port_to_two_servers();
        self.bystanders();
        self.blocked();
        self.stray();
    }

    fn server(&self, number: u8) -> SocketAddr {
        port_25(self.family.numbered_server(number))
    }

    /// A connection of the redirected subscriber from a port of its own, and its end at the relay.
    #[track_caller]
    fn connect(&mut self) -> (TcpStream, TcpStream) {
        self.port += 1;
        self.connect_from(self.port, self.server(1))
    }

    #[track_caller]
    fn connect_from(&mut self, port: u16, server: SocketAddr) -> (TcpStream, TcpStream) {
        let from = SocketAddr::new(self.family.redirected(), port);
        let client = dial(&self.lab.client, from, server, PATIENCE).unwrap();
        let relay = self.relay.accept(self.family).unwrap();
        let seen_as = relay.peer_addr().unwrap();

        // Known differences: who tells the original, and what the relay calls itself.
        match (self.means, self.relay.place) {
            (Means::Nftables(Rules::Dnat), Place::Dmz) => {}
            _ => assert_eq!(self.means.original(self.relay.place, &relay), Some(server)),
        }
        let own = if self.means.rewrites(self.relay.place) { self.relay.endpoint(self.family) } else { server };
        assert_eq!(relay.local_addr().unwrap(), own);
        self.visits.push(Visit { client: from, seen_as });
        (client, relay)
    }

    fn conversation_in_turns(&mut self) {
        let (mut client, mut relay) = self.connect();
        greet(&mut client, &mut relay);
        for (command, reply) in [("EHLO client", "250-relay\r\n250 SIZE"), ("NOOP", "250 ok"), ("QUIT", "221 bye")] {
            say(&mut client, &mut relay, command);
            say(&mut relay, &mut client, reply);
        }
        close(&relay, &client);
    }

    fn bulk_both_ways(&mut self) {
        let (mut client, mut relay) = self.connect();
        let bytes: Vec<u8> = noise(1).take(128 * 1024).collect();
        carry(&mut client, &mut relay, &bytes).unwrap();
        carry(&mut relay, &mut client, &bytes).unwrap();
        close(&client, &relay);
    }

    fn client_finishes_first(&mut self) {
        let (mut client, mut relay) = self.connect();
        say(&mut client, &mut relay, "the last that I say");
        client.shutdown(Shutdown::Write).unwrap();
        hear_end(&relay).unwrap();
        carry(&mut relay, &mut client, &noise(2).take(32 * 1024).collect::<Vec<_>>()).unwrap();
        relay.shutdown(Shutdown::Write).unwrap();
        hear_end(&client).unwrap();
    }

    fn relay_finishes_first(&mut self) {
        let (mut client, mut relay) = self.connect();
        say(&mut relay, &mut client, "the last that I say");
        relay.shutdown(Shutdown::Write).unwrap();
        hear_end(&client).unwrap();
        carry(&mut client, &mut relay, &noise(3).take(32 * 1024).collect::<Vec<_>>()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        hear_end(&relay).unwrap();
    }

    fn client_resets(&mut self) {
        let (mut client, mut relay) = self.connect();
        greet(&mut client, &mut relay);
        reset(&client).unwrap();
        check_reset(&relay);
    }

    fn relay_resets(&mut self) {
        let (mut client, mut relay) = self.connect();
        greet(&mut client, &mut relay);
        reset(&relay).unwrap();
        check_reset(&client);
    }

    fn data_for_a_closed_relay(&mut self) {
        let (mut client, mut relay) = self.connect();
        greet(&mut client, &mut relay);
        relay.shutdown(Shutdown::Both).unwrap();
        hear_end(&client).unwrap();
        client.write_all(b"NOOP\r\n").unwrap();
        // To a client that has read the end a reset is a broken pipe.
        let error = wait_until("reset", PATIENCE, || Ok(client.take_error()?)).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    fn one_port_again(&mut self) {
        let (client, relay) = self.connect();
        // Whoever closes first keeps the port; here that is the relay.
        close(&relay, &client);
        drop((client, relay));
        let (mut client, mut relay) = self.connect_from(self.port, self.server(1));
        greet(&mut client, &mut relay);
        close(&relay, &client);
    }

    fn five_at_once(&mut self) {
        let mut connections: Vec<_> = (0..5).map(|_| self.connect()).collect();
        for turn in 0..3 {
            for (number, (client, relay)) in connections.iter_mut().enumerate() {
                say(client, relay, &format!("NOOP {turn} of {number}"));
                say(relay, client, &format!("250 {turn} of {number}"));
            }
        }
        for (client, relay) in &connections {
            close(client, relay);
        }
    }

    fn one_port_to_two_servers(&mut self) {
        let mut connections = [1, 2].map(|number| self.connect_from(43_000, self.server(number)));
        for _ in 0..2 {
            for (client, relay) in &mut connections {
                greet(client, relay);
                say(client, relay, &format!("EHLO {}", client.peer_addr().unwrap()));
            }
        }
        for (client, relay) in &connections {
            close(client, relay);
        }
        // A known difference: the port that the relay sees.
        let [.., first, second] = &self.visits[..] else { panic!("two visits") };
        assert_eq!(first.seen_as, first.client);
        assert_eq!(second.seen_as.ip(), second.client.ip());
        assert_eq!(second.seen_as.port() == second.client.port(), !self.means.rewrites(self.relay.place));
    }

    /// To another port, and to port 25 from a subscriber who may.
    fn bystanders(&mut self) {
        let another_port = SocketAddr::new(self.family.numbered_server(1), 8025);
        for (from, to) in [(self.family.redirected(), another_port), (self.family.bypass(), self.server(1))] {
            let listener = Listener::open(&self.lab.internet, to).unwrap();
            let mut client = dial(&self.lab.client, (from, 44_000), to, PATIENCE).unwrap();
            let mut server = listener.accept().unwrap();
            assert_eq!(server.peer_addr().unwrap(), SocketAddr::new(from, 44_000));
            greet(&mut client, &mut server);
            carry(&mut client, &mut server, &noise(4).take(32 * 1024).collect::<Vec<_>>()).unwrap();
            close(&client, &server);
        }
    }

    fn blocked(&mut self) {
        // Shorter than the time after which a SYN is repeated.
        let limit = Duration::from_millis(300);
        let outcome = dial(&self.lab.client, (self.family.blocked(), 45_000), self.server(1), limit);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    fn stray(&mut self) {
        let (from, to) = (self.family.redirected(), self.family.numbered_server(1));
        let segment = raw::tcp((from, STRAY_PORT), (to, 25), TCP_ACK, b"");
        let wire = Wire::open(&self.lab.client, "eth0").unwrap();
        wire.send(&raw::ip(from, to, raw::PROTOCOL_TCP, &segment)).unwrap();
    }
}

/// A known difference: whether the stray segment reaches the DMZ. It is not among the stories any more then, nor is at the client how far
/// away the DMZ is.
fn check_stray(means: Means, family: Family, client: &mut [Story], dmz: &mut Vec<Story>) {
    let of_the_stray = |story: &Story| story.client == SocketAddr::new(family.redirected(), STRAY_PORT);
    let answer = client.iter_mut().find(|story| of_the_stray(story)).expect("an answer");
    let [_, headers] = &mut answer.headers;
    let hops: Vec<_> = std::mem::take(headers).into_iter().map(|header| header.hops).collect();
    let strays = dmz.extract_if(.., |story| of_the_stray(story)).count();
    match means {
        Means::Ours(_) => assert_eq!((strays, &hops[..]), (0, &[64][..])),
        Means::Nftables(_) => assert_eq!((strays, &hops[..]), (1, &[63][..])),
    }
}

/// An echo, and UDP to and from port 25. At the end: whoever has captured that has captured everything.
fn exchange_datagrams(lab: &Lab, family: Family, [client, server, dmz]: &[Capture; 3]) {
    let (from, to) = (family.redirected(), family.numbered_server(1));
    let echo = if family == Family::V4 { raw::PROTOCOL_ICMP } else { raw::PROTOCOL_ICMPV6 };
    Wire::open(&lab.client, "eth0").unwrap().send(&raw::ip(from, to, echo, &raw::echo(from, to, b"echo"))).unwrap();

    let answer = |address: SocketAddr| format!("an answer of {address}").into_bytes();
    for (host, address) in [(&lab.internet, port_25(to)), (&lab.gateway, port_25(family.gateway()))] {
        let server = host.enter(|| UdpSocket::bind(address)).unwrap();
        let client = lab.client.enter(|| UdpSocket::bind((from, 46_000))).unwrap();
        client.send_to(b"a question", address).unwrap();
        let (_, peer) = receive(&server);
        server.send_to(&answer(address), peer).unwrap();
        assert_eq!(receive(&client), (answer(address), address));
    }
    for (capture, address) in [(server, to), (client, family.gateway()), (dmz, family.gateway())] {
        let answer = answer(port_25(address));
        capture.wait_for("last datagram", |packet| packet.payload().ends_with(&answer)).unwrap();
    }
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 100];
    let (length, peer) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), peer)
}

#[track_caller]
fn say(from: &mut TcpStream, to: &mut TcpStream, line: &str) {
    let line = format!("{line}\r\n");
    from.write_all(line.as_bytes()).unwrap();
    hear(to, line.as_bytes()).unwrap();
}

#[track_caller]
fn greet(client: &mut TcpStream, relay: &mut TcpStream) {
    say(relay, client, "220 relay");
    say(client, relay, "EHLO client");
}

/// Closes in order, one side after the other.
#[track_caller]
fn close(first: &TcpStream, last: &TcpStream) {
    first.shutdown(Shutdown::Write).unwrap();
    hear_end(last).unwrap();
    last.shutdown(Shutdown::Write).unwrap();
    hear_end(first).unwrap();
}

#[track_caller]
fn check_reset(stream: &TcpStream) {
    assert_eq!(hear_end(stream).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
