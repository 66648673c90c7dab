//! The BPF programs: one for each hook, each a few lines around [`redirect_common::handle::handle`].
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "helpers take and return words wider or narrower than what they carry: lengths of frames and codes of actions"
)]

mod frame;
mod maps;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::warn;
use redirect_common::{
    edit::EditError,
    flow::Direction,
    handle::handle,
    parse::Link,
    reason::{Reason, Verdict},
    refuse::refuse,
    tables::Tables as _,
};

use crate::{
    frame::{SocketBuffer, XdpFrame},
    maps::Maps,
};

/// Subscriber -> relay, where the driver runs XDP.
#[xdp(frags)]
pub(crate) fn redirect_xdp(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(context);
    let reason = handle(&mut frame, Link::Ethernet, &Maps, Direction::Forward);
    log(frame.context(), reason);
    match reason.verdict() {
        Verdict::Pass | Verdict::Redirect => xdp_action::XDP_PASS,
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

/// "Unspecified" lets other filters of the same hook see the packet as well.
#[inline(always)]
fn classify(context: TcContext, link: Link, direction: Direction) -> i32 {
    let mut buffer = SocketBuffer(context);
    let reason = handle(&mut buffer, link, &Maps, direction);
    log(&buffer.0, reason);
    match reason.verdict() {
        Verdict::Pass | Verdict::Redirect => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Reject => refuse_buffer(buffer.0.skb.skb, link == Link::Ethernet),
    }
}

/// Not inlined: it gets a frame of its own on the stack, and stays out of what every packet runs through.
#[inline(never)]
fn refuse_frame(context: *mut xdp_md) -> u32 {
    match refuse(&mut XdpFrame::new(XdpContext::new(context)), Link::Ethernet, Maps.zero()) {
        Ok(()) => xdp_action::XDP_TX,
        Err(EditError) => xdp_action::XDP_DROP,
    }
}

/// As `refuse_frame`.
#[inline(never)]
fn refuse_buffer(context: *mut __sk_buff, ethernet: bool) -> i32 {
    let mut buffer = SocketBuffer(TcContext::new(context));
    match refuse(&mut buffer, if ethernet { Link::Ethernet } else { Link::Ip }, Maps.zero()) {
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
