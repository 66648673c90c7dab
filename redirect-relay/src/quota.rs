//! How much a subscriber, a class as a whole, and a gateway may do: rates, each with a burst, in memory that does not grow.
//!
//! The generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): one number for each rate, the time at which all
//! that was taken will have been earned. Who has taken nothing for long enough has no number, so it can be forgotten. A
//! table of fixed size holds them; where it is full, what it forgets is what would have been free again the soonest.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::counters::Meter;

/// `count` in each `per`, of which `burst` may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RateSpec", into = "RateSpec")]
pub struct Rate {
    count: NonZeroU64,
    per: Duration,
    burst: NonZeroU64,
}

/// A rate on the wire.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = Rate))]
#[serde(deny_unknown_fields)]
pub(crate) struct RateSpec {
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    count: u64,
    /// Seconds, a day at most.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 86_400))]
    per_s: u64,
    /// How many may come at once; the count, where not given.
    #[serde(default)]
    burst: Option<u64>,
}

impl TryFrom<RateSpec> for Rate {
    type Error = &'static str;

    fn try_from(spec: RateSpec) -> Result<Self, &'static str> {
        let RateSpec { count, per_s, burst } = spec;
        Self::new(count, Duration::from_secs(per_s), burst.unwrap_or(count))
            .ok_or("count and burst must be at least 1, per_s 1 to 86400")
    }
}

impl From<Rate> for RateSpec {
    fn from(rate: Rate) -> Self {
        Self { count: rate.count.get(), per_s: rate.per.as_secs(), burst: Some(rate.burst.get()) }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for Rate {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        RateSpec::schema()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for Rate {}

impl Rate {
    /// `None` where one of them is zero, or `per` longer than a day.
    pub const fn new(count: u64, per: Duration, burst: u64) -> Option<Self> {
        match (NonZeroU64::new(count), NonZeroU64::new(burst)) {
            (Some(count), Some(burst)) if !per.is_zero() && per.as_secs() <= 86_400 => Some(Self { count, per, burst }),
            _ => None,
        }
    }

    /// Nanoseconds in which `amount` is earned; what no clock reaches is as good as never.
    fn cost(&self, amount: u64) -> u64 {
        let nanos = self.per.as_nanos() * u128::from(amount) / u128::from(self.count.get());
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// What was taken at one rate: when all of it will have been earned, in nanoseconds since an epoch of its keeper's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u64);

impl Bucket {
    /// Takes `amount` if the rate has it.
    pub fn take(&mut self, rate: Rate, amount: u64, now: u64) -> bool {
        let until = self.0.max(now).saturating_add(rate.cost(amount));
        let may = until - now <= rate.cost(rate.burst.get());
        if may {
            self.0 = until;
        }
        may
    }

    /// Takes `amount` whether the rate has it or not.
    pub(crate) fn charge(&mut self, rate: Rate, amount: u64, now: u64) {
        self.0 = self.0.max(now).saturating_add(rate.cost(amount));
    }

    /// Nanoseconds until the rate has `amount`, which is not more than its burst.
    pub fn wait(self, rate: Rate, amount: u64, now: u64) -> u64 {
        let until = self.0.saturating_sub(now).saturating_add(rate.cost(amount));
        until.saturating_sub(rate.cost(rate.burst.get()))
    }

    /// When all that was taken will have been earned; by then the bucket says nothing any more.
    pub const fn free_at(self) -> u64 {
        self.0
    }

    /// Whether the rate has anything left.
    pub(crate) fn has(self, rate: Rate, now: u64) -> bool {
        self.0.saturating_sub(now).saturating_add(rate.cost(1)) <= rate.cost(rate.burst.get())
    }
}

/// Nanoseconds since an epoch.
pub(crate) fn since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Connections,
    Messages,
    /// Messages from `<>`.
    Notifications,
    Recipients,
    Octets,
    /// Recipients that the gateway refused for good.
    InvalidRecipients,
    AuthFailures,
    /// Refusals for one of the above, and sessions that we cut: they lead to a lock.
    Strikes,
}

const KINDS: usize = Kind::Strikes as usize + 1;

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Messages => "messages",
            Self::Notifications => "notifications",
            Self::Recipients => "recipients",
            Self::Octets => "octets",
            Self::InvalidRecipients => "invalid_recipients",
            Self::AuthFailures => "auth_failures",
            Self::Strikes => "strikes",
        }
    }
}

/// The rates of one subscriber, or of a class as a whole. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    pub connections: Option<Rate>,
    pub messages: Option<Rate>,
    pub notifications: Option<Rate>,
    pub recipients: Option<Rate>,
    /// Charged when a message is over: the burst is what several messages at once may exceed it by.
    pub octets: Option<Rate>,
    pub invalid_recipients: Option<Rate>,
    pub auth_failures: Option<Rate>,
}

impl Quota {
    fn rate(&self, kind: Kind) -> Option<Rate> {
        match kind {
            Kind::Connections => self.connections,
            Kind::Messages => self.messages,
            Kind::Notifications => self.notifications,
            Kind::Recipients => self.recipients,
            Kind::Octets => self.octets,
            Kind::InvalidRecipients => self.invalid_recipients,
            Kind::AuthFailures => self.auth_failures,
            Kind::Strikes => None,
        }
    }
}

/// One subscriber: an IPv4 address, or an IPv6 /64, which is what one household or one guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Subscriber(IpAddr);

impl Subscriber {
    pub(crate) const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self(ip),
            IpAddr::V6(ip) => Self(IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !(u64::MAX as u128)))),
        }
    }
}

/// Whose rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Owner<'a> {
    Subscriber(Subscriber),
    Class(&'a str),
}

/// Entries that share a lock, and compete for room.
const WAYS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Of the owner: 128 bits of a keyed hash, which two owners do not share.
    fingerprint: (u64, u64),
    buckets: [Bucket; KINDS],
}

impl Entry {
    /// From when on the entry says nothing.
    fn free_at(&self) -> u64 {
        self.buckets.iter().max().map_or(0, |bucket| bucket.free_at())
    }
}

/// All owners' rates.
#[derive(Debug)]
pub(crate) struct Table {
    epoch: Instant,
    hashers: [RandomState; 2],
    sets: Box<[Mutex<Vec<Entry>>]>,
    /// Entries that were forgotten though they still said something.
    pub(crate) forgotten: Meter,
}

impl Table {
    /// For at most `entries` owners, rounded up; takes memory as they come.
    pub(crate) fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            epoch: Instant::now(),
            hashers: [RandomState::new(), RandomState::new()],
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            forgotten: Meter::default(),
        }
    }

    /// Takes `amount` if the rate has it.
    pub(crate) fn take(&self, owner: Owner<'_>, kind: Kind, rate: Rate, amount: u64, now: Instant) -> bool {
        self.with(owner, kind, now, |bucket, now| bucket.take(rate, amount, now))
    }

    /// Takes `amount` whether the rate has it or not.
    pub(crate) fn charge(&self, owner: Owner<'_>, kind: Kind, rate: Rate, amount: u64, now: Instant) {
        self.with(owner, kind, now, |bucket, now| bucket.charge(rate, amount, now));
    }

    /// Whether the rate has anything left.
    pub(crate) fn has(&self, owner: Owner<'_>, kind: Kind, rate: Rate, now: Instant) -> bool {
        self.with(owner, kind, now, |bucket, now| bucket.has(rate, now))
    }

    fn with<R>(&self, owner: Owner<'_>, kind: Kind, now: Instant, act: impl FnOnce(&mut Bucket, u64) -> R) -> R {
        let now = since(self.epoch, now);
        let fingerprint = (self.hashers[0].hash_one(owner), self.hashers[1].hash_one(owner));
        // The number of sets is a power of two, so the lowest bits of the hash choose one.
        let index = usize::try_from(fingerprint.0 & (self.sets.len() as u64 - 1)).unwrap_or(0);
        let mut set = lock(&self.sets[index]);
        let place = match set.iter().position(|entry| entry.fingerprint == fingerprint) {
            Some(place) => place,
            None => self.make_room(&mut set, now),
        };
        let entry = &mut set[place];
        if entry.fingerprint != fingerprint {
            *entry = Entry { fingerprint, buckets: [Bucket::default(); KINDS] };
        }
        act(&mut entry.buckets[kind as usize], now)
    }

    fn make_room(&self, set: &mut Vec<Entry>, now: u64) -> usize {
        if set.len() < WAYS {
            set.push(Entry { fingerprint: (0, 0), buckets: [Bucket::default(); KINDS] });
            return set.len() - 1;
        }
        let soonest = set.iter().enumerate().min_by_key(|(_, entry)| entry.free_at());
        let (place, entry) = soonest.expect("a full set has entries");
        if entry.free_at() > now {
            self.forgotten.increment();
        }
        place
    }
}

/// Sessions that are open, by subscriber. As many entries as there are sessions at most.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<HashMap<Subscriber, u32>>);

impl Presence {
    /// One more session of the subscriber's, unless `max` are open.
    pub(crate) fn enter(self: &Arc<Self>, subscriber: Subscriber, max: Option<u32>) -> Option<Present> {
        let mut open = lock(&self.0);
        let count = open.entry(subscriber).or_default();
        if max.is_some_and(|max| *count >= max) {
            return None;
        }
        *count += 1;
        Some(Present { all: Arc::clone(self), subscriber })
    }
}

/// One session of a subscriber's, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Present {
    all: Arc<Presence>,
    subscriber: Subscriber,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut open = lock(&self.all.0);
        if let Some(count) = open.get_mut(&self.subscriber) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.subscriber);
            }
        }
    }
}

/// What the locks guard is whole between any two statements, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client's share of the tables: its own rates and those of its class.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    table: Arc<Table>,
    subscriber: Subscriber,
    class: Arc<str>,
}

impl Account {
    pub(crate) fn new(table: Arc<Table>, ip: IpAddr, class: Arc<str>) -> Self {
        Self { table, subscriber: Subscriber::of(ip), class }
    }

    fn rates(&self, own: &Quota, class: &Quota, kind: Kind) -> impl Iterator<Item = (Owner<'_>, Rate)> {
        let own = own.rate(kind).map(|rate| (Owner::Subscriber(self.subscriber), rate));
        let class = class.rate(kind).map(|rate| (Owner::Class(&self.class), rate));
        own.into_iter().chain(class)
    }

    /// Takes one of a kind, of the subscriber's and then of the class's.
    pub(crate) fn take(&self, own: &Quota, class: &Quota, kind: Kind, now: Instant) -> bool {
        self.rates(own, class, kind).all(|(owner, rate)| self.table.take(owner, kind, rate, 1, now))
    }

    pub(crate) fn charge(&self, own: &Quota, class: &Quota, kind: Kind, amount: u64, now: Instant) {
        for (owner, rate) in self.rates(own, class, kind) {
            self.table.charge(owner, kind, rate, amount, now);
        }
    }

    pub(crate) fn has(&self, own: &Quota, class: &Quota, kind: Kind, now: Instant) -> bool {
        self.rates(own, class, kind).all(|(owner, rate)| self.table.has(owner, kind, rate, now))
    }

    /// Whether the subscriber may be forgiven once more.
    pub(crate) fn strike(&self, rate: Rate, now: Instant) -> bool {
        self.table.take(Owner::Subscriber(self.subscriber), Kind::Strikes, rate, 1, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u64, per_s: u64, burst: u64) -> Rate {
        Rate::new(count, Duration::from_secs(per_s), burst).unwrap()
    }

    fn v4(last: u8) -> Owner<'static> {
        Owner::Subscriber(Subscriber::of(IpAddr::from([192, 0, 2, last])))
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let table = Table::new(100);
        let start = Instant::now();
        let rate = rate(6, 60, 3);
        let taken = |at_s: u64| table.take(v4(1), Kind::Messages, rate, 1, start + Duration::from_secs(at_s));
        assert_eq!([0, 0, 0, 0].map(taken), [true, true, true, false]);
        assert_eq!([9, 10, 10, 19, 20].map(taken), [false, true, false, false, true]);
        // A long rest earns the burst and no more.
        assert_eq!([3600, 3600, 3600, 3600].map(taken), [true, true, true, false]);
    }

    #[test]
    fn the_wait_is_the_least_after_which_it_can_be_taken() {
        let rate = rate(6, 60, 3);
        let mut bucket = Bucket::default();
        let now = 5_000_000_000;
        assert_eq!(bucket.wait(rate, 3, now), 0);
        assert!(bucket.take(rate, 3, now));
        let wait = bucket.wait(rate, 1, now);
        assert_eq!(wait, 10_000_000_000);
        assert!(!bucket.take(rate, 1, now + wait - 1));
        assert!(bucket.take(rate, 1, now + wait));
    }

    #[test]
    fn owners_and_kinds_do_not_share() {
        let table = Table::new(100);
        let now = Instant::now();
        let rate = rate(1, 3600, 1);
        for owner in [v4(1), v4(2), Owner::Class("a"), Owner::Class("b")] {
            assert!(table.take(owner, Kind::Messages, rate, 1, now), "{owner:?}");
            assert!(table.take(owner, Kind::Recipients, rate, 1, now), "{owner:?}");
            assert!(!table.take(owner, Kind::Messages, rate, 1, now), "{owner:?}");
        }
    }

    #[test]
    fn attack_29_an_ipv6_subscriber_is_its_64() {
        let of = |ip: &str| Subscriber::of(ip.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_debt_is_paid_off() {
        let table = Table::new(100);
        let start = Instant::now();
        let rate = rate(1000, 1, 5000);
        assert!(table.has(v4(1), Kind::Octets, rate, start));
        table.charge(v4(1), Kind::Octets, rate, 12_000, start);
        let has = |at_s: u64| table.has(v4(1), Kind::Octets, rate, start + Duration::from_secs(at_s));
        assert_eq!([0, 7, 8].map(has), [false, false, true]);
    }

    #[test]
    fn no_amount_overflows() {
        let table = Table::new(8);
        let now = Instant::now();
        let rate = Rate::new(1, Duration::from_hours(24), u64::MAX).unwrap();
        table.charge(v4(1), Kind::Octets, rate, u64::MAX, now);
        table.charge(v4(1), Kind::Octets, rate, u64::MAX, now);
        assert!(table.take(v4(2), Kind::Octets, rate, u64::MAX, now));
        assert_eq!(Rate::new(0, Duration::from_secs(1), 1), None);
        assert_eq!(Rate::new(1, Duration::ZERO, 1), None);
        assert_eq!(Rate::new(1, Duration::from_secs(1), 0), None);
        assert_eq!(Rate::new(1, Duration::from_secs(86_401), 1), None);
    }

    /// A million owners take no more memory than the table was made for, and the busiest are the last to be forgotten.
    #[test]
    fn memory_is_bounded() {
        let table = Table::new(1000);
        let now = Instant::now();
        let busy = rate(1, 86_400, 5);
        for _ in 0..5 {
            assert!(table.take(v4(1), Kind::Messages, busy, 1, now));
        }
        let other = rate(1, 60, 5);
        for i in 0..100_000_u32 {
            let owner = Owner::Subscriber(Subscriber::of(IpAddr::from(i.to_be_bytes())));
            table.take(owner, Kind::Messages, other, 1, now);
        }
        let entries: usize = table.sets.iter().map(|set| set.lock().unwrap().len()).sum();
        assert!(entries <= 1024, "{entries}");
        assert!(table.sets.iter().all(|set| set.lock().unwrap().capacity() <= WAYS));
        assert!(table.forgotten.get() > 90_000);
        assert!(!table.take(v4(1), Kind::Messages, busy, 1, now), "the one with the most to forget is remembered");
    }

    #[test]
    fn attack_29_open_sessions_of_one_subscriber() {
        let presence = Arc::new(Presence::default());
        let (one, other) = (Subscriber::of([192, 0, 2, 1].into()), Subscriber::of([192, 0, 2, 2].into()));
        let first = presence.enter(one, Some(2)).unwrap();
        let second = presence.enter(one, Some(2)).unwrap();
        assert!(presence.enter(one, Some(2)).is_none());
        assert!(presence.enter(other, Some(2)).is_some());
        drop(first);
        assert!(presence.enter(one, Some(2)).is_some());
        drop(second);
        assert!(presence.0.lock().unwrap().is_empty(), "nothing is left of who has left");
    }

    proptest! {
        /// Over any time, no more is taken than the burst and what the time earned.
        #[test]
        fn the_rate_is_never_exceeded(
            count in 1..50_u64, burst in 1..20_u64, steps in proptest::collection::vec((0..4000_u64, 1..4_u64), 1..100),
        ) {
            let table = Table::new(8);
            let rate = rate(count, 10, burst);
            let start = Instant::now();
            let (mut elapsed_ms, mut taken) = (0, 0);
            for (pause_ms, amount) in steps {
                elapsed_ms += pause_ms;
                if table.take(v4(1), Kind::Messages, rate, amount, start + Duration::from_millis(elapsed_ms)) {
                    taken += amount;
                }
                // One more for what rounding gives away.
                prop_assert!(taken <= burst + count * elapsed_ms / 10_000 + 1);
            }
        }
    }
}
