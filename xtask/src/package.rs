//! `cargo xtask test package`: the package under Debian's own systemd, in a virtual machine without a network. What is looked at is in
//! `packaging/test.sh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    dist,
    exec::{self, Root},
    kernels::{
        archive::{self, Image},
        initramfs::Initramfs,
        machine::Machine,
    },
    setup::{self, Presence, Tool},
};

/// The Debian that the package is installed in.
const DISTRIBUTION: &str = "bookworm";

/// The series of its kernel, and the release that has it: one with tcx, whose attachments outlive the daemon.
const KERNEL: (&str, &str) = ("6.12", "bookworm-backports");

/// What is in it beside the essential packages.
const PACKAGES: &str = "--include=adduser,init-system-helpers,iproute2,kmod,systemd-sysv";

/// Run in its root folder: nobody reads there, nobody logs in there, and systemd is to begin with the test.
const PREPARATION: &str = r#"--customize-hook=cd "$1"
rm -rf usr/share/doc/* usr/share/locale/* usr/share/man/*
ln -s sbin/init init
cd etc/systemd/system
ln -s /dev/null serial-getty@ttyS0.service
mkdir -p multi-user.target.wants
ln -s ../package-test.service multi-user.target.wants"#;

/// Many times what it takes where nothing else runs: the emulated CPU shares this machine's with whatever does.
const LIMIT: Duration = Duration::from_hours(1);

/// The last line of a test that went well.
const GOOD: &str = "==> installed, run, removed: nothing is left";

const TOOLS: [Tool; 2] = [
    Tool {
        presence: Presence::Program("mmdebstrap"),
        package: "mmdebstrap",
        purpose: "makes a Debian to install the package in",
    },
    Tool { presence: Presence::Program("cpio"), package: "cpio", purpose: "packs it for the virtual machine" },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cargo's profile
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::require("the test of the package (it makes the root folder of a Debian)")?;
    setup::ensure_tools(&TOOLS)?;
    setup::ensure_tools(&archive::TOOLS)?;
    let package = dist::build(&args.profile)?;
    let folder = exec::target_dir()?.join("package-test");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let debian = debian(root, &folder)?;
    let kernels = exec::target_dir()?.join("kernels");
    fs::create_dir_all(&kernels).with_context(|| format!("create {}", kernels.display()))?;
    let image = archive::image(KERNEL.0, KERNEL.1, &kernels.join(KERNEL.0))?;
    let initramfs = folder.join("initramfs.cpio");
    root_file_system(&debian, &package, &image, &initramfs)?;

    exec::say(format!("booting Debian {DISTRIBUTION} with Linux {}", image.release));
    let console = folder.join("console");
    let mut last = String::new();
    Machine::find()?.run(&image, &initramfs, &console, LIMIT, |line| {
        println!("{line}");
        line.clone_into(&mut last);
    })?;
    fs::remove_file(&initramfs)?;
    if last == GOOD {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed; what kernel and systemd said is in {}", console.display());
    Ok(ExitCode::FAILURE)
}

/// A minimal Debian as a cpio archive in the form that the kernel unpacks; fetched unless it is in `folder`.
fn debian(root: Root, folder: &Path) -> Result<PathBuf> {
    let archive = folder.join(format!("{DISTRIBUTION}.cpio"));
    if archive.is_file() {
        return Ok(archive);
    }
    exec::say(format!("fetching a minimal Debian {DISTRIBUTION}; it is kept as {}", archive.display()));
    let tree = folder.join("tree");
    let remove = || exec::quietly(root.command("rm").args(["-rf", "--one-file-system"]).arg(&tree));
    remove()?;
    let mut fetch = root.command("mmdebstrap");
    fetch.args(["--variant=minbase", "--format=directory", PACKAGES, PREPARATION, DISTRIBUTION]).arg(&tree);
    exec::quietly(&mut fetch)?;
    let part = archive.with_extension("part");
    // The kernel fills /dev.
    let pack = r#"cd "$0" && find . -xdev -not -path './dev/*' | cpio --create --format=newc --quiet > "$1""#;
    exec::quietly(root.command("sh").args(["-c", pack]).args([&tree, &part]))?;
    remove()?;
    fs::rename(&part, &archive).context("keep the minimal Debian")?;
    Ok(archive)
}

/// Debian, and behind it what the test adds: the kernel takes archives one after the other.
fn root_file_system(debian: &Path, package: &Path, image: &Image, to: &Path) -> Result<()> {
    let ours = exec::workspace().join("packaging");
    let mut added = Initramfs::new();
    added.file("redirectd.deb", package)?;
    added.file("test.sh", &ours.join("test.sh"))?;
    added.file("etc/systemd/system/package-test.service", &ours.join("package-test.service"))?;
    added.modules(&image.modules)?;
    added.write(to)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let both = [read(debian)?, read(to)?].concat();
    fs::write(to, both).with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::GOOD;
    use crate::exec;

    #[test]
    fn the_script_ends_with_the_line_that_is_waited_for() {
        let script = std::fs::read_to_string(exec::workspace().join("packaging/test.sh")).unwrap();
        let last = script.lines().last().unwrap();
        assert_eq!(last, format!("say \"{}\"", GOOD.strip_prefix("==> ").unwrap()));
    }
}
