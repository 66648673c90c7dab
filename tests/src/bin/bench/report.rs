//! Rows of a suite, as a table and as JSON.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::Context as _;
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) suite: &'static str,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    unit: &'static str,
    /// Which is better, `lower` or `higher`.
    better: &'static str,
    /// Median.
    ours: f64,
    peer: &'static str,
    /// Median.
    theirs: f64,
    ratio: Spread,
}

/// Of ours to theirs, taken within each turn.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

/// What a row counts, and whether more of it is better.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    name: &'static str,
    better: &'static str,
}

impl Unit {
    pub(crate) const SECONDS: Self = Self::lower("s");
    pub(crate) const MILLISECONDS: Self = Self::lower("ms");
    pub(crate) const MEBIBYTES: Self = Self::lower("MiB");
    pub(crate) const NANOSECONDS: Self = Self::lower("ns");
    pub(crate) const MICROSECONDS: Self = Self::lower("us");
    pub(crate) const CPU_MICROSECONDS_PER_MESSAGE: Self = Self::lower("CPU us/message");
    pub(crate) const BYTES_PER_SESSION: Self = Self::lower("bytes/session");
    pub(crate) const MESSAGES_PER_SECOND: Self = Self::higher("messages/s");
    pub(crate) const PACKETS_PER_SECOND: Self = Self::higher("packets/s");
    pub(crate) const GIGABITS_PER_SECOND: Self = Self::higher("Gbit/s");
    pub(crate) const CONNECTIONS_PER_SECOND: Self = Self::higher("connections/s");
    pub(crate) const REQUESTS_PER_SECOND: Self = Self::higher("requests/s");
    pub(crate) const CONNECTIONS: Self = Self::higher("connections");

    const fn lower(name: &'static str) -> Self {
        Self { name, better: "lower" }
    }

    const fn higher(name: &'static str) -> Self {
        Self { name, better: "higher" }
    }
}

impl Row {
    /// `turns` has ours and theirs of each turn.
    pub(crate) fn new(name: &str, unit: Unit, peer: &'static str, turns: &[(f64, f64)]) -> Self {
        let ratio = Spread::of(turns.iter().map(|(ours, theirs)| ours / theirs));
        Self {
            name: name.to_owned(),
            unit: unit.name,
            better: unit.better,
            ours: Spread::of(turns.iter().map(|(ours, _)| *ours)).median,
            peer,
            theirs: Spread::of(turns.iter().map(|(_, theirs)| *theirs)).median,
            ratio,
        }
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let rounded = |value: Option<&f64>| value.map_or(f64::NAN, |value| (value * 1000.0).round() / 1000.0);
        Self {
            min: rounded(values.first()),
            median: rounded(values.get(values.len() / 2)),
            max: rounded(values.last()),
        }
    }
}

impl Report {
    pub(crate) fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{:44} {:>10} {:>10} {:>10}  ratio min / median / max", self.suite, "ours", "peer", "net")?;
        for row in &self.rows {
            let Row { name, ours, theirs, ratio, peer, unit, .. } = row;
            writeln!(
                out,
                "{name:44} {ours:10.1} {theirs:10.1} {:10.1}  {:.2} / {:.2} / {:.2}  ({unit}, beside {peer})",
                ours - theirs,
                ratio.min,
                ratio.median,
                ratio.max
            )?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}
