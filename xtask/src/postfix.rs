//! Postfix's `smtp-sink`, a mail server that stores what it receives, without Postfix.
//!
//! Installing the package would configure a mail system, start it, and remove the one that the machine has. So the package
//! is downloaded and the program unpacked into the target directory, beside the libraries that it brings.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{exec, setup};

/// Where the package is unpacked; the lab looks for `usr/sbin` and `usr/lib/postfix` below.
fn folder() -> Result<PathBuf> {
    Ok(exec::target_dir()?.join("lab/postfix"))
}

pub(crate) fn is_present() -> Result<bool> {
    Ok(exec::find("smtp-sink").is_some() || folder()?.join("usr/sbin/smtp-sink").is_file())
}

pub(crate) fn unpack() -> Result<()> {
    if exec::find("apt-get").is_none() {
        bail!("this machine has no apt-get: install Postfix's smtp-sink, then run `cargo xtask setup` again");
    }
    let folder = folder()?;
    let download = folder.with_extension("part");
    // What an interrupted run left would be mistaken for the package.
    let _ = fs::remove_dir_all(&download);
    fs::create_dir_all(&download).with_context(|| format!("create {}", download.display()))?;

    // apt warns when its own user cannot write here, which does not matter: the file is fetched all the same.
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", "-qq", "postfix"]).current_dir(&download);
    if let Err(stale_lists) = exec::quietly(&mut fetch) {
        setup::apt_update("postfix").with_context(|| format!("{stale_lists:#}"))?;
        exec::quietly(&mut fetch).context("cannot download the package postfix; try `apt-get download postfix`")?;
    }
    let package =
        fs::read_dir(&download)?.flatten().map(|file| file.path()).next().context("apt-get downloaded nothing")?;

    let depends = exec::quietly(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends"))?;
    let libraries: Vec<_> = libraries(&depends).filter(|library| !setup::is_installed(library)).collect();
    if !libraries.is_empty() {
        exec::say(format!("installing {} (apt): smtp-sink is linked with them", libraries.join(" ")));
        setup::apt_install(&libraries)?;
    }

    let unpacked = download.join("unpacked");
    exec::quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&unpacked, &folder).with_context(|| format!("move the unpacked package to {}", folder.display()))?;
    fs::remove_dir_all(&download).with_context(|| format!("remove {}", download.display()))
}

/// The libraries in a package's `Depends`: the first of each list of alternatives, without its version.
fn libraries(depends: &str) -> impl Iterator<Item = &str> {
    let names = depends.split(',').filter_map(|alternatives| alternatives.split_whitespace().next());
    names.filter(|name| name.starts_with("lib"))
}

#[cfg(test)]
mod tests {
    use super::libraries;

    #[test]
    fn libraries_of_a_package() {
        let depends = "libc6 (>= 2.34), libdb5.3t64 | libdb5.3, debconf (>= 0.5) | debconf-2.0, netbase,\n libicu72 (>= 72.1~rc-1~)\n";
        assert_eq!(libraries(depends).collect::<Vec<_>>(), ["libc6", "libdb5.3t64", "libicu72"]);
        assert_eq!(libraries("").count(), 0);
    }
}
