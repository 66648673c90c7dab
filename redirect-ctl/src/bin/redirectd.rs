//! `redirectd`: see `redirectd --help`.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_ctl::{
    cli::DaemonCli,
    config::{self, LogFormat, Settings},
    daemon,
    dataplane::kernel::{Capacities, KernelDataplane, OBJECT, Start, pins::Pins},
    host::Host,
    log::{Clock, Lines, Log, PlainFields},
    reconcile::task::monotonic_s,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

const BAD_CONFIGURATION: u8 = 2;

/// What is logged unless `RUST_LOG` says otherwise. Of types that Rust names, the kernel takes no BTF; the library warns of that at each load, with all
/// of the BTF, some 100 lines that nobody can do anything about. The programs need none in the kernel; what fails comes back as an error.
const LOG_FILTER: &str = "info,aya::bpf=error";

fn main() -> ExitCode {
    let args = DaemonCli::parse();
    let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let settings = match config::load(&args.config, &host_name) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, BAD_CONFIGURATION),
    };
    if args.check {
        return ExitCode::SUCCESS;
    }
    let log = match Log::start(io::stderr()) {
        Ok(log) => log,
        Err(error) => return fail(&error, 1),
    };
    set_up_log(settings.log, log.lines());
    raise_descriptor_limit(settings.relay.sessions_max);
    let result = run(settings, args.object.as_deref());
    // What is told last comes last.
    drop(log);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error, 1),
    }
}

#[tokio::main]
async fn run(settings: Settings, object: Option<&Path>) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let first = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.is_cancelled() {
                // The second signal: whoever sent it does not want to wait. The kernel releases what the process holds.
                std::process::exit(1);
            }
            first.cancel();
        }
    });
    let capacities =
        Capacities { flows_max: settings.dataplane.flows_max, subscribers_max: settings.dataplane.subscribers_max };
    let pins = Pins::open(&settings.dataplane.pins)?;
    if pins.is_none() {
        let pins = settings.dataplane.pins.display();
        tracing::warn!(%pins, "no BPF file system there: the programs end with the daemon; mount one with `mount -t bpf bpf /sys/fs/bpf`");
    }
    let other = object.map(fs::read).transpose().context("read the file of --object")?;
    let object = other.as_deref().unwrap_or(OBJECT);
    let start = Start { object, capacities, pins, on_exit: settings.dataplane.on_exit };
    let mut dataplane = KernelDataplane::start(start, monotonic_s())?;
    dataplane.report_events(settings.dataplane.events_per_second)?;
    dataplane.set_daemon_timeout(settings.dataplane.daemon_timeout_s)?;
    let host = Host::open(settings.routing, &settings.sysctl_notes(), monotonic_s())?;
    // On the heap: it holds every task of the daemon.
    Ok(Box::pin(daemon::run(settings, dataplane, Some(host), shutdown)).await?)
}

/// A session of the relay takes two descriptors. The soft limit is for programs that cannot do with more than 1,024; this one can.
fn raise_descriptor_limit(sessions_max: u32) {
    const DESCRIPTORS_PER_SESSION: u64 = 2;
    const OTHERS: u64 = 512;
    let wanted = u64::from(sessions_max) * DESCRIPTORS_PER_SESSION + OTHERS;
    let hard = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => hard,
        Err(error) => return tracing::warn!(%error, "cannot read the limit of file descriptors"),
    };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
    if hard < wanted {
        tracing::warn!(hard, wanted, "too few file descriptors for relay.sessions_max; raise LimitNOFILE or lower it");
    }
}

fn set_up_log(format: LogFormat, lines: Lines) {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|asked| !asked.is_empty());
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into());
    let filter = filter.parse_lossy(asked.as_deref().unwrap_or(LOG_FILTER));
    let colours = io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).with_timer(Clock).with_ansi(colours);
    match format {
        LogFormat::Text if colours => builder.init(),
        LogFormat::Text => builder.fmt_fields(PlainFields).init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn fail(error: &(impl std::fmt::Display + ?Sized), code: u8) -> ExitCode {
    // If even that cannot be said, the exit code says it.
    let _ = writeln!(io::stderr(), "redirectd: {error}");
    ExitCode::from(code)
}
