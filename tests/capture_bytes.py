"""Capture files made byte by byte, so that what must come out of them is known exactly; and file objects of the awkward kinds.

Lives here: writers of pcap and pcapng, two small captures with all that the formats have, sources. No test.
"""

from __future__ import annotations

import io
import random
import struct
from typing import Any

from tcpreasm.capture import Frame

ETHERNET, RAW, SLL = 1, 101, 113
NS = 1_000_000_000
T0 = 1_700_000_000


def payload(length: int, seed: int = 0) -> bytes:
    return random.Random(seed * 1000 + length).randbytes(length)


def pcap_header(
    order: str = "<", magic: int = 0xA1B2C3D4, *, linktype: int = ETHERNET, snaplen: int = 65535, version: tuple[int, int] = (2, 4)
) -> bytes:
    return struct.pack(order + "IHHiIII", magic, *version, 0, 0, snaplen, linktype)


def pcap_record(order: str, seconds: int, fraction: int, data: bytes, wire: int | None = None) -> bytes:
    return struct.pack(order + "IIII", seconds, fraction, len(data), len(data) if wire is None else wire) + data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = 12 + len(body)
    return struct.pack(order + "II", kind, size) + body + struct.pack(order + "I", size)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def shb(order: str = "<", *, version: tuple[int, int] = (1, 0), options: bytes = b"") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1) + options)


def idb(order: str = "<", linktype: int = ETHERNET, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def tsresol(order: str, value: int) -> bytes:
    return option(order, 9, bytes([value]))


def tsoffset(order: str, seconds: int) -> bytes:
    return option(order, 14, struct.pack(order + "q", seconds))


def epb(order: str, interface: int, ticks: int, data: bytes, wire: int | None = None, options: bytes = b"") -> bytes:
    head = struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) if wire is None else wire)
    return block(order, 6, head + data + b"\0" * (-len(data) % 4) + options)


def old_packet(order: str, interface: int, ticks: int, data: bytes, wire: int | None = None, drops: int = 0xFFFF) -> bytes:
    head = struct.pack(order + "HHIIII", interface, drops, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) if wire is None else wire)
    return block(order, 2, head + data)


def spb(order: str, data: bytes, wire: int | None = None) -> bytes:
    return block(order, 3, struct.pack(order + "I", len(data) if wire is None else wire) + data)


def us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def small_pcap(order: str = "<") -> tuple[bytes, list[tuple[int, int, Frame]]]:
    """A capture, and where each of its records lies with the frame it holds."""
    out, places = pcap_header(order), []
    for i, length in enumerate((60, 0, 1, 33, 17)):
        record = pcap_record(order, T0 + i, 10 * i, payload(length, i), length + 5 * i)
        places.append((len(out), len(out) + len(record), Frame(payload(length, i), (T0 + i) * NS + 10_000 * i, length + 5 * i, ETHERNET)))
        out += record
    return out, places


def small_pcapng() -> tuple[bytes, list[tuple[int, int, Frame | None]]]:
    """The same for pcapng, with every kind of block in it."""
    pieces: list[tuple[bytes, Frame | None]] = []
    for section, order in enumerate("<>"):
        first = 2 * section
        a, b, c, d = (payload(length, section) for length in (20, 33, 5, 18))
        pieces += [
            (shb(order, options=option(order, 3, b"Linux") + option(order, 0, b"")), None),
            (idb(order, ETHERNET, 64), None),
            (epb(order, 0, us(T0), a), Frame(a, T0 * NS, 20, ETHERNET, first)),
            (block(order, 4, struct.pack(order + "HH4sHH", 1, 8, b"\x7f\0\0\1", 0, 0)), None),
            (idb(order, SLL, 0, tsresol(order, 9) + option(order, 0, b"")), None),
            (
                epb(order, 1, T0 * NS + 7, b, 1500, option(order, 1, b"comment") + option(order, 0, b"")),
                Frame(b, T0 * NS + 7, 1500, SLL, first + 1),
            ),
            (spb(order, c), Frame(c, T0 * NS + 7, 5, ETHERNET, first)),
            (old_packet(order, 0, us(T0 + 1), d, 100), Frame(d, (T0 + 1) * NS, 100, ETHERNET, first)),
            (block(order, 0x40000BAD, payload(13)), None),
            (block(order, 5, struct.pack(order + "III", 0, 0, 0)), None),
        ]
    out, places = b"", []
    for piece, frame in pieces:
        places.append((len(out), len(out) + len(piece), frame))
        out += piece
    return out, places


class Dribble(io.RawIOBase):
    """A stream that cannot seek and gives a few bytes at a time, as pipes and sockets do."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step, self.at = data, step, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        piece = self.data[self.at : self.at + min(self.step, len(buffer))]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


class ReadOnly:
    """The least that a file object can be."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)
