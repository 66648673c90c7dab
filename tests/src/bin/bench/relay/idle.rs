//! Resident memory of a session that has said EHLO and waits, in clear or with TLS.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddrV4, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;

use super::{
    Cast, Effort, latency,
    peers::Peer,
    site::{Occupant, SESSIONS_MAX, Site},
    tls::{self, Certificate},
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
/// In clear, and after STARTTLS.
const NAMES: [&str; 2] = ["idle_session", "idle_tls_session"];

pub(crate) fn rows(options: &Options, cast: &Cast, effort: &Effort, descriptors: u64) -> Result<Vec<Row>> {
    let most = u32::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).unwrap_or(u32::MAX);
    let sessions = SESSIONS.min(most);
    let clear = cast.beside(&[Occupant::Peer(Peer::Haproxy), Occupant::Peer(Peer::NginxMail)]);
    let encrypted = [Occupant::RedirectdTls, Occupant::Peer(Peer::NginxMailTls)];
    let mut rows = Vec::new();
    for (name, occupants) in NAMES.into_iter().zip([&clear[..], &encrypted[..]]) {
        if options.wants(name) {
            rows.extend(row_for_each(name, occupants, effort, sessions)?);
        }
    }
    Ok(rows)
}

fn row_for_each(name: &str, occupants: &[Occupant], effort: &Effort, sessions: u32) -> Result<Vec<Row>> {
    eprintln!("{name}: {sessions} sessions");
    let encrypted = name == NAMES[1];
    let mut turn_of = occupants.to_vec();
    let samples = turns::take(
        effort.idle_turns,
        name,
        &mut turn_of,
        |occupant| occupant.name(),
        |occupant| {
            // A relay keeps some of the memory that it had: each turn begins with a fresh one.
            bytes_per_session(&Site::new(*occupant)?, sessions, encrypted)
        },
    )?;
    let row = |theirs: usize| {
        let pairs: Vec<_> = samples[0].iter().copied().zip(samples[theirs].iter().copied()).collect();
        Row::new(name, Unit::BYTES_PER_SESSION, occupants[theirs].name(), &pairs)
    };
    Ok((1..occupants.len()).map(row).collect())
}

fn bytes_per_session(site: &Site, sessions: u32, encrypted: bool) -> Result<f64> {
    let target = site.target();
    let tls = if encrypted { Some(Certificate::in_folder(site.lab.folder()).client()?) } else { None };
    // What the first of all costs is no session's: what is read once, and the code that is touched.
    drop(site.lab.client.enter(|| open(target, tls.as_ref()))?);
    site.settle()?;
    let before = site.usage()?.resident_bytes;
    let open = |number| open(target, tls.as_ref()).with_context(|| format!("session {number}"));
    let opened: Vec<TcpStream> = site.lab.client.enter(|| (0..sessions).map(open).collect::<Result<_>>())?;
    site.settle()?;
    let after = site.usage()?.resident_bytes;
    drop(opened);
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    Ok(after.saturating_sub(before) as f64 / f64::from(sessions))
}

fn open(target: SocketAddrV4, tls: Option<&Arc<ClientConfig>>) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect")?;
    // What follows the handshake would wait for the delayed acknowledgment of its last octets.
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::with_capacity(1024, stream.try_clone()?);
    latency::expect(&mut replies, "220")?;
    stream.write_all(b"EHLO client.example\r\n")?;
    latency::expect(&mut replies, "250")?;
    if let Some(config) = tls {
        tls::begin(&mut stream, config)?;
    }
    Ok(stream)
}
