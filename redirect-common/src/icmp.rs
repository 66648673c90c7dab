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

/// The packet that an error is about, as far as it is quoted.
struct Quote<A> {
    /// Offset of its IP header, in bytes.
    l3: usize,
    /// Offset of its TCP header, in bytes.
    l4: usize,
    tuple: Tuple<A>,
    /// Addresses of the error itself.
    outer: [A; 2],
}

impl<A: Address> Quote<A> {
    #[inline(always)]
    fn read<P: Packet>(frame: &P, headers: &Headers) -> Option<Self> {
        let outer = frame.at::<[A::Octets; 2]>(headers.l3 + A::OFFSET)?.map(A::from_octets);
        let l3 = headers.l4 + size_of::<Icmp>();
        let l4 = if A::HEADER_CHECKSUM.is_some() {
            let ip = frame.at::<Ipv4>(l3)?;
            let header_len = usize::from(ip.version_ihl & 0xf) * 4;
            // Of a fragment in the middle there are no ports to find.
            let has_ports = u16::from_be_bytes(ip.fragment) & IPV4_FRAGMENT_OFFSET == 0;
            if ip.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() || ip.protocol != protocol::TCP || !has_ports
            {
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
        let addresses = frame.at::<[A::Octets; 2]>(l3 + A::OFFSET)?.map(A::from_octets);
        let ports = *frame.at::<[[u8; 2]; 2]>(l4)?;
        (l4 + size_of_val(&ports) <= headers.end).then_some(Self { l3, l4, tuple: Tuple::new(addresses, ports), outer })
    }
}

/// Decides an ICMP error that goes in `direction`, and edits it.
#[inline(never)]
pub(crate) fn translate_error<P, T, A>(frame: &mut P, tables: &T, headers: &Headers, direction: Direction) -> Outcome
where
    P: PacketMut,
    T: Tables + FamilyTables<A>,
    A: Address,
{
    let Some(quote) = Quote::<A>::read(frame, headers) else { return Outcome::unclassed(Reason::NotTcp) };
    let key = quote.tuple.reversed();
    let ours = match direction {
        Direction::Forward => key.ports[1] == SMTP_PORT.to_be_bytes(),
        Direction::Reply => tables.is_relay_port(key.ports[0]),
    };
    // An honest error goes to the source of what it quotes.
    if !ours || quote.outer[1] != key.addresses[1] {
        return Outcome::unclassed(Reason::NotTcp);
    }
    let genuine = frame.is_of_this_host();
    let look_up = |table| {
        let found = tables.flow(table, &key, |flow| {
            let ours = flow.serves(direction, &key) && (genuine || !flow.is_own());
            ours.then_some((flow.to, flow.class, flow.is_steered()))
        });
        found.flatten()
    };
    let found = match look_up(Table::Established) {
        None => look_up(Table::HalfOpen),
        found => found,
    };
    match found {
        None => Outcome::unclassed(Reason::NotTcp),
        Some((_, class, true)) => Outcome::new(Reason::IcmpSteer, class),
        Some((to, class, false)) => match rewrite(frame, headers, &quote, &to.reversed()) {
            Ok(()) => Outcome::new(Reason::IcmpRedirect, class),
            Err(EditError) => Outcome::new(Reason::EditFailed, class),
        },
    }
}

/// Makes `new` of the quoted tuple, and the error's addresses follow.
#[inline(never)]
fn rewrite<P, A>(frame: &mut P, headers: &Headers, quote: &Quote<A>, new: &Tuple<A>) -> Result<(), EditError>
where
    P: PacketMut,
    A: Address,
{
    let [source, destination] = quote.tuple.addresses;
    // Where the far end itself complains, it complains under the name that the receiver knows.
    let sender = if quote.outer[0] == destination { new.addresses[1] } else { quote.outer[0] };
    debug_assert!(quote.outer[1] == source);
    let outer = [sender, new.addresses[0]];
    let outer_delta = addresses_delta(&quote.outer, &outer);
    let addresses = addresses_delta(&quote.tuple.addresses, &new.addresses);
    let ports = Delta::of(quote.tuple.ports_word(), new.ports_word());

    let tcp_checksum_at = quote.l4 + TCP_CHECKSUM;
    let tcp_checksum = match frame.at::<[u8; 2]>(tcp_checksum_at) {
        Some(checksum) if tcp_checksum_at + size_of_val(checksum) <= headers.end => Some(*checksum),
        _ => None,
    };
    // A checksum makes up for what it covers, so a quoted one takes those changes out of the sum over the quote.
    let undone = addresses_delta(&new.addresses, &quote.tuple.addresses);
    let quote_delta = match (A::HEADER_CHECKSUM.is_some(), tcp_checksum.is_some()) {
        (true, true) => undone,
        (true, false) => ports,
        (false, true) => Delta::ZERO,
        (false, false) => addresses.and(ports),
    };
    // The checksum of ICMPv6 covers the addresses (RFC 4443 section 2.3), that of ICMP does not.
    let icmp_delta = if A::HEADER_CHECKSUM.is_some() { quote_delta } else { quote_delta.and(outer_delta) };

    if let Some(offset) = A::HEADER_CHECKSUM {
        update(frame, headers.l3 + offset, outer_delta)?;
    }
    frame.write(headers.l3 + A::OFFSET, outer.map(A::octets))?;
    update(frame, headers.l4 + 2, icmp_delta)?;
    if let Some(offset) = A::HEADER_CHECKSUM {
        update(frame, quote.l3 + offset, addresses)?;
    }
    frame.write(quote.l3 + A::OFFSET, new.addresses.map(A::octets))?;
    frame.write(quote.l4, new.ports)?;
    match tcp_checksum {
        Some(checksum) => frame.write(tcp_checksum_at, addresses.and(ports).apply(checksum)),
        None => Ok(()),
    }
}

/// Sets a checksum right after a change of what it covers.
#[inline(always)]
fn update<P: PacketMut>(frame: &mut P, offset: usize, delta: Delta) -> Result<(), EditError> {
    let checksum = *frame.at::<[u8; 2]>(offset).ok_or(EditError)?;
    frame.write(offset, delta.apply(checksum))
}
