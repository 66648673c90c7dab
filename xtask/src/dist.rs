//! `cargo xtask dist`: a package for Debian, made by dpkg-deb. Everything that is in it besides the programs lies in `packaging`.
//!
//! dpkg-deb and a list of files do what cargo-deb would, without building that first; there is one list, and it is here.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{debian, exec, man, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cargo's profile
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let package = build(&args.profile)?;
    exec::say(format!("{} is ready", package.display()));
    Ok(ExitCode::SUCCESS)
}

/// A maintainer needs an address; nobody reads mail at this one (RFC 2606 section 3).
const MAINTAINER: &str = "The developers of redirectd <redirectd@example.net>";

/// Of the package, of its folder below `/usr/share/doc`.
const NAME: &str = "redirectd";

/// What is installed as it lies in the workspace, and its mode.
const FILES: &[(&str, &str, u32)] = &[
    ("packaging/redirectd.service", "lib/systemd/system/redirectd.service", 0o644),
    ("packaging/run-redirectd-bpf.mount", "lib/systemd/system/run-redirectd-bpf.mount", 0o644),
    ("packaging/redirectd.toml", "etc/redirect/redirectd.toml", 0o644),
    ("packaging/debian/copyright", "usr/share/doc/redirectd/copyright", 0o644),
    ("README.md", "usr/share/doc/redirectd/README.md", 0o644),
    ("docs/access.md", "usr/share/doc/redirectd/access.md", 0o644),
    ("docs/api.md", "usr/share/doc/redirectd/api.md", 0o644),
    ("docs/cli.md", "usr/share/doc/redirectd/cli.md", 0o644),
    ("docs/configure.md", "usr/share/doc/redirectd/configure.md", 0o644),
    ("docs/install.md", "usr/share/doc/redirectd/install.md", 0o644),
    ("docs/operate.md", "usr/share/doc/redirectd/operate.md", 0o644),
    ("docs/upgrade.md", "usr/share/doc/redirectd/upgrade.md", 0o644),
    ("packaging/debian/postinst", "DEBIAN/postinst", 0o755),
    ("packaging/debian/prerm", "DEBIAN/prerm", 0o755),
    ("packaging/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// Where each program belongs.
const PROGRAMS: &[(&str, &str)] = &[("redirectd", "usr/sbin/redirectd"), ("redirect-ctl", "usr/bin/redirect-ctl")];

/// Builds the programs and the package of them.
pub(crate) fn build(profile: &str) -> Result<PathBuf> {
    for (program, package) in [("dpkg-deb", "dpkg"), ("dpkg-shlibdeps", "dpkg-dev"), ("strip", "binutils")] {
        if exec::find(program).is_none() {
            exec::say(format!("installing {package} (apt): it has {program}, which makes the package"));
            setup::apt_install(&[package])?;
        }
    }
    exec::say(format!("building the programs (profile {profile})"));
    let built = exec::cargo().args(["build", "--package", "redirect-ctl", "--bins", "--profile", profile]).status()?;
    if !built.success() {
        bail!("the programs do not build");
    }

    let target = exec::target_dir()?;
    let programs = target.join(if profile == "dev" { "debug" } else { profile });
    let tree = target.join("dist").join(NAME);
    debian::empty(&tree)?;
    for (from, to, mode) in FILES {
        install(&exec::workspace().join(from), &tree.join(to), *mode)?;
    }
    for (name, to) in PROGRAMS {
        let to = tree.join(to);
        install(&programs.join(name), &to, 0o755)?;
        exec::quietly(Command::new("strip").args(["--strip-unneeded", "--remove-section=.comment"]).arg(&to))?;
    }
    changelog(&tree)?;
    manuals(&programs.join("redirect-ctl"), &tree)?;
    fs::write(tree.join("DEBIAN/conffiles"), "/etc/redirect/redirectd.toml\n")
        .context("write the list of conffiles")?;
    let version = env!("CARGO_PKG_VERSION");
    let architecture = exec::quietly(Command::new("dpkg").arg("--print-architecture"))?;
    let control = control(version, architecture.trim(), &libraries(&tree)?, size_kib(&tree)?);
    fs::write(tree.join("DEBIAN/control"), control).context("write the control file")?;
    checksums(&tree)?;
    let package = target.join("dist").join(format!("{NAME}_{version}_{}.deb", architecture.trim()));
    exec::quietly(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&package))?;
    Ok(package)
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    // The umask of whoever builds must not matter.
    for folder in folder.ancestors().collect::<Vec<_>>().into_iter().rev().filter(|folder| !folder.exists()) {
        fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
        set_mode(folder, 0o755)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    set_mode(to, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}

fn changelog(tree: &Path) -> Result<()> {
    let to = tree.join("usr/share/doc").join(NAME).join("changelog");
    install(&exec::workspace().join("CHANGELOG.md"), &to, 0o644)?;
    exec::quietly(Command::new("gzip").args(["-9", "--no-name"]).arg(&to)).map(drop)
}

/// The manual pages and the shells' completions, as the program tells them.
fn manuals(program: &Path, tree: &Path) -> Result<()> {
    let scratch = tree.with_extension("manuals");
    debian::empty(&scratch)?;
    man::write(program, &scratch)?;
    for entry in fs::read_dir(scratch.join("man")).context("list the manual pages")? {
        let page = entry.context("list the manual pages")?.path();
        let name = page.file_name().and_then(|name| name.to_str()).context("a page has a name")?;
        let (_, section) = name.rsplit_once('.').context("a page has a section")?;
        let to = tree.join("usr/share/man").join(format!("man{section}")).join(name);
        install(&page, &to, 0o644)?;
        exec::quietly(Command::new("gzip").args(["-9", "--no-name"]).arg(&to))?;
    }
    for (shell, name, to) in man::SHELLS {
        install(&scratch.join("completions").join(shell).join(name), &tree.join(to), 0o644)?;
    }
    fs::remove_dir_all(&scratch).context("remove a folder")
}

/// The packages of the shared libraries that the programs are linked with.
fn libraries(tree: &Path) -> Result<String> {
    let scratch = tree.with_extension("shlibs");
    debian::empty(&scratch)?;
    // What the program wants to see where it runs.
    fs::create_dir(scratch.join("debian")).context("create a folder")?;
    fs::write(scratch.join("debian/control"), format!("Source: {NAME}\n\nPackage: {NAME}\nArchitecture: any\n"))
        .context("write a file")?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.arg("-O").args(PROGRAMS.iter().map(|(_, path)| tree.join(path))).current_dir(&scratch);
    let answer = exec::quietly(&mut command)?;
    fs::remove_dir_all(&scratch).context("remove a folder")?;
    let depends = answer.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    depends.map(str::to_owned).context("dpkg-shlibdeps names no library")
}

fn size_kib(tree: &Path) -> Result<u64> {
    let answer = exec::quietly(Command::new("du").args(["-sk", "--apparent-size"]).arg(tree))?;
    answer.split_whitespace().next().and_then(|size| size.parse().ok()).context("du tells no size")
}

fn control(version: &str, architecture: &str, libraries: &str, size_kib: u64) -> String {
    format!(
        "Package: {NAME}
Version: {version}
Architecture: {architecture}
Maintainer: {MAINTAINER}
Installed-Size: {size_kib}
Depends: {libraries}, adduser, init-system-helpers (>= 1.54~)
Section: net
Priority: optional
Description: redirects subscribers' SMTP connections to a relay
 An edge router's connections to port 25 are passed, blocked or redirected to
 a mail relay by a program in the kernel (XDP, tc), by the class of their
 subscriber. A relay is built in; Postfix and others will do as well.
"
    )
}

/// As `dpkg --verify` reads them.
fn checksums(tree: &Path) -> Result<()> {
    let script = "find . -type f -not -path './DEBIAN/*' -printf '%P\\0' | sort -z | xargs -0 md5sum > DEBIAN/md5sums && chmod 644 DEBIAN/*s DEBIAN/control";
    exec::quietly(Command::new("sh").args(["-c", script]).current_dir(tree)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_packaged_is_there() {
        for (from, ..) in FILES {
            assert!(exec::workspace().join(from).is_file(), "{from}");
        }
        let control = control("1.2.3", "amd64", "libc6 (>= 2.34)", 12);
        assert!(control.contains("\nDepends: libc6 (>= 2.34), adduser, "), "{control}");
        assert!(control.lines().all(|line| line.len() <= 80), "{control}");
    }
}
