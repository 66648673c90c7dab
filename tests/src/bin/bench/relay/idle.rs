//! Resident memory of a session that has said EHLO and waits, in clear.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    Effort, latency,
    peers::Peer,
    site::{Occupant, SESSIONS_MAX, Site},
};
use crate::{
    options::Options,
    report::{Row, Unit},
    turns,
};

const SESSIONS: u32 = 10_000;
const _: () = assert!(SESSIONS < SESSIONS_MAX);
/// What `HAProxy` needs besides two for each session.
const OTHER_DESCRIPTORS: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "idle_session";

pub(crate) fn rows(options: &Options, effort: &Effort, descriptors: u64) -> Result<Vec<Row>> {
    if !options.wants(NAME) {
        return Ok(Vec::new());
    }
    let most = u32::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).unwrap_or(u32::MAX);
    let sessions = SESSIONS.min(most);
    eprintln!("{NAME}: {sessions} sessions");
    let mut occupants = [Occupant::Redirectd, Occupant::Peer(Peer::Haproxy), Occupant::Peer(Peer::NginxMail)];
    let samples = turns::take(
        effort.idle_turns,
        NAME,
        &mut occupants,
        |occupant| occupant.name(),
        |occupant| {
            // A relay keeps some of the memory that it had: each turn begins with a fresh one.
            bytes_per_session(&Site::new(*occupant)?, sessions)
        },
    )?;
    let row = |theirs: usize| {
        let pairs: Vec<_> = samples[0].iter().copied().zip(samples[theirs].iter().copied()).collect();
        Row::new(NAME, Unit::BYTES_PER_SESSION, occupants[theirs].name(), &pairs)
    };
    Ok((1..occupants.len()).map(row).collect())
}

fn bytes_per_session(site: &Site, sessions: u32) -> Result<f64> {
    let target = site.target();
    let before = site.usage()?.resident_bytes;
    let open = || (0..sessions).map(|number| open(target).with_context(|| format!("session {number}"))).collect();
    let opened: Vec<TcpStream> = site.lab.client.enter(|| -> Result<_> { open() })?;
    site.settle()?;
    let after = site.usage()?.resident_bytes;
    drop(opened);
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    Ok(after.saturating_sub(before) as f64 / f64::from(sessions))
}

fn open(target: SocketAddrV4) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::with_capacity(1024, stream.try_clone()?);
    latency::expect(&mut replies, "220")?;
    stream.write_all(b"EHLO client.example\r\n")?;
    latency::expect(&mut replies, "250")?;
    Ok(stream)
}
