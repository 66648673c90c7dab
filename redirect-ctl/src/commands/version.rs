//! `version`: two programs that may be of different ones.

use serde::Serialize;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};

#[derive(Serialize)]
struct Versions {
    redirect_ctl: &'static str,
    /// None where it does not answer.
    redirectd: Option<String>,
}

struct Row(&'static str, Option<String>);

impl Columns for Row {
    const COLUMNS: &'static [Column<Self>] =
        &[Column::new("PROGRAM", |row| Cell::text(row.0)), Column::new("VERSION", |row| Cell::maybe(row.1.as_ref()))];
}

/// Ours is told in any case.
pub(super) async fn run(context: &mut Context<'_>) -> Result<(), Error> {
    let status = context.client.status().await;
    let redirectd = status.as_ref().ok().map(|status| status.version.clone());
    let versions = Versions { redirect_ctl: env!("CARGO_PKG_VERSION"), redirectd };
    let rows =
        [Row("redirect-ctl", Some(versions.redirect_ctl.to_owned())), Row("redirectd", versions.redirectd.clone())];
    context.answer(&versions, Row::COLUMNS, &rows)?;
    Ok(status.map(drop)?)
}
