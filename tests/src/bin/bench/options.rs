//! How much of a suite is measured, and which rows.

use crate::report::Row;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Few and short turns: to see whether it works, and roughly how well.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only rows whose names begin so.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    only: String,
}

impl Options {
    /// Whether rows are asked for whose names begin with `name`.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only) || self.only.starts_with(name)
    }

    /// Of rows that were measured together, those that were asked for.
    pub(crate) fn retain(&self, mut rows: Vec<Row>) -> Vec<Row> {
        rows.retain(|row| row.name.starts_with(&self.only));
        rows
    }
}
