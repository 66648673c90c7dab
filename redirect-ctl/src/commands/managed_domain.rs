//! `managed-domain list|get|set|delete`.

use redirect_relay::route::{ManagedDomain, Target};

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::types::{ManagedDomainListQuery, paths},
    cli::ManagedDomainVerb,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: ManagedDomainVerb) -> Result<(), Error> {
    match verb {
        ManagedDomainVerb::List => {
            let query = |rows, cursor| ManagedDomainListQuery { limit: Some(rows), cursor, count: false };
            context.pages::<Versioned<ManagedDomain>, _>(None, query).await
        }
        ManagedDomainVerb::Get { domain } => context.get::<Versioned<ManagedDomain>>(&domain).await,
        ManagedDomainVerb::Set(args) => {
            let target = args.gateway.map(Target::Gateway).or(args.group.map(Target::Group));
            let managed = ManagedDomain { domain: args.domain, target };
            context.put::<Versioned<ManagedDomain>>(&managed.domain, &managed).await
        }
        ManagedDomainVerb::Delete { domain } => context.delete::<Versioned<ManagedDomain>>(&domain).await,
    }
}

impl Resource for Versioned<ManagedDomain> {
    const KIND: [&'static str; 2] = ["managed domain", "managed domains"];
    const COLLECTION: &'static str = paths::MANAGED_DOMAINS;
    const PATH: &'static str = paths::MANAGED_DOMAIN;
}

impl Columns for Versioned<ManagedDomain> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("DOMAIN", |managed| Cell::text(&managed.domain)),
        Column::new("TARGET", |managed| {
            Cell::maybe(managed.target.as_ref().map(|target| target.to_string().replace(' ', "=")))
        }),
    ];
}
