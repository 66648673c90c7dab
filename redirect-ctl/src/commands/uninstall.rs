//! `uninstall`: removes what a daemon leaves on its host, by itself: the daemon may be gone for good.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use serde::Serialize;

use super::{
    Context, Error, failed,
    output::{Cell, Column, Columns},
};
use crate::{
    cli,
    config::{self, Settings},
    dataplane::kernel::{self, pins::Pins},
    host, limits,
};

/// What was there and is there no more.
#[derive(Debug, Serialize)]
struct Removed {
    attachments: usize,
    rules_and_routes: usize,
    interface_settings: usize,
    files: usize,
}

pub(super) fn run(context: &mut Context<'_>, args: &cli::Uninstall) -> Result<(), Error> {
    if context.dry_run {
        return Err(Error::Usage("uninstall cannot be tried: leave --dry-run out".to_owned()));
    }
    let settings = settings(&args.config)?;
    if !args.force
        && let Some(socket) = settings.sockets.iter().find(|socket| UnixStream::connect(socket).is_ok())
    {
        let socket = socket.display();
        return Err(Error::Failed(format!("redirectd runs and listens on {socket}; stop it first, or say --force")));
    }
    let pins = if args.force { Pins::open_unlocked } else { Pins::open };
    let pins = pins(&settings.dataplane.pins).map_err(|error| Error::Failed(error.to_string()))?;
    // The programs first: nothing is to rely on what goes after them.
    let attachments = kernel::remove_all(pins).map_err(|error| Error::Failed(error.to_string()))?;
    let (rules_and_routes, interface_settings) =
        host::undo(settings.routing, &settings.sysctl_notes()).map_err(|error| Error::Failed(error.to_string()))?;
    let files = if args.purge { purge(&settings.store)? } else { 0 };
    let removed = Removed { attachments, rules_and_routes, interface_settings, files };
    context.answer(&removed, Count::COLUMNS, &counts(&removed))
}

/// Of a file that is gone, as of an empty one.
fn settings(path: &Path) -> Result<Settings, Error> {
    let settings = if path.exists() { config::load(path, "") } else { config::parse(path, "", "") };
    settings.map_err(|error| Error::Usage(error.to_string()))
}

/// The store, and what SQLite and the daemon keep beside it: tokens and the audit too.
fn purge(store: &Path) -> Result<usize, Error> {
    let mut removed = 0;
    let kept = ["", "-wal", "-shm", ".lock", ".tokens", ".audit"].map(str::to_owned).into_iter();
    for suffix in kept.chain((1..limits::AUDIT_FILES).map(|number| format!(".audit.{number}"))) {
        let mut path = store.as_os_str().to_owned();
        path.push(suffix);
        match fs::remove_file(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(Path::new(&path), &error)),
        }
    }
    Ok(removed)
}

/// How much of one kind was removed.
struct Count {
    what: &'static str,
    count: usize,
}

impl Columns for Count {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("REMOVED", |row| Cell::text(row.what)),
        Column::new("COUNT", |row| Cell::number(row.count as u64)),
    ];
}

fn counts(removed: &Removed) -> [Count; 4] {
    let rows = [
        ("attachments", removed.attachments),
        ("rules and routes", removed.rules_and_routes),
        ("interface settings", removed.interface_settings),
        ("files", removed.files),
    ];
    rows.map(|(what, count)| Count { what, count })
}
