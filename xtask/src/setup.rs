//! `cargo xtask setup`: everything that the build and the lab need beyond the pinned toolchain.
//!
//! What is already right is never touched; what is installed is named first, with the reason.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{self, Root},
    mail, postfix, schemathesis,
};

/// Reads LLVM bitcode of rustc's LLVM or older only, and rustc 1.95 has LLVM 22: hence the version and [`LLVM_VERSIONS`].
const LINKER_VERSION: (u32, u32, u32) = (0, 13, 0);
const LLVM_VERSIONS: [&str; 2] = ["22", "23"];

/// `core` for the bpf target, built by Debian, where rustup cannot fetch its source.
const DEBIAN_CORE: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_CORE_LIBRARIES: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// A program or file that the lab uses, the package that brings it, and what for.
pub(crate) struct Tool {
    pub(crate) presence: Presence,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
}

pub(crate) enum Presence {
    Program(&'static str),
    File(&'static str),
}

const TOOLS: [Tool; 8] = [
    Tool {
        presence: Presence::File("/usr/share/doc/python3-venv/copyright"),
        package: "python3-venv",
        purpose: "keeps schemathesis apart from the system's Python",
    },
    Tool {
        presence: Presence::Program("ip"),
        package: "iproute2",
        purpose: "makes the namespaces and links of the lab",
    },
    Tool { presence: Presence::Program("ethtool"), package: "ethtool", purpose: "switches the offloads of a link" },
    Tool { presence: Presence::Program("tcpdump"), package: "tcpdump", purpose: "captures what a link carries" },
    Tool {
        presence: Presence::Program("nft"),
        package: "nftables",
        purpose: "is what our redirecting is compared with",
    },
    Tool { presence: Presence::Program("swaks"), package: "swaks", purpose: "is the mail client of the demo" },
    Tool {
        presence: Presence::File("/usr/share/perl5/IO/Socket/INET6.pm"),
        package: "libio-socket-inet6-perl",
        purpose: "lets swaks speak IPv6",
    },
    Tool {
        presence: Presence::File("/usr/lib/python3/dist-packages/scapy/__init__.py"),
        package: "python3-scapy",
        purpose: "writes and checks packets independently of our code",
    },
];

/// What the benchmark of the path measures ours beside.
const PEERS: [Tool; 3] = [
    Tool { presence: Presence::Program("nft"), package: "nftables", purpose: "is measured beside ours" },
    Tool { presence: Presence::Program("iptables-legacy"), package: "iptables", purpose: "is measured beside ours" },
    Tool { presence: Presence::Program("ipset"), package: "ipset", purpose: "is measured beside ours" },
];

impl Tool {
    fn is_present(&self) -> bool {
        match self.presence {
            Presence::Program(name) => exec::find(name).is_some(),
            Presence::File(path) => Path::new(path).exists(),
        }
    }
}

/// What this machine lacks.
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
struct Missing {
    tools: Vec<&'static Tool>,
    sink: bool,
    schemathesis: bool,
    mail: Vec<&'static mail::Program>,
    core: bool,
    linker: bool,
}

impl Missing {
    fn find() -> Result<Self> {
        let mut mail = Vec::new();
        for program in &mail::PROGRAMS {
            if !program.is_present()? {
                mail.push(program);
            }
        }
        Ok(Self {
            tools: TOOLS.iter().filter(|tool| !tool.is_present()).collect(),
            sink: !postfix::is_present()?,
            schemathesis: !schemathesis::is_present()?,
            mail,
            core: !core_is_present(),
            linker: !linker_is_present(),
        })
    }

    fn nothing(&self) -> bool {
        self.tools.is_empty() && !self.sink && !self.schemathesis && self.mail.is_empty() && !self.core && !self.linker
    }
}

pub(crate) fn run() -> Result<ExitCode> {
    if !ensure()? {
        exec::say(format!(
            "ready: core for bpf, bpf-linker, Postfix's smtp-sink, {} mail programs and {} tools are in place",
            mail::PROGRAMS.len(),
            TOOLS.len()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; returns whether anything was.
pub(crate) fn ensure() -> Result<bool> {
    let missing = Missing::find()?;
    if missing.nothing() {
        return Ok(false);
    }

    install_tools(&missing.tools)?;
    if missing.sink {
        exec::say(
            "unpacking smtp-sink from Debian's package postfix (not installing it): is the mail server of the demo",
        );
        postfix::unpack()?;
    }
    for program in missing.mail {
        exec::say(format!(
            "unpacking Debian's package {} (not installing it): meets the relay in the tests",
            program.package
        ));
        program.unpack()?;
    }
    if missing.schemathesis {
        schemathesis::install()?;
    }
    if missing.core {
        install_core()?;
    }
    if missing.linker {
        install_linker()?;
    }

    let left = Missing::find()?;
    let packages = left.tools.iter().map(|tool| tool.package).chain(left.mail.iter().map(|program| program.package));
    let others = [
        ("smtp-sink", left.sink),
        ("schemathesis", left.schemathesis),
        ("core for bpf", left.core),
        ("bpf-linker", left.linker),
    ];
    let absent: Vec<_> = packages.chain(others.iter().filter(|(_, absent)| *absent).map(|(name, _)| *name)).collect();
    if !absent.is_empty() {
        bail!("installed without an error, but still absent: {}; look at `apt-get install` or PATH", absent.join(", "));
    }
    exec::say("ready");
    Ok(true)
}

/// Installs what only the benchmark of the path uses, as far as it is missing.
pub(crate) fn ensure_peers() -> Result<()> {
    ensure_tools(&PEERS)
}

/// Installs what only one task uses, as far as it is missing.
pub(crate) fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !tool.is_present()).collect();
    install_tools(&missing)?;
    match missing.iter().find(|tool| !tool.is_present()) {
        Some(tool) => bail!("installed without an error, but still absent: {}", tool.package),
        None => Ok(()),
    }
}

fn install_tools(tools: &[&Tool]) -> Result<()> {
    for tool in tools {
        exec::say(format!("installing {} (apt): {}", tool.package, tool.purpose));
    }
    apt_install(&tools.iter().map(|tool| tool.package).collect::<Vec<_>>())
}

/// Installs packages without asking, without what they only recommend, and never at the cost of another package.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let root = apt_root(&list)?;
    let mut install = root.command("env");
    install
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "-qq",
            "-y",
            "--no-install-recommends",
            "--no-remove",
        ])
        .args(packages);
    exec::quietly(&mut install)
        .with_context(|| format!("cannot install {list}; try `apt-get install {list}`"))
        .map(drop)
}

/// Refreshes apt's package lists, once, if this process may; `packages` is what they are needed for.
pub(crate) fn apt_update(packages: &str) -> Result<()> {
    apt_root(packages).map(drop)
}

/// Root for apt with fresh package lists, or the line that says what to do by hand.
fn apt_root(packages: &str) -> Result<Root> {
    static LISTS_ARE_FRESH: AtomicBool = AtomicBool::new(false);

    if exec::find("apt-get").is_none() {
        bail!("this machine has no apt-get: install what Debian calls {packages}, then run `cargo xtask setup` again");
    }
    let root = Root::find();
    if root == Root::Unreachable {
        bail!(
            "installing needs root, and sudo does not grant it without a prompt: run `apt-get install {packages}` as root"
        );
    }
    if !LISTS_ARE_FRESH.swap(true, Ordering::Relaxed) {
        exec::say("refreshing apt's package lists");
        // A third-party source that is out of order is no reason to stop: what matters is whether the install works.
        if let Err(error) = exec::quietly(root.command("apt-get").args(["update", "-qq"])) {
            exec::say(format!("{error:#}; going on with the lists at hand"));
        }
    }
    Ok(root)
}

fn core_is_present() -> bool {
    let sysroot = exec::quietly(Command::new("rustc").args(["--print", "sysroot"]).current_dir(exec::workspace()));
    let source = sysroot.map(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core"));
    source.is_ok_and(|path| path.is_dir()) || debian_core_is_present()
}

fn debian_core_is_present() -> bool {
    let libraries = Path::new(DEBIAN_CORE_LIBRARIES).read_dir();
    let built = libraries
        .is_ok_and(|files| files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")));
    built && Path::new("/usr/bin/rustc").exists()
}

/// The source of `core` for the pinned toolchain, or Debian's `core` where rustup cannot fetch it.
fn install_core() -> Result<()> {
    exec::say("installing rust-src (rustup): the programs in the kernel need core, built for the bpf target");
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src"]).current_dir(exec::workspace());
    let Err(error) = exec::quietly(&mut rustup) else { return Ok(()) };

    let packages = DEBIAN_CORE.join(" ");
    exec::say(format!("rustup could not ({error:#}); installing {packages} (apt) instead: core, prebuilt for bpf"));
    apt_install(&DEBIAN_CORE).context("core for the bpf target is missing: `rustup component add rust-src` brings it")
}

fn linker_is_present() -> bool {
    let Some(linker) = exec::find("bpf-linker").or_else(|| cargo_bin().map(|bin| bin.join("bpf-linker"))) else {
        return false;
    };
    // It is run, not just looked for: one whose LLVM was removed or replaced does not start.
    let version = exec::quietly(Command::new(linker).arg("--version"));
    version.ok().as_deref().and_then(parse_version).is_some_and(|version| version >= LINKER_VERSION)
}

fn parse_version(output: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = output.split_whitespace().nth(1)?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo"))).map(|home| home.join("bin"))
}

fn install_linker() -> Result<()> {
    let (major, minor, patch) = LINKER_VERSION;
    let version = format!("{major}.{minor}.{patch}");
    let llvm = install_llvm(&version)?;
    exec::say(format!("installing bpf-linker {version} (cargo, with LLVM {llvm}): links the programs for the kernel"));
    let mut install = exec::cargo();
    install
        .args(["install", "bpf-linker", "--version", &version, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    exec::quietly(&mut install).map(drop)
}

/// Makes LLVM's development files present and returns their version.
fn install_llvm(linker: &str) -> Result<&'static str> {
    let installed = LLVM_VERSIONS
        .into_iter()
        .find(|version| Path::new(&format!("/usr/lib/llvm-{version}")).join("bin/llvm-config").exists());
    let version = installed.map_or_else(|| offered_llvm(linker), Ok)?;
    let packages = [
        format!("llvm-{version}-dev"),
        format!("libpolly-{version}-dev"),
        "libzstd-dev".to_owned(),
        "zlib1g-dev".to_owned(),
        "g++".to_owned(),
    ];
    let absent: Vec<_> = packages.iter().map(String::as_str).filter(|package| !is_installed(package)).collect();
    if !absent.is_empty() {
        exec::say(format!("installing {} (apt): bpf-linker is built against LLVM {version}", absent.join(" ")));
        apt_install(&absent)?;
    }
    Ok(version)
}

fn offered_llvm(linker: &str) -> Result<&'static str> {
    let [wanted, ..] = LLVM_VERSIONS;
    apt_update(&format!("llvm-{wanted}-dev libpolly-{wanted}-dev"))?;
    let offered = LLVM_VERSIONS.into_iter().find(|version| apt_offers(&format!("llvm-{version}-dev")));
    offered.with_context(|| {
        format!(
            "bpf-linker needs LLVM {wanted}, and no package source here has llvm-{wanted}-dev: run https://apt.llvm.org/llvm.sh \
             {wanted} as root, or put bpf-linker {linker} from https://github.com/aya-rs/bpf-linker/releases into PATH"
        )
    })
}

fn apt_offers(package: &str) -> bool {
    let policy = exec::quietly(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    policy.is_ok_and(|text| text.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)")))
}

/// Whether dpkg has the package; a machine without dpkg answers no.
pub(crate) fn is_installed(package: &str) -> bool {
    let status = exec::quietly(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]));
    status.is_ok_and(|status| status == "installed")
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn version_of_the_linker() {
        assert_eq!(parse_version("bpf-linker 0.13.0\n"), Some((0, 13, 0)));
        assert_eq!(parse_version("bpf-linker 0.9.15"), Some((0, 9, 15)));
        assert!(Some((0, 9, 15)) < parse_version("bpf-linker 0.13.1"));
        assert_eq!(parse_version("bpf-linker"), None);
        assert_eq!(parse_version("bpf-linker x.y.z"), None);
    }
}
