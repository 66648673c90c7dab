//! A CPU for the threads that measure: others' work reaches them through shared caches and memory only.

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Above every ordinary thread, below every other real-time one.
const PRIORITY: i32 = 1;

/// The last CPU that this process may use; the first does more of the kernel's chores.
pub(crate) fn choose() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask which CPUs there are")?;
    (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("there is a CPU")
}

/// Puts the calling thread on one CPU, before everybody else there, for as long as it lives.
pub(crate) fn claim(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("run on CPU {cpu}"))?;
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameters live until the call returns.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    nix::errno::Errno::result(result).context("run before others (SCHED_FIFO)").map(drop)
}
