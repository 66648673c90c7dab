//! TCP of a subscriber: one connection with all it can carry, and as many connections as can be had. Every connection is taken by a sink
//! on the router, which reads it to its end and closes it then.
//!
//! Both ends run on one CPU, so that what is measured is the work of all that takes part. With an end on each of two CPUs the same came
//! out, with more noise.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};
use redirect_tests::{Lab, Namespace};

use super::{cpu, site::run};

/// Connections at the same time, and threads that take them.
const PARALLEL: usize = 4;
/// The client's addresses: one has too few ports for what is to be measured.
const SOURCES: u32 = 16;
const PORT_FIRST: u32 = 1024;
const PORTS: u32 = 60_000;
/// A connection that takes longer counts as refused. The first SYN is sent again after a second.
const CONNECT_S: i64 = 1;
const BUFFER_BYTES: usize = 64 * 1024;
const STACK_BYTES: usize = 512 * 1024;

/// The relay's stand-in.
pub(crate) struct Sink {
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Sink {
    pub(crate) fn start(host: &Namespace, (address, port): (Ipv4Addr, u16), cpu: usize) -> Result<Self> {
        let listener = host.enter(|| -> Result<_> {
            let listener = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&listener, sockopt::ReuseAddr, &true)?;
            // What tproxy demands of the socket that it hands connections to.
            setsockopt(&listener, sockopt::IpTransparent, &true)?;
            socket::bind(listener.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))?;
            socket::listen(&listener, socket::Backlog::new(1024)?)?;
            Ok(TcpListener::from(listener))
        });
        let listener = Arc::new(listener.context("listen as the sink")?);
        let threads = (0..PARALLEL).map(|_| {
            let (sender, receiver) = mpsc::channel();
            let listener = Arc::clone(&listener);
            let thread = host.spawn(STACK_BYTES, move || {
                let claimed = cpu::claim(cpu);
                let ready = claimed.is_ok();
                // The other end waits for this.
                let _ = sender.send(claimed);
                if ready {
                    take_all(&listener);
                }
            })?;
            receiver.recv().context("a thread of the sink reports")??;
            Ok(thread)
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { listener, threads })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Wakes whoever waits for a connection. What fails here is closed at the end of this process.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes connections until the listener is shut down.
fn take_all(listener: &TcpListener) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok((connection, _)) = listener.accept() {
        // TCP discards what is read so without copying it. A connection that breaks is over as well; who made it knows.
        while matches!(socket::recv(connection.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC), Ok(1..)) {}
    }
}

/// Readies the client: its addresses, and no memory of connections that are over, which would be work of a subscriber's own machine.
pub(crate) fn prepare(lab: &Lab) -> Result<()> {
    let addresses: Vec<_> = (0..SOURCES).map(|number| format!("address add {}/16 dev eth0", source(number))).collect();
    lab.client.ip(&addresses)?;
    lab.client.sysctl(&[("ipv4/tcp_max_tw_buckets", "0")])
}

fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 20, 1, 0)) + number)
}

/// What the devices of a link leave to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// Segments of up to 64 KiB, and checksums that nobody computes.
    All,
    /// Checksums only: every packet is as large as the MTU, no larger.
    Checksums,
    /// As [`Self::Checksums`], and every checksum is computed, as XDP needs it where it rewrites.
    Nothing,
}

/// Sets both ends of the subscribers' link.
pub(crate) fn set_offloads(lab: &Lab, offloads: Offloads) -> Result<()> {
    let word = |on: bool| if on { "on" } else { "off" };
    let checksums = word(offloads != Offloads::Nothing);
    let segments = word(offloads == Offloads::All);
    for (host, device) in [(&lab.client, "eth0"), (&lab.router, "lan0")] {
        run(
            host,
            &[
                "ethtool", "-K", device, "tx", checksums, "rx", checksums, "tso", segments, "gso", segments, "gro",
                "off",
            ],
        )?;
    }
    Ok(())
}

/// Gbit/s of one connection to `server`, in `time` and until everything has arrived.
pub(crate) fn bulk(client: &Namespace, server: SocketAddrV4, time: Duration, cpu: usize) -> Result<f64> {
    client.enter(|| {
        cpu::claim(cpu)?;
        let buffer = vec![0x2e; BUFFER_BYTES];
        let mut connection = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
        connection.set_write_timeout(Some(Duration::from_secs(10)))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < time {
            bytes += connection.write(&buffer)?;
        }
        connection.shutdown(Shutdown::Write)?;
        let end = connection.read(&mut [0]).context("wait until everything has arrived")?;
        ensure!(end == 0, "the sink answers nothing");
        let bits = 8.0 * f64::from(u32::try_from(bytes >> 10).context("below 4 TiB")?) * 1024.0;
        Ok(bits / start.elapsed().as_secs_f64() / 1e9)
    })
}

/// What came of an attempt at many connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connections {
    pub(crate) done: u32,
    pub(crate) took: Duration,
}

impl Connections {
    pub(crate) fn per_second(self) -> f64 {
        f64::from(self.done) / self.took.as_secs_f64()
    }
}

/// Opens and closes `count` connections to `server`, or as many as there are within `limit`. The numbers of the first, and of those
/// after it, choose the client's address and port, so that no two of [`SOURCES`] x [`PORTS`] in a row have the same.
pub(crate) fn connections(
    client: &Namespace,
    server: SocketAddrV4,
    first: u32,
    count: u32,
    limit: Duration,
    cpu: usize,
) -> Result<Connections> {
    let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let barrier = Barrier::new(PARALLEL);
    // Whoever merely waits may not get to run before it is all over, so these take the time.
    let work = || -> Result<(Instant, Instant)> {
        let claimed = cpu::claim(cpu);
        barrier.wait();
        claimed?;
        let start = Instant::now();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || start.elapsed() > limit {
                return Ok((start, Instant::now()));
            }
            if connect(first.wrapping_add(number), server)? {
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let spans: Result<Vec<_>> = client.enter(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|span| span.expect("a thread that connects does not panic")).collect()
        })
    });
    let (starts, ends): (Vec<_>, Vec<_>) = spans?.into_iter().unzip();
    let took = ends.into_iter().max().zip(starts.into_iter().min()).map(|(end, start)| end - start);
    Ok(Connections { done: done.load(Ordering::Relaxed), took: took.context("some thread connects")? })
}

/// Opens a connection and closes it, this side first; `false` where none came about in time.
fn connect(number: u32, server: SocketAddrV4) -> Result<bool> {
    let address = source(number % SOURCES);
    let port = u16::try_from(PORT_FIRST + number / SOURCES % PORTS).context("a port")?;
    let connection = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&connection, sockopt::ReuseAddr, &true)?;
    setsockopt(&connection, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_S))?;
    socket::bind(connection.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))
        .with_context(|| format!("bind {address}:{port}"))?;
    match socket::connect(connection.as_raw_fd(), &SockaddrIn::from(server)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS | Errno::ETIMEDOUT) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("connect {address}:{port} to {server}")),
    }
    let mut connection = TcpStream::from(connection);
    connection.shutdown(Shutdown::Write)?;
    let end = connection.read(&mut [0]).context("wait for the sink to close")?;
    ensure!(end == 0, "the sink answers nothing");
    Ok(true)
}
