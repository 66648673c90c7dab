#!/usr/bin/env python3
"""Writes frames and what must become of them, as JSON lines, for tests/tests/oracle.rs.

Shares no code with the product: scapy builds every frame and every expected frame from fields, with all lengths and checksums computed
from scratch. The expectations come from the design: a subscriber of a redirecting class talks to the relay and sees the server; everything
else is untouched.

A line: {"hook": "ingress"|"egress", "frame": hex, "reason": label, "expect": hex, "about": text}
Lines of one conversation follow each other; conversations do not share endpoints.
"""
import itertools
import json

from scapy.all import (
    ARP, Dot1AD, Dot1Q, Ether, ICMP, ICMPv6EchoRequest, IP, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting, IPOption_NOP, PadN, Raw, TCP, UDP,
)

RELAY = {4: "10.20.0.1", 6: "fd00:20::1"}
RELAY_PORT = 2525
SERVER = {4: "203.0.113.9", 6: "2001:db8::9"}
# Prefixes and classes: see policy() in oracle.rs.
CLIENT = {
    4: {"redirect": "10.20.0.%d", "pass": "10.20.1.%d", "block": "10.20.2.%d", "stranger": "10.99.0.%d"},
    6: {"redirect": "fd00:20::%x", "pass": "fd00:20::1:%x", "block": "fd00:20::2:%x", "stranger": "fd00:99::%x"},
}
ETHER = {"src": "02:00:00:00:00:05", "dst": "02:00:00:00:00:01"}

TAGS = {
    "untagged": [],
    "802.1Q": [(Dot1Q, 100)],
    "QinQ 88a8+8100": [(Dot1AD, 200), (Dot1Q, 100)],
    "QinQ 8100+8100": [(Dot1Q, 200), (Dot1Q, 100)],
}


def routing_done():
    return IPv6ExtHdrRouting(type=0, segleft=0, addresses=["2001:db8::77"])


NETWORKS = {
    "IPv4": (4, lambda s, d: IP(src=s, dst=d, ttl=63, id=77, flags="DF")),
    "IPv4 with options": (4, lambda s, d: IP(src=s, dst=d, ttl=63, id=78, options=[IPOption_NOP()] * 8)),
    "IPv4 with 40 bytes of options": (4, lambda s, d: IP(src=s, dst=d, ttl=63, options=[IPOption_NOP()] * 40)),
    "IPv6": (6, lambda s, d: IPv6(src=s, dst=d, hlim=63, fl=0x12345)),
    "IPv6 with hop-by-hop": (6, lambda s, d: IPv6(src=s, dst=d) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])),
    "IPv6 with destination options": (6, lambda s, d: IPv6(src=s, dst=d) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])),
    "IPv6 with a used-up routing header": (6, lambda s, d: IPv6(src=s, dst=d) / routing_done()),
}

clients = itertools.count(20)


def l2(tags):
    """Ethernet and tags."""
    frame = Ether(**ETHER)
    for kind, vlan in tags:
        frame = frame / kind(vlan=vlan, prio=3)
    return frame


def packet(tags, network, source, destination, transport):
    """Bytes, with every length and checksum computed by scapy."""
    return bytes(l2(tags) / network(source, destination) / transport)


def line(about, hook, frame, reason, expect=None):
    print(json.dumps({"about": about, "hook": hook, "frame": frame.hex(), "reason": reason, "expect": (expect or frame).hex()}))


def conversation(about, tags, network, family):
    """A redirected connection from SYN to the last ACK."""
    client = CLIENT[family]["redirect"] % next(clients)
    port = 41000

    def up(reason, payload=b"", **fields):
        tcp = dict(sport=port, window=4096, **fields)
        body = [Raw(payload)] if payload else []
        sent = TCP(dport=25, **tcp)
        made = TCP(dport=RELAY_PORT, **tcp)
        for part in body:
            sent, made = sent / part, made / part
        line(f"{about}: {reason}", "ingress", packet(tags, network, client, SERVER[family], sent), reason,
             packet(tags, network, client, RELAY[family], made))

    def down(reason, payload=b"", **fields):
        tcp = dict(dport=port, window=8192, **fields)
        sent = TCP(sport=RELAY_PORT, **tcp)
        made = TCP(sport=25, **tcp)
        if payload:
            sent, made = sent / Raw(payload), made / Raw(payload)
        line(f"{about}: {reason}", "egress", packet(tags, network, RELAY[family], client, sent), reason,
             packet(tags, network, SERVER[family], client, made))

    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    up("flow_new", flags="S", seq=1000, options=options)
    down("reply_half_open", flags="SA", seq=5000, ack=1001, options=options)
    # An acknowledgment of something else proves nothing.
    up("flow_half_open", flags="A", seq=1001, ack=4711)
    up("flow_promoted", flags="A", seq=1001, ack=5001)
    down("reply_established", payload=b"220 relay ESMTP\r\n", flags="PA", seq=5001, ack=1001)
    up("flow_established", payload=b"EHLO client\r\n", flags="PA", seq=1001, ack=5018)
    up("flow_established", payload=b"x", flags="PAU", urgptr=1, seq=1014, ack=5018)
    down("reply_established", flags="FA", seq=5018, ack=1015)
    up("flow_established", flags="FA", seq=1015, ack=5019)
    down("reply_established", flags="A", seq=5019, ack=1016)
    # The same port again is a new connection.
    up("flow_new", flags="S", seq=9000)
    down("reply_half_open", flags="RA", seq=0, ack=9001)


def bystanders(about, tags, network, family):
    """Whatever the product has no business with stays as it is."""
    number = next(clients)

    def ingress(reason, who, transport, name):
        client = CLIENT[family][who] % number
        line(f"{about}: {name}", "ingress", packet(tags, network, client, SERVER[family], transport), reason)

    for flags in ("S", "A", "PA", "FA", "R", "SA"):
        ingress("class_pass", "pass", TCP(sport=42000, dport=25, flags=flags), f"pass {flags}")
        ingress("class_block", "block", TCP(sport=42000, dport=25, flags=flags), f"block {flags}")
        ingress("no_class", "stranger", TCP(sport=42000, dport=25, flags=flags), f"stranger {flags}")
        ingress("other_port", "redirect", TCP(sport=42000, dport=587, flags=flags), f"port 587 {flags}")
        ingress("other_port", "block", TCP(sport=25, dport=42000, flags=flags), f"from port 25 {flags}")
    for flags in ("A", "PA", "FA", "R", "SA"):
        ingress("no_flow", "redirect", TCP(sport=42000, dport=25, flags=flags), f"mid-stream {flags}")
    ingress("not_tcp", "redirect", UDP(sport=42000, dport=25) / Raw(b"hello"), "UDP")
    ingress("not_tcp", "redirect", (ICMP() if family == 4 else ICMPv6EchoRequest()) / Raw(b"ping"), "echo")
    ingress("malformed", "redirect", TCP(sport=42000, dport=25, flags="S", dataofs=4), "data offset 4")
    ingress("malformed", "redirect", TCP(sport=42000, dport=25, flags="S", dataofs=15), "data offset beyond the end")

    client = CLIENT[family]["redirect"] % number
    reply = TCP(sport=RELAY_PORT, dport=43000, flags="PA") / Raw(b"220")
    line(f"{about}: no flow", "egress", packet(tags, network, RELAY[family], client, reply), "reply_no_flow")
    real = TCP(sport=25, dport=43000, flags="PA") / Raw(b"220")
    line(f"{about}: a real server", "egress", packet(tags, network, SERVER[family], client, real), "other_port")


def oddities():
    """Frames that are not of the matrix."""
    v4 = lambda **fields: IP(src=CLIENT[4]["redirect"] % next(clients), dst=SERVER[4], **fields)
    v6 = lambda **fields: IPv6(src=CLIENT[6]["redirect"] % next(clients), dst=SERVER[6], **fields)
    syn = TCP(sport=44000, dport=25, flags="S")
    for name, tags in TAGS.items():
        line(f"{name}: ARP", "ingress", bytes(l2(tags) / ARP(pdst="10.20.0.1")), "not_ip")
        line(f"{name}: first fragment", "ingress", bytes(l2(tags) / v4(flags="MF") / syn), "fragment")
        line(f"{name}: later fragment", "ingress", bytes(l2(tags) / v4(frag=3, proto=6) / Raw(b"\0\0\0\x19" * 5)), "fragment")
        line(f"{name}: IPv6 first fragment", "ingress", bytes(l2(tags) / v6() / IPv6ExtHdrFragment(m=1) / syn), "fragment")
        line(f"{name}: IPv6 later fragment", "ingress",
             bytes(l2(tags) / v6() / IPv6ExtHdrFragment(offset=9, nh=6) / Raw(b"\0\0\0\x19" * 5)), "fragment")
        line(f"{name}: source route", "ingress",
             bytes(l2(tags) / v6() / IPv6ExtHdrRouting(type=0, segleft=1, addresses=["2001:db8::77"]) / syn), "source_routed")
        deep = v6()
        for _ in range(5):
            deep = deep / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
        line(f"{name}: five extension headers", "ingress", bytes(l2(tags) / deep / syn), "too_deep")
    three = [(Dot1Q, 1), (Dot1Q, 2), (Dot1Q, 3)]
    line("three tags", "ingress", bytes(l2(three) / v4() / syn), "too_deep")
    line("version 5", "ingress", bytes(l2([]) / v4(version=5) / syn), "malformed")
    line("header of 16 bytes", "ingress", bytes(l2([]) / v4(ihl=4) / syn), "malformed")
    line("total length beyond the frame", "ingress", bytes(l2([]) / v4(len=2000) / syn), "truncated")
    line("total length before the TCP header's end", "ingress", bytes(l2([]) / v4(len=39) / syn), "malformed")
    line("payload length before the TCP header's end", "ingress", bytes(l2([]) / v6(plen=19) / syn), "malformed")


for (tag_name, tags), (net_name, (family, network)) in itertools.product(TAGS.items(), NETWORKS.items()):
    conversation(f"{tag_name}, {net_name}", tags, network, family)
    bystanders(f"{tag_name}, {net_name}", tags, network, family)
oddities()
