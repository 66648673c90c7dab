//! `GET /v1/events`: what changes of the configuration, as server-sent events. Each client reads the store's log at its own pace, so nothing
//! is queued for it: a client that the log has run past is told how many it missed.

use std::{fmt::Write as _, io, sync::Arc};

use axum::{http::HeaderMap, response::Response};
use hyper::body::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};

use super::{
    AppState,
    error::{ApiError, Code},
    in_query,
    lines::{self, Source},
    types::{ChangeEvent, ChangesQuery, DroppedEvent, LAST_EVENT_ID, ResetEvent},
};
use crate::{
    desired::{Invalid, Snapshot},
    limits,
    reconcile::task::{Observed, Stage},
    store::{self, Kind, Reach, Store},
};

pub(super) const MEDIA_TYPE: &str = "text/event-stream";

/// From the revision that the client names on, or from now.
pub(super) async fn watch(app: Arc<AppState>, headers: &HeaderMap, query: &ChangesQuery) -> Result<Response, ApiError> {
    let kinds = query.types.as_deref().map(kinds).transpose()?;
    let last = last_event_id(headers)?;
    let seat = Arc::clone(&app.change_watchers).try_acquire_owned().map_err(|_| {
        let text = format!("{} watch the changes already; try again when one has left", limits::CHANGE_WATCHERS_MAX);
        ApiError::new(Code::Unavailable, text)
    })?;
    let snapshots = app.store.watch();
    let reach = app.store.changes_reach().await?;
    let mut first = ": the changes of the configuration\n\n".to_owned();
    let place = match last {
        Some(revision) if (reach.from_revision..=reach.revision).contains(&revision) => {
            app.store.changes_after(revision).await?
        }
        Some(_) => {
            first += &reset(reach);
            reach.places.1
        }
        None => reach.places.1,
    };
    let watcher = Watcher {
        store: app.store.clone(),
        observed: app.reconciler.watch(),
        snapshots,
        kinds,
        place,
        first: Some(first),
        _seat: seat,
    };
    Ok(lines::answer(MEDIA_TYPE, watcher))
}

fn kinds(types: &str) -> Result<Vec<Kind>, ApiError> {
    let kind = |name: &str| {
        let known = Kind::ALL.into_iter().find(|kind| kind.type_name() == name);
        let all = || Kind::ALL.map(Kind::type_name).join(", ");
        known.ok_or_else(|| Invalid(format!("{name:?} is no type; give some of {}, with commas between", all())))
    };
    in_query("types", types.split(',').map(kind).collect())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let revision = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let text = "is not the number of a revision; give the id of the last event, or leave the header out";
    revision.map(Some).ok_or_else(|| ApiError::at(Code::InvalidHeader, "Last-Event-ID:", text))
}

struct Watcher {
    store: Store,
    snapshots: watch::Receiver<Snapshot>,
    observed: watch::Receiver<Observed>,
    kinds: Option<Vec<Kind>>,
    /// Of the row to read next.
    place: u64,
    first: Option<String>,
    _seat: OwnedSemaphorePermit,
}

impl Source for Watcher {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first.into()));
        }
        loop {
            // What comes after this line is noticed below.
            self.snapshots.borrow_and_update();
            match self.read_on().await {
                Ok(Some(text)) if text.is_empty() => continue,
                Ok(Some(text)) => return Some(Ok(text.into())),
                Ok(None) => {}
                Err(error) => return Some(Err(io::Error::other(error))),
            }
            let stops = |observed: &Observed| matches!(observed.stage, Stage::Draining | Stage::Detached);
            tokio::select! {
                changed = timeout(limits::CHANGES_HEARTBEAT, self.snapshots.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(Ok(":\n\n".into())),
                },
                _ = self.observed.wait_for(stops) => return None,
            }
        }
    }
}

impl Watcher {
    /// The events of the next rows, without those that were not asked for; `None` at the end of the log.
    async fn read_on(&mut self) -> Result<Option<String>, store::Error> {
        let rows = self.store.changes(self.place, limits::CHANGES_READ_MAX).await?;
        let Some((first, last)) = rows.first().zip(rows.last()) else { return Ok(None) };
        let mut text = String::new();
        if first.place > self.place {
            let missed = DroppedEvent { count: first.place - self.place };
            event(&mut text, "dropped", None, &missed);
        }
        self.place = last.place + 1;
        // A revision is done with its last row, and only then is it the client's: one that leaves in the middle begins with it again.
        let whole = rows.len() < limits::CHANGES_READ_MAX as usize;
        for (index, row) in rows.iter().enumerate() {
            if self.kinds.as_ref().is_some_and(|kinds| !kinds.contains(&row.kind)) {
                continue;
            }
            let done = rows.get(index + 1).map_or(whole, |next| next.revision > row.revision);
            event(&mut text, "change", done.then_some(row.revision), &ChangeEvent::from(row));
        }
        Ok(Some(text))
    }
}

fn reset(reach: Reach) -> String {
    let mut text = String::new();
    event(&mut text, "reset", Some(reach.revision), &ResetEvent { revision: reach.revision });
    text
}

/// The form of WHATWG HTML section 9.2.6.
fn event(text: &mut String, name: &str, id: Option<u64>, data: &impl serde::Serialize) {
    let data = serde_json::to_string(data).expect("events have JSON");
    // Writing into a string cannot fail.
    let _ = id.map(|id| writeln!(text, "id: {id}"));
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
}
