//! TLS toward a gateway: whose certificate convinces us, by the operator's [`Verification`].

use std::{fmt, fs, io, path::PathBuf, sync::Arc};

use ring::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use crate::gateway::{Gateway, Host, Pin, Verification};

/// Why there is no TLS configuration for a gateway.
#[derive(Debug, thiserror::Error)]
pub enum TlsInvalid {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no certificate authority in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("the system has no certificate authorities")]
    NoSystemRoots,
    #[error(transparent)]
    Rustls(#[from] Error),
    #[error(transparent)]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// What a handshake with one gateway needs.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the CA file, if there is one.
    pub(crate) fn new(gateway: &Gateway) -> Result<Self, TlsInvalid> {
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &gateway.verification {
            Verification::None => Arc::new(Lenient::new(&provider, None)),
            Verification::Pin { sha256 } => Arc::new(Lenient::new(&provider, Some(*sha256))),
            Verification::Ca { file } => {
                let roots = Arc::new(roots(file.as_ref())?);
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let name = match (gateway.tls_name(), &gateway.address) {
            (Some(name), _) | (None, Host::Name(name)) => {
                ServerName::try_from(name.as_str().to_owned()).expect("a domain name is a server name")
            }
            (None, Host::Address(ip)) => ServerName::IpAddress((*ip).into()),
        };
        Ok(Self { config: Arc::new(config), name })
    }
}

fn roots(file: Option<&PathBuf>) -> Result<RootCertStore, TlsInvalid> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = file {
        let pem = fs::read(path).map_err(|source| TlsInvalid::Read { path: path.clone(), source })?;
        let found = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            return Err(TlsInvalid::NoCertificate { path: path.clone() });
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(TlsInvalid::NoSystemRoots);
        }
    }
    Ok(roots)
}

/// SHA-256 of a certificate.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> Pin {
    let digest = digest::digest(&digest::SHA256, certificate);
    Pin(digest.as_ref().try_into().expect("SHA-256 makes 32 octets"))
}

/// Takes the pinned certificate, or any. That the peer holds the certificate's key is verified all the same.
#[derive(Debug)]
struct Lenient {
    algorithms: WebPkiSupportedAlgorithms,
    pin: Option<Pin>,
}

impl Lenient {
    fn new(provider: &CryptoProvider, pin: Option<Pin>) -> Self {
        Self { algorithms: provider.signature_verification_algorithms, pin }
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.pin {
            Some(pin) if fingerprint(certificate) != pin => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
