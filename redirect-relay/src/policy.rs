//! How the clients of a class are treated: what they are offered. The caller gives it with each [`Identity`](crate::Identity).

/// The rules for one session; they hold until it ends.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub extensions: Extensions,
}

/// What a client is offered that its gateways must be able to do as well. The caller knows them; the relay refuses, with
/// the replies of the extensions' RFCs, what the gateway in hand turns out not to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an extension of its own")]
pub struct Extensions {
    /// The largest message that every gateway takes, in octets; [`Settings::size_max`](crate::Settings::size_max) holds too.
    pub size_max: u64,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// The class has several routes, so the recipients of a message should have one domain: RCPTDOMAINMAX=1 (RFC 9422).
    pub one_domain: bool,
}

impl Default for Extensions {
    fn default() -> Self {
        Self { size_max: u64::MAX, eight_bit_mime: true, smtputf8: false, dsn: false, one_domain: false }
    }
}
