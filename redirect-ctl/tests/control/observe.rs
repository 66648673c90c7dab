//! Looking on: events, explanations, counters by interface, memory.

use std::{net::SocketAddr, time::Duration};

use redirect_common::{address::V4, event::Event, flow::Tuple, reason::Reason};
use redirect_ctl::{
    api::types::{EventLine, EventQuery, LostAt},
    dataplane::{InterfaceCounter, MapMemory},
    limits,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Lab, PATIENCE, eventually};

/// A SYN of client 10.20.0.`client` to port 25.
fn event(client: u8, class: u16, reason: Reason) -> Event {
    let address = |ip: [u8; 4]| V4::from(std::net::Ipv4Addr::from(ip));
    let ports = |client: u16, server: u16| [client.to_be_bytes(), server.to_be_bytes()];
    let tuple = Tuple::new([address([10, 20, 0, client]), address([203, 0, 113, 9])], ports(40_000, 25));
    let to = match reason {
        Reason::FlowNew => Tuple::new([address([10, 20, 0, client]), address([10, 20, 0, 1])], ports(1_024, 2_525)),
        _ => tuple,
    };
    Event::new(1, class, reason, &tuple, &to)
}

fn any() -> EventQuery {
    EventQuery { class: None, client: None, reason: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen_to_whoever_wants_them() {
    let lab = Lab::start().await;
    let mut all = lab.client.events(&any()).await.unwrap();
    let mut some = Vec::new();
    for query in [
        EventQuery { class: Some("blocked".to_owned()), ..any() },
        EventQuery { client: Some("10.20.0.8/32".to_owned()), ..any() },
        EventQuery { reason: Some("class_block".to_owned()), ..any() },
    ] {
        some.push(lab.client.events(&query).await.unwrap());
    }
    // Class 2 is configured, 5 blocked: the defaults, in their order.
    lab.model.state().events = vec![event(7, 2, Reason::FlowNew), event(8, 5, Reason::ClassBlock)];
    let Some(EventLine::Packet(flow)) = timeout(PATIENCE, all.next()).await.unwrap().unwrap() else { panic!() };
    assert_eq!((&*flow.reason, &*flow.verdict, flow.class.as_deref()), ("flow_new", "redirect", Some("configured")));
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    assert_eq!((flow.client, flow.server), (address("10.20.0.7:40000"), address("203.0.113.9:25")));
    assert_eq!((flow.relay, flow.mapped_port), (Some(address("10.20.0.1:2525")), Some(1_024)));
    assert_eq!(flow.interface.as_deref(), Some("lo"), "index 1 of every network namespace");
    for events in some.iter_mut().chain([&mut all]) {
        let Some(EventLine::Packet(block)) = timeout(PATIENCE, events.next()).await.unwrap().unwrap() else { panic!() };
        assert_eq!((&*block.reason, block.class.as_deref()), ("class_block", Some("blocked")));
        assert_eq!((block.relay, block.mapped_port), (None, None));
    }
    lab.model.state().events_lost = 12;
    let lost = timeout(PATIENCE, all.next()).await.unwrap().unwrap();
    assert_eq!(lost, Some(EventLine::Lost { at: LostAt::Kernel, count: 12 }));
    eventually("the status counts them", || async {
        lab.get("/v1/status").await.json()["events"] == json!({"read": 2, "lost": 12, "dropped": 0})
    })
    .await;
    lab.get("/v1/flows:watch?reason=bored").await.problem(422, "invalid", Some("?reason"));
    lab.get("/v1/flows:watch?class=nobody").await.problem(422, "invalid", Some("?class"));
    lab.stop().await;
    assert_eq!(timeout(PATIENCE, all.next()).await.unwrap().unwrap(), None, "the daemon stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_told_what_it_missed_and_holds_nobody_up() {
    let lab = Lab::start().await;
    let mut slow = lab.client.events(&any()).await.unwrap();
    // More than the queue and every buffer on the way hold: a line has some 200 bytes, a socket some 200 KiB.
    let batches = 10;
    for batch in 1..=batches {
        lab.model.state().events = vec![event(7, 5, Reason::ClassBlock); limits::EVENTS_QUEUE_MAX];
        let read = batch * limits::EVENTS_QUEUE_MAX as u64;
        eventually("the daemon reads on", || async { lab.get("/v1/status").await.json()["events"]["read"] == read })
            .await;
    }
    let (mut packets, mut lost) = (0, 0);
    while packets + lost < batches * limits::EVENTS_QUEUE_MAX as u64 {
        match timeout(PATIENCE, slow.next()).await.unwrap().unwrap().unwrap() {
            EventLine::Packet(_) => packets += 1,
            EventLine::Locked(lock) => panic!("{lock:?}"),
            EventLine::Lost { at, count } => {
                assert_eq!(at, LostAt::Queue);
                lost += count;
            }
        }
    }
    assert_eq!(packets + lost, batches * limits::EVENTS_QUEUE_MAX as u64, "every event was told or counted");
    assert!(lost > 0, "the reader was not slow enough to lose anything");
    assert_eq!(lab.get("/v1/status").await.json()["events"]["dropped"], lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_may_watch() {
    let lab = Lab::start().await;
    let mut watchers = Vec::new();
    for _ in 0..limits::EVENT_WATCHERS_MAX {
        watchers.push(lab.client.events(&any()).await.unwrap());
    }
    lab.get("/v1/flows:watch").await.problem(503, "unavailable", None);
    watchers.clear();
    eventually("their places are free again", || async { lab.client.events(&any()).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_names_what_decided() {
    let lab = Lab::start().await;
    lab.put("/v1/relays/postfix", r#"{"ipv4":"10.9.0.25:2525"}"#).await.expect(201);
    let class = r#"{"action":"redirect","relays":[{"name":"postfix"}],"on_relay_down":"block"}"#;
    lab.put("/v1/classes/gold", class).await.expect(201);
    for (prefix, class) in [("10.20.0.0_16", "gold"), ("10.20.0.30", "blocked"), ("fd00::_64", "gold")] {
        lab.put(&format!("/v1/subscribers/{prefix}"), &format!(r#"{{"class":"{class}"}}"#)).await.expect(201);
    }
    let status = lab.get("/v1/status").await.json();
    let target = "/v1/explain?source=10.20.0.7&destination=203.0.113.9&sport=40000";
    let mut answer = lab.get(target).await.expect(200).json();
    // As in the list of relays.
    let relays = lab.get("/v1/relays/postfix").await.expect(200).json();
    assert_eq!(answer["relays"][0]["health"].take()["since"], relays["health"]["ipv4"]["since"]);
    assert_eq!(
        answer,
        json!({
            "source": "10.20.0.7", "sport": 40000, "destination": "203.0.113.9:25", "interface": "lan0", "mode": "tcx",
            "verdict": "redirect", "reason": "flow_new", "text": "A SYN that opens a redirected flow.",
            "prefix": "10.20.0.0/16", "class": "gold",
            "facts": [{"source": "operator", "priority": 400, "class": "gold", "effective": true, "session": null, "user": null,
                "mac": null, "expires": null, "labels": {}, "revision": 5}],
            "limits": {"rate": null, "burst": null, "open_max": null, "lock_after": null, "lock_s": null},
            "open": null, "lock_left_s": null,
            "relays": [{"name": "postfix", "weight": 1, "status": "enabled", "health": null}],
            "relay": "postfix", "endpoint": "10.9.0.25:2525",
            "mapped_port": 40000, "delivery": "rewrite", "program_tag": "0000000000000000", "revision": status["applied"],
        })
    );
    for (source, destination, reason, prefix, relay) in [
        ("10.20.0.30", "203.0.113.9:25", "class_block", json!("10.20.0.30/32"), json!(null)),
        ("192.0.2.1", "203.0.113.9", "no_class", json!(null), json!(null)),
        // The relay has no address of this family.
        ("fd00::7", "[2001:db8::1]:25", "relay_down_block", json!("fd00::/64"), json!(null)),
    ] {
        let target = format!("/v1/explain?source={source}&destination={destination}&interface=lan0");
        let answer = lab.get(&target).await.expect(200).json();
        assert_eq!((&answer["reason"], &answer["prefix"], &answer["relay"]), (&json!(reason), &prefix, &relay));
        assert_eq!(answer["endpoint"], json!(null));
    }
    for (query, pointer) in [
        ("source=10.20.0.7&destination=fd00::1", "?destination"),
        ("source=10.20.0.7&destination=203.0.113.9:80", "?destination"),
        ("source=10.20.0.7&destination=mx.example.net", "?destination"),
        ("source=10.20.0&destination=203.0.113.9", "?source"),
        ("source=10.20.0.7&destination=203.0.113.9&interface=lan9", "?interface"),
    ] {
        lab.get(&format!("/v1/explain?{query}")).await.problem(422, "invalid", Some(pointer));
    }
    lab.put("/v1/locks/10.20.0.7", r#"{"duration_s":3590}"#).await.expect(200);
    let limits = r#"{"action":"redirect","relays":[{"name":"postfix","weight":3}],"limits":{"open_max":5}}"#;
    lab.put("/v1/classes/gold", limits).await.expect(200);
    let shown = lab.ctl(&["explain", "10.20.0.7", "203.0.113.9"]).await;
    for row in ["limits       open_max=5\n", "open         0\n", "locked for   59m", "relays       postfix:3(enabled,"]
    {
        assert!(shown.stdout.contains(row), "{row:?} is not in {}", shown.stdout);
    }
    let shown = lab.ctl(&["explain", "10.20.0.30", "203.0.113.9"]).await;
    assert!(shown.stdout.contains("verdict      drop\n"), "{}", shown.stdout);
    assert!(shown.stdout.contains("class_block: The subscriber's class blocks port 25.\n"), "{}", shown.stdout);
    let refused = lab.ctl(&["explain", "10.20.0.30", "203.0.113.9", "--interface", "lan9"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("interface lan9 does not carry the programs"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_and_memory_are_counted() {
    let lab = Lab::start().await;
    {
        let mut state = lab.model.state();
        let row = |interface: Option<&str>, packets| InterfaceCounter {
            interface: interface.map(str::to_owned),
            reason: Reason::ClassBlock,
            packets,
            bytes: packets * 60,
        };
        state.interface_counters = vec![row(None, 1), row(Some("lan0"), 7)];
        let map = |name: &str, capacity, bytes| MapMemory { name: name.to_owned(), capacity, bytes };
        state.memory = vec![map("HOSTS_V4", 1_000, 80_000), map("FLOWS_V6", 2_000, 320_000), map("EVENTS", 10, 99)];
    }
    let stats = lab.get("/v1/stats").await.expect(200).json();
    assert_eq!(
        stats["interfaces"][1],
        json!({"interface": "lan0", "reason": "class_block", "verdict": "drop", "packets": 7, "bytes": 420})
    );
    let shown = lab.ctl(&["stats", "--by", "interface"]).await;
    assert_eq!(
        shown.stdout,
        "INTERFACE  REASON       VERDICT  PACKETS  BYTES\n\
         -          class_block  drop     1        60\n\
         lan0       class_block  drop     7        420\n"
    );
    let memory = lab.get("/v1/status").await.expect(200).json()["memory"].clone();
    let group = |name: &str| {
        let groups = memory.as_array().unwrap();
        groups.iter().find(|group| group["tables"] == name).unwrap().clone()
    };
    assert_eq!(
        group("hosts_ipv4"),
        json!({"tables": "hosts_ipv4", "bytes": 80_000, "capacity": 1_000, "bytes_per_million": 80_000_000})
    );
    assert_eq!(
        group("flows_ipv6"),
        json!({"tables": "flows_ipv6", "bytes": 320_000, "capacity": 1_000, "bytes_per_million": 320_000_000})
    );
    assert_eq!(group("others")["bytes"], 99);
    let metrics = lab.get("/metrics").await.expect(200);
    for line in [
        r#"redirect_interface_packets_total{interface="lan0",reason="class_block",verdict="drop"} 7"#,
        r#"redirect_interface_bytes_total{interface="",reason="class_block",verdict="drop"} 60"#,
        r#"redirect_events_lost_total{at="kernel"} 0"#,
        r#"redirect_memory_bytes{tables="hosts_ipv4"} 80000"#,
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line} is missing in\n{}", metrics.text);
    }
    let wait = Duration::from_secs(1);
    let watched = timeout(wait * 30, async {
        let stop = async {
            tokio::time::sleep(wait * 2).await;
            lab.shutdown.cancel();
        };
        let args = ["stats", "--by", "reason", "--watch", "1"];
        tokio::join!(lab.ctl(&args), stop).0
    });
    let watched = watched.await.unwrap();
    assert!(watched.stdout.starts_with("REASON  VERDICT  PACKETS/S  BYTES/S\n"), "{}", watched.stdout);
    assert!(!watched.stdout.contains('\x1b'), "plain lines where nobody looks on");
}
