"""Ready-made streams: they count, collect, digest, write to files, or note where in the capture the bytes lie.

Lives here: the reference of what the compiled ones do. Not here: ReaderStream and the protocols (tcpreasm/streams.py).
`reassembled` is called about once a packet with payload, `reassembly_complete` once a stream.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..flow import ConnectionKey, Flow
from ..options import DEFAULT_MAX_OPEN_FILES, check_number
from ..spans import BinaryWriter, SpanSource, array_of, copy_to, read_rows
from .reassembly import Reassembly

if TYPE_CHECKING:
    from ..spans import SpanArray

__all__ = ["ByteCountStream", "BytesStream", "DigestStream", "FilePool", "FileStream", "SpanStream"]

_GATHERED = 1 << 16  # bytes that a file gathers before they are written
_BUFFERED_TOTAL = 1 << 25  # bytes that all files of a pool may have gathered; beyond, the longest unused are written out


class ByteCountStream:
    """Counts a stream's bytes and keeps none. A factory by itself: `StreamPool(ByteCountStream)`. The base of the streams below.

    Args:
        net_flow: the addresses; `key` needs both.
        transport_flow: the ports.
    """

    __slots__ = (
        "_complete", "_ended", "_first_seen_ns", "_gap_count", "_last_seen_ns", "_length", "_net_flow", "_skipped", "_started",
        "_transport_flow",
    )  # fmt: skip

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None) -> None:
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

    def reassembled(self, reassemblies: list[Reassembly]) -> None:
        """Counts the next pieces."""
        for piece in reassemblies:
            self._count(piece)

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

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None) -> None:
        super().__init__(net_flow, transport_flow)
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
    """

    __slots__ = ("_data", "_dropped", "_max_bytes", "_on_limit")

    def __init__(
        self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, max_bytes: int | None = None, on_limit: str = "error"
    ) -> None:
        super().__init__(net_flow, transport_flow)
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, "bytes")
        if on_limit not in ("drop", "error"):
            raise ValueError(f"on_limit is 'drop' or 'error', not {on_limit!r}")
        self._data = bytearray()
        self._max_bytes = max_bytes
        self._on_limit = on_limit
        self._dropped = 0

    @property
    def data(self) -> bytes:
        """The bytes so far: a copy."""
        return bytes(self._data)

    @property
    def dropped(self) -> int:
        """Bytes beyond `max_bytes`. `length` counts them too."""
        return self._dropped

    @property
    def max_bytes(self) -> int | None:
        """As given."""
        return self._max_bytes

    @property
    def on_limit(self) -> str:
        """As given."""
        return self._on_limit

    def reassembled(self, reassemblies: list[Reassembly]) -> None:
        """Appends the next pieces. BufferError beyond `max_bytes`, if asked for."""
        over = False
        for piece in reassemblies:
            self._count(piece)
            data = piece.bytes
            if self._max_bytes is not None and len(self._data) + len(data) > self._max_bytes:
                keep = self._max_bytes - len(self._data)
                over = over or not self._dropped
                self._dropped += len(data) - keep
                data = data[:keep]
            self._data += data
        if over and self._on_limit == "error":
            raise BufferError(f"the stream {self._name()} is longer than the {self._max_bytes} bytes that may be kept")

    def _name(self) -> str:
        return "" if self._net_flow is None or self._transport_flow is None else str(self.key)


class DigestStream(ByteCountStream):
    """Computes a digest of a stream's bytes and keeps none; gaps are left out, and counted. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        algorithm: any name that `hashlib.new` takes. ValueError for others.
    """

    __slots__ = ("_algorithm", "_hash")

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, algorithm: str = "sha256") -> None:
        super().__init__(net_flow, transport_flow)
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

    def reassembled(self, reassemblies: list[Reassembly]) -> None:
        """Takes the next pieces into the digest."""
        for piece in reassemblies:
            self._count(piece)
            self._hash.update(piece.bytes)


class SpanStream(ByteCountStream):
    """Notes where in the capture a stream's bytes lie, and keeps none of them: 32 bytes a piece. A factory by itself.

    The bytes are read when they are wanted, by `gather` or `write_to`, from the capture that was reassembled: a path, a seekable binary
    file (whose position moves), a buffer, or, where a list of captures was reassembled, a list of these in the same order. Compressed
    captures must be decompressed for that: offsets count what comes out. After `Assembler.assemble_batch` it is the batch's buffer.
    """

    __slots__ = ("_rows",)

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None) -> None:
        super().__init__(net_flow, transport_flow)
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

    def reassembled(self, reassemblies: list[Reassembly]) -> None:
        """Notes the next pieces."""
        for piece in reassemblies:
            self._count(piece)
            if len(piece) or piece.skip:
                self._rows.extend((piece.offset, len(piece), piece.skip, piece.seen_ns))


class FilePool:
    """The open files of many FileStreams: the least recently written one is closed when too many are open, and opened again when
    its stream goes on.

    Args:
        max_open: files that may be open at once. Where the system allows fewer, fewer it is.

    Small writes are gathered, up to 64 KiB a file and 32 MiB in all. What the system refuses to write is lost, and raises OSError in the
    call that found out.

    Made to be closed, best by a `with` block: only then all is on disk. Safe to share between threads.
    """

    _closed = True  # until there is something to close

    def __init__(self, max_open: int = DEFAULT_MAX_OPEN_FILES) -> None:
        check_number("max_open", max_open, "files")
        self._max_open = max_open
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._open: OrderedDict[_File, None] = OrderedDict()  # the least recently written first
        self._gathering: OrderedDict[_File, None] = OrderedDict()  # those that hold bytes, the longest waiting first
        self._gathered = 0
        self._closed = False
        self._failure: OSError | None = None

    def __del__(self) -> None:
        if not self._closed:
            with suppress(OSError):
                self.close()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def max_open(self) -> int:
        """Files that may be open at once: as given, or fewer since the system refused more."""
        return self._max_open

    def create(self, path: str, *, overwrite: bool = False) -> None:
        """Makes an empty file and keeps it open. FileExistsError where there is one, unless overwrite is set."""
        self.finish(path)  # where it was created before
        with self._lock:
            self._new_file(path, os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL))

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Writes at an offset of a file that `create` made. An offset beyond the end leaves a hole, which reads as zeros."""
        with self._lock:
            self._put(self._files.get(path) or self._new_file(path, 0), offset, data)
            while self._gathered > _BUFFERED_TOTAL:
                self._write_out(next(iter(self._gathering)))
            self._raise_failure()

    def finish(self, path: str, size: int | None = None) -> None:
        """Closes a file. It gets the given size, where one is given: a hole at its end needs no bytes."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                if size is None:
                    return
                file = self._new_file(path, 0)
            del self._files[path]
            self._write_out(file)
            try:
                if size is not None:
                    os.ftruncate(self._descriptor(file), size)
            except OSError as error:
                self._note(error, file)
            self._close_file(file)
            self._raise_failure()

    def close(self) -> None:
        """Closes all files. Later writes raise ValueError."""
        with self._lock:
            for file in list(self._gathering):  # a full disk: the others still have to be closed
                self._write_out(file)
            for file in list(self._open):
                self._close_file(file)
            self._files.clear()
            self._closed = True
            self._raise_failure()

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _new_file(self, path: str, flags: int) -> _File:
        file = _File(path)
        self._open_file(file, flags)
        self._raise_failure()
        self._files[path] = file
        return file

    def _descriptor(self, file: _File) -> int:
        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open_file(file, 0)
        return file.descriptor

    def _open_file(self, file: _File, flags: int) -> None:
        if self._closed:
            raise ValueError("this FilePool is closed")
        while True:
            while len(self._open) >= self._max_open:
                self._close_file(next(iter(self._open)))
            try:
                file.descriptor = os.open(file.path, flags | os.O_WRONLY | os.O_CLOEXEC, 0o666)
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._max_open = len(self._open)  # the system allows no more
        self._open[file] = None

    def _close_file(self, file: _File) -> None:
        if file in self._open:
            del self._open[file]
            try:
                os.close(file.descriptor)
            except OSError as error:
                self._note(error, file)

    def _put(self, file: _File, offset: int, data: bytes) -> None:
        if self._closed:
            raise ValueError("this FilePool is closed")
        if offset != file.offset + len(file.waiting) or len(file.waiting) + len(data) > _GATHERED:
            self._write_out(file)
            file.offset = offset
        file.waiting += data
        self._gathered += len(data)
        self._gathering[file] = None
        if len(file.waiting) > _GATHERED:
            self._write_out(file)

    def _write_out(self, file: _File) -> None:
        """Writes what waits. Bytes that the system refuses are lost, and noted; their place stays empty."""
        if not file.waiting:
            return
        data, file.waiting = file.waiting, bytearray()
        offset, file.offset = file.offset, file.offset + len(data)
        self._gathered -= len(data)
        del self._gathering[file]
        try:
            descriptor = self._descriptor(file)
            with memoryview(data) as left:
                done = 0
                while done < len(data):
                    done += _write_at(descriptor, left[done:], offset + done)
        except OSError as error:
            self._note(error, file)

    def _note(self, error: OSError, file: _File) -> None:
        error.filename = os.fsdecode(file.path)
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class _File:
    __slots__ = ("descriptor", "offset", "path", "waiting")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = -1  # good while the pool has it open
        self.offset = 0  # in the file: where the bytes that wait begin
        self.waiting = bytearray()


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    try:
        return os.pwrite(descriptor, data, offset)
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
        return os.write(descriptor, data)  # a pipe: bytes only ever follow each other


class FileStream(_GapStream):
    """Writes a stream to a file as it comes. The file is made with the first byte: a stream without bytes leaves none.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        path: the file's path, or a callable that gives it when it is needed.
        pool: the FilePool that bounds the number of open files; many streams share one, and its owner closes it.
        overwrite: replace a file that exists. Else FileExistsError, through the assembler.
        fill_gaps: leave holes, which read as zeros, where bytes are missing, so that offsets are the stream's. Else what is there is
            joined.
    """

    __slots__ = ("_fill_gaps", "_make_path", "_overwrite", "_path", "_pool", "_position")

    def __init__(
        self,
        net_flow: Flow | None = None,
        transport_flow: Flow | None = None,
        *,
        path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]],
        pool: FilePool,
        overwrite: bool = False,
        fill_gaps: bool = False,
    ) -> None:
        super().__init__(net_flow, transport_flow)
        if not isinstance(pool, FilePool):
            raise TypeError(f"pool is a FilePool, not {type(pool).__name__}: {pool!r}")
        self._pool = pool
        self._overwrite = bool(overwrite)
        self._fill_gaps = bool(fill_gaps)
        self._path: str | None = None
        self._make_path = path
        self._position = 0  # in the file: where the next byte goes

    @property
    def path(self) -> str | None:
        """Where the bytes are; None as long as there were none."""
        return self._path

    @property
    def pool(self) -> FilePool:
        """As given."""
        return self._pool

    @property
    def overwrite(self) -> bool:
        """As given."""
        return self._overwrite

    @property
    def fill_gaps(self) -> bool:
        """As given."""
        return self._fill_gaps

    def reassembled(self, reassemblies: list[Reassembly]) -> None:
        """Writes the next pieces. OSError where the system refuses."""
        pieces = list(reassemblies)
        for piece in pieces:
            self._count(piece)
        failure: Exception | None = None
        for number, piece in enumerate(pieces):
            if self._fill_gaps and piece.skip > 0:
                self._position += piece.skip
            data = piece.bytes
            if not data:
                continue
            if self._path is None:
                try:
                    self._create()
                except BaseException:
                    if self._fill_gaps:  # the place of what cannot be written
                        self._position += sum(len(left) + max(left.skip, 0) for left in pieces[number:]) - max(piece.skip, 0)
                    raise
            assert self._path is not None
            try:
                self._pool.write(self._path, self._position, data)
            except OSError as error:
                failure = failure or error
            except ValueError as error:  # closed
                failure = failure or error
                continue
            self._position += len(data)
        if failure is not None:
            raise failure

    def reassembly_complete(self) -> None:
        """Closes the file."""
        super().reassembly_complete()
        if self._path is not None:
            self._pool.finish(self._path, self._position if self._fill_gaps else None)

    def _create(self) -> None:
        path = os.fspath(self._make_path() if callable(self._make_path) else self._make_path)
        self._pool.create(path, overwrite=self._overwrite)
        self._path = path
