//! `cargo xtask test`: the whole test suite, as root, on the kernel that runs here; `cargo xtask test kernels` is for others.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    exec::{self, Root},
    kernels, package, setup,
};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Option<Suite>,
    /// Handed to the test programs: a filter, or options such as `--nocapture`
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Suite {
    /// Boot Debian's kernels in qemu and look whether the product works on each, and on the kernel of this machine
    #[command(after_help = "Examples:\n  cargo xtask test kernels\n  cargo xtask test kernels --kernel 5.10\n  \
                            cargo xtask test kernels --kernel 6.1 --kernel host\n\n\
                            Kernels are fetched from deb.debian.org and kept in the target directory.")]
    Kernels(kernels::Args),
    /// Build the Debian package, boot a Debian in qemu, run the daemon there under systemd, and remove it
    #[command(after_help = "Examples:\n  cargo xtask test package\n  cargo xtask test package --profile dev")]
    Package(package::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.suite {
        Some(Suite::Kernels(args)) => return kernels::run(args),
        Some(Suite::Package(args)) => return package::run(args),
        None => {}
    }
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
