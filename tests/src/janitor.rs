//! Removes what a lab made, however its maker ends.
//!
//! A shell in a process group of its own reads the list of what exists from a pipe. The pipe closes when the lab is dropped and
//! likewise when the process panics, is interrupted or is killed; then the shell ends the listed processes and removes the
//! listed namespaces and folders. The same list, kept in a file, removes a lab that was left up on purpose.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use crate::process::search_path;

/// A process is identified by its id and its start time, so that a reused id is never signalled.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
processes= namespaces= folders=
while read -r kind name start; do
    case $kind in
    process) processes="$processes $name:$start" ;;
    ended) rest=; for process in $processes; do [ "${process%%:*}" = "$name" ] || rest="$rest $process"; done; processes=$rest ;;
    namespace) namespaces="$name $namespaces" ;;
    folder) folders="$folders $name" ;;
    keep) exit 0 ;;
    esac
done
alive() {
    read -r stat < "/proc/${1%%:*}/stat" || return 1
    set -- "${1##*:}" ${stat##*) }
    [ "$2" != Z ] && [ "$1" = "${21}" ]
} 2>/dev/null
signal() { for process in $processes; do alive "$process" && kill "-$1" "${process%%:*}"; done; }
any() { for process in $processes; do alive "$process" && return 0; done; return 1; }
signal TERM
turns=0
while any && [ $turns -lt 40 ]; do sleep 0.1; turns=$((turns + 1)); done
signal KILL
for namespace in $namespaces; do ip netns delete "$namespace"; done
for folder in $folders; do rm -rf "$folder"; done
"#;

/// Where the lists of labs that were left up are.
const KEPT: &str = "/run/redirect-lab";

/// The list, shared by everything that a lab starts.
#[derive(Clone, Debug)]
pub(crate) struct Register(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// None once the list is closed and the shell is at work.
    pipe: Option<ChildStdin>,
    lines: Vec<String>,
    kept: bool,
}

/// The shell; dropping it closes the list and waits until everything is removed.
pub(crate) struct Janitor {
    shell: Child,
    register: Register,
}

impl Janitor {
    pub(crate) fn start() -> Result<(Self, Register)> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("PATH", search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of the terminal's Ctrl-C, which ends the maker.
            .process_group(0)
            .spawn()
            .context("start the shell that cleans up")?;
        let pipe = shell.stdin.take().context("the shell that cleans up has no standard input")?;
        let register = Register(Arc::new(Mutex::new(State { pipe: Some(pipe), lines: Vec::new(), kept: false })));
        Ok((Self { shell, register: register.clone() }, register))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Processes of the lab may outlive it as values: closing must not wait for them.
        self.register.lock().pipe = None;
        // Nothing is left to do about a failure here.
        let _ = self.shell.wait();
    }
}

impl Register {
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.write(format!("namespace {name}"))
    }

    pub(crate) fn folder(&self, path: &Path) -> Result<()> {
        self.write(format!("folder {}", path.display()))
    }

    pub(crate) fn process(&self, id: u32) -> Result<()> {
        self.write(format!("process {id} {}", start_time(id)?))
    }

    pub(crate) fn ended(&self, id: u32) -> Result<()> {
        self.write(format!("ended {id}"))
    }

    /// Leaves everything up and returns the file whose list [`remove_kept`] works through.
    pub(crate) fn keep(&self, name: &str) -> Result<PathBuf> {
        fs::create_dir_all(KEPT).with_context(|| format!("create {KEPT}"))?;
        let file = Path::new(KEPT).join(name);
        let list = self.lock().lines.join("\n") + "\n";
        fs::write(&file, list).with_context(|| format!("write {}", file.display()))?;
        self.write("keep".to_owned())?;
        self.lock().kept = true;
        Ok(file)
    }

    /// Whether the lab is to outlive this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.lock().kept
    }

    fn write(&self, line: String) -> Result<()> {
        let mut state = self.lock();
        let pipe = state.pipe.as_mut().context("the lab is gone")?;
        writeln!(pipe, "{line}").context("tell the shell that cleans up")?;
        state.lines.push(line);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes every lab that was left up and returns their names.
pub fn remove_kept() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(files) = fs::read_dir(KEPT) else { return Ok(removed) };
    for file in files.flatten() {
        let list = fs::File::open(file.path()).with_context(|| format!("open {}", file.path().display()))?;
        Command::new("sh")
            .args(["-c", SCRIPT])
            .env("PATH", search_path())
            .stdin(list)
            .stderr(Stdio::null())
            .status()
            .context("run the shell that cleans up")?;
        fs::remove_file(file.path()).with_context(|| format!("remove {}", file.path().display()))?;
        removed.push(file.file_name().to_string_lossy().into_owned());
    }
    fs::remove_dir(KEPT).with_context(|| format!("remove {KEPT}"))?;
    Ok(removed)
}

/// Field 22 of `/proc/<id>/stat` (proc(5)), in clock ticks since boot.
fn start_time(id: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).with_context(|| format!("look at process {id}"))?;
    // The name, in parentheses, may hold spaces: count from its end, which is field 2.
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
    let ticks = after_name.and_then(|rest| rest.split(' ').nth(19)).and_then(|field| field.parse().ok());
    ticks.with_context(|| format!("/proc/{id}/stat has no start time"))
}
