//! The lab of the end-to-end tests, the benchmarks and the demo: hosts as network namespaces, and the mail clients and
//! servers, captures and hand-written frames to fill their links with.
//!
//! Everything it makes is inside namespaces of unique names and in one temporary folder, and is removed however the process
//! ends (see [`Lab`]). It needs root, and says so.

pub mod bpf;
pub mod capture;
pub mod floor;
mod janitor;
pub mod kernel;
mod lab;
pub mod many;
mod netns;
pub mod postfix;
mod process;
mod product;
pub mod raw;
mod root;
mod scene;
pub mod server;
pub mod smtp;
pub mod stack;
pub mod story;
mod stretch;
pub mod tcp;
pub mod tun;

pub use janitor::remove_kept;
pub use lab::{CLIENT_MAC, Family, Lab, NUMBERED_SERVERS, ROUTER_MAC};
pub use netns::Namespace;
pub use process::{Daemon, Finished, wait_until};
pub use product::{Holdings, Pinboard, Product, binary, configuration, with_dataplane};
pub use root::unpacked;
pub use scene::{Mode, SILENCE, Scene};
pub use stretch::{Link, Stretch};
