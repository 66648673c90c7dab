//! `cargo xtask demo`: builds the product and runs the demo in the lab.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    exec::{self, Root},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the lab up and print how to enter and how to remove it
    #[arg(long)]
    keep: bool,
    /// End with one JSON object of the checks
    #[arg(long)]
    json: bool,
    /// Remove the labs that `--keep` left up
    #[arg(long, conflicts_with_all = ["keep", "json"])]
    remove: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::require("the demo (it makes network namespaces and loads eBPF programs)")?;
    setup::ensure()?;

    // The development profile, so that demo and test share one build; the programs in the kernel are optimised in every profile.
    exec::say("building the workspace");
    let built =
        exec::cargo().args(["build", "--quiet", "-p", "redirect-ctl", "-p", "redirect-tests", "--bins"]).status()?;
    if !built.success() {
        return Ok(ExitCode::from(exec::code(built)));
    }

    let mut demo = root.command(exec::target_dir()?.join("debug/demo"));
    let flags = [("--keep", args.keep), ("--json", args.json), ("--remove", args.remove)];
    demo.args(flags.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag));
    exec::hand_on(&mut demo)
}
