//! `user list|get|set|delete`.

use serde_json::json;

use super::{Context, Error, output::Table};
use crate::{
    api::types::{User, UserListQuery, paths},
    cli::{UserSet, UserVerb},
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: UserVerb) -> Result<(), Error> {
    match verb {
        UserVerb::List => {
            let query = |rows, cursor| UserListQuery { limit: Some(rows), cursor, count: false };
            context.pages(paths::USERS, "users", None, query, table).await
        }
        UserVerb::Get { name } => context.get(paths::USER, &name, table).await,
        UserVerb::Set(UserSet { name, password_file }) => {
            let body = json!({"password": context.first_line(&password_file)?.expose()});
            let (answer, changed): (Versioned<User>, _) = context.client.put(paths::USER, &name, &body).await?;
            context.set(&format!("user {}", answer.name), &answer, changed)
        }
        UserVerb::Delete { name } => {
            let changed = context.client.delete(paths::USER, &name).await?;
            context.deleted(&format!("user {name}"), changed)
        }
    }
}

fn table(users: &[Versioned<User>]) -> Table {
    Table::new(["NAME"], users.iter().map(|user| [user.name.to_string()]))
}
