//! Relays on hosts in the DMZ, behind a router as strict as routers are: reverse path filters on every interface, and a firewall that drops what
//! its connection tracking finds invalid. And what becomes of flows when such relays are drained, die and come back.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use redirect_tests::{
    Family, Product, SILENCE, Scene, configuration, in_every_mode,
    smtp::{Client, Manner, PATIENCE, Server, port_25},
    wait_until,
};

in_every_mode!(a_relay_in_the_dmz_takes_mail_and_knows_who_sent_it, a_pool_outlives_its_relays);

const FROM: &str = "guest@client.example";
const TO: &str = "friend@internet.example";
const PORT: u16 = 2525;
const COMMAND: Duration = Duration::from_secs(10);

/// The relay with this number, on the host behind `mx0`.
fn endpoint(family: Family, number: u8) -> SocketAddr {
    let address = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::new(192, 0, 2, 30 + number)),
        Family::V6 => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x30 + u16::from(number))),
    };
    SocketAddr::new(address, PORT)
}

fn start_relay(scene: &Scene, number: u8) -> Server {
    let endpoints = Family::BOTH.map(|family| endpoint(family, number));
    Server::start(&scene.lab.gateway, &format!("relay{number}"), &endpoints, Manner::Accepts).unwrap()
}

/// Two relays, the class `dmz` that redirects to the first or to both, and a strict router.
fn prepare(scene: &mut Scene, pool: &[&str]) -> [Server; 2] {
    let addresses = [1, 2].map(|number| {
        let [v4, v6] = Family::BOTH.map(|family| endpoint(family, number).ip());
        [format!("address add {v4}/24 dev eth0"), format!("address add {v6}/64 dev eth0 nodad")]
    });
    scene.lab.gateway.ip(addresses.as_flattened()).unwrap();
    let strict = ["all", "default", "lan0", "wan0", "mx0"].map(|device| format!("ipv4/conf/{device}/rp_filter"));
    scene.lab.router.sysctl(&strict.each_ref().map(|key| (key.as_str(), "1"))).unwrap();
    let rules = format!(
        "table inet firewall {{
             counter invalid {{}}
             chain forward {{
                 type filter hook forward priority filter; policy drop;
                 ct state invalid counter name invalid drop
                 ct state established,related accept
                 iifname lan0 oifname mx0 tcp dport {PORT} accept
                 iifname lan0 oifname wan0 tcp dport 25 accept
             }}
         }}"
    );
    let file = scene.lab.folder().join("firewall.nft");
    std::fs::write(&file, rules).unwrap();
    nft(scene, &["-f", file.to_str().unwrap()]);

    // Fast enough for a test to wait for.
    let probes = "[health]\ninterval_s = 1\ntimeout_s = 1\ndown_after = 2\nup_after = 1";
    let configuration =
        configuration(scene.lab.folder(), scene.mode.hook()).replace("[health]\ninterval_s = 0", probes);
    scene.product.stop().unwrap();
    scene.product = Product::start(&scene.lab, &configuration).unwrap();
    let relays = [1, 2].map(|number| start_relay(scene, number));
    for number in [1, 2] {
        let [v4, v6] = Family::BOTH.map(|family| endpoint(family, number).to_string());
        scene.ctl(&["relay", "set", &format!("relay{number}"), "--ipv4", &v4, "--ipv6", &v6]).unwrap();
    }
    set_class(scene, pool, "block");
    for prefix in ["10.20.0.0/16", "fd00:20::/64"] {
        scene.ctl(&["subscriber", "set", prefix, "--class", "dmz"]).unwrap();
    }
    relays
}

fn set_class(scene: &Scene, pool: &[&str], on_relay_down: &str) {
    let relays = pool.iter().flat_map(|relay| ["--relay", relay]);
    let words = ["class", "set", "dmz", "--action", "redirect", "--on-relay-down", on_relay_down].into_iter();
    scene.ctl(&words.chain(relays).collect::<Vec<_>>()).unwrap();
}

fn nft(scene: &Scene, args: &[&str]) -> String {
    let finished = scene.lab.router.run(Command::new("nft").args(args), COMMAND).unwrap();
    assert!(finished.status.success(), "nft {args:?}: {}", finished.stderr);
    finished.stdout
}

fn connect(scene: &Scene, family: Family) -> io::Result<Client> {
    Client::connect_within(&scene.lab.client, (family.redirected(), 0), port_25(family.server()), SILENCE)
}

/// A connection and the number of the relay that greeted it.
fn greeted(scene: &Scene, family: Family) -> (Client, u8) {
    let mut client = connect(scene, family).unwrap();
    let greeting = client.hello().unwrap().lines.join(" ");
    let number =
        [1, 2].into_iter().find(|number| greeting == format!("relay{number} {} ESMTP", endpoint(family, *number).ip()));
    (client, number.unwrap_or_else(|| panic!("greeted by {greeting:?}")))
}

/// Which relays greet some new connections, of both families.
fn taking(scene: &Scene) -> Vec<u8> {
    let mut numbers: Vec<_> =
        Family::BOTH.iter().flat_map(|family| (0..12).map(|_| greeted(scene, *family).1)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn wait_for_health(scene: &Scene, relay: &str, state: &str) {
    wait_until(&format!("{relay} {state}"), PATIENCE, || {
        let relay = scene.product.json(&scene.lab, &["relay", "get", relay])?;
        let both = ["ipv4", "ipv6"].into_iter().all(|family| relay["health"][family]["state"] == state);
        Ok(both.then_some(()))
    })
    .unwrap();
}

fn wait_for_flows(scene: &Scene, relay: &str, count: u64) {
    wait_until(&format!("{count} flows on {relay}"), PATIENCE, || {
        let relay = scene.product.json(&scene.lab, &["relay", "get", relay])?;
        Ok((relay["flows"] == count).then_some(()))
    })
    .unwrap();
}

fn a_relay_in_the_dmz_takes_mail_and_knows_who_sent_it(scene: &mut Scene) {
    let [relay, _other] = prepare(scene, &["relay1"]);
    let message = b"Subject: s\r\n\r\n0123456789abcdef0123456789abcdef\r\n".repeat(20_000);
    for family in Family::BOTH {
        let before = relay.mails().len();
        let (mut client, number) = greeted(scene, family);
        assert_eq!(number, 1);
        let local = client.local_addr().unwrap();
        assert_eq!(client.peer_addr().unwrap(), port_25(family.server()), "what the client thinks");
        assert_eq!(client.deliver(FROM, TO, &message).unwrap().code, 250);

        let mails = relay.mails();
        let [mail] = &mails[before..] else { panic!("one mail: {}", mails.len() - before) };
        assert_eq!((mail.peer, mail.server), (local, endpoint(family, 1)), "what the relay sees");
        assert!(mail.data == message, "byte for byte");

        // What the relay would ask.
        let seen = [mail.server.to_string(), mail.peer.to_string()];
        let original =
            scene.product.json(&scene.lab, &["flow", "original", "--relay", &seen[0], "--client", &seen[1]]).unwrap();
        assert_eq!(original["server"], port_25(family.server()).to_string());
        assert_eq!(original["client"], local.to_string());
        assert_eq!(original["class"], "dmz");
        let listed = ["flow", "list", "--relay", "relay1", "--client", &family.redirected().to_string()];
        let listed = scene.product.json(&scene.lab, &listed).unwrap();
        assert_eq!(listed[0]["delivery"], "rewrite", "{listed}");
        client.expect("QUIT", 221).unwrap();
        assert_eq!(client.drain().unwrap(), b"");

        // A connection that nobody redirected: the prober's own, by an address that is none of the subscribers'.
        let stranger = SocketAddr::new(family.router(), 40_000).to_string();
        let unknown =
            scene.product.try_ctl(&scene.lab, &["flow", "original", "--relay", &seen[0], "--client", &stranger]);
        assert_eq!(unknown.unwrap().code(), Some(3));
    }
    assert_eq!(scene.internet.peers(), []);
    let invalid = nft(scene, &["list", "counter", "inet", "firewall", "invalid"]);
    assert!(invalid.contains("packets 0 bytes 0"), "connection tracking lost the thread: {invalid}");
}

fn a_pool_outlives_its_relays(scene: &mut Scene) {
    let _answering = scene.let_xdp_answer().unwrap();
    let [first, second] = prepare(scene, &["relay1", "relay2"]);
    for relay in ["relay1", "relay2"] {
        wait_for_health(scene, relay, "up");
    }
    assert_eq!(taking(scene), [1, 2]);
    let keep = |number: u8| {
        Family::BOTH.map(|family| {
            let tries = std::iter::repeat_with(|| greeted(scene, family)).take(64);
            tries.filter(|(_, relay)| *relay == number).map(|(client, _)| client).next().unwrap()
        })
    };
    let (mut on_first, mut on_second) = (keep(1), keep(2));
    let goes_on = |clients: &mut [Client; 2]| {
        for client in clients {
            client.expect("NOOP", 250).unwrap();
        }
    };

    // Drained: no new flows; those that it has are counted and go on.
    scene.ctl(&["relay", "drain", "relay1"]).unwrap();
    assert_eq!(taking(scene), [2]);
    goes_on(&mut on_first);
    wait_for_flows(scene, "relay1", 2);
    scene.ctl(&["relay", "enable", "relay1"]).unwrap();
    assert_eq!(taking(scene), [1, 2]);

    // One dies: the listener goes, and what it has accepted lives on in this process, as it would in a relay that stops gracefully.
    drop(first);
    wait_for_health(scene, "relay1", "down");
    assert_eq!(taking(scene), [2]);
    goes_on(&mut on_first);
    goes_on(&mut on_second);
    drop(on_first);
    wait_for_flows(scene, "relay1", 0);

    // Both are dead: the class decides, and what is open goes on.
    drop(second);
    wait_for_health(scene, "relay2", "down");
    for (on_relay_down, expected) in
        [("block", Some(io::ErrorKind::TimedOut)), ("reject", Some(io::ErrorKind::ConnectionRefused)), ("pass", None)]
    {
        set_class(scene, &["relay1", "relay2"], on_relay_down);
        for family in Family::BOTH {
            let connected = connect(scene, family);
            assert_eq!(connected.as_ref().err().map(io::Error::kind), expected, "{on_relay_down}");
            if let Ok(mut client) = connected {
                assert_eq!(client.hello().unwrap().lines, [format!("internet {} ESMTP", family.server())]);
            }
        }
    }
    goes_on(&mut on_second);

    let _back = start_relay(scene, 1);
    wait_for_health(scene, "relay1", "up");
    assert_eq!(taking(scene), [1]);
    goes_on(&mut on_second);
}
