//! Handlers of bearer tokens. A token's text is in one answer only, that of its creation.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, all, blocking,
    error::{ApiError, Code, Problem},
    extract::{Body, Key},
    types::{Page, paths},
};
use crate::{
    access::{
        AccessRole, Caller,
        tokens::{Error, Known, Wanted},
    },
    desired::{Invalid, Name, Prefix, Time},
};

/// A token, without its text.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub name: Name,
    /// Stands in the token, after `rdt_`.
    pub id: String,
    pub role: AccessRole,
    /// Only subscribers inside this prefix.
    pub within: Option<Prefix>,
    pub created: Time,
    pub created_by: String,
    /// Opens nothing from then on; null for a token that does not expire.
    pub expires: Option<Time>,
    /// The minute of its last use since redirectd started.
    pub last_used: Option<Time>,
}

impl From<&Arc<Known>> for Token {
    fn from(known: &Arc<Known>) -> Self {
        let token = &known.token;
        Self {
            name: token.name.clone(),
            id: token.id.clone(),
            role: token.role,
            within: token.within.map(Prefix),
            created: token.created,
            created_by: token.created_by.clone(),
            expires: token.expires,
            last_used: known.used(),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenPost {
    pub name: Name,
    pub role: AccessRole,
    /// Only subscribers inside this prefix; for integrators.
    #[serde(default)]
    pub within: Option<Prefix>,
    /// Without it, the token opens until it is revoked.
    #[serde(default)]
    pub expires: Option<Time>,
}

/// A token that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    pub name: Name,
    pub id: String,
    pub role: AccessRole,
    pub expires: Option<Time>,
    /// Give it as `Authorization: Bearer`. It is told this once.
    #[schema(example = "rdt_0123456789ab_…")]
    pub token: String,
}

#[utoipa::path(get, path = paths::TOKENS, tag = "access", responses((status = 200, body = Page<Token>)))]
pub(super) async fn list_tokens(State(app): App) -> Json<Page<Token>> {
    all(app.access.tokens.all().iter().map(Token::from))
}

#[utoipa::path(post, path = paths::TOKENS, tag = "access", request_body = TokenPost,
    responses((status = 201, body = TokenMade), (status = 400, body = Problem), (status = 409, body = Problem), (status = 413, body = Problem),
    (status = 415, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn create_token(
    State(app): App,
    Extension(caller): Extension<Caller>,
    Body(body): Body<TokenPost>,
) -> Result<Response, ApiError> {
    let now = Time::now();
    if body.expires.is_some_and(|expires| expires <= now) {
        return Err(ApiError::invalid("/expires", &Invalid("is not in the future".to_owned())));
    }
    if body.within.is_some() && body.role != AccessRole::Integrator {
        let text = "is for integrators, who do nothing but care for subscribers; leave it out".to_owned();
        return Err(ApiError::invalid("/within", &Invalid(text)));
    }
    let TokenPost { name, role, within, expires } = body;
    let wanted = Wanted { name, role, within: within.map(|within| within.0), expires, created_by: caller.who };
    let tokens = Arc::clone(&app.access.tokens);
    let (token, text) = blocking(move || tokens.create(wanted, now)).await??;
    let made = TokenMade { name: token.name, id: token.id, role, expires, token: text.expose().to_owned() };
    let mut response = (StatusCode::CREATED, Json(made)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[utoipa::path(delete, path = paths::TOKEN, tag = "access", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn revoke_token(State(app): App, Key(name): Key<Name>) -> Result<StatusCode, ApiError> {
    let tokens = Arc::clone(&app.access.tokens);
    blocking(move || tokens.revoke(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Taken { .. } => Self::new(Code::Conflict, text),
            Error::NotFound { .. } => Self::new(Code::NotFound, text),
            Error::TooMany => Self::new(Code::TooMany, text),
            error if error.is_disk_full() => Self::new(
                Code::DiskFull,
                "the disk of the list of tokens is full; nothing was changed, make room and try again",
            ),
            Error::NoRandom | Error::Io { .. } | Error::Malformed { .. } => {
                tracing::error!(error = text, "the list of tokens failed");
                Self::new(
                    Code::Internal,
                    "the list of tokens cannot be written; nothing was changed, the cause is in redirectd's log",
                )
            }
        }
    }
}
