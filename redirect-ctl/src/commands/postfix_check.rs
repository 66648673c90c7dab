//! `postfix-check`: asks postconf(1), and tells what a Postfix that takes redirected mail should not accept.

use std::{io, process::Stdio, time::Duration};

use tokio::process::Command;

use super::{
    Context, Error,
    output::{Table, or_dash},
};
use crate::{
    cli,
    postfix::{Finding, Level, check},
};

pub(super) async fn run(context: &mut Context<'_>, args: &cli::PostfixCheck, wait: Duration) -> Result<(), Error> {
    let findings = check(&ask(args, "-x", wait).await?, &ask(args, "-Px", wait).await?);
    context.print(&findings, |findings| table(findings))?;
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

fn table(findings: &[Finding]) -> Table {
    let rows = findings.iter().map(|finding| {
        [
            finding.level.name().to_owned(),
            finding.place.clone(),
            finding.parameter.to_owned(),
            format!("\"{}\"", finding.value.as_deref().unwrap_or_default()),
            finding.text.clone(),
            or_dash(finding.remedy.as_ref()),
        ]
    });
    Table::new(["LEVEL", "PLACE", "PARAMETER", "VALUE", "MEANING", "REMEDY"], rows)
}
