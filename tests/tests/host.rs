//! What the daemon changes on its host: entries of the kernel's routing, sysctls, options of a relay's sockets. The kernel's own tools and
//! files say what became of it.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use redirect_ctl::{
    dataplane::Connection,
    host::{
        Host, Numbers, adopt,
        routing::{Entry, Error, Family, Path as RoutePath, Routing},
        sysctl::Sysctls,
    },
};
use redirect_tests::{Daemon, Lab, Namespace, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
const PROTOCOL: u8 = 125;

/// Rules and routes of both families that are not the kernel's own, as `ip` shows them.
fn routing_of(host: &Namespace) -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for what in [&["rule"][..], &["route", "show", "table", "all"]] {
            let shown = host.run(Command::new("ip").arg(family).args(what), LIMIT).unwrap();
            assert!(shown.status.success(), "{}", shown.stderr);
            let own = |line: &&str| {
                !["proto kernel", "lookup local", "lookup main", "lookup default"]
                    .iter()
                    .any(|words| line.contains(words))
            };
            lines.extend(
                shown.stdout.lines().filter(own).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")),
            );
        }
    }
    lines
}

fn index_of(host: &Namespace, device: &str) -> u32 {
    host.enter(|| nix::net::if_::if_nametoindex(device)).unwrap()
}

/// One of each kind.
fn entries(lan: u32) -> BTreeSet<Entry> {
    let steering = Family::BOTH.map(|family| {
        [
            Entry::LocalRoute { family, table: 2525 },
            Entry::MarkRule { family, mark: 0x2500_0000, mask: 0xff00_0000, table: 2525, priority: 25 },
        ]
    });
    let guest = Ipv4Addr::new(192, 168, 77, 5);
    let answers = [
        Entry::HostRoute { address: guest, device: lan, table: 2526 },
        Entry::PortRule { from: None, port: 2525, table: 2526, priority: 25 },
        Entry::PortRule { from: Some(Ipv4Addr::new(192, 0, 2, 25)), port: 25, table: 2526, priority: 25 },
    ];
    steering.into_iter().flatten().chain(answers).collect()
}

fn converge(routing: &mut Routing, wanted: &BTreeSet<Entry>) -> Result<(), Error> {
    routing.add_missing(wanted)?;
    routing.remove_others(wanted)
}

#[test]
fn rules_and_routes_come_and_go() {
    let lab = Lab::new().unwrap();
    let lan = index_of(&lab.router, "lan0");
    // Somebody else's, with the same number even, in another form.
    lab.router
        .ip(&[
            "rule add fwmark 0x25000000/0xff000000 lookup 100 priority 24",
            "rule add from 10.20.0.0/16 lookup 100 priority 26 protocol 125",
            "route add default via 203.0.113.10 protocol 125",
            "route add 192.168.77.6/32 dev lan0 table 100",
        ])
        .unwrap();
    let before = routing_of(&lab.router);
    assert_eq!(before.len(), 4, "{before:?}");

    let wanted = entries(lan);
    let mut routing = lab.router.enter(|| Routing::open(PROTOCOL)).unwrap();
    assert_eq!(routing.entries().unwrap(), BTreeSet::new());
    converge(&mut routing, &wanted).unwrap();
    let mut added = routing_of(&lab.router);
    added.retain(|line| !before.contains(line));
    assert_eq!(
        added,
        [
            "25: from all fwmark 0x25000000/0xff000000 lookup 2525 proto 125",
            "25: from all iif lo ipproto tcp sport 2525 lookup 2526 proto 125",
            "25: from 192.0.2.25 ipproto tcp sport 25 lookup 2526 proto 125",
            "local default dev lo table 2525 proto 125 scope host",
            "192.168.77.5 dev lan0 table 2526 proto 125 scope link",
            "25: from all fwmark 0x25000000/0xff000000 lookup 2525 proto 125",
            "local default dev lo table 2525 proto 125 metric 1024 pref medium",
        ]
    );
    assert_eq!(routing.entries().unwrap(), wanted);
    converge(&mut routing, &wanted).unwrap();
    assert_eq!(routing_of(&lab.router).len(), before.len() + added.len(), "the second time nothing happens");

    // Another daemon finds what a crashed one left, whatever numbers that had, and repairs what somebody removed.
    lab.router.ip(&["rule del priority 25 fwmark 0x25000000/0xff000000"]).unwrap();
    let mut later = lab.router.enter(|| Routing::open(PROTOCOL)).unwrap();
    assert_eq!(later.entries().unwrap().len(), wanted.len() - 1);
    converge(&mut later, &wanted).unwrap();
    assert_eq!(later.entries().unwrap(), wanted);
    let elsewhere = BTreeSet::from([Entry::LocalRoute { family: Family::V4, table: 2527 }]);
    converge(&mut later, &elsewhere).unwrap();
    assert_eq!(later.entries().unwrap(), elsewhere);

    converge(&mut later, &BTreeSet::new()).unwrap();
    assert_eq!(routing_of(&lab.router), before);
    // What is gone already may go again.
    for entry in &wanted {
        later.remove(entry).unwrap();
    }
}

#[test]
fn what_others_have_made_is_in_the_way() {
    let lab = Lab::new().unwrap();
    let lan = index_of(&lab.router, "lan0");
    lab.router
        .ip(&["route add local default dev lo table 2525", "route add 192.168.77.5/32 dev lan0 table 2526"])
        .unwrap();
    let before = routing_of(&lab.router);
    let mut routing = lab.router.enter(|| Routing::open(PROTOCOL)).unwrap();
    let mut taken = 0;
    for entry in entries(lan) {
        match routing.add(&entry) {
            Ok(()) => routing.remove(&entry).unwrap(),
            Err(Error::Taken { entry: refused }) => {
                assert_eq!(refused, entry);
                taken += 1;
            }
            Err(other) => panic!("{entry}: {other}"),
        }
    }
    assert_eq!(taken, 2);
    assert_eq!(routing_of(&lab.router), before);

    // One that fails holds no other one up.
    assert!(matches!(converge(&mut routing, &entries(lan)), Err(Error::Taken { .. })));
    assert_eq!(routing.entries().unwrap().len(), entries(lan).len() - 2);
    let nowhere = Entry::HostRoute { address: Ipv4Addr::LOCALHOST, device: 4711, table: 2526 };
    assert!(matches!(routing.add(&nowhere), Err(Error::Device { .. })));
}

#[test]
fn the_kernel_tells_paths_and_neighbours() {
    let lab = Lab::new().unwrap();
    let [lan, wan] = ["lan0", "wan0"].map(|device| index_of(&lab.router, device));
    lab.router
        .ip(&[
            "route add 198.51.100.0/24 via 203.0.113.10",
            "route add prohibit 198.51.101.0/24",
            "route add blackhole 198.51.102.0/24",
            "route add unreachable 198.51.103.0/24",
            "route add 198.51.104.0/24 nexthop via 203.0.113.10 nexthop via 203.0.113.11",
        ])
        .unwrap();
    let mut routing = lab.router.enter(|| Routing::open(PROTOCOL)).unwrap();
    let device = |index, prefix_len| RoutePath::Device { index, prefix_len };
    let cases = [
        ("10.20.7.7", device(lan, 16)),
        ("203.0.113.99", device(wan, 24)),
        ("198.51.100.1", device(wan, 24)),
        ("198.51.104.1", device(wan, 24)),
        ("10.20.0.1", RoutePath::NotOneHost),
        ("10.20.255.255", RoutePath::NotOneHost),
        ("127.0.0.1", RoutePath::NotOneHost),
        ("198.51.101.1", RoutePath::NotOneHost),
        ("198.51.102.1", RoutePath::NotOneHost),
        ("198.51.103.1", RoutePath::NotOneHost),
        ("192.168.77.5", RoutePath::None),
    ];
    for (address, expected) in cases {
        assert_eq!(routing.path(address.parse().unwrap()).unwrap(), expected, "{address}");
    }
    lab.router.ip(&["route add default via 203.0.113.10"]).unwrap();
    assert_eq!(routing.path(Ipv4Addr::new(192, 168, 77, 5)).unwrap(), device(wan, 0));
    for (address, own) in [
        ("10.20.0.1", true),
        ("127.0.0.1", true),
        ("10.20.0.10", false),
        ("198.51.101.1", false),
        ("fd00:20::1", true),
        ("::1", true),
        ("fd00:20::10", false),
        ("2001:db8:99::1", false),
    ] {
        assert_eq!(routing.is_own(address.parse().unwrap()).unwrap(), own, "{address}");
    }

    let client = Ipv4Addr::new(10, 20, 0, 10);
    assert_eq!(routing.neighbour(client, lan).unwrap(), None);
    let speak = |to: Ipv4Addr| {
        lab.router.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"x", (to, 9)).unwrap();
        });
    };
    speak(client);
    let neighbour = wait_until("answer to ARP", LIMIT, || {
        Ok(routing.neighbour(client, lan)?.filter(|neighbour| neighbour.answers))
    });
    assert!(neighbour.unwrap().idle < LIMIT);
    assert_eq!(routing.neighbour(client, wan).unwrap(), None);
    let nobody = Ipv4Addr::new(10, 20, 9, 9);
    speak(nobody);
    assert!(!routing.neighbour(nobody, lan).unwrap().unwrap().answers);
}

/// What foreign sources change of a device.
fn settings(host: &Namespace, device: &str) -> [String; 3] {
    host.enter(|| {
        ["proxy_arp", "drop_gratuitous_arp", "rp_filter"].map(|key| {
            let text = fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf").join(device).join(key)).unwrap();
            text.trim().to_owned()
        })
    })
}

#[test]
fn sysctls_are_put_back() {
    let lab = Lab::new().unwrap();
    let file = lab.folder().join("sysctls");
    let open = || lab.router.enter(|| Sysctls::open(&file)).unwrap();
    let in_router = |action: &mut (dyn FnMut() + Send)| lab.router.enter(action);
    let [lan, wan] = ["lan0", "wan0"].map(|device| index_of(&lab.router, device));
    lab.router.sysctl(&[("ipv4/conf/lan0/rp_filter", "1"), ("ipv4/conf/wan0/proxy_arp", "1")]).unwrap();

    let mut sysctls = open();
    in_router(&mut || {
        sysctls.hold("lan0", lan).unwrap();
        sysctls.hold("lan0", lan).unwrap();
        sysctls.hold("wan0", wan).unwrap();
    });
    assert_eq!(settings(&lab.router, "lan0"), ["1", "1", "2"]);
    assert_eq!(settings(&lab.router, "wan0"), ["1", "1", "0"], "nothing is filtered that was not");

    // A crash; the next daemon knows what was found, also where it changes it again itself.
    drop(sysctls);
    let mut sysctls = open();
    assert_eq!(sysctls.held().collect::<Vec<_>>(), ["lan0", "wan0"]);
    lab.router.sysctl(&[("ipv4/conf/lan0/proxy_arp", "0"), ("ipv4/conf/lan0/rp_filter", "1")]).unwrap();
    in_router(&mut || sysctls.hold("lan0", lan).unwrap());
    assert_eq!(settings(&lab.router, "lan0"), ["1", "1", "2"]);
    in_router(&mut || sysctls.release("wan0", Some(wan)).unwrap());
    assert_eq!(settings(&lab.router, "wan0"), ["1", "0", "0"]);

    // What somebody changed meanwhile stays his.
    lab.router.sysctl(&[("ipv4/conf/lan0/rp_filter", "0")]).unwrap();
    in_router(&mut || sysctls.release("lan0", Some(lan)).unwrap());
    assert_eq!(settings(&lab.router, "lan0"), ["0", "0", "0"]);
    assert!(!file.exists());
    assert_eq!(sysctls.held().count(), 0);
}

#[test]
fn sysctls_of_another_device_or_place_are_left_alone() {
    let lab = Lab::new().unwrap();
    let file = lab.folder().join("sysctls");
    let lan = index_of(&lab.router, "lan0");
    let mut sysctls = lab.router.enter(|| Sysctls::open(&file)).unwrap();
    lab.router.enter(|| sysctls.hold("lan0", lan)).unwrap();
    assert_eq!(settings(&lab.router, "lan0"), ["1", "1", "0"]);

    // In another namespace there is nothing to put back.
    assert_eq!(lab.client.enter(|| Sysctls::open(&file)).unwrap().held().count(), 0);
    // A device of the same name that came later has the settings that somebody gave it.
    for index in [Some(lan + 100), None] {
        let mut sysctls = lab.router.enter(|| Sysctls::open(&file)).unwrap();
        let notes = fs::read(&file).unwrap();
        lab.router.enter(|| sysctls.release("lan0", index)).unwrap();
        assert_eq!(settings(&lab.router, "lan0"), ["1", "1", "0"]);
        fs::write(&file, notes).unwrap();
    }
    // Notes that are none keep nobody from starting.
    fs::write(&file, "{").unwrap();
    assert_eq!(lab.router.enter(|| Sysctls::open(&file)).unwrap().held().count(), 0);
}

/// A relay that knows nothing of us: it listens, and greets who comes.
const RELAY: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
listeners = []
for _ in range(int(sys.argv[3])):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if int(sys.argv[3]) > 1 else socket.SO_REUSEADDR, 1)
    listener.bind((sys.argv[1], int(sys.argv[2])))
    listener.listen()
    listeners.append(listener)
print('listens', flush=True)
while True:
    connection, _ = listeners[0].accept()
    connection.close()
";

const RELAY_USER: u32 = 65_533;
const NOBODY: u32 = 65_534;

fn relay(lab: &Lab, endpoint: SocketAddr, sockets: u32) -> Daemon {
    let mut command = Command::new("python3");
    command.args(["-c", RELAY, &endpoint.ip().to_string(), &endpoint.port().to_string(), &sockets.to_string()]);
    command.uid(RELAY_USER).gid(RELAY_USER).current_dir("/");
    let mut relay = lab.start(&lab.router, "relay", &mut command).unwrap();
    relay.wait_until_ready(LIMIT, |relay| Ok(relay.log().contains("listens"))).unwrap();
    relay
}

#[test]
fn the_socket_of_an_unmodified_relay_is_adopted() {
    let lab = Lab::new().unwrap();
    let cases = [
        ("127.0.0.1:2525", "127.0.0.1:2525", 1),
        ("10.20.0.1:2526", "10.20.0.1:2526", 1),
        ("0.0.0.0:2527", "10.20.0.1:2527", 1),
        ("[::1]:2528", "[::1]:2528", 1),
        ("[fd00:20::1]:2529", "[fd00:20::1]:2529", 1),
        ("[::]:2530", "[fd00:20::1]:2530", 1),
        ("[::]:2531", "10.20.0.1:2531", 1),
        ("10.20.0.1:2532", "10.20.0.1:2532", 3),
    ];
    for (bound, endpoint, sockets) in cases {
        let endpoint: SocketAddr = endpoint.parse().unwrap();
        let mut relay = relay(&lab, bound.parse().unwrap(), sockets);
        let found = lab.router.enter(|| adopt::listeners(endpoint)).unwrap();
        assert_eq!(found.len(), sockets as usize, "{endpoint}");
        for listener in &found {
            let socket = adopt::take(endpoint, *listener).unwrap();
            assert!(adopt::set_transparent(endpoint, &socket, true).unwrap(), "{endpoint}");
            drop(socket);
            // The option is the socket's, not the copy's.
            let again = adopt::take(endpoint, *listener).unwrap();
            assert!(getsockopt(&again, sockopt::IpTransparent).unwrap(), "{endpoint}");
            assert!(!adopt::set_transparent(endpoint, &again, true).unwrap(), "{endpoint}");
            assert!(adopt::set_transparent(endpoint, &again, false).unwrap(), "{endpoint}");
        }
        // Nothing of us keeps the relay's port: it can stop and start.
        relay.stop(nix::sys::signal::Signal::SIGTERM).unwrap();
        let gone = lab.router.enter(|| adopt::listeners(endpoint));
        assert!(matches!(gone, Err(adopt::Error::NothingListens { .. })), "{endpoint}: {gone:?}");
        lab.router.enter(|| TcpListener::bind(bound)).unwrap();
        let closed = adopt::take(endpoint, found[0]);
        assert!(matches!(closed, Err(adopt::Error::Vanished { .. })), "{endpoint}: {closed:?}");
    }
}

/// Runs `action` as a thread whose user may look at no one else's process.
fn unprivileged<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the system call takes three integers; unlike the library's function of this name it concerns this thread only,
            // which ends here.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            action()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_relay_that_cannot_be_adopted_is_an_error_that_says_why() {
    let lab = Lab::new().unwrap();
    let endpoint: SocketAddr = "10.20.0.1:2525".parse().unwrap();
    let _relay = relay(&lab, endpoint, 1);
    let found = lab.router.enter(|| adopt::listeners(endpoint)).unwrap();
    let refused = unprivileged(|| adopt::take(endpoint, found[0]));
    assert!(matches!(refused, Err(adopt::Error::Permission { .. })), "{refused:?}");

    // A relay in another network namespace cannot be steered to.
    let elsewhere = lab.client.enter(|| adopt::listeners(endpoint)).unwrap_err();
    assert!(elsewhere.to_string().starts_with("nothing listens on 10.20.0.1:2525 in redirectd's network namespace"));

    let v6_only = lab.router.enter(|| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet6,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        nix::sys::socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
        let any: nix::sys::socket::SockaddrIn6 = "[::]:2540".parse::<std::net::SocketAddrV6>().unwrap().into();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any).unwrap();
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).unwrap();
        socket
    });
    let v4: SocketAddr = "10.20.0.1:2540".parse().unwrap();
    assert!(matches!(adopt::set_transparent(v4, &v6_only, true), Err(adopt::Error::Ipv6Only { .. })));
    assert!(adopt::set_transparent("[fd00:20::1]:2540".parse().unwrap(), &v6_only, true).unwrap());
}

#[test]
fn a_connection_is_ended_at_both_ends_and_no_other_socket_is() {
    let lab = Lab::new().unwrap();
    let notes = lab.folder().join("notes");
    // A relay may take both families by one socket.
    for (address, local) in [
        ("127.0.0.1:2525", "127.0.0.1:2525"),
        ("[::1]:2525", "[::1]:2525"),
        ("[::]:2526", "127.0.0.1:2526"),
        ("[::]:2527", "[::1]:2527"),
    ] {
        lab.router.enter(|| {
            let mut host = Host::open(Numbers::default(), &notes, 0).unwrap();
            let listener = TcpListener::bind(address).unwrap();
            let local: SocketAddr = local.parse().unwrap();
            let connect = || (TcpStream::connect(local).unwrap(), listener.accept().unwrap().0);
            let (mut client, mut relay) = connect();
            let mut other = connect();
            for stream in [&client, &relay, &other.1] {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
            }
            let read = |stream: &mut TcpStream| stream.read(&mut [0]).map_err(|error| error.kind());
            let connection = Connection { local, peer: client.local_addr().unwrap() };
            assert!(host.end(connection).unwrap());
            assert_eq!(read(&mut relay), Err(io::ErrorKind::ConnectionAborted));
            assert_eq!(read(&mut client), Err(io::ErrorKind::ConnectionReset));
            // The kernel, asked for what it does not have, finds the listener.
            assert!(!host.end(connection).unwrap());
            other.0.write_all(b"x").unwrap();
            assert_eq!(read(&mut other.1), Ok(1));
            connect();
        });
    }
}
