//! Handlers of the subscribers.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{
    App, AppState, PREFIX_IN_PATH, bulk, class_in_query, commit,
    conditions::show,
    error::{ApiError, Problem},
    extract::{Body, Key, Params},
    in_query,
    list::Form,
    not_found, page_rows, paged, same_key,
    types::{
        Deleted, Page, Subscriber, SubscriberDelete, SubscriberDeleteQuery, SubscriberListQuery, SubscriberPut, paths,
    },
};
use crate::{
    desired::{self, Invalid, Origin, Prefix, Tables, Time},
    revision::{Conditions, Versioned},
    store::{Change, FactFilter, FactQuery, Kind, Outcome},
    subscribers::{Fact, Known, to_come},
};

/// What decides, prefix by prefix, in pages; or all of it, an object a line, with `Accept: application/x-ndjson`.
#[utoipa::path(get, path = paths::SUBSCRIBERS, tag = "subscribers", params(SubscriberListQuery),
    responses((status = 200, content((Page<Versioned<Subscriber>> = "application/json"), (Versioned<Subscriber> = "application/x-ndjson"))),
    (status = 400, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list_subscribers(
    State(app): App,
    Params(query): Params<SubscriberListQuery>,
    form: Form,
) -> Result<Response, ApiError> {
    let rows_max = page_rows(query.limit)?;
    let facts = fact_query(&app.store.snapshot().tables, &query)?;
    if form == Form::Lines {
        return bulk::stream(&app, facts, true).await;
    }
    let facts = FactQuery { rows_max: Some(rows_max + 1), ..facts };
    let count = if query.count { Some(app.store.count_facts(facts.clone()).await?) } else { None };
    let rows = app.store.facts(facts).await?;
    let cursor = |last: &Known| last.fact.prefix.to_string().replace('/', "_");
    let Json(page) = paged(rows, rows_max, cursor, Subscriber::by);
    Ok(Json(Page { count, ..page }).into_response())
}

/// Which effective facts a query means.
pub(super) fn fact_query(tables: &Tables, query: &SubscriberListQuery) -> Result<FactQuery, ApiError> {
    let prefix =
        |name, text: &Option<String>| text.as_deref().map(|text| in_query(name, desired::prefix(text))).transpose();
    let filter = FactFilter {
        within: prefix("within", &query.within)?,
        source: query.source.as_deref().map(source).transpose()?,
        class: query.class.as_deref().map(|name| class_in_query(tables, name)).transpose()?,
        session: query.session.as_deref().map(|text| in_query("session", text.parse())).transpose()?,
        user: query.user.as_deref().map(|text| in_query("user", text.parse())).transpose()?,
        mac: query.mac.as_deref().map(|text| in_query("mac", text.parse())).transpose()?,
        expires_before_s: query
            .expires_before
            .as_deref()
            .map(|text| in_query("expires_before", text.parse::<Time>()))
            .transpose()?
            .map(|time| time.seconds),
        changed_since: query.changed_since,
        ..FactFilter::default()
    };
    Ok(FactQuery { after: prefix("cursor", &query.cursor)?, filter, ..FactQuery::default() })
}

pub(super) fn source(word: &str) -> Result<Origin, ApiError> {
    in_query("source", word.parse::<Origin>().map_err(Invalid::from))
}

/// What decides about a prefix, and in `facts` what each source says of it.
#[utoipa::path(get, path = paths::SUBSCRIBER, tag = "subscribers", params(("prefix" = String, Path, description = PREFIX_IN_PATH)),
    responses((status = 200, body = Versioned<Subscriber>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_subscriber(
    State(app): App,
    conditions: Conditions,
    Key(Prefix(prefix)): Key<Prefix>,
) -> Result<Response, ApiError> {
    let found = app.store.subscriber(prefix).await?;
    let whole = found.and_then(|subscriber| Subscriber::whole(subscriber, app.store.priorities()));
    let whole = whole.ok_or_else(|| not_found(Kind::Subscriber, &prefix))?;
    show(&conditions, Kind::Subscriber, &prefix, whole)
}

/// Says for a source what it knows of a prefix, in place of what it said before. Whether that decides, the answer tells.
///
/// What a source says again changes nothing; that it holds for longer is written once a quarter of the time has passed.
#[utoipa::path(put, path = paths::SUBSCRIBER, tag = "subscribers", params(("prefix" = String, Path, description = PREFIX_IN_PATH)),
    request_body = SubscriberPut, responses((status = 200, body = Versioned<Subscriber>), (status = 201, body = Versioned<Subscriber>),
    (status = 400, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn put_subscriber(
    State(app): App,
    conditions: Conditions,
    Key(prefix): Key<Prefix>,
    Body(body): Body<SubscriberPut>,
) -> Result<Response, ApiError> {
    same_key("/prefix", &prefix, body.prefix.as_ref())?;
    let now = Time::now();
    let expires = expiry(&body, now).map_err(|(pointer, invalid)| ApiError::invalid(pointer, &invalid))?;
    let fact = Fact {
        prefix: prefix.0,
        source: body.source,
        class: body.class,
        priority: body.priority,
        expires_s: expires.map(|expires| expires.seconds),
        session: body.session,
        user: body.user,
        mac: body.mac,
        labels: body.labels,
    };
    let change = Change::PutFact { fact: Box::new(fact.clone()), now_s: now.seconds };
    let done = commit(&app, conditions, change).await?;
    let found = app.store.subscriber(prefix.0).await?;
    let whole = found.and_then(|subscriber| Subscriber::whole(subscriber, app.store.priorities()));
    // Gone again already: what was said, then.
    Ok(done.answer(whole.map_or_else(|| fact.into(), |whole| whole.resource)))
}

/// When what a body says is forgotten.
fn expiry(body: &SubscriberPut, now: Time) -> Result<Option<Time>, (&'static str, Invalid)> {
    match (body.expires, body.ttl_s) {
        (None, None) => Ok(None),
        (Some(expires), None) => to_come(expires, now).map(Some).map_err(|invalid| ("/expires", invalid)),
        (None, Some(0)) => Err(("/ttl_s", Invalid("0 is out of range; give at least 1".to_owned()))),
        (None, Some(ttl_s)) => Ok(Some(Time { seconds: now.seconds + i64::from(ttl_s) })),
        (Some(_), Some(_)) => Err(("/ttl_s", Invalid("give expires or ttl_s, not both".to_owned()))),
    }
}

/// Forgets what is known of a prefix, or what one source says of it.
#[utoipa::path(delete, path = paths::SUBSCRIBER, tag = "subscribers",
    params(("prefix" = String, Path, description = PREFIX_IN_PATH), SubscriberDeleteQuery),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_subscriber(
    State(app): App,
    conditions: Conditions,
    Key(Prefix(prefix)): Key<Prefix>,
    Params(query): Params<SubscriberDeleteQuery>,
) -> Result<Response, ApiError> {
    let filter = FactFilter {
        prefix: Some(prefix),
        source: query.source.as_deref().map(source).transpose()?,
        session: query.session.as_deref().map(|text| in_query("session", text.parse())).transpose()?,
        ..FactFilter::default()
    };
    let done = commit(&app, conditions, Change::DeleteFacts { filter: Box::new(filter), count: None }).await?;
    Ok(done.answer(()))
}

/// Forgets many facts at once: all of a source, a session, a label such as the NAS that has restarted.
#[utoipa::path(post, path = paths::SUBSCRIBERS_DELETE, tag = "subscribers", request_body = SubscriberDelete,
    responses((status = 200, body = Deleted), (status = 400, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_subscribers(
    State(app): App,
    Body(body): Body<SubscriberDelete>,
) -> Result<Response, ApiError> {
    let filter = delete_filter(&app, &body)?;
    let done = commit(&app, Conditions::default(), Change::DeleteFacts { filter: Box::new(filter), count: body.count })
        .await?;
    let count = if let Outcome::Removed(count) = done.outcome { count as u64 } else { 0 };
    Ok(done.with_headers(StatusCode::OK, Deleted { count }))
}

fn delete_filter(app: &AppState, body: &SubscriberDelete) -> Result<FactFilter, ApiError> {
    let tables = app.store.snapshot().tables;
    let class = |name: &desired::Name| {
        let class = tables.class(name.as_str()).map(|class| class.id);
        class.ok_or_else(|| ApiError::invalid("/class", &Invalid(format!("there is no class {name}"))))
    };
    let filter = FactFilter {
        within: body.within.map(|Prefix(within)| within),
        source: body.source,
        class: body.class.as_ref().map(class).transpose()?,
        session: body.session.clone(),
        user: body.user.clone(),
        mac: body.mac,
        labels: body.labels.clone(),
        ..FactFilter::default()
    };
    if filter.is_empty() {
        let text = "names nothing; give at least one of within, source, class, session, user, mac and labels";
        return Err(ApiError::invalid("", &Invalid(text.to_owned())));
    }
    Ok(filter)
}
