"""Streams: the reader, and the ready-made ones, fed with pieces made here; and these through whole captures against a stream in Python.

Threads are joined with a time limit: a bug fails, it does not hang. What reads the bytes of a SpanStream is tested in test_spans.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import inspect
import io
import os
import pydoc
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cores import load

LIMIT = 20.0  # seconds after which a thread counts as hanging


@dataclass
class Piece:
    """A stand-in for Reassembly."""

    bytes: bytes = b""
    skip: int = 0
    start: bool = False
    end: bool = False
    seen_ns: int = 0
    offset: int = -1

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


# Ready-made streams, closer: both cores must do the same.

READY = ("ByteCountStream", "BytesStream", "DigestStream", "FileStream", "SpanStream")
CAPTURES = ("disordered.pcap", "edge.pcap", "http.pcap", "http6.pcapng", "missing.pcap", "snap96.pcap")
KILO = bytes(range(256)) * 4


def make(tcpreasm: ModuleType, name: str, folder: Path, pool: Any, flows: tuple[Any, Any] = (None, None), cls: type | None = None) -> Any:
    """A stream of the ready-made class with that name, or of a subclass; a FileStream writes to a new file in the folder."""
    cls = cls or getattr(tcpreasm, name)
    if name != "FileStream":
        return cls(*flows)
    return cls(*flows, path=lambda: folder / f"{len(os.listdir(folder)):05}", pool=pool)


def content(stream: Any, source: Any = None) -> bytes:
    """What a stream that keeps its bytes somewhere has got. A file must be written out."""
    if hasattr(stream, "gather"):
        gathered: bytes = stream.gather(source)
        return gathered
    if hasattr(stream, "pool"):
        return b"" if stream.path is None else Path(stream.path).read_bytes()
    kept: bytes = stream.data
    return kept


def counters(stream: Any) -> tuple[Any, ...]:
    seen = (stream.first_seen_ns, stream.last_seen_ns, stream.first_seen, stream.last_seen)
    return (stream.length, stream.skipped, stream.gap_count, stream.started, stream.ended, stream.complete, *seen)


@pytest.mark.parametrize("name", READY)
def test_each_ready_made_stream_counts(tcpreasm: ModuleType, tmp_path: Path, name: str) -> None:
    with tcpreasm.FilePool() as pool:
        stream = make(tcpreasm, name, tmp_path, pool)
        assert counters(stream) == (0, 0, 0, False, False, False, None, None, None, None)
        stream.reassembled([Piece(start=True, seen_ns=-3)])
        assert counters(stream) == (0, 0, 0, True, False, False, -3, -3, -3e-9, -3e-9)
        stream.reassembled([Piece(b"abc", seen_ns=7_000_000_000), Piece(b"d", skip=2**40, seen_ns=2), Piece(b"e", skip=-1, seen_ns=-4)])
        stream.reassembled([Piece(skip=5, end=True, seen_ns=6)])
        stream.reassembled([])
        assert counters(stream) == (5, 2**40 + 5, 2, True, True, False, -4, 7_000_000_000, -4e-9, 7.0)
        stream.reassembly_complete()
        assert stream.complete
        if hasattr(stream, "gaps"):
            assert stream.gaps == ((3, 2**40), (5 + 2**40, 5))


@pytest.mark.parametrize("name", [*READY, "FilePool", "FlowPaths"])
def test_signatures_are_told(name: str) -> None:
    """The same by both cores: by inspect, by help, and for a subclass; and the text of the docstring."""
    compiled, pure = (getattr(load(core).streams, name) for core in ("compiled", "pure"))
    signatures = [
        [(one.name, one.kind, one.default) for one in inspect.signature(cls).parameters.values()]
        for cls in (compiled, pure, type("Sub", (compiled,), {}))
    ]
    assert signatures[0] == signatures[1] == signatures[2]
    assert inspect.getdoc(compiled) == inspect.getdoc(pure)
    shown = pydoc.render_doc(compiled, renderer=pydoc.plaintext)
    assert f"class {name}" in shown
    told, where = (re.sub(r"[\s|]", "", text) for text in (str(inspect.signature(compiled)), shown))  # Python 3.13 takes a line for each
    assert told in where


@pytest.mark.parametrize("name", READY)
def test_what_a_stream_tells_can_only_be_read(tcpreasm: ModuleType, tmp_path: Path, name: str) -> None:
    names = [
        "net_flow",
        "transport_flow",
        "length",
        "skipped",
        "gap_count",
        "started",
        "ended",
        "complete",
        "first_seen_ns",
        "last_seen_ns",
    ]
    names += ["first_seen", "last_seen", "key", "gaps", "data", "dropped", "max_bytes", "on_limit", "algorithm", "spans"]
    names += ["path", "pool", "overwrite", "fill_gaps"]
    with tcpreasm.FilePool() as pool:
        stream = make(tcpreasm, name, tmp_path, pool)
        for attribute in names:
            with pytest.raises(AttributeError):
                setattr(stream, attribute, 1)
        with pytest.raises(AttributeError):
            pool.max_open = 3


@pytest.mark.parametrize("name", READY)
def test_pieces_are_taken_as_objects_and_let_go(tcpreasm: ModuleType, tmp_path: Path, name: str) -> None:
    pieces = [tcpreasm.Reassembly(KILO, 3, True, False, 5, 100), tcpreasm.Reassembly(b"", 0, False, True, 6)]
    before = [sys.getrefcount(piece) for piece in pieces]
    with tcpreasm.FilePool() as pool:
        stream = make(tcpreasm, name, tmp_path, pool)
        stream.reassembled(pieces)
        stream.reassembled(tuple(pieces))
        stream.reassembled(iter(pieces))
        assert [sys.getrefcount(piece) for piece in pieces] == before
        assert (stream.length, stream.skipped, stream.first_seen_ns) == (3 * len(KILO), 9, 5)
        with pytest.raises(AttributeError):
            stream.reassembled([object()])
        with pytest.raises(TypeError):
            stream.reassembled(None)
        stream.reassembly_complete()
        if name == "DigestStream":
            assert stream.digest() == hashlib.sha256(KILO * 3).digest()
        elif name != "ByteCountStream":
            assert content(stream, [bytes(100) + KILO]) == KILO * 3


def test_a_base_classs_method_does_what_the_base_class_does(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.BytesStream()
    tcpreasm.ByteCountStream.reassembled(stream, [Piece(b"abc", skip=1)])
    tcpreasm.ByteCountStream.reassembly_complete(stream)
    assert (stream.length, stream.skipped, stream.data, stream.complete) == (3, 1, b"", True)


def test_bytes_of_many_sizes(tcpreasm: ModuleType) -> None:
    chance = random.Random(3)
    parts = [chance.randbytes(chance.choice([0, 1, 63, 64, 65, 1448, 70_000, 200_000])) for _ in range(300)]
    stream = tcpreasm.BytesStream()
    early = b""
    for number, part in enumerate(parts):
        stream.reassembled([Piece(part, skip=number % 3)])
        if number == 100:
            early = stream.data
    assert stream.data == b"".join(parts)
    assert early == b"".join(parts[:101])
    stream.reassembly_complete()
    assert stream.data == b"".join(parts)
    assert len(stream.gaps) == 200
    assert tcpreasm.BytesStream().data == b""


def test_bytes_stream_at_its_very_limit(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.BytesStream(max_bytes=5)
    stream.reassembled([Piece(b"ab"), Piece(b"cde"), Piece(skip=4)])
    assert (stream.data, stream.dropped) == (b"abcde", 0)
    with pytest.raises(BufferError) as caught:
        stream.reassembled([Piece(b"f", skip=2), Piece(b"ghi", end=True)])
    assert str(caught.value) == "the stream  is longer than the 5 bytes that may be kept"
    assert (stream.data, stream.dropped, stream.length, stream.gaps, stream.ended) == (b"abcde", 4, 9, ((5, 4), (9, 2)), True)
    stream.reassembled([Piece(b"j")])
    assert (stream.dropped, stream.max_bytes, stream.on_limit) == (5, 5, "error")
    endless = tcpreasm.BytesStream(max_bytes=10**30)
    endless.reassembled([Piece(KILO)])
    assert endless.data == KILO
    flow = tcpreasm.Flow
    named = tcpreasm.BytesStream(flow("10.0.0.1", "10.0.0.2"), flow(1, 2), max_bytes=1)
    with pytest.raises(BufferError, match=r"^the stream 10\.0\.0\.1:1->10\.0\.0\.2:2 is longer than the 1 bytes"):
        named.reassembled([Piece(b"ab")])
    for wrong in ({"max_bytes": True}, {"max_bytes": 1.5}, {"max_bytes": "1"}):
        with pytest.raises(TypeError, match="max_bytes is a number of bytes, not"):
            tcpreasm.BytesStream(**wrong)


# DigestStream.


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b", "sha3_256"])
def test_digests(tcpreasm: ModuleType, algorithm: str) -> None:
    chance = random.Random(5)
    stream = tcpreasm.DigestStream(algorithm=algorithm)
    expected = hashlib.new(algorithm)
    assert stream.digest() == expected.digest()
    for number in range(500):
        part = chance.randbytes(
            chance.choice([0, 1, 100, 1448, 65_535, 65_536, 65_537, 150_000] if number % 50 == 0 else [0, 1, 100, 1448])
        )
        stream.reassembled([Piece(part, skip=number % 2), Piece(b"x")])
        expected.update(part + b"x")
        if number % 37 == 0:
            assert stream.hexdigest() == expected.hexdigest()
    assert stream.digest() == expected.digest()
    stream.reassembly_complete()
    assert stream.digest() == expected.digest()
    assert stream.hexdigest() == expected.hexdigest()
    assert (stream.algorithm, stream.gap_count, stream.complete) == (algorithm, 250, True)


def test_digest_arguments(tcpreasm: ModuleType) -> None:
    assert tcpreasm.DigestStream().algorithm == "sha256"
    with pytest.raises(ValueError, match="md0"):
        tcpreasm.DigestStream(algorithm="md0")
    with pytest.raises(TypeError):
        tcpreasm.DigestStream(algorithm=5)
    with pytest.raises(TypeError):
        tcpreasm.DigestStream(None, None, "md5")
    stream = tcpreasm.DigestStream(algorithm="shake_128")
    stream.reassembled([Piece(b"abc")])
    assert stream.digest(7) == hashlib.shake_128(b"abc").digest(7)
    assert stream.hexdigest(7) == hashlib.shake_128(b"abc").hexdigest(7)
    with pytest.raises(TypeError):
        stream.digest()


# SpanStream: the rows. What reads the bytes is tested in test_spans.


def test_spans_are_one_row_a_piece(tcpreasm: ModuleType) -> None:
    numpy = pytest.importorskip("numpy")
    stream = tcpreasm.SpanStream()
    dtype = [("offset", "<i8"), ("length", "<i8"), ("skip", "<i8"), ("seen_ns", "<i8")]
    assert stream.spans.dtype == numpy.dtype(dtype)
    assert stream.spans.shape == (0,)
    stream.reassembled([Piece(start=True, seen_ns=1), Piece(b"abc", skip=-1, seen_ns=2, offset=100), Piece(b"de", seen_ns=3, offset=103)])
    early = stream.spans
    stream.reassembled([Piece(b"f", skip=7, seen_ns=2, offset=2**40), Piece(skip=9, seen_ns=4), Piece(b"g"), Piece(end=True)])
    rows = [(100, 3, -1, 2), (103, 2, 0, 3), (2**40, 1, 7, 2), (-1, 0, 9, 4), (-1, 1, 0, 0)]
    assert stream.spans.tolist() == rows
    assert early.tolist() == rows[:2]
    early["skip"] = 5  # a copy, and the caller's
    stream.reassembly_complete()
    assert stream.spans.tolist() == rows
    assert stream.ended


# FileStream and FilePool.


def test_files_of_pieces_of_many_sizes(tcpreasm: ModuleType, tmp_path: Path) -> None:
    chance = random.Random(7)
    expected: list[bytes] = [b""] * 20
    with tcpreasm.FilePool(4) as pool:
        files = [tcpreasm.FileStream(path=str(tmp_path / str(number)), pool=pool, fill_gaps=number % 2 == 1) for number in range(20)]
        for _ in range(1500):
            number = chance.randrange(20)
            part = chance.randbytes(chance.choice([0, 1, 100, 1448, 1448, 1448, 30_000, 65_536, 65_537, 200_000]))
            skip = chance.choice([-1, 0, 0, 0, 0, 3, 5000])
            files[number].reassembled([Piece(part, skip=skip)])
            expected[number] += bytes(skip if skip > 0 and number % 2 else 0) + part
            assert len(pool) <= 4
        for number in range(10):
            files[number].reassembly_complete()
            assert (tmp_path / str(number)).read_bytes() == expected[number]
        assert len(pool) <= 4
    for number, data in enumerate(expected):
        assert (tmp_path / str(number)).read_bytes() == data
    assert len(pool) == 0


def test_files_together_keep_little_in_memory(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """Beyond 32 MiB the files that were longest unused are written out, though nobody finishes them."""
    part = KILO * 60
    with tcpreasm.FilePool(8) as pool:
        files = [tcpreasm.FileStream(path=tmp_path / str(number), pool=pool) for number in range(600)]
        for stream in files:
            stream.reassembled([Piece(part)])
        on_disk = [(tmp_path / str(number)).stat().st_size for number in range(600)]
        assert sum(on_disk) >= 600 * len(part) - (1 << 25)
        assert on_disk[0] == len(part)
        assert on_disk[-1] == 0
        for stream in files:
            stream.reassembled([Piece(b"end")])
    assert all((tmp_path / str(number)).read_bytes() == part + b"end" for number in range(600))


def test_a_stream_that_is_dropped_leaves_its_bytes_to_the_pool(tcpreasm: ModuleType, tmp_path: Path) -> None:
    with tcpreasm.FilePool(1) as pool:
        for number in range(5):
            tcpreasm.FileStream(path=tmp_path / str(number), pool=pool).reassembled([Piece(b"%d" % number)])
        gc.collect()
    assert all((tmp_path / str(number)).read_bytes() == b"%d" % number for number in range(5))


def test_a_pool_that_is_dropped_writes_everything(tcpreasm: ModuleType, tmp_path: Path) -> None:
    files = [tcpreasm.FileStream(path=tmp_path / str(number), pool=pool) for pool in [tcpreasm.FilePool(1)] for number in range(3)]
    for stream in files:
        stream.reassembled([Piece(b"bytes")])
    del stream, files
    gc.collect()
    assert all((tmp_path / str(number)).read_bytes() == b"bytes" for number in range(3))

    def make_circle() -> None:
        circle: list[Any] = [tcpreasm.FilePool()]
        circle.append(tcpreasm.FileStream(path=lambda: tmp_path / f"circle of {len(circle)}", pool=circle[0]))
        circle[1].reassembled([Piece(b"bytes")])

    make_circle()
    gc.collect()
    assert (tmp_path / "circle of 2").read_bytes() == b"bytes"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("size", [1, 1 << 17])
def test_a_full_disk(tcpreasm: ModuleType, tmp_path: Path, size: int) -> None:
    """OSError in the call that finds out, said once; the others are written all the same."""
    pool = tcpreasm.FilePool()
    full = tcpreasm.FileStream(path="/dev/full", pool=pool, overwrite=True)
    other = tcpreasm.FileStream(path=tmp_path / "other", pool=pool)
    other.reassembled([Piece(b"other")])
    if size > 1 << 16:
        with pytest.raises(OSError, match="No space left") as caught:
            full.reassembled([Piece(b"x" * size), Piece(b"y", skip=3, end=True)])
    else:
        full.reassembled([Piece(b"x" * size), Piece(b"y", skip=3, end=True)])
    assert (full.length, full.skipped, full.ended, full.path) == (size + 1, 3, True, "/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        pool.close()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    assert (tmp_path / "other").read_bytes() == b"other"
    pool.close()
    assert len(pool) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_at_the_end_of_a_stream(tcpreasm: ModuleType) -> None:
    with tcpreasm.FilePool() as pool:
        stream = tcpreasm.FileStream(path="/dev/full", pool=pool, overwrite=True)
        stream.reassembled([Piece(b"x")])
        with pytest.raises(OSError, match="No space left"):
            stream.reassembly_complete()
        assert stream.complete
        assert len(pool) == 0


def test_a_stream_may_go_to_a_pipe(tcpreasm: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = Task((tmp_path / "pipe").read_bytes)
    with tcpreasm.FilePool() as pool:
        stream = tcpreasm.FileStream(path=tmp_path / "pipe", pool=pool, overwrite=True)
        for _ in range(100):
            stream.reassembled([Piece(KILO, skip=1), Piece(KILO * 70)])
        stream.reassembly_complete()
    assert reader.result() == KILO * 7100


def test_what_the_path_of_a_file_may_be(tcpreasm: ModuleType, tmp_path: Path) -> None:
    with tcpreasm.FilePool() as pool:
        encoded = tcpreasm.FileStream(path=os.fsencode(tmp_path / "bytes"), pool=pool)
        encoded.reassembled([Piece(b"a")])
        strange = tcpreasm.FileStream(path=os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), pool=pool)
        strange.reassembled([Piece(b"b")])
        for path, error in (("a\0b", ValueError), (5, TypeError), (tmp_path, IsADirectoryError), (tmp_path / "no" / "folder", OSError)):
            stream = tcpreasm.FileStream(path=path, pool=pool, overwrite=True)
            with pytest.raises(error):
                stream.reassembled([Piece(b"c"), Piece(b"d", end=True)])
            assert (stream.path, stream.length, stream.ended) == (None, 2, True)
            stream.reassembly_complete()
        assert len(pool) == 2
    assert (tmp_path / "bytes").read_bytes() == b"a"
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).read_bytes() == b"b"
    with pytest.raises(TypeError, match="pool is a FilePool, not int"):
        tcpreasm.FileStream(path="x", pool=5)


def test_a_path_that_raises_leaves_the_place_of_its_bytes(tcpreasm: ModuleType, tmp_path: Path) -> None:
    paths: Iterator[Any] = iter([ZeroDivisionError(), tmp_path / "file"])

    def path() -> Path:
        given = next(paths)
        if isinstance(given, Exception):
            raise given
        found: Path = given
        return found

    with tcpreasm.FilePool() as pool:
        stream = tcpreasm.FileStream(path=path, pool=pool, fill_gaps=True)
        with pytest.raises(ZeroDivisionError):
            stream.reassembled([Piece(b"ab", skip=1), Piece(b"cd", skip=2)])
        assert stream.gaps == ((0, 1), (3, 2))
        stream.reassembled([Piece(b"ef")])
        stream.reassembly_complete()
    assert (tmp_path / "file").read_bytes() == bytes(7) + b"ef"


def test_a_path_may_look_at_its_stream(tcpreasm: ModuleType, tmp_path: Path) -> None:
    made: list[Any] = []
    with tcpreasm.FilePool() as pool:
        made.append(tcpreasm.FileStream(path=lambda: tmp_path / f"{made[0].gaps}{made[0].length}{len(pool)}", pool=pool))
        made[0].reassembled([Piece(b"abc", skip=2)])
    assert (tmp_path / "((0, 2),)30").read_bytes() == b"abc"


def test_a_pool_by_names(tcpreasm: ModuleType, tmp_path: Path) -> None:
    one, two, there = (str(tmp_path / name) for name in ("one", "two", "there"))
    (tmp_path / "there").write_bytes(b"0123456789")
    with tcpreasm.FilePool(1) as pool:
        pool.create(Path(one))
        pool.create(one, overwrite=True)
        pool.create(two)
        assert (len(pool), pool.max_open) == (1, 1)
        pool.write(one, 0, b"abc")
        pool.write(two, 5, b"x")
        pool.write(one, 3, b"def")
        pool.write(one, 1, b"BC")
        pool.write(one, 8, b"z")
        pool.write(one, 9, b"")
        pool.finish(one)
        assert (tmp_path / "one").read_bytes() == b"aBCdef\0\0z"
        pool.finish(one)  # it is finished: nothing to do
        pool.finish(one, 4)
        assert (tmp_path / "one").read_bytes() == b"aBCd"
        pool.write(there, 4, b"----")  # not created here
        with pytest.raises(FileNotFoundError) as caught:
            pool.write(str(tmp_path / "nowhere"), 0, b"x")
        assert caught.value.filename == str(tmp_path / "nowhere")
        with pytest.raises(FileExistsError) as caught_too:
            pool.create(there)
        assert caught_too.value.filename == there
        pool.create(two, overwrite=True)
        pool.finish(two, 3)
        assert (tmp_path / "two").read_bytes() == bytes(3)
    assert (tmp_path / "there").read_bytes() == b"0123----89"
    for call in (lambda: pool.create(str(tmp_path / "late")), lambda: pool.write(one, 0, b"x"), lambda: pool.finish(one, 3)):
        with pytest.raises(ValueError, match=r"^this FilePool is closed$"):
            call()
    pool.finish(one)
    assert not (tmp_path / "late").exists()


def test_a_closed_pool_takes_no_more_bytes(tcpreasm: ModuleType, tmp_path: Path) -> None:
    pool = tcpreasm.FilePool()
    stream = tcpreasm.FileStream(path=tmp_path / "x", pool=pool)
    stream.reassembled([Piece(b"abc")])
    pool.close()
    for size in (1, 1 << 17):
        with pytest.raises(ValueError, match=r"^this FilePool is closed$"):
            stream.reassembled([Piece(b"d" * size), Piece(b"e", end=True)])
    stream.reassembly_complete()
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert (stream.length, stream.ended, stream.complete) == (3 + 1 + 1 + (1 << 17) + 1, True, True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("behind", [False, True])
def test_a_block_that_ends_by_an_exception_keeps_it(tcpreasm: ModuleType, tmp_path: Path, behind: bool) -> None:
    """Whatever went wrong with the files; they are closed all the same."""
    for error in (None, KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error or OSError) as caught, tcpreasm.FilePool(write_behind=behind) as pool:  # noqa: PT012
            streams = [tcpreasm.FileStream(path=path, pool=pool, overwrite=True) for path in ("/dev/full", tmp_path / "x")]
            for stream in streams:
                stream.reassembled([Piece(b"bytes")])
            if error is not None:
                raise error
        assert error is not None or caught.value.errno == errno.ENOSPC
        assert (tmp_path / "x").read_bytes() == b"bytes"
        assert len(pool) == 0


# A FilePool that writes behind its streams.


def errors_of(calls: Iterable[Callable[[], object]]) -> list[tuple[int, str]]:
    """Number and path of each error that one of the calls raises: which of them is left to the pool."""
    errors = []
    for call in calls:
        try:
            call()
        except OSError as error:
            errors.append((error.errno, error.filename))
    return errors


def test_files_written_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """More files than wait for their turn, of all sizes; those of complete streams and the others."""
    chance = random.Random(5)
    expected: dict[str, bytes] = {}
    with tcpreasm.FilePool(3, write_behind=True) as pool:
        kept = []
        for number in range(1500):
            filled = number % 3 == 0
            stream = tcpreasm.FileStream(path=tmp_path / str(number), pool=pool, fill_gaps=filled)
            parts = [chance.randbytes(chance.choice([1, 700, 30_000, 65_536, 70_000])) for _ in range(chance.choice([1, 1, 3]))]
            for part in parts:
                stream.reassembled([Piece(part, skip=2)])
            stream.reassembled([Piece(skip=5, end=True)])
            expected[str(number)] = b"".join((bytes(2) if filled else b"") + part for part in parts)
            if number % 7:
                expected[str(number)] += bytes(5) if filled else b""
                stream.reassembly_complete()
            elif number % 2:
                kept.append(stream)
            assert len(pool) <= 3
    assert len(pool) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


def test_files_come_without_being_waited_for(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """The thread writes though nothing is called any more; also when it was idle for a while."""
    with tcpreasm.FilePool(write_behind=True) as pool:
        for name in ("first", "later"):
            stream = tcpreasm.FileStream(path=tmp_path / name, pool=pool)
            stream.reassembled([Piece(b"bytes")])
            stream.reassembly_complete()
            deadline = time.monotonic() + 20
            while not (tmp_path / name).exists() or (tmp_path / name).read_bytes() != b"bytes":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.05)


@pytest.mark.parametrize("size", [1, 1 << 17])
def test_errors_of_files_written_behind(tcpreasm: ModuleType, tmp_path: Path, size: int) -> None:
    """Each is raised by a later call, said once, and names its file; the others are written all the same."""
    (tmp_path / "there").write_bytes(b"precious")
    paths = {"there": errno.EEXIST, "nowhere/x": errno.ENOENT, "x" * 300: errno.ENAMETOOLONG}
    for name, number in paths.items():
        path = tmp_path / name
        pool = tcpreasm.FilePool(write_behind=True)
        bad, other = (tcpreasm.FileStream(path=at, pool=pool) for at in (path, tmp_path / f"other than {number}"))
        calls = [partial(bad.reassembled, [Piece(b"x" * size)]), partial(other.reassembled, [Piece(b"other")])]
        found = errors_of([*calls, bad.reassembly_complete, other.reassembly_complete, pool.close])
        assert set(found) == {(number, str(path))}
        assert (bad.length, bad.complete) == (size, True)
        assert (tmp_path / f"other than {number}").read_bytes() == b"other"
        pool.close()
    assert (tmp_path / "there").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["file", "folder", "dead link"])
def test_a_file_that_exists_is_found_at_once_behind(tcpreasm: ModuleType, tmp_path: Path, kind: str) -> None:
    there = tmp_path / "there"
    if kind == "file":
        there.write_bytes(b"precious")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "nowhere")
    with tcpreasm.FilePool(write_behind=True) as pool:
        for path in (there, tmp_path / "new"):
            for turn in range(2):
                stream = tcpreasm.FileStream(path=path, pool=pool)
                if path == there or turn:
                    with pytest.raises(FileExistsError) as caught:
                        stream.reassembled([Piece(b"x")])
                    assert caught.value.filename == str(path)
                    assert stream.path is None
                else:
                    stream.reassembled([Piece(b"y")])
                stream.reassembly_complete()
    assert (tmp_path / "new").read_bytes() == b"y"
    assert kind != "file" or there.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("behind", [False, True])
def test_closing_tells_of_all_files_that_could_not_be_written(tcpreasm: ModuleType, tmp_path: Path, behind: bool) -> None:
    paths = [tmp_path / str(number) for number in range(1500)]
    for path in paths:
        path.symlink_to("/dev/full")
    for count in (1, 2, 1500):
        pool = tcpreasm.FilePool(write_behind=behind)
        streams = [tcpreasm.FileStream(path=path, pool=pool, overwrite=True) for path in paths[:count]]
        for stream in streams:
            stream.reassembled([Piece(b"x")])
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            pool.close()
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(paths[0]))
        others = f" (and {count - 1} more errors of files of this pool)" if count > 1 else ""
        assert caught.value.strerror == os.strerror(errno.ENOSPC) + others
        pool.close()


def test_each_call_tells_of_one_file_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """And no error is lost: what the calls did not tell of, closing counts."""
    for count in (3, 400):
        pool = tcpreasm.FilePool(write_behind=True)
        told, others = [], 0
        for number in range(count):
            stream = tcpreasm.FileStream(path=tmp_path / "nowhere" / str(number), pool=pool)
            for call in (partial(stream.reassembled, [Piece(b"x")]), stream.reassembly_complete):
                try:
                    call()
                except FileNotFoundError as error:
                    told.append(error.filename)
        try:
            pool.close()
        except FileNotFoundError as error:
            told.append(error.filename)
            others = int(error.strerror.split()[-8]) if "more errors" in error.strerror else 0
        assert len(told) + others == count
        assert len(set(told)) == len(told)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    pool = tcpreasm.FilePool(write_behind=True)
    calls: list[Callable[[], object]] = []
    for number in range(600):
        path = "/dev/full" if number == 3 else tmp_path / str(number)
        stream = tcpreasm.FileStream(path=path, pool=pool, overwrite=True)
        calls += [partial(stream.reassembled, [Piece(b"%d" % number)]), stream.reassembly_complete]
    assert errors_of([*calls, pool.close]) == [(errno.ENOSPC, "/dev/full")]
    assert all((tmp_path / str(number)).read_bytes() == b"%d" % number for number in range(600) if number != 3)


def test_a_limit_of_file_size_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    pool = tcpreasm.FilePool(write_behind=True)
    stream = tcpreasm.FileStream(path=tmp_path / "x", pool=pool)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        found = errors_of([lambda: stream.reassembled([Piece(b"x" * 3000)]), stream.reassembly_complete, pool.close])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == [(errno.EFBIG, str(tmp_path / "x"))]
    assert (tmp_path / "x").read_bytes() == b"x" * 1000


def test_the_latest_of_a_path_stays_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    for number in range(30):
        with tcpreasm.FilePool(write_behind=True) as pool:
            for turn in range(20):
                stream = tcpreasm.FileStream(path=tmp_path / "x", pool=pool, overwrite=True)
                stream.reassembled([Piece(b"%d.%d" % (number, turn) * (30 - turn))])
                stream.reassembly_complete()
        assert (tmp_path / "x").read_bytes() == b"%d.19" % number * 11


def test_dropped_pools_write_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    pools = [tcpreasm.FilePool(write_behind=True) for _ in range(2)]
    for number in range(300):
        stream = tcpreasm.FileStream(path=tmp_path / str(number), pool=pools[number % 2])
        stream.reassembled([Piece(b"%d" % number)])
        if number % 5:
            stream.reassembly_complete()
    del stream, pools
    gc.collect()
    assert all((tmp_path / str(number)).read_bytes() == b"%d" % number for number in range(300))


def test_closing_while_others_write_behind(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """What was taken before is there, whole; later bytes raise ValueError, and nothing hangs."""
    for turn in range(10):
        pool = tcpreasm.FilePool(4, write_behind=True)
        begun = threading.Barrier(3)

        def serve(thread: int, pool: Any = pool, begun: threading.Barrier = begun, turn: int = turn) -> int:
            begun.wait()
            for number in range(100_000):
                stream = tcpreasm.FileStream(path=tmp_path / f"{turn}-{thread}-{number}", pool=pool)
                try:
                    stream.reassembled([Piece(b"%d" % number * 200)])
                    stream.reassembly_complete()
                except ValueError:
                    return number
            return -1

        tasks = [Task(partial(serve, thread)) for thread in range(2)]
        begun.wait()
        time.sleep(0.02)
        pool.close()
        for thread, task in enumerate(tasks):
            for number in range(task.result()):
                assert (tmp_path / f"{turn}-{thread}-{number}").read_bytes() == b"%d" % number * 200
        assert len(pool) == 0


BLOCKED = """
import signal, sys
from tcpreasm import FilePool, FileStream, Reassembly

def alarm(*_):
    raise KeyboardInterrupt

how, fifo, other = sys.argv[1:]
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)

def feed(path):
    stream = FileStream(path=path, pool=pool, overwrite=True)
    stream.reassembled([Reassembly(b"x")])
    stream.reassembly_complete()

pool = FilePool(1, write_behind=True)
told = 0
try:
    feed(fifo)
    if how == "many":
        for number in range(600):
            feed(other + str(number))
    elif how == "same":
        feed(fifo)
    elif how == "block":
        with pool:
            raise ZeroDivisionError
    pool.close()
except KeyboardInterrupt:
    told += 1
try:
    pool.close()
except KeyboardInterrupt:
    told += 1
print(told)
del pool
print("end")
"""


@pytest.mark.parametrize("how", ["close", "same", "many", "block"])
def test_signals_are_heard_while_a_file_written_behind_blocks(tmp_path: Path, how: str) -> None:
    """A FIFO that nobody reads: every call that waits for it may be interrupted, and then nothing waits for it any more. The pure core
    writes nothing behind."""
    os.mkfifo(tmp_path / "fifo")
    arguments = [sys.executable, "-c", BLOCKED, how, str(tmp_path / "fifo"), str(tmp_path / "other")]
    environment = {**os.environ, "TCPREASM_IMPLEMENTATION": "compiled"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\nend\n", "")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # there is a thread, that is the point
def test_a_forked_child_leaves_files_alone(tcpreasm: ModuleType, tmp_path: Path) -> None:
    pool = tcpreasm.FilePool(write_behind=True)
    streams = [tcpreasm.FileStream(path=tmp_path / str(number), pool=pool) for number in range(300)]
    for stream in streams[:-1]:
        stream.reassembled([Piece(b"bytes")])
        stream.reassembly_complete()
    streams[-1].reassembled([Piece(b"last")])
    child = os.fork()
    if not child:
        with suppress(BaseException):
            pool.close()
            del pool, stream, streams[:]
            gc.collect()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    pool.close()
    assert [(tmp_path / str(number)).read_bytes() for number in range(300)] == [b"bytes"] * 299 + [b"last"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("used", ["not", "open", "done"])
def test_a_forked_child_and_a_pool_that_writes_behind(tcpreasm: ModuleType, tmp_path: Path, used: str) -> None:
    """A pool that was not used yet is the child's too; another one says so. Nothing is lost without a word."""
    pool = tcpreasm.FilePool(write_behind=True)
    mine = tcpreasm.FileStream(path=tmp_path / "mine", pool=pool, fill_gaps=True)
    if used != "not":
        mine.reassembled([Piece(b"parent's")])
    if used == "done":
        mine.reassembly_complete()
    compiled = tcpreasm.implementation == "compiled"
    child = os.fork()
    if not child:
        refused = 0
        with suppress(BaseException):
            for number in range(10):
                stream = tcpreasm.FileStream(path=tmp_path / str(number), pool=pool)
                try:
                    stream.reassembled([Piece(b"child's")])
                    if number % 2:
                        stream.reassembly_complete()
                except RuntimeError:
                    refused += 1
            if compiled and used == "open":
                for call in (lambda: mine.reassembled([Piece(b"?")]), mine.reassembly_complete):
                    try:
                        call()
                    except RuntimeError:
                        refused += 1
            pool.close()
            os._exit(refused)
        os._exit(99)
    expected = {"not": 0, "open": 12, "done": 10}[used] if compiled else 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
    if used != "done":
        mine.reassembled([Piece(b".")])
        mine.reassembly_complete()
    pool.close()
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made.pop("mine") == {"not": b".", "open": b"parent's.", "done": b"parent's"}[used]
    assert made == ({} if expected else {str(number): b"child's" for number in range(10)})


def test_flow_paths(tcpreasm: ModuleType, tmp_path: Path) -> None:
    flow_paths = tcpreasm.streams.FlowPaths
    v4, v6 = tcpreasm.Flow("10.0.0.1", "192.168.255.9"), tcpreasm.Flow("2001:db8::1", "::ffff")
    ports = tcpreasm.Flow(7, 65535)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xff")
    os.mkdir(folder)
    paths = flow_paths(folder)
    first = f"{folder}/010.000.000.001.00007-192.168.255.009.65535"
    assert [paths(v4, ports), paths(v4, ports)] == [first, f"{first}c1"]
    assert paths(v6, ports) == f"{folder}/2001.0db8.0000.0000.0000.0000.0000.0001.00007-0000.0000.0000.0000.0000.0000.0000.ffff.65535"
    assert flow_paths("x")(v4, ports.reverse()) == "x/010.000.000.001.65535-192.168.255.009.00007"
    with tcpreasm.FilePool() as pool:
        stream = tcpreasm.FileStream(v4, ports, path=paths, pool=pool)
        stream.reassembled([Piece(b"third")])
        assert stream.path == f"{first}c2"
    with open(f"{first}c2", "rb") as file:
        assert file.read() == b"third"


BAD_FLOWS = {
    "longer": (bytes(17), bytes(17), 1, 2),
    "much longer": (bytes(4000), bytes(4000), 1, 2),
    "shorter": (b"abc", b"abc", 1, 2),
    "empty": (b"", b"", 1, 2),
    "unequal": (bytes(4), bytes(16), 1, 2),
    "no bytes": (bytearray(4), bytes(4), 1, 2),
    "no bytes behind": (bytes(4), "1.2.3.4", 1, 2),
    "none": (None, None, 1, 2),
    "port beyond": (bytes(4), bytes(4), 65536, 2),
    "port below": (bytes(4), bytes(4), 1, -1),
    "port of text": (bytes(16), bytes(16), 1, "2"),
}


@pytest.mark.parametrize("name", BAD_FLOWS)
def test_flow_paths_of_other_flows(tcpreasm: ModuleType, name: str) -> None:
    src, dst, src_port, dst_port = BAD_FLOWS[name]
    net_flow, transport_flow = SimpleNamespace(raw_src=src, raw_dst=dst), SimpleNamespace(raw_src=src_port, raw_dst=dst_port)
    with pytest.raises(TypeError, match=r"^a file's name takes .*, not .") as caught:
        tcpreasm.streams.FlowPaths("x")(net_flow, transport_flow)
    assert len(str(caught.value)) < 300


# Threads.


def test_streams_of_one_pool_in_many_threads(tcpreasm: ModuleType, tmp_path: Path) -> None:
    pool = tcpreasm.FilePool(2)

    def serve(thread: int) -> None:
        chance = random.Random(thread)
        files = [tcpreasm.FileStream(path=tmp_path / f"{thread}-{number}", pool=pool, fill_gaps=True) for number in range(6)]
        for turn in range(200):
            for number, stream in enumerate(files):
                stream.reassembled([Piece(bytes([thread, number, turn]) * chance.choice([1, 500, 30_000]), skip=turn % 2)])
        for stream in files[::2]:
            stream.reassembly_complete()

    with pool:
        for task in [Task(lambda thread=thread: serve(thread)) for thread in range(4)]:
            task.result()
        assert len(pool) <= 2
    for thread in range(4):
        chance = random.Random(thread)
        expected = [b""] * 6
        for turn in range(200):
            for number in range(6):
                expected[number] += bytes(turn % 2) + bytes([thread, number, turn]) * chance.choice([1, 500, 30_000])
        for number, data in enumerate(expected):
            assert (tmp_path / f"{thread}-{number}").read_bytes() == data


def test_looking_at_streams_while_they_are_fed(tcpreasm: ModuleType) -> None:
    """A second thread sees a beginning of the stream, whole pieces of it, at any moment."""
    kept, digested, noted = tcpreasm.BytesStream(), tcpreasm.DigestStream(), tcpreasm.SpanStream()
    part = KILO[:1000]
    expected = [hashlib.sha256()]
    for _ in range(1000):
        expected.append(expected[-1].copy())
        expected[-1].update(part)
    digests = {made.digest(): number for number, made in enumerate(expected)}

    def look() -> int:
        last = looks = 0
        while not kept.complete:
            data, digest, spans, gaps = kept.data, digested.digest(), noted.spans, kept.gaps
            assert data == part * (len(data) // 1000)
            assert len(data) >= last
            assert digest in digests
            assert spans["offset"].tolist() == [number * 1000 for number in range(len(spans))]
            assert [length for _, length in gaps] == [1] * len(gaps)
            last = len(data)
            looks += 1
        return looks

    looking = Task(look)
    for number in range(1000):
        for stream in (kept, digested, noted):
            stream.reassembled([Piece(part, skip=1, offset=number * 1000)])
    for stream in (noted, digested, kept):
        stream.reassembly_complete()
    assert looking.result() >= 0
    assert digests[digested.digest()] == 1000


# Through whole captures, where the engine serves them itself: against a stream in Python.


class Written:
    """A stream in Python that writes down what it gets."""

    def __init__(self, net_flow: Any, transport_flow: Any) -> None:
        self.key = str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst
        self.pieces: list[tuple[bytes, int, bool, bool, int, int]] = []
        self.complete = False

    def reassembled(self, reassemblies: list[Any]) -> None:
        assert not self.complete
        self.pieces += [(piece.bytes, piece.skip, piece.start, piece.end, piece.seen_ns, piece.offset) for piece in reassemblies]

    def reassembly_complete(self) -> None:
        assert not self.complete
        self.complete = True

    def counters(self) -> tuple[Any, ...]:
        counting = {"length": 0, "skipped": 0, "gap_count": 0}
        for data, skip, *_ in self.pieces:
            counting["length"] += len(data)
            counting["skipped"] += max(skip, 0)
            counting["gap_count"] += skip > 0
        times = [seen_ns for *_, seen_ns, _ in self.pieces]
        first, last = (min(times), max(times)) if times else (None, None)
        return (
            *counting.values(), any(piece[2] for piece in self.pieces), any(piece[3] for piece in self.pieces), self.complete,
            first, last, None if first is None else first / 1e9, None if last is None else last / 1e9,
        )  # fmt: skip

    def data(self) -> bytes:
        return b"".join(piece[0] for piece in self.pieces)

    def gaps(self) -> tuple[tuple[int, int], ...]:
        found, at = [], 0
        for data, skip, *_ in self.pieces:
            if skip > 0:
                found.append((at, skip))
                at += skip
            at += len(data)
        return tuple(found)

    def spans(self) -> list[tuple[int, int, int, int]]:
        return [(offset, len(data), skip, seen_ns) for data, skip, _, _, seen_ns, offset in self.pieces if data or skip]


def key_of(stream: Any) -> tuple[str, int, str, int]:
    net_flow, transport_flow = stream.key
    return str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst


def written(tcpreasm: ModuleType, source: Any) -> list[Written]:
    """What streams in Python get, in the order of their making."""
    found: list[Written] = []

    def factory(net_flow: Any, transport_flow: Any) -> Written:
        found.append(Written(net_flow, transport_flow))
        return found[-1]

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source)
    return found


def check_same(stream: Any, expected: Written, source: Any) -> None:
    assert key_of(stream) == expected.key
    assert counters(stream) == expected.counters()
    if hasattr(stream, "gaps"):
        assert stream.gaps == expected.gaps()
    if hasattr(stream, "digest"):
        assert stream.digest() == hashlib.sha256(expected.data()).digest()
    elif hasattr(stream, "spans"):
        assert stream.spans.tolist() == expected.spans()
        assert stream.gather(source) == expected.data()
    elif hasattr(stream, "data") or hasattr(stream, "pool"):
        assert content(stream) == expected.data()


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("name", READY)
def test_a_capture_into_ready_made_streams(tcpreasm: ModuleType, data: Path, tmp_path: Path, name: str, capture: str) -> None:
    source = str(data / capture)
    found: list[Any] = []
    with tcpreasm.FilePool(2) as files:

        def factory(*flows: Any) -> Any:
            found.append(make(tcpreasm, name, tmp_path, files, flows))
            return found[-1]

        summary = tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source)
        for stream, expected in zip(found, written(tcpreasm, source), strict=True):
            check_same(stream, expected, source)
    assert summary.streams == len(found)
    assert summary.bytes_delivered == sum(stream.length for stream in found)


@pytest.mark.parametrize("capture", CAPTURES)
def test_ready_made_streams_beside_streams_in_python(tcpreasm: ModuleType, data: Path, tmp_path: Path, capture: str) -> None:
    """One pool, streams of all kinds in turn."""
    source = str(data / capture)
    found: list[Any] = []
    with tcpreasm.FilePool(1) as files:

        def factory(*flows: Any) -> Any:
            kind = (*READY, "Written")[len(found) % 6]
            found.append(Written(*flows) if kind == "Written" else make(tcpreasm, kind, tmp_path, files, flows))
            return found[-1]

        tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source)
        for stream, expected in zip(found, written(tcpreasm, source), strict=True):
            if isinstance(stream, Written):
                assert (stream.key, stream.pieces, stream.complete) == (expected.key, expected.pieces, True)
            else:
                check_same(stream, expected, source)


@pytest.mark.parametrize("overridden", ["reassembled", "reassembly_complete", "both", "on the object", "neither"])
@pytest.mark.parametrize("name", READY)
def test_subclasses_are_called_where_they_override(tcpreasm: ModuleType, data: Path, tmp_path: Path, name: str, overridden: str) -> None:
    source = str(data / "disordered.pcap")
    calls: dict[int, list[str]] = {}
    base = getattr(tcpreasm, name)

    def reassembled(self: Any, reassemblies: list[Any]) -> None:
        calls[id(self)].append("reassembled")
        assert all(isinstance(piece, tcpreasm.Reassembly) for piece in reassemblies)
        base.reassembled(self, reassemblies)

    def reassembly_complete(self: Any) -> None:
        calls[id(self)].append("reassembly_complete")
        assert not self.complete
        base.reassembly_complete(self)

    methods = {"reassembled": reassembled, "reassembly_complete": reassembly_complete}
    if overridden in methods:
        methods = {overridden: methods[overridden]}
    elif overridden != "both":
        methods = {}
    cls = type("Overriding", (base,), methods)
    found: list[Any] = []
    with tcpreasm.FilePool(2) as files:

        def factory(*flows: Any) -> Any:
            stream = make(tcpreasm, name, tmp_path, files, flows, cls)
            calls[id(stream)] = []
            if overridden == "on the object":
                stream.reassembled = lambda pieces: reassembled(stream, pieces)
                stream.reassembly_complete = lambda: reassembly_complete(stream)
            found.append(stream)
            return stream

        tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source)
        for stream, expected in zip(found, written(tcpreasm, source), strict=True):
            check_same(stream, expected, source)
            made = calls[id(stream)]
            times = {"reassembled": made.count("reassembled"), "reassembly_complete": made.count("reassembly_complete")}
            on_object = overridden in ("both", "on the object")
            assert times["reassembly_complete"] == (1 if on_object or overridden == "reassembly_complete" else 0)
            assert (times["reassembled"] > 0) == (bool(expected.pieces) and (on_object or overridden == "reassembled"))


def test_a_method_taken_from_another_ready_made_class(tcpreasm: ModuleType, data: Path) -> None:
    """A subclass that takes its base's base's method: it counts, and keeps nothing."""
    source = str(data / "http.pcap")
    cls = type("Counting", (tcpreasm.BytesStream,), {"reassembled": tcpreasm.ByteCountStream.reassembled})
    found: list[Any] = []

    def factory(*flows: Any) -> Any:
        found.append(cls(*flows))
        return found[-1]

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source)
    for stream, expected in zip(found, written(tcpreasm, source), strict=True):
        assert counters(stream) == expected.counters()
        assert (stream.data, stream.gaps) == (b"", ())


def test_an_error_of_a_ready_made_stream_passes_through_and_the_rest_goes_on(tcpreasm: ModuleType, data: Path) -> None:
    capture = (data / "http.pcap").read_bytes()
    expected = written(tcpreasm, capture)
    found: list[Any] = []
    errors: list[str] = []

    def factory(*flows: Any) -> Any:
        found.append(tcpreasm.BytesStream(*flows, max_bytes=100))
        return found[-1]

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory))
    frames = iter(tcpreasm.open_capture(capture))
    for frame in frames:
        try:
            assembler.assemble_frame(frame.data, timestamp_ns=frame.timestamp_ns, linktype=frame.linktype, wire_length=frame.wire_length)
        except BufferError as error:
            errors.append(str(error))
    assembler.flush_all()
    assert [stream.data for stream in found] == [stream.data()[:100] for stream in expected]
    assert [stream.length for stream in found] == [len(stream.data()) for stream in expected]
    told = [f"the stream {stream.key} is longer than the 100 bytes that may be kept" for stream in found if stream.dropped]
    assert sorted(errors) == sorted(told)
    assert told
    with pytest.raises(BufferError, match="100 bytes"):
        tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(capture)


def test_streams_and_files_of_a_list_of_captures(tcpreasm: ModuleType, data: Path, tmp_path: Path) -> None:
    sources = [str(data / "missing.pcap"), (data / "http6.pcapng").read_bytes(), str(data / "disordered.pcap")]
    found: list[Any] = []

    def factory(*flows: Any) -> Any:
        found.append(tcpreasm.SpanStream(*flows))
        return found[-1]

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(sources)
    for stream, expected in zip(found, written(tcpreasm, sources), strict=True):
        check_same(stream, expected, sources)
        with (tmp_path / "out").open("wb") as out:
            assert stream.write_to(out, sources) == stream.length
        assert (tmp_path / "out").read_bytes() == expected.data()


@pytest.mark.parametrize("named", [True, False])
def test_the_warning_of_a_full_stream_names_it(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture, named: bool) -> None:
    key = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(1234, 80))
    reader = tcpreasm.ReaderStream(max_buffered_bytes=4, timeout=0, key=key if named else None)
    assert reader.key is (key if named else None)
    with caplog.at_level("WARNING"):
        for _ in range(3):
            reader.reassembled([tcpreasm.Reassembly(b"text")])
    whose = "the ReaderStream of 10.0.0.1:1234->10.0.0.2:80" if named else "a ReaderStream"
    assert [record.getMessage() for record in caplog.records] == [f"{whose} is full (4 bytes) and is not read: it discards what comes next"]
