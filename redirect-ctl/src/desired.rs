//! What the operator wants: subscribers, classes, relays, interfaces and gateways, in types that hold valid values only.
//!
//! The API, the configuration file, the store and the planner all speak these types; the checks live in the constructors, once. An
//! [`Invalid`] says what is wrong and what would be right, without naming where it was found: the caller knows whether that was a JSON
//! pointer, a key of the file or a flag.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    str::FromStr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use redirect_common::{address, policy};
pub use redirect_relay::gateway::Name;
use redirect_relay::{
    gateway::{Gateway, Group, NameInvalid},
    route::Routing,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    clients::Clients,
    configuration::Standing,
    dataplane::{ClassId, Hook, RelayId, Role, UnknownWord, words},
    limits,
    smtp::Smtp,
    store::Revisions,
};

/// The relay that the daemon itself runs; its endpoints are the file's `relay.listen`.
pub const EMBEDDED_RELAY: &str = "embedded";
/// The gateway or group of every class that names none.
pub const DEFAULT_GATEWAY: &str = "default";

/// A value that cannot be, in one sentence with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl From<UnknownWord> for Invalid {
    fn from(error: UnknownWord) -> Self {
        Self(error.to_string())
    }
}

impl From<NameInvalid> for Invalid {
    fn from(error: NameInvalid) -> Self {
        Self(error.to_string())
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

words! {
    /// What is done with a subscriber's port-25 flows.
    Action {
        Redirect = "redirect",
        Pass = "pass",
        Block = "block",
        Reject = "reject",
    }
}

words! {
    /// What is done with a flow that should be redirected and cannot be.
    Fallback {
        Pass = "pass",
        Block = "block",
        Reject = "reject",
    }
}

words! {
    /// What becomes of a live flow whose subscriber gets another class, or whose class gets another action.
    OnClassChange {
        Reset = "reset",
        Keep = "keep",
    }
}

words! {
    /// What is done with a new flow that should be redirected while no daemon looks after the relays.
    OnDaemonDown {
        /// It is redirected as before.
        Keep = "keep",
        Pass = "pass",
        Block = "block",
        Reject = "reject",
    }
}

words! {
    /// How a redirected flow reaches its relay.
    #[derive(Default)]
    Delivery {
        /// The best way that the kernel offers.
        #[default]
        Auto = "auto",
        /// By rewriting destination address and port.
        Rewrite = "rewrite",
        /// By handing it to the relay's socket on this host as it is.
        Steer = "steer",
    }
}

words! {
    /// Who said what a subscriber is.
    Origin {
        Operator = "operator",
        Portal = "portal",
        Radius = "radius",
        Dhcp = "dhcp",
    }
}

words! {
    /// Who owns a resource: the configuration file, or the API and the store.
    Source {
        File = "file",
        Api = "api",
    }
}

words! {
    /// Whether new flows may go to a relay. Those that it has go on in any case.
    RelayStatus {
        Enabled = "enabled",
        /// No new flows; its health is still looked after.
        Draining = "draining",
        /// No new flows, and nobody asks whether it lives.
        Disabled = "disabled",
    }
}

impl From<Action> for policy::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Redirect => Self::Redirect,
            Action::Pass => Self::Pass,
            Action::Block => Self::Block,
            Action::Reject => Self::Reject,
        }
    }
}

impl From<Fallback> for policy::Fallback {
    fn from(fallback: Fallback) -> Self {
        match fallback {
            Fallback::Pass => Self::Pass,
            Fallback::Block => Self::Block,
            Fallback::Reject => Self::Reject,
        }
    }
}

impl From<OnDaemonDown> for policy::OnDaemonDown {
    fn from(on_daemon_down: OnDaemonDown) -> Self {
        match on_daemon_down {
            OnDaemonDown::Keep => Self::Keep,
            OnDaemonDown::Pass => Self::Pass,
            OnDaemonDown::Block => Self::Block,
            OnDaemonDown::Reject => Self::Reject,
        }
    }
}

impl From<OnClassChange> for policy::OnClassChange {
    fn from(on_class_change: OnClassChange) -> Self {
        match on_class_change {
            OnClassChange::Reset => Self::Reset,
            OnClassChange::Keep => Self::Keep,
        }
    }
}

/// A type that is text on the wire: written by `Display`, read by `FromStr`, with an example for the API's description.
macro_rules! text_on_the_wire {
    ($($name:ident = $example:literal),+ $(,)?) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )+};
}

pub(crate) use text_on_the_wire;

text_on_the_wire! {
    InterfaceName = "lan0",
    Prefix = "10.20.0.0/16",
    Counted = "10.20.3.7",
    Time = "2026-12-01T00:00:00Z",
}

/// Name of a network device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = Invalid;

    /// The kernel's rule (`dev_valid_name`): no '/', ':' or white space, neither "." nor "..".
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let forbidden =
            |byte: u8| matches!(byte, b'/' | b':') || byte.is_ascii_whitespace() || !byte.is_ascii_graphic();
        if text.is_empty()
            || text.len() > limits::INTERFACE_BYTES_MAX
            || text.bytes().any(forbidden)
            || matches!(text, "." | "..")
        {
            return invalid(format!(
                "{text:?} cannot be the name of an interface: give one of `ip link`, at most {} characters",
                limits::INTERFACE_BYTES_MAX
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A name by RFC 1123 section 2.1; the last label is not all digits, so that a mistyped address is not taken for a name.
pub fn host_name(text: &str) -> Result<String, Invalid> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = name.rsplit('.').next().is_none_or(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > limits::HOST_BYTES_MAX || last_is_number || !name.split('.').all(label_ok) {
        return invalid(format!("{text:?} is neither an IP address nor a host name"));
    }
    Ok(name.to_ascii_lowercase())
}

/// A prefix without bits beyond its length, as [`prefix`] reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub IpNet);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        prefix(text).map(Self)
    }
}

/// Who counts as one subscriber where limits and locks are concerned: an IPv4 address, or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted(pub address::Host);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_ip() {
            address @ IpAddr::V4(_) => address.fmt(f),
            address @ IpAddr::V6(_) => write!(f, "{address}/64"),
        }
    }
}

impl FromStr for Counted {
    type Err = Invalid;

    /// An address, or what `Display` writes; `_` may stand for the slash.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{text:?} is not an address: give one such as 10.20.3.7 or fd00:20::7"));
        let prefix = prefix(text).map_err(|_| wrong())?;
        match (prefix, prefix.prefix_len()) {
            (IpNet::V4(_), 32) | (IpNet::V6(_), 64 | 128) => Ok(Self(prefix.addr().into())),
            _ => Err(wrong()),
        }
    }
}

/// A point in time with whole seconds: RFC 3339 on the wire, seconds since the epoch inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
}

impl Time {
    pub fn now() -> Self {
        Self { seconds: Timestamp::now().as_second() }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_second(self.seconds) {
            Ok(time) => time.fmt(f),
            Err(_) => self.seconds.fmt(f),
        }
    }
}

impl FromStr for Time {
    type Err = Invalid;

    /// Fractions of a second are cut off.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.parse::<Timestamp>()
            .map(|time| Self { seconds: time.as_second() })
            .map_err(|_| Invalid(format!("{text:?} is not a time: give RFC 3339 such as 2026-12-01T00:00:00Z")))
    }
}

/// Parses a prefix as people write it: `10.0.0.0/8`, `10.0.0.0_8` (safe in a path), or a bare address for one host.
pub fn prefix(text: &str) -> Result<IpNet, Invalid> {
    let wrong =
        || Invalid(format!("{text:?} is not a prefix: give ADDRESS/LENGTH such as 10.20.0.0/16, or one address"));
    let prefix = match text.split_once(['/', '_']) {
        None => IpNet::from(text.parse::<IpAddr>().map_err(|_| wrong())?),
        Some((address, length)) => {
            // `u8::from_str` takes "+8" and "08"; one prefix has one spelling.
            if length.starts_with(['+', '0']) && length != "0" {
                return Err(wrong());
            }
            IpNet::new(address.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?)
                .map_err(|_| wrong())?
        }
    };
    if let IpNet::V6(v6) = prefix
        && v6.addr().to_ipv4_mapped().is_some()
        && v6.prefix_len() >= 96
    {
        return invalid(format!(
            "{text:?} is an IPv4 address in IPv6 clothing; packets never carry it, give the IPv4 form"
        ));
    }
    if prefix.addr() != prefix.network() {
        return invalid(format!("{prefix} has bits set beyond its length; the network is {}", prefix.trunc()));
    }
    Ok(prefix)
}

/// A relay's endpoint must be an address that a subscriber's packet can be sent on to, unless packets are steered to its sockets.
pub fn endpoint(address: SocketAddr, delivery: Delivery) -> Result<(), Invalid> {
    let remedy = "give an address of an interface of this router or of the relay's host";
    let ip = address.ip();
    let fault = match ip {
        _ if address.port() == 0 => return invalid(format!("{address} has no port; give one from 1 to 65535")),
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_loopback() && delivery == Delivery::Steer => return Ok(()),
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 clothing",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    invalid(format!("{ip} is {fault}, which redirected packets cannot reach; {remedy}"))
}

/// A relay with its stable number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    pub id: RelayId,
    pub spec: RelaySpec,
    pub source: Source,
}

/// A relay as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySpec {
    pub name: Name,
    pub ipv4: Option<SocketAddrV4>,
    pub ipv6: Option<SocketAddrV6>,
    pub delivery: Delivery,
    pub status: RelayStatus,
}

impl RelaySpec {
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.ipv4.map(SocketAddr::V4).into_iter().chain(self.ipv6.map(SocketAddr::V6))
    }
}

/// How large a part of a class's new flows a relay gets, beside the others of the pool: 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "i64", into = "u8")]
pub struct Weight(u8);

impl Weight {
    pub const MAX: u8 = 100;

    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

impl From<Weight> for u8 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl TryFrom<i64> for Weight {
    type Error = Invalid;

    fn try_from(weight: i64) -> Result<Self, Invalid> {
        match u8::try_from(weight) {
            Ok(weight @ 1..=Self::MAX) => Ok(Self(weight)),
            _ => invalid(format!("{weight} is out of range; give a weight from 1 to {}", Self::MAX)),
        }
    }
}

/// A relay of a class's pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolRelay {
    pub name: Name,
    /// Its part of the new flows, beside the other relays' weights.
    #[serde(default)]
    #[schema(value_type = u8, minimum = 1, maximum = 100, default = 1)]
    pub weight: Weight,
}

impl fmt::Display for PoolRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight.get() {
            1 => self.name.fmt(f),
            weight => write!(f, "{}:{weight}", self.name),
        }
    }
}

impl FromStr for PoolRelay {
    type Err = Invalid;

    /// `NAME`, or `NAME:WEIGHT`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (name, weight) = match text.split_once(':') {
            None => (text, Weight::default()),
            Some((name, weight)) => {
                let weight = weight.parse::<i64>().ok().map(Weight::try_from);
                (name, weight.unwrap_or_else(|| invalid(format!("{text:?} is not NAME or NAME:WEIGHT")))?)
            }
        };
        Ok(Self { name: name.parse()?, weight })
    }
}

/// What one subscriber (see [`Counted`]) may do; null stands for "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// New connections per second.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub rate: Option<u32>,
    /// New connections at once, before the rate counts; with a rate, where not given, the same number.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub burst: Option<u32>,
    /// Redirected connections that may be open at the same time.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub open_max: Option<u32>,
    /// Connections refused within a minute for one of the limits above, after which the subscriber is locked.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub lock_after: Option<u32>,
    /// How long a lock lasts, in seconds; with `lock_after`, where not given, 600.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub lock_s: Option<u32>,
}

impl Limits {
    /// The limits with their defaults, as a class with this action may have them; else the member that is wrong, and why.
    pub fn checked(self, action: Action) -> Result<Self, (&'static str, Invalid)> {
        for (member, value, most) in [
            ("rate", self.rate, limits::COUNT_LIMIT_MAX),
            ("burst", self.burst, limits::COUNT_LIMIT_MAX),
            ("open_max", self.open_max, limits::COUNT_LIMIT_MAX),
            ("lock_after", self.lock_after, limits::COUNT_LIMIT_MAX),
            ("lock_s", self.lock_s, limits::LOCK_S_MAX),
        ] {
            if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
                return Err((
                    member,
                    Invalid(format!("{value} is out of range; give 1 to {most}, or null for no limit")),
                ));
            }
        }
        let fault = if self.burst.is_some() && self.rate.is_none() {
            ("burst", "means nothing without a rate; give rate as well, or leave it out")
        } else if self.open_max.is_some() && action == Action::Pass {
            ("open_max", "counts redirected connections, and action pass has none; leave it out")
        } else if self.lock_after.is_some() && self.rate.or(self.open_max).is_none() {
            ("lock_after", "counts what other limits refuse; give rate or open_max as well, or leave it out")
        } else if self.lock_s.is_some() && self.lock_after.is_none() {
            ("lock_s", "means nothing without lock_after; give lock_after as well, or leave it out")
        } else {
            return Ok(Self {
                burst: self.burst.or(self.rate),
                lock_s: self.lock_s.or(self.lock_after.map(|_| limits::LOCK_S_DEFAULT)),
                ..self
            });
        };
        Err((fault.0, Invalid(fault.1.to_owned())))
    }
}

impl From<Limits> for policy::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            rate: limits.rate.unwrap_or(0),
            burst: limits.burst.unwrap_or(0),
            open_max: limits.open_max.unwrap_or(0),
            lock_after: limits.lock_after.unwrap_or(0),
            lock_s: limits.lock_s.unwrap_or(0),
        }
    }
}

/// A class with its stable number and those of its relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    pub id: ClassId,
    /// Of [`ClassSpec::relays`], in their order.
    pub relay_ids: Vec<RelayId>,
    pub spec: ClassSpec,
}

/// A class as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassSpec {
    pub name: Name,
    pub action: Action,
    /// The pool that redirected flows are shared out among; [`checked_pool`] says which there may be.
    pub relays: Vec<PoolRelay>,
    pub on_relay_down: Fallback,
    pub on_class_change: OnClassChange,
    pub on_daemon_down: OnDaemonDown,
    pub limits: Limits,
    /// A gateway or a group.
    pub gateway: Option<Name>,
    pub smtp: Smtp,
}

impl ClassSpec {
    /// Whether flows of the class may come to the embedded relay.
    pub fn meets_embedded_relay(&self) -> bool {
        self.action == Action::Redirect && self.relays.iter().any(|relay| relay.name.as_str() == EMBEDDED_RELAY)
    }
}

/// A class's pool if there may be such, else the pointer (RFC 6901, below `relays`) to what is wrong, and why.
pub fn checked_pool(relays: Vec<PoolRelay>, action: Action) -> Result<Vec<PoolRelay>, (String, Invalid)> {
    if action == Action::Redirect && relays.is_empty() {
        let text = format!("action redirect needs a relay, such as [{{\"name\": {EMBEDDED_RELAY:?}}}]");
        return Err((String::new(), Invalid(text)));
    }
    if relays.len() > limits::POOL_RELAYS_MAX {
        let text = format!("has {} relays; give {} at most", relays.len(), limits::POOL_RELAYS_MAX);
        return Err((String::new(), Invalid(text)));
    }
    let twice = (1..relays.len()).find(|&index| relays[..index].iter().any(|other| other.name == relays[index].name));
    if let Some(index) = twice {
        let text = format!("{} is listed twice; give it once, with a weight", relays[index].name);
        return Err((format!("/{index}/name"), Invalid(text)));
    }
    Ok(relays)
}

/// An interface that the programs are to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: InterfaceName,
    pub role: Role,
    pub hook: Hook,
    /// Whether subscribers with addresses of other networks are served.
    pub foreign_sources: bool,
    pub source: Source,
}

/// The small tables at one revision, where mail goes, and what clients meet. Subscribers stay in the store: there may be a million.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub revision: u64,
    pub tables: Arc<Tables>,
    /// When each resource of the tables, and each certificate, was changed last.
    pub revisions: Arc<Revisions>,
    /// What [`crate::routes::spec`] makes of the classes, gateways, groups, routes and managed domains.
    pub routing: Arc<Routing>,
    /// What the classes' rules, certificates and users make together.
    pub clients: Arc<Clients>,
    /// Of the configuration as a whole.
    pub standing: Standing,
}

/// Routing and clients are made of what the revision names.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && self.tables == other.tables
    }
}

/// See [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub relays: BTreeMap<RelayId, Relay>,
    pub classes: BTreeMap<ClassId, Class>,
    pub gateways: BTreeMap<Name, Gateway>,
    pub groups: BTreeMap<Name, Group>,
    pub interfaces: BTreeMap<InterfaceName, Interface>,
}

impl Tables {
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.values().find(|class| class.spec.name.as_str() == name)
    }

    pub fn relay(&self, name: &str) -> Option<&Relay> {
        self.relays.values().find(|relay| relay.spec.name.as_str() == name)
    }

    /// Endpoints of the daemon's own relay.
    pub fn own_endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.relay(EMBEDDED_RELAY).into_iter().flat_map(|relay| relay.spec.endpoints())
    }
}

/// Sort key of a prefix, and its form in the store: family, address, length. All of a family's prefixes inside another one are
/// neighbours, so that "within" is a range.
pub fn prefix_key(prefix: &IpNet) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    match prefix {
        IpNet::V4(v4) => {
            key.push(4);
            key.extend(v4.network().octets());
        }
        IpNet::V6(v6) => {
            key.push(6);
            key.extend(v6.network().octets());
        }
    }
    key.push(prefix.prefix_len());
    key
}

/// The reverse of [`prefix_key`].
pub fn prefix_from_key(key: &[u8]) -> Option<IpNet> {
    match *key {
        [4, a, b, c, d, length] => Some(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).ok()?.into()),
        [6, ref rest @ .., length] => {
            let octets: [u8; 16] = rest.try_into().ok()?;
            Some(Ipv6Net::new(Ipv6Addr::from(octets), length).ok()?.into())
        }
        _ => None,
    }
}

/// First and last key of the prefixes inside `prefix`, itself included.
pub fn keys_within(prefix: &IpNet) -> (Vec<u8>, Vec<u8>) {
    let last = IpNet::from(prefix.broadcast());
    (prefix_key(prefix), prefix_key(&last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_as_people_write_them() {
        let cases: &[(&str, Result<&str, &str>)] = &[
            ("10.20.0.0/16", Ok("10.20.0.0/16")),
            ("10.20.0.0_16", Ok("10.20.0.0/16")),
            ("10.20.3.7", Ok("10.20.3.7/32")),
            ("fd00::1", Ok("fd00::1/128")),
            ("FD00:0:0::/48", Ok("fd00::/48")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("::/0", Ok("::/0")),
            ("10.20.3.7/16", Err("10.20.3.7/16 has bits set beyond its length; the network is 10.20.0.0/16")),
            ("10.20.0.0/33", Err("is not a prefix")),
            ("10.20.0.0/+8", Err("is not a prefix")),
            ("10.20.0.0/08", Err("is not a prefix")),
            ("10.20.0.0/", Err("is not a prefix")),
            ("10.20.0/16", Err("is not a prefix")),
            ("", Err("is not a prefix")),
            ("::ffff:10.0.0.1", Err("IPv4 address in IPv6 clothing")),
            ("bücher/8", Err("is not a prefix")),
        ];
        for (text, expected) in cases {
            match (prefix(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), *expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.0.contains(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn names_hosts_and_endpoints() {
        for good in ["configured", "a", "Gold-2.b_c", "9"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        for good in ["lan0", "eth0.100", "ppp0@x", "br-lan"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx", "eth0:1", "\u{7}"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
        for good in ["mx.example.net", "mx", "MX.Example.NET."] {
            assert_eq!(host_name(good), Ok(good.trim_end_matches('.').to_ascii_lowercase()));
        }
        for bad in ["", "300.1.1.1", "10.0.0", "::", "a..b", "-a.b", "a_b", "a b", "[fd00::1]"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
        for good in ["10.0.0.1:2525", "[fd00::1]:25"] {
            assert_eq!(endpoint(good.parse().unwrap(), Delivery::Auto), Ok(()), "{good}");
        }
        for bad in [
            "127.0.0.1:25",
            "0.0.0.0:25",
            "[::]:25",
            "[::1]:25",
            "10.0.0.1:0",
            "[fe80::1]:25",
            "[::ffff:10.0.0.1]:25",
            "224.0.0.1:25",
        ] {
            assert!(endpoint(bad.parse().unwrap(), Delivery::Auto).is_err(), "{bad}");
            let loopback = bad.parse::<SocketAddr>().unwrap().ip().is_loopback();
            assert_eq!(endpoint(bad.parse().unwrap(), Delivery::Steer).is_ok(), loopback, "{bad}");
        }
    }

    #[test]
    fn limits_get_their_defaults_or_say_which_member_is_wrong() {
        let none = Limits::default();
        let some = |rate, burst, open_max, lock_after, lock_s| Limits { rate, burst, open_max, lock_after, lock_s };
        for (given, action, expected) in [
            (none, Action::Redirect, Ok(none)),
            (some(Some(5), None, None, None, None), Action::Pass, Ok(some(Some(5), Some(5), None, None, None))),
            (
                some(Some(5), Some(9), Some(3), Some(50), None),
                Action::Redirect,
                Ok(some(Some(5), Some(9), Some(3), Some(50), Some(600))),
            ),
            (
                some(None, None, Some(3), Some(1), Some(1)),
                Action::Block,
                Ok(some(None, None, Some(3), Some(1), Some(1))),
            ),
            (some(Some(0), None, None, None, None), Action::Redirect, Err("rate")),
            (some(Some(1_000_001), None, None, None, None), Action::Redirect, Err("rate")),
            (some(None, Some(5), None, None, None), Action::Redirect, Err("burst")),
            (some(None, None, Some(3), None, None), Action::Pass, Err("open_max")),
            (some(None, None, None, Some(3), None), Action::Redirect, Err("lock_after")),
            (some(Some(5), None, None, None, Some(60)), Action::Redirect, Err("lock_s")),
            (some(Some(5), None, None, Some(3), Some(2_592_001)), Action::Redirect, Err("lock_s")),
        ] {
            assert_eq!(given.checked(action).map_err(|(member, _)| member), expected, "{given:?} with {action}");
        }
        let kernel = policy::Limits::from(some(Some(5), Some(9), None, None, None));
        assert_eq!(kernel, policy::Limits { rate: 5, burst: 9, ..policy::Limits::default() });
    }

    #[test]
    fn relays_of_a_pool_as_people_write_them() {
        for (text, expected) in [("a", Some(("a", 1))), ("a:3", Some(("a", 3))), ("mx.1:100", Some(("mx.1", 100)))] {
            let found = text.parse::<PoolRelay>().ok();
            assert_eq!(found.as_ref().map(|found| (found.name.as_str(), found.weight.get())), expected, "{text}");
            assert_eq!(found.unwrap().to_string(), text);
        }
        for bad in ["", ":3", "a:", "a:0", "a:101", "a:-1", "a:b", "a:3:4", "a b"] {
            assert!(bad.parse::<PoolRelay>().is_err(), "{bad}");
        }
        let pool = |text: &str| text.split(' ').map(|relay| relay.parse().unwrap()).collect::<Vec<PoolRelay>>();
        let fault = |relays, action| checked_pool(relays, action).map_err(|(pointer, _)| pointer).err();
        let many = |count| pool(&(0..count).map(|number| format!("r{number}")).collect::<Vec<_>>().join(" "));
        assert_eq!(fault(pool("a b:3"), Action::Redirect), None);
        assert_eq!(fault(vec![], Action::Pass), None);
        assert_eq!(fault(vec![], Action::Redirect), Some(String::new()));
        assert_eq!(fault(pool("a b a:2"), Action::Redirect), Some("/2/name".to_owned()));
        assert_eq!(fault(many(limits::POOL_RELAYS_MAX), Action::Redirect), None);
        assert_eq!(fault(many(limits::POOL_RELAYS_MAX + 1), Action::Redirect), Some(String::new()));
    }

    #[test]
    fn ipv6_addresses_are_counted_by_their_64() {
        for (text, expected) in [
            ("10.20.3.7", Some("10.20.3.7")),
            ("10.20.3.7_32", Some("10.20.3.7")),
            ("fd00:20::7", Some("fd00:20::/64")),
            ("fd00:20:0:0:ffff::", Some("fd00:20::/64")),
            ("fd00:20::/64", Some("fd00:20::/64")),
            ("fd00:20::_64", Some("fd00:20::/64")),
            ("10.20.3.0/24", None),
            ("fd00:20::/48", None),
            ("fd00:20::/80", None),
            ("::ffff:10.0.0.1", None),
            ("somebody", None),
        ] {
            assert_eq!(text.parse::<Counted>().ok().map(|counted| counted.to_string()).as_deref(), expected, "{text}");
        }
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0..=32_u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length).unwrap().trunc()),
            (any::<u128>(), 0..=128_u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from(bits).into(), length).unwrap().trunc()),
        ]
    }

    proptest! {
        #[test]
        fn a_key_leads_back_to_its_prefix(prefix in any_prefix()) {
            prop_assert_eq!(prefix_from_key(&prefix_key(&prefix)), Some(prefix));
        }

        #[test]
        fn within_is_a_range_of_keys(outer in any_prefix(), other in any_prefix(), longer in 0..=128_u8) {
            // Random prefixes hardly ever contain each other, so one is derived from the other half of the time.
            let derived = IpNet::new(outer.addr(), longer.clamp(0, outer.max_prefix_len())).unwrap().trunc();
            let (first, last) = keys_within(&outer);
            for inner in [other, derived] {
                let key = prefix_key(&inner);
                prop_assert_eq!(first <= key && key <= last, outer.contains(&inner), "{} in {}", inner, outer);
            }
        }
    }
}
