//! The reconciler against a kernel that fails at random.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redirect_common::policy;
use redirect_ctl::{dataplane::Operation, desired::Action};

use crate::support::{Lab, eventually};

/// A generator without a crate: `SplitMix64`.
fn random(state: &AtomicU64) -> u64 {
    let mut z = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_ends_in_the_desired_state() {
    for seed in [1, 2, 3] {
        chaos(seed).await;
    }
}

/// Changes of every kind while reads, writes and attachments fail; the model panics at the first step that could misroute a packet.
async fn chaos(seed: u64) {
    let dice = Arc::new(AtomicU64::new(seed));
    let lab = Lab::start().await;
    let faults = Arc::clone(&dice);
    lab.model.state().fault = Some(Box::new(move |_| random(&faults) % 100 < 8));
    let classes = ["a", "b", "c", "d"];
    let relays = ["r1", "r2", "r3"];
    for _ in 0..150 {
        let pick = |of: u64| random(&dice) % of;
        let class = classes[usize::try_from(pick(4)).unwrap()];
        let relay = relays[usize::try_from(pick(3)).unwrap()];
        let host = pick(6);
        let length = [24, 28, 32][usize::try_from(pick(3)).unwrap()];
        let prefix = if length == 32 { format!("10.0.0.{host}_32") } else { format!("10.0.0.0_{length}") };
        let (method, target, body) = match pick(9) {
            0 => ("PUT", format!("/v1/relays/{relay}"), format!(r#"{{"ipv4":"10.9.0.1:{}"}}"#, 1 + pick(9))),
            1 => ("DELETE", format!("/v1/relays/{relay}"), String::new()),
            2 => ("PUT", format!("/v1/classes/{class}"), r#"{"action":"pass"}"#.to_owned()),
            3 => (
                "PUT",
                format!("/v1/classes/{class}"),
                format!(r#"{{"action":"redirect","relays":[{{"name":"{relay}"}}]}}"#),
            ),
            4 => ("DELETE", format!("/v1/classes/{class}"), String::new()),
            5 => (
                "PUT",
                format!("/v1/interfaces/if{}", pick(3)),
                format!(r#"{{"hook":"{}"}}"#, ["xdp", "tc"][usize::try_from(pick(2)).unwrap()]),
            ),
            6 => ("DELETE", format!("/v1/subscribers/{prefix}"), String::new()),
            _ => ("PUT", format!("/v1/subscribers/{prefix}"), format!(r#"{{"class":"{class}"}}"#)),
        };
        // Waiting for the kernel after each change would leave nothing to coalesce.
        let request = lab.request(method, &target, (method == "PUT").then_some(&body));
        let answer = tokio::time::timeout(Duration::from_millis(20 + pick(30)), request).await;
        if let Ok(answer) = answer {
            assert!(answer.status < 500, "{method} {target} {body}: {}", answer.text);
        }
        assert!(!lab.task.is_finished(), "seed {seed}: the daemon ended");
    }
    lab.model.state().fault = None;
    eventually("the kernel follows", || async {
        let status = lab.get("/v1/status").await.json();
        status["error"].is_null() && status["applied"] == status["revision"]
    })
    .await;
    eventually("every interface is attached", || async { lab.get("/readyz").await.status == 200 }).await;
    compare(&lab).await;
    lab.stop().await;
}

/// The kernel holds what the API says, entry by entry.
async fn compare(lab: &Lab) {
    let subscribers = lab.get("/v1/subscribers?limit=1000").await.json();
    let classes = lab.get("/v1/classes").await.json();
    let interfaces = lab.get("/v1/interfaces").await.json();
    let state = lab.model.state();
    state.check();
    assert_eq!(state.classes.len(), classes["items"].as_array().unwrap().len());
    assert_eq!(state.interfaces.len(), interfaces["items"].as_array().unwrap().len());
    assert_eq!(state.subscribers.len(), subscribers["items"].as_array().unwrap().len());
    for subscriber in subscribers["items"].as_array().unwrap() {
        let prefix = subscriber["prefix"].as_str().unwrap().parse().unwrap();
        let class = state.classes[&state.subscribers[&prefix]];
        let wanted =
            classes["items"].as_array().unwrap().iter().find(|class| class["name"] == subscriber["class"]).unwrap();
        let action: Action = wanted["action"].as_str().unwrap().parse().unwrap();
        assert_eq!(class.action(), policy::Action::from(action), "{subscriber}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_changes_are_undone_after_the_next_error() {
    let lab = Lab::start().await;
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"bypass"}"#).await.expect(201);
    // Somebody else's hands in the maps, then any error: the comparison that follows is of everything.
    lab.model.state().subscribers.clear();
    let mut once = true;
    lab.model.state().fault = Some(Box::new(move |what| what == "read revision" && std::mem::take(&mut once)));
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example.net"}"#).await.expect(201);
    eventually("it is back", || async { lab.model.state().subscribers.len() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_or_a_collection_that_fails_is_shown_and_holds_nothing_up() {
    let lab = Lab::start().await;
    lab.model.state().fault = Some(Box::new(|what| what == "tick" || what == "collect"));
    eventually("both are shown", || async {
        let detail = lab.get("/readyz").await.expect_either(200, 503).json()["checks"][0]["detail"].clone();
        detail == "cannot advance the clock: injected fault: tick; cannot collect idle flows: injected fault: collect"
    })
    .await;
    let full_reads = lab.model.state().full_reads;
    for host in 0..20 {
        let put = lab.put(&format!("/v1/subscribers/10.0.0.{host}"), r#"{"class":"bypass"}"#).await.expect(201);
        assert_eq!(put.header("redirect-applied"), Some("true"));
    }
    assert_eq!(lab.model.state().full_reads, full_reads);
    lab.model.state().fault = None;
    eventually("all is well", || async { lab.get("/readyz").await.status == 200 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coalesced_changes_of_a_full_table_make_room_first() {
    let lab = Lab::with(|settings, _| settings.dataplane.subscribers_max = 1).await;
    lab.put("/v1/subscribers/10.0.0.1", r#"{"class":"bypass"}"#).await.expect(201);
    lab.model.state().subscribers_max = Some(1);
    // The kernel is away for both changes, so one plan carries them.
    lab.model.state().fault = Some(Box::new(|what| what.contains("subscriber")));
    lab.delete("/v1/subscribers/10.0.0.1").await.expect(204);
    lab.put("/v1/subscribers/10.0.0.2", r#"{"class":"bypass"}"#).await.expect(201);
    lab.model.state().fault = None;
    eventually("the kernel follows", || async { lab.get("/readyz").await.status == 200 }).await;
    let state = lab.model.state();
    assert_eq!(state.subscribers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2/32"]);
    let writes = state.log.iter().filter(|operation| matches!(operation, Operation::SetSubscriber { .. }));
    assert_eq!(writes.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_compares_everything() {
    let lab = Lab::with(|settings, _| settings.dataplane.subscribers_max = 100_000).await;
    let (store_path, many) = (lab.settings.store.clone(), redirect_ctl::limits::TOUCHED_KEYS_MAX + 10);
    // Over REST this would take minutes; the daemon is stopped, the rows are written, the start compares everything.
    let lab = {
        let (dir, settings) = lab.stop().await;
        let mut connection = rusqlite::Connection::open(&store_path).unwrap();
        let transaction = connection.transaction().unwrap();
        for number in 0..u32::try_from(many).unwrap() {
            let [_, a, b, c] = number.to_be_bytes();
            transaction
                .execute(
                    "INSERT INTO facts (prefix, source, class, effective, revision) VALUES (?1, 'operator', 4, 1, 1)",
                    [vec![4_u8, 10, a, b, c, 32]],
                )
                .unwrap();
        }
        transaction.commit().unwrap();
        Lab::launch_on(dir, |_| settings).await
    };
    assert_eq!(lab.model.state().subscribers.len(), many);
}
