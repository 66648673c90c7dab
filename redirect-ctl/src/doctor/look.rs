//! Gathers [`Facts`] of this host, in the network namespace of this process. What cannot be seen stays unknown.

use std::{collections::BTreeSet, ffi::CStr, fs, io, mem::MaybeUninit, path::Path, process::Stdio, time::Duration};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::Value;
use tokio::process::Command;

use super::{Device, DeviceState, Facts, names_port_25};
use crate::{
    dataplane::kernel::{
        inspect,
        interface::{driver, ethtool, ioctl, request},
    },
    limits,
};

/// What the host is like; `devices` are completed, and the daemon's part is left as it is.
pub async fn look(devices: Vec<Device>, wait: Duration) -> Facts {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut facts = Facts {
        release,
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|text| chosen(&text)),
        bpffs: fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| has_bpffs(&mounts)),
        capabilities: fs::read_to_string("/proc/self/status").map_or(0, |status| capabilities(&status)),
        memlock: getrlimit(Resource::RLIMIT_MEMLOCK)
            .ok()
            .map(|(soft, _)| soft)
            .filter(|soft| *soft != libc::RLIM_INFINITY),
        forwarding: [number("/proc/sys/net/ipv4/ip_forward"), number("/proc/sys/net/ipv6/conf/all/forwarding")],
        rp_filter_all: number("/proc/sys/net/ipv4/conf/all/rp_filter"),
        rules: rules(wait).await,
        conntrack: number("/proc/sys/net/netfilter/nf_conntrack_count")
            .zip(number("/proc/sys/net/netfilter/nf_conntrack_max")),
        clock: clock(),
        ..Facts::default()
    };
    for mut device in devices {
        device.state = state(&device.name, wait).await;
        facts.devices.push(device);
    }
    facts
}

fn number<T: std::str::FromStr>(file: &str) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    })
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the kernel believes that its clock is right.
fn clock() -> Option<bool> {
    // SAFETY: plain integers, for which zeros are valid; no mode means that nothing is set.
    let mut clock: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `clock` lives and is what the call fills.
    match unsafe { libc::adjtimex(&raw mut clock) } {
        -1 => None,
        state => Some(state != libc::TIME_ERROR),
    }
}

/// `None` where there is no such device.
async fn state(name: &str, wait: Duration) -> Option<DeviceState> {
    let mut asked = request(name).ok()?;
    ioctl(libc::SIOCGIFFLAGS, &mut asked).ok()?;
    // SAFETY: the kernel has just filled this member in.
    let flags = unsafe { asked.ifr_ifru.ifru_flags };
    let mut asked = request(name).ok()?;
    // SAFETY: the kernel has just filled this member in.
    let mtu = ioctl(libc::SIOCGIFMTU, &mut asked).map(|()| unsafe { asked.ifr_ifru.ifru_mtu });
    Some(DeviceState {
        up: i32::from(flags) & libc::IFF_UP != 0,
        mtu: mtu.ok().and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(0),
        driver: driver(name),
        rp_filter: number(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")),
        features: features(name).unwrap_or_default(),
        others: others(name, wait).await,
    })
}

/// Programs and filters of others at a device's hooks.
async fn others(name: &str, wait: Duration) -> Vec<(&'static str, String)> {
    let mut others = Vec::new();
    let link = run("ip", &["-j", "-d", "link", "show", "dev", name], wait).await.unwrap_or_default();
    if let Some(program) = serde_json::from_str(&link).ok().and_then(|link: Value| foreign_xdp(&link)) {
        others.push(("xdp", program));
    }
    for (hook, kind) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
        if let Ok((_, programs)) = SchedClassifier::query_tcx(name, kind) {
            let names = programs.iter().map(|program| program.name_as_str().unwrap_or("without a name").to_owned());
            others
                .extend(names.filter(|name| !inspect::is_ours(name)).map(|name| (hook, format!("tcx program {name}"))));
        }
        let filters = run("tc", &["filter", "show", "dev", name, hook], wait).await.unwrap_or_default();
        others.extend(foreign_filters(&filters).into_iter().map(|filter| (hook, filter)));
    }
    others
}

/// The XDP program in what `ip -j link` says, if it is not ours.
fn foreign_xdp(link: &Value) -> Option<String> {
    let program = link.get(0)?.get("xdp")?.get("prog")?;
    let name = program.get("name").and_then(Value::as_str).unwrap_or_default();
    let text = || format!("{} (id {})", if name.is_empty() { "without a name" } else { name }, program["id"]);
    (!inspect::is_ours(name)).then(text)
}

/// The filters in what `tc filter show` says that are not ours, each once.
fn foreign_filters(text: &str) -> BTreeSet<String> {
    let mut filters = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("filter ")) {
        let mut words = line.split_whitespace().skip_while(|word| *word != "pref").skip(2);
        let Some(kind) = words.next() else { continue };
        // The line that names no program says only that there are filters of this kind.
        let program = words.find_map(|word| word.split_once(":[")).map(|(name, _)| name);
        match program {
            Some(name) if inspect::is_ours(name) => {}
            Some(name) => {
                filters.insert(format!("{kind} filter {name}"));
            }
            None if kind == "bpf" && !line.contains("bytecode") => {}
            None => {
                filters.insert(format!("{kind} filter"));
            }
        }
    }
    filters
}

/// Rules about port 25 of nftables and, where nft(8) does not show them, of iptables.
async fn rules(wait: Duration) -> Vec<(String, String)> {
    // Terse: without the elements of sets, of which there may be millions.
    let mut rules = nft_rules(&run("nft", &["-t", "list", "ruleset"], wait).await.unwrap_or_default());
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let text = run(program, &[], wait).await.unwrap_or_default();
        rules.extend(text.lines().filter(|line| names_port_25(line)).map(|line| (program.to_owned(), line.to_owned())));
    }
    rules
}

/// Where a rule is, and the rule.
fn nft_rules(ruleset: &str) -> Vec<(String, String)> {
    let (mut table, mut chain) = ("", "");
    let mut rules = Vec::new();
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if names_port_25(line) {
            rules.push((format!("{table} {chain}"), line.to_owned()));
        }
    }
    rules
}

/// What a program prints; `None` where there is none, it fails, or it takes longer than `wait`.
pub async fn run(program: &str, args: &[&str], wait: Duration) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(wait, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let end = text.floor_char_boundary(limits::TOOL_OUTPUT_BYTES_MAX);
    output.status.success().then(|| text[..end].to_owned())
}

// Of include/uapi/linux/ethtool.h.
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const STRINGS_OF_FEATURES: u32 = 4;
const STRING_BYTES: usize = 32;
/// The kernel has some 60 features, in words of 32.
const FEATURES_MAX: usize = 256;

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; STRING_BYTES]; FEATURES_MAX],
}

/// `struct ethtool_gfeatures`, each block of available, requested, active and never changed.
#[repr(C)]
struct Features {
    command: u32,
    blocks: u32,
    words: [[u32; 4]; FEATURES_MAX / 32],
}

/// The names of the offloads that are on.
fn features(name: &str) -> io::Result<BTreeSet<String>> {
    let mut strings = Box::new(Strings {
        command: GET_STRINGS,
        set: STRINGS_OF_FEATURES,
        count: 0,
        names: [[0; STRING_BYTES]; FEATURES_MAX],
    });
    // The kernel writes all names that it has: as many as its count of them says, which has to be asked first.
    let count = feature_count(name)?;
    if count > FEATURES_MAX {
        return Err(io::Error::other(format!("{count} features")));
    }
    // SAFETY: the command's structure, with room for `count` names.
    unsafe { ethtool(name, &mut *strings) }?;
    let mut features = Features {
        command: GET_FEATURES,
        blocks: u32::try_from(FEATURES_MAX / 32).unwrap_or(0),
        words: [[0; 4]; FEATURES_MAX / 32],
    };
    // SAFETY: the command's structure, with as many blocks as it says.
    unsafe { ethtool(name, &mut features) }?;
    let is_on = |at: &usize| features.words[at / 32][2] & 1 << (at % 32) != 0;
    let text = |at: usize| CStr::from_bytes_until_nul(&strings.names[at]).ok()?.to_str().ok();
    Ok((0..count).filter(is_on).filter_map(text).map(str::to_owned).collect())
}

/// `struct ethtool_sset_info` with room for one count.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

fn feature_count(name: &str) -> io::Result<usize> {
    const GET_SET_INFO: u32 = 0x37;
    let mut info = SetInfo { command: GET_SET_INFO, reserved: 0, mask: 1 << STRINGS_OF_FEATURES, count: 0 };
    // SAFETY: the command's structure, with room for the count of the one set that it asks for.
    unsafe { ethtool(name, &mut info) }?;
    Ok(info.count as usize)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_program_that_is_not_ours_is_foreign() {
        let link = |name: &str| json!([{"ifname": "lan0", "xdp": {"mode": 1, "prog": {"id": 7, "name": name}}}]);
        assert_eq!(foreign_xdp(&link("redirect_xdp")), None);
        assert_eq!(foreign_xdp(&link("xdp_dispatcher")), Some("xdp_dispatcher (id 7)".to_owned()));
        assert_eq!(
            foreign_xdp(&json!([{"ifname": "lan0", "xdp": {"prog": {"id": 7}}}])),
            Some("without a name (id 7)".to_owned())
        );
        assert_eq!(foreign_xdp(&json!([{"ifname": "lan0"}])), None);
    }

    #[test]
    fn filters_of_others_are_told_once() {
        let text = "filter protocol all pref 49151 matchall chain 0\n\
                    filter protocol all pref 49151 matchall chain 0 handle 0x1\n  not_in_hw\n\taction order 1: gact action drop\n\
                    filter protocol all pref 49152 bpf chain 0\n\
                    filter protocol all pref 49152 bpf chain 0 handle 0x1 redirect_in:[1234] direct-action not_in_hw id 7\n\
                    filter protocol all pref 49153 bpf chain 0 handle 0x1 other.o:[main] direct-action\n";
        let found: Vec<_> = foreign_filters(text).into_iter().collect();
        assert_eq!(found, ["bpf filter other.o", "matchall filter"]);
        assert_eq!(foreign_filters(""), BTreeSet::new());
    }

    #[test]
    fn rules_are_told_with_their_place() {
        let ruleset = "table ip nat {\n\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                       \t\ttcp dport 25 redirect to :2525\n\t\ttcp dport 80 accept\n\t}\n}\ntable inet filter {\n\tchain forward {\n\
                       \t\ttcp dport { 25, 465 } drop\n\t}\n}\n";
        let expected = [
            ("ip nat prerouting", "tcp dport 25 redirect to :2525"),
            ("inet filter forward", "tcp dport { 25, 465 } drop"),
        ];
        assert_eq!(nft_rules(ruleset), expected.map(|(place, rule)| (place.to_owned(), rule.to_owned())));
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert!(has_bpffs("proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"));
        assert!(!has_bpffs("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000000c000001000\n"), 0xc0_0000_1000);
    }
}
