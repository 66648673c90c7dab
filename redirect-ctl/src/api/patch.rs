//! `PATCH` with a merge patch (RFC 7396), for every resource that has GET and PUT: what GET shows is patched and PUT, on the condition
//! that nobody changed it in between. So a patch is judged as a PUT is, and what GET does not show, such as a password, stays as it is.

use std::{fmt::Display, sync::Arc};

use axum::{
    body::{self, Body},
    extract::{FromRequestParts, Request, State},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use serde_json::{Map, Value};
use tower::ServiceExt;
use utoipa_axum::router::UtoipaMethodRouter;

use super::{
    AppState,
    error::{ApiError, Code},
    extract::{Members, read_json},
};
use crate::{limits, revision::Conditions};

pub(super) const MEDIA_TYPE: &str = "application/merge-patch+json";

/// Gives the methods of a resource, GET and PUT among them, PATCH. See [`super::describe`] for its description.
pub(super) fn patchable(
    (schemas, mut paths, methods): UtoipaMethodRouter<Arc<AppState>>,
) -> UtoipaMethodRouter<Arc<AppState>> {
    // Who may PUT may PATCH.
    for item in paths.paths.values_mut() {
        item.patch.clone_from(&item.put);
    }
    let plain = methods.clone();
    let patch = move |State(app): State<Arc<AppState>>, request: Request| {
        let resource = plain.clone().with_state(app);
        async move { patch(&resource, request).await.unwrap_or_else(IntoResponse::into_response) }
    };
    (schemas, paths, methods.patch(patch))
}

async fn patch(resource: &MethodRouter, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let conditions = Conditions::from_request_parts(&mut parts, &()).await?;
    let Members(patch) = read_json(&parts.headers, body, MEDIA_TYPE).await?;
    let internal = |error: &dyn Display| ApiError::new(Code::Internal, error.to_string());
    for _ in 0..limits::PATCH_ATTEMPTS_MAX {
        let shown = ask(resource, &parts, Method::GET, None, Body::empty()).await;
        if shown.status() != StatusCode::OK {
            return Ok(shown);
        }
        let tag = shown.headers().get(header::ETAG).cloned().ok_or_else(|| internal(&"there is no entity tag"))?;
        let revision = tag.to_str().ok().and_then(|tag| tag.trim_matches('"').parse().ok());
        if !conditions.hold(revision) {
            let text = "it is not as the request insists; look at it again, and decide anew";
            return Err(ApiError::new(Code::PreconditionFailed, text));
        }
        let bytes = body::to_bytes(shown.into_body(), limits::ANSWER_BYTES_MAX).await;
        let mut whole: Map<String, Value> =
            serde_json::from_slice(&bytes.map_err(|error| internal(&error))?).map_err(|error| internal(&error))?;
        merge(&mut whole, patch.clone());
        let put = ask(resource, &parts, Method::PUT, Some(tag), Value::Object(whole).to_string().into()).await;
        if put.status() != StatusCode::PRECONDITION_FAILED {
            return Ok(put);
        }
    }
    Err(ApiError::new(Code::Conflict, "others change it all the time; nothing was changed, try again"))
}

/// The same request with another method, and without its headers.
async fn ask(
    resource: &MethodRouter,
    parts: &Parts,
    method: Method,
    if_match: Option<HeaderValue>,
    body: Body,
) -> Response {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    request.uri_mut().clone_from(&parts.uri);
    request.extensions_mut().clone_from(&parts.extensions);
    if let Some(tag) = if_match {
        request.headers_mut().insert(header::IF_MATCH, tag);
    }
    match resource.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// RFC 7396 section 2.
fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(&name)),
            Value::Object(patch) => {
                let member = target.entry(name).or_insert(Value::Null);
                if !member.is_object() {
                    *member = Value::Object(Map::new());
                }
                if let Value::Object(member) = member {
                    merge(member, patch);
                }
            }
            value => drop(target.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The cases of RFC 7396 appendix A whose target and patch are objects.
    #[test]
    fn patches_merge_as_the_rfc_has_it() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({"a": "foo"}), json!({"b": {"bb": {"ccc": null}}}), json!({"a": "foo", "b": {"bb": {}}})),
        ];
        for (target, patch, expected) in cases {
            let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else { panic!("objects") };
            merge(&mut target, patch);
            assert_eq!(Value::Object(target), expected);
        }
    }
}
