//! VLAN tags that are not in the frame: a kernel takes the outer tag of what comes in out of the frame and keeps it beside it, before tc sees the
//! packet, and so do drivers. `BPF_PROG_TEST_RUN` cannot make such a socket buffer, a link can. The tag has to leave with the packet, in both
//! directions, and in the reset that refuses it.
//!
//! Nothing on the router's side takes tagged packets up, so a program behind ours carries those whose tag is beside them, and only those, to
//! the link of the DMZ, and another carries what comes back.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::net::{IpAddr, SocketAddr};

use nix::net::if_::if_nametoindex;
use redirect_common::{
    flow::Flags,
    parse::Link as Framing,
    testkit::{FrameBuilder, Ip, reading::Reading},
};
use redirect_tests::{
    Family, Lab, Mode, Scene,
    bpf::{Instruction, Kind, Link, Program, Register},
    capture::Capture,
    raw::Wire,
    tcp::Place,
};

/// Outermost first.
const TAGS: [&[u16]; 4] = [&[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]];

#[test]
fn tags_beside_the_frame_behind_the_driver() {
    tags_travel_with_their_packets(Mode::Tc);
}

/// In the driver all tags are in the frame; the kernel takes them out afterwards, of frames that were rewritten.
#[test]
fn tags_in_the_driver() {
    tags_travel_with_their_packets(Mode::Xdp);
}

fn tags_travel_with_their_packets(mode: Mode) {
    let scene = Scene::new(mode).unwrap();
    let _answering = scene.let_xdp_answer().unwrap();
    let relay = scene.play_relay(Place::Dmz).unwrap();
    scene.ctl(&["class", "set", "refused", "--action", "reject"]).unwrap();
    for refused in ["10.20.0.6", "fd00:20::6"] {
        scene.ctl(&["subscriber", "set", refused, "--class", "refused"]).unwrap();
    }
    let lab = &scene.lab;
    let _carriers = [carry(lab, "lan0", "mx0"), carry(lab, "mx0", "lan0")];
    let captures = [&lab.client, &lab.gateway].map(|host| Capture::start(lab, host, "eth0", "").unwrap());
    let [client, dmz] = [&lab.client, &lab.gateway].map(|host| Wire::open(host, "eth0").unwrap());
    let [at_the_client, in_the_dmz] = &captures;

    for (number, (ip, family)) in [(Ip::V4, Family::V4), (Ip::V6, Family::V6)].into_iter().enumerate() {
        for (place, tags) in TAGS.into_iter().enumerate() {
            for pppoe in [false, true] {
                let client_port = 40_000 + u16::try_from(number * 100 + place * 10).unwrap() + u16::from(pppoe);
                let syn = FrameBuilder { tags: tags.to_vec(), pppoe, client_port, ..FrameBuilder::syn(ip) };
                let (subscriber, server) = ends(&syn);
                let relay = relay.endpoint(family);
                let arrives = |capture: &Capture, frame: &[u8]| {
                    let what = format!("{tags:x?}, session: {pppoe}, {frame:02x?}");
                    capture.wait_for(&what, |packet| packet.frame == frame).unwrap();
                };
                let up = |frame: &FrameBuilder| {
                    client.send(&frame.build()).unwrap();
                    arrives(in_the_dmz, &between(frame, subscriber, relay));
                };
                let down = |frame: &FrameBuilder| {
                    dmz.send(&between(frame, relay, subscriber)).unwrap();
                    arrives(at_the_client, &between(frame, server, subscriber));
                };
                up(&syn);
                down(&FrameBuilder {
                    flags: Flags::SYN | Flags::ACK,
                    sequence: 5000,
                    acknowledgment: 1001,
                    ..syn.clone()
                });
                let established =
                    FrameBuilder { flags: Flags::ACK, sequence: 1001, acknowledgment: 5001, ..syn.clone() };
                up(&FrameBuilder { payload: b"EHLO client\r\n".to_vec(), ..established.clone() });
                down(&FrameBuilder { payload: b"250 relay\r\n".to_vec(), sequence: 5001, ..established });

                let refused = FrameBuilder { client: [0, 6], ..syn };
                client.send(&refused.build()).unwrap();
                let (subscriber, server) = ends(&refused);
                let sent = refused.build();
                let answers = |frame: &[u8], reading: Reading| {
                    let tags = 12..12 + 4 * tags.len();
                    reading.ends(frame) == Some([server, subscriber].map(|end| (end.ip(), end.port())))
                        && reading.tcp(frame)[13] == Flags::RST | Flags::ACK
                        && frame[tags.clone()] == sent[tags]
                        && reading.errors(frame).iter().all(|(_, error)| *error == 0)
                };
                let is_reset =
                    |frame: &[u8]| Reading::of(frame, Framing::Ethernet).is_some_and(|read| answers(frame, read));
                at_the_client.wait_for("the reset", |packet| is_reset(&packet.frame)).unwrap();
            }
        }
    }
    drop(captures);
    assert_eq!(scene.internet.peers(), []);
}

/// Carries what comes in by a device of the router with a tag beside it to another one.
fn carry(lab: &Lab, from: &str, to: &str) -> Link {
    const REDIRECT: i32 = 23;
    const UNSPECIFIED: i32 = -1;
    /// Offset of `vlan_present` in `struct __sk_buff` (include/uapi/linux/bpf.h).
    const VLAN_PRESENT: i16 = 20;
    let [r0, r1, r2, r3] = [0, 1, 2, 3].map(Register);
    lab.router
        .enter(|| {
            let device = i32::try_from(if_nametoindex(to).unwrap()).unwrap();
            let program = Program::load(
                Kind::Classifier,
                &[
                    Instruction::load_word(r2, r1, VLAN_PRESENT),
                    Instruction::set(r0, UNSPECIFIED),
                    Instruction::set(r3, 0),
                    Instruction::unless_greater(r2, r3, 3),
                    Instruction::set(r1, device),
                    Instruction::set(r2, 0),
                    Instruction::call(REDIRECT),
                    Instruction::exit(),
                ],
            )?;
            program.attach(from)
        })
        .unwrap()
}

/// The subscriber and the server of a frame.
fn ends(frame: &FrameBuilder) -> (SocketAddr, SocketAddr) {
    let (client, server): (IpAddr, IpAddr) = match frame.ip {
        Ip::V4 => (frame.client_v4().into(), frame.server_v4().into()),
        Ip::V6 => (frame.client_v6().into(), frame.server_v6().into()),
    };
    (SocketAddr::new(client, frame.client_port), SocketAddr::new(server, frame.server_port))
}

fn between(frame: &FrameBuilder, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    frame.build_between(&octets(from.ip()), from.port(), &octets(to.ip()), to.port())
}
