//! A certificate authority for one test, and the certificate of a server.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ring::digest::{SHA256, digest};

use super::HOSTNAME;

pub struct Certificate {
    chain: String,
    key: String,
    pin: String,
    authority: PathBuf,
}

impl Certificate {
    /// For [`HOSTNAME`], by an authority whose own certificate goes into the file.
    pub fn new(file: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new([])?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let key = KeyPair::generate()?;
        let server = CertificateParams::new([HOSTNAME.to_owned()])?;
        let server = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
        fs::write(file, authority_pem).with_context(|| format!("write {}", file.display()))?;
        let pin = digest(&SHA256, server.der()).as_ref().iter().fold(String::new(), |mut pin, octet| {
            write!(pin, "{octet:02x}").expect("a string takes every write");
            pin
        });
        Ok(Self { chain: server.pem(), key: key.serialize_pem(), pin, authority: file.to_path_buf() })
    }

    /// In PEM, as the key.
    #[must_use]
    pub fn chain(&self) -> &str {
        &self.chain
    }

    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The file with the certificate of the authority.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// SHA-256 of the certificate.
    #[must_use]
    pub fn pin(&self) -> String {
        self.pin.clone()
    }
}
