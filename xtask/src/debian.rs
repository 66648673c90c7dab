//! Programs of Debian's packages that are not installed but unpacked, beside the libraries that they bring.
//!
//! Installing them would configure services and start them, or remove packages of another version that the machine has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{exec, setup};

/// Unpacks the package of a program, and others with data for it, into `folder`; installs the libraries that the program is linked with.
pub(crate) fn unpack(program: &str, data: &[&str], folder: &Path) -> Result<()> {
    if exec::find("apt-get").is_none() {
        bail!("this machine has no apt-get: install what Debian calls {program}, then try again");
    }
    let download = folder.with_extension("part");
    empty(&download)?;

    // apt warns when its own user cannot write here, which does not matter: the file is fetched all the same.
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", "-qq", program]).args(data).current_dir(&download);
    if let Err(stale_lists) = exec::quietly(&mut fetch) {
        setup::apt_update(program).with_context(|| format!("{stale_lists:#}"))?;
        exec::quietly(&mut fetch)
            .with_context(|| format!("cannot download the package {program}; try `apt-get download {program}`"))?;
    }

    let unpacked = download.join("unpacked");
    let prefix = format!("{program}_");
    for package in packages(&download)? {
        if package.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            install_libraries(program, &package)?;
        }
        extract(&package, &unpacked)?;
    }
    let _ = fs::remove_dir_all(folder);
    fs::rename(&unpacked, folder).with_context(|| format!("move the unpacked package to {}", folder.display()))?;
    fs::remove_dir_all(&download).with_context(|| format!("remove {}", download.display()))
}

/// Makes a folder with nothing in it: what an interrupted run left would be mistaken for what is to come.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// The packages that were downloaded into a folder.
pub(crate) fn packages(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let packages: Vec<_> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("apt-get downloaded nothing to {}", folder.display());
    }
    Ok(packages)
}

/// Unpacks the files of a package.
pub(crate) fn extract(package: &Path, folder: &Path) -> Result<()> {
    exec::quietly(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder)).map(drop)
}

fn install_libraries(program: &str, package: &Path) -> Result<()> {
    let depends = exec::quietly(Command::new("dpkg-deb").arg("--field").arg(package).arg("Depends"))?;
    let libraries: Vec<_> = libraries(&depends).filter(|library| !setup::is_installed(library)).collect();
    if libraries.is_empty() {
        return Ok(());
    }
    exec::say(format!("installing {} (apt): {program} is linked with them", libraries.join(" ")));
    setup::apt_install(&libraries)
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
