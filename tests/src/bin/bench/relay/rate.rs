//! Messages per second, and the relay's own CPU time for each: by Postfix's smtp-source, with a connection for each message or one for all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redirect_tests::postfix;

use super::{
    Cast, Effort,
    peers::Peer,
    site::{self, Occupant, Site},
};
use crate::{
    options::Options,
    report::{Row, Unit},
    turns,
};

const SIZES: [(&str, u32); 2] = [("4k", 4 * 1024), ("10k", 10 * 1024)];
const SESSIONS: [u32; 3] = [1, 20, 100];
/// Messages of one session that ours takes (MAILMAX is 1000).
const REUSED_MAX: u32 = 900;
/// Messages of each session from which the number for a sample is guessed; they are also the warm-up.
const GUESS: u32 = 5;
/// What a run of smtp-source may take.
const RUN: Duration = Duration::from_mins(1);

#[derive(Clone, Copy)]
struct Load {
    bytes: u32,
    sessions: u32,
    reused: bool,
}

#[derive(Clone, Copy)]
struct Sample {
    messages_per_second: f64,
    cpu_us_per_message: f64,
}

pub(crate) fn rows(options: &Options, cast: &Cast, effort: &Effort) -> Result<Vec<Row>> {
    let loads = SIZES.into_iter().flat_map(|(size, bytes)| {
        SESSIONS.into_iter().flat_map(move |sessions| {
            [("new", false), ("reused", true)].map(|(connections, reused)| {
                (format!("{size}_{sessions}_{connections}"), Load { bytes, sessions, reused })
            })
        })
    });
    let wanted: Vec<_> = loads
        .filter(|(name, _)| options.wants(&format!("rate_{name}")) || options.wants(&format!("cpu_{name}")))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let peers = Peer::ALL.map(Occupant::Peer);
    let mut sites = site::set_up(&cast.beside(&[&[Occupant::Direct], &peers[..]].concat()))?;
    let mut rows = Vec::new();
    for (name, load) in wanted {
        let mut guessed = Vec::new();
        for site in &mut sites {
            let messages =
                load.guess(site, effort.rate).with_context(|| format!("{name}, {}", site.occupant.name()))?;
            guessed.push((site, messages));
        }
        let occupant = |(site, _): &(&mut Site, u32)| site.occupant.name();
        let samples =
            turns::take(effort.turns, &name, &mut guessed, occupant, |(site, messages)| load.sample(site, *messages))?;
        let pairs = |theirs: usize, value: fn(&Sample) -> f64| -> Vec<_> {
            samples[0].iter().map(value).zip(samples[theirs].iter().map(value)).collect()
        };
        for (theirs, site) in sites.iter().enumerate().skip(1) {
            let (name, peer) = (format!("rate_{name}"), site.occupant.name());
            let pairs = pairs(theirs, |sample| sample.messages_per_second);
            rows.push(Row::new(&name, Unit::MESSAGES_PER_SECOND, peer, &pairs));
        }
        for (theirs, site) in sites.iter().enumerate().skip(1).filter(|(_, site)| site.occupant != Occupant::Direct) {
            let (name, peer) = (format!("cpu_{name}"), site.occupant.name());
            let pairs = pairs(theirs, |sample| sample.cpu_us_per_message);
            rows.push(Row::new(&name, Unit::CPU_MICROSECONDS_PER_MESSAGE, peer, &pairs));
        }
    }
    Ok(rows)
}

impl Load {
    /// How many messages take about so long.
    fn guess(self, site: &Site, long: Duration) -> Result<u32> {
        let count = GUESS * self.sessions;
        let took = self.send(site, count)?;
        site.settle()?;
        let messages = f64::from(count) * long.as_secs_f64() / took.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        Ok((messages as u32).max(self.sessions))
    }

    fn sample(self, site: &Site, messages: u32) -> Result<Sample> {
        let most = if self.reused { REUSED_MAX * self.sessions } else { u32::MAX };
        let runs = messages.div_ceil(most);
        let (each, total) = (messages / runs, messages / runs * runs);
        let before = site.usage()?;
        let took = (0..runs).map(|_| self.send(site, each)).sum::<Result<Duration>>()?;
        site.settle()?;
        let cpu = site.usage()?.cpu.saturating_sub(before.cpu);
        Ok(Sample {
            messages_per_second: f64::from(total) / took.as_secs_f64(),
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / f64::from(total),
        })
    }

    /// Sends so many messages, each of which has to be accepted; says how long that took.
    fn send(self, site: &Site, messages: u32) -> Result<Duration> {
        let mut command = postfix::program("smtp-source")?;
        command.args(["-4", "-M", "client.example", "-f", "a@client.example", "-t", "b@example.net"]);
        for (option, value) in [("-s", self.sessions), ("-l", self.bytes), ("-m", messages)] {
            command.arg(option).arg(value.to_string());
        }
        if self.reused {
            command.arg("-d");
        }
        command.arg(site.target().to_string());
        let begun = Instant::now();
        let finished = site.lab.client.run(&mut command, RUN)?;
        let took = begun.elapsed();
        ensure!(finished.status.success(), "smtp-source: {}", finished.stderr.trim());
        Ok(took)
    }
}
