//! Domains as routes compare them: lower-case A-labels (RFC 5890), however they were written.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use idna::{
    AsciiDenyList,
    uts46::{DnsLength, Hyphens, Uts46},
};
use serde::{Deserialize, Serialize};

use crate::address::is_domain;

/// A domain name in lower-case ASCII, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(Arc<str>);

/// `text` is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a domain name")]
pub struct InvalidDomain {
    pub text: String,
}

impl Domain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain above this one, without its first label.
    pub fn parent(&self) -> Option<&str> {
        parent(&self.0)
    }
}

/// `name` without its first label.
pub(crate) fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

impl FromStr for Domain {
    type Err = InvalidDomain;

    /// Names in other scripts become A-labels (UTS 46, non-transitional).
    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let invalid = || InvalidDomain { text: text.to_owned() };
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            Uts46::new()
                .to_ascii(text.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify)
                .map_err(|_| invalid())?
                .into_owned()
        };
        if is_domain(&ascii) { Ok(Self(ascii.into())) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for Domain {
    type Error = InvalidDomain;

    fn try_from(text: String) -> Result<Self, InvalidDomain> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

/// Hashes and compares as its text does, so that maps are asked with a part of another name.
impl Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let got = text.parse::<Domain>().ok();
        assert_eq!(got.as_ref().map(Domain::as_str), expected, "{text:?}");
    }

    #[test]
    fn every_spelling_of_a_domain_is_one_domain() {
        check("Example.COM", Some("example.com"));
        check("b\u{fc}cher.example", Some("xn--bcher-kva.example"));
        check("B\u{dc}CHER.Example", Some("xn--bcher-kva.example"));
        check("XN--BCHER-KVA.example", Some("xn--bcher-kva.example"));
        check("b\u{75}\u{308}cher.example", Some("xn--bcher-kva.example"));
        check("stra\u{df}e.example", Some("xn--strae-oqa.example"));
        check("a\u{3002}example", Some("a.example"));
        check("r3---sn.example", Some("r3---sn.example"));
    }

    #[test]
    fn what_is_no_domain() {
        for text in
            ["", ".", "a.", ".a", "a..b", "-a.b", "a-.b", "a b", "a_b", "*", "a@b", "[192.0.2.1]", "\u{fc}_b", "\u{ad}"]
        {
            check(text, None);
        }
        check(&format!("{}.b", "a".repeat(64)), None);
        check(&"a.".repeat(128), None);
    }

    #[test]
    fn parents() {
        let domain: Domain = "a.b.c".parse().unwrap();
        assert_eq!(domain.parent(), Some("b.c"));
        assert_eq!(parent("c"), None);
    }
}
