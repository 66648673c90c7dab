//! `gateway list|get|set|verify|enable|drain|disable|delete`.

use redirect_relay::gateway::{
    Account, CertificateReport, Egress, Gateway, GatewayLimits, Name, Pin, Secret, StageReport, Status, Verification,
    VerifyReport,
};
use serde_json::Value;

use super::{
    Context, Error,
    output::{Cell, Column, Columns, Tone, joined, word},
    resource::Resource,
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
        GatewayVerb::List(watch) => context.watched_list::<Versioned<Answer>>(watch).await,
        GatewayVerb::Get { name } => context.get::<Versioned<Answer>>(&name).await,
        GatewayVerb::Set(args) => {
            let verify = args.verify;
            let gateway = gateway(context, *args)?;
            if verify {
                let report = context.client.verify(&with_password(&gateway)?).await?;
                let stages = stages(&report);
                let table = context.layout.table(Stage::COLUMNS, &stages.iter().collect::<Vec<_>>())?;
                context.stderr.write_all(table.as_bytes())?;
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
            context.answer(&report, Stage::COLUMNS, &stages(&report))?;
            if report.ok { Ok(()) } else { Err(Error::Failed(format!("no mail could go to gateway {name}"))) }
        }
        GatewayVerb::Enable { name } => set_status(context, &name, Status::Enabled).await,
        GatewayVerb::Drain { name } => set_status(context, &name, Status::Draining).await,
        GatewayVerb::Disable { name } => set_status(context, &name, Status::Disabled).await,
        GatewayVerb::Delete { name } => context.delete::<Versioned<Answer>>(&name).await,
    }
}

async fn put(context: &mut Context<'_>, gateway: &Gateway) -> Result<(), Error> {
    context.put::<Versioned<Answer>>(&gateway.name, &with_password(gateway)?).await
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

/// A line of a verification: a stage, or a certificate that was shown in it.
struct Stage {
    name: &'static str,
    result: Cell,
    time: Cell,
    detail: String,
}

impl Columns for Stage {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("STAGE", |stage| Cell::text(stage.name)),
        Column::new("RESULT", |stage| stage.result.clone()),
        Column::new("TIME", |stage| stage.time.clone()),
        Column::new("DETAIL", |stage| Cell::text(&stage.detail)),
    ];
}

fn stages(report: &VerifyReport) -> Vec<Stage> {
    let row = |stage: &StageReport| Stage {
        name: stage.stage.as_str(),
        result: if stage.ok { Cell::state("ok", Tone::Good) } else { Cell::state("failed", Tone::Bad) },
        time: Cell::text(format!("{}ms", stage.duration_ms)),
        detail: stage.text.clone(),
    };
    let below = |certificate: &CertificateReport| {
        let CertificateReport { subject, names, issuer, not_after, sha256, .. } = certificate;
        let names = joined(names.iter().cloned());
        let names = if names.is_empty() { "no name" } else { &names };
        let detail = format!("certificate of {subject} for {names}, by {issuer}, until {not_after}, SHA-256 {sha256}");
        Stage { name: "certificate", result: Cell::Nothing, time: Cell::Nothing, detail }
    };
    let rows = |stage| std::iter::once(row(stage)).chain(stage.certificates.iter().map(below));
    report.stages.iter().flat_map(rows).collect()
}

impl Resource for Versioned<Answer> {
    const KIND: [&'static str; 2] = ["gateway", "gateways"];
    const COLLECTION: &'static str = paths::GATEWAYS;
    const PATH: &'static str = paths::GATEWAY;
}

impl Columns for Versioned<Answer> {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |answer| Cell::text(&answer.gateway.name)),
        Column::new("ADDRESS", |answer| Cell::text(&answer.gateway.address)),
        Column::new("PORT", |answer| Cell::number(answer.gateway.port)),
        Column::new("ENCRYPTION", |answer| Cell::text(word(&answer.gateway.encryption))),
        Column::wide("VERIFICATION", |answer| {
            Cell::text(match &answer.gateway.verification {
                Verification::None {} => "none",
                Verification::Ca { .. } => "ca",
                Verification::Pin { .. } => "pin",
            })
        }),
        Column::wide("USER", |answer| Cell::maybe(answer.gateway.account.as_ref().map(|account| &account.username))),
        Column::wide("WEIGHT", |answer| Cell::number(answer.gateway.weight)),
        Column::new("STATUS", |answer| Cell::text(word(&answer.gateway.status))),
        Column::new("HEALTH", |answer| match &answer.state {
            None => Cell::Nothing,
            Some(state) if state.up => Cell::state("up", Tone::Good),
            Some(_) => Cell::state("down", Tone::Bad),
        }),
        Column::new("CONNECTIONS", |answer| Cell::maybe(answer.state.as_ref().map(|state| state.connections))),
        Column::new("OUTSTANDING", |answer| Cell::maybe(answer.state.as_ref().map(|state| state.outstanding))),
        Column::new("DESCRIPTION", |answer| Cell::text(&answer.gateway.description)),
    ];
}
