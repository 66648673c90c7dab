//! How the clients of a class are treated. The caller gives it with each [`Identity`](crate::Identity).

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    auth::Users,
    certificate::Certificate,
    quota::{Quota, Rate},
    tarpit::Tarpit,
};

/// The rules for one session; they hold until it ends.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
pub struct Policy {
    pub tls: Tls,
    pub auth: Auth,
    /// AUTH may also be used without TLS: passwords in clear.
    pub auth_cleartext: bool,
    /// Who may send without AUTH.
    pub unauthenticated: Access,
    /// What one subscriber may do: an IPv4 address, or an IPv6 /64.
    pub subscriber_quota: Quota,
    /// What the subscribers of the class may do together.
    pub class_quota: Quota,
    /// Sessions that one subscriber may have open; one more is told 421 4.7.0.
    pub subscriber_sessions_max: Option<u32>,
    /// Recipients of a message from `<>`, which is a notification and has one; more are answered 550 5.7.1.
    pub notification_recipients_max: Option<u32>,
    /// Mail to `user@[192.0.2.1]` is answered 550 5.7.1.
    pub refuse_literals: bool,
    /// Bodies with a line beyond 998 octets and its CRLF (RFC 5321 section 4.5.3.1.6) are refused with 550 5.6.0.
    pub refuse_long_lines: bool,
    /// What becomes of a bare LF in a message.
    pub line_endings: LineEndings,
    /// MT-PRIORITY is offered (RFC 6710): clients say which priority their mail has, and routes and gateways may ask for it.
    pub mt_priority: bool,
    /// How abuse is slowed down.
    pub tarpit: Option<Tarpit>,
    /// When it ends in a lock.
    pub lock: Option<Lock>,
}

/// Who abuses the relay for more than `strikes` is locked: [`Directory::lock`](crate::Directory::lock) is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = AbuseLock))]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Refusals for a quota, and sessions that we cut.
    pub strikes: Rate,
    #[serde(rename = "duration_s", with = "seconds")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub duration: Duration,
}

/// Durations in whole seconds on the wire.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(duration.as_secs())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// TLS toward clients.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// None is offered.
    #[default]
    None,
    /// STARTTLS with the operator's certificate. It cannot carry the name of the server that the client dialled.
    Offer(Certificate),
    /// No session: octets go to and from the server that the client dialled, as they are.
    Passthrough,
}

/// What becomes of an LF without CR in a message; in a command it is refused in any case, and so is a CR without LF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LineEndings {
    /// The message is refused with 550 5.5.2.
    #[default]
    Reject,
    /// It becomes CRLF, for old devices. What ends the message is CRLF "." CRLF all the same.
    Normalize,
}

/// AUTH of clients (RFC 4954). Whatever it says, the subscriber is who its address says.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not offered.
    #[default]
    Off,
    /// Any credentials are accepted, and forgotten: for clients that insist on AUTH.
    AcceptAny,
    /// The operator's users.
    Local(Arc<Users>),
    /// Those of the class's own gateway, which tries the credentials; then all mail of the session goes by that connection.
    Bridge {
        /// A gateway may see them without TLS, or though nobody verified who it is.
        allow_unprotected: bool,
    },
}

/// A list of prefixes: the longest one that holds an address decides, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Longest prefix first.
    entries: Arc<[(IpNet, bool)]>,
    otherwise: bool,
}

impl Default for Access {
    /// Everybody may.
    fn default() -> Self {
        Self::new([], true)
    }
}

impl Access {
    /// Prefixes whose addresses may (`true`) or may not, in any order; of two entries for one prefix the first counts.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, bool)>, otherwise: bool) -> Self {
        let mut entries: Vec<_> = entries.into_iter().map(|(prefix, may)| (prefix.trunc(), may)).collect();
        entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        Self { entries: entries.into(), otherwise }
    }

    pub fn allows(&self, ip: IpAddr) -> bool {
        self.entries.iter().find(|(prefix, _)| prefix.contains(&ip)).map_or(self.otherwise, |(_, may)| *may)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let entry = |prefix: &str, may| (prefix.parse::<IpNet>().unwrap(), may);
        let access = Access::new(
            [
                entry("10.0.0.0/8", true),
                entry("10.1.2.3/16", false),
                entry("10.1.7.7/32", true),
                entry("2001:db8::/32", true),
                entry("10.0.0.0/8", false),
            ],
            false,
        );
        for (ip, may) in [
            ("10.200.0.1", true),
            ("10.1.0.1", false),
            ("10.1.7.7", true),
            ("192.0.2.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(access.allows(ip.parse().unwrap()), may, "{ip}");
        }
        assert!(Access::default().allows("192.0.2.1".parse().unwrap()));
    }
}
