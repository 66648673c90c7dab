//! Sessions as they happen, for who looks on: what the client says, what we and the gateway answer, without anything of a
//! message, a password, or the name of anybody who writes or is written to.
//!
//! Nobody who looks on can hold a session up: lines go into a queue of fixed length, and who is slow misses some and is
//! told how many. While nobody looks, nothing is written down.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    auth::Mechanism,
    command::{Body, Command, Refusal},
    counters::Meter,
    limits::{WATCHED_LINES_MAX, WATCHERS_MAX},
};

/// One thing that happened in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    pub at: Timestamp,
    /// A number that no other session of this relay has.
    pub session: u64,
    pub subscriber: SocketAddr,
    pub class: Arc<str>,
    pub who: Who,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Who {
    Client,
    Relay,
    Gateway,
    /// Nobody said it.
    Note,
}

/// What a watcher gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Line(Arc<Line>),
    /// So many lines came too fast.
    Missed(u64),
}

/// All sessions, and who looks on.
#[derive(Debug)]
pub(crate) struct Stage {
    sender: broadcast::Sender<Arc<Line>>,
    sessions: AtomicU64,
    watchers: AtomicUsize,
    watched: Mutex<Vec<(u64, IpNet)>>,
    /// Lines that somebody was too slow for.
    pub(crate) lost: Meter,
    clock: fn() -> Timestamp,
}

impl Stage {
    pub(crate) fn new(clock: fn() -> Timestamp) -> Arc<Self> {
        Arc::new(Self {
            sender: broadcast::Sender::new(WATCHED_LINES_MAX),
            sessions: AtomicU64::new(1),
            watchers: AtomicUsize::new(0),
            watched: Mutex::default(),
            lost: Meter::default(),
            clock,
        })
    }

    /// Looks at the sessions of `subscribers`; `None` if too many look already.
    pub(crate) fn watch(self: &Arc<Self>, subscribers: IpNet) -> Option<Watcher> {
        let mut watched = self.watched();
        if watched.len() >= WATCHERS_MAX {
            return None;
        }
        let number = self.sessions.fetch_add(1, Relaxed);
        watched.push((number, subscribers.trunc()));
        self.watchers.store(watched.len(), Relaxed);
        Some(Watcher { lines: self.sender.subscribe(), subscribers, number, stage: Arc::clone(self) })
    }

    fn is_watched(&self, ip: IpAddr) -> bool {
        self.watchers.load(Relaxed) > 0 && self.watched().iter().any(|(_, subscribers)| subscribers.contains(&ip))
    }

    /// Each statement under the lock leaves the list whole.
    fn watched(&self) -> MutexGuard<'_, Vec<(u64, IpNet)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who looks on, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    lines: broadcast::Receiver<Arc<Line>>,
    subscribers: IpNet,
    number: u64,
    stage: Arc<Stage>,
}

impl Watcher {
    /// The next line, or how many were missed; it never ends by itself. Cancel-safe.
    pub async fn next(&mut self) -> Seen {
        loop {
            match self.lines.recv().await {
                Ok(line) if self.subscribers.contains(&line.subscriber.ip()) => return Seen::Line(line),
                Ok(_) => {}
                Err(RecvError::Lagged(count)) => {
                    self.stage.lost.add(count);
                    return Seen::Missed(count);
                }
                // The sender is in the stage, which we hold.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watched = self.stage.watched();
        watched.retain(|(number, _)| *number != self.number);
        self.stage.watchers.store(watched.len(), Relaxed);
    }
}

/// A session's own voice on the stage.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    stage: Arc<Stage>,
    session: u64,
}

impl Voice {
    pub(crate) fn new(stage: &Arc<Stage>) -> Self {
        Self { stage: Arc::clone(stage), session: stage.sessions.fetch_add(1, Relaxed) }
    }

    /// `text` is only made when somebody looks on.
    pub(crate) fn say(&self, subscriber: SocketAddr, class: &Arc<str>, who: Who, text: impl FnOnce() -> String) {
        if self.stage.is_watched(subscriber.ip()) {
            let line = Line {
                at: (self.stage.clock)(),
                session: self.session,
                subscriber,
                class: Arc::clone(class),
                who,
                text: text(),
            };
            // That the last watcher just left is no matter.
            let _ = self.stage.sender.send(Arc::new(line));
        }
    }
}

/// A command without what it says of people.
pub(crate) fn redacted(parsed: &Result<Command, Refusal>) -> String {
    match parsed {
        Ok(Command::Hello(helo)) => {
            let verb = if helo.extended { "EHLO" } else { "HELO" };
            format!("{verb} {}", helo.name.escape_default())
        }
        Ok(Command::Mail(mail)) => {
            let size = mail.size.map(|size| format!(" SIZE={size}")).unwrap_or_default();
            let body = match mail.body {
                Some(Body::EightBitMime) => " BODY=8BITMIME",
                Some(Body::SevenBit) => " BODY=7BIT",
                None => "",
            };
            let smtputf8 = if mail.smtputf8 { " SMTPUTF8" } else { "" };
            format!("MAIL FROM:{}{size}{body}{smtputf8}", masked(&mail.sender.to_string()))
        }
        Ok(Command::Rcpt(rcpt)) => format!("RCPT TO:{}", masked(&rcpt.recipient.to_string())),
        Ok(Command::Data) => "DATA".into(),
        Ok(Command::Bdat(chunk)) => format!("BDAT {}{}", chunk.octets, if chunk.last { " LAST" } else { "" }),
        Ok(Command::Rset) => "RSET".into(),
        Ok(Command::Noop) => "NOOP".into(),
        Ok(Command::Quit) => "QUIT".into(),
        Ok(Command::Vrfy) => "VRFY ***".into(),
        Ok(Command::Starttls) => "STARTTLS".into(),
        // Who leaves the mechanism out has a password in its place.
        Ok(Command::Auth(login)) if Mechanism::named(&login.mechanism).is_none() => "AUTH ***".into(),
        Ok(Command::Auth(login)) => format!("AUTH {} ***", login.mechanism),
        Err(_) => "what is no command".into(),
    }
}

/// `<somebody@domain>` without somebody. A domain holds no "@", so the last one is before it.
fn masked(path: &str) -> String {
    match path.rsplit_once('@') {
        Some((_, domain)) => format!("<***@{}", domain.escape_default()),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{self, Grammar};

    fn check(line: &str, expected: &str) {
        let grammar = Grammar { smtputf8: true, dsn: true, priority: true, auth: true };
        let (_, parsed) = command::next(format!("{line}\r\n").as_bytes(), grammar).unwrap();
        assert_eq!(redacted(&parsed), expected, "{line:?}");
    }

    #[test]
    fn nobody_is_named() {
        check(
            "MAIL FROM:<alice@b.example> SIZE=7 BODY=8BITMIME SMTPUTF8",
            "MAIL FROM:<***@b.example> SIZE=7 BODY=8BITMIME SMTPUTF8",
        );
        check("MAIL FROM:<>", "MAIL FROM:<>");
        check("RCPT TO:<\"alice@home\"@b.example> ORCPT=rfc822;alice@b.example", "RCPT TO:<***@b.example>");
        check("RCPT TO:<postmaster>", "RCPT TO:<postmaster>");
        check("RCPT TO:<alice@[192.0.2.1]>", "RCPT TO:<***@[192.0.2.1]>");
        check("AUTH PLAIN AGFsaWNlAHNlY3JldA==", "AUTH PLAIN ***");
        check("AUTH secret", "AUTH ***");
        check("VRFY alice", "VRFY ***");
        check("alice", "what is no command");
        check("BDAT 5 LAST", "BDAT 5 LAST");
    }

    #[test]
    fn attack_57_nothing_is_injected_into_what_is_shown() {
        check("EHLO a\"b\\", "EHLO a\\\"b\\\\");
        check("RCPT TO:<a@b\u{fc}cher.example>", "RCPT TO:<***@b\\u{fc}cher.example>");
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_watcher_sees_its_subscribers_only() {
        let stage = Stage::new(|| Timestamp::UNIX_EPOCH);
        let class = Arc::from("guests");
        let (one, other) = (Voice::new(&stage), Voice::new(&stage));
        one.say(address("192.0.2.1:1"), &class, Who::Client, || panic!("nobody looks on"));
        let mut watcher = stage.watch("192.0.2.0/28".parse().unwrap()).unwrap();
        other.say(address("192.0.2.99:1"), &class, Who::Client, || panic!("nobody looks at this one"));
        one.say(address("192.0.2.1:1"), &class, Who::Client, || "QUIT".into());
        let Seen::Line(line) = watcher.next().await else { panic!("a line") };
        assert_eq!((line.text.as_str(), line.who, line.session), ("QUIT", Who::Client, one.session));
        drop(watcher);
        one.say(address("192.0.2.1:1"), &class, Who::Client, || panic!("nobody looks on any more"));
    }

    #[tokio::test]
    async fn a_slow_watcher_misses_lines_and_holds_nobody_up() {
        let stage = Stage::new(|| Timestamp::UNIX_EPOCH);
        let voice = Voice::new(&stage);
        let mut watcher = stage.watch("::/0".parse().unwrap()).unwrap();
        for i in 0..WATCHED_LINES_MAX + 7 {
            voice.say(address("[2001:db8::1]:1"), &"c".into(), Who::Client, || i.to_string());
        }
        assert_eq!(watcher.next().await, Seen::Missed(7));
        assert_eq!(stage.lost.get(), 7);
        let Seen::Line(line) = watcher.next().await else { panic!("a line") };
        assert_eq!(line.text, "7");
    }

    #[test]
    fn watchers_are_few() {
        let stage = Stage::new(|| Timestamp::UNIX_EPOCH);
        let watch = || stage.watch("0.0.0.0/0".parse().unwrap());
        let mut watchers: Vec<_> = (0..WATCHERS_MAX).map(|_| watch().unwrap()).collect();
        assert!(watch().is_none());
        watchers.pop();
        assert!(watch().is_some());
    }
}
