//! What `top` knows, and how samples and keys change it. Pure.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::super::stats::{Row, rows, stats_by};
use crate::{
    api::types::{FlowList, Gateway, Relay, Stats, Status},
    cli::StatsBy,
    dataplane::kernel::inspect,
};

/// The state of everything at one time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) status: Status,
    pub(super) stats: Stats,
    pub(super) relays: Vec<Relay>,
    pub(super) gateways: Vec<Gateway>,
    /// Up to a bound; `total` says of how many.
    pub(super) flows: FlowList,
    /// Empty where the kernel does not tell.
    pub(super) programs: Vec<inspect::Program>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Pause,
    Sort,
    Help,
    Other,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Packets,
    Bytes,
    Name,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Name => "name",
        }
    }
}

pub(super) struct Model {
    pub(super) colours: bool,
    pub(super) sort: Sort,
    pub(super) help: bool,
    paused: bool,
    /// The latest, and the one before it.
    samples: Option<(Sample, Option<Sample>)>,
    /// Why there is no newer one.
    pub(super) error: Option<String>,
}

/// A subscriber with connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) client: IpAddr,
    pub(super) class: Option<String>,
    pub(super) open: usize,
    /// Of these, those that are younger than the time between two samples, or than a minute for the first one.
    pub(super) fresh: usize,
}

/// What a program did since the sample before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) program: String,
    pub(super) runs_per_second: u64,
    pub(super) ns_per_run: u64,
}

impl Model {
    pub(super) fn new(colours: bool) -> Self {
        Self { colours, sort: Sort::Packets, help: false, paused: false, samples: None, error: None }
    }

    pub(super) fn update(&mut self, sample: Sample) {
        let before = self.samples.take().map(|(latest, _)| latest);
        // Counters begin anew with the daemon, and rates with them.
        let before = before.filter(|before| before.status.uptime_s <= sample.status.uptime_s);
        self.samples = Some((sample, before));
        self.error = None;
    }

    pub(super) fn fail(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Whether to go on.
    pub(super) fn press(&mut self, key: Key) -> bool {
        match key {
            // Out of the help first.
            Key::Quit if self.help => self.help = false,
            Key::Quit => return false,
            Key::Pause => self.paused = !self.paused,
            Key::Help => self.help = !self.help,
            Key::Sort => {
                self.sort = match self.sort {
                    Sort::Packets => Sort::Bytes,
                    Sort::Bytes => Sort::Name,
                    Sort::Name => Sort::Packets,
                }
            }
            Key::Other => {}
        }
        true
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn latest(&self) -> Option<&Sample> {
        self.samples.as_ref().map(|(latest, _)| latest)
    }

    /// Since the sample before.
    fn time(&self) -> Option<Duration> {
        let (latest, before) = self.samples.as_ref()?;
        Some(latest.at - before.as_ref()?.at)
    }

    /// Packets and bytes per second by class and reason, in the order that is wanted; those since the start before there are two samples.
    pub(super) fn traffic(&self) -> Vec<Row> {
        let Some((latest, before)) = &self.samples else { return Vec::new() };
        let by = |sample: &Sample| stats_by(StatsBy::Class, &sample.stats);
        let before = before.as_ref().map(by).zip(self.time());
        let mut rows = rows(&by(latest), before.as_ref().map(|(counts, time)| (counts, *time)));
        rows.sort_by(|(one, left), (two, right)| match self.sort {
            Sort::Packets => right.packets.cmp(&left.packets).then_with(|| one.cmp(two)),
            Sort::Bytes => right.bytes.cmp(&left.bytes).then_with(|| one.cmp(two)),
            Sort::Name => one.cmp(two),
        });
        rows
    }

    /// Whether [`Model::traffic`] is of seconds, and not since the start.
    pub(super) fn has_rates(&self) -> bool {
        self.time().is_some()
    }

    /// Subscribers by open connections, most first.
    pub(super) fn busiest(&self) -> Vec<Busy> {
        let Some(latest) = self.latest() else { return Vec::new() };
        let young_s = self.time().map_or(60, |time| time.as_secs().max(1));
        let mut busy: BTreeMap<IpAddr, Busy> = BTreeMap::new();
        for flow in &latest.flows.items {
            let client = flow.client.ip();
            let entry =
                busy.entry(client).or_insert_with(|| Busy { client, class: flow.class.clone(), open: 0, fresh: 0 });
            entry.open += 1;
            entry.fresh += usize::from(u64::from(flow.age_s) < young_s);
        }
        let mut busy: Vec<_> = busy.into_values().collect();
        busy.sort_by_key(|busy| (Reverse(busy.open), Reverse(busy.fresh), busy.client));
        busy
    }

    /// What our programs cost, those that ran.
    pub(super) fn costs(&self) -> Vec<Cost> {
        let (Some((latest, Some(before))), Some(time)) = (&self.samples, self.time()) else { return Vec::new() };
        let cost = |program: &inspect::Program| {
            let before = before.programs.iter().find(|before| before.id == program.id)?;
            let runs = program.runs.checked_sub(before.runs).filter(|runs| *runs > 0)?;
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            Some(Cost {
                program: program.name.clone(),
                runs_per_second: runs.saturating_mul(1_000) / milliseconds,
                ns_per_run: program.run_ns.saturating_sub(before.run_ns) / runs,
            })
        };
        latest.programs.iter().filter_map(cost).collect()
    }
}
