//! The lab: four hosts, each a network namespace, and the links between them.
//!
//! ```text
//!  client              router                    internet
//!  10.20.0.10 .20 .30  lan0 10.20.0.1            203.0.113.10 .11
//!  fd00:20::10 ..  ----     fd00:20::1           2001:db8:113::10 ..
//!                      wan0 203.0.113.1       ----
//!                           2001:db8:113::1
//!                      mx0  192.0.2.1         ---- gateway
//!                           2001:db8:2::1          192.0.2.25 2001:db8:2::25
//! ```
//! The device of every host but the router is `eth0`. The host's own network is never touched: both ends of every link come
//! into being inside their namespaces.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    janitor::{Janitor, Register},
    netns::Namespace,
    process::Daemon,
};

/// The two families that every test runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The subscriber whose mail is redirected.
    #[must_use]
    pub fn redirected(self) -> IpAddr {
        self.client(0x10, 10)
    }

    /// The subscriber who is let through.
    #[must_use]
    pub fn bypass(self) -> IpAddr {
        self.client(0x20, 20)
    }

    /// The subscriber who is blocked.
    #[must_use]
    pub fn blocked(self) -> IpAddr {
        self.client(0x30, 30)
    }

    fn client(self, host_v6: u16, host_v4: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 20, 0, host_v4).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, host_v6).into(),
        }
    }

    /// The router's address on the subscribers' link, where the relay listens.
    #[must_use]
    pub fn router(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 20, 0, 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    /// A server on the Internet.
    #[must_use]
    pub fn server(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(203, 0, 113, 10).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10).into(),
        }
    }

    /// Another server on the Internet.
    #[must_use]
    pub fn other_server(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(203, 0, 113, 11).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x11).into(),
        }
    }

    /// One of [`NUMBERED_SERVERS`] more servers, counted from 1; [`Lab::number_servers`] makes them.
    #[must_use]
    pub fn numbered_server(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(203, 0, 113, 100 + number).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 1, number.into()).into(),
        }
    }

    /// The operator's mail gateway.
    #[must_use]
    pub fn gateway(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 25).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x25).into(),
        }
    }
}

/// How many servers on the Internet have a number instead of a name.
pub const NUMBERED_SERVERS: u8 = 100;

/// The hardware address of the client's device; fixed, so that frames can be written by hand.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0x20, 2];

/// The hardware address of the router's `lan0`.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0x20, 1];

pub struct Lab {
    pub client: Namespace,
    pub router: Namespace,
    pub internet: Namespace,
    pub gateway: Namespace,
    id: String,
    folder: PathBuf,
    register: Register,
    _janitor: Janitor,
}

impl Lab {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab needs root to make network namespaces: run `cargo xtask test` or `cargo xtask demo`"
        );
        let id = format!("rdr-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (janitor, register) = Janitor::start()?;

        let folder = std::env::temp_dir().join(&id);
        register.folder(&folder)?;
        std::fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;

        let names = ["client", "router", "internet", "gateway"].map(|host| format!("{id}-{host}"));
        let namespaces = Namespace::create(names, &register)?;
        let [client, router, internet, gateway] =
            <[Namespace; 4]>::try_from(namespaces).ok().context("four namespaces were made")?;
        let lab = Self { client, router, internet, gateway, id, folder, register, _janitor: janitor };
        lab.wire()?;
        Ok(lab)
    }

    fn wire(&self) -> Result<()> {
        for host in [&self.client, &self.router, &self.internet, &self.gateway] {
            settle(host)?;
        }
        forward(&self.router)?;

        let router = self.router.name();
        let link = |device: &str, number: u8, host: &Namespace| {
            let mac = |end: u8| format!("02:00:00:00:{number:02}:{end:02}");
            format!(
                "link add {device} address {} netns {router} type veth peer name eth0 address {} netns {}",
                mac(1),
                mac(2),
                host.name()
            )
        };
        Namespace::links(&[
            link("lan0", 20, &self.client),
            link("wan0", 30, &self.internet),
            link("mx0", 40, &self.gateway),
        ])?;

        self.router.ip(&[
            "link set lo up",
            "link set lan0 up",
            "link set wan0 up",
            "link set mx0 up",
            "address add 10.20.0.1/16 dev lan0",
            "address add fd00:20::1/64 dev lan0 nodad",
            "address add 203.0.113.1/24 dev wan0",
            "address add 2001:db8:113::1/64 dev wan0 nodad",
            "address add 192.0.2.1/24 dev mx0",
            "address add 2001:db8:2::1/64 dev mx0 nodad",
        ])?;
        host(&self.client, &["10.20.0.10/16", "10.20.0.20/16", "10.20.0.30/16"], "10.20.0.1")?;
        host(&self.client, &["fd00:20::10/64", "fd00:20::20/64", "fd00:20::30/64"], "fd00:20::1")?;
        host(&self.internet, &["203.0.113.10/24", "203.0.113.11/24"], "203.0.113.1")?;
        host(&self.internet, &["2001:db8:113::10/64", "2001:db8:113::11/64"], "2001:db8:113::1")?;
        host(&self.gateway, &["192.0.2.25/24"], "192.0.2.1")?;
        host(&self.gateway, &["2001:db8:2::25/64"], "2001:db8:2::1")
    }

    /// Gives the Internet [`NUMBERED_SERVERS`] more servers.
    pub fn number_servers(&self) -> Result<()> {
        let servers = |family: Family| (1..=NUMBERED_SERVERS).map(move |number| family.numbered_server(number));
        let v4 = servers(Family::V4).map(|server| format!("address add {server}/24 dev eth0"));
        let v6 = servers(Family::V6).map(|server| format!("address add {server}/64 dev eth0 nodad"));
        self.internet.ip(&v4.chain(v6).collect::<Vec<_>>())
    }

    /// The lab's unique name, with which those of its namespaces begin.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A folder that is removed with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a program that stays; its log is `<name>.log` in the lab's folder.
    pub fn start(&self, host: &Namespace, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = self.folder.join(format!("{name}.log"));
        Daemon::start(host, command, &log)
    }

    /// Switches checksum and segmentation offloads of a device. veth has them all on: its packets carry no finished checksum
    /// and may be larger than the link's MTU.
    pub fn offloads(&self, host: &Namespace, device: &str, on: bool) -> Result<()> {
        self.features(host, device, &["tx", "rx", "tso", "gso", "gro"].map(|feature| (feature, on)))
    }

    /// Switches features of a device, by their names in ethtool(8).
    pub fn features(&self, host: &Namespace, device: &str, features: &[(&str, bool)]) -> Result<()> {
        let mut ethtool = Command::new("ethtool");
        ethtool.args(["-K", device]);
        for (feature, on) in features {
            ethtool.args([*feature, if *on { "on" } else { "off" }]);
        }
        let finished = host.run(&mut ethtool, Duration::from_secs(10))?;
        ensure!(finished.status.success(), "ethtool -K {device}: {}", finished.stderr.trim());
        Ok(())
    }

    /// Leaves the lab up; returns the file that [`crate::remove_kept`] works through.
    pub fn keep(&self) -> Result<PathBuf> {
        self.register.keep(&self.id)
    }
}

/// To be called before any link exists, which takes over the defaults. Duplicate address detection would cost seconds, and an IPv4 setting
/// of the host is inherited.
pub(crate) fn settle(host: &Namespace) -> Result<()> {
    host.sysctl(&[
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
    ])
}

pub(crate) fn forward(router: &Namespace) -> Result<()> {
    router.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
}

/// Gives an end host its addresses and its default route.
fn host(namespace: &Namespace, addresses: &[&str], router: &str) -> Result<()> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    let nodad = if router.contains(':') { " nodad" } else { "" };
    lines.extend(addresses.iter().map(|address| format!("address add {address} dev eth0{nodad}")));
    lines.push(format!("route add default via {router}"));
    namespace.ip(&lines)
}
