//! What of ours is in the kernel, asked of the kernel itself: no daemon is needed, but root is (ids are for `CAP_SYS_ADMIN`).
//!
//! Programs are ours by their names, maps because those programs use them, links because they lead to those programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::{maps::MapInfo, programs::loaded_programs};
use redirect_common::maps::names;

use super::{super::Error, memory, with_causes};

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

// Of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;

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
    let kind = info.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
    let name = info.name_as_str().unwrap_or_default().to_owned();
    let memory =
        memory::memory(&name, &fdinfo(fd.as_fd())?).map_err(|source| io_error("read a map's memory", source))?;
    let counts = ["HashMap", "LruHash", "PerCpuHash", "LruPerCpuHash", "LpmTrie", "Hash"];
    let entries = counts.contains(&kind.as_str()).then(|| count(fd.as_fd(), info)).transpose()?;
    Ok(MapState {
        id: info.id(),
        name,
        kind,
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        capacity: info.max_entries(),
        entries,
        bytes: memory.bytes,
    })
}

fn count(fd: BorrowedFd<'_>, info: &MapInfo) -> Result<u64, Error> {
    let mut keys = Keys::of(fd, info.key_size());
    let mut count = 0;
    // A table that changes meanwhile may begin anew; it never holds more than this.
    while count < u64::from(info.max_entries()) && keys.advance()?.is_some() {
        count += 1;
    }
    Ok(count)
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
    let fd = fd.as_fd();
    // A per-CPU value is one for each possible CPU, each rounded up to 8 bytes.
    let is_per_cpu = info.map_type().is_ok_and(|kind| format!("{kind:?}").contains("PerCpu"));
    let cpus =
        if is_per_cpu { aya::util::nr_cpus().map_err(|(_, source)| io_error("count the CPUs", source))? } else { 1 };
    let value_bytes = info.value_size() as usize;
    let room = if is_per_cpu { value_bytes.next_multiple_of(8) * cpus } else { value_bytes };
    let mut keys = Keys::of(fd, info.key_size());
    let mut entries = Vec::new();
    while entries.len() < limit {
        let Some(key) = keys.advance()? else { break };
        let mut value = vec![0; room];
        match look_up(fd, key, &mut value) {
            Ok(()) => entries.push((key.to_vec(), value)),
            // It went while we looked, or is an empty place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("read a map", source)),
        }
    }
    Ok(Some(Dump { name: info.name_as_str().unwrap_or_default().to_owned(), entries }))
}

/// Links to our programs, by id.
pub fn links() -> Result<Vec<Link>, Error> {
    let programs: BTreeMap<u32, String> = programs()?.into_iter().map(|program| (program.id, program.name)).collect();
    let mut links = Vec::new();
    let mut id = 0;
    while let Some(next) = next_link(id).map_err(|source| refused(&source.to_string()))? {
        id = next;
        // One that went while we looked is no link any more.
        let Ok(words) = link_info(id) else { continue };
        let Some(program) = programs.get(&words[2]) else { continue };
        let (kind, target) = match words[0] {
            5 => ("netns", Some(words[4])),
            6 => ("xdp", Some(words[4])),
            // BPF_TCX_INGRESS and BPF_TCX_EGRESS of enum bpf_attach_type.
            11 if words[5] == 46 => ("tcx ingress", Some(words[4])),
            11 => ("tcx egress", Some(words[4])),
            _ => ("other", None),
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

fn fdinfo(fd: BorrowedFd<'_>) -> Result<String, Error> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    fs::read_to_string(&path).map_err(|source| io_error(&format!("read {path}"), source))
}

/// The keys of a map, one after the other.
struct Keys<'fd> {
    fd: BorrowedFd<'fd>,
    key: Vec<u8>,
    next: Vec<u8>,
    begun: bool,
}

/// `union bpf_attr` of commands about an entry.
#[repr(C)]
struct EntryAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<'fd> Keys<'fd> {
    fn of(fd: BorrowedFd<'fd>, bytes: u32) -> Self {
        let key = vec![0; bytes as usize];
        Self { fd, next: key.clone(), key, begun: false }
    }

    fn advance(&mut self) -> Result<Option<&[u8]>, Error> {
        let mut attributes = EntryAttributes {
            map: self.fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: if self.begun { self.key.as_ptr() as u64 } else { 0 },
            value: self.next.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: `key` (or none) and `next` live and are as long as the map's keys, as the kernel said.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attributes) } {
            Ok(_) => {
                self.begun = true;
                std::mem::swap(&mut self.key, &mut self.next);
                Ok(Some(&self.key))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(io_error("read a map's keys", source)),
        }
    }
}

fn look_up(fd: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attributes = EntryAttributes {
        map: fd.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: `key` and `value` live and are as long as the map's keys and values, for all CPUs where it has one for each.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes) }.map(drop)
}

fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut attributes = [id, 0, 0_u32];
    // SAFETY: no addresses; the kernel writes the second word.
    match unsafe { bpf(LINK_GET_NEXT_ID, &mut attributes) } {
        Ok(_) => Ok(Some(attributes[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// The first words of `struct bpf_link_info`: type, id, program, padding, and two of what the type has.
const LINK_WORDS: usize = 6;

fn link_info(id: u32) -> io::Result<[u32; LINK_WORDS]> {
    // SAFETY: no addresses.
    let fd = unsafe { bpf(LINK_GET_FD_BY_ID, &mut [id, 0, 0]) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut words = [0; LINK_WORDS];
    let mut attributes =
        InfoAttributes { fd: fd.as_raw_fd().cast_unsigned(), length: 24, info: words.as_mut_ptr() as u64 };
    // SAFETY: `words` lives and has `length` bytes.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(words)
}

/// # Safety
/// Every address in `attributes` is of memory that lives and is as large as the kernel may read or write by the command.
unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: by this function's own contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
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
}
