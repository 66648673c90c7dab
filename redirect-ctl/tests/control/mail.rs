//! Where mail goes: gateways, groups, routes and managed domains, over the API and the CLI.

use serde_json::{Value, json};

use crate::support::{Lab, revision_of};

const PASSWORD: &str = "correct horse battery";

/// Everything that the operator can see, and the store's content apart from the passwords.
async fn everything_shown(lab: &Lab) -> String {
    let mut shown = String::new();
    for target in ["/v1/gateways", "/v1/gateways/isp", "/v1/status", "/metrics", "/openapi.json"] {
        shown += &lab.get(target).await.text;
    }
    for args in [&["gateway", "list"][..], &["gateway", "get", "isp"], &["-o", "json", "gateway", "get", "isp"]] {
        let output = lab.ctl(args).await;
        shown = shown + &output.stdout + &output.stderr;
    }
    shown
}

fn account(rest: &str) -> String {
    format!(
        r#"{{"address":"smtp.isp.example","port":465,"encryption":"implicit","verification":{{"mode":"ca"}},
        "account":{{"username":"hotel7"{rest}}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_goes_in_and_never_comes_out() {
    let lab = Lab::start().await;
    let put = lab.put("/v1/gateways/isp", &account(&format!(r#","password":"{PASSWORD}""#))).await.expect(201);
    assert_eq!(put.json()["account"], json!({"mechanism": "PLAIN", "username": "hotel7", "allow_unprotected": false}));
    let shown = everything_shown(&lab).await;
    assert!(shown.contains("hotel7") && !shown.contains(PASSWORD), "{shown}");

    // What is sent back keeps it, and so does a change of something else.
    let revision = put.header("etag").unwrap().to_owned();
    let again = lab.put("/v1/gateways/isp", &lab.get("/v1/gateways/isp").await.text).await.expect(200);
    assert_eq!(again.header("etag"), Some(revision.as_str()), "nothing changed");
    assert_eq!(lab.ctl(&["gateway", "drain", "isp"]).await.stdout, "gateway isp set (revision 4)\n");
    assert_eq!(password(&lab).as_deref(), Some(PASSWORD));
    lab.put("/v1/gateways/isp", &account("")).await.expect(200);
    assert_eq!(password(&lab).as_deref(), Some(PASSWORD));

    // Another user's password is not ours.
    let other = account("").replace("hotel7", "hotel8");
    lab.put("/v1/gateways/isp", &other).await.problem(422, "invalid", Some("/account/password"));
    lab.put("/v1/gateways/fresh", &account("")).await.problem(422, "invalid", Some("/account/password"));

    // Mistakes do not quote it.
    for bad in [format!(r#","password":["{PASSWORD}"]"#), format!(r#","password":"{PASSWORD}","password2":1"#)] {
        let answer = lab.put("/v1/gateways/isp", &account(&bad)).await;
        assert_eq!(answer.status, 422);
        assert!(!answer.text.contains(PASSWORD), "{}", answer.text);
    }
    let misplaced = format!(r#"{{"address":"smtp.isp.example","account":"{PASSWORD}"}}"#);
    let answer = lab.put("/v1/gateways/isp", &misplaced).await;
    answer.problem(422, "invalid", Some("/account"));
    assert!(!answer.text.contains(PASSWORD), "{}", answer.text);

    // It survives a restart, and goes with the account.
    let lab = lab.restart(|_| {}).await;
    assert_eq!(password(&lab).as_deref(), Some(PASSWORD));
    assert!(!everything_shown(&lab).await.contains(PASSWORD));
    let without = r#"{"address":"smtp.isp.example","account":null}"#;
    assert_eq!(lab.put("/v1/gateways/isp", without).await.expect(200).json().get("account"), None);
    assert_eq!(password(&lab), None);
    lab.put("/v1/gateways/isp", &account("")).await.problem(422, "invalid", Some("/account/password"));
}

/// What a gateway is doing may change at any moment.
fn without_state(mut gateway: Value) -> Value {
    gateway.as_object_mut().unwrap().remove("state");
    gateway
}

/// As the store holds it.
fn password(lab: &Lab) -> Option<String> {
    let store = rusqlite::Connection::open(&lab.settings.store).unwrap();
    store.query_row("SELECT password FROM targets WHERE name = 'isp'", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one gateway with everything")]
async fn all_that_can_be_said_of_a_gateway_can_be_said_on_the_command_line() {
    let lab = Lab::start().await;
    let file = lab.dir.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\nnot this line\n")).unwrap();
    let set = lab
        .ctl(&[
            "gateway",
            "set",
            "isp",
            "--address",
            "2001:db8::25",
            "--port",
            "465",
            "--description",
            "the ISP",
            "--encryption",
            "implicit",
            "--verification",
            "ca",
            "--ca-file",
            "/etc/isp.pem",
            "--sni",
            "smtp.isp.example",
            "--username",
            "hotel7",
            "--password-file",
            file.to_str().unwrap(),
            "--mechanism",
            "SCRAM-SHA-256",
            "--status",
            "draining",
            "--weight",
            "7",
            "--priorities",
            "-9..-1",
            "--connections-max",
            "5",
            "--messages-per-second-max",
            "10",
            "--recipients-per-message-max",
            "50",
            "--quota",
            "recipients=500/1h:50",
            "--quota",
            "octets=1000000/1m",
            "--egress",
            "2001:db8::2=out.example",
            "--egress",
            "2001:db8::3",
            "--strategy",
            "on_block",
            "--block-pattern",
            "blocked using",
            "--suspension",
            "1h",
            "--proxy-protocol",
            "--xclient",
        ])
        .await;
    assert_eq!((set.stdout.as_str(), set.stderr.as_str()), ("gateway isp set (revision 3)\n", ""));
    assert_eq!(password(&lab).as_deref(), Some(PASSWORD));
    assert_eq!(
        without_state(lab.get("/v1/gateways/isp").await.json()),
        json!({
            "name": "isp", "description": "the ISP", "address": "2001:db8::25", "port": 465, "encryption": "implicit",
            "verification": {"mode": "ca", "file": "/etc/isp.pem"}, "sni": "smtp.isp.example",
            "account": {"mechanism": "SCRAM-SHA-256", "username": "hotel7", "allow_unprotected": false},
            "status": "draining", "weight": 7, "priorities": {"min": -9, "max": -1},
            "limits": {"connections_max": 5, "messages_per_second_max": 10, "recipients_per_message_max": 50, "quota": {
                "recipients": {"count": 500, "per_s": 3600, "burst": 50},
                "octets": {"count": 1_000_000, "per_s": 60, "burst": 1_000_000}}},
            "egress": {"strategy": "on_block", "addresses": [
                {"address": "2001:db8::2", "helo": "out.example"}, {"address": "2001:db8::3"}],
                "block_patterns": ["blocked using"], "suspension_s": 3600},
            "proxy_protocol": true, "xclient": true, "allow_local": false,
            "allow_downgrade": false, "revision": 3
        })
    );
    for (verb, status) in [("enable", "enabled"), ("drain", "draining"), ("disable", "disabled")] {
        lab.ctl(&["gateway", verb, "isp"]).await;
        assert_eq!(lab.get("/v1/gateways/isp").await.json()["status"], status);
    }
    assert_eq!(password(&lab).as_deref(), Some(PASSWORD));

    // From standard input.
    let base = [
        "gateway",
        "set",
        "isp",
        "--address",
        "a.example",
        "--username",
        "u",
        "--allow-unprotected",
        "--password-file",
    ];
    let set = lab.ctl_with(&[&base[..], &["-"]].concat(), "second\r\n").await;
    assert_eq!((set.code, set.stderr.as_str()), (0, ""));
    assert_eq!(password(&lab).as_deref(), Some("second"));
    let empty = lab.ctl_with(&[&base[..], &["-"]].concat(), "\n").await;
    assert_eq!((empty.code, empty.stderr.as_str()), (1, "redirect-ctl: -: its first line is empty\n"));
    for wrong in [
        "gateway set isp --address a --password secret",
        "gateway set isp --address a --password-file x",
        "gateway set isp --address a --verification pin",
        "gateway set isp --address a --ca-file x",
        "gateway set isp --address a --encryption tls",
        "gateway set isp --address a --priorities 5",
        "gateway set isp --address a --egress here",
        "group set g --member a:b",
        "group set g",
    ] {
        assert_eq!(lab.ctl(&wrong.split(' ').collect::<Vec<_>>()).await.code, 2, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_place_and_changes_nothing() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example"}"#).await.expect(201);
    lab.put("/v1/groups/out", r#"{"members":[{"gateway":"mx"}]}"#).await.expect(201);
    lab.put("/v1/managed-domains/own.example", "{}").await.expect(201);
    lab.put("/v1/routes/else.example", r#"{"gateway":"mx"}"#).await.expect(201);
    let before = lab.get("/v1/status").await.json()["revision"].clone();
    for (target, body, status, code, pointer) in [
        ("/v1/gateways/a", r#"{"address":"a","surprise":1}"#, 422, "invalid", Some("/surprise")),
        ("/v1/gateways/a", r#"{"address":"a","address":"b"}"#, 422, "invalid", Some("/address")),
        ("/v1/gateways/a", r#"{"address":"a","name":"b"}"#, 422, "invalid", Some("/name")),
        ("/v1/gateways/a", r#"{"address":"a","encryption":"tls"}"#, 422, "invalid", Some("/encryption")),
        ("/v1/gateways/a", r#"{"address":"a","weight":0}"#, 422, "invalid", Some("/weight")),
        (
            "/v1/gateways/a",
            r#"{"address":"a","limits":{"connections_max":0}}"#,
            422,
            "invalid",
            Some("/limits/connections_max"),
        ),
        ("/v1/gateways/a", r#"{"address":"a","verification":{"mode":"ca"}}"#, 422, "invalid", Some("/encryption")),
        (
            "/v1/gateways/a",
            r#"{"address":"a","account":{"username":"u","password":"p"}}"#,
            422,
            "invalid",
            Some("/account"),
        ),
        ("/v1/gateways/out", r#"{"address":"a"}"#, 409, "conflict", None),
        ("/v1/groups/g", "{}", 422, "invalid", Some("/members")),
        ("/v1/groups/g", r#"{"members":[]}"#, 422, "invalid", Some("/members")),
        ("/v1/groups/g", r#"{"members":[{"gateway":"no"}]}"#, 422, "invalid", Some("/members")),
        ("/v1/groups/g", r#"{"members":[{"gateway":"out"}]}"#, 422, "invalid", Some("/members")),
        (
            "/v1/groups/g",
            r#"{"members":[{"gateway":"mx"},{"gateway":"mx","rank":1}]}"#,
            422,
            "invalid",
            Some("/members"),
        ),
        (
            "/v1/groups/g",
            r#"{"members":[{"gateway":"mx"}],"description":"a\nb"}"#,
            422,
            "invalid",
            Some("/description"),
        ),
        ("/v1/groups/mx", r#"{"members":[{"gateway":"mx"}]}"#, 409, "conflict", None),
        ("/v1/routes/a.example", "{}", 422, "invalid", Some("/gateway")),
        ("/v1/routes/a.example", r#"{"gateway":"mx","group":"out"}"#, 422, "invalid", Some("/group")),
        ("/v1/routes/a.example", r#"{"gateway":"no"}"#, 422, "invalid", Some("/gateway")),
        ("/v1/routes/a.example", r#"{"gateway":"out"}"#, 422, "invalid", Some("/gateway")),
        ("/v1/routes/a.example", r#"{"group":"mx"}"#, 422, "invalid", Some("/group")),
        ("/v1/routes/a.example", r#"{"gateway":"mx","domain":"b.example"}"#, 422, "invalid", Some("/domain")),
        ("/v1/routes/a.example", r#"{"gateway":"mx","order":5}"#, 422, "invalid", Some("/order")),
        ("/v1/routes/a.example", r#"{"gateway":"mx","note":"a\nb"}"#, 422, "invalid", Some("")),
        ("/v1/routes/a.example;class=nobody", r#"{"gateway":"mx"}"#, 422, "invalid", Some("/class")),
        ("/v1/routes/a.example;size=5..4", r#"{"gateway":"mx"}"#, 422, "invalid", Some("")),
        ("/v1/routes/a_b", r#"{"gateway":"mx"}"#, 422, "invalid", Some("/key")),
        ("/v1/routes/a.example;order=5;order=6", r#"{"gateway":"mx"}"#, 422, "invalid", Some("/key")),
        ("/v1/managed-domains/a.example", r#"{"target":{"gateway":"no"}}"#, 422, "invalid", Some("/target/gateway")),
        ("/v1/managed-domains/*", "{}", 422, "invalid", Some("/domain")),
        ("/v1/classes/gold", r#"{"action":"pass","gateway":"no"}"#, 422, "invalid", Some("/gateway")),
        // A managed domain cannot be a route, nor a route's domain managed, however it is written.
        ("/v1/routes/OWN.example", r#"{"gateway":"mx"}"#, 409, "conflict", None),
        ("/v1/routes/own.example;class=bypass", r#"{"gateway":"mx"}"#, 409, "conflict", None),
        ("/v1/managed-domains/Else.EXAMPLE", "{}", 409, "conflict", None),
    ] {
        let answer = lab.put(target, body).await;
        eprintln!("{target} {body} -> {}", answer.text);
        answer.problem(status, code, pointer);
    }
    for (target, count) in [
        ("/v1/routes?limit=0", "?limit"),
        ("/v1/routes?cursor=a_b", "?cursor"),
        ("/v1/routes?within=*", "?within"),
        ("/v1/routes?target=a%20b", "?target"),
        ("/v1/managed-domains?cursor=*", "?cursor"),
        ("/v1/routes:explain?from=a&rcpt=b&class=nobody", "?class"),
        ("/v1/routes:explain?from=*&rcpt=b&class=bypass", "?from"),
        ("/v1/routes:explain?from=.a&rcpt=b&class=bypass", "?from"),
        ("/v1/routes:explain?from=a&rcpt=a@b@&class=bypass", "?rcpt"),
    ] {
        lab.get(target).await.problem(422, "invalid", Some(count));
    }
    assert_eq!(lab.get("/v1/status").await.json()["revision"], before);
    let detail = lab.put("/v1/routes/own.example", r#"{"gateway":"mx"}"#).await.json()["detail"].to_string();
    assert!(detail.contains("delete it first"), "{detail}");
    // What is below a managed domain may be one.
    lab.put("/v1/routes/.own.example", r#"{"gateway":"mx"}"#).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_stays() {
    let lab = Lab::start().await;
    for name in ["mx", "mx2"] {
        lab.put(&format!("/v1/gateways/{name}"), r#"{"address":"mx.example"}"#).await.expect(201);
    }
    lab.put("/v1/groups/out", r#"{"members":[{"gateway":"mx"},{"gateway":"mx2","rank":1}]}"#).await.expect(201);
    lab.put("/v1/classes/gold", r#"{"action":"pass","gateway":"out"}"#).await.expect(201);
    lab.put("/v1/classes/silver", r#"{"action":"pass","gateway":"mx"}"#).await.expect(201);
    for domain in ["a", "b", "c", "d", "e"] {
        lab.put(&format!("/v1/routes/{domain}.example"), r#"{"gateway":"mx"}"#).await.expect(201);
    }
    lab.put("/v1/routes/*;class=gold", r#"{"group":"out"}"#).await.expect(201);
    lab.put("/v1/managed-domains/own.example", r#"{"target":{"group":"out"}}"#).await.expect(201);
    for (target, user) in [
        ("/v1/gateways/mx", "class silver; group out; routes a.example, b.example, c.example and 2 more"),
        ("/v1/gateways/mx2", "gateway mx2 is in use by group out"),
        ("/v1/groups/out", "class gold; route *;class=gold; managed domain own.example"),
        ("/v1/classes/gold", "route *;class=gold"),
    ] {
        let answer = lab.delete(target).await;
        answer.problem(409, "in_use", None);
        assert!(answer.json()["detail"].as_str().unwrap().contains(user), "{}", answer.text);
    }
    for target in [
        "/v1/managed-domains/own.example",
        "/v1/routes/*;class=gold",
        "/v1/classes/gold",
        "/v1/groups/out",
        "/v1/gateways/mx2",
    ] {
        lab.delete(target).await.expect(204);
        lab.delete(target).await.problem(404, "not_found", None);
        lab.get(target).await.problem(404, "not_found", None);
    }
}

fn keys(answer: &crate::support::Answer) -> Vec<String> {
    let items = answer.json()["items"].as_array().unwrap().clone();
    items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_come_in_pages_by_domain_and_filtered() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example"}"#).await.expect(201);
    lab.put("/v1/groups/out", r#"{"members":[{"gateway":"mx"}]}"#).await.expect(201);
    let sorted = [
        "*",
        "*;class=bypass",
        "a.example",
        "a.example;order=7;size=1000..",
        "a-b.example",
        ".a.example",
        "www.a.example",
        "b.example;sender=<>",
        "xn--bcher-kva.example;priority=-9..-1",
    ];
    for (index, key) in sorted.iter().enumerate().rev() {
        let body = if index % 2 == 0 { r#"{"gateway":"mx"}"# } else { r#"{"group":"out","note":"n"}"# };
        let key = key.replace("xn--bcher-kva", "B%C3%9Ccher").replace('<', "%3C").replace('>', "%3E");
        lab.put(&format!("/v1/routes/{key}"), body).await.expect(201);
    }
    assert_eq!(keys(&lab.get("/v1/routes").await.expect(200)), sorted);
    let route = lab.get("/v1/routes/a.example;order=7;size=1000..").await.expect(200);
    assert_eq!(
        route.json(),
        json!({"revision": revision_of(&route), "key": "a.example;order=7;size=1000..", "domain": "a.example", "order": 7,
            "size": {"min": 1000, "max": u64::MAX}, "group": "out", "note": "n"})
    );
    for (query, expected) in [
        ("within=a.example", &sorted[2..4] as &[_]),
        ("within=example&class=bypass", &[]),
        ("class=bypass", &sorted[1..2]),
    ] {
        let found = keys(&lab.get(&format!("/v1/routes?{query}")).await.expect(200));
        let mut expected = expected.to_vec();
        if query == "within=a.example" {
            expected.extend([".a.example", "www.a.example"]);
        }
        assert_eq!(found, expected, "{query}");
    }
    assert_eq!(keys(&lab.get("/v1/routes?target=out").await).len(), 4);
    let mut seen = Vec::new();
    let mut target = "/v1/routes?limit=2&within=example".to_owned();
    loop {
        let page = lab.get(&target).await.expect(200);
        seen.extend(keys(&page));
        let Some(cursor) = page.json()["next_cursor"].as_str().map(str::to_owned) else { break };
        target = format!("/v1/routes?limit=2&within=example&cursor={}", cursor.replace('<', "%3C").replace('>', "%3E"));
    }
    assert_eq!(seen, sorted[2..]);
    // An answer can be sent back.
    for key in keys(&lab.get("/v1/routes").await) {
        let key = key.replace('<', "%3C").replace('>', "%3E");
        let found = lab.get(&format!("/v1/routes/{key}")).await.expect(200);
        assert_eq!(lab.put(&format!("/v1/routes/{key}"), &found.text).await.expect(200).json(), found.json());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_routes_go_when_their_number_is_confirmed() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example"}"#).await.expect(201);
    for domain in ["a", "b", "c", "d"] {
        lab.put(&format!("/v1/routes/{domain}.example"), r#"{"gateway":"mx"}"#).await.expect(201);
    }
    lab.put("/v1/routes/*", r#"{"gateway":"mx"}"#).await.expect(201);
    let delete = async |body: &str| lab.post("/v1/routes:delete", body).await;
    let refused = delete(r#"{"within":"example","count":3}"#).await;
    refused.problem(409, "conflict", None);
    assert!(refused.json()["detail"].as_str().unwrap().contains("4 routes are meant, not 3"), "{}", refused.text);
    delete(r#"{"within":"example"}"#).await.problem(422, "invalid", Some("/count"));
    assert_eq!(
        delete(r#"{"keys":["a.example","b.example","z.example"],"count":2}"#).await.expect(200).json(),
        json!({"count": 2})
    );
    assert_eq!(delete(r#"{"keys":["a.example"],"count":0}"#).await.expect(200).json(), json!({"count": 0}));
    assert_eq!(keys(&lab.get("/v1/routes").await), ["*", "c.example", "d.example"]);

    let asked = lab.ctl_with(&["route", "delete", "--within", "example"], "n\n").await;
    assert_eq!((asked.code, asked.stdout.as_str()), (1, ""));
    assert_eq!(asked.stderr, "delete 2 routes? [y/N] redirect-ctl: nothing was changed\n");
    let done = lab.ctl_with(&["route", "delete", "--within", "example"], "y\n").await;
    assert_eq!((done.code, done.stdout.ends_with("2 routes deleted (revision 10)\n")), (0, true), "{}", done.stdout);
    let done = lab.ctl(&["route", "delete", "--target", "mx", "--yes"]).await;
    assert_eq!(done.stdout, "1 routes deleted (revision 11)\n");
    assert_eq!(lab.ctl(&["route", "delete"]).await.code, 2);
    assert_eq!(keys(&lab.get("/v1/routes").await), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_the_route_and_its_gateways() {
    let lab = Lab::start().await;
    for args in [
        "gateway set default --address mx.example",
        "gateway set mx2 --address mx2.example",
        "gateway set mx3 --address mx3.example",
        "group set out --member mx2:1 --member mx3 --balance least_outstanding",
        "class set gold --action redirect --relay embedded --gateway mx2",
        "route set .example.com --group out --note smart",
        "route set bulk.example --class gold --size 1000000.. --gateway mx3",
        "managed-domain set own.example --gateway mx3",
        "managed-domain set our.example",
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((output.stderr.as_str(), output.code), ("", 0), "{args}");
    }
    let explain = async |from: &str, rcpt: &str, class: &str, more: &str| {
        let args = format!("explain --from {from} --rcpt {rcpt} --class {class} {more}");
        let output = lab.ctl(&args.split_whitespace().collect::<Vec<_>>()).await;
        assert_eq!((output.stderr.as_str(), output.code), ("", 0), "{args}");
        output.stdout.trim_end().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for (from, rcpt, class, more, last) in [
        ("me@a.example", "you@www.Example.COM", "configured", "", "group out: mx3, mx2"),
        ("me@a.example", "you@example.com", "configured", "", "gateway default: default"),
        ("<>", "you@example.com", "gold", "", "gateway mx2: mx2"),
        ("<>", "bulk.example", "gold", "--size 1000000", "gateway mx3: mx3"),
        ("<>", "bulk.example", "gold", "--size 999999", "gateway mx2: mx2"),
        ("a", "x@own.example", "gold", "", "gateway mx3: mx3"),
        ("a", "x@our.example", "gold", "--priority -3", "gateway mx2: mx2"),
    ] {
        assert_eq!(explain(from, rcpt, class, more).await.last().unwrap(), last, "{from} {rcpt} {class}");
    }
    assert_eq!(
        explain("<>", "bulk.example", "gold", "").await,
        [
            "route bulk.example (class gold, size from 1000000): its conditions do not hold",
            "no route .example",
            "route * (class gold): taken",
            "gateway mx2: mx2"
        ]
    );
    let json: Value = serde_json::from_str(
        &lab.ctl(&["-o", "json", "explain", "--from", "<>", "--rcpt", "a.example.com", "--class", "gold"]).await.stdout,
    )
    .unwrap();
    assert_eq!((&json["route"]["note"], &json["gateways"]), (&json!("smart"), &json!(["mx3", "mx2"])));
    assert_eq!(json["revision"], lab.get("/v1/status").await.json()["revision"]);
    for wrong in [
        "explain",
        "explain 10.0.0.1",
        "explain --rcpt a --class gold",
        "explain 10.0.0.1 10.0.0.2 --rcpt a --from b --class c",
    ] {
        assert_eq!(lab.ctl(&wrong.split(' ').collect::<Vec<_>>()).await.code, 2, "{wrong}");
    }
    // Every word that the command line offers is one of the API's.
    for (args, option, words) in [
        (
            &["gateway", "set", "words", "--address", "a"][..],
            "--encryption",
            &["none", "starttls", "starttls_required", "implicit"][..],
        ),
        (&["gateway", "set", "words", "--address", "a"], "--mechanism", &["PLAIN", "LOGIN", "SCRAM-SHA-256"]),
        (&["gateway", "set", "words", "--address", "a"], "--status", &["enabled", "disabled", "draining"]),
        (&["gateway", "set", "words", "--address", "a"], "--strategy", &["sticky", "round_robin", "on_block"]),
        (&["group", "set", "more", "--member", "mx2"], "--balance", &["round_robin", "least_outstanding"]),
    ] {
        for word in words {
            let output = lab.ctl(&[args, &[option, word]].concat()).await;
            assert_eq!((output.stderr.as_str(), output.code), ("", 0), "{option} {word}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_routes_go_in_whole_or_not_at_all() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/mx", r#"{"address":"mx.example"}"#).await.expect(201);
    lab.put("/v1/gateways/mx2", r#"{"address":"192.0.2.2","port":587}"#).await.expect(201);
    lab.put("/v1/groups/out", r#"{"members":[{"gateway":"mx"}]}"#).await.expect(201);
    lab.put("/v1/managed-domains/own.example", "{}").await.expect(201);
    lab.put("/v1/routes/a.example", r#"{"gateway":"mx"}"#).await.expect(201);
    lab.put("/v1/routes/old.example", r#"{"gateway":"mx","note":"=1+1"}"#).await.expect(201);
    let import = async |query: &str, file: &str| {
        lab.raw("POST", &format!("/v1/routes:import?{query}"), "Content-Type: text/csv\r\n", file.as_bytes()).await
    };
    let revision = async || lab.get("/v1/status").await.json()["revision"].clone();
    let before = revision().await;

    // What is wrong is told by lines, and nothing of the file is kept.
    let bad = "\u{feff}domain,gateway,group,class\r\n# a comment\r\nb.example,mx,,\r\nc.example,nobody,,\r\n\"d.example\",,nobody,\r\n\
               e_,mx,,\r\nOWN.example,mx,,\r\nf.example,mx,,nobody\r\nB\u{fc}cher.example,mx,,\r\nxn--bcher-kva.example,,out,\r\n";
    let answer = import("format=csv", bad).await;
    answer.problem(422, "invalid", Some("line 4"));
    let faults = answer.json()["errors"].as_array().unwrap().clone();
    let lines: Vec<_> = faults.iter().map(|fault| fault["pointer"].as_str().unwrap()).collect();
    assert_eq!(lines, ["line 4", "line 5", "line 6", "line 7", "line 8", "line 10"], "{}", answer.text);
    let latin =
        lab.raw("POST", "/v1/routes:import?format=csv", "", b"domain,gateway\nb.example,mx\nb\xfc.example,mx\n").await;
    latin.problem(422, "invalid", Some("line 3"));
    let lost = "[{\"domain\":\"b.example\",\"gateway\":\"mx\"},\n{\"domain\":\"c.example\",\"gateway\":\"mx\",\"clas\":\"bypass\"}]";
    let answer = import("format=json", lost).await;
    answer.problem(422, "invalid", Some("line 2"));
    assert!(answer.text.contains(r#"\"clas\" is no member of a route"#), "{}", answer.text);
    import("format=xml", "").await.problem(400, "invalid_query", Some("?format"));
    import("", "").await.problem(400, "invalid_query", Some("?format"));
    let huge = "x".repeat(redirect_ctl::limits::IMPORT_BYTES_MAX + 1);
    import("format=csv", &huge).await.problem(413, "too_large", Some(""));
    assert_eq!(revision().await, before);

    // A dry run tells what it would do.
    let good = "domain,gateway,group,note\na.example,mx2,,\n.b.example,,out,b\n*,mx,,\n";
    let dry = import("format=csv&mode=replace&dry_run=true", good).await.expect(200);
    let expected = |dry: bool| {
        json!({"dry_run": dry, "added": {"count": 2, "keys": [".b.example", "*"]},
            "changed": {"count": 1, "keys": ["a.example"]}, "removed": {"count": 1, "keys": ["old.example"]}, "unchanged": 0})
    };
    assert_eq!(dry.json(), expected(true));
    assert_eq!(revision().await, before);
    let done = import("format=csv&mode=replace", good).await.expect(200);
    assert_eq!(done.json(), expected(false));
    assert_eq!(keys(&lab.get("/v1/routes").await), ["*", "a.example", ".b.example"]);
    let again = import("format=csv", good).await.expect(200);
    assert_eq!(
        (again.json()["unchanged"].clone(), again.header("redirect-revision")),
        (json!(3), done.header("redirect-revision"))
    );

    // What comes out goes in again, in every form; a note is no formula.
    lab.put("/v1/routes/old.example;class=bypass", r#"{"group":"out","note":"=1+1"}"#).await.expect(201);
    for format in ["csv", "json", "transport"] {
        let export = lab.get(&format!("/v1/routes:export?format={format}")).await.expect(200);
        let omitted = if format == "transport" { "2" } else { "0" };
        assert_eq!(export.header("redirect-omitted"), Some(omitted), "{format}");
        assert!(!export.text.contains(",=1"), "{}", export.text);
        let back = import(&format!("format={format}&dry_run=true"), &export.text).await.expect(200).json();
        assert_eq!(back["unchanged"], if format == "transport" { 2 } else { 4 }, "{format}: {back}");
    }

    // The command line asks before it changes anything.
    let file = lab.dir.path().join("routes.csv");
    std::fs::write(&file, "domain,gateway\nnew.example,mx\n").unwrap();
    let file = file.to_str().unwrap();
    let before = revision().await;
    let dry = lab.ctl(&["route", "import", file, "--dry-run"]).await;
    assert_eq!((dry.code, dry.stdout.as_str()), (0, "CHANGE     ROUTE\nadded      new.example\nunchanged  (0)\n"));
    let no = lab.ctl_with(&["route", "import", file], "n\n").await;
    assert_eq!((no.code, no.stdout.as_str()), (1, ""));
    assert!(no.stderr.contains("add 1, change 0 and delete 0 routes? [y/N]"), "{}", no.stderr);
    assert_eq!(revision().await, before);
    assert_eq!(lab.ctl_with(&["route", "import", file], "y\n").await.code, 0);
    assert!(keys(&lab.get("/v1/routes").await).contains(&"new.example".to_owned()));
    let bad = lab
        .ctl_with(&["route", "import", "--format", "csv", "--yes", "-"], "domain,gateway\nx.example,mx\ny.example,no\n")
        .await;
    assert_eq!(
        (bad.code, bad.stderr.as_str()),
        (1, "redirect-ctl: nothing was imported: line 3: there is no gateway no; create it first\n")
    );
    assert_eq!(lab.ctl_with(&["route", "import", "--format", "csv", "-"], "domain,gateway\n").await.code, 2);
    assert_eq!(lab.ctl(&["route", "import", "routes"]).await.code, 2);
    let export = lab.ctl(&["route", "export", "--format", "transport"]).await;
    assert!(export.stdout.contains("a.example smtp:[192.0.2.2]:587\n"), "{}", export.stdout);
    assert_eq!(export.stderr, "redirect-ctl: 2 routes are left out, for transport cannot say them\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_tried_before_it_is_saved() {
    let lab = Lab::start().await;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let refusing = tokio::spawn(greet_and_refuse(server));
    let set = ["gateway", "set", "near", "--address", "127.0.0.1", "--port", &port, "--encryption", "none", "--verify"];
    let local = lab.ctl(&set).await;
    assert_eq!(local.code, 1, "{}", local.stderr);
    assert!(local.stderr.contains("it is not saved"), "{}", local.stderr);
    let refused = lab.ctl(&[&set[..], &["--allow-local"]].concat()).await;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for stage in ["dns", "tcp", "banner", "ehlo", "mail"] {
        assert!(
            refused.stderr.lines().any(|line| line.starts_with(stage)),
            "{stage} is missing in\n{}",
            refused.stderr
        );
    }
    assert!(refused.stderr.contains("not today"), "{}", refused.stderr);
    lab.get("/v1/gateways/near").await.problem(404, "not_found", None);

    // Saved all the same without it, and tried later.
    let set = lab.ctl(&[&set[..set.len() - 1], &["--allow-local"]].concat()).await;
    assert_eq!((set.code, set.stderr.as_str()), (0, ""));
    let tried = lab.ctl(&["gateway", "verify", "near"]).await;
    assert_eq!(tried.code, 1);
    assert!(tried.stdout.contains("not today"), "{}", tried.stdout);
    let report = lab.post("/v1/gateways:verify", r#"{"name":"x","address":"192.0.2.1","surprise":1}"#).await;
    report.problem(422, "invalid", Some("/surprise"));
    lab.post("/v1/gateways:verify", r#"{"address":"192.0.2.1"}"#).await.problem(422, "invalid", Some("/name"));
    refusing.abort();
}

/// A server that takes no mail.
async fn greet_and_refuse(listener: tokio::net::TcpListener) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut reply = "220 near\r\n";
        let mut line = String::new();
        while stream.write_all(reply.as_bytes()).await.is_ok() {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                break;
            }
            reply = if line.starts_with("MAIL") { "451 not today\r\n" } else { "250 ok\r\n" };
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lint_finds_what_is_hardly_meant() {
    let lab = Lab::start().await;
    lab.put("/v1/gateways/default", r#"{"address":"mx.example","encryption":"implicit","verification":{"mode":"ca"}}"#)
        .await
        .expect(201);
    let clean = lab.ctl(&["lint"]).await;
    assert_eq!((clean.code, clean.stdout.as_str(), clean.stderr.as_str()), (0, "CONCERN  SUBJECT  MEANING\n", ""));
    lab.put("/v1/gateways/bare", r#"{"address":"mx.example","encryption":"none"}"#).await.expect(201);
    lab.put("/v1/routes/a.example;sender=.b.example", r#"{"gateway":"default"}"#).await.expect(201);
    lab.put("/v1/routes/a.example;order=7", r#"{"gateway":"default"}"#).await.expect(201);
    let found = lab.ctl(&["lint"]).await;
    assert_eq!((found.code, found.stderr.as_str()), (1, "redirect-ctl: 3 findings\n"), "{}", found.stdout);
    for concern in ["shadowed_route", "tls_none", "unused_gateway"] {
        assert!(
            found.stdout.lines().any(|line| line.starts_with(concern)),
            "{concern} is missing in\n{}",
            found.stdout
        );
    }
}
