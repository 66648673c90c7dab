//! Whole messages through the driver.

use tokio::io::AsyncWriteExt;

use crate::support::{BODY, Client, FakeGateway, Running, settings};

#[tokio::test]
async fn a_message_arrives_byte_for_byte() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    client.ask("QUIT", "221 2.0.0").await;
    client.ended().await;
    let counters = relay.stop().await;
    let seen = gateway.until("QUIT", |seen| seen.commands.last().is_some_and(|c| c == "QUIT")).await;
    assert_eq!(seen.messages, [BODY.as_bytes()]);
    assert_eq!(
        seen.commands,
        ["EHLO relay.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "QUIT"]
    );
    assert!(seen.traces[0].starts_with("Received: from pc.example ([127.0.0.1])\r\n\tby relay.example with ESMTP"));
    assert!(seen.traces[0].contains("(class configured;\r\n\tfor original destination [198.51.100.9]:25);\r\n"));
    assert_eq!((counters.messages_accepted, counters.octets_accepted), (1, BODY.len() as u64));
}

/// As a client stuffs and ends it.
fn wire(message: &str) -> String {
    let stuffed = if message.starts_with('.') { format!(".{message}") } else { message.to_owned() };
    stuffed.replace("\r\n.", "\r\n..") + ".\r\n"
}

/// `messages`, one after the other in one session, cut into segments of `step` octets.
async fn check(messages: &[String], step: usize) {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    for message in messages {
        client.envelope().await;
        for segment in wire(message).as_bytes().chunks(step) {
            client.send(segment).await;
            client.stream.flush().await.unwrap();
        }
        client.expect("250 2.0.0 queued").await;
    }
    let seen = gateway.seen();
    assert!(seen.messages.iter().map(Vec::as_slice).eq(messages.iter().map(String::as_bytes)));
    assert_eq!(seen.connections, 1, "the connection serves the whole session");
    relay.stop().await;
}

#[tokio::test]
async fn messages_of_all_shapes() {
    let shapes: Vec<_> = [
        String::new(),
        "x\r\n".into(),
        "\r\n".into(),
        ".\r\n".into(),
        "..\r\n.x\r\n...\r\n".into(),
        format!("{}\r\n", "x".repeat(998)).repeat(3),
        format!("{}\r\n", ".".repeat(998)).repeat(3),
        format!("{}\r\n", "x".repeat(100_000)),
        ".\r\n".repeat(30_000),
    ]
    .into();
    check(&shapes, usize::MAX >> 1).await;
    check(&shapes[..6], 1).await;
    check(&shapes, 1021).await;
}

#[tokio::test]
async fn ten_mebibytes() {
    let line = |i: usize| format!("{}{i:->70}\r\n", if i.is_multiple_of(3) { "." } else { "" });
    let mut message: String = (0..150_000).map(line).collect();
    message.truncate(10 * 1024 * 1024 - 2);
    message.push_str("\r\n");
    check(&[message], usize::MAX >> 1).await;
}

/// Every octet value but CR, LF and NUL.
#[tokio::test]
async fn eight_bit_octets() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example> BODY=8BITMIME", "250").await;
    client.ask("RCPT TO:<c@d.example>", "250").await;
    client.ask("DATA", "354").await;
    let octets: Vec<u8> = (1..=255).filter(|octet| !matches!(octet, b'\r' | b'\n')).collect();
    client.send([&octets[..], b"\r\n.\r\n"].concat()).await;
    client.expect("250").await;
    assert_eq!(gateway.seen().messages, [[&octets[..], b"\r\n"].concat()]);
    relay.stop().await;
}

#[tokio::test]
async fn a_client_that_half_closes_after_its_last_command_gets_its_answers() {
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    client.send(format!("{BODY}.\r\nQUIT\r\n")).await;
    client.stream.shutdown().await.unwrap();
    client.expect("250 2.0.0 queued").await;
    client.expect("221").await;
    client.ended().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_within_a_body_delivers_nothing() {
    for half_close in [true, false] {
        let gateway = FakeGateway::start(vec![]);
        let relay = Running::with(gateway.address).await;
        let mut client = relay.client().await;
        client.greet().await;
        client.envelope().await;
        client.send(format!("{BODY}.\r")).await;
        if half_close {
            client.stream.shutdown().await.unwrap();
            client.expect("421 4.4.2").await;
        }
        drop(client);
        let seen = gateway.until("the end", |seen| seen.cut == 1).await;
        assert!(seen.messages.is_empty());
        assert_eq!(relay.stop().await.messages_aborted, 1);
    }
}

/// Smuggling on the real wire, toward a gateway that would take any of the forms for an end.
#[tokio::test]
async fn smuggled_messages_never_reach_even_a_lenient_gateway() {
    for form in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r\r\n", "\r\n\0.\r\n", "\r\n.\0\r\n", "\r\r\n.\r\r\n"]
    {
        let gateway = FakeGateway::start(vec![]);
        let relay = Running::with(gateway.address).await;
        let mut client = relay.client().await;
        client.greet().await;
        client.envelope().await;
        client.send(format!("Subject: a\r\n\r\nb{form}MAIL FROM:<evil@x.example>\r\n")).await;
        client.send("RCPT TO:<v@y.example>\r\nDATA\r\nevil\r\n.\r\n").await;
        client.expect("550 5.5.2").await;
        client.ask("NOOP", "250").await;
        let seen = gateway.until("the end", |seen| seen.cut == 1).await;
        assert!(seen.messages.is_empty(), "{form:?}: {seen:?}");
        assert!(!seen.commands.iter().any(|command| command.contains("evil")), "{form:?}");
        assert_eq!(relay.stop().await.smuggling_refused, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_at_once() {
    const SESSIONS: usize = 1000;
    let gateway = FakeGateway::start(vec![]);
    let relay = Running::start(
        redirect_relay::Settings { sessions_max: SESSIONS as u64, ..settings() },
        Some("configured"),
        Some(crate::support::at(&[gateway.address])),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        let mut client = relay.client().await;
        client.greet().await;
        clients.push(client);
    }
    assert_eq!(relay.counters().sessions_active, SESSIONS as u64);
    let mut refused = relay.client().await;
    refused.expect("421 4.3.2").await;
    refused.ended().await;
    let sessions: Vec<_> = clients
        .into_iter()
        .map(|mut client: Client| {
            tokio::spawn(async move {
                client.envelope().await;
                client.send(format!("{BODY}.\r\n")).await;
                client.expect("250 2.0.0 queued").await;
                client.ask("QUIT", "221").await;
            })
        })
        .collect();
    for session in sessions {
        session.await.unwrap();
    }
    assert_eq!(gateway.seen().messages.len(), SESSIONS);
    let counters = relay.stop().await;
    assert_eq!((counters.messages_accepted, counters.sessions_limited), (SESSIONS as u64, 1));
}
