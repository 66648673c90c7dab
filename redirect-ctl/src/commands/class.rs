//! `class list|get|set|delete`.

use redirect_relay::Lock;

use super::{
    Context, Error,
    output::{Table, joined, or_dash},
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
        ClassVerb::List => context.list(paths::CLASSES, table).await,
        ClassVerb::Get { name } => context.get(paths::CLASS, &name, table).await,
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
            let (answer, changed): (Versioned<Class>, _) = context.client.put(paths::CLASS, &args.name, &body).await?;
            context.set(&format!("class {}", answer.name), &answer, changed)
        }
        ClassVerb::Delete { name } => {
            let changed = context.client.delete(paths::CLASS, &name).await?;
            context.deleted(&format!("class {name}"), changed)
        }
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

fn table(classes: &[Versioned<Class>]) -> Table {
    let row = |class: &Versioned<Class>| {
        [
            class.name.to_string(),
            class.action.to_string(),
            or_dash(Some(joined(class.relays.iter().map(ToString::to_string)))),
            class.on_relay_down.to_string(),
            class.on_class_change.to_string(),
            or_dash(Some(limits(&class.limits))),
            or_dash(class.gateway.as_ref()),
        ]
    };
    let header = ["NAME", "ACTION", "RELAYS", "ON-RELAY-DOWN", "ON-CLASS-CHANGE", "LIMITS", "GATEWAY"];
    Table::new(header, classes.iter().map(row))
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
