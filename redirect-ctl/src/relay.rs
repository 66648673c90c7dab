//! Tells the embedded relay who a connection comes from, and which gateway its mail goes to.
//!
//! Who: the flow table, which the kernel filled when it redirected the connection. A connection that no flow explains came straight to the
//! relay's port, and gets no identity: the relay is never an open one.
//! Where to: what the newest routing says of the class (see [`crate::routes::spec`]), asked anew for each message. A gateway
//! that is the relay's own listener is refused, also when a host name leads there.

use std::{net::SocketAddr, sync::Arc};

use redirect_relay::{ClientAddr, Directory, Identity, OriginalDst, route::Routing};
use tokio::sync::watch;

use crate::{
    dataplane::FlowReader,
    desired::{Snapshot, Tables},
};

/// The daemon's side of [`Directory`].
pub struct FlowDirectory {
    flows: Arc<dyn FlowReader>,
    snapshot: watch::Receiver<Snapshot>,
}

impl FlowDirectory {
    pub fn new(flows: Arc<dyn FlowReader>, snapshot: watch::Receiver<Snapshot>) -> Self {
        Self { flows, snapshot }
    }

    fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.snapshot.borrow().tables)
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
        let class = self.tables().classes.get(&original.class)?.spec.name.as_str().into();
        Some(Identity {
            client: ClientAddr::new(original.client),
            original: OriginalDst::new(original.server),
            class,
            policy: Arc::default(),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::clone(&self.snapshot.borrow().routing)
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        self.tables().own_endpoints().collect()
    }
}
