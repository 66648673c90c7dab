//! `interface list|get|set|delete`.

use super::{
    Context, Error,
    output::{Cell, Column, Columns, Tone},
    resource::Resource,
};
use crate::{
    api::types::{Interface, InterfacePut, paths},
    cli::InterfaceVerb,
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: InterfaceVerb) -> Result<(), Error> {
    match verb {
        InterfaceVerb::List(watch) => context.watched_list::<Versioned<Interface>>(watch).await,
        InterfaceVerb::Get { name } => context.get::<Versioned<Interface>>(&name).await,
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
            context.put::<Versioned<Interface>>(&args.name, &body).await
        }
        InterfaceVerb::Delete { name } => context.delete::<Versioned<Interface>>(&name).await,
    }
}

impl Resource for Versioned<Interface> {
    const KIND: [&'static str; 2] = ["interface", "interfaces"];
    const COLLECTION: &'static str = paths::INTERFACES;
    const PATH: &'static str = paths::INTERFACE;
}

impl Columns for Versioned<Interface> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |interface| Cell::text(&interface.name)),
        Column::new("ROLE", |interface| Cell::text(interface.role)),
        Column::new("HOOK", |interface| Cell::text(interface.hook)),
        Column::new("MODE", |interface| Cell::maybe(interface.status.mode)),
        Column::new("FOREIGN-SOURCES", |interface| Cell::yes_or_no(interface.foreign_sources)),
        Column::new("SOURCE", |interface| Cell::text(interface.source)),
        Column::new("ERROR", |interface| match &interface.status.error {
            Some(error) => Cell::state(error, Tone::Bad),
            None => Cell::Nothing,
        }),
    ];
}
