//! Unknown parameters of a query are refused on every endpoint, by the description.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use axum::{
    extract::{MatchedPath, Query, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::error::{ApiError, Code};

/// The parameters of each endpoint, by path and method.
pub(super) struct Known(HashMap<(String, String), BTreeSet<String>>);

impl Known {
    pub(super) fn of(description: &Value) -> Self {
        let mut known = HashMap::new();
        for (path, item) in description["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let names = parameters
                    .filter(|parameter| parameter["in"] == "query")
                    .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned));
                known.insert((path.clone(), method.to_uppercase()), names.collect());
            }
        }
        Self(known)
    }
}

pub(super) async fn refuse_unknown(State(known): State<Arc<Known>>, request: Request, next: Next) -> Response {
    match unknown(&known, &request) {
        Some(name) => {
            let text = "is no parameter of this; see /openapi.json";
            ApiError::at(Code::InvalidQuery, &format!("?{name}"), text).into_response()
        }
        None => next.run(request).await,
    }
}

fn unknown(known: &Known, request: &Request) -> Option<String> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    let names = known.0.get(&(path.to_owned(), request.method().to_string()))?;
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
    pairs.into_iter().map(|(name, _)| name).find(|name| !names.contains(name))
}
