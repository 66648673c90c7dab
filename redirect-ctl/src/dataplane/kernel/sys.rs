//! The calls of `bpf(2)` about pins, links and maps of any shape, which the library keeps to itself or does not have. What the kernel takes
//! and tells is as `aya-obj` has it of the kernel's own headers.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::util::nr_cpus;
use aya_obj::generated::{
    BPF_F_REPLACE, BPF_NOEXIST, XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type,
    bpf_map_info, bpf_map_type,
};

/// What a command is told; members that it does not have must be zero, and older kernels have fewer.
pub(super) const fn attributes() -> bpf_attr {
    // SAFETY: nothing but integers, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// Every address in `attributes` is of memory that lives, and is as large as the kernel reads or writes for this command.
pub(super) unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    let command = command as libc::c_long;
    // SAFETY: by this function's own contract; the size is that of the attributes.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<bpf_attr>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// # Safety
/// As for [`bpf`]; `command` makes a descriptor.
unsafe fn open(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: by this function's own contract.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut object = attributes();
    object.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path is a string that ends with NUL and lives until the call returns.
    unsafe { open(bpf_cmd::BPF_OBJ_GET, &mut object) }
}

/// Pins a map, a program or a link at `path`, where nothing is yet.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut object = attributes();
    object.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    object.__bindgen_anon_4.bpf_fd = number(fd);
    // SAFETY: as in `open_pin`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut object) }.map(drop)
}

/// What a map is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) capacity: u32,
    pub(super) flags: u32,
}

impl Shape {
    /// Whether its entries come and go, as those of arrays do not.
    pub(super) const fn is_table(self) -> bool {
        const HASH: u32 = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
        const LRU_HASH: u32 = bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32;
        const LPM_TRIE: u32 = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32;
        matches!(self.kind, HASH | LRU_HASH | LPM_TRIE | PER_CPU_HASH | LRU_PER_CPU_HASH)
    }

    pub(super) const fn is_array(self) -> bool {
        matches!(self.kind, ARRAY | PER_CPU_ARRAY)
    }

    /// Bytes of a value as user space reads it: of every possible CPU, each rounded up to 8, where the map has one for each.
    fn value_bytes_read(self) -> io::Result<usize> {
        let bytes = self.value_bytes as usize;
        if !matches!(self.kind, PER_CPU_HASH | PER_CPU_ARRAY | LRU_PER_CPU_HASH) {
            return Ok(bytes);
        }
        let cpus = nr_cpus().map_err(|(file, error)| io::Error::new(error.kind(), format!("{file}: {error}")))?;
        Ok(bytes.next_multiple_of(8) * cpus)
    }
}

const ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
const PER_CPU_HASH: u32 = bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH as u32;
const PER_CPU_ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32;
const LRU_PER_CPU_HASH: u32 = bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH as u32;

/// # Safety
/// `T` is what the kernel tells of such an object, of integers only.
unsafe fn info<T>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: by this function's own contract, zeros are valid.
    let mut found: T = unsafe { std::mem::zeroed() };
    let mut request = attributes();
    request.info.bpf_fd = number(fd);
    request.info.info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    request.info.info = std::ptr::from_mut(&mut found) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes, into what is so long.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut request) }?;
    Ok(found)
}

/// `fd` is a map's: of another object this tells nonsense.
pub(super) fn shape(fd: BorrowedFd<'_>) -> io::Result<Shape> {
    // SAFETY: this is what the kernel tells of maps.
    let info: bpf_map_info = unsafe { info(fd) }?;
    Ok(Shape {
        kind: info.type_,
        key_bytes: info.key_size,
        value_bytes: info.value_size,
        capacity: info.max_entries,
        flags: info.map_flags,
    })
}

/// Where a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Index 0: the device is gone.
    Xdp {
        ifindex: u32,
    },
    /// As for XDP.
    Tcx {
        ifindex: u32,
        ingress: bool,
    },
    /// Inode number of the network namespace; 0 where that is gone.
    NetworkNamespace {
        inode: u32,
    },
    Other,
}

/// `fd` is a link's.
pub(super) fn place(fd: BorrowedFd<'_>) -> io::Result<Place> {
    link(fd).map(|link| link.place)
}

/// What a link leads from and to.
pub(super) struct Link {
    /// Number of the program.
    pub(super) program: u32,
    pub(super) place: Place,
}

/// `fd` is a link's.
pub(super) fn link(fd: BorrowedFd<'_>) -> io::Result<Link> {
    const NETNS: u32 = bpf_link_type::BPF_LINK_TYPE_NETNS as u32;
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
    // SAFETY: this is what the kernel tells of links.
    let info: bpf_link_info = unsafe { info(fd) }?;
    let of_type = info.__bindgen_anon_1;
    // SAFETY: every member is of integers, and the kernel has filled in that of the type.
    let place = unsafe {
        match info.type_ {
            XDP => Place::Xdp { ifindex: of_type.xdp.ifindex },
            TCX => Place::Tcx {
                ifindex: of_type.tcx.ifindex,
                ingress: of_type.tcx.attach_type == bpf_attach_type::BPF_TCX_INGRESS as u32,
            },
            NETNS => Place::NetworkNamespace { inode: of_type.netns.netns_ino },
            _ => Place::Other,
        }
    };
    Ok(Link { program: info.prog_id, place })
}

/// The number of the first link after this one.
pub(super) fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut request = attributes();
    request.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
    // SAFETY: no addresses.
    let result = unsafe { bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut request) };
    // SAFETY: an integer, which the kernel has filled in.
    Ok(unless_absent(result)?.map(|_| unsafe { request.__bindgen_anon_6.next_id }))
}

/// `None` where there is no such link.
pub(super) fn open_link(id: u32) -> io::Result<Option<OwnedFd>> {
    let mut request = attributes();
    request.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: no addresses.
    unless_absent(unsafe { open(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut request) })
}

fn unless_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a link is made to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'t> {
    /// In the driver only: generic XDP runs on socket buffers with partial checksums.
    XdpDriver {
        ifindex: u32,
    },
    Tcx {
        ifindex: u32,
        ingress: bool,
    },
    SocketLookup {
        namespace: BorrowedFd<'t>,
    },
}

/// Attaches a program, as long as the descriptor or a pin of it is there. The library's own way falls back to netlink, whose attachments cannot
/// be pinned.
pub(super) fn create_link(program: BorrowedFd<'_>, target: Target<'_>) -> io::Result<OwnedFd> {
    // Of tcx: after all others, whatever the state of the hook, as zeros say.
    let (target, attach_type, flags) = match target {
        Target::XdpDriver { ifindex } => (ifindex, bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
        Target::Tcx { ifindex, ingress: true } => (ifindex, bpf_attach_type::BPF_TCX_INGRESS, 0),
        Target::Tcx { ifindex, ingress: false } => (ifindex, bpf_attach_type::BPF_TCX_EGRESS, 0),
        Target::SocketLookup { namespace } => (number(namespace), bpf_attach_type::BPF_SK_LOOKUP, 0),
    };
    let mut request = attributes();
    request.link_create.__bindgen_anon_1.prog_fd = number(program);
    request.link_create.__bindgen_anon_2.target_fd = target;
    request.link_create.attach_type = attach_type as u32;
    request.link_create.flags = flags;
    // SAFETY: no addresses.
    unsafe { open(bpf_cmd::BPF_LINK_CREATE, &mut request) }
}

/// Has a link run another program from the next packet on; only in the place of `expected`, where that is given.
pub(super) fn update_link(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    expected: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut request = attributes();
    request.link_update.link_fd = number(link);
    request.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    if let Some(expected) = expected {
        request.link_update.flags = BPF_F_REPLACE;
        request.link_update.__bindgen_anon_2.old_prog_fd = number(expected);
    }
    // SAFETY: no addresses.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut request) }.map(drop)
}

/// What commands about an entry are told: where its key is, and its value or where that or the next key goes.
fn element(map: BorrowedFd<'_>, key: u64, value: u64, flags: u32) -> bpf_attr {
    let mut element = attributes();
    element.__bindgen_anon_2.map_fd = number(map);
    element.__bindgen_anon_2.key = key;
    element.__bindgen_anon_2.__bindgen_anon_1.value = value;
    element.__bindgen_anon_2.flags = flags.into();
    element
}

/// # Safety
/// `key` is the address of a key of this map, and `value` of room for what the kernel writes for a value of it.
pub(super) unsafe fn look_up(map: BorrowedFd<'_>, key: u64, value: u64) -> io::Result<()> {
    // SAFETY: by this function's own contract.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut element(map, key, value, 0)) }.map(drop)
}

/// The entries of a map of any shape, as bytes; entries that come or go meanwhile may be among them.
pub(super) struct Entries<'m> {
    map: BorrowedFd<'m>,
    shape: Shape,
    /// Empty before the first one.
    key: Vec<u8>,
    next: Vec<u8>,
    /// As user space reads a value.
    value_bytes: usize,
}

impl<'m> Entries<'m> {
    pub(super) fn of(map: BorrowedFd<'m>) -> io::Result<Self> {
        let shape = shape(map)?;
        Ok(Self { map, shape, key: Vec::new(), next: Vec::new(), value_bytes: shape.value_bytes_read()? })
    }

    pub(super) const fn shape(&self) -> Shape {
        self.shape
    }

    /// Moves on to the next key; `false` at the end.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        self.next.resize(self.shape.key_bytes as usize, 0);
        let key = if self.key.is_empty() { 0 } else { self.key.as_ptr() as u64 };
        let mut element = element(self.map, key, self.next.as_mut_ptr() as u64, 0);
        // SAFETY: both keys live and have the map's size; none stands for the start.
        let found = unless_absent(unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut element) })?.is_some();
        if found {
            std::mem::swap(&mut self.key, &mut self.next);
        }
        Ok(found)
    }

    /// How many there are, `max` at most: where the key at hand goes, the kernel begins anew.
    pub(super) fn count(mut self, max: u64) -> io::Result<u64> {
        let mut counted = 0;
        while counted < max && self.advance()? {
            counted += 1;
        }
        Ok(counted)
    }

    /// The one that was advanced to.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// `None` if it has gone meanwhile, or is an empty place.
    pub(super) fn value(&self) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        // SAFETY: key and value live and have the map's sizes.
        let found = unless_absent(unsafe { look_up(self.map, self.key.as_ptr() as u64, value.as_mut_ptr() as u64) })?;
        Ok(found.map(|()| value))
    }

    /// Copies the entry into another map of the same key and value, unless that has one. `false` where there is no room.
    pub(super) fn copy_to(&self, to: BorrowedFd<'_>, keep_existing: bool) -> io::Result<bool> {
        let Some(value) = self.value()? else { return Ok(true) };
        let flags = if keep_existing { BPF_NOEXIST } else { 0 };
        let mut element = element(to, self.key.as_ptr() as u64, value.as_ptr() as u64, flags);
        // SAFETY: key and value live; the other map's sizes are the same.
        match unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut element) } {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(true),
                Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => Ok(false),
                _ => Err(error),
            },
        }
    }
}
