"""Packets and captures made by hand, and what the corpus says of its own: for tests that need more than tests/data holds.

Lives here: builders only, no test. Ethernet, IPv4 or IPv6, TCP; checksums are left at zero.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FIN, SYN, RST, ACK = 1, 2, 4, 16
START_NS = 1_700_000_000_000_000_000

Address = tuple[str, int]
Record = tuple[int, bytes]  # nanoseconds, frame


def frame(src: Address, dst: Address, seq: int, payload: bytes = b"", flags: int = ACK, ack: int = 1) -> bytes:
    """One Ethernet frame with one TCP segment."""
    source, target = ipaddress.ip_address(src[0]), ipaddress.ip_address(dst[0])
    tcp = struct.pack("!HHIIBBHHH", src[1], dst[1], seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 4, flags, 65535, 0, 0) + payload
    if source.version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
        kind = b"\x08\x00"
    else:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64)
        kind = b"\x86\xdd"
    return bytes(12) + kind + ip + source.packed + target.packed + tcp


def pcap(records: Iterable[Record]) -> bytes:
    """A capture file, in nanoseconds."""
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)]
    for ns, data in records:
        parts.append(struct.pack("<IIII", ns // 10**9, ns % 10**9, len(data), len(data)) + data)
    return b"".join(parts)


class Talk:
    """One connection, packet by packet, a millisecond apart: each call appends to `records`."""

    def __init__(self, client: Address = ("10.0.0.1", 40000), server: Address = ("10.0.0.2", 80), start_ns: int = START_NS) -> None:
        self.ends = client, server
        self.seqs = [1000, 5000]
        self.now_ns = start_ns
        self.records: list[Record] = []

    def send(self, side: int, payload: bytes, flags: int) -> Talk:
        """One segment. Acknowledges all that the other side has sent, lost or not."""
        ack = self.seqs[1 - side] if flags & ACK else 0
        self.records.append((self.now_ns, frame(self.ends[side], self.ends[1 - side], self.seqs[side], payload, flags, ack)))
        self.now_ns += 1_000_000
        return self

    def open(self) -> Talk:
        for side, flags in ((0, SYN), (1, SYN | ACK)):
            self.send(side, b"", flags)
            self.seqs[side] += 1
        return self

    def say(self, side: int, payload: bytes, lost: bool = False) -> Talk:
        """Side 0 (the client) or 1 sends; or it is lost before it is captured."""
        if not lost:
            self.send(side, payload, ACK)
        self.seqs[side] += len(payload)
        return self

    def close(self, *sides: int) -> Talk:
        for side in sides or (0, 1):
            self.send(side, b"", FIN | ACK)
            self.seqs[side] += 1
        return self


# The corpus: each case is a capture and what each direction must give.

Ends = tuple[Address, Address]


class Expected(NamedTuple):
    """One direction: what the applications wrote, as far as the capture holds it."""

    length: int
    sha256: str
    gaps: tuple[tuple[int, int], ...] | None
    """None: not told."""


_WAITS_FOR_LATER = ("ipfrag_atB", "vxlan_inner", "vxlan_outer", "pk_gre")  # need defragmentation or decapsulation
_LENGTHS_ONLY = "snap96"


def corpus_cases(corpus: Path) -> Iterator[tuple[Path, dict[Ends, list[Expected]]]]:
    """The kernel's and the perturbed captures, but those that need fragments or tunnels."""
    for truth_file in sorted((corpus / "kernel").glob("*/truth.json")):
        truth = json.loads(truth_file.read_text())
        for capture in sorted(truth_file.parent.glob("*.pcap")):
            if capture.stem not in _WAITS_FOR_LATER and capture.stem != _LENGTHS_ONLY:
                yield capture, _directions(truth["connections"], None)
    for truth_file in sorted((corpus / "perturbed").glob("*.json")):
        if truth_file.stem in _WAITS_FOR_LATER:
            continue
        truth = json.loads(truth_file.read_text())
        (capture,) = (path for path in truth_file.parent.glob(f"{truth_file.stem}.*") if path != truth_file)
        yield capture, _directions(truth["connections"], "first")


def _directions(connections: list[dict[str, Any]], column: str | None) -> dict[Ends, list[Expected]]:
    directions: dict[Ends, list[Expected]] = {}
    for connection in connections:
        client, server = tuple(connection["client"]), tuple(connection["server"])
        for ends, name in (((client, server), "c2s"), ((server, client), "s2c")):
            truth = connection[name]
            counted = truth[column] if column else truth
            gaps = tuple((offset, length) for offset, length in truth["gaps"]) if column else None
            directions.setdefault(ends, []).append(Expected(counted["len"], counted["sha256"], gaps))
    return directions


def without_start(gaps: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Gaps as they look where the start was not captured: the first one is not known, and nothing counts from before it."""
    if not gaps or gaps[0][0]:
        return gaps
    return tuple((offset - gaps[0][1], length) for offset, length in gaps[1:])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
