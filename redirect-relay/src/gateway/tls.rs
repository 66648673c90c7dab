//! TLS toward a gateway: whose certificate convinces us, by the operator's [`Verification`].

use std::{
    fmt, fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

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
        Self::with(gateway, |verifier| verifier)
    }

    /// As [`Tls::new`], and what the gateway shows is kept, whatever is thought of it.
    pub(crate) fn recording(gateway: &Gateway) -> Result<(Self, Chain), TlsInvalid> {
        let chain = Chain::default();
        let tls = Self::with(gateway, |verifier| Arc::new(Recorder { verifier, chain: chain.clone() }))?;
        Ok((tls, chain))
    }

    fn with(
        gateway: &Gateway,
        wrap: impl FnOnce(Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier>,
    ) -> Result<Self, TlsInvalid> {
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &gateway.verification {
            Verification::None {} => Arc::new(Lenient::new(&provider, None)),
            Verification::Pin { sha256 } => Arc::new(Lenient::new(&provider, Some(*sha256))),
            Verification::Ca { file } => {
                let roots = Arc::new(roots(file.as_ref())?);
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(wrap(verifier))
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

/// The certificates of a gateway, its own first; empty before it has shown any.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Arc<Mutex<Vec<CertificateDer<'static>>>>);

impl Chain {
    pub(crate) fn take(&self) -> Vec<CertificateDer<'static>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Notes what it is shown before another verifier decides.
#[derive(Debug)]
struct Recorder {
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Chain,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = std::iter::once(certificate).chain(intermediates).map(|shown| shown.clone().into_owned());
        *self.chain.0.lock().unwrap_or_else(PoisonError::into_inner) = shown.collect();
        self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
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
