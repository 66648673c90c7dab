//! `audit list|watch`.

use std::time::Duration;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    access::audit::Record,
    api::{
        audit::{AuditPage, AuditQuery},
        types::paths,
    },
    cli::{AuditList, AuditVerb},
    desired::Time,
    limits,
};

pub(super) async fn run(context: &mut Context<'_>, verb: AuditVerb) -> Result<(), Error> {
    match verb {
        AuditVerb::List(args) => list(context, args).await,
        AuditVerb::Watch => watch(context).await,
    }
}

async fn list(context: &mut Context<'_>, args: AuditList) -> Result<(), Error> {
    let seconds = args.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let since = seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_sub(seconds) }.to_string());
    let last = (!args.all && since.is_none()).then_some(args.limit);
    let mut records: Vec<Record> = Vec::new();
    let mut cursor = None;
    let lost_through = loop {
        let query = AuditQuery { limit: Some(limits::PAGE_ROWS_MAX), cursor, since: since.clone(), last };
        let page: AuditPage = context.client.query(paths::AUDIT, &query).await?;
        records.extend(page.items);
        cursor = page.next_cursor.and_then(|cursor| cursor.parse().ok());
        if cursor.is_none() {
            break page.lost_through;
        }
    };
    context.items(&records)?;
    if args.all && lost_through > 0 {
        context.note(&format!("records up to {lost_through} are gone; there was no room for them"))?;
    }
    Ok(())
}

/// From now on, until interrupted.
async fn watch(context: &mut Context<'_>) -> Result<(), Error> {
    let newest = AuditQuery { last: Some(1), limit: Some(1), ..AuditQuery::default() };
    let page: AuditPage = context.client.query(paths::AUDIT, &newest).await?;
    let mut seen = page.items.last().map_or(0, |record| record.seq);
    context.layout.titles::<Record>(context.stdout)?;
    context.stdout.flush()?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let query = AuditQuery { cursor: Some(seen), limit: Some(limits::PAGE_ROWS_MAX), ..AuditQuery::default() };
        let page: AuditPage = context.client.query(paths::AUDIT, &query).await?;
        if page.lost_through > seen {
            context.note(&format!("records up to {} are gone before they were shown", page.lost_through))?;
        }
        for record in &page.items {
            seen = record.seq;
            context.layout.row(context.stdout, record)?;
        }
        context.stdout.flush()?;
    }
}

impl Columns for Record {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::of_width("SEQ", 6, |record| Cell::number(record.seq)),
        Column::of_width("TIME", 30, |record| Cell::text(&record.time)),
        Column::of_width("WHO", 16, |record| Cell::text(&record.who)),
        Column::of_width("FROM", 16, |record| Cell::text(record.from.replace(' ', ":"))),
        Column::of_width("METHOD", 6, |record| Cell::text(&record.method)),
        Column::of_width("RESOURCE", 32, |record| Cell::text(&record.resource)),
        Column::of_width("REVISION", 8, |record| {
            let Self { before, after, .. } = record;
            Cell::text(if before == after { after.to_string() } else { format!("{before}-{after}") })
        }),
        Column::of_width("STATUS", 6, |record| Cell::maybe((record.status != 0).then_some(record.status))),
        Column::new("RESULT", |record| Cell::text(&record.result)),
    ];
}
