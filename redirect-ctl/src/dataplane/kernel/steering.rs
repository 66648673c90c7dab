//! Steering in the kernel: the relays' sockets, the program that hands connections to them, and the mark that brings packets there.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{MapData, SockMap},
    programs::SkLookup,
};
use redirect_common::{
    maps::{names, socket_index},
    parse::Family,
};

use super::{
    super::{Error, RelayId},
    errno, not_loaded,
    pins::{PinnedLink, Pins},
    program,
    sys::{self, Target},
    system, take,
};

pub(super) struct Steering {
    sockets: SockMap<MapData>,
    /// There while flows are steered: every look-up of a listening socket pays for it.
    link: Option<Held>,
}

enum Held {
    /// Stays when this process ends.
    Pinned(PinnedLink),
    /// Held for its drop.
    Link { _fd: OwnedFd },
}

impl Steering {
    /// Takes the link of a daemon before this one over, whose program goes on for the time being.
    pub(super) fn take(object: &mut Ebpf, pins: Option<&Pins>) -> Result<Self, Error> {
        let link = pins.map(Pins::socket_link).transpose()?.flatten();
        Ok(Self { sockets: take(object, names::SOCKETS)?, link: link.map(Held::Pinned) })
    }

    /// Whether connections are handed to relays' sockets in this network namespace.
    pub(super) const fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// The pinned link, and the name of the program that belongs to it.
    pub(super) const fn pinned(&self) -> Option<(&PinnedLink, &'static str)> {
        match &self.link {
            Some(Held::Pinned(link)) => Some((link, names::SOCKET_LOOKUP)),
            Some(Held::Link { .. }) | None => None,
        }
    }

    pub(super) fn set_socket(&mut self, relay: RelayId, family: Family, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let set = self.sockets.set(index(relay, family), &socket.as_raw_fd(), 0);
        set.map_err(|error| system(&format!("put the socket of relay {relay} where flows are steered to"), error))
    }

    pub(super) fn clear_socket(&mut self, relay: RelayId, family: Family) -> Result<(), Error> {
        match self.sockets.clear_index(&index(relay, family)) {
            Ok(()) => Ok(()),
            // A socket leaves when it is closed.
            Err(error) if matches!(errno(&error), Some(libc::EINVAL | libc::ENOENT)) => Ok(()),
            Err(error) => Err(system(&format!("take the socket of relay {relay} away"), error)),
        }
    }

    /// Attaches the program to this network namespace, or detaches it.
    pub(super) fn look_sockets_up(&mut self, object: &mut Ebpf, pins: Option<&Pins>, on: bool) -> Result<(), Error> {
        match (self.link.take(), on) {
            (Some(Held::Pinned(link)), false) => link.remove()?,
            (Some(Held::Link { .. }) | None, false) => {}
            (Some(link), true) => self.link = Some(link),
            (None, true) => self.link = Some(attach(object, pins)?),
        }
        Ok(())
    }
}

fn attach(object: &mut Ebpf, pins: Option<&Pins>) -> Result<Held, Error> {
    let namespace = File::open("/proc/thread-self/ns/net")
        .map_err(|source| Error::System { what: "open the network namespace".to_owned(), source })?;
    let lookup: &mut SkLookup = program(object, names::SOCKET_LOOKUP)?;
    let program = lookup.fd().map_err(|error| not_loaded(&error))?;
    let link = sys::create_link(program.as_fd(), Target::SocketLookup { namespace: namespace.as_fd() })
        .map_err(|source| Error::System { what: "attach to the look-up of sockets".to_owned(), source })?;
    match pins {
        Some(pins) => PinnedLink::make(link, pins.socket_path()).map(Held::Pinned),
        None => Ok(Held::Link { _fd: link }),
    }
}

fn index(relay: RelayId, family: Family) -> u32 {
    let relay = u8::try_from(relay).expect("numbers of relays are below RELAYS_MAX");
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    socket_index(relay, family)
}
