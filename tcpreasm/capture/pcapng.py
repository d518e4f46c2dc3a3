"""The pcapng file format: blocks, in sections, from several interfaces.

Lives here: the format, and the judgement where a file is damaged. Reading and decompressing: source.
The loop runs once per block, which is mostly one packet, and slices it out of what was read (1 MiB at a time).
Source: draft-ietf-opsawg-pcapng; section numbers are those of version 02.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..clock import NS
from .base import FileCapture, Frame
from .pcap import MAX_RECORD_BYTES
from .source import BLOCK_BYTES, Source

__all__ = ["BYTE_ORDERS", "SECTION_MAGIC", "PcapngCapture"]

SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"  # the same in both byte orders
BYTE_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_SECTION, _INTERFACE, _PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_READ = (_SECTION, _INTERFACE, _PACKET, _SIMPLE, _ENHANCED)
_NS_LIMIT = 2**62 - 1  # the farthest time that the package knows; what lies beyond is damaged anyway
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


class PcapngCapture(FileCapture):
    """A pcapng file.

    Args:
        stream: where the rest comes from. Closed with this.
        head: what was read of it: at least the first 12 bytes, or all there is.
    """

    _unit = "block"

    def __init__(self, stream: Source, head: bytes) -> None:
        super().__init__("pcapng", stream, head)

    def _skip(self, buffer: bytes, count: int) -> bytes:
        """What lies `count` bytes behind the buffer's beginning, without ever holding all of it."""
        while len(buffer) < count:
            count -= len(buffer)
            buffer = self._stream.read()
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
                        if not -_NS_LIMIT <= last_ns <= _NS_LIMIT:
                            last_ns = _NS_LIMIT if last_ns > 0 else -_NS_LIMIT
                        self.packets += 1
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
            if need > BLOCK_BYTES and kind not in _READ:
                # Unknown and big: passed over, and only its last four bytes looked at.
                rest = self._stream.read_to(self._skip(buffer[at:], need - 4), 4)
                if len(rest) < 4:
                    self._stop(f"the file ends in the middle of a block at byte {base}, which has {need} bytes")
                    return
                if word(rest)[0] != need:
                    self._damaged(base, f"has {need} bytes by its head, not by its tail")
                    return
                buffer, at = rest, 4
                base += need - 4
                continue
            buffer = self._stream.read_to(buffer[at:], need)
            at = 0
            have = len(buffer)
            if have < need:
                self._stop(f"the file ends in the middle of a block at byte {base}: {have} of {need} bytes are there" if have else None)
                return
