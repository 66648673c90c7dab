//! Handlers of the configuration as a whole.
//!
//! Bodies are documents as `GET /v1/config` gives them, so that pointers of faults are pointers into them; what else a commit says stands in
//! the query.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    App, AppState, all, blocking, commit,
    conditions::{etag, required},
    error::{ApiError, Code, Problem},
    extract::{Key, Params, Whole},
    in_query,
    types::{
        CommitQuery, CommitReport, ConfigurationCheck, ConfigurationDiffQuery, ConfigurationQuery, ConfigurationState,
        Page, RollbackQuery, paths,
    },
};
use crate::{
    access::Caller,
    configuration::{
        Commit, Diff, Document,
        text::{self, DocumentFormat},
    },
    desired::{Invalid, Time},
    limits,
    revision::Conditions,
    store::{Change, ConfigurationChange, Note, refuse_stale},
};

/// Everything that the operator decides, with its revision as the entity tag. As TOML or YAML where `format` or `Accept` says so.
#[utoipa::path(get, path = paths::CONFIGURATION, tag = "configuration", params(ConfigurationQuery),
    responses((status = 200, content((Document = "application/json"), (Document = "application/toml"), (Document = "application/yaml"))),
    (status = 400, body = Problem), (status = 406, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_configuration(
    State(app): App,
    Params(ConfigurationQuery { format }): Params<ConfigurationQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let accept = headers.get(header::ACCEPT).map(|value| value.to_str().unwrap_or_default());
    let format = match (format, accept) {
        (Some(format), _) => format,
        (None, None) => DocumentFormat::Json,
        (None, Some(accept)) => DocumentFormat::accepted(accept).ok_or_else(|| {
            ApiError::new(Code::NotAcceptable, "give application/json, application/toml or application/yaml")
        })?,
    };
    let (revision, configuration) = app.store.configuration().await?;
    let written = blocking(move || text::write(&Document::of(&configuration), format)).await?;
    let text = in_query("format", written)?;
    Ok(tagged(revision, ([(header::CONTENT_TYPE, format.media_type())], text)))
}

/// Whether a document could be committed. Nothing is changed.
#[utoipa::path(post, path = paths::CONFIGURATION_CHECK, tag = "configuration", request_body = Document,
    responses((status = 200, body = ConfigurationCheck), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn check_configuration(State(app): App, Whole(document): Whole) -> Result<Response, ApiError> {
    let (revision, before, after) = app.store.try_document(document, Time::now(), Conditions::default(), true).await?;
    let diff = blocking(move || Diff::between(&before, &after)).await?;
    let [added, changed, removed] = [&diff.added, &diff.changed, &diff.removed].map(|changes| changes.count);
    Ok(tagged(revision, Json(ConfigurationCheck { revision, added, changed, removed, unchanged: diff.unchanged })))
}

/// What tells a document from the configuration, or from a state of its history. Nothing is changed.
#[utoipa::path(post, path = paths::CONFIGURATION_DIFF, tag = "configuration", params(ConfigurationDiffQuery), request_body = Document,
    responses((status = 200, body = Diff), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
    (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn diff_configuration(
    State(app): App,
    Params(ConfigurationDiffQuery { back }): Params<ConfigurationDiffQuery>,
    Whole(document): Whole,
) -> Result<Response, ApiError> {
    let (revision, mut before, after) =
        app.store.try_document(document, Time::now(), Conditions::default(), true).await?;
    if let Some(back) = back {
        before = app.store.configuration_back(back).await?.1;
    }
    Ok(tagged(revision, Json(blocking(move || Diff::between(&before, &after)).await?)))
}

/// Puts the document in the place of the configuration: all of it, or nothing. `If-Match` is the revision that it was made for, or `*`. With
/// `confirm_within` it is taken back after that time, also if redirectd was restarted meanwhile, unless it is confirmed before; until then
/// single changes of the configuration are refused.
#[utoipa::path(post, path = paths::CONFIGURATION_COMMIT, tag = "configuration",
    params(CommitQuery, ("If-Match" = String, Header, description = IF_MATCH)), request_body = Document,
    responses((status = 200, body = CommitReport), (status = 400, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem),
    (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem), (status = 428, body = Problem),
    (status = 507, body = Problem)))]
pub(super) async fn commit_configuration(
    State(app): App,
    Extension(caller): Extension<Caller>,
    Params(query): Params<CommitQuery>,
    conditions: Conditions,
    Whole(document): Whole,
) -> Result<Response, ApiError> {
    let conditions = required(conditions)?;
    let confirm_within_s =
        query.confirm_within.as_deref().map(|text| in_query("confirm_within", seconds(text))).transpose()?;
    let note = note(&caller, query.author, query.comment)?;
    let trial = app.store.try_document(document.clone(), note.time, conditions, query.dry_run);
    let (revision, before, after) = trial.await?;
    let diff = blocking(move || Diff::between(&before, &after)).await?;
    if query.dry_run {
        return Ok(tagged(revision, Json(CommitReport { dry_run: true, diff, commit: None })));
    }
    // What the diff was made of is what is changed.
    carry_out(&app, revision, ConfigurationChange::Commit { document, note, confirm_within_s }, diff).await
}

/// Commits a state of the history again. `If-Match` is the revision of the configuration that it is to replace, or `*`. A pending commit is
/// taken back with it.
#[utoipa::path(post, path = paths::CONFIGURATION_ROLLBACK, tag = "configuration",
    params(RollbackQuery, ("If-Match" = String, Header, description = IF_MATCH)),
    responses((status = 200, body = CommitReport), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
    (status = 412, body = Problem), (status = 422, body = Problem), (status = 428, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn roll_back_configuration(
    State(app): App,
    Extension(caller): Extension<Caller>,
    Params(query): Params<RollbackQuery>,
    conditions: Conditions,
) -> Result<Response, ApiError> {
    let conditions = required(conditions)?;
    let back = query.back.unwrap_or(1);
    let (commit, after) = app.store.configuration_back(back).await?;
    let comment = query.comment.or_else(|| Some(format!("back to revision {}", commit.revision)));
    let note = note(&caller, query.author, comment)?;
    let (revision, before) = app.store.configuration().await?;
    refuse_stale(&conditions, revision)?;
    let diff = blocking(move || Diff::between(&before, &after)).await?;
    if query.dry_run {
        return Ok(tagged(revision, Json(CommitReport { dry_run: true, diff, commit: None })));
    }
    carry_out(&app, revision, ConfigurationChange::Rollback { back, note }, diff).await
}

/// The pending commit holds from now on. `If-Match`, if given, is its revision.
#[utoipa::path(post, path = paths::CONFIGURATION_CONFIRM, tag = "configuration",
    params(("If-Match" = Option<String>, Header, description = IF_MATCH)),
    responses((status = 200, body = Commit), (status = 400, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem),
    (status = 507, body = Problem)))]
pub(super) async fn confirm_configuration(State(app): App, conditions: Conditions) -> Result<Response, ApiError> {
    let revision = app.store.snapshot().standing.pending.map(|pending| pending.revision);
    let confirm = ConfigurationChange::Confirm { now: Time::now() };
    let done = commit(&app, conditions, Change::Configuration(Box::new(confirm))).await?;
    let confirmed = app.store.history().await?.into_iter().find(|commit| Some(commit.revision) == revision);
    Ok(tagged(app.store.snapshot().standing.revision, done.with_headers(StatusCode::OK, confirmed)))
}

/// The states of the configuration that are kept, the newest first.
#[utoipa::path(get, path = paths::CONFIGURATION_HISTORY, tag = "configuration", responses((status = 200, body = Page<Commit>)))]
pub(super) async fn list_history(State(app): App) -> Result<Response, ApiError> {
    let commits = app.store.history().await?;
    Ok(tagged(app.store.snapshot().standing.revision, all(commits.into_iter())))
}

/// A state of the configuration as it was.
#[utoipa::path(get, path = paths::CONFIGURATION_STATE, tag = "configuration",
    params(("back" = u32, Path, description = "How far back it is; 0 is the last one")),
    responses((status = 200, body = ConfigurationState), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_history(State(app): App, Key(back): Key<u32>) -> Result<Json<ConfigurationState>, ApiError> {
    let (commit, configuration) = app.store.configuration_back(back).await?;
    let configuration = blocking(move || Document::of(&configuration)).await?;
    Ok(Json(ConfigurationState { commit, configuration }))
}

const IF_MATCH: &str = "The revision of the configuration that is meant, in quotes, as `ETag` gives it; or `*`";

/// A change of the configuration as it was at `revision`.
async fn carry_out(
    app: &AppState,
    revision: u64,
    change: ConfigurationChange,
    diff: Diff,
) -> Result<Response, ApiError> {
    let done = commit(app, Conditions::is(revision), Change::Configuration(Box::new(change))).await?;
    let made = app.store.history().await?.into_iter().find(|commit| commit.revision == done.revision);
    let commit = made.filter(|_| !diff.is_empty());
    let report = done.with_headers(StatusCode::OK, CommitReport { dry_run: false, diff, commit });
    Ok(tagged(app.store.snapshot().standing.revision, report))
}

fn tagged(revision: u64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::ETAG, etag(revision));
    response
}

/// Whatever name is given, who it was is told with it.
fn note(caller: &Caller, author: Option<String>, comment: Option<String>) -> Result<Note, ApiError> {
    let line = |name, text: &str, max: usize| {
        let well = text.len() <= max && !text.chars().any(char::is_control);
        let fault = || Invalid(format!("give one line of text of at most {max} bytes"));
        in_query(name, if well { Ok(()) } else { Err(fault()) })
    };
    let comment = comment.unwrap_or_default();
    line("comment", &comment, limits::COMMENT_BYTES_MAX)?;
    line("author", author.as_deref().unwrap_or_default(), limits::AUTHOR_BYTES_MAX)?;
    let author = match author.filter(|author| !author.is_empty()) {
        Some(author) => format!("{author} ({})", caller.who),
        None => caller.who.clone(),
    };
    Ok(Note { author: Some(author), comment, time: Time::now() })
}

/// Seconds, or a duration as people write it.
fn seconds(text: &str) -> Result<u64, Invalid> {
    let (min, max) = limits::CONFIRM_S;
    let duration = || u64::try_from(text.parse::<jiff::SignedDuration>().ok()?.as_secs()).ok();
    text.parse().ok().or_else(duration).filter(|seconds| (min..=max).contains(seconds)).ok_or_else(|| {
        Invalid(format!("{text:?} is not a time to confirm: give {min} to {max} seconds, such as 600 or 10m"))
    })
}
