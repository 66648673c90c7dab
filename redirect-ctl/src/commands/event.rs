//! `event watch`.

use super::{Context, Error};
use crate::{
    api::{
        client,
        types::{ChangesQuery, ServerEvent},
    },
    cli::{EventVerb, EventWatch, Output},
};

pub(super) async fn run(context: &mut Context<'_>, verb: EventVerb) -> Result<(), Error> {
    match verb {
        EventVerb::Watch(args) => watch(context, args).await,
    }
}

/// Until interrupted, or the daemon stops. What is missing is told where problems are.
async fn watch(context: &mut Context<'_>, args: EventWatch) -> Result<(), Error> {
    let types = (!args.types.is_empty()).then(|| args.types.join(","));
    let mut events = context.client.changes(&ChangesQuery { types }, args.since).await?;
    if context.output == Output::Table && context.headers {
        write_columns(context, ["REVISION", "ACTION", "TYPE", "KEY"])?;
    }
    while let Some(event) = events.next_event().await? {
        match (&event, context.output) {
            (ServerEvent::Change(change), Output::Table) => {
                let (revision, key) = (change.revision.to_string(), change.key.as_deref().unwrap_or("-"));
                write_columns(context, [&revision, change.action.name(), &change.r#type, key])?;
            }
            (_, Output::Json) => {
                let text = serde_json::to_string(&event).map_err(|error| client::Error::Answer(error.to_string()))?;
                writeln!(context.stdout, "{text}")?;
            }
            (_, Output::Table) => {}
        }
        match event {
            ServerEvent::Change(_) => {}
            ServerEvent::Reset(reset) => writeln!(
                context.stderr,
                "redirect-ctl: the log of changes does not reach back so far; read the lists again (revision {})",
                reset.revision
            )?,
            ServerEvent::Dropped(dropped) => {
                writeln!(context.stderr, "redirect-ctl: {} changes were not read fast enough", dropped.count)?;
            }
        }
        context.stdout.flush()?;
    }
    writeln!(context.stderr, "redirect-ctl: redirectd stopped")?;
    Ok(())
}

/// Nobody knows how wide what comes later will be.
fn write_columns(context: &mut Context<'_>, [revision, action, kind, key]: [&str; 4]) -> Result<(), Error> {
    Ok(writeln!(context.stdout, "{revision:<10}  {action:<6}  {kind:<14}  {key}")?)
}
