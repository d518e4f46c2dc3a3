"""Where a stream's bytes go: the `Stream` protocol, the reader half `ReaderStream`, and the names of the ready-made streams.

Lives here: what receives `Reassembly` objects in Python. Not here: what makes them, and the other ready-made streams (the core), and what
runs an assembler (api, follow, cli). `reassembled` is called about once a packet with payload, `reassembly_complete` once a stream.

Two threads meet in a ReaderStream: the assembler's, which calls `reassembled` and `reassembly_complete`, and a reader's. All that
they share is guarded by one lock; only the reader ever waits without a limit.
"""

from __future__ import annotations

import errno
import io
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ._log import Log
from ._select import core
from .errors import DataLost
from .flow import ConnectionKey, Flow
from .options import check_number
from .stop import STOP

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "ByteCountStream",
    "BytesStream",
    "DigestStream",
    "FilePool",
    "FileStream",
    "FlowPaths",
    "ReaderStream",
    "SpanStream",
    "Stream",
    "StreamFactory",
    "discard_bytes_to_eof",
    "discard_bytes_to_first_error",
]

ByteCountStream = core.ByteCountStream
BytesStream = core.BytesStream
DigestStream = core.DigestStream
FilePool = core.FilePool
FileStream = core.FileStream
FlowPaths = core.FlowPaths
SpanStream = core.SpanStream

_log = Log(__name__)

DEFAULT_MAX_BUFFERED_BYTES = 1 << 20
DEFAULT_TIMEOUT = 10.0
_SMALL = 1024  # bytes; pieces below are gathered in one bytearray, or a stream of 1-byte segments would cost 40 times its size
_GATHERED = 16 * 1024  # bytes at which such a bytearray is full
_CHUNK = 1 << 16  # bytes read at once where the reader leaves the size to us


@runtime_checkable
class Stream(Protocol):
    """What a factory makes for each direction of each connection, and what the assembler serves, never from two threads at once. Whatever
    else a stream needs, its factory gives it.

    Its class may have methods that are told of this stream what the functions of the same names in AssemblerOptions are told of all, with
    the same arguments but the two flows: `on_gap(seq, missing, why)`, `on_conflict(seq, held, new, wins)`, `on_evict(why)`. Each is called
    right before that function, where there is one. What it raises comes as from there, and leaves that function untold of the same, and
    what is left to tell of that segment's gaps, or conflicts. All are called once the stream was served: behind `reassembly_complete`
    where it is over then. Where threads share a pool, another one may serve the stream meanwhile. A pool asks each class once.
    """

    def reassembled(self, reassemblies: list[core.Reassembly]) -> object:
        """The next pieces, in order. The list belongs to the callee; its objects stay what they are for as long as they are held.

        Returns `STOP` where the stream needs no more: what is held for it is dropped, and whatever comes later goes by, counted as
        `dropped["stopped"]`. Anything else that is returned is ignored."""

    def reassembly_complete(self) -> None:
        """Nothing more will come. Called exactly once, last but for what there is to tell of gaps, conflicts and eviction: at the end of
        the connection, which a STOP is not."""


@runtime_checkable
class StreamFactory(Protocol):
    """What a `StreamPool` asks for streams. Any callable of the same two arguments does as well."""

    def new(self, net_flow: Flow, transport_flow: Flow) -> Stream:
        """A stream for one direction of a new connection."""


def check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds or None, not {type(value).__name__}: {value!r}")
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} is from 0 to {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}")


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
        key: the ConnectionKey of the stream, for that warning and for whoever asks `key`. None: the warning names nobody.
        context: whatever you like, for the attribute of that name.

    Threads: reading happens in a thread of its own, or in the assembler's thread when nothing more is to come, or while `ready` is true.
    Where the thread that fed the stream reads, and nothing is there, waiting would never end: RuntimeError. For the same reason the
    assembler does not wait for a reader in its own thread: what finds no room is discarded at once.

    `close()`, from any thread at any moment, gives up the rest: a waiting assembler goes on, the next bytes that come are discarded, and
    the stream stops with them (`STOP`), so that later ones do not come here at all; a waiting read raises ValueError as on any closed file.
    A reader that stops early should close (a `with` block does): then the assembler never waits for it.

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
        key: ConnectionKey | None = None,
        context: Any = None,
    ) -> None:
        super().__init__()
        self.context = context
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
        check_number("max_buffered_bytes", max_buffered_bytes, "bytes")
        check_seconds("timeout", timeout)
        check_seconds("read_timeout", read_timeout)
        self.loss_errors = bool(loss_errors)
        self.max_buffered_bytes = max_buffered_bytes
        self.timeout = timeout
        self.read_timeout = read_timeout
        self.key = key
        """Who sends to whom, where that was given."""

    # The assembler's side.

    def reassembled(self, reassemblies: list[core.Reassembly]) -> object:
        """Takes the next pieces. Waits up to `timeout` seconds where there is no room. STOP once it is closed, else None."""
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
            return STOP if self.closed else None

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
                whose = "a ReaderStream" if self.key is None else f"the ReaderStream of {self.key}"
                _log.warning("%s is full (%d bytes) and is not read: it discards what comes next", whose, self._buffered)
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
