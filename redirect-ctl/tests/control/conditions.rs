//! Entity tags: what is asked for is answered, or changed, only in the state that the request names.

use redirect_ctl::api;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    clients::certificate_body,
    support::{Lab, revision_of},
};

/// A resource of each kind: its path's pattern, its path, what makes it, and what changes it.
pub(crate) fn resources() -> Vec<(&'static str, &'static str, String, String)> {
    let text = |json: Value| json.to_string();
    let mx = json!({"address": "192.0.2.1", "encryption": "none", "allow_local": true});
    let with = |mut body: Value, member: &str, value: Value| {
        body[member] = value;
        body.to_string()
    };
    vec![
        ("/v1/gateways/{name}", "/v1/gateways/mx", text(mx.clone()), with(mx, "weight", json!(7))),
        (
            "/v1/groups/{name}",
            "/v1/groups/out",
            text(json!({"members": [{"gateway": "mx"}]})),
            text(json!({"members": [{"gateway": "mx"}], "description": "d"})),
        ),
        (
            "/v1/routes/{key}",
            "/v1/routes/a.example",
            text(json!({"gateway": "mx"})),
            text(json!({"gateway": "mx", "note": "n"})),
        ),
        (
            "/v1/managed-domains/{domain}",
            "/v1/managed-domains/own.example",
            text(json!({})),
            text(json!({"target": {"gateway": "mx"}})),
        ),
        ("/v1/certificates/{name}", "/v1/certificates/relay", certificate_body(), certificate_body()),
        ("/v1/users/{name}", "/v1/users/anna", text(json!({"password": "p"})), text(json!({"password": "q"}))),
        (
            "/v1/relays/{name}",
            "/v1/relays/postfix",
            text(json!({"ipv4": "10.9.0.25:25"})),
            text(json!({"ipv4": "10.9.0.26:25"})),
        ),
        ("/v1/interfaces/{name}", "/v1/interfaces/ppp7", text(json!({})), text(json!({"foreign_sources": true}))),
        ("/v1/classes/{name}", "/v1/classes/gold", text(json!({"action": "pass"})), text(json!({"action": "block"}))),
        (
            "/v1/subscribers/{prefix}",
            "/v1/subscribers/10.0.0.0_8",
            text(json!({"class": "gold"})),
            text(json!({"class": "bypass"})),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_resource_has_its_revision_and_insists_on_conditions() {
    let lab = Lab::start().await;
    let ask = async |method: &str, path: &str, headers: &str, body: &str| {
        let end = if headers.is_empty() { "" } else { "\r\n" };
        lab.raw(method, path, &format!("Content-Type: application/json\r\n{headers}{end}"), body.as_bytes()).await
    };
    for (_, path, make, change) in resources() {
        // Not there: whoever insists on a state is refused, and nothing comes of it.
        for headers in ["If-Match: *", "If-Match: \"1\""] {
            ask("PUT", path, headers, &make).await.problem(412, "precondition_failed", None);
        }
        lab.get(path).await.problem(404, "not_found", None);
        let made = ask("PUT", path, "If-None-Match: *", &make).await.expect(201);
        let first = revision_of(&made);
        assert_eq!(made.json()["revision"], first, "{path}");
        ask("PUT", path, "If-None-Match: *", &change).await.problem(412, "precondition_failed", None);

        let shown = ask("GET", path, "", "").await.expect(200);
        assert_eq!((revision_of(&shown), shown.json()["revision"].clone()), (first, json!(first)), "{path}");
        for headers in [format!("If-None-Match: \"{first}\""), format!("If-None-Match: \"0\", W/\"{first}\"")] {
            let unchanged = ask("GET", path, &headers, "").await.expect(304);
            assert_eq!((revision_of(&unchanged), unchanged.text.as_str()), (first, ""), "{path}");
        }
        ask("GET", path, "If-None-Match: \"0\"", "").await.expect(200);
        ask("GET", path, "If-Match: \"0\"", "").await.problem(412, "precondition_failed", None);

        // Another state is meant, and a weak tag means none.
        for headers in ["If-Match: \"0\"".to_owned(), format!("If-Match: W/\"{first}\""), "If-Match: \"x\"".to_owned()]
        {
            ask("PUT", path, &headers, &change).await.problem(412, "precondition_failed", None);
            ask("DELETE", path, &headers, "").await.problem(412, "precondition_failed", None);
        }
        for headers in ["If-Match: 0", "If-Match: \"1\" \"2\""] {
            ask("PUT", path, headers, &change).await.problem(400, "invalid_header", Some("If-Match:"));
        }
        assert_eq!(revision_of(&lab.get(path).await), first, "{path}: nothing changed");

        let changed = ask("PUT", path, &format!("If-Match: \"0\", \"{first}\""), &change).await.expect(200);
        let second = revision_of(&changed);
        assert!(second > first, "{path}");
        // What was so already keeps its revision, whatever else changed meanwhile; what comes back is what was sent.
        lab.put("/v1/subscribers/10.77.0.0_16", r#"{"class":"bypass"}"#).await.expect(201);
        lab.delete("/v1/subscribers/10.77.0.0_16").await.expect(204);
        let again = ask("PUT", path, "", &lab.get(path).await.text).await.expect(200);
        assert_eq!(revision_of(&again), second, "{path}");
        let collection = path.rsplit_once('/').unwrap().0;
        let listed = lab.get(collection).await.expect(200).json();
        let listed = listed["items"].as_array().unwrap().iter().any(|item| item["revision"] == second);
        assert!(listed, "{collection}");
    }
    for (_, path, ..) in resources().iter().rev() {
        let revision = revision_of(&lab.get(path).await);
        let gone = ask("DELETE", path, &format!("If-Match: \"{revision}\""), "").await.expect(204);
        assert!(gone.header("redirect-revision").unwrap().parse::<u64>().unwrap() > revision);
        ask("DELETE", path, "If-Match: *", "").await.problem(412, "precondition_failed", None);
    }
    // A resource that somebody adds is in the table above.
    let description = api::description();
    for (path, item) in description["paths"].as_object().unwrap() {
        if item.get("put").is_some() && item.get("get").is_some() {
            assert!(resources().iter().any(|(pattern, ..)| pattern == path), "{path}");
        }
    }
    lab.stop().await;
}

/// Fifty clients count in a route's note, each by reading, adding and writing on the condition that nobody wrote in between.
#[tokio::test(flavor = "multi_thread")]
async fn no_update_is_lost_among_fifty_writers() {
    const WRITERS: usize = 50;
    let lab = std::sync::Arc::new(Lab::start().await);
    let gateway = r#"{"address":"192.0.2.1","encryption":"none","allow_local":true}"#;
    lab.put("/v1/gateways/mx", gateway).await.expect(201);
    lab.put("/v1/routes/a.example", r#"{"gateway":"mx","note":"0"}"#).await.expect(201);
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let lab = std::sync::Arc::clone(&lab);
        writers.spawn(async move {
            let mut refused = 0;
            loop {
                let read = lab.get("/v1/routes/a.example").await.expect(200);
                let count: usize = read.json()["note"].as_str().unwrap().parse().unwrap();
                let body = json!({"gateway": "mx", "note": (count + 1).to_string()}).to_string();
                let headers =
                    format!("Content-Type: application/json\r\nIf-Match: {}\r\n", read.header("etag").unwrap());
                let wrote = lab.raw("PUT", "/v1/routes/a.example", &headers, body.as_bytes()).await;
                if wrote.expect_either(200, 412).status == 200 {
                    return refused;
                }
                refused += 1;
            }
        });
    }
    let refused: usize = writers.join_all().await.into_iter().sum();
    assert_eq!(lab.get("/v1/routes/a.example").await.json()["note"], WRITERS.to_string());
    assert!(refused > 0, "they met");
}
