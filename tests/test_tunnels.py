"""decode: TCP inside of tunnels and labels, frames built by hand: what must be found, with which switch, and cut or damaged in any way.

Lives here: GRE, VXLAN, Geneve, IP in IP, MPLS, PPPoE, GTP, one within the other. Not here: the layers themselves (test_decode), captures
(test_corpus_*), options as users give them (test_api).
"""

from __future__ import annotations

import copy
import functools
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import pcap
from test_decode import (
    BEYOND,
    BYTES,
    CORES,
    DST4,
    ETHERNET,
    MACS,
    PAYLOAD,
    PPP_ETHER,
    RAW,
    SRC4,
    SRC6,
    WIRE_LENGTHS,
    Decode,
    agree,
    expected,
    extension,
    ipv4,
    ipv6,
    load,
    summed,
    tcp,
)

from tcpreasm.options import TUNNELS, AssemblerOptions, tunnel_bits
from tcpreasm.verdict import Verdict

ALL = (1 << len(TUNNELS)) - 1


@pytest.fixture(params=CORES)
def decode_frame(request: pytest.FixtureRequest) -> Decode:
    return load(request.param)


# Builders: each takes what it carries.


def ethernet(body: bytes, ethertype: int = 0x0800) -> bytes:
    return MACS + struct.pack("!H", ethertype) + body


def udp(port: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("!HHHH", 49152, port, 8 + len(body) if size is None else size, 0) + body


def gre(body: bytes, protocol: int = 0x0800, bits: int = 0, fields: bytes = b"") -> bytes:
    return struct.pack("!HH", bits, protocol) + fields + body


def vxlan(body: bytes, flags: int = 0x08) -> bytes:
    return struct.pack("!BxxxI", flags, 77 << 8) + body


def geneve(body: bytes, protocol: int = 0x6558, options: bytes = b"", first: int = 0, second: int = 0) -> bytes:
    return struct.pack("!BBHI", first | len(options) // 4, second, protocol, 77 << 8) + options + body


def mpls(body: bytes, labels: int = 1) -> bytes:
    return b"".join(struct.pack("!I", (1000 + n) << 12 | (n == labels - 1) << 8 | 64) for n in range(labels)) + body


def pppoe(body: bytes, protocol: int = 0x21, size: int | None = None) -> bytes:
    return struct.pack("!BBHHH", 0x11, 0, 7, 2 + len(body) if size is None else size, protocol) + body


def gtp(body: bytes, flags: int = 0x30, kind: int = 255, optional: bytes = b"") -> bytes:
    return struct.pack("!BBHI", flags, kind, len(optional) + len(body), 7) + optional + body


V4, V6 = ipv4(tcp()), ipv6(tcp())

# name -> (which switch, which IP is innermost, frame)
CARRIERS: dict[str, tuple[str, int, bytes]] = {
    "gre": ("gre", 4, ethernet(ipv4(gre(V4), protocol=47))),
    "gre-ipv6": ("gre", 6, ethernet(ipv4(gre(V6, 0x86DD), protocol=47))),
    "gre-checksum": ("gre", 4, ethernet(ipv4(gre(V4, bits=0x8000, fields=bytes(4)), protocol=47))),
    "gre-key": ("gre", 4, ethernet(ipv4(gre(V4, bits=0x2000, fields=bytes(4)), protocol=47))),
    "gre-sequence": ("gre", 4, ethernet(ipv4(gre(V4, bits=0x1000, fields=bytes(4)), protocol=47))),
    "gre-everything": ("gre", 4, ethernet(ipv4(gre(V4, bits=0xB000, fields=bytes(12)), protocol=47))),
    "gre-ethernet": ("gre", 4, ethernet(ipv4(gre(ethernet(V4), 0x6558, 0x2000, bytes(4)), protocol=47))),
    "gre-in-ipv6": ("gre", 4, ethernet(ipv6(gre(V4), next_header=47), 0x86DD)),
    "vxlan": ("vxlan", 4, ethernet(ipv4(udp(4789, vxlan(ethernet(V4))), protocol=17))),
    "vxlan-linux": ("vxlan", 6, ethernet(ipv4(udp(8472, vxlan(ethernet(V6, 0x86DD))), protocol=17))),
    "vxlan-reserved": ("vxlan", 4, ethernet(ipv4(udp(4789, vxlan(ethernet(V4), 0xFF)), protocol=17))),
    "vxlan-in-ipv6": ("vxlan", 4, ethernet(ipv6(extension(17) + udp(4789, vxlan(ethernet(V4))), next_header=60), 0x86DD)),
    "vxlan-vlan": ("vxlan", 4, ethernet(ipv4(udp(4789, vxlan(ethernet(bytes.fromhex("00640800") + V4, 0x8100))), protocol=17))),
    "udp-without-length": ("vxlan", 4, ethernet(ipv4(udp(4789, vxlan(ethernet(V4)), 0), protocol=17))),
    "geneve": ("geneve", 4, ethernet(ipv4(udp(6081, geneve(ethernet(V4))), protocol=17))),
    "geneve-options": ("geneve", 6, ethernet(ipv4(udp(6081, geneve(V6, 0x86DD, bytes(20))), protocol=17))),
    "geneve-critical": ("geneve", 4, ethernet(ipv4(udp(6081, geneve(V4, 0x0800, bytes(252), 0, 0x40)), protocol=17))),
    "ipip": ("ipip", 4, ethernet(ipv4(V4, protocol=4))),
    "ipip-options": ("ipip", 4, ethernet(ipv4(V4, protocol=4, options=b"\1" * 8))),
    "6in4": ("6in4", 6, ethernet(ipv4(V6, protocol=41))),
    "4in6": ("4in6", 4, ethernet(ipv6(V4, next_header=4), 0x86DD)),
    "6in6": ("6in6", 6, ethernet(ipv6(extension(41) + V6, next_header=60), 0x86DD)),
    "mpls": ("mpls", 4, ethernet(mpls(V4), 0x8847)),
    "mpls-ipv6": ("mpls", 6, ethernet(mpls(V6, 3), 0x8847)),
    "mpls-multicast": ("mpls", 4, ethernet(mpls(V4, 2), 0x8848)),
    "mpls-vlan": ("mpls", 4, ethernet(bytes.fromhex("00648847") + mpls(V4), 0x8100)),
    "pppoe": ("pppoe", 4, ethernet(pppoe(V4), 0x8864)),
    "pppoe-ipv6": ("pppoe", 6, ethernet(pppoe(V6, 0x57), 0x8864)),
    "gtp": ("gtp", 4, ethernet(ipv4(udp(2152, gtp(V4)), protocol=17))),
    "gtp-sequence": ("gtp", 4, ethernet(ipv4(udp(2152, gtp(V4, 0x32, optional=bytes.fromhex("00010055"))), protocol=17))),
    "gtp-extensions": (
        "gtp", 6,
        ethernet(ipv4(udp(2152, gtp(V6, 0x34, optional=bytes.fromhex("00000085 01100940 02000000 00000000"))), protocol=17)),
    ),
}  # fmt: skip
# name -> (which IP is innermost, tunnels around it, frame)
NESTED: dict[str, tuple[int, int, bytes]] = {
    "gre-in-vxlan": (4, 2, ethernet(ipv4(udp(4789, vxlan(ethernet(ipv4(gre(V4), protocol=47)))), protocol=17))),
    "mpls-in-gre": (6, 1, ethernet(ipv4(gre(mpls(V6, 2), 0x8847), protocol=47))),
    "gtp-in-pppoe-in-vlan": (4, 1, ethernet(b"\0\x64\x88\x64" + pppoe(ipv4(udp(2152, gtp(V4)), protocol=17)), 0x8100)),
    "pppoe-in-mpls-free-geneve": (4, 1, ethernet(ipv4(udp(6081, geneve(ethernet(pppoe(V4), 0x8864))), protocol=17))),
    "4in6-in-6in4": (4, 2, ethernet(ipv4(ipv6(V4, next_header=4), protocol=41))),
}
LABELS = ("mpls", "pppoe")  # no packet in a packet
FRAMES = {**{name: (ip, int(switch not in LABELS), frame) for name, (switch, ip, frame) in CARRIERS.items()}, **NESTED}


@pytest.mark.parametrize("name", FRAMES)
def test_the_innermost_segment_is_found(decode_frame: Decode, name: str) -> None:
    ip, tunnels, frame = FRAMES[name]
    assert decode_frame(frame, ETHERNET) == expected(frame, ip=ip, tunnels=tunnels)
    assert decode_frame(frame + b"\xee" * 50, ETHERNET) == expected(frame, ip=ip, tunnels=tunnels), "what follows is padding"


@pytest.mark.parametrize("name", CARRIERS)
def test_each_switch_is_its_own(decode_frame: Decode, name: str) -> None:
    switch, ip, frame = CARRIERS[name]
    left_out = Verdict.NOT_IP if switch in LABELS else Verdict.NOT_TCP
    tunnels = int(switch not in LABELS)
    bits = tunnel_bits([switch])
    assert decode_frame(frame, ETHERNET, None, False, bits) == expected(frame, ip=ip, tunnels=tunnels)
    assert decode_frame(frame, ETHERNET, None, False, ALL & ~bits) == (left_out, None)
    assert decode_frame(frame, ETHERNET, None, False, 0) == (left_out, None)
    plain = ethernet(V4)
    assert decode_frame(plain, ETHERNET, None, False, 0) == expected(plain)
    session = pppoe(V4)
    assert decode_frame(session, PPP_ETHER, None, False, 0) == expected(session), "a link type is no tunnel"


def test_every_switch_has_a_frame() -> None:
    assert {switch for switch, _, _ in CARRIERS.values()} == set(TUNNELS)
    assert [tunnel_bits([name]) for name in TUNNELS] == [1 << number for number in range(len(TUNNELS))]
    assert (tunnel_bits(True), tunnel_bits(False), tunnel_bits(())) == (ALL, 0, 0)


@pytest.mark.parametrize("name", FRAMES)
def test_cut_at_every_byte(decode_frame: Decode, name: str) -> None:
    """The inner IP header tells what was cut off. Before the outer header that announces the tunnel nobody knows of one."""
    ip, tunnels, frame = FRAMES[name]
    headers = frame.index(PAYLOAD)
    announced = False
    for length in range(len(frame) + 1):
        for wire_length in (len(frame), None, len(frame) + 9):
            verdict, segment = decode_frame(frame[:length], ETHERNET, wire_length)
            if length >= headers:
                on_wire = min(len(PAYLOAD), max(length, wire_length or 0) - headers)
                assert (verdict, segment) == expected(
                    frame, ip=ip, payload=frame[headers:length], on_wire=on_wire, offset=headers, tunnels=tunnels
                )
                continue
            assert segment is None
            allowed = {Verdict.TRUNCATED} if wire_length else {Verdict.TRUNCATED, Verdict.NOT_TCP, Verdict.NOT_IP}
            if length < 14 + 40 + 16 + 8:
                allowed |= {Verdict.NOT_TCP}
            assert verdict in allowed, (length, wire_length)
            announced |= verdict == Verdict.TRUNCATED and length > 34
    assert announced


@pytest.mark.parametrize("name", FRAMES)
def test_inner_checksums_are_verified(decode_frame: Decode, name: str) -> None:
    ip, tunnels, frame = FRAMES[name]
    at = frame.index(PAYLOAD) - 20
    src, dst = (frame[at - 8 : at - 4], frame[at - 4 : at]) if ip == 4 else (frame[at - 32 : at - 16], frame[at - 16 : at])
    right = frame[:at] + summed(frame[at : at + 20 + len(PAYLOAD)], src, dst) + frame[at + 20 + len(PAYLOAD) :]
    assert decode_frame(right, ETHERNET, None, True) == expected(right, ip=ip, tunnels=tunnels)
    assert decode_frame(frame, ETHERNET, None, True) == (Verdict.BAD_CHECKSUM, None)


NOTHING_IN_IT: dict[str, bytes] = {
    "gre-version-1": ipv4(gre(V4, bits=0x2001, fields=bytes(4)), protocol=47),
    "gre-routing": ipv4(gre(V4, bits=0x4000, fields=bytes(4)), protocol=47),
    "gre-recursion": ipv4(gre(V4, bits=0x0400), protocol=47),
    "gre-keepalive": ipv4(gre(b"", 0), protocol=47),
    "gre-length-as-protocol": ipv4(gre(b"\xaa\xaa\x03\0\0\0\x08\0" + V4, 0x64), protocol=47),
    "gre-arp": ipv4(gre(bytes(28), 0x0806), protocol=47),
    "vxlan-without-network": ipv4(udp(4789, vxlan(ethernet(V4), 0)), protocol=17),
    "vxlan-arp": ipv4(udp(4789, vxlan(ethernet(bytes(28), 0x0806))), protocol=17),
    "vxlan-udp": ipv4(udp(4789, vxlan(ethernet(ipv4(udp(53, bytes(30)), protocol=17)))), protocol=17),
    "vxlan-source-port": ipv4(struct.pack("!HHHH", 4789, 53, 100, 0) + vxlan(ethernet(V4)), protocol=17),
    "udp-empty": ipv4(udp(4789, b""), protocol=17),
    "udp-length-7": ipv4(udp(4789, vxlan(ethernet(V4)), 7), protocol=17),
    "geneve-version": ipv4(udp(6081, geneve(ethernet(V4), first=0x40)), protocol=17),
    "geneve-control": ipv4(udp(6081, geneve(ethernet(V4), second=0x80)), protocol=17),
    "gtp-version-0": ipv4(udp(2152, gtp(V4, 0x1E)), protocol=17),
    "gtp-prime": ipv4(udp(2152, gtp(V4, 0x20)), protocol=17),
    "gtp-echo": ipv4(udp(2152, gtp(bytes(20), kind=1)), protocol=17),
    "gtp-end-marker": ipv4(udp(2152, gtp(b"", kind=254)), protocol=17),
    "gtp-extension-of-no-length": ipv4(udp(2152, gtp(V4, 0x34, optional=bytes.fromhex("00000085 00100900"))), protocol=17),
    "gtp-ethernet": ipv4(udp(2152, gtp(ethernet(V4))), protocol=17),
    "ipip-version-5": ipv4(b"\x55" + V4[1:], protocol=4),
    "ipip-empty": ipv4(b"", protocol=4),
    "esp": ipv4(V4, protocol=50),
}


@pytest.mark.parametrize("name", NOTHING_IN_IT)
def test_what_is_no_tunnel_or_holds_no_ip_is_not_tcp(decode_frame: Decode, name: str) -> None:
    assert decode_frame(ethernet(NOTHING_IN_IT[name]), ETHERNET) == (Verdict.NOT_TCP, None)


def test_lengths_of_outer_layers_bound_what_is_inside(decode_frame: Decode) -> None:
    """Bytes behind them are padding, even where an inner header claims them."""
    body = tcp(b"x" * 30)
    for size in range(30):
        inner = ipv4(body)
        short = len(body) + 20 - size
        for frame in (
            ethernet(pppoe(inner, size=2 + short), 0x8864),
            ethernet(ipv4(udp(4789, vxlan(ethernet(inner)), 8 + 8 + 14 + short), protocol=17)),
            ethernet(ipv4(udp(2152, struct.pack("!BBHI", 0x30, 255, short, 7) + inner), protocol=17)),
            ethernet(ipv4(inner, protocol=4, total=20 + short)),
        ):
            verdict, segment = decode_frame(frame, ETHERNET)
            assert verdict is Verdict.SEGMENT
            assert segment is not None
            assert segment.payload_length == segment.wire_payload_length == 30 - size


def test_eight_tunnels_are_opened_and_no_more(decode_frame: Decode) -> None:
    packet = V4
    for depth in range(1, 20):
        packet = ipv4(packet, protocol=4)
        frame = ethernet(packet)
        assert decode_frame(frame, ETHERNET) == (expected(frame, tunnels=depth) if depth <= 8 else (Verdict.NOT_TCP, None)), depth


def test_long_stacks_end(decode_frame: Decode) -> None:
    labels = struct.pack("!I", 1000 << 12 | 64) * 20_000
    assert decode_frame(ethernet(labels, 0x8847), ETHERNET) == (Verdict.TRUNCATED, None)
    frame = ethernet(labels + mpls(V4), 0x8847)
    assert decode_frame(frame, ETHERNET) == expected(frame)
    extensions = bytes.fromhex("01000085") * 15_000
    frame = gtp(b"", 0x34, optional=bytes.fromhex("00000085") + extensions)
    assert decode_frame(ethernet(ipv4(udp(2152, frame, 0), total=0, protocol=17)), ETHERNET)[0] is Verdict.TRUNCATED


def test_offloaded_outer_lengths(decode_frame: Decode) -> None:
    frame = ethernet(ipv4(udp(4789, vxlan(ethernet(ipv4(tcp(), total=0))), 0), total=0, protocol=17))
    assert decode_frame(frame, ETHERNET) == expected(frame, tunnels=1)


def test_a_fragment_inside_is_a_fragment(decode_frame: Decode) -> None:
    frame = ethernet(ipv4(gre(ipv4(tcp(), fragment=0x2000)), protocol=47))
    assert decode_frame(frame, ETHERNET) == (Verdict.FRAGMENT, None)


# The assembler.


def delivered(package: ModuleType, frame: bytes, **options: Any) -> list[tuple[str, bytes]]:
    got: list[tuple[str, bytes]] = []

    class Stream:
        def __init__(self, net_flow: Any, transport_flow: Any) -> None:
            self.key = f"{net_flow.src}:{transport_flow.src} {net_flow.dst}:{transport_flow.dst}"

        def reassembled(self, pieces: list[Any]) -> None:
            got.extend((self.key, bytes(piece)) for piece in pieces if len(piece))

        def reassembly_complete(self) -> None:
            pass

    with package.Assembler(package.StreamPool(Stream), package.AssemblerOptions(**options)) as assembler:
        assembler.assemble_frame(frame, 1)
    return got


SYN_SEGMENT = struct.pack("!HHIIBBHHH", 0xC001, 443, 7, 0, 0x50, 2, 1024, 0, 0) + b"hello"


@pytest.mark.parametrize("decapsulate", [True, ["gre"], {"gre", "vxlan"}, ("gre",), frozenset({"gre"})])
def test_the_assembler_opens_what_it_is_told_to(tcpreasm: ModuleType, decapsulate: Any) -> None:
    outer = bytes([172, 16, 0, 1])
    frame = ethernet(ipv4(gre(ipv4(SYN_SEGMENT)), protocol=47).replace(SRC4 + DST4, outer + outer, 1))
    assert delivered(tcpreasm, frame) == [("10.0.0.1:49153 192.168.255.254:443", b"hello")]
    assert delivered(tcpreasm, frame, decapsulate=decapsulate) == delivered(tcpreasm, frame)


@pytest.mark.parametrize("decapsulate", [False, [], ["vxlan"], {"mpls", "gtp"}])
def test_the_assembler_opens_nothing_else(tcpreasm: ModuleType, decapsulate: Any) -> None:
    frame = ethernet(ipv4(gre(ipv4(SYN_SEGMENT)), protocol=47))
    assert delivered(tcpreasm, frame, decapsulate=decapsulate) == []


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("gre", TypeError, "decapsulate is a bool or a collection of names, not str: 'gre'"),
        (None, TypeError, "decapsulate is a bool or a collection of names, not NoneType: None"),
        (1, TypeError, "decapsulate is a bool or a collection of names, not int: 1"),
        ([4], TypeError, "decapsulate holds names, not int: 4"),
        (["l2tp"], ValueError, f"decapsulate holds names out of {', '.join(TUNNELS)}, not 'l2tp'"),
    ],
)
def test_wrong_names(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        AssemblerOptions(decapsulate=value)
    assert str(raised.value) == text


# Tunnels are part of what tells a connection.


def segment(seq: int, data: bytes, flags: int = 16) -> bytes:
    return ipv4(struct.pack("!HHIIBBHHH", 0xC001, 443, seq, 7, 0x50, flags, 1024, 0, 0) + data)


def in_vxlan(packet: bytes) -> bytes:
    return ipv4(udp(4789, vxlan(ethernet(packet))), protocol=17)


# Each puts a packet into a frame, and so many others around it.
WAYS: list[tuple[int, Callable[[bytes], bytes]]] = [
    (0, ethernet),
    (0, lambda packet: ethernet(mpls(packet, 2), 0x8847)),
    (0, lambda packet: ethernet(pppoe(packet), 0x8864)),
    (0, lambda packet: ethernet(bytes.fromhex("00640800") + packet, 0x8100)),
    (1, lambda packet: ethernet(in_vxlan(packet))),
    (1, lambda packet: ethernet(ipv4(gre(mpls(packet), 0x8847), protocol=47))),
    (1, lambda packet: ethernet(pppoe(ipv4(packet, protocol=4)), 0x8864)),
    (2, lambda packet: ethernet(in_vxlan(ipv4(udp(2152, gtp(packet)), protocol=17)))),
    (8, lambda packet: ethernet(functools.reduce(lambda inner, _: ipv4(inner, protocol=4), range(8), packet))),
]
Streams = list[tuple[int, bytearray, list[int]]]


def recording(streams: Streams) -> Callable[[Any, Any], Any]:
    """A factory of streams that keep their tunnels, their bytes, and how often they ended."""

    class Stream:
        def __init__(self, net_flow: Any, transport_flow: Any) -> None:
            assert str(net_flow) == "10.0.0.1->192.168.255.254"
            assert transport_flow.tunnels == 0
            streams.append((net_flow.tunnels, bytearray(), []))
            _, self.data, self.ended = streams[-1]

        def reassembled(self, pieces: list[Any]) -> None:
            for piece in pieces:
                assert not piece.skip
                self.data.extend(bytes(piece))

        def reassembly_complete(self) -> None:
            self.ended.append(1)

    return Stream


def shuffled_ways() -> tuple[list[bytes], dict[int, bytes]]:
    """One connection's segments in each number of tunnels, each number's bytes their own, over all ways that lead to it in turn; all
    mixed. And what each number's stream is to get."""
    rng = random.Random(7)
    depths = sorted({depth for depth, _ in WAYS})
    texts = {depth: bytes(rng.randrange(256) for _ in range(300)) for depth in depths}
    frames = [way(segment(1000, b"", 2)) for depth in depths for way in [way for around, way in WAYS if around == depth][:1]]
    parts = []
    for depth in depths:
        ways = [way for around, way in WAYS if around == depth]
        parts += [ways[at // 10 % len(ways)](segment(1001 + at, texts[depth][at : at + 10])) for at in range(0, 300, 10)]
    rng.shuffle(parts)
    return frames + parts, texts


@pytest.mark.parametrize("threads", [1, 2])
def test_each_number_of_tunnels_has_connections_of_its_own(tcpreasm: ModuleType, threads: int) -> None:
    """And labels are none."""
    frames, texts = shuffled_ways()
    streams: Streams = []
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recording(streams)))
    assembler.assemble_capture(pcap((1000 * number, frame) for number, frame in enumerate(frames)), threads=threads)
    assert sorted((depth, bytes(data), ended) for depth, data, ended in streams) == [(depth, texts[depth], [1]) for depth in sorted(texts)]


def test_one_way_in_after_the_other_tells_tunnels(tcpreasm: ModuleType) -> None:
    frames, texts = shuffled_ways()
    streams: Streams = []
    pool = tcpreasm.StreamPool(recording(streams))
    assembler = tcpreasm.Assembler(pool)
    for frame in frames[:70]:
        assembler.assemble_frame(frame, 1)
    rest = frames[70:]
    lengths = [len(frame) for frame in rest]
    assembler.assemble_batch(b"".join(rest), [sum(lengths[:at]) for at in range(len(rest))], lengths, [10**9] * len(rest))
    assert {depth: bytes(data) for depth, data, _ in streams} == texts
    keys = pool.keys()
    assert sorted(key.net_flow.tunnels for key in keys) == sorted(texts)
    assert len(set(keys)) == 1, "keys are addresses and ports"
    segment_of_no_tunnel = tcpreasm.TCPSegment(0xC001, 443, 1301, b"!")
    assembler.assemble(keys[-1].net_flow, segment_of_no_tunnel, 1)
    assert [depth for depth, data, _ in streams if data.endswith(b"!")] == [0]


def test_a_flow_keeps_its_tunnels(tcpreasm: ModuleType) -> None:
    streams: list[Any] = []
    pool = tcpreasm.StreamPool(lambda *flows: streams.append(tcpreasm.ByteCountStream(*flows)) or streams[-1])
    tcpreasm.Assembler(pool).assemble_frame(ethernet(in_vxlan(segment(1000, b"", 2))), 1)
    flow = streams[0].key.net_flow
    plain = tcpreasm.Flow("10.0.0.1", "192.168.255.254")
    for one in (flow, tcpreasm.Flow("10.0.0.1", "192.168.255.254", tunnels=1), copy.copy(flow), flow.reverse().reverse()):
        assert (one.tunnels, repr(one)) == (1, "Flow('10.0.0.1', '192.168.255.254', tunnels=1)")
        assert (one == plain, hash(one)) == (True, hash(plain))
    assert (plain.tunnels, repr(plain)) == (0, "Flow('10.0.0.1', '192.168.255.254')")
    assert (streams[0].key.reverse().net_flow.tunnels, streams[0].key.transport_flow.tunnels) == (1, 0)
    for value, error in ((-1, ValueError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(error, match=r"^tunnels is "):
            tcpreasm.Flow("10.0.0.1", "10.0.0.2", value)


def test_nobody_outside_injects_through_a_tunnel(tcpreasm: ModuleType) -> None:
    """What a datagram to a tunnel's port carries reaches no stream of another depth: no byte, no RST, no FIN."""
    streams: Streams = []
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recording(streams)))
    for frame in (
        ethernet(segment(1000, b"", 2)),
        ethernet(segment(1001, b"GET ")),
        ethernet(in_vxlan(segment(1004, b"", 2))),
        ethernet(in_vxlan(segment(1005, b"forged"))),
        ethernet(in_vxlan(segment(1005, b"", 4))),
        ethernet(in_vxlan(segment(1005, b"", 17))),
        ethernet(segment(1005, b"/")),
    ):
        assembler.assemble_frame(frame, 1)
    assembler.close()
    assert [(depth, bytes(data)) for depth, data, _ in streams] == [(0, b"GET /"), (1, b"forged")]


def test_fragments_lie_in_tunnels_too(tcpreasm: ModuleType) -> None:
    """Fragments in a tunnel and outside of it are of different datagrams; what a whole one carries lies in as many tunnels, or in more."""
    inner = segment(1001, b"inner" * 20)
    outer = segment(1001, b"outer" * 20)
    carrier = ipv4(gre(segment(1101, b"carried" * 20)), protocol=47)
    streams: Streams = []
    with tcpreasm.Assembler(tcpreasm.StreamPool(recording(streams))) as assembler:
        for way in (ethernet, lambda packet: ethernet(in_vxlan(packet))):
            assembler.assemble_frame(way(segment(1000, b"", 2)), 1)
        parts = [
            [ipv4(packet[20 + at : 20 + at + 56], fragment=at // 8 | (at + 56 < len(packet) - 20) << 13, protocol=packet[9])
             for at in range(0, len(packet) - 20, 56)]
            for packet in (outer, inner, carrier)
        ]  # fmt: skip
        for one, two in zip(parts[0], parts[1]):
            assembler.assemble_frame(ethernet(one), 1)
            assembler.assemble_frame(ethernet(in_vxlan(two)), 1)
        for part in parts[2]:
            assembler.assemble_frame(ethernet(part), 1)
        stats = assembler.stats
    assert (stats.datagrams, dict(stats.fragments_dropped)) == (3, {})
    assert [(depth, bytes(data)) for depth, data, _ in streams] == [(0, b"outer" * 20), (1, b"inner" * 20 + b"carried" * 20)]


def test_senders_are_judged_by_tunnel(tcpreasm: ModuleType) -> None:
    """Who leaves the checksums in a tunnel to a network card is not believed outside of it."""
    right = segment(1001, b"x" * 10)
    right = right[:20] + summed(right[20:], SRC4, DST4)
    wrong = bytearray(right)
    wrong[20 + 16] ^= 1
    unfilled = bytearray(right)
    unfilled[20 + 16 : 20 + 18] = b"\0\0"
    streams: Streams = []
    options = tcpreasm.AssemblerOptions(verify_checksums="auto")
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recording(streams)), options)
    verdicts = [
        str(assembler.assemble_frame(frame, 1))
        for frame in (
            ethernet(in_vxlan(bytes(unfilled))),
            ethernet(in_vxlan(bytes(wrong))),
            ethernet(right),
            ethernet(bytes(wrong)),
        )
    ]
    assert verdicts == ["SEGMENT", "SEGMENT", "SEGMENT", "BAD_CHECKSUM"]
    assert assembler.stats.offloading_senders == 1


# Both cores on anything.

SEEDS = [*(frame for _, _, frame in FRAMES.values()), *(ethernet(packet) for packet in NOTHING_IN_IT.values())]


@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(12, 150), BYTES), max_size=6),
    st.integers(0, 200),
    st.binary(max_size=8),
    WIRE_LENGTHS,
    st.booleans(),
)
def test_cores_agree_on_mutated_tunnels(
    seed: bytes, changes: list[tuple[int, int]], cut: int, tail: bytes, wire_length: int | None, verify: bool
) -> None:
    frame = bytearray(seed)
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    agree(bytes(frame[: len(frame) - cut] if cut < len(frame) else frame) + tail, ETHERNET, wire_length, verify)


def test_cores_agree_on_every_byte_changed() -> None:
    decoders = [load(core) for core in CORES]
    for original in SEEDS:
        for at in range(12, min(len(original), 150)):
            for value in {0, 1, 0x2F, 0x45, 0x60, 0x80, 0xFF, *(original[at] ^ (1 << bit) for bit in range(8))}:
                frame = original[:at] + bytes((value,)) + original[at + 1 :]
                pure, compiled = (decode(frame, ETHERNET, None, value & 1 == 0) for decode in decoders)
                assert pure == compiled, (frame.hex(), value)


@pytest.mark.skipif(sys.platform == "win32", reason="memory protection by mprotect")
def test_nothing_behind_the_frame_is_read() -> None:
    frames = [(ETHERNET, frame.hex()) for frame in SEEDS] + [(RAW, frame[14:].hex()) for frame in SEEDS]
    child = subprocess.run([sys.executable, "-c", BEYOND], input=json.dumps(frames), capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    assert int(child.stdout) == sum((len(text) // 2 + 1) * 4 for _, text in frames)


@pytest.mark.parametrize("name", [name for name, (_, _, frame) in FRAMES.items() if frame[12:14] == b"\x08\x00"])
def test_addresses_are_the_inner_ones(decode_frame: Decode, name: str) -> None:
    outer = bytes([172, 16, 0, 1])
    _, segment = decode_frame(FRAMES[name][2].replace(SRC4 + DST4, outer + outer, 1), ETHERNET)
    assert segment is not None
    assert segment.src in (SRC4, SRC6)
