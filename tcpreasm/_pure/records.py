"""Capture files to frames: the reader of pcap and of pcapng.

Lives here: both formats, their old variants, the judgement where a file is damaged. Not here: opening, reading and decompressing
(capture.source), and telling which format it is (capture.files).
The loops run once per record, which is mostly one packet, and slice it out of what was read (about 1 MiB at a time).
Source: draft-ietf-opsawg-pcap, and libpcap's sf-pcap.c for the variants; draft-ietf-opsawg-pcapng, section numbers of version 02.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..clock import NS, NS_LIMIT
from ..frame import BYTE_ORDERS, HOLD_BYTES, MAX_RECORD_BYTES, PCAP_MAGICS, Frame

if TYPE_CHECKING:
    from ..capture.source import Source

__all__ = ["PcapRecords", "PcapngRecords"]


class _Records(ABC):
    """The frames of a capture file, an iterator.

    Args:
        source: where the rest comes from.
        head: what was read of it to tell the format.

    Iterating never raises for what a file contains: it ends at the damage, and `problem` tells. Errors of the reading itself
    pass through, and end it too.
    """

    _unit: str  # what the file is made of: "record", "block"

    def __init__(self, source: Source, head: bytes) -> None:
        self.packets = 0
        self.offset = -1  # of the last frame's first byte, in the decompressed file
        self.ended = False
        self._source = source
        self._fatal: str | None = None
        self._notes: dict[str, int] = {}
        self._frames = self._read(head)

    def close(self) -> None:
        """Nobody will ask for more: lets go of what was read."""
        self._frames = iter(())

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def __next__(self) -> Frame:
        return next(self._frames)

    @abstractmethod
    def _read(self, buffer: bytes) -> Iterator[Frame]:
        """The frames, from the head of the file on. Ends by _stop or _damaged."""

    @property
    def problem(self) -> str | None:
        """What was wrong, and where: None as long as nothing was. Offsets count in the decompressed bytes."""
        parts = [text if count == 1 else f"{text} ({count} times)" for text, count in self._notes.items()]
        if self._fatal is not None:
            parts.append(self._fatal)
        return "; ".join(parts) or None

    def _note(self, text: str) -> None:
        """Something that cost a packet, but not the rest of the capture."""
        self._notes[text] = self._notes.get(text, 0) + 1

    def _stop(self, text: str | None) -> None:
        """The end, with what is wrong in the file itself. Damage to the compressed data around it is the cause, and goes first."""
        self.ended = True
        self._fatal = "; ".join(part for part in (self._source.problem, text) if part) or None

    def _damaged(self, offset: int, text: str) -> None:
        self._stop(f"the file is damaged: the {self._unit} at byte {offset} {text}")


# ---- pcap

_USUAL_SNAPLEN = 262_144  # what tcpdump and Wireshark take as "everything"
_SLACK = 4  # writers exist that record more than the snaplen they state; a damaged length is mostly far beyond


class PcapRecords(_Records):
    """The frames of a pcap file: one header, then one record per packet.

    Args:
        source: where the rest comes from.
        head: what was read of it: at least the 24 bytes of the file's header, or all there is.
    """

    _unit = "record"

    def _read(self, buffer: bytes) -> Iterator[Frame]:
        order, unit, header_bytes = PCAP_MAGICS[buffer[:4]]
        if len(buffer) < 24:
            self._stop(f"the file ends in the middle of its header: {len(buffer)} of 24 bytes are there")
            return
        major, minor, snaplen, network = struct.unpack_from(order + "HH8xII", buffer, 4)
        # libpcap's habit: the upper bits tell of frame check sequences, the lower 26 are the link type.
        linktype = network & 0x03FF_FFFF
        limit = min(MAX_RECORD_BYTES, max(snaplen, _USUAL_SNAPLEN) * _SLACK)
        # Before version 2.3 the two lengths stood the other way round; in 2.3 and 543.0 it depends on the writer.
        swapped = major == 2 and minor < 3
        unsure = (major == 2 and minor == 3) or major == 543
        record = struct.Struct(order + "IIII").unpack_from
        make = tuple.__new__

        base = 0  # offset in the file of the buffer's first byte
        at = 24
        while True:
            end = len(buffer)
            need = header_bytes
            while at + header_bytes <= end:
                seconds, fraction, length, wire_length = record(buffer, at)
                if swapped or (unsure and length > wire_length):
                    length, wire_length = wire_length, length
                if length > limit:
                    self._damaged(base + at, f"claims {length} bytes, more than the {limit} that are possible")
                    return
                start = at + header_bytes
                stop = start + length
                if stop > end:
                    need = stop - at
                    break
                if not seconds and not wire_length and not fraction and not length:
                    self._damaged(base + at, "is all zeros, as where a file was never written to its end")
                    return
                self.packets += 1
                self.offset = base + start
                yield make(
                    Frame,
                    (
                        buffer[start:stop],
                        seconds * 1_000_000_000 + fraction * unit,
                        wire_length if wire_length > length else length,
                        linktype,
                        0,
                    ),
                )
                at = stop
            base += at
            buffer = self._source.read_to(buffer[at:], need)
            at = 0
            have = len(buffer)
            if have < need:
                self._stop(f"the file ends in the middle of a record at byte {base}: {have} of {need} bytes are there" if have else None)
                return


# ---- pcapng

_SECTION, _INTERFACE, _PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_READ = (_SECTION, _INTERFACE, _PACKET, _SIMPLE, _ENHANCED)
_OPTION_END, _OPTION_TSRESOL, _OPTION_TSOFFSET = 0, 9, 14

_STRUCTS = {
    order: (
        struct.Struct(order + "II").unpack_from,  # every block: type, total length
        struct.Struct(order + "I").unpack_from,  # ... and the total length again, at the end
        struct.Struct(order + "IIIII").unpack_from,  # enhanced packet: interface, time (high, low), captured, original length
        struct.Struct(order + "HHIIII").unpack_from,  # obsolete packet: interface, drops, time (high, low), captured, original
    )
    for order in "<>"
}


class _Interface(NamedTuple):
    """What packets need to know of an Interface Description Block (4.2)."""

    number: int  # over the whole file
    linktype: int
    snaplen: int  # 0: no limit
    multiplier: int  # ticks * multiplier // divisor + offset_ns = time in nanoseconds
    divisor: int
    offset_ns: int


def _options(body: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The options (3.5), as far as they are well-formed."""
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == _OPTION_END or at + 4 + length > len(body):
            return
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3 & ~3)


def _interface(body: bytes, order: str, number: int) -> _Interface:
    linktype, snaplen = struct.unpack_from(order + "HxxI", body)
    units, offset = 1_000_000, 0
    for code, value in _options(body[8:], order):
        if code == _OPTION_TSRESOL and len(value) == 1:
            units = 1 << (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _OPTION_TSOFFSET and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
    exact = NS % units == 0
    return _Interface(number, linktype, snaplen, NS // units if exact else NS, 1 if exact else units, offset * NS)


class PcapngRecords(_Records):
    """The frames of a pcapng file: blocks, in sections, from several interfaces.

    Args:
        source: where the rest comes from.
        head: what was read of it: at least the first 12 bytes, or all there is.
    """

    _unit = "block"

    def _skip(self, buffer: bytes, count: int) -> bytes:
        """What lies `count` bytes behind the buffer's beginning, without ever holding all of it."""
        while len(buffer) < count:
            count -= len(buffer)
            buffer = self._source.read()
            if not buffer:
                return b""
        return buffer[count:]

    def _read(self, buffer: bytes) -> Iterator[Frame]:
        order = "<"
        head, word, enhanced, obsolete = _STRUCTS[order]
        interfaces: list[_Interface] = []
        interface_count = 0  # in the sections before, and in this one
        last_ns = 0  # for packets without a time
        make = tuple.__new__

        base = 0  # offset in the file of the buffer's first byte
        at = 0
        while True:
            end = len(buffer)
            need = 12
            kind = 0
            while at + 12 <= end:
                kind, size = head(buffer, at)
                if kind == _SECTION:
                    found = BYTE_ORDERS.get(buffer[at + 8 : at + 12])
                    if found is None:
                        self._damaged(base + at, "names no byte order")
                        return
                    _, size = _STRUCTS[found][0](buffer, at)
                else:
                    found = order
                if size < 12 or size & 3:
                    self._damaged(base + at, f"claims {size} bytes, which no block can have")
                    return
                need = size
                if at + size > end:
                    break
                if _STRUCTS[found][1](buffer, at + size - 4)[0] != size:
                    self._damaged(base + at, f"has {size} bytes by its head, not by its tail")
                    return

                if kind in (_ENHANCED, _PACKET):
                    if size < 32:
                        self._damaged(base + at, f"has {size} bytes, fewer than it needs")
                        return
                    if kind == _ENHANCED:
                        number, high, low, length, wire_length = enhanced(buffer, at + 8)
                    else:
                        number, _, high, low, length, wire_length = obsolete(buffer, at + 8)
                    if number >= len(interfaces):
                        self._note("a packet was left out: it names an interface that the file does not describe")
                    elif length > size - 32:
                        self._note("a packet was left out: it claims more bytes than its block has")
                    else:
                        interface = interfaces[number]
                        start = at + 28
                        ticks = high << 32 | low
                        if interface.divisor == 1:
                            last_ns = ticks * interface.multiplier + interface.offset_ns
                        else:
                            last_ns = ticks * NS // interface.divisor + interface.offset_ns
                        if not -NS_LIMIT <= last_ns <= NS_LIMIT:
                            last_ns = NS_LIMIT if last_ns > 0 else -NS_LIMIT
                        self.packets += 1
                        self.offset = base + start
                        yield make(
                            Frame,
                            (
                                buffer[start : start + length],
                                last_ns,
                                wire_length if wire_length > length else length,
                                interface.linktype,
                                interface.number,
                            ),
                        )
                elif kind == _SIMPLE:
                    if size < 16:
                        self._damaged(base + at, f"has {size} bytes, fewer than it needs")
                        return
                    if not interfaces:
                        self._note("a packet was left out: it names an interface that the file does not describe")
                    else:
                        (wire_length,) = word(buffer, at + 8)
                        interface = interfaces[0]
                        length = min(wire_length, interface.snaplen or wire_length, size - 16)
                        self.packets += 1
                        self.offset = base + at + 12
                        data = buffer[at + 12 : at + 12 + length]
                        yield make(Frame, (data, last_ns, wire_length, interface.linktype, interface.number))
                elif kind == _INTERFACE:
                    if size < 20:
                        self._damaged(base + at, f"has {size} bytes, fewer than it needs")
                        return
                    interfaces.append(_interface(buffer[at + 8 : at + size - 4], order, interface_count))
                    interface_count += 1
                elif kind == _SECTION:
                    order = found
                    head, word, enhanced, obsolete = _STRUCTS[order]
                    interfaces = []
                    major = struct.unpack_from(order + "H", buffer, at + 12)[0] if size >= 28 else 0
                    if major != 1:
                        self._damaged(base + at, f"begins a section of version {major}, which is none")
                        return
                at += size
                need = 12

            base += at
            if need > MAX_RECORD_BYTES and kind in _READ:
                self._damaged(base, f"claims {need} bytes, more than the {MAX_RECORD_BYTES} that are possible")
                return
            if need > HOLD_BYTES and kind not in _READ:
                # Unknown and big: passed over, and only its last four bytes looked at.
                rest = self._source.read_to(self._skip(buffer[at:], need - 4), 4)
                if len(rest) < 4:
                    self._stop(f"the file ends in the middle of a block at byte {base}, which has {need} bytes")
                    return
                if word(rest)[0] != need:
                    self._damaged(base, f"has {need} bytes by its head, not by its tail")
                    return
                buffer, at = rest, 4
                base += need - 4
                continue
            buffer = self._source.read_to(buffer[at:], need)
            at = 0
            have = len(buffer)
            if have < need:
                self._stop(f"the file ends in the middle of a block at byte {base}: {have} of {need} bytes are there" if have else None)
                return
