//! How often each may ask: the generic cell rate algorithm of [`redirect_relay::Bucket`], one bucket for each caller, in memory that does
//! not grow.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use redirect_relay::{Bucket, Rate};

/// Buckets that share a lock, and compete for room.
const WAYS: usize = 8;

/// Fingerprints of callers, which two do not share, and their buckets.
type Set = Vec<(u64, Bucket)>;

/// One rate for many.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    epoch: Instant,
    hasher: RandomState,
    sets: Box<[Mutex<Set>]>,
}

impl Rates {
    /// Remembers `most`, rounded up; where there are more, those are forgotten that are free again the soonest.
    pub(crate) fn new(rate: Rate, most: usize) -> Self {
        let sets = most.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            rate,
            epoch: Instant::now(),
            hasher: RandomState::new(),
            sets: (0..sets).map(|_| Mutex::default()).collect(),
        }
    }

    /// Takes one of `key`'s, or tells how long to wait for it.
    pub(crate) fn take(&self, key: &(impl Hash + ?Sized), now: Instant) -> Result<(), Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
        let fingerprint = self.hasher.hash_one(key);
        // The number of sets is a power of two, so the lowest bits choose one.
        let index = usize::try_from(fingerprint & (self.sets.len() as u64 - 1)).unwrap_or(0);
        let mut set = self.sets[index].lock().unwrap_or_else(PoisonError::into_inner);
        let place = match set.iter().position(|(known, _)| *known == fingerprint) {
            Some(place) => place,
            None if set.len() < WAYS => {
                set.push((fingerprint, Bucket::default()));
                set.len() - 1
            }
            None => {
                let soonest = set.iter().enumerate().min_by_key(|(_, (_, bucket))| bucket.free_at());
                let place = soonest.map_or(0, |(place, _)| place);
                set[place] = (fingerprint, Bucket::default());
                place
            }
        };
        let bucket = &mut set[place].1;
        if bucket.take(self.rate, 1, now) { Ok(()) } else { Err(Duration::from_nanos(bucket.wait(self.rate, 1, now))) }
    }
}

/// Who an address stands for: with IPv6 a /64, which is what one household or one host has.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_is_told_when_there_is_more() {
        let rates = Rates::new(Rate::new(1, Duration::from_secs(10), 2).unwrap(), 64);
        let now = Instant::now();
        for key in ["a", "b"] {
            assert_eq!(rates.take(key, now), Ok(()));
            assert_eq!(rates.take(key, now), Ok(()));
            let wait = rates.take(key, now).unwrap_err();
            assert_eq!(wait, Duration::from_secs(10));
            assert_eq!(rates.take(key, now + wait), Ok(()));
        }
    }

    #[test]
    fn memory_is_bounded_and_the_busiest_is_remembered() {
        let rates = Rates::new(Rate::new(1, Duration::from_hours(1), 5).unwrap(), 1_000);
        let now = Instant::now();
        for _ in 0..5 {
            rates.take("busy", now).unwrap();
        }
        for n in 0..100_000_u32 {
            let _ = rates.take(&n, now);
        }
        let entries: usize = rates.sets.iter().map(|set| set.lock().unwrap().len()).sum();
        assert!(entries <= 1_024, "{entries}");
        assert!(rates.sets.iter().all(|set| set.lock().unwrap().capacity() <= WAYS));
        assert!(rates.take("busy", now).is_err());
    }

    #[test]
    fn an_ipv6_source_is_its_64() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
