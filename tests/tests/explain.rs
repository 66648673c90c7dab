//! `explain` against what a real connection then meets; and that asking changes nothing.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::net::IpAddr;

use redirect_tests::{
    Family, Mode, SILENCE, Scene, in_every_mode,
    smtp::{Client, PATIENCE, port_25},
    wait_until,
};
use serde_json::{Value, json};

in_every_mode!(
    an_explanation_is_what_a_connection_meets,
    every_kind_of_subscriber_is_explained,
    what_a_limit_says_is_explained_and_not_used_up,
    packets_are_counted_by_interface,
);

fn explain(scene: &Scene, from: IpAddr, to: IpAddr) -> Value {
    scene.product.json(&scene.lab, &["explain", &from.to_string(), &to.to_string(), "--interface", "lan0"]).unwrap()
}

/// The greeting that a connection gets; `None` where it gets no answer.
fn greeting(scene: &Scene, from: IpAddr, to: IpAddr) -> Option<String> {
    let mut client = Client::connect_within(&scene.lab.client, (from, 0), port_25(to), SILENCE).ok()?;
    Some(client.reply().ok()?.lines.join(" "))
}

/// What a packet of the subscribers' would have changed at once: counters and flows.
fn traces(scene: &Scene) -> Value {
    let json = |words: &[&str]| scene.product.json(&scene.lab, words).unwrap();
    let mut reasons = json(&["stats"])["reasons"].clone();
    // ARP and neighbour discovery go on meanwhile.
    reasons.as_array_mut().unwrap().retain(|row| !row["class"].is_null());
    // The question comes from port 1; flows of real connections end meanwhile.
    let flows = json(&["flow", "list"]);
    let asked = flows.as_array().unwrap().iter().filter(|flow| flow["client"].as_str().unwrap().ends_with(":1"));
    json!([reasons, asked.collect::<Vec<_>>()])
}

fn packets_of(scene: &Scene, reason: &str) -> u64 {
    let stats = scene.product.json(&scene.lab, &["stats"]).unwrap();
    let rows = stats["reasons"].as_array().unwrap().iter().filter(|row| row["reason"] == reason);
    rows.map(|row| row["packets"].as_u64().unwrap()).sum()
}

fn an_explanation_is_what_a_connection_meets(scene: &mut Scene) {
    let opened = if scene.mode == Mode::Steer { "steer_new" } else { "flow_new" };
    for family in Family::BOTH {
        let to = family.server();
        for (from, reason, class) in [
            (family.redirected(), opened, "configured"),
            (family.bypass(), "class_pass", "bypass"),
            (family.blocked(), "class_block", "blocked"),
        ] {
            let before = traces(scene);
            let answers: Vec<_> = (0..50).map(|_| explain(scene, from, to)).collect();
            assert_eq!(traces(scene), before, "asking changed something");
            let answer = &answers[0];
            assert!(answers.iter().all(|other| other == answer));
            assert_eq!((&answer["reason"], &answer["class"]), (&json!(reason), &json!(class)));
            assert_eq!(answer["interface"], "lan0");
            let met = greeting(scene, from, to);
            match answer["verdict"].as_str().unwrap() {
                "redirect" => {
                    assert_eq!(answer["relay"], "embedded");
                    assert_eq!(answer["endpoint"], std::net::SocketAddr::new(family.router(), 2525).to_string());
                    assert!(met.unwrap().starts_with("relay.example.net "));
                }
                "steer" => {
                    assert_eq!((&answer["relay"], &answer["endpoint"]), (&json!("embedded"), &Value::Null));
                    assert!(met.unwrap().starts_with("relay.example.net "));
                }
                "pass" => assert_eq!(met.unwrap(), format!("internet {to} ESMTP")),
                "drop" => assert_eq!(met, None),
                other => panic!("verdict {other}"),
            }
        }
    }
    // One event for each packet that opened a flow or was blocked, and none for a question.
    wait_until("the events of real packets, and no others", PATIENCE, || {
        let events = scene.product.json(&scene.lab, &["status"])?["events"].clone();
        let real = packets_of(scene, opened) + packets_of(scene, "class_block");
        Ok((events == json!({"read": real, "lost": 0, "dropped": 0})).then_some(()))
    })
    .unwrap();
}

fn every_kind_of_subscriber_is_explained(scene: &mut Scene) {
    let opened = if scene.mode == Mode::Steer { "steer_new" } else { "flow_new" };
    let ctl = |words: &[&str]| scene.ctl(words).unwrap();
    ctl(&["class", "set", "refused", "--action", "reject"]);
    ctl(&["class", "set", "patient", "--action", "redirect", "--relay", "embedded:3", "--on-relay-down", "block"]);
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        let subscriber = from.to_string();
        for (class, reason) in [
            ("misconfigured", opened),
            ("configured", opened),
            ("authenticated", "class_pass"),
            ("bypass", "class_pass"),
            ("blocked", "class_block"),
            ("refused", "class_reject"),
        ] {
            ctl(&["subscriber", "set", &subscriber, "--class", class]);
            let answer = explain(scene, from, to);
            assert_eq!((&answer["reason"], &answer["class"]), (&json!(reason), &json!(class)));
            let len = if from.is_ipv4() { 32 } else { 128 };
            assert_eq!(answer["prefix"], format!("{subscriber}/{len}"));
            assert_eq!(answer["relays"].as_array().unwrap().len(), usize::from(reason == opened), "{answer}");
            assert_eq!((&answer["open"], &answer["lock_left_s"]), (&Value::Null, &Value::Null));
        }
        let stranger: IpAddr = if from.is_ipv4() { "192.0.2.77" } else { "2001:db8:77::1" }.parse().unwrap();
        let answer = explain(scene, stranger, to);
        assert_eq!(
            (&answer["reason"], &answer["class"], &answer["limits"]),
            (&json!("no_class"), &Value::Null, &Value::Null)
        );

        ctl(&["subscriber", "set", &subscriber, "--class", "patient"]);
        ctl(&["lock", "add", &subscriber, "--for", "1h"]);
        let answer = explain(scene, from, to);
        assert_eq!(answer["reason"], "locked");
        assert!((3_000..=3_600).contains(&answer["lock_left_s"].as_u64().unwrap()), "{answer}");
        let locked = if from.is_ipv4() { subscriber.clone() } else { "fd00:20::/64".to_owned() };
        ctl(&["lock", "remove", &locked]);

        ctl(&["relay", "drain", "embedded"]);
        let answer = explain(scene, from, to);
        assert_eq!(answer["reason"], "relay_down_block");
        let relay = &answer["relays"][0];
        assert_eq!(
            (&relay["name"], &relay["weight"], &relay["status"]),
            (&json!("embedded"), &json!(3), &json!("draining"))
        );
        let shown = scene.ctl(&["explain", &subscriber, &to.to_string()]).unwrap();
        assert!(shown.contains("embedded:3(draining,up)"), "{shown}");
        ctl(&["relay", "enable", "embedded"]);
        assert_eq!(explain(scene, from, to)["reason"], opened);
    }
}

fn what_a_limit_says_is_explained_and_not_used_up(scene: &mut Scene) {
    let opened = if scene.mode == Mode::Steer { "steer_new" } else { "flow_new" };
    let ctl = |words: &[&str]| scene.ctl(words).unwrap();
    ctl(&["class", "set", "slow", "--action", "redirect", "--relay", "embedded", "--rate", "1", "--burst", "1"]);
    ctl(&["class", "set", "few", "--action", "redirect", "--relay", "embedded", "--open-max", "1"]);
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        ctl(&["subscriber", "set", &from.to_string(), "--class", "slow"]);
        // However often it is asked, there is room for one connection; a connection takes it.
        for _ in 0..20 {
            let answer = explain(scene, from, to);
            assert_eq!((&answer["reason"], &answer["limits"]["rate"]), (&json!(opened), &json!(1)));
        }
        wait_until("a limit that is reached", PATIENCE, || {
            let _greeted = greeting(scene, from, to);
            Ok((explain(scene, from, to)["reason"] == "rate_limited").then_some(()))
        })
        .unwrap();
        // Asking costs nothing: a second later there is room again.
        wait_until("room for the next", PATIENCE, || Ok((explain(scene, from, to)["reason"] == opened).then_some(())))
            .unwrap();

        ctl(&["subscriber", "set", &from.to_string(), "--class", "few"]);
        wait_until("nothing open", PATIENCE, || Ok((explain(scene, from, to)["open"] == 0).then_some(()))).unwrap();
        let mut client = Client::connect(&scene.lab.client, (from, 0), port_25(to)).unwrap();
        client.hello().unwrap();
        let answer = explain(scene, from, to);
        assert_eq!(
            (&answer["reason"], &answer["open"], &answer["limits"]["open_max"]),
            (&json!("open_limited"), &json!(1), &json!(1))
        );
    }
}

fn packets_are_counted_by_interface(scene: &mut Scene) {
    assert_eq!(greeting(scene, Family::V4.blocked(), Family::V4.server()), None);
    let stats = scene.product.json(&scene.lab, &["stats"]).unwrap();
    let packets = |rows: &Value, owner: &str, name: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row[owner] == name && row["reason"] == "class_block");
        row.unwrap()["packets"].as_u64().unwrap()
    };
    let by_class = packets(&stats["reasons"], "class", "blocked");
    assert!(by_class > 0);
    assert_eq!(packets(&stats["interfaces"], "interface", "lan0"), by_class);
    let memory = scene.product.json(&scene.lab, &["status"]).unwrap()["memory"].clone();
    assert!(memory.as_array().unwrap().iter().all(|group| group["bytes"].as_u64().unwrap() > 0), "{memory}");
}
