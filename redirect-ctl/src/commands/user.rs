//! `user list|get|set|delete`.

use serde_json::json;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::types::{User, UserListQuery, paths},
    cli::{UserSet, UserVerb},
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: UserVerb) -> Result<(), Error> {
    match verb {
        UserVerb::List => {
            let query = |rows, cursor| UserListQuery { limit: Some(rows), cursor, count: false };
            context.pages::<Versioned<User>, _>(None, query).await
        }
        UserVerb::Get { name } => context.get::<Versioned<User>>(&name).await,
        UserVerb::Set(UserSet { name, password_file }) => {
            let body = json!({"password": context.first_line(&password_file)?.expose()});
            context.put::<Versioned<User>>(&name, &body).await
        }
        UserVerb::Delete { name } => context.delete::<Versioned<User>>(&name).await,
    }
}

impl Resource for Versioned<User> {
    const KIND: [&'static str; 2] = ["user", "users"];
    const COLLECTION: &'static str = paths::USERS;
    const PATH: &'static str = paths::USER;
}

impl Columns for Versioned<User> {
    const COLUMNS: &'static [Column<Self>] = &[Column::new("NAME", |user| Cell::text(&user.name))];
}
