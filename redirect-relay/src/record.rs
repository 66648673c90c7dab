//! What is put on record about a message: who, through whom, how it ended; never what it says, to whom or from whom.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// One message, or an attempt at one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "facts about a message that do not exclude each other")]
pub struct Record {
    /// When MAIL came.
    pub at: Timestamp,
    pub gateway: Option<Arc<str>>,
    /// Our address toward the gateway, where a connection was made.
    pub egress: Option<IpAddr>,
    /// Octets of the message, without our trace field, as far as they got.
    pub octets: u64,
    /// What the client declared with `SIZE=`.
    pub octets_declared: Option<u64>,
    /// Recipients that the gateway accepted.
    pub recipients: u32,
    /// Recipients that somebody refused.
    pub recipients_refused: u32,
    pub outcome: Outcome,
    pub cause: Cause,
    /// The reply that the client got, if there was one.
    pub reply: Option<Status>,
    /// What the gateway answered to each step, the latest answer where there were several.
    pub gateway_replies: GatewayReplies,
    /// TLS with the client.
    pub encrypted: bool,
    /// The client authenticated.
    pub authenticated: bool,
    /// The client left before its reply.
    pub client_gone: bool,
    /// The client will send the message again, and the gateway may have delivered it.
    pub duplicate_risk: bool,
    pub times: Times,
}

/// A reply without its text, which may name people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub code: u16,
    /// The enhanced code (RFC 3463) after its class, which is the first digit of `code`.
    pub subject: u16,
    pub detail: u16,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(' ', f)
    }
}

impl Status {
    /// Both codes, with `mark` between them. Several times for each message, so without the machinery of `write!`.
    pub(crate) fn write(self, mark: char, out: &mut impl fmt::Write) -> fmt::Result {
        let Self { code, subject, detail } = self;
        let mut digits = itoa::Buffer::new();
        out.write_str(digits.format(code))?;
        out.write_char(mark)?;
        for (number, end) in [(code / 100, "."), (subject, "."), (detail, "")] {
            out.write_str(digits.format(number))?;
            out.write_str(end)?;
        }
        Ok(())
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GatewayReplies {
    pub mail: Option<Status>,
    pub recipient: Option<Status>,
    pub data: Option<Status>,
    pub verdict: Option<Status>,
}

/// When things happened, since MAIL. What did not happen has no time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// A gateway connection was ready.
    #[serde(serialize_with = "in_milliseconds", rename = "gateway_ready_ms")]
    pub gateway_ready: Option<Duration>,
    /// The gateway accepted a recipient.
    #[serde(serialize_with = "in_milliseconds", rename = "recipient_ms")]
    pub recipient: Option<Duration>,
    /// The gateway awaited the message.
    #[serde(serialize_with = "in_milliseconds", rename = "data_ms")]
    pub data: Option<Duration>,
    /// The client had sent all of it.
    #[serde(serialize_with = "in_milliseconds", rename = "sent_ms")]
    pub sent: Option<Duration>,
    /// The end.
    #[serde(serialize_with = "in_milliseconds", rename = "end_ms")]
    pub end: Option<Duration>,
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn in_milliseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(milliseconds).serialize(serializer)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Accepted,
    /// 5xx.
    Rejected,
    /// 4xx.
    Deferred,
    /// The client gave up.
    Aborted,
}

impl Outcome {
    pub(crate) const fn of(code: u16) -> Self {
        match code / 100 {
            2 => Self::Accepted,
            5 => Self::Rejected,
            _ => Self::Deferred,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Deferred => "deferred",
            Self::Aborted => "aborted",
        }
    }
}

/// What brought the outcome about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The gateway's own reply, or its absence before any recipient was accepted.
    Gateway,
    GatewayLost,
    OutcomeUnknown,
    /// A bare CR, a bare LF or a NUL. It is a fault of old devices at times; the counter is how an operator tells.
    LineEndings,
    Size,
    Loop,
    LongLine,
    /// RSET, EHLO or QUIT within a transaction.
    ClientReset,
    ClientLost,
    ClientTimeout,
    /// We ended the session for what the client did.
    ClientCut,
    Shutdown,
}

impl Cause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::GatewayLost => "gateway_lost",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::LineEndings => "line_endings",
            Self::Size => "size",
            Self::Loop => "loop",
            Self::LongLine => "long_line",
            Self::ClientReset => "client_reset",
            Self::ClientLost => "client_lost",
            Self::ClientTimeout => "client_timeout",
            Self::ClientCut => "client_cut",
            Self::Shutdown => "shutdown",
        }
    }
}
