//! The door to the kernel: what the reconciler may ask of the data plane, and the words in which it answers.
//!
//! Two implementations stand behind [`Dataplane`]: the kernel's maps and programs, and [`model`], which tests run on. The trait knows
//! nothing of desired state; it reads what is and does one [`Operation`] at a time. Only `reconcile::task` holds one.

pub mod kernel;
pub mod model;

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use ipnet::IpNet;
use redirect_common::{
    address::Host,
    event::Event,
    parse::Family,
    policy::{Class, Relay},
    reason::Reason,
};

/// Number of a class in the kernel, `1..CLASSES_MAX`.
pub type ClassId = u16;
/// Number of a relay in the kernel, `1..RELAYS_MAX`.
pub type RelayId = u16;

/// The state that the kernel holds, and the only way to change it.
///
/// Calls block (they are system calls), so one thread owns the implementation. Reads tell what *is*, never what was asked for earlier.
pub trait Dataplane: Send {
    fn relays(&self) -> Result<BTreeMap<RelayId, Relay>, Error>;
    fn classes(&self) -> Result<BTreeMap<ClassId, Class>, Error>;
    /// Class 0 stands for an entry that a change of many has left half-way; no desired state has it.
    fn subscribers(&self) -> Result<BTreeMap<IpNet, ClassId>, Error>;
    fn subscriber(&self, prefix: &IpNet) -> Result<Option<ClassId>, Error>;
    fn interfaces(&self) -> BTreeMap<String, Attachment>;
    fn revision(&self) -> Result<u64, Error>;

    fn apply(&mut self, operation: &Operation) -> Result<(), Error>;

    /// Puts a relay's listening socket where steered connections of the family find it; in place of another one, if there is one.
    fn set_socket(&mut self, relay: RelayId, family: Family, socket: BorrowedFd<'_>) -> Result<(), Error>;

    /// Takes it away; that it is gone already is no error.
    fn clear_socket(&mut self, relay: RelayId, family: Family) -> Result<(), Error>;

    /// Steers from here on where relays say so, or not any more.
    fn set_steering(&mut self, mark: Option<Mark>) -> Result<(), Error>;

    /// Advances the coarse clock of the packet path to `now_s` (`CLOCK_MONOTONIC` seconds).
    fn tick(&mut self, now_s: u32) -> Result<(), Error>;

    /// Goes on with the sweep for flows that are idle or that their class does not want any more; looks at `budget` entries at most.
    fn collect(&mut self, now_s: u32, budget: usize) -> Result<Collected, Error>;

    /// Packets and bytes by reason, and by class or interface; rows of zeros are left out.
    fn counters(&self) -> Result<Counters, Error>;

    /// What would become of a SYN. Nothing else comes of the question.
    fn explain(&self, probe: &Probe) -> Result<Explanation, Error>;

    /// What the maps cost, by their names.
    fn memory(&self) -> Result<Vec<MapMemory>, Error>;

    fn flows(&self) -> Result<Vec<FlowRecord>, Error>;

    /// Events that wait to be read, [`limits::EVENTS_BATCH_MAX`](crate::limits::EVENTS_BATCH_MAX) at most. Each is handed out once.
    fn events(&mut self) -> Vec<Event>;

    /// Events since the start that were not handed over: over the budget, or the ring buffer was full.
    fn events_lost(&self) -> Result<u64, Error>;

    /// Until when subscribers are locked, in `CLOCK_MONOTONIC` seconds; locks that have run out may be among them.
    fn locks(&self) -> Result<BTreeMap<Host, u32>, Error>;

    fn set_lock(&mut self, host: Host, until_s: u32) -> Result<(), Error>;

    /// Until when the subscriber was locked; `None` where it was not.
    fn remove_lock(&mut self, host: Host) -> Result<Option<u32>, Error>;

    /// A read-only view of the flow table for the relay's tasks.
    fn reader(&self) -> Arc<dyn FlowReader>;

    /// Tries the programs on packets of their own; then has them take the place of those that a daemon before this one left at work, all of
    /// them or none. To be called once, when the tables hold what the new programs need.
    fn take_over(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether programs stay at work should this process end as things are.
    fn outlives(&self) -> bool {
        false
    }

    /// Whether flows are steered, be it by a daemon before this one.
    fn is_steering(&self) -> Result<bool, Error> {
        Ok(false)
    }
}

/// What a packet that is steered is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub value: u32,
    /// The bits of a packet's mark that `value` replaces.
    pub mask: u32,
}

/// Looks up redirected flows while another thread owns the data plane.
pub trait FlowReader: Send + Sync {
    /// Who stands behind the connection that a relay, on whatever host, accepted from `peer` on `local`; `None` where no such flow is known.
    fn original(&self, peer: SocketAddr, local: SocketAddr) -> Result<Option<Original>, Error>;
}

/// Both ends of a redirected flow as the subscriber knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    pub client: SocketAddr,
    /// The server that the subscriber dialled.
    pub server: SocketAddr,
    pub class: ClassId,
}

/// What a subscriber's class becomes; `None` where it is to be no subscriber any more.
pub type SubscriberChange = (IpNet, Option<ClassId>);

/// One step from the actual to the desired state: one map write, one attachment, or a part of a change of many subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    SetRelay {
        id: RelayId,
        relay: Relay,
    },
    ClearRelay {
        id: RelayId,
    },
    SetClass {
        id: ClassId,
        class: Class,
    },
    ClearClass {
        id: ClassId,
    },
    SetSubscriber {
        prefix: IpNet,
        class: ClassId,
    },
    RemoveSubscriber {
        prefix: IpNet,
    },
    /// Writes changes where no packet looks: into the column that does not count.
    StageSubscribers(Vec<SubscriberChange>),
    /// Has the other column count: everything staged holds from one packet to the next. Each subscriber that was not staged has one class in
    /// both.
    SwitchSubscribers,
    /// Makes both columns say the same of changes that hold.
    SettleSubscribers(Vec<SubscriberChange>),
    Attach {
        name: String,
        role: Role,
        hook: Hook,
    },
    Detach {
        name: String,
    },
    /// Says which revision of the configuration the maps hold.
    SetRevision(u64),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetRelay { id, .. } => write!(f, "set relay {id}"),
            Self::ClearRelay { id } => write!(f, "clear relay {id}"),
            Self::SetClass { id, .. } => write!(f, "set class {id}"),
            Self::ClearClass { id } => write!(f, "clear class {id}"),
            Self::SetSubscriber { prefix, .. } => write!(f, "set subscriber {prefix}"),
            Self::RemoveSubscriber { prefix } => write!(f, "remove subscriber {prefix}"),
            Self::StageSubscribers(changes) => write!(f, "stage {} subscribers", changes.len()),
            Self::SwitchSubscribers => f.write_str("switch subscribers"),
            Self::SettleSubscribers(changes) => write!(f, "settle {} subscribers", changes.len()),
            Self::Attach { name, hook, .. } => write!(f, "attach to {name} (hook {hook})"),
            Self::Detach { name } => write!(f, "detach from {name}"),
            Self::SetRevision(revision) => write!(f, "set revision {revision}"),
        }
    }
}

/// A word of the configuration: the enum, its spelling and the list of spellings for messages come from one table.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::dataplane::UnknownWord;

            fn from_str(word: &str) -> Result<Self, $crate::dataplane::UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::dataplane::UnknownWord { word: word.to_owned(), known: Self::WORDS }),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                word.parse().map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(Self::WORDS.iter().copied()))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

/// A word that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is none of {}", .known.join(", "))]
pub struct UnknownWord {
    pub word: String,
    pub known: &'static [&'static str],
}

words! {
    /// What an interface is to us.
    Role {
        /// Subscribers' packets come in here.
        Subscriber = "subscriber",
    }
}

words! {
    /// Where the programs are wanted.
    Hook {
        /// Native XDP on a physical driver that supports it, tc elsewhere.
        Auto = "auto",
        Xdp = "xdp",
        /// tcx, or clsact below Linux 6.6.
        Tc = "tc",
    }
}

words! {
    /// Where the programs are.
    Mode {
        Xdp = "xdp",
        Tcx = "tcx",
        Clsact = "clsact",
    }
}

words! {
    /// What becomes of the programs when the daemon is told to stop. A daemon that dies keeps them either way.
    OnExit {
        /// They go on by their tables, and the next daemon takes them over.
        Keep = "keep",
        /// They are detached.
        Detach = "detach",
    }
}

words! {
    /// Where a flow stands in the life of a TCP connection.
    FlowState {
        HalfOpen = "half_open",
        Established = "established",
        Closing = "closing",
        Closed = "closed",
    }
}

words! {
    /// How a flow reaches its relay.
    FlowDelivery {
        /// Address and port of its packets become the relay's.
        Rewrite = "rewrite",
        /// Its packets go to the relay's socket as they are.
        Steer = "steer",
    }
}

pub(crate) use words;

/// An interface that carries our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub role: Role,
    /// The hook that was asked for.
    pub hook: Hook,
    /// The hook that it became.
    pub mode: Mode,
    /// It stays attached while no daemon runs.
    pub restart_safe: bool,
}

/// What a call of [`Dataplane::collect`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub examined: usize,
    pub removed: usize,
    /// Those whose class does not want them any more, as their relays know them. Once for each change of the policy, and as long as their client
    /// has not fallen silent.
    pub unwanted: Vec<Connection>,
    /// Set when this call finished a sweep over every table.
    pub sweep_done: Option<FlowCounts>,
}

/// A redirected connection as its relay's socket knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Redirected flows that a sweep met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    pub half_open: u64,
    pub established: u64,
    /// The established ones by the endpoint that they go to; those that are steered go to none.
    pub by_relay: BTreeMap<SocketAddr, u64>,
}

/// What packets were counted as, once by class and once by interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub classes: Vec<Counter>,
    pub interfaces: Vec<InterfaceCounter>,
}

/// A row of the counters by interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceCounter {
    /// `None` for those that are not attached any more, or have no counters of their own.
    pub interface: Option<String>,
    pub reason: Reason,
    pub packets: u64,
    pub bytes: u64,
}

/// A SYN to ask about. Both ends are of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Where it would come in; the first that is attached where it is not given.
    pub interface: Option<String>,
}

/// What would become of a SYN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub reason: Reason,
    /// 0 where none decided.
    pub class: ClassId,
    /// That a new flow would go to; 0 where it opens none.
    pub relay: RelayId,
    /// The client's port as the relay would see it.
    pub mapped_port: u16,
    /// Where the SYN would go; the server where it is not rewritten.
    pub endpoint: SocketAddr,
    /// The longest prefix of the client.
    pub subscriber: Option<(IpNet, ClassId)>,
    /// Connections that the subscriber has open, as far as they are counted.
    pub open: u32,
    /// Until when the subscriber is locked, in `CLOCK_MONOTONIC` seconds; may have run out.
    pub locked_until_s: Option<u32>,
    /// Where the question took it to come in; `None` where nothing is attached.
    pub interface: Option<(String, Mode)>,
    /// Of the program that ran: the kernel's hash of its instructions.
    pub program_tag: u64,
    /// Of the configuration that was asked.
    pub revision: u64,
}

/// What a map costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapMemory {
    pub name: String,
    /// Entries that it can hold; bytes, for a ring buffer.
    pub capacity: u64,
    pub bytes: u64,
}

/// A row of the counters by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// 0 where the packet had no class.
    pub class: ClassId,
    pub reason: Reason,
    pub packets: u64,
    pub bytes: u64,
}

/// A redirected flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// `None` where the flow is steered.
    pub relay: Option<SocketAddr>,
    /// The client's port as the relay sees it.
    pub mapped_port: u16,
    pub class: ClassId,
    pub state: FlowState,
    pub delivery: FlowDelivery,
    /// `CLOCK_MONOTONIC` seconds.
    pub created_s: u32,
    /// `CLOCK_MONOTONIC` seconds.
    pub seen_s: u32,
}

/// Why the data plane refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface may appear later; the reconciler tries again.
    #[error("interface {name} does not exist")]
    NoSuchInterface { name: String },
    /// The interface is there and does not take our programs as wanted.
    #[error("interface {name}: {reason}")]
    Interface { name: String, reason: String },
    /// A table is full: the remedy is the named key of the configuration.
    #[error("{table} is full; raise {key} in the configuration file and restart redirectd")]
    Full { table: &'static str, key: &'static str },
    /// Programs or maps could not be loaded.
    #[error("cannot load the programs: {reason}")]
    Load { reason: String },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
    /// The model was told to fail.
    #[error("injected fault: {what}")]
    Injected { what: String },
}
