//! `group list|get|set|delete`.

use redirect_relay::gateway::{Group, Member};

use super::{
    Context, Error,
    output::{Table, joined, or_dash, word},
};
use crate::{api::types::paths, cli::GroupVerb, revision::Versioned};

pub(super) async fn run(context: &mut Context<'_>, verb: GroupVerb) -> Result<(), Error> {
    match verb {
        GroupVerb::List => context.list(paths::GROUPS, table).await,
        GroupVerb::Get { name } => context.get(paths::GROUP, &name, table).await,
        GroupVerb::Set(args) => {
            let group =
                Group { name: args.name, description: args.description, balance: args.balance, members: args.members };
            let (answer, changed): (Versioned<Group>, _) =
                context.client.put(paths::GROUP, &group.name, &group).await?;
            context.set(&format!("group {}", answer.name), &answer, changed)
        }
        GroupVerb::Delete { name } => {
            let changed = context.client.delete(paths::GROUP, &name).await?;
            context.deleted(&format!("group {name}"), changed)
        }
    }
}

fn table(groups: &[Versioned<Group>]) -> Table {
    let member = |Member { gateway, rank }: &Member| match rank {
        0 => gateway.to_string(),
        rank => format!("{gateway}:{rank}"),
    };
    let row = |group: &Versioned<Group>| {
        [
            group.name.to_string(),
            word(&group.balance),
            joined(group.members.iter().map(member)),
            or_dash(Some(&group.description)),
        ]
    };
    Table::new(["NAME", "BALANCE", "MEMBERS", "DESCRIPTION"], groups.iter().map(row))
}
