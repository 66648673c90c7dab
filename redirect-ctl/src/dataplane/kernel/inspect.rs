//! What of ours is in the kernel, asked of the kernel itself: no daemon is needed, but root is (ids are for `CAP_SYS_ADMIN`).
//!
//! Programs are ours by their names, maps because those programs use them, links because they lead to those programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{Pod, maps::MapInfo, programs::loaded_programs};
use ipnet::IpNet;
use redirect_common::{
    address::{Address, V4, V6},
    bucket::{Key, PLACES_V4, PLACES_V6},
    maps::names,
    subscriber::{PrefixV4, PrefixV6},
};

use super::{
    super::Error,
    buckets::Buckets,
    memory,
    subscribers::net,
    sys::{self, Entries, Place},
    with_causes,
};

/// The kernel keeps 15 characters of a name (`BPF_OBJ_NAME_LEN`).
const NAME_LENGTH: usize = 15;

const PROGRAMS: [&str; 7] = [
    names::XDP_INGRESS,
    names::TC_INGRESS,
    names::TC_EGRESS,
    names::TC_INGRESS_IP,
    names::TC_EGRESS_IP,
    names::SOCKET_LOOKUP,
    names::EXPLAIN,
];

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub id: u32,
    pub name: String,
    /// Hash of its instructions.
    pub tag: String,
    /// Instructions that the verifier walked; `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Times that it ran, and nanoseconds in all: 0 unless `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    pub run_ns: u64,
    pub maps: Vec<u32>,
}

/// A map in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapState {
    pub id: u32,
    /// As in `redirect_common::maps::names`, cut to 15 characters.
    pub name: String,
    /// Of `enum bpf_map_type`.
    pub kind: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    /// Entries that it can hold; bytes, for a ring buffer.
    pub capacity: u32,
    /// Entries that it holds, where that says something: not for arrays and ring buffers.
    pub entries: Option<u64>,
    /// Memory in bytes.
    pub bytes: u64,
}

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: u32,
    pub program: String,
    pub kind: &'static str,
    /// Index of the network device, in the namespace that it is in; the inode of the namespace for `netns`.
    pub target: Option<u32>,
}

/// Whether a program of this name is one of ours.
pub fn is_ours(name: &str) -> bool {
    PROGRAMS.iter().any(|program| cut(program) == name)
}

fn cut(name: &str) -> &str {
    &name[..name.len().min(NAME_LENGTH)]
}

/// Our programs by id.
pub fn programs() -> Result<Vec<Program>, Error> {
    let mut programs = Vec::new();
    for info in loaded_programs() {
        let info = match info {
            Ok(info) => info,
            // It went while we looked.
            Err(error) if with_causes(&error).contains("ENOENT") => continue,
            Err(error) => return Err(refused(&with_causes(&error))),
        };
        let Some(name) = info.name_as_str().filter(|name| is_ours(name)) else { continue };
        programs.push(Program {
            id: info.id(),
            name: name.to_owned(),
            tag: format!("{:016x}", info.tag()),
            verified_instructions: info.verified_instruction_count(),
            jited_bytes: info.size_jitted(),
            runs: info.run_count(),
            run_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
            maps: info.map_ids().ok().flatten().unwrap_or_default(),
        });
    }
    programs.sort_by_key(|program| program.id);
    Ok(programs)
}

/// The maps of our programs by id. Counting the entries of large tables takes a second for each two million.
pub fn maps() -> Result<Vec<MapState>, Error> {
    let ids: BTreeSet<u32> = programs()?.into_iter().flat_map(|program| program.maps).collect();
    ids.into_iter().filter_map(|id| Some(state(&MapInfo::from_id(id).ok()?))).collect()
}

fn state(info: &MapInfo) -> Result<MapState, Error> {
    let fd = info.fd().map_err(|error| refused(&with_causes(&error)))?;
    let fd = fd.as_fd();
    let kind = info.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
    let name = info.name_as_str().unwrap_or_default().to_owned();
    let memory = memory::of(&name, fd).map_err(|source| io_error("read a map's memory", source))?;
    let entries = Entries::of(fd).map_err(|source| io_error("read a map", source))?;
    let shape = entries.shape();
    let (capacity, entries) = if let Some(table) = subscribers(&name, fd)? {
        (table.capacity, Some(table.entries.len() as u64))
    } else {
        // A table that changes meanwhile may begin anew; it never holds more than its capacity.
        let count = || entries.count(shape.capacity.into()).map_err(|source| io_error("read a map's keys", source));
        (shape.capacity, shape.is_table().then(count).transpose()?)
    };
    Ok(MapState {
        id: info.id(),
        name,
        kind,
        key_bytes: shape.key_bytes,
        value_bytes: shape.value_bytes,
        capacity,
        entries,
        bytes: memory.bytes,
    })
}

/// Entries of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    pub name: String,
    /// Keys and values as bytes.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Up to `limit` entries of the first map with this id or name.
pub fn dump(map: &str, limit: usize) -> Result<Option<Dump>, Error> {
    let ids: BTreeSet<u32> = programs()?.into_iter().flat_map(|program| program.maps).collect();
    let infos = ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok());
    let is_wanted = |info: &MapInfo| info.name_as_str() == Some(cut(map)) || info.id().to_string() == map;
    let Some(info) = infos.into_iter().find(is_wanted) else { return Ok(None) };
    let fd = info.fd().map_err(|error| refused(&with_causes(&error)))?;
    let name = info.name_as_str().unwrap_or_default().to_owned();
    if let Some(Table { mut entries, .. }) = subscribers(&name, fd.as_fd())? {
        entries.truncate(limit);
        return Ok(Some(Dump { name, entries }));
    }
    let failed = |source| io_error("read a map", source);
    let mut found = Entries::of(fd.as_fd()).map_err(failed)?;
    let mut entries = Vec::new();
    while entries.len() < limit && found.advance().map_err(failed)? {
        let value = found.value().map_err(failed)?;
        entries.extend(value.map(|value| (found.key().to_vec(), value)));
    }
    Ok(Some(Dump { name, entries }))
}

/// A subscriber map, as if it were the hash that it stands for.
struct Table {
    capacity: u32,
    /// As in [`Dump`].
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// `None` where the map is another one.
fn subscribers(map: &str, fd: BorrowedFd<'_>) -> Result<Option<Table>, Error> {
    let table = match map {
        names::HOSTS_V4 => table::<V4, PLACES_V4>(fd),
        names::HOSTS_V6 => table::<V6, PLACES_V6>(fd),
        names::PREFIXES_V4 => table::<PrefixV4, PLACES_V4>(fd),
        names::PREFIXES_V6 => table::<PrefixV6, PLACES_V6>(fd),
        _ => return Ok(None),
    };
    table.map(Some).map_err(|source| io_error("read a subscriber map", source))
}

fn table<K: Key + Pod, const PLACES: usize>(fd: BorrowedFd<'_>) -> io::Result<Table> {
    let buckets = Buckets::<K, PLACES>::open(fd)?;
    let entries = buckets.iter().map(|(key, subscriber)| (bytes_of(key), subscriber.word().to_ne_bytes().to_vec()));
    Ok(Table { capacity: buckets.capacity(), entries: entries.collect() })
}

fn bytes_of<T: Pod>(value: T) -> Vec<u8> {
    // SAFETY: a `Pod` type is as many bytes as this, all of them initialized.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

/// The subscriber that a key of one of the subscriber maps is of.
pub fn subscriber(map: &str, key: &[u8]) -> Option<IpNet> {
    match map {
        names::HOSTS_V4 => net(of_bytes::<V4>(key)?, V4::BITS).ok(),
        names::HOSTS_V6 => net(of_bytes::<V6>(key)?, V6::BITS).ok(),
        names::PREFIXES_V4 => prefix::<V4>(key),
        names::PREFIXES_V6 => prefix::<V6>(key),
        _ => None,
    }
}

fn prefix<A: Address<Prefix: Pod>>(key: &[u8]) -> Option<IpNet> {
    // No prefix is zero: a one follows its bits.
    let key = Some(key).filter(|key| key.iter().any(|byte| *byte != 0))?;
    let (address, len) = A::of_prefix(of_bytes(key)?);
    net(address, len).ok()
}

fn of_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are as many bytes as `T` has, and `Pod` types take any bytes.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Links to our programs, by id.
pub fn links() -> Result<Vec<Link>, Error> {
    let programs: BTreeMap<u32, String> = programs()?.into_iter().map(|program| (program.id, program.name)).collect();
    let mut links = Vec::new();
    let mut id = 0;
    while let Some(next) = sys::next_link(id).map_err(|source| refused(&source.to_string()))? {
        id = next;
        // One that went while we looked is no link any more.
        let Ok(Some(fd)) = sys::open_link(id) else { continue };
        let Ok(sys::Link { program, place }) = sys::link(fd.as_fd()) else { continue };
        let Some(program) = programs.get(&program) else { continue };
        let (kind, target) = match place {
            Place::NetworkNamespace { inode } => ("netns", Some(inode)),
            Place::Xdp { ifindex } => ("xdp", Some(ifindex)),
            Place::Tcx { ifindex, ingress: true } => ("tcx ingress", Some(ifindex)),
            Place::Tcx { ifindex, ingress: false } => ("tcx egress", Some(ifindex)),
            Place::Other => ("other", None),
        };
        links.push(Link { id, program: program.clone(), kind, target });
    }
    Ok(links)
}

fn refused(why: &str) -> Error {
    let remedy = if why.contains("EPERM") || why.contains("not permitted") { "; run it as root" } else { "" };
    Error::Load { reason: format!("the kernel does not tell: {why}{remedy}") }
}

fn io_error(what: &str, source: io::Error) -> Error {
    Error::System { what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_what_the_kernel_keeps_of_their_names() {
        assert!(is_ours("redirect_xdp"));
        assert!(is_ours("redirect_out_ip"));
        assert!(is_ours("redirect_socket"));
        assert!(is_ours("redirect_explai"));
        assert!(!is_ours("redirect_explain"), "the kernel keeps 15 characters");
        assert!(!is_ours("redirect"));
    }

    #[test]
    fn keys_of_subscribers_are_told_as_prefixes() {
        fn key<T: Pod>(of: T) -> Vec<u8> {
            // SAFETY: as many bytes as it has, none of them padding.
            unsafe { std::slice::from_raw_parts((&raw const of).cast::<u8>(), size_of::<T>()) }.to_vec()
        }
        let v4 = |text: &str| V4::from(text.parse::<std::net::Ipv4Addr>().unwrap());
        let v6 = |text: &str| V6::from(text.parse::<std::net::Ipv6Addr>().unwrap());
        for (map, key, expected) in [
            ("HOSTS_V4", key(v4("10.0.0.7")), Some("10.0.0.7/32")),
            ("HOSTS_V6", key(v6("fd00::7")), Some("fd00::7/128")),
            ("PREFIXES_V4", key(v4("10.20.0.0").prefix(16)), Some("10.20.0.0/16")),
            ("PREFIXES_V4", key(v4("0.0.0.0").prefix(0)), Some("0.0.0.0/0")),
            ("PREFIXES_V6", key(v6("fd00:20::").prefix(48)), Some("fd00:20::/48")),
            ("PREFIXES_V6", key(v6("fd00::8000:0:0:0").prefix(65)), Some("fd00::8000:0:0:0/65")),
            ("PREFIXES_V4", vec![0; 4], None),
            ("PREFIXES_V6", vec![0; 16], None),
            ("HOSTS_V4", vec![1, 2, 3], None),
            ("PREFIXES_V4", vec![1, 2, 3], None),
            ("CLASSES", vec![1, 0, 0, 0], None),
        ] {
            assert_eq!(subscriber(map, &key).map(|prefix| prefix.to_string()).as_deref(), expected, "{map}");
        }
    }
}
