//! STARTTLS and AUTH as the session sees them; the handshake itself is the driver's, and is tested there.

use std::sync::OnceLock;

use super::*;
use crate::{
    auth::Users,
    certificate::Certificate,
    policy::{Access, Auth, Tls},
};

const PLAIN_GOOD: &str = "AHVzZXIAcGVuY2ls";
const PLAIN_BAD: &str = "AHVzZXIAd3Jvbmc=";

fn certificate() -> Certificate {
    static MADE: OnceLock<Certificate> = OnceLock::new();
    let make = || {
        let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
        Certificate::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap()
    };
    MADE.get_or_init(make).clone()
}

fn users() -> Auth {
    static MADE: OnceLock<Arc<Users>> = OnceLock::new();
    // "pencil", with the fewest iterations (RFC 7677 section 3).
    let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let make = || Arc::new(Users::new([("user".into(), verifier.parse().unwrap())]));
    Auth::Local(Arc::clone(MADE.get_or_init(make)))
}

fn offering(auth: Auth) -> Policy {
    Policy { tls: Tls::Offer(certificate()), auth, ..Policy::default() }
}

fn in_clear(auth: Auth) -> Policy {
    Policy { auth, auth_cleartext: true, ..Policy::default() }
}

fn rig(policy: &Policy) -> Rig {
    Rig::for_class(settings(), policy.clone(), FakeGateway::default())
}

/// Plays the turns with each one cut at every point.
fn check_for(policy: &Policy, turns: &[&str], expected: &str) {
    for (turn, text) in turns.iter().enumerate() {
        for cut in 0..text.len() {
            let mut rig = rig(policy);
            for (i, text) in turns.iter().enumerate() {
                let (head, tail) = text.split_at(if i == turn { cut } else { 0 });
                rig.send(head.as_bytes());
                rig.send(tail.as_bytes());
            }
            assert_eq!(rig.transcript(), expected, "{turns:?}, turn {turn} cut at {cut}");
        }
    }
}

/// A session under TLS.
fn encrypted(policy: &Policy) -> Rig {
    let mut rig = rig(policy);
    rig.play(&[HELLO, "STARTTLS\r\n"]);
    assert_eq!(rig.handshakes, 1);
    rig.session.on_encrypted(rig.now);
    rig.settle();
    rig.said.clear();
    rig
}

#[test]
fn starttls_begins_a_handshake_and_forgets_what_was_said() {
    let policy = offering(Auth::Off);
    check_for(&policy, &[HELLO, "STARTTLS\r\n"], "220, 250, 220 2.0.0");
    let mut rig = encrypted(&policy);
    rig.send(b"MAIL FROM:<a@b>\r\n");
    rig.send(HELLO.as_bytes());
    assert_eq!(rig.transcript(), "503 5.5.1, 250");
    assert!(!rig.said.contains("STARTTLS"), "{}", rig.said);
}

#[test]
fn the_handshake_waits_until_the_client_has_its_answer() {
    let now = Instant::now();
    let identity = Identity { policy: Arc::new(offering(Auth::Off)), ..identity() };
    let mut session = new_session(settings(), identity, now);
    session.on_client(b"STARTTLS\r\n", now);
    let waiting = session.client_out().len();
    session.client_sent(waiting - 1, now);
    assert!(session.next_action().is_none());
    assert!(!session.wants_client(), "the rest is not ours to read in clear");
    session.client_sent(1, now);
    assert!(matches!(session.next_action(), Some(Action::Handshake(_))));
}

#[test]
fn attack_22_commands_in_clear_behind_starttls() {
    let policy = offering(Auth::Off);
    for injected in ["N", "NOOP\r\n", "\r\n", "MAIL FROM:<a@b>\r\n"] {
        let mut rig = rig(&policy);
        rig.send(HELLO.as_bytes());
        rig.send(format!("STARTTLS\r\n{injected}").as_bytes());
        assert_eq!(rig.transcript(), "220, 250, 554 5.5.0, end", "{injected:?}");
        assert_eq!(rig.handshakes, 0);
    }
    // Where TLS is not offered nothing can hide behind it.
    check_line("STARTTLS\r\nNOOP\r\n", "502 5.5.1, 250 2.0.0");
    // What comes in clear later than that is read by the handshake, which it cannot please.
    let mut rig = rig(&policy);
    rig.play(&[HELLO, "STARTTLS\r\n"]);
    rig.send(b"NOOP\r\n");
    rig.session.on_encrypted(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), "220, 250, 220 2.0.0");
}

#[test]
fn attack_24_starttls_out_of_place() {
    let policy = offering(Auth::AcceptAny);
    let mut rig = encrypted(&policy);
    rig.play(&[HELLO, "STARTTLS\r\n", &format!("AUTH PLAIN {PLAIN_GOOD}\r\n")]);
    assert_eq!(rig.transcript(), "250, 503 5.5.1, 235 2.7.0");
    check_for(&policy, &[HELLO, "MAIL FROM:<a@b>\r\nSTARTTLS\r\n"], "220, 250, 250 2.1.0, 503 5.5.1");

    // An AUTH in clear is forgotten by the handshake.
    let policy = Policy { auth_cleartext: true, unauthenticated: Access::new([], false), ..offering(Auth::AcceptAny) };
    let mut rig = self::rig(&policy);
    let auth = format!("AUTH PLAIN {PLAIN_GOOD}\r\n");
    rig.play(&[HELLO, &auth, "STARTTLS\r\n"]);
    rig.session.on_encrypted(rig.now);
    rig.settle();
    rig.play(&[HELLO, "MAIL FROM:<a@b>\r\n", &auth, "MAIL FROM:<a@b>\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 235 2.7.0, 220 2.0.0, 250, 530 5.7.0, 235 2.7.0, 250 2.1.0");
}

#[test]
fn attack_27_handshakes_that_stall_or_fail() {
    let mut rig = rig(&offering(Auth::Off));
    rig.play(&[HELLO, "STARTTLS\r\n"]);
    rig.pass(Timeouts::default().handshake);
    assert!(rig.session.is_done());
    assert_eq!(rig.transcript(), "220, 250, 220 2.0.0, end", "nothing more is said in clear");
    assert_eq!(rig.notes, [Note::ClientTimeout]);

    let mut rig = self::rig(&offering(Auth::Off));
    rig.play(&[HELLO, "STARTTLS\r\n"]);
    rig.session.on_handshake_failed(rig.now);
    rig.settle();
    assert!(rig.session.is_done());
    assert_eq!(rig.notes, [Note::HandshakeFailed]);

    let mut rig = self::rig(&offering(Auth::Off));
    rig.play(&[HELLO, "STARTTLS\r\n"]);
    rig.session.on_drained(rig.now);
    rig.settle();
    assert!(rig.session.is_done());
}

#[test]
fn auth_is_offered_as_the_class_says() {
    let said = |policy: &Policy| {
        let mut rig = rig(policy);
        rig.send(HELLO.as_bytes());
        (rig.said.contains("250-STARTTLS\r\n"), rig.said.contains("250-AUTH PLAIN LOGIN\r\n"))
    };
    assert_eq!(said(&Policy::default()), (false, false));
    assert_eq!(said(&offering(Auth::Off)), (true, false));
    assert_eq!(said(&offering(Auth::AcceptAny)), (true, false));
    assert_eq!(said(&in_clear(Auth::AcceptAny)), (false, true));
    assert_eq!(said(&Policy { auth: Auth::AcceptAny, ..Policy::default() }), (false, false));
    let mut rig = encrypted(&offering(Auth::AcceptAny));
    rig.send(HELLO.as_bytes());
    assert!(rig.said.contains("250-AUTH PLAIN LOGIN\r\n"));
}

#[test]
fn mechanisms() {
    for auth in [Auth::AcceptAny, users()] {
        let policy = in_clear(auth);
        let good = |turns: &[&str], expected: &str| {
            check_for(&policy, &[&[HELLO], turns].concat(), &format!("220, 250, {expected}"));
        };
        good(&[&format!("AUTH PLAIN {PLAIN_GOOD}\r\n")], "235 2.7.0");
        good(&["auth plain\r\n", &format!("{PLAIN_GOOD}\r\n")], "334, 235 2.7.0");
        good(&["AUTH LOGIN\r\n", "dXNlcg==\r\n", "cGVuY2ls\r\n"], "334, 334, 235 2.7.0");
        good(&["AUTH LOGIN dXNlcg==\r\n", "cGVuY2ls\r\n"], "334, 235 2.7.0");
        good(&["AUTH SCRAM-SHA-256 AAAA\r\n"], "504 5.5.4");
    }
    check_for(&in_clear(users()), &[HELLO, &format!("AUTH PLAIN {PLAIN_BAD}\r\n")], "220, 250, 535 5.7.8");
    check_for(&in_clear(Auth::AcceptAny), &[HELLO, &format!("AUTH PLAIN {PLAIN_BAD}\r\n")], "220, 250, 235 2.7.0");
}

#[test]
fn attack_25_no_password_is_asked_for_in_clear() {
    let policy = offering(users());
    check_for(&policy, &[HELLO, &format!("AUTH PLAIN {PLAIN_GOOD}\r\n")], "220, 250, 538 5.7.11");
    check_for(&policy, &[HELLO, "AUTH LOGIN\r\n"], "220, 250, 538 5.7.11");
}

#[test]
fn attack_36_auth() {
    let policy = in_clear(users());
    let bad = |turns: &[&str], expected: &str| {
        check_for(&policy, &[&[HELLO], turns].concat(), &format!("220, 250, {expected}"));
    };
    bad(&["AUTH PLAIN !\r\n"], "501 5.5.2");
    bad(&["AUTH PLAIN\r\n", "AAA\r\n"], "334, 501 5.5.2");
    bad(&["AUTH PLAIN\r\n", "*\r\nNOOP\r\n"], "334, 501 5.7.0, 250 2.0.0");
    bad(&["AUTH LOGIN\r\n", "dXNlcg==\r\n", "*\r\n"], "334, 334, 501 5.7.0");
    bad(&["AUTH\r\n"], "501 5.5.4");
    bad(&["AUTH PLAIN\r\n", "AA\nAA\r\n"], "334, 500 5.5.2, end");
    bad(&["MAIL FROM:<a@b>\r\nAUTH PLAIN\r\n"], "250 2.1.0, 503 5.5.1");
    bad(&[&format!("AUTH PLAIN {PLAIN_GOOD}\r\nAUTH PLAIN {PLAIN_GOOD}\r\n")], "235 2.7.0, 503 5.5.1");
    check_for(&policy, &["AUTH PLAIN\r\n"], "220, 503 5.5.1");
    check_for(&policy, &["HELO pc\r\n", "AUTH PLAIN\r\n"], "220, 250, 503 5.5.1");

    // A response of a megabyte, with and without an end.
    for start in ["AUTH PLAIN ", "AUTH PLAIN\r\n"] {
        let mut rig = rig(&policy);
        rig.play(&[HELLO, start]);
        let mut sent = 0;
        while rig.session.wants_client() {
            rig.send(&[b'A'; 4096]);
            sent += 4096;
            assert!(sent <= 1 << 20);
        }
        assert!(rig.transcript().ends_with("500 5.5.2, end"), "{}", rig.transcript());
        assert!(sent < 20_000, "{sent}");
    }

    // Guessing.
    let mut rig = rig(&policy);
    rig.send(HELLO.as_bytes());
    rig.send(format!("AUTH PLAIN {PLAIN_BAD}\r\n").repeat(5).as_bytes());
    assert_eq!(rig.transcript(), "220, 250, 535 5.7.8, 535 5.7.8, 535 5.7.8, 421 4.7.0, end");
    assert_eq!(rig.notes, [Note::AuthFailed, Note::AuthFailed, Note::AuthFailed, Note::Cut]);
}

/// Nothing of a password is left in the session's memory, however it came.
#[test]
fn credentials_are_overwritten() {
    let policy = in_clear(Auth::AcceptAny);
    for cut in 0..30 {
        let mut rig = rig(&policy);
        rig.send(HELLO.as_bytes());
        let line = format!("AUTH PLAIN {PLAIN_GOOD}\r\nNOO");
        rig.send(&line.as_bytes()[..cut]);
        rig.send(&line.as_bytes()[cut..]);
        assert!(rig.transcript().ends_with("235 2.7.0"));
        let memory = rig.session.input.memory();
        assert!(!memory.windows(8).any(|window| window == &PLAIN_GOOD.as_bytes()[..8]), "cut at {cut}");
        assert!(memory.ends_with(b"NOO"));
    }
}

#[test]
fn a_table_that_does_not_answer_refuses_for_the_moment() {
    let now = Instant::now();
    let identity = Identity { policy: Arc::new(in_clear(users())), ..identity() };
    let mut session = new_session(settings(), identity, now);
    session.on_client(HELLO.as_bytes(), now);
    session.on_client(format!("AUTH PLAIN {PLAIN_GOOD}\r\n").as_bytes(), now);
    session.client_sent(session.client_out().len(), now);
    assert!(matches!(session.next_action(), Some(Action::Verify { .. })));
    assert!(!session.wants_client());
    session.on_verified(Verdict::Unavailable, now);
    assert!(session.client_out().starts_with(b"454 4.7.0"));
    assert!(!session.authenticated);
}

#[test]
fn who_does_not_authenticate_is_on_the_list_or_refused() {
    let only = |prefix: &str| Access::new([(prefix.parse().unwrap(), true)], false);
    let mail = "MAIL FROM:<a@b>\r\n";
    let policy = |unauthenticated| Policy { unauthenticated, ..in_clear(Auth::AcceptAny) };
    check_for(&policy(only("203.0.113.0/24")), &[HELLO, mail], "220, 250, 250 2.1.0");
    check_for(&policy(only("192.0.2.0/24")), &[HELLO, mail], "220, 250, 530 5.7.0");
    let auth = format!("AUTH PLAIN {PLAIN_GOOD}\r\n{mail}");
    check_for(&policy(only("192.0.2.0/24")), &[HELLO, &auth], "220, 250, 235 2.7.0, 250 2.1.0");
    let closed = Policy { unauthenticated: only("192.0.2.0/24"), ..Policy::default() };
    check_for(&closed, &[HELLO, mail], "220, 250, 550 5.7.1");
    let closed = Policy { unauthenticated: only("192.0.2.0/24"), ..offering(Auth::AcceptAny) };
    check_for(&closed, &[HELLO, mail], "220, 250, 530 5.7.0");
}

#[test]
fn the_trace_field_and_the_parameter_tell_of_auth() {
    let mut rig = rig(&in_clear(Auth::AcceptAny));
    let auth = format!("AUTH PLAIN {PLAIN_GOOD}\r\n");
    rig.play(&[HELLO, &auth, "MAIL FROM:<a@b> AUTH=<>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "x\r\n.\r\n"]);
    assert!(String::from_utf8_lossy(&rig.gateway.messages[0]).contains(" with ESMTPA (class"));
    assert_eq!(rig.gateway.commands[0], "MAIL FROM:<a@b>", "who wrote it is not vouched for");
}
