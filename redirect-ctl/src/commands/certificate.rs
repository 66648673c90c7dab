//! `certificate list|get|set|delete`.

use serde_json::json;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::types::{Certificate, paths},
    cli::{CertificateSet, CertificateVerb},
    limits,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: CertificateVerb) -> Result<(), Error> {
    match verb {
        CertificateVerb::List => context.list::<Versioned<Certificate>>().await,
        CertificateVerb::Get { name } => context.get::<Versioned<Certificate>>(&name).await,
        CertificateVerb::Set(CertificateSet { name, chain_file, key_file }) => {
            let chain = context.read(&chain_file, limits::BODY_BYTES_MAX)?;
            let mut body = json!({"chain": chain});
            if let Some(key_file) = key_file {
                body["key"] = context.read(&key_file, limits::BODY_BYTES_MAX)?.into();
            }
            context.put::<Versioned<Certificate>>(&name, &body).await
        }
        CertificateVerb::Delete { name } => context.delete::<Versioned<Certificate>>(&name).await,
    }
}

impl Resource for Versioned<Certificate> {
    const KIND: [&'static str; 2] = ["certificate", "certificates"];
    const COLLECTION: &'static str = paths::CERTIFICATES;
    const PATH: &'static str = paths::CERTIFICATE;
}

impl Columns for Versioned<Certificate> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |certificate| Cell::text(&certificate.name)),
        Column::new("NAMES", |certificate| Cell::list(&certificate.names)),
        Column::new("NOT-AFTER", |certificate| Cell::text(certificate.not_after)),
    ];
}
