//! `gateway list|get|set|verify|enable|drain|disable|delete`.

use redirect_relay::gateway::{
    Account, CertificateReport, Egress, Gateway, GatewayLimits, Name, Pin, Secret, StageReport, Status, Verification,
    VerifyReport,
};
use serde_json::Value;

use super::{
    Context, Error,
    output::{Table, joined, or_dash, word},
};
use crate::{
    api::{
        client,
        types::{Gateway as Answer, paths},
    },
    cli::{GatewaySet, GatewayVerb},
    revision::Versioned,
};

pub(super) async fn run(context: &mut Context<'_>, verb: GatewayVerb) -> Result<(), Error> {
    match verb {
        GatewayVerb::List => context.list(paths::GATEWAYS, table).await,
        GatewayVerb::Get { name } => context.get(paths::GATEWAY, &name, table).await,
        GatewayVerb::Set(args) => {
            let verify = args.verify;
            let gateway = gateway(context, *args)?;
            if verify {
                let report = context.client.verify(&with_password(&gateway)?).await?;
                context.stderr.write_all(stages(&report).render(true).as_bytes())?;
                if !report.ok {
                    return Err(Error::Failed(format!(
                        "no mail could go to gateway {}; it is not saved",
                        gateway.name
                    )));
                }
            }
            put(context, &gateway).await
        }
        GatewayVerb::Verify { name } => {
            let Answer { gateway, .. } = context.client.resource(paths::GATEWAY, &name).await?;
            let report = context.client.verify(&with_password(&gateway)?).await?;
            context.print(&report, stages)?;
            if report.ok { Ok(()) } else { Err(Error::Failed(format!("no mail could go to gateway {name}"))) }
        }
        GatewayVerb::Enable { name } => set_status(context, &name, Status::Enabled).await,
        GatewayVerb::Drain { name } => set_status(context, &name, Status::Draining).await,
        GatewayVerb::Disable { name } => set_status(context, &name, Status::Disabled).await,
        GatewayVerb::Delete { name } => {
            let changed = context.client.delete(paths::GATEWAY, &name).await?;
            context.deleted(&format!("gateway {name}"), changed)
        }
    }
}

async fn put(context: &mut Context<'_>, gateway: &Gateway) -> Result<(), Error> {
    let (answer, changed): (Versioned<Answer>, _) =
        context.client.put(paths::GATEWAY, &gateway.name, &with_password(gateway)?).await?;
    context.set(&format!("gateway {}", answer.gateway.name), &answer, changed)
}

/// Reads the gateway and writes it back with another status; it keeps its password.
async fn set_status(context: &mut Context<'_>, name: &Name, status: Status) -> Result<(), Error> {
    let Answer { gateway, .. } = context.client.resource(paths::GATEWAY, name).await?;
    put(context, &Gateway { status, ..gateway }).await
}

/// What the API gets: a password does not serialise by itself.
fn with_password(gateway: &Gateway) -> Result<Value, Error> {
    let mut body = serde_json::to_value(gateway).map_err(|error| client::Error::Answer(error.to_string()))?;
    if let Some(account) = gateway.account.as_ref().filter(|account| !account.password.expose().is_empty()) {
        body["account"]["password"] = account.password.expose().into();
    }
    Ok(body)
}

fn gateway(context: &mut Context<'_>, args: GatewaySet) -> Result<Gateway, Error> {
    let password = match &args.password_file {
        None => Secret::default(),
        Some(path) => context.first_line(path)?,
    };
    let account = args.username.map(|username| Account {
        mechanism: args.mechanism,
        username,
        password,
        allow_unprotected: args.allow_unprotected,
    });
    Ok(Gateway {
        name: args.name,
        description: args.description,
        address: args.address,
        port: args.port,
        encryption: args.encryption,
        verification: verification(&args.verification, args.ca_file, args.pin)?,
        sni: args.sni,
        account,
        status: args.status,
        weight: args.weight,
        priorities: args.priorities,
        limits: GatewayLimits {
            connections_max: args.connections_max,
            messages_per_second_max: args.messages_per_second_max,
            recipients_per_message_max: args.recipients_per_message_max,
            quota: super::quota("quota", args.quotas)?,
        },
        egress: Egress {
            strategy: args.strategy,
            addresses: args.egress,
            block_patterns: args.block_patterns,
            suspension_s: super::whole_seconds(args.suspension),
        },
        proxy_protocol: args.proxy_protocol,
        xclient: args.xclient,
        allow_local: args.allow_local,
        allow_downgrade: args.allow_downgrade,
    })
}

fn verification(mode: &str, file: Option<std::path::PathBuf>, pin: Option<Pin>) -> Result<Verification, Error> {
    match (mode, file, pin) {
        ("ca", file, None) => Ok(Verification::Ca { file }),
        ("pin", None, Some(sha256)) => Ok(Verification::Pin { sha256 }),
        ("none", None, None) => Ok(Verification::None {}),
        (_, Some(_), _) => Err(Error::Usage("--ca-file goes with --verification ca".to_owned())),
        (_, None, _) => Err(Error::Usage("--pin goes with --verification pin, and needs it".to_owned())),
    }
}

fn stages(report: &VerifyReport) -> Table {
    let row = |stage: &StageReport| {
        let ok = if stage.ok { "ok" } else { "failed" };
        [stage.stage.as_str().to_owned(), ok.to_owned(), format!("{}ms", stage.duration_ms), stage.text.clone()]
    };
    let below = |certificate: &CertificateReport| {
        let CertificateReport { subject, names, issuer, not_after, sha256, .. } = certificate;
        let names = or_dash(Some(joined(names.iter().cloned())));
        let text = format!("certificate of {subject} for {names}, by {issuer}, until {not_after}, SHA-256 {sha256}");
        [String::new(), String::new(), String::new(), text]
    };
    let rows = |stage| std::iter::once(row(stage)).chain(stage.certificates.iter().map(below));
    Table::new(["STAGE", "RESULT", "TIME", "DETAIL"], report.stages.iter().flat_map(rows))
}

fn table(gateways: &[Versioned<Answer>]) -> Table {
    let row = |Versioned { resource: Answer { gateway, state }, .. }: &Versioned<Answer>| {
        let verification = match &gateway.verification {
            Verification::None {} => "none",
            Verification::Ca { .. } => "ca",
            Verification::Pin { .. } => "pin",
        };
        let health = state.as_ref().map(|state| if state.up { "up" } else { "down" });
        [
            gateway.name.to_string(),
            gateway.address.to_string(),
            gateway.port.to_string(),
            word(&gateway.encryption),
            verification.to_owned(),
            or_dash(gateway.account.as_ref().map(|account| &account.username)),
            gateway.weight.to_string(),
            word(&gateway.status),
            or_dash(health),
            or_dash(state.as_ref().map(|state| state.connections)),
            or_dash(state.as_ref().map(|state| state.outstanding)),
            or_dash(Some(&gateway.description)),
        ]
    };
    let header = [
        "NAME",
        "ADDRESS",
        "PORT",
        "ENCRYPTION",
        "VERIFICATION",
        "USER",
        "WEIGHT",
        "STATUS",
        "HEALTH",
        "CONNECTIONS",
        "OUTSTANDING",
        "DESCRIPTION",
    ];
    Table::new(header, gateways.iter().map(row))
}
