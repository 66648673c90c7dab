//! `explain SRC DST` and `explain --from A --rcpt B --class C`: what would become of a new connection, or of a message, and why.

use super::{
    Context, Error,
    class::limits,
    output::{Table, duration, joined, or_dash},
};
use crate::{
    api::types::{Contender, ExplainQuery, Explanation, PoolState, RouteExplainQuery},
    cli,
};

pub(super) async fn run(context: &mut Context<'_>, args: cli::Explain) -> Result<(), Error> {
    match (args.source, args.destination, args.rcpt, args.from, args.class) {
        (Some(source), Some(destination), ..) => {
            let query = ExplainQuery {
                source: source.to_string(),
                destination,
                sport: args.sport,
                interface: args.interface.map(|interface| interface.to_string()),
            };
            let explanation = context.client.explain(&query).await?;
            context.print(&explanation, table)
        }
        (_, _, Some(rcpt), Some(from), Some(class)) => {
            let (size, priority) = (args.size, args.priority);
            let query = RouteExplainQuery { from, rcpt, class: class.to_string(), size, priority };
            let explanation = context.client.explain_route(&query).await?;
            context.done(&explanation, &explanation.text.join("\n"))
        }
        _ => Err(Error::Usage("give SRC and DST, or --rcpt, --from and --class".to_owned())),
    }
}

fn table(explanation: &Explanation) -> Table {
    let source = match explanation.sport {
        Some(sport) => std::net::SocketAddr::new(explanation.source, sport).to_string(),
        None => explanation.source.to_string(),
    };
    let interface = match (&explanation.interface, explanation.mode) {
        (Some(name), Some(mode)) => format!("{name} ({mode})"),
        _ => "-".to_owned(),
    };
    let rows = [
        ["source".to_owned(), source],
        ["destination".to_owned(), explanation.destination.to_string()],
        ["interface".to_owned(), interface],
        ["verdict".to_owned(), explanation.verdict.clone()],
        ["reason".to_owned(), format!("{}: {}", explanation.reason, explanation.text)],
        ["prefix".to_owned(), or_dash(explanation.prefix.as_ref())],
        ["facts".to_owned(), or_dash(Some(joined(explanation.facts.iter().map(contender))))],
        ["class".to_owned(), or_dash(explanation.class.as_ref())],
        ["limits".to_owned(), or_dash(explanation.limits.as_ref().map(limits))],
        ["open".to_owned(), or_dash(explanation.open)],
        ["locked for".to_owned(), or_dash(explanation.lock_left_s.map(|left_s| duration(left_s.into())))],
        ["relays".to_owned(), or_dash(Some(joined(explanation.relays.iter().map(pool_state))))],
        ["relay".to_owned(), or_dash(explanation.relay.as_ref())],
        ["endpoint".to_owned(), or_dash(explanation.endpoint)],
        ["mapped port".to_owned(), or_dash(explanation.mapped_port)],
        ["delivery".to_owned(), or_dash(explanation.delivery.as_ref())],
        ["revision".to_owned(), explanation.revision.to_string()],
    ];
    Table::new(["FACT", "VALUE"], rows)
}

/// What a source says, how much that weighs, and until when.
fn contender(fact: &Contender) -> String {
    let until = fact.expires.map(|expires| format!(",until {expires}")).unwrap_or_default();
    format!("{}={}({}{until})", fact.source, fact.class, fact.priority)
}

/// A relay with its weight where that says something, whether it takes flows, and whether it lives.
fn pool_state(relay: &PoolState) -> String {
    let weight = if relay.weight == 1 { String::new() } else { format!(":{}", relay.weight) };
    let health = or_dash(relay.health.as_ref().map(|health| health.state));
    format!("{}{weight}({},{health})", relay.name, relay.status)
}
