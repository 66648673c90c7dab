//! Tables that can be read and not changed: what would become of a packet, without any of it happening.

use core::cell::Cell;

use crate::{
    address::{Address, Host},
    event::Event,
    flow::{Flow, Tuple},
    fragment::{Datagram, Fate},
    limit::Rate,
    policy::{Class, Relay},
    reason::Reason,
    tables::{FamilyTables, InsertError, Pulse, Socket, Table, Tables},
};

/// The tables behind it stay as they are: every change is made to a copy, and every entry finds room.
pub struct DryRun<T> {
    tables: T,
    /// The relay that was asked for last.
    relay: Cell<u16>,
    /// Connections of the packet's subscriber that would have ended.
    ended: Cell<u32>,
}

impl<T> DryRun<T> {
    #[inline(always)]
    pub const fn new(tables: T) -> Self {
        Self { tables, relay: Cell::new(0), ended: Cell::new(0) }
    }

    /// The tables behind it.
    pub fn into_inner(self) -> T {
        self.tables
    }

    /// Number of the relay that a new flow would go to; 0 where the packet opens none.
    #[inline(always)]
    pub const fn chosen_relay(&self) -> u16 {
        self.relay.get()
    }
}

impl<T: FamilyTables<A>, A: Address> FamilyTables<A> for DryRun<T> {
    #[inline(always)]
    fn class_number(&self, source: &A) -> u16 {
        self.tables.class_number(source)
    }

    #[inline(always)]
    fn flow<R>(&self, table: Table, key: &Tuple<A>, change: impl FnOnce(&mut Flow<A>) -> R) -> Option<R> {
        self.tables.copied_flow(table, key, change)
    }

    #[inline(always)]
    fn copied_flow<R>(&self, table: Table, key: &Tuple<A>, change: impl FnOnce(&mut Flow<A>) -> R) -> Option<R> {
        self.tables.copied_flow(table, key, change)
    }

    #[inline(always)]
    fn enter(&self, key: &Tuple<A>, replace: bool, _flow: impl FnOnce() -> Flow<A>) -> bool {
        replace || self.tables.flow(Table::HalfOpen, key, |_| ()).is_none()
    }

    #[inline(always)]
    fn establish(&self, key: &Tuple<A>, _flow: &Flow<A>) -> Result<(), InsertError> {
        match self.tables.flow(Table::Established, key, |_| ()) {
            Some(()) => Err(InsertError::Exists),
            None => Ok(()),
        }
    }

    #[inline(always)]
    fn remove(&self, _table: Table, _key: &Tuple<A>) {}

    #[inline(always)]
    fn fate(&self, datagram: &Datagram<A>) -> Option<Fate<A>> {
        self.tables.fate(datagram)
    }

    #[inline(always)]
    fn set_fate(&self, _datagram: &Datagram<A>, _fate: &Fate<A>) {}

    #[inline(always)]
    fn socket(&self, tuple: &Tuple<A>) -> Socket {
        self.tables.socket(tuple)
    }
}

impl<T: Tables> Tables for DryRun<T> {
    #[inline(always)]
    fn class(&self, class: u16) -> Option<&Class> {
        self.tables.class(class)
    }

    #[inline(always)]
    fn relay(&self, relay: u16) -> Option<&Relay> {
        self.relay.set(relay);
        self.tables.relay(relay)
    }

    #[inline(always)]
    fn is_relay_port(&self, port: [u8; 2]) -> bool {
        self.tables.is_relay_port(port)
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        self.tables.now_s()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.tables.now_ns()
    }

    #[inline(always)]
    fn is_daemon_down(&self) -> bool {
        self.tables.is_daemon_down()
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        self.tables.epoch()
    }

    #[inline(always)]
    fn pulse(&self) -> Pulse {
        self.tables.pulse()
    }

    #[inline(always)]
    fn is_steering(&self) -> bool {
        self.tables.is_steering()
    }

    #[inline(always)]
    fn zero(&self) -> usize {
        self.tables.zero()
    }

    #[inline(always)]
    fn take_reset(&self, _now_s: u32) -> bool {
        true
    }

    #[inline(always)]
    fn rate<R>(&self, host: Host, change: impl FnOnce(&mut Rate) -> R) -> Option<R> {
        let mut copy = self.tables.peek_rate(host);
        Some(change(&mut copy))
    }

    #[inline(always)]
    fn peek_rate(&self, host: Host) -> Rate {
        self.tables.peek_rate(host)
    }

    #[inline(always)]
    fn open(&self, host: Host) -> u32 {
        self.tables.open(host).saturating_sub(self.ended.get())
    }

    #[inline(always)]
    fn add_open(&self, _host: Host) -> bool {
        true
    }

    #[inline(always)]
    fn remove_open(&self, _host: Host) {
        self.ended.set(self.ended.get() + 1);
    }

    #[inline(always)]
    fn locked_until_s(&self, host: Host) -> Option<u32> {
        self.tables.locked_until_s(host)
    }

    #[inline(always)]
    fn lock(&self, _host: Host, _until_s: u32) {}

    #[inline(always)]
    fn take_event(&self, _now_s: u32) -> bool {
        false
    }

    #[inline(always)]
    fn report(&self, _event: &Event) {}

    #[inline(always)]
    fn count(&self, _ifindex: u32, _class: u16, _reason: Reason, _bytes: u64) {}
}
