//! Benchmarks. Every row puts ours beside a peer or a floor, measured in turns in the same run.

mod packet;
mod report;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(
    about = "Runs a benchmark suite (needs root)",
    after_help = "Example:\n  cargo xtask bench packet --json packet.json"
)]
struct Arguments {
    suite: Suite,
    /// Writes the rows as JSON as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// The programs frame by frame, beside a program that only passes.
    Packet,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = match arguments.suite {
        Suite::Packet => packet::run()?,
    };
    report.print()?;
    match arguments.json {
        Some(path) => report.write(&path),
        None => Ok(()),
    }
}
