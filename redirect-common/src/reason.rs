//! Verdicts, and the named way out of the data plane that led to each.
//!
//! A [`Reason`] is a counter's index, a metric's label, the text of `explain` and what a test expects: one list, in one place.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Goes on untouched.
    Pass,
    /// Is discarded.
    Drop,
    /// Goes on with another tuple: toward the relay, or back to the subscriber.
    Redirect,
    /// Goes back as a TCP reset.
    Reject,
    /// Goes on untouched, but to a socket of this host.
    Steer,
}

impl Verdict {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Redirect => "redirect",
            Self::Reject => "reject",
            Self::Steer => "steer",
        }
    }
}

macro_rules! reasons {
    ($($(#[$attribute:meta])* $name:ident = $label:literal, $verdict:ident, $text:literal;)*) => {
        /// Why a packet got its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$attribute])* #[doc = $text] $name),* }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Label in metrics, JSON and the CLI.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            const fn listed_verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict),* }
            }
        }
    };
}

reasons! {
    NotIp = "not_ip", Pass, "Neither IPv4 nor IPv6.";
    NotTcp = "not_tcp", Pass, "Not TCP.";
    OtherPort = "other_port", Pass, "TCP, but no port of ours.";
    Truncated = "truncated", Pass, "The frame ends before the headers that it announces.";
    Malformed = "malformed", Pass, "A header contradicts itself.";
    Fragment = "fragment", Pass, "A fragment of a datagram whose first fragment passed, or has not come.";
    FragmentBlock = "fragment_block", Drop, "A fragment whose first was dropped, or a first one too short to be decided.";
    FragmentRedirect = "fragment_redirect", Redirect, "A fragment that follows its first one, which was redirected.";
    FragmentSteer = "fragment_steer", Steer, "A fragment that follows its first one, which was steered.";
    IcmpRedirect = "icmp_redirect", Redirect, "An ICMP error about a packet of a redirected flow.";
    IcmpSteer = "icmp_steer", Steer, "An ICMP error about a packet of a steered flow.";
    TooDeep = "too_deep", Pass, "More VLAN tags or IPv6 extension headers than we follow.";
    SourceRouted = "source_routed", Pass, "A routing header with hops left: the destination is not the final one.";
    NoClass = "no_class", Pass, "The source is no subscriber.";
    ClassPass = "class_pass", Pass, "The subscriber's class passes port 25.";
    ClassBlock = "class_block", Drop, "The subscriber's class blocks port 25.";
    ClassReject = "class_reject", Reject, "The subscriber's class rejects port 25.";
    Locked = "locked", Drop, "The subscriber is locked: no new connections until the lock expires.";
    RateLimited = "rate_limited", Drop, "More new connections per second than the class allows one subscriber.";
    OpenLimited = "open_limited", Drop, "More connections open than the class allows one subscriber.";
    NoFlow = "no_flow", Pass, "A segment in mid-stream of a connection that was never redirected; the class keeps such, or would still let it pass.";
    NoFlowReject = "no_flow_reject", Reject, "A segment in mid-stream of a connection that was never redirected; the class resets such.";
    ClassChanged = "class_changed", Reject, "A live flow whose subscriber has another class by now, which resets such.";
    RelayDownPass = "relay_down_pass", Pass, "No relay for this address family; the class says pass.";
    RelayDownBlock = "relay_down_block", Drop, "No relay for this address family; the class says block.";
    RelayDownReject = "relay_down_reject", Reject, "No relay for this address family; the class says reject.";
    DaemonDownPass = "daemon_down_pass", Pass, "No daemon looks after the relays; the class says pass.";
    DaemonDownBlock = "daemon_down_block", Drop, "No daemon looks after the relays; the class says block.";
    DaemonDownReject = "daemon_down_reject", Reject, "No daemon looks after the relays; the class says reject.";
    ClashPass = "clash_pass", Pass, "No free client port toward the relay; the class says pass.";
    ClashBlock = "clash_block", Drop, "No free client port toward the relay; the class says block.";
    ClashReject = "clash_reject", Reject, "No free client port toward the relay; the class says reject.";
    ResetUnanswered = "reset_unanswered", Drop, "A reset that would have to be rejected: resets get no answer.";
    RejectLimited = "reject_limited", Drop, "To be rejected, but this CPU has sent its resets of the second.";
    FlowNew = "flow_new", Redirect, "A SYN that opens a redirected flow.";
    FlowHalfOpen = "flow_half_open", Redirect, "A segment of a redirected flow before its handshake is complete.";
    FlowPromoted = "flow_promoted", Redirect, "The segment that completed the handshake of a redirected flow.";
    FlowUnpromoted = "flow_unpromoted", Redirect, "Handshake complete, but the table of established flows is full; the class says pass.";
    FlowUnpromotedBlock = "flow_unpromoted_block", Drop, "Handshake complete, but the table of established flows is full; the class says block.";
    FlowUnpromotedReject = "flow_unpromoted_reject", Reject, "Handshake complete, but the table of established flows is full; the class says reject.";
    FlowEstablished = "flow_established", Redirect, "A segment of an established redirected flow.";
    SteerNew = "steer_new", Steer, "A SYN that opens a steered flow.";
    SteerHalfOpen = "steer_half_open", Steer, "A segment of a steered flow before its handshake is complete.";
    SteerPromoted = "steer_promoted", Steer, "The first segment that met the socket of a steered flow.";
    SteerUnpromoted = "steer_unpromoted", Steer, "A segment of a steered flow that the full table of established flows has no place for.";
    SteerEstablished = "steer_established", Steer, "A segment of an established steered flow.";
    ReplyHalfOpen = "reply_half_open", Redirect, "The relay's answer before the handshake is complete.";
    ReplyEstablished = "reply_established", Redirect, "The relay's segment in an established flow.";
    ReplyNoFlow = "reply_no_flow", Pass, "From a relay's port, but of no redirected flow.";
    ReplyForwarded = "reply_forwarded", Pass, "From a relay's port, but forwarded: not from a relay of this host.";
    EditFailed = "edit_failed", Drop, "The kernel refused an edit half-way; such a packet must not leave.";
}

impl Reason {
    /// How many there are: the stride of the counters.
    pub const COUNT: usize = Self::ALL.len();

    const PASS: u64 = Self::with(Verdict::Pass);
    const DROP: u64 = Self::with(Verdict::Drop);
    const REDIRECT: u64 = Self::with(Verdict::Redirect);
    const STEER: u64 = Self::with(Verdict::Steer);

    /// The reasons of a verdict, a bit each.
    const fn with(verdict: Verdict) -> u64 {
        let mut bits = 0;
        let mut index = 0;
        while index < Self::COUNT {
            if Self::ALL[index].listed_verdict() as u8 == verdict as u8 {
                bits |= 1 << index;
            }
            index += 1;
        }
        bits
    }

    /// Those that tell of a connection's begin or refusal.
    const REPORTED: u64 = Self::bits(&[
        Self::ClassBlock,
        Self::ClassReject,
        Self::Locked,
        Self::RateLimited,
        Self::OpenLimited,
        Self::NoFlowReject,
        Self::ClassChanged,
        Self::RelayDownPass,
        Self::RelayDownBlock,
        Self::RelayDownReject,
        Self::DaemonDownPass,
        Self::DaemonDownBlock,
        Self::DaemonDownReject,
        Self::ClashPass,
        Self::ClashBlock,
        Self::ClashReject,
        Self::FlowUnpromotedBlock,
        Self::FlowUnpromotedReject,
        Self::FlowNew,
        Self::SteerNew,
    ]);

    const fn bits(reasons: &[Self]) -> u64 {
        let mut bits = 0;
        let mut index = 0;
        while index < reasons.len() {
            bits |= 1 << reasons[index] as u8;
            index += 1;
        }
        bits
    }

    /// Whether user space is told of each such packet, as far as its budget goes.
    #[inline(always)]
    pub const fn is_reported(self) -> bool {
        Self::REPORTED & 1 << self as u8 != 0
    }

    /// By bits, because a walk through the list would cost every packet more than all its headers do.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        let bit = 1 << self as u8;
        if bit & Self::PASS != 0 {
            Verdict::Pass
        } else if bit & Self::REDIRECT != 0 {
            Verdict::Redirect
        } else if bit & Self::STEER != 0 {
            Verdict::Steer
        } else if bit & Self::DROP != 0 {
            Verdict::Drop
        } else {
            Verdict::Reject
        }
    }
}

const _: () = assert!(Reason::COUNT <= 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_counter_order_and_labels_are_unique() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count() == 1, "{}", reason.name());
            assert!(reason.text().ends_with('.'));
            assert_eq!(reason.verdict(), reason.listed_verdict());
        }
    }
}
