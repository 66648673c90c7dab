//! TLS of the API's TCP listeners: the daemon's certificate, and the authority that signs those of clients.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    InconsistentKeys, RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::{
    access::{Named, Peers},
    config::{Clients, TlsSettings},
};

/// A file of the configuration that does not serve for TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key}: cannot read {}: {source}", .path.display())]
    Read { key: &'static str, path: PathBuf, source: io::Error },
    #[error("{key}: {} {problem}", .path.display())]
    Unfit { key: &'static str, path: PathBuf, problem: String },
}

/// Reads the files and makes of them what handshakes need.
pub(super) fn load(settings: &TlsSettings) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(default_provider());
    let chain = certificates("api.certificate", &settings.certificate)?;
    let key = read("api.key", &settings.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
        unfit("api.key", &settings.key, "holds no private key in PEM; one with a passphrase is of no use either")
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit("api.certificate", &settings.certificate, format!("does not serve for TLS: {error}")))?;
    let builder = match &settings.clients {
        Clients::Unasked => builder.with_no_client_auth(),
        Clients::May(path) | Clients::Must(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("api.client_ca", path)? {
                let added = roots.add(certificate);
                added.map_err(|error| {
                    unfit("api.client_ca", path, format!("holds no certificate of an authority: {error}"))
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match settings.clients {
                Clients::Must(_) => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build();
            builder
                .with_client_cert_verifier(verifier.map_err(|error| unfit("api.client_ca", path, error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            unfit("api.key", &settings.key, "is not the key of the first certificate of api.certificate")
        }
        error => unfit("api.certificate", &settings.certificate, format!("does not serve for TLS: {error}")),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection shows its certificate anew, so that one that was taken out of the configuration does not live on in a session.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Who a client's certificate names; `None` for one that cannot be read, which no handshake lets through.
pub(super) fn named(certificate: &CertificateDer<'_>, peers: &Peers) -> Option<Named> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let names: Vec<_> = certificate.valid_dns_names().chain(certificate.valid_uri_names()).collect();
    let (first, roles) = peers.of_certificate(names.iter().copied());
    let name = first.or(names.first().copied()).unwrap_or("(without a DNS name or URI)");
    Some(Named { name: name.to_owned(), roles })
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unfit(key, path, "holds no certificate in PEM")),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { key, path: path.to_owned(), source })
}

fn unfit(key: &'static str, path: &Path, problem: impl Into<String>) -> Error {
    Error::Unfit { key, path: path.to_owned(), problem: problem.into() }
}
