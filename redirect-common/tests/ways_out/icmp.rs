//! ICMP errors about packets of a flow.

use super::*;

const WHOLE: usize = usize::MAX;

/// The packet that an error is about, as IP carries it.
fn quote(ip: Ip, from: (&[u8], u16), to: (&[u8], u16), len: usize) -> Vec<u8> {
    let builder = FrameBuilder { link: Link::Ip, flags: Flags::ACK, payload: vec![7; 33], ..FrameBuilder::syn(ip) };
    let mut quote = builder.build_between(from.0, from.1, to.0, to.1);
    quote.truncate(len);
    quote
}

const fn kind(ip: Ip) -> u8 {
    match ip {
        Ip::V4 => 3,
        Ip::V6 => 2,
    }
}

/// Checksums of the error, of the IP header that it quotes, and of the TCP segment where all of that is there.
fn assert_checksums_right(ip: Ip, frame: &[u8]) {
    let icmp = &frame[l4(ip)..];
    let (addresses, quoted) = match ip {
        Ip::V4 => (&frame[26..34], &icmp[8..]),
        Ip::V6 => (&frame[22..54], &icmp[8..]),
    };
    let len = u32::try_from(icmp.len()).unwrap().to_be_bytes();
    match ip {
        Ip::V4 => {
            assert_eq!(internet_checksum(&[&frame[14..34]]), 0, "IPv4 header");
            assert_eq!(internet_checksum(&[icmp]), 0, "ICMP");
            assert_eq!(internet_checksum(&[&quoted[..20]]), 0, "quoted IPv4 header");
        }
        Ip::V6 => assert_eq!(internet_checksum(&[addresses, &len, &[0, 58], icmp]), 0, "ICMPv6"),
    }
    let (inner_addresses, tcp) = match ip {
        Ip::V4 => (&quoted[12..20], &quoted[20..]),
        Ip::V6 => (&quoted[8..40], &quoted[40..]),
    };
    if tcp.len() == 53 {
        let len = u32::try_from(tcp.len()).unwrap().to_be_bytes();
        assert_eq!(internet_checksum(&[inner_addresses, &len, &[0, 6], tcp]), 0, "quoted TCP");
    }
}

/// IP header and eight bytes, the same with an odd byte, up to the checksum and with it, and everything.
fn lengths(ip: Ip) -> [usize; 6] {
    let head = l4(ip) - 14;
    [head + 8, head + 9, head + 16, head + 18, head + 20, WHOLE]
}

#[test]
fn an_error_about_an_answer_reaches_the_relay_that_sent_it() {
    for ip in IPS {
        for established in [false, true] {
            let tables = tables(REDIRECT);
            let syn = FrameBuilder::syn(ip);
            if established {
                establish(&tables, &syn);
            } else {
                assert_eq!(up(&tables, &syn), Reason::FlowNew);
            }
            let (client, server, relay) = (client(&syn), server(&syn), relay(ip));
            for len in lengths(ip) {
                for complainer in [client.clone(), vec![9; client.len()]] {
                    let about = quote(ip, (&server, 25), (&client, 40_000), len);
                    let frame = syn.icmp_error(&complainer, &server, kind(ip), &about);
                    let (reason, out) = send(&tables, &frame, Direction::Forward);
                    assert_eq!(reason, Reason::IcmpRedirect, "{ip:?} {len}");
                    assert_checksums_right(ip, &out);
                    let translated = quote(ip, (&relay, RELAY_PORT), (&client, 40_000), len);
                    if len == WHOLE {
                        assert_eq!(out, syn.icmp_error(&complainer, &relay, kind(ip), &translated));
                    }
                    assert_eq!(out[l4(ip) + 8..][..translated.len().min(28)], translated[..translated.len().min(28)]);
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_segment_reaches_the_client_under_the_servers_name() {
    for ip in IPS {
        let tables = tables(REDIRECT);
        let syn = FrameBuilder::syn(ip);
        establish(&tables, &syn);
        let (client, server, relay) = (client(&syn), server(&syn), relay(ip));
        let hop = vec![9; client.len()];
        for len in lengths(ip) {
            for (complainer, known_as) in [(&relay, &server), (&hop, &hop)] {
                let about = quote(ip, (&client, 40_000), (&relay, RELAY_PORT), len);
                let frame = syn.icmp_error(complainer, &client, kind(ip), &about);
                let (reason, out) = send(&tables, &frame, Direction::Reply);
                assert_eq!(reason, Reason::IcmpRedirect, "{ip:?} {len}");
                assert_checksums_right(ip, &out);
                if len == WHOLE {
                    let translated = quote(ip, (&client, 40_000), (&server, 25), len);
                    assert_eq!(out, syn.icmp_error(known_as, &client, kind(ip), &translated));
                }
            }
        }
    }
}

#[test]
fn a_quote_that_lies_or_is_cut_passes_untouched() {
    for ip in IPS {
        let tables = tables(REDIRECT);
        let syn = FrameBuilder::syn(ip);
        establish(&tables, &syn);
        let (client, server) = (client(&syn), server(&syn));
        let elsewhere = vec![8; client.len()];
        let about = quote(ip, (&server, 25), (&client, 40_000), WHOLE);
        let refused = |receiver: &[u8], about: &[u8]| {
            let frame = syn.icmp_error(&client, receiver, kind(ip), about);
            assert_eq!(send(&tables, &frame, Direction::Forward).0, Reason::NotTcp);
            assert_eq!(send(&tables, &frame, Direction::Reply).0, Reason::NotTcp);
        };
        refused(&elsewhere, &about);
        refused(&server, &quote(ip, (&server, 26), (&client, 40_000), WHOLE));
        refused(&server, &quote(ip, (&server, 25), (&client, 40_001), WHOLE));
        refused(&server, &quote(ip, (&server, 25), (&elsewhere, 40_000), WHOLE));
        for len in 0..l4(ip) - 14 + 4 {
            refused(&server, &about[..len]);
        }
        let mut other = about.clone();
        other[if ip == Ip::V4 { 9 } else { 6 }] = 17;
        refused(&server, &other);
        if ip == Ip::V4 {
            let mut fragment = about.clone();
            fragment[7] = 3;
            refused(&server, &fragment);
        }
        // An error that the frame itself cuts short.
        let frame = syn.icmp_error(&client, &server, kind(ip), &about);
        for len in 0..frame.len() {
            assert_eq!(send(&tables, &frame[..len], Direction::Forward).0, Reason::Truncated, "{len}");
        }
        let echo = syn.icmp_error(&client, &server, if ip == Ip::V4 { 8 } else { 128 }, &about);
        assert_eq!(send(&tables, &echo, Direction::Forward).0, Reason::NotTcp);
    }
}

#[test]
fn an_error_about_a_steered_flow_is_steered() {
    for ip in IPS {
        let tables = tables(STEER);
        let syn = FrameBuilder::syn(ip);
        assert_eq!(up(&tables, &syn), Reason::SteerNew);
        let (client, server) = (client(&syn), server(&syn));
        let about = quote(ip, (&server, 25), (&client, 40_000), WHOLE);
        let frame = syn.icmp_error(&client, &server, kind(ip), &about);
        assert_eq!(send(&tables, &frame, Direction::Forward).0, Reason::IcmpSteer);
    }
}
