//! Gateways that fail at every stage, in every way. The client gets an answer that is true, in time.

use std::time::Duration;

use tokio::{net::TcpListener, time::Instant};

use crate::support::{BODY, Do, FakeGateway, Running, Stage, at, settings};

fn say(text: &str) -> Do {
    Do::Say(text.to_owned())
}

/// The gateway does `act` at `stage`; RCPT is answered with `rcpt`, and if that is 250, DATA with `data`, and if that is
/// 354, the dot with `dot`. Afterwards the session still works.
async fn check(stage: Stage, act: Do, rcpt: &str, data: &str, dot: &str) {
    let case = format!("{stage:?} {act:?}");
    let gateway = FakeGateway::start(vec![(stage, act)]);
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
    let begun = Instant::now();
    let said = |reply: String, expected: &str| assert!(reply.starts_with(expected), "{case}: {expected:?} {reply:?}");
    let mut reply = client.ask("RCPT TO:<c@d.example>", "").await;
    said(reply.clone(), rcpt);
    if reply.starts_with("250") {
        reply = client.ask("DATA", "").await;
        said(reply.clone(), data);
    }
    if reply.starts_with("354") {
        client.send(BODY).await;
        if stage == Stage::Body {
            relay.until("the loss of the gateway", |counters| counters.gateway_failures == 1).await;
        }
        client.send(format!("{BODY}.\r\n")).await;
        reply = client.reply().await;
        said(reply.clone(), dot);
    }
    let limit = Duration::from_secs(if dot.is_empty() { 300 } else { 600 });
    assert!(begun.elapsed() < limit, "{case}: took {:?}", begun.elapsed());
    let unknown = reply.contains("Outcome unknown");
    assert_eq!(relay.counters().duplicate_risk, u64::from(unknown), "{case}");
    client.ask("RSET", "250 2.0.0").await;
    client.ask("NOOP", "250 2.0.0").await;
    client.ask("QUIT", "221 2.0.0").await;
    relay.stop().await;
    let seen = gateway.seen();
    let delivered = usize::from(unknown || reply.starts_with("250") || stage == Stage::Dot);
    assert_eq!(seen.messages.len(), delivered, "{case}: {seen:?}");
}

#[tokio::test]
async fn refused_or_lost_before_mail() {
    for stage in [Stage::Banner, Stage::Ehlo] {
        check(stage, say("421 4.3.2 closing\r\n"), "451 4.3.2", "", "").await;
        check(stage, Do::Close, "451 4.4.2", "", "").await;
        check(stage, Do::SayAndClose("250-half\r\n".into()), "451 4.4.2", "", "").await;
        check(stage, say("hello\r\n"), "451 4.4.2", "", "").await;
        check(stage, say("220-a\r\n550 b\r\n"), "451 4.4.2", "", "").await;
        check(stage, say("250 bare\n"), "451 4.4.2", "", "").await;
        check(stage, say(&"2".repeat(100_000)), "451 4.4.2", "", "").await;
    }
    check(Stage::Banner, say("554 no service\r\n"), "451 4.3.2", "", "").await;
    check(Stage::Banner, say("220 one\r\n250 two\r\n"), "451 4.4.2", "", "").await;
    check(Stage::Ehlo, say("450 busy\r\n"), "451 4.3.2", "", "").await;
}

#[tokio::test]
async fn a_gateway_without_ehlo_is_spoken_to_with_helo() {
    check(Stage::Ehlo, say("500 what\r\n"), "250", "354", "250 2.0.0 queued").await;
}

#[tokio::test]
async fn refused_or_lost_at_mail() {
    check(Stage::Mail, say("450 4.1.8 later\r\n"), "450 4.1.8 later", "", "").await;
    check(Stage::Mail, say("550 no\r\n"), "550 5.0.0 no", "", "").await;
    check(Stage::Mail, say("421 closing\r\n"), "451 4.0.0 closing", "", "").await;
    check(Stage::Mail, say("354 go\r\n"), "451 4.4.2", "", "").await;
    check(Stage::Mail, Do::Close, "451 4.4.2", "", "").await;
}

#[tokio::test]
async fn refused_or_lost_at_rcpt() {
    check(Stage::Rcpt, say("450 4.2.1 later\r\n"), "450 4.2.1 later", "", "").await;
    check(Stage::Rcpt, say("550-5.1.1 no\r\n550 5.1.1 such user\r\n"), "550-5.1.1 no|550 5.1.1 such user", "", "")
        .await;
    check(Stage::Rcpt, say("421 closing\r\n"), "451 4.0.0 closing", "", "").await;
    check(Stage::Rcpt, say("354 go\r\n"), "451 4.4.2", "", "").await;
    check(Stage::Rcpt, say("250-a\r\n550 b\r\n"), "451 4.4.2", "", "").await;
    check(Stage::Rcpt, say("250 ok\r\n250 extra\r\n"), "250 2.0.0 ok", "451 4.4.2", "").await;
    check(Stage::Rcpt, Do::SayAndClose("250 ok\r\n".into()), "250 2.0.0 ok", "451 4.4.2", "").await;
    check(Stage::Rcpt, say("251 will forward\r\n"), "250 2.0.0 will forward", "354", "250").await;
    check(Stage::Rcpt, Do::Close, "451 4.4.2", "", "").await;
}

#[tokio::test]
async fn refused_or_lost_at_data() {
    check(Stage::Data, say("451 4.3.0 later\r\n"), "250", "451 4.3.0 later", "").await;
    check(Stage::Data, say("554 no\r\n"), "250", "554 5.0.0 no", "").await;
    check(Stage::Data, say("421 closing\r\n"), "250", "451 4.0.0 closing", "").await;
    check(Stage::Data, say("250 ok\r\n"), "250", "451 4.4.2", "").await;
    check(Stage::Data, Do::Close, "250", "451 4.4.2", "").await;
    check(Stage::Data, Do::SayAndClose("354 go\r\n".into()), "250", "354", "451 4.4.2 The connection").await;
}

#[tokio::test]
async fn talked_or_lost_within_the_body() {
    check(Stage::Body, Do::Close, "250", "354", "451 4.4.2 The connection").await;
    check(Stage::Body, Do::SayAndClose("421 closing\r\n".into()), "250", "354", "451 4.4.2 The connection").await;
}

#[tokio::test]
async fn refused_or_lost_after_the_dot() {
    check(Stage::Dot, say("250 ok\r\n"), "250", "354", "250 2.0.0 ok").await;
    check(Stage::Dot, say("250 ok\r\n250 extra\r\n"), "250", "354", "250 2.0.0 ok").await;
    check(Stage::Dot, say("451 4.3.0 later\r\n"), "250", "354", "451 4.3.0 later").await;
    check(Stage::Dot, say("552 5.2.2 full\r\n"), "250", "354", "552 5.2.2 full").await;
    check(Stage::Dot, say("421 closing\r\n"), "250", "354", "451 4.0.0 closing").await;
    check(Stage::Dot, Do::Close, "250", "354", "451 4.4.2 Outcome unknown").await;
    check(Stage::Dot, say("354 go\r\n"), "250", "354", "451 4.4.2 Outcome unknown").await;
    check(Stage::Dot, say("ok\r\n"), "250", "354", "451 4.4.2 Outcome unknown").await;
    check(Stage::Dot, say("250-ok\r\n550 no\r\n"), "250", "354", "451 4.4.2 Outcome unknown").await;
}

#[tokio::test(start_paused = true)]
async fn hangs() {
    for stage in [Stage::Banner, Stage::Ehlo, Stage::Mail, Stage::Rcpt] {
        check(stage, Do::Hang, "451 4.4.2", "", "").await;
    }
    check(Stage::Data, Do::Hang, "250", "451 4.4.2", "").await;
    check(Stage::Dot, Do::Hang, "250", "354", "451 4.4.2 Outcome unknown").await;
}

#[tokio::test]
async fn a_gateway_that_is_down() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let relay = Running::with(closed).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
    client.ask("RCPT TO:<c@d.example>", "451 4.4.1").await;
    client.ask("RCPT TO:<e@d.example>", "451 4.4.1").await;
    client.ask("DATA", "554 5.5.1").await;
    client.ask("QUIT", "221").await;
    let counters = relay.stop().await;
    assert_eq!((counters.messages_deferred, counters.gateway_failures), (1, 1));
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refusing = FakeGateway::start(vec![(Stage::Banner, say("554 no\r\n"))]);
    let good = FakeGateway::start(vec![]);
    let addresses = at(&[closed, refusing.address, good.address]);
    let relay = Running::start(settings(), Some("c"), Some(addresses)).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    relay.stop().await;
    assert_eq!(good.seen().messages, [BODY.as_bytes()]);
}

#[tokio::test]
async fn no_gateway() {
    let relay = Running::start(settings(), Some("c"), None).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
    client.ask("RCPT TO:<c@d.example>", "451 4.3.5").await;
    relay.stop().await;
}
