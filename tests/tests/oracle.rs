//! An oracle that shares no code with the product: scapy writes each frame and the frame that must come out, checksums computed from
//! scratch; the loaded programs must produce exactly that, for the reason named.
//!
//! `tests/oracle/author.py` has the matrix: {untagged, 802.1Q, two kinds of QinQ} x {plain, PPPoE} and no Ethernet at all, x {IPv4, IPv4 with
//! options, IPv6 with extension headers} x the segments of a connection, and the frames that are none of our business.
#![expect(clippy::unwrap_used, reason = "a test panics where it stands")]

use std::{collections::BTreeMap, process::Command, sync::OnceLock};

use redirect_common::{
    policy::{Action, Class, Fallback, OnClassChange, Relay},
    reason::{Reason, Verdict},
};
use redirect_tests::kernel::{Hook, Kernel, Policy};
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
    let output = Command::new(PYTHON).arg(AUTHOR).output().expect("python3 runs; `cargo xtask setup` installs it");
    assert!(
        output.status.success(),
        "the author failed; `cargo xtask setup` installs python3-scapy: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
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
        let hook = match line.hook.as_str() {
            "ingress" => ingress,
            "egress" => Hook::TcEgress,
            "ingress without Ethernet" => Hook::TcIngressIp,
            "egress without Ethernet" => Hook::TcEgressIp,
            other => panic!("no hook {other}"),
        };
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

/// Every frame of the matrix, cut after every byte: whatever is left passes, or is dropped whole; never changed, never a fault. What may
/// still be redirected is a frame that has lost nothing but Ethernet padding, and the matrix has none.
#[test]
fn no_cut_of_a_frame_is_changed() {
    let kernel = Kernel::load(&policy(), 1024);
    for line in authored().iter().filter(|line| line.reason == "flow_new" && line.hook == "ingress").step_by(2) {
        let frame = bytes(&line.frame);
        for len in 1..frame.len() {
            for hook in Hook::ETHERNET {
                // The harness refuses what is shorter than an Ethernet header, so there is nothing to run.
                if let Some((code, out)) = kernel.run(hook, &frame[..len]) {
                    assert_eq!(
                        (code, &out[..]),
                        (hook.code(Verdict::Pass), &frame[..len]),
                        "{} cut to {len}, {hook:?}",
                        line.about
                    );
                } else {
                    assert!(len < 60, "the harness refused {len} bytes");
                }
            }
        }
    }
}
