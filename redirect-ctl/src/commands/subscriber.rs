//! `subscriber list|get|set|delete|import|export|diff|quarantine|release|watch|history`.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Context, Error, audit, event, failed,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::{
        client::{self, Changed, bulk::upload},
        types::{
            Contender, Deleted, ImportMode, Subscriber, SubscriberChange, SubscriberDelete, SubscriberDeleteQuery,
            SubscriberImport, SubscriberImportQuery, SubscriberListQuery, SubscriberPut, SubscriberRecord, paths,
        },
    },
    cli::SubscriberDelete as DeleteArgs,
    cli::{
        SubscriberFile, SubscriberFilter, SubscriberImportArgs, SubscriberList, SubscriberQuarantine, SubscriberSet,
        SubscriberVerb,
    },
    desired::{Name, Origin, Prefix, Time},
    revision::Versioned,
    subscribers::Labels,
};

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 * 1024;

pub(super) async fn run(context: &mut Context<'_>, verb: SubscriberVerb) -> Result<(), Error> {
    match verb {
        SubscriberVerb::List(args) => {
            let watch = args.watch;
            context.watched(watch, async |context: &mut Context<'_>| list(context, &args).await).await
        }
        SubscriberVerb::Get { prefix, watch } => {
            context.watched(watch, async |context: &mut Context<'_>| get(context, prefix).await).await
        }
        SubscriberVerb::Set(args) => set(context, args).await,
        SubscriberVerb::Delete(args) => delete(context, args).await,
        SubscriberVerb::Import(args) => import(context, args).await,
        SubscriberVerb::Export(filter) => export(context, &filter).await,
        SubscriberVerb::Diff(args) => diff(context, args).await,
        SubscriberVerb::Quarantine(args) => quarantine(context, args).await,
        SubscriberVerb::Release { prefix } => release(context, prefix).await,
        SubscriberVerb::Watch(since) => event::watch(context, &["subscriber".to_owned()], since).await,
        SubscriberVerb::History(args) => audit::of_subscriber(context, args.prefix, args.records).await,
    }
}

/// People see what each source says; the first one decides.
async fn get(context: &mut Context<'_>, prefix: Prefix) -> Result<(), Error> {
    let subscriber: Versioned<Subscriber> = context.client.resource(paths::SUBSCRIBER, &prefix).await?;
    if !context.layout.is_for_people() {
        return context.item(&subscriber);
    }
    let record = |fact: &Contender| Said {
        prefix: subscriber.record.prefix,
        class: fact.class.clone(),
        source: fact.source,
        expires: fact.expires,
    };
    context.answer(&subscriber, Said::COLUMNS, &subscriber.facts.iter().map(record).collect::<Vec<_>>())
}

async fn list(context: &mut Context<'_>, args: &SubscriberList) -> Result<(), Error> {
    let wanted = (!args.all).then_some(args.limit);
    let filter = filter(&args.filter);
    let query = |rows, cursor| SubscriberListQuery { limit: Some(rows), cursor, ..filter.clone() };
    context.pages::<Versioned<Subscriber>, _>(wanted, query).await
}

fn filter(args: &SubscriberFilter) -> SubscriberListQuery {
    let facts = &args.facts;
    SubscriberListQuery {
        class: facts.class.as_ref().map(ToString::to_string),
        within: facts.within.map(|within| within.to_string()),
        source: facts.source.map(|source| source.to_string()),
        session: facts.session.as_ref().map(ToString::to_string),
        user: facts.user.as_ref().map(ToString::to_string),
        mac: facts.mac.map(|mac| mac.to_string()),
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
    let (answer, changed): (Versioned<Subscriber>, _) =
        context.client.put(paths::SUBSCRIBER, &args.prefix, &body).await?;
    let decides = answer.facts.iter().find(|fact| fact.effective);
    if let Some(fact) = decides.filter(|fact| fact.source != args.source) {
        let SubscriberRecord { prefix, class, .. } = &answer.record;
        context.note(&format!("{prefix} stays {class}, as {} says", fact.source))?;
    }
    let prefix = answer.record.prefix.to_string();
    context.said(&answer, &prefix, &format!("subscriber {prefix} set (revision {})", changed.revision))?;
    context.late(changed)
}

async fn quarantine(context: &mut Context<'_>, args: SubscriberQuarantine) -> Result<(), Error> {
    let SubscriberQuarantine { prefix, class, ttl } = args;
    let (source, labels) = (Origin::Operator, Vec::new());
    let (priority, session, user, mac, expires) = (None, None, None, None, None);
    set(context, SubscriberSet { prefix, class, source, priority, session, user, mac, labels, expires, ttl }).await
}

async fn release(context: &mut Context<'_>, prefix: Prefix) -> Result<(), Error> {
    let query = SubscriberDeleteQuery { source: Some(Origin::Operator.to_string()), session: None };
    let changed = context.client.delete_with(paths::SUBSCRIBER, &prefix, &query).await?;
    let text = format!("subscriber {prefix} released (revision {})", changed.revision);
    context.said(&changed, &prefix.to_string(), &text)?;
    context.late(changed)
}

async fn delete(context: &mut Context<'_>, args: DeleteArgs) -> Result<(), Error> {
    let facts = args.facts;
    if let Some(prefix) = args.prefix {
        let query = SubscriberDeleteQuery {
            source: facts.source.map(|source| source.to_string()),
            session: facts.session.as_ref().map(ToString::to_string),
        };
        let changed = context.client.delete_with(paths::SUBSCRIBER, &prefix, &query).await?;
        let text = format!("subscriber {prefix} deleted (revision {})", changed.revision);
        context.said(&changed, &prefix.to_string(), &text)?;
        return context.late(changed);
    }
    let body = SubscriberDelete {
        within: facts.within,
        source: facts.source,
        class: facts.class,
        session: facts.session,
        user: facts.user,
        mac: facts.mac,
        labels: labels(args.labels)?,
        count: args.count,
    };
    if body.count.is_none() {
        context.confirm("delete everything that matches?")?;
    }
    let (deleted, changed): (Deleted, _) = context.client.post(paths::SUBSCRIBERS_DELETE, &body).await?;
    context.done(&deleted, &format!("{} facts deleted (revision {})", deleted.count, changed.revision))?;
    context.late(changed)
}

async fn import(context: &mut Context<'_>, args: SubscriberImportArgs) -> Result<(), Error> {
    let SubscriberImportArgs { file: SubscriberFile { file, source }, mode } = args;
    let mut query = query(mode, context.dry_run, source);
    if mode == ImportMode::Replace && !context.dry_run && !context.yes {
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
    context.answer(&report, Change::COLUMNS, &changes(&report))?;
    changed.map_or(Ok(()), |changed| context.late(changed))
}

async fn diff(context: &mut Context<'_>, args: SubscriberFile) -> Result<(), Error> {
    let (report, _) = send(context, &query(ImportMode::Replace, true, args.source), &args.file).await?;
    context.answer(&report, Change::COLUMNS, &changes(&report))?;
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
                // It draws some times a second only, and this may be the last for long.
                progress.force_draw();
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

/// What an import does to a fact, or to how many.
struct Change {
    kind: &'static str,
    prefix: String,
    source: Option<Origin>,
    before: String,
    after: String,
}

impl Columns for Change {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("CHANGE", |row| Cell::text(row.kind)),
        Column::new("PREFIX", |row| Cell::text(&row.prefix)),
        Column::new("SOURCE", |row| Cell::maybe(row.source)),
        Column::new("BEFORE", |row| Cell::text(&row.before)),
        Column::new("AFTER", |row| Cell::text(&row.after)),
    ];
}

fn changes(report: &SubscriberImport) -> Vec<Change> {
    let described = |record: &Option<SubscriberRecord>| {
        record.as_ref().map_or_else(String::new, |record| match record.expires {
            Some(expires) => format!("{},until {expires}", record.class),
            None => record.class.to_string(),
        })
    };
    let example = |SubscriberChange { before, after }: &SubscriberChange| {
        let kind = match (before, after) {
            (None, _) => "added",
            (Some(_), None) => "removed",
            (Some(_), Some(_)) => "changed",
        };
        let of = after.as_ref().or(before.as_ref());
        Change {
            kind,
            prefix: of.map_or_else(String::new, |record| record.prefix.to_string()),
            source: of.map(|record| record.source),
            before: described(before),
            after: described(after),
        }
    };
    let counts = [
        ("added", report.added),
        ("changed", report.changed),
        ("removed", report.removed),
        ("unchanged", report.unchanged),
        ("expired", report.expired),
    ];
    let counts = counts.map(|(kind, count)| Change {
        kind,
        prefix: format!("({count})"),
        source: None,
        before: String::new(),
        after: String::new(),
    });
    report.examples.iter().map(example).chain(counts).collect()
}

impl Resource for Versioned<Subscriber> {
    const KIND: [&'static str; 2] = ["subscriber", "subscribers"];
    const COLLECTION: &'static str = paths::SUBSCRIBERS;
    const PATH: &'static str = paths::SUBSCRIBER;
}

impl Columns for Versioned<Subscriber> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("PREFIX", |subscriber| Cell::text(subscriber.record.prefix)),
        Column::new("CLASS", |subscriber| Cell::text(&subscriber.record.class)),
        Column::new("SOURCE", |subscriber| Cell::text(subscriber.record.source)),
        Column::new("EXPIRES", |subscriber| Cell::maybe(subscriber.record.expires)),
        Column::wide("SESSION", |subscriber| Cell::maybe(subscriber.record.session.as_ref())),
        Column::wide("USER", |subscriber| Cell::maybe(subscriber.record.user.as_ref())),
        Column::wide("MAC", |subscriber| Cell::maybe(subscriber.record.mac)),
        Column::wide("REVISION", |subscriber| Cell::number(subscriber.revision)),
    ];
}

/// What one source says of a prefix.
struct Said {
    prefix: Prefix,
    class: Name,
    source: Origin,
    expires: Option<Time>,
}

impl Columns for Said {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("PREFIX", |said| Cell::text(said.prefix)),
        Column::new("CLASS", |said| Cell::text(&said.class)),
        Column::new("SOURCE", |said| Cell::text(said.source)),
        Column::new("EXPIRES", |said| Cell::maybe(said.expires)),
    ];
}
