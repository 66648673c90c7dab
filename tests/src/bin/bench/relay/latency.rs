//! How long a client waits for the reply to each command: alone, and among others that leave the machine room to breathe.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

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

/// What is timed of a session: from the connect to the greeting, each command, the message from its first octet to its reply.
const STEPS: [&str; 6] = ["greeting", "ehlo", "mail", "rcpt", "data", "message"];
const MESSAGE_BYTES: usize = 4096;
/// One client without a pause, and several that pause after each session.
const CLIENTS: [(usize, Duration); 2] = [(1, Duration::ZERO), (20, Duration::from_millis(50))];
const PATIENCE: Duration = Duration::from_secs(30);
/// Sessions of a sample before those that count.
const WARM_UP: u32 = 5;

/// Of one session, in microseconds, in the order of [`STEPS`].
type Times = [f64; STEPS.len()];

pub(crate) fn rows(options: &Options, cast: &Cast, effort: &Effort) -> Result<Vec<Row>> {
    let row_name = |step: &str, clients: usize| format!("latency_p99_{step}_{clients}");
    let wanted = |clients: usize| STEPS.into_iter().any(|step| options.wants(&row_name(step, clients)));
    let loads: Vec<_> = CLIENTS.into_iter().zip(effort.timed).filter(|((clients, _), _)| wanted(*clients)).collect();
    if loads.is_empty() {
        return Ok(Vec::new());
    }
    let others = [Occupant::Direct, Occupant::Peer(Peer::Haproxy), Occupant::Peer(Peer::NginxMail64k)];
    let mut sites = site::set_up(&cast.beside(&others))?;
    let mut rows = Vec::new();
    for ((clients, pause), sessions) in loads {
        let name = format!("latency of {clients}");
        let samples = turns::take(
            effort.turns,
            &name,
            &mut sites,
            |site| site.occupant.name(),
            |site| sample(site, clients, sessions, pause),
        )?;
        for (number, step) in STEPS.into_iter().enumerate() {
            let name = row_name(step, clients);
            for theirs in 1..sites.len() {
                let pairs: Vec<_> = samples[0]
                    .iter()
                    .map(|ours| ours[number])
                    .zip(samples[theirs].iter().map(|theirs| theirs[number]))
                    .collect();
                rows.push(Row::new(&name, Unit::MICROSECONDS, sites[theirs].occupant.name(), &pairs));
            }
        }
    }
    Ok(rows)
}

/// The 99th percentile of each step.
fn sample(site: &Site, clients: usize, sessions: u32, pause: Duration) -> Result<Times> {
    let target = site.target();
    let client = move || -> Result<Vec<Times>> {
        let mut times = Vec::new();
        for number in 0..WARM_UP + sessions {
            let session = session(target).context("a session of the timing client")?;
            if number >= WARM_UP {
                times.push(session);
            }
            thread::sleep(pause);
        }
        Ok(times)
    };
    // What a thread of the namespace starts belongs to it as well.
    let times = site.lab.client.enter(|| -> Result<Vec<Times>> {
        let clients: Vec<_> = (0..clients).map(|_| thread::spawn(client)).collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.join().ok().context("a client panicked")??);
        }
        Ok(times)
    })?;
    Ok(std::array::from_fn(|step| percentile_99(times.iter().map(|times| times[step]))))
}

fn percentile_99(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

fn session(target: SocketAddrV4) -> Result<Times> {
    let mut times = Times::default();
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    expect(&mut replies, "220")?;
    times[0] = microseconds(begun);
    let message = message();
    let steps: [(&[u8], &str); STEPS.len() - 1] = [
        (b"EHLO client.example\r\n", "250"),
        (b"MAIL FROM:<a@client.example>\r\n", "250"),
        (b"RCPT TO:<b@example.net>\r\n", "250"),
        (b"DATA\r\n", "354"),
        (&message, "250"),
    ];
    for (time, (command, code)) in times[1..].iter_mut().zip(steps) {
        let begun = Instant::now();
        stream.write_all(command)?;
        expect(&mut replies, code)?;
        *time = microseconds(begun);
    }
    stream.write_all(b"QUIT\r\n")?;
    expect(&mut replies, "221")?;
    Ok(times)
}

fn microseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

fn message() -> Vec<u8> {
    let line = format!("{}\r\n", "x".repeat(70));
    let body = line.repeat(MESSAGE_BYTES.div_ceil(line.len()));
    format!("Subject: timed\r\n\r\n{body}.\r\n").into_bytes()
}

/// Reads one reply to its last line.
pub(super) fn expect(replies: &mut BufReader<TcpStream>, code: &str) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if replies.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        ensure!(line.starts_with(code), "expected {code}, got {}", line.trim());
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}
