//! Where mail goes, in the store: gateways, groups, routes, managed domains.
//!
//! Each is kept as the JSON of its own type, beside the columns that refer to others, which are foreign keys. Gateways and groups share a table, since
//! they share their names. A password has a column of its own: its type does not serialise.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
};

use redirect_relay::{
    Domain,
    gateway::{Gateway, Group, Host, Name, Secret},
    route::{self, ManagedDomain, Pattern, Route, RouteDiff, Routing, RoutingFault, RoutingSpec, Target},
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Fault, Kind, Outcome, RowResult, Step, embedded_name, read_rows, revisions::versioned};
use crate::{
    desired::Tables,
    limits,
    revision::Versioned,
    routes::{self, RouteKey, reversed},
};

/// A page of the routes, in the order of [`RouteKey::place`].
#[derive(Clone, Debug, Default)]
pub struct RouteQuery {
    pub after: Option<RouteKey>,
    pub filter: RouteFilter,
    pub rows_max: u32,
}

/// Which routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this domain and of those below it.
    pub within: Option<Domain>,
    /// To this gateway or group.
    pub target: Option<Name>,
    /// On the condition of this class.
    pub class: Option<Name>,
    /// One of these.
    pub keys: Option<Vec<RouteKey>>,
}

/// Gateways in full, groups, routes and managed domains. A gateway that is there already goes on in cleartext, wherever it is, as it did.
pub(super) fn mail_routing(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "ALTER TABLE gateways RENAME TO targets;
         ALTER TABLE targets ADD COLUMN kind TEXT NOT NULL DEFAULT 'gateway';
         ALTER TABLE targets ADD COLUMN spec TEXT NOT NULL DEFAULT '';
         ALTER TABLE targets ADD COLUMN password TEXT;
         UPDATE targets SET spec = json_object('name', name, 'description', description, 'address', address, 'port', port,
             'encryption', 'none', 'status', status, 'allow_local', json('true'));
         ALTER TABLE targets DROP COLUMN address;
         ALTER TABLE targets DROP COLUMN port;
         ALTER TABLE targets DROP COLUMN description;
         ALTER TABLE targets DROP COLUMN status;

         CREATE TABLE group_members (
             group_name TEXT NOT NULL REFERENCES targets (name),
             gateway TEXT NOT NULL REFERENCES targets (name),
             PRIMARY KEY (group_name, gateway)
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX group_members_gateway ON group_members (gateway);

         -- See routes::RouteKey for place and key.
         CREATE TABLE routes (
             place TEXT NOT NULL,
             key TEXT NOT NULL,
             target TEXT NOT NULL REFERENCES targets (name),
             class TEXT REFERENCES classes (name),
             spec TEXT NOT NULL,
             PRIMARY KEY (place, key)
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX routes_target ON routes (target, place, key);
         CREATE INDEX routes_class ON routes (class, place, key) WHERE class IS NOT NULL;

         CREATE TABLE managed_domains (
             domain TEXT PRIMARY KEY,
             target TEXT REFERENCES targets (name),
             spec TEXT NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX managed_domains_target ON managed_domains (target) WHERE target IS NOT NULL;",
    )?;
    Ok(())
}

pub(super) fn read_gateways(connection: &Connection) -> Result<Vec<Gateway>, Error> {
    read_rows(connection, "SELECT spec, password FROM targets WHERE kind = 'gateway'", gateway_row)
}

pub(super) fn read_groups(connection: &Connection) -> Result<Vec<Group>, Error> {
    read_rows(connection, "SELECT spec FROM targets WHERE kind = 'group'", spec_row)
}

pub(super) fn read_routing(connection: &Connection, tables: &Tables) -> Result<Routing, Error> {
    // Each change was checked by itself; what does not go together all the same was not written by us.
    Routing::build(read_spec(connection, tables)?).map_err(|faults| corrupt_routing(&faults))
}

/// The routing `before`, with what the routes of these patterns are by now.
pub(super) fn reread_routing(
    connection: &Connection,
    tables: &Tables,
    before: &Routing,
    patterns: &BTreeSet<Pattern>,
) -> Result<Routing, Error> {
    let mut routing = before.clone();
    for pattern in patterns {
        let mut routes = read_routes_of(connection, pattern)?;
        if *pattern == Pattern::Default {
            routes = routes::spec(tables, routes, Vec::new()).routes;
        }
        routing = routing.with_routes(pattern.clone(), routes).map_err(|faults| corrupt_routing(&faults))?;
    }
    Ok(routing)
}

fn corrupt_routing(faults: &[RoutingFault]) -> Error {
    Error::Corrupt {
        what: "a routing",
        value: faults.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

fn read_routes_of(connection: &Connection, pattern: &Pattern) -> Result<Vec<Route>, Error> {
    let mut statement = connection.prepare_cached("SELECT spec FROM routes WHERE place = ?1 ORDER BY key")?;
    let rows = statement.query_map([routes::place(pattern)], spec_row)?;
    rows.map(|row| row?).collect()
}

pub(super) fn read_routes(connection: &Connection) -> Result<Vec<Route>, Error> {
    read_rows(connection, "SELECT spec FROM routes ORDER BY place, key", spec_row)
}

pub(super) fn select_route(connection: &Connection, key: &RouteKey) -> Result<Option<Versioned<Route>>, Error> {
    connection
        .prepare_cached("SELECT spec, revision FROM routes WHERE place = ?1 AND key = ?2")?
        .query_row(params![key.place(), key.to_string()], |row| versioned(row, spec_row))
        .optional()?
        .transpose()
}

pub(super) fn select_routes(connection: &Connection, query: &RouteQuery) -> Result<Vec<Versioned<Route>>, Error> {
    let RouteQuery { after, filter, rows_max } = query;
    let after = after.as_ref().map(|key| (key.place(), key.to_string()));
    let (place, key) = after.unwrap_or_default();
    let sql = format!(
        "SELECT spec, revision FROM routes WHERE (place, key) > (?1, ?2) AND {} ORDER BY place, key LIMIT ?3",
        RouteFilter::SQL.replace("?a", "?4").replace("?b", "?5").replace("?c", "?6")
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let (within, target, class) = filter.columns();
    let rows =
        statement.query_map(params![place, key, rows_max, within, target, class], |row| versioned(row, spec_row))?;
    rows.map(|row| row?).collect()
}

/// Of all pages.
pub(super) fn count_routes(connection: &Connection, filter: &RouteFilter) -> Result<u64, Error> {
    let clause = RouteFilter::SQL.replace("?a", "?1").replace("?b", "?2").replace("?c", "?3");
    let (within, target, class) = filter.columns();
    let mut statement = connection.prepare_cached(&format!("SELECT count(*) FROM routes WHERE {clause}"))?;
    Ok(statement.query_row(params![within, target, class], |row| row.get(0))?)
}

impl RouteFilter {
    /// Of `?a` (the domain's place), `?b` (target) and `?c` (class), null where any will do. '/' follows '.'.
    const SQL: &str = "(?a IS NULL OR place = ?a OR (place >= ?a || '.' AND place < ?a || '/')) \
                       AND (?b IS NULL OR target = ?b) AND (?c IS NULL OR class = ?c)";

    fn columns(&self) -> (Option<String>, Option<&str>, Option<&str>) {
        let within = self.within.as_ref().map(|domain| reversed(domain.as_str()));
        (within, self.target.as_ref().map(Name::as_str), self.class.as_ref().map(Name::as_str))
    }
}

pub(super) fn select_managed(
    connection: &Connection,
    domain: &Domain,
) -> Result<Option<Versioned<ManagedDomain>>, Error> {
    connection
        .prepare_cached("SELECT spec, revision FROM managed_domains WHERE domain = ?1")?
        .query_row([domain.as_str()], |row| versioned(row, spec_row))
        .optional()?
        .transpose()
}

pub(super) fn select_managed_page(
    connection: &Connection,
    after: Option<&Domain>,
    rows_max: u32,
) -> Result<Vec<Versioned<ManagedDomain>>, Error> {
    let sql = "SELECT spec, revision FROM managed_domains WHERE domain > ?1 ORDER BY domain LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let after = after.map_or("", Domain::as_str);
    let rows = statement.query_map(params![after, rows_max], |row| versioned(row, spec_row))?;
    rows.map(|row| row?).collect()
}

/// What becomes of the routes, if those of `wanted` are put; with `replace` the others go.
pub(super) fn diff(connection: &Connection, wanted: &[Route], replace: bool) -> Result<RouteDiff, Error> {
    let mut diff = route::diff(&read_routes(connection)?, wanted);
    if !replace {
        diff.removed.clear();
    }
    Ok(diff)
}

/// Everything that says where mail goes.
pub(super) fn read_spec(connection: &Connection, tables: &Tables) -> Result<RoutingSpec, Error> {
    let managed = read_rows(connection, "SELECT spec FROM managed_domains", spec_row)?;
    Ok(routes::spec(tables, read_routes(connection)?, managed))
}

fn gateway_row(row: &Row<'_>) -> RowResult<Gateway> {
    let password: Option<String> = row.get(1)?;
    Ok(spec_row::<Gateway>(row)?.map(|mut gateway| {
        if let (Some(account), Some(password)) = (&mut gateway.account, password) {
            account.password = Secret::new(password);
        }
        gateway
    }))
}

/// The JSON in the first column.
fn spec_row<T: DeserializeOwned>(row: &Row<'_>) -> RowResult<T> {
    let spec: String = row.get(0)?;
    Ok(from_json(&spec))
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt { what: "JSON", value: format!("{error}: {text}") })
}

pub(super) fn json(spec: &impl Serialize) -> String {
    serde_json::to_string(spec).expect("values of the configuration have JSON")
}

impl Step<'_> {
    pub(super) fn put_gateway(&self, gateway: &Gateway) -> Result<Outcome, Error> {
        if let Host::Address(ip) = gateway.address {
            let address = SocketAddr::new(ip, gateway.port);
            let embedded = self.relay(&embedded_name())?;
            if embedded.is_some_and(|relay| relay.spec.endpoints().any(|own| own == address)) {
                return Err(Error::OwnListener { address });
            }
        }
        let known = self.gateway(&gateway.name)?;
        let gateway = &with_known_password(gateway.clone(), known.as_ref())?;
        let faults = gateway.check();
        if !faults.is_empty() {
            let faults = faults
                .into_iter()
                .map(|fault| Fault { pointer: format!("/{}", fault.field.replace('.', "/")), text: fault.text });
            return Err(Error::Invalid { faults: faults.collect() });
        }
        let outcome = match known {
            Some(known) if known == *gateway => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
            None => {
                self.refuse_taken(Kind::Group, &gateway.name)?;
                let sql = "SELECT count(*) FROM targets WHERE kind = 'gateway'";
                self.refuse_beyond(Kind::Gateway, sql, limits::GATEWAYS_MAX)?;
                Outcome::Created
            }
        };
        let password = gateway.account.as_ref().map(|account| account.password.expose());
        self.write_target(&gateway.name, Kind::Gateway, &json(gateway), password)?;
        Ok(outcome)
    }

    pub(super) fn put_group(&self, group: &Group) -> Result<Outcome, Error> {
        self.check(RoutingSpec { groups: vec![group.clone()], ..RoutingSpec::default() })?;
        let outcome = match self.group(&group.name)? {
            Some(known) if known == *group => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
            None => {
                self.refuse_taken(Kind::Gateway, &group.name)?;
                self.refuse_beyond(
                    Kind::Group,
                    "SELECT count(*) FROM targets WHERE kind = 'group'",
                    limits::GROUPS_MAX,
                )?;
                Outcome::Created
            }
        };
        self.write_group(group)?;
        Ok(outcome)
    }

    pub(super) fn write_group(&self, group: &Group) -> Result<(), Error> {
        self.write_target(&group.name, Kind::Group, &json(group), None)?;
        self.connection.execute("DELETE FROM group_members WHERE group_name = ?1", [group.name.as_str()])?;
        for member in &group.members {
            self.connection.execute(
                "INSERT INTO group_members (group_name, gateway) VALUES (?1, ?2)",
                [group.name.as_str(), member.gateway.as_str()],
            )?;
        }
        Ok(())
    }

    /// A gateway or a group.
    pub(super) fn delete_target(&self, kind: Kind, name: &Name) -> Result<Outcome, Error> {
        if !self.has_target(kind, name)? {
            return Err(Error::NotFound { kind, name: name.to_string() });
        }
        let users = [
            ("class", "SELECT name, count(*) OVER () FROM classes WHERE gateway = ?1 ORDER BY name LIMIT 3"),
            (
                "group",
                "SELECT group_name, count(*) OVER () FROM group_members WHERE gateway = ?1 ORDER BY group_name LIMIT 3",
            ),
            ("route", "SELECT key, count(*) OVER () FROM routes WHERE target = ?1 ORDER BY place, key LIMIT 3"),
            (
                "managed domain",
                "SELECT domain, count(*) OVER () FROM managed_domains WHERE target = ?1 ORDER BY domain LIMIT 3",
            ),
        ];
        self.refuse_if_used(kind, name, &users)?;
        self.remove_target(name)?;
        Ok(Outcome::Deleted)
    }

    pub(super) fn remove_target(&self, name: &Name) -> Result<(), Error> {
        self.connection.execute("DELETE FROM group_members WHERE group_name = ?1", [name.as_str()])?;
        self.connection.execute("DELETE FROM targets WHERE name = ?1", [name.as_str()])?;
        Ok(())
    }

    /// `users`: what they are, and a query for the names of the first ones and the number of all.
    pub(super) fn refuse_if_used(&self, kind: Kind, name: &Name, users: &[(&str, &str)]) -> Result<(), Error> {
        let mut by = Vec::new();
        for (what, sql) in users {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let found = rows.collect::<Result<Vec<(String, u64)>, _>>()?;
            let Some(&(_, count)) = found.first() else { continue };
            let names: Vec<_> = found.into_iter().map(|(name, _)| name).collect();
            let more = count - names.len() as u64;
            let plural = if *what == "class" { "classes".to_owned() } else { format!("{what}s") };
            by.push(match (count, more) {
                (1, _) => format!("{what} {}", names[0]),
                (_, 0) => format!("{plural} {}", names.join(", ")),
                _ => format!("{plural} {} and {more} more", names.join(", ")),
            });
        }
        if by.is_empty() { Ok(()) } else { Err(Error::InUse { kind, name: name.to_string(), by: by.join("; ") }) }
    }

    pub(super) fn put_route(&self, route: &Route) -> Result<Outcome, Error> {
        let key = RouteKey::of(route);
        let known = select_route(self.connection, &key)?;
        if known.as_deref() == Some(route) {
            return Ok(Outcome::Unchanged);
        }
        let mut statement = self.connection.prepare_cached("SELECT spec FROM routes WHERE place = ?1")?;
        let others = statement.query_map([key.place()], spec_row)?;
        let mut routes = others.map(|row| row?).collect::<Result<Vec<Route>, _>>()?;
        routes.retain(|other| other.key() != route.key());
        routes.push(route.clone());
        let managed = match &route.domain {
            Pattern::Exact(domain) => select_managed(self.connection, domain)?,
            Pattern::Suffix(_) | Pattern::Default => None,
        };
        let managed = managed.into_iter().map(|managed| ManagedDomain { target: None, ..managed.resource }).collect();
        self.check(RoutingSpec { routes, managed, ..RoutingSpec::default() })?;
        if known.is_none() {
            self.refuse_beyond(Kind::Route, "SELECT count(*) FROM routes", limits::ROUTES_MAX)?;
        }
        self.write_route(&key, route)?;
        Ok(if known.is_some() { Outcome::Replaced } else { Outcome::Created })
    }

    pub(super) fn delete_route(&self, key: &RouteKey) -> Result<Outcome, Error> {
        if self.remove_route(key)? {
            Ok(Outcome::Deleted)
        } else {
            Err(Error::NotFound { kind: Kind::Route, name: key.to_string() })
        }
    }

    /// All routes that pass the filter, if there are `count` of them.
    pub(super) fn delete_routes(&self, filter: &RouteFilter, count: u64) -> Result<Outcome, Error> {
        let (within, target, class) = filter.columns();
        let clause = RouteFilter::SQL.replace("?a", "?1").replace("?b", "?2").replace("?c", "?3");
        let keys = {
            let sql = format!("SELECT place, key FROM routes WHERE {clause}");
            let mut statement = self.connection.prepare_cached(&sql)?;
            let rows = statement
                .query_map(params![within, target, class], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
            rows.collect::<Result<Vec<(String, String)>, _>>()?
        };
        let wanted = filter
            .keys
            .as_ref()
            .map(|keys| keys.iter().map(|key| (key.place(), key.to_string())).collect::<HashSet<_>>());
        let found: Vec<_> =
            keys.into_iter().filter(|key| wanted.as_ref().is_none_or(|wanted| wanted.contains(key))).collect();
        if found.len() as u64 != count {
            return Err(Error::Conflict {
                text: format!(
                    "{} routes are meant, not {count}; look at them, and give the number that you expect",
                    found.len()
                ),
            });
        }
        let mut statement = self.connection.prepare_cached("DELETE FROM routes WHERE place = ?1 AND key = ?2")?;
        for (place, key) in &found {
            statement.execute([place, key])?;
        }
        Ok(if found.is_empty() { Outcome::Unchanged } else { Outcome::Removed(found.len()) })
    }

    /// All of `routes`, or none of them.
    pub(super) fn import_routes(&self, wanted: &[Route], replace: bool) -> Result<Outcome, Error> {
        let diff = diff(self.connection, wanted, replace)?;
        if diff.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        for route in &diff.removed {
            self.remove_route(&RouteKey::of(route))?;
        }
        let put: Vec<_> = diff.added.iter().chain(diff.changed.iter().map(|(_, after)| after)).collect();
        if !put.is_empty() {
            for route in put {
                self.write_route(&RouteKey::of(route), route)?;
            }
            let managed = read_rows(self.connection, "SELECT spec FROM managed_domains", spec_row)?;
            self.check(RoutingSpec { routes: read_routes(self.connection)?, managed, ..RoutingSpec::default() })?;
            let count: u64 = self.connection.query_row("SELECT count(*) FROM routes", [], |row| row.get(0))?;
            if count > limits::ROUTES_MAX {
                return Err(Error::TooMany { kind: Kind::Route, max: limits::ROUTES_MAX });
            }
        }
        Ok(Outcome::Replaced)
    }

    pub(super) fn put_managed_domain(&self, managed: &ManagedDomain) -> Result<Outcome, Error> {
        let known = select_managed(self.connection, &managed.domain)?;
        if known.as_deref() == Some(managed) {
            return Ok(Outcome::Unchanged);
        }
        let place = reversed(managed.domain.as_str());
        let routes: u64 =
            self.connection.query_row("SELECT count(*) FROM routes WHERE place = ?1", [place], |row| row.get(0))?;
        if routes > 0 {
            let domain = &managed.domain;
            return Err(Error::Conflict {
                text: format!(
                    "{domain} has {routes} routes of its own, and a managed domain has none; delete them first, and give the managed domain their gateway"
                ),
            });
        }
        self.check(RoutingSpec { managed: vec![managed.clone()], ..RoutingSpec::default() })?;
        if known.is_none() {
            let sql = "SELECT count(*) FROM managed_domains";
            self.refuse_beyond(Kind::ManagedDomain, sql, limits::MANAGED_DOMAINS_MAX)?;
        }
        self.write_managed_domain(managed)?;
        Ok(if known.is_some() { Outcome::Replaced } else { Outcome::Created })
    }

    pub(super) fn write_managed_domain(&self, managed: &ManagedDomain) -> Result<(), Error> {
        let target = managed.target.as_ref().map(|target| target_name(target).as_str());
        self.connection
            .prepare_cached(
                "INSERT INTO managed_domains (domain, target, spec, revision) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (domain) DO UPDATE SET target = excluded.target, spec = excluded.spec, revision = excluded.revision",
            )?
            .execute(params![managed.domain.as_str(), target, json(managed), self.next_revision])?;
        Ok(())
    }

    pub(super) fn delete_managed_domain(&self, domain: &Domain) -> Result<Outcome, Error> {
        match self.connection.execute("DELETE FROM managed_domains WHERE domain = ?1", [domain.as_str()])? {
            0 => Err(Error::NotFound { kind: Kind::ManagedDomain, name: domain.to_string() }),
            _ => Ok(Outcome::Deleted),
        }
    }

    pub(super) fn has_target(&self, kind: Kind, name: &Name) -> Result<bool, Error> {
        let sql = "SELECT count(*) FROM targets WHERE name = ?1 AND kind = ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([name.as_str(), kind.name()], |row| row.get::<_, u64>(0))? > 0)
    }

    fn gateway(&self, name: &Name) -> Result<Option<Gateway>, Error> {
        let sql = "SELECT spec, password FROM targets WHERE name = ?1 AND kind = 'gateway'";
        self.connection.prepare_cached(sql)?.query_row([name.as_str()], gateway_row).optional()?.transpose()
    }

    fn group(&self, name: &Name) -> Result<Option<Group>, Error> {
        let sql = "SELECT spec FROM targets WHERE name = ?1 AND kind = 'group'";
        self.connection.prepare_cached(sql)?.query_row([name.as_str()], spec_row).optional()?.transpose()
    }

    fn refuse_taken(&self, kind: Kind, name: &Name) -> Result<(), Error> {
        if self.has_target(kind, name)? {
            let text = format!("{name} is the name of a {}; give another one", kind.name());
            return Err(Error::Conflict { text });
        }
        Ok(())
    }

    fn write_target(&self, name: &Name, kind: Kind, spec: &str, password: Option<&str>) -> Result<(), Error> {
        self.connection.execute(
            "INSERT INTO targets (name, kind, spec, password, revision) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, password = excluded.password, revision = excluded.revision",
            params![name.as_str(), kind.name(), spec, password, self.next_revision],
        )?;
        Ok(())
    }

    pub(super) fn write_route(&self, key: &RouteKey, route: &Route) -> Result<(), Error> {
        let target = target_name(&route.target);
        let class = route.conditions.class.as_ref();
        let kind = match route.target {
            Target::Gateway(_) => Kind::Gateway,
            Target::Group(_) => Kind::Group,
        };
        if !self.has_target(kind, target)? {
            let pointer = format!("/{}", kind.name());
            return Err(Error::NoSuchReference { pointer, kind, name: target.to_string() });
        }
        if let Some(class) = class.filter(|class| !matches!(self.class_id(class), Ok(Some(_)))) {
            let pointer = "/class".to_owned();
            return Err(Error::NoSuchReference { pointer, kind: Kind::Class, name: class.to_string() });
        }
        self.connection
            .prepare_cached(
                "INSERT INTO routes (place, key, target, class, spec, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (place, key) DO UPDATE SET target = excluded.target, spec = excluded.spec, revision = excluded.revision",
            )?
            .execute(params![
                key.place(),
                key.to_string(),
                target.as_str(),
                class.map(Name::as_str),
                json(route),
                self.next_revision
            ])?;
        Ok(())
    }

    pub(super) fn remove_route(&self, key: &RouteKey) -> Result<bool, Error> {
        let mut statement = self.connection.prepare_cached("DELETE FROM routes WHERE place = ?1 AND key = ?2")?;
        Ok(statement.execute([key.place(), key.to_string()])? > 0)
    }

    /// Whether `part` goes together with the gateways and groups that there are.
    fn check(&self, part: RoutingSpec) -> Result<(), Error> {
        let mut spec = part;
        let replaced: Vec<_> = spec.groups.iter().map(|group| group.name.clone()).collect();
        spec.gateways = read_gateways(self.connection)?;
        let groups = read_groups(self.connection)?;
        spec.groups.extend(groups.into_iter().filter(|group| !replaced.contains(&group.name)));
        match Routing::build(spec) {
            Ok(_) => Ok(()),
            Err(faults) => Err(faults.into_iter().next().map_or(Error::Stopped, refusal)),
        }
    }
}

/// A password that is not said stays what it was, for the same user.
pub(crate) fn with_known_password(mut gateway: Gateway, known: Option<&Gateway>) -> Result<Gateway, Error> {
    if let Some(account) = gateway.account.as_mut().filter(|account| account.password.expose().is_empty()) {
        let known = known.and_then(|known| known.account.as_ref()).filter(|known| known.username == account.username);
        let Some(known) = known else {
            let text = format!("no password is known for {:?}; give one", account.username);
            return Err(Error::Invalid { faults: vec![Fault { pointer: "/account/password".to_owned(), text }] });
        };
        account.password = known.password.clone();
    }
    Ok(gateway)
}

const fn target_name(target: &Target) -> &Name {
    match target {
        Target::Gateway(name) | Target::Group(name) => name,
    }
}

fn refusal(fault: RoutingFault) -> Error {
    let invalid =
        |pointer: &str, text: String| Error::Invalid { faults: vec![Fault { pointer: pointer.to_owned(), text }] };
    let no_target = |target: Target, pointer: &str| {
        let (kind, name) = match target {
            Target::Gateway(name) => (Kind::Gateway, name),
            Target::Group(name) => (Kind::Group, name),
        };
        let pointer = format!("{pointer}/{}", kind.name());
        Error::NoSuchReference { pointer, kind, name: name.to_string() }
    };
    let text = fault.to_string();
    match fault {
        RoutingFault::GroupDescription(_) => invalid("/description", text),
        RoutingFault::GroupSize(_) | RoutingFault::MemberTwice { .. } => invalid("/members", text),
        RoutingFault::NoMember { gateway, .. } => {
            let pointer = "/members".to_owned();
            Error::NoSuchReference { pointer, kind: Kind::Gateway, name: gateway.to_string() }
        }
        RoutingFault::NoTarget { target, .. } => no_target(target, ""),
        RoutingFault::NoManagedTarget { target, .. } => no_target(target, "/target"),
        RoutingFault::Managed(domain) => Error::Conflict {
            text: format!(
                "{domain} is a managed domain and cannot be a route; give the managed domain a gateway of its own, or delete it first"
            ),
        },
        RoutingFault::NameTaken(_) | RoutingFault::TooManyRoutes(_) => Error::Conflict { text },
        RoutingFault::Gateway { .. }
        | RoutingFault::RouteTwice(_)
        | RoutingFault::Route(..)
        | RoutingFault::ManagedTwice(_) => invalid("", text),
    }
}
