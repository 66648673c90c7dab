//! `subscriber list|get|set|delete|import|export|diff`.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Context, Error, failed,
    output::{Table, or_dash},
};
use crate::{
    api::{
        client::{self, Changed, bulk::upload},
        types::{
            Deleted, ImportMode, Subscriber, SubscriberChange, SubscriberDelete, SubscriberDeleteQuery,
            SubscriberImport, SubscriberImportQuery, SubscriberListQuery, SubscriberPut, SubscriberRecord, paths,
        },
    },
    cli::SubscriberDelete as DeleteArgs,
    cli::{SubscriberFile, SubscriberFilter, SubscriberImportArgs, SubscriberList, SubscriberSet, SubscriberVerb},
    desired::{Origin, Time},
    subscribers::Labels,
};

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 * 1024;

pub(super) async fn run(context: &mut Context<'_>, verb: SubscriberVerb) -> Result<(), Error> {
    match verb {
        SubscriberVerb::List(args) => list(context, args).await,
        SubscriberVerb::Get { prefix } => context.get(paths::SUBSCRIBER, &prefix, facts).await,
        SubscriberVerb::Set(args) => set(context, args).await,
        SubscriberVerb::Delete(args) => delete(context, args).await,
        SubscriberVerb::Import(args) => import(context, args).await,
        SubscriberVerb::Export(filter) => export(context, &filter).await,
        SubscriberVerb::Diff(args) => diff(context, args).await,
    }
}

async fn list(context: &mut Context<'_>, args: SubscriberList) -> Result<(), Error> {
    let wanted = (!args.all).then_some(args.limit);
    let filter = filter(&args.filter);
    let query = |rows, cursor| SubscriberListQuery { limit: Some(rows), cursor, ..filter.clone() };
    context.pages(paths::SUBSCRIBERS, "subscribers", wanted, query, table).await
}

fn filter(args: &SubscriberFilter) -> SubscriberListQuery {
    SubscriberListQuery {
        class: args.class.as_ref().map(ToString::to_string),
        within: args.within.map(|within| within.to_string()),
        source: args.source.map(|source| source.to_string()),
        session: args.session.as_ref().map(ToString::to_string),
        user: args.user.as_ref().map(ToString::to_string),
        mac: args.mac.map(|mac| mac.to_string()),
        expires_before: args.expires_before.map(|time| time.to_string()),
        changed_since: args.changed_since,
        ..SubscriberListQuery::default()
    }
}

fn labels(pairs: Vec<(String, String)>) -> Result<Labels, Error> {
    let count = pairs.len();
    let labels: BTreeMap<_, _> = pairs.into_iter().collect();
    if labels.len() < count {
        return Err(Error::Usage("--label has a name twice".to_owned()));
    }
    Labels::new(labels).map_err(|invalid| Error::Usage(format!("--label: {invalid}")))
}

async fn set(context: &mut Context<'_>, args: SubscriberSet) -> Result<(), Error> {
    let seconds = args.ttl.map(|ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let expires =
        seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_add(seconds.max(1)) }).or(args.expires);
    let body = SubscriberPut {
        prefix: None,
        class: args.class,
        source: args.source,
        priority: args.priority,
        session: args.session,
        user: args.user,
        mac: args.mac,
        expires,
        ttl_s: None,
        labels: labels(args.labels)?,
        revision: None,
        facts: None,
    };
    let (answer, changed): (Subscriber, _) = context.client.put(paths::SUBSCRIBER, &args.prefix, &body).await?;
    let decides = answer.facts.iter().find(|fact| fact.effective);
    if let Some(fact) = decides.filter(|fact| fact.source != args.source) {
        let SubscriberRecord { prefix, class, .. } = &answer.record;
        writeln!(context.stderr, "redirect-ctl: {prefix} stays {class}, as {} says", fact.source)?;
    }
    context.set(&format!("subscriber {}", answer.record.prefix), &answer, changed)
}

async fn delete(context: &mut Context<'_>, args: DeleteArgs) -> Result<(), Error> {
    if let Some(prefix) = args.prefix {
        let query = SubscriberDeleteQuery {
            source: args.source.map(|source| source.to_string()),
            session: args.session.as_ref().map(ToString::to_string),
        };
        let changed = context.client.delete_with(paths::SUBSCRIBER, &prefix, &query).await?;
        return context.deleted(&format!("subscriber {prefix}"), changed);
    }
    let body = SubscriberDelete {
        within: args.within,
        source: args.source,
        class: args.class,
        session: args.session,
        user: args.user,
        mac: args.mac,
        labels: labels(args.labels)?,
        count: args.count,
    };
    if !args.yes && body.count.is_none() {
        context.confirm("delete everything that matches?")?;
    }
    let (deleted, changed): (Deleted, _) = context.client.post(paths::SUBSCRIBERS_DELETE, &body).await?;
    context.done(&deleted, &format!("{} facts deleted (revision {})", deleted.count, changed.revision))?;
    context.late(changed)
}

async fn import(context: &mut Context<'_>, args: SubscriberImportArgs) -> Result<(), Error> {
    let SubscriberImportArgs { file: SubscriberFile { file, source }, mode, dry_run, yes } = args;
    let mut query = query(mode, dry_run, source);
    if mode == ImportMode::Replace && !dry_run && !yes {
        if file == Path::new("-") {
            return Err(Error::Usage("give --yes: standard input cannot be read twice".to_owned()));
        }
        query.dry_run = true;
        let (report, _) = send(context, &query, &file).await?;
        let SubscriberImport { added, changed, removed, .. } = report;
        context.confirm(&format!("add {added}, change {changed} and delete {removed} facts?"))?;
        query.dry_run = false;
    }
    let (report, changed) = send(context, &query, &file).await?;
    context.print(&report, changes)?;
    changed.map_or(Ok(()), |changed| context.late(changed))
}

async fn diff(context: &mut Context<'_>, args: SubscriberFile) -> Result<(), Error> {
    let (report, _) = send(context, &query(ImportMode::Replace, true, args.source), &args.file).await?;
    context.print(&report, changes)?;
    if report.is_empty() { Ok(()) } else { Err(Error::Differs) }
}

fn query(mode: ImportMode, dry_run: bool, source: Option<Origin>) -> SubscriberImportQuery {
    SubscriberImportQuery { mode, dry_run, source: source.map(|source| source.to_string()) }
}

/// Sends a file while it is read.
async fn send(
    context: &mut Context<'_>,
    query: &SubscriberImportQuery,
    path: &Path,
) -> Result<(SubscriberImport, Option<Changed>), Error> {
    let length = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
    let progress = progress(context.progress, length);
    let client = context.client.clone();
    let (upload, pieces) = upload();
    let mut source = context.open(path)?;
    let reading = async {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = source.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece);
            let read = read.map_err(|error| failed(path, &error))?;
            if read == 0 {
                progress.set_message("importing");
                upload.end().await;
                return Ok::<(), Error>(());
            }
            progress.inc(read as u64);
            // Whoever has answered already wants no more.
            if !upload.send(piece).await {
                return Ok(());
            }
        }
    };
    let (read, answer) = tokio::join!(reading, client.import_subscribers(query, pieces));
    progress.finish_and_clear();
    drop(source);
    read?;
    answer.map_err(|error| faults(context, error))
}

/// Tells all that is wrong with a file, a line for each; the error that is left says how it ended.
fn faults(context: &mut Context<'_>, error: client::Error) -> Error {
    if let client::Error::Problem(problem) = &error
        && let Some(lines) = &problem.lines
    {
        for fault in &lines.first {
            let place = if fault.pointer.is_empty() { String::new() } else { format!(" {}", fault.pointer) };
            // If even that cannot be said, the exit code says it.
            let _ = writeln!(context.stderr, "line {}{place}: {}", fault.line, fault.detail);
        }
    }
    error.into()
}

async fn export(context: &mut Context<'_>, args: &SubscriberFilter) -> Result<(), Error> {
    let mut download = context.client.export_subscribers(&filter(args)).await?;
    let progress = progress(context.progress, None);
    while let Some(piece) = download.next().await? {
        progress.inc(piece.len() as u64);
        context.stdout.write_all(&piece)?;
    }
    progress.finish_and_clear();
    Ok(context.stdout.flush()?)
}

/// Of bytes; on standard error, if somebody looks at it.
fn progress(shown: bool, length: Option<u64>) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let form = match length {
        Some(_) => "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}",
        None => "{spinner} {bytes} {bytes_per_sec} {msg}",
    };
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
}

fn changes(report: &SubscriberImport) -> Table {
    let described = |record: &Option<SubscriberRecord>| {
        or_dash(record.as_ref().map(|record| match record.expires {
            Some(expires) => format!("{},until {expires}", record.class),
            None => record.class.to_string(),
        }))
    };
    let example = |SubscriberChange { before, after }: &SubscriberChange| {
        let kind = match (before, after) {
            (None, _) => "added",
            (Some(_), None) => "removed",
            (Some(_), Some(_)) => "changed",
        };
        let of = after.as_ref().or(before.as_ref());
        let (prefix, source) = (of.map(|record| record.prefix), of.map(|record| record.source));
        [kind.to_owned(), or_dash(prefix), or_dash(source), described(before), described(after)]
    };
    let counts = [
        ("added", report.added),
        ("changed", report.changed),
        ("removed", report.removed),
        ("unchanged", report.unchanged),
        ("expired", report.expired),
    ];
    let counts = counts.map(|(kind, count)| {
        [kind.to_owned(), format!("({count})"), or_dash(None::<u8>), or_dash(None::<u8>), or_dash(None::<u8>)]
    });
    Table::new(["CHANGE", "PREFIX", "SOURCE", "BEFORE", "AFTER"], report.examples.iter().map(example).chain(counts))
}

const COLUMNS: [&str; 4] = ["PREFIX", "CLASS", "SOURCE", "EXPIRES"];

fn table(subscribers: &[Subscriber]) -> Table {
    let row = |Subscriber { record, .. }: &Subscriber| {
        [
            record.prefix.to_string(),
            record.class.to_string(),
            record.source.to_string(),
            or_dash(record.expires.as_ref()),
        ]
    };
    Table::new(COLUMNS, subscribers.iter().map(row))
}

/// The first one decides.
fn facts(subscribers: &[Subscriber]) -> Table {
    let rows = subscribers.iter().flat_map(|subscriber| {
        subscriber.facts.iter().map(|fact| {
            [
                subscriber.record.prefix.to_string(),
                fact.class.to_string(),
                fact.source.to_string(),
                or_dash(fact.expires.as_ref()),
            ]
        })
    });
    Table::new(COLUMNS, rows)
}
