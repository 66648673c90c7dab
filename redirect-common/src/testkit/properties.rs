//! What holds of the data plane for any bytes: one function for each fuzz target, which panics where it does not hold.
//!
//! `tests/fuzz` runs them on what libFuzzer makes up, `tests/tests/corpus.rs` on the inputs that were kept. Whether a frame was treated right
//! is judged by [`Reading`], which shares no code with the parser, and by checksums summed over everything that they cover.

use std::{collections::BTreeMap, net::IpAddr, vec::Vec};

use super::{
    FamilyState, FrameBuilder, Ip, MemoryTables, process,
    reading::{End, Part, Reading},
};
use crate::{
    address::Address,
    dry_run::DryRun,
    flow::{Direction, Flags, Tuple},
    handle,
    parse::{self, Kind, L3_MASK, Link},
    policy::{Action, Class, Fallback, Limits, OnClassChange, OnDaemonDown, Relay},
    reason::{Reason, Verdict},
    tables::Socket,
};

/// A fuzz target: its name, what it checks, and inputs to begin with.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Those of the data plane.
pub const TARGETS: [Target; 3] = [
    Target { name: "parse", check: parse, seeds: parse_seeds },
    Target { name: "handle", check: handle, seeds: handle_seeds },
    Target { name: "icmp", check: icmp, seeds: icmp_seeds },
];

const RELAY_PORT: u16 = 2525;
const LINKS: [Link; 2] = [Link::Ethernet, Link::Ip];

/// The parser finds what another reading of the RFCs finds, and nothing outside the frame. The input is a frame.
pub fn parse(frame: &[u8]) {
    for link in LINKS {
        let (parsed, reading) = (parse::parse(frame, link), Reading::of(frame, link));
        match (parsed, reading) {
            (Ok(headers), Some(reading)) => {
                let part = match headers.kind {
                    Kind::Segment => Part::Segment,
                    Kind::FirstFragment => Part::First,
                    Kind::LaterFragment => Part::Later,
                    Kind::IcmpError => Part::Error,
                };
                let family = if headers.family == parse::Family::V4 { Ip::V4 } else { Ip::V6 };
                let found = Reading { family, part, ip: headers.l3, transport: headers.l4, end: headers.end() };
                assert_eq!(found, reading);
                assert!(headers.end() <= frame.len() && headers.l3 <= L3_MASK);
                assert_eq!(headers.blurred(0), headers, "no bit of an offset is lost");
                if let Some([(_, source), (_, destination)]) = reading.ends(frame) {
                    assert_eq!(headers.ports, [source, destination].map(u16::to_be_bytes));
                    // What follows the datagram plays no part, if it does not belong to a session's frame.
                    assert!(headers.pppoe || parse::parse(&frame[..headers.end()], link) == Ok(headers));
                }
            }
            (Err(reason), None) => assert_eq!(reason.verdict(), Verdict::Pass, "{reason:?}"),
            // Shorter than its own headers: no host takes such.
            (Ok(headers), None) => {
                let needed = match headers.kind {
                    Kind::LaterFragment => headers.l4,
                    Kind::IcmpError => headers.l4 + 8,
                    Kind::Segment | Kind::FirstFragment => panic!("{headers:?} of no segment"),
                };
                assert!(headers.end() < needed, "{headers:?}");
            }
            (Err(reason), Some(reading)) => panic!("{reason:?} of {reading:?}"),
        }
    }
}

/// Every frame of a story is counted once, is changed where its verdict says so and nowhere else, keeps every checksum as right as it was,
/// and goes between the two whose connection it is; the tables stay whole. The input is a `Story`.
pub fn handle(input: &[u8]) {
    reasons(input);
}

/// The bit of a story's first byte that says that no daemon looks after the relays.
const WITHOUT_DAEMON: u8 = 8;

/// The ways out that the frames of a story take, after [`handle()`]'s checks.
pub fn reasons(story: &[u8]) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let Some((setting, mut steps)) = story.split_first() else { return reasons };
    let link = LINKS[usize::from(setting & 1)];
    let mut world = World::new(setting & 2 != 0, setting & 4 != 0);
    world.tables.daemon_down = setting & WITHOUT_DAEMON != 0;
    while let Some((&step, rest)) = steps.split_first() {
        steps = match (step & 7, rest) {
            (6, [seconds, rest @ ..]) => {
                world.pass_time((*seconds).into());
                rest
            }
            (7, [class, rest @ ..]) => {
                world.change_class((*class).into());
                rest
            }
            (_, [high, low, rest @ ..]) => {
                let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
                let (frame, rest) = rest.split_at(len);
                let direction = if step & 7 < 4 { Direction::Forward } else { Direction::Reply };
                reasons.push(world.decide(frame, link, direction));
                rest
            }
            _ => break,
        };
    }
    reasons
}

/// As [`handle()`], for an error about a flow that is there; and an error that quotes a packet of the flow to whoever sent that is translated,
/// and no other. The input is a byte of `Error`'s choices, and the ICMP message without its checksum.
pub fn icmp(input: &[u8]) {
    let Some((&choices, message)) = input.split_first() else { return };
    let error = Error::of(choices);
    let mut world = World::new(true, false);
    let flow = if error.steered { FrameBuilder { client: [STEER, 5], ..error.flow() } } else { error.flow() };
    for (direction, frame) in handshake(&flow) {
        world.decide(&frame, error.flow().link, direction);
    }
    let frame = error.frame(&flow, message);
    let reason = world.decide(&frame, flow.link, error.direction);

    let quoted = Reading::of(&frame, flow.link).and_then(|reading| {
        let ends = reading.quote(&frame)?.ends;
        // An error goes to the source of what it quotes.
        (reading.addresses(&frame)[1] == ends[0].0).then_some(ends)
    });
    let [client, server] =
        Reading::of(&flow.build(), flow.link).and_then(|reading| reading.ends(&flow.build())).expect("a segment");
    let relay = relay_end(flow.ip);
    let expected = match (error.direction, error.steered) {
        (Direction::Forward, false) if quoted == Some([server, client]) => Reason::IcmpRedirect,
        (Direction::Forward, true) if quoted == Some([server, client]) => Reason::IcmpSteer,
        (Direction::Reply, false) if quoted == Some([client, relay]) => Reason::IcmpRedirect,
        _ => return assert_eq!(reason.verdict(), Verdict::Pass, "{reason:?}"),
    };
    assert_eq!(reason, expected);
}

/// Tables with a policy, and what they have promised.
struct World {
    tables: MemoryTables,
    /// By the tuple that a flow's packets leave with, the one that they came with.
    flows: BTreeMap<[End; 2], [End; 2]>,
    /// Every entry finds room, as it does in a dry run.
    roomy: bool,
}

/// The third octet of the subscribers whose class is steered; their first port has a connected socket.
const STEER: u8 = 4;

impl World {
    fn new(steering: bool, cramped: bool) -> Self {
        let mut tables = MemoryTables { now_s: 1000, steering, ..MemoryTables::default() };
        if cramped {
            tables.established_max = 2;
            tables.resets_left.set(2);
        }
        let [v4, v6] = [Ip::V4, Ip::V6].map(|ip| relay_end(ip).0);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else { unreachable!("one of each family") };
        let endpoint = (std::net::SocketAddrV4::new(v4, RELAY_PORT), std::net::SocketAddrV6::new(v6, RELAY_PORT, 0, 0));
        let relay = Relay::new(Some(endpoint.0), Some(endpoint.1)).own();
        tables.relays =
            [(1, relay), (2, relay.steered(false)), (3, Relay::new(Some(endpoint.0), None)), (4, relay.embedded())]
                .into();
        let limits = Limits { rate: 1, burst: 3, open_max: 1, lock_after: 3, lock_s: 2 };
        let redirect = |fallback, relay| Class::new(Action::Redirect, fallback, relay);
        let classes = [
            redirect(Fallback::Pass, 1),
            Class::new(Action::Pass, Fallback::Pass, 0),
            Class::new(Action::Block, Fallback::Pass, 0),
            Class::new(Action::Reject, Fallback::Pass, 0),
            redirect(Fallback::Block, 2),
            redirect(Fallback::Pass, 1).with_on_class_change(OnClassChange::Keep),
            redirect(Fallback::Pass, 1).with_limits(limits),
            redirect(Fallback::Reject, 3),
            redirect(Fallback::Block, 0),
            redirect(Fallback::Pass, 0),
            redirect(Fallback::Block, 1).with_on_daemon_down(OnDaemonDown::Pass),
            redirect(Fallback::Block, 1).with_on_daemon_down(OnDaemonDown::Block),
            redirect(Fallback::Block, 1).with_on_daemon_down(OnDaemonDown::Reject),
            redirect(Fallback::Pass, 4),
        ];
        // The subscribers of 10.20.N.0/24 and fd00:20::N:0/112 are of class N + 1, as long as nobody changes it.
        for (number, class) in (0..).zip(classes) {
            tables.classes.insert(number + 1, class);
        }
        let world = Self { tables, flows: BTreeMap::new(), roomy: !cramped };
        for network in 0..14u8 {
            world.set_class(network, u16::from(network) + 1);
        }
        for ip in [Ip::V4, Ip::V6] {
            world.connect_socket(&FrameBuilder { client: [STEER, 5], ..FrameBuilder::syn(ip) });
        }
        world
    }

    fn set_class(&self, network: u8, class: u16) {
        let v6 = [0xfd00, 0x20, 0, 0, 0, 0, network.into(), 0];
        self.tables.v4.borrow_mut().prefixes.insert((24, [10, 20, network, 0].into()), class);
        self.tables.v6.borrow_mut().prefixes.insert((112, v6.into()), class);
    }

    fn connect_socket(&self, flow: &FrameBuilder) {
        let ports = [flow.client_port, flow.server_port].map(u16::to_be_bytes);
        let (v4, v6) = ([flow.client_v4(), flow.server_v4()], [flow.client_v6(), flow.server_v6()]);
        match flow.ip {
            Ip::V4 => {
                let tuple = Tuple::new(v4.map(Address::from_octets), ports);
                self.tables.v4.borrow_mut().sockets.insert(tuple, Socket::Connected);
            }
            Ip::V6 => {
                let tuple = Tuple::new(v6.map(Address::from_octets), ports);
                self.tables.v6.borrow_mut().sockets.insert(tuple, Socket::Connected);
            }
        }
    }

    fn pass_time(&mut self, seconds: u32) {
        self.tables.now_s += seconds;
        self.tables.now_ns += u64::from(seconds) * 1_000_000_000;
    }

    /// The first network's, to one of those that there are; or all flows are collected.
    fn change_class(&mut self, choice: u16) {
        if choice & 0x80 != 0 {
            self.tables.v4.borrow_mut().established.clear();
            self.tables.v6.borrow_mut().established.clear();
            self.tables.open.borrow_mut().clear();
        } else {
            self.tables.epoch += 1;
            self.set_class(0, choice % 11);
        }
    }

    /// Decides a frame, and judges what was decided.
    fn decide(&mut self, frame: &[u8], link: Link, direction: Direction) -> Reason {
        let packets =
            |tables: &MemoryTables| -> u64 { tables.counts.borrow().values().map(|count| count.packets).sum() };
        let before = packets(&self.tables);
        let told = (self.roomy && direction == Direction::Forward).then(|| {
            let dry = DryRun::new(self.tables.clone());
            handle::handle(&mut frame.to_vec(), link, &dry, direction).reason
        });
        let mut out = frame.to_vec();
        let reason = process(&mut out, link, &self.tables, direction);

        assert_eq!(packets(&self.tables), before + 1);
        assert!(told.is_none_or(|told| told == reason), "{told:?} was told, {reason:?} was done");
        // Every byte of a frame on the host can be written, so what is decided can be done.
        assert_ne!(reason, Reason::EditFailed);
        match reason.verdict() {
            Verdict::Pass | Verdict::Drop | Verdict::Steer => assert_eq!(out, frame, "{reason:?}"),
            Verdict::Redirect => self.check_redirected(frame, &out, link, direction, reason),
            Verdict::Reject => check_refused(frame, &out, link),
        }
        check_entries(&self.tables.v4.borrow(), &self.tables);
        check_entries(&self.tables.v6.borrow(), &self.tables);
        reason
    }

    fn check_redirected(&mut self, frame: &[u8], out: &[u8], link: Link, direction: Direction, reason: Reason) {
        let Some(reading) = Reading::of(frame, link) else {
            // See `parse` above.
            return assert_eq!(reason, Reason::FragmentRedirect);
        };
        assert_eq!(frame.len(), out.len());
        let changeable = reading.changeable(frame);
        for (at, (old, new)) in frame.iter().zip(out).enumerate() {
            assert!(
                old == new || changeable.iter().any(|range| range.contains(&at)),
                "byte {at}: {reason:?} of {reading:?}"
            );
        }
        assert_eq!(Reading::of(out, link), Some(reading), "it is the frame that it was");
        assert_eq!(reading.errors(out), reading.errors(frame), "{reason:?} of {reading:?}");

        let (came, leaves) = (reading.addresses(frame), reading.addresses(out));
        let relay = relay_end(reading.family);
        match reading.part {
            Part::Segment | Part::First => {
                let ends = |bytes| reading.ends(bytes).expect("it has ports");
                let (came, leaves) = (ends(frame), ends(out));
                match direction {
                    Direction::Forward => {
                        assert_eq!((leaves[0].0, leaves[1]), (came[0].0, relay), "{reason:?}");
                        self.flows.insert(leaves, came);
                    }
                    Direction::Reply => self.check_answer(came, leaves),
                }
            }
            // The relay's address takes the place of the server's, or the other way round.
            Part::Later => assert!(came[0] == leaves[0] || came[1] == leaves[1]),
            Part::Error => {
                let quoted = |bytes| reading.quote(bytes).expect("it quotes").ends;
                let (came, leaves) = (quoted(frame), quoted(out));
                match direction {
                    // Quoted is an answer, on its way to whoever gave it.
                    Direction::Forward => self.check_answer(leaves, came),
                    Direction::Reply => self.check_answer(reversed(came), reversed(leaves)),
                }
                assert_eq!(reading.addresses(out)[1], leaves[0].0, "it goes to the source of what it quotes");
            }
        }
    }

    /// What the relay answers, or would, is to the client from the server that it dialled.
    fn check_answer(&self, relays: [End; 2], clients: [End; 2]) {
        assert_eq!(self.flows.get(&reversed(relays)), Some(&reversed(clients)));
    }
}

fn reversed([source, destination]: [End; 2]) -> [End; 2] {
    [destination, source]
}

/// The two entries of a flow name each other, and as many connections count as open as are entered so.
fn check_entries<A: Address>(state: &FamilyState<A>, tables: &MemoryTables) {
    let mut open = BTreeMap::new();
    for (key, flow) in &state.established {
        if flow.is_counted() {
            *open.entry(key.addresses[0].host()).or_insert(0) += 1;
        }
        if flow.is_steered() {
            assert_eq!(flow.to, *key);
        } else {
            let other = state.established.get(&flow.to.reversed()).expect("a flow has two entries");
            assert_eq!((other.to.reversed(), other.direction() == flow.direction()), (*key, false));
        }
    }
    for (key, flow) in
        state.half_open.iter().filter(|(_, flow)| flow.direction() == Direction::Forward && !flow.is_steered())
    {
        assert!(state.half_open.get(&flow.to.reversed()).is_some_and(|reply| reply.answers(key)));
    }
    for (host, count) in tables.open.borrow().iter().filter(|(host, _)| host.to_ip().is_ipv4() == (A::FAMILY == 4)) {
        assert_eq!(open.get(host).unwrap_or(&0), count, "open connections of {host:?}");
    }
}

/// The reset that answers a segment, by RFC 9293 section 3.10.7.1, in the frame that this came in.
fn check_refused(frame: &[u8], out: &[u8], link: Link) {
    const SHORTEST: usize = 60;
    let reading = Reading::of(frame, link).expect("a segment");
    let answer = Reading::of(out, link).expect("the answer is one");
    assert_eq!(reading.part, Part::Segment);
    let end = reading.transport + 20;
    assert_eq!(answer, Reading { end, ..reading });
    assert_eq!(out.len(), if link == Link::Ethernet { end.max(SHORTEST).min(frame.len()) } else { end });
    assert_eq!(answer.ends(out), reading.ends(frame).map(reversed));

    let mut expected = frame[..end].to_vec();
    if link == Link::Ethernet {
        expected[..12].rotate_left(6);
    }
    let len = |len: usize| u16::try_from(len).expect("a reset is short").to_be_bytes();
    if frame
        .get(reading.ip.wrapping_sub(8)..reading.ip)
        .is_some_and(|session| session[..2] == [0x11, 0] && is_session(frame, reading.ip))
    {
        expected[reading.ip - 4..reading.ip - 2].copy_from_slice(&len(end - reading.ip + 2));
    }
    match reading.family {
        Ip::V4 => {
            expected[reading.ip + 2..reading.ip + 4].copy_from_slice(&len(end - reading.ip));
            expected[reading.ip + 8] = 64;
            expected[reading.ip + 10..reading.ip + 12].copy_from_slice(&out[reading.ip + 10..reading.ip + 12]);
            expected[reading.ip + 12..reading.ip + 20].rotate_left(4);
        }
        Ip::V6 => {
            expected[reading.ip + 4..reading.ip + 6].copy_from_slice(&len(end - reading.ip - 40));
            expected[reading.ip + 7] = 64;
            expected[reading.ip + 8..reading.ip + 40].rotate_left(16);
        }
    }
    let segment = reading.tcp(frame);
    let word = |at: usize| <[u8; 4]>::try_from(&segment[at..at + 4]).expect("four bytes");
    let flags = segment[13];
    assert_eq!(flags & Flags::RST, 0, "a reset is not answered");
    let tcp = &mut expected[reading.transport..];
    tcp[..4].rotate_left(2);
    tcp[4..].fill(0);
    tcp[12] = 5 << 4;
    if flags & Flags::ACK != 0 {
        tcp[4..8].copy_from_slice(&word(8));
        tcp[13] = Flags::RST;
    } else {
        let payload_len = reading.end - reading.transport - usize::from(segment[12] >> 4) * 4;
        let len = payload_len + [Flags::SYN, Flags::FIN].iter().filter(|flag| flags & **flag != 0).count();
        let len = u32::try_from(len).expect("a segment is short");
        tcp[8..12].copy_from_slice(&u32::from_be_bytes(word(4)).wrapping_add(len).to_be_bytes());
        tcp[13] = Flags::RST | Flags::ACK;
    }
    tcp[16..18].copy_from_slice(&answer.tcp(out)[16..18]);
    assert_eq!(out[..end], expected);
    assert_eq!(out[end..], frame[end..out.len()], "padding");

    for (name, error) in answer.errors(out) {
        let before = reading.errors(frame).into_iter().find(|(of, _)| *of == name);
        assert_eq!(error, if name == "TCP" { 0 } else { before.map_or(0, |(_, error)| error) }, "{name}");
    }
}

/// Whether the header before IP's is that of a PPPoE session.
fn is_session(frame: &[u8], ip: usize) -> bool {
    ip >= 22 && frame[ip - 10..ip - 8] == [0x88, 0x64]
}

fn relay_end(ip: Ip) -> End {
    let address = match ip {
        Ip::V4 => IpAddr::from([10, 20, 0, 1]),
        Ip::V6 => IpAddr::from([0xfd00, 0x20, 0, 0, 0, 0, 0, 1]),
    };
    (address, RELAY_PORT)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The relay's frame to the client of `flow`.
fn answer(flow: &FrameBuilder, flags: u8, sequence: u32) -> Vec<u8> {
    let client = octets(client_address(flow));
    let frame = FrameBuilder { flags, sequence, acknowledgment: flow.sequence.wrapping_add(1), ..flow.clone() };
    frame.build_between(&octets(relay_end(flow.ip).0), RELAY_PORT, &client, flow.client_port)
}

fn client_address(flow: &FrameBuilder) -> IpAddr {
    match flow.ip {
        Ip::V4 => flow.client_v4().into(),
        Ip::V6 => flow.client_v6().into(),
    }
}

fn server_address(flow: &FrameBuilder) -> IpAddr {
    match flow.ip {
        Ip::V4 => flow.server_v4().into(),
        Ip::V6 => flow.server_v6().into(),
    }
}

/// Of a connection of `flow`, from its SYN to the segment that completes it.
fn handshake(flow: &FrameBuilder) -> [(Direction, Vec<u8>); 3] {
    let ack = FrameBuilder {
        flags: Flags::ACK,
        sequence: flow.sequence.wrapping_add(1),
        acknowledgment: 5001,
        ..flow.clone()
    };
    [
        (Direction::Forward, flow.build()),
        (Direction::Reply, answer(flow, Flags::SYN | Flags::ACK, 5000)),
        (Direction::Forward, ack.build()),
    ]
}

/// What an ICMP error is about and how it comes, by the bits of a byte: IPv6, on the way out, VLAN tags (two bits), PPPoE, to somebody else,
/// from a hop in between, about a steered flow.
#[expect(clippy::struct_excessive_bools, reason = "one for each bit of the input's byte")]
struct Error {
    ip: Ip,
    direction: Direction,
    tags: Vec<u16>,
    pppoe: bool,
    to_another: bool,
    from_a_hop: bool,
    steered: bool,
}

impl Error {
    fn of(choices: u8) -> Self {
        let bit = |number: u8| choices >> number & 1 != 0;
        Self {
            ip: if bit(0) { Ip::V6 } else { Ip::V4 },
            direction: if bit(1) { Direction::Reply } else { Direction::Forward },
            tags: [vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x8100, 0x8100]][usize::from(choices >> 2 & 3)]
                .clone(),
            pppoe: bit(4),
            to_another: bit(5),
            from_a_hop: bit(6),
            steered: bit(7),
        }
    }

    fn flow(&self) -> FrameBuilder {
        FrameBuilder { tags: self.tags.clone(), pppoe: self.pppoe, ..FrameBuilder::syn(self.ip) }
    }

    /// The error in a frame, its checksums right.
    fn frame(&self, flow: &FrameBuilder, message: &[u8]) -> Vec<u8> {
        let ends = match self.direction {
            Direction::Forward => [client_address(flow), server_address(flow)],
            Direction::Reply => [relay_end(flow.ip).0, client_address(flow)],
        };
        let hop = match flow.ip {
            Ip::V4 => IpAddr::from([198, 51, 100, 7]),
            Ip::V6 => IpAddr::from([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7]),
        };
        let source = if self.from_a_hop { hop } else { ends[0] };
        let destination = if self.to_another { hop } else { ends[1] };
        flow.icmp(&octets(source), &octets(destination), message)
    }
}

fn parse_seeds() -> Vec<Vec<u8>> {
    frames()
        .into_iter()
        .map(|(_, frame)| frame.build())
        .chain(icmp_seeds().iter().map(|seed| {
            let error = Error::of(seed[0]);
            error.frame(&error.flow(), &seed[1..])
        }))
        .collect()
}

/// Frames of every kind that the test kit builds, and on which links.
fn frames() -> Vec<(Link, FrameBuilder)> {
    let mut frames = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        let plain = FrameBuilder { payload: b"MAIL".to_vec(), ..FrameBuilder::syn(ip) };
        for (tags, pppoe) in
            [(vec![], false), (vec![0x8100], false), (vec![0x88a8, 0x8100], true), (vec![0x8100; 3], false)]
        {
            frames.push((Link::Ethernet, FrameBuilder { tags, pppoe, ..plain.clone() }));
        }
        frames.push((Link::Ip, FrameBuilder { link: Link::Ip, ..plain.clone() }));
        for fragment in [0x2000, 0x2001, 0x00b9] {
            frames.push((Link::Ethernet, FrameBuilder { fragment, extensions: vec![44], ..plain.clone() }));
        }
    }
    let (v4, v6) = (FrameBuilder::syn(Ip::V4), FrameBuilder::syn(Ip::V6));
    frames.push((Link::Ethernet, FrameBuilder { ip_options: 40, ..v4 }));
    for extensions in [vec![0, 60, 43, 44], vec![44, 60], vec![0, 60, 60, 60, 60]] {
        frames.push((Link::Ethernet, FrameBuilder { extensions, ..v6.clone() }));
    }
    frames.push((Link::Ethernet, FrameBuilder { extensions: vec![43], segments_left: 1, ..v6 }));
    frames
}

/// The input of [`handle()`], being written.
struct Story(Vec<u8>);

impl Story {
    /// Of frames of `link`; with or without steering, with full or cramped tables.
    fn new(link: Link, steering: bool, cramped: bool) -> Self {
        Self(vec![u8::from(link == Link::Ip) | u8::from(steering) << 1 | u8::from(cramped) << 2])
    }

    fn frame(mut self, (direction, frame): (Direction, Vec<u8>)) -> Self {
        let len = u16::try_from(frame.len()).expect("a frame of a seed is short");
        self.0.push(if direction == Direction::Forward { 0 } else { 4 });
        self.0.extend(len.to_be_bytes());
        self.0.extend(frame);
        self
    }

    fn up(self, frame: &FrameBuilder) -> Self {
        self.frame((Direction::Forward, frame.build()))
    }

    fn handshake(self, flow: &FrameBuilder) -> Self {
        handshake(flow).into_iter().fold(self, Self::frame)
    }

    fn pass_time(mut self, seconds: u8) -> Self {
        self.0.extend([6, seconds]);
        self
    }

    fn change_class(mut self, choice: u8) -> Self {
        self.0.extend([7, choice]);
        self
    }
}

fn handle_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (link, frame) in frames() {
        seeds.push(Story::new(link, false, false).up(&frame).0);
    }
    for ip in [Ip::V4, Ip::V6] {
        let syn = FrameBuilder::syn(ip);
        let with = |flags| FrameBuilder {
            flags,
            sequence: 1001,
            acknowledgment: 5001,
            payload: b"QUIT".to_vec(),
            ..syn.clone()
        };
        let of_network = |network| FrameBuilder { client: [network, 5], ..syn.clone() };
        let whole = Story::new(Link::Ethernet, true, false).handshake(&syn);
        let whole = whole.up(&with(Flags::ACK)).frame((Direction::Reply, answer(&syn, Flags::FIN | Flags::ACK, 5001)));
        seeds.push(whole.up(&with(Flags::FIN | Flags::ACK)).up(&syn).0);
        for choice in [1, 2, 4, 6, 0x80] {
            let story = Story::new(Link::Ethernet, true, false).handshake(&syn).change_class(choice).pass_time(1);
            seeds.push(story.up(&with(Flags::ACK)).up(&with(Flags::RST)).up(&syn).0);
        }
        for network in 1..10 {
            let flow = of_network(network);
            let story = Story::new(Link::Ethernet, true, false).handshake(&flow).pass_time(1);
            seeds.push(story.up(&FrameBuilder { client_port: 40_001, ..flow.clone() }).up(&flow).0);
        }
        for network in 10..14 {
            let flow = of_network(network);
            for without_daemon in [0, WITHOUT_DAEMON] {
                let mut story = Story::new(Link::Ethernet, false, false).handshake(&flow).up(&flow).0;
                story[0] |= without_daemon;
                seeds.push(story);
            }
        }
        let rejected = of_network(3);
        let tagged = FrameBuilder { tags: vec![0x8100], pppoe: true, payload: vec![7; 31], ..rejected.clone() };
        let answered = FrameBuilder { flags: Flags::ACK | Flags::FIN, acknowledgment: 77, ..tagged.clone() };
        seeds.push(Story::new(Link::Ethernet, false, true).up(&rejected).up(&tagged).up(&answered).0);
        let crowd = (40_000..40_004).fold(Story::new(Link::Ethernet, false, true), |story, client_port| {
            story.handshake(&FrameBuilder { client_port, server: 1, ..syn.clone() })
        });
        seeds.push(crowd.handshake(&FrameBuilder { client_port: 40_000, server: 2, ..syn.clone() }).0);
        let part = |fragment| FrameBuilder { fragment, extensions: vec![44], payload: vec![7; 12], ..syn.clone() };
        let fragments = |network| {
            let of = |fragment| FrameBuilder { client: [network, 5], ..part(fragment) };
            Story::new(Link::Ethernet, true, false).up(&of(0x2000)).up(&of(0x2004)).pass_time(31).up(&of(0x0008)).0
        };
        seeds.extend([0, 2, 3, STEER].map(fragments));
        let bare = FrameBuilder { link: Link::Ip, ..syn.clone() };
        seeds.push(Story::new(Link::Ip, false, false).handshake(&bare).0);
        seeds.extend(refused_seeds(ip));
        seeds.extend(crowded_seeds(ip));
        for seed in icmp_seeds().iter().filter(|seed| Error::of(seed[0]).ip == ip && seed[0] & 0x1c == 0) {
            let error = Error::of(seed[0]);
            let flow = if error.steered { of_network(STEER) } else { syn.clone() };
            let frame = (error.direction, error.frame(&flow, &seed[1..]));
            seeds.push(Story::new(Link::Ethernet, true, false).handshake(&flow).frame(frame).0);
        }
    }
    seeds
}

/// Frames that nobody takes up.
fn refused_seeds(ip: Ip) -> Vec<Vec<u8>> {
    let syn = FrameBuilder::syn(ip);
    let of = |frame: FrameBuilder| Story::new(Link::Ethernet, false, false).up(&frame).0;
    let mut cut = syn.build();
    cut.pop();
    vec![
        of(FrameBuilder { ethertype: Some(0x0806), ..syn.clone() }),
        of(FrameBuilder { server_port: 587, ..syn.clone() }),
        of(FrameBuilder { tcp_offset: 4, ..syn.clone() }),
        of(FrameBuilder { client: [200, 5], ..syn.clone() }),
        of(FrameBuilder { client: [3, 5], flags: Flags::RST, ..syn.clone() }),
        Story::new(Link::Ethernet, false, false).frame((Direction::Forward, cut)).0,
    ]
}

/// More connections than there may be.
fn crowded_seeds(ip: Ip) -> Vec<Vec<u8>> {
    let flow = |network, client_port| FrameBuilder { client: [network, 5], client_port, ..FrameBuilder::syn(ip) };
    let eager = (40_000..40_012).fold(Story::new(Link::Ethernet, true, false), |story, port| story.up(&flow(6, port)));
    // The class of each says otherwise what becomes of a connection that the full table has no place for.
    let full = |network| {
        let story = Story::new(Link::Ethernet, false, true).handshake(&flow(0, 40_000)).handshake(&flow(0, 40_001));
        story.handshake(&flow(network, 40_002)).0
    };
    let ack = FrameBuilder { flags: Flags::ACK, ..flow(STEER, 40_000) };
    let steered = Story::new(Link::Ethernet, true, false).handshake(&flow(STEER, 40_000)).up(&ack);
    let waiting = FrameBuilder { flags: Flags::ACK, ..flow(STEER, 40_001) };
    let steered = steered.up(&flow(STEER, 40_001)).up(&waiting);
    let steered_full = Story::new(Link::Ethernet, true, true).handshake(&flow(0, 40_000)).handshake(&flow(0, 40_001));
    vec![eager.0, full(0), full(STEER), full(7), steered.0, steered_full.handshake(&flow(STEER, 40_000)).0]
}

fn icmp_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for choices in 0..=255u8 {
        let error = Error::of(choices);
        // All of what matters, and not every combination of it.
        if error.tags.len() > 1 && error.pppoe || error.to_another && (choices & 0x1c != 0) {
            continue;
        }
        let flow = FrameBuilder {
            link: Link::Ip,
            client: [if error.steered { STEER } else { 0 }, 5],
            payload: vec![7; 9],
            flags: Flags::ACK,
            ..FrameBuilder::syn(error.ip)
        };
        let (client, relay) = (octets(client_address(&flow)), octets(relay_end(flow.ip).0));
        let quote = match error.direction {
            Direction::Forward => FrameBuilder { reversed: true, ..flow }.build(),
            Direction::Reply => flow.build_between(&client, flow.client_port, &relay, RELAY_PORT),
        };
        let head = if error.ip == Ip::V4 { 20 } else { 40 };
        let kind = if error.ip == Ip::V4 { 3 } else { 2 };
        let lens =
            if choices & 0x7c == 0 { &[quote.len(), head + 18, head + 17, head + 8][..] } else { &[quote.len()] };
        for &len in lens {
            seeds.push([&[choices, kind, 4, 0, 0, 5, 0][..], &quote[..len]].concat());
        }
    }
    seeds
}
