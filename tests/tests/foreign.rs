//! Subscribers with addresses of other networks: they send mail, strangers who forge addresses gain nothing, and nothing stays.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use redirect_tests::{
    CLIENT_MAC, Family, Lab, Product,
    capture::{Capture, TCP_SYN},
    configuration,
    raw::{self, ETHERTYPE_ARP, PROTOCOL_TCP, Wire},
    smtp::{Client, Manner, Server, port_25},
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(30);
/// As in another hotel, or at home.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
const GUESTS_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

/// A router with a default route and strict filters, and a guest whose address and gateway are those of another network.
struct Hotel {
    product: Product,
    internet: Server,
    gateway: Server,
    before: Vec<String>,
    lab: Lab,
}

impl Hotel {
    fn new(configure: impl FnOnce(String) -> String) -> Self {
        let lab = Lab::new().unwrap();
        lab.router.ip(&["route add default via 203.0.113.10"]).unwrap();
        lab.router.sysctl(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/lan0/rp_filter", "1")]).unwrap();
        lab.client
            .ip(&[
                "address flush dev eth0 scope global".to_owned(),
                format!("address add {GUEST}/24 dev eth0"),
                format!("route add default via {GUESTS_ROUTER}"),
            ])
            .unwrap();
        let internet =
            Server::start(&lab.internet, "internet", &[port_25(Family::V4.server())], Manner::Accepts).unwrap();
        let gateway =
            Server::start(&lab.gateway, "gateway", &[port_25(Family::V4.gateway())], Manner::Accepts).unwrap();
        let before = traces(&lab);
        let text = configure(configuration(lab.folder(), "tc"));
        let product = Product::start(&lab, &text).unwrap();
        product.ctl(&lab, &["subscriber", "set", "0.0.0.0/0", "--class", "misconfigured"]).unwrap();
        product.ctl(&lab, &["gateway", "set", "default", "--address", &Family::V4.gateway().to_string()]).unwrap();
        Self { product, internet, gateway, before, lab }
    }

    fn send_mail(&self) {
        let to = port_25(Family::V4.server());
        let client = Client::connect(&self.lab.client, (GUEST, 0), to).unwrap();
        let reply =
            client.converse("guest@client.example", "friend@internet.example", b"Subject: s\r\n\r\nx\r\n").unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
    }

    fn foreign_sources(&self) -> serde_json::Value {
        self.product.json(&self.lab, &["status"]).unwrap()["foreign_sources"].clone()
    }

    /// How the router routes to `to` what fits `selector` of `ip route get`.
    fn route(&self, to: Ipv4Addr, selector: &[&str]) -> String {
        let mut command = Command::new("ip");
        command.args(["route", "get", &to.to_string()]).args(selector);
        let finished = self.lab.router.run(&mut command, LIMIT).unwrap();
        finished.stdout + &finished.stderr
    }
}

/// What the product changes on its host: rules, routes and sysctls.
fn traces(lab: &Lab) -> Vec<String> {
    let mut traces = Vec::new();
    for what in
        [&["rule"][..], &["-6", "rule"], &["route", "show", "table", "all"], &["-6", "route", "show", "table", "all"]]
    {
        let shown = lab.router.run(Command::new("ip").args(what), LIMIT).unwrap();
        traces.extend(shown.stdout.lines().map(str::to_owned));
    }
    lab.router.enter(|| {
        for key in ["proxy_arp", "drop_gratuitous_arp", "rp_filter"] {
            let path = Path::new("/proc/sys/net/ipv4/conf/lan0").join(key);
            traces.push(format!("{key} {}", fs::read_to_string(path).unwrap().trim()));
        }
    });
    traces
}

fn serve_foreign_sources(configuration: String) -> String {
    configuration + "foreign_sources = true\n"
}

#[test]
fn a_guest_with_the_address_of_another_network_sends_mail() {
    for delivery in ["rewrite", "steer"] {
        let mut hotel =
            Hotel::new(|text| serve_foreign_sources(text).replace("\"rewrite\"", &format!("\"{delivery}\"")));
        hotel.send_mail();
        hotel.send_mail();
        let mails = hotel.gateway.mails();
        assert_eq!(mails.len(), 2, "{delivery}");
        let (received, _) = mails[0].split_received().unwrap();
        assert!(String::from_utf8_lossy(received).contains(&GUEST.to_string()), "{delivery}");
        assert_eq!(hotel.internet.peers(), [], "{delivery}");
        let sources = hotel.foreign_sources();
        assert_eq!((&sources["known"], &sources["learned"]), (&1.into(), &1.into()), "{delivery}: {sources}");
        assert_ne!(traces(&hotel.lab), hotel.before, "{delivery}");

        assert!(hotel.product.stop().unwrap().success(), "{}", hotel.product.log());
        assert_eq!(traces(&hotel.lab), hotel.before, "{delivery}: {}", hotel.product.log());
        assert!(!hotel.lab.folder().join("redirect.db.sysctls").exists());
    }
}

#[test]
fn a_relay_on_another_host_serves_it_too() {
    let mut hotel = Hotel::new(serve_foreign_sources);
    let relay = port_25(Family::V4.gateway()).to_string();
    hotel.product.ctl(&hotel.lab, &["relay", "set", "elsewhere", "--ipv4", &relay]).unwrap();
    let class = ["class", "set", "misconfigured", "--action", "redirect", "--relay", "elsewhere"];
    hotel.product.ctl(&hotel.lab, &class).unwrap();
    hotel.send_mail();
    assert_eq!(hotel.gateway.mails()[0].peer.ip(), GUEST);
    assert!(hotel.product.stop().unwrap().success());
    assert_eq!(traces(&hotel.lab), hotel.before);
}

#[test]
fn without_the_option_nothing_is_changed() {
    let hotel = Hotel::new(|text| text);
    assert_eq!(traces(&hotel.lab), hotel.before);
    let to = port_25(Family::V4.server());
    let lost = Client::connect_within(&hotel.lab.client, (GUEST, 0), to, Duration::from_secs(2));
    assert!(lost.is_err(), "the guest cannot even find the router");

    // The option is the interface's, and can be given and taken while the daemon runs; interfaces of the file belong to the file.
    let set = |words: &[&str]| hotel.product.ctl(&hotel.lab, &[&["interface", "set", "wan0"], words].concat()).unwrap();
    set(&["--foreign-sources"]);
    let proxies = || {
        let path = "/proc/sys/net/ipv4/conf/wan0/proxy_arp";
        hotel.lab.router.enter(|| fs::read_to_string(path)).map(|text| text.trim() == "1")
    };
    wait_until("proxy ARP on wan0", LIMIT, || Ok(proxies()?.then_some(()))).unwrap();
    set(&[]);
    wait_until("end of proxy ARP on wan0", LIMIT, || Ok((!proxies()?).then_some(()))).unwrap();
}

#[test]
fn a_crash_leaves_traces_that_the_next_start_removes() {
    let mut hotel = Hotel::new(serve_foreign_sources);
    hotel.send_mail();
    hotel.product.kill().unwrap();
    assert_ne!(traces(&hotel.lab), hotel.before);
    assert!(hotel.lab.folder().join("redirect.db.sysctls").exists());

    // It goes on where the other one was.
    hotel.product =
        Product::start(&hotel.lab, &serve_foreign_sources(configuration(hotel.lab.folder(), "tc"))).unwrap();
    hotel.send_mail();
    hotel.product.kill().unwrap();

    // One that is configured otherwise has to put it right as well.
    hotel.product = Product::start(&hotel.lab, &configuration(hotel.lab.folder(), "tc")).unwrap();
    assert_eq!(traces(&hotel.lab), hotel.before);
}

#[test]
fn only_answers_of_the_relay_follow_a_foreign_source() {
    let hotel = Hotel::new(serve_foreign_sources);
    hotel.send_mail();
    // The address may be that of a host on the Internet, which the guest's neighbours, and this router, go on reaching.
    assert!(hotel.route(GUEST, &[]).contains("dev wan0"), "{}", hotel.route(GUEST, &[]));
    assert!(hotel.route(GUEST, &["from", "10.20.0.10", "iif", "lan0"]).contains("dev wan0"));
    assert!(hotel.route(GUEST, &["ipproto", "tcp", "sport", "25"]).contains("dev wan0"));
    assert!(hotel.route(GUEST, &["ipproto", "udp", "sport", "2525"]).contains("dev wan0"));
    assert!(hotel.route(GUEST, &["ipproto", "tcp", "sport", "2525"]).contains("dev lan0"));
}

/// A SYN to port 25 of a server on the Internet from an address that its sender may not have.
fn syn(from: Ipv4Addr) -> Vec<u8> {
    let to = Family::V4.server();
    raw::ip(from.into(), to, PROTOCOL_TCP, &raw::tcp((from.into(), 40_000), (to, 25), TCP_SYN, &[]))
}

#[test]
fn forged_sources_get_no_route() {
    let hotel = Hotel::new(serve_foreign_sources);
    let wire = Wire::open(&hotel.lab.client, "eth0").unwrap();
    // A host on the Internet's side, the mail gateway, this router, and nobody at all.
    let refused = [
        ([203, 0, 113, 77], "routed_elsewhere"),
        ([192, 0, 2, 25], "protected"),
        ([203, 0, 113, 1], "not_a_host"),
        ([127, 0, 0, 1], "not_a_host"),
    ];
    for (number, (source, refusal)) in refused.into_iter().enumerate() {
        wire.send(&syn(source.into())).unwrap();
        let count = move |sources: &serde_json::Value| sources["refused"][refusal].as_u64().unwrap_or(0);
        let total = |sources: &serde_json::Value| -> u64 {
            sources["refused"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum()
        };
        let sources = wait_until(&format!("refusal of {source:?}"), LIMIT, || {
            let sources = hotel.foreign_sources();
            Ok((total(&sources) == number as u64 + 1).then_some(sources))
        });
        assert!(count(&sources.unwrap()) > 0, "{source:?}: {}", hotel.foreign_sources());
    }
    assert_eq!(hotel.foreign_sources()["learned"], 0);

    // One that could be is learned, and forgotten when it does not answer.
    wire.send(&syn(Ipv4Addr::new(198, 51, 100, 7))).unwrap();
    let sources = wait_until("end of the probation", LIMIT, || {
        let sources = hotel.foreign_sources();
        Ok((sources["unanswered"] == 1).then_some(sources))
    });
    let sources = sources.unwrap();
    assert_eq!((&sources["known"], &sources["learned"]), (&0.into(), &1.into()), "{sources}");
    let shown = hotel.lab.router.run(Command::new("ip").args(["route", "show", "table", "2526"]), LIMIT).unwrap();
    assert_eq!(shown.stdout, "");
    // A subscriber with an address of this network is not foreign.
    wire.send(&syn(Ipv4Addr::new(10, 20, 0, 10))).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(hotel.foreign_sources(), sources);
}

/// An ARP request (RFC 826) from the guest's device.
fn request(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let header = [0, 1, 8, 0, 6, 4, 0, 1];
    let message = [&header[..], &CLIENT_MAC, &from.octets(), &[0; 6], &to.octets()].concat();
    raw::ethernet(ETHERTYPE_ARP, &message)
}

#[test]
fn the_router_answers_for_the_gateway_and_lets_the_guest_have_its_address() {
    let hotel = Hotel::new(serve_foreign_sources);
    let answers = Capture::start(&hotel.lab, &hotel.lab.client, "eth0", "arp[6:2] = 2").unwrap();
    let wire = Wire::open(&hotel.lab.client, "eth0").unwrap();
    // RFC 5227: an address is probed, then announced, and given up where somebody answers.
    wire.send(&request(Ipv4Addr::UNSPECIFIED, GUEST)).unwrap();
    wire.send(&request(GUEST, GUEST)).unwrap();
    wire.send(&request(GUEST, GUESTS_ROUTER)).unwrap();
    // The kernel delays what it answers as a proxy by up to 0.8 s; the last one to be asked for may be answered first.
    let sender = |frame: &[u8]| <[u8; 4]>::try_from(frame.get(28..32).unwrap_or_default()).map(Ipv4Addr::from).ok();
    answers.wait_for("answer for the gateway", |packet| sender(&packet.frame) == Some(GUESTS_ROUTER)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    for packet in answers.stop().unwrap() {
        assert_ne!(sender(&packet.frame), Some(GUEST), "the router says that the guest's address is taken");
    }
}
