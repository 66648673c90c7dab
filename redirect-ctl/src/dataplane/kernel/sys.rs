//! The calls of `bpf(2)` about pins, links and maps of any shape, which the library keeps to itself or does not have.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// Of `enum bpf_cmd` (`include/uapi/linux/bpf.h`).
const MAP_LOOKUP_ELEMENT: libc::c_long = 1;
const MAP_UPDATE_ELEMENT: libc::c_long = 2;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJECT_PIN: libc::c_long = 6;
const OBJECT_GET: libc::c_long = 7;
const OBJECT_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// Of `enum bpf_link_type`.
const LINK_NETNS: u32 = 5;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

// Of `enum bpf_attach_type`.
const ATTACH_SOCKET_LOOKUP: u32 = 36;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;
const ATTACH_TCX_EGRESS: u32 = 47;

/// `XDP_FLAGS_DRV_MODE` (`include/uapi/linux/if_link.h`).
const XDP_DRIVER_MODE: u32 = 1 << 2;

/// `BPF_F_REPLACE`: only where the program is the one that is named.
const REPLACE: u32 = 1 << 2;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// # Safety
/// Every address in `attributes` is of memory that lives, and is as large as the kernel reads or writes for this command.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: by this function's own contract; the size is that of the attributes.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut object = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path is a string that ends with NUL and lives until the call returns.
    let fd = unsafe { bpf(OBJECT_GET, &mut object) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, a program or a link at `path`, where nothing is yet.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut object = Object { path: path.as_ptr() as u64, fd: fd.as_raw_fd().cast_unsigned(), flags: 0 };
    // SAFETY: as in `open_pin`.
    unsafe { bpf(OBJECT_PIN, &mut object) }.map(drop)
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

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_bytes: u32,
    value_bytes: u32,
    capacity: u32,
    flags: u32,
}

/// The beginning of `struct bpf_link_info`; a union follows the gap.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _gap: u32,
    place: u32,
    attach_type: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut found = T::default();
    let len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut request = InfoByFd { fd: fd.as_raw_fd().cast_unsigned(), len, info: std::ptr::from_mut(&mut found) as u64 };
    // SAFETY: the kernel writes at most `len` bytes, into a structure of integers that is so long.
    unsafe { bpf(OBJECT_GET_INFO_BY_FD, &mut request) }?;
    Ok(found)
}

/// `fd` is a map's: of another object this tells nonsense.
pub(super) fn shape(fd: BorrowedFd<'_>) -> io::Result<Shape> {
    let MapInfo { kind, key_bytes, value_bytes, capacity, flags, .. } = info(fd)?;
    Ok(Shape { kind, key_bytes, value_bytes, capacity, flags })
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
    let LinkInfo { kind, place, attach_type, .. } = info(fd)?;
    Ok(match kind {
        LINK_XDP => Place::Xdp { ifindex: place },
        LINK_TCX => Place::Tcx { ifindex: place, ingress: attach_type == ATTACH_TCX_INGRESS },
        LINK_NETNS => Place::NetworkNamespace { inode: place },
        _ => Place::Other,
    })
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
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        /// Of tcx: after all others, whatever the state of the hook.
        relative: u32,
        _pad: u32,
        expected_revision: u64,
    }
    let (target, attach_type, flags) = match target {
        Target::XdpDriver { ifindex } => (ifindex, ATTACH_XDP, XDP_DRIVER_MODE),
        Target::Tcx { ifindex, ingress: true } => (ifindex, ATTACH_TCX_INGRESS, 0),
        Target::Tcx { ifindex, ingress: false } => (ifindex, ATTACH_TCX_EGRESS, 0),
        Target::SocketLookup { namespace } => (namespace.as_raw_fd().cast_unsigned(), ATTACH_SOCKET_LOOKUP, 0),
    };
    let program = program.as_raw_fd().cast_unsigned();
    let mut create = Create { program, target, attach_type, flags, relative: 0, _pad: 0, expected_revision: 0 };
    // SAFETY: no addresses.
    let fd = unsafe { bpf(LINK_CREATE, &mut create) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a link run another program from the next packet on; only in the place of `expected`, where that is given.
pub(super) fn update_link(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    expected: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link: u32,
        program: u32,
        flags: u32,
        expected: u32,
    }
    let mut update = Update {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: if expected.is_some() { REPLACE } else { 0 },
        expected: expected.map_or(0, |expected| expected.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_UPDATE, &mut update) }.map(drop)
}

#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    /// Or where the next key goes.
    value: u64,
    flags: u64,
}

/// The entries of a map of any shape, as bytes; entries that come or go meanwhile may be among them.
pub(super) struct Entries<'m> {
    map: BorrowedFd<'m>,
    key: Option<Vec<u8>>,
    key_bytes: usize,
    /// As user space reads a value: those of every CPU, where it has one for each.
    value_bytes: usize,
}

impl<'m> Entries<'m> {
    /// `value_bytes` is what the kernel writes for a value of this map.
    pub(super) const fn new(map: BorrowedFd<'m>, key_bytes: usize, value_bytes: usize) -> Self {
        Self { map, key: None, key_bytes, value_bytes }
    }

    fn element(&self, key: &[u8], value: &mut [u8], flags: u64) -> Element {
        let key = if key.is_empty() { 0 } else { key.as_ptr() as u64 };
        Element { map: self.map.as_raw_fd().cast_unsigned(), _pad: 0, key, value: value.as_mut_ptr() as u64, flags }
    }

    /// Moves on to the next key; `false` at the end.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        let before = self.key.take().unwrap_or_default();
        let mut next = vec![0; self.key_bytes];
        let mut element = self.element(&before, &mut next, 0);
        // SAFETY: both keys live and have the map's size; none stands for the start.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut element) } {
            Ok(_) => {
                self.key = Some(next);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies the entry into another map of the same key and value, unless that has one. `false` where there is no room.
    pub(super) fn copy_to(&self, to: BorrowedFd<'_>, keep_existing: bool) -> io::Result<bool> {
        let Some(key) = &self.key else { return Ok(true) };
        let mut value = vec![0; self.value_bytes];
        let mut element = self.element(key, &mut value, 0);
        // SAFETY: key and value live and have the map's sizes.
        match unsafe { bpf(MAP_LOOKUP_ELEMENT, &mut element) } {
            Ok(_) => {}
            // It has gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(true),
            Err(error) => return Err(error),
        }
        let flags = if keep_existing { NO_EXIST } else { 0 };
        let mut element = Element { map: to.as_raw_fd().cast_unsigned(), ..self.element(key, &mut value, flags) };
        // SAFETY: as above; the other map's sizes are the same.
        match unsafe { bpf(MAP_UPDATE_ELEMENT, &mut element) } {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(true),
                Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => Ok(false),
                _ => Err(error),
            },
        }
    }
}
