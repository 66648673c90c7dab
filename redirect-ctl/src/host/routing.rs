//! Policy rules and routes of this host's kernel that carry the daemon's routing protocol number, by rtnetlink.
//!
//! The number says who made an entry (rtnetlink(7), `rtm_protocol`): whatever carries it and has the form of an [`Entry`] is the
//! daemon's, of this run or of one that crashed, and goes when nobody wants it. Everything else is left alone, also where it is in the
//! way: then [`Error::Taken`] names it.
//!
//! Steering needs two entries in each family: a rule that sends marked packets to a table, and in that table a route that says "for this
//! host" to every destination. Answers to foreign sources need, for each source, a host route in a table that only the relays' own
//! answers are routed by. They are not in the main table on purpose: whoever forges the address of an Internet host would otherwise draw
//! every other subscriber's packets to that host onto the subscribers' link.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla as _};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RulePortRange},
};

use super::netlink::Netlink;

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Unit of times that the kernel shows to programs: hundredths of a second on x86-64 and arm64 (`USER_HZ`).
const TICKS_PER_SECOND: u32 = 100;

/// How the kernel says that there is no route, or one that prohibits or discards.
const UNREACHABLE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];

/// An address family that has rules and routes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    const fn of(number: AddressFamily) -> Option<Self> {
        match number {
            AddressFamily::Inet => Some(Self::V4),
            AddressFamily::Inet6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// A rule or a route that the daemon makes. In their order, a rule comes after the routes that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Every destination is this host.
    LocalRoute { family: Family, table: u32 },
    /// One host, reached on a device without a router in between.
    HostRoute { address: Ipv4Addr, device: u32, table: u32 },
    /// Packets whose mark has `mark` within `mask` are routed by a table.
    MarkRule { family: Family, mark: u32, mask: u32, table: u32, priority: u32 },
    /// What comes over IPv4 from a TCP port is routed by a table, where that knows the destination: what this host itself sends, or what
    /// another host sends. The second kind has the kernel look at the ports of every forwarded packet, the first does not.
    PortRule { from: Option<Ipv4Addr>, port: u16, table: u32, priority: u32 },
}

/// As `ip` writes it.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |family| if family == Family::V4 { "ip" } else { "ip -6" };
        match *self {
            Self::LocalRoute { family, table } => write!(f, "{} route local default dev lo table {table}", ip(family)),
            Self::HostRoute { address, device, table } => {
                write!(f, "ip route {address} dev (index {device}) table {table}")
            }
            Self::MarkRule { family, mark, mask, table, priority } => {
                write!(f, "{} rule priority {priority} fwmark {mark:#x}/{mask:#x} lookup {table}", ip(family))
            }
            Self::PortRule { from: None, port, table, priority } => {
                write!(f, "ip rule priority {priority} iif lo ipproto tcp sport {port} lookup {table}")
            }
            Self::PortRule { from: Some(from), port, table, priority } => {
                write!(f, "ip rule priority {priority} from {from} ipproto tcp sport {port} lookup {table}")
            }
        }
    }
}

/// Where this host sends packets for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// To itself, to nobody, or to more than one host: local, broadcast, multicast, prohibited and the like.
    NotOneHost,
    /// No route at all.
    None,
    Device {
        index: u32,
        /// Length of the route's destination prefix.
        prefix_len: u8,
    },
}

/// What the kernel knows of a host on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// It has told its hardware address.
    pub answers: bool,
    /// Since the last packet to it, or the last sign that one arrived.
    pub idle: Duration,
}

/// Why the kernel's routing is not as it is wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{entry}` is there already and not redirectd's; remove it, or choose other numbers in [routing]")]
    Taken { entry: Entry },
    /// It vanished, or is down.
    #[error("the device of `{entry}` cannot be used: {source}")]
    Device { entry: Entry, source: io::Error },
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
}

/// The rules and routes of the network namespace that it was opened in.
pub struct Routing {
    netlink: Netlink,
    protocol: RouteProtocol,
}

impl Routing {
    /// `protocol` is the number that marks the daemon's entries.
    pub fn open(protocol: u8) -> Result<Self, Error> {
        let netlink = Netlink::open()
            .map_err(|source| Error::System { what: "open a netlink socket for routing".to_owned(), source })?;
        Ok(Self { netlink, protocol: protocol.into() })
    }

    /// Everything of the daemon's that the kernel has.
    pub fn entries(&mut self) -> Result<BTreeSet<Entry>, Error> {
        let mut entries = BTreeSet::new();
        for family in Family::BOTH {
            let mut rules = RuleMessage::default();
            rules.header.family = family.number();
            let mut routes = RouteMessage::default();
            routes.header.address_family = family.number();
            routes.header.protocol = self.protocol;
            for (what, request) in [
                ("list the routing rules", RouteNetlinkMessage::GetRule(rules)),
                ("list the routes", RouteNetlinkMessage::GetRoute(routes)),
            ] {
                let found = match self.netlink.dump(&request) {
                    Ok(found) => found,
                    // A kernel without this family has none of them.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                        continue;
                    }
                    Err(source) => return Err(Error::System { what: what.to_owned(), source }),
                };
                entries.extend(found.iter().filter_map(|message| self.read(message)));
            }
        }
        Ok(entries)
    }

    /// Makes an entry; one that is there already although it is not listed in [`Routing::entries`] is somebody else's.
    pub fn add(&mut self, entry: &Entry) -> Result<(), Error> {
        let message = match self.message(entry) {
            Message::Rule(rule) => RouteNetlinkMessage::NewRule(rule),
            Message::Route(route) => RouteNetlinkMessage::NewRoute(route),
        };
        self.netlink.change(message, NLM_F_CREATE | NLM_F_EXCL).map_err(|source| match source.raw_os_error() {
            Some(libc::EEXIST) => Error::Taken { entry: *entry },
            Some(libc::ENODEV | libc::ENETDOWN) => Error::Device { entry: *entry, source },
            _ => Error::System { what: format!("add `{entry}`"), source },
        })
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, entry: &Entry) -> Result<(), Error> {
        let message = match self.message(entry) {
            Message::Rule(rule) => RouteNetlinkMessage::DelRule(rule),
            Message::Route(route) => RouteNetlinkMessage::DelRoute(route),
        };
        match self.netlink.change(message, 0) {
            Ok(()) => Ok(()),
            // A route goes with its device.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)) => Ok(()),
            Err(source) => Err(Error::System { what: format!("remove `{entry}`"), source }),
        }
    }

    /// Makes what the kernel lacks of `wanted`, rules after their routes. An entry that fails holds no other one up; the first error is
    /// returned.
    pub fn add_missing(&mut self, wanted: &BTreeSet<Entry>) -> Result<(), Error> {
        let actual = self.entries()?;
        let mut result = Ok(());
        for entry in wanted.difference(&actual) {
            result = result.and(self.add(entry));
        }
        result
    }

    /// Removes what the kernel has of the daemon's and is not wanted, rules before their routes. Errors as for [`Routing::add_missing`].
    pub fn remove_others(&mut self, wanted: &BTreeSet<Entry>) -> Result<(), Error> {
        let actual = self.entries()?;
        let mut result = Ok(());
        for entry in actual.iter().rev().filter(|entry| !wanted.contains(entry)) {
            result = result.and(self.remove(entry));
        }
        result
    }

    /// Whether an address is one of this host's.
    pub fn is_own(&mut self, address: IpAddr) -> Result<bool, Error> {
        let mut request = RouteMessage::default();
        let (family, bits, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = bits;
        request.attributes.push(RouteAttribute::Destination(destination));
        match self.netlink.get(RouteNetlinkMessage::GetRoute(request)) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(route.header.kind == RouteType::Local),
            Ok(other) => Err(surprise("look up a route", &other)),
            Err(error) if UNREACHABLE.contains(&error.raw_os_error().unwrap_or(0)) => Ok(false),
            Err(source) => Err(Error::System { what: format!("look up the route to {address}"), source }),
        }
    }

    /// Where this host sends packets for an address, whatever relays answer.
    pub fn path(&mut self, to: Ipv4Addr) -> Result<Path, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        // The route that matches, instead of the one that is derived from it for this destination.
        request.header.flags = RouteFlags::FibMatch;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
        let answer = match self.netlink.get(RouteNetlinkMessage::GetRoute(request)) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => route,
            Ok(other) => return Err(surprise("look up a route", &other)),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENETUNREACH) => Ok(Path::None),
                    Some(number) if UNREACHABLE.contains(&number) => Ok(Path::NotOneHost),
                    _ => Err(Error::System { what: format!("look up the route to {to}"), source: error }),
                };
            }
        };
        let device = answer.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            // Several next hops share the packets; the first stands for them.
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        });
        Ok(match (answer.header.kind, device) {
            (RouteType::Unicast, Some(index)) => {
                Path::Device { index, prefix_len: answer.header.destination_prefix_length }
            }
            _ => Path::NotOneHost,
        })
    }

    /// What the kernel knows of a host on a link; `None` where nothing has been sent to it for a while.
    pub fn neighbour(&mut self, address: Ipv4Addr, device: u32) -> Result<Option<Neighbour>, Error> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.ifindex = device;
        request.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let what = "ask for a neighbour";
        let answer = match self.netlink.get(RouteNetlinkMessage::GetNeighbour(request)) {
            Ok(RouteNetlinkMessage::NewNeighbour(neighbour)) => neighbour,
            Ok(other) => return Err(surprise(what, &other)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(None),
            Err(source) => return Err(Error::System { what: what.to_owned(), source }),
        };
        let answers =
            !matches!(answer.header.state, NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed);
        let times = answer.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::CacheInfo(times) => Some(times.used.min(times.confirmed)),
            _ => None,
        });
        Ok(times.map(|ticks| Neighbour { answers, idle: Duration::from_secs((ticks / TICKS_PER_SECOND).into()) }))
    }

    fn message(&self, entry: &Entry) -> Message {
        match *entry {
            Entry::LocalRoute { family, table } => Message::Route(self.route(
                RouteHeader {
                    address_family: family.number(),
                    kind: RouteType::Local,
                    scope: RouteScope::Host,
                    ..RouteHeader::default()
                },
                [RouteAttribute::Table(table), RouteAttribute::Oif(LOOPBACK)],
            )),
            Entry::HostRoute { address, device, table } => Message::Route(self.route(
                RouteHeader {
                    address_family: AddressFamily::Inet,
                    destination_prefix_length: 32,
                    kind: RouteType::Unicast,
                    scope: RouteScope::Link,
                    ..RouteHeader::default()
                },
                [
                    RouteAttribute::Table(table),
                    RouteAttribute::Destination(RouteAddress::Inet(address)),
                    RouteAttribute::Oif(device),
                ],
            )),
            Entry::MarkRule { family, mark, mask, table, priority } => Message::Rule(self.rule(
                family,
                table,
                priority,
                [RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)],
            )),
            Entry::PortRule { from, port, table, priority } => {
                let sender = match from {
                    None => RuleAttribute::Iifname("lo".to_owned()),
                    Some(from) => RuleAttribute::Source(from.into()),
                };
                let ports = RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port });
                let mut rule =
                    self.rule(Family::V4, table, priority, [sender, RuleAttribute::IpProtocol(IpProtocol::Tcp), ports]);
                rule.header.src_len = if from.is_some() { 32 } else { 0 };
                Message::Rule(rule)
            }
        }
    }

    fn route(&self, mut header: RouteHeader, attributes: impl Into<Vec<RouteAttribute>>) -> RouteMessage {
        let mut message = RouteMessage::default();
        header.protocol = self.protocol;
        message.header = header;
        message.attributes = attributes.into();
        message
    }

    fn rule(
        &self,
        family: Family,
        table: u32,
        priority: u32,
        selectors: impl IntoIterator<Item = RuleAttribute>,
    ) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header = RuleHeader { family: family.number(), action: RuleAction::ToTable, ..RuleHeader::default() };
        message.attributes = vec![
            RuleAttribute::Protocol(self.protocol),
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
        ];
        message.attributes.extend(selectors);
        message
    }

    /// The entry that a message of a list is about, if it is one of the daemon's.
    fn read(&self, message: &RouteNetlinkMessage) -> Option<Entry> {
        match message {
            RouteNetlinkMessage::NewRule(rule) => self.read_rule(rule),
            RouteNetlinkMessage::NewRoute(route) => self.read_route(route),
            _ => None,
        }
    }

    fn read_rule(&self, rule: &RuleMessage) -> Option<Entry> {
        let header = &rule.header;
        let plain = header.action == RuleAction::ToTable
            && (header.dst_len, header.tos) == (0, 0)
            && header.flags == RuleFlags::empty();
        let family = Family::of(header.family).filter(|_| plain)?;
        let (mut protocol, mut table, mut priority) = (None, None, None);
        let mut selectors = Vec::new();
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Protocol(number) => protocol = Some(*number),
                RuleAttribute::Table(number) => table = Some(*number),
                RuleAttribute::Priority(number) => priority = Some(*number),
                // "No" in every rule that does not ask for it.
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                RuleAttribute::Other(other) if is_whole_port(other) => {}
                other => selectors.push(other),
            }
        }
        let (table, priority) = (table?, priority.unwrap_or(0));
        protocol.filter(|number| *number == self.protocol)?;
        // The kernel lists them in the order of their numbers in linux/fib_rules.h.
        selectors.sort_by_key(|attribute| attribute.kind());
        match (header.src_len, &*selectors) {
            (0, [RuleAttribute::FwMark(value), RuleAttribute::FwMask(bits)]) => {
                Some(Entry::MarkRule { family, mark: *value, mask: *bits, table, priority })
            }
            (
                bits,
                [
                    sender,
                    RuleAttribute::IpProtocol(IpProtocol::Tcp),
                    RuleAttribute::SourcePortRange(RulePortRange { start, end }),
                ],
            ) if family == Family::V4 && start == end => {
                let from = match (bits, sender) {
                    (0, RuleAttribute::Iifname(device)) if device == "lo" => None,
                    (32, RuleAttribute::Source(IpAddr::V4(from))) => Some(*from),
                    _ => return None,
                };
                Some(Entry::PortRule { from, port: *start, table, priority })
            }
            _ => None,
        }
    }

    fn read_route(&self, route: &RouteMessage) -> Option<Entry> {
        let header = &route.header;
        let family = Family::of(header.address_family).filter(|_| header.protocol == self.protocol)?;
        let (mut table, mut device, mut destination) = (u32::from(header.table), None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Destination(address) => destination = Some(address),
                RouteAttribute::Priority(_) | RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => {}
                _ => return None,
            }
        }
        match (header.kind, header.destination_prefix_length, destination, device?) {
            (RouteType::Local, 0, None, LOOPBACK) => Some(Entry::LocalRoute { family, table }),
            (RouteType::Unicast, 32, Some(RouteAddress::Inet(address)), device) => {
                Some(Entry::HostRoute { address: *address, device, table })
            }
            _ => None,
        }
    }
}

/// Linux 6.15 and later say of a rule about one port that all 16 bits of it count (`FRA_SPORT_MASK`).
fn is_whole_port(attribute: &DefaultNla) -> bool {
    const FRA_SPORT_MASK: u16 = 28;
    let mut value = [0; 2];
    if attribute.kind() != FRA_SPORT_MASK || attribute.value_len() != value.len() {
        return false;
    }
    attribute.emit_value(&mut value);
    value == [0xff; 2]
}

enum Message {
    Rule(RuleMessage),
    Route(RouteMessage),
}

fn surprise(what: &str, answer: &RouteNetlinkMessage) -> Error {
    Error::System { what: what.to_owned(), source: io::Error::other(format!("the kernel answered {answer:?}")) }
}
