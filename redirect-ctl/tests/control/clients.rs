//! What clients of the embedded relay meet: certificates, users, access lists; and that no secret ever comes out.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use redirect_ctl::{api, limits};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    daemon::{lab_with_relay, redirected, say},
    log::logged,
    support::{Lab, revision_of},
};

const CONFIGURED: u16 = 2;
const REDIRECT: &str = r#""action":"redirect","relays":[{"name":"embedded"}]"#;

/// A certificate that signs itself, and its key.
struct Made {
    chain: String,
    key: String,
}

impl Made {
    fn of(name: &str) -> Self {
        Self::between(name, (2020, 1, 1), (2100, 1, 1))
    }

    fn between(name: &str, not_before: (i32, u8, u8), not_after: (i32, u8, u8)) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned(), "192.0.2.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(not_before.0, not_before.1, not_before.2);
        params.not_after = date_time_ymd(not_after.0, not_after.1, not_after.2);
        let key = KeyPair::generate().unwrap();
        let chain = params.self_signed(&key).unwrap().pem().replace("\r\n", "\n");
        Self { chain, key: key.serialize_pem() }
    }

    fn body(&self) -> String {
        json!({"chain": self.chain, "key": self.key}).to_string()
    }

    /// A line of the key that is nothing else.
    fn secret(&self) -> &str {
        self.key.lines().nth(1).unwrap()
    }
}

/// What makes a certificate, another one each time.
pub(crate) fn certificate_body() -> String {
    Made::of("relay.example.net").body()
}

async fn set_class(lab: &Lab, smtp: &str) {
    lab.put("/v1/classes/configured", &format!(r#"{{{REDIRECT},"smtp":{smtp}}}"#)).await.expect(200);
}

/// A client's session under TLS with whoever has this certificate.
async fn encrypted(lab: &Lab, relay: std::net::SocketAddr, made: &Made) -> BufReader<TlsStream<TcpStream>> {
    let mut client = redirected(lab, relay, CONFIGURED).await;
    say(&mut client, "", "220").await;
    let offers = say(&mut client, "EHLO laptop\r\n", "250").await;
    assert!(offers.contains("STARTTLS") && !offers.contains("AUTH"), "{offers}");
    say(&mut client, "STARTTLS\r\n", "220").await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.chain.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("relay.example.net").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, client.into_inner()).await.unwrap();
    BufReader::new(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_looked_at_before_it_is_saved() {
    let lab = Lab::start().await;
    let (good, other) = (Made::of("relay.example.net"), Made::of("other.example.net"));
    let whole = |chain: &str, key: &str| json!({"chain": chain, "key": key}).to_string();
    let expired = Made::between("relay.example.net", (2020, 1, 1), (2021, 1, 1));
    let early = Made::between("relay.example.net", (2099, 1, 1), (2100, 1, 1));
    let revision = async || lab.get("/v1/status").await.json()["revision"].clone();
    let before = revision().await;
    for (body, pointer, text) in [
        (whole("", &good.key), "/chain", "holds no certificate in PEM"),
        (whole(&good.key, &good.key), "/chain", "holds a private key"),
        (whole(&format!("{}{}", good.chain, good.key), &good.key), "/chain", "holds a private key"),
        (whole(&good.chain, "none"), "/key", "holds no private key in PEM"),
        (whole(&good.chain, &other.key), "/key", "is not the key of the first certificate"),
        (whole(&expired.chain, &expired.key), "/chain", "expired on 2021-01-01T00:00:00Z"),
        (whole(&early.chain, &early.key), "/chain", "is not valid before 2099-01-01T00:00:00Z"),
        (json!({"chain": good.chain}).to_string(), "/key", "no key is known for certificate relay"),
        (json!({"key": good.key}).to_string(), "/chain", "missing field"),
        (json!({"chain": good.chain, "key": good.key, "keys": 1}).to_string(), "/keys", ""),
        (json!({"chain": good.chain, "key": [good.key]}).to_string(), "/key", "is not as it must be"),
        (json!({"chain": good.chain, "key": good.key, "name": "other"}).to_string(), "/name", ""),
    ] {
        let answer = lab.put("/v1/certificates/relay", &body).await;
        answer.problem(422, "invalid", Some(pointer));
        assert!(answer.text.contains(text), "{text:?}: {}", answer.text);
        assert!(!answer.text.contains(good.secret()) && !answer.text.contains(other.secret()), "{}", answer.text);
    }
    assert_eq!(revision().await, before);

    let put = lab.put("/v1/certificates/relay", &good.body()).await.expect(201);
    let shown = json!({"name": "relay", "chain": good.chain, "names": ["relay.example.net", "192.0.2.1"],
        "not_before": "2020-01-01T00:00:00Z", "not_after": "2100-01-01T00:00:00Z",
        "revision": revision_of(&put)});
    assert_eq!(put.json(), shown);
    assert_eq!(lab.get("/v1/certificates").await.json()["items"], json!([shown]));
    // What is sent back keeps the key; with another certificate that key is of no use.
    let again = lab.put("/v1/certificates/relay", &lab.get("/v1/certificates/relay").await.text).await.expect(200);
    assert_eq!(again.header("etag"), put.header("etag"), "nothing changed");
    let without = json!({"chain": other.chain}).to_string();
    lab.put("/v1/certificates/relay", &without).await.problem(422, "invalid", Some("/key"));

    // It is in use by the classes that name it.
    let smtp = r#"{"tls":"offer","certificate":"relay"}"#;
    set_class(&lab, smtp).await;
    let answer = lab.delete("/v1/certificates/relay").await;
    answer.problem(409, "in_use", None);
    assert!(answer.text.contains("class configured"), "{}", answer.text);
    let nowhere = format!(r#"{{{REDIRECT},"smtp":{}}}"#, smtp.replace("relay", "nowhere"));
    lab.put("/v1/classes/configured", &nowhere).await.problem(422, "invalid", Some("/smtp/certificate"));
    let lab = lab.restart(|_| {}).await;
    assert_eq!(lab.get("/v1/certificates/relay").await.json(), shown);
    set_class(&lab, "{}").await;
    lab.delete("/v1/certificates/relay").await.expect(204);
    lab.delete("/v1/certificates/relay").await.problem(404, "not_found", None);
    lab.get("/v1/certificates/relay").await.problem(404, "not_found", None);
    for number in 0..limits::CERTIFICATES_MAX {
        lab.put(&format!("/v1/certificates/c{number}"), &good.body()).await.expect(201);
    }
    lab.put("/v1/certificates/relay", &good.body()).await.problem(409, "too_many", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_that_of_the_next_session() {
    let (lab, relay) = lab_with_relay().await;
    let (first, second) = (Made::of("relay.example.net"), Made::of("relay.example.net"));
    lab.put("/v1/certificates/relay", &first.body()).await.expect(201);
    set_class(&lab, r#"{"tls":"offer","certificate":"relay"}"#).await;
    let mut open = encrypted(&lab, relay, &first).await;
    say(&mut open, "EHLO laptop\r\n", "250").await;
    lab.put("/v1/certificates/relay", &second.body()).await.expect(200);
    let mut next = encrypted(&lab, relay, &second).await;
    say(&mut next, "EHLO laptop\r\n", "250").await;
    say(&mut open, "NOOP\r\n", "250").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_log_in_with_their_password_of_the_moment() {
    let (lab, relay) = lab_with_relay().await;
    let made = Made::of("relay.example.net");
    lab.put("/v1/certificates/relay", &made.body()).await.expect(201);
    set_class(&lab, r#"{"tls":"offer","certificate":"relay","auth":"local"}"#).await;
    let put = lab.put("/v1/users/anna%40example.net", r#"{"password":"first"}"#).await.expect(201);
    assert_eq!(put.json(), json!({"name": "anna@example.net", "revision": revision_of(&put)}));
    for body in [r#"{"password":"first"}"#, r#"{"name":"anna@example.net"}"#, "{}"] {
        let again = lab.put("/v1/users/anna@example.net", body).await.expect(200);
        assert_eq!(again.header("etag"), put.header("etag"), "{body}: nothing changed");
    }
    let log_in = async |secret: &str, code: &str| {
        let mut client = encrypted(&lab, relay, &made).await;
        let offers = say(&mut client, "EHLO laptop\r\n", "250").await;
        assert!(offers.contains("AUTH PLAIN LOGIN"), "{offers}");
        say(&mut client, &format!("AUTH PLAIN {secret}\r\n"), code).await;
    };
    // NUL anna@example.net NUL first, and second.
    let (first, second) = ("AGFubmFAZXhhbXBsZS5uZXQAZmlyc3Q=", "AGFubmFAZXhhbXBsZS5uZXQAc2Vjb25k");
    log_in(first, "235").await;
    log_in(second, "535").await;
    lab.put("/v1/users/anna@example.net", r#"{"password":"second"}"#).await.expect(200);
    log_in(first, "535").await;
    log_in(second, "235").await;
    lab.delete("/v1/users/anna@example.net").await.expect(204);
    log_in(second, "535").await;
    lab.delete("/v1/users/anna@example.net").await.problem(404, "not_found", None);
    lab.get("/v1/users/anna@example.net").await.problem(404, "not_found", None);

    for (target, body, pointer) in [
        ("/v1/users/bert", "{}", "/password"),
        ("/v1/users/bert", r#"{"password":""}"#, "/password"),
        ("/v1/users/bert", r#"{"password":"a\nb"}"#, "/password"),
        ("/v1/users/bert", r#"{"password":["secret"]}"#, "/password"),
        ("/v1/users/bert", r#"{"password":"a","name":"anna"}"#, "/name"),
        ("/v1/users/bert", r#"{"password":"a","class":"x"}"#, "/class"),
        ("/v1/users/%20bert", r#"{"password":"a"}"#, "/name"),
    ] {
        lab.put(target, body).await.problem(422, "invalid", Some(pointer));
    }
    let long = json!({"password": "x".repeat(limits::PASSWORD_BYTES_MAX + 1)}).to_string();
    lab.put("/v1/users/bert", &long).await.problem(422, "invalid", Some("/password"));
    for name in ["carl", "anna", "bert"] {
        lab.put(&format!("/v1/users/{name}"), r#"{"password":"p"}"#).await.expect(201);
    }
    let names = |page: &Value| {
        let items = page["items"].as_array().unwrap();
        items.iter().map(|user| user["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let page = lab.get("/v1/users?limit=2").await.json();
    assert_eq!(
        (names(&page), page["next_cursor"].as_str()),
        (vec!["anna".to_owned(), "bert".to_owned()], Some("bert"))
    );
    let page = lab.get("/v1/users?limit=2&cursor=bert").await.json();
    assert_eq!((names(&page), page["next_cursor"].as_str()), (vec!["carl".to_owned()], None));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_send_without_auth_is_the_longest_prefixs_to_say() {
    let (lab, relay) = lab_with_relay().await;
    let mail = async |lists: &str, code: &str| {
        set_class(&lab, &format!(r#"{{"auth":"accept_any","auth_cleartext":true,"unauthenticated":{lists}}}"#)).await;
        let mut client = redirected(&lab, relay, CONFIGURED).await;
        say(&mut client, "", "220").await;
        say(&mut client, "EHLO laptop\r\n", "250").await;
        say(&mut client, "MAIL FROM:<a@example.org>\r\n", code).await;
        if code == "530" {
            say(&mut client, "AUTH PLAIN AGEAYg==\r\n", "235").await;
            say(&mut client, "MAIL FROM:<a@example.org>\r\n", "250").await;
        }
    };
    mail("{}", "250").await;
    mail(r#"{"otherwise":"deny"}"#, "530").await;
    mail(r#"{"otherwise":"deny","allow":["127.0.0.0/8"]}"#, "250").await;
    mail(r#"{"otherwise":"allow","allow":["127.0.0.0/8"],"deny":["127.0.0.1"]}"#, "530").await;
    mail(r#"{"deny":["127.0.0.0/8"],"allow":["127.0.0.1/32"]}"#, "250").await;
    let shown = lab.get("/v1/classes/configured").await.json()["smtp"]["unauthenticated"].clone();
    assert_eq!(shown, json!({"otherwise": "allow", "allow": ["127.0.0.1/32"], "deny": ["127.0.0.0/8"]}));
    // Without AUTH there is nothing that they could do about it.
    set_class(&lab, r#"{"unauthenticated":{"otherwise":"deny"}}"#).await;
    let mut client = redirected(&lab, relay, CONFIGURED).await;
    say(&mut client, "", "220").await;
    say(&mut client, "EHLO laptop\r\n", "250").await;
    say(&mut client, "MAIL FROM:<a@example.org>\r\n", "550").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_cannot_be_are_refused_with_their_place() {
    let lab = Lab::start().await;
    lab.put("/v1/certificates/relay", &Made::of("relay.example.net").body()).await.expect(201);
    let many: Vec<_> = (0..=limits::ACCESS_PREFIXES_MAX).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let many = json!({"unauthenticated": {"deny": many}}).to_string();
    for (smtp, pointer) in [
        (r#"{"tls":"offer"}"#, "/smtp/certificate"),
        (r#"{"certificate":"relay"}"#, "/smtp/certificate"),
        (r#"{"tls":"offer","certificate":"nowhere"}"#, "/smtp/certificate"),
        (r#"{"tls":"offer","certificate":"re lay"}"#, "/smtp/certificate"),
        (r#"{"tls":"offer","certficate":"relay"}"#, "/smtp/certficate"),
        (r#"{"auth":"local"}"#, "/smtp/auth"),
        (r#"{"auth":"everybody"}"#, "/smtp/auth"),
        (r#"{"tls":"passthrough","auth":"local","auth_cleartext":true}"#, "/smtp/auth"),
        (r#"{"auth":"bridge"}"#, "/smtp/auth"),
        (r#"{"auth":"local","auth_cleartext":true,"bridge_unprotected":true}"#, "/smtp/bridge_unprotected"),
        (r#"{"tls":"passthrough","unauthenticated":{"otherwise":"deny"}}"#, "/smtp/unauthenticated"),
        (r#"{"unauthenticated":{"otherwise":"refuse"}}"#, "/smtp/unauthenticated/otherwise"),
        (r#"{"unauthenticated":{"allowed":[]}}"#, "/smtp/unauthenticated/allowed"),
        (r#"{"unauthenticated":{"allow":["10.0.0.1/8"]}}"#, "/smtp/unauthenticated/allow/0"),
        (r#"{"unauthenticated":{"allow":["10.0.0.0/8"],"deny":["10.0.0.0/8"]}}"#, "/smtp/unauthenticated"),
        (many.as_str(), "/smtp/unauthenticated"),
    ] {
        let answer = lab.put("/v1/classes/configured", &format!(r#"{{{REDIRECT},"smtp":{smtp}}}"#)).await;
        eprintln!("{smtp} -> {}", answer.text);
        answer.problem(422, "invalid", Some(pointer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_on_the_command_line() {
    let lab = Lab::start().await;
    let made = Made::of("relay.example.net");
    let file = |name: &str, text: &str| {
        let path = lab.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (chain, key) = (file("chain.pem", &made.chain), file("key.pem", &made.key));
    let ok = async |args: &[&str], stdin: &str, stdout: &str| {
        let output = lab.ctl_with(args, stdin).await;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, stdout, ""), "{args:?}");
    };
    let set = ["certificate", "set", "relay", "--chain-file", &chain];
    let missing = lab.ctl(&set).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("no key is known for certificate relay"), "{}", missing.stderr);
    ok(&[&set[..], &["--key-file", "-"]].concat(), &made.key, "certificate relay set (revision 3)\n").await;
    ok(&[&set[..], &["--key-file", &key]].concat(), "", "certificate relay set (revision 3)\n").await;
    ok(&set, "", "certificate relay set (revision 3)\n").await;
    let table =
        "NAME   NAMES                        NOT-AFTER\nrelay  relay.example.net,192.0.2.1  2100-01-01T00:00:00Z\n";
    ok(&["certificate", "list"], "", table).await;
    ok(&["certificate", "get", "relay"], "", table).await;
    let shown: Value =
        serde_json::from_str(&lab.ctl(&["-o", "json", "certificate", "get", "relay"]).await.stdout).unwrap();
    assert_eq!(shown["chain"], made.chain);

    ok(&["user", "set", "anna", "--password-file", "-"], "hunter2\nnot this line\n", "user anna set (revision 4)\n")
        .await;
    ok(&["user", "set", "anna", "--password-file", &file("password", "hunter2")], "", "user anna set (revision 4)\n")
        .await;
    ok(&["user", "list"], "", "NAME\nanna\n").await;
    ok(&["user", "get", "anna"], "", "NAME\nanna\n").await;
    let smtp = ["--tls", "offer", "--certificate", "relay", "--auth", "local", "--unauthenticated", "deny"];
    let lists = ["--allow-unauthenticated", "10.20.9.0/24", "--deny-unauthenticated", "10.20.9.7"];
    let class = ["class", "set", "staff", "--action", "redirect", "--relay", "embedded"];
    ok(&[&class[..], &smtp, &lists].concat(), "", "class staff set (revision 5)\n").await;
    let rules = lab.get("/v1/classes/staff").await.json()["smtp"].clone();
    assert_eq!(
        (&rules["tls"], &rules["certificate"], &rules["auth"]),
        (&json!("offer"), &json!("relay"), &json!("local"))
    );
    let lists = json!({"otherwise": "deny", "allow": ["10.20.9.0/24"], "deny": ["10.20.9.7/32"]});
    assert_eq!(rules["unauthenticated"], lists);
    let used = lab.ctl(&["certificate", "delete", "relay"]).await;
    assert_eq!(used.code, 4, "{}", used.stderr);
    ok(&["class", "delete", "staff"], "", "class staff deleted (revision 6)\n").await;
    ok(&["certificate", "delete", "relay"], "", "certificate relay deleted (revision 7)\n").await;
    ok(&["user", "delete", "anna"], "", "user anna deleted (revision 8)\n").await;
    for wrong in [
        "user set anna",
        "user set anna --password secret",
        "certificate set relay",
        "class set a --action pass --tls yes",
        "class set a --action pass --unauthenticated maybe",
        "class set a --action pass --allow-unauthenticated everybody",
    ] {
        assert_eq!(lab.ctl(&wrong.split(' ').collect::<Vec<_>>()).await.code, 2, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lint_tells_of_what_is_in_clear_and_of_certificates_at_their_end() {
    let lab = Lab::start().await;
    let safe = r#"{"address":"mx.example","encryption":"implicit","verification":{"mode":"ca"}}"#;
    lab.put("/v1/gateways/default", safe).await.expect(201);
    assert_eq!(lab.ctl(&["lint"]).await.code, 0, "no class offers TLS, and none could");
    lab.put("/v1/certificates/good", &Made::of("relay.example.net").body()).await.expect(201);
    let offer = r#"{"tls":"offer","certificate":"good","auth":"local"}"#;
    set_class(&lab, offer).await;
    let found = lab.get("/v1/lint").await.json()["items"].clone();
    let found: Vec<_> = found.as_array().unwrap().iter().map(|f| (&f["concern"], &f["subject"])).collect();
    assert_eq!(found, [(&json!("tls_none"), &json!("class misconfigured"))], "the others redirect nobody");
    lab.put("/v1/classes/misconfigured", &format!(r#"{{{REDIRECT},"smtp":{offer}}}"#)).await.expect(200);
    assert_eq!(lab.ctl(&["lint"]).await.code, 0);
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5 * 24);
    let soon = soon.to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = (soon.year().into(), soon.month().cast_unsigned(), soon.day().cast_unsigned());
    lab.put("/v1/certificates/soon", &Made::between("a", (2020, 1, 1), day).body()).await.expect(201);
    set_class(&lab, r#"{"tls":"offer","certificate":"good","auth":"local","auth_cleartext":true}"#).await;
    let clear = r#"{"address":"mx.example","encryption":"none","account":{"username":"u","password":"p","allow_unprotected":true}}"#;
    lab.put("/v1/gateways/default", clear).await.expect(200);
    let found = lab.get("/v1/lint").await.json()["items"].clone();
    let found: Vec<_> =
        found.as_array().unwrap().iter().map(|f| (f["concern"].clone(), f["subject"].clone())).collect();
    let expected = [
        ("cleartext_account", "default"),
        ("tls_none", "default"),
        ("auth_cleartext", "class configured"),
        ("certificate_expires", "certificate soon"),
    ];
    assert_eq!(found, expected.map(|(concern, subject)| (json!(concern), json!(subject))));
    assert_eq!(lab.ctl(&["lint"]).await.code, 1);

    let concerns = async |smtp: &str, gateway: &str| {
        lab.put("/v1/gateways/default", gateway).await.expect(200);
        set_class(&lab, smtp).await;
        let found = lab.get("/v1/lint").await.json()["items"].clone();
        let found = found.as_array().unwrap().iter().filter(|finding| finding["subject"] == "class configured");
        found.map(|finding| finding["concern"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    let bridge = r#"{"tls":"offer","certificate":"good","auth":"bridge"}"#;
    assert_eq!(concerns(bridge, safe).await, "");
    assert_eq!(concerns(bridge, clear).await, "bridge_not_offered");
    let draining = safe.replace("{\"address", "{\"status\":\"draining\",\"address");
    assert_eq!(concerns(bridge, &draining).await, "bridge_not_offered");
    let unprotected = bridge.replace('}', ",\"bridge_unprotected\":true,\"auth_cleartext\":true}");
    assert_eq!(concerns(&unprotected, clear).await, "bridge_unprotected,auth_cleartext");
}

/// Every list and every resource of the API, what the CLI makes of them, and the log with everything in it.
async fn everything_shown(lab: &Lab) -> String {
    let description = api::description();
    let mut shown = String::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        // It does not end by itself.
        if operations.get("get").is_none() || path == "/v1/events" {
            continue;
        }
        for key in ["planted", "configured", "10.20.0.0_16", "planted.example", "embedded", "lan0"] {
            let target = path.split(['{', '}']).enumerate().map(|(i, part)| if i % 2 == 1 { key } else { part });
            shown += &lab.get(&target.collect::<String>()).await.text;
            if !path.contains('{') {
                break;
            }
        }
    }
    shown += &lab.get("/v1/routes:export?format=json").await.text;
    for noun in [
        "subscriber",
        "class",
        "relay",
        "interface",
        "gateway",
        "group",
        "route",
        "managed-domain",
        "certificate",
        "user",
    ] {
        let key = match noun {
            "subscriber" => "10.20.0.0/16",
            "class" => "configured",
            "relay" => "embedded",
            "interface" => "lan0",
            "route" | "managed-domain" => "planted.example",
            _ => "planted",
        };
        for args in
            [&[noun, "list"][..], &[noun, "get", key], &["-o", "json", noun, "list"], &["-o", "json", noun, "get", key]]
        {
            let output = lab.ctl(args).await;
            shown = shown + &output.stdout + &output.stderr;
        }
    }
    for args in
        [&["status"][..], &["-o", "json", "status"], &["lint"], &["-o", "json", "lint"], &["stats"], &["flow", "list"]]
    {
        let output = lab.ctl(args).await;
        shown = shown + &output.stdout + &output.stderr;
    }
    shown
}

/// A gateway that quotes the password that it refuses; it tells what it heard.
async fn knows_nobody(listener: tokio::net::TcpListener) -> String {
    loop {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        stream.write_all(b"220 gateway\r\n").await.unwrap();
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            if line.starts_with("AUTH") {
                stream.write_all(format!("535 5.7.8 no {line}").as_bytes()).await.unwrap();
                return line;
            }
            let reply = if line.starts_with("EHLO") { "250-gateway\r\n250 AUTH PLAIN\r\n" } else { "221 bye\r\n" };
            stream.write_all(reply.as_bytes()).await.unwrap();
            line.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_ever_comes_out() {
    let log = logged();
    let (lab, relay) = lab_with_relay().await;
    let (gateways, users, clients) = ("planted-with-the-gateway", "planted-with-the-user", "planted-by-a-client");
    let made = Made::of("relay.example.net");
    lab.put("/v1/certificates/planted", &made.body()).await.expect(201);
    let gateway = format!(
        r#"{{"address":"127.0.0.1","port":9,"encryption":"none","allow_local":true,
        "account":{{"username":"hotel7","password":"{gateways}","allow_unprotected":true}}}}"#
    );
    lab.put("/v1/gateways/planted", &gateway).await.expect(201);
    lab.put("/v1/users/planted", &json!({"password": users}).to_string()).await.expect(201);
    lab.put("/v1/subscribers/10.20.0.0_16", r#"{"class":"configured"}"#).await.expect(201);
    lab.put("/v1/managed-domains/planted.example", "{}").await.expect(201);
    // What goes wrong tells nothing either.
    lab.put(
        "/v1/gateways/planted",
        &gateway.replace("\"account\":{", &format!("\"account\":{{\"pass\":\"{gateways}\",")),
    )
    .await
    .problem(422, "invalid", Some("/account/pass"));
    lab.put("/v1/certificates/planted", &json!({"chain": made.key, "key": made.key}).to_string()).await.expect(422);
    lab.put("/v1/users/planted", &json!({"password": {"is": users}}).to_string()).await.expect(422);
    let args = ["user", "set", "planted", "--password-file", "-"];
    assert_eq!(lab.ctl_with(&args, &format!("{users}\n")).await.code, 0);

    // A client logs in, as it should and as it should not; its gateway has an account, and is out of reach.
    set_class(&lab, r#"{"tls":"offer","certificate":"planted","auth":"local","auth_cleartext":true}"#).await;
    lab.put(
        "/v1/classes/configured",
        &lab.get("/v1/classes/configured").await.text.replace(r#""gateway":null"#, r#""gateway":"planted""#),
    )
    .await
    .expect(200);
    let base64 = |password: &str| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.encode(format!("\0planted\0{password}"))
    };
    let mut client = redirected(&lab, relay, CONFIGURED).await;
    say(&mut client, "", "220").await;
    say(&mut client, "EHLO laptop\r\n", "250").await;
    say(&mut client, &format!("AUTH PLAIN {}\r\n", base64(clients)), "535").await;
    say(&mut client, &format!("AUTH PLAIN {}\r\n", base64(users)), "235").await;
    say(&mut client, "MAIL FROM:<a@example.org>\r\n", "250").await;
    say(&mut client, "RCPT TO:<b@example.org>\r\n", "4").await;
    say(&mut client, "QUIT\r\n", "221").await;
    // By bridge, to a gateway that has an account of its own, and hears only the client's.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bridge = gateway.replace("\"port\":9", &format!("\"port\":{}", listener.local_addr().unwrap().port()));
    lab.put("/v1/gateways/planted", &bridge).await.expect(200);
    let rules = r#"{"auth":"bridge","auth_cleartext":true,"bridge_unprotected":true}"#;
    lab.put("/v1/classes/configured", &format!(r#"{{{REDIRECT},"gateway":"planted","smtp":{rules}}}"#))
        .await
        .expect(200);
    let heard = tokio::spawn(knows_nobody(listener));
    let mut client = redirected(&lab, relay, CONFIGURED).await;
    say(&mut client, "", "220").await;
    say(&mut client, "EHLO laptop\r\n", "250").await;
    say(&mut client, &format!("AUTH PLAIN {}\r\n", base64(clients)), "535").await;
    say(&mut client, "QUIT\r\n", "221").await;
    assert_eq!(heard.await.unwrap(), format!("AUTH PLAIN {}\r\n", base64(clients)));

    let shown = everything_shown(&lab).await;
    for expected in ["hotel7", "planted", "relay.example.net", "BEGIN CERTIFICATE"] {
        assert!(shown.contains(expected), "{expected} should be shown");
    }
    let store = rusqlite::Connection::open(&lab.settings.store).unwrap();
    let verifier: String =
        store.query_row("SELECT verifier FROM users WHERE name = 'planted'", [], |row| row.get(0)).unwrap();
    assert!(verifier.starts_with("SCRAM-SHA-256$") && !verifier.contains(users), "{verifier}");
    lab.stop().await;
    let shown = shown + &log();
    assert!(shown.contains("no gateway can be reached"), "the log should have everything");
    let (users64, clients64) = (base64(users), base64(clients));
    for secret in [gateways, users, clients, &users64, &clients64, made.secret(), verifier.split('$').nth(2).unwrap()] {
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
    }
}
