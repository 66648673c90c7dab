//! `audit list|watch`.

use std::time::Duration;

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    access::audit::Record,
    api::{
        audit::{AuditPage, AuditQuery},
        client,
        types::paths,
    },
    cli::{AuditList, AuditVerb, Output},
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
    context.print(&records, |records| table(records))?;
    if args.all && lost_through > 0 {
        writeln!(context.stderr, "redirect-ctl: records up to {lost_through} are gone; there was no room for them")?;
    }
    Ok(())
}

/// From now on, until interrupted.
async fn watch(context: &mut Context<'_>) -> Result<(), Error> {
    let newest = AuditQuery { last: Some(1), limit: Some(1), ..AuditQuery::default() };
    let page: AuditPage = context.client.query(paths::AUDIT, &newest).await?;
    let mut seen = page.items.last().map_or(0, |record| record.seq);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let query = AuditQuery { cursor: Some(seen), limit: Some(limits::PAGE_ROWS_MAX), ..AuditQuery::default() };
        let page: AuditPage = context.client.query(paths::AUDIT, &query).await?;
        if page.lost_through > seen {
            writeln!(
                context.stderr,
                "redirect-ctl: records up to {} are gone before they were shown",
                page.lost_through
            )?;
        }
        for record in &page.items {
            seen = record.seq;
            if context.output == Output::Table {
                writeln!(context.stdout, "{}", cells(record).join("  "))?;
            } else {
                let text = serde_json::to_string(record).map_err(|error| client::Error::Answer(error.to_string()))?;
                writeln!(context.stdout, "{text}")?;
            }
        }
        context.stdout.flush()?;
    }
}

fn table(records: &[Record]) -> Table {
    let header = ["SEQ", "TIME", "WHO", "FROM", "METHOD", "RESOURCE", "REVISION", "STATUS", "RESULT"];
    Table::new(header, records.iter().map(cells))
}

fn cells(record: &Record) -> [String; 9] {
    let revision = if record.before == record.after {
        record.after.to_string()
    } else {
        format!("{}-{}", record.before, record.after)
    };
    [
        record.seq.to_string(),
        record.time.clone(),
        record.who.clone(),
        record.from.replace(' ', ":"),
        record.method.clone(),
        record.resource.clone(),
        revision,
        or_dash((record.status != 0).then_some(record.status)),
        record.result.clone(),
    ]
}
