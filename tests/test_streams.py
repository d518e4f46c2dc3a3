"""Streams on their own, fed with pieces made here: no core, no capture.

Threads are joined with a time limit: a bug fails, it does not hang.
"""

from __future__ import annotations

import gc
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LIMIT = 20.0  # seconds after which a thread counts as hanging


@dataclass
class Piece:
    """A stand-in for Reassembly."""

    bytes: bytes = b""
    skip: int = 0
    start: bool = False
    end: bool = False
    seen_ns: int = 0

    @property
    def seen(self) -> float:
        return self.seen_ns / 1e9

    def __len__(self) -> int:
        return len(self.bytes)


class Task(threading.Thread):
    """A call in a thread of its own; `result()` gives what it gave or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(LIMIT)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._value


@pytest.fixture
def streams(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> ModuleType:
    return submodule(tcpreasm, "streams")


@pytest.fixture
def data_lost(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> type[OSError]:
    lost: type[OSError] = submodule(tcpreasm, "errors").DataLost
    return lost


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.001)


def fed(stream: Any, *pieces: Piece, complete: bool = True) -> Any:
    """The stream, fed by another thread."""

    def feed() -> None:
        for piece in pieces:
            stream.reassembled([piece])
        if complete:
            stream.reassembly_complete()

    Task(feed).result()
    return stream


# Protocols.


def test_protocols_are_met(streams: ModuleType, tmp_path: Path) -> None:
    for stream in (streams.ReaderStream(), streams.ByteCountStream(), streams.BytesStream()):
        assert isinstance(stream, streams.Stream)
    with streams.FilePool() as pool:
        assert isinstance(streams.FileStream(path=tmp_path / "x", pool=pool), streams.Stream)
    assert not isinstance(object(), streams.Stream)

    class Factory:
        def new(self, net_flow: object, transport_flow: object) -> object:
            return streams.ByteCountStream()

    assert isinstance(Factory(), streams.StreamFactory)


# ReaderStream: reading.


def test_reads_what_comes_while_it_comes(streams: ModuleType) -> None:
    stream = streams.ReaderStream()
    reader = Task(stream.read)
    stream.reassembled([Piece(b"ab", start=True), Piece(b"cd")])
    stream.reassembled([Piece(b"ef", end=True)])
    stream.reassembly_complete()
    assert reader.result() == b"abcdef"


def test_read_gives_at_most_what_is_asked_for_and_at_least_one_byte(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(), Piece(b"abc"), Piece(b"d" * 2000), Piece(b"e" * 3000))
    assert stream.read(0) == b""
    assert stream.read(1) == b"a"
    assert stream.read(4) == b"bcdd"
    assert stream.read(1998) == b"d" * 1998
    assert stream.read(10_000) == b"e" * 3000
    assert stream.read(1) == stream.read() == stream.read(0) == b""


def test_readinto(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(), Piece(b"abc"), Piece(b"d" * 2000))
    buffer = bytearray(6)
    assert stream.readinto(buffer) == 6
    assert buffer == b"abcddd"
    assert stream.readinto(bytearray()) == 0
    assert stream.readinto(memoryview(bytearray(4000)).cast("I")) == 1997
    assert stream.readinto(buffer) == 0


def test_a_whole_piece_is_handed_on_without_a_copy(streams: ModuleType) -> None:
    data = b"x" * 5000
    assert fed(streams.ReaderStream(), Piece(data)).read(8000) is data


def test_bytes_given_out_do_not_change(streams: ModuleType) -> None:
    stream = streams.ReaderStream()
    stream.reassembled([Piece(b"abc")])
    first = stream.read(8)
    stream.reassembled([Piece(b"def")])
    assert isinstance(first, bytes)
    assert first == b"abc"


def test_readline_and_iteration(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(), Piece(b"one\ntw"), Piece(b"o\n"), Piece(b"\nlong" * 600), Piece(b"er"))
    assert stream.readline() == b"one\n"
    assert stream.readline(2) == b"tw"
    assert stream.readline(None) == b"o\n"
    assert stream.readline(0) == b""
    lines = list(stream)
    assert lines[:2] == [b"\n", b"long\n"]
    assert lines[-1] == b"longer"
    assert len(lines) == 601


@pytest.mark.parametrize("loss_errors", [False, True])
def test_under_a_buffered_reader(streams: ModuleType, loss_errors: bool) -> None:
    stream = streams.ReaderStream(loss_errors)
    lines = [b"line %d\n" % number for number in range(5000)]

    def read() -> list[bytes]:
        with io.BufferedReader(stream) as buffered:
            return [buffered.readline(), buffered.read(7), *buffered]

    reader = Task(read)
    text = b"".join(lines)
    for at in range(0, len(text), 777):
        stream.reassembled([Piece(text[at : at + 777])])
    stream.reassembly_complete()
    assert reader.result() == lines
    assert stream.closed


def test_text_through_io(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(), Piece("größe\r\n".encode()), Piece("☃".encode()))
    assert io.TextIOWrapper(io.BufferedReader(stream), "utf-8").read() == "größe\n☃"


def test_raw_io_answers(streams: ModuleType) -> None:
    stream = streams.ReaderStream()
    assert isinstance(stream, io.RawIOBase)
    assert stream.readable()
    assert not stream.writable()
    assert not stream.seekable()
    with stream:
        pass
    with pytest.raises(ValueError, match="closed"):
        stream.readable()


def test_tiny_pieces_cost_little_memory(streams: ModuleType) -> None:
    stream = streams.ReaderStream()
    for _ in range(100_000):
        stream.reassembled([Piece(b"ab")])
    assert len(stream._queue) < 100
    stream.reassembly_complete()
    assert stream.read() == b"ab" * 100_000


def test_counts(streams: ModuleType) -> None:
    stream = streams.ReaderStream()
    assert stream.counts.first_seen is None
    stream.reassembled([Piece(b"abc", start=True, seen_ns=5_000_000_000), Piece(b"d", skip=7, seen_ns=2_500_000_000, end=True)])
    counts = stream.counts
    assert (counts.length, counts.skipped, counts.gap_count, counts.started, counts.ended) == (4, 7, 1, True, True)
    assert (counts.first_seen, counts.last_seen, counts.complete) == (2.5, 5.0, False)
    stream.reassembly_complete()
    assert stream.counts.complete
    assert stream.discarded == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_buffered_bytes": 0}, ValueError),
        ({"max_buffered_bytes": 1.5}, TypeError),
        ({"max_buffered_bytes": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"read_timeout": -0.5}, ValueError),
    ],
)
def test_wrong_arguments(streams: ModuleType, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        streams.ReaderStream(**arguments)
    gc.collect()


# ReaderStream: gaps.


def test_gaps_are_joined_unless_asked_for(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(), Piece(b"ab", skip=-1), Piece(b"cd", skip=10), Piece(skip=5))
    assert stream.read() == b"abcd"
    assert stream.counts.skipped == 15


def test_each_gap_raises_once_at_its_place(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = fed(streams.ReaderStream(loss_errors=True), Piece(b"ab", skip=-1), Piece(b"cd", skip=10), Piece(b"ef"), Piece(skip=5))
    seen: list[object] = []
    while True:
        try:
            part = stream.read(100)
        except data_lost as lost:
            seen.append(lost.skip)
            continue
        if not part:
            break
        seen.append(part)
    assert seen == [-1, b"ab", 10, b"cdef", 5]


def test_readinto_stops_before_a_gap(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = fed(streams.ReaderStream(True), Piece(b"ab"), Piece(b"cd", skip=1))
    buffer = bytearray(4)
    assert stream.readinto(buffer) == 2
    with pytest.raises(data_lost):
        stream.readinto(buffer)
    assert stream.readinto(buffer) == 2
    assert buffer[:2] == b"cd"


def test_reading_all_raises_and_keeps_what_lies_before_the_gap(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = fed(streams.ReaderStream(True), Piece(b"a" * 2000), Piece(b"cd", skip=3), Piece(b"ef", skip=4))
    for skip in (3, 4):
        with pytest.raises(data_lost) as caught:
            stream.read()
        assert caught.value.skip == skip
    assert stream.read() == b"a" * 2000 + b"cdef"
    assert stream.read() == b""


def test_readline_gives_the_part_before_a_gap_first(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = fed(streams.ReaderStream(True), Piece(b"first\nGET /in"), Piece(b"x.html\nlast\n", skip=9))
    assert stream.readline() == b"first\n"
    assert stream.readline() == b"GET /in"
    with pytest.raises(data_lost):
        stream.readline()
    assert list(stream) == [b"x.html\n", b"last\n"]


def test_readline_gives_the_part_before_a_gap_that_comes_later(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = streams.ReaderStream(True)
    reader = Task(stream.readline)
    stream.reassembled([Piece(b"part")])
    wait_until(lambda: not stream.ready)
    stream.reassembled([Piece(b"rest\n", skip=9)])
    assert reader.result() == b"part"
    with pytest.raises(data_lost):
        Task(stream.readline).result()
    assert Task(stream.readline).result() == b"rest\n"


def test_gaps_without_bytes_between_are_one(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = fed(streams.ReaderStream(True), Piece(skip=3), Piece(skip=4), Piece(b"a"))
    with pytest.raises(data_lost) as caught:
        stream.read(1)
    assert caught.value.skip == 7
    assert stream.read(1) == b"a"


def test_a_buffered_reader_goes_on_behind_a_gap(streams: ModuleType, data_lost: type[Any]) -> None:
    buffered = io.BufferedReader(fed(streams.ReaderStream(True), Piece(b"ab\n"), Piece(b"cd\n", skip=3)))
    assert buffered.readline() == b"ab\n"
    with pytest.raises(data_lost):
        buffered.readline()
    assert buffered.readline() == b"cd\n"
    assert buffered.readline() == b""


# ReaderStream: two threads, and what must not hang.


def test_backpressure_holds_the_assembler_and_loses_nothing(streams: ModuleType) -> None:
    stream = streams.ReaderStream(max_buffered_bytes=10_000)
    peak = 0

    def read() -> bytes:
        nonlocal peak
        parts = []
        while part := stream.read(997):
            parts.append(part)
            peak = max(peak, stream._buffered)
        return b"".join(parts)

    reader = Task(read)
    sent = [bytes([number % 251]) * (1 + number * 37 % 3000) for number in range(400)]
    for data in sent:
        stream.reassembled([Piece(data)])
    stream.reassembly_complete()
    assert reader.result() == b"".join(sent)
    assert peak <= 10_000
    assert stream.discarded == 0


def test_a_piece_larger_than_the_buffer_passes(streams: ModuleType) -> None:
    stream = streams.ReaderStream(max_buffered_bytes=10)
    reader = Task(stream.read)
    for _ in range(3):
        stream.reassembled([Piece(b"x" * 3000)])
    stream.reassembly_complete()
    assert reader.result() == b"x" * 9000


def test_a_stream_that_is_never_read_costs_one_timeout(streams: ModuleType, data_lost: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    stream = streams.ReaderStream(True, max_buffered_bytes=100, timeout=0.2)
    begin = time.monotonic()
    for _ in range(50):
        stream.reassembled([Piece(b"x" * 40)])
    assert 0.2 <= time.monotonic() - begin < 5
    assert stream.discarded == 48 * 40
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    stream.reassembly_complete()
    assert stream.read(1000) == b"x" * 80
    with pytest.raises(data_lost) as caught:
        stream.read(1000)
    assert caught.value.skip == 48 * 40
    assert stream.read(1000) == b""


def test_a_stalled_stream_goes_on_when_it_is_read_again(streams: ModuleType, data_lost: type[Any]) -> None:
    stream = streams.ReaderStream(True, max_buffered_bytes=100, timeout=0)
    fed(stream, Piece(b"a" * 100), Piece(b"b" * 30), Piece(b"c" * 30, skip=5), complete=False)
    assert Task(lambda: stream.read(100)).result() == b"a" * 100
    fed(stream, Piece(b"d" * 50))
    with pytest.raises(data_lost) as caught:
        stream.read(1)
    assert caught.value.skip == 65
    assert stream.read() == b"d" * 50


def test_without_loss_errors_discarded_bytes_are_only_counted(streams: ModuleType) -> None:
    stream = fed(streams.ReaderStream(max_buffered_bytes=10, timeout=0), Piece(b"abcdefgh"), Piece(b"ijklm"))
    assert stream.read() == b"abcdefgh"
    assert stream.discarded == 5


def test_no_timeout_waits_for_the_reader(streams: ModuleType) -> None:
    stream = streams.ReaderStream(max_buffered_bytes=10, timeout=None)
    feeder = Task(lambda: fed(stream, Piece(b"0123456789"), Piece(b"abc")))
    time.sleep(0.05)
    assert feeder.is_alive()
    assert stream.read(10) == b"0123456789"
    feeder.result()
    assert stream.read() == b"abc"


def test_close_frees_a_waiting_assembler(streams: ModuleType) -> None:
    stream = streams.ReaderStream(max_buffered_bytes=10, timeout=None)
    feeder = Task(lambda: fed(stream, Piece(b"0123456789"), Piece(b"abc"), Piece(b"de")))
    wait_until(lambda: stream._buffered == 10)
    time.sleep(0.02)
    stream.close()
    feeder.result()
    assert stream.discarded == 15
    stream.close()


@pytest.mark.parametrize(("method", "arguments"), [("read", ()), ("read", (1,)), ("readline", ()), ("readinto", (bytearray(1),))])
def test_close_frees_a_waiting_reader(streams: ModuleType, method: str, arguments: tuple[Any, ...]) -> None:
    stream = streams.ReaderStream()
    reader = Task(lambda: getattr(stream, method)(*arguments))
    time.sleep(0.01)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        reader.result()


def test_a_closed_stream_takes_anything(streams: ModuleType) -> None:
    stream = streams.ReaderStream(True, max_buffered_bytes=10)
    stream.close()
    stream.reassembled([Piece(b"x" * 100, skip=-1), Piece(b"y" * 100, skip=3)])
    stream.reassembly_complete()
    assert stream.discarded == 200
    assert stream.ready
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_closing_at_random_moments(streams: ModuleType) -> None:
    for attempt in range(60):
        stream = streams.ReaderStream(max_buffered_bytes=64, timeout=LIMIT)

        def read(stream: Any = stream, attempt: int = attempt) -> None:
            with stream:
                for _ in range(attempt):
                    if not stream.read(10):
                        break

        reader = Task(read)
        feeder = Task(lambda stream=stream: fed(stream, *[Piece(b"x" * 20)] * 50))
        reader.result()
        feeder.result()
        assert stream.closed


def test_a_dropped_buffered_reader_closes_the_stream(streams: ModuleType) -> None:
    stream = streams.ReaderStream(max_buffered_bytes=10, timeout=None)
    buffered = io.BufferedReader(stream)
    del buffered
    gc.collect()
    assert stream.closed
    stream.reassembled([Piece(b"x" * 100)])


def test_reading_in_the_feeding_thread_raises_instead_of_hanging(streams: ModuleType) -> None:
    def both() -> None:
        stream = streams.ReaderStream()
        stream.reassembled([Piece(b"ab")])
        assert stream.ready
        assert stream.read(10) == b"ab"
        assert not stream.ready
        with pytest.raises(RuntimeError, match="never end"):
            stream.read(10)
        stream.reassembled([Piece(b"no line")])
        with pytest.raises(RuntimeError, match="never end"):
            stream.readline()
        with pytest.raises(RuntimeError, match="never end"):
            stream.read()
        stream.reassembly_complete()
        assert stream.read() == b"no line"

    Task(both).result()


def test_a_reader_in_the_feeding_thread_is_not_waited_for(streams: ModuleType) -> None:
    def both() -> int:
        stream = streams.ReaderStream(max_buffered_bytes=10, timeout=None)
        stream.reassembled([Piece(b"ab")])
        assert stream.read(2) == b"ab"
        stream.reassembled([Piece(b"0123456789"), Piece(b"abc")])
        discarded: int = stream.discarded
        return discarded

    assert Task(both).result() == 3


def test_read_timeout(streams: ModuleType) -> None:
    stream = streams.ReaderStream(read_timeout=0.05)
    with pytest.raises(TimeoutError):
        stream.read(1)
    fed(stream, Piece(b"half"), complete=False)
    with pytest.raises(TimeoutError):
        stream.readline()
    assert stream.read(10) == b"half"


def test_a_reader_may_start_before_and_after_the_data(streams: ModuleType) -> None:
    for delay in (0.0, 0.01):
        stream = streams.ReaderStream()
        reader = Task(lambda stream=stream: [stream.read(3), stream.read(3), stream.read(3)])
        time.sleep(delay)
        fed(stream, Piece(b"abc"), Piece(b"def"))
        parts = reader.result()
        assert b"".join(parts) == b"abcdef"


# Discarding.


@pytest.mark.parametrize("buffered", [False, True])
def test_discard_bytes(streams: ModuleType, buffered: bool) -> None:
    pieces = [Piece(b"a" * 3000), Piece(b"b" * 200_000, skip=4), Piece(b"c", skip=1)]

    def reader() -> Any:
        stream = fed(streams.ReaderStream(True), *pieces)
        return io.BufferedReader(stream) if buffered else stream

    assert streams.discard_bytes_to_eof(reader()) == 203_001
    one = reader()
    assert streams.discard_bytes_to_first_error(one) == 3000
    assert streams.discard_bytes_to_first_error(one) == 200_000
    assert streams.discard_bytes_to_first_error(one) == 1
    assert streams.discard_bytes_to_first_error(one) == 0


def test_discard_bytes_of_other_readers(streams: ModuleType) -> None:
    assert streams.discard_bytes_to_eof(io.BytesIO(b"abc")) == 3

    class Broken:
        def __init__(self, error: Exception) -> None:
            self.parts: list[bytes | None] = [b"ab", b"c"]
            self.error = error

        def read(self, size: int, /) -> bytes | None:
            if self.parts:
                return self.parts.pop()
            raise self.error

    assert streams.discard_bytes_to_first_error(Broken(OSError("gone"))) == 3
    with pytest.raises(OSError, match="gone"):
        streams.discard_bytes_to_eof(Broken(OSError("gone")))
    with pytest.raises(RuntimeError):
        streams.discard_bytes_to_first_error(Broken(RuntimeError("would hang")))
    nothing = Broken(OSError("gone"))
    nothing.parts = [None]
    with pytest.raises(BlockingIOError):
        streams.discard_bytes_to_eof(nothing)


# Ready-made streams.


def test_byte_count(streams: ModuleType, tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> None:
    flow = submodule(tcpreasm, "flow").Flow
    stream = streams.ByteCountStream(flow("10.0.0.1", "10.0.0.2"), flow(1, 2))
    stream.reassembled([Piece(b"abc", skip=-1), Piece(skip=7), Piece(b"d", end=True)])
    assert (stream.length, stream.skipped, stream.gap_count, stream.started, stream.ended) == (4, 7, 1, False, True)
    assert str(stream.key) == "10.0.0.1:1->10.0.0.2:2"
    stream.reassembly_complete()
    assert stream.complete
    with pytest.raises(ValueError, match="flows"):
        _ = streams.ByteCountStream().key


def test_bytes_stream_and_its_gaps(streams: ModuleType) -> None:
    stream = streams.BytesStream()
    stream.reassembled([Piece(start=True), Piece(b"abc")])
    stream.reassembled([Piece(b"de", skip=5), Piece(b"f"), Piece(skip=2, end=True)])
    assert stream.data == b"abcdef"
    assert stream.gaps == ((3, 5), (11, 2))
    assert stream.started
    late = streams.BytesStream()
    late.reassembled([Piece(b"x", skip=-1), Piece(b"y", skip=1)])
    assert (late.started, late.gaps, late.skipped) == (False, ((1, 1),), 1)


def test_bytes_stream_limits(streams: ModuleType) -> None:
    dropping = streams.BytesStream(max_bytes=4, on_limit="drop")
    raising = streams.BytesStream(max_bytes=4)
    pieces = [Piece(b"abc"), Piece(b"def", skip=2), Piece(b"g")]
    dropping.reassembled(pieces)
    with pytest.raises(BufferError, match="4 bytes"):
        raising.reassembled(pieces)
    raising.reassembled([Piece(b"h")])  # said once
    assert dropping.data == raising.data == b"abcd"
    assert (dropping.dropped, raising.dropped) == (3, 4)
    assert dropping.length == 7
    assert dropping.gaps == ((3, 2),)
    with pytest.raises(ValueError, match="on_limit"):
        streams.BytesStream(on_limit="wait")
    with pytest.raises(ValueError, match="max_bytes"):
        streams.BytesStream(max_bytes=0)


@contextmanager
def limited_files(limit: int) -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_file_streams_share_few_open_files(streams: ModuleType, tmp_path: Path) -> None:
    with streams.FilePool(max_open=3) as pool:
        files = [streams.FileStream(path=tmp_path / str(number), pool=pool) for number in range(10)]
        for turn in range(5):
            for number, stream in enumerate(files):
                stream.reassembled([Piece(b"%d.%d " % (number, turn))])
                assert len(pool) <= 3
        for stream in files[:5]:
            stream.reassembly_complete()
        assert (tmp_path / "0").read_bytes() == b"0.0 0.1 0.2 0.3 0.4 "
    for number in range(10):
        assert (tmp_path / str(number)).read_bytes() == b"".join(b"%d.%d " % (number, turn) for turn in range(5))
    with pytest.raises(ValueError, match="closed"):
        files[7].reassembled([Piece(b"late")])


def test_file_pool_lives_with_what_the_system_allows(streams: ModuleType, tmp_path: Path) -> None:
    used = max(int(name) for name in os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 40
    with streams.FilePool(max_open=1000) as pool, limited_files(used + 12):
        files = [streams.FileStream(path=tmp_path / str(number), pool=pool) for number in range(40)]
        for _ in range(2):
            for stream in files:
                stream.reassembled([Piece(b"x")])
    assert all((tmp_path / str(number)).read_bytes() == b"xx" for number in range(40))


def test_file_stream_makes_its_file_with_the_first_byte(streams: ModuleType, tmp_path: Path) -> None:
    asked = []

    def path() -> Path:
        asked.append(1)
        return tmp_path / "late"

    with streams.FilePool() as pool:
        stream = streams.FileStream(path=path, pool=pool)
        stream.reassembled([Piece(start=True), Piece(skip=3)])
        assert not asked
        assert stream.path is None
        stream.reassembled([Piece(b"a")])
        stream.reassembled([Piece(b"b", skip=2)])
        stream.reassembly_complete()
        empty = streams.FileStream(path=path, pool=pool)
        empty.reassembled([Piece(start=True, end=True)])
        empty.reassembly_complete()
    assert asked == [1]
    assert stream.path == str(tmp_path / "late")
    assert (tmp_path / "late").read_bytes() == b"ab"
    assert stream.gaps == ((0, 3), (4, 2))


@pytest.mark.parametrize("max_open", [1, 5])
def test_file_stream_fills_gaps(streams: ModuleType, tmp_path: Path, max_open: int) -> None:
    with streams.FilePool(max_open) as pool:
        one = streams.FileStream(path=tmp_path / "one", pool=pool, fill_gaps=True)
        two = streams.FileStream(path=tmp_path / "two", pool=pool, fill_gaps=True)
        for piece in (Piece(b"ab", skip=-1), Piece(b"cd", skip=3), Piece(b"e"), Piece(skip=2, end=True)):
            one.reassembled([piece])
            two.reassembled([piece])
        one.reassembly_complete()
        two.reassembly_complete()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == b"ab\0\0\0cde\0\0"


def test_file_stream_never_overwrites_unless_told(streams: ModuleType, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    with streams.FilePool() as pool:
        stream = streams.FileStream(path=there, pool=pool)
        with pytest.raises(FileExistsError):
            stream.reassembled([Piece(b"new")])
        assert there.read_bytes() == b"precious"
        streams.FileStream(path=there, pool=pool, overwrite=True).reassembled([Piece(b"new")])
    assert there.read_bytes() == b"new"


def test_file_pool_arguments(streams: ModuleType) -> None:
    with pytest.raises(ValueError, match="max_open"):
        streams.FilePool(0)
    with pytest.raises(TypeError, match="max_open"):
        streams.FilePool("3")
