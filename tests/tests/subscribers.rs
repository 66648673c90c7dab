//! Subscribers by the hundred thousand, on the real kernel: files in and out, a daemon that is killed, a disk that is full.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use redirect_tests::{
    Family, Lab, Product, binary,
    capture::{Capture, Packet, TCP_SYN},
    configuration,
    raw::{self, PROTOCOL_TCP, Wire},
    tcp::noise,
    wait_until, with_dataplane,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(1);
const MANY: u32 = 100_000;

/// The lab's configuration with room for many.
fn roomy(lab: &Lab) -> String {
    with_dataplane(&configuration(lab.folder(), "tc"), "subscribers_max = 262144\nflows_max = 1024")
}

/// Where most of the hosts begin; the lab itself has no such addresses.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);

/// A file of hosts, all of one class, written where the lab's files are.
fn file(lab: &Lab, name: &str, first: Ipv4Addr, count: u32, class: &str) -> PathBuf {
    let mut text = String::new();
    for number in 0..count {
        let host = Ipv4Addr::from(u32::from(first) + number);
        let rest = format!(r#""source":"radius","session":"s{number}","user":"user-{number}""#);
        writeln!(text, r#"{{"prefix":"{host}","class":"{class}",{rest}}}"#).unwrap();
    }
    let path = lab.folder().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn import(lab: &Lab, product: &Product, file: &Path) -> Value {
    product.json(lab, &["subscriber", "import", "--mode", "replace", "--yes", file.to_str().unwrap()]).unwrap()
}

/// The class that the kernel's program finds for an address.
fn class(lab: &Lab, product: &Product, address: &str) -> Option<String> {
    let explained = product.json(lab, &["explain", address, "203.0.113.10"]).unwrap();
    explained["class"].as_str().map(str::to_owned)
}

/// Kilobytes that the process has held at most.
fn peak_kb(product: &Product) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", product.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn many_come_from_a_file_and_go_to_a_file() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &roomy(&lab)).unwrap();
    let before = peak_kb(&product);
    let gold = file(&lab, "gold.ndjson", FIRST, MANY, "bypass");
    assert_eq!(import(&lab, &product, &gold)["added"], MANY);
    for address in ["10.64.0.0", "10.64.200.7", "10.65.134.159"] {
        assert_eq!(class(&lab, &product, address).as_deref(), Some("bypass"), "{address}");
    }
    assert_eq!(class(&lab, &product, "10.65.134.160"), None, "the one behind the last");
    let export = product.ctl(&lab, &["subscriber", "export"]).unwrap();
    assert_eq!(export.lines().count(), MANY as usize);
    let path = lab.folder().join("export.ndjson");
    fs::write(&path, &export).unwrap();
    let same = product.try_ctl(&lab, &["subscriber", "diff", path.to_str().unwrap()]).unwrap();
    assert_eq!(same.code(), Some(0), "{}", same.stdout);

    // Half of them go, the others change.
    let blocked = file(&lab, "blocked.ndjson", FIRST, MANY / 2, "blocked");
    let report = import(&lab, &product, &blocked);
    assert_eq!((&report["changed"], &report["removed"]), (&(MANY / 2).into(), &(MANY / 2).into()));
    assert_eq!(class(&lab, &product, "10.64.0.0").as_deref(), Some("blocked"));
    assert_eq!(class(&lab, &product, "10.65.134.159"), None);
    // A tenth of a million in a tenth of the bound for a million.
    let more = peak_kb(&product).saturating_sub(before);
    assert!(more < 150 * 1024, "{more} kB more than before");
}

/// What a terminal of 120 columns gets of `redirect-ctl` with these words of a shell.
fn on_a_terminal(lab: &Lab, product: &Product, words: &str) -> String {
    let program = binary("redirect-ctl").unwrap();
    let run =
        format!("stty cols 120 rows 40; {} --host unix://{} {words}", program.display(), product.socket().display());
    let mut script = Command::new("script");
    script.args(["-qec", &run, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let finished = lab.router.run(&mut script, LIMIT).unwrap();
    assert!(finished.status.success(), "{words}: {}{}", finished.stdout, finished.stderr);
    finished.stdout
}

#[test]
fn progress_and_colours_are_for_terminals() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &roomy(&lab)).unwrap();
    let source = file(&lab, "many.ndjson", FIRST, MANY, "bypass");
    let (source_bytes, source) = (fs::metadata(&source).unwrap().len(), source.display());
    let exported = lab.folder().join("exported.ndjson");

    let import = on_a_terminal(&lab, &product, &format!("subscriber import {source}"));
    // How much of how much, and how fast; at last nothing but the answer.
    let whole = format!("/{:.2} MiB", f64::from(u32::try_from(source_bytes).unwrap()) / f64::from(1 << 20));
    for part in [&*whole, "iB/s", "\u{2588}", "importing", "added"] {
        assert!(import.contains(part), "{part} is missing in {import}");
    }
    assert!(import.contains("\u{1b}[2K"), "the bar stays: {import}");
    let export = on_a_terminal(&lab, &product, &format!("subscriber export >{}", exported.display()));
    assert!(export.contains("iB/s"), "{export}");
    assert_eq!(fs::read_to_string(&exported).unwrap().lines().count(), MANY as usize, "it is in the data");
    assert_eq!(on_a_terminal(&lab, &product, &format!("subscriber import {source} 2>&1 >/dev/null | cat")), "");

    let relays = on_a_terminal(&lab, &product, "status");
    assert!(relays.contains("\u{1b}[32mattached, tc"), "{relays}");
    for plain in ["status | cat", "status -o json", "--columns fact,value status | cat"] {
        let plain = on_a_terminal(&lab, &product, plain);
        assert!(!plain.contains('\u{1b}') && plain.contains("lan0"), "{plain}");
    }
    let quiet = product.ctl(&lab, &["subscriber", "import", &source.to_string()]).unwrap();
    assert!(!quiet.contains('\u{1b}'), "{quiet}");
}

#[test]
fn packets_meet_the_subscribers_of_before_or_those_of_after() {
    const HOSTS: u32 = 20_000;
    const BETWEEN: Duration = Duration::from_micros(400);
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &roomy(&lab)).unwrap();
    let first = Ipv4Addr::new(10, 20, 128, 0);
    // Those that are written first and last, whatever the order is.
    let ends = [first, Ipv4Addr::from(u32::from(first) + HOSTS - 1)];
    import(&lab, &product, &file(&lab, "before.ndjson", first, HOSTS, "bypass"));
    let wire = Wire::open(&lab.client, "eth0").unwrap();
    let server = Family::V4.server();
    let send = |port: u16| {
        let from = IpAddr::V4(ends[usize::from(port % 2)]);
        let segment = raw::tcp((from, port), (server, 25), TCP_SYN, &[]);
        wire.send(&raw::ip(from, server, PROTOCOL_TCP, &segment)).unwrap();
        thread::sleep(BETWEEN);
    };
    for class in ["blocked", "bypass"] {
        let next = file(&lab, "next.ndjson", first, HOSTS, class);
        let capture =
            Capture::start(&lab, &lab.internet, "eth0", "tcp dst port 25 and src net 10.20.128.0/17").unwrap();
        let mut ports = 1_u16..u16::MAX;
        thread::scope(|scope| {
            let importing = scope.spawn(|| import(&lab, &product, &next));
            while !importing.is_finished() {
                send(ports.next().unwrap());
            }
            importing.join().unwrap();
        });
        ports.by_ref().take(100).for_each(send);
        let ports: Vec<u16> = (1..ports.start).collect();
        let segments = capture.stop().unwrap();
        let passed: Vec<u16> = segments.iter().filter_map(Packet::tcp).map(|segment| segment.from.port()).collect();
        // The packets of both ends, in the order in which they were sent, change sides once.
        let expected =
            if class == "blocked" { ports.get(..passed.len()) } else { ports.get(ports.len() - passed.len()..) };
        assert_eq!(Some(passed.as_slice()), expected, "{class}: some packets met a mix");
        assert!(
            !passed.is_empty() && passed.len() < ports.len(),
            "{class}: {} of {} passed",
            passed.len(),
            ports.len()
        );
    }
}

#[test]
fn a_daemon_that_is_killed_during_imports_comes_back_whole() {
    const KILLS: usize = 6;
    let lab = Lab::new().unwrap();
    let mut product = Product::start(&lab, &roomy(&lab)).unwrap();
    let files =
        ["bypass", "blocked"].map(|class| (class, file(&lab, &format!("{class}.ndjson"), FIRST, 20_000, class)));
    import(&lab, &product, &files[0].1);
    let mut moments = noise(0x0b01);
    for kill in 0..KILLS {
        let (_, next) = &files[(kill + 1) % 2];
        thread::scope(|scope| {
            let victim = &product;
            let importing = scope.spawn(|| {
                victim.try_ctl(&lab, &["subscriber", "import", "--mode", "replace", "--yes", next.to_str().unwrap()])
            });
            thread::sleep(Duration::from_millis(u64::from(moments.next().unwrap()) * 8));
            let id = i32::try_from(victim.id()).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
            let _ = importing.join().unwrap();
        });
        let _ = product.kill();
        product = Product::start(&lab, &roomy(&lab)).unwrap();
        let status = product.json(&lab, &["status"]).unwrap();
        assert_eq!((&status["revision"], &status["subscribers"]), (&status["applied"], &20_000.into()), "{status}");
        let found = class(&lab, &product, "10.64.0.0").unwrap();
        for address in ["10.64.0.1", "10.64.40.7", "10.64.78.31"] {
            assert_eq!(class(&lab, &product, address).as_ref(), Some(&found), "kill {kill}, {address}: a mix");
        }
        let listed = product.json(&lab, &["subscriber", "list", "--class", &found, "--limit", "20000"]).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), 20_000, "kill {kill}: {found}");
    }
}

#[test]
fn a_full_disk_changes_nothing_and_is_told() {
    let lab = Lab::new().unwrap();
    let folder = lab.folder().join("small");
    fs::create_dir(&folder).unwrap();
    let text = roomy(&lab).replace(
        &lab.folder().join("redirect.db").display().to_string(),
        &folder.join("redirect.db").display().to_string(),
    );
    // A file system of its own, which nobody else sees and which ends with the daemon.
    let program = lab.folder().join("redirectd-on-a-small-disk");
    let redirectd = binary("redirectd").unwrap();
    let mount = format!("mount -t tmpfs -o size=6m tmpfs {}", folder.display());
    let script =
        format!("#!/bin/sh\nexec unshare --mount sh -c '{mount} && exec {} \"$@\"' sh \"$@\"\n", redirectd.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let product = Product::start_program(&lab, &program, &text).unwrap();
    let few = file(&lab, "few.ndjson", FIRST, 1_000, "bypass");
    assert_eq!(import(&lab, &product, &few)["added"], 1_000);
    let before = product.json(&lab, &["status"]).unwrap();
    let many = file(&lab, "many.ndjson", FIRST, MANY, "blocked");
    let refused = product.try_ctl(&lab, &["subscriber", "import", many.to_str().unwrap()]).unwrap();
    assert_eq!(refused.code(), Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("the store's disk is full; nothing was changed"), "{}", refused.stderr);
    let after = product.json(&lab, &["status"]).unwrap();
    for member in ["revision", "applied", "subscribers", "error"] {
        assert_eq!(after[member], before[member], "{member}");
    }
    assert_eq!(class(&lab, &product, "10.64.0.1").as_deref(), Some("bypass"));
    assert_eq!(class(&lab, &product, "10.64.40.7"), None);
    // It goes on as if nothing had been.
    product.ctl(&lab, &["subscriber", "set", "10.64.0.1", "--class", "blocked"]).unwrap();
    assert_eq!(class(&lab, &product, "10.64.0.1").as_deref(), Some("blocked"));
}

#[test]
fn a_gigabyte_without_a_line_is_not_held() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &roomy(&lab)).unwrap();
    let before = peak_kb(&product);
    let mut stream = UnixStream::connect(product.socket()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let length: usize = 1 << 30;
    write!(stream, "POST /v1/subscribers:import HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n").unwrap();
    let piece = vec![b'x'; 1 << 16];
    // A daemon that has seen enough closes the connection.
    let sent = (0..length / piece.len()).take_while(|_| stream.write_all(&piece).is_ok()).count();
    assert!(sent < length / piece.len(), "all of it was read");
    let mut answer = Vec::new();
    // The answer may be there although the rest of the connection was reset.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let more = peak_kb(&product).saturating_sub(before);
    assert!(more < 20 * 1024, "{more} kB");
    wait_until("an answer", LIMIT, || Ok(product.ctl(&lab, &["status"]).is_ok().then_some(()))).unwrap();
}
