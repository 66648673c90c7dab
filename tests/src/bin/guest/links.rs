//! The links between the lab's client and its router that share one device: Ethernet, and what is stacked on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use redirect_tests::{CLIENT_MAC, Family, Lab, Namespace, ROUTER_MAC};

use crate::pppoe;

/// How the subscribers' packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Ethernet,
    Vlan,
    QinQ,
    Pppoe,
}

impl Link {
    pub(crate) const ALL: [Self; 4] = [Self::Ethernet, Self::Vlan, Self::QinQ, Self::Pppoe];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "Ethernet",
            Self::Vlan => "VLAN",
            Self::QinQ => "QinQ",
            Self::Pppoe => "PPPoE",
        }
    }

    /// In the link's addresses, such as `10.21.0.0/16` and `fd00:21::/64`, and in that of the server that is reached by it, such as
    /// `203.0.113.21`. Also its tags and the number of its session. [`subscribers`] has them all.
    const fn number(self) -> u8 {
        match self {
            Self::Ethernet => 20,
            Self::Vlan => 21,
            Self::QinQ => 22,
            Self::Pppoe => 23,
        }
    }

    pub(crate) fn subscriber(self, family: Family) -> IpAddr {
        self.host(family, 10)
    }

    pub(crate) fn server(self, family: Family) -> IpAddr {
        // The lab's own.
        if self == Self::Ethernet {
            return family.server();
        }
        match family {
            Family::V4 => Ipv4Addr::new(203, 0, 113, self.number()).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, digits(self.number())).into(),
        }
    }

    fn router(self, family: Family) -> IpAddr {
        self.host(family, 1)
    }

    fn host(self, family: Family, host: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, self.number(), 0, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, digits(self.number()), 0, 0, 0, 0, 0, digits(host)).into(),
        }
    }

    /// The name of its device at either end.
    const fn device(self) -> Option<&'static str> {
        match self {
            Self::Ethernet => None,
            Self::Vlan => Some("vlan"),
            Self::QinQ => Some("qinq"),
            Self::Pppoe => Some(pppoe::DEVICE),
        }
    }
}

/// The prefix of every link.
pub(crate) const fn subscribers(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.20.0.0/14",
        Family::V6 => "fd00:20::/30",
    }
}

/// The number that is written in hexadecimal like this one in decimal.
fn digits(number: u8) -> u16 {
    u16::from(number / 10) << 4 | u16::from(number % 10)
}

/// Links of a lab besides its Ethernet; they go with it.
#[derive(Default)]
pub(crate) struct Links {
    sessions: Vec<pppoe::End>,
}

impl Links {
    /// Puts a link onto the client's `eth0` and the router's `parent`, with addresses at both ends and a server behind it.
    pub(crate) fn lay(&mut self, lab: &Lab, parent: &str, link: Link) -> Result<()> {
        let Some(device) = link.device() else { return Ok(()) };
        let ends = [(&lab.client, "eth0", ROUTER_MAC), (&lab.router, parent, CLIENT_MAC)];
        for (host, lower, peer) in ends {
            self.end(host, lower, peer, link).with_context(|| format!("{} on {lower}", link.name()))?;
        }
        for family in Family::BOTH {
            let (len, nodad) = if family == Family::V4 { (16, "") } else { (64, " nodad") };
            let address = |host: IpAddr| format!("address add {host}/{len} dev {device}{nodad}");
            lab.router.ip(&[address(link.router(family))])?;
            let server = link.server(family);
            let route = format!("route add {server} via {} dev {device}", link.router(family));
            lab.client.ip(&[address(link.subscriber(family)), route])?;
            lab.internet.ip(&[format!("address add {server} dev eth0{nodad}")])?;
        }
        Ok(())
    }

    fn end(&mut self, host: &Namespace, lower: &str, peer: [u8; 6], link: Link) -> Result<()> {
        let number = link.number();
        match link {
            Link::Ethernet => {}
            Link::Vlan => {
                host.ip(&[
                    format!("link add link {lower} name vlan type vlan id {number}"),
                    "link set vlan up".to_owned(),
                ])?;
            }
            Link::QinQ => host.ip(&[
                format!("link add link {lower} name outer type vlan proto 802.1ad id {number}"),
                "link set outer up".to_owned(),
                // A device that is handed both tags in the frame passes on one only beyond its MTU.
                format!("link add link outer name qinq mtu 1496 type vlan id {number}"),
                "link set qinq up".to_owned(),
            ])?,
            Link::Pppoe => {
                self.sessions.push(pppoe::End::open(host, lower, peer, number.into())?);
                host.ip(&[format!("link set {} mtu {} up", pppoe::DEVICE, pppoe::MTU)])?;
            }
        }
        Ok(())
    }
}
