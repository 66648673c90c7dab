//! What may be wrong with a host, and what to do about it: pure judgement of facts. [`look`] gathers them.

pub mod look;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::dataplane::Mode;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Something is slower, less safe or not possible.
    Warn,
    /// It does not work like this.
    Fail,
}

impl Level {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at.
    pub check: &'static str,
    /// Whose: an interface, a map, a table of rules; empty for the host's.
    pub subject: String,
    pub text: String,
    pub remedy: Option<String>,
}

/// What is known of the host. `None` where nobody could tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// As uname(1) says.
    pub release: String,
    pub btf: bool,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// The kernel's lockdown mode.
    pub lockdown: Option<String>,
    /// Whether `/sys/fs/bpf` is a BPF file system.
    pub bpffs: bool,
    /// Effective capabilities of this process, as in capabilities(7).
    pub capabilities: u64,
    /// Bytes that this process may lock; `None` for as many as it likes.
    pub memlock: Option<u64>,
    /// `forwarding` of IPv4 and IPv6.
    pub forwarding: [Option<u32>; 2],
    pub rp_filter_all: Option<u32>,
    pub devices: Vec<Device>,
    /// Firewall rules that name port 25: where, and the rule.
    pub rules: Vec<(String, String)>,
    /// Connections that are tracked, and how many can be.
    pub conntrack: Option<(u64, u64)>,
    /// Version and complaint of the daemon, or why it did not answer.
    pub daemon: Option<Result<(String, Option<String>), String>>,
    /// Maps by name and fill in percent.
    pub maps: Vec<(String, u64)>,
    /// Whether something keeps the clock right.
    pub clock: Option<bool>,
    /// Why the configuration file cannot be read.
    pub configuration: Option<String>,
}

/// A configured interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// `None` where there is no such device.
    pub state: Option<DeviceState>,
    /// Where our programs are.
    pub mode: Option<Mode>,
    /// Whether XDP is asked for.
    pub wants_xdp: bool,
    pub foreign_sources: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    pub up: bool,
    pub mtu: u32,
    pub driver: Option<String>,
    pub rp_filter: Option<u32>,
    /// Offloads that are on, by ethtool's long names.
    pub features: BTreeSet<String>,
    /// Programs and filters that are not ours: hook and what.
    pub others: Vec<(&'static str, String)>,
}

/// Of a table: from here on it is nearly full.
pub const FULL_PERCENT: u64 = 90;

/// Bytes of a frame that fit into one page beside XDP's headroom and the kernel's own part (`SKB_DATA_ALIGN(sizeof(struct skb_shared_info))`),
/// on a page of 4 KiB.
const SINGLE_BUFFER_MTU: u32 = 3_498;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// All that can be said, what is fine as well.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    findings.kernel(facts);
    findings.rights(facts);
    findings.forwarding(facts);
    for device in &facts.devices {
        findings.device(facts, device);
    }
    findings.rules(facts);
    findings.daemon(facts);
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, check: &'static str, subject: &str, text: impl Into<String>, remedy: &str) {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        self.0.push(Finding { level, check, subject: subject.to_owned(), text: text.into(), remedy });
    }

    fn ok(&mut self, check: &'static str, subject: &str, text: impl Into<String>) {
        self.add(Level::Ok, check, subject, text, "");
    }

    fn kernel(&mut self, facts: &Facts) {
        let release = &facts.release;
        match version(release) {
            None => self.add(Level::Warn, "kernel", "", format!("{release}: a version that cannot be read"), ""),
            Some(version) if version < (5, 15) => {
                self.add(
                    Level::Fail,
                    "kernel",
                    "",
                    format!("{release} is older than 5.15"),
                    "boot a kernel of 5.15 or later",
                );
            }
            Some(version) if version < (5, 18) => {
                let text = format!("{release}: no XDP here, since frames of several buffers need 5.18; tc by clsact");
                self.add(Level::Warn, "kernel", "", text, "boot a kernel of 5.18 or later for XDP, 6.6 for tcx");
            }
            Some(version) if version < (6, 6) => {
                self.ok("kernel", "", format!("{release}: XDP and clsact; tcx comes with 6.6"));
            }
            Some(_) => self.ok("kernel", "", format!("{release}: XDP, tcx and sk_lookup")),
        }
        if facts.btf {
            self.ok("btf", "", "the kernel describes its types");
        } else {
            self.add(
                Level::Warn,
                "btf",
                "",
                "there is no /sys/kernel/btf/vmlinux: bpftool shows maps and programs without types",
                "take a kernel with CONFIG_DEBUG_INFO_BTF",
            );
        }
        if facts.jit == Some(0) {
            self.add(
                Level::Warn,
                "jit",
                "",
                "programs are interpreted, which is several times slower",
                "sysctl -w net.core.bpf_jit_enable=1",
            );
        }
        if facts.lockdown.as_deref() == Some("confidentiality") {
            self.add(
                Level::Fail,
                "lockdown",
                "",
                "the kernel is locked down for confidentiality, where programs may not read packets' memory",
                "boot with lockdown=integrity, or without",
            );
        }
        if facts.bpffs {
            self.ok("bpffs", "", "/sys/fs/bpf is mounted");
        } else {
            self.add(
                Level::Warn,
                "bpffs",
                "",
                "/sys/fs/bpf is no BPF file system: nothing can be pinned",
                "mount -t bpf bpf /sys/fs/bpf",
            );
        }
        match facts.clock {
            Some(false) => self.add(
                Level::Warn,
                "clock",
                "",
                "nothing keeps the clock right: certificates and expiry times are judged by it",
                "run chrony or systemd-timesyncd",
            ),
            Some(true) => self.ok("clock", "", "the clock is kept right"),
            None => {}
        }
    }

    fn rights(&mut self, facts: &Facts) {
        let has = |capability: u32| facts.capabilities & 1 << capability != 0;
        let needed = [("CAP_BPF", CAP_BPF), ("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_PERFMON", CAP_PERFMON)];
        let missing: Vec<_> =
            needed.iter().filter(|(_, capability)| !has(*capability)).map(|(name, _)| *name).collect();
        if missing.is_empty() || has(CAP_SYS_ADMIN) {
            self.ok("capabilities", "", "enough to load the programs");
        } else {
            let text = format!(
                "this shell lacks {}: redirectd could not be started from it, and less is seen",
                missing.join(", ")
            );
            self.add(Level::Warn, "capabilities", "", text, "run it as root");
        }
        // Before 5.11 maps counted against this limit (kernel commit 3ac1f01b43b6 and those after it).
        if let (Some(limit), Some(version)) = (facts.memlock, version(&facts.release))
            && version < (5, 11)
        {
            let text = format!("{} KiB may be locked, and this kernel counts maps as locked", limit / 1_024);
            self.add(Level::Fail, "memlock", "", text, "set LimitMEMLOCK=infinity in redirectd's unit");
        }
    }

    fn forwarding(&mut self, facts: &Facts) {
        let names = [("IPv4", "net.ipv4.ip_forward"), ("IPv6", "net.ipv6.conf.all.forwarding")];
        for ((family, key), value) in names.into_iter().zip(facts.forwarding) {
            match value {
                Some(0) => {
                    let text =
                        format!("{family} is not forwarded: what passes, and relays on other hosts, are out of reach");
                    self.add(Level::Warn, "forwarding", family, text, &format!("sysctl -w {key}=1"));
                }
                Some(_) => self.ok("forwarding", family, "packets are forwarded"),
                None => {}
            }
        }
        if let Some((count, max)) = facts.conntrack
            && count * 100 >= max * FULL_PERCENT
        {
            let text = format!("{count} of {max} connections are tracked; when that is full, new ones are dropped");
            self.add(Level::Warn, "conntrack", "", text, "raise net.netfilter.nf_conntrack_max");
        }
    }

    fn device(&mut self, facts: &Facts, device: &Device) {
        let name = device.name.as_str();
        let Some(state) = &device.state else {
            let remedy = "create the device, or take it out of the configuration";
            self.add(Level::Fail, "interface", name, "there is no such device", remedy);
            return;
        };
        if !state.up {
            self.add(Level::Fail, "interface", name, "the device is down", &format!("ip link set {name} up"));
        }
        match device.mode {
            Some(mode) => self.ok("interface", name, format!("carries the programs: {mode}")),
            None if matches!(facts.daemon, Some(Ok(_))) => self.add(
                Level::Fail,
                "interface",
                name,
                "carries no program",
                &format!("redirect-ctl interface get {name} says why"),
            ),
            None => {}
        }
        for (hook, what) in &state.others {
            let (level, remedy) = match *hook {
                // Only one program fits there.
                "xdp" if device.wants_xdp || device.mode == Some(Mode::Xdp) => {
                    (Level::Fail, format!("remove it (ip link set {name} xdp off), or set hook = \"tc\""))
                }
                "xdp" => (Level::Warn, "it sees packets before us; make sure that it passes port 25 on".to_owned()),
                _ => (Level::Warn, format!("make sure that it lets port 25 through: tc filter show dev {name} {hook}")),
            };
            self.add(level, "foreign_program", name, format!("another program is at {hook}: {what}"), &remedy);
        }
        self.offloads(facts, device, state);
        if device.foreign_sources && rp_filter(state.rp_filter, facts.rp_filter_all) == Some(1) {
            self.add(
                Level::Fail,
                "rp_filter",
                name,
                "the reverse path is filtered strictly, so that packets with foreign sources are dropped",
                &format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2, or start redirectd, which sets it"),
            );
        }
    }

    fn offloads(&mut self, facts: &Facts, device: &Device, state: &DeviceState) {
        let name = device.name.as_str();
        let in_driver = device.mode == Some(Mode::Xdp) || device.wants_xdp;
        let on = |feature: &str| state.features.contains(feature);
        if !in_driver {
            return;
        }
        if on("rx-lro") {
            let text = "large receive offload joins packets before XDP sees them, and most drivers refuse XDP then";
            self.add(Level::Fail, "offloads", name, text, &format!("ethtool -K {name} lro off"));
        }
        if on("rx-gro-hw") {
            let text = "the device joins packets before XDP sees them";
            self.add(Level::Warn, "offloads", name, text, &format!("ethtool -K {name} rx-gro-hw off"));
        }
        if state.driver.as_deref() == Some("veth") {
            let text = "XDP on veth gets packets whose checksum the sender left open; editing them breaks it";
            let remedy = "ethtool -K DEVICE tx off at the other end, or hook = \"auto\"";
            self.add(Level::Warn, "offloads", name, text, remedy);
        }
        if state.mtu > SINGLE_BUFFER_MTU && version(&facts.release).is_some_and(|version| version < (5, 18)) {
            let text = format!("frames of {} bytes do not fit into XDP's buffer on this kernel", state.mtu);
            self.add(Level::Fail, "mtu", name, text, "hook = \"tc\", or a kernel of 5.18");
        } else if state.mtu > SINGLE_BUFFER_MTU {
            let text = format!("frames of {} bytes come in several buffers: the driver must know how", state.mtu);
            self.ok("mtu", name, text);
        }
    }

    fn rules(&mut self, facts: &Facts) {
        const VERDICTS: [&str; 5] = ["drop", "reject", "redirect", "dnat", "tproxy"];
        for (place, rule) in &facts.rules {
            let text = format!("a rule is about port 25: {rule}");
            if VERDICTS.iter().any(|verdict| rule.split_whitespace().any(|word| word.eq_ignore_ascii_case(verdict))) {
                let remedy = "packets that pass or are steered meet it; see docs/install.md, Firewall";
                self.add(Level::Warn, "firewall", place, text, remedy);
            } else {
                self.ok("firewall", place, text);
            }
        }
    }

    fn daemon(&mut self, facts: &Facts) {
        if let Some(error) = &facts.configuration {
            self.add(
                Level::Warn,
                "configuration",
                "",
                error.as_str(),
                "redirectd --check says more; name another file with --config",
            );
        }
        let ours = env!("CARGO_PKG_VERSION");
        match &facts.daemon {
            None => {}
            Some(Err(error)) => {
                let remedy = "systemctl start redirectd; journalctl -u redirectd says why it ended";
                self.add(Level::Fail, "daemon", "", error.as_str(), remedy);
            }
            Some(Ok((version, complaint))) => {
                if version == ours {
                    self.ok("daemon", "", format!("redirectd {version} answers"));
                } else {
                    let text = format!("redirectd is {version}, and this redirect-ctl {ours}");
                    self.add(Level::Warn, "daemon", "", text, "restart redirectd after an upgrade");
                }
                if let Some(complaint) = complaint {
                    self.add(
                        Level::Fail,
                        "daemon",
                        "",
                        complaint.as_str(),
                        "redirect-ctl status; journalctl -u redirectd",
                    );
                }
            }
        }
        for (map, percent) in &facts.maps {
            if *percent >= FULL_PERCENT {
                let remedy = "raise dataplane.flows_max or dataplane.subscribers_max and restart redirectd";
                self.add(Level::Warn, "map", map, format!("{percent} % of its entries are taken"), remedy);
            }
        }
    }
}

/// Major and minor of a release such as `6.18.44-cloud`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the kernel does: it takes the larger of the device's value and that of all (`IN_DEV_RPFILTER`).
fn rp_filter(own: Option<u32>, all: Option<u32>) -> Option<u32> {
    own.max(all)
}

/// Whether a rule of nft(8) or iptables-save(8) names TCP's port 25 as destination or source.
pub fn names_port_25(rule: &str) -> bool {
    let words: Vec<_> = rule.split(|char: char| char.is_whitespace() || matches!(char, '{' | '}' | ',')).collect();
    let is_key = |word: &str| matches!(word.trim_start_matches('-'), "dport" | "sport" | "dports" | "sports" | "th");
    let is_25 = |word: &str| {
        let range = word.split_once(['-', ':']).and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        word == "25" || word == "smtp" || range.is_some_and(|(from, to): (u32, u32)| (from..=to).contains(&25))
    };
    let is_port = |word: &str| {
        word.is_empty()
            || matches!(word, "!=" | "==" | "dport" | "sport")
            || is_25(word)
            || word.starts_with(|char: char| char.is_ascii_digit())
    };
    let mut keys = words.iter().enumerate().filter(|(_, word)| is_key(word));
    keys.any(|(at, _)| words[at + 1..].iter().take_while(|word| is_port(word)).any(|word| is_25(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            release: "6.18.44-cloud".to_owned(),
            btf: true,
            jit: Some(1),
            bpffs: true,
            capabilities: u64::MAX,
            forwarding: [Some(1), Some(1)],
            devices: vec![Device {
                name: "lan0".to_owned(),
                state: Some(DeviceState { up: true, mtu: 1_500, ..DeviceState::default() }),
                mode: Some(Mode::Tcx),
                ..Device::default()
            }],
            daemon: Some(Ok((env!("CARGO_PKG_VERSION").to_owned(), None))),
            clock: Some(true),
            ..Facts::default()
        }
    }

    /// What is not fine, as level, check and subject.
    fn problems(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = healthy();
        change(&mut facts);
        let findings = findings(&facts);
        for finding in &findings {
            assert_eq!(finding.remedy.is_none(), finding.level == Level::Ok, "{finding:?}");
        }
        let problems = findings.iter().filter(|finding| finding.level != Level::Ok);
        problems.map(|finding| format!("{} {} {}", finding.level.name(), finding.check, finding.subject)).collect()
    }

    fn lan0(facts: &mut Facts) -> &mut DeviceState {
        facts.devices[0].state.as_mut().unwrap()
    }

    #[test]
    fn a_healthy_host_has_no_problem() {
        assert_eq!(problems(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_found_by_itself() {
        type Change = fn(&mut Facts);
        let cases: &[(Change, &[&str])] = &[
            (|facts| facts.release = "5.10.0".to_owned(), &["fail kernel "]),
            (|facts| facts.release = "5.15.0-100".to_owned(), &["warn kernel "]),
            (|facts| facts.btf = false, &["warn btf "]),
            (|facts| facts.jit = Some(0), &["warn jit "]),
            (|facts| facts.lockdown = Some("confidentiality".to_owned()), &["fail lockdown "]),
            (|facts| facts.bpffs = false, &["warn bpffs "]),
            (|facts| facts.clock = Some(false), &["warn clock "]),
            (|facts| facts.capabilities = 1 << CAP_BPF, &["warn capabilities "]),
            (|facts| facts.memlock = Some(65_536), &[]),
            (
                |facts| (facts.memlock, facts.release) = (Some(65_536), "5.10.0".to_owned()),
                &["fail kernel ", "fail memlock "],
            ),
            (|facts| facts.forwarding = [Some(0), Some(1)], &["warn forwarding IPv4"]),
            (|facts| facts.conntrack = Some((95, 100)), &["warn conntrack "]),
            (|facts| facts.devices[0].state = None, &["fail interface lan0"]),
            (|facts| lan0(facts).up = false, &["fail interface lan0"]),
            (|facts| facts.devices[0].mode = None, &["fail interface lan0"]),
            (|facts| lan0(facts).others = vec![("ingress", "matchall".to_owned())], &["warn foreign_program lan0"]),
            (|facts| lan0(facts).others = vec![("xdp", "xdp_pass".to_owned())], &["warn foreign_program lan0"]),
            (
                |facts| {
                    lan0(facts).others = vec![("xdp", "xdp_pass".to_owned())];
                    facts.devices[0].wants_xdp = true;
                },
                &["fail foreign_program lan0"],
            ),
            (|facts| lan0(facts).features.extend(["rx-lro".to_owned()]), &[]),
            (
                |facts| {
                    facts.devices[0].mode = Some(Mode::Xdp);
                    lan0(facts).features.extend(["rx-lro".to_owned(), "rx-gro-hw".to_owned()]);
                    lan0(facts).driver = Some("veth".to_owned());
                },
                &["fail offloads lan0", "warn offloads lan0", "warn offloads lan0"],
            ),
            (
                |facts| {
                    (facts.devices[0].mode, facts.release) = (Some(Mode::Xdp), "5.15.1".to_owned());
                    lan0(facts).mtu = 9_000;
                },
                &["warn kernel ", "fail mtu lan0"],
            ),
            (|facts| facts.rp_filter_all = Some(1), &[]),
            (
                |facts| (facts.rp_filter_all, facts.devices[0].foreign_sources) = (Some(1), true),
                &["fail rp_filter lan0"],
            ),
            (
                |facts| {
                    facts.rules = vec![
                        ("ip nat prerouting".to_owned(), "tcp dport 25 redirect to :2525".to_owned()),
                        ("ip filter forward".to_owned(), "tcp dport 25 accept".to_owned()),
                    ];
                },
                &["warn firewall ip nat prerouting"],
            ),
            (|facts| facts.configuration = Some("cannot be read".to_owned()), &["warn configuration "]),
            (|facts| facts.daemon = Some(Err("cannot reach".to_owned())), &["fail daemon "]),
            (
                |facts| facts.daemon = Some(Ok(("0.0.1".to_owned(), Some("late".to_owned())))),
                &["warn daemon ", "fail daemon "],
            ),
            (|facts| facts.maps = vec![("FLOWS_V4".to_owned(), 90), ("RATES".to_owned(), 89)], &["warn map FLOWS_V4"]),
        ];
        for (change, expected) in cases {
            assert_eq!(problems(*change), *expected);
        }
    }

    #[test]
    fn rules_about_port_25_are_known() {
        for (rule, expected) in [
            ("tcp dport 25 redirect to :2525", true),
            ("tcp dport { 25, 465, 587 } accept", true),
            ("tcp dport { 465,25 } drop", true),
            ("tcp dport smtp counter packets 0 bytes 0 drop", true),
            ("tcp dport 20-30 accept", true),
            ("tcp dport != 25 accept", true),
            ("th dport 25 accept", true),
            ("-A FORWARD -p tcp -m tcp --dport 25 -j DROP", true),
            ("-A FORWARD -p tcp -m multiport --dports 25,587 -j DROP", true),
            ("-A FORWARD -p tcp -m tcp --sport 20:30 -j DROP", true),
            ("tcp dport 2525 accept", false),
            ("tcp dport 80 counter packets 25 bytes 1500 accept", false),
            ("ip daddr 10.0.0.25 tcp dport 80 accept", false),
            ("-A FORWARD -p tcp -m tcp --dport 80 -m limit --limit 25/sec -j DROP", false),
            ("", false),
        ] {
            assert_eq!(names_port_25(rule), expected, "{rule}");
        }
    }
}
