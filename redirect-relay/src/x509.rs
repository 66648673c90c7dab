//! What a certificate says of itself (RFC 5280 section 4.1), for people to see: names and dates. Nothing is verified by it.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::limits::CERTIFICATE_TEXT_SHOWN;

/// Names and dates of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// DNS names and IP addresses of its subject, in its order.
    pub(crate) names: Vec<String>,
    /// Whose it is and who signed it, as `CN=mx.example, O=Example`.
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

mod tag {
    pub(super) const BOOLEAN: u8 = 0x01;
    pub(super) const OCTET_STRING: u8 = 0x04;
    pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    /// `[2]` and `[7]` of `GeneralName`.
    pub(super) const DNS_NAME: u8 = 0x82;
    pub(super) const IP_ADDRESS: u8 = 0x87;
    /// `[0]` and `[3]` of `TBSCertificate`.
    pub(super) const VERSION: u8 = 0xa0;
    pub(super) const EXTENSIONS: u8 = 0xa3;
}

/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

/// `None`: this is no certificate.
pub(crate) fn facts(der: &[u8]) -> Option<Facts> {
    let mut whole = der;
    let mut certificate = take(&mut whole, tag::SEQUENCE)?;
    let mut fields = take(&mut certificate, tag::SEQUENCE)?;
    take(&mut fields, tag::VERSION);
    for _ in ["serialNumber", "signature"] {
        element(&mut fields)?;
    }
    let issuer = distinguished(take(&mut fields, tag::SEQUENCE)?)?;
    let mut validity = take(&mut fields, tag::SEQUENCE)?;
    let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
    let subject = distinguished(take(&mut fields, tag::SEQUENCE)?)?;
    let mut names = Vec::new();
    while let Some((found, mut content)) = element(&mut fields) {
        if found == tag::EXTENSIONS {
            names = alternative_names(take(&mut content, tag::SEQUENCE)?)?;
        }
    }
    Some(Facts { names, subject, issuer, not_before, not_after })
}

/// A distinguished name as people write it, as far as they know its parts; without control characters, and each part cut
/// where nobody reads on.
fn distinguished(mut name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    while !name.is_empty() {
        let mut set = take(&mut name, tag::SET)?;
        let mut attribute = take(&mut set, tag::SEQUENCE)?;
        let kind = match take(&mut attribute, tag::OBJECT_IDENTIFIER)? {
            [0x55, 0x04, 3] => "CN",
            [0x55, 0x04, 6] => "C",
            [0x55, 0x04, 10] => "O",
            [0x55, 0x04, 11] => "OU",
            _ => continue,
        };
        let (_, value) = element(&mut attribute)?;
        let text = String::from_utf8_lossy(value);
        let text: String = text.chars().filter(|c| !c.is_control()).take(CERTIFICATE_TEXT_SHOWN).collect();
        parts.push(format!("{kind}={text}"));
    }
    Some(parts.join(", "))
}

fn alternative_names(mut extensions: &[u8]) -> Option<Vec<String>> {
    while !extensions.is_empty() {
        let mut extension = take(&mut extensions, tag::SEQUENCE)?;
        if take(&mut extension, tag::OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
            continue;
        }
        take(&mut extension, tag::BOOLEAN);
        let mut value = take(&mut extension, tag::OCTET_STRING)?;
        let mut names = take(&mut value, tag::SEQUENCE)?;
        let mut found = Vec::new();
        while !names.is_empty() {
            found.extend(name(element(&mut names)?));
        }
        return Some(found);
    }
    Some(Vec::new())
}

fn name((found, content): (u8, &[u8])) -> Option<String> {
    match found {
        tag::DNS_NAME if content.iter().all(u8::is_ascii_graphic) => String::from_utf8(content.to_vec()).ok(),
        tag::IP_ADDRESS => match content.len() {
            4 => <[u8; 4]>::try_from(content).ok().map(|octets| Ipv4Addr::from(octets).to_string()),
            _ => <[u8; 16]>::try_from(content).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
        },
        _ => None,
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` (RFC 5280 section 4.1.2.5).
fn time(fields: &mut &[u8]) -> Option<Timestamp> {
    let (found, text) = element(fields)?;
    let (digits, b'Z') = text.split_last().map(|(last, digits)| (digits, *last))? else { return None };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0, |number: i16, digit| number * 10 + i16::from(digit - b'0'));
    let (year, rest) = match (found, digits.len()) {
        (tag::UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (tag::GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let mut pairs = rest.chunks(2).map(|pair| i8::try_from(number(pair)).unwrap_or(i8::MAX));
    let mut pair = || pairs.next();
    let moment = DateTime::new(year, pair()?, pair()?, pair()?, pair()?, pair()?, 0).ok()?;
    // What never expires says the last second of the year 9999, which is no timestamp.
    Some(moment.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |moment| moment.timestamp()))
}

/// The content of the next element if it has this tag.
fn take<'a>(input: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    let mut rest = *input;
    let (found, content) = element(&mut rest)?;
    (found == wanted).then(|| {
        *input = rest;
        content
    })
}

/// The next element: its tag and its content (X.690 section 8.1, with lengths of up to three octets).
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&found, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let octets = rest.get(..count).filter(|_| (1..=3).contains(&count))?;
        (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), &rest[count..])
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((found, content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn made(names: &[&str], not_before: (i32, u8, u8), not_after: (i32, u8, u8)) -> Vec<u8> {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.push(SanType::Rfc822Name("postmaster@relay.example".try_into().unwrap()));
        let day = |(year, month, day)| date_time_ymd(year, month, day);
        (params.not_before, params.not_after) = (day(not_before), day(not_after));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn check(names: &[&str], not_before: (i32, u8, u8), not_after: (i32, u8, u8), expected: (&str, &str)) {
        let facts = facts(&made(names, not_before, not_after)).unwrap();
        assert_eq!(facts.names, names);
        assert_eq!((facts.not_before.to_string().as_str(), facts.not_after.to_string().as_str()), expected);
    }

    #[test]
    fn names_and_dates() {
        check(
            &["relay.example", "*.relay.example", "192.0.2.1", "2001:db8::1"],
            (2026, 1, 31),
            (2036, 2, 29),
            ("2026-01-31T00:00:00Z", "2036-02-29T00:00:00Z"),
        );
        check(&[], (1950, 1, 1), (2050, 1, 1), ("1950-01-01T00:00:00Z", "2050-01-01T00:00:00Z"));
        let for_ever = (9999, 12, 31);
        check(&["a"], (2026, 1, 1), for_ever, ("2026-01-01T00:00:00Z", &Timestamp::MAX.to_string()));
    }

    #[test]
    fn subject_and_issuer() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        let long = "x".repeat(1000);
        for (kind, text) in [
            (DnType::CommonName, "mx\u{7}.example"),
            (DnType::LocalityName, "nobody shows it"),
            (DnType::OrganizationName, "B\u{fc}cher"),
            (DnType::OrganizationalUnitName, &long),
        ] {
            params.distinguished_name.push(kind, text);
        }
        let facts = facts(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).unwrap();
        assert_eq!(facts.subject, format!("CN=mx.example, O=B\u{fc}cher, OU={}", &long[..256]));
        assert_eq!(facts.issuer, facts.subject);
    }

    #[test]
    fn no_part_of_a_certificate_is_one() {
        let whole = made(&["relay.example"], (2026, 1, 1), (2027, 1, 1));
        for end in 0..whole.len() {
            assert_eq!(facts(&whole[..end]), None, "{end} of {} octets", whole.len());
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in proptest::collection::vec(any::<u8>(), 0..200), at in any::<u16>(), with: u8) {
            let _ = facts(&octets);
            let mut changed = made(&["relay.example", "192.0.2.1"], (2026, 1, 1), (2027, 1, 1));
            let at = usize::from(at) % changed.len();
            changed[at] = with;
            let _ = facts(&changed);
        }
    }
}
