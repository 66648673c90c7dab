//! What the way through the router costs, beside nothing at all and beside what people use instead, in namespaces.
//!
//! Three stages, each with a lab for every one that takes part: bystanders, whom nothing is done to; subscribers who are blocked or
//! rejected; and redirected connections. In every turn each takes part once, in an order that changes from turn to turn. Ratios are taken
//! within a turn.

mod connections;
mod cpu;
mod generator;
mod packets;
mod site;
mod traffic;
mod turns;

use std::time::Duration;

use anyhow::Result;

use crate::{
    options::Options,
    report::{Report, Row},
};

/// How much is measured.
struct Effort {
    turns: usize,
    /// Of a part of a turn.
    packets: u32,
    bulk: Duration,
    connections: u32,
    /// Of a run.
    sustained: u32,
}

const FULL: Effort =
    Effort { turns: 15, packets: 40_000, bulk: Duration::from_millis(150), connections: 2_000, sustained: 700_000 };
const QUICK: Effort =
    Effort { turns: 3, packets: 20_000, bulk: Duration::from_millis(50), connections: 1_000, sustained: 300_000 };

/// What every stage has to know.
struct Bench<'a> {
    options: &'a Options,
    effort: &'static Effort,
    cpu: usize,
}

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.options.wants(name)
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let effort = if options.quick { &QUICK } else { &FULL };
    let bench = Bench { options, effort, cpu: cpu::choose()? };
    let stages = [packets::bystanders, packets::refused, connections::redirected];
    let rows: Result<Vec<Vec<Row>>> = stages.into_iter().map(|stage| stage(&bench)).collect();
    Ok(Report { suite: "path", rows: options.retain(rows?.concat()) })
}
