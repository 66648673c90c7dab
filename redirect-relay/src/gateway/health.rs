//! Whether a gateway is used: what its probes and its mail have told, with hysteresis, and a circuit breaker.
//!
//! ```text
//!          FALL failures in a row                     wait over: TRIES at a time
//!  up ---------------------------> down (no probes) ---------------------------> tried
//!   ^                                    ^                                        |
//!   |                                    `------ a failure: a longer wait --------|
//!   `--------------------------------------------- RISE successes in a row -------'
//! ```

use std::time::{Duration, Instant};

use crate::limits::{BREAKER_TRIES_MAX, BREAKER_WAIT_MAX, BREAKER_WAIT_MIN, HEALTH_FALL, HEALTH_RISE};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    up: bool,
    /// Results in a row that speak against the present state.
    contrary: u32,
    /// While down: no tries before.
    retry_at: Option<Instant>,
    wait: Duration,
    /// While down: tries without a result.
    tries: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { up: true, contrary: 0, retry_at: None, wait: BREAKER_WAIT_MIN, tries: 0 }
    }
}

impl Health {
    pub(crate) const fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the gateway may be probed; while it is down, each yes is one of a few and needs a result.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        self.up || self.retry_at.is_none_or(|at| at <= now) && self.admit_mail()
    }

    /// Whether the gateway may be tried for a message that no gateway in service takes: the wait is for those who have a
    /// choice, the bound on tries for all.
    pub(crate) fn admit_mail(&mut self) -> bool {
        let admitted = self.up || self.tries < BREAKER_TRIES_MAX;
        self.tries += u32::from(admitted && !self.up);
        admitted
    }

    /// What was admitted has no result.
    pub(crate) fn unused(&mut self) {
        self.tries = self.tries.saturating_sub(1);
    }

    pub(crate) fn succeeded(&mut self) {
        self.tries = self.tries.saturating_sub(1);
        if self.up {
            self.contrary = 0;
            return;
        }
        self.contrary += 1;
        self.retry_at = None;
        if self.contrary >= HEALTH_RISE {
            *self = Self::default();
        }
    }

    /// Tells whether the gateway went down by this. `jitter`: up to 255/1024 of the wait is added, so that several routers do
    /// not come back at once.
    pub(crate) fn failed(&mut self, now: Instant, jitter: u8) -> bool {
        self.tries = self.tries.saturating_sub(1);
        let falls = self.up && self.contrary + 1 >= HEALTH_FALL;
        if self.up && !falls {
            self.contrary += 1;
            return false;
        }
        if !falls {
            // Tries that began before the wait tell nothing new.
            if self.retry_at.is_some_and(|at| now < at) {
                return false;
            }
            self.wait = (self.wait * 2).min(BREAKER_WAIT_MAX);
        }
        self.up = false;
        self.contrary = 0;
        self.retry_at = Some(now + self.wait + self.wait * u32::from(jitter) / 1024);
        falls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(now: Instant) -> Health {
        let mut health = Health::default();
        for fall in 1..=HEALTH_FALL {
            assert!(health.admit(now));
            assert_eq!(health.failed(now, 0), fall == HEALTH_FALL);
        }
        health
    }

    #[test]
    fn failures_in_a_row_bring_it_down() {
        let now = Instant::now();
        assert!(!down(now).is_up());
        let mut health = Health::default();
        for _ in 0..10 {
            for _ in 1..HEALTH_FALL {
                health.failed(now, 0);
            }
            health.succeeded();
        }
        assert!(health.is_up());
    }

    #[test]
    fn while_it_is_down_few_try_and_not_at_once() {
        let now = Instant::now();
        let mut health = down(now);
        assert!(!health.admit(now));
        assert!(health.admit_mail(), "who has no choice need not wait");
        health.unused();
        let later = now + BREAKER_WAIT_MIN;
        for _ in 0..BREAKER_TRIES_MAX {
            assert!(health.admit(later));
        }
        assert!(!health.admit(later) && !health.admit_mail(), "a bounded number at a time");
        health.unused();
        assert!(health.admit(later));
    }

    #[test]
    fn it_rises_after_successes_in_a_row() {
        let now = Instant::now();
        let mut health = down(now);
        let later = now + BREAKER_WAIT_MIN;
        for rise in 1..=HEALTH_RISE {
            assert!(health.admit(later));
            health.succeeded();
            assert_eq!(health.is_up(), rise == HEALTH_RISE);
        }
        assert_eq!(health, Health::default());
    }

    #[test]
    fn a_gateway_that_flaps_waits_longer_each_time_up_to_a_bound() {
        let mut now = Instant::now();
        let mut health = down(now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let at = health.retry_at.unwrap();
            waits.push(at - now);
            now = at;
            assert!(health.admit(now));
            health.succeeded();
            assert!(health.admit(now));
            health.failed(now, 0);
        }
        assert_eq!(waits[..3], [BREAKER_WAIT_MIN, BREAKER_WAIT_MIN * 2, BREAKER_WAIT_MIN * 4]);
        assert_eq!(*waits.last().unwrap(), BREAKER_WAIT_MAX);
    }

    #[test]
    fn the_jitter_is_a_part_of_the_wait() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..HEALTH_FALL {
            health.failed(now, 255);
        }
        let wait = health.retry_at.unwrap() - now;
        assert!(wait > BREAKER_WAIT_MIN && wait < BREAKER_WAIT_MIN * 5 / 4, "{wait:?}");
    }

    #[test]
    fn results_of_tries_from_before_do_not_prolong_the_wait() {
        let now = Instant::now();
        let mut health = down(now);
        let before = health.clone();
        health.failed(now, 0);
        assert_eq!(health, before);
    }
}
