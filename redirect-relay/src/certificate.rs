//! The operator's certificate for STARTTLS with clients (RFC 3207).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    InconsistentKeys, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
};
use tokio_rustls::TlsAcceptor;

use crate::x509::{self, Facts};

/// A certificate with its key, ready for use. Clones share it.
#[derive(Clone)]
pub struct Certificate(Arc<Ready>);

struct Ready {
    config: Arc<ServerConfig>,
    facts: Facts,
    chain: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateInvalid {
    #[error("holds no certificate in PEM")]
    NoCertificate,
    #[error("holds a private key; give it as the key, for the chain is shown to who asks")]
    HoldsKey,
    #[error("holds a first certificate that cannot be read")]
    Malformed,
    #[error("holds no private key in PEM; one with a passphrase is of no use either")]
    NoKey,
    #[error("is not the key of the first certificate of the chain")]
    KeyMismatch,
    #[error("does not serve for TLS: {0}")]
    Unfit(rustls::Error),
}

impl Certificate {
    /// Both in PEM: the chain, our own certificate first, and its private key. The dates are the caller's to look at.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateInvalid> {
        if PrivateKeyDer::from_pem_slice(chain).is_ok() {
            return Err(CertificateInvalid::HoldsKey);
        }
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateInvalid::NoCertificate)?;
        let first = chain.first().ok_or(CertificateInvalid::NoCertificate)?;
        let facts = x509::facts(first).ok_or(CertificateInvalid::Malformed)?;
        let text = chain.iter().map(|certificate| pem(certificate)).collect();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateInvalid::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(CertificateInvalid::Unfit)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => CertificateInvalid::KeyMismatch,
                error => CertificateInvalid::Unfit(error),
            })?;
        // Mail sessions are long and few: what could be saved by resuming one is not worth the memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(Ready { config: Arc::new(config), facts, chain: text })))
    }

    /// In PEM, and nothing else that may have stood around it.
    pub fn chain(&self) -> &str {
        &self.0.chain
    }

    /// The DNS names and IP addresses that it is for.
    pub fn names(&self) -> &[String] {
        &self.0.facts.names
    }

    /// Seconds since the epoch, as all dates here.
    pub fn not_before_s(&self) -> i64 {
        self.0.facts.not_before.as_second()
    }

    pub fn not_after_s(&self) -> i64 {
        self.0.facts.not_after.as_second()
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.config))
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificate")
    }
}

/// RFC 7468 section 5.
fn pem(certificate: &[u8]) -> String {
    let base64 = STANDARD.encode(certificate);
    let lines = base64.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key() {
        let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let good = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(good.names(), ["relay.example"]);
        assert!(good.not_before_s() < good.not_after_s());
        // What stands around a chain is not the chain.
        let other = rcgen::generate_simple_self_signed(["ca.example".into()]).unwrap().cert.pem();
        let decorated = format!("Bag Attributes: x\n{chain}subject=y\n{other}end\n");
        let whole = Certificate::from_pem(decorated.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(whole.chain().replace("\r\n", "\n"), format!("{chain}{other}").replace("\r\n", "\n"));
        assert_eq!(Certificate::from_pem(whole.chain().as_bytes(), key.as_bytes()).unwrap().chain(), whole.chain());
        let fails = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(matches!(fails("", &key), CertificateInvalid::NoCertificate));
        assert!(matches!(fails(&format!("{chain}{key}"), &key), CertificateInvalid::HoldsKey));
        assert!(matches!(fails(&chain, ""), CertificateInvalid::NoKey));
        assert!(matches!(fails(&chain, &key.replace("PRIVATE", "ENCRYPTED PRIVATE")), CertificateInvalid::NoKey));
        let empty = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        assert!(matches!(fails(empty, &key), CertificateInvalid::Malformed));
        let other = rcgen::generate_simple_self_signed(["other.example".into()]).unwrap().signing_key.serialize_pem();
        assert!(matches!(fails(&chain, &other), CertificateInvalid::KeyMismatch));
    }
}
