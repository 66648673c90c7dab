//! What a link carries, captured by tcpdump and read from its file.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    lab::Lab,
    netns::Namespace,
    process::{Daemon, wait_until},
    raw::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP},
};

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;

const READY: Duration = Duration::from_secs(20);

/// A capture under way.
pub struct Capture {
    tcpdump: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Captures on a device what `filter` of tcpdump lets through; everything if it is empty.
    pub fn start(lab: &Lab, host: &Namespace, device: &str, filter: &str) -> Result<Self> {
        let name = format!("{}-{device}", host.name());
        let file = lab.folder().join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        // 64 MiB of buffer: a burst must not lose packets that a test then misses. Each has a place for the largest that there is, which
        // is one of 64 KiB with its Ethernet header. Each packet is written at once.
        command
            .args(["-i", device, "-n", "-U", "--immediate-mode", "-B", "65536", "-s", "65600", "-Z", "root", "-w"])
            .arg(&file)
            .arg(filter);
        let mut tcpdump = lab.start(host, &name, &mut command)?;
        tcpdump.wait_until_ready(READY, |tcpdump| Ok(tcpdump.log().contains("listening on")))?;
        Ok(Self { tcpdump, file })
    }

    /// The packets so far.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        parse(&fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?)
    }

    /// Waits for a packet that `wanted` picks.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        wait_until(&format!("{what} in the capture"), READY, || {
            Ok(self.packets()?.into_iter().find(|packet| wanted(packet)))
        })
    }

    /// Ends the capture; a packet that tcpdump could not keep up with is an error.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.tcpdump.stop(Signal::SIGINT)?;
        let log = self.tcpdump.log();
        ensure!(log.contains("\n0 packets dropped by kernel"), "the capture is not complete: {log}");
        self.packets()
    }
}

/// A captured Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub frame: Vec<u8>,
}

impl Packet {
    #[must_use]
    pub fn ethertype(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.frame.get(12..14)?.try_into().ok()?))
    }

    /// What the Ethernet frame carries, without its padding if it is IP.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let payload = self.frame.get(14..).unwrap_or_default();
        let number = |at: usize| Some(usize::from(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?)));
        let length = match self.ethertype() {
            Some(ETHERTYPE_IPV4) => number(2),
            Some(ETHERTYPE_IPV6) => number(4).map(|length| length + 40),
            _ => None,
        };
        length.and_then(|length| payload.get(..length)).unwrap_or(payload)
    }

    /// The payload with what a router changes in forwarding set to fixed values: TTL or hop limit, and IPv4's checksum.
    #[must_use]
    pub fn normalised(&self) -> Vec<u8> {
        normalised(self.ethertype(), self.payload())
    }

    /// The TCP segment that it carries, if it is no fragment and has no extension headers.
    #[must_use]
    pub fn tcp(&self) -> Option<Segment> {
        let ip = self.payload();
        let (from, to, length): (IpAddr, IpAddr, usize) = match self.ethertype()? {
            ETHERTYPE_IPV4 if *ip.get(9)? == PROTOCOL_TCP && [ip[6] & 0x1f, ip[7]] == [0, 0] => {
                let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?).into());
                (address(12)?, address(16)?, usize::from(ip[0] & 15) * 4)
            }
            ETHERTYPE_IPV6 if *ip.get(6)? == PROTOCOL_TCP => {
                let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?).into());
                (address(8)?, address(24)?, 40)
            }
            _ => return None,
        };
        let header = if from.is_ipv4() {
            Header { hops: ip[8], traffic_class: ip[1], dont_fragment: ip[6] & 0x40 != 0 }
        } else {
            Header { hops: ip[7], traffic_class: ip[0] << 4 | ip[1] >> 4, dont_fragment: true }
        };
        let tcp = ip.get(length..)?;
        let data = usize::from(*tcp.get(12)? >> 4) * 4;
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let pseudo_header = raw::pseudo_header(from, to, PROTOCOL_TCP, tcp.len());
        Some(Segment {
            from: SocketAddr::new(from, u16::from_be_bytes([tcp[0], tcp[1]])),
            to: SocketAddr::new(to, u16::from_be_bytes([tcp[2], tcp[3]])),
            header,
            sequence: word(4)?,
            acknowledgment: word(8)?,
            flags: *tcp.get(13)?,
            options: tcp.get(20..data)?.to_vec(),
            data: tcp.get(data..)?.to_vec(),
            checksum_holds: raw::checksum(&[&pseudo_header, tcp]) == 0,
            checksum_is_left_to_the_device: !raw::checksum(&[&pseudo_header]) == u16::from_be_bytes([tcp[16], tcp[17]]),
        })
    }
}

/// What stands in an IP header beside addresses and lengths, and what a router may change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header {
    /// TTL or hop limit.
    pub hops: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// As always with IPv6.
    pub dont_fragment: bool,
}

/// A TCP segment of a captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub header: Header,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    /// As they are on the wire, padding included.
    pub options: Vec<u8>,
    pub data: Vec<u8>,
    /// Means nothing for packets of a sender with checksum offload, which the capture sees unfinished.
    pub checksum_holds: bool,
    /// The checksum is that of the pseudo-header only, to which a device adds the rest: what a sender with checksum offload leaves, and every
    /// rewriting must.
    pub checksum_is_left_to_the_device: bool,
}

impl Segment {
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// As [`Packet::normalised`] for a packet that was built, not captured.
#[must_use]
pub fn normalised(ethertype: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    match ethertype {
        Some(ETHERTYPE_IPV4) if bytes.len() >= 12 => {
            bytes[8] = 0;
            bytes[10..12].fill(0);
        }
        Some(ETHERTYPE_IPV6) if bytes.len() >= 8 => bytes[7] = 0,
        _ => {}
    }
    bytes
}

/// Reads the classic format of tcpdump (pcap-savefile(5)) as this machine writes it. A record at the end that is not whole
/// yet is left out.
fn parse(file: &[u8]) -> Result<Vec<Packet>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const LINKTYPE_ETHERNET: u32 = 1;

    let word = |at: usize| Some(u32::from_ne_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let (Some(magic), Some(link_type)) = (word(0), word(20)) else { return Ok(Vec::new()) };
    if magic != MAGIC || link_type != LINKTYPE_ETHERNET {
        bail!("capture of format {magic:x} and link type {link_type}");
    }
    let mut packets = Vec::new();
    let mut at = 24;
    while let Some(length) = word(at + 8) {
        let start = at + 16;
        at = start + usize::try_from(length).context("a packet fits in memory")?;
        let Some(frame) = file.get(start..at) else { break };
        ensure!(word(start - 4) == Some(length), "a packet of {length} bytes in the capture was longer on the link");
        packets.push(Packet { frame: frame.to_vec() });
    }
    Ok(packets)
}
