//! The configuration on the wire and in files, and how it becomes one that can be.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::SocketAddr,
};

use redirect_common::maps::{CLASSES_MAX, RELAYS_MAX};
use redirect_relay::{
    Domain, Verifier,
    gateway::{Gateway, Group, Host, Secret},
    route::{ManagedDomain, Pattern, Route, Routing, RoutingFault, SizeRange, Target},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Configuration, Known, RoutePlace, route_place};
use crate::{
    api::types::{CertificatePut, ClassPut, InterfacePut, RelayPut, RoutePut},
    clients::{CertificateSpec, Username},
    desired::{Class, ClassSpec, EMBEDDED_RELAY, Interface, InterfaceName, Invalid, Name, RelaySpec, Tables, Time},
    limits,
    routes::{self, RouteKey},
    store::Fault,
};

/// Everything that the operator decides, without subscribers and without what redirectd's own file owns. Resources are as in their own
/// requests; a section that is left out is empty. No secret is shown, and what is not said of one stays as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Configuration)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificatePut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<DocumentUser>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfacePut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<RelayPut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Gateway>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassPut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RoutePut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub managed_domains: Vec<ManagedDomain>,
}

/// A user whose password is known; a new one is made by a request of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ConfigurationUser)]
#[serde(deny_unknown_fields)]
pub struct DocumentUser {
    pub name: Username,
}

/// What a document is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To hold from `now` on.
    Commit { now: Time },
    /// It held already: certificates that have expired since stay in it, and interfaces that the file has taken over are the file's.
    Restore,
}

pub(super) fn certificate(name: &Name, spec: &CertificateSpec) -> CertificatePut {
    CertificatePut { name: Some(name.clone()), chain: spec.chain.clone(), key: Secret::default() }
}

pub(super) fn user(name: &Username, _: &Verifier) -> DocumentUser {
    DocumentUser { name: name.clone() }
}

pub(super) fn interface(name: &InterfaceName, interface: &Interface) -> InterfacePut {
    InterfacePut {
        name: Some(name.clone()),
        role: interface.role,
        hook: interface.hook,
        foreign_sources: interface.foreign_sources,
        source: None,
        status: None,
        revision: None,
    }
}

pub(super) fn relay(name: &Name, spec: &RelaySpec) -> RelayPut {
    RelayPut {
        name: Some(name.clone()),
        ipv4: spec.ipv4,
        ipv6: spec.ipv6,
        delivery: spec.delivery,
        status: spec.status,
        source: None,
        health: None,
        flows: None,
        revision: None,
    }
}

pub(super) fn class(name: &Name, spec: &ClassSpec) -> ClassPut {
    ClassPut {
        name: Some(name.clone()),
        action: spec.action,
        relays: spec.relays.clone(),
        on_relay_down: spec.on_relay_down,
        on_class_change: spec.on_class_change,
        on_daemon_down: spec.on_daemon_down,
        limits: spec.limits,
        gateway: spec.gateway.clone(),
        smtp: spec.smtp.clone(),
        revision: None,
    }
}

pub(super) fn route(_: &RoutePlace, route: &Route) -> RoutePut {
    let (gateway, group) = match &route.target {
        Target::Gateway(name) => (Some(name.clone()), None),
        Target::Group(name) => (None, Some(name.clone())),
    };
    RoutePut {
        key: None,
        domain: Some(route.domain.clone()),
        order: (route.order != Route::USUAL_ORDER).then_some(route.order),
        sender: route.conditions.sender.clone(),
        class: route.conditions.class.clone(),
        size: route.conditions.size,
        priority: route.conditions.priority,
        gateway,
        group,
        note: route.note.clone(),
        revision: None,
    }
}

/// As the document has it: without what stands for something left out (nulls, empty objects, and the size that no message has, which not every
/// form of file can say).
pub(super) fn value(resource: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(resource).expect("resources have JSON");
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(prune);
            members.retain(|name, member| {
                let empty = member.is_null() || member.as_object().is_some_and(serde_json::Map::is_empty);
                !empty && (name != "max" || member.as_u64() != Some(u64::MAX))
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Document {
    /// In the order of the keys.
    pub fn of(configuration: &Configuration) -> Self {
        fn each<K, V, D>(section: &BTreeMap<K, V>, shown: impl Fn(&K, &V) -> D) -> Vec<D> {
            section.iter().map(|(key, value)| shown(key, value)).collect()
        }
        Self {
            certificates: each(&configuration.certificates, certificate),
            users: each(&configuration.users, user),
            interfaces: each(&configuration.interfaces, interface),
            relays: each(&configuration.relays, relay),
            gateways: configuration.gateways.values().cloned().map(without_password).collect(),
            groups: configuration.groups.values().cloned().collect(),
            classes: each(&configuration.classes, class),
            routes: each(&configuration.routes, route),
            managed_domains: configuration.managed_domains.values().cloned().collect(),
        }
    }

    /// As JSON in which what is left out has its default.
    pub fn to_value(&self) -> Value {
        value(self)
    }

    /// The configuration that it stands for, or everything that is wrong with it, the first 100 faults, with pointers into the document.
    pub fn resolve(&self, known: &Known, purpose: Purpose) -> Result<Configuration, Vec<Fault>> {
        let mut faults = Faults::default();
        let interfaces_max = limits::INTERFACES_MAX.saturating_sub(known.file_interfaces.len() as u64);
        let whole = Configuration {
            certificates: faults.section("certificates", &self.certificates, limits::CERTIFICATES_MAX, |put| {
                certificate_of(put, known, purpose).map(Some)
            }),
            users: faults.section("users", &self.users, limits::USERS_MAX, |DocumentUser { name }| {
                let no_password = || {
                    let text = format!("no password is known for {name}; set one first (redirect-ctl user set)");
                    wrong("/name", text)
                };
                known.users.get(name).map(|verifier| Some((name.clone(), verifier.clone()))).ok_or_else(no_password)
            }),
            interfaces: faults.section("interfaces", &self.interfaces, interfaces_max, |put| {
                let name = named(put.name.as_ref())?;
                match (known.file_interfaces.contains(&name), purpose) {
                    (false, _) => Ok(Some((name.clone(), put.clone().spec(name)))),
                    (true, Purpose::Restore) => Ok(None),
                    (true, Purpose::Commit { .. }) => {
                        Err(wrong("/name", format!("{name} is redirectd's own file's; leave it out")))
                    }
                }
            }),
            relays: faults.section("relays", &self.relays, u64::from(RELAYS_MAX) - 2, |put| {
                let name = named(put.name.as_ref())?;
                if name.as_str() == EMBEDDED_RELAY {
                    return Err(wrong("/name", format!("{name} is redirectd's own file's; leave it out")));
                }
                Ok(Some((name.clone(), put.clone().spec(name).map_err(|(at, invalid)| Wrong { at, text: invalid.0 })?)))
            }),
            gateways: faults.section("gateways", &self.gateways, limits::GATEWAYS_MAX, |gateway| {
                gateway_of(gateway, known).map(Some)
            }),
            groups: faults.section("groups", &self.groups, limits::GROUPS_MAX, |group| {
                Ok(Some((group.name.clone(), group.clone())))
            }),
            classes: faults.section("classes", &self.classes, u64::from(CLASSES_MAX) - 1, |put| {
                let name = named(put.name.as_ref())?;
                Ok(Some((name.clone(), put.clone().spec(name).map_err(|(at, invalid)| Wrong { at, text: invalid.0 })?)))
            }),
            routes: faults.section("routes", &self.routes, limits::ROUTES_MAX, |put| {
                let key = key_of(put)?;
                let place = route_place(&key);
                Ok(Some((place, put.clone().route(key).map_err(|(at, invalid)| Wrong { at, text: invalid.0 })?)))
            }),
            managed_domains: faults.section(
                "managed_domains",
                &self.managed_domains,
                limits::MANAGED_DOMAINS_MAX,
                |managed| Ok(Some((managed.domain.clone(), managed.clone()))),
            ),
        };
        self.check_references(&whole, &mut faults);
        if faults.count == 0 { Ok(whole) } else { Err(faults.list()) }
    }

    /// What refers to something that is not there, and what does not go together.
    fn check_references(&self, whole: &Configuration, faults: &mut Faults) {
        for (index, put) in self.classes.iter().enumerate() {
            let mut missing = |at: String, kind: &str, name: &Name| {
                faults.push(|| Fault {
                    pointer: format!("/classes/{index}{at}"),
                    text: format!("there is no {kind} {name} in the document"),
                });
            };
            for (place, relay) in put.relays.iter().enumerate() {
                if relay.name.as_str() != EMBEDDED_RELAY && !whole.relays.contains_key(&relay.name) {
                    missing(format!("/relays/{place}/name"), "relay", &relay.name);
                }
            }
            if let Some(name) = &put.gateway
                && !whole.gateways.contains_key(name)
                && !whole.groups.contains_key(name)
            {
                missing("/gateway".to_owned(), "gateway or group", name);
            }
            if let Some(name) = &put.smtp.certificate
                && !whole.certificates.contains_key(name)
            {
                missing("/smtp/certificate".to_owned(), "certificate", name);
            }
        }
        for (index, put) in self.routes.iter().enumerate() {
            if let Some(name) = &put.class
                && !whole.classes.contains_key(name)
            {
                faults.push(|| Fault {
                    pointer: format!("/routes/{index}/class"),
                    text: format!("there is no class {name} in the document"),
                });
            }
        }
        // What is missing already would be missed again.
        if faults.count == 0 {
            let tables = whole.tables();
            let spec = routes::spec(
                &tables,
                whole.routes.values().cloned().collect(),
                whole.managed_domains.values().cloned().collect(),
            );
            if let Err(found) = Routing::build(spec) {
                let places = Places::of(self);
                for fault in &found {
                    faults.push(|| places.fault(fault));
                }
            }
        }
    }
}

fn without_password(mut gateway: Gateway) -> Gateway {
    if let Some(account) = &mut gateway.account {
        account.password = Secret::default();
    }
    gateway
}

impl Configuration {
    /// Its classes, gateways and groups, with numbers that mean nothing.
    fn tables(&self) -> Tables {
        let class = |(id, spec): (u16, &ClassSpec)| (id, Class { id, relay_ids: Vec::new(), spec: spec.clone() });
        Tables {
            classes: (1..).zip(self.classes.values()).map(class).collect(),
            gateways: self.gateways.clone(),
            groups: self.groups.clone(),
            ..Tables::default()
        }
    }
}

/// A fault of one resource.
struct Wrong {
    /// Pointer below the resource.
    at: String,
    text: String,
}

fn wrong(at: &str, text: String) -> Wrong {
    Wrong { at: at.to_owned(), text }
}

fn named<K: Clone>(name: Option<&K>) -> Result<K, Wrong> {
    name.cloned().ok_or_else(|| wrong("/name", "give a name".to_owned()))
}

fn certificate_of(put: &CertificatePut, known: &Known, purpose: Purpose) -> Result<(Name, CertificateSpec), Wrong> {
    let name = named(put.name.as_ref())?;
    let mut spec = CertificateSpec { name: name.clone(), chain: put.chain.clone(), key: put.key.clone() };
    let before = known.certificates.get(&name);
    if spec.key.expose().is_empty() {
        let no_key = || wrong("/key", format!("no key is known for certificate {name}; give one"));
        spec.key = before.ok_or_else(no_key)?.key.clone();
    }
    let now = match purpose {
        // What is there already may go on though it has expired.
        Purpose::Commit { .. } if before == Some(&spec) => None,
        Purpose::Commit { now } => Some(now),
        Purpose::Restore => None,
    };
    let spec = spec.checked(now).map_err(|(at, Invalid(text))| wrong(at, text))?;
    Ok((name, spec))
}

fn gateway_of(gateway: &Gateway, known: &Known) -> Result<(Name, Gateway), Wrong> {
    let mut gateway = gateway.clone();
    if let Some(account) = gateway.account.as_mut().filter(|account| account.password.expose().is_empty()) {
        let before = known.accounts.get(&gateway.name).filter(|(username, _)| *username == account.username);
        let no_password =
            || wrong("/account/password", format!("no password is known for {:?}; give one", account.username));
        account.password = before.ok_or_else(no_password)?.1.clone();
    }
    if let Host::Address(ip) = gateway.address {
        let address = SocketAddr::new(ip, gateway.port);
        if known.own_endpoints.contains(&address) {
            return Err(wrong("/address", crate::store::Error::OwnListener { address }.to_string()));
        }
    }
    Ok((gateway.name.clone(), gateway))
}

fn key_of(put: &RoutePut) -> Result<RouteKey, Wrong> {
    let Some(domain) = put.domain.clone() else {
        return Err(wrong("/domain", "give the domain of the route".to_owned()));
    };
    let conditions = redirect_relay::route::Conditions {
        sender: put.sender.clone(),
        class: put.class.clone(),
        size: put.size,
        priority: put.priority,
    };
    // A larger number than files can say is one that no message has.
    if put
        .size
        .is_some_and(|SizeRange { min, max }| min > FILE_NUMBER_MAX || (max > FILE_NUMBER_MAX && max != u64::MAX))
    {
        return Err(wrong("/size", format!("give {FILE_NUMBER_MAX} at most, or leave max out")));
    }
    Ok(RouteKey { domain, order: put.order.unwrap_or(Route::USUAL_ORDER), conditions })
}

/// The largest number of TOML.
const FILE_NUMBER_MAX: u64 = i64::MAX.unsigned_abs();

/// The faults of a document, of which the first ones are kept.
#[derive(Default)]
struct Faults {
    count: usize,
    first: Vec<Fault>,
}

impl Faults {
    fn push(&mut self, fault: impl FnOnce() -> Fault) {
        self.count += 1;
        if self.first.len() < limits::FAULTS_LISTED_MAX {
            self.first.push(fault());
        }
    }

    fn list(mut self) -> Vec<Fault> {
        let more = self.count - self.first.len();
        if more > 0 {
            self.first.push(Fault { pointer: String::new(), text: format!("and {more} more faults") });
        }
        self.first
    }

    /// The resources of a section by their keys; `resource` leaves one out by `None`.
    fn section<D, K: Ord, V>(
        &mut self,
        section: &str,
        items: &[D],
        max: u64,
        resource: impl Fn(&D) -> Result<Option<(K, V)>, Wrong>,
    ) -> BTreeMap<K, V> {
        let mut found = BTreeMap::new();
        if items.len() as u64 > max {
            let text = format!("there are {}, and {max} at most can be", items.len());
            self.push(|| Fault { pointer: format!("/{section}"), text });
            return found;
        }
        for (index, item) in items.iter().enumerate() {
            let fault = |Wrong { at, text }| Fault { pointer: format!("/{section}/{index}{at}"), text };
            match resource(item) {
                Ok(Some((key, value))) => {
                    if found.insert(key, value).is_some() {
                        self.push(|| fault(wrong("", "is there twice".to_owned())));
                    }
                }
                Ok(None) => {}
                Err(wrong) => self.push(|| fault(wrong)),
            }
        }
        found
    }
}

/// Where the resources that a fault of the routing names stand in the document.
struct Places<'d> {
    document: &'d Document,
    routes: HashMap<String, usize>,
}

impl<'d> Places<'d> {
    fn of(document: &'d Document) -> Self {
        let text = |put: &RoutePut| {
            let key = key_of(put).ok()?;
            // As the routing names it.
            Some(put.clone().route(key).ok()?.to_string())
        };
        let routes = document.routes.iter().enumerate().filter_map(|(index, put)| Some((text(put)?, index))).collect();
        Self { document, routes }
    }

    fn fault(&self, fault: &RoutingFault) -> Fault {
        let Document { gateways, groups, managed_domains, .. } = self.document;
        let at = |section: &str, index: Option<usize>, member: &dyn Display| match index {
            Some(index) => format!("/{section}/{index}{member}"),
            None => format!("/{section}"),
        };
        let gateway = |name: &Name| gateways.iter().position(|gateway| gateway.name == *name);
        let group = |name: &Name| groups.iter().position(|group| group.name == *name);
        let route = |text: &str| self.routes.get(text).copied();
        let managed = |domain: &Domain| managed_domains.iter().position(|managed| managed.domain == *domain);
        let pointer = match fault {
            RoutingFault::Gateway { gateway: name, fault } => {
                at("gateways", gateway(name), &format_args!("/{}", fault.field.replace('.', "/")))
            }
            RoutingFault::NameTaken(name) => at("groups", group(name), &"/name"),
            RoutingFault::GroupSize(name)
            | RoutingFault::MemberTwice { group: name, .. }
            | RoutingFault::NoMember { group: name, .. } => at("groups", group(name), &"/members"),
            RoutingFault::GroupDescription(name) => at("groups", group(name), &"/description"),
            RoutingFault::NoTarget { route: text, target } => at(
                "routes",
                route(text),
                &match target {
                    Target::Gateway(_) => "/gateway",
                    Target::Group(_) => "/group",
                },
            ),
            RoutingFault::NoManagedTarget { domain, .. } => at("managed_domains", managed(domain), &"/target"),
            RoutingFault::RouteTwice(text) | RoutingFault::Route(text, _) => at("routes", route(text), &""),
            RoutingFault::TooManyRoutes(_) => "/routes".to_owned(),
            RoutingFault::Managed(domain) => {
                let exact = |put: &RoutePut| put.domain.as_ref() == Some(&Pattern::Exact(domain.clone()));
                at("routes", self.document.routes.iter().position(exact), &"/domain")
            }
            RoutingFault::ManagedTwice(domain) => at("managed_domains", managed(domain), &""),
        };
        Fault { pointer, text: fault.to_string() }
    }
}
