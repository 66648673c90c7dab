//! `group list|get|set|delete`.

use redirect_relay::gateway::{Group, Member};

use super::{
    Context, Error,
    output::{Cell, Column, Columns, word},
    resource::Resource,
};
use crate::{api::types::paths, cli::GroupVerb, revision::Versioned};

pub(super) async fn run(context: &mut Context<'_>, verb: GroupVerb) -> Result<(), Error> {
    match verb {
        GroupVerb::List => context.list::<Versioned<Group>>().await,
        GroupVerb::Get { name } => context.get::<Versioned<Group>>(&name).await,
        GroupVerb::Set(args) => {
            let group =
                Group { name: args.name, description: args.description, balance: args.balance, members: args.members };
            context.put::<Versioned<Group>>(&group.name, &group).await
        }
        GroupVerb::Delete { name } => context.delete::<Versioned<Group>>(&name).await,
    }
}

impl Resource for Versioned<Group> {
    const KIND: [&'static str; 2] = ["group", "groups"];
    const COLLECTION: &'static str = paths::GROUPS;
    const PATH: &'static str = paths::GROUP;
}

impl Columns for Versioned<Group> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |group| Cell::text(&group.name)),
        Column::new("BALANCE", |group| Cell::text(word(&group.balance))),
        Column::new("MEMBERS", |group| Cell::list(group.members.iter().map(member))),
        Column::new("DESCRIPTION", |group| Cell::text(&group.description)),
    ];
}

fn member(Member { gateway, rank }: &Member) -> String {
    match rank {
        0 => gateway.to_string(),
        rank => format!("{gateway}:{rank}"),
    }
}
