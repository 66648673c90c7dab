//! Addresses that no gateway may have: our own listeners, and, unless the operator allows them, what only this host can
//! reach. Names are judged by the addresses they lead to, at each connect: a name's answer may change after its check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::gateway::opening::OpenReason;

/// Metadata services that are not link-local: Alibaba's, and Amazon's over IPv6.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// Whether a connection to `address` is refused.
pub(crate) fn refuse(address: SocketAddr, listeners: &[SocketAddr], allow_local: bool) -> Option<OpenReason> {
    judge(address, listeners, allow_local, is_own)
}

fn judge(
    address: SocketAddr,
    listeners: &[SocketAddr],
    allow_local: bool,
    is_own: impl Fn(IpAddr) -> bool,
) -> Option<OpenReason> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let ip = address.ip();
    let same_port = listeners.iter().filter(|listener| listener.port() == address.port());
    // What listens on all addresses listens on this one, if it is ours.
    let mut listening = same_port.map(|listener| listener.ip().to_canonical());
    if listening.any(|own| own == ip || own.is_unspecified() && (is_reachable_here_only(ip) || is_own(ip))) {
        return Some(OpenReason::Loop(address));
    }
    let local = ip.is_unspecified() || ip.is_multicast() || is_reachable_here_only(ip) || METADATA.contains(&ip);
    (!allow_local && (local || is_own(ip))).then_some(OpenReason::Forbidden(ip))
}

fn is_reachable_here_only(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The source that the kernel gives to packets for one of this host's addresses is that address. Nothing is sent.
fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, listeners: &[&str], allow_local: bool, expected: Option<&str>) {
        let listeners: Vec<SocketAddr> = listeners.iter().map(|listener| listener.parse().unwrap()).collect();
        let own = |ip: IpAddr| ip == "203.0.113.1".parse::<IpAddr>().unwrap();
        let refused = judge(address.parse().unwrap(), &listeners, allow_local, own).map(|reason| reason.to_string());
        assert_eq!(refused.as_deref(), expected, "{address}");
    }

    #[test]
    fn what_only_this_host_can_reach() {
        for ip in
            ["127.0.0.1", "127.8.8.8", "169.254.169.254", "203.0.113.1", "100.100.100.200", "0.0.0.0", "224.0.0.1"]
        {
            check(&format!("{ip}:25"), &[], false, Some(&format!("{ip} is not allowed as the address of a gateway")));
            check(&format!("{ip}:25"), &[], true, None);
        }
        for ip in ["::1", "fe80::1", "fd00:ec2::254", "::"] {
            check(&format!("[{ip}]:25"), &[], false, Some(&format!("{ip} is not allowed as the address of a gateway")));
        }
        check("[::ffff:127.0.0.1]:25", &[], false, Some("127.0.0.1 is not allowed as the address of a gateway"));
        for address in ["192.0.2.1:25", "10.0.0.1:25", "[2001:db8::1]:25", "[fd00::1]:25"] {
            check(address, &[], false, None);
        }
    }

    #[test]
    fn our_own_listener_is_refused_whatever_is_allowed() {
        check("127.0.0.1:2525", &["127.0.0.1:2525"], true, Some("127.0.0.1:2525 is our own listener"));
        check("127.0.0.1:2525", &["0.0.0.0:2525"], true, Some("127.0.0.1:2525 is our own listener"));
        check("203.0.113.1:2525", &["[::]:2525"], true, Some("203.0.113.1:2525 is our own listener"));
        check("[::ffff:10.0.0.1]:25", &["10.0.0.1:25"], true, Some("10.0.0.1:25 is our own listener"));
        check("192.0.2.1:2525", &["0.0.0.0:2525"], true, None);
        check("127.0.0.1:25", &["127.0.0.1:2525"], true, None);
    }

    #[test]
    fn the_kernel_knows_its_own_addresses() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("192.0.2.254".parse().unwrap()));
    }
}
