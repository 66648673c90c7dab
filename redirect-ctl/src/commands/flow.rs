//! `flow list|original|watch`: redirected connections, and what happens to new ones.

use super::{
    Context, Error,
    output::{Table, duration, or_dash},
};
use crate::{
    api::{
        client,
        types::{Event, EventLine, EventQuery, Flow, FlowListQuery, LostAt, Original, OriginalQuery},
    },
    cli::{FlowList, FlowVerb, FlowWatch, Output},
};

pub(super) async fn run(context: &mut Context<'_>, verb: FlowVerb) -> Result<(), Error> {
    match verb {
        FlowVerb::Watch(args) => watch(context, args).await,
        FlowVerb::List(args) => list(context, args).await,
        FlowVerb::Original(args) => {
            let query = OriginalQuery { relay: args.relay.to_string(), client: args.client.to_string() };
            let original = context.client.original(&query).await?;
            context.print(&original, original_table)
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
    if context.output == Output::Table && context.headers {
        let header = ["TIME", "INTERFACE", "VERDICT", "REASON", "CLASS", "CLIENT", "SERVER", "RELAY"];
        write_columns(context, &header.map(str::to_owned))?;
    }
    while let Some(line) = events.next().await? {
        match (&line, context.output) {
            (EventLine::Locked(lock), Output::Table) => {
                let reason = "relay_abuse".to_owned();
                let [dash, other] = ["-"; 2].map(str::to_owned);
                let cells = [
                    lock.time.clone(),
                    dash.clone(),
                    "lock".to_owned(),
                    reason,
                    lock.class.clone(),
                    lock.address.to_string(),
                    dash,
                    other,
                ];
                write_columns(context, &cells)?;
            }
            (EventLine::Packet(event), Output::Table) => write_columns(context, &columns(event))?,
            (_, Output::Json) => {
                let text = serde_json::to_string(&line).map_err(|error| client::Error::Answer(error.to_string()))?;
                writeln!(context.stdout, "{text}")?;
            }
            (EventLine::Lost { .. }, Output::Table) => {}
        }
        if let EventLine::Lost { at, count } = line {
            let why = match at {
                LostAt::Kernel => "in the kernel: more than dataplane.events_per_second, or more than are read in time",
                LostAt::Queue => "because they were not read fast enough",
            };
            writeln!(context.stderr, "redirect-ctl: {count} events were lost {why}")?;
        }
        context.stdout.flush()?;
    }
    writeln!(context.stderr, "redirect-ctl: redirectd stopped")?;
    Ok(())
}

fn columns(event: &Event) -> [String; 8] {
    [
        event.time.clone(),
        or_dash(event.interface.as_ref()),
        event.verdict.clone(),
        event.reason.clone(),
        or_dash(event.class.as_ref()),
        event.client.to_string(),
        event.server.to_string(),
        or_dash(event.relay),
    ]
}

/// Nobody knows how wide what comes later will be.
fn write_columns(context: &mut Context<'_>, cells: &[String; 8]) -> Result<(), Error> {
    const WIDTHS: [usize; 8] = [30, 12, 8, 16, 14, 24, 24, 0];
    let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:width$}"));
    Ok(writeln!(context.stdout, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?)
}

async fn list(context: &mut Context<'_>, args: FlowList) -> Result<(), Error> {
    let query = FlowListQuery {
        limit: Some(args.limit),
        client: args.client.map(|client| client.to_string()),
        class: args.class.map(|class| class.to_string()),
        relay: args.relay.map(|relay| relay.to_string()),
    };
    let flows = context.client.flows(&query).await?;
    context.print(&flows.items, |flows| table(flows))?;
    if flows.total > flows.items.len() as u64 {
        writeln!(
            context.stderr,
            "redirect-ctl: showing {} of {} flows; narrow it by --client, --class, --relay, or raise --limit",
            flows.items.len(),
            flows.total
        )?;
    }
    Ok(())
}

fn table(flows: &[Flow]) -> Table {
    let row = |flow: &Flow| {
        [
            flow.client.to_string(),
            flow.server.to_string(),
            or_dash(flow.relay),
            flow.mapped_port.to_string(),
            or_dash(flow.class.as_ref()),
            flow.state.to_string(),
            flow.delivery.to_string(),
            duration(flow.age_s.into()),
            duration(flow.idle_s.into()),
        ]
    };
    let header = ["CLIENT", "SERVER", "RELAY", "PORT", "CLASS", "STATE", "DELIVERY", "AGE", "IDLE"];
    Table::new(header, flows.iter().map(row))
}

fn original_table(original: &Original) -> Table {
    let row = [original.client.to_string(), original.server.to_string(), or_dash(original.class.as_ref())];
    Table::new(["CLIENT", "SERVER", "CLASS"], [row])
}
