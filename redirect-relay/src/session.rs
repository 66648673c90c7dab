//! One client's session: octets and events in, octets and actions out; no sockets, no clock of its own.
//!
//! ```text
//!            EHLO, MAIL, RCPT, ...                    354               CRLF.CRLF            reply
//!  banner -> Command ------ DATA ------> AwaitGo -----------> Body ------------> Verdict ------------> Command
//!               |                           | refused           | fault, size, loop, gateway lost:
//!               |                           v                   | swallow to CRLF.CRLF, refuse
//!               |                        Command                `----------------------------------> Command
//!               `-- QUIT, 421, a fault --> Closing
//! ```
//!
//! Cut-through: each verdict is the gateway's. The client's 250 for a message follows the gateway's, and the gateway gets
//! the final dot only after the client's exact CRLF.CRLF and all our own verdicts. Whatever else ends a body (EOF, a
//! time-out, a fault) ends the gateway connection without the dot.
//!
//! A message may also come in chunks (BDAT): `chunks` has their states.
//!
//! Replies keep the order of their commands. While RCPTs are with the gateway only further RCPTs are taken; every other
//! command waits in `input`, which is bounded because reading stops.

use std::{
    collections::VecDeque,
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    address::Sender,
    auth::{Claim, Credentials, Exchange, Users},
    buffer::Buffer,
    certificate::Certificate,
    chunk::Stuffer,
    command::{self, Chunk, Command, Grammar, Mail, NEEDS_SMTPUTF8, Rcpt, Refusal},
    data::Scanner,
    domain::Domain,
    gateway::{
        Allowance, Capabilities, Extensions, Gateway, Introduction, Item, OpenError, OpenReason, Stage as OpenStage,
        Want,
    },
    limits::Limits,
    limits::{
        ANY_LINE_MAX, AUTH_LINE_MAX, CHUNK_SMALL, HOPS_MAX, RECIPIENTS_IN_FLIGHT, TEXT_LINE_MAX, TO_CLIENT_HIGH,
        TO_GATEWAY_HIGH, TRACE_AND_END_ROOM,
    },
    mend::Mender,
    policy::LineEndings,
    quota::{self, Account, Kind},
    record::{Cause, Outcome, Record, Status},
    relay::{Identity, Settings},
    reply::Reply,
    route::{Query, Routing, Target},
    tarpit::{Place, Places},
    trace::{self, Helo, Hops, With},
    upstream::{Event, Failure, Upstream},
    watch::{self, Voice, Who},
};

mod bridge;
mod chunks;
mod flow;
mod login;
mod story;

pub(crate) use self::{flow::CONNECTIONS_OVER_QUOTA, login::Verdict};

/// What the driver must do. At most one gateway connection or attempt exists at a time.
#[derive(Debug)]
pub(crate) enum Action {
    /// Tell the routing of the moment with [`Session::on_routing`].
    AskRouting,
    /// Connect to a gateway, then call [`Session::on_connected`] or [`Session::on_unreachable`]. All that may be tried
    /// shares the time `until`. `fresh`: not a connection that has served before.
    Connect {
        want: Box<Want>,
        fresh: bool,
        until: Instant,
    },
    /// Go on behind the latest connection: the next address, or the next gateway.
    ConnectNext {
        until: Instant,
    },
    /// The connection is fit for another message.
    Release,
    /// Leave out the address that the connection came from: it is on a block list. Comes before its `Hangup`.
    SuspendEgress,
    /// Forget an attempt under way and close the gateway connection, with QUIT if that is in order.
    Hangup {
        quit: bool,
    },
    /// Begin TLS with the client, then call [`Session::on_encrypted`] or [`Session::on_handshake_failed`].
    Handshake(Certificate),
    /// Ask the table, then call [`Session::on_verified`].
    Verify {
        users: Arc<Users>,
        credentials: Credentials,
    },
    /// Connect to the class's own gateway in the client's name, then call [`Session::on_bridged`]. All that may be tried shares
    /// the time `until`.
    Bridge {
        introduction: Box<Introduction>,
        /// The client spoke over TLS.
        encrypted: bool,
        claim: Arc<Claim>,
        until: Instant,
    },
    /// A message or an attempt at one is over.
    Record(Arc<Record>),
    /// Keep the subscriber away for so long.
    Lock(Duration),
    Note(Note),
}

/// Things worth counting that are no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    ClientTimeout,
    /// We ended the session for what the client did.
    Cut,
    HandshakeFailed,
    AuthFailed,
    OverQuota(Kind),
    /// A message that came over TLS goes on in clear.
    Downgrade,
    PlaceLost,
    GatewayUnreachable(OpenError),
    GatewayFailed(Failure),
}

/// A connection to a gateway, ready for MAIL.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) capabilities: Arc<Capabilities>,
    /// What the gateway has had of its limits.
    pub(crate) allowance: Arc<Allowance>,
    /// Our address.
    pub(crate) egress: Option<IpAddr>,
    /// It is one of those that the gateway lists, and another of them may serve.
    pub(crate) egress_listed: bool,
    /// TLS with the gateway.
    pub(crate) encrypted: bool,
    /// It served an earlier message, so it may have been closed meanwhile without any fault.
    pub(crate) reused: bool,
}

impl Granted {
    fn admits_message(&self, now: Instant) -> bool {
        self.allowance.admit_message(&self.gateway.limits, now)
    }

    fn has_recipient(&self, now: Instant) -> bool {
        self.allowance.has_recipient(&self.gateway.limits, now)
    }

    fn charge(&self, item: Item, amount: u64, now: Instant) {
        self.allowance.charge(&self.gateway.limits, item, amount, now);
    }
}

use self::{flow::OVER_QUOTA, story::Story};

/// What the sessions of a relay share.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    pub(crate) quotas: Arc<quota::Table>,
    pub(crate) places: Arc<Places>,
    pub(crate) stage: Arc<watch::Stage>,
}

/// Answers to those who get no session.
pub(crate) const NO_CLASS: Reply = Reply::new(554, 7, 1, "No mail service for your address");
pub(crate) const TOO_MANY_SESSIONS: Reply = Reply::new(421, 3, 2, "Too many sessions, try again later");
pub(crate) const NOT_IDENTIFIED: Reply = Reply::new(421, 3, 0, "Temporary failure, try again later");
pub(crate) const NOT_REACHED: Reply = Reply::new(421, 4, 1, "The server does not answer");
pub(crate) const EARLY_TALK: Reply = Reply::new(554, 5, 0, "Wait for the reply before you go on");

const OK: Reply = Reply::new(250, 0, 0, "Ok");
const SENDER_OK: Reply = Reply::new(250, 1, 0, "Sender ok");
const BYE: Reply = Reply::new(221, 0, 0, "Bye");
const NOT_VERIFIED: Reply = Reply::new(252, 0, 0, "Cannot verify, send mail and see");
const HELLO_FIRST: Reply = Reply::new(503, 5, 1, "Send EHLO first");
const NO_ACCESS: Reply = Reply::new(550, 7, 1, "Your address may not send mail here");
const AUTH_FIRST: Reply = Reply::new(530, 7, 0, "Authentication required");
const TLS_FIRST: Reply = Reply::new(530, 7, 0, "Send STARTTLS first");
const NESTED_MAIL: Reply = Reply::new(503, 5, 1, "A transaction is open");
const MAIL_FIRST: Reply = Reply::new(503, 5, 1, "Send MAIL first");
const CHUNKS_BEGUN: Reply = Reply::new(503, 5, 1, "The message comes by BDAT");
const CHUNK_RECEIVED: Reply = Reply::new(250, 0, 0, "Octets received");
const TOO_MANY_MESSAGES: Reply = Reply::new(421, 7, 0, "Too many messages in one session");
const NO_LITERALS: Reply = Reply::new(550, 7, 1, "Mail to address literals is not accepted");
const NOTIFICATION_TO_MANY: Reply = Reply::new(550, 7, 1, "A notification has one recipient");
const LONG_LINE: Reply = Reply::new(550, 6, 0, "A line of the message is too long");
const RCPT_FIRST: Reply = Reply::new(503, 5, 1, "Send RCPT first");
const NO_EXTENSIONS: Reply = Reply::new(555, 5, 4, "Parameters need EHLO");
const NO_RECIPIENTS: Reply = Reply::new(554, 5, 1, "No valid recipients");
const TOO_MANY_RECIPIENTS: Reply = Reply::new(452, 5, 3, "Too many recipients, send the others separately");
const TOO_BIG: Reply = Reply::new(552, 3, 4, "Message too big");
const LOOP: Reply = Reply::new(554, 4, 6, "Too many hops, mail loop");
const LINE_ENDINGS: Reply = Reply::new(550, 5, 2, "Message contains a CR, LF or NUL that is no line end");
const TOO_MANY_ERRORS: Reply = Reply::new(421, 7, 0, "Too many errors");
const TOO_MANY_COMMANDS: Reply = Reply::new(421, 7, 0, "Too many commands without a message");
const TOO_MANY_REFUSED: Reply = Reply::new(421, 7, 1, "Too many refused recipients");
const CLIENT_TIMEOUT: Reply = Reply::new(421, 4, 2, "Timeout");
const CLIENT_CUT: Reply = Reply::new(421, 4, 2, "Connection ended within a message");
const SHUTDOWN: Reply = Reply::new(421, 3, 2, "Service is shutting down");
const NO_GATEWAY: Reply = Reply::new(451, 3, 5, "No mail gateway is configured");
const GATEWAY_UNREACHABLE: Reply = Reply::new(451, 4, 1, "The mail gateway does not answer");
const GATEWAY_REFUSES: Reply = Reply::new(451, 3, 2, "The mail gateway refuses service");
const GATEWAY_BUSY: Reply = Reply::new(451, 3, 2, "The mail gateway cannot take messages at the moment");
const GATEWAY_INSECURE: Reply = Reply::new(451, 7, 5, "The connection to the mail gateway cannot be secured");
const GATEWAY_DENIES: Reply = Reply::new(451, 7, 0, "The mail gateway does not accept our account");
const OTHER_ROUTE: Reply = Reply::new(452, 5, 3, "Another route, send to this recipient separately");
const GATEWAY_LOST: Reply = Reply::new(451, 4, 2, "The connection to the mail gateway is lost");
const OUTCOME_UNKNOWN: Reply = Reply::new(451, 4, 2, "Outcome unknown, the message may have been delivered");

#[derive(Debug)]
enum Phase {
    Command,
    /// DATA is with the gateway.
    AwaitGo(AwaitGo),
    Body(Box<Lines>),
    /// `left` octets of a chunk are still to come.
    Chunk {
        chunks: Box<Chunks>,
        left: u64,
        last: bool,
    },
    /// `left` octets of a chunk are swallowed before the client gets this answer.
    Skip {
        left: u64,
        block_rest: u64,
        reply: Reply,
    },
    /// The dot is with the gateway.
    Verdict {
        octets: u64,
    },
    /// TLS is on its way, once the client has our answer to STARTTLS.
    Handshake,
    /// A response to our challenge is awaited.
    Auth(Box<Exchange>),
    /// The credentials are being looked at.
    Verifying,
    /// The session is over once the client has our last words.
    Closing,
}

/// What the client does while the gateway has DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AwaitGo {
    /// It said DATA, and must be silent.
    Silent,
    /// It said BDAT, and needs no leave for its octets.
    Chunk(Chunk),
}

/// A message on its way.
#[derive(Debug)]
struct Incoming {
    hops: Hops,
    /// Octets of the message so far, by RFC 1870: without stuffing.
    octets: u64,
    /// Our trace field has left.
    traced: bool,
    /// Octets still to come before the next deadline is granted.
    block_rest: u64,
    /// Octets of the line in hand, and what they may be.
    line: u64,
    line_max: u64,
    /// The message is lost; what remains is swallowed and then answered with this.
    refused: Option<(Reply, Cause)>,
}

/// A message that ends with a dot (DATA).
#[derive(Debug)]
struct Lines {
    scanner: Scanner,
    /// Where bare LFs are line ends.
    mender: Option<Mender>,
    /// Octets taken from the client, stuffing included.
    taken: u64,
    /// Octets passed on, stuffing included.
    forwarded: u64,
    incoming: Incoming,
}

/// A message that comes in counted chunks (BDAT).
#[derive(Debug)]
struct Chunks {
    stuffer: Stuffer,
    incoming: Incoming,
}

#[derive(Debug)]
struct Transaction {
    mail: Mail,
    stage: Stage,
    /// Where mail goes, from the first command of the transaction to its end.
    routing: Option<Arc<Routing>>,
    /// Where the message goes: its latest recipient's route, until one is accepted.
    target: Option<Target>,
    /// It goes there whoever its recipients are.
    only: bool,
    /// The connection that it has, or had last.
    via: Option<Granted>,
    /// RCPTs without an answer, oldest first. They are kept so that a fresh connection can repeat them.
    waiting: VecDeque<Rcpt>,
    accepted: u32,
    /// The message between two of its chunks.
    chunks: Option<Box<Chunks>>,
    /// RCPTs beyond the limit.
    overshoot: u32,
    story: Story,
    /// The latest refusal of a recipient.
    refusal: Option<Status>,
    /// The client was told something that came from the gateway: the transaction is bound to that connection.
    bound: bool,
    started: Instant,
}

/// A recipient that the gateway is not asked about.
#[derive(Debug)]
enum OwnRefusal {
    Error(Reply),
    Policy(Reply),
    Quota(Kind),
}

#[derive(Debug)]
enum Stage {
    /// The directory is asked for the routing.
    Lookup,
    /// The first recipient is awaited.
    Routed,
    /// A connection is being made.
    Opening(Opening),
    /// MAIL is with the gateway, or accepted by it.
    Live,
    /// Every RCPT gets this answer: MAIL was refused or the gateway is out of reach.
    Refused(Reply),
}

#[derive(Debug, Clone)]
struct Opening {
    since: Instant,
    /// What recipients are told if no connection comes of it: why the latest one was of no use, if there was one.
    otherwise: Option<Reply>,
}

#[derive(Debug)]
struct Link {
    target: Target,
    granted: Granted,
    upstream: Upstream,
    /// When its opening began.
    since: Instant,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts about the client that do not exclude each other")]
pub(crate) struct Session {
    settings: Arc<Settings>,
    identity: Identity,
    offered: Extensions,
    phase: Phase,
    helo: Option<Helo>,
    transaction: Option<Box<Transaction>>,
    link: Option<Box<Link>>,
    input: Buffer,
    to_client: Buffer,
    actions: VecDeque<Action>,
    client_deadline: Instant,
    write_deadline: Option<Instant>,
    client_ended: bool,
    client_gone: bool,
    draining: bool,
    errors: u32,
    commands: u32,
    messages: u32,
    recipients_refused: u32,
    auth_failures: u32,
    encrypted: bool,
    authenticated: bool,
    /// Where all mail of the session goes, once the client has logged in there: see `bridge`.
    bridged: Option<Target>,
    account: Account,
    places: Arc<Places>,
    voice: Voice,
    /// In the tar-pit: until when, how much of `to_client` is older than that, and the place there.
    held_until: Option<Instant>,
    sayable: usize,
    place: Option<Place>,
    delays: u32,
    locked: bool,
}

impl Session {
    /// Greets the client. `offered` is what its gateways can do.
    pub(crate) fn new(
        settings: Arc<Settings>,
        identity: Identity,
        offered: Extensions,
        Means { quotas, places, stage }: &Means,
        now: Instant,
    ) -> Self {
        let account = Account::new(Arc::clone(quotas), identity.client.ip(), Arc::clone(&identity.class));
        let client_deadline = now + settings.timeouts.command;
        let mut session = Self {
            settings,
            identity,
            offered,
            phase: Phase::Command,
            helo: None,
            transaction: None,
            link: None,
            input: Buffer::default(),
            to_client: Buffer::default(),
            actions: VecDeque::new(),
            client_deadline,
            write_deadline: None,
            client_ended: false,
            client_gone: false,
            draining: false,
            errors: 0,
            commands: 0,
            messages: 0,
            recipients_refused: 0,
            auth_failures: 0,
            encrypted: false,
            authenticated: false,
            bridged: None,
            account,
            places: Arc::clone(places),
            voice: Voice::new(stage),
            held_until: None,
            sayable: 0,
            place: None,
            delays: 0,
            locked: false,
        };
        session.tell(Who::Note, || format!("dialled {}", session.identity.original));
        session.say(&format!("220 {} ESMTP\r\n", session.settings.hostname), now);
        session
    }

    pub(crate) const fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Nothing is left to do; what the gateway or the client may still say does not matter.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Closing) && self.to_client.is_empty() && self.actions.is_empty()
    }

    /// Whether the client may still send what we shall not read: closing at once could cost it our last reply.
    pub(crate) const fn client_may_talk(&self) -> bool {
        !self.client_ended
    }

    /// The earliest wait that ends. Call [`Session::on_deadline`] then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let link = self.link.as_ref().and_then(|link| link.upstream.deadline());
        let write = self.write_deadline.filter(|_| !self.client_out().is_empty());
        [self.client_wait(), write, self.held_until, self.opening_deadline(), link].into_iter().flatten().min()
    }

    pub(crate) fn on_deadline(&mut self, now: Instant) {
        let over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if over(self.held_until) {
            return self.release(now);
        }
        if over(self.write_deadline) && !self.client_out().is_empty() {
            self.actions.push_back(Action::Note(Note::ClientTimeout));
            return self.on_client_gone(now);
        }
        if over(self.client_wait()) {
            self.actions.push_back(Action::Note(Note::ClientTimeout));
            return self.end(&CLIENT_TIMEOUT, Cause::ClientTimeout, now);
        }
        if over(self.opening_deadline()) {
            let reason = OpenReason::Timeout;
            self.on_unreachable(OpenError { stage: OpenStage::Tcp, reason }, now);
        }
        if let Some(link) = &mut self.link {
            link.upstream.on_deadline(now);
        }
        self.advance(now);
    }

    // ---- The client ----

    /// Whether to read from the client: backpressure is that we do not.
    pub(crate) fn wants_client(&self) -> bool {
        if self.client_ended || self.is_held() {
            return false;
        }
        match self.phase {
            Phase::Command => self.may_read_commands() && self.to_client.len() < TO_CLIENT_HIGH,
            Phase::AwaitGo(AwaitGo::Silent) | Phase::Skip { .. } => true,
            Phase::Body(_) => self.gateway_out().len() < TO_GATEWAY_HIGH,
            Phase::Chunk { .. } => self.input.is_empty() && self.gateway_out().len() < TO_GATEWAY_HIGH,
            // One read ahead, for the next transaction may follow the dot at once (RFC 2920 section 3.1).
            Phase::AwaitGo(AwaitGo::Chunk(_)) | Phase::Verdict { .. } => self.input.is_empty(),
            Phase::Auth(_) => self.input.len() < AUTH_LINE_MAX,
            Phase::Handshake | Phase::Verifying | Phase::Closing => false,
        }
    }

    fn may_read_commands(&self) -> bool {
        self.input.len() < ANY_LINE_MAX || self.input.len() < command::room(self.input.filled(), self.grammar())
    }

    pub(crate) fn client_out(&self) -> &[u8] {
        let waiting = self.to_client.filled();
        if self.is_held() { &waiting[..self.sayable.min(waiting.len())] } else { waiting }
    }

    /// The client's kernel side took `count` octets of [`Session::client_out`].
    pub(crate) fn client_sent(&mut self, count: usize, now: Instant) {
        self.to_client.take(count);
        self.sayable = self.sayable.saturating_sub(count);
        if self.to_client.is_empty() {
            self.write_deadline = None;
            self.begin_handshake();
        }
        self.advance(now);
    }

    pub(crate) fn on_client(&mut self, mut bytes: &[u8], now: Instant) {
        match self.phase {
            Phase::Body(_) => bytes = &bytes[self.body(bytes, now)..],
            Phase::Chunk { .. } | Phase::Skip { .. } if self.input.is_empty() => {
                bytes = &bytes[self.chunk(bytes, now)..];
            }
            _ => {}
        }
        match self.phase {
            Phase::AwaitGo(AwaitGo::Silent) if !bytes.is_empty() => self.cut(&EARLY_TALK, now),
            Phase::Handshake | Phase::Closing => {}
            _ => self.input.extend(bytes),
        }
        self.advance(now);
    }

    /// The client will send no more, but may well be listening.
    pub(crate) fn on_client_ended(&mut self, now: Instant) {
        self.client_ended = true;
        self.advance(now);
    }

    /// The client is neither sending nor listening.
    pub(crate) fn on_client_gone(&mut self, now: Instant) {
        self.client_ended = true;
        self.client_gone = true;
        self.to_client.clear();
        self.write_deadline = None;
        self.held_until = None;
        self.place = None;
        // A message that is with the gateway is awaited: its outcome must be on record.
        if !matches!(self.phase, Phase::Verdict { .. }) {
            self.close(Cause::ClientLost, now);
        }
    }

    // ---- The gateway ----

    pub(crate) fn on_routing(&mut self, routing: Arc<Routing>, now: Instant) {
        if !self.awaits_routing() {
            return;
        }
        self.unbridge_if_out_of_service(&routing);
        let only = self.bridged.as_ref().or_else(|| routing.only_target(&self.identity.class)).cloned();
        let Some(transaction) = &mut self.transaction else { return };
        transaction.stage = Stage::Routed;
        transaction.routing = Some(routing);
        // The recipients cannot change it: the connection is made while the client still speaks.
        if let Some(target) = only {
            transaction.only = true;
            self.open(&target, now);
        }
        self.advance(now);
    }

    pub(crate) fn on_connected(&mut self, granted: Granted, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return self.hangup() };
        let (Stage::Opening(Opening { since, .. }), Some(target)) = (&transaction.stage, &transaction.target) else {
            return self.hangup();
        };
        transaction.via = Some(granted.clone());
        let upstream = Upstream::new(Arc::clone(&self.settings), Arc::clone(&granted.capabilities));
        self.link = Some(Box::new(Link { target: target.clone(), granted, upstream, since: *since }));
        self.note_ready(now);
        self.start_upstream(now);
        self.advance(now);
    }

    /// No gateway can be reached, and nothing is left to try.
    pub(crate) fn on_unreachable(&mut self, error: OpenError, now: Instant) {
        let Some(Transaction { stage: Stage::Opening(opening), .. }) = self.transaction.as_deref() else { return };
        let reply = opening.otherwise.clone().unwrap_or_else(|| unreachable_reply(&error));
        self.hangup();
        self.actions.push_back(Action::Note(Note::GatewayUnreachable(error)));
        self.refuse_recipients(&reply, now);
        self.advance(now);
    }

    pub(crate) fn gateway_out(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], |link| link.upstream.out())
    }

    /// The gateway's kernel side took `count` octets of [`Session::gateway_out`].
    pub(crate) fn gateway_sent(&mut self, count: usize, now: Instant) {
        let held_back = !self.wants_client();
        if let Some(link) = &mut self.link {
            link.upstream.sent(count, now);
        }
        if matches!(self.phase, Phase::Chunk { .. }) && !self.input.is_empty() {
            self.advance(now);
        }
        // While we did not read, the client could not be in default.
        if held_back && self.wants_client() && matches!(self.phase, Phase::Body(_) | Phase::Chunk { .. }) {
            self.client_deadline = now + self.settings.timeouts.data_block;
        }
    }

    pub(crate) fn on_gateway_octets(&mut self, bytes: &[u8], now: Instant) {
        if let Some(link) = &mut self.link {
            link.upstream.input(bytes, now);
        }
        self.advance(now);
    }

    pub(crate) fn on_gateway_closed(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.upstream.closed();
        }
        self.advance(now);
    }

    // ---- The caller ----

    /// No new transaction from here on; one that is open goes on.
    pub(crate) fn on_shutdown(&mut self, now: Instant) {
        self.draining = true;
        if self.is_held() {
            self.release(now);
        }
        self.advance(now);
    }

    /// The time for open transactions is over.
    pub(crate) fn on_drained(&mut self, now: Instant) {
        if self.is_held() {
            self.release(now);
        }
        self.end(&SHUTDOWN, Cause::Shutdown, now);
    }

    // ---- Waits ----

    fn client_wait(&self) -> Option<Instant> {
        let waits = !self.is_held()
            && match &self.phase {
                Phase::Command => self.transaction.as_ref().is_none_or(|t| t.waiting.is_empty()),
                Phase::Body(_) | Phase::Chunk { .. } | Phase::Skip { .. } => self.wants_client(),
                Phase::Auth(_) | Phase::Handshake => true,
                Phase::AwaitGo(_) | Phase::Verdict { .. } | Phase::Verifying | Phase::Closing => false,
            };
        waits.then_some(self.client_deadline)
    }

    fn opening_deadline(&self) -> Option<Instant> {
        let transaction = self.transaction.as_ref()?;
        match transaction.stage {
            Stage::Opening(Opening { since, .. }) => Some(since + self.settings.timeouts.open),
            Stage::Lookup | Stage::Routed | Stage::Live | Stage::Refused(_) => None,
        }
    }

    // ---- Progress ----

    /// Does all that can be done without further input.
    fn advance(&mut self, now: Instant) {
        loop {
            while let Some(event) = self.link.as_mut().and_then(|link| link.upstream.next_event()) {
                self.on_event(event, now);
            }
            let idle = self.transaction.is_none() && self.bridged.is_none();
            if idle && self.link.as_ref().is_some_and(|link| link.upstream.is_free()) {
                self.link = None;
                self.actions.push_back(Action::Release);
            }
            if !self.chunk_from_input(now) && !self.response_from_input(now) && !self.next_command(now) {
                break;
            }
        }
        // DATA may have waited for the answers to RCPTs when its client left, so this is no matter of the moment it left.
        let short = match self.phase {
            Phase::AwaitGo(AwaitGo::Silent) | Phase::Body(_) => true,
            Phase::Chunk { .. } | Phase::Skip { .. } => self.input.is_empty(),
            _ => false,
        };
        if self.client_ended && short {
            return self.end(&CLIENT_CUT, Cause::ClientLost, now);
        }
        let waits = self.recipients_waiting() > 0 || self.awaits_routing();
        if waits || !matches!(self.phase, Phase::Command | Phase::Auth(_)) {
            return;
        }
        if self.draining && self.transaction.is_none() {
            self.end(&SHUTDOWN, Cause::Shutdown, now);
        } else if self.client_ended && self.to_client.len() < TO_CLIENT_HIGH {
            // Every whole command has been answered, and a rest of one will never be whole.
            self.close(Cause::ClientLost, now);
        }
    }

    fn awaits_routing(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| matches!(transaction.stage, Stage::Lookup))
    }

    fn recipients_waiting(&self) -> usize {
        self.transaction.as_ref().map_or(0, |transaction| transaction.waiting.len())
    }

    /// Takes one command if it may be taken now.
    fn next_command(&mut self, now: Instant) -> bool {
        let ready = matches!(self.phase, Phase::Command) && self.to_client.len() < TO_CLIENT_HIGH && !self.is_held();
        if !ready || self.awaits_routing() || (self.draining && self.transaction.is_none()) {
            return false;
        }
        let Some((length, parsed)) = command::next(self.input.filled(), self.grammar()) else { return false };
        if self.recipients_waiting() > 0 && !self.may_join(&parsed, now) {
            return false;
        }
        match parsed {
            Ok(Command::Auth(_)) => self.input.take_secret(length),
            _ => self.input.take(length),
        }
        self.tell(Who::Client, || watch::redacted(&parsed));
        self.client_deadline = now + self.settings.timeouts.command;
        match parsed {
            Ok(command) => self.on_command(command, now),
            Err(Refusal { reply, close: true }) => self.cut(&reply, now),
            Err(Refusal { reply, close: false }) => self.error(&reply, now),
        }
        true
    }

    /// Whether a command may follow RCPTs that have no answer: only one that the gateway will answer too.
    fn may_join(&self, parsed: &Result<Command, Refusal>, now: Instant) -> bool {
        let Some(transaction) = &self.transaction else { return true };
        let Ok(Command::Rcpt(rcpt)) = parsed else { return false };
        let waiting = transaction.waiting.len();
        self.own_refusal(rcpt, now).is_none()
            && waiting < RECIPIENTS_IN_FLIGHT
            && u64::from(transaction.accepted) + (waiting as u64) < u64::from(self.recipients_max())
            && self.target_of(rcpt).is_some_and(|target| transaction.target.as_ref() == Some(target))
            && self.link.as_ref().is_none_or(|link| link.granted.has_recipient(now))
    }

    /// Where a recipient's mail goes. `None`: there is no route.
    fn target_of(&self, rcpt: &Rcpt) -> Option<&Target> {
        if self.bridged.is_some() {
            return self.bridged.as_ref();
        }
        let transaction = self.transaction.as_ref()?;
        if transaction.only {
            return transaction.target.as_ref();
        }
        let (domain, sender) = (rcpt.recipient.domain(), transaction.mail.sender.domain());
        let query = Query {
            domain: domain.as_ref().map(Domain::as_str),
            sender: sender.as_ref().map(Domain::as_str),
            class: &self.identity.class,
            size: transaction.mail.size.unwrap_or(0),
            priority: transaction.mail.priority(),
        };
        Some(transaction.routing.as_ref()?.decide(&query)?.target)
    }

    /// Recipients of one message: the gateway may take fewer than we do.
    fn recipients_max(&self) -> u32 {
        let gateway = self.link.as_ref().map(|link| &link.granted);
        let configured = gateway.and_then(|granted| granted.gateway.limits.recipients_per_message_max);
        let offered = gateway.and_then(|granted| granted.capabilities.recipients_max);
        [configured, offered].into_iter().flatten().fold(self.settings.limits.recipients_max, u32::min)
    }

    fn on_command(&mut self, command: Command, now: Instant) {
        let free = match command {
            Command::Rcpt(_) => true,
            Command::Bdat(chunk) => chunk.octets >= CHUNK_SMALL && self.transaction.is_some(),
            _ => false,
        };
        if !free {
            self.commands += 1;
            if self.commands > self.settings.limits.commands_max {
                return self.cut(&TOO_MANY_COMMANDS, now);
            }
        }
        match command {
            Command::Hello(helo) => self.hello(helo, now),
            Command::Mail(mail) => self.mail(mail, now),
            Command::Rcpt(rcpt) => self.rcpt(rcpt, now),
            Command::Data => self.data(now),
            Command::Bdat(chunk) => self.bdat(chunk, now),
            Command::Starttls => self.starttls(now),
            Command::Auth(login) => self.auth(&login, now),
            Command::Rset => {
                self.abandon(Cause::ClientReset, now);
                self.answer(&OK, now);
            }
            Command::Noop => self.answer(&OK, now),
            Command::Vrfy => self.answer(&NOT_VERIFIED, now),
            Command::Quit => {
                self.answer(&BYE, now);
                self.client_ended = true;
                self.close(Cause::ClientReset, now);
            }
        }
    }

    fn hello(&mut self, helo: Helo, now: Instant) {
        // EHLO ends a pipelined group (RFC 2920 section 3.1): who goes on without the reply is no mail client.
        if !self.input.is_empty() {
            return self.cut(&EARLY_TALK, now);
        }
        self.abandon(Cause::ClientReset, now);
        let hostname = &self.settings.hostname;
        let reply = if helo.extended { self.offers() } else { format!("250 {hostname}\r\n") };
        self.say(&reply, now);
        self.helo = Some(helo);
    }

    /// The answer to EHLO.
    fn offers(&self) -> String {
        let Extensions { eight_bit_mime, smtputf8, dsn, one_domain, .. } = self.offered;
        let Limits { recipients_max, messages_max, .. } = self.settings.limits;
        let mut text = format!("250-{}\r\n250-PIPELINING\r\n250-SIZE {}\r\n", self.settings.hostname, self.size_max());
        let offers = [
            (self.offers_tls(), "STARTTLS"),
            (self.offers_auth(), "AUTH PLAIN LOGIN"),
            (eight_bit_mime, "8BITMIME"),
            (smtputf8, "SMTPUTF8"),
            (dsn, "DSN"),
            (self.identity.policy.mt_priority, "MT-PRIORITY"),
        ];
        for (offered, keyword) in offers {
            if offered {
                text.extend(["250-", keyword, "\r\n"]);
            }
        }
        let domains = if one_domain { " RCPTDOMAINMAX=1" } else { "" };
        text.extend([
            format!("250-LIMITS MAILMAX={messages_max} RCPTMAX={recipients_max}{domains}\r\n").as_str(),
            "250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n",
        ]);
        text
    }

    /// What the client may use: what it was offered, which HELO does not show.
    fn grammar(&self) -> Grammar {
        let Extensions { smtputf8, dsn, .. } = self.offered;
        Grammar { smtputf8, dsn, priority: self.identity.policy.mt_priority, auth: self.offers_auth() }
    }

    fn size_max(&self) -> u64 {
        self.settings.size_max.min(self.offered.size_max)
    }

    fn mail(&mut self, mail: Mail, now: Instant) {
        if self.ends_unbridged(now) {
            return;
        }
        let Some(helo) = &self.helo else { return self.error(&HELLO_FIRST, now) };
        if self.transaction.is_some() {
            return self.error(&NESTED_MAIL, now);
        }
        if !helo.extended && mail.is_extended() {
            return self.error(&NO_EXTENSIONS, now);
        }
        if !self.authenticated && !self.identity.policy.unauthenticated.allows(self.identity.client.ip()) {
            return self.error(&self.access_refusal(), now);
        }
        if mail.size.is_some_and(|size| size > self.size_max()) {
            return self.answer(&TOO_BIG, now);
        }
        if self.messages >= self.settings.limits.messages_max {
            return self.cut(&TOO_MANY_MESSAGES, now);
        }
        let notification = matches!(mail.sender, Sender::Null);
        if !self.take_or_refuse(Kind::Messages, &OVER_QUOTA, now)
            || (notification && !self.take_or_refuse(Kind::Notifications, &OVER_QUOTA, now))
            || !self.has_or_refuse(Kind::Octets, &OVER_QUOTA, now)
        {
            return;
        }
        self.messages += 1;
        self.transaction = Some(Box::new(Transaction {
            mail,
            stage: Stage::Lookup,
            routing: None,
            target: None,
            only: false,
            via: None,
            waiting: VecDeque::new(),
            accepted: 0,
            chunks: None,
            overshoot: 0,
            story: Story::new((self.settings.clock)()),
            refusal: None,
            bound: false,
            started: now,
        }));
        self.actions.push_back(Action::AskRouting);
        self.answer(&SENDER_OK, now);
    }

    /// The answer to who may not send without AUTH: what it would take.
    fn access_refusal(&self) -> Reply {
        if !self.takes_auth() {
            NO_ACCESS
        } else if self.offers_auth() {
            AUTH_FIRST
        } else {
            TLS_FIRST
        }
    }

    fn rcpt(&mut self, rcpt: Rcpt, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return self.error(&MAIL_FIRST, now) };
        // With RCPTs before it unanswered, it was looked at when it joined them.
        if transaction.waiting.is_empty()
            && let Some(refusal) = self.own_refusal(&rcpt, now)
        {
            return match refusal {
                OwnRefusal::Error(reply) => self.error(&reply, now),
                OwnRefusal::Policy(reply) => self.answer(&reply, now),
                OwnRefusal::Quota(kind) => self.refuse_quota(kind, &OVER_QUOTA, now),
            };
        }
        let Some(target) = self.target_of(&rcpt).cloned() else { return self.refuse_recipient(&NO_GATEWAY, now) };
        let recipients_max = self.recipients_max();
        let Some(transaction) = &mut self.transaction else { return };
        let elsewhere = transaction.target.as_ref() != Some(&target);
        let full = !elsewhere
            && matches!(transaction.stage, Stage::Live)
            && self.link.as_ref().is_some_and(|link| !link.granted.has_recipient(now));
        let too_many = transaction.accepted >= recipients_max || (full && transaction.bound);
        if too_many || (elsewhere && transaction.accepted > 0) {
            transaction.overshoot += 1;
            let reply = if elsewhere { OTHER_ROUTE } else { TOO_MANY_RECIPIENTS };
            if transaction.overshoot > self.settings.limits.recipients_overshoot_max {
                return self.cut(&reply.with_code(421), now);
            }
            return self.answer(&reply, now);
        }
        // No recipient is waiting for an answer then: see `may_join`.
        if elsewhere {
            self.open(&target, now);
        }
        let Some(transaction) = &mut self.transaction else { return };
        if let Stage::Refused(reply) = &transaction.stage {
            let reply = reply.clone();
            return self.refuse_recipient(&reply, now);
        }
        self.charge(Kind::Recipients, 1, now);
        let Some(transaction) = &mut self.transaction else { return };
        transaction.waiting.push_back(rcpt.clone());
        if full {
            return self.connect_next(GATEWAY_BUSY, now, now);
        }
        if let (Stage::Live, Some(link)) = (&transaction.stage, &mut self.link) {
            link.granted.charge(Item::Recipients, 1, now);
            link.upstream.rcpt(rcpt, now);
        }
    }

    /// Why we ourselves refuse a recipient, whatever its gateway would say.
    fn own_refusal(&self, rcpt: &Rcpt, now: Instant) -> Option<OwnRefusal> {
        let transaction = self.transaction.as_ref()?;
        let policy = &self.identity.policy;
        let recipients = u64::from(transaction.accepted) + transaction.waiting.len() as u64;
        let notification = matches!(transaction.mail.sender, Sender::Null);
        if transaction.chunks.is_some() {
            Some(OwnRefusal::Error(CHUNKS_BEGUN))
        } else if rcpt.is_extended() && !self.helo.as_ref().is_some_and(|helo| helo.extended) {
            Some(OwnRefusal::Error(NO_EXTENSIONS))
        } else if !transaction.mail.smtputf8 && !rcpt.recipient.is_ascii() {
            Some(OwnRefusal::Error(NEEDS_SMTPUTF8.reply))
        } else if policy.refuse_literals && rcpt.recipient.is_literal() {
            Some(OwnRefusal::Policy(NO_LITERALS))
        } else if notification && policy.notification_recipients_max.is_some_and(|max| recipients >= u64::from(max)) {
            Some(OwnRefusal::Policy(NOTIFICATION_TO_MANY))
        } else {
            let used_up = |kind: &Kind| !self.has(*kind, now);
            [Kind::Recipients, Kind::InvalidRecipients].into_iter().find(used_up).map(OwnRefusal::Quota)
        }
    }

    fn refuse_recipient(&mut self, reply: &Reply, now: Instant) {
        if let Some(transaction) = &mut self.transaction {
            transaction.refusal = Some(reply.status());
            transaction.story.refused += 1;
        }
        self.answer(reply, now);
    }

    /// Begins the way to `target`, of which no recipient has been accepted.
    fn open(&mut self, target: &Target, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return };
        transaction.target = Some(target.clone());
        let bridged = self.bridged.is_some();
        transaction.bound = bridged;
        let secure = |granted: &Granted| !self.encrypted || granted.encrypted || granted.gateway.allow_downgrade;
        // Who is introduced once is introduced by that HELO; but a client's own connection stays its own.
        let ours = |link: &Link| bridged || !link.granted.gateway.xclient && secure(&link.granted);
        // The latest message's connection, which is still busy with RSET, or the client's own.
        let serves = |link: &Link| link.target == *target && ours(link);
        if let Some(link) = self.link.as_mut().filter(|link| serves(link) && link.granted.admits_message(now)) {
            link.granted.reused = true;
            link.since = now;
            transaction.via = Some(link.granted.clone());
            self.note_ready(now);
            return self.start_upstream(now);
        }
        if bridged {
            let reply = if self.link.is_some() { GATEWAY_BUSY } else { GATEWAY_LOST };
            return self.refuse_recipients(&reply, now);
        }
        self.connect(false, None, now, now);
    }

    /// Who the client is to its gateway.
    fn introduction(&self) -> Option<Introduction> {
        let helo = self.helo.as_ref()?;
        Some(Introduction {
            client: self.identity.client,
            original: self.identity.original,
            helo: helo.name.clone(),
            extended: helo.extended,
        })
    }

    /// Makes a connection to the message's target in place of the one there is. All tries since `since` share the time.
    fn connect(&mut self, fresh: bool, otherwise: Option<Reply>, since: Instant, now: Instant) {
        self.hangup();
        let until = since + self.settings.timeouts.open;
        let introduction = self.introduction();
        let (Some(transaction), Some(introduction)) = (&mut self.transaction, introduction) else { return };
        let (Some(routing), Some(target)) = (&transaction.routing, &transaction.target) else { return };
        let want = Want {
            routing: Arc::clone(routing),
            target: target.clone(),
            introduction,
            encrypted: self.encrypted,
            priority: transaction.mail.priority(),
            claim: None,
        };
        transaction.stage = Stage::Opening(Opening { since, otherwise });
        if until <= now {
            return self.on_unreachable(OpenError { stage: OpenStage::Tcp, reason: OpenReason::Timeout }, now);
        }
        self.actions.push_back(Action::Connect { want: Box::new(want), fresh, until });
    }

    fn data(&mut self, now: Instant) {
        // DATA ends a pipelined group: text that does not wait for 354 would be taken for commands if DATA failed.
        if !self.input.is_empty() {
            return self.cut(&EARLY_TALK, now);
        }
        let Some(transaction) = &self.transaction else { return self.error(&MAIL_FIRST, now) };
        if transaction.chunks.is_some() {
            return self.error(&CHUNKS_BEGUN, now);
        }
        match (&transaction.stage, transaction.accepted, &mut self.link) {
            (_, 0, _) if transaction.refusal.is_none() => self.error(&RCPT_FIRST, now),
            (_, 0, _) => {
                self.abandon(Cause::Gateway, now);
                self.answer(&NO_RECIPIENTS, now);
            }
            (Stage::Live, _, Some(link)) => {
                link.upstream.data(now);
                self.phase = Phase::AwaitGo(AwaitGo::Silent);
            }
            // The gateway was lost after it had accepted a recipient.
            _ => self.finish(&GATEWAY_LOST, Cause::GatewayLost, 0, now),
        }
    }

    /// Takes body octets; returns how many, which is fewer than given only when the body ends within them.
    fn body(&mut self, bytes: &[u8], now: Instant) -> usize {
        let Phase::Body(mut lines) = mem::replace(&mut self.phase, Phase::Command) else { return 0 };
        let mended = lines.mender.as_mut().map(|mender| mender.mend(bytes));
        let scan = lines.scanner.scan(mended.as_ref().map_or(bytes, |(text, _)| text));
        let consumed = mended.as_ref().map_or(scan.consumed, |(_, consumed)| *consumed);
        lines.taken += consumed as u64;
        self.spend(&mut lines.incoming.block_rest, consumed as u64, now);
        if lines.incoming.refused.is_none() {
            lines.incoming.refused = lines.judge(scan.dot, scan.text, self.size_max());
            if lines.incoming.refused.is_some() {
                self.hangup();
            } else {
                let begun = scan.end || lines.forwarded > 0;
                let write = |out: &mut Buffer| {
                    if scan.dot {
                        out.extend(b".");
                    }
                    out.extend(scan.text);
                };
                self.pass_on(&mut lines.incoming, begun, scan.text.len(), write, now);
            }
        }
        let octets = lines.incoming.octets;
        match (scan.end, lines.incoming.refused.take()) {
            (true, None) => {
                if let Some(link) = &mut self.link {
                    link.upstream.finish(now);
                }
                self.phase = Phase::Verdict { octets };
                self.note_sent(now);
            }
            (true, Some((reply, cause))) => self.finish(&reply, cause, octets, now),
            // Twice the limit: who sends so much for nothing will not stop.
            (false, Some((reply, cause))) if lines.taken > self.size_max().saturating_mul(2) => {
                self.finish(&reply, cause, octets, now);
                self.actions.push_back(Action::Note(Note::Cut));
                self.close(cause, now);
            }
            (false, refused) => {
                lines.incoming.refused = refused;
                self.phase = Phase::Body(lines);
            }
        }
        consumed
    }

    /// `octets` of a body have come: once a block is whole, the next one has its own time.
    fn spend(&mut self, block_rest: &mut u64, octets: u64, now: Instant) {
        *block_rest = block_rest.saturating_sub(octets);
        if *block_rest == 0 {
            *block_rest = self.settings.limits.data_block_octets;
            self.client_deadline = now + self.settings.timeouts.data_block;
        }
    }

    /// Passes on what `write` adds to the message, about `length` octets. Our trace field leaves with its first octets, or
    /// with the end of an empty one: `begun` tells that either is there.
    fn pass_on(
        &mut self,
        incoming: &mut Incoming,
        begun: bool,
        length: usize,
        write: impl FnOnce(&mut Buffer),
        now: Instant,
    ) {
        let with = self.with();
        let (Some(link), Some(helo)) = (&mut self.link, &self.helo) else { return };
        let trace = begun && !mem::replace(&mut incoming.traced, true);
        link.upstream.body(now, |out| {
            out.reserve(length + TRACE_AND_END_ROOM);
            if trace {
                let at = (self.settings.clock)();
                trace::write_received(out, with, helo, &self.identity, &self.settings.hostname, at);
            }
            write(out);
        });
    }

    /// How the message in hand came, for its trace field.
    fn with(&self) -> With {
        With {
            utf8: self.transaction.as_ref().is_some_and(|transaction| transaction.mail.smtputf8),
            priority: self.transaction.as_ref().and_then(|transaction| transaction.mail.priority),
            encrypted: self.encrypted,
            authenticated: self.authenticated,
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        self.note_event(&event, now);
        match event {
            Event::Mail(reply) if reply.is_positive() => {}
            Event::Mail(reply) if self.goes_elsewhere(&reply, true) => self.go_on(reply, now),
            Event::Mail(reply) => self.refuse_recipients(&reply, now),
            Event::Rcpt(reply) if self.goes_elsewhere(&reply, false) => self.go_on(reply, now),
            Event::Rcpt(reply) => self.on_recipient(reply, now),
            Event::Data(reply) => match (&self.phase, reply.code) {
                (Phase::AwaitGo(AwaitGo::Chunk(chunk)), 354) => {
                    let chunks =
                        Chunks { stuffer: Stuffer::new(self.identity.policy.line_endings), incoming: self.incoming() };
                    self.begin_chunk(Box::new(chunks), *chunk, now);
                }
                (Phase::AwaitGo(AwaitGo::Chunk(chunk)), _) => {
                    self.conclude(&reply, Cause::Gateway, 0, chunk.octets, now);
                }
                (_, 354) => {
                    self.client_deadline = now + self.settings.timeouts.data_block;
                    let incoming = self.incoming();
                    let normalize = self.identity.policy.line_endings == LineEndings::Normalize;
                    let mender = normalize.then(Mender::new);
                    let lines = Lines { scanner: Scanner::new(), mender, taken: 0, forwarded: 0, incoming };
                    self.phase = Phase::Body(Box::new(lines));
                    self.say("354 End data with <CR><LF>.<CR><LF>\r\n", now);
                }
                (_, _) => self.finish(&reply, Cause::Gateway, 0, now),
            },
            Event::Verdict(reply) => {
                let octets = if let Phase::Verdict { octets } = self.phase { octets } else { 0 };
                let reply = if reply.is_positive() { reply.with_code(250) } else { reply };
                self.finish(&reply, Cause::Gateway, octets, now);
            }
            Event::Failed(failure) => self.on_failed(failure, now),
        }
    }

    fn incoming(&self) -> Incoming {
        let block_rest = self.settings.limits.data_block_octets;
        let line_max = if self.identity.policy.refuse_long_lines { TEXT_LINE_MAX } else { u64::MAX };
        Incoming { hops: Hops::new(), octets: 0, traced: false, block_rest, line: 0, line_max, refused: None }
    }

    fn on_recipient(&mut self, reply: Reply, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return };
        transaction.waiting.pop_front();
        transaction.bound = true;
        if reply.is_positive() {
            transaction.accepted += 1;
            return self.answer(&reply.with_code(250), now);
        }
        transaction.refusal = Some(reply.status());
        transaction.story.refused += 1;
        if reply.is_permanent() {
            self.recipients_refused += 1;
            self.charge(Kind::InvalidRecipients, 1, now);
            if self.recipients_refused > self.settings.limits.recipients_refused_max {
                return self.cut(&TOO_MANY_REFUSED, now);
            }
            if self.recipients_refused >= self.settings.limits.recipients_refused_soft {
                self.slow_down(now);
            }
        }
        self.answer(&reply, now);
    }

    /// The gateway connection is of no more use.
    fn on_failed(&mut self, failure: Failure, now: Instant) {
        let Some(link) = self.link.take() else { return };
        self.actions.push_back(Action::Hangup { quit: false });
        // An idle connection may be closed by the gateway whenever it likes.
        if self.transaction.is_some() || !matches!(failure, Failure::Closed) {
            self.actions.push_back(Action::Note(Note::GatewayFailed(failure)));
        }
        match &mut self.phase {
            Phase::Command => self.reopen_or_refuse(&link, failure, now),
            Phase::AwaitGo(AwaitGo::Silent) => self.finish(&GATEWAY_LOST, Cause::GatewayLost, 0, now),
            Phase::AwaitGo(AwaitGo::Chunk(chunk)) => {
                let rest = chunk.octets;
                self.conclude(&GATEWAY_LOST, Cause::GatewayLost, 0, rest, now);
            }
            Phase::Body(lines) => {
                lines.incoming.refused.get_or_insert((GATEWAY_LOST, Cause::GatewayLost));
            }
            Phase::Chunk { chunks, .. } => {
                chunks.incoming.refused.get_or_insert((GATEWAY_LOST, Cause::GatewayLost));
            }
            Phase::Verdict { octets } => {
                let octets = *octets;
                // A dot that never left us completes nothing: only then the loss is certain.
                let cause = if link.upstream.out().is_empty() { Cause::OutcomeUnknown } else { Cause::GatewayLost };
                let reply = if cause == Cause::OutcomeUnknown { OUTCOME_UNKNOWN } else { GATEWAY_LOST };
                self.finish(&reply, cause, octets, now);
            }
            Phase::Skip { .. } | Phase::Handshake | Phase::Auth(_) | Phase::Verifying | Phase::Closing => {}
        }
    }

    /// Whether a refusal is no verdict on the message yet: while the client knows nothing of this connection, another
    /// gateway may take what this one cannot for the moment, and another address of ours what a block list keeps out.
    fn goes_elsewhere(&self, reply: &Reply, mail: bool) -> bool {
        let (Some(transaction), Some(link)) = (&self.transaction, &self.link) else { return false };
        let temporary = mail && reply.code / 100 == 4;
        let blocked = link.granted.egress_listed && link.granted.gateway.egress.is_block(reply.text());
        !transaction.bound && matches!(transaction.stage, Stage::Live) && !reply.is_positive() && (temporary || blocked)
    }

    /// On to the next gateway, or to the same one from another address or by a fresh connection.
    fn go_on(&mut self, reply: Reply, now: Instant) {
        let Some(link) = &self.link else { return };
        let since = link.since;
        if link.granted.egress_listed && link.granted.gateway.egress.is_block(reply.text()) {
            self.actions.push_back(Action::SuspendEgress);
            return self.connect(true, Some(reply), since, now);
        }
        if link.granted.reused {
            return self.connect(true, Some(reply), now, now);
        }
        self.connect_next(reply, since, now);
    }

    fn connect_next(&mut self, otherwise: Reply, since: Instant, now: Instant) {
        self.hangup();
        let until = since + self.settings.timeouts.open;
        let Some(transaction) = &mut self.transaction else { return };
        if until <= now {
            return self.refuse_recipients(&otherwise, now);
        }
        transaction.stage = Stage::Opening(Opening { since, otherwise: Some(otherwise) });
        self.actions.push_back(Action::ConnectNext { until });
    }

    /// Another gateway or a fresh connection may serve, as long as the client knows nothing of this one.
    fn reopen_or_refuse(&mut self, link: &Link, failure: Failure, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return };
        if !matches!(transaction.stage, Stage::Live) {
            return;
        }
        if transaction.bound {
            self.refuse_recipients(&GATEWAY_LOST, now);
        } else if link.granted.reused && failure != Failure::Timeout {
            self.connect(true, Some(GATEWAY_LOST), now, now);
        } else {
            self.connect_next(GATEWAY_LOST, link.since, now);
        }
    }

    /// Hands the transaction to the gateway connection.
    fn start_upstream(&mut self, now: Instant) {
        let (Some(transaction), Some(link)) = (&mut self.transaction, &mut self.link) else { return };
        transaction.stage = Stage::Live;
        link.upstream.mail(transaction.mail.clone(), now);
        for recipient in &transaction.waiting {
            link.granted.charge(Item::Recipients, 1, now);
            link.upstream.rcpt(recipient.clone(), now);
        }
    }

    fn refuse_recipients(&mut self, reply: &Reply, now: Instant) {
        let Some(transaction) = &mut self.transaction else { return };
        transaction.stage = Stage::Refused(reply.clone());
        let waiting = mem::take(&mut transaction.waiting).len();
        transaction.story.refused += u32::try_from(waiting).unwrap_or(u32::MAX);
        if waiting > 0 {
            transaction.refusal = Some(reply.status());
        }
        for _ in 0..waiting {
            self.answer(reply, now);
        }
    }

    // ---- Ends ----

    /// The message has its answer. Leaves the session ready for the next transaction.
    fn finish(&mut self, reply: &Reply, cause: Cause, octets: u64, now: Instant) {
        self.answer(reply, now);
        self.finish_silently(reply, cause, octets, now);
    }

    fn finish_silently(&mut self, reply: &Reply, cause: Cause, octets: u64, now: Instant) {
        self.phase = Phase::Command;
        self.client_deadline = now + self.settings.timeouts.command;
        self.commands = 0;
        let outcome = Outcome::of(reply.code);
        self.settle(outcome, cause, Some(reply.status()), octets, now);
    }

    /// The transaction ends without a message.
    fn abandon(&mut self, cause: Cause, now: Instant) {
        let Some(transaction) = &self.transaction else { return };
        match transaction.refusal {
            Some(status) if transaction.accepted == 0 => {
                self.settle(Outcome::of(status.code), Cause::Gateway, Some(status), 0, now);
            }
            _ => self.settle(Outcome::Aborted, cause, None, 0, now),
        }
    }

    /// Puts the transaction on record and makes the gateway forget it.
    fn settle(&mut self, outcome: Outcome, cause: Cause, reply: Option<Status>, octets: u64, now: Instant) {
        let Some(transaction) = self.transaction.take() else { return };
        if octets > 0 {
            self.charge(Kind::Octets, octets, now);
            if let Some(via) = &transaction.via {
                via.charge(Item::Octets, octets, now);
            }
        }
        match (&transaction.stage, &mut self.link) {
            (Stage::Opening(_), _) => self.hangup(),
            // Half a message ends with the connection.
            (_, Some(_)) if transaction.chunks.is_some() => self.hangup(),
            (Stage::Live | Stage::Refused(_), Some(link)) => {
                link.upstream.rset(now);
            }
            (Stage::Lookup | Stage::Routed | Stage::Live | Stage::Refused(_), _) => {}
        }
        self.put_on_record(*transaction, (outcome, cause), reply, octets, now);
    }

    /// A protocol error that the client may learn from.
    fn error(&mut self, reply: &Reply, now: Instant) {
        self.errors += 1;
        if self.errors > self.settings.limits.errors_max {
            return self.cut(&TOO_MANY_ERRORS, now);
        }
        if self.errors >= self.settings.limits.errors_soft {
            self.slow_down(now);
        }
        self.answer(reply, now);
    }

    /// Ends the session because of what the client does.
    fn cut(&mut self, reply: &Reply, now: Instant) {
        self.actions.push_back(Action::Note(Note::Cut));
        self.strike(now);
        self.end(reply, Cause::ClientCut, now);
    }

    /// Ends the session with a reply; what the gateway has half of, it never gets whole.
    fn end(&mut self, reply: &Reply, cause: Cause, now: Instant) {
        match self.phase {
            Phase::Closing => return,
            // Nothing can be said in clear any more, and nothing else yet.
            Phase::Handshake => return self.on_client_gone(now),
            // Nobody knows what the gateway does with a whole message whose verdict we do not await.
            Phase::Verdict { octets } if self.gateway_out().is_empty() => {
                self.finish(&OUTCOME_UNKNOWN, Cause::OutcomeUnknown, octets, now);
                self.hangup();
            }
            _ => {}
        }
        self.answer(reply, now);
        self.close(cause, now);
    }

    fn close(&mut self, cause: Cause, now: Instant) {
        if !matches!(self.phase, Phase::Closing) {
            self.tell(Who::Note, || format!("ends because of {}", cause.as_str()));
        }
        self.phase = Phase::Closing;
        // Before the transaction is given up, for QUIT undoes it as well as RSET would.
        self.hangup();
        self.abandon(cause, now);
        self.input.clear();
    }

    /// Closes the gateway connection, politely where there is nothing to undo.
    fn hangup(&mut self) {
        let quit = self.link.take().is_some_and(|link| link.upstream.is_quiet());
        self.actions.push_back(Action::Hangup { quit });
    }

    // ---- Words ----

    fn answer(&mut self, reply: &Reply, now: Instant) {
        self.tell(Who::Relay, || reply.status().to_string());
        if !self.client_gone {
            reply.write(&mut self.to_client);
            self.spoke(now);
        }
    }

    fn say(&mut self, text: &str, now: Instant) {
        self.tell(Who::Relay, || text.chars().take(3).collect());
        if !self.client_gone {
            self.to_client.extend(text.as_bytes());
            self.spoke(now);
        }
    }

    fn spoke(&mut self, now: Instant) {
        self.write_deadline.get_or_insert(now + self.settings.timeouts.client_write);
    }
}

/// What recipients are told when no connection could be made.
fn unreachable_reply(error: &OpenError) -> Reply {
    match (&error.reason, error.stage) {
        (OpenReason::Unusable(_), _) => GATEWAY_BUSY,
        (OpenReason::NoGateway(_) | OpenReason::Loop(_) | OpenReason::Forbidden(_) | OpenReason::NoEgress, _) => {
            NO_GATEWAY
        }
        (OpenReason::Tls(_) | OpenReason::Downgrade, _)
        | (OpenReason::NotOffered(_) | OpenReason::Refused { .. }, OpenStage::Starttls) => GATEWAY_INSECURE,
        (OpenReason::Unprotected | OpenReason::Sasl(_), _)
        | (OpenReason::NotOffered(_) | OpenReason::Refused { .. }, OpenStage::Auth) => GATEWAY_DENIES,
        (OpenReason::NotOffered(_) | OpenReason::Refused { .. }, _) => GATEWAY_REFUSES,
        (_, OpenStage::Dns | OpenStage::Tcp) => GATEWAY_UNREACHABLE,
        (_, _) => GATEWAY_LOST,
    }
}

impl Lines {
    /// As [`Incoming::judge`]; `dot` comes before `text`.
    fn judge(&mut self, dot: bool, text: &[u8], size_max: u64) -> Option<(Reply, Cause)> {
        if self.scanner.fault().is_some() {
            return Some((LINE_ENDINGS, Cause::LineEndings));
        }
        if dot {
            self.incoming.hops.feed(b".");
        }
        self.forwarded += u64::from(dot) + text.len() as u64;
        self.incoming.octets = self.forwarded.saturating_sub(self.scanner.stuffed());
        self.incoming.judge(text, size_max)
    }
}

impl Incoming {
    /// Stuffing counts where there is any: what is compared is the line on the wire (RFC 5321 section 4.5.3.1.6).
    fn has_long_line(&mut self, mut text: &[u8]) -> bool {
        while let Some(end) = memchr::memchr(b'\n', text) {
            if self.line + end as u64 + 1 > self.line_max {
                return true;
            }
            self.line = 0;
            text = &text[end + 1..];
        }
        self.line += text.len() as u64;
        self.line > self.line_max
    }

    /// Whether these octets, counted already, make the message one that must not be completed.
    fn judge(&mut self, text: &[u8], size_max: u64) -> Option<(Reply, Cause)> {
        self.hops.feed(text);
        if self.hops.count() > HOPS_MAX {
            return Some((LOOP, Cause::Loop));
        }
        if self.line_max < u64::MAX && self.has_long_line(text) {
            return Some((LONG_LINE, Cause::LongLine));
        }
        (self.octets > size_max).then_some((TOO_BIG, Cause::Size))
    }
}

#[cfg(test)]
mod tests;
