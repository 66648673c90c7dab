//! How a connection to a gateway begins, from the banner to the point where MAIL may follow: octets in, octets out.
//!
//! ```text
//!  Banner --220--> Ehlo --250--> [STARTTLS --220--> TLS handshake --> Ehlo]
//!                   |            [XCLIENT --220--> Ehlo]
//!                   |            [AUTH --334, 334, ...--235]  --> Ready
//!                   `--5xx--> Helo --250--> Ready   (where nothing above is asked for)
//! ```
//!
//! One command is on the way at a time. Octets beyond its reply were sent before the gateway knew the next command, so
//! they answer nothing: the connection is given up, before TLS (CVE-2011-0411) and after it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    slice,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use zeroize::Zeroizing;

use crate::{
    auth::Claim,
    gateway::{
        Account, Capabilities, Encryption, Gateway, Mechanism,
        introduce::{Introduction, xclient_command},
        sasl::{Sasl, SaslError},
    },
    reply::{Reply, ReplyError, ReplyReader},
};

/// The parts of a conversation with a gateway, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = VerifyStage))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The choice of a gateway, before anything is sent.
    Choice,
    Dns,
    Tcp,
    Tls,
    Banner,
    Ehlo,
    Starttls,
    Xclient,
    Auth,
    Mail,
    Rset,
}

impl Stage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Choice => "choice",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Banner => "banner",
            Self::Ehlo => "ehlo",
            Self::Starttls => "starttls",
            Self::Xclient => "xclient",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rset => "rset",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why no connection to a gateway came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct OpenError {
    pub stage: Stage,
    pub reason: OpenReason,
}

impl OpenError {
    /// The gateway said that a client is not who it claims to be; what is wrong with the command, or with us, says 500 to 504,
    /// 530 or 538 (RFC 4954 section 6).
    pub(crate) const fn denies_claim(&self) -> bool {
        let OpenReason::Refused { code, .. } = self.reason else { return false };
        matches!(self.stage, Stage::Auth) && matches!(code, 505..=529 | 531..=537 | 539..=599)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenReason {
    /// No gateway is to take the message: there is none, or none that is enabled and takes its priority.
    #[error("{0}")]
    NoGateway(&'static str),
    /// A gateway cannot be used for the moment: it is down, busy, or at its rate.
    #[error("{0}")]
    Unusable(&'static str),
    #[error("{0}")]
    Dns(String),
    #[error("the name has no address")]
    NoAddress,
    /// The client used TLS, the gateway does not, and does not say `allow_downgrade`.
    #[error("mail that came over TLS may not go on in clear")]
    Downgrade,
    /// Our own listener: mail would go in circles.
    #[error("{0} is our own listener")]
    Loop(SocketAddr),
    /// Loopback, link-local, a metadata service or this host, and the gateway does not say `allow_local`.
    #[error("{0} is not allowed as the address of a gateway")]
    Forbidden(IpAddr),
    #[error("every egress address is suspended")]
    NoEgress,
    /// EADDRNOTAVAIL.
    #[error("{0} is not an address of this host")]
    EgressGone(IpAddr),
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Tls(String),
    #[error("no answer in time")]
    Timeout,
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the gateway refused: {code} {text}")]
    Refused { code: u16, text: String },
    #[error("the gateway does not offer {0}")]
    NotOffered(&'static str),
    #[error("the password would cross an unprotected connection")]
    Unprotected,
    #[error(transparent)]
    Sasl(#[from] SaslError),
    #[error("the gateway talked out of turn")]
    OutOfTurn,
    #[error("the gateway gave a reply that does not fit: {0}")]
    Unexpected(u16),
    #[error(transparent)]
    Malformed(#[from] ReplyError),
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Octets go out, and a reply is awaited.
    Talk,
    /// The handshake, on the connection as it is.
    Tls,
    /// MAIL may follow.
    Ready,
}

/// How far the opening goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For mail of this client.
    Mail(Introduction),
    /// For mail of this client alone, in whose name we log in.
    Bridge(Introduction, Arc<Claim>),
    /// As for mail, with nobody to introduce.
    Verify,
    /// Up to the last EHLO: whether the gateway is there.
    Probe,
}

impl Purpose {
    /// Who is introduced.
    pub(crate) const fn introduction(&self) -> Option<&Introduction> {
        match self {
            Self::Mail(introduction) | Self::Bridge(introduction, _) => Some(introduction),
            Self::Verify | Self::Probe => None,
        }
    }
}

pub(crate) struct Opening {
    gateway: Arc<Gateway>,
    /// The gateway's own, or what the message asks for.
    encryption: Encryption,
    /// Our name in EHLO.
    helo: String,
    purpose: Purpose,
    state: State,
    encrypted: bool,
    introduced: bool,
    capabilities: Capabilities,
    reader: ReplyReader,
    /// The text of the reply's last line, as it came.
    text: String,
    out: Zeroizing<Vec<u8>>,
    turn: u32,
}

enum State {
    Await(Stage),
    AwaitHelo,
    AwaitAuth(Sasl),
    Handshake,
    Ready,
}

impl Opening {
    /// The TCP connection exists, and TLS on it where that is implicit.
    pub(crate) fn new(gateway: Arc<Gateway>, encryption: Encryption, helo: String, purpose: Purpose) -> Self {
        let implicit = encryption == Encryption::Implicit;
        Self {
            gateway,
            encryption,
            helo,
            purpose,
            state: if implicit { State::Handshake } else { State::Await(Stage::Banner) },
            encrypted: false,
            introduced: false,
            capabilities: Capabilities::default(),
            reader: ReplyReader::default(),
            text: String::new(),
            out: Zeroizing::default(),
            turn: 0,
        }
    }

    pub(crate) const fn next(&self) -> Next {
        match self.state {
            State::Await(_) | State::AwaitHelo | State::AwaitAuth(_) => Next::Talk,
            State::Handshake => Next::Tls,
            State::Ready => Next::Ready,
        }
    }

    /// Counts the replies: each has a wait of its own.
    pub(crate) const fn turn(&self) -> u32 {
        self.turn
    }

    pub(crate) const fn stage(&self) -> Stage {
        match self.state {
            State::Await(stage) => stage,
            State::AwaitHelo | State::Ready => Stage::Ehlo,
            State::AwaitAuth(_) => Stage::Auth,
            State::Handshake => Stage::Tls,
        }
    }

    pub(crate) fn into_capabilities(self) -> Capabilities {
        self.capabilities
    }

    /// What is worth knowing of a stage that is done.
    pub(crate) fn about(&self, stage: Stage) -> String {
        match stage {
            Stage::Ehlo => {
                let Capabilities { pipelining, size, starttls, auth, .. } = &self.capabilities;
                let mut offers = Vec::new();
                offers.extend(pipelining.then(|| "PIPELINING".to_owned()));
                offers.extend(size.map(|size| format!("SIZE {size}")));
                offers.extend(starttls.then(|| "STARTTLS".to_owned()));
                if !auth.is_empty() {
                    offers.push(format!(
                        "AUTH {}",
                        auth.iter().map(|mechanism| mechanism.as_str()).collect::<Vec<_>>().join(" ")
                    ));
                }
                offers.join(", ")
            }
            Stage::Banner => self.text.clone(),
            _ => String::new(),
        }
    }

    /// Octets for the gateway, once.
    pub(crate) fn take_out(&mut self) -> Zeroizing<Vec<u8>> {
        std::mem::take(&mut self.out)
    }

    /// The handshake is done. Nothing that was said before it counts (RFC 3207 section 4.2).
    pub(crate) fn encrypted(&mut self) {
        self.encrypted = true;
        self.turn += 1;
        if self.encryption == Encryption::Implicit {
            self.state = State::Await(Stage::Banner);
        } else {
            self.ehlo();
        }
    }

    /// An error where the gateway is left at the moment.
    pub(crate) fn fault(&self, reason: impl Into<OpenReason>) -> OpenError {
        OpenError { stage: self.stage(), reason: reason.into() }
    }

    /// Octets from the gateway.
    pub(crate) fn input(&mut self, mut bytes: &[u8]) -> Result<(), OpenError> {
        if self.next() != Next::Talk {
            return Err(self.fault(OpenReason::OutOfTurn));
        }
        let noted = matches!(self.state, State::Await(Stage::Ehlo));
        let (capabilities, last) = (&mut self.capabilities, &mut self.text);
        let read = self.reader.read(&mut bytes, |line| {
            if noted {
                capabilities.note(line);
            }
            line.clone_into(last);
        });
        let Some(reply) = read.map_err(|error| self.fault(error))? else { return Ok(()) };
        if !bytes.is_empty() {
            return Err(self.fault(OpenReason::OutOfTurn));
        }
        self.turn += 1;
        self.on_reply(&reply)
    }

    fn on_reply(&mut self, reply: &Reply) -> Result<(), OpenError> {
        let code = reply.code;
        let plain = self.is_plain();
        let downgraded = self.is_guarded() && !self.encrypted;
        match (&mut self.state, code) {
            (State::Await(Stage::Banner | Stage::Xclient), 220) => self.ehlo(),
            (State::Await(Stage::Ehlo), 250) => return self.proceed(),
            // A server without EHLO refuses it for good (RFC 5321 section 3.2); one that is busy or broken says 4xx.
            (State::Await(Stage::Ehlo), 500..=599) if plain => {
                self.capabilities = Capabilities::default();
                self.say(State::AwaitHelo, &format!("HELO {}\r\n", self.helo));
            }
            (State::Await(Stage::Ehlo), 500..=599) if downgraded => {
                return Err(self.fault(OpenReason::Downgrade));
            }
            (State::AwaitHelo, 250) => self.state = State::Ready,
            (State::Await(Stage::Starttls), 220) => {
                self.state = State::Handshake;
                self.capabilities = Capabilities::default();
            }
            (State::AwaitAuth(sasl), 334) => {
                let response = sasl.respond(&self.text);
                let response = response.map_err(|error| self.fault(error))?;
                self.out = secret_line(&[&response]);
            }
            (State::AwaitAuth(sasl), 235) => {
                let accepted = sasl.accepted(&self.text);
                accepted.map_err(|error| self.fault(error))?;
                self.state = State::Ready;
            }
            (State::AwaitAuth(_), 400..=599) if matches!(self.purpose, Purpose::Bridge(..)) => {
                // What it says may name the client, and goes into the log.
                return Err(self.fault(OpenReason::Refused { code, text: String::new() }));
            }
            (_, 400..=599) => {
                return Err(self.fault(OpenReason::Refused { code, text: reply.text().to_owned() }));
            }
            (_, _) => return Err(self.fault(OpenReason::Unexpected(code))),
        }
        Ok(())
    }

    /// Nothing is asked for that EHLO would have to offer.
    fn is_plain(&self) -> bool {
        let Gateway { account, xclient, .. } = &*self.gateway;
        let logs_in = account.is_some() || matches!(self.purpose, Purpose::Bridge(..));
        self.encrypted || matches!(self.encryption, Encryption::None | Encryption::Starttls) && !logs_in && !xclient
    }

    /// TLS is only needed because the mail came over TLS.
    fn is_guarded(&self) -> bool {
        self.encryption != self.gateway.encryption
    }

    /// After EHLO: the first thing that is still to do.
    fn proceed(&mut self) -> Result<(), OpenError> {
        let gateway = Arc::clone(&self.gateway);
        let wants_tls = matches!(self.encryption, Encryption::Starttls | Encryption::StarttlsRequired);
        if wants_tls && !self.encrypted {
            if self.capabilities.starttls {
                self.say(State::Await(Stage::Starttls), "STARTTLS\r\n");
                return Ok(());
            }
            if self.encryption == Encryption::StarttlsRequired {
                let reason = if self.is_guarded() { OpenReason::Downgrade } else { OpenReason::NotOffered("STARTTLS") };
                return Err(OpenError { stage: Stage::Starttls, reason });
            }
        }
        if self.purpose == Purpose::Probe {
            self.state = State::Ready;
            return Ok(());
        }
        if gateway.xclient && !self.introduced {
            let offered = self.capabilities.xclient.as_deref();
            let command = match (&self.purpose, offered) {
                (_, None) => None,
                (purpose, Some(offered)) => match purpose.introduction() {
                    Some(introduction) => Some(xclient_command(introduction, offered)),
                    None => Some(Some(String::new())),
                },
            };
            let Some(command) = command.flatten() else {
                return Err(OpenError { stage: Stage::Xclient, reason: OpenReason::NotOffered("XCLIENT ADDR") });
            };
            self.introduced = true;
            if !command.is_empty() {
                self.say(State::Await(Stage::Xclient), &command);
                return Ok(());
            }
        }
        self.log_in(&gateway)
    }

    /// In the client's name, or by the gateway's account.
    fn log_in(&mut self, gateway: &Gateway) -> Result<(), OpenError> {
        let auth = |reason| OpenError { stage: Stage::Auth, reason };
        let (mechanisms, username, password, allowed) = match (&self.purpose, &gateway.account) {
            (Purpose::Bridge(_, claim), _) => {
                let Claim { credentials, allow_unprotected } = &**claim;
                let mechanisms = &[Mechanism::Plain, Mechanism::Login][..];
                (mechanisms, credentials.username.expose(), &credentials.password, *allow_unprotected)
            }
            (_, Some(account)) => {
                let Account { mechanism, username, password, allow_unprotected } = account;
                (slice::from_ref(mechanism), username.as_str(), password, *allow_unprotected)
            }
            (_, None) => {
                self.state = State::Ready;
                return Ok(());
            }
        };
        let protected = self.encrypted && gateway.is_verified();
        if mechanisms != [Mechanism::ScramSha256] && !protected && !allowed {
            return Err(auth(OpenReason::Unprotected));
        }
        let offered = mechanisms.iter().find(|mechanism| self.capabilities.auth.contains(mechanism));
        let mechanism = *offered.ok_or_else(|| auth(OpenReason::NotOffered(mechanisms[0].as_str())))?;
        let (sasl, line) = Sasl::start(mechanism, username, password).map_err(|error| auth(error.into()))?;
        self.state = State::AwaitAuth(sasl);
        self.out = secret_line(&["AUTH ", &line]);
        Ok(())
    }

    fn ehlo(&mut self) {
        self.capabilities = Capabilities::default();
        self.say(State::Await(Stage::Ehlo), &format!("EHLO {}\r\n", self.helo));
    }

    fn say(&mut self, state: State, line: &str) {
        self.state = state;
        self.out.extend_from_slice(line.as_bytes());
    }
}

/// Joined at once: what grows leaves pieces of itself in memory.
fn secret_line(parts: &[&str]) -> Zeroizing<Vec<u8>> {
    let mut line = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 2);
    for part in parts {
        line.extend_from_slice(part.as_bytes());
    }
    line.extend_from_slice(b"\r\n");
    Zeroizing::new(line)
}

/// How long the wait for the reply at a stage may last.
pub(crate) fn patience(stage: Stage, timeouts: &crate::limits::Timeouts) -> Duration {
    match stage {
        Stage::Choice | Stage::Dns | Stage::Tcp => timeouts.connect,
        Stage::Tls | Stage::Banner | Stage::Ehlo | Stage::Starttls | Stage::Xclient | Stage::Auth => timeouts.greeting,
        Stage::Mail | Stage::Rset => timeouts.mail,
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    fn gateway(json: &str) -> Arc<Gateway> {
        let json = format!(r#"{{"name":"mx","address":"mx.example"{json}}}"#);
        let gateway: Gateway = serde_json::from_str(&json).unwrap();
        assert_eq!(gateway.check(), []);
        Arc::new(gateway)
    }

    fn introduction() -> Introduction {
        Introduction {
            client: crate::ClientAddr::new("192.0.2.7:4000".parse().unwrap()),
            original: crate::OriginalDst::new("198.51.100.9:25".parse().unwrap()),
            helo: "pc".into(),
            extended: true,
        }
    }

    /// Plays `replies` in pieces of every size; `expected` is what we said, ending in how it ended. `TLS` in it stands for
    /// the handshake.
    fn check_for(purpose: &Purpose, json: &str, replies: &[&str], expected: &str) {
        check_mail(purpose, false, json, replies, expected);
    }

    /// As [`check_for`], for mail that came over TLS or not.
    fn check_mail(purpose: &Purpose, came_encrypted: bool, json: &str, replies: &[&str], expected: &str) {
        for step in 1..=replies.iter().map(|reply| reply.len()).max().unwrap() {
            let gateway = gateway(json);
            let encryption = gateway.encryption_for(came_encrypted).unwrap();
            let mut opening = Opening::new(gateway, encryption, "us.example".into(), purpose.clone());
            let mut said = String::new();
            let mut replies = replies.iter();
            let end = loop {
                said += &String::from_utf8(opening.take_out().to_vec()).unwrap().replace("\r\n", "|");
                match opening.next() {
                    Next::Ready => break "ready".to_owned(),
                    Next::Tls => {
                        said += "TLS|";
                        opening.encrypted();
                        continue;
                    }
                    Next::Talk => {}
                }
                let Some(reply) = replies.next() else { break "waits".to_owned() };
                // A reply is one segment, up to its last piece: what is sent with it arrives with it.
                let pieces = reply.as_bytes().chunks(step).collect::<Vec<_>>();
                let lines = reply.matches("\r\n").count();
                let result = if lines > 1 && !reply.contains('-') {
                    opening.input(reply.as_bytes())
                } else {
                    pieces.into_iter().try_for_each(|piece| opening.input(piece))
                };
                if let Err(error) = result {
                    break error.to_string();
                }
            };
            assert_eq!(said + &end, expected, "{json} {replies:?} in steps of {step}");
        }
    }

    fn check(json: &str, replies: &[&str], expected: &str) {
        check_for(&Purpose::Mail(introduction()), json, replies, expected);
    }

    fn bridge(allow_unprotected: bool) -> Purpose {
        let secret = |text: &str| crate::gateway::Secret::new(text.into());
        let credentials = crate::auth::Credentials { username: secret("user"), password: secret("pencil") };
        Purpose::Bridge(introduction(), Arc::new(Claim { credentials, allow_unprotected }))
    }

    /// The client's credentials, never the gateway's account beside them.
    #[test]
    fn in_the_clients_name() {
        let safe = r#","encryption":"implicit","verification":{"mode":"ca"},
            "account":{"mechanism":"SCRAM-SHA-256","username":"hotel7","password":"p"}"#;
        let plain = "250-mx\r\n250 AUTH SCRAM-SHA-256 LOGIN PLAIN\r\n";
        let login = "250-mx\r\n250 AUTH LOGIN\r\n";
        let said = "TLS|EHLO us.example|AUTH PLAIN AHVzZXIAcGVuY2ls|";
        let done = format!("{said}ready");
        check_for(&bridge(false), safe, &[BANNER, plain, "235 2.7.0 ok\r\n"], &done);
        let words = ["334 VXNlcm5hbWU6\r\n", "334 UGFzc3dvcmQ6\r\n", "235 2.7.0 ok\r\n"];
        let expected = "TLS|EHLO us.example|AUTH LOGIN|dXNlcg==|cGVuY2ls|ready";
        check_for(&bridge(false), safe, &[&[BANNER, login], &words[..]].concat(), expected);
        // What the gateway says of a client is not for the log.
        let refused = format!("{said}auth: the gateway refused: 535 ");
        check_for(&bridge(false), safe, &[BANNER, plain, "535 5.7.8 user has another pencil\r\n"], &refused);
        let scram = "250-mx\r\n250 AUTH SCRAM-SHA-256\r\n";
        let none = "TLS|EHLO us.example|auth: the gateway does not offer PLAIN";
        check_for(&bridge(false), safe, &[BANNER, scram], none);
    }

    #[test]
    fn attack_25_no_password_of_a_client_where_nobody_verified_the_gateway() {
        let offer = "250-mx\r\n250 AUTH PLAIN\r\n";
        let refused = "auth: the password would cross an unprotected connection";
        let clear = format!("EHLO us.example|{refused}");
        check_for(&bridge(false), PLAIN, &[BANNER, offer], &clear);
        check_for(&bridge(false), "", &[BANNER, offer], &clear);
        let unverified = r#","encryption":"implicit""#;
        check_for(&bridge(false), unverified, &[BANNER, offer], &format!("TLS|{clear}"));
        // Whose account may go there, and whose need not.
        let own = r#","encryption":"none","account":{"username":"u","password":"p","allow_unprotected":true}"#;
        check_for(&bridge(false), own, &[BANNER, offer], &clear);
        let said = "EHLO us.example|AUTH PLAIN AHVzZXIAcGVuY2ls|ready";
        check_for(&bridge(true), PLAIN, &[BANNER, offer, "235 ok\r\n"], said);
        // It is no reason to do without EHLO.
        let without = [BANNER, "500 5.5.1 what\r\n"];
        let expected = "EHLO us.example|ehlo: the gateway refused: 500 what";
        check_for(&bridge(true), PLAIN, &without, expected);
    }

    #[test]
    fn what_denies_a_claim() {
        for (stage, code, denies) in [
            (Stage::Auth, 535, true),
            (Stage::Auth, 550, true),
            (Stage::Auth, 454, false),
            (Stage::Auth, 504, false),
            (Stage::Auth, 530, false),
            (Stage::Auth, 538, false),
            (Stage::Banner, 554, false),
        ] {
            let error = OpenError { stage, reason: OpenReason::Refused { code, text: String::new() } };
            assert_eq!(error.denies_claim(), denies, "{error}");
        }
        assert!(!OpenError { stage: Stage::Auth, reason: OpenReason::Unprotected }.denies_claim());
    }

    const BANNER: &str = "220 mx ready\r\n";
    const PLAIN: &str = r#","encryption":"none""#;

    #[test]
    fn plain() {
        check(PLAIN, &[BANNER, "250-mx\r\n250 STARTTLS\r\n"], "EHLO us.example|ready");
        check("", &[BANNER, "250 mx\r\n"], "EHLO us.example|ready");
        check(PLAIN, &[BANNER, "500 5.5.1 what\r\n", "250 mx\r\n"], "EHLO us.example|HELO us.example|ready");
        check(PLAIN, &[BANNER], "EHLO us.example|waits");
    }

    #[test]
    fn starttls() {
        let offer = "250-mx\r\n250 STARTTLS\r\n";
        let expected = "EHLO us.example|STARTTLS|TLS|EHLO us.example|ready";
        check("", &[BANNER, offer, "220 go\r\n", "250 mx\r\n"], expected);
        check(r#","encryption":"starttls_required""#, &[BANNER, offer, "220 go\r\n", offer], expected);
        check(
            r#","encryption":"starttls_required""#,
            &[BANNER, "250 mx\r\n"],
            "EHLO us.example|starttls: the gateway does not offer STARTTLS",
        );
        check(
            r#","encryption":"starttls_required""#,
            &[BANNER, "502 what\r\n"],
            "EHLO us.example|ehlo: the gateway refused: 502 what",
        );
        check(
            "",
            &[BANNER, offer, "454 4.7.0 no\r\n"],
            "EHLO us.example|STARTTLS|starttls: the gateway refused: 454 no",
        );
    }

    #[test]
    fn mail_that_came_over_tls_does_not_go_on_in_clear() {
        let check = |json: &str, replies: &[&str], expected: &str| {
            check_mail(&Purpose::Mail(introduction()), true, json, replies, expected);
        };
        let offer = "250-mx\r\n250 STARTTLS\r\n";
        let downgrade = "mail that came over TLS may not go on in clear";
        check("", &[BANNER, offer, "220 go\r\n", "250 mx\r\n"], "EHLO us.example|STARTTLS|TLS|EHLO us.example|ready");
        check("", &[BANNER, "250 mx\r\n"], &format!("EHLO us.example|starttls: {downgrade}"));
        check("", &[BANNER, "500 what\r\n"], &format!("EHLO us.example|ehlo: {downgrade}"));
        let allowed = r#","allow_downgrade":true"#;
        check(allowed, &[BANNER, "250 mx\r\n"], "EHLO us.example|ready");
        check(&format!("{PLAIN}{allowed}"), &[BANNER, offer], "EHLO us.example|ready");
        assert_eq!(gateway(PLAIN).encryption_for(true), None);
        check(r#","encryption":"implicit""#, &[BANNER, "250 mx\r\n"], "TLS|EHLO us.example|ready");
    }

    #[test]
    fn what_is_injected_behind_a_reply_is_refused() {
        let offer = "250-mx\r\n250 STARTTLS\r\n";
        check(
            "",
            &[BANNER, offer, "220 go\r\n250 AUTH PLAIN\r\n"],
            "EHLO us.example|STARTTLS|starttls: the gateway talked out of turn",
        );
        check(PLAIN, &["220 a\r\n250 b\r\n"], "banner: the gateway talked out of turn");
    }

    #[test]
    fn implicit_tls() {
        check(r#","encryption":"implicit""#, &[BANNER, "250-mx\r\n250 STARTTLS\r\n"], "TLS|EHLO us.example|ready");
    }

    #[test]
    fn refusals_carry_stage_and_reason() {
        check(PLAIN, &["554 5.7.1 go away\r\n"], "banner: the gateway refused: 554 go away");
        check(PLAIN, &["421 busy\r\n"], "banner: the gateway refused: 421 busy");
        check(PLAIN, &["250 hi\r\n"], "banner: the gateway gave a reply that does not fit: 250");
        check(PLAIN, &["hello\r\n"], "banner: a reply line does not begin with a code from 200 to 599");
        check(PLAIN, &[BANNER, "450 no\r\n"], "EHLO us.example|ehlo: the gateway refused: 450 no");
        check(
            PLAIN,
            &[BANNER, "500 no\r\n", "500 no\r\n"],
            "EHLO us.example|HELO us.example|ehlo: the gateway refused: 500 no",
        );
    }

    const ACCOUNT: &str = r#","encryption":"none","account":{"username":"u","password":"p","allow_unprotected":true}"#;

    #[test]
    fn accounts() {
        let offer = "250-mx\r\n250 AUTH PLAIN LOGIN SCRAM-SHA-256\r\n";
        let plain = format!("EHLO us.example|AUTH PLAIN {}|", STANDARD.encode("\0u\0p"));
        check(ACCOUNT, &[BANNER, offer, "235 2.7.0 ok\r\n"], &format!("{plain}ready"));
        check(ACCOUNT, &[BANNER, offer, "535 5.7.8 no\r\n"], &format!("{plain}auth: the gateway refused: 535 no"));
        check(
            ACCOUNT,
            &[BANNER, offer, "454 4.7.0 later\r\n"],
            &format!("{plain}auth: the gateway refused: 454 later"),
        );
        check(
            ACCOUNT,
            &[BANNER, offer, "334 \r\n"],
            &format!("{plain}auth: the gateway's challenge is not what the mechanism says"),
        );
        check(
            ACCOUNT,
            &[BANNER, offer, "250 ok\r\n"],
            &format!("{plain}auth: the gateway gave a reply that does not fit: 250"),
        );
        check(ACCOUNT, &[BANNER, "250 mx\r\n"], "EHLO us.example|auth: the gateway does not offer PLAIN");
        check(ACCOUNT, &[BANNER, "502 no\r\n"], "EHLO us.example|ehlo: the gateway refused: 502 no");
        let login = ACCOUNT.replace(r#""username""#, r#""mechanism":"LOGIN","username""#);
        check(
            &login,
            &[BANNER, offer, "334 VXNlcm5hbWU6\r\n", "334 UGFzc3dvcmQ6\r\n", "235 ok\r\n"],
            "EHLO us.example|AUTH LOGIN|dQ==|cA==|ready",
        );
    }

    #[test]
    fn a_password_never_goes_in_clear_unless_that_is_allowed() {
        let pin = "ab".repeat(32);
        let json = format!(
            r#","encryption":"starttls_required","verification":{{"mode":"pin","sha256":"{pin}"}},"account":{{"username":"u","password":"p"}}"#
        );
        let auth = "250-mx\r\n250 AUTH PLAIN\r\n";
        check(&json, &[BANNER, auth], "EHLO us.example|starttls: the gateway does not offer STARTTLS");
        let both = "250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n";
        check(
            &json,
            &[BANNER, both, "220 go\r\n", auth, "235 ok\r\n"],
            "EHLO us.example|STARTTLS|TLS|EHLO us.example|AUTH PLAIN AHUAcA==|ready",
        );
        // Gateway::check refuses such a gateway; the opening does not rely on that.
        let mut bare: Gateway = (*gateway(ACCOUNT)).clone();
        bare.account.as_mut().unwrap().allow_unprotected = false;
        let encryption = bare.encryption;
        let mut opening = Opening::new(Arc::new(bare), encryption, "us.example".into(), Purpose::Verify);
        opening.input(BANNER.as_bytes()).unwrap();
        let error = opening.input(auth.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "auth: the password would cross an unprotected connection");
    }

    #[test]
    fn xclient() {
        let json = r#","encryption":"none","xclient":true"#;
        let offer = "250-mx\r\n250 XCLIENT NAME ADDR\r\n";
        check(
            json,
            &[BANNER, offer, "220 again\r\n", offer],
            "EHLO us.example|XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7|EHLO us.example|ready",
        );
        check(json, &[BANNER, "250 mx\r\n"], "EHLO us.example|xclient: the gateway does not offer XCLIENT ADDR");
        check(
            json,
            &[BANNER, offer, "550 5.7.0 no\r\n"],
            "EHLO us.example|XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7|xclient: the gateway refused: 550 no",
        );
        check_for(&Purpose::Verify, json, &[BANNER, offer], "EHLO us.example|ready");
    }

    #[test]
    fn a_probe_gives_no_credentials() {
        check_for(&Purpose::Probe, ACCOUNT, &[BANNER, "250 mx\r\n"], "EHLO us.example|ready");
        let offer = "250-mx\r\n250 STARTTLS\r\n";
        check_for(
            &Purpose::Probe,
            "",
            &[BANNER, offer, "220 go\r\n", offer],
            "EHLO us.example|STARTTLS|TLS|EHLO us.example|ready",
        );
    }
}
