"""`Reassembly`: one piece of a stream, as the assembler hands it to `reassembled`. Made once for each delivered piece."""

from __future__ import annotations

__all__ = ["Reassembly"]


class Reassembly(bytes):
    """A contiguous piece of a stream, possibly empty.

    Its bytes stay what they are for as long as anybody holds the piece or a view of it. `len(r)` is their number,
    `memoryview(r)` a read-only view without a copy.

    (The bytes type beneath is this core's way to offer the buffer protocol; what is not documented here is not promised.)
    """

    skip: int
    """Missing bytes right before this piece: exact, or -1 where the stream's start was never seen, or 0."""
    start: bool
    """This piece comes with the SYN."""
    end: bool
    """The stream ends with this piece, by FIN or RST."""
    seen_ns: int
    """Capture time of the packet that brought these bytes, in nanoseconds since 1970."""

    offset: int
    """Where the first byte stands: in the capture file as it reads decompressed (through a list of captures it counts on over all of
    them), or in the buffer of a batch. -1 where that is unknown, and for a piece without bytes."""

    def __new__(
        cls, data: bytes | memoryview = b"", skip: int = 0, start: bool = False, end: bool = False, seen_ns: int = 0, offset: int = -1
    ) -> Reassembly:
        self = super().__new__(cls, data)
        self.skip = skip
        self.start = start
        self.end = end
        self.seen_ns = seen_ns
        self.offset = offset
        return self

    @property
    def bytes(self) -> bytes:
        """The bytes, as a bytes object."""
        return self[:]

    @property
    def seen(self) -> float:
        """Capture time of the packet that brought these bytes, in seconds since 1970."""
        return self.seen_ns / 1e9

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Reassembly({self[:]!r}, skip={self.skip}, start={self.start}, end={self.end}, seen_ns={self.seen_ns})"
