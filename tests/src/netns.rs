//! Network namespaces by name, and running things inside.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::{janitor::Register, process::search_path};

/// One host of the lab. Its name is unique on this machine; the lab's register removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    register: Register,
}

impl Namespace {
    /// Makes all of them at once: a process per namespace would cost more than the namespaces.
    pub(crate) fn create(names: impl IntoIterator<Item = String>, register: &Register) -> Result<Vec<Self>> {
        let namespaces: Vec<_> = names.into_iter().map(|name| Self { name, register: register.clone() }).collect();
        for namespace in &namespaces {
            register.namespace(&namespace.name)?;
        }
        let lines: Vec<_> = namespaces.iter().map(|namespace| format!("netns add {}", namespace.name)).collect();
        ip_batch(&lines)?;
        Ok(namespaces)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where everything that runs inside is noted.
    pub(crate) fn register(&self) -> &Register {
        &self.register
    }

    /// Runs `inside` on a thread of its own in this namespace: the sockets it opens and the processes it starts belong to
    /// the namespace, and the caller's thread never changes its own.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.join().expect("a namespace of the lab exists as long as the lab");
                inside()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Namespace::enter`] for a thread that lives on; `stack_bytes` because a lab may have thousands.
    pub fn spawn<T: Send + 'static>(
        &self,
        stack_bytes: usize,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let namespace = self.clone();
        let builder = thread::Builder::new().stack_size(stack_bytes);
        let thread = builder.spawn(move || {
            namespace.join().expect("a namespace of the lab exists as long as the lab");
            inside()
        });
        thread.context("start a thread")
    }

    fn join(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("open {}", self.path().display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {}", self.name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs lines of `ip` inside.
    pub fn ip(&self, lines: &[impl AsRef<str> + Sync]) -> Result<()> {
        self.enter(|| ip_batch(lines)).with_context(|| format!("in {}", self.name))
    }

    /// Makes links whose ends name the namespaces that they belong to.
    pub(crate) fn links(lines: &[String]) -> Result<()> {
        ip_batch(lines)
    }

    /// Writes settings below `/proc/sys/net`, which shows the namespace of the thread that looks.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            settings.iter().try_for_each(|(key, value)| {
                let path = Path::new("/proc/sys/net").join(key);
                std::fs::write(&path, value)
                    .with_context(|| format!("write {value} to {} in {}", path.display(), self.name))
            })
        })
    }
}

fn ip_batch(lines: &[impl AsRef<str>]) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .env("PATH", search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip; `cargo xtask setup` installs it")?;
    let mut input = ip.stdin.take().context("ip has no standard input")?;
    let script: Vec<_> = lines.iter().map(AsRef::as_ref).collect();
    let script = script.join("\n") + "\n";
    // If it fails at a line it does not read on; what it says then is more to the point than the broken pipe.
    let written = input.write_all(script.as_bytes());
    drop(input);
    let output = ip.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        bail!("ip: {}\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("write to ip")
}
