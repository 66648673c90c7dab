//! Debian's kernels: fetched by an apt of our own, which checks signatures and hashes and leaves the machine's alone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    debian, exec,
    setup::{Presence, Tool},
};

/// Where packages are; a release that is no longer supported moves to the second.
const MIRRORS: [&str; 2] = ["http://deb.debian.org/debian", "http://archive.debian.org/debian"];

/// Whose signature a release carries; of Debian's package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What fetching a kernel takes.
pub(crate) const TOOLS: [Tool; 3] = [
    Tool {
        presence: Presence::Program("gpgv"),
        package: "gpgv",
        purpose: "checks the signatures of Debian's releases",
    },
    Tool { presence: Presence::File(KEYRING), package: "debian-archive-keyring", purpose: "has the keys for that" },
    Tool { presence: Presence::Program("xz"), package: "xz-utils", purpose: "unpacks the kernels' modules" },
];

/// The flavour for any machine: that for clouds has no PPP.
const METAPACKAGE: &str = "linux-image-amd64";

/// What the lab and the programs need, and Debian builds as modules.
const MODULES: [&str; 6] = ["veth", "8021q", "bonding", "pppoe", "sch_ingress", "cls_bpf"];

/// A kernel, ready to be booted.
pub(crate) struct Image {
    /// What `uname -r` says there, such as `6.1.0-50-amd64`.
    pub(crate) release: String,
    pub(crate) kernel: PathBuf,
    /// In the order in which they can be loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// The newest kernel of a series, such as `6.1`, in a release of Debian; fetched unless it is in `folder`.
pub(crate) fn image(series: &str, suite: &str, folder: &Path) -> Result<Image> {
    if !folder.is_dir() {
        fetch(series, suite, folder).with_context(|| format!("fetch Debian's kernel {series} ({suite})"))?;
    }
    let mut modules: Vec<_> = fs::read_dir(folder.join("modules"))?.flatten().map(|file| file.path()).collect();
    modules.sort();
    let release = fs::read_to_string(folder.join("release"))?;
    Ok(Image { release, kernel: folder.join("vmlinuz"), modules })
}

fn fetch(series: &str, suite: &str, folder: &Path) -> Result<()> {
    let part = folder.with_extension("part");
    debian::empty(&part)?;
    let package = download(series, suite, &part)?;

    let unpacked = part.join("unpacked");
    debian::extract(&package, &unpacked)?;
    let root = unpacked.join("lib/modules");
    let release = fs::read_dir(&root)?.flatten().next().context("the package has no modules")?.file_name();
    let release = release.into_string().ok().context("the kernel's release is no text")?;

    let image = part.join("image");
    fs::create_dir_all(image.join("modules"))?;
    fs::copy(unpacked.join(format!("boot/vmlinuz-{release}")), image.join("vmlinuz")).context("copy the kernel")?;
    let files = modules_below(&root)?;
    for (number, (name, module)) in load_order(&MODULES, |name| read_module(&files, name))?.into_iter().enumerate() {
        fs::write(image.join(format!("modules/{number:02}-{name}.ko")), module)?;
    }
    fs::write(image.join("release"), release)?;
    fs::rename(&image, folder).with_context(|| format!("move the kernel to {}", folder.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))
}

/// Fetches the package of a kernel into `folder`, from the first mirror that has the release.
fn download(series: &str, suite: &str, folder: &Path) -> Result<PathBuf> {
    let mut apt = Err(anyhow::anyhow!("no mirror"));
    for mirror in MIRRORS {
        apt = Apt::new(folder, mirror, suite);
        if apt.is_ok() {
            break;
        }
    }
    let apt = apt?;
    let depends = exec::quietly(apt.command("apt-cache").args(["depends", METAPACKAGE]))?;
    let package = dependency(&depends).with_context(|| format!("{METAPACKAGE} of {suite} depends on no kernel"))?;
    ensure!(package.starts_with(&format!("linux-image-{series}.")), "{suite} has {package}, which is not {series}");

    exec::say(format!("fetching {package} of Debian's {suite}"));
    exec::quietly(apt.command("apt-get").args(["download", "-qq", package]))?;
    let mut packages = debian::packages(folder)?;
    packages.pop().context("apt-get downloaded nothing")
}

/// An apt that knows one release and keeps all its state in one folder.
struct Apt<'a> {
    folder: &'a Path,
}

impl<'a> Apt<'a> {
    fn new(folder: &'a Path, mirror: &str, suite: &str) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial"].map(|name| folder.join(name)) {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(folder.join("sources.list"), source)?;
        fs::write(folder.join("status"), "")?;
        let apt = Self { folder };
        // An update that fails in part is a failure.
        exec::quietly(apt.command("apt-get").args(["update", "-qq", "--error-on=any"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder).env("LC_ALL", "C");
        let ours = [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ];
        for (key, name) in ours {
            command.arg("-o").arg(format!("{key}={}", self.folder.join(name).display()));
        }
        // apt's own user cannot write here, and need not.
        let fixed =
            ["Dir::Etc::SourceParts=-", "APT::Architecture=amd64", "Acquire::Languages=none", "APT::Sandbox::User="];
        command.args(fixed.iter().flat_map(|option| ["-o", option]));
        command
    }
}

/// The first package in what `apt-cache depends` says.
fn dependency(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Modules by name, in which a dash is an underscore.
fn modules_below(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut modules = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?.flatten() {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                modules.insert(name.replace('-', "_"), entry.path());
            }
        }
    }
    Ok(modules)
}

fn read_module(files: &BTreeMap<String, PathBuf>, name: &str) -> Result<Vec<u8>> {
    let file = files.get(name).with_context(|| format!("the package has no module {name}"))?;
    if file.extension().is_none_or(|end| end != "xz") {
        return fs::read(file).with_context(|| format!("read {}", file.display()));
    }
    let mut xz = Command::new("xz");
    let output = xz.args(["--decompress", "--stdout"]).arg(file).output().context("run xz")?;
    ensure!(output.status.success(), "{} failed ({})", exec::spelled(&xz), output.status);
    Ok(output.stdout)
}

/// The modules and those that they depend on, each after its own dependencies.
fn load_order(names: &[&str], read: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<(String, Vec<u8>)>> {
    fn visit(
        name: &str,
        read: &impl Fn(&str) -> Result<Vec<u8>>,
        pending: &mut Vec<String>,
        ordered: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        if ordered.iter().any(|(done, _)| done == name) {
            return Ok(());
        }
        if pending.iter().any(|waiting| waiting == name) {
            bail!("module {name} depends on itself");
        }
        pending.push(name.to_owned());
        let module = read(name)?;
        for dependency in dependencies(&module) {
            visit(&dependency, read, pending, ordered)?;
        }
        pending.pop();
        ordered.push((name.to_owned(), module));
        Ok(())
    }

    let mut ordered = Vec::new();
    for name in names {
        visit(name, &read, &mut Vec::new(), &mut ordered)?;
    }
    Ok(ordered)
}

/// What a module says in its section `.modinfo`, strings that end with a zero, that it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    let depends = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, Result};

    use super::{dependency, load_order};

    fn order(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>> {
        let read = |name: &str| {
            let (_, depends) = modules.iter().find(|(module, _)| *module == name).context("no such module")?;
            Ok(format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}\0").into_bytes())
        };
        Ok(load_order(wanted, read)?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let modules = [("slhc", ""), ("ppp_generic", "slhc"), ("pppox", "ppp-generic"), ("pppoe", "pppox,ppp-generic")];
        let expected = ["slhc", "ppp_generic", "pppox", "pppoe"];
        assert_eq!(order(&modules, &["pppoe"]).expect("all are there"), expected);
        assert_eq!(order(&modules, &["slhc", "pppoe", "slhc"]).expect("all are there"), expected);
        assert!(order(&modules, &["veth"]).is_err());
        assert!(order(&[("a", "b"), ("b", "a")], &["a"]).is_err());
    }

    #[test]
    fn the_kernel_that_the_metapackage_depends_on() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-50-amd64\n";
        assert_eq!(dependency(depends), Some("linux-image-6.1.0-50-amd64"));
        assert_eq!(dependency("linux-image-amd64\n"), None);
    }
}
