//! `cargo xtask bench`: a benchmark suite in the release profile.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    exec::{self, Root},
    relays, setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The suite: `packet`, `path`, `relay`, `subscribers` or `api`
    suite: String,
    /// Few and short turns (not `packet`): to see whether it works, and roughly how well
    #[arg(long)]
    quick: bool,
    /// Only rows whose names begin so, or so (not `packet`)
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
    /// Beside this build of `redirectd` alone (`relay`): what a change does
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write the rows to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::require("a benchmark (it loads eBPF programs)")?;
    setup::ensure()?;
    match args.suite.as_str() {
        "path" | "subscribers" => setup::ensure_peers()?,
        "relay" => relays::ensure()?,
        _ => {}
    }

    exec::say("building in the release profile");
    let programs = ["redirectd", "redirect-ctl", "bench"].into_iter().flat_map(|program| ["--bin", program]);
    let packages = ["-p", "redirect-ctl", "-p", "redirect-tests"];
    let built = exec::cargo().args(["build", "--quiet", "--release"]).args(packages).args(programs).status()?;
    if !built.success() {
        return Ok(ExitCode::from(exec::code(built)));
    }

    let mut bench = root.command(exec::target_dir()?.join("release/bench"));
    bench.arg(&args.suite);
    if args.quick {
        bench.arg("--quick");
    }
    for prefix in &args.only {
        bench.arg("--only").arg(prefix);
    }
    if let Some(file) = &args.baseline {
        bench.arg("--baseline").arg(file);
    }
    if let Some(file) = &args.json {
        bench.arg("--json").arg(file);
    }
    exec::hand_on(&mut bench)
}
