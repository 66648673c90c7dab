//! A root folder of its own for programs that insist on fixed paths, on users of the system and on files below `/etc`.
//!
//! `/usr` is the host's with packages laid over it that are unpacked and not installed; everything else is empty until a test fills it. The mounts
//! are in a mount namespace of the program's own: nobody else sees them, and they end with it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{lab::Lab, product::profile_folder};

const SCRIPT: &str = r#"
set -e
root=$1 layers=$2
shift 2
mount -t overlay overlay -o "lowerdir=$layers" "$root/usr"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
exec chroot "$root" "$@"
"#;

/// A user, and the group of that name, inside.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    id: u32,
}

pub(crate) const SYSTEM: User = User { name: "root", id: 0 };
pub(crate) const POSTFIX: User = User { name: "postfix", id: 64_001 };
pub(crate) const POSTDROP: User = User { name: "postdrop", id: 64_002 };
pub(crate) const EXIM: User = User { name: "Debian-exim", id: 64_003 };
const OPENSMTPD: User = User { name: "opensmtpd", id: 64_004 };
const OPENSMTPQ: User = User { name: "opensmtpq", id: 64_005 };
/// Whose mail is kept.
pub(crate) const MAILBOX: User = User { name: "mailbox", id: 64_006 };
const NOBODY: User = User { name: "nobody", id: 65_534 };

const USERS: [User; 8] = [SYSTEM, POSTFIX, POSTDROP, EXIM, OPENSMTPD, OPENSMTPQ, MAILBOX, NOBODY];

impl User {
    pub(crate) fn id(self) -> u32 {
        self.id
    }
}

pub(crate) struct Root {
    folder: PathBuf,
    /// What lies over the host's `/usr`, topmost first.
    layers: Vec<PathBuf>,
}

impl Root {
    /// `packages` are those that `cargo xtask setup` unpacks, by their folders.
    pub(crate) fn new(lab: &Lab, name: &str, packages: &[&str]) -> Result<Self> {
        let layers = packages.iter().map(|package| Ok(unpacked(package)?.join("usr"))).collect::<Result<_>>()?;
        let root = Self { folder: lab.folder().join(name), layers };
        for path in ["", "usr", "dev", "proc", "etc", "run", "var", "var/log", "var/spool", "var/lib", "var/empty"] {
            root.folder(path, SYSTEM, 0o755)?;
        }
        root.folder("tmp", SYSTEM, 0o1777)?;
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), root.path(name)).with_context(|| format!("link {name}"))?;
        }
        symlink("/run", root.path("var/run")).context("link var/run")?;

        let line = |user: User| {
            let home = if user.name == MAILBOX.name { "/mails" } else { "/var/empty" };
            format!("{0}:x:{1}:{1}::{home}:/bin/sh\n", user.name, user.id)
        };
        root.file("etc/passwd", USERS.map(line).concat(), SYSTEM, 0o644)?;
        let line = |user: User| format!("{}:x:{}:\n", user.name, user.id);
        root.file("etc/group", USERS.map(line).concat() + "nogroup:x:65533:\n", SYSTEM, 0o644)?;
        // Nobody in the lab answers questions about names.
        root.file("etc/nsswitch.conf", "hosts: files\n", SYSTEM, 0o644)?;
        root.file("etc/hosts", "127.0.0.1 localhost\n", SYSTEM, 0o644)?;
        Ok(root)
    }

    /// Where something inside is for those outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.folder.join(inside)
    }

    pub(crate) fn folder(&self, path: &str, owner: User, mode: u32) -> Result<()> {
        let folder = self.path(path);
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        own(&folder, owner, mode)
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>, owner: User, mode: u32) -> Result<()> {
        let file = self.path(path);
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
        own(&file, owner, mode)
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let layers = self.layers.iter().map(|layer| layer.display().to_string()).chain(["/usr".to_owned()]);
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", SCRIPT, "sh"])
            .arg(&self.folder)
            .arg(layers.collect::<Vec<_>>().join(":"))
            .arg(program);
        command
    }
}

fn own(path: &Path, owner: User, mode: u32) -> Result<()> {
    chown(path, Some(owner.id), Some(owner.id)).with_context(|| format!("give {} away", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("protect {}", path.display()))
}

/// Where `cargo xtask setup` unpacks a package.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    let profile = profile_folder()?;
    let folder = profile.parent().context("a profile lies in the target directory")?.join("lab").join(package);
    ensure!(folder.is_dir(), "{} is missing: run `cargo xtask setup`", folder.display());
    Ok(folder)
}
