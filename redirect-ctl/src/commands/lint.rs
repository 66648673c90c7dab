//! `lint`: what is allowed and yet hardly meant.

use redirect_relay::route::Finding;

use super::{
    Context, Error,
    output::{Cell, Column, Columns, word},
};
use crate::api::types::{Page, paths};

pub(super) async fn run(context: &mut Context<'_>) -> Result<(), Error> {
    let page: Page<Finding> = context.client.get(paths::LINT).await?;
    context.items(&page.items)?;
    match page.items.len() {
        0 => Ok(()),
        count => Err(Error::Failed(format!("{count} findings"))),
    }
}

impl Columns for Finding {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("CONCERN", |finding| Cell::text(word(&finding.concern))),
        Column::new("SUBJECT", |finding| Cell::text(finding.subject.replace(' ', "_"))),
        Column::new("MEANING", |finding| Cell::text(&finding.text)),
    ];
}
