//! `event watch`.

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    api::types::{ChangeEvent, ChangesQuery, ServerEvent},
    cli::{EventVerb, EventWatch, Since},
};

pub(super) async fn run(context: &mut Context<'_>, verb: EventVerb) -> Result<(), Error> {
    match verb {
        EventVerb::Watch(EventWatch { types, since }) => watch(context, &types, since).await,
    }
}

/// Until interrupted, or the daemon stops. What is missing is told where problems are.
pub(super) async fn watch(context: &mut Context<'_>, types: &[String], since: Since) -> Result<(), Error> {
    let types = (!types.is_empty()).then(|| types.join(","));
    let mut events = context.client.changes(&ChangesQuery { types }, since.since).await?;
    context.layout.titles::<ServerEvent>(context.stdout)?;
    while let Some(event) = events.next_event().await? {
        match &event {
            ServerEvent::Change(_) => {}
            ServerEvent::Reset(reset) => context.note(&format!(
                "the log of changes does not reach back so far; read the lists again (revision {})",
                reset.revision
            ))?,
            ServerEvent::Dropped(dropped) => {
                context.note(&format!("{} changes were not read fast enough", dropped.count))?;
            }
        }
        if !context.layout.is_for_people() || matches!(event, ServerEvent::Change(_)) {
            context.layout.row(context.stdout, &event)?;
        }
        context.stdout.flush()?;
    }
    context.note("redirectd stopped")
}

impl Columns for ServerEvent {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::of_width("REVISION", 10, |event| Cell::maybe(change(event).map(|change| change.revision))),
        Column::of_width("ACTION", 6, |event| Cell::maybe(change(event).map(|change| change.action.name()))),
        Column::of_width("TYPE", 14, |event| Cell::maybe(change(event).map(|change| &change.r#type))),
        Column::new("KEY", |event| Cell::maybe(change(event).and_then(|change| change.key.as_ref()))),
    ];
}

fn change(event: &ServerEvent) -> Option<&ChangeEvent> {
    match event {
        ServerEvent::Change(change) => Some(change),
        ServerEvent::Reset(_) | ServerEvent::Dropped(_) => None,
    }
}
