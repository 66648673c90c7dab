//! The BPF programs: one for each hook, each a few lines around [`redirect_common::handle::handle`].
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "helpers take and return words wider or narrower than what they carry: lengths of frames and codes of actions"
)]

mod frame;
mod maps;

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action, xdp_action, xdp_md},
    macros::{classifier, sk_lookup, xdp},
    programs::{SkLookupContext, TcContext, XdpContext},
};
use aya_log_ebpf::warn;
use redirect_common::{
    SMTP_PORT,
    address::{Address as _, V4, V6},
    dry_run::DryRun,
    edit::EditError,
    flow::{Direction, Tuple},
    handle::handle,
    maps::{TAKEN_BY_XDP, socket_index},
    parse::Link,
    reason::{Reason, Verdict},
    refuse::refuse,
    tables::Tables as _,
    wire::protocol,
};

use crate::{
    frame::{SocketBuffer, XdpFrame},
    maps::{Maps, SOCKETS, steered_relay},
};

/// Subscriber -> relay, where the driver runs XDP.
#[xdp(frags)]
pub(crate) fn redirect_xdp(context: XdpContext) -> u32 {
    let maps = Maps::new(context.as_ptr());
    let mut frame = XdpFrame::new(context);
    let reason = handle(&mut frame, Link::Ethernet, &maps, Direction::Forward).reason;
    log(frame.context(), reason);
    match reason.verdict() {
        // Frames of this hook have no mark, so none of them is steered.
        Verdict::Pass | Verdict::Redirect | Verdict::Steer => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Reject => refuse_frame(frame.context().ctx),
    }
}

/// Subscriber -> relay, at ingress of a device.
#[classifier]
pub(crate) fn redirect_in(context: TcContext) -> i32 {
    classify(context, Link::Ethernet, Direction::Forward)
}

/// Relay -> subscriber, at egress of the device that the subscriber is behind.
#[classifier]
pub(crate) fn redirect_out(context: TcContext) -> i32 {
    classify(context, Link::Ethernet, Direction::Reply)
}

/// As `redirect_in`, on a device whose frames begin with an IP header.
#[classifier]
pub(crate) fn redirect_in_ip(context: TcContext) -> i32 {
    classify(context, Link::Ip, Direction::Forward)
}

/// As `redirect_out`, on a device whose frames begin with an IP header.
#[classifier]
pub(crate) fn redirect_out_ip(context: TcContext) -> i32 {
    classify(context, Link::Ip, Direction::Reply)
}

/// Tells what would become of a packet, and does nothing but edit the copy: the reason, from bit 8 on the class, from bit 16 on the relay of a
/// new flow. The mark [`TAKEN_BY_XDP`] asks for what XDP would do.
#[classifier]
pub(crate) fn redirect_explain(context: TcContext) -> i32 {
    let maps = DryRun::new(Maps::new(context.as_ptr()));
    // SAFETY: the context is this program's own, and `mark` one of its readable fields.
    let mark = unsafe { (*context.skb.skb).mark };
    let buffer = SocketBuffer::new(context);
    let mut buffer = if mark == TAKEN_BY_XDP { buffer.unmarkable() } else { buffer };
    let outcome = handle(&mut buffer, Link::Ethernet, &maps, Direction::Forward);
    outcome.reason as i32 | i32::from(outcome.class) << 8 | i32::from(maps.chosen_relay()) << 16
}

/// Hands a new connection that was steered to the socket of its relay, and leaves every other to the kernel.
#[sk_lookup]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
pub(crate) fn redirect_socket(context: SkLookupContext) -> u32 {
    // SAFETY: the context is this program's own, and what is read below are its readable fields.
    let lookup = unsafe { &*context.lookup };
    if lookup.protocol != u32::from(protocol::TCP) || lookup.local_port != u32::from(SMTP_PORT) {
        return sk_action::SK_PASS;
    }
    let ports = [lookup.remote_port.to_ne_bytes(), SMTP_PORT.to_be_bytes()];
    let (relay, family) = if lookup.family == AF_INET {
        let addresses = [lookup.remote_ip4, lookup.local_ip4].map(|word| V4::from_octets(word.to_ne_bytes()));
        (steered_relay(&Tuple::new(addresses, ports)), V4::FAMILY)
    } else {
        let addresses = [address_v6(&lookup.remote_ip6), address_v6(&lookup.local_ip6)];
        (steered_relay(&Tuple::new(addresses, ports)), V6::FAMILY)
    };
    match relay {
        // Without a socket the kernel answers as it does for a closed port.
        Some(relay) => match SOCKETS.redirect_sk_lookup(&context, socket_index(relay as u8, family), 0) {
            Ok(()) => sk_action::SK_PASS,
            Err(_) => sk_action::SK_DROP,
        },
        None => sk_action::SK_PASS,
    }
}

/// The context is read in words of 32 bits only, so the compiler must not join two.
#[inline(always)]
fn address_v6(words: &[u32; 4]) -> V6 {
    // SAFETY: the indices are within the array.
    V6::from_words([0, 1, 2, 3].map(|index| unsafe { read_volatile(&raw const words[index]) }))
}

/// Of Linux (include/linux/socket.h).
const AF_INET: u32 = 2;

/// "Unspecified" lets other filters of the same hook see the packet as well.
#[inline(always)]
fn classify(context: TcContext, link: Link, direction: Direction) -> i32 {
    let maps = Maps::new(context.as_ptr());
    let mut buffer = SocketBuffer::new(context);
    let reason = handle(&mut buffer, link, &maps, direction).reason;
    log(buffer.context(), reason);
    match reason.verdict() {
        Verdict::Pass | Verdict::Redirect => TC_ACT_UNSPEC,
        Verdict::Steer => {
            buffer.steer();
            TC_ACT_UNSPEC
        }
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Reject => refuse_buffer(buffer.context().skb.skb, link == Link::Ethernet),
    }
}

/// Not inlined: it gets a frame of its own on the stack, and stays out of what every packet runs through.
#[inline(never)]
fn refuse_frame(context: *mut xdp_md) -> u32 {
    match refuse(&mut XdpFrame::new(XdpContext::new(context)), Link::Ethernet, Maps::new(context.cast()).zero()) {
        Ok(()) => xdp_action::XDP_TX,
        Err(EditError) => xdp_action::XDP_DROP,
    }
}

/// As `refuse_frame`.
#[inline(never)]
fn refuse_buffer(context: *mut __sk_buff, ethernet: bool) -> i32 {
    let mut buffer = SocketBuffer::new(TcContext::new(context));
    match refuse(&mut buffer, if ethernet { Link::Ethernet } else { Link::Ip }, Maps::new(context.cast()).zero()) {
        Ok(()) => buffer.send_back(),
        Err(EditError) => TC_ACT_SHOT,
    }
}

/// Says what should never happen. Nothing else is logged: packets are counted.
#[inline(always)]
fn log(context: &impl EbpfContext, reason: Reason) {
    if reason == Reason::EditFailed {
        warn!(context, "the kernel refused an edit half-way; the packet is dropped");
    }
}

/// Some kernel helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
