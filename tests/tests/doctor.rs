//! `doctor` and `kernel` on a router of a lab, as it should be and with problems that were planted; `support-bundle` and `top` there.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, process::Command, time::Duration};

use redirect_tests::{Lab, Product, configuration};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// Exit code, and the findings that are not fine, as level, check and subject.
fn doctor(lab: &Lab, product: &Product) -> (i32, Vec<String>, Vec<Value>) {
    let finished = product.try_ctl(lab, &["doctor", "-o", "json"]).unwrap();
    let findings: Vec<Value> =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr));
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    // Of the machine that the test runs on, and of other labs' daemons.
    let machine = ["kernel", "btf", "jit", "lockdown", "bpffs", "clock", "capabilities", "conntrack", "map"];
    let problems = findings.iter().filter(|finding| finding["level"] != "ok");
    let problems = problems.filter(|finding| !machine.contains(&finding["check"].as_str().unwrap()));
    let problems = problems.map(|finding| ["level", "check", "subject"].map(|key| word(finding, key)).join(" "));
    (finished.code().unwrap(), problems.collect(), findings)
}

fn run(lab: &Lab, words: &[&str]) {
    let finished = lab.router.run(Command::new(words[0]).args(&words[1..]), LIMIT).unwrap();
    assert!(finished.status.success(), "{words:?}: {}", finished.stderr);
}

#[test]
fn what_was_planted_is_found() {
    let lab = Lab::new().unwrap();
    let mut product = Product::start(&lab, &configuration(lab.folder(), "tc")).unwrap();
    assert_eq!(doctor(&lab, &product).1, Vec::<String>::new());

    run(&lab, &["tc", "qdisc", "add", "dev", "lan0", "clsact"]);
    run(&lab, &["tc", "filter", "add", "dev", "lan0", "ingress", "bpf", "bytecode", "1,6 0 0 0"]);
    run(&lab, &["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
    run(
        &lab,
        &[
            "nft",
            "add table ip planted; add chain ip planted in { type nat hook prerouting priority -100; }; add rule ip planted in tcp dport 25 redirect to :2525",
        ],
    );
    let (_, found, findings) = doctor(&lab, &product);
    assert_eq!(
        found,
        ["warn forwarding IPv4", "warn foreign_program lan0", "warn firewall ip planted in"],
        "{findings:?}"
    );

    // A device that went down, and a daemon that is gone: what it had is read from its file.
    run(&lab, &["ip", "link", "set", "lan0", "down"]);
    product.stop().unwrap();
    let file = lab.folder().join("redirectd.toml");
    let without = product.try_ctl(
        &lab,
        &["doctor", "--config", file.to_str().unwrap(), "--columns", "level,check,subject", "--no-headers"],
    );
    let without = without.unwrap();
    assert_eq!(without.code(), Some(1));
    for line in ["fail  interface", "fail  daemon"] {
        assert!(
            without.stdout.lines().any(|found| found.starts_with(line)),
            "{line} is missing in\n{}",
            without.stdout
        );
    }
}

#[test]
fn offloads_that_xdp_does_not_go_with_are_found() {
    let lab = Lab::new().unwrap();
    lab.offloads(&lab.client, "eth0", false).unwrap();
    let product = Product::start(&lab, &configuration(lab.folder(), "xdp")).unwrap();
    assert_eq!(doctor(&lab, &product).1, ["warn offloads lan0"]);
}

#[test]
fn the_kernel_tells_what_is_ours() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &configuration(lab.folder(), "tc")).unwrap();
    product.ctl(&lab, &["subscriber", "set", "10.20.77.7", "--class", "bypass"]).unwrap();

    let links = product.json(&lab, &["kernel", "links"]).unwrap();
    let is_ours = |link: &Value, kind: &str| link["kind"] == kind && link["interface"] == "lan0";
    for kind in ["tcx ingress", "tcx egress"] {
        assert!(links.as_array().unwrap().iter().any(|link| is_ours(link, kind)), "{kind}: {links}");
    }
    let programs = product.json(&lab, &["kernel", "programs"]).unwrap();
    let names: Vec<_> = programs.as_array().unwrap().iter().map(|program| program["name"].as_str().unwrap()).collect();
    for name in ["redirect_in", "redirect_out", "redirect_xdp", "redirect_explai"] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    let explained = product.json(&lab, &["explain", "10.20.77.7", "203.0.113.10"]).unwrap();
    let asked = |program: &Value| program["name"] == "redirect_explai" && program["tag"] == explained["program_tag"];
    assert!(programs.as_array().unwrap().iter().any(asked), "{explained}\n{programs}");
    // Other daemons of this machine have such maps too.
    let maps = product.json(&lab, &["kernel", "maps"]).unwrap();
    let hosts = maps.as_array().unwrap().iter().filter(|map| map["name"] == "HOSTS_V4");
    let found = hosts.filter(|map| {
        let id = map["id"].to_string();
        let entries = product.json(&lab, &["kernel", "dump", &id, "--limit", "10000000"]);
        // Another daemon's may be gone by now.
        entries.is_ok_and(|entries| {
            let entries = entries.as_array().unwrap().clone();
            entries.iter().any(|entry| entry["prefix"] == "10.20.77.7/32") && map["entries"].as_u64().unwrap() >= 1
        })
    });
    assert_eq!(found.count(), 1, "{maps}");

    let file = lab.folder().join("bundle.tar.gz");
    product.ctl(&lab, &["support-bundle", file.to_str().unwrap()]).unwrap();
    let listed = Command::new("tar").arg("-tzf").arg(&file).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["ip-link.txt", "tc-filter-lan0-ingress.txt", "kernel-maps.json", "status.json"] {
        assert!(listed.contains(name), "{name} is missing in\n{listed}");
    }
    assert!(fs::metadata(&file).unwrap().len() < 4 << 20);
}

/// script(1) gives `top` a terminal.
#[test]
fn top_draws_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new().unwrap();
    let product = Product::start(&lab, &configuration(lab.folder(), "tc")).unwrap();
    let program = redirect_tests::binary("redirect-ctl").unwrap();
    let run = format!(
        "stty cols 120 rows 40; stty -a > {folder}/before; timeout --foreground -s TERM 5 {program} --host unix://{socket} top --interval 1; stty -a > {folder}/after",
        folder = lab.folder().display(),
        program = program.display(),
        socket = product.socket().display(),
    );
    let finished =
        lab.router.run(Command::new("script").args(["-qec", &run, "/dev/null"]).env("TERM", "xterm"), LIMIT).unwrap();
    for part in ["Busiest", "Gateways", "redirectd 0."] {
        assert!(finished.stdout.contains(part), "{part} is missing in\n{}", finished.stdout);
    }
    assert!(finished.stdout.contains("\u{1b}[?1049l"), "the screen of before is not shown again");
    let [before, after] = ["before", "after"].map(|name| fs::read_to_string(lab.folder().join(name)).unwrap());
    assert_eq!(before, after);
}
