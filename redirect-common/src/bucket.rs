//! Where the subscriber maps keep an entry: an array of buckets, each a cache line, of which a key's hash says where to look.
//!
//! A hash of the kernel costs a call and, in a large table, several misses of the CPU's cache one after the other. Here the verifier turns the
//! look-up of a bucket into a few instructions, and a packet waits for memory once.
//!
//! ```text
//!        +--------+-------+------+         +--------+-------+------+
//! key -> | passed | class | keys |  ... -> | passed | class | keys |
//!        +--------+-------+------+         +--------+-------+------+
//! ```
//!
//! Where the first bucket of a key has no place left, the key goes to the next one on its way, which is a way of its own; each bucket that it
//! found full counts that it was passed. So a look-up ends at the first bucket that nobody passed: nearly always the first, since user space
//! makes the array twice as large as what it may hold. Only user space writes, in an order in which a program that runs meanwhile finds what was
//! there or what is there, and never a mix of two entries.

use crate::{
    address::{V4, V6},
    subscriber::{PrefixV4, PrefixV6, Subscriber},
};

/// Buckets on a key's way. In a table that is as full as it gets, one key of IPv6 in ten finds a bucket full, and of those again one in ten the
/// next: sixteen of them none ever does.
pub const REACH: usize = 16;

/// Places in a bucket for keys of IPv4, and of IPv6.
pub const PLACES_V4: usize = 7;
/// As [`PLACES_V4`].
pub const PLACES_V6: usize = 3;

/// A cache line of the array. A place without a class is free.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket<K, const PLACES: usize> {
    /// Entries that found no place here and are in a bucket further on.
    pub passed: u32,
    pub subscribers: [Subscriber; PLACES],
    pub keys: [K; PLACES],
}

pub type BucketV4<K> = Bucket<K, PLACES_V4>;
pub type BucketV6<K> = Bucket<K, PLACES_V6>;

const _: () = assert!(size_of::<BucketV4<V4>>() == 64 && size_of::<BucketV6<V6>>() == 64);

/// What a bucket holds. The default is nobody's key, and stands in free places.
pub trait Key: Copy + Default + Ord + 'static {
    /// Sixty-four bits of which all depend on all of the key's.
    fn hash(self) -> u64;
}

impl Key for V4 {
    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.0.into(), 0)
    }
}

impl Key for PrefixV4 {
    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.0.into(), 0)
    }
}

impl Key for V6 {
    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.0[0], self.0[1])
    }
}

impl Key for PrefixV6 {
    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.0[0], self.0[1])
    }
}

/// Multiplies by odd numbers without a pattern, which carries bits upwards, and folds, which carries them down. Neighbours among addresses are
/// to become strangers; nobody who could gain from collisions chooses the keys.
#[inline(always)]
const fn mix(first: u64, second: u64) -> u64 {
    let mixed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ second.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Buckets of an array for `entries` entries, of which a bucket has `places`: half of the places stay free.
pub const fn buckets(entries: u32, places: usize) -> u32 {
    let buckets = (entries as u64 * 2).div_ceil(places as u64);
    if buckets == 0 { 1 } else { buckets as u32 }
}

/// Entries that an array of so many buckets has room for.
pub const fn capacity(buckets: u32, places: usize) -> u32 {
    (buckets as u64 * places as u64 / 2) as u32
}

/// The way of a key through an array of `buckets` buckets: the indices of [`REACH`] of them. Half of its hash says where it begins, the other
/// half where it turns to.
#[inline(always)]
pub fn way(key: impl Key, buckets: u32) -> impl Iterator<Item = u32> {
    let hash = key.hash();
    let mut at = (hash >> 32) as u32;
    (0..REACH).map(move |_| {
        let bucket = (u64::from(at) * u64::from(buckets)) >> 32;
        at = (at ^ at >> 15).wrapping_mul(0x9e37_79b1).wrapping_add(hash as u32);
        bucket as u32
    })
}

/// Looks a key up in an array of which `bucket` gives the buckets.
#[inline(always)]
pub fn find<'b, K: Key, const PLACES: usize>(
    key: K,
    buckets: u32,
    bucket: impl Fn(u32) -> Option<&'b Bucket<K, PLACES>>,
) -> Option<Subscriber> {
    for index in way(key, buckets) {
        let bucket = bucket(index)?;
        for place in 0..PLACES {
            if bucket.keys[place] == key && bucket.subscribers[place] != Subscriber::NONE {
                return Some(bucket.subscribers[place]);
            }
        }
        if bucket.passed == 0 {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::address::Address as _;

    /// How many keys are in the first bucket of their way, the second, and so on, in an array made for as many.
    fn taken<K: Key>(keys: impl Iterator<Item = K>, entries: u32, places: usize) -> [u32; REACH] {
        let buckets = buckets(entries, places);
        let mut fill = vec![0; buckets as usize];
        let mut taken = [0; REACH];
        for key in keys {
            let found = way(key, buckets).enumerate().find(|(_, bucket)| fill[*bucket as usize] < places);
            let (distance, bucket) = found.unwrap_or_else(|| panic!("no room of {buckets}: {taken:?}"));
            fill[bucket as usize] += 1;
            taken[distance] += 1;
        }
        taken
    }

    /// Numbers without a pattern (splitmix64).
    fn scattered(number: u32) -> u64 {
        let z = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Of keys in a table that is as full as it gets.
    fn assert_near<K: Key>(what: &str, entries: u32, places: usize, keys: impl Iterator<Item = K>) {
        let taken = taken(keys, entries, places);
        let [far, farther] = [1, 4].map(|from| taken[from..].iter().sum::<u32>());
        let most = entries / if places == PLACES_V4 { 50 } else { 10 } + 4;
        assert!(far <= most && farther <= entries / 1_000 + 1, "{what}, {entries} entries: {taken:?}");
    }

    #[test]
    fn addresses_in_a_row_with_gaps_and_without_a_pattern_find_room_where_they_are_looked_for_first() {
        let v4 = |number: u32| V4(number.to_be());
        let v6 = |first: u64, second: u64| V6([first.to_be(), second.to_be()]);
        let net = 0x2001_0db8_0000_0000;
        for entries in [1 << 4, 1 << 10, 1 << 16, 1 << 18] {
            for stride in [1, 2, 7, 16, 256, 377, 4_096] {
                let what = format!("every {stride}th");
                let number = |n: u32| 0x0a00_0000 + n * stride;
                assert_near(&what, entries, PLACES_V4, (0..entries).map(|n| v4(number(n))));
                let subnet = |n: u32| u64::from(n) * u64::from(stride);
                assert_near(&what, entries, PLACES_V6, (0..entries).map(|n| v6(net, subnet(n))));
                assert_near(&what, entries, PLACES_V6, (0..entries).map(|n| v6(net + subnet(n), 0).prefix(64)));
                assert_near(&what, entries, PLACES_V6, (0..entries).map(|n| v6(net, subnet(n) << 16).prefix(112)));
            }
            let prefixes = (0..entries.min(1 << 16)).map(|n| v4(n << 12).prefix(24));
            assert_near("prefixes of 16 subnets", entries, PLACES_V4, prefixes);
            assert_near("scattered", entries, PLACES_V4, (0..entries).map(|n| V4(scattered(n) as u32)));
            assert_near("scattered", entries, PLACES_V6, (0..entries).map(|n| V6([scattered(n), scattered(!n)])));
        }
    }

    #[test]
    fn a_look_up_ends_where_nobody_passed_and_sees_no_entry_without_a_class() {
        let (one, other): (V6, V6) = ("fd00::1".parse::<Ipv6Addr>().unwrap().into(), V6::default());
        let class = Subscriber::new(7);
        let mut buckets = [BucketV6 { passed: 0, subscribers: [Subscriber::NONE; _], keys: [other; _] }; 64];
        let found = |buckets: &[BucketV6<V6>], key| find(key, 64, |index| buckets.get(index as usize));
        assert_eq!(found(&buckets, one), None);
        let way: Vec<usize> = way(one, 64).map(|bucket| bucket as usize).collect();
        assert_ne!(way[0], way[1]);
        buckets[way[1]].keys[2] = one;
        buckets[way[1]].subscribers[2] = class;
        assert_eq!(found(&buckets, one), None, "nobody passed the first one");
        buckets[way[0]].passed = 1;
        assert_eq!(found(&buckets, one), Some(class));
        assert_eq!(found(&[], one), None, "an array that ends too early");
        buckets[way[1]].subscribers[2] = Subscriber::NONE;
        assert_eq!(found(&buckets, one), None);
        assert_eq!(found(&buckets, other), None, "free places have its key");
    }
}
