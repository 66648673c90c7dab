//! The configuration as a whole, in the store: its commits, their history, and the one that waits for its confirmation.
//!
//! The history is a list of states of the configuration, each with who made it and why. A commit appends one. Single changes append none, but
//! what they made is appended, as "single changes", before the next commit or rollback, so that every state that a commit replaced can be had
//! again. The state before a pending commit is therefore always there, written in the transaction of the commit itself; taking it back is
//! committing that state.
//!
//! A state is kept as the texts of its sections, secrets in one of their own. A section that did not change since the state before is stored
//! once.

use std::collections::BTreeMap;

use redirect_relay::{Verifier, gateway::Secret};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{
    Error, Kind, Outcome, RowResult, SELECT_INTERFACE, SELECT_RELAY, Step, clients, interface_row, mail, read_rows,
    read_tables, refuse_if_subscribed, relay_row, word,
};
use crate::{
    clients::Username,
    configuration::{
        Commit, CommitState, Configuration, Diff, Document, Known, PendingCommit, Purpose, Standing, route_place,
    },
    desired::{EMBEDDED_RELAY, Name, Source, Time},
    limits,
    revision::Conditions,
    routes::RouteKey,
};

/// A change of the configuration as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it is boxed where it waits")]
pub enum ConfigurationChange {
    /// All of the document, or nothing.
    Commit {
        document: Document,
        note: Note,
        /// It is taken back after so many seconds, unless it is confirmed before.
        confirm_within_s: Option<u64>,
    },
    /// The pending commit holds.
    Confirm { now: Time },
    /// The state that is so far back in the history is committed again. A pending commit is taken back with it.
    Rollback { back: u32, note: Note },
    /// Takes a pending commit back whose time is over.
    RevertOverdue { now: Time },
}

/// Who commits, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub author: Option<String>,
    pub comment: String,
    pub time: Time,
}

/// Who takes back what nobody confirmed.
const REVERTER: &str = "redirectd";

pub(super) fn configuration_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "CREATE TABLE commits (
             revision INTEGER PRIMARY KEY,
             time_s INTEGER NOT NULL,
             author TEXT,
             comment TEXT NOT NULL,
             state TEXT NOT NULL,
             added INTEGER NOT NULL,
             changed INTEGER NOT NULL,
             removed INTEGER NOT NULL,
             bytes INTEGER NOT NULL
         ) STRICT;
         CREATE TABLE configuration (
             one INTEGER PRIMARY KEY CHECK (one = 1),
             revision INTEGER NOT NULL,
             -- Of the pending commit.
             pending INTEGER REFERENCES commits (revision),
             deadline_s INTEGER
         ) STRICT;
         INSERT INTO configuration (one, revision) SELECT 1, revision FROM state;

         CREATE TABLE commit_texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
         CREATE TABLE commit_sections (
             revision INTEGER NOT NULL REFERENCES commits (revision),
             section TEXT NOT NULL,
             text INTEGER NOT NULL REFERENCES commit_texts (id),
             PRIMARY KEY (revision, section)
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX commit_sections_text ON commit_sections (text);",
    )?;
    Ok(())
}

pub(super) fn read_standing(connection: &Connection) -> Result<Standing, Error> {
    let sql = "SELECT configuration.revision, pending, deadline_s, author, comment
         FROM configuration LEFT JOIN commits ON commits.revision = pending";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| {
        let pending = match (row.get(1)?, row.get(2)?) {
            (Some(revision), Some(seconds)) => Some(PendingCommit {
                revision,
                deadline: Time { seconds },
                author: row.get(3)?,
                comment: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
            }),
            _ => None,
        };
        Ok(Standing { revision: row.get(0)?, pending })
    })?)
}

/// The whole of it, secrets included.
pub(super) fn read(connection: &Connection) -> Result<Configuration, Error> {
    let tables = read_tables(connection)?.tables;
    let routes = mail::read_routes(connection)?;
    let managed = mail::select_managed_page(connection, None, u32::MAX)?;
    let users = clients::select_users(connection, None, u32::MAX)?;
    let relays = tables.relays.values().filter(|relay| relay.source == Source::Api);
    let interfaces = tables.interfaces.values().filter(|interface| interface.source == Source::Api);
    let classes = tables.classes.values().map(|class| (class.spec.name.clone(), class.spec.clone()));
    Ok(Configuration {
        certificates: clients::read_certificates(connection)?
            .into_iter()
            .map(|spec| (spec.name.clone(), spec))
            .collect(),
        users: users.into_iter().map(|user| (user.resource.name, user.resource.verifier)).collect(),
        interfaces: interfaces.map(|interface| (interface.name.clone(), interface.clone())).collect(),
        relays: relays.map(|relay| (relay.spec.name.clone(), relay.spec.clone())).collect(),
        gateways: tables.gateways.clone(),
        groups: tables.groups.clone(),
        classes: classes.collect(),
        routes: routes.into_iter().map(|route| (route_place(&RouteKey::of(&route)), route)).collect(),
        managed_domains: managed.into_iter().map(|managed| (managed.domain.clone(), managed.resource)).collect(),
    })
}

/// What is known besides `document`s: the secrets of `configuration`, and what is the file's.
fn known(connection: &Connection, configuration: &Configuration) -> Result<Known, Error> {
    let interfaces = read_rows(connection, SELECT_INTERFACE, interface_row)?;
    let relays = read_rows(connection, SELECT_RELAY, relay_row)?;
    let of_file = |interface: &crate::desired::Interface| interface.source == Source::File;
    let embedded = relays.iter().find(|relay| relay.spec.name.as_str() == EMBEDDED_RELAY);
    Ok(Known {
        file_interfaces: interfaces.into_iter().filter(of_file).map(|interface| interface.name).collect(),
        own_endpoints: embedded.into_iter().flat_map(|relay| relay.spec.endpoints()).collect(),
        ..Known::of(configuration)
    })
}

/// What a commit of `document` would lead from and to, and the revision of the former; see [`super::Store::try_document`].
pub(super) fn trial(
    connection: &Connection,
    document: &Document,
    now: Time,
    conditions: &Conditions,
    while_pending: bool,
) -> Result<(u64, Configuration, Configuration), Error> {
    let standing = read_standing(connection)?;
    // A document that was made of another state need not make sense beside this one: that it is late says more.
    refuse_stale(conditions, standing.revision)?;
    if !while_pending {
        refuse_while_pending(&standing)?;
    }
    let before = read(connection)?;
    let after = resolve(connection, document, &before, Purpose::Commit { now })?;
    for name in before.classes.keys().filter(|name| !after.classes.contains_key(*name)) {
        refuse_if_subscribed(connection, name)?;
    }
    Ok((standing.revision, before, after))
}

fn resolve(
    connection: &Connection,
    document: &Document,
    before: &Configuration,
    purpose: Purpose,
) -> Result<Configuration, Error> {
    document.resolve(&known(connection, before)?, purpose).map_err(|faults| Error::Invalid { faults })
}

// History

const SELECT_COMMIT: &str =
    "SELECT commits.revision, time_s, author, comment, state, deadline_s, added, changed, removed, bytes
     FROM commits LEFT JOIN configuration ON pending = commits.revision";

/// Without its place in the history.
fn commit_row(row: &Row<'_>) -> RowResult<Commit> {
    let state: String = row.get(4)?;
    let commit = Commit {
        back: 0,
        revision: row.get(0)?,
        time: Time { seconds: row.get(1)? },
        author: row.get(2)?,
        comment: row.get(3)?,
        state: CommitState::Confirmed,
        deadline: row.get::<_, Option<i64>>(5)?.map(|seconds| Time { seconds }),
        added: row.get(6)?,
        changed: row.get(7)?,
        removed: row.get(8)?,
        bytes: row.get(9)?,
    };
    Ok(word("a commit's state", &state).map(|state| Commit { state, ..commit }))
}

/// The newest first.
pub(super) fn history(connection: &Connection) -> Result<Vec<Commit>, Error> {
    let commits = read_rows(connection, &format!("{SELECT_COMMIT} ORDER BY commits.revision DESC"), commit_row)?;
    Ok((0..).zip(commits).map(|(back, commit)| Commit { back, ..commit }).collect())
}

fn commit_back(connection: &Connection, back: u32) -> Result<Option<Commit>, Error> {
    let sql = format!("{SELECT_COMMIT} ORDER BY commits.revision DESC LIMIT 1 OFFSET ?1");
    let commit = connection.prepare_cached(&sql)?.query_row([back], commit_row).optional()?.transpose()?;
    Ok(commit.map(|commit| Commit { back, ..commit }))
}

/// A state of the history with its secrets as they were, without what is the file's by now.
pub(super) fn configuration_back(connection: &Connection, back: u32) -> Result<(Commit, Configuration), Error> {
    let commit = commit_back(connection, back)?;
    let commit = commit.ok_or_else(|| Error::NotFound { kind: Kind::Commit, name: format!("{back} back") })?;
    let (document, secrets) = read_state(connection, commit.revision)?;
    let Known { file_interfaces, own_endpoints, .. } = known(connection, &Configuration::default())?;
    let known = Known { file_interfaces, own_endpoints, ..secrets.known()? };
    let configuration = document.resolve(&known, Purpose::Restore).map_err(|faults| Error::Invalid { faults })?;
    Ok((commit, configuration))
}

/// The secrets of a state, by the keys of their resources.
#[derive(Default, Serialize, Deserialize)]
struct Secrets {
    /// Names and passwords.
    accounts: BTreeMap<Name, (String, String)>,
    /// Chains and keys.
    certificates: BTreeMap<Name, (String, String)>,
    verifiers: BTreeMap<Username, String>,
}

impl Secrets {
    fn of(configuration: &Configuration) -> Self {
        let Known { certificates, accounts, users, .. } = Known::of(configuration);
        let exposed = |(text, secret): (String, Secret)| (text, secret.expose().to_owned());
        Self {
            accounts: accounts.into_iter().map(|(name, account)| (name, exposed(account))).collect(),
            certificates: certificates
                .into_iter()
                .map(|(name, spec)| (name, exposed((spec.chain, spec.key))))
                .collect(),
            verifiers: users.into_iter().map(|(name, verifier)| (name, verifier.to_string())).collect(),
        }
    }

    fn known(self) -> Result<Known, Error> {
        let certificate = |(name, (chain, key)): (Name, (String, String))| {
            let spec = crate::clients::CertificateSpec { name: name.clone(), chain, key: Secret::new(key) };
            (name, spec)
        };
        let verifier = |(name, text): (Username, String)| match text.parse::<Verifier>() {
            Ok(verifier) => Ok((name, verifier)),
            Err(_) => Err(Error::Corrupt { what: "a user's verifier", value: name.to_string() }),
        };
        Ok(Known {
            certificates: self.certificates.into_iter().map(certificate).collect(),
            accounts: self
                .accounts
                .into_iter()
                .map(|(name, (username, password))| (name, (username, Secret::new(password))))
                .collect(),
            users: self.verifiers.into_iter().map(verifier).collect::<Result<_, _>>()?,
            ..Known::default()
        })
    }
}

const SECRETS: &str = "secrets";

/// The texts of a state by their sections, and how long the document is without its secrets.
fn texts(configuration: &Configuration) -> (BTreeMap<&'static str, String>, u64) {
    let document = Document::of(configuration);
    let mut texts = BTreeMap::from([
        ("certificates", mail::json(&document.certificates)),
        ("users", mail::json(&document.users)),
        ("interfaces", mail::json(&document.interfaces)),
        ("relays", mail::json(&document.relays)),
        ("gateways", mail::json(&document.gateways)),
        ("groups", mail::json(&document.groups)),
        ("classes", mail::json(&document.classes)),
        ("routes", mail::json(&document.routes)),
        ("managed_domains", mail::json(&document.managed_domains)),
    ]);
    let bytes = texts.values().map(|text| text.len() as u64).sum();
    texts.insert(SECRETS, mail::json(&Secrets::of(configuration)));
    (texts, bytes)
}

fn read_state(connection: &Connection, revision: u64) -> Result<(Document, Secrets), Error> {
    let sql = "SELECT section, commit_texts.text FROM commit_sections JOIN commit_texts ON id = commit_sections.text
         WHERE revision = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([revision], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let texts = rows.collect::<Result<BTreeMap<String, String>, _>>()?;
    let text = |section: &str| texts.get(section).map_or("[]", String::as_str);
    let document = Document {
        certificates: mail::from_json(text("certificates"))?,
        users: mail::from_json(text("users"))?,
        interfaces: mail::from_json(text("interfaces"))?,
        relays: mail::from_json(text("relays"))?,
        gateways: mail::from_json(text("gateways"))?,
        groups: mail::from_json(text("groups"))?,
        classes: mail::from_json(text("classes"))?,
        routes: mail::from_json(text("routes"))?,
        managed_domains: mail::from_json(text("managed_domains"))?,
    };
    // Its text is nobody's to read in a log.
    let corrupt = |_| Error::Corrupt { what: "the secrets of a commit", value: revision.to_string() };
    let secrets = texts.get(SECRETS).map(|text| serde_json::from_str(text)).transpose().map_err(corrupt)?;
    Ok((document, secrets.unwrap_or_default()))
}

/// A state that is to stand in the history.
struct Entry<'e> {
    revision: u64,
    note: &'e Note,
    state: CommitState,
    configuration: &'e Configuration,
}

impl Step<'_> {
    pub(super) fn change_configuration(&mut self, change: &ConfigurationChange) -> Result<Outcome, Error> {
        let standing = read_standing(self.connection)?;
        match change {
            ConfigurationChange::Commit { document, note, confirm_within_s } => {
                refuse_while_pending(&standing)?;
                let before = read(self.connection)?;
                let after = resolve(self.connection, document, &before, Purpose::Commit { now: note.time })?;
                self.commit(&standing, &before, &after, note, *confirm_within_s)
            }
            ConfigurationChange::Confirm { now } => {
                let Some(pending) = standing.pending else {
                    return Err(Error::Conflict { text: "no commit waits for its confirmation".to_owned() });
                };
                if pending.deadline <= *now {
                    let text =
                        format!("the time to confirm ended on {}; the commit is being taken back", pending.deadline);
                    return Err(Error::Conflict { text });
                }
                self.settle_pending(pending.revision, CommitState::Confirmed)?;
                // The kernel holds it already.
                Ok(Outcome::Unchanged)
            }
            ConfigurationChange::Rollback { back, note } => {
                if standing.pending.is_some() && *back == 0 {
                    let text = "that is the commit that waits for its confirmation; confirm it, or go further back";
                    return Err(Error::Conflict { text: text.to_owned() });
                }
                self.roll_back(&standing, *back, note)
            }
            ConfigurationChange::RevertOverdue { now } => match &standing.pending {
                Some(pending) if pending.deadline <= *now => {
                    let comment = format!("revision {} was not confirmed in time", pending.revision);
                    let note = Note { author: Some(REVERTER.to_owned()), comment, time: *now };
                    // The state before the pending one, which is the newest: no single change is let in meanwhile.
                    self.roll_back(&standing, 1, &note)
                }
                _ => Ok(Outcome::Unchanged),
            },
        }
    }

    /// The configuration is at the next revision.
    pub(super) fn note_configuration_changed(&self) -> Result<(), Error> {
        self.connection.prepare_cached("UPDATE configuration SET revision = ?1")?.execute([self.next_revision])?;
        Ok(())
    }

    pub(super) fn refuse_single_change_while_pending(&self) -> Result<(), Error> {
        refuse_while_pending(&read_standing(self.connection)?)
    }

    fn roll_back(&mut self, standing: &Standing, back: u32, note: &Note) -> Result<Outcome, Error> {
        let before = read(self.connection)?;
        let (_, mut after) = configuration_back(self.connection, back)?;
        let Some(pending) = &standing.pending else {
            return self.commit(standing, &before, &after, note, None);
        };
        // Whoever got a class of the pending commit meanwhile must not be in the way of taking it back.
        for class in before.classes.values() {
            if !after.classes.contains_key(&class.name) && refuse_if_subscribed(self.connection, &class.name).is_err() {
                tracing::warn!(class = %class.name, "stays, with what it names, because it has subscribers by now");
                after.keep_class(class, &before);
            }
        }
        self.settle_pending(pending.revision, CommitState::Reverted)?;
        let standing = Standing { pending: None, ..standing.clone() };
        self.commit(&standing, &before, &after, note, None)
    }

    /// Leads from `before`, which is what the store holds, to `after`, which is valid, and writes it into the history.
    fn commit(
        &mut self,
        standing: &Standing,
        before: &Configuration,
        after: &Configuration,
        note: &Note,
        confirm_within_s: Option<u64>,
    ) -> Result<Outcome, Error> {
        if before == after {
            return Ok(Outcome::Unchanged);
        }
        self.capture(standing.revision, before, note.time)?;
        self.apply(before, after)?;
        let state = if confirm_within_s.is_some() { CommitState::Pending } else { CommitState::Confirmed };
        self.record(&Entry { revision: self.next_revision, note, state, configuration: after }, Some(before))?;
        if let Some(within_s) = confirm_within_s {
            let deadline_s = note.time.seconds.saturating_add_unsigned(within_s);
            let sql = "UPDATE configuration SET pending = ?1, deadline_s = ?2";
            self.connection.execute(sql, params![self.next_revision, deadline_s])?;
        }
        self.trim()?;
        Ok(Outcome::Replaced)
    }

    /// A pending commit is pending no longer.
    fn settle_pending(&self, revision: u64, state: CommitState) -> Result<(), Error> {
        self.connection.execute("UPDATE configuration SET pending = NULL, deadline_s = NULL", [])?;
        self.connection
            .execute("UPDATE commits SET state = ?1 WHERE revision = ?2", params![state.name(), revision])?;
        Ok(())
    }

    /// Writes what single changes made since the newest state of the history into it; so it has a first state as well.
    fn capture(&self, revision: u64, configuration: &Configuration, time: Time) -> Result<(), Error> {
        let newest = commit_back(self.connection, 0)?;
        if newest.as_ref().is_some_and(|newest| newest.revision == revision) {
            return Ok(());
        }
        let comment = if newest.is_some() { "single changes" } else { "before the first commit" };
        let note = Note { author: None, comment: comment.to_owned(), time };
        let (texts, _) = texts(configuration);
        if let Some(newest) = &newest
            && self.same_as(newest.revision, &texts)?
        {
            return Ok(());
        }
        let before = newest.map(|_| configuration_back(self.connection, 0)).transpose()?.map(|(_, before)| before);
        let entry = Entry { revision, note: &note, state: CommitState::Confirmed, configuration };
        self.record(&entry, before.as_ref())
    }

    fn same_as(&self, revision: u64, texts: &BTreeMap<&'static str, String>) -> Result<bool, Error> {
        for (section, text) in texts {
            if self.known_text(revision, section, text)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of the text that `section` has at `revision`, if it is this one.
    fn known_text(&self, revision: u64, section: &str, text: &str) -> Result<Option<i64>, Error> {
        let sql = "SELECT id FROM commit_sections JOIN commit_texts ON id = commit_sections.text
             WHERE revision = ?1 AND section = ?2 AND commit_texts.text = ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row(params![revision, section, text], |row| row.get(0)).optional()?)
    }

    fn record(&self, entry: &Entry<'_>, before: Option<&Configuration>) -> Result<(), Error> {
        let Entry { revision, note, state, configuration } = entry;
        let (texts, bytes) = texts(configuration);
        let nothing = Configuration::default();
        let diff = Diff::between(before.unwrap_or(&nothing), configuration);
        let newest: Option<u64> =
            self.connection.query_row("SELECT max(revision) FROM commits", [], |row| row.get(0))?;
        self.connection.execute(
            "INSERT INTO commits (revision, time_s, author, comment, state, added, changed, removed, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                revision,
                note.time.seconds,
                note.author,
                note.comment,
                state.name(),
                diff.added.count,
                diff.changed.count,
                diff.removed.count,
                bytes
            ],
        )?;
        for (section, text) in texts {
            let known = newest.map(|newest| self.known_text(newest, section, &text)).transpose()?.flatten();
            let id = if let Some(id) = known {
                id
            } else {
                self.connection.execute("INSERT INTO commit_texts (text) VALUES (?1)", [text])?;
                self.connection.last_insert_rowid()
            };
            let sql = "INSERT INTO commit_sections (revision, section, text) VALUES (?1, ?2, ?3)";
            self.connection.execute(sql, params![revision, section, id])?;
        }
        Ok(())
    }

    /// Forgets the oldest states: those beyond what is kept, but never the last two, of which one may have to be restored.
    fn trim(&self) -> Result<(), Error> {
        let revisions = {
            let mut statement =
                self.connection.prepare_cached("SELECT revision FROM commits ORDER BY revision DESC")?;
            statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<u64>, _>>()?
        };
        for (index, revision) in revisions.iter().enumerate().rev() {
            let bytes: u64 = self.connection.query_row(
                "SELECT coalesce(sum(octet_length(text)), 0) FROM commit_texts",
                [],
                |row| row.get(0),
            )?;
            if index < 2 || (index < limits::HISTORY_MAX && bytes <= limits::HISTORY_BYTES_MAX) {
                break;
            }
            self.connection.execute("DELETE FROM commit_sections WHERE revision = ?1", [revision])?;
            self.connection.execute("DELETE FROM commits WHERE revision = ?1", [revision])?;
            let unused = "DELETE FROM commit_texts WHERE NOT EXISTS \
                          (SELECT 1 FROM commit_sections WHERE commit_sections.text = commit_texts.id)";
            self.connection.execute(unused, [])?;
        }
        Ok(())
    }

    /// What goes, goes first, so that what comes finds names and places free; in between a reference may lead nowhere.
    fn apply(&mut self, before: &Configuration, after: &Configuration) -> Result<(), Error> {
        self.connection.pragma_update(None, "defer_foreign_keys", true)?;
        let applied = self.remove_and_put(before, after);
        self.connection.pragma_update(None, "defer_foreign_keys", false)?;
        applied
    }

    fn remove_and_put(&mut self, before: &Configuration, after: &Configuration) -> Result<(), Error> {
        for (_, route) in gone(&before.routes, &after.routes) {
            self.remove_route(&RouteKey::of(route))?;
        }
        for (domain, _) in gone(&before.managed_domains, &after.managed_domains) {
            self.delete_managed_domain(domain)?;
        }
        for (name, _) in gone(&before.classes, &after.classes) {
            refuse_if_subscribed(self.connection, name)?;
            if let Some(id) = self.class_id(name)? {
                self.remove_class(id)?;
            }
        }
        let targets = gone(&before.groups, &after.groups).map(|(name, _)| name);
        for name in targets.chain(gone(&before.gateways, &after.gateways).map(|(name, _)| name)) {
            self.remove_target(name)?;
        }
        for (name, _) in gone(&before.relays, &after.relays) {
            if let Some(id) = self.id_of("relays", name)? {
                self.remove_relay(id)?;
            }
        }
        for (name, _) in gone(&before.certificates, &after.certificates) {
            self.connection.execute("DELETE FROM certificates WHERE name = ?1", [name.as_str()])?;
        }
        for (name, _) in gone(&before.users, &after.users) {
            self.delete_user(name)?;
        }
        for (name, _) in gone(&before.interfaces, &after.interfaces) {
            self.delete_interface(name)?;
        }

        for (_, spec) in come(&before.certificates, &after.certificates) {
            self.write_certificate(spec)?;
        }
        for (name, verifier) in come(&before.users, &after.users) {
            self.put_user(&crate::clients::User { name: name.clone(), verifier: verifier.clone() })?;
        }
        for (_, interface) in come(&before.interfaces, &after.interfaces) {
            self.put_interface(interface)?;
        }
        for (_, spec) in come(&before.relays, &after.relays) {
            self.put_relay(spec)?;
        }
        for (_, gateway) in come(&before.gateways, &after.gateways) {
            self.put_gateway(gateway)?;
        }
        for (_, group) in come(&before.groups, &after.groups) {
            self.write_group(group)?;
        }
        for (_, spec) in come(&before.classes, &after.classes) {
            self.put_class(spec)?;
        }
        for (_, route) in come(&before.routes, &after.routes) {
            self.write_route(&RouteKey::of(route), route)?;
        }
        for (_, managed) in come(&before.managed_domains, &after.managed_domains) {
            self.write_managed_domain(managed)?;
        }
        Ok(())
    }
}

/// What is not there any more.
fn gone<'c, K: Ord, V>(before: &'c BTreeMap<K, V>, after: &'c BTreeMap<K, V>) -> impl Iterator<Item = (&'c K, &'c V)> {
    before.iter().filter(|(key, _)| !after.contains_key(*key))
}

/// What is new, or not as it was.
fn come<'c, K: Ord, V: PartialEq>(
    before: &'c BTreeMap<K, V>,
    after: &'c BTreeMap<K, V>,
) -> impl Iterator<Item = (&'c K, &'c V)> {
    after.iter().filter(|(key, value)| before.get(*key) != Some(*value))
}

/// Refuses where the configuration, which is at revision `found`, is not as a request insists.
pub(crate) fn refuse_stale(conditions: &Conditions, found: u64) -> Result<(), Error> {
    if conditions.hold(Some(found)) { Ok(()) } else { Err(Error::Stale { found }) }
}

fn refuse_while_pending(standing: &Standing) -> Result<(), Error> {
    match &standing.pending {
        Some(pending) => Err(Error::Pending { pending: pending.clone() }),
        None => Ok(()),
    }
}
