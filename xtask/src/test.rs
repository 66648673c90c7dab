//! `cargo xtask test`: the whole test suite, as root.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    exec::{self, Root},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to the test programs: a filter, or options such as `--nocapture`
    #[arg(last = true)]
    filter: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::require("the test suite (it makes network namespaces and loads eBPF programs)")?;
    setup::ensure()?;

    // The end-to-end tests run redirectd and redirect-ctl, which `cargo test` builds for their own package's tests only.
    exec::say("building the workspace");
    let built = exec::cargo().args(["build", "--workspace", "--bins"]).status()?;
    if !built.success() {
        return Ok(ExitCode::from(exec::code(built)));
    }

    let mut tests = exec::cargo();
    // Of every test program: one that fails says nothing about the next.
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    if !args.filter.is_empty() {
        tests.arg("--").args(&args.filter);
    }
    if root == Root::Sudo {
        // Only the test programs run as root: cargo and rustup keep their homes, and no file in the target directory
        // ends up with another owner.
        tests.env(runner_variable(), root.prefix().join(" "));
    }
    exec::say(format!("{}{}", exec::spelled(&tests), if root == Root::Sudo { " (test programs by sudo)" } else { "" }));
    exec::hand_on(&mut tests)
}

/// Cargo's variable for the program that runs what was built for this machine.
fn runner_variable() -> String {
    let triple =
        format!("{}-unknown-linux-{}", std::env::consts::ARCH, if cfg!(target_env = "musl") { "musl" } else { "gnu" });
    format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace('-', "_"))
}
