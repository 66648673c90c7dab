//! Who may do what over the API: roles, who has them, and what is remembered of it.
//!
//! - `role`: the four roles; `operations`: the table of which of them may call which operation
//! - `peers`: roles of local users, by the credentials of their socket, and of client certificates
//! - `tokens`: bearer tokens, kept as hashes in a file beside the store. They are no configuration: going back to an earlier revision must
//!   not bring a revoked one back.
//! - `audit`: the file of who changed what, and who was refused
//! - `rates`: how often each may ask
//!
//! What is decided here is carried out at one place, `api::gate`.

pub mod audit;
mod operations;
mod peers;
pub(crate) mod rates;
mod role;
pub mod tokens;

use std::{fmt, net::SocketAddr, sync::Arc};

use ipnet::IpNet;

pub use self::{
    operations::{Confined, Rule, Rules, Size, describe, roles_of, unlisted},
    peers::{Error as PeersError, Peers, PeersSettings, Principal, group_id, groups_of},
    role::{AccessRole, Roles},
};

/// The other end of a connection, as the transport knows it.
#[derive(Clone, Debug)]
pub enum Peer {
    Unix { uid: u32, pid: Option<i32>, roles: Roles },
    Tcp { address: SocketAddr, certificate: Option<Arc<Named>> },
}

/// A client certificate that a trusted authority signed.
#[derive(Debug)]
pub struct Named {
    /// Its name that has a role, or else its first one.
    pub name: String,
    pub roles: Roles,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, pid: Some(pid), .. } => write!(f, "unix uid {uid} pid {pid}"),
            Self::Unix { uid, pid: None, .. } => write!(f, "unix uid {uid}"),
            Self::Tcp { address, .. } => address.fmt(f),
        }
    }
}

/// Who asks, once that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `uid:0`, `token:NAME` with the token's id, `certificate:NAME`.
    pub who: String,
    pub roles: Roles,
    /// Only subscribers inside this prefix.
    pub within: Option<IpNet>,
    /// The administrator of this machine, who could do anything without us: no rate holds that one up.
    pub is_local_admin: bool,
}
