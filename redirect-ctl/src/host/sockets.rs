//! The relays' sockets that flows are steered to: which are adopted, and whether they are still those that listen.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::OwnedFd,
};

use super::adopt::{self, Error, listeners, set_transparent, take};
use crate::dataplane::RelayId;

/// What was found at a relay's endpoint, and made of it.
#[derive(Debug, Default)]
struct Adopted {
    /// Inodes of the sockets that listened when somebody looked.
    seen: BTreeSet<u64>,
    /// Those that were not transparent before.
    changed: BTreeSet<u64>,
    /// One of them was given away to be steered to.
    ready: bool,
}

/// The sockets of the relays of this network namespace.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    adopted: BTreeMap<(RelayId, SocketAddr), Adopted>,
}

impl Sockets {
    /// Makes every socket that listens on `endpoint` ready to be steered to, and gives one away: the kernel spreads connections over the
    /// others that are bound alike. `None` where nothing has changed since the last time. Whoever gets the socket closes it soon: while
    /// it is open, it listens in the relay's place.
    pub(super) fn adopt(&mut self, relay: RelayId, endpoint: SocketAddr) -> Result<Option<OwnedFd>, Error> {
        let adopted = self.adopted.entry((relay, endpoint)).or_default();
        let found = match listeners(endpoint) {
            Ok(found) => found,
            Err(error) => {
                *adopted = Adopted::default();
                return Err(error);
            }
        };
        let seen = found.iter().map(|listener| listener.inode).collect();
        if adopted.ready && adopted.seen == seen {
            return Ok(None);
        }
        adopted.changed.retain(|inode| seen.contains(inode));
        adopted.seen = seen;
        adopted.ready = false;
        let mut given = None;
        for listener in found {
            let socket = take(endpoint, listener)?;
            if set_transparent(endpoint, &socket, true)? {
                adopted.changed.insert(listener.inode);
            }
            given.get_or_insert(socket);
        }
        adopted.ready = given.is_some();
        Ok(given)
    }

    /// Whether flows can be steered to `endpoint`.
    pub(super) fn is_ready(&self, relay: RelayId, endpoint: SocketAddr) -> bool {
        self.adopted.get(&(relay, endpoint)).is_some_and(|adopted| adopted.ready)
    }

    /// The socket that was given away was not put to use.
    pub(super) fn failed(&mut self, relay: RelayId, endpoint: SocketAddr) {
        if let Some(adopted) = self.adopted.get_mut(&(relay, endpoint)) {
            adopted.ready = false;
        }
    }

    /// Whether other sockets listen than when [`Sockets::adopt`] looked.
    pub(super) fn are_stale(&self) -> bool {
        self.adopted.iter().any(|((_, endpoint), adopted)| {
            let found = listeners(*endpoint).unwrap_or_default();
            found.into_iter().map(|listener| listener.inode).collect::<BTreeSet<_>>() != adopted.seen
        })
    }

    /// Makes the sockets of every other endpoint what they were.
    pub(super) fn keep(&mut self, endpoints: &BTreeSet<SocketAddr>) {
        let others = self.adopted.extract_if(.., |(_, endpoint), _| !endpoints.contains(endpoint));
        for ((_, endpoint), adopted) in others {
            // Those that are gone need nothing.
            let left = listeners(endpoint).unwrap_or_default();
            for listener in left.into_iter().filter(|listener| adopted.changed.contains(&listener.inode)) {
                let restored = take(endpoint, listener).and_then(|socket| set_transparent(endpoint, &socket, false));
                if let Err(error) = restored
                    && !matches!(error, adopt::Error::Vanished { .. })
                {
                    tracing::warn!(%endpoint, %error, "the relay's socket stays transparent");
                }
            }
        }
    }
}
