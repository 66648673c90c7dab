//! What concerns the relay's process as a whole: the resident memory of idle sessions, and what happens when it has no
//! descriptors left. The clients are another process, this program again.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use redirect_relay::{
    Certificate, ClientAddr, Directory, Identity, OriginalDst, Policy, Relay, Settings, Tls,
    route::{Routing, RoutingSpec},
    run,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpSocket, runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const ADDRESS: &str = "IDLE_CLIENTS_OF";
const CHAIN: &str = "IDLE_CLIENTS_TRUST";

/// Opened before the measurement begins.
const WARM: usize = 50;
const SESSIONS: usize = 10_000;
const TLS_SESSIONS: usize = 1_000;
/// What the product promises.
const PLAINTEXT_OCTETS_MAX: usize = 8 * 1024;
/// What TLS may add: rustls keeps the keys, the session's secrets and its buffers.
const TLS_OCTETS_MAX: usize = 20 * 1024;

struct Site(Arc<Policy>);

impl Directory for Site {
    async fn identify(&self, peer: SocketAddr, local: SocketAddr) -> Option<Identity> {
        Some(Identity {
            client: ClientAddr::new(peer),
            original: OriginalDst::new(local),
            class: "configured".into(),
            policy: Arc::clone(&self.0),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::new(Routing::build(RoutingSpec::default()).unwrap())
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

fn resident_octets() -> usize {
    let status = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = status.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// One reply, read octet by octet so that nothing is buffered.
fn reply(stream: &mut impl Read) -> String {
    let mut text = String::new();
    loop {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        text.push(octet[0].into());
        if text.ends_with("\r\n") && text.lines().next_back().unwrap().as_bytes()[3] == b' ' {
            return text;
        }
    }
}

/// The clients: for each number of sessions that it reads, it opens as many and says so. They end with it.
fn clients(address: &str, chain: Option<&str>) {
    let config = chain.map(|chain| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    });
    let mut sessions = Vec::new();
    for line in io::stdin().lines() {
        for _ in 0..line.unwrap().parse().unwrap() {
            let mut stream = TcpStream::connect(address).unwrap();
            reply(&mut stream);
            let Some(config) = &config else {
                stream.write_all(b"EHLO pc.example\r\n").unwrap();
                reply(&mut stream);
                sessions.push(stream);
                continue;
            };
            stream.write_all(b"STARTTLS\r\n").unwrap();
            reply(&mut stream);
            let name = ServerName::try_from("relay.example").unwrap();
            let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream);
            stream.write_all(b"EHLO pc.example\r\n").unwrap();
            reply(&mut stream);
            sessions.push(stream.sock);
        }
        io::stdout().write_all(b"open\n").unwrap();
    }
}

/// A relay with `policy`, and its clients.
struct Scene {
    runtime: runtime::Runtime,
    relay: Arc<Relay<Site>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Scene {
    fn new(policy: Policy, sessions_max: usize, chain: Option<&str>) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(1024).unwrap()
        });
        let mut child = Command::new(env::current_exe().unwrap())
            .env(ADDRESS, listener.local_addr().unwrap().to_string())
            .envs(chain.map(|chain| (CHAIN, chain)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut settings = Settings::new("relay.example");
        settings.sessions_max = sessions_max as u64;
        let relay = Arc::new(Relay::new(settings, Site(Arc::new(policy))));
        let shutdown = CancellationToken::new();
        let task = runtime.spawn(run(listener, Arc::clone(&relay), shutdown.clone()));
        Self { runtime, relay, shutdown, task, child, to, from }
    }

    fn ask_for(&mut self, sessions: usize) {
        writeln!(self.to, "{sessions}").unwrap();
    }

    /// Waits until those asked for are open.
    fn opened(&mut self) {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n", "the clients failed");
    }

    fn end(mut self) {
        drop(self.to);
        assert!(self.child.wait().unwrap().success());
        self.shutdown.cancel();
        self.runtime.block_on(self.task).unwrap();
    }
}

/// What each of `sessions` costs.
fn measure(policy: Policy, sessions: usize, chain: Option<&str>) -> usize {
    let mut scene = Scene::new(policy, sessions + WARM, chain);
    // What is made once is made before.
    scene.ask_for(WARM);
    scene.opened();
    let before = resident_octets();
    scene.ask_for(sessions);
    scene.opened();
    assert_eq!(scene.relay.counters().sessions_active, (sessions + WARM) as u64);
    let each = resident_octets().saturating_sub(before) / sessions;
    scene.end();
    each
}

fn limit_descriptors(soft: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= soft, "this test needs {soft} descriptors, and the hard limit is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec().try_into().unwrap())
            + Duration::from_micros(value.tv_usec().try_into().unwrap())
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Attack 49: who cannot be accepted waits in the listener's queue, the relay does not spin, and goes on afterwards.
fn attack_49_no_descriptors_left() {
    const FREE: u64 = 3;
    let mut scene = Scene::new(Policy::default(), 100, None);
    scene.ask_for(1);
    scene.opened();
    let used = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    limit_descriptors(used + FREE);
    scene.ask_for(10);
    let (begun, worked) = (Instant::now(), cpu_time());
    while begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // The limit is one of numbers, and some below it were free before.
    assert!(scene.relay.counters().sessions_active < 11);
    let share = cpu_time().saturating_sub(worked).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "spinning took {share} of a CPU");
    limit_descriptors(used + 100);
    scene.opened();
    assert_eq!(scene.relay.counters().sessions_active, 11);
    scene.end();
}

fn main() {
    limit_descriptors(SESSIONS as u64 + 200);
    if let Ok(address) = env::var(ADDRESS) {
        return clients(&address, env::var(CHAIN).ok().as_deref());
    }
    let plaintext = measure(Policy::default(), SESSIONS, None);
    let made = rcgen::generate_simple_self_signed(["relay.example".into()]).unwrap();
    let chain = made.cert.pem();
    let certificate = Certificate::from_pem(chain.as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let tls = measure(Policy { tls: Tls::Offer(certificate), ..Policy::default() }, TLS_SESSIONS, Some(&chain));
    let report = format!("an idle session: {plaintext} octets resident in clear, {tls} under TLS\n");
    io::stdout().write_all(report.as_bytes()).unwrap();
    assert!(plaintext <= PLAINTEXT_OCTETS_MAX, "{plaintext}");
    assert!(tls <= TLS_OCTETS_MAX, "{tls}");
    attack_49_no_descriptors_left();
}
