#!/usr/bin/env python3
"""Writes frames and what must become of them, as JSON lines, for tests/tests/oracle.rs.

Shares no code with the product: scapy builds every frame and every expected frame from fields, with all lengths and checksums computed
from scratch. The expectations come from the design: a subscriber of a redirecting class talks to the relay and sees the server; everything
else is untouched.

A line: {"hook": "ingress"|"egress"|"... without Ethernet", "frame": hex, "reason": label, "expect": hex, "about": text, "cell": text}
Lines of one conversation follow each other; conversations do not share endpoints. Scapy takes its time, so the work can be shared out:
`author.py 0 2` writes one half of the lines, `author.py 1 2` the other. "cell" names a place of the matrix that oracle.rs spells
out, and is empty in lines that are beside it.
"""
import itertools
import json
import sys

from scapy.all import (
    ARP, Dot1AD, Dot1Q, Ether, ICMP, ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded, IP, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting, IPOption_NOP, PPPoE, PPPoED, PadN, Raw, TCP, UDP,
)

RELAY = {4: "10.20.0.1", 6: "fd00:20::1"}
RELAY_PORT = 2525
SERVER = {4: "203.0.113.9", 6: "2001:db8::9"}
# Added to the second number of a client's address: see policy() in oracle.rs.
CLASS = {"redirect": 0, "pass": 1, "block": 2, "reject": 3, "stranger": 99}
ETHER = {"src": "02:00:00:00:00:05", "dst": "02:00:00:00:00:01"}

TAGS = {
    "untagged": [],
    "802.1Q": [(Dot1Q, 100)],
    "QinQ 88a8+8100": [(Dot1AD, 200), (Dot1Q, 100)],
    "QinQ 8100+8100": [(Dot1Q, 200), (Dot1Q, 100)],
}
# What stands between Ethernet and IP, by name: tags, and whether a PPPoE session is inside them. None: no Ethernet at all.
LINKS = {name: (tags, False) for name, tags in TAGS.items()}
LINKS |= {f"{name}, PPPoE": (tags, True) for name, tags in TAGS.items()}
LINKS["no Ethernet"] = None


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

# RFC 6946: a whole datagram with a fragment header.
ATOMIC = "IPv6 with a fragment header"
ATOMIC_NETWORK = (6, lambda s, d: IPv6(src=s, dst=d, hlim=63) / IPv6ExtHdrFragment(offset=0, m=0, id=4711))

share, shares = map(int, sys.argv[1:])
# Of endpoints; no share has as many as keeps it apart from the next.
numbers = itertools.count(20 + 8192 * share)


def client_of(family, who, number):
    """An address of a subscriber, or of a stranger."""
    if family == 4:
        return f"10.{20 + CLASS[who]}.{number >> 8}.{number & 255}"
    return f"fd00:{20 + CLASS[who]}::{number:x}"


def framed(link, datagram, macs=ETHER):
    """Bytes of a frame, with every length and checksum computed by scapy."""
    if link is None:
        return bytes(datagram)
    tags, session = link
    frame = Ether(**macs)
    for kind, vlan in tags:
        frame = frame / kind(vlan=vlan, prio=3)
    if session:
        # scapy would shorten the protocol number to one byte, which RFC 2516 section 7 advises against.
        frame = frame / PPPoE(sessionid=0x1234) / Raw(b"\0\x21" if datagram.name == "IP" else b"\0\x57")
    return bytes(frame / datagram)


def packet(link, network, source, destination, transport):
    return framed(link, network(source, destination) / transport)


def line(about, link, hook, frame, reason, expect=None, cell=""):
    hook = hook if link is not None else f"{hook} without Ethernet"
    print(json.dumps({"about": about, "hook": hook, "frame": frame.hex(), "reason": reason, "expect": (expect or frame).hex(), "cell": cell}))


def cells(link_name, link, net_name, family, network):
    """A connection of which every kind of packet goes each way once: a cell of the matrix each."""
    client, server, relay, port = client_of(family, "redirect", next(numbers)), SERVER[family], RELAY[family], 49000
    ways = {
        "ingress": (lambda **fields: (client, server, TCP(sport=port, dport=25, **fields)),
                    lambda **fields: (client, relay, TCP(sport=port, dport=RELAY_PORT, **fields))),
        "egress": (lambda **fields: (relay, client, TCP(sport=RELAY_PORT, dport=port, **fields)),
                   lambda **fields: (server, client, TCP(sport=25, dport=port, **fields))),
    }

    def cell(hook, kind, reason, frame, expect):
        name = f"{link_name}; {net_name}; {kind}; {hook}"
        line(name, link, hook, frame, reason, expect, name)

    def segment(hook, kind, reason, **fields):
        before, after = (way(window=1000, **fields) for way in ways[hook])
        cell(hook, kind, reason, packet(link, network, *before), packet(link, network, *after))

    segment("ingress", "SYN", "flow_new", flags="S", seq=1000)
    # Nobody answers so, but it has the tuple of an answer.
    segment("egress", "SYN", "reply_half_open", flags="S", seq=4000)
    segment("ingress", "SYN-ACK", "flow_half_open", flags="SA", seq=1000, ack=4001)
    segment("egress", "SYN-ACK", "reply_half_open", flags="SA", seq=5000, ack=1001)
    segment("ingress", "ACK", "flow_promoted", flags="A", seq=1001, ack=5001)
    segment("egress", "ACK", "reply_established", flags="A", seq=5001, ack=1001)
    for hook, reason in (("ingress", "flow_established"), ("egress", "reply_established")):
        # A datagram has one fragment header at most.
        whole = NETWORKS["IPv6"][1] if net_name == ATOMIC else network
        parts = []
        for way in ways[hook]:
            source, destination, tcp = way(flags="PA", seq=1001, ack=5001)
            parts.append([framed(link, part) for part in in_two(whole, family, source, destination, tcp / Raw(b"y" * 40), 32, 7)])
        before, after = parts
        cell(hook, "first fragment", reason, before[0], after[0])
        cell(hook, "later fragment", "fragment_redirect", before[1], after[1])
    for hook, other in (("ingress", "egress"), ("egress", "ingress")):
        # To whoever has sent what is quoted, by the other way.
        plain = NETWORKS["IPv4" if family == 4 else "IPv6"][1]
        kind = ICMP(type=3, code=4, nexthopmtu=1280) if family == 4 else ICMPv6PacketTooBig(mtu=1280)
        hop = client_of(family, "stranger", next(numbers))
        # It comes about what has left by the other hook, and leaves about what had come there.
        made, sent = (way(flags="PA", seq=1, ack=2) for way in ways[other])
        before = packet(link, network, hop, sent[0], kind / Raw(bytes(plain(*sent[:2]) / sent[2])))
        after = packet(link, network, hop, made[0], kind / Raw(bytes(plain(*made[:2]) / made[2])))
        # An error in a fragment, though it be the only one, is nobody's honest work.
        if net_name == ATOMIC:
            cell(hook, "quoted ICMP error", "not_tcp", before, before)
        else:
            cell(hook, "quoted ICMP error", "icmp_redirect", before, after)
    segment("ingress", "FIN", "flow_established", flags="FA", seq=1041, ack=5041)
    segment("egress", "FIN", "reply_established", flags="FA", seq=5041, ack=1042)
    segment("ingress", "RST", "flow_established", flags="R", seq=1042)
    segment("egress", "RST", "reply_established", flags="RA", seq=5042, ack=1042)


def conversation(about, link, network, family):
    """A redirected connection from SYN to the last ACK."""
    client = client_of(family, "redirect", next(numbers))
    port = 41000

    def up(reason, payload=b"", **fields):
        tcp = dict(sport=port, window=4096, **fields)
        body = [Raw(payload)] if payload else []
        sent = TCP(dport=25, **tcp)
        made = TCP(dport=RELAY_PORT, **tcp)
        for part in body:
            sent, made = sent / part, made / part
        line(f"{about}: {reason}", link, "ingress", packet(link, network, client, SERVER[family], sent), reason,
             packet(link, network, client, RELAY[family], made))

    def down(reason, payload=b"", **fields):
        tcp = dict(dport=port, window=8192, **fields)
        sent = TCP(sport=RELAY_PORT, **tcp)
        made = TCP(sport=25, **tcp)
        if payload:
            sent, made = sent / Raw(payload), made / Raw(payload)
        line(f"{about}: {reason}", link, "egress", packet(link, network, RELAY[family], client, sent), reason,
             packet(link, network, SERVER[family], client, made))

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


def bystanders(about, link, network, family):
    """Whatever the product has no business with stays as it is."""
    number = next(numbers)

    def ingress(reason, who, transport, name):
        client = client_of(family, who, number)
        line(f"{about}: {name}", link, "ingress", packet(link, network, client, SERVER[family], transport), reason)

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

    client = client_of(family, "redirect", number)
    reply = TCP(sport=RELAY_PORT, dport=43000, flags="PA") / Raw(b"220")
    line(f"{about}: no flow", link, "egress", packet(link, network, RELAY[family], client, reply), "reply_no_flow")
    real = TCP(sport=25, dport=43000, flags="PA") / Raw(b"220")
    line(f"{about}: a real server", link, "egress", packet(link, network, SERVER[family], client, real), "other_port")


def answered(link, network, source, destination, transport):
    """The frame that goes back: the same link, addresses changed, hop limit 64, at least 60 bytes of Ethernet."""
    datagram = network(destination, source) / transport
    if datagram.name == "IP":
        datagram.ttl = 64
    else:
        datagram.hlim = 64
    if link is None:
        return framed(None, datagram)
    tags, session = link
    macs = dict(src=ETHER["dst"], dst=ETHER["src"])
    return framed((tags, session), datagram, macs)


def refusals(about, link, network, family):
    """Segments of a class that rejects, and the resets that answer them: RFC 9293 section 3.10.7.1."""
    client = client_of(family, "reject", next(numbers))
    server = SERVER[family]

    def refused(name, segment, reset):
        sent = packet(link, network, client, server, segment)
        made = answered(link, network, client, server, TCP(sport=25, dport=46000, window=0, **reset))
        # What is left of the sender's own frame fills Ethernet's minimum, if it had that much.
        if link is not None:
            made += sent[len(made):60]
        line(f"{about}: {name}", link, "ingress", sent, "class_reject", made)

    segment = dict(sport=46000, dport=25)
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    refused("SYN", TCP(flags="S", seq=1000, **segment), dict(flags="RA", seq=0, ack=1001))
    refused("SYN with options", TCP(flags="S", seq=2**32 - 1, options=options, **segment), dict(flags="RA", seq=0, ack=0))
    refused("SYN with data", TCP(flags="S", seq=1000, **segment) / Raw(b"x" * 700), dict(flags="RA", seq=0, ack=1701))
    refused("SYN with an odd number of octets", TCP(flags="S", seq=5, **segment) / Raw(b"xyz"), dict(flags="RA", seq=0, ack=9))
    refused("FIN without ACK", TCP(flags="F", seq=7, **segment) / Raw(b"xy"), dict(flags="RA", seq=0, ack=10))
    refused("nothing set", TCP(flags="", seq=7, **segment) / Raw(b"xy"), dict(flags="RA", seq=0, ack=9))
    refused("ACK", TCP(flags="A", seq=9, ack=4711, options=options, **segment), dict(flags="R", seq=4711, ack=0))
    refused("data", TCP(flags="PA", seq=9, ack=4711, urgptr=3, **segment) / Raw(b"EHLO\r\n" * 40), dict(flags="R", seq=4711, ack=0))
    refused("FIN", TCP(flags="FA", seq=9, ack=2**32 - 1, **segment), dict(flags="R", seq=2**32 - 1, ack=0))
    refused("SYN-ACK", TCP(flags="SA", seq=9, ack=77, **segment), dict(flags="R", seq=77, ack=0))
    for flags in ("R", "RA"):
        line(f"{about}: {flags}", link, "ingress", packet(link, network, client, server, TCP(flags=flags, **segment)), "reset_unanswered")


def in_two(network, family, source, destination, transport, cut, number):
    """The datagram in two fragments, the first with `cut` bytes of TCP: RFC 791 section 3.2, RFC 8200 section 4.5."""
    whole = bytes(network(source, destination) / transport)
    rest = whole[len(bytes(network(source, destination))):]

    def fragment(offset, more, part):
        head = network(source, destination)
        if family == 4:
            head.flags, head.frag, head.proto, head.id = ("MF" if more else 0), offset // 8, 6, number
            return head / Raw(part)
        return head / IPv6ExtHdrFragment(offset=offset // 8, m=int(more), id=number, nh=6) / Raw(part)

    return fragment(0, True, rest[:cut]), fragment(cut, False, rest[cut:])


def fragments(about, link, network, family):
    """First fragments are decided like segments, the others by their first one."""
    server, relay, port = SERVER[family], RELAY[family], 47000
    identifications = itertools.count(1000)
    body = Raw(b"x" * 64)

    def two(hook, name, before, after, reasons, cut=40):
        number = next(identifications)
        sent = in_two(network, family, *before, cut, number)
        made = in_two(network, family, *after, cut, number)
        for part, reason, frame, expect in zip(("first", "later"), reasons, sent, made):
            line(f"{about}: {name}, {part} fragment", link, hook, framed(link, frame), reason, framed(link, expect))

    client = client_of(family, "redirect", next(numbers))
    up = lambda **fields: [(client, to, TCP(sport=port, dport=dport, **fields) / body) for to, dport in ((server, 25), (relay, RELAY_PORT))]
    down = lambda **fields: [(of, client, TCP(sport=sport, dport=port, **fields) / body) for of, sport in ((relay, RELAY_PORT), (server, 25))]
    two("ingress", "SYN", *up(flags="S", seq=1000), ("flow_new", "fragment_redirect"))
    two("egress", "SYN-ACK", *down(flags="SA", seq=5000, ack=1001), ("reply_half_open", "fragment_redirect"))
    two("ingress", "ACK", *up(flags="A", seq=1001, ack=5001), ("flow_promoted", "fragment_redirect"))
    two("ingress", "data", *up(flags="PA", seq=1001, ack=5001), ("flow_established", "fragment_redirect"))
    two("ingress", "data, the header alone in the first", *up(flags="PA", seq=1065, ack=5001), ("flow_established", "fragment_redirect"), 24)
    two("egress", "data", *down(flags="PA", seq=5001, ack=1001), ("reply_established", "fragment_redirect"))
    two("ingress", "FIN", *up(flags="FA", seq=1129, ack=5001), ("flow_established", "fragment_redirect"))
    two("ingress", "RST", *up(flags="R", seq=1193), ("flow_established", "fragment_redirect"))
    for who, reasons in {
        "pass": ("class_pass", "fragment"),
        "block": ("class_block", "fragment_block"),
        # A reset answers a segment, and only a part of it has come.
        "reject": ("fragment_block", "fragment_block"),
        "stranger": ("no_class", "fragment"),
    }.items():
        source = client_of(family, who, next(numbers))
        same = [(source, server, TCP(sport=port, dport=25, flags="S") / body)] * 2
        two("ingress", f"{who}", *same, reasons)
    for who in CLASS:
        # Ports and a sequence number: the least that a first fragment can carry. It cannot be decided like a segment.
        source = client_of(family, who, next(numbers))
        same = [(source, server, TCP(sport=port, dport=25, flags="S") / body)] * 2
        stopped = "fragment_block" if who in ("block", "reject") else "fragment"
        two("ingress", f"{who}, too short", *same, (stopped, stopped), 8 if who in ("redirect", "block") else 16)
    elsewhere = [(client, server, TCP(sport=port, dport=443, flags="S") / body)] * 2
    two("ingress", "another port", *elsewhere, ("other_port", "fragment"))


def errors(about, link, network, family):
    """ICMP errors that quote packets of a flow, on their way to whoever sent what they quote: RFC 792, RFC 4443, RFC 5508."""
    server, relay, port = SERVER[family], RELAY[family], 48000
    client, number = client_of(family, "redirect", next(numbers)), next(numbers)
    hop = client_of(family, "stranger", number)
    if family == 4:
        plain = lambda s, d: IP(src=s, dst=d, ttl=9, id=99, flags="DF")
        options = lambda s, d: IP(src=s, dst=d, ttl=9, options=[IPOption_NOP()] * 12)
        kinds = {
            "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1280),
            "port unreachable": ICMP(type=3, code=3),
            "time exceeded": ICMP(type=11, code=0),
            "parameter problem": ICMP(type=12, code=0),
        }
    else:
        plain = lambda s, d: IPv6(src=s, dst=d, hlim=9, fl=0x777)
        kinds = {
            "packet too big": ICMPv6PacketTooBig(mtu=1280),
            "no route": ICMPv6DestUnreach(code=0),
            "time exceeded": ICMPv6TimeExceeded(code=0),
            "parameter problem": ICMPv6ParamProblem(code=1, ptr=40),
        }
    head = len(bytes(plain(server, client)))

    # The flow.
    def step(hook, reason, before, after):
        line(f"{about}: error's flow, {reason}", link, hook, packet(link, network, *before), reason, packet(link, network, *after))

    def up(reason, **fields):
        step("ingress", reason, (client, server, TCP(sport=port, dport=25, **fields)), (client, relay, TCP(sport=port, dport=RELAY_PORT, **fields)))

    def down(reason, **fields):
        step("egress", reason, (relay, client, TCP(sport=RELAY_PORT, dport=port, **fields)), (server, client, TCP(sport=25, dport=port, **fields)))

    def quoting(hook, name, reason, kind, outer, quote, made_outer=None, made_quote=None):
        line(f"{about}: {name}", link, hook, packet(link, network, *outer, kind / Raw(quote)), reason,
             packet(link, network, *(made_outer or outer), kind / Raw(made_quote or quote)))

    def both_ways(state, cases):
        tcp = dict(flags="PA", seq=7, ack=8, window=77)
        body = Raw(b"250 " + b"y" * 60)
        answer = lambda inner, of, sport: bytes(inner(of, client) / TCP(sport=sport, dport=port, **tcp) / body)
        question = lambda inner, to, dport: bytes(inner(client, to) / TCP(sport=port, dport=dport, **tcp) / body)
        def cut(made, sent, length):
            """The quote; where it ends amid TCP's checksum, nobody knows what the other half was."""
            made, half = made[:length], head + 17
            return made[:-1] + sent[half - 1:half] if length == half else made

        for kind_name, inner, length in cases:
            kind, name = kinds[kind_name], f"{state}, {kind_name}, {length or 'all'} bytes"
            for complainer in (hop, client):
                quoting("ingress", f"{name}, about an answer", "icmp_redirect", kind, (complainer, server),
                        answer(inner, server, 25)[:length], (complainer, relay), cut(answer(inner, relay, RELAY_PORT), answer(inner, server, 25), length))
            for complainer, made in ((hop, hop), (relay, server)):
                quoting("egress", f"{name}, about a segment", "icmp_redirect", kind, (complainer, client),
                        question(inner, relay, RELAY_PORT)[:length], (made, client), cut(question(inner, server, 25), question(inner, relay, RELAY_PORT), length))

    first = next(iter(kinds))
    every = [(kind, plain, None) for kind in kinds]
    # The least that RFC 792 has quoted, and both sides of the end of TCP's checksum.
    every += [(first, plain, head + length) for length in (8, 17, 18)]
    if family == 4:
        every += [(first, options, None), (first, options, head + 12 + 8)]
    up("flow_new", flags="S", seq=1000)
    both_ways("half-open", [(first, plain, None)])
    down("reply_half_open", flags="SA", seq=5000, ack=1001)
    up("flow_promoted", flags="A", seq=1001, ack=5001)
    both_ways("established", every)

    # Whatever else an error may quote is none of our business.
    kind = kinds[first]
    segment = TCP(sport=25, dport=port, flags="A")
    answer = bytes(plain(server, client) / segment)
    quoting("ingress", "error to somebody else", "not_tcp", kind, (hop, hop), answer)
    quoting("ingress", "error about another port", "not_tcp", kind, (hop, server), bytes(plain(server, client) / TCP(sport=80, dport=port)))
    quoting("ingress", "error about no flow", "not_tcp", kind, (hop, server), bytes(plain(server, client) / TCP(sport=25, dport=port + 1)))
    quoting("ingress", "error about UDP", "not_tcp", kind, (hop, server), bytes(plain(server, client) / UDP(sport=25, dport=port)))
    quoting("ingress", "error about a subscriber's own segment", "not_tcp", kind, (hop, client),
            bytes(plain(client, server) / TCP(sport=port, dport=25)))
    quoting("egress", "error about an answer, going out", "not_tcp", kind, (hop, server), answer)
    for length in (head - 1, head + 3):
        quoting("ingress", f"error that quotes {length} bytes", "not_tcp", kind, (hop, server), answer[:length])
    if family == 4:
        middle = bytes(IP(src=server, dst=client, frag=3, proto=6) / Raw(bytes(segment)))
        quoting("ingress", "error about a later fragment", "not_tcp", kind, (hop, server), middle)
        quoting("ingress", "quench", "not_tcp", ICMP(type=4), (hop, server), answer)
    else:
        deep = bytes(plain(server, client) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")]) / segment)
        quoting("ingress", "error about extension headers", "not_tcp", kind, (hop, server), deep)


def oddities():
    """Frames that are not of the matrix."""
    v4 = lambda **fields: IP(src=client_of(4, "redirect", next(numbers)), dst=SERVER[4], **fields)
    v6 = lambda **fields: IPv6(src=client_of(6, "redirect", next(numbers)), dst=SERVER[6], **fields)
    syn = TCP(sport=44000, dport=25, flags="S")
    for name, link in LINKS.items():
        def odd(about, reason, datagram):
            line(f"{name}: {about}", link, "ingress", framed(link, datagram), reason)

        if link is not None and not link[1]:
            odd("ARP", "not_ip", ARP(pdst="10.20.0.1"))
        odd("source route", "source_routed", v6() / IPv6ExtHdrRouting(type=0, segleft=1, addresses=["2001:db8::77"]) / syn)
        deep = v6()
        for _ in range(5):
            deep = deep / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
        odd("five extension headers", "too_deep", deep / syn)
        odd("header of 16 bytes", "malformed", v4(ihl=4) / syn)
        odd("total length beyond the frame", "truncated", v4(len=2000) / syn)
        odd("total length before the TCP header's end", "malformed", v4(len=39) / syn)
        odd("payload length before the TCP header's end", "malformed", v6(plen=19) / syn)
    plain, three = ([], False), ([(Dot1Q, 1), (Dot1Q, 2), (Dot1Q, 3)], False)
    line("three tags", three, "ingress", framed(three, v4() / syn), "too_deep")
    line("version 5", plain, "ingress", framed(plain, v4(version=5) / syn), "malformed")
    line("version 5, no Ethernet", None, "ingress", framed(None, v4(version=5) / syn), "not_ip")
    control = bytes(Ether(**ETHER) / PPPoE(sessionid=0x1234) / Raw(b"\xc0\x21\x09\x01\0\x08\0\0\0\0"))
    line("PPP link control", plain, "ingress", control, "not_ip")
    discovery = bytes(Ether(**ETHER) / PPPoED(code=9) / Raw(b"\x01\x01\0\0"))
    line("PPPoE discovery", plain, "ingress", discovery, "not_ip")


for place, ((link_name, link), (net_name, (family, network))) in enumerate(
    itertools.product(LINKS.items(), {**NETWORKS, ATOMIC: ATOMIC_NETWORK}.items())
):
    if place % shares != share:
        continue
    about = f"{link_name}, {net_name}"
    if net_name != ATOMIC:
        for write in (conversation, bystanders, refusals, fragments, errors):
            write(about, link, network, family)
    cells(link_name, link, net_name, family, network)
if share == 0:
    oddities()
