//! One lab, the product attached to one interface of its router, and what its subscribers find on each link.

use std::{io, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use redirect_common::maps::names;
use redirect_ctl::dataplane::{
    Mode,
    kernel::{Capacities, load},
};
use redirect_tests::{
    Family, Lab, Product, configuration,
    smtp::{Client, Manner, Server, port_25},
};

use crate::{
    Kernel, Report,
    links::{Link, Links, subscribers},
    pppoe,
};

/// Of a relay beside the embedded one, which knows nothing of us: the product finds its sockets.
const RELAY: &str = "beside";
const ENDPOINTS: [&str; 2] = ["127.0.0.1:2526", "[::1]:2526"];

const FROM: &str = "guest@client.example";
const TO: &str = "friend@internet.example";

/// How long a connection is tried for; an emulated machine is slow.
const CONNECT: Duration = Duration::from_secs(20);

/// Where the product is attached, and how.
pub(crate) struct Stage {
    hook: &'static str,
    interface: Interface,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Interface {
    /// The NIC, with everything that is stacked on it.
    Nic,
    /// The same, with the NIC in a bond.
    Bond,
    /// One PPPoE session: a device without Ethernet.
    Ppp,
}

impl Interface {
    const fn name(self) -> &'static str {
        match self {
            Self::Nic => "lan0",
            Self::Bond => "bond0",
            Self::Ppp => pppoe::DEVICE,
        }
    }

    /// The device of the router that the links are on.
    const fn parent(self) -> &'static str {
        match self {
            Self::Nic | Self::Ppp => "lan0",
            Self::Bond => "bond0",
        }
    }

    const fn links(self) -> &'static [Link] {
        match self {
            Self::Nic | Self::Bond => &Link::ALL,
            Self::Ppp => &[Link::Pppoe],
        }
    }
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [
        Self { hook: "tc", interface: Interface::Nic },
        Self { hook: "xdp", interface: Interface::Nic },
        Self { hook: "auto", interface: Interface::Bond },
        Self { hook: "auto", interface: Interface::Ppp },
    ];

    pub(crate) fn play(&self, report: &mut Report, kernel: &Kernel) {
        let name = self.interface.name();
        let mode = match self.hook {
            "xdp" if !kernel.xdp => {
                return report.absent(format!("xdp on {name}"), "frames in several buffers need Linux 5.18");
            }
            "xdp" => Mode::Xdp,
            _ => kernel.tc,
        };
        let title = format!("{mode} on {name}");
        if let Err(error) = self.play_links(report, &title, mode) {
            report.check(&title, Err(error));
        }
    }

    fn play_links(&self, report: &mut Report, title: &str, mode: Mode) -> Result<()> {
        let lab = Lab::new()?;
        let mut stacked = Links::default();
        if self.interface == Interface::Bond
            && let Err(error) = bond(&lab)
        {
            return tolerate(report, title, error);
        }
        let mut links = Vec::new();
        for link in self.interface.links() {
            match stacked.lay(&lab, self.interface.parent(), *link) {
                Ok(()) => links.push(*link),
                Err(error) => tolerate(report, &format!("{title}, {}", link.name()), error)?,
            }
        }
        if links.is_empty() {
            return Ok(());
        }
        let _answering = (mode == Mode::Xdp).then(|| suit_xdp(&lab)).transpose()?;
        let scene = Scene::start(lab, self, &links)?;
        let interface = scene.product.json(&scene.lab, &["interface", "get", self.interface.name()])?;
        ensure!(interface["status"]["mode"] == mode.name(), "attached as {}", interface["status"]);
        for (class, action, check) in CHECKS {
            if class == STEERED && mode == Mode::Xdp {
                // With XDP packets have no mark.
                continue;
            }
            for family in Family::BOTH {
                scene.product.ctl(&scene.lab, &["subscriber", "set", subscribers(family), "--class", class])?;
            }
            for link in &links {
                let outcome = check(&scene, *link).map_err(|error| error.context(scene.account(*link)));
                report.check(format!("{title}, {}: {action}", link.name()), outcome);
            }
        }
        Ok(())
    }
}

/// A link that cannot be made is a fault where the kernel must have it.
fn tolerate(report: &mut Report, what: &str, error: anyhow::Error) -> Result<()> {
    if report.has_every_link {
        return Err(error);
    }
    report.absent(what, &format!("{error:#}").replace('\n', " "));
    Ok(())
}

/// Puts `lan0` and its addresses into `bond0`.
fn bond(lab: &Lab) -> Result<()> {
    lab.router.ip(&[
        "link add bond0 type bond mode active-backup",
        "address flush dev lan0",
        "link set lan0 down",
        "link set lan0 master bond0",
        "link set bond0 up",
        "address add 10.20.0.1/16 dev bond0",
        "address add fd00:20::1/64 dev bond0 nodad",
    ])
}

/// Makes of veth what XDP finds on a network card: finished checksums, tags in the frame, and an end that takes what XDP sends back, which veth
/// has only where the other end runs XDP too. It does until the returned object is dropped.
fn suit_xdp(lab: &Lab) -> Result<Ebpf> {
    lab.offloads(&lab.client, "eth0", false)?;
    lab.offloads(&lab.router, "lan0", false)?;
    let mut ethtool = Command::new("ethtool");
    let finished =
        lab.client.run(ethtool.args(["-K", "eth0", "txvlan", "off", "tx-vlan-stag-hw-insert", "off"]), CONNECT)?;
    ensure!(finished.status.success(), "ethtool: {}", finished.stderr.trim());
    lab.client.enter(|| {
        let mut object = load(Capacities::default())?;
        let program: &mut Xdp =
            object.program_mut(names::XDP_INGRESS).context("the object has the program")?.try_into()?;
        program.attach("eth0", XdpMode::Driver)?;
        Ok(object)
    })
}

/// What a class does with every subscriber, in turn.
type Check = fn(&Scene, Link) -> Result<()>;
const CHECKS: [(&str, &str, Check); 4] = [
    ("configured", "redirect", Scene::redirect),
    (STEERED, "steer", Scene::steer),
    ("bypass", "pass", Scene::pass),
    (REFUSED, "reject", Scene::reject),
];

/// Classes that are made for it.
const STEERED: &str = "steered";
const REFUSED: &str = "refused";

struct Scene {
    product: Product,
    internet: Server,
    gateway: Server,
    _relay: Server,
    lab: Lab,
}

impl Scene {
    fn start(lab: Lab, stage: &Stage, links: &[Link]) -> Result<Self> {
        let servers: Vec<_> =
            links.iter().flat_map(|link| Family::BOTH.map(|family| port_25(link.server(family)))).collect();
        let internet = Server::start(&lab.internet, "internet", &servers, Manner::Accepts)?;
        let gateway = Family::V4.gateway();
        let gateway_server = Server::start(&lab.gateway, "gateway", &[port_25(gateway)], Manner::Accepts)?;

        let configuration = configuration(lab.folder(), stage.hook);
        let ours = format!("name = \"{}\"", stage.interface.name());
        let product = Product::start(&lab, &configuration.replace("name = \"lan0\"", &ours))?;
        product.ctl(&lab, &["gateway", "set", "default", "--address", &gateway.to_string(), "--port", "25"])?;
        let endpoints = ENDPOINTS.map(|endpoint| endpoint.parse().expect("an endpoint is well-formed"));
        let relay = Server::start(&lab.router, RELAY, &endpoints, Manner::Accepts)?;
        let [v4, v6] = ENDPOINTS;
        product.ctl(&lab, &["relay", "set", RELAY, "--ipv4", v4, "--ipv6", v6, "--delivery", "steer"])?;
        let steered = ["class", "set", STEERED, "--action", "redirect", "--relay", RELAY, "--on-relay-down", "block"];
        product.ctl(&lab, &steered)?;
        product.ctl(&lab, &["class", "set", REFUSED, "--action", "reject"])?;
        Ok(Self { product, internet, gateway: gateway_server, _relay: relay, lab })
    }

    /// What the product says of a connection that came to something else than it should.
    fn account(&self, link: Link) -> String {
        let ask = |words: &[&str]| self.product.ctl(&self.lab, words).unwrap_or_else(|error| format!("{error:#}"));
        let subscriber = link.subscriber(Family::V4).to_string();
        let server = link.server(Family::V4).to_string();
        let explained = ask(&["-o", "json", "explain", &subscriber, &server]);
        let relay = ask(&["-o", "json", "relay", "get", RELAY]);
        format!("explained as {explained}, the relay is {relay}, and the log ends in {}", tail(&self.product.log()))
    }

    fn connect(&self, link: Link, family: Family) -> io::Result<Client> {
        let from = (link.subscriber(family), 0);
        Client::connect_within(&self.lab.client, from, port_25(link.server(family)), CONNECT)
    }

    /// A message that takes many segments goes by the relay to the gateway.
    fn redirect(&self, link: Link) -> Result<()> {
        let message = "A line of sixty-four octets, with those two that end it, is it.\r\n".repeat(2_000);
        for family in Family::BOTH {
            let subscriber = link.subscriber(family).to_string();
            let before = self.gateway.mails().len();
            let client = self.connect(link, family).with_context(|| format!("{subscriber} connects"))?;
            let reply = client.converse(FROM, TO, message.as_bytes())?;
            ensure!(reply.code == 250, "{subscriber} heard {} {:?}", reply.code, reply.lines);
            let mails = self.gateway.wait_for(before + 1)?;
            let (received, rest) = mails[before].split_received().context("the relay adds Received")?;
            ensure!(rest == message.as_bytes(), "{} bytes arrived of {}", rest.len(), message.len());
            let received = String::from_utf8_lossy(received);
            ensure!(received.contains(&subscriber), "{subscriber} is not in {received}");
        }
        Ok(())
    }

    /// The other relay answers on a socket that has the server's address.
    fn steer(&self, link: Link) -> Result<()> {
        for family in Family::BOTH {
            let greeting = self.connect(link, family)?.reply()?;
            let expected = format!("{RELAY} {} ", link.server(family));
            ensure!(greeting.lines.iter().any(|line| line.starts_with(&expected)), "greeted with {:?}", greeting.lines);
        }
        Ok(())
    }

    /// The server itself answers.
    fn pass(&self, link: Link) -> Result<()> {
        for family in Family::BOTH {
            let before = self.internet.peers().len();
            let mut client = self.connect(link, family)?;
            let greeting = client.hello()?;
            ensure!(
                greeting.lines.iter().any(|line| line.starts_with("internet ")),
                "greeted with {:?}",
                greeting.lines
            );
            let peers = self.internet.peers();
            let from = link.subscriber(family);
            ensure!(peers[before..].iter().map(SocketAddr::ip).eq([from]), "the server saw {peers:?}");
        }
        Ok(())
    }

    /// Refused at once, although the server listens.
    fn reject(&self, link: Link) -> Result<()> {
        for family in Family::BOTH {
            let refused = self.connect(link, family).err().map(|error| error.kind());
            ensure!(refused == Some(io::ErrorKind::ConnectionRefused), "{family:?}: connect() gave {refused:?}");
        }
        Ok(())
    }
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    const LINES: usize = 5;
    let mut lines: Vec<_> = text.lines().rev().take(LINES).collect();
    lines.reverse();
    lines.join("\n")
}
