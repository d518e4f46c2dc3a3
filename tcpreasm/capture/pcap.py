"""The pcap file format: one header, then one record per packet.

Lives here: the format, its old variants, the judgement where a file is damaged. Reading and decompressing: source.
The loop runs once per packet and slices it out of a block; the block is read once per 1 MiB.
Source: draft-ietf-opsawg-pcap, and libpcap's sf-pcap.c for the variants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .base import FileCapture, Frame
from .source import Source

__all__ = ["MAX_RECORD_BYTES", "PCAP_MAGICS", "PcapCapture"]

MAX_RECORD_BYTES = 256 << 20
_USUAL_SNAPLEN = 262_144  # what tcpdump and Wireshark take as "everything"
_SLACK = 4  # writers exist that record more than the snaplen they state; a damaged length is mostly far beyond

# First four bytes -> byte order, nanoseconds per unit of the fraction, bytes of a record's header.
# a12b3c4d is Navtel's spelling of the usual one; a1b2cd34 is Alexey Kuznetsov's, with the interface, protocol and packet
# type behind the lengths.
PCAP_MAGICS: dict[bytes, tuple[str, int, int]] = {
    struct.pack(order + "I", magic): (order, unit, size)
    for order in "<>"
    for magic, unit, size in ((0xA1B2C3D4, 1000, 16), (0xA1B23C4D, 1, 16), (0xA12B3C4D, 1000, 16), (0xA1B2CD34, 1000, 24))
}


class PcapCapture(FileCapture):
    """A pcap file.

    Args:
        stream: where the rest comes from. Closed with this.
        head: what was read of it: the 24 bytes of the file's header, or all there is.
    """

    _unit = "record"

    def __init__(self, stream: Source, head: bytes) -> None:
        super().__init__("pcap", stream, head)

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
            buffer = self._stream.read_to(buffer[at:], need)
            at = 0
            have = len(buffer)
            if have < need:
                self._stop(f"the file ends in the middle of a record at byte {base}: {have} of {need} bytes are there" if have else None)
                return
