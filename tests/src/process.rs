//! Programs inside a namespace: those that run to their end, with a deadline, and those that stay.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::Read,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{janitor::Register, netns::Namespace};

const POLL: Duration = Duration::from_millis(5);

/// Time that a process gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// What a program that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code; none for a death by signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Waits until `done` says so, looking every few milliseconds.
pub fn wait_until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("no {what} within {limit:?}");
        }
        thread::sleep(POLL);
    }
}

/// `PATH` with the folders of the administrator's programs, which a user's own lacks on Debian.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/sbin:/sbin");
    path
}

impl Namespace {
    /// Runs a program to its end. One that takes longer than `limit` is killed, which is an error.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<Finished> {
        let mut child = self.start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        // One that has ended already needs no cleaning up.
        let _ = self.register().process(child.id());
        // Pipes are emptied while the program runs: a full one would stop it.
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let stdout = thread::spawn(move || read(stdout));
        let stderr = thread::spawn(move || read(stderr));
        let status = wait_until(&format!("end of {command:?}"), limit, || Ok(child.try_wait()?));
        if status.is_err() {
            child.kill()?;
            child.wait()?;
        }
        self.register().ended(child.id())?;
        let text = |reader: thread::JoinHandle<String>| reader.join().ok().context("a reader of a pipe panicked");
        Ok(Finished { status: status?, stdout: text(stdout)?, stderr: text(stderr)? })
    }

    fn start(&self, command: &mut Command) -> Result<Child> {
        // A child belongs to the namespace of the thread that starts it.
        command.env("PATH", search_path());
        self.enter(|| command.spawn()).with_context(|| format!("run {command:?} in {}", self.name()))
    }
}

fn read(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // A pipe that breaks leaves what was read before.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that stays until it is stopped or dropped; its output goes to a file.
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
    register: Register,
}

impl Daemon {
    pub(crate) fn start(namespace: &Namespace, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let name = command.get_program().to_string_lossy().into_owned();
        // Ctrl-C in a terminal ends this process only, and then the lab is taken down in order.
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = namespace.start(command)?;
        // From here on the value owns the child, so that a failure below stops it.
        let daemon = Self { child, name, log: log.to_path_buf(), register: namespace.register().clone() };
        // One that has ended already needs no cleaning up; whoever waits for its readiness finds out.
        let _ = daemon.register.process(daemon.id());
        Ok(daemon)
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.name))
    }

    /// Waits until `ready`; ends with its log if it dies or is too slow.
    pub fn wait_until_ready(&mut self, limit: Duration, mut ready: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let name = self.name.clone();
        let outcome = wait_until(&format!("readiness of {name}"), limit, || {
            if let Some(status) = self.ended()? {
                bail!("{name} ended with {status}");
            }
            Ok(ready(self)?.then_some(()))
        });
        outcome.with_context(|| format!("log of {name}:\n{}", self.log()))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()).context("a process id is positive")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Asks it to end and waits for that; one that does not is killed, which is an error.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        let name = self.name.clone();
        let ended = wait_until(&format!("end of {name} after {signal}"), GRACE, || self.ended());
        if ended.is_err() {
            self.child.kill().with_context(|| format!("kill {name}"))?;
            self.child.wait().with_context(|| format!("wait for {name}"))?;
        }
        // A lab that is gone has no list any more.
        let _ = self.register.ended(self.id());
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.register.is_kept() {
            // A test that cares how it ends calls `stop`.
            let _ = self.stop(Signal::SIGTERM);
        }
    }
}
