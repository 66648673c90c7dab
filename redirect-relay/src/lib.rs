//! The SMTP relay (RFC 5321): takes the mail of redirected subscribers and hands it to their gateway while they wait.
//!
//! Cut-through: nothing is stored. The client's 250 for a message is the gateway's 250, passed on; the gateway gets the
//! final dot only after the client's exact CRLF "." CRLF. The relay knows nothing of packets or BPF: the caller tells it,
//! through [`Directory`], who the client is, where it meant to go, and where mail goes: gateways, groups of them and routes.
//!
//! Spoken to clients: HELO, EHLO, MAIL, RCPT, DATA, BDAT, RSET, NOOP, QUIT, VRFY (252) with PIPELINING (RFC 2920), SIZE
//! (RFC 1870), CHUNKING (RFC 3030), ENHANCEDSTATUSCODES (RFC 2034), LIMITS (RFC 9422); where every gateway of the class does as
//! much, 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531) and DSN (RFC 3461); and as its [`Policy`] says STARTTLS (RFC 3207) and AUTH (RFC 4954). Spoken to gateways: the same without CHUNKING, as far as
//! the gateway offers it; there AUTH is PLAIN, LOGIN or SCRAM-SHA-256, and XCLIENT and the PROXY protocol come on top.
//!
//! | module | owns |
//! |---|---|
//! | `session` | one client's session: octets and events in, octets and actions out |
//! | `upstream` | the conversation with a gateway from MAIL on, likewise |
//! | `command`, `address`, `dsn` | the strict grammar of what clients say |
//! | `gateway` | gateways: what the operator says of them, how a connection to one begins, which of them is used |
//! | `route`, `domain` | which gateway is for which recipient |
//! | `reply` | replies, both directions |
//! | `data`, `chunk`, `mend` | the framing of a body: ended by a dot, or counted; bare LFs made into line ends |
//! | `policy`, `auth`, `certificate`, `x509` | what a class's clients are offered; who they are, and TLS with them |
//! | `quota`, `tarpit` | how much each may do, and how who does more is slowed down |
//! | `record`, `tally`, `watch` | what is put on record, counted, and shown to who looks on |
//! | `splice` | sessions that are passed through to the server dialled |
//! | `trace` | the `Received:` field |
//! | `limits` | every bound and every wait |
//! | `driver`, `client`, `stream`, `signals` | sockets, timers, tasks: with `splice` and `gateway` (`dial`, `fleet`, `resolve`, `tend`, `verify`) all IO |
//! | `relay`, `addrs`, `record`, `counters`, `buffer` | what the caller gives and gets; values |

mod address;
mod addrs;
mod auth;
mod buffer;
mod certificate;
mod chunk;
mod client;
mod command;
mod counters;
mod data;
mod domain;
mod driver;
mod dsn;
pub mod gateway;
mod limits;
mod mend;
mod policy;
#[cfg(any(test, feature = "testkit"))]
#[doc(hidden)]
pub mod properties;
mod quota;
mod record;
mod relay;
mod reply;
pub mod route;
#[cfg(feature = "schema")]
mod schema;
mod session;
mod signals;
mod splice;
mod stream;
mod tally;
mod tarpit;
mod trace;
mod upstream;
mod watch;
mod x509;

pub use crate::{
    addrs::{ClientAddr, OriginalDst},
    auth::{Users, Verifier, VerifierInvalid},
    certificate::{Certificate, CertificateInvalid},
    counters::Counters,
    domain::{Domain, InvalidDomain},
    driver::run,
    gateway::tend,
    limits::{Limits, Timeouts},
    policy::{Access, Auth, LineEndings, Lock, Policy, Tls},
    quota::{Bucket, Kind, Quota, Rate},
    record::{Cause, GatewayReplies, Outcome, Record, Status, Times},
    relay::{Directory, Identity, Relay, Settings},
    reply::ReplyError,
    tally::{Pair, Tally},
    tarpit::Tarpit,
    watch::{Line, Seen, Watcher, Who},
};
