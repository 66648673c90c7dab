//! Lists without an end, and the changes as they happen.

use std::time::Duration;

use redirect_ctl::limits;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::UnixStream,
    time::timeout,
};

use crate::support::{Lab, PATIENCE, eventually, revision_of};

const LINES: &str = "Accept: application/x-ndjson\r\n";

/// The objects of the lines; chunks are taken apart by hand.
fn objects(text: &str) -> Vec<Value> {
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_as_lines_has_no_end_but_its_own() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"192.0.2.1","encryption":"none","allow_local":true}"#).await.expect(201);
    let file = (0..2_345).fold(String::new(), |file, row| format!("{file}d{row:05}.example,mx\n"));
    let import = format!("domain,gateway\n{file}");
    lab.raw("POST", "/v1/routes:import?format=csv", "Content-Type: text/csv\r\n", import.as_bytes()).await.expect(200);
    let whole = lab.raw("GET", "/v1/routes", LINES, b"").await.expect(200);
    assert_eq!(whole.header("content-type"), Some("application/x-ndjson"));
    let rows = objects(&whole.text);
    assert_eq!(rows.len(), 2_345);
    assert_eq!(
        (rows[0]["key"].as_str(), rows[2_344]["key"].as_str()),
        (Some("d00000.example"), Some("d02344.example"))
    );
    assert!(rows.iter().all(|row| row["revision"].is_u64()));

    let some = lab.raw("GET", "/v1/routes?limit=1500&cursor=d00009.example", LINES, b"").await.expect(200);
    let rows = objects(&some.text);
    assert_eq!((rows.len(), rows[0]["key"].as_str()), (1_500, Some("d00010.example")));
    let page = lab.get("/v1/routes?limit=2&count=true").await.expect(200).json();
    assert_eq!((&page["count"], page["items"].as_array().unwrap().len()), (&json!(2_345), 2));
    assert_eq!(lab.get("/v1/routes?limit=2").await.json().get("count"), None);
    lab.get("/v1/routes?limit=1500").await.problem(422, "invalid", Some("?limit"));

    for list in [
        "classes",
        "relays",
        "interfaces",
        "gateways",
        "groups",
        "certificates",
        "locks",
        "subscribers",
        "users",
        "managed-domains",
    ] {
        let page = lab.get(&format!("/v1/{list}")).await.expect(200).json();
        let lines = lab.raw("GET", &format!("/v1/{list}"), LINES, b"").await.expect(200);
        let names = |items: &[Value]| items.iter().map(|item| item["name"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&objects(&lines.text)), names(page["items"].as_array().unwrap()), "{list}");
    }
    lab.stop().await;
}

/// Follows the changes; what it has read.
struct Follower {
    lines: Lines<BufReader<UnixStream>>,
}

impl Follower {
    async fn start(lab: &Lab, query: &str, last: Option<u64>) -> Self {
        let mut stream = UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
        let last = last.map_or_else(String::new, |last| format!("Last-Event-ID: {last}\r\n"));
        let head = format!("GET /v1/events{query} HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n{last}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut follower = Self { lines: BufReader::new(stream).lines() };
        assert!(follower.line().await.unwrap().contains(" 200 "));
        while !follower.line().await.unwrap().starts_with(": the changes") {}
        follower
    }

    async fn line(&mut self) -> Option<String> {
        timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap()
    }

    /// Name, id and data of the next event.
    async fn event(&mut self) -> (String, Option<u64>, Value) {
        let (mut name, mut id) = (String::new(), None);
        loop {
            let line = self.line().await.unwrap();
            match line.split_once(": ") {
                Some(("id", text)) => id = Some(text.parse().unwrap()),
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", text)) => return (name, id, serde_json::from_str(text).unwrap()),
                _ => {}
            }
        }
    }
}

async fn revision(lab: &Lab) -> u64 {
    lab.get("/v1/status").await.json()["revision"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_in_their_order_and_after_a_break_and_a_restart() {
    let lab = Lab::start().await;
    let start = revision(&lab).await;
    let mut all = Follower::start(&lab, "", None).await;
    let mut classes = Follower::start(&lab, "?types=class,managed_domain", None).await;
    lab.put("/v1/classes/gold", r#"{"action":"pass"}"#).await.expect(201);
    lab.put("/v1/subscribers/10.0.0.0_8", r#"{"class":"gold"}"#).await.expect(201);
    lab.put("/v1/subscribers/10.0.0.0_8", r#"{"class":"gold"}"#).await.expect(200);
    lab.put("/v1/classes/gold", r#"{"action":"nothing"}"#).await.expect(422);
    lab.delete("/v1/subscribers/10.0.0.0_8").await.expect(204);
    lab.delete("/v1/classes/gold").await.expect(204);
    let change = |after: u64, kind: &str, key: &str, action: &str| {
        let revision = start + after;
        let data = json!({"revision": revision, "type": kind, "key": key, "action": action});
        ("change".to_owned(), Some(revision), data)
    };
    let expected = [
        change(1, "class", "gold", "put"),
        change(2, "subscriber", "10.0.0.0/8", "put"),
        change(3, "subscriber", "10.0.0.0/8", "delete"),
        change(4, "class", "gold", "delete"),
    ];
    for event in &expected {
        assert_eq!(all.event().await, *event);
    }
    for event in [&expected[0], &expected[3]] {
        assert_eq!(classes.event().await, *event);
    }

    // Who comes back goes on where it was, as well after a restart of the daemon.
    let mut again = Follower::start(&lab, "", Some(start + 2)).await;
    assert_eq!(again.event().await, expected[2]);
    drop((all, classes, again));
    let lab = lab.restart(|_| {}).await;
    let mut again = Follower::start(&lab, "?types=subscriber", Some(start + 1)).await;
    assert_eq!(again.event().await, expected[1]);
    assert_eq!(again.event().await, expected[2]);

    // What the log does not hold is said.
    for unknown in [0, 1_000_000] {
        let mut lost = Follower::start(&lab, "", Some(unknown)).await;
        let now = revision(&lab).await;
        assert_eq!(lost.event().await, ("reset".to_owned(), Some(now), json!({"revision": now})));
    }
    lab.get("/v1/events?types=class,nothing").await.problem(422, "invalid", Some("?types"));
    lab.raw("GET", "/v1/events", "Last-Event-ID: x\r\n", b"").await.problem(
        400,
        "invalid_header",
        Some("Last-Event-ID:"),
    );
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_changes_at_once_are_complete_with_the_last() {
    let lab = Lab::start().await;
    let mut all = Follower::start(&lab, "?types=subscriber", None).await;
    let soon = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 2).unwrap();
    for host in 1..=3 {
        let body = json!({"class": "bypass", "expires": soon.to_string()}).to_string();
        lab.put(&format!("/v1/subscribers/10.0.0.{host}"), &body).await.expect(201);
        assert_eq!(all.event().await.2["action"], "put");
    }
    let mut ids = Vec::new();
    for _ in 1..=3 {
        let (_, id, data) = all.event().await;
        assert_eq!(data["action"], "delete");
        ids.push((id, data["revision"].as_u64().unwrap()));
    }
    for pair in ids.windows(2) {
        assert_eq!(pair[0].0.is_some(), pair[0].1 != pair[1].1, "an id stands at the end of a revision: {ids:?}");
    }
    assert_eq!(ids[2].0, Some(ids[2].1));
    lab.stop().await;
}

/// Nothing is queued for those who follow: each reads the log at its own pace, and the log lets the oldest changes go.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_is_told_how_much_it_missed_and_goes_on() {
    const MISSED: i64 = 7;
    let lab = Lab::start().await;
    let mut slow = Follower::start(&lab, "?types=class", None).await;
    lab.put("/v1/classes/gold", r#"{"action":"pass"}"#).await.expect(201);
    assert_eq!(slow.event().await.2["key"], "gold");
    // Between two readings of it come more changes than the log holds; the last one is by the daemon, which lets the oldest go.
    let store = rusqlite::Connection::open(&lab.settings.store).unwrap();
    store.busy_timeout(PATIENCE).unwrap();
    let many = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
        INSERT INTO changes (revision, kind, key, action)
        SELECT (SELECT revision FROM state), 'subscriber', '10.0.0.0/8', 'put' FROM numbers";
    store.execute(many, [limits::CHANGES_LOGGED_MAX - 1 + MISSED]).unwrap();
    let silver = lab.put("/v1/classes/silver", r#"{"action":"pass"}"#).await.expect(201);
    assert_eq!(slow.event().await, ("dropped".to_owned(), None, json!({"count": MISSED})));
    let (name, id, data) = slow.event().await;
    assert_eq!((name.as_str(), id, data["key"].as_str()), ("change", Some(revision_of(&silver)), Some("silver")));
    // Whoever comes from before is told to read everything again.
    let mut late = Follower::start(&lab, "?types=class", Some(1)).await;
    assert_eq!(late.event().await.0, "reset");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_bounded_and_leave_no_trace() {
    let lab = Lab::start().await;
    let mut watchers = Vec::new();
    for _ in 0..limits::CHANGE_WATCHERS_MAX {
        watchers.push(Follower::start(&lab, "", None).await);
    }
    lab.get("/v1/events").await.problem(503, "unavailable", None);
    watchers.pop();
    eventually("a place is free", || async {
        let mut stream = UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
        let first = BufReader::new(stream).lines().next_line().await.unwrap().unwrap();
        first.contains(" 200 ")
    })
    .await;
    drop(watchers);
    // A stop does not wait for them.
    timeout(Duration::from_secs(20), lab.stop()).await.unwrap();
}
