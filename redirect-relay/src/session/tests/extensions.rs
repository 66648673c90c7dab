//! What EHLO offers, and that each offer is kept: toward gateways that do as much and gateways that do not.

use super::*;

const ALL: Extensions =
    Extensions { size_max: 1500, eight_bit_mime: true, smtputf8: true, dsn: true, one_domain: true, bridge: false };

fn rig(extensions: Extensions, plain: bool) -> Rig {
    Rig::offered(extensions, settings(), Policy::default(), FakeGateway { plain, ..FakeGateway::default() })
}

/// With everything offered: the replies after EHLO, and what the gateway was told, toward one with and one without.
fn check_offered(turn: &str, [with, without]: [(&str, &str); 2]) {
    for (plain, (expected, commands)) in [(false, with), (true, without)] {
        for cut in 0..turn.len() {
            let mut rig = rig(ALL, plain);
            rig.send(HELLO.as_bytes());
            rig.send(&turn.as_bytes()[..cut]);
            rig.send(&turn.as_bytes()[cut..]);
            assert_eq!(rig.transcript(), format!("220, 250, {expected}"), "{turn:?}, plain {plain}, cut at {cut}");
            assert_eq!(rig.gateway.commands.join("|"), commands, "{turn:?}, plain {plain}");
        }
    }
}

#[test]
fn offers() {
    let said = |extensions, hello: &str| {
        let mut rig = rig(extensions, false);
        rig.send(hello.as_bytes());
        rig.said.split_once("\r\n").unwrap().1.replace("\r\n", "|")
    };
    assert_eq!(
        said(Extensions::default(), HELLO),
        "250-relay.example|250-PIPELINING|250-SIZE 2000|250-8BITMIME|250-LIMITS MAILMAX=1000 RCPTMAX=100|\
         250-CHUNKING|250 ENHANCEDSTATUSCODES|"
    );
    assert_eq!(
        said(ALL, HELLO),
        "250-relay.example|250-PIPELINING|250-SIZE 1500|250-8BITMIME|250-SMTPUTF8|250-DSN|\
         250-LIMITS MAILMAX=1000 RCPTMAX=100 RCPTDOMAINMAX=1|250-CHUNKING|250 ENHANCEDSTATUSCODES|"
    );
    assert_eq!(said(ALL, "HELO pc\r\n"), "250 relay.example|");
}

#[test]
fn the_gateways_size_is_the_clients() {
    check_offered("MAIL FROM:<a@b> SIZE=1501\r\n", [("552 5.3.4", ""); 2]);
}

#[test]
fn delivery_status_notifications() {
    check_offered(
        "MAIL FROM:<a@b> RET=HDRS ENVID=QQ314159\r\nRCPT TO:<c@d> NOTIFY=DELAY,failure ORCPT=rfc822;Bob@Example.COM\r\n",
        [
            (
                "250 2.1.0, 250 2.1.5",
                "MAIL FROM:<a@b> RET=HDRS ENVID=QQ314159|RCPT TO:<c@d> NOTIFY=FAILURE,DELAY ORCPT=rfc822;Bob@Example.COM",
            ),
            ("250 2.1.0, 250 2.1.5", "MAIL FROM:<a@b>|RCPT TO:<c@d>"),
        ],
    );
    check(&["HELO pc\r\n", "MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\n"], "220, 250, 250 2.1.0, 555 5.5.4", &[]);
}

#[test]
fn internationalized_mail() {
    check_offered(
        "MAIL FROM:<\u{3b4}@b> SMTPUTF8 BODY=8BITMIME\r\nRCPT TO:<\u{3b5}@b\u{fc}cher.example>\r\n",
        [
            (
                "250 2.1.0, 250 2.1.5",
                "MAIL FROM:<\u{3b4}@b> BODY=8BITMIME SMTPUTF8|RCPT TO:<\u{3b5}@b\u{fc}cher.example>",
            ),
            ("250 2.1.0, 554 5.6.3", ""),
        ],
    );
    check_offered(
        "MAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<c@d>\r\n",
        [("250 2.1.0, 250 2.1.5", "MAIL FROM:<a@b> SMTPUTF8|RCPT TO:<c@d>"), ("250 2.1.0, 550 5.6.7", "")],
    );
}

/// An address outside ASCII needs the parameter, also where SMTPUTF8 is offered.
#[test]
fn attack_17_utf8_without_the_parameter() {
    check_offered("MAIL FROM:<\u{3b4}@b>\r\n", [("553 5.6.7", ""); 2]);
    check_offered(
        "MAIL FROM:<a@b>\r\nRCPT TO:<\u{3b4}@b>\r\nRCPT TO:<c@d>\r\n",
        [("250 2.1.0, 553 5.6.7, 250 2.1.5", "MAIL FROM:<a@b>|RCPT TO:<c@d>"); 2],
    );
}

/// The class offers it, whatever its gateways can do; routes and gateways are asked with it.
#[test]
fn priorities_of_messages() {
    for (plain, expected) in [(false, "MAIL FROM:<a@b> MT-PRIORITY=-3"), (true, "MAIL FROM:<a@b>")] {
        let policy = Policy { mt_priority: true, ..Policy::default() };
        let gateway = FakeGateway { plain, ..FakeGateway::default() };
        let mut rig = Rig::for_class(settings(), policy, gateway);
        rig.play(&[HELLO, "MAIL FROM:<a@b> MT-PRIORITY=-3\r\nRCPT TO:<c@d>\r\nDATA\r\n", "x\r\n.\r\n"]);
        assert!(rig.said.contains("\r\n250-MT-PRIORITY\r\n"), "{}", rig.said);
        assert_eq!(rig.gateway.commands[0], expected);
        let message = String::from_utf8(rig.gateway.messages.remove(0)).unwrap();
        assert!(message.contains("with ESMTP PRIORITY -3 (class"), "{message}");
    }
    check_line("MAIL FROM:<a@b> MT-PRIORITY=1\r\n", "555 5.5.4");
}

/// Our own refusals wait for the answers to what came before them.
#[test]
fn own_refusals_keep_their_turn() {
    let answers = vec![("RCPT TO:<bad", "550 5.1.1 no\r\n")];
    let policy = Policy { refuse_literals: true, ..Policy::default() };
    let mut rig = Rig::offered(ALL, settings(), policy, FakeGateway { answers, ..FakeGateway::default() });
    rig.send(HELLO.as_bytes());
    rig.send(
        "MAIL FROM:<a@b>\r\nRCPT TO:<bad@d>\r\nRCPT TO:<\u{3b4}@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<a@[192.0.2.1]>\r\n"
            .as_bytes(),
    );
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 550 5.1.1, 553 5.6.7, 250 2.1.5, 550 5.7.1");
}

#[test]
fn attack_17_octets_that_are_no_utf8() {
    let mut rig = rig(ALL, false);
    rig.send(HELLO.as_bytes());
    rig.send(b"MAIL FROM:<\xff@b> SMTPUTF8\r\nMAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<\xc3@b>\r\n");
    assert_eq!(rig.transcript(), "220, 250, 501 5.5.2, 250 2.1.0, 501 5.5.2");
}

#[test]
fn attack_35_parameters_are_offered_or_refused() {
    check_line("MAIL FROM:<a@b> SMTPUTF8\r\n", "555 5.5.4");
    check_line("MAIL FROM:<a@b> RET=FULL\r\n", "555 5.5.4");
    check_line("MAIL FROM:<a@b> ENVID=x\r\n", "555 5.5.4");
    check(&["HELO pc\r\n", "MAIL FROM:<a@b> BODY=7BIT\r\n"], "220, 250, 555 5.5.4", &[]);
    check_offered("MAIL FROM:<a@b> RET=FULL RET=FULL\r\n", [("501 5.5.4", ""); 2]);
}

#[test]
fn the_limit_of_messages_is_kept() {
    let mut settings = settings();
    settings.limits.messages_max = 2;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.send("MAIL FROM:<a@b>\r\nRSET\r\n".repeat(3).as_bytes());
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 250 2.0.0, 250 2.1.0, 250 2.0.0, 421 4.7.0, end");
    assert!(rig.said.contains("MAILMAX=2 "));
}
