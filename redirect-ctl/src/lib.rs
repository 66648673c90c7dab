//! The control plane: the daemon `redirectd` and its CLI `redirect-ctl`, over one library so that tests call both in process.
//!
//! ```text
//! CLI -> api::client -> api -> store (revision n) -> reconcile::task: actual state -> reconcile::plan -> operations -> maps -> "applied n"
//! ```
//!
//! - [`desired`]: what the operator wants, in types that hold valid values only; [`config`]: the bootstrap file
//! - [`store`]: SQLite, one writer, a revision for every change; [`revision`]: what a request says about one; [`routes`]: keys of routes, and the relay's table of them
//! - [`configuration`]: all of it that the operator decides in one document, and what tells two of them apart
//! - [`reconcile`]: the pure planner and the one task that owns the kernel's state
//! - [`dataplane`]: the door to the kernel, and a model of it for tests
//! - [`health`]: asks relays whether they live
//! - [`host`]: routes, sysctls and relays' sockets of the host
//! - [`api`]: REST over the Unix socket, its types and its client; [`metrics`]: Prometheus
//! - [`access`]: who may do what there, and who did
//! - [`cli`] and [`commands`]: `redirect-ctl`; [`postfix`]: what it makes of the settings of a Postfix; [`doctor`]: and of this host; `redact`: what
//!   of it leaves the house
//! - [`relay`]: tells the embedded relay who a connection comes from and which gateway is its; [`smtp`]: how a class is treated there;
//!   [`clients`]: the certificates and users that this takes
//! - [`daemon`]: start order, tasks, stop; [`supervisor`]: what systemd is told of it; [`log`](mod@log): where its lines go; [`limits`]: every bound

pub mod access;
pub mod api;
pub mod cli;
pub mod clients;
pub mod commands;
pub mod config;
pub mod configuration;
pub mod daemon;
pub mod dataplane;
pub mod desired;
pub mod doctor;
pub mod health;
pub mod host;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod postfix;
pub mod reconcile;
mod redact;
pub mod relay;
pub mod revision;
pub mod routes;
pub mod smtp;
pub mod store;
pub mod subscribers;
pub mod supervisor;
