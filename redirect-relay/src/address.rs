//! Mail addresses: one strict grammar (RFC 5321 section 4.1.2) for what arrives, one writer for what leaves.
//!
//! An address is taken apart into its meaning and written anew; no octet of a client's path is copied to the gateway.
//! So whatever two servers might read differently (quoting, routes, comments) reaches the gateway in one form.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use crate::limits::{DOMAIN_MAX, LABEL_MAX, LOCAL_PART_MAX};

/// `Local-part "@" ( Domain / address-literal )`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mailbox {
    /// Without quotes and backslashes; printable ASCII, or any UTF-8 without control characters (RFC 6531).
    local: String,
    domain: Domain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Domain {
    Name(String),
    Literal(IpAddr),
}

/// The path of MAIL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sender {
    /// `<>`: a notification, which must never cause another (RFC 5321 section 4.5.5).
    Null,
    Mailbox(Mailbox),
}

/// The path of RCPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// `<Postmaster>` without a domain (section 4.1.1.3).
    Postmaster,
    Mailbox(Mailbox),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("not a mail address in angle brackets")]
    Syntax,
    /// `<@a,@b:c@d>`: obsolete, and a way around a relay's rules.
    #[error("source routes are not accepted")]
    SourceRoute,
    /// `a%b@c`, `b!a@c`: asks the server of `c` to relay to `b`.
    #[error("routing in the local part is not accepted")]
    Detour,
}

/// Takes a path off the front of `text`; returns it with the rest after its `>`.
pub(crate) fn sender(text: &str) -> Result<(Sender, &str), AddressError> {
    if let Some(rest) = text.strip_prefix("<>") {
        return Ok((Sender::Null, rest));
    }
    let (mailbox, rest) = path(text)?;
    Ok((Sender::Mailbox(mailbox), rest))
}

/// Like [`sender`] for RCPT, and stricter: what asks another server to relay is refused.
pub(crate) fn recipient(text: &str) -> Result<(Recipient, &str), AddressError> {
    const POSTMASTER: &str = "<postmaster>";
    if let Some((head, rest)) = text.split_at_checked(POSTMASTER.len())
        && head.eq_ignore_ascii_case(POSTMASTER)
    {
        return Ok((Recipient::Postmaster, rest));
    }
    let (mailbox, rest) = path(text)?;
    if mailbox.local.contains(['%', '!']) {
        return Err(AddressError::Detour);
    }
    Ok((Recipient::Mailbox(mailbox), rest))
}

impl Sender {
    /// Whether any server can take it; the others need SMTPUTF8 (RFC 6531).
    pub(crate) fn is_ascii(&self) -> bool {
        matches!(self, Self::Null) || matches!(self, Self::Mailbox(mailbox) if mailbox.is_ascii())
    }
}

impl Recipient {
    /// As [`Sender::is_ascii`].
    pub(crate) fn is_ascii(&self) -> bool {
        matches!(self, Self::Postmaster) || matches!(self, Self::Mailbox(mailbox) if mailbox.is_ascii())
    }

    /// `user@[192.0.2.1]` (RFC 5321 section 4.1.3).
    pub(crate) const fn is_literal(&self) -> bool {
        matches!(self, Self::Mailbox(Mailbox { domain: Domain::Literal(_), .. }))
    }
}

impl Sender {
    /// The domain by which routes know the sender.
    pub(crate) fn domain(&self) -> Option<crate::domain::Domain> {
        match self {
            Self::Null => None,
            Self::Mailbox(mailbox) => mailbox.domain(),
        }
    }
}

impl Recipient {
    /// The domain by which routes know the recipient.
    pub(crate) fn domain(&self) -> Option<crate::domain::Domain> {
        match self {
            Self::Postmaster => None,
            Self::Mailbox(mailbox) => mailbox.domain(),
        }
    }
}

impl Mailbox {
    fn domain(&self) -> Option<crate::domain::Domain> {
        match &self.domain {
            Domain::Name(name) => name.parse().ok(),
            Domain::Literal(_) => None,
        }
    }

    fn is_ascii(&self) -> bool {
        let domain_is_ascii = match &self.domain {
            Domain::Name(name) => name.is_ascii(),
            Domain::Literal(_) => true,
        };
        self.local.is_ascii() && domain_is_ascii
    }
}

fn path(text: &str) -> Result<(Mailbox, &str), AddressError> {
    let text = text.strip_prefix('<').ok_or(AddressError::Syntax)?;
    if text.starts_with('@') {
        return Err(AddressError::SourceRoute);
    }
    let (local, text) = if text.starts_with('"') { quoted_string(text)? } else { dot_string(text)? };
    if local.len() > LOCAL_PART_MAX {
        return Err(AddressError::Syntax);
    }
    let text = text.strip_prefix('@').ok_or(AddressError::Syntax)?;
    let (domain, rest) = text.split_once('>').ok_or(AddressError::Syntax)?;
    Ok((Mailbox { local, domain: parse_domain(domain)? }, rest))
}

/// `Dot-string = Atom *("." Atom)`
fn dot_string(text: &str) -> Result<(String, &str), AddressError> {
    let end = text.bytes().position(|b| !is_atext(b) && b != b'.').ok_or(AddressError::Syntax)?;
    let (local, rest) = text.split_at(end);
    if is_dot_string(local) { Ok((local.to_owned(), rest)) } else { Err(AddressError::Syntax) }
}

fn is_dot_string(local: &str) -> bool {
    local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext))
}

/// RFC 5322 section 3.2.3, and RFC 6531 section 3.3, which takes every character outside ASCII.
fn is_atext(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&octet) || !octet.is_ascii()
}

/// `Quoted-string = DQUOTE *(qtextSMTP / quoted-pairSMTP) DQUOTE`; `text` begins with the quote.
fn quoted_string(text: &str) -> Result<(String, &str), AddressError> {
    let mut local = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        let plain = match c {
            '"' if local.is_empty() => return Err(AddressError::Syntax),
            '"' => return Ok((local, &text[i + 1..])),
            // Only ASCII is ever quoted (section 4.1.2).
            '\\' => chars.next().map(|(_, c)| c).filter(char::is_ascii).ok_or(AddressError::Syntax)?,
            _ => c,
        };
        if plain.is_control() {
            return Err(AddressError::Syntax);
        }
        local.push(plain);
    }
    Err(AddressError::Syntax)
}

fn parse_domain(text: &str) -> Result<Domain, AddressError> {
    if let Some(literal) = text.strip_prefix('[') {
        let literal = literal.strip_suffix(']').ok_or(AddressError::Syntax)?;
        let ip = match literal.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => literal[5..].parse().ok().map(IpAddr::V6),
            _ => literal.parse().ok().map(IpAddr::V4),
        };
        return ip.map(Domain::Literal).ok_or(AddressError::Syntax);
    }
    if is_domain(text) || is_u_domain(text) { Ok(Domain::Name(text.to_owned())) } else { Err(AddressError::Syntax) }
}

/// A domain with U-labels (RFC 6531 section 3.3, RFC 5890), whose A-labels form a domain.
fn is_u_domain(text: &str) -> bool {
    !text.is_ascii()
        && text.len() <= DOMAIN_MAX
        && idna::domain_to_ascii_strict(text).is_ok_and(|ascii| is_domain(&ascii))
}

/// `Domain = sub-domain *("." sub-domain)`, letters, digits and inner hyphens.
pub(crate) fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= DOMAIN_MAX && text.split('.').all(is_label)
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_string(&self.local) {
            f.write_str(&self.local)?;
        } else {
            f.write_char('"')?;
            for c in self.local.chars() {
                if c == '"' || c == '\\' {
                    f.write_char('\\')?;
                }
                f.write_char(c)?;
            }
            f.write_char('"')?;
        }
        match &self.domain {
            Domain::Name(name) => {
                f.write_char('@')?;
                f.write_str(name)
            }
            Domain::Literal(IpAddr::V4(ip)) => write!(f, "@[{ip}]"),
            Domain::Literal(IpAddr::V6(ip)) => write!(f, "@[IPv6:{ip}]"),
        }
    }
}

impl Mailbox {
    fn write_path(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('<')?;
        fmt::Display::fmt(self, f)?;
        f.write_char('>')
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(mailbox) => mailbox.write_path(f),
        }
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postmaster => f.write_str("<postmaster>"),
            Self::Mailbox(mailbox) => mailbox.write_path(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(path: &str, expected: Result<&str, AddressError>) {
        let got = recipient(path).map(|(recipient, rest)| format!("{recipient}{rest}"));
        assert_eq!(got.as_deref().map_err(|e| *e), expected, "{path:?}");
    }

    #[test]
    fn what_is_an_address_is_written_in_one_form() {
        check("<a@b>", Ok("<a@b>"));
        check("<a.b+c@Example.COM> X=1", Ok("<a.b+c@Example.COM> X=1"));
        check("<Postmaster>", Ok("<postmaster>"));
        check("<postmaster@x.example>", Ok("<postmaster@x.example>"));
        check("<\"plain\"@x>", Ok("<plain@x>"));
        check("<\"a b\"@x>", Ok("<\"a b\"@x>"));
        check("<\"a@b\"@c>", Ok("<\"a@b\"@c>"));
        check("<\"a\\\"b\\\\c\\d\"@x>", Ok("<\"a\\\"b\\\\cd\"@x>"));
        check("<\"a>b\"@x> R", Ok("<\"a>b\"@x> R"));
        check("<\"a..b\"@x>", Ok("<\"a..b\"@x>"));
        check("<a@[192.0.2.1]>", Ok("<a@[192.0.2.1]>"));
        check("<a@[IPv6:::1]>", Ok("<a@[IPv6:::1]>"));
        check("<a@[ipv6:2001:DB8:0::7]>", Ok("<a@[IPv6:2001:db8::7]>"));
    }

    #[test]
    fn internationalized_addresses() {
        check("<\u{3b4}@b>", Ok("<\u{3b4}@b>"));
        check("<\"\u{3b4} \u{3b5}\"@b>", Ok("<\"\u{3b4} \u{3b5}\"@b>"));
        check("<a@b\u{fc}cher.example>", Ok("<a@b\u{fc}cher.example>"));
        check("<a@xn--bcher-kva.example>", Ok("<a@xn--bcher-kva.example>"));
        for path in [
            "<\"\\\u{3b4}\"@b>",
            "<\"\u{85}\"@b>",
            "<a@b\u{3002}c\u{0}>",
            "<a@\u{202e}b>",
            "<a@b\u{fc} c>",
            "<a@-\u{fc}>",
            "<a@\u{fc}_c>",
        ] {
            check(path, Err(AddressError::Syntax));
        }
        check(&format!("<{}@b>", "\u{3b4}".repeat(33)), Err(AddressError::Syntax));
        assert!(!recipient("<\u{3b4}@b>").unwrap().0.is_ascii());
        assert!(!recipient("<a@b\u{fc}cher.example>").unwrap().0.is_ascii());
        assert!(recipient("<a@[192.0.2.1]>").unwrap().0.is_ascii());
        assert!(sender("<>").unwrap().0.is_ascii());
    }

    #[test]
    fn relay_forms_are_refused() {
        check("<a%b@c>", Err(AddressError::Detour));
        check("<b!a@c>", Err(AddressError::Detour));
        check("<\"a%b\"@c>", Err(AddressError::Detour));
        check("<@x,@y:a@b>", Err(AddressError::SourceRoute));
        check("<a@b@c>", Err(AddressError::Syntax));
        assert!(sender("<b!a%d@c>").is_ok(), "a sender may be named so: nobody is asked to relay");
    }

    #[test]
    fn all_else_is_no_address() {
        for path in [
            "",
            "<",
            ">",
            "<>",
            "a@b",
            "<a>",
            "<@>",
            "<a@>",
            "<@b>",
            "<a@b",
            "<a@b.>",
            "<a@.b>",
            "<a@b..c>",
            "<.a@b>",
            "<a.@b>",
            "<a..b@c>",
            "<a b@c>",
            "< a@b>",
            "<a@b >",
            "<a@-b>",
            "<a@b->",
            "<a@b_c>",
            "<a@[1.2.3]>",
            "<a@[::1]>",
            "<a@[IPv6:1.2.3.4]>",
            "<a@[IPv6:::1>",
            "<a@[x:y]>",
            "<\"a@b>",
            "<\"\"@b>",
            "<\"a\"b@c>",
            "<\"a\\\">",
            "<(c)a@b>",
            "<a@b(c)>",
            "<<a@b>>",
        ] {
            let got = recipient(path);
            let refused = matches!(got, Err(AddressError::Syntax | AddressError::SourceRoute));
            // `<<a@b>>` and the like must not pass by leaving a tail either.
            assert!(refused, "{path:?}: {got:?}");
        }
        check(&format!("<{}@b>", "a".repeat(65)), Err(AddressError::Syntax));
        check(&format!("<a@{}>", "b".repeat(64)), Err(AddressError::Syntax));
        check(&format!("<a@{}b>", "b.".repeat(128)), Err(AddressError::Syntax));
    }

    proptest! {
        /// What is written is read back as the same address.
        #[test]
        fn writing_and_reading_are_inverse(local in "[ -~]{1,64}", name in "[a-z0-9]{1,9}(\\.[a-z]{1,9}){0,3}") {
            let mailbox = Mailbox { local, domain: Domain::Name(name) };
            let written = Sender::Mailbox(mailbox);
            let text = format!("{written} tail");
            prop_assert_eq!(sender(&text), Ok((written, " tail")));
        }

        #[test]
        fn any_text(text in "[<>@\"\\\\.%a\\[\\]:, ]{0,16}") {
            if let Ok((path, rest)) = recipient(&text) {
                let written = path.to_string();
                prop_assert_eq!(recipient(&written), Ok((path, "")));
                prop_assert!(text.ends_with(rest));
            }
        }
    }
}
