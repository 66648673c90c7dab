//! The first process of a virtual machine: file systems, modules, and the end.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

/// Where facts are written to; the kernel writes to the first port.
const PORT: &str = "/dev/ttyS1";

const FILE_SYSTEMS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("bpf", "/sys/fs/bpf"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];

pub(crate) fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Makes the machine one that the lab can be in; returns the port for facts.
pub(crate) fn prepare() -> Result<File> {
    for (kind, folder) in FILE_SYSTEMS {
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&Path>)
            .with_context(|| format!("mount {folder}"))?;
    }
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|file| file.path()).collect();
    modules.sort();
    for path in modules {
        let module = File::open(&path)?;
        finit_module(&module, c"", ModuleInitFlags::empty()).with_context(|| format!("load {}", path.display()))?;
    }
    File::options().write(true).open(PORT).with_context(|| format!("open {PORT}"))
}

/// The machine was told to end instead of starting again.
pub(crate) fn switch_off() -> ! {
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => panic!("the machine does not end: {error}"),
    }
}
