//! `status`: the few facts that tell whether everything works.

use super::{
    Context, Error,
    output::{Table, duration, or_dash},
};
use crate::api::types::Status;

pub(super) async fn run(context: &mut Context<'_>) -> Result<(), Error> {
    let status = context.client.status().await?;
    context.print(&status, table)
}

fn table(status: &Status) -> Table {
    let mut rows = vec![
        ["version".to_owned(), status.version.clone()],
        ["uptime".to_owned(), duration(status.uptime_s)],
        ["revision".to_owned(), format!("{} (kernel: {})", status.revision, status.applied)],
        ["error".to_owned(), or_dash(status.error.as_ref())],
    ];
    if let Some(pending) = &status.configuration.pending {
        let text = format!("revision {}, taken back on {} unless it is confirmed", pending.revision, pending.deadline);
        rows.push(["commit pending".to_owned(), text]);
    }
    for interface in &status.interfaces {
        let state = match (&interface.status.mode, &interface.status.error) {
            (Some(mode), _) if interface.status.restart_safe => format!("attached, {mode}"),
            (Some(mode), _) => format!("attached, {mode}, not restart-safe"),
            (None, Some(error)) => format!("not attached: {error}"),
            (None, None) => "not attached".to_owned(),
        };
        rows.push([format!("interface {}", interface.name), state]);
    }
    let flows = &status.flows;
    rows.push([
        "flows".to_owned(),
        format!("{} established of {}, {} half-open", flows.established, flows.capacity, flows.half_open),
    ]);
    let foreign = &status.foreign_sources;
    rows.push([
        "foreign sources".to_owned(),
        format!("{} of {}, {} refused", foreign.known, foreign.capacity, foreign.refused.values().sum::<u64>()),
    ]);
    rows.push(["subscribers".to_owned(), status.subscribers.to_string()]);
    let events = &status.events;
    rows.push([
        "events".to_owned(),
        format!("{} read, {} lost in the kernel, {} lost by slow readers", events.read, events.lost, events.dropped),
    ]);
    for memory in &status.memory {
        let room = memory.capacity.map(|capacity| format!(" for {capacity}")).unwrap_or_default();
        let each = memory.bytes_per_million.map(|bytes| format!(", {} a million", mebibytes(bytes)));
        let value = format!("{}{room}{}", mebibytes(memory.bytes), each.unwrap_or_default());
        rows.push([format!("memory {}", memory.tables), value]);
    }
    let relay = |name: &str| status.relay.get(name).copied().unwrap_or(0);
    rows.push([
        "relay".to_owned(),
        format!(
            "{} sessions open, {} messages accepted, {} rejected, {} deferred",
            relay("sessions_active"),
            relay("messages_accepted"),
            relay("messages_rejected"),
            relay("messages_deferred")
        ),
    ]);
    for (reason, count) in &status.reasons {
        rows.push([format!("packets {reason}"), count.packets.to_string()]);
    }
    Table::new(["FACT", "VALUE"], rows)
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
