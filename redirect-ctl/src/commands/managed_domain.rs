//! `managed-domain list|get|set|delete`.

use redirect_relay::route::{ManagedDomain, Target};

use super::{
    Context, Error,
    output::{Table, or_dash},
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
            context.pages(paths::MANAGED_DOMAINS, "managed domains", None, query, table).await
        }
        ManagedDomainVerb::Get { domain } => context.get(paths::MANAGED_DOMAIN, &domain, table).await,
        ManagedDomainVerb::Set(args) => {
            let target = args.gateway.map(Target::Gateway).or(args.group.map(Target::Group));
            let managed = ManagedDomain { domain: args.domain, target };
            let (answer, changed): (Versioned<ManagedDomain>, _) =
                context.client.put(paths::MANAGED_DOMAIN, &managed.domain, &managed).await?;
            context.set(&format!("managed domain {}", answer.domain), &answer, changed)
        }
        ManagedDomainVerb::Delete { domain } => {
            let changed = context.client.delete(paths::MANAGED_DOMAIN, &domain).await?;
            context.deleted(&format!("managed domain {domain}"), changed)
        }
    }
}

fn table(domains: &[Versioned<ManagedDomain>]) -> Table {
    let row = |managed: &Versioned<ManagedDomain>| {
        [
            managed.domain.to_string(),
            or_dash(managed.target.as_ref().map(|target| target.to_string().replace(' ', "="))),
        ]
    };
    Table::new(["DOMAIN", "TARGET"], domains.iter().map(row))
}
