//! What the API is served on, Unix sockets and TCP: who connects, how many, how long they may take. What they may do is decided in
//! [`gate`](super::gate).

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    sys::socket::{setsockopt, sockopt::TcpUserTimeout},
    unistd::{Gid, chown},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::tls;
use crate::{
    access::{Peer, Peers, groups_of, rates},
    config::TlsSettings,
    limits,
};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another process serves {}; stop it, or give another path in api.sockets", .path.display())]
    Live { path: PathBuf },
    #[error("{} exists and is no socket; remove it, or give another path in api.sockets", .path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot serve {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("api.socket_group: cannot give {} to that group: {source}; redirectd must be root or a member of it", .path.display())]
    Group { path: PathBuf, source: nix::Error },
    #[error("api.listen: cannot listen on {address}: {source}; give an address of this router and a free port")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// A bound socket. Its file is removed with it, if it is still ours.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl Socket {
    /// Binds `path`. The socket file of a daemon that died is replaced; that of a living one is respected.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, Error> {
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
        // Not without need: a hardened unit may not allow the system call.
        if let Some(group) = group {
            let given = chown(path, None, Some(Gid::from_raw(group)));
            given.map_err(|source| Error::Group { path: path.to_owned(), source })?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error)?;
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

/// The certificate and the authority of all TCP listeners; they can be renewed while connections go on.
pub struct Tls {
    settings: TlsSettings,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Tls {
    pub fn load(settings: &TlsSettings) -> Result<Self, Error> {
        Ok(Self { settings: settings.clone(), current: watch::Sender::new(tls::load(settings)?) })
    }

    /// Reads the files again; if they do not serve, those of before go on.
    fn reload(&self) {
        match tls::load(&self.settings) {
            Ok(config) => {
                self.current.send_replace(config);
                tracing::info!(certificate = %self.settings.certificate.display(), "the API's certificate was read again");
            }
            Err(error) => tracing::error!(%error, "the API's certificate stays as it was"),
        }
    }
}

/// Reads the certificate again at each SIGHUP. Without TLS too: the signal would end the process otherwise.
pub async fn reload_on_hangup(tls: Option<Arc<Tls>>, shutdown: CancellationToken) -> Result<(), String> {
    let mut hangups = signal(SignalKind::hangup()).map_err(|error| error.to_string())?;
    while shutdown.run_until_cancelled(hangups.recv()).await.flatten().is_some() {
        if let Some(tls) = &tls {
            tls.reload();
        }
    }
    Ok(())
}

/// A bound TCP port. The configuration has seen to it that somebody is told apart there, and that the network hears nothing in clear.
pub struct Port {
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

impl Port {
    pub async fn bind(address: SocketAddr, tls: Option<&Tls>) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        Ok(Self { listener, tls: tls.map(|tls| tls.current.subscribe()) })
    }
}

pub enum Listener {
    Unix(Socket),
    Tcp(Port),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(socket) => socket.listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(port) => port.listener.accept().await.map(|(stream, address)| Stream::Tcp(stream, address)),
        }
    }
}

/// What all listeners of a kind share.
#[derive(Clone)]
pub struct Service {
    app: Router,
    peers: Arc<Peers>,
    connections: Arc<Semaphore>,
    of_one: Arc<Sources>,
    shutdown: CancellationToken,
}

impl Service {
    /// `connections` bounds all of its listeners together.
    pub fn new(app: Router, peers: Arc<Peers>, connections: usize, shutdown: CancellationToken) -> Self {
        let connections = Arc::new(Semaphore::new(connections));
        Self { app, peers, connections, of_one: Arc::default(), shutdown }
    }

    /// Serves until the shutdown; then lets requests in flight finish for a while.
    pub async fn serve(self, listener: Listener) {
        let mut tasks = JoinSet::new();
        loop {
            // Beyond the bound the kernel's accept queue holds clients back.
            let permit = tokio::select! {
                () = self.shutdown.cancelled() => break,
                permit = Arc::clone(&self.connections).acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(_) = tasks.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let tls = match &listener {
                        Listener::Unix(_) => None,
                        Listener::Tcp(port) => port.tls.as_ref().map(|tls| Arc::clone(&tls.borrow())),
                    };
                    let service = self.clone();
                    tasks.spawn(async move {
                        match stream {
                            Stream::Unix(stream) => service.serve_unix(stream).await,
                            Stream::Tcp(stream, address) => service.serve_tcp(stream, address, tls).await,
                        }
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
        drop(listener);
        let _ = timeout(limits::API_DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    }

    async fn serve_unix(self, stream: UnixStream) {
        let (Ok(credentials), Ok(mut gids)) = (stream.peer_cred(), groups_of(&stream)) else {
            return tracing::warn!("who connects to the API's socket cannot be told");
        };
        gids.push(credentials.gid());
        let roles = self.peers.of_user(credentials.uid(), &gids);
        let peer = Peer::Unix { uid: credentials.uid(), pid: credentials.pid(), roles };
        self.serve_connection(stream, peer, limits::API_HEAD_TIMEOUT).await;
    }

    async fn serve_tcp(self, stream: TcpStream, address: SocketAddr, tls: Option<Arc<ServerConfig>>) {
        // Closed at once: a client that has so many already needs no answer on another one.
        let Some(_place) = Sources::enter(&self.of_one, rates::source(address.ip())) else { return };
        let patience = u32::try_from(limits::API_TCP_USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        // Both are comfort: without them an answer is later, and a dead client stays longer.
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, TcpUserTimeout, &patience);
        let Some(config) = tls else {
            let peer = Peer::Tcp { address, certificate: None };
            return self.serve_connection(stream, peer, limits::API_TCP_HEAD_TIMEOUT).await;
        };
        let handshake = timeout(limits::API_TCP_HEAD_TIMEOUT, TlsAcceptor::from(config).accept(stream));
        let stream = match self.shutdown.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => return tracing::debug!(%error, %address, "no TLS with a client of the API"),
            Some(Err(_)) | None => return,
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let named = certificates.and_then(|chain| tls::named(chain.first()?, &self.peers)).map(Arc::new);
        self.serve_connection(stream, Peer::Tcp { address, certificate: named }, limits::API_TCP_HEAD_TIMEOUT).await;
    }

    async fn serve_connection(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        head: Duration,
    ) {
        let app = self.app;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            app.clone().oneshot(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_buf_size(limits::HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection to the API broke");
        }
    }
}

/// Connections from each address that has any: as many entries as there are connections at most.
#[derive(Default)]
struct Sources(Mutex<HashMap<IpAddr, usize>>);

struct Place {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    /// One more connection, unless there are as many as one address may have.
    fn enter(sources: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut open = sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source).or_default();
        if *count >= limits::API_TCP_CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Place { sources: Arc::clone(sources), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}
