//! Makes the kernel hold what the store wants.
//!
//! ```text
//! store (revision n, touched keys) -> task: desired from the store, actual from the kernel -> plan -> operations -> "applied n"
//! ```
//!
//! [`plan`] and [`pool`] think and touch nothing; [`task`] acts and is the only owner of the data plane, `keeper` looks after the host beside it. Changes come with the keys that they
//! touched, so that one change among a million subscribers reads and writes a handful of entries; a full comparison happens at the start,
//! after an error and when idle, so that nothing missed stays missed.

mod delivery;
pub mod event;
mod keeper;
pub mod plan;
pub mod pool;
pub mod task;

pub use keeper::HostStatus;
