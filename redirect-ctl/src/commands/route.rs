//! `route list|get|set|delete|import|export`.

use std::{fs::File, io::Read, path::Path};

use redirect_relay::{gateway::PriorityRange, route::SizeRange};

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::{
        client,
        types::{
            Deleted, ImportMode, Route, RouteDelete, RouteImport, RouteImportQuery, RouteListQuery, RoutePut, paths,
        },
    },
    cli::{self, RouteVerb},
    desired::Name,
    limits,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: RouteVerb) -> Result<(), Error> {
    match verb {
        RouteVerb::List(args) => {
            let wanted = (!args.all).then_some(args.limit);
            let query = |rows, cursor| RouteListQuery { limit: Some(rows), cursor, ..list_query(&args.filter) };
            context.pages(paths::ROUTES, "routes", wanted, query, table).await
        }
        RouteVerb::Get { key } => context.get(paths::ROUTE, &key, table).await,
        RouteVerb::Set(args) => set(context, args).await,
        RouteVerb::Delete(args) => match args.key {
            Some(key) => {
                let changed = context.client.delete(paths::ROUTE, &key).await?;
                context.deleted(&format!("route {key}"), changed)
            }
            None => delete_many(context, args.filter, args.yes).await,
        },
        RouteVerb::Import(args) => import(context, args).await,
        RouteVerb::Export { format } => {
            let (text, omitted) = context.client.export(format).await?;
            context.stdout.write_all(text.as_bytes())?;
            if omitted > 0 {
                writeln!(context.stderr, "redirect-ctl: {omitted} routes are left out, for {format} cannot say them")?;
            }
            Ok(())
        }
    }
}

fn list_query(filter: &cli::RouteFilter) -> RouteListQuery {
    RouteListQuery {
        within: filter.within.as_ref().map(ToString::to_string),
        target: filter.target.as_ref().map(ToString::to_string),
        class: filter.class.as_ref().map(ToString::to_string),
        ..RouteListQuery::default()
    }
}

async fn set(context: &mut Context<'_>, args: cli::RouteSet) -> Result<(), Error> {
    let mut key = args.key;
    if let Some(order) = args.order {
        key.order = order;
    }
    let conditions = &mut key.conditions;
    conditions.sender = args.sender.or(conditions.sender.take());
    conditions.class = args.class.or(conditions.class.take());
    conditions.size = args.size.or(conditions.size);
    conditions.priority = args.priority.or(conditions.priority);
    let body = RoutePut { gateway: args.gateway, group: args.group, note: args.note, ..RoutePut::default() };
    let (answer, changed): (Versioned<Route>, _) = context.client.put(paths::ROUTE, &key, &body).await?;
    context.set(&format!("route {}", answer.key), &answer, changed)
}

/// Deletes what the filter matches, after somebody has said yes to the number.
async fn delete_many(context: &mut Context<'_>, filter: cli::RouteFilter, yes: bool) -> Result<(), Error> {
    let mut count = 0;
    let mut query = list_query(&filter);
    query.limit = Some(limits::PAGE_ROWS_MAX);
    loop {
        let page: crate::api::types::Page<Versioned<Route>> = context.client.page(paths::ROUTES, &query).await?;
        count += page.items.len() as u64;
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    if !yes {
        context.confirm(&format!("delete {count} routes?"))?;
    }
    let cli::RouteFilter { within, target, class } = filter;
    let body = RouteDelete { within, target, class, keys: None, count };
    let (deleted, changed): (Deleted, _) = context.client.post(paths::ROUTES_DELETE, &body).await?;
    context.done(&deleted, &format!("{} routes deleted (revision {})", deleted.count, changed.revision))?;
    context.late(changed)
}

/// Shows what would change, asks, and changes it.
async fn import(context: &mut Context<'_>, args: cli::RouteImport) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Failed(format!("{}: {error}", args.file.display()));
    let from_stdin = args.file == Path::new("-");
    if from_stdin && !args.yes && !args.dry_run {
        return Err(Error::Usage(
            "standard input is the file, so nobody can be asked: give --yes or --dry-run".to_owned(),
        ));
    }
    let format = args.format.or_else(|| args.file.extension()?.to_str()?.parse().ok());
    let format = format.ok_or_else(|| Error::Usage("which form has the file? give --format".to_owned()))?;
    let mut text = String::new();
    let mut source: Box<dyn Read + '_> =
        if from_stdin { Box::new(&mut *context.stdin) } else { Box::new(File::open(&args.file).map_err(failed)?) };
    source.by_ref().take(limits::IMPORT_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    drop(source);
    let mode = if args.replace { ImportMode::Replace } else { ImportMode::Merge };
    let mut query = RouteImportQuery { format, mode, dry_run: true };
    let (report, _) = context.client.import(&query, &text).await.map_err(|error| faults(context, error))?;
    if args.dry_run || report.is_empty() {
        return context.print(&report, changes);
    }
    if !args.yes {
        context.stderr.write_all(changes(&report).render(true).as_bytes())?;
        let (added, changed, removed) = (report.added.count, report.changed.count, report.removed.count);
        context.confirm(&format!("add {added}, change {changed} and delete {removed} routes?"))?;
    }
    query.dry_run = false;
    let (report, changed) = context.client.import(&query, &text).await.map_err(|error| faults(context, error))?;
    context.print(&report, changes)?;
    changed.map_or(Ok(()), |changed| context.late(changed))
}

/// Tells all that is wrong with a file, a line for each; the error that is left says how it ended.
fn faults(context: &mut Context<'_>, error: client::Error) -> Error {
    if let client::Error::Problem(problem) = &error {
        for fault in problem.errors.iter().filter(|fault| fault.pointer.starts_with("line ")) {
            // If even that cannot be said, the exit code says it.
            let _ = writeln!(context.stderr, "{}: {}", fault.pointer, fault.detail);
        }
    }
    error.into()
}

fn changes(report: &RouteImport) -> Table {
    let kinds = [("added", &report.added), ("changed", &report.changed), ("removed", &report.removed)];
    let rows = kinds.into_iter().flat_map(|(kind, changes)| {
        let more = changes.count - changes.keys.len() as u64;
        let more = (more > 0).then(|| [kind.to_owned(), format!("({more}_more)")]);
        changes.keys.iter().map(move |key| [kind.to_owned(), key.to_string()]).chain(more)
    });
    Table::new(["CHANGE", "ROUTE"], rows.chain([["unchanged".to_owned(), format!("({})", report.unchanged)]]))
}

fn table(routes: &[Versioned<Route>]) -> Table {
    let row = |Versioned { resource: Route { key, route }, .. }: &Versioned<Route>| {
        let conditions = &route.conditions;
        let size = conditions.size.map(|SizeRange { min, max }| match max {
            u64::MAX => format!("{min}.."),
            max => format!("{min}..{max}"),
        });
        let priority = conditions.priority.map(|PriorityRange { min, max }| format!("{min}..{max}"));
        [
            key.to_string(),
            route.target.to_string().replace(' ', "="),
            route.order.to_string(),
            or_dash(conditions.sender.as_ref()),
            or_dash(conditions.class.as_ref().map(Name::as_str)),
            or_dash(size),
            or_dash(priority),
            or_dash(Some(&route.note)),
        ]
    };
    let header = ["ROUTE", "TARGET", "ORDER", "SENDER", "CLASS", "SIZE", "PRIORITY", "NOTE"];
    Table::new(header, routes.iter().map(row))
}
