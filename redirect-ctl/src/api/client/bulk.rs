//! Files of subscribers, up and down, piece by piece: neither side holds one as a whole.

use axum::body::Body;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{
    super::{
        lines::{self, Piece},
        types::{SubscriberImport, SubscriberImportQuery, SubscriberListQuery, paths},
    },
    Answer, Changed, Client, Error, decode, problem, query_text,
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
        let patience = self.timeout.max(limits::IMPORT_TIMEOUT);
        let request = self
            .head()
            .method(Method::POST)
            .uri(format!("{}?{}", paths::SUBSCRIBERS_IMPORT, query_text(query)?))
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(file)
            .map_err(|error| Error::Answer(error.to_string()))?;
        let talk = async {
            let (response, _connection) = self.send(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, limits::ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Error::Answer(error.to_string()))?.to_bytes();
            if !head.status.is_success() {
                return Err(problem(head.status, &body));
            }
            let answer = Answer { head, body };
            let changed = if query.dry_run { None } else { Some(answer.changed()?) };
            Ok((decode(&answer.body)?, changed))
        };
        let late = || Error::Timeout { host: self.transport.name(), after: patience };
        timeout(patience, talk).await.map_err(|_| late())?
    }

    /// All that is known of subscribers.
    pub async fn export_subscribers(&self, query: &SubscriberListQuery) -> Result<Download, Error> {
        let request = self
            .head()
            .uri(format!("{}?{}", paths::SUBSCRIBERS_EXPORT, query_text(query)?))
            .body(Empty::<Bytes>::new())
            .map_err(|error| Error::Answer(error.to_string()))?;
        let late = || Error::Timeout { host: self.transport.name(), after: self.timeout };
        let (response, connection) = timeout(self.timeout, self.send(request)).await.map_err(|_| late())??;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return Ok(Download { body, _connection: connection });
        }
        let body = Limited::new(body, limits::ANSWER_BYTES_MAX).collect().await;
        Err(problem(head.status, &body.map_err(|error| Error::Answer(error.to_string()))?.to_bytes()))
    }

    /// The connection lives as long as what is returned with the answer's head.
    async fn send<B>(&self, request: Request<B>) -> Result<(Response<Incoming>, JoinSet<()>), Error>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let unreachable = |source| Error::Unreachable { host: self.transport.name(), source };
        let stream = self.transport.connect().await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(io::Error::other(error)))?;
        let mut tasks = JoinSet::new();
        // How it ends is told by the body.
        tasks.spawn(async { drop(connection.await) });
        let response = sender.send_request(request).await.map_err(|error| unreachable(io::Error::other(error)))?;
        Ok((response, tasks))
    }
}
