//! The store by itself: what was acknowledged survives, numbers are reused with care.

use std::{
    collections::BTreeSet,
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use redirect_ctl::{
    desired::{
        Action, ClassSpec, Fallback, Interface, InterfaceName, Limits, OnClassChange, OnDaemonDown, Origin,
        RelayStatus, Source,
    },
    smtp::{Smtp, SmtpAuth},
    store::{
        self, Change, Error, FactFilter, FactQuery, FileResources, Import, Outcome, Scope, Staging, Store, Subscribers,
    },
    subscribers::{Labels, Record},
};
use redirect_relay::{
    gateway::{Encryption, Gateway},
    route::{Query, Target},
};
use tempfile::TempDir;

use crate::{subscribers::fact, support::victim};

fn file() -> FileResources {
    FileResources { subscribers_max: 1_000_000, ..FileResources::default() }
}

/// Opens the store; the handle ends when the store and its clones are gone.
pub(crate) fn open(path: &Path) -> (Store, thread::JoinHandle<()>) {
    let (store, writer) = store::open(path, &file()).unwrap();
    (store, thread::spawn(|| writer.run()))
}

/// Undoes what the schema has of facts, and of commits.
const NO_FACTS: &str = "DROP TABLE configuration; DROP TABLE commit_sections; DROP TABLE commit_texts; DROP TABLE commits;
    DROP TABLE changes;    DROP TABLE facts; DROP TABLE priorities; DROP TABLE imports;
    CREATE TABLE subscribers (prefix BLOB PRIMARY KEY, class INTEGER NOT NULL, origin TEXT NOT NULL, expires_s INTEGER) STRICT, WITHOUT ROWID;";

pub(crate) fn class(name: &str) -> Change {
    let name = name.parse().unwrap();
    Change::PutClass(ClassSpec {
        name,
        action: Action::Pass,
        relays: vec![],
        on_relay_down: Fallback::Pass,
        on_class_change: OnClassChange::Reset,
        on_daemon_down: OnDaemonDown::Keep,
        limits: Limits::default(),
        gateway: None,
        smtp: Smtp::default(),
    })
}

pub(crate) fn subscriber(prefix: &str, class: &str) -> Change {
    Change::PutFact { fact: Box::new(fact(prefix, Origin::Operator, class)), now_s: 0 }
}

fn class_id(store: &Store, name: &str) -> u16 {
    store.snapshot().tables.class(name).unwrap().id
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sub/redirect.db");
    let (store, writer) = open(&path);
    store.change(class("gold")).await.unwrap();
    let committed = store.change(subscriber("10.0.0.0/8", "gold")).await.unwrap();
    assert_eq!((committed.revision, committed.outcome), (3, Outcome::Created));
    let before = store.snapshot();
    for file in ["redirect.db", "redirect.db-wal", "redirect.db.lock"] {
        let mode = std::fs::metadata(path.with_file_name(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} is open to others");
    }
    drop(store);
    writer.join().unwrap();

    let (store, _writer) = open(&path);
    assert_eq!(store.snapshot(), before, "opening again made a difference");
    assert_eq!(
        store.subscriber("10.0.0.0/8".parse().unwrap()).await.unwrap().unwrap().facts[0].fact.class.as_str(),
        "gold"
    );
}

#[tokio::test]
async fn a_refused_change_leaves_no_trace_even_inside_a_group() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    let good = |host: u8| store.change(subscriber(&format!("10.0.0.{host}/32"), "bypass"));
    let bad = store.change(subscriber("10.9.9.9/32", "nobody"));
    let (one, two, refused, three) = tokio::join!(good(1), good(2), bad, good(3));
    let mut revisions = [one.unwrap().revision, two.unwrap().revision, three.unwrap().revision];
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3, 4]);
    assert!(matches!(refused, Err(Error::NoSuchReference { pointer, .. }) if pointer == "/class"));
    assert_eq!(store.snapshot().revision, 4);
    assert_eq!(store.subscriber_counts().await.unwrap().values().sum::<u64>(), 3);
}

#[tokio::test]
async fn a_second_daemon_is_kept_out() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (_store, _writer) = open(&path);
    let Err(error) = store::open(&path, &file()) else { panic!("two daemons in one store") };
    assert_eq!(error.to_string(), format!("the store {} is in use by another redirectd", path.display()));
}

#[tokio::test]
async fn a_store_of_a_later_version_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let Err(error) = store::open(&path, &file()) else { panic!("opened") };
    assert!(matches!(error, Error::Schema { found: 99, .. }), "{error}");
    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, "this is no database, it is a text file of some length to be read".repeat(100)).unwrap();
    assert!(store::open(&garbage, &file()).is_err());
}

#[tokio::test]
async fn interfaces_of_an_earlier_version_serve_no_foreign_sources() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    let interface = Interface { source: Source::Api, ..crate::support::interface("lan7") };
    store.change(Change::PutInterface(interface)).await.unwrap();
    let before = store.snapshot().tables;
    drop(store);
    writer.join().unwrap();
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(&without_revisions(&["classes", "relays", "interfaces", "targets"])).unwrap();
    old.execute_batch(NO_FACTS).unwrap();
    old.execute_batch(
        "ALTER TABLE interfaces DROP COLUMN foreign_sources; ALTER TABLE classes DROP COLUMN smtp;
         ALTER TABLE classes DROP COLUMN on_daemon_down;
         ALTER TABLE classes DROP COLUMN certificate; DROP TABLE certificates; DROP TABLE users;
         DROP TABLE group_members; DROP TABLE routes; DROP TABLE managed_domains; ALTER TABLE targets RENAME TO gateways;
         ALTER TABLE gateways DROP COLUMN kind; ALTER TABLE gateways DROP COLUMN spec; ALTER TABLE gateways DROP COLUMN password;
         ALTER TABLE gateways ADD COLUMN address TEXT NOT NULL DEFAULT ''; ALTER TABLE gateways ADD COLUMN port INTEGER NOT NULL DEFAULT 25;
         ALTER TABLE gateways ADD COLUMN description TEXT NOT NULL DEFAULT ''; ALTER TABLE gateways ADD COLUMN status TEXT NOT NULL DEFAULT '';
         PRAGMA user_version = 2",
    )
    .unwrap();
    drop(old);
    let (store, _writer) = open(&path);
    assert_eq!(store.snapshot().tables, before);
}

/// AUTH without any way to offer it could be said then; it is read, and may go on as it did.
#[tokio::test]
async fn rules_of_an_earlier_version_go_on() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    store.change(class("gold")).await.unwrap();
    drop(store);
    writer.join().unwrap();
    let old = rusqlite::Connection::open(&path).unwrap();
    let all = ["classes", "relays", "interfaces", "targets", "routes", "managed_domains"];
    old.execute_batch(&without_revisions(&all)).unwrap();
    old.execute_batch(NO_FACTS).unwrap();
    old.execute_batch(
        r#"ALTER TABLE classes DROP COLUMN on_daemon_down; ALTER TABLE classes DROP COLUMN certificate; DROP TABLE certificates; DROP TABLE users;
           UPDATE classes SET smtp = '{"tls":"none","auth":"accept_any","auth_cleartext":false,"refuse_literals":true}' WHERE name = 'gold';
           PRAGMA user_version = 5"#,
    )
    .unwrap();
    drop(old);
    let (store, _writer) = open(&path);
    let expected = Smtp { auth: SmtpAuth::AcceptAny, refuse_literals: true, ..Smtp::default() };
    assert_eq!(store.snapshot().tables.class("gold").unwrap().spec.smtp, expected);
    assert!(store.snapshot().clients.policies[&class_id(&store, "gold")].refuse_literals);
}

#[tokio::test]
async fn a_number_is_given_away_again_only_after_the_kernel_let_go_of_it() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    store.change(class("one")).await.unwrap();
    let first = class_id(&store, "one");
    let freed = store.change(Change::DeleteClass("one".parse().unwrap())).await.unwrap();
    // 63 numbers, 5 for the default classes, one in limbo.
    for index in 0..57 {
        store.change(class(&format!("c{index}"))).await.unwrap();
        assert_ne!(class_id(&store, &format!("c{index}")), first);
    }
    assert!(matches!(store.change(class("last")).await, Err(Error::NumbersBusy { .. })));
    store.set_applied(freed.revision);
    store.change(class("last")).await.unwrap();
    assert_eq!(class_id(&store, "last"), first);
    assert!(matches!(store.change(class("toomany")).await, Err(Error::TooMany { max: 63, .. })));

    // Of several free numbers, the one that is free for the longest time.
    for name in ["c7", "c3", "c9"] {
        store.change(Change::DeleteClass(name.parse().unwrap())).await.unwrap();
    }
    store.set_applied(store.snapshot().revision);
    let old: Vec<u16> = vec![class_id(&store, "c6") + 1, class_id(&store, "c2") + 1, class_id(&store, "c8") + 1];
    for (name, id) in ["n1", "n2", "n3"].into_iter().zip(old) {
        store.change(class(name)).await.unwrap();
        assert_eq!(class_id(&store, name), id);
    }
}

#[tokio::test]
async fn a_view_holds_what_was_touched_or_everything() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    let touched = |store: &Store| match store.view(Scope::Touched).unwrap().subscribers {
        Subscribers::Touched(touched) => touched,
        Subscribers::All(_) => panic!("everything"),
    };
    store.change(subscriber("10.0.0.1/32", "bypass")).await.unwrap();
    store.change(subscriber("10.0.0.2/32", "bypass")).await.unwrap();
    let filter = FactFilter { prefix: Some("10.0.0.1/32".parse().unwrap()), ..FactFilter::default() };
    store.change(Change::DeleteFacts { filter: Box::new(filter), count: None }).await.unwrap();
    store.change(subscriber("10.0.0.3/32", "bypass")).await.unwrap();
    let first = touched(&store);
    assert_eq!(first.len(), 3, "the newest change counts too: {first:?}");
    assert_eq!(first.get(&"10.0.0.1/32".parse().unwrap()), Some(&None));
    assert_eq!(first.get(&"10.0.0.2/32".parse().unwrap()), Some(&Some(class_id(&store, "bypass"))));
    assert_eq!(touched(&store).len(), 0, "taken twice");
    let Subscribers::All(all) = store.view(Scope::All).unwrap().subscribers else { panic!("not everything") };
    assert_eq!(all.len(), 2);
}

#[tokio::test]
async fn the_file_s_own_things_follow_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let at = |endpoint: &str, interfaces: &[&str]| FileResources {
        relay_ipv4: Some(endpoint.parse().unwrap()),
        interfaces: interfaces.iter().map(|name| crate::support::interface(name)).collect(),
        ..file()
    };
    let reopen = |resources: FileResources| {
        let (store, _writer) = store::open(&path, &resources).unwrap();
        store.snapshot()
    };
    let first = reopen(at("10.0.0.1:25", &["lan0", "lan1"]));
    assert_eq!(reopen(at("10.0.0.1:25", &["lan0", "lan1"])).revision, first.revision, "nothing changed");
    let second = reopen(at("10.0.0.2:25", &["lan1"]));
    assert_eq!(second.revision, first.revision + 1);
    assert_eq!(second.tables.relay("embedded").unwrap().spec.ipv4, Some("10.0.0.2:25".parse().unwrap()));
    assert_eq!(second.tables.interfaces.keys().map(InterfaceName::as_str).collect::<Vec<_>>(), ["lan1"]);
}

#[tokio::test]
async fn a_smaller_table_than_the_store_s_content_is_refused_at_the_start() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    for host in 1..=3 {
        store.change(subscriber(&format!("10.0.0.{host}/32"), "bypass")).await.unwrap();
    }
    drop(store);
    writer.join().unwrap();
    let small = FileResources { subscribers_max: 2, file: PathBuf::from("/etc/r.toml"), ..file() };
    let Err(error) = store::open(&path, &small) else { panic!("opened") };
    assert!(
        error.to_string().contains("IPv4 hosts is full with 2; raise dataplane.subscribers_max in /etc/r.toml"),
        "{error}"
    );
}

/// The first schema, as redirectd 0.1 wrote it.
/// Takes the column of the revision off again.
fn without_revisions(tables: &[&str]) -> String {
    tables.iter().fold(String::new(), |all, table| format!("{all}ALTER TABLE {table} DROP COLUMN revision;"))
}

const FIRST_SCHEMA: &str = "
    CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL) STRICT;
    CREATE TABLE relays (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, ipv4 TEXT, ipv6 TEXT, delivery TEXT NOT NULL,
        source TEXT NOT NULL) STRICT;
    CREATE TABLE gateways (name TEXT PRIMARY KEY, address TEXT NOT NULL, port INTEGER NOT NULL, description TEXT NOT NULL,
        status TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE classes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, action TEXT NOT NULL,
        relay INTEGER REFERENCES relays (id), on_relay_down TEXT NOT NULL, gateway TEXT REFERENCES gateways (name)) STRICT;
    CREATE TABLE subscribers (prefix BLOB PRIMARY KEY, class INTEGER NOT NULL REFERENCES classes (id), origin TEXT NOT NULL,
        expires_s INTEGER) STRICT, WITHOUT ROWID;
    CREATE INDEX subscribers_class ON subscribers (class, prefix);
    CREATE INDEX subscribers_expires ON subscribers (expires_s) WHERE expires_s IS NOT NULL;
    CREATE TABLE interfaces (name TEXT PRIMARY KEY, role TEXT NOT NULL, hook TEXT NOT NULL, source TEXT NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE TABLE freed (kind TEXT NOT NULL, id INTEGER NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (kind, id))
        STRICT, WITHOUT ROWID;
    INSERT INTO state VALUES (1, 41);
    INSERT INTO relays VALUES (1, 'embedded', NULL, NULL, 'auto', 'file'), (4, 'postfix', '10.9.0.25:25', NULL, 'rewrite', 'api');
    INSERT INTO gateways VALUES ('mx', '192.0.2.1', 25, '', 'enabled');
    INSERT INTO classes VALUES (1, 'misconfigured', 'redirect', 1, 'pass', NULL), (7, 'gold', 'redirect', 4, 'block', 'mx'),
        (9, 'bypass', 'pass', NULL, 'pass', NULL);
    INSERT INTO subscribers VALUES (x'040a00000008', 7, 'portal', NULL);
    PRAGMA user_version = 1;
";

#[tokio::test]
async fn a_store_of_the_first_schema_keeps_its_classes_and_relays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(FIRST_SCHEMA).unwrap();
    let (store, writer) = open(&path);
    let snapshot = store.snapshot();
    assert_eq!(snapshot.revision, 41, "the content is the same");
    let pool = |name: &str| {
        let class = snapshot.tables.class(name).unwrap();
        (class.relay_ids.clone(), class.spec.relays.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(pool("misconfigured"), (vec![1], vec!["embedded".to_owned()]));
    assert_eq!(pool("gold"), (vec![4], vec!["postfix".to_owned()]));
    assert_eq!(pool("bypass"), (vec![], vec![]));
    let gold = &snapshot.tables.class("gold").unwrap().spec;
    assert_eq!((gold.on_class_change, gold.limits), (OnClassChange::Reset, Limits::default()));
    assert_eq!(gold.on_relay_down, Fallback::Block);
    assert_eq!(snapshot.tables.relay("postfix").unwrap().spec.status, RelayStatus::Enabled);
    let mx = Gateway {
        encryption: Encryption::None,
        allow_local: true,
        ..Gateway::new("mx".parse().unwrap(), "192.0.2.1".parse().unwrap(), 25)
    };
    assert_eq!(snapshot.tables.gateways.values().collect::<Vec<_>>(), [&mx], "in cleartext, as it was");
    assert_eq!(gold.gateway.as_ref(), Some(&mx.name));
    let query = Query { domain: None, sender: None, class: "gold", size: 0, priority: 0 };
    assert_eq!(snapshot.routing.decide(&query).unwrap().target, &Target::Gateway(mx.name));
    let subscriber = store.subscriber("10.0.0.0/8".parse().unwrap()).await.unwrap().unwrap();
    let [known] = subscriber.facts.as_slice() else { panic!("one fact") };
    assert_eq!((known.fact.class.as_str(), known.fact.source), ("gold", Origin::Portal));
    assert_eq!((known.effective, known.revision), (true, 41));

    // What holds of a store that was made today holds of this one: users keep what they use.
    let refused = store.change(Change::DeleteRelay("postfix".parse().unwrap())).await;
    assert!(matches!(refused, Err(Error::InUse { by, .. }) if by == "class gold"));
    let refused = store.change(Change::DeleteClass("gold".parse().unwrap())).await;
    assert!(matches!(refused, Err(Error::InUse { .. })));
    let refused = store.change(Change::DeleteGateway("mx".parse().unwrap())).await;
    assert!(matches!(refused, Err(Error::InUse { by, .. }) if by == "class gold"));
    drop(store);
    writer.join().unwrap();
    let (store, _writer) = open(&path);
    assert_eq!(store.snapshot(), snapshot);
}

/// The victim of the next test: writes without end and tells what was acknowledged.
#[test]
#[ignore = "run by the test that kills it"]
fn write_until_killed() {
    let Ok(path) = std::env::var("REDIRECT_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, _writer) = open(Path::new(&path));
        let start = store.snapshot().revision;
        for number in start.. {
            let [_, a, b, c] = u32::try_from(number).unwrap().to_be_bytes();
            let committed = store.change(subscriber(&format!("10.{a}.{b}.{c}/32"), "bypass")).await.unwrap();
            println!("acknowledged {}", committed.revision);
        }
    });
}

/// The revision that a victim's line tells; the harness writes its own words in front of the first one.
fn acknowledged_in(line: &str) -> Option<u64> {
    line.rsplit_once("acknowledged ").map(|(_, number)| number.parse().unwrap())
}

#[test]
fn killed_at_any_moment_it_keeps_what_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    for round in 0..8 {
        let (mut child, lines) = victim("store::write_until_killed", &path);
        let mut acknowledged = 0;
        for number in lines.filter_map(|line| acknowledged_in(&line)) {
            acknowledged = number;
            if acknowledged >= (round + 1) * 50 {
                // SIGKILL: no destructor, no checkpoint.
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let (store, _writer) = store::open(&path, &file()).unwrap();
        let revision = store.snapshot().revision;
        // What was written after the last line that we read was acknowledged as well, and nobody saw it.
        assert!(revision >= acknowledged && acknowledged > 0, "acknowledged {acknowledged}, found {revision}");
        let Subscribers::All(all) = store.view(Scope::All).unwrap().subscribers else { panic!("not everything") };
        assert_eq!(all.len() as u64, revision - 1, "content and revision differ");
    }
}

/// The victim of the next test: replaces everything again and again, and puts a fact in between.
#[test]
#[ignore = "run by the test that kills it"]
fn import_until_killed() {
    let Ok(path) = std::env::var("REDIRECT_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, _writer) = open(Path::new(&path));
        let first = u32::try_from(store.snapshot().revision).unwrap();
        println!("acknowledged {first}");
        for number in first.. {
            let change = if number % 4 == 0 {
                subscriber(&format!("10.9.9.{}/32", number % 256), "bypass")
            } else {
                import(0..IMPORTED, &number.to_string())
            };
            let committed = store.change(change).await.unwrap();
            println!("acknowledged {}", committed.revision);
        }
    });
}

const IMPORTED: u32 = 2_000;

/// These hosts in place of all that RADIUS said.
fn import(hosts: Range<u32>, user: &str) -> Change {
    let bypass = "bypass".parse().unwrap();
    let mut staging = Staging::default();
    for host in hosts {
        let record = Record {
            prefix: format!("10.0.{}.{}/32", host / 256, host % 256).parse().unwrap(),
            source: Origin::Radius,
            class: &bypass,
            priority: None,
            expires_s: None,
            session: None,
            user: Some(user),
            mac: None,
            labels: Labels::default(),
        };
        staging.push(host + 1, &record).unwrap();
    }
    staging.sort(|_, _| panic!("they are distinct"));
    let source = Some(Origin::Radius);
    Change::ImportFacts(Box::new(Import { staging, expired: 0, replace: true, source, key: None, now_s: 0 }))
}

#[tokio::test]
async fn an_import_that_meets_a_full_table_in_the_middle_leaves_no_trace() {
    let dir = TempDir::new().unwrap();
    let resources = FileResources { subscribers_max: 3, ..file() };
    let (store, writer) = store::open(&dir.path().join("redirect.db"), &resources).unwrap();
    let _writer = thread::spawn(|| writer.run());
    store.change(subscriber("10.9.9.9/32", "bypass")).await.unwrap();
    store.change(import(0..2, "anna")).await.unwrap();
    let before = store.snapshot();
    let all = FactQuery { contenders: true, ..FactQuery::default() };
    let facts = store.facts(all.clone()).await.unwrap();
    assert!(matches!(store.change(import(1..4, "bert")).await, Err(Error::Full { max: 3, .. })));
    assert_eq!((store.facts(all).await.unwrap(), store.snapshot()), (facts, before));
    // Nor does it take anybody's place.
    store.change(import(3..5, "bert")).await.unwrap();
    assert!(matches!(store.change(subscriber("10.9.9.8/32", "bypass")).await, Err(Error::Full { .. })));
}

#[tokio::test]
async fn killed_during_imports_it_keeps_all_of_one_or_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let mut cut = 0;
    for round in 0..100_u64 {
        let (mut child, lines) = victim("store::import_until_killed", &path);
        let mut numbers = lines.filter_map(|line| acknowledged_in(&line));
        let mut acknowledged = numbers.next().unwrap();
        thread::sleep(std::time::Duration::from_millis(round * 7 % 60));
        child.kill().unwrap();
        // What it said before it died counts.
        acknowledged = numbers.last().unwrap_or(acknowledged);
        child.wait().unwrap();
        let (store, writer) = open(&path);
        let revision = store.snapshot().revision;
        assert!(
            revision == acknowledged || revision == acknowledged + 1,
            "round {round}: acknowledged {acknowledged}, found {revision}"
        );
        cut += u32::from(revision > acknowledged);
        let facts = store.facts(FactQuery { contenders: true, ..FactQuery::default() }).await.unwrap();
        let imported: Vec<_> = facts.iter().filter(|known| known.fact.source == Origin::Radius).collect();
        assert!(imported.is_empty() || imported.len() == IMPORTED as usize, "round {round}: {} facts", imported.len());
        let users: BTreeSet<_> = imported.iter().map(|known| (known.fact.user.clone(), known.revision)).collect();
        assert!(users.len() <= 1, "round {round}: a mix of imports: {users:?}");
        let Subscribers::All(all) = store.view(Scope::All).unwrap().subscribers else { panic!("not everything") };
        assert_eq!(all.len(), facts.len(), "round {round}");
        drop(store);
        writer.join().unwrap();
    }
    eprintln!("{cut} of 100 kills met a change that was on disk and not acknowledged");
}
