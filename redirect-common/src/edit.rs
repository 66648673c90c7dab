//! What to change in a frame, and how bytes with complete checksums are changed.
//!
//! Deciding and editing are apart because checksums are not the same thing everywhere. An XDP frame carries complete ones, so
//! [`incremental`] arithmetic is right. A socket buffer may be `CHECKSUM_PARTIAL` (its TCP field holds only the sum over the pseudo
//! header) or `CHECKSUM_COMPLETE` (the device summed it); only the kernel's helpers know, and `redirect-ebpf` calls them.

use crate::{address::Address, checksum::Delta, flow::Tuple, packet::BytesMut, wire::TCP_CHECKSUM};

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

impl<A: Address> Edit<'_, A> {
    /// What the addresses do to the IPv4 header's checksum and to the TCP checksum, whose pseudo header has them.
    #[inline(always)]
    pub fn addresses_delta(&self) -> Delta {
        let ([old_source, old_destination], [new_source, new_destination]) = (&self.from.addresses, &self.to.addresses);
        old_source.delta(new_source).and(old_destination.delta(new_destination))
    }

    /// What the ports do to the TCP checksum.
    #[inline(always)]
    pub fn ports_delta(&self) -> Delta {
        let ([[a, b], [c, d]], [[e, f], [g, h]]) = (self.from.ports, self.to.ports);
        Delta::of([a, b, c, d], [e, f, g, h])
    }
}

/// Edits in place with RFC 1624 arithmetic. All offsets are checked before the first byte is written.
#[inline(always)]
pub fn incremental<P: BytesMut + ?Sized, A: Address>(frame: &mut P, edit: &Edit<'_, A>) -> Result<(), EditError> {
    let addresses_delta = edit.addresses_delta();
    let tcp_delta = addresses_delta.and(edit.ports_delta());

    let tcp_checksum = tcp_delta.apply(*frame.at::<[u8; 2]>(edit.l4 + TCP_CHECKSUM).ok_or(EditError)?);
    *frame.at_mut::<[A; 2]>(edit.l3 + A::OFFSET).ok_or(EditError)? = edit.to.addresses;
    if let Some(offset) = A::HEADER_CHECKSUM {
        let checksum = frame.at_mut::<[u8; 2]>(edit.l3 + offset).ok_or(EditError)?;
        *checksum = addresses_delta.apply(*checksum);
    }
    *frame.at_mut::<[[u8; 2]; 2]>(edit.l4).ok_or(EditError)? = edit.to.ports;
    *frame.at_mut::<[u8; 2]>(edit.l4 + TCP_CHECKSUM).ok_or(EditError)? = tcp_checksum;
    Ok(())
}
