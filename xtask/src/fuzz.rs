//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`, from the inputs that are kept there.
//!
//! What it makes up that reaches more code stays in the target directory, where the next run takes it up; `--keep` adds it to the kept inputs,
//! which the normal suite replays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    exec,
    setup::{self, Presence, Tool},
};

const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// libFuzzer is C++, and comes as source.
const COMPILER: [Tool; 1] =
    [Tool { presence: Presence::Program("g++"), package: "g++", purpose: "compiles libFuzzer for the fuzz targets" }];
/// Longer inputs than this reach nothing that shorter ones do not, and are slow.
const INPUT_BYTES_MAX: u32 = 2048;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target; without it, one after another
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Add what reaches more code to the kept inputs
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let folder = exec::workspace().join("tests/fuzz");
    let all = targets(&folder)?;
    let chosen = match &args.target {
        Some(target) => {
            ensure!(all.contains(target), "no target {target}; there are {}", all.join(", "));
            vec![target.clone()]
        }
        None => all,
    };
    setup::ensure_tools(&COMPILER)?;
    ensure_cargo_fuzz()?;

    let mut failed = Vec::new();
    for target in chosen {
        let kept = folder.join("corpus").join(&target);
        let found = exec::target_dir()?.join("fuzz/corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        exec::say(format!("fuzzing {target} for {} s", args.seconds));
        let options = [format!("-max_total_time={}", args.seconds), format!("-max_len={INPUT_BYTES_MAX}")];
        if !fuzz(&folder, &target, [&found, &kept], &options)? {
            failed.push(target);
        } else if args.keep {
            exec::say(format!("adding what reaches more code to {}", kept.display()));
            ensure!(fuzz(&folder, &target, [&kept, &found], &["-set_cover_merge=1".to_owned()])?, "merging failed");
        }
    }
    ensure!(failed.is_empty(), "failed: {}; the inputs are in tests/fuzz/artifacts", failed.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// By the names of their files.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join("fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let names = files.map(|file| Ok(file?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Runs libFuzzer on inputs of both folders; what it adds goes to the first. Returns whether it found nothing wrong.
fn fuzz(folder: &Path, target: &str, inputs: [&PathBuf; 2], options: &[String]) -> Result<bool> {
    let mut command = cargo_fuzz();
    command.args(["run", "--fuzz-dir"]).arg(folder).arg("--target-dir").arg(exec::target_dir()?.join("fuzz"));
    command.arg(target).args(inputs).arg("--").args(options);
    let status = command.status().context("run cargo fuzz")?;
    Ok(status.success())
}

/// The pinned compiler lets the flags of sanitizers and of coverage through as a nightly one does.
fn cargo_fuzz() -> Command {
    let mut command = exec::cargo();
    command.arg("fuzz").env("RUSTC_BOOTSTRAP", "1");
    command
}

fn ensure_cargo_fuzz() -> Result<()> {
    if exec::quietly(cargo_fuzz().arg("--version")).is_ok() {
        return Ok(());
    }
    exec::say(format!("installing cargo-fuzz {CARGO_FUZZ_VERSION} (cargo): builds and runs the fuzz targets"));
    let mut install = exec::cargo();
    install.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION, "--locked", "--quiet"]);
    exec::quietly(&mut install).map(drop)
}
