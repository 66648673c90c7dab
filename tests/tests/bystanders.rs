//! Everything that is no redirected mail: it leaves the router exactly as it came.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::sys::{
    socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
    time::TimeVal,
};
use redirect_tests::{
    CLIENT_MAC, Family, ROUTER_MAC, Scene,
    capture::{Capture, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, normalised},
    in_every_mode,
    raw::{self, Wire},
};

in_every_mode!(frames_leave_as_they_came, other_frames_reach_the_router, other_conversations_work);

const PORT: u16 = 41_000;

/// One frame of each kind that the router forwards, and a word on it. The last bytes of the payload tell them apart.
fn bystanders(family: Family) -> Vec<(String, Vec<u8>)> {
    let (redirected, bypass, server) = (family.redirected(), family.bypass(), family.server());
    let mut frames: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |what: &str, frame: Vec<u8>| frames.push((format!("{what} over {family:?}"), frame));

    for flags in [TCP_SYN, TCP_ACK, TCP_SYN | TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST, 0, 0x3f] {
        for port in [24, 26, 80, 443, 465, 587, 2525] {
            let segment = raw::tcp((redirected, PORT), (server, port), flags, &[flags]);
            add(
                &format!("TCP flags {flags:x} to port {port}"),
                raw::ip(redirected, server, raw::PROTOCOL_TCP, &segment),
            );
        }
        // From port 25, as a server of the subscriber's would answer.
        let segment = raw::tcp((redirected, 25), (server, PORT), flags, &[flags]);
        add(&format!("TCP flags {flags:x} from port 25"), raw::ip(redirected, server, raw::PROTOCOL_TCP, &segment));
        let segment = raw::tcp((bypass, PORT), (server, 25), flags, &[flags]);
        add(&format!("bypass, TCP flags {flags:x}"), raw::ip(bypass, server, raw::PROTOCOL_TCP, &segment));
    }
    // Of a connection that is older than the policy, where the class does not reset such.
    for flags in [TCP_ACK, TCP_RST, TCP_FIN | TCP_ACK] {
        let segment = raw::tcp((bypass, PORT + 1), (server, 25), flags, &[flags]);
        add(&format!("TCP flags {flags:x} of no flow"), raw::ip(bypass, server, raw::PROTOCOL_TCP, &segment));
    }
    for port in [25, 53] {
        let datagram = raw::udp((redirected, PORT), (server, port), b"datagram");
        add(&format!("UDP to port {port}"), raw::ip(redirected, server, raw::PROTOCOL_UDP, &datagram));
    }
    let icmp = if family == Family::V4 { raw::PROTOCOL_ICMP } else { raw::PROTOCOL_ICMPV6 };
    add("echo request", raw::ip(redirected, server, icmp, &raw::echo(redirected, server, b"echo")));
    for protocol in [47, 50, 132, 253] {
        let looks_like_tcp = raw::tcp((redirected, PORT), (server, 25), TCP_SYN, &[protocol]);
        add(&format!("protocol {protocol}"), raw::ip(redirected, server, protocol, &looks_like_tcp));
    }
    for length in 0..20 {
        let segment = raw::tcp((redirected, PORT), (server, 25), TCP_SYN, b"");
        add(
            &format!("TCP cut after {length} bytes"),
            raw::ip(redirected, server, raw::PROTOCOL_TCP, &segment[..length]),
        );
    }
    let mut wrong_offset = raw::tcp((redirected, PORT + 2), (server, 25), TCP_SYN, b"");
    wrong_offset[12] = 0xf0;
    add("TCP with a data offset beyond its end", raw::ip(redirected, server, raw::PROTOCOL_TCP, &wrong_offset));

    match (redirected, server) {
        (IpAddr::V4(from), IpAddr::V4(to)) => frames.extend(fragments_v4(from, to)),
        (IpAddr::V6(from), IpAddr::V6(to)) => frames.extend(fragments_v6(from, to)),
        _ => unreachable!("addresses of one family"),
    }
    frames
}

fn fragments_v4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<(String, Vec<u8>)> {
    const MORE: u16 = 0x2000;
    let other = raw::tcp((from.into(), PORT), (to.into(), 80), TCP_ACK, b"");
    let looks_like_a_syn = raw::tcp((from.into(), PORT), (to.into(), 25), TCP_SYN, b"of a fragment");
    // Of no effect on a router: no operation, and the end of the list.
    let options = [1, 1, 1, 1, 1, 1, 1, 0];
    let frame = |fragment, options: &[u8], payload: &[u8]| {
        raw::ethernet(raw::ETHERTYPE_IPV4, &raw::ipv4(from, to, raw::PROTOCOL_TCP, fragment, options, payload))
    };
    vec![
        ("first fragment of another port".into(), frame(MORE, &[], &other[..16])),
        ("later fragment that looks like a SYN to port 25".into(), frame(MORE | 3, &[], &looks_like_a_syn[..32])),
        ("last fragment that looks like a SYN to port 25".into(), frame(185, &[], &looks_like_a_syn)),
        ("another port with IP options".into(), frame(0x4000, &options, &other)),
    ]
}

fn fragments_v6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<(String, Vec<u8>)> {
    let looks_like_a_syn = raw::tcp((from.into(), PORT), (to.into(), 25), TCP_SYN, b"of a fragment");
    let other = raw::tcp((from.into(), PORT), (to.into(), 80), TCP_ACK, b"");
    let frame = |next, payload: &[u8]| raw::ethernet(raw::ETHERTYPE_IPV6, &raw::ipv6(from, to, next, payload));
    let fragment = |offset_and_flags: u16, payload: &[u8]| {
        let [high, low] = offset_and_flags.to_be_bytes();
        frame(raw::PROTOCOL_FRAGMENT_V6, &[&[raw::PROTOCOL_TCP, 0, high, low, 0, 0, 0x25, 0x25][..], payload].concat())
    };
    // Destination options of padding only (RFC 8200 section 4.6).
    let padding = [raw::PROTOCOL_TCP, 0, 1, 4, 0, 0, 0, 0];
    vec![
        ("first fragment of another port".into(), fragment(1, &other[..16])),
        ("later fragment that looks like a SYN to port 25".into(), fragment(3 << 3 | 1, &looks_like_a_syn[..32])),
        ("last fragment that looks like a SYN to port 25".into(), fragment(185 << 3, &looks_like_a_syn)),
        ("another port behind destination options".into(), frame(60, &[&padding[..], &other].concat())),
        ("no next header".into(), frame(59, b"anything")),
    ]
}

fn frames_leave_as_they_came(scene: &mut Scene) {
    let behind = Capture::start(&scene.lab, &scene.lab.internet, "eth0", "").unwrap();
    let wire = Wire::open(&scene.lab.client, "eth0").unwrap();
    let ethertype = |frame: &[u8]| Some(u16::from_be_bytes([frame[12], frame[13]]));
    for family in Family::BOTH {
        // In groups that no buffer on the way overflows with.
        for group in bystanders(family).chunks(16) {
            for (_, frame) in group {
                wire.send(frame).unwrap();
            }
            for (what, frame) in group {
                let expected = normalised(ethertype(frame), &frame[14..]);
                let arrived = behind.wait_for(what, |packet| packet.normalised() == expected);
                arrived.unwrap_or_else(|error| panic!("{what}: {error:#}"));
            }
        }
    }
    // Exactly those, each once, and nothing that was made of them.
    let mut sent: Vec<_> = Family::BOTH.into_iter().flat_map(bystanders).map(|(_, frame)| frame).collect();
    for packet in behind.stop().unwrap() {
        let from_a_subscriber = match packet.ethertype() {
            Some(raw::ETHERTYPE_IPV4) => packet.payload().get(12..14) == Some(&[10, 20]),
            Some(raw::ETHERTYPE_IPV6) => packet.payload().get(8..12) == Some(&[0xfd, 0, 0, 0x20]),
            _ => false,
        };
        // The bypassing client's own stack may answer the server's answers with resets.
        let reset = packet.tcp().is_some_and(|segment| segment.has(TCP_RST) && segment.data.is_empty());
        if from_a_subscriber && !reset {
            let position =
                sent.iter().position(|frame| normalised(ethertype(frame), &frame[14..]) == packet.normalised());
            sent.remove(position.unwrap_or_else(|| panic!("not sent: {:?}", packet.frame.escape_ascii().to_string())));
        }
    }
    assert_eq!(sent.len(), 0, "arrived more than once or not at all");
    assert_eq!(scene.gateway.peers(), []);
}

/// What is not forwarded is taken off by a socket for its protocol in the router, which is behind both hooks.
fn other_frames_reach_the_router(scene: &mut Scene) {
    let wire = Wire::open(&scene.lab.client, "eth0").unwrap();
    for (family, protocol, ethertype) in [
        (Family::V4, SockProtocol::EthIp, raw::ETHERTYPE_IPV4),
        (Family::V6, SockProtocol::EthIpv6, raw::ETHERTYPE_IPV6),
    ] {
        let taker = scene.lab.router.enter(|| {
            let taker = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
            setsockopt(&taker, sockopt::ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
            taker
        });
        let segment = raw::tcp((family.redirected(), PORT), (family.server(), 25), TCP_SYN, b"");
        let syn = raw::ip(family.redirected(), family.server(), raw::PROTOCOL_TCP, &segment).split_off(14);
        let mut garbage = vec![vec![0; 60], vec![0xff; 60], [&syn[1..], &[0; 60]].concat()];
        // Every way to cut a SYN that would be redirected.
        garbage.extend((0..syn.len()).map(|length| syn[..length].to_vec()));
        // Its first byte: every other version and header length.
        garbage.extend((0..=255).filter(|byte| byte >> 4 != syn[0] >> 4).map(|byte| [&[byte], &syn[1..]].concat()));
        for payload in garbage {
            let frame = raw::ethernet(ethertype, &payload);
            wire.send(&frame).unwrap();
            // The router's own neighbours and the client's stack speak on this link as well.
            let arrived = std::iter::from_fn(|| {
                let mut buffer = [0; 2048];
                let received = recv(taker.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
                Some(buffer[..received].to_vec())
            });
            let mut arrived = arrived.take(100);
            assert!(arrived.any(|arrived| arrived == frame), "{family:?} {}", payload.escape_ascii());
        }
    }

    // An ARP request for the router's address is answered.
    let capture = Capture::start(&scene.lab, &scene.lab.client, "eth0", "arp").unwrap();
    let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &CLIENT_MAC, &[10, 20, 0, 10], &[0; 6], &[10, 20, 0, 1]].concat();
    wire.send(&raw::ethernet(raw::ETHERTYPE_ARP, &request)).unwrap();
    let answer = capture.wait_for("ARP answer", |packet| packet.payload().get(7) == Some(&2)).unwrap();
    assert_eq!(answer.payload()[8..18], [&ROUTER_MAC[..], &[10, 20, 0, 1]].concat());
}

fn other_conversations_work(scene: &mut Scene) {
    use std::io::{Read as _, Write as _};

    let bytes: Vec<u8> = (0..1 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
    for family in Family::BOTH {
        // TCP to another port, segments of 64 KiB if the link does that.
        let address = SocketAddr::new(family.server(), 8025);
        let listener = scene.lab.internet.enter(|| TcpListener::bind(address)).unwrap();
        let mut client =
            scene.lab.client.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(10))).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&bytes).unwrap());
            let mut received = vec![0; bytes.len()];
            server.read_exact(&mut received).unwrap();
            assert!(received == bytes);
        });

        // UDP to port 25, in fragments.
        let address = SocketAddr::new(family.server(), 25);
        let server = scene.lab.internet.enter(|| UdpSocket::bind(address)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = scene.lab.client.enter(|| UdpSocket::bind((family.redirected(), 0))).unwrap();
        client.send_to(&bytes[..9000], address).unwrap();
        let mut received = vec![0; 10_000];
        let (length, peer) = server.recv_from(&mut received).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(received[..length] == bytes[..9000]);
    }
}
