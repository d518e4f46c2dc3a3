"""Several assemblers in several threads over one pool, each with its share of one capture, many frames a call.

Lives here: the shares are split by packet, so that every assembler touches every connection, and all of them together have every byte.
What they must give is therefore exact, in whatever order the threads come. One call a frame: test_threads.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from recorder import ACK, FIN, SYN, Ends, frame, number
from test_batch import START_NS, Batch, Captured, capture_of
from test_threads import Book, _often, together

__all__ = ["_often"]

SHARES = 3
WAIT = {"start_wait": None, "start_wait_segments": None, "hole_timeout": None, "idle_timeout": None, "closed_timeout": 3600}
Told = dict[Ends, bytes]


@cache
def shares(connections: int, seed: int) -> tuple[Told, list[list[Captured]]]:
    """What each connection sends, and the frames of each assembler: any of them, many twice or in other pieces, not in order. A FIN has
    text with it: one that comes before everything else would open nothing."""
    rng = random.Random(seed)
    texts: Told = {}
    frames = []
    for which in range(connections):
        ends = number(which)
        if which % 3 == 0:
            ends = (ends[2], ends[3], ends[0], ends[1])
        text = texts[ends] = rng.randbytes(rng.choice([0, 1, 300, 700, 4500]))
        isn = rng.getrandbits(32)
        size = rng.choice([100, 500, 2100])
        sent = [(-1, b"", SYN)]
        sent += [(at, text[at : at + size], ACK if at + size < len(text) else FIN | ACK) for at in range(0, len(text), size)]
        sent += [(at, text[at : at + 130], ACK) for at in rng.sample(range(len(text) or 1), len(text) // 1000)]
        frames += [frame(isn + 1 + at, data, flags, ends=ends) for at, data, flags in sent]
    # Mostly in order, with everybody's packets between everybody's.
    frames = [data for _, data in sorted((nth + rng.uniform(0, 3000), data) for nth, data in enumerate(frames))]
    captured = [Captured(START_NS + nth * 1000, data, len(data)) for nth, data in enumerate(frames)]
    return texts, [captured[share::SHARES] for share in range(SHARES)]


def by_batch(assembler: Any, frames: list[Captured], coalesce: bool) -> None:
    rng = random.Random(len(frames))
    batch = Batch(frames)
    begin = 0
    while begin < len(frames):
        end = begin + rng.choice([1, 10, 64, 200, 1000])
        assembler.assemble_batch(*batch.arguments(begin, end), coalesce=coalesce)
        begin = end


def by_capture(assembler: Any, frames: list[Captured], coalesce: bool) -> None:
    half = len(frames) // 2
    for part in (frames[:half], frames[half:]):
        assembler.assemble_capture(capture_of(part), flush=False, coalesce=coalesce)


WAYS: dict[str, Callable[[Any, list[Captured], bool], None]] = {"batch": by_batch, "capture": by_capture}


class Native:
    """A factory of ready-made streams, which are kept."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.streams: list[tuple[Ends, Any]] = []

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        stream = self.make(net_flow, transport_flow)
        self.streams.append(((str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst), stream))
        return stream


def run(package: ModuleType, factory: Any, frames: list[list[Captured]], way: str, coalesce: bool) -> tuple[Any, list[Any]]:
    """All shares at once, with somebody who asks how it stands. Then everything is flushed."""
    pool = package.StreamPool(factory)
    assemblers = [package.Assembler(pool, package.AssemblerOptions(**WAIT)) for _ in frames]
    going = [len(frames)]
    lock = threading.Lock()

    def work(share: int) -> Callable[[], None]:
        def feed() -> None:
            try:
                WAYS[way](assemblers[share], frames[share], coalesce)
            finally:
                with lock:
                    going[0] -= 1

        return feed

    def ask() -> None:
        while going[0]:
            keys = [*map(str, pool.keys())]
            assert len(set(keys)) == len(keys)
            assert len(pool) >= 0
            for assembler in assemblers:
                stats = assembler.stats
                assert stats.pages_used >= 0
                assert stats.bytes_captured >= 0

    together(*map(work, range(len(frames))), ask, deadline=60)
    together(assemblers[-1].flush_all)
    return pool, assemblers


def check_counters(pool: Any, assemblers: list[Any], texts: Told, frames: list[list[Captured]]) -> None:
    stats = [assembler.stats for assembler in assemblers]
    assert len(pool) == 0
    assert [one.frames for one in stats] == [one.segments for one in stats] == [len(share) for share in frames]
    assert [(one.bytes_held, one.pages_used) for one in stats] == [(0, 0)] * len(stats)
    assert sum(one.bytes_captured for one in stats) == sum(one.bytes_delivered + one.bytes_dropped for one in stats)
    assert sum(one.bytes_delivered for one in stats) == sum(map(len, texts.values()))
    assert sum(one.bytes_skipped for one in stats) == 0
    assert sum(one.streams_opened for one in stats) == sum(one.streams_closed for one in stats) == len(texts)
    dropped: Counter[str] = Counter()
    for one in stats:
        dropped.update(one.dropped)
    assert set(dropped) <= {"retransmitted", "overlapping", "after_close", "after_end"}


def some(package: ModuleType, seed: int) -> tuple[Told, list[list[Captured]]]:
    return shares(1500 if package.implementation == "compiled" else 250, seed)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_python_streams(tcpreasm: ModuleType, way: str, coalesce: bool) -> None:
    """Each stream is made once and served serially, and gets exactly its bytes."""
    texts, frames = some(tcpreasm, 1)
    book = Book()
    pool, assemblers = run(tcpreasm, book, frames, way, coalesce)
    book.check(pool, assemblers)
    assert set(book.made.values()) == {1}
    assert {stream.key: stream.data for stream in book.streams} == texts
    for stream in book.streams:
        assert [skip for _, skip, _, _ in stream.pieces if skip] == []
        assert stream.pieces[0][2]
        assert stream.pieces[-1][3] == bool(stream.data)
    check_counters(pool, assemblers, texts, frames)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["BytesStream", "DigestStream", "ByteCountStream"])
def test_ready_made_streams(tcpreasm: ModuleType, kind: str, way: str, coalesce: bool) -> None:
    texts, frames = some(tcpreasm, 2)
    factory = Native(getattr(tcpreasm, kind))
    pool, assemblers = run(tcpreasm, factory, frames, way, coalesce)
    assert len(factory.streams) == len(texts)
    for key, stream in factory.streams:
        text = texts[key]
        assert (stream.length, stream.skipped, stream.gap_count) == (len(text), 0, 0)
        assert stream.started
        assert stream.ended == bool(text)
        assert stream.complete
        if kind == "BytesStream":
            assert stream.data == text
        elif kind == "DigestStream":
            assert stream.digest() == hashlib.sha256(text).digest()
    check_counters(pool, assemblers, texts, frames)


@pytest.mark.parametrize("way", WAYS)
def test_counted_streams(tcpreasm: ModuleType, way: str) -> None:
    """No objects at all, and so no GIL. The table grows meanwhile."""
    texts, frames = shares(5000, 3) if tcpreasm.implementation == "compiled" else some(tcpreasm, 3)
    pool, assemblers = run(tcpreasm, tcpreasm.ByteCountStream, frames, way, False)
    check_counters(pool, assemblers, texts, frames)


@pytest.mark.parametrize("kinds", [("python", "python coalesced", "capture"), ("python coalesced", "python coalesced", "python")])
def test_each_in_a_way_of_its_own(tcpreasm: ModuleType, kinds: tuple[str, ...]) -> None:
    """What one of them puts aside, another gives out where it is first: still in order."""
    texts, frames = some(tcpreasm, 4)
    for _ in range(2):
        book = Book()
        pool = tcpreasm.StreamPool(book)
        assemblers = [tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(**WAIT)) for _ in frames]

        def work(share: int, kind: str, assemblers: list[Any] = assemblers) -> Callable[[], None]:
            if kind == "capture":
                return lambda: by_capture(assemblers[share], frames[share], True)
            return lambda: by_batch(assemblers[share], frames[share], kind.endswith("coalesced"))

        together(*(work(share, kind) for share, kind in enumerate(kinds)), deadline=60)
        together(assemblers[0].flush_all)
        book.check(pool, assemblers)
        assert {stream.key: stream.data for stream in book.streams} == texts
        check_counters(pool, assemblers, texts, frames)


@pytest.mark.parametrize("coalesce", [False, True])
def test_exceptions_in_each_of_them(tcpreasm: ModuleType, coalesce: bool) -> None:
    """An exception passes through in the thread that met it; going on behind the frame, nothing is lost and nothing comes twice."""

    class Told(Exception):
        pass

    texts, frames = some(tcpreasm, 5)
    book = Book()
    raised = [0] * len(frames)
    lock = threading.Lock()
    calls = [0]

    def new(net_flow: Any, transport_flow: Any) -> Any:
        stream: Any = book.new(net_flow, transport_flow)
        take = stream.reassembled

        def reassembled(pieces: list[Any]) -> None:
            take(pieces)
            with lock:
                calls[0] += 1
                mine = calls[0] % 17 == 0
            if mine:
                raise Told

        stream.reassembled = reassembled
        return stream

    pool = tcpreasm.StreamPool(new)
    assemblers = [tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(**WAIT)) for _ in frames]

    def work(share: int) -> Callable[[], None]:
        def feed() -> None:
            batch = Batch(frames[share])
            while (begin := assemblers[share].stats.frames) < len(frames[share]):
                try:
                    assemblers[share].assemble_batch(*batch.arguments(begin, begin + 100), coalesce=coalesce)
                except Told:
                    raised[share] += 1

        return feed

    together(*map(work, range(len(frames))), deadline=60)

    def finish() -> None:
        while len(pool):
            try:
                assemblers[0].flush_all()
            except Told:
                raised[0] += 1

    together(finish)
    assert min(raised) > 0
    book.check(pool, assemblers)
    assert {stream.key: stream.data for stream in book.streams} == texts
    check_counters(pool, assemblers, texts, frames)
