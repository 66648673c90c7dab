//! Our side of the conversation with a gateway, from MAIL on: requests in, events out, no sockets and no clock of its own.
//!
//! ```text
//!  Ready: MAIL, RCPT, RSET (several on the way if PIPELINING), DATA --354--> body, dot --reply--> Ready
//! ```
//!
//! A reply belongs to the oldest command without one. An octet that arrives when no command is without a reply, a reply
//! that fits no command, or one that [`ReplyReader`] does not accept ends the connection: were it kept, every later
//! reply might be taken for its neighbour's.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::Arc,
    time::Instant,
};

use crate::{
    buffer::Buffer,
    command::{Body, Mail, Rcpt},
    gateway::Capabilities,
    limits::{GATHERED_OCTETS, GATHERING_TIME, Timeouts},
    relay::Settings,
    reply::{Reply, ReplyError, ReplyReader},
};

/// What the session asks of the gateway, in order.
#[derive(Debug)]
enum Request {
    Mail(Mail),
    Rcpt(Rcpt),
    Rset,
    Data,
}

/// What the next reply answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Mail,
    Rcpt,
    /// A command of a transaction that is given up; only `Rset` after it counts.
    Void,
    /// RCPT sent along with a MAIL that was refused: it cannot succeed.
    VoidRcpt,
    Rset,
    Data,
    Verdict,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Any final reply to MAIL; after a refusal none of its RCPTs gets an event.
    Mail(Reply),
    /// Any final reply to the oldest RCPT.
    Rcpt(Reply),
    /// 354, or a refusal.
    Data(Reply),
    /// The reply to the final dot.
    Verdict(Reply),
    /// The connection is of no more use. Nothing follows.
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the gateway said 421")]
    Shutdown,
    #[error("the gateway talked out of turn")]
    OutOfTurn,
    #[error("the gateway gave a reply that does not fit: {0}")]
    Unexpected(u16),
    #[error(transparent)]
    Malformed(#[from] ReplyError),
    #[error("the gateway did not answer in time")]
    Timeout,
    /// As `Timeout`, to the end of an earlier transaction: it says nothing of this one.
    #[error("the gateway did not answer RSET in time")]
    NotReset,
}

/// What the gateway remembers of our commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    /// MAIL went out, and neither a positive verdict nor RSET has undone it.
    Open,
    /// Between 354 and the dot.
    Body,
}

const NO_SMTPUTF8: Reply = Reply::new(550, 6, 7, "The mail gateway does not take internationalized mail");
const NO_EIGHT_BIT: Reply = Reply::new(554, 6, 3, "The mail gateway does not take 8-bit text");

#[derive(Debug)]
pub(crate) struct Upstream {
    settings: Arc<Settings>,
    offers: Arc<Capabilities>,
    requests: VecDeque<Request>,
    unanswered: VecDeque<Step>,
    transaction: Transaction,
    /// MAIL was refused: what follows it is void.
    refused: bool,
    reader: ReplyReader,
    out: Buffer,
    /// How long `out`, octets of a message, waits for more of them.
    gathers_until: Option<Instant>,
    events: VecDeque<Event>,
    failed: bool,
    reply_deadline: Option<Instant>,
    write_deadline: Option<Instant>,
}

impl Upstream {
    /// MAIL may follow.
    pub(crate) fn new(settings: Arc<Settings>, offers: Arc<Capabilities>) -> Self {
        Self {
            settings,
            offers,
            requests: VecDeque::new(),
            unanswered: VecDeque::new(),
            transaction: Transaction::None,
            refused: false,
            reader: ReplyReader::default(),
            out: Buffer::default(),
            gathers_until: None,
            events: VecDeque::new(),
            failed: false,
            reply_deadline: None,
            write_deadline: None,
        }
    }

    /// No command without a reply and no half message: a QUIT is in order.
    pub(crate) fn is_quiet(&self) -> bool {
        let idle = self.unanswered.is_empty() && self.requests.is_empty() && self.out.is_empty();
        idle && !self.failed && self.transaction != Transaction::Body
    }

    /// Quiet, and without a transaction: another one may follow.
    pub(crate) fn is_free(&self) -> bool {
        self.is_quiet() && self.transaction == Transaction::None
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn mail(&mut self, mail: Mail, now: Instant) {
        self.refused = false;
        self.request(Request::Mail(mail), now);
    }

    pub(crate) fn rcpt(&mut self, rcpt: Rcpt, now: Instant) {
        // Its MAIL has had its event, and there is none for this.
        if !self.refused {
            self.request(Request::Rcpt(rcpt), now);
        }
    }

    /// Only when every RCPT has its event: a gateway that answers 354 to a message without recipients needs a dot.
    pub(crate) fn data(&mut self, now: Instant) {
        debug_assert!(self.unanswered.is_empty() && self.requests.is_empty());
        self.request(Request::Data, now);
    }

    /// Gives the transaction up. The connection is fit for another one when this is answered with 2xx, and fails else.
    pub(crate) fn rset(&mut self, now: Instant) {
        self.requests.retain(|request| matches!(request, Request::Rset));
        for step in &mut self.unanswered {
            if matches!(step, Step::Mail | Step::Rcpt) {
                *step = Step::Void;
            }
        }
        debug_assert_ne!(self.transaction, Transaction::Body, "half a message ends with the connection");
        if std::mem::replace(&mut self.transaction, Transaction::None) == Transaction::Open {
            self.request(Request::Rset, now);
        }
    }

    /// Appends to the message. `write` adds stuffed octets.
    pub(crate) fn body(&mut self, now: Instant, write: impl FnOnce(&mut Buffer)) {
        debug_assert_eq!(self.transaction, Transaction::Body);
        let begins = self.out.is_empty();
        write(&mut self.out);
        if self.out.len() >= GATHERED_OCTETS {
            self.gathers_until = None;
        } else if begins {
            self.gathers_until = Some(now + GATHERING_TIME);
        }
        self.wrote(now);
    }

    /// Completes the message, whose last line is whole.
    pub(crate) fn finish(&mut self, now: Instant) {
        debug_assert_eq!(self.transaction, Transaction::Body);
        self.transaction = Transaction::Open;
        self.gathers_until = None;
        self.send(Step::Verdict, now, ".\r\n");
    }

    /// Octets for the gateway that are to go now.
    pub(crate) fn out(&self) -> &[u8] {
        if self.gathers_until.is_some() { &[] } else { self.out.filled() }
    }

    /// The gateway's kernel side took `count` octets.
    pub(crate) fn sent(&mut self, count: usize, now: Instant) {
        self.out.take(count);
        self.write_deadline = None;
        self.wrote(now);
    }

    /// Octets from the gateway.
    pub(crate) fn input(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() && !self.failed {
            let Some(&step) = self.unanswered.front() else {
                return self.fail(Failure::OutOfTurn);
            };
            match self.reader.read(&mut bytes, |_| {}) {
                Ok(None) => {}
                Ok(Some(reply)) => {
                    self.unanswered.pop_front();
                    self.arm(now);
                    self.reply(step, reply);
                }
                Err(error) => self.fail(error.into()),
            }
        }
        // Commands that the replies made possible go out only now: no octet read above can be taken for their answer.
        self.pump(now);
    }

    /// The gateway closed, or the socket failed.
    pub(crate) fn closed(&mut self) {
        self.fail(Failure::Closed);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.reply_deadline, self.write_deadline, self.gathers_until].into_iter().flatten().min()
    }

    pub(crate) fn on_deadline(&mut self, now: Instant) {
        if self.gathers_until.is_some_and(|until| until <= now) {
            self.gathers_until = None;
            self.wrote(now);
        }
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            let reset = matches!(self.unanswered.front(), Some(Step::Void | Step::Rset));
            self.fail(if reset { Failure::NotReset } else { Failure::Timeout });
        }
    }

    fn request(&mut self, request: Request, now: Instant) {
        self.requests.push_back(request);
        self.pump(now);
    }

    /// Sends what may be sent.
    fn pump(&mut self, now: Instant) {
        if self.failed {
            return;
        }
        while self.unanswered.is_empty() || self.offers.pipelining {
            // A lone MAIL waits for its first RCPT, for the client has its answer: one packet less each way.
            if self.offers.pipelining && self.requests.len() == 1 && matches!(self.requests[0], Request::Mail(_)) {
                return;
            }
            match self.requests.pop_front() {
                None => return,
                Some(Request::Mail(mail)) => self.send_mail(&mail, now),
                Some(Request::Rcpt(rcpt)) => self.send_rcpt(&rcpt, now),
                Some(Request::Rset) => self.send(Step::Rset, now, "RSET\r\n"),
                Some(Request::Data) => self.send(Step::Data, now, "DATA\r\n"),
            }
        }
    }

    fn send_mail(&mut self, mail: &Mail, now: Instant) {
        if mail.body == Some(Body::EightBitMime) && !self.offers.eight_bit_mime {
            return self.refuse_mail(NO_EIGHT_BIT);
        }
        if mail.smtputf8 && !self.offers.smtputf8 {
            return self.refuse_mail(NO_SMTPUTF8);
        }
        let Self { out, offers, .. } = self;
        write(out, format_args!("MAIL FROM:{}", mail.sender));
        write_parameter(out, "SIZE", mail.size.filter(|_| offers.size.is_some()).as_ref());
        match mail.body {
            Some(Body::EightBitMime) => out.extend(b" BODY=8BITMIME"),
            Some(Body::SevenBit) if offers.eight_bit_mime => out.extend(b" BODY=7BIT"),
            Some(Body::SevenBit) | None => {}
        }
        if mail.smtputf8 {
            out.extend(b" SMTPUTF8");
        }
        // A gateway without MT-PRIORITY has no use for one: nothing stands in its place (RFC 6710 section 4.2).
        if offers.mt_priority {
            write_parameter(out, "MT-PRIORITY", mail.priority.as_ref());
        }
        // A gateway without DSN reports what it likes to: the client's wishes end here (RFC 3461 section 5.2.2).
        if offers.dsn {
            write_parameter(out, "RET", mail.ret.as_ref());
            write_parameter(out, "ENVID", mail.envid.as_ref());
        }
        self.transaction = Transaction::Open;
        self.send(Step::Mail, now, "\r\n");
    }

    fn send_rcpt(&mut self, rcpt: &Rcpt, now: Instant) {
        let Self { out, offers, .. } = self;
        write(out, format_args!("RCPT TO:{}", rcpt.recipient));
        if offers.dsn {
            write_parameter(out, "NOTIFY", rcpt.notify.as_ref());
            write_parameter(out, "ORCPT", rcpt.orcpt.as_ref());
        }
        self.send(Step::Rcpt, now, "\r\n");
    }

    /// `end` completes the line, or is all of it.
    fn send(&mut self, step: Step, now: Instant, end: &str) {
        self.out.extend(end.as_bytes());
        self.wrote(now);
        self.unanswered.push_back(step);
        if self.unanswered.len() == 1 {
            self.arm(now);
        }
    }

    fn reply(&mut self, step: Step, reply: Reply) {
        let code = reply.code;
        // 421 may answer anything (RFC 5321 section 3.8). To our client it is a failure of this command only.
        let closing = code == 421;
        let reply = if closing { reply.with_code(451) } else { reply };
        match (step, code / 100) {
            (Step::Mail, 2) => self.events.push_back(Event::Mail(reply)),
            (Step::Mail, 4 | 5) => self.refuse_mail(reply),
            (Step::Rcpt, 2 | 4 | 5) => self.events.push_back(Event::Rcpt(reply)),
            (Step::Void, _) | (Step::VoidRcpt, 4 | 5) | (Step::Rset, 2) => {}
            (Step::Data, 3) if code == 354 => {
                self.transaction = Transaction::Body;
                self.events.push_back(Event::Data(reply));
            }
            (Step::Data, 4 | 5) => self.events.push_back(Event::Data(reply)),
            (Step::Verdict, 2 | 4 | 5) => {
                // After a refusal RFC 5321 has the gateway forget the message too; RSET makes sure.
                if code / 100 == 2 {
                    self.transaction = Transaction::None;
                }
                self.events.push_back(Event::Verdict(reply));
            }
            (Step::Mail | Step::Rcpt | Step::VoidRcpt | Step::Rset | Step::Data | Step::Verdict, _) => {
                return self.fail(Failure::Unexpected(code));
            }
        }
        if closing {
            self.fail(Failure::Shutdown);
        }
    }

    /// The RCPTs of a refused MAIL are void: those not sent are forgotten, those sent must be refused as well.
    /// The transaction stays as it was: of a MAIL that was sent the gateway may remember something. Postfix 3.7 holds the next message to the SIZE of
    /// the refused one until it sees RSET.
    fn refuse_mail(&mut self, reply: Reply) {
        self.refused = true;
        let next = self.requests.iter().position(|r| !matches!(r, Request::Rcpt(_))).unwrap_or(self.requests.len());
        self.requests.drain(..next);
        for step in self.unanswered.iter_mut().filter(|step| **step == Step::Rcpt) {
            *step = Step::VoidRcpt;
        }
        self.events.push_back(Event::Mail(reply));
    }

    fn fail(&mut self, failure: Failure) {
        if !self.failed {
            self.failed = true;
            self.reply_deadline = None;
            self.write_deadline = None;
            self.events.push_back(Event::Failed(failure));
        }
    }

    /// The wait for the oldest unanswered command begins.
    fn arm(&mut self, now: Instant) {
        let Timeouts { mail, recipient, data, verdict, .. } = self.settings.timeouts;
        self.reply_deadline = self.unanswered.front().map(|step| {
            now + match step {
                Step::Mail | Step::Rset => mail,
                Step::Rcpt | Step::Void | Step::VoidRcpt => recipient,
                Step::Data => data,
                Step::Verdict => verdict,
            }
        });
    }

    fn wrote(&mut self, now: Instant) {
        if !self.out().is_empty() && !self.failed {
            self.write_deadline.get_or_insert(now + self.settings.timeouts.gateway_write);
        }
    }
}

fn write_parameter(out: &mut Buffer, name: &str, value: Option<&impl fmt::Display>) {
    if let Some(value) = value {
        write(out, format_args!(" {name}={value}"));
    }
}

fn write(out: &mut Buffer, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a buffer in memory takes every write");
}
