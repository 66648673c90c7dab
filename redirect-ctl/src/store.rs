//! The desired state on disk: SQLite, one writer, a revision for every change.
//!
//! - A change and its revision are one transaction, synced to disk before it is acknowledged (WAL, `synchronous = FULL`). Changes that wait
//!   together share one commit; each stands in a savepoint of its own, so a refused one leaves no trace.
//! - References are foreign keys: what is in use cannot vanish, and the refusal names the user.
//! - Classes and relays have stable numbers, which the kernel's tables speak. A freed number is given away again only after the kernel
//!   holds the revision that freed it, the longest freed first; see [`crate::reconcile::plan`].
//! - The keys that a change touches are noted *before* its commit. A reader of revision `n` therefore finds every key of the changes up to
//!   `n`; a note without a commit costs one needless look.
//!
//! Where mail goes is in `mail`, what clients of the embedded relay meet in `clients`, and all of it together in `configuration`.
//!
//! What the configuration file owns (the embedded relay, its interfaces) is stored too, marked as the file's, and follows the file at each
//! start.

mod changes;
mod clients;
mod configuration;
mod facts;
mod import;
mod mail;
mod revisions;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use redirect_common::maps::{CLASSES_MAX, RELAYS_MAX};
use redirect_relay::{
    Domain,
    gateway::{Gateway, Group},
    route::{ManagedDomain, Pattern, Route, RouteDiff, RoutingSpec},
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::facts::Extensions;
use self::revisions::Resource;
pub use self::{
    changes::{ChangeAction, Logged, Reach},
    configuration::{ConfigurationChange, Note},
    facts::{FactFilter, FactLine, FactQuery, TakeFacts},
    import::{Import, ImportCounts, ImportDiff, ImportKey, Staging},
    mail::{RouteFilter, RouteQuery},
    revisions::Revisions,
};
pub(crate) use self::{configuration::refuse_stale, mail::with_known_password};
use crate::{
    clients::{CertificateSpec, User, Username},
    configuration::{Commit, Configuration, Document, PendingCommit},
    dataplane::{ClassId, RelayId},
    desired::{
        self, Class, ClassSpec, EMBEDDED_RELAY, Interface, InterfaceName, Limits, Name, PoolRelay, Relay, RelaySpec,
        RelayStatus, Snapshot, Source, Tables, Time, Weight,
    },
    limits,
    metrics::meters::{METERS, timed},
    revision::{Conditions, Versioned},
    routes::RouteKey,
    subscribers::{Fact, Known, Priorities, Subscriber},
};

/// A change of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a change is moved a few times and waits in a short queue")]
pub enum Change {
    PutFact {
        fact: Box<Fact>,
        now_s: i64,
    },
    /// Those that pass the filter, if there are `count`, where that is given.
    DeleteFacts {
        filter: Box<FactFilter>,
        count: Option<u64>,
    },
    ImportFacts(Box<Import>),
    PutClass(ClassSpec),
    DeleteClass(Name),
    PutRelay(RelaySpec),
    DeleteRelay(Name),
    /// An account without a password keeps the one that is known for its user.
    PutGateway(Box<Gateway>),
    DeleteGateway(Name),
    PutGroup(Group),
    DeleteGroup(Name),
    PutRoute(Route),
    DeleteRoute(RouteKey),
    /// Those that pass the filter, if there are `count`.
    DeleteRoutes {
        filter: RouteFilter,
        count: u64,
    },
    /// All of `routes`, which are distinct, or none; with `replace` the others go.
    ImportRoutes {
        routes: Vec<Route>,
        replace: bool,
    },
    PutManagedDomain(ManagedDomain),
    DeleteManagedDomain(Domain),
    /// Without a key it keeps the one that is known.
    PutCertificate {
        certificate: CertificateSpec,
        now: Time,
    },
    DeleteCertificate(Name),
    PutUser(User),
    DeleteUser(Username),
    PutInterface(Interface),
    DeleteInterface(InterfaceName),
    /// Of all of the above together, subscribers apart.
    Configuration(Box<ConfigurationChange>),
    /// Removes facts that expired by `now_s`, a bounded number at a time.
    Expire {
        now_s: i64,
    },
}

/// What a change may reach beside the kernel's tables.
#[derive(Clone, Copy)]
struct Concerns {
    /// Mail may go another way after it.
    mail: bool,
    /// Clients of the embedded relay may meet something else after it.
    clients: bool,
    /// It changes the configuration (see [`crate::configuration`]), and not as a whole.
    single: bool,
}

impl Change {
    const fn concerns(&self) -> Concerns {
        let (mail, clients, single) = match self {
            Self::PutClass(_) | Self::DeleteClass(_) => (true, true, true),
            Self::PutGateway(_)
            | Self::DeleteGateway(_)
            | Self::PutGroup(_)
            | Self::DeleteGroup(_)
            | Self::PutRoute(_)
            | Self::DeleteRoute(_)
            | Self::DeleteRoutes { .. }
            | Self::ImportRoutes { .. }
            | Self::PutManagedDomain(_)
            | Self::DeleteManagedDomain(_) => (true, false, true),
            Self::PutCertificate { .. } | Self::DeleteCertificate(_) | Self::PutUser(_) | Self::DeleteUser(_) => {
                (false, true, true)
            }
            Self::PutRelay(_) | Self::DeleteRelay(_) | Self::PutInterface(_) | Self::DeleteInterface(_) => {
                (false, false, true)
            }
            Self::Configuration(_) => (true, true, false),
            Self::PutFact { .. } | Self::DeleteFacts { .. } | Self::ImportFacts(_) | Self::Expire { .. } => {
                (false, false, false)
            }
        };
        Concerns { mail, clients, single }
    }
}

/// What a change did, and the revision at which it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub revision: u64,
    /// The revision that changed the resource last, which is an older one if it was so already; `None` where it is gone, or there are several.
    pub resource: Option<u64>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Replaced,
    /// It was so already; no revision was made.
    Unchanged,
    Deleted,
    /// Facts that the expiry removed.
    Expired(usize),
    /// Routes or facts that went together.
    Removed(usize),
    Imported(ImportCounts),
    /// It is an import that was done at this revision already.
    ImportedBefore {
        revision: u64,
        counts: ImportCounts,
    },
}

impl Outcome {
    /// Whether it makes a revision.
    fn is_change(self) -> bool {
        match self {
            Self::Unchanged | Self::ImportedBefore { .. } => false,
            Self::Imported(counts) => !counts.is_empty(),
            Self::Created | Self::Replaced | Self::Deleted | Self::Expired(_) | Self::Removed(_) => true,
        }
    }
}

/// What a resource is, in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Subscriber,
    Class,
    Relay,
    Gateway,
    Group,
    Route,
    ManagedDomain,
    Certificate,
    User,
    Interface,
    Commit,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Subscriber,
        Self::Class,
        Self::Relay,
        Self::Gateway,
        Self::Group,
        Self::Route,
        Self::ManagedDomain,
        Self::Certificate,
        Self::User,
        Self::Interface,
    ];

    /// As a word of the API.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::ManagedDomain => "managed_domain",
            _ => self.name(),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Subscriber => "subscriber",
            Self::Class => "class",
            Self::Relay => "relay",
            Self::Gateway => "gateway",
            Self::Group => "group",
            Self::Route => "route",
            Self::ManagedDomain => "managed domain",
            Self::Certificate => "certificate",
            Self::User => "user",
            Self::Interface => "interface",
            Self::Commit => "commit",
        }
    }
}

/// A member of a request that cannot be as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// RFC 6901.
    pub pointer: String,
    pub text: String,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no {} {name}", .kind.name())]
    NotFound { kind: Kind, name: String },
    /// `pointer` (RFC 6901) is to the member of the request that refers to it.
    #[error("there is no {} {name}; create it first", .kind.name())]
    NoSuchReference { pointer: String, kind: Kind, name: String },
    #[error("{}", .faults.first().map_or("", |fault| &fault.text))]
    Invalid { faults: Vec<Fault> },
    /// It does not go together with something else.
    #[error("{text}")]
    Conflict { text: String },
    /// The resource is not as the change insists.
    #[error("{} {name} is {}, and not as the request insists; look at it again, and decide anew", .kind.name(), state(*.current))]
    Condition { kind: Kind, name: String, current: Option<u64> },
    #[error("{} {name} is in use by {by}", .kind.name())]
    InUse { kind: Kind, name: String, by: String },
    #[error("{} {name} is defined in {}; change it there and restart redirectd", .kind.name(), .file.display())]
    OwnedByFile { kind: Kind, name: String, file: PathBuf },
    #[error("{address} is this router's own relay listener: mail would go round in a circle; name another server")]
    OwnListener { address: SocketAddr },
    #[error("there are {max} of kind {} already, which is the most", .kind.name())]
    TooMany { kind: Kind, max: u64 },
    #[error(
        "the kernel's table of {table} is full with {max}; raise dataplane.subscribers_max in {} and restart redirectd",
        .file.display()
    )]
    Full { table: &'static str, max: u64, file: PathBuf },
    #[error("no number is free for another {}: those freed last are still in the kernel; try again in a moment", .kind.name())]
    NumbersBusy { kind: Kind },
    /// It was made for another state of the configuration.
    #[error(
        "the configuration is at revision {found}, and not as the request insists: look at what changed, and try again"
    )]
    Stale { found: u64 },
    #[error(
        "the commit of revision {}{} is taken back on {} unless it is confirmed; confirm it or roll it back first",
        .pending.revision, .pending.author.as_ref().map(|author| format!(" by {author}")).unwrap_or_default(), .pending.deadline
    )]
    Pending { pending: PendingCommit },
    #[error("the store {} is in use by another redirectd", .path.display())]
    Locked { path: PathBuf },
    #[error("the store {} has schema {found}, this redirectd knows up to {known}; run the version that wrote it", .path.display())]
    Schema { path: PathBuf, found: i64, known: i64 },
    #[error("cannot open the store {}: {source}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("the store holds {what} that cannot be: {value:?}")]
    Corrupt { what: &'static str, value: String },
    #[error("the store has stopped")]
    Stopped,
    #[error("store: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

fn state(current: Option<u64>) -> String {
    current.map_or_else(|| "not there".to_owned(), |revision| format!("of revision {revision}"))
}

impl Error {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// What SQLite said. Its error cannot be cloned; its code and text can.
    fn sqlite_failure(&self) -> Option<rusqlite::Error> {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(code, text)) => {
                Some(rusqlite::Error::SqliteFailure(*code, text.clone()))
            }
            _ => None,
        }
    }
}

/// What the configuration file contributes to the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileResources {
    /// Named in refusals to change what it owns.
    pub file: PathBuf,
    pub relay_ipv4: Option<SocketAddrV4>,
    pub relay_ipv6: Option<SocketAddrV6>,
    pub relay_delivery: desired::Delivery,
    pub interfaces: Vec<Interface>,
    /// Entries of each of the kernel's subscriber tables.
    pub subscribers_max: u64,
    /// Of the sources of subscribers.
    pub priorities: Priorities,
}

/// The kernel's subscriber tables: hosts and prefixes of each family, each with a capacity of its own. A subscriber too many would be
/// refused by the kernel again and again, and hold up every change behind it; so the store refuses it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fill {
    used: [u64; 4],
}

impl Fill {
    const TABLES: [&'static str; 4] = ["IPv4 prefixes", "IPv4 hosts", "IPv6 prefixes", "IPv6 hosts"];

    fn table(prefix: &IpNet) -> usize {
        let host = usize::from(prefix.prefix_len() == prefix.max_prefix_len());
        if matches!(prefix, IpNet::V4(_)) { host } else { 2 + host }
    }

    fn count(connection: &Connection) -> Result<Self, Error> {
        let mut fill = Self::default();
        let mut statement = connection.prepare("SELECT prefix FROM facts WHERE effective = 1")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            fill.used[Self::table(&prefix_column(row, 0)?)] += 1;
        }
        Ok(fill)
    }

    /// Prefixes in all.
    fn rows(self) -> u64 {
        self.used.iter().sum()
    }

    /// The first table that holds more than `max`.
    fn beyond(self, max: u64) -> Option<&'static str> {
        Self::TABLES.into_iter().zip(self.used).find(|(_, used)| *used > max).map(|(table, _)| table)
    }
}

/// The open store. Clones share it.
#[derive(Clone)]
pub struct Store {
    // Before the writer, so that its connection is the last one to close: two at the same time would leave the journal behind.
    readers: Readers,
    writer: mpsc::Sender<Job>,
    snapshot: watch::Receiver<Snapshot>,
    touched: Arc<Touched>,
    applied: Arc<AtomicU64>,
    counts: Arc<Mutex<SubscriberCounts>>,
    extensions: Extensions,
    priorities: Priorities,
}

/// Subscribers by class number, counted at a revision.
#[derive(Clone, Debug, Default)]
struct SubscriberCounts {
    revision: Option<u64>,
    by_class: BTreeMap<ClassId, u64>,
}

struct Job {
    change: Change,
    conditions: Conditions,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Committed, Error>>;

/// The writing half: [`Writer::run`] needs a thread of its own.
pub struct Writer {
    connection: Connection,
    jobs: mpsc::Receiver<Job>,
    snapshot: watch::Sender<Snapshot>,
    touched: Arc<Touched>,
    applied: Arc<AtomicU64>,
    file: PathBuf,
    fill: Fill,
    subscribers_max: u64,
    extensions: Extensions,
    priorities: Priorities,
    /// Held for as long as the store is open: one daemon, one store.
    _lock: Flock<File>,
}

/// Opens the store at `path`, creates it where there is none, and lets what the file owns follow `resources`.
pub fn open(path: &Path, resources: &FileResources) -> Result<(Store, Writer), Error> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let create = fs::DirBuilder::new().recursive(true).mode(0o750).create(parent);
        create.map_err(|source| Error::Open { path: path.to_owned(), source })?;
    }
    let lock = lock(path)?;
    // Who the subscribers are is nobody else's business. SQLite gives its journals the mode of this file.
    private_file(path)?;
    let mut connection = connect(path)?;
    migrate(&mut connection, path)?;
    adopt_file(&mut connection, resources)?;
    facts::adopt_priorities(&mut connection, resources.priorities)?;
    let fill = Fill::count(&connection)?;
    if let Some(table) = fill.beyond(resources.subscribers_max) {
        return Err(Error::Full { table, max: resources.subscribers_max, file: resources.file.clone() });
    }

    let (snapshot_sender, snapshot) =
        watch::channel(read_snapshot(&connection, &MailTouched::All, &Snapshot::default(), None)?);
    let (writer, jobs) = mpsc::channel(limits::STORE_QUEUE_MAX);
    let touched = Arc::new(Touched::default());
    let applied = Arc::new(AtomicU64::new(0));
    let extensions = Extensions::default();
    let store = Store {
        readers: Readers {
            path: path.to_owned(),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(limits::STORE_READERS_MAX)),
        },
        writer,
        snapshot,
        touched: Arc::clone(&touched),
        applied: Arc::clone(&applied),
        counts: Arc::default(),
        extensions: extensions.clone(),
        priorities: resources.priorities,
    };
    let writer = Writer {
        connection,
        jobs,
        snapshot: snapshot_sender,
        touched,
        applied,
        file: resources.file.clone(),
        fill,
        subscribers_max: resources.subscribers_max,
        extensions,
        priorities: resources.priorities,
        _lock: lock,
    };
    Ok((store, writer))
}

impl Store {
    /// Carries out a change; returns when it is on disk.
    pub async fn change(&self, change: Change) -> Result<Committed, Error> {
        self.change_if(change, Conditions::default()).await
    }

    /// Carries out a change if the one resource that it is about, or the configuration as a whole, is as the conditions say; nothing comes
    /// between the look and the change.
    pub async fn change_if(&self, change: Change, conditions: Conditions) -> Result<Committed, Error> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(Job { change, conditions, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// The small tables at the newest revision.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Follows the newest revision.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    /// The reconciler says here which revision the kernel holds.
    pub fn set_applied(&self, revision: u64) {
        self.applied.store(revision, Ordering::Release);
    }

    pub async fn subscriber(&self, prefix: IpNet) -> Result<Option<Subscriber>, Error> {
        let (extensions, priorities) = (self.extensions.clone(), self.priorities);
        self.read_at_once(move |connection| {
            let names = facts::class_names(connection)?;
            facts::subscriber(connection, &names, priorities, &extensions, prefix)
        })
        .await
    }

    /// A page of facts in the order of their prefixes.
    pub async fn facts(&self, query: FactQuery) -> Result<Vec<Known>, Error> {
        let extensions = self.extensions.clone();
        self.read_at_once(move |connection| {
            let names = facts::class_names(connection)?;
            let mut facts = Vec::new();
            query.each(connection, |prefix, mut stored| {
                extensions.lay_over(prefix, &mut stored);
                facts.push(stored.known(prefix, &names)?);
                Ok(())
            })?;
            Ok(facts)
        })
        .await
    }

    /// Hands over facts as they are read, all of one revision, which `begin` is told first.
    pub async fn each_fact(
        &self,
        query: FactQuery,
        begin: impl FnOnce(u64) + Send + 'static,
        mut taker: impl TakeFacts + Send + 'static,
    ) -> Result<(), Error> {
        let extensions = self.extensions.clone();
        self.read_at_once(move |connection| {
            let revision = connection.prepare_cached("SELECT revision FROM state")?.query_row([], |row| row.get(0))?;
            let names = facts::class_names(connection)?;
            begin(revision);
            let mut all = true;
            query.each_while(connection, |prefix, mut stored| {
                extensions.lay_over(prefix, &mut stored);
                let corrupt = || Error::Corrupt { what: "a class that is none", value: prefix.to_string() };
                let class = names.get(&stored.class).ok_or_else(corrupt)?;
                all = taker.take(&FactLine::new(prefix, class.as_str(), &stored));
                Ok(all)
            })?;
            if all {
                taker.end();
            }
            Ok(())
        })
        .await
    }

    /// What [`Change::ImportFacts`] would do.
    pub async fn diff_import(&self, import: Box<Import>) -> Result<ImportDiff, Error> {
        self.read_at_once(move |connection| import::diff(connection, &import)).await
    }

    /// What an earlier import under this key came to, and at which revision.
    pub async fn known_import(&self, key: ImportKey) -> Result<Option<(u64, ImportCounts)>, Error> {
        self.read(move |connection| import::known(connection, &key)).await
    }

    /// How many facts pass the filter of a query.
    pub async fn count_facts(&self, query: FactQuery) -> Result<u64, Error> {
        self.read(move |connection| query.count(connection)).await
    }

    pub fn priorities(&self) -> Priorities {
        self.priorities
    }

    pub async fn route(&self, key: RouteKey) -> Result<Option<Versioned<Route>>, Error> {
        self.read(move |connection| mail::select_route(connection, &key)).await
    }

    /// A page of routes in their order.
    pub async fn routes(&self, query: RouteQuery) -> Result<Vec<Versioned<Route>>, Error> {
        self.read(move |connection| mail::select_routes(connection, &query)).await
    }

    pub async fn count_routes(&self, filter: RouteFilter) -> Result<u64, Error> {
        self.read(move |connection| mail::count_routes(connection, &filter)).await
    }

    pub async fn count_managed_domains(&self) -> Result<u64, Error> {
        self.read(|connection| count(connection, "SELECT count(*) FROM managed_domains")).await
    }

    pub async fn count_users(&self) -> Result<u64, Error> {
        self.read(|connection| count(connection, "SELECT count(*) FROM users")).await
    }

    /// What [`Change::ImportRoutes`] would do.
    pub async fn diff(&self, routes: Vec<Route>, replace: bool) -> Result<RouteDiff, Error> {
        self.read(move |connection| mail::diff(connection, &routes, replace)).await
    }

    /// Everything that says where mail goes, at the newest revision.
    pub async fn routing_spec(&self) -> Result<RoutingSpec, Error> {
        self.read_at_once(|connection| mail::read_spec(connection, &read_tables(connection)?.tables)).await
    }

    /// All routes, without those that classes stand for.
    pub async fn all_routes(&self) -> Result<Vec<Route>, Error> {
        self.read(mail::read_routes).await
    }

    pub async fn managed_domain(&self, domain: Domain) -> Result<Option<Versioned<ManagedDomain>>, Error> {
        self.read(move |connection| mail::select_managed(connection, &domain)).await
    }

    /// A page of managed domains in the order of their names.
    pub async fn managed_domains(
        &self,
        after: Option<Domain>,
        rows_max: u32,
    ) -> Result<Vec<Versioned<ManagedDomain>>, Error> {
        self.read(move |connection| mail::select_managed_page(connection, after.as_ref(), rows_max)).await
    }

    pub async fn user(&self, name: Username) -> Result<Option<Versioned<User>>, Error> {
        self.read(move |connection| clients::select_user(connection, &name)).await
    }

    /// A page of users in the order of their names.
    pub async fn users(&self, after: Option<Username>, rows_max: u32) -> Result<Vec<Versioned<User>>, Error> {
        self.read(move |connection| clients::select_users(connection, after.as_ref(), rows_max)).await
    }

    /// The configuration as a whole, and its revision.
    pub async fn configuration(&self) -> Result<(u64, Configuration), Error> {
        self.read_at_once(|connection| {
            Ok((configuration::read_standing(connection)?.revision, configuration::read(connection)?))
        })
        .await
    }

    /// What a commit of `document` would lead from and to, and the revision of the former; what would refuse it, refuses this, a pending
    /// commit apart where `while_pending` says so.
    pub async fn try_document(
        &self,
        document: Document,
        now: Time,
        conditions: Conditions,
        while_pending: bool,
    ) -> Result<(u64, Configuration, Configuration), Error> {
        self.read_at_once(move |connection| {
            configuration::trial(connection, &document, now, &conditions, while_pending)
        })
        .await
    }

    /// The states of the configuration that are kept, the newest first.
    pub async fn history(&self) -> Result<Vec<Commit>, Error> {
        self.read_at_once(configuration::history).await
    }

    /// A state of the history; 0 back is the newest.
    pub async fn configuration_back(&self, back: u32) -> Result<(Commit, Configuration), Error> {
        self.read_at_once(move |connection| configuration::configuration_back(connection, back)).await
    }

    /// Subscribers by class. Counting a million takes some 50 ms, so the result is kept for its revision.
    pub async fn subscriber_counts(&self) -> Result<BTreeMap<ClassId, u64>, Error> {
        let revision = self.snapshot.borrow().revision;
        {
            let known = lock_unpoisoned(&self.counts);
            if known.revision == Some(revision) {
                return Ok(known.by_class.clone());
            }
        }
        let by_class: BTreeMap<ClassId, u64> = self
            .read(|connection| {
                let mut statement = connection
                    .prepare_cached("SELECT class, count(*) FROM facts WHERE effective = 1 GROUP BY class")?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await?;
        *lock_unpoisoned(&self.counts) = SubscriberCounts { revision: Some(revision), by_class: by_class.clone() };
        Ok(by_class)
    }

    /// When the next fact expires, extensions that are not written apart.
    pub async fn next_expiry_s(&self) -> Result<Option<i64>, Error> {
        self.read(|connection| {
            let sql = "SELECT min(expires_s) FROM facts WHERE expires_s IS NOT NULL";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        })
        .await
    }

    /// A consistent view for the reconciler, which blocks. Everything in the answer belongs to one revision.
    pub fn view(&self, scope: Scope) -> Result<View, Error> {
        let mut connection = self.readers.take()?;
        let view = read_view(&mut connection, &self.touched, scope);
        self.readers.give_back(connection);
        view
    }

    /// Everything at one revision, as for [`Scope::All`]; the notes of what was touched stay for the next view. Blocks.
    pub fn peek(&self) -> Result<(Snapshot, BTreeMap<IpNet, ClassId>), Error> {
        let mut connection = self.readers.take()?;
        let found = read_all(&mut connection);
        self.readers.give_back(connection);
        found
    }

    /// Several queries that see one state.
    async fn read_at_once<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read(move |connection| query(&*connection.unchecked_transaction()?)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.readers.permits).acquire_owned().await.map_err(|_| Error::Stopped)?;
        let readers = self.readers.clone();
        let read = tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let result = query(&connection);
            readers.give_back(connection);
            drop(permit);
            result
        });
        read.await.map_err(|_| Error::Stopped)?
    }
}

/// Which subscribers a [`View`] is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Those that were touched since the last view.
    Touched,
}

/// The desired state of the kernel at one revision; [`Snapshot::routing`] and [`Snapshot::clients`] are empty.
#[derive(Debug)]
pub struct View {
    pub snapshot: Snapshot,
    pub subscribers: Subscribers,
}

/// The subscribers of a [`View`], with the numbers of their classes.
#[derive(Debug)]
pub enum Subscribers {
    All(BTreeMap<IpNet, ClassId>),
    /// `None` for a prefix that is no subscriber any more.
    Touched(BTreeMap<IpNet, Option<ClassId>>),
}

/// Connections for reading; with WAL they neither wait for the writer nor hold it up.
#[derive(Clone)]
struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    fn take(&self) -> Result<Connection, Error> {
        if let Some(connection) = lock_unpoisoned(&self.idle).pop() {
            return Ok(connection);
        }
        let connection = connect(&self.path)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = lock_unpoisoned(&self.idle);
        if idle.len() < limits::STORE_READERS_MAX {
            idle.push(connection);
        }
    }
}

/// The data behind these locks is replaced as a whole, so a panic elsewhere cannot leave it half-written.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prefixes that changes touched, by revision, until the reconciler takes them. Bounded: beyond the bound only "everything" is known.
#[derive(Default)]
struct Touched {
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    prefixes: VecDeque<(u64, IpNet)>,
    /// Notes up to this revision were dropped.
    dropped_through: Option<u64>,
}

impl Touched {
    fn note(&self, revision: u64, prefix: IpNet) {
        let mut notes = lock_unpoisoned(&self.notes);
        if notes.prefixes.len() >= limits::TOUCHED_KEYS_MAX {
            notes.prefixes.clear();
            notes.dropped_through = Some(revision);
        } else if notes.dropped_through.is_some_and(|dropped| dropped >= revision) {
            // Everything of that revision will be read anyway.
        } else {
            notes.prefixes.push_back((revision, prefix));
        }
    }

    /// Takes the notes of revisions up to `revision`; `None` where some of them were dropped.
    fn take(&self, revision: u64) -> Option<BTreeSet<IpNet>> {
        let mut notes = lock_unpoisoned(&self.notes);
        let dropped = notes.dropped_through.is_some();
        if notes.dropped_through.is_some_and(|through| through <= revision) {
            notes.dropped_through = None;
        }
        let mut taken = BTreeSet::new();
        // Savepoints that were rolled back leave notes whose revision another change got; they are in order nevertheless.
        while let Some((_, prefix)) = notes.prefixes.pop_front_if(|(noted, _)| *noted <= revision) {
            taken.insert(prefix);
        }
        (!dropped).then_some(taken)
    }
}

fn read_view(connection: &mut Connection, touched: &Touched, scope: Scope) -> Result<View, Error> {
    let transaction = connection.transaction()?;
    // The first read fixes the revision of the transaction; the notes are taken after it, so that none is missed.
    let snapshot = read_tables(&transaction)?;
    let notes = touched.take(snapshot.revision);
    let subscribers = match (scope, notes) {
        (Scope::Touched, Some(prefixes)) => {
            let mut statement =
                transaction.prepare_cached("SELECT class FROM facts WHERE prefix = ?1 AND effective = 1")?;
            let mut found = BTreeMap::new();
            for prefix in prefixes {
                let class = statement.query_row([desired::prefix_key(&prefix)], |row| row.get(0)).optional()?;
                found.insert(prefix, class);
            }
            Subscribers::Touched(found)
        }
        (Scope::All, _) | (Scope::Touched, None) => Subscribers::All(read_subscribers(&transaction)?),
    };
    Ok(View { snapshot, subscribers })
}

fn read_all(connection: &mut Connection) -> Result<(Snapshot, BTreeMap<IpNet, ClassId>), Error> {
    let transaction = connection.transaction()?;
    Ok((read_tables(&transaction)?, read_subscribers(&transaction)?))
}

fn read_subscribers(connection: &Connection) -> Result<BTreeMap<IpNet, ClassId>, Error> {
    let sql = "SELECT prefix, class FROM facts WHERE effective = 1 ORDER BY prefix";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next()? {
        found.insert(prefix_column(row, 0)?, row.get(1)?);
    }
    Ok(found)
}

impl Writer {
    /// Carries out changes until every [`Store`] is gone. Blocks.
    ///
    /// An import is a commit of its own: those that come meanwhile wait for as long as it takes to write it, some 5 s for a million facts.
    pub fn run(mut self) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| self.jobs.blocking_recv()) {
            if matches!(first.change, Change::ImportFacts(_)) {
                self.import(first);
                continue;
            }
            let mut group = vec![first];
            while group.len() < limits::STORE_GROUP_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                if matches!(job.change, Change::ImportFacts(_)) {
                    next = Some(job);
                    break;
                }
                group.push(job);
            }
            self.commit(group);
        }
        if let Err(error) = self.extensions.write(&mut self.connection) {
            tracing::error!(%error, "some subscribers may expire too early");
        }
    }

    /// With memory for the pages that it touches again and again, and with the journal emptied once it is answered.
    fn import(&mut self, job: Job) {
        let pragma = |connection: &Connection, name: &str, value: i64| {
            if let Err(error) = connection.pragma_update(None, name, value) {
                tracing::warn!(%error, name, "an import will be slow");
            }
        };
        pragma(&self.connection, "cache_size", -limits::IMPORT_CACHE_KIB);
        pragma(&self.connection, "wal_autocheckpoint", 0);
        self.commit(vec![job]);
        pragma(&self.connection, "wal_autocheckpoint", limits::STORE_CHECKPOINT_PAGES);
        pragma(&self.connection, "cache_size", -limits::STORE_CACHE_KIB);
        let tidied = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        if let Err(error) = tidied.and_then(|()| self.connection.execute_batch("PRAGMA shrink_memory")) {
            tracing::warn!(%error, "the store's journal stays long after an import");
        }
    }

    fn commit(&mut self, group: Vec<Job>) {
        let before = self.snapshot.borrow().clone();
        let mut answers = Vec::with_capacity(group.len());
        let committed = self.carry_out(group, &before, &mut answers);
        match committed {
            Ok(after) => {
                self.snapshot.send_if_modified(|snapshot| {
                    let changed = snapshot.revision != after.revision;
                    *snapshot = after;
                    changed
                });
                for (reply, answer) in answers {
                    // Whoever gave up waiting does not need the answer.
                    let _ = reply.send(answer);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it is kept");
                // One error, several waiters.
                for (reply, answer) in answers {
                    let of_all = || error.sqlite_failure().map_or(Error::Stopped, Error::Sqlite);
                    let _ = reply.send(answer.and_then(|_| Err(of_all())));
                }
            }
        }
    }

    /// Runs the group in one transaction; the answers hold only once this returned `Ok`.
    fn carry_out(
        &mut self,
        group: Vec<Job>,
        before: &Snapshot,
        answers: &mut Vec<(Reply, Result<Committed, Error>)>,
    ) -> Result<Snapshot, Error> {
        let mut group = group.into_iter();
        let outcome = (|| {
            let mut transaction =
                self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut revision = before.revision;
            let mut fill = self.fill;
            let (mut mail, mut clients) = (MailTouched::Routes(BTreeSet::new()), false);
            for Job { change, conditions, reply } in group.by_ref() {
                let mut savepoint = transaction.savepoint()?;
                let mut step = Step {
                    connection: &savepoint,
                    next_revision: revision + 1,
                    applied: self.applied.load(Ordering::Acquire),
                    touched: &self.touched,
                    file: &self.file,
                    fill,
                    subscribers_max: self.subscribers_max,
                    extensions: &self.extensions,
                    priorities: self.priorities,
                };
                let answer = step.carry_out_if(&change, &conditions).map(|(outcome, resource)| {
                    if outcome.is_change() {
                        mail.note(&change);
                        clients |= change.concerns().clients;
                        revision += 1;
                    }
                    fill = step.fill;
                    let revision = match outcome {
                        Outcome::ImportedBefore { revision, .. } => revision,
                        _ => revision,
                    };
                    Committed { revision, resource, outcome }
                });
                let refused = answer.is_err();
                let cause = answer.as_ref().err().and_then(Error::sqlite_failure);
                answers.push((reply, answer));
                if refused {
                    // Where the disk is full SQLite has undone everything already: then that is why the whole group fails.
                    savepoint.rollback().map_err(|error| cause.unwrap_or(error))?;
                }
                savepoint.commit()?;
            }
            if revision != before.revision {
                transaction.execute("UPDATE state SET revision = ?1", [revision])?;
            }
            let after = if revision == before.revision {
                // A confirmation makes no revision.
                Snapshot { standing: configuration::read_standing(&transaction)?, ..before.clone() }
            } else {
                read_snapshot(&transaction, &mail, before, (!clients).then_some(before))?
            };
            timed(&METERS.store_commit_time, || transaction.commit())?;
            self.fill = fill;
            Ok(after)
        })();
        // A failure in the middle must not leave the rest without an answer.
        answers.extend(group.map(|job| (job.reply, Err(Error::Stopped))));
        outcome
    }
}

/// One change inside its savepoint.
struct Step<'a> {
    connection: &'a Connection,
    /// The revision that the change will have if it is one.
    next_revision: u64,
    /// The revision that the kernel holds.
    applied: u64,
    touched: &'a Touched,
    file: &'a Path,
    /// As it will be after the change.
    fill: Fill,
    subscribers_max: u64,
    extensions: &'a Extensions,
    priorities: Priorities,
}

impl Step<'_> {
    /// What became of it, and the revision that changed the resource last.
    fn carry_out_if(&mut self, change: &Change, conditions: &Conditions) -> Result<(Outcome, Option<u64>), Error> {
        let resource = change.resource();
        if matches!(change, Change::Configuration(_)) {
            configuration::refuse_stale(conditions, configuration::read_standing(self.connection)?.revision)?;
        } else if let Some(resource) = resource.as_ref().filter(|_| !conditions.is_empty()) {
            let current = self.revision_of(resource)?;
            if !conditions.hold(current) {
                return Err(Error::Condition { kind: resource.kind(), name: resource.key(), current });
            }
        }
        let outcome = self.carry_out(change)?;
        self.log(change, resource.as_ref(), outcome)?;
        let revision = match outcome {
            Outcome::Created | Outcome::Replaced | Outcome::Unchanged => {
                resource.map(|resource| self.revision_of(&resource)).transpose()?.flatten()
            }
            Outcome::Deleted
            | Outcome::Expired(_)
            | Outcome::Removed(_)
            | Outcome::Imported(_)
            | Outcome::ImportedBefore { .. } => None,
        };
        Ok((outcome, revision))
    }

    fn log(&self, change: &Change, resource: Option<&Resource<'_>>, outcome: Outcome) -> Result<(), Error> {
        let action = match outcome {
            // The expiry notes each subscriber by itself.
            Outcome::Unchanged | Outcome::Expired(_) | Outcome::ImportedBefore { .. } => return Ok(()),
            Outcome::Created | Outcome::Replaced | Outcome::Imported(_) => ChangeAction::Put,
            // What another source says of the subscriber stays.
            Outcome::Deleted | Outcome::Removed(_) => match resource {
                Some(resource) if self.revision_of(resource)?.is_some() => ChangeAction::Put,
                _ => ChangeAction::Delete,
            },
        };
        if matches!(change, Change::Configuration(_)) {
            let mut kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Subscriber);
            return kinds.try_for_each(|kind| changes::log(self.connection, self.next_revision, kind, None, action));
        }
        let (kind, key) = resource.map_or((change.kind(), None), |resource| (resource.kind(), Some(resource.key())));
        changes::log(self.connection, self.next_revision, kind, key.as_deref(), action)
    }

    fn carry_out(&mut self, change: &Change) -> Result<Outcome, Error> {
        let is_single = change.concerns().single;
        if is_single {
            self.refuse_single_change_while_pending()?;
        }
        let outcome = self.carry_out_one(change)?;
        if outcome != Outcome::Unchanged && (is_single || matches!(change, Change::Configuration(_))) {
            self.note_configuration_changed()?;
        }
        Ok(outcome)
    }

    fn carry_out_one(&mut self, change: &Change) -> Result<Outcome, Error> {
        match change {
            Change::PutFact { fact, now_s } => self.put_fact(fact, *now_s),
            Change::DeleteFacts { filter, count } => self.delete_facts(filter, *count),
            Change::ImportFacts(import) => self.import_facts(import),
            Change::PutClass(spec) => self.put_class(spec),
            Change::DeleteClass(name) => self.delete_class(name),
            Change::PutRelay(spec) => self.put_relay(spec),
            Change::DeleteRelay(name) => self.delete_relay(name),
            Change::PutGateway(gateway) => self.put_gateway(gateway),
            Change::DeleteGateway(name) => self.delete_target(Kind::Gateway, name),
            Change::PutGroup(group) => self.put_group(group),
            Change::DeleteGroup(name) => self.delete_target(Kind::Group, name),
            Change::PutRoute(route) => self.put_route(route),
            Change::DeleteRoute(key) => self.delete_route(key),
            Change::DeleteRoutes { filter, count } => self.delete_routes(filter, *count),
            Change::ImportRoutes { routes, replace } => self.import_routes(routes, *replace),
            Change::PutManagedDomain(managed) => self.put_managed_domain(managed),
            Change::DeleteManagedDomain(domain) => self.delete_managed_domain(domain),
            Change::PutCertificate { certificate, now } => self.put_certificate(certificate, *now),
            Change::DeleteCertificate(name) => self.delete_certificate(name),
            Change::PutUser(user) => self.put_user(user),
            Change::DeleteUser(name) => self.delete_user(name),
            Change::PutInterface(interface) => self.put_interface(interface),
            Change::DeleteInterface(name) => self.delete_interface(name),
            Change::Configuration(change) => self.change_configuration(change),
            Change::Expire { now_s } => self.expire(*now_s),
        }
    }

    fn put_class(&self, spec: &ClassSpec) -> Result<Outcome, Error> {
        let mut relay_ids = Vec::with_capacity(spec.relays.len());
        for (index, relay) in spec.relays.iter().enumerate() {
            let id = self.id_of("relays", &relay.name)?;
            relay_ids.push(id.ok_or_else(|| Error::NoSuchReference {
                pointer: format!("/relays/{index}/name"),
                kind: Kind::Relay,
                name: relay.name.to_string(),
            })?);
        }
        if let Some(gateway) = &spec.gateway
            && !self.has_target(Kind::Gateway, gateway)?
            && !self.has_target(Kind::Group, gateway)?
        {
            return Err(Error::NoSuchReference {
                pointer: "/gateway".to_owned(),
                kind: Kind::Gateway,
                name: gateway.to_string(),
            });
        }
        self.refuse_without_certificate(spec.smtp.certificate.as_ref())?;
        let (id, outcome) = match self.class(&spec.name)? {
            Some(known) if known.spec == *spec => return Ok(Outcome::Unchanged),
            Some(known) => (known.id, Outcome::Replaced),
            None => (self.allocate(Kind::Class)?, Outcome::Created),
        };
        let Limits { rate, burst, open_max, lock_after, lock_s } = spec.limits;
        self.connection.execute(
            "INSERT INTO classes (id, name, action, on_relay_down, on_class_change, rate, burst, open_max, lock_after, lock_s, gateway, smtp,
                 certificate, on_daemon_down, revision)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
             ON CONFLICT (id) DO UPDATE SET action = excluded.action, on_relay_down = excluded.on_relay_down,
                 on_class_change = excluded.on_class_change, rate = excluded.rate, burst = excluded.burst, open_max = excluded.open_max,
                 lock_after = excluded.lock_after, lock_s = excluded.lock_s, gateway = excluded.gateway,
                 smtp = excluded.smtp, certificate = excluded.certificate,
                 on_daemon_down = excluded.on_daemon_down, revision = excluded.revision",
            params![
                id,
                spec.name.as_str(),
                spec.action.name(),
                spec.on_relay_down.name(),
                spec.on_class_change.name(),
                rate,
                burst,
                open_max,
                lock_after,
                lock_s,
                spec.gateway.as_ref().map(Name::as_str),
                mail::json(&spec.smtp),
                spec.smtp.certificate.as_ref().map(Name::as_str),
                spec.on_daemon_down.name(),
                self.next_revision
            ],
        )?;
        self.connection.execute("DELETE FROM class_relays WHERE class = ?1", [id])?;
        for (place, (relay_id, relay)) in relay_ids.iter().zip(&spec.relays).enumerate() {
            self.connection.execute(
                "INSERT INTO class_relays (class, place, relay, weight) VALUES (?1, ?2, ?3, ?4)",
                params![id, place, relay_id, relay.weight.get()],
            )?;
        }
        Ok(outcome)
    }

    fn delete_class(&self, name: &Name) -> Result<Outcome, Error> {
        let class = self.class(name)?.ok_or_else(|| Error::NotFound { kind: Kind::Class, name: name.to_string() })?;
        refuse_if_subscribed(self.connection, name)?;
        let sql = "SELECT key, count(*) OVER () FROM routes WHERE class = ?1 ORDER BY place, key LIMIT 3";
        self.refuse_if_used(Kind::Class, name, &[("route", sql)])?;
        self.remove_class(class.id)?;
        Ok(Outcome::Deleted)
    }

    fn remove_class(&self, id: ClassId) -> Result<(), Error> {
        self.connection.execute("DELETE FROM class_relays WHERE class = ?1", [id])?;
        self.connection.execute("DELETE FROM classes WHERE id = ?1", [id])?;
        self.free(Kind::Class, id)
    }

    fn put_relay(&self, spec: &RelaySpec) -> Result<Outcome, Error> {
        let (id, source, outcome) = match self.relay(&spec.name)? {
            Some(known) if known.spec == *spec => return Ok(Outcome::Unchanged),
            // The file knows no status.
            Some(known)
                if known.source == Source::File && RelaySpec { status: spec.status, ..known.spec.clone() } != *spec =>
            {
                return Err(Error::OwnedByFile {
                    kind: Kind::Relay,
                    name: spec.name.to_string(),
                    file: self.file.to_owned(),
                });
            }
            Some(known) => (known.id, known.source, Outcome::Replaced),
            None => (self.allocate(Kind::Relay)?, Source::Api, Outcome::Created),
        };
        write_relay(self.connection, id, spec, source, self.next_revision)?;
        Ok(outcome)
    }

    fn delete_relay(&self, name: &Name) -> Result<Outcome, Error> {
        let relay = self.relay(name)?.ok_or_else(|| Error::NotFound { kind: Kind::Relay, name: name.to_string() })?;
        if relay.source == Source::File {
            return Err(Error::OwnedByFile { kind: Kind::Relay, name: name.to_string(), file: self.file.to_owned() });
        }
        let sql = "SELECT classes.name, count(*) OVER () FROM relays JOIN class_relays ON relay = relays.id
             JOIN classes ON class = classes.id WHERE relays.name = ?1 ORDER BY classes.name LIMIT 3";
        self.refuse_if_used(Kind::Relay, name, &[("class", sql)])?;
        self.remove_relay(relay.id)?;
        Ok(Outcome::Deleted)
    }

    fn remove_relay(&self, id: RelayId) -> Result<(), Error> {
        self.connection.execute("DELETE FROM relays WHERE id = ?1", [id])?;
        self.free(Kind::Relay, id)
    }

    fn put_interface(&self, interface: &Interface) -> Result<Outcome, Error> {
        let outcome = match self.interface(&interface.name)? {
            Some(known) if known.source == Source::File => {
                return Err(Error::OwnedByFile {
                    kind: Kind::Interface,
                    name: interface.name.to_string(),
                    file: self.file.to_owned(),
                });
            }
            Some(known) if known == *interface => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
            None => {
                self.refuse_beyond(Kind::Interface, "SELECT count(*) FROM interfaces", limits::INTERFACES_MAX)?;
                Outcome::Created
            }
        };
        write_interface(self.connection, interface, self.next_revision)?;
        Ok(outcome)
    }

    fn delete_interface(&self, name: &InterfaceName) -> Result<Outcome, Error> {
        let interface =
            self.interface(name)?.ok_or_else(|| Error::NotFound { kind: Kind::Interface, name: name.to_string() })?;
        if interface.source == Source::File {
            return Err(Error::OwnedByFile {
                kind: Kind::Interface,
                name: name.to_string(),
                file: self.file.to_owned(),
            });
        }
        self.connection.execute("DELETE FROM interfaces WHERE name = ?1", [name.as_str()])?;
        Ok(Outcome::Deleted)
    }

    fn class_id(&self, name: &Name) -> Result<Option<ClassId>, Error> {
        self.id_of("classes", name)
    }

    fn id_of(&self, table: &'static str, name: &Name) -> Result<Option<u16>, Error> {
        let sql = format!("SELECT id FROM {table} WHERE name = ?1");
        Ok(self.connection.prepare_cached(&sql)?.query_row([name.as_str()], |row| row.get(0)).optional()?)
    }

    fn class(&self, name: &Name) -> Result<Option<Class>, Error> {
        let sql = format!("{SELECT_CLASS} WHERE name = ?1");
        let class =
            self.connection.prepare_cached(&sql)?.query_row([name.as_str()], class_row).optional()?.transpose()?;
        class.map(|class| with_pool(self.connection, class)).transpose()
    }

    fn relay(&self, name: &Name) -> Result<Option<Relay>, Error> {
        let sql = format!("{SELECT_RELAY} WHERE name = ?1");
        self.connection.prepare_cached(&sql)?.query_row([name.as_str()], relay_row).optional()?.transpose()
    }

    fn interface(&self, name: &InterfaceName) -> Result<Option<Interface>, Error> {
        let sql = format!("{SELECT_INTERFACE} WHERE name = ?1");
        self.connection.prepare_cached(&sql)?.query_row([name.as_str()], interface_row).optional()?.transpose()
    }

    fn refuse_beyond(&self, kind: Kind, sql: &str, max: u64) -> Result<(), Error> {
        let count: u64 = self.connection.query_row(sql, [], |row| row.get(0))?;
        if count >= max { Err(Error::TooMany { kind, max }) } else { Ok(()) }
    }

    /// A number that is neither in use nor in the kernel under its old meaning; never used ones first, then the longest freed.
    fn allocate(&self, kind: Kind) -> Result<u16, Error> {
        let (table, slots) = numbered(kind);
        let max = u64::from(slots) - 1;
        self.refuse_beyond(kind, &format!("SELECT count(*) FROM {table}"), max)?;
        let sql = format!(
            "WITH RECURSIVE numbers (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM numbers WHERE id < ?1)
             SELECT numbers.id FROM numbers LEFT JOIN freed ON freed.kind = ?2 AND freed.id = numbers.id
             WHERE numbers.id NOT IN (SELECT id FROM {table}) AND (freed.revision IS NULL OR freed.revision <= ?3)
             ORDER BY coalesce(freed.revision, 0), numbers.id LIMIT 1"
        );
        let id: Option<u16> =
            self.connection.query_row(&sql, params![max, kind.name(), self.applied], |row| row.get(0)).optional()?;
        let id = id.ok_or(Error::NumbersBusy { kind })?;
        self.connection.execute("DELETE FROM freed WHERE kind = ?1 AND id = ?2", params![kind.name(), id])?;
        Ok(id)
    }

    fn free(&self, kind: Kind, id: u16) -> Result<(), Error> {
        let sql = "INSERT OR REPLACE INTO freed (kind, id, revision) VALUES (?1, ?2, ?3)";
        self.connection.execute(sql, params![kind.name(), id, self.next_revision])?;
        Ok(())
    }
}

/// A class with subscribers cannot go.
fn refuse_if_subscribed(connection: &Connection, name: &Name) -> Result<(), Error> {
    let class = "SELECT id FROM classes WHERE name = ?1";
    let sql = format!("SELECT prefix FROM facts WHERE class = ({class}) ORDER BY effective DESC, prefix LIMIT 1");
    let found = connection.prepare_cached(&sql)?.query_row([name.as_str()], |row| Ok(prefix_column(row, 0)));
    let Some(user) = found.optional()?.transpose()? else { return Ok(()) };
    let sql = format!("SELECT count(DISTINCT prefix) - 1 FROM facts WHERE class = ({class})");
    let others: u64 = connection.query_row(&sql, [name.as_str()], |row| row.get(0))?;
    let by = match others {
        0 => format!("subscriber {user}"),
        _ => format!("subscriber {user} and {others} more"),
    };
    Err(Error::InUse { kind: Kind::Class, name: name.to_string(), by })
}

/// Table and kernel slots (slot 0 included) of a kind that has numbers.
fn numbered(kind: Kind) -> (&'static str, u32) {
    if kind == Kind::Relay { ("relays", RELAYS_MAX) } else { ("classes", CLASSES_MAX) }
}

const SELECT_CLASS: &str = "SELECT id, name, action, on_relay_down, on_class_change, gateway, \
                            rate, burst, open_max, lock_after, lock_s, smtp, on_daemon_down FROM classes";
const SELECT_RELAY: &str = "SELECT id, name, ipv4, ipv6, delivery, status, source FROM relays";
const SELECT_INTERFACE: &str = "SELECT name, role, hook, foreign_sources, source FROM interfaces";

/// The outer result is SQLite's, the inner one ours: a row may be read well and hold nonsense.
type RowResult<T> = rusqlite::Result<Result<T, Error>>;

/// A class without its pool, which is in a table of its own.
fn class_row(row: &Row<'_>) -> RowResult<Class> {
    let id = row.get(0)?;
    let name: String = row.get(1)?;
    let action: String = row.get(2)?;
    let on_relay_down: String = row.get(3)?;
    let on_class_change: String = row.get(4)?;
    let gateway: Option<String> = row.get(5)?;
    let limits = Limits {
        rate: row.get(6)?,
        burst: row.get(7)?,
        open_max: row.get(8)?,
        lock_after: row.get(9)?,
        lock_s: row.get(10)?,
    };
    let smtp: String = row.get(11)?;
    let on_daemon_down: String = row.get(12)?;
    Ok((|| {
        Ok(Class {
            id,
            relay_ids: Vec::new(),
            spec: ClassSpec {
                name: word("a class name", &name)?,
                action: word("an action", &action)?,
                relays: Vec::new(),
                on_relay_down: word("a fallback", &on_relay_down)?,
                on_class_change: word("what becomes of live flows", &on_class_change)?,
                on_daemon_down: word("what becomes of flows without a daemon", &on_daemon_down)?,
                limits,
                gateway: gateway.as_deref().map(|name| word("a gateway name", name)).transpose()?,
                smtp: mail::from_json(&smtp)?,
            },
        })
    })())
}

fn with_pool(connection: &Connection, mut class: Class) -> Result<Class, Error> {
    let sql = "SELECT relay, name, weight FROM class_relays JOIN relays ON id = relay WHERE class = ?1 ORDER BY place";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([class.id])?;
    while let Some(row) = rows.next()? {
        let (name, weight): (String, i64) = (row.get(1)?, row.get(2)?);
        let corrupt = |_| Error::Corrupt { what: "a weight", value: weight.to_string() };
        class.relay_ids.push(row.get(0)?);
        class
            .spec
            .relays
            .push(PoolRelay { name: word("a relay name", &name)?, weight: Weight::try_from(weight).map_err(corrupt)? });
    }
    Ok(class)
}

fn relay_row(row: &Row<'_>) -> RowResult<Relay> {
    let id = row.get(0)?;
    let name: String = row.get(1)?;
    let ipv4: Option<String> = row.get(2)?;
    let ipv6: Option<String> = row.get(3)?;
    let delivery: String = row.get(4)?;
    let status: String = row.get(5)?;
    let source: String = row.get(6)?;
    Ok((|| {
        Ok(Relay {
            id,
            spec: RelaySpec {
                name: word("a relay name", &name)?,
                ipv4: ipv4.as_deref().map(|text| word("an endpoint", text)).transpose()?,
                ipv6: ipv6.as_deref().map(|text| word("an endpoint", text)).transpose()?,
                delivery: word("a delivery", &delivery)?,
                status: word("a status", &status)?,
            },
            source: word("a source", &source)?,
        })
    })())
}

fn interface_row(row: &Row<'_>) -> RowResult<Interface> {
    let name: String = row.get(0)?;
    let role: String = row.get(1)?;
    let hook: String = row.get(2)?;
    let foreign_sources = row.get(3)?;
    let source: String = row.get(4)?;
    Ok((|| {
        Ok(Interface {
            name: word("an interface name", &name)?,
            role: word("a role", &role)?,
            hook: word("a hook", &hook)?,
            foreign_sources,
            source: word("a source", &source)?,
        })
    })())
}

fn word<T: FromStr>(what: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Corrupt { what, value: text.to_owned() })
}

fn prefix_column(row: &Row<'_>, column: usize) -> Result<IpNet, Error> {
    let key: Vec<u8> = row.get(column)?;
    desired::prefix_from_key(&key).ok_or_else(|| Error::Corrupt { what: "a prefix", value: format!("{key:02x?}") })
}

fn count(connection: &Connection, sql: &str) -> Result<u64, Error> {
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// What changed of where mail goes.
enum MailTouched {
    /// The routes of these patterns, which may be none.
    Routes(BTreeSet<Pattern>),
    /// Perhaps everything.
    All,
}

impl MailTouched {
    fn note(&mut self, change: &Change) {
        match (&mut *self, change) {
            (Self::Routes(patterns), Change::PutRoute(route)) => drop(patterns.insert(route.domain.clone())),
            (Self::Routes(patterns), Change::DeleteRoute(key)) => drop(patterns.insert(key.domain.clone())),
            (Self::Routes(_), change) if change.concerns().mail => *self = Self::All,
            (Self::Routes(_) | Self::All, _) => {}
        }
    }
}

/// With what `mail` leaves as it was of the routing of `before`, and with the clients of `clients_before`, where they are given: nothing changed them.
fn read_snapshot(
    connection: &Connection,
    mail: &MailTouched,
    before: &Snapshot,
    clients_before: Option<&Snapshot>,
) -> Result<Snapshot, Error> {
    let snapshot = read_tables(connection)?;
    let routing = match mail {
        MailTouched::Routes(patterns) if patterns.is_empty() => Arc::clone(&before.routing),
        MailTouched::Routes(patterns) => {
            Arc::new(mail::reread_routing(connection, &snapshot.tables, &before.routing, patterns)?)
        }
        MailTouched::All => Arc::new(mail::read_routing(connection, &snapshot.tables)?),
    };
    let clients = match clients_before {
        Some(before) => Arc::clone(&before.clients),
        None => Arc::new(clients::read_clients(connection, &snapshot.tables)?),
    };
    let revisions = Arc::new(revisions::read_revisions(connection)?);
    Ok(Snapshot { revisions, routing, clients, ..snapshot })
}

/// A snapshot without revisions, routing and clients.
fn read_tables(connection: &Connection) -> Result<Snapshot, Error> {
    let revision = connection.prepare_cached("SELECT revision FROM state")?.query_row([], |row| row.get(0))?;
    let relays = read_rows(connection, SELECT_RELAY, relay_row)?;
    let classes = read_rows(connection, SELECT_CLASS, class_row)?;
    let classes = classes.into_iter().map(|class| with_pool(connection, class)).collect::<Result<Vec<_>, _>>()?;
    let gateways = mail::read_gateways(connection)?;
    let groups = mail::read_groups(connection)?;
    let interfaces = read_rows(connection, SELECT_INTERFACE, interface_row)?;
    let tables = Tables {
        relays: relays.into_iter().map(|relay| (relay.id, relay)).collect(),
        classes: classes.into_iter().map(|class| (class.id, class)).collect(),
        gateways: gateways.into_iter().map(|gateway| (gateway.name.clone(), gateway)).collect(),
        groups: groups.into_iter().map(|group| (group.name.clone(), group)).collect(),
        interfaces: interfaces.into_iter().map(|interface| (interface.name.clone(), interface)).collect(),
    };
    let standing = configuration::read_standing(connection)?;
    Ok(Snapshot { revision, tables: Arc::new(tables), standing, ..Snapshot::default() })
}

fn read_rows<T>(connection: &Connection, sql: &str, read: fn(&Row<'_>) -> RowResult<T>) -> Result<Vec<T>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], read)?;
    rows.map(|row| row?).collect()
}

fn write_relay(connection: &Connection, id: u16, spec: &RelaySpec, source: Source, revision: u64) -> Result<(), Error> {
    connection.execute(
        "INSERT INTO relays (id, name, ipv4, ipv6, delivery, status, source, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (id) DO UPDATE SET ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, delivery = excluded.delivery,
             status = excluded.status, source = excluded.source, revision = excluded.revision",
        params![
            id,
            spec.name.as_str(),
            spec.ipv4.map(|address| address.to_string()),
            spec.ipv6.map(|address| address.to_string()),
            spec.delivery.name(),
            spec.status.name(),
            source.name(),
            revision
        ],
    )?;
    Ok(())
}

fn write_interface(connection: &Connection, interface: &Interface, revision: u64) -> Result<(), Error> {
    connection.execute(
        "INSERT INTO interfaces (name, role, hook, foreign_sources, source, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (name) DO UPDATE SET role = excluded.role, hook = excluded.hook,
             foreign_sources = excluded.foreign_sources, source = excluded.source, revision = excluded.revision",
        params![
            interface.name.as_str(),
            interface.role.name(),
            interface.hook.name(),
            interface.foreign_sources,
            interface.source.name(),
            revision
        ],
    )?;
    Ok(())
}

fn embedded_name() -> Name {
    EMBEDDED_RELAY.parse().expect("the constant is a name")
}

/// A lock beside the store: SQLite would let a second daemon in, and two daemons would fight over the kernel.
fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let file = private_file(Path::new(&lock_path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked { path: path.to_owned() })
}

/// Opens a file that only its owner may read, and creates it where there is none.
fn private_file(path: &Path) -> Result<File, Error> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    open.map_err(|source| Error::Open { path: path.to_owned(), source })
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -limits::STORE_CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", limits::STORE_CHECKPOINT_PAGES)?;
    // After an import the journal does not stay as long as it was.
    connection.pragma_update(None, "journal_size_limit", limits::STORE_JOURNAL_BYTES)?;
    connection.busy_timeout(limits::API_REQUEST_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Each entry leads from the schema of its index to the next one; entries are never changed, only added.
const MIGRATIONS: &[Migration] = &[
    first_schema,
    pools_and_limits,
    foreign_sources,
    mail::mail_routing,
    class_smtp,
    clients::clients_schema,
    revisions::revisions_schema,
    without_daemon,
    facts::facts_schema,
    import::imports_schema,
    configuration::configuration_schema,
    changes::changes_schema,
];

type Migration = fn(&Transaction<'_>) -> Result<(), Error>;

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        return Err(Error::Schema { path: path.to_owned(), found, known });
    };
    for migration in missing {
        migration(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

fn first_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL) STRICT;
         INSERT INTO state (one, revision) VALUES (1, 1);

         CREATE TABLE relays (
             id INTEGER PRIMARY KEY,
             name TEXT NOT NULL UNIQUE,
             ipv4 TEXT,
             ipv6 TEXT,
             delivery TEXT NOT NULL,
             source TEXT NOT NULL
         ) STRICT;

         CREATE TABLE gateways (
             name TEXT PRIMARY KEY,
             address TEXT NOT NULL,
             port INTEGER NOT NULL,
             description TEXT NOT NULL,
             status TEXT NOT NULL
         ) STRICT, WITHOUT ROWID;

         CREATE TABLE classes (
             id INTEGER PRIMARY KEY,
             name TEXT NOT NULL UNIQUE,
             action TEXT NOT NULL,
             relay INTEGER REFERENCES relays (id),
             on_relay_down TEXT NOT NULL,
             gateway TEXT REFERENCES gateways (name)
         ) STRICT;

         -- The key is family, address and length as bytes: see desired::prefix_key.
         CREATE TABLE subscribers (
             prefix BLOB PRIMARY KEY,
             class INTEGER NOT NULL REFERENCES classes (id),
             origin TEXT NOT NULL,
             expires_s INTEGER
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX subscribers_class ON subscribers (class, prefix);
         CREATE INDEX subscribers_expires ON subscribers (expires_s) WHERE expires_s IS NOT NULL;

         CREATE TABLE interfaces (
             name TEXT PRIMARY KEY,
             role TEXT NOT NULL,
             hook TEXT NOT NULL,
             source TEXT NOT NULL
         ) STRICT, WITHOUT ROWID;

         -- Numbers of deleted classes and relays, and the revision that freed each.
         CREATE TABLE freed (
             kind TEXT NOT NULL,
             id INTEGER NOT NULL,
             revision INTEGER NOT NULL,
             PRIMARY KEY (kind, id)
         ) STRICT, WITHOUT ROWID;",
    )?;
    transaction.execute(
        "INSERT INTO relays (id, name, ipv4, ipv6, delivery, source) VALUES (1, ?1, NULL, NULL, 'auto', 'file')",
        [EMBEDDED_RELAY],
    )?;
    // The classes that mirror the field; see the words of the design.
    let defaults = [
        (1, "misconfigured", desired::Action::Redirect),
        (2, "configured", desired::Action::Redirect),
        (3, "authenticated", desired::Action::Pass),
        (4, "bypass", desired::Action::Pass),
        (5, "blocked", desired::Action::Block),
    ];
    for (id, name, action) in defaults {
        let relay = (action == desired::Action::Redirect).then_some(1);
        transaction.execute(
            "INSERT INTO classes (id, name, action, relay, on_relay_down, gateway) VALUES (?1, ?2, ?3, ?4, 'pass', NULL)",
            params![id, name, action.name(), relay],
        )?;
    }
    Ok(())
}

/// A pool of weighted relays for each class instead of one relay, limits, and a status for relays.
fn pools_and_limits(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch(
        "ALTER TABLE relays ADD COLUMN status TEXT NOT NULL DEFAULT 'enabled';

         CREATE TABLE class_relays (
             class INTEGER NOT NULL REFERENCES classes (id),
             place INTEGER NOT NULL,
             relay INTEGER NOT NULL REFERENCES relays (id),
             weight INTEGER NOT NULL,
             PRIMARY KEY (class, place),
             UNIQUE (class, relay)
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX class_relays_relay ON class_relays (relay);
         INSERT INTO class_relays (class, place, relay, weight) SELECT id, 0, relay, 1 FROM classes WHERE relay IS NOT NULL;

         ALTER TABLE classes DROP COLUMN relay;
         ALTER TABLE classes ADD COLUMN on_class_change TEXT NOT NULL DEFAULT 'reset';
         ALTER TABLE classes ADD COLUMN rate INTEGER;
         ALTER TABLE classes ADD COLUMN burst INTEGER;
         ALTER TABLE classes ADD COLUMN open_max INTEGER;
         ALTER TABLE classes ADD COLUMN lock_after INTEGER;
         ALTER TABLE classes ADD COLUMN lock_s INTEGER;",
    )?;
    Ok(())
}

fn foreign_sources(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch("ALTER TABLE interfaces ADD COLUMN foreign_sources INTEGER NOT NULL DEFAULT 0")?;
    Ok(())
}

fn class_smtp(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch("ALTER TABLE classes ADD COLUMN smtp TEXT NOT NULL DEFAULT '{}'")?;
    Ok(())
}

fn without_daemon(transaction: &Transaction<'_>) -> Result<(), Error> {
    transaction.execute_batch("ALTER TABLE classes ADD COLUMN on_daemon_down TEXT NOT NULL DEFAULT 'keep'")?;
    Ok(())
}

/// Lets the file's own resources follow the file; a new revision only where that changes anything.
fn adopt_file(connection: &mut Connection, file: &FileResources) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let before = read_tables(&transaction)?;
    let known = before.tables.relay(EMBEDDED_RELAY);
    let spec = RelaySpec {
        name: embedded_name(),
        ipv4: file.relay_ipv4,
        ipv6: file.relay_ipv6,
        delivery: file.relay_delivery,
        status: known.map_or(RelayStatus::Enabled, |relay| relay.spec.status),
    };
    let revision = before.revision + 1;
    if known.is_none_or(|known| known.spec != spec || known.source != Source::File) {
        write_relay(&transaction, known.map_or(1, |relay| relay.id), &spec, Source::File, revision)?;
        changes::log(&transaction, revision, Kind::Relay, Some(EMBEDDED_RELAY), ChangeAction::Put)?;
    }
    let gone = |known: &&Interface| {
        known.source == Source::File && file.interfaces.iter().all(|interface| interface.name != known.name)
    };
    for interface in before.tables.interfaces.values().filter(gone) {
        transaction.execute("DELETE FROM interfaces WHERE name = ?1", [interface.name.as_str()])?;
        changes::log(&transaction, revision, Kind::Interface, Some(interface.name.as_str()), ChangeAction::Delete)?;
    }
    for interface in &file.interfaces {
        let interface = Interface { source: Source::File, ..interface.clone() };
        if before.tables.interfaces.get(&interface.name).is_some_and(|known| known.source == Source::Api) {
            tracing::warn!(interface = %interface.name, "the file names an interface that the API had set; it is the file's from here on");
        }
        if before.tables.interfaces.get(&interface.name) != Some(&interface) {
            write_interface(&transaction, &interface, revision)?;
            changes::log(&transaction, revision, Kind::Interface, Some(interface.name.as_str()), ChangeAction::Put)?;
        }
    }
    if read_tables(&transaction)?.tables != before.tables {
        transaction.execute("UPDATE state SET revision = ?1", [revision])?;
        transaction.execute("UPDATE configuration SET revision = ?1", [revision])?;
    }
    transaction.commit()?;
    Ok(())
}
