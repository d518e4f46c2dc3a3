"""Places in a capture, and the bytes that lie there: what both cores' SpanStream has in common.

Lives here: reading `(offset, length)` rows out of a path, a file or a buffer. Not here: who notes the rows (the core's streams).
Called when a user asks for the bytes, never for a packet.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy

    SpanArray = numpy.ndarray[tuple[int], numpy.dtype[numpy.void]]

__all__ = ["SPAN_DTYPE", "BinaryWriter", "SpanSource", "array_of", "copy_to", "read_rows"]

SPAN_DTYPE = [("offset", "<i8"), ("length", "<i8"), ("skip", "<i8"), ("seen_ns", "<i8")]
"""A row of `SpanStream.spans`, as numpy takes it."""

_ROW = len(SPAN_DTYPE)
_BLOCK = 1 << 20  # bytes that are read at once, at most, unless one piece has more
_APART = 4096  # bytes between two pieces up to which reading them is cheaper than another read

_COMPRESSED = (  # the first bytes, as capture.source tells them; what to pass instead
    (b"\x1f\x8b\x08", "gzip", 'gzip.open(path, "rb")'),
    (b"\x28\xb5\x2f\xfd", "zstd", 'compression.zstd.open(path, "rb") (Python 3.14), or a file into which it was decompressed'),
)

SpanSource = Any  # a path, a seekable binary file, a buffer, or a list of these


class BinaryWriter(Protocol):
    """The least that a file object must be able to do."""

    def write(self, data: bytes, /) -> object: ...


def array_of(rows: bytes) -> SpanArray:
    """The rows (int64, in the order of SPAN_DTYPE) as a numpy array of their own."""
    import numpy

    return numpy.frombuffer(bytearray(rows), dtype=SPAN_DTYPE)


class _Memory:
    """A buffer."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.size = len(view)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])


class _File:
    """A seekable binary file. Its position moves. ValueError where it is compressed: no capture begins as these do."""

    def __init__(self, file: Any, name: object) -> None:
        self._file = file
        head = self.read(0, 4)
        for magic, kind, instead in _COMPRESSED:
            if head.startswith(magic):
                raise ValueError(f"{name} is compressed with {kind}, and spans count the bytes that come out of it: pass {instead}")
        file.seek(0, os.SEEK_END)
        self.size = int(file.tell())

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        parts = []
        while length:
            part = self._file.read(length)
            if isinstance(part, str):
                raise TypeError(f"a capture is read from a binary file; open it with mode 'rb': {self._file!r}")
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _open(source: Any, opened: ExitStack) -> _Memory | _File:
    if isinstance(source, (str, os.PathLike)):
        return _File(opened.enter_context(open(source, "rb", buffering=0)), os.fspath(source))
    try:
        view = opened.enter_context(memoryview(source))
    except TypeError:
        if callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None)):
            return _File(source, getattr(source, "name", source))
        raise TypeError(
            f"spans are read from a path, a seekable binary file, a buffer, or a list of these, not {type(source).__name__}"
        ) from None
    return _Memory(opened.enter_context(view.cast("B")))


def read_rows(rows: memoryview, source: SpanSource) -> Iterator[bytes]:
    """The bytes of the rows (int64, in the order of SPAN_DTYPE), in order, about a MiB at a time.

    ValueError where a row has no offset, or the source no such bytes or is compressed; TypeError for what is no source; OSError where
    reading fails.
    """
    with ExitStack() as opened:
        sources = [_open(one, opened) for one in (source if isinstance(source, (list, tuple)) else [source])]
        bases = [0]  # where each begins, if they lay one behind the other
        for one in sources:
            bases.append(bases[-1] + one.size)
        parts: list[tuple[int, int]] = []  # offset and length of what one read brings
        for at in range(0, len(rows), _ROW):
            offset, length = rows[at], rows[at + 1]
            if not length:
                continue
            if offset < 0:
                raise ValueError(
                    "a span without an offset: these bytes did not come from a capture file or a batch, or came in IP fragments;"
                    " a BytesStream has them"
                )
            if parts:
                first, behind = parts[0][0], parts[-1][0] + parts[-1][1]
                if not (behind <= offset <= behind + _APART and offset + length - first <= _BLOCK):
                    yield _read(parts, sources, bases)
                    parts = []
            parts.append((offset, length))
        if parts:
            yield _read(parts, sources, bases)


def _read(parts: list[tuple[int, int]], sources: list[_Memory | _File], bases: list[int]) -> bytes:
    """What lies at those places, joined. They are close together, but may lie in more than one source."""
    begin, end = parts[0][0], parts[-1][0] + parts[-1][1]
    found = []
    number = max(bisect_right(bases, begin) - 1, 0)
    while begin < end and number < len(sources):
        length = min(end, bases[number + 1]) - begin
        if length > 0:
            found.append(sources[number].read(begin - bases[number], length))
            begin += length
        number += 1
    block = b"".join(found)
    first = parts[0][0]
    if len(block) != end - first:
        raise ValueError(
            f"the source has no bytes at {first} to {end}: it has {bases[-1]} in all"
            if end > bases[-1]
            else f"the source gave {len(block)} bytes at {first} to {end}, not {end - first}"
        )
    if len(parts) == 1:
        return block
    return b"".join([block[offset - first : offset - first + length] for offset, length in parts])


def copy_to(file: BinaryWriter, rows: memoryview, source: SpanSource) -> int:
    """Writes the bytes of the rows to a binary file and gives their number. Raises as `read_rows`, and what the file raises."""
    count = 0
    for block in read_rows(rows, source):
        count += len(block)
        left = memoryview(block)
        while left:
            written = file.write(left)  # type: ignore[arg-type]  # whatever writes bytes writes any buffer
            if not isinstance(written, int):
                break  # not an io file: it takes everything
            left = left[written:]
    return count
