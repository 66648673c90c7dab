//! The name of each request: in a header of its answer, in its problem if it is one, in the audit, and in every line that the log has of it.

pub(super) const HEADER: &str = "x-request-id";

tokio::task_local! {
    static CURRENT: String;
}

/// Of the request that this task answers.
pub(super) fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Answers a request of this name.
pub(super) fn within<F: Future>(id: String, answer: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, answer)
}
