//! `interface list|get|set|delete`.

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    api::types::{Interface, InterfacePut, paths},
    cli::InterfaceVerb,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: InterfaceVerb) -> Result<(), Error> {
    match verb {
        InterfaceVerb::List => context.list(paths::INTERFACES, table).await,
        InterfaceVerb::Get { name } => context.get(paths::INTERFACE, &name, table).await,
        InterfaceVerb::Set(args) => {
            let body = InterfacePut {
                name: None,
                role: args.role,
                hook: args.hook,
                foreign_sources: args.foreign_sources,
                source: None,
                status: None,
                revision: None,
            };
            let (answer, changed): (Versioned<Interface>, _) =
                context.client.put(paths::INTERFACE, &args.name, &body).await?;
            context.set(&format!("interface {}", answer.name), &answer, changed)
        }
        InterfaceVerb::Delete { name } => {
            let changed = context.client.delete(paths::INTERFACE, &name).await?;
            context.deleted(&format!("interface {name}"), changed)
        }
    }
}

fn table(interfaces: &[Versioned<Interface>]) -> Table {
    let row = |interface: &Versioned<Interface>| {
        [
            interface.name.to_string(),
            interface.role.to_string(),
            interface.hook.to_string(),
            or_dash(interface.status.mode),
            if interface.foreign_sources { "yes" } else { "no" }.to_owned(),
            interface.source.to_string(),
            or_dash(interface.status.error.as_ref()),
        ]
    };
    Table::new(["NAME", "ROLE", "HOOK", "MODE", "FOREIGN-SOURCES", "SOURCE", "ERROR"], interfaces.iter().map(row))
}
