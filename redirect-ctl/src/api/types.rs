//! What goes over the wire: paths, bodies of requests and answers. Server, CLI and the OpenAPI description share them.
//!
//! Bodies of requests refuse members that they do not know; a member that only answers have (`status`, or the `source` of what a file may
//! own) is let through and ignored, so that an answer can be edited and sent back.

mod subscribers;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use redirect_common::maps;
use redirect_relay::{
    Domain, Who,
    gateway::{self, GatewayState, PriorityRange, Secret},
    route,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use self::subscribers::*;
use crate::{
    clients::{self, Username},
    dataplane::{FlowDelivery, FlowState, Hook, InterfaceCounter, MapMemory, Mode, RelayId, Role, words},
    desired::{
        self, Action, ClassSpec, Counted, Delivery, Fallback, InterfaceName, Invalid, Limits, Name, OnClassChange,
        OnDaemonDown, PoolRelay, Prefix, RelaySpec, RelayStatus, Source, Tables, Time,
    },
    health::{self, Health, HealthState},
    limits,
    reconcile::task::{InterfaceStatus as ObservedInterface, Observed},
    routes::RouteKey,
    smtp::Smtp,
    store::{ChangeAction, Logged},
};

mod configuration;

pub use self::configuration::{
    CommitQuery, CommitReport, ConfigurationCheck, ConfigurationDiffQuery, ConfigurationQuery, ConfigurationState,
    ConfigurationStatus, RollbackQuery,
};

/// Every path of the API. `{…}` stands for a key.
pub mod paths {
    pub const SUBSCRIBERS: &str = "/v1/subscribers";
    pub const SUBSCRIBER: &str = "/v1/subscribers/{prefix}";
    pub const SUBSCRIBERS_DELETE: &str = "/v1/subscribers:delete";
    pub const SUBSCRIBERS_IMPORT: &str = "/v1/subscribers:import";
    pub const SUBSCRIBERS_EXPORT: &str = "/v1/subscribers:export";
    pub const CLASSES: &str = "/v1/classes";
    pub const CLASS: &str = "/v1/classes/{name}";
    pub const RELAYS: &str = "/v1/relays";
    pub const RELAY: &str = "/v1/relays/{name}";
    pub const INTERFACES: &str = "/v1/interfaces";
    pub const INTERFACE: &str = "/v1/interfaces/{name}";
    pub const GATEWAYS: &str = "/v1/gateways";
    pub const GATEWAY: &str = "/v1/gateways/{name}";
    pub const GATEWAYS_VERIFY: &str = "/v1/gateways:verify";
    pub const GROUPS: &str = "/v1/groups";
    pub const GROUP: &str = "/v1/groups/{name}";
    pub const ROUTES: &str = "/v1/routes";
    pub const ROUTE: &str = "/v1/routes/{key}";
    pub const ROUTES_DELETE: &str = "/v1/routes:delete";
    pub const ROUTES_EXPLAIN: &str = "/v1/routes:explain";
    pub const ROUTES_IMPORT: &str = "/v1/routes:import";
    pub const ROUTES_EXPORT: &str = "/v1/routes:export";
    pub const LINT: &str = "/v1/lint";
    pub const MANAGED_DOMAINS: &str = "/v1/managed-domains";
    pub const MANAGED_DOMAIN: &str = "/v1/managed-domains/{domain}";
    pub const CERTIFICATES: &str = "/v1/certificates";
    pub const CERTIFICATE: &str = "/v1/certificates/{name}";
    pub const USERS: &str = "/v1/users";
    pub const USER: &str = "/v1/users/{name}";
    pub const CONFIGURATION: &str = "/v1/config";
    pub const CONFIGURATION_CHECK: &str = "/v1/config:check";
    pub const CONFIGURATION_DIFF: &str = "/v1/config:diff";
    pub const CONFIGURATION_COMMIT: &str = "/v1/config:commit";
    pub const CONFIGURATION_CONFIRM: &str = "/v1/config:confirm";
    pub const CONFIGURATION_ROLLBACK: &str = "/v1/config:rollback";
    pub const CONFIGURATION_HISTORY: &str = "/v1/config/history";
    pub const CONFIGURATION_STATE: &str = "/v1/config/history/{back}";
    pub const FLOWS: &str = "/v1/flows";
    pub const FLOWS_ORIGINAL: &str = "/v1/flows:original";
    pub const LOCKS: &str = "/v1/locks";
    pub const LOCK: &str = "/v1/locks/{address}";
    pub const FLOWS_WATCH: &str = "/v1/flows:watch";
    pub const EVENTS: &str = "/v1/events";
    pub const TRACE: &str = "/v1/trace";
    pub const EXPLAIN: &str = "/v1/explain";
    pub const STATUS: &str = "/v1/status";
    pub const STATS: &str = "/v1/stats";
    pub const KERNEL_DIFF: &str = "/v1/kernel:diff";
    pub const KERNEL_RECONCILE: &str = "/v1/kernel:reconcile";
    pub const LIVEZ: &str = "/livez";
    pub const READYZ: &str = "/readyz";
    pub const METRICS: &str = "/metrics";
    pub const TOKENS: &str = "/v1/tokens";
    pub const TOKEN: &str = "/v1/tokens/{name}";
    pub const AUDIT: &str = "/v1/audit";
    pub const OPENAPI: &str = "/openapi.json";

    /// All of them, so that a test notices one that no handler serves.
    pub const ALL: &[&str] = &[
        SUBSCRIBERS,
        SUBSCRIBER,
        SUBSCRIBERS_DELETE,
        SUBSCRIBERS_IMPORT,
        SUBSCRIBERS_EXPORT,
        CLASSES,
        CLASS,
        RELAYS,
        RELAY,
        INTERFACES,
        INTERFACE,
        GATEWAYS,
        GATEWAY,
        GATEWAYS_VERIFY,
        GROUPS,
        GROUP,
        ROUTES,
        ROUTE,
        ROUTES_DELETE,
        ROUTES_EXPLAIN,
        ROUTES_IMPORT,
        ROUTES_EXPORT,
        LINT,
        MANAGED_DOMAINS,
        MANAGED_DOMAIN,
        CERTIFICATES,
        CERTIFICATE,
        USERS,
        USER,
        CONFIGURATION,
        CONFIGURATION_CHECK,
        CONFIGURATION_DIFF,
        CONFIGURATION_COMMIT,
        CONFIGURATION_CONFIRM,
        CONFIGURATION_ROLLBACK,
        CONFIGURATION_HISTORY,
        CONFIGURATION_STATE,
        FLOWS,
        FLOWS_ORIGINAL,
        FLOWS_WATCH,
        LOCKS,
        LOCK,
        EVENTS,
        TRACE,
        EXPLAIN,
        KERNEL_DIFF,
        KERNEL_RECONCILE,
        STATUS,
        STATS,
        LIVEZ,
        READYZ,
        METRICS,
        TOKENS,
        TOKEN,
        AUDIT,
        OPENAPI,
    ];
}

/// `false` in an answer to a change that the kernel does not hold yet.
pub const APPLIED_HEADER: &str = "redirect-applied";

/// The revision of the configuration at which a change can be seen.
pub const REVISION_HEADER: &str = "redirect-revision";

/// The revision after which a client wants to hear what changed.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// How many routes an export leaves out.
pub const OMITTED_HEADER: &str = "redirect-omitted";

pub use super::kernel::{KernelDiff, KernelOperation};

/// Rows of a list, and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
    /// How many there are in all, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A named policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Class {
    pub name: Name,
    pub action: Action,
    /// The pool that redirected flows are shared out among.
    pub relays: Vec<PoolRelay>,
    pub on_relay_down: Fallback,
    pub on_class_change: OnClassChange,
    pub on_daemon_down: OnDaemonDown,
    pub limits: Limits,
    /// The gateway or group that its mail goes to, unless a route says otherwise; null: the one named `default`.
    pub gateway: Option<Name>,
    /// How the embedded relay treats its clients.
    pub smtp: Smtp,
}

impl From<&desired::ClassSpec> for Class {
    fn from(spec: &desired::ClassSpec) -> Self {
        Self {
            name: spec.name.clone(),
            action: spec.action,
            relays: spec.relays.clone(),
            on_relay_down: spec.on_relay_down,
            on_class_change: spec.on_class_change,
            on_daemon_down: spec.on_daemon_down,
            limits: spec.limits,
            gateway: spec.gateway.clone(),
            smtp: spec.smtp.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassPut {
    /// If given, the same as in the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    pub action: Action,
    /// At least one where the action is `redirect`, 16 at most.
    #[serde(default)]
    pub relays: Vec<PoolRelay>,
    #[serde(default = "pass")]
    pub on_relay_down: Fallback,
    #[serde(default = "reset")]
    pub on_class_change: OnClassChange,
    #[serde(default = "keep")]
    pub on_daemon_down: OnDaemonDown,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub gateway: Option<Name>,
    #[serde(default)]
    pub smtp: Smtp,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub revision: Option<serde_json::Value>,
}

impl ClassPut {
    /// The class as it is asked for, or what is wrong and where.
    pub fn spec(self, name: Name) -> Result<ClassSpec, (String, Invalid)> {
        let relays = desired::checked_pool(self.relays, self.action)
            .map_err(|(pointer, invalid)| (format!("/relays{pointer}"), invalid))?;
        let limits = self.limits.checked(self.action);
        let limits = limits.map_err(|(member, invalid)| (format!("/limits/{member}"), invalid))?;
        self.smtp.check().map_err(|(member, invalid)| (format!("/smtp/{member}"), invalid))?;
        Ok(ClassSpec {
            name,
            action: self.action,
            relays,
            on_relay_down: self.on_relay_down,
            on_class_change: self.on_class_change,
            on_daemon_down: self.on_daemon_down,
            limits,
            gateway: self.gateway,
            smtp: self.smtp,
        })
    }
}

fn pass() -> Fallback {
    Fallback::Pass
}

fn keep() -> OnDaemonDown {
    OnDaemonDown::Keep
}

fn reset() -> OnClassChange {
    OnClassChange::Reset
}

/// A TCP endpoint that takes redirected flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Relay {
    pub name: Name,
    #[schema(value_type = Option<String>, example = "10.20.0.1:2525")]
    pub ipv4: Option<SocketAddrV4>,
    #[schema(value_type = Option<String>, example = "[fd00:20::1]:2525")]
    pub ipv6: Option<SocketAddrV6>,
    pub delivery: Delivery,
    pub status: RelayStatus,
    pub source: Source,
    pub health: RelayHealth,
    /// Established flows that are rewritten to it, as of the last sweep.
    pub flows: u64,
}

impl Relay {
    pub fn new(relay: &desired::Relay, health: &Health, observed: &Observed) -> Self {
        let spec = &relay.spec;
        let flows_to = |endpoint| observed.flows.by_relay.get(&endpoint).copied().unwrap_or(0);
        Self {
            name: spec.name.clone(),
            ipv4: spec.ipv4,
            ipv6: spec.ipv6,
            delivery: spec.delivery,
            status: spec.status,
            source: relay.source,
            health: RelayHealth {
                ipv4: EndpointHealth::of(relay.id, spec.ipv4.map(SocketAddr::V4), health),
                ipv6: EndpointHealth::of(relay.id, spec.ipv6.map(SocketAddr::V6), health),
            },
            flows: spec.endpoints().map(flows_to).sum(),
        }
    }
}

/// Whether a relay lives; null where it has no endpoint, or is disabled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RelayHealth {
    pub ipv4: Option<EndpointHealth>,
    pub ipv6: Option<EndpointHealth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointHealth {
    pub state: HealthState,
    pub since: Time,
    /// Why the last probe failed, if it did.
    pub error: Option<String>,
}

impl EndpointHealth {
    fn of(relay: RelayId, endpoint: Option<SocketAddr>, health: &Health) -> Option<Self> {
        let health::EndpointHealth { state, since, error } = health.endpoint(relay, endpoint?)?.clone();
        Some(Self { state, since, error })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RelayPut {
    /// If given, the same as in the path.
    #[serde(default)]
    pub name: Option<Name>,
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.20.0.1:2525")]
    pub ipv4: Option<SocketAddrV4>,
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "[fd00:20::1]:2525")]
    pub ipv6: Option<SocketAddrV6>,
    #[serde(default = "auto_delivery")]
    pub delivery: Delivery,
    #[serde(default = "enabled_relay")]
    pub status: RelayStatus,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<Source>, read_only)]
    pub source: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<RelayHealth>, read_only)]
    pub health: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub flows: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub revision: Option<serde_json::Value>,
}

impl RelayPut {
    /// The relay as it is asked for, or what is wrong and where. The embedded one has its endpoints from the file.
    pub fn spec(self, name: Name) -> Result<RelaySpec, (String, Invalid)> {
        for (pointer, address) in [("/ipv4", self.ipv4.map(Into::into)), ("/ipv6", self.ipv6.map(Into::into))] {
            if let Some(address) = address {
                desired::endpoint(address, self.delivery).map_err(|invalid| (pointer.to_owned(), invalid))?;
            }
        }
        let spec = RelaySpec { name, ipv4: self.ipv4, ipv6: self.ipv6, delivery: self.delivery, status: self.status };
        if spec.endpoints().next().is_none() && spec.name.as_str() != desired::EMBEDDED_RELAY {
            let text = "a relay needs an endpoint: give ipv4, ipv6 or both".to_owned();
            return Err(("/ipv4".to_owned(), Invalid(text)));
        }
        Ok(spec)
    }
}

fn enabled_relay() -> RelayStatus {
    RelayStatus::Enabled
}

fn auto_delivery() -> Delivery {
    Delivery::Auto
}

/// A network device that we attach to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    pub name: InterfaceName,
    pub role: Role,
    pub hook: Hook,
    /// Whether subscribers with addresses of other networks are served.
    pub foreign_sources: bool,
    pub source: Source,
    pub status: InterfaceStatus,
}

impl Interface {
    pub fn new(interface: &desired::Interface, observed: Option<&ObservedInterface>) -> Self {
        let observed = observed.cloned().unwrap_or_default();
        Self {
            name: interface.name.clone(),
            role: interface.role,
            hook: interface.hook,
            foreign_sources: interface.foreign_sources,
            source: interface.source,
            status: InterfaceStatus {
                attached: observed.mode.is_some(),
                mode: observed.mode,
                restart_safe: observed.restart_safe,
                error: observed.error,
            },
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    pub attached: bool,
    /// The hook in use.
    pub mode: Option<Mode>,
    /// It stays attached while no daemon runs: through a restart, an upgrade, a crash.
    pub restart_safe: bool,
    /// Why it is not attached; tried again until it is.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfacePut {
    /// If given, the same as in the path.
    #[serde(default)]
    pub name: Option<InterfaceName>,
    #[serde(default = "subscriber_role")]
    pub role: Role,
    #[serde(default = "auto_hook")]
    pub hook: Hook,
    #[serde(default)]
    pub foreign_sources: bool,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<Source>, read_only)]
    pub source: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<InterfaceStatus>, read_only)]
    pub status: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub revision: Option<serde_json::Value>,
}

impl InterfacePut {
    /// The interface as it is asked for.
    pub fn spec(self, name: InterfaceName) -> desired::Interface {
        let Self { role, hook, foreign_sources, .. } = self;
        desired::Interface { name, role, hook, foreign_sources, source: Source::Api }
    }
}

fn subscriber_role() -> Role {
    Role::Subscriber
}

fn auto_hook() -> Hook {
    Hook::Auto
}

/// A gateway and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gateway {
    #[serde(flatten)]
    pub gateway: gateway::Gateway,
    /// Null until it was used or probed.
    pub state: Option<GatewayState>,
}

words! {
    /// The form of a file of routes.
    RouteFormat {
        Csv = "csv",
        Json = "json",
        /// As Postfix's `transport(5)`.
        Transport = "transport",
    }
}

words! {
    /// What becomes of routes that an imported file does not name.
    #[derive(Default)]
    ImportMode {
        /// They stay.
        #[default]
        Merge = "merge",
        /// They go.
        Replace = "replace",
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RouteImportQuery {
    pub format: RouteFormat,
    #[serde(default)]
    pub mode: ImportMode,
    /// Tell what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RouteExportQuery {
    pub format: RouteFormat,
}

/// Routes that a file of routes changed, or would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteImport {
    pub dry_run: bool,
    pub added: RouteChanges,
    pub changed: RouteChanges,
    pub removed: RouteChanges,
    pub unchanged: u64,
}

/// Some of the routes, 100 at most, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteChanges {
    pub count: u64,
    pub keys: Vec<RouteKey>,
}

impl RouteChanges {
    fn new<'r>(count: usize, routes: impl Iterator<Item = &'r route::Route>) -> Self {
        Self { count: count as u64, keys: routes.take(limits::IMPORT_LISTED_MAX).map(RouteKey::of).collect() }
    }
}

impl RouteImport {
    pub fn new(diff: &route::RouteDiff, dry_run: bool) -> Self {
        Self {
            dry_run,
            added: RouteChanges::new(diff.added.len(), diff.added.iter()),
            changed: RouteChanges::new(diff.changed.len(), diff.changed.iter().map(|(_, after)| after)),
            removed: RouteChanges::new(diff.removed.len(), diff.removed.iter()),
            unchanged: diff.unchanged as u64,
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.added.count == 0 && self.changed.count == 0 && self.removed.count == 0
    }
}

/// A route and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    pub key: RouteKey,
    #[serde(flatten)]
    pub route: route::Route,
}

impl From<route::Route> for Route {
    fn from(route: route::Route) -> Self {
        Self { key: RouteKey::of(&route), route }
    }
}

/// What a route has besides its key; what the key says may be said again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoutePut {
    /// If given, the same as in the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RouteKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<route::Pattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<route::SenderPattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<route::SizeRange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<PriorityRange>,
    /// The gateway that it leads to; or give `group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    #[serde(default)]
    pub note: String,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub revision: Option<serde_json::Value>,
}

impl RoutePut {
    /// The route of this key as it is asked for, or what is wrong and where.
    pub fn route(self, key: RouteKey) -> Result<route::Route, (String, Invalid)> {
        let conditions = &key.conditions;
        let others = [
            ("key", self.key.is_none_or(|said| said == key)),
            ("domain", self.domain.is_none_or(|domain| domain == key.domain)),
            ("order", self.order.is_none_or(|order| order == key.order)),
            ("sender", self.sender.is_none() || self.sender == conditions.sender),
            ("class", self.class.is_none() || self.class == conditions.class),
            ("size", self.size.is_none() || self.size == conditions.size),
            ("priority", self.priority.is_none() || self.priority == conditions.priority),
        ];
        let wrong = |member: &str, text: &str| Err((format!("/{member}"), Invalid(text.to_owned())));
        if let Some((member, _)) = others.into_iter().find(|(_, same)| !same) {
            return wrong(member, "is not what the key of the route says; leave it out, or put it into the key");
        }
        let target = match (self.gateway, self.group) {
            (Some(gateway), None) => route::Target::Gateway(gateway),
            (None, Some(group)) => route::Target::Group(group),
            (None, None) => return wrong("gateway", "give a gateway, or a group"),
            (Some(_), Some(_)) => return wrong("group", "give a gateway or a group, not both"),
        };
        Ok(key.with(target, self.note))
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RouteListQuery {
    /// Rows of the page; 100 where not given, 1000 at most. As lines: rows at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Tell how many there are in all.
    #[serde(default)]
    pub count: bool,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only routes of this domain and of those below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Only routes to this gateway or group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Only routes on the condition of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// Which routes to delete, and how many there are: another number of them is a conflict, and nothing is deleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteDelete {
    /// Those of this domain and of those below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub within: Option<Domain>,
    /// Those to this gateway or group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// Those on the condition of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Name>,
    /// Those with these keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<RouteKey>>,
    /// The number that is expected. Without any condition all routes are meant.
    pub count: u64,
}

/// What was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deleted {
    pub count: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RouteExplainQuery {
    /// The sender: an address, a domain, or `<>`.
    pub from: String,
    /// The recipient: an address or a domain.
    pub rcpt: String,
    /// The subscriber's class.
    pub class: String,
    /// Octets that the client declares; 0 where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Of the message, -9 to 9; 0 where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = -9, maximum = 9)]
    pub priority: Option<i8>,
}

/// Which way a message would go, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteExplanation {
    /// The look-ups in their order, in sentences.
    pub text: Vec<String>,
    #[serde(flatten)]
    pub decision: route::Explanation,
    /// Of the configuration.
    pub revision: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ManagedDomainListQuery {
    /// Rows of the page; 100 where not given, 1000 at most. As lines: rows at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Tell how many there are in all.
    #[serde(default)]
    pub count: bool,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What the embedded relay shows clients that begin TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    pub name: Name,
    /// In PEM, our own certificate first.
    pub chain: String,
    /// The DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    pub not_before: Time,
    pub not_after: Time,
}

impl Certificate {
    pub fn new(name: Name, certificate: &redirect_relay::Certificate) -> Self {
        let [not_before, not_after] =
            [certificate.not_before_s(), certificate.not_after_s()].map(|seconds| Time { seconds });
        let (chain, names) = (certificate.chain().to_owned(), certificate.names().to_vec());
        Self { name, chain, names, not_before, not_after }
    }
}

/// `names`, `not_before` and `not_after` are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePut {
    /// If given, the same as in the path.
    #[serde(default)]
    pub name: Option<Name>,
    /// In PEM, our own certificate first.
    pub chain: String,
    /// Its private key in PEM. If not given, the known one stays.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<String>, write_only)]
    pub key: Secret,
}

/// Who may log in where a class's `auth` is `local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub name: Username,
}

impl From<clients::User> for User {
    fn from(user: clients::User) -> Self {
        Self { name: user.name }
    }
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserPut {
    /// If given, the same as in the path.
    #[serde(default)]
    pub name: Option<Username>,
    /// If not given, the known one stays.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub password: Option<Secret>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct UserListQuery {
    /// Rows of the page; 100 where not given, 1000 at most. As lines: rows at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Tell how many there are in all.
    #[serde(default)]
    pub count: bool,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A redirected TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    #[schema(value_type = String, example = "10.20.0.5:40000")]
    pub client: SocketAddr,
    /// The server that the subscriber dialled.
    #[schema(value_type = String, example = "203.0.113.9:25")]
    pub server: SocketAddr,
    /// Null where the flow is steered.
    #[schema(value_type = Option<String>, example = "10.20.0.1:2525")]
    pub relay: Option<SocketAddr>,
    /// The client's port as the relay sees it.
    pub mapped_port: u16,
    /// Null where the class is gone.
    pub class: Option<String>,
    pub state: FlowState,
    pub delivery: FlowDelivery,
    pub age_s: u32,
    pub idle_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowList {
    pub items: Vec<Flow>,
    /// Flows that the query matches, listed or not.
    pub total: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct FlowListQuery {
    /// Rows at most; 100 where not given, 1000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only flows of clients inside this prefix, or of this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only flows of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Only flows that are rewritten to this relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
}

/// A connection as a relay sees it.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct OriginalQuery {
    /// The relay's end, ADDRESS:PORT.
    pub relay: String,
    /// The other end as the relay sees it, ADDRESS:PORT.
    pub client: String,
}

/// Both ends of a redirected connection as the subscriber knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Original {
    #[schema(value_type = String, example = "10.20.0.5:40000")]
    pub client: SocketAddr,
    /// The server that the subscriber dialled.
    #[schema(value_type = String, example = "203.0.113.9:25")]
    pub server: SocketAddr,
    /// Null where the class is gone.
    pub class: Option<String>,
}

/// A subscriber who may not open connections to port 25 for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lock {
    /// An IPv4 address or an IPv6 /64.
    pub address: Counted,
    pub left_s: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LockPut {
    /// From now on, in seconds; 30 days at most.
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub duration_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub uptime_s: u64,
    /// Number of the configuration's newest state.
    pub revision: u64,
    /// Number of the state that the kernel holds.
    pub applied: u64,
    pub configuration: ConfigurationStatus,
    /// Why the kernel does not hold the newest state, or is not kept up.
    pub error: Option<String>,
    pub dataplane: DataplaneStatus,
    pub interfaces: Vec<Interface>,
    pub flows: FlowsStatus,
    pub foreign_sources: ForeignSourcesStatus,
    pub subscribers: u64,
    pub events: EventsStatus,
    /// What the kernel's tables cost.
    pub memory: Vec<Memory>,
    /// Counters of the embedded relay.
    pub relay: BTreeMap<String, u64>,
    /// Packets by reason, over all classes.
    pub reasons: BTreeMap<String, Count>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataplaneStatus {
    /// Number of the maps' layout.
    pub layout: u32,
    pub flows_max: u32,
    pub subscribers_max: u32,
    pub full_syncs: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowsStatus {
    pub half_open: u64,
    pub established: u64,
    /// Established flows of both families together.
    pub capacity: u64,
    /// Idle flows removed since the start.
    pub collected: u64,
}

/// Subscribers with addresses of other networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForeignSourcesStatus {
    /// Those that have a route.
    pub known: u64,
    pub capacity: u64,
    /// Since the start.
    pub learned: u64,
    /// Forgotten after a time without packets.
    pub expired: u64,
    /// Forgotten because nobody with that address answered.
    pub unanswered: u64,
    /// Flows whose source got no route, by the reason why.
    pub refused: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    pub reasons: Vec<ReasonCount>,
    pub interfaces: Vec<InterfaceCount>,
}

/// Packets of an interface that left the data plane by a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceCount {
    /// Null for those that are not attached any more, or came when 31 others were.
    pub interface: Option<String>,
    #[schema(example = "class_block")]
    pub reason: String,
    #[schema(example = "drop")]
    pub verdict: String,
    pub packets: u64,
    pub bytes: u64,
}

impl From<InterfaceCounter> for InterfaceCount {
    fn from(counter: InterfaceCounter) -> Self {
        Self {
            interface: counter.interface,
            reason: counter.reason.name().to_owned(),
            verdict: counter.reason.verdict().name().to_owned(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Only those of clients inside this prefix, or of this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only those with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ChangesQuery {
    /// Only changes of these types, with commas between, such as `class,relay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<String>,
}

/// The event `change`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeEvent {
    /// That the change made.
    pub revision: u64,
    #[schema(example = "class")]
    pub r#type: String,
    /// Null: several at once; read their list again.
    #[schema(example = "gold")]
    pub key: Option<String>,
    pub action: ChangeAction,
}

impl From<&Logged> for ChangeEvent {
    fn from(logged: &Logged) -> Self {
        Self {
            revision: logged.revision,
            r#type: logged.kind.type_name().to_owned(),
            key: logged.key.clone(),
            action: logged.action,
        }
    }
}

/// The event `reset`: the log does not reach back to the client's revision; all lists are to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResetEvent {
    /// From which the events go on.
    pub revision: u64,
}

/// The event `dropped`: the client was so slow that the log ran past it; all lists are to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DroppedEvent {
    pub count: u64,
}

/// An event of `/v1/events` as a client takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ServerEvent {
    Change(ChangeEvent),
    Reset(ResetEvent),
    Dropped(DroppedEvent),
}

/// A line of the events. Readers skip types that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventLine {
    Packet(Box<Event>),
    /// The embedded relay had a subscriber locked.
    Locked(Box<LockEvent>),
    /// Events that are missing here, whatever was asked for.
    Lost {
        at: LostAt,
        count: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    /// Sessions of clients inside this prefix, or of this address.
    pub subscriber: String,
}

/// A line of a trace. Readers skip types that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TraceLine {
    Line(Box<SessionLine>),
    /// Lines, of whomever anybody looks at, that this reader was too slow for.
    Lost {
        count: u64,
    },
}

/// Something that happened in a session with the embedded relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionLine {
    /// RFC 3339.
    pub time: String,
    /// A number that no other session of this daemon has.
    pub session: u64,
    #[schema(value_type = String, example = "10.20.0.5:40000")]
    pub subscriber: SocketAddr,
    pub class: String,
    pub who: Who,
    /// Printable ASCII.
    #[schema(example = "RCPT TO:<***@example.net>")]
    pub text: String,
}

/// A lock for abuse of the embedded relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockEvent {
    /// RFC 3339.
    pub time: String,
    pub address: Counted,
    pub class: String,
    pub duration_s: u64,
}

/// Where events got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostAt {
    /// A CPU had more than `dataplane.events_per_second`, or the ring buffer was full.
    Kernel,
    /// The reader was too slow.
    Queue,
}

/// A new flow, or a refused one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When the daemon read it, RFC 3339.
    pub time: String,
    /// Null where it is gone.
    pub interface: Option<String>,
    #[schema(example = "flow_new")]
    pub reason: String,
    #[schema(example = "redirect")]
    pub verdict: String,
    pub class: Option<String>,
    #[schema(value_type = String, example = "10.20.0.5:40000")]
    pub client: SocketAddr,
    #[schema(value_type = String, example = "203.0.113.9:25")]
    pub server: SocketAddr,
    /// Null where it was not rewritten.
    #[schema(value_type = Option<String>, example = "10.20.0.1:2525")]
    pub relay: Option<SocketAddr>,
    /// The client's port as the relay sees it; null where it was not rewritten.
    pub mapped_port: Option<u16>,
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// The subscriber's address.
    pub source: String,
    /// The server's address; `:25` may follow.
    pub destination: String,
    /// The subscriber's port; without it one that meets no flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(maximum = 65535)]
    pub sport: Option<u16>,
    /// Where the connection would come in; without it the first interface that carries the programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// What would become of a new connection to port 25.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    #[schema(value_type = String, example = "10.20.3.7")]
    pub source: IpAddr,
    pub sport: Option<u16>,
    #[schema(value_type = String, example = "203.0.113.9:25")]
    pub destination: SocketAddr,
    /// Null where no interface carries the programs.
    pub interface: Option<String>,
    pub mode: Option<Mode>,
    #[schema(example = "redirect")]
    pub verdict: String,
    #[schema(example = "flow_new")]
    pub reason: String,
    /// The reason in a sentence.
    pub text: String,
    /// The subscriber that the source belongs to, its longest prefix.
    pub prefix: Option<Prefix>,
    /// What each source says of the prefix, by rank: the first one decides.
    #[serde(default)]
    pub facts: Vec<Contender>,
    pub class: Option<String>,
    /// What the class allows one subscriber; null without a class.
    pub limits: Option<Limits>,
    /// Redirected connections that the subscriber has open; null where its class does not limit them.
    pub open: Option<u32>,
    /// For how long the subscriber is locked still, in seconds; null where it is not.
    pub lock_left_s: Option<u32>,
    /// The pool that the class shares its flows out among; empty where it redirects nothing.
    pub relays: Vec<PoolState>,
    /// That the connection would go to; null where it opens no flow.
    pub relay: Option<Name>,
    /// The relay's end; null where nothing is rewritten.
    #[schema(value_type = Option<String>, example = "10.20.0.1:2525")]
    pub endpoint: Option<SocketAddr>,
    /// The client's port as the relay would see it, where `sport` was given.
    pub mapped_port: Option<u16>,
    /// Null where it goes to no relay.
    pub delivery: Option<FlowDelivery>,
    /// The loaded program that the kernel ran on a SYN of its own (`BPF_PROG_TEST_RUN`), by its tag.
    #[schema(example = "f0c1a9d27be3046d")]
    pub program_tag: String,
    /// Of the configuration that the kernel holds.
    pub revision: u64,
}

/// Whether a relay of a pool takes flows of the address family that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolState {
    pub name: Name,
    #[schema(example = 1)]
    pub weight: u8,
    pub status: RelayStatus,
    /// Of its endpoint of this family; null where it has none, or is disabled.
    pub health: Option<EndpointHealth>,
}

impl PoolState {
    /// The pool of a class.
    pub(crate) fn of(class: &desired::Class, tables: &Tables, health: &Health, is_ipv4: bool) -> Vec<Self> {
        let members = class.relay_ids.iter().zip(&class.spec.relays);
        let state = |(id, member): (&RelayId, &PoolRelay)| {
            let spec = &tables.relays.get(id)?.spec;
            let endpoint = if is_ipv4 { spec.ipv4.map(SocketAddr::V4) } else { spec.ipv6.map(SocketAddr::V6) };
            Some(Self {
                name: spec.name.clone(),
                weight: member.weight.get(),
                status: spec.status,
                health: EndpointHealth::of(*id, endpoint, health),
            })
        };
        members.filter_map(state).collect()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsStatus {
    /// Read from the kernel since the start.
    pub read: u64,
    /// Lost in the kernel: beyond `dataplane.events_per_second`, or the ring buffer was full.
    pub lost: u64,
    /// Lost by readers that were too slow.
    pub dropped: u64,
}

/// Tables of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    #[schema(example = "flows_ipv4")]
    pub tables: String,
    /// As the kernel says.
    pub bytes: u64,
    /// Subscribers, or flows in both directions, that they have room for.
    pub capacity: Option<u64>,
    /// What a million of those cost; null for what has no such count.
    pub bytes_per_million: Option<u64>,
}

/// Puts the maps together by what they hold.
pub(crate) fn memory(maps: &[MapMemory]) -> Vec<Memory> {
    let group = |tables: &str, prefix: &str, entries: u64| {
        let of_it = maps.iter().filter(|map| map.name.starts_with(prefix));
        let (bytes, room) = of_it.fold((0, 0), |(bytes, room), map| (bytes + map.bytes, room + map.capacity));
        let capacity = room / entries;
        Memory {
            tables: tables.to_owned(),
            bytes,
            capacity: Some(capacity),
            bytes_per_million: (bytes * 1_000_000).checked_div(capacity),
        }
    };
    let two = u64::from(maps::ENTRIES_PER_FLOW);
    let mut groups = vec![
        group("hosts_ipv4", maps::names::HOSTS_V4, 1),
        group("hosts_ipv6", maps::names::HOSTS_V6, 1),
        group("prefixes_ipv4", maps::names::PREFIXES_V4, 1),
        group("prefixes_ipv6", maps::names::PREFIXES_V6, 1),
        group("flows_ipv4", maps::names::FLOWS_V4, two),
        group("flows_ipv6", maps::names::FLOWS_V6, two),
        group("half_open", "HALF_OPEN_", two),
    ];
    let all: u64 = maps.iter().map(|map| map.bytes).sum();
    let grouped: u64 = groups.iter().map(|group| group.bytes).sum();
    groups.push(Memory { tables: "others".to_owned(), bytes: all - grouped, capacity: None, bytes_per_million: None });
    groups
}

/// Packets of a class that left the data plane by a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// Null where the packet had no class.
    pub class: Option<String>,
    #[schema(example = "class_block")]
    pub reason: String,
    #[schema(example = "drop")]
    pub verdict: String,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub detail: String,
}
