//! Two ways to tell a gateway who the client is: the PROXY protocol's header (version 2), and XCLIENT.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use crate::addrs::{ClientAddr, OriginalDst};

/// Who a connection to a gateway is made for. A connection that was introduced serves only this client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Introduction {
    pub(crate) client: ClientAddr,
    pub(crate) original: OriginalDst,
    pub(crate) helo: String,
    pub(crate) extended: bool,
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header: 28 octets for IPv4, 52 for IPv6 (`proxy-protocol.txt` of `HAProxy`, section 2.2). Should the two addresses
/// differ in family, the IPv4 one is given as IPv4-mapped.
pub(crate) fn proxy_header(introduction: &Introduction) -> Vec<u8> {
    let (source, destination) = (introduction.client.get(), introduction.original.get());
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_AND_COMMAND);
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
        header.extend([TCP_OVER_IPV4, 0, 12]);
        header.extend(from.octets());
        header.extend(to.octets());
    } else {
        let wide = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        header.extend([TCP_OVER_IPV6, 0, 36]);
        header.extend(wide(source).octets());
        header.extend(wide(destination).octets());
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

/// The header of a connection that is made for nobody: the command LOCAL.
pub(crate) fn local_header() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([0x20, 0, 0, 0]);
    header
}

/// The command with the attributes that the gateway offers (Postfix's `XCLIENT_README`); `None` where it does not take
/// the address. The name is not ours to look up, so it is unavailable; that also keeps DNS answers out of the command.
pub(crate) fn xclient_command(introduction: &Introduction, offered: &[String]) -> Option<String> {
    let has = |name: &str| offered.iter().any(|offer| offer == name);
    if !has("ADDR") {
        return None;
    }
    let mut command = "XCLIENT".to_owned();
    let mut attribute = |name: &str, value: &str| {
        if has(name) {
            write!(command, " {name}={value}").expect("a string takes every write");
        }
    };
    attribute("NAME", "[UNAVAILABLE]");
    attribute("PORT", &introduction.client.get().port().to_string());
    attribute("PROTO", if introduction.extended { "ESMTP" } else { "SMTP" });
    attribute("HELO", &xtext(&introduction.helo));
    // Last, for it is the one that counts where a server reads no further than a line of 512 octets.
    let address = match introduction.client.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("IPV6:{ip}"),
    };
    attribute("ADDR", &address);
    command.push_str("\r\n");
    Some(command)
}

/// RFC 3461 section 4: printable ASCII except `+` and `=`, all else as `+` and two hexadecimal digits.
fn xtext(text: &str) -> String {
    // 80 octets are 240 of xtext at most: with everything else the line stays below 512.
    text.bytes().take(80).fold(String::new(), |mut xtext, octet| {
        if matches!(octet, b'!'..=b'~') && !matches!(octet, b'+' | b'=') {
            xtext.push(char::from(octet));
        } else {
            write!(xtext, "+{octet:02X}").expect("a string takes every write");
        }
        xtext
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(client: &str, original: &str) -> Introduction {
        Introduction {
            client: ClientAddr::new(client.parse().unwrap()),
            original: OriginalDst::new(original.parse().unwrap()),
            helo: "pc".into(),
            extended: true,
        }
    }

    #[test]
    fn proxy_headers() {
        let check = |client: &str, original: &str, expected: &[u8]| {
            let header = proxy_header(&introduction(client, original));
            assert_eq!(header[..12], *b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
            assert_eq!(header[12..], *expected, "{client} {original}");
        };
        check(
            "192.0.2.7:4000",
            "198.51.100.9:25",
            &[0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 9, 0x0f, 0xa0, 0, 25],
        );
        let v6: Vec<u8> = [0x21, 0x21, 0, 36]
            .into_iter()
            .chain("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets())
            .chain("::ffff:198.51.100.9".parse::<std::net::Ipv6Addr>().unwrap().octets())
            .chain([0x0f, 0xa0, 0, 25])
            .collect();
        check("[2001:db8::7]:4000", "198.51.100.9:25", &v6);
    }

    #[test]
    fn a_header_for_nobody() {
        assert_eq!(local_header()[12..], [0x20, 0, 0, 0]);
    }

    #[test]
    fn xclient_commands() {
        let all: Vec<String> =
            ["NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR"].map(str::to_owned).to_vec();
        let mut who = introduction("192.0.2.7:4000", "198.51.100.9:25");
        assert_eq!(
            xclient_command(&who, &all).unwrap(),
            "XCLIENT NAME=[UNAVAILABLE] PORT=4000 PROTO=ESMTP HELO=pc ADDR=192.0.2.7\r\n"
        );
        assert_eq!(xclient_command(&who, &all[..2]).unwrap(), "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7\r\n");
        assert_eq!(xclient_command(&who, &all[..1]), None);
        who = introduction("[2001:db8::7]:4000", "198.51.100.9:25");
        who.helo = "a b+c=\r\nQUIT \u{e9}".into();
        who.extended = false;
        assert_eq!(
            xclient_command(&who, &all[1..]).unwrap(),
            "XCLIENT PORT=4000 PROTO=SMTP HELO=a+20b+2Bc+3D+0D+0AQUIT+20+C3+A9 ADDR=IPV6:2001:db8::7\r\n"
        );
        who.helo = "\u{e9}".repeat(255);
        assert!(xclient_command(&who, &all).unwrap().len() < 512);
    }
}
