"""Where each byte of a stream came from: what both cores' BytesStream, and `follow`, have in common.

Lives here: the rows as numpy shows them, and the look-up of one byte. Not here: who notes the rows (the core's streams).
Called when a user asks for the rows, never for a packet.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

    ProvenanceArray = numpy.ndarray[tuple[int], numpy.dtype[numpy.void]]

__all__ = ["PROVENANCE_FIELDS", "not_there", "origin_of", "rows_of"]

PROVENANCE_FIELDS = [
    ("offset", "<i8"),
    ("length", "<i8"),
    ("seen_ns", "<i8"),
    ("packet_number", "<i8"),
    ("seq", "<u4"),
    ("acked", "<i8"),
]
"""A row of `BytesStream.provenance`, as numpy takes it; aligned as C does: 48 bytes."""


def rows_of(rows: bytes) -> ProvenanceArray:
    """Such rows, one behind the other, as a numpy array of their own."""
    import numpy

    return numpy.frombuffer(bytearray(rows), dtype=numpy.dtype(PROVENANCE_FIELDS, align=True))


def origin_of(rows: ProvenanceArray, offset: int) -> numpy.void:
    """The row that brought the byte at that offset. IndexError where none did."""
    offset = index(offset)
    if len(rows) and 0 <= offset < int(rows["offset"][-1] + rows["length"][-1]):
        at = int(rows["offset"].searchsorted(offset, side="right")) - 1
        if at >= 0 and offset < rows["offset"][at] + rows["length"][at]:
            row: numpy.void = rows[at]
            return row
    raise not_there(offset)


def not_there(offset: int) -> IndexError:
    """The error that tells so."""
    return IndexError(f"no byte of the stream is kept at offset {offset}: it lies in a gap, or outside of the stream")
