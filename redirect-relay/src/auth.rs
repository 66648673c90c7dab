//! AUTH of clients (RFC 4954): PLAIN (RFC 4616) and LOGIN, and the operator's table of users.
//!
//! Octets that may hold a password live in [`Zeroizing`] memory, show themselves to no log, and go no further than to
//! whom they are proved.

use std::{collections::HashMap, fmt, num::NonZeroU32, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

use crate::{gateway::Secret, limits::CREDENTIAL_MAX};

/// What a client wants to be known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: Secret,
    pub(crate) password: Secret,
}

/// Credentials that a gateway is to judge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) credentials: Credentials,
    /// They may cross a connection without TLS, or reach a server that nobody verified.
    pub(crate) allow_unprotected: bool,
}

/// Base64 as it came in a line, or the octets of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Response(pub(crate) Zeroizing<String>);

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// SCRAM is not among them: where any password will do, we could not prove that we know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    Plain,
    Login,
}

impl Mechanism {
    pub(crate) fn named(name: &str) -> Option<Self> {
        [("PLAIN", Self::Plain), ("LOGIN", Self::Login)]
            .into_iter()
            .find_map(|(known, mechanism)| known.eq_ignore_ascii_case(name).then_some(mechanism))
    }
}

/// What an exchange waits for.
#[derive(Debug)]
enum Awaited {
    /// authzid NUL authcid NUL password
    Plain,
    Username,
    Password {
        username: Secret,
    },
}

/// One exchange with a client.
#[derive(Debug)]
pub(crate) struct Exchange {
    awaited: Awaited,
}

/// What comes of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// 334 with this text, and a further response.
    Challenge(&'static str),
    Done(Credentials),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a response of this mechanism")]
pub(crate) struct BadResponse;

impl Exchange {
    /// The exchange and the first challenge: base64 of nothing, of "Username:".
    pub(crate) const fn begin(mechanism: Mechanism) -> (Self, &'static str) {
        match mechanism {
            Mechanism::Plain => (Self { awaited: Awaited::Plain }, ""),
            Mechanism::Login => (Self { awaited: Awaited::Username }, "VXNlcm5hbWU6"),
        }
    }

    /// The client's answer to the challenge, base64 without its line end; with AUTH itself, "=" is the empty one.
    pub(crate) fn respond(&mut self, response: &Response) -> Result<Turn, BadResponse> {
        let text = decode(&response.0)?;
        match std::mem::replace(&mut self.awaited, Awaited::Plain) {
            Awaited::Plain => plain(&text).map(Turn::Done),
            Awaited::Username => {
                self.awaited = Awaited::Password { username: credential(&text)? };
                Ok(Turn::Challenge("UGFzc3dvcmQ6"))
            }
            Awaited::Password { username } => Ok(Turn::Done(Credentials { username, password: credential(&text)? })),
        }
    }
}

fn decode(base64: &str) -> Result<Zeroizing<String>, BadResponse> {
    let base64 = if base64 == "=" { "" } else { base64 };
    let mut octets = Zeroizing::new(vec![0; base64.len()]);
    let length = STANDARD.decode_slice(base64, &mut octets).map_err(|_| BadResponse)?;
    let text = str::from_utf8(&octets[..length]).map_err(|_| BadResponse)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// `message = [authzid] UTF8NUL authcid UTF8NUL passwd` (RFC 4616 section 2). Nobody acts for another here.
fn plain(text: &str) -> Result<Credentials, BadResponse> {
    let mut parts = text.split('\0');
    let (Some(authzid), Some(username), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(BadResponse);
    };
    if !authzid.is_empty() && authzid != username {
        return Err(BadResponse);
    }
    Ok(Credentials { username: credential(username)?, password: credential(password)? })
}

fn credential(text: &str) -> Result<Secret, BadResponse> {
    if text.is_empty() || text.len() > CREDENTIAL_MAX || text.contains('\0') {
        return Err(BadResponse);
    }
    Ok(Secret::new(text.to_owned()))
}

/// What the store keeps of a password: SCRAM-SHA-256's verifier (RFC 5803), written
/// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`. The password cannot be had from it but by trying; so it shows
/// itself to no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: [u8; digest::SHA256_OUTPUT_LEN],
    server_key: [u8; digest::SHA256_OUTPUT_LEN],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierInvalid {
    #[error("not of the form SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")]
    Form,
    #[error("iterations must be {MIN} to {MAX}", MIN = Verifier::ITERATIONS_MIN, MAX = Verifier::ITERATIONS_MAX)]
    Iterations,
    #[error("the system gives no random octets")]
    Random,
}

impl Verifier {
    /// RFC 7677 section 4.
    pub const ITERATIONS_MIN: u32 = 4096;
    /// Some tenths of a second of one CPU.
    pub const ITERATIONS_MAX: u32 = 600_000;
    /// A password of a new user: some 10 ms of one CPU for each attempt.
    pub const ITERATIONS: u32 = 20_000;
    const COST: NonZeroU32 = NonZeroU32::new(Self::ITERATIONS).expect("not zero");

    /// With a salt of its own.
    pub fn of_password(password: &str) -> Result<Self, VerifierInvalid> {
        let salt: [u8; 16] = ring::rand::generate(&ring::rand::SystemRandom::new())
            .map_err(|ring::error::Unspecified| VerifierInvalid::Random)?
            .expose();
        let (stored_key, server_key) = derive(password, &salt, Self::COST);
        Ok(Self { iterations: Self::COST, salt: salt.into(), stored_key, server_key })
    }

    /// Accepts no password, and takes as long over it as that of a new user.
    fn nobody() -> Self {
        Self { iterations: Self::COST, salt: vec![0; 16], stored_key: [0; 32], server_key: [0; 32] }
    }

    /// Takes as long for a wrong password as for the right one.
    pub fn accepts(&self, password: &str) -> bool {
        let (stored_key, _) = derive(password, &self.salt, self.iterations);
        stored_key.iter().zip(self.stored_key).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// `StoredKey` and `ServerKey` (RFC 5802 section 3).
fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> ([u8; 32], [u8; 32]) {
    let mut salted = Zeroizing::new([0; digest::SHA256_OUTPUT_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut *salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let sized = |octets: &[u8]| octets.try_into().expect("SHA-256 gives 32 octets");
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    (sized(stored_key.as_ref()), sized(hmac::sign(&key, b"Server Key").as_ref()))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] = [&self.salt[..], &self.stored_key, &self.server_key].map(|v| STANDARD.encode(v));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl FromStr for Verifier {
    type Err = VerifierInvalid;

    fn from_str(text: &str) -> Result<Self, VerifierInvalid> {
        let parts = || {
            let (cost, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = cost.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let octets = |text: &str| STANDARD.decode(text).ok().filter(|octets| !octets.is_empty());
            let key = |text: &str| octets(text)?.try_into().ok();
            Some((iterations.parse().ok()?, octets(salt)?, key(stored)?, key(server)?))
        };
        let (iterations, salt, stored_key, server_key): (u32, _, _, _) = parts().ok_or(VerifierInvalid::Form)?;
        let iterations = NonZeroU32::new(iterations)
            .filter(|count| (Self::ITERATIONS_MIN..=Self::ITERATIONS_MAX).contains(&count.get()))
            .ok_or(VerifierInvalid::Iterations)?;
        Ok(Self { iterations, salt, stored_key, server_key })
    }
}

/// The users of AUTH mode `local`.
#[derive(Debug, Default)]
pub struct Users {
    verifiers: HashMap<String, Verifier>,
}

impl Users {
    pub fn new(users: impl IntoIterator<Item = (String, Verifier)>) -> Self {
        Self { verifiers: users.into_iter().collect() }
    }

    /// Uses a CPU for as long as the verifier's iterations take.
    pub(crate) fn accept(&self, credentials: &Credentials) -> bool {
        let known = self.verifiers.get(credentials.username.expose());
        // Looked at for a name that is nobody's too, so that time does not tell who exists.
        known.unwrap_or(&Verifier::nobody()).accepts(credentials.password.expose()) && known.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(username: &str, password: &str) -> Credentials {
        Credentials { username: Secret::new(username.into()), password: Secret::new(password.into()) }
    }

    fn say(text: &str) -> Response {
        Response(Zeroizing::new(STANDARD.encode(text)))
    }

    fn check_plain(text: &str, expected: Option<(&str, &str)>) {
        let (mut exchange, challenge) = Exchange::begin(Mechanism::Plain);
        assert_eq!(challenge, "");
        let expected = expected.map(|(username, password)| Turn::Done(credentials(username, password)));
        assert_eq!(exchange.respond(&say(text)).ok(), expected, "{text:?}");
    }

    #[test]
    fn plain_responses() {
        check_plain("\0user\0pass", Some(("user", "pass")));
        check_plain("user\0user\0pass word \u{e9}", Some(("user", "pass word \u{e9}")));
        for text in ["", "user", "\0user", "\0user\0", "\0\0pass", "other\0user\0pass", "\0user\0pass\0", "user\0pass"]
        {
            check_plain(text, None);
        }
        check_plain(&format!("\0user\0{}", "x".repeat(CREDENTIAL_MAX + 1)), None);
    }

    #[test]
    fn login_responses() {
        let (mut exchange, challenge) = Exchange::begin(Mechanism::Login);
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Username:");
        let Ok(Turn::Challenge(challenge)) = exchange.respond(&say("user")) else { panic!("a challenge") };
        assert_eq!(STANDARD.decode(challenge).unwrap(), b"Password:");
        assert_eq!(exchange.respond(&say("pass")), Ok(Turn::Done(credentials("user", "pass"))));
        assert_eq!(Exchange::begin(Mechanism::Login).0.respond(&say("")), Err(BadResponse));
    }

    #[test]
    fn attack_36_what_is_not_base64() {
        for text in ["*", "AAA", "AA=A", "A A=", "AAAA\r", "=="] {
            let response = Response(Zeroizing::new(text.into()));
            assert_eq!(Exchange::begin(Mechanism::Plain).0.respond(&response), Err(BadResponse), "{text:?}");
        }
        let not_utf8 = Response(Zeroizing::new(STANDARD.encode(b"\0user\0\xff")));
        assert_eq!(Exchange::begin(Mechanism::Plain).0.respond(&not_utf8), Err(BadResponse));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!("{:?} {:?}", credentials("user", "pass"), say("pass"));
        assert_eq!(shown, "Credentials { username: ***, password: *** } ***");
    }

    /// RFC 7677 section 3: user "user", password "pencil", and what the server must know of it.
    #[test]
    fn the_verifier_is_that_of_scram() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let verifier: Verifier = text.parse().unwrap();
        assert_eq!(verifier.to_string(), text);
        assert!(verifier.accepts("pencil"));
        assert!(!verifier.accepts("pencils"));
        let (stored_key, server_key) = derive("pencil", &verifier.salt, verifier.iterations);
        assert_eq!((stored_key, server_key), (verifier.stored_key, verifier.server_key));
    }

    #[test]
    fn verifiers_that_are_none() {
        let check = |text: &str, expected| assert_eq!(text.parse::<Verifier>(), Err(expected), "{text:?}");
        let key = STANDARD.encode([7; 32]);
        check("", VerifierInvalid::Form);
        check("pencil", VerifierInvalid::Form);
        check(&format!("SCRAM-SHA-1$4096:AAAA${key}:{key}"), VerifierInvalid::Form);
        check(&format!("SCRAM-SHA-256$4096:${key}:{key}"), VerifierInvalid::Form);
        check(&format!("SCRAM-SHA-256$4096:AAAA${key}:AAAA"), VerifierInvalid::Form);
        check(&format!("SCRAM-SHA-256$4095:AAAA${key}:{key}"), VerifierInvalid::Iterations);
        check(&format!("SCRAM-SHA-256$4294967295:AAAA${key}:{key}"), VerifierInvalid::Iterations);
    }

    #[test]
    fn users_of_the_table() {
        let users = Users::new([("user".into(), Verifier::of_password("pass").unwrap())]);
        assert!(users.accept(&credentials("user", "pass")));
        for (username, password) in [("user", "Pass"), ("other", "pass"), ("other", ""), ("User", "pass")] {
            assert!(!users.accept(&credentials(username, password)), "{username}");
        }
        let other = Verifier::of_password("pass").unwrap();
        assert_ne!(users.verifiers["user"], other, "each has a salt of its own");
    }
}
