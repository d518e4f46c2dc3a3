"""Many frames in one call: `assemble_batch` and `assemble_records` against `assemble_frame`, on each core.

Lives here: that they lead to the same calls, pieces and counters, whatever comes in and whatever raises; what they refuse; what
`coalesce` changes, and what it does not; where each piece stands in the buffer or the file; `tick`. What is right for a single frame is
asked elsewhere (test_assembler, test_model, test_faults).
"""

from __future__ import annotations

import gzip
import io
import mmap
import random
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import accumulate, count, islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import ACK, BACK, ENDS, FIN, NS, RST, SYN, Call, Ends, RecordedStream, Recorder, complete, frame, got, new, number, piece
from test_parity import FLUSH, LIMIT_NS, NEST, RAISE, STEP, Both, LockStep, Side, examples, perform
from test_parity import OPTIONS as ANY_OPTIONS
from test_parity import frames as any_frames

START_NS = 1_700_000_000 * NS
KINDS = ("in order", "lossy", "overlapping", "hostile")


class Captured(NamedTuple):
    """A frame as a capture holds it."""

    seen_ns: int
    data: bytes
    wire: int


# -- random traffic -------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_buffered_pages_per_connection": 3},
    {"max_buffered_pages_total": 5, "start_wait_segments": 2},
    {"max_buffered_bytes_total": 9000, "max_buffered_bytes_per_connection": 4000},
    {"start_wait": 0.0, "max_gap": 9000, "hole_timeout": 0.5, "idle_timeout": 3.0, "closed_timeout": 1.0},
    {"start_wait_segments": None, "start_wait": None, "verify_checksums": True},
    {"overlap": "last", "urgent": "oob"},
    {"overlap": "linux", "paws": True, "syn_data": "acked"},
    {"depth": 2500, "start_wait_segments": 2},
]


def traffic(kind: str, seed: int, directions: int = 5, size: int = 12_000) -> list[Captured]:
    """Some connections at once. Their bytes are random, so that no two places of a file look alike."""
    rng = random.Random(f"{kind} {seed}")
    sent: list[tuple[float, bytes]] = []
    for which in range(directions):
        src, src_port, dst, dst_port = number(which) if which % 3 else ("2001:db8::1", 1000 + which, "2001:db8::2", 80)
        ends = (src, src_port, dst, dst_port) if which % 2 else (dst, dst_port, src, src_port)
        data = rng.randbytes(rng.randrange(size))
        isn = rng.choice([0, 1000, 2**31 - 20, 2**32 - 10, 2**32 - 4000])
        if kind == "in order" or rng.random() < 0.7:
            sent.append((0.0, frame(isn, b"", SYN, ends=ends)))
        at = 0
        while at < len(data):
            for begin, step, content in _told(rng, kind, data, at):
                place = begin / len(data) + (rng.uniform(0, 0.2) if kind != "in order" and rng.random() < 0.15 else 0)
                if kind == "in order" or rng.random() > 0.04:
                    sent.append((place, frame(isn + 1 + begin, content[:step], _flags(rng, kind), ends=ends)))
            at += step
        if rng.random() < 0.7:
            sent.append((1.0, frame(isn + 1 + len(data), b"", rng.choice([FIN | ACK, FIN | ACK, RST | ACK]), ends=ends)))
            if kind == "hostile":
                sent.append((1.1, frame(isn + 70_000, b"", SYN, ends=ends)))
                sent.append((1.2, frame(isn + 70_001, rng.randbytes(50), ends=ends)))
        if kind == "hostile":
            sent.append((rng.random(), frame(isn + (1 << 29), rng.randbytes(20), ends=ends)))
    sent.sort(key=lambda item: item[0])
    now, captured = START_NS, []
    for _, data in sent:
        now += rng.choice([0, 1000, 20_000_000, 200_000_000])
        wire = len(data)
        if kind == "hostile":
            now += rng.choice([0] * 20 + [NS, -NS, 70 * NS, -70 * NS])
            data, wire = _damaged(rng, data)
        captured.append(Captured(now, data, wire))
    return captured


def _told(rng: random.Random, kind: str, data: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    """What is sent of data around a place, as (place, size, bytes); what is new last."""
    size = rng.choice([1, 3, 500, 1448, 1900, 1901, 4000])
    if kind in ("overlapping", "hostile") and rng.random() < 0.4:
        begin = max(0, at - rng.randrange(3000))
        again = data[begin : begin + rng.randrange(1, 5000)]
        yield begin, len(again), again if rng.random() < 0.6 else rng.randbytes(len(again))
    yield at, size, data[at : at + size]


def _flags(rng: random.Random, kind: str) -> int:
    return rng.choice([ACK] * 30 + [0, SYN, RST | ACK, FIN | ACK, SYN | FIN, 0xFF]) if kind == "hostile" else ACK


def _damaged(rng: random.Random, data: bytes) -> tuple[bytes, int]:
    """Mostly as it was; or cut, changed, or nothing but noise."""
    wire = len(data)
    how = rng.choice(["whole"] * 8 + ["cut", "changed", "noise", "padded"])
    if how == "cut":
        data = data[: rng.randrange(len(data) + 1)]
        wire = rng.choice([wire, wire, 0, 2**31])
    elif how == "changed":
        place = rng.randrange(len(data))
        data = data[:place] + rng.randbytes(1) + data[place + 1 :]
    elif how == "noise":
        data = rng.randbytes(rng.randrange(100))
    elif how == "padded":
        data += bytes(6)
    return data, max(wire, len(data))


# -- one way to take it in, and another -------------------------------------------------------------------------------------


class PlacedStream(RecordedStream):
    """Writes down, besides, where each piece stands, and what packet brought it."""

    recorder: Placed

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.recorder.places += [(r.offset, bytes(r)) for r in reassemblies]
        self.recorder.numbers.setdefault(self.key, []).extend((r.packet_number, r.seq, bytes(r)) for r in reassemblies)
        super().reassembled(reassemblies)


class Placed(Recorder):
    def __init__(self, keep: bool = False) -> None:
        super().__init__(keep, PlacedStream)
        self.places: list[tuple[int, bytes]] = []
        self.numbers: dict[str, list[tuple[int, int, bytes]]] = {}

    def raise_at(self, call: str, nth: int, error: BaseException) -> None:
        """The nth such call from now on raises."""
        numbers = count(1)

        def planned() -> None:
            if next(numbers) == nth:
                raise error

        self.plan[call] = planned


class Way:
    """An assembler over a recorder."""

    def __init__(self, package: ModuleType, keep: bool = False, **options: Any) -> None:
        self.package = package
        self.recorder = Placed(keep)
        self.pool = package.StreamPool(self.recorder)
        self.assembler = package.Assembler(self.pool, package.AssemblerOptions(**options))
        self.errors: list[tuple[int, str, str]] = []  # after so many frames, what was raised

    def take(self) -> list[Call]:
        assert not self.recorder.wrong
        return self.recorder.take()

    def state(self) -> dict[str, Any]:
        """Everything but pages_allocated, which depends on how long a piece is looked at."""
        stats = self.assembler.stats
        numbers = {field.name: getattr(stats, field.name) for field in fields(stats) if field.name != "pages_allocated"}
        numbers |= {"verdicts": {int(verdict): n for verdict, n in stats.verdicts.items()}, "dropped": dict(stats.dropped)}
        return numbers | {"now": self.assembler.now_ns(), "keys": [*map(str, self.pool.keys())]}

    def one(self, captured: Captured) -> int:
        return int(
            self.assembler.assemble_frame(captured.data, timestamp_ns=captured.seen_ns, wire_length=captured.wire)
            == self.package.Verdict.SEGMENT
        )

    def one_by_one(self, frames: list[Captured], tick: bool = False) -> int:
        """Frame by frame; an exception keeps nothing from going on behind the frame. The number of segments."""
        before = self.assembler.stats.segments
        for captured in frames:
            try:
                self.one(captured)
                if tick:
                    self.assembler.tick()
            except BaseException as error:
                self.note(error)
        return int(self.assembler.stats.segments - before)

    def note(self, error: BaseException) -> None:
        self.errors.append((self.assembler.stats.frames, type(error).__name__, str(error)))

    def batch(self, batch: Batch, coalesce: bool = False) -> int:
        """At once, and after an exception on behind the frame. The number of segments."""
        before = self.assembler.stats
        begin = 0
        while True:
            try:
                self.assembler.assemble_batch(*batch.arguments(begin), coalesce=coalesce)
                break
            except BaseException as error:
                self.note(error)
                begin = self.assembler.stats.frames - before.frames
        return int(self.assembler.stats.segments - before.segments)


class Batch:
    """Frames in one buffer, with something between them, not in their order."""

    def __init__(self, frames: list[Captured], seed: int = 0) -> None:
        rng = random.Random(seed)
        self.frames = frames
        self.offsets = [0] * len(frames)
        self.buffer = b""
        parts, size = [], 0
        for which in rng.sample(range(len(frames)), len(frames)):
            gap = rng.randbytes(rng.randrange(3))
            self.offsets[which] = size + len(gap)
            parts += [gap, frames[which].data]
            size += len(gap) + len(frames[which].data)
        self.buffer = b"".join(parts)

    def arguments(self, begin: int = 0, end: int | None = None) -> tuple[Any, ...]:
        part = self.frames[begin:end]
        return (
            self.buffer,
            self.offsets[begin:end],
            [len(captured.data) for captured in part],
            [captured.seen_ns for captured in part],
            [captured.wire for captured in part],
        )


def coalesced(calls: list[Call]) -> list[Call]:
    """What `coalesce` makes of the calls of one batch."""
    told: list[Call] = []
    waiting: dict[str, list[Any]] = {}
    for call in calls:
        if call[0] == "reassembled":
            waiting.setdefault(call[1], []).extend(call[2])
            continue
        if call[0] == "complete" and call[1] in waiting:
            told.append(("reassembled", call[1], waiting.pop(call[1])))
        told.append(call)
    return told + [("reassembled", key, pieces) for key, pieces in waiting.items()]


def streams_of(calls: list[Call]) -> dict[tuple[str, int], list[Any]]:
    """The pieces of each stream."""
    opened: dict[str, int] = {}
    pieces: dict[tuple[str, int], list[Any]] = {}
    for call in calls:
        if call[0] == "new":
            opened[call[1]] = opened.get(call[1], 0) + 1
        elif call[0] == "reassembled":
            pieces.setdefault((call[1], opened[call[1]]), []).extend(call[2])
    return pieces


def check_places(recorder: Placed, data: bytes, datagrams: int = 0) -> bool:
    """Each piece is what stands there, but for those of datagrams that came in fragments. Whether there was any.

    Args:
        datagrams: how many of those there were; each is a piece at the most, but for what was cut into pages.
    """
    wrong = [
        (offset, content)
        for offset, content in recorder.places
        if (offset != -1 if not content else offset < 0 or data[offset : offset + len(content)] != content)
    ]
    assert [offset for offset, _ in wrong if offset != -1] == []
    assert len(wrong) <= 3 * datagrams
    return bool(recorder.places)


def parts_of(seed: int, size: int) -> list[tuple[int, int]]:
    """Random batches: (begin, end) of each."""
    rng = random.Random(seed)
    bounds = [0, *sorted(rng.randrange(size + 1) for _ in range(rng.choice([0, 1, 5, 30]))), size]
    return list(pairwise(bounds))


# -- the same as frame by frame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_frames_one_by_one(tcpreasm: ModuleType, kind: str, seed: int, coalesce: bool) -> None:
    frames = traffic(kind, seed)
    batch = Batch(frames, seed)
    options = OPTIONS[seed % len(OPTIONS)]
    single, many = Way(tcpreasm, **options), Way(tcpreasm, **options)
    for begin, end in parts_of(seed, len(frames)):
        segments = sum(single.one(captured) for captured in frames[begin:end])
        assert many.assembler.assemble_batch(*batch.arguments(begin, end), coalesce=coalesce) == segments
        calls = single.take()
        assert many.take() == (coalesced(calls) if coalesce else calls)
        assert many.state() == single.state()
    assert many.assembler.flush_all() == single.assembler.flush_all()
    assert many.take() == single.take()
    assert many.state() == single.state()
    assert many.recorder.numbers == single.recorder.numbers
    assert check_places(many.recorder, batch.buffer)
    assert {offset for offset, _ in single.recorder.places} == {-1}


def test_the_random_traffic_has_what_it_is_for(tcpreasm: ModuleType) -> None:
    """Or nothing would be shown by it."""
    seen: dict[str, set[str]] = {}
    for kind in KINDS:
        names = seen.setdefault(kind, set())
        for seed in range(10):
            way = Way(tcpreasm, **OPTIONS[seed % len(OPTIONS)])
            way.one_by_one(traffic(kind, seed))
            way.assembler.flush_all()
            stats = way.assembler.stats
            names |= {name for name in ("bytes_skipped", "conflicting", "page_requests", "streams_closed") if getattr(stats, name)}
            names |= set(stats.dropped) | {verdict.name for verdict in stats.verdicts}
    assert seen["in order"] == {"streams_closed", "stopped", "SEGMENT"}  # one of OPTIONS has a depth
    assert seen["lossy"] >= {"bytes_skipped", "page_requests", "SEGMENT"}
    assert seen["overlapping"] >= {"conflicting", "retransmitted", "overlapping"}
    assert seen["hostile"] >= {"TRUNCATED", "NOT_IP", "after_close", "no_ack_flag", "rst_text", "out_of_window", "after_end"}


def batch_of(*frames: bytes) -> Batch:
    """A microsecond apart."""
    return Batch([Captured(1000 * i, data, len(data)) for i, data in enumerate(frames)])


def us(microseconds: int) -> float:
    return microseconds / 1e6


def small_talk() -> Batch:
    """Two directions, one opened anew, a hole, both ends; few frames, so that everything can be tried at each of them."""
    return batch_of(
        frame(1000, b"", SYN),
        frame(5000, b"", SYN | ACK, ends=BACK),
        frame(1001, b"abc"),
        frame(1010, b"klm"),
        frame(5001, b"one", ends=BACK),
        frame(1004, b"defghi"),
        frame(1013, b"n"),
        frame(90_000, b"", SYN),
        frame(90_001, b"anew"),
        frame(5004, b"", FIN | ACK, ends=BACK),
        frame(90_005, b"more"),
        frame(90_009, b"end", FIN | ACK),
        frame(5009, b"late", ends=BACK),
        frame(200_000, b"", SYN),
        frame(200_001, b"again"),
    )


ERRORS = [ValueError("told"), KeyboardInterrupt("stop"), StopIteration(5), GeneratorExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_exceptions_at_every_place(tcpreasm: ModuleType, call: str, error: BaseException) -> None:
    """They pass through as they are, after the frame at hand was taken in; what follows goes on behind it."""
    batch = small_talk()
    frames = batch.frames
    for nth in range(1, 20):
        single, many = Way(tcpreasm), Way(tcpreasm)
        single.recorder.raise_at(call, nth, error)
        many.recorder.raise_at(call, nth, error)
        assert many.batch(batch) == single.one_by_one(frames)
        assert many.errors == single.errors
        assert many.take() == single.take()
        assert many.state() == single.state()
        if not single.errors:
            assert nth > 3
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
@pytest.mark.parametrize("seed", range(3))
def test_exceptions_in_hostile_traffic(tcpreasm: ModuleType, seed: int, call: str) -> None:
    """Coalesced, an exception comes elsewhere; each stream still gets every piece, once, in order."""
    frames = traffic("hostile", seed, size=6000)
    batch = Batch(frames, seed)
    for nth in (1, 2, 5, 11):
        single, many, joined = Way(tcpreasm), Way(tcpreasm), Way(tcpreasm)
        for way in (single, many, joined):
            way.recorder.raise_at(call, nth, ValueError("told"))
        single.one_by_one(frames)
        many.batch(batch)
        joined.batch(batch, coalesce=True)
        assert many.errors == single.errors
        assert many.state() == single.state() == joined.state()
        calls = single.take()
        assert many.take() == calls
        assert streams_of(joined.take()) == streams_of(calls)


def test_an_exception_of_the_old_stream_of_a_connection_opened_anew(tcpreasm: ModuleType) -> None:
    """It is raised once the segment that opened the new one is taken in."""
    way = Way(tcpreasm)
    way.recorder.raise_at("complete", 1, ValueError("told"))
    batch = small_talk()
    with pytest.raises(ValueError, match="told"):
        way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert way.assembler.stats.frames == 9
    abc = [piece(start=True), piece(b"abc", at=us(2)), piece(b"defghi", at=us(5)), piece(b"klm", at=us(3)), piece(b"n", at=us(6))]
    assert way.take() == [
        new(),
        new(BACK),
        got(*abc),
        complete(),
        new(),
        got(piece(start=True, at=us(1)), piece(b"one", at=us(4)), ends=BACK),
        got(piece(start=True, at=us(7)), piece(b"anew", at=us(8))),
    ]


# -- both cores in lock-step ------------------------------------------------------------------------------------------------

BATCH = st.tuples(st.just("batch"), st.lists(any_frames(), max_size=12), st.integers(0, 1), st.booleans(), st.integers(0, 2 * NS))


def send_batch(told: list[tuple[Any, ...]], which: int, coalesce: bool, step_ns: int, now: int) -> Callable[[Side], Any]:
    """Frames as test_parity draws them, all with the linktype of the first."""
    contents = [data for _, data, *_ in told]
    offsets = [0, *accumulate(len(data) for data in contents)][:-1]
    times = [max(min(now + i * step_ns, LIMIT_NS - 1), 1 - LIMIT_NS) for i in range(len(told))]
    wires = [len(data) if wire is None else wire for _, data, _, _, wire in told]
    arguments = b"".join(contents), np.array(offsets, np.int64), [len(data) for data in contents], times, wires
    linktype = told[0][3] if told else 1
    return lambda side: side.assemblers[which].assemble_batch(*arguments, linktype=linktype, coalesce=coalesce)


def run(both: Both, actions: list[tuple[tuple[Any, ...], int]], keep: bool, options: dict[str, Any], nested: bool) -> None:
    step = LockStep(both, [1000] * 3, keep, options)
    step.balanced = not nested
    for action, time_step in actions:
        step.now = max(min(step.now + time_step, LIMIT_NS), -LIMIT_NS)
        if action[0] == "batch":
            step.do(send_batch(*action[1:], step.now))
        else:
            perform(step, action)
    for side in step.sides:
        side.recorder.plan.clear()
    step.end()


@examples(150)
@given(
    actions=st.lists(st.tuples(st.one_of(*[BATCH] * 6, FLUSH, RAISE), STEP), min_size=2, max_size=12),
    keep=st.booleans(),
    options=ANY_OPTIONS,
)
def test_any_batches(both: Both, actions: list[tuple[tuple[Any, ...], int]], keep: bool, options: dict[str, Any]) -> None:
    run(both, actions, keep, options, nested=False)


@examples(150)
@given(actions=st.lists(st.tuples(st.one_of(*[BATCH] * 4, NEST, NEST, FLUSH), STEP), min_size=2, max_size=12), options=ANY_OPTIONS)
def test_batches_with_callbacks_that_call_the_other_assembler(
    both: Both, actions: list[tuple[tuple[Any, ...], int]], options: dict[str, Any]
) -> None:
    run(both, actions, False, options, nested=True)


# -- coalesce -------------------------------------------------------------------------------------------------------------


def test_coalesced_pieces_are_the_same_pieces(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    batch = batch_of(
        frame(0, b"", SYN),
        frame(0, b"", SYN, ends=BACK),
        frame(4, b"def"),
        frame(1, b"one", ends=BACK),
        frame(1, b"abc"),
        frame(1, b"abc"),
        frame(7, b"g"),
    )
    assert way.assembler.assemble_batch(*batch.arguments(), coalesce=True) == 7
    assert way.take() == [
        new(),
        new(BACK),
        got(piece(start=True), piece(b"abc", at=us(4)), piece(b"def", at=us(2)), piece(b"g", at=us(6))),
        got(piece(start=True, at=us(1)), piece(b"one", at=us(3)), ends=BACK),
    ]


def test_a_stream_that_ends_gets_its_pieces_at_once(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    batch = batch_of(
        frame(0, b"", SYN, ends=BACK),
        frame(0, b"", SYN),
        frame(1, b"abc"),
        frame(1, b"one", ends=BACK),
        frame(4, b"", FIN | ACK),
        frame(4, b"two", ends=BACK),
        frame(700, b"", SYN),
    )
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert way.take() == [
        new(BACK),
        new(),
        got(piece(start=True, at=us(1)), piece(b"abc", at=us(2)), piece(end=True, at=us(4))),
        complete(),
        new(),
        got(piece(start=True), piece(b"one", at=us(3)), piece(b"two", at=us(5)), ends=BACK),
        got(piece(start=True, at=us(6))),
    ]


def test_a_stream_that_begins_anew_stands_behind_the_others(tcpreasm: ModuleType) -> None:
    """The order is that of the first piece which a call of `reassembled` holds."""
    way = Way(tcpreasm)
    way.assembler.assemble_batch(*batch_of(frame(0, b"", SYN), frame(0, b"", SYN, ends=BACK)).arguments())
    way.take()
    batch = batch_of(frame(1, b"a"), frame(1, b"b", ends=BACK), frame(2, b"", RST), frame(9000, b"c", SYN))
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert way.take() == [
        got(piece(b"a"), piece(end=True, at=us(2))),
        complete(),
        new(),
        got(piece(b"b", at=us(1)), ends=BACK),
        got(piece(b"c", start=True, at=us(3))),
    ]


def test_what_waits_for_the_end_of_the_call_counts_as_delivered(tcpreasm: ModuleType) -> None:
    seen: list[tuple[int, int, int]] = []
    way = Way(tcpreasm)

    def look() -> None:
        stats = way.assembler.stats
        seen.append((stats.bytes_delivered, stats.bytes_held, stats.pages_used))

    way.recorder.plan |= {"new": look, "reassembled": look}
    batch = batch_of(frame(0, b"", SYN), frame(3, b"cd"), frame(1, b"ab"), frame(0, b"", SYN, ends=BACK), frame(2, b"x", ends=BACK))
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert seen == [(0, 0, 0), (4, 0, 0), (4, 1, 1), (4, 1, 1)]


def test_each_batch_stands_for_itself(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    frames = [frame(0, b"", SYN), frame(1, b"a"), frame(2, b"b"), frame(3, b"c")]
    batch = batch_of(*frames)
    way.assembler.assemble_batch(*batch.arguments(0, 2), coalesce=True)
    assert way.take() == [new(), got(piece(start=True), piece(b"a", at=us(1)))]
    way.assembler.assemble_batch(*batch.arguments(2, 3))
    assert way.take() == [got(piece(b"b", at=us(2)))]
    way.assembler.assemble_batch(*batch.arguments(3, 4), coalesce=True)
    assert way.take() == [got(piece(b"c", at=us(3)))]
    way.one(Captured(9000, frame(4, b"d"), 55))
    assert way.take() == [got(piece(b"d", at=us(9)))]
    way.one(Captured(9000, frame(9, b"i"), 55))
    assert way.assembler.flush_ns(None, False) == (1, 0)
    assert way.take() == [got(piece(b"i", skip=4, at=us(9)))]
    way.assembler.assemble_batch(*batch.arguments(0, 4), coalesce=True)
    assert way.take() == []


def four(which: int) -> Ends:
    return "10.0.0.1", 1000 + which, "10.0.0.2", 80


def test_all_streams_are_served_whatever_one_raises(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    errors = [ValueError("first"), KeyError("second")]
    numbers = count()

    def planned() -> None:
        turn = next(numbers)
        if turn in (1, 3):
            raise errors[turn // 2]

    way.recorder.plan["reassembled"] = planned
    batch = batch_of(*[frame(0, b"x", SYN, ends=four(which)) for which in range(4)])
    with pytest.raises(ValueError, match="first") as caught:
        way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert caught.value is errors[0]
    assert way.take() == [new(four(i)) for i in range(4)] + [got(piece(b"x", start=True, at=us(i)), ends=four(i)) for i in range(4)]
    del way.recorder.plan["reassembled"]
    way.assembler.assemble_batch(*batch_of(*[frame(2, b"y", ends=four(which)) for which in range(4)]).arguments(), coalesce=True)
    assert way.take() == [got(piece(b"y", at=us(i)), ends=four(i)) for i in range(4)]


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("call", ["new", "complete"])
def test_what_was_put_aside_goes_out_when_the_batch_stops(tcpreasm: ModuleType, call: str, also: bool) -> None:
    """The exception that stopped it is raised, also where one more comes then."""
    way = Way(tcpreasm)
    error = OSError("stops it")
    way.recorder.raise_at(call, 2 if call == "new" else 1, error)
    last = frame(0, b"z", SYN, ends=BACK) if call == "new" else frame(1, b"", FIN | ACK, ends=four(1))
    if call == "complete":
        way.one(Captured(0, frame(0, b"", SYN, ends=four(1)), 54))
        way.take()
    if also:
        way.recorder.raise_at("reassembled", 1 if call == "new" else 2, KeyError("too late"))
    batch = batch_of(frame(0, b"x", SYN), last, frame(2, b"y"))
    with pytest.raises(OSError, match="stops it") as caught:
        way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert caught.value is error
    ended = [new(BACK)] if call == "new" else [got(piece(end=True, at=us(1)), ends=four(1)), complete(four(1))]
    assert way.take() == [new(), *ended, got(piece(b"x", start=True))]
    assert way.assembler.stats.frames == (2 if call == "new" else 3)
    way.recorder.plan.clear()
    way.assembler.assemble_batch(*batch.arguments(2), coalesce=True)
    assert way.take() == [got(piece(b"y", at=us(2)))]


def test_another_assembler_gives_out_first_what_was_put_aside(tcpreasm: ModuleType) -> None:
    """Whoever serves the stream meanwhile: its order is kept, and nothing comes after its end."""
    way = Way(tcpreasm)
    other = tcpreasm.Assembler(way.pool)
    acts: list[Callable[[], Any]] = []
    way.recorder.plan["new"] = lambda: acts.pop(0)() if acts else None

    def serve(data: bytes) -> Callable[[], Any]:
        return lambda: other.assemble_frame(data, timestamp_ns=9000)

    batch = batch_of(frame(0, b"a", SYN), frame(0, b"", SYN, ends=BACK), frame(3, b"c"), frame(0, b"", SYN, ends=four(0)))
    acts += [lambda: None, serve(frame(2, b"b"))]
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    at = 9 / 1e6
    assert way.take() == [
        new(),
        new(BACK),
        got(piece(b"a", start=True), piece(b"b", at=at)),
        new(four(0)),
        got(piece(start=True, at=us(1)), ends=BACK),
        got(piece(b"c", at=us(2))),
        got(piece(start=True, at=us(3)), ends=four(0)),
    ]
    batch = batch_of(frame(4, b"d"), frame(0, b"", SYN, ends=four(1)), frame(90, b"x", SYN), frame(0, b"", SYN, ends=four(2)))
    acts += [serve(frame(5, b"", FIN | ACK)), lambda: None, lambda: None]
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert way.take() == [
        new(four(1)),
        got(piece(b"d"), piece(end=True, at=at)),
        complete(),
        new(),
        new(four(2)),
        got(piece(start=True, at=us(1)), ends=four(1)),
        got(piece(b"x", start=True, at=us(2))),
        got(piece(start=True, at=us(3)), ends=four(2)),
    ]
    acts += [lambda: other.flush_with_options(tcpreasm.FlushOptions(t=None, close_all=True))]
    way.assembler.assemble_batch(*batch_of(frame(92, b"y"), frame(0, b"", SYN, ends=four(3))).arguments(), coalesce=True)
    calls = way.take()
    assert calls == [
        new(four(3)),
        *[complete(ends) for ends in (BACK, four(0), four(1))],
        got(piece(b"y")),
        complete(),
        complete(four(2)),
        got(piece(start=True, at=us(1)), ends=four(3)),
    ]


def test_two_that_put_aside_for_one_stream(tcpreasm: ModuleType) -> None:
    """One batch within a callback of another one: the inner one ends first, and gives out what both have."""
    way = Way(tcpreasm)
    other = tcpreasm.Assembler(way.pool)
    way.assembler.assemble_batch(*batch_of(frame(0, b"", SYN)).arguments())
    way.take()
    inner = batch_of(frame(2, b"b"), frame(0, b"", SYN, ends=four(1)), frame(3, b"c"))

    def nested() -> None:
        del way.recorder.plan["new"]
        other.assemble_batch(*inner.arguments(), coalesce=True)

    way.recorder.plan["new"] = nested
    batch = batch_of(frame(1, b"a"), frame(0, b"", SYN, ends=four(0)), frame(4, b"d"))
    way.assembler.assemble_batch(*batch.arguments(), coalesce=True)
    assert way.take() == [
        new(four(0)),
        new(four(1)),
        got(piece(b"a"), piece(b"b"), piece(b"c", at=us(2))),
        got(piece(start=True, at=us(1)), ends=four(1)),
        got(piece(start=True, at=us(1)), ends=four(0)),
        got(piece(b"d", at=us(2))),
    ]


def test_two_threads_that_put_aside_for_the_same_streams(tcpreasm: ModuleType) -> None:
    """Each takes every second frame of each stream: what each stream gets is in order, and complete comes last."""
    sent = random.Random(1).randbytes(60_000)
    streams = [four(which) for which in range(3)]
    way = Way(tcpreasm, max_buffered_pages_total=0, max_buffered_pages_per_connection=0)
    way.assembler.assemble_batch(*batch_of(*[frame(0, b"", SYN, ends=ends) for ends in streams]).arguments())
    frames = [frame(1 + at, sent[at : at + 100], ends=ends) for at in range(0, len(sent), 100) for ends in streams]
    frames += [frame(1 + len(sent), b"", FIN | ACK, ends=ends) for ends in streams]
    errors: list[BaseException] = []

    def work(which: int, assembler: Any) -> None:
        mine = [Captured(0, data, len(data)) for data in frames[which::2]]
        batch = Batch(mine)
        try:
            for begin in range(0, len(mine), 16):
                assembler.assemble_batch(*batch.arguments(begin, begin + 16), coalesce=True)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(which, assembler))
        for which, assembler in enumerate([way.assembler, tcpreasm.Assembler(way.pool)])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not way.recorder.wrong
    for ends in streams:
        assert way.recorder.data(ends) == sent
    assert way.assembler.stats.bytes_held == len(way.pool) == 0


# -- what is refused ------------------------------------------------------------------------------------------------------

FRAME = frame(1001, b"abc")
TWICE = {"buffer": FRAME * 2, "offsets": [0, len(FRAME)], "lengths": [len(FRAME)] * 2, "timestamps_ns": [START_NS, START_NS + 1]}
KIND = "is a sequence or a one-dimensional array of ints, not "
BUFFER = "buffer is a one-dimensional, C-contiguous buffer of bytes, which this {} is not"
BEYOND = "timestamps_ns[1] lies less than 2**62 ns from 1970, not at {} ns"


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "buffer: None": ({"buffer": None}, TypeError, BUFFER.format("NoneType")),
    "buffer: text": ({"buffer": "abc"}, TypeError, BUFFER.format("str")),
    "buffer: number": ({"buffer": 5}, TypeError, BUFFER.format("int")),
    "buffer: list": ({"buffer": [1, 2, 3]}, TypeError, BUFFER.format("list")),
    "buffer: of int32": ({"buffer": np.zeros(100, np.int32)}, TypeError, BUFFER.format("ndarray")),
    "buffer: of two dimensions": ({"buffer": np.zeros((10, 60), np.uint8)}, TypeError, BUFFER.format("ndarray")),
    "buffer: of none": ({"buffer": np.array(5, np.uint8)}, TypeError, BUFFER.format("ndarray")),
    "buffer: every second byte": ({"buffer": memoryview(bytes(400))[::2]}, TypeError, BUFFER.format("memoryview")),
    "buffer: backwards": ({"buffer": np.zeros(400, np.uint8)[::-1]}, TypeError, BUFFER.format("ndarray")),
    "buffer: of times": ({"buffer": np.zeros(400, "datetime64[ns]")}, TypeError, BUFFER.format("ndarray")),
    "offsets: None": ({"offsets": None}, TypeError, f"offsets {KIND}NoneType: None"),
    "offsets: number": ({"offsets": 5}, TypeError, f"offsets {KIND}int: 5"),
    "offsets: text": ({"offsets": "ab"}, TypeError, f"offsets {KIND}str: 'ab'"),
    "offsets: bytes": ({"offsets": b"ab"}, TypeError, f"offsets {KIND}bytes: b'ab'"),
    "offsets: dict": ({"offsets": {0: 0, 1: 0}}, TypeError, f"offsets {KIND}dict: {{0: 0, 1: 0}}"),
    "offsets: set": ({"offsets": {5}}, TypeError, f"offsets {KIND}set: {{5}}"),
    "offsets: odd": ({"offsets": Odd()}, TypeError, f"offsets {KIND}Odd: <odd>"),
    "offsets: array of no dimension": ({"offsets": np.array(5)}, TypeError, f"offsets {KIND}ndarray: array(5)"),
    "offsets: of two dimensions": ({"offsets": np.zeros((2, 1), np.int64)}, TypeError, "offsets[0] is an int, not list: [0]"),
    "offsets: of floats": ({"offsets": np.zeros(2)}, TypeError, "offsets[0] is an int, not float: 0.0"),
    "offsets: of bools": ({"offsets": np.zeros(2, bool)}, TypeError, "offsets[0] is an int, not bool: False"),
    "offsets: one text": ({"offsets": [0, "x"]}, TypeError, "offsets[1] is an int, not str: 'x'"),
    "offsets: one bool": ({"offsets": [0, True]}, TypeError, "offsets[1] is an int, not bool: True"),
    "offsets: one None": ({"offsets": [0, None]}, TypeError, "offsets[1] is an int, not NoneType: None"),
    "offsets: one float": ({"offsets": [0, 1.0]}, TypeError, "offsets[1] is an int, not float: 1.0"),
    "offsets: negative": ({"offsets": [0, -1]}, ValueError, "offsets[1] is 0 or more, not -1"),
    "offsets: negative array": ({"offsets": np.array([0, -1], np.int8)}, ValueError, "offsets[1] is 0 or more, not -1"),
    "offsets: very negative": ({"offsets": [-(2**80), 0]}, ValueError, f"offsets[0] is 0 or more, not {-(2**80)}"),
    "offsets: one too far": (
        {"offsets": [0, len(FRAME) + 1]},
        ValueError,
        f"frame 1 reaches beyond the buffer: {len(FRAME)} bytes at offset {len(FRAME) + 1} of {2 * len(FRAME)}",
    ),
    "offsets: much too far": (
        {"offsets": [2**63 - 1, 0]},
        ValueError,
        f"frame 0 reaches beyond the buffer: {len(FRAME)} bytes at offset {2**63 - 1} of {2 * len(FRAME)}",
    ),
    "offsets: beyond int64": (
        {"offsets": np.array([0, 2**64 - 1], np.uint64)},
        ValueError,
        f"frame 1 reaches beyond the buffer: {len(FRAME)} bytes at offset {2**64 - 1} of {2 * len(FRAME)}",
    ),
    "offsets: beyond all": (
        {"offsets": [0, 2**80]},
        ValueError,
        f"frame 1 reaches beyond the buffer: {len(FRAME)} bytes at offset {2**80} of {2 * len(FRAME)}",
    ),
    "lengths: None": ({"lengths": None}, TypeError, f"lengths {KIND}NoneType: None"),
    "lengths: one float": ({"lengths": [1, 0.5]}, TypeError, "lengths[1] is an int, not float: 0.5"),
    "lengths: negative": ({"lengths": [-5, 1]}, ValueError, "lengths[0] is 0 or more, not -5"),
    "lengths: one too far": (
        {"lengths": [len(FRAME), len(FRAME) + 1]},
        ValueError,
        f"frame 1 reaches beyond the buffer: {len(FRAME) + 1} bytes at offset {len(FRAME)} of {2 * len(FRAME)}",
    ),
    "lengths: both huge": (
        {"offsets": [0, 2**63 - 1], "lengths": [1, 2**63 - 1]},
        ValueError,
        f"frame 1 reaches beyond the buffer: {2**63 - 1} bytes at offset {2**63 - 1} of {2 * len(FRAME)}",
    ),
    "lengths: too few": ({"lengths": [1]}, ValueError, "a batch has an offset, a length and a time for each frame: not 2, 1 and 2 of them"),
    "times: None": ({"timestamps_ns": None}, TypeError, f"timestamps_ns {KIND}NoneType: None"),
    "times: seconds": ({"timestamps_ns": [1.5, 2.5]}, TypeError, "timestamps_ns[0] is an int, not float: 1.5"),
    "times: too many": (
        {"timestamps_ns": [1, 2, 3]},
        ValueError,
        "a batch has an offset, a length and a time for each frame: not 2, 2 and 3 of them",
    ),
    "times: too late": ({"timestamps_ns": [0, 2**62]}, ValueError, BEYOND.format(2**62)),
    "times: too early": ({"timestamps_ns": np.array([0, -(2**62)])}, ValueError, BEYOND.format(-(2**62))),
    "times: beyond int64": ({"timestamps_ns": np.array([0, 2**63], np.uint64)}, ValueError, BEYOND.format(2**63)),
    "times: beyond all": ({"timestamps_ns": [0, 2**90]}, ValueError, BEYOND.format(2**90)),
    "times: microseconds": (
        {"timestamps_ns": np.array([1, 2], "datetime64[us]")},
        TypeError,
        "timestamps_ns[0] is an int, not datetime: datetime.datetime(1970, 1, 1, 0, 0, 0, 1)",
    ),
    "wire_lengths: number": ({"wire_lengths": 60}, TypeError, f"wire_lengths {KIND}int: 60"),
    "wire_lengths: one None": ({"wire_lengths": [60, None]}, TypeError, "wire_lengths[1] is an int, not NoneType: None"),
    "wire_lengths: negative": ({"wire_lengths": [60, -1]}, ValueError, "wire_lengths[1] is 0 or more, not -1"),
    "wire_lengths: too few": ({"wire_lengths": []}, ValueError, "a batch has a wire length for each frame: not 0 for 2 frames"),
    "linktype: text": ({"linktype": "ethernet"}, TypeError, "linktype is an int, not str: 'ethernet'"),
    "linktype: bool": ({"linktype": True}, TypeError, "linktype is an int, not bool: True"),
    "linktype: None": ({"linktype": None}, TypeError, "linktype is an int, not NoneType: None"),
    "several: the first argument goes first": ({"buffer": 5, "offsets": "x", "linktype": "x"}, TypeError, BUFFER.format("int")),
    "several: kinds go before values": (
        {"offsets": [0, -1], "wire_lengths": [None, None]},
        TypeError,
        "wire_lengths[0] is an int, not NoneType: None",
    ),
    "several: numbers go before values": (
        {"offsets": [0, -1], "timestamps_ns": []},
        ValueError,
        "a batch has an offset, a length and a time for each frame: not 2, 2 and 0 of them",
    ),
    "several: places go before times": (
        {"lengths": [1, -1], "timestamps_ns": [2**62, 0], "wire_lengths": [-1, 0], "linktype": "x"},
        ValueError,
        "lengths[1] is 0 or more, not -1",
    ),
    "several: the linktype goes last": ({"wire_lengths": [0, -1], "linktype": "x"}, ValueError, "wire_lengths[1] is 0 or more, not -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_batch_leaves_everything_as_it_was(tcpreasm: ModuleType, name: str) -> None:
    arguments, kind, text = REFUSED[name]
    way = Way(tcpreasm)
    way.one(Captured(START_NS, frame(1000, b"", SYN), 54))
    way.one(Captured(START_NS, frame(1010, b"late"), 58))
    way.take()
    before = way.state()
    with pytest.raises(kind) as caught:
        way.assembler.assemble_batch(**(TWICE | arguments))
    assert (type(caught.value), str(caught.value)) == (kind, text)
    assert (way.state(), way.take()) == (before, [])
    assert way.assembler.assemble_batch(**TWICE) == 2
    assert way.take() == [got(piece(b"abc", at=START_NS / NS))]


def test_the_last_frame_of_many_is_looked_at_before_the_first_is_touched(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    before = way.state()
    offsets = np.zeros(10_000, np.int64)
    lengths = np.full(10_000, len(FRAME))
    for wrong in (offsets, lengths):
        kept = wrong[-1]
        wrong[-1] = len(FRAME) + 1
        with pytest.raises(ValueError, match="frame 9999 reaches beyond the buffer"):
            way.assembler.assemble_batch(FRAME, offsets, lengths, offsets * 0)
        wrong[-1] = kept
    assert (way.state(), way.take()) == (before, [])


def test_a_closed_assembler_takes_none(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    way.assembler.close()
    for call in (
        lambda: way.assembler.assemble_batch(**TWICE),
        lambda: way.assembler.assemble_batch(b"", [], [], []),
        way.assembler.tick,
    ):
        with pytest.raises(ValueError, match=r"^this Assembler is closed$"):
            call()


# -- what is taken --------------------------------------------------------------------------------------------------------

SEGMENTS = [frame(1000, b"", SYN), *[frame(1001 + at, bytes([at])) for at in range(10)]]
WHOLE = b"".join(SEGMENTS)
PLACES = [0, *accumulate(len(data) for data in SEGMENTS[:-1])]
SIZES = [len(data) for data in SEGMENTS]

ARRAYS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array q": lambda items: array("q", items),
    "array i": lambda items: array("i", items),
    "array H": lambda items: array("H", items),
    "memoryview": lambda items: memoryview(array("q", items)),
    "bytes as numbers": lambda items: memoryview(struct.pack(f"{len(items)}q", *items)).cast("q"),
    "numpy scalars": lambda items: [np.int32(item) for item in items],
    "int16": lambda items: np.array(items, np.int16),
    "uint16": lambda items: np.array(items, np.uint16),
    "int32": lambda items: np.array(items, np.int32),
    "uint32": lambda items: np.array(items, np.uint32),
    "int64": lambda items: np.array(items, np.int64),
    "uint64": lambda items: np.array(items, np.uint64),
    "big-endian": lambda items: np.array(items, ">i8"),
    "every second one": lambda items: np.repeat(np.array(items), 2)[::2],
    "backwards": lambda items: np.array(items[::-1])[::-1],
    "column": lambda items: np.column_stack([items, items])[:, 1],
    "field": lambda items: np.array([(0, item) for item in items], [("x", "<i4"), ("y", "<i8")])["y"],
    "read-only": lambda items: np.frombuffer(struct.pack(f"{len(items)}q", *items), np.int64),
    "objects": lambda items: np.array(items, object),
    "unaligned": lambda items: np.frombuffer(b"x" + struct.pack(f"<{len(items)}q", *items), np.uint8)[1:].view("<i8"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_numbers_of_any_kind(tcpreasm: ModuleType, kind: str) -> None:
    make = ARRAYS[kind]
    way = Way(tcpreasm)
    times = [100 + i for i in range(len(SEGMENTS))]
    assert way.assembler.assemble_batch(WHOLE, make(PLACES), make(SIZES), make(times), make(SIZES)) == 11
    assert way.recorder.data() == bytes(range(10))
    assert way.assembler.now_ns() == times[-1]


def test_other_numbers(tcpreasm: ModuleType) -> None:
    class Five:
        def __index__(self) -> int:
            return 5

    way = Way(tcpreasm)
    times = np.array(["1970-01-01T00:00:01.000000005", "1970-01-01T00:00:02"], "datetime64[ns]")
    assert way.assembler.assemble_batch(bytes(5) + FRAME + FRAME + bytes(1), [Five(), 62], range(57, 59), times) == 2
    assert way.assembler.now_ns() == 2 * NS
    for empty in ([], (), np.array([]), np.array([], np.int64), range(0)):
        assert way.assembler.assemble_batch(b"", empty, empty, empty, empty) == 0
        assert way.assembler.assemble_batch(bytearray(), empty, empty, empty, coalesce=True) == 0


@pytest.mark.parametrize("wire", [0, 10, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**200])
def test_wire_lengths_of_any_size(tcpreasm: ModuleType, wire: int) -> None:
    single, many = Way(tcpreasm), Way(tcpreasm)
    cut = frame(1001, bytes(100))[:80]
    single.one(Captured(5, cut, wire))
    many.assembler.assemble_batch(cut, [0], [80], [5], [wire])
    assert many.state() == single.state()
    assert many.take() == single.take()


def test_times_at_both_ends(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    times = [2**62 - 1, -(2**62 - 1)]
    assert way.assembler.assemble_batch(FRAME, [0, 0], [len(FRAME)] * 2, times) == 2
    assert way.assembler.now_ns() == 2**62 - 1


def test_a_linktype_for_all(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    raw = FRAME[14:]
    assert way.assembler.assemble_batch(raw, [0, 0], [len(raw)] * 2, [1, 2], linktype=101) == 2
    assert way.assembler.assemble_batch(raw, [0, 0], [len(raw)] * 2, [1, 2], None, 2**70) == 0
    assert {verdict.name: n for verdict, n in way.assembler.stats.verdicts.items()} == {"SEGMENT": 2, "UNKNOWN_LINKTYPE": 2}


def test_frames_may_overlap_and_be_empty(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    assert way.assembler.assemble_batch(FRAME, [0, 0, 0, len(FRAME)], [len(FRAME), 0, len(FRAME), 0], [1, 1, 1, 1]) == 2
    assert {verdict.name: n for verdict, n in way.assembler.stats.verdicts.items()} == {"SEGMENT": 2, "TRUNCATED": 2}


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytes of another class": type("Sub", (bytes,), {}),
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of a part": lambda data: memoryview(bytes(7) + data + b"x")[7:-1],
    "writable memoryview": lambda data: memoryview(bytearray(data)),
    "numpy": lambda data: np.frombuffer(bytearray(data), np.uint8),
    "numpy, signed": lambda data: np.frombuffer(bytearray(data), np.int8),
    "numpy, a part": lambda data: np.frombuffer(b"abc" + data, np.uint8)[3:],
    "array": lambda data: array("B", data),
    "mmap": mapped,
}


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_any_kind(tcpreasm: ModuleType, kind: str, coalesce: bool) -> None:
    way = Way(tcpreasm)
    frames = traffic("overlapping", 3)
    batch = Batch(frames)
    _, *numbers = batch.arguments()
    way.assembler.assemble_batch(BUFFERS[kind](batch.buffer), *numbers, coalesce=coalesce)
    way.assembler.flush_all()
    assert check_places(way.recorder, batch.buffer)
    single = Way(tcpreasm)
    single.one_by_one(frames)
    single.assembler.flush_all()
    assert streams_of(way.take()) == streams_of(single.take())
    assert way.state() == single.state()


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_pieces_stay_what_they_were(tcpreasm: ModuleType, kind: str, coalesce: bool) -> None:
    """Whatever the owner of the buffer does with it afterwards (11): kept pieces, views of them, and what is held for later."""
    way = Way(tcpreasm)
    kept: list[tuple[Any, bytes]] = []

    class Keeper(PlacedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            for i, r in enumerate(reassemblies):
                one = (r, memoryview(r), memoryview(r)[1:], r.bytes)[(i + len(kept)) % 4]
                kept.append((one, bytes(one)))
            if len(kept) % 3 == 0:
                kept.append((reassemblies, b""))
            super().reassembled(reassemblies)

    way.recorder.stream = Keeper
    single = Way(tcpreasm)
    frames = traffic(kind, 4)
    for begin in range(0, len(frames), 7):
        part = frames[begin : begin + 7]
        batch = Batch(part)
        buffer = bytearray(batch.buffer)
        way.assembler.assemble_batch(buffer, *batch.arguments()[1:], coalesce=coalesce)
        buffer[:] = b"\xee" * len(buffer)
        buffer.clear()  # a BufferError, were it still looked at
        single.one_by_one(part)
    way.assembler.flush_all()
    single.assembler.flush_all()
    assert streams_of(way.take()) == streams_of(single.take())
    assert len(kept) > 20
    assert [bytes(one) for one, _ in kept if not isinstance(one, list)] == [copy for one, copy in kept if not isinstance(one, list)]


@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_the_buffer_is_let_go_of_after_an_exception(tcpreasm: ModuleType, call: str) -> None:
    way = Way(tcpreasm, keep=True)
    way.recorder.raise_at(call, 2, ValueError("told"))
    batch = small_talk()
    buffer = bytearray(batch.buffer)
    with pytest.raises(ValueError, match="told") as caught:
        way.assembler.assemble_batch(buffer, *batch.arguments()[1:])
    buffer.clear()
    with pytest.raises(ValueError, match="frame 0 reaches beyond the buffer"):
        way.assembler.assemble_batch(buffer, *batch.arguments()[1:])
    buffer.clear()
    assert str(caught.value) == "told"


@pytest.mark.parametrize("coalesce", [False, True])
def test_the_buffer_cannot_be_taken_away_during_the_call(tcpreasm: ModuleType, coalesce: bool) -> None:
    way = Way(tcpreasm)
    buffer = bytearray(WHOLE)
    refused: list[str] = []

    def take_away() -> None:
        try:
            buffer.clear()
        except BufferError as error:
            refused.append(type(error).__name__)

    way.recorder.plan |= {"new": take_away, "reassembled": take_away}
    way.assembler.assemble_batch(buffer, PLACES, SIZES, [0] * 11, coalesce=coalesce)
    assert refused == ["BufferError"] * (2 if coalesce else 12)
    assert way.recorder.data() == bytes(range(10))


@pytest.mark.parametrize("coalesce", [False, True])
def test_numbers_that_change_during_the_call_change_nothing(tcpreasm: ModuleType, coalesce: bool) -> None:
    """They were checked as they were, and count as they were."""
    way = Way(tcpreasm)
    arrays = [np.array(items, np.int64) for items in (PLACES, SIZES, [1] * 11, SIZES)]

    def spoil() -> None:
        for numbers in arrays:
            numbers[:] = 2**40

    way.recorder.plan["new"] = spoil
    assert way.assembler.assemble_batch(WHOLE, *arrays, coalesce=coalesce) == 11
    assert way.recorder.data() == bytes(range(10))
    lists = [[*items] for items in (PLACES, SIZES, [1] * 11, SIZES)]
    way = Way(tcpreasm)
    way.recorder.plan["new"] = lambda: [items.clear() for items in lists] and None
    assert way.assembler.assemble_batch(WHOLE, *lists, coalesce=coalesce) == 11
    assert way.recorder.data() == bytes(range(10))


# -- callbacks that call back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_calls_from_callbacks_are_refused(tcpreasm: ModuleType, call: str, coalesce: bool) -> None:
    way, plain = Way(tcpreasm), Way(tcpreasm)
    batch = small_talk()
    inner: list[Callable[[], Any]] = [
        lambda: way.assembler.assemble_batch(**TWICE),
        lambda: way.assembler.assemble_batch(b"", [], [], [], coalesce=True),
        lambda: way.assembler.assemble_frame(FRAME, 1.0),
        lambda: way.assembler.assemble_capture([(1.0, FRAME)]),
        way.assembler.tick,
        way.assembler.expire,
        way.assembler.flush_all,
        way.assembler.close,
    ]
    texts: list[str] = []

    def call_back() -> None:
        for act in inner:
            try:
                act()
            except RuntimeError as error:
                texts.append(str(error))

    way.recorder.plan[call] = call_back
    way.assembler.assemble_batch(*batch.arguments(), coalesce=coalesce)
    plain.assembler.assemble_batch(*batch.arguments(), coalesce=coalesce)
    assert len(texts) >= 2 * len(inner)
    assert set(texts) == {"this Assembler is at work already: called from a callback, or from two threads at once"}
    assert way.take() == plain.take()
    assert way.state() == plain.state()


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_batch_from_a_callback_stops_at_the_connection_at_hand(tcpreasm: ModuleType, coalesce: bool) -> None:
    """Another assembler of the pool, called by a stream: it takes everything up to the frame of that very stream, which it refuses."""
    way = Way(tcpreasm)
    other = tcpreasm.Assembler(way.pool)
    batch = batch_of(frame(0, b"x", SYN, ends=BACK), frame(2, b"b"), frame(2, b"y", ends=BACK))
    caught: list[str] = []

    def nested() -> None:
        del way.recorder.plan["reassembled"]
        try:
            other.assemble_batch(*batch.arguments(), coalesce=coalesce)
        except RuntimeError as error:
            caught.append(str(error))

    way.recorder.plan["reassembled"] = nested
    way.one(Captured(0, frame(0, b"a", SYN), 55))
    assert caught == ["a stream's callback called back into its own connection"]
    assert way.take() == [new(), got(piece(b"a", start=True)), new(BACK), got(piece(b"x", start=True), ends=BACK)]
    assert (other.stats.frames, other.now_ns()) == (1, 0)
    other.assemble_batch(*batch.arguments(1), coalesce=coalesce)
    assert way.take() == [got(piece(b"b", at=us(1))), got(piece(b"y", at=us(2)), ends=BACK)]


# -- where pieces stand ---------------------------------------------------------------------------------------------------


def test_where_pieces_stand(tcpreasm: ModuleType) -> None:
    """In order, from pages (also from those of an earlier batch), around what is held, cut at the end; -1 where there are no bytes."""
    way = Way(tcpreasm)
    content = random.Random(5).randbytes(9000)
    frames = [
        frame(0, b"", SYN),
        frame(3001, content[3000:8000]),
        frame(1, content[:2]),
        frame(1, content[:3500]),
        frame(9001, b"beyond the end"),
        frame(8001, content[8000:9000], FIN | ACK),
    ]
    batch = batch_of(*frames)
    for begin in range(len(frames)):
        way.assembler.assemble_batch(*batch.arguments(begin, begin + 1))
    text = [offset + 54 for offset in batch.offsets]
    assert [(offset, len(data)) for offset, data in way.recorder.places] == [
        (-1, 0),
        (text[2], 2),
        (text[3] + 2, 2998),
        (text[1], 1900),
        (text[1] + 1900, 1900),
        (text[1] + 3800, 1200),
        (text[5], 1000),
    ]
    assert check_places(way.recorder, batch.buffer)


def test_where_a_byte_stands_that_took_the_place_of_another(tcpreasm: ModuleType) -> None:
    """A lone byte at the start may be a keep-alive's garbage: the later one counts, and its place."""
    way = Way(tcpreasm)
    batch = batch_of(frame(999, b"\0"), frame(999, b"abc"), frame(1002, b"de"))
    way.assembler.assemble_batch(*batch.arguments())
    way.assembler.flush_all()
    assert b"".join(data for _, data in way.recorder.places) == b"abcde"
    assert check_places(way.recorder, batch.buffer)


def test_where_the_data_of_a_remembered_syn_stands(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    batch = batch_of(frame(0, b"old", SYN), frame(50_000, b"early", SYN), frame(50_006, b"then"))
    way.assembler.assemble_batch(*batch.arguments())
    assert [data for _, data in way.recorder.places] == [b"old", b"", b"early", b"then"]
    assert check_places(way.recorder, batch.buffer)


def test_segments_and_single_frames_stand_nowhere(tcpreasm: ModuleType) -> None:
    way = Way(tcpreasm)
    batch = batch_of(frame(0, b"", SYN), frame(4, b"def"))
    way.assembler.assemble_batch(*batch.arguments())
    way.one(Captured(0, frame(9, b"ij"), 56))
    tcp = tcpreasm.TCPSegment(ENDS[1], ENDS[3], 1, b"abc")
    way.assembler.assemble(tcpreasm.Flow(ENDS[0], ENDS[2]), tcp, timestamp_ns=0)
    way.one(Captured(0, frame(7, b"gh"), 56))
    assert way.recorder.places == [(-1, b""), (-1, b"abc"), (batch.offsets[1] + 54, b"def"), (-1, b"gh"), (-1, b"ij")]


# -- tick -----------------------------------------------------------------------------------------------------------------


def test_a_tick_expires_once_a_second(tcpreasm: ModuleType) -> None:
    """Of capture time, from the last tick that did; also where the clock was set back behind that."""
    way = Way(tcpreasm, hole_timeout=0.1)

    def hold(seq: int, at: float) -> None:
        way.one(Captured(round(at * NS), frame(seq, b"x"), 55))

    way.assembler.tick()  # no packet yet: no time
    way.one(Captured(0, frame(0, b"", SYN), 54))
    way.assembler.tick()
    way.take()
    hold(10, 0.5)
    for at in (0.7, 0.999_999_999):
        way.assembler.advance_clock(round(at * NS))
        way.assembler.tick()
        assert way.take() == []
    way.assembler.advance_clock(NS)
    assert way.assembler.tick() is None
    assert way.take() == [got(piece(b"x", skip=9, at=0.5))]
    hold(20, 1.1)
    way.assembler.advance_clock(round(1.9 * NS))
    way.assembler.tick()
    assert way.take() == []
    way.assembler.expire()  # at any time, and no tick
    assert way.take() == [got(piece(b"x", skip=9, at=1.1))]
    hold(30, 1.95)
    way.assembler.advance_clock(round(2.1 * NS))
    way.assembler.tick()
    assert way.take() == [got(piece(b"x", skip=9, at=1.95))]
    for _ in range(2):
        way.assembler.advance_clock(-100 * NS)
    assert way.assembler.now_ns() == -100 * NS
    hold(40, -100)
    way.assembler.tick()
    way.assembler.advance_clock(round(-99.5 * NS))
    way.assembler.tick()
    assert way.take() == []
    way.assembler.advance_clock(-99 * NS)
    way.assembler.tick()
    assert way.take() == [got(piece(b"x", skip=9, at=-100))]


# -- capture files --------------------------------------------------------------------------------------------------------


def lock_step(
    package: ModuleType,
    source: Callable[[], Any],
    seed: int,
    coalesce: bool,
    limits: tuple[int, ...] = (0, 1, 2, 7, 64, 1000),
    **options: Any,
) -> Way:
    """A capture by `assemble_records`, with random limits, and frame by frame: the same after each call."""
    rng = random.Random(seed)
    single, many = Way(package, **options), Way(package, **options)
    with package.open_capture(source()) as one, package.open_capture(source()) as other:
        frames = iter(one)
        limit = size = 0
        while size == limit:
            limit, size = rng.choice(limits), 0
            taken = many.assembler.assemble_records(other.records, limit, coalesce=coalesce)
            for captured in islice(frames, limit):
                single.assembler.assemble_frame(
                    captured.data, timestamp_ns=captured.timestamp_ns, linktype=captured.linktype, wire_length=captured.wire_length
                )
                single.assembler.tick()
                size += 1
            assert taken == size
            calls = single.take()
            assert many.take() == (coalesced(calls) if coalesce else calls)
            assert many.state() == single.state()
        assert many.assembler.assemble_records(other.records, 5) == 0
        assert (other.packets, other.complete, other.problem) == (one.packets, one.complete, one.problem)
    assert many.assembler.flush_all() == single.assembler.flush_all()
    assert many.take() == single.take()
    assert many.state() == single.state()
    assert many.recorder.numbers == single.recorder.numbers
    return many


def captures(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".pcap", ".pcapng")]


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("kind", ["plain", "bytes", "file object", "gzip"])
def test_captures_of_this_repository(tcpreasm: ModuleType, data: Path, tmp_path: Path, kind: str, coalesce: bool) -> None:
    """Where pieces stand counts in the decompressed file."""
    for seed, path in enumerate(captures(data)):
        content = path.read_bytes()
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(content))
        sources: dict[str, Callable[[], Any]] = {
            "plain": lambda path=path: path,
            "bytes": lambda content=content: content,
            "file object": lambda content=content: io.BytesIO(content),
            "gzip": lambda packed=packed: packed,
        }
        way = lock_step(tcpreasm, sources[kind], seed, coalesce)
        assert check_places(way.recorder, content)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_random_captures(tcpreasm: ModuleType, kind: str, seed: int, coalesce: bool) -> None:
    content = capture_of(traffic(kind, seed))
    way = lock_step(tcpreasm, lambda: content, seed, coalesce, **OPTIONS[seed % len(OPTIONS)])
    assert check_places(way.recorder, content)


def capture_of(frames: list[Captured]) -> bytes:
    """A pcap file that keeps the lengths on the wire, as far as they have room there."""
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)]
    for seen_ns, content, wire in frames:
        parts.append(struct.pack("<IIII", seen_ns // NS, seen_ns % NS, len(content), wire) + content)
    return b"".join(parts)


@pytest.mark.parametrize("coalesce", [False, True])
def test_kernel_and_perturbed_captures(tcpreasm: ModuleType, corpus: Path, coalesce: bool) -> None:
    paths = [path for path in captures(corpus / "kernel") + captures(corpus / "perturbed") if path.stat().st_size < 4_000_000]
    placed = 0
    for seed, path in enumerate(paths):
        way = lock_step(tcpreasm, lambda path=path: path, seed, coalesce, limits=(64, 1000))
        placed += check_places(way.recorder, path.read_bytes(), way.assembler.stats.datagrams)
    assert placed > 20


@pytest.mark.parametrize("coalesce", [False, True])
def test_real_captures(tcpreasm: ModuleType, corpus: Path, coalesce: bool) -> None:
    with open(corpus / "real" / "MANIFEST.tsv", encoding="utf-8") as file:
        paths = [corpus / line.split("\t")[0] for line in list(file)[1:]]
    placed = 0
    for seed, path in enumerate(path for path in paths if path.stat().st_size < 100_000):
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            continue
        way = lock_step(tcpreasm, lambda path=path: path, seed, coalesce, **OPTIONS[seed % len(OPTIONS)])
        placed += check_places(way.recorder, content, way.assembler.stats.datagrams)
    assert placed > 50


def by_records(way: Way, source: Any, limit: int, coalesce: bool = False) -> None:
    """To the end, and after an exception on behind the frame."""
    with way.package.open_capture(source) as capture:
        while True:
            try:
                if not way.assembler.assemble_records(capture.records, limit, coalesce):
                    return
            except BaseException as error:
                way.note(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_exceptions_at_every_place_of_a_capture(tcpreasm: ModuleType, call: str, error: BaseException) -> None:
    frames = small_talk().frames
    content = capture_of(frames)
    for nth in range(1, 20):
        single, many, joined = Way(tcpreasm), Way(tcpreasm), Way(tcpreasm)
        for way in (single, many, joined):
            way.recorder.raise_at(call, nth, error)
        single.one_by_one(frames, tick=True)
        by_records(many, content, 1 + nth % 5)
        by_records(joined, content, 1 + nth % 5, coalesce=True)
        assert many.errors == single.errors
        assert many.state() == single.state() == joined.state()
        calls = single.take()
        assert many.take() == calls
        assert streams_of(joined.take()) == streams_of(calls)
        if not single.errors:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("call", ["reassembled", "complete"])
def test_exceptions_of_what_expires(tcpreasm: ModuleType, call: str) -> None:
    """Streams that are served by the clock, not by a frame."""
    frames = traffic("hostile", 3, directions=12, size=5000)
    content = capture_of(frames)
    errors = 0
    for nth in range(1, 12):
        single, many, joined = (Way(tcpreasm, hole_timeout=0.2, idle_timeout=2.0) for _ in range(3))
        for way in (single, many, joined):
            way.recorder.raise_at(call, nth, ValueError("told"))
        single.one_by_one(frames, tick=True)
        by_records(many, content, 9)
        by_records(joined, content, 9, coalesce=True)
        errors += len(single.errors)
        assert many.errors == single.errors
        calls = single.take()
        assert many.take() == calls
        assert many.state() == single.state()
        if call == "complete":  # the tick that did not come is the same one
            assert streams_of(joined.take()) == streams_of(calls)
            assert joined.state() == single.state()
    assert errors > 5


def test_an_error_of_the_reader_passes_through(tcpreasm: ModuleType) -> None:
    """Behind everything that was read before it, put aside or not."""
    content = capture_of(traffic("in order", 1, size=60_000))

    class Broken:
        """A file that gives little at a time, and breaks."""

        def __init__(self) -> None:
            self.at = 0

        def read(self, size: int) -> bytes:
            if self.at > 20_000:
                raise OSError("the disk is gone")
            part = content[self.at : self.at + min(size, 1000)]
            self.at += len(part)
            return part

    with tcpreasm.open_capture(Broken()) as capture:
        with pytest.raises(OSError, match="the disk is gone"):
            list(capture)
        readable = capture.packets
    assert readable > 5
    delivered = []
    for coalesce in (False, True):
        way = Way(tcpreasm)
        with tcpreasm.open_capture(Broken()) as capture, pytest.raises(OSError, match="the disk is gone"):
            way.assembler.assemble_records(capture.records, 1000, coalesce)
        assert way.assembler.stats.frames == readable
        assert way.assembler.stats.bytes_delivered == sum(len(data) for _, data in way.recorder.places) > 0
        delivered.append(streams_of(way.take()))
    assert delivered[0] == delivered[1]


def test_records_from_callbacks_are_refused(tcpreasm: ModuleType) -> None:
    content = capture_of(small_talk().frames)
    way, plain = Way(tcpreasm), Way(tcpreasm)
    texts: set[str] = set()
    with tcpreasm.open_capture(content) as capture, tcpreasm.open_capture(content) as again:

        def call_back() -> None:
            with pytest.raises(RuntimeError) as caught:
                way.assembler.assemble_records(again.records, 3)
            texts.add(str(caught.value))

        way.recorder.plan |= {"new": call_back, "reassembled": call_back, "complete": call_back}
        assert way.assembler.assemble_records(capture.records, 1000) == 15
        way.recorder.plan.clear()
        assert again.packets == 0
    assert texts == {"this Assembler is at work already: called from a callback, or from two threads at once"}
    by_records(plain, content, 1000)
    assert way.take() == plain.take()
    way.assembler.close()
    with tcpreasm.open_capture(content) as capture, pytest.raises(ValueError, match=r"^this Assembler is closed$"):
        way.assembler.assemble_records(capture.records, 3)
