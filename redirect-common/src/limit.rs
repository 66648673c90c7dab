//! What one subscriber may do: new connections per second, and a lock for who does not stop.
//!
//! A subscriber is counted by [`Address::host`](crate::address::Address::host): an IPv4 address, an IPv6 /64. Everything here runs for SYNs
//! only. Packets of one subscriber may be on several CPUs at once, and nothing locks: CPUs that read the same word all let their SYN pass, and
//! the last one's store counts. So in `t` seconds `n` CPUs let at most `n * (burst + rate * t)` SYNs pass, and never fewer than one CPU would;
//! this holds as long as no CPU is held up between its load and its store, a few instructions apart and not to be preempted, while another
//! decides two SYNs.

use crate::policy::Class;

/// Refused SYNs are counted within windows of this many seconds.
pub const LOCK_WINDOW_S: u32 = 60;

/// What is known of one subscriber's pace: the value of `RATES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// When the next connection is due at the pace of the class, in nanoseconds since boot.
    pub due_ns: u64,
    /// When the window began in which refusals are counted, in seconds since boot.
    pub window_s: u32,
    pub refused: u32,
}

const _: () = assert!(size_of::<Rate>() == 16);

impl Rate {
    /// Lets a connection pass or not: the generic cell rate algorithm (ITU-T I.371, virtual scheduling), in one word.
    #[inline(always)]
    pub fn take(&mut self, class: &Class, now_ns: u64) -> bool {
        let due_ns = if self.due_ns > now_ns { self.due_ns } else { now_ns };
        if due_ns - now_ns > class.tolerance_ns() {
            return false;
        }
        self.due_ns = due_ns + class.interval_ns();
        true
    }

    /// Counts a refusal; whether it is the one that locks the subscriber.
    #[inline(always)]
    pub fn refuse(&mut self, class: &Class, now_s: u32) -> bool {
        if now_s.wrapping_sub(self.window_s) >= LOCK_WINDOW_S {
            self.window_s = now_s;
            self.refused = 0;
        }
        self.refused += 1;
        class.lock_after() != 0 && self.refused >= class.lock_after()
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) integers, size asserted above to leave no padding, every bit pattern valid.
    unsafe impl aya::Pod for super::Rate {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, Fallback, Limits};

    const SECOND_NS: u64 = 1_000_000_000;

    fn class(limits: Limits) -> Class {
        Class::new(Action::Redirect, Fallback::Pass, 1).with_limits(limits)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let class = class(Limits { rate: 2, burst: 5, ..Limits::default() });
        let mut rate = Rate::default();
        let start_ns = 77 * SECOND_NS;
        let passed = |rate: &mut Rate, now_ns, tries| (0..tries).filter(|_| rate.take(&class, now_ns)).count();
        assert_eq!(passed(&mut rate, start_ns, 100), 5);
        assert_eq!(passed(&mut rate, start_ns + SECOND_NS / 2 - 1, 100), 0);
        assert_eq!(passed(&mut rate, start_ns + SECOND_NS / 2, 100), 1);
        assert_eq!(passed(&mut rate, start_ns + 10 * SECOND_NS, 100), 5, "silence earns no more than the burst");
        let over_time: usize =
            (1..=1000).map(|tick| passed(&mut rate, start_ns + (10 * SECOND_NS) + tick * SECOND_NS / 10, 3)).sum();
        assert_eq!(over_time, 200, "a hundred seconds at two a second");
    }

    #[test]
    fn refusals_lock_within_a_window_only() {
        let class = class(Limits { rate: 1, burst: 1, lock_after: 3, lock_s: 60, ..Limits::default() });
        let mut rate = Rate::default();
        assert_eq!([5, 6, 5 + LOCK_WINDOW_S].map(|now_s| rate.refuse(&class, 1000 + now_s)), [false; 3]);
        assert_eq!([66, 67].map(|now_s| rate.refuse(&class, 1000 + now_s)), [false, true]);
    }
}
