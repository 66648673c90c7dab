//! The data plane as pure functions: `no_std`, no allocation, no BPF.
//!
//! The same source is compiled into the BPF object (`redirect-ebpf`) and into host tests. It sees the world through two doors only:
//! [`packet::Packet`] for the bytes of a frame and [`tables::Tables`] for the state. Read [`handle`] first: it is the packet's path from
//! top to bottom.
//!
//! ```text
//! frame -> parse -> flow known? -> edit                       one hash look-up
//!                   SYN?        -> class of the source -> action -> new flow -> edit
//! ```
//!
//! What the maps hold, in shapes shared with user space: [`subscriber`], [`policy`] (classes, relays), [`flow`] (tuples and flows), [`maps`]
//! (names, capacities, the memory they cost). Every way out is a [`reason::Reason`].
#![cfg_attr(not(any(test, feature = "testkit")), no_std)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "every cast is of a sum folded or a value scaled to fit; conversions that could panic have no place in BPF"
)]

pub mod address;
pub mod admit;
pub mod bucket;
pub mod checksum;
pub mod dry_run;
pub mod edit;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod handle;
pub mod icmp;
pub mod limit;
pub mod maps;
pub mod packet;
pub mod parse;
pub mod policy;
pub mod reason;
pub mod refuse;
pub mod subscriber;
pub mod tables;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod wire;

/// The TCP port whose flows we act on (RFC 5321 section 4.5.4.2).
pub const SMTP_PORT: u16 = 25;
