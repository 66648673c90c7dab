//! `lint`: what is allowed and yet hardly meant.

use redirect_relay::route::Finding;

use super::{
    Context, Error,
    output::{Table, word},
};
use crate::api::types::{Page, paths};

pub(super) async fn run(context: &mut Context<'_>) -> Result<(), Error> {
    let page: Page<Finding> = context.client.get(paths::LINT).await?;
    context.print(&page.items, |findings| {
        let row = |finding: &Finding| [word(&finding.concern), finding.subject.replace(' ', "_"), finding.text.clone()];
        Table::new(["CONCERN", "SUBJECT", "MEANING"], findings.iter().map(row))
    })?;
    match page.items.len() {
        0 => Ok(()),
        count => Err(Error::Failed(format!("{count} findings"))),
    }
}
