//! Tells the embedded relay who a connection comes from, and which gateway its mail goes to.
//!
//! Who: the flow table, which the kernel filled when it redirected the connection. A connection that no flow explains came straight to the
//! relay's port, and gets no identity: the relay is never an open one.
//! Where to: what the newest routing says of the class (see [`crate::routes::spec`]), asked anew for each message. A gateway
//! that is the relay's own listener is refused, also when a host name leads there.

use std::{net::SocketAddr, sync::Arc};

use redirect_relay::{
    ClientAddr, Directory, Endpoint, Gateway, GatewayAddr, Identity, OriginalDst,
    gateway::{self, Host, Status},
    route::{Query, Routing},
};
use tokio::{sync::watch, time::timeout};

use crate::{
    dataplane::FlowReader,
    desired::{Snapshot, Tables},
    limits,
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

    async fn gateway(&self, identity: &Identity) -> Option<Gateway> {
        let tables = self.tables();
        let routing = Arc::clone(&self.snapshot.borrow().routing);
        let gateway = gateway_of(&routing, &identity.class)?;
        let own: Vec<SocketAddr> = tables.own_endpoints().collect();
        let addresses = match &gateway.address {
            Host::Address(ip) => vec![SocketAddr::new(*ip, gateway.port)],
            Host::Name(name) => {
                let found =
                    timeout(limits::RESOLVE_TIMEOUT, tokio::net::lookup_host((name.as_str(), gateway.port))).await;
                let Ok(Ok(found)) = found else {
                    // The relay's own attempt to resolve it fails as well, and its answer to the client says so.
                    let endpoint = Endpoint::Host { name: name.as_str().into(), port: gateway.port };
                    return Some(Gateway { name: gateway.name.as_str().into(), endpoint });
                };
                found.take(limits::GATEWAY_ADDRESSES_MAX).collect()
            }
        };
        let (loops, usable): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| own.contains(address));
        if let Some(address) = loops.first() {
            tracing::error!(gateway = %gateway.name, %address, "the gateway is this router's own relay listener; it is not used");
        }
        if usable.is_empty() {
            return None;
        }
        let endpoint = Endpoint::Addresses(usable.into_iter().map(GatewayAddr::new).collect());
        Some(Gateway { name: gateway.name.as_str().into(), endpoint })
    }
}

/// The first gateway that a class's mail may go to, wherever it is for.
fn gateway_of<'r>(routing: &'r Routing, class: &str) -> Option<&'r gateway::Gateway> {
    let query = Query { domain: None, sender: None, class, size: 0, priority: 0 };
    let members = routing.members(routing.decide(&query)?.target);
    members.into_iter().map(|(_, gateway)| &**gateway).find(|gateway| gateway.status == Status::Enabled)
}
