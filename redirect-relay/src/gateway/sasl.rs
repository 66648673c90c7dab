//! Our side of AUTH with a gateway (RFC 4954): PLAIN (RFC 4616), LOGIN, SCRAM-SHA-256 (RFC 5802, RFC 7677).

use std::num::NonZeroU32;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

use crate::gateway::{Mechanism, Secret};

/// The most iterations that a gateway may ask of us: each is two SHA-256 blocks, so 600,000 take some tenths of a second.
const ITERATIONS_MAX: u32 = 600_000;
/// The fewest (RFC 7677 section 4).
const ITERATIONS_MIN: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    #[error("the gateway's challenge is not what the mechanism says")]
    Challenge,
    #[error("the gateway asks for {0} iterations, which are not {ITERATIONS_MIN} to {ITERATIONS_MAX}")]
    Iterations(u32),
    #[error("the gateway does not know the account's password, so it is not the gateway")]
    Signature,
    #[error("the gateway accepted the account before it proved itself")]
    Unproved,
    #[error("the system gives no random octets")]
    Random,
}

/// One exchange. Every line that it makes is base64 and goes to the gateway as it is.
pub(crate) struct Sasl {
    state: State,
}

enum State {
    /// PLAIN: all is said with the command.
    Said,
    /// LOGIN: still to say, the next one last.
    Login(Vec<Zeroizing<String>>),
    ScramFirst(Scram),
    ScramFinal([u8; digest::SHA256_OUTPUT_LEN]),
    ScramProved,
}

struct Scram {
    password: Zeroizing<String>,
    nonce: String,
    first_bare: String,
}

impl Sasl {
    /// The exchange, and the argument of AUTH: the mechanism and its initial response.
    pub(crate) fn start(
        mechanism: Mechanism,
        username: &str,
        password: &Secret,
    ) -> Result<(Self, Zeroizing<String>), SaslError> {
        let nonce: [u8; 32] = ring::rand::generate(&ring::rand::SystemRandom::new())
            .map_err(|ring::error::Unspecified| SaslError::Random)?
            .expose();
        Ok(Self::with_nonce(mechanism, username, password, STANDARD.encode(nonce)))
    }

    /// `nonce`: printable ASCII without a comma.
    fn with_nonce(mechanism: Mechanism, username: &str, password: &Secret, nonce: String) -> (Self, Zeroizing<String>) {
        let password = Zeroizing::new(password.expose().to_owned());
        let name = mechanism.as_str();
        match mechanism {
            Mechanism::Plain => {
                // Joined, not formatted: a text that grows leaves pieces of itself in memory.
                let response = Zeroizing::new(["\0", username, "\0", &password].concat());
                (Self { state: State::Said }, Zeroizing::new([name, " ", &encode(&response)].concat()))
            }
            Mechanism::Login => {
                let words = vec![encode(&password), encode(username)];
                (Self { state: State::Login(words) }, Zeroizing::new(name.to_owned()))
            }
            Mechanism::ScramSha256 => {
                let username = username.replace('=', "=3D").replace(',', "=2C");
                let first_bare = format!("n={username},r={nonce}");
                let line = format!("{name} {}", *encode(&format!("n,,{first_bare}")));
                (Self { state: State::ScramFirst(Scram { password, nonce, first_bare }) }, Zeroizing::new(line))
            }
        }
    }

    /// The answer to a challenge, `text` being what follows 334.
    pub(crate) fn respond(&mut self, text: &str) -> Result<Zeroizing<String>, SaslError> {
        let state = std::mem::replace(&mut self.state, State::Said);
        let (state, response) = match state {
            State::Said | State::ScramProved => return Err(SaslError::Challenge),
            State::Login(mut words) => {
                // The challenges are "Username:" and "Password:" in some spelling or other, or nothing.
                let word = words.pop().ok_or(SaslError::Challenge)?;
                (State::Login(words), word)
            }
            State::ScramFirst(scram) => {
                let (signature, response) = scram.prove(&decode(text)?)?;
                (State::ScramFinal(signature), encode(&response))
            }
            State::ScramFinal(signature) => {
                check_signature(&decode(text)?, &signature)?;
                (State::ScramProved, Zeroizing::new(String::new()))
            }
        };
        self.state = state;
        Ok(response)
    }

    /// The gateway said 235, and `text`: with SCRAM, a gateway that took the account must have shown that it knows it.
    pub(crate) fn accepted(&self, text: &str) -> Result<(), SaslError> {
        match &self.state {
            State::Said | State::ScramProved => Ok(()),
            State::Login(words) if words.is_empty() => Ok(()),
            State::Login(_) | State::ScramFirst(_) => Err(SaslError::Unproved),
            // Some put the last challenge into the reply (RFC 4954 section 4 has them send a challenge of its own).
            State::ScramFinal(signature) => {
                let word = text.rsplit(' ').next().unwrap_or_default();
                let message = decode(word).ok().filter(|message| message.starts_with("v="));
                check_signature(&message.ok_or(SaslError::Unproved)?, signature)
            }
        }
    }
}

impl Scram {
    /// RFC 5802 section 3: the client's final message, and what the server's must hold.
    fn prove(&self, challenge: &str) -> Result<([u8; 32], String), SaslError> {
        let mut parts = challenge.split(',');
        let mut part = |key: &str| parts.next().and_then(|part| part.strip_prefix(key)).ok_or(SaslError::Challenge);
        let nonce = part("r=")?;
        let salt = STANDARD.decode(part("s=")?).map_err(|_| SaslError::Challenge)?;
        let iterations: u32 = part("i=")?.parse().map_err(|_| SaslError::Challenge)?;
        let printable = nonce.bytes().all(|octet| matches!(octet, b'!'..=b'~'));
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() || !printable {
            return Err(SaslError::Challenge);
        }
        let rounds = NonZeroU32::new(iterations)
            .filter(|_| (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations))
            .ok_or(SaslError::Iterations(iterations))?;
        let mut salted = Zeroizing::new([0; digest::SHA256_OUTPUT_LEN]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, self.password.as_bytes(), &mut *salted);
        let client_key = mac(&*salted, "Client Key");
        let server_key = mac(&*salted, "Server Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        // "biws" is "n,,": no channel binding.
        let unproved = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{unproved}", self.first_bare);
        let signature = mac(stored_key.as_ref(), &message);
        let mut proof = client_key;
        proof.iter_mut().zip(signature).for_each(|(octet, other)| *octet ^= other);
        Ok((mac(&server_key, &message), format!("{unproved},p={}", STANDARD.encode(proof))))
    }
}

fn check_signature(message: &str, expected: &[u8]) -> Result<(), SaslError> {
    let value = message.strip_prefix("v=").and_then(|rest| rest.split(',').next()).ok_or(SaslError::Signature)?;
    let signature = STANDARD.decode(value).map_err(|_| SaslError::Signature)?;
    // Not secret any more: the peer that sends it knows it. How long the comparison takes tells it nothing.
    if signature == expected { Ok(()) } else { Err(SaslError::Signature) }
}

fn mac(key: &[u8], text: &str) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    tag.as_ref().try_into().expect("HMAC-SHA-256 makes 32 octets")
}

fn encode(text: &str) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(text))
}

fn decode(text: &str) -> Result<String, SaslError> {
    let octets = STANDARD.decode(text.trim()).map_err(|_| SaslError::Challenge)?;
    String::from_utf8(octets).map_err(|_| SaslError::Challenge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Secret;

    fn start(mechanism: Mechanism, username: &str, password: &str) -> (Sasl, Zeroizing<String>) {
        Sasl::start(mechanism, username, &Secret::new(password.into())).unwrap()
    }

    #[test]
    fn plain() {
        let (mut sasl, line) = start(Mechanism::Plain, "tim", "tanstaaftanstaaf");
        assert_eq!(*line, "PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm", "RFC 4616 section 4");
        assert_eq!(sasl.accepted("2.7.0 ok"), Ok(()));
        assert_eq!(sasl.respond("").unwrap_err(), SaslError::Challenge);
    }

    #[test]
    fn login() {
        let (mut sasl, line) = start(Mechanism::Login, "tim", "secret");
        assert_eq!(*line, "LOGIN");
        assert_eq!(sasl.accepted(""), Err(SaslError::Unproved));
        assert_eq!(*sasl.respond("VXNlcm5hbWU6").unwrap(), STANDARD.encode("tim"));
        assert_eq!(*sasl.respond("UGFzc3dvcmQ6").unwrap(), STANDARD.encode("secret"));
        assert_eq!(sasl.accepted(""), Ok(()));
        assert_eq!(sasl.respond("TW9yZTo=").unwrap_err(), SaslError::Challenge);
    }

    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn scram() -> Sasl {
        let password = Secret::new("pencil".into());
        let (sasl, line) = Sasl::with_nonce(Mechanism::ScramSha256, "user", &password, "rOprNGfwEbeRWgbNEkqO".into());
        let response = line.strip_prefix("SCRAM-SHA-256 ").unwrap();
        assert_eq!(decode(response).unwrap(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        sasl
    }

    #[test]
    fn scram_as_in_rfc_7677() {
        let mut sasl = scram();
        let proof = decode(&sasl.respond(&encode(SERVER_FIRST)).unwrap()).unwrap();
        assert_eq!(
            proof,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(sasl.accepted(""), Err(SaslError::Unproved));
        assert_eq!(*sasl.respond(&encode(SERVER_FINAL)).unwrap(), "");
        assert_eq!(sasl.accepted("2.7.0 ok"), Ok(()));
    }

    #[test]
    fn the_gateway_may_prove_itself_in_its_last_reply() {
        let mut sasl = scram();
        sasl.respond(&encode(SERVER_FIRST)).unwrap();
        assert_eq!(sasl.accepted(&format!("2.7.0 {}", *encode(SERVER_FINAL))), Ok(()));
        assert_eq!(sasl.accepted(&format!("2.7.0 {}", *encode("v=AAAA"))), Err(SaslError::Signature));
    }

    #[test]
    fn a_gateway_that_is_not_the_gateway() {
        let check = |challenge: &str, expected: SaslError| {
            assert_eq!(scram().respond(&encode(challenge)).unwrap_err(), expected, "{challenge}");
        };
        check(&SERVER_FIRST.replace("rOpr", "xOpr"), SaslError::Challenge);
        check("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", SaslError::Challenge);
        check(&SERVER_FIRST.replace("i=4096", "i=1"), SaslError::Iterations(1));
        check(&SERVER_FIRST.replace("i=4096", "i=4000000000"), SaslError::Iterations(4_000_000_000));
        check(&SERVER_FIRST.replace("i=4096", "i=x"), SaslError::Challenge);
        check(&SERVER_FIRST.replace("s=W22", "s=!"), SaslError::Challenge);
        check("m=x,r=a,s=b,i=4096", SaslError::Challenge);
        check("", SaslError::Challenge);
        assert_eq!(scram().respond("not base64!").unwrap_err(), SaslError::Challenge);
        let mut sasl = scram();
        sasl.respond(&encode(SERVER_FIRST)).unwrap();
        assert_eq!(sasl.respond(&encode("v=AAAA")).unwrap_err(), SaslError::Signature);
        assert_eq!(scram().accepted(""), Err(SaslError::Unproved));
    }

    #[test]
    fn names_with_commas() {
        let (_, line) = Sasl::with_nonce(Mechanism::ScramSha256, "a,b=c", &Secret::new("p".into()), "n".into());
        assert_eq!(decode(line.strip_prefix("SCRAM-SHA-256 ").unwrap()).unwrap(), "n,,n=a=2Cb=3Dc,r=n");
    }

    #[test]
    fn nonces_differ() {
        let line = || start(Mechanism::ScramSha256, "u", "p").1;
        assert_ne!(*line(), *line());
    }
}
