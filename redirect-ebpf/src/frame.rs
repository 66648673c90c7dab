//! Access to the bytes of a frame in each hook: all raw packet pointers are here.

use core::{hint::assert_unchecked, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_update, bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes, bpf_xdp_adjust_tail,
        bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use redirect_common::{
    address::{Address, V4, V6},
    checksum::Delta,
    edit::{Edit, EditError, addresses_delta, incremental, incremental_addresses},
    flow::Tuple,
    packet::{BytesMut, Packet, PacketMut},
    wire::{TCP_CHECKSUM, Wire},
};

use crate::maps::marked;

/// Headers that are made readable at once: Ethernet, tags, IPv6 with extension headers, TCP.
const PULL_LEN: u32 = 192;

/// The address of `T` at `offset`, where the readable bytes `start..end` hold it whole.
#[inline(always)]
fn within<T: Wire>(start: usize, end: usize, offset: usize) -> Option<*mut T> {
    let header = (start + offset) as *mut T;
    // SAFETY: no packet lies at address 0. Otherwise what becomes an `Option` of a reference is compared with that.
    unsafe { assert_unchecked(!header.is_null()) };
    (start + offset + size_of::<T>() <= end).then_some(header)
}

/// A frame in the driver, with complete checksums. A jumbo frame may lie in several buffers, of which the first is readable.
pub(crate) struct XdpFrame {
    context: XdpContext,
    /// Of the first buffer, until the whole is asked for.
    len: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(context: XdpContext) -> Self {
        let len = context.data_end() - context.data();
        Self { context, len }
    }

    pub(crate) const fn context(&self) -> &XdpContext {
        &self.context
    }
}

impl Packet for XdpFrame {
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the frame, as the verifier checks too; `Wire` makes any bytes a valid `T`.
        within(self.context.data(), self.context.data_end(), offset).map(|header: *mut T| unsafe { &*header })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is this program's own, and `ingress_ifindex` one of its readable fields.
        unsafe { (*self.context.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn pull(&mut self) -> bool {
        let first = self.len;
        // SAFETY: the context is this program's own.
        self.len = unsafe { bpf_xdp_get_buff_len(self.context.ctx) } as usize;
        self.len > first
    }
}

impl BytesMut for XdpFrame {
    #[inline(always)]
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `at`; the program owns the frame while it runs, and `self` is borrowed exclusively.
        within(self.context.data(), self.context.data_end(), offset).map(|header: *mut T| unsafe { &mut *header })
    }
}

impl PacketMut for XdpFrame {
    const IN_PLACE: bool = true;

    #[inline(always)]
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        incremental(self, edit)
    }

    #[inline(always)]
    fn edit_addresses<A: Address>(&mut self, l3: usize, from: &[A; 2], to: &[A; 2]) -> Result<(), EditError> {
        incremental_addresses(self, l3, addresses_delta(from, to), to)
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), EditError> {
        *self.at_mut(offset).ok_or(EditError)? = value;
        Ok(())
    }

    #[inline(always)]
    fn set_tcp_checksum(&mut self, l4: usize, pseudo_header: Delta, segment: Delta) -> Result<(), EditError> {
        self.write(l4 + TCP_CHECKSUM, pseudo_header.and(segment).apply([0xff; 2]))
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Result<(), EditError> {
        let surplus = self.len().saturating_sub(len);
        // SAFETY: the context is this program's own; the helper checks the length.
        match unsafe { bpf_xdp_adjust_tail(self.context.ctx, -(surplus as i32)) } {
            0 => Ok(()),
            _ => Err(EditError),
        }
    }
}

/// A socket buffer, whose checksums only the kernel's helpers know how to keep right.
pub(crate) struct SocketBuffer {
    context: TcContext,
    can_be_steered: bool,
}

impl SocketBuffer {
    #[inline(always)]
    pub(crate) const fn new(context: TcContext) -> Self {
        Self { context, can_be_steered: true }
    }

    /// The same, taken as a frame that has no mark.
    #[inline(always)]
    pub(crate) const fn unmarkable(self) -> Self {
        Self { can_be_steered: false, ..self }
    }

    pub(crate) const fn context(&self) -> &TcContext {
        &self.context
    }

    /// Marks the buffer for delivery to a socket of this host.
    #[inline(always)]
    pub(crate) fn steer(&mut self) {
        // SAFETY: the context is this program's own, and `mark` one of its fields that may be read and written.
        unsafe { (*self.context.skb.skb).mark = marked((*self.context.skb.skb).mark) };
    }

    /// Sends the buffer out of the device that it came in by; returns what the program has to answer for that.
    #[inline(always)]
    pub(crate) fn send_back(&self) -> i32 {
        // SAFETY: the context is this program's own, and `ifindex` one of its readable fields.
        unsafe { bpf_redirect((*self.context.skb.skb).ifindex, 0) as i32 }
    }
}

impl Packet for SocketBuffer {
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the linear part, as the verifier checks too; `Wire` makes any bytes a valid `T`.
        within(self.context.data(), self.context.data_end(), offset).map(|header: *mut T| unsafe { &*header })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    fn is_of_this_host(&self) -> bool {
        // SAFETY: the context is this program's own, and `ingress_ifindex` one of its readable fields.
        unsafe { (*self.context.skb.skb).ingress_ifindex == 0 }
    }

    #[inline(always)]
    fn can_be_steered(&self) -> bool {
        self.can_be_steered
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is this program's own, and `ifindex` one of its readable fields.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    fn pull(&mut self) -> bool {
        let linear = self.context.data_end() - self.context.data();
        linear < self.len() && self.context.pull_data(self.context.len().min(PULL_LEN)).is_ok()
    }
}

impl PacketMut for SocketBuffer {
    /// Lets the helper update the TCP checksum by difference, then stores the tuple, all at once where nothing lies between addresses and ports:
    /// each call of a helper costs as much as all that XDP edits. Bytes are not written directly, since for a program that does, the kernel
    /// makes every cloned buffer writable before it runs, also those of bystanders.
    ///
    /// For a buffer whose sum the device has computed (`CHECKSUM_COMPLETE`), `BPF_F_PSEUDO_HDR` makes the helper take the difference out of
    /// that sum. With IPv4 the header's own checksum makes up for it; IPv6 has none, so the difference is put back. That is right on every
    /// kernel; the flag `BPF_F_IPV6` for the same purpose exists from 6.16 on (kernel commit ead7f9b8de65).
    #[inline(always)]
    fn edit<A: Address>(&mut self, edit: &Edit<'_, A>) -> Result<(), EditError> {
        let skb = &self.context.skb;
        let addresses_delta = edit.addresses_delta();
        let tcp_checksum = edit.l4 + TCP_CHECKSUM;
        let header_checksum = match A::HEADER_CHECKSUM {
            Some(offset) => addresses_delta.apply(*self.at(edit.l3 + offset).ok_or(EditError)?),
            None => [0; 2],
        };
        let to = Stored::new(header_checksum, edit.to);
        // A size of 0 tells the helper that the last argument is a difference.
        let difference = addresses_delta.folded();
        skb.l4_csum_replace(tcp_checksum, 0, difference.into(), BPF_F_PSEUDO_HDR.into()).map_err(|_| EditError)?;
        skb.l4_csum_replace(tcp_checksum, 0, edit.ports_delta().folded().into(), 0).map_err(|_| EditError)?;
        if A::HEADER_CHECKSUM.is_none() {
            // SAFETY: the context is this program's own. Buffers of other kinds have no sum, which is no error.
            let _ = unsafe { bpf_csum_update(skb.skb, difference) };
        }
        to.store(self, edit.l3, edit.l4)
    }

    /// As in `edit`; the sum of a buffer that the device has summed changes with addresses that no checksum makes up for.
    #[inline(always)]
    fn edit_addresses<A: Address>(&mut self, l3: usize, from: &[A; 2], to: &[A; 2]) -> Result<(), EditError> {
        let skb = &self.context.skb;
        let store_flags = match A::HEADER_CHECKSUM {
            Some(offset) => {
                let delta = u64::from(addresses_delta(from, to).folded());
                skb.l3_csum_replace(l3 + offset, 0, delta, 0).map_err(|_| EditError)?;
                0
            }
            None => u64::from(BPF_F_RECOMPUTE_CSUM),
        };
        skb.store(l3 + A::OFFSET, to, store_flags).map_err(|_| EditError)
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), EditError> {
        self.context.skb.store(offset, &Aligned(value).0, 0).map_err(|_| EditError)
    }

    /// A buffer of a local or virtual sender may be `CHECKSUM_PARTIAL`: then its field has to hold the sum over the pseudo header, and the
    /// device adds the rest. From a field of zero, the helper makes just that of a change of the pseudo header, and passes over a change of
    /// the segment; in a buffer of any other kind it takes both.
    #[inline(always)]
    fn set_tcp_checksum(&mut self, l4: usize, pseudo_header: Delta, segment: Delta) -> Result<(), EditError> {
        let offset = l4 + TCP_CHECKSUM;
        let skb = &self.context.skb;
        skb.l4_csum_replace(offset, 0, pseudo_header.folded().into(), BPF_F_PSEUDO_HDR.into())
            .map_err(|_| EditError)?;
        skb.l4_csum_replace(offset, 0, segment.folded().into(), 0).map_err(|_| EditError)
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Result<(), EditError> {
        if self.len() <= len {
            return Ok(());
        }
        // SAFETY: the context is this program's own; the helper checks the length.
        match unsafe { bpf_skb_change_tail(self.context.skb.skb, len as u32, 0) } {
            0 => Ok(()),
            _ => Err(EditError),
        }
    }
}

/// Placed as the verifier wants values on the stack.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// Bytes as they lie in a packet: the IPv4 header's checksum is just before the addresses, and the ports just after them if there are neither
/// options nor extension headers.
#[repr(C)]
struct Stored<A> {
    /// The last two bytes of eight, written as one: the compiler calls a function to clear single ones.
    header_checksum: u64,
    tuple: Tuple<A>,
}

impl<A: Address> Stored<A> {
    #[inline(always)]
    const fn new([a, b]: [u8; 2], tuple: &Tuple<A>) -> Self {
        Self { header_checksum: u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b]), tuple: *tuple }
    }

    #[inline(always)]
    fn store(&self, buffer: &SocketBuffer, l3: usize, l4: usize) -> Result<(), EditError> {
        let (addresses_len, ports_len) = (size_of_val(&self.tuple.addresses), size_of_val(&self.tuple.ports));
        let tuple = (&raw const self.tuple).cast::<u8>();
        let (start, first, len) = match A::HEADER_CHECKSUM {
            Some(offset) => (l3 + offset, tuple.wrapping_sub(2), addresses_len + 2),
            None => (l3 + A::OFFSET, tuple, addresses_len),
        };
        let store = |offset: usize, bytes: *const u8, len: usize| {
            // SAFETY: the context is this program's own, and `bytes` are those of `self`, at least `len` of them up to its end.
            match unsafe { bpf_skb_store_bytes(buffer.context.skb.skb, offset as u32, bytes.cast(), len as u32, 0) } {
                0 => Ok(()),
                _ => Err(EditError),
            }
        };
        if start + len == l4 {
            return store(start, first, len + ports_len);
        }
        store(start, first, len)?;
        store(l4, self.tuple.ports.as_ptr().cast(), ports_len)
    }
}

const _: () = assert!(
    offset_of!(Stored<V4>, tuple) == size_of::<u64>()
        && offset_of!(Tuple<V4>, ports) == 8
        && offset_of!(Tuple<V6>, ports) == 32
);
