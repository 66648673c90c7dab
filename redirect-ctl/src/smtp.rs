//! How the embedded relay treats the clients of a class: what the operator says, and what the relay makes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use redirect_relay::{Access, Auth, Certificate, LineEndings, Lock, Policy, Quota, Tarpit, Tls, Users};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    dataplane::words,
    desired::{Invalid, Name, Prefix},
    limits,
};

words! {
    /// TLS toward clients.
    #[derive(Default)]
    SmtpTls {
        /// None is offered.
        #[default]
        None = "none",
        /// STARTTLS, with the certificate that the class names.
        Offer = "offer",
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
        /// Those of the operator's users.
        Local = "local",
        /// Those of the class's gateway, where they are tried.
        Bridge = "bridge",
    }
}

words! {
    #[derive(Default)]
    SmtpAccess {
        #[default]
        Allow = "allow",
        Deny = "deny",
    }
}

/// Who may send without AUTH: the longest prefix that holds the client's address decides, else `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Unauthenticated {
    pub otherwise: SmtpAccess,
    pub allow: Vec<Prefix>,
    pub deny: Vec<Prefix>,
}

impl Unauthenticated {
    fn access(&self) -> Access {
        let entries = |prefixes: &[Prefix], may: bool| prefixes.iter().map(move |prefix| (prefix.0, may)).collect();
        let entries: [Vec<_>; 2] = [entries(&self.allow, true), entries(&self.deny, false)];
        Access::new(entries.into_iter().flatten(), self.otherwise == SmtpAccess::Allow)
    }
}

words! {
    /// What becomes of a bare LF in a message.
    #[derive(Default)]
    SmtpLineEndings {
        /// The message is refused.
        #[default]
        Reject = "reject",
        /// It becomes CRLF.
        Normalize = "normalize",
    }
}

/// The rules of a class for sessions with the embedded relay; null stands for "no limit".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
pub struct Smtp {
    pub tls: SmtpTls,
    /// What clients are shown, with `tls` `offer`.
    pub certificate: Option<Name>,
    pub auth: SmtpAuth,
    /// AUTH may also be used without TLS: passwords in clear.
    pub auth_cleartext: bool,
    /// With `auth` `bridge`, gateways that nobody verified may see the clients' passwords, or those without TLS.
    pub bridge_unprotected: bool,
    pub unauthenticated: Unauthenticated,
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
    /// What becomes of a bare LF in a message.
    pub line_endings: SmtpLineEndings,
    /// MT-PRIORITY is offered (RFC 6710): clients say which priority their mail has.
    pub mt_priority: bool,
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
        let Self { tls, certificate, auth, auth_cleartext, unauthenticated, .. } = self;
        fault(
            *tls == SmtpTls::Offer && certificate.is_none(),
            "certificate",
            "is what tls offer needs; name one of redirect-ctl certificate list",
        )?;
        fault(
            *tls != SmtpTls::Offer && certificate.is_some(),
            "certificate",
            "means nothing without tls offer; give it as well, or leave it out",
        )?;
        let unheard = *tls == SmtpTls::Passthrough;
        let text = "means nothing with tls passthrough, by which the relay hears nothing; leave it out";
        fault(unheard && *auth != SmtpAuth::Off, "auth", text)?;
        fault(unheard && *unauthenticated != Unauthenticated::default(), "unauthenticated", text)?;
        fault(
            *tls == SmtpTls::None && *auth != SmtpAuth::Off && !auth_cleartext,
            "auth",
            "is offered under TLS only; give tls offer with a certificate, or auth_cleartext",
        )?;
        fault(
            self.bridge_unprotected && *auth != SmtpAuth::Bridge,
            "bridge_unprotected",
            "means nothing without auth bridge; give it as well, or leave it out",
        )?;
        let Unauthenticated { allow, deny, .. } = unauthenticated;
        let (denied, text) =
            (deny.iter().collect::<BTreeSet<_>>(), "has too many prefixes; give 256 of a kind at most");
        fault(allow.len().max(deny.len()) > limits::ACCESS_PREFIXES_MAX, "unauthenticated", text)?;
        let both = allow.iter().any(|prefix| denied.contains(prefix));
        fault(both, "unauthenticated", "has a prefix in allow and in deny; give it once")?;
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

    /// `None`: the certificate is not among these.
    pub fn policy(&self, certificates: &BTreeMap<Name, Certificate>, users: &Arc<Users>) -> Option<Policy> {
        let Self { subscriber_quota, class_quota, tarpit, lock, .. } = *self;
        Some(Policy {
            tls: match self.tls {
                SmtpTls::None => Tls::None,
                SmtpTls::Offer => Tls::Offer(certificates.get(self.certificate.as_ref()?)?.clone()),
                SmtpTls::Passthrough => Tls::Passthrough,
            },
            auth: match self.auth {
                SmtpAuth::Off => Auth::Off,
                SmtpAuth::AcceptAny => Auth::AcceptAny,
                SmtpAuth::Local => Auth::Local(Arc::clone(users)),
                SmtpAuth::Bridge => Auth::Bridge { allow_unprotected: self.bridge_unprotected },
            },
            auth_cleartext: self.auth_cleartext,
            unauthenticated: self.unauthenticated.access(),
            subscriber_quota,
            class_quota,
            subscriber_sessions_max: self.subscriber_sessions_max,
            notification_recipients_max: self.notification_recipients_max,
            refuse_literals: self.refuse_literals,
            refuse_long_lines: self.refuse_long_lines,
            line_endings: match self.line_endings {
                SmtpLineEndings::Reject => LineEndings::Reject,
                SmtpLineEndings::Normalize => LineEndings::Normalize,
            },
            mt_priority: self.mt_priority,
            tarpit,
            lock,
        })
    }
}
