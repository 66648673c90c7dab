//! `status`: the few facts that tell whether everything works.

use super::{
    Context, Error,
    output::{Cell, Columns as _, Fact, Tone, fact, mebibytes},
};
use crate::{
    api::types::{Count, Status},
    cli::Watch,
};

pub(super) async fn run(context: &mut Context<'_>, watch: Watch) -> Result<(), Error> {
    let print = async |context: &mut Context<'_>| {
        let status = context.client.status().await?;
        context.answer(&status, Fact::COLUMNS, &facts(&status))
    };
    context.watched(watch, print).await
}

fn facts(status: &Status) -> Vec<Fact> {
    let bad = |text: &String| Cell::state(text, Tone::Bad);
    let mut facts = vec![
        fact("version", Cell::text(&status.version)),
        fact("uptime", Cell::duration(status.uptime_s)),
        fact("revision", Cell::text(format!("{} (kernel: {})", status.revision, status.applied))),
        fact("error", status.error.as_ref().map_or(Cell::Nothing, bad)),
    ];
    if let Some(pending) = &status.configuration.pending {
        let text = format!("revision {}, taken back on {} unless it is confirmed", pending.revision, pending.deadline);
        facts.push(fact("commit pending", Cell::state(text, Tone::Warning)));
    }
    for interface in &status.interfaces {
        let state = match (&interface.status.mode, &interface.status.error) {
            (Some(mode), _) if interface.status.restart_safe => Cell::state(format!("attached, {mode}"), Tone::Good),
            (Some(mode), _) => Cell::state(format!("attached, {mode}, not restart-safe"), Tone::Good),
            (None, Some(error)) => Cell::state(format!("not attached: {error}"), Tone::Bad),
            (None, None) => Cell::state("not attached", Tone::Warning),
        };
        facts.push(fact(format!("interface {}", interface.name), state));
    }
    let flows = &status.flows;
    let text = format!("{} established of {}, {} half-open", flows.established, flows.capacity, flows.half_open);
    facts.push(fact("flows", Cell::text(text)));
    let foreign = &status.foreign_sources;
    let refused = foreign.refused.values().sum::<u64>();
    let text = format!("{} of {}, {refused} refused", foreign.known, foreign.capacity);
    facts.push(fact("foreign sources", Cell::text(text)));
    facts.push(fact("subscribers", Cell::text(status.subscribers)));
    let events = &status.events;
    let text =
        format!("{} read, {} lost in the kernel, {} lost by slow readers", events.read, events.lost, events.dropped);
    facts.push(fact("events", Cell::text(text)));
    for memory in &status.memory {
        let room = memory.capacity.map(|capacity| format!(" for {capacity}")).unwrap_or_default();
        let each = memory.bytes_per_million.map(|bytes| format!(", {} a million", mebibytes(bytes)));
        let text = format!("{}{room}{}", mebibytes(memory.bytes), each.unwrap_or_default());
        facts.push(fact(format!("memory {}", memory.tables), Cell::text(text)));
    }
    let relay = |name: &str| status.relay.get(name).copied().unwrap_or(0);
    let text = format!(
        "{} sessions open, {} messages accepted, {} rejected, {} deferred",
        relay("sessions_active"),
        relay("messages_accepted"),
        relay("messages_rejected"),
        relay("messages_deferred")
    );
    facts.push(fact("relay", Cell::text(text)));
    let packets = |(reason, count): (&String, &Count)| fact(format!("packets {reason}"), Cell::number(count.packets));
    facts.extend(status.reasons.iter().map(packets));
    facts
}
