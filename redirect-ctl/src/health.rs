//! Asks relays whether they live: connects, reads the greeting, says QUIT.
//!
//! A relay counts as up until some probes in a row failed, one that nobody has asked yet included, and as down until some in a row went
//! well. The daemon's own relay is not asked: it is up while it listens, and if it stopped to, the daemon would end. What is found out here
//! goes two ways: the reconciler takes relays that are down out of the pools, and the API shows it.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::HealthSettings,
    dataplane::{RelayId, words},
    desired::{Relay, RelayStatus, Snapshot, Source, Time},
    limits,
    metrics::meters::{METERS, observe},
};

words! {
    /// Whether a relay lives.
    HealthState {
        /// Nobody has got an answer yet; counts as up.
        Unknown = "unknown",
        Up = "up",
        Down = "down",
    }
}

/// A relay's endpoint: what is probed.
type Key = (RelayId, SocketAddr);

/// What is known of the relays' endpoints. Those of a disabled relay are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    endpoints: BTreeMap<Key, EndpointHealth>,
}

/// What is known of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    pub state: HealthState,
    pub since: Time,
    /// Why the last probe failed, if it did; stays until the endpoint is up again.
    pub error: Option<String>,
}

impl Health {
    pub fn endpoint(&self, relay: RelayId, endpoint: SocketAddr) -> Option<&EndpointHealth> {
        self.endpoints.get(&(relay, endpoint))
    }

    pub fn is_down(&self, relay: RelayId, endpoint: SocketAddr) -> bool {
        self.endpoint(relay, endpoint).is_some_and(|health| health.state == HealthState::Down)
    }
}

/// An endpoint over time.
struct Track {
    health: EndpointHealth,
    /// Probes in a row that speak against the state.
    against: u32,
}

impl Track {
    fn new(state: HealthState, now: Time) -> Self {
        Self { health: EndpointHealth { state, since: now, error: None }, against: 0 }
    }

    /// Takes note of a probe's outcome; whether that made the endpoint go down, or up again.
    fn note(&mut self, outcome: Result<(), String>, settings: &HealthSettings, now: Time) -> bool {
        let (next, needed) = match (self.health.state, &outcome) {
            (HealthState::Unknown | HealthState::Up, Err(_)) => (HealthState::Down, settings.down_after),
            (HealthState::Down, Ok(())) => (HealthState::Up, settings.up_after),
            (HealthState::Unknown, Ok(())) => {
                *self = Self::new(HealthState::Up, now);
                return false;
            }
            (HealthState::Up, Ok(())) | (HealthState::Down, Err(_)) => {
                self.against = 0;
                self.health.error = outcome.err();
                return false;
            }
        };
        self.against += 1;
        if let Err(error) = outcome {
            self.health.error = Some(error);
        }
        let turned = self.against >= needed;
        if turned {
            let error = self.health.error.take().filter(|_| next == HealthState::Down);
            self.health = EndpointHealth { state: next, since: now, error };
            self.against = 0;
        }
        turned
    }
}

/// An endpoint that is looked after.
struct Target {
    relay: String,
    track: Track,
    /// When the next probe begins; `None` where nobody asks.
    due: Option<Instant>,
    /// A probe is on its way.
    probing: bool,
}

impl Target {
    fn new(relay: String, source: Source, settings: &HealthSettings) -> Self {
        let (state, due) = match source {
            Source::File => (HealthState::Up, None),
            Source::Api => (HealthState::Unknown, settings.interval.map(|_| Instant::now())),
        };
        Self { relay, track: Track::new(state, Time::now()), due, probing: false }
    }

    fn next_probe(&self) -> Option<Instant> {
        self.due.filter(|_| !self.probing)
    }
}

/// The task. [`Prober::run`] follows the relays of the store.
pub struct Prober {
    snapshots: watch::Receiver<Snapshot>,
    settings: HealthSettings,
    health: watch::Sender<Health>,
    targets: BTreeMap<Key, Target>,
    probes: JoinSet<(Key, Result<(), String>)>,
}

impl Prober {
    pub fn new(snapshots: watch::Receiver<Snapshot>, settings: HealthSettings) -> (Self, watch::Receiver<Health>) {
        let (health, receiver) = watch::channel(Health::default());
        let mut prober = Self { snapshots, settings, health, targets: BTreeMap::new(), probes: JoinSet::new() };
        prober.follow();
        (prober, receiver)
    }

    /// Probes until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), String> {
        loop {
            self.start_due();
            let room = self.probes.len() < limits::HEALTH_PROBES_MAX;
            let next = self.targets.values().filter_map(Target::next_probe).min().filter(|_| room);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = self.snapshots.changed() => {
                    // The store ended first: there is nobody to tell.
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.follow();
                }
                Some(probed) = self.probes.join_next() => {
                    let (key, outcome) = probed.map_err(|error| error.to_string())?;
                    self.note(key, outcome);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Takes over the relays of the newest snapshot; those that were known keep what is known of them.
    fn follow(&mut self) {
        let tables = Arc::clone(&self.snapshots.borrow_and_update().tables);
        let wanted: BTreeMap<Key, &Relay> = tables
            .relays
            .values()
            .filter(|relay| relay.spec.status != RelayStatus::Disabled)
            .flat_map(|relay| relay.spec.endpoints().map(move |endpoint| ((relay.id, endpoint), relay)))
            .collect();
        self.targets.retain(|key, _| wanted.contains_key(key));
        for (key, relay) in wanted {
            let target = || Target::new(relay.spec.name.to_string(), relay.source, &self.settings);
            self.targets.entry(key).or_insert_with(target);
        }
        self.publish();
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for (key, target) in &mut self.targets {
            if self.probes.len() >= limits::HEALTH_PROBES_MAX {
                return;
            }
            if target.next_probe().is_some_and(|due| due <= now) {
                target.due = self.settings.interval.map(|interval| now + jittered(interval));
                target.probing = true;
                let (key, wait) = (*key, self.settings.timeout);
                self.probes.spawn(async move { (key, probe(key.1, wait).await) });
            }
        }
    }

    fn note(&mut self, key: Key, outcome: Result<(), String>) {
        // The relay may be gone meanwhile.
        let Some(target) = self.targets.get_mut(&key) else { return };
        target.probing = false;
        if target.track.note(outcome, &self.settings, Time::now()) {
            let (relay, endpoint) = (&target.relay, key.1);
            if let Some(error) = &target.track.health.error {
                tracing::warn!(relay, %endpoint, error, "the relay is down: it gets no new flows");
            } else {
                tracing::info!(relay, %endpoint, "the relay is up again");
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let endpoints = self.targets.iter().map(|(key, target)| (*key, target.track.health.clone())).collect();
        let health = Health { endpoints };
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            *known = health;
            changed
        });
    }
}

/// The interval, a little shorter or longer.
fn jittered(interval: Duration) -> Duration {
    // The standard library's only source of chance: the keys of a hash map.
    let chance = RandomState::new().build_hasher().finish();
    let percent = 100 - limits::HEALTH_JITTER_PERCENT + chance % (2 * limits::HEALTH_JITTER_PERCENT + 1);
    interval * u32::try_from(percent).expect("at most 100 and the jitter") / 100
}

/// Whether an SMTP server answers at `address`: a connection, and a greeting that begins with 220, within `wait` together. It gets a QUIT when
/// its greeting is complete, not before: some servers (Postfix's postscreen) let clients wait in mid-greeting to see who talks too early.
async fn probe(address: SocketAddr, wait: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let deadline = begun + wait;
    let late = |what: &str| format!("{what} within {} s", wait.as_secs_f32());
    let mut stream = match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| format!("cannot connect: {error}"))?,
        Err(_) => return Err(late("no connection")),
    };
    observe(&METERS.relay_connect_time, begun.elapsed());
    let mut bytes = Vec::new();
    loop {
        match timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Err(_) if greeting(&bytes)? == Greeting::Begun => return Ok(()),
            Err(_) => return Err(late("no greeting")),
            Ok(Err(error)) => return Err(format!("the connection broke in the greeting: {error}")),
            Ok(Ok(0)) => return Err("it closed the connection before the end of its greeting".to_owned()),
            Ok(Ok(_)) if greeting(&bytes)? == Greeting::Complete => break,
            Ok(Ok(_)) if bytes.len() > limits::HEALTH_GREETING_BYTES_MAX => {
                return Err(format!("its greeting has more than {} bytes", limits::HEALTH_GREETING_BYTES_MAX));
            }
            Ok(Ok(_)) => {}
        }
    }
    // It lives; the rest is manners, and no more is made of it than the deadline allows.
    let farewell = async {
        stream.write_all(b"QUIT\r\n").await?;
        let mut rest = stream.take(limits::HEALTH_GREETING_BYTES_MAX as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = timeout_at(deadline, farewell).await;
    Ok(())
}

/// How far a greeting (RFC 5321 section 4.2) has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    /// No line is complete.
    Awaited,
    /// Lines that announce others.
    Begun,
    Complete,
}

/// An error where it is none, or none that welcomes.
fn greeting(bytes: &[u8]) -> Result<Greeting, String> {
    let mut seen = Greeting::Awaited;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let welcomes = line.iter().zip(b"220").all(|(byte, wanted)| byte == wanted)
            && matches!(line.get(3), None | Some(b' ' | b'-' | b'\r' | b'\n'));
        if !welcomes {
            return Err(format!("it says {:?}", quoted(line)));
        }
        match line {
            [.., b'\n'] => seen = if line.get(3) == Some(&b'-') { Greeting::Begun } else { Greeting::Complete },
            _ => return Ok(seen),
        }
    }
    Ok(seen)
}

/// What a stranger said, fit for a log.
fn quoted(line: &[u8]) -> String {
    let printable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
    line.trim_ascii_end().iter().take(limits::HEALTH_QUOTE_MAX).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use tokio::net::TcpListener;

    use super::*;
    use crate::desired::{Delivery, RelaySpec, Tables};

    const WAIT: Duration = Duration::from_millis(400);

    /// What the prober makes of a server that says `words`, with a pause after each, then closes or says nothing more; and what the server
    /// got to read.
    async fn probed(words: &'static [&'static [u8]], closes: bool) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for word in words {
                stream.write_all(word).await.unwrap();
                tokio::time::sleep(WAIT / 20).await;
            }
            if closes {
                return String::new();
            }
            let mut heard = Vec::new();
            // A prober that leaves early resets the connection.
            let _ = stream.read_buf(&mut heard).await;
            String::from_utf8(heard).unwrap()
        });
        let outcome = probe(address, WAIT).await;
        (outcome, server.await.unwrap())
    }

    /// What the server says, whether it closes then; what it hears, or the prober's complaint.
    type Case = (&'static [&'static [u8]], bool, Result<&'static str, &'static str>);

    #[tokio::test]
    async fn a_greeting_tells_who_lives() {
        const ENDLESS: &[&[u8]] = &[b"220-", &[b'x'; 8192]];
        let cases: &[Case] = &[
            (&[b"220 mx ESMTP\r\n"], false, Ok("QUIT\r\n")),
            (&[b"220\r\n"], false, Ok("QUIT\r\n")),
            (&[b"220 mx\n"], false, Ok("QUIT\r\n")),
            // Slowly, but in time.
            (&[b"2", b"2", b"0", b" ", b"m", b"x", b"\r", b"\n"], false, Ok("QUIT\r\n")),
            (&[b"220-mx\r\n", b"220 welcome\r\n"], false, Ok("QUIT\r\n")),
            // It makes clients wait: alive, and not to be disturbed.
            (&[b"220-mx\r\n"], false, Ok("")),
            (&[], false, Err("no greeting within 0.4 s")),
            (&[b"220 mx"], false, Err("no greeting within 0.4 s")),
            (&[b"421 4.3.2 too busy\r\n"], true, Err("it says \"421 4.3.2 too busy\"")),
            (&[b"554 no\r\n"], false, Err("it says \"554 no\"")),
            (&[b"220-mx\r\n", b"421 no\r\n"], false, Err("it says \"421 no\"")),
            (&[b"2200 mx\r\n"], false, Err("it says \"2200 mx\"")),
            (&[b"SSH-2.0-\x1b[2J\xff\r\n"], false, Err("it says \"SSH-2.0-?[2J?\"")),
            (&[b"\r\n"], false, Err("it says \"\"")),
            (ENDLESS, false, Err("its greeting has more than 4096 bytes")),
            (&[], true, Err("it closed the connection before the end of its greeting")),
            (&[b"220-mx\r\n"], true, Err("it closed the connection before the end of its greeting")),
        ];
        for &(words, closes, expected) in cases {
            let (outcome, heard) = probed(words, closes).await;
            match expected {
                Ok(wanted) => assert_eq!((outcome, heard.as_str()), (Ok(()), wanted), "{words:?}"),
                Err(error) => {
                    assert_eq!((outcome, heard.as_str()), (Err(error.to_owned()), ""), "{words:?}");
                }
            }
        }
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let refused = probe(nobody, WAIT).await.unwrap_err();
        assert!(refused.starts_with("cannot connect: Connection refused"), "{refused}");
    }

    fn relay(id: RelayId, address: SocketAddrV4, status: RelayStatus) -> Relay {
        let name = format!("relay{id}").parse().unwrap();
        let spec = RelaySpec { name, ipv4: Some(address), ipv6: None, delivery: Delivery::Auto, status };
        Relay { id, spec, source: Source::Api }
    }

    #[tokio::test]
    async fn nobody_asks_a_disabled_relay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("loopback is IPv4") };
        let snapshot = |status| {
            let relays = [(2, relay(2, address, status))].into();
            Snapshot { revision: 1, tables: Arc::new(Tables { relays, ..Tables::default() }), ..Snapshot::default() }
        };
        let (sender, snapshots) = watch::channel(snapshot(RelayStatus::Disabled));
        let settings = HealthSettings { interval: Some(WAIT / 20), timeout: WAIT, down_after: 1, up_after: 1 };
        let (prober, mut health) = Prober::new(snapshots, settings);
        let stop = CancellationToken::new();
        let task = tokio::spawn(prober.run(stop.clone()));
        let state = |health: &Health| health.endpoint(2, address.into()).map(|health| health.state);
        let busy = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"421 busy\r\n").await.unwrap();
            }
        });
        for (status, expected) in [
            (RelayStatus::Enabled, Some(HealthState::Down)),
            (RelayStatus::Draining, Some(HealthState::Down)),
            (RelayStatus::Disabled, None),
            (RelayStatus::Enabled, Some(HealthState::Down)),
        ] {
            sender.send_replace(snapshot(status));
            let changed = health.wait_for(|health| state(health) == expected);
            timeout_at(Instant::now() + WAIT * 50, changed).await.unwrap_or_else(|_| panic!("{status}")).unwrap();
        }
        busy.abort();
        stop.cancel();
        assert_eq!(task.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn no_more_than_some_are_asked_at_the_same_time() {
        const RELAYS: usize = 2 * limits::HEALTH_PROBES_MAX - 1;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("loopback is IPv4") };
        let relays = (1..).take(RELAYS).map(|id| (id, relay(id, address, RelayStatus::Enabled))).collect();
        let tables = Tables { relays, ..Tables::default() };
        let (_sender, snapshots) =
            watch::channel(Snapshot { revision: 1, tables: Arc::new(tables), ..Snapshot::default() });
        let interval = Some(Duration::from_hours(1));
        let settings = HealthSettings { interval, timeout: WAIT * 100, down_after: 1, up_after: 1 };
        let (prober, _health) = Prober::new(snapshots, settings);
        let stop = CancellationToken::new();
        let task = tokio::spawn(prober.run(stop.clone()));
        let mut silent = Vec::new();
        while silent.len() < limits::HEALTH_PROBES_MAX {
            silent.push(listener.accept().await.unwrap());
        }
        let one_more = timeout_at(Instant::now() + WAIT, listener.accept()).await;
        assert!(one_more.is_err(), "all at once");
        // Those whose turn it is not yet get theirs.
        silent.clear();
        while silent.len() < RELAYS - limits::HEALTH_PROBES_MAX {
            silent.push(listener.accept().await.unwrap());
        }
        stop.cancel();
        assert_eq!(task.await.unwrap(), Ok(()));
    }

    #[test]
    fn states_change_after_some_probes_in_a_row() {
        let settings = HealthSettings { interval: None, timeout: WAIT, down_after: 3, up_after: 2 };
        // Outcomes (+ and -), and the states after them: ?, u, d; a capital where a change is reported.
        for (outcomes, states) in [
            ("+++", "uuu"),
            ("--+", "??u"),
            ("---", "??D"),
            ("----+-++", "??DddddU"),
            ("+--+--+---", "uuuuuuuuuD"),
            ("---++--+---", "??DdUuuuuuD"),
        ] {
            let mut track = Track::new(HealthState::Unknown, Time::now());
            let mut seen = String::new();
            for outcome in outcomes.bytes() {
                let outcome = if outcome == b'+' { Ok(()) } else { Err("why".to_owned()) };
                let failed = outcome.is_err();
                let turned = track.note(outcome, &settings, Time::now());
                let letter = match track.health.state {
                    HealthState::Unknown => '?',
                    HealthState::Up => 'u',
                    HealthState::Down => 'd',
                };
                seen.push(if turned { letter.to_ascii_uppercase() } else { letter });
                assert!(!failed || track.health.error.is_some(), "{outcomes}: the failure is not shown");
                let up = track.health.state == HealthState::Up;
                assert!(failed || !up || track.health.error.is_none(), "{outcomes}: a failure of the past is shown");
            }
            assert_eq!(seen, states, "{outcomes}");
        }
    }

    #[test]
    fn the_interval_varies_within_its_bounds() {
        let interval = Duration::from_secs(5);
        let found: std::collections::BTreeSet<_> = (0..200).map(|_| jittered(interval)).collect();
        assert!(found.len() > 5, "{found:?}");
        assert!(
            found.iter().all(|found| (Duration::from_millis(4_500)..=Duration::from_millis(5_500)).contains(found))
        );
    }
}
