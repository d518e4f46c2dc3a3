"""Ready-made streams: they count, collect, digest, or note where in the capture the bytes lie.

Lives here: the reference of what the compiled ones do. Not here: streams that write to files (files), ReaderStream and the protocols
(tcpreasm/streams.py).
`reassembled` is called about once a packet with payload, `reassembly_complete` once a stream.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from operator import index
from typing import TYPE_CHECKING, Any

from ..flow import ConnectionKey, Flow
from ..options import check_bool, check_number
from ..provenance import not_there, rows_of
from ..spans import BinaryWriter, SpanSource, array_of, copy_to, read_rows
from ..stop import STOP
from .reassembly import Reassembly
from .sequence import difference

if TYPE_CHECKING:
    import numpy

    from ..provenance import ProvenanceArray
    from ..spans import SpanArray

__all__ = ["ByteCountStream", "BytesStream", "DigestStream", "SpanStream"]

_ROW = struct.Struct("<qqqqI4xq")  # of PROVENANCE_FIELDS, aligned


class ByteCountStream:
    """Counts a stream's bytes and keeps none. A factory by itself: `StreamPool(ByteCountStream)`. The base of the streams below.

    Args:
        net_flow: the addresses; `key` needs both.
        transport_flow: the ports.
        context: whatever you like, for the attribute of that name.

    Attributes:
        context: as given; the stream does not look at it.
    """

    __slots__ = (
        "_complete", "_ended", "_first_seen_ns", "_gap_count", "_last_seen_ns", "_length", "_net_flow", "_skipped", "_started",
        "_stopped", "_transport_flow", "context",
    )  # fmt: skip

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, context: Any = None) -> None:
        self.context = context
        self._net_flow = net_flow
        self._transport_flow = transport_flow
        self._first_seen_ns: int | None = None
        self._last_seen_ns: int | None = None
        self._length = 0
        self._skipped = 0
        self._gap_count = 0
        self._started = False
        self._ended = False
        self._complete = False
        self._stopped = False

    @property
    def net_flow(self) -> Flow | None:
        """The addresses, as given."""
        return self._net_flow

    @property
    def transport_flow(self) -> Flow | None:
        """The ports, as given."""
        return self._transport_flow

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of the earliest packet that brought something, in nanoseconds since 1970; None before any did."""
        return self._first_seen_ns

    @property
    def last_seen_ns(self) -> int | None:
        """The same of the latest packet."""
        return self._last_seen_ns

    @property
    def length(self) -> int:
        """Bytes that came."""
        return self._length

    @property
    def skipped(self) -> int:
        """Bytes that are missing between those; an unknown start counts as none."""
        return self._skipped

    @property
    def gap_count(self) -> int:
        """Holes with a known length."""
        return self._gap_count

    @property
    def started(self) -> bool:
        """The SYN was captured: the first byte is the stream's first."""
        return self._started

    @property
    def ended(self) -> bool:
        """A FIN or RST was reached. False where the stream was closed for another reason (idleness, the end of the capture)."""
        return self._ended

    @property
    def complete(self) -> bool:
        """Nothing more will come."""
        return self._complete

    @property
    def stopped(self) -> bool:
        """It gets no more: `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Ends what comes here, from any thread. The next piece still does, since the assembler looks then; nothing behind it. A subclass
        with a `reassembled` of its own returns what its base's returns."""
        self._stopped = True

    @property
    def key(self) -> ConnectionKey:
        """Who sends to whom. ValueError where the stream was made without flows."""
        if self._net_flow is None or self._transport_flow is None:
            raise ValueError("this stream was made without flows")
        return ConnectionKey(self._net_flow, self._transport_flow)

    @property
    def first_seen(self) -> float | None:
        """`first_seen_ns` in seconds."""
        return None if self._first_seen_ns is None else self._first_seen_ns / 1e9

    @property
    def last_seen(self) -> float | None:
        """`last_seen_ns` in seconds."""
        return None if self._last_seen_ns is None else self._last_seen_ns / 1e9

    def reassembled(self, reassemblies: list[Reassembly]) -> object:
        """Counts the next pieces. STOP where that is enough, else None."""
        for piece in reassemblies:
            self._count(piece)
        return self._whether_to_stop()

    def _whether_to_stop(self) -> object:
        return STOP if self._stopped else None

    def reassembly_complete(self) -> None:
        """Marks the stream as complete."""
        self._complete = True

    def _count(self, piece: Reassembly) -> None:
        seen_ns = piece.seen_ns  # pieces come in the stream's order, not in that of their times
        if self._first_seen_ns is None or seen_ns < self._first_seen_ns:
            self._first_seen_ns = seen_ns
        if self._last_seen_ns is None or seen_ns > self._last_seen_ns:
            self._last_seen_ns = seen_ns
        if piece.start:
            self._started = True
        if piece.skip > 0:
            self._gap_count += 1
            self._skipped += piece.skip
        self._length += len(piece)
        if piece.end:
            self._ended = True


class _GapStream(ByteCountStream):
    """A stream that knows where its gaps are."""

    __slots__ = ("_gaps",)

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, context: Any = None) -> None:
        super().__init__(net_flow, transport_flow, context=context)
        self._gaps: list[tuple[int, int]] = []

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each hole, in order. Offsets count the stream's bytes, the missing ones among them."""
        return tuple(self._gaps)

    def _count(self, piece: Reassembly) -> None:
        if piece.skip > 0:
            self._gaps.append((self._length + self._skipped, piece.skip))
        super()._count(piece)


class BytesStream(_GapStream):
    """Collects a stream's bytes in memory; gaps are joined, and listed in `gaps`. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        max_bytes: the most that is kept. None: no limit.
        on_limit: what becomes of the rest: "drop" counts it in `dropped`, "error" raises BufferError, through the assembler, in the call
            that brought it (what fits is kept, and the stream goes on dropping).
        provenance: note what packet brought each byte that is kept, in 48 bytes a piece: `provenance`, `origin_of`.
        depth: bytes of the stream that it takes, the missing ones among them counted; then it stops. What the last piece has beyond
            is left out. None: all.
        context: as for ByteCountStream.
    """

    __slots__ = ("_data", "_depth", "_dropped", "_max_bytes", "_on_limit", "_rows")

    def __init__(
        self,
        net_flow: Flow | None = None,
        transport_flow: Flow | None = None,
        *,
        max_bytes: int | None = None,
        on_limit: str = "error",
        provenance: bool = False,
        depth: int | None = None,
        context: Any = None,
    ) -> None:
        super().__init__(net_flow, transport_flow, context=context)
        if depth is not None:
            check_number("depth", depth, "bytes")
        self._depth = depth
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, "bytes")
        if on_limit not in ("drop", "error"):
            raise ValueError(f"on_limit is 'drop' or 'error', not {on_limit!r}")
        self._data = bytearray()
        self._max_bytes = max_bytes
        self._on_limit = on_limit
        self._dropped = 0
        check_bool("provenance", provenance)
        self._rows: list[tuple[int, ...]] | None = [] if provenance else None

    @property
    def data(self) -> bytes:
        """The bytes so far: a copy."""
        return bytes(self._data)

    @property
    def dropped(self) -> int:
        """Bytes beyond `max_bytes`. `length` counts them too."""
        return self._dropped

    @property
    def provenance(self) -> ProvenanceArray | None:
        """A numpy structured array, a copy, one row a piece of what is kept, in order: offset (of its first byte in the stream, missing
        bytes counted), length, seen_ns (capture time), packet_number, seq (sequence number of its first byte), and acked (the offset up
        to which the other side had acknowledged the stream before that packet; -1: it had not, or the pool does not pair). None where
        it was not asked for."""
        return None if self._rows is None else rows_of(b"".join([_ROW.pack(*row) for row in self._rows]))

    def origin_of(self, offset: int) -> numpy.void:
        """The row of `provenance` that brought the byte at that offset, which counts missing bytes. IndexError where it lies in a gap or
        beyond what is kept; ValueError where provenance was not asked for."""
        if self._rows is None:
            raise ValueError("this stream was made without provenance=True")
        offset = index(offset)
        at = bisect_right(self._rows, offset, key=lambda row: row[0]) - 1
        if at < 0 or offset >= self._rows[at][0] + self._rows[at][1]:
            raise not_there(offset)
        found: numpy.void = rows_of(_ROW.pack(*self._rows[at]))[0]
        return found

    @property
    def max_bytes(self) -> int | None:
        """As given."""
        return self._max_bytes

    @property
    def on_limit(self) -> str:
        """As given."""
        return self._on_limit

    @property
    def depth(self) -> int | None:
        """As given."""
        return self._depth

    def reassembled(self, reassemblies: list[Reassembly]) -> object:
        """Appends the next pieces. BufferError beyond `max_bytes`, if asked for. STOP where that is enough, else None."""
        over = False
        for piece in reassemblies:
            if self._depth is not None:
                left = self._depth - self._length - self._skipped
                if max(0, piece.skip) + len(piece) > left:
                    if left <= 0:
                        break
                    piece = _part_of(piece, left)
            self._count(piece)
            data = piece.bytes
            if self._max_bytes is not None and len(self._data) + len(data) > self._max_bytes:
                keep = self._max_bytes - len(self._data)
                over = over or not self._dropped
                self._dropped += len(data) - keep
                data = data[:keep]
            if data and self._rows is not None:
                offset = self._length + self._skipped - len(piece)
                peer_ack = getattr(piece, "_peer_ack", None)
                acked = -1 if peer_ack is None else max(0, offset + difference(piece.seq, peer_ack))
                self._rows.append((offset, len(data), piece.seen_ns, piece.packet_number, piece.seq, acked))
            self._data += data
        if self._depth is not None and self._length + self._skipped >= self._depth:
            self._stopped = True
        if over and self._on_limit == "error":
            raise BufferError(f"the stream {self._name()} is longer than the {self._max_bytes} bytes that may be kept")
        return self._whether_to_stop()

    def _name(self) -> str:
        return "" if self._net_flow is None or self._transport_flow is None else str(self.key)


def _part_of(piece: Reassembly, size: int) -> Reassembly:
    """As much of a piece, with the gap before it, as takes so many bytes; the whole is more."""
    packet, seq = getattr(piece, "packet_number", 0), getattr(piece, "seq", 0)  # anything like a Reassembly will do
    data = piece.bytes[: max(0, size - max(0, piece.skip))]
    return Reassembly(data, min(piece.skip, size), piece.start, False, piece.seen_ns, -1, packet, seq)


class DigestStream(ByteCountStream):
    """Computes a digest of a stream's bytes and keeps none; gaps are left out, and counted. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        algorithm: any name that `hashlib.new` takes. ValueError for others.
        context: as for ByteCountStream.
    """

    __slots__ = ("_algorithm", "_hash")

    def __init__(
        self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, algorithm: str = "sha256", context: Any = None
    ) -> None:
        super().__init__(net_flow, transport_flow, context=context)
        import hashlib  # a while to load, and most programs do without

        self._hash: Any = hashlib.new(algorithm)
        self._algorithm = algorithm

    @property
    def algorithm(self) -> str:
        """As given."""
        return self._algorithm

    def digest(self, length: int | None = None) -> bytes:
        """The digest of the bytes so far. `length`: bytes of digest that are wanted, for shake_128 and shake_256, which need it."""
        made: bytes = self._hash.digest() if length is None else self._hash.digest(length)
        return made

    def hexdigest(self, length: int | None = None) -> str:
        """The same as text."""
        made: str = self._hash.hexdigest() if length is None else self._hash.hexdigest(length)
        return made

    def reassembled(self, reassemblies: list[Reassembly]) -> object:
        """Takes the next pieces into the digest. STOP where that is enough, else None."""
        for piece in reassemblies:
            self._count(piece)
            self._hash.update(piece.bytes)
        return self._whether_to_stop()


class SpanStream(ByteCountStream):
    """Notes where in the capture a stream's bytes lie, and keeps none of them: 32 bytes a piece. A factory by itself.

    The bytes are read when they are wanted, by `gather` or `write_to`, from the capture that was reassembled: a path, a seekable binary
    file (whose position moves), a buffer, or, where a list of captures was reassembled, a list of these in the same order. Compressed
    captures must be decompressed for that, since offsets count what comes out: `gather(gzip.open(path, "rb"))`, while the path by itself
    raises ValueError. After `Assembler.assemble_batch` it is the batch's buffer.
    """

    __slots__ = ("_rows",)

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, context: Any = None) -> None:
        super().__init__(net_flow, transport_flow, context=context)
        self._rows = array("q")

    @property
    def spans(self) -> SpanArray:
        """A numpy structured array, a copy, one row a piece that has bytes or stands behind a gap: offset (-1: no bytes, or unknown
        place), length, skip (missing bytes before it; -1: unknown number) and seen_ns (capture time)."""
        return array_of(self._rows.tobytes())

    def gather(self, source: SpanSource) -> bytes:
        """The stream's bytes, gaps left out. ValueError where the source has no such bytes, or the stream's place is unknown (it was not
        reassembled from a capture file or a batch); TypeError for what is no source; OSError where reading fails."""
        return b"".join(read_rows(memoryview(self._rows.tobytes()).cast("q"), source))

    def write_to(self, file: BinaryWriter, source: SpanSource) -> int:
        """Writes the same to a binary file, without holding it all, and gives the number of bytes."""
        return copy_to(file, memoryview(self._rows.tobytes()).cast("q"), source)

    def reassembled(self, reassemblies: list[Reassembly]) -> object:
        """Notes the next pieces. STOP where that is enough, else None."""
        for piece in reassemblies:
            self._count(piece)
            if len(piece) or piece.skip:
                self._rows.extend((piece.offset, len(piece), piece.skip, piece.seen_ns))
        return self._whether_to_stop()
