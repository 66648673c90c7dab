//! Bearer tokens: `rdt_`, 12 hexadecimal digits that name the token, `_`, and 64 that are its 256 random bits.
//!
//! Only the SHA-256 of a token is kept. That is enough for what nobody can guess: a slow hash is for passwords. The file is replaced as a
//! whole, so that it holds what was acknowledged or what was before.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use ipnet::IpNet;
use redirect_relay::gateway::{Name, Secret};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::role::AccessRole as Role;
use crate::{desired::Time, limits};

/// What every token begins with, so that scanners of leaked secrets know one.
pub const PREFIX: &str = "rdt_";
const ID_DIGITS: usize = 12;
const SECRET_DIGITS: usize = 64;

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub id: String,
    pub name: Name,
    pub role: Role,
    /// Only subscribers inside this prefix.
    #[serde(default)]
    pub within: Option<IpNet>,
    pub created: Time,
    pub created_by: String,
    #[serde(default)]
    pub expires: Option<Time>,
    /// SHA-256 of the token's text, in hexadecimal digits.
    hash: String,
}

/// What a token is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Name,
    pub role: Role,
    pub within: Option<IpNet>,
    pub expires: Option<Time>,
    pub created_by: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is a token {name} already; revoke it first, or choose another name")]
    Taken { name: Name },
    #[error("there is no token {name}")]
    NotFound { name: Name },
    #[error("there are {} tokens already, which is the most; revoke one", limits::TOKENS_MAX)]
    TooMany,
    #[error("the operating system gives no random numbers")]
    NoRandom,
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is no list of tokens ({text}); restore it, or remove it, which revokes all tokens", .path.display())]
    Malformed { path: PathBuf, text: String },
}

impl Error {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Never issued, or revoked.
    Unknown,
    Expired(Arc<Known>),
}

/// A token, and when it was used.
#[derive(Debug)]
pub struct Known {
    pub token: Token,
    /// Seconds since the epoch, in whole minutes; 0 for not since the start.
    used_s: AtomicI64,
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.token == other.token
    }
}

impl Eq for Known {}

impl Known {
    fn new(token: Token) -> Arc<Self> {
        Arc::new(Self { token, used_s: AtomicI64::new(0) })
    }

    /// The minute of its last use since the daemon started.
    pub fn used(&self) -> Option<Time> {
        let seconds = self.used_s.load(Ordering::Relaxed);
        (seconds != 0).then_some(Time { seconds })
    }
}

/// All tokens.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    known: RwLock<Vec<Arc<Known>>>,
    /// Held while the file is replaced.
    writing: Mutex<()>,
}

impl Tokens {
    /// Reads the file at `path`, which need not be there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let tokens: Vec<Token> = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::Malformed { path: path.to_owned(), text: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
        };
        let known = tokens.into_iter().map(Known::new).collect();
        Ok(Self { path: path.to_owned(), known: RwLock::new(known), writing: Mutex::new(()) })
    }

    /// In the order of their names.
    pub fn all(&self) -> Vec<Arc<Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a token; its text is nowhere but in the answer. Blocks until it is on disk.
    pub fn create(&self, wanted: Wanted, now: Time) -> Result<(Token, Secret), Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tokens = self.all();
        if tokens.iter().any(|known| known.token.name == wanted.name) {
            return Err(Error::Taken { name: wanted.name });
        }
        if tokens.len() >= limits::TOKENS_MAX {
            return Err(Error::TooMany);
        }
        let (id, text) = loop {
            let (id, text) = random()?;
            if tokens.iter().all(|known| known.token.id != id) {
                break (id, text);
            }
        };
        let Wanted { name, role, within, expires, created_by } = wanted;
        let hash = hash(text.expose());
        let token = Token { id, name, role, within, created: now, created_by, expires, hash };
        let place = tokens.partition_point(|known| known.token.name < token.name);
        tokens.insert(place, Known::new(token.clone()));
        self.replace(tokens)?;
        Ok((token, text))
    }

    /// From here on it opens nothing. Blocks until that is on disk.
    pub fn revoke(&self, name: &Name) -> Result<Token, Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tokens = self.all();
        let place = tokens.iter().position(|known| known.token.name == *name);
        let known = tokens.remove(place.ok_or_else(|| Error::NotFound { name: name.clone() })?);
        self.replace(tokens)?;
        Ok(known.token.clone())
    }

    /// The token that `text` is.
    pub fn check(&self, text: &str, now: Time) -> Result<Arc<Known>, Refused> {
        let id = id_of(text).ok_or(Refused::Unknown)?;
        let found = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = found.iter().find(|known| known.token.id == id).cloned().ok_or(Refused::Unknown)?;
        if !bool::from(hash(text).as_bytes().ct_eq(found.token.hash.as_bytes())) {
            return Err(Refused::Unknown);
        }
        if found.token.expires.is_some_and(|expires| expires <= now) {
            return Err(Refused::Expired(found));
        }
        found.used_s.store(now.seconds - now.seconds.rem_euclid(60), Ordering::Relaxed);
        Ok(found)
    }

    fn replace(&self, tokens: Vec<Arc<Known>>) -> Result<(), Error> {
        let list: Vec<_> = tokens.iter().map(|known| &known.token).collect();
        let text = serde_json::to_vec_pretty(&list).map_err(io::Error::other);
        let written = text.and_then(|text| replace_file(&self.path, &text));
        written.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(())
    }
}

/// The old file, or the new one: never a part of it.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_added_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    // The name is on disk when the directory is.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn random() -> Result<(String, Secret), Error> {
    let (mut id, mut secret) = ([0_u8; ID_DIGITS / 2], [0_u8; SECRET_DIGITS / 2]);
    let random = SystemRandom::new();
    random.fill(&mut id).and_then(|()| random.fill(&mut secret)).map_err(|_| Error::NoRandom)?;
    let id = hex(&id);
    let text = format!("{PREFIX}{id}_{}", hex(&secret));
    Ok((id, Secret::new(text)))
}

fn hash(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digits that name a token; `None` for what cannot be one.
fn id_of(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (digits(id, ID_DIGITS) && digits(secret, SECRET_DIGITS)).then_some(id)
}

/// `text` without tokens that somebody put where they do not belong.
pub fn redacted(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(PREFIX) {
        let (before, token) = rest.split_at(at + PREFIX.len());
        clean.push_str(before);
        clean.push_str("***");
        rest = token.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted(name: &str, expires: Option<i64>) -> Wanted {
        Wanted {
            name: name.parse().unwrap(),
            role: Role::Viewer,
            within: None,
            expires: expires.map(|seconds| Time { seconds }),
            created_by: "uid:0".to_owned(),
        }
    }

    const NOW: Time = Time { seconds: 1_800_000_030 };

    #[test]
    fn a_token_opens_until_it_is_revoked_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        let (token, text) = tokens.create(wanted("portal", None), NOW).unwrap();
        assert_eq!(tokens.all()[0].used(), None);
        assert_eq!(tokens.check(text.expose(), NOW).unwrap().token, token);
        assert_eq!(tokens.all()[0].used(), Some(Time { seconds: 1_800_000_000 }), "to the minute");

        let tokens = Tokens::open(&path).unwrap();
        assert_eq!(tokens.check(text.expose(), NOW).unwrap().token, token);
        tokens.revoke(&token.name).unwrap();
        assert_eq!(tokens.check(text.expose(), NOW), Err(Refused::Unknown));
        assert_eq!(Tokens::open(&path).unwrap().check(text.expose(), NOW), Err(Refused::Unknown));
        assert!(matches!(tokens.revoke(&token.name), Err(Error::NotFound { .. })));
    }

    #[test]
    fn the_file_is_private_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let (_, text) = Tokens::open(&path).unwrap().create(wanted("portal", None), NOW).unwrap();
        let secret = text.expose().rsplit('_').next().unwrap();
        assert_eq!(secret.len(), SECRET_DIGITS);
        let kept = fs::read_to_string(&path).unwrap();
        assert!(!kept.contains(secret), "{kept}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_not_a_token_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join("tokens")).unwrap();
        let (_, text) = tokens.create(wanted("a", None), NOW).unwrap();
        let (_, other) = tokens.create(wanted("b", None), NOW).unwrap();
        let text = text.expose();
        let mut flipped = text.to_owned();
        let last = flipped.pop().unwrap();
        flipped.push(if last == '0' { '1' } else { '0' });
        let crossed = format!("{}{}", &text[..17], &other.expose()[17..]);
        for wrong in [
            "",
            "rdt_",
            "rdt__",
            "secret",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &flipped,
            &crossed,
            &text.to_uppercase(),
        ] {
            assert_eq!(tokens.check(wrong, NOW), Err(Refused::Unknown), "{wrong}");
        }
    }

    #[test]
    fn an_expired_token_is_told_from_an_unknown_one() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join("tokens")).unwrap();
        let (_, text) = tokens.create(wanted("a", Some(NOW.seconds + 1)), NOW).unwrap();
        assert!(tokens.check(text.expose(), NOW).is_ok());
        let later = Time { seconds: NOW.seconds + 1 };
        assert!(matches!(tokens.check(text.expose(), later), Err(Refused::Expired(_))));
    }

    #[test]
    fn names_are_distinct_and_the_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        tokens.create(wanted("a", None), NOW).unwrap();
        assert!(matches!(tokens.create(wanted("a", None), NOW), Err(Error::Taken { .. })));
        let filler = tokens.all()[0].token.clone();
        let many: Vec<_> = (0..limits::TOKENS_MAX)
            .map(|n| Token { name: format!("t{n}").parse().unwrap(), ..filler.clone() })
            .collect();
        fs::write(&path, serde_json::to_vec(&many).unwrap()).unwrap();
        let full = Tokens::open(&path).unwrap();
        assert!(matches!(full.create(wanted("more", None), NOW), Err(Error::TooMany)));
        assert_eq!(full.all().len(), limits::TOKENS_MAX);
    }

    #[test]
    fn a_file_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        let (_, text) = tokens.create(wanted("a", None), NOW).unwrap();
        // In the draft's place.
        fs::create_dir(path.with_added_extension("new")).unwrap();
        assert!(matches!(tokens.create(wanted("b", None), NOW), Err(Error::Io { .. })));
        assert!(matches!(tokens.revoke(&"a".parse().unwrap()), Err(Error::Io { .. })));
        assert!(tokens.check(text.expose(), NOW).is_ok());
        assert_eq!(tokens.all().len(), 1);
    }

    #[test]
    fn a_broken_file_keeps_the_daemon_from_starting_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, "[{").unwrap();
        let text = Tokens::open(&path).unwrap_err().to_string();
        assert!(
            text.contains("is no list of tokens") && text.ends_with("or remove it, which revokes all tokens"),
            "{text}"
        );
    }

    #[test]
    fn tokens_in_the_wrong_place_are_hidden() {
        for (text, clean) in [
            ("/v1/tokens/portal", "/v1/tokens/portal"),
            ("/v1/tokens/rdt_0123_ab/x", "/v1/tokens/rdt_***/x"),
            ("rdt_", "rdt_***"),
            ("a rdt_1 b rdt_2", "a rdt_*** b rdt_***"),
        ] {
            assert_eq!(redacted(text), clean);
        }
    }
}
