//! Takes secrets, and on request addresses, out of text that leaves the house.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;

/// What a member, setting or header is called whose value is a secret.
const SECRETS: &[&str] = &[
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "private_key",
    "privatekey",
    "psk",
    "credential",
    "api_key",
    "apikey",
];

/// In place of a secret.
pub(crate) const HIDDEN: &str = "(secret)";

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRETS.iter().any(|secret| name.contains(secret))
}

/// Hides the values of members whose names say that they are secret, at any depth, and private keys wherever they are.
pub(crate) fn hide_secrets(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                // A certificate's key has several lines; a route's is a name.
                let is_private_key = name == "key" && value.as_str().is_some_and(|key| key.contains('\n'));
                // What a member such as password_known says is no secret.
                if (is_private_key || is_secret(name)) && (value.is_string() || value.is_array()) {
                    *value = HIDDEN.into();
                } else {
                    hide_secrets(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        Value::String(text) if text.contains("PRIVATE KEY-----") => *value = HIDDEN.into(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Hides secrets in text: what follows a secret's name and `=` or `:` up to the end of the line, what follows `Bearer` and `Basic`, passwords in
/// URLs, and private keys.
pub(crate) fn hide_secrets_in_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.lines() {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            in_key = true;
            out.push_str(HIDDEN);
        }
        if in_key {
            in_key = !line.contains("-----END");
            if !in_key {
                out.push('\n');
            }
            continue;
        }
        out.push_str(&hide_in_line(line));
        out.push('\n');
    }
    out
}

fn hide_in_line(line: &str) -> String {
    for (at, _) in line.match_indices(['=', ':']) {
        let name = line[..at].trim_end().trim_end_matches(['"', '\'']);
        let start = name
            .rfind(|char: char| !(char.is_ascii_alphanumeric() || matches!(char, '_' | '-')))
            .map_or(0, |end| end + 1);
        let value = line[at + 1..].trim_start();
        // `password=` names the secret; `password_file = "/path"` names a file, which is worth knowing.
        let name = name.get(start..).unwrap_or_default();
        if is_secret(name) && !name.ends_with("file") && !value.is_empty() {
            let gap = if line[at + 1..].starts_with(' ') { " " } else { "" };
            return format!("{}{gap}{HIDDEN}", &line[..=at]);
        }
    }
    let lower = line.to_ascii_lowercase();
    for scheme in ["bearer ", "basic "] {
        if let Some(at) = lower.find(scheme) {
            return format!("{}{HIDDEN}", &line[..at + scheme.len()]);
        }
    }
    // scheme://user:password@host
    if let Some(at) = line.find("://")
        && let Some(end) = line[at..].find('@').map(|end| at + end)
        && let Some(colon) = line[at + 3..end].find(':').map(|colon| at + 3 + colon)
    {
        return format!("{}{HIDDEN}{}", &line[..=colon], &line[end..]);
    }
    line.to_owned()
}

/// Replaces addresses by others, each always by the same, so that what belongs together still does.
///
/// Addresses of IPv4 and IPv6 (also with a port or a prefix's length behind them) and of Ethernet. What belongs to nobody stays: loopback, the
/// unspecified address, multicast, and prefixes of everything.
#[derive(Default)]
pub(crate) struct Anonymizer {
    known: BTreeMap<String, String>,
    v4: u32,
    v6: u32,
    ethernet: u32,
}

impl Anonymizer {
    pub(crate) fn anonymize(&mut self, text: &str) -> String {
        let is_part = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | ':');
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            let (between, from) = rest.split_at(start);
            out.push_str(between);
            let end = from.find(|char| !is_part(char)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            self.word(word, &mut out);
            rest = after;
        }
        out.push_str(rest);
        out
    }

    /// A word of letters, digits, dots and colons; dots and colons around an address are punctuation, and `:25` behind one of IPv4 is a port.
    fn word(&mut self, word: &str, out: &mut String) {
        if let Some(other) = self.other(word) {
            return out.push_str(&other);
        }
        let trimmed = word.trim_end_matches(['.', ':']);
        let tail = &word[trimmed.len()..];
        if let Some(other) = self.other(trimmed) {
            out.push_str(&other);
            return out.push_str(tail);
        }
        if let Some((address, port)) = trimmed.rsplit_once(':')
            && address.parse::<std::net::Ipv4Addr>().is_ok()
            && let Some(other) = self.other(address)
        {
            out.push_str(&other);
            out.push(':');
            out.push_str(port);
            return out.push_str(tail);
        }
        out.push_str(word);
    }

    /// `None` where it is no address, or stays as it is.
    fn other(&mut self, word: &str) -> Option<String> {
        let ip: Option<IpAddr> = word.parse().ok();
        match ip {
            Some(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => return None,
            Some(IpAddr::V4(ip)) if ip.is_broadcast() => return None,
            Some(_) => {}
            None if is_ethernet(word) => {}
            None => return None,
        }
        let key = ip.map_or_else(|| word.to_ascii_lowercase(), |ip| ip.to_string());
        if let Some(other) = self.known.get(&key) {
            return Some(other.clone());
        }
        let other = match ip {
            // 240.0.0.0/4 (RFC 1112, section 4) and 2001:db8::/32 (RFC 3849) belong to nobody.
            Some(IpAddr::V4(_)) => {
                self.v4 += 1;
                std::net::Ipv4Addr::from_bits(0xf000_0000 | (self.v4 & 0x0fff_ffff)).to_string()
            }
            Some(IpAddr::V6(_)) => {
                self.v6 += 1;
                format!("2001:db8:0:{:x}::{:x}", self.v6 >> 16, self.v6 & 0xffff)
            }
            None => {
                self.ethernet += 1;
                let [a, b, c, d] = self.ethernet.to_be_bytes();
                format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
            }
        };
        self.known.insert(key, other.clone());
        Some(other)
    }
}

/// `aa:bb:cc:dd:ee:ff`.
fn is_ethernet(word: &str) -> bool {
    let octets: Vec<_> = word.split(':').collect();
    let is_octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    octets.len() == 6 && octets.iter().all(is_octet) && !matches!(word, "00:00:00:00:00:00" | "ff:ff:ff:ff:ff:ff")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_in_json_are_hidden_wherever_they_are() {
        let mut value = json!({
            "account": {"username": "me", "password": "hunter2", "password_known": true},
            "list": [{"api_token": "abc"}, "-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\n"],
            "key": "a\nb\n", "route": {"key": "example.com"}, "secrets": ["one"],
        });
        hide_secrets(&mut value);
        assert_eq!(
            value,
            json!({
                "account": {"username": "me", "password": HIDDEN, "password_known": true},
                "list": [{"api_token": HIDDEN}, HIDDEN],
                "key": HIDDEN, "route": {"key": "example.com"}, "secrets": HIDDEN,
            })
        );
    }

    #[test]
    fn secrets_in_text_are_hidden() {
        for (text, expected) in [
            ("password = \"hunter2\"\n", "password = (secret)\n"),
            ("a=1 \"api-token\": \"hunter2\", \"b\": 2\n", "a=1 \"api-token\": (secret)\n"),
            ("password_file = \"/etc/redirect/pw\"\n", "password_file = \"/etc/redirect/pw\"\n"),
            ("Authorization: Bearer hunter2\n", "Authorization: (secret)\n"),
            ("curl -H 'x' Bearer hunter2 y\n", "curl -H 'x' Bearer (secret)\n"),
            ("url https://me:hunter2@mx.example/\n", "url https://me:(secret)@mx.example/\n"),
            ("-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\nafter\n", "(secret)\nafter\n"),
            ("listen = [\"10.20.0.1:2525\"]\n", "listen = [\"10.20.0.1:2525\"]\n"),
            ("tcp dport 25 accept\n", "tcp dport 25 accept\n"),
        ] {
            assert_eq!(hide_secrets_in_text(text), expected);
        }
    }

    #[test]
    fn an_address_becomes_the_same_one_everywhere() {
        let mut anonymizer = Anonymizer::default();
        for (text, expected) in [
            ("10.20.3.7 and 10.20.3.7:25, 10.20.0.0/16.", "240.0.0.1 and 240.0.0.1:25, 240.0.0.2/16."),
            ("[fd00:20::7]:25 via FD00:20:0::7", "[2001:db8:0:0::1]:25 via 2001:db8:0:0::1"),
            (
                "link/ether 52:54:00:AB:cd:ef brd ff:ff:ff:ff:ff:ff",
                "link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff",
            ),
            ("127.0.0.1 ::1 0.0.0.0/0 ::/0 224.0.0.1", "127.0.0.1 ::1 0.0.0.0/0 ::/0 224.0.0.1"),
            ("version 6.18.44 at 12:30:00: ok", "version 6.18.44 at 12:30:00: ok"),
            ("from 10.20.3.7: hello", "from 240.0.0.1: hello"),
        ] {
            assert_eq!(anonymizer.anonymize(text), expected);
        }
    }
}
