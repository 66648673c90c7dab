//! `class list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Class, ClassPut, paths},
    cli::ClassVerb,
};

pub(super) async fn run(context: &mut Context<'_>, verb: ClassVerb) -> Result<(), Error> {
    match verb {
        ClassVerb::List => context.list(paths::CLASSES, table).await,
        ClassVerb::Get { name } => context.get(paths::CLASS, &name, table).await,
        ClassVerb::Set(args) => {
            let body = ClassPut {
                name: None,
                action: args.action,
                relay: args.relay,
                on_relay_down: args.on_relay_down,
                gateway: args.gateway,
            };
            let (answer, changed): (Class, _) = context.client.put(paths::CLASS, &args.name, &body).await?;
            context.set(&format!("class {}", answer.name), &answer, changed)
        }
        ClassVerb::Delete { name } => {
            let changed = context.client.delete(paths::CLASS, &name).await?;
            context.deleted(&format!("class {name}"), changed)
        }
    }
}

fn table(classes: &[Class]) -> Table {
    let row = |class: &Class| {
        [
            class.name.to_string(),
            class.action.to_string(),
            or_dash(class.relay.as_ref()),
            class.on_relay_down.to_string(),
            or_dash(class.gateway.as_ref()),
        ]
    };
    Table::new(["NAME", "ACTION", "RELAY", "ON-RELAY-DOWN", "GATEWAY"], classes.iter().map(row))
}
