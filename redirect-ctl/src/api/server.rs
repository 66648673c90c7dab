//! The Unix sockets that the API is served on: who may connect, how many, how long.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};

use axum::{Router, body::Body, http::Request, response::IntoResponse};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::{getegid, geteuid};
use tokio::{
    net::{UnixListener, UnixStream, unix::UCred},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::error::{ApiError, Code};
use crate::limits;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another process serves {}; stop it, or give another path in api.sockets", .path.display())]
    Live { path: PathBuf },
    #[error("{} exists and is no socket; remove it, or give another path in api.sockets", .path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot serve {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A bound socket. Its file is removed with it, if it is still ours.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl Socket {
    /// Binds `path`. The socket file of a daemon that died is replaced; that of a living one is respected.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let io_error = |source| Error::Io { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io_error)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
            Ok(_) => match StdUnixStream::connect(path) {
                Ok(_) => return Err(Error::Live { path: path.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(io_error)?;
                }
                Err(error) => return Err(io_error(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
        }
        let listener = UnixListener::bind(path).map_err(io_error)?;
        // Until this line the mode is that of the umask; whoever connects in between is checked by its credentials.
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(io_error)?;
        Ok(Self { listener, path: path.to_owned(), inode: inode(path) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Nothing is lost if it stays: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Serves `app` until `shutdown`; then lets requests in flight finish for a while. `connections` bounds all sockets together.
pub async fn serve(socket: Socket, app: Router, connections: Arc<Semaphore>, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    loop {
        // Beyond the bound the kernel's accept queue holds clients back.
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&connections).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = socket.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let app = app.clone();
                let shutdown = shutdown.clone();
                tasks.spawn(async move {
                    serve_connection(stream, app, shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                // Out of file descriptors, most likely: give others time to close some.
                sleep(limits::RETRY_MIN).await;
            }
        }
    }
    drop(socket);
    let _ = timeout(limits::API_DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
}

async fn serve_connection(stream: UnixStream, app: Router, shutdown: CancellationToken) {
    let allowed = stream.peer_cred().is_ok_and(|peer| may_use(&peer));
    let service = service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move {
            if !allowed {
                let refusal =
                    ApiError::new(Code::Forbidden, "only root and redirectd's own user and group may use this socket");
                return Ok(refusal.into_response());
            }
            app.oneshot(request.map(Body::new)).await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::API_HEAD_TIMEOUT)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the API broke");
    }
}

/// The file's mode says the same; the credentials also hold for whoever got hold of the socket another way.
fn may_use(peer: &UCred) -> bool {
    peer.uid() == 0 || peer.uid() == geteuid().as_raw() || peer.gid() == getegid().as_raw()
}
