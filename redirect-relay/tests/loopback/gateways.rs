//! Gateways as operators have them: with TLS, accounts, several addresses, groups, limits; and what routes make of them.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use redirect_relay::{
    Policy, Rate,
    gateway::{
        Account, Balance, Egress, EgressAddress, Encryption, Gateway, GatewayQuota, Group, Mechanism, Member, Pin,
        PriorityRange, Secret, Stage as Part, Status, Strategy, Verification, VerifyReport,
    },
    route::{Pattern, Route, Routing, RoutingSpec, Target},
    tend,
};
use rustls::{ServerConfig, pki_types::pem::PemObject};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{BODY, Client, Do, FakeGateway, Nature, Running, Script, Stage, at, plain, settings, to};

/// An authority, and a server's certificate that it signed.
pub(crate) struct Authority {
    file: PathBuf,
    pub(crate) server: Arc<ServerConfig>,
    pin: Pin,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

pub(crate) fn authority(name: &str) -> Authority {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let file = std::env::temp_dir().join(format!("relay-ca-{}-{:p}.pem", std::process::id(), &raw const key));
    fs::write(&file, ca_certificate.pem()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf.der());
    let private = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private)
        .unwrap();
    Authority { file, server: Arc::new(server), pin: Pin(digest.as_ref().try_into().unwrap()) }
}

pub(crate) fn with_tls(authority: &Authority, address: SocketAddr) -> Gateway {
    let mut gateway = plain("g", address);
    gateway.encryption = Encryption::StarttlsRequired;
    gateway.verification = Verification::Ca { file: Some(authority.file.clone()) };
    gateway.sni = Some("mx.example".parse().unwrap());
    gateway
}

pub(crate) fn account(mechanism: Mechanism) -> Account {
    let password = Secret::new("hunter2".into());
    Account { mechanism, username: "u".into(), password, allow_unprotected: false }
}

async fn relay_to(routing: RoutingSpec) -> Running {
    Running::start(settings(), Some("configured"), Some(routing)).await
}

/// One message: the reply to RCPT, and if that is 250, the one to the dot.
pub(crate) async fn deliver(client: &mut Client) -> String {
    client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
    let reply = client.ask("RCPT TO:<c@d.example>", "").await;
    if !reply.starts_with("250") {
        client.ask("RSET", "250").await;
        return reply;
    }
    client.ask("DATA", "354").await;
    client.send(format!("{BODY}.\r\n")).await;
    client.reply().await
}

/// What a client of its own gets, and the relay counts at the end.
async fn check(routing: RoutingSpec, expected: &str) {
    let relay = relay_to(routing).await;
    let mut client = relay.client().await;
    client.greet().await;
    let reply = deliver(&mut client).await;
    assert!(reply.starts_with(expected), "expected {expected:?}, got {reply:?}");
    client.ask("QUIT", "221").await;
    relay.stop().await;
}

/// What EHLO offers to a client of its own.
async fn offers(relay: &Running) -> String {
    let mut client = relay.client().await;
    client.expect("220").await;
    let offers = client.ask("EHLO pc.example", "250-").await;
    client.ask("QUIT", "221").await;
    offers
}

/// What is beyond a gateway's quota goes to the next gateway of the group; without one the client is to come back.
#[tokio::test]
async fn quotas_of_a_gateway() {
    let hourly = |burst| Rate::new(1, Duration::from_hours(1), burst);
    // What is allowed, and how many messages of two recipients and 46 octets that is.
    let quotas = [
        (GatewayQuota { messages: hourly(2), ..GatewayQuota::default() }, 2),
        (GatewayQuota { connections: hourly(1), ..GatewayQuota::default() }, 1),
        (GatewayQuota { recipients: hourly(4), ..GatewayQuota::default() }, 2),
        (GatewayQuota { octets: hourly(30), ..GatewayQuota::default() }, 2),
    ];
    for (quota, messages) in quotas {
        let (first, second) = (FakeGateway::start(vec![]), FakeGateway::start(vec![]));
        let mut limited = plain("first", first.address);
        limited.limits.quota = quota;
        // Who is introduced has a connection of its own.
        limited.proxy_protocol = quota.connections.is_some();
        let first = if limited.proxy_protocol {
            let gateway = FakeGateway::with(Nature { proxy: true, ..Nature::default() }, vec![]);
            limited.port = gateway.address.port();
            gateway
        } else {
            first
        };
        let relay = relay_to(to(vec![limited.clone(), plain("second", second.address)])).await;
        let send = async |relay: &Running| {
            let mut client = relay.client().await;
            client.greet().await;
            client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
            let reply = client.ask("RCPT TO:<c@d.example>", "").await;
            if reply.starts_with("250") {
                client.ask("RCPT TO:<e@d.example>", "250").await;
                client.ask("DATA", "354").await;
                client.ask(&format!("{BODY}."), "250 2.0.0 queued").await;
            }
            client.ask("QUIT", "221").await;
            reply
        };
        for _ in 0..4 {
            assert!(send(&relay).await.starts_with("250"), "{quota:?}");
        }
        assert_eq!((first.seen().messages.len(), second.seen().messages.len()), (messages, 4 - messages), "{quota:?}");
        assert!(relay.relay.gateways()[0].over_quota >= 1, "{quota:?}");
        // The quota outlives a change of the gateway, as long as it has one.
        limited.weight = 2;
        let alone = to(vec![limited.clone()]);
        *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(alone).unwrap());
        assert!(send(&relay).await.starts_with("451 4.3.2"), "{quota:?}");
        limited.limits.quota = GatewayQuota::default();
        *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(to(vec![limited])).unwrap());
        assert!(send(&relay).await.starts_with("250"), "{quota:?}");
        relay.stop().await;
    }
}

/// The first choice takes so many recipients, the second one any number.
async fn first_takes_recipients(count: u64) -> (FakeGateway, FakeGateway, Running) {
    let (first, second) = (FakeGateway::start(vec![]), FakeGateway::start(vec![]));
    let mut limited = plain("first", first.address);
    limited.limits.quota.recipients = Rate::new(1, Duration::from_hours(1), count);
    let relay = relay_to(to(vec![limited, plain("second", second.address)])).await;
    (first, second, relay)
}

/// A quota of recipients that others have used up between MAIL and the first recipient: the next gateway has the message.
#[tokio::test]
async fn a_gateways_quota_of_recipients_ends_before_a_message() {
    let (first, second, relay) = first_takes_recipients(1).await;
    let (mut quick, mut slow) = (relay.client().await, relay.client().await);
    for client in [&mut quick, &mut slow] {
        client.greet().await;
        client.ask("MAIL FROM:<a@b.example>", "250").await;
    }
    relay.until("both connections", |counters| counters.gateway_connections == 2).await;
    assert_eq!(first.seen().connections, 2);
    for client in [&mut quick, &mut slow] {
        client.ask("RCPT TO:<c@d.example>", "250").await;
        client.ask("DATA", "354").await;
        client.ask(&format!("{BODY}."), "250").await;
    }
    assert_eq!((first.seen().messages.len(), second.seen().messages.len()), (1, 1));
    relay.stop().await;
}

/// A quota of recipients that ends within a message: the others are sent separately.
#[tokio::test]
async fn a_gateways_quota_of_recipients_ends_within_a_message() {
    let (first, second, relay) = first_takes_recipients(3).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example>", "250").await;
    for expected in ["250", "250", "250", "452 4.5.3"] {
        client.ask("RCPT TO:<c@d.example>", expected).await;
    }
    client.ask("DATA", "354").await;
    client.ask(&format!("{BODY}."), "250").await;
    client.ask("MAIL FROM:<a@b.example>", "250").await;
    client.ask("RCPT TO:<c@d.example>", "250").await;
    client.ask("DATA", "354").await;
    client.ask(&format!("{BODY}."), "250").await;
    assert_eq!((first.seen().messages.len(), second.seen().messages.len()), (1, 1));
    relay.stop().await;
}

/// What the client says of a message's priority chooses its route, and the gateways that take it.
#[tokio::test]
async fn priorities_choose_routes_and_gateways() {
    let all = [FakeGateway::start(vec![]), FakeGateway::start(vec![]), FakeGateway::start(vec![])];
    let mut spec = at(&[all[0].address, all[1].address]);
    // The first of the group takes what is urgent, the second what is not; newsletters have a route of their own.
    let range = |min, max| Some(PriorityRange { min, max });
    spec.gateways[0].priorities = range(5, 9);
    spec.gateways[1].priorities = range(-3, 4);
    spec.gateways.push(plain("news", all[2].address));
    let mut news = Route::new(Pattern::Default, Target::Gateway("news".parse().unwrap()));
    news.conditions.priority = range(-9, -7);
    spec.routes.push(news);
    let policy = Policy { mt_priority: true, ..Policy::default() };
    let relay = Running::of_class(settings(), Some("c"), policy, Some(spec)).await;
    let mut client = relay.client().await;
    client.greet().await;
    for (parameter, expected) in [
        (" MT-PRIORITY=9", Some(0)),
        (" MT-PRIORITY=4", Some(1)),
        ("", Some(1)),
        (" MT-PRIORITY=-7", Some(2)),
        (" MT-PRIORITY=-6", None),
    ] {
        let before = all.each_ref().map(|gateway| gateway.seen().messages.len());
        client.ask(&format!("MAIL FROM:<a@b.example>{parameter}"), "250 2.1.0").await;
        let Some(chosen) = expected else {
            client.ask("RCPT TO:<c@d.example>", "451 4.3.5").await;
            break;
        };
        client.ask("RCPT TO:<c@d.example>", "250").await;
        client.ask("DATA", "354").await;
        client.send(format!("{BODY}.\r\n")).await;
        client.expect("250").await;
        let mut after = before;
        after[chosen] += 1;
        assert_eq!(all.each_ref().map(|gateway| gateway.seen().messages.len()), after, "{parameter}");
    }
    relay.stop().await;
}

/// A gateway is met by the first message; what it can do is offered from then on, as long as the others can as well.
#[tokio::test]
async fn clients_are_offered_what_their_gateways_can_do() {
    let able = Nature { offers: vec!["DSN", "SMTPUTF8", "SIZE 5000"], ..Nature::default() };
    let gateway = FakeGateway::with(able, vec![]);
    let relay = Running::with(gateway.address).await;
    let before = offers(&relay).await;
    assert!(before.contains("8BITMIME") && !before.contains("DSN") && !before.contains("SMTPUTF8"), "{before}");
    let mut client = relay.client().await;
    client.greet().await;
    assert!(deliver(&mut client).await.starts_with("250"));
    let after = offers(&relay).await;
    assert!(after.contains("|250-SIZE 5000|250-8BITMIME|250-SMTPUTF8|250-DSN|"), "{after}");
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<\u{3b4}@b.example> SMTPUTF8 RET=HDRS ENVID=q", "250").await;
    client.ask("RCPT TO:<c@d.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@y.example", "250").await;
    let seen = gateway.seen().commands;
    assert!(seen.contains(&"MAIL FROM:<\u{3b4}@b.example> SMTPUTF8 RET=HDRS ENVID=q".to_owned()), "{seen:?}");
    assert_eq!(seen.last().unwrap(), "RCPT TO:<c@d.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@y.example");
    drop(client);

    // A domain of its own goes to a gateway that nobody has met, and then to one that can do less.
    let plain_one = FakeGateway::start(vec![]);
    let mut spec = to(vec![plain("g0", gateway.address)]);
    spec.gateways.push(plain("other", plain_one.address));
    let other = Target::Gateway("other".parse().unwrap());
    spec.routes.push(Route::new("d.example".parse().unwrap(), other));
    *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(spec.clone()).unwrap());
    let split = offers(&relay).await;
    assert!(!split.contains("DSN") && split.contains("8BITMIME") && split.contains("RCPTDOMAINMAX=1"), "{split}");
    let mut client = relay.client().await;
    client.greet().await;
    assert!(deliver(&mut client).await.starts_with("250"));
    assert!(!offers(&relay).await.contains("DSN"));
    // What is disabled takes no mail, and what another class uses is not asked.
    for disabled in [true, false] {
        let mut spec = spec.clone();
        if disabled {
            spec.gateways[1].status = Status::Disabled;
        } else {
            spec.routes[1].conditions.class = Some("staff".parse().unwrap());
        }
        *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(spec).unwrap());
        assert!(offers(&relay).await.contains("250-DSN"));
    }
    relay.stop().await;
}

#[tokio::test]
async fn starttls_with_an_authority_and_an_account() {
    let authority = authority("mx.example");
    let nature =
        Nature { tls: Some(Arc::clone(&authority.server)), offers: vec!["AUTH PLAIN LOGIN"], ..Nature::default() };
    let gateway = FakeGateway::with(nature, vec![]);
    let mut with = with_tls(&authority, gateway.address);
    with.account = Some(account(Mechanism::Plain));
    check(to(vec![with]), "250 2.0.0 queued").await;
    let seen = gateway.until("QUIT", |seen| seen.commands.last().is_some_and(|c| c == "QUIT")).await;
    assert_eq!(seen.messages, [BODY.as_bytes()]);
    assert_eq!(
        seen.commands,
        [
            "EHLO relay.example",
            "STARTTLS",
            "EHLO relay.example",
            "AUTH PLAIN AHUAaHVudGVyMg==",
            "MAIL FROM:<a@b.example>",
            "RCPT TO:<c@d.example>",
            "DATA",
            "QUIT"
        ]
    );
}

#[tokio::test]
async fn implicit_tls_with_large_bodies() {
    let authority = authority("mx.example");
    let nature = Nature { tls: Some(Arc::clone(&authority.server)), implicit: true, ..Nature::default() };
    let gateway = FakeGateway::with(nature, vec![]);
    let mut with = with_tls(&authority, gateway.address);
    with.encryption = Encryption::Implicit;
    let relay = relay_to(to(vec![with])).await;
    let mut client = relay.client().await;
    client.greet().await;
    for octets in [100, 16 * 1024 + 1, 1024 * 1024] {
        let body = format!("{}\r\n", "x".repeat(octets));
        client.envelope().await;
        client.send(format!("{body}.\r\n")).await;
        client.expect("250 2.0.0 queued").await;
        assert_eq!(gateway.seen().messages.last().unwrap(), body.as_bytes());
    }
    assert_eq!(gateway.seen().connections, 1);
    relay.stop().await;
}

/// Attacks 25 and 26: what cannot be verified, and what hides TLS, gets neither mail nor password.
#[tokio::test]
async fn attack_26_certificates_that_convince_nobody() {
    let (right, wrong) = (authority("mx.example"), authority("mx.example"));
    let other_name = authority("other.example");
    let serve = |authority: &Authority| {
        let nature =
            Nature { tls: Some(Arc::clone(&authority.server)), offers: vec!["AUTH PLAIN"], ..Nature::default() };
        FakeGateway::with(nature, vec![])
    };
    let gateway = serve(&right);
    let mut with = with_tls(&wrong, gateway.address);
    with.account = Some(account(Mechanism::Plain));
    check(to(vec![with.clone()]), "451 4.7.5").await;
    assert_eq!(gateway.seen().commands, ["EHLO relay.example", "STARTTLS"]);

    with.verification = Verification::Pin { sha256: right.pin };
    check(to(vec![with.clone()]), "250 2.0.0 queued").await;
    with.verification = Verification::Pin { sha256: wrong.pin };
    check(to(vec![with]), "451 4.7.5").await;

    let gateway = serve(&other_name);
    let with = with_tls(&other_name, gateway.address);
    check(to(vec![with]), "451 4.7.5").await;
    assert_eq!(gateway.seen().messages.len(), 0);

    let mut unreadable = with_tls(&right, gateway.address);
    unreadable.verification = Verification::Ca { file: Some("/nonexistent/ca.pem".into()) };
    check(to(vec![unreadable]), "451 4.7.5").await;

    let without = FakeGateway::start(vec![]);
    check(to(vec![with_tls(&right, without.address)]), "451 4.7.5").await;
    assert_eq!(without.seen().commands, ["EHLO relay.example"]);
}

#[tokio::test]
async fn opportunistic_tls() {
    let authority = authority("mx.example");
    let mut opportunistic = plain("g", "127.0.0.1:1".parse().unwrap());
    opportunistic.encryption = Encryption::Starttls;
    for (nature, starttls) in
        [(Nature { tls: Some(Arc::clone(&authority.server)), ..Nature::default() }, true), (Nature::default(), false)]
    {
        let gateway = FakeGateway::with(nature, vec![]);
        opportunistic.port = gateway.address.port();
        check(to(vec![opportunistic.clone()]), "250 2.0.0 queued").await;
        assert_eq!(gateway.seen().commands.contains(&"STARTTLS".to_owned()), starttls);
    }
}

/// Attack 23: replies that somebody put behind the answer to STARTTLS are not taken for the gateway's.
#[tokio::test]
async fn attack_23_what_is_injected_behind_starttls_ends_the_connection() {
    let authority = authority("mx.example");
    let nature = Nature { tls: Some(Arc::clone(&authority.server)), ..Nature::default() };
    let injected = Do::Say("220 go\r\n250 AUTH PLAIN\r\n".into());
    let gateway = FakeGateway::with(nature, vec![(Stage::Starttls, injected)]);
    let good = FakeGateway::start(vec![]);
    check(to(vec![with_tls(&authority, gateway.address)]), "451 4.4.2").await;
    check(to(vec![with_tls(&authority, gateway.address), plain("good", good.address)]), "250 2.0.0 queued").await;
    assert_eq!(gateway.seen().messages.len(), 0);
}

#[tokio::test]
async fn xclient_and_proxy_tell_who_the_client_is_and_are_not_shared() {
    for proxy in [false, true] {
        let nature = Nature { offers: vec!["XCLIENT NAME ADDR PORT HELO"], proxy, ..Nature::default() };
        let gateway = FakeGateway::with(nature, vec![]);
        let mut with = plain("g", gateway.address);
        (with.proxy_protocol, with.xclient) = (proxy, !proxy);
        let relay = relay_to(to(vec![with])).await;
        let mut ports = Vec::new();
        for _ in 0..2 {
            let mut client = relay.client().await;
            ports.push(client.stream.get_ref().local_addr().unwrap().port());
            client.greet().await;
            for _ in 0..2 {
                assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
            }
            client.ask("QUIT", "221").await;
        }
        relay.stop().await;
        let seen = gateway.seen();
        assert_eq!((seen.connections, seen.messages.len()), (2, 4), "one for each client, used twice");
        if proxy {
            for (header, port) in seen.headers.iter().zip(ports) {
                let mut expected = vec![0x21, 0x11, 0, 12, 127, 0, 0, 1, 198, 51, 100, 9];
                expected.extend(port.to_be_bytes());
                expected.extend(25_u16.to_be_bytes());
                assert_eq!(*header, expected);
            }
        } else {
            let said: Vec<_> = seen.commands.iter().filter(|command| command.starts_with("XCLIENT")).collect();
            let expected =
                |port: &u16| format!("XCLIENT NAME=[UNAVAILABLE] PORT={port} HELO=pc.example ADDR=127.0.0.1");
            assert_eq!(said, ports.iter().map(expected).collect::<Vec<_>>().iter().collect::<Vec<_>>());
            assert_eq!(seen.commands.iter().filter(|command| command.starts_with("EHLO")).count(), 4);
        }
    }
}

#[tokio::test]
async fn attack_42_the_next_gateway_takes_what_the_first_cannot() {
    let say = |text: &str| Do::Say(text.to_owned());
    let first_fails: [(Script, bool); 8] = [
        (vec![(Stage::Banner, say("421 busy\r\n"))], true),
        (vec![(Stage::Banner, say("554 no\r\n"))], true),
        (vec![(Stage::Banner, Do::Close)], true),
        (vec![(Stage::Ehlo, say("450 no\r\n"))], true),
        (vec![(Stage::Mail, say("450 4.3.0 later\r\n"))], true),
        (vec![(Stage::Mail, say("421 4.3.0 later\r\n"))], true),
        (vec![(Stage::Mail, Do::Close)], true),
        (vec![(Stage::Rcpt, Do::Close)], true),
    ];
    for (script, elsewhere) in first_fails {
        let (first, second) = (FakeGateway::start(script.clone()), FakeGateway::start(vec![]));
        check(at(&[first.address, second.address]), "250 2.0.0 queued").await;
        assert_eq!(second.seen().messages.len(), usize::from(elsewhere), "{script:?}");
        assert_eq!(first.seen().messages.len(), 0, "{script:?}");
    }
    // A verdict is a verdict, and after a recipient's answer there is no other gateway.
    for (script, expected) in [
        (vec![(Stage::Mail, say("550 5.1.0 no\r\n"))], "550 5.1.0 no"),
        (vec![(Stage::Rcpt, say("450 4.2.0 later\r\n"))], "450 4.2.0 later"),
        (vec![(Stage::Rcpt, say("550 5.1.1 no\r\n"))], "550 5.1.1 no"),
        (vec![(Stage::Dot, Do::Close)], "451 4.4.2 Outcome unknown"),
        (vec![(Stage::Dot, say("451 4.3.0 later\r\n"))], "451 4.3.0 later"),
    ] {
        let (first, second) = (FakeGateway::start(script), FakeGateway::start(vec![]));
        check(at(&[first.address, second.address]), expected).await;
        assert_eq!(second.seen().connections, 0);
    }
}

#[tokio::test]
async fn an_account_that_one_gateway_does_not_take_is_tried_at_the_next() {
    for reply in ["454 4.7.0 later\r\n", "535 5.7.8 no\r\n"] {
        let nature = Nature { offers: vec!["AUTH PLAIN"], ..Nature::default() };
        let first = FakeGateway::with(nature, vec![(Stage::Auth, Do::Say(reply.into()))]);
        let second = FakeGateway::start(vec![]);
        let mut with = plain("first", first.address);
        with.account = Some(Account { allow_unprotected: true, ..account(Mechanism::Plain) });
        check(to(vec![with.clone()]), "451 4.7.0").await;
        check(to(vec![with, plain("second", second.address)]), "250 2.0.0 queued").await;
    }
}

#[tokio::test]
async fn clients_share_connections_one_after_the_other() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    for _ in 0..5 {
        let mut client = relay.client().await;
        client.greet().await;
        assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
        client.ask("QUIT", "221").await;
    }
    let [state] = &relay.relay.gateways()[..] else { panic!("one gateway") };
    assert_eq!((state.up, state.connections, state.idle, state.outstanding), (true, 1, 1, 0));
    assert!(state.capabilities.as_ref().unwrap().pipelining);
    assert_eq!(relay.stop().await.gateway_connections, 1);
    assert_eq!(gateway.seen().messages.len(), 5);
    assert_eq!(gateway.seen().connections, 1);
    gateway.until("QUIT", |seen| seen.commands.last().is_some_and(|c| c == "QUIT")).await;
}

/// Attack 44: what the last user left on a connection does no harm to the next.
#[tokio::test(start_paused = true)]
async fn attack_44_a_poisoned_connection_is_not_used_again() {
    let say = |text: &str| Do::Say(text.to_owned());
    for script in [
        vec![(Stage::Rset, say("503 what\r\n"))],
        vec![(Stage::Rset, say("250 ok\r\n250 late\r\n"))],
        vec![(Stage::Rset, Do::SayAndClose("250 ok\r\n".into()))],
        vec![(Stage::Rset, Do::Hang)],
    ] {
        let gateway = FakeGateway::start(script.clone());
        let relay = Running::with(gateway.address).await;
        for _ in 0..2 {
            let mut client = relay.client().await;
            client.greet().await;
            client.ask("MAIL FROM:<a@b.example>", "250").await;
            client.ask("RCPT TO:<c@d.example>", "250").await;
            client.ask("RSET", "250").await;
            assert_eq!(deliver(&mut client).await, "250 2.0.0 queued", "{script:?}");
            client.ask("QUIT", "221").await;
        }
        relay.stop().await;
        assert_eq!(gateway.seen().messages.len(), 2, "{script:?}");
    }
}

#[tokio::test]
async fn limits_of_connections_and_of_the_rate() {
    let gateway = FakeGateway::start(vec![]);
    let mut one = plain("one", gateway.address);
    one.limits.connections_max = Some(1);
    let relay = relay_to(to(vec![one.clone()])).await;
    let (mut busy, mut other) = (relay.client().await, relay.client().await);
    busy.greet().await;
    busy.envelope().await;
    other.greet().await;
    assert!(deliver(&mut other).await.starts_with("451 4.3.2"));
    busy.send(format!("{BODY}.\r\n")).await;
    busy.expect("250 2.0.0 queued").await;
    assert_eq!(deliver(&mut other).await, "250 2.0.0 queued");
    relay.stop().await;

    one.limits.connections_max = None;
    one.limits.messages_per_second_max = Some(2);
    let relay = relay_to(to(vec![one])).await;
    let mut client = relay.client().await;
    client.greet().await;
    let mut replies = Vec::new();
    for _ in 0..10 {
        replies.push(deliver(&mut client).await[..9].to_owned());
    }
    assert!(replies.contains(&"451 4.3.2".to_owned()), "{replies:?}");
    assert_eq!(replies[..2], ["250 2.0.0", "250 2.0.0"]);
    relay.stop().await;
}

#[tokio::test]
async fn a_gateway_may_take_fewer_recipients_than_we_do() {
    let gateway = FakeGateway::with(Nature { offers: vec!["LIMITS RCPTMAX=3"], ..Nature::default() }, vec![]);
    let mut two = plain("two", gateway.address);
    for limit in [None, Some(2)] {
        two.limits.recipients_per_message_max = limit;
        let relay = relay_to(to(vec![two.clone()])).await;
        let mut client = relay.client().await;
        client.greet().await;
        client.ask("MAIL FROM:<a@b.example>", "250").await;
        for index in 0..5 {
            let taken = index < limit.unwrap_or(3);
            client.ask(&format!("RCPT TO:<c{index}@d.example>"), if taken { "250" } else { "452 4.5.3" }).await;
        }
        client.ask("DATA", "354").await;
        client.send(format!("{BODY}.\r\n")).await;
        client.expect("250").await;
        relay.stop().await;
    }
}

fn spec(gateways: Vec<Gateway>, routes: &[(&str, &str)]) -> RoutingSpec {
    let route = |(domain, gateway): &(&str, &str)| {
        Route::new(domain.parse().unwrap(), Target::Gateway(gateway.parse().unwrap()))
    };
    RoutingSpec { gateways, routes: routes.iter().map(route).collect(), ..RoutingSpec::default() }
}

#[tokio::test]
async fn the_first_accepted_recipient_decides_the_route() {
    let (a, b) = (FakeGateway::start(vec![]), FakeGateway::start(vec![]));
    let gateways = vec![plain("a", a.address), plain("b", b.address)];
    let relay = relay_to(spec(gateways, &[("*", "a"), (".b.example", "b")])).await;
    let mut client = relay.client().await;
    client.greet().await;
    // In one segment: the answers keep their order.
    client
        .send(
            "MAIL FROM:<s@x.example>\r\nRCPT TO:<1@y.example>\r\nRCPT TO:<2@X.B.example>\r\nRCPT TO:<3@z.example>\r\n\
             RCPT TO:<postmaster>\r\nDATA\r\n",
        )
        .await;
    for expected in ["250 2.1.0", "250 2.1.5", "452 4.5.3 Another route", "250 2.1.5", "250 2.1.5", "354"] {
        client.expect(expected).await;
    }
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    client.ask("MAIL FROM:<s@x.example>", "250").await;
    client.ask("RCPT TO:<2@x.b.example>", "250").await;
    client.ask("RCPT TO:<1@y.example>", "452 4.5.3").await;
    client.ask("DATA", "354").await;
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    relay.stop().await;
    assert_eq!((a.seen().messages.len(), b.seen().messages.len()), (1, 1));
    assert_eq!(a.seen().commands.iter().filter(|command| command.starts_with("RCPT")).count(), 3);
}

#[tokio::test]
async fn a_refused_recipient_decides_nothing() {
    let refusing = FakeGateway::start(vec![(Stage::Rcpt, Do::Say("550 5.1.1 no\r\n".into()))]);
    let down = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = FakeGateway::start(vec![]);
    let gateways = vec![plain("a", refusing.address), plain("b", good.address), plain("c", down)];
    let relay = relay_to(spec(gateways, &[("a.example", "a"), ("b.example", "b"), ("c.example", "c")])).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<s@x.example>", "250").await;
    client.ask("RCPT TO:<1@a.example>", "550 5.1.1 no").await;
    client.ask("RCPT TO:<1@c.example>", "451 4.4.1").await;
    client.ask("RCPT TO:<1@nowhere.example>", "451 4.3.5").await;
    client.ask("RCPT TO:<1@b.example>", "250 2.1.5").await;
    client.ask("RCPT TO:<2@a.example>", "452 4.5.3").await;
    client.ask("DATA", "354").await;
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    relay.stop().await;
    assert_eq!(good.seen().messages.len(), 1);
}

/// Attack 52: a transaction keeps the routing that it began with.
#[tokio::test]
async fn attack_52_routes_change_between_messages_and_not_within() {
    let (old, new) = (FakeGateway::start(vec![]), FakeGateway::start(vec![]));
    let relay = relay_to(spec(vec![plain("g", old.address)], &[("*", "g")])).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    let next = Routing::build(spec(vec![plain("g", new.address)], &[("*", "g")])).unwrap();
    *relay.relay.directory().routing.lock().unwrap() = Arc::new(next);
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
    *relay.relay.directory().routing.lock().unwrap() = Arc::default();
    assert!(deliver(&mut client).await.starts_with("451 4.3.5"));
    relay.stop().await;
    assert_eq!((old.seen().messages.len(), new.seen().messages.len()), (1, 1));
}

#[tokio::test]
async fn a_group_shares_by_weight() {
    let gateways: Vec<_> = (0..3).map(|_| FakeGateway::start(vec![])).collect();
    let weights = [5, 1, 1];
    let mut configured = Vec::new();
    for (index, gateway) in gateways.iter().enumerate() {
        let mut gateway = plain(&format!("g{index}"), gateway.address);
        gateway.weight = weights[index];
        configured.push(gateway);
    }
    let members = configured.iter().map(|gateway| Member { gateway: gateway.name.clone(), rank: 0 }).collect();
    let group =
        Group { name: "group".parse().unwrap(), description: String::new(), balance: Balance::RoundRobin, members };
    let route = Route::new(Pattern::Default, Target::Group(group.name.clone()));
    let spec = RoutingSpec { gateways: configured, groups: vec![group], routes: vec![route], managed: Vec::new() };
    let relay = relay_to(spec).await;
    let mut client = relay.client().await;
    client.greet().await;
    for _ in 0..14 {
        assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
    }
    let shares: Vec<_> = gateways.iter().map(|gateway| gateway.seen().messages.len()).collect();
    assert_eq!(shares, [10, 2, 2]);
    assert_eq!(relay.stop().await.gateway_connections, 3);
}

fn egress(addresses: &[(&str, Option<&str>)], patterns: &[&str]) -> Egress {
    Egress {
        strategy: Strategy::OnBlock,
        addresses: addresses
            .iter()
            .map(|(address, helo)| EgressAddress {
                address: address.parse().unwrap(),
                helo: helo.map(|helo| helo.parse().unwrap()),
            })
            .collect(),
        block_patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..Egress::default()
    }
}

#[tokio::test]
async fn an_egress_address_that_is_not_ours_is_left_out() {
    let gateway = FakeGateway::start(vec![]);
    let mut with = plain("g", gateway.address);
    with.egress = egress(&[("192.0.2.77", None), ("127.0.0.2", Some("out2.example"))], &[]);
    let relay = relay_to(to(vec![with])).await;
    let mut client = relay.client().await;
    client.greet().await;
    assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
    let suspended = relay.relay.gateways().remove(0).suspended_egress;
    assert_eq!(suspended, ["192.0.2.77".parse::<std::net::IpAddr>().unwrap()]);
    relay.stop().await;
    let seen = gateway.seen();
    assert_eq!(seen.peers[0].ip().to_string(), "127.0.0.2");
    assert_eq!(seen.commands[0], "EHLO out2.example");
}

#[tokio::test]
async fn a_block_list_moves_mail_to_the_next_egress_address() {
    let blocked =
        |stage, code: &str| vec![(stage, Do::Say(format!("{code} 5.7.1 Client Host blocked using zen.example\r\n")))];
    for stage in [Stage::Banner, Stage::Mail, Stage::Rcpt] {
        let gateway = FakeGateway::start(blocked(stage, "554"));
        let good = FakeGateway::start(vec![]);
        let mut with = plain("g", gateway.address);
        with.egress = egress(&[("127.0.0.2", None), ("127.0.0.3", None)], &["blocked using"]);
        let relay = relay_to(to(vec![with, plain("next", good.address)])).await;
        let mut client = relay.client().await;
        client.greet().await;
        // Both are blocked, so the next gateway gets the message.
        assert_eq!(deliver(&mut client).await, "250 2.0.0 queued", "{stage:?}");
        let peers: Vec<_> = gateway.seen().peers.iter().map(|peer| peer.ip().to_string()).collect();
        assert_eq!(peers, ["127.0.0.2", "127.0.0.3"], "{stage:?}");
        assert_eq!(relay.relay.gateways().iter().map(|state| state.suspended_egress.len()).sum::<usize>(), 2);
        relay.stop().await;
        assert_eq!(good.seen().messages.len(), 1);
    }
    let gateway = FakeGateway::start(blocked(Stage::Mail, "554"));
    let mut with = plain("g", gateway.address);
    with.egress = egress(&[("127.0.0.2", None)], &["other words"]);
    check(to(vec![with]), "554 5.7.1 Client Host blocked").await;
    assert_eq!(gateway.seen().connections, 1);
}

/// Attack 48: probes take a gateway out of service and back; meanwhile mail does not wait for it.
#[tokio::test(start_paused = true)]
async fn attack_48_probes_tell_whether_a_gateway_serves() {
    let (first, second) = (FakeGateway::start(vec![]), FakeGateway::start(vec![]));
    let relay = Running::start(settings(), Some("c"), Some(at(&[first.address, second.address]))).await;
    let stop = CancellationToken::new();
    let care = tokio::spawn(tend(Arc::clone(&relay.relay), stop.clone()));
    let up = |relay: &Running| relay.relay.gateways().iter().map(|state| state.up).collect::<Vec<_>>();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(up(&relay), [true, true]);
    assert_eq!(first.seen().commands, ["EHLO relay.example", "QUIT"]);
    first.stop().await;
    tokio::time::sleep(Duration::from_mins(3)).await;
    assert_eq!(up(&relay), [false, true]);
    assert!(relay.relay.gateways()[0].last_error.as_ref().unwrap().starts_with("tcp: "));
    let mut client = relay.client().await;
    client.greet().await;
    assert_eq!(deliver(&mut client).await, "250 2.0.0 queued");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(first.address).unwrap();
    let listener = socket.listen(16).unwrap();
    let greeter = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 g\r\n").await.unwrap();
            let (reader, mut writer) = stream.into_split();
            held.push(tokio::spawn(async move {
                use tokio::io::AsyncBufReadExt as _;
                let mut lines = tokio::io::BufReader::new(reader).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let reply = if line == "QUIT" { "221 bye\r\n" } else { "250 g\r\n" };
                    if writer.write_all(reply.as_bytes()).await.is_err() || line == "QUIT" {
                        return;
                    }
                }
            }));
        }
    });
    tokio::time::sleep(Duration::from_mins(12)).await;
    assert_eq!(up(&relay), [true, true]);
    greeter.abort();
    stop.cancel();
    care.await.unwrap();
    relay.stop().await;
}

#[tokio::test]
async fn a_gateway_is_verified_stage_by_stage() {
    let authority = authority("mx.example");
    let nature = Nature { tls: Some(Arc::clone(&authority.server)), offers: vec!["AUTH PLAIN"], ..Nature::default() };
    let good = FakeGateway::with(nature.clone(), vec![]);
    let relay = Running::start(settings(), Some("c"), None).await;
    let mut with = with_tls(&authority, good.address);
    with.account = Some(account(Mechanism::Plain));
    let report = relay.relay.verify(&with).await;
    let parts: Vec<_> = report.stages.iter().map(|stage| (stage.stage, stage.ok)).collect();
    let all = [
        Part::Dns,
        Part::Tcp,
        Part::Banner,
        Part::Ehlo,
        Part::Starttls,
        Part::Tls,
        Part::Ehlo,
        Part::Auth,
        Part::Mail,
        Part::Rset,
    ];
    assert_eq!(parts, all.map(|part| (part, true)));
    assert!(report.ok);
    let tls = &report.stages[5].text;
    assert!(tls.starts_with("TLSv1_3 ") && tls.ends_with(", the certificate is verified for mx.example"), "{tls}");
    let shown = |report: &VerifyReport| {
        let stage = report.stages.iter().rfind(|stage| stage.stage == Part::Tls).unwrap();
        let [leaf] = &stage.certificates[..] else { panic!("{stage:?}") };
        assert_eq!((&leaf.names[..], leaf.sha256), (&["mx.example".to_owned()][..], authority.pin));
        assert_eq!(
            (leaf.subject.as_str(), leaf.issuer.as_str()),
            ("CN=rcgen self signed cert", "CN=rcgen self signed cert")
        );
        assert!(leaf.not_before < Timestamp::now() && leaf.not_after > Timestamp::now(), "{leaf:?}");
        (stage.ok, stage.text.clone())
    };
    shown(&report);
    assert!(!serde_json::to_string(&report).unwrap().contains("hunter2"));
    let seen = good.until("QUIT", |seen| seen.commands.last().is_some_and(|c| c == "QUIT")).await;
    assert_eq!(seen.commands[seen.commands.len() - 3..], ["MAIL FROM:<>", "RSET", "QUIT"]);

    let last = async |gateway: &Gateway| {
        let report = relay.relay.verify(gateway).await;
        assert!(!report.ok);
        let last = report.stages.last().unwrap().clone();
        assert!(!last.ok);
        format!("{}: {}", last.stage, last.text)
    };
    // Who is not believed is shown all the same.
    let mut unbelieved = with_tls(&authority, good.address);
    unbelieved.verification = Verification::Pin { sha256: Pin([0; 32]) };
    let (ok, text) = shown(&relay.relay.verify(&unbelieved).await);
    assert!(!ok && text.starts_with("invalid peer certificate"), "{text}");
    unbelieved.verification = Verification::None {};
    let (ok, text) = shown(&relay.relay.verify(&unbelieved).await);
    assert!(ok && text.ends_with(", the certificate is not verified"), "{text}");

    let wrong = FakeGateway::with(nature, vec![(Stage::Auth, Do::Say("535 5.7.8 no\r\n".into()))]);
    with.port = wrong.address.port();
    assert_eq!(last(&with).await, "auth: the gateway refused: 535 no");
    with.allow_local = false;
    assert_eq!(last(&with).await, "tcp: 127.0.0.1 is not allowed as the address of a gateway");
    with.address = "169.254.169.254".parse().unwrap();
    assert_eq!(last(&with).await, "tcp: 169.254.169.254 is not allowed as the address of a gateway");
    with.address = "::1".parse().unwrap();
    assert_eq!(last(&with).await, "tcp: ::1 is not allowed as the address of a gateway");
    with.weight = 0;
    assert_eq!(last(&with).await, "choice: weight: must be 1 to 1000");
    let refusing = FakeGateway::start(vec![(Stage::Mail, Do::Say("530 5.7.0 authenticate\r\n".into()))]);
    assert_eq!(last(&plain("g", refusing.address)).await, "mail: the gateway refused: 530 authenticate");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(last(&plain("g", closed)).await.starts_with("tcp: "));
    relay.stop().await;
}

/// Attack 46: mail never goes in circles, whatever a name says.
#[tokio::test]
async fn attack_46_our_own_listener_is_no_gateway() {
    let relay = Running::start(settings(), Some("c"), None).await;
    let mut own = plain("own", relay.address);
    own.address = "localhost".parse().unwrap();
    let routing = Routing::build(to(vec![own])).unwrap();
    *relay.relay.directory().listeners.lock().unwrap() = vec![relay.address];
    *relay.relay.directory().routing.lock().unwrap() = Arc::new(routing);
    let mut client = relay.client().await;
    client.greet().await;
    let reply = deliver(&mut client).await;
    assert!(reply.starts_with("451 4.3.5"), "{reply}");
    assert_eq!(relay.stop().await.sessions_opened, 1);
}

/// A listener whose queue is full: connections to it are neither taken nor refused.
#[tokio::test(start_paused = true)]
async fn attack_41_a_gateway_that_takes_no_connections() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let full = listener.local_addr().unwrap();
    let held = TcpStream::connect(full).await.unwrap();
    let good = FakeGateway::start(vec![]);
    check(at(&[full]), "451 4.4.1").await;
    check(at(&[full, good.address]), "250 2.0.0 queued").await;
    drop((held, listener));
}
