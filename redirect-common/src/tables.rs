//! The door to the state: BPF maps in the kernel, ordinary maps in a test.

use crate::{
    address::{Address, Host, V4, V6},
    event::Event,
    flow::{Flow, Tuple},
    fragment::{Datagram, Fate},
    limit::Rate,
    policy::{Class, Relay},
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
    /// The number of the class of the subscriber that `source` belongs to: the exact host, else the longest prefix. 0 for none; the class may not
    /// be there.
    fn class_number(&self, source: &A) -> u16;

    /// Looks an entry up and lets `change` read and update it in place.
    fn flow<R>(&self, table: Table, key: &Tuple<A>, change: impl FnOnce(&mut Flow<A>) -> R) -> Option<R>;

    /// The same with a copy of the entry, which stays as it is.
    fn copied_flow<R>(&self, table: Table, key: &Tuple<A>, change: impl FnOnce(&mut Flow<A>) -> R) -> Option<R>;

    /// Enters a half-open flow; where one is, only to `replace` it. Says whether it did: there is room, because the table recycles its oldest
    /// entries.
    fn enter(&self, key: &Tuple<A>, replace: bool, flow: impl FnOnce() -> Flow<A>) -> bool;

    /// Inserts a copy of a half-open flow among the established ones where none is.
    fn establish(&self, key: &Tuple<A>, flow: &Flow<A>) -> Result<(), InsertError>;

    fn remove(&self, table: Table, key: &Tuple<A>);

    /// What became of the first fragment of a datagram.
    fn fate(&self, datagram: &Datagram<A>) -> Option<Fate<A>>;

    /// Remembers it for the fragments that follow. The table recycles its oldest entries.
    fn set_fate(&self, datagram: &Datagram<A>, fate: &Fate<A>);

    /// Whether a socket of this host has the connection: the segment's destination is its local end.
    fn socket(&self, tuple: &Tuple<A>) -> Socket;
}

/// What this host's TCP knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing, or no more than a listener.
    None,
    /// A SYN was answered, or the connection is over and waits: the kernel alone can judge the segment.
    Waiting,
    Connected,
}

/// [`Tables::now_s`], [`Tables::epoch`] and [`Tables::zero`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    pub now_s: u32,
    pub epoch: u32,
    pub zero: usize,
}

/// All state of the data plane.
pub trait Tables: FamilyTables<V4> + FamilyTables<V6> {
    fn class(&self, class: u16) -> Option<&Class>;

    fn relay(&self, relay: u16) -> Option<&Relay>;

    /// Whether any relay listens on this TCP port (network byte order): the filter that spares other replies a hash look-up.
    fn is_relay_port(&self, port: [u8; 2]) -> bool;

    /// Coarse time in seconds.
    fn now_s(&self) -> u32;

    /// What every segment of a flow needs, by one look-up.
    fn pulse(&self) -> Pulse {
        Pulse { now_s: self.now_s(), epoch: self.epoch(), zero: self.zero() }
    }

    /// Time since boot in nanoseconds. A clock call, which costs more than a hash look-up: for new connections under a limit only.
    fn now_ns(&self) -> u64;

    /// Whether no daemon looks after the relays. A clock call: for new connections only.
    fn is_daemon_down(&self) -> bool;

    /// Tells states of the policy apart: another number means that a live flow has to be judged anew.
    fn epoch(&self) -> u32;

    /// Whether packets with our mark reach the relays' sockets.
    fn is_steering(&self) -> bool;

    /// Always 0, which only people know. Added to a number, it makes the verifier forget how the number came about, so that it walks what
    /// follows once, and not again for every way that leads there.
    fn zero(&self) -> usize;

    /// Takes one of the resets that this CPU may send in the second `now_s`; `false` where none is left.
    fn take_reset(&self, now_s: u32) -> bool;

    /// Looks up what is known of a subscriber's pace, from nothing if need be, and lets `change` update it. `None` where there is no room.
    fn rate<R>(&self, host: Host, change: impl FnOnce(&mut Rate) -> R) -> Option<R>;

    /// The same to read; nothing is entered.
    fn peek_rate(&self, host: Host) -> Rate;

    /// Connections of a subscriber that count as open.
    fn open(&self, host: Host) -> u32;

    /// Counts a connection more; `false` where there is no room to count for this subscriber.
    fn add_open(&self, host: Host) -> bool;

    /// Counts one less.
    fn remove_open(&self, host: Host);

    /// Until when the subscriber is locked, in seconds of the coarse clock.
    fn locked_until_s(&self, host: Host) -> Option<u32>;

    fn lock(&self, host: Host, until_s: u32);

    /// Takes one of the events that this CPU may report in the second `now_s`; `false` where none is left: then it counts the loss.
    fn take_event(&self, now_s: u32) -> bool;

    /// Tells user space.
    fn report(&self, event: &Event);

    /// Counts a packet of `bytes` bytes of the interface `ifindex`.
    fn count(&self, ifindex: u32, class: u16, reason: Reason, bytes: u64);
}
