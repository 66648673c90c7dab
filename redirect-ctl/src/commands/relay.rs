//! `relay list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Relay, RelayPut, paths},
    cli::RelayVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: RelayVerb) -> Result<(), Error> {
    match verb {
        RelayVerb::List => context.list(paths::RELAYS, table).await,
        RelayVerb::Get { name } => context.get(paths::RELAY, &name, table).await,
        RelayVerb::Set(args) => {
            let body = RelayPut { name: None, ipv4: args.ipv4, ipv6: args.ipv6, delivery: args.delivery, source: None };
            let (answer, changed): (Relay, _) = context.client.put(paths::RELAY, &args.name, &body).await?;
            context.set(&format!("relay {}", answer.name), &answer, changed)
        }
        RelayVerb::Delete { name } => {
            let changed = context.client.delete(paths::RELAY, &name).await?;
            context.deleted(&format!("relay {name}"), changed)
        }
    }
}

fn table(relays: &[Relay]) -> Table {
    let row = |relay: &Relay| {
        [
            relay.name.to_string(),
            or_dash(relay.ipv4),
            or_dash(relay.ipv6),
            relay.delivery.to_string(),
            relay.source.to_string(),
        ]
    };
    Table::new(["NAME", "IPV4", "IPV6", "DELIVERY", "SOURCE"], relays.iter().map(row))
}
