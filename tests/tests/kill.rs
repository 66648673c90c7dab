//! The daemon is killed while mail goes through it: what a client was told, the gateway has.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use redirect_tests::{
    Family, Mode, Namespace, Product, Scene,
    smtp::{Client, Mail, port_25},
    tcp::noise,
    wait_until,
};

const CLIENTS: usize = 50;
const KILLS: usize = 5;
const TO: &str = "friend@internet.example";
/// Between two kills at least, so that each meets messages in all their stages.
const MESSAGES_BETWEEN: usize = 2 * CLIENTS;
/// The moment of a kill after that.
const DELAY_MAX: Duration = Duration::from_millis(256);
/// What a client grants. A connection whose daemon is gone may never be answered, for the programs that translated it are gone as well.
const PATIENCE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_mins(1);

/// A message that was tried once, and whether the client was told that it was taken.
struct Attempt {
    id: String,
    told: bool,
}

fn message(id: &str) -> Vec<u8> {
    let body = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(100);
    format!("Message-ID: <{id}@client.example>\r\nSubject: {id}\r\n\r\n{body}the end of {id}\r\n").into_bytes()
}

/// A client that sends one message after the other, a few in each session.
struct Sender<'a> {
    host: &'a Namespace,
    number: usize,
    attempts: Vec<Attempt>,
    taken: &'a AtomicUsize,
}

impl Sender<'_> {
    fn send_until(mut self, stop: &AtomicBool) -> Vec<Attempt> {
        while !stop.load(Ordering::Relaxed) {
            // However a session ends, the next one follows.
            if self.converse(stop).is_err() {
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.attempts
    }

    fn converse(&mut self, stop: &AtomicBool) -> Result<()> {
        const MESSAGES: usize = 3;
        let family = Family::BOTH[self.number % 2];
        let from: SocketAddr = (family.redirected(), 0).into();
        let mut client = Client::connect_within(self.host, from, port_25(family.server()), PATIENCE)?;
        client.lose_patience(PATIENCE)?;
        // While no daemon runs, the server that was dialled answers.
        ensure!(client.hello()?.lines[0].starts_with("relay.example.net "), "not the relay");
        for _ in 0..MESSAGES {
            let id = format!("{}.{}", self.number, self.attempts.len());
            self.attempts.push(Attempt { id: id.clone(), told: false });
            let reply = client.deliver(&format!("{id}@client.example"), TO, &message(&id))?;
            ensure!(reply.code == 250, "{reply:?}");
            self.attempts.last_mut().expect("it was added").told = true;
            self.taken.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        client.expect("QUIT", 221)?;
        Ok(())
    }
}

fn what_was_acknowledged_is_delivered(mode: Mode) {
    let Scene { mut product, gateway, lab, .. } = Scene::new(mode).unwrap();
    let (stop, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut moments = noise(0x0516);
    let attempts: Vec<Attempt> = thread::scope(|scope| {
        let senders: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let sender = Sender { host: &lab.client, number, attempts: Vec::new(), taken: &taken };
                let stop = &stop;
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, move || sender.send_until(stop))
                    .unwrap()
            })
            .collect();
        let mut kill_all = || -> Result<()> {
            for _ in 0..KILLS {
                let before = taken.load(Ordering::Relaxed);
                wait_until("mail on its way", LIMIT, || {
                    Ok((taken.load(Ordering::Relaxed) >= before + MESSAGES_BETWEEN).then_some(()))
                })?;
                thread::sleep(DELAY_MAX * u32::from(moments.next().expect("it has no end")) / 256);
                product.kill()?;
                product = Product::start(&lab, &mode.configuration(&lab))?;
            }
            Ok(())
        };
        let killed = kill_all();
        stop.store(true, Ordering::Relaxed);
        let attempts = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        killed.unwrap();
        attempts
    });

    let mut delivered: BTreeMap<String, Vec<Mail>> = BTreeMap::new();
    for mail in gateway.mails() {
        let (id, _) = mail.from.split_once('@').unwrap();
        delivered.entry(id.to_owned()).or_default().push(mail);
    }
    let mut untold = 0;
    for Attempt { id, told } in &attempts {
        let mails = delivered.remove(id).unwrap_or_default();
        if *told {
            assert_eq!(mails.len(), 1, "{mode}: {id} was acknowledged");
        } else {
            untold += 1;
            assert!(mails.len() <= 1, "{mode}: {id} was tried once and came {} times", mails.len());
        }
        for mail in mails {
            assert_eq!(mail.to, [TO], "{id}");
            assert!(
                mail.split_received().expect("the relay adds Received").1 == message(id),
                "{mode}: {id} was changed"
            );
        }
    }
    assert_eq!(delivered.keys().collect::<Vec<_>>(), [""; 0], "{mode}: never sent");
    // Else no kill met a message.
    assert!(untold >= KILLS, "{mode}: {untold} of {} messages were not acknowledged", attempts.len());
    eprintln!(
        "{mode}: {} messages tried, {untold} not acknowledged, {} cut short at the gateway",
        attempts.len(),
        gateway.cut().len()
    );
}

#[test]
fn what_was_acknowledged_is_delivered_rewritten() {
    what_was_acknowledged_is_delivered(Mode::Tc);
}

#[test]
fn what_was_acknowledged_is_delivered_steered() {
    what_was_acknowledged_is_delivered(Mode::Steer);
}
