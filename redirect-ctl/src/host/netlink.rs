//! A blocking rtnetlink socket (rtnetlink(7)): a request and the kernel's answer to it.

use std::{
    io,
    num::NonZeroI32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::{
    socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, sockopt},
    time::TimeVal,
};

use crate::limits;

/// The largest buffer that the kernel fills for a dump is 32 KiB (`netlink_dump`).
const BUFFER_BYTES: usize = 64 * 1024;
/// A dump that a change interrupted is asked for again, this often at most.
const DUMP_TRIES: u32 = 5;

/// A socket of the network namespace that it was opened in.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::NetlinkRoute),
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let seconds = i64::try_from(limits::NETLINK_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        filter_dumps(&socket)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Carries out a change; the error is the kernel's.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.answers(|_| {}).map(drop)
    }

    /// Asks for one thing.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(message, NLM_F_ACK)?;
        let mut found = None;
        self.answers(|answer| found = Some(answer))?;
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer of the kernel that cannot be read"))
    }

    /// Lists things. What this program cannot read it has not made, and is left out.
    pub(super) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_DUMP)?;
            let mut found = Vec::new();
            if self.answers(|answer| found.push(answer))? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the list changes faster than it can be read"))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        socket::send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Hands every answer to the request that was sent last to `take`, up to the one that ends them. `false` where a change interrupted
    /// the list.
    fn answers(&mut self, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let length = socket::recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let raw = NetlinkBuffer::new_checked(rest).map_err(unreadable)?;
                // The next one begins at a multiple of four.
                let (this, after) = rest.split_at((raw.length() as usize).next_multiple_of(4).min(rest.len()));
                rest = after;
                // What is left of a request that timed out.
                if raw.sequence_number() != self.sequence {
                    continue;
                }
                whole &= raw.flags() & NLM_F_DUMP_INTR == 0;
                match NetlinkMessage::deserialize(this).map(NetlinkMessage::into_parts) {
                    Ok((_, NetlinkPayload::InnerMessage(answer))) => take(answer),
                    Ok((_, NetlinkPayload::Done(done))) => return as_result(done.code).map(|()| whole),
                    Ok((_, NetlinkPayload::Error(ErrorMessage { code, .. }))) => {
                        return as_result(code.map_or(0, NonZeroI32::get)).map(|()| whole);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "a netlink message that this program cannot read"),
                }
            }
        }
    }
}

/// The kernel's convention: 0, or the negative of an errno.
fn as_result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

fn unreadable(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Lets the kernel apply a dump's filters, instead of listing a router's million routes (`NETLINK_GET_STRICT_CHK`, Linux 4.20).
fn filter_dumps(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("an int's size is small");
    // SAFETY: the descriptor is open, and the option's value is an int that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_GET_STRICT_CHK,
            std::ptr::from_ref(&on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
