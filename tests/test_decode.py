"""decode: frames built by hand, with the segment they must give, on both cores; and both cores against each other on anything.

Lives here: link layers, IP headers, the TCP header, checksums, cuts. Not here: capture files (test_capture) and what becomes of a segment.
"""

from __future__ import annotations

import importlib
import itertools
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpreasm.decoded import Segment
from tcpreasm.verdict import Verdict

Decode = Callable[..., tuple[Verdict, Segment | None]]

ETHERNET, NULL, LOOP, PPP, PPP_SERIAL, PPP_ETHER, C_HDLC = 1, 0, 108, 9, 50, 51, 104
RAW, RAW_12, RAW_14, IPV4, IPV6, SLL, SLL2 = 101, 12, 14, 228, 229, 113, 276
FDDI, IEEE802_11, RADIOTAP = 10, 105, 127
LINKTYPES = (0, 1, 9, 10, 12, 14, 50, 51, 101, 104, 105, 108, 113, 127, 228, 229, 276)

SRC4, DST4 = bytes([10, 0, 0, 1]), bytes([192, 168, 255, 254])
SRC6, DST6 = bytes.fromhex("20010db8000000000000000000000001"), bytes.fromhex("fe80000000000000fedcba9876543210")
FLAGS, WINDOW, URGENT, SEQ, ACK = 0xDB, 0xABCD, 0x1234, 0xFEDCBA98, 0x89ABCDEF
SRC_PORT, DST_PORT = 0xC001, 443
PAYLOAD = b"GET / HTTP/1.1\r\n\r\n."
CORES = ("pure", "compiled")


def load(core: str) -> Decode:
    decode: Decode = importlib.import_module(f"tcpreasm._{core}.decode").decode_frame
    return decode


@pytest.fixture(params=CORES)
def decode_frame(request: pytest.FixtureRequest) -> Decode:
    return load(request.param)


# Builders. Each layer is `bytes`; a frame is their sum.


def tcp(payload: bytes = PAYLOAD, *, options: bytes = b"", data_offset: int | None = None, checksum: int = 0) -> bytes:
    if data_offset is None:
        data_offset = 5 + len(options) // 4
    head = struct.pack("!HHIIBBHHH", SRC_PORT, DST_PORT, SEQ, ACK, data_offset << 4 | 0x0A, FLAGS, WINDOW, checksum, URGENT)
    return head + options + payload


def ipv4(
    body: bytes,
    *,
    options: bytes = b"",
    total: int | None = None,
    version: int = 4,
    ihl: int | None = None,
    fragment: int = 0x4000,
    protocol: int = 6,
) -> bytes:
    if ihl is None:
        ihl = 5 + len(options) // 4
    if total is None:
        total = 20 + len(options) + len(body)
    return struct.pack("!BBHHHBBH4s4s", version << 4 | ihl, 0xB8, total, 1, fragment, 64, protocol, 0, SRC4, DST4) + options + body


def ipv6(body: bytes, *, next_header: int = 6, length: int | None = None, version: int = 6) -> bytes:
    return (
        struct.pack("!IHBB16s16s", version << 28 | 0x0FEDCBA, len(body) if length is None else length, next_header, 64, SRC6, DST6) + body
    )


def extension(next_header: int, words: int = 0, body: bytes = b"") -> bytes:
    """An IPv6 extension header of 8 * (words + 1) bytes."""
    return bytes((next_header, words)) + body.ljust(words * 8 + 6, b"\1")


def expected(
    frame: bytes, *, ip: int = 4, payload: bytes = PAYLOAD, on_wire: int | None = None, offset: int | None = None, tunnels: int = 0
) -> tuple[Verdict, Segment]:
    """The segment of the builders above. Its payload is looked up in the frame, unless `offset` tells where it is."""
    src, dst = (SRC4, DST4) if ip == 4 else (SRC6, DST6)
    where = frame.index(payload) if offset is None else offset
    header = where - frame.rindex(struct.pack("!HHI", SRC_PORT, DST_PORT, SEQ), 0, where)
    wire = len(payload) if on_wire is None else on_wire
    return Verdict.SEGMENT, Segment(
        src, dst, SRC_PORT, DST_PORT, SEQ, ACK, FLAGS, WINDOW, URGENT, where, len(payload), wire, header, tunnels
    )  # fmt: skip


MACS = bytes(range(1, 13))
SNAP = b"\xaa\xaa\x03\0\0\0"
WLAN = bytes.fromhex("0801 3a01") + bytes(range(6, 24)) + b"\x50\0"
WLAN_QOS = bytes.fromhex("8802 3a01") + bytes(range(6, 24)) + b"\x50\0" + b"\0\0"
WLAN_4_ADDRESSES = bytes.fromhex("8803 3a01") + bytes(range(6, 24)) + b"\x50\0" + bytes(6) + b"\0\0"
WLAN_HT = bytes.fromhex("8882 3a01") + bytes(range(6, 24)) + b"\x50\0" + b"\0\0" + b"\1\2\3\4"


class Link(NamedTuple):
    """A link layer: what lies before the IP header, for IPv4 and for IPv6 (None: it carries but the other)."""

    name: str
    linktype: int
    v4: bytes | None
    v6: bytes | None


def by_type(name: str, linktype: int, before: bytes, after: bytes = b"") -> Link:
    return Link(name, linktype, before + b"\x08\x00" + after, before + b"\x86\xdd" + after)


LINKS = [
    by_type("ethernet", ETHERNET, MACS),
    by_type("802.1q", ETHERNET, MACS + bytes.fromhex("8100 e005")),
    by_type("802.1ad", ETHERNET, MACS + bytes.fromhex("88a8 0064 8100 0005")),
    by_type("qinq-9100", ETHERNET, MACS + bytes.fromhex("9100 0064 9200 0005 8100 0007")),
    by_type("vlan-x20", ETHERNET, MACS + bytes.fromhex("8100 0064") * 20),
    by_type("802.3-snap", ETHERNET, MACS + b"\x00\x64" + SNAP),
    by_type("802.3-snap-vlan", ETHERNET, MACS + b"\x00\x64" + SNAP + bytes.fromhex("8100 0064")),
    by_type("vlan-802.3-snap", ETHERNET, MACS + bytes.fromhex("8100 0064 05dc") + SNAP),
    by_type("sll", SLL, struct.pack("!HHH8s", 0, 1, 6, bytes(range(8)))),
    by_type("sll-vlan", SLL, struct.pack("!HHH8s", 4, 1, 6, bytes(range(8))) + bytes.fromhex("8100 0064")),
    by_type("sll-llc-snap", SLL, struct.pack("!HHH8s", 4, 1, 6, bytes(range(8))) + b"\0\4" + SNAP),
    by_type("sll2", SLL2, b"", struct.pack("!HIHBB8s", 0, 3, 1, 0, 6, bytes(range(8)))),
    Link(
        "sll2-vlan", SLL2,
        struct.pack("!HHIHBB8s", 0x8100, 0, 3, 1, 0, 6, bytes(8)) + bytes.fromhex("0064 0800"),
        struct.pack("!HHIHBB8s", 0x8100, 0, 3, 1, 0, 6, bytes(8)) + bytes.fromhex("0064 86dd"),
    ),
    *(Link(f"null-le-{family}", NULL, struct.pack("<I", 2), struct.pack("<I", family)) for family in (10, 24, 28, 30)),
    *(Link(f"null-be-{family}", NULL, struct.pack(">I", 2), struct.pack(">I", family)) for family in (10, 24, 28, 30)),
    Link("loop", LOOP, struct.pack(">I", 2), struct.pack(">I", 24)),
    Link("ppp", PPP, b"\x00\x21", b"\x00\x57"),
    Link("ppp-compressed", PPP, b"\x21", b"\x57"),
    Link("ppp-ff03", PPP, b"\xff\x03\x00\x21", b"\xff\x03\x00\x57"),
    Link("ppp-ff03-compressed", PPP, b"\xff\x03\x21", b"\xff\x03\x57"),
    Link("ppp-serial", PPP_SERIAL, b"\xff\x03\x00\x21", b"\xff\x03\x00\x57"),
    by_type("ppp-serial-cisco", PPP_SERIAL, b"\x0f\x00"),
    by_type("ppp-serial-cisco-multicast", PPP_SERIAL, b"\x8f\x00"),
    Link("ppp-ether", PPP_ETHER, bytes.fromhex("1100 0001 0100 0021"), bytes.fromhex("1100 0001 0100 0057")),
    by_type("c-hdlc", C_HDLC, b"\x0f\x00"),
    *(Link(f"raw-{linktype}", linktype, b"", b"") for linktype in (RAW, RAW_12, RAW_14)),
    Link("ipv4", IPV4, b"", None),
    Link("ipv6", IPV6, None, b""),
    by_type("fddi", FDDI, b"\x57" + MACS + SNAP),
    by_type("802.11", IEEE802_11, WLAN + SNAP),
    by_type("802.11-qos", IEEE802_11, WLAN_QOS + SNAP),
    by_type("802.11-four-addresses", IEEE802_11, WLAN_4_ADDRESSES + SNAP),
    by_type("802.11-ht-control", IEEE802_11, WLAN_HT + SNAP),
    by_type("radiotap", RADIOTAP, bytes.fromhex("0000 0800 0000 0000") + WLAN + SNAP),
    by_type("radiotap-flags", RADIOTAP, bytes.fromhex("0000 0900 0200 0000 10") + WLAN_QOS + SNAP),
    by_type("radiotap-pad", RADIOTAP, bytes.fromhex("0000 0900 0200 0000 20") + WLAN_QOS + b"\0\0" + SNAP),
    by_type(
        "radiotap-time-pad", RADIOTAP,
        bytes.fromhex("0000 1900 030000a0 00000080 00000000") + bytes(8) + b"\x20" + WLAN_QOS + b"\0\0" + SNAP,
    ),
    by_type("radiotap-time-no-pad", RADIOTAP, bytes.fromhex("0000 1100 03000000") + bytes(8) + b"\x10" + WLAN_QOS + SNAP),
]  # fmt: skip
CARRIED = [
    pytest.param(link.linktype, ip, head, id=f"{link.name}-v{ip}")
    for link in LINKS
    for ip, head in ((4, link.v4), (6, link.v6))
    if head is not None
]


def packet(ip: int, body: bytes | None = None) -> bytes:
    body = tcp() if body is None else body
    return ipv4(body) if ip == 4 else ipv6(body)


# Link layers.


@pytest.mark.parametrize(("linktype", "ip", "head"), CARRIED)
class TestLinkLayers:
    def test_whole(self, decode_frame: Decode, linktype: int, ip: int, head: bytes) -> None:
        frame = head + packet(ip)
        assert decode_frame(frame, linktype) == expected(frame, ip=ip, offset=len(head) + (40 if ip == 4 else 60))

    def test_padding_is_no_payload(self, decode_frame: Decode, linktype: int, ip: int, head: bytes) -> None:
        frame = head + packet(ip) + b"\xee" * 50
        assert decode_frame(frame, linktype) == expected(frame, ip=ip)
        bare = head + packet(ip, tcp(b"")) + b"\xee" * 50
        assert decode_frame(bare, linktype) == expected(bare, ip=ip, payload=b"", offset=len(bare) - 50)

    def test_cut_at_every_byte(self, decode_frame: Decode, linktype: int, ip: int, head: bytes) -> None:
        for options in (b"", b"\1" * 12):
            frame = head + packet(ip, tcp(options=options))
            headers = frame.index(PAYLOAD)
            for length in range(len(frame) + 1):
                # The IP header tells what was cut off, as far as the frame had room for it on the wire.
                for wire_length in (None, len(frame), len(frame) + 4, len(frame) - 1, 0):
                    got = decode_frame(frame[:length], linktype, wire_length)
                    if length < headers:
                        assert got == (Verdict.TRUNCATED, None), length
                    else:
                        captured = frame[headers:length]
                        room = max(length, wire_length or 0) - headers
                        on_wire = min(len(PAYLOAD), room)
                        assert got == expected(frame, ip=ip, payload=captured, on_wire=on_wire, offset=headers), length

    def test_offloading_leaves_the_length_out(self, decode_frame: Decode, linktype: int, ip: int, head: bytes) -> None:
        frame = head + (ipv4(tcp(), total=0) if ip == 4 else ipv6(tcp(), length=0))
        assert decode_frame(frame, linktype) == expected(frame, ip=ip)
        assert decode_frame(frame, linktype, len(frame) - 5) == expected(frame, ip=ip)
        assert decode_frame(frame, linktype, len(frame) + 70_000) == expected(frame, ip=ip, on_wire=len(PAYLOAD) + 70_000)
        cut = frame[:-3]
        assert decode_frame(cut, linktype, len(frame)) == expected(frame, ip=ip, payload=PAYLOAD[:-3], on_wire=len(PAYLOAD))
        assert decode_frame(cut, linktype) == expected(frame, ip=ip, payload=PAYLOAD[:-3])

    def test_udp(self, decode_frame: Decode, linktype: int, ip: int, head: bytes) -> None:
        frame = head + (ipv4(tcp(), protocol=17) if ip == 4 else ipv6(tcp(), next_header=17))
        assert decode_frame(frame, linktype) == (Verdict.NOT_TCP, None)


NO_IP = {
    "arp": (ETHERNET, MACS + b"\x08\x06" + bytes(46)),
    "vlan-arp": (ETHERNET, MACS + bytes.fromhex("8100 0001 0806") + bytes(42)),
    "mpls-pseudo-wire": (ETHERNET, MACS + bytes.fromhex("8847 000101ff") + bytes(46)),
    "pppoe-lcp": (ETHERNET, MACS + bytes.fromhex("8864 1100 0001 0030 c021") + ipv4(tcp())),
    "spanning-tree": (ETHERNET, MACS + bytes.fromhex("0026 424203") + bytes(60)),
    "snap-other-organisation": (ETHERNET, MACS + bytes.fromhex("0040 aaaa03 00000c 0800") + ipv4(tcp())),
    "length-1501": (ETHERNET, MACS + b"\x05\xdd" + SNAP + b"\x08\x00" + ipv4(tcp())),
    "ethertype-0x05ff": (ETHERNET, MACS + b"\x05\xff" + SNAP + b"\x08\x00" + ipv4(tcp())),
    "sll-802.3": (SLL, bytes(14) + b"\0\1" + SNAP + b"\x08\x00" + ipv4(tcp())),
    "sll-can": (SLL, bytes(14) + b"\0\x0c" + bytes(60)),
    "sll2-netlink": (SLL2, b"\0\0" + bytes(78)),
    "null-appletalk": (NULL, struct.pack("<I", 16) + ipv4(tcp())),
    "null-no-family": (NULL, struct.pack("<I", 0x02000002) + ipv4(tcp())),
    "loop-other-order": (LOOP, struct.pack("<I", 2) + ipv4(tcp())),
    "ppp-lcp": (PPP, bytes.fromhex("ff03 c021") + bytes(60)),
    "ppp-protocol-ff": (PPP, b"\xff\x00\x21" + ipv4(tcp())),
    "ppp-cisco": (PPP, bytes.fromhex("0f00 0800") + ipv4(tcp())),
    "cisco-keepalive": (C_HDLC, bytes.fromhex("8f00 8035") + bytes(18)),
    "cisco-length": (C_HDLC, bytes.fromhex("0f00 0064") + SNAP + b"\x08\x00" + ipv4(tcp())),
    "pppoe-discovery": (PPP_ETHER, bytes.fromhex("1109 0000 0004 0101 0000") + bytes(40)),
    "pppoe-version": (PPP_ETHER, bytes.fromhex("2100 0001 0100 0021") + ipv4(tcp())),
    "raw-version-5": (RAW, b"\x55" + ipv4(tcp())[1:]),
    "fddi-smt": (FDDI, b"\x41" + MACS + SNAP + b"\x08\x00" + ipv4(tcp())),
    "802.11-beacon": (IEEE802_11, b"\x80\x00" + bytes(80)),
    "802.11-null-data": (IEEE802_11, b"\x48\x01" + bytes(80)),
    "802.11-acknowledgement": (IEEE802_11, b"\xd4\x00" + bytes(8)),
    "802.11-encrypted": (IEEE802_11, b"\x08\x41" + WLAN[2:] + SNAP + b"\x08\x00" + ipv4(tcp())),
    "802.11-aggregated": (IEEE802_11, WLAN_QOS[:24] + b"\x80\0" + SNAP + b"\x08\x00" + ipv4(tcp())),
    "802.11-aggregated-four-addresses": (IEEE802_11, WLAN_4_ADDRESSES[:30] + b"\x80\0" + SNAP + b"\x08\x00" + ipv4(tcp())),
    "radiotap-version": (RADIOTAP, bytes.fromhex("0100 0800 0000 0000") + WLAN + SNAP + b"\x08\x00" + ipv4(tcp())),
    "radiotap-short": (RADIOTAP, bytes.fromhex("0000 0700 0000 0000") + WLAN + SNAP + b"\x08\x00" + ipv4(tcp())),
    "radiotap-presence-without-end": (RADIOTAP, bytes.fromhex("0000 0c00") + b"\xff" * 8 + WLAN + SNAP + b"\x08\x00" + ipv4(tcp())),
    "radiotap-flags-beyond": (RADIOTAP, bytes.fromhex("0000 0800 0200 0000") + WLAN + SNAP + b"\x08\x00" + ipv4(tcp())),
}


@pytest.mark.parametrize(("linktype", "frame"), NO_IP.values(), ids=NO_IP)
def test_no_ip(decode_frame: Decode, linktype: int, frame: bytes) -> None:
    assert decode_frame(frame, linktype) == (Verdict.NOT_IP, None)


def test_80211_fragments(decode_frame: Decode) -> None:
    inner = SNAP + b"\x08\x00" + ipv4(tcp())
    assert decode_frame(b"\x08\x05" + WLAN[2:] + inner, IEEE802_11) == (Verdict.FRAGMENT, None)
    assert decode_frame(WLAN[:22] + b"\x51\0" + inner, IEEE802_11) == (Verdict.FRAGMENT, None)


@pytest.mark.parametrize(
    "linktype", [-1, 2, 3, 6, 7, 8, 11, 13, 99, 102, 107, 109, 117, 147, 192, 195, 230, 239, 274, 0x10001, 2**31, 2**64, -(2**64)]
)
def test_unknown_linktypes(decode_frame: Decode, linktype: int) -> None:
    assert decode_frame(MACS + b"\x08\x00" + ipv4(tcp()), linktype) == (Verdict.UNKNOWN_LINKTYPE, None)
    assert decode_frame(b"", linktype) == (Verdict.UNKNOWN_LINKTYPE, None)


@pytest.mark.parametrize("linktype", LINKTYPES)
def test_an_empty_frame_is_cut(decode_frame: Decode, linktype: int) -> None:
    assert decode_frame(b"", linktype) == (Verdict.TRUNCATED, None)
    assert decode_frame(b"", linktype, 1500) == (Verdict.TRUNCATED, None)


@pytest.mark.parametrize(
    ("linktype", "wrong"), [(NULL, struct.pack("<I", 30)), (PPP, b"\x00\x57"), (IPV6, b""), (ETHERNET, MACS + b"\x86\xdd")]
)
def test_the_link_layer_says_ipv6_and_the_packet_ipv4(decode_frame: Decode, linktype: int, wrong: bytes) -> None:
    assert decode_frame(wrong + ipv4(tcp()), linktype) == (Verdict.BAD_IP_HEADER, None)


def test_a_long_stack_of_tags_and_llc_ends(decode_frame: Decode) -> None:
    assert decode_frame(MACS + bytes.fromhex("8100 0001") * 50_000, ETHERNET) == (Verdict.TRUNCATED, None)
    assert decode_frame(MACS + b"\0\x40" + (SNAP + b"\0\x40") * 50_000, ETHERNET) == (Verdict.TRUNCATED, None)
    assert decode_frame(ipv6(extension(60) * 50_000, next_header=60, length=0), RAW) == (Verdict.BAD_IP_HEADER, None)
    assert decode_frame(ipv6(extension(60) * 50_000, next_header=60, length=0), RAW, 1 << 19) == (Verdict.TRUNCATED, None)


# IPv4.


@pytest.mark.parametrize("words", range(11))
def test_ipv4_options(decode_frame: Decode, words: int) -> None:
    for linktype, head in ((RAW, b""), (ETHERNET, MACS + b"\x08\x00")):
        frame = head + ipv4(tcp(), options=b"\1" * (words * 4))
        assert decode_frame(frame, linktype) == expected(frame)
        for length in range(len(frame) - len(PAYLOAD)):
            assert decode_frame(frame[:length], linktype) == (Verdict.TRUNCATED, None)


def test_ipv4_length_beyond_the_frame_is_a_gap_only_where_the_frame_was_cut(decode_frame: Decode) -> None:
    frame = MACS + b"\x08\x00" + ipv4(tcp(), total=1500)
    assert decode_frame(frame, ETHERNET, 1514) == expected(frame, on_wire=1460)
    assert decode_frame(frame, ETHERNET, 9000) == expected(frame, on_wire=1460)
    assert decode_frame(frame, ETHERNET, 1000) == expected(frame, on_wire=946)
    for wire_length in (None, len(frame)):
        assert decode_frame(frame, ETHERNET, wire_length) == expected(frame)


@pytest.mark.parametrize("ihl", range(5))
def test_ipv4_header_too_short(decode_frame: Decode, ihl: int) -> None:
    assert decode_frame(ipv4(tcp(), ihl=ihl), RAW) == (Verdict.BAD_IP_HEADER, None)


@pytest.mark.parametrize(("total", "verdict"), [(1, 6), (19, 6), (20, 7), (39, 7), (40, 0)])
def test_ipv4_total_length_too_short(decode_frame: Decode, total: int, verdict: int) -> None:
    for linktype, head in ((RAW, b""), (ETHERNET, MACS + b"\x08\x00")):
        assert decode_frame(head + ipv4(tcp(), total=total), linktype)[0] == verdict
    assert decode_frame(ipv4(tcp(), options=bytes(8), total=27), RAW) == (Verdict.BAD_IP_HEADER, None)


def test_ipv4_without_length_and_without_room(decode_frame: Decode) -> None:
    assert decode_frame(ipv4(tcp()[:12], total=0), RAW) == (Verdict.BAD_TCP_HEADER, None)
    assert decode_frame(ipv4(b"", total=0), RAW) == (Verdict.BAD_TCP_HEADER, None)
    assert decode_frame(ipv4(b"", total=0), RAW, 100) == (Verdict.TRUNCATED, None)


@pytest.mark.parametrize("fragment", [0x2000, 0x6000, 0x0001, 0x1FFF, 0x2001, 0x1000])
def test_ipv4_fragments(decode_frame: Decode, fragment: int) -> None:
    for head, linktype in ((b"", RAW), (MACS + b"\x08\x00", ETHERNET)):
        assert decode_frame(head + ipv4(tcp(), fragment=fragment), linktype) == (Verdict.FRAGMENT, None)
        assert decode_frame(head + ipv4(tcp(), fragment=fragment, protocol=17), linktype) == (Verdict.FRAGMENT, None)


@pytest.mark.parametrize("fragment", [0, 0x4000, 0x8000, 0xC000])
def test_ipv4_bits_that_make_no_fragment(decode_frame: Decode, fragment: int) -> None:
    frame = MACS + b"\x08\x00" + ipv4(tcp(), fragment=fragment)
    assert decode_frame(frame, ETHERNET) == expected(frame)


def authentication(following: int, words: int = 4) -> bytes:
    """An authentication header (RFC 4302 2) of 4 * (words + 2) bytes."""
    return bytes((following, words)).ljust((words + 2) * 4, b"\x77")


@pytest.mark.parametrize("words", [0, 1, 4, 255])
def test_ipv4_authentication_header(decode_frame: Decode, words: int) -> None:
    for options, heads in ((b"", 1), (bytes(8), 1), (b"", 3)):
        headers = authentication(51, words) * (heads - 1) + authentication(6, words)
        for linktype, link in ((RAW, b""), (ETHERNET, MACS + b"\x08\x00")):
            frame = link + ipv4(headers + tcp(), options=options, protocol=51)
            assert decode_frame(frame, linktype) == expected(frame)
            assert decode_frame(frame + b"\0" * 9, linktype) == expected(frame)
            for length in range(len(frame) - len(PAYLOAD)):
                assert decode_frame(frame[:length], linktype) == (Verdict.TRUNCATED, None)


def test_ipv4_authentication_headers_that_hold_no_tcp(decode_frame: Decode) -> None:
    for following in (0, 17, 43, 50, 59, 60, 255):
        assert decode_frame(ipv4(authentication(following) + tcp(), protocol=51), RAW) == (Verdict.NOT_TCP, None)
    for total, verdict in ((20 + 7, 6), (20 + 23, 6), (20 + 24, 7), (20 + 24 + 19, 7)):  # beyond the packet; too little for TCP behind it
        assert decode_frame(ipv4(authentication(6) + tcp(), protocol=51, total=total), RAW) == (Verdict(verdict), None)
    assert decode_frame(ipv4(authentication(51, 0) * 8000, protocol=51, total=0), RAW) == (Verdict.BAD_IP_HEADER, None)
    assert decode_frame(ipv4(authentication(51, 0) * 8000, protocol=51, total=0), RAW, 1 << 17) == (Verdict.TRUNCATED, None)


def test_checksum_behind_an_ipv4_authentication_header(decode_frame: Decode) -> None:
    """RFC 4302 does not change it: the pseudo-header names TCP."""
    frame = ipv4(authentication(6) + summed(tcp(), SRC4, DST4), protocol=51)
    assert decode_frame(frame, RAW, None, True) == expected(frame)
    assert decode_frame(frame[:-1] + b"\0", RAW, None, True) == BAD_CHECKSUM


def test_an_ipv4_packet_within_an_authentication_header(decode_frame: Decode) -> None:
    frame = ipv4(authentication(4) + ipv4(tcp()), protocol=51)
    assert decode_frame(frame, RAW) == expected(frame, tunnels=1)
    frame = ipv4(authentication(41) + ipv6(tcp()), protocol=51)
    assert decode_frame(frame, RAW) == expected(frame, ip=6, tunnels=1)


# IPv6.

HEADERS = {0: "hop-by-hop", 43: "routing", 60: "destination", 135: "mobility", 139: "hip", 140: "shim6"}


@pytest.mark.parametrize("words", [0, 1, 5, 255])
@pytest.mark.parametrize("kind", HEADERS, ids=HEADERS.values())
def test_ipv6_extension_headers(decode_frame: Decode, kind: int, words: int) -> None:
    packets = ipv6(extension(6, words, b"\0\0") + tcp(), next_header=kind)
    for linktype, head in ((RAW, b""), (ETHERNET, MACS + b"\x86\xdd")):
        frame = head + packets
        assert decode_frame(frame, linktype) == expected(frame, ip=6)
        assert decode_frame(frame + b"\0" * 9, linktype) == expected(frame, ip=6)
        for length in range(len(frame) - len(PAYLOAD)):
            assert decode_frame(frame[:length], linktype) == (Verdict.TRUNCATED, None)


@pytest.mark.parametrize("words", [0, 1, 4, 255])
def test_ipv6_authentication_header(decode_frame: Decode, words: int) -> None:
    frame = ipv6(authentication(6, words) + tcp(), next_header=51)
    assert decode_frame(frame, IPV6) == expected(frame, ip=6)
    for length in range(len(frame) - len(PAYLOAD)):
        assert decode_frame(frame[:length], IPV6) == (Verdict.TRUNCATED, None)


def test_ipv6_all_headers_in_any_order(decode_frame: Decode) -> None:
    for order in itertools.permutations((0, 43, 44, 51, 60)):
        body = b""
        for kind, following in zip(order, (*order[1:], 6), strict=True):
            body += authentication(following) if kind == 51 else bytes((following, 0)).ljust(8, b"\0")
        frame = ipv6(body + tcp(), next_header=order[0])
        assert decode_frame(frame, IPV6) == expected(frame, ip=6)


@pytest.mark.parametrize("field", [0x0008, 0x0001, 0xFFF8, 0x0009])
def test_ipv6_fragments(decode_frame: Decode, field: int) -> None:
    frame = ipv6(struct.pack("!BBHI", 6, 0, field, 7) + tcp(), next_header=44)
    assert decode_frame(frame, IPV6) == (Verdict.FRAGMENT, None)
    assert decode_frame(ipv6(extension(44) + frame[40:], next_header=60), IPV6) == (Verdict.FRAGMENT, None)


@pytest.mark.parametrize("reserved", [0, 2, 4, 6])
def test_ipv6_atomic_fragment_is_whole(decode_frame: Decode, reserved: int) -> None:
    frame = ipv6(struct.pack("!BBHI", 6, 0xEE, reserved, 7) + tcp(), next_header=44)
    assert decode_frame(frame, IPV6) == expected(frame, ip=6)


@pytest.mark.parametrize("kind", [17, 50, 58, 59, 4, 41, 255])
def test_ipv6_other_protocols(decode_frame: Decode, kind: int) -> None:
    assert decode_frame(ipv6(tcp(), next_header=kind), IPV6) == (Verdict.NOT_TCP, None)
    assert decode_frame(ipv6(extension(kind) + tcp(), next_header=0), IPV6) == (Verdict.NOT_TCP, None)
    assert decode_frame(ipv6(b"", next_header=kind), IPV6) == (Verdict.NOT_TCP, None)


def test_ipv6_headers_beyond_the_packet(decode_frame: Decode) -> None:
    assert decode_frame(ipv6(extension(6, 3) + tcp(), next_header=60, length=31), IPV6) == (Verdict.BAD_IP_HEADER, None)
    assert decode_frame(ipv6(extension(6) + tcp(), next_header=60, length=7), IPV6) == (Verdict.BAD_IP_HEADER, None)
    assert decode_frame(ipv6(extension(60, 255)[:40], next_header=60), IPV6) == (Verdict.BAD_IP_HEADER, None)
    assert decode_frame(ipv6(extension(6) + tcp(), next_header=60, length=8 + 19), IPV6) == (Verdict.BAD_TCP_HEADER, None)


def test_ipv6_jumbogram(decode_frame: Decode) -> None:
    body = tcp(bytes(70_000))
    frame = ipv6(bytes((6, 0, 0xC2, 4)) + struct.pack("!I", len(body) + 8) + body, next_header=0, length=0)
    assert decode_frame(frame, IPV6) == expected(frame, ip=6, payload=bytes(70_000), offset=68)
    assert decode_frame(frame[:100], IPV6, len(frame)) == expected(frame, ip=6, payload=bytes(32), on_wire=70_000, offset=68)


def test_ipv6_length_beyond_the_frame_is_a_gap_only_where_the_frame_was_cut(decode_frame: Decode) -> None:
    frame = ipv6(tcp(), length=1000)
    assert decode_frame(frame, IPV6, 1040) == expected(frame, ip=6, on_wire=980)
    assert decode_frame(frame, IPV6, len(frame)) == expected(frame, ip=6)


@pytest.mark.parametrize("version", [0, 4, 5, 7, 15])
def test_ip_versions(decode_frame: Decode, version: int) -> None:
    assert decode_frame(MACS + b"\x86\xdd" + ipv6(tcp(), version=version), ETHERNET) == (Verdict.BAD_IP_HEADER, None)
    if version != 4:
        assert decode_frame(MACS + b"\x08\x00" + ipv4(tcp(), version=version), ETHERNET) == (Verdict.BAD_IP_HEADER, None)


# TCP.


@pytest.mark.parametrize("ip", [4, 6])
@pytest.mark.parametrize("words", range(16))
def test_tcp_data_offset(decode_frame: Decode, ip: int, words: int) -> None:
    for linktype, head in ((RAW, b""), (ETHERNET, MACS + (b"\x08\x00" if ip == 4 else b"\x86\xdd"))):
        frame = head + packet(ip, tcp(options=b"\1" * (4 * max(words - 5, 0)), data_offset=words))
        if words < 5:
            assert decode_frame(frame, linktype) == (Verdict.BAD_TCP_HEADER, None)
        else:
            assert decode_frame(frame, linktype) == expected(frame, ip=ip)
            beyond = head + packet(ip, frame[-len(PAYLOAD) - 4 * words : -len(PAYLOAD)][:-1]) + b"\0"
            assert decode_frame(beyond, linktype) == (Verdict.BAD_TCP_HEADER, None)


@pytest.mark.parametrize("ip", [4, 6])
def test_a_whole_packet_with_too_little_for_tcp(decode_frame: Decode, ip: int) -> None:
    for length in range(20):
        assert decode_frame(packet(ip, tcp()[:length]), RAW) == (Verdict.BAD_TCP_HEADER, None)
        assert decode_frame(MACS + (b"\x08\x00" if ip == 4 else b"\x86\xdd") + packet(ip, tcp()[:length]) + bytes(40), ETHERNET)[0] == 7


@pytest.mark.parametrize("flags", range(256))
def test_every_combination_of_flags(decode_frame: Decode, flags: int) -> None:
    frame = bytearray(MACS + b"\x08\x00" + ipv4(tcp()))
    frame[14 + 20 + 13] = flags
    _, segment = decode_frame(bytes(frame), ETHERNET)
    assert segment is not None
    assert segment.flags == flags


def test_numbers_at_their_ends(decode_frame: Decode) -> None:
    for ends in (b"\0" * 12, b"\xff" * 12):
        frame = MACS + b"\x08\x00" + ipv4(ends + b"\x50\0" + ends[:2] + b"\0\0" + ends[:2])
        _, segment = decode_frame(frame, ETHERNET)
        assert segment is not None
        limit = 2**32 - 1 if ends[0] else 0
        assert segment[2:9] == (limit & 0xFFFF, limit & 0xFFFF, limit, limit, 0, limit & 0xFFFF, limit & 0xFFFF)


@pytest.mark.parametrize("wire_length", [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 2**80])
def test_a_length_that_only_the_frame_tells_is_believed_up_to_a_megabyte(decode_frame: Decode, wire_length: int) -> None:
    for frame, ip in ((ipv4(tcp(), total=0), 4), (ipv6(tcp(), length=0), 6)):
        assert decode_frame(frame, RAW, wire_length) == expected(frame, ip=ip, on_wire=len(PAYLOAD))
        headers = len(frame) - len(PAYLOAD)
        at_most = 2**20 + (40 if ip == 6 else 0)  # IPv6 counts from behind its header
        assert decode_frame(frame, RAW, at_most) == expected(frame, ip=ip, on_wire=at_most - headers)
        assert decode_frame(frame, RAW, at_most + 1) == expected(frame, ip=ip, on_wire=len(PAYLOAD))
    frame = ipv4(tcp())
    assert decode_frame(frame, RAW, wire_length) == expected(frame)
    assert decode_frame(frame, RAW, -wire_length) == expected(frame)


# Checksums.


def one_complement_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for high, low in itertools.zip_longest(data[::2], data[1::2], fillvalue=0):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total


def summed(body: bytes, src: bytes, dst: bytes) -> bytes:
    """The segment with the right checksum."""
    blank = body[:16] + b"\0\0" + body[18:]
    return body[:16] + struct.pack("!H", 0xFFFF ^ one_complement_sum(src + dst + struct.pack("!II", len(body), 6) + blank)) + body[18:]


ADDRESSES = {4: (SRC4, DST4), 6: (SRC6, DST6)}
BAD_CHECKSUM = (Verdict.BAD_CHECKSUM, None)


@pytest.mark.parametrize("ip", [4, 6])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 1459, 1460, 65_000])
def test_checksum(decode_frame: Decode, ip: int, length: int) -> None:
    payload = bytes(i * 7 & 255 for i in range(length))
    body = summed(tcp(payload, options=b"\1\1\1\1"), *ADDRESSES[ip])
    ethertype = b"\x08\x00" if ip == 4 else b"\x86\xdd"
    for linktype, head in ((RAW, b""), (ETHERNET, MACS + ethertype)):
        frame = head + packet(ip, body)
        headers = len(frame) - length
        want = expected(frame, ip=ip, payload=payload, offset=headers)
        assert decode_frame(frame, linktype, None, True) == want
        assert decode_frame(frame + b"\x55" * 7, linktype, None, True) == want
        for at in {headers - 24, headers - 9, headers - 1, len(frame) - 1, *range(headers, len(frame), 997)}:
            wrong = bytearray(frame)
            wrong[at] ^= 0x10
            assert decode_frame(bytes(wrong), linktype, None, True) == BAD_CHECKSUM
            assert decode_frame(bytes(wrong), linktype, None, False)[0] == Verdict.SEGMENT
            if at < len(frame) - 1:  # cut by the capture: it cannot be checked, and passes
                assert decode_frame(bytes(wrong[:-1]), linktype, len(frame), True)[0] == (Verdict.SEGMENT if length else Verdict.TRUNCATED)


@pytest.mark.parametrize("ip", [4, 6])
def test_checksum_covers_the_addresses(decode_frame: Decode, ip: int) -> None:
    frame = packet(ip, summed(tcp(), *ADDRESSES[ip]))
    for at in range(12 if ip == 4 else 8, 20 if ip == 4 else 40):
        wrong = bytearray(frame)
        wrong[at] ^= 1
        assert decode_frame(bytes(wrong), RAW, None, True) == BAD_CHECKSUM


@pytest.mark.parametrize("ip", [4, 6])
def test_checksum_of_all_zeros_and_all_ones(decode_frame: Decode, ip: int) -> None:
    """A sum of zero is written 0xffff or 0x0000, and both are right to a receiver (RFC 1071 1: the sum is all ones)."""
    body = tcp(b"\0\0")
    rest = one_complement_sum(ADDRESSES[ip][0] + ADDRESSES[ip][1] + struct.pack("!II", len(body), 6) + body)
    zero = body[:20] + struct.pack("!H", 0xFFFF ^ rest)
    for checksum in (b"\0\0", b"\xff\xff"):
        frame = packet(ip, zero[:16] + checksum + zero[18:])
        assert decode_frame(frame, RAW, None, True) == expected(frame, ip=ip, payload=zero[20:], offset=len(frame) - 2)


def test_checksum_under_offloading_without_length(decode_frame: Decode) -> None:
    payload = bytes(range(256)) * 300
    for ip in (4, 6):
        body = summed(tcp(payload), *ADDRESSES[ip])
        frame = ipv4(body, total=0) if ip == 4 else ipv6(body, length=0)
        assert decode_frame(frame, RAW, None, True) == expected(frame, ip=ip, payload=payload)
        assert decode_frame(frame, RAW, len(frame) + 1, True)[0] == Verdict.SEGMENT
        assert decode_frame(frame[:-1] + b"\0", RAW, None, True) == BAD_CHECKSUM


def test_checksum_behind_ipv6_headers(decode_frame: Decode) -> None:
    body = summed(tcp(), SRC6, DST6)
    for words in (0, 2):
        frame = ipv6(extension(6, words) + body, next_header=60)
        assert decode_frame(frame, IPV6, None, True) == expected(frame, ip=6)
        assert decode_frame(frame[:-1] + b"\0", IPV6, None, True) == BAD_CHECKSUM


def test_checksum_with_a_route_still_to_go_passes(decode_frame: Decode) -> None:
    """RFC 8200 8.1: it is over the last address of the route, which the header has not as its destination yet."""
    body = summed(tcp(), SRC6, bytes(16))
    for segments_left in (0, 1, 255):
        frame = ipv6(bytes((6, 2, 0, segments_left)) + bytes(20) + body, next_header=43)
        assert decode_frame(frame, IPV6, None, True) == (expected(frame, ip=6) if segments_left else BAD_CHECKSUM)


# Callers.


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(decode_frame: Decode, kind: Callable[[bytes], bytes]) -> None:
    frame = MACS + b"\x08\x00" + ipv4(tcp())
    assert decode_frame(kind(frame), ETHERNET) == expected(frame)
    assert decode_frame(memoryview(b"\0" + frame)[1:], ETHERNET) == expected(frame)
    assert decode_frame(memoryview(frame[::-1])[::-1], ETHERNET) == expected(frame)
    assert decode_frame(memoryview(frame + b"\0" * (-len(frame) % 4)).cast("I"), ETHERNET) == expected(frame)


@pytest.mark.parametrize("frame", [None, 5, "text", [1, 2, 3], 1.5])
def test_what_is_no_buffer(frame: object) -> None:
    texts = set()
    for core in CORES:
        with pytest.raises(TypeError) as raised:
            load(core)(frame, ETHERNET)
        texts.add(str(raised.value))
    assert len(texts) == 1


def test_results_have_the_shared_types(decode_frame: Decode) -> None:
    verdict, segment = decode_frame(MACS + b"\x08\x00" + ipv4(tcp()), ETHERNET)
    assert type(verdict) is Verdict
    assert type(segment) is Segment
    assert [type(field) for field in segment] == [bytes] * 2 + [int] * 12
    assert type(decode_frame(b"", ETHERNET)[0]) is Verdict


def test_every_verdict_has_its_number(decode_frame: Decode) -> None:
    wrong = ipv4(tcp())
    frames = {
        Verdict.SEGMENT: (RAW, ipv4(tcp()), False),
        Verdict.UNKNOWN_LINKTYPE: (77, ipv4(tcp()), False),
        Verdict.NOT_IP: (*NO_IP["arp"], False),
        Verdict.NOT_TCP: (RAW, ipv4(tcp(), protocol=17), False),
        Verdict.FRAGMENT: (RAW, ipv4(tcp(), fragment=1), False),
        Verdict.TRUNCATED: (RAW, wrong[:30], False),
        Verdict.BAD_IP_HEADER: (RAW, ipv4(tcp(), ihl=4), False),
        Verdict.BAD_TCP_HEADER: (RAW, ipv4(tcp(data_offset=4)), False),
        Verdict.BAD_CHECKSUM: (RAW, wrong, True),
    }
    assert list(frames) == list(Verdict)
    for verdict, (linktype, frame, verify) in frames.items():
        assert decode_frame(frame, linktype, None, verify)[0] is verdict


# Both cores on anything.

INNER_4 = (
    ipv4(summed(tcp(), SRC4, DST4)),
    ipv4(tcp(b"xyz", options=b"\1" * 12), options=b"\1" * 8),
    ipv4(authentication(51, 0) + authentication(6, 1) + tcp(), protocol=51),
)
INNER_6 = (
    ipv6(summed(tcp(), SRC6, DST6)),
    ipv6(extension(44) + bytes((51, 0)) + bytes(6) + authentication(6, 1) + tcp(), next_header=0),
)
SEEDS: list[tuple[int, bytes]] = [
    *(
        (link.linktype, head + inner)
        for link in LINKS
        for head, inners in ((link.v4, INNER_4), (link.v6, INNER_6))
        if head is not None
        for inner in inners
    ),
    *NO_IP.values(),
]  # fmt: skip
BYTES = st.integers(0, 255) | st.sampled_from((0, 4, 6, 43, 44, 51, 60, 0x45, 0x60, 0x81, 0xFF))
WIRE_LENGTHS = st.none() | st.integers(-1, 200) | st.sampled_from((1514, 65_535, 2**31, 2**64))


def agree(frame: bytes, linktype: int, wire_length: int | None, verify: bool) -> None:
    pure, compiled = (load(core)(frame, linktype, wire_length, verify) for core in CORES)
    assert pure == compiled
    verdict, segment = pure
    assert (verdict == Verdict.SEGMENT) == (segment is not None)
    if segment is not None:
        assert 0 <= segment.payload_length <= segment.wire_payload_length < 2**31
        assert 40 <= segment.payload_offset <= segment.payload_offset + segment.payload_length <= len(frame)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=150), st.sampled_from((*LINKTYPES, 77, -1)), WIRE_LENGTHS, st.booleans())
def test_cores_agree_on_random_bytes(frame: bytes, linktype: int, wire_length: int | None, verify: bool) -> None:
    agree(frame, linktype, wire_length, verify)


@settings(max_examples=3000, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 130), BYTES), max_size=6),
    st.integers(0, 200),
    st.binary(max_size=8),
    WIRE_LENGTHS,
    st.booleans(),
)
def test_cores_agree_on_mutated_frames(
    seed: tuple[int, bytes], changes: list[tuple[int, int]], cut: int, tail: bytes, wire_length: int | None, verify: bool
) -> None:
    linktype, original = seed
    frame = bytearray(original)
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    agree(bytes(frame[: len(frame) - cut] if cut < len(frame) else frame) + tail, linktype, wire_length, verify)


def test_cores_agree_on_every_byte_changed() -> None:
    """Each header byte of each seed set to what is likely to matter, and each of its bits turned."""
    decoders = [load(core) for core in CORES]
    for linktype, original in SEEDS:
        for at in range(min(len(original), 130)):
            for value in {0, 1, 0x2F, 0x40, 0x50, 0x7F, 0x80, 0xF0, 0xFF, *(original[at] ^ (1 << bit) for bit in range(8))}:
                frame = original[:at] + bytes((value,)) + original[at + 1 :]
                verify = value & 1 == 0
                pure, compiled = (decode(frame, linktype, None, verify) for decode in decoders)
                assert pure == compiled, (linktype, frame.hex(), verify)


BEYOND = """
import ctypes, json, mmap, sys
from tcpreasm._compiled.decode import decode_frame
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
if libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0):
    sys.exit(f"mprotect: {ctypes.get_errno()}")
view = memoryview(memory)
count = 0
for linktype, text in json.load(sys.stdin):
    frame = bytes.fromhex(text)
    for length in range(len(frame) + 1):
        view[page - length : page] = frame[:length]
        for wire_length in (None, 2000):
            for verify in (False, True):
                decode_frame(view[page - length : page], linktype, wire_length, verify)
                count += 1
print(count)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="memory protection by mprotect")
def test_nothing_behind_the_frame_is_read() -> None:
    """Frames end where readable memory ends: one byte further, and the child process dies of it."""
    frames = [(linktype, frame.hex()) for linktype, frame in SEEDS]
    frames += [(linktype, frame.hex()) for linktype in LINKTYPES for frame in (b"\0" * 80, b"\xff" * 80, b"\x45" * 80, b"\x60" * 80)]
    frames += [(RADIOTAP, (bytes((0, 0, length, 0)) + b"\xff" * (length - 4)).hex()) for length in range(8, 40)]
    frames += [(RADIOTAP, (bytes((0, 0, length, 0, flags)) + b"\0" * (length - 5)).hex()) for length in range(8, 40) for flags in (2, 3)]
    child = subprocess.run([sys.executable, "-c", BEYOND], input=json.dumps(frames), capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    assert int(child.stdout) == sum((len(text) // 2 + 1) * 4 for _, text in frames)


# Real captures.


def test_cores_agree_on_the_corpus(corpus: Path) -> None:
    from tcpreasm.capture import open_capture
    from tcpreasm.errors import CaptureError

    pure, compiled = (load(core) for core in CORES)
    frames = captures = segments = 0
    for path in sorted(p for p in corpus.rglob("*") if p.is_file() and p.suffix not in (".json", ".tsv", ".md", ".txt", ".py")):
        try:
            capture = open_capture(path)
        except CaptureError:
            continue
        with capture:
            captures += 1
            for frame in capture:
                frames += 1
                for verify in (False, True):
                    got = pure(frame.data, frame.linktype, frame.wire_length, verify)
                    assert got == compiled(frame.data, frame.linktype, frame.wire_length, verify), (path, frames)
                segments += got[0] == Verdict.SEGMENT
    assert captures > 150
    assert frames > 100_000
    assert segments > 50_000
