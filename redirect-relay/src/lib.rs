//! The SMTP relay (RFC 5321): takes the mail of redirected subscribers and hands it to their gateway while they wait.
//!
//! Cut-through: nothing is stored. The client's 250 for a message is the gateway's 250, passed on; the gateway gets the
//! final dot only after the client's exact CRLF "." CRLF. The relay knows nothing of packets or BPF: the caller tells it,
//! through [`Directory`], who the client is, where it meant to go and which gateway serves its class.
//!
//! Spoken to clients: HELO, EHLO, MAIL, RCPT, DATA, BDAT, RSET, NOOP, QUIT, VRFY (252) with PIPELINING (RFC 2920), SIZE
//! (RFC 1870), CHUNKING (RFC 3030), ENHANCEDSTATUSCODES (RFC 2034), LIMITS (RFC 9422), and as the class's [`Policy`] says
//! 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531) and DSN (RFC 3461). Spoken to gateways: the same without CHUNKING, as far as
//! the gateway offers it.
//!
//! | module | owns |
//! |---|---|
//! | `session` | one client's session: octets and events in, octets and actions out |
//! | `upstream` | the conversation with a gateway, likewise |
//! | `command`, `address`, `dsn` | the strict grammar of what clients say |
//! | `gateway`, `domain`, `route` | gateways and routes: what the operator says of them, and which one takes a message |
//! | `reply` | replies, both directions |
//! | `data`, `chunk` | the framing of a body: ended by a dot, or counted |
//! | `policy` | what a class's clients are offered |
//! | `trace` | the `Received:` field |
//! | `limits` | every bound and every wait |
//! | `driver` | sockets, timers, tasks: the only module that does IO |
//! | `relay`, `addrs`, `record`, `counters`, `buffer` | what the caller gives and gets; values |

mod address;
mod addrs;
mod buffer;
mod chunk;
mod command;
mod counters;
mod data;
mod domain;
mod driver;
mod dsn;
pub mod gateway;
mod limits;
mod policy;
mod record;
mod relay;
mod reply;
pub mod route;
#[cfg(feature = "schema")]
mod schema;
mod session;
mod trace;
mod upstream;

pub use crate::{
    addrs::{ClientAddr, GatewayAddr, OriginalDst},
    counters::Counters,
    domain::{Domain, InvalidDomain},
    driver::run,
    limits::{Limits, Timeouts},
    policy::{Extensions, Policy},
    relay::{Directory, Endpoint, Gateway, Identity, Relay, Settings},
};
