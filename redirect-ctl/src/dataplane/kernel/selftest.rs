//! Tries programs out before packets meet them: a build for another kernel, an object that was damaged, tables that it misreads.
//!
//! On tables of its own, a loaded object has to decide a few frames and rewrite them exactly as the host's own function does; on the live
//! tables, the program that explains and changes nothing has to find subscribers where user space finds them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp},
};
use ipnet::IpNet;
use redirect_common::{
    SMTP_PORT,
    flow::{Direction, Flags},
    maps::names,
    parse::Link,
    policy::{Action, Class, Fallback, Relay},
    reason::{Reason, Verdict},
    testkit::{FrameBuilder, Ip, MemoryTables, process},
    wire::protocol,
};

use super::{
    super::{Dataplane as _, Error, Operation, Probe},
    Capacities, KernelDataplane,
};

/// Enough for a handful of frames.
pub(super) const CAPACITIES: Capacities = Capacities { flows_max: 1_024, subscribers_max: 16 };

/// Subscribers of the live tables that are asked about.
const SAMPLES_MAX: usize = 16;

const CLIENTS: [u8; 2] = [0, 5];
const BLOCKED: [u8; 2] = [0, 6];
const RELAY: (Ipv4Addr, Ipv6Addr, u16) =
    (Ipv4Addr::new(10, 20, 0, 1), Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1), 2_525);

/// What each program gets to see, in this order.
const PROGRAMS: [(&str, Link, Direction); 5] = [
    (names::XDP_INGRESS, Link::Ethernet, Direction::Forward),
    (names::TC_INGRESS, Link::Ethernet, Direction::Forward),
    (names::TC_EGRESS, Link::Ethernet, Direction::Reply),
    (names::TC_INGRESS_IP, Link::Ip, Direction::Forward),
    (names::TC_EGRESS_IP, Link::Ip, Direction::Reply),
];

/// `object` is loaded on tables that nobody else uses.
pub(super) fn on_tables_of_its_own(object: Ebpf) -> Result<(), Error> {
    let mut dataplane = KernelDataplane::new(object)?;
    let tables = policy(&mut dataplane)?;
    for (name, link, direction) in PROGRAMS {
        let program = dataplane.object.program(name);
        let program = program.ok_or_else(|| Error::Load { reason: format!("no program {name}") })?;
        for frame in frames(link, direction) {
            let mut expected = frame.clone();
            let reason = process(&mut expected, link, &tables, direction);
            let Some((answer, left)) = run(program, &frame).map_err(|error| failed(name, &error.to_string()))? else {
                // Not loaded: this kernel has no use for it.
                break;
            };
            if answer != expected_answer(program, reason) || left != expected {
                let (reason, frame) = (reason.name(), dump(&frame, &left));
                let what = format!("a frame that is to leave by {reason} leaves by answer {answer}: {frame}");
                return Err(failed(name, &what));
            }
        }
    }
    Ok(())
}

fn failed(program: &str, what: &str) -> Error {
    Error::Load { reason: format!("the program {program} fails its test: {what}") }
}

fn dump(frame: &[u8], left: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    format!("{} became {}", hex(frame), hex(left))
}

/// One class that redirects and one that blocks, in the kernel and on the host.
fn policy(dataplane: &mut KernelDataplane) -> Result<MemoryTables, Error> {
    let (ipv4, ipv6, port) = RELAY;
    let relay = Relay::new(Some(SocketAddrV4::new(ipv4, port)), Some(SocketAddrV6::new(ipv6, port, 0, 0))).own();
    let mut tables = MemoryTables::default();
    tables.relays.insert(1, relay);
    dataplane.apply(&Operation::SetRelay { id: 1, relay })?;
    for (id, action) in [(1, Action::Redirect), (2, Action::Block)] {
        let class = Class::new(action, Fallback::Reject, 1);
        tables.classes.insert(id, class);
        dataplane.apply(&Operation::SetClass { id, class })?;
    }
    let builder = |client| FrameBuilder { client, ..FrameBuilder::syn(Ip::V4) };
    for (client, prefix_v4, prefix_v6, class) in [(CLIENTS, 16, 64, 1), (BLOCKED, 32, 128, 2)] {
        for (address, len) in [
            (IpAddr::from(builder(client).client_v4()), prefix_v4),
            (IpAddr::from(builder(client).client_v6()), prefix_v6),
        ] {
            let prefix = IpNet::new_assert(address, len).trunc();
            dataplane.apply(&Operation::SetSubscriber { prefix, class })?;
            let key = (len, prefix.addr());
            match address {
                IpAddr::V4(_) => tables.v4.borrow_mut().prefixes.insert(key, class),
                IpAddr::V6(_) => tables.v6.borrow_mut().prefixes.insert(key, class),
            };
        }
    }
    Ok(tables)
}

/// Bystanders, a connection that is redirected and one that is blocked; or what the relay and others answer.
fn frames(link: Link, direction: Direction) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        let syn = FrameBuilder { link, ..FrameBuilder::syn(ip) };
        let other_port = FrameBuilder { server_port: 443, ..syn.clone() };
        let not_tcp = FrameBuilder { protocol: protocol::UDP, ..syn.clone() };
        match direction {
            Direction::Forward => {
                let blocked = FrameBuilder { client: BLOCKED, ..syn.clone() };
                let acknowledgment = FrameBuilder { flags: Flags::ACK, sequence: 1_001, ..syn.clone() };
                let builders = [&other_port, &not_tcp, &syn, &blocked, &acknowledgment];
                frames.extend(builders.map(FrameBuilder::build));
            }
            Direction::Reply => {
                let reversed = |builder: &FrameBuilder| FrameBuilder { reversed: true, ..builder.clone() }.build();
                frames.extend([reversed(&other_port), reversed(&not_tcp)]);
                let answer = FrameBuilder { flags: Flags::SYN | Flags::ACK, acknowledgment: 1_001, ..syn.clone() };
                let (ipv4, ipv6, port) = RELAY;
                frames.push(match ip {
                    Ip::V4 => answer.build_between(&ipv4.octets(), port, &syn.client_v4(), syn.client_port),
                    Ip::V6 => answer.build_between(&ipv6.octets(), port, &syn.client_v6(), syn.client_port),
                });
            }
        }
    }
    frames
}

/// What a program answers and what the frame has become; `None` where it is not loaded.
fn run(program: &Program, frame: &[u8]) -> Result<Option<(u32, Vec<u8>)>, ProgramError> {
    let mut left = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut left), ..TestRunOptions::new() };
    let result = match program {
        Program::Xdp(xdp) => test_run_xdp(xdp, options),
        Program::SchedClassifier(classifier) => test_run_tc(classifier, options),
        _ => return Ok(None),
    };
    match result {
        Ok(result) => {
            left.truncate(result.data_size_out as usize);
            Ok(Some((result.return_value, left)))
        }
        Err(ProgramError::NotLoaded) => Ok(None),
        Err(error) => Err(error),
    }
}

fn test_run_xdp(program: &Xdp, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
    program.test_run(options)
}

fn test_run_tc(program: &SchedClassifier, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
    program.test_run(options)
}

/// `enum xdp_action` and the actions of tc (`include/uapi/linux/bpf.h`, `include/uapi/linux/pkt_cls.h`).
const fn expected_answer(program: &Program, reason: Reason) -> u32 {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const TC_UNSPECIFIED: u32 = u32::MAX;
    const TC_SHOT: u32 = 2;
    let dropped = matches!(reason.verdict(), Verdict::Drop);
    match (program, dropped) {
        (Program::Xdp(_), true) => XDP_DROP,
        (Program::Xdp(_), false) => XDP_PASS,
        (_, true) => TC_SHOT,
        (_, false) => TC_UNSPECIFIED,
    }
}

/// No counter, flow or event comes of it.
pub(super) fn on_live_tables(dataplane: &KernelDataplane) -> Result<(), Error> {
    let classes = dataplane.classes()?;
    for prefix in dataplane.subscribers.some(SAMPLES_MAX)? {
        let client = prefix.addr();
        let server: IpAddr = match client {
            IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, 9).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(),
        };
        let probe = Probe {
            client: SocketAddr::new(client, 40_000),
            server: SocketAddr::new(server, SMTP_PORT),
            interface: None,
        };
        let told = dataplane.explain(&probe)?;
        let expected = told.subscriber.map_or(0, |(_, class)| class);
        let expected = if classes.contains_key(&expected) { expected } else { 0 };
        if told.class != expected {
            let what = format!("{client} has class {expected}, and the program says {}", told.class);
            return Err(failed(names::EXPLAIN, &what));
        }
    }
    Ok(())
}
