//! What mail costs on its way through the embedded relay, beside other relays and beside none.
//!
//! Each relay has a lab of its own: Postfix's smtp-source or a client of ours on the subscriber's host, the relay on the router, Postfix's
//! smtp-sink as the gateway. Ours is `redirectd` as it is deployed, so its figures contain the redirecting as well; the peers' clients dial
//! them. Everything shares the machine's CPUs, so messages per second tell what is left of them by the generator and the sink, and CPU per
//! message what the relay itself takes.

mod authority;
mod idle;
mod latency;
mod peers;
mod rate;
mod site;
mod tls;
mod usage;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::site::{Occupant, SESSIONS_MAX};
use crate::{options::Options, report::Report};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Beside this `redirectd` alone: what a change does is told best by turns with what was before.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

/// Who is measured, ours first.
struct Cast {
    baseline: Option<&'static Path>,
}

impl Cast {
    /// Ours, and beside it either the baseline or `others`.
    fn beside(&self, others: &[Occupant]) -> Vec<Occupant> {
        let baseline = self.baseline.map(Occupant::Baseline);
        let others = baseline.as_ref().map_or(others, std::slice::from_ref);
        [&[Occupant::Redirectd], others].concat()
    }
}

/// How much is measured.
struct Effort {
    turns: usize,
    /// How long mail is sent for a sample of the rate.
    rate: Duration,
    /// Messages of which each command is timed for a sample: of one client, and of each of several.
    timed: [u32; 2],
    /// Turns of idle sessions, which each begin with a fresh relay.
    idle_turns: usize,
}

/// A relay has two for each session, and some others.
const DESCRIPTORS: u64 = 2 * SESSIONS_MAX as u64 + 1024;

const FULL: Effort = Effort { turns: 5, rate: Duration::from_millis(800), timed: [2_000, 50], idle_turns: 3 };
const QUICK: Effort = Effort { turns: 3, rate: Duration::from_millis(250), timed: [500, 20], idle_turns: 1 };

pub(crate) fn run(arguments: Arguments) -> Result<Report> {
    let Arguments { options, baseline } = arguments;
    // For as long as this program runs, so that an occupant is a plain value.
    let cast = Cast { baseline: baseline.map(|file| &*Box::leak(file.into_boxed_path())) };
    let effort = if options.quick { &QUICK } else { &FULL };
    // All that is started inherits it. More than the hard limit takes CAP_SYS_RESOURCE; without it, fewer sessions are idle.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let enough = hard.max(DESCRIPTORS);
    let descriptors = if setrlimit(Resource::RLIMIT_NOFILE, enough, enough).is_ok() { enough } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors).context("take all descriptors that there are")?;
    let mut rows = rate::rows(&options, &cast, effort)?;
    rows.extend(latency::rows(&options, &cast, effort)?);
    rows.extend(idle::rows(&options, &cast, effort, descriptors)?);
    Ok(Report { suite: "relay", rows: options.retain(rows) })
}
