//! Which revision changed each resource last. Every table of resources has it in a column.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction, params};

use super::{Change, Error, Kind, RowResult, Step};
use crate::{desired, revision::Versioned, routes::RouteKey};

/// Of the resources that are read whole, at one revision of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Revisions(BTreeMap<(Kind, String), u64>);

impl Revisions {
    /// 0 for what is not there, which is no revision.
    pub fn of(&self, kind: Kind, key: &impl ToString) -> u64 {
        self.0.get(&(kind, key.to_string())).copied().unwrap_or(0)
    }
}

/// What was there before has an unknown past; no later change has its number.
pub(super) fn revisions_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    for table in [
        "subscribers",
        "classes",
        "relays",
        "interfaces",
        "targets",
        "routes",
        "managed_domains",
        "certificates",
        "users",
    ] {
        transaction.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN revision INTEGER NOT NULL DEFAULT 1"))?;
    }
    Ok(())
}

pub(super) fn read_revisions(connection: &Connection) -> Result<Revisions, Error> {
    let mut revisions = BTreeMap::new();
    for (kind, sql) in [
        (Kind::Class, "SELECT name, revision FROM classes"),
        (Kind::Relay, "SELECT name, revision FROM relays"),
        (Kind::Interface, "SELECT name, revision FROM interfaces"),
        (Kind::Gateway, "SELECT name, revision FROM targets WHERE kind = 'gateway'"),
        (Kind::Group, "SELECT name, revision FROM targets WHERE kind = 'group'"),
        (Kind::Certificate, "SELECT name, revision FROM certificates"),
    ] {
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in rows {
            let (name, revision): (String, u64) = row?;
            revisions.insert((kind, name), revision);
        }
    }
    Ok(Revisions(revisions))
}

/// A row whose column of this name is its revision.
pub(super) fn versioned<T>(row: &Row<'_>, read: fn(&Row<'_>) -> RowResult<T>) -> RowResult<Versioned<T>> {
    let revision = row.get("revision")?;
    Ok(read(row)?.map(|resource| Versioned { resource, revision }))
}

/// What a change is about.
#[derive(Clone, Debug)]
pub(super) enum Resource<'c> {
    Subscriber(IpNet),
    Route(RouteKey),
    /// Any other, whose key is a name.
    Named(Kind, &'c str),
}

impl Resource<'_> {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Subscriber(_) => Kind::Subscriber,
            Self::Route(_) => Kind::Route,
            Self::Named(kind, _) => *kind,
        }
    }

    pub(super) fn key(&self) -> String {
        match self {
            Self::Subscriber(prefix) => prefix.to_string(),
            Self::Route(key) => key.to_string(),
            Self::Named(_, name) => (*name).to_owned(),
        }
    }
}

impl Change {
    /// The one resource that it is about; `None` where it is about several.
    pub(super) fn resource(&self) -> Option<Resource<'_>> {
        Some(match self {
            Self::PutFact { fact, .. } => Resource::Subscriber(fact.prefix),
            Self::DeleteFacts { filter, .. } => Resource::Subscriber(filter.prefix?),
            Self::PutClass(spec) => Resource::Named(Kind::Class, spec.name.as_str()),
            Self::DeleteClass(name) => Resource::Named(Kind::Class, name.as_str()),
            Self::PutRelay(spec) => Resource::Named(Kind::Relay, spec.name.as_str()),
            Self::DeleteRelay(name) => Resource::Named(Kind::Relay, name.as_str()),
            Self::PutGateway(gateway) => Resource::Named(Kind::Gateway, gateway.name.as_str()),
            Self::DeleteGateway(name) => Resource::Named(Kind::Gateway, name.as_str()),
            Self::PutGroup(group) => Resource::Named(Kind::Group, group.name.as_str()),
            Self::DeleteGroup(name) => Resource::Named(Kind::Group, name.as_str()),
            Self::PutManagedDomain(managed) => Resource::Named(Kind::ManagedDomain, managed.domain.as_str()),
            Self::DeleteManagedDomain(domain) => Resource::Named(Kind::ManagedDomain, domain.as_str()),
            Self::PutCertificate { certificate, .. } => Resource::Named(Kind::Certificate, certificate.name.as_str()),
            Self::DeleteCertificate(name) => Resource::Named(Kind::Certificate, name.as_str()),
            Self::PutUser(user) => Resource::Named(Kind::User, user.name.as_str()),
            Self::DeleteUser(name) => Resource::Named(Kind::User, name.as_str()),
            Self::PutInterface(interface) => Resource::Named(Kind::Interface, interface.name.as_str()),
            Self::DeleteInterface(name) => Resource::Named(Kind::Interface, name.as_str()),
            Self::PutRoute(route) => Resource::Route(RouteKey::of(route)),
            Self::DeleteRoute(key) => Resource::Route(key.clone()),
            Self::DeleteRoutes { .. }
            | Self::ImportRoutes { .. }
            | Self::ImportFacts(_)
            | Self::Configuration(_)
            | Self::Expire { .. } => return None,
        })
    }
}

impl Change {
    /// Of what it is about.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Expire { .. } => Kind::Subscriber,
            Self::DeleteRoutes { .. } | Self::ImportRoutes { .. } => Kind::Route,
            _ => self.resource().map_or(Kind::Subscriber, |resource| resource.kind()),
        }
    }
}

impl Step<'_> {
    /// The revision that changed it last; `None` where it is not there.
    pub(super) fn revision_of(&self, resource: &Resource<'_>) -> Result<Option<u64>, Error> {
        match resource {
            Resource::Subscriber(prefix) => self.revision(
                "SELECT revision FROM facts WHERE prefix = ?1 AND effective = 1",
                [desired::prefix_key(prefix)],
            ),
            Resource::Route(key) => self.revision(
                "SELECT revision FROM routes WHERE place = ?1 AND key = ?2",
                params![key.place(), key.to_string()],
            ),
            Resource::Named(kind, name) => self.revision(by_name(*kind), [name]),
        }
    }

    fn revision(&self, sql: &str, key: impl Params) -> Result<Option<u64>, Error> {
        Ok(self.connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
    }
}

const fn by_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Class => "SELECT revision FROM classes WHERE name = ?1",
        Kind::Relay => "SELECT revision FROM relays WHERE name = ?1",
        Kind::Interface => "SELECT revision FROM interfaces WHERE name = ?1",
        Kind::Gateway => "SELECT revision FROM targets WHERE kind = 'gateway' AND name = ?1",
        Kind::Group => "SELECT revision FROM targets WHERE kind = 'group' AND name = ?1",
        Kind::ManagedDomain => "SELECT revision FROM managed_domains WHERE domain = ?1",
        Kind::Certificate => "SELECT revision FROM certificates WHERE name = ?1",
        Kind::User => "SELECT revision FROM users WHERE name = ?1",
        Kind::Route | Kind::Subscriber | Kind::Commit => panic!("they have keys of their own"),
    }
}
