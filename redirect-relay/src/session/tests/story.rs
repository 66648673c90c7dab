//! What goes on record about a message, and what who looks on gets to see.

use super::*;
use crate::{
    record::{GatewayReplies, Status, Times},
    watch::{Line, Seen, Watcher},
};

fn status(text: &str) -> Option<Status> {
    let mut numbers = text.split(['.', ' ']).map(|number| number.parse().unwrap());
    let (code, _, subject, detail) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
    Some(Status { code, subject, detail })
}

#[test]
fn a_message_on_record() {
    let answers = vec![("RCPT TO:<bad", "550 5.1.1 no\r\n"), (".", "250 2.6.0 queued as 7\r\n")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, "MAIL FROM:<a@b> SIZE=7\r\n"]);
    rig.now += Duration::from_secs(1);
    rig.send(b"RCPT TO:<bad@d>\r\nRCPT TO:<c@d>\r\n");
    rig.now += Duration::from_secs(1);
    rig.send(b"DATA\r\n");
    rig.now += Duration::from_secs(1);
    rig.send(b"Hello\r\n");
    rig.now += Duration::from_secs(1);
    rig.send(b".\r\n");
    let s = |seconds| Some(Duration::from_secs(seconds));
    let expected = Record {
        at: jiff::Timestamp::UNIX_EPOCH,
        gateway: Some("g".into()),
        egress: None,
        octets: 7,
        octets_declared: Some(7),
        recipients: 1,
        recipients_refused: 1,
        outcome: Outcome::Accepted,
        cause: Cause::Gateway,
        reply: status("250 2.6.0"),
        gateway_replies: GatewayReplies {
            mail: status("250 2.0.0"),
            recipient: status("250 2.1.5"),
            data: status("354 3.0.0"),
            verdict: status("250 2.6.0"),
        },
        encrypted: false,
        authenticated: false,
        client_gone: false,
        duplicate_risk: false,
        times: Times { gateway_ready: s(0), recipient: s(1), data: s(2), sent: s(4), end: s(4) },
    };
    assert_eq!(*rig.records[0], expected);
    let json = serde_json::to_value(&*rig.records[0]).unwrap();
    assert_eq!(json["reply"], "250 2.6.0");
    assert_eq!(json["times"]["sent_ms"], 4000);
    assert_eq!(json["outcome"], "accepted");
}

/// A transaction that came to nothing is on record with what the client was told.
#[test]
fn refusals_on_record() {
    let answers = vec![("RCPT", "550 5.1.1 alice@d is nobody\r\n")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@d>\r\nRSET\r\n", "MAIL FROM:<a@b>\r\nRSET\r\n"]);
    let [record] = &rig.records[..] else { panic!("one record, for MAIL alone concerns nobody: {:?}", rig.records) };
    assert_eq!((record.outcome, record.recipients, record.recipients_refused), (Outcome::Rejected, 0, 2));
    assert_eq!(record.reply, status("550 5.1.1"));
    assert!(!format!("{record:?}").contains("alice"));
}

/// Everything that was seen so far.
fn seen(watcher: &mut Watcher) -> Vec<std::sync::Arc<Line>> {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };
    let mut lines = Vec::new();
    while let Poll::Ready(seen) = pin!(watcher.next()).poll(&mut Context::from_waker(Waker::noop())) {
        let Seen::Line(line) = seen else { panic!("nothing is missed") };
        lines.push(line);
    }
    lines
}

#[test]
fn a_session_as_it_is_seen() {
    let means = means(10, 1);
    let mut watcher = means.stage.watch("203.0.113.0/24".parse().unwrap()).unwrap();
    let policy = Policy { auth: Auth::AcceptAny, auth_cleartext: true, ..Policy::default() };
    let answers = vec![("RCPT TO:<bad", "550 5.1.1 bob@d is nobody\r\n")];
    let mut rig = Rig::for_class(settings(), policy.clone(), FakeGateway { answers, ..FakeGateway::default() });
    let identity = Identity { policy: Arc::new(policy), ..identity() };
    rig.session = Session::new(Arc::new(settings()), identity, Extensions::default(), &means, rig.now);
    rig.play(&[
        HELLO,
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
        "MAIL FROM:<alice@b>\r\nRCPT TO:<bad@d>\r\nRCPT TO:<carol@d>\r\n",
    ]);
    rig.play(&["DATA\r\n", "Subject: secret\r\n\r\nsecret\r\n.\r\n", "secret\r\nQUIT\r\n"]);
    let lines = seen(&mut watcher);
    let shown: Vec<_> = lines.iter().map(|line| format!("{:?} {}", line.who, line.text)).collect();
    let expected = [
        "Note dialled 198.51.100.9:25",
        "Relay 220",
        "Client EHLO pc",
        "Relay 250",
        "Client AUTH PLAIN ***",
        "Relay 235 2.7.0",
        "Client MAIL FROM:<***@b>",
        "Relay 250 2.1.0",
        "Client RCPT TO:<***@d>",
        "Client RCPT TO:<***@d>",
        "Note gateway g",
        "Gateway 250 2.0.0 for MAIL",
        "Gateway 550 5.1.1 for RCPT",
        "Relay 550 5.1.1",
        "Gateway 250 2.1.5 for RCPT",
        "Relay 250 2.1.5",
        "Client DATA",
        "Gateway 354 3.0.0 for DATA",
        "Relay 354",
        "Gateway 250 2.0.0 for the message",
        "Relay 250 2.0.0",
        "Note accepted because of gateway, 27 octets",
        "Client what is no command",
        "Relay 500 5.5.2",
        "Client QUIT",
        "Relay 221 2.0.0",
        "Note ends because of client_reset",
    ];
    assert_eq!(shown, expected);
    let all = format!("{lines:?}");
    for private in ["alice", "bob", "carol", "secret", "AGFsaWNl"] {
        assert!(!all.contains(private), "{private}: {all}");
    }
}

/// Nobody can write a record or a line of a log for another.
#[test]
fn attack_57_what_a_client_says_ends_no_line() {
    let means = means(10, 1);
    let mut watcher = means.stage.watch("0.0.0.0/0".parse().unwrap()).unwrap();
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.session = Session::new(Arc::new(settings()), identity(), Extensions::default(), &means, rig.now);
    rig.send(b"EHLO x\x1b[31m\r\n");
    rig.send(b"EHLO \"}{\"outcome\":\"accepted\r\n");
    rig.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<\"x\\\"}\"@d>\r\n");
    for line in seen(&mut watcher) {
        assert!(line.text.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{line:?}");
        let json = serde_json::to_string(&*line).unwrap();
        assert_eq!(json.lines().count(), 1);
    }
}
