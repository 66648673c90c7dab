//! The listening TCP sockets of this network namespace, from the kernel's own list of them (`sock_diag(7)`).
//!
//! `/proc/net/tcp` begins with the same, but a read of it goes on through the table of all connections: tens of milliseconds where that is
//! large, however few there are.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use nix::sys::{
    socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, setsockopt, sockopt,
    },
    time::TimeVal,
};
use redirect_common::wire::protocol;

use super::adopt::Listener;
use crate::limits;

/// `include/uapi/linux/sock_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`
const HEADER_BYTES: usize = 16;
/// With a `struct inet_diag_req_v2` (`include/uapi/linux/inet_diag.h`).
const REQUEST_BYTES: u32 = 72;
/// Which states are asked for, as bits (`include/net/tcp_states.h`).
const LISTEN: u32 = 1 << 10;
/// Families of Linux (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Where these are in `struct inet_diag_msg`.
const FAMILY: usize = 0;
const PORT: usize = 4;
const ADDRESS: usize = 8;
const INODE: usize = 68;

/// All of them. Errors where the kernel has no `CONFIG_INET_DIAG`.
pub(super) fn listening() -> io::Result<Vec<Listener>> {
    let netlink = socket::socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkSockDiag),
    )?;
    connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let seconds = i64::try_from(limits::NETLINK_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
    let mut listeners = Vec::new();
    let mut answer = vec![0; 32 * 1024];
    for family in [AF_INET, AF_INET6] {
        socket::send(netlink.as_raw_fd(), &request(family), MsgFlags::empty())?;
        loop {
            let length = socket::recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if read_answer(answer.get(..length).unwrap_or_default(), &mut listeners)? {
                break;
            }
        }
    }
    Ok(listeners)
}

fn request(family: u8) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, protocol::TCP, 0, 0]);
    request.extend(LISTEN.to_ne_bytes());
    request.resize(REQUEST_BYTES as usize, 0);
    request
}

/// Takes the sockets of one answer; whether it was the last.
fn read_answer(mut answer: &[u8], listeners: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some((header, rest)) = answer.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(message) = length.checked_sub(HEADER_BYTES).and_then(|length| rest.get(..length)) else {
            return Err(io::Error::other("an answer of sock_diag that is cut off"));
        };
        if kind == NLMSG_DONE {
            return Ok(true);
        }
        if kind == NLMSG_ERROR {
            let code = message.first_chunk().copied().map_or(0, i32::from_ne_bytes);
            return Err(io::Error::from_raw_os_error(code.saturating_neg()));
        }
        listeners.extend(read_listener(message));
        // Messages are aligned to four octets.
        answer = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn read_listener(message: &[u8]) -> Option<Listener> {
    let address = message.get(ADDRESS..)?;
    let ip = match *message.get(FAMILY)? {
        AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
        AF_INET6 => IpAddr::from(*address.first_chunk::<16>()?),
        _ => return None,
    };
    let port = u16::from_be_bytes(*message.get(PORT..)?.first_chunk()?);
    let inode = u32::from_ne_bytes(*message.get(INODE..)?.first_chunk()?);
    Some(Listener { local: SocketAddr::new(ip, port), inode: inode.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn socket(local: &str, inode: u32) -> Vec<u8> {
        let local: SocketAddr = local.parse().unwrap();
        let (family, address) = match local.ip() {
            IpAddr::V4(ip) => (AF_INET, [&ip.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
        };
        let mut body = [&[family, 10, 0, 0][..], &local.port().to_be_bytes(), &[0; 2], &address].concat();
        body.resize(INODE, 0);
        body.extend(inode.to_ne_bytes());
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    #[test]
    fn sockets_are_read_up_to_the_end() {
        let mut found = Vec::new();
        let part = [socket("127.0.0.1:2525", 4711), socket("[fd00:20::1]:25", 7)].concat();
        assert!(!read_answer(&part, &mut found).unwrap());
        assert!(read_answer(&message(NLMSG_DONE, &[0; 4]), &mut found).unwrap());
        let found: Vec<_> = found.iter().map(|listener| (listener.local.to_string(), listener.inode)).collect();
        assert_eq!(found, [("127.0.0.1:2525".to_owned(), 4711), ("[fd00:20::1]:25".to_owned(), 7)]);
        for end in 1..part.len() {
            // Whatever is cut off, nothing is read beyond it.
            let _ = read_answer(&part[..end], &mut Vec::new());
        }
        let refused = read_answer(&message(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes()), &mut Vec::new());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn our_own_sockets_are_among_them_until_they_are_closed() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let local = listener.local_addr().unwrap();
            let there = || listening().unwrap().iter().any(|listener| listener.local == local && listener.inode > 0);
            assert!(there(), "{local}");
            drop(listener);
            assert!(!there(), "{local}");
        }
    }
}
