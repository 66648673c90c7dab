//! Answers without an end: a JSON object a line, as things happen.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use hyper::body::{Bytes, Frame};
use serde::Serialize;

pub(super) const MEDIA_TYPE: &str = "application/x-ndjson";

/// Who tells one line after the other.
pub(super) trait Teller: Send + Sized + 'static {
    type Line: Serialize + Send;

    /// The next line; `None` when the daemon stops.
    fn next(&mut self) -> impl Future<Output = Option<Self::Line>> + Send;
}

pub(super) fn answer(teller: impl Teller) -> Response {
    let body = Body::new(Lines { next: Box::pin(next(teller)) });
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
}

async fn next<T: Teller>(mut teller: T) -> Option<(Bytes, T)> {
    let line = teller.next().await?;
    let mut text = serde_json::to_vec(&line).ok()?;
    text.push(b'\n');
    Some((text.into(), teller))
}

type Next<T> = Pin<Box<dyn Future<Output = Option<(Bytes, T)>> + Send>>;

/// A body that ends when the daemon stops, or its reader goes.
struct Lines<T> {
    next: Next<T>,
}

impl<T: Teller> hyper::body::Body for Lines<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(ready!(self.next.as_mut().poll(context)).map(|(line, teller)| {
            self.next = Box::pin(next(teller));
            Ok(Frame::data(line))
        }))
    }
}
