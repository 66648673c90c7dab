//! What the daemon changes on its host beside its own programs and maps: rules and routes, settings of interfaces, options of a relay's
//! sockets. Everything is put back at the stop, and what a crash left is put back at the next start.
//!
//! - [`routing`]: policy rules and routes, by rtnetlink
//! - [`sysctl`]: settings of interfaces, with a note of what was found
//! - [`adopt`]: the sockets of a relay that flows are steered to
//! - [`foreign`]: which foreign sources get a route, and for how long; pure

pub mod adopt;
pub mod foreign;
mod netlink;
pub mod routing;
pub mod sysctl;
