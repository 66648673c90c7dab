//! `gateway list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Gateway, GatewayPut, paths},
    cli::GatewayVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: GatewayVerb) -> Result<(), Error> {
    match verb {
        GatewayVerb::List => context.list(paths::GATEWAYS, table).await,
        GatewayVerb::Get { name } => context.get(paths::GATEWAY, &name, table).await,
        GatewayVerb::Set(args) => {
            let body = GatewayPut {
                name: None,
                address: args.address,
                port: args.port,
                description: args.description,
                status: args.status,
            };
            let (answer, changed): (Gateway, _) = context.client.put(paths::GATEWAY, &args.name, &body).await?;
            context.set(&format!("gateway {}", answer.name), &answer, changed)
        }
        GatewayVerb::Delete { name } => {
            let changed = context.client.delete(paths::GATEWAY, &name).await?;
            context.deleted(&format!("gateway {name}"), changed)
        }
    }
}

fn table(gateways: &[Gateway]) -> Table {
    let row = |gateway: &Gateway| {
        [
            gateway.name.to_string(),
            gateway.address.to_string(),
            gateway.port.to_string(),
            gateway.status.to_string(),
            or_dash(Some(&gateway.description)),
        ]
    };
    Table::new(["NAME", "ADDRESS", "PORT", "STATUS", "DESCRIPTION"], gateways.iter().map(row))
}
