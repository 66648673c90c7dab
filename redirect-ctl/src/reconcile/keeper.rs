//! Keeps the host as the configuration wants it, beside the maps: at every change, when interfaces come and go, and again after errors.
//!
//! What something new relies on is made before the plan's operations, and what was relied on goes after them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::Instant,
};

use redirect_common::{parse::Family, reason::Reason};
use redirect_relay::gateway::Host as Address;

use super::{delivery, event::EventRecord, task::Stage};
use crate::{
    dataplane::{Connection, Dataplane, RelayId},
    desired::{Delivery, Tables},
    host::{self, Host, Wanted, foreign::Counts},
    limits,
};

/// What is known of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostStatus {
    /// Why the host is not as wanted.
    pub error: Option<String>,
    /// Foreign sources that have a route.
    pub foreign_sources: usize,
    pub counts: Counts,
}

pub(super) struct Keeper {
    host: Host,
    /// As of the last [`Keeper::prepare`].
    wanted: Wanted,
    stage: Stage,
    /// [`Keeper::tidy`] has to follow.
    prepared: bool,
    /// Whether the data plane steers.
    steering: bool,
    /// Where the data plane has sockets to steer to.
    slots: BTreeSet<Slot>,
    error: Option<String>,
    /// When everything is compared again.
    due: Instant,
    /// Why relays' connections cannot be ended.
    end_error: Option<String>,
}

impl Keeper {
    /// `steering` says whether the data plane steers already.
    pub(super) fn new(mut host: Host, steering: bool) -> Self {
        if steering {
            host.resume_steering();
        }
        Self {
            host,
            wanted: Wanted::default(),
            stage: Stage::default(),
            prepared: false,
            steering,
            slots: BTreeSet::new(),
            error: None,
            due: Instant::now(),
            end_error: None,
        }
    }

    /// Whether something has happened that [`Keeper::prepare`] should see to.
    pub(super) fn is_due(&self) -> bool {
        self.due <= Instant::now() || self.host.is_stale()
    }

    /// Makes what the configuration needs of the host. Whatever fails holds nothing else up, and is tried again.
    pub(super) fn prepare(&mut self, tables: &Tables, stage: Stage, dataplane: &mut impl Dataplane) {
        let wanted = if stage == Stage::Detached { Wanted::default() } else { wanted(tables) };
        if wanted == self.wanted && stage == self.stage && !self.is_due() {
            return;
        }
        (self.wanted, self.stage, self.prepared) = (wanted.clone(), stage, true);
        let mut errors = Vec::new();
        errors.extend(self.host.prepare(wanted).err().map(|error| error.to_string()));
        if self.host.steers() && !self.steering {
            match dataplane.set_steering(Some(self.host.mark())) {
                Ok(()) => self.steering = true,
                Err(error) => errors.push(error.to_string()),
            }
        }
        for relay in tables.relays.values() {
            for endpoint in relay.spec.endpoints() {
                // The embedded relay listens before the first packet can come.
                let listens = stage.attaches() || stage == Stage::Prepared && !delivery::is_embedded(relay);
                if !listens || !self.host.may_steer(endpoint) {
                    continue;
                }
                let Err(error) = self.adopt(Slot::new(relay.id, endpoint), endpoint, dataplane) else { continue };
                match relay.spec.delivery {
                    Delivery::Steer => errors.push(format!("relay {}: {error}", relay.spec.name)),
                    Delivery::Auto | Delivery::Rewrite => {
                        tracing::info!(relay = %relay.spec.name, error, "flows are rewritten, since they cannot be steered");
                    }
                }
            }
        }
        self.note((!errors.is_empty()).then(|| errors.join("; ")));
    }

    /// Whether flows can be steered to an endpoint of a relay.
    pub(super) fn is_ready(&self, relay: RelayId, endpoint: SocketAddr) -> bool {
        self.steering && self.slots.contains(&Slot::new(relay, endpoint)) && self.host.is_ready(relay, endpoint)
    }

    fn adopt(&mut self, slot: Slot, endpoint: SocketAddr, dataplane: &mut impl Dataplane) -> Result<(), String> {
        let socket = self.host.adopt(slot.relay, endpoint).map_err(|error| error.to_string())?;
        let Some(socket) = socket else { return Ok(()) };
        if let Err(error) = dataplane.set_socket(slot.relay, slot.family(), socket.as_fd()) {
            self.host.not_adopted(slot.relay, endpoint);
            return Err(error.to_string());
        }
        tracing::info!(relay = slot.relay, %endpoint, "flows can be steered");
        self.slots.insert(slot);
        Ok(())
    }

    /// Undoes what the configuration does not need any more. Only after the plan was carried out.
    pub(super) fn tidy(&mut self, tables: &Tables, dataplane: &mut impl Dataplane) {
        if !std::mem::take(&mut self.prepared) {
            return;
        }
        let mut errors = Vec::new();
        let used: BTreeSet<_> = tables
            .relays
            .values()
            .flat_map(|relay| relay.spec.endpoints().map(|endpoint| (Slot::new(relay.id, endpoint), endpoint)))
            .filter(|(_, endpoint)| self.host.may_steer(*endpoint))
            .map(|(slot, _)| slot)
            .collect();
        for slot in self.slots.extract_if(.., |slot| !used.contains(slot)) {
            errors.extend(dataplane.clear_socket(slot.relay, slot.family()).err().map(|error| error.to_string()));
        }
        if self.steering && !self.host.steers() {
            match dataplane.set_steering(None) {
                Ok(()) => self.steering = false,
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors.extend(self.host.tidy().err().map(|error| error.to_string()));
        if !errors.is_empty() {
            self.note(Some(errors.join("; ")));
        }
        let wait = if self.error.is_some() { limits::RETRY_MAX } else { limits::FULL_SYNC_INTERVAL };
        self.due = Instant::now() + wait;
    }

    /// Tells the host of a new flow.
    pub(super) fn arrived(&mut self, event: &EventRecord, now_s: u32) {
        let opened = matches!(event.reason, Reason::FlowNew | Reason::SteerNew);
        if let (true, IpAddr::V4(source)) = (opened, event.ends.client.ip()) {
            let result = self.host.arrived(source, event.ifindex, now_s);
            self.note_failure(result);
        }
    }

    /// Ends connections that their class does not want any more where their relay is on this host. One elsewhere, or where the kernel cannot do
    /// it, learns of it by the client's reset, which answers what the relay says next.
    pub(super) fn end(&mut self, unwanted: &[Connection]) {
        for connection in unwanted {
            let error = match self.host.end(*connection) {
                Ok(ended) => {
                    tracing::debug!(?connection, ended, "the class does not want it any more");
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = &error
                && self.end_error.as_ref() != Some(error)
            {
                tracing::warn!(error, "cannot end a relay's connection after a change of class");
            }
            self.end_error = error;
        }
    }

    pub(super) fn tick(&mut self, now_s: u32) {
        let result = self.host.tick(now_s);
        self.note_failure(result);
    }

    pub(super) fn status(&self) -> HostStatus {
        let (foreign_sources, counts) = self.host.foreign_sources();
        HostStatus { error: self.error.clone(), foreign_sources, counts: counts.clone() }
    }

    /// Leaves the host as it is: programs that go on without the daemon rely on it.
    pub(super) fn leave(&mut self) {
        self.host.leave();
    }

    /// What fails between comparisons is put right by the next one.
    fn note_failure(&mut self, result: Result<(), host::Error>) {
        if let Err(error) = result {
            self.note(Some(error.to_string()));
            self.due = Instant::now() + limits::RETRY_MAX;
        }
    }

    fn note(&mut self, error: Option<String>) {
        if self.error != error
            && let Some(error) = &error
        {
            tracing::error!(error, "the host is not as the configuration wants it; trying again");
        }
        self.error = error;
    }
}

/// A place for a relay's socket in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    relay: RelayId,
    v6: bool,
}

impl Slot {
    const fn new(relay: RelayId, endpoint: SocketAddr) -> Self {
        Self { relay, v6: endpoint.is_ipv6() }
    }

    const fn family(self) -> Family {
        if self.v6 { Family::V6 } else { Family::V4 }
    }
}

/// What the configuration needs of the host.
fn wanted(tables: &Tables) -> Wanted {
    let foreign = tables.interfaces.values().filter(|interface| interface.foreign_sources);
    let steered = tables.relays.values().filter(|relay| relay.spec.delivery != Delivery::Rewrite);
    Wanted {
        active: true,
        relays: tables.relays.values().flat_map(|relay| relay.spec.endpoints()).collect(),
        steered: steered.flat_map(|relay| relay.spec.endpoints()).collect(),
        foreign: foreign.map(|interface| interface.name.to_string()).collect(),
        gateways: tables
            .gateways
            .values()
            .filter_map(|gateway| match gateway.address {
                Address::Address(IpAddr::V4(address)) => Some(address),
                _ => None,
            })
            .collect(),
    }
}
