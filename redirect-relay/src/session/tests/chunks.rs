//! Messages that come by BDAT (RFC 3030). Toward the gateway they go by DATA, whether it knows CHUNKING or not.

use super::*;

const ENVELOPE: &str = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n";
const READY: &str = "220, 250, 250 2.1.0, 250 2.1.5";

/// Chunks after an envelope, all in one turn; with their answers.
fn check_chunks(chunks: &str, expected: &str, messages: &[&str]) {
    check(&[HELLO, ENVELOPE, chunks], &format!("{READY}, {expected}"), messages);
    // Nothing of it needs to wait for an answer (RFC 3030 section 4.2).
    check(&[HELLO, &format!("{ENVELOPE}{chunks}")], &format!("{READY}, {expected}"), messages);
}

#[test]
fn a_message_in_chunks() {
    check_chunks("BDAT 3 LAST\r\nx\r\n", "250 2.0.0", &["x\r\n"]);
    check_chunks("BDAT 3\r\nx\r\nBDAT 6 LAST\r\n.\r\nz\r\n", "250 2.0.0, 250 2.0.0", &["x\r\n..\r\nz\r\n"]);
    check_chunks("BDAT 0\r\nBDAT 5 LAST\r\nx\r\ny\r", "250 2.0.0, 550 5.5.2", &[]);
    check_chunks("BDAT 2\r\nx\rBDAT 1\r\n\nBDAT 0 LAST\r\n", "250 2.0.0, 250 2.0.0, 250 2.0.0", &["x\r\n"]);
    check_chunks("BDAT 1 LAST\r\nx", "250 2.0.0", &["x\r\n"]);
}

#[test]
fn a_chunk_may_hold_what_looks_like_commands() {
    let text = "QUIT\r\n.\r\nDATA\r\nBDAT 9\r\n";
    let wire = format!("BDAT {} LAST\r\n{text}NOOP\r\n", text.len());
    check_chunks(&wire, "250 2.0.0, 250 2.0.0", &["QUIT\r\n..\r\nDATA\r\nBDAT 9\r\n"]);
}

#[test]
fn several_messages_in_chunks_in_one_write() {
    let message = format!("{ENVELOPE}BDAT 3 LAST\r\nx\r\n");
    let answers = "250 2.1.0, 250 2.1.5, 250 2.0.0";
    check(&[HELLO, &message.repeat(2)], &format!("220, 250, {answers}, {answers}"), &["x\r\n", "x\r\n"]);
}

#[test]
fn attack_12_smuggling_in_chunks() {
    for form in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\r\n\0.\r\n", "\r\n.\0\r\n"] {
        let text = format!("Subject: x\r\n\r\na{form}MAIL FROM:<evil@x>\r\nRCPT TO:<v@y>\r\nDATA\r\nevil\r\n");
        let wire = format!("BDAT {} LAST\r\n{text}NOOP\r\n", text.len());
        check_chunks(&wire, "550 5.5.2, 250 2.0.0", &[]);
        // Spread over two chunks, of which the second finds no message to continue.
        let (head, tail) = text.split_at(text.len() / 2);
        let wire = format!("BDAT {}\r\n{head}BDAT {} LAST\r\n{tail}NOOP\r\n", head.len(), tail.len());
        check_chunks(&wire, "550 5.5.2, 503 5.5.1, 250 2.0.0", &[]);
    }
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "BDAT 3\r\na\nbRSET\r\n", ENVELOPE, "BDAT 3 LAST\r\nc\r\n"]);
    assert_eq!(rig.messages(), ["c\r\n"]);
    assert_eq!(rig.connections, 2, "the first connection was closed without the dot");
    assert_eq!(rig.records[0].cause, Cause::LineEndings);
}

#[test]
fn attack_13_chunks_without_a_size() {
    for line in ["BDAT", "BDAT x", "BDAT -1", "BDAT 18446744073709551615", "BDAT 99999999999999999999 LAST", "BDAT 1 2"]
    {
        check_chunks(&format!("{line}\r\nRSET\r\n"), "501 5.5.4, end", &[]);
    }
    // More than twice the limit is not swallowed either.
    check_chunks("BDAT 4001\r\n", "552 5.3.4, end", &[]);
    check_chunks("BDAT 18446744073709551614 LAST\r\n", "552 5.3.4, end", &[]);
}

#[test]
fn attack_13_chunks_out_of_order_are_swallowed() {
    check(&[HELLO, "BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"], "220, 250, 503 5.5.1, 250 2.0.0", &[]);
    check(&["BDAT 6\r\nQUIT\r\nNOOP\r\n"], "220, 503 5.5.1, 250 2.0.0", &[]);
    check(&[HELLO, "MAIL FROM:<a@b>\r\nBDAT 6\r\nQUIT\r\nNOOP\r\n"], "220, 250, 250 2.1.0, 503 5.5.1, 250 2.0.0", &[]);
    let answers = [("RCPT", "550 5.1.1 no\r\n")];
    let turns = [HELLO, ENVELOPE, "BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"];
    check_with(&answers, &turns, "220, 250, 250 2.1.0, 550 5.1.1, 554 5.5.1, 503 5.5.1, 250 2.0.0", &[]);
    let turns = ["HELO pc\r\n", ENVELOPE, "BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"];
    check(&turns, "220, 250, 250 2.1.0, 250 2.1.5, 503 5.5.1, 250 2.0.0", &[]);
}

#[test]
fn attack_13_other_commands_between_chunks() {
    let turns = [HELLO, ENVELOPE, "BDAT 3\r\nx\r\n", "DATA\r\n", "BDAT 0 LAST\r\n"];
    check(&turns, &format!("{READY}, 250 2.0.0, 503 5.5.1, 250 2.0.0"), &["x\r\n"]);
    check_chunks("BDAT 3\r\nx\r\nRCPT TO:<e@f>\r\n", "250 2.0.0, 503 5.5.1", &[]);
    check_chunks("BDAT 3\r\nx\r\nMAIL FROM:<e@f>\r\n", "250 2.0.0, 503 5.5.1", &[]);
    check_chunks("BDAT 3\r\nx\r\nNOOP\r\nBDAT 0 LAST\r\n", "250 2.0.0, 250 2.0.0, 250 2.0.0", &["x\r\n"]);
    let again = format!("BDAT 3\r\nx\r\nRSET\r\n{ENVELOPE}BDAT 3 LAST\r\ny\r\n");
    check_chunks(&again, "250 2.0.0, 250 2.0.0, 250 2.1.0, 250 2.1.5, 250 2.0.0", &["y\r\n"]);
    check_chunks("BDAT 3\r\nx\r\nQUIT\r\n", "250 2.0.0, 221 2.0.0, end", &[]);
}

/// The client's end, at every octet, completes nothing that BDAT LAST did not.
#[test]
fn attack_13_the_end_of_the_client_within_chunks() {
    let wire = format!("{ENVELOPE}BDAT 3\r\nx\r\nBDAT 3 LAST\r\ny\r\n");
    for cut in 0..=wire.len() {
        for gone in [false, true] {
            let mut rig = Rig::new(settings(), FakeGateway::default());
            rig.send(HELLO.as_bytes());
            rig.send(&wire.as_bytes()[..cut]);
            if gone {
                rig.session.on_client_gone(rig.now);
            } else {
                rig.session.on_client_ended(rig.now);
            }
            rig.settle();
            assert!(rig.session.is_done(), "cut at {cut}: {}", rig.transcript());
            let expected: &[&str] = if cut == wire.len() { &["x\r\ny\r\n"] } else { &[] };
            assert_eq!(rig.messages(), expected, "cut at {cut}");
            assert!(!rig.connected, "cut at {cut}");
        }
    }
    // Everything at once, and then the end: the answer is still given.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.session.on_client(wire.as_bytes(), rig.now);
    rig.session.on_client_ended(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 250 2.0.0, end"));
}

#[test]
fn attack_30_size_in_chunks() {
    let line = format!("{}\r\n", "x".repeat(498));
    let chunk = format!("BDAT 500\r\n{line}");
    let whole = format!("{}BDAT 500 LAST\r\n{line}", chunk.repeat(3));
    let ok = "250 2.0.0, 250 2.0.0, 250 2.0.0";
    check_chunks(&whole, &format!("{ok}, 250 2.0.0"), &[&line.repeat(4)]);
    let over = format!("{}BDAT 1 LAST\r\nxNOOP\r\n", chunk.repeat(4));
    check_chunks(&over, &format!("{ok}, 250 2.0.0, 552 5.3.4, 250 2.0.0"), &[]);
}

#[test]
fn attack_16_loops_in_chunks() {
    let text = format!("{}\r\n", "Received: x\r\n".repeat(101));
    check_chunks(&format!("BDAT {} LAST\r\n{text}NOOP\r\n", text.len()), "554 5.4.6, 250 2.0.0", &[]);
}

#[test]
fn the_gateway_refuses_or_is_lost() {
    let turns = [HELLO, ENVELOPE, "BDAT 3\r\nx\r\nBDAT 3 LAST\r\ny\r\nNOOP\r\n"];
    let refused =
        |data| check_with(&[("DATA", data)], &turns, &format!("{READY}, 451 4.3.0, 503 5.5.1, 250 2.0.0"), &[]);
    refused("451 4.3.0 later\r\n");
    let answers = [(".", "554 5.6.0 spam\r\n")];
    check_with(&answers, &turns, &format!("{READY}, 250 2.0.0, 554 5.6.0, 250 2.0.0"), &["x\r\ny\r\n"]);

    // Before 354, between chunks, within a chunk.
    let mut rig = Rig::new(settings(), FakeGateway { answers: vec![("DATA", "")], ..FakeGateway::default() });
    rig.play(&[HELLO, ENVELOPE, "BDAT 3\r\n"]);
    rig.session.on_gateway_closed(rig.now);
    rig.play(&["x\r\n", "BDAT 3 LAST\r\ny\r\n"]);
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2, 503 5.5.1"));

    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "BDAT 3\r\nx\r\n"]);
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    rig.play(&["BDAT 3 LAST\r\ny\r\n", "NOOP\r\n"]);
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 451 4.4.2, 250 2.0.0"));

    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "BDAT 3 LAST\r\nx"]);
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    rig.play(&["\r\n", "NOOP\r\n"]);
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2, 250 2.0.0"));
    assert_eq!(rig.records[0].cause, Cause::GatewayLost);
    assert!(rig.messages().is_empty());
}

#[test]
fn attack_21_a_flood_of_small_chunks() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.send("BDAT 1\r\nx".repeat(300).as_bytes());
    assert!(rig.transcript().ends_with("250 2.0.0, 421 4.7.0, end"));
    assert!(rig.messages().is_empty());
}

#[test]
fn attack_28_a_slow_chunk() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "BDAT 1000 LAST\r\n"]);
    for _ in 0..9 {
        rig.send(b"x");
        rig.pass(Duration::from_secs(40));
    }
    assert_eq!(rig.transcript(), format!("{READY}, 421 4.4.2, end"));
    assert!(rig.messages().is_empty());
}

#[test]
fn attack_45_a_gateway_that_does_not_read_chunks() {
    let mut settings = settings();
    settings.size_max = 1_000_000;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_client(b"BDAT 900000 LAST\r\n", rig.now);
    rig.settle();
    let mut taken = 0;
    while rig.session.wants_client() {
        rig.session.on_client(&[b'x'; READ_MAX], rig.now);
        taken += READ_MAX;
        assert!(taken <= 4 * READ_MAX, "reading stops");
    }
    assert!(rig.session.gateway_out().len() <= TO_GATEWAY_HIGH + READ_MAX);
    rig.settle();
    rig.send(&vec![b'x'; 900_000 - taken]);
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0"));
}

proptest! {
    /// Whatever is sent by BDAT in whatever pieces: a message arrives whole and only after its last chunk.
    #[test]
    fn any_chunks(pieces in proptest::collection::vec(prop_oneof![
        Just(b"MAIL FROM:<a@b>\r\n".to_vec()), Just(b"RCPT TO:<c@d>\r\n".to_vec()), Just(b"RSET\r\n".to_vec()),
        Just(b"BDAT 4\r\nab\r\n".to_vec()), Just(b"BDAT 3 LAST\r\n.\r\n".to_vec()), Just(b"BDAT 2\r\n".to_vec()),
        Just(b"BDAT 0 LAST\r\n".to_vec()), Just(b"DATA\r\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..6),
    ], 0..40)) {
        let mut rig = Rig::new(settings(), FakeGateway::default());
        rig.send(HELLO.as_bytes());
        check_pieces(rig, &pieces, &[b"LAST\r\n", b"\n.\r\n"]);
    }
}
