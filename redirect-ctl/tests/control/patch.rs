//! `PATCH` of every resource.

use redirect_ctl::api;
use serde_json::json;

use crate::{
    conditions::resources,
    support::{Answer, Lab, revision_of},
};

async fn patch(lab: &Lab, path: &str, headers: &str, body: &str) -> Answer {
    let headers = format!("Content-Type: application/merge-patch+json\r\n{headers}");
    lab.raw("PATCH", path, &headers, body.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_resource_takes_a_patch_as_it_takes_a_put() {
    let lab = Lab::start().await;
    for (_, path, make, change) in resources() {
        patch(&lab, path, "", "{}").await.problem(404, "not_found", None);
        let made = revision_of(&lab.put(path, &make).await.expect(201));
        assert_eq!(revision_of(&patch(&lab, path, "", "{}").await.expect(200)), made, "{path}: nothing to change");
        let changed = patch(&lab, path, &format!("If-Match: \"{made}\"\r\n"), &change).await.expect(200);
        assert!(revision_of(&changed) > made, "{path}");
        patch(&lab, path, &format!("If-Match: \"{made}\"\r\n"), &make).await.problem(412, "precondition_failed", None);
        let whole = lab.get(path).await.expect(200);
        assert_eq!(revision_of(&whole), revision_of(&changed));
        let put = lab.put(path, &change).await.expect(200);
        assert_eq!(revision_of(&put), revision_of(&whole), "{path}: the PUT of it makes the same");
        patch(&lab, path, "", r#"{"no_such":1}"#).await.problem(422, "invalid", Some("/no_such"));
    }
    for (path, item) in api::description()["paths"].as_object().unwrap() {
        assert_eq!(item.get("patch").is_some(), item.get("put").is_some() && item.get("get").is_some(), "{path}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    let lab = Lab::start().await;
    let limited = r#"{"action":"pass","limits":{"rate":5,"burst":9}}"#;
    lab.put("/v1/classes/gold", limited).await.expect(201);
    let patched = patch(&lab, "/v1/classes/gold", "", r#"{"limits":{"burst":null},"on_class_change":"keep"}"#).await;
    let class = patched.expect(200).json();
    assert_eq!((&class["limits"]["rate"], &class["limits"]["burst"]), (&json!(5), &json!(null)));
    assert_eq!((class["action"].as_str(), class["on_class_change"].as_str()), (Some("pass"), Some("keep")));

    // A subscriber's end goes by null; its class stays.
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"gold","expires":"2100-01-01T00:00:00Z"}"#).await.expect(201);
    let forever = patch(&lab, "/v1/subscribers/10.0.0.1", "", r#"{"expires":null}"#).await.expect(200).json();
    assert_eq!((forever["class"].as_str(), &forever["expires"]), (Some("gold"), &json!(null)));

    // Another type is refused, and says which one is meant.
    let other = lab.request("PATCH", "/v1/classes/gold", Some("{}")).await;
    other.problem(415, "unsupported_media_type", Some("Content-Type:"));
    assert!(other.text.contains("application/merge-patch+json"));
    lab.stop().await;
}
