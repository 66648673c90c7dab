//! Ending connections of this host's sockets from outside, as `ss -K` does (`sock_diag(7)`): both ends learn of it at once. The socket's owner reads
//! `ECONNABORTED`, and the kernel sends its peer a reset.
//!
//! Needed: `CAP_NET_ADMIN` and a kernel with `CONFIG_INET_DIAG_DESTROY`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};
use nix::sys::{
    socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, setsockopt, sockopt,
    },
    time::TimeVal,
};
use redirect_common::wire::protocol;

use crate::{dataplane::Connection, limits};

/// Messages of `sock_diag` (`include/uapi/linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_req_v2` (`include/uapi/linux/inet_diag.h`).
const REQUEST_BYTES: usize = 56;
const LENGTH: u32 = 72;
const _: () = assert!(LENGTH as usize == HEADER_BYTES + REQUEST_BYTES);
/// Where a socket's cookie is in `struct inet_diag_msg`, and so in an answer: behind four bytes, ports, addresses and an interface.
const ANSWER_COOKIE: usize = HEADER_BYTES + 4 + 4 + 32 + 4;
const ANSWER_STATE: usize = HEADER_BYTES + 1;
const TCP_LISTEN: u8 = 10;
/// Families of Linux (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The connections of the network namespace that it was opened in.
pub(super) struct Connections {
    socket: OwnedFd,
    sequence: u32,
}

impl Connections {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::NetlinkSockDiag),
        )?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let seconds = i64::try_from(limits::NETLINK_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Ends a connection; `false` where no socket of this host has it.
    pub(super) fn end(&mut self, connection: Connection) -> io::Result<bool> {
        // Asked for a connection that it does not have, the kernel would take the listener, so that the socket is named by its cookie.
        let Some(cookie) = self.find(connection)? else { return Ok(false) };
        match self.ask(SOCK_DESTROY, NLM_F_ACK, connection, cookie) {
            Ok(_) => Ok(true),
            // It has ended by itself meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The cookie of the socket that has the connection.
    fn find(&mut self, connection: Connection) -> io::Result<Option<[u8; 8]>> {
        const ANY: [u8; 8] = [0xff; 8];
        let answer = match self.ask(SOCK_DIAG_BY_FAMILY, 0, connection, ANY) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            answer => answer?,
        };
        let cookie = answer.get(ANSWER_COOKIE..).and_then(|rest| rest.first_chunk()).copied();
        Ok(cookie.filter(|_| answer.get(ANSWER_STATE) != Some(&TCP_LISTEN)))
    }

    /// Sends a request about a connection, and gives the answer back, header included.
    fn ask(&mut self, kind: u16, flags: u16, connection: Connection, cookie: [u8; 8]) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(kind, flags, self.sequence, connection, cookie);
        socket::send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = vec![0; 4096];
        loop {
            let length = socket::recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let received = answer.get(..length).unwrap_or_default();
            // What is left of a request that timed out is skipped.
            if received.get(8..12) == Some(&self.sequence.to_ne_bytes()) {
                return error_of(received).map_or_else(|| Ok(received.to_vec()), Err);
            }
        }
    }
}

/// The error that an answer carries, if it does.
fn error_of(answer: &[u8]) -> Option<io::Error> {
    let is_error = answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes());
    let code = answer.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk()).copied().map_or(0, i32::from_ne_bytes);
    (is_error && code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

/// The kernel takes "source" for the local end.
fn request(kind: u16, flags: u16, sequence: u32, connection: Connection, cookie: [u8; 8]) -> Vec<u8> {
    let Connection { local, peer } = connection;
    let flags = NLM_F_REQUEST | flags;
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.extend([0; 4]);
    // No extensions; sockets in every state.
    request.extend([family, protocol::TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(peer.port().to_be_bytes());
    request.extend(padded(local));
    request.extend(padded(peer));
    // On whatever interface.
    request.extend([0; 4]);
    request.extend(cookie);
    request
}

fn padded(end: SocketAddr) -> [u8; 16] {
    match end.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}
