//! The sockets and clocks around [`Session`]: one task per client, which moves octets and does what the session asks.
//!
//! A task waits for everything at once in [`Conversation::poll`]. Octets are read into a buffer of the thread, so a
//! session that waits owns no read buffer.

use std::{
    cell::RefCell,
    future::{self, Future, poll_fn},
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{spawn_blocking, unconstrained},
    time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use zeroize::Zeroize as _;

use crate::{
    auth::{Claim, Credentials, Users},
    buffer::Buffer,
    client::Client,
    gateway::{Attempt, Extensions, Introduction, Lease, OpenError, OpenReason, Stage as OpenStage, Want, quit},
    limits::{READ_MAX, VERIFICATIONS_MAX},
    policy::{Auth, Tls},
    quota::{Account, Kind, Present, Subscriber},
    record::{Cause, Outcome, Record, milliseconds},
    relay::{Directory, Identity, Relay},
    reply::Reply,
    route::Target,
    session::{
        Action, CONNECTIONS_OVER_QUOTA, EARLY_TALK, Granted, NO_CLASS, NOT_IDENTIFIED, NOT_REACHED, Note, Session,
        TOO_MANY_SESSIONS, Verdict,
    },
    signals::{Listener, Signals, Stage},
    splice,
    stream::Stream,
    upstream::Failure,
};

/// Between two tries to accept when the system has no descriptor or memory left: the listener stays readable meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Octets that are read and forgotten after our last words to a client.
const LINGER_OCTETS_MAX: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_MAX].into());
}

/// Serves the clients of `listener` until `shutdown`. Then accepts no more, lets open transactions go on for
/// [`Settings::drain`](crate::Settings::drain), ends what is left, and returns when no task of it remains.
///
/// Any number of listeners may share one relay, each with a `run` of its own.
///
/// Give the listener a long accept queue. In SMTP the server speaks first: a client whose connection was lost from a full
/// queue under SYN cookies believes that it is connected and waits for a banner that nobody will send.
pub async fn run<D: Directory>(listener: TcpListener, relay: Arc<Relay<D>>, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let signals = Arc::new(Signals::default());
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                relay.meters.sessions_opened.increment();
                let Some(place) = Place::take(&relay) else {
                    relay.meters.sessions_limited.increment();
                    debug!(%peer, "too many sessions");
                    send_now(&stream, &TOO_MANY_SESSIONS);
                    continue;
                };
                let (signals, of_session) = (Arc::clone(&signals), tasks.clone());
                tasks.spawn(async move {
                    signals.until(Stage::Over, serve(stream, peer, place, &signals, of_session)).await
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                shutdown.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    signals.tell(Stage::Draining);
    tasks.close();
    if timeout(relay.settings.drain, tasks.wait()).await.is_err() {
        signals.tell(Stage::Drained);
        if timeout(2 * relay.settings.timeouts.farewell, tasks.wait()).await.is_err() {
            signals.tell(Stage::Over);
            tasks.wait().await;
        }
    }
}

/// One of the sessions that may be open at a time.
struct Place<D: Directory>(Arc<Relay<D>>);

impl<D: Directory> Place<D> {
    fn take(relay: &Arc<Relay<D>>) -> Option<Self> {
        let free = relay.meters.sessions_active.increment_below(relay.settings.sessions_max);
        free.then(|| Self(Arc::clone(relay)))
    }
}

impl<D: Directory> Drop for Place<D> {
    fn drop(&mut self) {
        self.0.meters.sessions_active.decrement();
    }
}

impl<D: Directory> Relay<D> {
    fn lock(&self, identity: &Identity, duration: Duration) {
        self.meters.locks.increment();
        warn!(subscriber = %identity.client, class = &*identity.class, duration_s = duration.as_secs(), "locked for abuse");
        self.directory.lock(identity, duration);
    }
}

async fn serve<D: Directory>(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place<D>,
    signals: &Signals,
    tasks: TaskTracker,
) {
    let relay = &*place.0;
    // For as long as this lives, the session counts as one of its subscriber's.
    let mut present = None;
    let (client, may_talk) = match greet(relay, stream, peer, &mut present).await {
        Ok((stream, identity)) if matches!(identity.policy.tls, Tls::Passthrough) => {
            (pass_through(relay, stream, &identity, signals).await, true)
        }
        Ok((stream, identity)) => {
            let offered = offers(relay, &identity);
            let session = Session::new(Arc::clone(&relay.settings), identity, offered, &relay.means, now());
            let mut conversation = Conversation::new(relay, session, stream, tasks);
            conversation.run(signals).await;
            (conversation.client, conversation.session.client_may_talk())
        }
        Err(stream) => (stream.map_or(Client::Gone, Client::Plain), true),
    };
    let _ = timeout(relay.settings.timeouts.farewell, part(client, may_talk)).await;
}

/// What the client's gateways can do.
fn offers<D: Directory>(relay: &Relay<D>, identity: &Identity) -> Extensions {
    let (routing, class) = (relay.directory.routing(), &identity.class);
    let bridge = match identity.policy.auth {
        Auth::Bridge { allow_unprotected } => relay.fleet.bridges(&routing, class, allow_unprotected),
        Auth::Off | Auth::AcceptAny | Auth::Local(_) => false,
    };
    Extensions { bridge, ..relay.fleet.offers(&routing, class) }
}

/// Ends a connection. A close with unread octets would reset it, and the client might never see our last reply.
async fn part(client: Client, may_talk: bool) -> io::Result<()> {
    match (client, may_talk) {
        (Client::Plain(_), false) => Ok(()),
        (client, may_talk) => match client.shut().await? {
            Some(stream) if may_talk => drain(stream).await,
            _ => Ok(()),
        },
    }
}

/// Connects the client with the server that it dialled. What is left to be said to the client is said on the connection
/// that this returns.
async fn pass_through<D: Directory>(
    relay: &Relay<D>,
    mut stream: TcpStream,
    identity: &Identity,
    signals: &Signals,
) -> Client {
    let Identity { client, original, class, .. } = identity;
    let timeouts = &relay.settings.timeouts;
    let Ok(local) = stream.local_addr() else { return Client::Gone };
    if !relay.settings.passthrough_to_self && !splice::is_elsewhere(original.ip(), local.ip()) {
        warn!(subscriber = %client, %original, "not passed through: an address of this host or its link");
        send_now(&stream, &NOT_REACHED);
        return Client::Plain(stream);
    }
    let mut server = match splice::connect(*original, timeouts).await {
        Ok(server) => server,
        Err(error) => {
            debug!(subscriber = %client, %original, %error, "cannot pass through");
            send_now(&stream, &NOT_REACHED);
            return Client::Plain(stream);
        }
    };
    relay.meters.sessions_passed_through.increment();
    let account = Account::new(Arc::clone(&relay.means.quotas), client.ip(), Arc::clone(class));
    let begun = Instant::now();
    let splice = splice::run(&mut stream, &mut server, timeouts);
    let Some((passed, result)) = signals.until(Stage::Drained, splice).await else {
        info!(subscriber = %client, class = &**class, %original, outcome = "shutdown", "passed through");
        return Client::Gone;
    };
    let policy = &identity.policy;
    account.charge(&policy.subscriber_quota, &policy.class_quota, Kind::Octets, passed.from_client, now());
    info!(
        subscriber = %client,
        class = &**class,
        %original,
        octets_from_client = passed.from_client,
        octets_to_client = passed.to_client,
        outcome = result.map_or_else(|error| error.kind().to_string(), |()| "ended".to_owned()),
        duration_ms = milliseconds(begun.elapsed()),
        "passed through"
    );
    Client::Gone
}

/// Finds out who the client is. Who gets no session gets the reply that says so: the stream is to be closed.
async fn greet<D: Directory>(
    relay: &Relay<D>,
    stream: TcpStream,
    peer: SocketAddr,
    present: &mut Option<Present>,
) -> Result<(TcpStream, Identity), Option<TcpStream>> {
    let timeouts = &relay.settings.timeouts;
    // Replies are short and each is awaited: Nagle's algorithm with delayed ACKs would cost 40 ms for every one.
    let (Ok(()), Ok(local)) = (stream.set_nodelay(true), stream.local_addr()) else { return Err(None) };
    let identity = match timeout(timeouts.identify, relay.directory.identify(peer, local)).await {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            relay.meters.sessions_refused.increment();
            debug!(%peer, %local, "refused: no class");
            send_now(&stream, &NO_CLASS);
            return Err(Some(stream));
        }
        Err(_) => {
            warn!(%peer, "the directory did not answer in time");
            send_now(&stream, &NOT_IDENTIFIED);
            return Err(Some(stream));
        }
    };
    *present = admit(relay, &identity);
    if present.is_none() {
        relay.meters.over_quota.increment();
        debug!(subscriber = %identity.client, class = &*identity.class, "refused: too many connections");
        send_now(&stream, &CONNECTIONS_OVER_QUOTA);
        return Err(Some(stream));
    }
    if !timeouts.greet_pause.is_zero() {
        let _ = timeout(timeouts.greet_pause, stream.readable()).await;
    }
    // Who is passed through is the other server's client, and its talk is that server's affair.
    if matches!(identity.policy.tls, Tls::Passthrough) {
        return Ok((stream, identity));
    }
    if SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|octets| octets > 0) {
        relay.meters.sessions_cut.increment();
        debug!(subscriber = %identity.client, class = %identity.class, "cut: talked before the banner");
        send_now(&stream, &EARLY_TALK);
        return Err(Some(stream));
    }
    Ok((stream, identity))
}

/// Counts the connection against its subscriber's and its class's quotas, unless they are used up.
fn admit<D: Directory>(relay: &Relay<D>, identity: &Identity) -> Option<Present> {
    let policy = &identity.policy;
    let ip = identity.client.ip();
    let account = Account::new(Arc::clone(&relay.means.quotas), ip, Arc::clone(&identity.class));
    let (own, class) = (&policy.subscriber_quota, &policy.class_quota);
    let present = relay
        .presence
        .enter(Subscriber::of(ip), policy.subscriber_sessions_max)
        .filter(|_| account.take(own, class, Kind::Connections, now()))
        // A session that is passed through has no MAIL to refuse.
        .filter(|_| !matches!(policy.tls, Tls::Passthrough) || account.has(own, class, Kind::Octets, now()));
    if present.is_none()
        && let Some(lock) = policy.lock
        && !account.strike(lock.strikes, now())
    {
        relay.lock(identity, lock.duration);
    }
    present
}

/// A fresh connection's send buffer is empty, so this neither blocks nor cuts the reply short.
fn send_now(stream: &TcpStream, reply: &Reply) {
    let mut out = Buffer::default();
    reply.write(&mut out);
    let _ = SockRef::from(stream).send(out.filled());
}

/// Waits for the other side's end.
async fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut rest = LINGER_OCTETS_MAX;
    let mut scratch = [0; 1024];
    while rest > 0 {
        match stream.read(&mut scratch).await? {
            0 => break,
            octets => rest = rest.saturating_sub(octets),
        }
    }
    Ok(())
}

/// What an errand brings home.
enum Found {
    /// The attempt, so that it can go on from there.
    Connection(Box<Attempt>, Result<Box<Lease>, OpenError>),
    /// A connection in the client's name, and where it leads.
    Bridge(Result<(Target, Box<Lease>), OpenError>),
    Verdict(Verdict),
}

type Errand = Pin<Box<dyn Future<Output = Found> + Send>>;

async fn obtain(mut attempt: Box<Attempt>, listeners: Vec<SocketAddr>, until: Instant) -> Found {
    let found = attempt.next(&listeners, until).await.map(Box::new);
    Found::Connection(attempt, found)
}

/// As [`obtain`], in the client's name. Nothing of its credentials is left afterwards.
async fn bridge(mut attempt: Box<Attempt>, listeners: Vec<SocketAddr>, target: Target, until: Instant) -> Found {
    let timeout = OpenError { stage: OpenStage::Auth, reason: OpenReason::Timeout };
    let found = timeout_at(until, attempt.next(&listeners, until)).await.unwrap_or(Err(timeout));
    Found::Bridge(found.map(|lease| (target, Box::new(lease))))
}

/// Looks at a password where it keeps no session waiting.
async fn verify(users: Arc<Users>, credentials: Credentials, limit: Duration) -> Found {
    static AT_ONCE: Semaphore = Semaphore::const_new(VERIFICATIONS_MAX);
    let look = async {
        let _permit = AT_ONCE.acquire().await.ok()?;
        spawn_blocking(move || users.accept(&credentials)).await.ok()
    };
    Found::Verdict(match timeout(limit, look).await {
        Ok(Some(true)) => Verdict::Accepted,
        Ok(Some(false)) => Verdict::Refused,
        Ok(None) | Err(_) => Verdict::Unavailable,
    })
}

/// A session with its sockets.
struct Conversation<'a, D> {
    relay: &'a Relay<D>,
    session: Session,
    client: Client,
    gateway: Option<Box<Lease>>,
    /// A connection is wanted, by so long; it may be at hand.
    wanted: Option<(Box<Attempt>, Instant)>,
    errand: Option<Errand>,
    /// What the latest connection came from.
    attempt: Option<Box<Attempt>>,
    /// The gateway's side holds octets that were written.
    unflushed: bool,
    tasks: TaskTracker,
    /// When the timer goes off. It may be earlier than needed: deadlines mostly move back, and then it is left alone.
    armed: Option<Instant>,
    /// Who is woken by then.
    waker: Option<Waker>,
    /// The latest that the session was told of.
    stage: Stage,
    /// When this turn of the task began: it is over before any deadline minds.
    now: std::time::Instant,
    pending: Sources,
}

/// Where nothing was to be had in this turn of the task: the next one begins when there is, so asking again is for nothing.
#[derive(Default)]
struct Sources {
    client_read: bool,
    gateway_read: bool,
}

impl<'a, D: Directory> Conversation<'a, D> {
    fn new(relay: &'a Relay<D>, session: Session, client: TcpStream, tasks: TaskTracker) -> Self {
        Self {
            relay,
            session,
            client: Client::Plain(client),
            gateway: None,
            wanted: None,
            errand: None,
            attempt: None,
            unflushed: false,
            tasks,
            armed: None,
            waker: None,
            stage: Stage::Open,
            now: now(),
            pending: Sources::default(),
        }
    }

    async fn run(&mut self, signals: &Signals) {
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut listener = Listener::new(signals);
        poll_fn(|cx| {
            let stage = listener.poll(cx);
            self.poll(cx, timer.as_mut(), stage)
        })
        .await;
    }

    /// Goes on until the session is done or everything it waits for is pending. Tokio's budget for each turn of a task
    /// makes even a stream that never pauses pend now and then.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, stage: Stage) -> Poll<()> {
        self.now = now();
        if self.stage < Stage::Draining && stage >= Stage::Draining {
            self.session.on_shutdown(self.now);
        }
        if self.stage < Stage::Drained && stage >= Stage::Drained {
            self.session.on_drained(self.now);
        }
        self.stage = stage;
        self.pending = Sources::default();
        loop {
            if self.session.poll_place_lost(cx).is_ready() {
                self.session.on_place_lost(self.now);
            }
            self.act();
            if self.session.is_done() && !matches!(self.client.poll_flushed(cx), Poll::Pending) {
                return Poll::Ready(());
            }
            // Read before written: what one side says goes to the other in the same round.
            let moved = [
                self.poll_client_read(cx),
                self.poll_gateway_read(cx),
                self.poll_errand(cx),
                self.poll_client_write(cx),
                self.poll_gateway_write(cx),
            ];
            if moved.iter().all(Poll::is_pending) && self.poll_timer(cx, timer.as_mut()).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.next_action() {
            match action {
                Action::AskRouting => {
                    let routing = self.relay.directory.routing();
                    self.session.on_routing(routing, self.now);
                }
                Action::Connect { want, fresh, until } => {
                    self.wanted = Some((Box::new(Attempt::new(&self.relay.fleet, *want, fresh)), until.into()));
                }
                Action::ConnectNext { until } => {
                    if let Some(attempt) = self.attempt.take() {
                        self.errand = Some(self.obtain(attempt, until.into()));
                    }
                }
                Action::Release => {
                    self.attempt = None;
                    if let Some(stream) = self.gateway.take().and_then(|lease| lease.release()) {
                        self.quit(stream);
                    }
                }
                Action::SuspendEgress => {
                    if let Some(lease) = &self.gateway {
                        lease.suspend_egress();
                    }
                }
                Action::Hangup { quit: politely } => {
                    self.wanted = None;
                    self.errand = None;
                    if let Some(lease) = self.gateway.take()
                        && politely
                    {
                        self.quit(lease.into_stream());
                    }
                }
                Action::Handshake(certificate) => self.client.begin_handshake(&certificate),
                Action::Verify { users, credentials } => {
                    self.errand = Some(Box::pin(verify(users, credentials, self.relay.settings.timeouts.verify)));
                }
                Action::Bridge { introduction, encrypted, claim, until } => {
                    self.errand = Some(self.bridge(*introduction, encrypted, claim, until.into()));
                }
                Action::Lock(duration) => self.relay.lock(self.session.identity(), duration),
                Action::Record(record) => self.record(&record),
                Action::Note(note) => self.note(note),
            }
        }
    }

    fn obtain(&self, attempt: Box<Attempt>, until: Instant) -> Errand {
        Box::pin(obtain(attempt, self.relay.directory.listeners(), until))
    }

    fn bridge(&self, introduction: Introduction, encrypted: bool, claim: Arc<Claim>, until: Instant) -> Errand {
        let routing = self.relay.directory.routing();
        let Some(target) = routing.own_target(&self.session.identity().class).cloned() else {
            let reason = OpenReason::NoGateway("the class has no gateway");
            return Box::pin(future::ready(Found::Bridge(Err(OpenError { stage: OpenStage::Choice, reason }))));
        };
        // A login has no priority; the usual one is 0.
        let want = Want { routing, target: target.clone(), introduction, encrypted, priority: 0, claim: Some(claim) };
        let attempt = Attempt::new(&self.relay.fleet, want, true);
        Box::pin(bridge(Box::new(attempt), self.relay.directory.listeners(), target, until))
    }

    /// The gateway's side is this one from here on.
    fn take(&mut self, lease: Box<Lease>) -> Granted {
        if !lease.reused {
            self.relay.meters.gateway_connections.increment();
        }
        let granted = Granted {
            gateway: Arc::clone(lease.gateway()),
            capabilities: Arc::clone(lease.capabilities()),
            allowance: Arc::clone(lease.allowance()),
            egress: lease.egress(),
            egress_listed: lease.egress_listed(),
            encrypted: lease.is_encrypted(),
            reused: lease.reused,
        };
        self.gateway = Some(lease);
        self.pending.gateway_read = false;
        self.unflushed = false;
        granted
    }

    fn quit(&self, stream: Stream) {
        let limit = self.relay.settings.timeouts.farewell;
        self.tasks.spawn(async move {
            let _ = timeout(limit, quit(stream)).await;
        });
    }

    fn poll_client_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Client::Handshake(_) = self.client {
            match ready!(self.client.poll_handshake(cx)) {
                Ok(()) => self.session.on_encrypted(self.now),
                Err(error) => {
                    debug!(subscriber = %self.session.identity().client, %error, "no TLS with the client");
                    self.session.on_handshake_failed(self.now);
                }
            }
            // What the client said at once came along with its handshake.
            self.pending.client_read = false;
            return Poll::Ready(());
        }
        let out = self.session.client_out();
        if out.is_empty() {
            if ready!(self.client.poll_flushed(cx)).is_err() {
                self.session.on_client_gone(self.now);
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        match ready!(self.client.poll_write(cx, out)) {
            Ok(octets) if octets > 0 => self.session.client_sent(octets, self.now),
            _ => self.session.on_client_gone(self.now),
        }
        Poll::Ready(())
    }

    fn poll_gateway_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let out = self.session.gateway_out();
        let Some(lease) = &mut self.gateway else { return Poll::Pending };
        let stream = Pin::new(lease.stream());
        if out.is_empty() {
            // TLS keeps what the socket does not take.
            if self.unflushed {
                let flushed = ready!(stream.poll_flush(cx));
                self.unflushed = false;
                if flushed.is_err() {
                    self.session.on_gateway_closed(self.now);
                    self.act();
                }
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        match ready!(stream.poll_write(cx, out)) {
            Ok(octets) if octets > 0 => {
                self.unflushed = true;
                self.session.gateway_sent(octets, self.now);
            }
            _ => self.session.on_gateway_closed(self.now),
        }
        self.act();
        Poll::Ready(())
    }

    fn poll_client_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.pending.client_read || !self.session.wants_client() {
            return Poll::Pending;
        }
        let Self { client, session, now, .. } = self;
        let now = *now;
        let secret = session.may_hear_a_secret();
        let read = poll_read(
            cx,
            secret,
            |cx, buffer| client.poll_read(cx, buffer),
            |read| match read {
                Ok([]) => session.on_client_ended(now),
                Ok(bytes) => session.on_client(bytes, now),
                Err(_) => session.on_client_gone(now),
            },
        );
        self.pending.client_read = read.is_pending();
        ready!(read);
        self.act();
        Poll::Ready(())
    }

    fn poll_gateway_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.now;
        let Self { gateway: Some(gateway), session, pending: Sources { gateway_read: false, .. }, .. } = self else {
            return Poll::Pending;
        };
        let read = poll_read(
            cx,
            false,
            |cx, buffer| Pin::new(gateway.stream()).poll_read(cx, buffer),
            |read| match read {
                Ok([]) | Err(_) => session.on_gateway_closed(now),
                Ok(bytes) => session.on_gateway_octets(bytes, now),
            },
        );
        self.pending.gateway_read = read.is_pending();
        ready!(read);
        self.act();
        Poll::Ready(())
    }

    fn poll_errand(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((mut attempt, until)) = self.wanted.take() {
            if let Some(lease) = attempt.at_hand(cx) {
                self.attempt = Some(attempt);
                let granted = self.take(Box::new(lease));
                self.session.on_connected(granted, self.now);
                self.act();
                return Poll::Ready(());
            }
            self.errand = Some(self.obtain(attempt, until));
        }
        let Some(errand) = &mut self.errand else { return Poll::Pending };
        let found = ready!(errand.as_mut().poll(cx));
        self.errand = None;
        match found {
            Found::Connection(attempt, Ok(lease)) => {
                self.attempt = Some(attempt);
                let granted = self.take(lease);
                self.session.on_connected(granted, self.now);
            }
            Found::Connection(attempt, Err(error)) => {
                self.attempt = Some(attempt);
                self.session.on_unreachable(error, self.now);
            }
            Found::Bridge(Ok((target, lease))) => {
                let granted = self.take(lease);
                self.session.on_bridged(Ok((target, granted)), self.now);
            }
            Found::Bridge(Err(error)) => self.session.on_bridged(Err(error), self.now),
            Found::Verdict(verdict) => self.session.on_verified(verdict, self.now),
        }
        self.act();
        Poll::Ready(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        let Some(deadline) = self.session.deadline().map(Instant::from) else { return Poll::Pending };
        let wakes = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        match self.armed {
            // It has not gone off, and wakes this task when it does: no need to ask, at each turn.
            Some(armed) if wakes && armed <= deadline && armed.into_std() > self.now => return Poll::Pending,
            Some(armed) if armed <= deadline => {}
            _ => {
                timer.as_mut().reset(deadline);
                self.armed = Some(deadline);
            }
        }
        if !wakes {
            self.waker = Some(cx.waker().clone());
        }
        // Without the budget that the others may have used up: a stream that never pauses must not outlive its deadlines.
        ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
        self.armed = None;
        self.now = now();
        self.session.on_deadline(self.now);
        Poll::Ready(())
    }

    fn record(&self, record: &Arc<Record>) {
        let meters = &self.relay.meters;
        match record.outcome {
            Outcome::Accepted => {
                meters.messages_accepted.increment();
                meters.octets_accepted.add(record.octets);
            }
            Outcome::Rejected => meters.messages_rejected.increment(),
            Outcome::Deferred => meters.messages_deferred.increment(),
            Outcome::Aborted => meters.messages_aborted.increment(),
        }
        if record.duplicate_risk {
            meters.duplicate_risk.increment();
        }
        if record.cause == Cause::LineEndings {
            meters.smuggling_refused.increment();
        }
        let Identity { client, original, class, .. } = self.session.identity();
        let (replies, times) = (&record.gateway_replies, &record.times);
        info!(
            subscriber = %client,
            class = &**class,
            original = %original,
            gateway = record.gateway.as_deref(),
            egress = record.egress.map(display),
            size = record.octets,
            size_declared = record.octets_declared,
            recipients = record.recipients,
            recipients_refused = record.recipients_refused,
            outcome = record.outcome.as_str(),
            cause = record.cause.as_str(),
            reply = record.reply.map(display),
            gateway_mail = replies.mail.map(display),
            gateway_recipient = replies.recipient.map(display),
            gateway_data = replies.data.map(display),
            gateway_verdict = replies.verdict.map(display),
            tls = record.encrypted,
            authenticated = record.authenticated,
            duplicate_risk = record.duplicate_risk,
            client_gone = record.client_gone,
            gateway_ready_ms = times.gateway_ready.map(milliseconds),
            recipient_ms = times.recipient.map(milliseconds),
            data_ms = times.data.map(milliseconds),
            sent_ms = times.sent.map(milliseconds),
            duration_ms = times.end.map(milliseconds),
            "message"
        );
        self.relay.tallies.add(class, record);
        self.relay.directory.record(self.session.identity(), record);
    }

    fn note(&self, note: Note) {
        let meters = &self.relay.meters;
        let subscriber = self.session.identity().client;
        match note {
            Note::ClientTimeout => meters.client_timeouts.increment(),
            Note::Cut => meters.sessions_cut.increment(),
            Note::HandshakeFailed => meters.handshakes_failed.increment(),
            Note::AuthFailed => meters.auth_failures.increment(),
            Note::OverQuota(kind) => {
                meters.over_quota.increment();
                debug!(%subscriber, kind = kind.as_str(), "over quota");
            }
            Note::Downgrade => meters.downgrades.increment(),
            Note::PlaceLost => meters.tarpit_lost.increment(),
            Note::GatewayUnreachable(error) if error.reason == OpenReason::Downgrade => {
                meters.downgrades_refused.increment();
                debug!(%subscriber, %error, "no gateway may be used");
            }
            Note::GatewayUnreachable(error) => {
                meters.gateway_failures.increment();
                if error.reason == OpenReason::Timeout {
                    meters.gateway_timeouts.increment();
                }
                debug!(%subscriber, %error, "no gateway can be reached");
            }
            Note::GatewayFailed(failure) => {
                meters.gateway_failures.increment();
                if failure == Failure::Timeout {
                    meters.gateway_timeouts.increment();
                }
                debug!(%subscriber, %failure, "gateway connection lost");
            }
        }
    }
}

/// Reads into the thread's buffer, which `take` has for as long as it runs; where the octets are `secret`, nothing of
/// them stays there.
pub(crate) fn poll_read(
    cx: &mut Context<'_>,
    secret: bool,
    read: impl FnOnce(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    take: impl FnOnce(io::Result<&[u8]>),
) -> Poll<()> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        let result = ready!(read(cx, &mut buffer));
        take(result.map(|()| buffer.filled()));
        if secret {
            buffer.filled_mut().zeroize();
        }
        Poll::Ready(())
    })
}

/// Tokio's clock, so that tests may stop it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
