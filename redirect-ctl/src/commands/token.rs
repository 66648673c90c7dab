//! `token create|list|revoke`.

use super::{
    Context, Error,
    output::{Table, or_dash},
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
        TokenVerb::List => context.list(paths::TOKENS, table).await,
        TokenVerb::Revoke { name } => {
            context.client.remove(paths::TOKEN, &name).await?;
            context.done(&serde_json::json!({"name": name, "revoked": true}), &format!("token {name} revoked"))
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
    writeln!(context.stderr, "redirect-ctl: token {} for {}{until}; it is shown this once", made.name, made.role)?;
    Ok(())
}

fn table(tokens: &[Token]) -> Table {
    let row = |token: &Token| {
        [
            token.name.to_string(),
            token.id.clone(),
            token.role.to_string(),
            or_dash(token.within.as_ref()),
            token.created.to_string(),
            or_dash(token.expires.as_ref()),
            or_dash(token.last_used.as_ref()),
        ]
    };
    Table::new(["NAME", "ID", "ROLE", "WITHIN", "CREATED", "EXPIRES", "LAST-USED"], tokens.iter().map(row))
}
