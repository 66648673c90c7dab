//! A relay on loopback between a client that a test speaks for and a gateway that follows a script.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redirect_relay::{
    ClientAddr, Counters, Directory, Identity, OriginalDst, Policy, Relay, Settings,
    gateway::{Balance, Encryption, Gateway, Group, Member},
    route::{Pattern, Route, Routing, RoutingSpec, Target},
    run, tend,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) const BODY: &str = "Subject: x\r\n\r\nHello\r\n";

/// Knows every client by the class given.
pub(crate) struct Site {
    pub(crate) class: Option<&'static str>,
    pub(crate) policy: Arc<Policy>,
    /// Where every client meant to go.
    pub(crate) original: SocketAddr,
    pub(crate) routing: Mutex<Arc<Routing>>,
    pub(crate) listeners: Mutex<Vec<SocketAddr>>,
    /// How often a subscriber was to be locked.
    pub(crate) locks: AtomicU32,
}

impl Directory for Site {
    async fn identify(&self, peer: SocketAddr, _local: SocketAddr) -> Option<Identity> {
        Some(Identity {
            client: ClientAddr::new(peer),
            original: OriginalDst::new(self.original),
            class: self.class?.into(),
            policy: Arc::clone(&self.policy),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::clone(&self.routing.lock().unwrap())
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        self.listeners.lock().unwrap().clone()
    }

    fn lock(&self, _identity: &Identity, _duration: Duration) {
        self.locks.fetch_add(1, Ordering::Relaxed);
    }
}

/// A plain gateway at an address.
pub(crate) fn plain(name: &str, address: SocketAddr) -> Gateway {
    let host = address.ip().to_string().parse().unwrap();
    let mut gateway = Gateway::new(name.parse().unwrap(), host, address.port());
    gateway.encryption = Encryption::None;
    gateway.allow_local = true;
    gateway
}

/// Everything goes to these, in this order.
pub(crate) fn to(gateways: Vec<Gateway>) -> RoutingSpec {
    let members = gateways
        .iter()
        .enumerate()
        .map(|(rank, gateway)| Member { gateway: gateway.name.clone(), rank: u16::try_from(rank).unwrap() });
    let group = Group {
        name: "group".parse().unwrap(),
        description: String::new(),
        balance: Balance::default(),
        members: members.collect(),
    };
    let route = Route::new(Pattern::Default, Target::Group(group.name.clone()));
    RoutingSpec { gateways, groups: vec![group], routes: vec![route], managed: Vec::new() }
}

pub(crate) fn at(addresses: &[SocketAddr]) -> RoutingSpec {
    to(addresses.iter().enumerate().map(|(index, address)| plain(&format!("g{index}"), *address)).collect())
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) relay: Arc<Relay<Site>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(settings: Settings, class: Option<&'static str>, routing: Option<RoutingSpec>) -> Self {
        Self::of_class(settings, class, Policy::default(), routing).await
    }

    pub(crate) async fn of_class(
        settings: Settings,
        class: Option<&'static str>,
        policy: Policy,
        routing: Option<RoutingSpec>,
    ) -> Self {
        let routing = Routing::build(routing.unwrap_or_default()).unwrap();
        let site = Site {
            class,
            policy: Arc::new(policy),
            original: "198.51.100.9:25".parse().unwrap(),
            routing: Mutex::new(Arc::new(routing)),
            listeners: Mutex::default(),
            locks: AtomicU32::new(0),
        };
        Self::at_site(settings, site).await
    }

    pub(crate) async fn at_site(settings: Settings, site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Arc::new(Relay::new(settings, site));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(listener, Arc::clone(&relay), shutdown.clone()));
        Self { address, relay, shutdown, task }
    }

    pub(crate) async fn with(gateway: SocketAddr) -> Self {
        Self::start(settings(), Some("configured"), Some(at(&[gateway]))).await
    }

    pub(crate) fn counters(&self) -> Counters {
        self.relay.counters()
    }

    pub(crate) async fn until(&self, what: &str, looked_for: impl Fn(&Counters) -> bool) {
        for _ in 0..500 {
            if looked_for(&self.counters()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the relay never counted {what}: {:?}", self.counters());
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Stops the relay; panics unless all of its tasks end.
    pub(crate) async fn stop(self) -> Counters {
        self.shutdown.cancel();
        self.task.await.unwrap();
        tend(Arc::clone(&self.relay), self.shutdown).await;
        let counters = self.relay.counters();
        assert_eq!(counters.sessions_active, 0);
        counters
    }
}

pub(crate) fn settings() -> Settings {
    let mut settings = Settings::new("relay.example");
    settings.drain = Duration::from_secs(1);
    settings.timeouts.farewell = Duration::from_millis(200);
    settings
}

pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// One reply, its lines joined by "|"; empty at the end of the connection.
    pub(crate) async fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await.unwrap() == 0 {
                return lines.join("|");
            }
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line.trim_end().to_owned());
            if !more {
                return lines.join("|");
            }
        }
    }

    /// Sends a line and takes the reply, which begins with `expected`.
    pub(crate) async fn ask(&mut self, line: &str, expected: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.expect(expected).await
    }

    pub(crate) async fn expect(&mut self, expected: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(expected), "expected {expected:?}, got {reply:?}");
        reply
    }

    pub(crate) async fn greet(&mut self) {
        self.expect("220 relay.example ESMTP").await;
        self.ask("EHLO pc.example", "250-relay.example|250-PIPELINING").await;
    }

    /// Up to and including the 354.
    pub(crate) async fn envelope(&mut self) {
        self.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
        self.ask("RCPT TO:<c@d.example>", "250 2.1.5").await;
        self.ask("DATA", "354 ").await;
    }

    pub(crate) async fn ended(&mut self) {
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).await.expect("a clean end, no reset");
        assert_eq!(rest, "");
    }
}

/// What the gateway does at a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Do {
    Say(String),
    /// Says this and closes.
    SayAndClose(String),
    Close,
    Hang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Banner,
    Ehlo,
    Starttls,
    Xclient,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// After the first octets of the body.
    Body,
    Dot,
    Rset,
    Quit,
}

/// What a gateway saw.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) connections: usize,
    pub(crate) commands: Vec<String>,
    /// Headers of the PROXY protocol, without the signature.
    pub(crate) headers: Vec<Vec<u8>>,
    /// Where connections came from.
    pub(crate) peers: Vec<SocketAddr>,
    /// Messages that came to their dot, unstuffed, without our trace field.
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) traces: Vec<String>,
    /// Bodies that ended without a dot.
    pub(crate) cut: usize,
}

/// What a gateway is, besides what it does at a stage.
#[derive(Clone, Default)]
pub(crate) struct Nature {
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// TLS from the first octet.
    pub(crate) implicit: bool,
    /// Keywords besides those of [`OFFERS`].
    pub(crate) offers: Vec<&'static str>,
    /// Each connection begins with a PROXY header.
    pub(crate) proxy: bool,
    /// The initial responses of PLAIN that it accepts; any, if there are none here.
    pub(crate) users: Vec<&'static str>,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Line = BufReader<Box<dyn Wire>>;

#[derive(Clone)]
pub(crate) struct FakeGateway {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    nature: Nature,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

pub(crate) type Script = Vec<(Stage, Do)>;

pub(crate) const OFFERS: &str = "250-g\r\n250-PIPELINING\r\n250-SIZE 0\r\n250 8BITMIME\r\n";

impl FakeGateway {
    pub(crate) fn start(script: Script) -> Self {
        Self::with(Nature::default(), script)
    }

    pub(crate) fn with(nature: Nature, script: Script) -> Self {
        // A thousand sessions connect at once. Where the queue overflows, SYN cookies let a client believe in a connection
        // that the server has forgotten, and it would wait for the banner until its deadline.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = Self { address, seen: Arc::default(), nature, task: Arc::default() };
        let this = gateway.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                {
                    let mut seen = this.seen.lock().unwrap();
                    seen.connections += 1;
                    seen.peers.push(peer);
                }
                let (this, script) = (this.clone(), script.clone());
                connections.spawn(async move { this.serve(stream, &script).await });
                while connections.try_join_next().is_some() {}
            }
        });
        *gateway.task.lock().unwrap() = Some(task);
        gateway
    }

    /// Ends all that the gateway does.
    pub(crate) async fn stop(&self) {
        let task = self.task.lock().unwrap().take().expect("stopped once");
        task.abort();
        let _ = task.await;
    }

    fn offers(&self) -> String {
        let mut offers = OFFERS.replace("250 8", "250-8");
        for offer in &self.nature.offers {
            offers.extend(["250-", offer, "\r\n"]);
        }
        if self.nature.tls.is_some() && !self.nature.implicit {
            offers += "250-STARTTLS\r\n";
        }
        offers + "250 HELP\r\n"
    }

    async fn encrypt(&self, stream: impl Wire + 'static) -> Option<Line> {
        let acceptor = TlsAcceptor::from(self.nature.tls.clone().expect("the gateway has a certificate"));
        Some(BufReader::new(Box::new(acceptor.accept(stream).await.ok()?)))
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until the gateway has seen what is looked for.
    pub(crate) async fn until(&self, what: &str, looked_for: impl Fn(&Seen) -> bool) -> Seen {
        for _ in 0..500 {
            let seen = self.seen();
            if looked_for(&seen) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the gateway never saw {what}");
    }

    /// Does what the script has for the stage, or says `usual`. Whether to go on.
    async fn act(stream: &mut Line, script: &Script, stage: Stage, usual: &str) -> bool {
        let act = script.iter().find(|(at, _)| *at == stage).map(|(_, act)| act.clone());
        let (text, go_on) = match act.unwrap_or_else(|| Do::Say(usual.to_owned())) {
            Do::Say(text) => (text, true),
            Do::SayAndClose(text) => (text, false),
            Do::Close => (String::new(), false),
            Do::Hang => {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                (String::new(), false)
            }
        };
        stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok() && go_on
    }

    async fn serve(&self, mut tcp: TcpStream, script: &Script) -> Option<()> {
        let go = |go_on: bool| go_on.then_some(());
        if self.nature.proxy {
            let mut header = vec![0; 16];
            tcp.read_exact(&mut header).await.ok()?;
            let mut rest = vec![0; usize::from(header[15])];
            tcp.read_exact(&mut rest).await.ok()?;
            self.seen.lock().unwrap().headers.push([&header[12..], &rest].concat());
        }
        let mut stream: Line =
            if self.nature.implicit { self.encrypt(tcp).await? } else { BufReader::new(Box::new(tcp)) };
        go(Self::act(&mut stream, script, Stage::Banner, "220 g ready\r\n").await)?;
        loop {
            let mut line = String::new();
            go(stream.read_line(&mut line).await.is_ok_and(|octets| octets > 0))?;
            let line = line.strip_suffix("\r\n").expect("the relay ends its lines in CRLF").to_owned();
            self.seen.lock().unwrap().commands.push(line.clone());
            match line.split(' ').next().unwrap() {
                "EHLO" => go(Self::act(&mut stream, script, Stage::Ehlo, &self.offers()).await)?,
                "STARTTLS" => {
                    go(Self::act(&mut stream, script, Stage::Starttls, "220 go\r\n").await)?;
                    stream = self.encrypt(stream.into_inner()).await?;
                }
                "XCLIENT" => go(Self::act(&mut stream, script, Stage::Xclient, "220 again\r\n").await)?,
                "AUTH" => {
                    let users = &self.nature.users;
                    let known = users.is_empty() || users.iter().any(|user| line.ends_with(user));
                    let usual = if known { "235 2.7.0 ok\r\n" } else { "535 5.7.8 no\r\n" };
                    go(Self::act(&mut stream, script, Stage::Auth, usual).await)?;
                }
                "HELO" => go(say(&mut stream, "250 g\r\n").await)?,
                "MAIL" => go(Self::act(&mut stream, script, Stage::Mail, "250 2.1.0 ok\r\n").await)?,
                "RCPT" => go(Self::act(&mut stream, script, Stage::Rcpt, "250 2.1.5 ok\r\n").await)?,
                "RSET" => go(Self::act(&mut stream, script, Stage::Rset, "250 2.0.0 ok\r\n").await)?,
                "DATA" => {
                    go(Self::act(&mut stream, script, Stage::Data, "354 go\r\n").await)?;
                    let refuses = script.iter().any(
                        |(stage, act)| matches!((stage, act), (Stage::Data, Do::Say(text)) if !text.starts_with("354")),
                    );
                    if !refuses {
                        self.body(&mut stream, script).await?;
                        go(Self::act(&mut stream, script, Stage::Dot, "250 2.0.0 queued\r\n").await)?;
                    }
                }
                "QUIT" => {
                    Self::act(&mut stream, script, Stage::Quit, "221 bye\r\n").await;
                    let _ = stream.shutdown().await;
                    return None;
                }
                _ => go(say(&mut stream, "500 what\r\n").await)?,
            }
        }
    }

    /// Reads a body as leniently as a careless server: any of the smuggling forms would end it too early.
    async fn body(&self, stream: &mut Line, script: &Script) -> Option<()> {
        let mut message = Vec::new();
        loop {
            let mut line = Vec::new();
            if !stream.read_until(b'\n', &mut line).await.is_ok_and(|octets| octets > 0) || !line.ends_with(b"\n") {
                self.seen.lock().unwrap().cut += 1;
                return None;
            }
            if script.iter().any(|(stage, _)| *stage == Stage::Body) {
                Self::act(stream, script, Stage::Body, "").await.then_some(())?;
            }
            let bare: Vec<u8> = line.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
            if bare == b"." {
                break;
            }
            message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        }
        let text = String::from_utf8_lossy(&message);
        let end = text.find(" +0000\r\n").expect("a trace field with a date") + 8;
        let mut seen = self.seen.lock().unwrap();
        seen.traces.push(text[..end].to_owned());
        let message = message.split_off(end);
        seen.messages.push(message);
        Some(())
    }
}

async fn say(stream: &mut Line, text: &str) -> bool {
    stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok()
}
