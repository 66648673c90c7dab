//! Subscribers behind a device whose frames begin with the IP header.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use redirect_tests::{
    Family, Lab, Mode, Product,
    smtp::{Client, Manner, PATIENCE, Server, port_25},
    tun::Cable,
};
use serde_json::json;

const DEVICE: &str = "tun0";

fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 21, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x21, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// The device has addresses at both ends, and from the client the other server is behind it.
fn lay(lab: &Lab) -> Cable {
    let cable = Cable::lay([(&lab.client, DEVICE), (&lab.router, DEVICE)]).unwrap();
    for (host, last) in [(&lab.client, 10), (&lab.router, 1)] {
        host.ip(&[format!("link set {DEVICE} up")]).unwrap();
        for (family, len) in [(Family::V4, "16"), (Family::V6, "64 nodad")] {
            let own = address(family, last);
            let (len, rest) = len.split_once(' ').unwrap_or((len, ""));
            host.ip(&[format!("address add {own}/{len} dev {DEVICE} {rest}")]).unwrap();
        }
    }
    for family in Family::BOTH {
        lab.client.ip(&[format!("route add {} dev {DEVICE}", family.other_server())]).unwrap();
    }
    cable
}

#[test]
fn mail_is_redirected_steered_passed_and_rejected_behind_a_device_without_ethernet() {
    for mode in [Mode::Tc, Mode::Steer] {
        let lab = Lab::new().unwrap();
        let _cable = lay(&lab);
        let servers = Family::BOTH.map(|family| port_25(family.other_server()));
        let internet = Server::start(&lab.internet, "internet", &servers, Manner::Accepts).unwrap();
        let mx = Family::V4.gateway();
        let gateway = Server::start(&lab.gateway, "gateway", &[port_25(mx)], Manner::Accepts).unwrap();
        let ours = format!("\n[[interface]]\nname = \"{DEVICE}\"\nrole = \"subscriber\"\n");
        let product = Product::start(&lab, &(mode.configuration(&lab) + &ours)).unwrap();
        let ctl = |words: &[&str]| product.ctl(&lab, words).unwrap();
        ctl(&["gateway", "set", "default", "--address", &mx.to_string(), "--port", "25"]);
        ctl(&["class", "set", "refused", "--action", "reject"]);
        let attached = product.json(&lab, &["interface", "get", DEVICE]).unwrap();
        assert_ne!(attached["status"]["mode"], json!("xdp"), "{attached}");
        assert_eq!(attached["status"]["attached"], json!(true), "{attached}");

        let opened = if mode == Mode::Steer { "steer_new" } else { "flow_new" };
        for family in Family::BOTH {
            let (from, to) = (address(family, 10), family.other_server());
            let connect = || Client::connect_within(&lab.client, (from, 0), port_25(to), PATIENCE);
            for (class, reason) in [("configured", opened), ("bypass", "class_pass"), ("refused", "class_reject")] {
                ctl(&["subscriber", "set", &from.to_string(), "--class", class]);
                let told = product
                    .json(&lab, &["explain", &from.to_string(), &to.to_string(), "--interface", DEVICE])
                    .unwrap();
                assert_eq!((&told["reason"], &told["interface"]), (&json!(reason), &json!(DEVICE)), "{told}");
            }
            assert_eq!(connect().err().map(|error| error.kind()), Some(io::ErrorKind::ConnectionRefused), "{family:?}");

            ctl(&["subscriber", "set", &from.to_string(), "--class", "bypass"]);
            let greeting = connect().unwrap().reply().unwrap();
            assert_eq!(greeting.lines, [format!("internet {to} ESMTP")]);

            ctl(&["subscriber", "set", &from.to_string(), "--class", "configured"]);
            let before = gateway.mails().len();
            let message = "A line of sixty-four octets, with those two that end it, is it.\r\n".repeat(2_000);
            let client = connect().unwrap();
            let reply = client.converse("guest@client.example", "friend@internet.example", message.as_bytes()).unwrap();
            assert_eq!(reply.code, 250, "{:?}", reply.lines);
            let mails = gateway.wait_for(before + 1).unwrap();
            let (received, rest) = mails[before].split_received().unwrap();
            assert_eq!(rest, message.as_bytes());
            assert!(String::from_utf8_lossy(received).contains(&from.to_string()));
        }
        assert_eq!(internet.peers().len(), 2, "only what was let through");
        let rows = product.json(&lab, &["stats", "--by", "interface"]).unwrap();
        let counted = rows["interfaces"].as_array().unwrap().iter().filter(|row| row["interface"] == DEVICE);
        let reasons: Vec<_> = counted.map(|row| row["reason"].as_str().unwrap().to_owned()).collect();
        for reason in [opened, "class_pass", "class_reject"] {
            assert!(reasons.contains(&reason.to_owned()), "{reason} is not in {reasons:?}");
        }
    }
}
