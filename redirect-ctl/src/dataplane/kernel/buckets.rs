//! A table of [buckets](redirect_common::bucket), written where the programs read it: in the map's own memory.
//!
//! Programs run meanwhile. What they may find while an entry is written is the entry from before or the one from after, because a place has a
//! class only while its key is whole: the key is written first and the class last, and taken away in the other order. A place that has become
//! free may still be in the hands of a program that saw the key that was there, so it gets another key only after those that
//! run have ended.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData},
};
use memmap2::{MmapOptions, MmapRaw};
use redirect_common::{
    bucket::{self, Bucket, Key, way},
    subscriber::Subscriber,
};

use super::{super::Error, subscribers::wait_for_programs, sys};

/// Where an entry is: the bucket, and the place in it.
type Place = (u32, usize);

/// `PLACES` is for keys of a family what [`bucket`] says.
pub struct Buckets<K, const PLACES: usize> {
    memory: Memory<Bucket<K, PLACES>>,
    /// Buckets.
    len: u32,
    entries: u32,
    /// Places that became free since programs were last waited for.
    freed: BTreeSet<Place>,
}

/// Why an entry was not set: there is no room for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<K: Key + Pod, const PLACES: usize> Buckets<K, PLACES> {
    /// Takes a map over, with whatever is in it.
    pub fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let map = object.take_map(name).ok_or_else(|| Error::Load { reason: format!("no map {name}") })?;
        let Map::Array(map) = map else { return Err(Error::Load { reason: format!("map {name} is no array") }) };
        let failed = |source| Error::System { what: format!("map {name} into memory"), source };
        let mut buckets = Self::open(MapData::fd(&map).as_fd()).map_err(failed)?;
        buckets.repair();
        Ok(buckets)
    }

    /// To read a map that somebody else writes, or to fill one that nobody uses yet.
    pub(super) fn open(map: BorrowedFd<'_>) -> io::Result<Self> {
        let shape = sys::shape(map)?;
        if shape.value_bytes as usize != size_of::<Bucket<K, PLACES>>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the map is of another layout"));
        }
        let len = shape.capacity as usize * size_of::<Bucket<K, PLACES>>();
        let memory = MmapOptions::new().len(len).map_raw(map.as_raw_fd())?;
        Ok(Self::over(Memory::new(memory)))
    }

    fn over(memory: Memory<Bucket<K, PLACES>>) -> Self {
        let len = u32::try_from(memory.all().len()).expect("a map's capacity is a word");
        let mut buckets = Self { memory, len, entries: 0, freed: BTreeSet::new() };
        buckets.entries = u32::try_from(buckets.iter().count()).expect("fewer than the places of a map");
        buckets
    }

    /// Puts right what a writer that was killed left: buckets that count more entries beyond them than there are.
    fn repair(&mut self) {
        let mut passed = vec![0; self.memory.all().len()];
        for (index, bucket) in (0..).zip(self.memory.all()) {
            for (key, _) in held(bucket) {
                self.before(key, index).for_each(|bucket| passed[bucket as usize] += 1);
            }
        }
        for (index, passed) in (0..).zip(passed) {
            self.memory.passed(index).store(passed, Ordering::Release);
        }
    }

    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    /// Entries that there is room for.
    pub(super) const fn capacity(&self) -> u32 {
        bucket::capacity(self.len, PLACES)
    }

    pub(super) fn get(&self, key: &K) -> Option<Subscriber> {
        bucket::find(*key, self.len, |index| self.memory.all().get(index as usize))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, Subscriber)> {
        self.memory.all().iter().flat_map(held)
    }

    /// Says whether the entry is new. One without a class is none.
    pub fn set(&mut self, key: &K, subscriber: Subscriber) -> Result<bool, Full> {
        debug_assert_ne!(subscriber, Subscriber::NONE);
        if let Some(place) = self.place_of(key) {
            self.memory.set_subscriber(place, subscriber);
            return Ok(false);
        }
        if self.entries >= self.capacity() {
            return Err(Full);
        }
        let place = self.free_place(key).ok_or(Full)?;
        if self.freed.contains(&place) {
            wait_for_programs();
            self.freed.clear();
        }
        for bucket in self.before(*key, place.0) {
            self.memory.passed(bucket).fetch_add(1, Ordering::Release);
        }
        self.memory.set_key(place, *key);
        self.memory.set_subscriber(place, subscriber);
        self.entries += 1;
        Ok(true)
    }

    /// Whether there was anything to remove.
    pub(super) fn remove(&mut self, key: &K) -> bool {
        let Some(place) = self.place_of(key) else { return false };
        self.memory.set_subscriber(place, Subscriber::NONE);
        self.memory.set_key(place, K::default());
        for bucket in self.before(*key, place.0) {
            self.memory.passed(bucket).fetch_sub(1, Ordering::Release);
        }
        self.freed.insert(place);
        self.entries -= 1;
        true
    }

    /// Sets all entries in another table; returns how many found no room.
    fn fill(&self, other: &mut Self) -> u64 {
        self.iter().filter(|(key, subscriber)| other.set(key, *subscriber).is_err()).count() as u64
    }

    /// Buckets on the way of a key before the one that it is in.
    fn before(&self, key: K, bucket: u32) -> impl Iterator<Item = u32> {
        way(key, self.len).take_while(move |passed| *passed != bucket)
    }

    /// Buckets on the way of a key, with their indices.
    fn reach(&self, key: &K) -> impl Iterator<Item = (u32, &Bucket<K, PLACES>)> {
        way(*key, self.len).map(|index| (index, &self.memory.all()[index as usize]))
    }

    /// No further than [`bucket::find`] looks.
    fn place_of(&self, key: &K) -> Option<Place> {
        for (index, bucket) in self.reach(key) {
            let is_it = |place: &usize| bucket.keys[*place] == *key && bucket.subscribers[*place] != Subscriber::NONE;
            if let Some(place) = (0..PLACES).find(is_it) {
                return Some((index, place));
            }
            if bucket.passed == 0 {
                break;
            }
        }
        None
    }

    /// The nearest one, and there rather one that has not just become free.
    fn free_place(&self, key: &K) -> Option<Place> {
        self.reach(key).find_map(|(index, bucket)| {
            let free = (0..PLACES).filter(|place| bucket.subscribers[*place] == Subscriber::NONE);
            free.map(|place| (index, place)).min_by_key(|place| self.freed.contains(place))
        })
    }
}

/// The entries of a bucket.
fn held<K: Key, const PLACES: usize>(bucket: &Bucket<K, PLACES>) -> impl Iterator<Item = (K, Subscriber)> {
    bucket.keys.into_iter().zip(bucket.subscribers).filter(|(_, subscriber)| *subscriber != Subscriber::NONE)
}

/// The entries of one map into another of another size; returns how many found no room.
pub(super) fn copy<K: Key + Pod, const PLACES: usize>(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(Buckets::<K, PLACES>::open(old)?.fill(&mut Buckets::open(new)?))
}

/// An array of `T` in memory that programs read.
struct Memory<T> {
    memory: MmapRaw,
    of: std::marker::PhantomData<T>,
}

impl<T> Memory<T> {
    const fn new(memory: MmapRaw) -> Self {
        Self { memory, of: std::marker::PhantomData }
    }
}

impl<K: Key + Pod, const PLACES: usize> Memory<Bucket<K, PLACES>> {
    fn all(&self) -> &[Bucket<K, PLACES>] {
        let len = self.memory.len() / size_of::<Bucket<K, PLACES>>();
        // SAFETY: mapped as long as `self`, from a page on, and any bytes are valid. Only `self` writes, in methods that return no reference, and
        // those that change entries are called by who has `Buckets` for itself alone.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), len) }
    }

    fn bucket(&self, index: u32) -> *mut Bucket<K, PLACES> {
        assert!((index as usize) < self.all().len(), "a place of this table");
        self.memory.as_mut_ptr().cast::<Bucket<K, PLACES>>().wrapping_add(index as usize)
    }

    fn passed(&self, index: u32) -> &AtomicU32 {
        // SAFETY: a word within the mapped memory, aligned as in the structure.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.bucket(index)).passed) }
    }

    /// After the key, as programs see it.
    fn set_subscriber(&self, (index, place): Place, subscriber: Subscriber) {
        // SAFETY: as in `passed`; a `Subscriber` is a word.
        let word = unsafe { AtomicU32::from_ptr((&raw mut (*self.bucket(index)).subscribers[place]).cast()) };
        word.store(subscriber.word(), Ordering::Release);
    }

    /// A key of two words is half written for a moment: its second half then stands beside zeros, as in no address that packets come from.
    fn set_key(&self, (index, place): Place, key: K) {
        // SAFETY: as in `passed`.
        let at = unsafe { &raw mut (*self.bucket(index)).keys[place] };
        let from = std::ptr::from_ref(&key);
        if size_of::<K>() == size_of::<u32>() {
            // SAFETY: as in `passed`; a key of this size is a word.
            unsafe { AtomicU32::from_ptr(at.cast()).store(from.cast::<u32>().read(), Ordering::Release) };
            return;
        }
        const { assert!(size_of::<K>() == size_of::<u32>() || size_of::<K>() == size_of::<[u64; 2]>()) };
        for half in [1, 0] {
            // SAFETY: as in `passed`; a key of this size is two words.
            unsafe {
                let half_at = at.cast::<u64>().wrapping_add(half);
                AtomicU64::from_ptr(half_at).store(from.cast::<u64>().wrapping_add(half).read(), Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use redirect_common::{
        address::{V4, V6},
        bucket::{PLACES_V4, PLACES_V6, buckets},
    };

    use super::*;

    fn empty<K: Key + Pod, const PLACES: usize>(entries: u32) -> Buckets<K, PLACES> {
        let len = buckets(entries, PLACES) as usize * size_of::<Bucket<K, PLACES>>();
        Buckets::over(Memory::new(MmapOptions::new().len(len).map_anon().unwrap().into()))
    }

    /// Changes of a few keys in a small table, so that they meet: a class, or 0 to remove.
    fn changes() -> impl Strategy<Value = Vec<(u8, u16)>> {
        proptest::collection::vec((0u8..40, 0u16..4), 0..200)
    }

    fn keeps_what_it_was_told<K: Key + Pod + std::fmt::Debug, const PLACES: usize>(
        changes: &[(u8, u16)],
        key: impl Fn(u8) -> K,
    ) -> Result<(), TestCaseError> {
        let mut table = empty::<K, PLACES>(16);
        let mut model = BTreeMap::new();
        for (number, class) in changes {
            let (told, subscriber) = (key(*number), Subscriber::new(*class));
            if *class == 0 {
                prop_assert_eq!(table.remove(&told), model.remove(&told).is_some());
            } else {
                match table.set(&told, subscriber) {
                    Ok(is_new) => prop_assert_eq!(is_new, model.insert(told, subscriber).is_none()),
                    Err(Full) => {
                        prop_assert!(!model.contains_key(&told) && model.len() == table.capacity() as usize);
                    }
                }
            }
            prop_assert_eq!(table.entries() as usize, model.len());
            for number in 0..40 {
                let key = key(number);
                prop_assert_eq!(table.get(&key), model.get(&key).copied(), "{:?}", key);
            }
        }
        prop_assert_eq!(table.iter().collect::<BTreeMap<_, _>>(), model);
        // What was counted on the way is what is there.
        let passed =
            |table: &Buckets<K, PLACES>| table.memory.all().iter().map(|bucket| bucket.passed).collect::<Vec<_>>();
        let counted = passed(&table);
        table.repair();
        prop_assert_eq!(passed(&table), counted);
        Ok(())
    }

    proptest! {
        #[test]
        fn a_table_holds_what_a_map_holds(changes in changes()) {
            keeps_what_it_was_told::<V4, PLACES_V4>(&changes, |number| V4(number.into()))?;
            keeps_what_it_was_told::<V6, PLACES_V6>(&changes, |number| V6([number.into(), u64::MAX]))?;
        }
    }

    #[test]
    fn a_writer_that_was_killed_leaves_nothing_behind() {
        let mut table = empty::<V6, PLACES_V6>(16);
        let keys: Vec<V6> = (1..=16).map(|number| V6([number, number])).collect();
        for key in &keys {
            table.set(key, Subscriber::new(1)).unwrap();
        }
        let before = *table.memory.all().iter().max_by_key(|bucket| bucket.passed).unwrap();
        // Between counting and entering.
        for bucket in 0..4 {
            table.memory.passed(bucket).fetch_add(1, Ordering::Relaxed);
        }
        table.repair();
        assert_eq!(*table.memory.all().iter().max_by_key(|bucket| bucket.passed).unwrap(), before);
        assert!(keys.iter().all(|key| table.get(key).is_some()));
    }

    #[test]
    fn entries_move_into_a_table_of_another_size() {
        let mut small = empty::<V4, PLACES_V4>(16);
        for number in 1..=16 {
            small.set(&V4(number), Subscriber::new(3)).unwrap();
        }
        let mut large = empty::<V4, PLACES_V4>(1_000);
        assert_eq!(small.fill(&mut large), 0);
        assert_eq!(large.iter().collect::<BTreeMap<_, _>>(), small.iter().collect());
        let mut tiny = empty::<V4, PLACES_V4>(2);
        assert_eq!(large.fill(&mut tiny), u64::from(16 - tiny.capacity()));
        assert_eq!(tiny.entries(), tiny.capacity());
    }

    #[test]
    fn a_place_that_became_free_gets_another_key_last() {
        let mut table = empty::<V4, PLACES_V4>(1);
        assert_eq!(table.len, 1);
        table.set(&V4(1), Subscriber::new(1)).unwrap();
        let first = table.place_of(&V4(1)).unwrap();
        assert!(table.remove(&V4(1)));
        assert!(table.freed.contains(&first));
        table.set(&V4(2), Subscriber::new(1)).unwrap();
        assert_ne!(table.place_of(&V4(2)).unwrap(), first);
        assert!(table.freed.contains(&first), "nobody had to wait");
        // Until none of the seven is left: then programs are waited for.
        for number in 3..10 {
            table.remove(&V4(number - 1));
            table.set(&V4(number), Subscriber::new(1)).unwrap();
        }
        assert!(!table.freed.contains(&table.place_of(&V4(9)).unwrap()));
        assert!(table.freed.len() < PLACES_V4);
    }
}
