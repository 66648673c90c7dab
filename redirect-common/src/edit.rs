//! What to change in a frame, and how bytes with complete checksums are changed.
//!
//! Deciding and editing are apart because checksums are not the same thing everywhere. An XDP frame carries complete ones, so
//! [`incremental`] arithmetic is right. A socket buffer may be `CHECKSUM_PARTIAL` (its TCP field holds only the sum over the pseudo
//! header) or `CHECKSUM_COMPLETE` (the device summed it); only the kernel's helpers know, and `redirect-ebpf` calls them.

use crate::{
    address::Address,
    checksum::Delta,
    flow::Tuple,
    packet::BytesMut,
    wire::{Summed, Tcp},
};

/// Replace the tuple of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit<'a, A> {
    /// Offset of the IP header, in bytes.
    pub l3: usize,
    /// Offset of the TCP header, in bytes.
    pub l4: usize,
    pub from: &'a Tuple<A>,
    pub to: &'a Tuple<A>,
}

/// The frame could not be edited; it may be half-way between the two tuples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditError;

/// What a change of both addresses does to a checksum that covers them.
#[inline(always)]
pub fn addresses_delta<A: Address>(from: &[A; 2], to: &[A; 2]) -> Delta {
    from[0].delta(to[0]).and(from[1].delta(to[1]))
}

impl<A: Address> Edit<'_, A> {
    /// What the addresses do to the IPv4 header's checksum and to the TCP checksum, whose pseudo header has them.
    #[inline(always)]
    pub fn addresses_delta(&self) -> Delta {
        addresses_delta(&self.from.addresses, &self.to.addresses)
    }

    /// What the ports do to the TCP checksum.
    #[inline(always)]
    pub fn ports_delta(&self) -> Delta {
        Delta::of(self.from.ports_word(), self.to.ports_word())
    }
}

/// Edits in place with RFC 1624 arithmetic.
///
/// The checks go from the front of the frame to its back: a compiler that has seen a later offset checked drops the check of an earlier
/// one, and the verifier, which cannot follow that reasoning, refuses the program.
#[inline(always)]
pub fn incremental<P: BytesMut + ?Sized, A: Address>(frame: &mut P, edit: &Edit<'_, A>) -> Result<(), EditError> {
    let addresses_delta = edit.addresses_delta();
    incremental_addresses(frame, edit.l3, addresses_delta, &edit.to.addresses)?;
    let tcp = frame.at_mut::<Tcp>(edit.l4).ok_or(EditError)?;
    [tcp.source_port, tcp.destination_port] = edit.to.ports;
    tcp.checksum = addresses_delta.and(edit.ports_delta()).apply(tcp.checksum);
    Ok(())
}

/// The part of [`incremental`] that is the IP header's; `delta` is [`addresses_delta`].
#[inline(always)]
pub fn incremental_addresses<P: BytesMut + ?Sized, A: Address>(
    frame: &mut P,
    l3: usize,
    delta: Delta,
    to: &[A; 2],
) -> Result<(), EditError> {
    let addresses = match A::HEADER_CHECKSUM {
        Some(offset) => {
            let Summed { checksum, addresses } = frame.at_mut::<Summed<A::Octets>>(l3 + offset).ok_or(EditError)?;
            *checksum = delta.apply(*checksum);
            addresses
        }
        None => frame.at_mut::<[A::Octets; 2]>(l3 + A::OFFSET).ok_or(EditError)?,
    };
    *addresses = to.map(A::octets);
    Ok(())
}
