//! What the operator says of a gateway, in types that serialise for the store, the API and the CLI.
//!
//! A value that deserialised may still contradict itself (an account over cleartext that nobody allowed, a pin without
//! a digest): [`Gateway::check`] says so, and nothing else in this crate takes a gateway that did not pass it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{Domain, InvalidDomain},
    gateway::secret::Secret,
    limits::{
        ACCOUNT_TEXT_MAX, BLOCK_PATTERN_MAX, BLOCK_PATTERNS_MAX, DESCRIPTION_MAX, EGRESS_ADDRESSES_MAX, NAME_MAX,
        PRIORITY_MAX, PRIORITY_MIN, WEIGHT_MAX,
    },
    quota::Rate,
};

/// Name of a gateway or of a group: safe in a path, a metric label and a shell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, at most {NAME_MAX}")]
pub struct NameInvalid {
    pub text: String,
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameInvalid;

    fn from_str(text: &str) -> Result<Self, NameInvalid> {
        let well = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'_' | b'-');
        let begins_well = text.bytes().next().is_some_and(|octet| octet.is_ascii_alphanumeric());
        if begins_well && text.bytes().all(well) && text.len() <= NAME_MAX {
            Ok(Self(text.into()))
        } else {
            Err(NameInvalid { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameInvalid;

    fn try_from(text: String) -> Result<Self, NameInvalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a gateway is: an address, or a name that is resolved as often as its records say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    Address(IpAddr),
    Name(Domain),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressInvalid {
    #[error("{0} is not the address of one host")]
    NotOneHost(IpAddr),
    /// The last label is all digits: a mistyped address.
    #[error("{0:?} is neither an IP address nor a host name")]
    Number(String),
    #[error(transparent)]
    Domain(#[from] InvalidDomain),
}

impl FromStr for Host {
    type Err = AddressInvalid;

    fn from_str(text: &str) -> Result<Self, AddressInvalid> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return Err(AddressInvalid::NotOneHost(ip));
            }
            return Ok(Self::Address(ip));
        }
        let name: Domain = text.strip_suffix('.').unwrap_or(text).parse()?;
        let last = name.as_str().rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err(AddressInvalid::Number(text.to_owned()));
        }
        Ok(Self::Name(name))
    }
}

impl TryFrom<String> for Host {
    type Error = AddressInvalid;

    fn try_from(text: String) -> Result<Self, AddressInvalid> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An upstream SMTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = GatewaySpec))]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a permission or a protocol of its own")]
pub struct Gateway {
    pub name: Name,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub address: Host,
    #[serde(default = "smtp_port")]
    pub port: u16,
    #[serde(default)]
    pub encryption: Encryption,
    #[serde(default)]
    pub verification: Verification,
    /// The name that the certificate must carry and that is sent as SNI; else the host name of `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<Domain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    #[serde(default)]
    pub status: Status,
    /// Its share among the members of a group, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u16,
    /// The messages that it takes, by priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priorities: Option<PriorityRange>,
    #[serde(default)]
    pub limits: GatewayLimits,
    #[serde(default)]
    pub egress: Egress,
    /// Sends a PROXY header, version 2, with the client's address at the start of each connection.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Tells the client's address with XCLIENT; the gateway must offer it.
    #[serde(default)]
    pub xclient: bool,
    /// Loopback, link-local and metadata addresses are allowed as its address.
    #[serde(default)]
    pub allow_local: bool,
    /// Mail that came over TLS may go to it in clear.
    #[serde(default)]
    pub allow_downgrade: bool,
}

const fn smtp_port() -> u16 {
    25
}

const fn one() -> u16 {
    1
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    None,
    /// Cleartext if the gateway does not offer STARTTLS; a failed handshake is an error all the same.
    #[default]
    Starttls,
    StarttlsRequired,
    /// TLS from the first octet (RFC 8314 section 3.3, mostly port 465).
    Implicit,
}

/// Whom the gateway's certificate must convince.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "mode", deny_unknown_fields)]
pub enum Verification {
    /// Anybody: encryption against listeners only. With braces, because serde takes members that a variant without them does not know.
    None {},
    /// A certificate of one of these authorities, for the name of the gateway, within its dates.
    Ca {
        /// PEM; the system's authorities if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
        file: Option<PathBuf>,
    },
    /// The gateway's own certificate must be this one, whoever signed it, whatever name and dates it has.
    Pin { sha256: Pin },
}

impl Default for Verification {
    fn default() -> Self {
        Self::None {}
    }
}

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` prints it, with or without colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: Vec<u8> = text.bytes().filter(|octet| *octet != b':').collect();
        let invalid = || format!("{text:?} is not a SHA-256 fingerprint of 64 hexadecimal digits");
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut pin = [0; 32];
        for (octet, pair) in pin.iter_mut().zip(digits.chunks(2)) {
            let digit = |index: usize| char::from(pair[index]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *octet = digit(0).zip(digit(1)).map(|(high, low)| high << 4 | low).ok_or_else(invalid)?;
        }
        Ok(Self(pin))
    }
}

impl TryFrom<String> for Pin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who we are to the gateway. Serialises without the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Account {
    #[serde(default)]
    pub mechanism: Mechanism,
    pub username: String,
    /// Empty: not said here. [`Gateway::check`] wants one.
    #[serde(default, skip_serializing)]
    #[cfg_attr(feature = "schema", schema(value_type = String, write_only))]
    pub password: Secret,
    /// The password may cross a connection without TLS, or with a server that nobody verified.
    #[serde(default)]
    pub allow_unprotected: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Mechanism {
    #[default]
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "LOGIN")]
    Login,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
}

impl Mechanism {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = GatewayStatus))]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Enabled,
    /// Gets no mail.
    Disabled,
    /// Gets no new messages; those under way go on.
    Draining,
}

/// Priorities of messages (RFC 6710: -9 to 9, 0 is the usual one), both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PriorityRange {
    pub min: i8,
    pub max: i8,
}

impl PriorityRange {
    pub const fn contains(self, priority: i8) -> bool {
        self.min <= priority && priority <= self.max
    }

    pub(crate) const fn is_valid(self) -> bool {
        PRIORITY_MIN <= self.min && self.min <= self.max && self.max <= PRIORITY_MAX
    }
}

/// `None`: as much as it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GatewayLimits {
    /// Connections open at one time, idle ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_second_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipients_per_message_max: Option<u32>,
    #[serde(default, skip_serializing_if = "GatewayQuota::is_empty")]
    pub quota: GatewayQuota,
}

/// What may go to it over time; what is beyond goes to another gateway of the group, or its client is told to come back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct GatewayQuota {
    /// Connections made for mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<Rate>,
    /// Charged when a message is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub octets: Option<Rate>,
}

impl GatewayQuota {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The addresses that connections to the gateway leave from. Without any, the kernel chooses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Egress {
    #[serde(default)]
    pub strategy: Strategy,
    #[serde(default)]
    pub addresses: Vec<EgressAddress>,
    /// Parts of a refusal (any letter case) that mean "this address is on a block list".
    #[serde(default)]
    pub block_patterns: Vec<String>,
    /// How long an address is left out after such a refusal, or after the kernel said that it is not ours.
    #[serde(default = "suspension")]
    pub suspension_s: u32,
}

const fn suspension() -> u32 {
    600
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            addresses: Vec::new(),
            block_patterns: Vec::new(),
            suspension_s: suspension(),
        }
    }
}

impl Egress {
    pub fn suspension(&self) -> Duration {
        Duration::from_secs(self.suspension_s.into())
    }

    /// Whether a refusal speaks of a block list.
    pub fn is_block(&self, refusal: &str) -> bool {
        let refusal = refusal.to_ascii_lowercase();
        self.block_patterns.iter().any(|pattern| refusal.contains(&pattern.to_ascii_lowercase()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EgressAddress {
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "192.0.2.9"))]
    pub address: IpAddr,
    /// Our name in EHLO on connections from this address; else the relay's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helo: Option<Domain>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// A subscriber keeps its address as long as that is not suspended.
    #[default]
    Sticky,
    RoundRobin,
    /// The first one that is not suspended.
    OnBlock,
}

/// Gateways that stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: Name,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default)]
    pub balance: Balance,
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub gateway: Name,
    /// Members of a higher rank are used only when none of a lower rank can be.
    #[serde(default)]
    pub rank: u16,
}

/// How mail is shared among the members of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// By weight, evenly spread.
    #[default]
    RoundRobin,
    /// The fewest messages under way for its weight.
    LeastOutstanding,
}

/// What contradicts itself in a gateway, with the field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct GatewayInvalid {
    /// The field's path, such as `account.password`.
    pub field: &'static str,
    pub text: String,
}

impl Gateway {
    /// With this address and nothing else said.
    pub fn new(name: Name, address: Host, port: u16) -> Self {
        Self {
            name,
            description: String::new(),
            address,
            port,
            encryption: Encryption::default(),
            verification: Verification::default(),
            sni: None,
            account: None,
            status: Status::default(),
            weight: one(),
            priorities: None,
            limits: GatewayLimits::default(),
            egress: Egress::default(),
            proxy_protocol: false,
            xclient: false,
            allow_local: false,
            allow_downgrade: false,
        }
    }

    /// Everything that is wrong with it.
    pub fn check(&self) -> Vec<GatewayInvalid> {
        let mut faults = Vec::new();
        let mut fault = |wrong: bool, field: &'static str, text: &str| {
            if wrong {
                faults.push(GatewayInvalid { field, text: text.to_owned() });
            }
        };
        fault(self.port == 0, "port", "must be 1 to 65535");
        fault(self.description.len() > DESCRIPTION_MAX, "description", "is too long");
        fault(self.description.chars().any(char::is_control), "description", "must be one line of text");
        fault(!(1..=WEIGHT_MAX).contains(&self.weight), "weight", "must be 1 to 1000");
        fault(self.priorities.is_some_and(|range| !range.is_valid()), "priorities", "must be a range within -9 to 9");
        let GatewayLimits { connections_max, messages_per_second_max, recipients_per_message_max, quota: _ } =
            self.limits;
        fault(connections_max == Some(0), "limits.connections_max", "must be at least 1");
        fault(messages_per_second_max == Some(0), "limits.messages_per_second_max", "must be at least 1");
        fault(recipients_per_message_max == Some(0), "limits.recipients_per_message_max", "must be at least 1");
        let verifies = self.verification != Verification::None {};
        fault(verifies && self.encryption == Encryption::None, "verification", "needs encryption");
        let named = self.sni.is_some() || matches!(self.address, Host::Name(_));
        let by_name = matches!(self.verification, Verification::Ca { .. });
        fault(by_name && !named, "sni", "is needed, for an address has no name that a certificate could carry");
        fault(
            verifies && self.encryption == Encryption::Starttls,
            "encryption",
            "must be starttls_required or implicit where the certificate is verified, for who can forge one can hide STARTTLS",
        );
        if let Some(account) = &self.account {
            let clean =
                |text: &str| (1..=ACCOUNT_TEXT_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
            fault(!clean(&account.username), "account.username", "must be one line of text");
            fault(!clean(account.password.expose()), "account.password", "must be one line of text");
            // SASLprep (RFC 5802 section 2.2) leaves these as they are, and nothing else for certain.
            let ascii = account.username.is_ascii() && account.password.expose().is_ascii();
            let scram = account.mechanism == Mechanism::ScramSha256;
            fault(scram && !ascii, "account.mechanism", "SCRAM-SHA-256 needs a name and a password in ASCII");
            let protected = scram || verifies;
            fault(
                !protected && !account.allow_unprotected,
                "account",
                "its password would cross a connection to a server that nobody verified: set verification, or allow_unprotected",
            );
        }
        let Egress { addresses, block_patterns, suspension_s, .. } = &self.egress;
        fault(addresses.len() > EGRESS_ADDRESSES_MAX, "egress.addresses", "are too many");
        let distinct: BTreeSet<_> = addresses.iter().map(|egress| egress.address).collect();
        fault(distinct.len() != addresses.len(), "egress.addresses", "lists an address twice");
        let unusable = |ip: IpAddr| ip.is_unspecified() || ip.is_multicast();
        fault(distinct.into_iter().any(unusable), "egress.addresses", "must be addresses of this host");
        if let Host::Address(ip) = self.address {
            let other = addresses.iter().any(|egress| egress.address.is_ipv4() != ip.is_ipv4());
            fault(other, "egress.addresses", "must be of the address family of the gateway");
        }
        let bad = |pattern: &String| pattern.is_empty() || pattern.len() > BLOCK_PATTERN_MAX;
        fault(
            block_patterns.len() > BLOCK_PATTERNS_MAX || block_patterns.iter().any(bad),
            "egress.block_patterns",
            "must be at most 32 texts of 1 to 200 octets",
        );
        fault(!(1..=86_400).contains(suspension_s), "egress.suspension_s", "must be 1 to 86400");
        faults
    }

    /// The name for SNI and for the certificate.
    pub fn tls_name(&self) -> Option<&Domain> {
        match (&self.sni, &self.address) {
            (Some(name), _) | (None, Host::Name(name)) => Some(name),
            (None, Host::Address(_)) => None,
        }
    }

    /// How mail gets there that came over TLS, or did not; `None`: not at all, for it would go on in clear.
    pub(crate) const fn encryption_for(&self, came_encrypted: bool) -> Option<Encryption> {
        match self.encryption {
            encryption if !came_encrypted || self.allow_downgrade => Some(encryption),
            Encryption::None => None,
            Encryption::Starttls | Encryption::StarttlsRequired => Some(Encryption::StarttlsRequired),
            Encryption::Implicit => Some(Encryption::Implicit),
        }
    }

    /// Nobody but the gateway sees what is said over TLS.
    pub fn is_verified(&self) -> bool {
        self.verification != Verification::None {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(json: &str) -> Gateway {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    fn check(json: &str, fields: &[&str]) {
        let found: Vec<_> = gateway(json).check().into_iter().map(|fault| fault.field).collect();
        assert_eq!(found, fields, "{json}");
    }

    #[test]
    fn the_least_that_must_be_said() {
        let least = gateway(r#"{"name":"mx","address":"mx.example"}"#);
        assert_eq!(least, Gateway::new("mx".parse().unwrap(), "mx.example".parse().unwrap(), 25));
        assert_eq!(least.check(), []);
    }

    #[test]
    fn all_that_can_be_said_comes_back() {
        let json = r#"{"name":"mx","description":"d","address":"2001:db8::1","port":465,"encryption":"implicit",
            "verification":{"mode":"ca","file":"/etc/ca.pem"},"sni":"mx.example","status":"draining","weight":5,
            "account":{"mechanism":"SCRAM-SHA-256","username":"u","password":"hunter2"},
            "priorities":{"min":-9,"max":-1},
            "limits":{"connections_max":5,"messages_per_second_max":10,"recipients_per_message_max":50},
            "egress":{"strategy":"on_block","addresses":[{"address":"2001:db8::2","helo":"out.example"}],
            "block_patterns":["blocked using"],"suspension_s":60},"proxy_protocol":true,"xclient":true}"#;
        let gateway = gateway(json);
        assert_eq!(gateway.check(), []);
        let mut back = serde_json::to_value(&gateway).unwrap();
        assert_eq!(
            back["account"],
            serde_json::json!({
                "mechanism": "SCRAM-SHA-256", "username": "u", "allow_unprotected": false
            })
        );
        back["account"]["password"] = "hunter2".into();
        assert_eq!(serde_json::from_value::<Gateway>(back).unwrap(), gateway);
    }

    #[test]
    fn a_password_is_never_shown() {
        let json = r#"{"name":"mx","address":"mx.example","account":{"username":"u","password":"hunter2"}}"#;
        let gateway = gateway(json);
        let shown = format!("{gateway:?} {gateway:#?} {}", serde_json::to_string(&gateway).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(gateway.account.unwrap().password.expose(), "hunter2");
    }

    #[test]
    fn contradictions() {
        let with = |rest: &str| format!(r#"{{"name":"mx","address":"192.0.2.1",{rest}}}"#);
        check(&with(r#""port":0"#), &["port"]);
        check(&with(r#""weight":0"#), &["weight"]);
        check(&with(r#""weight":1001"#), &["weight"]);
        check(&with(r#""description":"a\nb""#), &["description"]);
        check(&with(r#""priorities":{"min":3,"max":2}"#), &["priorities"]);
        check(&with(r#""priorities":{"min":-10,"max":2}"#), &["priorities"]);
        check(&with(r#""limits":{"connections_max":0}"#), &["limits.connections_max"]);
        check(&with(r#""limits":{"messages_per_second_max":0}"#), &["limits.messages_per_second_max"]);
        check(&with(r#""limits":{"recipients_per_message_max":0}"#), &["limits.recipients_per_message_max"]);
        let pin = format!(r#""verification":{{"mode":"pin","sha256":"{}"}}"#, "ab".repeat(32));
        check(&with(&format!(r#"{pin},"encryption":"none""#)), &["verification"]);
        check(&with(&pin), &["encryption"]);
        check(&with(&format!(r#"{pin},"encryption":"starttls_required""#)), &[]);
        check(&with(r#""encryption":"implicit","verification":{"mode":"ca"}"#), &["sni"]);
        check(&with(r#""encryption":"implicit","verification":{"mode":"ca"},"sni":"a.example""#), &[]);
        let account = |rest: &str| with(&format!(r#""account":{{"username":"u","password":"p"{rest}}}"#));
        check(&account(""), &["account"]);
        check(&account(r#","allow_unprotected":true"#), &[]);
        check(&account(r#","mechanism":"SCRAM-SHA-256""#), &[]);
        check(
            &with(r#""account":{"username":"u","password":"a\r\nb","allow_unprotected":true}"#),
            &["account.password"],
        );
        check(&with(r#""account":{"username":"u","allow_unprotected":true}"#), &["account.password"]);
        check(&with(r#""account":{"username":"","password":"p","allow_unprotected":true}"#), &["account.username"]);
        check(
            &with("\"account\":{\"username\":\"\u{fc}\",\"password\":\"p\",\"mechanism\":\"SCRAM-SHA-256\"}"),
            &["account.mechanism"],
        );
        check(
            &with(r#""egress":{"addresses":[{"address":"192.0.2.9"},{"address":"192.0.2.9"}]}"#),
            &["egress.addresses"],
        );
        check(&with(r#""egress":{"addresses":[{"address":"2001:db8::1"}]}"#), &["egress.addresses"]);
        check(&with(r#""egress":{"addresses":[{"address":"0.0.0.0"}]}"#), &["egress.addresses"]);
        check(&with(r#""egress":{"block_patterns":[""]}"#), &["egress.block_patterns"]);
        check(&with(r#""egress":{"suspension_s":0}"#), &["egress.suspension_s"]);
    }

    #[test]
    fn what_is_no_gateway_at_all() {
        for json in [
            r#"{"name":"mx"}"#,
            r#"{"name":"m x","address":"a"}"#,
            r#"{"name":"","address":"a"}"#,
            r#"{"name":"mx","address":"0.0.0.0"}"#,
            r#"{"name":"mx","address":"224.0.0.1"}"#,
            r#"{"name":"mx","address":"192.0.2"}"#,
            r#"{"name":"mx","address":"a\r\nQUIT"}"#,
            r#"{"name":"mx","address":"a","port":65536}"#,
            r#"{"name":"mx","address":"a","encryption":"tls"}"#,
            r#"{"name":"mx","address":"a","surprise":1}"#,
            r#"{"name":"mx","address":"a","verification":{"mode":"pin","sha256":"abcd"}}"#,
            r#"{"name":"mx","address":"a","verification":{"mode":"pin"}}"#,
            r#"{"name":"mx","address":"a","egress":{"addresses":[{"address":"192.0.2.1","helo":"a b"}]}}"#,
        ] {
            assert!(serde_json::from_str::<Gateway>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn fingerprints_have_two_spellings() {
        let plain = "0123456789abcdef".repeat(4);
        let upper = plain.to_uppercase();
        let colons: Vec<_> = upper.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect();
        assert_eq!(colons.join(":").parse::<Pin>(), plain.parse());
        assert_eq!(plain.parse::<Pin>().unwrap().to_string(), plain);
        assert!("0g".repeat(32).parse::<Pin>().is_err());
    }

    #[test]
    fn a_block_list_is_recognised_by_its_words() {
        let egress = Egress { block_patterns: vec!["Blocked using".into()], ..Egress::default() };
        assert!(egress.is_block("5.7.1 Service unavailable; client blocked USING zen.example"));
        assert!(!egress.is_block("5.1.1 no such user"));
    }
}
