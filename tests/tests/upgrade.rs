//! The daemon dies, is replaced by a build with another program, or by one that cannot work: connections go on.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    fs,
    io::{ErrorKind, Write as _},
    net::{IpAddr, Shutdown, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use aya::{
    maps::{HashMap, MapData},
    programs::{SchedClassifier, TcAttachType, links::PinnedLink},
};
use redirect_common::maps::{LAYOUT, RESETS_PER_SECOND_MAX, names};
use redirect_ctl::dataplane::kernel::OBJECT;
use redirect_tests::{
    Family, Lab, Mode, Namespace, Pinboard, Product, SILENCE, binary,
    smtp::{Client, Manner, Server, port_25},
    tcp::{Listener, dial, hear, noise},
    wait_until, with_dataplane,
};

const SESSIONS: usize = 200;
const LIMIT: Duration = Duration::from_mins(2);
/// What a session grants: the machine is busy, and programs are loaded meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
const RELAY_PORT: u16 = 2599;
const BULK_PORT: u16 = 8080;

/// A router with a relay in its DMZ, to which the class `configured` is redirected.
struct Stage {
    product: Product,
    relay: Server,
    internet: Server,
    configuration: String,
    pinboard: Pinboard,
    lab: Lab,
}

impl Stage {
    fn new(mode: Mode, extra: &str) -> Self {
        let lab = Lab::new().unwrap();
        if !mode.offloads() {
            lab.offloads(&lab.client, "eth0", false).unwrap();
            lab.offloads(&lab.router, "lan0", false).unwrap();
        }
        let servers = Family::BOTH.map(|family| port_25(family.server()));
        let internet = Server::start(&lab.internet, "internet", &servers, Manner::Accepts).unwrap();
        let endpoints = Family::BOTH.map(|family| SocketAddr::new(family.gateway(), RELAY_PORT));
        let relay = Server::start(&lab.gateway, "dmz", &endpoints, Manner::Accepts).unwrap();
        let pinboard = Pinboard::new(&lab).unwrap();
        let configuration = with_dataplane(&mode.configuration(&lab), extra);
        let product = Product::start_on(&lab, &configuration, &pinboard, &[]).unwrap();
        let [v4, v6] = endpoints.map(|endpoint| endpoint.to_string());
        product.ctl(&lab, &["relay", "set", "dmz", "--ipv4", &v4, "--ipv6", &v6]).unwrap();
        let class = ["class", "set", "configured", "--action", "redirect", "--relay", "dmz"];
        product.ctl(&lab, &[&class[..], &["--on-relay-down", "block"]].concat()).unwrap();
        for (prefix, class) in [
            ("10.20.0.0/16", "configured"),
            ("fd00:20::/64", "configured"),
            ("10.20.0.20", "bypass"),
            ("fd00:20::20", "bypass"),
        ] {
            product.ctl(&lab, &["subscriber", "set", prefix, "--class", class]).unwrap();
        }
        Self { product, relay, internet, configuration, pinboard, lab }
    }

    fn restart(&mut self, arguments: &[&str]) {
        self.product = Product::start_on(&self.lab, &self.configuration, &self.pinboard, arguments).unwrap();
    }

    /// A start that fails; returns what it says.
    fn refused(&self, arguments: &[&str]) -> String {
        let mut command = self.pinboard.command(&binary("redirectd").unwrap());
        command.args(arguments).arg("--config").arg(self.lab.folder().join("redirectd.toml"));
        let finished = self.lab.router.run(&mut command, LIMIT).unwrap();
        assert!(!finished.status.success(), "{}", finished.stderr);
        finished.stderr
    }

    /// Right after a start.
    #[track_caller]
    fn is_well(&self) {
        let status = self.product.json(&self.lab, &["status"]).unwrap();
        let interface = &status["interfaces"][0]["status"];
        assert_eq!(interface["attached"], true, "{status:#}");
        assert_eq!(interface["restart_safe"], true, "{status:#}");
        assert_eq!(status["error"], serde_json::Value::Null, "{status:#}");
    }

    fn connect(&self, from: IpAddr, to: IpAddr) -> Result<Client> {
        connect(&self.lab.client, from, to)
    }

    /// Which program each link runs.
    fn programs(&self) -> Vec<(PathBuf, u32)> {
        let root = self.pinboard.seen_from_outside();
        let links = self.pinboard.files().unwrap().into_iter().filter(|file| file.starts_with(self.links()));
        let program = |file: PathBuf| {
            let link: aya::programs::links::FdLink = PinnedLink::from_pin(root.join(&file)).unwrap().into();
            let program = link.info().unwrap().program_id();
            (file, program)
        };
        links.map(program).collect()
    }

    fn links(&self) -> PathBuf {
        let root = self.pinboard.seen_from_outside();
        let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
        folders.map(PathBuf::from).find(|name| name.to_string_lossy().starts_with("links_")).unwrap()
    }

    fn maps(&self) -> PathBuf {
        self.pinboard.seen_from_outside().join(format!("maps_{LAYOUT}"))
    }
}

fn connect(host: &Namespace, from: IpAddr, to: IpAddr) -> Result<Client> {
    let client = Client::connect_within(host, (from, 0), port_25(to), PATIENCE)?;
    client.lose_patience(PATIENCE)?;
    Ok(client)
}

/// Writes a variant of the programs that came along; `change` returns how often it found what it changes.
fn variant(lab: &Lab, name: &str, change: impl FnOnce(&mut [u8]) -> usize) -> PathBuf {
    let mut object = OBJECT.to_vec();
    let found = change(&mut object);
    assert!(found > 0, "the object has nothing to change for {name}");
    let path = lab.folder().join(name);
    fs::write(&path, object).unwrap();
    path
}

/// Replaces the immediate operand of every comparison with it.
fn replace(object: &mut [u8], from: u32, to: u32) -> usize {
    /// `JEQ`, `JGT`, `JGE`, `JNE`, `JLT` and `JLE` with an immediate operand, of 64 and of 32 bits (RFC 9669, section 4.3).
    const COMPARISONS: [u8; 12] = [0x15, 0x25, 0x35, 0x55, 0xa5, 0xb5, 0x16, 0x26, 0x36, 0x56, 0xa6, 0xb6];
    let mut found = 0;
    // Sections with instructions are aligned to their size.
    for instruction in object.chunks_exact_mut(8) {
        if COMPARISONS.contains(&instruction[0]) && instruction[4..] == from.to_le_bytes() {
            instruction[4..].copy_from_slice(&to.to_le_bytes());
            found += 1;
        }
    }
    found
}

/// One reset less in a second: another program that decides alike. It compares with the least number that is too many.
fn another_program(lab: &Lab) -> PathBuf {
    variant(lab, "another.o", |object| replace(object, RESETS_PER_SECOND_MAX + 1, RESETS_PER_SECOND_MAX))
}

/// One that takes port 26 for SMTP: it loads, and decides wrongly.
fn broken_program(lab: &Lab) -> PathBuf {
    // In network byte order, as in the packet.
    let port = |port: u16| u32::from(u16::from_le_bytes(port.to_be_bytes()));
    variant(lab, "broken.o", |object| {
        // Of a word that holds both ports, it is the second half.
        replace(object, port(25), port(26)) + replace(object, port(25) << 16, port(26) << 16)
    })
}

/// Speaks now and then until told to stop; returns how often. Any failure is an error.
fn converse(mut client: Client, greeted_by: &str, stop: &AtomicBool, spoken: &AtomicUsize) -> Result<usize> {
    let greeting = client.hello()?;
    ensure!(greeting.lines[0].contains(greeted_by), "{greeting:?} is not of {greeted_by}");
    let mut number = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        if number.is_multiple_of(16) {
            let body = b"Subject: x\r\n\r\n0123456789abcdef\r\n";
            let reply = client.deliver("a@client.example", "b@internet.example", body)?;
            ensure!(reply.code == 250, "{reply:?}");
        } else {
            client.expect("NOOP", 250)?;
        }
        number += 1;
        spoken.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(200));
    }
    client.expect("QUIT", 221)?;
    Ok(number)
}

/// Bytes from a server that nobody redirects, every one looked at. Returns how many came.
fn bulk(client: &Namespace, internet: &Namespace, family: Family, stop: &AtomicBool) -> Result<usize> {
    let pattern: Vec<u8> = noise(0x0b5e).take(64 * 1024).collect();
    let server = SocketAddr::new(family.server(), BULK_PORT);
    let listener = Listener::open(internet, server)?;
    let mut down = dial(client, (family.bypass(), 0), server, PATIENCE)?;
    let mut up = listener.accept()?;
    down.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<usize> {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                up.write_all(&pattern)?;
                sent += pattern.len();
                // Leaves the CPUs to the others.
                thread::sleep(Duration::from_millis(5));
            }
            up.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let mut heard = 0;
        let end = loop {
            match hear(&mut down, &pattern) {
                Ok(()) => heard += pattern.len(),
                Err(error) => break error,
            }
        };
        let sent = sending.join().unwrap()?;
        ensure!(end.kind() == ErrorKind::UnexpectedEof && heard == sent, "{heard} of {sent} bytes, then {end}");
        Ok(heard)
    })
}

/// What goes on while daemons come and go.
struct Traffic {
    stop: AtomicBool,
    spoken: AtomicUsize,
    failed: AtomicUsize,
}

impl Traffic {
    /// Every session has something to say again and again, so a round is over soon.
    fn goes_on(&self) {
        let before = self.spoken.load(Ordering::Relaxed);
        wait_until("mail on its way", LIMIT, || {
            ensure!(self.failed.load(Ordering::Relaxed) == 0, "a session broke");
            Ok((self.spoken.load(Ordering::Relaxed) >= before + 2 * SESSIONS).then_some(()))
        })
        .unwrap();
    }
}

/// Lets 200 sessions with the relay, some that pass, and bulk transfers of bystanders run through `events`.
fn under_load(stage: &mut Stage, events: impl FnOnce(&mut Stage, &Traffic)) {
    let traffic = Traffic { stop: AtomicBool::new(false), spoken: AtomicUsize::new(0), failed: AtomicUsize::new(0) };
    let (client, internet) = (stage.lab.client.clone(), stage.lab.internet.clone());
    let Traffic { stop, spoken, failed } = &traffic;
    thread::scope(|scope| {
        let _stop = Stop(stop);
        let note = move |result: Result<usize>| {
            if result.is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            result
        };
        let session = |number: usize, passes: bool| {
            let family = Family::BOTH[number % 2];
            let (from, greeted_by) =
                if passes { (family.bypass(), "internet ") } else { (family.redirected(), "dmz ") };
            let client = &client;
            let start = move || {
                note(connect(client, from, family.server()).and_then(|c| converse(c, greeted_by, stop, spoken)))
            };
            thread::Builder::new().stack_size(256 * 1024).spawn_scoped(scope, start).unwrap()
        };
        let sessions: Vec<_> = (0..SESSIONS).map(|number| session(number, false)).collect();
        let passing: Vec<_> = (0..4).map(|number| session(number, true)).collect();
        let bystanders = Family::BOTH.map(|family| {
            let (client, internet) = (&client, &internet);
            scope.spawn(move || note(bulk(client, internet, family, stop)))
        });
        traffic.goes_on();
        events(stage, &traffic);
        traffic.goes_on();
        stop.store(true, Ordering::Relaxed);
        for ended in sessions.into_iter().chain(passing).chain(bystanders) {
            assert!(ended.join().unwrap().unwrap() > 0);
        }
    });
    // Nobody met anybody else than was to be met.
    let clients = Family::BOTH.map(Family::redirected);
    let strangers: Vec<_> = stage.relay.peers().into_iter().filter(|peer| !clients.contains(&peer.ip())).collect();
    assert_eq!(strangers, []);
    let bypass = Family::BOTH.map(Family::bypass);
    let strangers: Vec<_> = stage.internet.peers().into_iter().filter(|peer| !bypass.contains(&peer.ip())).collect();
    assert_eq!(strangers, []);
}

/// A test that fails ends its threads too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn nothing_breaks(mode: Mode) {
    let mut stage = Stage::new(mode, "");
    let [another, broken] = [another_program(&stage.lab), broken_program(&stage.lab)];
    let [another, broken] = [&another, &broken].map(|path| path.to_str().unwrap());
    under_load(&mut stage, |stage, traffic| {
        let first = stage.programs();
        assert!(first.len() >= 2, "{first:?}");
        stage.product.kill().unwrap();
        traffic.goes_on();
        // A connection that is opened while no daemon runs is redirected too.
        stage.connect(Family::V4.redirected(), Family::V4.server()).unwrap().hello().unwrap();
        assert_eq!(stage.programs(), first);
        stage.restart(&[]);
        stage.is_well();
        traffic.goes_on();

        // An upgrade.
        assert!(stage.product.stop().unwrap().success());
        assert!(stage.product.log().contains("the programs stay at work"), "{}", stage.product.log());
        traffic.goes_on();
        stage.restart(&["--object", another]);
        stage.is_well();
        let second = stage.programs();
        let links = |programs: &[(PathBuf, u32)]| programs.iter().map(|(link, _)| link.clone()).collect::<Vec<_>>();
        assert_eq!(links(&second), links(&first));
        assert!(first.iter().zip(&second).all(|(first, second)| first.1 != second.1), "{first:?} {second:?}");
        traffic.goes_on();

        // An upgrade that cannot work.
        stage.product.kill().unwrap();
        let refusal = stage.refused(&["--object", broken]);
        assert!(refusal.contains("fails its test"), "{refusal}");
        assert_eq!(stage.programs(), second);
        traffic.goes_on();
        stage.restart(&[]);
        stage.is_well();
    });
    let flows = stage.product.json(&stage.lab, &["status"]).unwrap()["reasons"]["no_flow_reject"].clone();
    assert_eq!(flows, serde_json::Value::Null, "{flows}");
}

#[test]
fn kills_and_upgrades_break_nothing_tc() {
    nothing_breaks(Mode::Tc);
}

#[test]
fn kills_and_upgrades_break_nothing_xdp() {
    nothing_breaks(Mode::Xdp);
}

#[test]
fn tables_of_another_size_get_the_flows_and_those_of_another_layout_do_not() {
    let mut stage = Stage::new(Mode::Tc, "flows_max = 4096");
    let mut sessions = Family::BOTH.map(|family| {
        let mut session = stage.connect(family.redirected(), family.server()).unwrap();
        session.hello().unwrap();
        session
    });
    let mut go_on = |v4: bool| {
        for (session, goes_on) in sessions.iter_mut().zip([v4, true]) {
            session.lose_patience(if goes_on { PATIENCE } else { SILENCE }).unwrap();
            assert_eq!(session.command("NOOP").is_ok(), goes_on);
        }
    };
    go_on(true);

    // Another capacity.
    assert!(stage.product.stop().unwrap().success());
    stage.configuration = stage.configuration.replace("flows_max = 4096", "flows_max = 8192");
    stage.restart(&[]);
    stage.is_well();
    assert!(stage.product.log().contains("copied=2"), "{}", stage.product.log());
    go_on(true);

    // A table whose values have another size in the place of ours: it must not be taken for it.
    assert!(stage.product.stop().unwrap().success());
    let path = stage.maps().join(names::FLOWS_V4);
    fs::remove_file(&path).unwrap();
    let foreign: HashMap<MapData, [u8; 12], [u8; 256]> = HashMap::create(16, 0).unwrap();
    foreign.pin(&path).unwrap();
    stage.restart(&[]);
    stage.is_well();
    assert!(stage.product.log().contains("of another layout"), "{}", stage.product.log());
    go_on(false);

    // All tables are of another layout: whoever upgrades is told how many connections that costs.
    assert!(stage.product.stop().unwrap().success());
    let old = stage.maps().with_file_name("maps_0");
    fs::rename(stage.maps(), &old).unwrap();
    stage.restart(&[]);
    stage.is_well();
    let log = stage.product.log();
    assert!(log.contains("flows_lost="), "{log}");
    assert!(!old.exists());
    // The new tables know the policy.
    stage.connect(Family::V4.redirected(), Family::V4.server()).unwrap().hello().unwrap();
}

#[test]
fn a_daemon_that_is_gone_for_long_is_missed_by_new_connections_only() {
    let mut stage = Stage::new(Mode::Tc, "daemon_timeout_s = 3");
    let class = ["class", "set", "configured", "--action", "redirect", "--relay", "dmz", "--on-daemon-down", "pass"];
    stage.product.ctl(&stage.lab, &class).unwrap();
    let greeting = |stage: &Stage, family: Family| {
        let mut client = stage.connect(family.redirected(), family.server()).unwrap();
        (client.hello().unwrap().lines[0].clone(), client)
    };
    let mut sessions = Family::BOTH.map(|family| {
        let (greeting, client) = greeting(&stage, family);
        assert!(greeting.starts_with("dmz "), "{greeting}");
        client
    });
    stage.product.kill().unwrap();
    for family in Family::BOTH {
        wait_until("connection that passes", LIMIT, || {
            Ok(greeting(&stage, family).0.starts_with("internet ").then_some(()))
        })
        .unwrap();
    }
    for session in &mut sessions {
        session.expect("NOOP", 250).unwrap();
    }
    stage.restart(&[]);
    stage.is_well();
    for (session, family) in sessions.iter_mut().zip(Family::BOTH) {
        session.expect("NOOP", 250).unwrap();
        assert!(greeting(&stage, family).0.starts_with("dmz "));
    }
    let status = stage.product.json(&stage.lab, &["status"]).unwrap();
    assert!(status["reasons"]["daemon_down_pass"]["packets"].as_u64().unwrap() >= 2, "{status:#}");
}

/// What the daemon may change on its host, and what is attached.
fn host(lab: &Lab) -> Vec<String> {
    let mut lines = Vec::new();
    let shown = |arguments: &[&str]| {
        let shown = lab.router.run(Command::new("ip").args(arguments), LIMIT).unwrap();
        shown.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for family in ["-4", "-6"] {
        lines.extend(shown(&[family, "rule"]));
        lines.extend(shown(&[family, "route", "show", "table", "all"]));
    }
    lines.extend(shown(&["-o", "link", "show", "lan0"]));
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = lab.router.enter(|| SchedClassifier::query_tcx("lan0", hook)).unwrap();
        lines.push(format!("{} programs", programs.len()));
    }
    for key in ["proxy_arp", "drop_gratuitous_arp", "rp_filter"] {
        let path = format!("/proc/sys/net/ipv4/conf/lan0/{key}");
        lines.push(lab.router.enter(|| fs::read_to_string(path)).unwrap());
    }
    lines
}

#[test]
fn uninstall_leaves_nothing() {
    let lab = Lab::new().unwrap();
    let pinboard = Pinboard::new(&lab).unwrap();
    let before = host(&lab);
    // Steered flows need rules and routes, foreign sources settings of the interface.
    let configuration = Mode::Steer.configuration(&lab).replace("role = ", "foreign_sources = true\nrole = ");
    let mut product = Product::start_on(&lab, &configuration, &pinboard, &[]).unwrap();
    let uninstall = |arguments: &[&str]| {
        let mut command = pinboard.command(&binary("redirect-ctl").unwrap());
        command.args(["uninstall", "--config"]).arg(lab.folder().join("redirectd.toml")).args(arguments);
        lab.router.run(&mut command, LIMIT).unwrap()
    };
    let refused = uninstall(&[]);
    assert!(!refused.status.success() && refused.stderr.contains("redirectd runs"), "{}", refused.stderr);
    assert_ne!(host(&lab), before);
    assert!(product.stop().unwrap().success());
    let left = host(&lab);
    assert!(left.iter().any(|line| line.contains("fwmark")) && left.contains(&"1 programs".to_owned()), "{left:#?}");
    assert_ne!(pinboard.files().unwrap(), [""; 0].map(PathBuf::from));

    let removed = uninstall(&["--purge"]);
    assert!(removed.status.success(), "{}", removed.stderr);
    assert_eq!(host(&lab), before);
    assert_eq!(pinboard.files().unwrap(), [""; 0].map(PathBuf::from));
    assert!(!pinboard.seen_from_outside().exists());
    let files: Vec<_> = fs::read_dir(lab.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!files.iter().any(|name| name.to_string_lossy().starts_with("redirect.db")), "{files:?}");
    // It is no error where there is nothing.
    assert!(uninstall(&["--purge"]).status.success());
}

#[test]
fn what_is_to_detach_and_what_has_vanished_leaves_no_pins() {
    let mut stage = Stage::new(Mode::Tc, "");
    assert!(stage.product.stop().unwrap().success());
    // The interface goes and another of its name comes.
    stage
        .lab
        .router
        .ip(&[
            "link set lan0 down",
            "link set lan0 name old0",
            "link add lan0 type veth peer name other0",
            "link set lan0 up",
            // Going down, the other has lost it.
            "address add fd00:20::1/64 dev lan0 nodad",
        ])
        .unwrap();
    stage.restart(&[]);
    stage.is_well();
    let files = stage.pinboard.files().unwrap();
    assert_eq!(files.iter().filter(|file| file.to_string_lossy().contains("gress")).count(), 2, "{files:?}");

    assert!(stage.product.stop().unwrap().success());
    stage.configuration = stage.configuration.replace("[dataplane]", "[dataplane]\non_exit = \"detach\"");
    stage.restart(&[]);
    assert!(stage.product.stop().unwrap().success());
    assert_eq!(stage.pinboard.files().unwrap(), [""; 0].map(PathBuf::from));
}

/// The tables outlive their network namespace, and what they say of it holds for no other.
#[test]
fn what_a_namespace_that_is_gone_has_left_steers_nothing_here() {
    let here = Lab::new().unwrap();
    let pinboard = Pinboard::new(&here).unwrap();
    let pins = |lab: &Lab| format!("pins = \"{}", lab.folder().display());
    let steers = |lab: &Lab| {
        let configuration = Mode::Steer.configuration(lab).replace(&pins(lab), &pins(&here));
        let start = || match Product::start_on(lab, &configuration, &pinboard, &[]) {
            // The kernel takes a namespace down in its own time.
            Err(error) if format!("{error:#}").contains("is a link of another network namespace") => Ok(None),
            started => started.map(Some),
        };
        let mut product = wait_until("the pins are free", LIMIT, start).unwrap();
        product.ctl(lab, &["subscriber", "set", "10.20.0.0/16", "--class", "configured"]).unwrap();
        let (subscriber, server) = (Family::V4.redirected(), Family::V4.server());
        let greeting = connect(&lab.client, subscriber, server).unwrap().hello().unwrap();
        assert!(greeting.lines[0].contains("relay.example.net"), "{greeting:?}");
        let status = product.json(lab, &["status"]).unwrap();
        assert!(status["reasons"]["steer_new"]["packets"].as_u64() > Some(0), "{status:#}");
        product.kill().unwrap();
    };
    steers(&Lab::new().unwrap());
    steers(&here);
}
