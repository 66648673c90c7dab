//! The stages of the comparison: a lab each, with ours or a peer in its router. All of them stay up, so that turns cost no set-up.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd as _,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use redirect_common::{
    policy::{Action, Class, Fallback, Relay},
    reason::Reason,
};
use redirect_ctl::dataplane::{
    Dataplane as _, Hook, Operation, Role,
    kernel::{Capacities, KernelDataplane},
};
use redirect_tests::{
    Lab, Namespace, Product,
    bpf::{Kind, Link, Program},
    configuration,
};

use super::{
    generator::{SUBSCRIBER_BITS, SUBSCRIBERS},
    traffic::{self, Sink},
};

/// Where the sink listens: the relay's endpoint, as far as ours and the peers are concerned.
pub(crate) const RELAY: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 20, 0, 1), 2526);

/// Loading a set of a million into a peer; nft takes 3 s where nothing else runs.
const COMMAND: Duration = Duration::from_mins(2);

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

/// Numbers in the kernel, of the only class and the only relay.
const CLASS: u16 = 1;

/// What stands in a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// Nothing: packets are forwarded, and a client has to dial the relay itself.
    Nothing,
    /// Our data plane, hooked in as `hook` says, for packets of the generator.
    Dataplane {
        hook: Hook,
        million: bool,
    },
    /// Ours as it is deployed, redirecting.
    Redirectd(Hook),
    Peer(Peer),
    Floor(Floor),
}

/// The least that a hook costs: a program that answers every packet alike, where a client has to dial the relay itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    XdpDrop,
    XdpPass,
    TcxPass,
}

/// What people use instead. `Million` ones ask a set of all the generator's subscribers, the others take everybody for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    NftRedirect,
    NftRedirectMillion,
    NftTproxy,
    IpsetRedirectMillion,
    NftDrop,
    NftDropMillion,
    IpsetDropMillion,
    NftReject,
}

impl Peer {
    const fn tracks_connections(self) -> bool {
        matches!(self, Self::NftRedirect | Self::NftRedirectMillion | Self::IpsetRedirectMillion)
    }
}

impl Occupant {
    /// The peer's name in a row; of ours, what its rows' names end with.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Floor(Floor::XdpDrop) => "xdp_drop",
            Self::Floor(Floor::XdpPass) => "xdp_pass",
            Self::Floor(Floor::TcxPass) => "tcx_pass",
            Self::Dataplane { hook, .. } | Self::Redirectd(hook) => hook.name(),
            Self::Peer(peer) => match peer {
                Peer::NftRedirect => "nft_redirect",
                Peer::NftRedirectMillion => "nft_redirect_1m",
                Peer::NftTproxy => "nft_tproxy",
                Peer::IpsetRedirectMillion => "iptables_ipset_1m",
                Peer::NftDrop => "nft_drop",
                Peer::NftDropMillion => "nft_drop_1m",
                Peer::IpsetDropMillion => "iptables_ipset_drop_1m",
                Peer::NftReject => "nft_reject",
            },
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Dataplane { .. } | Self::Redirectd(_))
    }

    /// Whether a row should put `ours` beside this.
    pub(crate) fn is_peer_of(self, ours: Self) -> bool {
        match self {
            Self::Peer(_) => true,
            Self::Floor(Floor::XdpDrop | Floor::XdpPass) => ours.name() == Hook::Xdp.name(),
            Self::Floor(Floor::TcxPass) => ours.name() == Hook::Tc.name(),
            Self::Nothing | Self::Dataplane { .. } | Self::Redirectd(_) => false,
        }
    }
}

/// A lab and what stands in its router.
pub(crate) struct Site {
    pub(crate) occupant: Occupant,
    pub(crate) dataplane: Option<KernelDataplane>,
    /// What the data plane was last told the time is.
    pub(crate) second_s: u32,
    /// Connections that the client has made so far.
    pub(crate) connections: u32,
    held: Held,
    pub(crate) lab: Lab,
}

/// What ends with the site.
enum Held {
    Discarding { _links: Vec<Link> },
    Connecting { product: Option<Product>, _link: Option<Link>, _sink: Sink },
}

impl Site {
    /// For packets of the generator: whatever reaches the server, or comes back to the client, is discarded there as soon as it arrives.
    pub(crate) fn for_packets(occupant: Occupant) -> Result<Self> {
        let lab = lab(occupant)?;
        // Answers to the generator's subscribers go to the client. Fixed neighbours: nobody is there to answer when they are looked for.
        lab.router.ip(&[
            "neighbour replace 10.20.0.10 lladdr 02:00:00:00:20:02 dev lan0 nud permanent",
            "neighbour replace 203.0.113.10 lladdr 02:00:00:00:30:02 dev wan0 nud permanent",
            "route add 10.64.0.0/12 via 10.20.0.10 dev lan0",
        ])?;
        // veth takes redirected frames where it polls, which GRO or XDP makes it do.
        for (host, device) in [(&lab.client, "eth0"), (&lab.router, "lan0"), (&lab.router, "wan0")] {
            run(host, &["ethtool", "-K", device, "gro", "on"])?;
        }
        let dataplane = match occupant {
            Occupant::Dataplane { hook, million } => Some(attached(&lab, hook, million)?),
            _ => None,
        };
        // What XDP sends back is a frame, what a stack sends a socket buffer: each is discarded where that is cheapest.
        let (kind, code) = match occupant {
            Occupant::Dataplane { hook: Hook::Xdp, .. } => (Kind::Xdp, XDP_DROP),
            _ => (Kind::Classifier, TC_ACT_SHOT),
        };
        let mut links = vec![
            attach(&lab.internet, "eth0", Kind::Classifier, TC_ACT_SHOT)?,
            attach(&lab.client, "eth0", kind, code)?,
        ];
        if let Occupant::Floor(floor) = occupant {
            links.push(attach_floor(&lab, floor)?);
        }
        let held = Held::Discarding { _links: links };
        Ok(Self { occupant, dataplane, second_s: 0, connections: 0, held, lab })
    }

    /// For TCP connections of the client to the server's port 25, which a sink at [`RELAY`] takes.
    pub(crate) fn for_connections(occupant: Occupant, cpu: usize) -> Result<Self> {
        let lab = lab(occupant)?;
        let sink = Sink::start(&lab.router, RELAY, cpu)?;
        traffic::prepare(&lab)?;
        let (mut product, mut link) = (None, None);
        match occupant {
            Occupant::Redirectd(hook) => product = Some(redirectd(&lab, hook)?),
            Occupant::Floor(floor) => link = Some(attach_floor(&lab, floor)?),
            _ => {}
        }
        let held = Held::Connecting { product, _link: link, _sink: sink };
        Ok(Self { occupant, dataplane: None, second_s: 0, connections: 0, held, lab })
    }

    /// What our data plane does with the subscribers of the generator.
    pub(crate) fn set_action(&mut self, action: Action) -> Result<()> {
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.apply(&Operation::SetClass { id: CLASS, class: Class::new(action, Fallback::Pass, 1) })?;
        }
        Ok(())
    }

    /// Packets that our data plane has counted for a reason.
    pub(crate) fn counted(&self, reason: Reason) -> Result<Option<u64>> {
        let Some(dataplane) = &self.dataplane else { return Ok(None) };
        let counters = dataplane.counters()?.classes;
        Ok(Some(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum()))
    }

    /// As [`Site::counted`], where ours is the daemon.
    pub(crate) fn counted_by_daemon(&self, reason: Reason) -> Result<Option<u64>> {
        let Held::Connecting { product: Some(product), .. } = &self.held else { return Ok(None) };
        let stats = product.json(&self.lab, &["stats"])?;
        let rows = stats["reasons"].as_array().context("stats are a list of reasons")?;
        let rows = rows.iter().filter(|row| row["reason"] == reason.name());
        Ok(Some(rows.filter_map(|row| row["packets"].as_u64()).sum()))
    }

    /// Makes the router forget the connections that it has tracked, so that every turn begins alike.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        match self.occupant {
            Occupant::Peer(peer) if peer.tracks_connections() => self.lab.router.enter(flush_conntrack),
            _ => Ok(()),
        }
    }
}

/// Packets that a device has received, whatever became of them.
pub(crate) fn received(host: &Namespace, device: &str) -> Result<u64> {
    let table = host.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).context("read the devices' counters")?;
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    let packets = row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok());
    packets.with_context(|| format!("no counter of {device} in {table}"))
}

pub(crate) fn device_index(host: &Namespace, device: &str) -> Result<u32> {
    host.enter(|| if_nametoindex(device)).with_context(|| format!("find {device}"))
}

fn attach_floor(lab: &Lab, floor: Floor) -> Result<Link> {
    let (kind, code) = match floor {
        Floor::XdpDrop => (Kind::Xdp, XDP_DROP),
        Floor::XdpPass => (Kind::Xdp, XDP_PASS),
        Floor::TcxPass => (Kind::Classifier, TC_ACT_UNSPEC),
    };
    attach(&lab.router, "lan0", kind, code)
}

/// Attaches a program that answers everything with `code`.
fn attach(host: &Namespace, device: &str, kind: Kind, code: i32) -> Result<Link> {
    let program = Program::answering(kind, code).with_context(|| format!("load a program that answers {code}"))?;
    host.enter(|| program.attach(device)).with_context(|| format!("attach to {device} in {}", host.name()))
}

/// A lab, with the peer if it is one.
fn lab(occupant: Occupant) -> Result<Lab> {
    let lab = Lab::new()?;
    if let Occupant::Peer(peer) = occupant {
        install(peer, &lab)?;
    }
    Ok(lab)
}

/// Ours as it is deployed, with the subscribers' network redirected to the sink.
fn redirectd(lab: &Lab, hook: Hook) -> Result<Product> {
    let product = Product::start(lab, &configuration(lab.folder(), hook.name()))?;
    let relay = format!("{}:{}", RELAY.0, RELAY.1);
    product.ctl(lab, &["relay", "set", "sink", "--ipv4", &relay])?;
    product.ctl(lab, &["class", "set", "measured", "--action", "redirect", "--relay", "sink"])?;
    product.ctl(lab, &["subscriber", "set", "10.20.0.0/16", "--class", "measured"])?;
    Ok(product)
}

fn attached(lab: &Lab, hook: Hook, million: bool) -> Result<KernelDataplane> {
    let mut dataplane = dataplane(million)?;
    let (name, role) = ("lan0".to_owned(), Role::Subscriber);
    lab.router.enter(|| dataplane.apply(&Operation::Attach { name, role, hook }))?;
    Ok(dataplane)
}

/// With the generator's subscribers as so many hosts, or as one prefix.
fn dataplane(million: bool) -> Result<KernelDataplane> {
    let default = Capacities::default();
    let capacities = Capacities { subscribers_max: 1 << SUBSCRIBER_BITS, ..default };
    let mut dataplane = KernelDataplane::load(if million { capacities } else { default })?;
    let relay = Relay::new(Some(std::net::SocketAddrV4::new(RELAY.0, RELAY.1)), None);
    dataplane.apply(&Operation::SetRelay { id: 1, relay })?;
    dataplane.apply(&Operation::SetClass { id: CLASS, class: Class::new(Action::Redirect, Fallback::Pass, 1) })?;
    let prefix_len = if million { 32 } else { u8::try_from(32 - SUBSCRIBER_BITS).context("a prefix is short")? };
    for address in addresses().take(if million { usize::MAX } else { 1 }) {
        let prefix = ipnet::IpNet::new(IpAddr::V4(address), prefix_len)?;
        dataplane.apply(&Operation::SetSubscriber { prefix, class: CLASS })?;
    }
    Ok(dataplane)
}

fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..1 << SUBSCRIBER_BITS).map(|number: u32| Ipv4Addr::from(u32::from(SUBSCRIBERS) + number))
}

/// Each as a careful administrator would: the port is asked for before the set, and nothing is tracked that need not be.
fn install(peer: Peer, lab: &Lab) -> Result<()> {
    const SUBSCRIBERS_AS_PREFIX: &str = "ip saddr 10.64.0.0/12";
    let (address, port) = RELAY;
    match peer {
        Peer::NftRedirect => {
            nft(lab, false, "type nat hook prerouting priority dstnat", &format!("redirect to :{port}"))?;
        }
        Peer::NftRedirectMillion => {
            let action = format!("ip saddr @subscribers redirect to :{port}");
            nft(lab, true, "type nat hook prerouting priority dstnat", &action)?;
        }
        Peer::NftTproxy => {
            let action = format!("meta mark set 1 tproxy to {address}:{port} accept");
            nft(lab, false, "type filter hook prerouting priority mangle", &action)?;
            lab.router.ip(&["rule add fwmark 1 lookup 100", "route add local default dev lo table 100"])?;
        }
        Peer::IpsetRedirectMillion => {
            ipset(lab)?;
            iptables(lab, &["-t", "nat"], &["REDIRECT", "--to-ports", &port.to_string()])?;
        }
        Peer::NftDrop => {
            nft(lab, false, "type filter hook prerouting priority raw", &format!("{SUBSCRIBERS_AS_PREFIX} drop"))?;
        }
        Peer::NftDropMillion => {
            nft(lab, true, "type filter hook prerouting priority raw", "ip saddr @subscribers drop")?;
        }
        Peer::IpsetDropMillion => {
            ipset(lab)?;
            iptables(lab, &["-t", "raw"], &["DROP"])?;
        }
        Peer::NftReject => {
            let action = format!("{SUBSCRIBERS_AS_PREFIX} reject with tcp reset");
            nft(lab, false, "type filter hook forward priority filter", &action)?;
        }
    }
    if peer.tracks_connections() {
        // As behind a network card that checks sums by itself.
        lab.router.sysctl(&[("netfilter/nf_conntrack_checksum", "0")])?;
    }
    Ok(())
}

/// One chain with one rule for the subscribers' port 25, and the set of a million where the rule asks for it.
fn nft(lab: &Lab, million: bool, chain: &str, action: &str) -> Result<()> {
    let mut rules = "table ip measured {\n".to_owned();
    if million {
        rules += "set subscribers {\ntype ipv4_addr\nsize 1048576\nelements = {\n";
        for address in addresses() {
            writeln!(rules, "{address},")?;
        }
        rules += "}\n}\n";
    }
    write!(rules, "chain measured {{\n{chain}; policy accept;\niifname \"lan0\" tcp dport 25 {action}\n}}\n}}\n")?;
    let file = lab.folder().join("rules.nft");
    fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
    run(&lab.router, &["nft", "-f", &file.display().to_string()])
}

fn ipset(lab: &Lab) -> Result<()> {
    let mut commands = "create subscribers hash:ip hashsize 524288 maxelem 1048576\n".to_owned();
    for address in addresses() {
        writeln!(commands, "add subscribers {address}")?;
    }
    let file = lab.folder().join("subscribers.ipset");
    fs::write(&file, commands).with_context(|| format!("write {}", file.display()))?;
    run(&lab.router, &["ipset", "restore", "-file", &file.display().to_string()])
}

fn iptables(lab: &Lab, table: &[&str], target: &[&str]) -> Result<()> {
    let packet = ["-i", "lan0", "-p", "tcp", "--dport", "25", "-m", "set", "--match-set", "subscribers", "src"];
    let words = [&["iptables-legacy", "-w"], table, &["-A", "PREROUTING"], &packet, &["-j"], target].concat();
    run(&lab.router, &words)
}

pub(crate) fn run(host: &Namespace, words: &[&str]) -> Result<()> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let finished = host.run(Command::new(program).args(arguments), COMMAND)?;
    ensure!(finished.status.success(), "{}: {}", words.join(" "), finished.stderr.trim());
    Ok(())
}

/// Removes every connection that this network namespace tracks (`IPCTNL_MSG_CTDELETE` without a tuple).
fn flush_conntrack() -> Result<()> {
    const MESSAGE_BYTES: u8 = 20;
    const CTNETLINK: u8 = 1;
    const DELETE: u8 = 2;
    const REQUEST_AND_ACKNOWLEDGE: u8 = 1 | 4;
    let mut request = [0; MESSAGE_BYTES as usize];
    request[0] = MESSAGE_BYTES;
    request[4..8].copy_from_slice(&[DELETE, CTNETLINK, REQUEST_AND_ACKNOWLEDGE, 0]);
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    send(netlink.as_raw_fd(), &request, MsgFlags::empty()).context("ask conntrack to forget")?;
    let mut answer = [0; 64];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).context("hear from conntrack")?;
    // An error message is a header of 16 bytes and an error number, 0 for none.
    ensure!(length >= 20 && answer[16..20] == [0; 4], "conntrack refused to forget: {:?}", &answer[..length]);
    Ok(())
}
