//! `ETag`, `If-Match` and `If-None-Match` (RFC 9110 sections 8.8.3 and 13.1): what a request says about the state of its resource, and how
//! an answer tells it. The store looks and changes in one transaction.

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::error::{ApiError, Code};
use crate::{
    revision::{Conditions, States, Versioned},
    store::{self, Kind},
};

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self {
            if_match: states(&parts.headers, &header::IF_MATCH, false)?,
            if_none_match: states(&parts.headers, &header::IF_NONE_MATCH, true)?,
        })
    }
}

/// For what must not be changed without a look at it: a request without `If-Match` is refused with 428.
pub(super) fn required(conditions: Conditions) -> Result<Conditions, ApiError> {
    if conditions.if_match.is_some() {
        return Ok(conditions);
    }
    let text = "say which state you change: give the ETag of the GET before, or *";
    Err(ApiError::at(Code::PreconditionRequired, "If-Match:", text))
}

/// The answer to a GET.
pub(super) fn show<T: Serialize>(
    conditions: &Conditions,
    kind: Kind,
    key: &impl ToString,
    resource: Versioned<T>,
) -> Result<Response, ApiError> {
    let current = Some(resource.revision);
    if conditions.if_match.as_ref().is_some_and(|states| !states.contain(current)) {
        return Err(store::Error::Condition { kind, name: key.to_string(), current }.into());
    }
    let etag = [(header::ETAG, etag(resource.revision))];
    if conditions.hold(current) {
        Ok((etag, Json(resource)).into_response())
    } else {
        Ok((StatusCode::NOT_MODIFIED, etag).into_response())
    }
}

pub(super) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits in quotes")
}

fn states(headers: &HeaderMap, name: &HeaderName, weakly: bool) -> Result<Option<States>, ApiError> {
    let mut all: Option<States> = None;
    for value in headers.get_all(name) {
        let states = value.to_str().ok().and_then(|text| parse(text, weakly)).ok_or_else(|| {
            let place = if weakly { "If-None-Match:" } else { "If-Match:" };
            ApiError::at(Code::InvalidHeader, place, "is neither * nor a list of entity tags, such as \"17\"")
        })?;
        all = Some(match (all, states) {
            (Some(States::Of(mut before)), States::Of(more)) => {
                before.extend(more);
                States::Of(before)
            }
            (None, states) => states,
            (Some(_), _) => States::Any,
        });
    }
    Ok(all)
}

/// Tags that are none of ours are left out: they name no state. A weak one names a state only where weak comparison is asked for.
fn parse(text: &str, weakly: bool) -> Option<States> {
    if text.trim() == "*" {
        return Some(States::Any);
    }
    let mut revisions = Vec::new();
    let mut rest = text.trim();
    loop {
        let (weak, tag) = rest.strip_prefix("W/").map_or((false, rest), |tag| (true, tag));
        let (tag, after) = tag.strip_prefix('"')?.split_once('"')?;
        if tag.contains(|char: char| char.is_ascii_whitespace() || char.is_ascii_control()) {
            return None;
        }
        let revision = tag.parse::<u64>().ok().filter(|revision| revision.to_string() == tag && (weakly || !weak));
        revisions.extend(revision);
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(States::Of(revisions));
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_read_as_they_are_meant() {
        let of = |revisions: &[u64]| Some(States::Of(revisions.to_vec()));
        // Text, by strong and by weak comparison.
        let cases = [
            ("*", Some(States::Any), Some(States::Any)),
            (r#""17""#, of(&[17]), of(&[17])),
            (r#" "17" , "18" "#, of(&[17, 18]), of(&[17, 18])),
            (r#"W/"17""#, of(&[]), of(&[17])),
            (r#""abc","17""#, of(&[17]), of(&[17])),
            (r#""a,b""#, of(&[]), of(&[])),
            (r#""017","+17","99999999999999999999999""#, of(&[]), of(&[])),
            ("17", None, None),
            ("", None, None),
            (r#""17"#, None, None),
            (r#""17" "18""#, None, None),
            (r#""17","#, None, None),
            (r#""1 7""#, None, None),
        ];
        for (text, strong, weak) in cases {
            assert_eq!((parse(text, false), parse(text, true)), (strong, weak), "{text}");
        }
    }
}
