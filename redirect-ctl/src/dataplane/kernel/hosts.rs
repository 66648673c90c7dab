//! What the kernel keeps by subscriber ([`Host`]): connections that count as open, and locks.

use std::collections::BTreeMap;

use aya::Ebpf;
use redirect_common::{address::Host, maps::names};

use super::{
    super::Error,
    table::{Batch, Table},
};

/// Connections that subscribers have open. Packets count in one table; this module counts in the other what ended unseen and was collected,
/// so that nobody overwrites somebody else's count. The difference is what is open.
pub(super) struct Open {
    pub(super) counted: Table<Host, u32>,
    reaped: Table<Host, u32>,
    /// Whoever had nothing open in the sweep before, with both counts.
    settled: BTreeMap<Host, u32>,
    /// The same in this sweep, so far.
    settling: BTreeMap<Host, u32>,
}

impl Open {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            counted: Table::take(object, names::OPEN)?,
            reaped: Table::take(object, names::REAPED)?,
            settled: BTreeMap::new(),
            settling: BTreeMap::new(),
        })
    }

    /// Connections that a subscriber has open, as the programs reckon.
    pub(super) fn of(&self, host: Host) -> Result<u32, Error> {
        let counted = self.counted.get(&host)?.unwrap_or(0);
        let left = counted.wrapping_sub(self.reaped.get(&host)?.unwrap_or(0));
        Ok(if left > i32::MAX.cast_unsigned() { 0 } else { left })
    }

    /// Counts a connection that was collected while it counted as open.
    pub(super) fn reap(&self, host: Host) -> Result<(), Error> {
        let before = self.reaped.get(&host)?.unwrap_or(0);
        self.reaped.set(&host, &before.wrapping_add(1))
    }

    /// Forgets those of a batch who have nothing open and had nothing open a sweep ago, so that the tables do not fill up. A connection that
    /// opens between the look and the removal is not counted; whoever was idle for so long has one too many at most.
    pub(super) fn settle(&mut self, batch: &Batch<Host, u32>) -> Result<(), Error> {
        for (host, counted) in batch {
            if self.reaped.get(host)?.unwrap_or(0) != *counted {
                continue;
            }
            if self.settled.get(host) == Some(counted) {
                // The other way round it would look for a moment as if everything that was reaped were open.
                self.counted.remove(host)?;
                self.reaped.remove(host)?;
            } else {
                self.settling.insert(*host, *counted);
            }
        }
        Ok(())
    }

    pub(super) fn end_sweep(&mut self) {
        self.settled = std::mem::take(&mut self.settling);
    }
}

/// Locks that have run out are nobody's concern any more, and take places in a table that recycles.
pub(super) fn remove_expired(locks: &Table<Host, u32>, batch: &Batch<Host, u32>, now_s: u32) -> Result<(), Error> {
    for (host, until_s) in batch {
        if *until_s <= now_s {
            locks.remove(host)?;
        }
    }
    Ok(())
}
