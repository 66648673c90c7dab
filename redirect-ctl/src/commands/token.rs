//! `token create|list|revoke`.

use serde_json::json;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
    resource::Resource,
};
use crate::{
    api::{
        tokens::{Token, TokenMade, TokenPost},
        types::paths,
    },
    cli::{TokenCreate, TokenVerb},
    desired::Time,
};

pub(super) async fn run(context: &mut Context<'_>, verb: TokenVerb) -> Result<(), Error> {
    match verb {
        TokenVerb::Create(args) => create(context, args).await,
        TokenVerb::List => context.list::<Token>().await,
        TokenVerb::Revoke { name } => {
            context.client.remove(paths::TOKEN, &name).await?;
            let answer = json!({"name": name, "revoked": true});
            context.said(&answer, name.as_str(), &format!("token {name} revoked"))
        }
    }
}

async fn create(context: &mut Context<'_>, args: TokenCreate) -> Result<(), Error> {
    let seconds = args.ttl.map(|ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let expires =
        seconds.map(|seconds| Time { seconds: Time::now().seconds.saturating_add(seconds.max(1)) }).or(args.expires);
    let wanted = TokenPost { name: args.name, role: args.role, within: args.within, expires };
    let made: TokenMade = context.client.create(paths::TOKENS, &wanted).await?;
    // The token alone, so that it can go into a file; what it is about goes elsewhere.
    context.done(&made, &made.token)?;
    let until = made.expires.map(|expires| format!(" until {expires}")).unwrap_or_default();
    context.note(&format!("token {} for {}{until}; it is shown this once", made.name, made.role))
}

impl Resource for Token {
    const KIND: [&'static str; 2] = ["token", "tokens"];
    const COLLECTION: &'static str = paths::TOKENS;
    const PATH: &'static str = paths::TOKEN;
}

impl Columns for Token {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |token| Cell::text(&token.name)),
        Column::new("ID", |token| Cell::text(&token.id)),
        Column::new("ROLE", |token| Cell::text(token.role)),
        Column::new("WITHIN", |token| Cell::maybe(token.within)),
        Column::new("CREATED", |token| Cell::text(token.created)),
        Column::new("EXPIRES", |token| Cell::maybe(token.expires)),
        Column::new("LAST-USED", |token| Cell::maybe(token.last_used)),
    ];
}
