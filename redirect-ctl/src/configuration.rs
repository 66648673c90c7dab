//! The configuration as a whole: everything that the operator decides and that the store holds, without the subscribers and without what the
//! daemon's own file owns (the embedded relay, its interfaces).
//!
//! A [`Document`] is what goes over the wire and into files. It never shows a secret, and where it gives none, the known one stays. A
//! [`Configuration`] is the same with its secrets, in types that hold valid values only. [`Document::resolve`] leads from one to the other, and
//! finds everything that is wrong; [`Diff`] tells two of them apart. All of this is pure; the store is in [`crate::store`].

mod diff;
mod document;
pub mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use redirect_relay::{
    Domain, Verifier,
    gateway::{Gateway, Group, Secret},
    route::{ManagedDomain, Route},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    diff::{Diff, ResourceChange, ResourceChanges},
    document::{Document, DocumentUser, Purpose},
};
use crate::{
    clients::{CertificateSpec, Username},
    dataplane::words,
    desired::{ClassSpec, Interface, InterfaceName, Name, RelaySpec, Time},
    routes::RouteKey,
};

/// See the module. Every reference in it is to something in it, to the embedded relay apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    pub certificates: BTreeMap<Name, CertificateSpec>,
    pub users: BTreeMap<Username, Verifier>,
    pub interfaces: BTreeMap<InterfaceName, Interface>,
    pub relays: BTreeMap<Name, RelaySpec>,
    pub gateways: BTreeMap<Name, Gateway>,
    pub groups: BTreeMap<Name, Group>,
    pub classes: BTreeMap<Name, ClassSpec>,
    pub routes: BTreeMap<RoutePlace, Route>,
    pub managed_domains: BTreeMap<Domain, ManagedDomain>,
}

/// The order of routes, as that of the lists of the API: place, then key; see [`RouteKey::place`].
pub type RoutePlace = (String, String);

pub(crate) fn route_place(key: &RouteKey) -> RoutePlace {
    (key.place(), key.to_string())
}

/// What a document leaves out: secrets, and what the file owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub certificates: BTreeMap<Name, CertificateSpec>,
    /// User and password of each gateway that has an account.
    pub accounts: BTreeMap<Name, (String, Secret)>,
    pub users: BTreeMap<Username, Verifier>,
    pub file_interfaces: BTreeSet<InterfaceName>,
    /// Of the embedded relay.
    pub own_endpoints: Vec<SocketAddr>,
}

impl Known {
    /// The secrets of `configuration`.
    pub fn of(configuration: &Configuration) -> Self {
        let account = |gateway: &Gateway| {
            let account = gateway.account.as_ref()?;
            Some((gateway.name.clone(), (account.username.clone(), account.password.clone())))
        };
        Self {
            certificates: configuration.certificates.clone(),
            accounts: configuration.gateways.values().filter_map(account).collect(),
            users: configuration.users.clone(),
            ..Self::default()
        }
    }
}

words! {
    /// What became of a commit.
    CommitState {
        /// It holds until something else is committed.
        Confirmed = "confirmed",
        /// It is taken back at its deadline, unless it is confirmed before.
        Pending = "pending",
        /// It was taken back.
        Reverted = "reverted",
    }
}

/// A state of the configuration in the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Commit {
    /// How far back it is; 0 is the last one.
    pub back: u32,
    /// That it made.
    pub revision: u64,
    pub time: Time,
    /// A name, and in parentheses how redirectd knows who it was. Null where single changes made the state; `redirectd` where a commit was
    /// not confirmed in time.
    pub author: Option<String>,
    pub comment: String,
    pub state: CommitState,
    /// Of a pending one.
    pub deadline: Option<Time>,
    /// Resources, beside the state before it in the history.
    pub added: u64,
    pub changed: u64,
    pub removed: u64,
    /// Of the document as JSON.
    pub bytes: u64,
}

/// A commit that is taken back at `deadline`, unless it is confirmed before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingCommit {
    pub revision: u64,
    pub deadline: Time,
    pub author: Option<String>,
    pub comment: String,
}

/// Where the configuration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// That changed the configuration last; subscribers' changes leave it as it is.
    pub revision: u64,
    pub pending: Option<PendingCommit>,
}

impl Configuration {
    /// Takes a class of `other` over, with whatever it names and is missing here.
    pub(crate) fn keep_class(&mut self, class: &ClassSpec, other: &Self) {
        let relays = class.relays.iter().filter_map(|relay| other.relays.get_key_value(&relay.name));
        for (name, relay) in relays {
            self.relays.entry(name.clone()).or_insert_with(|| relay.clone());
        }
        if let Some(name) = class.gateway.as_ref().filter(|name| !self.has_target(name)) {
            let group = other.groups.get(name);
            let members = group.into_iter().flat_map(|group| group.members.iter().map(|member| &member.gateway));
            for gateway in members.chain([name]).filter_map(|name| other.gateways.get(name)) {
                self.gateways.entry(gateway.name.clone()).or_insert_with(|| gateway.clone());
            }
            self.groups.extend(group.map(|group| (name.clone(), group.clone())));
        }
        if let Some((name, certificate)) =
            class.smtp.certificate.as_ref().and_then(|name| other.certificates.get_key_value(name))
        {
            self.certificates.entry(name.clone()).or_insert_with(|| certificate.clone());
        }
        self.classes.insert(class.name.clone(), class.clone());
    }

    fn has_target(&self, name: &Name) -> bool {
        self.gateways.contains_key(name) || self.groups.contains_key(name)
    }
}
