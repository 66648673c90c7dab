//! A daemon on the model, and ways to talk to it.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redirect_ctl::{
    api::client::Client,
    commands::{self, Env},
    config::{AccessSettings, DataplaneSettings, HealthSettings, LogFormat, RelaySettings, Settings},
    daemon,
    dataplane::{Hook, OnExit, Role, model::ModelDataplane},
    desired::{Delivery, Interface, Source},
    host::Numbers,
    subscribers::Priorities,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) settings: Settings,
    pub(crate) model: ModelDataplane,
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), daemon::Error>>,
}

/// Settings as no file may give them: everything in a directory of the test, the relay on loopback.
pub(crate) fn settings(dir: &TempDir) -> Settings {
    Settings {
        file: PathBuf::from("/etc/redirect/test.toml"),
        sockets: vec![dir.path().join("api.sock")],
        access: AccessSettings::default(),
        store: dir.path().join("redirect.db"),
        dataplane: DataplaneSettings {
            flows_max: 1_024,
            subscribers_max: 1_000,
            events_per_second: 1_000,
            pins: dir.path().join("pins"),
            on_exit: OnExit::Keep,
            daemon_timeout_s: 30,
        },
        priorities: Priorities::default(),
        relay: RelaySettings {
            hostname: "relay.example.net".to_owned(),
            ipv4: None,
            ipv6: None,
            delivery: Delivery::Auto,
            message_size_max_bytes: 1 << 20,
            sessions_max: 100,
            connect_timeout: Duration::from_secs(2),
            gateway_probe_interval: Some(Duration::from_secs(30)),
        },
        // Faster than any file may say, but in the proportions of the default.
        health: HealthSettings {
            interval: Some(Duration::from_millis(100)),
            timeout: Duration::from_millis(500),
            down_after: 3,
            up_after: 2,
        },
        routing: Numbers::default(),
        interfaces: vec![interface("lan0")],
        log: LogFormat::Text,
    }
}

pub(crate) fn interface(name: &str) -> Interface {
    Interface {
        name: name.parse().unwrap(),
        role: Role::Subscriber,
        hook: Hook::Auto,
        foreign_sources: false,
        source: Source::File,
    }
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    /// Starts a daemon after `prepare` had its way with settings and model; returns when the API answers.
    pub(crate) async fn with(prepare: impl FnOnce(&mut Settings, &ModelDataplane)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut settings = settings(&dir);
        let model = ModelDataplane::default();
        prepare(&mut settings, &model);
        Self::launch(dir, settings, model).await
    }

    /// Starts a daemon on a directory that may have a history.
    pub(crate) async fn launch_on(dir: TempDir, settings: impl FnOnce(&TempDir) -> Settings) -> Self {
        let settings = settings(&dir);
        Self::launch(dir, settings, ModelDataplane::default()).await
    }

    async fn launch(dir: TempDir, settings: Settings, model: ModelDataplane) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(daemon::run(settings.clone(), model.clone(), None, shutdown.clone()));
        let client = Client::new(&settings.sockets[0], PATIENCE);
        let lab = Self { dir, settings, model, client, shutdown, task };
        eventually("the API answers", || async { lab.client.status().await.is_ok() || lab.task.is_finished() }).await;
        assert!(!lab.task.is_finished(), "the daemon ended: {:?}", lab.task.await);
        lab
    }

    /// Stops the daemon in order.
    pub(crate) async fn stop(self) -> (TempDir, Settings) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        (self.dir, self.settings)
    }

    /// Stops the daemon and starts it again on the same files and an empty kernel.
    pub(crate) async fn restart(self, prepare: impl FnOnce(&mut Settings)) -> Self {
        let (dir, mut settings) = self.stop().await;
        prepare(&mut settings);
        Self::launch(dir, settings, ModelDataplane::default()).await
    }

    pub(crate) async fn request(&self, method: &str, target: &str, body: Option<&str>) -> Answer {
        let headers = if body.is_some() { "Content-Type: application/json\r\n" } else { "" };
        self.raw(method, target, headers, body.unwrap_or_default().as_bytes()).await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.request("GET", target, None).await
    }

    pub(crate) async fn put(&self, target: &str, body: &str) -> Answer {
        self.request("PUT", target, Some(body)).await
    }

    pub(crate) async fn delete(&self, target: &str) -> Answer {
        self.request("DELETE", target, None).await
    }

    /// A request written by hand, so that nothing between the test and the daemon tidies it up.
    pub(crate) async fn raw(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(&self.settings.sockets[0]).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // A daemon that refuses early does not read to the end.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer)
    }

    /// Runs `redirect-ctl` in process against this daemon.
    pub(crate) async fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_with(args, "").await
    }

    /// The same with something on its standard input.
    pub(crate) async fn ctl_with(&self, args: &[&str], stdin: &str) -> Output {
        run_ctl(&format!("unix://{}", self.settings.sockets[0].display()), args, stdin).await
    }

    pub(crate) async fn post(&self, target: &str, body: &str) -> Answer {
        self.request("POST", target, Some(body)).await
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), text: body.to_owned() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.text);
        self
    }

    #[track_caller]
    pub(crate) fn expect_either(self, one: u16, other: u16) -> Self {
        assert!(self.status == one || self.status == other, "{}\n{}", self.head, self.text);
        self
    }

    /// A problem with this code and this pointer.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str, pointer: Option<&str>) {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:redirect:problem:{code}"));
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        match pointer {
            Some(pointer) => assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}"),
            None => assert_eq!(problem.get("errors"), None, "{problem}"),
        }
    }
}

/// What the entity tag says.
pub(crate) fn revision_of(answer: &Answer) -> u64 {
    answer.header("etag").unwrap().trim_matches('"').parse().unwrap()
}

pub(crate) struct Output {
    pub(crate) code: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) async fn ctl(host: &str, args: &[&str]) -> Output {
    run_ctl(host, args, "").await
}

async fn run_ctl(host: &str, args: &[&str], stdin: &str) -> Output {
    let args: Vec<String> = std::iter::once("redirect-ctl").chain(args.iter().copied()).map(str::to_owned).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let getenv = |name: &str| (name == "REDIRECT_HOST").then(|| host.to_owned());
    let code = commands::run(
        &mut Env {
            stdout: &mut stdout,
            stderr: &mut stderr,
            stdin: &mut stdin.as_bytes(),
            getenv: &getenv,
            is_terminal: false,
            progress: false,
        },
        &args,
    )
    .await;
    Output { code, stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

/// Waits until something holds, and fails when it does not in time.
#[track_caller]
pub(crate) fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        while !holds().await {
            assert!(start.elapsed() < PATIENCE, "{place}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Runs an ignored test of this binary as a process of its own, which is to be killed; and the lines that it says. It finds the store's path in
/// `REDIRECT_TEST_STORE`.
pub(crate) fn victim(test: &str, store: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("REDIRECT_TEST_STORE", store)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines)
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
