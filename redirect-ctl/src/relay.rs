//! Tells the embedded relay who a connection comes from, and which gateway its mail goes to.
//!
//! Who: the flow table, which the kernel filled when it redirected the connection. A connection that no flow explains came straight to the
//! relay's port, and gets no identity: the relay is never an open one.
//! Where to: the gateway of the class, else the one named `default`, read from the store's newest snapshot for each message. A gateway
//! that is the relay's own listener is refused, also when a host name leads there.

use std::{net::SocketAddr, sync::Arc};

use redirect_relay::{ClientAddr, Directory, Endpoint, Gateway, GatewayAddr, Identity, OriginalDst};
use tokio::{sync::watch, time::timeout};

use crate::{
    dataplane::FlowReader,
    desired::{self, DEFAULT_GATEWAY, GatewayStatus, Host, Snapshot, Tables},
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
        let gateway = gateway_of(&tables, &identity.class)?;
        let own: Vec<SocketAddr> = tables.own_endpoints().collect();
        let addresses = match &gateway.host {
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

/// The gateway that a class's mail goes to; `None` where none is set or it is disabled.
fn gateway_of<'t>(tables: &'t Tables, class: &str) -> Option<&'t desired::Gateway> {
    let name = tables.class(class)?.spec.gateway.as_ref().map_or(DEFAULT_GATEWAY, |name| name.as_str());
    let gateway = tables.gateways.values().find(|gateway| gateway.name.as_str() == name)?;
    (gateway.status == GatewayStatus::Enabled).then_some(gateway)
}
