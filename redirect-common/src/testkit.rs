//! What tests need on the host: tables in memory, a builder of frames, and checksums computed from scratch.

pub mod properties;
pub mod reading;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
    vec::Vec,
};

use crate::{
    address::{Address, Host, V4, V6},
    checksum::Delta,
    edit::{Edit, EditError, addresses_delta, incremental, incremental_addresses},
    event::Event,
    flow::{Direction, Flags, Flow, Tuple},
    fragment::{Datagram, Fate},
    handle::handle,
    limit::Rate,
    maps::Count,
    packet::{BytesMut, Packet, PacketMut},
    parse::Link,
    policy::{Class, Relay},
    reason::{Reason, Verdict},
    refuse::refuse,
    tables::{FamilyTables, InsertError, Socket, Table, Tables},
    wire::{TCP_CHECKSUM, Wire, protocol},
};

/// RFC 1071 over the concatenation of `parts`, each of even length but the last: the checksum that belongs into the header.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// State of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyState<A: Address> {
    /// By prefix length and network address; numbers of classes.
    pub prefixes: BTreeMap<(u8, IpAddr), u16>,
    pub half_open: BTreeMap<Tuple<A>, Flow<A>>,
    pub established: BTreeMap<Tuple<A>, Flow<A>>,
    pub fates: BTreeMap<Datagram<A>, Fate<A>>,
    /// Connections that sockets of this host have; any other has none.
    pub sockets: BTreeMap<Tuple<A>, Socket>,
}

impl<A: Address> FamilyState<A> {
    const fn entries(&mut self, table: Table) -> &mut BTreeMap<Tuple<A>, Flow<A>> {
        match table {
            Table::HalfOpen => &mut self.half_open,
            Table::Established => &mut self.established,
        }
    }
}

/// [`Tables`] in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTables {
    pub v4: RefCell<FamilyState<V4>>,
    pub v6: RefCell<FamilyState<V6>>,
    pub classes: BTreeMap<u16, Class>,
    pub relays: BTreeMap<u16, Relay>,
    pub now_s: u32,
    pub now_ns: u64,
    pub daemon_down: bool,
    pub epoch: u32,
    pub steering: bool,
    pub rates: RefCell<BTreeMap<Host, Rate>>,
    pub open: RefCell<BTreeMap<Host, u32>>,
    /// By subscriber, until when.
    pub locks: RefCell<BTreeMap<Host, u32>>,
    pub events: RefCell<Vec<Event>>,
    /// Entries that the established table of each family takes.
    pub established_max: usize,
    /// Resets that may still be sent, whatever the second.
    pub resets_left: Cell<u32>,
    pub counts: RefCell<BTreeMap<(u16, Reason), Count>>,
}

impl Default for MemoryTables {
    fn default() -> Self {
        Self {
            v4: RefCell::default(),
            v6: RefCell::default(),
            classes: BTreeMap::new(),
            relays: BTreeMap::new(),
            now_s: 0,
            now_ns: 0,
            daemon_down: false,
            epoch: 0,
            steering: false,
            rates: RefCell::default(),
            open: RefCell::default(),
            locks: RefCell::default(),
            events: RefCell::default(),
            established_max: usize::MAX,
            resets_left: Cell::new(u32::MAX),
            counts: RefCell::default(),
        }
    }
}

impl MemoryTables {
    /// Packets counted so far, by class and reason, and nothing that was not counted.
    pub fn packets(&self) -> Vec<(u16, Reason, u64)> {
        self.counts.borrow().iter().map(|(&(class, reason), count)| (class, reason, count.packets)).collect()
    }
}

/// Whether the first `len` bits are equal.
fn covers(len: u8, network: IpAddr, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (u32::from(network).into(), u32::from(address).into(), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => (u128::from(network), u128::from(address), 128),
        _ => return false,
    };
    (network ^ address).checked_shr(width - u32::from(len)).unwrap_or(0) == 0
}

macro_rules! family {
    ($address:ty, $field:ident) => {
        impl FamilyTables<$address> for MemoryTables {
            // By looking at every prefix, so that the programs are held against another way to find it.
            fn class_number(&self, source: &$address) -> u16 {
                let state = self.$field.borrow();
                let matching =
                    state.prefixes.iter().filter(|((len, network), _)| covers(*len, *network, source.to_ip()));
                matching.max_by_key(|((len, _), _)| *len).map_or(0, |(_, class)| *class)
            }

            fn flow<R>(
                &self,
                table: Table,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                // On a copy, since `change` may look at other entries.
                let mut flow = self.$field.borrow_mut().entries(table).get(key).copied()?;
                let result = change(&mut flow);
                // Unless `change` has removed it.
                if let Some(entry) = self.$field.borrow_mut().entries(table).get_mut(key) {
                    *entry = flow;
                }
                Some(result)
            }

            fn copied_flow<R>(
                &self,
                table: Table,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                let mut flow = self.$field.borrow_mut().entries(table).get(key).copied()?;
                Some(change(&mut flow))
            }

            fn enter(&self, key: &Tuple<$address>, replace: bool, flow: impl FnOnce() -> Flow<$address>) -> bool {
                let mut state = self.$field.borrow_mut();
                let entries = state.entries(Table::HalfOpen);
                let enters = replace || !entries.contains_key(key);
                if enters {
                    entries.insert(*key, flow());
                }
                enters
            }

            fn establish(&self, key: &Tuple<$address>, flow: &Flow<$address>) -> Result<(), InsertError> {
                let mut state = self.$field.borrow_mut();
                let entries = state.entries(Table::Established);
                if entries.contains_key(key) {
                    return Err(InsertError::Exists);
                }
                if entries.len() >= self.established_max {
                    return Err(InsertError::Full);
                }
                entries.insert(*key, *flow);
                Ok(())
            }

            fn remove(&self, table: Table, key: &Tuple<$address>) {
                self.$field.borrow_mut().entries(table).remove(key);
            }

            fn fate(&self, datagram: &Datagram<$address>) -> Option<Fate<$address>> {
                self.$field.borrow().fates.get(datagram).copied()
            }

            fn set_fate(&self, datagram: &Datagram<$address>, fate: &Fate<$address>) {
                self.$field.borrow_mut().fates.insert(*datagram, *fate);
            }

            fn socket(&self, tuple: &Tuple<$address>) -> Socket {
                self.$field.borrow().sockets.get(tuple).copied().unwrap_or(Socket::None)
            }
        }
    };
}

family!(V4, v4);
family!(V6, v6);

impl Tables for MemoryTables {
    fn class(&self, class: u16) -> Option<&Class> {
        self.classes.get(&class)
    }

    fn relay(&self, relay: u16) -> Option<&Relay> {
        self.relays.get(&relay)
    }

    fn is_relay_port(&self, port: [u8; 2]) -> bool {
        self.relays.values().any(|relay| {
            relay.ipv4().is_some_and(|(_, own)| own == port) || relay.ipv6().is_some_and(|(_, own)| own == port)
        })
    }

    fn now_s(&self) -> u32 {
        self.now_s
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn is_daemon_down(&self) -> bool {
        self.daemon_down
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }

    fn is_steering(&self) -> bool {
        self.steering
    }

    fn zero(&self) -> usize {
        0
    }

    fn rate<R>(&self, host: Host, change: impl FnOnce(&mut Rate) -> R) -> Option<R> {
        Some(change(self.rates.borrow_mut().entry(host).or_default()))
    }

    fn peek_rate(&self, host: Host) -> Rate {
        self.rates.borrow().get(&host).copied().unwrap_or_default()
    }

    fn open(&self, host: Host) -> u32 {
        self.open.borrow().get(&host).copied().unwrap_or_default()
    }

    fn add_open(&self, host: Host) -> bool {
        *self.open.borrow_mut().entry(host).or_default() += 1;
        true
    }

    fn remove_open(&self, host: Host) {
        *self.open.borrow_mut().entry(host).or_default() -= 1;
    }

    fn locked_until_s(&self, host: Host) -> Option<u32> {
        self.locks.borrow().get(&host).copied()
    }

    fn lock(&self, host: Host, until_s: u32) {
        self.locks.borrow_mut().insert(host, until_s);
    }

    fn take_event(&self, _now_s: u32) -> bool {
        true
    }

    fn report(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }

    fn take_reset(&self, _now_s: u32) -> bool {
        let left = self.resets_left.get();
        self.resets_left.set(left.saturating_sub(1));
        left > 0
    }

    fn count(&self, _ifindex: u32, class: u16, reason: Reason, bytes: u64) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry((class, reason)).or_default();
        count.packets += 1;
        count.bytes += bytes;
    }
}

impl Packet for Vec<u8> {
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        self.as_slice().at(offset)
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn can_be_steered(&self) -> bool {
        true
    }
}

impl BytesMut for Vec<u8> {
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        self.as_mut_slice().at_mut(offset)
    }
}

impl PacketMut for Vec<u8> {
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        incremental(self, edit)
    }

    fn edit_addresses<A: Address>(&mut self, l3: usize, from: &[A; 2], to: &[A; 2]) -> Result<(), EditError> {
        incremental_addresses(self, l3, addresses_delta(from, to), to)
    }

    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), EditError> {
        *self.at_mut(offset).ok_or(EditError)? = value;
        Ok(())
    }

    fn set_tcp_checksum(&mut self, l4: usize, pseudo_header: Delta, segment: Delta) -> Result<(), EditError> {
        self.write(l4 + TCP_CHECKSUM, pseudo_header.and(segment).apply([0xff; 2]))
    }

    fn truncate(&mut self, len: usize) -> Result<(), EditError> {
        Vec::truncate(self, len);
        Ok(())
    }
}

/// What a program does with a frame, the answer to a rejected one included.
pub fn process(frame: &mut Vec<u8>, link: Link, tables: &MemoryTables, direction: Direction) -> Reason {
    let reason = handle(frame, link, tables, direction).reason;
    if reason.verdict() == Verdict::Reject {
        refuse(frame, link, tables.zero()).expect("a frame that was rejected can be refused");
    }
    reason
}

/// Address family of a built frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    V4,
    V6,
}

/// A TCP frame, field by field; each knob can be turned to an invalid value. Checksums are right for what is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBuilder {
    pub ip: Ip,
    /// Without Ethernet, tags and PPPoE are left out as well.
    pub link: Link,
    /// Ethertypes of the VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// A PPPoE session header behind the tags.
    pub pppoe: bool,
    /// Overrides the ethertype of the network layer.
    pub ethertype: Option<u16>,
    /// Bytes of IPv4 options (no-operation); a multiple of 4, at most 40.
    pub ip_options: u8,
    /// IPv6 extension headers, by number.
    pub extensions: Vec<u8>,
    /// In routing headers.
    pub segments_left: u8,
    pub protocol: u8,
    /// The IPv4 flags and fragment offset; IPv6 fragment headers have the same offset and "more fragments".
    pub fragment: u16,
    /// Of the datagram that the fragments belong to.
    pub identification: u16,
    /// Last two bytes of `10.20.x.x` or `fd00:20::x:x`.
    pub client: [u8; 2],
    /// Last byte of `203.0.113.x` or `2001:db8::x`.
    pub server: u8,
    pub client_port: u16,
    pub server_port: u16,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// TCP header length in words of 32 bits.
    pub tcp_offset: u8,
    pub payload: Vec<u8>,
    /// From the server to the client instead.
    pub reversed: bool,
}

impl FrameBuilder {
    /// A SYN of `10.20.0.5:40000` (or `fd00:20::5`) to `203.0.113.9:25` (or `2001:db8::9`).
    pub fn syn(ip: Ip) -> Self {
        Self {
            ip,
            link: Link::Ethernet,
            tags: Vec::new(),
            pppoe: false,
            ethertype: None,
            ip_options: 0,
            extensions: Vec::new(),
            segments_left: 0,
            protocol: 6,
            fragment: 0x4000,
            identification: 7,
            client: [0, 5],
            server: 9,
            client_port: 40_000,
            server_port: 25,
            flags: Flags::SYN,
            sequence: 1000,
            acknowledgment: 0,
            tcp_offset: 5,
            payload: Vec::new(),
            reversed: false,
        }
    }

    pub fn client_v4(&self) -> [u8; 4] {
        [10, 20, self.client[0], self.client[1]]
    }

    pub fn client_v6(&self) -> [u8; 16] {
        [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.client[0], 0, self.client[1]]
    }

    pub fn server_v4(&self) -> [u8; 4] {
        [203, 0, 113, self.server]
    }

    pub fn server_v6(&self) -> [u8; 16] {
        [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.server]
    }

    pub fn build(&self) -> Vec<u8> {
        let (client, server) = match self.ip {
            Ip::V4 => (self.client_v4().to_vec(), self.server_v4().to_vec()),
            Ip::V6 => (self.client_v6().to_vec(), self.server_v6().to_vec()),
        };
        let (mut from, mut to) = ((client, self.client_port), (server, self.server_port));
        if self.reversed {
            std::mem::swap(&mut from, &mut to);
        }
        self.build_between(&from.0, from.1, &to.0, to.1)
    }

    /// The same frame between other endpoints; addresses are of the builder's family.
    pub fn build_between(&self, source: &[u8], source_port: u16, destination: &[u8], destination_port: u16) -> Vec<u8> {
        self.enclose(&self.tcp(source, source_port, destination, destination_port), source, destination)
    }

    /// An ICMP error of `kind` about the packet that `quote` begins with, in the builder's frame.
    pub fn icmp_error(&self, source: &[u8], destination: &[u8], kind: u8, quote: &[u8]) -> Vec<u8> {
        self.icmp(source, destination, &[&[kind, 4, 0, 0, 5, 0], quote].concat())
    }

    /// An ICMP message, in the builder's frame; `message` has no checksum, which comes behind its first two bytes.
    pub fn icmp(&self, source: &[u8], destination: &[u8], message: &[u8]) -> Vec<u8> {
        let (head, rest) = message.split_at(message.len().min(2));
        let mut icmp = [head, &[0, 0], rest].concat();
        let number = match self.ip {
            Ip::V4 => protocol::ICMPV4,
            Ip::V6 => protocol::ICMPV6,
        };
        let len = (icmp.len() as u32).to_be_bytes();
        let checksum = match self.ip {
            Ip::V4 => internet_checksum(&[&icmp]),
            Ip::V6 => internet_checksum(&[source, destination, &len, &[0, number], &icmp]),
        };
        icmp[head.len()..head.len() + 2].copy_from_slice(&checksum.to_be_bytes());
        Self { protocol: number, fragment: 0x4000, ..self.clone() }.enclose(&icmp, source, destination)
    }

    /// Puts the payload of IP into a frame.
    fn enclose(&self, payload: &[u8], source: &[u8], destination: &[u8]) -> Vec<u8> {
        let mut datagram = match self.ip {
            Ip::V4 => self.ipv4(payload, source, destination),
            Ip::V6 => self.ipv6(payload, source, destination),
        };
        datagram.extend(payload);
        let mut frame = match self.link {
            Link::Ethernet => self.ethernet(datagram.len()),
            Link::Ip => Vec::new(),
        };
        frame.extend(datagram);
        frame
    }

    /// Ethernet, tags and PPPoE, for a datagram of `len` bytes.
    fn ethernet(&self, len: usize) -> Vec<u8> {
        let mut header = vec![0x02; 12];
        for tag in &self.tags {
            header.extend(tag.to_be_bytes());
            header.extend([0x20, 0x64]);
        }
        let (ethertype, ppp_protocol) = match self.ip {
            Ip::V4 => (0x0800u16, 0x0021u16),
            Ip::V6 => (0x86dd, 0x0057),
        };
        if self.pppoe {
            header.extend(self.ethertype.unwrap_or(0x8864).to_be_bytes());
            header.extend([0x11, 0, 0x12, 0x34]);
            header.extend((len as u16 + 2).to_be_bytes());
            header.extend(ppp_protocol.to_be_bytes());
        } else {
            header.extend(self.ethertype.unwrap_or(ethertype).to_be_bytes());
        }
        header
    }

    fn tcp(&self, source: &[u8], source_port: u16, destination: &[u8], destination_port: u16) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(source_port.to_be_bytes());
        tcp.extend(destination_port.to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgment.to_be_bytes());
        tcp.extend([self.tcp_offset << 4, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        let len = (tcp.len() as u32).to_be_bytes();
        let checksum = internet_checksum(&[source, destination, &len, &[0, self.protocol], &tcp]);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        tcp
    }

    fn ipv4(&self, tcp: &[u8], source: &[u8], destination: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.ip_options;
        let total_len = u16::from(header_len) + tcp.len() as u16;
        let mut ip = vec![0x40 | (header_len / 4), 0];
        ip.extend(total_len.to_be_bytes());
        ip.extend(self.identification.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([64, self.protocol, 0, 0]);
        ip.extend(source);
        ip.extend(destination);
        ip.extend(std::iter::repeat_n(1, self.ip_options.into()));
        let checksum = internet_checksum(&[&ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    }

    fn ipv6(&self, tcp: &[u8], source: &[u8], destination: &[u8]) -> Vec<u8> {
        let mut extensions = Vec::new();
        for (index, number) in self.extensions.iter().enumerate() {
            let next = *self.extensions.get(index + 1).unwrap_or(&self.protocol);
            if *number == protocol::FRAGMENT {
                let [high, low] = ((self.fragment & 0x1fff) << 3 | self.fragment >> 13 & 1).to_be_bytes();
                let [a, b] = self.identification.to_be_bytes();
                extensions.extend([next, 0, high, low, 0, 0, a, b]);
            } else {
                extensions.extend([next, 0, 0, self.segments_left, 0, 0, 0, 0]);
            }
        }
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(((extensions.len() + tcp.len()) as u16).to_be_bytes());
        ip.extend([*self.extensions.first().unwrap_or(&self.protocol), 64]);
        ip.extend(source);
        ip.extend(destination);
        ip.extend(extensions);
        ip
    }
}
