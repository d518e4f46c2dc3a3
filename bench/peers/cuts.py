"""Smaller captures for slow peers: the first packets of a capture, or all packets of some of its connections.

Lives here: cutting, and counting what is left in order to check it. Runs once a capture and size; cuts are kept beside the captures.
Only what bench.captures writes is understood: pcap in little-endian, Ethernet, IPv4 without options, nothing but TCP.
"""

from __future__ import annotations

import mmap
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..captures import Capture

__all__ = ["Sample", "cut", "whole"]

FILE_HEADER_BYTES = 24
RECORD_HEADER_BYTES = 16
SYN = 2
HALF, MASK = 1 << 31, (1 << 32) - 1

SET_UP_FIRST = frozenset({"manyflows"})
"""Captures that open all connections before they carry much: their first packets would show nothing but that, so connections are chosen."""

_record = struct.Struct("<IIII").unpack_from
_flow = struct.Struct(">IIHH").unpack_from  # addresses and ports, from byte 26 of the frame on
_segment = struct.Struct(">IIBB").unpack_from  # sequence number, acknowledgment, data offset, flags, from byte 38 on


@dataclass(frozen=True)
class Sample:
    """A capture as a peer gets it, and what a reassembler must get out of it."""

    path: Path
    workload: str
    packets: int
    connections: int
    bytes_present: int
    """Those of the streams that the file holds."""
    bytes_sent: int
    """The same and the holes between them; in a whole capture those at the end too."""
    capture: Capture
    """What it is, or was cut from."""
    part: str = ""
    """What was cut away, in words; nothing: the whole capture."""


def whole(capture: Capture) -> Sample:
    """All of it; the totals are those that were worked out when it was made."""
    return Sample(capture.path, capture.name, capture.packets, capture.connections, capture.bytes_present, capture.bytes_sent, capture)


def cut(capture: Capture, packets: int) -> Sample:
    """At most about so many packets of a capture; all of it where it has no more."""
    if capture.packets <= packets:
        return whole(capture)
    if capture.name in SET_UP_FIRST:
        share = -(-capture.packets // packets)
        path = capture.path.with_name(f"{capture.name}.one-in-{share}.cut")
        part = f"one connection in {share}"
    else:
        share = 0
        path = capture.path.with_name(f"{capture.name}.first-{packets}.cut")
        part = f"first {packets:,} packets"
    if not path.exists() or path.stat().st_mtime < capture.path.stat().st_mtime:
        _write(capture.path, path, share, packets)
    return replace(_count(path, capture), part=part)


class _Packet(NamedTuple):
    record: memoryview
    flow: tuple[int, int, int, int]
    seq: int
    flags: int
    size: int


def _packets(path: Path) -> Iterator[_Packet]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        at, end = FILE_HEADER_BYTES, len(data)
        while at < end:
            frame = at + RECORD_HEADER_BYTES
            following = frame + _record(data, at)[2]
            seq, _, offset, flags = _segment(data, frame + 38)
            with data[at:following] as record:
                yield _Packet(record, _flow(data, frame + 26), seq, flags, following - frame - 34 - (offset >> 4) * 4)
            at = following


def _write(source: Path, path: Path, share: int, packets: int) -> None:
    part = path.with_suffix(".part")
    with source.open("rb") as file:
        head = file.read(FILE_HEADER_BYTES)
    with part.open("wb") as file:
        file.write(head)
        for packet in _packets(source) if share else islice(_packets(source), packets):
            if not share or hash(frozenset((packet.flow[::2], packet.flow[1::2]))) % share == 0:
                file.write(packet.record)
    part.replace(path)


def _count(path: Path, capture: Capture) -> Sample:
    """Joins every direction's intervals: slow and plain, so that it is right."""
    packets = 0
    connections = set()
    starts: dict[tuple[int, ...], int] = {}
    pieces: defaultdict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for packet in _packets(path):
        packets += 1
        source, destination, source_port, destination_port = packet.flow
        connections.add(frozenset(((source, source_port), (destination, destination_port))))
        start = starts.setdefault(packet.flow, packet.seq + 1 if packet.flags & SYN else packet.seq)
        if packet.size:
            place = (packet.seq - start + HALF & MASK) - HALF
            pieces[packet.flow].append((place, place + packet.size))
    present = sent = 0
    for intervals in pieces.values():
        reached = 0
        for begin, end in sorted(intervals):
            present += max(0, end - max(begin, reached))
            reached = max(reached, end)
        sent += reached
    return Sample(path, capture.name, packets, len(connections), present, sent, capture)
