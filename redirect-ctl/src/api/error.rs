//! Errors of the API as RFC 9457 problems: a stable code, a sentence for people, pointers into the request.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{request_id, types::LineFaults};
use crate::{desired::Invalid, reconcile::task::AskError, store};

pub const MEDIA_TYPE: &str = "application/problem+json";

/// Body of every answer that is an error (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem; does not change between versions.
    #[schema(example = "urn:redirect:problem:in_use")]
    pub r#type: String,
    #[schema(example = "Conflict")]
    pub title: String,
    #[schema(example = 409)]
    pub status: u16,
    /// The last part of `type`.
    #[schema(example = "in_use")]
    pub code: String,
    /// What happened this time, with the remedy.
    #[schema(example = "class configured is in use by subscriber 10.20.0.0/16")]
    pub detail: String,
    /// Where in the request the problem lies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// What is wrong with a file, line by line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<LineFaults>,
    /// Names the request, as the answer's header `X-Request-Id` and redirectd's log do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "8c2ddb3e0a1f9b47")]
    pub trace_id: Option<String>,
}

/// A place in the request and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) into the body (empty: the whole of it) or `/name` of the path, `line N` of a file, `?name` for a query parameter, or `Name:` for a header.
    #[schema(example = "/class")]
    pub pointer: String,
    /// What is wrong, and what to do about it.
    pub detail: String,
}

/// What kind of problem: status and code belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidJson,
    InvalidQuery,
    InvalidHeader,
    Unauthenticated,
    /// Never issued, revoked, or not of the form of one.
    TokenInvalid,
    TokenExpired,
    Forbidden,
    TooOften,
    NotFound,
    NoSuchPath,
    MethodNotAllowed,
    NotAcceptable,
    InUse,
    Conflict,
    CommitPending,
    OwnedByFile,
    TooMany,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    Internal,
    Unavailable,
    DiskFull,
}

impl Code {
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidQuery => "invalid_query",
            Self::InvalidHeader => "invalid_header",
            Self::Unauthenticated => "unauthenticated",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::TooOften => "too_often",
            Self::NotFound => "not_found",
            Self::NoSuchPath => "no_such_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotAcceptable => "not_acceptable",
            Self::InUse => "in_use",
            Self::Conflict => "conflict",
            Self::CommitPending => "commit_pending",
            Self::OwnedByFile => "owned_by_file",
            Self::TooMany => "too_many",
            Self::PreconditionFailed => "precondition_failed",
            Self::PreconditionRequired => "precondition_required",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Invalid => "invalid",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DiskFull => "disk_full",
        }
    }

    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidJson | Self::InvalidQuery | Self::InvalidHeader => StatusCode::BAD_REQUEST,
            Self::Unauthenticated | Self::TokenInvalid | Self::TokenExpired => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::TooOften => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::InUse | Self::Conflict | Self::CommitPending | Self::OwnedByFile | Self::TooMany => {
                StatusCode::CONFLICT
            }
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// What a handler fails with.
#[derive(Clone, Debug)]
pub struct ApiError {
    code: Code,
    detail: String,
    errors: Vec<FieldError>,
    lines: Option<LineFaults>,
}

impl ApiError {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), lines: None }
    }

    pub(super) const fn code(&self) -> Code {
        self.code
    }

    /// A value at `pointer` that cannot be.
    pub fn invalid(pointer: &str, invalid: &Invalid) -> Self {
        Self::at(Code::Invalid, pointer, &invalid.0)
    }

    pub fn at(code: Code, pointer: &str, detail: &str) -> Self {
        let errors = vec![FieldError { pointer: pointer.to_owned(), detail: detail.to_owned() }];
        let detail = match pointer {
            "" => detail.to_owned(),
            header if header.ends_with(':') => format!("{header} {detail}"),
            pointer => format!("{pointer}: {detail}"),
        };
        Self { code, detail, errors, lines: None }
    }

    /// Several values that cannot be, and one sentence for all.
    pub fn faults(detail: String, errors: Vec<FieldError>) -> Self {
        Self { code: Code::Invalid, detail, errors, lines: None }
    }

    pub(super) fn with_lines(self, lines: LineFaults) -> Self {
        Self { lines: Some(lines), ..self }
    }

    /// Says no more than where the fault is, if what was sent there may be a password.
    pub(super) fn silent_about_passwords(self) -> Self {
        self.silent_where(may_be_secret)
    }

    /// The same for a document with many resources, each below its section and its place there.
    pub(super) fn silent_about_passwords_of_all(self) -> Self {
        self.silent_where(|pointer| {
            let resource = pointer.match_indices('/').nth(2).map(|(index, _)| &pointer[index..]);
            resource.is_some_and(may_be_secret)
        })
    }

    fn silent_where(mut self, secret: impl Fn(&str) -> bool) -> Self {
        if let Some(error) = self.errors.iter_mut().find(|error| secret(&error.pointer)) {
            "is not as it must be; see /openapi.json".clone_into(&mut error.detail);
            self.detail = format!("{}: {}", error.pointer, error.detail);
        }
        self
    }

    pub fn problem(&self) -> Problem {
        let status = self.code.status();
        Problem {
            r#type: format!("urn:redirect:problem:{}", self.code.name()),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code: self.code.name().to_owned(),
            detail: self.detail.clone(),
            errors: self.errors.clone(),
            lines: self.lines.clone(),
            trace_id: request_id::current(),
        }
    }
}

fn may_be_secret(pointer: &str) -> bool {
    pointer == "/account" || ["/account/password", "/password", "/key"].iter().any(|start| pointer.starts_with(start))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), Json(self.problem())).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        // For the audit.
        response.extensions_mut().insert(self.code);
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        let text = error.to_string();
        match error {
            store::Error::NotFound { .. } => Self::new(Code::NotFound, text),
            store::Error::NoSuchReference { pointer, .. } => Self::at(Code::Invalid, &pointer, &text),
            store::Error::OwnListener { .. } => Self::at(Code::Invalid, "/address", &text),
            store::Error::Invalid { faults } => {
                let errors = faults.into_iter().map(|fault| FieldError { pointer: fault.pointer, detail: fault.text });
                let errors: Vec<_> = errors.collect();
                let text = errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail));
                Self::faults(text.collect::<Vec<_>>().join("; "), errors)
            }
            store::Error::Conflict { .. } => Self::new(Code::Conflict, text),
            store::Error::Condition { .. } | store::Error::Stale { .. } => Self::new(Code::PreconditionFailed, text),
            store::Error::Pending { .. } => Self::new(Code::CommitPending, text),
            store::Error::InUse { .. } => Self::new(Code::InUse, text),
            store::Error::OwnedByFile { .. } => Self::new(Code::OwnedByFile, text),
            store::Error::TooMany { .. } | store::Error::Full { .. } => Self::new(Code::TooMany, text),
            store::Error::NumbersBusy { .. } | store::Error::Stopped => Self::new(Code::Unavailable, text),
            error if error.is_disk_full() => {
                Self::new(Code::DiskFull, "the store's disk is full; nothing was changed, make room and try again")
            }
            // What the store says about itself is for the log, not for a client.
            store::Error::Locked { .. }
            | store::Error::Schema { .. }
            | store::Error::Open { .. }
            | store::Error::Corrupt { .. }
            | store::Error::Sqlite(_) => {
                tracing::error!(error = text, "the store failed");
                Self::new(Code::Internal, "the store failed; nothing was changed, the cause is in redirectd's log")
            }
        }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        tracing::warn!(%error, "the data plane did not answer");
        Self::new(Code::Unavailable, format!("the data plane did not answer: {error}"))
    }
}
