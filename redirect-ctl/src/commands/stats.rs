//! `stats`: packets and bytes by class and reason.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::api::types::Stats;

pub(super) async fn run(context: &mut Context<'_>) -> Result<(), Error> {
    let stats = context.client.stats().await?;
    context.print(&stats, table)
}

fn table(stats: &Stats) -> Table {
    let row = |row: &crate::api::types::ReasonCount| {
        [
            or_dash(row.class.as_ref()),
            row.reason.clone(),
            row.verdict.clone(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]
    };
    Table::new(["CLASS", "REASON", "VERDICT", "PACKETS", "BYTES"], stats.reasons.iter().map(row))
}
