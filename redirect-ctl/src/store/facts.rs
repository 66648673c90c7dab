//! Subscribers in the store: a row for each fact, of which one of each prefix is marked as the effective one.
//!
//! The mark is kept by whoever changes a fact ([`Step::settle`]), so that the reader of the kernel's view finds prefixes and classes in one scan.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, params_from_iter, types::Value};

use super::{
    ChangeAction, Error, Fill, Kind, Outcome, Step, changes, lock_unpoisoned, mail, prefix_column, revisions::Resource,
    word,
};
use crate::{
    dataplane::ClassId,
    desired::{self, Name, Origin},
    limits,
    subscribers::{Fact, Known, Labels, Login, Mac, Priorities, Priority, Session, Subscriber, extension_is_due},
};

/// One row for each source of a prefix instead of one for the prefix.
pub(super) fn facts_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(&format!(
        "-- The key is family, address and length as bytes (see desired::prefix_key), and who says so.
         CREATE TABLE facts (
             prefix BLOB NOT NULL,
             source TEXT NOT NULL,
             class INTEGER NOT NULL REFERENCES classes (id),
             effective INTEGER NOT NULL,
             revision INTEGER NOT NULL,
             priority INTEGER,
             expires_s INTEGER,
             session TEXT,
             user TEXT,
             mac BLOB,
             labels TEXT,
             PRIMARY KEY (prefix, source)
         ) STRICT, WITHOUT ROWID;
         INSERT INTO facts (prefix, source, class, effective, revision, expires_s)
             SELECT prefix, origin, class, 1, (SELECT revision FROM state), expires_s FROM subscribers;
         DROP TABLE subscribers;
         {INDEXES}

         -- Priorities of the sources by which the effective facts were chosen.
         CREATE TABLE priorities (source TEXT PRIMARY KEY, priority INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    ))?;
    Ok(())
}

pub(super) const NO_INDEXES: &str = "
    DROP INDEX facts_class; DROP INDEX facts_expires; DROP INDEX facts_session; DROP INDEX facts_user; DROP INDEX facts_mac;";

pub(super) const INDEXES: &str = "
    CREATE INDEX facts_class ON facts (class, effective, prefix);
    CREATE INDEX facts_expires ON facts (expires_s) WHERE expires_s IS NOT NULL;
    CREATE INDEX facts_session ON facts (session) WHERE session IS NOT NULL;
    CREATE INDEX facts_user ON facts (user) WHERE user IS NOT NULL;
    CREATE INDEX facts_mac ON facts (mac) WHERE mac IS NOT NULL;";

pub(super) const COLUMNS: &str =
    "prefix, source, class, effective, revision, priority, expires_s, session, user, mac, labels";

const INSERT: &str = "INSERT INTO facts
    (prefix, source, class, effective, revision, priority, expires_s, session, user, mac, labels)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
const REPLACE: &str = "INSERT OR REPLACE INTO facts
    (prefix, source, class, effective, revision, priority, expires_s, session, user, mac, labels)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// A row without its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) source: Origin,
    pub(super) class: ClassId,
    pub(super) effective: bool,
    pub(super) revision: u64,
    pub(super) priority: Option<u16>,
    pub(super) expires_s: Option<i64>,
    pub(super) session: Option<String>,
    pub(super) user: Option<String>,
    pub(super) mac: Option<[u8; 6]>,
    /// As JSON.
    pub(super) labels: Option<String>,
}

impl Stored {
    fn new(fact: &Fact, class: ClassId) -> Self {
        Self {
            source: fact.source,
            class,
            effective: false,
            revision: 0,
            priority: fact.priority.map(Priority::get),
            expires_s: fact.expires_s,
            session: fact.session.as_ref().map(|session| session.as_str().to_owned()),
            user: fact.user.as_ref().map(|user| user.as_str().to_owned()),
            mac: fact.mac.map(|mac| mac.0),
            labels: (!fact.labels.is_empty()).then(|| mail::json(&fact.labels)),
        }
    }

    pub(super) fn read(row: &Row<'_>) -> Result<(IpNet, Self), Error> {
        Ok((
            prefix_column(row, 0)?,
            Self {
                source: word("a source", row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?,
                class: row.get(2)?,
                effective: row.get(3)?,
                revision: row.get(4)?,
                priority: row.get(5)?,
                expires_s: row.get(6)?,
                session: row.get(7)?,
                user: row.get(8)?,
                mac: row.get(9)?,
                labels: row.get(10)?,
            },
        ))
    }

    /// Whether both say the same, whenever they said it.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let said = |stored: &Self| Self { effective: false, revision: 0, ..stored.clone() };
        self.class == other.class && said(self) == said(other)
    }

    /// With the names of classes instead of their numbers.
    pub(super) fn known(self, prefix: IpNet, names: &ClassNames) -> Result<Known, Error> {
        let class = names.get(&self.class).cloned();
        let corrupt = |what| move || Error::Corrupt { what, value: prefix.to_string() };
        let priority = self.priority.map(|priority| Priority::try_from(i64::from(priority))).transpose();
        let labels = self.labels.as_deref().map(serde_json::from_str::<Labels>).transpose();
        Ok(Known {
            fact: Fact {
                prefix,
                source: self.source,
                class: class.ok_or_else(corrupt("a class that is none"))?,
                priority: priority.map_err(|_| corrupt("a priority")())?,
                expires_s: self.expires_s,
                session: self.session.as_deref().map(|text| word::<Session>("a session", text)).transpose()?,
                user: self.user.as_deref().map(|text| word::<Login>("a user", text)).transpose()?,
                mac: self.mac.map(Mac),
                labels: labels.map_err(|_| corrupt("labels")())?.unwrap_or_default(),
            },
            effective: self.effective,
            revision: self.revision,
        })
    }
}

/// Names of the classes by their numbers.
pub(super) type ClassNames = HashMap<ClassId, Name>;

pub(super) fn class_names(connection: &Connection) -> Result<ClassNames, Error> {
    let mut statement = connection.prepare_cached("SELECT id, name FROM classes")?;
    let mut rows = statement.query([])?;
    let mut names = HashMap::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        names.insert(row.get(0)?, word("a class name", &name)?);
    }
    Ok(names)
}

/// A fact on its way to a file.
#[derive(Clone, Copy, Debug)]
pub struct FactLine<'a> {
    pub prefix: IpNet,
    pub class: &'a str,
    pub source: Origin,
    pub revision: u64,
    pub priority: Option<u16>,
    pub expires_s: Option<i64>,
    pub session: Option<&'a str>,
    pub user: Option<&'a str>,
    pub mac: Option<Mac>,
    /// As JSON.
    pub labels: Option<&'a str>,
}

impl<'a> FactLine<'a> {
    pub(super) fn new(prefix: IpNet, class: &'a str, stored: &'a Stored) -> Self {
        Self {
            prefix,
            class,
            source: stored.source,
            revision: stored.revision,
            priority: stored.priority,
            expires_s: stored.expires_s,
            session: stored.session.as_deref(),
            user: stored.user.as_deref(),
            mac: stored.mac.map(Mac),
            labels: stored.labels.as_deref(),
        }
    }
}

/// Whoever writes facts to a file.
pub trait TakeFacts {
    /// Whether it wants another one.
    fn take(&mut self, line: &FactLine<'_>) -> bool;

    /// There are no more. Not called where it wanted no more.
    fn end(self);
}

/// The facts of a prefix.
pub(super) fn of_prefix(connection: &Connection, prefix: &IpNet) -> Result<Vec<Stored>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM facts WHERE prefix = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([desired::prefix_key(prefix)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Stored::read(row)?.1);
    }
    Ok(found)
}

/// Which facts a request means. The members that are given must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactFilter {
    pub prefix: Option<IpNet>,
    pub within: Option<IpNet>,
    pub source: Option<Origin>,
    pub class: Option<ClassId>,
    pub session: Option<Session>,
    pub user: Option<Login>,
    pub mac: Option<Mac>,
    pub labels: Labels,
    /// Those that expire before this time, in seconds since the epoch.
    pub expires_before_s: Option<i64>,
    /// Those that changed after this revision.
    pub changed_since: Option<u64>,
}

impl FactFilter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As conditions of SQL, each behind an AND, and their values.
    fn sql(&self) -> (String, Vec<Value>) {
        let (mut sql, mut values) = (String::new(), Vec::new());
        let mut and = |condition: &str, value: Value| {
            values.push(value);
            sql.push_str(" AND ");
            sql.push_str(&condition.replace('?', &format!("?{}", values.len())));
        };
        if let Some(prefix) = &self.prefix {
            and("prefix = ?", desired::prefix_key(prefix).into());
        }
        if let Some(within) = &self.within {
            let (first, last) = desired::keys_within(within);
            and("prefix >= ?", first.into());
            and("prefix <= ?", last.into());
        }
        if let Some(source) = self.source {
            and("source = ?", source.name().to_owned().into());
        }
        if let Some(class) = self.class {
            and("class = ?", i64::from(class).into());
        }
        if let Some(session) = &self.session {
            and("session = ?", session.as_str().to_owned().into());
        }
        if let Some(user) = &self.user {
            and("user = ?", user.as_str().to_owned().into());
        }
        if let Some(mac) = self.mac {
            and("mac = ?", mac.0.to_vec().into());
        }
        for (name, text) in self.labels.iter() {
            // The name is of letters, digits, '_', '-' and '.' only.
            and(&format!("labels ->> '$.\"{name}\"' = ?"), text.to_owned().into());
        }
        if let Some(expires_before_s) = self.expires_before_s {
            and("expires_s < ?", expires_before_s.into());
        }
        if let Some(revision) = self.changed_since {
            and("revision > ?", i64::try_from(revision).unwrap_or(i64::MAX).into());
        }
        (sql, values)
    }
}

/// Facts in the order of their prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactQuery {
    /// Only prefixes behind this one.
    pub after: Option<IpNet>,
    pub filter: FactFilter,
    /// Whether those that are outranked are among them.
    pub contenders: bool,
    /// `None` for all.
    pub rows_max: Option<u32>,
}

impl FactQuery {
    fn select(&self, what: &str, order: &str) -> (String, Vec<Value>) {
        let (mut conditions, mut values) = self.filter.sql();
        if !self.contenders {
            conditions.push_str(" AND effective = 1");
        }
        if let Some(after) = &self.after {
            values.push(desired::prefix_key(after).into());
            conditions = format!("{conditions} AND prefix > ?{}", values.len());
        }
        (format!("SELECT {what} FROM facts WHERE 1{conditions}{order}"), values)
    }

    /// Hands over each fact as it is found.
    pub(super) fn each(
        &self,
        connection: &Connection,
        mut found: impl FnMut(IpNet, Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.each_while(connection, |prefix, stored| found(prefix, stored).map(|()| true))
    }

    /// The same for as long as `found` says so.
    pub(super) fn each_while(
        &self,
        connection: &Connection,
        mut found: impl FnMut(IpNet, Stored) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let limit = self.rows_max.map(|rows_max| format!(" LIMIT {rows_max}")).unwrap_or_default();
        let (sql, values) = self.select(COLUMNS, &format!(" ORDER BY prefix, source{limit}"));
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            let (prefix, stored) = Stored::read(row)?;
            if !found(prefix, stored)? {
                break;
            }
        }
        Ok(())
    }

    /// How many there are, whatever `after` and `rows_max` say.
    pub(super) fn count(&self, connection: &Connection) -> Result<u64, Error> {
        let (sql, values) = Self { after: None, ..self.clone() }.select("count(*)", "");
        Ok(connection.prepare_cached(&sql)?.query_row(params_from_iter(values), |row| row.get(0))?)
    }
}

/// Lives of facts that were extended and not written yet: see [`extension_is_due`]. Shared with readers.
#[derive(Clone, Default)]
pub(super) struct Extensions {
    expires_s: Arc<Mutex<HashMap<(IpNet, Origin), i64>>>,
}

impl Extensions {
    /// Whether there was room.
    fn note(&self, prefix: IpNet, source: Origin, expires_s: i64) -> bool {
        let mut known = lock_unpoisoned(&self.expires_s);
        if known.len() >= limits::EXTENSIONS_MAX && !known.contains_key(&(prefix, source)) {
            return false;
        }
        known.insert((prefix, source), expires_s);
        true
    }

    fn forget(&self, prefix: IpNet, source: Origin) {
        lock_unpoisoned(&self.expires_s).remove(&(prefix, source));
    }

    fn get(&self, prefix: IpNet, source: Origin) -> Option<i64> {
        lock_unpoisoned(&self.expires_s).get(&(prefix, source)).copied()
    }

    /// Corrects when a fact expires.
    pub(super) fn lay_over(&self, prefix: IpNet, stored: &mut Stored) {
        if stored.expires_s.is_some()
            && let Some(expires_s) = self.get(prefix, stored.source)
        {
            stored.expires_s = Some(expires_s);
        }
    }

    /// Writes all of them, for the end.
    pub(super) fn write(&self, connection: &mut Connection) -> Result<(), Error> {
        let known = std::mem::take(&mut *lock_unpoisoned(&self.expires_s));
        if known.is_empty() {
            return Ok(());
        }
        let transaction = connection.transaction()?;
        for ((prefix, source), expires_s) in known {
            write_expiry(&transaction, &prefix, source, expires_s)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn write_expiry(connection: &Connection, prefix: &IpNet, source: Origin, expires_s: i64) -> Result<(), Error> {
    let sql = "UPDATE facts SET expires_s = ?3 WHERE prefix = ?1 AND source = ?2";
    connection.prepare_cached(sql)?.execute(params![desired::prefix_key(prefix), source.name(), expires_s])?;
    Ok(())
}

/// Facts as subscribers: neighbours of one prefix are one, the effective fact first and the others by rank.
pub(super) fn subscriber(
    connection: &Connection,
    names: &ClassNames,
    priorities: Priorities,
    extensions: &Extensions,
    prefix: IpNet,
) -> Result<Option<Subscriber>, Error> {
    let mut stored = of_prefix(connection, &prefix)?;
    let rank = |stored: &Stored| priorities.rank(stored.source, stored.priority, stored.revision);
    stored.sort_by_key(|stored| std::cmp::Reverse((stored.effective, rank(stored))));
    let facts = stored.into_iter().map(|mut stored| {
        extensions.lay_over(prefix, &mut stored);
        stored.known(prefix, names)
    });
    let facts = facts.collect::<Result<Vec<_>, _>>()?;
    Ok((!facts.is_empty()).then_some(Subscriber { facts }))
}

/// Chooses anew which facts are effective, if the priorities of the sources are others than those by which they were chosen.
pub(super) fn adopt_priorities(connection: &mut Connection, priorities: Priorities) -> Result<(), Error> {
    const SOURCES: [Origin; 4] = [Origin::Operator, Origin::Portal, Origin::Radius, Origin::Dhcp];
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut known = true;
    for source in SOURCES {
        let sql = "SELECT priority FROM priorities WHERE source = ?1";
        let found: Option<u16> = transaction.query_row(sql, [source.name()], |row| row.get(0)).optional()?;
        known &= found == Some(priorities.of(source));
        let sql = "INSERT OR REPLACE INTO priorities (source, priority) VALUES (?1, ?2)";
        transaction.execute(sql, params![source.name(), priorities.of(source)])?;
    }
    if known {
        return Ok(());
    }
    let contended = {
        let mut statement = transaction.prepare("SELECT prefix FROM facts GROUP BY prefix HAVING count(*) > 1")?;
        let mut rows = statement.query([])?;
        let mut contended = Vec::new();
        while let Some(row) = rows.next()? {
            contended.push(prefix_column(row, 0)?);
        }
        contended
    };
    let mut changed = false;
    for prefix in contended {
        let facts = of_prefix(&transaction, &prefix)?;
        let best = facts.iter().max_by_key(|stored| priorities.rank(stored.source, stored.priority, stored.revision));
        let best = best.map(|stored| stored.source);
        for stored in facts.iter().filter(|stored| stored.effective != (Some(stored.source) == best)) {
            let sql = "UPDATE facts SET effective = ?3, revision = (SELECT revision + 1 FROM state)
                       WHERE prefix = ?1 AND source = ?2";
            let key = desired::prefix_key(&prefix);
            transaction.execute(sql, params![key, stored.source.name(), !stored.effective])?;
            changed = true;
        }
    }
    if changed {
        transaction.execute("UPDATE state SET revision = revision + 1", [])?;
    }
    transaction.commit()?;
    Ok(())
}

impl Step<'_> {
    pub(super) fn put_fact(&mut self, fact: &Fact, now_s: i64) -> Result<Outcome, Error> {
        let class = self.known_class(&fact.class)?;
        let stored = Stored::new(fact, class);
        let before = of_prefix(self.connection, &fact.prefix)?;
        let known = before.iter().find(|known| known.source == fact.source);
        if let Some(known) = known
            && self.repeats(fact.prefix, known, &stored, now_s)?
        {
            return Ok(Outcome::Unchanged);
        }
        let outcome = if before.is_empty() { Outcome::Created } else { Outcome::Replaced };
        let mut after: Vec<_> = before.iter().filter(|known| known.source != fact.source).cloned().collect();
        after.push(stored);
        self.settle(fact.prefix, &before, after)?;
        Ok(outcome)
    }

    pub(super) fn known_class(&self, name: &Name) -> Result<ClassId, Error> {
        self.class_id(name)?.ok_or_else(|| Error::NoSuchReference {
            pointer: "/class".to_owned(),
            kind: Kind::Class,
            name: name.to_string(),
        })
    }

    /// Whether a source says again what it said; that it holds for longer is noted, and written once that is due.
    fn repeats(&self, prefix: IpNet, known: &Stored, said: &Stored, now_s: i64) -> Result<bool, Error> {
        if !known.agrees(&Stored { expires_s: known.expires_s, ..said.clone() }) {
            return Ok(false);
        }
        match (known.expires_s, said.expires_s) {
            (None, None) => Ok(true),
            (Some(written_s), Some(expires_s)) if expires_s >= written_s => {
                let is_due = extension_is_due(written_s, expires_s, now_s);
                if is_due || !self.extensions.note(prefix, said.source, expires_s) {
                    self.extensions.forget(prefix, said.source);
                    write_expiry(self.connection, &prefix, said.source, expires_s)?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Brings the facts of a prefix from `before` to `after`, in which those that stay are as they were, and chooses the effective one.
    pub(super) fn settle(&mut self, prefix: IpNet, before: &[Stored], mut after: Vec<Stored>) -> Result<(), Error> {
        let revision = self.next_revision;
        for stored in &mut after {
            if !before.contains(stored) {
                stored.revision = revision;
            }
        }
        let rank = |stored: &Stored| self.priorities.rank(stored.source, stored.priority, stored.revision);
        let best = after.iter().max_by_key(|stored| rank(stored)).map(|stored| stored.source);
        for stored in &mut after {
            stored.effective = Some(stored.source) == best;
            if stored.effective {
                stored.revision = revision;
            }
        }
        let class = |facts: &[Stored]| facts.iter().find(|stored| stored.effective).map(|stored| stored.class);
        if class(before) != class(&after) {
            self.touched.note(revision, prefix);
        }
        let table = Fill::table(&prefix);
        match (before.is_empty(), after.is_empty()) {
            (true, false) => {
                self.fill.used[table] += 1;
                if self.fill.used[table] > self.subscribers_max {
                    let table = Fill::TABLES[table];
                    return Err(Error::Full { table, max: self.subscribers_max, file: self.file.to_owned() });
                }
            }
            (false, true) => self.fill.used[table] -= 1,
            (true, true) | (false, false) => {}
        }
        let key = desired::prefix_key(&prefix);
        for gone in before.iter().filter(|known| after.iter().all(|stored| stored.source != known.source)) {
            self.extensions.forget(prefix, gone.source);
            self.connection
                .prepare_cached("DELETE FROM facts WHERE prefix = ?1 AND source = ?2")?
                .execute(params![key, gone.source.name()])?;
        }
        // What is new need not be looked for, which counts where a million come.
        let insert = if before.is_empty() { INSERT } else { REPLACE };
        for stored in after.iter().filter(|stored| !before.contains(stored)) {
            if !before.is_empty() {
                self.extensions.forget(prefix, stored.source);
            }
            self.connection.prepare_cached(insert)?.execute(params![
                key,
                stored.source.name(),
                stored.class,
                stored.effective,
                stored.revision,
                stored.priority,
                stored.expires_s,
                stored.session,
                stored.user,
                stored.mac,
                stored.labels
            ])?;
        }
        Ok(())
    }

    /// Deletes the facts that pass the filter, if there are `count`, where that is given.
    pub(super) fn delete_facts(&mut self, filter: &FactFilter, count: Option<u64>) -> Result<Outcome, Error> {
        let query = FactQuery { filter: filter.clone(), contenders: true, ..FactQuery::default() };
        let mut found: Vec<(IpNet, Origin)> = Vec::new();
        query.each(self.connection, |prefix, stored| {
            found.push((prefix, stored.source));
            Ok(())
        })?;
        if let Some(prefix) = filter.prefix.filter(|_| found.is_empty()) {
            let mut name = prefix.to_string();
            name.extend(filter.source.map(|source| format!(" of {source}")));
            name.extend(filter.session.as_ref().map(|session| format!(" with session {session}")));
            return Err(Error::NotFound { kind: Kind::Subscriber, name });
        }
        if let Some(count) = count.filter(|count| *count != found.len() as u64) {
            let text = format!("{} facts match, not {count}; nothing was deleted, look again", found.len());
            return Err(Error::Conflict { text });
        }
        for group in found.chunk_by(|one, other| one.0 == other.0) {
            let sources: BTreeSet<_> = group.iter().map(|(_, source)| *source).collect();
            self.remove(group[0].0, &sources)?;
        }
        Ok(if found.is_empty() { Outcome::Unchanged } else { Outcome::Removed(found.len()) })
    }

    /// Takes away what these sources say of a prefix.
    fn remove(&mut self, prefix: IpNet, sources: &BTreeSet<Origin>) -> Result<(), Error> {
        let before = of_prefix(self.connection, &prefix)?;
        let after = before.iter().filter(|stored| !sources.contains(&stored.source)).cloned().collect();
        self.settle(prefix, &before, after)
    }

    pub(super) fn expire(&mut self, now_s: i64) -> Result<Outcome, Error> {
        let due = {
            let sql = "SELECT prefix, source, expires_s FROM facts WHERE expires_s <= ?1 ORDER BY expires_s LIMIT ?2";
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![now_s, limits::EXPIRY_BATCH_MAX])?;
            let mut due = Vec::new();
            while let Some(row) = rows.next()? {
                let source: String = row.get(1)?;
                due.push((prefix_column(row, 0)?, word::<Origin>("a source", &source)?));
            }
            due
        };
        let mut expired = 0;
        for (prefix, source) in due {
            match self.extensions.get(prefix, source) {
                Some(expires_s) if expires_s > now_s => {
                    write_expiry(self.connection, &prefix, source, expires_s)?;
                    self.extensions.forget(prefix, source);
                }
                _ => {
                    self.remove(prefix, &BTreeSet::from([source]))?;
                    let stays = self.revision_of(&Resource::Subscriber(prefix))?.is_some();
                    let action = if stays { ChangeAction::Put } else { ChangeAction::Delete };
                    let key = prefix.to_string();
                    changes::log(self.connection, self.next_revision, Kind::Subscriber, Some(&key), action)?;
                    expired += 1;
                }
            }
        }
        Ok(if expired == 0 { Outcome::Unchanged } else { Outcome::Expired(expired) })
    }
}
