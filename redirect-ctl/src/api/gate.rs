//! The one gate that every request comes through: who asks, whether they may, how often, how much; and the audit of it.
//!
//! Credentials that are given explicitly win: a token in `Authorization` decides, also for root on the Unix socket, and one that is not good
//! is refused. Without one, the client certificate or the user at the other end of the socket decides.

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    RequestExt,
    body::Body,
    extract::{MatchedPath, Query, RawPathParams, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::Limited;
use ipnet::IpNet;
use redirect_relay::Rate;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::{
    error::{ApiError, Code},
    request_id,
};
use crate::{
    access::{
        Caller, Confined, Peer, Peers, Roles, Rule, Rules, Size,
        audit::{Audit, Record},
        rates::{self, Rates},
        tokens::{self, Refused, Tokens},
    },
    desired::{self, Time},
    limits,
    metrics::meters::{METERS, RequestLabels, method_name, observe},
    store::Store,
};

const REQUEST_ID: HeaderName = HeaderName::from_static(request_id::HEADER);

/// What the gate knows and keeps.
pub struct Access {
    pub tokens: Arc<Tokens>,
    pub audit: Arc<Audit>,
    /// Of one caller in each second; `None` for any number.
    pub requests_per_second: Option<u32>,
}

pub(super) struct Gate {
    rules: Rules,
    access: Arc<Access>,
    store: Store,
    requests: Option<Rates>,
    failures: Rates,
    refusals: Rates,
    /// Refusals that the audit does not list.
    unlisted: AtomicU64,
    large_bodies: Semaphore,
}

impl Gate {
    pub(super) fn new(rules: Rules, access: Arc<Access>, store: Store) -> Self {
        let per_second = |count: u64, burst: u64| {
            Rate::new(count, Duration::from_secs(1), burst).expect("the configuration has no rate of nothing")
        };
        let requests = access.requests_per_second.map(|count| per_second(count.into(), u64::from(count) * 2));
        let failures =
            Rate::new(limits::AUTH_FAILURES_PER_MINUTE, Duration::from_mins(1), limits::AUTH_FAILURES_PER_MINUTE);
        let (refusals_per_second, refusals_at_once) = limits::AUDIT_REFUSALS;
        Self {
            rules,
            access,
            store,
            requests: requests.map(|rate| Rates::new(rate, limits::RATES_MAX)),
            failures: Rates::new(failures.expect("a constant above zero"), limits::RATES_MAX),
            refusals: Rates::new(per_second(refusals_per_second, refusals_at_once), 1),
            unlisted: AtomicU64::new(0),
            large_bodies: Semaphore::new(limits::LARGE_BODIES_MAX),
        }
    }
}

/// Lets a request through, or answers in its stead.
pub(super) async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or_else(String::new, |path| path.as_str().to_owned());
    let method = method_name(request.method());
    let id = id_of(request.headers());
    let span =
        tracing::info_span!("request", id, method = %request.method(), path = tokens::redacted(request.uri().path()));
    let mut response = request_id::within(id.clone(), gate.answer(request, &id, next).instrument(span)).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    observe(&METERS.request_time, begun.elapsed());
    METERS.requests.get_or_create(&RequestLabels { route, method, code: response.status().as_u16() }).inc();
    response
}

impl Gate {
    async fn answer(&self, mut request: Request, id: &str, next: Next) -> Response {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let rule = self.rules.of(path, request.method().as_str());
        let peer = request.extensions().get::<Peer>().cloned();
        let caller = self.caller(peer.as_ref(), &rule, request.headers());
        let who = match &caller {
            Ok(caller) => caller.who.clone(),
            Err(refusal) => refusal.who.clone(),
        };
        let asked = self.asked(&request, &rule, peer.as_ref(), who, id);
        let admitted = match caller {
            Ok(caller) => self.admit(&caller, &rule, &mut request).await.map(|()| caller),
            Err(refusal) => Err(*refusal),
        };
        let caller = match admitted {
            Ok(caller) => caller,
            Err(refusal) => return self.refuse(asked, refusal),
        };
        // Held until the answer is there: the body is in memory.
        let _place = if rule.size == Size::Large {
            let Ok(place) = self.large_bodies.try_acquire() else {
                let text =
                    format!("{} large requests are being worked on; try again in a moment", limits::LARGE_BODIES_MAX);
                let error = ApiError::new(Code::Unavailable, text);
                return self.refuse(asked, Refusal { wait: Some(Duration::from_secs(1)), ..error.into() });
            };
            Some(place)
        } else {
            None
        };
        let writes = writes(request.method());
        let mut request = request.map(|body| Body::new(Limited::new(body, rule.size.bytes_max())));
        request.extensions_mut().insert(caller);
        if !writes {
            return next.run(request).await;
        }
        let mut pending = Pending { gate: self, record: Some(asked) };
        let response = next.run(request).await;
        if let Some(record) = pending.record.take() {
            self.note(record, &response);
        }
        response
    }

    /// Who asks. For what everybody may ask, that is nobody in particular.
    fn caller(&self, peer: Option<&Peer>, rule: &Rule, headers: &HeaderMap) -> Result<Caller, Box<Refusal>> {
        let of = |who: String, roles| Caller { who, roles, within: None, is_local_admin: false };
        if rule.is_public {
            return Ok(of("anyone".to_owned(), Roles::NONE));
        }
        let result = match (bearer(headers), peer) {
            (Err(text), _) => Err(Refusal::unknown(Code::TokenInvalid, text)),
            (Ok(Some(text)), _) => self.bearer_of(text),
            (Ok(None), Some(Peer::Unix { uid, roles, .. })) => {
                Ok(Caller { is_local_admin: Peers::is_local_admin(*uid), ..of(format!("uid:{uid}"), *roles) })
            }
            (Ok(None), Some(Peer::Tcp { certificate: Some(named), .. })) => {
                Ok(of(format!("certificate:{}", named.name), named.roles))
            }
            (Ok(None), _) => Err(Refusal::unknown(
                Code::Unauthenticated,
                "say who you are: a token in \"Authorization: Bearer\", or a client certificate; an administrator makes one by redirect-ctl \
                 token create",
            )),
        };
        result.map_err(|refusal| {
            // Good credentials are never held up by the failures of others at the same address.
            let source = match peer {
                Some(Peer::Tcp { address, .. }) => Source::Address(rates::source(address.ip())),
                Some(Peer::Unix { uid, .. }) => Source::User(*uid),
                None => Source::Unknown,
            };
            Box::new(match self.failures.take(&source, Instant::now()) {
                Ok(()) => refusal,
                Err(wait) => Refusal {
                    who: refusal.who,
                    ..Refusal::too_often(wait, "authentication failed too often from here")
                },
            })
        })
    }

    fn bearer_of(&self, text: &str) -> Result<Caller, Refusal> {
        let named = |token: &tokens::Token| format!("token:{}/{}", token.name, token.id);
        match self.access.tokens.check(text, Time::now()) {
            Ok(known) => Ok(Caller {
                who: named(&known.token),
                roles: Roles::one(known.token.role),
                within: known.token.within,
                is_local_admin: false,
            }),
            Err(Refused::Unknown) => Err(Refusal::unknown(
                Code::TokenInvalid,
                "the token is not known: it was mistyped or revoked; an administrator makes another one by redirect-ctl token create",
            )),
            Err(Refused::Expired(known)) => {
                let expired = known.token.expires.map(|expires| format!(" at {expires}")).unwrap_or_default();
                let text = format!(
                    "the token {} expired{expired}; an administrator revokes it and makes another one by redirect-ctl token create",
                    known.token.name
                );
                Err(Refusal { who: named(&known.token), ..ApiError::new(Code::TokenExpired, text).into() })
            }
        }
    }

    async fn admit(&self, caller: &Caller, rule: &Rule, request: &mut Request) -> Result<(), Refusal> {
        if !rule.is_public {
            may(caller, rule)?;
            if let Some(within) = caller.within
                && !reaches_only(within, rule.confined, request).await
            {
                let text = format!(
                    "the token is for subscribers within {within} only: for one of them, or for the list with ?within= inside of it"
                );
                return Err(ApiError::new(Code::Forbidden, text).into());
            }
        }
        if let Some(requests) = self.requests.as_ref().filter(|_| !caller.is_local_admin) {
            let source = match request.extensions().get::<Peer>() {
                Some(Peer::Tcp { address, .. }) if rule.is_public => Source::Address(rates::source(address.ip())),
                _ => Source::Caller(&caller.who),
            };
            requests
                .take(&source, Instant::now())
                .map_err(|wait| Refusal::too_often(wait, "more requests than access.requests_per_second"))?;
        }
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > rule.size.bytes_max()) {
            let text = format!("the body has more than {} bytes, which is the most here", rule.size.bytes_max());
            return Err(ApiError::at(Code::TooLarge, "", &text).into());
        }
        Ok(())
    }

    fn asked(&self, request: &Request, rule: &Rule, peer: Option<&Peer>, who: String, id: &str) -> Record {
        let mut resource = tokens::redacted(request.uri().path());
        resource.truncate(resource.floor_char_boundary(limits::AUDIT_PATH_BYTES_MAX));
        Record {
            seq: 0,
            time: jiff::Timestamp::now().to_string(),
            who,
            from: peer.map_or_else(|| "unknown".to_owned(), ToString::to_string),
            operation: rule.operation.clone(),
            method: request.method().as_str().to_owned(),
            resource,
            before: self.store.snapshot().revision,
            after: 0,
            request_id: id.to_owned(),
            status: 0,
            result: String::new(),
            unlisted: 0,
        }
    }

    fn refuse(&self, asked: Record, refusal: Refusal) -> Response {
        let code = refusal.error.code();
        let mut response = (*refusal.error).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = refusal.wait {
            // Whole seconds, and never too early.
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)),
            );
        }
        if code.status() == axum::http::StatusCode::UNAUTHORIZED {
            let challenge = match code {
                Code::Unauthenticated => "Bearer realm=\"redirectd\"",
                // RFC 6750 section 3.
                _ => "Bearer realm=\"redirectd\", error=\"invalid_token\"",
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.refusals.take(&(), Instant::now()).is_ok() {
            self.note(asked, &response);
        } else {
            self.unlisted.fetch_add(1, Ordering::Relaxed);
        }
        response
    }

    /// Writes down what came of a request.
    fn note(&self, asked: Record, response: &Response) {
        let revision = self.store.snapshot().revision;
        let of_answer =
            response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()?.trim_matches('"').parse().ok());
        let result = response
            .extensions()
            .get::<Code>()
            .map_or_else(|| if response.status().is_success() { "ok" } else { "error" }, |code| code.name());
        self.access.audit.write(Record {
            // The answer's own revision is the closer one: others may have changed something since.
            after: of_answer.filter(|own| (asked.before..=revision).contains(own)).unwrap_or(revision),
            status: response.status().as_u16(),
            result: result.to_owned(),
            unlisted: self.unlisted.swap(0, Ordering::Relaxed),
            ..asked
        });
    }
}

/// A request that changes something, until its answer is there: if the client goes before, or the handler panics, that is written down.
struct Pending<'g> {
    gate: &'g Gate,
    record: Option<Record>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.record.take() {
            let after = self.gate.store.snapshot().revision;
            let unlisted = self.gate.unlisted.swap(0, Ordering::Relaxed);
            self.gate.access.audit.write(Record { after, result: "abandoned".to_owned(), unlisted, ..asked });
        }
    }
}

/// Whose rate.
#[derive(Hash)]
enum Source<'a> {
    Address(std::net::IpAddr),
    User(u32),
    Caller(&'a str),
    Unknown,
}

/// Why a request does not come through.
struct Refusal {
    who: String,
    error: Box<ApiError>,
    wait: Option<Duration>,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { who: "unknown".to_owned(), error: Box::new(error), wait: None }
    }
}

impl Refusal {
    fn unknown(code: Code, text: &str) -> Self {
        ApiError::new(code, text).into()
    }

    fn too_often(wait: Duration, text: &str) -> Self {
        let text = format!("{text}; try again in {} s", wait.as_millis().div_ceil(1_000));
        Self { wait: Some(wait), ..ApiError::new(Code::TooOften, text).into() }
    }
}

fn may(caller: &Caller, rule: &Rule) -> Result<(), Refusal> {
    if caller.roles.meets(rule.roles) {
        return Ok(());
    }
    let text = if caller.roles.is_empty() {
        format!("{} has no role; name it under [access] in redirectd's configuration file", caller.who)
    } else {
        format!("{} has the role {}; {} needs one of: {}", caller.who, caller.roles, rule.operation, rule.roles)
    };
    Err(ApiError::new(Code::Forbidden, text).into())
}

/// Whether the request is about subscribers within the prefix only.
async fn reaches_only(within: IpNet, confined: Confined, request: &mut Request) -> bool {
    let is_inside = |text: &str| desired::prefix(text).is_ok_and(|prefix| within.contains(&prefix));
    match confined {
        Confined::Never => false,
        Confined::ByPath => match request.extract_parts::<RawPathParams>().await {
            Ok(params) => params.iter().all(|(_, value)| is_inside(value)),
            Err(_) => false,
        },
        Confined::ByQuery => match Query::<Vec<(String, String)>>::try_from_uri(request.uri()) {
            Ok(Query(params)) => {
                let mut asked = params.iter().filter(|(name, _)| name == "within").peekable();
                asked.peek().is_some() && asked.all(|(_, value)| is_inside(value))
            }
            Err(_) => false,
        },
    }
}

fn writes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

/// The token of the request; what else stands there is an error.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("there is more than one Authorization header; send one");
    }
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err("Authorization is not of the form \"Bearer TOKEN\""),
    }
}

/// The client's own, if it is a word, or one of ours.
fn id_of(headers: &HeaderMap) -> String {
    let is_word = |text: &&str| {
        (1..=limits::REQUEST_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            && !text.contains(tokens::PREFIX)
    };
    let own = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(is_word);
    own.map_or_else(
        || {
            let mut bytes = [0; 8];
            // Without random numbers it is not unique, which is no fault.
            let _ = SystemRandom::new().fill(&mut bytes);
            format!("{:016x}", u64::from_be_bytes(bytes))
        },
        str::to_owned,
    )
}
