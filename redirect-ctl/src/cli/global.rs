//! The options that every command has.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::api::endpoint::Endpoint;

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    #[arg(
        long,
        global = true,
        help = "Where redirectd listens: unix:///PATH or https://NAME:PORT [env: REDIRECT_HOST] [default: unix:///run/redirect/api.sock]",
        value_name = "URL"
    )]
    pub host: Option<Endpoint>,
    #[command(flatten)]
    pub credentials: Credentials,
    /// How long to wait for an answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = super::duration)]
    pub timeout: Duration,
    /// The form of what is printed
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Columns of the table, instead of those that it has
    #[arg(long, global = true, value_name = "COLUMN,...", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Sort rows by this column; by -COLUMN from the greatest
    #[arg(long, global = true, value_name = "COLUMN", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Tables without their first line
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// Print what would change, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Change it without a question
    #[arg(short, long, global = true)]
    pub yes: bool,
}

/// Who the caller is, where that is not told by the Unix socket. A token is never on the command line, where others could read it.
#[derive(Debug, Args)]
pub struct Credentials {
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        hide_short_help = true,
        help = "The token is the first line of this file, or of standard input for \"-\" [env: REDIRECT_TOKEN, the token itself]"
    )]
    pub token_file: Option<PathBuf>,
    /// The authority that signed redirectd's certificate, in PEM [default: those of the system]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub cacert: Option<PathBuf>,
    /// The certificate to show to redirectd, in PEM
    #[arg(long = "cert", global = true, value_name = "FILE", hide_short_help = true)]
    pub client_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long = "key", global = true, value_name = "FILE", hide_short_help = true)]
    pub client_key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    Table,
    /// With more columns
    Wide,
    /// What the API answers; for a list, its items
    Json,
    /// The same in YAML
    Yaml,
    /// A list's items, one JSON object a line
    Ndjson,
    /// The names only, one a line
    Name,
}
