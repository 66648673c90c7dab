//! AUTH by bridge as the session sees it. The gateway of these tests knows the password "pencil", and is away for "away".

use super::*;
use crate::{certificate::Certificate, policy::Tls};

const GOOD: &str = "AUTH PLAIN AHVzZXIAcGVuY2ls\r\n";
const BAD: &str = "AUTH PLAIN AHVzZXIAd3Jvbmc=\r\n";
const AWAY: &str = "AUTH PLAIN AHVzZXIAYXdheQ==\r\n";
const MESSAGE: [&str; 2] = ["MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "x\r\n.\r\n"];

fn policy() -> Policy {
    Policy { auth: Auth::Bridge { allow_unprotected: false }, auth_cleartext: true, ..Policy::default() }
}

fn rig_with(policy: Policy, gateway: FakeGateway) -> Rig {
    Rig::offered(Extensions { bridge: true, ..Extensions::default() }, settings(), policy, gateway)
}

fn rig(gateway: FakeGateway) -> Rig {
    rig_with(policy(), gateway)
}

/// Plays the turns, each one cut at every point.
fn check(turns: &[&str], expected: &str) {
    let turns = [&[HELLO], turns].concat();
    for (turn, text) in turns.iter().enumerate() {
        for cut in 0..text.len() {
            let mut rig = rig(FakeGateway::default());
            for (i, text) in turns.iter().enumerate() {
                let (head, tail) = text.split_at(if i == turn { cut } else { 0 });
                rig.send(head.as_bytes());
                rig.send(tail.as_bytes());
            }
            assert_eq!(rig.transcript(), format!("220, 250, {expected}"), "{turns:?}, turn {turn} cut at {cut}");
        }
    }
}

#[test]
fn the_gateway_says_who_may() {
    check(&[GOOD], "235 2.7.0");
    check(&[BAD], "535 5.7.8");
    check(&[AWAY], "454 4.7.0");
    check(&["AUTH LOGIN\r\n", "dXNlcg==\r\n", "cGVuY2ls\r\n"], "334, 334, 235 2.7.0");
    check(&[BAD, GOOD, GOOD], "535 5.7.8, 235 2.7.0, 503 5.5.1");
    check(&[BAD, BAD, BAD], "535 5.7.8, 535 5.7.8, 535 5.7.8, 421 4.7.0, end");
    let mut rig = rig(FakeGateway::default());
    rig.play(&[HELLO, BAD, AWAY]);
    assert_eq!(rig.notes, [Note::AuthFailed, Note::GatewayUnreachable(nothing_left())]);
}

#[test]
fn all_mail_goes_by_the_connection_that_the_client_logged_in_by() {
    let mut rig = rig(FakeGateway::default());
    rig.play(&[HELLO, GOOD, MESSAGE[0], MESSAGE[1]]);
    assert_eq!((rig.connections, rig.connected, rig.pooled), (1, true, false), "it is nobody else's");
    rig.play(&["RSET\r\nNOOP\r\n", HELLO, MESSAGE[0], MESSAGE[1], "QUIT\r\n"]);
    let message = "250 2.1.0, 250 2.1.5, 354, 250 2.0.0";
    let expected = format!("220, 250, 235 2.7.0, {message}, 250 2.0.0, 250 2.0.0, 250, {message}, 221 2.0.0, end");
    assert_eq!(rig.transcript(), expected);
    assert_eq!((rig.connections, rig.pooled, rig.gateway.messages.len()), (1, false, 2));
    assert_eq!(rig.gateway.commands.last().unwrap(), "QUIT");
    assert!(String::from_utf8_lossy(&rig.gateway.messages[0]).contains(" with ESMTPA (class"));
    assert!(rig.records.iter().all(|record| record.authenticated && record.gateway.as_deref() == Some("g")));
}

#[test]
fn a_connection_of_before_is_none_of_the_clients_own() {
    let mut rig = rig(FakeGateway::default());
    rig.play(&[HELLO, MESSAGE[0], MESSAGE[1], GOOD, MESSAGE[0], MESSAGE[1]]);
    assert_eq!((rig.connections, rig.connected, rig.gateway.messages.len()), (2, true, 2));
    // It may still be busy: what it says does not come to the client's own.
    let mut rig = self::rig(FakeGateway { answers: vec![("RSET", "")], ..FakeGateway::default() });
    rig.play(&[HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\n", GOOD]);
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 250 2.1.5, 250 2.0.0, 235 2.7.0");
    assert_eq!(rig.connections, 2);
}

#[test]
fn a_connection_that_is_lost_ends_the_session() {
    let mut rig = rig(FakeGateway::default());
    rig.play(&[HELLO, GOOD, MESSAGE[0], MESSAGE[1]]);
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    rig.play(&["NOOP\r\n", "MAIL FROM:<a@b>\r\n"]);
    assert!(rig.transcript().ends_with("250 2.0.0, 250 2.0.0, 421 4.4.2, end"), "{}", rig.transcript());
    assert_eq!(rig.connections, 1, "nobody has the credentials for another one");

    // In the midst of a message too, whatever the client was told by then.
    for (turns, expected) in [
        (&["MAIL FROM:<a@b>\r\n"][..], "250 2.1.0, 451 4.4.2"),
        (&["MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"], "250 2.1.0, 250 2.1.5, 451 4.4.2"),
    ] {
        let mut rig = self::rig(FakeGateway::default());
        rig.play(&[HELLO, GOOD]);
        rig.play(turns);
        rig.session.on_gateway_closed(rig.now);
        rig.settle();
        rig.play(&["RCPT TO:<e@f>\r\n", "RSET\r\n", "MAIL FROM:<a@b>\r\n"]);
        assert_eq!(rig.transcript(), format!("220, 250, 235 2.7.0, {expected}, 250 2.0.0, 421 4.4.2, end"));
        assert_eq!(rig.connections, 1);
    }
    // A body that we refuse leaves half a message behind.
    let mut rig = self::rig(FakeGateway::default());
    rig.play(&[HELLO, GOOD, MESSAGE[0], "x\n\r\n.\r\n", "MAIL FROM:<a@b>\r\n"]);
    assert!(rig.transcript().ends_with("550 5.5.2, 421 4.4.2, end"), "{}", rig.transcript());
    assert_eq!(rig.gateway.messages.len(), 0);
}

#[test]
fn nothing_is_tried_elsewhere() {
    let answers = vec![("MAIL", "451 4.3.0 busy\r\n")];
    let mut rig = rig(FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, GOOD, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 235 2.7.0, 250 2.1.0, 451 4.3.0");
    assert_eq!(rig.connections, 1);
    // Nor is it when the gateway is to get no more messages.
    let mut rig = self::rig(FakeGateway::default());
    rig.play(&[HELLO, GOOD]);
    rig.gateway_exists = false;
    rig.play(&["MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", "RSET\r\n", "MAIL FROM:<a@b>\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 235 2.7.0, 250 2.1.0, 451 4.4.2, 250 2.0.0, 421 4.4.2, end");
    assert_eq!((rig.connections, rig.connected), (1, false));
}

#[test]
fn it_is_offered_where_a_password_may_go() {
    let without = |policy: Policy, turns: &[&str]| {
        let mut rig = Rig::for_class(settings(), policy, FakeGateway::default());
        rig.play(&[HELLO]);
        assert!(!rig.said.contains("AUTH"), "{}", rig.said);
        rig.play(turns);
        rig.transcript()
    };
    assert_eq!(without(policy(), &[GOOD]), "220, 250, 502 5.5.1");
    let closed = Policy { unauthenticated: crate::policy::Access::new([], false), ..policy() };
    assert_eq!(without(closed.clone(), &["MAIL FROM:<a@b>\r\n"]), "220, 250, 550 5.7.1");
    let mut rig = rig_with(closed, FakeGateway::default());
    rig.play(&[HELLO]);
    assert!(rig.said.contains("250-AUTH PLAIN LOGIN\r\n"), "{}", rig.said);
    rig.play(&["MAIL FROM:<a@b>\r\n", GOOD, "MAIL FROM:<a@b>\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 530 5.7.0, 235 2.7.0, 250 2.1.0");
}

/// What was said before the handshake counts for nothing, and so does the connection.
#[test]
fn attack_24_a_login_in_clear_is_forgotten() {
    let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
    let certificate =
        Certificate::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut rig = rig_with(Policy { tls: Tls::Offer(certificate), ..policy() }, FakeGateway::default());
    rig.play(&[HELLO, GOOD, "STARTTLS\r\n"]);
    rig.session.on_encrypted(rig.now);
    rig.settle();
    assert_eq!((rig.connections, rig.connected, rig.pooled), (1, false, false));
    rig.play(&[HELLO, MESSAGE[0], MESSAGE[1]]);
    assert_eq!(rig.connections, 2);
    assert!(String::from_utf8_lossy(&rig.gateway.messages[0]).contains(" with ESMTPS (class"));
}

/// The client is told whether it is known, or not at all; and an answer that comes late is for nobody.
#[test]
fn a_gateway_that_takes_its_time() {
    let now = Instant::now();
    let identity = Identity { policy: Arc::new(policy()), ..identity() };
    let offered = Extensions { bridge: true, ..Extensions::default() };
    let mut session = Session::new(Arc::new(settings()), identity, offered, &means(1000, 10), now);
    session.on_client(HELLO.as_bytes(), now);
    session.on_client(GOOD.as_bytes(), now);
    session.client_sent(session.client_out().len(), now);
    assert!(matches!(session.next_action(), Some(Action::Hangup { .. })));
    let Some(Action::Bridge { claim, until, introduction, .. }) = session.next_action() else { panic!("no bridge") };
    assert_eq!((until, introduction.helo.as_str()), (now + Timeouts::default().open, "pc"));
    assert_eq!(Arc::strong_count(&claim), 1, "the session keeps none of it");
    assert!(!format!("{claim:?}").contains("pencil"));
    assert!(!session.wants_client());
    session.on_drained(now);
    session.on_bridged(Ok((Target::Gateway("g".parse().unwrap()), granted(false, false))), now);
    assert!(session.gateway_out().is_empty() && session.bridged.is_none());
    assert!(matches!(session.next_action(), Some(Action::Hangup { .. })));
}
