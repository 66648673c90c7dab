//! `GET /v1/trace`: the sessions of a subscriber with the embedded relay as they happen, a JSON object a line. The relay has taken
//! out of them what says anything of a message, a password, or of who writes to whom.

use std::{io, sync::Arc};

use axum::response::Response;
use hyper::body::Bytes;
use ipnet::IpNet;
use redirect_relay::{Seen, Watcher};
use tokio::sync::watch;

use super::{
    AppState,
    error::{ApiError, Code},
    lines::{self, Source},
    types::{SessionLine, TraceLine},
};
use crate::reconcile::task::{Observed, Stage};

/// From here on nothing is missed without being told.
pub(super) fn watch(app: &Arc<AppState>, subscribers: IpNet) -> Result<Response, ApiError> {
    let sessions = app.relay.watch(subscribers).ok_or_else(|| {
        ApiError::new(Code::Unavailable, "as many as may look at sessions do already; try again when one has left")
    })?;
    Ok(lines::answer(lines::MEDIA_TYPE, Tracer { sessions, observed: app.reconciler.watch() }))
}

struct Tracer {
    sessions: Watcher,
    observed: watch::Receiver<Observed>,
}

impl Source for Tracer {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let stops = |observed: &Observed| matches!(observed.stage, Stage::Draining | Stage::Detached);
        let seen = tokio::select! {
            seen = self.sessions.next() => seen,
            _ = self.observed.wait_for(stops) => return None,
        };
        Some(lines::line(&match seen {
            Seen::Missed(count) => TraceLine::Lost { count },
            Seen::Line(line) => TraceLine::Line(Box::new(SessionLine {
                time: line.at.to_string(),
                session: line.session,
                subscriber: line.subscriber,
                class: line.class.as_ref().to_owned(),
                who: line.who,
                text: line.text.clone(),
            })),
        }))
    }
}
