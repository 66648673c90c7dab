//! TCP connections of which a test holds both ends, so that each side says what the test says, and when.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, listen, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::{
    lab::{Family, Lab},
    netns::Namespace,
};

/// How long a connection and each read and write may take: far longer than any does, so that a test that fails ends.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Connects from `from` in `host`; port 0 is any port, and two connections to different servers may share one. A connection that is
/// not there within `limit` is an error of kind `TimedOut`.
pub fn dial(host: &Namespace, from: impl Into<SocketAddr>, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let from = from.into();
    let stream = host.enter(|| -> io::Result<_> {
        let socket = reusing_socket(to)?;
        // Bounds connect() as well (socket(7)), which then fails with EINPROGRESS.
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(seconds, limit.subsec_micros().into()))?;
        let descriptor = socket.as_raw_fd();
        let connected = match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                bind(descriptor, &SockaddrIn::from(from)).and_then(|()| connect(descriptor, &SockaddrIn::from(to)))
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                bind(descriptor, &SockaddrIn6::from(from)).and_then(|()| connect(descriptor, &SockaddrIn6::from(to)))
            }
            _ => Err(nix::Error::EAFNOSUPPORT),
        };
        match connected {
            Ok(()) => Ok(TcpStream::from(socket)),
            Err(nix::Error::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    })?;
    prepare(&stream)?;
    Ok(stream)
}

fn reusing_socket(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Takes the connections that a test expects, when it expects them.
pub struct Listener(TcpListener);

impl Listener {
    /// With room for a thousand connections.
    pub fn open(host: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::with(host, address, |_| Ok(()))
    }

    /// As [`Listener::open`], for connections to any address that somebody brings here without rewriting it (`IP_TRANSPARENT`, ip(7)).
    pub fn transparent(host: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::with(host, address, |socket| setsockopt(socket, sockopt::IpTransparent, &true))
    }

    fn with(
        host: &Namespace,
        address: SocketAddr,
        prepare: impl FnOnce(&OwnedFd) -> nix::Result<()> + Send,
    ) -> Result<Self> {
        let open = || -> Result<_> {
            let socket = reusing_socket(address)?;
            prepare(&socket)?;
            match address {
                SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address))?,
                SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?,
            }
            listen(&socket, Backlog::MAXALLOWABLE)?;
            // Bounds accept() (socket(7)).
            let seconds = i64::try_from(PATIENCE.as_secs()).context("patience has an end")?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
            Ok(Self(TcpListener::from(socket)))
        };
        host.enter(open).with_context(|| format!("listen on {address}"))
    }

    /// The next connection; one that does not come is an error of kind `WouldBlock`.
    pub fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.0.accept()?;
        prepare(&stream)?;
        Ok(stream)
    }
}

/// Where a relay that the test plays is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the router.
    Router,
    /// On the gateway's host, behind a link of the router's own.
    Dmz,
}

/// A relay that the test plays, for both families.
pub struct Relay {
    pub place: Place,
    listeners: [Listener; 2],
}

const RELAY_PORT: u16 = 2599;

impl Relay {
    pub fn open(lab: &Lab, place: Place) -> Result<Self> {
        Self::with(lab, place, Listener::open)
    }

    /// As [`Relay::open`], of [`Listener::transparent`].
    pub fn transparent(lab: &Lab, place: Place) -> Result<Self> {
        Self::with(lab, place, Listener::transparent)
    }

    fn with(lab: &Lab, place: Place, open: fn(&Namespace, SocketAddr) -> Result<Listener>) -> Result<Self> {
        let host = match place {
            Place::Router => &lab.router,
            Place::Dmz => &lab.gateway,
        };
        let [v4, v6] = Family::BOTH.map(|family| open(host, place.endpoint(family)));
        Ok(Self { place, listeners: [v4?, v6?] })
    }

    #[must_use]
    pub fn endpoint(&self, family: Family) -> SocketAddr {
        self.place.endpoint(family)
    }

    /// As [`Listener::accept`].
    pub fn accept(&self, family: Family) -> io::Result<TcpStream> {
        self.listeners[usize::from(family == Family::V6)].accept()
    }
}

impl Place {
    fn endpoint(self, family: Family) -> SocketAddr {
        let address = match self {
            Self::Router => family.router(),
            Self::Dmz => family.gateway(),
        };
        SocketAddr::new(address, RELAY_PORT)
    }
}

/// Reads as many bytes as `expected` has; others are an error that shows both.
pub fn hear(stream: &mut TcpStream, expected: &[u8]) -> io::Result<()> {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard)?;
    if heard == expected {
        return Ok(());
    }
    let at = heard.iter().zip(expected).take_while(|(heard, expected)| heard == expected).count();
    let shown = |bytes: &[u8]| bytes.get(at..).unwrap_or_default().iter().take(40).copied().collect::<Vec<_>>();
    let (heard, expected) = (shown(&heard), shown(expected));
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("at byte {at} {:?} instead of {:?}", heard.escape_ascii(), expected.escape_ascii()),
    ))
}

/// Reads the end of the other side's bytes, and nothing before it.
pub fn hear_end(mut stream: &TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte instead of the end")),
    }
}

/// Has one end say what the other hears at the same time: more than the buffers between them hold.
pub fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    thread::scope(|scope| {
        let saying = scope.spawn(|| from.write_all(bytes));
        let heard = hear(to, bytes);
        if heard.is_err() {
            // Whoever says on into nothing would be waited for.
            to.shutdown(std::net::Shutdown::Both)?;
        }
        let said = saying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        heard.and(said)
    })
}

/// Ends the connection with a reset instead of a FIN.
///
/// To drop the stream is not enough: a process that another thread starts holds a copy of it for a moment.
pub fn reset(stream: &TcpStream) -> io::Result<()> {
    // What connect(2) takes for the end of the connection.
    let nowhere = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).expect("a sockaddr is small");
    // SAFETY: the pointer is to a whole sockaddr of this length that lives until the call returns, and the call only reads it.
    let outcome = unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Vanishes: the connection is gone, and the other side hears nothing.
pub fn forget(stream: &TcpStream) -> io::Result<()> {
    // A socket whose state is being carried elsewhere says nothing (kernel commit ee9952831cfd).
    setsockopt(stream, sockopt::TcpRepair, &1)?;
    reset(stream)
}

/// Bytes that look random, the same for the same seed: xorshift64.
pub fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
}
