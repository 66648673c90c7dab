//! `doctor`: what may be wrong with this host, and what to do about it; also while the daemon is away.

use std::path::Path;

use super::{
    Context, Error, kernel,
    output::{Cell, Column, Columns, Tone},
};
use crate::{
    cli, config,
    dataplane::Hook,
    doctor::{Device, Facts, Finding, Level, findings, look::look},
};

pub(super) async fn run(context: &mut Context<'_>, args: &cli::Doctor) -> Result<(), Error> {
    let found = findings(&facts(context, &args.config, &args.interfaces).await);
    context.items(&found)?;
    match found.iter().filter(|finding| finding.level == Level::Fail).count() {
        0 => Ok(()),
        1 => Err(Error::Failed("1 of these does not work; its remedy is listed".to_owned())),
        count => Err(Error::Failed(format!("{count} of these do not work; their remedies are listed"))),
    }
}

/// The interfaces are those that the daemon has, else those of the file; and what the command line adds.
pub(super) async fn facts(context: &Context<'_>, file: &Path, interfaces: &[crate::desired::InterfaceName]) -> Facts {
    let mut configuration = None;
    let status = context.client.status().await;
    let mut devices: Vec<Device> = match &status {
        Ok(status) => status
            .interfaces
            .iter()
            .map(|interface| {
                device(interface.name.as_str(), interface.hook, interface.foreign_sources, interface.status.mode)
            })
            .collect(),
        Err(_) => match config::load(file, "localhost") {
            Ok(settings) => {
                let interfaces = settings.interfaces.iter();
                interfaces
                    .map(|interface| device(interface.name.as_str(), interface.hook, interface.foreign_sources, None))
                    .collect()
            }
            Err(error) => {
                configuration = Some(error.to_string());
                Vec::new()
            }
        },
    };
    for name in interfaces {
        if devices.iter().all(|device| device.name != name.as_str()) {
            devices.push(device(name.as_str(), Hook::Auto, false, None));
        }
    }
    let maps = kernel::maps().unwrap_or_default();
    Facts {
        daemon: Some(match status {
            Ok(status) => Ok((status.version, status.error)),
            Err(error) => Err(error.to_string()),
        }),
        maps: maps.iter().filter_map(|map| Some((map.name.clone(), map.fill()?))).collect(),
        configuration,
        ..look(devices, context.timeout).await
    }
}

fn device(name: &str, hook: Hook, foreign_sources: bool, mode: Option<crate::dataplane::Mode>) -> Device {
    Device { name: name.to_owned(), wants_xdp: hook == Hook::Xdp, foreign_sources, mode, state: None }
}

impl Columns for Finding {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("LEVEL", |finding| {
            let tone = match finding.level {
                Level::Ok => Tone::Good,
                Level::Warn => Tone::Warning,
                Level::Fail => Tone::Bad,
            };
            Cell::state(finding.level.name(), tone)
        }),
        Column::new("CHECK", |finding| Cell::text(finding.check)),
        Column::new("SUBJECT", |finding| Cell::text(finding.subject.replace(' ', "_"))),
        Column::new("MEANING", |finding| Cell::text(&finding.text)),
        Column::new("REMEDY", |finding| Cell::maybe(finding.remedy.as_ref())),
    ];
}
