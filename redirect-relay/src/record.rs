//! What is put on record about a message: who, through whom, how it ended; never what it says or to whom.

use std::{sync::Arc, time::Duration};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) gateway: Option<Arc<str>>,
    /// Octets of the message, without our trace field, as far as they got.
    pub(crate) octets: u64,
    /// Recipients that the gateway accepted.
    pub(crate) recipients: u32,
    pub(crate) outcome: Outcome,
    pub(crate) cause: Cause,
    /// The reply that the client got, or zero if there was nothing to reply to.
    pub(crate) code: u16,
    /// The client left before its reply.
    pub(crate) client_gone: bool,
    /// Since MAIL.
    pub(crate) duration: Duration,
}

impl Record {
    /// The client will send the message again, and the gateway may have delivered it.
    pub(crate) const fn duplicate_risk(&self) -> bool {
        matches!(self.cause, Cause::OutcomeUnknown)
    }

    /// Ill-formed line ends are a fault of old devices at times; the counter is how an operator tells.
    pub(crate) const fn smuggling(&self) -> bool {
        matches!(self.cause, Cause::LineEndings)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
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

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Deferred => "deferred",
            Self::Aborted => "aborted",
        }
    }
}

/// What brought the outcome about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The gateway's own reply, or its absence before any recipient was accepted.
    Gateway,
    GatewayLost,
    OutcomeUnknown,
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
    pub(crate) const fn as_str(self) -> &'static str {
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
