//! `GET /v1/flows:watch`: what the data plane reports, as it happens, a JSON object a line.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::response::Response;
use hyper::body::Bytes;
use ipnet::IpNet;
use redirect_common::reason::{Reason, Verdict};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    broadcast::{self, error::RecvError},
    watch,
};

use super::{
    AppState, class_in_query, class_name,
    error::{ApiError, Code},
    in_query,
    lines::{self, Source},
    types::{Event, EventLine, EventQuery, LockEvent, LostAt},
};
use crate::{
    dataplane::ClassId,
    desired::{self, Counted, Invalid, Tables, Time},
    limits,
    reconcile::{
        event::EventRecord,
        task::{Observed, Stage},
    },
    relay::AbuseLock,
};

/// Those who watch, all together.
pub struct Watchers {
    places: Arc<Semaphore>,
    /// Events that they were too slow for, since the start.
    dropped: AtomicU64,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(limits::EVENT_WATCHERS_MAX)), dropped: AtomicU64::new(0) }
    }
}

impl Watchers {
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// From here on nothing is missed without being told.
pub(super) fn watch(app: Arc<AppState>, query: &EventQuery) -> Result<Response, ApiError> {
    let filter = Filter::new(&app.store.snapshot().tables, query)?;
    let place = Arc::clone(&app.watchers.places).try_acquire_owned().map_err(|_| {
        let text = format!("{} watch the events already; try again when one has left", limits::EVENT_WATCHERS_MAX);
        ApiError::new(Code::Unavailable, text)
    })?;
    let (events, mut observed) = (app.reconciler.events(), app.reconciler.watch());
    let lost = observed.borrow_and_update().events.lost;
    let locks = app.relay_locks.subscribe();
    let watcher = Watcher { app, filter, events, locks, observed, lost, _place: place };
    Ok(lines::answer(lines::MEDIA_TYPE, watcher))
}

struct Filter {
    class: Option<ClassId>,
    client: Option<IpNet>,
    reason: Option<Reason>,
}

impl Filter {
    fn new(tables: &Tables, query: &EventQuery) -> Result<Self, ApiError> {
        let reason = |name: &str| {
            let reason = Reason::ALL.iter().copied().find(|reason| reason.name() == name);
            reason.ok_or_else(|| Invalid(format!("there is no reason {name}; redirect-ctl stats lists some")))
        };
        Ok(Self {
            class: query.class.as_deref().map(|name| class_in_query(tables, name)).transpose()?,
            client: query.client.as_deref().map(|text| in_query("client", desired::prefix(text))).transpose()?,
            reason: query.reason.as_deref().map(|name| in_query("reason", reason(name))).transpose()?,
        })
    }

    fn lets_lock_through(&self, lock: &AbuseLock, tables: &Tables) -> bool {
        self.class.is_none_or(|class| class_name(tables, class).as_deref() == Some(&*lock.class))
            && self.client.is_none_or(|client| client.contains(&lock.client))
            && self.reason.is_none()
    }

    fn lets_through(&self, event: &EventRecord) -> bool {
        self.class.is_none_or(|class| event.class == class)
            && self.client.is_none_or(|client| client.contains(&event.ends.client.ip()))
            && self.reason.is_none_or(|reason| event.reason == reason)
    }
}

struct Watcher {
    app: Arc<AppState>,
    filter: Filter,
    events: broadcast::Receiver<EventRecord>,
    locks: broadcast::Receiver<AbuseLock>,
    observed: watch::Receiver<Observed>,
    /// What the kernel had lost when the watcher was told last.
    lost: u64,
    _place: OwnedSemaphorePermit,
}

impl Source for Watcher {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let line = loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) if self.filter.lets_through(&event) => break EventLine::Packet(Box::new(self.event(&event))),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => {
                        self.app.watchers.dropped.fetch_add(count, Ordering::Relaxed);
                        break EventLine::Lost { at: LostAt::Queue, count };
                    }
                    Err(RecvError::Closed) => return None,
                },
                lock = self.locks.recv() => match lock {
                    Ok(lock) if self.filter.lets_lock_through(&lock, &self.app.store.snapshot().tables) => {
                        break EventLine::Locked(Box::new(LockEvent {
                            time: Time::now().to_string(),
                            address: Counted(lock.client.into()),
                            class: lock.class.as_ref().to_owned(),
                            duration_s: lock.duration.as_secs(),
                        }));
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => {
                        self.app.watchers.dropped.fetch_add(count, Ordering::Relaxed);
                        break EventLine::Lost { at: LostAt::Queue, count };
                    }
                    Err(RecvError::Closed) => return None,
                },
                changed = self.observed.changed() => {
                    changed.ok()?;
                    let (stage, lost) = {
                        let observed = self.observed.borrow_and_update();
                        (observed.stage, observed.events.lost)
                    };
                    if matches!(stage, Stage::Draining | Stage::Detached) {
                        return None;
                    }
                    let count = lost.saturating_sub(self.lost);
                    self.lost = lost;
                    if count > 0 {
                        break EventLine::Lost { at: LostAt::Kernel, count };
                    }
                }
            }
        };
        Some(lines::line(&line))
    }
}

impl Watcher {
    fn event(&self, event: &EventRecord) -> Event {
        let rewritten = event.reason.verdict() == Verdict::Redirect;
        Event {
            time: jiff::Timestamp::try_from(event.time).unwrap_or_default().to_string(),
            interface: event.interface.as_deref().map(str::to_owned),
            reason: event.reason.name().to_owned(),
            verdict: event.reason.verdict().name().to_owned(),
            class: class_name(&self.app.store.snapshot().tables, event.class),
            client: event.ends.client,
            server: event.ends.server,
            relay: rewritten.then_some(event.ends.relay),
            mapped_port: rewritten.then_some(event.ends.mapped_port),
        }
    }
}
