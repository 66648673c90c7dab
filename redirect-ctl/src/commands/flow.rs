//! `flow list`: redirected connections.

use super::{
    Context, Error,
    output::{Table, duration, or_dash},
};
use crate::{
    api::types::{Flow, FlowListQuery},
    cli::FlowVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: FlowVerb) -> Result<(), Error> {
    let FlowVerb::List(args) = verb;
    let query = FlowListQuery {
        limit: Some(args.limit),
        client: args.client.map(|client| client.to_string()),
        class: args.class.map(|class| class.to_string()),
    };
    let flows = context.client.flows(&query).await?;
    context.print(&flows.items, |flows| table(flows))?;
    if flows.total > flows.items.len() as u64 {
        writeln!(
            context.stderr,
            "redirect-ctl: showing {} of {} flows; narrow it by --client, --class, or raise --limit",
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
            flow.relay.to_string(),
            flow.mapped_port.to_string(),
            or_dash(flow.class.as_ref()),
            flow.state.to_string(),
            duration(flow.age_s.into()),
            duration(flow.idle_s.into()),
        ]
    };
    Table::new(["CLIENT", "SERVER", "RELAY", "PORT", "CLASS", "STATE", "AGE", "IDLE"], flows.iter().map(row))
}
