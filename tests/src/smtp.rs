//! A mail client whose every byte the test chooses, and a mail server that keeps every byte it gets.
//!
//! Both are strict where the product has to be: a line ends with CRLF, and only CRLF.CRLF ends a message.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{Backlog, listen};

pub use crate::tcp::PATIENCE;
use crate::{netns::Namespace, process::wait_until, tcp::dial};

/// One reply, its lines without the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

impl Reply {
    /// The enhanced status code (RFC 3463) if there is one.
    #[must_use]
    pub fn enhanced(&self) -> Option<&str> {
        let word = self.lines.first()?.split(' ').next()?;
        let mut numbers = word.split('.');
        let is_code = numbers.clone().count() == 3
            && numbers.all(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()));
        is_code.then_some(word)
    }
}

/// A connection of a mail client.
pub struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Client {
    /// Connects from `from` in `host`; port 0 is any port. Two connections to different servers may share a port.
    pub fn connect(host: &Namespace, from: impl Into<SocketAddr>, to: SocketAddr) -> io::Result<Self> {
        Self::connect_within(host, from, to, PATIENCE)
    }

    /// As [`Client::connect`], giving up after `limit` with an error of kind `TimedOut`.
    pub fn connect_within(
        host: &Namespace,
        from: impl Into<SocketAddr>,
        to: SocketAddr,
        limit: Duration,
    ) -> io::Result<Self> {
        let writer = dial(host, from, to, limit)?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    /// Bounds each further read and write; without this they may take [`PATIENCE`].
    pub fn lose_patience(&self, limit: Duration) -> io::Result<()> {
        self.writer.set_read_timeout(Some(limit))?;
        self.writer.set_write_timeout(Some(limit))
    }

    /// Reads one reply; an end of the connection is an error of kind `UnexpectedEof`.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            self.reader.read_until(b'\n', &mut line)?;
            let malformed = || {
                io::Error::new(io::ErrorKind::InvalidData, format!("reply line {:?}", line.escape_ascii().to_string()))
            };
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text =
                line.strip_suffix(b"\r\n").and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(malformed)?;
            let (code, rest) = text.split_at_checked(3).ok_or_else(malformed)?;
            let code = code.parse().map_err(|_| malformed())?;
            let last = !rest.starts_with('-');
            lines.push(rest.get(1..).unwrap_or_default().to_owned());
            if last {
                return Ok(Reply { code, lines });
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// Sends a line and reads the reply to it.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// As [`Client::command`], with an error that tells the reply if its code is another.
    pub fn expect(&mut self, line: &str, code: u16) -> Result<Reply> {
        let reply = self.command(line).with_context(|| format!("no reply to {line}"))?;
        ensure!(reply.code == code, "{line}: expected {code}, got {} {:?}", reply.code, reply.lines);
        Ok(reply)
    }

    /// Reads the greeting and says EHLO; returns the greeting.
    pub fn hello(&mut self) -> Result<Reply> {
        let greeting = self.reply().context("no greeting")?;
        ensure!(greeting.code == 220, "greeted with {} {:?}", greeting.code, greeting.lines);
        self.expect("EHLO client.example", 250)?;
        Ok(greeting)
    }

    /// Goes from EHLO up to the 354.
    pub fn begin(&mut self, from: &str, to: &str) -> Result<()> {
        self.expect(&format!("MAIL FROM:<{from}>"), 250)?;
        self.expect(&format!("RCPT TO:<{to}>"), 250)?;
        self.expect("DATA", 354).map(drop)
    }

    /// Sends one message, whose lines end with CRLF, and returns the reply to its end.
    pub fn deliver(&mut self, from: &str, to: &str, message: &[u8]) -> Result<Reply> {
        self.begin(from, to)?;
        self.send(&stuff(message)).context("send the message")?;
        self.reply().context("no reply to the end of the message")
    }

    /// A conversation of one message from greeting to QUIT.
    pub fn converse(mut self, from: &str, to: &str, message: &[u8]) -> Result<Reply> {
        self.hello()?;
        let reply = self.deliver(from, to, message)?;
        self.expect("QUIT", 221)?;
        Ok(reply)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.writer.local_addr()
    }

    /// The server as the client's own socket knows it.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.writer.peer_addr()
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.writer.shutdown(how)
    }

    /// Reads until the server closes.
    pub fn drain(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// The message as DATA carries it: dots doubled, the end added (RFC 5321 section 4.5.2).
#[must_use]
pub fn stuff(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + message.len() / 64 + 8);
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    if !message.is_empty() && !message.ends_with(b"\r\n") {
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

/// A message as a server took it: its end was CRLF.CRLF, its dots are undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Who delivered it.
    pub peer: SocketAddr,
    /// The server's address that it was delivered to.
    pub server: SocketAddr,
    pub from: String,
    pub to: Vec<String>,
    pub data: Vec<u8>,
}

impl Mail {
    /// As [`split_received`] for this message.
    #[must_use]
    pub fn split_received(&self) -> Option<(&[u8], &[u8])> {
        split_received(&self.data)
    }
}

/// What the relay adds at the top, one `Received:` field with its continuation lines, and the rest of a message.
#[must_use]
pub fn split_received(message: &[u8]) -> Option<(&[u8], &[u8])> {
    if !message.get(..9)?.eq_ignore_ascii_case(b"Received:") {
        return None;
    }
    let mut end = 0;
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if end > 0 && !line.starts_with(b" ") && !line.starts_with(b"\t") {
            break;
        }
        end += line.len();
    }
    Some(message.split_at(end))
}

/// Where a server stops being helpful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Manner {
    #[default]
    Accepts,
    /// Closes as soon as the message is complete, without a reply.
    HangsUpAfterTheMessage,
    /// Takes its time to say that it has taken a message.
    Ponders,
}

/// How long a server that ponders does so: longer than a stop without anything to wait for takes.
const PONDERING: Duration = Duration::from_secs(2);

/// A mail server on some addresses of a host.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    name: String,
    manner: Manner,
    stopping: AtomicBool,
    mails: Mutex<Vec<Mail>>,
    /// The sender and the length of every message that began and had no end.
    cut: Mutex<Vec<(String, usize)>>,
    peers: Mutex<Vec<SocketAddr>>,
}

const STACK_BYTES: usize = 256 * 1024;

impl Server {
    /// `name` is in the greeting, before the address that was connected to.
    pub fn start(host: &Namespace, name: &str, addresses: &[SocketAddr], manner: Manner) -> Result<Self> {
        let shared = Arc::new(Shared { name: name.to_owned(), manner, ..Shared::default() });
        let mut accepting = Vec::new();
        for address in addresses {
            let listener = host.enter(|| TcpListener::bind(address)).with_context(|| format!("listen on {address}"))?;
            // The default backlog is too short for a thousand connections at once.
            listen(&listener, Backlog::MAXALLOWABLE).context("lengthen the backlog")?;
            listener.set_nonblocking(true)?;
            let shared = Arc::clone(&shared);
            accepting.push(host.spawn(STACK_BYTES, move || accept(&listener, &shared))?);
        }
        Ok(Self { shared, accepting })
    }

    /// Every message so far.
    #[must_use]
    pub fn mails(&self) -> Vec<Mail> {
        lock(&self.shared.mails).clone()
    }

    /// Messages of which the server saw the beginning only.
    #[must_use]
    pub fn cut(&self) -> Vec<(String, usize)> {
        lock(&self.shared.cut).clone()
    }

    /// Everyone who connected so far.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.shared.peers).clone()
    }

    /// Waits for the n-th message and returns all.
    pub fn wait_for(&self, count: usize) -> Result<Vec<Mail>> {
        wait_until(&format!("{count} messages at {}", self.shared.name), PATIENCE, || {
            let mails = self.mails();
            Ok((mails.len() >= count).then_some(mails))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for thread in self.accepting.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                lock(&shared.peers).push(peer);
                let shared = Arc::clone(shared);
                let session = thread::Builder::new().stack_size(STACK_BYTES);
                // A client that breaks off is a test's business, not an error of the server.
                let started = session.spawn(move || drop(Session::new(stream, peer, &shared).and_then(Session::run)));
                started.expect("threads are far below the system's limit");
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("accept: {error}"),
        }
    }
}

struct Session<'a> {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    peer: SocketAddr,
    server: SocketAddr,
    shared: &'a Shared,
}

impl<'a> Session<'a> {
    fn new(stream: TcpStream, peer: SocketAddr, shared: &'a Shared) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let server = stream.local_addr()?;
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, stream.try_clone()?),
            writer: stream,
            peer,
            server,
            shared,
        })
    }

    fn run(mut self) -> Result<()> {
        let greeting = format!("220 {} {} ESMTP", self.shared.name, self.server.ip());
        self.say(&greeting)?;
        let (mut from, mut to) = (None, Vec::new());
        loop {
            let line = self.line()?;
            let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => {
                    let name = format!("250-{}", self.shared.name);
                    self.say(&format!(
                        "{name}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 67108864"
                    ))?;
                }
                "HELO" | "NOOP" => self.say("250 2.0.0 ok")?,
                "RSET" => {
                    (from, to) = (None, Vec::new());
                    self.say("250 2.0.0 ok")?;
                }
                "MAIL" => {
                    from = Some(path(&line)?);
                    self.say("250 2.1.0 ok")?;
                }
                "RCPT" => {
                    to.push(path(&line)?);
                    self.say("250 2.1.5 ok")?;
                }
                "DATA" if to.is_empty() => self.say("503 5.5.1 no recipient")?,
                "DATA" => {
                    self.say("354 go on")?;
                    let from = from.take().unwrap_or_default();
                    let data = self.message(&from)?;
                    let mail = Mail { peer: self.peer, server: self.server, from, to: std::mem::take(&mut to), data };
                    lock(&self.shared.mails).push(mail);
                    if self.shared.manner == Manner::HangsUpAfterTheMessage {
                        return Ok(());
                    }
                    if self.shared.manner == Manner::Ponders {
                        thread::sleep(PONDERING);
                    }
                    self.say("250 2.0.0 taken")?;
                }
                "QUIT" => {
                    self.say("221 2.0.0 bye")?;
                    return Ok(());
                }
                _ => self.say("500 5.5.2 unknown")?,
            }
        }
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(format!("{text}\r\n").as_bytes())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        let Some(text) = line.strip_suffix(b"\r\n") else { bail!("command {:?}", line.escape_ascii().to_string()) };
        ensure!(!text.contains(&b'\r') && !text.contains(&0), "command with a stray byte");
        String::from_utf8(text.to_vec()).context("command that is no text")
    }

    /// Reads up to CRLF.CRLF and undoes the dots. A line feed alone is a byte of the message like any other.
    fn message(&mut self, from: &str) -> Result<Vec<u8>> {
        let mut data: Vec<u8> = Vec::new();
        loop {
            let mut piece = Vec::new();
            let read = self.reader.read_until(b'\n', &mut piece);
            if piece.is_empty() || read.is_err() || !piece.ends_with(b"\n") {
                lock(&self.shared.cut).push((from.to_owned(), data.len() + piece.len()));
                bail!("message without an end");
            }
            if data.is_empty() || data.ends_with(b"\r\n") {
                if piece == b".\r\n" {
                    return Ok(data);
                }
                if piece.starts_with(b".") {
                    piece.remove(0);
                }
            }
            data.append(&mut piece);
        }
    }
}

/// What stands between the angle brackets of MAIL and RCPT.
fn path(line: &str) -> Result<String> {
    let address =
        line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(address, _)| address.to_owned());
    address.with_context(|| format!("no path in {line}"))
}

/// Port 25 of an address, which is what mail is about here.
#[must_use]
pub fn port_25(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 25)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_doubled_and_the_end_is_added() {
        for (message, wire) in [
            ("", ".\r\n"),
            ("x\r\n", "x\r\n.\r\n"),
            (".x\r\n..\r\ny.\r\n", "..x\r\n...\r\ny.\r\n.\r\n"),
            ("x", "x\r\n.\r\n"),
        ] {
            assert_eq!(stuff(message.as_bytes()), wire.as_bytes(), "{message:?}");
        }
    }

    #[test]
    fn received_is_split_off_with_its_continuation() {
        let mail = |data: &str| Mail {
            peer: ([127, 0, 0, 1], 1).into(),
            server: ([127, 0, 0, 1], 25).into(),
            from: String::new(),
            to: Vec::new(),
            data: data.as_bytes().to_vec(),
        };
        let split = |data: &str| {
            mail(data).split_received().map(|(head, rest)| {
                (String::from_utf8_lossy(head).into_owned(), String::from_utf8_lossy(rest).into_owned())
            })
        };
        assert_eq!(
            split("Received: a\r\n\tb\r\nSubject: s\r\n\r\n"),
            Some(("Received: a\r\n\tb\r\n".into(), "Subject: s\r\n\r\n".into()))
        );
        assert_eq!(split("Received: a\r\n"), Some(("Received: a\r\n".into(), String::new())));
        assert_eq!(split("Subject: s\r\n"), None);
        assert_eq!(split(""), None);
    }

    #[test]
    fn enhanced_codes() {
        let reply = |text: &str| Reply { code: 451, lines: vec![text.to_owned()] };
        assert_eq!(reply("4.4.1 gateway").enhanced(), Some("4.4.1"));
        assert_eq!(reply("try later").enhanced(), None);
        assert_eq!(reply("4.4. x").enhanced(), None);
    }
}
