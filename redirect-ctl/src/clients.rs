//! What the clients of the embedded relay meet: the operator's certificates and users, and the rules of each class made ready for use.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use redirect_relay::{
    Certificate, CertificateInvalid, Policy, Users, Verifier,
    gateway::Secret,
    route::{Concern, Finding, Routing},
};

use crate::{
    dataplane::ClassId,
    desired::{Class, Invalid, Name, Tables, Time, text_on_the_wire},
    limits,
    smtp::{SmtpAuth, SmtpTls},
};

/// A certificate as it is asked for, both parts in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSpec {
    pub name: Name,
    pub chain: String,
    /// Empty: the one that is known.
    pub key: Secret,
}

impl CertificateSpec {
    /// As the relay uses it.
    pub fn ready(&self) -> Result<Certificate, CertificateInvalid> {
        Certificate::from_pem(self.chain.as_bytes(), self.key.expose().as_bytes())
    }

    /// With its chain as we write it, if the parts belong together and, where `now` is given, it is valid then; else the member (a pointer)
    /// that is wrong, and why.
    pub fn checked(mut self, now: Option<Time>) -> Result<Self, (&'static str, Invalid)> {
        let certificate = self.ready().map_err(|error| {
            let pointer = match error {
                CertificateInvalid::NoKey | CertificateInvalid::KeyMismatch => "/key",
                CertificateInvalid::NoCertificate
                | CertificateInvalid::HoldsKey
                | CertificateInvalid::Malformed
                | CertificateInvalid::Unfit(_) => "/chain",
            };
            (pointer, Invalid(error.to_string()))
        })?;
        let [not_before, not_after] =
            [certificate.not_before_s(), certificate.not_after_s()].map(|seconds| Time { seconds });
        let fault = match now {
            Some(now) if not_after <= now => Some(format!("expired on {not_after}; give the one that follows it")),
            Some(now) if not_before > now => Some(format!("is not valid before {not_before}; set it then")),
            Some(_) | None => None,
        };
        if let Some(text) = fault {
            return Err(("/chain", Invalid(text)));
        }
        certificate.chain().clone_into(&mut self.chain);
        Ok(self)
    }
}

/// Who may log in where a class's `auth` is `local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: Username,
    pub verifier: Verifier,
}

/// What a user calls itself: one line of text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Username(String);

text_on_the_wire! { Username = "anna@example.net" }

impl Username {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Username {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let well = (1..=limits::USERNAME_BYTES_MAX).contains(&text.len())
            && text.trim() == text
            && !text.chars().any(char::is_control);
        if well {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!(
                "{text:?} cannot be a user's name: give one line of 1 to {} bytes, without spaces around it",
                limits::USERNAME_BYTES_MAX
            )))
        }
    }
}

/// See the module. At one revision, as [`Tables`].
#[derive(Clone, Debug, Default)]
pub struct Clients {
    pub certificates: BTreeMap<Name, Certificate>,
    pub policies: BTreeMap<ClassId, Arc<Policy>>,
}

impl Clients {
    /// `None` for a class whose certificate is not there.
    pub fn new<'c>(
        certificates: BTreeMap<Name, Certificate>,
        users: Users,
        classes: impl IntoIterator<Item = &'c Class>,
    ) -> Option<Self> {
        let users = Arc::new(users);
        let policy = |class: &Class| Some((class.id, Arc::new(class.spec.smtp.policy(&certificates, &users)?)));
        let policies = classes.into_iter().map(policy).collect::<Option<_>>()?;
        Some(Self { certificates, policies })
    }
}

/// What is allowed and yet hardly meant: passwords and mail in clear, and certificates at their end.
pub fn lint(tables: &Tables, clients: &Clients, routing: &Routing, now: Time) -> Vec<Finding> {
    let mut findings = Vec::new();
    for class in tables.classes.values().map(|class| &class.spec) {
        let finding =
            |concern, text: &str| Finding { concern, subject: format!("class {}", class.name), text: text.to_owned() };
        if class.smtp.bridge_unprotected {
            let text = "its clients' passwords go to a gateway that nobody verified, or in clear";
            findings.push(finding(Concern::BridgeUnprotected, text));
        } else if class.smtp.auth == SmtpAuth::Bridge && routing.bridges(class.name.as_str(), false).next().is_none() {
            let text = "its clients are offered no AUTH, for none of its gateways is enabled and verified";
            findings.push(finding(Concern::BridgeNotOffered, text));
        }
        if class.smtp.auth != SmtpAuth::Off && class.smtp.auth_cleartext {
            let text = match class.smtp.tls {
                SmtpTls::Offer => "its clients may give their passwords in clear, though TLS is offered",
                SmtpTls::None | SmtpTls::Passthrough => "its clients give their passwords in clear",
            };
            findings.push(finding(Concern::AuthCleartext, text));
        }
        // Without a certificate there is no choice, and an installation begins without one.
        if class.smtp.tls == SmtpTls::None && class.meets_embedded_relay() && !clients.certificates.is_empty() {
            findings.push(finding(Concern::TlsNone, "its clients are offered no TLS, though there is a certificate"));
        }
    }
    for (name, certificate) in &clients.certificates {
        let not_after = Time { seconds: certificate.not_after_s() };
        let left_s = not_after.seconds - now.seconds;
        if left_s <= limits::CERTIFICATE_WARNING_S {
            let verb = if left_s <= 0 { "expired on" } else { "expires on" };
            findings.push(Finding {
                concern: Concern::CertificateExpires,
                subject: format!("certificate {name}"),
                text: format!("{verb} {not_after}; set it anew"),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users() {
        for good in ["anna", "anna@example.net", "Anna B\u{fc}cher", "a/b", &"x".repeat(255)] {
            assert_eq!(good.parse::<Username>().unwrap().to_string(), good);
        }
        for bad in ["", " anna", "anna\t", "an\nna", "an\0na", &"x".repeat(256)] {
            assert!(bad.parse::<Username>().is_err(), "{bad:?}");
        }
    }
}
