//! What a program and everything that it has started use.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Of all its processes, also of those that have ended, as far as their parents live.
    pub(crate) cpu: Duration,
    /// Its proportional share of resident memory.
    pub(crate) resident_bytes: u64,
}

/// What process `root` and its descendants have used.
pub(crate) fn of(root: u32) -> Result<Usage> {
    let processes = processes()?;
    let mut total = Usage::default();
    let mut family = vec![root];
    while let Some(id) = family.pop() {
        // One that has just ended counts among its parent's children.
        let Some(process) = processes.get(&id) else { continue };
        total.cpu += process.children + cpu(id).unwrap_or_default();
        total.resident_bytes += resident_bytes(id).unwrap_or_default();
        family.extend(processes.iter().filter(|(_, process)| process.parent == id).map(|(id, _)| *id));
    }
    Ok(total)
}

struct Process {
    parent: u32,
    /// CPU time of children that have ended.
    children: Duration,
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
    let ticks_per_second = ticks_per_second.context("the kernel has a clock tick")?;
    let processes = fs::read_dir("/proc").context("list /proc")?.flatten().filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let (parent, ticks) = parse(&fs::read_to_string(entry.path().join("stat")).ok()?)?;
        Some((id, Process { parent, children: Duration::from_millis(ticks * 1000 / ticks_per_second) }))
    });
    Ok(processes.collect())
}

/// The parent, and cutime and cstime together, in ticks (proc(5)). A name may contain anything, so fields count from its end.
fn parse(stat: &str) -> Option<(u32, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = fields.get(13..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

/// Of a process with all its threads, to the nanosecond, where proc(5) has ticks of 10 ms (`clock_getcpuclockid(3)`).
fn cpu(id: u32) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the clock's number lives until the call returns.
    let found = unsafe { libc::clock_getcpuclockid(id.try_into().ok()?, &raw mut clock) };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above, for the time.
    if found != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

fn resident_bytes(id: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(pss.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn fields_of_stat() {
        let stat = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(parse(stat), Some((7, 7)));
        assert_eq!(parse("42 (cut) S 7"), None);
    }
}
