//! What may go to one gateway, whoever's mail it is: rates by the algorithm of the clients' quotas.
//!
//! Connections and messages are taken before they begin, so another gateway can have them. Recipients are charged as they are
//! sent, octets when a message is over: what is under way by then may exceed the rate, and is paid off before the next.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    counters::Meter,
    gateway::{GatewayLimits, GatewayQuota},
    quota::{Bucket, Rate, since},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Connections,
    Messages,
    Recipients,
    Octets,
    /// Messages once more, by `messages_per_second_max`.
    Pace,
}

const ITEMS: usize = Item::Pace as usize + 1;

impl GatewayLimits {
    fn rate(&self, item: Item) -> Option<Rate> {
        let GatewayQuota { connections, messages, recipients, octets } = self.quota;
        match item {
            Item::Connections => connections,
            Item::Messages => messages,
            Item::Recipients => recipients,
            Item::Octets => octets,
            Item::Pace => {
                let count = u64::from(self.messages_per_second_max?);
                Rate::new(count, Duration::from_secs(1), count)
            }
        }
    }
}

/// What a gateway has had. Its limits may change meanwhile.
#[derive(Debug)]
pub(crate) struct Allowance {
    epoch: Instant,
    buckets: Mutex<[Bucket; ITEMS]>,
    /// How often it was passed over, or a recipient refused, because nothing was left.
    pub(crate) refused: Meter,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { epoch: Instant::now(), buckets: Mutex::default(), refused: Meter::default() }
    }
}

impl Allowance {
    /// Takes one message, if that and something of its recipients and octets is left.
    pub(crate) fn admit_message(&self, limits: &GatewayLimits, now: Instant) -> bool {
        self.count(self.with(now, |buckets, now| {
            let has = |item: Item| limits.rate(item).is_none_or(|rate| buckets[item as usize].has(rate, now));
            let may = [Item::Pace, Item::Messages, Item::Recipients, Item::Octets].into_iter().all(has);
            for item in [Item::Pace, Item::Messages].into_iter().filter(|_| may) {
                if let Some(rate) = limits.rate(item) {
                    buckets[item as usize].charge(rate, 1, now);
                }
            }
            may
        }))
    }

    pub(crate) fn admit_connection(&self, limits: &GatewayLimits, now: Instant) -> bool {
        let Some(rate) = limits.rate(Item::Connections) else { return true };
        self.count(self.with(now, |buckets, now| buckets[Item::Connections as usize].take(rate, 1, now)))
    }

    /// Whether one more recipient may be sent.
    pub(crate) fn has_recipient(&self, limits: &GatewayLimits, now: Instant) -> bool {
        let Some(rate) = limits.rate(Item::Recipients) else { return true };
        self.with(now, |buckets, now| buckets[Item::Recipients as usize].has(rate, now))
    }

    pub(crate) fn charge(&self, limits: &GatewayLimits, item: Item, amount: u64, now: Instant) {
        if let Some(rate) = limits.rate(item) {
            self.with(now, |buckets, now| buckets[item as usize].charge(rate, amount, now));
        }
    }

    fn count(&self, may: bool) -> bool {
        if !may {
            self.refused.increment();
        }
        may
    }

    fn with<R>(&self, now: Instant, act: impl FnOnce(&mut [Bucket; ITEMS], u64) -> R) -> R {
        // A panic leaves whole numbers behind.
        act(&mut self.buckets.lock().unwrap_or_else(PoisonError::into_inner), since(self.epoch, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> GatewayLimits {
        serde_json::from_str(json).unwrap()
    }

    fn admitted(allowance: &Allowance, limits: &GatewayLimits, now: Instant) -> usize {
        (0..1000).take_while(|_| allowance.admit_message(limits, now)).count()
    }

    #[test]
    fn a_second_at_once_and_then_the_rate() {
        for per_second in [1, 4, 100] {
            let limits = limits(&format!(r#"{{"messages_per_second_max":{per_second}}}"#));
            let (allowance, now) = (Allowance::default(), Instant::now());
            assert_eq!(admitted(&allowance, &limits, now), per_second);
            let interval = Duration::from_secs(1) / u32::try_from(per_second).unwrap();
            assert_eq!(admitted(&allowance, &limits, now + interval.mul_f64(0.99)), 0);
            assert_eq!(admitted(&allowance, &limits, now + interval), 1);
            assert_eq!(admitted(&allowance, &limits, now + Duration::from_hours(1)), per_second);
            assert_eq!(allowance.refused.get(), 4);
        }
    }

    #[test]
    fn a_message_needs_something_left_of_everything() {
        let now = Instant::now();
        let none = limits("{}");
        assert_eq!(admitted(&Allowance::default(), &none, now), 1000);
        let limits = limits(
            r#"{"messages_per_second_max":5,"quota":{"messages":{"count":3,"per_s":60},
            "recipients":{"count":10,"per_s":60},"octets":{"count":100,"per_s":60}}}"#,
        );
        assert_eq!(admitted(&Allowance::default(), &limits, now), 3);
        for (item, amount) in [(Item::Recipients, 10), (Item::Octets, 1000)] {
            let allowance = Allowance::default();
            allowance.charge(&limits, item, amount, now);
            assert_eq!(admitted(&allowance, &limits, now), 0, "{item:?}");
            assert_eq!(allowance.has_recipient(&limits, now), item != Item::Recipients);
            assert_eq!(admitted(&allowance, &none, now), 1000, "limits may change");
            // Octets are owed for ten minutes less the burst.
            let owed_s = if item == Item::Octets { 540 } else { 5 };
            assert!(!allowance.admit_message(&limits, now + Duration::from_secs(owed_s)), "{item:?}");
            assert!(allowance.admit_message(&limits, now + Duration::from_secs(owed_s + 2)), "{item:?}");
        }
    }

    #[test]
    fn connections_are_apart() {
        let (allowance, now) = (Allowance::default(), Instant::now());
        let limits = limits(r#"{"quota":{"connections":{"count":1,"per_s":60,"burst":2}}}"#);
        let connect = |after: u64| allowance.admit_connection(&limits, now + Duration::from_secs(after));
        assert_eq!([0, 0, 0, 59, 60, 61].map(connect), [true, true, false, false, true, false]);
        assert_eq!(admitted(&allowance, &limits, now), 1000);
        assert_eq!(allowance.refused.get(), 3);
    }
}
