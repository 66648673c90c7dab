//! `lock list|add|remove`.

use super::{
    Context, Error,
    output::{Cell, Column, Columns, duration},
};
use crate::{
    api::types::{Lock, LockPut, Page, paths},
    cli::LockVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: LockVerb) -> Result<(), Error> {
    match verb {
        LockVerb::List => {
            let page: Page<Lock> = context.client.get(paths::LOCKS).await?;
            context.items(&page.items)
        }
        LockVerb::Add(args) => {
            let duration_s = super::whole_seconds(args.duration);
            let lock = context.client.lock(&args.address, &LockPut { duration_s }).await?;
            let (name, left) = (lock.address.to_string(), duration(lock.left_s.into()));
            context.said(&lock, &name, &format!("{name} locked for {left}"))
        }
        LockVerb::Remove { address } => {
            context.client.unlock(&address).await?;
            context.said(&serde_json::json!({}), &address.to_string(), &format!("{address} unlocked"))
        }
    }
}

impl Columns for Lock {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("ADDRESS", |lock| Cell::text(lock.address)),
        Column::new("LEFT", |lock| Cell::duration(lock.left_s)),
    ];
}
