//! Handlers of what says where mail goes: gateways, groups, routes, managed domains.

use std::collections::{BTreeSet, HashMap};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use redirect_relay::{
    Domain,
    gateway::{self, Group, VerifyReport},
    route::{self, Concern, Finding, ManagedDomain, Pattern, Query, SenderPattern, Target},
};

use super::{
    App, AppState, all, blocking, change, class_in_query, commit,
    conditions::show,
    error::{ApiError, Code, FieldError, Problem},
    extract::{Body, File, Key, Members, Params},
    in_query,
    list::{self, Form, Rows, Wanted},
    not_found, same_key,
    types::{
        Deleted, Gateway, ImportMode, ManagedDomainListQuery, OMITTED_HEADER, Page, Route, RouteDelete,
        RouteExplainQuery, RouteExplanation, RouteExportQuery, RouteFormat, RouteImport, RouteImportQuery,
        RouteListQuery, RoutePut, paths,
    },
};
use crate::{
    clients,
    desired::{Invalid, Name, Tables, Time},
    limits,
    revision::{Conditions, Versioned},
    routes::RouteKey,
    store::{self, Change, Kind, Outcome, RouteFilter, RouteQuery, Store, with_known_password},
};

// Gateways

#[utoipa::path(get, path = paths::GATEWAYS, tag = "gateways", responses((status = 200, body = Page<Versioned<Gateway>>)))]
pub(super) async fn list_gateways(State(app): App, form: Form) -> Response {
    let mut states: HashMap<_, _> = app.relay.gateways().into_iter().map(|state| (state.name.clone(), state)).collect();
    let snapshot = app.store.snapshot();
    list::all(
        form,
        snapshot.tables.gateways.values().map(|gateway| Versioned {
            revision: snapshot.revisions.of(Kind::Gateway, &gateway.name),
            resource: Gateway { gateway: gateway.clone(), state: states.remove(&gateway.name) },
        }),
    )
}

#[utoipa::path(get, path = paths::GATEWAY, tag = "gateways", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Gateway>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_gateway(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let gateway = snapshot.tables.gateways.get(&name).ok_or_else(|| not_found(Kind::Gateway, &name))?.clone();
    let revision = snapshot.revisions.of(Kind::Gateway, &name);
    show(&conditions, Kind::Gateway, &name, Versioned { resource: with_state(&app, gateway), revision })
}

fn with_state(app: &AppState, gateway: gateway::Gateway) -> Gateway {
    let state = app.relay.gateways().into_iter().find(|state| state.name == gateway.name);
    Gateway { gateway, state }
}

/// Without `name`, or with the one of the path. An account without a password keeps the known one, if its user is the same; without an account none is
/// kept.
#[utoipa::path(put, path = paths::GATEWAY, tag = "gateways", params(("name" = String, Path)), request_body = gateway::Gateway,
    responses((status = 200, body = Versioned<Gateway>), (status = 201, body = Versioned<Gateway>), (status = 400, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put_gateway(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
    Body(members): Body<Members>,
) -> Result<Response, ApiError> {
    let gateway: gateway::Gateway =
        members.resource("name", name.as_str(), &["state", "revision"]).map_err(ApiError::silent_about_passwords)?;
    let done = commit(&app, conditions, Change::PutGateway(Box::new(gateway.clone()))).await?;
    Ok(done.answer(with_state(&app, gateway)))
}

/// Tries a gateway, saved or not, as mail would use it, up to a MAIL that is given up. An account without a password is tried with the known one, if its
/// user is the same.
#[utoipa::path(post, path = paths::GATEWAYS_VERIFY, tag = "gateways", request_body = gateway::Gateway,
    responses((status = 200, body = VerifyReport), (status = 400, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn verify_gateway(
    State(app): App,
    Body(members): Body<Members>,
) -> Result<Json<VerifyReport>, ApiError> {
    let gateway: gateway::Gateway = members.named(&["state", "revision"]).map_err(ApiError::silent_about_passwords)?;
    let tables = app.store.snapshot().tables;
    let gateway = with_known_password(gateway.clone(), tables.gateways.get(&gateway.name))?;
    let _place = app.verifications.try_acquire().map_err(|_| {
        let text = format!("{} gateways are being verified already; try again in a moment", limits::VERIFICATIONS_MAX);
        ApiError::new(Code::Unavailable, text)
    })?;
    Ok(Json(app.relay.verify(&gateway).await))
}

#[utoipa::path(delete, path = paths::GATEWAY, tag = "gateways", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_gateway(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteGateway(name), ()).await
}

// Groups

#[utoipa::path(get, path = paths::GROUPS, tag = "groups", responses((status = 200, body = Page<Versioned<Group>>)))]
pub(super) async fn list_groups(State(app): App, form: Form) -> Response {
    let snapshot = app.store.snapshot();
    list::all(
        form,
        snapshot.tables.groups.values().map(|group| Versioned {
            resource: group.clone(),
            revision: snapshot.revisions.of(Kind::Group, &group.name),
        }),
    )
}

#[utoipa::path(get, path = paths::GROUP, tag = "groups", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Group>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_group(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let resource = snapshot.tables.groups.get(&name).ok_or_else(|| not_found(Kind::Group, &name))?.clone();
    let revision = snapshot.revisions.of(Kind::Group, &name);
    show(&conditions, Kind::Group, &name, Versioned { resource, revision })
}

/// Without `name`, or with the one of the path.
#[utoipa::path(put, path = paths::GROUP, tag = "groups", params(("name" = String, Path)), request_body = Group,
    responses((status = 200, body = Versioned<Group>), (status = 201, body = Versioned<Group>), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem)))]
pub(super) async fn put_group(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
    Body(members): Body<Members>,
) -> Result<Response, ApiError> {
    let group: Group = members.resource("name", name.as_str(), &["revision"])?;
    change(&app, conditions, Change::PutGroup(group.clone()), group).await
}

#[utoipa::path(delete, path = paths::GROUP, tag = "groups", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_group(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteGroup(name), ()).await
}

// Routes

const KEY_IN_PATH: &str = "DOMAIN, .DOMAIN or *, and what else tells the route from others: ;order=N;sender=PATTERN;class=NAME;size=MIN..MAX;\
                           priority=MIN..MAX, each where it is so, in this order";

#[utoipa::path(get, path = paths::ROUTES, tag = "routes", params(RouteListQuery),
    responses((status = 200, body = Page<Versioned<Route>>), (status = 422, body = Problem)))]
pub(super) async fn list_routes(
    State(app): App,
    form: Form,
    Params(query): Params<RouteListQuery>,
) -> Result<Response, ApiError> {
    let within = query.within.as_deref().map(|within| in_query("within", domain(within))).transpose()?;
    let name = |member: &'static str, text: Option<String>| {
        text.map(|text| in_query(member, text.parse::<Name>().map_err(Invalid::from))).transpose()
    };
    let (target, class) = (name("target", query.target)?, name("class", query.class)?);
    let filter = RouteFilter { within, target, class, keys: None };
    let wanted = Wanted { limit: query.limit, cursor: query.cursor, count: query.count };
    list::answer(form, wanted, RouteRows { store: app.store.clone(), filter }).await
}

struct RouteRows {
    store: Store,
    filter: RouteFilter,
}

impl Rows for RouteRows {
    type Key = RouteKey;
    type Row = route::Route;
    type Item = Route;

    async fn after(
        &self,
        after: Option<RouteKey>,
        rows_max: u32,
    ) -> Result<Vec<Versioned<route::Route>>, store::Error> {
        self.store.routes(RouteQuery { after, filter: self.filter.clone(), rows_max }).await
    }

    async fn count(&self) -> Result<u64, store::Error> {
        self.store.count_routes(self.filter.clone()).await
    }

    fn key(row: &route::Route) -> RouteKey {
        RouteKey::of(row)
    }
}

#[utoipa::path(get, path = paths::ROUTE, tag = "routes", params(("key" = String, Path, description = KEY_IN_PATH)),
    responses((status = 200, body = Versioned<Route>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_route(
    State(app): App,
    conditions: Conditions,
    Key(key): Key<RouteKey>,
) -> Result<Response, ApiError> {
    let route = app.store.route(key.clone()).await?.ok_or_else(|| not_found(Kind::Route, &key))?;
    show(&conditions, Kind::Route, &key, route.map(Route::from))
}

#[utoipa::path(put, path = paths::ROUTE, tag = "routes", params(("key" = String, Path, description = KEY_IN_PATH)), request_body = RoutePut,
    responses((status = 200, body = Versioned<Route>), (status = 201, body = Versioned<Route>), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem)))]
pub(super) async fn put_route(
    State(app): App,
    conditions: Conditions,
    Key(key): Key<RouteKey>,
    Body(body): Body<RoutePut>,
) -> Result<Response, ApiError> {
    same_key("/key", &key, body.key.as_ref())?;
    let route = body.route(key).map_err(|(pointer, invalid)| ApiError::invalid(&pointer, &invalid))?;
    change(&app, conditions, Change::PutRoute(route.clone()), Route::from(route)).await
}

#[utoipa::path(delete, path = paths::ROUTE, tag = "routes", params(("key" = String, Path, description = KEY_IN_PATH)),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_route(
    State(app): App,
    conditions: Conditions,
    Key(key): Key<RouteKey>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteRoute(key), ()).await
}

/// Deletes many routes at once, if they are as many as the request says.
#[utoipa::path(post, path = paths::ROUTES_DELETE, tag = "routes", request_body = RouteDelete,
    responses((status = 200, body = Deleted), (status = 400, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_routes(
    State(app): App,
    Body(RouteDelete { within, target, class, keys, count }): Body<RouteDelete>,
) -> Result<Response, ApiError> {
    let filter = RouteFilter { within, target, class, keys };
    let done = commit(&app, Conditions::default(), Change::DeleteRoutes { filter, count }).await?;
    let count = if let Outcome::Removed(count) = done.outcome { count as u64 } else { 0 };
    Ok(done.with_headers(StatusCode::OK, Deleted { count }))
}

/// Reads a file of routes and puts all of them, or none.
#[utoipa::path(post, path = paths::ROUTES_IMPORT, tag = "routes", params(RouteImportQuery),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = RouteImport), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 413, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn import_routes(
    State(app): App,
    Params(RouteImportQuery { format, mode, dry_run }): Params<RouteImportQuery>,
    File(text): File,
) -> Result<Response, ApiError> {
    let managed: BTreeSet<_> =
        app.store.managed_domains(None, u32::MAX).await?.into_iter().map(|managed| managed.resource.domain).collect();
    let tables = app.store.snapshot().tables;
    let read = move || {
        let refused = |route: &route::Route| refused(route, &tables, &managed);
        match format {
            RouteFormat::Csv => route::import_csv(&text, refused),
            RouteFormat::Json => route::import_json(&text, refused),
            RouteFormat::Transport => {
                let gateways: Vec<_> = tables.gateways.values().cloned().collect();
                route::import_transport(&text, &gateways, refused)
            }
        }
    };
    // A hundred thousand lines take a while.
    let routes = blocking(read).await?.map_err(|faults| {
        let errors: Vec<_> = faults
            .into_iter()
            .map(|fault| FieldError { pointer: format!("line {}", fault.line), detail: fault.text })
            .collect();
        let first = errors.first().map(|error| format!("{}: {}", error.pointer, error.detail)).unwrap_or_default();
        let more = if errors.len() > 1 { format!(", and {} more faults", errors.len() - 1) } else { String::new() };
        ApiError::faults(format!("nothing was imported: {first}{more}"), errors)
    })?;
    let replace = mode == ImportMode::Replace;
    let report = RouteImport::new(&app.store.diff(routes.clone(), replace).await?, dry_run);
    if dry_run {
        return Ok(Json(report).into_response());
    }
    let done = commit(&app, Conditions::default(), Change::ImportRoutes { routes, replace }).await?;
    Ok(done.with_headers(StatusCode::OK, report))
}

/// Why a route of a file cannot be.
fn refused(route: &route::Route, tables: &Tables, managed: &BTreeSet<Domain>) -> Option<String> {
    let known = match &route.target {
        Target::Gateway(name) => tables.gateways.contains_key(name),
        Target::Group(name) => tables.groups.contains_key(name),
    };
    if !known {
        return Some(format!("there is no {}; create it first", route.target));
    }
    if let Some(class) = route.conditions.class.as_ref().filter(|class| tables.class(class.as_str()).is_none()) {
        return Some(format!("there is no class {class}; create it first"));
    }
    match &route.domain {
        Pattern::Exact(domain) if managed.contains(domain) => {
            Some(format!("{domain} is a managed domain and cannot be a route"))
        }
        Pattern::Exact(_) | Pattern::Suffix(_) | Pattern::Default => None,
    }
}

/// All routes in one file. The form of `transport` cannot say everything: how many routes it leaves out is in `Redirect-Omitted`.
#[utoipa::path(get, path = paths::ROUTES_EXPORT, tag = "routes", params(RouteExportQuery),
    responses((status = 200, content((String = "text/csv"), (serde_json::Value = "application/json"), (String = "text/plain")),
    headers(("Redirect-Omitted" = u64, description = "How many routes the file leaves out"))), (status = 400, body = Problem)))]
pub(super) async fn export_routes(
    State(app): App,
    Params(RouteExportQuery { format }): Params<RouteExportQuery>,
) -> Result<Response, ApiError> {
    let routes = app.store.all_routes().await?;
    let (kind, text, omitted) = match format {
        RouteFormat::Csv => ("text/csv; charset=utf-8", route::export_csv(&routes), 0),
        RouteFormat::Json => ("application/json", route::export_json(&routes), 0),
        RouteFormat::Transport => {
            let gateways: Vec<_> = app.store.snapshot().tables.gateways.values().cloned().collect();
            let exported = route::export_transport(&routes, &gateways);
            ("text/plain; charset=utf-8", exported.text, exported.omitted.len())
        }
    };
    let omitted = [(OMITTED_HEADER, omitted.to_string())];
    Ok(([(header::CONTENT_TYPE.as_str(), kind)], omitted, text).into_response())
}

/// What is allowed and yet hardly meant.
#[utoipa::path(get, path = paths::LINT, tag = "routes", responses((status = 200, body = Page<Finding>)))]
pub(super) async fn lint(State(app): App) -> Result<Json<Page<Finding>>, ApiError> {
    let mut findings = route::lint(&app.store.routing_spec().await?);
    let snapshot = app.store.snapshot();
    findings.extend(clients::lint(&snapshot.tables, &snapshot.clients, &snapshot.routing, Time::now()));
    let down = app.relay.gateways().into_iter().filter(|state| !state.up);
    findings.extend(down.map(|state| Finding {
        concern: Concern::UnreachableGateway,
        subject: state.name.to_string(),
        text: state.last_error.unwrap_or_else(|| "out of service".to_owned()),
    }));
    Ok(all(findings.into_iter()))
}

/// Which route and which gateways would a message take, and why?
#[utoipa::path(get, path = paths::ROUTES_EXPLAIN, tag = "routes", params(RouteExplainQuery),
    responses((status = 200, body = RouteExplanation), (status = 400, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn explain_route(
    State(app): App,
    Params(query): Params<RouteExplainQuery>,
) -> Result<Json<RouteExplanation>, ApiError> {
    let snapshot = app.store.snapshot();
    class_in_query(&snapshot.tables, &query.class)?;
    let domain_of = |text: &str| domain(text.rsplit_once('@').map_or(text, |(_, domain)| domain));
    let sender = match in_query(
        "from",
        query.from.parse::<SenderPattern>().or_else(|_| domain_of(&query.from).map(SenderPattern::Exact)),
    )? {
        SenderPattern::Null => None,
        SenderPattern::Exact(domain) => Some(domain),
        SenderPattern::Suffix(_) => {
            return Err(ApiError::invalid("?from", &Invalid("give an address, a domain, or <>".to_owned())));
        }
    };
    let recipient = in_query("rcpt", domain_of(&query.rcpt))?;
    let decision = snapshot.routing.explain(&Query {
        domain: Some(recipient.as_str()),
        sender: sender.as_ref().map(Domain::as_str),
        class: &query.class,
        size: query.size.unwrap_or(0),
        priority: query.priority.unwrap_or(0),
    });
    let text = decision.to_string().lines().map(str::to_owned).collect();
    Ok(Json(RouteExplanation { text, decision, revision: snapshot.revision }))
}

fn domain(text: &str) -> Result<Domain, Invalid> {
    text.parse().map_err(|error: redirect_relay::InvalidDomain| Invalid(error.to_string()))
}

// Managed domains

#[utoipa::path(get, path = paths::MANAGED_DOMAINS, tag = "managed domains", params(ManagedDomainListQuery),
    responses((status = 200, body = Page<Versioned<ManagedDomain>>), (status = 422, body = Problem)))]
pub(super) async fn list_managed_domains(
    State(app): App,
    form: Form,
    Params(query): Params<ManagedDomainListQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted { limit: query.limit, cursor: query.cursor, count: query.count };
    list::answer(form, wanted, ManagedDomainRows(app.store.clone())).await
}

struct ManagedDomainRows(Store);

impl Rows for ManagedDomainRows {
    type Key = Domain;
    type Row = ManagedDomain;
    type Item = ManagedDomain;

    async fn after(&self, after: Option<Domain>, rows_max: u32) -> Result<Vec<Versioned<ManagedDomain>>, store::Error> {
        self.0.managed_domains(after, rows_max).await
    }

    async fn count(&self) -> Result<u64, store::Error> {
        self.0.count_managed_domains().await
    }

    fn key(row: &ManagedDomain) -> Domain {
        row.domain.clone()
    }
}

#[utoipa::path(get, path = paths::MANAGED_DOMAIN, tag = "managed domains", params(("domain" = String, Path)),
    responses((status = 200, body = Versioned<ManagedDomain>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_managed_domain(
    State(app): App,
    conditions: Conditions,
    Key(domain): Key<Domain>,
) -> Result<Response, ApiError> {
    let managed = app.store.managed_domain(domain.clone()).await?;
    let managed = managed.ok_or_else(|| not_found(Kind::ManagedDomain, &domain))?;
    show(&conditions, Kind::ManagedDomain, &domain, managed)
}

/// Without `domain`, or with the one of the path.
#[utoipa::path(put, path = paths::MANAGED_DOMAIN, tag = "managed domains", params(("domain" = String, Path)), request_body = ManagedDomain,
    responses((status = 200, body = Versioned<ManagedDomain>), (status = 201, body = Versioned<ManagedDomain>), (status = 400, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put_managed_domain(
    State(app): App,
    conditions: Conditions,
    Key(domain): Key<Domain>,
    Body(members): Body<Members>,
) -> Result<Response, ApiError> {
    let managed: ManagedDomain = members.resource("domain", domain.as_str(), &["revision"])?;
    change(&app, conditions, Change::PutManagedDomain(managed.clone()), managed).await
}

#[utoipa::path(delete, path = paths::MANAGED_DOMAIN, tag = "managed domains", params(("domain" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_managed_domain(
    State(app): App,
    conditions: Conditions,
    Key(domain): Key<Domain>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteManagedDomain(domain), ()).await
}
