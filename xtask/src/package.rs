//! `cargo xtask test package`: the package in a Debian of its own, by `packaging/test.sh`, and systemd's judgement of the unit.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian, dist,
    exec::{self, Root},
    setup,
};

/// Of ten, by `systemd-analyze security`; above, the unit has lost some of its hardening.
const EXPOSURE_MAX: f64 = 2.5;

/// What is in the Debian that the package is installed in.
const DISTRIBUTION: &str = "bookworm";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cargo's profile
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root =
        Root::require("the test of the package (it makes a root folder, installs there and loads eBPF programs)")?;
    for (program, package, purpose) in [
        ("mmdebstrap", "mmdebstrap", "makes a Debian to install the package in"),
        ("systemd-analyze", "systemd", "judges the unit"),
        ("python3", "python3", "receives what the daemon tells systemd"),
    ] {
        if exec::find(program).is_none() {
            exec::say(format!("installing {package} (apt): it {purpose}"));
            setup::apt_install(&[package])?;
        }
    }
    let unit = exec::workspace().join("packaging/redirectd.service");
    judge(&unit)?;
    let package = dist::build(&args.profile)?;

    let folder = exec::target_dir()?.join("package-test");
    let base = folder.with_extension("tar");
    if !base.is_file() {
        exec::say(format!("fetching a minimal Debian {DISTRIBUTION}; it is kept as {}", base.display()));
        let part = base.with_extension("part.tar");
        let mut command = root.command("mmdebstrap");
        command.args(["--variant=minbase", "--include=adduser,init-system-helpers", DISTRIBUTION]).arg(&part);
        exec::quietly(&mut command)?;
        std::fs::rename(&part, &base).context("keep the minimal Debian")?;
    }
    exec::quietly(root.command("rm").args(["-rf", "--one-file-system"]).arg(&folder))?;
    debian::empty(&folder)?;
    // Device files would need a privilege that containers lack, and nobody uses them.
    let mut unpack = root.command("tar");
    exec::quietly(
        unpack.args(["--extract", "--exclude=./dev/*", "--file"]).arg(&base).arg("--directory").arg(&folder),
    )?;
    let null = folder.join("dev/null");
    exec::quietly(root.command("sh").args(["-c", r#": > "$0" && chmod 666 "$0""#]).arg(&null))?;

    let mut test = root.command("unshare");
    test.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
    test.arg(exec::workspace().join("packaging/test.sh")).args([&folder, &package, &unit]);
    let status = test.status().context("run unshare")?;
    // A failure leaves it to be looked at.
    if status.success() {
        exec::quietly(root.command("rm").args(["-rf", "--one-file-system"]).arg(&folder))?;
    }
    Ok(ExitCode::from(exec::code(status)))
}

fn judge(unit: &Path) -> Result<()> {
    let answer =
        exec::quietly(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(unit))?;
    let exposure = exposure(&answer).context("systemd-analyze tells no exposure")?;
    if exposure > EXPOSURE_MAX {
        bail!("{} has an exposure of {exposure}, more than {EXPOSURE_MAX}:\n{answer}", unit.display());
    }
    exec::say(format!("systemd-analyze security: {exposure} of 10"));
    Ok(())
}

fn exposure(answer: &str) -> Option<f64> {
    let line = answer.lines().find(|line| line.contains("Overall exposure level"))?;
    line.split_whitespace().find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::exposure;

    #[test]
    fn the_exposure_is_read() {
        assert_eq!(exposure("x\n\n→ Overall exposure level for redirectd.service: 2.3 OK 🙂\n"), Some(2.3));
        assert_eq!(exposure("no such unit"), None);
    }
}
