//! The stage of a relay: a lab with the relay in its router and a sink as its gateway.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use redirect_tests::{Daemon, Family, Lab, Mode, Product, postfix, wait_until};

use super::{
    authority::Authority,
    peers::{self, Peer},
    tls::Certificate,
    usage::{self, Usage},
};

/// Where everybody hands mail to.
pub(crate) const SINK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 25), 25);
/// Where the peers listen.
pub(crate) const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 1), 2526);
/// A server on the Internet, where nobody listens: a connection there is redirected to ours, or refused.
const INTERNET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 25);

/// Sessions that the sink and the relays take at a time.
pub(crate) const SESSIONS_MAX: u32 = 12_000;

const READY: Duration = Duration::from_secs(30);
/// For a queue of a second's mail to run empty.
const DRAINED: Duration = Duration::from_mins(1);
/// For what a relay does after its last reply.
const AFTERWARDS: Duration = Duration::from_millis(30);

/// What stands between the client and the sink.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// Nothing: the client dials the sink.
    Direct,
    Redirectd,
    /// Another build of it.
    Baseline(&'static Path),
    /// With STARTTLS.
    RedirectdTls,
    Peer(Peer),
}

impl Occupant {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Redirectd => "redirectd",
            Self::Baseline(_) => "baseline",
            Self::RedirectdTls => "redirectd_tls",
            Self::Peer(peer) => peer.name(),
        }
    }
}

pub(crate) struct Site {
    pub(crate) occupant: Occupant,
    relay: Relay,
    // Stopped by dropping it.
    _sink: Daemon,
    pub(crate) lab: Lab,
}

enum Relay {
    None,
    Product(Product),
    Peer(Running),
}

/// A peer's processes.
pub(crate) struct Running {
    pub(crate) daemon: Daemon,
    /// Who tells it where to hand mail to, if it has to ask.
    pub(crate) _authority: Option<Authority>,
    /// Where it keeps mail that it has said 250 for.
    pub(crate) queue: Option<PathBuf>,
}

/// Makes a site for each occupant.
pub(crate) fn set_up(occupants: &[Occupant]) -> Result<Vec<Site>> {
    let names: Vec<_> = occupants.iter().map(|occupant| occupant.name()).collect();
    eprintln!("setting up {}", names.join(", "));
    occupants.iter().map(|occupant| Site::new(*occupant)).collect()
}

impl Site {
    pub(crate) fn new(occupant: Occupant) -> Result<Self> {
        let set_up = || -> Result<Self> {
            let lab = Lab::new()?;
            for host in [&lab.client, &lab.router] {
                // A connection for each message uses up the ports of a minute in seconds.
                host.sysctl(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65535")])?;
            }
            let sink = sink(&lab)?;
            let relay = match occupant {
                Occupant::Direct => Relay::None,
                Occupant::Redirectd => Relay::Product(redirectd(&lab, &redirect_tests::binary("redirectd")?)?),
                Occupant::Baseline(program) => Relay::Product(redirectd(&lab, program)?),
                Occupant::RedirectdTls => {
                    let product = redirectd(&lab, &redirect_tests::binary("redirectd")?)?;
                    offer_tls(&lab, &product)?;
                    Relay::Product(product)
                }
                Occupant::Peer(peer) => Relay::Peer(peers::start(peer, &lab)?),
            };
            let site = Self { occupant, relay, _sink: sink, lab };
            site.wait_until_greeted()?;
            Ok(site)
        };
        set_up().with_context(|| format!("set {} up", occupant.name()))
    }

    /// Where the client connects to.
    pub(crate) const fn target(&self) -> SocketAddrV4 {
        match self.relay {
            Relay::None => SINK,
            Relay::Product(_) => INTERNET,
            Relay::Peer(_) => PEER,
        }
    }

    /// What the relay's processes have used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        match &self.relay {
            Relay::None => Ok(Usage::default()),
            Relay::Product(product) => usage::of(product.id()),
            Relay::Peer(running) => usage::of(running.daemon.id()),
        }
    }

    /// Waits until the relay has done all that it has said 250 for.
    pub(crate) fn settle(&self) -> Result<()> {
        if let Relay::Peer(Running { queue: Some(queue), .. }) = &self.relay {
            wait_until("empty queue", DRAINED, || {
                ensure!(peers::queued(queue, "deferred")? == 0, "Postfix could not hand mail on");
                let waiting = ["incoming", "active", "maildrop"].into_iter().map(|name| peers::queued(queue, name));
                Ok((waiting.sum::<Result<usize>>()? == 0).then_some(()))
            })?;
        }
        std::thread::sleep(AFTERWARDS);
        Ok(())
    }

    fn wait_until_greeted(&self) -> Result<()> {
        let target = self.target();
        wait_until(&format!("greeting from {target}"), READY, || {
            let line = self.lab.client.enter(|| -> std::io::Result<String> {
                let stream = TcpStream::connect_timeout(&target.into(), READY)?;
                stream.set_read_timeout(Some(READY))?;
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line)?;
                Ok(line)
            });
            Ok(line.is_ok_and(|line| line.starts_with("220 ")).then_some(()))
        })
    }
}

/// Postfix's smtp-sink, which forgets what it takes.
fn sink(lab: &Lab) -> Result<Daemon> {
    let mut command = postfix::program("smtp-sink")?;
    let sessions = SESSIONS_MAX.to_string();
    command.args(["-4", "-u", "nobody", "-h", "sink.example", "-m", &sessions, &SINK.to_string(), "4096"]);
    let mut daemon = lab.start(&lab.gateway, "sink", &mut command)?;
    daemon.wait_until_ready(READY, |_| {
        Ok(lab.gateway.enter(|| TcpStream::connect_timeout(&SINK.into(), READY)).is_ok())
    })?;
    Ok(daemon)
}

/// Ours as it is deployed, on a subscriber's interface that is software.
fn redirectd(lab: &Lab, program: &Path) -> Result<Product> {
    let configuration = Mode::Steer.configuration(lab);
    let configuration = configuration.replace("[relay]\n", &format!("[relay]\nsessions_max = {SESSIONS_MAX}\n"));
    let product = Product::start_program(lab, program, &configuration)?;
    product.ctl(lab, &["subscriber", "set", "10.20.0.0/16", "--class", "configured"])?;
    product.ctl(lab, &["gateway", "set", "default", "--address", &Family::V4.gateway().to_string(), "--port", "25"])?;
    Ok(product)
}

fn offer_tls(lab: &Lab, product: &Product) -> Result<()> {
    let Certificate { chain, key } = Certificate::new(lab.folder())?;
    let [chain, key] = [chain, key].map(|file| file.display().to_string());
    product.ctl(lab, &["certificate", "set", "relay", "--chain-file", &chain, "--key-file", &key])?;
    let tls = ["--tls", "offer", "--certificate", "relay"];
    let class = ["class", "set", "configured", "--action", "redirect", "--relay", "embedded"];
    product.ctl(lab, &[&class[..], &tls[..]].concat())?;
    Ok(())
}
