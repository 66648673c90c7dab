//! Scripts of whole sessions. A script is a list of turns: octets that the client sends at once after it has read every
//! reply to the turn before. Each script is played as it is and with each turn cut in two at every point, toward a
//! gateway with PIPELINING and one without; the replies and what the gateway gets must be the same.

use std::{fmt::Write as _, time::Duration};

use proptest::prelude::*;

use super::*;

mod bridge;
mod chunks;
mod endings;
mod extensions;
mod flow;
mod login;
mod story;

use crate::{
    addrs::{ClientAddr, OriginalDst},
    limits::{BUFFER_KEPT, GATHERED_OCTETS, GATHERING_TIME, READ_MAX, TO_CLIENT_HIGH, Timeouts},
    policy::{Auth, Policy},
    route::RoutingSpec,
};

/// A gateway in memory. Its answers are those of `answers`, by the start of the line, and else positive.
#[derive(Debug, Default)]
struct FakeGateway {
    plain: bool,
    answers: Vec<(&'static str, &'static str)>,
    input: Vec<u8>,
    in_body: bool,
    /// An empty answer was due: nothing more is heard from here.
    hung: bool,
    body: Vec<u8>,
    commands: Vec<String>,
    /// Bodies with their dot, as they came.
    messages: Vec<Vec<u8>>,
}

impl FakeGateway {
    fn answer(&self, line: &str, usual: &str) -> String {
        self.answers.iter().find(|(start, _)| line.starts_with(start)).map_or(usual, |(_, answer)| answer).to_owned()
    }

    fn take(&mut self, bytes: &[u8]) -> String {
        self.input.extend_from_slice(bytes);
        let mut said = String::new();
        while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if self.in_body {
                if line == b".\r\n" {
                    self.in_body = false;
                    self.messages.push(mem::take(&mut self.body));
                    said += &self.answer(".", "250 2.0.0 queued\r\n");
                } else {
                    self.body.extend_from_slice(&line);
                }
                continue;
            }
            let line = String::from_utf8(line).unwrap();
            let line = line.strip_suffix("\r\n").expect("commands end in CRLF");
            self.commands.push(line.to_owned());
            let usual = match line.split(' ').next().unwrap() {
                "RCPT" => "250 2.1.5 ok\r\n",
                "DATA" => "354 go\r\n",
                _ => "250 2.0.0 ok\r\n",
            };
            let answer = self.answer(line, usual);
            self.hung |= answer.is_empty();
            if self.hung {
                break;
            }
            self.in_body = line == "DATA" && answer.starts_with("354");
            said += &answer;
        }
        said
    }
}

/// A session with both its peers.
struct Rig {
    session: Session,
    now: Instant,
    gateway: FakeGateway,
    connected: bool,
    /// The connection waits for the next message.
    pooled: bool,
    gateway_exists: bool,
    connections: u32,
    handshakes: u32,
    locks: Vec<Duration>,
    said: String,
    records: Vec<Arc<Record>>,
    notes: Vec<Note>,
}

fn settings() -> Settings {
    let mut settings = Settings::new("relay.example");
    settings.clock = || jiff::Timestamp::UNIX_EPOCH;
    settings.size_max = 2000;
    settings
}

fn identity() -> Identity {
    Identity {
        client: ClientAddr::new("203.0.113.7:4000".parse().unwrap()),
        original: OriginalDst::new("198.51.100.9:25".parse().unwrap()),
        class: "configured".into(),
        policy: Arc::default(),
    }
}

fn means(quota_entries: usize, tarpit_max: usize) -> Means {
    let stage = watch::Stage::new(|| jiff::Timestamp::UNIX_EPOCH);
    Means { quotas: Arc::new(quota::Table::new(quota_entries)), places: Places::new(tarpit_max), stage }
}

fn new_session(settings: Settings, identity: Identity, now: Instant) -> Session {
    Session::new(Arc::new(settings), identity, Extensions::default(), &means(1000, 10), now)
}

fn gateway() -> Gateway {
    let mut gateway = Gateway::new("g".parse().unwrap(), "192.0.2.25".parse().unwrap(), 25);
    gateway.allow_local = true;
    gateway
}

/// One gateway for everything.
fn routing(exists: bool) -> Arc<Routing> {
    let route = crate::route::Route::new(crate::route::Pattern::Default, Target::Gateway("g".parse().unwrap()));
    let spec = RoutingSpec { gateways: vec![gateway()], routes: vec![route], ..RoutingSpec::default() };
    Arc::new(Routing::build(if exists { spec } else { RoutingSpec::default() }).unwrap())
}

fn granted(plain: bool, reused: bool) -> Granted {
    let capabilities = Capabilities {
        pipelining: true,
        size: Some(9),
        eight_bit_mime: true,
        smtputf8: true,
        dsn: true,
        mt_priority: true,
        ..Capabilities::default()
    };
    let capabilities = Arc::new(if plain { Capabilities::default() } else { capabilities });
    Granted {
        gateway: Arc::new(gateway()),
        capabilities,
        allowance: Arc::default(),
        egress: None,
        egress_listed: false,
        encrypted: false,
        reused,
    }
}

fn nothing_left() -> OpenError {
    OpenError { stage: OpenStage::Tcp, reason: OpenReason::Timeout }
}

fn denied() -> OpenError {
    OpenError { stage: OpenStage::Auth, reason: OpenReason::Refused { code: 535, text: String::new() } }
}

impl Rig {
    fn new(settings: Settings, gateway: FakeGateway) -> Self {
        Self::for_class(settings, Policy::default(), gateway)
    }

    fn for_class(settings: Settings, policy: Policy, gateway: FakeGateway) -> Self {
        Self::offered(Extensions::default(), settings, policy, gateway)
    }

    fn offered(offered: Extensions, settings: Settings, policy: Policy, gateway: FakeGateway) -> Self {
        let now = Instant::now();
        let identity = Identity { policy: Arc::new(policy), ..identity() };
        let session = Session::new(Arc::new(settings), identity, offered, &means(1000, 10), now);
        let mut rig = Self {
            session,
            now,
            gateway,
            connected: false,
            pooled: false,
            gateway_exists: true,
            connections: 0,
            handshakes: 0,
            locks: Vec::new(),
            said: String::new(),
            records: Vec::new(),
            notes: Vec::new(),
        };
        rig.settle();
        rig
    }

    /// Moves octets and does what is asked until all is quiet.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(action) = self.session.next_action() {
                moved = true;
                match action {
                    Action::AskRouting => self.session.on_routing(routing(self.gateway_exists), self.now),
                    Action::Connect { fresh, .. } => {
                        assert!(!self.connected);
                        self.connected = true;
                        let reused = mem::take(&mut self.pooled) && !fresh;
                        if !reused {
                            self.connections += 1;
                            self.gateway.input.clear();
                            self.gateway.in_body = false;
                            self.gateway.body.clear();
                        }
                        self.session.on_connected(granted(self.gateway.plain, reused), self.now);
                    }
                    Action::ConnectNext { .. } => self.session.on_unreachable(nothing_left(), self.now),
                    Action::Release => {
                        assert!(mem::take(&mut self.connected));
                        self.pooled = true;
                    }
                    Action::SuspendEgress => unreachable!("the gateway has no egress addresses"),
                    Action::Hangup { quit } => {
                        if mem::take(&mut self.connected) && quit {
                            self.gateway.commands.push("QUIT".into());
                        }
                    }
                    Action::Handshake(_) => self.handshakes += 1,
                    Action::Verify { users, credentials } => {
                        let verdict = if users.accept(&credentials) { Verdict::Accepted } else { Verdict::Refused };
                        self.session.on_verified(verdict, self.now);
                    }
                    Action::Bridge { claim, .. } => {
                        assert!(!self.connected);
                        let found = match claim.credentials.password.expose() {
                            "pencil" => {
                                self.connected = true;
                                self.connections += 1;
                                self.gateway.input.clear();
                                self.gateway.hung = false;
                                Ok((Target::Gateway("g".parse().unwrap()), granted(self.gateway.plain, false)))
                            }
                            "away" => Err(nothing_left()),
                            _ => Err(denied()),
                        };
                        self.session.on_bridged(found, self.now);
                    }
                    Action::Lock(duration) => self.locks.push(duration),
                    Action::Record(record) => self.records.push(record),
                    Action::Note(note) => self.notes.push(note),
                }
            }
            let out = self.session.client_out().to_vec();
            if !out.is_empty() {
                moved = true;
                self.said += str::from_utf8(&out).unwrap();
                self.session.client_sent(out.len(), self.now);
            }
            let out = self.session.gateway_out().to_vec();
            if self.connected && !out.is_empty() {
                moved = true;
                self.session.gateway_sent(out.len(), self.now);
                let said = self.gateway.take(&out);
                if !said.is_empty() {
                    self.session.on_gateway_octets(said.as_bytes(), self.now);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && !self.session.is_done() {
            self.session.on_client(bytes, self.now);
            self.settle();
        }
    }

    fn play(&mut self, turns: &[&str]) {
        for turn in turns {
            self.send(turn.as_bytes());
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.on_deadline(self.now);
        self.settle();
    }

    /// The replies in short: codes and enhanced codes; "end" if the session is over.
    fn transcript(&self) -> String {
        let mut short = String::new();
        for line in self.said.split_terminator("\r\n") {
            let (code, text) = line.split_at(3);
            if text.starts_with('-') {
                continue;
            }
            let status = text[1..].split(' ').next().unwrap();
            let status = if status.split('.').count() == 3 && status.is_ascii() && status.as_bytes()[0].is_ascii_digit()
            {
                status
            } else {
                ""
            };
            write!(short, "{}, ", format!("{code} {status}").trim_end()).unwrap();
        }
        if self.session.is_done() { short + "end" } else { short.trim_end_matches(", ").to_owned() }
    }

    /// Messages that the gateway has whole, without our trace field.
    fn messages(&self) -> Vec<String> {
        let text = |message: &Vec<u8>| {
            let text = String::from_utf8_lossy(message);
            let (trace, rest) = text.split_once(" +0000\r\n").expect("a trace field");
            assert!(trace.starts_with("Received: from pc ([203.0.113.7])\r\n\tby relay.example with "), "{trace:?}");
            rest.to_owned()
        };
        self.gateway.messages.iter().map(text).collect()
    }
}

const HELLO: &str = "EHLO pc\r\n";
const ENVELOPE: &str = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n";
const READY: &str = "220, 250, 250 2.1.0, 250 2.1.5, 354";

/// Plays `turns` in every cut, with a gateway that answers `answers`; the replies are `expected`, the gateway has
/// `messages`.
fn play(turns: &[&[u8]], answers: &[(&'static str, &'static str)], expected: &str, messages: &[&str]) {
    let run = |plain: bool, turn: usize, cut: usize| {
        let mut rig = Rig::new(settings(), FakeGateway { plain, answers: answers.to_vec(), ..FakeGateway::default() });
        for (i, bytes) in turns.iter().enumerate() {
            let (head, tail) = bytes.split_at(if i == turn { cut } else { 0 });
            rig.send(head);
            rig.send(tail);
        }
        let show = turns.iter().map(|turn| String::from_utf8_lossy(turn)).collect::<Vec<_>>();
        assert_eq!(rig.transcript(), expected, "{show:?}, turn {turn} cut at {cut}, said {:?}", rig.said);
        assert_eq!(rig.messages(), messages, "{show:?}, turn {turn} cut at {cut}");
    };
    for plain in [false, true] {
        for (turn, bytes) in turns.iter().enumerate() {
            // Long turns are cut where it may matter, near their ends, and now and then between.
            let step = bytes.len() / 100 + 1;
            for cut in (0..bytes.len()).filter(|cut| cut % step == 0 || *cut < 8 || bytes.len() - *cut < 8) {
                run(plain, turn, cut);
            }
        }
    }
}

fn check(turns: &[&str], expected: &str, messages: &[&str]) {
    let turns: Vec<_> = turns.iter().map(|turn| turn.as_bytes()).collect();
    play(&turns, &[], expected, messages);
}

fn check_with(answers: &[(&'static str, &'static str)], turns: &[&str], expected: &str, messages: &[&str]) {
    let turns: Vec<_> = turns.iter().map(|turn| turn.as_bytes()).collect();
    play(&turns, answers, expected, messages);
}

/// After EHLO, one turn.
fn check_line(turn: &str, expected: &str) {
    check(&[HELLO, turn], &format!("220, 250, {expected}"), &[]);
}

/// A body after 354; with its answer.
fn check_body(body: &str, expected: &str, messages: &[&str]) {
    check(&[HELLO, ENVELOPE, body], &format!("{READY}, {expected}"), messages);
}

// ---- What must work ----

#[test]
fn a_message() {
    check_body("Subject: x\r\n\r\nHello\r\n.\r\n", "250 2.0.0", &["Subject: x\r\n\r\nHello\r\n"]);
    check_body(".\r\n", "250 2.0.0", &[""]);
    check_body("x\r\n.\r\n", "250 2.0.0", &["x\r\n"]);
}

#[test]
fn commands_by_hand() {
    check(
        &["HELO pc\r\n", "MAIL FROM:<>\r\n", "RCPT TO:<postmaster>\r\n", "DATA\r\n", "x\r\n.\r\n", "QUIT\r\n"],
        "220, 250, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0, 221 2.0.0, end",
        &["x\r\n"],
    );
}

#[test]
fn commands_without_a_transaction() {
    check_line("NOOP\r\nRSET\r\nVRFY x\r\n", "250 2.0.0, 250 2.0.0, 252 2.0.0");
    check_line("AUTH PLAIN\r\nEXPN x\r\nETRN x\r\nSTARTTLS\r\n", "502 5.5.1, 502 5.5.1, 502 5.5.1, 502 5.5.1");
    check(&["NOOP\r\nMAIL FROM:<a@b>\r\n"], "220, 250 2.0.0, 503 5.5.1", &[]);
    check(&["HELO pc\r\n", "MAIL FROM:<a@b> SIZE=1\r\n"], "220, 250, 555 5.5.4", &[]);
}

#[test]
fn commands_out_of_order() {
    check_line("DATA\r\n", "503 5.5.1");
    check_line("RCPT TO:<a@b>\r\n", "503 5.5.1");
    check_line("MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", "250 2.1.0, 503 5.5.1");
    check_line("MAIL FROM:<a@b>\r\nDATA\r\n", "250 2.1.0, 503 5.5.1");
}

/// RFC 2920 section 3.1: the next transaction may follow the dot in the same segment.
#[test]
fn several_messages_over_one_gateway_connection() {
    let turns = [HELLO, ENVELOPE, "a\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "b\r\n.\r\nQUIT\r\n"];
    let again = "250 2.0.0, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0, 221 2.0.0, end";
    check(&turns, &format!("{READY}, {again}"), &["a\r\n", "b\r\n"]);
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&turns);
    assert_eq!(rig.connections, 1);
    assert!(rig.pooled);
    assert_eq!(rig.records.iter().map(|r| (r.outcome, r.octets)).collect::<Vec<_>>(), [(Outcome::Accepted, 3); 2]);
}

#[test]
fn rset_makes_the_gateway_forget() {
    let turns = [HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\n", ENVELOPE, "x\r\n.\r\n"];
    check(&turns, "220, 250, 250 2.1.0, 250 2.1.5, 250 2.0.0, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0", &["x\r\n"]);
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&turns);
    assert_eq!(rig.connections, 1);
    let commands = ["MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RSET", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"];
    assert_eq!(rig.gateway.commands, commands);
}

/// A gateway that does not forget is not trusted with the next message: that one takes a fresh connection.
#[test]
fn a_poisoned_connection_is_replaced() {
    let turns = [HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\n", ENVELOPE, "x\r\n.\r\n"];
    let answers = [("RSET", "503 what\r\n")];
    let expected = "220, 250, 250 2.1.0, 250 2.1.5, 250 2.0.0, 250 2.1.0, 250 2.1.5, 354, 250 2.0.0";
    check_with(&answers, &turns, expected, &["x\r\n"]);
}

/// The gateway closed the connection between two messages: the second goes over a fresh one, unknown to the client.
#[test]
fn a_stale_connection_is_replaced() {
    for plain in [false, true] {
        let mut rig = Rig::new(settings(), FakeGateway { plain, ..FakeGateway::default() });
        rig.play(&[HELLO, ENVELOPE, "a\r\n.\r\nMAIL FROM:<e@f>\r\n"]);
        rig.session.on_gateway_closed(rig.now);
        rig.settle();
        rig.send(b"RCPT TO:<c@d>\r\nDATA\r\n");
        rig.send(b"b\r\n.\r\n");
        assert_eq!(rig.messages(), ["a\r\n", "b\r\n"]);
        assert_eq!(rig.connections, 2);
    }
}

/// A recipient was accepted over the connection that is lost: another one knows nothing of it.
#[test]
fn a_lost_connection_with_a_recipient_is_not_replaced() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "a\r\n.\r\nMAIL FROM:<e@f>\r\nRCPT TO:<c@d>\r\n"]);
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    rig.play(&["RCPT TO:<g@h>\r\nDATA\r\n", "NOOP\r\n"]);
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 250 2.1.0, 250 2.1.5, 451 4.4.2, 451 4.4.2, 250 2.0.0"));
    assert_eq!(rig.connections, 1);
}

/// Who refuses MAIL and accepts its RCPT has lost count.
#[test]
fn a_recipient_accepted_after_a_refused_mail_ends_the_connection() {
    let answers = vec![("MAIL", "550 5.1.0 no\r\n")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"]);
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 550 5.1.0");
    assert!(!rig.connected);
    assert!(rig.notes.contains(&Note::GatewayFailed(Failure::Unexpected(250))));
}

/// The late answer to a MAIL that was given up must not be taken for the next one's.
#[test]
fn the_answer_to_a_forgotten_mail_is_nobodys() {
    let now = Instant::now();
    let mut session = new_session(settings(), identity(), now);
    session.on_client(HELLO.as_bytes(), now);
    session.on_client(b"MAIL FROM:<a@b>\r\n", now);
    session.on_routing(routing(true), now);
    session.on_connected(granted(true, false), now);
    session.on_client(b"RSET\r\nMAIL FROM:<c@d>\r\nRCPT TO:<e@f>\r\n", now);
    session.on_routing(routing(true), now);
    session.client_sent(session.client_out().len(), now);
    for answer in ["550 no a@b\r\n", "250 reset\r\n", "250 c@d\r\n", "250 2.1.5 e@f\r\n"] {
        assert_eq!(session.client_out(), b"");
        session.gateway_sent(session.gateway_out().len(), now);
        session.on_gateway_octets(answer.as_bytes(), now);
    }
    assert_eq!(str::from_utf8(session.client_out()).unwrap(), "250 2.1.5 e@f\r\n");
}

#[test]
fn what_the_gateway_does_not_offer_is_not_said_to_it() {
    let commands = |plain: bool, parameters: &str| {
        let mut rig = Rig::new(settings(), FakeGateway { plain, ..FakeGateway::default() });
        rig.send(HELLO.as_bytes());
        rig.send(format!("MAIL FROM:<a@b>{parameters}\r\nRCPT TO:<c@d>\r\n").as_bytes());
        (rig.gateway.commands.join("|"), rig.transcript())
    };
    let good = "220, 250, 250 2.1.0, 250 2.1.5".to_owned();
    assert_eq!(
        commands(false, " BODY=8BITMIME SIZE=7"),
        ("MAIL FROM:<a@b> SIZE=7 BODY=8BITMIME|RCPT TO:<c@d>".into(), good.clone())
    );
    assert_eq!(commands(true, " SIZE=7 BODY=7BIT"), ("MAIL FROM:<a@b>|RCPT TO:<c@d>".into(), good));
    assert_eq!(
        commands(true, " BODY=8BITMIME"),
        (String::new(), "220, 250, 250 2.1.0, 554 5.6.3".into()),
        "text that the gateway may garble is not given to it"
    );
}

#[test]
fn recipients_are_answered_one_by_one_and_in_order() {
    let answers = [("RCPT TO:<bad", "550 5.1.1 no\r\n"), ("RCPT TO:<later", "450 4.2.1 later\r\n")];
    check_with(
        &answers,
        &[
            HELLO,
            "MAIL FROM:<a@b>\r\nRCPT TO:<bad@d>\r\nRCPT TO:<c@d>\r\nRCPT TO:<x>\r\nRCPT TO:<later@d>\r\nNOOP\r\nDATA\r\n",
            "x\r\n.\r\n",
        ],
        "220, 250, 250 2.1.0, 550 5.1.1, 250 2.1.5, 501 5.1.3, 450 4.2.1, 250 2.0.0, 354, 250 2.0.0",
        &["x\r\n"],
    );
}

#[test]
fn without_an_accepted_recipient_there_is_no_data() {
    let answers = [("RCPT", "550 5.1.1 no\r\n")];
    let turns = [HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@d>\r\nDATA\r\n", "MAIL FROM:<a@b>\r\n"];
    check_with(&answers, &turns, "220, 250, 250 2.1.0, 550 5.1.1, 550 5.1.1, 554 5.5.1, 250 2.1.0", &[]);
}

/// A gateway may remember what a refused MAIL said of the message, as Postfix 3.7 does of its size.
#[test]
fn a_refused_mail_is_forgotten_by_the_gateway() {
    let answers =
        vec![("MAIL FROM:<a@b> SIZE=9", "552 5.3.4 too large\r\n"), ("RCPT TO:<e@f>", "503 5.5.1 MAIL first\r\n")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, "MAIL FROM:<a@b> SIZE=9\r\nRCPT TO:<e@f>\r\n", "RSET\r\n", ENVELOPE, "x\r\n.\r\n"]);
    let sent: Vec<_> = rig.gateway.commands.iter().map(String::as_str).collect();
    let refused = ["MAIL FROM:<a@b> SIZE=9", "RCPT TO:<e@f>", "RSET"];
    assert_eq!(sent, [&refused[..], &["MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"]].concat());
}

#[test]
fn a_refused_mail_is_every_recipients_answer() {
    let answers = [("MAIL", "451 4.3.0 later\r\n"), ("RCPT", "503 5.5.1 MAIL first\r\n")];
    let turns = [HELLO, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@d>\r\nDATA\r\n"];
    check_with(&answers, &turns, "220, 250, 250 2.1.0, 451 4.3.0, 451 4.3.0, 554 5.5.1", &[]);
}

// ---- The attack catalogue of the SMTP reference, by its numbers ----

#[test]
fn attacks_1_to_9_smuggled_ends_of_data() {
    for form in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n.\r\r\n",
        "\r\r\n.\r\r\n",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r.\r",
        "\n\n.\n\n",
        "\r\n.\n\r\n",
    ] {
        let smuggled = "MAIL FROM:<evil@x>\r\nRCPT TO:<v@y>\r\nDATA\r\nSubject: evil\r\n";
        let body = format!("Subject: x\r\n\r\nHello{form}{smuggled}.\r\n");
        // "\r\r\n.\r\r\n" holds no CRLF.CRLF, nor does any other form: the whole text is one message, and it is refused.
        check_body(&body, "550 5.5.2", &[]);
    }
}

#[test]
fn attacks_1_to_9_leave_the_session_usable_and_no_half_message() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "a\nb\r\n.\r\n", ENVELOPE, "c\r\n.\r\n"]);
    assert_eq!(rig.messages(), ["c\r\n"]);
    assert_eq!(rig.connections, 2, "the first connection was closed without the dot");
    assert!(!rig.gateway.commands.contains(&"QUIT".to_owned()), "and without QUIT or RSET after half a body");
    assert_eq!(rig.records[0].cause, Cause::LineEndings);
    assert_eq!(rig.records[0].outcome, Outcome::Rejected);
}

#[test]
fn attack_10_dot_stuffing() {
    check_body("..\r\n.\r\n", "250 2.0.0", &["..\r\n"]);
    check_body("..x\r\n...\r\na..\r\n.\r\n", "250 2.0.0", &["..x\r\n...\r\na..\r\n"]);
    check_body(".x\r\n.\r\n", "250 2.0.0", &[".x\r\n"]);
}

#[test]
fn attack_11_bare_line_ends_in_commands() {
    for line in
        ["NOOP\n", "NOOP\r\r\n", "NOOP a\rb\r\n", "MAIL FROM:<a@b\r>\r\n", "NOOP \0\r\n", "\n", "NOOP\nNOOP\r\n"]
    {
        check_line(line, "500 5.5.2, end");
    }
}

#[test]
fn attack_14_long_command_lines() {
    check_line(&format!("NOOP {}\r\n", "x".repeat(600)), "500 5.5.2, end");
    check_line(&"x".repeat(5000), "500 5.5.2, end");
}

#[test]
fn attack_15_long_body_lines_pass_unchanged() {
    let line = format!("{}\r\n", "x".repeat(998));
    check_body(&format!("{line}.\r\n"), "250 2.0.0", &[&line]);
    let line = format!("{}\r\n", "x".repeat(1500));
    check_body(&format!("{line}.\r\n"), "250 2.0.0", &[&line]);
}

#[test]
fn attack_16_loops() {
    let body = |hops: usize| format!("{}Subject: x\r\n\r\n", "Received: x\r\n".repeat(hops));
    check_body(&format!("{}.\r\n", body(100)), "250 2.0.0", &[&body(100)]);
    check_body(&format!("{}.\r\n", body(101)), "554 5.4.6", &[]);
    check_body(&format!("{}.\r\n", body(101).replace("Received:", "rEceived :")), "554 5.4.6", &[]);
}

/// What is kept of a header section is a count: it may be as long as a message.
#[test]
fn attack_16_headers_without_end() {
    let mut settings = settings();
    settings.size_max = 20_000_000;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    let header = "X-Nothing: nothing\r\n".repeat(1000);
    for _ in 0..100 {
        rig.send(header.as_bytes());
        assert!(rig.session.input.capacity() <= BUFFER_KEPT);
    }
    // One of ten megabytes.
    rig.send(b"X-Long: ");
    for _ in 0..100 {
        rig.send(&vec![b'x'; 100_000]);
        assert!(rig.session.gateway_out().is_empty());
    }
    rig.send(b"\r\n\r\n.\r\n");
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0"));
    assert_eq!(rig.messages()[0].len(), 100 * header.len() + 8 + 10_000_000 + 4);
}

#[test]
fn attack_17_eight_bit_commands() {
    check_line("MAIL FROM:<\u{e9}@b>\r\n", "553 5.6.7");
    check_line("MAIL FROM:<a@b>\r\nRCPT TO:<\u{e9}@b>\r\n", "250 2.1.0, 553 5.6.7");
    check_line("NOOP \u{e9}\r\n", "501 5.5.2");
}

#[test]
fn attack_18_other_protocols() {
    for line in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\n", "CONNECT x:25 HTTP/1.0\r\n", "SSH-2.0-x\r\n"]
    {
        check(&[line], "220, 500 5.5.2, end", &[]);
    }
    play(&[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], &[], "220, 500 5.5.2, end", &[]);
}

#[test]
fn attack_19_pipelined_before_the_reply_to_ehlo() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(b"EHLO pc\r\nMAIL FROM:<a@b>\r\n");
    assert_eq!(rig.transcript(), "220, 554 5.5.0, end");
}

#[test]
fn attack_20_text_before_354() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.send(format!("{ENVELOPE}Subject: x\r\n").as_bytes());
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 250 2.1.5, 554 5.5.0, end");
    assert!(!rig.gateway.commands.contains(&"DATA".to_owned()));

    // And when the text comes while DATA is with the gateway.
    let answers = vec![("DATA", "")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, ENVELOPE]);
    rig.send(b"S");
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 250 2.1.5, 554 5.5.0, end");
    assert!(!rig.connected);
}

#[test]
fn attack_21_ten_thousand_commands_and_no_reading() {
    let now = Instant::now();
    let mut settings = settings();
    settings.limits.commands_max = u32::MAX;
    let mut session = new_session(settings, identity(), now);
    let flood = "NOOP\r\n".repeat(10_000);
    let mut sent = 0;
    for read in flood.as_bytes().chunks(READ_MAX) {
        if session.wants_client() {
            session.on_client(read, now);
            sent += read.len();
        }
        assert!(session.client_out().len() < TO_CLIENT_HIGH + 512);
    }
    assert!(sent <= 2 * READ_MAX, "reading stops: {sent}");
    let deadline = session.deadline().unwrap();
    assert_eq!(deadline, now + Settings::new("").timeouts.client_write);
    session.on_deadline(deadline);
    while session.next_action().is_some() {}
    assert!(session.is_done());
}

#[test]
fn attack_21_commands_without_a_message_are_limited() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send("NOOP\r\n".repeat(201).as_bytes());
    assert!(rig.transcript().ends_with("250 2.0.0, 421 4.7.0, end"));
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send("FOO\r\n".repeat(21).as_bytes());
    assert!(rig.transcript().ends_with("500 5.5.2, 421 4.7.0, end"));
    assert_eq!(rig.notes, [Note::Cut]);
}

#[test]
fn attack_28_slow_clients() {
    // A command, one octet at a time: the wait is for the whole line.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    for octet in HELLO.as_bytes().iter().take(9) {
        rig.send(&[*octet]);
        rig.pass(Duration::from_secs(40));
    }
    assert_eq!(rig.transcript(), "220, 421 4.4.2, end");

    // A body, one octet at a time.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    for _ in 0..9 {
        rig.send(b"x");
        rig.pass(Duration::from_secs(40));
    }
    assert_eq!(rig.transcript(), format!("{READY}, 421 4.4.2, end"));
    assert_eq!(rig.messages(), [""; 0]);
    assert_eq!(rig.records[0].cause, Cause::ClientTimeout);
    assert!(rig.notes.contains(&Note::ClientTimeout));
}

/// Each block of a body has its own time, and a burst earns none for later.
#[test]
fn attack_28_bodies_that_become_slow() {
    let mut settings = settings();
    settings.size_max = 1_000_000;
    settings.limits.data_block_octets = 1000;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    for _ in 0..5 {
        rig.send(&[b'x'; 1000]);
        rig.pass(Duration::from_secs(200));
    }
    assert_eq!(rig.transcript(), READY, "a block in less than its time is fast enough");
    rig.send(&[b'x'; 900]);
    rig.pass(Duration::from_secs(100));
    assert_eq!(rig.transcript(), format!("{READY}, 421 4.4.2, end"), "and a bit less than a block is not");
}

/// While the gateway holds the body up, the client cannot be late.
#[test]
fn a_client_that_was_held_back_gets_its_time_again() {
    let mut settings = settings();
    settings.size_max = u64::MAX / 4;
    settings.timeouts.gateway_write = Duration::from_hours(1);
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_client(&vec![b'x'; TO_GATEWAY_HIGH + 1], rig.now);
    assert!(!rig.session.wants_client());
    rig.now += Duration::from_mins(10);
    rig.session.on_deadline(rig.now);
    rig.settle();
    assert!(rig.session.wants_client());
    rig.session.on_deadline(rig.now);
    rig.send(b"\r\n.\r\n");
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0"));
}

#[test]
fn attack_30_size() {
    check_line("MAIL FROM:<a@b> SIZE=2001\r\n", "552 5.3.4");
    check_line("MAIL FROM:<a@b> SIZE=18446744073709551616\r\n", "552 5.3.4");
    let big = format!("{}\r\n", "x".repeat(498)).repeat(4);
    check_body(&format!("{big}.\r\n"), "250 2.0.0", &[&big]);
    check_body(&format!("{big}x\r\n.\r\n"), "552 5.3.4", &[]);
    // A size that was declared smaller does not help.
    let lied = "MAIL FROM:<a@b> SIZE=1\r\nRCPT TO:<c@d>\r\nDATA\r\n";
    check(&[HELLO, lied, &format!("{big}x\r\n.\r\n")], &format!("{READY}, 552 5.3.4"), &[]);
    // Twice the limit ends the session.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    (0..20).for_each(|_| rig.send(&[b'x'; 300]));
    assert_eq!(rig.transcript(), format!("{READY}, 552 5.3.4, end"));
}

#[test]
fn attack_31_too_many_recipients() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.send(b"MAIL FROM:<a@b>\r\n");
    rig.send("RCPT TO:<c@d>\r\n".repeat(103).as_bytes());
    assert_eq!(rig.said.matches("250 2.1.5").count(), 100);
    assert_eq!(rig.said.matches("452 4.5.3").count(), 3);
    rig.send(b"DATA\r\n");
    rig.send(b".\r\n");
    assert_eq!(rig.records[0].recipients, 100);
    rig.send(b"MAIL FROM:<a@b>\r\n");
    rig.send("RCPT TO:<c@d>\r\n".repeat(2000).as_bytes());
    assert!(rig.transcript().ends_with("452 4.5.3, 421 4.5.3, end"));
}

#[test]
fn attack_31_a_dictionary_of_recipients() {
    let answers = vec![("RCPT", "550 5.1.1 no\r\n")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.send(HELLO.as_bytes());
    rig.send(b"MAIL FROM:<a@b>\r\n");
    rig.send("RCPT TO:<c@d>\r\n".repeat(200).as_bytes());
    assert!(rig.transcript().ends_with("550 5.1.1, 421 4.7.1, end"));
    assert_eq!(rig.said.matches("550 5.1.1").count(), 100);
}

#[test]
fn attack_32_relay_forms() {
    for (path, expected) in [
        ("<a%b@c>", "550 5.7.1"),
        ("<b!a@c>", "550 5.7.1"),
        ("<\"a%b\"@c>", "550 5.7.1"),
        ("<@x,@y:a@b>", "550 5.7.1"),
        ("<a@b@c>", "501 5.1.3"),
        ("<a>", "501 5.1.3"),
        ("<a@b.>", "501 5.1.3"),
        ("<\"a@b\"@c>", "250 2.1.5"),
        ("<a@[1.2.3.4]>", "250 2.1.5"),
        ("<a@[IPv6:::1]>", "250 2.1.5"),
    ] {
        check_line(&format!("MAIL FROM:<>\r\nRCPT TO:{path}\r\n"), &format!("250 2.1.0, {expected}"));
    }
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.send(b"mail from: <\"x\"@y>\r\nrcpt to:<\"a@b\"@c>\r\n");
    assert_eq!(rig.gateway.commands, ["MAIL FROM:<x@y>", "RCPT TO:<\"a@b\"@c>"], "written anew, not copied");
}

#[test]
fn attack_35_parameters() {
    check_line("MAIL FROM:<a@b> FOO=1\r\n", "555 5.5.4");
    check_line("MAIL FROM:<a@b> SIZE=1 SIZE=2\r\n", "501 5.5.4");
    check_line("MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\n", "250 2.1.0, 555 5.5.4");
}

#[test]
fn attack_37_commands_of_relays() {
    for line in ["XCLIENT ADDR=192.0.2.1\r\n", "XFORWARD NAME=x\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"] {
        check(&[line], "220, 502 5.5.1, end", &[]);
    }
    play(&[b"\r\n\r\n\0\r\nQUIT\n\x21\x11"], &[], "220, 500 5.5.2, 500 5.5.2, 500 5.5.2, end", &[]);
}

#[test]
fn attack_38_half_closed_clients() {
    // Everything was said: the answers come, and then the end.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_client(b"x\r\n.\r\nNOOP\r\nNOO", rig.now);
    rig.session.on_client_ended(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 250 2.0.0, end"));
    assert_eq!(rig.messages(), ["x\r\n"]);

    // Within a body, at every octet: nothing is delivered.
    let body = "x\r\n..\r\n.\r\n";
    for cut in 0..body.len() {
        let mut rig = Rig::new(settings(), FakeGateway::default());
        rig.play(&[HELLO, ENVELOPE]);
        rig.send(&body.as_bytes()[..cut]);
        rig.session.on_client_ended(rig.now);
        rig.settle();
        assert_eq!(rig.transcript(), format!("{READY}, 421 4.4.2, end"), "cut at {cut}");
        assert_eq!(rig.messages(), [""; 0], "cut at {cut}");
        assert!(!rig.connected);
    }

    // DATA was said before the end, but is only reached after it.
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.send(HELLO.as_bytes());
    rig.session.on_client(ENVELOPE.as_bytes(), rig.now);
    rig.session.on_client_ended(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 250 2.1.5, 421 4.4.2, end");
    assert_eq!(rig.messages(), [""; 0]);
}

#[test]
fn attack_38_clients_that_vanish_at_any_point() {
    let script = format!("{HELLO}|{ENVELOPE}|x\r\n.\r\n|QUIT\r\n");
    for cut in 0..script.len() {
        let mut rig = Rig::new(settings(), FakeGateway::default());
        script[..cut].split('|').for_each(|turn| rig.send(turn.as_bytes()));
        rig.session.on_client_gone(rig.now);
        rig.settle();
        assert!(rig.session.is_done(), "cut at {cut}");
        assert!(!rig.connected, "cut at {cut}");
        let whole = script[..cut].contains("\r\n.\r\n");
        assert_eq!(rig.messages().len(), usize::from(whole), "cut at {cut}");
    }
}

#[test]
fn attack_39_the_client_leaves_after_the_dot() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_client(b"x\r\n.\r\n", rig.now);
    rig.session.on_client_gone(rig.now);
    assert!(!rig.session.is_done(), "the outcome is awaited");
    rig.settle();
    assert!(rig.session.is_done());
    assert_eq!(rig.messages(), ["x\r\n"]);
    let record = &rig.records[0];
    assert_eq!((record.outcome, record.client_gone), (Outcome::Accepted, true));
}

#[test]
fn attack_40_the_gateway_is_lost_after_the_dot() {
    let answers = vec![(".", "")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, ENVELOPE]);
    rig.send(b"x\r\n.\r\n");
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2"));
    assert!(rig.records[0].duplicate_risk);
    assert_eq!(rig.connections, 1, "never a second try");
    assert_eq!(rig.messages().len(), 1);
}

/// As long as the dot is still ours, the gateway cannot have taken the message.
#[test]
fn a_dot_that_never_left_is_no_duplicate_risk() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_client(b"x\r\n.\r\n", rig.now);
    rig.session.on_gateway_closed(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2"));
    assert!(!rig.records[0].duplicate_risk);
    assert_eq!(rig.records[0].outcome, Outcome::Deferred);
}

#[test]
fn attack_41_a_gateway_that_hangs() {
    let timeouts = Timeouts::default();
    let cases = [
        ("MAIL", timeouts.mail, "220, 250, 250 2.1.0, 451 4.4.2"),
        ("RCPT", timeouts.recipient, "220, 250, 250 2.1.0, 451 4.4.2"),
        ("DATA", timeouts.data, "220, 250, 250 2.1.0, 250 2.1.5, 451 4.4.2"),
        (".", timeouts.verdict, &*format!("{READY}, 451 4.4.2")),
    ];
    for (stage, wait, expected) in cases {
        let answers = vec![(stage, "")];
        let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
        rig.send(HELLO.as_bytes());
        rig.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
        if stage == "DATA" || stage == "." {
            rig.send(b"DATA\r\n");
        }
        if stage == "." {
            rig.send(b"x\r\n.\r\n");
        }
        let before = rig.transcript();
        rig.pass(wait.mul_f64(0.99));
        assert_eq!(rig.transcript(), before, "{stage}: too soon");
        rig.pass(wait.mul_f64(0.01));
        assert_eq!(rig.transcript(), expected, "{stage}");
        assert_eq!(rig.records.iter().any(|record| record.duplicate_risk), stage == ".", "{stage}");
        assert!(rig.notes.contains(&Note::GatewayFailed(Failure::Timeout)), "{stage}");
    }
}

#[test]
fn attack_45_a_gateway_that_does_not_read() {
    let mut settings = settings();
    settings.size_max = u64::MAX / 4;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    let mut taken = 0;
    while rig.session.wants_client() {
        rig.session.on_client(&[b'x'; READ_MAX], rig.now);
        taken += READ_MAX;
        assert!(taken <= 4 * READ_MAX, "reading stops");
    }
    assert!(rig.session.gateway_out().len() <= TO_GATEWAY_HIGH + READ_MAX);
    // The client is not to blame, the gateway is.
    assert_eq!(rig.session.deadline(), Some(rig.now + Timeouts::default().gateway_write));
    rig.pass(Timeouts::default().gateway_write);
    assert!(rig.notes.contains(&Note::GatewayFailed(Failure::Timeout)));
    rig.send(b"\r\n.\r\n");
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2"));
}

// ---- Writes toward the gateway ----

#[test]
fn a_message_in_pieces_leaves_in_one() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "one\r\n", "two\r\n"]);
    assert_eq!(rig.gateway.body, b"");
    rig.play(&[".\r\n"]);
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0"));
    assert_eq!(rig.messages(), ["one\r\ntwo\r\n"]);
}

#[test]
fn pieces_wait_only_so_long_and_only_for_so_many_octets() {
    let mut settings = settings();
    settings.size_max = u64::MAX / 4;
    let mut rig = Rig::new(settings, FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, "one\r\n"]);
    rig.pass(GATHERING_TIME.mul_f64(0.9));
    rig.play(&["two\r\n"]);
    assert_eq!(rig.gateway.body, b"", "the first has waited less");
    rig.pass(GATHERING_TIME.mul_f64(0.1));
    assert!(rig.gateway.body.ends_with(b"one\r\ntwo\r\n"), "and now it has not");
    let line = format!("{}\r\n", "x".repeat(GATHERED_OCTETS - 2));
    rig.play(&[&line]);
    assert!(rig.gateway.body.ends_with(line.as_bytes()));
    rig.play(&["three\r\n"]);
    rig.pass(Duration::ZERO);
    assert!(rig.gateway.body.ends_with(line.as_bytes()), "a wait of its own begins");
    rig.play(&[".\r\n"]);
    assert_eq!(rig.messages(), [format!("one\r\ntwo\r\n{line}three\r\n")]);
}

// ---- Shutdown, idle gateways, directory ----

#[test]
fn shutdown_ends_idle_sessions_and_lets_transactions_finish() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.session.on_shutdown(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), "220, 421 4.3.2, end");

    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_shutdown(rig.now);
    rig.settle();
    rig.send(b"x\r\n.\r\n");
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 421 4.3.2, end"));
    assert_eq!(rig.messages(), ["x\r\n"]);
}

/// A transaction that begins after the shutdown would be cut by it.
#[test]
fn shutdown_begins_no_further_transaction() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.session.on_shutdown(rig.now);
    rig.settle();
    rig.send(b"x\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
    assert_eq!(rig.transcript(), format!("{READY}, 250 2.0.0, 421 4.3.2, end"));
}

#[test]
fn the_end_of_the_drain_completes_nothing() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    rig.send(b"x\r\n");
    rig.session.on_drained(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 421 4.3.2, end"));
    assert_eq!(rig.messages(), [""; 0]);
    assert_eq!(rig.records[0].cause, Cause::Shutdown);

    let answers = vec![(".", "")];
    let mut rig = Rig::new(settings(), FakeGateway { answers, ..FakeGateway::default() });
    rig.play(&[HELLO, ENVELOPE]);
    rig.send(b"x\r\n.\r\n");
    rig.session.on_drained(rig.now);
    rig.settle();
    assert_eq!(rig.transcript(), format!("{READY}, 451 4.4.2, 421 4.3.2, end"));
    assert!(rig.records[0].duplicate_risk);
}

/// Between two messages a session holds no connection: others may have it.
#[test]
fn a_connection_goes_back_after_each_message() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE]);
    assert!(rig.connected && !rig.pooled);
    rig.send(b"x\r\n.\r\n");
    assert!(!rig.connected && rig.pooled);
    rig.send(ENVELOPE.as_bytes());
    rig.send(b"y\r\n.\r\n");
    assert_eq!(rig.messages(), ["x\r\n", "y\r\n"]);
    assert_eq!(rig.connections, 1);
    rig.play(&["MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", "RSET\r\n"]);
    assert!(!rig.connected && rig.pooled, "after RSET likewise");
}

/// Ten thousand idle sessions are the target: what one keeps is its state and two small buffers.
#[test]
fn an_idle_session_is_small() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.play(&[HELLO, ENVELOPE, &format!("{}.\r\n", "x\r\n".repeat(600))]);
    assert!(rig.session.link.is_none());
    assert!(rig.session.input.capacity() <= BUFFER_KEPT && rig.session.to_client.capacity() <= BUFFER_KEPT);
    assert!(size_of::<Session>() <= 1024, "{}", size_of::<Session>());
}

#[test]
fn an_opening_that_takes_too_long_is_a_gateway_out_of_reach() {
    let now = Instant::now();
    let mut session = new_session(settings(), identity(), now);
    session.on_client(HELLO.as_bytes(), now);
    session.on_client(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", now);
    session.on_routing(routing(true), now);
    session.client_sent(session.client_out().len(), now);
    let deadline = session.deadline().unwrap();
    assert_eq!(deadline, now + Timeouts::default().open);
    session.on_deadline(deadline);
    assert!(session.client_out().starts_with(b"451 4.4.1"));
}

#[test]
fn no_gateway() {
    let mut rig = Rig::new(settings(), FakeGateway::default());
    rig.gateway_exists = false;
    rig.send(HELLO.as_bytes());
    rig.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
    assert_eq!(rig.transcript(), "220, 250, 250 2.1.0, 451 4.3.5");
}

/// A client that sends these and is gone: buffers stay bounded, the session ends, and the gateway has no more messages than
/// there were ends of one.
fn check_pieces(mut rig: Rig, pieces: &[Vec<u8>], ends: &[&[u8]]) {
    for piece in pieces {
        rig.send(piece);
        assert!(rig.session.input.len() <= ANY_LINE_MAX + READ_MAX);
    }
    rig.session.on_client_gone(rig.now);
    rig.settle();
    assert!(rig.session.is_done());
    let sent = pieces.concat();
    let most: usize = ends.iter().map(|end| memchr::memmem::find_iter(&sent, end).count()).sum();
    assert!(rig.messages().len() <= most);
}

proptest! {
    /// Whatever a client sends, in whatever pieces: no panic, bounded buffers, and no message without CRLF.CRLF.
    #[test]
    fn any_octets(pieces in proptest::collection::vec(prop_oneof![
        Just(b"EHLO pc\r\n".to_vec()), Just(b"MAIL FROM:<a@b>\r\n".to_vec()), Just(b"RCPT TO:<c@d>\r\n".to_vec()),
        Just(b"DATA\r\n".to_vec()), Just(b".\r\n".to_vec()), Just(b"RSET\r\n".to_vec()), Just(b"x\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
    ], 0..40)) {
        check_pieces(Rig::new(settings(), FakeGateway::default()), &pieces, &[b"\n.\r\n"]);
    }

    /// Whatever a gateway says: no panic, and no 250 for a message that it did not give.
    #[test]
    fn any_gateway(replies in proptest::collection::vec("(220|250|354|421|450|550|2|x)[ -][a\r\n]{0,3}(\r\n)?", 0..12)) {
        let now = Instant::now();
        let mut session = new_session(settings(), identity(), now);
        session.on_client(HELLO.as_bytes(), now);
        session.on_client(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", now);
        session.on_routing(routing(true), now);
        session.on_connected(granted(false, false), now);
        for reply in &replies {
            session.gateway_sent(session.gateway_out().len(), now);
            session.on_gateway_octets(reply.as_bytes(), now);
            session.client_sent(session.client_out().len(), now);
        }
        session.on_gateway_closed(now);
        session.on_client_gone(now);
        while session.next_action().is_some() {}
        prop_assert!(session.is_done());
    }
}
