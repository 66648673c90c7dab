//! The maps, and [`Tables`] over them. Capacities here are the defaults; the daemon may load with others.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use redirect_common::{
    address::{Address as _, V4, V6},
    flow::{Flow, Tuple},
    maps::{
        CLASSES_MAX, COUNTERS_MAX, Count, ENTRIES_PER_FLOW, FLOWS_MAX, HALF_OPEN_MAX, RELAY_PORT_WORDS, RELAYS_MAX,
        RESETS_PER_SECOND_MAX, Resets, SUBSCRIBERS_MAX, counter_index,
    },
    policy::{Class, Relay, Settings, Subscriber},
    reason::Reason,
    tables::{FamilyTables, InsertError, Table, Tables},
};

#[map]
static HOSTS_V4: HashMap<V4, Subscriber> = HashMap::with_max_entries(SUBSCRIBERS_MAX, 0);
#[map]
static HOSTS_V6: HashMap<V6, Subscriber> = HashMap::with_max_entries(SUBSCRIBERS_MAX, 0);
#[map]
static PREFIXES_V4: LpmTrie<[u8; 4], Subscriber> = LpmTrie::with_max_entries(SUBSCRIBERS_MAX, 0);
#[map]
static PREFIXES_V6: LpmTrie<[u8; 16], Subscriber> = LpmTrie::with_max_entries(SUBSCRIBERS_MAX, 0);
#[map]
static CLASSES: Array<Class> = Array::with_max_entries(CLASSES_MAX, 0);
#[map]
static RELAYS: Array<Relay> = Array::with_max_entries(RELAYS_MAX, 0);
#[map]
static RELAY_PORTS: Array<u64> = Array::with_max_entries(RELAY_PORT_WORDS, 0);
#[map]
static HALF_OPEN_V4: LruHashMap<Tuple<V4>, Flow<V4>> =
    LruHashMap::with_max_entries(HALF_OPEN_MAX * ENTRIES_PER_FLOW, 0);
#[map]
static HALF_OPEN_V6: LruHashMap<Tuple<V6>, Flow<V6>> =
    LruHashMap::with_max_entries(HALF_OPEN_MAX * ENTRIES_PER_FLOW, 0);
#[map]
static FLOWS_V4: HashMap<Tuple<V4>, Flow<V4>> = HashMap::with_max_entries(FLOWS_MAX * ENTRIES_PER_FLOW, 0);
#[map]
static FLOWS_V6: HashMap<Tuple<V6>, Flow<V6>> = HashMap::with_max_entries(FLOWS_MAX * ENTRIES_PER_FLOW, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static RESETS: PerCpuArray<Resets> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);

/// `EEXIST` of the kernel (include/uapi/asm-generic/errno-base.h), as a helper returns it.
const EXISTS: i32 = -17;

/// A trie's key, placed so that the address in it is aligned: the verifier wants that of the stack.
#[repr(C, align(8))]
struct AlignedKey<T> {
    _lead: u32,
    key: Key<T>,
}

impl<T> AlignedKey<T> {
    const BITS: u32 = size_of::<T>() as u32 * 8;

    #[inline(always)]
    const fn new(octets: T) -> Self {
        Self { _lead: 0, key: Key::new(Self::BITS, octets) }
    }
}

/// The maps of this object.
pub(crate) struct Maps;

macro_rules! family {
    ($address:ty, $hosts:ident, $prefixes:ident, $half_open:ident, $established:ident) => {
        impl FamilyTables<$address> for Maps {
            #[inline(always)]
            fn subscriber(&self, source: &$address) -> Option<Subscriber> {
                // SAFETY: a value is four bytes, read at once; a host removed meanwhile still had its class when the packet came.
                if let Some(subscriber) = unsafe { $hosts.get(source) } {
                    return Some(*subscriber);
                }
                let key = AlignedKey::new(source.octets());
                $prefixes.get(&key.key).copied()
            }

            #[inline(always)]
            fn flow<R>(
                &self,
                table: Table,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                let flow = match table {
                    Table::HalfOpen => $half_open.get_ptr_mut(key),
                    Table::Established => $established.get_ptr_mut(key),
                }?;
                // SAFETY: the map's memory outlives the program's run. Another CPU may update the same entry: fields are plain integers,
                // any of whose values is valid, and `Flow::serves` refuses an entry that was given to another flow.
                Some(change(unsafe { &mut *flow }))
            }

            #[inline(always)]
            fn insert(&self, table: Table, key: &Tuple<$address>, flow: &Flow<$address>) -> Result<(), InsertError> {
                let flags = u64::from(BPF_NOEXIST);
                match table {
                    Table::HalfOpen => $half_open.insert(key, flow, flags),
                    Table::Established => $established.insert(key, flow, flags),
                }
                .map_err(|error| if error == EXISTS { InsertError::Exists } else { InsertError::Full })
            }

            #[inline(always)]
            fn remove(&self, table: Table, key: &Tuple<$address>) {
                // What is gone already needs no removing.
                let _ = match table {
                    Table::HalfOpen => $half_open.remove(key),
                    Table::Established => $established.remove(key),
                };
            }
        }
    };
}

family!(V4, HOSTS_V4, PREFIXES_V4, HALF_OPEN_V4, FLOWS_V4);
family!(V6, HOSTS_V6, PREFIXES_V6, HALF_OPEN_V6, FLOWS_V6);

impl Tables for Maps {
    #[inline(always)]
    fn class(&self, class: u16) -> Option<Class> {
        CLASSES.get(class.into()).copied().filter(|class| class.is_present())
    }

    #[inline(always)]
    fn relay(&self, relay: u16) -> Option<Relay> {
        RELAYS.get(relay.into()).copied()
    }

    #[inline(always)]
    fn is_relay_port(&self, port: [u8; 2]) -> bool {
        let port = u16::from_be_bytes(port);
        RELAY_PORTS.get(u32::from(port / 64)).is_some_and(|ports| ports >> (port % 64) & 1 == 1)
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        SETTINGS.get(0).map_or(0, |settings| settings.clock_s)
    }

    #[inline(always)]
    fn zero(&self) -> usize {
        SETTINGS.get(0).map_or(0, |settings| settings.zero() as usize)
    }

    #[inline(always)]
    fn take_reset(&self, now_s: u32) -> bool {
        let Some(resets) = RESETS.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own slot, as in `count`.
        let resets = unsafe { &mut *resets };
        if resets.second_s != now_s {
            *resets = Resets { second_s: now_s, sent: 0 };
        }
        resets.sent += 1;
        resets.sent <= RESETS_PER_SECOND_MAX
    }

    #[inline(always)]
    fn count(&self, class: u16, reason: Reason, bytes: u64) {
        if let Some(count) = COUNTERS.get_ptr_mut(counter_index(class, reason)) {
            // SAFETY: this CPU's own slot. A program that interrupts this one may lose an increment, never corrupt one.
            let count = unsafe { &mut *count };
            count.packets += 1;
            count.bytes += bytes;
        }
    }
}
