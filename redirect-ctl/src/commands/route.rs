//! `route list|get|set|delete|import|export`.

use std::path::Path;

use redirect_relay::{gateway::PriorityRange, route::SizeRange};

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::types::{
        Deleted, ImportMode, Route, RouteDelete, RouteImport, RouteImportQuery, RouteListQuery, RoutePut, paths,
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
            context.pages::<Versioned<Route>, _>(wanted, query).await
        }
        RouteVerb::Get { key } => context.get::<Versioned<Route>>(&key).await,
        RouteVerb::Set(args) => set(context, args).await,
        RouteVerb::Delete(args) => match args.key {
            Some(key) => context.delete::<Versioned<Route>>(&key).await,
            None => delete_many(context, args.filter).await,
        },
        RouteVerb::Import(args) => import(context, args).await,
        RouteVerb::Export { format } => {
            let (text, omitted) = context.client.export(format).await?;
            context.stdout.write_all(text.as_bytes())?;
            if omitted > 0 {
                context.note(&format!("{omitted} routes are left out, for {format} cannot say them"))?;
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
    context.put::<Versioned<Route>>(&key, &body).await
}

/// Deletes what the filter matches, after somebody has said yes to the number.
async fn delete_many(context: &mut Context<'_>, filter: cli::RouteFilter) -> Result<(), Error> {
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
    context.confirm(&format!("delete {count} routes?"))?;
    let cli::RouteFilter { within, target, class } = filter;
    let body = RouteDelete { within, target, class, keys: None, count };
    let (deleted, changed): (Deleted, _) = context.client.post(paths::ROUTES_DELETE, &body).await?;
    context.done(&deleted, &format!("{} routes deleted (revision {})", deleted.count, changed.revision))?;
    context.late(changed)
}

/// Shows what would change, asks, and changes it.
async fn import(context: &mut Context<'_>, args: cli::RouteImport) -> Result<(), Error> {
    let from_stdin = args.file == Path::new("-");
    if from_stdin && !context.yes && !context.dry_run {
        return Err(Error::Usage(
            "standard input is the file, so nobody can be asked: give --yes or --dry-run".to_owned(),
        ));
    }
    let format = args.format.or_else(|| args.file.extension()?.to_str()?.parse().ok());
    let format = format.ok_or_else(|| Error::Usage("which form has the file? give --format".to_owned()))?;
    let text = context.read(&args.file, limits::IMPORT_BYTES_MAX)?;
    let mode = if args.replace { ImportMode::Replace } else { ImportMode::Merge };
    let mut query = RouteImportQuery { format, mode, dry_run: true };
    let (report, _) = context.client.import(&query, &text).await?;
    if context.dry_run || report.is_empty() {
        return context.answer(&report, RouteChange::COLUMNS, &changes(&report));
    }
    if !context.yes {
        let rows = changes(&report);
        let table = context.layout.table(RouteChange::COLUMNS, &rows.iter().collect::<Vec<_>>())?;
        context.stderr.write_all(table.as_bytes())?;
        let (added, changed, removed) = (report.added.count, report.changed.count, report.removed.count);
        context.confirm(&format!("add {added}, change {changed} and delete {removed} routes?"))?;
    }
    query.dry_run = false;
    let (report, changed) = context.client.import(&query, &text).await?;
    context.answer(&report, RouteChange::COLUMNS, &changes(&report))?;
    changed.map_or(Ok(()), |changed| context.late(changed))
}

/// What an import does to a route, or to how many more.
struct RouteChange {
    change: &'static str,
    route: String,
}

impl Columns for RouteChange {
    const COLUMNS: &'static [Column<Self>] =
        &[Column::new("CHANGE", |row| Cell::text(row.change)), Column::new("ROUTE", |row| Cell::text(&row.route))];
}

fn changes(report: &RouteImport) -> Vec<RouteChange> {
    let kinds = [("added", &report.added), ("changed", &report.changed), ("removed", &report.removed)];
    let rows = kinds.into_iter().flat_map(|(change, changes)| {
        let more = changes.count - changes.keys.len() as u64;
        let more = (more > 0).then(|| RouteChange { change, route: format!("({more}_more)") });
        changes.keys.iter().map(move |key| RouteChange { change, route: key.to_string() }).chain(more)
    });
    rows.chain([RouteChange { change: "unchanged", route: format!("({})", report.unchanged) }]).collect()
}

impl Resource for Versioned<Route> {
    const KIND: [&'static str; 2] = ["route", "routes"];
    const COLLECTION: &'static str = paths::ROUTES;
    const PATH: &'static str = paths::ROUTE;
}

impl Columns for Versioned<Route> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("ROUTE", |Versioned { resource: Route { key, .. }, .. }| Cell::text(key)),
        Column::new("TARGET", |Versioned { resource: Route { route, .. }, .. }| {
            Cell::text(route.target.to_string().replace(' ', "="))
        }),
        Column::new("ORDER", |Versioned { resource: Route { route, .. }, .. }| Cell::number(route.order)),
        Column::new("SENDER", |Versioned { resource: Route { route, .. }, .. }| {
            Cell::maybe(route.conditions.sender.as_ref())
        }),
        Column::new("CLASS", |Versioned { resource: Route { route, .. }, .. }| {
            Cell::maybe(route.conditions.class.as_ref().map(Name::as_str))
        }),
        Column::new("SIZE", |Versioned { resource: Route { route, .. }, .. }| {
            Cell::maybe(route.conditions.size.map(|SizeRange { min, max }| match max {
                u64::MAX => format!("{min}.."),
                max => format!("{min}..{max}"),
            }))
        }),
        Column::new("PRIORITY", |Versioned { resource: Route { route, .. }, .. }| {
            Cell::maybe(route.conditions.priority.map(|PriorityRange { min, max }| format!("{min}..{max}")))
        }),
        Column::new("NOTE", |Versioned { resource: Route { route, .. }, .. }| Cell::text(&route.note)),
    ];
}
