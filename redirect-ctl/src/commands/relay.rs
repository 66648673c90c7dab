//! `relay list|get|set|enable|drain|disable|delete`.

use std::net::{SocketAddrV4, SocketAddrV6};

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Relay, RelayHealth, RelayPut, paths},
    cli::RelayVerb,
    desired::{Delivery, Name, RelayStatus},
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: RelayVerb) -> Result<(), Error> {
    match verb {
        RelayVerb::List => context.list(paths::RELAYS, table).await,
        RelayVerb::Get { name } => context.get(paths::RELAY, &name, table).await,
        RelayVerb::Set(args) => put(context, &args.name, body(args.ipv4, args.ipv6, args.delivery, args.status)).await,
        RelayVerb::Enable { name } => set_status(context, &name, RelayStatus::Enabled).await,
        RelayVerb::Drain { name } => set_status(context, &name, RelayStatus::Draining).await,
        RelayVerb::Disable { name } => set_status(context, &name, RelayStatus::Disabled).await,
        RelayVerb::Delete { name } => {
            let changed = context.client.delete(paths::RELAY, &name).await?;
            context.deleted(&format!("relay {name}"), changed)
        }
    }
}

async fn put(context: &mut Context<'_>, name: &Name, body: RelayPut) -> Result<(), Error> {
    let (answer, changed): (Versioned<Relay>, _) = context.client.put(paths::RELAY, name, &body).await?;
    context.set(&format!("relay {}", answer.name), &answer, changed)
}

/// Reads the relay and writes it back with another status.
async fn set_status(context: &mut Context<'_>, name: &Name, status: RelayStatus) -> Result<(), Error> {
    let relay: Relay = context.client.resource(paths::RELAY, name).await?;
    put(context, name, body(relay.ipv4, relay.ipv6, relay.delivery, status)).await
}

fn body(ipv4: Option<SocketAddrV4>, ipv6: Option<SocketAddrV6>, delivery: Delivery, status: RelayStatus) -> RelayPut {
    RelayPut { name: None, ipv4, ipv6, delivery, status, source: None, health: None, flows: None, revision: None }
}

fn table(relays: &[Versioned<Relay>]) -> Table {
    let row = |relay: &Versioned<Relay>| {
        [
            relay.name.to_string(),
            or_dash(relay.ipv4),
            or_dash(relay.ipv6),
            relay.delivery.to_string(),
            relay.status.to_string(),
            or_dash(Some(health(&relay.health))),
            relay.flows.to_string(),
            relay.source.to_string(),
        ]
    };
    let header = ["NAME", "IPV4", "IPV6", "DELIVERY", "STATUS", "HEALTH", "FLOWS", "SOURCE"];
    Table::new(header, relays.iter().map(row))
}

/// One word where the families agree.
fn health(health: &RelayHealth) -> String {
    match (&health.ipv4, &health.ipv6) {
        (Some(ipv4), Some(ipv6)) if ipv4.state != ipv6.state => format!("ipv4={},ipv6={}", ipv4.state, ipv6.state),
        (Some(endpoint), _) | (None, Some(endpoint)) => endpoint.state.to_string(),
        (None, None) => String::new(),
    }
}
