//! The maps, and [`Tables`] over them. Capacities here are the defaults; the daemon may load with others.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_CURRENT_NETNS, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock_tuple},
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use redirect_common::{
    address::{Host, V4, V6},
    bucket::{BucketV4, BucketV6, PLACES_V4, PLACES_V6, buckets, find},
    event::Event,
    flow::{Flow, Tuple},
    fragment::{Datagram, Fate},
    limit::Rate,
    maps::{
        Budget, CLASSES_MAX, COUNTERS_MAX, Count, ENTRIES_PER_FLOW, EVENTS_BYTES, FLOWS_MAX, FRAGMENTS_MAX,
        HALF_OPEN_MAX, INTERFACE_COUNTERS_MAX, INTERFACE_INDICES, Interface, LOCKS_MAX, OPEN_MAX, RATES_MAX,
        RELAY_PORT_WORDS, RELAYS_MAX, RESETS_PER_SECOND_MAX, Resets, SUBSCRIBERS_MAX, counter_index,
        interface_counter_index,
    },
    policy::{Class, POOL_SLOTS, Relay, Settings},
    reason::Reason,
    subscriber::{PrefixV4, PrefixV6, Subscriber, class_number},
    tables::{FamilyTables, InsertError, Pulse, Socket, Table, Tables},
};

// What user space maps into its memory begins on a page, so each bucket is one cache line.
#[map]
static HOSTS_V4: Array<BucketV4<V4>> = Array::with_max_entries(buckets(SUBSCRIBERS_MAX, PLACES_V4), BPF_F_MMAPABLE);
#[map]
static HOSTS_V6: Array<BucketV6<V6>> = Array::with_max_entries(buckets(SUBSCRIBERS_MAX, PLACES_V6), BPF_F_MMAPABLE);
#[map]
static PREFIXES_V4: Array<BucketV4<PrefixV4>> =
    Array::with_max_entries(buckets(SUBSCRIBERS_MAX, PLACES_V4), BPF_F_MMAPABLE);
#[map]
static PREFIXES_V6: Array<BucketV6<PrefixV6>> =
    Array::with_max_entries(buckets(SUBSCRIBERS_MAX, PLACES_V6), BPF_F_MMAPABLE);
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
static FRAGMENTS_V4: LruHashMap<Datagram<V4>, Fate<V4>> = LruHashMap::with_max_entries(FRAGMENTS_MAX, 0);
#[map]
static FRAGMENTS_V6: LruHashMap<Datagram<V6>, Fate<V6>> = LruHashMap::with_max_entries(FRAGMENTS_MAX, 0);
#[map]
static RATES: LruHashMap<Host, Rate> = LruHashMap::with_max_entries(RATES_MAX, 0);
/// Connections that were opened less those seen to end, which only packets write.
#[map]
static OPEN: HashMap<Host, u32> = HashMap::with_max_entries(OPEN_MAX, BPF_F_NO_PREALLOC);
/// Connections that ended unseen and were collected, which only user space writes: so no count gets lost between the two.
#[map]
static REAPED: HashMap<Host, u32> = HashMap::with_max_entries(OPEN_MAX, BPF_F_NO_PREALLOC);
/// Until when subscribers are locked, in seconds of the coarse clock.
#[map]
static LOCKS: LruHashMap<Host, u32> = LruHashMap::with_max_entries(LOCKS_MAX, 0);
/// Listening sockets of relays that flows are steered to.
#[map]
pub(crate) static SOCKETS: SockMap = SockMap::with_max_entries(RELAYS_MAX * 2, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
static EVENT_BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static INTERFACES: Array<Interface> = Array::with_max_entries(INTERFACE_INDICES, 0);
#[map]
static INTERFACE_COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(INTERFACE_COUNTERS_MAX, 0);
/// Of the program that explains: a flow that it may change.
#[map]
static COPY_V4: PerCpuArray<Flow<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COPY_V6: PerCpuArray<Flow<V6>> = PerCpuArray::with_max_entries(1, 0);
/// A flow that is about to be entered.
#[map]
static NEW_V4: PerCpuArray<Flow<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static NEW_V6: PerCpuArray<Flow<V6>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static RESETS: PerCpuArray<Resets> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);

/// Buckets of each subscriber map of IPv4; the loader writes here how many it makes.
#[unsafe(no_mangle)]
static BUCKETS_V4: u32 = buckets(SUBSCRIBERS_MAX, PLACES_V4);
/// As [`BUCKETS_V4`].
#[unsafe(no_mangle)]
static BUCKETS_V6: u32 = buckets(SUBSCRIBERS_MAX, PLACES_V6);

/// What the loader wrote: the compiler believes what stands above.
#[inline(always)]
fn loaded(variable: &u32) -> u32 {
    // SAFETY: a reference is valid.
    unsafe { read_volatile(variable) }
}

/// -1, for the network namespace that the program runs in.
const CURRENT_NETNS: u64 = (BPF_F_CURRENT_NETNS as i64).cast_unsigned();

/// `EEXIST` of the kernel (include/uapi/asm-generic/errno-base.h), as a helper returns it.
const EXISTS: i32 = -17;

// What the verifier calls a global function: it verifies one once and by itself, not again for each way that leads to a call of it. That is worth
// much here, because the walk through the lengths is long. A function is global if its symbol is; it takes numbers only, since kernels before
// 5.12 let nothing else in.

/// The entry of a prefix, by its word; 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prefix_v4(word: u32) -> u32 {
    let found = find(PrefixV4(word), loaded(&BUCKETS_V4), |index| PREFIXES_V4.get(index));
    found.map_or(0, Subscriber::word)
}

/// The number of the class of a source, by its two words; 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn class_number_v6(first: u64, second: u64) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return 0 };
    let host = |host: &V6| find(*host, loaded(&BUCKETS_V6), |index| HOSTS_V6.get(index));
    let prefix = |PrefixV6([first, second]): &PrefixV6| Subscriber::found(prefix_v6(*first, *second));
    class_number(V6([first, second]), settings, host, prefix).into()
}

/// As [`prefix_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prefix_v6(first: u64, second: u64) -> u32 {
    let found = find(PrefixV6([first, second]), loaded(&BUCKETS_V6), |index| PREFIXES_V6.get(index));
    found.map_or(0, Subscriber::word)
}

/// As [`class_number_v6`], but no function by itself: there are few lengths, and a return costs more than the walk through one.
#[inline(always)]
fn class_number_v4(source: V4) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return 0 };
    let host = |host: &V4| find(*host, loaded(&BUCKETS_V4), |index| HOSTS_V4.get(index));
    class_number(source, settings, host, |PrefixV4(word)| Subscriber::found(prefix_v4(*word))).into()
}

/// The maps of this object, and the sockets of the network namespace that a program runs in.
pub(crate) struct Maps {
    /// Of the program, which some helpers want to see.
    context: *mut c_void,
}

impl Maps {
    #[inline(always)]
    pub(crate) const fn new(context: *mut c_void) -> Self {
        Self { context }
    }
}

/// The number of the relay whose listening socket is to take a segment of a steered flow that has no socket of its own: the relay of a new
/// connection. One that was established and is no more has lost its number, and any relay of its class will do: the kernel refuses the
/// segment, and a reset in the name of another server takes a socket that may send it.
#[inline(always)]
pub(crate) fn steered_relay<A>(tuple: &Tuple<A>) -> Option<u32>
where
    A: redirect_common::address::Address,
    Maps: FamilyTables<A>,
{
    let maps = Maps::new(core::ptr::null_mut());
    let new = maps.flow(Table::HalfOpen, tuple, |flow| flow.is_steered().then(|| flow.steered_relay())).flatten();
    if new.is_some() {
        return new;
    }
    let class = maps.flow(Table::Established, tuple, |flow| flow.is_steered().then_some(flow.class)).flatten()?;
    let class = maps.class(class)?;
    let mut relays = (0..POOL_SLOTS).map(|slot| u32::from(A::relay(class, slot)));
    relays.find(|relay| RELAYS.get(*relay).is_some_and(Relay::is_steered))
}

/// What a steered packet's mark becomes.
#[inline(always)]
pub(crate) fn marked(mark: u32) -> u32 {
    SETTINGS.get(0).map_or(mark, |settings| mark & !settings.mark_mask | settings.mark)
}

macro_rules! family {
    ($address:ty, $class_number:expr, $half_open:ident, $established:ident, $fragments:ident, $copy:ident, $new:ident, $tuple_len:literal) => {
        impl FamilyTables<$address> for Maps {
            #[inline(always)]
            fn class_number(&self, source: &$address) -> u16 {
                ($class_number)(source) as u16
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
            fn copied_flow<R>(
                &self,
                table: Table,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                // SAFETY: this CPU's own memory, too large for the stack; only the program that explains uses it, and that runs one at a time.
                let copy = unsafe { &mut *$copy.get_ptr_mut(0)? };
                self.flow(table, key, |flow| *copy = *flow)?;
                Some(change(copy))
            }

            #[inline(always)]
            fn enter(&self, key: &Tuple<$address>, replace: bool, flow: impl FnOnce() -> Flow<$address>) -> bool {
                let Some(new) = $new.get_ptr_mut(0) else { return false };
                // SAFETY: this CPU's own memory, for a flow is large for the stack; programs that enter flows do not interrupt each other.
                let new = unsafe { &mut *new };
                *new = flow();
                let flags = if replace { BPF_ANY } else { BPF_NOEXIST };
                $half_open.insert(key, &*new, flags.into()).is_ok()
            }

            #[inline(always)]
            fn establish(&self, key: &Tuple<$address>, flow: &Flow<$address>) -> Result<(), InsertError> {
                $established
                    .insert(key, flow, BPF_NOEXIST.into())
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

            #[inline(always)]
            fn fate(&self, datagram: &Datagram<$address>) -> Option<Fate<$address>> {
                // SAFETY: a value is copied at once. An entry that is recycled meanwhile can mislead one fragment, whose datagram then fails
                // its checksum.
                unsafe { $fragments.get(datagram) }.copied()
            }

            #[inline(always)]
            fn set_fate(&self, datagram: &Datagram<$address>, fate: &Fate<$address>) {
                // A table that recycles its oldest entries has room.
                let _ = $fragments.insert(datagram, fate, 0);
            }

            #[inline(always)]
            fn socket(&self, tuple: &Tuple<$address>) -> Socket {
                const ESTABLISHED: u32 = 1;
                const TIME_WAIT: u32 = 6;
                const LISTEN: u32 = 10;
                const NEW_SYN_RECV: u32 = 12;
                // A tuple lies in memory as `struct bpf_sock_tuple` does: addresses, then ports, in network byte order.
                const { assert!(core::mem::offset_of!(Tuple<$address>, ports) + 4 == $tuple_len) };
                let tuple = core::ptr::from_ref(tuple).cast_mut().cast::<bpf_sock_tuple>();
                // SAFETY: the context is the program's own; the helper reads `$tuple_len` bytes of the tuple and writes none.
                let socket = unsafe { bpf_skc_lookup_tcp(self.context, tuple, $tuple_len, CURRENT_NETNS, 0) };
                if socket.is_null() {
                    return Socket::None;
                }
                // SAFETY: not null, and held until it is released, which is before this function returns.
                let state = unsafe {
                    let state = (*socket).state;
                    bpf_sk_release(socket.cast());
                    state
                };
                match state {
                    LISTEN => Socket::None,
                    TIME_WAIT | NEW_SYN_RECV => Socket::Waiting,
                    ESTABLISHED.. => Socket::Connected,
                    0 => Socket::None,
                }
            }
        }
    };
}

family!(V4, |source: &V4| class_number_v4(*source), HALF_OPEN_V4, FLOWS_V4, FRAGMENTS_V4, COPY_V4, NEW_V4, 12);
family!(
    V6,
    |&V6([first, second])| class_number_v6(first, second),
    HALF_OPEN_V6,
    FLOWS_V6,
    FRAGMENTS_V6,
    COPY_V6,
    NEW_V6,
    36
);

/// Adds to a count that other CPUs change as well. The library has no atomics: LLVM is told that this target has one thread.
#[inline(always)]
fn add(count: *mut u32, change: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's pointer is to a value of a map, four bytes and aligned.
    unsafe {
        core::arch::asm!("lock *(u32 *)({count} + 0) += {change}", count = in(reg) count, change = in(reg) change);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (count, change);
}

impl Tables for Maps {
    #[inline(always)]
    fn class(&self, class: u16) -> Option<&Class> {
        CLASSES.get(class.into()).filter(|class| class.is_present())
    }

    #[inline(always)]
    fn relay(&self, relay: u16) -> Option<&Relay> {
        RELAYS.get(relay.into())
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
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn is_daemon_down(&self) -> bool {
        // SAFETY: the helper takes nothing.
        SETTINGS.get(0).is_some_and(|settings| settings.is_daemon_down(unsafe { bpf_ktime_get_ns() }))
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        SETTINGS.get(0).map_or(0, Settings::epoch)
    }

    #[inline(always)]
    fn pulse(&self) -> Pulse {
        SETTINGS.get(0).map_or(Pulse { now_s: 0, epoch: 0, zero: 0 }, |settings| Pulse {
            now_s: settings.clock_s,
            epoch: settings.epoch(),
            zero: settings.zero() as usize,
        })
    }

    #[inline(always)]
    fn is_steering(&self) -> bool {
        SETTINGS.get(0).is_some_and(|settings| settings.mark != 0)
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
    fn rate<R>(&self, host: Host, change: impl FnOnce(&mut Rate) -> R) -> Option<R> {
        if RATES.get_ptr_mut(host).is_none() {
            // Another CPU may be faster; then its entry is there.
            let _ = RATES.insert(host, Rate::default(), BPF_NOEXIST.into());
        }
        let rate = RATES.get_ptr_mut(host)?;
        // SAFETY: as for a flow: other CPUs may write the same words, any of whose values is valid; `limit` says what that costs.
        Some(change(unsafe { &mut *rate }))
    }

    #[inline(always)]
    fn peek_rate(&self, host: Host) -> Rate {
        // SAFETY: a value is copied at once.
        unsafe { RATES.get(host) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn open(&self, host: Host) -> u32 {
        // SAFETY: values are single words.
        let [open, reaped] = unsafe { [OPEN.get(host), REAPED.get(host)] }.map(|count| count.copied().unwrap_or(0));
        let left = open.wrapping_sub(reaped);
        // Below nothing: the two were cleared at different times.
        if left > i32::MAX as u32 { 0 } else { left }
    }

    #[inline(always)]
    fn add_open(&self, host: Host) -> bool {
        if OPEN.get_ptr_mut(host).is_none() {
            // Another CPU may be faster; then its entry is there.
            let _ = OPEN.insert(host, 0, BPF_NOEXIST.into());
        }
        let Some(open) = OPEN.get_ptr_mut(host) else { return false };
        add(open, 1);
        true
    }

    #[inline(always)]
    fn remove_open(&self, host: Host) {
        if let Some(open) = OPEN.get_ptr_mut(host) {
            add(open, -1);
        }
    }

    #[inline(always)]
    fn locked_until_s(&self, host: Host) -> Option<u32> {
        // SAFETY: a value is one word.
        unsafe { LOCKS.get(host) }.copied()
    }

    #[inline(always)]
    fn lock(&self, host: Host, until_s: u32) {
        // A table that recycles its oldest entries has room.
        let _ = LOCKS.insert(host, until_s, 0);
    }

    #[inline(always)]
    fn take_event(&self, now_s: u32) -> bool {
        let (Some(budget), Some(settings)) = (EVENT_BUDGET.get_ptr_mut(0), SETTINGS.get(0)) else { return false };
        // SAFETY: this CPU's own slot, as in `count`.
        let budget = unsafe { &mut *budget };
        if budget.second_s != now_s {
            budget.second_s = now_s;
            budget.reported = 0;
        }
        let left = budget.reported < settings.events_per_second;
        if left {
            budget.reported += 1;
        } else {
            budget.lost += 1;
        }
        left
    }

    #[inline(always)]
    fn report(&self, event: &Event) {
        if EVENTS.output::<Event>(event, 0).is_err()
            && let Some(budget) = EVENT_BUDGET.get_ptr_mut(0)
        {
            // SAFETY: this CPU's own slot, as in `count`.
            unsafe { (*budget).lost += 1 };
        }
    }

    #[inline(always)]
    fn count(&self, ifindex: u32, class: u16, reason: Reason, bytes: u64) {
        let slot = match INTERFACES.get(ifindex % INTERFACE_INDICES) {
            Some(interface) if interface.ifindex == ifindex => interface.slot,
            _ => 0,
        };
        add_packet(INTERFACE_COUNTERS.get_ptr_mut(interface_counter_index(slot, reason)), bytes);
        if class != 0 {
            add_packet(COUNTERS.get_ptr_mut(counter_index(class, reason)), bytes);
        }
    }
}

#[inline(always)]
fn add_packet(count: Option<*mut Count>, bytes: u64) {
    if let Some(count) = count {
        // SAFETY: this CPU's own slot. A program that interrupts this one may lose an increment, never corrupt one.
        let count = unsafe { &mut *count };
        count.packets += 1;
        count.bytes += bytes;
    }
}
