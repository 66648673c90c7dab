//! Answers that come bit by bit: lines as things happen, or a list too long for memory.

use std::{
    io,
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
use tokio::sync::mpsc;

pub(super) const MEDIA_TYPE: &str = "application/x-ndjson";

/// Who tells one bit after the other.
pub(super) trait Source: Send + Sized + 'static {
    /// The next bit; `None` at the end, such as when the daemon stops. After an error there is none.
    fn next(&mut self) -> impl Future<Output = Option<io::Result<Bytes>>> + Send;
}

pub(super) fn answer(media_type: &'static str, source: impl Source) -> Response {
    ([(header::CONTENT_TYPE, media_type)], body(source)).into_response()
}

pub(super) fn body(source: impl Source) -> Body {
    Body::new(Bits { next: Box::pin(next(source)) })
}

/// A part of a body that is written elsewhere. Without the [`Piece::End`], whoever reads knows that it was cut short.
pub(super) enum Piece {
    Data(Bytes),
    End,
}

impl Source for mpsc::Receiver<Piece> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.recv().await {
            Some(Piece::Data(data)) => Some(Ok(data)),
            Some(Piece::End) => None,
            None => Some(Err(io::Error::other("the body was cut short"))),
        }
    }
}

/// A JSON object as a line.
pub(super) fn line(object: &impl Serialize) -> io::Result<Bytes> {
    let mut text = serde_json::to_vec(object)?;
    text.push(b'\n');
    Ok(text.into())
}

async fn next<S: Source>(mut source: S) -> Option<io::Result<(Bytes, S)>> {
    let bit = source.next().await?;
    Some(bit.map(|bit| (bit, source)))
}

type Next<S> = Pin<Box<dyn Future<Output = Option<io::Result<(Bytes, S)>>> + Send>>;

/// A body that ends with its source, or when its reader goes.
struct Bits<S> {
    next: Next<S>,
}

impl<S: Source> hyper::body::Body for Bits<S> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(match ready!(self.next.as_mut().poll(context)) {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok((bit, source))) => {
                self.next = Box::pin(next(source));
                Some(Ok(Frame::data(bit)))
            }
        })
    }
}
