//! The cheapest program of each hook: what the harness itself costs, which every benchmark stands beside.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::kernel::Hook;

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const TYPE_SCHED_CLS: u32 = 3;
const TYPE_XDP: u32 = 6;

/// The members of `union bpf_attr` for `BPF_PROG_LOAD` that are used here; the kernel takes what is missing as zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 6],
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct RunAttributes {
    program_fd: u32,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context: [u64; 4],
}

/// A loaded program that only passes.
pub struct Floor(OwnedFd);

impl Floor {
    /// Loads `r0 = pass; exit`. Needs root.
    pub fn load(hook: Hook) -> io::Result<Self> {
        let (program_type, pass) = match hook {
            Hook::Xdp => (TYPE_XDP, 2),
            _ => (TYPE_SCHED_CLS, -1i32),
        };
        // Two instructions of eight bytes: opcode, registers, offset, immediate.
        let mut instructions = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0u8];
        instructions[4..8].copy_from_slice(&pass.to_ne_bytes());
        let mut attributes = LoadAttributes {
            program_type,
            instruction_count: 2,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 6],
        };
        // SAFETY: the addresses are of live locals as long as the counts beside them say.
        let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Nanoseconds for a run, averaged over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u64> {
        let mut attributes = RunAttributes {
            program_fd: self.0.as_raw_fd().cast_unsigned(),
            return_value: 0,
            data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
            data_size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat,
            duration_ns: 0,
            context: [0; 4],
        };
        // SAFETY: `data_in` is as long as `data_size_in` says; there is no output.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        Ok(attributes.duration_ns.into())
    }
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
