//! Lists: a page with a cursor, or by `Accept: application/x-ndjson` all of it, an item a line, a page at a time in memory.

use std::{fmt::Display, io, str::FromStr};

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
    response::{IntoResponse, Response},
};
use hyper::body::Bytes;
use serde::Serialize;

use super::{
    error::ApiError,
    in_query,
    lines::{self, Source},
    page_rows,
    types::Page,
};
use crate::{desired::Invalid, limits, revision::Versioned, store};

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Page,
    Lines,
}

impl<S: Send + Sync> FromRequestParts<S> for Form {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self::of(&parts.headers))
    }
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let is_lines =
            |kind: &str| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(lines::MEDIA_TYPE));
        if accepted.flat_map(|value| value.split(',')).any(is_lines) { Self::Lines } else { Self::Page }
    }
}

/// A list that is in memory anyway.
pub(super) fn all<T: Serialize>(form: Form, items: impl Iterator<Item = T>) -> Response {
    match form {
        Form::Page => Json(Page { items: items.collect(), next_cursor: None, count: None }).into_response(),
        Form::Lines => {
            let mut text = Vec::new();
            items.for_each(|item| push_line(&mut text, &item));
            ([(header::CONTENT_TYPE, lines::MEDIA_TYPE)], text).into_response()
        }
    }
}

/// Where in the store a list is, and how its rows are found.
pub(super) trait Rows: Send + 'static {
    type Key: FromStr<Err: Display> + Display + Send + 'static;
    type Row: Send;
    type Item: From<Self::Row> + Serialize;

    /// Those that follow the key, `rows_max` at most.
    fn after(
        &self,
        key: Option<Self::Key>,
        rows_max: u32,
    ) -> impl Future<Output = Result<Vec<Versioned<Self::Row>>, store::Error>> + Send;

    /// How many there are, all pages together.
    fn count(&self) -> impl Future<Output = Result<u64, store::Error>> + Send;

    fn key(row: &Self::Row) -> Self::Key;
}

/// What a request says of the page that it wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) limit: Option<u32>,
    pub(super) cursor: Option<String>,
    pub(super) count: bool,
}

pub(super) async fn answer<R: Rows + Sync>(form: Form, wanted: Wanted, rows: R) -> Result<Response, ApiError> {
    let after = wanted
        .cursor
        .as_deref()
        .map(|cursor| in_query("cursor", cursor.parse::<R::Key>().map_err(|error| Invalid(error.to_string()))));
    let after = after.transpose()?;
    match form {
        Form::Page => {
            let rows_max = page_rows(wanted.limit)?;
            let count = if wanted.count { Some(rows.count().await?) } else { None };
            // One row more tells that there is another page.
            let mut page = rows.after(after, rows_max + 1).await?;
            let more = page.len() > rows_max as usize;
            page.truncate(rows_max as usize);
            let next_cursor = page.last().filter(|_| more).map(|last| R::key(last).to_string());
            let items: Vec<Versioned<R::Item>> = page.into_iter().map(|row| row.map(R::Item::from)).collect();
            Ok(Json(Page { items, next_cursor, count }).into_response())
        }
        Form::Lines => {
            if wanted.limit == Some(0) {
                page_rows(wanted.limit)?;
            }
            let pages = Pages { rows, after, left: wanted.limit.map_or(u64::MAX, u64::from) };
            Ok(lines::answer(lines::MEDIA_TYPE, pages))
        }
    }
}

struct Pages<R: Rows> {
    rows: R,
    after: Option<R::Key>,
    left: u64,
}

impl<R: Rows + Sync> Source for Pages<R> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let rows_max = u32::try_from(self.left).unwrap_or(u32::MAX).min(limits::PAGE_ROWS_MAX);
        if rows_max == 0 {
            return None;
        }
        let page = match self.rows.after(self.after.take(), rows_max).await {
            Ok(page) => page,
            // Without the end that HTTP asks for, so that nobody takes it for all of them.
            Err(error) => return Some(Err(io::Error::other(error))),
        };
        self.after = Some(R::key(page.last()?));
        self.left = if page.len() < rows_max as usize { 0 } else { self.left - u64::from(rows_max) };
        let mut text = Vec::new();
        for row in page {
            push_line(&mut text, &row.map(R::Item::from));
        }
        Some(Ok(text.into()))
    }
}

fn push_line(text: &mut Vec<u8>, item: &impl Serialize) {
    serde_json::to_writer(&mut *text, item).expect("what the API shows has JSON, and memory takes it");
    text.push(b'\n');
}
