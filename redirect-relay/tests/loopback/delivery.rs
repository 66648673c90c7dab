//! Whole messages through the driver, on loopback.

use crate::support::{BODY, FakeGateway, Running};

#[tokio::test]
async fn a_message_arrives_byte_for_byte() {
    let gateway = FakeGateway::start(vec![]).await;
    let relay = Running::with(gateway.address).await;
    let mut client = relay.client().await;
    client.greet().await;
    client.envelope().await;
    client.send(format!("{BODY}.\r\n")).await;
    client.expect("250 2.0.0 queued").await;
    client.ask("QUIT", "221 2.0.0").await;
    client.ended().await;
    let seen = gateway.until("QUIT", |seen| seen.commands.last().is_some_and(|c| c == "QUIT")).await;
    assert_eq!(seen.messages, [BODY.as_bytes()]);
    assert_eq!(
        seen.commands,
        ["EHLO relay.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "QUIT"]
    );
    assert!(seen.traces[0].starts_with("Received: from pc.example ([127.0.0.1])\r\n\tby relay.example with ESMTP"));
    assert_eq!(relay.stop().await.messages_accepted, 1);
}
