//! How the embedded relay treats the clients of a class: what the operator says, and what the relay makes of it.

use redirect_relay::{Auth, Lock, Policy, Quota, Tarpit, Tls};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{dataplane::words, desired::Invalid, limits};

words! {
    /// TLS toward clients.
    #[derive(Default)]
    SmtpTls {
        /// None is offered.
        #[default]
        None = "none",
        /// The session is passed through to the server that the client dialled.
        Passthrough = "passthrough",
    }
}

words! {
    /// AUTH of clients.
    #[derive(Default)]
    SmtpAuth {
        #[default]
        Off = "off",
        /// Any credentials are accepted, and forgotten.
        AcceptAny = "accept_any",
    }
}

/// The rules of a class for sessions with the embedded relay; null stands for "no limit".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Smtp {
    pub tls: SmtpTls,
    pub auth: SmtpAuth,
    /// AUTH may also be used without TLS: passwords in clear.
    pub auth_cleartext: bool,
    /// What one subscriber may do: an IPv4 address, or an IPv6 /64.
    pub subscriber_quota: Quota,
    /// What the subscribers of the class may do together.
    pub class_quota: Quota,
    /// Sessions that one subscriber may have open.
    #[schema(minimum = 1)]
    pub subscriber_sessions_max: Option<u32>,
    /// Recipients of a message from `<>`.
    #[schema(minimum = 1)]
    pub notification_recipients_max: Option<u32>,
    /// Mail to `user@[192.0.2.1]` is refused.
    pub refuse_literals: bool,
    /// Lines beyond 998 octets are refused.
    pub refuse_long_lines: bool,
    /// How abuse is slowed down.
    pub tarpit: Option<Tarpit>,
    /// When it ends in a lock.
    pub lock: Option<Lock>,
}

impl Smtp {
    /// The first member that is wrong, and why.
    pub fn check(&self) -> Result<(), (&'static str, Invalid)> {
        let fault =
            |wrong: bool, member, text: &str| if wrong { Err((member, Invalid(text.to_owned()))) } else { Ok(()) };
        fault(self.subscriber_sessions_max == Some(0), "subscriber_sessions_max", "give at least 1, or null")?;
        fault(self.notification_recipients_max == Some(0), "notification_recipients_max", "give at least 1, or null")?;
        fault(
            self.auth_cleartext && self.auth == SmtpAuth::Off,
            "auth_cleartext",
            "means nothing without auth; give auth as well, or leave it out",
        )?;
        if let Some(Tarpit { delay, delay_max }) = self.tarpit {
            let well = !delay.is_zero() && delay <= delay_max && delay_max <= limits::TARPIT_MAX;
            fault(!well, "tarpit", "give delay_s of at least 1, and delay_max_s not below it and at most 240")?;
        }
        if let Some(Lock { duration, .. }) = self.lock {
            let well = (1..=u64::from(limits::LOCK_S_MAX)).contains(&duration.as_secs());
            fault(!well, "lock", "give duration_s of 1 to 2592000")?;
        }
        Ok(())
    }

    pub fn policy(&self) -> Policy {
        let Self { subscriber_quota, class_quota, tarpit, lock, .. } = *self;
        Policy {
            tls: match self.tls {
                SmtpTls::None => Tls::None,
                SmtpTls::Passthrough => Tls::Passthrough,
            },
            auth: match self.auth {
                SmtpAuth::Off => Auth::Off,
                SmtpAuth::AcceptAny => Auth::AcceptAny,
            },
            auth_cleartext: self.auth_cleartext,
            subscriber_quota,
            class_quota,
            subscriber_sessions_max: self.subscriber_sessions_max,
            notification_recipients_max: self.notification_recipients_max,
            refuse_literals: self.refuse_literals,
            refuse_long_lines: self.refuse_long_lines,
            tarpit,
            lock,
            ..Policy::default()
        }
    }
}
