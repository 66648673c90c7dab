//! What the daemon changes on its host beside its own programs and maps: rules and routes, settings of interfaces, options of a relay's
//! sockets. Everything is put back at the stop, unless programs go on that rely on it; the next start takes over what it finds.
//!
//! - [`routing`]: policy rules and routes, by rtnetlink
//! - [`sysctl`]: settings of interfaces, with a note of what was found
//! - [`adopt`]: the sockets of a relay that flows are steered to; `listening` lists them, `sockets` keeps track of them
//! - [`foreign`]: which foreign sources get a route, and for how long; pure
//! - `connections`: ends connections of a relay that a class does not want any more
//!
//! [`Host`] puts routing, settings and sources together: it is told what is [`Wanted`], and compares that with what the kernel has.

pub mod adopt;
mod connections;
pub mod foreign;
mod listening;
mod netlink;
pub mod routing;
mod sockets;
pub mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};
use redirect_common::SMTP_PORT;

use crate::dataplane::{Connection, Mark, RelayId};

use self::{
    connections::Connections,
    foreign::{Acquaintance, Counts, Sources, judge},
    routing::{Entry, Family, Routing},
    sockets::Sockets,
    sysctl::Sysctls,
};

/// Numbers that the host's routing knows the daemon's entries by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The mark of a steered packet, within `mark_mask`. It is gone before the packet could leave.
    pub mark: u32,
    pub mark_mask: u32,
    /// The table whose only route leads marked packets to this host.
    pub steer_table: u32,
    /// The table with the routes to foreign sources.
    pub source_table: u32,
    /// Of all rules. Low, so that it comes before what the operator may have, and above 0, where the kernel's own addresses are.
    pub priority: u32,
    /// Says who made an entry (rtnetlink(7), `rtm_protocol`).
    pub protocol: u8,
}

impl Default for Numbers {
    /// The highest byte of the mark: the lower ones are taken by Tailscale and `OpenWrt`'s pbr (0xff0000), Shorewall and mwan3 (0xff00), and by hand
    /// (0xff), as far as <https://github.com/fwmark/registry> and those programs tell; only Kubernetes networks use this one. The protocol
    /// number is in no list: neither iproute2's `rt_protos` nor that of FRR.
    fn default() -> Self {
        Self {
            mark: 0x2500_0000,
            mark_mask: 0xff00_0000,
            steer_table: 2525,
            source_table: 2526,
            priority: 25,
            protocol: 125,
        }
    }
}

/// What the host should be like. The default: as if the daemon were not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the data plane is, or may be, at work.
    pub active: bool,
    /// Where relays listen.
    pub relays: BTreeSet<SocketAddr>,
    /// Those of them that flows may be steered to, if they are on this host.
    pub steered: BTreeSet<SocketAddr>,
    /// Interfaces whose foreign sources are served.
    pub foreign: BTreeSet<String>,
    /// Mail gateways by address. Like relays, they are no foreign sources, whoever says so.
    pub gateways: BTreeSet<Ipv4Addr>,
}

impl Wanted {
    fn is_protected(&self, address: Ipv4Addr) -> bool {
        self.gateways.contains(&address) || self.relays.iter().any(|relay| relay.ip() == address)
    }
}

/// Why the host is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Routing(#[from] routing::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("interface {name} has no ARP, which foreign_sources is about")]
    NoArp { name: String },
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
}

/// The host of the network namespace that it was opened in; calls have to come from a thread of the same namespace.
pub struct Host {
    numbers: Numbers,
    routing: Routing,
    sysctls: Sysctls,
    wanted: Wanted,
    /// The relays that are on this host.
    own_relays: BTreeSet<SocketAddr>,
    /// Whether marked packets are delivered to this host. Once true, it stays so until the data plane is off: live flows rely on it.
    steers: bool,
    sockets: Sockets,
    /// Interfaces whose foreign sources are served, by name.
    devices: BTreeMap<String, u32>,
    sources: Sources,
    /// Once one had to be ended.
    connections: Option<Connections>,
    /// Everything stays as it is.
    left: bool,
}

impl Host {
    /// `notes` is the file that [`sysctl`] remembers by. Changes nothing yet. Foreign sources that have a route are known from the start.
    pub fn open(numbers: Numbers, notes: &Path, now_s: u32) -> Result<Self, Error> {
        let mut routing = Routing::open(numbers.protocol)?;
        let mut sources = Sources::default();
        for entry in routing.entries()? {
            if let Entry::HostRoute { address, device, table } = entry
                && table == numbers.source_table
            {
                // One that finds no place loses its route, and is learned again with its next flow.
                let _ = sources.learn(address, device, now_s);
            }
        }
        Ok(Self {
            numbers,
            routing,
            sysctls: Sysctls::open(notes)?,
            wanted: Wanted::default(),
            own_relays: BTreeSet::new(),
            steers: false,
            sockets: Sockets::default(),
            devices: BTreeMap::new(),
            sources,
            connections: None,
            left: false,
        })
    }

    /// Makes what is `wanted` and not there, before anything relies on it. One thing that fails holds no other one up; the first error is
    /// returned.
    pub fn prepare(&mut self, wanted: Wanted) -> Result<(), Error> {
        self.wanted = wanted;
        let found = self.find_own_relays();
        self.steers = self.wanted.active && (self.steers || !self.own_relays.is_disjoint(&self.wanted.steered));
        let served = self.serve_devices();
        let routed = self.routing.add_missing(&self.entries());
        found.and(served).and(routed.map_err(Error::from))
    }

    /// Flows are steered already.
    pub const fn resume_steering(&mut self) {
        self.steers = true;
    }

    /// Undoes nothing when it is dropped.
    pub const fn leave(&mut self) {
        self.left = true;
    }

    /// Whether marked packets are delivered to this host.
    pub const fn steers(&self) -> bool {
        self.steers
    }

    /// Whether a relay that flows may be steered to is on this host.
    pub fn may_steer(&self, relay: SocketAddr) -> bool {
        self.wanted.steered.contains(&relay) && self.own_relays.contains(&relay)
    }

    /// What steered packets are marked with.
    pub const fn mark(&self) -> Mark {
        Mark { value: self.numbers.mark, mask: self.numbers.mark_mask }
    }

    /// Makes the sockets that listen on an endpoint of a relay ready, and gives one away for the data plane to steer to; `None` where it has
    /// it already. To be closed soon: while it is open, it listens in the relay's place.
    pub fn adopt(&mut self, relay: RelayId, endpoint: SocketAddr) -> Result<Option<OwnedFd>, adopt::Error> {
        self.sockets.adopt(relay, endpoint)
    }

    /// The data plane did not take what [`Host::adopt`] gave.
    pub fn not_adopted(&mut self, relay: RelayId, endpoint: SocketAddr) {
        self.sockets.failed(relay, endpoint);
    }

    /// Whether the data plane has a socket that listens on an endpoint of a relay.
    pub fn is_ready(&self, relay: RelayId, endpoint: SocketAddr) -> bool {
        self.sockets.is_ready(relay, endpoint)
    }

    /// Undoes what is not wanted any more, after nothing relies on it. Errors as for [`Host::prepare`].
    pub fn tidy(&mut self) -> Result<(), Error> {
        self.sockets.keep(&self.own_relays.intersection(&self.wanted.steered).copied().collect());
        let mut result = self.routing.remove_others(&self.entries()).map_err(Error::from);
        let unwanted = self.sysctls.held().filter(|name| !self.wanted.foreign.contains(*name)).map(str::to_owned);
        for name in unwanted.collect::<Vec<_>>() {
            result = result.and(index(&name).and_then(|index| Ok(self.sysctls.release(&name, index)?)));
        }
        result
    }

    /// Whether an interface with foreign sources or a relay's socket has come, gone or changed since [`Host::prepare`].
    pub fn is_stale(&self) -> bool {
        self.sockets.are_stale()
            || self.wanted.foreign.iter().any(|name| index(name).ok().flatten() != self.devices.get(name).copied())
    }

    /// A flow of `source` came in by the interface with this index.
    pub fn arrived(&mut self, source: Ipv4Addr, device: u32, now_s: u32) -> Result<(), Error> {
        if !self.devices.values().any(|index| *index == device) {
            return Ok(());
        }
        match self.sources.arrived(source, device, now_s) {
            Acquaintance::Known | Acquaintance::Refused => return Ok(()),
            Acquaintance::Unknown => {}
        }
        let path = self.routing.path(source)?;
        match judge(source, device, path, self.wanted.is_protected(source)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(refusal) => {
                self.sources.refuse(refusal);
                return Ok(());
            }
        }
        let Ok(before) = self.sources.learn(source, device, now_s) else { return Ok(()) };
        if let Some(before) = before {
            self.routing.remove(&self.host_route(source, before))?;
        }
        tracing::debug!(%source, device, "foreign source learned");
        if let Err(error) = self.routing.add(&self.host_route(source, device)) {
            self.sources.forget(source);
            return Err(error.into());
        }
        Ok(())
    }

    /// Forgets foreign sources that are not there, or have been silent for long. To be called about once a second.
    pub fn tick(&mut self, now_s: u32) -> Result<(), Error> {
        for (source, device) in self.sources.due(now_s) {
            let neighbour = self.routing.neighbour(source, device)?;
            if !self.sources.checked(source, neighbour, now_s) {
                tracing::debug!(%source, device, "foreign source forgotten");
                self.routing.remove(&self.host_route(source, device))?;
            }
        }
        Ok(())
    }

    /// Ends a connection of a relay on this host, at both of its ends; `false` where no socket here has it.
    pub fn end(&mut self, connection: Connection) -> io::Result<bool> {
        if self.connections.is_none() {
            self.connections = Some(Connections::open()?);
        }
        self.connections.as_mut().map_or(Ok(false), |connections| connections.end(connection))
    }

    /// How many foreign sources are remembered, and what became of all so far.
    pub fn foreign_sources(&self) -> (usize, &Counts) {
        (self.sources.len(), self.sources.counts())
    }

    fn serve_devices(&mut self) -> Result<(), Error> {
        self.devices.clear();
        let mut result = Ok(());
        for name in &self.wanted.foreign {
            match serve(&mut self.sysctls, name) {
                Ok(Some(index)) => {
                    self.devices.insert(name.clone(), index);
                }
                // It will be served when it comes.
                Ok(None) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        self.sources.keep_devices(&self.devices.values().copied().collect());
        result
    }

    fn find_own_relays(&mut self) -> Result<(), Error> {
        self.own_relays.clear();
        for relay in &self.wanted.relays {
            if self.routing.is_own(relay.ip())? {
                self.own_relays.insert(*relay);
            }
        }
        Ok(())
    }

    fn entries(&self) -> BTreeSet<Entry> {
        let Numbers { mark, mark_mask, steer_table, source_table, priority, .. } = self.numbers;
        let mut entries = BTreeSet::new();
        if self.steers {
            for family in Family::BOTH {
                entries.insert(Entry::LocalRoute { family, table: steer_table });
                entries.insert(Entry::MarkRule { family, mark, mask: mark_mask, table: steer_table, priority });
            }
        }
        entries.extend(self.sources.iter().map(|(source, device)| self.host_route(source, device)));
        if !self.devices.is_empty() {
            let relays = self.wanted.relays.iter().filter_map(|relay| match relay {
                SocketAddr::V4(v4) if self.own_relays.contains(relay) => Some((None, v4.port())),
                SocketAddr::V4(v4) => Some((Some(*v4.ip()), v4.port())),
                SocketAddr::V6(_) => None,
            });
            // A steered flow is answered in the name of the server that the subscriber has dialled.
            let steered = self.steers.then_some((None, SMTP_PORT));
            entries.extend(relays.chain(steered).map(|(from, port)| Entry::PortRule {
                from,
                port,
                table: source_table,
                priority,
            }));
        }
        entries
    }

    const fn host_route(&self, address: Ipv4Addr, device: u32) -> Entry {
        Entry::HostRoute { address, device, table: self.numbers.source_table }
    }
}

impl Drop for Host {
    /// Undoes everything, unless that was done already.
    fn drop(&mut self) {
        if self.left || self.wanted == Wanted::default() {
            return;
        }
        for result in [self.prepare(Wanted::default()), self.tidy()] {
            if let Err(error) = result {
                tracing::error!(%error, "left behind on the host; the next start removes it");
            }
        }
    }
}

/// Undoes what a daemon left: its rules and routes, and changed settings of interfaces. Returns how many there were of each.
pub fn undo(numbers: Numbers, notes: &Path) -> Result<(usize, usize), Error> {
    let mut routing = Routing::open(numbers.protocol)?;
    let entries = routing.entries()?.len();
    routing.remove_others(&BTreeSet::new())?;
    let mut sysctls = Sysctls::open(notes)?;
    let names: Vec<_> = sysctls.held().map(str::to_owned).collect();
    for name in &names {
        sysctls.release(name, index(name)?)?;
    }
    Ok((entries, names.len()))
}

/// Sets an interface up for foreign sources; `None` where there is no such interface.
fn serve(sysctls: &mut Sysctls, name: &str) -> Result<Option<u32>, Error> {
    let Some(index) = index(name)? else { return Ok(None) };
    if !has_arp(name)? {
        return Err(Error::NoArp { name: name.to_owned() });
    }
    sysctls.hold(name, index)?;
    Ok(Some(index))
}

fn index(name: &str) -> Result<Option<u32>, Error> {
    match if_nametoindex(name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(Error::System { what: format!("look interface {name} up"), source: error.into() }),
    }
}

fn has_arp(name: &str) -> Result<bool, Error> {
    let addresses =
        getifaddrs().map_err(|error| Error::System { what: "list the interfaces".to_owned(), source: error.into() })?;
    let flags = addresses.into_iter().find(|address| address.interface_name == name).map(|address| address.flags);
    Ok(flags.is_some_and(|flags| !flags.intersects(InterfaceFlags::IFF_NOARP | InterfaceFlags::IFF_POINTOPOINT)))
}
