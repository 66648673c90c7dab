//! Running other programs: with root where it is needed, and with their exit code handed on unchanged.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Says on standard error what is about to be done.
pub(crate) fn say(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

/// How this process reaches root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// It is root.
    Already,
    /// `sudo` grants it without a prompt.
    Sudo,
    /// There is no way that needs no human.
    Unreachable,
}

impl Root {
    pub(crate) fn find() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self::Already;
        }
        let granted = Command::new("sudo")
            .args(["-n", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if granted { Self::Sudo } else { Self::Unreachable }
    }

    /// As [`Root::find`], for a task that makes no sense without root; `purpose` is what it is needed for.
    pub(crate) fn require(purpose: &str) -> Result<Self> {
        match Self::find() {
            Self::Unreachable => {
                bail!(
                    "{purpose} needs root, and sudo does not grant it without a prompt: run `sudo -v` first, or run as root"
                )
            }
            root => Ok(root),
        }
    }

    /// What to put before a command so that it runs as root in this process's environment.
    pub(crate) fn prefix(self) -> &'static [&'static str] {
        match self {
            Self::Sudo => &["sudo", "-n", "-E"],
            Self::Already | Self::Unreachable => &[],
        }
    }

    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        match self.prefix() {
            [] => Command::new(program),
            [sudo, options @ ..] => {
                let mut command = Command::new(sudo);
                command.args(options).arg(program);
                command
            }
        }
    }
}

/// The cargo that runs this task, hence the pinned toolchain's.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where cargo puts what it builds: xtask itself is at `<target>/<profile>/xtask`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let executable = env::current_exe().context("find the target directory")?;
    executable.ancestors().nth(2).map(Path::to_path_buf).context("xtask does not lie in a target directory")
}

/// Finds a program in `PATH` or where Debian keeps those of the administrator, which are in no user's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a command to its end and hands its exit code on.
pub(crate) fn hand_on(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("run {}", command.get_program().display()))?;
    Ok(ExitCode::from(code(status)))
}

/// Runs a command whose output is of interest only when it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("run {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    bail!("{} failed ({}): {last}", spelled(command), output.status)
}

/// The command as one would type it.
pub(crate) fn spelled(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = program.file_name().into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The code a shell would report: a death by signal N is 128 + N.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
