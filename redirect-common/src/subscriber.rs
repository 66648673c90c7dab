//! Who a source address is: hosts and prefixes with their classes, in [buckets](crate::bucket).
//!
//! One table holds the prefixes of every length. A prefix's key is its bits, then a one, then zeros: the *mark*, which says where it ends.
//!
//! ```text
//! 10.20.0.0/16    00001010 00010100 10000000 00000000
//! 10.20.0.0/17    00001010 00010100 01000000 00000000
//! ```
//!
//! Looking an address up is one look-up for each length in use, the longest first, until one finds a class. The marks of those lengths, put
//! together in a word, say which they are: the lowest bit is the mark of the longest.
//!
//! An entry has two columns, of which [`Settings::column`](crate::policy::Settings::column) says which one counts. User space changes many
//! subscribers at once by writing the other column and then that word, so no packet sees some of them changed and others not.

use crate::{address::Address, policy::Settings};

/// What a subscriber map says of a host or a prefix: the number of its class in each column. 0 stands for none: where that column counts, it is
/// as if the entry were not there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subscriber {
    /// Sixteen bits for each column. No array, whose index would have to be shown to the verifier to be within.
    classes: u32,
}

impl Subscriber {
    pub const NONE: Self = Self { classes: 0 };

    /// Of the class `class`, whichever column counts.
    pub const fn new(class: u16) -> Self {
        Self { classes: class as u32 | (class as u32) << 16 }
    }

    /// `column` counts modulo 2, as everywhere.
    #[inline(always)]
    pub const fn class(self, column: u32) -> u16 {
        (self.classes >> (16 * (column & 1))) as u16
    }

    #[must_use]
    pub const fn with_class(self, column: u32, class: u16) -> Self {
        let shift = 16 * (column & 1);
        Self { classes: self.classes & !(0xffff << shift) | (class as u32) << shift }
    }

    /// Both columns, as they lie in a map.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.classes
    }

    /// The entry of a [word](Self::word), if it is one.
    #[inline(always)]
    pub fn found(word: u32) -> Option<Self> {
        (word != 0).then_some(Self { classes: word })
    }

    /// Whether the columns agree. They differ only while a change of many subscribers is under way, or after one that failed.
    pub const fn is_settled(self) -> bool {
        self.class(0) == self.class(1)
    }
}

const _: () = assert!(size_of::<Subscriber>() == 4);

/// A prefix of IPv4, shorter than 32 bits: its bits, then a one, then zeros.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefixV4(pub u32);

impl PrefixV4 {
    /// The first bits of a number, up to `mark`.
    #[inline(always)]
    pub const fn new(bits: u32, mark: u32) -> Self {
        Self((bits | mark) & mark.wrapping_neg())
    }

    /// The address, its other bits zero, and the length in bits.
    pub const fn parts(self) -> (u32, u8) {
        (self.0 & self.0.wrapping_sub(1), 31 - self.0.trailing_zeros() as u8)
    }
}

/// A prefix of IPv6, shorter than 128 bits, likewise; the first 64 bits come first.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefixV6(pub [u64; 2]);

impl PrefixV6 {
    /// The first bits of a number, up to `mark` in its second half.
    #[inline(always)]
    pub const fn long([first, second]: [u64; 2], mark: u64) -> Self {
        Self([first, (second | mark) & mark.wrapping_neg()])
    }

    /// The first bits of a number, up to `mark` in its first half.
    #[inline(always)]
    pub const fn short([first, _]: [u64; 2], mark: u64) -> Self {
        Self([(first | mark) & mark.wrapping_neg(), 0])
    }

    /// As [`PrefixV4::parts`].
    pub const fn parts(self) -> ([u64; 2], u8) {
        let [first, second] = self.0;
        if second == 0 {
            ([first & first.wrapping_sub(1), 0], 63 - first.trailing_zeros() as u8)
        } else {
            ([first, second & second.wrapping_sub(1)], 127 - second.trailing_zeros() as u8)
        }
    }
}

/// The lengths of prefixes that are in use, by their marks, and whether there are hosts at all: where there are none, their hash need not be
/// asked, of which each source would bring another piece into the CPU's cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// In the first and the second half of an address.
    pub v6: [u64; 2],
    pub v4: u32,
    /// A bit for each family.
    hosts: u32,
}

impl Lengths {
    /// Takes the length of a prefix of `A` into use or out of it; that of its addresses stands for hosts. One bit changes, so that a packet sees
    /// the lengths from before or from after.
    pub const fn set<A: Address>(&mut self, len: u8, used: bool) {
        if len == A::BITS {
            let hosts = Self::hosts::<A>();
            self.hosts = if used { self.hosts | hosts } else { self.hosts & !hosts };
        } else if A::FAMILY == 4 {
            let mark = 1 << 31 >> len;
            self.v4 = if used { self.v4 | mark } else { self.v4 & !mark };
        } else {
            let (half, mark) = (&mut self.v6[(len / 64) as usize & 1], 1 << 63 >> (len % 64));
            *half = if used { *half | mark } else { *half & !mark };
        }
    }

    /// Whether a length is in use.
    #[inline(always)]
    pub const fn has<A: Address>(&self, len: u8) -> bool {
        if len == A::BITS {
            self.hosts & Self::hosts::<A>() != 0
        } else if A::FAMILY == 4 {
            self.v4 << len >> 31 == 1
        } else {
            self.v6[(len / 64) as usize & 1] << (len % 64) >> 63 == 1
        }
    }

    #[inline(always)]
    const fn hosts<A: Address>() -> u32 {
        if A::FAMILY == 4 { 1 } else { 2 }
    }
}

const _: () = assert!(size_of::<Lengths>() == 24);

/// The number of the class of a source, which may not be there: that of the exact host, else of the longest prefix; 0 for none. `host` and
/// `prefix` look entries up.
#[inline(always)]
pub fn class_number<A: Address>(
    source: A,
    settings: &Settings,
    host: impl Fn(&A) -> Option<Subscriber>,
    prefix: impl Fn(&A::Prefix) -> Option<Subscriber>,
) -> u16 {
    // Read once: a packet is decided by one column.
    let column = settings.column;
    if settings.lengths.has::<A>(A::BITS)
        && let Some(class) = class_in(column, host(&source))
    {
        return class;
    }
    source.longest_match(&settings.lengths, |key| class_in(column, prefix(key))).unwrap_or(0)
}

/// The class of an entry in a column, where it has one.
#[inline(always)]
fn class_in(column: u32, found: Option<Subscriber>) -> Option<u16> {
    found.map(|subscriber| subscriber.class(column)).filter(|class| *class != 0)
}

/// What `look_up` finds for the prefixes of IPv4 that cover an address, the longest first.
#[inline(always)]
pub(crate) fn longest_v4<R>(bits: u32, mut marks: u32, look_up: impl Fn(&PrefixV4) -> Option<R>) -> Option<R> {
    // The bound is for the verifier: each round takes a mark away.
    for _ in 0..u32::BITS {
        if marks == 0 {
            break;
        }
        let mark = marks & marks.wrapping_neg();
        marks ^= mark;
        if let Some(found) = look_up(&PrefixV4::new(bits, mark)) {
            return Some(found);
        }
    }
    None
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn longest_v6<R>(
    bits: [u64; 2],
    [short, long]: [u64; 2],
    look_up: impl Fn(&PrefixV6) -> Option<R>,
) -> Option<R> {
    if let Some(found) = longest_half(long, |mark| look_up(&PrefixV6::long(bits, mark))) {
        return Some(found);
    }
    longest_half(short, |mark| look_up(&PrefixV6::short(bits, mark)))
}

#[inline(always)]
fn longest_half<R>(mut marks: u64, look_up: impl Fn(u64) -> Option<R>) -> Option<R> {
    for _ in 0..u64::BITS {
        if marks == 0 {
            break;
        }
        let mark = marks & marks.wrapping_neg();
        marks ^= mark;
        if let Some(found) = look_up(mark) {
            return Some(found);
        }
    }
    None
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: a transparent integer.
    unsafe impl aya::Pod for super::Subscriber {}
    // SAFETY: a transparent integer.
    unsafe impl aya::Pod for super::PrefixV4 {}
    // SAFETY: transparent integers.
    unsafe impl aya::Pod for super::PrefixV6 {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn a_prefix_is_known_by_its_mark() {
        let v4 = |octets: [u8; 4], len| V4::from_octets(octets).prefix(len);
        assert_eq!(v4([10, 20, 0, 0], 16), PrefixV4(0x0a14_8000));
        assert_eq!(v4([10, 20, 0, 0], 17), PrefixV4(0x0a14_4000));
        assert_eq!((v4([0; 4], 0), v4([255; 4], 31)), (PrefixV4(1 << 31), PrefixV4(u32::MAX)));
        let v6 = |octets: [u8; 16], len| V6::from_octets(octets).prefix(len);
        assert_eq!(v6([0xff; 16], 64), PrefixV6([u64::MAX, 1 << 63]));
        assert_eq!((v6([0xff; 16], 63), v6([0xff; 16], 0)), (PrefixV6([u64::MAX, 0]), PrefixV6([1 << 63, 0])));
    }

    fn check_lengths<A: Address>() {
        for len in 0..=A::BITS {
            let mut lengths = Lengths::default();
            lengths.set::<A>(len, true);
            for other in 0..=A::BITS {
                assert_eq!(lengths.has::<A>(other), other == len, "{len} {other}");
            }
            lengths.set::<A>(len, false);
            assert_eq!(lengths, Lengths::default());
        }
    }

    #[test]
    fn each_length_has_a_mark_of_its_own() {
        check_lengths::<V4>();
        check_lengths::<V6>();
    }

    /// Addresses that have much in common, so that prefixes cover them.
    fn octets<const N: usize>() -> impl Strategy<Value = [u8; N]> {
        (prop::sample::select(vec![0u8, 0xff]), 0..N * 8, 0..N * 8).prop_map(|(byte, one, other)| {
            let mut octets = [byte; N];
            for bit in [one, other] {
                octets[bit / 8] ^= 0x80 >> (bit % 8);
            }
            octets
        })
    }

    /// Whether the first `len` bits are equal.
    fn covers(network: &[u8], len: u8, address: &[u8]) -> bool {
        (0..usize::from(len)).all(|bit| (network[bit / 8] ^ address[bit / 8]) & 0x80 >> (bit % 8) == 0)
    }

    /// The class that the longest prefix has in a column, by looking at every one.
    fn expected(table: &[(Vec<u8>, u8, [u16; 2])], column: u32, address: &[u8]) -> u16 {
        let column = column as usize;
        let within =
            table.iter().filter(|(network, len, classes)| classes[column] != 0 && covers(network, *len, address));
        within.max_by_key(|(_, len, _)| *len).map_or(0, |(.., classes)| classes[column])
    }

    fn check_all<A: Address>(
        table: Vec<(A, u8, [u16; 2])>,
        addresses: &[A],
        spare: &[u8],
        bits: u8,
        octets: impl Fn(A) -> Vec<u8>,
    ) {
        let mut settings = Settings::default();
        let (mut hosts, mut prefixes, mut known) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for len in spare {
            settings.lengths.set::<A>(*len, true);
        }
        for (network, len, classes) in table {
            let subscriber = Subscriber::default().with_class(0, classes[0]).with_class(1, classes[1]);
            settings.lengths.set::<A>(len, true);
            let network = if len == bits {
                hosts.insert(network, subscriber);
                network
            } else {
                prefixes.insert(network.prefix(len), subscriber);
                let (address, back) = A::of_prefix(network.prefix(len));
                assert!(back == len && covers(&octets(address), len, &octets(network)));
                address
            };
            known.insert((network, len), classes);
        }
        let known: Vec<_> =
            known.into_iter().map(|((network, len), classes)| (octets(network), len, classes)).collect();
        for column in [0, 1] {
            settings.column = column;
            for address in addresses {
                let found =
                    class_number(*address, &settings, |key| hosts.get(key).copied(), |key| prefixes.get(key).copied());
                assert_eq!(found, expected(&known, column, &octets(*address)), "{address:?} {column} of {known:?}");
            }
        }
    }

    fn subscribers<const N: usize>() -> impl Strategy<Value = Vec<([u8; N], u8, [u16; 2])>> {
        let bits = u8::try_from(N * 8).unwrap();
        prop::collection::vec((octets::<N>(), 0..=bits, [0..4u16, 0..4u16]), 0..40)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_with_a_class_in_the_column_that_counts_decides(
            v4 in subscribers::<4>(), clients in prop::collection::vec(octets::<4>(), 8), spare in prop::collection::vec(0..32u8, 0..4),
            v6 in subscribers::<16>(), clients_v6 in prop::collection::vec(octets::<16>(), 8), spare_v6 in prop::collection::vec(0..128u8, 0..4),
        ) {
            let table = v4.into_iter().map(|(octets, len, classes)| (V4::from_octets(octets), len, classes)).collect();
            check_all(table, &clients.into_iter().map(V4::from_octets).collect::<Vec<_>>(), &spare, 32, |address| address.octets().to_vec());
            let table = v6.into_iter().map(|(octets, len, classes)| (V6::from_octets(octets), len, classes)).collect();
            check_all(table, &clients_v6.into_iter().map(V6::from_octets).collect::<Vec<_>>(), &spare_v6, 128, |address| address.octets().to_vec());
        }
    }
}
