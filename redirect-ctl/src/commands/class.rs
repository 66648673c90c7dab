//! `class list|get|set|delete`.

use redirect_relay::Lock;

use super::{
    Context, Error,
    output::{Cell, Column, Columns, joined},
    resource::Resource,
};
use crate::{
    api::types::{Class, ClassPut, paths},
    cli::{ClassVerb, SmtpArgs},
    desired::Limits,
    revision::Versioned,
    smtp::{Smtp, Unauthenticated},
};

pub(super) async fn run(context: &mut Context<'_>, verb: ClassVerb) -> Result<(), Error> {
    match verb {
        ClassVerb::List(watch) => context.watched_list::<Versioned<Class>>(watch).await,
        ClassVerb::Get { name } => context.get::<Versioned<Class>>(&name).await,
        ClassVerb::Set(args) => {
            let args = *args;
            let body = ClassPut {
                name: None,
                action: args.action,
                relays: args.relays,
                on_relay_down: args.on_relay_down,
                on_class_change: args.on_class_change,
                on_daemon_down: args.on_daemon_down,
                limits: Limits {
                    rate: args.rate,
                    burst: args.burst,
                    open_max: args.open_max,
                    lock_after: args.lock_after,
                    lock_s: args.lock_for.map(super::whole_seconds),
                },
                gateway: args.gateway,
                smtp: smtp(args.smtp)?,
                revision: None,
            };
            context.put::<Versioned<Class>>(&args.name, &body).await
        }
        ClassVerb::Delete { name } => context.delete::<Versioned<Class>>(&name).await,
    }
}

fn smtp(args: SmtpArgs) -> Result<Smtp, Error> {
    let lock = args.lock_strikes.zip(args.lock_strikes_for);
    Ok(Smtp {
        tls: args.tls,
        certificate: args.certificate,
        auth: args.auth,
        auth_cleartext: args.auth_cleartext,
        bridge_unprotected: args.bridge_unprotected,
        unauthenticated: Unauthenticated {
            otherwise: args.unauthenticated,
            allow: args.allow_unauthenticated,
            deny: args.deny_unauthenticated,
        },
        subscriber_quota: super::quota("quota", args.quotas)?,
        class_quota: super::quota("class-quota", args.class_quotas)?,
        subscriber_sessions_max: args.sessions_max,
        notification_recipients_max: args.notification_recipients_max,
        refuse_literals: args.refuse_literals,
        refuse_long_lines: args.refuse_long_lines,
        line_endings: args.line_endings,
        mt_priority: args.mt_priority,
        tarpit: args.tarpit,
        lock: lock.map(|(strikes, duration)| Lock { strikes, duration }),
    })
}

impl Resource for Versioned<Class> {
    const KIND: [&'static str; 2] = ["class", "classes"];
    const COLLECTION: &'static str = paths::CLASSES;
    const PATH: &'static str = paths::CLASS;
}

impl Columns for Versioned<Class> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |class| Cell::text(&class.name)),
        Column::new("ACTION", |class| Cell::text(class.action)),
        Column::new("RELAYS", |class| Cell::list(&class.relays)),
        Column::new("ON-RELAY-DOWN", |class| Cell::text(class.on_relay_down)),
        Column::new("ON-CLASS-CHANGE", |class| Cell::text(class.on_class_change)),
        Column::wide("ON-DAEMON-DOWN", |class| Cell::text(class.on_daemon_down)),
        Column::new("LIMITS", |class| Cell::text(limits(&class.limits))),
        Column::new("GATEWAY", |class| Cell::maybe(class.gateway.as_ref())),
        Column::wide("TLS", |class| Cell::text(class.smtp.tls)),
        Column::wide("AUTH", |class| Cell::text(class.smtp.auth)),
        Column::wide("CERTIFICATE", |class| Cell::maybe(class.smtp.certificate.as_ref())),
    ];
}

/// The limits that there are, in one word.
pub(super) fn limits(limits: &Limits) -> String {
    let members = [
        ("rate", limits.rate),
        ("burst", limits.burst),
        ("open_max", limits.open_max),
        ("lock_after", limits.lock_after),
        ("lock_s", limits.lock_s),
    ];
    joined(members.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))))
}
