//! `explain SRC DST` and `explain --from A --rcpt B --class C`: what would become of a new connection, or of a message, and why.

use super::{
    Context, Error,
    class::limits,
    output::{Cell, Columns as _, Fact, duration, fact, joined},
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
            context.answer(&explanation, Fact::COLUMNS, &facts(&explanation))
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

fn facts(explanation: &Explanation) -> [Fact; 18] {
    let source = match explanation.sport {
        Some(sport) => std::net::SocketAddr::new(explanation.source, sport).to_string(),
        None => explanation.source.to_string(),
    };
    let interface = explanation.interface.as_ref().zip(explanation.mode);
    [
        fact("source", Cell::text(source)),
        fact("destination", Cell::text(explanation.destination)),
        fact("interface", Cell::maybe(interface.map(|(name, mode)| format!("{name} ({mode})")))),
        fact("verdict", Cell::text(&explanation.verdict)),
        fact("reason", Cell::text(format!("{}: {}", explanation.reason, explanation.text))),
        fact("prefix", Cell::maybe(explanation.prefix.as_ref())),
        fact("facts", Cell::list(explanation.facts.iter().map(contender))),
        fact("class", Cell::maybe(explanation.class.as_ref())),
        fact("limits", Cell::maybe(explanation.limits.as_ref().map(limits))),
        fact("open", Cell::maybe(explanation.open)),
        fact("locked for", Cell::maybe(explanation.lock_left_s.map(|left_s| duration(left_s.into())))),
        fact("relays", Cell::text(joined(explanation.relays.iter().map(pool_state)))),
        fact("relay", Cell::maybe(explanation.relay.as_ref())),
        fact("endpoint", Cell::maybe(explanation.endpoint)),
        fact("mapped port", Cell::maybe(explanation.mapped_port)),
        fact("delivery", Cell::maybe(explanation.delivery.as_ref())),
        fact("program", Cell::text(&explanation.program_tag)),
        fact("revision", Cell::number(explanation.revision)),
    ]
}

/// What a source says, how much that weighs, and until when.
fn contender(fact: &Contender) -> String {
    let until = fact.expires.map(|expires| format!(",until {expires}")).unwrap_or_default();
    format!("{}={}({}{until})", fact.source, fact.class, fact.priority)
}

/// A relay with its weight where that says something, whether it takes flows, and whether it lives.
fn pool_state(relay: &PoolState) -> String {
    let weight = if relay.weight == 1 { String::new() } else { format!(":{}", relay.weight) };
    let health = relay.health.as_ref().map_or_else(|| "-".to_owned(), |health| health.state.to_string());
    format!("{}{weight}({},{health})", relay.name, relay.status)
}
