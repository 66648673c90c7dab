//! `kernel maps|programs|links|dump|diff|reconcile`: what of ours is in the kernel. All but the last two ask the kernel itself, so that they work without
//! the daemon, and need root.

use serde::Serialize;
use serde_json::Value;

use super::{
    Context, Error,
    output::{Cell, Column, Columns, Tone, mebibytes},
};
use crate::{
    api::types::{KernelDiff, KernelOperation, paths},
    cli::KernelVerb,
    dataplane::{self, kernel::inspect},
    doctor::FULL_PERCENT,
};

pub(super) async fn run(context: &mut Context<'_>, verb: KernelVerb) -> Result<(), Error> {
    match verb {
        KernelVerb::Maps => context.items(&maps()?),
        KernelVerb::Programs => context.items(&programs()?),
        KernelVerb::Links => context.items(&links()?),
        KernelVerb::Dump { map, limit } => dump(context, &map, limit as usize),
        KernelVerb::Diff => diff(context).await,
        KernelVerb::Reconcile => reconcile(context).await,
    }
}

fn told<T>(answer: Result<T, dataplane::Error>) -> Result<T, Error> {
    answer.map_err(|error| Error::Failed(error.to_string()))
}

/// A map and how full it is.
#[derive(Serialize)]
pub(super) struct Map {
    id: u32,
    pub(super) name: String,
    kind: String,
    key_bytes: u32,
    value_bytes: u32,
    pub(super) capacity: u32,
    pub(super) entries: Option<u64>,
    bytes: u64,
}

impl Map {
    /// In percent.
    pub(super) fn fill(&self) -> Option<u64> {
        Some(self.entries? * 100 / u64::from(self.capacity.max(1)))
    }
}

pub(super) fn maps() -> Result<Vec<Map>, Error> {
    let maps = told(inspect::maps())?;
    let map = |map: inspect::MapState| {
        let inspect::MapState { id, name, kind, key_bytes, value_bytes, capacity, entries, bytes } = map;
        Map { id, name, kind, key_bytes, value_bytes, capacity, entries, bytes }
    };
    Ok(maps.into_iter().map(map).collect())
}

impl Columns for Map {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |map| Cell::text(&map.name)),
        Column::new("ID", |map| Cell::number(map.id)),
        Column::new("TYPE", |map| Cell::text(&map.kind)),
        Column::new("ENTRIES", |map| Cell::maybe(map.entries)),
        Column::new("CAPACITY", |map| Cell::number(map.capacity)),
        Column::new("FILL", |map| match map.fill() {
            None => Cell::Nothing,
            Some(percent) => {
                let tone = if percent >= FULL_PERCENT { Tone::Bad } else { Tone::Good };
                Cell::state(format!("{percent}%"), tone)
            }
        }),
        Column::new("MEMORY", |map| Cell::text(mebibytes(map.bytes).replace(' ', ""))),
        Column::wide("KEY-BYTES", |map| Cell::number(map.key_bytes)),
        Column::wide("VALUE-BYTES", |map| Cell::number(map.value_bytes)),
    ];
}

pub(super) fn programs() -> Result<Vec<Program>, Error> {
    Ok(told(inspect::programs())?.into_iter().map(Program).collect())
}

pub(super) struct Program(inspect::Program);

impl Serialize for Program {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let inspect::Program { id, name, tag, verified_instructions, jited_bytes, runs, run_ns, maps } = &self.0;
        serde_json::json!({
            "id": id, "name": name, "tag": tag, "verified_instructions": verified_instructions, "jited_bytes": jited_bytes,
            "runs": runs, "run_ns": run_ns, "maps": maps,
        })
        .serialize(serializer)
    }
}

impl Columns for Program {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("NAME", |Self(program)| Cell::text(&program.name)),
        Column::new("ID", |Self(program)| Cell::number(program.id)),
        Column::new("TAG", |Self(program)| Cell::text(&program.tag)),
        Column::new("VERIFIED", |Self(program)| Cell::maybe(program.verified_instructions)),
        Column::new("JITED", |Self(program)| Cell::number(program.jited_bytes)),
        Column::new("RUNS", |Self(program)| Cell::number(program.runs)),
        Column::new("NS/RUN", |Self(program)| match program.runs {
            0 => Cell::Nothing,
            runs => Cell::number(program.run_ns / runs),
        }),
        Column::wide("MAPS", |Self(program)| Cell::list(&program.maps)),
    ];
}

pub(super) fn links() -> Result<Vec<Link>, Error> {
    Ok(told(inspect::links())?.into_iter().map(Link).collect())
}

pub(super) struct Link(inspect::Link);

impl Link {
    /// The device's name, where it is in this namespace.
    fn device(&self) -> Option<String> {
        let index = self.0.target.filter(|_| self.0.kind != "netns")?;
        nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
    }
}

impl Serialize for Link {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let inspect::Link { id, program, kind, target } = &self.0;
        let device = self.device();
        serde_json::json!({"id": id, "program": program, "kind": kind, "target": target, "interface": device})
            .serialize(serializer)
    }
}

impl Columns for Link {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("ID", |Self(link)| Cell::number(link.id)),
        Column::new("PROGRAM", |Self(link)| Cell::text(&link.program)),
        Column::new("HOOK", |Self(link)| Cell::text(link.kind.replace(' ', "_"))),
        Column::new("INTERFACE", |link| Cell::maybe(link.device())),
        Column::new("TARGET", |Self(link)| Cell::maybe(link.target)),
    ];
}

/// An entry of a map, in hexadecimal.
#[derive(Serialize)]
struct Entry {
    key: String,
    value: String,
    /// The key for people, where it is a subscriber's.
    prefix: Option<String>,
}

impl Columns for Entry {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("KEY", |entry| Cell::text(&entry.key)),
        Column::new("VALUE", |entry| Cell::text(&entry.value)),
        Column::new("PREFIX", |entry| Cell::maybe(entry.prefix.as_ref())),
    ];
}

fn dump(context: &mut Context<'_>, map: &str, limit: usize) -> Result<(), Error> {
    // One more, to see whether there are more.
    let found = told(inspect::dump(&map.to_ascii_uppercase(), limit + 1))?;
    let Some(inspect::Dump { name, mut entries }) = found else {
        return Err(Error::Failed(format!("there is no map {map}; see redirect-ctl kernel maps")));
    };
    let more = entries.len() > limit;
    entries.truncate(limit);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let entry = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let prefix = inspect::subscriber(&name, key).map(|prefix| prefix.to_string());
        Entry { key: hex(key), value: hex(value), prefix }
    };
    let entries = entries.iter().map(entry);
    context.items(&entries.collect::<Vec<_>>())?;
    if more {
        context.note(&format!("showing the first {limit} entries; raise --limit"))?;
    }
    Ok(())
}

impl Columns for KernelOperation {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("OPERATION", |operation| Cell::text(&operation.operation)),
        Column::new("SUBJECT", |operation| Cell::text(&operation.subject)),
    ];
}

async fn diff(context: &mut Context<'_>) -> Result<(), Error> {
    let diff: KernelDiff = context.client.get(paths::KERNEL_DIFF).await?;
    show(context, &diff)?;
    if diff.total == 0 {
        return Ok(());
    }
    let KernelDiff { revision, applied, total, .. } = diff;
    context.note(&format!(
        "the kernel (revision {applied}) is {total} operations away from the store (revision {revision})"
    ))?;
    Err(Error::Differs)
}

async fn reconcile(context: &mut Context<'_>) -> Result<(), Error> {
    let done: KernelDiff = context.client.create(paths::KERNEL_RECONCILE, &Value::Null).await?;
    show(context, &done)?;
    context.note(&format!("the kernel holds revision {}; it was {} operations away", done.applied, done.total))
}

fn show(context: &mut Context<'_>, diff: &KernelDiff) -> Result<(), Error> {
    context.answer(diff, KernelOperation::COLUMNS, &diff.operations)?;
    let shown = diff.operations.len() as u64;
    if diff.total > shown {
        context.note(&format!("showing the first {shown} of {} operations", diff.total))?;
    }
    Ok(())
}
