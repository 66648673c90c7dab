//! `redirect-ctl`: what an engineer on call does with one subscriber, relay or interface.

use serde_json::{Value, json};

use crate::support::{Lab, Output, ctl, eventually};

async fn run(lab: &Lab, args: &str) -> Output {
    lab.ctl(&args.split(' ').collect::<Vec<_>>()).await
}

async fn says(lab: &Lab, args: &str, stdout: &str) {
    let output = run(lab, args).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), (stdout, "", 0), "{args}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_is_quarantined_and_released() {
    let lab = Lab::start().await;
    let class = async || run(&lab, "subscriber get 10.0.0.1 -o json").await;
    run(&lab, "subscriber set 10.0.0.1 --class authenticated --source portal").await;
    says(&lab, "subscriber quarantine 10.0.0.1", "subscriber 10.0.0.1/32 set (revision 4)\n").await;
    let shown: Value = serde_json::from_str(&class().await.stdout).unwrap();
    assert_eq!(
        (&shown["class"], &shown["source"], &shown["expires"]),
        (&json!("blocked"), &json!("operator"), &json!(null))
    );
    says(&lab, "subscriber release 10.0.0.1", "subscriber 10.0.0.1/32 released (revision 5)\n").await;
    let shown: Value = serde_json::from_str(&class().await.stdout).unwrap();
    assert_eq!((&shown["class"], &shown["source"]), (&json!("authenticated"), &json!("portal")));
    assert_eq!(run(&lab, "subscriber release 10.0.0.1").await.code, 3, "the operator says nothing of it");

    run(&lab, "subscriber quarantine fd00::7 --class bypass --ttl 1s").await;
    eventually("it expires", || async { run(&lab, "subscriber get fd00::7").await.code == 3 }).await;
    assert_eq!(run(&lab, "subscriber quarantine 10.0.0.1 --dry-run").await.code, 0);
    assert_eq!(run(&lab, "subscriber release 10.0.0.1").await.code, 3, "the dry run changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_subscriber_has_its_changes_and_those_of_many() {
    let lab = Lab::start().await;
    run(&lab, "subscriber set fd00::7 --class bypass").await;
    run(&lab, "subscriber set fd00::8 --class bypass").await;
    run(&lab, "subscriber quarantine fd00::7").await;
    lab.put("/v1/subscribers/fd00::7", r#"{"class":"bypass","source":"portal"}"#).await.expect(200);
    // Of another prefix, although it covers it; and one that was refused.
    run(&lab, "subscriber set fd00::/16 --class bypass").await;
    run(&lab, "subscriber set fd00::7 --class nobody").await;
    run(&lab, "class set gold --action pass").await;
    run(&lab, "subscriber delete --source portal --yes").await;
    run(&lab, "subscriber release fd00::7").await;

    let history = run(&lab, "subscriber history fd00::7 -o json").await;
    let records: Vec<Value> = serde_json::from_str(&history.stdout).unwrap();
    let operations: Vec<_> = records.iter().map(|record| record["operation"].as_str().unwrap()).collect();
    assert_eq!(
        operations,
        ["put_subscriber", "put_subscriber", "put_subscriber", "delete_subscribers", "delete_subscriber"]
    );
    let last = run(&lab, "subscriber history fd00::7 --limit 2 --columns method,resource --no-headers").await;
    assert_eq!(last.stdout, "POST    /v1/subscribers:delete\nDELETE  /v1/subscribers/fd00%3A%3A7%2F128\n");
    assert_eq!(run(&lab, "subscriber history fd00::8 -o ndjson --since 1h").await.stdout.lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_subscribers_are_watched() {
    let lab = Lab::start().await;
    run(&lab, "class set gold --action pass").await;
    run(&lab, "subscriber set 10.0.0.1 --class gold").await;
    let (watched, ()) = tokio::join!(run(&lab, "subscriber watch --since 2"), async {
        eventually("it is stored", || async { run(&lab, "subscriber get 10.0.0.1").await.code == 0 }).await;
        // The log of changes is sent before the daemon ends.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        lab.shutdown.cancel();
    });
    assert_eq!((watched.code, watched.stderr.as_str()), (0, "redirect-ctl: redirectd stopped\n"));
    let rows: Vec<_> = watched.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(rows, [vec!["REVISION", "ACTION", "TYPE", "KEY"], vec!["4", "put", "subscriber", "10.0.0.1/32"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_down_is_told_by_its_check() {
    let lab = Lab::start().await;
    assert_eq!(run(&lab, "relay check").await.code, 0);
    assert_eq!(run(&lab, "relay check nobody").await.code, 3);
    says(&lab, "relay set dead --ipv6 [fd00:9::25]:25", "relay dead set (revision 3)\n").await;
    eventually("it is down", || async { run(&lab, "relay check dead").await.code == 1 }).await;
    let all = run(&lab, "relay check --columns name,health --no-headers").await;
    assert_eq!((all.code, all.stdout.lines().count()), (1, 2), "{}", all.stdout);
    assert!(all.stdout.contains("dead      down\n"), "{}", all.stdout);
    assert!(
        all.stderr.starts_with("redirect-ctl: dead (ipv6): ") && all.stderr.ends_with(": a relay is down\n"),
        "{}",
        all.stderr
    );
    run(&lab, "relay drain dead").await;
    assert_eq!(run(&lab, "relay check").await.code, 0, "nobody expects it to live");
    assert_eq!(run(&lab, "relay undrain dead").await.code, 0);
    assert!(run(&lab, "relay get dead --no-headers").await.stdout.contains("  enabled  "));
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_are_attached_and_detached() {
    let lab = Lab::start().await;
    says(&lab, "interface attach lan1 --hook tc", "interface lan1 set (revision 3)\n").await;
    says(&lab, "interface detach lan1", "interface lan1 deleted (revision 4)\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_programs_tell_their_versions() {
    let lab = Lab::start().await;
    let version = env!("CARGO_PKG_VERSION");
    let table = format!("PROGRAM       VERSION\nredirect-ctl  {version}\nredirectd     {version}\n");
    says(&lab, "version", &table).await;
    let alone = ctl("unix:///nowhere/api.sock", &["version", "-o", "json"]).await;
    assert_eq!(alone.code, 5, "{}", alone.stderr);
    assert_eq!(
        serde_json::from_str::<Value>(&alone.stdout).unwrap(),
        json!({"redirect_ctl": version, "redirectd": null})
    );
}
