//! Benchmarks. Every row puts ours beside a peer or a floor, measured in turns in the same run.

mod api;
mod options;
mod packet;
mod path;
mod relay;
mod report;
mod rest;
mod subscribers;
mod turns;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use self::options::Options;

#[derive(Parser)]
#[command(
    about = "Runs a benchmark suite (needs root)",
    after_help = "Example:\n  cargo xtask bench packet --json packet.json"
)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
    /// Writes the rows as JSON as well.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Suite {
    /// The programs frame by frame, beside a program that only passes.
    Packet,
    /// The way through the router, in namespaces, beside what people use instead.
    Path(Options),
    /// Mail through the embedded relay, beside other relays and beside none.
    Relay(relay::Arguments),
    /// A million subscribers into store and kernel, beside sets of nftables and ipset.
    Subscribers(Options),
    /// The REST API at a million subscribers, beside requests that read nothing and writes that reach the disk.
    Api(Options),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = match arguments.suite {
        Suite::Packet => packet::run()?,
        Suite::Path(options) => path::run(&options)?,
        Suite::Relay(arguments) => relay::run(arguments)?,
        Suite::Subscribers(options) => subscribers::run(&options)?,
        Suite::Api(options) => api::run(&options)?,
    };
    report.print()?;
    match arguments.json {
        Some(path) => report.write(&path),
        None => Ok(()),
    }
}
