//! Sessions from their first octet to their last: who gets one, how it ends, what it may hold up.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redirect_relay::{Directory, Identity, Lock, Policy, Quota, Rate, Relay, Settings, route::Routing, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::support::{BODY, Client, Do, FakeGateway, Running, Site, Stage, at, settings};

#[tokio::test]
async fn a_source_without_a_class_is_refused() {
    let relay = Running::start(settings(), None, None).await;
    let mut client = relay.client().await;
    client.expect("554 5.7.1").await;
    client.ended().await;
    assert_eq!(relay.stop().await.sessions_refused, 1);
}

#[tokio::test]
async fn attack_19_early_talkers() {
    let mut settings = settings();
    settings.timeouts.greet_pause = Duration::from_secs(1);
    let relay = Running::start(settings, Some("c"), None).await;
    let mut client = relay.client().await;
    client.send("EHLO pc\r\n").await;
    client.expect("554 5.5.0").await;
    client.ended().await;
    assert_eq!(relay.stop().await.sessions_cut, 1);
}

/// Without a pause, who has talked by the time of the banner is caught all the same.
#[tokio::test]
async fn attack_19_early_talkers_without_a_pause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap()).await;
    client.send("EHLO pc\r\n").await;
    let relay = std::sync::Arc::new(Relay::new(settings(), Slow(Duration::ZERO)));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(listener, relay, shutdown.clone()));
    client.expect("554 5.5.0").await;
    client.ended().await;
    shutdown.cancel();
    task.await.unwrap();
}

/// Answers after a while.
struct Slow(Duration);

impl Directory for Slow {
    async fn identify(&self, peer: SocketAddr, local: SocketAddr) -> Option<Identity> {
        tokio::time::sleep(self.0).await;
        Some(Identity {
            client: redirect_relay::ClientAddr::new(peer),
            original: redirect_relay::OriginalDst::new(local),
            class: "c".into(),
            policy: std::sync::Arc::default(),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::default()
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_does_not_answer() {
    let start = async |wait: Duration| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = std::sync::Arc::new(Relay::new(settings(), Slow(wait)));
        tokio::spawn(run(listener, relay, CancellationToken::new()));
        Client::connect(address).await
    };
    let mut client = start(Duration::from_hours(1)).await;
    client.expect("421 4.3.0").await;
    client.ended().await;

    let mut client = start(Duration::ZERO).await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example>", "250").await;
    client.ask("RCPT TO:<c@d.example>", "451 4.3.5").await;
}

/// The last reply arrives although the client has sent more than was read.
#[tokio::test]
async fn attack_18_other_protocols_get_their_answer() {
    let relay = Running::start(settings(), Some("c"), None).await;
    for hello in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut client = relay.client().await;
        client.expect("220").await;
        client.send([hello, &vec![b'x'; 100_000]].concat()).await;
        client.expect("500 5.5.2").await;
        client.ended().await;
    }
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_dismissed() {
    let relay = Running::start(settings(), Some("c"), None).await;
    let mut client = relay.client().await;
    client.expect("220").await;
    let begun = Instant::now();
    client.expect("421 4.4.2").await;
    assert!(begun.elapsed() >= Duration::from_mins(5));
    client.ended().await;
    assert_eq!(relay.stop().await.client_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn attack_28_a_slow_body_is_cut() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    for _ in 0..11 {
        client.send("x").await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    client.expect("421 4.4.2").await;
    assert!(gateway.until("the end", |seen| seen.cut == 1).await.messages.is_empty());
}

/// The kernel's buffers fill, then ours, and then the client's own: nothing grows with what it has to send.
#[tokio::test]
async fn attack_45_a_gateway_that_stops_reading_holds_the_client_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut octets = [0; 1024];
        for reply in ["220 g\r\n", "250 g\r\n", "250 ok\r\n", "250 2.1.5 ok\r\n", "354 go\r\n"] {
            stream.write_all(reply.as_bytes()).await.unwrap();
            if !reply.starts_with("354") {
                let _ = stream.read(&mut octets).await.unwrap();
            }
        }
        std::future::pending::<()>().await;
    });
    let mut settings = settings();
    settings.timeouts.gateway_write = Duration::from_secs(2);
    let relay = Running::start(settings, Some("c"), Some(at(&[address]))).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    let line = "x".repeat(998) + "\r\n";
    let mut sent = 0;
    // Loopback sockets hold a few mebibytes; the message never ends.
    while sent < 40_000_000 {
        match tokio::time::timeout(Duration::from_secs(1), client.stream.write_all(line.as_bytes())).await {
            Ok(written) => written.unwrap(),
            Err(_) => break,
        }
        sent += line.len();
    }
    assert!(sent < 20_000_000, "the client was never held back");
    // The gateway's deadline ends the stall; what remains is swallowed, and the answer is given at the true end.
    relay.until("the stall", |counters| counters.gateway_timeouts == 1).await;
    client.send("\r\n.\r\n").await;
    client.expect("451 4.4.2").await;
    relay.stop().await;
}

#[tokio::test]
async fn attack_21_a_client_that_never_reads() {
    let mut settings = settings();
    settings.timeouts.client_write = Duration::from_secs(1);
    settings.limits.commands_max = u32::MAX;
    let relay = Running::start(settings, Some("c"), None).await;
    let mut client = relay.client().await;
    client.expect("220").await;
    let (_read, mut write) = client.stream.into_inner().into_split();
    let flood = "NOOP\r\n".repeat(10_000);
    let flooding = tokio::spawn(async move { while write.write_all(flood.as_bytes()).await.is_ok() {} });
    relay.until("the flood's end", |counters| counters.client_timeouts == 1).await;
    relay.until("no session", |counters| counters.sessions_active == 0).await;
    flooding.await.unwrap();
    relay.stop().await;
}

#[tokio::test]
async fn attack_38_resets_in_every_state_leave_nothing_behind() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    for state in 0..5 {
        let mut client = relay.client().await;
        if state > 0 {
            client.greet().await;
        }
        if state > 1 {
            client.send("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n").await;
        }
        if state > 2 {
            client.send("DATA\r\n").await;
        }
        if state > 3 {
            client.send("x\r\n").await;
        }
        socket2::SockRef::from(client.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        relay.until("no session", |counters| counters.sessions_active == 0).await;
    }
    assert!(gateway.seen().messages.is_empty());
    relay.stop().await;
}

#[tokio::test]
async fn attack_39_a_client_that_leaves_after_the_dot_has_sent_its_message() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    client.send(format!("{BODY}.\r\n")).await;
    drop(client);
    relay.until("the message", |counters| counters.messages_accepted == 1).await;
    relay.stop().await;
    assert_eq!(gateway.seen().messages.len(), 1);
}

#[tokio::test]
async fn shutdown_waits_for_messages_and_not_for_idle_clients() {
    let gateway = FakeGateway::start(vec![]);
    let mut long = settings();
    long.drain = Duration::from_mins(1);
    let relay = Running::start(long, Some("c"), Some(at(&[gateway.address]))).await;
    let mut idle = relay.client().await;
    idle.greet().await;
    let mut busy = relay.client().await;
    busy.greet().await;
    busy.envelope().await;
    relay.shutdown.cancel();
    idle.expect("421 4.3.2").await;
    idle.ended().await;
    drop(idle);
    busy.send(format!("{BODY}.\r\n")).await;
    busy.expect("250 2.0.0 queued").await;
    busy.expect("421 4.3.2").await;
    busy.ended().await;
    assert!(TcpStream::connect(relay.address).await.is_err(), "the listener is closed");
    drop(busy);
    let begun = Instant::now();
    relay.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_ever() {
    let gateway = FakeGateway::start(vec![(Stage::Dot, Do::Hang)]);
    let relay = Running::with(gateway.address).await;
    let mut in_body = relay.client().await;
    in_body.greet().await;
    in_body.envelope().await;
    let mut at_dot = relay.client().await;
    at_dot.greet().await;
    at_dot.envelope().await;
    at_dot.send(format!("{BODY}.\r\n")).await;
    gateway.until("the dot", |seen| seen.messages.len() == 1).await;
    relay.shutdown.cancel();
    in_body.expect("421 4.3.2").await;
    at_dot.expect("451 4.4.2 Outcome unknown").await;
    at_dot.expect("421 4.3.2").await;
    let counters = relay.stop().await;
    assert_eq!((counters.duplicate_risk, counters.messages_aborted), (1, 1));
}

#[tokio::test]
async fn listeners_share_a_relay() {
    let relay = std::sync::Arc::new(Relay::new(Settings { sessions_max: 1, ..settings() }, Slow(Duration::ZERO)));
    let shutdown = CancellationToken::new();
    let mut addresses = Vec::new();
    let mut tasks = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        tasks.push(tokio::spawn(run(listener, std::sync::Arc::clone(&relay), shutdown.clone())));
    }
    let mut first = Client::connect(addresses[1]).await;
    first.greet().await;
    let mut second = Client::connect(addresses[0]).await;
    second.expect("421 4.3.2").await;
    shutdown.cancel();
    first.expect("421 4.3.2").await;
    drop(first);
    for task in tasks {
        task.await.unwrap();
    }
}

/// One subscriber cannot have all the sessions, nor open them as fast as it likes.
#[tokio::test]
async fn attack_29_connections_of_one_subscriber() {
    let rate = |count| Rate::new(1, Duration::from_hours(1), count).unwrap();
    let lock = Some(Lock { strikes: rate(1), duration: Duration::from_mins(10) });
    let policies = [
        Policy { subscriber_sessions_max: Some(2), lock, ..Policy::default() },
        Policy {
            subscriber_quota: Quota { connections: Some(rate(2)), ..Quota::default() },
            lock,
            ..Policy::default()
        },
    ];
    for policy in policies {
        let site = Site {
            class: Some("configured"),
            policy: std::sync::Arc::new(policy),
            original: "198.51.100.9:25".parse().unwrap(),
            routing: Mutex::default(),
            listeners: Mutex::default(),
            locks: AtomicU32::new(0),
        };
        let relay = Running::at_site(settings(), site).await;
        let (mut first, mut second) = (relay.client().await, relay.client().await);
        first.greet().await;
        second.greet().await;
        for locks in [0, 1] {
            let mut third = relay.client().await;
            third.expect("421 4.7.0").await;
            third.ended().await;
            assert_eq!(relay.relay.directory().locks.load(Ordering::Relaxed), locks);
        }
        let counters = relay.stop().await;
        assert_eq!((counters.over_quota, counters.locks), (2, 1));
    }
}
