//! The door to the bytes of a frame: an XDP frame, a socket buffer, a slice on the host.

use crate::{
    address::Address,
    edit::{Edit, EditError, incremental},
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

    /// Makes more of the frame readable. `false` where there is no more to be had: then a short read means a short frame.
    fn pull(&mut self) -> bool {
        false
    }
}

/// A frame whose addresses and ports can be changed, each kind in its own way: see [`crate::edit`].
pub trait PacketMut: Packet {
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError>;
}

/// Bytes that can be written in place: what [`incremental`] needs.
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

impl PacketMut for [u8] {
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        incremental(self, edit)
    }
}
