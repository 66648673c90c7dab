//! `postfix-check`: asks postconf(1), and tells what a Postfix that takes redirected mail should not accept.

use std::{io, process::Stdio, time::Duration};

use tokio::process::Command;

use super::{
    Context, Error,
    output::{Cell, Column, Columns, Tone},
};
use crate::{
    cli,
    postfix::{Finding, Level, check},
};

pub(super) async fn run(context: &mut Context<'_>, args: &cli::PostfixCheck) -> Result<(), Error> {
    let wait = context.timeout;
    let findings = check(&ask(args, "-x", wait).await?, &ask(args, "-Px", wait).await?);
    context.items(&findings)?;
    match findings.iter().filter(|finding| finding.level == Level::Error).count() {
        0 => Ok(()),
        count => Err(Error::Failed(format!(
            "{count} of Postfix's settings accept{} smuggled ends of data; the remedies are listed",
            if count == 1 { "s" } else { "" }
        ))),
    }
}

/// What postconf says. Its complaints about parameters that it does not know are the operator's.
async fn ask(args: &cli::PostfixCheck, option: &str, wait: Duration) -> Result<String, Error> {
    let program = args.postconf.display();
    let mut command = Command::new(&args.postconf);
    if let Some(folder) = &args.config_dir {
        command.arg("-c").arg(folder);
    }
    let asked = command.arg(option).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(wait, asked).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Failed(format!(
                "there is no {program}: run this where Postfix is, or name it with --postconf"
            )));
        }
        Ok(Err(error)) => return Err(Error::Failed(format!("cannot run {program}: {error}"))),
        Err(_) => return Err(Error::Failed(format!("{program} {option} gave no answer"))),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Failed(format!("{program} {option}: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Columns for Finding {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("LEVEL", |finding| {
            let tone = match finding.level {
                Level::Ok => Tone::Good,
                Level::Warning => Tone::Warning,
                Level::Error => Tone::Bad,
            };
            Cell::state(finding.level.name(), tone)
        }),
        Column::new("PLACE", |finding| Cell::text(&finding.place)),
        Column::new("PARAMETER", |finding| Cell::text(finding.parameter)),
        Column::new("VALUE", |finding| Cell::text(format!("\"{}\"", finding.value.as_deref().unwrap_or_default()))),
        Column::new("MEANING", |finding| Cell::text(&finding.text)),
        Column::new("REMEDY", |finding| Cell::maybe(finding.remedy.as_ref())),
    ];
}
