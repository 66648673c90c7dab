//! Every bound of the relay: how much, how many, how long, with the RFC 5321 section that speaks of it.
//!
//! A wait without an entry here does not exist, and neither does a buffer.

use std::time::Duration;

/// Octets of a command line including its CRLF (RFC 5321 section 4.5.3.1.4).
pub(crate) const COMMAND_LINE_MAX: usize = 512;
/// Octets that SIZE (RFC 1870: 26) and 8BITMIME (RFC 6152: 17) add to a MAIL line.
pub(crate) const MAIL_LINE_MAX: usize = COMMAND_LINE_MAX + 26 + 17;
/// Octets that SMTPUTF8 adds to a MAIL line (RFC 6531 section 3.4).
pub(crate) const SMTPUTF8_ROOM: usize = 10;
/// Octets that MT-PRIORITY adds to a MAIL line (RFC 6710 section 3).
pub(crate) const PRIORITY_ROOM: usize = 15;
/// Octets of an ENVID and of an ORCPT as they are written (RFC 3461 sections 4.4 and 4.2).
pub(crate) const ENVID_MAX: usize = 100;
pub(crate) const ORCPT_MAX: usize = 500;
/// Octets that DSN adds: " RET=HDRS ENVID=" to MAIL, " NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=" to RCPT, each with its value.
pub(crate) const DSN_MAIL_ROOM: usize = 9 + 7 + ENVID_MAX;
pub(crate) const DSN_RCPT_ROOM: usize = 29 + 7 + ORCPT_MAX;
/// Octets of AUTH with its initial response, and of each later response (RFC 4954 section 4).
pub(crate) const AUTH_LINE_MAX: usize = 12_288;
/// Octets of `AUTH=` on a MAIL line (RFC 4954 section 3).
pub(crate) const MAIL_AUTH_ROOM: usize = 500;
/// Octets of a client's user name and of its password.
pub(crate) const CREDENTIAL_MAX: usize = 1024;
/// Passwords that are verified at one time: each takes a thread and its CPU for some 10 ms.
pub(crate) const VERIFICATIONS_MAX: usize = 4;
/// The longest command line of any kind but AUTH that a client may send.
pub(crate) const ANY_LINE_MAX: usize = MAIL_LINE_MAX + SMTPUTF8_ROOM + PRIORITY_ROOM + DSN_MAIL_ROOM + MAIL_AUTH_ROOM;
const _: () = assert!(COMMAND_LINE_MAX + DSN_RCPT_ROOM <= ANY_LINE_MAX);
/// A chunk (BDAT) smaller than this that is not the last counts as a command toward [`Limits::commands_max`].
pub(crate) const CHUNK_SMALL: u64 = 4096;
/// Octets of a line of a message with its CRLF (RFC 5321 section 4.5.3.1.6), where the class refuses longer ones.
pub(crate) const TEXT_LINE_MAX: u64 = 1000;
/// Octets of one reply line including its CRLF (RFC 5321 section 4.5.3.1.5).
pub(crate) const REPLY_LINE_MAX: usize = 512;
/// Lines of one reply; the RFC names no bound, real EHLO replies have fewer than 20.
pub(crate) const REPLY_LINES_MAX: usize = 100;
/// Octets of a gateway's reply text that are kept to be shown to the client; the rest is checked and dropped.
pub(crate) const REPLY_TEXT_MAX: usize = 1024;
/// Pairs of class and gateway whose messages are counted apart.
pub(crate) const TALLIES_MAX: usize = 4096;
/// Who may look at sessions at one time, and the lines that may wait for one of them.
pub(crate) const WATCHERS_MAX: usize = 8;
pub(crate) const WATCHED_LINES_MAX: usize = 1024;
/// Octets of a local part (RFC 5321 section 4.5.3.1.1).
pub(crate) const LOCAL_PART_MAX: usize = 64;
/// Octets of a domain (RFC 5321 section 4.5.3.1.2) and of one of its labels (RFC 1035 section 2.3.4).
pub(crate) const DOMAIN_MAX: usize = 255;
pub(crate) const LABEL_MAX: usize = 63;
/// `Received:` fields that a message may carry before it counts as a loop (RFC 5321 section 6.3 asks for at least 100).
pub(crate) const HOPS_MAX: u32 = 100;

/// Octets of the name of a gateway or group, and of the description of one.
pub(crate) const NAME_MAX: usize = 64;
pub(crate) const DESCRIPTION_MAX: usize = 1024;
/// The largest share of a gateway in a group.
pub(crate) const WEIGHT_MAX: u16 = 1000;
/// Gateways of one group.
pub(crate) const GROUP_MEMBERS_MAX: usize = 64;
/// Routes of one domain, told apart by their conditions: they are tried one after the other.
pub(crate) const ROUTES_PER_DOMAIN_MAX: usize = 64;
/// Routes that one file may hold, and faults that are told of one file.
pub(crate) const ROUTES_MAX: usize = 1_000_000;
pub(crate) const FAULTS_MAX: usize = 100;
/// Priorities of messages (RFC 6710 section 4).
pub(crate) const PRIORITY_MIN: i8 = -9;
pub(crate) const PRIORITY_MAX: i8 = 9;
/// Octets of an account's name and of its password: in base64, both and more fit a line of AUTH.
pub(crate) const ACCOUNT_TEXT_MAX: usize = 255;
/// Addresses that connections to one gateway may leave from, and texts that tell of block lists.
pub(crate) const EGRESS_ADDRESSES_MAX: usize = 64;
pub(crate) const BLOCK_PATTERNS_MAX: usize = 32;
pub(crate) const BLOCK_PATTERN_MAX: usize = 200;

/// Results in a row that take a gateway out of service, and into it again.
pub(crate) const HEALTH_FALL: u32 = 3;
pub(crate) const HEALTH_RISE: u32 = 2;
/// The wait before a gateway that is down is probed again; it doubles up to the second one.
pub(crate) const BREAKER_WAIT_MIN: Duration = Duration::from_secs(5);
pub(crate) const BREAKER_WAIT_MAX: Duration = Duration::from_mins(1);
/// Connections that try a gateway that is down, at one time.
pub(crate) const BREAKER_TRIES_MAX: u32 = 2;
/// Names of a gateway's certificate that a verification reports, and characters of each part of its subject.
pub(crate) const CERTIFICATE_NAMES_SHOWN: usize = 100;
pub(crate) const CERTIFICATE_TEXT_SHOWN: usize = 256;
/// Probes at one time.
pub(crate) const PROBES_MAX: usize = 16;
/// Idle connections kept for each gateway, how long, and how long and for how many messages one connection is used:
/// servers drop sessions of 20 minutes and count messages. Who says how many it takes (RFC 9422) is asked for no more;
/// of the others, Exim takes 1,000 unless told otherwise, and Postfix does not count.
pub(crate) const POOL_IDLE_MAX: usize = 64;
pub(crate) const POOL_IDLE_TIME: Duration = Duration::from_secs(30);
pub(crate) const POOL_AGE_MAX: Duration = Duration::from_mins(10);
pub(crate) const POOL_USES_MAX: u32 = 500;
/// Addresses of one host name that are tried.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// How long a name's addresses are believed: what their TTL says, within these.
pub(crate) const TTL_MIN: Duration = Duration::from_secs(5);
pub(crate) const TTL_MAX: Duration = Duration::from_hours(1);
/// Names whose addresses are kept.
pub(crate) const NAMES_MAX: usize = 1024;
/// A lookup, and the time after a failed one in which the last good answer is given without another.
pub(crate) const DNS_TIME: Duration = Duration::from_secs(8);
pub(crate) const DNS_RETRY: Duration = Duration::from_secs(10);

/// Octets taken from a socket in one read.
pub(crate) const READ_MAX: usize = 16 * 1024;
/// Octets waiting for the gateway above which the client's body is not read: so at most this plus one read is held.
pub(crate) const TO_GATEWAY_HIGH: usize = 16 * 1024;
/// Octets of a message that go to the gateway in one write: less waits for more, or for the end, so long at most. Each write
/// costs a packet, and both sides a wake-up; no verdict comes later for it.
pub(crate) const GATHERED_OCTETS: usize = 16 * 1024;
pub(crate) const GATHERING_TIME: Duration = Duration::from_millis(100);
const _: () = assert!(GATHERED_OCTETS <= TO_GATEWAY_HIGH, "what waits does not keep the client's octets out");
/// Octets that are kept free for our trace field and the end of a message; what needs more takes it.
pub(crate) const TRACE_AND_END_ROOM: usize = 256;
/// Octets of replies waiting for the client above which no further command is taken.
pub(crate) const TO_CLIENT_HIGH: usize = 4 * 1024;
/// Buffers that are larger than this when they run empty give their memory back, so that an idle session stays small.
pub(crate) const BUFFER_KEPT: usize = 1024;
/// Octets of a buffer that holds anything: a command or two, or a reply, so that what is written in pieces grows once.
pub(crate) const BUFFER_LEAST: usize = 128;
/// RCPT commands on their way to the gateway at one time.
pub(crate) const RECIPIENTS_IN_FLIGHT: usize = 16;

/// How many of a thing one client session may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Recipients of one message; at least 100 (RFC 5321 section 4.5.3.1.8). One more is answered 452 4.5.3.
    pub recipients_max: u32,
    /// RCPT commands refused with 452 4.5.3 in one transaction before the session is closed.
    pub recipients_overshoot_max: u32,
    /// Recipients that the gateway refused for good (5xx) in one session before it is closed: a dictionary attack.
    pub recipients_refused_max: u32,
    /// As many as that, and each further one is answered slowly where the class has a tar-pit.
    pub recipients_refused_soft: u32,
    /// Commands answered with a protocol error before the session is closed.
    pub errors_max: u32,
    /// As many as that, and each further one is answered slowly where the class has a tar-pit.
    pub errors_soft: u32,
    /// Commands other than RCPT since the last message before the session is closed; a chunk of a useful size is none.
    pub commands_max: u32,
    /// Messages of one session, told to clients as MAILMAX (RFC 9422); one more ends the session with 421.
    pub messages_max: u32,
    /// Failed AUTHs before the session is closed.
    pub auth_failures_max: u32,
    /// Octets of body that must arrive within each [`Timeouts::data_block`]: the least data rate.
    pub data_block_octets: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            recipients_max: 100,
            recipients_overshoot_max: 1000,
            recipients_refused_max: 100,
            recipients_refused_soft: 10,
            errors_max: 20,
            errors_soft: 10,
            commands_max: 200,
            messages_max: 1000,
            auth_failures_max: 3,
            data_block_octets: 64 * 1024,
        }
    }
}

/// How long each wait may last. Everything we wait for on the gateway's side ends before the client's own timer does.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// The caller's [`Directory::identify`](crate::Directory::identify).
    pub identify: Duration,
    /// Silence kept before the banner to catch a client that talks first. Zero only catches those already heard.
    pub greet_pause: Duration,
    /// The TLS handshake with the client.
    pub handshake: Duration,
    /// Until a password is verified.
    pub verify: Duration,
    /// The client's next command, whole, however its octets trickle in (RFC 5321 section 4.5.3.2.7: at least 5 min).
    pub command: Duration,
    /// The client's next [`Limits::data_block_octets`] of body (section 4.5.3.2.5 grants 3 min to a block).
    pub data_block: Duration,
    /// A session that is passed through, without an octet in either direction.
    pub splice: Duration,
    /// Until a client has taken all replies that wait for it.
    pub client_write: Duration,
    /// Everything before MAIL: all gateways that may take a message, with all their addresses, together.
    pub open: Duration,
    /// A TCP connection to one address of a gateway.
    pub connect: Duration,
    /// The gateway's banner (section 4.5.3.2.1), the TLS handshake, and each answer up to MAIL.
    pub greeting: Duration,
    /// The gateway's answer to MAIL and to RSET (section 4.5.3.2.2).
    pub mail: Duration,
    /// The gateway's answer to each RCPT (section 4.5.3.2.3).
    pub recipient: Duration,
    /// The gateway's answer to DATA; the client waits 2 min for ours (section 4.5.3.2.4).
    pub data: Duration,
    /// Until the gateway takes more of the body (section 4.5.3.2.5).
    pub gateway_write: Duration,
    /// The gateway's verdict after the final dot; the client waits 10 min for ours (section 4.5.3.2.6).
    pub verdict: Duration,
    /// The gateway's 221 to our QUIT, and a client's FIN after our last reply to it.
    pub farewell: Duration,
}

impl Timeouts {
    const DEFAULT: Self = Self {
        identify: Duration::from_secs(5),
        greet_pause: Duration::ZERO,
        handshake: Duration::from_secs(30),
        verify: Duration::from_secs(10),
        command: Duration::from_mins(5),
        data_block: Duration::from_mins(5),
        splice: Duration::from_mins(10),
        client_write: Duration::from_mins(1),
        open: Duration::from_mins(2),
        connect: Duration::from_secs(30),
        greeting: Duration::from_secs(30),
        mail: Duration::from_secs(45),
        recipient: Duration::from_secs(90),
        data: Duration::from_secs(100),
        gateway_write: Duration::from_mins(3),
        verdict: Duration::from_secs(570),
        farewell: Duration::from_secs(2),
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// The first RCPT may have to wait for a connection, for MAIL and for RCPT in turn, and before all that for a connection of an
// earlier message to fail at MAIL. The client waits 5 min for it (section 4.5.3.2.3).
const _: () = {
    let t = Timeouts::DEFAULT;
    let first_recipient = t.open.as_secs() + 2 * t.mail.as_secs() + t.recipient.as_secs();
    assert!(first_recipient <= 300);
    assert!(t.data.as_secs() < 120);
    assert!(t.verdict.as_secs() < 600);
};
