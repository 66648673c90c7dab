//! `flow list|original|watch`: redirected connections, and what happens to new ones.

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    api::types::{Event, EventLine, EventQuery, Flow, FlowListQuery, LostAt, Original, OriginalQuery},
    cli::{FlowList, FlowVerb, FlowWatch},
};

pub(super) async fn run(context: &mut Context<'_>, verb: FlowVerb) -> Result<(), Error> {
    match verb {
        FlowVerb::Watch(args) => watch(context, args).await,
        FlowVerb::List(args) => list(context, args).await,
        FlowVerb::Original(args) => {
            let query = OriginalQuery { relay: args.relay.to_string(), client: args.client.to_string() };
            let original = context.client.original(&query).await?;
            context.item(&original)
        }
    }
}

/// Until interrupted, or the daemon stops. What got lost is told where problems are.
async fn watch(context: &mut Context<'_>, args: FlowWatch) -> Result<(), Error> {
    let query = EventQuery {
        class: args.class.map(|class| class.to_string()),
        client: args.client.map(|client| client.to_string()),
        reason: args.reason,
    };
    let mut events = context.client.events(&query).await?;
    context.layout.titles::<EventLine>(context.stdout)?;
    while let Some(line) = events.next().await? {
        if let EventLine::Lost { at, count } = line {
            let why = match at {
                LostAt::Kernel => "in the kernel: more than dataplane.events_per_second, or more than are read in time",
                LostAt::Queue => "because they were not read fast enough",
            };
            context.note(&format!("{count} events were lost {why}"))?;
        }
        if !context.layout.is_for_people() || !matches!(line, EventLine::Lost { .. }) {
            context.layout.row(context.stdout, &line)?;
        }
        context.stdout.flush()?;
    }
    context.note("redirectd stopped")
}

impl Columns for EventLine {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::of_width("TIME", 30, |line| match line {
            Self::Packet(event) => Cell::text(&event.time),
            Self::Locked(lock) => Cell::text(&lock.time),
            Self::Lost { .. } => Cell::Nothing,
        }),
        Column::of_width("INTERFACE", 12, |line| Cell::maybe(packet(line).and_then(|event| event.interface.as_ref()))),
        Column::of_width("VERDICT", 8, |line| match line {
            Self::Packet(event) => Cell::text(&event.verdict),
            Self::Locked(_) => Cell::text("lock"),
            Self::Lost { .. } => Cell::Nothing,
        }),
        Column::of_width("REASON", 16, |line| match line {
            Self::Packet(event) => Cell::text(&event.reason),
            Self::Locked(_) => Cell::text("relay_abuse"),
            Self::Lost { .. } => Cell::text("lost"),
        }),
        Column::of_width("CLASS", 14, |line| match line {
            Self::Packet(event) => Cell::maybe(event.class.as_ref()),
            Self::Locked(lock) => Cell::text(&lock.class),
            Self::Lost { .. } => Cell::Nothing,
        }),
        Column::of_width("CLIENT", 24, |line| match line {
            Self::Packet(event) => Cell::text(event.client),
            Self::Locked(lock) => Cell::text(lock.address),
            Self::Lost { .. } => Cell::Nothing,
        }),
        Column::of_width("SERVER", 24, |line| Cell::maybe(packet(line).map(|event| event.server))),
        Column::new("RELAY", |line| Cell::maybe(packet(line).and_then(|event| event.relay))),
    ];
}

fn packet(line: &EventLine) -> Option<&Event> {
    match line {
        EventLine::Packet(event) => Some(event),
        EventLine::Locked(_) | EventLine::Lost { .. } => None,
    }
}

async fn list(context: &mut Context<'_>, args: FlowList) -> Result<(), Error> {
    let query = FlowListQuery {
        limit: Some(args.limit),
        client: args.client.map(|client| client.to_string()),
        class: args.class.map(|class| class.to_string()),
        relay: args.relay.map(|relay| relay.to_string()),
    };
    let flows = context.client.flows(&query).await?;
    context.items(&flows.items)?;
    let shown = flows.items.len() as u64;
    if flows.total > shown {
        let total = flows.total;
        let remedy = "narrow it by --client, --class, --relay, or raise --limit";
        context.note(&format!("showing {shown} of {total} flows; {remedy}"))?;
    }
    Ok(())
}

impl Columns for Flow {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("CLIENT", |flow| Cell::text(flow.client)),
        Column::new("SERVER", |flow| Cell::text(flow.server)),
        Column::new("RELAY", |flow| Cell::maybe(flow.relay)),
        Column::new("PORT", |flow| Cell::number(flow.mapped_port)),
        Column::new("CLASS", |flow| Cell::maybe(flow.class.as_ref())),
        Column::new("STATE", |flow| Cell::text(flow.state)),
        Column::new("DELIVERY", |flow| Cell::text(flow.delivery)),
        Column::new("AGE", |flow| Cell::duration(flow.age_s)),
        Column::new("IDLE", |flow| Cell::duration(flow.idle_s)),
    ];
}

impl Columns for Original {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("CLIENT", |original| Cell::text(original.client)),
        Column::new("SERVER", |original| Cell::text(original.server)),
        Column::new("CLASS", |original| Cell::maybe(original.class.as_ref())),
    ];
}
