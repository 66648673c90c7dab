//! The addresses of a session, each with a type of its own: they are all `SocketAddr`, and none may stand for another.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// IPv4-mapped IPv6 addresses, as a dual-stack socket reports them, become plain IPv4.
            pub const fn new(address: SocketAddr) -> Self {
                Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
            }

            pub const fn get(self) -> SocketAddr {
                self.0
            }

            pub const fn ip(self) -> IpAddr {
                self.0.ip()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// The subscriber's address and port, as the subscriber sent them.
    ClientAddr
}
address! {
    /// The server that the subscriber dialled before the flow was redirected.
    OriginalDst
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_shown_as_ipv4() {
        let client = ClientAddr::new("[::ffff:192.0.2.1]:4000".parse().unwrap());
        assert_eq!(client.to_string(), "192.0.2.1:4000");
    }
}
