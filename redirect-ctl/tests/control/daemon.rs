//! Start, stop, and what happens in between: the relay, the sockets, the failures.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use redirect_ctl::{
    api::{
        client,
        types::{EventLine, EventQuery, FlowListQuery, SessionLine, TraceLine, TraceQuery},
    },
    commands::{self, Env},
    daemon,
    dataplane::{FlowDelivery, FlowRecord, FlowState, model::ModelDataplane},
};
use redirect_relay::Who;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Lab, PATIENCE, eventually, free_port, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_removes_attachments_and_socket_and_a_start_brings_everything_back() {
    let lab = Lab::start().await;
    lab.put("/v1/subscribers/10.0.0.0_8", r#"{"class":"bypass"}"#).await.expect(201);
    lab.put("/v1/interfaces/lan1", "{}").await.expect(201);
    let mode = std::fs::metadata(&lab.settings.sockets[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let (model, socket) = (lab.model.clone(), lab.settings.sockets[0].clone());
    assert_eq!(model.state().interfaces.len(), 2);
    let revision = model.state().revision;

    let lab = lab.restart(|_| {}).await;
    assert!(model.state().interfaces.is_empty(), "the first daemon left attachments behind");
    assert!(socket.exists());
    {
        let state = lab.model.state();
        assert_eq!((state.revision, state.subscribers.len(), state.interfaces.len()), (revision, 1, 2));
    }
    let (dir, _) = lab.stop().await;
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let kept = ["redirect.db", "redirect.db.audit", "redirect.db.lock"];
    assert!(left.iter().all(|name| kept.iter().any(|kept| name == kept)), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_are_attached_last_and_detached_when_the_relay_has_drained() {
    let (lab, _) = lab_with_relay().await;
    lab.put("/v1/subscribers/10.0.0.0_8", r#"{"class":"configured"}"#).await.expect(201);
    let model = lab.model.clone();
    {
        let state = model.state();
        let attach = state.log.iter().position(|operation| operation.to_string().starts_with("attach")).unwrap();
        let classes = state.log.iter().rposition(|operation| operation.to_string().starts_with("set class")).unwrap();
        assert!(classes < attach, "{:?}", state.log);
    }
    lab.stop().await;
    let state = model.state();
    assert!(state.log.last().unwrap().to_string().starts_with("detach"), "{:?}", state.log);
    assert!(state.classes.values().all(|class| class.relays().next().is_none()), "new flows while the relay drains");
    let emptied = state.log.iter().rposition(|operation| operation.to_string().starts_with("set class")).unwrap();
    let detached = state.log.iter().position(|operation| operation.to_string().starts_with("detach")).unwrap();
    assert!(emptied < detached, "{:?}", state.log);
    // The tables stay as they are: nobody looks at them any more, and taking them apart would take time.
    assert_eq!(state.subscribers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_daemon_is_replaced_that_of_a_living_one_is_not() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("api.sock");
    // A listener that went without removing its file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let lab = Lab::launch_on(dir, settings).await;

    let other = TempDir::new().unwrap();
    let mut second = settings(&other);
    second.sockets = lab.settings.sockets.clone();
    let error =
        daemon::run(second, ModelDataplane::default(), None, CancellationToken::new()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "another process serves {}; stop it, or give another path in api.sockets",
            lab.settings.sockets[0].display()
        )
    );
    lab.get("/livez").await.expect(200);

    let mut third = settings(&other);
    std::fs::write(other.path().join("file"), "precious").unwrap();
    third.sockets = vec![other.path().join("file")];
    let error =
        daemon::run(third, ModelDataplane::default(), None, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("exists and is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(other.path().join("file")).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_attaches_nothing() {
    // A port that is taken.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(address) = taken.local_addr().unwrap() else { unreachable!("loopback is IPv4") };
    let dir = TempDir::new().unwrap();
    let mut bad = settings(&dir);
    bad.relay.ipv4 = Some(address);
    let model = ModelDataplane::default();
    let error = daemon::run(bad, model.clone(), None, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("relay.listen: cannot listen on {address}: ")), "{error}");
    assert!(!model.state().log.iter().any(|operation| operation.to_string().starts_with("attach")));
    assert!(!dir.path().join("api.sock").exists());

    // A kernel that refuses.
    let model = ModelDataplane::default();
    model.state().fault = Some(Box::new(|what| what.starts_with("set class")));
    let error =
        daemon::run(settings(&dir), model.clone(), None, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("the kernel does not take the configuration: set class 1: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_ends_the_daemon_with_an_error() {
    let lab = Lab::start().await;
    lab.model.state().fault = Some(Box::new(|what| {
        assert_ne!(what, "read flows", "a planted fault");
        false
    }));
    let _ = lab.client.flows(&FlowListQuery::default()).await;
    let error = tokio::time::timeout(PATIENCE, lab.task).await.unwrap().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("the reconciler ended by itself: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_while_the_daemon_was_away_does_not_come_back() {
    let lab = Lab::start().await;
    lab.ctl(&["subscriber", "set", "10.0.0.1", "--class", "bypass", "--ttl", "1s"]).await;
    lab.ctl(&["subscriber", "set", "10.0.0.2", "--class", "bypass", "--ttl", "1h"]).await;
    let (dir, settings) = lab.stop().await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let lab = Lab::launch_on(dir, |_: &TempDir| settings).await;
    let state = lab.model.state();
    assert_eq!(state.subscribers.len(), 1);
    assert!(!state.log.iter().any(|operation| operation.to_string().contains("10.0.0.1")), "{:?}", state.log);
}

/// A gateway that takes one message and hands it over.
async fn sink(listener: TcpListener) -> String {
    // Probes come too, and leave nothing.
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let message = conversation(BufReader::new(stream)).await;
        if !message.is_empty() {
            return message;
        }
    }
}

async fn conversation(mut stream: BufReader<TcpStream>) -> String {
    stream.write_all(b"220 gateway\r\n").await.unwrap();
    let mut message = String::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            return message;
        }
        let reply = match line.split([' ', '\r']).next().unwrap().to_ascii_uppercase().as_str() {
            "DATA" => {
                stream.write_all(b"354 go\r\n").await.unwrap();
                loop {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                    if line == ".\r\n" {
                        break;
                    }
                    message.push_str(&line);
                }
                stream.write_all(b"250 taken\r\n").await.unwrap();
                return message;
            }
            "QUIT" => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

/// Sends a line, if there is one, and takes the reply, which has this code.
pub(crate) async fn say(stream: &mut (impl AsyncBufRead + AsyncWrite + Unpin), line: &str, code: &str) -> String {
    if !line.is_empty() {
        stream.write_all(line.as_bytes()).await.unwrap();
    }
    let mut whole = String::new();
    loop {
        let mut reply = String::new();
        stream.read_line(&mut reply).await.unwrap();
        assert!(reply.starts_with(code), "{line:?}: {reply}");
        whole += &reply;
        if reply.as_bytes().get(3) == Some(&b' ') {
            return whole;
        }
    }
}

/// Connects to the relay as a redirected client: the flow table knows the connection before it is there.
pub(crate) async fn redirected(lab: &Lab, relay: std::net::SocketAddr, class: u16) -> BufReader<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let client = socket.local_addr().unwrap();
    let now_s = redirect_ctl::reconcile::task::monotonic_s();
    lab.model.state().flows.push(FlowRecord {
        client,
        server: "203.0.113.9:25".parse().unwrap(),
        relay: Some(relay),
        mapped_port: client.port(),
        class,
        state: FlowState::Established,
        delivery: FlowDelivery::Rewrite,
        created_s: now_s,
        seen_s: now_s,
    });
    BufReader::new(socket.connect(relay).await.unwrap())
}

pub(crate) async fn lab_with_relay() -> (Lab, std::net::SocketAddr) {
    let relay = free_port();
    let lab = Lab::with(|settings, _| {
        let std::net::SocketAddr::V4(v4) = relay else { unreachable!("loopback is IPv4") };
        settings.relay.ipv4 = Some(v4);
    })
    .await;
    (lab, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_from_a_redirected_client_to_the_gateway_of_its_class() {
    let (lab, relay) = lab_with_relay().await;
    let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gateway.local_addr().unwrap().port();
    let mail = tokio::spawn(sink(gateway));
    // The class's own gateway, not the default one.
    lab.put("/v1/gateways/default", r#"{"address":"192.0.2.1"}"#).await.expect(201);
    lab.put("/v1/gateways/mx", &format!(r#"{{"address":"localhost","port":{port},"allow_local":true}}"#))
        .await
        .expect(201);
    lab.put("/v1/classes/configured", r#"{"action":"redirect","relays":[{"name":"embedded"}],"gateway":"mx"}"#)
        .await
        .expect(200);

    let mut client = redirected(&lab, relay, 2).await;
    say(&mut client, "", "220").await;
    say(&mut client, "EHLO laptop\r\n", "250").await;
    say(&mut client, "MAIL FROM:<a@example.org>\r\n", "250").await;
    say(&mut client, "RCPT TO:<b@example.org>\r\n", "250").await;
    say(&mut client, "DATA\r\n", "354").await;
    say(&mut client, "Subject: hello\r\n\r\nhello\r\n.\r\n", "250").await;
    say(&mut client, "QUIT\r\n", "221").await;
    let message = tokio::time::timeout(PATIENCE, mail).await.unwrap().unwrap();
    let metrics = lab.get("/metrics").await.expect(200);
    for line in [
        r#"redirect_mail_messages_total{class="configured",gateway="mx",outcome="accepted"} 1"#,
        r#"redirect_mail_messages_total{class="configured",gateway="mx",outcome="rejected"} 0"#,
        r#"redirect_mail_octets_total{class="configured",gateway="mx"} 25"#,
        r#"redirect_mail_recipients_total{class="configured",gateway="mx"} 1"#,
        r#"redirect_mail_recipients_refused_total{class="configured",gateway="mx"} 0"#,
        r#"redirect_mail_duplicate_risk_total{class="configured",gateway="mx"} 0"#,
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line} is missing in\n{}", metrics.text);
    }
    assert!(metrics.text.contains(r#"redirect_mail_duration_milliseconds_total{class="configured",gateway="mx"} "#));
    assert!(message.ends_with("Subject: hello\r\n\r\nhello\r\n"), "{message}");
    assert!(message.contains("127.0.0.1"), "no trace of the client: {message}");
    let status = lab.get("/v1/status").await.json();
    assert_eq!(status["relay"]["messages_accepted"], 1);
    lab.stop().await;
}

async fn aborted_session(lab: &Lab, relay: std::net::SocketAddr) {
    let mut client = redirected(lab, relay, 2).await;
    say(&mut client, "", "220").await;
    say(&mut client, "EHLO laptop\r\n", "250").await;
    say(&mut client, "MAIL FROM:<carol@example.org>\r\n", "250").await;
    say(&mut client, "QUIT\r\n", "221").await;
}

/// Standard output that a test may read while a command still writes it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_sessions_as_columns_or_as_objects() {
    let (lab, relay) = lab_with_relay().await;
    let host = format!("unix://{}", lab.settings.sockets[0].display());
    let getenv = |name: &str| (name == "REDIRECT_HOST").then(|| host.clone());
    let (mut table, mut json) = (Shared::default(), Shared::default());
    let run = async |stdout: &mut Shared, args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (mut stderr, mut stdin) = (Vec::new(), std::io::empty());
        let mut env = Env {
            stdout,
            stderr: &mut stderr,
            stdin: &mut stdin,
            getenv: &getenv,
            is_terminal: false,
            progress: false,
        };
        let code = commands::run(&mut env, &args).await;
        (code, String::from_utf8(stderr).unwrap())
    };
    let (of_table, of_json) = (table.clone(), json.clone());
    let talk = async {
        // The first sessions may come before the commands look on.
        eventually("both show a session", || async {
            aborted_session(&lab, relay).await;
            [&of_table, &of_json].iter().all(|shown| shown.text().contains("ends because of client_reset"))
        })
        .await;
        lab.shutdown.cancel();
    };
    let (of_table, of_json, ()) = tokio::join!(
        run(&mut table, &["redirect-ctl", "trace", "--subscriber", "127.0.0.1"]),
        run(&mut json, &["redirect-ctl", "-o", "json", "trace", "--subscriber", "127.0.0.0/8"]),
        talk
    );
    for ended in [of_table, of_json] {
        assert_eq!(ended, (0, "redirect-ctl: redirectd stopped\n".to_owned()));
    }
    let table = table.text();
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["TIME", "SESSION", "SUBSCRIBER", "CLASS", "WHO", "TEXT"]);
    assert!(table.contains("  configured      client    MAIL FROM:<***@example.org>\n"), "{table}");
    let mail = json.text().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).find(|line| {
        assert_eq!(line["type"], "line");
        line["text"] == "MAIL FROM:<***@example.org>"
    });
    let mail = mail.expect("a line for MAIL");
    assert_eq!((&mail["who"], &mail["class"]), (&json!("client"), &json!("configured")));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_may_look_at_sessions() {
    let (lab, _) = lab_with_relay().await;
    let query = TraceQuery { subscriber: "10.0.0.0/8".to_owned() };
    let mut traces = Vec::new();
    let refused = loop {
        match lab.client.trace(&query).await {
            Ok(trace) => traces.push(trace),
            Err(error) => break error,
        }
        assert!(traces.len() <= 64, "no bound");
    };
    assert!(matches!(refused, client::Error::Problem(problem) if problem.status == 503));
    traces.clear();
    eventually("their places are free again", || async { lab.client.trace(&query).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shown_as_they_happen_without_what_is_private() {
    let (lab, relay) = lab_with_relay().await;
    let trace = async |prefix: &str| lab.client.trace(&TraceQuery { subscriber: prefix.to_owned() }).await.unwrap();
    let mut mine = trace("127.0.0.0/8").await;
    let mut others = trace("10.0.0.0/8").await;
    aborted_session(&lab, relay).await;
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &SessionLine| line.text != "ends because of client_reset") {
        let line = tokio::time::timeout(PATIENCE, mine.next()).await.unwrap().unwrap().unwrap();
        let TraceLine::Line(line) = line else { panic!("{line:?}") };
        lines.push(*line);
    }
    let shown: Vec<_> = lines.iter().map(|line| (line.who, line.text.as_str())).collect();
    assert_eq!(shown[0], (Who::Note, "dialled 203.0.113.9:25"));
    assert!(shown.contains(&(Who::Client, "MAIL FROM:<***@example.org>")), "{shown:?}");
    assert!(lines.iter().all(|line| line.class == "configured" && line.subscriber.ip().is_loopback()), "{lines:?}");
    assert!(!serde_json::to_string(&lines).unwrap().contains("carol"));

    lab.get("/v1/trace").await.problem(400, "invalid_query", Some("?subscriber"));
    lab.get("/v1/trace?subscriber=everybody").await.problem(422, "invalid", Some("?subscriber"));
    lab.stop().await;
    assert_eq!(tokio::time::timeout(PATIENCE, mine.next()).await.unwrap().unwrap(), None, "the daemon stopped");
    assert_eq!(tokio::time::timeout(PATIENCE, others.next()).await.unwrap().unwrap(), None, "another subscriber's");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_straight_to_the_relay_gets_no_service() {
    let (lab, relay) = lab_with_relay().await;
    let mut stream = TcpStream::connect(relay).await.unwrap();
    let mut greeting = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut greeting)).await.unwrap().unwrap();
    assert!(greeting.starts_with(['4', '5']), "{greeting:?}");
    // A flow of a class that is gone explains nothing either.
    let mut client = redirected(&lab, relay, 60).await;
    let mut greeting = String::new();
    tokio::time::timeout(PATIENCE, client.read_to_string(&mut greeting)).await.unwrap().unwrap();
    assert!(greeting.starts_with(['4', '5']), "{greeting:?}");
    assert_eq!(lab.get("/v1/status").await.json()["relay"]["sessions_refused"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_abuses_the_relay_is_locked_in_the_kernel() {
    let (lab, relay) = lab_with_relay().await;
    let set = lab
        .ctl(&[
            "class",
            "set",
            "configured",
            "--action",
            "redirect",
            "--relay",
            "embedded",
            "--quota",
            "connections=1/1h",
            "--lock-strikes",
            "1/1h",
            "--lock-strikes-for",
            "10m",
        ])
        .await;
    assert_eq!((set.code, set.stderr.as_str()), (0, ""));
    let class = lab.get("/v1/classes/configured").await.json();
    assert_eq!(class["smtp"]["subscriber_quota"]["connections"], json!({"count": 1, "per_s": 3600, "burst": 1}));
    assert_eq!(class["smtp"]["lock"], json!({"strikes": {"count": 1, "per_s": 3600, "burst": 1}, "duration_s": 600}));
    let mut events =
        lab.client.events(&EventQuery { class: Some("configured".into()), client: None, reason: None }).await.unwrap();
    let mut others =
        lab.client.events(&EventQuery { class: Some("bypass".into()), client: None, reason: None }).await.unwrap();
    for code in ["220", "4", "4"] {
        assert_eq!(lab.get("/v1/locks").await.json()["items"], json!([]), "locked too soon");
        let mut client = redirected(&lab, relay, 2).await;
        say(&mut client, "", code).await;
    }
    eventually("the kernel holds the lock", || async { !lab.model.state().locks.is_empty() }).await;
    let locks = lab.get("/v1/locks").await.json();
    assert_eq!(locks["items"][0]["address"], "127.0.0.1");
    assert!((590..=600).contains(&locks["items"][0]["left_s"].as_u64().unwrap()), "{locks}");
    let line = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
    let EventLine::Locked(lock) = line else { panic!("{line:?}") };
    assert_eq!(
        (lock.address.to_string().as_str(), lock.class.as_str(), lock.duration_s),
        ("127.0.0.1", "configured", 600)
    );
    lab.stop().await;
    assert_eq!(tokio::time::timeout(PATIENCE, others.next()).await.unwrap().unwrap(), None, "another class's");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_usable_gateway_the_client_is_asked_to_come_back() {
    let (lab, relay) = lab_with_relay().await;
    let try_mail = async || {
        let mut client = redirected(&lab, relay, 2).await;
        say(&mut client, "", "220").await;
        say(&mut client, "EHLO laptop\r\n", "250").await;
        client.write_all(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nQUIT\r\n").await.unwrap();
        let mut replies = String::new();
        tokio::time::timeout(PATIENCE, client.read_to_string(&mut replies)).await.unwrap().unwrap();
        assert!(replies.lines().any(|line| line.starts_with('4')), "{replies}");
    };
    // None; a disabled one; a name that leads back to ourselves.
    try_mail().await;
    lab.put("/v1/gateways/default", r#"{"address":"192.0.2.1","status":"disabled"}"#).await.expect(201);
    try_mail().await;
    lab.put("/v1/gateways/default", &format!(r#"{{"address":"localhost","port":{}}}"#, relay.port())).await.expect(200);
    try_mail().await;
    assert_eq!(lab.get("/v1/status").await.json()["relay"]["sessions_refused"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_the_packet_path_goes_on() {
    let lab = Lab::start().await;
    let start = lab.model.state().clock_s;
    assert!(start > 0, "the clock was not set before the first packet");
    eventually("it advances", || async { lab.model.state().clock_s > start }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_are_served_and_silent_ones_do_not_hold_up_a_stop() {
    let lab = Lab::start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::UnixStream::connect(&lab.settings.sockets[0]).await.unwrap());
    }
    lab.get("/livez").await.expect(200);
    tokio::time::timeout(Duration::from_secs(10), lab.stop()).await.unwrap();
}
