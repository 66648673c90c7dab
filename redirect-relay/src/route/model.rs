//! What the operator says of a route.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{Domain, InvalidDomain},
    gateway::{Name, PriorityRange},
};

/// The recipients' domains of a route: `example.com`, `.example.com` (what is below it, not itself) or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    Exact(Domain),
    Suffix(Domain),
    Default,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither a domain, nor a domain after a dot, nor *")]
pub struct PatternInvalid {
    pub text: String,
}

impl FromStr for Pattern {
    type Err = PatternInvalid;

    fn from_str(text: &str) -> Result<Self, PatternInvalid> {
        let pattern = match text.strip_prefix('.') {
            Some(suffix) => suffix.parse().map(Self::Suffix),
            None if text == "*" => Ok(Self::Default),
            None => text.parse().map(Self::Exact),
        };
        pattern.map_err(|_: InvalidDomain| PatternInvalid { text: text.to_owned() })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(domain) => domain.fmt(f),
            Self::Suffix(domain) => write!(f, ".{domain}"),
            Self::Default => f.write_str("*"),
        }
    }
}

/// The senders' domains of a route: as [`Pattern`], without `*`, and with `<>` for the null sender.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SenderPattern {
    Null,
    Exact(Domain),
    Suffix(Domain),
}

impl SenderPattern {
    /// `sender`: the domain of MAIL's path, `None` for the null sender.
    pub fn contains(&self, sender: Option<&str>) -> bool {
        match (self, sender) {
            (Self::Null, None) => true,
            (Self::Exact(domain), Some(sender)) => domain.as_str() == sender,
            (Self::Suffix(domain), Some(sender)) => is_below(sender, domain.as_str()),
            (Self::Null, Some(_)) | (Self::Exact(_) | Self::Suffix(_), None) => false,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Suffix(mine), Self::Exact(other)) => is_below(other.as_str(), mine.as_str()),
            (Self::Suffix(mine), Self::Suffix(other)) => mine == other || is_below(other.as_str(), mine.as_str()),
            _ => self == other,
        }
    }
}

fn is_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}

impl FromStr for SenderPattern {
    type Err = PatternInvalid;

    fn from_str(text: &str) -> Result<Self, PatternInvalid> {
        match text.parse() {
            Ok(Pattern::Exact(domain)) => Ok(Self::Exact(domain)),
            Ok(Pattern::Suffix(domain)) => Ok(Self::Suffix(domain)),
            Err(_) if text == "<>" => Ok(Self::Null),
            Ok(Pattern::Default) | Err(_) => Err(PatternInvalid { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for SenderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Exact(domain) => domain.fmt(f),
            Self::Suffix(domain) => write!(f, ".{domain}"),
        }
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = PatternInvalid;

            fn try_from(text: String) -> Result<Self, PatternInvalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(pattern: $name) -> Self {
                pattern.to_string()
            }
        }
    };
}

text_form!(Pattern);
text_form!(SenderPattern);

/// Octets of a message, both ends included, by what MAIL declares with SIZE; undeclared counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SizeRange {
    #[serde(default)]
    pub min: u64,
    #[serde(default = "any_size")]
    pub max: u64,
}

const fn any_size() -> u64 {
    u64::MAX
}

/// What must hold, besides the recipient's domain, for a route to be taken. Absent conditions always hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<SenderPattern>,
    /// The subscriber's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeRange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<PriorityRange>,
}

impl Conditions {
    /// How many there are.
    pub fn count(&self) -> usize {
        let Self { sender, class, size, priority } = self;
        [sender.is_some(), class.is_some(), size.is_some(), priority.is_some()].iter().filter(|is| **is).count()
    }

    /// Whether these hold wherever `other` do.
    pub fn cover(&self, other: &Self) -> bool {
        fn covers<T>(mine: Option<&T>, other: Option<&T>, covers: impl Fn(&T, &T) -> bool) -> bool {
            match (mine, other) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(mine), Some(other)) => covers(mine, other),
            }
        }
        covers(self.sender.as_ref(), other.sender.as_ref(), SenderPattern::covers)
            && covers(self.class.as_ref(), other.class.as_ref(), |mine, other| mine == other)
            && covers(self.size.as_ref(), other.size.as_ref(), |mine, other| {
                mine.min <= other.min && other.max <= mine.max
            })
            && covers(self.priority.as_ref(), other.priority.as_ref(), |mine, other| {
                mine.min <= other.min && other.max <= mine.max
            })
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(sender) = &self.sender {
            parts.push(format!("sender {sender}"));
        }
        if let Some(class) = &self.class {
            parts.push(format!("class {class}"));
        }
        match &self.size {
            Some(SizeRange { min, max: u64::MAX }) => parts.push(format!("size from {min}")),
            Some(SizeRange { min, max }) => parts.push(format!("size {min} to {max}")),
            None => {}
        }
        if let Some(PriorityRange { min, max }) = &self.priority {
            parts.push(format!("priority {min} to {max}"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Gateway(Name),
    Group(Name),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(name) => write!(f, "gateway {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Recipient domain -> gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Route {
    pub domain: Pattern,
    /// Among the routes of one domain, the lowest is asked first.
    #[serde(default = "usual_order", skip_serializing_if = "is_usual_order")]
    pub order: u16,
    #[serde(flatten)]
    pub conditions: Conditions,
    #[serde(flatten)]
    pub target: Target,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

pub(crate) const fn usual_order() -> u16 {
    Route::USUAL_ORDER
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_usual_order(order: &u16) -> bool {
    *order == usual_order()
}

impl Route {
    /// The order of a route that says nothing of it.
    pub const USUAL_ORDER: u16 = 100;

    pub fn new(domain: Pattern, target: Target) -> Self {
        Self { domain, order: usual_order(), conditions: Conditions::default(), target, note: String::new() }
    }

    /// What no two routes may have in common.
    pub fn key(&self) -> (&Pattern, u16, &Conditions) {
        (&self.domain, self.order, &self.conditions)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.domain.fmt(f)?;
        if self.conditions != Conditions::default() {
            write!(f, " ({})", self.conditions)?;
        }
        if self.order != usual_order() {
            write!(f, " [{}]", self.order)?;
        }
        Ok(())
    }
}

/// A domain of the operator's own: it cannot be a route of its own, and goes to its gateway here or by `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ManagedDomain {
    pub domain: Domain,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_one_spelling() {
        let check = |text: &str, expected: Option<&str>| {
            let got = text.parse::<Pattern>().map(|pattern| pattern.to_string()).ok();
            assert_eq!(got.as_deref(), expected, "{text:?}");
        };
        check("Example.com", Some("example.com"));
        check(".B\u{dc}CHER.example", Some(".xn--bcher-kva.example"));
        check("*", Some("*"));
        for text in ["", ".", "..a", "*.a", "a.", "user@a", "[192.0.2.1]", "<>"] {
            check(text, None);
        }
    }

    #[test]
    fn senders() {
        let check = |pattern: &str, sender: Option<&str>, expected: bool| {
            assert_eq!(pattern.parse::<SenderPattern>().unwrap().contains(sender), expected, "{pattern} {sender:?}");
        };
        check("<>", None, true);
        check("<>", Some("a"), false);
        check("a.example", Some("a.example"), true);
        check("a.example", Some("b.a.example"), false);
        check(".a.example", Some("c.b.a.example"), true);
        check(".a.example", Some("a.example"), false);
        check(".a.example", Some("ba.example"), false);
        check(".a.example", None, false);
        assert!("*".parse::<SenderPattern>().is_err());
    }

    #[test]
    fn what_covers_what() {
        let conditions = |json: &str| serde_json::from_str::<Conditions>(json).unwrap();
        let check = |mine: &str, other: &str, expected: bool| {
            assert_eq!(conditions(mine).cover(&conditions(other)), expected, "{mine} covers {other}");
        };
        check("{}", "{}", true);
        check("{}", r#"{"class":"a"}"#, true);
        check(r#"{"class":"a"}"#, "{}", false);
        check(r#"{"class":"a"}"#, r#"{"class":"b"}"#, false);
        check(r#"{"sender":".a"}"#, r#"{"sender":"b.a"}"#, true);
        check(r#"{"sender":".a"}"#, r#"{"sender":".b.a"}"#, true);
        check(r#"{"sender":".a"}"#, r#"{"sender":".a"}"#, true);
        check(r#"{"sender":".a"}"#, r#"{"sender":"a"}"#, false);
        check(r#"{"sender":"b.a"}"#, r#"{"sender":".a"}"#, false);
        check(r#"{"size":{"min":5}}"#, r#"{"size":{"min":6,"max":9}}"#, true);
        check(r#"{"size":{"max":5}}"#, r#"{"size":{"max":6}}"#, false);
        check(r#"{"priority":{"min":-1,"max":1}}"#, r#"{"priority":{"min":0,"max":1}}"#, true);
    }

    #[test]
    fn a_route_as_json() {
        let json = r#"{"domain":".a.example","sender":"<>","class":"guests","size":{"min":1000,"max":18446744073709551615},"priority":{"min":1,"max":2},"group":"g","note":"n"}"#;
        let route: Route = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&route).unwrap(), json);
        assert_eq!(route.to_string(), ".a.example (sender <>, class guests, size from 1000, priority 1 to 2)");
        let least: Route = serde_json::from_str(r#"{"domain":"*","gateway":"mx"}"#).unwrap();
        assert_eq!(least, Route::new(Pattern::Default, Target::Gateway("mx".parse().unwrap())));
        assert!(serde_json::from_str::<Route>(r#"{"domain":"*"}"#).is_err());
    }
}
