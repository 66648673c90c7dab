//! An oracle that shares no code with the product: scapy writes each frame and the frame that must come out, checksums computed from
//! scratch; the loaded programs must produce exactly that, for the reason named.
//!
//! `tests/oracle/author.py` writes the matrix that is spelled out here, and beside it whole connections, refusals, fragments, errors, and the
//! frames that are none of our business, on each kind of link and network header.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
};

use redirect_common::{
    policy::{Action, Class, Fallback, OnClassChange, Relay},
    reason::{Reason, Verdict},
    testkit::{process, properties},
};
use redirect_tests::kernel::{Hook, Kernel, Policy, model};
use serde::Deserialize;

/// Debian's interpreter, which is the one that has Debian's scapy.
const PYTHON: &str = "/usr/bin/python3";
const AUTHOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/author.py");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    about: String,
    hook: String,
    frame: String,
    reason: String,
    expect: String,
    /// Of the matrix; empty beside it.
    cell: String,
}

impl Line {
    fn hook(&self, ingress: Hook) -> Hook {
        match self.hook.as_str() {
            "ingress" => ingress,
            "egress" => Hook::TcEgress,
            "ingress without Ethernet" => Hook::TcIngressIp,
            "egress without Ethernet" => Hook::TcEgressIp,
            other => panic!("no hook {other}"),
        }
    }
}

/// What there is between Ethernet and IP; behind these, the devices without Ethernet.
const TAGS: [&str; 4] = ["untagged", "802.1Q", "QinQ 88a8+8100", "QinQ 8100+8100"];
const SESSIONS: [&str; 2] = ["", ", PPPoE"];
const NO_ETHERNET: &str = "no Ethernet";
const NETWORKS: [&str; 8] = [
    "IPv4",
    "IPv4 with options",
    "IPv4 with 40 bytes of options",
    "IPv6",
    "IPv6 with hop-by-hop",
    "IPv6 with destination options",
    "IPv6 with a used-up routing header",
    "IPv6 with a fragment header",
];
const KINDS: [&str; 8] =
    ["SYN", "SYN-ACK", "ACK", "FIN", "RST", "first fragment", "later fragment", "quoted ICMP error"];
const WAYS: [&str; 2] = ["ingress", "egress"];
/// Of each pair of programs: XDP and tc, tc and tc.
const CELLS: usize = (TAGS.len() * SESSIONS.len() + 1) * NETWORKS.len() * KINDS.len() * WAYS.len();
const _: () = assert!(CELLS == 1152);

/// The matrix.
fn cells() -> BTreeSet<String> {
    let ethernet = TAGS.iter().flat_map(|tags| SESSIONS.map(|session| format!("{tags}{session}")));
    let links: Vec<_> = ethernet.chain([NO_ETHERNET.to_owned()]).collect();
    let mut cells = BTreeSet::new();
    for link in &links {
        for network in NETWORKS {
            for kind in KINDS {
                cells.extend(WAYS.map(|way| format!("{link}; {network}; {kind}; {way}")));
            }
        }
    }
    cells
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Written once for all tests: scapy takes its time.
fn authored() -> &'static [Line] {
    static LINES: OnceLock<Vec<Line>> = OnceLock::new();
    LINES.get_or_init(author)
}

fn author() -> Vec<Line> {
    const SHARES: [usize; 2] = [0, 1];
    let start = |share: usize| {
        let mut command = Command::new(PYTHON);
        command.arg(AUTHOR).args([share, SHARES.len()].map(|number| number.to_string()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("python3 runs; `cargo xtask setup` installs it")
    };
    thread::scope(|scope| {
        let shares = SHARES.map(|share| scope.spawn(move || start(share).wait_with_output().unwrap()));
        shares.into_iter().flat_map(|share| lines(&share.join().unwrap())).collect()
    })
}

fn lines(written: &Output) -> Vec<Line> {
    assert!(
        written.status.success(),
        "the author failed; `cargo xtask setup` installs python3-scapy: {}",
        String::from_utf8_lossy(&written.stderr)
    );
    let text = str::from_utf8(&written.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn policy() -> Policy {
    let relay = Relay::new(Some("10.20.0.1:2525".parse().unwrap()), Some("[fd00:20::1]:2525".parse().unwrap()));
    Policy {
        subscribers: [
            ("10.20.0.0", 16, 1),
            ("10.21.0.0", 16, 2),
            ("10.22.0.0", 16, 3),
            ("10.23.0.0", 16, 4),
            ("fd00:20::", 32, 1),
            ("fd00:21::", 32, 2),
            ("fd00:22::", 32, 3),
            ("fd00:23::", 32, 4),
        ]
        .map(|(address, len, class)| (address.parse().unwrap(), len, class))
        .into(),
        classes: [
            (1, Class::new(Action::Redirect, Fallback::Pass, 1).with_on_class_change(OnClassChange::Keep)),
            (2, Class::new(Action::Pass, Fallback::Pass, 0)),
            (3, Class::new(Action::Block, Fallback::Pass, 0)),
            (4, Class::new(Action::Reject, Fallback::Pass, 0)),
        ]
        .into(),
        relays: [(1, relay)].into(),
    }
}

/// Packets counted so far, by reason alone.
fn counted(kernel: &Kernel) -> BTreeMap<Reason, u64> {
    let mut counted = BTreeMap::new();
    for ((_, reason), count) in kernel.counts() {
        *counted.entry(reason).or_default() += count.packets;
    }
    counted
}

fn check(ingress: Hook) {
    let kernel = Kernel::load(&policy(), 1024);
    let lines = authored();
    assert!(lines.len() > 9000, "the author wrote {} frames only", lines.len());
    let mut expected_counts: BTreeMap<Reason, u64> = BTreeMap::new();
    for line in lines {
        let hook = line.hook(ingress);
        let reason =
            *Reason::ALL.iter().find(|reason| reason.name() == line.reason).expect("the author names a reason");
        let (frame, expected) = (bytes(&line.frame), bytes(&line.expect));
        let before = kernel.count_all_classes(reason);
        let (code, out) = kernel.run(hook, &frame).expect("the harness takes whole frames");
        assert_eq!(
            kernel.count_all_classes(reason),
            before + 1,
            "{}: not counted as {}; {:?}",
            line.about,
            line.reason,
            counted(&kernel)
        );
        assert_eq!(code, hook.code(reason.verdict()), "{}", line.about);
        assert!(
            out == expected,
            "{}: {hook:?} made of\n{frame:02x?}\n{out:02x?} instead of\n{expected:02x?}",
            line.about
        );
        assert_eq!(
            frame != expected,
            matches!(reason.verdict(), Verdict::Redirect | Verdict::Reject),
            "{}: the author contradicts itself",
            line.about
        );
        *expected_counts.entry(reason).or_default() += 1;
    }
    assert_eq!(counted(&kernel), expected_counts, "nothing else was counted");
}

#[test]
fn xdp_makes_what_the_oracle_says() {
    check(Hook::Xdp);
}

#[test]
fn tc_makes_what_the_oracle_says() {
    check(Hook::TcIngress);
}

#[test]
fn the_author_writes_every_cell_of_the_matrix_once() {
    let mut written: Vec<_> = authored().iter().map(|line| line.cell.clone()).filter(|cell| !cell.is_empty()).collect();
    written.sort();
    assert_eq!(written.len(), CELLS);
    assert_eq!(written, cells().into_iter().collect::<Vec<_>>());
    // A cell whose frame is not rewritten shows nothing: what passes are errors in fragments.
    let passes = |line: &&Line| !line.cell.is_empty() && line.frame == line.expect;
    let passing: Vec<_> = authored().iter().filter(passes).collect();
    assert!(passing.iter().all(|line| line.cell.contains("fragment header; quoted ICMP error")), "{}", passing.len());
    assert_eq!(passing.len(), 9 * WAYS.len());
}

/// Bytes that `BPF_PROG_TEST_RUN` wants of a frame: an Ethernet header, and in a socket buffer the IP header that this announces.
fn shortest(hook: Hook, frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) if hook != Hook::Xdp => 34,
        Some([0x86, 0xdd]) if hook != Hook::Xdp => 54,
        _ => 14,
    }
}

/// Every frame that the author and the test kit write, and every beginning of it, from no byte to all: the loaded programs and the host's
/// function decide alike, and whatever is no whole datagram stays as it is.
fn check_cuts(ingress: Hook) {
    let kernel = Kernel::load(&policy(), 1024);
    let host = model(&policy(), 1024);
    let authored = authored().iter().map(|line| (line.hook(ingress), bytes(&line.frame)));
    let [parse, ..] = properties::TARGETS;
    let built = (parse.seeds)().into_iter().map(|frame| (ingress, frame));
    let (mut run, mut refused) = (0, 0);
    for (hook, frame) in authored.chain(built) {
        for len in (0..=frame.len()).rev() {
            let cut = &frame[..len];
            let mut expected = cut.to_vec();
            let decide = |frame: &mut Vec<u8>, host| process(frame, hook.link(), host, hook.direction()).verdict();
            let Some((code, out)) = kernel.run(hook, cut) else {
                // Of what the harness does not take, the host's own answer has to do.
                assert!(len < shortest(hook, cut), "the harness refused {len} bytes of {frame:02x?}");
                let uncounted = model(&policy(), 1024);
                assert_eq!(decide(&mut expected, &uncounted), Verdict::Pass);
                assert_eq!(expected, cut);
                refused += 1;
                continue;
            };
            assert_eq!(code, hook.code(decide(&mut expected, &host)), "{hook:?}, {len} bytes of {frame:02x?}");
            assert_eq!(out, expected, "{hook:?}, {len} bytes of {frame:02x?}");
            run += 1;
        }
    }
    let counted_on_the_host: BTreeMap<_, _> = host.counts.borrow().clone();
    assert_eq!(kernel.counts(), counted_on_the_host);
    println!("{run} beginnings of frames, and {refused} that are too short to be run");
    assert!(run > 500_000, "{run}");
}

#[test]
fn xdp_decides_every_cut_of_a_frame_as_the_host_does() {
    check_cuts(Hook::Xdp);
}

#[test]
fn tc_decides_every_cut_of_a_frame_as_the_host_does() {
    check_cuts(Hook::TcIngress);
}
