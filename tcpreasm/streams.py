"""Where a stream's bytes go: the `Stream` protocol, the reader half `ReaderStream`, and ready-made streams in plain Python.

Lives here: what receives `Reassembly` objects. Not here: what makes them (the core), and what runs an assembler (api, follow, cli).
`reassembled` is called about once a packet with payload, `reassembly_complete` once a stream.

Two threads meet in a ReaderStream: the assembler's, which calls `reassembled` and `reassembly_complete`, and a reader's. All that
they share is guarded by one lock; only the reader ever waits without a limit. The other streams are served by the assembler alone.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .errors import DataLost
from .flow import ConnectionKey, Flow

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from ._select import core

__all__ = [
    "ByteCountStream",
    "BytesStream",
    "FilePool",
    "FileStream",
    "ReaderStream",
    "Stream",
    "StreamFactory",
    "discard_bytes_to_eof",
    "discard_bytes_to_first_error",
]

_log = logging.getLogger(__name__)

DEFAULT_MAX_BUFFERED_BYTES = 1 << 20
DEFAULT_TIMEOUT = 10.0
DEFAULT_MAX_OPEN_FILES = 256
_SMALL = 1024  # bytes; pieces below are gathered in one bytearray, or a stream of 1-byte segments would cost 40 times its size
_GATHERED = 16 * 1024  # bytes at which such a bytearray is full
_CHUNK = 1 << 16  # bytes read at once where the reader leaves the size to us


@runtime_checkable
class Stream(Protocol):
    """What a factory makes for each direction of each connection, and what the assembler serves, never from two threads at once."""

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        """The next pieces, in order. The list belongs to the callee; its objects stay what they are for as long as they are held."""

    def reassembly_complete(self) -> None:
        """Nothing more will come. Called exactly once, last."""


@runtime_checkable
class StreamFactory(Protocol):
    """What a `StreamPool` asks for streams. Any callable of the same two arguments does as well."""

    def new(self, net_flow: Flow, transport_flow: Flow) -> Stream:
        """A stream for one direction of a new connection."""


def _check_bytes(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a number of bytes, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} is 1 or more, not {value}")


def _check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds or None, not {type(value).__name__}: {value!r}")
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} is from 0 to {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}")


class ByteCountStream:
    """Counts a stream's bytes and keeps none. A factory by itself: `StreamPool(ByteCountStream)`. The base of the streams below.

    Args:
        net_flow: the addresses; `key` needs both.
        transport_flow: the ports.
    """

    __slots__ = (
        "complete", "ended", "first_seen_ns", "gap_count", "last_seen_ns", "length", "net_flow", "skipped", "started", "transport_flow",
    )  # fmt: skip

    def __init__(self, net_flow: Flow | None = None, transport_flow: Flow | None = None) -> None:
        self.net_flow = net_flow
        self.transport_flow = transport_flow
        self.first_seen_ns: int | None = None
        """Capture time of the earliest packet that brought something, in nanoseconds since 1970; None before any did."""
        self.last_seen_ns: int | None = None
        """The same of the latest packet."""
        self.length = 0
        """Bytes that came."""
        self.skipped = 0
        """Bytes that are missing between those; an unknown start counts as none."""
        self.gap_count = 0
        """Holes with a known length."""
        self.started = False
        """The SYN was captured: the first byte is the stream's first."""
        self.ended = False
        """A FIN or RST was reached. False where the stream was closed for another reason (idleness, the end of the capture)."""
        self.complete = False
        """Nothing more will come."""

    @property
    def key(self) -> ConnectionKey:
        """Who sends to whom. ValueError where the stream was made without flows."""
        if self.net_flow is None or self.transport_flow is None:
            raise ValueError("this stream was made without flows")
        return ConnectionKey(self.net_flow, self.transport_flow)

    @property
    def first_seen(self) -> float | None:
        """`first_seen_ns` in seconds."""
        return None if self.first_seen_ns is None else self.first_seen_ns / 1e9

    @property
    def last_seen(self) -> float | None:
        """`last_seen_ns` in seconds."""
        return None if self.last_seen_ns is None else self.last_seen_ns / 1e9

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        """Counts the next pieces."""
        for piece in reassemblies:
            self._count(piece)

    def reassembly_complete(self) -> None:
        """Marks the stream as complete."""
        self.complete = True

    def _count(self, piece: core.Reassembly) -> None:
        seen_ns = piece.seen_ns  # pieces come in the stream's order, not in that of their times
        if self.first_seen_ns is None or seen_ns < self.first_seen_ns:
            self.first_seen_ns = seen_ns
        if self.last_seen_ns is None or seen_ns > self.last_seen_ns:
            self.last_seen_ns = seen_ns
        if piece.start:
            self.started = True
        if piece.skip > 0:
            self.gap_count += 1
            self.skipped += piece.skip
        self.length += len(piece)
        if piece.end:
            self.ended = True


class ReaderStream(io.RawIOBase):
    """A stream to be read like a file: the assembler fills it in one thread, a reader empties it in another.

    Args:
        loss_errors: raise `DataLost` where bytes are missing, once for each gap, with their number (-1 where the start of the stream
            was never seen); the next read goes on behind the gap. Without it what is there is joined, and only `counts` tells.
        max_buffered_bytes: what the stream holds for its reader. One piece larger than that is taken when nothing else is held.
        timeout: seconds for which the assembler waits when the buffer is full. Then the stream counts as stalled: what
            finds no room is discarded at once, until the reader takes something; the reader gets what was held, and with `loss_errors`
            a DataLost of as many bytes as were discarded there. A logged warning tells the first time. None waits for ever, 0 never.
        read_timeout: seconds for which a read waits for data before it raises TimeoutError. None: until there is data or the end.

    Threads: reading happens in a thread of its own, or in the assembler's thread when nothing more is to come, or while `ready` is true.
    Where the thread that fed the stream reads, and nothing is there, waiting would never end: RuntimeError. For the same reason the
    assembler does not wait for a reader in its own thread: what finds no room is discarded at once.

    `close()`, from any thread at any moment, gives up the rest: a waiting assembler goes on, later bytes are discarded, a waiting read
    raises ValueError as on any closed file. A reader that stops early should close (a `with` block does): then the assembler
    never waits for it.

    Reading: `read(n)` gives up to n bytes, at least one unless the stream is at its end; `readline()` and iteration need no
    BufferedReader. With `loss_errors`, `readline()` gives the part of a line before a gap, and the next call raises; `read()` to the end
    raises at the first gap on its way and keeps what lies before it, so that calling it again gives everything around the gap. An
    io.BufferedReader on top works; but where its own read is interrupted by a DataLost it drops what that call had collected
    (so does every BufferedReader whose raw file raises): with `loss_errors`, read this stream itself or through `read1`.

    >>> stream = ReaderStream()
    >>> stream.reassembly_complete()
    >>> stream.read()
    b''
    """

    def __init__(
        self,
        loss_errors: bool = False,
        *,
        max_buffered_bytes: int = DEFAULT_MAX_BUFFERED_BYTES,
        timeout: float | None = DEFAULT_TIMEOUT,
        read_timeout: float | None = None,
    ) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._readable = threading.Condition(self._lock)
        self._writable = threading.Condition(self._lock)
        self._queue: deque[bytes | bytearray | int] = deque()  # in stream order; an int is a gap, there only with loss_errors
        self._offset = 0  # bytes of the first chunk that were read already
        self._buffered = 0  # bytes in the queue that were not read yet
        self._complete = False
        self._stalled = False
        self._feeder: int | None = None  # ident of the thread that fed last
        self._reader: int | None = None  # ident of the thread that read last
        self.counts = ByteCountStream()
        """What came here so far, whether it was read or not: `counts.length`, `.skipped`, `.gap_count`, `.started`, `.last_seen`, ..."""
        self.discarded = 0
        """Bytes that were captured and came here, but found no reader: the buffer was full for too long, or the stream closed."""
        _check_bytes("max_buffered_bytes", max_buffered_bytes)
        _check_seconds("timeout", timeout)
        _check_seconds("read_timeout", read_timeout)
        self.loss_errors = bool(loss_errors)
        self.max_buffered_bytes = max_buffered_bytes
        self.timeout = timeout
        self.read_timeout = read_timeout

    # The assembler's side.

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        """Takes the next pieces. Waits up to `timeout` seconds where there is no room."""
        with self._lock:
            self._feeder = threading.get_ident()
            self.counts.reassembled(reassemblies)
            for piece in reassemblies:
                if piece.skip:
                    self._note_gap(piece.skip)
                data = piece.bytes
                if data:
                    self._put(data)
            self._readable.notify_all()

    def reassembly_complete(self) -> None:
        """The end: reads give what is held, then b""."""
        with self._lock:
            self._complete = True
            self.counts.reassembly_complete()
            self._readable.notify_all()

    def _put(self, data: bytes) -> None:
        if not self._wait_for_room(len(data)):
            self.discarded += len(data)
            self._note_gap(len(data))
            return
        self._buffered += len(data)
        if len(data) >= _SMALL:
            self._queue.append(data)
            return
        last = self._queue[-1] if self._queue else None
        if isinstance(last, bytearray) and len(last) < _GATHERED:
            last += data
        else:
            self._queue.append(bytearray(data))

    def _note_gap(self, skip: int) -> None:
        if not self.loss_errors or self.closed:
            return
        last = self._queue[-1] if self._queue else None
        if isinstance(last, int) and last > 0 and skip > 0:
            self._queue[-1] = last + skip
        else:
            self._queue.append(skip)

    def _has_room(self, size: int) -> bool:
        # Each gap and each chunk costs memory of its own: a queue of very many is full too.
        return not self._buffered or (
            self._buffered + size <= self.max_buffered_bytes and len(self._queue) <= 16 + self.max_buffered_bytes // 64
        )

    def _wait_for_room(self, size: int) -> bool:
        """True when there is room. Lets go of the lock while it waits."""
        started = None
        while not self.closed:
            if self._has_room(size):
                return True
            if self._stalled or self._reader == self._feeder:
                break
            if started is None:
                started = time.monotonic()
                self._readable.notify_all()
            left = None if self.timeout is None else started + self.timeout - time.monotonic()
            if left is not None and left <= 0:
                break
            self._writable.wait(left)
        if not self.closed and not self._stalled:
            self._stalled = True
            if not self.discarded:
                _log.warning("a ReaderStream is full (%d bytes) and is not read: it discards what comes next", self._buffered)
        return False

    # The reader's side.

    def readable(self) -> bool:
        """True. ValueError when closed."""
        self._check_open()
        return True

    @property
    def ready(self) -> bool:
        """A read would come back at once, with bytes, at the end, or with an error. A zero-length read proves nothing."""
        with self._lock:
            return bool(self._queue) or self._complete or self.closed

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Reads into a buffer. Gives the number of bytes, 0 at the end. Raises as the class says."""
        with memoryview(buffer) as whole, whole.cast("B") as view, self._lock:
            if not len(view):
                self._check_open()
                return 0
            if not self._wait_for_data():
                return 0
            done = 0
            while done < len(view) and self._bytes_in_front():
                part = self._take(len(view) - done)
                view[done : done + len(part)] = part
                done += len(part)
            return done

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, as soon as there is one; b"" at the end. Negative or None: all to the end. Raises as the class says."""
        if size is None or size < 0:
            return self.readall()
        with self._lock:
            if size == 0:
                self._check_open()
                return b""
            if not self._wait_for_data():
                return b""
            first = self._take(size)
            size -= len(first)
            if not size or not self._bytes_in_front():
                return bytes(first)  # a whole piece is handed on as it came
            parts = [first]
            while size and self._bytes_in_front():
                parts.append(self._take(size))
                size -= len(parts[-1])
            return b"".join(parts)

    def readall(self) -> bytes:
        """All to the end. With `loss_errors`, DataLost at the first gap on the way; what lies before it is kept for the next read."""
        parts: list[bytes | bytearray] = []
        with self._lock:
            try:
                while self._wait_for_data():
                    parts.append(self._take(_CHUNK))
            except BaseException:
                self._give_back(parts)
                raise
        return b"".join(parts)

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line with its newline, at most `size` bytes of it unless that is negative or None. What is left before a gap or the end
        comes without a newline."""
        left = -1 if size is None or size < 0 else size
        parts: list[bytes | bytearray] = []
        with self._lock:
            self._check_open()
            try:
                while left:
                    if not self._wait_for_data(stop_at_gap=bool(parts)):
                        break
                    first = self._queue[0]
                    assert not isinstance(first, int)
                    newline = first.find(b"\n", self._offset)
                    length = (len(first) if newline < 0 else newline + 1) - self._offset
                    part = self._take(length if left < 0 else min(length, left))
                    parts.append(part)
                    if part[-1] == 10:
                        break
                    if left > 0:
                        left -= len(part)
            except BaseException:
                self._give_back(parts)
                raise
        return b"".join(parts)

    def close(self) -> None:
        """Gives up what is held and all that will come. Never waits for anything but a moment of the lock."""
        if self.closed:
            return
        with self._lock:
            super().close()
            self.discarded += self._buffered
            self._queue.clear()
            self._buffered = self._offset = 0
            self._readable.notify_all()
            self._writable.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed ReaderStream")

    def _wait_for_data(self, stop_at_gap: bool = False) -> bool:
        """True when bytes lie in front, False at the end. A gap in front: raises its DataLost and forgets it, or False and keeps it."""
        self._reader = threading.get_ident()
        deadline = None if self.read_timeout is None else time.monotonic() + self.read_timeout
        while True:
            self._check_open()
            if self._queue:
                first = self._queue[0]
                if isinstance(first, int):
                    if stop_at_gap:
                        return False
                    self._queue.popleft()
                    self._made_room()
                    raise DataLost(first)
                return True
            if self._complete:
                return False
            if self._reader == self._feeder:
                raise RuntimeError(
                    "nothing to read, and this thread is the one that feeds the stream: waiting would never end"
                    " (flush the assembler first, ask `ready`, or read in another thread)"
                )
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"no data came to this stream for {self.read_timeout} seconds")
            self._readable.wait(left)

    def _bytes_in_front(self) -> bool:
        return bool(self._queue) and not isinstance(self._queue[0], int)

    def _take(self, limit: int) -> bytes | bytearray:
        """Up to `limit` bytes of the first chunk."""
        first = self._queue[0]
        assert not isinstance(first, int)
        part = first if not self._offset and len(first) <= limit else first[self._offset : self._offset + limit]
        self._offset += len(part)
        if self._offset == len(first):
            self._queue.popleft()
            self._offset = 0
        self._buffered -= len(part)
        self._made_room()
        return part

    def _made_room(self) -> None:
        self._stalled = False
        self._writable.notify_all()

    def _give_back(self, parts: list[bytes | bytearray]) -> None:
        """Puts what a failed read had taken in front again."""
        if not parts or self.closed:
            return
        data = b"".join(parts)
        if self._offset:
            first = self._queue[0]
            assert not isinstance(first, int)
            self._queue[0] = first[self._offset :]
            self._offset = 0
        self._queue.appendleft(data)
        self._buffered += len(data)


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _read_part(reader: _Reader) -> bytes:
    # read1 where there is one: a BufferedReader's read drops what it had collected when its raw file raises
    data: bytes | None = getattr(reader, "read1", reader.read)(_CHUNK)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "a reader that does not wait has nothing now")
    return data


def discard_bytes_to_first_error(reader: _Reader) -> int:
    """Reads until the end or the first error, such as DataLost, and gives the number of bytes that came before it.

    Only the RuntimeError of a read that could never end (see `ReaderStream`) passes through.
    """
    count = 0
    while True:
        try:
            data = _read_part(reader)
        except RuntimeError:
            raise
        except Exception:
            return count
        if not data:
            return count
        count += len(data)


def discard_bytes_to_eof(reader: _Reader) -> int:
    """Reads until the end, on across every DataLost, and gives the number of bytes. Other errors pass through."""
    count = 0
    while True:
        try:
            data = _read_part(reader)
        except DataLost:
            continue
        if not data:
            return count
        count += len(data)


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

    def _count(self, piece: core.Reassembly) -> None:
        if piece.skip > 0:
            self._gaps.append((self.length + self.skipped, piece.skip))
        super()._count(piece)


class BytesStream(_GapStream):
    """Collects a stream's bytes in memory; gaps are joined, and listed in `gaps`. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        max_bytes: the most that is kept. None: no limit.
        on_limit: what becomes of the rest: "drop" counts it in `dropped`, "error" raises BufferError, through the assembler, in the call
            that brought it (what fits is kept, and the stream goes on dropping).
    """

    __slots__ = ("_data", "dropped", "max_bytes", "on_limit")

    def __init__(
        self, net_flow: Flow | None = None, transport_flow: Flow | None = None, *, max_bytes: int | None = None, on_limit: str = "error"
    ) -> None:
        super().__init__(net_flow, transport_flow)
        if max_bytes is not None:
            _check_bytes("max_bytes", max_bytes)
        if on_limit not in ("drop", "error"):
            raise ValueError(f"on_limit is 'drop' or 'error', not {on_limit!r}")
        self._data = bytearray()
        self.max_bytes = max_bytes
        self.on_limit = on_limit
        self.dropped = 0
        """Bytes beyond `max_bytes`. `length` counts them too."""

    @property
    def data(self) -> bytes:
        """The bytes so far: a copy."""
        return bytes(self._data)

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        """Appends the next pieces. BufferError beyond `max_bytes`, if asked for."""
        over = False
        for piece in reassemblies:
            self._count(piece)
            data = piece.bytes
            if self.max_bytes is not None and len(self._data) + len(data) > self.max_bytes:
                keep = self.max_bytes - len(self._data)
                over = over or not self.dropped
                self.dropped += len(data) - keep
                data = data[:keep]
            self._data += data
        if over and self.on_limit == "error":
            raise BufferError(f"the stream {self._name()} is longer than the {self.max_bytes} bytes that may be kept")

    def _name(self) -> str:
        return "" if self.net_flow is None or self.transport_flow is None else str(self.key)


class FilePool:
    """The open files of many FileStreams: the least recently written one is closed when too many are open, and opened again when
    its stream goes on.

    Args:
        max_open: files that may be open at once. Where the system allows fewer, fewer it is.

    Made to be closed, best by a `with` block: only then all is on disk. Safe to share between threads.
    """

    def __init__(self, max_open: int = DEFAULT_MAX_OPEN_FILES) -> None:
        if isinstance(max_open, bool) or not isinstance(max_open, int):
            raise TypeError(f"max_open is a number of files, not {type(max_open).__name__}: {max_open!r}")
        if max_open < 1:
            raise ValueError(f"max_open is 1 or more, not {max_open}")
        self.max_open = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()  # the least recently written first
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def create(self, path: str, *, overwrite: bool = False) -> None:
        """Makes an empty file and keeps it open. FileExistsError where there is one, unless overwrite is set."""
        with self._lock:
            self._open_file(path, "w" if overwrite else "x")

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Writes at an offset of a file that `create` made. An offset beyond the end leaves a hole, which reads as zeros."""
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = self._open_file(path, "r+")
            else:
                self._open.move_to_end(path)
            if entry.position != offset:
                entry.file.seek(offset)
            entry.file.write(data)
            entry.position = offset + len(data)

    def finish(self, path: str, size: int | None = None) -> None:
        """Closes a file. It gets the given size, where one is given: a hole at its end needs no bytes."""
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                if size is None:
                    return
                entry = self._open_file(path, "r+")
            del self._open[path]
            with entry.file as file:
                if size is not None:
                    file.truncate(size)

    def close(self) -> None:
        """Closes all files. Later writes raise ValueError."""
        with self._lock:
            self._closed = True
            first: OSError | None = None
            while self._open:
                _, entry = self._open.popitem(last=False)
                try:
                    entry.file.close()
                except OSError as error:  # a full disk: the others still have to be closed
                    first = first or error
            if first is not None:
                raise first

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_file(self, path: str, mode: str) -> _OpenFile:
        if self._closed:
            raise ValueError("this FilePool is closed")
        while len(self._open) >= self.max_open:
            self._close_oldest()
        while True:
            try:
                raw = io.FileIO(path, mode)
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self.max_open = len(self._open)  # the system allows no more
                self._close_oldest()
        entry = self._open[path] = _OpenFile(io.BufferedWriter(raw))
        return entry

    def _close_oldest(self) -> None:
        _, entry = self._open.popitem(last=False)
        entry.file.close()


class _OpenFile:
    __slots__ = ("file", "position")

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file = file
        self.position = 0


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

    __slots__ = ("_make_path", "_position", "fill_gaps", "overwrite", "path", "pool")

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
        self.pool = pool
        self.overwrite = overwrite
        self.fill_gaps = fill_gaps
        self.path: str | None = None
        """Where the bytes are; None as long as there were none."""
        self._make_path = path
        self._position = 0  # in the file: where the next byte goes

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        """Writes the next pieces. OSError where the system refuses."""
        for piece in reassemblies:
            self._count(piece)
            if self.fill_gaps and piece.skip > 0:
                self._position += piece.skip
            data = piece.bytes
            if data:
                self.pool.write(self.path or self._create(), self._position, data)
                self._position += len(data)

    def reassembly_complete(self) -> None:
        """Closes the file."""
        super().reassembly_complete()
        if self.path is not None:
            self.pool.finish(self.path, self._position if self.fill_gaps else None)

    def _create(self) -> str:
        path = os.fspath(self._make_path() if callable(self._make_path) else self._make_path)
        self.pool.create(path, overwrite=self.overwrite)
        self.path = path
        return path
