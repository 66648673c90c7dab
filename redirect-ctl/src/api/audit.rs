//! `GET /v1/audit`: who changed what, and who was refused.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, blocking,
    error::{ApiError, Code, Problem},
    extract::Params,
    in_query, page_rows,
    types::paths,
};
use crate::{
    access::audit::{Query, Record},
    desired::Invalid,
};

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Rows at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Records after this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
    /// Records that are not older (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The last so many, where there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
}

/// Records in the order of their numbers, and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    pub items: Vec<Record>,
    /// Give it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
    /// Records up to this number are gone: there was no room for them any more.
    pub lost_through: u64,
}

#[utoipa::path(get, path = paths::AUDIT, tag = "access", params(AuditQuery),
    responses((status = 200, body = AuditPage), (status = 400, body = Problem), (status = 422, body = Problem), (status = 500, body = Problem)))]
pub(super) async fn list_audit(
    State(app): App,
    Params(query): Params<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let rows_max = page_rows(query.limit)? as usize;
    let time = |text: &str| {
        text.parse().map_err(|_| Invalid(format!("{text:?} is not a time: give RFC 3339 such as 2026-12-01T00:00:00Z")))
    };
    let since = query.since.as_deref().map(|text| in_query("since", time(text))).transpose()?;
    let query = Query { after: query.cursor.unwrap_or(0), last: query.last.map(Into::into), since, rows_max };
    let audit = Arc::clone(&app.access.audit);
    let page = blocking(move || audit.read(&query)).await?.map_err(|error| {
        tracing::error!(%error, "the audit cannot be read");
        ApiError::new(Code::Internal, "the audit cannot be read; the cause is in redirectd's log")
    })?;
    let next_cursor = page.records.last().filter(|_| page.more).map(|record| record.seq.to_string());
    Ok(Json(AuditPage { items: page.records, next_cursor, lost_through: page.lost_through }))
}
