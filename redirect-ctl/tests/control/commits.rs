//! The configuration as a whole in the store: what was committed is there as a whole, whatever happens, and can be taken back.

use std::{path::Path, thread, time::Duration};

use redirect_ctl::{
    configuration::{CommitState, Configuration, Document},
    desired::Time,
    limits,
    store::{Change, ConfigurationChange, Error, Note, Outcome, Store},
};
use tempfile::TempDir;

use crate::{
    store::{class, open, subscriber},
    support::victim,
};

const ROUTES: usize = 30;

/// A configuration whose parts all say `mark`.
fn marked(mark: u32) -> Document {
    let routes: Vec<_> = (0..ROUTES)
        .map(|n| serde_json::json!({"domain": format!("d{n}.example"), "gateway": "mx", "note": mark.to_string()}))
        .collect();
    let value = serde_json::json!({
        "classes": [{"name": "bypass", "action": "pass"}, {"name": "mark", "action": "pass", "limits": {"rate": mark}}],
        "gateways": [{"name": "mx", "address": "mx.example.net", "weight": mark,
            "account": {"username": "us", "password": mark.to_string(), "allow_unprotected": true}}],
        "routes": routes,
    });
    serde_json::from_value(value).unwrap()
}

/// What all parts of a configuration say.
fn mark_of(configuration: &Configuration) -> u32 {
    let mark = configuration.classes[&"mark".parse().unwrap()].limits.rate.unwrap();
    let gateway = &configuration.gateways[&"mx".parse().unwrap()];
    assert_eq!(u32::from(gateway.weight), mark, "two commits are mixed");
    assert_eq!(gateway.account.as_ref().unwrap().password.expose(), mark.to_string(), "two commits are mixed");
    assert_eq!(configuration.routes.len(), ROUTES);
    for route in configuration.routes.values() {
        assert_eq!(route.note, mark.to_string(), "two commits are mixed");
    }
    mark
}

fn note(comment: &str) -> Note {
    Note { author: None, comment: comment.to_owned(), time: Time::now() }
}

fn commit(mark: u32, confirm_within_s: Option<u64>) -> Change {
    let (document, note) = (marked(mark), note("test"));
    Change::Configuration(Box::new(ConfigurationChange::Commit { document, note, confirm_within_s }))
}

fn confirm() -> Change {
    Change::Configuration(Box::new(ConfigurationChange::Confirm { now: Time::now() }))
}

fn roll_back(back: u32) -> Change {
    Change::Configuration(Box::new(ConfigurationChange::Rollback { back, note: note("back") }))
}

/// As at a time when nothing waits any more.
fn revert_overdue() -> Change {
    let now = Time { seconds: Time::now().seconds + 601 };
    Change::Configuration(Box::new(ConfigurationChange::RevertOverdue { now }))
}

async fn mark_in(store: &Store) -> u32 {
    mark_of(&store.configuration().await.unwrap().1)
}

/// The process that the next test kills: it says what will be before each change, and what is after it was acknowledged.
#[test]
#[ignore = "a helper of the next test"]
fn commit_until_killed() {
    let Ok(path) = std::env::var("REDIRECT_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, _writer) = open(Path::new(&path));
        let mut mark = mark_in(&store).await;
        let change = async |change: Change, mark: u32| {
            println!("will {mark}");
            let revision = store.change(change).await.unwrap().revision;
            println!("did {mark} {revision}");
        };
        if store.snapshot().standing.pending.is_some() {
            change(confirm(), mark).await;
        }
        for round in 0.. {
            let next = mark % 900 + 1;
            change(commit(next, Some(600)), next).await;
            match round % 3 {
                0 => change(confirm(), next).await,
                1 => change(roll_back(1), mark).await,
                _ => change(revert_overdue(), mark).await,
            }
            mark = if round % 3 == 0 { next } else { mark };
        }
    });
}

#[tokio::test]
async fn killed_at_any_moment_a_commit_is_there_as_a_whole_or_not_at_all() {
    const KILLS: u32 = 100;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    store.change(commit(1, None)).await.unwrap();
    let (mut mark, mut revision) = (1, store.snapshot().revision);
    drop(store);
    writer.join().unwrap();
    let mut pending_seen = 0;
    for kill in 0..KILLS {
        let (mut child, lines) = victim("commits::commit_until_killed", &path);
        // Several changes further each time, and at another moment of the next one.
        let (mut left, mut will) = (1 + kill % 9, mark);
        for line in lines {
            // The harness writes its own words in front of the first one.
            if let Some((_, said)) = line.rsplit_once("will ") {
                will = said.parse().unwrap();
                if left == 0 {
                    thread::sleep(Duration::from_micros(u64::from(kill * 37 % 1_000)));
                    child.kill().unwrap();
                    left = u32::MAX;
                }
            } else if let Some((_, said)) = line.rsplit_once("did ") {
                let (said, at) = said.split_once(' ').unwrap();
                (mark, revision) = (said.parse().unwrap(), at.parse().unwrap());
                left = left.saturating_sub(1);
            }
        }
        child.wait().unwrap();

        let (store, writer) = open(&path);
        let (found, standing) = (mark_in(&store).await, store.snapshot().standing);
        let at = store.snapshot().revision;
        assert!([mark, will].contains(&found), "kill {kill}: {found}, not {mark} or {will}");
        assert!((revision..=revision + 1).contains(&at), "kill {kill}: revision {at} after {revision}");
        assert_eq!(standing.revision, at, "kill {kill}");
        let history = store.history().await.unwrap();
        assert!(history.len() <= limits::HISTORY_MAX, "{}", history.len());
        assert_eq!(history[0].revision, at, "kill {kill}: the history ends elsewhere");
        assert_eq!(mark_of(&store.configuration_back(0).await.unwrap().1), found, "kill {kill}");
        let pending: Vec<_> = history
            .iter()
            .filter(|commit| commit.state == CommitState::Pending)
            .map(|commit| commit.revision)
            .collect();
        assert_eq!(pending, Vec::from_iter(standing.pending.as_ref().map(|pending| pending.revision)), "kill {kill}");
        (mark, revision) = (found, at);
        if standing.pending.is_some() {
            pending_seen += 1;
            // Half of them are taken back here, the others are confirmed by the next process.
            if pending_seen % 2 == 0 {
                let before = mark_of(&store.configuration_back(1).await.unwrap().1);
                (mark, revision) = (before, store.change(revert_overdue()).await.unwrap().revision);
                assert_eq!(mark_in(&store).await, before);
            }
        }
        drop(store);
        writer.join().unwrap();
    }
    assert!(pending_seen > KILLS / 10, "only {pending_seen} kills met a pending commit");
}

#[tokio::test]
async fn a_commit_that_is_refused_in_the_middle_leaves_no_trace() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    store.change(commit(1, None)).await.unwrap();
    store.change(subscriber("10.0.0.0/8", "mark")).await.unwrap();
    let before = (store.snapshot(), store.configuration().await.unwrap(), store.history().await.unwrap());
    // Routes go before classes, of which the last one has a subscriber.
    let mut document = marked(1);
    document.routes.clear();
    document.classes.pop();
    let refused = ConfigurationChange::Commit { document, note: note("without"), confirm_within_s: None };
    let refused = store.change(Change::Configuration(Box::new(refused))).await;
    assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    let after = (store.snapshot(), store.configuration().await.unwrap(), store.history().await.unwrap());
    assert_eq!(after, before);
}

#[tokio::test]
async fn the_history_keeps_so_many_states_and_never_forgets_the_one_before_a_pending_commit() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    for mark in 1..=60 {
        store.change(commit(mark, None)).await.unwrap();
    }
    let history = store.history().await.unwrap();
    assert_eq!(history.len(), limits::HISTORY_MAX);
    assert_eq!(history.iter().map(|commit| commit.back).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert_eq!(mark_of(&store.configuration_back(49).await.unwrap().1), 11);
    assert!(matches!(store.configuration_back(50).await, Err(Error::NotFound { .. })));
    store.change(commit(99, Some(600))).await.unwrap();
    assert!(matches!(store.change(class("gold")).await, Err(Error::Pending { .. })));
    assert!(matches!(store.change(commit(98, None)).await, Err(Error::Pending { .. })));
    store.change(subscriber("10.0.0.0/8", "bypass")).await.unwrap();
    assert_eq!(store.change(revert_overdue()).await.unwrap().outcome, Outcome::Replaced);
    assert_eq!(mark_in(&store).await, 60);
    assert_eq!(store.change(revert_overdue()).await.unwrap().outcome, Outcome::Unchanged);
    assert!(matches!(store.change(confirm()).await, Err(Error::Conflict { .. })));
    // The secrets of then.
    store.change(roll_back(30)).await.unwrap();
    let password = |found: &Configuration| found.gateways[&"mx".parse().unwrap()].account.clone().unwrap().password;
    let found = store.configuration().await.unwrap().1;
    assert_eq!(password(&found).expose(), mark_of(&found).to_string());
}

/// What does not change from one state of the history to the next is kept once.
#[tokio::test]
async fn a_configuration_with_many_routes() {
    const MANY: usize = 20_000;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, _writer) = open(&path);
    let many = |rate: u32| {
        let mut document = marked(rate);
        let route = |n| serde_json::json!({"domain": format!("d{n}.example"), "gateway": "mx"});
        document.routes = (0..MANY).map(|n| serde_json::from_value(route(n)).unwrap()).collect();
        let commit = ConfigurationChange::Commit { document, note: note("many"), confirm_within_s: None };
        Change::Configuration(Box::new(commit))
    };
    let kept = || -> u64 {
        let reader = rusqlite::Connection::open(&path).unwrap();
        reader.query_row("SELECT sum(octet_length(text)) FROM commit_texts", [], |row| row.get(0)).unwrap()
    };
    store.change(many(1)).await.unwrap();
    let one = kept();
    for rate in 2..5 {
        store.change(many(rate)).await.unwrap();
    }
    assert!(kept() < one + 10_000, "{one} bytes, and {} after three commits that change no route", kept());
    let history = store.history().await.unwrap();
    assert_eq!((history[0].changed, history[0].added), (2, 0));
    store.change(roll_back(4)).await.unwrap();
    assert_eq!(store.configuration().await.unwrap().1.routes.len(), 0);
}
