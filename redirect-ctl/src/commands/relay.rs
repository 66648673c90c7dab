//! `relay list|get|set|check|enable|drain|disable|delete`.

use std::net::{SocketAddrV4, SocketAddrV6};

use super::{
    Context, Error,
    output::{Cell, Column, Columns, Tone},
    resource::Resource,
};
use crate::{
    api::types::{Page, Relay, RelayHealth, RelayPut, paths},
    cli::RelayVerb,
    desired::{Delivery, Name, RelayStatus},
    health::HealthState,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: RelayVerb) -> Result<(), Error> {
    match verb {
        RelayVerb::List(watch) => context.watched_list::<Versioned<Relay>>(watch).await,
        RelayVerb::Get { name } => context.get::<Versioned<Relay>>(&name).await,
        RelayVerb::Set(args) => {
            context.put::<Versioned<Relay>>(&args.name, &body(args.ipv4, args.ipv6, args.delivery, args.status)).await
        }
        RelayVerb::Check { name } => check(context, name).await,
        RelayVerb::Enable { name } => set_status(context, &name, RelayStatus::Enabled).await,
        RelayVerb::Drain { name } => set_status(context, &name, RelayStatus::Draining).await,
        RelayVerb::Disable { name } => set_status(context, &name, RelayStatus::Disabled).await,
        RelayVerb::Delete { name } => context.delete::<Versioned<Relay>>(&name).await,
    }
}

/// What the latest probes found, which are seconds old.
async fn check(context: &mut Context<'_>, name: Option<Name>) -> Result<(), Error> {
    let relays: Vec<Versioned<Relay>> = match name {
        Some(name) => vec![context.client.resource(paths::RELAY, &name).await?],
        None => context.client.get::<Page<Versioned<Relay>>>(paths::RELAYS).await?.items,
    };
    context.items(&relays)?;
    let is_down = |relay: &&Versioned<Relay>| {
        let endpoints = [&relay.health.ipv4, &relay.health.ipv6];
        relay.status == RelayStatus::Enabled
            && endpoints.into_iter().flatten().any(|endpoint| endpoint.state == HealthState::Down)
    };
    for relay in relays.iter().filter(is_down) {
        let endpoints = [("ipv4", &relay.health.ipv4), ("ipv6", &relay.health.ipv6)];
        for (family, error) in
            endpoints.into_iter().filter_map(|(family, found)| Some((family, found.as_ref()?.error.as_ref()?)))
        {
            context.note(&format!("{} ({family}): {error}", relay.name))?;
        }
    }
    match relays.iter().filter(is_down).count() {
        0 => Ok(()),
        1 => Err(Error::Failed("a relay is down".to_owned())),
        count => Err(Error::Failed(format!("{count} relays are down"))),
    }
}

/// Reads the relay and writes it back with another status.
async fn set_status(context: &mut Context<'_>, name: &Name, status: RelayStatus) -> Result<(), Error> {
    let relay: Relay = context.client.resource(paths::RELAY, name).await?;
    context.put::<Versioned<Relay>>(name, &body(relay.ipv4, relay.ipv6, relay.delivery, status)).await
}

fn body(ipv4: Option<SocketAddrV4>, ipv6: Option<SocketAddrV6>, delivery: Delivery, status: RelayStatus) -> RelayPut {
    RelayPut { name: None, ipv4, ipv6, delivery, status, source: None, health: None, flows: None, revision: None }
}

impl Resource for Versioned<Relay> {
    const KIND: [&'static str; 2] = ["relay", "relays"];
    const COLLECTION: &'static str = paths::RELAYS;
    const PATH: &'static str = paths::RELAY;
}

impl Columns for Versioned<Relay> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |relay| Cell::text(&relay.name)),
        Column::new("IPV4", |relay| Cell::maybe(relay.ipv4)),
        Column::new("IPV6", |relay| Cell::maybe(relay.ipv6)),
        Column::new("DELIVERY", |relay| Cell::text(relay.delivery)),
        Column::new("STATUS", |relay| Cell::text(relay.status)),
        Column::new("HEALTH", |relay| health(&relay.health)),
        Column::new("FLOWS", |relay| Cell::number(relay.flows)),
        Column::new("SOURCE", |relay| Cell::text(relay.source)),
        Column::wide("ERROR", |relay| {
            let endpoints = [&relay.health.ipv4, &relay.health.ipv6];
            Cell::maybe(endpoints.into_iter().flatten().find_map(|endpoint| endpoint.error.as_ref()))
        }),
    ];
}

/// One word where the families agree.
fn health(health: &RelayHealth) -> Cell {
    let tone = |up: bool| if up { Tone::Good } else { Tone::Bad };
    match (&health.ipv4, &health.ipv6) {
        (Some(ipv4), Some(ipv6)) if ipv4.state != ipv6.state => {
            Cell::state(format!("ipv4={},ipv6={}", ipv4.state, ipv6.state), Tone::Warning)
        }
        (Some(endpoint), _) | (None, Some(endpoint)) => {
            Cell::state(endpoint.state, tone(endpoint.state == HealthState::Up))
        }
        (None, None) => Cell::Nothing,
    }
}
