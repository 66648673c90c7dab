//! The stage of an end-to-end test: the lab with the product in its router, servers on the Internet and at the gateway, and a
//! subscriber of each kind.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use redirect_common::maps::names;
use redirect_ctl::dataplane::kernel::{Capacities, load};

use crate::{
    lab::{Family, Lab},
    product::{Product, configuration},
    smtp::{Manner, Server, port_25},
    tcp::{Place, Relay},
};

/// How the product is hooked into the subscribers' interface, and what its link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver. The client sends finished checksums and no segments above the MTU, as a wire would carry them: bytes
    /// rewritten in the driver cannot repair a checksum that is still to be computed.
    Xdp,
    /// Behind the driver, with all offloads of veth: unfinished checksums and segments of up to 64 KiB.
    Tc,
    /// Behind the driver, without offloads on either end.
    TcWithoutOffloads,
    /// As [`Mode::Tc`], but flows are steered to the relay's socket, while in the other modes they are rewritten.
    Steer,
}

impl Mode {
    #[must_use]
    pub fn hook(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc | Self::TcWithoutOffloads | Self::Steer => "tc",
        }
    }

    /// How flows reach a relay on the router.
    #[must_use]
    pub fn delivery(self) -> &'static str {
        if self == Self::Steer { "steer" } else { "rewrite" }
    }

    /// [`configuration`] for this mode.
    #[must_use]
    pub fn configuration(self, lab: &Lab) -> String {
        let delivery = |delivery| format!("delivery = \"{delivery}\"");
        configuration(lab.folder(), self.hook()).replace(&delivery("rewrite"), &delivery(self.delivery()))
    }

    #[must_use]
    pub fn offloads(self) -> bool {
        matches!(self, Self::Tc | Self::Steer)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::TcWithoutOffloads => "tc without offloads",
            Self::Steer => "steer",
        })
    }
}

pub struct Scene {
    pub mode: Mode,
    pub product: Product,
    pub internet: Server,
    pub gateway: Server,
    pub lab: Lab,
}

/// How long a mail or a connection that must not arrive is waited for. A lab's round trip is far below a millisecond.
pub const SILENCE: Duration = Duration::from_secs(2);

impl Scene {
    /// The subscribers are those of [`Family`]: redirected, let through, blocked. Mail for the relay goes to the gateway over
    /// IPv4.
    pub fn new(mode: Mode) -> Result<Self> {
        Self::with_gateway(mode, Manner::Accepts)
    }

    pub fn with_gateway(mode: Mode, manner: Manner) -> Result<Self> {
        let lab = Lab::new()?;
        if !mode.offloads() {
            lab.offloads(&lab.client, "eth0", false)?;
            lab.offloads(&lab.router, "lan0", false)?;
        }
        let servers = Family::BOTH.map(|family| [family.server(), family.other_server()].map(port_25)).concat();
        let internet = Server::start(&lab.internet, "internet", &servers, Manner::Accepts)?;
        let gateway =
            Server::start(&lab.gateway, "gateway", &Family::BOTH.map(|family| port_25(family.gateway())), manner)?;

        let product = Product::start(&lab, &mode.configuration(&lab))?;
        for (subscriber, class) in [
            ("10.20.0.0/16", "configured"),
            ("10.20.0.20", "bypass"),
            ("10.20.0.30", "blocked"),
            ("fd00:20::/64", "configured"),
            ("fd00:20::20", "bypass"),
            ("fd00:20::30", "blocked"),
        ] {
            product.ctl(&lab, &["subscriber", "set", subscriber, "--class", class])?;
        }
        product.ctl(
            &lab,
            &["gateway", "set", "default", "--address", &Family::V4.gateway().to_string(), "--port", "25"],
        )?;
        Ok(Self { mode, product, internet, gateway, lab })
    }

    /// veth takes what XDP sends back only where the other end runs XDP too; network cards have no such condition. With empty tables our own
    /// program passes everything. It is attached to the client's end until the returned object is dropped.
    pub fn let_xdp_answer(&self) -> Result<Option<Ebpf>> {
        if self.mode != Mode::Xdp {
            return Ok(None);
        }
        self.lab.client.enter(|| {
            let mut object = load(Capacities::default())?;
            let program: &mut Xdp =
                object.program_mut(names::XDP_INGRESS).context("the program for XDP")?.try_into()?;
            program.attach("eth0", XdpMode::Driver)?;
            Ok(Some(object))
        })
    }

    /// Redirects the subscribers of class `configured` to a relay that the test plays.
    pub fn play_relay(&self, place: Place) -> Result<Relay> {
        let relay = Relay::open(&self.lab, place)?;
        let [v4, v6] = Family::BOTH.map(|family| relay.endpoint(family).to_string());
        // Only what is on the router can be steered to.
        let delivery = if place == Place::Router { self.mode.delivery() } else { "rewrite" };
        self.ctl(&["relay", "set", "played", "--ipv4", &v4, "--ipv6", &v6, "--delivery", delivery])?;
        self.ctl(&[
            "class",
            "set",
            "configured",
            "--action",
            "redirect",
            "--relay",
            "played",
            "--on-relay-down",
            "block",
        ])?;
        Ok(relay)
    }

    /// The redirected connections of this client, as `flow list` shows them.
    pub fn flows(&self, client: IpAddr) -> Result<Vec<serde_json::Value>> {
        let list = ["flow", "list", "--client", &client.to_string(), "--limit", "1000"];
        let list = self.product.json(&self.lab, &list)?;
        list.as_array().cloned().context("a list of flows")
    }

    /// Which server the client of each connection meant, by the address that the relay sees of the client.
    pub fn originals(&self, client: IpAddr) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
        let original = |flow: &serde_json::Value| {
            let port = flow["mapped_port"].as_u64().and_then(|port| u16::try_from(port).ok())?;
            Some((SocketAddr::new(client, port), flow["server"].as_str()?.parse().ok()?))
        };
        self.flows(client)?.iter().map(|flow| original(flow).with_context(|| format!("no flow: {flow}"))).collect()
    }

    /// As [`Product::ctl`].
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        self.product.ctl(&self.lab, words)
    }
}

/// Makes of each function, which takes a `&mut` [`Scene`], one test for every [`Mode`].
#[macro_export]
macro_rules! in_every_mode {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use redirect_tests::{Mode, Scene};

            #[test]
            fn xdp() {
                super::$name(&mut Scene::new(Mode::Xdp).unwrap());
            }

            #[test]
            fn tc() {
                super::$name(&mut Scene::new(Mode::Tc).unwrap());
            }

            #[test]
            fn tc_without_offloads() {
                super::$name(&mut Scene::new(Mode::TcWithoutOffloads).unwrap());
            }

            #[test]
            fn steer() {
                super::$name(&mut Scene::new(Mode::Steer).unwrap());
            }
        }
    )+};
}
