//! The typed client that the CLI uses: HTTP over the daemon's Unix socket, or over TLS.

pub mod bulk;

use std::{
    fmt::{Display, Write},
    io,
    marker::PhantomData,
    path::Path,
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    header,
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use redirect_relay::gateway::VerifyReport;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::JoinSet, time::timeout};

use super::{
    endpoint::Transport,
    error::Problem,
    types::{
        APPLIED_HEADER, ChangesQuery, EventLine, EventQuery, ExplainQuery, Explanation, FlowList, FlowListQuery,
        LAST_EVENT_ID, Lock, LockPut, OMITTED_HEADER, Original, OriginalQuery, Page, REVISION_HEADER,
        RouteExplainQuery, RouteExplanation, RouteExportQuery, RouteFormat, RouteImport, RouteImportQuery, ServerEvent,
        Stats, Status, TraceLine, TraceQuery, paths,
    },
};
use crate::limits;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach redirectd at {host}: {source}; is it running?")]
    Unreachable { host: String, source: io::Error },
    #[error("no answer from redirectd at {host} within {} s", .after.as_secs_f64())]
    Timeout { host: String, after: Duration },
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    #[error("redirectd's answer makes no sense: {0}")]
    Answer(String),
    #[error("{} {} was not sent: nothing is to be changed", .0.method, .0.target)]
    Unsent(Box<Unsent>),
}

/// A change that a dry run does not ask for.
#[derive(Debug)]
pub struct Unsent {
    pub method: Method,
    pub target: String,
    pub body: Vec<u8>,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub revision: u64,
    /// Whether the kernel holds it already.
    pub applied: bool,
}

/// A daemon's API.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    timeout: Duration,
    dry_run: bool,
}

impl Client {
    pub fn new(socket: &Path, timeout: Duration) -> Self {
        Self::over(Transport::unix(socket), timeout)
    }

    pub fn over(transport: Transport, timeout: Duration) -> Self {
        Self { transport, timeout, dry_run: false }
    }

    /// Whether it sends only what changes nothing; other requests fail as [`Error::Unsent`] then.
    #[must_use]
    pub fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    pub async fn status(&self) -> Result<Status, Error> {
        self.get(paths::STATUS).await
    }

    pub async fn stats(&self) -> Result<Stats, Error> {
        self.get(paths::STATS).await
    }

    pub async fn flows(&self, query: &FlowListQuery) -> Result<FlowList, Error> {
        self.query(paths::FLOWS, query).await
    }

    pub async fn original(&self, query: &OriginalQuery) -> Result<Original, Error> {
        self.query(paths::FLOWS_ORIGINAL, query).await
    }

    /// Locks are no configuration: there is no revision to tell.
    pub async fn lock(&self, address: &impl Display, lock: &LockPut) -> Result<Lock, Error> {
        decode(&self.request(Method::PUT, &with_key(paths::LOCK, address), encode(lock)?).await?.body)
    }

    pub async fn unlock(&self, address: &impl Display) -> Result<(), Error> {
        self.remove(paths::LOCK, address).await
    }

    pub async fn explain(&self, query: &ExplainQuery) -> Result<Explanation, Error> {
        self.query(paths::EXPLAIN, query).await
    }

    /// Events from now on. The deadline is for the first answer only.
    pub async fn events(&self, query: &EventQuery) -> Result<Lines<EventLine>, Error> {
        self.lines(paths::FLOWS_WATCH, query).await
    }

    /// What happens in sessions with the embedded relay from now on. The deadline is for the first answer only.
    pub async fn trace(&self, query: &TraceQuery) -> Result<Lines<TraceLine>, Error> {
        self.lines(paths::TRACE, query).await
    }

    /// Changes of the configuration after a revision, or from now on. The deadline is for the first answer only.
    pub async fn changes(&self, query: &ChangesQuery, since: Option<u64>) -> Result<Lines<ServerEvent>, Error> {
        self.lines_since(paths::EVENTS, query, since).await
    }

    async fn lines<T>(&self, path: &str, query: &impl Serialize) -> Result<Lines<T>, Error> {
        self.lines_since(path, query, None).await
    }

    async fn lines_since<T>(&self, path: &str, query: &impl Serialize, since: Option<u64>) -> Result<Lines<T>, Error> {
        let mut request = self.head().uri(with_query(path, query)?);
        if let Some(revision) = since {
            request = request.header(LAST_EVENT_ID, revision);
        }
        let (body, connection) = self.within(self.timeout, self.open(request)).await?;
        Ok(Lines { body, buffer: Vec::new(), line: PhantomData, _connection: connection })
    }

    /// Asks for a body that is read as it comes.
    async fn open(&self, request: Builder) -> Result<(Incoming, JoinSet<()>), Error> {
        let (response, connection) = self.send(request, Empty::<Bytes>::new()).await?;
        if response.status().is_success() {
            return Ok((response.into_body(), connection));
        }
        Err(whole(response).await?.problem())
    }

    /// A page of a collection.
    pub async fn page<T: DeserializeOwned>(&self, collection: &str, query: &impl Serialize) -> Result<Page<T>, Error> {
        self.query(collection, query).await
    }

    /// One resource; `path` is the pattern of [`paths`].
    pub async fn resource<T: DeserializeOwned>(&self, path: &str, key: &impl Display) -> Result<T, Error> {
        self.get(&with_key(path, key)).await
    }

    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        key: &impl Display,
        body: &impl Serialize,
    ) -> Result<(T, Changed), Error> {
        let answer = self.request(Method::PUT, &with_key(path, key), encode(body)?).await?;
        Ok((decode(&answer.body)?, answer.changed()?))
    }

    /// A custom verb that makes a revision.
    pub async fn post<T: DeserializeOwned>(&self, target: &str, body: &impl Serialize) -> Result<(T, Changed), Error> {
        let answer = self.request(Method::POST, target, encode(body)?).await?;
        Ok((decode(&answer.body)?, answer.changed()?))
    }

    /// A verb of the configuration as a whole, if that is at this revision; with the one that it is at afterwards.
    pub async fn post_if<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
        revision: Option<u64>,
    ) -> Result<(T, Changed), Error> {
        let tag = revision.map_or_else(|| "*".to_owned(), |revision| format!("\"{revision}\""));
        let answer = self.request_if(Method::POST, target, encode(body)?, Some(tag)).await?;
        Ok((decode(&answer.body)?, answer.changed_at(header::ETAG.as_str())?))
    }

    /// For the configuration as a whole, which may take longer than other requests.
    #[must_use]
    pub fn patient(&self) -> Self {
        self.waiting(limits::CONFIGURATION_TIMEOUT)
    }

    /// With this much patience at least.
    fn waiting(&self, timeout: Duration) -> Self {
        Self { timeout: self.timeout.max(timeout), ..self.clone() }
    }

    /// Tries a gateway; takes longer than other requests.
    pub async fn verify(&self, gateway: &serde_json::Value) -> Result<VerifyReport, Error> {
        let patient = self.waiting(limits::VERIFY_TIMEOUT);
        decode(&patient.request(Method::POST, paths::GATEWAYS_VERIFY, gateway.to_string().into()).await?.body)
    }

    /// Puts a file of routes; a dry run makes no revision.
    pub async fn import(&self, query: &RouteImportQuery, file: &str) -> Result<(RouteImport, Option<Changed>), Error> {
        let target = with_query(paths::ROUTES_IMPORT, query)?;
        let answer = self.request(Method::POST, &target, file.as_bytes().to_vec()).await?;
        let changed = if query.dry_run { None } else { Some(answer.changed()?) };
        Ok((decode(&answer.body)?, changed))
    }

    /// A file of all routes, and how many it leaves out.
    pub async fn export(&self, format: RouteFormat) -> Result<(String, u64), Error> {
        let target = with_query(paths::ROUTES_EXPORT, &RouteExportQuery { format })?;
        let answer = self.request(Method::GET, &target, Vec::new()).await?;
        let omitted = answer.header(OMITTED_HEADER).and_then(|count| count.parse().ok());
        Ok((answer.text()?, omitted.unwrap_or(0)))
    }

    pub async fn explain_route(&self, query: &RouteExplainQuery) -> Result<RouteExplanation, Error> {
        self.query(paths::ROUTES_EXPLAIN, query).await
    }

    pub async fn delete_with(&self, path: &str, key: &impl Display, query: &impl Serialize) -> Result<Changed, Error> {
        let target = with_query(&with_key(path, key), query)?;
        self.request(Method::DELETE, &target, Vec::new()).await?.changed()
    }

    pub async fn delete(&self, path: &str, key: &impl Display) -> Result<Changed, Error> {
        self.request(Method::DELETE, &with_key(path, key), Vec::new()).await?.changed()
    }

    pub async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        decode(&self.request(Method::GET, target, Vec::new()).await?.body)
    }

    /// The raw text of an answer, for what is not JSON.
    pub async fn text(&self, target: &str) -> Result<String, Error> {
        self.request(Method::GET, target, Vec::new()).await?.text()
    }

    /// What answers to no revision.
    pub async fn create<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        decode(&self.request(Method::POST, path, encode(body)?).await?.body)
    }

    pub async fn remove(&self, path: &str, key: &impl Display) -> Result<(), Error> {
        self.request(Method::DELETE, &with_key(path, key), Vec::new()).await.map(drop)
    }

    pub async fn query<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> Result<T, Error> {
        self.get(&with_query(path, query)?).await
    }

    /// Who is asked, and who asks.
    fn head(&self) -> Builder {
        let request = Request::builder().header(header::HOST, self.transport.host());
        match self.transport.authorization() {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    async fn request(&self, method: Method, target: &str, body: Vec<u8>) -> Result<Answer, Error> {
        self.request_if(method, target, body, None).await
    }

    async fn request_if(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
        if_match: Option<String>,
    ) -> Result<Answer, Error> {
        if self.dry_run && is_change(&method, target) {
            return Err(Error::Unsent(Box::new(Unsent { method, target: target.to_owned(), body })));
        }
        let mut request = self.head().method(method).uri(target).header(header::CONTENT_TYPE, "application/json");
        if let Some(tag) = if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        self.within(self.timeout, self.exchange(request, Full::new(Bytes::from(body)))).await
    }

    /// The whole answer, if it is a success.
    async fn exchange<B: Payload>(&self, request: Builder, body: B) -> Result<Answer, Error> {
        let (response, _connection) = self.send(request, body).await?;
        let answer = whole(response).await?;
        if answer.head.status.is_success() { Ok(answer) } else { Err(answer.problem()) }
    }

    /// The answer's head; its body comes for as long as what is returned with it lives.
    async fn send<B: Payload>(&self, request: Builder, body: B) -> Result<(Response<Incoming>, JoinSet<()>), Error> {
        let request = request.body(body).map_err(|error| Error::Answer(error.to_string()))?;
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

    async fn within<T>(&self, patience: Duration, talk: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = |_| Error::Timeout { host: self.transport.name(), after: patience };
        timeout(patience, talk).await.map_err(late)?
    }
}

/// What a request may carry.
trait Payload: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static {}

impl<B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static> Payload for B {}

async fn whole(response: Response<Incoming>) -> Result<Answer, Error> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, limits::ANSWER_BYTES_MAX).collect().await;
    Ok(Answer { head, body: body.map_err(|error| Error::Answer(error.to_string()))?.to_bytes() })
}

/// Whether a request may change something: all do but questions, which may be asked by POST for their length.
fn is_change(method: &Method, target: &str) -> bool {
    const QUESTIONS: &[&str] = &["verify", "check", "diff", "explain"];
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let is_question = path.rsplit_once(':').is_some_and(|(_, verb)| QUESTIONS.contains(&verb));
    let asks_only = is_question || query.split('&').any(|pair| pair == "dry_run=true");
    !(method == Method::GET || method == Method::HEAD || method == Method::POST && asks_only)
}

/// A kind of line, and the types of it that this version knows.
pub trait Line: DeserializeOwned {
    const TYPES: &'static [&'static str];
}

impl Line for EventLine {
    const TYPES: &'static [&'static str] = &["packet", "locked", "lost"];
}

impl Line for TraceLine {
    const TYPES: &'static [&'static str] = &["line", "lost"];
}

/// Lines as they come.
pub struct Lines<T> {
    body: Incoming,
    buffer: Vec<u8>,
    line: PhantomData<fn() -> T>,
    /// Ends with this.
    _connection: JoinSet<()>,
}

impl<T: Line> Lines<T> {
    /// The next line; `None` when the daemon stops. A type that this version does not know is left out.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            let value: serde_json::Value = decode(&line)?;
            if value["type"].as_str().is_some_and(|name| T::TYPES.contains(&name)) {
                return decode(&line).map(Some);
            }
        }
    }
}

impl Lines<ServerEvent> {
    /// The next event; `None` when the daemon stops. One that this version does not know is left out.
    pub async fn next_event(&mut self) -> Result<Option<ServerEvent>, Error> {
        let mut name = String::new();
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            let line = String::from_utf8(line).map_err(|error| Error::Answer(error.to_string()))?;
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", data)) => match name.as_str() {
                    "change" => return decode(data.as_bytes()).map(ServerEvent::Change).map(Some),
                    "reset" => return decode(data.as_bytes()).map(ServerEvent::Reset).map(Some),
                    "dropped" => return decode(data.as_bytes()).map(ServerEvent::Dropped).map(Some),
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

impl<T> Lines<T> {
    /// The next line with its end; `None` when the daemon stops.
    async fn line(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > limits::BODY_BYTES_MAX {
                return Err(Error::Answer("a line without an end".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                // The daemon ended, perhaps in the middle of it.
                None | Some(Err(_)) => return Ok(None),
            }
        }
    }
}

struct Answer {
    head: hyper::http::response::Parts,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    fn changed(&self) -> Result<Changed, Error> {
        self.changed_at(REVISION_HEADER)
    }

    /// The revision is in the header of this name.
    fn changed_at(&self, name: &str) -> Result<Changed, Error> {
        let revision = self.header(name).and_then(|revision| revision.trim_matches('"').parse().ok());
        let revision = revision.ok_or_else(|| Error::Answer("it names no revision".to_owned()))?;
        Ok(Changed { revision, applied: self.header(APPLIED_HEADER) != Some("false") })
    }

    fn text(self) -> Result<String, Error> {
        String::from_utf8(self.body.into()).map_err(|error| Error::Answer(error.to_string()))
    }

    /// What it says, where it is no success.
    fn problem(&self) -> Error {
        serde_json::from_slice(&self.body).map_or_else(
            |_| Error::Answer(format!("{} {}", self.head.status, String::from_utf8_lossy(&self.body).trim())),
            |problem| Error::Problem(Box::new(problem)),
        )
    }
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::Answer(error.to_string()))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Answer(error.to_string()))
}

/// Puts a key into a path's pattern.
fn with_key(path: &str, key: &impl Display) -> String {
    let key = escape(&key.to_string());
    match (path.find('{'), path.find('}')) {
        (Some(start), Some(end)) => format!("{}{key}{}", &path[..start], &path[end + 1..]),
        _ => path.to_owned(),
    }
}

/// A path with the query.
pub fn with_query(path: &str, query: &impl Serialize) -> Result<String, Error> {
    Ok(format!("{path}?{}", query_text(query)?))
}

fn query_text(query: &impl Serialize) -> Result<String, Error> {
    let value = serde_json::to_value(query).map_err(|error| Error::Answer(error.to_string()))?;
    let members = value.as_object().into_iter().flatten();
    let pairs = members.map(|(name, value)| match value {
        serde_json::Value::String(text) => format!("{name}={}", escape(text)),
        other => format!("{name}={other}"),
    });
    Ok(pairs.collect::<Vec<_>>().join("&"))
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
