//! `lock list|add|remove`.

use super::{
    Context, Error,
    output::{Table, duration},
};
use crate::{
    api::types::{Lock, LockPut, paths},
    cli::LockVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: LockVerb) -> Result<(), Error> {
    match verb {
        LockVerb::List => context.list(paths::LOCKS, table).await,
        LockVerb::Add(args) => {
            let duration_s = super::whole_seconds(args.duration);
            let lock = context.client.lock(&args.address, &LockPut { duration_s }).await?;
            context.done(&lock, &format!("{} locked for {}", lock.address, duration(lock.left_s.into())))
        }
        LockVerb::Remove { address } => {
            context.client.unlock(&address).await?;
            context.done(&serde_json::json!({}), &format!("{address} unlocked"))
        }
    }
}

fn table(locks: &[Lock]) -> Table {
    let row = |lock: &Lock| [lock.address.to_string(), duration(lock.left_s.into())];
    Table::new(["ADDRESS", "LEFT"], locks.iter().map(row))
}
