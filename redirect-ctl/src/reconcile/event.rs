//! Events of the data plane as the daemon's tasks get them.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use redirect_common::{
    event::{Ends, Event},
    reason::Reason,
};

use crate::dataplane::ClassId;

/// A packet that mattered: a new flow, or one that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// When it was read, [`limits::EVENTS_INTERVAL`](crate::limits::EVENTS_INTERVAL) after the packet at most.
    pub time: SystemTime,
    /// Of the interface that the packet came in by, or went out of.
    pub ifindex: u32,
    /// Its name; `None` where it is gone.
    pub interface: Option<Arc<str>>,
    pub reason: Reason,
    /// 0 where the packet had no class.
    pub class: ClassId,
    pub ends: Ends,
}

/// What became of the data plane's events, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    pub read: u64,
    /// Not handed over by the kernel: more than a CPU may report within a second, or the ring buffer was full.
    pub lost: u64,
}

/// Gives a batch its time and names. Records of another version of the programs are left out.
pub(super) fn records(events: &[Event], time: SystemTime) -> impl Iterator<Item = EventRecord> {
    let mut names = HashMap::new();
    events.iter().filter_map(move |event| {
        let interface = names.entry(event.ifindex).or_insert_with(|| interface_name(event.ifindex)).clone();
        let reason = event.reason()?;
        Some(EventRecord { time, ifindex: event.ifindex, interface, reason, class: event.class, ends: event.ends() })
    })
}

fn interface_name(ifindex: u32) -> Option<Arc<str>> {
    nix::net::if_::if_indextoname(ifindex).ok().map(|name| name.to_string_lossy().into())
}
