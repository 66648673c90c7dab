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
    desired::{Prefix, Time},
    limits,
};

pub(super) async fn run(context: &mut Context<'_>, verb: AuditVerb) -> Result<(), Error> {
    match verb {
        AuditVerb::List(args) => list(context, args).await,
        AuditVerb::Watch => watch(context).await,
    }
}

async fn list(context: &mut Context<'_>, args: AuditList) -> Result<(), Error> {
    let last = (!args.all && args.since.is_none()).then_some(args.limit);
    let (records, lost_through) = read(context, args.since, last).await?;
    context.items(&records)?;
    if args.all && lost_through > 0 {
        context.note(&format!("records up to {lost_through} are gone; there was no room for them"))?;
    }
    Ok(())
}

/// Of those records that the subscriber may have been changed by, as many as are wanted.
pub(super) async fn of_subscriber(context: &mut Context<'_>, prefix: Prefix, args: AuditList) -> Result<(), Error> {
    let (mut records, lost_through) = read(context, args.since, None).await?;
    records.retain(|record| record.after > record.before && concerns(&record.resource, prefix));
    if !args.all && args.since.is_none() {
        records.drain(..records.len().saturating_sub(args.limit as usize));
    }
    context.items(&records)?;
    if lost_through > 0 {
        context.note(&format!("records up to {lost_through} are gone; there was no room for them"))?;
    }
    Ok(())
}

/// Whether a change at this path is one of what is said of the subscriber, or of many subscribers.
fn concerns(resource: &str, prefix: Prefix) -> bool {
    let Some(rest) = resource.strip_prefix(paths::SUBSCRIBERS) else { return false };
    match rest.strip_prefix('/') {
        Some(key) => {
            key.replace("%2F", "/").replace("%2f", "/").replace("%3A", ":").replace("%3a", ":").parse() == Ok(prefix)
        }
        None => true,
    }
}

/// All records since a while ago, or the last so many, and up to which number they are gone.
async fn read(context: &Context<'_>, since: Option<Duration>, last: Option<u32>) -> Result<(Vec<Record>, u64), Error> {
    let seconds = since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let since = seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_sub(seconds) }.to_string());
    let mut records: Vec<Record> = Vec::new();
    let mut cursor = None;
    loop {
        let query = AuditQuery { limit: Some(limits::PAGE_ROWS_MAX), cursor, since: since.clone(), last };
        let page: AuditPage = context.client.query(paths::AUDIT, &query).await?;
        records.extend(page.items);
        cursor = page.next_cursor.and_then(|cursor| cursor.parse().ok());
        if cursor.is_none() {
            return Ok((records, page.lost_through));
        }
    }
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
