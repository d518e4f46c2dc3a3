"""`StreamPool` and `Assembler`: the thin layer that callers see, over whichever core was picked. Written once.

Lives here: constructors, options, seconds, whole captures, with-blocks. Everything that runs once a packet is in the core.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from weakref import WeakSet

from ._select import core
from .capture import Capture, FileCapture, Frame, open_capture
from .clock import Timestamp, seconds_to_ns, to_ns
from .options import DEFAULT_ASSEMBLER_OPTIONS, OVERLAP, SYN_DATA, URGENT, AssemblerOptions, FlushOptions, check_bool, tunnel_bits
from .packets import Told, is_frame, is_live_handle, is_packet, to_frame, told_by
from .stats import AssemblerStats, build_stats
from .streams import Stream, StreamFactory
from .verdict import Verdict

if TYPE_CHECKING:
    from .capture import LiveCapture
    from .conversations import ConversationPool

__all__ = ["Assembler", "CaptureSource", "CaptureSummary", "Progress", "StreamPool"]

CaptureSource = str | os.PathLike[str] | BinaryIO | bytes | bytearray | memoryview | mmap.mmap | Capture | Iterable[Any]
"""What `assemble_capture` and `follow` read: see `Assembler.assemble_capture`."""

Progress = Callable[[Capture], None]
"""Called now and then with the capture that is being read; see its `source_name`, `packets`, `position` and `size`."""

STEP_FRAMES = 64  # frames between two chances for the caller to use what there is
STEP_RECORDS = 1024  # the same in files, where a step costs next to nothing
PROGRESS_STEPS = 64  # such steps between two calls of progress
PROGRESS_RECORD_STEPS = 4
LIVE_POLL = 0.25  # seconds


class StreamPool(core.StreamPoolBase):
    """The connections, each with its stream. Shared by all assemblers that are to see the same connections, in any thread.

    Args:
        factory: makes the stream of each new connection (one direction): an object with `new(net_flow, transport_flow)`, or a
            callable of those two, such as the class of the streams itself. Both are `Flow` objects. TypeError for anything else.

    `len(pool)` is the number of open connections, `pool.keys()` lists them.
    """

    def __init__(self, factory: StreamFactory | Callable[[Any, Any], Stream]) -> None:
        super().__init__(factory)
        self._assemblers: WeakSet[Assembler] = WeakSet()  # that are open

    def _another(self) -> StreamPool:
        """One of the same factory, without connections."""
        return StreamPool(self.factory)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureSummary:
    """What `assemble_capture` did with one source.

    Attributes:
        packets: frames read.
        segments: TCP segments among them.
        streams: streams opened.
        bytes_delivered: payload bytes given to streams.
        bytes_skipped: bytes of the streams that the source does not hold.
        verdicts: the frames by what they were, a Verdict each: SEGMENT, and why others were left out; only those that occurred.
        complete: every file was read to its end and no record was cut.
        problems: what was wrong with files that were not complete, a sentence each.
    """

    packets: int
    segments: int
    streams: int
    bytes_delivered: int
    bytes_skipped: int
    verdicts: Mapping[Verdict, int]
    complete: bool
    problems: tuple[str, ...]


class Assembler(core.AssemblerBase):
    """Brings the segments of TCP connections into order and hands them to streams.

    Args:
        pool: the StreamPool or ConversationPool to serve.
        options: AssemblerOptions; the defaults where None.

    For one thread at a time; several assemblers in several threads may share a pool. Calling back into the same assembler from a
    stream's callback raises RuntimeError. An exception of a stream or of the factory passes through unchanged, after the state
    was brought up to date: the assembler goes on working, and bytes that were handed over count as delivered.

    As a context manager it is closed at the end, which gives out everything and closes every connection. Where several assemblers
    are open on one pool, the last one to be closed does that.
    """

    def __init__(self, pool: StreamPool | ConversationPool, options: AssemblerOptions | None = None) -> None:
        if not isinstance(pool, core.StreamPoolBase):
            raise TypeError(f"pool is a StreamPool, not {type(pool).__name__}: {pool!r}")
        options = DEFAULT_ASSEMBLER_OPTIONS if options is None else options
        if not isinstance(options, AssemblerOptions):
            raise TypeError(f"options are AssemblerOptions, not {type(options).__name__}: {options!r}")
        self.pool = pool
        self.options = options
        pool._assemblers.add(self)
        self._setup(
            pool,
            max_buffered_pages_total=options.max_buffered_pages_total,
            max_buffered_pages_per_connection=options.max_buffered_pages_per_connection,
            overlap=OVERLAP[options.overlap],
            on_conflict=options.on_conflict,
            urgent=URGENT[options.urgent],
            paws=options.paws,
            syn_data=SYN_DATA[options.syn_data],
            max_buffered_bytes_total=options.max_buffered_bytes_total or 0,
            max_buffered_bytes_per_connection=options.max_buffered_bytes_per_connection or 0,
            verify_checksums=2 if options.verify_checksums == "auto" else int(options.verify_checksums),
            tunnels=tunnel_bits(options.decapsulate),
            defragment=options.defragment,
            fragment_timeout_ns=_wait_ns(options.fragment_timeout),
            max_fragmented_datagrams=options.max_fragmented_datagrams,
            max_fragment_bytes=options.max_fragment_bytes,
            start_wait_segments=-1 if options.start_wait_segments is None else options.start_wait_segments,
            start_wait_ns=_wait_ns(options.start_wait),
            max_gap=2**31 - 1 if options.max_gap is None else options.max_gap,
            hole_timeout_ns=_wait_ns(options.hole_timeout),
            acked_timeout_ns=_wait_ns(options.acked_hole_timeout),
            idle_timeout_ns=_wait_ns(options.idle_timeout),
            closed_timeout_ns=_wait_ns(options.closed_timeout),
            max_connections=options.max_connections,
            opens_on_data=options.open_on == "data",
            on_evict=options.on_evict,
            on_gap=options.on_gap,
            depth=options.depth or 0,
        )

    def assemble_capture(
        self,
        source: CaptureSource,
        *,
        linktype: int = 1,
        flush: bool = True,
        threads: int = 1,
        coalesce: bool = False,
        progress: Progress | None = None,
    ) -> CaptureSummary:
        """Take in a whole capture, flushing on capture time by itself (`hole_timeout`, `idle_timeout`).

        Args:
            source: a path; "-" for standard input; a binary file object; the bytes of a capture file, or an mmap of it; an open capture
                (`open_capture`, `open_live`); an iterable of frames: packets of scapy (a PcapReader, a PacketList, what it sniffed),
                `(seconds, frame)` pairs as dpkt's readers and pypcap's handles give them, live ones too, or `Frame` objects; or a
                list of any of these, read one after the other with the state kept in between.
            linktype: LINKTYPE_ number of such frames. 1, for Ethernet, where neither the iterable tells (`datalink()`, `linktype`)
                nor what a packet of scapy or dpkt begins with.
            flush: give out and close everything at the end, unless another assembler is open on the pool. False keeps the state for
                what comes next, and the file open (or the bytes in memory) as long as something in it waits.
            threads: how many take the capture in, each with the connections that a hash of their addresses and ports gives it: the
                same streams, bytes and gaps as with one. Each connection's two directions come in one thread, in packet order, but
                those of different threads at the same time; the factory is called in all of them. Streams that this package brings
                run truly side by side, those written in Python take turns. For captures in files, into a pool without connections;
                no connection is kept for what comes next, only what is known of senders (`verify_checksums="auto"`). After an exception of
                a stream the others get what is held for them, too.
            coalesce: give each stream all that it gets within about a thousand packets (within a block, with several threads) in one
                call of `reassembled`: fewer calls, the same pieces.
            progress: called now and then with the capture at hand, in this thread; with several threads, at the end of each capture.
                The capture tells `source_name`, `packets` (frames read), `position` (bytes of the file read) and `size` (bytes of the
                file in all, None where that is not known):

                    def progress(capture):
                        print(capture.source_name, capture.packets, "packets,", capture.position, "of", capture.size, "bytes")

        A file that ends in the middle of a record gives everything before it; the summary says so. CaptureError for a source
        that is no capture. An open capture is closed at its end; where an exception comes before that, an open capture file stays
        open, and with one thread another call goes on behind the frame at hand. A live capture goes on until it is stopped; Ctrl-C
        gives out everything, then raises KeyboardInterrupt.
        """
        before = self.stats
        problems: list[str] = []
        check_bool("flush", flush)
        check_bool("coalesce", coalesce)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is a callable or None, not {type(progress).__name__}: {progress!r:.80}")
        if _checked_threads(threads) > 1:
            self._assemble_sharded(source, linktype, flush, threads, coalesce, progress, problems)
            return self._summary(before, problems)
        for _ in self.assemble_steps(source, linktype=linktype, flush=flush, coalesce=coalesce, progress=progress, problems=problems):
            pass
        return self._summary(before, problems)

    def _summary(self, before: AssemblerStats, problems: list[str]) -> CaptureSummary:
        after = self.stats
        return CaptureSummary(
            packets=after.frames - before.frames,
            segments=after.segments - before.segments,
            streams=after.streams_opened - before.streams_opened,
            bytes_delivered=after.bytes_delivered - before.bytes_delivered,
            bytes_skipped=after.bytes_skipped - before.bytes_skipped,
            verdicts={
                verdict: count - before.verdicts.get(verdict, 0)
                for verdict, count in after.verdicts.items()
                if count > before.verdicts.get(verdict, 0)
            },
            complete=not problems,
            problems=tuple(problems),
        )

    def assemble_steps(
        self,
        source: CaptureSource,
        *,
        linktype: int = 1,
        flush: bool = True,
        coalesce: bool = False,
        progress: Progress | None = None,
        problems: list[str] | None = None,
        step_frames: int = STEP_FRAMES,
    ) -> Iterator[None]:
        """`assemble_capture` in small steps: yields between them, so that the caller can use what the streams have got so far.

        Args:
            source, linktype, flush, coalesce, progress: as for `assemble_capture`.
            problems: a list, to which is appended what was wrong with a file.
            step_frames: so many frames make a step where they come one by one, out of an iterable.
        """
        base = 0
        try:
            for capture, keeps in _captures(source, linktype):
                with _closing(capture, keeps):
                    if capture.waits:
                        yield from self._live_steps(cast("LiveCapture", capture), progress)
                    elif isinstance(capture, FileCapture):
                        yield from self._file_steps(capture, coalesce, base, progress)
                        base += capture.length
                    else:
                        yield from self._frame_steps(capture, progress, step_frames)
                    if capture.problem is not None and problems is not None:
                        problems.append(f"{capture.source_name}: {capture.problem}")
        except KeyboardInterrupt:
            if flush and self._is_alone():
                self.finish()
            raise
        if flush and self._is_alone():
            self.finish()
            yield

    def _assemble_sharded(
        self,
        source: CaptureSource,
        linktype: int,
        flush: bool,
        threads: int,
        coalesce: bool,
        progress: Progress | None,
        problems: list[str],
    ) -> None:
        """`assemble_capture` with several threads: as many assemblers, each with a pool of its own, which end with the call."""
        if not flush:
            raise ValueError(f"threads={threads} keeps nothing for what comes next: flush is True")
        self._occupy()
        try:
            if len(self.pool):
                raise ValueError(f"threads={threads} takes a pool without connections, and this one has {len(self.pool)}")
            self._take_in_shards(source, linktype, threads, coalesce, progress, problems)
        finally:
            self._vacate()

    def _take_in_shards(
        self, source: CaptureSource, linktype: int, threads: int, coalesce: bool, progress: Progress | None, problems: list[str]
    ) -> None:
        shards = [Assembler(self.pool._another(), self.options) for _ in range(threads)]
        for shard in shards:
            shard._share_limit(shards)
            shard._number_from(self.packets_given)
            shard._take_time_of(self)
        shards[0]._stand_in(self)  # which settles what is no matter of one frame alone
        errors: list[BaseException] = []
        base = 0
        try:
            for capture, keeps in _captures(source, linktype):
                if not isinstance(capture, FileCapture):
                    raise ValueError(f"threads={threads} takes captures in files, not {capture.source_name}")
                with _closing(capture, keeps):
                    work = core.Shards(shards, capture.records, coalesce, base)
                    work.begin()
                    _in_threads(threads, work.run, work.stop)
                    work.end()
                    if progress is not None:
                        progress(capture)
                    if work.error is not None:
                        raise work.error
                    base += capture.length
                    if capture.problem is not None:
                        problems.append(f"{capture.source_name}: {capture.problem}")
        except BaseException as raised:
            errors.append(raised)

        def finish(shard: int) -> None:
            try:
                shards[shard].finish()
            except BaseException as raised:
                errors.append(raised)

        _in_threads(threads, finish, errors.append)
        for shard in shards:
            self._absorb(shard)
        if errors:
            raise errors[0]

    def _is_alone(self) -> bool:
        """No other assembler is open on the pool."""
        return len(self.pool._assemblers) == (self in self.pool._assemblers)

    def _file_steps(self, capture: FileCapture, coalesce: bool, base: int, progress: Progress | None) -> Iterator[None]:
        steps = 0
        while self.assemble_records(capture.records, STEP_RECORDS, coalesce, base):
            steps += 1
            if progress is not None and steps % PROGRESS_RECORD_STEPS == 0:
                progress(capture)
            yield
        if progress is not None:
            progress(capture)

    def _frame_steps(self, capture: Capture, progress: Progress | None, step_frames: int) -> Iterator[None]:
        frames = iter(capture)
        steps = 0
        while True:
            size = 0
            for frame in islice(frames, step_frames):
                self.assemble_frame(frame.data, timestamp_ns=frame.timestamp_ns, linktype=frame.linktype, wire_length=frame.wire_length)
                self.tick()
                size += 1
            steps += 1
            if progress is not None and (steps % PROGRESS_STEPS == 0 or size < step_frames):
                progress(capture)
            if size < step_frames:
                return
            yield

    def _live_steps(self, capture: LiveCapture, progress: Progress | None) -> Iterator[None]:
        while not capture.stopped:
            frame = capture.poll(LIVE_POLL)
            if frame is None:
                self.advance_clock(to_ns(None))
            else:
                self.assemble_frame(frame.data, timestamp_ns=frame.timestamp_ns, linktype=frame.linktype, wire_length=frame.wire_length)
            self.tick()
            if progress is not None:
                progress(capture)
            yield

    def flush_older_than(self, t: Timestamp) -> tuple[int, int]:
        """Give out what has been held since before t, and close what has seen nothing since then.

        Args:
            t: capture time: seconds since 1970 or an aware datetime.

        Returns (flushed, closed): connections that gave something out or were closed, and those that were closed.

        A connection whose lowest held data is older than t gives that out with `skip` set, and what is contiguous with it; further
        islands only if something in them or behind them is older than t too.
        """
        if t is None:
            raise TypeError("t is seconds or an aware datetime, not None (flush_all gives out everything)")
        return self.flush_with_options(FlushOptions(t=t, close_all=True))

    def flush_with_options(self, options: FlushOptions) -> tuple[int, int]:
        """`flush_older_than`, closing idle connections only if `options.close_all`. Without a time, everything counts as old."""
        if not isinstance(options, FlushOptions):
            raise TypeError(f"options are FlushOptions, not {type(options).__name__}: {options!r}")
        return self.flush_ns(None if options.t is None else to_ns(options.t, name="t"), options.close_all)

    def flush_all(self) -> int:
        """Give out everything and close every connection. Returns their number."""
        return self.finish()

    def close(self) -> None:
        """`flush_all`, unless another assembler is open on the pool, and no more calls. A second call does nothing."""
        if self.closed:
            return
        self.pool._assemblers.discard(self)
        try:
            self.shut(self._is_alone())
        finally:
            if not self.closed:  # refused: called from a callback
                self.pool._assemblers.add(self)

    @property
    def stats(self) -> AssemblerStats:
        """The counters, as they are now."""
        counters, verdicts, fragment_counters, now = self.counters()
        return build_stats(counters, verdicts, fragment_counters, **now)

    def __enter__(self) -> Assembler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _checked_threads(threads: int) -> int:
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads is a number, not {type(threads).__name__}: {threads!r}")
    if not 1 <= threads <= core.MAX_THREADS:
        raise ValueError(f"threads is from 1 to {core.MAX_THREADS}, not {threads}")
    return threads


def _in_threads(count: int, work: Callable[[int], None], stop: Callable[[BaseException], None]) -> None:
    """work(0) in this thread and the others in threads of their own, until all have returned. They raise nothing; what is raised around
    them (Ctrl-C while this thread waits for the others, a thread that cannot be started) goes to `stop`, and all are waited for even so."""
    left = set(range(count))
    ended = [Event() for _ in range(count)]

    def run(number: int) -> None:
        try:
            left.remove(number)
        except KeyError:
            return  # somebody else does it
        try:
            work(number)
        finally:
            ended[number].set()

    def attempt(call: Callable[[], Any]) -> bool:
        try:
            call()
        except BaseException as raised:
            stop(raised)
            return False
        return True

    threads = [Thread(target=run, args=(number,), name=f"tcpreasm-{number}") for number in range(1, count)]
    # One whose start failed may run even so.
    for number in [0, *(number for number, thread in enumerate(threads, 1) if not attempt(thread.start))]:
        while number in left:
            attempt(partial(run, number))
    # A join that is interrupted may take the thread for one that has ended (CPython 3.11): it comes when all have.
    for event in ended:
        while not event.is_set():
            attempt(event.wait)
    for thread in threads:
        while thread.is_alive():
            attempt(thread.join)


def _wait_ns(seconds: float | None) -> int:
    return -1 if seconds is None else seconds_to_ns(seconds)


@contextmanager
def _closing(capture: Capture, keeps: bool) -> Iterator[None]:
    try:
        yield
    except GeneratorExit:  # nobody goes on
        capture.close()
        raise
    except BaseException:
        if not keeps:
            capture.close()
        raise
    capture.close()


def _captures(source: CaptureSource, linktype: int) -> Iterator[tuple[Capture, bool]]:
    """Each capture, and whether an exception leaves it open: the caller's files, which can be gone on with."""
    if isinstance(source, Capture):
        yield source, isinstance(source, FileCapture)
    elif isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read"):
        yield open_capture(cast("Any", source)), False
    elif isinstance(source, (list, tuple)) and not (source and is_frame(source[0])):
        for part in source:
            yield from _captures(part, linktype)
    elif is_packet(source):
        raise TypeError(f"a single packet goes to assemble_frame, not to assemble_capture: {source!r:.80}")
    elif is_live_handle(source):
        from .capture.live import borrow_handle  # which few programs need

        yield borrow_handle(source), False
    elif isinstance(source, Iterable):
        yield _FrameSource(source, told_by(source, linktype)), False
    else:
        raise TypeError(
            f"a capture is a path, a binary file, bytes, an mmap or an iterable of frames, not {type(source).__name__}: {source!r}"
        )


class _FrameSource(Capture):
    """Frames that the caller brings, as a capture."""

    def __init__(self, frames: Iterable[Any], told: Told) -> None:
        super().__init__("frames", type(frames).__name__, None)
        self._frames = frames
        self._told = told
        self._bytes = 0

    @property
    def position(self) -> int:
        """Bytes of the frames so far."""
        return self._bytes

    def close(self) -> None:
        """The iterable is the caller's, and stays as it is."""

    def __iter__(self) -> Iterator[Frame]:
        for item in self._frames:
            frame = to_frame(item, self._told)
            self.packets += 1
            self._bytes += len(frame.data)
            yield frame
        self._ended = True
