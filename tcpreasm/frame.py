"""`Frame`, one captured packet, and the numbers of the capture file formats that are needed to tell and to read them.

Lives here: the record and the numbers only. The readers are in both cores (records); which format a source has is decided in capture.files.
A Frame is made once a packet where Python iterates, and never where the compiled core takes whole captures.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["BYTE_ORDERS", "HOLD_BYTES", "MAX_RECORD_BYTES", "PCAP_MAGICS", "SECTION_MAGIC", "Frame"]

MAX_RECORD_BYTES = 256 << 20  # what a record or a block may take; more is damage
HOLD_BYTES = 1 << 20  # an unknown pcapng block that is larger is passed over piece by piece, never held as a whole

# First four bytes of a pcap file -> byte order, nanoseconds per unit of the fraction, bytes of a record's header.
# a12b3c4d is Navtel's spelling of the usual one; a1b2cd34 is Alexey Kuznetsov's, with the interface, protocol and packet
# type behind the lengths.
PCAP_MAGICS: dict[bytes, tuple[str, int, int]] = {
    struct.pack(order + "I", magic): (order, unit, size)
    for order in "<>"
    for magic, unit, size in ((0xA1B2C3D4, 1000, 16), (0xA1B23C4D, 1, 16), (0xA12B3C4D, 1000, 16), (0xA1B2CD34, 1000, 24))
}

SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"  # first four bytes of a pcapng section, the same in both byte orders
BYTE_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}  # what tells a section's byte order, 8 bytes on


class Frame(NamedTuple):
    """One packet as it was captured.

    Attributes:
        data: what was captured, from the link layer's header on: bytes.
        timestamp_ns: when, in nanoseconds since 1970-01-01 UTC, within 2**62 of it.
        wire_length: bytes that the packet had on the wire: `len(data)`, or more where the capture cut it (snaplen).
        linktype: what data begins with: a LINKTYPE_ number, as registered at tcpdump.org (1: Ethernet).
        interface: which interface of the capture it came from, counted from 0 over the whole file.
    """

    data: bytes
    timestamp_ns: int
    wire_length: int
    linktype: int
    interface: int = 0
