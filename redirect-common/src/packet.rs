//! The door to the bytes of a frame: an XDP frame, a socket buffer, a slice on the host.

use crate::{
    address::Address,
    checksum::Delta,
    edit::{Edit, EditError},
    wire::Wire,
};

/// A frame that can be read.
pub trait Packet {
    /// Borrows a header at `offset` bytes; `None` where the readable part of the frame ends before it.
    fn at<T: Wire>(&self, offset: usize) -> Option<&T>;

    /// Length of the whole frame in bytes, also where not all of it is readable.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this host made the frame, and did not forward it. Asked on the way out only.
    fn is_of_this_host(&self) -> bool {
        true
    }

    /// Whether it could be marked for a socket of this host.
    fn can_be_steered(&self) -> bool {
        false
    }

    /// Index of the interface that it came in by, or goes out of; 0 where it is not known.
    fn ifindex(&self) -> u32 {
        0
    }

    /// Makes more of the frame readable, or known. `false` where there is no more to be had: then a short read means a short frame.
    fn pull(&mut self) -> bool {
        false
    }
}

/// A frame that can be changed, each kind in its own way: see [`crate::edit`].
pub trait PacketMut: Packet {
    /// Whether it is edited where it lies, which takes no helper and little of the stack.
    const IN_PLACE: bool = false;

    /// Replaces the tuple of a segment.
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError>;

    /// Replaces the addresses of the IP header at `l3`, and sets right the header's own checksum; there is no other in the frame.
    fn edit_addresses<A: Address>(&mut self, l3: usize, from: &[A; 2], to: &[A; 2]) -> Result<(), EditError>;

    /// Writes a value at `offset` bytes; checksums stay as they are.
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), EditError>;

    /// Sets the checksum of the TCP header at `l4` from scratch: the sums over the pseudo header, and over the segment with its checksum
    /// zero.
    fn set_tcp_checksum(&mut self, l4: usize, pseudo_header: Delta, segment: Delta) -> Result<(), EditError>;

    /// Cuts the frame to `len` bytes at most.
    fn truncate(&mut self, len: usize) -> Result<(), EditError>;
}

/// Bytes that can be written in place: what [`incremental`](crate::edit::incremental) needs.
pub trait BytesMut: Packet {
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;
}

impl Packet for [u8] {
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is exactly as long as `T`, and `Wire` makes any bytes at any address a valid `T`.
        Some(unsafe { &*bytes.as_ptr().cast() })
    }

    fn len(&self) -> usize {
        self.len()
    }
}

impl BytesMut for [u8] {
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let bytes = self.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: as in `at`, and `bytes` is borrowed exclusively.
        Some(unsafe { &mut *bytes.as_mut_ptr().cast() })
    }
}
