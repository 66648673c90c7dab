//! Subscribers by the million: import and export, a JSON object a line.
//!
//! An import is read by a thread of its own, line after line as it comes, into a form that holds a million facts; nothing is changed before the last
//! line has been read and found good. An export is written from one transaction, and so of one revision, for as long as its reader keeps up.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::Write as _,
    sync::Arc,
};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;
use ring::digest::{self, Digest, SHA256};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    App, AppState, apply_within,
    conditions::etag,
    error::{ApiError, Code, Problem},
    extract::{self, Params},
    lines::{self, MEDIA_TYPE, Piece},
    subscribers::{fact_query, source},
    types::{
        ImportMode, LineFault, LineFaults, SubscriberChange, SubscriberImport, SubscriberImportQuery,
        SubscriberListQuery, SubscriberRecord, paths,
    },
};
use crate::{
    desired::{self, Invalid, Name, Origin, Tables, Time},
    limits,
    store::{Change, FactLine, FactQuery, Import, ImportCounts, ImportDiff, ImportKey, Outcome, Staging, TakeFacts},
    subscribers::{Labels, Login, Mac, Priority, Record, Session},
};

/// Places for what takes memory and time.
pub struct Places {
    imports: Semaphore,
    exports: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { imports: Semaphore::new(limits::IMPORTS_MAX), exports: Arc::new(Semaphore::new(limits::EXPORTS_MAX)) }
    }
}

// Import

/// Reads a JSON object a line, each as `PUT` takes it with its `prefix`, and puts all of them or none.
///
/// With an `Idempotency-Key` a request that is sent again within a day is answered like the first time and not carried out again. Other changes wait while
/// an import is written, some 5 s for a million lines.
#[utoipa::path(post, path = paths::SUBSCRIBERS_IMPORT, tag = "subscribers",
    params(SubscriberImportQuery, ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters, of the client's choice")),
    request_body(content = SubscriberRecord, content_type = "application/x-ndjson"),
    responses((status = 200, body = SubscriberImport), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 413, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn import_subscribers(
    State(app): App,
    Params(query): Params<SubscriberImportQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let key = idempotency_key(request.headers())?;
    let only = query.source.as_deref().map(source).transpose()?;
    // One whose client has just gone away leaves its place in a moment.
    let _place = timeout(limits::IMPORT_PLACE_WAIT, app.places.imports.acquire())
        .await
        .map_err(|_| ApiError::new(Code::Unavailable, "another import is under way; try again when it is done"))?;
    let now = Time::now();
    // Each of the kernel's four tables full, once.
    let facts_max = (app.dataplane.subscribers_max as usize).saturating_mul(4);
    let reader = Reader::new(&app.store.snapshot().tables, &query, only, now, facts_max);
    let read = read(request.into_body(), reader).await?;
    let key = key.filter(|_| !query.dry_run).map(|key| ImportKey { key, digest: read.digest });
    if let Some(key) = &key
        && let Some((revision, counts)) = app.store.known_import(key.clone()).await?
    {
        return Ok(apply_within(&app, revision, limits::API_APPLY_WAIT)
            .await
            .with_headers(StatusCode::OK, report(counts)));
    }
    if read.faults.total > 0 {
        return Err(refusal(read.faults));
    }
    let replace = query.mode == ImportMode::Replace;
    let import = Box::new(Import {
        staging: read.staging,
        expired: read.expired,
        replace,
        source: only,
        key,
        now_s: now.seconds,
    });
    if query.dry_run {
        let ImportDiff { counts, first } = app.store.diff_import(import).await?;
        let examples = first.into_iter().map(|(before, after)| SubscriberChange {
            before: before.map(SubscriberRecord::from),
            after: after.map(SubscriberRecord::from),
        });
        return Ok(Json(SubscriberImport { examples: examples.collect(), ..report(counts) }).into_response());
    }
    let committed = app.store.change(Change::ImportFacts(import)).await?;
    let (Outcome::Imported(counts) | Outcome::ImportedBefore { counts, .. }) = committed.outcome else {
        return Err(ApiError::new(Code::Internal, "an import had another outcome"));
    };
    let done = apply_within(&app, committed.revision, limits::IMPORT_APPLY_WAIT).await;
    Ok(done.with_headers(StatusCode::OK, report(counts)))
}

fn report(counts: ImportCounts) -> SubscriberImport {
    let ImportCounts { added, changed, removed, unchanged, expired } = counts;
    SubscriberImport { added, changed, removed, unchanged, expired, examples: Vec::new() }
}

fn refusal(faults: LineFaults) -> ApiError {
    let first = faults.first.first();
    let first = first.map(|fault| format!("line {}: {}", fault.line, fault.detail)).unwrap_or_default();
    let more = if faults.total > 1 { format!(", and {} more lines", faults.total - 1) } else { String::new() };
    ApiError::new(Code::Invalid, format!("nothing was imported: {first}{more}")).with_lines(faults)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
            Err(ApiError::at(Code::Invalid, "Idempotency-Key:", &format!("give 1 to {most} visible characters")))
        }
    }
}

/// What was read of a file.
struct Read {
    staging: Staging,
    faults: LineFaults,
    expired: u64,
    digest: [u8; 32],
}

async fn read(mut body: Body, mut reader: Reader) -> Result<Read, ApiError> {
    let (pieces, mut received) = mpsc::channel(limits::IMPORT_QUEUE_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        while let Some(piece) = received.blocking_recv() {
            match piece {
                Piece::Data(bytes) => reader.take(&bytes)?,
                Piece::End => return reader.finish().map(Some),
            }
        }
        Ok(None)
    });
    let mut bytes = 0_usize;
    loop {
        let frame = timeout(limits::BODY_PAUSE_MAX, body.frame())
            .await
            .map_err(|_| ApiError::new(Code::Unavailable, "the body stopped for too long; nothing was imported"))?;
        let piece = match frame {
            None => Piece::End,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Piece::Data(data),
                // Trailers say nothing to us.
                Err(_) => continue,
            },
            Some(Err(_)) => return Err(ApiError::new(Code::InvalidJson, "the body ended early; nothing was imported")),
        };
        if let Piece::Data(data) = &piece {
            bytes += data.len();
            if bytes > limits::SUBSCRIBERS_BYTES_MAX {
                let text = format!("the file has more than {} bytes; split it", limits::SUBSCRIBERS_BYTES_MAX);
                return Err(ApiError::at(Code::TooLarge, "", &text));
            }
        }
        let is_end = matches!(piece, Piece::End);
        // A reader that has seen enough takes no more; it says why.
        if pieces.send(piece).await.is_err() || is_end {
            break;
        }
    }
    drop(pieces);
    let read = reading.await.map_err(|error| ApiError::new(Code::Internal, error.to_string()))??;
    read.ok_or_else(|| ApiError::new(Code::Internal, "the file's reader ended early"))
}

/// Reads a file line after line; pure.
struct Reader {
    classes: HashMap<String, Name>,
    /// What every line's source is, where the request says so.
    only: Option<Origin>,
    now: Time,
    staging: Staging,
    /// Facts that it takes.
    facts_max: usize,
    faults: LineFaults,
    expired: u64,
    /// The line that has not ended yet.
    rest: Vec<u8>,
    lines: u32,
    digest: digest::Context,
}

impl Reader {
    fn new(tables: &Tables, query: &SubscriberImportQuery, only: Option<Origin>, now: Time, facts_max: usize) -> Self {
        let names = tables.classes.values().map(|class| &class.spec.name);
        let mut digest = digest::Context::new(&SHA256);
        digest.update(format!("{}\n{}\n", query.mode, only.map_or("", Origin::name)).as_bytes());
        Self {
            classes: names.map(|name| (name.to_string(), name.clone())).collect(),
            only,
            now,
            staging: Staging::default(),
            facts_max,
            faults: LineFaults { total: 0, first: Vec::new() },
            expired: 0,
            rest: Vec::new(),
            lines: 0,
            digest,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), ApiError> {
        self.digest.update(bytes);
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, behind) = (&bytes[..end], &bytes[end + 1..]);
            if self.rest.is_empty() {
                self.bounded(line.len())?;
                self.line(line)?;
            } else {
                self.bounded(self.rest.len() + line.len())?;
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole)?;
                whole.clear();
                self.rest = whole;
            }
            bytes = behind;
        }
        self.bounded(self.rest.len() + bytes.len())?;
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// What has no lines is not read to its end.
    fn bounded(&self, length: usize) -> Result<(), ApiError> {
        if length <= limits::LINE_OF_FILE_BYTES_MAX {
            return Ok(());
        }
        let most = limits::LINE_OF_FILE_BYTES_MAX;
        let place = format!("line {}", self.lines + 1);
        Err(ApiError::at(Code::TooLarge, &place, &format!("has more than {most} bytes; give one JSON object a line")))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), ApiError> {
        self.lines = self.lines.checked_add(1).ok_or_else(too_many)?;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        // Serde would take a list of the values in their order for the object.
        let is_object = line.trim_ascii_start().first() == Some(&b'{');
        let parsed = is_object.then(|| serde_json::from_slice::<Line<'_>>(line).ok()).flatten();
        let checked = parsed.as_ref().map(|parsed| parsed.checked(&self.classes, self.only));
        match checked {
            Some(Ok(record)) if record.expires_s.is_some_and(|expires_s| expires_s <= self.now.seconds) => {
                self.expired += 1;
            }
            Some(Ok(_)) if self.staging.len() >= self.facts_max => return Err(too_many()),
            Some(Ok(record)) => self.staging.push(self.lines, &record).map_err(|_| too_many())?,
            Some(Err(fault)) => self.fault(fault),
            None => self.fault(in_words(line)),
        }
        Ok(())
    }

    fn fault(&mut self, fault: Fault) {
        self.faults.total += 1;
        if self.faults.first.len() < limits::LINE_FAULTS_MAX {
            let Fault { pointer, code, detail } = fault;
            let line = u64::from(self.lines);
            self.faults.first.push(LineFault { line, pointer, code: code.name().to_owned(), detail });
        }
    }

    fn finish(mut self) -> Result<Read, ApiError> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(&rest)?;
        }
        let mut again = Vec::new();
        let mut count = 0;
        self.staging.sort(|line, before| {
            count += 1;
            if again.len() < limits::LINE_FAULTS_MAX {
                again.push((line, before));
            }
        });
        self.faults.total += count;
        self.faults.first.extend(again.into_iter().map(|(line, before)| LineFault {
            line: line.into(),
            pointer: "/prefix".to_owned(),
            code: Code::Invalid.name().to_owned(),
            detail: format!("line {before} says what this source says of this prefix already"),
        }));
        self.faults.first.sort_by_key(|fault| fault.line);
        self.faults.first.truncate(limits::LINE_FAULTS_MAX);
        let digest: Digest = self.digest.finish();
        Ok(Read {
            staging: self.staging,
            faults: self.faults,
            expired: self.expired,
            digest: digest.as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }
}

fn too_many() -> ApiError {
    ApiError::at(Code::TooLarge, "", "the file has more lines or texts than can be held; split it")
}

/// What is wrong with a line.
struct Fault {
    pointer: String,
    code: Code,
    detail: String,
}

impl Fault {
    fn at(pointer: &str, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.to_owned(), code: Code::Invalid, detail: detail.into() }
    }
}

/// A line with its texts where they are. Whatever it does not take, [`SubscriberRecord`] refuses in words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    prefix: Cow<'a, str>,
    #[serde(borrow)]
    class: Cow<'a, str>,
    #[serde(borrow, default)]
    source: Option<Text<'a>>,
    #[serde(default)]
    priority: Option<Priority>,
    #[serde(borrow, default)]
    session: Option<Text<'a>>,
    #[serde(borrow, default)]
    user: Option<Text<'a>>,
    #[serde(borrow, default)]
    mac: Option<Text<'a>>,
    #[serde(borrow, default)]
    expires: Option<Text<'a>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    /// Of a list, whose lines may be sent back.
    #[serde(default, rename = "revision")]
    _revision: Option<serde::de::IgnoredAny>,
}

/// Borrowed where nothing is escaped, which serde does for this form only.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Line<'_> {
    fn checked<'a>(&'a self, classes: &'a HashMap<String, Name>, only: Option<Origin>) -> Result<Record<'a>, Fault> {
        let at = |pointer: &'static str| move |invalid: Invalid| Fault::at(pointer, invalid.0);
        let text = |text: &'a Option<Text<'_>>| text.as_ref().map(|Text(text)| &**text);
        let class = classes
            .get(&*self.class)
            .ok_or_else(|| Fault::at("/class", format!("there is no class {}; create it first", self.class)))?;
        let said = text(&self.source)
            .map(str::parse::<Origin>)
            .transpose()
            .map_err(|unknown| Fault::at("/source", unknown.to_string()))?;
        let source = match (said, only) {
            (Some(said), Some(only)) if said != only => {
                return Err(Fault::at("/source", format!("{said} is not the {only} of the request; leave it out")));
            }
            (said, only) => said.or(only).unwrap_or(Origin::Operator),
        };
        let (session, user) = (text(&self.session), text(&self.user));
        session.map(Session::check).transpose().map_err(at("/session"))?;
        user.map(Login::check).transpose().map_err(at("/user"))?;
        let expires = text(&self.expires).map(str::parse::<Time>).transpose().map_err(at("/expires"))?;
        Ok(Record {
            prefix: desired::prefix(&self.prefix).map_err(at("/prefix"))?,
            source,
            class,
            priority: self.priority,
            expires_s: expires.map(|expires| expires.seconds),
            session,
            user,
            mac: text(&self.mac).map(str::parse::<Mac>).transpose().map_err(at("/mac"))?,
            labels: match &self.labels {
                Some(labels) => Labels::new(labels.clone()).map_err(at("/labels"))?,
                None => Labels::default(),
            },
        })
    }
}

/// What is wrong with a line that [`Line`] did not take.
fn in_words(line: &[u8]) -> Fault {
    let Err(error) = extract::from_json::<SubscriberRecord>(line) else {
        return Fault::at("", "is no subscriber; see /openapi.json");
    };
    let (code, problem) = (error.code(), error.problem());
    match problem.errors.into_iter().next() {
        Some(error) => Fault { pointer: error.pointer, code, detail: error.detail },
        None => Fault { pointer: String::new(), code, detail: problem.detail },
    }
}

// Export

/// Everything that is known of subscribers, a JSON object a line, as the import takes it; all of one revision, which is the `ETag`.
#[utoipa::path(get, path = paths::SUBSCRIBERS_EXPORT, tag = "subscribers", params(SubscriberListQuery),
    responses((status = 200, body = SubscriberRecord, content_type = "application/x-ndjson"), (status = 400, body = Problem),
    (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn export_subscribers(
    State(app): App,
    Params(query): Params<SubscriberListQuery>,
) -> Result<Response, ApiError> {
    let facts = FactQuery { contenders: true, ..fact_query(&app.store.snapshot().tables, &query)? };
    stream(&app, facts, false).await
}

/// Lines until the last one; with the revision of each, if that is wanted.
pub(super) async fn stream(app: &AppState, facts: FactQuery, revisions: bool) -> Result<Response, ApiError> {
    let place = Arc::clone(&app.places.exports).try_acquire_owned().map_err(|_| {
        let text = format!("{} exports are under way already; try again when one is done", limits::EXPORTS_MAX);
        ApiError::new(Code::Unavailable, text)
    })?;
    let (begun, beginning) = oneshot::channel();
    let (pieces, chunks) = mpsc::channel(limits::EXPORT_QUEUE_MAX);
    let store = app.store.clone();
    let runtime = Handle::current();
    tokio::spawn(async move {
        let send = move |piece: Piece| {
            let sent = runtime.block_on(timeout(limits::BODY_PAUSE_MAX, pieces.send(piece)));
            matches!(sent, Ok(Ok(())))
        };
        let exported = store.each_fact(
            facts,
            move |revision| {
                // Whoever asked may be gone.
                let _ = begun.send(revision);
            },
            Writer::new(send, revisions),
        );
        if let Err(error) = exported.await {
            tracing::error!(%error, "an export was cut short");
        }
        drop(place);
    });
    let revision = beginning.await.map_err(|_| ApiError::new(Code::Internal, "the store failed"))?;
    let mut response = lines::answer(MEDIA_TYPE, chunks);
    response.headers_mut().insert(header::ETAG, etag(revision));
    Ok(response)
}

/// Gathers lines in chunks.
struct Writer<S> {
    send: S,
    chunk: Vec<u8>,
    revisions: bool,
}

impl<S: Fn(Piece) -> bool> Writer<S> {
    fn new(send: S, revisions: bool) -> Self {
        Self { send, chunk: Vec::new(), revisions }
    }
}

impl<S: Fn(Piece) -> bool> TakeFacts for Writer<S> {
    fn take(&mut self, line: &FactLine<'_>) -> bool {
        write_line(&mut self.chunk, line, self.revisions);
        if self.chunk.len() < limits::EXPORT_CHUNK_BYTES {
            return true;
        }
        let next = Vec::with_capacity(limits::EXPORT_CHUNK_BYTES + limits::LINE_OF_FILE_BYTES_MAX / 8);
        (self.send)(Piece::Data(std::mem::replace(&mut self.chunk, next).into()))
    }

    fn end(self) {
        if (self.send)(Piece::Data(self.chunk.into())) {
            (self.send)(Piece::End);
        }
    }
}

/// As serde would write a [`SubscriberRecord`], in a fraction of the time.
fn write_line(out: &mut Vec<u8>, line: &FactLine<'_>, revision: bool) {
    let FactLine { prefix, class, source, .. } = line;
    // Writing into memory does not fail.
    let _ = write!(out, r#"{{"prefix":"{prefix}","class":"{class}","source":"{source}""#);
    if let Some(priority) = line.priority {
        let _ = write!(out, r#","priority":{priority}"#);
    }
    for (name, text) in [("session", line.session), ("user", line.user)] {
        if let Some(text) = text {
            let _ = write!(out, r#","{name}":"#);
            let _ = serde_json::to_writer(&mut *out, text);
        }
    }
    if let Some(mac) = line.mac {
        let _ = write!(out, r#","mac":"{mac}""#);
    }
    match line.expires_s {
        Some(seconds) => drop(write!(out, r#","expires":"{}""#, Time { seconds })),
        None => out.extend_from_slice(br#","expires":null"#),
    }
    if let Some(labels) = line.labels {
        let _ = write!(out, r#","labels":{labels}"#);
    }
    if revision {
        let _ = write!(out, r#","revision":{}"#, line.revision);
    }
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(query: &SubscriberImportQuery, only: Option<Origin>) -> Reader {
        let mut reader = Reader::new(&Tables::default(), query, only, Time { seconds: 1_000 }, 100);
        reader.classes = ["gold", "blocked"].map(|name| (name.to_owned(), name.parse().unwrap())).into();
        reader
    }

    fn read_in(file: &[u8], step: usize, only: Option<Origin>) -> Result<Read, ApiError> {
        let mut reader = reader(&SubscriberImportQuery::default(), only);
        for piece in file.chunks(step) {
            reader.take(piece)?;
        }
        reader.finish()
    }

    #[test]
    fn a_file_may_be_cut_anywhere() {
        let file = "{\"prefix\":\"10.0.0.1\",\"class\":\"gold\",\"user\":\"\\u00e4 \\\"x\"}\n\n \r\n\
            {\"class\":\"gold\",\"prefix\":\"fd00::/16\",\"expires\":\"1970-01-01T00:00:01Z\"}\r\n\
            {\"prefix\":\"10.0.0.0/24\",\"class\":\"blocked\",\"labels\":{\"nas\":\"x\"},\"revision\":7}";
        let whole = read_in(file.as_bytes(), file.len(), None).unwrap();
        assert_eq!((whole.staging.len(), whole.faults.total, whole.expired), (2, 0, 1));
        for step in 1..file.len() {
            let cut = read_in(file.as_bytes(), step, None).unwrap();
            assert_eq!(
                (cut.staging, cut.faults, cut.digest),
                (whole.staging.clone(), whole.faults.clone(), whole.digest),
                "{step}"
            );
        }
    }

    #[test]
    fn every_fault_of_a_line_has_its_place() {
        let good = r#"{"prefix":"10.9.9.9","class":"gold"}"#;
        let long = "x".repeat(300);
        for (line, pointer, code, detail) in [
            ("x", "", "invalid_json", "not one JSON value"),
            ("{", "", "invalid_json", "not one JSON value"),
            (r#"{"prefix":"10.0.0.1","class":"gold"} x"#, "", "invalid_json", "not one JSON value"),
            ("[]", "", "invalid", "not an object"),
            (r#"["10.0.0.1","gold"]"#, "", "invalid", "not an object"),
            ("null", "", "invalid", "not an object"),
            ("{}", "/prefix", "invalid", "missing field"),
            (r#"{"prefix":"10.0.0.1"}"#, "/class", "invalid", "missing field"),
            (r#"{"prefix":"10.0.0.1/24","class":"gold"}"#, "/prefix", "invalid", "bits set beyond"),
            (r#"{"prefix":"nobody","class":"gold"}"#, "/prefix", "invalid", "not a prefix"),
            (r#"{"prefix":7,"class":"gold"}"#, "/prefix", "invalid", "invalid type"),
            (r#"{"prefix":"10.0.0.1","class":"silver"}"#, "/class", "invalid", "no class silver; create it first"),
            (r#"{"prefix":"10.0.0.1","class":"gold","class":"gold"}"#, "/class", "invalid", "duplicate"),
            (r#"{"prefix":"10.0.0.1","class":"gold","clas":1}"#, "/clas", "invalid", "unknown field"),
            (r#"{"prefix":"10.0.0.1","class":"gold","source":"me"}"#, "/source", "invalid", "none of operator"),
            (r#"{"prefix":"10.0.0.1","class":"gold","source":"dhcp"}"#, "/source", "invalid", "not the radius"),
            (r#"{"prefix":"10.0.0.1","class":"gold","priority":1001}"#, "/priority", "invalid", "out of range"),
            (r#"{"prefix":"10.0.0.1","class":"gold","expires":"soon"}"#, "/expires", "invalid", "not a time"),
            (r#"{"prefix":"10.0.0.1","class":"gold","mac":"x"}"#, "/mac", "invalid", "no MAC address"),
            (
                &format!(r#"{{"prefix":"10.0.0.1","class":"gold","session":"{long}"}}"#),
                "/session",
                "invalid",
                "no session",
            ),
            (r#"{"prefix":"10.0.0.1","class":"gold","user":""}"#, "/user", "invalid", "no user"),
            (
                r#"{"prefix":"10.0.0.1","class":"gold","labels":{"a b":"c"}}"#,
                "/labels",
                "invalid",
                "cannot name a label",
            ),
            (r#"{"prefix":"10.9.9.9_32","class":"blocked"}"#, "/prefix", "invalid", "line 1 says"),
        ] {
            let file = format!("{good}\n{line}\n");
            let read = read_in(file.as_bytes(), 7, Some(Origin::Radius)).unwrap();
            assert_eq!(read.faults.total, 1, "{line}");
            let fault = &read.faults.first[0];
            assert_eq!((fault.line, fault.pointer.as_str(), fault.code.as_str()), (2, pointer, code), "{line}");
            assert!(fault.detail.contains(detail), "{line}: {}", fault.detail);
        }
        let bytes = read_in(b"{\"prefix\":\"10.0.0.1\",\"class\":\"\xff\"}", 99, None).unwrap();
        assert_eq!(bytes.faults.total, 1);
    }

    #[test]
    fn faults_and_lines_and_their_length_are_bounded() {
        let read = read_in("x\n".repeat(1_000).as_bytes(), 64, None).unwrap();
        assert_eq!((read.faults.total, read.faults.first.len()), (1_000, limits::LINE_FAULTS_MAX));
        let endless = vec![b'x'; limits::LINE_OF_FILE_BYTES_MAX + 1];
        assert_eq!(read_in(&endless, 4_096, None).err().map(|error| error.code()), Some(Code::TooLarge));
        let line = |host| format!("{{\"prefix\":\"10.0.0.{host}\",\"class\":\"gold\"}}\n");
        let many = (0..101).map(line).collect::<Vec<_>>().concat();
        assert_eq!(read_in(many.as_bytes(), 4_096, None).err().map(|error| error.code()), Some(Code::TooLarge));
    }

    #[test]
    fn a_line_is_what_serde_would_write() {
        let full = FactLine {
            prefix: "10.0.0.0/24".parse().unwrap(),
            class: "gold",
            source: Origin::Radius,
            revision: 9,
            priority: Some(7),
            expires_s: Some(1_000),
            session: Some("a\"b\\ä"),
            user: Some("anna"),
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            labels: Some(r#"{"nas":"x"}"#),
        };
        let bare =
            FactLine { priority: None, expires_s: None, session: None, user: None, mac: None, labels: None, ..full };
        for line in [&full, &bare] {
            let mut written = Vec::new();
            write_line(&mut written, line, false);
            let record: SubscriberRecord = serde_json::from_slice(&written).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), serde_json::to_string(&record).unwrap() + "\n");
        }
        assert_eq!(full.session, Some("a\"b\\ä"));
    }
}
