//! `flow list|original`: redirected connections.

use super::{
    Context, Error,
    output::{Table, duration, or_dash},
};
use crate::{
    api::types::{Flow, FlowListQuery, Original, OriginalQuery},
    cli::{FlowList, FlowVerb},
};

pub(super) async fn run(context: &mut Context<'_>, verb: FlowVerb) -> Result<(), Error> {
    match verb {
        FlowVerb::List(args) => list(context, args).await,
        FlowVerb::Original(args) => {
            let query = OriginalQuery { relay: args.relay.to_string(), client: args.client.to_string() };
            let original = context.client.original(&query).await?;
            context.print(&original, original_table)
        }
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
