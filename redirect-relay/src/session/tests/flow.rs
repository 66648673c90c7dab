//! Quotas, the tar-pit and locks, and what a class may refuse of itself.

use std::task::{Context, Waker};

use super::*;
use crate::{
    policy::{Auth, Lock},
    quota::{Quota, Rate},
    tarpit::Tarpit,
};

/// So many in an hour, all at once if need be.
fn only(count: u64) -> Rate {
    Rate::new(1, Duration::from_hours(1), count).unwrap()
}

fn for_subscriber(subscriber_quota: Quota) -> Policy {
    Policy { subscriber_quota, ..Policy::default() }
}

fn rig(policy: Policy) -> Rig {
    let answers = vec![("RCPT TO:<bad", "550 5.1.1 no\r\n")];
    Rig::for_class(settings(), policy, FakeGateway { answers, ..FakeGateway::default() })
}

fn check_quota(quota: Quota, turn: &str, expected: &str) {
    for policy in [for_subscriber(quota), Policy { class_quota: quota, ..Policy::default() }] {
        let mut rig = rig(policy);
        rig.play(&[HELLO, turn]);
        assert_eq!(rig.transcript(), format!("220, 250, {expected}"), "{quota:?}");
        assert!(rig.notes.iter().any(|note| matches!(note, Note::OverQuota(_))), "{quota:?}");
    }
}

#[test]
fn attack_29_quotas_of_messages_and_recipients() {
    check_quota(
        Quota { messages: Some(only(2)), ..Quota::default() },
        &"MAIL FROM:<a@b>\r\nRSET\r\n".repeat(3),
        "250 2.1.0, 250 2.0.0, 250 2.1.0, 250 2.0.0, 450 4.7.1, 250 2.0.0",
    );
    check_quota(
        Quota { recipients: Some(only(2)), ..Quota::default() },
        "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nRCPT TO:<g@h>\r\n",
        "250 2.1.0, 250 2.1.5, 250 2.1.5, 450 4.7.1",
    );
}

#[test]
fn attack_30_a_quota_of_octets() {
    let quota = Quota { octets: Some(only(20)), ..Quota::default() };
    let mut rig = rig(for_subscriber(quota));
    rig.play(&[HELLO, ENVELOPE, "0123456789\r\n.\r\n", ENVELOPE, "0123456789\r\n.\r\n", "MAIL FROM:<a@b>\r\n"]);
    let message = "250 2.1.0, 250 2.1.5, 354, 250 2.0.0";
    assert_eq!(
        rig.transcript(),
        format!("220, 250, {message}, {message}, 450 4.7.1"),
        "one may exceed it, the next waits"
    );
    rig.pass(Duration::from_mins(4));
    rig.said.clear();
    rig.send(b"MAIL FROM:<a@b>\r\n");
    assert_eq!(rig.transcript(), "450 4.7.1", "an octet an hour");
}

#[test]
fn attack_31_a_quota_of_invalid_recipients() {
    check_quota(
        Quota { invalid_recipients: Some(only(2)), ..Quota::default() },
        "MAIL FROM:<a@b>\r\nRCPT TO:<bad@d>\r\nRCPT TO:<c@d>\r\nRCPT TO:<bad@f>\r\nNOOP\r\nRCPT TO:<c@d>\r\n",
        "250 2.1.0, 550 5.1.1, 250 2.1.5, 550 5.1.1, 250 2.0.0, 450 4.7.1",
    );
}

#[test]
fn attack_33_notifications() {
    check_quota(
        Quota { notifications: Some(only(1)), ..Quota::default() },
        "MAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\nMAIL FROM:<a@b>\r\n",
        "250 2.1.0, 250 2.0.0, 450 4.7.1, 250 2.1.0",
    );
    let policy = Policy { notification_recipients_max: Some(1), ..Policy::default() };
    let mut rig = rig(policy);
    rig.play(&[HELLO, "MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nRSET\r\n"]);
    rig.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n");
    let expected = "250 2.1.0, 250 2.1.5, 550 5.7.1, 250 2.0.0, 250 2.1.0, 250 2.1.5, 250 2.1.5";
    assert_eq!(rig.transcript(), format!("220, 250, {expected}"));
    // Where the class does not mind, neither do we.
    check(
        &[HELLO, "MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"],
        "220, 250, 250 2.1.0, 250 2.1.5, 250 2.1.5",
        &[],
    );
}

#[test]
fn attack_36_a_quota_of_failed_auths() {
    let quota = Quota { auth_failures: Some(only(1)), ..Quota::default() };
    let users = crate::auth::Users::default();
    let auth = Auth::Local(Arc::new(users));
    let policy = Policy { auth, auth_cleartext: true, ..for_subscriber(quota) };
    let mut rig = rig(policy);
    rig.play(&[HELLO, "AUTH PLAIN AHVzZXIAd3Jvbmc=\r\nAUTH PLAIN AHVzZXIAd3Jvbmc=\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 535 5.7.8, 454 4.7.0");
}

#[test]
fn attack_29_who_goes_on_is_locked_once() {
    let quota = Quota { messages: Some(only(1)), ..Quota::default() };
    let lock = Some(Lock { strikes: only(2), duration: Duration::from_mins(10) });
    let mut rig = rig(Policy { lock, ..for_subscriber(quota) });
    rig.send(HELLO.as_bytes());
    rig.send("MAIL FROM:<a@b>\r\nRSET\r\n".repeat(9).as_bytes());
    let ok = "250 2.0.0";
    assert_eq!(
        rig.transcript(),
        format!("220, 250, 250 2.1.0, {ok}, 450 4.7.1, {ok}, 450 4.7.1, {ok}, 450 4.7.1, 421 4.7.0, end")
    );
    assert_eq!(rig.locks, [Duration::from_mins(10)]);
}

#[test]
fn sessions_that_are_cut_lead_to_a_lock() {
    let lock = Some(Lock { strikes: only(1), duration: Duration::from_mins(10) });
    let policy = Policy { lock, ..Policy::default() };
    let means = means(10, 1);
    let mut locks = 0;
    for _ in 0..3 {
        let identity = Identity { policy: Arc::new(policy.clone()), ..identity() };
        let now = Instant::now();
        let mut session = Session::new(Arc::new(settings()), identity, Extensions::default(), &means, now);
        session.on_client(b"GET / HTTP/1.1\r\n", now);
        while let Some(action) = session.next_action() {
            locks += u32::from(matches!(action, Action::Lock(_)));
        }
    }
    assert_eq!(locks, 2, "each session after the one that was forgiven");
}

const TARPIT: Tarpit = Tarpit { delay: Duration::from_secs(2), delay_max: Duration::from_secs(5) };

#[test]
fn attack_31_the_tar_pit_delays_answers_and_reads_nothing() {
    let quota = Quota { messages: Some(only(1)), ..Quota::default() };
    let mut rig = rig(Policy { tarpit: Some(TARPIT), ..for_subscriber(quota) });
    rig.send(HELLO.as_bytes());
    rig.send("MAIL FROM:<a@b>\r\nRSET\r\n".repeat(4).as_bytes());
    let so_far = "220, 250, 250 2.1.0, 250 2.0.0";
    assert_eq!(rig.transcript(), so_far);
    assert!(!rig.session.wants_client());
    assert_eq!(rig.session.deadline(), Some(rig.now + Duration::from_secs(2)));
    rig.pass(Duration::from_millis(1999));
    assert_eq!(rig.transcript(), so_far);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.transcript(), format!("{so_far}, 450 4.7.1, 250 2.0.0"));
    rig.pass(Duration::from_secs(4));
    assert_eq!(rig.transcript(), format!("{so_far}, 450 4.7.1, 250 2.0.0, 450 4.7.1, 250 2.0.0"));
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.said.matches("450 4.7.1").count(), 3, "never longer than the cap");
    assert!(rig.session.wants_client());
    assert_eq!(
        rig.session.deadline(),
        Some(rig.now + Timeouts::default().command),
        "and the client has its time again"
    );
}

#[test]
fn attack_31_errors_and_refused_recipients_are_slow() {
    let policy = Policy { tarpit: Some(TARPIT), ..Policy::default() };
    let mut rig = rig(policy.clone());
    rig.send("FOO\r\n".repeat(11).as_bytes());
    assert_eq!(rig.said.matches("500 5.5.2").count(), 9);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.said.matches("500 5.5.2").count(), 10);

    let mut rig = self::rig(policy);
    rig.send(HELLO.as_bytes());
    rig.send(b"MAIL FROM:<a@b>\r\n");
    for _ in 0..12 {
        rig.send(b"RCPT TO:<bad@d>\r\n");
    }
    assert_eq!(rig.said.matches("550 5.1.1").count(), 9);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.said.matches("550 5.1.1").count(), 10);
}

#[test]
fn attack_56_a_lost_place_ends_the_session_at_once() {
    let quota = Quota { messages: Some(only(1)), ..Quota::default() };
    let policy = Arc::new(Policy { tarpit: Some(TARPIT), ..for_subscriber(quota) });
    let places = Places::new(1);
    let means = |places: &Arc<Places>| Means { places: Arc::clone(places), ..means(10, 1) };
    let now = Instant::now();
    let slow = || {
        let identity = Identity { policy: Arc::clone(&policy), ..identity() };
        let mut session = Session::new(Arc::new(settings()), identity, Extensions::default(), &means(&places), now);
        session.client_sent(session.client_out().len(), now);
        session.on_client(HELLO.as_bytes(), now);
        session.on_client("MAIL FROM:<a@b>\r\nRSET\r\n".repeat(2).as_bytes(), now);
        session.on_routing(routing(true), now);
        assert!(session.is_held());
        session
    };
    let mut cx = Context::from_waker(Waker::noop());
    let mut first = slow();
    assert!(first.poll_place_lost(&mut cx).is_pending());
    let second = slow();
    assert!(first.poll_place_lost(&mut cx).is_ready());
    first.on_place_lost(now);
    assert!(String::from_utf8_lossy(first.client_out()).ends_with("421 4.7.0 Too busy, try again later\r\n"));
    first.client_sent(first.client_out().len(), now);
    let mut notes = Vec::new();
    while let Some(action) = first.next_action() {
        if let Action::Note(note) = action {
            notes.push(note);
        }
    }
    assert!(notes.contains(&Note::PlaceLost));
    assert!(first.is_done());
    assert!(second.poll_place_lost(&mut cx).is_pending());
    assert_eq!(places.count(), 1);
    drop(second);
    assert_eq!(places.count(), 0);
}

#[test]
fn a_client_that_leaves_the_tar_pit_frees_its_place() {
    let quota = Quota { messages: Some(only(1)), ..Quota::default() };
    for shutdown in [false, true] {
        let mut rig = rig(Policy { tarpit: Some(TARPIT), ..for_subscriber(quota) });
        rig.send(HELLO.as_bytes());
        rig.send("MAIL FROM:<a@b>\r\nRSET\r\n".repeat(2).as_bytes());
        assert_eq!(rig.session.places.count(), 1);
        if shutdown {
            rig.session.on_shutdown(rig.now);
        } else {
            rig.session.on_client_gone(rig.now);
        }
        rig.settle();
        assert!(rig.session.is_done());
        assert_eq!(rig.session.places.count(), 0);
    }
}

#[test]
fn attack_15_long_lines_by_policy() {
    let rig_after = |body: &str, cut: usize| {
        let policy = Policy { refuse_long_lines: true, ..Policy::default() };
        let mut rig = rig(policy);
        rig.play(&[HELLO, ENVELOPE]);
        rig.send(&body.as_bytes()[..cut]);
        rig.send(&body.as_bytes()[cut..]);
        rig.transcript()
    };
    let good = format!("{}\r\nx\r\n.\r\n", "x".repeat(998));
    let bad = format!("{}\r\n.\r\n", "x".repeat(999));
    for cut in [0, 1, 500, 997, 998, 999, 1000, 1001] {
        assert_eq!(rig_after(&good, cut), format!("{READY}, 250 2.0.0"), "{cut}");
        assert_eq!(rig_after(&bad, cut), format!("{READY}, 550 5.6.0"), "{cut}");
    }
}

#[test]
fn attack_32_literals_by_policy() {
    let mut rig = rig(Policy { refuse_literals: true, ..Policy::default() });
    rig.play(&[
        HELLO,
        "MAIL FROM:<a@[192.0.2.1]>\r\nRCPT TO:<a@[192.0.2.1]>\r\nRCPT TO:<a@[IPv6:::1]>\r\nRCPT TO:<a@b>\r\n",
    ]);
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 550 5.7.1, 550 5.7.1, 250 2.1.5");
}
