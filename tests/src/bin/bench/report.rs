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

#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
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

impl Row {
    /// `turns` has ours and theirs of each turn, in nanoseconds.
    pub(crate) fn nanoseconds(name: &str, peer: &'static str, turns: &[(f64, f64)]) -> Self {
        let ratio = Spread::of(turns.iter().map(|(ours, theirs)| ours / theirs));
        Self {
            name: name.to_owned(),
            unit: "ns",
            better: "lower",
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
        writeln!(out, "{:34} {:>8} {:>8} {:>8}  ratio min / median / max", self.suite, "ours", "peer", "net")?;
        for row in &self.rows {
            let Row { name, ours, theirs, ratio, peer, unit, .. } = row;
            writeln!(
                out,
                "{name:34} {ours:8.1} {theirs:8.1} {:8.1}  {:.2} / {:.2} / {:.2}  ({unit}, beside {peer})",
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
