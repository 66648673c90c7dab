//! Flows that are steered to a socket of the router: the embedded relay's, and an unmodified relay's that knows nothing of us.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    socket::{getsockopt, sockopt},
};
use redirect_ctl::host::adopt;
use redirect_tests::{
    Daemon, Family, Lab, Product, SILENCE, configuration,
    smtp::{Client, Manner, Server, port_25},
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A relay without a word about us in it, run as an ordinary user. It greets with both ends of the connection as its socket knows them, and
/// sends every line back.
const RELAY: &str = "
import socket, sys, threading
def end(address):
    return '[%s]:%d' % address[:2] if ':' in address[0] else '%s:%d' % address[:2]
def serve(connection, peer):
    connection.sendall(('220 relay %s %s\\r\\n' % (end(peer), end(connection.getsockname()))).encode())
    for line in connection.makefile('rb'):
        if line == b'QUIT\\r\\n':
            connection.sendall(b'221 bye\\r\\n')
            break
        connection.sendall(b'250 %d\\r\\n' % len(line))
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
def accept(listener):
    while True:
        threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
threads = []
for argument in sys.argv[1:]:
    host, port = argument.rsplit(':', 1)
    listener = socket.socket(socket.AF_INET6 if '[' in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host.strip('[]'), int(port)))
    listener.listen()
    threads.append(threading.Thread(target=accept, args=(listener,), daemon=True))
for thread in threads:
    thread.start()
print('listens', flush=True)
for thread in threads:
    thread.join()
";

const RELAY_USER: u32 = 65_533;

/// A router that steers the subscribers' flows to a relay beside it.
struct Stage {
    product: Product,
    relay: Daemon,
    internet: Server,
    before: Vec<String>,
    endpoints: [SocketAddr; 2],
    lab: Lab,
}

impl Stage {
    /// The relay listens on an address of each family.
    fn new(endpoints: [&str; 2]) -> Self {
        let lab = Lab::new().unwrap();
        let servers = Family::BOTH.map(|family| [family.server(), family.other_server()].map(port_25)).concat();
        let internet = Server::start(&lab.internet, "internet", &servers, Manner::Accepts).unwrap();
        let before = routing(&lab);
        let relay = start_relay(&lab, endpoints);
        let product = Product::start(&lab, &configuration(lab.folder(), "tc")).unwrap();
        let [v4, v6] = endpoints;
        product.ctl(&lab, &["relay", "set", "beside", "--ipv4", v4, "--ipv6", v6, "--delivery", "steer"]).unwrap();
        let class =
            ["class", "set", "steered", "--action", "redirect", "--relay", "beside", "--on-relay-down", "block"];
        product.ctl(&lab, &class).unwrap();
        for prefix in ["10.20.0.0/16", "fd00:20::/64"] {
            product.ctl(&lab, &["subscriber", "set", prefix, "--class", "steered"]).unwrap();
        }
        Self { product, relay, internet, before, endpoints: endpoints.map(|endpoint| endpoint.parse().unwrap()), lab }
    }

    fn connect(&self, from: (IpAddr, u16), to: IpAddr) -> io::Result<Client> {
        Client::connect_within(&self.lab.client, from, port_25(to), SILENCE)
    }

    /// Connects, and checks that the relay knows both ends as the client does.
    #[track_caller]
    fn greeted(&self, from: (IpAddr, u16), to: IpAddr) -> Client {
        let mut client = self.connect(from, to).unwrap();
        let greeting = client.reply().unwrap();
        let expected = format!("relay {} {}", client.local_addr().unwrap(), port_25(to));
        assert_eq!((greeting.code, greeting.lines), (220, vec![expected]));
        client
    }

    /// Whether the relay's sockets may answer in the name of others.
    fn transparent(&self) -> Vec<bool> {
        self.lab.router.enter(|| {
            let sockets = self.endpoints.iter().flat_map(|endpoint| {
                let listeners = adopt::listeners(*endpoint).unwrap();
                listeners.into_iter().map(|listener| adopt::take(*endpoint, listener).unwrap())
            });
            sockets.map(|socket| getsockopt(&socket, sockopt::IpTransparent).unwrap()).collect()
        })
    }

    fn packets(&self, reason: &str) -> u64 {
        let status = self.product.json(&self.lab, &["status"]).unwrap();
        status["reasons"][reason]["packets"].as_u64().unwrap_or(0)
    }
}

fn start_relay(lab: &Lab, endpoints: [&str; 2]) -> Daemon {
    let mut command = Command::new("python3");
    command.args(["-c", RELAY]).args(endpoints).uid(RELAY_USER).gid(RELAY_USER).current_dir("/");
    let mut relay = lab.start(&lab.router, "relay", &mut command).unwrap();
    relay.wait_until_ready(LIMIT, |relay| Ok(relay.log().contains("listens"))).unwrap();
    relay
}

/// Rules and routes of the router.
fn routing(lab: &Lab) -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for what in [&["rule"][..], &["route", "show", "table", "all"]] {
            let shown = lab.router.run(Command::new("ip").arg(family).args(what), LIMIT).unwrap();
            lines.extend(shown.stdout.lines().map(str::to_owned));
        }
    }
    lines
}

const LOOPBACK: [&str; 2] = ["127.0.0.1:2526", "[::1]:2526"];

#[test]
fn an_unmodified_relay_sees_both_ends_as_the_client_does() {
    for endpoints in [LOOPBACK, ["10.20.0.1:2526", "[fd00:20::1]:2526"]] {
        let mut stage = Stage::new(endpoints);
        for family in Family::BOTH {
            let mut client = stage.greeted((family.redirected(), 0), family.server());
            client.expect("QUIT", 221).unwrap();
        }
        assert_eq!(stage.internet.peers(), []);
        assert_eq!(stage.packets("steer_new"), 2);
        assert_eq!(stage.packets("flow_new"), 0, "nothing is rewritten");
        assert_eq!(stage.transparent(), [true, true]);
        let added: Vec<_> = routing(&stage.lab).into_iter().filter(|line| !stage.before.contains(line)).collect();
        assert_eq!(added.iter().filter(|line| line.contains("proto 125")).count(), 4, "{added:?}");

        assert!(stage.product.stop().unwrap().success());
        assert_eq!(routing(&stage.lab), stage.before, "{}", stage.product.log());
        assert_eq!(stage.transparent(), [false, false]);
        for family in Family::BOTH {
            let greeting = stage.connect((family.redirected(), 0), family.server()).unwrap().reply().unwrap();
            assert!(greeting.lines[0].starts_with("internet "), "{greeting:?}");
        }
    }
}

#[test]
fn one_port_to_two_servers() {
    let stage = Stage::new(LOOPBACK);
    for family in Family::BOTH {
        let from = (family.redirected(), 40_000);
        let clients = [family.server(), family.other_server()].map(|to| stage.greeted(from, to));
        for mut client in clients {
            // More than the windows hold, and segments that the kernel has put together.
            let line = [&b"x".repeat(1 << 20)[..], b"\r\n"].concat();
            client.send(&line).unwrap();
            assert_eq!(client.reply().unwrap().lines, [line.len().to_string()]);
            client.expect("QUIT", 221).unwrap();
        }
    }
}

#[test]
fn a_port_is_used_again_while_the_relay_waits() {
    let stage = Stage::new(LOOPBACK);
    for family in Family::BOTH {
        let from = (family.redirected(), 40_001);
        for _ in 0..3 {
            let mut client = stage.greeted(from, family.server());
            client.expect("QUIT", 221).unwrap();
            // The relay closes first, so TIME_WAIT is its.
            assert_eq!(client.drain().unwrap(), b"");
            drop(client);
            let waiting = || {
                let mut command = Command::new("ss");
                command.args(["-Htan", "state", "time-wait", "sport", "=", ":25"]);
                stage.lab.router.run(&mut command, LIMIT)
            };
            wait_until("TIME_WAIT", LIMIT, || Ok(waiting()?.stdout.contains(":40001").then_some(()))).unwrap();
        }
    }
}

#[test]
fn a_relay_that_starts_again_is_found_again() {
    let mut stage = Stage::new(LOOPBACK);
    stage.greeted((Family::V4.redirected(), 0), Family::V4.server());
    stage.relay.stop(Signal::SIGTERM).unwrap();
    // Nothing of us holds its port.
    stage.relay = start_relay(&stage.lab, LOOPBACK);
    for family in Family::BOTH {
        let from = (family.redirected(), 0);
        let mut client =
            wait_until("relay that is steered to", LIMIT, || Ok(stage.connect(from, family.server()).ok())).unwrap();
        assert!(client.reply().unwrap().lines[0].starts_with("relay "));
    }

    stage.relay.stop(Signal::SIGTERM).unwrap();
    // Its class blocks while it is away.
    let from = (Family::V4.redirected(), 0);
    let silence = || stage.connect(from, Family::V4.server()).err().map(|error| error.kind());
    wait_until("end of the relay noticed", LIMIT, || Ok((silence() == Some(io::ErrorKind::TimedOut)).then_some(())))
        .unwrap();
    assert!(
        stage.product.json(&stage.lab, &["status"]).unwrap()["error"]
            .to_string()
            .contains("nothing listens on 127.0.0.1:2526")
    );
    assert_eq!(stage.internet.peers(), []);
}

#[test]
fn a_change_of_class_ends_what_is_open_at_a_relay_that_says_nothing() {
    let stage = Stage::new(LOOPBACK);
    let ctl = |words: &[&str]| stage.product.ctl(&stage.lab, words).unwrap();
    let connected = || {
        let mut command = Command::new("ss");
        command.args(["-Htn", "state", "established", "( sport = :25 or sport = :2526 )"]);
        stage.lab.router.run(&mut command, LIMIT)
    };
    ctl(&[
        "relay",
        "set",
        "routed",
        "--ipv4",
        "10.20.0.1:2526",
        "--ipv6",
        "[fd00:20::1]:2526",
        "--delivery",
        "rewrite",
    ]);
    ctl(&["class", "set", "rewritten", "--action", "redirect", "--relay", "routed", "--on-relay-down", "block"]);
    let _routed = start_relay(&stage.lab, ["10.20.0.1:2526", "[fd00:20::1]:2526"]);
    for class in ["steered", "rewritten"] {
        for family in Family::BOTH {
            let from = family.redirected();
            ctl(&["subscriber", "set", &from.to_string(), "--class", class]);
            let mut client = wait_until("relay", LIMIT, || Ok(stage.connect((from, 0), family.server()).ok())).unwrap();
            assert!(client.reply().unwrap().lines[0].starts_with("relay "));
            // The client's kernel acknowledges the greeting, and speaks no more.
            thread::sleep(Duration::from_millis(500));
            ctl(&["subscriber", "set", &from.to_string(), "--class", "blocked"]);
            assert_eq!(client.reply().map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset), "{class}");
            wait_until("end of the connection", LIMIT, || {
                Ok((!connected()?.stdout.contains(&from.to_string())).then_some(()))
            })
            .unwrap();
            // The listener is none that could have been taken for it.
            ctl(&["subscriber", "set", &from.to_string(), "--class", class]);
            assert!(stage.connect((from, 0), family.server()).unwrap().reply().is_ok());
        }
    }
}

#[test]
fn a_session_outlives_the_daemon() {
    let mut stage = Stage::new(LOOPBACK);
    let mut sessions = Family::BOTH.map(|family| (family, stage.greeted((family.redirected(), 0), family.server())));
    stage.product.kill().unwrap();
    for (family, session) in &mut sessions {
        session.expect("NOOP", 250).unwrap();
        // New ones go where they were meant to go.
        let greeting = stage.connect((family.redirected(), 0), family.server()).unwrap().reply().unwrap();
        assert!(greeting.lines[0].starts_with("internet "), "{greeting:?}");
    }
    stage.product = Product::start(&stage.lab, &configuration(stage.lab.folder(), "tc")).unwrap();
    for (family, session) in &mut sessions {
        session.expect("NOOP", 250).unwrap();
        stage.greeted((family.redirected(), 0), family.server());
        session.expect("QUIT", 221).unwrap();
    }
    assert!(stage.product.stop().unwrap().success());
    assert_eq!(routing(&stage.lab), stage.before);
}
