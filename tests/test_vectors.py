"""Segments in, bytes out: the vectors of other engines' published tests and of a Linux endpoint, as whole frames, on both cores.

A vector tells what each direction must give (bytes, gaps, how it starts and how it ends) after all its packets and a flush. Not here: the
batteries of overlapping segments, each under every policy (test_overlap_policies).
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from recorder import ACK, BACK, ENDS, FIN, PSH, RST, SYN, URG, Call, Ends, Rig, checksum, key_of

Vector = dict[str, Any]
Item = bytes | int  # bytes, or how many are missing

DIRECTIONS: dict[str, Ends] = {"c2s": ENDS, "s2c": BACK}
FLAGS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG}

# A vector's option, and the keyword of AssemblerOptions that stands for it. None: what it asks for is what this package always does.
KEYWORDS = {
    "overlap": "overlap",
    "checksum": "verify_checksums",
    "midstream": "start_wait_segments",
    "syn_data": "syn_data",
    "urgent": "urgent",
    "paws": "paws",
    "after_rst": None,  # "drop": nothing is delivered behind a reset
    "async_oneside": None,  # a connection is one direction
}
# Its value, where that has another name here. Vista keeps the bytes that it has, always: the rule is that of "first". What a server
# accepted of a SYN's data shows in what the client sends next.
VALUES = {("checksum", "verify"): True, ("midstream", True): 1, ("overlap", "vista"): "first", ("syn_data", "tfo"): "acked"}

IDS = (
    "suri-inline-01",
    "suri-inline-03",
    "suri-inline-04",
    "suri-inline-07",
    "suri-raw-01",
    "suri-raw-03",
    "suri-raw-05",
    "suri-raw-06",
    "suri-raw-08",
    "suri-25",
    "suri-27",
    "suri-29",
    "suri-list-31",
    "suri-novak-bsd-wrap",
    "suri-novak-vista-wrap",
    "suri-novak-linux-wrap",
    "suri-novak-old-linux-wrap",
    "suri-novak-solaris-wrap",
    "suri-novak-last-wrap",
    "suri-33",
    "suri-47-wrap-1byte",
    "suri-insert-01",
    "suri-sb-03",
    "suri-sb-06",
    "suri-sb-10",
    "suri-tcp-05-midstream",
    "suri-tcp-08-paws-ok",
    "suri-tcp-11-async-synack-missing",
    "suri-tcp-23",
    "suri-tcp-37-ooo-fin",
    "suri-tcp-42-synack-queue",
    "sv-exact-overlap-old-linux",
    "sv-partial-overlap",
    "sv-leading-gap",
    "sv-urg-oob",
    "sv-urg-2byte",
    "sv-rst-unacked-03-gap",
    "sv-rst-unacked-07-gap",
    "sv-rst-data-02",
    "sv-3286-03-windows",
    "sv-split-hs-01",
    "sv-tfo-06",
    "sv-tfo-11-rejected",
    "sv-http-gap-double",
    "sv-http-gap-body",
    "sv-http-async-srv",
    "sv-7264-fin-rexmit",
    "sv-tcp-async-01",
    "zeek-miss-end",
    "zeek-missing-syn",
    "zeek-hs-reorder",
    "zeek-payload-synack",
    "zeek-syn-bad-checksum",
    "zeek-wscale-range",
    "zeek-bigtransfer",
    "smol-front-overlap-split",
    "smol-both-overlap",
    "smol-join-two-rev",
    "smol-issue-694",
    "smol-too-many-holes",
    "gop-reemit",
    "gop-fsm-early-rst",
    "ins-data-no-ack-flag",
    "ins-data-paws-old-ts",
    "ins-data-missing-ts",
    "ins-data-ack-far-old",
    "ins-data-syn-flag",
    "ins-data-urg-urp0",
    "ins-data-urg-urp2",
    "ins-data-xmas",
    "ins-data-badopt-len0",
    "ins-data-left-of-window",
    "ins-data-right-of-window",
    "ins-rst-inwindow+1",
    "ins-rst-old",
    "ins-rst-far",
    "ins-rst-bad-checksum",
    "ins-rst-bad-ack",
    "ins-fin-no-ack",
    "ins-fin-future",
    "ins-fin-paws-old",
    "ins-syn-in-window",
    "ins-syn-far",
    "ins-fin-then-data",
    "ins-fin-ooo-then-fill",
    "ins-rst-with-data",
    "ins-keepalive-0byte",
    "ins-oob-1byte",
    "ins-oob-mid",
    "ins-overlap-inorder-partial",
)
LEFT_OUT = {
    "smol-too-many-holes": "refuses what would make one island too many; here a limit gives up the lowest hole instead",
    "sv-exact-overlap-old-linux": "only what was acknowledged is final: needs the other direction's acknowledgements",
    "zeek-missing-syn": "no SYN was captured, the start is known from the acknowledgement in the other direction's SYN",
    "ins-data-right-of-window": "the window that the other direction advertised decides, not a limit of the reader's",
}
# Holes that are given up by time between the packets, as a vector asks: before what is held spans 2**31 bytes. And the options for that.
WHILE_READING: dict[str, dict[str, Any]] = {"zeek-bigtransfer": {"max_gap": None}}


class Told(NamedTuple):
    """What came of one direction."""

    streams: int
    start: str
    """"syn", or "unknown": how many bytes came before is not known; or "known": they are, though no SYN was seen."""
    items: list[Item]
    closed: str
    """"fin" or "rst", as the packet was that the end came with; "open": only the last flush completed it, and it is marked as no end."""


NOTHING = Told(0, "known", [], "open")  # no stream at all


@cache
def vectors(corpus: Path) -> dict[str, Vector]:
    listed: list[Vector] = json.loads((corpus / "cases" / "vectors.json").read_text())["vectors"]
    return {vector["id"]: vector for vector in listed}


def text(item: dict[str, Any]) -> bytes:
    if "pat" in item:
        rel, length = item["pat"]
        return bytes(97 + (rel - 1 + i) % 26 for i in range(length))
    return bytes.fromhex(item["hex"]) if "hex" in item else item["ascii"].encode("ascii")


def header_options(packet: dict[str, Any]) -> bytes:
    """The options of the TCP header, padded to whole words."""
    options = b""
    if "ts" in packet:
        options += struct.pack("!BBBBII", 1, 1, 8, 10, *packet["ts"])  # RFC 7323 3.2
    if "wscale" in packet.get("opts", {}):
        options += struct.pack("!BBB", 3, 3, packet["opts"]["wscale"])  # RFC 7323 2.2
    if packet.get("tfo"):
        options += struct.pack("!BB8x", 34, 10)  # RFC 7413 4.1.1
    options += bytes.fromhex(packet.get("opt_hex", ""))
    return options + bytes(-len(options) % 4)


def frame(packet: dict[str, Any]) -> bytes:
    """An Ethernet frame with the vector's segment, down to its checksum."""
    src, src_port, dst, dst_port = DIRECTIONS[packet["dir"]]
    payload = text(packet["payload"]) if "payload" in packet else b""
    options = header_options(packet)
    flags = sum(FLAGS[letter] for letter in packet["flags"])
    tcp = bytearray(struct.pack("!HHII", src_port, dst_port, packet["seq"], packet.get("ack", 0)))
    tcp += struct.pack("!BBHHH", (5 + len(options) // 4) << 4, flags, packet["win"], 0, packet.get("urp", 0)) + options + payload
    addresses = bytes(map(int, f"{src}.{dst}".split(".")))
    right = checksum(addresses + struct.pack("!HH", 6, len(tcp)) + bytes(tcp))
    struct.pack_into("!H", tcp, 16, right ^ 0x5555 if packet.get("bad_checksum") else right)
    ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + addresses)
    struct.pack_into("!H", ip, 10, checksum(bytes(ip)))
    return bytes(12) + b"\x08\x00" + bytes(ip) + bytes(tcp)


def options_of(vector: Vector) -> dict[str, Any]:
    named = {KEYWORDS[field]: VALUES.get((field, value), value) for field, value in vector["options"].items()}
    return {keyword: value for keyword, value in named.items() if keyword is not None}


def items(pieces: list[tuple[bytes, int]]) -> list[Item]:
    """Bytes and gaps of (bytes, skip), what is contiguous in one."""
    told: list[Item] = []
    for data, skip in pieces:
        if skip > 0:
            told.append(skip)
        if data:
            last = told[-1] if told else None
            if isinstance(last, bytes):
                told[-1] = last + data
            else:
                told.append(data)
    return told


def told(direction: str, steps: list[tuple[str, list[Call]]]) -> Told:
    """What one direction was given; steps: the flags of each packet, and its calls."""
    key = key_of(DIRECTIONS[direction])
    streams, closed = 0, "open"
    pieces: list[tuple[bytes, int, bool, bool, int]] = []
    for flags, calls in steps:
        for call in calls:
            if call[1] != key:
                continue
            if call[0] == "new":
                streams += 1
            elif call[0] == "reassembled":
                pieces += call[2]
            elif pieces and pieces[-1][3]:
                closed = "rst" if "R" in flags else "fin"
            else:
                assert flags == "", "a stream that has no end was completed before the last flush"
    _, skip, start, _, _ = pieces[0] if pieces else (b"", 0, False, False, 0)
    began = "syn" if start else "unknown" if skip < 0 else "known"
    return Told(streams, began, items([(data, skip) for data, skip, *_ in pieces]), closed)


def expected(direction: dict[str, Any]) -> Told:
    wanted = items([(b"", item["gap"]) if "gap" in item else (text(item), 0) for item in direction["items"]])
    # Each direction stands for itself: that the other one was reset is no end of this one.
    closed = "open" if direction["closed"] == "peer-rst" else direction["closed"]
    return Told(1, "known" if direction["start"] == "known-by-ack" else direction["start"], wanted, closed)


def test_every_vector_is_named(corpus: Path) -> None:
    assert tuple(vectors(corpus)) == IDS
    assert {*LEFT_OUT, *WHILE_READING} < set(IDS)


def test_every_option_is_known(corpus: Path) -> None:
    asked = {field for name, vector in vectors(corpus).items() if name not in LEFT_OUT for field in vector["options"]}
    assert asked == set(KEYWORDS)


@pytest.mark.parametrize("name", [name for name in IDS if name not in LEFT_OUT])
def test_vector(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    vector = vectors(corpus)[name]
    rig = Rig(tcpreasm, **options_of(vector), **WHILE_READING.get(name, {}))
    steps = []
    for packet in vector["packets"]:
        calls = rig.frame(frame(packet), at=packet["t"])
        if name in WHILE_READING:
            calls += rig.flush(packet["t"])[1]
        steps.append((packet["flags"], calls))
    steps.append(("", rig.flush_all()[1]))
    given = {direction: told(direction, steps) for direction in DIRECTIONS}
    wanted = dict.fromkeys(DIRECTIONS, NOTHING)
    wanted |= {direction: expected(expectation) for direction, expectation in vector["expect"].items()}
    also_right = wanted | {direction: expected(expectation) for direction, expectation in vector.get("expect_alt", {}).items()}
    assert given == (also_right if given == also_right else wanted)
