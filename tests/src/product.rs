//! The product under test: `redirectd` in the lab's router, and `redirect-ctl`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    lab::Lab,
    process::{Daemon, Finished, wait_until},
};

/// Time for the daemon to load its programs, twice where it replaces others; the verifier takes a fraction of a second, and more than a minute on an
/// emulated CPU that others keep busy.
const READY: Duration = Duration::from_mins(10);

const COMMAND: Duration = Duration::from_secs(30);

/// A running `redirectd`.
pub struct Product {
    daemon: Daemon,
    socket: PathBuf,
}

/// The smallest configuration for the lab: where to listen, and the subscribers' interface. Everything else is a default, but flows
/// are rewritten, also where they could be steered, and nobody asks relays and gateways whether they live: some are played by a test, which takes
/// only the connections that it expects. Pins would be in the lab's folder, which is no BPF file system unless a [`Pinboard`] makes it one: the host's
/// own stays as it is.
#[must_use]
pub fn configuration(folder: &Path, hook: &str) -> String {
    format!(
        r#"[api]
sockets = ["{socket}"]

[store]
path = "{store}"

[dataplane]
pins = "{pins}"

[relay]
hostname = "relay.example.net"
listen = ["10.20.0.1:2525", "[fd00:20::1]:2525"]
delivery = "rewrite"
connect_timeout_s = 3
gateway_probe_interval_s = 0

[health]
interval_s = 0

[[interface]]
name = "lan0"
role = "subscriber"
hook = "{hook}"
"#,
        socket = folder.join("api.sock").display(),
        store = folder.join("redirect.db").display(),
        pins = pins(folder).display(),
    )
}

/// A configuration that says more of the data plane.
#[must_use]
pub fn with_dataplane(configuration: &str, more: &str) -> String {
    configuration.replacen("[dataplane]\n", &format!("[dataplane]\n{more}\n"), 1)
}

fn pins(folder: &Path) -> PathBuf {
    folder.join("bpf/redirectd")
}

/// What must be back where it was once nobody is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: usize,
    /// Each is a task.
    pub sessions: u64,
}

/// A BPF file system for daemons that follow each other, in a mount namespace of its own: it goes with the lab.
pub struct Pinboard {
    holder: Daemon,
    pins: PathBuf,
}

impl Pinboard {
    pub fn new(lab: &Lab) -> Result<Self> {
        let folder = lab.folder().join("bpf");
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let ready = lab.folder().join("bpf.ready");
        let script = r#"mount -t bpf -o mode=0755 bpf "$0" && : > "$1" && exec sleep infinity"#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&folder).arg(&ready);
        let holder = lab.start(&lab.router, "pinboard", &mut command)?;
        wait_until("a BPF file system", COMMAND, || Ok(ready.exists().then_some(())))?;
        Ok(Self { holder, pins: pins(lab.folder()) })
    }

    /// The same, as everybody sees it.
    #[must_use]
    pub fn seen_from_outside(&self) -> PathBuf {
        let below_root = self.pins.strip_prefix("/").expect("the lab's folder is absolute");
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(below_root)
    }

    /// Every file, by its path below the pins.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let root = self.seen_from_outside();
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { files.push(path.strip_prefix(&root)?.to_owned()) }
            }
        }
        files.sort();
        Ok(files)
    }

    /// A command that sees the file system.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }
}

impl Product {
    /// Starts the daemon with this configuration, which must name `api.sock` in the lab's folder, and waits until it is ready.
    pub fn start(lab: &Lab, configuration: &str) -> Result<Self> {
        Self::start_program(lab, &binary("redirectd")?, configuration)
    }

    /// As [`Product::start`], of another build.
    pub fn start_program(lab: &Lab, program: &Path, configuration: &str) -> Result<Self> {
        // The limit of a plain shell, whatever this process has: the daemon has to see to its own.
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -S -n 1024; exec "$0" "$@""#]).arg(program);
        Self::launch(lab, configuration, &mut command)
    }

    /// As [`Product::start`], of a daemon that pins and takes over what is pinned; `arguments` besides the file's name.
    pub fn start_on(lab: &Lab, configuration: &str, pinboard: &Pinboard, arguments: &[&str]) -> Result<Self> {
        let mut command = pinboard.command(&binary("redirectd")?);
        Self::launch(lab, configuration, command.args(arguments))
    }

    fn launch(lab: &Lab, configuration: &str, command: &mut Command) -> Result<Self> {
        let file = lab.folder().join("redirectd.toml");
        fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
        command.arg("--config").arg(&file);
        let daemon = lab.start(&lab.router, "redirectd", command)?;
        let mut product = Self { daemon, socket: lab.folder().join("api.sock") };
        let socket = product.socket.clone();
        product.daemon.wait_until_ready(READY, |_| {
            // Asking for a file costs nothing; a process that finds no socket would take the CPU from the daemon.
            Ok(socket.exists() && redirect_ctl(lab, &socket, &["status"])?.status.success())
        })?;
        Ok(product)
    }

    /// Runs `redirect-ctl`, whatever comes of it.
    pub fn try_ctl(&self, lab: &Lab, words: &[&str]) -> Result<Finished> {
        redirect_ctl(lab, &self.socket, words)
    }

    /// Runs `redirect-ctl` and returns what it printed; a failure is an error.
    pub fn ctl(&self, lab: &Lab, words: &[&str]) -> Result<String> {
        let finished = self.try_ctl(lab, words)?;
        ensure!(finished.status.success(), "redirect-ctl {}: {}{}", words.join(" "), finished.stderr, finished.stdout);
        Ok(finished.stdout)
    }

    /// As [`Product::ctl`], for what takes longer than other commands.
    pub fn ctl_within(&self, lab: &Lab, words: &[&str], limit: Duration) -> Result<String> {
        let finished = run_ctl(lab, &self.socket, words, limit)?;
        ensure!(finished.status.success(), "redirect-ctl {}: {}{}", words.join(" "), finished.stderr, finished.stdout);
        Ok(finished.stdout)
    }

    /// As [`Product::ctl`] with `-o json`, parsed.
    pub fn json(&self, lab: &Lab, words: &[&str]) -> Result<serde_json::Value> {
        let text = self.ctl(lab, &[&["-o", "json"], words].concat())?;
        serde_json::from_str(&text).with_context(|| format!("redirect-ctl -o json {} printed {text}", words.join(" ")))
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.daemon.id()
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the daemon holds at the moment.
    pub fn holdings(&self, lab: &Lab) -> Result<Holdings> {
        let status = self.json(lab, &["status"])?;
        let sessions = status["relay"]["sessions_active"].as_u64().context("status tells the sessions")?;
        let folder = PathBuf::from(format!("/proc/{}/fd", self.daemon.id()));
        let descriptors = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?.count();
        Ok(Holdings { descriptors, sessions })
    }

    /// Ends the daemon without a chance to tidy up.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.daemon.stop(Signal::SIGKILL)
    }

    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.daemon.stop(Signal::SIGTERM)
    }
}

fn redirect_ctl(lab: &Lab, socket: &Path, words: &[&str]) -> Result<Finished> {
    run_ctl(lab, socket, words, COMMAND)
}

fn run_ctl(lab: &Lab, socket: &Path, words: &[&str], limit: Duration) -> Result<Finished> {
    let mut command = Command::new(binary("redirect-ctl")?);
    command.arg("--host").arg(format!("unix://{}", socket.display())).args(words);
    lab.router.run(&mut command, limit)
}

/// A program of this workspace, beside the one that runs.
pub fn binary(name: &str) -> Result<PathBuf> {
    let file = profile_folder()?.join(name);
    if !file.is_file() {
        bail!("{} is not built: run `cargo build`, or `cargo xtask test` for everything", file.display());
    }
    Ok(file)
}

/// `target/<profile>`: a test program is in its folder `deps`, the demo in itself.
pub(crate) fn profile_folder() -> Result<PathBuf> {
    let executable = env::current_exe().context("find this program's file")?;
    let folder = executable.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.map(Path::to_path_buf).context("this program lies in no folder")
}
