//! Reading the ring buffer of events.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use redirect_common::{
    event::Event,
    maps::{Budget, names},
};

use super::{super::Error, system, take};
use crate::limits;

pub(super) struct Events {
    ring: RingBuf<MapData>,
    budget: PerCpuArray<MapData, Budget>,
}

impl Events {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self { ring: take(object, names::EVENTS)?, budget: take(object, names::EVENT_BUDGET)? })
    }

    /// What waits, as much as the ring buffer holds at most: packets go on filling it meanwhile.
    pub(super) fn read(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < limits::EVENTS_BATCH_MAX {
            let Some(item) = self.ring.next() else { break };
            events.extend(event(&item));
        }
        events
    }

    /// Of all CPUs together.
    pub(super) fn lost(&self) -> Result<u64, Error> {
        let budgets = self.budget.get(&0, 0).map_err(|error| system("read what events were lost", error))?;
        Ok(budgets.iter().map(|budget| budget.lost).sum())
    }
}

/// `None` for a record of another size, which our programs do not write.
fn event(bytes: &[u8]) -> Option<Event> {
    // SAFETY: as many bytes as the type has are there, and it consists of integers, for which any bytes are valid.
    (bytes.len() == size_of::<Event>()).then(|| unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
