//! `trace`: sessions with the embedded relay, as they happen.

use redirect_relay::Who;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    api::types::{SessionLine, TraceLine, TraceQuery},
    cli::Trace,
};

/// Until interrupted, or the daemon stops. What got lost is told where problems are.
pub(super) async fn run(context: &mut Context<'_>, args: Trace) -> Result<(), Error> {
    let mut lines = context.client.trace(&TraceQuery { subscriber: args.subscriber.to_string() }).await?;
    context.layout.titles::<TraceLine>(context.stdout)?;
    while let Some(line) = lines.next().await? {
        if let TraceLine::Lost { count } = line {
            context.note(&format!("{count} lines were lost because they were not read fast enough"))?;
        }
        if !context.layout.is_for_people() || !matches!(line, TraceLine::Lost { .. }) {
            context.layout.row(context.stdout, &line)?;
        }
        context.stdout.flush()?;
    }
    context.note("redirectd stopped")
}

impl Columns for TraceLine {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::of_width("TIME", 30, |line| Cell::maybe(said(line).map(|line| &line.time))),
        Column::of_width("SESSION", 8, |line| Cell::maybe(said(line).map(|line| line.session))),
        Column::of_width("SUBSCRIBER", 24, |line| Cell::maybe(said(line).map(|line| line.subscriber))),
        Column::of_width("CLASS", 14, |line| Cell::maybe(said(line).map(|line| &line.class))),
        Column::of_width("WHO", 8, |line| {
            Cell::maybe(said(line).map(|line| match line.who {
                Who::Client => "client",
                Who::Relay => "relay",
                Who::Gateway => "gateway",
                Who::Note => "note",
            }))
        }),
        Column::new("TEXT", |line| Cell::maybe(said(line).map(|line| &line.text))),
    ];
}

fn said(line: &TraceLine) -> Option<&SessionLine> {
    match line {
        TraceLine::Line(line) => Some(line),
        TraceLine::Lost { .. } => None,
    }
}
