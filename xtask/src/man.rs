//! `cargo xtask man FOLDER`: the manual pages and shell completions, written by the program that they are about.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::exec;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Gets man/*.1, man/*.8 and completions/
    folder: PathBuf,
    /// The built redirect-ctl [default: that of the development profile, which is built first]
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,
}

/// Shells, what they call the file of a command's completions, and where that is in a package.
pub(crate) const SHELLS: &[(&str, &str, &str)] = &[
    ("bash", "redirect-ctl", "usr/share/bash-completion/completions/redirect-ctl"),
    ("zsh", "_redirect-ctl", "usr/share/zsh/vendor-completions/_redirect-ctl"),
    ("fish", "redirect-ctl.fish", "usr/share/fish/vendor_completions.d/redirect-ctl.fish"),
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = if let Some(program) = &args.program {
        program.clone()
    } else {
        exec::say("building redirect-ctl");
        let built = exec::cargo().args(["build", "--quiet", "-p", "redirect-ctl", "--bin", "redirect-ctl"]).status()?;
        if !built.success() {
            return Ok(ExitCode::from(exec::code(built)));
        }
        exec::target_dir()?.join("debug/redirect-ctl")
    };
    write(&program, &args.folder)?;
    exec::say(format!("man and completions are in {}", args.folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// Has `program` fill `folder`.
pub(crate) fn write(program: &Path, folder: &Path) -> Result<()> {
    let run = |words: &[&OsStr]| {
        let output = Command::new(program).args(words).output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        if !output.status.success() {
            bail!("{} {words:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    };
    run(&["man".as_ref(), folder.join("man").as_os_str()])?;
    for (shell, name, _) in SHELLS {
        let folder = folder.join("completions").join(shell);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let script = run(&["completion".as_ref(), shell.as_ref()])?;
        fs::write(folder.join(name), script).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}
