//! ICMP errors about packets of a flow (RFC 792, RFC 4443): path MTU discovery and "unreachable" work through a redirect.
//!
//! ```text
//! to the relay, about its answer     server -> router's hop: error { server:25    -> client:40000 }   as it comes
//!                                    relay  -> …:            error { relay:2525   -> client:40000 }   as it leaves
//! to the client, about its segment   hop    -> client:       error { client:40000 -> relay:2525   }
//!                                    hop    -> client:       error { client:40000 -> server:25    }
//! ```
//!
//! Whoever sent the quoted packet gets the error. The flow is found by the tuple of the answer to that packet, which is a key of the flow
//! tables, and the quote becomes the reverse of what such an answer leaves with (RFC 5508 section 4). One's-complement sums over the datagram
//! stay what they were, so the bytes can be stored as they are in a socket buffer of any kind.

use core::hint::black_box;

use crate::{
    SMTP_PORT,
    address::Address,
    checksum::Delta,
    edit::{EditError, addresses_delta},
    flow::{Direction, Tuple},
    handle::Outcome,
    packet::{Packet, PacketMut},
    parse::{Headers, IPV4_FRAGMENT_OFFSET},
    reason::Reason,
    tables::{FamilyTables, Table, Tables},
    wire::{Icmp, Ipv4, Ipv6, TCP_CHECKSUM, protocol},
};

/// Offsets of the IP and the TCP header that an error quotes, in bytes.
#[inline(always)]
fn quoted_headers<P: Packet, A: Address>(frame: &P, headers: &Headers) -> Option<(usize, usize)> {
    let l3 = headers.l4 + size_of::<Icmp>();
    let l4 = if A::HEADER_CHECKSUM.is_some() {
        let ip = frame.at::<Ipv4>(l3)?;
        let header_len = usize::from(ip.version_ihl & 0xf) * 4;
        // Of a fragment in the middle there are no ports to find.
        let has_ports = u16::from_be_bytes(ip.fragment) & IPV4_FRAGMENT_OFFSET == 0;
        if ip.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() || ip.protocol != protocol::TCP || !has_ports {
            return None;
        }
        l3 + header_len
    } else {
        let ip = frame.at::<Ipv6>(l3)?;
        if ip.version_class_flow[0] >> 4 != 6 || ip.next_header != protocol::TCP {
            return None;
        }
        l3 + size_of::<Ipv6>()
    };
    (l4 + size_of::<[[u8; 2]; 2]>() <= headers.end()).then_some((l3, l4))
}

/// An error of a flow. The tuples are those of the answers to the quoted packet: the flow's key, and what such answers leave with. One
/// structure, because a function of BPF takes five arguments, and LLVM makes several of a small one.
struct Error<A> {
    /// Offset of the quoted IP header, in bytes.
    l3: usize,
    /// Offset of the quoted TCP header, in bytes.
    l4: usize,
    key: Tuple<A>,
    to: Tuple<A>,
    /// What the change of the error's own addresses does to a checksum over both.
    outer: Delta,
    class: u16,
    steered: bool,
}

/// Decides an ICMP error that goes in `direction`, and edits it.
#[inline(never)]
pub(crate) fn translate_error<P, T, A>(frame: &mut P, tables: &T, headers: &Headers, direction: Direction) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let not_ours = Outcome::unclassed(Reason::NotTcp);
    let Some((l3, l4)) = quoted_headers::<P, A>(frame, headers) else { return not_ours };
    let mut error =
        Error { l3, l4, key: Tuple::default(), to: Tuple::default(), outer: Delta::ZERO, class: 0, steered: false };
    if !read_key(frame, &mut error) {
        return not_ours;
    }
    let ours = match direction {
        Direction::Forward => error.key.ports[1] == SMTP_PORT.to_be_bytes(),
        Direction::Reply => tables.is_relay_port(error.key.ports[0]),
    };
    // An honest error goes to the source of what it quotes.
    let Some([_, receiver]) = frame.at::<[A::Octets; 2]>(headers.l3 + A::OFFSET).copied() else {
        return not_ours;
    };
    if !ours || A::from_octets(receiver) != error.key.addresses[1] {
        return not_ours;
    }
    let way = match direction {
        Direction::Forward => Way::Forward,
        Direction::Reply if frame.is_of_this_host() => Way::Reply,
        Direction::Reply => Way::ForwardedReply,
    };
    if !complete(tables, &mut error, way) {
        return not_ours;
    }
    let reason = if error.steered {
        Reason::IcmpSteer
    } else if rewrite_outer(frame, headers, &mut error).is_ok() && rewrite_quote(frame, headers, &error).is_ok() {
        Reason::IcmpRedirect
    } else {
        Reason::EditFailed
    };
    Outcome::new(reason, error.class)
}

/// The key of the answer to the quoted packet.
///
/// Not inlined, so that the compiler does not reason from the checks of `quoted_headers` to those here: the verifier cannot follow it. Nor may
/// it hand over pointers into the packet instead of the frame.
#[inline(never)]
fn read_key<P: Packet, A: Address>(frame: &P, error: &mut Error<A>) -> bool {
    let frame = black_box(frame);
    let Some(addresses) = frame.at::<[A::Octets; 2]>(error.l3 + A::OFFSET) else { return false };
    let [source, destination] = addresses.map(A::from_octets);
    let Some([source_port, destination_port]) = frame.at::<[[u8; 2]; 2]>(error.l4).copied() else { return false };
    error.key = Tuple::new([destination, source], [destination_port, source_port]);
    true
}

/// Which way an error goes, and who made it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    /// Of this host.
    Reply,
    /// Of somebody else.
    ForwardedReply,
}

/// Completes the error from its flow, if it is one's.
#[inline(never)]
fn complete<T, A>(tables: &T, error: &mut Error<A>, way: Way) -> bool
where
    T: FamilyTables<A>,
    A: Address,
{
    let direction = if way == Way::Forward { Direction::Forward } else { Direction::Reply };
    let key = error.key;
    let mut look_up = |table| {
        let found = tables.flow(table, &key, |flow| {
            let ours = flow.serves(direction, &key) && !(way == Way::ForwardedReply && flow.is_own());
            if ours {
                (error.to, error.class, error.steered) = (flow.to, flow.class, flow.is_steered());
            }
            ours
        });
        found == Some(true)
    };
    look_up(Table::Established) || look_up(Table::HalfOpen)
}

/// Makes the quoted packet the one that `to` answers, instead of the one that `key` answers.
#[inline(never)]
fn rewrite_quote<P, A>(frame: &mut P, headers: &Headers, error: &Error<A>) -> Result<(), EditError>
where
    P: PacketMut,
    A: Address,
{
    let Error { l3, l4, key, to, .. } = error;
    let (l3, l4) = (*l3, *l4);
    let addresses = addresses_delta(&key.addresses, &to.addresses);
    let ports = Delta::of(key.ports_word(), to.ports_word());

    let tcp_checksum_at = l4 + TCP_CHECKSUM;
    let tcp_checksum = match frame.at::<[u8; 2]>(tcp_checksum_at) {
        Some(checksum) if tcp_checksum_at + size_of_val(checksum) <= headers.end() => Some(*checksum),
        _ => None,
    };
    // A checksum makes up for what it covers, so a quoted one takes those changes out of the sum over the quote.
    let quote = match (A::HEADER_CHECKSUM.is_some(), tcp_checksum.is_some()) {
        (true, true) => addresses_delta(&to.addresses, &key.addresses),
        (true, false) => ports,
        (false, true) => Delta::ZERO,
        (false, false) => addresses.and(ports),
    };
    // The checksum of ICMPv6 covers the addresses (RFC 4443 section 2.3), that of ICMP does not.
    let icmp = if A::HEADER_CHECKSUM.is_some() { quote } else { quote.and(error.outer) };
    update(frame, headers.l4 + 2, icmp)?;
    if let Some(offset) = A::HEADER_CHECKSUM {
        update(frame, l3 + offset, addresses)?;
    }
    frame.write(l3 + A::OFFSET, [to.addresses[1].octets(), to.addresses[0].octets()])?;
    frame.write(l4, [to.ports[1], to.ports[0]])?;
    match tcp_checksum {
        Some(checksum) => frame.write(tcp_checksum_at, addresses.and(ports).apply(checksum)),
        None => Ok(()),
    }
}

/// Sends the error to whoever has sent the packet that it quotes by now.
#[inline(never)]
fn rewrite_outer<P, A>(frame: &mut P, headers: &Headers, error: &mut Error<A>) -> Result<(), EditError>
where
    P: PacketMut,
    A: Address,
{
    // As in `read_key`.
    let frame = black_box(frame);
    let at = headers.l3 + A::OFFSET;
    let [sender, receiver] = frame.at::<[A::Octets; 2]>(at).ok_or(EditError)?.map(A::from_octets);
    // Where the far end itself complains, it complains under the name that the receiver knows.
    let new_sender = if sender == error.key.addresses[0] { error.to.addresses[0] } else { sender };
    let new_receiver = error.to.addresses[1];
    error.outer = sender.delta(new_sender).and(receiver.delta(new_receiver));
    if let Some(offset) = A::HEADER_CHECKSUM {
        update(frame, headers.l3 + offset, error.outer)?;
    }
    frame.write(at, [new_sender.octets(), new_receiver.octets()])
}

/// Sets a checksum right after a change of what it covers.
#[inline(always)]
fn update<P: PacketMut>(frame: &mut P, offset: usize, delta: Delta) -> Result<(), EditError> {
    let checksum = *frame.at::<[u8; 2]>(offset).ok_or(EditError)?;
    frame.write(offset, delta.apply(checksum))
}
