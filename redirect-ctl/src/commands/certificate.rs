//! `certificate list|get|set|delete`.

use serde_json::json;

use super::{
    Context, Error,
    output::{Table, joined, or_dash},
};
use crate::{
    api::types::{Certificate, paths},
    cli::{CertificateSet, CertificateVerb},
    limits,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: CertificateVerb) -> Result<(), Error> {
    match verb {
        CertificateVerb::List => context.list(paths::CERTIFICATES, table).await,
        CertificateVerb::Get { name } => context.get(paths::CERTIFICATE, &name, table).await,
        CertificateVerb::Set(CertificateSet { name, chain_file, key_file }) => {
            let chain = context.read(&chain_file, limits::BODY_BYTES_MAX)?;
            let mut body = json!({"chain": chain});
            if let Some(key_file) = key_file {
                body["key"] = context.read(&key_file, limits::BODY_BYTES_MAX)?.into();
            }
            let (answer, changed): (Versioned<Certificate>, _) =
                context.client.put(paths::CERTIFICATE, &name, &body).await?;
            context.set(&format!("certificate {}", answer.name), &answer, changed)
        }
        CertificateVerb::Delete { name } => {
            let changed = context.client.delete(paths::CERTIFICATE, &name).await?;
            context.deleted(&format!("certificate {name}"), changed)
        }
    }
}

fn table(certificates: &[Versioned<Certificate>]) -> Table {
    let row = |certificate: &Versioned<Certificate>| {
        [
            certificate.name.to_string(),
            or_dash(Some(joined(certificate.names.iter().cloned()))),
            certificate.not_after.to_string(),
        ]
    };
    Table::new(["NAME", "NAMES", "NOT-AFTER"], certificates.iter().map(row))
}
