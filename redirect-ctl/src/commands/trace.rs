//! `trace`: sessions with the embedded relay, as they happen.

use redirect_relay::Who;

use super::{Context, Error};
use crate::{
    api::{
        client,
        types::{SessionLine, TraceLine, TraceQuery},
    },
    cli::{Output, Trace},
};

/// Until interrupted, or the daemon stops. What got lost is told where problems are.
pub(super) async fn run(context: &mut Context<'_>, args: Trace) -> Result<(), Error> {
    let mut lines = context.client.trace(&TraceQuery { subscriber: args.subscriber.to_string() }).await?;
    if context.output == Output::Table && context.headers {
        write_columns(context, &["TIME", "SESSION", "SUBSCRIBER", "CLASS", "WHO", "TEXT"].map(str::to_owned))?;
    }
    while let Some(line) = lines.next().await? {
        match (&line, context.output) {
            (_, Output::Json) => {
                let text = serde_json::to_string(&line).map_err(|error| client::Error::Answer(error.to_string()))?;
                writeln!(context.stdout, "{text}")?;
            }
            (TraceLine::Line(line), Output::Table) => write_columns(context, &columns(line))?,
            (TraceLine::Lost { .. }, Output::Table) => {}
        }
        if let TraceLine::Lost { count } = line {
            writeln!(context.stderr, "redirect-ctl: {count} lines were lost because they were not read fast enough")?;
        }
        context.stdout.flush()?;
    }
    writeln!(context.stderr, "redirect-ctl: redirectd stopped")?;
    Ok(())
}

fn columns(line: &SessionLine) -> [String; 6] {
    let who = match line.who {
        Who::Client => "client",
        Who::Relay => "relay",
        Who::Gateway => "gateway",
        Who::Note => "note",
    };
    let (session, subscriber) = (line.session.to_string(), line.subscriber.to_string());
    [line.time.clone(), session, subscriber, line.class.clone(), who.to_owned(), line.text.clone()]
}

/// Nobody knows how wide what comes later will be.
fn write_columns(context: &mut Context<'_>, cells: &[String; 6]) -> Result<(), Error> {
    const WIDTHS: [usize; 6] = [30, 8, 24, 14, 8, 0];
    let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:width$}"));
    Ok(writeln!(context.stdout, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?)
}
