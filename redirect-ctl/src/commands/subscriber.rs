//! `subscriber list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Page, Subscriber, SubscriberListQuery, SubscriberPut, paths},
    cli::{SubscriberList, SubscriberSet, SubscriberVerb},
    desired::Time,
    limits,
};

pub(super) async fn run(context: &mut Context<'_>, verb: SubscriberVerb) -> Result<(), Error> {
    match verb {
        SubscriberVerb::List(args) => list(context, args).await,
        SubscriberVerb::Get { prefix } => context.get(paths::SUBSCRIBER, &prefix, table).await,
        SubscriberVerb::Set(args) => set(context, args).await,
        SubscriberVerb::Delete { prefix } => {
            let changed = context.client.delete(paths::SUBSCRIBER, &prefix).await?;
            context.deleted(&format!("subscriber {prefix}"), changed)
        }
    }
}

async fn list(context: &mut Context<'_>, args: SubscriberList) -> Result<(), Error> {
    let wanted = if args.all { usize::MAX } else { args.limit as usize };
    let mut query = SubscriberListQuery {
        class: args.class.map(|class| class.to_string()),
        within: args.within.map(|within| within.to_string()),
        ..SubscriberListQuery::default()
    };
    let mut items: Vec<Subscriber> = Vec::new();
    let more = loop {
        let rows = u32::try_from(wanted - items.len()).unwrap_or(u32::MAX).min(limits::PAGE_ROWS_MAX);
        query.limit = Some(rows);
        let page: Page<Subscriber> = context.client.page(paths::SUBSCRIBERS, &query).await?;
        items.extend(page.items);
        query.cursor = page.next_cursor;
        if query.cursor.is_none() || items.len() >= wanted {
            break query.cursor.is_some();
        }
    };
    context.print(&items, |items| table(items))?;
    if more {
        writeln!(
            context.stderr,
            "redirect-ctl: showing the first {} subscribers; use --all, or raise --limit",
            items.len()
        )?;
    }
    Ok(())
}

async fn set(context: &mut Context<'_>, args: SubscriberSet) -> Result<(), Error> {
    let seconds = args.ttl.map(|ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let expires =
        seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_add(seconds.max(1)) }).or(args.expires);
    let body = SubscriberPut { prefix: None, class: args.class, source: args.source, expires };
    let (answer, changed): (Subscriber, _) = context.client.put(paths::SUBSCRIBER, &args.prefix, &body).await?;
    context.set(&format!("subscriber {}", answer.prefix), &answer, changed)
}

fn table(subscribers: &[Subscriber]) -> Table {
    let row = |subscriber: &Subscriber| {
        [
            subscriber.prefix.to_string(),
            subscriber.class.to_string(),
            subscriber.source.to_string(),
            or_dash(subscriber.expires.as_ref()),
        ]
    };
    Table::new(["PREFIX", "CLASS", "SOURCE", "EXPIRES"], subscribers.iter().map(row))
}
