"""`Reassembly`: one piece of a stream, as the assembler hands it to `reassembled`. Made once for each delivered piece."""

from __future__ import annotations

__all__ = ["Reassembly"]


class Reassembly(bytes):
    """A contiguous piece of a stream, possibly empty.

    Its bytes stay what they are for as long as anybody holds the piece or a view of it. `len(r)` is their number,
    `memoryview(r)` a read-only view without a copy.

    Attributes:
        bytes: the bytes, as a bytes object.
        skip: missing bytes right before this piece: exact, or -1 where the stream's start was never seen, or 0.
        start: this piece comes with the SYN.
        end: the stream ends with this piece, by FIN or RST.
        seen_ns: capture time of the packet that brought these bytes, in nanoseconds since 1970.
        seen: the same in seconds.
        offset: where the first byte stands: in the capture file as it reads decompressed (through a list of captures it counts on over
            all of them), or in the buffer of a batch. -1 where that is unknown, and for a piece without bytes.
        packet_number: number of the packet that brought these bytes. An assembler counts what it is given, frames of every kind and
            segments, from 1, and through a list of captures it counts on. Without bytes: that of the packet that led to the piece;
            0 where none did.
        seq: sequence number of the first byte (RFC 9293 3.4), or of the one that would come next.

    Both cores have these, and nothing else is promised. In the pure core a piece happens to be a bytes object, in the compiled one it is
    none: ask for `bytes` or `memoryview(r)`, and rely on neither slices nor comparisons of the piece itself.
    """

    skip: int
    start: bool
    end: bool
    seen_ns: int
    offset: int
    packet_number: int
    seq: int
    _peer_ack: int | None  # the highest that the other side had acknowledged before the packet that brought these bytes

    def __new__(
        cls,
        data: bytes | memoryview = b"",
        skip: int = 0,
        start: bool = False,
        end: bool = False,
        seen_ns: int = 0,
        offset: int = -1,
        packet_number: int = 0,
        seq: int = 0,
    ) -> Reassembly:
        self = super().__new__(cls, data)
        self.skip = skip
        self.start = start
        self.end = end
        self.seen_ns = seen_ns
        self.offset = offset
        self.packet_number = packet_number
        self.seq = seq
        self._peer_ack = None
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
