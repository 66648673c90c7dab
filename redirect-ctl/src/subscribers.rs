//! What is known of subscribers: a prefix has at most one [`Fact`] of each source, and the one that ranks highest is what the kernel follows.
//!
//! Portal, RADIUS, DHCP and the operator know of each other's subscribers nothing. Each says what it knows, for as long as it holds; who is right
//! is decided by priority, and what was outranked decides again once the other is gone.

use std::{collections::BTreeMap, fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use crate::{
    desired::{Invalid, Name, Origin, Time, text_on_the_wire},
    limits,
};

text_on_the_wire! {
    Mac = "02:00:5e:10:00:07",
    Session = "8A01C0DE",
    Login = "anna@example.net",
}

/// What one source says of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub prefix: IpNet,
    pub source: Origin,
    pub class: Name,
    /// `None`: that of the source.
    pub priority: Option<Priority>,
    /// Seconds since the epoch.
    pub expires_s: Option<i64>,
    /// Of the source, such as Acct-Session-Id (RFC 2866 section 5.5): a late end of another session does not end this one.
    pub session: Option<Session>,
    pub user: Option<Login>,
    pub mac: Option<Mac>,
    pub labels: Labels,
}

/// A fact whose texts are somebody else's; checked like [`Fact`].
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub prefix: IpNet,
    pub source: Origin,
    pub class: &'a Name,
    pub priority: Option<Priority>,
    pub expires_s: Option<i64>,
    pub session: Option<&'a str>,
    pub user: Option<&'a str>,
    pub mac: Option<Mac>,
    pub labels: Labels,
}

/// A fact as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub fact: Fact,
    /// Whether it is the one that the kernel follows.
    pub effective: bool,
    /// Of the last change of the fact; of the effective one, of any fact of the prefix.
    pub revision: u64,
}

/// A subscriber: its effective fact first, then what contends with it, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscriber {
    pub facts: Vec<Known>,
}

/// How much a fact weighs beside those of other sources; the highest decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub struct Priority(u16);

impl Priority {
    pub const MAX: u16 = 1_000;

    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for Priority {
    type Error = Invalid;

    fn try_from(number: i64) -> Result<Self, Invalid> {
        match u16::try_from(number) {
            Ok(number @ 0..=Self::MAX) => Ok(Self(number)),
            _ => Err(Invalid(format!("{number} is out of range; give a priority from 0 to {}", Self::MAX))),
        }
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(i64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Priorities of facts that name none, by their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priorities {
    pub operator: u16,
    pub portal: u16,
    pub radius: u16,
    pub dhcp: u16,
}

impl Default for Priorities {
    fn default() -> Self {
        Self { operator: 400, portal: 300, radius: 200, dhcp: 100 }
    }
}

impl Priorities {
    pub const fn of(self, source: Origin) -> u16 {
        match source {
            Origin::Operator => self.operator,
            Origin::Portal => self.portal,
            Origin::Radius => self.radius,
            Origin::Dhcp => self.dhcp,
        }
    }

    /// What decides between facts of a prefix: the greatest rank. Of equal priorities the newest wins, and of those the source that comes first in
    /// the list.
    pub fn rank(self, source: Origin, priority: Option<u16>, revision: u64) -> (u16, u64, std::cmp::Reverse<Origin>) {
        (priority.unwrap_or_else(|| self.of(source)), revision, std::cmp::Reverse(source))
    }
}

/// A text of a source is short and without control characters.
fn plain(what: &str, text: &str) -> Result<(), Invalid> {
    if text.is_empty() || text.len() > limits::SUBSCRIBER_TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        let most = limits::SUBSCRIBER_TEXT_BYTES_MAX;
        return Err(Invalid(format!("{text:?} is no {what}: give 1 to {most} bytes without control characters")));
    }
    Ok(())
}

macro_rules! plain_text {
    ($($(#[$doc:meta])* $name:ident = $what:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl $name {
            /// Whether a text may be one.
            pub fn check(text: &str) -> Result<(), Invalid> {
                plain($what, text)
            }
        }
    )+};
}

plain_text! {
    /// A session, as its source names it.
    Session = "session",
    /// Whoever logged in.
    Login = "user",
}

/// A hardware address of six octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { ":" };
            write!(f, "{between}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    /// Twelve hexadecimal digits in pairs behind `:` or `-`, in fours behind `.`, or without anything between them: all of these are Calling-Station-Ids.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{text:?} is no MAC address: give one such as 02:00:5e:10:00:07"));
        let (step, between) = match (text.len(), text.as_bytes().get(2), text.as_bytes().get(4)) {
            (12, ..) => (12, None),
            (17, Some(between @ (b':' | b'-')), _) => (2, Some(*between)),
            (14, _, Some(between @ b'.')) => (4, Some(*between)),
            _ => return Err(wrong()),
        };
        let mut octets = [0_u8; 6];
        let mut digits = 0;
        for (index, byte) in text.bytes().enumerate() {
            if index % (step + 1) == step && between.is_some() {
                if Some(byte) != between {
                    return Err(wrong());
                }
                continue;
            }
            let digit = char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or_else(wrong)?;
            let octet: &mut u8 = octets.get_mut(digits / 2).ok_or_else(wrong)?;
            *octet = *octet << 4 | digit;
            digits += 1;
        }
        if digits == 12 { Ok(Self(octets)) } else { Err(wrong()) }
    }
}

/// Whatever else a source wants to find its facts by, such as the NAS: a few words each with a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"nas": "bng-3"}))]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        if labels.len() > limits::LABELS_MAX {
            return Err(Invalid(format!("{} labels are too many; give {} at most", labels.len(), limits::LABELS_MAX)));
        }
        for (name, text) in &labels {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            if name.is_empty() || name.len() > limits::LABEL_NAME_BYTES_MAX || !name.bytes().all(word) {
                let most = limits::LABEL_NAME_BYTES_MAX;
                let text = format!("{name:?} cannot name a label: give 1 to {most} letters, digits, '_', '-' and '.'");
                return Err(Invalid(text));
            }
            plain("text of a label", text)?;
        }
        Ok(Self(labels))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// What `expires` of a request may be.
pub fn to_come(expires: Time, now: Time) -> Result<Time, Invalid> {
    if expires > now {
        Ok(expires)
    } else {
        Err(Invalid(format!("{expires} is in the past; give a time to come, or null")))
    }
}

/// Whether an extension of a fact's life, which changes nothing else, has to be written. Else the store knows of it in memory only: what accounting
/// repeats every few seconds costs no write, and what a crash forgets is a quarter of the time that the fact was given at most.
pub fn extension_is_due(written_s: i64, expires_s: i64, now_s: i64) -> bool {
    let (left, given) = (written_s.saturating_sub(now_s), expires_s.saturating_sub(now_s));
    left.saturating_mul(4) < given.saturating_mul(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_as_stations_call() {
        for text in ["02:00:5e:10:00:07", "02-00-5E-10-00-07", "0200.5e10.0007", "02005E100007"] {
            assert_eq!(text.parse::<Mac>().map(|mac| mac.to_string()), Ok("02:00:5e:10:00:07".to_owned()), "{text}");
        }
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:0g",
            "02:00-5e:10:00:07",
            "0200:5e10:0007",
            "02:00:5e:10:00:070",
            "02005e10000",
            "020.05e1.00007",
            "02:00:5e:10:00:0ä",
            "+2:00:5e:10:00:07",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn labels_and_texts_are_bounded() {
        let labels = |pairs: &[(&str, &str)]| {
            Labels::new(pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
        };
        assert!(labels(&[("nas", "bng-3"), ("vlan.inner", "17 ä")]).is_ok());
        let long = "x".repeat(limits::SUBSCRIBER_TEXT_BYTES_MAX + 1);
        for pairs in [&[("", "x")][..], &[("a b", "x")], &[("a", "")], &[("a", "x\ny")], &[("a", &long)]] {
            assert!(labels(pairs).is_err(), "{pairs:?}");
        }
        let many: BTreeMap<_, _> =
            (0..=limits::LABELS_MAX).map(|number| (number.to_string(), "x".to_owned())).collect();
        assert!(Labels::new(many).is_err());
        for text in ["", "a\0b", &long] {
            assert!(text.parse::<Session>().is_err() && text.parse::<Login>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_highest_priority_decides_and_of_equals_the_newest() {
        let priorities = Priorities::default();
        let wins = |one: (Origin, Option<u16>, u64), other: (Origin, Option<u16>, u64)| {
            priorities.rank(one.0, one.1, one.2) > priorities.rank(other.0, other.1, other.2)
        };
        assert!(wins((Origin::Operator, None, 1), (Origin::Portal, None, 9)));
        assert!(wins((Origin::Portal, None, 1), (Origin::Radius, None, 9)));
        assert!(wins((Origin::Radius, None, 1), (Origin::Dhcp, None, 9)));
        assert!(wins((Origin::Dhcp, Some(401), 1), (Origin::Operator, None, 9)));
        assert!(wins((Origin::Dhcp, Some(400), 9), (Origin::Operator, None, 1)));
        assert!(wins((Origin::Operator, None, 5), (Origin::Dhcp, Some(400), 5)));
    }

    #[test]
    fn an_extension_is_written_once_a_quarter_of_the_time_has_passed() {
        for (written_s, expires_s, now_s, due) in [
            (1_100, 1_101, 1_001, false),
            (1_100, 1_125, 1_025, false),
            (1_100, 1_126, 1_026, true),
            (1_010, 1_080, 1_000, true),
            (900, 1_100, 1_000, true),
            (i64::MAX - 1, i64::MAX, 0, false),
        ] {
            assert_eq!(extension_is_due(written_s, expires_s, now_s), due, "{written_s} {expires_s} {now_s}");
        }
    }
}
