//! The operator's certificate for STARTTLS with clients (RFC 3207).

use std::{fs, io, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
};
use tokio_rustls::TlsAcceptor;

/// A certificate with its key, ready for use. Clones share it.
#[derive(Clone)]
pub struct Certificate(Arc<ServerConfig>);

#[derive(Debug, thiserror::Error)]
pub enum CertificateInvalid {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error("the certificate file holds no certificate in PEM")]
    NoCertificate,
    #[error("the key file holds no private key in PEM")]
    NoKey,
    #[error("the certificate and the key do not serve for TLS: {0}")]
    Unfit(#[from] rustls::Error),
}

impl Certificate {
    /// The files hold PEM: the chain, our own certificate first, and the private key.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, CertificateInvalid> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| CertificateInvalid::Read { path: path.display().to_string(), source })
        };
        Self::from_pem(&read(chain)?, &zeroize::Zeroizing::new(read(key)?))
    }

    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateInvalid> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateInvalid::NoCertificate)?;
        if chain.is_empty() {
            return Err(CertificateInvalid::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateInvalid::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        // Mail sessions are long and few: what could be saved by resuming one is not worth the memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0))
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key() {
        let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        assert!(Certificate::from_pem(chain.as_bytes(), key.as_bytes()).is_ok());
        let fails = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(matches!(fails("", &key), CertificateInvalid::NoCertificate));
        assert!(matches!(fails(&key, &key), CertificateInvalid::NoCertificate));
        assert!(matches!(fails(&chain, ""), CertificateInvalid::NoKey));
        let other = rcgen::generate_simple_self_signed(["other.example".into()]).unwrap().signing_key.serialize_pem();
        assert!(matches!(fails(&chain, &other), CertificateInvalid::Unfit(_)));
        let missing = Certificate::read(Path::new("/nonexistent/chain.pem"), Path::new("/nonexistent/key.pem"));
        assert!(matches!(missing, Err(CertificateInvalid::Read { .. })));
    }
}
