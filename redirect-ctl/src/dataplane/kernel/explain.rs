//! Asking the loaded program what it would do with a SYN, by `BPF_PROG_TEST_RUN`. Nothing else comes of it: the program reads the tables
//! and changes none.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use redirect_common::{maps::TAKEN_BY_XDP, reason::Reason};

use super::super::{Error, Mode};

/// What the program said.
pub(super) struct Answer {
    pub(super) reason: Reason,
    pub(super) class: u8,
    /// 0 where it opens no flow.
    pub(super) relay: u8,
    /// Both ends as the packet would leave with.
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) program_tag: u64,
}

/// `client` and `server` are of one family. The connection is looked for in the network namespace of the interface `ifindex`, or in ours.
pub(super) fn explain(
    program: &SchedClassifier,
    client: SocketAddr,
    server: SocketAddr,
    ifindex: Option<u32>,
    mode: Option<Mode>,
) -> Result<Answer, Error> {
    let failed = |source| Error::System { what: "run the program on a packet of its own".to_owned(), source };
    let frame = syn(client, server);
    let mark = if mode == Some(Mode::Xdp) { TAKEN_BY_XDP } else { 0 };
    let context = context(mark, ifindex.unwrap_or(0));
    let mut left = vec![0; frame.len()];
    let options = TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut left),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).map_err(|error| failed(io::Error::other(error)))?;
    let [reason, class, relay, _] = result.return_value.to_le_bytes();
    let reason = Reason::ALL.get(usize::from(reason)).copied();
    let reason = reason.ok_or_else(|| failed(io::Error::other("it answered with an unknown reason")))?;
    let (client, server) = ends(&left, client.is_ipv4());
    let info = program.info().map_err(|error| failed(io::Error::other(error)))?;
    Ok(Answer { reason, class, relay, client, server, program_tag: info.tag() })
}

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// An Ethernet frame with a SYN. Checksums are left out: the programs trust those that arrive, and update them.
fn syn(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    const HOP_LIMIT: u8 = 64;
    const TCP_PROTOCOL: u8 = 6;
    const SYN: u8 = 2;

    let mut frame = vec![0; ETHERNET];
    match (client.ip(), server.ip()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            frame[12..].copy_from_slice(&[0x08, 0x00]);
            frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, HOP_LIMIT, TCP_PROTOCOL, 0, 0]);
            frame.extend(client.octets());
            frame.extend(server.octets());
        }
        (client, server) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            frame[12..].copy_from_slice(&[0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, 20, TCP_PROTOCOL, HOP_LIMIT]);
            frame.extend(octets(client));
            frame.extend(octets(server));
        }
    }
    frame.extend(client.port().to_be_bytes());
    frame.extend(server.port().to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// The addresses and ports of a frame that [`syn`] made.
fn ends(frame: &[u8], is_ipv4: bool) -> (SocketAddr, SocketAddr) {
    fn array<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|index| frame.get(at + index).copied().unwrap_or(0))
    }
    let (ips, ports): ([IpAddr; 2], usize) = if is_ipv4 {
        let at = ETHERNET + 12;
        ([array::<4>(frame, at).into(), array::<4>(frame, at + 4).into()], ETHERNET + IPV4)
    } else {
        let at = ETHERNET + 8;
        ([array::<16>(frame, at).into(), array::<16>(frame, at + 16).into()], ETHERNET + IPV6)
    };
    let port = |at| u16::from_be_bytes(array(frame, at));
    (SocketAddr::new(ips[0], port(ports)), SocketAddr::new(ips[1], port(ports + 2)))
}

/// The beginning of `struct __sk_buff` (include/uapi/linux/bpf.h), as far as a test run takes it.
fn context(mark: u32, ifindex: u32) -> [u8; 44] {
    let mut context = [0; 44];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_frame_are_those_it_was_made_of() {
        for (client, server, length) in
            [("10.0.0.7:40000", "192.0.2.1:25", 54), ("[fd00::7]:40000", "[2001:db8::1]:25", 74)]
        {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            let frame = syn(client, server);
            assert_eq!(frame.len(), length);
            assert_eq!(ends(&frame, client.is_ipv4()), (client, server));
        }
    }
}
