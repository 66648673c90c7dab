//! REST over the Unix socket. Handlers are thin: read the request, ask the store or the reconciler, answer.
//!
//! No handler touches a map: a change goes into the store, and the answer waits until the reconciler has brought it into the kernel, so
//! that after a 2xx the next SYN follows it. If the kernel is late the answer says so in `Redirect-Applied: false` and stays a success:
//! the change is on disk and will be applied.

pub mod audit;
mod bulk;
mod changes;
pub mod client;
mod clients;
pub mod conditions;
mod configuration;
mod describe;
mod docs;
pub mod endpoint;
pub mod error;
pub mod events;
mod extract;
pub mod gate;
mod kernel;
mod lines;
mod list;
mod mail;
mod patch;
mod query;
mod request_id;
pub mod server;
mod subscribers;
pub(crate) mod tls;
pub mod tokens;
mod trace;
pub mod types;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use redirect_common::{SMTP_PORT, maps, reason::Verdict};
use redirect_relay::Relay as EmbeddedRelay;
use tokio::sync::{Semaphore, broadcast, watch};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::bulk::Places;
use self::{
    conditions::{etag, show},
    error::{ApiError, Code, Problem},
    extract::{Body, Key, Params},
    list::Form,
    patch::patchable,
    types::{
        APPLIED_HEADER, ChangeEvent, ChangesQuery, Check, Class, ClassPut, ConfigurationStatus, Count, DataplaneStatus,
        EventLine, EventQuery, EventsStatus, ExplainQuery, Explanation, Flow, FlowList, FlowListQuery, FlowsStatus,
        ForeignSourcesStatus, Interface, InterfaceCount, InterfacePut, Lock, LockPut, Original, OriginalQuery, Page,
        PoolState, REVISION_HEADER, Readiness, ReasonCount, Relay, RelayPut, Stats, Status, TraceLine, TraceQuery,
        paths,
    },
};
use crate::{
    access::{self, Rules},
    config::DataplaneSettings,
    configuration::text,
    dataplane::{Counter, FlowDelivery, FlowReader, Probe},
    desired::{self, Counted, InterfaceName, Invalid, Name, Prefix, Source, Tables},
    health::Health,
    limits, metrics,
    reconcile::{
        HostStatus,
        task::{AskError, Handle, monotonic_s},
    },
    relay::{AbuseLock, FlowDirectory},
    revision::{Conditions, Versioned},
    store::{Change, Committed, Kind, Outcome, Store},
};

/// What the handlers work with.
pub struct AppState {
    pub store: Store,
    pub reconciler: Handle,
    pub flows: Arc<dyn FlowReader>,
    pub health: watch::Receiver<Health>,
    pub relay_locks: broadcast::Sender<AbuseLock>,
    pub relay: Arc<EmbeddedRelay<FlowDirectory>>,
    /// Places for verifications of gateways.
    pub verifications: Semaphore,
    pub dataplane: DataplaneSettings,
    pub places: Places,
    pub watchers: events::Watchers,
    pub access: Arc<gate::Access>,
    /// Places for those who watch the configuration.
    pub change_watchers: Arc<Semaphore>,
    pub started: Instant,
}

type App = State<Arc<AppState>>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "redirectd",
        description = "Decides what happens to subscribers' port-25 flows. Errors are RFC 9457 problems. A change is answered when the kernel \
                       holds it, or with `Redirect-Applied: false` if that takes longer than 2 s."
    ),
    components(schemas(
        Problem,
        text::DocumentFormat,
        types::DroppedEvent,
        types::ImportMode,
        types::ResetEvent,
        types::RouteFormat
    ))
)]
struct Description;

/// The whole API.
pub fn app(state: Arc<AppState>) -> Router {
    let (router, description) = described();
    let gate = gate::Gate::new(Rules::new(&description), Arc::clone(&state.access), state.store.clone());
    // The same for every request.
    let description = completed(description);
    docs::with(router)
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::new(query::Known::of(&description)), query::refuse_unknown))
        .layer(axum::Extension(Arc::new(description.to_string())))
        .layer(middleware::from_fn(deadline))
        .layer(middleware::from_fn_with_state(Arc::new(gate), gate::pass))
        .with_state(state)
}

/// The OpenAPI 3.1 description of [`app`].
pub fn description() -> serde_json::Value {
    completed(described().1)
}

/// The operations of [`app`], with who may call them, before what holds for all of them is written to each.
pub fn operations() -> utoipa::openapi::OpenApi {
    described().1
}

fn described() -> (Router<Arc<AppState>>, utoipa::openapi::OpenApi) {
    let (router, mut description) = routes().split_for_parts();
    access::describe(&mut description);
    (router, description)
}

fn completed(description: utoipa::openapi::OpenApi) -> serde_json::Value {
    let mut description = serde_json::to_value(description).expect("a description has JSON");
    describe::complete(&mut description);
    description
}

/// Every handler, registered with its description: there is no other way in.
fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(subscribers::list_subscribers))
        .routes(patchable(routes!(
            subscribers::get_subscriber,
            subscribers::put_subscriber,
            subscribers::delete_subscriber
        )))
        .routes(routes!(subscribers::delete_subscribers))
        .routes(routes!(bulk::import_subscribers))
        .routes(routes!(bulk::export_subscribers))
        .routes(routes!(list_classes))
        .routes(patchable(routes!(get_class, put_class, delete_class)))
        .routes(routes!(list_relays))
        .routes(patchable(routes!(get_relay, put_relay, delete_relay)))
        .routes(routes!(list_interfaces))
        .routes(patchable(routes!(get_interface, put_interface, delete_interface)))
        .routes(routes!(mail::list_gateways))
        .routes(patchable(routes!(mail::get_gateway, mail::put_gateway, mail::delete_gateway)))
        .routes(routes!(mail::verify_gateway))
        .routes(routes!(mail::list_groups))
        .routes(patchable(routes!(mail::get_group, mail::put_group, mail::delete_group)))
        .routes(routes!(mail::list_routes))
        .routes(patchable(routes!(mail::get_route, mail::put_route, mail::delete_route)))
        .routes(routes!(mail::delete_routes))
        .routes(routes!(mail::explain_route))
        .routes(routes!(mail::import_routes))
        .routes(routes!(mail::export_routes))
        .routes(routes!(mail::lint))
        .routes(routes!(mail::list_managed_domains))
        .routes(patchable(routes!(mail::get_managed_domain, mail::put_managed_domain, mail::delete_managed_domain)))
        .routes(routes!(clients::list_certificates))
        .routes(patchable(routes!(clients::get_certificate, clients::put_certificate, clients::delete_certificate)))
        .routes(routes!(clients::list_users))
        .routes(patchable(routes!(clients::get_user, clients::put_user, clients::delete_user)))
        .routes(routes!(configuration::get_configuration))
        .routes(routes!(configuration::check_configuration))
        .routes(routes!(configuration::diff_configuration))
        .routes(routes!(configuration::commit_configuration))
        .routes(routes!(configuration::confirm_configuration))
        .routes(routes!(configuration::roll_back_configuration))
        .routes(routes!(configuration::list_history))
        .routes(routes!(configuration::get_history))
        .routes(routes!(list_flows))
        .routes(routes!(get_original))
        .routes(routes!(list_locks))
        .routes(routes!(put_lock, delete_lock))
        .routes(routes!(watch_flows))
        .routes(routes!(watch_changes))
        .routes(routes!(trace_sessions))
        .routes(routes!(explain))
        .routes(routes!(get_status))
        .routes(routes!(get_stats))
        .routes(routes!(kernel::kernel_diff))
        .routes(routes!(kernel::reconcile_kernel))
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(get_metrics))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(audit::list_audit))
        .routes(routes!(get_description))
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::new(Code::NoSuchPath, format!("there is no {}; see {}", request.uri().path(), paths::OPENAPI))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        format!("{} does not take {}; see {}", request.uri().path(), request.method(), paths::OPENAPI),
    )
}

async fn deadline(request: Request, next: Next) -> Response {
    let patience = match request.uri().path() {
        paths::GATEWAYS_VERIFY => limits::VERIFY_TIMEOUT,
        paths::SUBSCRIBERS_IMPORT => limits::IMPORT_TIMEOUT,
        path if path.starts_with(paths::CONFIGURATION) => limits::CONFIGURATION_TIMEOUT,
        _ => limits::API_REQUEST_TIMEOUT,
    };
    match tokio::time::timeout(patience, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            Code::Unavailable,
            format!("not done within {} s; a change may still happen", patience.as_secs()),
        )
        .into_response(),
    }
}

// Classes

#[utoipa::path(get, path = paths::CLASSES, tag = "classes", responses((status = 200, body = Page<Versioned<Class>>)))]
async fn list_classes(State(app): App, form: Form) -> Response {
    let snapshot = app.store.snapshot();
    let versioned = |class: &desired::Class| Versioned {
        resource: Class::from(&class.spec),
        revision: snapshot.revisions.of(Kind::Class, &class.spec.name),
    };
    list::all(form, snapshot.tables.classes.values().map(versioned))
}

#[utoipa::path(get, path = paths::CLASS, tag = "classes", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Class>), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn get_class(State(app): App, conditions: Conditions, Key(name): Key<Name>) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let class = snapshot.tables.class(name.as_str()).ok_or_else(|| not_found(Kind::Class, &name))?;
    let revision = snapshot.revisions.of(Kind::Class, &name);
    show(&conditions, Kind::Class, &name, Versioned { resource: Class::from(&class.spec), revision })
}

#[utoipa::path(put, path = paths::CLASS, tag = "classes", params(("name" = String, Path)), request_body = ClassPut,
    responses((status = 200, body = Versioned<Class>), (status = 201, body = Versioned<Class>), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem)))]
async fn put_class(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
    Body(body): Body<ClassPut>,
) -> Result<Response, ApiError> {
    same_key("/name", &name, body.name.as_ref())?;
    let spec = body.spec(name).map_err(|(pointer, invalid)| ApiError::invalid(&pointer, &invalid))?;
    let answer = Class::from(&spec);
    change(&app, conditions, Change::PutClass(spec), answer).await
}

#[utoipa::path(delete, path = paths::CLASS, tag = "classes", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn delete_class(State(app): App, conditions: Conditions, Key(name): Key<Name>) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteClass(name), ()).await
}

// Relays

#[utoipa::path(get, path = paths::RELAYS, tag = "relays", responses((status = 200, body = Page<Versioned<Relay>>)))]
async fn list_relays(State(app): App, form: Form) -> Response {
    let (health, observed) = (app.health.borrow().clone(), app.reconciler.observed());
    let snapshot = app.store.snapshot();
    let versioned = |relay: &desired::Relay| Versioned {
        resource: Relay::new(relay, &health, &observed),
        revision: snapshot.revisions.of(Kind::Relay, &relay.spec.name),
    };
    list::all(form, snapshot.tables.relays.values().map(versioned))
}

#[utoipa::path(get, path = paths::RELAY, tag = "relays", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Relay>), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn get_relay(State(app): App, conditions: Conditions, Key(name): Key<Name>) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let relay = snapshot.tables.relay(name.as_str()).ok_or_else(|| not_found(Kind::Relay, &name))?;
    let resource = Relay::new(relay, &app.health.borrow(), &app.reconciler.observed());
    let revision = snapshot.revisions.of(Kind::Relay, &name);
    show(&conditions, Kind::Relay, &name, Versioned { resource, revision })
}

#[utoipa::path(put, path = paths::RELAY, tag = "relays", params(("name" = String, Path)), request_body = RelayPut,
    responses((status = 200, body = Versioned<Relay>), (status = 201, body = Versioned<Relay>), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem)))]
async fn put_relay(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
    Body(body): Body<RelayPut>,
) -> Result<Response, ApiError> {
    same_key("/name", &name, body.name.as_ref())?;
    let spec = body.spec(name).map_err(|(pointer, invalid)| ApiError::invalid(&pointer, &invalid))?;
    let committed = commit(&app, conditions, Change::PutRelay(spec.clone())).await?;
    let tables = app.store.snapshot().tables;
    // Deleted again already, it has no number any more; health and flows go by it and by the endpoints.
    let (id, source) = tables.relay(spec.name.as_str()).map_or((0, Source::Api), |relay| (relay.id, relay.source));
    let relay = desired::Relay { id, spec, source };
    Ok(committed.answer(Relay::new(&relay, &app.health.borrow(), &app.reconciler.observed())))
}

#[utoipa::path(delete, path = paths::RELAY, tag = "relays", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn delete_relay(State(app): App, conditions: Conditions, Key(name): Key<Name>) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteRelay(name), ()).await
}

// Interfaces

#[utoipa::path(get, path = paths::INTERFACES, tag = "interfaces", responses((status = 200, body = Page<Versioned<Interface>>)))]
async fn list_interfaces(State(app): App, form: Form) -> Response {
    let revisions = app.store.snapshot().revisions;
    list::all(
        form,
        interfaces(&app)
            .into_iter()
            .map(|resource| Versioned { revision: revisions.of(Kind::Interface, &resource.name), resource }),
    )
}

#[utoipa::path(get, path = paths::INTERFACE, tag = "interfaces", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Interface>), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn get_interface(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<InterfaceName>,
) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let interface = snapshot.tables.interfaces.get(&name).ok_or_else(|| not_found(Kind::Interface, &name))?;
    let resource = Interface::new(interface, app.reconciler.observed().interfaces.get(name.as_str()));
    let revision = snapshot.revisions.of(Kind::Interface, &name);
    show(&conditions, Kind::Interface, &name, Versioned { resource, revision })
}

#[utoipa::path(put, path = paths::INTERFACE, tag = "interfaces", params(("name" = String, Path)), request_body = InterfacePut,
    responses((status = 200, body = Versioned<Interface>), (status = 201, body = Versioned<Interface>), (status = 400, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn put_interface(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<InterfaceName>,
    Body(body): Body<InterfacePut>,
) -> Result<Response, ApiError> {
    same_key("/name", &name, body.name.as_ref())?;
    let interface = body.spec(name);
    let committed = commit(&app, conditions, Change::PutInterface(interface.clone())).await?;
    // Read after the change was applied, so that the answer tells whether the attachment worked.
    let observed = app.reconciler.observed();
    Ok(committed.answer(Interface::new(&interface, observed.interfaces.get(interface.name.as_str()))))
}

#[utoipa::path(delete, path = paths::INTERFACE, tag = "interfaces", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn delete_interface(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<InterfaceName>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteInterface(name), ()).await
}

// What the kernel does

#[utoipa::path(get, path = paths::FLOWS, tag = "flows", params(FlowListQuery),
    responses((status = 200, body = FlowList), (status = 422, body = Problem), (status = 503, body = Problem)))]
async fn list_flows(State(app): App, Params(query): Params<FlowListQuery>) -> Result<Json<FlowList>, ApiError> {
    let rows_max = page_rows(query.limit)? as usize;
    let client = query.client.as_deref().map(|client| in_query("client", desired::prefix(client))).transpose()?;
    let tables = app.store.snapshot().tables;
    let class = query.class.as_deref().map(|name| class_in_query(&tables, name)).transpose()?;
    let endpoints: Option<Vec<_>> = match query.relay.as_deref() {
        None => None,
        Some(name) => {
            let relay = tables.relay(name).ok_or_else(|| Invalid(format!("there is no relay {name}")));
            Some(in_query("relay", relay)?.spec.endpoints().collect())
        }
    };
    let mut flows = app.reconciler.flows().await?;
    flows.retain(|flow| {
        client.is_none_or(|client| client.contains(&flow.client.ip()))
            && class.is_none_or(|class| flow.class == class)
            && endpoints.as_ref().is_none_or(|all| flow.relay.is_some_and(|relay| all.contains(&relay)))
    });
    flows.sort_by_key(|flow| (flow.client, flow.server));
    let total = flows.len() as u64;
    let now_s = monotonic_s();
    let items = flows.into_iter().take(rows_max).map(|flow| Flow {
        client: flow.client,
        server: flow.server,
        relay: flow.relay,
        mapped_port: flow.mapped_port,
        class: class_name(&tables, flow.class),
        state: flow.state,
        delivery: flow.delivery,
        age_s: now_s.saturating_sub(flow.created_s),
        idle_s: now_s.saturating_sub(flow.seen_s),
    });
    Ok(Json(FlowList { items: items.collect(), total }))
}

/// What was the original destination of this connection? For relays on other hosts; the embedded one needs not ask.
#[utoipa::path(get, path = paths::FLOWS_ORIGINAL, tag = "flows", params(OriginalQuery),
    responses((status = 200, body = Original), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 422, body = Problem), (status = 503, body = Problem)))]
async fn get_original(State(app): App, Params(query): Params<OriginalQuery>) -> Result<Json<Original>, ApiError> {
    let relay = in_query("relay", socket_address(&query.relay))?;
    let client = in_query("client", socket_address(&query.client))?;
    // One or two look-ups in a kernel hash, as for each connection of the embedded relay.
    let original =
        app.flows.original(client, relay).map_err(AskError::from)?.ok_or_else(|| {
            ApiError::new(Code::NotFound, format!("no redirected flow goes from {client} to {relay}"))
        })?;
    Ok(Json(Original {
        client: original.client,
        server: original.server,
        class: class_name(&app.store.snapshot().tables, original.class),
    }))
}

// Locks: state of the kernel, so there is no revision.

#[utoipa::path(get, path = paths::LOCKS, tag = "locks", responses((status = 200, body = Page<Lock>), (status = 503, body = Problem)))]
async fn list_locks(State(app): App, form: Form) -> Result<Response, ApiError> {
    let now_s = monotonic_s();
    let locks = app.reconciler.locks().await?.into_iter().filter(|(_, until_s)| *until_s > now_s);
    let mut locks: Vec<_> =
        locks.map(|(host, until_s)| Lock { address: Counted(host), left_s: until_s - now_s }).collect();
    locks.sort_by_key(|lock| lock.address.0.to_ip());
    Ok(list::all(form, locks.into_iter()))
}

#[utoipa::path(put, path = paths::LOCK, tag = "locks", params(("address" = String, Path, description = COUNTED_IN_PATH)),
    request_body = LockPut, responses((status = 200, body = Lock), (status = 400, body = Problem), (status = 422, body = Problem),
    (status = 503, body = Problem)))]
async fn put_lock(
    State(app): App,
    Key(address): Key<Counted>,
    Body(body): Body<LockPut>,
) -> Result<Json<Lock>, ApiError> {
    let left_s = body.duration_s;
    if !(1..=limits::LOCK_S_MAX).contains(&left_s) {
        let text = format!("{left_s} is out of range; give 1 to {} seconds", limits::LOCK_S_MAX);
        return Err(ApiError::invalid("/duration_s", &Invalid(text)));
    }
    app.reconciler.set_lock(address.0, monotonic_s().saturating_add(left_s)).await?;
    Ok(Json(Lock { address, left_s }))
}

#[utoipa::path(delete, path = paths::LOCK, tag = "locks", params(("address" = String, Path, description = COUNTED_IN_PATH)),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
async fn delete_lock(State(app): App, Key(address): Key<Counted>) -> Result<StatusCode, ApiError> {
    let now_s = monotonic_s();
    match app.reconciler.remove_lock(address.0).await? {
        Some(until_s) if until_s > now_s => Ok(StatusCode::NO_CONTENT),
        _ => Err(ApiError::new(Code::NotFound, format!("{address} is not locked"))),
    }
}

/// New flows and refusals as they happen, a JSON object a line, until the client leaves or the daemon stops.
#[utoipa::path(get, path = paths::FLOWS_WATCH, tag = "flows", params(EventQuery),
    responses((status = 200, body = EventLine, content_type = "application/x-ndjson"), (status = 422, body = Problem),
    (status = 503, body = Problem)))]
async fn watch_flows(State(app): App, Params(query): Params<EventQuery>) -> Result<Response, ApiError> {
    events::watch(app, &query)
}

/// Changes of the configuration as server-sent events: `change`, whose id is the revision that is complete with it, `reset` and `dropped` (see
/// their schemas), and a comment every 15 s. With `Last-Event-ID` from that revision on, as far back as the log reaches, also over restarts.
#[utoipa::path(get, path = paths::EVENTS, tag = "status",
    params(ChangesQuery, ("Last-Event-ID" = Option<u64>, Header, description = "The revision after which to begin; without it, from now on")),
    responses((status = 200, body = ChangeEvent, content_type = "text/event-stream"), (status = 422, body = Problem)))]
async fn watch_changes(
    State(app): App,
    headers: HeaderMap,
    Params(query): Params<ChangesQuery>,
) -> Result<Response, ApiError> {
    changes::watch(app, &headers, &query).await
}

/// Sessions with the embedded relay as they happen, without contents, credentials and names of people, a JSON object a line, until the client
/// leaves or the daemon stops.
#[utoipa::path(get, path = paths::TRACE, tag = "flows", params(TraceQuery),
    responses((status = 200, body = TraceLine, content_type = "application/x-ndjson"), (status = 400, body = Problem),
    (status = 422, body = Problem), (status = 503, body = Problem)))]
async fn trace_sessions(State(app): App, Params(query): Params<TraceQuery>) -> Result<Response, ApiError> {
    trace::watch(&app, in_query("subscriber", desired::prefix(&query.subscriber))?)
}

/// What would become of a new connection? The loaded program answers; nothing else comes of it.
#[utoipa::path(get, path = paths::EXPLAIN, tag = "flows", params(ExplainQuery),
    responses((status = 200, body = Explanation), (status = 400, body = Problem), (status = 422, body = Problem),
    (status = 503, body = Problem)))]
async fn explain(State(app): App, Params(query): Params<ExplainQuery>) -> Result<Json<Explanation>, ApiError> {
    let source = in_query("source", address(&query.source))?;
    let destination = in_query("destination", destination(&query.destination))?;
    if source.is_ipv4() != destination.is_ipv4() {
        let text = format!("{source} and {destination} are not of one family");
        return Err(ApiError::invalid("?destination", &Invalid(text)));
    }
    if let Some(name) = &query.interface {
        let attached = app.reconciler.observed().interfaces;
        if attached.get(name).is_none_or(|status| status.mode.is_none()) {
            let text = format!("interface {name} does not carry the programs; see redirect-ctl interface list");
            return Err(ApiError::invalid("?interface", &Invalid(text)));
        }
    }
    let probe = Probe {
        client: SocketAddr::new(source, query.sport.unwrap_or(UNUSED_PORT)),
        server: SocketAddr::new(destination, SMTP_PORT),
        interface: query.interface,
    };
    let server = probe.server;
    let explained = app.reconciler.explain(probe).await?;
    let tables = app.store.snapshot().tables;
    let prefix = explained.subscriber.map(|(prefix, _)| prefix);
    let facts = match prefix {
        Some(prefix) => app.store.subscriber(prefix).await?,
        None => None,
    };
    let facts = facts.and_then(|subscriber| types::Subscriber::whole(subscriber, app.store.priorities()));
    let verdict = explained.reason.verdict();
    let delivery = match verdict {
        Verdict::Redirect => Some(FlowDelivery::Rewrite),
        Verdict::Steer => Some(FlowDelivery::Steer),
        Verdict::Pass | Verdict::Drop | Verdict::Reject => None,
    };
    let (interface, mode) = explained.interface.unzip();
    let class = tables.classes.get(&explained.class);
    let limits = class.map(|class| class.spec.limits);
    Ok(Json(Explanation {
        source,
        sport: query.sport,
        destination: server,
        interface,
        mode,
        verdict: verdict.name().to_owned(),
        reason: explained.reason.name().to_owned(),
        text: explained.reason.text().to_owned(),
        prefix: prefix.map(Prefix),
        facts: facts.map(|subscriber| subscriber.resource.facts).unwrap_or_default(),
        class: class_name(&tables, explained.class),
        limits,
        open: limits.and_then(|limits| limits.open_max).map(|_| explained.open),
        lock_left_s: explained
            .locked_until_s
            .and_then(|until_s| until_s.checked_sub(monotonic_s()))
            .filter(|left| *left > 0),
        relays: class
            .map(|class| PoolState::of(class, &tables, &app.health.borrow(), source.is_ipv4()))
            .unwrap_or_default(),
        relay: tables.relays.get(&explained.relay).map(|relay| relay.spec.name.clone()),
        endpoint: (verdict == Verdict::Redirect).then_some(explained.endpoint),
        mapped_port: query.sport.filter(|_| verdict == Verdict::Redirect).map(|_| explained.mapped_port),
        delivery,
        program_tag: format!("{:016x}", explained.program_tag),
        revision: explained.revision,
    }))
}

/// No client opens a connection from it, so that the question meets no flow.
const UNUSED_PORT: u16 = 1;

fn address(text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| Invalid(format!("{text:?} is not an IP address")))
}

/// ADDRESS, or ADDRESS:25.
fn destination(text: &str) -> Result<IpAddr, Invalid> {
    match text.parse::<SocketAddr>() {
        Ok(server) if server.port() == SMTP_PORT => Ok(server.ip()),
        Ok(server) => {
            let port = server.port();
            Err(Invalid(format!(
                "connections to port {port} are none of ours; only those to port {SMTP_PORT} are decided"
            )))
        }
        Err(_) => address(text),
    }
}

#[utoipa::path(get, path = paths::STATUS, tag = "status", responses((status = 200, body = Status), (status = 503, body = Problem)))]
async fn get_status(State(app): App) -> Result<Json<Status>, ApiError> {
    let snapshot = app.store.snapshot();
    let observed = app.reconciler.observed();
    let subscribers = app.store.subscriber_counts().await?.values().sum();
    let mut reasons: BTreeMap<String, Count> = BTreeMap::new();
    for counter in app.reconciler.counters().await?.classes {
        let count = reasons.entry(counter.reason.name().to_owned()).or_default();
        count.packets += counter.packets;
        count.bytes += counter.bytes;
    }
    let relay = metrics::relay_rows(&app.relay.counters()).map(|row| (row.name.to_owned(), row.value)).collect();
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: app.started.elapsed().as_secs(),
        revision: snapshot.revision,
        applied: observed.applied,
        configuration: ConfigurationStatus {
            revision: snapshot.standing.revision,
            pending: snapshot.standing.pending.clone(),
        },
        error: observed.fault(),
        dataplane: DataplaneStatus {
            layout: maps::LAYOUT,
            flows_max: app.dataplane.flows_max,
            subscribers_max: app.dataplane.subscribers_max,
            full_syncs: observed.full_syncs,
        },
        interfaces: interfaces(&app),
        flows: FlowsStatus {
            half_open: observed.flows.half_open,
            established: observed.flows.established,
            capacity: u64::from(app.dataplane.flows_max) * 2,
            collected: observed.flows_collected,
        },
        foreign_sources: foreign_sources(&observed.host),
        subscribers,
        events: EventsStatus {
            read: observed.events.read,
            lost: observed.events.lost,
            dropped: app.watchers.dropped(),
        },
        memory: types::memory(&app.reconciler.memory().await?),
        relay,
        reasons,
    }))
}

fn foreign_sources(host: &HostStatus) -> ForeignSourcesStatus {
    let refused = host.counts.refused.iter().map(|(refusal, count)| (refusal.name().to_owned(), *count));
    ForeignSourcesStatus {
        known: host.foreign_sources as u64,
        capacity: limits::FOREIGN_SOURCES_MAX as u64,
        learned: host.counts.learned,
        expired: host.counts.expired,
        unanswered: host.counts.unanswered,
        refused: refused.collect(),
    }
}

#[utoipa::path(get, path = paths::STATS, tag = "status", responses((status = 200, body = Stats), (status = 503, body = Problem)))]
async fn get_stats(State(app): App) -> Result<Json<Stats>, ApiError> {
    let tables = app.store.snapshot().tables;
    let counters = app.reconciler.counters().await?;
    Ok(Json(Stats {
        reasons: reason_counts(&tables, &counters.classes),
        interfaces: counters.interfaces.into_iter().map(InterfaceCount::from).collect(),
    }))
}

/// Counters with the names of their classes. Numbers of classes that are gone add up under null.
pub(crate) fn reason_counts(tables: &Tables, counters: &[Counter]) -> Vec<ReasonCount> {
    let mut sums: BTreeMap<(Option<String>, _), Count> = BTreeMap::new();
    for counter in counters {
        let count = sums.entry((class_name(tables, counter.class), counter.reason)).or_default();
        count.packets += counter.packets;
        count.bytes += counter.bytes;
    }
    sums.into_iter()
        .map(|((class, reason), count)| ReasonCount {
            class,
            reason: reason.name().to_owned(),
            verdict: reason.verdict().name().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        })
        .collect()
}

// Health and description

#[utoipa::path(get, path = paths::LIVEZ, tag = "health", responses((status = 200, body = String, content_type = "text/plain")))]
async fn livez() -> &'static str {
    "ok\n"
}

#[utoipa::path(get, path = paths::READYZ, tag = "health",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
async fn readyz(State(app): App) -> Response {
    let checks = checks(&app);
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, checks })).into_response()
}

fn checks(app: &AppState) -> Vec<Check> {
    let observed = app.reconciler.observed();
    let check = |name: &str, fault: Option<String>| Check {
        name: name.to_owned(),
        ok: fault.is_none(),
        detail: fault.unwrap_or_else(|| "ok".to_owned()),
    };
    let late = (observed.applied == 0).then(|| "the first comparison is not done".to_owned());
    let mut checks = vec![check("dataplane", observed.fault().or(late))];
    for interface in interfaces(app) {
        let fault =
            (!interface.status.attached).then(|| interface.status.error.unwrap_or_else(|| "not attached".to_owned()));
        checks.push(check(&format!("interface {}", interface.name), fault));
    }
    checks
}

#[utoipa::path(get, path = paths::METRICS, tag = "health",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"), (status = 503, body = Problem)))]
async fn get_metrics(State(app): App) -> Result<Response, ApiError> {
    let text = metrics::scrape(&app).await?;
    Ok(([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response())
}

#[utoipa::path(get, path = paths::OPENAPI, tag = "health", responses((status = 200, body = Object)))]
async fn get_description(axum::Extension(description): axum::Extension<Arc<String>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], (*description).clone())
}

// Shared by the handlers

const PREFIX_IN_PATH: &str = "ADDRESS/LENGTH with the slash as %2F or _, or a bare address";

const COUNTED_IN_PATH: &str = "An address; one of IPv6 stands for its /64";

/// A change that was carried out.
struct Done {
    revision: u64,
    /// What changed the resource last, if there is one and it is there.
    resource: Option<u64>,
    outcome: Outcome,
    applied: bool,
}

impl Done {
    fn status(&self) -> StatusCode {
        match self.outcome {
            Outcome::Created => StatusCode::CREATED,
            Outcome::Replaced | Outcome::Unchanged | Outcome::Imported(_) | Outcome::ImportedBefore { .. } => {
                StatusCode::OK
            }
            Outcome::Deleted | Outcome::Expired(_) | Outcome::Removed(_) => StatusCode::NO_CONTENT,
        }
    }

    fn answer(&self, body: impl serde::Serialize) -> Response {
        match self.resource {
            Some(revision) => self.with_headers(self.status(), Versioned { resource: body, revision }),
            None => self.with_headers(self.status(), body),
        }
    }

    fn with_headers(&self, status: StatusCode, body: impl serde::Serialize) -> Response {
        let mut response = match status {
            StatusCode::NO_CONTENT => status.into_response(),
            status => (status, Json(body)).into_response(),
        };
        let headers = response.headers_mut();
        if let Some(revision) = self.resource {
            headers.insert(header::ETAG, etag(revision));
        }
        headers.insert(HeaderName::from_static(REVISION_HEADER), HeaderValue::from(self.revision));
        let applied = HeaderValue::from_static(if self.applied { "true" } else { "false" });
        headers.insert(HeaderName::from_static(APPLIED_HEADER), applied);
        response
    }
}

async fn commit(app: &AppState, conditions: Conditions, change: Change) -> Result<Done, ApiError> {
    let Committed { revision, resource, outcome } = app.store.change_if(change, conditions).await?;
    let done = apply_within(app, revision, limits::API_APPLY_WAIT).await;
    Ok(Done { resource, outcome, ..done })
}

/// Waits until the kernel holds a revision.
async fn apply_within(app: &AppState, revision: u64, wait: Duration) -> Done {
    let applied = app.reconciler.applied(revision, wait).await;
    Done { revision, resource: None, outcome: Outcome::Unchanged, applied }
}

async fn change(
    app: &AppState,
    conditions: Conditions,
    change: Change,
    body: impl serde::Serialize,
) -> Result<Response, ApiError> {
    Ok(commit(app, conditions, change).await?.answer(body))
}

/// Runs what takes a while, or waits for a disk, on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::new(Code::Internal, error.to_string()))
}

fn all<T>(items: impl Iterator<Item = T>) -> Json<Page<T>> {
    Json(Page { items: items.collect(), next_cursor: None, count: None })
}

fn not_found(kind: Kind, key: &impl ToString) -> ApiError {
    crate::store::Error::NotFound { kind, name: key.to_string() }.into()
}

fn same_key<K: PartialEq + ToString>(pointer: &str, path: &K, body: Option<&K>) -> Result<(), ApiError> {
    match body {
        Some(body) if body != path => {
            let text = format!("{} is not the {} of the path; leave it out", body.to_string(), path.to_string());
            Err(ApiError::invalid(pointer, &Invalid(text)))
        }
        _ => Ok(()),
    }
}

fn page_rows(limit: Option<u32>) -> Result<u32, ApiError> {
    match limit {
        None => Ok(limits::PAGE_ROWS_DEFAULT),
        Some(rows) if (1..=limits::PAGE_ROWS_MAX).contains(&rows) => Ok(rows),
        Some(rows) => {
            in_query("limit", Err(Invalid(format!("{rows} is out of range; give 1 to {}", limits::PAGE_ROWS_MAX))))
        }
    }
}

/// A page of `rows_max` rows; one row more than that tells that there is another page, which begins after the cursor of the last.
fn paged<R, T>(
    mut rows: Vec<R>,
    rows_max: u32,
    cursor: impl Fn(&R) -> String,
    convert: impl Fn(R) -> T,
) -> Json<Page<T>> {
    let more = rows.len() > rows_max as usize;
    rows.truncate(rows_max as usize);
    let next_cursor = rows.last().filter(|_| more).map(cursor);
    Json(Page { items: rows.into_iter().map(convert).collect(), next_cursor, count: None })
}

fn in_query<T>(name: &str, value: Result<T, Invalid>) -> Result<T, ApiError> {
    value.map_err(|invalid| ApiError::invalid(&format!("?{name}"), &invalid))
}

fn class_in_query(tables: &Tables, name: &str) -> Result<u16, ApiError> {
    in_query(
        "class",
        tables.class(name).map(|class| class.id).ok_or_else(|| Invalid(format!("there is no class {name}"))),
    )
}

fn socket_address(text: &str) -> Result<SocketAddr, Invalid> {
    let wrong = |_| Invalid(format!("{text:?} is not ADDRESS:PORT, such as 10.20.0.5:40000 or [fd00:20::5]:40000"));
    text.parse().map_err(wrong)
}

fn class_name(tables: &Tables, id: u16) -> Option<String> {
    tables.classes.get(&id).map(|class| class.spec.name.to_string())
}

/// The wanted interfaces, each with its status.
fn interfaces(app: &AppState) -> Vec<Interface> {
    let observed: HashMap<_, _> = app.reconciler.observed().interfaces.into_iter().collect();
    let tables = app.store.snapshot().tables;
    tables
        .interfaces
        .values()
        .map(|interface| Interface::new(interface, observed.get(interface.name.as_str())))
        .collect()
}
