//! Files of subscribers, up and down, piece by piece: neither side holds one as a whole.

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::{
    Method,
    body::{Bytes, Incoming},
    header,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{
    super::{
        lines::{self, Piece},
        types::{SubscriberImport, SubscriberImportQuery, SubscriberListQuery, paths},
    },
    Changed, Client, Error, decode, with_query,
};
use crate::limits;

/// A file on its way to the daemon. Dropped without [`Upload::end`], it is no file.
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
}

impl Upload {
    /// Whether the daemon wants more of it.
    pub async fn send(&self, bytes: Vec<u8>) -> bool {
        self.pieces.send(Piece::Data(bytes.into())).await.is_ok()
    }

    pub async fn end(self) {
        // Whoever has answered already does not wait for it.
        let _ = self.pieces.send(Piece::End).await;
    }
}

/// A file, and the request's body that it fills.
pub fn upload() -> (Upload, Body) {
    let (pieces, file) = mpsc::channel(limits::IMPORT_QUEUE_MAX);
    (Upload { pieces }, lines::body(file))
}

/// An export as it comes.
pub struct Download {
    body: Incoming,
    _connection: JoinSet<()>,
}

impl Download {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = timeout(limits::BODY_PAUSE_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| Error::Answer("the export stopped for too long".to_owned()))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(_)) => return Err(Error::Answer("the export was cut short".to_owned())),
            }
        }
    }
}

impl Client {
    /// Puts a file of subscribers; a dry run makes no revision.
    pub async fn import_subscribers(
        &self,
        query: &SubscriberImportQuery,
        file: Body,
    ) -> Result<(SubscriberImport, Option<Changed>), Error> {
        let request = self
            .head()
            .method(Method::POST)
            .uri(with_query(paths::SUBSCRIBERS_IMPORT, query)?)
            .header(header::CONTENT_TYPE, lines::MEDIA_TYPE);
        let patience = self.timeout.max(limits::IMPORT_TIMEOUT);
        let answer = self.within(patience, self.exchange(request, file)).await?;
        let changed = if query.dry_run { None } else { Some(answer.changed()?) };
        Ok((decode(&answer.body)?, changed))
    }

    /// All that is known of subscribers.
    pub async fn export_subscribers(&self, query: &SubscriberListQuery) -> Result<Download, Error> {
        let request = self.head().uri(with_query(paths::SUBSCRIBERS_EXPORT, query)?);
        let (body, connection) = self.within(self.timeout, self.open(request)).await?;
        Ok(Download { body, _connection: connection })
    }
}
