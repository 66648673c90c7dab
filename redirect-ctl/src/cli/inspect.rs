//! Commands about this host and its kernel.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{config, desired::InterfaceName};

#[derive(Debug, Args)]
pub struct Doctor {
    /// Where the interfaces are read from while redirectd does not answer
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
    /// Look at this interface too; once for each
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<InterfaceName>,
}

#[derive(Debug, Subcommand)]
pub enum KernelVerb {
    /// Our maps: how full they are, and what they cost
    #[command(after_help = "Example:\n  redirect-ctl kernel maps --sort -memory")]
    Maps,
    /// Our programs; how often they ran, where the kernel counts that
    #[command(after_help = "Example:\n  redirect-ctl kernel programs -o wide")]
    Programs,
    /// Where our programs are attached
    #[command(after_help = "Example:\n  redirect-ctl kernel links")]
    Links,
    /// The entries of a map, in hexadecimal
    #[command(after_help = "Example:\n  redirect-ctl kernel dump HOSTS_V4 --limit 10")]
    Dump {
        /// Its name or number
        map: String,
        /// Entries at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
        limit: u32,
    },
    /// What the maps and attachments lack of what the store wants; exit code 6 if there is anything
    #[command(after_help = "Example:\n  redirect-ctl kernel diff")]
    Diff,
    /// Have redirectd compare all of the store with the kernel at once, and mend what differs; shows what that was
    #[command(after_help = "Example:\n  redirect-ctl kernel reconcile")]
    Reconcile,
}

#[derive(Debug, Args)]
pub struct SupportBundle {
    /// The archive [default: redirect-support-TIME.tar.gz in this folder]
    #[arg(value_name = "FILE.tar.gz")]
    pub file: Option<PathBuf>,
    /// Put others in place of all addresses, each always the same
    #[arg(long)]
    pub anonymize: bool,
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub interval: u64,
}
