//! Steering in the kernel: the relays' sockets, the program that hands connections to them, and the mark that brings packets there.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{MapData, SockMap},
    programs::{SkLookup, sk_lookup::SkLookupLink},
};
use redirect_common::{
    maps::{names, socket_index},
    parse::Family,
};

use super::{
    super::{Error, RelayId},
    errno, not_loaded, program, system, take,
};

pub(super) struct Steering {
    sockets: SockMap<MapData>,
    /// There while flows are steered: every look-up of a listening socket pays for it.
    link: Option<SkLookupLink>,
}

impl Steering {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self { sockets: take(object, names::SOCKETS)?, link: None })
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
    pub(super) fn look_sockets_up(&mut self, object: &mut Ebpf, on: bool) -> Result<(), Error> {
        if !on {
            self.link = None;
        } else if self.link.is_none() {
            let namespace = File::open("/proc/thread-self/ns/net")
                .map_err(|source| Error::System { what: "open the network namespace".to_owned(), source })?;
            let lookup: &mut SkLookup = program(object, names::SOCKET_LOOKUP)?;
            let link = lookup.attach(namespace).and_then(|id| lookup.take_link(id));
            self.link = Some(link.map_err(|error| not_loaded(&error))?);
        }
        Ok(())
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
