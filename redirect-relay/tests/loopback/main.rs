//! The relay on loopback: real sockets, a client that each test speaks for, a gateway that follows a script.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod bridge;
mod delivery;
mod faults;
mod gateways;
mod security;
mod sessions;
mod support;
