//! The development tasks of this workspace, one file each: `cargo xtask --help` lists them.
//!
//! It depends on no member of the workspace, so that it compiles on a machine where nothing is set up, and prepares
//! that machine when a task needs more.

mod bench;
mod debian;
mod demo;
mod dist;
mod exec;
mod fuzz;
mod kernels;
mod mail;
mod man;
mod package;
mod postfix;
mod relays;
mod schemathesis;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set-up, demo, tests and benchmarks in one command each"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build and the lab need and this machine lacks, saying what and why
    #[command(after_help = "Examples:\n  cargo xtask setup\n\nA machine that has everything is left as it is.")]
    Setup,
    /// Set up if need be, build, and run every test as root
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test -- mail_is_byte_exact\n  \
                            cargo xtask test -- --test-threads=1 --nocapture\n  cargo xtask test kernels    on other kernels, in qemu\n  \
                            cargo xtask test package    of the Debian package")]
    Test(test::Args),
    /// Show a mail client whose connection to a server on the Internet is answered by the relay
    #[command(
        after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --keep      leave the lab up to look around\n  \
                            cargo xtask demo --remove    remove the labs that were kept\n  cargo xtask demo --json      \
                            end with one JSON object of the checks"
    )]
    Demo(demo::Args),
    /// Run a benchmark suite as root, in the release profile
    #[command(after_help = "Examples:\n  cargo xtask bench packet\n  cargo xtask bench packet --json packet.json\n  \
                            cargo xtask bench path --only bystander_ --quick\n  \
                            cargo xtask bench relay --only idle")]
    Bench(bench::Args),
    /// Look for inputs for which the data plane does not keep its promises, with libFuzzer
    #[command(after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz handle --seconds 600\n  \
                            cargo xtask fuzz icmp --keep    add what reaches more code to tests/fuzz/corpus")]
    Fuzz(fuzz::Args),
    /// Build a package for Debian: programs, unit, configuration, documents
    #[command(
        after_help = "Examples:\n  cargo xtask dist\n\nThe package is written to the target directory's folder `dist`."
    )]
    Dist(dist::Args),
    /// Write the manual pages and shell completions
    #[command(after_help = "Example:\n  cargo xtask man target/docs")]
    Man(man::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Man(args) => man::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("cargo xtask: {error:#}");
        ExitCode::FAILURE
    })
}
