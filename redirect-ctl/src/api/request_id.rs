//! A name for each request: in a header of its answer, in its problem if it is one, and in every line that the log has of it.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;

pub(super) const HEADER: &str = "x-request-id";

tokio::task_local! {
    static CURRENT: String;
}

/// Of the request that this task answers.
pub(super) fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

pub(super) async fn name(request: Request, next: Next) -> Response {
    let id = next_id();
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let mut response = within(id.clone(), next.run(request).instrument(span)).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static(HEADER), id);
    }
    response
}

/// Answers a request of this name.
pub(super) fn within<F: Future>(id: String, answer: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, answer)
}

/// Another one each time, and after each start: 16 hexadecimal digits.
fn next_id() -> String {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}", SEED.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)))
}
