//! A certificate authority for one test, and the certificate of a server.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::HOSTNAME;
use crate::lab::Lab;

pub struct Certificate {
    chain: String,
    key: String,
    authority: PathBuf,
}

impl Certificate {
    /// For [`HOSTNAME`], by an authority whose own certificate is put into the lab's folder.
    pub fn new(lab: &Lab) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new([])?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let key = KeyPair::generate()?;
        let server = CertificateParams::new([HOSTNAME.to_owned()])?;
        let server = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let file = lab.folder().join("authority.pem");
        fs::write(&file, authority_pem).with_context(|| format!("write {}", file.display()))?;
        Ok(Self { chain: server.pem(), key: key.serialize_pem(), authority: file })
    }

    pub(super) fn chain(&self) -> &str {
        &self.chain
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The file with the certificate of the authority.
    #[must_use]
    pub fn authority(&self) -> &std::path::Path {
        &self.authority
    }
}
