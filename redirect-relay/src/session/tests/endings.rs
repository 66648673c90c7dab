//! Line endings of old devices, where the class makes them whole.

use super::*;
use crate::policy::LineEndings;

/// The replies after EHLO to each turn, cut at every point, and the messages that the gateway has.
fn check_normalized(turns: &[&str], expected: &str, messages: &[&str]) {
    for (turn, text) in turns.iter().enumerate() {
        for cut in 0..text.len() {
            let policy = Policy { line_endings: LineEndings::Normalize, ..Policy::default() };
            let mut rig = Rig::for_class(settings(), policy, FakeGateway::default());
            rig.send(HELLO.as_bytes());
            for (i, text) in turns.iter().enumerate() {
                let (head, tail) = text.as_bytes().split_at(if i == turn { cut } else { 0 });
                rig.send(head);
                rig.send(tail);
            }
            assert_eq!(rig.transcript(), format!("220, 250, {expected}"), "{turns:?}, turn {turn} cut at {cut}");
            assert_eq!(rig.messages(), messages, "{turns:?}, turn {turn} cut at {cut}");
        }
    }
}

const ACCEPTED: &str = "250 2.1.0, 250 2.1.5, 354, 250 2.0.0";

#[test]
fn a_bare_lf_becomes_a_line_end() {
    let body = "Subject: x\n\n..a\nb\r\n.\r\n";
    let message = "Subject: x\r\n\r\n..a\r\nb\r\n";
    check_normalized(&[ENVELOPE, body], ACCEPTED, &[message]);
    // What follows the end is a command again, and held to CRLF.
    check_normalized(&[ENVELOPE, &format!("{body}NOOP\r\n")], &format!("{ACCEPTED}, 250 2.0.0"), &[message]);
    check_normalized(&[ENVELOPE, &format!("{body}NOOP\n")], &format!("{ACCEPTED}, 500 5.5.2, end"), &[message]);
    check_normalized(
        &["MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", "BDAT 4\r\na\n.\r", "BDAT 3 LAST\r\n\n\nb"],
        "250 2.1.0, 250 2.1.5, 250 2.0.0, 250 2.0.0",
        &["a\r\n..\r\n\r\nb\r\n"],
    );
}

/// Only CRLF.CRLF ends a message: what looks like an end with an LF in it is a line of one dot.
#[test]
fn attacks_1_to_3_ends_with_a_bare_lf_are_text() {
    for form in ["\n.\n", "\n.\r\n", "\r\n.\n"] {
        let body = format!("a{form}MAIL FROM:<evil@x>\r\n.\r\n");
        check_normalized(&[ENVELOPE, &body], ACCEPTED, &["a\r\n..\r\nMAIL FROM:<evil@x>\r\n"]);
    }
}

#[test]
fn attacks_4_to_9_a_stray_cr_or_nul_is_refused() {
    for form in ["\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\r\r\n.\r\r\n", "\r\n\0.\r\n", "\r\n.\0\r\n"] {
        let body = format!("a\nb{form}MAIL FROM:<evil@x>\r\n.\r\n");
        check_normalized(&[ENVELOPE, &body], "250 2.1.0, 250 2.1.5, 354, 550 5.5.2", &[]);
    }
}

/// What is added counts: the gateway gets no more than it was promised.
#[test]
fn attack_30_line_ends_count_toward_the_size() {
    let body = format!("{}\r\n.\r\n", "a\n".repeat(700));
    check_normalized(&[ENVELOPE, &body], "250 2.1.0, 250 2.1.5, 354, 552 5.3.4", &[]);
}
