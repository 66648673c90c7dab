//! Sessions that are passed through: octets go between the client and the server that it dialled, as they are.
//!
//! The relay neither reads nor speaks. It keeps the bounds: of time, of memory, and of where a subscriber can get by way
//! of this host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead as _, AsyncWrite as _},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    addrs::OriginalDst,
    buffer::Buffer,
    driver::poll_read,
    limits::{TO_GATEWAY_HIGH, Timeouts},
};

/// How many octets went each way, of those that the other side took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
}

/// Connects to where the client meant to go.
pub(crate) async fn connect(original: OriginalDst, timeouts: &Timeouts) -> io::Result<TcpStream> {
    let stream = timeout(timeouts.connect, TcpStream::connect(original.get())).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// We are not the client: what only this host may reach stays out of its reach. Whether an address belongs neither to this host nor to what only its own link can mean. `local` is the address on
/// which the client reached us.
pub(crate) fn is_elsewhere(ip: IpAddr, local: IpAddr) -> bool {
    let near = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(near
        || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip == SocketAddr::new(local, 0).ip().to_canonical())
}

/// One direction.
#[derive(Default)]
struct Way {
    held: Buffer,
    passed: u64,
    ended: bool,
    shut: bool,
}

impl Way {
    /// Moves what can be moved; ready when something was.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut TcpStream, to: &mut TcpStream) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            let count = ready!(Pin::new(to).poll_write(cx, self.held.filled()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.take(count);
            self.passed += count as u64;
            return Poll::Ready(Ok(()));
        }
        if self.ended {
            if self.shut {
                return Poll::Pending;
            }
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.shut = true;
            return Poll::Ready(Ok(()));
        }
        let mut result = Ok(());
        ready!(poll_read(
            cx,
            false,
            |cx, buffer| Pin::new(&mut *from).poll_read(cx, buffer),
            |read| match read {
                Ok([]) => self.ended = true,
                Ok(bytes) => self.held.extend(bytes),
                Err(error) => result = Err(error),
            }
        ));
        debug_assert!(self.held.len() <= TO_GATEWAY_HIGH, "one read at a time");
        Poll::Ready(result)
    }
}

/// Passes octets both ways until both sides have ended, one of them fails, or nothing has moved for `timeouts.splice`.
pub(crate) async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    timeouts: &Timeouts,
) -> (Passed, io::Result<()>) {
    let (mut out, mut back) = (Way::default(), Way::default());
    let mut timer = std::pin::pin!(sleep_until(Instant::now() + timeouts.splice));
    let result = std::future::poll_fn(|cx| {
        loop {
            let moved = [out.poll(cx, client, server), back.poll(cx, server, client)];
            let mut any = false;
            for way in moved {
                match way {
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => any = true,
                    Poll::Pending => {}
                }
            }
            if out.shut && back.shut {
                return Poll::Ready(Ok(()));
            }
            if any {
                timer.as_mut().reset(Instant::now() + timeouts.splice);
            } else {
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
    })
    .await;
    (Passed { from_client: out.passed, to_client: back.passed }, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_46_where_only_this_host_may_go() {
        let local: IpAddr = "203.0.113.1".parse().unwrap();
        let check = |ip: &str, may| assert_eq!(is_elsewhere(ip.parse().unwrap(), local), may, "{ip}");
        check("198.51.100.9", true);
        check("10.0.0.1", true);
        check("2001:db8::1", true);
        for ip in [
            "203.0.113.1",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            check(ip, false);
        }
    }
}
