//! The gateways as the relay knows them while it runs: health, connections, idle ones among them, egress addresses.
//!
//! A [`Unit`] is one gateway as it is configured; a change of the configuration makes a new one. Leases of the old one go on
//! and end with it. Nothing here is held across an await but counts.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use crate::{
    auth::Claim,
    gateway::{
        Allowance, Balance, Capabilities, Encryption, Extensions, Gateway, Host, Mechanism, Name, OpenError,
        OpenReason, Stage, Status,
        dial::Dial,
        egress::{Choice, EgressState},
        guard,
        health::Health,
        introduce::Introduction,
        opening::Purpose,
        resolve::{Resolver, SystemLookup},
        select::{self, Candidate},
        tls::Tls,
    },
    limits::{POOL_AGE_MAX, POOL_IDLE_MAX, POOL_IDLE_TIME, POOL_USES_MAX},
    relay::Settings,
    route::{Routing, Target},
    stream::Stream,
};

/// All gateways that were used or probed.
#[derive(Debug)]
pub(crate) struct Fleet {
    settings: Arc<Settings>,
    resolver: Resolver,
    units: Mutex<HashMap<Name, Arc<Unit>>>,
    /// Round robin's credits, by group and gateway.
    credits: Mutex<HashMap<(Name, Name), i64>>,
}

/// One gateway.
#[derive(Debug)]
pub(crate) struct Unit {
    gateway: Arc<Gateway>,
    tls: Result<Option<Tls>, String>,
    counts: Arc<Counts>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU32,
    outstanding: AtomicU32,
    allowance: Arc<Allowance>,
}

#[derive(Debug, Default)]
struct State {
    health: Health,
    egress: EgressState,
    idle: Vec<Idle>,
    capabilities: Option<Capabilities>,
    last_error: Option<String>,
    probe_at: Option<Instant>,
}

/// What is known of a gateway while the relay runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GatewayState {
    pub name: Name,
    /// Whether it is in service, by its probes and its mail.
    pub up: bool,
    /// Connections open, idle ones included.
    pub connections: u32,
    pub idle: u32,
    /// Messages under way.
    pub outstanding: u32,
    /// How often mail was kept from it by its limits over time.
    pub over_quota: u64,
    /// From its latest EHLO; `None` before the first.
    pub capabilities: Option<Capabilities>,
    /// Why it could not be reached the last time, until it can.
    pub last_error: Option<String>,
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub suspended_egress: Vec<IpAddr>,
}

/// A place among a gateway's connections, given back when it is dropped.
#[derive(Debug)]
struct Seat(Arc<Counts>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// A message under way, until it is dropped.
#[derive(Debug)]
struct Outstanding(Arc<Counts>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Relaxed);
    }
}

/// A connection that MAIL may follow on.
#[derive(Debug)]
struct Connection {
    stream: Stream,
    capabilities: Arc<Capabilities>,
    /// Our address, and its place in the gateway's list.
    local: Option<IpAddr>,
    egress: Option<usize>,
    /// It serves this client only.
    introduction: Option<Introduction>,
    /// A client has logged in by it: it serves nobody else, and no other session.
    private: bool,
    born: Instant,
    uses: u32,
    _seat: Seat,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection for one message.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Connection,
    unit: Arc<Unit>,
    /// It served a message before, so it may have been closed meanwhile without any fault.
    pub(crate) reused: bool,
    _outstanding: Outstanding,
}

impl Fleet {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let resolver = Resolver::new(SystemLookup::default());
        Self { settings, resolver, units: Mutex::default(), credits: Mutex::default() }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn unit(&self, gateway: &Arc<Gateway>) -> Arc<Unit> {
        let old = lock(&self.units).get(&gateway.name).cloned();
        if let Some(unit) = old.as_ref().filter(|unit| unit.is_for(gateway)) {
            return Arc::clone(unit);
        }
        // Outside of the lock, for it may read a file.
        let tls = match gateway.encryption {
            Encryption::None => Ok(None),
            _ => Tls::new(gateway).map(Some).map_err(|error| error.to_string()),
        };
        let counts = old.map_or_else(Arc::default, |old| Arc::clone(&old.counts));
        let unit = Arc::new(Unit { gateway: Arc::clone(gateway), tls, counts, state: Mutex::default() });
        lock(&self.units).insert(gateway.name.clone(), Arc::clone(&unit));
        unit
    }

    /// What is known of the gateways of `routing`, by name.
    pub(crate) fn report(&self, routing: &Routing) -> Vec<GatewayState> {
        let units = lock(&self.units);
        routing
            .gateways()
            .map(|gateway| match units.get(&gateway.name) {
                Some(unit) => unit.report(),
                None => GatewayState::unknown(&gateway.name),
            })
            .collect()
    }

    /// What clients of a class are offered: what every gateway can do that takes their mail.
    pub(crate) fn offers(&self, routing: &Routing, class: &str) -> Extensions {
        let units = lock(&self.units);
        let enabled = routing.gateways_of(class).filter(|gateway| gateway.status == Status::Enabled);
        let each = enabled.map(|gateway| {
            let unit = units.get(&gateway.name).filter(|unit| unit.is_for(gateway));
            unit.and_then(|unit| lock(&unit.state).capabilities.as_ref().map(Capabilities::offers)).unwrap_or_default()
        });
        let common = each.reduce(Extensions::common).unwrap_or_default();
        Extensions { one_domain: routing.splits(class), ..common }
    }

    /// Whether a client's own credentials may be tried at the gateway of its class, as far as is known of it.
    pub(crate) fn bridges(&self, routing: &Routing, class: &str, allow_unprotected: bool) -> bool {
        let units = lock(&self.units);
        let takes = |offered: &Capabilities| {
            offered.auth.iter().any(|mechanism| matches!(mechanism, Mechanism::Plain | Mechanism::Login))
        };
        routing.bridges(class, allow_unprotected).any(|gateway| {
            let unit = units.get(&gateway.name).filter(|unit| unit.is_for(gateway));
            unit.and_then(|unit| lock(&unit.state).capabilities.as_ref().map(takes)).unwrap_or(true)
        })
    }

    /// Forgets gateways that are not in `routing`; gives back the connections that are to be closed.
    pub(crate) fn sweep(&self, routing: &Routing) -> Vec<Stream> {
        let mut units = lock(&self.units);
        let (mut closing, now) = (Vec::new(), Instant::now());
        units.retain(|name, unit| {
            let kept = routing.gateway(name).is_some();
            let idle = &mut lock(&unit.state).idle;
            closing.extend(idle.extract_if(.., |idle| !kept || !idle.is_fresh(now)).map(|idle| idle.connection.stream));
            kept
        });
        let mut credits = lock(&self.credits);
        credits.retain(|(group, gateway), _| routing.group(group).is_some() && routing.gateway(gateway).is_some());
        closing
    }

    /// Takes all idle connections.
    pub(crate) fn drain(&self) -> Vec<Stream> {
        let units = lock(&self.units);
        let idle = units.values().flat_map(|unit| std::mem::take(&mut lock(&unit.state).idle));
        idle.map(|idle| idle.connection.stream).collect()
    }

    /// Gateways whose probe is due, `max` at most; the next one of each is due an `interval` later.
    pub(crate) fn due(&self, routing: &Routing, interval: Duration, max: usize) -> Vec<Arc<Unit>> {
        let now = Instant::now();
        let used = routing.gateways().filter(|gateway| gateway.status != Status::Disabled);
        let units = used.map(|gateway| self.unit(gateway));
        units
            .filter(|unit| {
                let mut state = lock(&unit.state);
                let due = state.probe_at.is_none_or(|at| at <= now);
                if due {
                    // From three to five quarters of the interval: probes of many routers do not keep step.
                    state.probe_at = Some(now + interval * 3 / 4 + interval * u32::from(jitter()) / 512);
                }
                due
            })
            .take(max)
            .collect()
    }

    /// Connects to a gateway for its greeting; what comes of it goes into its health.
    pub(crate) async fn probe(&self, unit: &Arc<Unit>, listeners: &[SocketAddr]) -> Option<Stream> {
        if !lock(&unit.state).health.admit(Instant::now().into_std()) {
            return None;
        }
        let until = Instant::now() + self.settings.timeouts.open;
        let Some(seat) = unit.seat() else {
            // All connections are in use: mail tells how it is.
            lock(&unit.state).health.unused();
            return None;
        };
        let probing = self.connect_any(unit, &Purpose::Probe, listeners, until);
        match probing.await {
            Ok(stream) => {
                unit.succeeded();
                drop(seat);
                Some(stream)
            }
            Err(error) => {
                unit.failed(&error);
                None
            }
        }
    }

    async fn connect_any(
        &self,
        unit: &Arc<Unit>,
        purpose: &Purpose,
        listeners: &[SocketAddr],
        until: Instant,
    ) -> Result<Stream, OpenError> {
        let mut untried = self.addresses(&unit.gateway).await?;
        let mut last = OpenError { stage: Stage::Dns, reason: OpenReason::NoAddress };
        while let Some(address) = untried.pop_front() {
            let until = share(until, untried.len());
            match self.connect(unit, address, unit.gateway.encryption, purpose, listeners, until).await {
                Ok((stream, _, _)) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(crate) async fn addresses(&self, gateway: &Gateway) -> Result<VecDeque<SocketAddr>, OpenError> {
        let ips = match &gateway.address {
            Host::Address(ip) => vec![*ip],
            Host::Name(name) => {
                let found = self.resolver.resolve(name).await;
                found.map_err(|reason| OpenError { stage: Stage::Dns, reason })?
            }
        };
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, gateway.port)).collect())
    }

    /// One address, from one egress address after the other while that is what fails.
    async fn connect(
        &self,
        unit: &Arc<Unit>,
        address: SocketAddr,
        encryption: Encryption,
        purpose: &Purpose,
        listeners: &[SocketAddr],
        until: Instant,
    ) -> Result<(Stream, Capabilities, Option<usize>), OpenError> {
        let gateway = &unit.gateway;
        let here = |reason| OpenError { stage: Stage::Tcp, reason };
        if let Some(reason) = guard::refuse(address, listeners, gateway.allow_local) {
            return Err(here(reason));
        }
        let tls = match &unit.tls {
            Ok(tls) => tls.as_ref(),
            Err(error) => return Err(OpenError { stage: Stage::Tls, reason: OpenReason::Tls(error.clone()) }),
        };
        let client = purpose.introduction().map(|introduction| introduction.client.ip());
        loop {
            let now = Instant::now().into_std();
            let choice = lock(&unit.state).egress.choose(&gateway.egress, address.ip(), client, now);
            let egress = match choice {
                Choice::Any => None,
                Choice::Listed(index) => Some(index),
                Choice::None => return Err(here(OpenReason::NoEgress)),
            };
            let dial = Dial {
                gateway,
                encryption,
                tls,
                address,
                egress: egress.map(|index| &gateway.egress.addresses[index]),
                hostname: &self.settings.hostname,
                purpose: purpose.clone(),
                timeouts: &self.settings.timeouts,
                until,
            };
            let error = match dial.open(&mut |_, _, _| {}).await {
                Ok((stream, capabilities)) => {
                    lock(&unit.state).capabilities = Some(capabilities.clone());
                    return Ok((stream, capabilities, egress));
                }
                Err(error) => error,
            };
            // The reason lies with the egress address: another one may serve. Each is suspended, so this ends.
            let Some(index) = egress.filter(|_| unit.blames_egress(&error.reason)) else { return Err(error) };
            unit.suspend_egress(index);
            if Instant::now() >= until {
                return Err(error);
            }
        }
    }
}

impl GatewayState {
    fn unknown(name: &Name) -> Self {
        Self {
            name: name.clone(),
            up: true,
            connections: 0,
            idle: 0,
            outstanding: 0,
            over_quota: 0,
            capabilities: None,
            last_error: None,
            suspended_egress: Vec::new(),
        }
    }
}

impl Unit {
    /// As the gateway is configured at the moment.
    fn is_for(&self, gateway: &Arc<Gateway>) -> bool {
        Arc::ptr_eq(&self.gateway, gateway) || self.gateway == *gateway
    }

    fn report(&self) -> GatewayState {
        let state = lock(&self.state);
        let now = Instant::now().into_std();
        let addresses = self.gateway.egress.addresses.iter().enumerate();
        GatewayState {
            name: self.gateway.name.clone(),
            up: state.health.is_up(),
            connections: self.counts.connections.load(Relaxed),
            idle: u32::try_from(state.idle.len()).unwrap_or(u32::MAX),
            outstanding: self.counts.outstanding.load(Relaxed),
            over_quota: self.counts.allowance.refused.get(),
            capabilities: state.capabilities.clone(),
            last_error: state.last_error.clone(),
            suspended_egress: addresses
                .filter(|(index, _)| state.egress.is_suspended(*index, now))
                .map(|(_, egress)| egress.address)
                .collect(),
        }
    }

    fn seat(&self) -> Option<Seat> {
        let max = self.gateway.limits.connections_max.unwrap_or(u32::MAX);
        let taken = self.counts.connections.try_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1));
        taken.ok().map(|_| Seat(Arc::clone(&self.counts)))
    }

    fn outstanding(&self) -> Outstanding {
        self.counts.outstanding.fetch_add(1, Relaxed);
        Outstanding(Arc::clone(&self.counts))
    }

    fn failed(&self, error: &OpenError) {
        let mut state = lock(&self.state);
        state.last_error = Some(error.to_string());
        // Waits begin when the failure is known, and what it tells of connections holds for the idle ones too.
        if state.health.failed(Instant::now().into_std(), jitter()) {
            tracing::warn!(gateway = %self.gateway.name, %error, "the gateway is out of service");
            state.idle.clear();
        }
    }

    fn succeeded(&self) {
        let mut state = lock(&self.state);
        state.last_error = None;
        let was_up = state.health.is_up();
        state.health.succeeded();
        if !was_up && state.health.is_up() {
            tracing::info!(gateway = %self.gateway.name, "the gateway is in service again");
        }
    }

    fn blames_egress(&self, reason: &OpenReason) -> bool {
        match reason {
            OpenReason::EgressGone(_) => true,
            OpenReason::Refused { text, .. } => self.gateway.egress.is_block(text),
            _ => false,
        }
    }

    fn suspend_egress(&self, index: usize) {
        let Gateway { name, egress, .. } = &*self.gateway;
        tracing::warn!(gateway = %name, address = %egress.addresses[index].address, "an egress address is suspended");
        lock(&self.state).egress.suspend(index, egress.suspension(), Instant::now().into_std());
    }

    /// Whether it is told of the client, so that a connection serves that client only.
    fn introduces(&self) -> bool {
        self.gateway.proxy_protocol || self.gateway.xclient
    }

    /// Who was chosen takes mail that came as this did.
    fn encryption_for(&self, want: &Want) -> Encryption {
        self.gateway.encryption_for(want.encrypted).unwrap_or(Encryption::StarttlsRequired)
    }

    /// An idle connection that serves this client, `encrypted` if it must be; the one used last, for it is the most likely to
    /// be alive.
    fn idle(&self, introduction: Option<&Introduction>, encrypted: bool, cx: &mut Context<'_>) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let mut connection = {
                let mut state = lock(&self.state);
                let serves = |idle: &Idle| {
                    let Connection { introduction: introduced, stream, .. } = &idle.connection;
                    idle.is_fresh(now)
                        && introduced.as_ref() == introduction
                        && (!encrypted || matches!(stream, Stream::Tls(_)))
                };
                let found = state.idle.iter().rposition(serves)?;
                state.idle.remove(found).connection
            };
            if is_silent(&mut connection.stream, cx) {
                return Some(connection);
            }
        }
    }

    /// Makes room for a connection by giving up an idle one that serves somebody else.
    fn seat_or_evict(&self) -> Option<Seat> {
        self.seat().or_else(|| {
            let mut state = lock(&self.state);
            if state.idle.is_empty() {
                return None;
            }
            drop(state.idle.remove(0));
            drop(state);
            self.seat()
        })
    }
}

impl Idle {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.since + POOL_IDLE_TIME && now < self.connection.born + POOL_AGE_MAX
    }
}

/// A connection without a command under way has nothing to say: an octet or the end means that it is of no use.
fn is_silent(stream: &mut Stream, cx: &mut Context<'_>) -> bool {
    Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending()
}

impl Lease {
    pub(crate) fn stream(&mut self) -> &mut Stream {
        &mut self.connection.stream
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.unit.gateway
    }

    pub(crate) fn capabilities(&self) -> &Arc<Capabilities> {
        &self.connection.capabilities
    }

    pub(crate) fn allowance(&self) -> &Arc<Allowance> {
        &self.unit.counts.allowance
    }

    pub(crate) const fn is_encrypted(&self) -> bool {
        matches!(self.connection.stream, Stream::Tls(_))
    }

    /// Our address.
    pub(crate) const fn egress(&self) -> Option<IpAddr> {
        self.connection.local
    }

    pub(crate) const fn egress_listed(&self) -> bool {
        self.connection.egress.is_some()
    }

    /// The address that this connection left from is on a block list.
    pub(crate) fn suspend_egress(&self) {
        if let Some(index) = self.connection.egress {
            self.unit.suspend_egress(index);
        }
    }

    /// Back to the pool, without a transaction on it. Gives the connection back if it has served long enough.
    pub(crate) fn release(self) -> Option<Stream> {
        let Self { mut connection, unit, .. } = self;
        connection.uses += 1;
        let now = Instant::now();
        let uses_max = connection.capabilities.messages_max.unwrap_or(u32::MAX).min(POOL_USES_MAX);
        let mut state = lock(&unit.state);
        let kept = !connection.private
            && connection.uses < uses_max
            && now < connection.born + POOL_AGE_MAX
            && state.idle.len() < POOL_IDLE_MAX
            && unit.gateway.status == Status::Enabled;
        if kept {
            state.idle.push(Idle { connection, since: now });
            return None;
        }
        Some(connection.stream)
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.connection.stream
    }
}

/// Who wants a connection, and where to.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) routing: Arc<Routing>,
    pub(crate) target: Target,
    pub(crate) introduction: Introduction,
    /// The mail came over TLS.
    pub(crate) encrypted: bool,
    pub(crate) priority: i8,
    /// The connection is to be this client's own, and to know it by these.
    pub(crate) claim: Option<Arc<Claim>>,
}

/// The gateways of a target, tried one after the other, with all their addresses. It remembers where it is, so that another
/// try goes on behind the last one.
#[derive(Debug)]
pub(crate) struct Attempt {
    fleet: Arc<Fleet>,
    want: Want,
    untried: VecDeque<Arc<Unit>>,
    current: Option<Current>,
    /// Connections from the pool are not good enough.
    fresh: bool,
    last: OpenError,
}

#[derive(Debug)]
struct Current {
    unit: Arc<Unit>,
    /// `None`: not looked up.
    untried: Option<VecDeque<SocketAddr>>,
    /// What health admitted has its result.
    settled: bool,
}

impl Drop for Current {
    fn drop(&mut self) {
        if !self.settled {
            lock(&self.unit.state).health.unused();
        }
    }
}

impl Attempt {
    pub(crate) fn new(fleet: &Arc<Fleet>, want: Want, fresh: bool) -> Self {
        let (untried, reason) = fleet.candidates(&want);
        let last = OpenError { stage: Stage::Choice, reason };
        debug_assert!(fresh || want.claim.is_none(), "who is in the pool has asked nobody about this client");
        Self { fleet: Arc::clone(fleet), want, untried, current: None, fresh, last }
    }

    /// What the first gateway that may take the message has at hand: for most messages, there is no need to wait.
    pub(crate) fn at_hand(&mut self, cx: &mut Context<'_>) -> Option<Lease> {
        if self.fresh || (self.current.is_none() && !self.advance()) {
            return None;
        }
        self.current.as_mut()?.at_hand(&self.want, cx)
    }

    /// The next connection, to none of `listeners`. An error is the last one met, and nothing is left to try.
    pub(crate) async fn next(&mut self, listeners: &[SocketAddr], until: Instant) -> Result<Lease, OpenError> {
        loop {
            if self.current.is_none() && !self.advance() {
                return Err(self.last.clone());
            }
            let Some(current) = &mut self.current else { continue };
            let others = self.untried.len();
            match current.next(&self.fleet, &self.want, listeners, self.fresh, others, until).await {
                Ok(lease) => return Ok(lease),
                Err(None) => self.current = None,
                Err(Some(error)) => {
                    tracing::debug!(gateway = %current.unit.gateway.name, %error, "cannot use the gateway");
                    // A wrong password is wrong everywhere, and each try counts against the client.
                    if self.want.claim.is_some() && error.denies_claim() {
                        return Err(error);
                    }
                    self.last = error;
                }
            }
        }
    }

    /// On to the next gateway; false if there is none.
    fn advance(&mut self) -> bool {
        // The messages that follow a login count by themselves.
        let is_login = self.want.claim.is_some();
        while let Some(unit) = self.untried.pop_front() {
            let now = Instant::now().into_std();
            let mut state = lock(&unit.state);
            if !state.health.admit_mail() {
                self.last = OpenError { stage: Stage::Choice, reason: OpenReason::Unusable("the gateway is down") };
            } else if !is_login && !unit.counts.allowance.admit_message(&unit.gateway.limits, now) {
                state.health.unused();
                self.last =
                    OpenError { stage: Stage::Choice, reason: OpenReason::Unusable("the gateway is at its quota") };
            } else {
                drop(state);
                self.current = Some(Current { unit, untried: None, settled: false });
                return true;
            }
        }
        false
    }
}

impl Current {
    /// From the pool; nothing else of this gateway is tried after it.
    fn at_hand(&mut self, want: &Want, cx: &mut Context<'_>) -> Option<Lease> {
        let unit = &self.unit;
        let encryption = unit.encryption_for(want);
        let encrypted = encryption != Encryption::None && encryption != Encryption::Starttls;
        let introduction = unit.introduces().then_some(&want.introduction);
        let connection = unit.idle(introduction, encrypted, cx)?;
        self.untried = Some(VecDeque::new());
        Some(Lease { connection, unit: Arc::clone(unit), reused: true, _outstanding: unit.outstanding() })
    }

    /// `Err(None)`: nothing is left of this gateway.
    async fn next(
        &mut self,
        fleet: &Arc<Fleet>,
        want: &Want,
        listeners: &[SocketAddr],
        fresh: bool,
        others: usize,
        until: Instant,
    ) -> Result<Lease, Option<OpenError>> {
        let unit = Arc::clone(&self.unit);
        let encryption = unit.encryption_for(want);
        if self.untried.is_none() {
            if !fresh && let Some(lease) = poll_fn(|cx| Poll::Ready(self.at_hand(want, cx))).await {
                return Ok(lease);
            }
            match fleet.addresses(&unit.gateway).await {
                Ok(addresses) => self.untried = Some(addresses),
                Err(error) => {
                    self.untried = Some(VecDeque::new());
                    self.settled = true;
                    unit.failed(&error);
                    return Err(Some(error));
                }
            }
        }
        let Some(address) = self.untried.as_mut().and_then(VecDeque::pop_front) else { return Err(None) };
        let left = self.untried.as_ref().map_or(0, VecDeque::len);
        let Some(seat) = unit.seat_or_evict() else {
            self.untried = Some(VecDeque::new());
            let reason = OpenReason::Unusable("all connections to the gateway are in use");
            return Err(Some(OpenError { stage: Stage::Choice, reason }));
        };
        if !unit.counts.allowance.admit_connection(&unit.gateway.limits, Instant::now().into_std()) {
            self.untried = Some(VecDeque::new());
            let reason = OpenReason::Unusable("the gateway is at its quota of connections");
            return Err(Some(OpenError { stage: Stage::Choice, reason }));
        }
        let outstanding = unit.outstanding();
        let purpose = match &want.claim {
            Some(claim) => Purpose::Bridge(want.introduction.clone(), Arc::clone(claim)),
            None => Purpose::Mail(want.introduction.clone()),
        };
        let until = share(until, left + others);
        match fleet.connect(&unit, address, encryption, &purpose, listeners, until).await {
            Ok((stream, capabilities, egress)) => {
                self.settled = true;
                unit.succeeded();
                let connection = Connection {
                    local: stream.local_ip(),
                    stream,
                    capabilities: Arc::new(capabilities),
                    egress,
                    introduction: unit.introduces().then(|| want.introduction.clone()),
                    private: want.claim.is_some(),
                    born: Instant::now(),
                    uses: 0,
                    _seat: seat,
                };
                Ok(Lease { connection, unit, reused: false, _outstanding: outstanding })
            }
            Err(error) => {
                // One dead address of several says nothing of the gateway, and neither does what only this message asks for, or
                // what becomes of a client's password.
                let login = want.claim.is_some() && error.stage == Stage::Auth;
                if login || error.reason == OpenReason::Downgrade {
                    return Err(Some(error));
                }
                if left == 0 && !self.settled {
                    self.settled = true;
                    unit.failed(&error);
                }
                Err(Some(error))
            }
        }
    }
}

impl Fleet {
    /// The gateways that may take a message, the first choice first, those that are down last; and why there are none.
    fn candidates(&self, want: &Want) -> (VecDeque<Arc<Unit>>, OpenReason) {
        let members = want.routing.members(&want.target);
        let mut reason = OpenReason::NoGateway("the target has no gateways");
        let mut units = Vec::new();
        for (rank, gateway) in members {
            let refused = match gateway.status {
                Status::Disabled => Some(OpenReason::NoGateway("the gateway is disabled")),
                Status::Draining => Some(OpenReason::NoGateway("the gateway is draining")),
                Status::Enabled if gateway.priorities.is_some_and(|range| !range.contains(want.priority)) => {
                    Some(OpenReason::NoGateway("the gateway does not take this priority"))
                }
                Status::Enabled if gateway.encryption_for(want.encrypted).is_none() => Some(OpenReason::Downgrade),
                Status::Enabled => None,
            };
            match refused {
                Some(why) => reason = why,
                None => units.push((rank, self.unit(gateway))),
            }
        }
        let Target::Group(group) = &want.target else {
            return (units.into_iter().map(|(_, unit)| unit).collect(), reason);
        };
        let balance = want.routing.group(group).map_or(Balance::default(), |group| group.balance);
        let (up, down): (Vec<_>, Vec<_>) = units.into_iter().partition(|(_, unit)| lock(&unit.state).health.is_up());
        let mut credits = lock(&self.credits);
        let key = |unit: &Arc<Unit>| (group.clone(), unit.gateway.name.clone());
        let mut candidates: Vec<_> = up
            .iter()
            .map(|(rank, unit)| Candidate {
                rank: *rank,
                weight: unit.gateway.weight,
                outstanding: unit.counts.outstanding.load(Relaxed),
                credit: credits.get(&key(unit)).copied().unwrap_or(0),
            })
            .collect();
        let order = select::order(&mut candidates, balance);
        for ((_, unit), candidate) in up.iter().zip(&candidates) {
            credits.insert(key(unit), candidate.credit);
        }
        let first = order.into_iter().map(|index| Arc::clone(&up[index].1));
        (first.chain(down.into_iter().map(|(_, unit)| unit)).collect(), reason)
    }
}

/// The end of a try when as many `others` are to have a chance: the time that is left is shared evenly.
fn share(until: Instant, others: usize) -> Instant {
    let now = Instant::now();
    let shares = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
    now + until.saturating_duration_since(now) / shares
}

fn jitter() -> u8 {
    let mut octet = [0];
    // Without random octets there is no jitter, and nothing worse.
    let _ = ring::rand::SystemRandom::new().fill(&mut octet);
    octet[0]
}

/// What a panic leaves behind here is complete: no value is taken apart under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
