//! `subscriber list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Subscriber, SubscriberListQuery, SubscriberPut, paths},
    cli::{SubscriberList, SubscriberSet, SubscriberVerb},
    desired::Time,
    revision::Versioned,
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
    let wanted = (!args.all).then_some(args.limit);
    let (class, within) = (args.class.map(|class| class.to_string()), args.within.map(|within| within.to_string()));
    let query =
        |rows, cursor| SubscriberListQuery { limit: Some(rows), cursor, class: class.clone(), within: within.clone() };
    context.pages(paths::SUBSCRIBERS, "subscribers", wanted, query, table).await
}

async fn set(context: &mut Context<'_>, args: SubscriberSet) -> Result<(), Error> {
    let seconds = args.ttl.map(|ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let expires =
        seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_add(seconds.max(1)) }).or(args.expires);
    let body = SubscriberPut { prefix: None, class: args.class, source: args.source, expires, revision: None };
    let (answer, changed): (Versioned<Subscriber>, _) =
        context.client.put(paths::SUBSCRIBER, &args.prefix, &body).await?;
    context.set(&format!("subscriber {}", answer.prefix), &answer, changed)
}

fn table(subscribers: &[Versioned<Subscriber>]) -> Table {
    let row = |subscriber: &Versioned<Subscriber>| {
        [
            subscriber.prefix.to_string(),
            subscriber.class.to_string(),
            subscriber.source.to_string(),
            or_dash(subscriber.expires.as_ref()),
        ]
    };
    Table::new(["PREFIX", "CLASS", "SOURCE", "EXPIRES"], subscribers.iter().map(row))
}
