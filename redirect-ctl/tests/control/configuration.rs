//! The configuration as a whole over the API and the CLI: shown, checked, compared, committed, taken back.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{Answer, Lab, eventually};

const CONFIG: &str = "/v1/config";

/// A configuration with a resource of each kind that needs no file.
async fn furnish(lab: &Lab) {
    for (target, body) in [
        ("/v1/relays/dmz", r#"{"ipv4":"192.0.2.25:25"}"#),
        (
            "/v1/gateways/mx",
            r#"{"address":"mx.example.net","account":{"username":"us","password":"Pa55word","allow_unprotected":true},"description":"yes: #1 \"two\" ~"}"#,
        ),
        ("/v1/gateways/spare", r#"{"address":"192.0.2.1","port":2525}"#),
        ("/v1/groups/both", r#"{"members":[{"gateway":"mx"},{"gateway":"spare","rank":1}]}"#),
        (
            "/v1/classes/guests",
            r#"{"action":"redirect","relays":[{"name":"dmz","weight":3},{"name":"embedded"}],"gateway":"both","limits":{"rate":5,"lock_after":9},
               "smtp":{"subscriber_quota":{"messages":{"count":100,"per_s":3600}},"unauthenticated":{"otherwise":"deny","allow":["10.20.0.0/16"]}}}"#,
        ),
        ("/v1/routes/example.com", r#"{"gateway":"mx","note":"null"}"#),
        ("/v1/routes/.example.org;order=7;sender=%3C%3E;class=guests;size=1000..", r#"{"group":"both"}"#),
        ("/v1/managed-domains/example.net", r#"{"target":{"gateway":"spare"}}"#),
        ("/v1/users/anna", r#"{"password":"s3cret"}"#),
        ("/v1/interfaces/lan7", r#"{"foreign_sources":true}"#),
    ] {
        lab.put(target, body).await.expect_either(200, 201);
    }
}

async fn show(lab: &Lab) -> (Value, String) {
    let answer = lab.get(CONFIG).await.expect(200);
    let tag = answer.header("etag").unwrap().to_owned();
    (answer.json(), tag)
}

async fn commit(lab: &Lab, query: &str, tag: &str, document: &Value) -> Answer {
    let headers = format!("Content-Type: application/json\r\nIf-Match: {tag}\r\n");
    lab.raw("POST", &format!("{CONFIG}:commit{query}"), &headers, document.to_string().as_bytes()).await
}

async fn post_if(lab: &Lab, target: &str, tag: &str) -> Answer {
    lab.raw("POST", target, &format!("If-Match: {tag}\r\n"), b"").await
}

async fn pending_seconds(lab: &Lab) -> u64 {
    let text = lab.client.text("/metrics").await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("redirect_commit_pending_seconds "));
    line.unwrap().parse().unwrap()
}

fn named<'d>(document: &'d mut Value, section: &str, name: &str) -> &'d mut Value {
    document[section].as_array_mut().unwrap().iter_mut().find(|item| item["name"] == name).unwrap()
}

#[tokio::test]
async fn it_is_shown_without_secrets_and_taken_back_as_it_is() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let (document, tag) = show(&lab).await;
    for secret in ["Pa55word", "s3cret", "SCRAM", "password", "null,"] {
        assert!(!document.to_string().contains(secret), "{secret}: {document}");
    }
    assert_eq!(document["users"], json!([{"name": "anna"}]));
    assert_eq!(document["relays"][0]["name"], "dmz");
    assert_eq!(document["interfaces"].as_array().unwrap().len(), 1, "the file's are its own: {document}");
    assert_eq!(document["classes"].as_array().unwrap().len(), 6);

    let answer = lab.post(&format!("{CONFIG}:check"), &document.to_string()).await.expect(200);
    assert_eq!(answer.json()["added"], 0);
    let diff = lab.post(&format!("{CONFIG}:diff"), &document.to_string()).await.expect(200).json();
    assert_eq!(
        diff,
        json!({"added": {"count": 0, "items": []}, "changed": {"count": 0, "items": []},
        "removed": {"count": 0, "items": []}, "unchanged": 15})
    );
    let answer = commit(&lab, "", &tag, &document).await.expect(200);
    assert_eq!((answer.header("etag"), &answer.json()["commit"]), (Some(&*tag), &Value::Null));

    for (accept, kind) in [
        ("application/toml", "application/toml"),
        ("text/html, application/yaml;q=0.9, application/json;q=0.1", "application/yaml"),
        ("*/*", "application/json"),
    ] {
        let answer = lab.raw("GET", CONFIG, &format!("Accept: {accept}\r\n"), b"").await.expect(200);
        assert_eq!(answer.header("content-type"), Some(kind), "{accept}");
    }
    lab.raw("GET", CONFIG, "Accept: text/html\r\n", b"").await.problem(406, "not_acceptable", None);
    lab.get(&format!("{CONFIG}?format=xml")).await.problem(400, "invalid_query", Some("?format"));
}

#[tokio::test]
async fn what_is_wrong_is_told_with_pointers_and_nothing_is_changed() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let (good, tag) = show(&lab).await;
    let check = |edit: fn(&mut Value), status: u16, code: &'static str, pointers: &'static [&'static str]| {
        let (lab, mut document, tag) = (&lab, good.clone(), tag.clone());
        async move {
            edit(&mut document);
            for answer in [
                lab.post(&format!("{CONFIG}:check"), &document.to_string()).await,
                commit(lab, "", &tag, &document).await,
                commit(lab, "?dry_run=true", &tag, &document).await,
            ] {
                assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{}", answer.text);
                let found: Vec<_> = answer.json()["errors"].as_array().cloned().unwrap_or_default();
                let found: Vec<_> = found.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect();
                assert_eq!(found, pointers, "{}", answer.text);
            }
        }
    };
    check(|all| all["clases"] = json!([]), 422, "invalid", &["/clases"]).await;
    check(|all| all["classes"][0]["actoin"] = json!("pass"), 422, "invalid", &["/classes/0/actoin"]).await;
    check(|all| all["routes"][0]["gate"] = json!("mx"), 422, "invalid", &["/routes/0/gate"]).await;
    check(|all| all["users"][0]["password"] = json!("x"), 422, "invalid", &["/users/0/password"]).await;
    check(|all| all["classes"] = json!({}), 422, "invalid", &["/classes"]).await;
    check(
        |all| {
            all["relays"] = json!([]);
            named(all, "classes", "bypass")["limits"] = json!({"burst": 3});
            all["users"].as_array_mut().unwrap().push(json!({"name": "bert"}));
            named(all, "gateways", "mx")["account"]["username"] = json!("them");
        },
        422,
        "invalid",
        &["/users/1/name", "/gateways/0/account/password", "/classes/2/limits/burst", "/classes/4/relays/0/name"],
    )
    .await;
    check(
        |all| named(all, "groups", "both")["members"][0]["gateway"] = json!("nobody"),
        422,
        "invalid",
        &["/groups/0/members"],
    )
    .await;
    check(
        |all| all["routes"].as_array_mut().unwrap().push(json!({"domain": "Example.COM", "gateway": "spare"})),
        422,
        "invalid",
        &["/routes/2"],
    )
    .await;
    check(|all| all["routes"][0]["domain"] = json!("example.net"), 422, "invalid", &["/routes/0/domain"]).await;
    check(|all| all["routes"][0]["gateway"] = json!("nobody"), 422, "invalid", &["/routes/0/gateway"]).await;
    check(|all| all["routes"][0]["size"] = json!({"min": 1_u64 << 63}), 422, "invalid", &["/routes/0/size"]).await;
    check(|all| all["interfaces"][0]["name"] = json!("lan0"), 422, "invalid", &["/interfaces/0/name"]).await;
    check(
        |all| all["relays"][0]["name"] = json!("embedded"),
        422,
        "invalid",
        &["/relays/0/name", "/classes/4/relays/0/name"],
    )
    .await;
    check(|all| named(all, "gateways", "spare")["sni"] = json!(7), 422, "invalid", &["/gateways/1/sni"]).await;
    // The fault is in a secret, which no answer repeats.
    let mut secret = good.clone();
    named(&mut secret, "gateways", "mx")["account"]["password"] = json!(424_242);
    let answer = commit(&lab, "", &tag, &secret).await;
    answer.problem(422, "invalid", Some("/gateways/0/account/password"));
    assert!(!answer.text.contains("424242"), "{}", answer.text);

    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"guests"}"#).await.expect(201);
    check(
        |all| {
            all["classes"].as_array_mut().unwrap().retain(|class| class["name"] != "guests");
            all["routes"].as_array_mut().unwrap().retain(|route| route["class"] != "guests");
        },
        409,
        "in_use",
        &[],
    )
    .await;

    commit(&lab, "", "\"1\"", &good).await.problem(412, "precondition_failed", None);
    commit(&lab, "", "later", &good).await.problem(400, "invalid_header", Some("If-Match:"));
    commit(&lab, "?confirm_within=0", &tag, &good).await.problem(422, "invalid", Some("?confirm_within"));
    commit(&lab, "?confirm_within=2d", &tag, &good).await.problem(422, "invalid", Some("?confirm_within"));
    commit(&lab, "?comment=a%0Ab", &tag, &good).await.problem(422, "invalid", Some("?comment"));
    let unasked = lab.post(&format!("{CONFIG}:commit"), &good.to_string()).await;
    unasked.problem(428, "precondition_required", Some("If-Match:"));
    post_if(&lab, &format!("{CONFIG}:rollback?back=99"), "*").await.problem(404, "not_found", None);
    post_if(&lab, &format!("{CONFIG}:confirm"), "*").await.problem(409, "conflict", None);
    assert_eq!(show(&lab).await, (good, tag));
    assert_eq!(lab.get(&format!("{CONFIG}/history")).await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_commit_is_one_revision_and_a_rollback_brings_all_of_it_back() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let (good, tag) = show(&lab).await;
    let first: u64 = tag.trim_matches('"').parse().unwrap();
    let mut other = good.clone();
    // A group takes the name of a gateway that goes, everything that named it follows, and the rest goes.
    other["gateways"] = json!([{"name": "both", "address": "mx2.example.net"}]);
    other["groups"] = json!([{"name": "mx", "members": [{"gateway": "both"}]}]);
    other["routes"] = json!([{"domain": "example.net", "group": "mx"}]);
    other["managed_domains"] = json!([{"domain": "example.com"}]);
    for section in ["users", "relays", "interfaces"] {
        other[section] = json!([]);
    }
    named(&mut other, "classes", "guests")["relays"] = json!([{"name": "embedded"}]);
    let report = commit(&lab, "?author=anna&comment=all%20new", &tag, &other).await.expect(200);
    assert_eq!(report.header("etag"), Some(&*format!("\"{}\"", first + 1)));
    assert_eq!(report.header("redirect-applied"), Some("true"));
    let report = report.json();
    let author = report["commit"]["author"].as_str().unwrap();
    assert!(author.starts_with("anna (uid:"), "{author}");
    assert_eq!(report["commit"]["comment"], "all new");
    assert_eq!(report["commit"]["state"], "confirmed");
    assert_eq!(lab.client.status().await.unwrap().revision, first + 1, "one revision");
    let (shown, after) = show(&lab).await;
    for section in ["groups", "routes", "managed_domains"] {
        assert_eq!(shown[section].as_array().unwrap().len(), 1, "{section}: {shown}");
    }
    assert_eq!(shown["gateways"][0]["address"], "mx2.example.net");
    assert!(shown.get("users").is_none());

    let items = lab.get(&format!("{CONFIG}/history")).await.expect(200).json()["items"].clone();
    assert_eq!(items.as_array().unwrap().len(), 2, "{items}");
    assert_eq!((&items[0]["revision"], &items[1]["revision"]), (&json!(first + 1), &json!(first)));
    let before = lab.get(&format!("{CONFIG}/history/1")).await.expect(200).json();
    assert_eq!(before["configuration"]["gateways"][0]["name"], "mx");
    assert!(!before.to_string().contains("Pa55word") && !before.to_string().contains("SCRAM"));

    post_if(&lab, &format!("{CONFIG}:rollback"), &tag).await.problem(412, "precondition_failed", None);
    let unasked = lab.post(&format!("{CONFIG}:rollback"), "").await;
    unasked.problem(428, "precondition_required", Some("If-Match:"));
    let report = post_if(&lab, &format!("{CONFIG}:rollback?author=bert"), &after).await.expect(200).json();
    assert_eq!(report["commit"]["comment"], format!("back to revision {first}"));
    assert_eq!(show(&lab).await.0, good);
    // The secrets too: the same user and the same account are there, so that nothing needs to be said of them.
    let (_, tag) = show(&lab).await;
    let state = lab.get(&format!("{CONFIG}/history/0")).await.expect(200).json()["configuration"].clone();
    let diff = lab.post(&format!("{CONFIG}:diff?back=2"), &state.to_string()).await.expect(200).json();
    assert_eq!(diff["unchanged"], 15, "{diff}");
    commit(&lab, "", &tag, &good).await.expect(200);

    // Subscribers are no part of it: their changes make no commit stale.
    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"guests"}"#).await.expect(201);
    commit(&lab, "", &tag, &good).await.expect(200);
    // A single change is, and is kept as a state when the next commit comes.
    lab.delete("/v1/users/anna").await.expect(204);
    commit(&lab, "", &tag, &good).await.problem(412, "precondition_failed", None);
    let diff = lab.post(&format!("{CONFIG}:diff?back=0"), &show(&lab).await.0.to_string()).await.expect(200).json();
    assert_eq!((&diff["removed"]["count"], &diff["removed"]["items"][0]["key"]), (&json!(1), &json!("anna")));
    post_if(&lab, &format!("{CONFIG}:rollback?back=0"), "*").await.expect(200);
    assert_eq!(show(&lab).await.0, good);
    let items = lab.get(&format!("{CONFIG}/history")).await.expect(200).json()["items"].clone();
    assert_eq!((&items[1]["comment"], &items[1]["removed"]), (&json!("single changes"), &json!(1)), "{items}");
}

#[tokio::test]
async fn what_is_not_confirmed_is_taken_back() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let (good, tag) = show(&lab).await;
    let mut other = good.clone();
    named(&mut other, "classes", "guests")["action"] = json!("block");
    other["users"] = json!([]);
    other["classes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "trial", "action": "redirect", "relays": [{"name": "embedded"}], "gateway": "mx"}));

    let report = commit(&lab, "?confirm_within=10m&author=anna", &tag, &other).await.expect(200).json();
    let revision = report["commit"]["revision"].as_u64().unwrap();
    assert_eq!(report["commit"]["state"], "pending");
    let pending = lab.client.status().await.unwrap().configuration.pending.unwrap();
    assert_eq!(pending.revision, revision);
    assert!(pending.author.unwrap().starts_with("anna (uid:"));
    assert!((550..=600).contains(&pending_seconds(&lab).await));
    // Single changes would be lost with it.
    let refused = lab.put("/v1/users/anna", r#"{"password":"x"}"#).await;
    refused.problem(409, "commit_pending", None);
    assert!(refused.text.contains(&revision.to_string()) && refused.text.contains("anna"), "{}", refused.text);
    commit(&lab, "", "*", &good).await.problem(409, "commit_pending", None);
    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"trial"}"#).await.expect(201);

    post_if(&lab, &format!("{CONFIG}:confirm"), "\"1\"").await.problem(412, "precondition_failed", None);
    let confirmed = lab.post(&format!("{CONFIG}:confirm"), "").await.expect(200).json();
    assert_eq!((&confirmed["revision"], &confirmed["state"]), (&json!(revision), &json!("confirmed")));
    assert_eq!(lab.client.status().await.unwrap().configuration.pending, None);
    lab.delete("/v1/subscribers/10.9.9.9").await.expect(204);
    post_if(&lab, &format!("{CONFIG}:rollback"), "*").await.expect(200);
    assert_eq!(show(&lab).await.0, good);

    // Taken back by hand before its time; to go back to it is no way to confirm it.
    commit(&lab, "?confirm_within=600", "*", &other).await.expect(200);
    post_if(&lab, &format!("{CONFIG}:rollback?back=0"), "*").await.problem(409, "conflict", None);
    post_if(&lab, &format!("{CONFIG}:rollback"), "*").await.expect(200);
    assert_eq!(show(&lab).await.0, good);
    let items = lab.get(&format!("{CONFIG}/history")).await.expect(200).json()["items"].clone();
    assert_eq!((&items[0]["state"], &items[1]["state"]), (&json!("confirmed"), &json!("reverted")), "{items}");

    // By its time; whoever got a class of it meanwhile keeps it.
    commit(&lab, "?confirm_within=3s", "*", &other).await.expect(200);
    lab.put("/v1/subscribers/10.9.9.9", r#"{"class":"trial"}"#).await.expect(201);
    eventually("it is taken back", || async { show(&lab).await.0["users"] == good["users"] }).await;
    let items = lab.get(&format!("{CONFIG}/history")).await.expect(200).json()["items"].clone();
    assert_eq!((&items[0]["author"], &items[1]["state"]), (&json!("redirectd"), &json!("reverted")), "{items}");
    assert_eq!(pending_seconds(&lab).await, 0);
    let (mut kept, _) = show(&lab).await;
    assert_eq!(named(&mut kept, "classes", "trial")["gateway"], "mx");
    kept["classes"].as_array_mut().unwrap().retain(|class| class["name"] != "trial");
    assert_eq!(kept, good);
    lab.post(&format!("{CONFIG}:confirm"), "").await.problem(409, "conflict", None);
}

#[tokio::test]
async fn a_restart_neither_forgets_a_pending_commit_nor_lets_it_through() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let (good, tag) = show(&lab).await;
    let mut other = good.clone();
    named(&mut other, "classes", "guests")["action"] = json!("block");
    commit(&lab, "?confirm_within=2", &tag, &other).await.expect(200);
    let (dir, settings) = lab.stop().await;
    // Its time ends while nobody is there.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lab = Lab::launch_on(dir, |_| settings).await;
    assert_eq!(show(&lab).await.0, good);
    assert_eq!(lab.client.status().await.unwrap().configuration.pending, None);
    let items = lab.get(&format!("{CONFIG}/history")).await.expect(200).json()["items"].clone();
    assert_eq!((&items[0]["author"], &items[1]["state"]), (&json!("redirectd"), &json!("reverted")), "{items}");

    commit(&lab, "?confirm_within=600", "*", &other).await.expect(200);
    let lab = lab.restart(|_| ()).await;
    assert_eq!(show(&lab).await.0["classes"], other["classes"], "it is not confirmed, and its time is not over");
    assert!(lab.client.status().await.unwrap().configuration.pending.is_some());
    lab.post(&format!("{CONFIG}:confirm"), "").await.expect(200);
}

#[tokio::test]
async fn files_in_all_forms_say_the_same() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    for format in ["toml", "json", "yaml"] {
        let shown = lab.ctl(&["config", "show", "--format", format]).await;
        assert_eq!(shown.code, 0, "{}", shown.stderr);
        let file = lab.dir.path().join(format!("all.{format}"));
        fs::write(&file, &shown.stdout).unwrap();
        let file = file.to_str().unwrap();
        let check = lab.ctl(&["config", "check", file]).await;
        assert_eq!(check.code, 0, "{format}: {}\n{}", check.stderr, shown.stdout);
        let diff = lab.ctl(&["config", "diff", file]).await;
        assert_eq!((diff.code, diff.stdout.as_str()), (0, "0 added, 0 changed, 0 removed, 15 unchanged\n"), "{format}");
        let served = lab.get(&format!("{CONFIG}?format={format}")).await.expect(200);
        assert_eq!(served.text, shown.stdout, "{format}");
    }
}

#[tokio::test]
async fn the_verbs_of_the_cli() {
    let lab = Lab::start().await;
    furnish(&lab).await;
    let file = lab.dir.path().join("new.toml");
    let path = file.to_str().unwrap();
    let shown = lab.ctl(&["config", "show"]).await.stdout;
    fs::write(&file, shown.replace("rate = 5", "rate = 6").replace("192.0.2.25:25", "192.0.2.26:25")).unwrap();

    let diff = lab.ctl(&["config", "diff", path]).await;
    assert_eq!(diff.code, 6, "{}", diff.stderr);
    assert_eq!(
        diff.stdout,
        "~ relay dmz\n    ipv4: \"192.0.2.25:25\" -> \"192.0.2.26:25\"\n~ class guests\n    limits.rate: 5 -> 6\n\
         0 added, 2 changed, 0 removed, 13 unchanged\n"
    );
    assert_eq!(diff.stderr, "");
    let trial = lab.ctl(&["config", "commit", path, "--dry-run"]).await;
    assert_eq!((trial.code, trial.stdout), (0, diff.stdout.clone()));
    let asked = lab.ctl_with(&["config", "commit", path], "n\n").await;
    assert_eq!(asked.code, 1);
    assert!(asked.stderr.starts_with(&diff.stdout) && asked.stderr.contains("nothing was changed"), "{}", asked.stderr);
    assert_eq!(lab.ctl(&["config", "diff"]).await.code, 3, "there is no commit yet");

    let done = lab
        .ctl(&[
            "config",
            "commit",
            path,
            "--yes",
            "--confirm",
            "10m",
            "--author",
            "anna",
            "--comment",
            "more for guests",
        ])
        .await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("redirect-ctl config confirm"), "{}", done.stdout);
    let status = lab.ctl(&["status"]).await.stdout;
    assert!(status.contains("commit pending"), "{status}");
    assert_eq!(lab.ctl(&["user", "delete", "anna"]).await.code, 4);
    let confirmed = lab.ctl(&["config", "confirm"]).await;
    assert!(confirmed.code == 0 && confirmed.stdout.ends_with(" confirmed\n"), "{}", confirmed.stderr);
    assert_eq!(lab.ctl(&["config", "confirm"]).await.code, 4);
    assert_eq!(lab.ctl(&["config", "commit", path, "--yes", "--revision", "1"]).await.code, 4);
    assert_eq!(lab.ctl(&["config", "commit", path, "--yes"]).await.stdout, "nothing to change\n");

    assert_eq!(lab.ctl(&["config", "diff"]).await.code, 0);
    lab.ctl(&["user", "delete", "anna"]).await;
    let single = lab.ctl(&["config", "diff"]).await;
    assert_eq!(
        (single.code, single.stdout.as_str()),
        (6, "- user anna\n0 added, 0 changed, 1 removed, 14 unchanged\n")
    );

    let history = lab.ctl(&["config", "history"]).await.stdout;
    assert_eq!(history.lines().count(), 3, "{history}");
    assert!(history.contains("anna") && history.contains("+0~2-0") && history.contains("more for guests"), "{history}");
    let back = lab.ctl(&["config", "rollback", "--yes", "--comment", "enough"]).await;
    assert!(back.code == 0 && back.stdout.contains("committed"), "{}", back.stderr);
    assert_eq!(lab.ctl(&["config", "show"]).await.stdout, shown);
    assert_eq!(lab.ctl(&["config", "show", "--back", "3"]).await.stdout, shown);

    // Every fault on a line of its own, and none of them from the file's form.
    fs::write(
        &file,
        shown.replace("rate = 5", "rate = 0").replace("weight = 3", "weight = 3\n[[classes.relays]]\nname = \"x\""),
    )
    .unwrap();
    let wrong = lab.ctl(&["config", "check", path]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("limits/rate: ") && wrong.stderr.contains("/relays/1/name: "), "{}", wrong.stderr);
    fs::write(&file, "classes = 1 2").unwrap();
    let wrong = lab.ctl(&["config", "check", path]).await;
    assert!(wrong.code == 1 && wrong.stderr.contains("is not toml"), "{}", wrong.stderr);
    assert_eq!(lab.ctl(&["config", "check", "/nonexistent"]).await.code, 2, "no form");
    assert_eq!(lab.ctl_with(&["config", "commit", "-", "--format", "json"], "{}").await.code, 2);
    let empty = lab.ctl_with(&["config", "commit", "-", "--format", "json", "--dry-run"], "{}").await;
    assert!(empty.code == 0 && empty.stdout.contains("- class guests\n"), "{}{}", empty.stdout, empty.stderr);
}
