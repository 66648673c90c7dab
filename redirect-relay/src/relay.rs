//! What the caller gives: settings, and a directory that knows subscribers and gateways.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;

use crate::{
    addrs::{ClientAddr, OriginalDst},
    counters::{Counters, Meters},
    gateway::{Fleet, Gateway, GatewayState, VerifyReport},
    limits::{Limits, Timeouts},
    policy::Policy,
    quota::{self, Presence},
    record::Record,
    route::Routing,
    session::Means,
    tally::{Pair, Tallies, Tally},
    tarpit::Places,
    watch::{self, Watcher},
};

/// Who is on the other side of an accepted connection.
#[derive(Debug, Clone)]
pub struct Identity {
    pub client: ClientAddr,
    pub original: OriginalDst,
    pub class: Arc<str>,
    /// How clients of this class are treated.
    pub policy: Arc<Policy>,
}

/// The caller's knowledge of subscribers and gateways.
pub trait Directory: Send + Sync + 'static {
    /// Who connected from `peer` to our socket `local`. `None`: the source has no class, and gets no service.
    fn identify(&self, peer: SocketAddr, local: SocketAddr) -> impl Future<Output = Option<Identity>> + Send;

    /// Where mail goes at the moment; asked for at each MAIL, so it must be at hand. The transaction keeps it to its end.
    fn routing(&self) -> Arc<Routing>;

    /// Where this relay listens: no gateway may be there, whatever it allows, for mail would go in circles.
    fn listeners(&self) -> Vec<SocketAddr>;

    /// The client's subscriber abuses the relay: keep it away for `duration`. Called from a session's task, so it must not
    /// block. Who has no means to do so need not implement it; the session ends all the same.
    fn lock(&self, identity: &Identity, duration: Duration) {
        let _ = (identity, duration);
    }

    /// A message is over. Called from a session's task, so it must not block; the log has it as well.
    fn record(&self, identity: &Identity, record: &Arc<Record>) {
        let _ = (identity, record);
    }
}

/// How the relay behaves toward every client.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our name in the banner, in EHLO and in trace fields: a domain name, checked by the caller.
    pub hostname: Arc<str>,
    /// The largest message, in octets (RFC 1870); at least 1.
    pub size_max: u64,
    /// Sessions open at one time; one more is told 421 4.3.2.
    pub sessions_max: u64,
    /// Subscribers and classes whose quotas are remembered at one time, 96 octets each.
    pub quota_entries_max: usize,
    /// Sessions kept in the tar-pit at one time; one more, and the one that has waited longest is closed.
    pub tarpit_max: usize,
    /// How long open transactions may go on after a shutdown began.
    pub drain: Duration,
    /// Sessions may be passed through to this host's own addresses and its link as well. A subscriber could then reach by
    /// way of this host what only this host may reach.
    pub passthrough_to_self: bool,
    /// Between two probes of a gateway, more or less; without it, only mail tells whether a gateway lives.
    pub probe_interval: Option<Duration>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// The wall clock of trace fields.
    pub clock: fn() -> Timestamp,
}

impl Settings {
    pub fn new(hostname: impl Into<Arc<str>>) -> Self {
        Self {
            hostname: hostname.into(),
            size_max: 50 * 1024 * 1024,
            sessions_max: 10_000,
            quota_entries_max: 65_536,
            tarpit_max: 1000,
            drain: Duration::from_secs(30),
            passthrough_to_self: false,
            probe_interval: Some(Duration::from_secs(30)),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            clock: Timestamp::now,
        }
    }
}

/// A relay: shared by all listeners that the caller runs for it.
#[derive(Debug)]
pub struct Relay<D> {
    pub(crate) settings: Arc<Settings>,
    pub(crate) directory: D,
    pub(crate) meters: Meters,
    pub(crate) means: Means,
    pub(crate) presence: Arc<Presence>,
    pub(crate) tallies: Tallies,
    pub(crate) fleet: Arc<Fleet>,
}

impl<D: Directory> Relay<D> {
    pub fn new(settings: Settings, directory: D) -> Self {
        let settings = Arc::new(settings);
        Self {
            means: Means {
                quotas: Arc::new(quota::Table::new(settings.quota_entries_max)),
                places: Places::new(settings.tarpit_max),
                stage: watch::Stage::new(settings.clock),
            },
            presence: Arc::default(),
            tallies: Tallies::default(),
            fleet: Arc::new(Fleet::new(Arc::clone(&settings))),
            settings,
            directory,
            meters: Meters::default(),
        }
    }

    /// What was given to [`Relay::new`].
    pub const fn directory(&self) -> &D {
        &self.directory
    }

    /// How the gateways of the directory are.
    pub fn gateways(&self) -> Vec<GatewayState> {
        self.fleet.report(&self.directory.routing())
    }

    /// Tries a gateway, saved or not, as mail would use it, up to a MAIL that is given up.
    pub async fn verify(&self, gateway: &Gateway) -> VerifyReport {
        self.fleet.verify(gateway, &self.directory.listeners()).await
    }

    /// Messages by class and gateway.
    pub fn tallies(&self) -> Vec<(Pair, Tally)> {
        self.tallies.snapshot()
    }

    /// Looks at the sessions of `subscribers` from here on; `None` if too many look already.
    pub fn watch(&self, subscribers: IpNet) -> Option<Watcher> {
        self.means.stage.watch(subscribers)
    }

    pub fn counters(&self) -> Counters {
        Counters {
            quotas_forgotten: self.means.quotas.forgotten.get(),
            trace_lines_lost: self.means.stage.lost.get(),
            sessions_tarpitted: self.means.places.count() as u64,
            ..self.meters.snapshot()
        }
    }
}
