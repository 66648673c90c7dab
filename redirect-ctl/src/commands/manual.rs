//! `completion SHELL` and `man FOLDER`: what the shell and man(1) are told, generated from the command line itself.

use std::{fs, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Context, Error, failed};
use crate::cli::{Cli, DaemonCli};

pub(super) fn completion(context: &mut Context<'_>, shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "redirect-ctl", &mut script);
    Ok(context.stdout.write_all(&script)?)
}

/// Writes a page for every command of `redirect-ctl`, such as `redirect-ctl-class-set.1`, and `redirectd.8`.
pub(super) fn man(context: &mut Context<'_>, folder: &Path) -> Result<(), Error> {
    let write = || {
        fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Cli::command(), folder)?;
        clap_mangen::Man::new(DaemonCli::command()).section("8").generate_to(folder)
    };
    write().map_err(|error| failed(folder, &error))?;
    context.note(&format!("the manual pages are in {}", folder.display()))
}
