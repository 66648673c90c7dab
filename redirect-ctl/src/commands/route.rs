//! `route list|get|set|delete`.

use std::io::{BufRead, BufReader, Read};

use redirect_relay::{gateway::PriorityRange, route::SizeRange};

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Deleted, Route, RouteDelete, RouteListQuery, RoutePut, paths},
    cli::{self, RouteVerb},
    desired::Name,
    limits,
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
    let (answer, changed): (Route, _) = context.client.put(paths::ROUTE, &key, &body).await?;
    context.set(&format!("route {}", answer.key), &answer, changed)
}

/// Deletes what the filter matches, after somebody has said yes to the number.
async fn delete_many(context: &mut Context<'_>, filter: cli::RouteFilter, yes: bool) -> Result<(), Error> {
    let mut count = 0;
    let mut query = list_query(&filter);
    query.limit = Some(limits::PAGE_ROWS_MAX);
    loop {
        let page: crate::api::types::Page<Route> = context.client.page(paths::ROUTES, &query).await?;
        count += page.items.len() as u64;
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    if !yes {
        write!(context.stderr, "delete {count} routes? [y/N] ")?;
        context.stderr.flush()?;
        let mut answer = String::new();
        BufReader::new((&mut *context.stdin).take(limits::LINE_BYTES_MAX)).read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Error::Failed("nothing was deleted".to_owned()));
        }
    }
    let cli::RouteFilter { within, target, class } = filter;
    let body = RouteDelete { within, target, class, keys: None, count };
    let (deleted, changed): (Deleted, _) = context.client.post(paths::ROUTES_DELETE, &body).await?;
    context.done(&deleted, &format!("{} routes deleted (revision {})", deleted.count, changed.revision))?;
    context.late(changed)
}

fn table(routes: &[Route]) -> Table {
    let row = |Route { key, route }: &Route| {
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
