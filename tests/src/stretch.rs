//! A link of the lab's router made longer, and narrower in its middle.

use anyhow::{Context as _, Result};

use crate::{
    lab::{Family, Lab, forward, settle},
    netns::Namespace,
};

/// A link of the router's that [`Lab::stretch`] makes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Subscribers,
    Dmz,
}

/// Two routers in a row, as long as their lab.
pub struct Stretch {
    /// Next to the router.
    pub near: Namespace,
    /// Next to the end host.
    pub far: Namespace,
}

impl Stretch {
    /// Sets the MTU of the link between the two.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        self.near.ip(&[format!("link set eth1 mtu {mtu}")])?;
        self.far.ip(&[format!("link set eth0 mtu {mtu}")])
    }
}

impl Lab {
    /// Puts two more routers on a link of the router's.
    ///
    /// ```text
    ///  router            near                          far             client or gateway
    ///  lan0 or mx0  ---- eth0  eth1  ---- narrow ----  eth0  eth1  ----  eth0
    /// ```
    /// The links at both ends keep their MTU, so that neither end knows what [`Stretch::narrow`] makes of the one in the middle.
    pub fn stretch(&self, link: Link) -> Result<Stretch> {
        let (device, host, number) = match link {
            Link::Subscribers => ("lan0", &self.client, 0),
            Link::Dmz => ("mx0", &self.gateway, 1),
        };
        let ends = |family: Family| match link {
            Link::Subscribers => vec![family.redirected(), family.bypass(), family.blocked()],
            Link::Dmz => vec![family.gateway()],
        };
        let names = ["near", "far"].map(|name| format!("{}-{name}{number}", self.id()));
        let [near, far] = <[Namespace; 2]>::try_from(Namespace::create(names, host.register())?)
            .ok()
            .context("two namespaces were made")?;
        for router in [&near, &far] {
            settle(router)?;
            forward(router)?;
        }
        host.ip(&[format!("link set eth0 netns {}", near.name())])?;
        let link = |near: &Namespace, far: &Namespace| {
            format!("link add eth1 netns {} type veth peer name eth0 netns {}", near.name(), far.name())
        };
        Namespace::links(&[link(&near, &far), link(&far, host)])?;

        // The three links' networks: the first address is that of the end nearer to the router.
        let up = |devices: &[&str]| devices.iter().map(|device| format!("link set {device} up")).collect::<Vec<_>>();
        let mut on_router = Vec::new();
        let [mut on_near, mut on_far] = [&["lo", "eth0", "eth1"]; 2].map(|devices| up(devices));
        let mut on_host = up(&["eth0"]);
        for family in Family::BOTH {
            let (whole, length) = if family == Family::V4 { (32, 30) } else { (128, 64) };
            let address = |net: u8, end: u8| match family {
                Family::V4 => format!("198.51.100.{}", 64 * number + 4 * net + end),
                Family::V6 => format!("2001:db8:98:{number}{net}::{end}"),
            };
            let nodad = if family == Family::V4 { "" } else { " nodad" };
            let own =
                |net, end, device: &str| format!("address add {}/{length} dev {device}{nodad}", address(net, end));
            let default = |net| format!("route add default via {}", address(net, 1));
            on_router.push(own(0, 1, device));
            on_near.extend([own(0, 2, "eth0"), own(1, 1, "eth1"), default(0)]);
            on_far.extend([own(1, 2, "eth0"), own(2, 1, "eth1"), default(1)]);
            on_host.push(own(2, 2, "eth0"));
            for end in ends(family) {
                on_router.push(format!("route add {end}/{whole} via {}", address(0, 2)));
                on_near.push(format!("route add {end}/{whole} via {}", address(1, 2)));
                on_far.push(format!("route add {end}/{whole} dev eth1"));
                on_host.push(format!("address add {end}/{whole} dev eth0{nodad}"));
            }
            on_host.push(default(2));
        }
        self.router.ip(&on_router)?;
        near.ip(&on_near)?;
        far.ip(&on_far)?;
        host.ip(&on_host)?;
        Ok(Stretch { near, far })
    }
}
