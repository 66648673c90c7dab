//! What the data plane tells user space about packets that matter: one record for each, sampled, through a ring buffer.

use core::net::{IpAddr, SocketAddr};

use crate::{address::Address, flow::Tuple, reason::Reason};

/// A record of the ring buffer. Addresses of IPv4 fill the first four bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Index of the interface that the packet came in by, or went out of.
    pub ifindex: u32,
    /// Number of the class that decided; 0 for none.
    pub class: u16,
    reason: u8,
    /// 4 or 6.
    family: u8,
    ports: [[u8; 2]; 2],
    relay_ports: [[u8; 2]; 2],
    addresses: [[u8; 16]; 2],
    relay: [u8; 16],
}

const _: () = assert!(size_of::<Event>() == 64);

/// Both ends of a flow as the subscriber knows them, and what the relay sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// The relay's endpoint; the server's where nothing is rewritten.
    pub relay: SocketAddr,
    /// The client's port as the relay sees it.
    pub mapped_port: u16,
}

impl Event {
    /// A packet of `tuple` that left with the tuple `to`, which is the same where it was not rewritten.
    #[inline(always)]
    pub fn new<A: Address>(ifindex: u32, class: u16, reason: Reason, tuple: &Tuple<A>, to: &Tuple<A>) -> Self {
        Self {
            ifindex,
            class,
            reason: reason as u8,
            family: A::FAMILY,
            ports: tuple.ports,
            relay_ports: to.ports,
            addresses: tuple.addresses.map(A::padded),
            relay: A::padded(to.addresses[1]),
        }
    }

    /// `None` where the record is of another version of the programs.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.reason)).copied()
    }

    pub fn ends(&self) -> Ends {
        let ip = |octets: [u8; 16]| match self.family {
            4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => IpAddr::from(octets),
        };
        let end = |octets, port| SocketAddr::new(ip(octets), u16::from_be_bytes(port));
        Ends {
            client: end(self.addresses[0], self.ports[0]),
            server: end(self.addresses[1], self.ports[1]),
            relay: end(self.relay, self.relay_ports[1]),
            mapped_port: u16::from_be_bytes(self.relay_ports[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn an_event_tells_both_ends_in_both_families() {
        let port = u16::to_be_bytes;
        let [client, server, relay] = [1, 2, 3].map(|last| V4::from(Ipv4Addr::new(10, 0, 0, last)));
        let tuple = Tuple::new([client, server], [port(40_000), port(25)]);
        let event = Event::new(7, 3, Reason::FlowNew, &tuple, &Tuple::new([client, relay], [port(1024), port(2525)]));
        assert_eq!((event.ifindex, event.class, event.reason()), (7, 3, Some(Reason::FlowNew)));
        let ends = event.ends();
        assert_eq!(ends.client, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(ends.server, "10.0.0.2:25".parse().unwrap());
        assert_eq!((ends.relay, ends.mapped_port), ("10.0.0.3:2525".parse().unwrap(), 1024));

        let [client, server] = [1, 2].map(|last| V6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)));
        let tuple = Tuple::new([client, server], [port(40_000), port(25)]);
        let ends = Event::new(7, 0, Reason::ClassBlock, &tuple, &tuple).ends();
        assert_eq!((ends.client, ends.relay), ("[fd00::1]:40000".parse().unwrap(), "[fd00::2]:25".parse().unwrap()));
    }
}
