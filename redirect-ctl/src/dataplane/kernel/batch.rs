//! Reading many entries of a map in one system call (`BPF_MAP_LOOKUP_BATCH`: hash maps from Linux 5.6 on, per-CPU arrays from 5.13
//! on, kernel commit f008d732ab18).

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::sys;

/// What a kernel says of maps that it does not read in batches (include/linux/errno.h); it should not reach user space, and does.
const ENOTSUPP: i32 = 524;

/// As many entries as there is room for in `keys`, from the start.
fn batch<K, V>(map: BorrowedFd<'_>, keys: &mut [K], values: &mut [V], next: &mut u32) -> bpf_attr {
    let mut attributes = sys::attributes();
    attributes.batch.out_batch = std::ptr::from_mut(next) as u64;
    attributes.batch.keys = keys.as_mut_ptr() as u64;
    attributes.batch.values = values.as_mut_ptr() as u64;
    attributes.batch.count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    attributes.batch.map_fd = map.as_raw_fd().cast_unsigned();
    attributes
}

/// Reads entries, and says how many, and whether they are the last ones.
///
/// # Safety
/// Every address in `attributes` is of memory that lives and is as large as the kernel may write: for `count` keys and values of the map.
unsafe fn read(attributes: &mut bpf_attr) -> io::Result<(u32, bool)> {
    // SAFETY: by this function's own contract.
    let last = match unsafe { sys::bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, attributes) } {
        Ok(_) => false,
        // What the kernel says after the last entry, where it was asked for more than there are.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: an integer, which the kernel has written.
    Ok((unsafe { attributes.batch.count }, last))
}

/// Where the next batch begins; opaque to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position(u32);

/// Entries, and where to go on; `None` at the end.
type Batch<K, V> = (Vec<(K, V)>, Option<Position>);

/// The next entries from `position` on (from the start where it is `None`), `count` at most, and where to go on; `None` at the end.
///
/// The kernel hands out whole hash buckets; should one hold more than `count` entries, the batch grows until it fits.
pub(super) fn look_up<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<Position>,
    count: usize,
) -> io::Result<Batch<K, V>> {
    let mut capacity = count.max(1);
    loop {
        match look_up_once(map, position, capacity) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => capacity *= 2,
            result => return result,
        }
    }
}

fn look_up_once<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<Position>,
    capacity: usize,
) -> io::Result<Batch<K, V>> {
    let mut keys = vec![MaybeUninit::<K>::zeroed(); capacity];
    let mut values = vec![MaybeUninit::<V>::zeroed(); capacity];
    let start = position.map_or(0, |Position(start)| start);
    let mut next = 0u32;
    let mut attributes = batch(map, &mut keys, &mut values, &mut next);
    attributes.batch.in_batch = position.map_or(0, |_| std::ptr::from_ref(&start) as u64);
    // SAFETY: every address points to a live local that is as large as the kernel may write: `capacity` keys and values of the map's own
    // sizes (the caller's types are those that the map was opened with), and 32 bits of position, as hash maps use.
    let (count, last) = unsafe { read(&mut attributes) }?;
    let filled = usize::try_from(count).unwrap_or(0).min(capacity);
    let entries = keys.into_iter().zip(values).take(filled);
    // SAFETY: the kernel has written the first `count` keys and values, and `Pod` types take any bytes.
    let entries = entries.map(|(key, value)| unsafe { (key.assume_init(), value.assume_init()) }).collect();
    Ok((entries, (!last).then_some(Position(next))))
}

/// The `len` entries of a per-CPU array, in order, each as its values on the `cpus` possible CPUs. The size of a value is a multiple of 8,
/// as the kernel rounds it up.
pub(super) fn per_cpu_array<V: Pod>(map: BorrowedFd<'_>, len: usize, cpus: usize) -> io::Result<Vec<V>> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut keys = vec![0u32; len];
    let mut values = vec![MaybeUninit::<V>::zeroed(); len * cpus];
    let mut next = 0u32;
    let mut attributes = batch(map, &mut keys, &mut values, &mut next);
    // SAFETY: every address points to a live local that is as large as the kernel may write: `len` keys of 32 bits, as many values for each
    // possible CPU, and 32 bits of position, as arrays use.
    match unsafe { read(&mut attributes) } {
        Ok(_) if keys.iter().enumerate().all(|(index, key)| *key as usize == index) => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel left entries out")),
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => one_by_one(map, cpus, &mut values)?,
        Err(error) => return Err(error),
    }
    // SAFETY: zeroed, then written by the kernel, and `Pod` types take any bytes.
    Ok(values.into_iter().map(|value| unsafe { value.assume_init() }).collect())
}

/// Entries of a per-CPU array from the first on, `cpus` values for each.
fn one_by_one<V: Pod>(map: BorrowedFd<'_>, cpus: usize, values: &mut [MaybeUninit<V>]) -> io::Result<()> {
    for (key, values) in (0u32..).zip(values.chunks_exact_mut(cpus)) {
        let (key, value) = (std::ptr::from_ref(&key) as u64, values.as_mut_ptr() as u64);
        // SAFETY: the key is of 32 bits, as in arrays, and there is room for a value of each possible CPU.
        unsafe { sys::look_up(map, key, value) }?;
    }
    Ok(())
}
