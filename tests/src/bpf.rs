//! Programs of a handful of instructions, written here, and the calls of `bpf(2)` that load, attach and run them: what the benchmarks need
//! and no crate offers for a program that comes from no file.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEMENT: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROGRAM_ARRAY: u32 = 3;
const XDP_HAS_FRAGS: u32 = 1 << 5;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Frames that the kernel sends at once before it lets the receiving side work: as many as it takes from a queue in one go (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;
/// Bytes for the verifier to say what it dislikes.
const LOG_BYTES: usize = 64 * 1024;

/// What a program is attached to (`enum bpf_prog_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Classifier = 3,
    Xdp = 6,
}

/// A register, `r0` to `r10`.
#[derive(Clone, Copy, Debug)]
pub struct Register(pub u8);

/// One instruction of RFC 9669, or half of a wide one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(opcode: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Self {
        Self { opcode, registers: from.0 << 4 | to.0, offset, immediate }
    }

    /// `to = value`
    pub const fn set(to: Register, value: i32) -> Self {
        Self::new(0xb7, to, Register(0), 0, value)
    }

    /// `to = from`
    pub const fn copy(to: Register, from: Register) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    /// `to =` a map, as helpers take it; takes two instructions. The map has to live until the program is loaded.
    pub fn map(to: Register, map: BorrowedFd<'_>) -> [Self; 2] {
        const PSEUDO_MAP: Register = Register(1);
        let lower = Self::new(0x18, to, PSEUDO_MAP, 0, map.as_raw_fd());
        [lower, Self::new(0, Register(0), Register(0), 0, 0)]
    }

    /// `to += value`
    pub const fn add(to: Register, value: i32) -> Self {
        Self::new(0x07, to, Register(0), 0, value)
    }

    /// `to += from`
    pub const fn add_register(to: Register, from: Register) -> Self {
        Self::new(0x0f, to, from, 0, 0)
    }

    /// `to *= value`
    pub const fn multiply(to: Register, value: i32) -> Self {
        Self::new(0x27, to, Register(0), 0, value)
    }

    /// `to %= value`
    pub const fn modulo(to: Register, value: i32) -> Self {
        Self::new(0x97, to, Register(0), 0, value)
    }

    /// `to &= value`, the value extended by its sign
    pub const fn and(to: Register, value: i32) -> Self {
        Self::new(0x57, to, Register(0), 0, value)
    }

    /// `to ^= value`, the value extended by its sign
    pub const fn xor(to: Register, value: i32) -> Self {
        Self::new(0xa7, to, Register(0), 0, value)
    }

    /// `to <<= bits`
    pub const fn shift_left(to: Register, bits: i32) -> Self {
        Self::new(0x67, to, Register(0), 0, bits)
    }

    /// `to >>= bits`
    pub const fn shift_right(to: Register, bits: i32) -> Self {
        Self::new(0x77, to, Register(0), 0, bits)
    }

    /// The lower `bits` (16 or 32) of `to` in network byte order, the rest zero.
    pub const fn to_network_order(to: Register, bits: i32) -> Self {
        Self::new(0xdc, to, Register(0), 0, bits)
    }

    /// `to = *(u32 *)(from + offset)`
    pub const fn load_word(to: Register, from: Register, offset: i16) -> Self {
        Self::new(0x61, to, from, offset, 0)
    }

    /// `to = *(u64 *)(from + offset)`
    pub const fn load_double(to: Register, from: Register, offset: i16) -> Self {
        Self::new(0x79, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = value`
    pub const fn store_value(to: Register, offset: i16, value: i32) -> Self {
        Self::new(0x62, to, Register(0), offset, value)
    }

    /// `*(u16 *)(to + offset) = from`
    pub const fn store_half(to: Register, offset: i16, from: Register) -> Self {
        Self::new(0x6b, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = from`
    pub const fn store_word(to: Register, offset: i16, from: Register) -> Self {
        Self::new(0x63, to, from, offset, 0)
    }

    /// `*(u64 *)(to + offset) = from`
    pub const fn store_double(to: Register, offset: i16, from: Register) -> Self {
        Self::new(0x7b, to, from, offset, 0)
    }

    /// Skips `count` instructions unless `left > right`.
    pub const fn unless_greater(left: Register, right: Register, count: i16) -> Self {
        Self::new(0xbd, left, right, count, 0)
    }

    /// Calls the kernel's helper of this number: arguments in `r1` to `r5`, which it destroys, the result in `r0`.
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, Register(0), Register(0), 0, helper)
    }

    /// Ends the program with `r0` as its answer.
    pub const fn exit() -> Self {
        Self::new(0x95, Register(0), Register(0), 0, 0)
    }
}

/// A number in the kernel that a program keeps from run to run.
#[derive(Debug)]
pub struct Cell(OwnedFd);

impl Cell {
    pub fn new() -> io::Result<Self> {
        let mut attributes = MapAttributes { kind: MAP_TYPE_ARRAY, key_size: 4, value_size: 8, max_entries: 1 };
        // SAFETY: the attributes hold no address.
        unsafe { bpf(MAP_CREATE, &mut attributes) }.and_then(own).map(Self)
    }

    /// `to =` the address of the number; takes two instructions.
    pub fn address(&self, to: Register) -> [Instruction; 2] {
        const PSEUDO_MAP_VALUE: Register = Register(2);
        let lower = Instruction::new(0x18, to, PSEUDO_MAP_VALUE, 0, self.0.as_raw_fd());
        [lower, Instruction::new(0, Register(0), Register(0), 0, 0)]
    }
}

/// A program that others may jump to, as number 0.
#[derive(Debug)]
pub struct Jumps(OwnedFd);

impl Jumps {
    pub fn to(program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut attributes = MapAttributes { kind: MAP_TYPE_PROGRAM_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
        // SAFETY: the attributes hold no address.
        let map = unsafe { bpf(MAP_CREATE, &mut attributes) }.and_then(own)?;
        let (key, value) = (0u32, program.as_raw_fd());
        let mut attributes = ElementAttributes {
            map: map.as_raw_fd().into(),
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: key and value live, and are as long as the map says.
        unsafe { bpf(MAP_UPDATE_ELEMENT, &mut attributes) }?;
        Ok(Self(map))
    }
}

impl AsFd for Jumps {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    kind: Kind,
}

impl Program {
    /// Loads a program. Needs root.
    pub fn load(kind: Kind, instructions: &[Instruction]) -> io::Result<Self> {
        let mut log = vec![0u8; LOG_BYTES];
        let mut attributes = LoadAttributes {
            kind: kind as u32,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
            log: log.as_mut_ptr() as u64,
            kernel_version: 0,
            flags: if kind == Kind::Xdp { XDP_HAS_FRAGS } else { 0 },
            name: [0; 16],
            device: 0,
            expected_attach_type: if kind == Kind::Xdp { ATTACH_XDP } else { 0 },
        };
        // SAFETY: the addresses are of live values as long as the counts beside them say.
        let loaded = unsafe { bpf(PROG_LOAD, &mut attributes) }.and_then(own);
        let fd = loaded.map_err(|error| {
            let text: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
            io::Error::new(error.kind(), format!("{error}: {}", String::from_utf8_lossy(&text)))
        })?;
        Ok(Self { fd, kind })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A program that does nothing but answer `code`.
    pub fn answering(kind: Kind, code: i32) -> io::Result<Self> {
        Self::load(kind, &[Instruction::set(Register(0), code), Instruction::exit()])
    }

    /// Nanoseconds for a run on a copy of `frame`, averaged over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u64> {
        self.test_run(frame, repeat, 0, 0)
    }

    /// Runs an XDP program on `count` frames that the kernel treats as received: one that redirects them sends them. Returns the
    /// nanoseconds for a frame, with all that its receivers do with it in the same go.
    pub fn send(&self, frame: &[u8], count: u32) -> io::Result<u64> {
        self.test_run(frame, count, TEST_XDP_LIVE_FRAMES, BATCH)
    }

    fn test_run(&self, frame: &[u8], repeat: u32, flags: u32, batch_size: u32) -> io::Result<u64> {
        Ok(test_run(self.fd.as_fd(), frame, repeat, flags, batch_size)?.duration_ns.into())
    }

    /// Attaches the program to a device's ingress, in the driver if it is XDP, until the link is dropped. The device is looked up in the
    /// network namespace of the thread that calls.
    pub fn attach(&self, device: &str) -> io::Result<Link> {
        let (kind, flags) = match self.kind {
            Kind::Classifier => (ATTACH_TCX_INGRESS, 0),
            Kind::Xdp => (ATTACH_XDP, XDP_FLAGS_DRV_MODE),
        };
        let mut attributes = LinkAttributes {
            program_fd: self.fd.as_raw_fd(),
            device: nix::net::if_::if_nametoindex(device)?,
            kind,
            flags,
            rest: [0; 2],
        };
        // SAFETY: the attributes hold no address.
        unsafe { bpf(LINK_CREATE, &mut attributes) }.and_then(own).map(Link)
    }
}

/// What a loaded program answers for a copy of `frame`.
pub fn answer(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    Ok(test_run(program, frame, 1, 0, 0)?.return_value)
}

fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    repeat: u32,
    flags: u32,
    batch_size: u32,
) -> io::Result<RunAttributes> {
    let mut attributes = RunAttributes {
        program_fd: program.as_raw_fd(),
        return_value: 0,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat,
        duration_ns: 0,
        context: [0; 3],
        flags,
        cpu: 0,
        batch_size,
        _end: 0,
    };
    // SAFETY: `data_in` is as long as `data_size_in` says; there is no output.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes)
}

/// An attached program; dropping it detaches the program.
#[derive(Debug)]
pub struct Link(#[expect(dead_code, reason = "held for its drop")] OwnedFd);

/// The members of `union bpf_attr` for `BPF_MAP_CREATE` that are used here; the kernel takes what is missing as zero.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same for `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct ElementAttributes {
    map: i64,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct RunAttributes {
    program_fd: RawFd,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context: [u64; 3],
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _end: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkAttributes {
    program_fd: RawFd,
    device: u32,
    kind: u32,
    flags: u32,
    rest: [u64; 2],
}

fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `attributes` is what `command` takes, and every address in it is valid for what the kernel does there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: by this function's own contract.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
