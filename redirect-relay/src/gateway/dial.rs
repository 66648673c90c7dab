//! The sockets around [`Opening`]: one connection to one address of a gateway, ready for MAIL or with the reason why not.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::{
    gateway::{
        Capabilities, EgressAddress, Encryption, Gateway, Verification,
        introduce::{local_header, proxy_header},
        opening::{Next, OpenError, OpenReason, Opening, Purpose, Stage, patience},
        tls::Tls,
    },
    limits::Timeouts,
    stream::Stream,
};

/// Octets that are read after QUIT: a reply.
const FAREWELL_OCTETS_MAX: usize = 4096;

/// Everything that a connection needs.
pub(crate) struct Dial<'a> {
    pub(crate) gateway: &'a Arc<Gateway>,
    /// The gateway's own, or what the message asks for.
    pub(crate) encryption: Encryption,
    /// Where the gateway has encryption.
    pub(crate) tls: Option<&'a Tls>,
    pub(crate) address: SocketAddr,
    pub(crate) egress: Option<&'a EgressAddress>,
    /// Our name, where the egress address has none of its own.
    pub(crate) hostname: &'a str,
    pub(crate) purpose: Purpose,
    pub(crate) timeouts: &'a Timeouts,
    /// The end of all its waits.
    pub(crate) until: Instant,
}

/// Told of each stage that went well: how long it took, and what is worth knowing of it.
pub(crate) type Observer<'a> = dyn FnMut(Stage, Duration, String) + Send + 'a;

impl Dial<'_> {
    pub(crate) async fn open(&self, observe: &mut Observer<'_>) -> Result<(Stream, Capabilities), OpenError> {
        let begun = Instant::now();
        let mut tcp = self.within(Stage::Tcp, begun, self.connect()).await?;
        let from = tcp.local_addr().map_or_else(|_| String::new(), |local| format!(" from {}", local.ip()));
        observe(Stage::Tcp, begun.elapsed(), format!("{}{from}", self.address));
        if self.gateway.proxy_protocol {
            let header = self.purpose.introduction().map_or_else(local_header, proxy_header);
            self.within(Stage::Tcp, Instant::now(), async {
                tcp.write_all(&header).await.map_err(|error| lost(&error))
            })
            .await?;
        }
        let helo = self.egress.and_then(|egress| egress.helo.as_ref()).map_or(self.hostname, |helo| helo.as_str());
        let mut opening =
            Opening::new(Arc::clone(self.gateway), self.encryption, helo.to_owned(), self.purpose.clone());
        let mut stream = Stream::Plain(tcp);
        loop {
            let (stage, turn, begun) = (opening.stage(), opening.turn(), Instant::now());
            match opening.next() {
                Next::Ready => return Ok((stream, opening.into_capabilities())),
                Next::Tls => {
                    let (encrypted, about) = self.within(stage, begun, self.encrypt(stream)).await?;
                    stream = encrypted;
                    opening.encrypted();
                    observe(stage, begun.elapsed(), about);
                }
                Next::Talk => {
                    self.within(stage, begun, talk(&mut stream, &mut opening, turn)).await?;
                    observe(stage, begun.elapsed(), opening.about(stage));
                }
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream, OpenReason> {
        let io = |error: io::Error| OpenReason::Io(error.to_string());
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(io)?;
        if let Some(egress) = self.egress {
            socket.bind(SocketAddr::new(egress.address, 0)).map_err(|error| match error.kind() {
                io::ErrorKind::AddrNotAvailable => OpenReason::EgressGone(egress.address),
                _ => io(error),
            })?;
        }
        // Commands are short and each is awaited: Nagle's algorithm with delayed ACKs would cost 40 ms for every one.
        socket.set_nodelay(true).map_err(io)?;
        socket.connect(self.address).await.map_err(io)
    }

    async fn encrypt(&self, stream: Stream) -> Result<(Stream, String), OpenReason> {
        let (Stream::Plain(tcp), Some(tls)) = (stream, self.tls) else {
            return Err(OpenReason::Tls("TLS is not configured".to_owned()));
        };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(tls.name.clone(), tcp).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => OpenReason::Closed,
            _ => OpenReason::Tls(error.to_string()),
        })?;
        let (_, session) = stream.get_ref();
        let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
        let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("?");
        let said = match &self.gateway.verification {
            Verification::None {} => "the certificate is not verified".to_owned(),
            Verification::Ca { .. } => format!("the certificate is verified for {}", tls.name.to_str()),
            Verification::Pin { .. } => "the certificate is the pinned one".to_owned(),
        };
        let about = format!("{version} {suite}, {said}");
        Ok((Stream::Tls(Box::new(TlsStream::Client(stream))), about))
    }

    /// `act` with the time that its stage has, and no more than is left.
    async fn within<T>(
        &self,
        stage: Stage,
        begun: Instant,
        act: impl Future<Output = Result<T, impl Into<OpenFault>>>,
    ) -> Result<T, OpenError> {
        let until = self.until.min(begun + patience(stage, self.timeouts));
        match timeout_at(until, act).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(fault)) => Err(match fault.into() {
                OpenFault::Here(reason) => OpenError { stage, reason },
                OpenFault::Told(error) => error,
            }),
            Err(_) => Err(OpenError { stage, reason: OpenReason::Timeout }),
        }
    }
}

/// A reason, with its stage if that is known already.
pub(crate) enum OpenFault {
    Here(OpenReason),
    Told(OpenError),
}

impl From<OpenReason> for OpenFault {
    fn from(reason: OpenReason) -> Self {
        Self::Here(reason)
    }
}

impl From<OpenError> for OpenFault {
    fn from(error: OpenError) -> Self {
        Self::Told(error)
    }
}

/// Says what is to be said, and takes the reply.
async fn talk(stream: &mut Stream, opening: &mut Opening, turn: u32) -> Result<(), OpenError> {
    let out = opening.take_out();
    stream.write_all(&out).await.map_err(|error| opening.fault(lost(&error)))?;
    stream.flush().await.map_err(|error| opening.fault(lost(&error)))?;
    let mut scratch = [0; 2048];
    while opening.turn() == turn {
        match stream.read(&mut scratch).await {
            Ok(0) => return Err(opening.fault(OpenReason::Closed)),
            Ok(octets) => opening.input(&scratch[..octets])?,
            Err(error) => return Err(opening.fault(lost(&error))),
        }
    }
    Ok(())
}

/// QUIT, and the gateway's 221, which we do not need but which it likes to deliver.
pub(crate) async fn quit(mut stream: Stream) -> io::Result<()> {
    stream.write_all(b"QUIT\r\n").await?;
    stream.flush().await?;
    stream.shutdown().await?;
    let mut scratch = [0; 512];
    let mut rest = FAREWELL_OCTETS_MAX;
    while rest > 0 {
        match stream.read(&mut scratch).await? {
            0 => break,
            octets => rest = rest.saturating_sub(octets),
        }
    }
    Ok(())
}

pub(crate) fn lost(error: &io::Error) -> OpenReason {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => OpenReason::Closed,
        _ => OpenReason::Io(error.to_string()),
    }
}
