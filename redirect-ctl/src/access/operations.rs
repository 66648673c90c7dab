//! Which roles may call which operation: one table, by the operation's name in the OpenAPI description. An operation that the table does
//! not know is for administrators only, and fails a test.

use std::collections::{BTreeSet, HashMap};

use utoipa::openapi::{
    ContentBuilder, OpenApi, PathItem, Ref, RefOr, Response, ResponseBuilder,
    extensions::Extensions,
    path::Operation,
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::role::{AccessRole as Role, Roles};
use crate::{api::error::MEDIA_TYPE, limits};

const ADMIN: Roles = Roles::one(Role::Admin);
/// Changes that a router's operator makes.
const WRITE: Roles = ADMIN.and(Role::Operator);
/// What who watches may see.
const READ: Roles = WRITE.and(Role::Viewer);
/// What a portal or AAA system does.
const SUBSCRIBERS_WRITE: Roles = WRITE.and(Role::Integrator);
const SUBSCRIBERS_READ: Roles = READ.and(Role::Integrator);
/// Whoever has any role.
const ANYONE: Roles = SUBSCRIBERS_READ;

/// Whoever can reach the API; what these tell is in the source code, or says no more than that the daemon runs.
const PUBLIC: &[&str] = &["livez", "get_description"];

/// Operation, who may call it.
const OPERATIONS: &[(&str, Roles)] = &[
    ("list_subscribers", SUBSCRIBERS_READ),
    ("get_subscriber", SUBSCRIBERS_READ),
    ("put_subscriber", SUBSCRIBERS_WRITE),
    ("delete_subscriber", SUBSCRIBERS_WRITE),
    ("delete_subscribers", SUBSCRIBERS_WRITE),
    ("import_subscribers", SUBSCRIBERS_WRITE),
    ("export_subscribers", SUBSCRIBERS_READ),
    ("list_classes", SUBSCRIBERS_READ),
    ("get_class", SUBSCRIBERS_READ),
    ("put_class", WRITE),
    ("delete_class", WRITE),
    ("list_relays", READ),
    ("get_relay", READ),
    ("put_relay", WRITE),
    ("delete_relay", WRITE),
    ("list_interfaces", READ),
    ("get_interface", READ),
    ("put_interface", WRITE),
    ("delete_interface", WRITE),
    ("list_gateways", READ),
    ("get_gateway", READ),
    ("put_gateway", WRITE),
    ("delete_gateway", WRITE),
    // Connects to wherever the request says.
    ("verify_gateway", WRITE),
    ("list_groups", READ),
    ("get_group", READ),
    ("put_group", WRITE),
    ("delete_group", WRITE),
    ("list_routes", READ),
    ("get_route", READ),
    ("put_route", WRITE),
    ("delete_route", WRITE),
    ("delete_routes", WRITE),
    ("import_routes", WRITE),
    ("export_routes", READ),
    ("explain_route", READ),
    ("lint", READ),
    ("list_managed_domains", READ),
    ("get_managed_domain", READ),
    ("put_managed_domain", WRITE),
    ("delete_managed_domain", WRITE),
    ("list_certificates", READ),
    ("get_certificate", READ),
    ("put_certificate", WRITE),
    ("delete_certificate", WRITE),
    ("list_users", READ),
    ("get_user", READ),
    ("put_user", WRITE),
    ("delete_user", WRITE),
    ("list_flows", READ),
    ("get_original", READ),
    ("list_locks", READ),
    ("put_lock", WRITE),
    ("delete_lock", WRITE),
    ("watch_events", READ),
    ("watch_flows", READ),
    ("watch_changes", READ),
    ("trace_sessions", READ),
    ("explain", READ),
    ("get_status", READ),
    ("get_stats", READ),
    ("kernel_diff", READ),
    ("reconcile_kernel", WRITE),
    ("get_configuration", READ),
    ("list_history", READ),
    ("get_history", READ),
    ("check_configuration", WRITE),
    ("diff_configuration", WRITE),
    ("commit_configuration", WRITE),
    ("confirm_configuration", WRITE),
    ("roll_back_configuration", WRITE),
    ("readyz", READ),
    ("get_metrics", READ),
    ("list_tokens", ADMIN),
    ("create_token", ADMIN),
    ("revoke_token", ADMIN),
    ("list_audit", ADMIN),
];

/// Operations on the one subscriber that the path names: those that a token for a part of the subscribers may call.
const OF_ONE_SUBSCRIBER: &[&str] = &["get_subscriber", "put_subscriber", "patch_subscriber", "delete_subscriber"];
/// The list, which such a token may call with `within`.
const OF_SUBSCRIBERS_WITHIN: &str = "list_subscribers";

/// Who may call an operation; `None` for one that is not in the table.
pub fn roles_of(operation: &str) -> Option<Roles> {
    // Who may PUT a resource may PATCH it.
    let operation = operation.strip_prefix("patch_").map_or_else(|| operation.to_owned(), |name| format!("put_{name}"));
    OPERATIONS.iter().find(|(id, _)| *id == operation).map(|(_, roles)| *roles)
}

/// Operations whose handler holds a file in memory.
const OF_FILES: &[&str] = &["import_routes", "check_configuration", "diff_configuration", "commit_configuration"];
/// Operations whose handler reads its body piece by piece, and bounds it.
const OF_STREAMS: &[&str] = &["import_subscribers"];

/// What becomes of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// [`limits::BODY_BYTES_MAX`].
    Small,
    /// [`limits::LARGE_BODY_BYTES_MAX`], or less where the handler says so; a few of them at a time.
    Large,
    /// Bounded by the handler.
    Streamed,
}

impl Size {
    pub const fn bytes_max(self) -> usize {
        match self {
            Self::Small => limits::BODY_BYTES_MAX,
            Self::Large => limits::LARGE_BODY_BYTES_MAX,
            Self::Streamed => usize::MAX,
        }
    }

    fn of(operation: &str) -> Self {
        if OF_FILES.contains(&operation) {
            Self::Large
        } else if OF_STREAMS.contains(&operation) {
            Self::Streamed
        } else {
            Self::Small
        }
    }
}

/// What a token for a part of the subscribers may do of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// The prefix in the path decides.
    ByPath,
    /// The query's `within` decides.
    ByQuery,
    Never,
}

/// What is demanded of whoever calls an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub operation: String,
    /// Whoever reaches us may call it.
    pub is_public: bool,
    pub roles: Roles,
    pub confined: Confined,
    pub size: Size,
}

/// The rules of all operations, by path and method.
#[derive(Debug)]
pub struct Rules(HashMap<String, HashMap<&'static str, Rule>>);

impl Rules {
    /// From the description, which every handler stands in.
    pub fn new(description: &OpenApi) -> Self {
        let of_path = |item: &PathItem| {
            operations(item).map(|(method, operation)| (method, rule(operation))).collect::<HashMap<_, _>>()
        };
        Self(description.paths.paths.iter().map(|(path, item)| (path.clone(), of_path(item))).collect())
    }

    /// What is demanded for `method` on the path that matched, which is `None` where none did.
    pub fn of(&self, path: Option<&str>, method: &str) -> Rule {
        // A HEAD is a GET whose body stays away.
        let method = if method == "HEAD" { "GET" } else { method };
        let refusal = |operation: &str, roles| Rule {
            operation: operation.to_owned(),
            is_public: false,
            roles,
            confined: Confined::Never,
            size: Size::Small,
        };
        match path.map(|path| self.0.get(path)) {
            Some(Some(methods)) => {
                methods.get(method).cloned().unwrap_or_else(|| refusal("method_not_allowed", ANYONE))
            }
            // A browser that loads the reader of the description shows no token yet.
            Some(None) if path.is_some_and(|path| path == "/docs" || path.starts_with("/docs/")) => {
                Rule { is_public: true, ..refusal("docs", ANYONE) }
            }
            // Nobody but an administrator, until somebody has thought about it.
            Some(None) => refusal("undescribed", ADMIN),
            None => refusal("no_such_path", ANYONE),
        }
    }
}

fn rule(operation: &Operation) -> Rule {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    Rule {
        operation: id.to_owned(),
        is_public: PUBLIC.contains(&id),
        roles: roles_of(id).unwrap_or(ADMIN),
        confined: match id {
            id if OF_ONE_SUBSCRIBER.contains(&id) => Confined::ByPath,
            OF_SUBSCRIBERS_WITHIN => Confined::ByQuery,
            _ => Confined::Never,
        },
        size: Size::of(id),
    }
}

fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    let all = [
        ("GET", &item.get),
        ("PUT", &item.put),
        ("POST", &item.post),
        ("DELETE", &item.delete),
        ("PATCH", &item.patch),
        ("OPTIONS", &item.options),
        ("HEAD", &item.head),
        ("TRACE", &item.trace),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

/// Writes into the description what the table says: `security`, `x-roles`, and the answers that come of it.
pub fn describe(description: &mut OpenApi) {
    let components = description.components.get_or_insert_default();
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description =
        Some("A token of `redirect-ctl token create`. On the Unix socket the user's role does too.".to_owned());
    components.security_schemes.insert("token".to_owned(), RefOr::T(SecurityScheme::Http(bearer)));
    for item in description.paths.paths.values_mut() {
        let methods = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
            &mut item.options,
            &mut item.head,
            &mut item.trace,
        ];
        for operation in methods.into_iter().flatten() {
            describe_operation(operation);
        }
    }
}

fn describe_operation(operation: &mut Operation) {
    let rule = rule(operation);
    let mut answers = vec![("429", "Too often; Retry-After tells when")];
    if rule.is_public {
        operation.security = Some(Vec::new());
    } else {
        answers.extend([("401", "Who asks is not known"), ("403", "The role does not allow it")]);
        operation.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
        let roles: Vec<_> = rule.roles.iter().map(Role::name).collect();
        let roles: Extensions = [("x-roles", serde_json::json!(roles))].into_iter().collect();
        operation.extensions.get_or_insert_default().merge(roles);
    }
    for (status, text) in answers {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(text)));
    }
}

fn problem(text: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(text).content(MEDIA_TYPE, content).build()
}

/// Operations that have no entry in the table.
pub fn unlisted(description: &OpenApi) -> BTreeSet<String> {
    let ids = description.paths.paths.values().flat_map(operations).map(|(_, operation)| {
        // One without a name cannot have an entry.
        operation.operation_id.clone().unwrap_or_default()
    });
    ids.filter(|id| roles_of(id).is_none() && !PUBLIC.contains(&id.as_str())).collect()
}
