//! What a gateway's EHLO reply offers (RFC 5321 section 4.1.1.1).

use serde::{Deserialize, Serialize};

use crate::gateway::Mechanism;

/// The extensions that the relay makes use of. Keywords it does not know are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[expect(clippy::struct_excessive_bools, reason = "each is an extension of its own")]
pub struct Capabilities {
    pub pipelining: bool,
    /// SIZE (RFC 1870), octets; 0 is no limit; `None` where it is not offered.
    pub size: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// MT-PRIORITY (RFC 6710).
    pub mt_priority: bool,
    pub starttls: bool,
    /// The mechanisms of AUTH (RFC 4954) that we know.
    pub auth: Vec<Mechanism>,
    /// The attributes of XCLIENT; `None` where it is not offered.
    pub xclient: Option<Vec<String>>,
    /// LIMITS (RFC 9422): recipients of a message.
    pub recipients_max: Option<u32>,
    /// LIMITS: messages of a connection.
    pub messages_max: Option<u32>,
}

impl Capabilities {
    /// One line of the reply, without its code. Called for the first line too, which is a greeting: taken for a keyword it
    /// would have to be a gateway of that name.
    pub(crate) fn note(&mut self, line: &str) {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        match keyword.as_str() {
            "PIPELINING" => self.pipelining = true,
            // A number that is none is as good as no limit: the gateway says so itself when a message is too large.
            "SIZE" => self.size = Some(words.next().and_then(|word| word.parse().ok()).unwrap_or(0)),
            "8BITMIME" => self.eight_bit_mime = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "DSN" => self.dsn = true,
            "MT-PRIORITY" => self.mt_priority = true,
            "STARTTLS" => self.starttls = true,
            "AUTH" => words.for_each(|word| self.note_mechanism(word)),
            "XCLIENT" => self.xclient = Some(words.map(str::to_ascii_uppercase).collect()),
            "LIMITS" => {
                for word in words {
                    match word.to_ascii_uppercase().split_once('=') {
                        Some(("RCPTMAX", count)) => self.recipients_max = positive(count),
                        Some(("MAILMAX", count)) => self.messages_max = positive(count),
                        _ => {}
                    }
                }
            }
            // Servers of the last century write the equals sign.
            _ => {
                if let Some(first) = keyword.strip_prefix("AUTH=") {
                    self.note_mechanism(first);
                    words.for_each(|word| self.note_mechanism(word));
                }
            }
        }
    }

    fn note_mechanism(&mut self, word: &str) {
        let known = [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256];
        let found = known.into_iter().find(|mechanism| word.eq_ignore_ascii_case(mechanism.as_str()));
        if let Some(mechanism) = found.filter(|mechanism| !self.auth.contains(mechanism)) {
            self.auth.push(mechanism);
        }
    }

    /// What a client may be offered whose mail goes to this gateway.
    pub(crate) fn offers(&self) -> Extensions {
        let Self { size, eight_bit_mime, smtputf8, dsn, .. } = *self;
        let size_max = size.filter(|size| *size > 0).unwrap_or(u64::MAX);
        Extensions { size_max, eight_bit_mime, smtputf8, dsn, ..Extensions::default() }
    }
}

/// What a client is offered that its gateways must be able to do as well. One that cannot after all has the replies of the
/// extensions' RFCs given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an extension of its own")]
pub(crate) struct Extensions {
    /// The largest message that every gateway takes, in octets; [`Settings::size_max`](crate::Settings::size_max) holds too.
    pub(crate) size_max: u64,
    /// 8BITMIME (RFC 6152).
    pub(crate) eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub(crate) smtputf8: bool,
    /// DSN (RFC 3461).
    pub(crate) dsn: bool,
    /// The class has several routes, so the recipients of a message should have one domain: RCPTDOMAINMAX=1 (RFC 9422).
    pub(crate) one_domain: bool,
    /// The class's own gateway may be asked who a client is (AUTH by bridge).
    pub(crate) bridge: bool,
}

/// What a gateway is believed to do before it has said anything.
impl Default for Extensions {
    fn default() -> Self {
        Self { size_max: u64::MAX, eight_bit_mime: true, smtputf8: false, dsn: false, one_domain: false, bridge: false }
    }
}

impl Extensions {
    /// What both of two gateways can do.
    pub(crate) fn common(self, other: Self) -> Self {
        Self {
            size_max: self.size_max.min(other.size_max),
            eight_bit_mime: self.eight_bit_mime && other.eight_bit_mime,
            smtputf8: self.smtputf8 && other.smtputf8,
            dsn: self.dsn && other.dsn,
            one_domain: self.one_domain || other.one_domain,
            bridge: self.bridge && other.bridge,
        }
    }
}

fn positive(count: &str) -> Option<u32> {
    count.parse().ok().filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Capabilities {
        let mut capabilities = Capabilities::default();
        for line in lines {
            capabilities.note(line);
        }
        capabilities
    }

    #[test]
    fn an_ehlo_reply() {
        let lines = [
            "mx.example greets you",
            "pipelining",
            "SIZE 10240000",
            "8BITMIME",
            "SMTPUTF8",
            "DSN",
            "MT-PRIORITY MIXER",
            "STARTTLS",
            "AUTH LOGIN  plain CRAM-MD5 SCRAM-SHA-256 PLAIN",
            "XCLIENT name addr",
            "LIMITS MAILMAX=20 RCPTMAX=50 RCPTDOMAINMAX=1",
            "VRFY",
            "",
        ];
        let expected = Capabilities {
            pipelining: true,
            size: Some(10_240_000),
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            mt_priority: true,
            starttls: true,
            auth: vec![Mechanism::Login, Mechanism::Plain, Mechanism::ScramSha256],
            xclient: Some(vec!["NAME".into(), "ADDR".into()]),
            recipients_max: Some(50),
            messages_max: Some(20),
        };
        assert_eq!(read(&lines), expected);
        assert_eq!(read(&["mx.example"]), Capabilities::default());
    }

    #[test]
    fn odd_lines() {
        assert_eq!(read(&["SIZE"]).size, Some(0));
        assert_eq!(read(&["SIZE -1"]).size, Some(0));
        assert_eq!(read(&["SIZES 5"]).size, None);
        assert_eq!(read(&["AUTH=LOGIN PLAIN"]).auth, [Mechanism::Login, Mechanism::Plain]);
        assert_eq!(read(&["LIMITS RCPTMAX=0 MAILMAX=x RCPTMAX"]), Capabilities::default());
    }

    #[test]
    fn what_several_gateways_have_in_common() {
        let one = read(&["PIPELINING", "SIZE 100", "8BITMIME", "DSN"]).offers();
        let two = read(&["SIZE 0", "8BITMIME", "SMTPUTF8", "STARTTLS"]).offers();
        let both = read(&["SIZE 100", "8BITMIME"]).offers();
        assert_eq!(one.common(two), both);
        assert_eq!(two.common(one), both);
        assert_eq!(read(&[]).offers(), Extensions { eight_bit_mime: false, ..Extensions::default() });
        assert_eq!(one.common(Extensions::default()), Extensions { dsn: false, ..one });
    }
}
