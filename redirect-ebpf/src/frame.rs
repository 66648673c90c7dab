//! Access to the bytes of a frame in each hook: all raw packet pointers are here.

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    programs::{TcContext, XdpContext},
};
use redirect_common::{
    address::Address,
    edit::{Edit, EditError, incremental},
    packet::{BytesMut, Packet, PacketMut},
    wire::{TCP_CHECKSUM, Wire},
};

/// Headers that are made readable at once: Ethernet, tags, IPv6 with extension headers, TCP.
const PULL_LEN: u32 = 192;

/// The address of `T` at `offset`, where the readable bytes `start..end` hold it whole.
#[inline(always)]
fn within<T: Wire>(start: usize, end: usize, offset: usize) -> Option<*mut T> {
    (start + offset + size_of::<T>() <= end).then_some((start + offset) as *mut T)
}

/// A frame in the driver, with complete checksums.
pub(crate) struct XdpFrame(pub(crate) XdpContext);

impl Packet for XdpFrame {
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the frame, as the verifier checks too; `Wire` makes any bytes a valid `T`.
        within(self.0.data(), self.0.data_end(), offset).map(|header: *mut T| unsafe { &*header })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }
}

impl BytesMut for XdpFrame {
    #[inline(always)]
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `at`; the program owns the frame while it runs, and `self` is borrowed exclusively.
        within(self.0.data(), self.0.data_end(), offset).map(|header: *mut T| unsafe { &mut *header })
    }
}

impl PacketMut for XdpFrame {
    #[inline(always)]
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        incremental(self, edit)
    }
}

/// A socket buffer, whose checksums only the kernel's helpers know how to keep right.
pub(crate) struct SocketBuffer(pub(crate) TcContext);

impl Packet for SocketBuffer {
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the linear part, as the verifier checks too; `Wire` makes any bytes a valid `T`.
        within(self.0.data(), self.0.data_end(), offset).map(|header: *mut T| unsafe { &*header })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn pull(&mut self) -> bool {
        let linear = self.0.data_end() - self.0.data();
        linear < self.len() && self.0.pull_data(self.0.len().min(PULL_LEN)).is_ok()
    }
}

impl PacketMut for SocketBuffer {
    /// Lets the helpers update the checksums by difference, then stores the tuple.
    ///
    /// For a buffer whose sum the device has computed (`CHECKSUM_COMPLETE`), `BPF_F_PSEUDO_HDR` makes the helper take the difference out of
    /// that sum. With IPv4 the header's own checksum makes up for it; IPv6 has none, so its addresses are stored with
    /// `BPF_F_RECOMPUTE_CSUM`, which puts the difference back. That is right on every kernel; the flag `BPF_F_IPV6` for the same purpose
    /// exists from 6.16 on (kernel commit ead7f9b8de65).
    #[inline(always)]
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        let skb = &self.0.skb;
        let addresses_delta = u64::from(edit.addresses_delta().folded());
        let ports_delta = u64::from(edit.ports_delta().folded());
        let tcp_checksum = edit.l4 + TCP_CHECKSUM;
        // A size of 0 tells the helpers that the last argument is a difference.
        let store_flags = match A::HEADER_CHECKSUM {
            Some(offset) => {
                skb.l3_csum_replace(edit.l3 + offset, 0, addresses_delta, 0).map_err(|_| EditError)?;
                0
            }
            None => u64::from(BPF_F_RECOMPUTE_CSUM),
        };
        skb.l4_csum_replace(tcp_checksum, 0, addresses_delta, u64::from(BPF_F_PSEUDO_HDR)).map_err(|_| EditError)?;
        skb.l4_csum_replace(tcp_checksum, 0, ports_delta, 0).map_err(|_| EditError)?;
        skb.store(edit.l3 + A::OFFSET, &edit.to.addresses, store_flags).map_err(|_| EditError)?;
        skb.store(edit.l4, &edit.to.ports, 0).map_err(|_| EditError)
    }
}
