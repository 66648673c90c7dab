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
use redirect_common::policy;

use crate::{
    dataplane::{ClassId, Hook, RelayId, Role, UnknownWord, words},
    limits,
};

/// The relay that the daemon itself runs; its endpoints are the file's `relay.listen`.
pub const EMBEDDED_RELAY: &str = "embedded";
/// The gateway of every class that names none.
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
    /// How a redirected flow reaches its relay.
    Delivery {
        /// The best way that the kernel offers.
        Auto = "auto",
        /// By rewriting destination address and port.
        Rewrite = "rewrite",
    }
}

words! {
    /// Who said that a subscriber is what it is.
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
    /// Whether mail may go to a gateway.
    GatewayStatus {
        Enabled = "enabled",
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

text_on_the_wire! {
    Name = "configured",
    InterfaceName = "lan0",
    Host = "mx.example.net",
    Prefix = "10.20.0.0/16",
    Time = "2026-12-01T00:00:00Z",
}

/// Name of a class, relay or gateway: safe in a path, a metric label and a shell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let follows = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts_well || !text.bytes().all(follows) || text.len() > limits::NAME_BYTES_MAX {
            return invalid(format!(
                "{text:?} is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, at most {} characters",
                limits::NAME_BYTES_MAX
            ));
        }
        Ok(Self(text.into()))
    }
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

/// Where a gateway is: an address, or a name that is resolved for each session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Address(IpAddr),
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

impl FromStr for Host {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse::<IpAddr>() {
            if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return invalid(format!("{address} is not the address of one host"));
            }
            return Ok(Self::Address(address));
        }
        host_name(text).map(Self::Name)
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

/// A relay's endpoint must be an address that a subscriber's packet can be sent on to.
pub fn endpoint(address: SocketAddr) -> Result<(), Invalid> {
    let remedy = "give an address of an interface of this router or of the relay's host";
    let ip = address.ip();
    let fault = match ip {
        _ if address.port() == 0 => return invalid(format!("{address} has no port; give one from 1 to 65535")),
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 clothing",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    invalid(format!("{ip} is {fault}, which redirected packets cannot reach; {remedy}"))
}

/// A subscriber: a prefix and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscriber {
    pub prefix: IpNet,
    pub class: Name,
    pub origin: Origin,
    /// Seconds since the epoch.
    pub expires_s: Option<i64>,
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
}

impl RelaySpec {
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.ipv4.map(SocketAddr::V4).into_iter().chain(self.ipv6.map(SocketAddr::V6))
    }
}

/// A class with its stable number and its relay's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    pub id: ClassId,
    /// 0 where the class has no relay.
    pub relay_id: RelayId,
    pub spec: ClassSpec,
}

/// A class as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassSpec {
    pub name: Name,
    pub action: Action,
    pub relay: Option<Name>,
    pub on_relay_down: Fallback,
    pub gateway: Option<Name>,
}

/// An upstream SMTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub name: Name,
    pub host: Host,
    pub port: u16,
    pub description: String,
    pub status: GatewayStatus,
}

/// An interface that the programs are to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: InterfaceName,
    pub role: Role,
    pub hook: Hook,
    pub source: Source,
}

/// The small tables at one revision. Subscribers stay in the store: there may be a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: u64,
    pub tables: Arc<Tables>,
}

/// See [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub relays: BTreeMap<RelayId, Relay>,
    pub classes: BTreeMap<ClassId, Class>,
    pub gateways: BTreeMap<Name, Gateway>,
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
        for good in ["10.0.0.1", "fd00::1", "mx.example.net", "mx", "MX.Example.NET."] {
            assert!(good.parse::<Host>().is_ok(), "{good}");
        }
        for bad in ["", "300.1.1.1", "10.0.0", "0.0.0.0", "::", "224.0.0.1", "a..b", "-a.b", "a_b", "a b", "[fd00::1]"]
        {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
        for good in ["10.0.0.1:2525", "[fd00::1]:25"] {
            assert_eq!(endpoint(good.parse().unwrap()), Ok(()), "{good}");
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
            assert!(endpoint(bad.parse().unwrap()).is_err(), "{bad}");
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
