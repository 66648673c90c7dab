//! Tells the embedded relay who a connection comes from and where its mail goes, and brings its locks into the kernel.
//!
//! Who: the flow table, which the kernel filled when it redirected the connection. A connection that no flow explains came straight to the
//! relay's port, and gets no identity: the relay is never an open one.
//! Where to: the routing of the store's newest snapshot, asked for at each message, which keeps it to its end. A gateway that is the
//! relay's own listener is refused, also when a host name leads there.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use redirect_relay::{ClientAddr, Directory, Identity, OriginalDst, route::Routing};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    dataplane::FlowReader,
    desired::{Counted, Snapshot},
    limits,
    reconcile::task::{Handle, monotonic_s},
};

/// The daemon's side of [`Directory`].
pub struct FlowDirectory {
    flows: Arc<dyn FlowReader>,
    snapshot: watch::Receiver<Snapshot>,
    locks: mpsc::Sender<AbuseLock>,
}

/// A lock that the relay asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbuseLock {
    pub client: IpAddr,
    pub class: Arc<str>,
    pub duration: Duration,
}

impl FlowDirectory {
    /// What comes out of the receiver is for [`keep_locks`].
    pub fn new(flows: Arc<dyn FlowReader>, snapshot: watch::Receiver<Snapshot>) -> (Self, mpsc::Receiver<AbuseLock>) {
        let (locks, receiver) = mpsc::channel(limits::RELAY_LOCKS_MAX);
        (Self { flows, snapshot, locks }, receiver)
    }
}

impl Directory for FlowDirectory {
    async fn identify(&self, peer: SocketAddr, local: SocketAddr) -> Option<Identity> {
        // One look-up in a kernel hash: a system call of a microsecond or two, not worth another thread.
        let original = match self.flows.original(peer, local) {
            Ok(original) => original?,
            Err(error) => {
                tracing::error!(%peer, %local, %error, "cannot look the flow up; the connection is refused");
                return None;
            }
        };
        let snapshot = self.snapshot.borrow();
        Some(Identity {
            client: ClientAddr::new(original.client),
            original: OriginalDst::new(original.server),
            class: snapshot.tables.classes.get(&original.class)?.spec.name.as_str().into(),
            policy: Arc::clone(snapshot.clients.policies.get(&original.class)?),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::clone(&self.snapshot.borrow().routing)
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        self.snapshot.borrow().tables.own_endpoints().collect()
    }

    fn lock(&self, identity: &Identity, duration: Duration) {
        let lock = AbuseLock { client: identity.client.ip(), class: Arc::clone(&identity.class), duration };
        if self.locks.try_send(lock).is_err() {
            tracing::error!(subscriber = %identity.client, "too many locks wait for the kernel; this one is left out");
        }
    }
}

/// Brings the relay's locks into the kernel, and tells of them, until `stop`.
pub async fn keep_locks(
    mut locks: mpsc::Receiver<AbuseLock>,
    reconciler: Handle,
    told: broadcast::Sender<AbuseLock>,
    stop: CancellationToken,
) {
    while let Some(Some(lock)) = stop.run_until_cancelled(locks.recv()).await {
        let duration_s = u32::try_from(lock.duration.as_secs()).unwrap_or(limits::LOCK_S_MAX);
        let subscriber = Counted(lock.client.into());
        match reconciler.set_lock(subscriber.0, monotonic_s().saturating_add(duration_s)).await {
            Ok(()) => {
                tracing::warn!(%subscriber, class = &*lock.class, duration_s, "locked for abuse of the relay");
                // An error says that nobody listens.
                let _ = told.send(lock);
            }
            Err(error) => tracing::error!(%subscriber, %error, "cannot lock who abuses the relay"),
        }
    }
}
