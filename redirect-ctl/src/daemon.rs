//! The daemon: start order, tasks, graceful stop.
//!
//! Start: store, expiry, first comparison with the kernel, sockets, relay listeners, and only then the interfaces, so that no redirected
//! flow finds a relay that is not there; the API answers last. Whatever fails before the interfaces leaves nothing attached.
//!
//! Stop: new connections find the relay down, so that their class decides; those that the relay has go on while it drains, for a bounded
//! time, so that nobody misses the reply to a message that is on its way; then the interfaces are detached; then the rest. Where programs
//! are to stay (`dataplane.on_exit`), that holds for the embedded relay alone, and nothing is detached. A task that ends by itself, by a
//! panic or otherwise, stops the whole daemon with an error: it never lives on half.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Instant};

use redirect_relay::Relay;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime,
    sync::{Semaphore, broadcast},
    task::{self, JoinError, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{
        self, Peers, PeersError,
        audit::{self, Audit},
        tokens::{self, Tokens},
    },
    api::{
        self, AppState, Places,
        events::Watchers,
        gate::Access,
        server::{self, Listener},
    },
    config::Settings,
    dataplane::{Dataplane, OnExit},
    desired::Time,
    health::Prober,
    host::Host,
    limits,
    reconcile::task::{Handle, Reconciler, Stage},
    relay::{FlowDirectory, keep_locks},
    store::{self, Change, ConfigurationChange, Outcome, Store},
    supervisor,
};

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the kernel does not take the configuration: {0}")]
    FirstSync(String),
    #[error(transparent)]
    Socket(#[from] server::Error),
    #[error(transparent)]
    Access(#[from] PeersError),
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    #[error(transparent)]
    Audit(#[from] audit::Error),
    #[error("relay.listen: cannot listen on {address}: {source}; give an address of this router and a free port")]
    Relay { address: SocketAddr, source: io::Error },
    #[error("{task} ended by itself: {reason}")]
    Task { task: String, reason: String },
}

/// Runs the daemon on `dataplane` until `shutdown`. Without `host` it leaves the rest of the machine alone.
pub async fn run(
    settings: Settings,
    dataplane: impl Dataplane + 'static,
    host: Option<Host>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let started = Instant::now();
    let mut tasks = Tasks::default();
    let stops = Stops::default();
    let result = start_and_wait(settings, dataplane, host, &shutdown, &mut tasks, &stops, started).await;
    // After a failed start too: what was started ends in order.
    stops.everything();
    tasks.finish().await;
    result
}

/// One token for each step of the stop.
#[derive(Default)]
struct Stops {
    api: CancellationToken,
    relay: CancellationToken,
    reconciler: CancellationToken,
}

impl Stops {
    fn everything(&self) {
        for token in [&self.api, &self.relay, &self.reconciler] {
            token.cancel();
        }
    }
}

async fn start_and_wait(
    settings: Settings,
    dataplane: impl Dataplane + 'static,
    host: Option<Host>,
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
    stops: &Stops,
    started: Instant,
) -> Result<(), Error> {
    let (store, writer) = store::open(&settings.store, &settings.resources())?;
    tasks.spawn_blocking("the store's writer", || {
        writer.run();
        Ok(())
    });
    // What expired while the daemon was away must not come back, not even for a second.
    while expire(&store).await? {}
    // And what nobody confirmed in time is taken back before the kernel is brought to it.
    if let Err(error) = take_back(&store).await {
        tracing::error!(%error, "cannot take back the commit that was not confirmed");
    }

    let flows = dataplane.reader();
    let (prober, health) = Prober::new(store.watch(), settings.health);
    let (mut reconciler, handle) =
        Reconciler::new(dataplane, host, store.clone(), health.clone(), settings.dataplane.flows_max);
    let first = task::spawn_blocking(move || {
        let outcome = reconciler.first_sync();
        (reconciler, outcome)
    });
    let (reconciler, outcome) = first.await.map_err(|error| ended("the first comparison", &error))?;
    outcome.map_err(Error::FirstSync)?;

    let doors = Doors::open(&settings).await?;
    let (directory, locks) = FlowDirectory::new(Arc::clone(&flows), store.watch());
    let relay = Arc::new(Relay::new(relay_settings(&settings), directory));
    for address in settings.relay.listeners() {
        let listener = listen(address).map_err(|source| Error::Relay { address, source })?;
        let (relay, stop) = (Arc::clone(&relay), stops.relay.clone());
        tasks.spawn(&format!("the relay on {address}"), async move {
            redirect_relay::run(listener, relay, stop).await;
            Ok(())
        });
    }

    {
        // After the relay's sessions, which hand their connections back when they end.
        let (relay, stop) = (Arc::clone(&relay), stops.reconciler.clone());
        tasks.spawn("the care of gateways", async move {
            redirect_relay::tend(relay, stop).await;
            Ok(())
        });
    }

    let stop = stops.reconciler.clone();
    let here = runtime::Handle::current();
    tasks.spawn_blocking("the reconciler", move || {
        here.block_on(reconciler.run(stop));
        Ok(())
    });
    handle.set_stage(Stage::Attached);
    handle.attempted(store.snapshot().tables.interfaces.len(), limits::API_APPLY_WAIT).await;

    let relay_locks = broadcast::Sender::new(limits::RELAY_LOCKS_MAX);
    let keeping = keep_locks(locks, handle.clone(), relay_locks.clone(), stops.reconciler.clone());
    tasks.spawn("the locks of the relay", async {
        keeping.await;
        Ok(())
    });
    tasks.spawn("the prober of relays", prober.run(stops.api.clone()));
    let (expiring, stop) = (store.clone(), stops.api.clone());
    tasks.spawn("the expiry", async move { run_expiry(expiring, stop).await.map_err(|error| error.to_string()) });
    let Doors { listeners, access, peers, tls } = doors;
    let app = api::app(Arc::new(AppState {
        store,
        reconciler: handle.clone(),
        flows,
        health,
        relay_locks,
        relay: Arc::clone(&relay),
        verifications: Semaphore::new(limits::VERIFICATIONS_MAX),
        dataplane: settings.dataplane.clone(),
        places: Places::default(),
        change_watchers: Arc::new(Semaphore::new(limits::CHANGE_WATCHERS_MAX)),
        watchers: Watchers::default(),
        access,
        started,
    }));
    let service = |connections| server::Service::new(app.clone(), Arc::clone(&peers), connections, stops.api.clone());
    let (unix, tcp) = (service(limits::API_CONNECTIONS_MAX), service(limits::API_TCP_CONNECTIONS_MAX));
    for (name, listener) in listeners {
        let serve = if matches!(listener, Listener::Unix(_)) { unix.clone() } else { tcp.clone() }.serve(listener);
        tasks.spawn(&format!("the API on {name}"), async {
            serve.await;
            Ok(())
        });
    }
    tasks.spawn("the renewal of the API's certificate", server::reload_on_hangup(tls, stops.api.clone()));
    drop((app, unix, tcp));
    let alive = supervisor::keep_alive(handle.clone(), stops.reconciler.clone());
    tasks.spawn("the watchdog", async {
        alive.await;
        Ok(())
    });
    supervisor::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %settings.file.display(), "ready");

    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = tasks.first_end() => Err(error),
    };
    let outlived = settings.dataplane.on_exit == OnExit::Keep && handle.observed().outlives;
    stop_in_order(outlived, &handle, stops, tasks).await;
    result
}

/// Where the API listens, and who may use it.
struct Doors {
    listeners: Vec<(String, Listener)>,
    access: Arc<Access>,
    peers: Arc<Peers>,
    tls: Option<Arc<server::Tls>>,
}

impl Doors {
    async fn open(settings: &Settings) -> Result<Self, Error> {
        let access = &settings.access;
        let group = access.socket_group.as_ref().map(access::group_id).transpose()?;
        let peers = Arc::new(Peers::resolve(&access.peers)?);
        let tls = access.tls.as_ref().map(server::Tls::load).transpose()?.map(Arc::new);
        let mut listeners = Vec::new();
        for path in &settings.sockets {
            let socket = server::Socket::bind(path, access.socket_mode, group)?;
            listeners.push((path.display().to_string(), Listener::Unix(socket)));
        }
        for address in &access.listeners {
            listeners.push((address.to_string(), Listener::Tcp(server::Port::bind(*address, tls.as_deref()).await?)));
        }
        let access = Arc::new(Access {
            tokens: Arc::new(Tokens::open(&settings.tokens())?),
            audit: Arc::new(Audit::open(&settings.audit(), limits::AUDIT_BYTES_MAX)?),
            requests_per_second: access.requests_per_second,
        });
        Ok(Self { listeners, access, peers, tls })
    }
}

/// `outlived`: programs go on.
async fn stop_in_order(outlived: bool, handle: &Handle, stops: &Stops, tasks: &mut Tasks) {
    tracing::info!("stopping");
    supervisor::stopping();
    stops.api.cancel();
    let stage = if outlived { Stage::Leaving } else { Stage::Draining };
    handle.set_stage(stage);
    if !handle.reached(stage, limits::DETACH_WAIT).await {
        tracing::error!("new connections still reach the relay while it drains, and are turned away");
    }
    stops.relay.cancel();
    tasks.wait_for("the relay", limits::RELAY_DRAIN + limits::API_DRAIN).await;
    if outlived {
        tracing::info!("stopped; the programs stay at work, `redirect-ctl uninstall` removes them");
        return;
    }
    handle.set_stage(Stage::Detached);
    if !handle.detached(limits::DETACH_WAIT).await {
        tracing::error!("some interfaces are still attached; they are released when the process ends");
    }
    tracing::info!("stopped");
}

/// A client waits for the relay's greeting, so a connection that overflows the accept queue under SYN cookies would wait in vain: the queue
/// is long.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::RELAY_ACCEPT_QUEUE)
}

fn relay_settings(settings: &Settings) -> redirect_relay::Settings {
    let mut relay = redirect_relay::Settings::new(settings.relay.hostname.as_str());
    relay.size_max = settings.relay.message_size_max_bytes;
    relay.sessions_max = settings.relay.sessions_max.into();
    relay.drain = limits::RELAY_DRAIN;
    relay.timeouts.connect = settings.relay.connect_timeout;
    relay.probe_interval = settings.relay.gateway_probe_interval;
    relay
}

async fn run_expiry(store: Store, stop: CancellationToken) -> Result<(), store::Error> {
    let mut ticks = interval(limits::EXPIRY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let expired = async {
            // Other changes have their turn between two batches.
            while !stop.is_cancelled() && expire(&store).await? {}
            Ok(())
        };
        // A store that cannot write (a full disk) may be able to later; what expired is removed then.
        if let Err(error) = expired.await {
            if matches!(error, store::Error::Stopped) && !stop.is_cancelled() {
                return Err(error);
            }
            tracing::error!(%error, "cannot remove subscribers that expired");
        }
        if let Err(error) = take_back(&store).await {
            tracing::error!(%error, "cannot take back the commit that was not confirmed");
        }
    }
    Ok(())
}

/// Removes a batch of expired facts; tells whether there may be more.
async fn expire(store: &Store) -> Result<bool, store::Error> {
    let now_s = Time::now().seconds;
    if store.next_expiry_s().await?.is_none_or(|next| next > now_s) {
        return Ok(false);
    }
    let committed = store.change(Change::Expire { now_s }).await?;
    if let Outcome::Expired(count) = committed.outcome {
        tracing::info!(count, revision = committed.revision, "facts about subscribers expired");
        return Ok(true);
    }
    Ok(false)
}

/// Takes back a pending commit whose time is over.
async fn take_back(store: &Store) -> Result<(), store::Error> {
    let Some(pending) = store.snapshot().standing.pending else { return Ok(()) };
    let now = Time::now();
    if pending.deadline > now {
        return Ok(());
    }
    let change = ConfigurationChange::RevertOverdue { now };
    let committed = store.change(Change::Configuration(Box::new(change))).await?;
    if committed.outcome != Outcome::Unchanged {
        tracing::warn!(
            taken_back = pending.revision,
            revision = committed.revision,
            "a commit was not confirmed in time"
        );
    }
    Ok(())
}

fn ended(task: &str, error: &JoinError) -> Error {
    Error::Task { task: task.to_owned(), reason: error.to_string() }
}

/// The daemon's tasks, each with its name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<Result<(), String>>,
    names: HashMap<task::Id, String>,
}

impl Tasks {
    fn spawn(&mut self, name: &str, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name.to_owned());
    }

    fn spawn_blocking(&mut self, name: &str, task: impl FnOnce() -> Result<(), String> + Send + 'static) {
        let id = self.set.spawn_blocking(task).id();
        self.names.insert(id, name.to_owned());
    }

    /// Waits until a task ends, which none does before it is told to.
    async fn first_end(&mut self) -> Error {
        match self.set.join_next_with_id().await {
            Some(end) => {
                self.note(end).unwrap_or_else(|name| Error::Task { task: name, reason: "nobody told it to".to_owned() })
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for the tasks whose name begins with `prefix`, at most `wait`.
    async fn wait_for(&mut self, prefix: &str, wait: std::time::Duration) {
        let all_ended = async {
            while self.names.values().any(|name| name.starts_with(prefix)) {
                let Some(end) = self.set.join_next_with_id().await else { return };
                if let Ok(error) = self.note(end) {
                    tracing::error!(%error, "while stopping");
                }
            }
        };
        if timeout(wait, all_ended).await.is_err() {
            tracing::error!("{prefix} did not end in time");
        }
    }

    /// Waits for everything that is left, at most for a while.
    async fn finish(&mut self) {
        self.wait_for("", limits::RELAY_DRAIN + limits::API_DRAIN).await;
        self.set.abort_all();
    }

    /// The error of a task that ended with one, else its name.
    fn note(&mut self, end: Result<(task::Id, Result<(), String>), JoinError>) -> Result<Error, String> {
        let (id, reason) = match end {
            Ok((id, Ok(()))) => (id, None),
            Ok((id, Err(reason))) => (id, Some(reason)),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        match reason {
            Some(reason) => Ok(Error::Task { task: name, reason }),
            None => Err(name),
        }
    }
}
