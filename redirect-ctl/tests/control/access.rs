//! Who may do what: every operation of the OpenAPI description, for every role and every kind of bad credentials; tokens, TLS and client
//! certificates; limits; the audit.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use redirect_ctl::{
    access::AccessRole,
    api::{self, types::paths},
    config::{AccessSettings, Clients, Settings, TlsSettings},
    daemon,
    dataplane::model::ModelDataplane,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Lab, PATIENCE, ctl, eventually, free_port, settings};

/// A daemon that also listens on loopback, in clear, with tokens.
async fn lab() -> (Lab, SocketAddr) {
    let address = free_port();
    (Lab::with(|settings, _| settings.access = listening(address)).await, address)
}

fn listening(address: SocketAddr) -> AccessSettings {
    AccessSettings { listeners: vec![address], ..AccessSettings::default() }
}

/// Another one for each request, so that the failures of one are not held against the next.
fn some_loopback_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The beginning of an answer: some have no end.
async fn ask_from(
    source: IpAddr,
    address: SocketAddr,
    (method, target): (&str, &str),
    token: Option<&str>,
    body: &str,
) -> Answer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source, 0)).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: application/json\r\n{authorization}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let is_whole = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.to_ascii_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        length.is_none_or(|length: usize| body.len() >= length)
    };
    let read = async { while !is_whole(&answer) && stream.read_buf(&mut answer).await.unwrap_or(0) > 0 {} };
    timeout(PATIENCE, read).await.unwrap();
    Answer::parse(&answer)
}

async fn ask(address: SocketAddr, what: (&str, &str), token: Option<&str>) -> Answer {
    ask_from(some_loopback_address(), address, what, token, if what.0 == "PUT" || what.0 == "POST" { "{}" } else { "" })
        .await
}

async fn token(lab: &Lab, body: &Value) -> String {
    let made = lab.post(paths::TOKENS, &body.to_string()).await.expect(201).json();
    made["token"].as_str().unwrap().to_owned()
}

/// Every operation: method, path with keys in it, roles that the description promises.
fn operations() -> Vec<(String, String, Option<Vec<String>>)> {
    let description = api::description();
    let mut found = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let key = if path.starts_with(paths::SUBSCRIBERS) || path.starts_with(paths::LOCKS) {
                "192.0.2.1"
            } else {
                "nobody"
            };
            let mut target = path.clone();
            while let (Some(start), Some(end)) = (target.find('{'), target.find('}')) {
                target.replace_range(start..=end, key);
            }
            let roles = operation["x-roles"].as_array();
            let roles = roles.map(|roles| roles.iter().map(|role| role.as_str().unwrap().to_owned()).collect());
            assert_eq!(roles.is_none(), operation["security"] == json!([]), "{method} {path}");
            found.push((method.to_uppercase(), target, roles));
        }
    }
    found
}

/// The rules once more, in other words than the table has: so that a role that is raised there is noticed here.
fn should(method: &str, path: &str) -> Option<Vec<&'static str>> {
    let reads = method == "GET";
    let below =
        |start: &str| path == start || path.strip_prefix(start).is_some_and(|rest| rest.starts_with(['/', ':', '?']));
    if path == paths::LIVEZ || path == paths::OPENAPI {
        return None;
    }
    let mut roles = vec!["admin"];
    if below(paths::TOKENS) || below(paths::AUDIT) {
        return Some(roles);
    }
    roles.push("operator");
    if reads {
        roles.push("viewer");
    }
    if below(paths::SUBSCRIBERS) || (reads && below(paths::CLASSES)) {
        roles.push("integrator");
    }
    Some(roles)
}

#[test]
fn every_operation_has_its_roles() {
    let unlisted = redirect_ctl::access::unlisted(&api::operations());
    assert!(unlisted.is_empty(), "give them a line in access/operations.rs: {unlisted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_open_to_its_roles_and_to_nobody_else() {
    let (lab, address) = lab().await;
    let mut tokens = Vec::new();
    for role in AccessRole::WORDS {
        tokens.push((*role, token(&lab, &json!({"name": role, "role": role})).await));
    }
    let expiring = token(&lab, &json!({"name": "expiring", "role": "admin", "expires": in_seconds(2)})).await;
    let revoked = token(&lab, &json!({"name": "revoked", "role": "admin"})).await;
    lab.delete("/v1/tokens/revoked").await.expect(204);
    eventually("the token expires", || async {
        ask(address, ("GET", paths::STATUS), Some(&expiring)).await.status == 401
    })
    .await;
    let wrong =
        format!("{}{}", &tokens[3].1[..tokens[3].1.len() - 1], if tokens[3].1.ends_with('0') { '1' } else { '0' });

    let operations = operations();
    assert!(operations.len() > 50, "the description has lost its operations");
    for (method, target, promised) in &operations {
        let what = (method.as_str(), target.as_str());
        let should = should(method, target);
        match (&should, promised) {
            (Some(should), Some(promised)) => {
                let mut should = should.clone();
                should.sort_unstable();
                let mut promised = promised.clone();
                promised.sort_unstable();
                assert_eq!(promised, should, "{what:?}");
            }
            (should, promised) => assert_eq!(should.is_none(), promised.is_none(), "{what:?}"),
        }
        let refused = [
            (None, "unauthenticated"),
            (Some("secret"), "token_invalid"),
            (Some(wrong.as_str()), "token_invalid"),
            (Some(revoked.as_str()), "token_invalid"),
            (Some(expiring.as_str()), "token_expired"),
        ];
        for (token, code) in refused {
            let answer = ask(address, what, token).await;
            match should {
                Some(_) => {
                    answer.problem(401, code, None);
                    assert!(answer.header("www-authenticate").unwrap().starts_with("bearer realm="), "{what:?}");
                }
                None => assert!(![401, 403].contains(&answer.status), "{what:?} {}", answer.head),
            }
        }
        for (role, token) in &tokens {
            let answer = ask(address, what, Some(token)).await;
            match &should {
                Some(roles) if !roles.contains(role) => answer.problem(403, "forbidden", None),
                _ => assert!(![401, 403, 429].contains(&answer.status), "{role} {what:?} {}", answer.head),
            }
        }
        assert!(![401, 403].contains(&lab_status(&lab, what).await), "root on the Unix socket: {what:?}");
    }
}

/// Of an answer on the Unix socket, which may have no end.
async fn lab_status(lab: &Lab, (method, target): (&str, &str)) -> u16 {
    let mut stream = tokio::net::UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
    let body = if method == "PUT" || method == "POST" { "{}" } else { "" };
    let request = format!("{method} {target} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

fn in_seconds(seconds: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_told_to_strangers() {
    let (lab, address) = lab().await;
    let viewer = token(&lab, &json!({"name": "v", "role": "viewer"})).await;
    for what in [("GET", "/nowhere"), ("PATCH", "/v1/status"), ("OPTIONS", "/v1/tokens")] {
        ask(address, what, None).await.problem(401, "unauthenticated", None);
    }
    ask(address, ("GET", "/nowhere"), Some(&viewer)).await.problem(404, "no_such_path", None);
    ask(address, ("OPTIONS", "/v1/status"), Some(&viewer)).await.problem(405, "method_not_allowed", None);
    // A HEAD asks for what a GET does.
    assert_eq!(ask(address, ("HEAD", paths::TOKENS), Some(&viewer)).await.status, 403);
    assert_eq!(ask(address, ("HEAD", paths::STATUS), Some(&viewer)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_decides_also_for_root_on_the_unix_socket() {
    let lab = Lab::start().await;
    let viewer = token(&lab, &json!({"name": "v", "role": "viewer"})).await;
    let with = |header: String| {
        let lab = &lab;
        async move { lab.raw("DELETE", "/v1/classes/nobody", &header, b"").await }
    };
    with(String::new()).await.problem(404, "not_found", None);
    with(format!("Authorization: Bearer {viewer}\r\n")).await.problem(403, "forbidden", None);
    with("Authorization: Bearer nonsense\r\n".to_owned()).await.problem(401, "token_invalid", None);
    with("Authorization: Basic YTpi\r\n".to_owned()).await.problem(401, "token_invalid", None);
    with(format!("Authorization: Bearer {viewer}\r\nAuthorization: Bearer {viewer}\r\n")).await.problem(
        401,
        "token_invalid",
        None,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_some_subscribers_is_for_those_only() {
    let (lab, address) = lab().await;
    let hotel = token(&lab, &json!({"name": "hotel", "role": "integrator", "within": "10.20.0.0/16"})).await;
    let put = async |prefix: &str| {
        let target = format!("/v1/subscribers/{prefix}");
        ask_from(some_loopback_address(), address, ("PUT", &target), Some(&hotel), r#"{"class":"bypass"}"#).await.status
    };
    for (prefix, status) in [
        ("10.20.3.7", 201),
        ("10.20.3.0%2F24", 201),
        ("10.20.3.0_24", 200),
        ("10.20.0.0_16", 201),
        ("10.21.0.1", 403),
        ("10.0.0.0_8", 403),
        ("0.0.0.0_0", 403),
        ("fd00::1", 403),
        ("nonsense", 403),
    ] {
        assert_eq!(put(prefix).await, status, "{prefix}");
    }
    for (target, status) in [
        ("/v1/subscribers", 403),
        ("/v1/subscribers?within=10.0.0.0/8", 403),
        ("/v1/subscribers?within=10.20.3.0/24", 200),
        ("/v1/subscribers?within=10.20.3.0/24&within=0.0.0.0/0", 403),
        ("/v1/subscribers/10.20.3.7", 200),
        ("/v1/subscribers/10.21.0.1", 403),
        ("/v1/classes", 403),
    ] {
        assert_eq!(ask(address, ("GET", target), Some(&hotel)).await.status, status, "{target}");
    }
    for (body, pointer) in [
        (json!({"name": "x", "role": "operator", "within": "10.0.0.0/8"}), "/within"),
        (json!({"name": "x", "role": "viewer", "expires": "2020-01-01T00:00:00Z"}), "/expires"),
        (json!({"name": "x", "role": "boss"}), "/role"),
        (json!({"name": "x", "role": "viewer", "token": "mine"}), "/token"),
    ] {
        lab.post(paths::TOKENS, &body.to_string()).await.problem(422, "invalid", Some(pointer));
    }
    lab.post(paths::TOKENS, r#"{"name":"hotel","role":"viewer"}"#).await.problem(409, "conflict", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failures_from_one_address_are_answered_429_and_good_credentials_are_not() {
    let (lab, address) = lab().await;
    let viewer = token(&lab, &json!({"name": "v", "role": "viewer"})).await;
    let (one, other) = (some_loopback_address(), some_loopback_address());
    let status = async |source, token| ask_from(source, address, ("GET", paths::STATUS), token, "").await;
    let mut refused = Vec::new();
    for _ in 0..40 {
        refused.push(status(one, Some("rdt_nonsense")).await);
    }
    assert_eq!(refused[0].status, 401);
    let last = refused.last().unwrap();
    last.problem(429, "too_often", None);
    let wait: u64 = last.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(status(one, Some(&viewer)).await.status, 200, "who has a good token");
    assert_eq!(status(other, None).await.status, 401, "who fails elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_a_rate_and_the_machines_administrator_has_none() {
    let address = free_port();
    let lab = Lab::with(|settings, _| {
        settings.access = AccessSettings { requests_per_second: Some(1), ..listening(address) };
    })
    .await;
    let (one, other) = (
        token(&lab, &json!({"name": "one", "role": "viewer"})).await,
        token(&lab, &json!({"name": "other", "role": "viewer"})).await,
    );
    let mut last = None;
    for _ in 0..200 {
        let answer = ask(address, ("GET", paths::CLASSES), Some(&one)).await;
        if answer.status == 429 {
            last = Some(answer);
            break;
        }
    }
    let last = last.expect("two hundred in a moment are more than one in a second");
    last.problem(429, "too_often", None);
    assert_eq!(last.header("retry-after"), Some("1"));
    assert_eq!(ask(address, ("GET", paths::CLASSES), Some(&other)).await.status, 200);
    for _ in 0..20 {
        lab.get(paths::CLASSES).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_before_they_are_read() {
    let (lab, address) = lab().await;
    let admin = token(&lab, &json!({"name": "a", "role": "admin"})).await;
    // Announced, and never sent.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "PUT /v1/classes/x HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {admin}\r\nContent-Length: 1073741824\r\nContent-Type: application/json\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer[9..], b"413");
    // Not announced, and without an end.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "DELETE /v1/tokens/x HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {admin}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let flood = async {
        for _ in 0..10_000 {
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                return true;
            }
        }
        false
    };
    assert!(timeout(PATIENCE, flood).await.unwrap(), "160 MB were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections_nor_keep_one_without_asking() {
    let (_lab, address) = lab().await;
    let mut open = Vec::new();
    for _ in 0..80 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    // Those beyond are closed at once; the others after the time for a head.
    let mut closed = 0;
    for stream in &mut open {
        let mut byte = [0];
        if let Ok(read) = timeout(Duration::from_millis(100), stream.read(&mut byte)).await {
            assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
            closed += 1;
        }
    }
    assert!((10..=20).contains(&closed), "{closed} of 80 were closed, 64 may stay");
    assert_eq!(ask(address, ("GET", paths::LIVEZ), None).await.status, 200, "from another address");
    for mut stream in open {
        let mut byte = [0];
        let end = timeout(PATIENCE, stream.read(&mut byte)).await.expect("a silent client stays");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_tells_who_changed_what_and_who_was_refused() {
    let (lab, address) = lab().await;
    let viewer = token(&lab, &json!({"name": "v", "role": "viewer"})).await;
    let integrator = token(&lab, &json!({"name": "portal", "role": "integrator"})).await;
    let put = ("PUT", "/v1/subscribers/10.0.0.1");
    let answer =
        ask_from(some_loopback_address(), address, put, Some(&integrator), r#"{"class":"bypass"}"#).await.expect(201);
    let id = answer.header("x-request-id").unwrap().to_owned();
    ask(address, put, Some(&viewer)).await.expect(403);
    ask(address, ("GET", paths::TOKENS), None).await.expect(401);
    lab.raw("DELETE", "/v1/classes/nobody", "X-Request-Id: night-1\r\n", b"").await.expect(404);

    let page = lab.get("/v1/audit").await.expect(200).json();
    let records = page["items"].as_array().unwrap();
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            let text = |name: &str| record[name].as_str().unwrap().split('/').next().unwrap().to_owned();
            (text("who"), text("operation"), record["status"].as_u64().unwrap(), text("result"))
        })
        .collect();
    let expect = |who: &str, operation: &str, status, result: &str| {
        (who.to_owned(), operation.to_owned(), status, result.to_owned())
    };
    let root = format!("uid:{}", nix::unistd::geteuid());
    assert_eq!(
        seen,
        [
            expect(&root, "create_token", 201, "ok"),
            expect(&root, "create_token", 201, "ok"),
            expect("token:portal", "put_subscriber", 201, "ok"),
            expect("token:v", "put_subscriber", 403, "forbidden"),
            expect("unknown", "list_tokens", 401, "unauthenticated"),
            expect(&root, "delete_class", 404, "not_found"),
        ]
    );
    let put = &records[2];
    assert_eq!(put["request_id"], id.as_str());
    assert_eq!(put["resource"], "/v1/subscribers/10.0.0.1");
    assert!(put["from"].as_str().unwrap().starts_with("127.1."), "{put}");
    assert_eq!(put["after"].as_u64().unwrap(), put["before"].as_u64().unwrap() + 1);
    assert_eq!(records[3]["before"], records[3]["after"]);
    assert_eq!(records[5]["request_id"], "night-1");
    assert!(records[0]["from"].as_str().unwrap().starts_with("unix uid "), "{}", records[0]);

    // It goes on after a restart, and is read in pages.
    let lab = lab.restart(|_| {}).await;
    lab.delete("/v1/tokens/v").await.expect(204);
    let page = lab.get("/v1/audit?cursor=5&limit=1").await.expect(200).json();
    assert_eq!((&page["items"][0]["seq"], &page["next_cursor"]), (&json!(6), &json!("6")));
    let page = lab.get("/v1/audit?last=1").await.expect(200).json();
    assert_eq!((&page["items"][0]["seq"], &page["items"][0]["operation"]), (&json!(7), &json!("revoke_token")));
    let table = lab.ctl(&["audit", "list", "--limit", "2"]).await;
    assert_eq!((table.code, table.stdout.lines().count()), (0, 3), "{}{}", table.stdout, table.stderr);
    lab.get("/v1/audit?since=yesterday").await.problem(422, "invalid", Some("?since"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_client_leaves_is_in_the_audit() {
    let lab = Lab::start().await;
    let mut stream = tokio::net::UnixStream::connect(&lab.settings.sockets[0]).await.unwrap();
    stream.write_all(b"PUT /v1/classes/x HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(stream);
    eventually("it is noted", || async {
        let page = lab.get("/v1/audit").await.json();
        page["items"].as_array().unwrap().iter().any(|record| record["resource"] == "/v1/classes/x")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_listed_and_revoked_by_the_cli() {
    let (lab, address) = lab().await;
    let made = lab.ctl(&["token", "create", "noc", "--role", "viewer", "--ttl", "1h"]).await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    let text = made.stdout.trim_end();
    assert!(text.starts_with("rdt_") && text.lines().count() == 1, "{text}");
    let list = lab.ctl(&["token", "list"]).await.stdout;
    assert!(list.contains("noc") && list.contains("viewer"), "{list}");
    assert!(!list.contains(text));

    let dir = TempDir::new().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{text}\n")).unwrap();
    let host = format!("http://{address}");
    let by_file = ctl(&host, &["--token-file", file.to_str().unwrap(), "class", "list"]).await;
    assert_eq!(by_file.code, 0, "{}", by_file.stderr);
    let none = ctl(&host, &["class", "list"]).await;
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("say who you are"), "{}", none.stderr);
    assert_eq!(lab.ctl(&["token", "revoke", "noc"]).await.code, 0);
    assert_eq!(lab.ctl(&["token", "revoke", "noc"]).await.code, 3);
    let revoked = ctl(&host, &["--token-file", file.to_str().unwrap(), "class", "list"]).await;
    assert!(revoked.stderr.contains("the token is not known"), "{}", revoked.stderr);
}

/// An authority, and certificates that it signed, as files.
struct Pki {
    dir: TempDir,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let pki = Self { dir: TempDir::new().unwrap(), issuer };
        std::fs::write(pki.path("ca.pem"), pki.issuer.pem()).unwrap();
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `{file}.pem` and `{file}.key`.
    fn issue(&self, file: &str, name: &str) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, path) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        std::fs::write(&pem, certificate.pem()).unwrap();
        std::fs::write(&path, key.serialize_pem()).unwrap();
        (pem, path)
    }
}

fn with_tls(settings: &mut Settings, address: SocketAddr, pki: &Pki, clients: Clients) {
    let (certificate, key) = pki.issue("server", "localhost");
    settings.access = listening(address);
    settings.access.tls = Some(TlsSettings { certificate, key, clients });
    let named = |name: &str, role| (name.to_owned(), role);
    settings.access.peers.certificates =
        [named("portal.example", AccessRole::Integrator), named("noc.example", AccessRole::Viewer)].into();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_tokens() {
    let (pki, address) = (Pki::new(), free_port());
    let lab = Lab::with(|settings, _| with_tls(settings, address, &pki, Clients::Unasked)).await;
    let viewer = token(&lab, &json!({"name": "v", "role": "viewer"})).await;
    let file = pki.path("token");
    std::fs::write(&file, viewer).unwrap();
    let host = format!("https://localhost:{}", address.port());
    let ca = pki.path("ca.pem");
    let good = ctl(&host, &["--cacert", text(&ca), "--token-file", text(&file), "class", "list"]).await;
    assert_eq!(good.code, 0, "{}", good.stderr);
    let other = Pki::new();
    let distrusted =
        ctl(&host, &["--cacert", text(&other.path("ca.pem")), "--token-file", text(&file), "class", "list"]).await;
    assert_eq!(distrusted.code, 5, "{}", distrusted.stderr);
    let misnamed = ctl(
        &format!("https://127.0.0.1:{}", address.port()),
        &["--cacert", text(&ca), "--token-file", text(&file), "class", "list"],
    )
    .await;
    assert_eq!(misnamed.code, 5, "{}", misnamed.stderr);

    // In clear there is nothing to be had.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_have_the_role_of_their_name() {
    for must in [false, true] {
        let (pki, address) = (Pki::new(), free_port());
        let ca = pki.path("ca.pem");
        let clients = if must { Clients::Must(ca.clone()) } else { Clients::May(ca.clone()) };
        let lab = Lab::with(|settings, _| with_tls(settings, address, &pki, clients)).await;
        let host = format!("https://localhost:{}", address.port());
        let run = async |(certificate, key): &(PathBuf, PathBuf), args: &[&str]| {
            let options = ["--cacert", text(&ca), "--cert", text(certificate), "--key", text(key)];
            ctl(&host, &[&options, args].concat()).await
        };
        let portal = pki.issue("portal", "portal.example");
        let set = run(&portal, &["subscriber", "set", "10.0.0.1", "--class", "bypass"]).await;
        assert_eq!(set.code, 0, "{}", set.stderr);
        let forbidden = run(&portal, &["class", "delete", "bypass"]).await;
        assert!(
            forbidden.stderr.contains("certificate:portal.example has the role integrator"),
            "{}",
            forbidden.stderr
        );
        let stranger = run(&pki.issue("stranger", "stranger.example"), &["class", "list"]).await;
        assert!(stranger.stderr.contains("certificate:stranger.example has no role"), "{}", stranger.stderr);
        let forged = run(&Pki::new().issue("forged", "portal.example"), &["class", "list"]).await;
        assert_eq!(forged.code, 5, "signed by nobody we know: {}", forged.stderr);
        let none = ctl(&host, &["--cacert", text(&ca), "class", "list"]).await;
        assert_eq!(none.code, if must { 5 } else { 1 }, "{}", none.stderr);
        let who = lab.get("/v1/audit").await.json()["items"][0]["who"].clone();
        assert_eq!(who, "certificate:portal.example");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_renews_the_certificate_and_one_that_does_not_serve_changes_nothing() {
    let (pki, address) = (Pki::new(), free_port());
    let lab = Lab::with(|settings, _| with_tls(settings, address, &pki, Clients::Unasked)).await;
    let host = format!("https://localhost:{}", address.port());
    let admin = token(&lab, &json!({"name": "a", "role": "admin"})).await;
    let file = pki.path("token");
    std::fs::write(&file, admin).unwrap();
    let code =
        async |ca: &Path| ctl(&host, &["--cacert", text(ca), "--token-file", text(&file), "class", "list"]).await.code;
    let ca = pki.path("ca.pem");
    assert_eq!(code(&ca).await, 0);

    let renewed = Pki::new();
    let (certificate, key) = renewed.issue("server", "localhost");
    std::fs::copy(&key, pki.path("server.key")).unwrap();
    // The key without its certificate: what was before goes on.
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(code(&ca).await, 0);
    std::fs::copy(&certificate, pki.path("server.pem")).unwrap();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
    eventually("the other certificate", || async { code(&renewed.path("ca.pem")).await == 0 }).await;
    assert_eq!(code(&ca).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_serve_are_named() {
    let pki = Pki::new();
    let (certificate, key) = pki.issue("server", "localhost");
    let (_, other_key) = pki.issue("other", "localhost");
    let empty = pki.path("empty");
    std::fs::write(&empty, "").unwrap();
    let missing = pki.path("missing");
    let tls = |certificate: &Path, key: &Path, clients| TlsSettings {
        certificate: certificate.into(),
        key: key.into(),
        clients,
    };
    for (tls, expected) in [
        (tls(&missing, &key, Clients::Unasked), format!("api.certificate: cannot read {}: ", missing.display())),
        (
            tls(&empty, &key, Clients::Unasked),
            format!("api.certificate: {} holds no certificate in PEM", empty.display()),
        ),
        (
            tls(&certificate, &certificate, Clients::Unasked),
            format!("api.key: {} holds no private key in PEM", certificate.display()),
        ),
        (
            tls(&certificate, &other_key, Clients::Unasked),
            format!("api.key: {} is not the key of", other_key.display()),
        ),
        (
            tls(&certificate, &key, Clients::Must(empty.clone())),
            format!("api.client_ca: {} holds no certificate in PEM", empty.display()),
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let mut settings = settings(&dir);
        settings.access = listening(free_port());
        settings.access.tls = Some(tls);
        let error = daemon::run(settings, ModelDataplane::default(), None, CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().starts_with(&expected), "{error}, not {expected}");
    }
}

/// What people and machines are shown anywhere, after an evening with secrets in every place where one can stand.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_output() {
    let (lab, address) = lab().await;
    let password = "pA55word-of-the-gateway";
    let made = lab.ctl(&["token", "create", "noc", "--role", "admin"]).await;
    let token = made.stdout.trim_end().to_owned();
    let secret = token.rsplit('_').next().unwrap().to_owned();
    let key = rcgen::generate_simple_self_signed(vec!["mx.example".to_owned()]).unwrap();
    let key_text = key.signing_key.serialize_pem();
    let key_line = key_text.lines().nth(1).unwrap().to_owned();

    let gateway = json!({"address": "mx.example", "port": 465, "encryption": "implicit", "account": {"user": "u", "password": password}});
    let mut outputs = vec![
        lab.put("/v1/gateways/mx", &gateway.to_string()).await.text,
        lab.put("/v1/users/anna", &json!({"password": password}).to_string()).await.expect(201).text,
        lab.put("/v1/certificates/c", &json!({"chain": key.cert.pem(), "key": key_text}).to_string())
            .await
            .expect(201)
            .text,
        // In places where they do not belong.
        lab.put("/v1/gateways/mx", &json!({"account": {"password": [password]}}).to_string()).await.text,
        lab.put("/v1/users/anna", &json!({"password": {"is": password}}).to_string()).await.text,
        lab.put("/v1/certificates/c", &json!({"chain": key_text, "key": key_text}).to_string()).await.text,
        lab.post(paths::TOKENS, &json!({"name": "x", "role": "viewer", "expires": "2020-01-01T00:00:00Z"}).to_string())
            .await
            .text,
        ask(address, ("GET", "/v1/status"), Some(&format!("{token}0"))).await.text,
        lab.raw("GET", "/v1/status", &format!("X-Request-Id: {token}\r\nAuthorization: Basic {token}\r\n"), b"")
            .await
            .text,
    ];
    let misplaced = lab.delete(&format!("/v1/tokens/{token}")).await;
    assert!((400..500).contains(&misplaced.status));
    for path in [
        "/v1/gateways",
        "/v1/users",
        "/v1/certificates",
        "/v1/tokens",
        "/v1/audit",
        "/v1/status",
        "/v1/lint",
        "/metrics",
        "/openapi.json",
    ] {
        let answer = lab.get(path).await.expect(200);
        outputs.push(answer.text);
    }
    for args in [
        vec!["token", "list"],
        vec!["audit", "list"],
        vec!["-o", "json", "gateway", "list"],
        vec!["-o", "json", "user", "list"],
    ] {
        let output = lab.ctl(&args).await;
        outputs.push(output.stdout + &output.stderr);
    }
    for args in [&["--token-file", "/nonexistent", "status"][..], &["status"][..]] {
        let output = ctl(&format!("http://{address}"), args).await;
        outputs.push(output.stdout + &output.stderr);
    }
    outputs.push(format!("{:?}", lab.settings));
    outputs.push(format!("{:?}", lab.client));
    for file in ["redirect.db.tokens", "redirect.db.audit"] {
        outputs.push(std::fs::read_to_string(lab.dir.path().join(file)).unwrap());
    }
    assert!(outputs.iter().any(|output| output.contains("noc")), "there is nothing in the outputs");
    for output in outputs {
        for secret in [password, secret.as_str(), key_line.as_str()] {
            assert!(!output.contains(secret), "{secret} is in {output}");
        }
    }
}
