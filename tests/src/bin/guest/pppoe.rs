//! A PPPoE session between two hosts, and a PPP device at each end, by the kernel alone.
//!
//! Discovery and the negotiation of PPP are a daemon's business, and no frame of mail depends on them: both ends are told the session's number
//! and each other's hardware address (`Documentation/networking/ppp_generic.rst`).

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use redirect_tests::Namespace;

/// The only PPP device of a host.
pub(crate) const DEVICE: &str = "ppp0";

/// PPPoE and PPP take eight bytes of Ethernet's 1500 (RFC 2516 section 7).
pub(crate) const MTU: u32 = 1492;

mod request {
    use nix::libc::c_int;

    // include/uapi/linux/ppp-ioctl.h
    nix::ioctl_read!(channel, b't', 55, c_int);
    nix::ioctl_write_ptr!(attach_channel, b't', 56, c_int);
    nix::ioctl_readwrite!(new_unit, b't', 62, c_int);
    nix::ioctl_write_ptr!(connect, b't', 58, c_int);
}

/// `struct sockaddr_pppox` (`include/uapi/linux/if_pppox.h`) for PPPoE.
#[repr(C, packed)]
struct Address {
    family: libc::sa_family_t,
    protocol: libc::c_uint,
    session: [u8; 2],
    peer: [u8; 6],
    device: [u8; libc::IFNAMSIZ],
}

/// One end of a session; with it, its device goes.
pub(crate) struct End {
    _socket: OwnedFd,
    _channel: File,
    _unit: File,
}

impl End {
    /// Opens the end that is at `device` of `host`.
    pub(crate) fn open(host: &Namespace, device: &str, peer: [u8; 6], session: u16) -> Result<Self> {
        host.enter(|| open(device, peer, session))
            .with_context(|| format!("open a PPPoE session on {device} of {}", host.name()))
    }
}

fn open(device: &str, peer: [u8; 6], session: u16) -> Result<End> {
    /// `PX_PROTO_OE` of `include/uapi/linux/if_pppox.h`.
    const PROTOCOL: libc::c_int = 0;

    // SAFETY: no pointer is involved; the result is checked before it is owned.
    let socket = match unsafe { libc::socket(libc::AF_PPPOX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, PROTOCOL) } {
        -1 => return Err(io::Error::last_os_error()).context("no socket for PPPoE"),
        // SAFETY: the descriptor has just been opened, and nobody else has it.
        descriptor => unsafe { OwnedFd::from_raw_fd(descriptor) },
    };
    let mut address = Address {
        family: libc::sa_family_t::try_from(libc::AF_PPPOX).expect("a family fits"),
        protocol: PROTOCOL.cast_unsigned(),
        session: session.to_be_bytes(),
        peer,
        device: [0; libc::IFNAMSIZ],
    };
    address.device[..device.len()].copy_from_slice(device.as_bytes());
    let size = libc::socklen_t::try_from(size_of::<Address>()).expect("an address is short");
    // SAFETY: the address lives until the call returns and is as large as is said.
    if unsafe { libc::connect(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), size) } == -1 {
        return Err(io::Error::last_os_error()).context("connect");
    }

    let control = || File::options().read(true).write(true).open("/dev/ppp").context("open /dev/ppp");
    let (channel, unit) = (control()?, control()?);
    let (mut channel_number, mut unit_number) = (0, 0);
    // SAFETY: each request reads or writes one integer, which lives until it returns.
    unsafe {
        request::channel(socket.as_raw_fd(), &raw mut channel_number).context("ask for the channel")?;
        request::attach_channel(channel.as_raw_fd(), &raw const channel_number).context("attach the channel")?;
        request::new_unit(unit.as_raw_fd(), &raw mut unit_number).context("make the device")?;
        request::connect(channel.as_raw_fd(), &raw const unit_number).context("connect channel and device")?;
    }
    Ok(End { _socket: socket, _channel: channel, _unit: unit })
}
