//! The door to the state: BPF maps in the kernel, ordinary maps in a test.

use crate::{
    address::{Address, V4, V6},
    flow::{Flow, Tuple},
    policy::{Class, Relay, Subscriber},
    reason::Reason,
};

/// Which flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Recycles its oldest entries when full.
    HalfOpen,
    /// Refuses new entries when full.
    Established,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    Exists,
    Full,
}

/// The state of one address family.
pub trait FamilyTables<A: Address> {
    /// The subscriber that `source` belongs to: the exact host, else the longest prefix.
    fn subscriber(&self, source: &A) -> Option<Subscriber>;

    /// Looks an entry up and lets `change` read and update it in place.
    fn flow<R>(&self, table: Table, key: &Tuple<A>, change: impl FnOnce(&mut Flow<A>) -> R) -> Option<R>;

    /// Inserts an entry where none is.
    fn insert(&self, table: Table, key: &Tuple<A>, flow: &Flow<A>) -> Result<(), InsertError>;

    fn remove(&self, table: Table, key: &Tuple<A>);
}

/// All state of the data plane.
pub trait Tables: FamilyTables<V4> + FamilyTables<V6> {
    fn class(&self, class: u16) -> Option<Class>;

    fn relay(&self, relay: u16) -> Option<Relay>;

    /// Whether any relay listens on this TCP port (network byte order): the filter that spares other replies a hash look-up.
    fn is_relay_port(&self, port: [u8; 2]) -> bool;

    /// Coarse time in seconds.
    fn now_s(&self) -> u32;

    /// Always 0, which only people know. Added to a number, it makes the verifier forget how the number came about, so that it walks what
    /// follows once, and not again for every way that leads there.
    fn zero(&self) -> usize;

    /// Takes one of the resets that this CPU may send in the second `now_s`; `false` where none is left.
    fn take_reset(&self, now_s: u32) -> bool;

    /// Counts a packet of `bytes` bytes.
    fn count(&self, class: u16, reason: Reason, bytes: u64);
}
