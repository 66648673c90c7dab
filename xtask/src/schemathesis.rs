//! The schemathesis program, in a Python environment of its own below the target directory.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::exec;

/// Exact versions of all that it consists of.
const REQUIREMENTS: &str = "tests/schemathesis.txt";

fn folder() -> Result<PathBuf> {
    Ok(exec::target_dir()?.join("lab/schemathesis"))
}

/// Whether it is there, in the versions that are asked for.
pub(crate) fn is_present() -> Result<bool> {
    let asked = fs::read(exec::workspace().join(REQUIREMENTS)).context(REQUIREMENTS)?;
    Ok(fs::read(folder()?.join("requirements.txt")).is_ok_and(|installed| installed == asked))
}

pub(crate) fn install() -> Result<()> {
    let folder = folder()?;
    let requirements = exec::workspace().join(REQUIREMENTS);
    exec::say("installing schemathesis from PyPI below the target directory: asks the API what its description allows");
    exec::quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]).arg(&requirements);
    exec::quietly(&mut pip)?;
    // Last, so that an installation that broke off is done again.
    fs::copy(&requirements, folder.join("requirements.txt")).context("note what is installed")?;
    Ok(())
}
