//! TLS with a relay's clients: the relay's certificate, and clients that believe it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use super::latency;

const HOSTNAME: &str = "relay.example.net";

/// The relay's, signed by its own key, in files.
pub(super) struct Certificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificate {
    /// The files that [`Certificate::new`] writes.
    pub(super) fn in_folder(folder: &Path) -> Self {
        let [chain, key] = ["relay.pem", "relay.key"].map(|name| folder.join(name));
        Self { chain, key }
    }

    pub(super) fn new(folder: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([HOSTNAME.to_owned()])?;
        let Self { chain, key } = Self::in_folder(folder);
        fs::write(&chain, made.cert.pem()).with_context(|| format!("write {}", chain.display()))?;
        fs::write(&key, made.signing_key.serialize_pem()).with_context(|| format!("write {}", key.display()))?;
        Ok(Self { chain, key })
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.chain).context("read the certificate")?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// STARTTLS, and EHLO once more.
pub(super) fn begin(stream: &mut TcpStream, config: &Arc<ClientConfig>) -> Result<()> {
    stream.write_all(b"STARTTLS\r\n")?;
    latency::expect(&mut BufReader::with_capacity(1024, stream.try_clone()?), "220")?;
    let mut connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(HOSTNAME)?)?;
    let mut session = Stream::new(&mut connection, stream);
    session.write_all(b"EHLO client.example\r\n")?;
    let mut replies = BufReader::with_capacity(1024, session);
    let mut line = String::new();
    while line.as_bytes().get(3) != Some(&b' ') {
        line.clear();
        ensure!(replies.read_line(&mut line)? > 0, "the end instead of an answer");
        ensure!(line.starts_with("250"), "expected 250, got {}", line.trim());
    }
    Ok(())
}
