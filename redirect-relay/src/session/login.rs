//! STARTTLS (RFC 3207) and AUTH (RFC 4954) of the client.
//!
//! ```text
//!  Command -- STARTTLS --> Handshake -- TLS is up --> Command, with nothing remembered
//!  Command -- AUTH --> Auth -- responses --> Verifying -- the verdict --> Command
//! ```
//!
//! What was said in clear before the handshake counts for nothing after it, and octets that came along with STARTTLS
//! end the session: somebody on the way may have put them there (CVE-2011-0411).

use std::{mem, time::Instant};

use super::{Action, EARLY_TALK, NESTED_MAIL, Note, Phase, Session, flow::AUTH_OVER_QUOTA};
use crate::{
    auth::{BadResponse, Credentials, Exchange, Mechanism, Response, Turn},
    command::{self, Login, NOT_OFFERED},
    policy::{Auth, Tls},
    quota::Kind,
    reply::Reply,
    watch::Who,
};

const GO_AHEAD: Reply = Reply::new(220, 0, 0, "Ready to start TLS");
const ENCRYPTED_ALREADY: Reply = Reply::new(503, 5, 1, "TLS is active already");
const HELLO_FIRST: Reply = Reply::new(503, 5, 1, "Send EHLO first");
const AUTHENTICATED: Reply = Reply::new(235, 7, 0, "Authentication successful");
const AUTHENTICATED_ALREADY: Reply = Reply::new(503, 5, 1, "Authenticated already");
const NEEDS_TLS: Reply = Reply::new(538, 7, 11, "Encryption is required for authentication");
const NO_SUCH_MECHANISM: Reply = Reply::new(504, 5, 4, "Authentication mechanism not supported");
const CANCELLED: Reply = Reply::new(501, 7, 0, "Authentication cancelled");
const NOT_A_RESPONSE: Reply = Reply::new(501, 5, 2, "Cannot decode the response");
const WRONG: Reply = Reply::new(535, 7, 8, "Authentication credentials invalid");
const CANNOT_TELL: Reply = Reply::new(454, 7, 0, "Temporary authentication failure");
const TOO_MANY_FAILURES: Reply = Reply::new(421, 7, 0, "Too many failed authentications");

/// What became of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Refused,
    /// Nobody can tell.
    Unavailable,
}

impl Session {
    // ---- STARTTLS ----

    /// Whether STARTTLS is in the answer to EHLO.
    pub(super) fn offers_tls(&self) -> bool {
        !self.encrypted && matches!(self.identity.policy.tls, Tls::Offer(_))
    }

    pub(super) fn starttls(&mut self, now: Instant) {
        if !matches!(self.identity.policy.tls, Tls::Offer(_)) {
            return self.error(&NOT_OFFERED.reply, now);
        }
        if self.encrypted {
            return self.error(&ENCRYPTED_ALREADY, now);
        }
        if self.transaction.is_some() {
            return self.error(&NESTED_MAIL, now);
        }
        if !self.input.is_empty() {
            return self.cut(&EARLY_TALK, now);
        }
        self.answer(&GO_AHEAD, now);
        self.client_deadline = now + self.settings.timeouts.handshake;
        self.phase = Phase::Handshake;
    }

    /// The client has the whole answer to STARTTLS: from here on nothing is sent or read in clear.
    pub(super) fn begin_handshake(&mut self) {
        if let (Phase::Handshake, true, Tls::Offer(certificate)) =
            (&self.phase, self.to_client.is_empty(), &self.identity.policy.tls)
        {
            self.actions.push_back(Action::Handshake(certificate.clone()));
        }
    }

    /// TLS is up (RFC 3207 section 4.2: as after the greeting).
    pub(crate) fn on_encrypted(&mut self, now: Instant) {
        self.encrypted = true;
        self.authenticated = false;
        if self.bridged.take().is_some() {
            self.hangup();
        }
        self.helo = None;
        self.tell(Who::Note, || "TLS begins".into());
        self.phase = Phase::Command;
        self.client_deadline = now + self.settings.timeouts.command;
        self.advance(now);
    }

    /// The handshake came to nothing, and neither did the session.
    pub(crate) fn on_handshake_failed(&mut self, now: Instant) {
        self.actions.push_back(Action::Note(Note::HandshakeFailed));
        self.on_client_gone(now);
    }

    // ---- AUTH ----

    /// Whether the class has AUTH, with TLS at least.
    pub(super) fn takes_auth(&self) -> bool {
        match self.identity.policy.auth {
            Auth::Off => false,
            Auth::AcceptAny | Auth::Local(_) => true,
            Auth::Bridge { .. } => self.offered.bridge,
        }
    }

    /// Whether AUTH is in the answer to EHLO.
    pub(super) fn offers_auth(&self) -> bool {
        self.takes_auth() && (self.encrypted || self.identity.policy.auth_cleartext)
    }

    /// Whether what the client says next may hold a password.
    pub(crate) fn may_hear_a_secret(&self) -> bool {
        self.takes_auth() && matches!(self.phase, Phase::Command | Phase::Auth(_))
    }

    pub(super) fn auth(&mut self, login: &Login, now: Instant) {
        if !self.takes_auth() {
            return self.error(&NOT_OFFERED.reply, now);
        }
        if !self.helo.as_ref().is_some_and(|helo| helo.extended) {
            return self.error(&HELLO_FIRST, now);
        }
        if !self.offers_auth() {
            return self.error(&NEEDS_TLS, now);
        }
        if self.authenticated {
            return self.error(&AUTHENTICATED_ALREADY, now);
        }
        if self.transaction.is_some() {
            return self.error(&NESTED_MAIL, now);
        }
        if !self.has_or_refuse(Kind::AuthFailures, &AUTH_OVER_QUOTA, now) {
            return;
        }
        let Some(mechanism) = Mechanism::named(&login.mechanism) else { return self.error(&NO_SUCH_MECHANISM, now) };
        let (exchange, challenge) = Exchange::begin(mechanism);
        match &login.initial {
            Some(response) => self.respond(Box::new(exchange), response, now),
            None => self.challenge(Box::new(exchange), challenge, now),
        }
    }

    fn challenge(&mut self, exchange: Box<Exchange>, challenge: &str, now: Instant) {
        self.client_deadline = now + self.settings.timeouts.command;
        self.phase = Phase::Auth(exchange);
        self.say(&format!("334 {challenge}\r\n"), now);
    }

    /// A response that waits in `input`; whether there was one.
    pub(super) fn response_from_input(&mut self, now: Instant) -> bool {
        if !matches!(self.phase, Phase::Auth(_)) {
            return false;
        }
        let Some((length, response)) = command::response(self.input.filled()) else { return false };
        let Phase::Auth(exchange) = mem::replace(&mut self.phase, Phase::Command) else { return false };
        self.input.take_secret(length);
        match response {
            Err(refusal) => self.cut(&refusal.reply, now),
            Ok(response) if response.0.as_str() == "*" => self.error(&CANCELLED, now),
            Ok(response) => self.respond(exchange, &response, now),
        }
        true
    }

    fn respond(&mut self, mut exchange: Box<Exchange>, response: &Response, now: Instant) {
        match exchange.respond(response) {
            Ok(Turn::Challenge(challenge)) => self.challenge(exchange, challenge, now),
            Ok(Turn::Done(credentials)) => self.verify(credentials, now),
            Err(BadResponse) => self.error(&NOT_A_RESPONSE, now),
        }
    }

    fn verify(&mut self, credentials: Credentials, now: Instant) {
        match &self.identity.policy.auth {
            Auth::AcceptAny => self.on_verdict(Verdict::Accepted, now),
            Auth::Local(users) => {
                let users = users.clone();
                self.phase = Phase::Verifying;
                self.actions.push_back(Action::Verify { users, credentials });
            }
            Auth::Bridge { allow_unprotected } => self.bridge(credentials, *allow_unprotected, now),
            Auth::Off => self.on_verdict(Verdict::Unavailable, now),
        }
    }

    /// The answer to [`Action::Verify`].
    pub(crate) fn on_verified(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Verifying) {
            self.on_verdict(verdict, now);
            self.advance(now);
        }
    }

    pub(super) fn on_verdict(&mut self, verdict: Verdict, now: Instant) {
        self.phase = Phase::Command;
        self.client_deadline = now + self.settings.timeouts.command;
        match verdict {
            Verdict::Accepted => {
                self.authenticated = true;
                self.answer(&AUTHENTICATED, now);
            }
            Verdict::Unavailable => self.answer(&CANNOT_TELL, now),
            Verdict::Refused => {
                self.auth_failures += 1;
                self.actions.push_back(Action::Note(Note::AuthFailed));
                self.charge(Kind::AuthFailures, 1, now);
                self.slow_down(now);
                self.answer(&WRONG, now);
                if self.auth_failures >= self.settings.limits.auth_failures_max {
                    self.cut(&TOO_MANY_FAILURES, now);
                }
            }
        }
    }
}
