//! Subscribers: what each source says, what decides, how long it holds.

use std::{path::Path, thread};

use redirect_ctl::{
    desired::{Origin, Time},
    store::{self, Change, FactFilter, FactQuery, FileResources, Outcome, Scope, Store, Subscribers},
    subscribers::{Fact, Labels, Priorities, Priority},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    store::open,
    support::{Answer, Lab, eventually},
};

fn open_with(path: &Path, priorities: Priorities) -> (Store, thread::JoinHandle<()>) {
    let resources = FileResources { subscribers_max: 1_000_000, priorities, ..FileResources::default() };
    let (store, writer) = store::open(path, &resources).unwrap();
    (store, thread::spawn(|| writer.run()))
}

pub(crate) fn fact(prefix: &str, source: Origin, class: &str) -> Fact {
    Fact {
        prefix: prefix.parse().unwrap(),
        source,
        class: class.parse().unwrap(),
        priority: None,
        expires_s: None,
        session: None,
        user: None,
        mac: None,
        labels: Labels::default(),
    }
}

async fn put(store: &Store, fact: &Fact, now_s: i64) -> (u64, Outcome) {
    let change = Change::PutFact { fact: Box::new(fact.clone()), now_s };
    let committed = store.change(change).await.unwrap();
    (committed.revision, committed.outcome)
}

/// The name of the class that the kernel is to follow for a prefix.
fn kernel_class(store: &Store, prefix: &str) -> Option<String> {
    let view = store.view(Scope::All).unwrap();
    let Subscribers::All(all) = view.subscribers else { panic!("not everything") };
    let id = all.get(&prefix.parse().unwrap())?;
    Some(view.snapshot.tables.classes[id].spec.name.to_string())
}

#[tokio::test]
async fn the_fact_that_ranks_highest_decides_and_the_next_one_after_it() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    let prefix = "10.0.0.1/32";
    put(&store, &fact(prefix, Origin::Radius, "configured"), 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("configured"));
    put(&store, &fact(prefix, Origin::Dhcp, "misconfigured"), 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("configured"), "DHCP ranks below RADIUS");
    put(&store, &Fact { expires_s: Some(100), ..fact(prefix, Origin::Portal, "authenticated") }, 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("authenticated"));
    put(&store, &Fact { expires_s: Some(200), ..fact(prefix, Origin::Operator, "blocked") }, 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("blocked"));
    let sources = |facts: Vec<redirect_ctl::subscribers::Known>| {
        facts.iter().map(|known| (known.fact.source, known.effective)).collect::<Vec<_>>()
    };
    let subscriber = store.subscriber(prefix.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(
        sources(subscriber.facts),
        [(Origin::Operator, true), (Origin::Portal, false), (Origin::Radius, false), (Origin::Dhcp, false)]
    );
    assert_eq!(
        store.subscriber_counts().await.unwrap().values().sum::<u64>(),
        1,
        "one subscriber, whatever is said of it"
    );

    // Each expires by itself; what was outranked decides again.
    assert_eq!(store.next_expiry_s().await.unwrap(), Some(100));
    let expired = store.change(Change::Expire { now_s: 150 }).await.unwrap();
    assert_eq!(expired.outcome, Outcome::Expired(1));
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("blocked"));
    assert_eq!(store.change(Change::Expire { now_s: 199 }).await.unwrap().outcome, Outcome::Unchanged);
    store.change(Change::Expire { now_s: 200 }).await.unwrap();
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("configured"));
    assert_eq!(store.next_expiry_s().await.unwrap(), None);

    // A fact may say how much it weighs; of equals the newest decides.
    let heavy = Fact { priority: Some(Priority::try_from(200).unwrap()), ..fact(prefix, Origin::Dhcp, "bypass") };
    put(&store, &heavy, 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("bypass"));
    put(&store, &fact(prefix, Origin::Radius, "authenticated"), 0).await;
    assert_eq!(kernel_class(&store, prefix).as_deref(), Some("authenticated"));
}

#[tokio::test]
async fn what_is_outranked_touches_neither_the_kernel_nor_its_keys() {
    let dir = TempDir::new().unwrap();
    let (store, _writer) = open(&dir.path().join("redirect.db"));
    put(&store, &fact("10.0.0.1/32", Origin::Operator, "blocked"), 0).await;
    store.view(Scope::All).unwrap();
    let (revision, outcome) = put(&store, &fact("10.0.0.1/32", Origin::Radius, "bypass"), 0).await;
    assert_eq!(outcome, Outcome::Replaced);
    let view = store.view(Scope::Touched).unwrap();
    assert_eq!(view.snapshot.revision, revision);
    assert!(matches!(view.subscribers, Subscribers::Touched(touched) if touched.is_empty()));
    // A reader who follows revisions sees the subscriber again.
    let filter = FactFilter { changed_since: Some(revision - 1), ..FactFilter::default() };
    let changed = store.facts(FactQuery { filter, ..FactQuery::default() }).await.unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!((changed[0].fact.source, changed[0].revision), (Origin::Operator, revision));
}

#[tokio::test]
async fn what_is_said_again_writes_nothing_and_a_longer_life_is_written_seldom() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    let session = |expires_s| Fact {
        expires_s: Some(expires_s),
        session: Some("S1".parse().unwrap()),
        ..fact("10.0.0.1/32", Origin::Radius, "authenticated")
    };
    let (revision, _) = put(&store, &session(1_100), 1_000).await;
    // Another connection sees what is on disk.
    let disk = rusqlite::Connection::open(&path).unwrap();
    let written = || disk.query_row("SELECT expires_s FROM facts", [], |row| row.get::<_, i64>(0)).unwrap();
    let version = || disk.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    for second in 0..=25 {
        assert_eq!(put(&store, &session(1_100 + second), 1_000 + second).await, (revision, Outcome::Unchanged));
    }
    assert_eq!(version(), before, "something was written");
    let known = store.subscriber("10.0.0.1/32".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(known.facts[0].fact.expires_s, Some(1_125), "readers see it nevertheless");
    assert_eq!(put(&store, &session(1_126), 1_026).await, (revision, Outcome::Unchanged));
    assert_eq!(written(), 1_126, "a quarter of the time has passed");

    // When what is written comes due, what is known counts.
    put(&store, &session(1_130), 1_030).await;
    assert_eq!(written(), 1_126);
    assert_eq!(store.change(Change::Expire { now_s: 1_126 }).await.unwrap().outcome, Outcome::Unchanged);
    assert_eq!(written(), 1_130);
    assert_eq!(store.change(Change::Expire { now_s: 1_130 }).await.unwrap().outcome, Outcome::Expired(1));

    // A shorter life, and another session, are changes.
    put(&store, &session(2_100), 2_000).await;
    assert_eq!(put(&store, &session(2_050), 2_000).await.1, Outcome::Replaced);
    assert_eq!(written(), 2_050);
    put(&store, &session(2_055), 2_000).await;
    assert_eq!(written(), 2_050);
    // At a stop nothing is forgotten.
    drop(store);
    writer.join().unwrap();
    assert_eq!(written(), 2_055);
}

#[tokio::test]
async fn other_priorities_in_the_file_choose_anew() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redirect.db");
    let (store, writer) = open(&path);
    put(&store, &fact("10.0.0.1/32", Origin::Portal, "authenticated"), 0).await;
    let (revision, _) = put(&store, &fact("10.0.0.1/32", Origin::Radius, "blocked"), 0).await;
    drop(store);
    writer.join().unwrap();
    let (store, writer) = open_with(&path, Priorities { radius: 350, ..Priorities::default() });
    assert_eq!(kernel_class(&store, "10.0.0.1/32").as_deref(), Some("blocked"));
    assert_eq!(store.snapshot().revision, revision + 1);
    drop(store);
    writer.join().unwrap();
    let (store, _writer) = open_with(&path, Priorities { radius: 350, ..Priorities::default() });
    assert_eq!(store.snapshot().revision, revision + 1, "nothing is new");
}

fn facts(answer: &Answer) -> Vec<(String, String, bool)> {
    let facts = answer.json()["facts"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    facts.iter().map(|fact| (text(&fact["source"]), text(&fact["class"]), fact["effective"] == true)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_contend_and_explain_shows_them() {
    let lab = Lab::start().await;
    let target = "/v1/subscribers/10.20.3.7";
    let radius = json!({"class": "configured", "source": "radius", "session": "8A01", "user": "anna@example.net",
        "mac": "02-00-5E-10-00-07", "ttl_s": 600, "labels": {"nas": "bng-3"}});
    let put = lab.put(target, &radius.to_string()).await.expect(201).json();
    assert_eq!((&put["class"], &put["mac"]), (&json!("configured"), &json!("02:00:5e:10:00:07")));
    let operator = lab.put(target, r#"{"class":"blocked"}"#).await.expect(200);
    let said = [("operator", "blocked", true), ("radius", "configured", false)];
    let said = said.map(|(source, class, effective)| (source.to_owned(), class.to_owned(), effective));
    assert_eq!(facts(&operator), said);
    assert_eq!(facts(&lab.get(target).await), said);
    let explained = lab.get("/v1/explain?source=10.20.3.7&destination=203.0.113.9").await.expect(200);
    assert_eq!(facts(&explained), said);
    assert_eq!(explained.json()["class"], "blocked");
    let shown = lab.ctl(&["explain", "10.20.3.7", "203.0.113.9"]).await.stdout;
    assert!(shown.contains("operator=blocked(400),radius=configured(200,until "), "{shown}");

    // A late end of another session ends nothing.
    let late = lab.delete(&format!("{target}?source=radius&session=7FFF")).await;
    late.problem(404, "not_found", None);
    assert_eq!(late.json()["detail"], "there is no subscriber 10.20.3.7/32 of radius with session 7FFF");
    assert_eq!(facts(&lab.get(target).await).len(), 2);
    lab.delete(&format!("{target}?source=operator")).await.expect(204);
    let prefix = "10.20.3.7/32".parse().unwrap();
    assert_eq!(lab.model.state().subscribers.get(&prefix), Some(&2));
    lab.delete(&format!("{target}?session=8A01")).await.expect(204);
    assert!(lab.model.state().subscribers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_that_expires_lets_the_next_one_decide() {
    let lab = Lab::start().await;
    let soon = Time { seconds: Time::now().seconds + 2 };
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"configured","source":"dhcp"}"#).await.expect(201);
    let portal = json!({"class": "authenticated", "source": "portal", "expires": soon});
    lab.put("/v1/subscribers/10.0.0.1", &portal.to_string()).await.expect(200);
    let class = || lab.model.state().subscribers.values().next().copied();
    assert_eq!(class(), Some(3));
    eventually("the portal's word has expired", || async { class() == Some(2) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_facts_go_by_source_session_and_label() {
    let lab = Lab::start().await;
    for host in 1..=6 {
        let nas = if host <= 4 { "bng-1" } else { "bng-2" };
        let body = json!({"class": "configured", "source": "radius", "session": format!("s{}", host / 2), "labels": {"nas": nas}});
        lab.put(&format!("/v1/subscribers/10.0.0.{host}"), &body.to_string()).await.expect(201);
    }
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"blocked","source":"portal"}"#).await.expect(200);
    let delete = async |body: Value| lab.post("/v1/subscribers:delete", &body.to_string()).await;
    delete(json!({})).await.problem(422, "invalid", Some(""));
    delete(json!({"class": "nobody"})).await.problem(422, "invalid", Some("/class"));
    delete(json!({"source": "radius", "labels": {"a b": "c"}})).await.problem(422, "invalid", Some("/labels"));
    let off = json!({"source": "radius", "labels": {"nas": "bng-1"}, "count": 3});
    delete(off).await.problem(409, "conflict", None);
    assert_eq!(lab.model.state().subscribers.len(), 6);
    let off = delete(json!({"source": "radius", "labels": {"nas": "bng-1"}, "count": 4})).await.expect(200);
    assert_eq!(off.json(), json!({"count": 4}));
    let left: Vec<_> = lab.model.state().subscribers.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["10.0.0.1/32", "10.0.0.5/32", "10.0.0.6/32"]);
    assert_eq!(delete(json!({"session": "s2"})).await.expect(200).json(), json!({"count": 1}));
    assert_eq!(delete(json!({"within": "10.0.0.0/24"})).await.expect(200).json(), json!({"count": 2}));
    assert_eq!(delete(json!({"within": "10.0.0.0/24"})).await.expect(200).json(), json!({"count": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_whatever_is_known() {
    let lab = Lab::start().await;
    let facts = [
        (
            "10.0.0.1",
            json!({"class": "configured", "source": "radius", "session": "A", "user": "anna", "expires": "2099-01-01T00:00:00Z"}),
        ),
        (
            "10.0.0.2",
            json!({"class": "configured", "source": "radius", "session": "B", "user": "bert", "mac": "020000000002"}),
        ),
        (
            "10.0.0.3",
            json!({"class": "blocked", "source": "portal", "user": "anna", "expires": "2098-01-01T00:00:00Z"}),
        ),
    ];
    let mut revision = 0;
    for (host, body) in &facts {
        let put = lab.put(&format!("/v1/subscribers/{host}"), &body.to_string()).await.expect(201);
        revision = put.json()["revision"].as_u64().unwrap();
    }
    // Outranked: not what the list is about.
    lab.put("/v1/subscribers/10.0.0.3", r#"{"class":"configured","source":"dhcp","user":"carl"}"#).await.expect(200);
    for (query, expected) in [
        ("user=anna", &["10.0.0.1/32", "10.0.0.3/32"][..]),
        ("user=anna&class=blocked", &["10.0.0.3/32"]),
        ("user=carl", &[]),
        ("mac=02:00:00:00:00:02", &["10.0.0.2/32"]),
        ("source=radius", &["10.0.0.1/32", "10.0.0.2/32"]),
        ("session=B", &["10.0.0.2/32"]),
        ("expires_before=2098-06-01T00:00:00Z", &["10.0.0.3/32"]),
        ("expires_before=2099-06-01T00:00:00Z", &["10.0.0.1/32", "10.0.0.3/32"]),
        (&format!("changed_since={revision}"), &["10.0.0.3/32"]),
        (&format!("changed_since={}", revision + 1), &[]),
    ] {
        let page = lab.get(&format!("/v1/subscribers?{query}&count=true")).await.expect(200).json();
        let found: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|item| item["prefix"].as_str().unwrap()).collect();
        assert_eq!((found.as_slice(), &page["count"]), (expected, &json!(expected.len())), "{query}");
    }
    for bad in ["source=me", "mac=x", "expires_before=soon", "user=", "session=a%00b"] {
        let name = bad.split('=').next().unwrap();
        lab.get(&format!("/v1/subscribers?{bad}")).await.problem(422, "invalid", Some(&format!("?{name}")));
    }
    assert_eq!(lab.get("/v1/subscribers?limit=1").await.json().get("count"), None, "nobody asked");
}

/// A file of hosts of one class.
fn hosts(range: std::ops::Range<u32>, class: &str) -> String {
    let line = |host: u32| {
        let [_, a, b, c] = host.to_be_bytes();
        format!("{{\"prefix\":\"10.{a}.{b}.{c}\",\"class\":\"{class}\",\"source\":\"radius\"}}\n")
    };
    range.map(line).collect()
}

fn counts(answer: &Answer) -> [u64; 5] {
    let report = answer.json();
    ["added", "changed", "removed", "unchanged", "expired"].map(|name| report[name].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_merges_or_replaces() {
    let lab = Lab::start().await;
    let import = async |query: &str, file: &str| lab.post(&format!("/v1/subscribers:import{query}"), file).await;
    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"blocked"}"#).await.expect(201);
    let first = import("", &hosts(0..300, "configured")).await.expect(200);
    assert_eq!((counts(&first), first.header("redirect-applied")), ([300, 0, 0, 0, 0], Some("true")));
    assert_eq!(lab.model.state().subscribers.len(), 301, "the kernel holds it when the answer is there");
    let revision = first.header("redirect-revision").unwrap().to_owned();

    // The same again makes no revision.
    let again = import("?mode=merge", &hosts(0..300, "configured")).await.expect(200);
    assert_eq!((counts(&again), again.header("redirect-revision")), ([0, 0, 0, 300, 0], Some(revision.as_str())));

    // A dry run tells and does nothing.
    let file = hosts(100..200, "blocked") + &hosts(300..350, "blocked");
    let dry = import("?mode=replace&dry_run=true&source=radius", &file).await.expect(200);
    assert_eq!(counts(&dry), [50, 100, 200, 0, 0]);
    let examples = dry.json()["examples"].as_array().unwrap().clone();
    assert_eq!(examples.len(), 100);
    assert_eq!((&examples[0]["before"]["prefix"], &examples[0]["after"]), (&json!("10.0.0.0/32"), &Value::Null));
    assert_eq!(lab.model.state().subscribers.len(), 301);

    // What another source says is not replaced.
    let done = import("?mode=replace&source=radius", &file).await.expect(200);
    assert_eq!(counts(&done), [50, 100, 200, 0, 0]);
    assert_eq!(lab.model.state().subscribers.len(), 151);
    let all = import("?mode=replace", r#"{"prefix":"10.9.9.9","class":"blocked"}"#).await.expect(200);
    assert_eq!(counts(&all), [0, 0, 150, 1, 0]);
    let state = lab.model.state();
    assert_eq!(state.subscribers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.9.9/32"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_all_or_nothing() {
    let lab = Lab::start().await;
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"configured"}"#).await.expect(201);
    let revision = lab.get("/v1/status").await.json()["revision"].clone();
    let good = hosts(0..50, "blocked");
    let bad = format!("{good}{{\"prefix\":\"10.0.0.0/8\",\"class\":\"nobody\"}}\nx\n{good}");
    let refused = lab.post("/v1/subscribers:import?mode=replace", &bad).await.expect(422);
    let problem = refused.json();
    assert_eq!(problem["code"], "invalid");
    assert_eq!(problem["lines"]["total"], 52);
    let first: Vec<_> = problem["lines"]["first"].as_array().unwrap()[..3].to_vec();
    assert_eq!(
        first[0],
        json!({"line": 51, "pointer": "/class", "code": "invalid", "detail": "there is no class nobody; create it first"})
    );
    assert_eq!((&first[1]["line"], &first[1]["code"]), (&json!(52), &json!("invalid_json")));
    assert_eq!((&first[2]["line"], &first[2]["pointer"]), (&json!(53), &json!("/prefix")));

    // More than the kernel has room for.
    lab.post("/v1/subscribers:import", &hosts(0..1_001, "blocked")).await.problem(409, "too_many", None);
    // A body that ends early.
    let stream = tokio::net::UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
    let head = "POST /v1/subscribers:import HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n";
    stream.writable().await.unwrap();
    stream.try_write(format!("{head}{good}").as_bytes()).unwrap();
    drop(stream);
    // No line ends.
    let endless = "x".repeat(1 << 20);
    lab.post("/v1/subscribers:import", &endless).await.problem(413, "too_large", Some("line 1"));
    for (query, pointer) in [("?mode=all", "?"), ("?source=me", "?source"), ("?sorce=dhcp", "?sorce")] {
        let answer = lab.post(&format!("/v1/subscribers:import{query}"), &good).await;
        assert!(answer.status == 400 || answer.status == 422, "{query}");
        assert!(answer.json()["errors"][0]["pointer"].as_str().unwrap().starts_with(pointer), "{query}");
    }
    let status = lab.get("/v1/status").await.json();
    assert_eq!((&status["revision"], &status["subscribers"]), (&revision, &json!(1)));
    assert_eq!(lab.model.state().subscribers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_sent_again_is_answered_again() {
    let lab = Lab::start().await;
    let import = async |key: &str, query: &str, file: &str| {
        let target = format!("/v1/subscribers:import{query}");
        lab.raw("POST", &target, &format!("Idempotency-Key: {key}\r\n"), file.as_bytes()).await
    };
    // A line whose time has come is counted each time.
    let file =
        hosts(0..20, "configured") + r#"{"prefix":"10.9.9.8","class":"bypass","expires":"2001-01-01T00:00:00Z"}"#;
    let first = import("night-1", "?mode=replace", &file).await.expect(200);
    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"blocked"}"#).await.expect(201);
    let again = import("night-1", "?mode=replace", &file).await.expect(200);
    assert_eq!(
        (again.text.as_str(), again.header("redirect-revision")),
        (first.text.as_str(), first.header("redirect-revision"))
    );
    assert_eq!(lab.model.state().subscribers.len(), 21, "it was not carried out again");
    // Another file, or another meaning of the same one.
    import("night-1", "?mode=replace", &hosts(0..21, "configured")).await.problem(409, "conflict", None);
    import("night-1", "?mode=merge", &file).await.problem(409, "conflict", None);
    import(&"x".repeat(256), "", &file).await.problem(422, "invalid", Some("Idempotency-Key:"));
    // A dry run does nothing twice as well.
    import("night-2", "?mode=replace&dry_run=true", &file).await.expect(200);
    assert_eq!(counts(&import("night-2", "?mode=replace", &file).await.expect(200)), [0, 0, 1, 20, 1]);
    // Also across a restart.
    let lab = lab.restart(|_| {}).await;
    let again =
        lab.raw("POST", "/v1/subscribers:import?mode=replace", "Idempotency-Key: night-1\r\n", file.as_bytes()).await;
    assert_eq!(again.expect(200).text, first.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_an_import_takes() {
    let lab = Lab::start().await;
    lab.post("/v1/subscribers:import", &hosts(0..500, "configured")).await.expect(200);
    let portal = json!({"class": "authenticated", "source": "portal", "session": "a\"ä", "user": "anna", "mac": "020000000001",
        "priority": 7, "expires": "2099-01-01T00:00:00Z", "labels": {"nas": "x"}});
    lab.put("/v1/subscribers/10.0.0.1", &portal.to_string()).await.expect(200);
    let export = lab.get("/v1/subscribers:export").await.expect(200);
    assert_eq!(export.header("content-type"), Some("application/x-ndjson"));
    let file = dechunked(&export.text);
    assert_eq!(file.lines().count(), 501);
    let status = lab.get("/v1/status").await.json();
    assert_eq!(export.header("etag"), Some(format!("\"{}\"", status["revision"]).as_str()));
    let same = lab.post("/v1/subscribers:import?mode=replace", &file).await.expect(200);
    assert_eq!(counts(&same), [0, 0, 0, 501, 0]);
    let one = lab.get("/v1/subscribers:export?user=anna").await.expect(200);
    let one: Value = serde_json::from_str(&dechunked(&one.text)).unwrap();
    assert_eq!((&one["session"], &one["labels"], &one["priority"]), (&json!("a\"ä"), &json!({"nas": "x"}), &json!(7)));

    // A list as lines holds what decides, with revisions.
    let lines =
        lab.raw("GET", "/v1/subscribers?within=10.0.0.0_30", "Accept: application/x-ndjson\r\n", b"").await.expect(200);
    let lines: Vec<Value> = dechunked(&lines.text).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["source"] == "radius" && line["revision"].is_u64()));
}

/// What a body in chunks says.
fn dechunked(body: &str) -> String {
    let (mut rest, mut text) = (body, String::new());
    loop {
        let (size, behind) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return text;
        }
        text.push_str(&behind[..size]);
        rest = &behind[size + 2..];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_imports_exports_and_compares() {
    let lab = Lab::start().await;
    let path = lab.dir.path().join("subscribers.ndjson");
    let file = path.to_str().unwrap();
    std::fs::write(file, hosts(0..40, "configured")).unwrap();
    let differs = lab.ctl(&["subscriber", "diff", file]).await;
    assert_eq!((differs.code, differs.stderr.as_str()), (6, ""));
    assert!(differs.stdout.contains("added      10.0.0.0/32   radius  -       configured\n"), "{}", differs.stdout);
    let dry = lab.ctl(&["-o", "json", "subscriber", "import", file, "--dry-run"]).await;
    assert_eq!(serde_json::from_str::<Value>(&dry.stdout).unwrap()["added"], 40);
    let done = lab.ctl(&["-o", "json", "subscriber", "import", file]).await;
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let same = lab.ctl(&["subscriber", "diff", file]).await;
    assert_eq!(same.code, 0, "{}", same.stdout);
    let export = lab.ctl(&["subscriber", "export", "--within", "10.0.0.0/31"]).await;
    assert_eq!(export.stdout.lines().count(), 2);

    // What goes is asked about first.
    std::fs::write(file, hosts(0..30, "configured")).unwrap();
    let kept = lab.ctl_with(&["subscriber", "import", file, "--mode", "replace"], "n\n").await;
    assert_eq!((kept.code, lab.model.state().subscribers.len()), (1, 40), "{}", kept.stderr);
    assert_eq!(kept.stderr, "add 0, change 0 and delete 10 facts? [y/N] redirect-ctl: nothing was changed\n");
    let usage = lab.ctl_with(&["subscriber", "import", "-", "--mode", "replace"], "").await;
    assert_eq!(usage.code, 2);
    let replaced =
        lab.ctl_with(&["subscriber", "import", "-", "--mode", "replace", "--yes"], &hosts(0..30, "blocked")).await;
    assert_eq!((replaced.code, lab.model.state().subscribers.len()), (0, 30), "{}", replaced.stderr);

    let faulty = lab.ctl_with(&["subscriber", "import", "-"], "{\"prefix\":\"10.0.0.1\"}\n\nx\n").await;
    assert_eq!(faulty.code, 1);
    assert!(faulty.stderr.starts_with("line 1 /class: missing field `class`\nline 3: "), "{}", faulty.stderr);
    assert!(faulty.stderr.contains("redirect-ctl: nothing was imported: line 1: "), "{}", faulty.stderr);
    assert_eq!(lab.ctl(&["subscriber", "import", "/nowhere"]).await.code, 1);

    // What another source says decides, and whoever set it is told.
    let set = lab
        .ctl(&[
            "subscriber",
            "set",
            "10.0.0.1",
            "--class",
            "bypass",
            "--source",
            "dhcp",
            "--label",
            "a=b",
            "--session",
            "s",
        ])
        .await;
    assert_eq!((set.code, set.stderr.as_str()), (0, "redirect-ctl: 10.0.0.1/32 stays blocked, as radius says\n"));
    let get = lab.ctl(&["subscriber", "get", "10.0.0.1", "--no-headers"]).await;
    assert_eq!(get.stdout, "10.0.0.1/32  blocked  radius  -\n10.0.0.1/32  bypass   dhcp    -\n");
    assert_eq!(lab.ctl(&["subscriber", "delete", "10.0.0.1", "--session", "t"]).await.code, 3);
    let gone = lab.ctl(&["subscriber", "delete", "--label", "a=b", "--yes"]).await;
    assert!(gone.stdout.starts_with("1 facts deleted (revision "), "{}", gone.stdout);
}
