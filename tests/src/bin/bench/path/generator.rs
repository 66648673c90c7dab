//! Packets in their millions: an XDP program writes each frame anew and redirects it into a veth device. The generator, the device, the
//! router and whoever discards the packet then run one after the other on one CPU, so that the time for a packet is the work for a packet.

use std::{io, net::Ipv4Addr};

use redirect_tests::{
    CLIENT_MAC, Family, ROUTER_MAC,
    bpf::{Cell, Instruction, Kind, Program, Register},
    raw,
};

/// The subscribers of the generator: 2^20 addresses from here on, behind the client.
pub(crate) const SUBSCRIBERS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
pub(crate) const SUBSCRIBER_BITS: u32 = 20;

/// `wan0` of the router and the server's device; fixed by the lab.
const ROUTER_WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 2];

const PORT_FIRST: i32 = 1024;
const FRAME_LEN: usize = 60;

/// Where the fields that differ from packet to packet are.
const IP_CHECKSUM: usize = 24;
const ADDRESSES: [usize; 2] = [26, 30];
const PORTS: [usize; 2] = [34, 36];
const TCP_CHECKSUM: usize = 50;

/// Where the packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From subscribers to the server.
    Out,
    /// From the server to subscribers.
    Back,
}

/// Which flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    One,
    /// So many, one packet of each in turn, in an order that no cache foresees.
    Many(u32),
    /// Every packet begins a flow. Its subscriber is one of this many, a power of two, in such an order.
    New(u32),
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) direction: Direction,
    pub(crate) flows: Flows,
    pub(crate) server_port: u16,
}

/// A stream ready to be sent. It goes on where it stopped: new flows stay new.
pub(crate) struct Generator {
    program: Program,
    frame: Vec<u8>,
}

impl Generator {
    /// Sends out of the device with this index, in whose namespace the thread that calls [`Generator::send`] has to be.
    pub(crate) fn new(stream: &Stream, device_index: u32) -> io::Result<Self> {
        let frame = template(stream);
        let cell = Cell::new()?;
        let program = Program::load(Kind::Xdp, &instructions(stream, &frame, &cell, device_index))?;
        Ok(Self { program, frame })
    }

    /// Sends `count` packets; nanoseconds for each.
    pub(crate) fn send(&self, count: u32) -> io::Result<u64> {
        self.program.send(&self.frame, count)
    }
}

/// The frame of the first subscriber and the first port.
fn template(stream: &Stream) -> Vec<u8> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let flags = if matches!(stream.flows, Flows::New(_)) { SYN } else { ACK };
    let client = (SUBSCRIBERS.into(), u16::try_from(PORT_FIRST).expect("a port"));
    let server = (Family::V4.server(), stream.server_port);
    let (macs, from, to) = match stream.direction {
        Direction::Out => ([ROUTER_MAC, CLIENT_MAC], client, server),
        Direction::Back => ([ROUTER_WAN_MAC, SERVER_MAC], server, client),
    };
    let mut frame = raw::ip(from.0, to.0, raw::PROTOCOL_TCP, &raw::tcp(from, to, flags, &[]));
    frame[..12].copy_from_slice(macs.as_flattened());
    frame.resize(FRAME_LEN, 0);
    frame
}

/// Everything is written for every packet: the kernel uses the memory of earlier ones again, as their receivers left it.
fn instructions(stream: &Stream, template: &[u8], cell: &Cell, device_index: u32) -> Vec<Instruction> {
    const CONTEXT: Register = Register(1);
    const DATA: Register = Register(2);
    const DATA_END: Register = Register(3);
    const SCRATCH: Register = Register(4);
    const XDP_ABORTED: i32 = 0;
    const HELPER_REDIRECT: i32 = 23;

    let mut program = vec![
        Instruction::load_word(DATA, CONTEXT, 0),
        Instruction::load_word(DATA_END, CONTEXT, 4),
        Instruction::copy(SCRATCH, DATA),
        Instruction::add(SCRATCH, small(FRAME_LEN)),
        Instruction::unless_greater(SCRATCH, DATA_END, 2),
        Instruction::set(Register(0), XDP_ABORTED),
        Instruction::exit(),
    ];
    for (index, word) in template.as_chunks().0.iter().enumerate() {
        program.push(Instruction::store_value(DATA, offset(index * 4), i32::from_ne_bytes(*word)));
    }
    program.extend(match stream.flows {
        Flows::One => Vec::new(),
        Flows::Many(count) => vary(stream.direction, template, cell, Some(count), 1 << SUBSCRIBER_BITS),
        Flows::New(subscribers) => vary(stream.direction, template, cell, None, subscribers),
    });
    program.extend([
        Instruction::set(Register(1), i32::try_from(device_index).expect("an interface index is small")),
        Instruction::set(Register(2), 0),
        Instruction::call(HELPER_REDIRECT),
        Instruction::exit(),
    ]);
    program
}

/// Writes the subscriber's address and port over those of the template, and the checksums that belong to them.
fn vary(direction: Direction, template: &[u8], cell: &Cell, flows: Option<u32>, subscribers: u32) -> Vec<Instruction> {
    const DATA: Register = Register(2);
    const SCRATCH: Register = Register(4);
    const SUM: Register = Register(5);
    const PORT: Register = Register(7);
    const ADDRESS: Register = Register(8);
    /// An odd factor permutes the numbers below a power of two: 2^32 divided by the golden ratio.
    const SPREAD: i32 = 0x9e37_79b1_u32.cast_signed();

    let end = usize::from(direction == Direction::Back);
    let (address, port) = (ADDRESSES[end], PORTS[end]);
    let ip_rest = rest(template, IP_CHECKSUM, address, None);
    let tcp_rest = rest(template, TCP_CHECKSUM, address, Some(port));

    let mut program = cell.address(Register(1)).to_vec();
    program.extend([
        Instruction::load_double(PORT, Register(1), 0),
        Instruction::copy(SCRATCH, PORT),
        Instruction::add(SCRATCH, 1),
        Instruction::store_double(Register(1), 0, SCRATCH),
    ]);
    program.extend(flows.map(|flows| Instruction::modulo(PORT, flows.cast_signed())));
    program.extend([
        Instruction::copy(ADDRESS, PORT),
        Instruction::multiply(ADDRESS, SPREAD),
        Instruction::and(ADDRESS, (subscribers - 1).cast_signed()),
        Instruction::add(ADDRESS, u32::from(SUBSCRIBERS).cast_signed()),
        Instruction::copy(SCRATCH, ADDRESS),
        Instruction::to_network_order(SCRATCH, 32),
        Instruction::store_word(DATA, offset(address), SCRATCH),
        // The next port whenever every subscriber has had this one.
        Instruction::shift_right(PORT, subscribers.ilog2().cast_signed()),
        Instruction::and(PORT, 0x7fff),
        Instruction::add(PORT, PORT_FIRST),
        Instruction::copy(SCRATCH, PORT),
        Instruction::to_network_order(SCRATCH, 16),
        Instruction::store_half(DATA, offset(port), SCRATCH),
        Instruction::copy(SUM, ADDRESS),
        Instruction::shift_right(SUM, 16),
        Instruction::and(ADDRESS, 0xffff),
        Instruction::add_register(SUM, ADDRESS),
    ]);
    program.push(Instruction::copy(SCRATCH, SUM));
    program.extend(store_checksum(DATA, IP_CHECKSUM, SCRATCH, ip_rest));
    program.extend([Instruction::copy(SCRATCH, SUM), Instruction::add_register(SCRATCH, PORT)]);
    program.extend(store_checksum(DATA, TCP_CHECKSUM, SCRATCH, tcp_rest));
    program
}

/// Stores the checksum of what adds up to `rest` and the register `sum`, as RFC 1071 has it.
fn store_checksum(data: Register, at: usize, sum: Register, rest: u16) -> Vec<Instruction> {
    const CARRY: Register = Register(0);
    let mut program = vec![Instruction::add(sum, rest.into())];
    for _ in 0..2 {
        program.extend([
            Instruction::copy(CARRY, sum),
            Instruction::shift_right(CARRY, 16),
            Instruction::and(sum, 0xffff),
            Instruction::add_register(sum, CARRY),
        ]);
    }
    program.extend([
        Instruction::xor(sum, 0xffff),
        Instruction::to_network_order(sum, 16),
        Instruction::store_half(data, offset(at), sum),
    ]);
    program
}

/// What everything but the address and the port adds up to, in the sum whose complement the template has at `checksum`.
fn rest(template: &[u8], checksum: usize, address: usize, port: Option<usize>) -> u16 {
    let word = |at: usize| u16::from_be_bytes([template[at], template[at + 1]]);
    let varying = [Some(address), Some(address + 2), port].into_iter().flatten().map(word);
    // In ones' complement, to subtract is to add the complement.
    let sum: u32 = u32::from(!word(checksum)) + varying.map(|word| u32::from(!word)).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).expect("the carry is folded back")
}

fn offset(at: usize) -> i16 {
    i16::try_from(at).expect("a frame of the generator is small")
}

fn small(len: usize) -> i32 {
    i32::from(offset(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_what_the_checksum_lacks() {
        for direction in [Direction::Out, Direction::Back] {
            let stream = Stream { direction, flows: Flows::New(1), server_port: 443 };
            let frame = template(&stream);
            let end = usize::from(direction == Direction::Back);
            for (at, port) in [(IP_CHECKSUM, None), (TCP_CHECKSUM, Some(PORTS[end]))] {
                let rest = rest(&frame, at, ADDRESSES[end], port);
                let client = u32::from(SUBSCRIBERS);
                let sum = u32::from(rest) + (client >> 16) + (client & 0xffff) + port.map_or(0, |_| 1024);
                let folded = (sum & 0xffff) + (sum >> 16);
                assert_eq!(!u16::try_from(folded).unwrap(), u16::from_be_bytes([frame[at], frame[at + 1]]));
            }
        }
    }
}
