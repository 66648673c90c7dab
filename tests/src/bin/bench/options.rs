//! How much of a suite is measured, and which rows.

use crate::report::Row;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Few and short turns: to see whether it works, and roughly how well.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only rows whose names begin so, or so.
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
}

impl Options {
    /// Whether rows are asked for whose names begin with `name`.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only) || only.starts_with(name))
    }

    /// Of rows that were measured together, those that were asked for.
    pub(crate) fn retain(&self, mut rows: Vec<Row>) -> Vec<Row> {
        rows.retain(|row| self.only.is_empty() || self.only.iter().any(|only| row.name.starts_with(only)));
        rows
    }
}
