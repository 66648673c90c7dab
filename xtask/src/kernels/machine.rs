//! The virtual machine: `qemu`, with no network and no disk, on emulated CPUs.
//!
//! Emulated although there may be `/dev/kvm`: where that is itself virtual it may be there and hang, and a kernel boots in seconds without.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::archive::Image;
use crate::{debian, exec};

const PROGRAM: &str = "qemu-system-x86_64";

/// The package of the program, and those with the firmware.
const PACKAGE: &str = "qemu-system-x86";
const DATA: [&str; 3] = ["qemu-system-common", "qemu-system-data", "seabios"];

const MEMORY: &str = "1G";
/// One: more of them wait for each other longer than they gain where several are emulated on few.
const CPUS: &str = "1";

pub(crate) struct Machine {
    /// Where the packages are unpacked; none if the machine has the program.
    unpacked: Option<PathBuf>,
}

impl Machine {
    /// Finds qemu, or unpacks it.
    pub(crate) fn find() -> Result<Self> {
        if exec::find(PROGRAM).is_some() {
            return Ok(Self { unpacked: None });
        }
        let folder = exec::target_dir()?.join("kernels/qemu");
        if !folder.is_dir() {
            exec::say(format!("unpacking {PACKAGE} and its firmware (not installing it): boots the kernels"));
            fs::create_dir_all(folder.parent().expect("it is in a folder"))?;
            debian::unpack(PACKAGE, &DATA, &folder)?;
        }
        Ok(Self { unpacked: Some(folder) })
    }

    /// Boots a kernel and hands on each line that the guest writes to its second serial port; what the kernel says goes to the file
    /// `console`. Returns when the machine is switched off; one that still runs after `limit` is an error.
    pub(crate) fn run(
        &self,
        image: &Image,
        initramfs: &Path,
        console: &Path,
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<()> {
        let mut qemu = self.command();
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"])
            .args(["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", CPUS, "-m", MEMORY])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the machine at once.
            .args(["-append", "console=ttyS0 panic=-1"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut machine = Running(qemu.spawn().context("run qemu")?);
        let output = machine.0.stdout.take().context("qemu has no standard output")?;
        let (lines, received) = mpsc::channel();
        // Ends with the machine, whose output it reads.
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });

        let deadline = Instant::now() + limit;
        loop {
            match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => line(text.trim_end()),
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("still running after {} s", limit.as_secs()),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = machine.0.wait().context("wait for qemu")?;
        if !status.success() {
            bail!("qemu ended with {status}");
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let Some(folder) = &self.unpacked else { return Command::new(PROGRAM) };
        let mut qemu = Command::new(folder.join("usr/bin").join(PROGRAM));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(folder.join(firmware));
        }
        qemu.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        qemu
    }
}

/// A machine that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
