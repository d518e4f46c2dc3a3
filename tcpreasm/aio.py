"""For programs that run on asyncio: `follow` gives finished streams, `readers` a reader for each stream while it is captured.

Lives here: the thread in which a capture is read, and how what it brings gets to the event loop, in bounded quantity. Not here: reading
and assembling (api), and what a finished stream is (follow).

The thread never touches what belongs to the loop: it posts batches with `call_soon_threadsafe`, one under way at a time. The loop never
waits for the thread: what both look at lies under a condition that is held for a few lines. What asyncio.StreamReader can do (its buffer,
its limit, pausing and resuming a transport) is left to it: each stretch of a stream without a gap has one.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import closing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._log import Log
from .api import Assembler, CaptureSource, StreamPool
from .errors import CaptureError, DataLost
from .flow import ConnectionKey, Flow
from .follow import FinishedStream, finished_steps
from .options import AssemblerOptions, check_bool, check_number
from .streams import DEFAULT_TIMEOUT, ByteCountStream, check_seconds

if TYPE_CHECKING:
    from ._select import core

__all__ = ["Reader", "follow", "readers"]

_log = Log(__name__)

DEFAULT_LIMIT = 1 << 16
DEFAULT_FINISHED_BYTES = 1 << 24
_STREAM_COST = 1 << 10  # bytes that a finished stream counts for beside its data: very many empty ones are too much as well
_ITEM_COST = 1 << 7  # the same for each piece that is posted
_BACKLOG = 1 << 10  # readers that wait to be taken
_LOOK = 1.0  # seconds after which a thread that waits looks whether its loop is still there

T = TypeVar("T")


class _Work(ABC, Generic[T]):
    """A capture that is read in a thread of its own, and the items that come of it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.shared = threading.Condition()  # its lock is reentrant: a weak reference may call back wherever memory is given back
        self.stopping = False
        self.items: deque[tuple[T, int]] = deque()  # not taken yet, with their sizes
        self.size = 0  # of all of them
        self.taken = 0  # a number that grows whenever something is taken out
        self._error: BaseException | None = None
        self._ended = False
        self._arrived = asyncio.Event()
        self._gone = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tcpreasm-aio", daemon=True)

    # The thread's side.

    @abstractmethod
    def steps(self) -> Generator[None, None, None]:
        """Reads the capture. Yields often, so that it can be stopped."""

    def finish(self, error: BaseException | None) -> None:
        """The last thing that the thread does but for going away."""

    def _run(self) -> None:
        try:
            with closing(self.steps()) as steps:
                for _ in steps:
                    if self.stopping:
                        break
        except BaseException as error:  # it comes out of the iteration in the loop
            self._error = error
        try:
            self.finish(self._error)
        finally:
            self.tell(self._note_end)

    def tell(self, call: Callable[..., None], *arguments: object) -> None:
        """The loop makes this call soon."""
        try:
            self.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop was closed, and nobody waits for anything
            self.stopping = True

    def wait(self, seconds: float = _LOOK) -> None:
        """A moment, or until something was taken; `shared` is held."""
        self.shared.wait(min(seconds, _LOOK))
        if self.loop.is_closed():
            self.stopping = True

    # The loop's side.

    def start(self) -> None:
        self._thread.start()

    def _note_end(self) -> None:
        """Behind all that was posted."""
        self._ended = True
        self._arrived.set()
        self._gone.set()

    async def next(self) -> T | None:
        """The next item; None at the end. Raises what ended the thread, after the last item."""
        while True:
            with self.shared:
                if self.items:
                    item, size = self.items.popleft()
                    self.size -= size
                    self.note_taken()
                    return item
                if self._ended:
                    break
                self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return None

    def note_taken(self) -> None:
        """The thread may find that it can go on."""
        with self.shared:
            self.taken += 1
            self.shared.notify_all()

    async def end(self) -> None:
        """Stops the thread, and comes when it has ended. Cancelled, it soon lets the thread end by itself."""
        self.stopping = True
        self.note_taken()
        if self.loop.is_closed():
            self._thread.join()
            return
        try:
            await self._gone.wait()
        except asyncio.CancelledError:  # also where the loop itself ends, which cancels who closes an iterator that nobody holds
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _LOOK)
            raise
        finally:
            if self._gone.is_set():
                self._thread.join()


class _Following(_Work[FinishedStream]):
    def __init__(self, source: CaptureSource, options: AssemblerOptions | None, provenance: bool, limit: int) -> None:
        super().__init__()
        self._source = source
        self._options = options
        self._provenance = provenance
        self._limit = limit

    def steps(self) -> Generator[None, None, None]:
        for finished in finished_steps(self._source, self._options, self._provenance, step_frames=1):
            for stream in finished:
                rows = 0 if stream.provenance is None else stream.provenance.nbytes
                self._put(stream, len(stream.data) + rows + _STREAM_COST)
            yield

    def _put(self, stream: FinishedStream, size: int) -> None:
        with self.shared:
            while self.items and self.size + size > self._limit and not self.stopping:
                self.wait()
            if self.stopping:
                return
            first = not self.items
            self.items.append((stream, size))
            self.size += size
        if first:
            self.tell(self._arrived.set)


async def follow(
    source: CaptureSource, options: AssemblerOptions | None = None, *, provenance: bool = False, limit: int = DEFAULT_FINISHED_BYTES
) -> AsyncIterator[FinishedStream]:
    """`tcpreasm.follow` for asyncio: the finished streams of a capture, which is read in a thread.

        async for stream in tcpreasm.aio.follow("capture.pcapng"):
            print(stream)

    Args:
        source, options, provenance: as for `tcpreasm.follow`. An iterable of frames is iterated in the thread.
        limit: bytes of finished streams that may wait to be taken. The thread waits where there would be more; a longer one comes alone.

    What ends the capture (OSError, CaptureError, an error of the iterable) comes out of the iteration, after the streams before it.

    Leaving the iteration early stops the capture and waits until its thread has ended: at once where the task is cancelled in it, else when
    the iterator is closed (`async with contextlib.aclosing(...)`, or when nobody holds it any more). A thread that waits for its source (a
    pipe, an iterable; not a live capture) ends when that gives something; a second cancellation waits a second for it, no more.
    """
    check_number("limit", limit, "bytes")
    work = _Following(source, options, provenance, limit)
    work.start()
    try:
        while (stream := await work.next()) is not None:
            yield stream
    finally:
        await work.end()


# ---- readers


class _Feed:
    """A stream of the pool, and the transport that its reader's asyncio.StreamReader pauses and resumes."""

    __slots__ = ("__weakref__", "counts", "discarded", "gone", "key", "reader", "stalled", "work")

    def __init__(self, work: _Reading, net_flow: Flow, transport_flow: Flow) -> None:
        self.work = work
        self.key = ConnectionKey(net_flow, transport_flow)
        self.counts = ByteCountStream(net_flow, transport_flow)
        self.discarded = 0
        self.gone = False  # nobody reads any more
        self.stalled = False  # it was full for too long
        self.reader: Callable[[], Reader | None] = lambda: None

    # The thread's side.

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        self.counts.reassembled(reassemblies)
        for piece in reassemblies:
            if piece.skip and self.work.loss_errors:
                self.work.post(self, piece.skip)
            if not len(piece):
                continue
            if self.gone or self.work.stopping:
                self.discarded += len(piece)
            else:
                self.work.post(self, piece.bytes, len(piece))

    def reassembly_complete(self) -> None:
        self.counts.reassembly_complete()
        self.work.open.discard(self)
        self.work.post(self, None)

    # The loop's side.

    def deliver(self, item: bytes | int | BaseException | None) -> None:
        reader = self.reader()
        if reader is None or self.gone:
            self.discarded += len(item) if isinstance(item, bytes) else 0
        elif isinstance(item, bytes) and self.stalled:
            self.discarded += len(item)
            if self.work.loss_errors:
                reader.take(len(item))
        else:
            reader.take(item)

    def pause_reading(self) -> None:
        with self.work.shared:
            if not self.gone:
                self.work.full.add(self)

    def resume_reading(self) -> None:
        with self.work.shared:
            self.stalled = False
            self.work.full.discard(self)
            self.work.note_taken()

    def close(self, _reader: object = None) -> None:
        """Nothing is kept any more. Also where the reader was forgotten, in whatever thread that happens."""
        with self.work.shared:
            self.gone = True
            self.resume_reading()


class Reader:
    """One direction of one connection, to be read while it is captured; made by `readers`. Reads are those of asyncio.StreamReader.

    Attributes:
        key: who sends to whom, a ConnectionKey.
        counts: what came so far, read or not: `counts.length`, `.skipped`, `.gap_count`, `.started`, `.last_seen`, ...

    With `loss_errors`, a gap ends what a read waits for: it gives what lies before (`readexactly` and `readuntil` raise
    asyncio.IncompleteReadError with it), and the next read raises DataLost once and forgets the gap. Where the capture ends before the
    stream, because it failed or was given up, reads give what is there, then raise CaptureError.

    Everything here is for the event loop's thread. A reader that is closed, or that nobody holds, never makes the capture wait.
    """

    def __init__(self, feed: _Feed) -> None:
        self.key = feed.key
        self.counts = feed.counts
        self._feed = feed
        self._behind: deque[bytes | int | BaseException | None] = deque()  # behind the stretch at hand: a gap or an error comes first
        self._behind_bytes = 0
        self._stretch = self._new_stretch()

    def _new_stretch(self) -> asyncio.StreamReader:
        stretch = asyncio.StreamReader(limit=self._feed.work.limit, loop=self._feed.work.loop)
        stretch.set_transport(self._feed)  # type: ignore[arg-type]  # it is asked to pause and to resume, no more
        return stretch

    @property
    def discarded(self) -> int:
        """Bytes that were captured and came here, but found no reader: it was full for too long, or closed."""
        return self._feed.discarded

    def take(self, item: bytes | int | BaseException | None) -> None:
        """The next bytes, the length of a gap, None at the end, or an error instead of the end. Called by `readers`."""
        if not self._behind and isinstance(item, bytes):
            self._stretch.feed_data(item)
            return
        if not self._behind:
            self._stretch.feed_eof()
            if item is None:
                return
        last = self._behind[-1] if self._behind else None
        if isinstance(item, int) and isinstance(last, int) and item > 0 < last:
            self._behind[-1] = last + item
            return
        self._behind.append(item)
        self._behind_bytes += _ITEM_COST + (len(item) if isinstance(item, bytes) else 0)
        if self._behind_bytes > self._feed.work.limit:
            self._feed.pause_reading()

    def _pass_end(self) -> None:
        """Raises what stands behind the stretch at hand, if that was read to its end, and goes on to the next one."""
        if not self._behind or not self._stretch.at_eof():
            return
        what = self._behind[0]
        if isinstance(what, BaseException):
            raise what
        assert isinstance(what, int)
        items, self._behind, self._behind_bytes = self._behind, deque(), 0
        items.popleft()
        self._stretch = self._new_stretch()
        self._feed.resume_reading()
        for item in items:
            self.take(item)
        raise DataLost(what)

    async def _ask(self, answer: Callable[[asyncio.StreamReader], Awaitable[bytes]], *, may_be_empty: bool = False) -> bytes:
        self._pass_end()
        try:
            data = await answer(self._stretch)
        except asyncio.IncompleteReadError as error:
            lost = error
        else:
            if data or may_be_empty:
                self._feed.work.note_taken()
            else:
                self._pass_end()  # what it waited for was none
            return data
        if not lost.partial:
            self._pass_end()
        raise lost

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, as soon as there is one; b"" at the end. Negative: all to the end (with `loss_errors`: or to the next gap)."""
        return await self._ask(lambda stretch: stretch.read(n), may_be_empty=n == 0)

    async def readexactly(self, n: int) -> bytes:
        """n bytes. asyncio.IncompleteReadError where there are not as many."""
        return await self._ask(lambda stretch: stretch.readexactly(n), may_be_empty=n == 0)

    async def readline(self) -> bytes:
        """A line with its newline; what is left at the end comes without. ValueError where it is longer than the limit."""
        return await self._ask(lambda stretch: stretch.readline())

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """The bytes up to the separator, and that. asyncio.IncompleteReadError where there is none, LimitOverrunError beyond the limit."""
        return await self._ask(lambda stretch: stretch.readuntil(separator))

    def at_eof(self) -> bool:
        """Everything was read, and nothing more will come."""
        return self._stretch.at_eof() and not self._behind

    def close(self) -> None:
        """Gives up what is held and all that will come: reads, also one that waits, raise ValueError."""
        if self._feed.gone:
            return
        self._feed.close()
        self._behind.clear()
        closed = ValueError("I/O operation on a closed Reader")
        self._stretch.set_exception(closed)  # whoever waits
        self._stretch = self._new_stretch()
        self._stretch.set_exception(closed)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        """The next line."""
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __repr__(self) -> str:
        return f"<Reader of {self.key}>"


class _Reading(_Work[Reader]):
    def __init__(
        self, source: CaptureSource, options: AssemblerOptions | None, loss_errors: bool, limit: int, timeout: float | None
    ) -> None:
        super().__init__()
        self.loss_errors = loss_errors
        self.limit = limit
        self.full: set[_Feed] = set()  # that hold more than they should; under `shared`
        self.open: set[_Feed] = set()  # whose end has not come; the thread's own
        self._source = source
        self._options = options
        self._timeout = timeout
        self._backlog = _BACKLOG
        self._batch: list[tuple[_Feed, Any]] = []
        self._batch_size = 0
        self._under_way = False  # a batch was posted, and the loop did not come to it yet

    # The thread's side.

    def steps(self) -> Generator[None, None, None]:
        problems: list[str] = []
        for _ in Assembler(StreamPool(self), self._options).assemble_steps(self._source, step_frames=1, problems=problems):
            self._hand_over()
            yield
            while problems:
                _log.warning("%s", problems.pop())

    def new(self, net_flow: Flow, transport_flow: Flow) -> _Feed:
        """Makes the stream of a new connection, and its reader."""
        feed = _Feed(self, net_flow, transport_flow)
        reader = Reader(feed)
        feed.reader = weakref.ref(reader, feed.close)
        self.open.add(feed)
        self.post(feed, reader)
        return feed

    def post(self, feed: _Feed, item: object, size: int = 0) -> None:
        """To be handed over, at the latest when as much has come as a reader should hold."""
        self._batch.append((feed, item))
        self._batch_size += size + _ITEM_COST
        if self._batch_size >= self.limit:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._batch:
            return
        self._wait_for_room()
        batch, self._batch, self._batch_size = self._batch, [], 0
        self._under_way = True
        self.tell(self._apply, batch)

    def _wait_for_room(self) -> None:
        warnings: list[str] = []
        taken, since = -1, 0.0
        with self.shared:
            while not self.stopping:
                if self._under_way:
                    self.wait()
                    continue
                if not self.full and len(self.items) < self._backlog:
                    break
                if self.taken != taken:
                    taken, since = self.taken, time.monotonic()
                left = _LOOK if self._timeout is None else since + self._timeout - time.monotonic()
                if left <= 0:
                    warnings = self._go_on_without()
                    break
                self.wait(left)
        for text in warnings:
            _log.warning("%s", text)

    def _go_on_without(self) -> list[str]:
        """Those that are full get no more until they are read. Gives what there is to be told of that."""
        full, self.full = self.full, set()
        warnings = [f"the reader of {feed.key} is full and is not read: it discards what comes next" for feed in full if not feed.discarded]
        for feed in full:
            feed.stalled = True
        if len(self.items) >= self._backlog:
            self._backlog *= 2
            warnings.append(f"{len(self.items)} readers wait to be taken, and more come")
        return warnings

    def finish(self, error: BaseException | None) -> None:
        for feed in self.open:
            broken = CaptureError("the capture was given up before this stream ended" if error is None else f"the capture failed: {error}")
            broken.__cause__ = error
            self._batch.append((feed, broken))
        self.tell(self._apply, self._batch)

    # The loop's side.

    def _apply(self, batch: list[tuple[_Feed, Any]]) -> None:
        try:
            for feed, item in batch:
                if isinstance(item, Reader):
                    self.items.append((item, 0))
                    self._arrived.set()
                else:
                    feed.deliver(item)
        finally:
            with self.shared:
                self._under_way = False
                self.shared.notify_all()


async def readers(
    source: CaptureSource,
    options: AssemblerOptions | None = None,
    *,
    loss_errors: bool = False,
    limit: int = DEFAULT_LIMIT,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> AsyncIterator[Reader]:
    """A `Reader` for each stream of a capture, as soon as it begins, while the capture is read in a thread; live ones too.

        async with asyncio.TaskGroup() as tasks:
            async for reader in tcpreasm.aio.readers(tcpreasm.open_live("eth0")):
                tasks.create_task(handle(reader))

    Read each in a task of its own: the thread waits for the slowest.

    Args:
        source, options: as for `tcpreasm.follow`. An iterable of frames is iterated in the thread.
        loss_errors: raise DataLost where bytes are missing, as `Reader` says. Without it what is there is joined; `counts` tells.
        limit: bytes; as for asyncio.StreamReader. The thread waits while a reader holds more than twice as much; none holds more than
            four times as much and a packet.
        timeout: seconds for which the thread waits where nothing is read. Then readers that are full count as stalled: what comes for
            them is discarded until they are read again, and with `loss_errors` they raise a DataLost of as many bytes. None waits for ever.

    Ends when the capture has been read; readers that are open go on to their end. Errors, and leaving it early, are as for `follow`.
    """
    check_bool("loss_errors", loss_errors)
    check_number("limit", limit, "bytes")
    check_seconds("timeout", timeout)
    work = _Reading(source, options, loss_errors, limit, timeout)
    work.start()
    try:
        while (reader := await work.next()) is not None:
            yield reader
            del reader  # what the caller does not keep is closed
    finally:
        await work.end()
