//! TLS and AUTH with real clients, and sessions that are passed through.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

use redirect_relay::{
    Auth, Certificate, Policy, Seen, Settings, Tls, Users, Verifier, Who,
    gateway::{Encryption, Gateway},
    route::Routing,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{BODY, Client, FakeGateway, Nature, Running, Site, plain, settings, to};

struct Operator {
    certificate: Certificate,
    connector: TlsConnector,
}

impl Operator {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
        let chain = made.cert.pem();
        let certificate = Certificate::from_pem(chain.as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { certificate, connector: TlsConnector::from(Arc::new(config)) }
    }

    fn policy(&self) -> Policy {
        Policy { tls: Tls::Offer(self.certificate.clone()), ..Policy::default() }
    }

    /// A client that has said EHLO over TLS, and what it was offered there.
    async fn client(&self, relay: &Running) -> (Spoken<TlsStream<TcpStream>>, String) {
        let mut client = relay.client().await;
        client.greet().await;
        let mut client = self.starttls(client).await;
        let offers = client.ask("EHLO pc.example\r\n", "250-relay.example\r\n").await;
        (client, offers)
    }

    async fn starttls(&self, mut client: Client) -> Spoken<TlsStream<TcpStream>> {
        client.ask("STARTTLS", "220 2.0.0").await;
        let name = ServerName::try_from("relay.example").unwrap();
        Spoken(self.connector.connect(name, client.stream.into_inner()).await.unwrap())
    }
}

/// A conversation over any stream.
struct Spoken<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Spoken<S> {
    /// Up to and including the 354.
    async fn envelope(&mut self) {
        self.ask("MAIL FROM:<a@b.example>\r\n", "250").await;
        self.ask("RCPT TO:<c@d.example>\r\n", "250").await;
        self.ask("DATA\r\n", "354").await;
    }

    async fn ask(&mut self, text: &str, expected: &str) -> String {
        self.0.write_all(text.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        while !last_line_is_whole(&said) {
            let octets = self.0.read_buf(&mut said).await.unwrap();
            assert!(octets > 0, "the end instead of {expected:?}");
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with(expected), "{text:?}: {said:?}");
        said
    }
}

fn last_line_is_whole(said: &[u8]) -> bool {
    let text = String::from_utf8_lossy(said);
    text.ends_with("\r\n") && text.lines().next_back().is_some_and(|line| line.as_bytes()[3] == b' ')
}

fn site(policy: Policy, gateway: SocketAddr) -> Site {
    let original = "198.51.100.9:25".parse().unwrap();
    let gateway = Gateway { allow_downgrade: true, ..plain("g0", gateway) };
    Site {
        class: Some("configured"),
        policy: Arc::new(policy),
        original,
        routing: Mutex::new(Arc::new(Routing::build(to(vec![gateway])).unwrap())),
        listeners: Mutex::default(),
        locks: AtomicU32::new(0),
    }
}

#[tokio::test]
async fn a_message_over_tls() {
    let operator = Operator::new();
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::at_site(settings(), site(operator.policy(), gateway.address)).await;
    let (mut client, offers) = operator.client(&relay).await;
    assert!(!offers.contains("STARTTLS"), "{offers}");
    client.envelope().await;
    // A body that fills more than one record and one read, each way it can be cut.
    let body = format!("{BODY}{}", "0123456789\r\n".repeat(10_000));
    client.ask(&format!("{body}.\r\n"), "250 2.0.0 queued").await;
    client.ask("QUIT\r\n", "221").await;
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).await.expect("close_notify");
    let seen = gateway.until("the message", |seen| seen.messages.len() == 1).await;
    assert_eq!(seen.messages, [body.as_bytes()]);
    assert!(seen.traces[0].contains(" with ESMTPS (class"), "{}", seen.traces[0]);
    assert_eq!(relay.stop().await.messages_accepted, 1);
}

/// What came over TLS goes on over TLS or not at all, unless the gateway says that it may.
#[tokio::test]
async fn mail_that_came_over_tls_does_not_go_on_in_clear() {
    let operator = Operator::new();
    let clear = FakeGateway::start(vec![]);
    let certificate = rcgen::generate_simple_self_signed(["mx.example".into()]).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.signing_key.serialize_pem().as_bytes()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let secure = FakeGateway::with(Nature { tls: Some(Arc::new(server)), ..Nature::default() }, vec![]);
    let gateway = |encryption, allow_downgrade| Gateway { encryption, allow_downgrade, ..plain("g0", clear.address) };
    let second = Gateway { encryption: Encryption::Starttls, ..plain("g1", secure.address) };
    let relay = Running::at_site(settings(), site(operator.policy(), clear.address)).await;
    for (encryption, second, allow_downgrade, expected) in [
        (Encryption::None, None, false, "451 4.7.5"),
        (Encryption::Starttls, None, false, "451 4.7.5"),
        (Encryption::Starttls, Some(second.clone()), false, "250"),
        (Encryption::None, Some(second), false, "250"),
        (Encryption::None, None, true, "250"),
    ] {
        let gateways = [Some(gateway(encryption, allow_downgrade)), second].into_iter().flatten().collect();
        *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(to(gateways)).unwrap());
        // A connection in clear that waits for the next message is not for this one either.
        let mut other = relay.client().await;
        other.greet().await;
        other.envelope().await;
        other.send(format!("{BODY}.\r\n")).await;
        other.expect("250").await;
        let (mut client, _) = operator.client(&relay).await;
        client.ask("MAIL FROM:<a@b.example>\r\n", "250").await;
        let reply = client.ask("RCPT TO:<c@d.example>\r\n", expected).await;
        if reply.starts_with("250") {
            client.ask("DATA\r\n", "354").await;
            client.ask(&format!("{BODY}.\r\n"), "250 2.0.0 queued").await;
        }
    }
    assert_eq!((clear.seen().messages.len(), secure.seen().messages.len()), (5 + 1, 2));
    assert!(relay.relay.gateways()[0].up, "what only this mail asks for is no failure of the gateway");
    let counters = relay.stop().await;
    assert_eq!((counters.downgrades, counters.downgrades_refused, counters.gateway_failures), (1, 2, 0));
}

/// A TCP end without `close_notify` could be anybody's: it ends no message.
#[tokio::test]
async fn attack_27_truncation_is_no_end() {
    let operator = Operator::new();
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::at_site(settings(), site(operator.policy(), gateway.address)).await;
    let (mut client, _) = operator.client(&relay).await;
    client.envelope().await;
    client.0.write_all(format!("{BODY}.\r").as_bytes()).await.unwrap();
    let (mut tcp, _) = client.0.into_inner();
    tcp.shutdown().await.unwrap();
    let seen = gateway.until("the end", |seen| seen.cut == 1).await;
    assert!(seen.messages.is_empty());
    assert_eq!(relay.stop().await.messages_aborted, 1);
}

/// One octet in each TLS record, and each record in several segments.
#[tokio::test]
async fn attack_27_records_of_one_octet() {
    let operator = Operator::new();
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::at_site(settings(), site(operator.policy(), gateway.address)).await;
    let (mut client, _) = operator.client(&relay).await;
    client.envelope().await;
    for octet in format!("{BODY}..x\r\n.\r\n").as_bytes() {
        client.0.write_all(&[*octet]).await.unwrap();
        client.0.flush().await.unwrap();
    }
    gateway.until("the message", |seen| seen.messages == [format!("{BODY}.x\r\n").as_bytes()]).await;
    relay.stop().await;
}

#[tokio::test]
async fn attack_27_handshakes_that_go_wrong() {
    let operator = Operator::new();
    let gateway = FakeGateway::start(vec![]);
    let mut settings = settings();
    settings.timeouts.handshake = Duration::from_millis(300);
    let relay = Running::at_site(settings, site(operator.policy(), gateway.address)).await;
    for (sent, failed) in [(&b""[..], 0), (b"\x16\x03\x01", 0), (b"NOOP\r\n", 1), (b"\x80\x2e\x01\x03\x01", 2)] {
        let mut client = relay.client().await;
        client.greet().await;
        client.ask("STARTTLS", "220 2.0.0").await;
        client.send(sent).await;
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"250"), "nothing is answered in clear: {rest:?}");
        relay
            .until("the failure", |counters| counters.handshakes_failed == failed && counters.sessions_active == 0)
            .await;
    }
    assert_eq!(relay.stop().await.client_timeouts, 2);
}

#[tokio::test]
async fn users_of_the_table_over_tls() {
    let operator = Operator::new();
    let gateway = FakeGateway::start(vec![]);
    let users = Users::new([("user".to_owned(), Verifier::of_password("pass").unwrap())]);
    let policy = Policy { auth: Auth::Local(Arc::new(users)), ..operator.policy() };
    let relay = Running::at_site(settings(), site(policy, gateway.address)).await;
    let (mut client, offers) = operator.client(&relay).await;
    assert!(offers.contains("250-AUTH PLAIN LOGIN\r\n"), "{offers}");
    client.ask("AUTH PLAIN AHVzZXIAd3Jvbmc=\r\n", "535 5.7.8").await;
    client.ask("AUTH LOGIN\r\n", "334 VXNlcm5hbWU6\r\n").await;
    client.ask("dXNlcg==\r\n", "334 UGFzc3dvcmQ6\r\n").await;
    client.ask("cGFzcw==\r\n", "235 2.7.0").await;
    client.ask("QUIT\r\n", "221").await;
    assert_eq!(relay.stop().await.auth_failures, 1);
}

/// Who looks on sees every command and reply, and nothing of a password, a message or a name, however they come.
#[tokio::test]
async fn attack_57_nothing_private_is_shown_to_who_looks_on() {
    let operator = Operator::new();
    let users = Users::new([("zoe".to_owned(), Verifier::of_password("tr0ub4dor").unwrap())]);
    let policy = Policy { auth: Auth::Local(Arc::new(users)), ..operator.policy() };
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::at_site(settings(), site(policy, gateway.address)).await;
    let mut watcher = relay.relay.watch("127.0.0.0/8".parse().unwrap()).unwrap();
    let mut client = relay.client().await;
    client.greet().await;
    // In clear, where it is not even offered: a mechanism, a password in its place, a password as a command.
    for line in ["AUTH PLAIN AHpvZQB0cjB1YjRkb3I=", "AUTH tr0ub4dor", "tr0ub4dor", "HELP tr0ub4dor"] {
        client.ask(line, "5").await;
    }
    let mut client = operator.starttls(client).await;
    client.ask("EHLO pc.example\r\n", "250").await;
    client.ask("AUTH LOGIN\r\n", "334").await;
    client.ask("em9l\r\n", "334").await;
    client.ask("dHIwdWI0ZG9yIQ==\r\n", "535").await;
    client.ask("AUTH PLAIN\r\n", "334").await;
    client.ask("AHpvZQB0cjB1YjRkb3I=\r\n", "235").await;
    client.ask("MAIL FROM:<zoe@home.example>\r\n", "250").await;
    client.ask("RCPT TO:<yves@away.example>\r\n", "250").await;
    let text = "Subject: midnight\r\n\r\nRCPT TO:<xavier@far.example>\r\nat the bridge\r\n";
    let (first, second) = text.split_at(30);
    client.ask(&format!("BDAT {}\r\n{first}", first.len()), "250").await;
    client.ask(&format!("BDAT {} LAST\r\n{second}", second.len()), "250").await;
    client.ask("MAIL FROM:<zoe@home.example>\r\n", "250").await;
    client.ask("RCPT TO:<yves@away.example>\r\n", "250").await;
    client.ask("DATA\r\n", "354").await;
    client.ask(&format!("{text}.\r\n"), "250").await;
    client.ask("QUIT\r\n", "221").await;

    let mut lines = Vec::new();
    while lines.last().is_none_or(|last: &Arc<redirect_relay::Line>| last.text != "ends because of client_reset") {
        let seen = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("the end of the session");
        let Seen::Line(line) = seen else { panic!("nothing is missed: {seen:?}") };
        lines.push(line);
    }
    let all = format!("{lines:?}").to_lowercase();
    for private in [
        "tr0ub4dor",
        "ahpvzqb0cjb1yjrkb3i",
        "em9l",
        "dhiwdwi0zg9y",
        "zoe",
        "yves",
        "xavier",
        "midnight",
        "bridge",
        "subject",
    ] {
        assert!(!all.contains(private), "{private}: {all}");
    }
    let said =
        |who: Who| lines.iter().filter(|line| line.who == who).map(|line| line.text.as_str()).collect::<Vec<_>>();
    let commands = [
        "EHLO pc.example",
        "AUTH PLAIN ***",
        "AUTH ***",
        "what is no command",
        "what is no command",
        "STARTTLS",
        "EHLO pc.example",
        "AUTH LOGIN ***",
        "AUTH PLAIN ***",
        "MAIL FROM:<***@home.example>",
        "RCPT TO:<***@away.example>",
        "BDAT 30",
        "BDAT 36 LAST",
        "MAIL FROM:<***@home.example>",
        "RCPT TO:<***@away.example>",
        "DATA",
        "QUIT",
    ];
    assert_eq!(said(Who::Client), commands);
    assert!(said(Who::Note).contains(&"TLS begins"), "{lines:?}");
    relay.stop().await;
}

/// The server that the client dialled, on an address that is not the relay's own. It says what it hears.
async fn dialled() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn passing_through(original: SocketAddr, settings: Settings) -> impl Future<Output = Running> {
    let policy = Policy { tls: Tls::Passthrough, ..Policy::default() };
    let site = Site {
        class: Some("business"),
        policy: Arc::new(policy),
        original,
        routing: Mutex::default(),
        listeners: Mutex::default(),
        locks: AtomicU32::new(0),
    };
    Running::at_site(settings, site)
}

/// Loopback is this host's own, and never passed through to.
#[tokio::test]
async fn attack_46_passing_through_to_this_host() {
    let (_listener, original) = dialled().await;
    let relay = passing_through(original, settings()).await;
    let mut client = relay.client().await;
    client.expect("421 4.4.1").await;
    client.ended().await;
    assert_eq!(relay.stop().await.sessions_passed_through, 0);
}

#[tokio::test]
async fn what_is_passed_through_is_untouched() {
    let (listener, original) = dialled().await;
    let mut settings = settings();
    settings.passthrough_to_self = true;
    let relay = passing_through(original, settings).await;
    let client = relay.client().await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"220 the real one\r\n").await.unwrap();
    let mut client = client.stream.into_inner();
    let mut said = [0; 18];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"220 the real one\r\n");
    // Every octet value, bare line ends, more than any buffer holds; both ways at once.
    let octets: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut from_client, mut to_client) = split(client);
    let (mut from_server, mut to_server) = split(server);
    let send = |octets: Vec<u8>| octets;
    let (a, b) = (send(octets.clone()), send(octets.clone()));
    let writers = [
        tokio::spawn(async move {
            to_client.write_all(&a).await.unwrap();
            to_client.shutdown().await.unwrap();
        }),
        tokio::spawn(async move {
            to_server.write_all(&b).await.unwrap();
            to_server.shutdown().await.unwrap();
        }),
    ];
    let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
    let (one, two) = tokio::join!(from_server.read_to_end(&mut at_server), from_client.read_to_end(&mut at_client));
    assert_eq!((one.unwrap(), two.unwrap()), (octets.len(), octets.len()));
    assert!(at_server == octets && at_client == octets);
    for writer in writers {
        writer.await.unwrap();
    }
    relay.until("the end", |counters| counters.sessions_active == 0).await;
    assert_eq!(relay.stop().await.sessions_passed_through, 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_session_is_not_passed_through_for_ever() {
    let (listener, original) = dialled().await;
    let mut settings = settings();
    settings.passthrough_to_self = true;
    let limit = settings.timeouts.splice;
    let relay = passing_through(original, settings).await;
    let mut client = relay.client().await;
    let (_server, _) = listener.accept().await.unwrap();
    let begun = tokio::time::Instant::now();
    client.ended().await;
    assert!(begun.elapsed() >= limit);
    relay.stop().await;
}
