//! A client's connection: in clear, on its way to TLS, or under TLS.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{Accept, server::TlsStream};

use crate::certificate::Certificate;

pub(crate) enum Client {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    /// With what TLS has taken and may not have sent yet.
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        unflushed: bool,
    },
    Gone,
}

impl Client {
    /// The client said STARTTLS, and has our answer.
    pub(crate) fn begin_handshake(&mut self, certificate: &Certificate) {
        *self = match mem::replace(self, Self::Gone) {
            Self::Plain(stream) => Self::Handshake(Box::new(certificate.acceptor().accept(stream))),
            other => other,
        };
    }

    /// Ready when the handshake is over, one way or the other.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Handshake(accept) = self else { return Poll::Pending };
        let result = ready!(Pin::new(&mut **accept).poll(cx));
        let (client, result) = match result {
            Ok(stream) => (Self::Tls { stream: Box::new(stream), unflushed: false }, Ok(())),
            Err(error) => (Self::Gone, Err(error)),
        };
        *self = client;
        Poll::Ready(result)
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls { stream, .. } => Pin::new(&mut **stream).poll_read(cx, buffer),
            Self::Handshake(_) | Self::Gone => Poll::Pending,
        }
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls { stream, unflushed } => {
                let written = ready!(Pin::new(&mut **stream).poll_write(cx, bytes));
                *unflushed = true;
                Poll::Ready(written)
            }
            Self::Handshake(_) | Self::Gone => Poll::Pending,
        }
    }

    /// Whether all that was written has left; if not, drives it on.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Tls { stream, unflushed } = self
            && *unflushed
        {
            ready!(Pin::new(&mut **stream).poll_flush(cx))?;
            *unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client that nothing more comes. What is left of the connection can only be read, as octets on the wire.
    pub(crate) async fn shut(self) -> io::Result<Option<TcpStream>> {
        match self {
            Self::Plain(mut stream) => {
                stream.shutdown().await?;
                Ok(Some(stream))
            }
            Self::Tls { mut stream, .. } => {
                stream.shutdown().await?;
                Ok(Some(stream.into_inner().0))
            }
            Self::Handshake(_) | Self::Gone => Ok(None),
        }
    }
}
