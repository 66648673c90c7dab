//! `config show|check|diff|commit|confirm|rollback|history`.

use std::{io, path::Path};

use serde_json::Value;

use super::{
    Context, Error,
    output::{Cell, Column, Columns},
};
use crate::{
    api::{
        client::{self, Changed},
        types::{
            CommitQuery, CommitReport, ConfigurationCheck, ConfigurationDiffQuery, ConfigurationState, Page,
            RollbackQuery, paths,
        },
    },
    cli::{ConfigCommit, ConfigDiff, ConfigFile, ConfigHow, ConfigRollback, ConfigShow, ConfigVerb, Output},
    configuration::{
        Commit, Diff, Document, ResourceChange,
        text::{self, DocumentFormat},
    },
    limits,
};

pub(super) async fn run(context: &mut Context<'_>, verb: ConfigVerb) -> Result<(), Error> {
    match verb {
        ConfigVerb::Show(args) => show(context, args).await,
        ConfigVerb::Check(file) => check(context, file).await,
        ConfigVerb::Diff(args) => diff(context, args).await,
        ConfigVerb::Commit(args) => commit(context, args).await,
        ConfigVerb::Confirm => confirm(context).await,
        ConfigVerb::Rollback(args) => roll_back(context, args).await,
        ConfigVerb::History => {
            let page: Page<Commit> = context.client.get(paths::CONFIGURATION_HISTORY).await?;
            context.items(&page.items)
        }
    }
}

async fn show(context: &mut Context<'_>, args: ConfigShow) -> Result<(), Error> {
    let client = context.client.patient();
    let document = match args.back {
        None => client.get::<Document>(paths::CONFIGURATION).await?,
        Some(back) => client.resource::<ConfigurationState>(paths::CONFIGURATION_STATE, &back).await?.configuration,
    };
    let by_output = match context.layout.form {
        Output::Table | Output::Wide | Output::Name => DocumentFormat::Toml,
        Output::Yaml => DocumentFormat::Yaml,
        // All of it in one line.
        Output::Ndjson if args.format.is_none() => return context.layout.data(context.stdout, &document),
        Output::Json | Output::Ndjson => DocumentFormat::Json,
    };
    let text = text::write(&document, args.format.unwrap_or(by_output)).map_err(|error| Error::Failed(error.0))?;
    Ok(context.stdout.write_all(text.as_bytes())?)
}

async fn check(context: &mut Context<'_>, file: ConfigFile) -> Result<(), Error> {
    let document = read(context, &file.file, file.format)?;
    let (found, _): (ConfigurationCheck, _) =
        context.client.patient().post_if(paths::CONFIGURATION_CHECK, &document, None).await?;
    let ConfigurationCheck { revision, added, changed, removed, .. } = found;
    let text = format!(
        "{} can be committed: beside revision {revision}, {added} added, {changed} changed, {removed} removed",
        file.file.display()
    );
    context.done(&found, &text)
}

async fn diff(context: &mut Context<'_>, args: ConfigDiff) -> Result<(), Error> {
    let client = context.client.patient();
    let (document, back) = match &args.file {
        Some(file) => (read(context, file, args.format)?, args.back),
        None => (client.get::<Value>(paths::CONFIGURATION).await?, Some(args.back.unwrap_or(0))),
    };
    let target = client::with_query(paths::CONFIGURATION_DIFF, &ConfigurationDiffQuery { back })?;
    let (diff, _): (Diff, _) = client.post_if(&target, &document, None).await?;
    print(context, &diff)?;
    if diff.is_empty() { Ok(()) } else { Err(Error::Differs) }
}

async fn commit(context: &mut Context<'_>, args: ConfigCommit) -> Result<(), Error> {
    let ConfigCommit { file, confirm, how } = args;
    if file.file == Path::new("-") && !context.yes && !context.dry_run {
        let text = "standard input is the file, so nobody can be asked: give --yes or --dry-run";
        return Err(Error::Usage(text.to_owned()));
    }
    let document = read(context, &file.file, file.format)?;
    let confirm_within = confirm.map(|within| within.as_secs().max(1).to_string());
    let query = |dry_run| CommitQuery {
        author: how.author.clone().or_else(|| context.user.clone()),
        comment: how.comment.clone(),
        confirm_within: confirm_within.clone(),
        dry_run,
    };
    let trial = client::with_query(paths::CONFIGURATION_COMMIT, &query(true))?;
    let target = client::with_query(paths::CONFIGURATION_COMMIT, &query(false))?;
    change(context, &how, [&trial, &target], &document, "commit this?").await
}

async fn roll_back(context: &mut Context<'_>, args: ConfigRollback) -> Result<(), Error> {
    let ConfigRollback { back, how } = args;
    let query = |dry_run| RollbackQuery {
        back: Some(back),
        author: how.author.clone().or_else(|| context.user.clone()),
        comment: how.comment.clone(),
        dry_run,
    };
    let trial = client::with_query(paths::CONFIGURATION_ROLLBACK, &query(true))?;
    let target = client::with_query(paths::CONFIGURATION_ROLLBACK, &query(false))?;
    change(context, &how, [&trial, &target], &Value::Null, "go back to that?").await
}

/// Shows what would change, asks, and changes it: at the revision that was shown, or not at all.
async fn change(
    context: &mut Context<'_>,
    how: &ConfigHow,
    [trial, target]: [&str; 2],
    document: &Value,
    question: &str,
) -> Result<(), Error> {
    let client = context.client.patient();
    let (report, shown): (CommitReport, Changed) = client.post_if(trial, document, how.revision).await?;
    if context.dry_run {
        return print(context, &report.diff);
    }
    if report.diff.is_empty() {
        return context.done(&report, "nothing to change");
    }
    if !context.yes {
        lines(context.stderr, &report.diff)?;
        context.confirm(question)?;
    }
    let (report, changed): (CommitReport, Changed) = client.post_if(target, document, Some(shown.revision)).await?;
    let until = report.commit.as_ref().and_then(|commit| commit.deadline);
    let until = until
        .map(|deadline| format!("; it is taken back on {deadline} unless you confirm it: redirect-ctl config confirm"));
    let text = format!("revision {} committed{}", changed.revision, until.unwrap_or_default());
    context.done(&report, &text)?;
    context.late(changed)
}

async fn confirm(context: &mut Context<'_>) -> Result<(), Error> {
    let (commit, _): (Option<Commit>, _) =
        context.client.patient().post_if(paths::CONFIGURATION_CONFIRM, &Value::Null, None).await?;
    let text = commit.as_ref().map_or_else(String::new, |commit| format!("revision {} confirmed", commit.revision));
    context.done(&commit, &text)
}

fn read(context: &mut Context<'_>, path: &Path, format: Option<DocumentFormat>) -> Result<Value, Error> {
    let by_name = || DocumentFormat::of_extension(path.extension()?.to_str()?);
    let format = format.or_else(by_name);
    let format = format.ok_or_else(|| Error::Usage("which form has the file? give --format".to_owned()))?;
    let text = context.read(path, limits::CONFIGURATION_BYTES_MAX)?;
    text::read(&text, format).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))
}

fn print(context: &mut Context<'_>, diff: &Diff) -> Result<(), Error> {
    match context.layout.form {
        Output::Json | Output::Yaml | Output::Ndjson => context.layout.data(context.stdout, diff),
        Output::Table | Output::Wide | Output::Name => Ok(lines(context.stdout, diff)?),
    }
}

/// A line for each resource, and one for each of its members that differs.
fn lines(out: &mut dyn io::Write, diff: &Diff) -> io::Result<()> {
    let counts = format!(
        "{} added, {} changed, {} removed, {} unchanged",
        diff.added.count, diff.changed.count, diff.removed.count, diff.unchanged
    );
    for (sign, changes) in [('+', &diff.added), ('~', &diff.changed), ('-', &diff.removed)] {
        for change in &changes.items {
            writeln!(out, "{sign} {} {}", change.kind.name().replace('_', " "), change.key)?;
            members(out, change)?;
        }
        let more = changes.count - changes.items.len() as u64;
        if more > 0 {
            writeln!(out, "{sign} and {more} more")?;
        }
    }
    writeln!(out, "{counts}")
}

fn members(out: &mut dyn io::Write, change: &ResourceChange) -> io::Result<()> {
    let ResourceChange { before, after, members, .. } = change;
    let name = |pointer: &str| pointer.trim_start_matches('/').replace('/', ".").replace("~1", "/").replace("~0", "~");
    match (before, after) {
        (Some(before), Some(after)) => {
            let at = |value: &Value, pointer: &str| value.pointer(pointer).map_or("-".to_owned(), ToString::to_string);
            for pointer in members {
                let [was, is] = [before, after].map(|value| at(value, pointer));
                // What is not shown is a secret.
                let text = if was == is { "another one".to_owned() } else { format!("{was} -> {is}") };
                writeln!(out, "    {}: {text}", name(pointer))?;
            }
        }
        (None, Some(Value::Object(after))) => {
            for (name, value) in after {
                writeln!(out, "    {name}: {value}")?;
            }
        }
        _ => {}
    }
    Ok(())
}

impl Columns for Commit {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("BACK", |commit| Cell::number(commit.back)),
        Column::new("REVISION", |commit| Cell::number(commit.revision)),
        Column::new("TIME", |commit| Cell::text(commit.time)),
        Column::new("AUTHOR", |commit| Cell::maybe(commit.author.as_ref().map(|author| author.replace(' ', "_")))),
        Column::new("STATE", |commit| {
            Cell::text(match &commit.deadline {
                Some(deadline) => format!("{} until {deadline}", commit.state).replace(' ', "_"),
                None => commit.state.to_string(),
            })
        }),
        Column::new("CHANGES", |Self { added, changed, removed, .. }| {
            Cell::text(format!("+{added}~{changed}-{removed}"))
        }),
        Column::new("COMMENT", |commit| Cell::text(&commit.comment)),
    ];
}
