//! `config`: the configuration as a whole.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{duration, word};
use crate::configuration::text::DocumentFormat;

#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print the configuration, without secrets, as a file for the other verbs
    #[command(
        after_help = "Examples:\n  redirect-ctl config show > redirect-config.toml\n  redirect-ctl config show --format yaml\n  \
                      redirect-ctl config show --back 1"
    )]
    Show(ConfigShow),
    /// Whether a file could be committed: all that is wrong with it, and nothing is changed
    #[command(after_help = "Example:\n  redirect-ctl config check redirect-config.toml")]
    Check(ConfigFile),
    /// What a commit of a file would change; without a file, what was changed since the last commit. Exit code 6 if anything
    #[command(
        after_help = "Examples:\n  redirect-ctl config diff redirect-config.toml\n  redirect-ctl config diff\n  \
                      redirect-ctl -o json config diff --back 2"
    )]
    Diff(ConfigDiff),
    /// Put a file in the place of the configuration: all of it, or nothing
    #[command(
        after_help = "Examples:\n  redirect-ctl config commit redirect-config.toml --confirm 10m --comment 'guests get a limit'\n  \
                      redirect-ctl config commit redirect-config.yaml --dry-run"
    )]
    Commit(ConfigCommit),
    /// Keep the commit that waits for its confirmation
    #[command(after_help = "Example:\n  redirect-ctl config confirm")]
    Confirm,
    /// Go back to a state of the history; a commit that waits for its confirmation is taken back
    #[command(after_help = "Examples:\n  redirect-ctl config rollback\n  redirect-ctl config rollback 3 --dry-run\n  \
                      redirect-ctl config rollback 0    # single changes since the last commit")]
    Rollback(ConfigRollback),
    /// The states of the configuration that are kept
    #[command(after_help = "Example:\n  redirect-ctl config history")]
    History,
}

#[derive(Debug, Args)]
pub struct ConfigShow {
    /// The form of the file [default: toml]
    #[arg(long, value_parser = word::<DocumentFormat>(DocumentFormat::WORDS))]
    pub format: Option<DocumentFormat>,
    /// A state of the history; 0 is the last one
    #[arg(long, value_name = "N")]
    pub back: Option<u32>,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// "-" is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// [default: by the end of the file's name]
    #[arg(long, value_parser = word::<DocumentFormat>(DocumentFormat::WORDS))]
    pub format: Option<DocumentFormat>,
}

#[derive(Debug, Args)]
pub struct ConfigDiff {
    /// "-" is standard input [default: the configuration as it is, beside the last commit]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// [default: by the end of the file's name]
    #[arg(long, requires = "file", value_parser = word::<DocumentFormat>(DocumentFormat::WORDS))]
    pub format: Option<DocumentFormat>,
    /// From a state of the history instead; 0 is the last one
    #[arg(long, value_name = "N")]
    pub back: Option<u32>,
}

#[derive(Debug, Args)]
pub struct ConfigCommit {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Take it back after this time, unless it is confirmed before
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub confirm: Option<Duration>,
    #[command(flatten)]
    pub how: ConfigHow,
}

#[derive(Debug, Args)]
pub struct ConfigRollback {
    /// How far back; 0 is the last state of the history, from which only single changes lead away
    #[arg(value_name = "N", default_value_t = 1)]
    pub back: u32,
    #[command(flatten)]
    pub how: ConfigHow,
}

#[derive(Debug, Args)]
pub struct ConfigHow {
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Who, for the history [default: the user]
    #[arg(long, value_name = "NAME")]
    pub author: Option<String>,
    /// Only if the configuration is at this revision
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
}
