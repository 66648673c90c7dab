//! A bound on messages per second, as one instant: the generic cell rate algorithm (ITU-T I.371).

use std::time::{Duration, Instant};

/// The time at which a steady stream of what was admitted would have arrived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate(Option<Instant>);

impl Rate {
    /// Admits one more if that keeps to `per_second`; a second's worth may come at once.
    pub(crate) fn admit(&mut self, per_second: u32, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / per_second.max(1);
        let due = self.0.map_or(now, |at| at.max(now));
        if due.duration_since(now) + interval > Duration::from_secs(1) {
            return false;
        }
        self.0 = Some(due + interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(rate: &mut Rate, per_second: u32, now: Instant) -> usize {
        (0..1000).take_while(|_| rate.admit(per_second, now)).count()
    }

    #[test]
    fn a_second_at_once_and_then_the_rate() {
        let now = Instant::now();
        for per_second in [1, 4, 100] {
            let mut rate = Rate::default();
            assert_eq!(admitted(&mut rate, per_second, now), per_second as usize);
            assert_eq!(admitted(&mut rate, per_second, now + Duration::from_millis(999) / per_second), 0);
            assert_eq!(admitted(&mut rate, per_second, now + Duration::from_secs(1) / per_second), 1);
            assert_eq!(admitted(&mut rate, per_second, now + Duration::from_hours(1)), per_second as usize);
        }
    }
}
