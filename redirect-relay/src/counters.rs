//! What the relay counts. The caller reads a [`Counters`] snapshot whenever it wants one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Values since the relay was made. Each is exact by itself; together they are not of one instant.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Meters {
            $(pub(crate) $name: Meter,)*
        }

        impl Meters {
            pub(crate) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connections taken from the listener, including those refused at once.
    sessions_opened,
    /// Sessions open at the moment: a gauge.
    sessions_active,
    /// Sessions refused because their source has no class.
    sessions_refused,
    /// Sessions refused because too many were open.
    sessions_limited,
    /// Sessions that we closed for what the client did: not SMTP, talked too early, too many errors.
    sessions_cut,
    /// Sessions in the tar-pit at the moment: a gauge.
    sessions_tarpitted,
    /// Sessions closed because others needed their place in the tar-pit.
    tarpit_lost,
    /// Commands and connections refused because a quota was used up.
    over_quota,
    /// Subscribers that the directory was asked to lock.
    locks,
    /// Quotas in use that were forgotten because too many were.
    quotas_forgotten,
    /// TLS handshakes with clients that failed.
    handshakes_failed,
    /// AUTHs with wrong credentials.
    auth_failures,
    /// Lines about sessions that somebody who looked on was too slow for.
    trace_lines_lost,
    /// Sessions passed through to the server that the client dialled.
    sessions_passed_through,
    /// Messages that the gateway took.
    messages_accepted,
    /// Messages refused for good (5xx).
    messages_rejected,
    /// Messages refused for the moment (4xx).
    messages_deferred,
    /// Messages that their client gave up before the end.
    messages_aborted,
    /// Octets of accepted messages, without our trace field.
    octets_accepted,
    /// Messages whose outcome is unknown: the gateway may hold what the client will send again.
    duplicate_risk,
    /// Messages refused for a bare CR, a bare LF or a NUL.
    smuggling_refused,
    /// Messages that came over TLS and went on in clear, as their gateway allows.
    downgrades,
    /// Messages that came over TLS and had no gateway that they may go to.
    downgrades_refused,
    /// Waits for a client that ran out.
    client_timeouts,
    /// Waits for a gateway that ran out.
    gateway_timeouts,
    /// Connections made to a gateway.
    gateway_connections,
    /// Gateway connections that failed before they were ready, or broke.
    gateway_failures,
}

#[derive(Debug, Default)]
pub(crate) struct Meter(AtomicU64);

impl Meter {
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Counts one more unless `max` are counted already.
    pub(crate) fn increment_below(&self, max: u64) -> bool {
        self.0.try_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
    }

    pub(crate) fn decrement(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
