//! The daemon and its tool as an operator meets them: start, refusal to start, commands, stop.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, io, process::Command, time::Duration};

use aya::programs::{SchedClassifier, TcAttachType};
use redirect_tests::{
    Family, Lab, Mode, Product, SILENCE, Scene, binary, configuration,
    smtp::{Client, port_25},
};

const LIMIT: Duration = Duration::from_secs(30);

/// Everything that is attached to the router's interfaces, in words.
fn attached(lab: &Lab) -> Vec<String> {
    let mut attached = Vec::new();
    for device in ["lan0", "wan0", "mx0"] {
        let link = lab.router.run(Command::new("ip").args(["-d", "link", "show", device]), LIMIT).unwrap();
        attached.extend(link.stdout.contains("xdp").then(|| format!("{device} xdp")));
        for (name, direction) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let (_, programs) = lab.router.enter(|| SchedClassifier::query_tcx(device, direction)).unwrap();
            attached.extend(programs.iter().map(|_| format!("{device} {name} tcx")));
            let filters =
                lab.router.run(Command::new("tc").args(["filter", "show", "dev", device, name]), LIMIT).unwrap();
            attached.extend((!filters.stdout.trim().is_empty()).then(|| format!("{device} {name} clsact")));
        }
        let disciplines = lab.router.run(Command::new("tc").args(["qdisc", "show", "dev", device]), LIMIT).unwrap();
        attached.extend(disciplines.stdout.contains("clsact").then(|| format!("{device} clsact")));
    }
    attached
}

fn greeting(lab: &Lab, family: Family) -> io::Result<String> {
    let to = port_25(family.server());
    Client::connect_within(&lab.client, (family.redirected(), 0), to, SILENCE)?
        .reply()
        .map(|reply| reply.lines.join(" "))
}

#[test]
fn sigterm_removes_what_was_attached() {
    for mode in [Mode::Xdp, Mode::Tc] {
        let mut scene = Scene::new(mode).unwrap();
        let hooks = attached(&scene.lab);
        let expected = match mode {
            Mode::Xdp => ["lan0 xdp", "lan0 egress tcx"],
            Mode::Tc | Mode::TcWithoutOffloads | Mode::Steer => ["lan0 ingress tcx", "lan0 egress tcx"],
        };
        assert_eq!(hooks, expected, "{mode}");
        for family in Family::BOTH {
            assert!(greeting(&scene.lab, family).unwrap().starts_with("relay.example.net "), "{mode}");
        }

        let status = scene.product.stop().unwrap();
        assert_eq!(status.code(), Some(0), "{mode}: {}", scene.product.log());
        assert_eq!(attached(&scene.lab), [""; 0], "{mode}");
        assert!(!scene.product.socket().exists(), "{mode}: the socket is removed");
        for family in Family::BOTH {
            assert_eq!(greeting(&scene.lab, family).unwrap(), format!("internet {} ESMTP", family.server()), "{mode}");
        }
    }
}

#[test]
fn the_configuration_outlives_the_daemon() {
    let mut scene = Scene::new(Mode::Tc).unwrap();
    let before = scene.product.json(&scene.lab, &["subscriber", "list"]).unwrap();
    scene.product.stop().unwrap();
    scene.product = Product::start(&scene.lab, &configuration(scene.lab.folder(), "tc")).unwrap();
    assert_eq!(scene.product.json(&scene.lab, &["subscriber", "list"]).unwrap(), before);
    for family in Family::BOTH {
        assert!(greeting(&scene.lab, family).unwrap().starts_with("relay.example.net "));
        let blocked =
            Client::connect_within(&scene.lab.client, (family.blocked(), 0), port_25(family.server()), SILENCE);
        assert_eq!(blocked.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
    }
}

#[test]
fn a_killed_daemon_is_followed_by_another() {
    for mode in [Mode::Xdp, Mode::Tc] {
        let mut scene = Scene::new(mode).unwrap();
        assert_eq!(scene.product.kill().unwrap().code(), None);
        scene.product = Product::start(&scene.lab, &configuration(scene.lab.folder(), mode.hook())).unwrap();
        assert_eq!(attached(&scene.lab).len(), 2, "{mode}: {:?}", attached(&scene.lab));
        for family in Family::BOTH {
            assert!(greeting(&scene.lab, family).unwrap().starts_with("relay.example.net "), "{mode}");
        }
    }
}

#[test]
fn the_hook_is_the_best_that_the_driver_can() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &configuration(lab.folder(), "auto")).unwrap();
    let interface = product.json(&lab, &["interface", "get", "lan0"]).unwrap();
    // veth leaves checksums to be finished, which rewriting in the driver cannot do.
    assert_eq!(interface["hook"], "auto");
    assert_eq!(interface["status"]["attached"], true);
    assert_eq!(interface["status"]["mode"], "tcx");
    assert_eq!(attached(&lab), ["lan0 ingress tcx", "lan0 egress tcx"]);
}

#[test]
fn a_bad_configuration_is_refused_in_one_line() {
    let lab = Lab::new().unwrap();
    let good = configuration(lab.folder(), "tc");
    // What is changed in a good file, and the key that the line has to name.
    let cases = [
        ("connect_timeout_s = 3", "connect_timeout = 3", "connect_timeout"),
        ("connect_timeout_s = 3", "connect_timeout_s = \"3\"", "connect_timeout_s"),
        ("hook = \"tc\"", "hook = \"driver\"", "hook"),
        ("role = \"subscriber\"", "role = \"relay\"", "role"),
        ("name = \"lan0\"", "name = \"\"", "name"),
        ("\"10.20.0.1:2525\"", "\"127.0.0.1:2525\"", "listen"),
        ("\"10.20.0.1:2525\"", "\"0.0.0.0:2525\"", "listen"),
        ("\"10.20.0.1:2525\"", "\"10.20.0.1\"", "listen"),
        ("\"10.20.0.1:2525\"", "\"10.20.0.1:2525\", \"10.20.0.1:2526\"", "listen"),
        ("[dataplane]", "[dataplane]\nflows_max = 5", "flows_max"),
        ("[store]", "[data_plane]\n\n[store]", "data_plane"),
        ("[store]", "[store", "store"),
    ];
    for (number, (part, instead, key)) in cases.into_iter().enumerate() {
        assert!(good.contains(part), "{part}");
        let file = lab.folder().join(format!("bad-{number}.toml"));
        fs::write(&file, good.replacen(part, instead, 1)).unwrap();
        for check in [&["--check"][..], &[]] {
            let mut command = Command::new(binary("redirectd").unwrap());
            let finished = lab.router.run(command.arg("--config").arg(&file).args(check), LIMIT).unwrap();
            assert_eq!(finished.code(), Some(2), "{instead} {check:?}: {}", finished.stderr);
            let lines: Vec<_> = finished.stderr.lines().collect();
            assert_eq!(lines.len(), 1, "{instead}: {}", finished.stderr);
            assert!(lines[0].contains(&file.display().to_string()), "no file: {}", lines[0]);
            assert!(lines[0].contains(key), "no {key}: {}", lines[0]);
            assert_eq!(finished.stdout, "", "{instead}");
        }
    }
    let mut command = Command::new(binary("redirectd").unwrap());
    let missing = lab.router.run(command.args(["--config", "/nonexistent/redirectd.toml"]), LIMIT).unwrap();
    assert_eq!(missing.code(), Some(2), "{}", missing.stderr);
    assert!(
        missing.stderr.contains("/nonexistent/redirectd.toml") && missing.stderr.lines().count() == 1,
        "{}",
        missing.stderr
    );
    assert_eq!(attached(&lab), [""; 0]);
}

#[test]
fn a_good_configuration_is_checked_without_attaching() {
    let lab = Lab::new().unwrap();
    let file = lab.folder().join("redirectd.toml");
    fs::write(&file, configuration(lab.folder(), "tc")).unwrap();
    let mut command = Command::new(binary("redirectd").unwrap());
    let finished = lab.router.run(command.arg("--check").arg("--config").arg(&file), LIMIT).unwrap();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr);
    assert_eq!(attached(&lab), [""; 0]);
    assert!(!lab.folder().join("redirect.db").exists());
}

#[test]
fn redirect_ctl_tells_what_happened_by_its_exit_code() {
    let scene = Scene::new(Mode::Tc).unwrap();
    let cases: [(&[&str], i32); 12] = [
        (&["status"], 0),
        (&["stats"], 0),
        (&["flow", "list"], 0),
        (&["class", "get", "blocked"], 0),
        (&["class", "get", "none"], 3),
        (&["subscriber", "get", "198.51.100.1"], 3),
        (&["subscriber", "set", "10.20.0.1/16", "--class", "configured"], 2),
        (&["subscriber", "set", "10.20.0.40", "--class", "none"], 1),
        (&["class", "delete", "configured"], 4),
        (&["interface", "delete", "lan0"], 4),
        (&["relay", "delete", "embedded"], 4),
        (&["subscriber", "paint"], 2),
    ];
    for (words, code) in cases {
        let finished = scene.product.try_ctl(&scene.lab, words).unwrap();
        assert_eq!(finished.code(), Some(code), "{words:?}: {}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.stderr.is_empty(), code == 0, "{words:?}: {}", finished.stderr);
        if code != 0 && code != 2 {
            assert_eq!(finished.stderr.lines().count(), 1, "{words:?}: {}", finished.stderr);
            assert_eq!(finished.stdout, "", "{words:?}");
        }
    }
    let mut unreachable = Command::new(binary("redirect-ctl").unwrap());
    unreachable.args(["--host", "unix:///nonexistent/api.sock", "status"]);
    assert_eq!(scene.lab.router.run(&mut unreachable, LIMIT).unwrap().code(), Some(5));
}
