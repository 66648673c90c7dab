//! How the CLI shows who it is.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::Path,
};

use redirect_relay::gateway::Secret;

use super::{Env, Error, failed};
use crate::{
    api::endpoint::{Endpoint, TlsFiles, Transport},
    cli::Credentials,
    limits,
};

pub(super) fn transport(env: &mut Env<'_>, endpoint: Endpoint, credentials: Credentials) -> Result<Transport, Error> {
    let Credentials { token_file, cacert, client_cert, client_key } = credentials;
    let token = match token_file {
        Some(path) if path == Path::new("-") => Some(first_line(&path, &mut *env.stdin)?),
        Some(path) => Some(first_line(&path, File::open(&path).map_err(|error| failed(&path, &error))?)?),
        None => (env.getenv)("REDIRECT_TOKEN").filter(|token| !token.is_empty()).map(Secret::new),
    };
    // Whatever else it is, it would break the header that it goes into, and it must not be quoted.
    if token.as_ref().is_some_and(|token| !token.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(Error::Usage("the token has characters that no token has".to_owned()));
    }
    let own = match (client_cert, client_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(Error::Usage("--cert and --key belong together".to_owned())),
    };
    let files = TlsFiles { authority: cacert, own };
    Transport::new(endpoint, token, &files).map_err(|invalid| Error::Failed(invalid.0))
}

/// A secret: the first line of what is read, without its end.
pub(super) fn first_line(path: &Path, source: impl Read) -> Result<Secret, Error> {
    let mut line = String::new();
    let mut source = BufReader::new(source.take(limits::LINE_BYTES_MAX));
    source.read_line(&mut line).map_err(|error| failed(path, &error))?;
    let secret = line.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(failed(path, &"its first line is empty"));
    }
    Ok(Secret::new(secret.to_owned()))
}
