//! Every endpoint, every refusal.

use std::{collections::BTreeSet, sync::LazyLock};

use redirect_common::{policy, reason::Reason};
use redirect_ctl::{
    api::{self, types::paths},
    dataplane::{Counter, FlowDelivery, FlowRecord, FlowState},
    limits,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Lab, eventually};

static NO_LIMITS: LazyLock<Value> =
    LazyLock::new(|| json!({"rate": null, "burst": null, "open_max": null, "lock_after": null, "lock_s": null}));

static NO_RULES: LazyLock<Value> = LazyLock::new(|| {
    let none = json!({"connections": null, "messages": null, "notifications": null, "recipients": null, "octets": null,
        "invalid_recipients": null, "auth_failures": null});
    json!({"tls": "none", "certificate": null, "auth": "off", "auth_cleartext": false, "bridge_unprotected": false,
        "unauthenticated": {"otherwise": "allow", "allow": [], "deny": []}, "subscriber_quota": none, "class_quota": none,
        "subscriber_sessions_max": null, "notification_recipients_max": null, "refuse_literals": false,
        "refuse_long_lines": false, "line_endings": "reject", "mt_priority": false, "tarpit": null, "lock": null})
});

fn names(answer: &Answer) -> Vec<String> {
    answer.json()["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

fn prefixes(answer: &Answer) -> Vec<String> {
    answer.json()["items"].as_array().unwrap().iter().map(|item| item["prefix"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_begins_with_the_default_classes() {
    let lab = Lab::start().await;
    let classes = lab.get("/v1/classes").await.expect(200);
    assert_eq!(names(&classes), ["misconfigured", "configured", "authenticated", "bypass", "blocked"]);
    let first = &classes.json()["items"][0];
    assert_eq!(
        *first,
        json!({
            "name": "misconfigured", "action": "redirect", "relays": [{"name": "embedded", "weight": 1}], "on_relay_down": "pass",
            "on_class_change": "reset", "on_daemon_down": "keep", "limits": NO_LIMITS.clone(), "gateway": null, "smtp": *NO_RULES,
            "revision": 1
        })
    );
    assert_eq!(names(&lab.get("/v1/relays").await.expect(200)), ["embedded"]);
    assert_eq!(names(&lab.get("/v1/gateways").await.expect(200)), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_comes_changes_and_goes() {
    let lab = Lab::start().await;
    let put = lab.put("/v1/subscribers/10.20.0.0%2F16", r#"{"class":"configured"}"#).await.expect(201);
    let revision: u64 = put.header("etag").unwrap().trim_matches('"').parse().unwrap();
    let fact = json!({"source": "operator", "priority": 400, "class": "configured", "effective": true, "session": null, "user": null,
        "mac": null, "expires": null, "labels": {}, "revision": revision});
    let whole = json!({"prefix": "10.20.0.0/16", "class": "configured", "source": "operator", "expires": null, "revision": revision,
        "facts": [fact]});
    assert_eq!(put.json(), whole);
    assert_eq!(put.header("redirect-applied"), Some("true"));

    // After the answer the kernel holds it: nobody has to wait.
    let prefix = "10.20.0.0/16".parse().unwrap();
    assert_eq!(lab.model.state().subscribers.get(&prefix), Some(&2));
    assert_eq!(lab.model.state().revision, revision);

    // The same again is no change.
    let again = lab.put("/v1/subscribers/10.20.0.0_16", &whole.to_string()).await.expect(200);
    assert_eq!(again.header("etag"), Some(format!("\"{revision}\"").as_str()));

    let replaced =
        lab.put("/v1/subscribers/10.20.0.0_16", r#"{"class":"blocked","labels":{"why":"spam"}}"#).await.expect(200);
    assert_eq!(replaced.json()["labels"], json!({"why": "spam"}));
    assert_eq!(replaced.header("etag"), Some(format!("\"{}\"", revision + 1).as_str()));
    assert_eq!(lab.model.state().subscribers.get(&prefix), Some(&5));
    assert_eq!(lab.get("/v1/subscribers/10.20.0.0%2f16").await.expect(200).json()["class"], "blocked");

    let gone = lab.delete("/v1/subscribers/10.20.0.0_16").await.expect(204);
    assert_eq!(gone.header("redirect-revision"), Some((revision + 2).to_string().as_str()));
    assert_eq!(gone.header("etag"), None);
    assert!(lab.model.state().subscribers.is_empty());
    lab.get("/v1/subscribers/10.20.0.0_16").await.problem(404, "not_found", None);
    lab.delete("/v1/subscribers/10.20.0.0_16").await.problem(404, "not_found", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_address_is_one_host_in_both_families() {
    let lab = Lab::start().await;
    for (key, prefix) in
        [("10.20.3.7", "10.20.3.7/32"), ("fd00:20::7", "fd00:20::7/128"), ("FD00:21:0::_48", "fd00:21::/48")]
    {
        let answer = lab.put(&format!("/v1/subscribers/{key}"), r#"{"class":"authenticated"}"#).await.expect(201);
        assert_eq!(answer.json()["prefix"], prefix);
        lab.get(&format!("/v1/subscribers/{}", prefix.replace('/', "%2F"))).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_pages_and_filters() {
    let lab = Lab::start().await;
    let all =
        ["10.0.0.0/8", "10.20.0.0/16", "10.20.3.0/24", "10.20.3.7/32", "10.21.0.0/16", "fd00::/16", "fd00:20::/32"];
    for (index, prefix) in all.iter().enumerate().rev() {
        let class = if index % 2 == 0 { "configured" } else { "blocked" };
        lab.put(&format!("/v1/subscribers/{}", prefix.replace('/', "_")), &format!(r#"{{"class":"{class}"}}"#))
            .await
            .expect(201);
    }
    assert_eq!(prefixes(&lab.get("/v1/subscribers").await), all);
    assert_eq!(
        prefixes(&lab.get("/v1/subscribers?class=blocked").await),
        ["10.20.0.0/16", "10.20.3.7/32", "fd00::/16"]
    );
    assert_eq!(
        prefixes(&lab.get("/v1/subscribers?within=10.20.0.0%2F16").await),
        ["10.20.0.0/16", "10.20.3.0/24", "10.20.3.7/32"]
    );
    assert_eq!(prefixes(&lab.get("/v1/subscribers?within=fd00:20::_32&class=configured").await), ["fd00:20::/32"]);

    let mut seen = Vec::new();
    let mut target = "/v1/subscribers?limit=2".to_owned();
    loop {
        let page = lab.get(&target).await.expect(200);
        seen.extend(prefixes(&page));
        let Some(cursor) = page.json()["next_cursor"].as_str().map(str::to_owned) else { break };
        target = format!("/v1/subscribers?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, all);
}

/// Target, body, status, code, pointer.
const BAD_BODIES: &[(&str, &str, u16, &str, Option<&str>)] = &[
    ("/v1/subscribers/10.20.0.0_16", "", 400, "invalid_json", Some("")),
    ("/v1/subscribers/10.20.0.0_16", "{", 400, "invalid_json", Some("")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured"} x"#, 400, "invalid_json", Some("")),
    ("/v1/subscribers/10.20.0.0_16", "[[[[[[[[", 400, "invalid_json", Some("")),
    ("/v1/subscribers/10.20.0.0_16", "[]", 422, "invalid", Some("")),
    ("/v1/subscribers/10.20.0.0_16", r#"[null, "configured"]"#, 422, "invalid", Some("")),
    ("/v1/subscribers/10.20.0.0_16", "null", 422, "invalid", Some("")),
    ("/v1/subscribers/10.20.0.0_16", "{}", 422, "invalid", Some("/class")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured","clas":1}"#, 422, "invalid", Some("/clas")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured","a/b~c":1}"#, 422, "invalid", Some("/a~1b~0c")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured","class":"blocked"}"#, 422, "invalid", Some("/class")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":7}"#, 422, "invalid", Some("/class")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"nobody"}"#, 422, "invalid", Some("/class")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"b\u00fccher"}"#, 422, "invalid", Some("/class")),
    ("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured","source":"me"}"#, 422, "invalid", Some("/source")),
    (
        "/v1/subscribers/10.20.0.0_16",
        r#"{"class":"configured","expires":"tomorrow"}"#,
        422,
        "invalid",
        Some("/expires"),
    ),
    (
        "/v1/subscribers/10.20.0.0_16",
        r#"{"class":"configured","expires":"2001-01-01T00:00:00Z"}"#,
        422,
        "invalid",
        Some("/expires"),
    ),
    (
        "/v1/subscribers/10.20.0.0_16",
        r#"{"class":"configured","prefix":"10.21.0.0/16"}"#,
        422,
        "invalid",
        Some("/prefix"),
    ),
    ("/v1/subscribers/10.20.0.1_16", r#"{"class":"configured"}"#, 422, "invalid", Some("/prefix")),
    ("/v1/subscribers/10.20.0.0_33", r#"{"class":"configured"}"#, 422, "invalid", Some("/prefix")),
    ("/v1/subscribers/everybody", r#"{"class":"configured"}"#, 422, "invalid", Some("/prefix")),
    ("/v1/subscribers/::ffff:10.0.0.1", r#"{"class":"configured"}"#, 422, "invalid", Some("/prefix")),
    ("/v1/classes/gold", "{}", 422, "invalid", Some("/action")),
    ("/v1/classes/gold", r#"{"action":"redirect"}"#, 422, "invalid", Some("/relays")),
    ("/v1/classes/gold", r#"{"action":"redirect","relay":"embedded"}"#, 422, "invalid", Some("/relay")),
    ("/v1/classes/gold", r#"{"action":"redirect","relays":["embedded"]}"#, 422, "invalid", Some("/relays/0")),
    (
        "/v1/classes/gold",
        r#"{"action":"redirect","relays":[{"name":"embedded","weight":0}]}"#,
        422,
        "invalid",
        Some("/relays/0/weight"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"redirect","relays":[{"name":"embedded"},{"name":"embedded","weight":2}]}"#,
        422,
        "invalid",
        Some("/relays/1/name"),
    ),
    ("/v1/classes/gold", r#"{"action":"pass","on_class_change":"drop"}"#, 422, "invalid", Some("/on_class_change")),
    ("/v1/classes/gold", r#"{"action":"pass","limits":{"rate":0}}"#, 422, "invalid", Some("/limits/rate")),
    ("/v1/classes/gold", r#"{"action":"pass","limits":{"rate":-1}}"#, 422, "invalid", Some("/limits/rate")),
    ("/v1/classes/gold", r#"{"action":"pass","limits":{"open":5}}"#, 422, "invalid", Some("/limits/open")),
    ("/v1/classes/gold", r#"{"action":"pass","limits":{"burst":5}}"#, 422, "invalid", Some("/limits/burst")),
    ("/v1/classes/gold", r#"{"action":"pass","limits":{"open_max":5}}"#, 422, "invalid", Some("/limits/open_max")),
    ("/v1/classes/gold", r#"{"action":"block","limits":{"lock_after":5}}"#, 422, "invalid", Some("/limits/lock_after")),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","limits":{"rate":5,"lock_s":60}}"#,
        422,
        "invalid",
        Some("/limits/lock_s"),
    ),
    ("/v1/classes/gold", r#"{"action":"refuse"}"#, 422, "invalid", Some("/action")),
    (
        "/v1/classes/gold",
        r#"{"action":"redirect","relays":[{"name":"embedded"},{"name":"nowhere"}]}"#,
        422,
        "invalid",
        Some("/relays/1/name"),
    ),
    ("/v1/classes/gold", r#"{"action":"pass","gateway":"nowhere"}"#, 422, "invalid", Some("/gateway")),
    ("/v1/classes/gold", r#"{"action":"pass","on_relay_down":"redirect"}"#, 422, "invalid", Some("/on_relay_down")),
    ("/v1/classes/gold", r#"{"action":"pass","name":"silver"}"#, 422, "invalid", Some("/name")),
    ("/v1/classes/gold", r#"{"action":"pass","smtp":{"quota":1}}"#, 422, "invalid", Some("/smtp/quota")),
    ("/v1/classes/gold", r#"{"action":"pass","smtp":{"tls":"yes"}}"#, 422, "invalid", Some("/smtp/tls")),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"auth_cleartext":true}}"#,
        422,
        "invalid",
        Some("/smtp/auth_cleartext"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"subscriber_quota":{"messages":{"count":0,"per_s":60}}}}"#,
        422,
        "invalid",
        Some("/smtp/subscriber_quota/messages"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"class_quota":{"mails":{"count":1,"per_s":60}}}}"#,
        422,
        "invalid",
        Some("/smtp/class_quota/mails"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"subscriber_sessions_max":0}}"#,
        422,
        "invalid",
        Some("/smtp/subscriber_sessions_max"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"tarpit":{"delay_s":5,"delay_max_s":4}}}"#,
        422,
        "invalid",
        Some("/smtp/tarpit"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"tarpit":{"delay_s":5,"delay_max_s":241}}}"#,
        422,
        "invalid",
        Some("/smtp/tarpit"),
    ),
    (
        "/v1/classes/gold",
        r#"{"action":"pass","smtp":{"lock":{"strikes":{"count":1,"per_s":60},"duration_s":0}}}"#,
        422,
        "invalid",
        Some("/smtp/lock"),
    ),
    ("/v1/classes/go%20ld", r#"{"action":"pass"}"#, 422, "invalid", Some("/name")),
    ("/v1/classes/%ff", r#"{"action":"pass"}"#, 422, "invalid", Some("")),
    ("/v1/relays/postfix", "{}", 422, "invalid", Some("/ipv4")),
    ("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25"}"#, 422, "invalid", Some("/ipv4")),
    ("/v1/relays/postfix", r#"{"ipv4":"[fd00::1]:25"}"#, 422, "invalid", Some("/ipv4")),
    ("/v1/relays/postfix", r#"{"ipv4":"127.0.0.1:25"}"#, 422, "invalid", Some("/ipv4")),
    ("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:0"}"#, 422, "invalid", Some("/ipv4")),
    ("/v1/relays/postfix", r#"{"ipv6":"[::]:25"}"#, 422, "invalid", Some("/ipv6")),
    ("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:25","status":"drained"}"#, 422, "invalid", Some("/status")),
    ("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:25","delivery":"dnat"}"#, 422, "invalid", Some("/delivery")),
    ("/v1/relays/embedded", r#"{"ipv4":"10.9.0.25:25"}"#, 409, "owned_by_file", None),
    ("/v1/locks/10.0.0.1", "{}", 422, "invalid", Some("/duration_s")),
    ("/v1/locks/10.0.0.1", r#"{"duration_s":0}"#, 422, "invalid", Some("/duration_s")),
    ("/v1/locks/10.0.0.1", r#"{"duration_s":2592001}"#, 422, "invalid", Some("/duration_s")),
    ("/v1/locks/10.0.0.0_24", r#"{"duration_s":60}"#, 422, "invalid", Some("/address")),
    ("/v1/interfaces/lan1", r#"{"role":"relay"}"#, 422, "invalid", Some("/role")),
    ("/v1/interfaces/lan1", r#"{"hook":"generic"}"#, 422, "invalid", Some("/hook")),
    ("/v1/interfaces/lan1", r#"{"foreign_sources":"yes"}"#, 422, "invalid", Some("/foreign_sources")),
    ("/v1/interfaces/a%2Fb", "{}", 422, "invalid", Some("/name")),
    ("/v1/interfaces/lan0", "{}", 409, "owned_by_file", None),
    ("/v1/gateways/default", "{}", 422, "invalid", Some("/address")),
    ("/v1/gateways/default", r#"{"address":"300.1.1.1"}"#, 422, "invalid", Some("/address")),
    ("/v1/gateways/default", r#"{"address":"mx.example.net","port":0}"#, 422, "invalid", Some("/port")),
    ("/v1/gateways/default", r#"{"address":"mx.example.net","port":65536}"#, 422, "invalid", Some("/port")),
    ("/v1/gateways/default", r#"{"address":"mx.example.net","port":-1}"#, 422, "invalid", Some("/port")),
    (
        "/v1/gateways/default",
        r#"{"address":"mx.example.net","description":"a\nb"}"#,
        422,
        "invalid",
        Some("/description"),
    ),
    ("/v1/gateways/default", r#"{"address":"mx.example.net","status":"on"}"#, 422, "invalid", Some("/status")),
];

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_place_and_changes_nothing() {
    let lab = Lab::start().await;
    let before = lab.get("/v1/status").await.json()["revision"].clone();
    let log = lab.model.state().log.len();
    for (target, body, status, code, pointer) in BAD_BODIES {
        let answer = lab.put(target, body).await;
        eprintln!("{target} {body} -> {}", answer.text);
        answer.problem(*status, code, *pointer);
    }
    let huge = format!(r#"{{"class":"configured","prefix":"{}"}}"#, "x".repeat(limits::BODY_BYTES_MAX));
    lab.put("/v1/subscribers/10.20.0.0_16", &huge).await.problem(413, "too_large", Some(""));
    let deep = format!(r#"{{"class":{}"#, "[".repeat(10_000));
    lab.put("/v1/subscribers/10.20.0.0_16", &deep).await.expect(422);
    let form = lab.raw("PUT", "/v1/classes/gold", "Content-Type: text/plain\r\n", br#"{"action":"pass"}"#).await;
    form.problem(415, "unsupported_media_type", Some("Content-Type:"));
    lab.raw("PUT", "/v1/classes/gold", "", b"\xff\xfe").await.problem(400, "invalid_json", Some(""));

    assert_eq!(lab.get("/v1/status").await.json()["revision"], before);
    assert_eq!(lab.model.state().log.len(), log, "the kernel was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_cut_off() {
    let lab = Lab::start().await;
    // Chunked, so that no length announces it.
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    let head = "PUT /v1/classes/gold HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut stream = tokio::net::UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut sent = 0;
    while sent < 1024 && stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1;
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    // The daemon may close before the answer is read; what counts is that it did not go on reading, and lives.
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "{text}");
    lab.get("/livez").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_queries_name_their_parameter() {
    let lab = Lab::start().await;
    for (target, status, code, pointer) in [
        ("/v1/subscribers?limit=0", 422, "invalid", "?limit"),
        ("/v1/subscribers?limit=1001", 422, "invalid", "?limit"),
        ("/v1/subscribers?limit=many", 400, "invalid_query", "?limit"),
        ("/v1/subscribers?limt=5", 400, "invalid_query", "?limt"),
        ("/v1/subscribers?cursor=x", 422, "invalid", "?cursor"),
        ("/v1/subscribers?within=10.0.0.1/8", 422, "invalid", "?within"),
        ("/v1/subscribers?class=nobody", 422, "invalid", "?class"),
        ("/v1/flows?client=10.0.0.1/8", 422, "invalid", "?client"),
        ("/v1/flows?relay=nobody", 422, "invalid", "?relay"),
        ("/v1/flows:original?relay=192.0.2.25:25", 400, "invalid_query", "?client"),
        ("/v1/flows:original?relay=192.0.2.25&client=10.0.0.1:40000", 422, "invalid", "?relay"),
        ("/v1/flows:original?relay=192.0.2.25:25&client=mx:25", 422, "invalid", "?client"),
        ("/v1/flows?class=nobody", 422, "invalid", "?class"),
        ("/v1/flows?limit=-1", 400, "invalid_query", "?limit"),
    ] {
        lab.get(target).await.problem(status, code, Some(pointer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_problems_too() {
    let lab = Lab::start().await;
    lab.get("/v1/nothing").await.problem(404, "no_such_path", None);
    lab.get("/").await.problem(404, "no_such_path", None);
    lab.get("/v1/subscribers/10.0.0.0/8").await.problem(404, "no_such_path", None);
    lab.request("POST", "/v1/classes", Some("{}")).await.problem(405, "method_not_allowed", None);
    lab.delete("/v1/status").await.problem(405, "method_not_allowed", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_stays_and_says_who_uses_it() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example.net"}"#).await.expect(201);
    lab.put("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:25"}"#).await.expect(201);
    lab.put(
        "/v1/classes/gold",
        r#"{"action":"redirect","relays":[{"name":"embedded"},{"name":"postfix"}],"gateway":"mx"}"#,
    )
    .await
    .expect(201);
    lab.put("/v1/classes/silver", r#"{"action":"pass","gateway":"mx"}"#).await.expect(201);
    lab.put("/v1/subscribers/10.1.0.0_16", r#"{"class":"gold"}"#).await.expect(201);
    lab.put("/v1/subscribers/10.2.0.0_16", r#"{"class":"gold"}"#).await.expect(201);
    for (target, user) in [
        ("/v1/classes/gold", "subscriber 10.1.0.0/16 and 1 more"),
        ("/v1/relays/postfix", "class gold"),
        ("/v1/gateways/mx", "classes gold, silver"),
    ] {
        let answer = lab.delete(target).await;
        answer.problem(409, "in_use", None);
        assert!(answer.json()["detail"].as_str().unwrap().contains(user), "{}", answer.text);
    }
    // From the user down to the used, everything can go.
    for target in [
        "/v1/subscribers/10.1.0.0_16",
        "/v1/subscribers/10.2.0.0_16",
        "/v1/classes/gold",
        "/v1/classes/silver",
        "/v1/relays/postfix",
        "/v1/gateways/mx",
    ] {
        lab.delete(target).await.expect(204);
        lab.delete(target).await.problem(404, "not_found", None);
    }
    lab.model.state().check();
    assert_eq!(lab.model.state().classes.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_file_owns_is_not_changed_over_rest() {
    let lab = Lab::start().await;
    for target in ["/v1/relays/embedded", "/v1/interfaces/lan0"] {
        let answer = lab.delete(target).await;
        answer.problem(409, "owned_by_file", None);
        assert!(answer.json()["detail"].as_str().unwrap().contains("/etc/redirect/test.toml"), "{}", answer.text);
        assert_eq!(lab.get(target).await.expect(200).json()["source"], "file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_can_be_sent_back() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"MX.example.net.","description":"the \u00e4lteste"}"#).await.expect(201);
    lab.put("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:25","ipv6":"[fd00::25]:25"}"#).await.expect(201);
    lab.put("/v1/interfaces/lan1", r#"{"hook":"tc","foreign_sources":true}"#).await.expect(201);
    lab.put("/v1/subscribers/10.1.0.0_16", r#"{"class":"bypass","expires":"2099-01-01T02:00:00+02:00"}"#)
        .await
        .expect(201);
    for target in [
        "/v1/gateways/mx",
        "/v1/relays/postfix",
        "/v1/interfaces/lan1",
        "/v1/subscribers/10.1.0.0_16",
        "/v1/classes/misconfigured",
    ] {
        let found = lab.get(target).await.expect(200);
        let again = lab.put(target, &found.text).await.expect(200);
        let [mut again, mut found] = [again.json(), found.json()];
        for answer in [&mut again, &mut found] {
            // What a gateway is doing may change at any moment.
            answer.as_object_mut().unwrap().remove("state");
        }
        assert_eq!(again, found, "{target}");
    }
    assert_eq!(lab.get("/v1/subscribers/10.1.0.0_16").await.json()["expires"], "2099-01-01T00:00:00Z");
    assert_eq!(lab.get("/v1/gateways/mx").await.json()["address"], "mx.example.net");
    assert_eq!(lab.get("/v1/interfaces/lan1").await.json()["foreign_sources"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_our_own_relay_is_refused() {
    let relay = crate::support::free_port();
    let lab = Lab::with(|settings, _| {
        let std::net::SocketAddr::V4(v4) = relay else { unreachable!("loopback is IPv4") };
        settings.relay.ipv4 = Some(v4);
    })
    .await;
    let body = format!(r#"{{"address":"{}","port":{}}}"#, relay.ip(), relay.port());
    lab.put("/v1/gateways/default", &body).await.problem(422, "invalid", Some("/address"));
    let body = format!(r#"{{"address":"{}","port":{}}}"#, relay.ip(), relay.port().wrapping_add(1).max(1));
    lab.put("/v1/gateways/default", &body).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_shows_its_error_until_it_is_there() {
    let lab = Lab::with(|_, model| model.state().existing = Some(["lan0".to_owned()].into())).await;
    let put = lab.put("/v1/interfaces/ppp7", "{}").await.expect(201).json();
    let error = "interface ppp7 does not exist";
    assert_eq!(put["status"], json!({"attached": false, "mode": null, "restart_safe": false, "error": error}));
    // Everything else goes on.
    lab.put("/v1/subscribers/10.1.0.0_16", r#"{"class":"bypass"}"#).await.expect(201);
    let ready = lab.get("/readyz").await.expect(503).json();
    assert_eq!(
        ready["checks"][2],
        json!({"name": "interface ppp7", "ok": false, "detail": "interface ppp7 does not exist"})
    );

    lab.model.state().existing = None;
    eventually("ppp7 is attached", || async { lab.get("/v1/interfaces/ppp7").await.json()["status"]["mode"] == "tcx" })
        .await;
    lab.get("/readyz").await.expect(200);
    let put = lab.put("/v1/interfaces/ppp7", r#"{"hook":"xdp"}"#).await.expect(200).json();
    assert_eq!(put["status"]["mode"], "xdp");
    lab.delete("/v1/interfaces/ppp7").await.expect(204);
    assert!(!lab.model.state().interfaces.contains_key("ppp7"));

    // A device that vanishes takes its programs along; they come back with it.
    lab.model.state().interfaces.clear();
    eventually("lan0 is attached again", || async {
        lab.get("/v1/interfaces/lan0").await.json()["status"]["attached"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_listed_with_names_and_ages() {
    let lab = Lab::start().await;
    let now_s = redirect_ctl::reconcile::task::monotonic_s();
    let flow = |client: &str, class, state| FlowRecord {
        client: client.parse().unwrap(),
        server: "203.0.113.9:25".parse().unwrap(),
        relay: Some("10.20.0.1:2525".parse().unwrap()),
        mapped_port: 40_000,
        class,
        state,
        delivery: FlowDelivery::Rewrite,
        created_s: now_s - 5,
        seen_s: now_s - 2,
    };
    lab.model.state().flows = vec![
        flow("10.20.0.6:40000", 2, FlowState::Established),
        flow("10.20.0.5:40000", 1, FlowState::HalfOpen),
        flow("10.20.0.5:39999", 60, FlowState::Closing),
    ];
    let flows = lab.get("/v1/flows").await.expect(200).json();
    let clients: Vec<_> =
        flows["items"].as_array().unwrap().iter().map(|flow| flow["client"].as_str().unwrap()).collect();
    assert_eq!(clients, ["10.20.0.5:39999", "10.20.0.5:40000", "10.20.0.6:40000"]);
    assert_eq!(flows["items"][0]["class"], json!(null));
    assert_eq!(flows["items"][1]["class"], "misconfigured");
    assert_eq!(flows["items"][1]["state"], "half_open");
    assert!((5..10).contains(&flows["items"][1]["age_s"].as_u64().unwrap()));
    assert!((2..7).contains(&flows["items"][1]["idle_s"].as_u64().unwrap()));
    assert_eq!(flows["items"][1]["delivery"], "rewrite");
    let some = lab.get("/v1/flows?client=10.20.0.5&limit=1").await.expect(200).json();
    assert_eq!((some["items"].as_array().unwrap().len(), &some["total"]), (1, &json!(2)));
    assert_eq!(lab.get("/v1/flows?class=configured").await.expect(200).json()["total"], 1);
    eventually("the sweep has counted them", || async {
        lab.get("/v1/status").await.json()["flows"]
            == json!({"half_open": 1, "established": 2, "capacity": 2048, "collected": 0})
    })
    .await;

    // By prefix, by relay, and those that are steered, which go to no relay's endpoint.
    lab.put("/v1/relays/near", r#"{"ipv4":"10.20.0.1:2525","status":"draining"}"#).await.expect(201);
    lab.put("/v1/relays/far", r#"{"ipv4":"192.0.2.25:25"}"#).await.expect(201);
    let steered =
        FlowRecord { relay: None, delivery: FlowDelivery::Steer, ..flow("10.21.0.7:40000", 2, FlowState::Established) };
    lab.model.state().flows.push(steered);
    for (query, total) in [
        ("client=10.20.0.0/16", 3),
        ("client=10.0.0.0_8", 4),
        ("client=fd00::/8", 0),
        ("relay=near", 3),
        ("relay=far", 0),
        ("relay=near&class=configured", 1),
    ] {
        assert_eq!(lab.get(&format!("/v1/flows?{query}")).await.expect(200).json()["total"], total, "{query}");
    }
    let found = lab.get("/v1/flows?client=10.21.0.7").await.json()["items"][0].clone();
    assert_eq!((&found["relay"], &found["delivery"]), (&json!(null), &json!("steer")));
    eventually("the relay's flows are counted", || async {
        lab.get("/v1/relays/near").await.json()["flows"] == 2 && lab.get("/v1/relays/far").await.json()["flows"] == 0
    })
    .await;
    assert!(lab.get("/metrics").await.text.lines().any(|line| line == r#"redirect_relay_flows{relay="near"} 2"#));

    // What a relay on another host asks.
    let original =
        async |relay: &str, client: &str| lab.get(&format!("/v1/flows:original?relay={relay}&client={client}")).await;
    assert_eq!(
        original("10.20.0.1:2525", "10.20.0.6:40000").await.expect(200).json(),
        json!({"client": "10.20.0.6:40000", "server": "203.0.113.9:25", "class": "configured"})
    );
    original("10.20.0.1:2525", "10.20.0.6:40001").await.problem(404, "not_found", None);
    original("10.20.0.2:2525", "10.20.0.6:40000").await.problem(404, "not_found", None);
    original("[fd00::1]:2525", "10.20.0.6:40000").await.problem(404, "not_found", None);
    lab.model.state().flows.pop();

    lab.model.state().flows[0].state = FlowState::Closed;
    lab.model.state().flows[0].seen_s = now_s - 20;
    eventually("the idle one is collected", || async { lab.get("/v1/flows").await.json()["total"] == 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_has_limits_a_pool_and_a_say_in_live_flows() {
    let lab = Lab::start().await;
    lab.put("/v1/relays/a", r#"{"ipv4":"10.9.0.1:25","ipv6":"[fd00::1]:25"}"#).await.expect(201);
    lab.put("/v1/relays/b", r#"{"ipv4":"10.9.0.2:25"}"#).await.expect(201);
    let body = r#"{"action":"redirect","relays":[{"name":"a","weight":3},{"name":"b"}],"on_class_change":"keep",
        "limits":{"rate":5,"open_max":20,"lock_after":100}}"#;
    let put = lab.put("/v1/classes/gold", body).await.expect(201).json();
    assert_eq!(put["relays"], json!([{"name": "a", "weight": 3}, {"name": "b", "weight": 1}]));
    assert_eq!(put["limits"], json!({"rate": 5, "burst": 5, "open_max": 20, "lock_after": 100, "lock_s": 600}));
    assert_eq!(lab.get("/v1/classes/gold").await.json(), put);
    lab.put("/v1/classes/gold", &put.to_string()).await.expect(200);

    let kernel = || lab.model.state().classes[&6];
    assert_eq!(kernel().on_class_change(), policy::OnClassChange::Keep);
    assert_eq!((kernel().interval_ns(), kernel().tolerance_ns()), (200_000_000, 800_000_000));
    assert_eq!((kernel().open_max(), kernel().lock_after(), kernel().lock_s()), (20, 100, 600));
    assert_eq!(shares(&kernel()), [[24, 8], [32, 0]], "b has no IPv6");

    // Drained, disabled, and back again; what is drained keeps its endpoint.
    let status = async |relay: &str, status: &str| {
        let mut relay = lab.get(&format!("/v1/relays/{relay}")).await.json();
        relay["status"] = json!(status);
        let answer = lab.put(&format!("/v1/relays/{}", relay["name"].as_str().unwrap()), &relay.to_string()).await;
        assert_eq!(answer.expect(200).json()["status"], status);
    };
    let log = lab.model.state().log.len();
    status("a", "draining").await;
    assert_eq!(shares(&kernel()), [[0, 32], [0, 0]]);
    status("b", "disabled").await;
    assert_eq!(shares(&kernel()), [[0, 0], [0, 0]]);
    status("a", "enabled").await;
    assert_eq!(shares(&kernel()), [[32, 0], [32, 0]]);
    {
        let state = lab.model.state();
        assert_eq!(state.relays[&2].ipv4(), Some(([10, 9, 0, 1], 25_u16.to_be_bytes())));
        // Of seven classes one has changed, and no relay.
        let written: Vec<_> = state.log[log..].iter().map(ToString::to_string).collect();
        assert!(written.iter().all(|step| step == "set class 6" || step.starts_with("set revision")), "{written:?}");
    }

    // The file's relay can be drained as well, and stays so over a restart; its endpoints are the file's.
    status("embedded", "draining").await;
    let lab = lab.restart(|_| {}).await;
    let embedded = lab.get("/v1/relays/embedded").await.expect(200).json();
    assert_eq!((&embedded["status"], &embedded["source"]), (&json!("draining"), &json!("file")));
    let refused = lab.put("/v1/relays/embedded", r#"{"ipv4":"10.9.0.1:25","status":"draining"}"#).await;
    refused.problem(409, "owned_by_file", None);
}

/// How many places of each family's pool the relays 2 and 3 have.
fn shares(class: &policy::Class) -> [[usize; 2]; 2] {
    let places = |relay: fn(&policy::Class, usize) -> u8| {
        [2, 3].map(|wanted| (0..policy::POOL_SLOTS).filter(|place| relay(class, *place) == wanted).count())
    };
    [places(policy::Class::relay_ipv4), places(policy::Class::relay_ipv6)]
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_set_listed_and_removed_and_make_no_revision() {
    let lab = Lab::start().await;
    let revision = lab.get("/v1/status").await.json()["revision"].clone();
    let listed = async || lab.get("/v1/locks").await.expect(200).json()["items"].clone();
    assert_eq!(listed().await, json!([]));

    let put = lab.put("/v1/locks/10.20.3.7", r#"{"duration_s":600}"#).await.expect(200);
    assert_eq!(put.json(), json!({"address": "10.20.3.7", "left_s": 600}));
    assert_eq!(put.header("etag"), None);
    let put = lab.put("/v1/locks/fd00:20::ffff", r#"{"duration_s":3600}"#).await.expect(200);
    assert_eq!(put.json()["address"], "fd00:20::/64");
    // One that the kernel made, and one that has run out.
    let now_s = redirect_ctl::reconcile::task::monotonic_s();
    let host = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    lab.model.state().locks.insert(host("10.20.3.6"), now_s + 50);
    lab.model.state().locks.insert(host("10.20.3.5"), now_s);
    let locks = listed().await;
    let addresses: Vec<_> = locks.as_array().unwrap().iter().map(|lock| lock["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["10.20.3.6", "10.20.3.7", "fd00:20::/64"]);
    assert!((40..=50).contains(&locks[0]["left_s"].as_u64().unwrap()), "{locks}");
    assert!((590..=600).contains(&locks[1]["left_s"].as_u64().unwrap()), "{locks}");
    let until_s = lab.model.state().locks[&host("fd00:20::1")];
    assert!((now_s + 3600..now_s + 3610).contains(&until_s), "another address of the /64");

    // Again, for a shorter time.
    lab.put("/v1/locks/10.20.3.7", r#"{"duration_s":60}"#).await.expect(200);
    assert!(listed().await[1]["left_s"].as_u64().unwrap() <= 60);
    lab.delete("/v1/locks/10.20.3.7").await.expect(204);
    lab.delete("/v1/locks/10.20.3.7").await.problem(404, "not_found", None);
    lab.delete("/v1/locks/10.20.3.5").await.problem(404, "not_found", None);
    lab.delete("/v1/locks/fd00:20::_64").await.expect(204);
    lab.delete("/v1/locks/10.20.3.6").await.expect(204);
    assert!(lab.model.state().locks.is_empty());
    assert_eq!(lab.get("/v1/status").await.json()["revision"], revision);

    lab.model.state().fault = Some(Box::new(|what| what.ends_with("lock") || what.ends_with("locks")));
    lab.get("/v1/locks").await.problem(503, "unavailable", None);
    lab.put("/v1/locks/10.20.3.7", r#"{"duration_s":60}"#).await.problem(503, "unavailable", None);
    lab.delete("/v1/locks/10.20.3.7").await.problem(503, "unavailable", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_stats_and_metrics_tell_the_same_counters() {
    let lab = Lab::start().await;
    lab.put("/v1/subscribers/10.1.0.0_16", r#"{"class":"blocked"}"#).await.expect(201);
    lab.model.state().counters = vec![
        Counter { class: 0, reason: Reason::NotTcp, packets: 3, bytes: 300 },
        Counter { class: 5, reason: Reason::ClassBlock, packets: 7, bytes: 420 },
        Counter { class: 2, reason: Reason::ClassBlock, packets: 1, bytes: 60 },
    ];
    let status = lab.get("/v1/status").await.expect(200).json();
    assert_eq!(status["reasons"]["class_block"], json!({"packets": 8, "bytes": 480}));
    assert_eq!(status["revision"], status["applied"]);
    assert_eq!(status["subscribers"], 1);
    assert_eq!(status["dataplane"]["layout"], redirect_common::maps::LAYOUT);
    assert_eq!(status["relay"]["sessions_active"], 0);
    assert_eq!(status["interfaces"][0]["status"]["attached"], true);
    let reasons = lab.get("/v1/stats").await.expect(200).json()["reasons"].clone();
    assert_eq!(
        reasons[2],
        json!({"class": "configured", "reason": "class_block", "verdict": "drop", "packets": 1, "bytes": 60})
    );
    assert_eq!(reasons[0]["class"], json!(null));

    let metrics = lab.get("/metrics").await.expect(200);
    assert_eq!(metrics.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let revision = status["revision"].as_u64().unwrap();
    for line in [
        r#"redirect_packets_total{class="blocked",reason="class_block",verdict="drop"} 7"#,
        r#"redirect_bytes_total{class="",reason="not_tcp",verdict="pass"} 300"#,
        r#"redirect_subscribers{class="blocked"} 1"#,
        r#"redirect_interface_attached{interface="lan0",mode="tcx"} 1"#,
        &format!("redirect_config_revision {revision}"),
        &format!("redirect_config_revision_applied {revision}"),
        "redirect_relay_sessions_active 0",
        "redirect_relay_messages_accepted_total 0",
        "redirect_reconcile_failing 0",
        "# EOF",
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line} is missing in\n{}", metrics.text);
    }
    assert!(!metrics.text.contains("10.1.0.0"), "an address became a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_the_time_that_work_takes_are_counted() {
    let lab = Lab::start().await;
    // Of the whole process, in which other tests have daemons too.
    let value = async |row: &str| -> f64 {
        let metrics = lab.get("/metrics").await.expect(200).text;
        let found = metrics.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    };
    let rows = [
        r#"redirect_api_requests_total{route="/v1/classes/{name}",method="PUT",code="201"}"#,
        r#"redirect_api_requests_total{route="/v1/classes/{name}",method="GET",code="404"}"#,
        r#"redirect_api_requests_total{route="",method="GET",code="404"}"#,
        "redirect_api_request_seconds_count",
        "redirect_store_commit_seconds_count",
        "redirect_map_update_seconds_count",
    ];
    let mut before = Vec::new();
    for row in rows {
        before.push(value(row).await);
    }
    lab.put("/v1/classes/counted", r#"{"action": "block"}"#).await.expect(201);
    lab.get("/v1/classes/nobody").await.expect(404);
    lab.get("/v1/nothing").await.expect(404);
    for (row, before) in rows.into_iter().zip(before) {
        let after = value(row).await;
        assert!(after > before, "{row}: {before}, then {after}");
    }
    lab.request("MADEUP", "/v1/classes", None).await.expect(405);
    let metrics = lab.get("/metrics").await.expect(200).text;
    assert!(metrics.contains(r#"route="/v1/classes",method="other",code="405""#) && !metrics.contains("MADEUP"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_kernel_table_is_refused_before_it_holds_everything_up() {
    let lab = Lab::with(|settings, _| settings.dataplane.subscribers_max = 2).await;
    for key in ["10.0.0.1", "10.0.0.2", "10.0.0.0_24", "fd00::1"] {
        lab.put(&format!("/v1/subscribers/{key}"), r#"{"class":"bypass"}"#).await.expect(201);
    }
    let answer = lab.put("/v1/subscribers/10.0.0.3", r#"{"class":"bypass"}"#).await;
    answer.problem(409, "too_many", None);
    assert!(
        answer.json()["detail"]
            .as_str()
            .unwrap()
            .contains("raise dataplane.subscribers_max in /etc/redirect/test.toml")
    );
    // What is there can change and go, and makes room.
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"blocked"}"#).await.expect(200);
    lab.delete("/v1/subscribers/10.0.0.1").await.expect(204);
    lab.put("/v1/subscribers/10.0.0.3", r#"{"class":"bypass"}"#).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_kernel_does_not_take_is_stored_and_said_to_be_late() {
    let lab = Lab::start().await;
    lab.model.state().fault = Some(Box::new(|what| what.starts_with("set subscriber")));
    let put = lab.put("/v1/subscribers/10.1.0.0_16", r#"{"class":"bypass"}"#).await.expect(201);
    assert_eq!(put.header("redirect-applied"), Some("false"));
    let status = lab.get("/v1/status").await.expect(200).json();
    assert!(status["revision"].as_u64() > status["applied"].as_u64());
    assert_eq!(status["error"], "set subscriber 10.1.0.0/16: injected fault: set subscriber 10.1.0.0/16");
    let ready = lab.get("/readyz").await.expect(503).json();
    assert_eq!(ready["checks"][0]["ok"], false);
    assert!(lab.get("/metrics").await.text.contains("redirect_reconcile_failing 1"));

    lab.model.state().fault = None;
    eventually("the kernel follows", || async { lab.get("/readyz").await.status == 200 }).await;
    assert_eq!(lab.model.state().subscribers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reads_what_it_touched_and_no_more() {
    let lab = Lab::start().await;
    let before = lab.model.state().full_reads;
    for host in 0..50 {
        lab.put(&format!("/v1/subscribers/10.1.0.{host}"), r#"{"class":"bypass"}"#).await.expect(201);
    }
    lab.put("/v1/classes/gold", r#"{"action":"pass"}"#).await.expect(201);
    let state = lab.model.state();
    assert_eq!((state.full_reads, state.subscribers.len(), state.classes.len()), (before, 50, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_writers_lose_nothing() {
    let lab = Lab::start().await;
    let lab = &lab;
    let writers = (0..50).map(|writer| async move {
        for round in 0..4 {
            let target = format!("/v1/subscribers/10.{writer}.{round}.0_24");
            lab.put(&target, r#"{"class":"bypass"}"#).await.expect(201);
        }
        lab.delete(&format!("/v1/subscribers/10.{writer}.0.0_24")).await.expect(204);
    });
    futures_join(writers).await;
    assert_eq!(lab.model.state().subscribers.len(), 150);
    // Two at the start (the schema, the file's interface), then one for each change: none shared, none skipped.
    let status = lab.get("/v1/status").await.json();
    assert_eq!(status["revision"], 2 + 250);
    assert_eq!(status["subscribers"], 150);
}

async fn futures_join<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_every_description_is_served() {
    let lab = Lab::start().await;
    let text = lab.get(paths::OPENAPI).await.expect(200);
    let served = text.json();
    assert_eq!(served["openapi"], "3.1.0");
    let described: BTreeSet<_> = served["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(described, paths::ALL.iter().copied().collect(), "paths::ALL and the handlers differ");
    assert_eq!(api::description(), served);

    for (path, item) in served["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let key = match path.as_str() {
                paths::SUBSCRIBER => "192.0.2.1",
                _ => "nobody",
            };
            let target = path.replace("{prefix}", key).replace("{name}", key).replace("{address}", "192.0.2.1");
            // A wrong question, because the answer to a right one has no end.
            let target = match path.as_str() {
                paths::FLOWS_WATCH => format!("{target}?reason={key}"),
                paths::EVENTS => format!("{target}?types={key}"),
                _ => target,
            };
            let answer = lab.request(&method.to_uppercase(), &target, (method == "put").then_some("{}")).await;
            if !answer.text.is_empty() && answer.header("content-type") == Some("application/problem+json") {
                let code = answer.json()["code"].as_str().unwrap().to_owned();
                assert!(
                    !["no_such_path", "method_not_allowed", "internal"].contains(&code.as_str()),
                    "{method} {path}: {code}"
                );
            }
            let statuses: Vec<_> = operation["responses"].as_object().unwrap().keys().cloned().collect();
            assert!(
                statuses.contains(&answer.status.to_string()),
                "{method} {path} answered {}, described: {statuses:?}",
                answer.status
            );
        }
    }
    // `routes!` is the only way in: a handler that is added by hand would be missing above.
    let source = include_str!("../../src/api/mod.rs");
    for way_in in [".route(", ".nest(", ".merge(", ".route_service("] {
        assert!(!source.contains(way_in), "{way_in} adds a route without a description");
    }
}
