"""Connections in bounds: how many there are, who makes room for whom, what a flood of SYNs costs, and what a flush looks at.

Promise 12 is checked after each call of a Rig. Attacks by name: a flood of SYNs, chosen collisions in the table, ports that are used again,
many short connections.
"""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load
from recorder import ACK, ENDS, SYN, Recorder, Rig, complete, frame, got, key_of, new, number, pcap, piece, segment, to_ns
from test_batch import START_NS, Batch, Captured
from test_threads import Book, _often, together

__all__ = ["_often"]


def syn(rig: Rig, which: int, at: float = 0) -> list[Any]:
    return rig.segment(999, syn=True, ends=number(which), at=at)


def evicted(rig: Rig) -> dict[str, int]:
    return dict(rig.assembler.stats.connections_evicted)


def gone(calls: list[Any]) -> list[str]:
    return [call[1] for call in calls if call[0] == "complete"]


@pytest.fixture
def compiled() -> ModuleType:
    """What only the compiled core has: a table, memory of its own."""
    return load("compiled")


# -- who makes room -------------------------------------------------------------------------------------------------------


def test_no_more_than_max_connections(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=7)
    for which in range(100):
        syn(rig, which, at=which)
        assert len(rig.pool) == min(which + 1, 7)
    assert evicted(rig) == {"half_open": 93}
    assert [str(key) for key in rig.pool.keys()] == [key_of(number(which)) for which in range(93, 100)]  # noqa: SIM118


def test_no_limit(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=0)
    for which in range(100):
        syn(rig, which)
    assert (len(rig.pool), evicted(rig)) == (100, {})


def test_the_oldest_half_open_one_first(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=4)
    for which in range(4):
        syn(rig, which, at=which)
    rig.segment(1000, b"data", ends=number(0), at=5)
    assert syn(rig, 4, at=6) == [complete(number(1)), new(number(4)), got(piece(start=True, at=6), ends=number(4))]
    assert gone(syn(rig, 5, at=7)) == [key_of(number(2))]
    assert gone(syn(rig, 6, at=8)) == [key_of(number(3))]
    assert gone(syn(rig, 7, at=9)) == [key_of(number(4))]
    assert rig.segment(1004, b"more", ends=number(0), at=10) == [got(piece(b"more", at=10), ends=number(0))]
    assert evicted(rig) == {"half_open": 4}


def test_what_is_half_open(tcpreasm: ModuleType) -> None:
    """SYNs, the same or other ones, with text or without, as often as they come. Not where an ACK, text, text ahead or a RST has come,
    even at the same time, or before the SYN."""
    rig = Rig(tcpreasm, max_connections=10, start_wait=None)
    for which in range(9):
        syn(rig, which)
    rig.segment(1000, b"text", ends=number(9))
    rig.segment(999, b"text", syn=True, ends=number(9))
    rig.segment(1000, ends=number(0))
    rig.segment(1000, b"text", ends=number(1), at=1)
    rig.segment(1500, b"text", ends=number(2), at=1)
    rig.segment(1000, ends=number(3), at=1)
    rig.segment(999, syn=True, ends=number(3), at=2)
    rig.segment(5000, rst=True, ends=number(4))
    rig.segment(999, b"text", syn=True, ends=number(5), at=1)
    rig.segment(999, b"text and more", syn=True, ends=number(5), at=2)
    rig.segment(999, syn=True, ends=number(6), at=1)
    rig.segment(5555, b"text", syn=True, ends=number(6), at=2)
    rig.segment(999, b"te", syn=True, wire=4, ends=number(7), at=1)
    for which, victim in ((10, 5), (11, 6), (12, 7), (13, 8), (14, 10)):
        assert gone(syn(rig, which, at=3)) == [key_of(number(victim))]
    assert evicted(rig) == {"half_open": 5}


@pytest.mark.parametrize("flags", [{}, {"fin": True}])
def test_text_of_a_syn_that_waits_is_half_open(tcpreasm: ModuleType, flags: dict[str, bool]) -> None:
    """Until something else comes, what tells nothing of that text too."""
    rig = Rig(tcpreasm, max_connections=4, syn_data="acked")
    for which in range(4):
        assert rig.segment(999, b"text", syn=True, ends=number(which), **flags)[1:] == [got(piece(start=True), ends=number(which))]
    rig.segment(1000, ends=number(0))
    rig.segment(999, b"text", syn=True, ends=number(1), at=1)
    rig.segment(5555, b"text", syn=True, ends=number(1), at=1)
    given = piece(b"text", end=bool(flags))
    for which, victim in ((4, 1), (5, 2), (6, 3)):
        assert syn(rig, which, at=3)[:2] == [got(given, ends=number(victim)), complete(number(victim))]
    assert evicted(rig) == {"half_open": 3}
    assert rig.dropped == {"overlapping": 4, "unconfirmed_syn": 4}


@pytest.mark.parametrize("syn_data", ["deliver", "acked"])
def test_a_limit_gives_out_the_text_of_a_syn_and_it_stays_half_open(tcpreasm: ModuleType, syn_data: str) -> None:
    rig = Rig(tcpreasm, max_connections=2, syn_data=syn_data, max_buffered_pages_per_connection=1)
    syn(rig, 0)
    rig.segment(1000, ends=number(0))
    pieces = [piece(b"text", start=True)] if syn_data == "deliver" else [piece(start=True), piece(b"text")]
    assert rig.segment(999, b"text", syn=True, ends=number(1), at=1)[1][2] == [(*rest[:4], 1_000_000_000) for rest in pieces]
    assert gone(syn(rig, 2, at=2)) == [key_of(number(1))]


def test_a_fin_that_waits_is_not_half_open(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=2)
    syn(rig, 0)
    rig.segment(2000, fin=True, ends=number(0))
    syn(rig, 1)
    assert gone(syn(rig, 2)) == [key_of(number(1))]


def test_closed_ones_before_all_others_oldest_first(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=4)
    for which in range(4):
        syn(rig, which)
    for which in (2, 0):
        rig.segment(1000, fin=True, ends=number(which), at=1)
    assert gone(syn(rig, 4, at=2)) == []
    assert evicted(rig) == {"closed": 1}
    assert rig.segment(1000, b"late", ends=number(0), at=2) == [], "still remembered"
    assert rig.dropped == {"after_close": 4}
    assert gone(syn(rig, 5, at=2)) == []
    assert evicted(rig) == {"closed": 2}
    assert gone(syn(rig, 6, at=2)) == [key_of(number(1))]
    assert rig.segment(1000, b"late", ends=number(0), at=3)[-1] == new(number(0)), "forgotten early"
    assert evicted(rig) == {"closed": 2, "half_open": 2}


def test_what_is_forgotten_by_time_or_flush_is_not_evicted(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=40, closed_timeout=10)
    for which in range(40):
        syn(rig, which)
        rig.segment(1000, fin=True, ends=number(which))
    for which in range(40, 80):
        assert gone(syn(rig, which, at=11)) == []
    assert evicted(rig) == {}
    rig.segment(1000, fin=True, ends=number(40), at=11)
    rig.flush_all()
    for which in range(80, 120):
        assert gone(syn(rig, which, at=11)) == []
    assert evicted(rig) == {}


def test_idle_for_longest_with_what_it_holds(tcpreasm: ModuleType) -> None:
    """Flushed as an idle connection is: what waits goes out, the gap is said, the stream is complete."""
    rig = Rig(tcpreasm, max_connections=3)
    for which, at in ((0, 1.0), (1, 2.0), (2, 3.0)):
        syn(rig, which)
        rig.segment(1000, b"abc", ends=number(which), at=at)
    rig.segment(1010, b"held", ends=number(0), at=4)
    rig.segment(1003, b"d", ends=number(1), at=5)
    rig.segment(1020, b"and this", ends=number(0), at=4)
    assert gone(syn(rig, 3, at=6)) == [key_of(number(2))]
    assert gone(syn(rig, 4, at=7)) == [key_of(number(3))]
    rig.segment(1000, b"x", ends=number(4), at=8)
    assert syn(rig, 5, at=9) == [
        got(piece(b"held", skip=7, at=4), piece(b"and this", skip=6, at=4), ends=number(0)),
        complete(number(0)),
        new(number(5)),
        got(piece(start=True, at=9), ends=number(5)),
    ]
    assert evicted(rig) == {"idle": 2, "half_open": 1}
    stats = rig.assembler.stats
    assert (stats.bytes_held, stats.pages_used, stats.bytes_skipped) == (0, 0, 13)


def test_a_syn_that_was_remembered_goes_with_it(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=1)
    rig.segment(999, b"abc", syn=True, at=1)
    rig.segment(70_000, b"text of a SYN", syn=True, at=2)
    rig.segment(0, syn=True, ends=number(1), at=3)
    assert rig.dropped == {"unconfirmed_syn": 13}
    assert evicted(rig) == {"half_open": 1}


@pytest.mark.parametrize("seed", range(8))
def test_it_is_always_the_one_idle_for_longest(tcpreasm: ModuleType, seed: int) -> None:
    """Against a plain list, with flushes in between; times that go back do not count."""
    rng = random.Random(seed)
    limit = rng.choice([1, 2, 5, 30])
    rig = Rig(tcpreasm, max_connections=limit, max_gap=None)
    seen: dict[int, float] = {}  # in order of creation
    at = 0.0
    for _ in range(600):
        at += rng.choice([0, 0, 1, 3])
        now = at - rng.choice([0, 0, 0, 0.5, 20])
        which = rng.randrange(2 * limit + 1)
        expected = []
        if which not in seen and len(seen) == limit:
            victim = min(seen, key=lambda one: seen[one])
            del seen[victim]
            expected = [key_of(number(victim))]
        seen[which] = max(now, seen.get(which, now))
        assert gone(rig.segment(1000, b"x", ends=number(which), at=now)) == expected
        if rng.random() < 0.05:
            before = at - rng.choice([3, 20, 100])
            _, calls = rig.flush_older_than(before)
            idle = [one for one in seen if seen[one] < before]
            assert gone(calls) == [key_of(number(one)) for one in idle]
            for one in idle:
                del seen[one]
    assert len(rig.pool) == len(seen)


def test_a_lower_limit_of_another_assembler(tcpreasm: ModuleType) -> None:
    """Each assembler keeps its own, over what the pool has."""
    rig = Rig(tcpreasm, max_connections=20)
    for which in range(20):
        syn(rig, which, at=which)
    other = Rig(tcpreasm, rig.recorder, rig.pool, max_connections=5)
    other.send(tcpreasm.TCPSegment(1, 2, 0, syn=True), at=20)
    assert gone(rig.recorder.take()) == [key_of(number(which)) for which in range(16)]
    assert (len(rig.pool), evicted(other)) == (5, {"half_open": 16})


@pytest.mark.parametrize("kept", [False, True])
def test_room_is_made_while_a_flush_is_under_way(tcpreasm: ModuleType, kept: bool) -> None:
    """In a callback of the flush that is closing them all: by the one idle for longest among those that the flush has not come to, not by
    the oldest. Each is completed once. kept: the order of last packets is kept already."""
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder)
    inner = Rig(tcpreasm, recorder, rig.pool, max_connections=5)
    if kept:
        rig.segment(1000, b"x", ends=number(90), at=1)
        assert rig.flush_older_than(5)[0] == (1, 1)
    for which, at in ((0, 50), (1, 40), (2, 20), (3, 30), (4, 10), (5, 10)):
        syn(rig, which)
        rig.segment(1000, b"x", ends=number(which), at=at)

    def meanwhile() -> None:
        del recorder.plan["complete"]
        for which in (7, 8, 9):
            inner.send(segment(tcpreasm, 1000, b"y", ends=number(which)), ends=number(which), at=500)

    recorder.plan["complete"] = meanwhile
    assert rig.assembler.flush_older_than(100.0) == (3, 3)
    assert gone(recorder.take()) == [key_of(number(which)) for which in (0, 4, 5, 2, 1, 3)]
    assert evicted(inner) == {"idle": 3}
    assert [str(key) for key in rig.pool.keys()] == [key_of(number(which)) for which in (7, 8, 9)]  # noqa: SIM118
    assert rig.assembler.flush_older_than(600.0) == (3, 3)


# -- user code ------------------------------------------------------------------------------------------------------------


def test_on_evict_tells_who_and_why(tcpreasm: ModuleType) -> None:
    told: list[tuple[str, str, str]] = []
    rig = Rig(tcpreasm, max_connections=1, on_evict=lambda net, transport, reason: told.append((str(net), str(transport), reason)))
    syn(rig, 0)
    rig.segment(1000, b"abc", at=1)
    syn(rig, 2, at=2)
    rig.segment(1000, fin=True, ends=number(2), at=3)
    syn(rig, 3, at=4)
    flow = tcpreasm.Flow
    expected = [(number(0), "half_open"), (ENDS, "idle"), (number(2), "closed")]
    assert told == [(str(flow(a, c)), str(flow(b, d)), reason) for (a, b, c, d), reason in expected]


@pytest.mark.parametrize("call", ["complete", "reassembled", "hook"])
def test_what_is_raised_comes_when_the_segment_is_taken_in(tcpreasm: ModuleType, call: str) -> None:
    def hook(*_: Any) -> None:
        if call == "hook":
            raise KeyError("hook")

    rig = Rig(tcpreasm, max_connections=1, on_evict=hook)
    rig.segment(999, syn=True)
    rig.segment(1002, b"held")
    if call != "hook":
        rig.recorder.plan[call] = KeyError(call)
    with pytest.raises(KeyError, match=call):
        rig.send(tcpreasm.TCPSegment(1025, 80, 1000, b"abc"), at=1, ends=number(1))
    calls = rig.taken()
    assert calls == [got(piece(b"held", skip=2)), complete(), new(number(1))]
    assert rig.segment(1003, b"d", ends=number(1), at=3) == [got(piece(b"abc", skip=-1, at=1), piece(b"d", at=3), ends=number(1))]
    assert evicted(rig) == {"idle": 1}


def test_of_two_exceptions_the_later_one_has_the_first_as_its_context(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_connections=1)
    syn(rig, 0)
    rig.recorder.plan |= {"complete": KeyError("old"), "new": ValueError("new")}
    with pytest.raises(ValueError, match="new") as raised:
        syn(rig, 1)
    assert isinstance(raised.value.__context__, KeyError)
    rig.taken()
    assert (len(rig.pool), evicted(rig)) == (0, {"half_open": 1})
    syn(rig, 2)


@pytest.mark.parametrize("where", ["new", "reassembled", "complete"])
def test_what_is_being_served_makes_no_room(tcpreasm: ModuleType, where: str) -> None:
    """A callback that feeds another assembler: the limit of one is exceeded for as long as user code runs for all there are."""
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder, max_connections=1)
    inner = Rig(tcpreasm, recorder, rig.pool, max_connections=1)
    most = 0

    def again() -> None:
        nonlocal most
        del recorder.plan[where]
        for which in range(5, 9):
            inner.send(tcpreasm.TCPSegment(number(which)[1], 80, 999, syn=True), at=1, ends=number(which))
            most = max(most, len(rig.pool))

    recorder.plan[where] = again
    rig.send(tcpreasm.TCPSegment(1234, 80, 999, b"abc", syn=True))
    rig.send(tcpreasm.TCPSegment(1234, 80, 1003, fin=True))
    calls = recorder.take()
    assert most == (1 if where == "complete" else 2)
    assert [call for call in calls if call[1] == key_of(ENDS)] == [new(), got(piece(b"abc", start=True)), got(piece(end=True)), complete()]
    made, ended = (Counter(call[1] for call in calls if call[0] == kind) for kind in ("new", "complete"))
    assert set(made.values()) == {1}
    assert set(ended.values()) == {1}
    rig.assembler.flush_all()
    stats = [one.assembler.stats for one in (rig, inner)]
    assert sum(one.streams_opened for one in stats) == sum(one.streams_closed for one in stats) == 5
    assert sum(one.bytes_captured for one in stats) == sum(one.bytes_delivered for one in stats) == 3


def test_the_connection_comes_into_being_while_room_is_made_for_it(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder, max_connections=1)
    inner = Rig(tcpreasm, recorder, rig.pool, max_connections=2)
    syn(rig, 0)

    def meanwhile() -> None:
        del recorder.plan["complete"]
        inner.send(tcpreasm.TCPSegment(1234, 80, 999, b"abc", syn=True))

    recorder.plan["complete"] = meanwhile
    rig.send(tcpreasm.TCPSegment(1234, 80, 1003, b"def"))
    assert recorder.take()[1:] == [new(), got(piece(b"abc", start=True)), got(piece(b"def"))]
    assert len(rig.pool) == 1


def test_coalesced_pieces_come_before_the_end(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    assembler = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(max_connections=2))
    frames = []
    for which in range(6):
        frames += [
            frame(999, b"", SYN, ends=number(which)),
            frame(1000, b"first", ends=number(which)),
            frame(1005, b"second", ends=number(which)),
        ]
    batch = Batch([Captured(START_NS + nth, data, len(data)) for nth, data in enumerate(frames)])
    assembler.assemble_batch(*batch.arguments(0, len(frames)), coalesce=True)
    calls = recorder.calls
    assert len(calls) == 6 + 4 * 2 + 2
    for which in range(6):
        kinds = [call[0] for call in calls if call[1] == key_of(number(which))]
        assert kinds == (["new", "reassembled", "complete"] if which < 4 else ["new", "reassembled"])
        assert recorder.data(number(which)) == b"firstsecond"
    stats = assembler.stats
    assert stats.bytes_captured == stats.bytes_delivered == 66
    assert dict(stats.connections_evicted) == {"idle": 4}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("factory", ["Recorder", "ByteCountStream", "BytesStream"])
def test_threads_divide_the_limit(tcpreasm: ModuleType, factory: str, threads: int) -> None:
    kept: list[Any] = []
    make = {"Recorder": Book(), "ByteCountStream": tcpreasm.ByteCountStream}.get(factory)
    if make is None:
        make = lambda net, transport: kept.append(tcpreasm.BytesStream(net, transport)) or kept[-1]  # noqa: E731
    frames = [frame(999, b"", SYN, ends=number(which)) for which in range(400)]
    capture = pcap([(START_NS + nth, data) for nth, data in enumerate(frames)])
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(make), tcpreasm.AssemblerOptions(max_connections=10))
    summary = assembler.assemble_capture(capture, threads=threads)
    assert dict(assembler.stats.connections_evicted) == {"half_open": 390}
    assert (summary.streams, assembler.stats.streams_closed) == (400, 400)


@pytest.mark.parametrize("coalesce", [False, True])
def test_several_threads_at_a_limit(tcpreasm: ModuleType, coalesce: bool) -> None:
    """Each stream is served serially and completed once, whoever makes whom go."""
    book = Book()
    pool = tcpreasm.StreamPool(book)
    assemblers = [tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(max_connections=6)) for _ in range(3)]
    errors = []

    def work(which: int) -> None:
        rng = random.Random(which)
        frames = []
        for _ in range(600):
            ends = number(rng.randrange(24))
            frames.append(
                frame(999, b"", SYN, ends=ends) if rng.random() < 0.4 else frame(1000 + 5 * rng.randrange(4), b"hello", ends=ends)
            )
        batch = Batch([Captured(START_NS + nth * 1000, data, len(data)) for nth, data in enumerate(frames)])
        for begin in range(0, len(frames), 50):
            assemblers[which].assemble_batch(*batch.arguments(begin, begin + 50), coalesce=coalesce)
            if len(pool) > 6 + len(assemblers):
                errors.append(len(pool))

    together(*(lambda which=which: work(which) for which in range(3)))
    assert errors == []
    assemblers[0].flush_all()
    book.check(pool, assemblers)
    stats = [one.stats for one in assemblers]
    assert sum(one.bytes_captured for one in stats) == sum(one.bytes_delivered + one.bytes_dropped for one in stats)
    assert sum(sum(one.connections_evicted.values()) for one in stats) > 100


# -- holes that are given up ----------------------------------------------------------------------------------------------


def holes(rig: Rig) -> tuple[int, int, int]:
    stats = rig.assembler.stats
    return stats.holes_limited, stats.holes_expired, stats.holes_ended


@pytest.mark.parametrize(
    "limit",
    [
        {"max_buffered_pages_per_connection": 3},
        {"max_buffered_pages_total": 3},
        {"max_buffered_bytes_per_connection": 3 * 96},
        {"max_buffered_bytes_total": 3 * 96},
    ],
)
def test_holes_are_counted_by_why_they_were_given_up(tcpreasm: ModuleType, limit: dict[str, int]) -> None:
    rig = Rig(tcpreasm, max_connections=2, **limit)
    rig.segment(999, syn=True)
    for place in (10, 20, 30, 31, 40):
        rig.segment(1000 + place, b"x", at=place)
    assert holes(rig) == (3, 0, 0), "30 and 31 are one island"
    assert rig.assembler.stats.bytes_skipped == 10 + 9 + 9
    rig.flush(35)
    assert holes(rig) == (3, 0, 0)
    rig.flush(45)
    assert holes(rig) == (3, 1, 0)
    rig.segment(1050, b"x", at=50)
    rig.segment(1060, fin=True, at=60)
    assert rig.flush(70)[0] == (1, 1)
    assert holes(rig) == (3, 3, 0), "one before the byte, one before the FIN"
    for which in (1, 2):
        syn(rig, which, at=80)
        rig.segment(1010, b"x", ends=number(which), at=80 + which)
    syn(rig, 3, at=90)
    assert (evicted(rig), holes(rig)) == ({"closed": 1, "idle": 1}, (3, 3, 1))
    rig.segment(70_000, syn=True, ends=number(2), at=91)
    rig.segment(70_001, b"anew", ends=number(2), at=91)
    assert holes(rig) == (3, 3, 2)
    rig.segment(70_010, b"x", ends=number(2), at=92)
    rig.flush_all()
    assert holes(rig) == (3, 3, 3)


def test_what_is_no_hole_that_was_given_up(tcpreasm: ModuleType) -> None:
    """What the capture cut off; what lies before the first byte of a stream whose SYN was not seen; text of a SYN that waited."""
    rig = Rig(tcpreasm, start_wait_segments=1, syn_data="acked")
    rig.segment(1000, b"abc", wire=10)
    rig.segment(1010, b"d")
    rig.segment(1000, b"text", syn=True, ends=number(1))
    rig.flush()
    assert (rig.flush_all()[0], holes(rig), rig.assembler.stats.bytes_skipped) == (2, (0, 0, 0), 7)


@pytest.mark.parametrize("seed", range(5))
def test_each_gap_is_a_hole_that_was_given_up(tcpreasm: ModuleType, seed: int) -> None:
    """Segments that lie apart by chance, limits, flushes, evictions: as many holes as pieces that miss something."""
    rng = random.Random(seed)
    rig = Rig(tcpreasm, max_connections=3, max_buffered_pages_per_connection=5, max_buffered_pages_total=9)
    gaps, at = 0, 0.0
    for _ in range(1000):
        at += 1
        which, what = rng.randrange(5), rng.random()
        if what < 0.05:
            _, calls = rig.flush(at - rng.randrange(20), close_all=rng.random() < 0.5)
        elif what < 0.2:
            calls = rig.segment(999, syn=True, ends=number(which), at=at)
        else:
            calls = rig.segment(1000 + rng.randrange(300), b"abc"[: rng.randrange(1, 4)], fin=what > 0.97, ends=number(which), at=at)
        gaps += sum(skip > 0 for call in calls if call[0] == "reassembled" for _, skip, *_ in call[2])
    _, calls = rig.flush_all()
    gaps += sum(skip > 0 for call in calls if call[0] == "reassembled" for _, skip, *_ in call[2])
    assert sum(holes(rig)) == gaps
    assert min(holes(rig)) > 5


# -- a flood of SYNs ------------------------------------------------------------------------------------------------------


def syns(count: int, seed: int = 0, text: int = 0) -> np.ndarray[Any, Any]:
    """Frames of 54 bytes and so much text, each a SYN from another address and port, as an array of bytes. Checksums are left out."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((count, 54 + text), np.uint8)
    frames[:, 12], frames[:, 14], frames[:, 17], frames[:, 22], frames[:, 23] = 8, 0x45, 40 + text, 64, 6
    frames[:, 26:30] = (np.arange(count)[:, None] >> (24, 16, 8, 0)) & 255
    frames[:, 26] = 11
    frames[:, 30:34] = (198, 51, 100, 1)
    frames[:, 34:36] = rng.integers(0, 256, (count, 2))
    frames[:, 37], frames[:, 46], frames[:, 47] = 80, 0x50, SYN
    frames[:, 38:42] = rng.integers(0, 256, (count, 4))
    return frames


@pytest.mark.parametrize("syn_data", ["deliver", "acked"])
@pytest.mark.parametrize("text", [0, 30])
@pytest.mark.parametrize("open_on", ["syn", "data"])
def test_real_connections_in_a_flood_are_unharmed(tcpreasm: ModuleType, open_on: str, text: int, syn_data: str) -> None:
    """Twenty connections send while ten times as many SYNs come, with text or without, as there is room for: every byte comes out, none
    is evicted."""
    limit, real, rounds = 300, 20, 10
    rng = random.Random(5)
    texts = [rng.randbytes(rounds * 100) for _ in range(real)]
    flood = [row.tobytes() for row in syns(rounds * limit, text=text)]
    frames = [frame(999, b"", SYN, ends=number(which)) for which in range(real)]
    for turn in range(rounds):
        frames += [frame(1000 + turn * 100, sent[turn * 100 :][:100], ends=number(which)) for which, sent in enumerate(texts)]
        frames += flood[turn * limit : (turn + 1) * limit]
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    assembler = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(max_connections=limit, open_on=open_on, syn_data=syn_data))
    batch = Batch([Captured(START_NS + nth * 1000, data, len(data)) for nth, data in enumerate(frames)])
    for begin in range(0, len(frames), 100):
        assembler.assemble_batch(*batch.arguments(begin, min(begin + 100, len(frames))))
        stats = assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_held + stats.bytes_dropped
        assert set(stats.dropped) <= ({"unconfirmed_syn"} if syn_data == "acked" and open_on == "data" else set())
        assert len(pool) <= limit
    assert [recorder.data(number(which)) for which in range(real)] == texts
    assert dict(assembler.stats.connections_evicted) == {"half_open": real + rounds * limit - limit}
    flood_opens = open_on == "syn" or (text and syn_data == "deliver")
    assert len(recorder.streams) == (real + rounds * limit if flood_opens else real)


def test_a_half_open_connection_takes_at_most_256_bytes() -> None:
    """Growth of the whole process."""
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        import tcpreasm
        from test_bounds import syns

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        count = 300_000
        data = syns(count).tobytes()
        at, sizes, times = np.arange(count) * 54, np.full(count, 54), np.arange(count) * 1000
        pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream)
        assembler = tcpreasm.Assembler(pool)
        assembler.assemble_batch(data, at[:10], sizes[:10], times[:10])
        before = resident()
        assembler.assemble_batch(data, at, sizes, times)
        print((resident() - before) / len(pool), len(pool))
        """
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{script}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    each, count = done.stdout.split()
    assert count == "300000"
    assert float(each) <= 256


# -- the factory waits for data -------------------------------------------------------------------------------------------


def test_open_on_data_calls_no_factory_for_a_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, open_on="data")
    assert rig.segment(999, syn=True, at=1) == []
    assert rig.segment(999, syn=True, at=2) == []
    assert rig.segment(1000, at=3) == []
    assert (len(rig.pool), rig.assembler.stats.streams_opened) == (1, 0)
    assert rig.segment(1000, b"abc", at=4) == [new(), got(piece(start=True, at=2), piece(b"abc", at=4))]  # at the last SYN
    assert rig.segment(1003, b"d", at=5) == [got(piece(b"d", at=5))]
    assert rig.flush_all() == (1, [complete()])
    assert rig.assembler.stats.streams_closed == 1


def test_open_on_data_with_text_in_the_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, open_on="data")
    assert rig.segment(999, b"early", syn=True) == [new(), got(piece(b"early", start=True))]


@pytest.mark.parametrize("how", ["ack", "text", "rst", "flush", "limit", "evicted", "not accepted", "anew"])
def test_open_on_data_with_text_in_the_syn_that_is_held(tcpreasm: ModuleType, how: str) -> None:
    """No stream before it goes out, or something else comes: the SYN again, another one with text and an ACK at its first byte are not."""
    limits = {"max_buffered_pages_per_connection": 2} if how == "limit" else {}
    rig = Rig(tcpreasm, open_on="data", syn_data="acked", max_connections=1, **limits)
    assert rig.segment(999, b"early", syn=True, at=1) == []
    assert rig.segment(999, b"early", syn=True, at=2) == []
    assert rig.segment(1000, at=3) == rig.segment(5000, rst=True, at=3) == []
    assert rig.segment(70_000, b"text of a SYN", syn=True, at=3) == []
    assert (rig.assembler.stats.streams_opened, rig.assembler.stats.bytes_held) == (0, 18)
    start, early = piece(start=True, at=2), piece(b"early", at=1)
    if how == "ack":
        assert rig.segment(1005, at=4) == [new(), got(start, early)]
    elif how == "text":
        assert rig.segment(1005, b"more", at=4) == [new(), got(start, early, piece(b"more", at=4))]
    elif how == "rst":
        assert rig.segment(1005, rst=True, at=4) == [new(), got(start, piece(b"early", end=True, at=1)), complete()]
    elif how == "flush":
        assert rig.flush() == ((1, 0), [new(), got(start, early)])
    elif how == "limit":
        assert rig.segment(999, b"early" + bytes(2000), syn=True, at=4)[:1] == [new()]
    elif how == "evicted":
        assert syn(rig, 1, at=4) == []
        assert (evicted(rig), rig.dropped["unconfirmed_syn"]) == ({"idle": 1}, 18)
    elif how == "not accepted":
        assert rig.segment(1000, b"late", at=4) == [new(), got(start, piece(b"late", at=4))]
    else:
        assert rig.segment(70_014, b"!", at=4) == [
            new(),
            got(piece(start=True, at=3), piece(b"text of a SYN", at=3), piece(b"!", at=4)),
        ]
    stats = rig.assembler.stats
    assert stats.streams_opened == (how != "evicted")
    rig.flush_all()


def test_open_on_data_with_held_text_of_one_that_is_idle(tcpreasm: ModuleType) -> None:
    """Closed for that alone, before its text has been waited for long enough: the stream is made, and told all."""
    rig = Rig(tcpreasm, open_on="data", syn_data="acked", hole_timeout=None, idle_timeout=10.0)
    assert rig.segment(999, b"early", syn=True, at=1) == []
    rig.assembler.advance_clock(to_ns(20))
    rig.assembler.expire()
    assert rig.taken() == [new(), got(piece(start=True, at=1), piece(b"early", at=1)), complete()]


@pytest.mark.parametrize("how", ["ack", "text", "flush", "flush all"])
def test_open_on_data_with_held_text_and_a_factory_that_raises(tcpreasm: ModuleType, how: str) -> None:
    """The connection is gone, with what it held and what was remembered."""
    rig = Rig(tcpreasm, open_on="data", syn_data="acked", max_connections=1)
    rig.segment(999, b"early", syn=True)
    rig.segment(70_000, b"text of a SYN", syn=True)
    rig.recorder.plan["new"] = KeyError("no")
    calls: dict[str, Callable[[], Any]] = {"flush": rig.flush, "flush all": rig.flush_all}
    call = calls.get(how, lambda: rig.send(segment(tcpreasm, 1005, b"more" if how == "text" else b"")))
    with pytest.raises(KeyError):
        call()
    assert rig.taken() == [new()]
    assert rig.dropped == {"factory_error": 9 if how == "text" else 5, "unconfirmed_syn": 13}
    assert (len(rig.pool), rig.assembler.stats.pages_used) == (0, 0)


def test_open_on_data_counts_a_fin(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, open_on="data")
    rig.segment(999, syn=True)
    assert rig.segment(1000, fin=True, at=1) == [new(), got(piece(start=True, end=True)), complete()]


def test_open_on_data_and_text_behind_a_hole(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, open_on="data")
    rig.segment(999, syn=True)
    assert rig.segment(1003, b"def", at=1) == [new(), got(piece(start=True))]
    assert rig.segment(1000, b"abc", at=2) == [got(piece(b"abc", at=2), piece(b"def", at=1))]


def test_open_on_data_and_a_syn_that_is_continued(tcpreasm: ModuleType) -> None:
    """The first SYN's stream has brought nothing: there is one for the second SYN only."""
    rig = Rig(tcpreasm, open_on="data")
    assert rig.segment(999, syn=True) == rig.segment(70_000, b"abc", syn=True, at=1) == []
    assert rig.segment(70_004, b"d", at=2) == [new(), got(piece(start=True, at=1), piece(b"abc", at=1), piece(b"d", at=2))]


@pytest.mark.parametrize("how", ["rst", "flush", "evicted", "syn"])
def test_open_on_data_and_none_comes(tcpreasm: ModuleType, how: str) -> None:
    """No stream is made, so that none ends."""
    rig = Rig(tcpreasm, open_on="data", max_connections=1)
    rig.segment(999, syn=True)
    if how == "rst":
        assert rig.segment(1000, rst=True) == []
        assert rig.segment(1000, b"late") == []
        assert rig.dropped == {"after_close": 4}
        assert rig.segment(5000, syn=True) == [], "another connection under the same key, and it waits too"
        assert rig.segment(5001, b"x") == [new(), got(piece(start=True), piece(b"x"))]
        return
    if how == "flush":
        assert rig.flush_all() == (1, [])
    elif how == "evicted":
        assert syn(rig, 1) == []
        assert evicted(rig) == {"half_open": 1}
    else:
        assert rig.segment(5000, syn=True) == []
    stats = rig.assembler.stats
    assert (stats.streams_opened, stats.streams_closed) == (0, 0)


def test_open_on_data_and_a_factory_that_raises(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, open_on="data")
    rig.segment(999, syn=True)
    rig.recorder.plan["new"] = KeyError("no")
    with pytest.raises(KeyError):
        rig.send(tcpreasm.TCPSegment(1234, 80, 1000, b"abc"))
    rig.taken()
    assert (rig.dropped, len(rig.pool)) == ({"factory_error": 3}, 0)


@pytest.mark.parametrize("factory", ["ByteCountStream", "BytesStream"])
def test_open_on_data_with_ready_made_streams(tcpreasm: ModuleType, factory: str) -> None:
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(getattr(tcpreasm, factory)), tcpreasm.AssemblerOptions(open_on="data"))
    frames = [frame(999, b"", SYN, ends=number(which)) for which in range(50)]
    frames += [frame(1000, b"hello", ACK, ends=number(which)) for which in range(0, 50, 5)]
    batch = Batch([Captured(START_NS + nth * 1000, data, len(data)) for nth, data in enumerate(frames)])
    assembler.assemble_batch(*batch.arguments(0, len(frames)))
    stats = assembler.stats
    assert (stats.connections, stats.streams_opened, stats.bytes_delivered) == (50, 10, 50)
    assembler.flush_all()
    assert assembler.stats.streams_closed == 10


# -- ports that are used again, and many short connections ----------------------------------------------------------------


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("isns", [(1000, 500_000, 900_000), (900_000, 500_000, 1000), (1000, 2000, 3000)])
def test_three_incarnations_in_a_row(tcpreasm: ModuleType, isns: tuple[int, ...], fin: bool) -> None:
    """The same addresses and ports three times: three streams, no byte of one in another, and late segments open no fourth."""
    rig = Rig(tcpreasm)
    texts = [b"first one", b"the second", b"and a third"]
    calls = []
    for nth, (isn, text) in enumerate(zip(isns, texts)):
        calls += rig.segment(isn, syn=True, at=nth)
        calls += rig.segment(isn + 1, text, at=nth)
        calls += rig.segment(isn + 1 + len(text), at=nth, fin=fin)
        if fin:
            for again in isns[: nth + 1]:
                assert rig.segment(again + 1 + len(texts[isns.index(again)]), at=nth, fin=True) == []
    calls += rig.flush_all()[1]
    streams: list[bytes] = []
    for call in calls:
        if call[0] == "new":
            streams.append(b"")
        elif call[0] == "reassembled":
            streams[-1] += b"".join(data for data, *_ in call[2])
    assert streams == texts
    assert sum(call[0] == "complete" for call in calls) == 3


def test_many_short_connections_take_the_memory_of_those_alive(compiled: ModuleType) -> None:
    """Thirty thousand, three thousand of them alive or remembered at a time."""
    recorder = Recorder()
    pool = compiled.StreamPool(recorder)
    assembler = compiled.Assembler(pool, compiled.AssemblerOptions(closed_timeout=0.1))
    alive = 1000
    frames = []
    for which in range(30_000):
        frames.append(frame(999, b"x", SYN, ends=number(which)))
        if which >= alive:
            frames.append(frame(1001, b"", 17, ends=number(which - alive)))
    batch = Batch([Captured(START_NS + nth * 50_000, data, len(data)) for nth, data in enumerate(frames)])
    made = []
    for begin in range(0, len(frames), 10_000):
        assembler.assemble_batch(*batch.arguments(begin, min(begin + 10_000, len(frames))))
        recorder.calls.clear()
        recorder.streams.clear()
        made.append(pool._connections_made())
    assert made[-1] == made[1] <= alive + 0.1 / 100e-6 + 50
    assembler.flush_all()
    stats = assembler.stats
    assert (stats.bytes_held, stats.pages_used, stats.connections) == (0, 0, 0)


# -- what a flush looks at ------------------------------------------------------------------------------------------------


def looks(rig: Rig, call: Callable[[], Any]) -> tuple[Any, int]:
    before = rig.pool._looked_at()
    result = call()
    return result, rig.pool._looked_at() - before


def test_a_flush_looks_at_what_it_expires(compiled: ModuleType) -> None:
    """Once it has begun to keep their order: 5,000 connections, ten of them idle for longer each time."""
    rig = Rig(compiled)
    for which in range(5000):
        syn(rig, which, at=which)
    (result, _), count = looks(rig, lambda: rig.flush_older_than(10))
    assert (result, count) == ((10, 10), 10_000), "the first time all of them, and once more for their order"
    for turn in range(2, 20):
        (result, _), count = looks(rig, lambda turn=turn: rig.flush_older_than(10 * turn))
        assert (result, count) == ((10, 10), 10)
    (result, _), count = looks(rig, lambda: rig.flush_older_than(190))
    assert (result, count) == ((0, 0), 0)
    # What was seen since is looked at once more, and then not for as long.
    for which in range(200, 210):
        rig.segment(1000, b"x", ends=number(which), at=6000)
    (result, _), count = looks(rig, lambda: rig.flush_older_than(250))
    assert (result, count) == ((50, 50), 60)
    (result, _), count = looks(rig, lambda: rig.flush_older_than(260))
    assert (result, count) == ((10, 10), 10)
    # Nor does a flush that closes nothing look at those that hold nothing.
    rig.segment(1005, b"held", ends=number(4000), at=6000)
    (result, _), count = looks(rig, lambda: rig.flush(7000))
    assert (result, count) == ((1, 0), 1)


def test_time_looks_at_what_it_expires(compiled: ModuleType) -> None:
    """The same for what whole captures do each second: one connection a second becomes idle, and 3,000 are open."""
    rig = Rig(compiled, idle_timeout=3000)
    for which in range(3001):
        syn(rig, which, at=which)
    rig.assembler.tick()
    for which in range(3001, 3200):
        syn(rig, which, at=which)
        _, count = looks(rig, rig.assembler.tick)
        assert count <= (2 if which > 3001 else 2 * 3002), which
        assert len(rig.pool) == 3001
    rig.taken()


def test_an_eviction_looks_at_few(compiled: ModuleType) -> None:
    rig = Rig(compiled, max_connections=2000)
    for which in range(2000):
        rig.segment(1000, b"x", ends=number(which), at=which)
    rig.segment(1000, b"x", ends=number(5000), at=2000)
    for which in range(5001, 5500):
        _, count = looks(rig, lambda which=which: rig.segment(1000, b"x", ends=number(which), at=which))
        assert count == 1
    assert evicted(rig) == {"idle": 500}


def come_and_go(rig: Rig, which: int, at: float) -> None:
    syn(rig, which, at=at)
    rig.segment(1000, rst=True, ends=number(which), at=at)


def test_new_connections_look_at_few_after_a_burst(compiled: ModuleType) -> None:
    """3,000 came and went before their order is asked for, with five open: what they took in the table is not looked at again and again."""
    rig = Rig(compiled)
    for which in range(3000):
        come_and_go(rig, which, at=0)
    for which in range(3000, 3005):
        syn(rig, which, at=100)
    assert rig.flush_older_than(50) == ((0, 0), [])
    _, count = looks(rig, lambda: [come_and_go(rig, which, at=200) for which in range(4000, 4600)])
    assert 0 < count < 3000


def test_who_is_idle_is_known_after_many_came_and_went(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for which in range(5):
        rig.segment(1000, b"x", ends=number(which), at=100 - which)
    assert rig.flush_older_than(50)[0] == (0, 0)
    for which in range(1000, 1600):
        come_and_go(rig, which, at=200)
        rig.segment(1001, b"y", ends=number(4), at=200)
    result, calls = rig.flush_older_than(99.5)
    assert (result[1], gone(calls)) == (3, [key_of(number(which)) for which in (1, 2, 3)])
    assert len(rig.pool) == 2


def test_an_idle_connection_that_flushes_in_its_own_callback_is_found_the_next_time(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder)
    inner = Rig(tcpreasm, recorder, rig.pool)
    found = []

    def flush() -> None:
        del recorder.plan["reassembled"]
        found.append(inner.assembler.flush_older_than(100.0))

    for which in range(3):
        syn(rig, which)
    recorder.plan["reassembled"] = flush
    rig.segment(1000, b"abc", ends=number(1), at=1)
    assert found == [(2, 2)]
    assert inner.assembler.flush_older_than(100.0) == (1, 1)
    assert len(rig.pool) == 0


@pytest.mark.parametrize("how", ["raises", "seen"])
def test_an_idle_connection_that_stays_is_found_the_next_time(tcpreasm: ModuleType, how: str) -> None:
    """Another one's end raises, or brings it a segment, while the flush is on its way to it."""
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder)
    inner = Rig(tcpreasm, recorder, rig.pool)
    for which in range(3):
        syn(rig, which)

    def meanwhile() -> None:
        del recorder.plan["complete"]
        if how == "raises":
            raise KeyError(how)
        inner.send(tcpreasm.TCPSegment(number(2)[1], 80, 1000, b"abc"), at=500, ends=number(2))

    recorder.plan["complete"] = meanwhile
    if how == "raises":
        with pytest.raises(KeyError):
            rig.assembler.flush_older_than(100.0)
        assert len(rig.pool) == 0
    else:
        assert rig.assembler.flush_older_than(100.0) == (2, 2)
        assert rig.assembler.flush_older_than(400.0) == (0, 0)
        assert rig.assembler.flush_older_than(501.0) == (1, 1)


# -- the table's hash -----------------------------------------------------------------------------------------------------


RawKey = tuple[bytes, bytes, int, int, int]


def sequential(count: int) -> list[RawKey]:
    return [((10 << 24 | which >> 4).to_bytes(4, "big"), bytes([192, 0, 2, 1]), 1024 + (which & 15), 80, 0) for which in range(count)]


def chance(count: int) -> list[RawKey]:
    rng = random.Random(1)
    return [(rng.randbytes(4), rng.randbytes(4), rng.randrange(65536), rng.randrange(65536), 0) for _ in range(count)]


def alike(count: int) -> list[RawKey]:
    """All the same under XOR of addresses and ports, and under sums of them."""
    keys = []
    for which in range(count):
        high, low = which >> 8 & 255, which & 255
        keys.append((bytes([10, high, low, which >> 16]), bytes([10, high, low, which >> 16]), 1024 + low, 1024 + low, 0))
    return keys


def test_two_pools_place_the_same_keys_differently(compiled: ModuleType) -> None:
    keys = sequential(200)
    placed = [[pool._hash_of(key) & 0xFFFF for key in keys] for pool in (compiled.StreamPool(Recorder()) for _ in range(3))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(placed[one], placed[other])) < 5


def test_two_processes_place_the_same_keys_differently() -> None:
    script = "import tcpreasm; print(tcpreasm.StreamPool(tcpreasm.BytesStream)._hash_of((b'abcd', b'efgh', 1, 2, 0)))"
    told = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(told) == 3


def test_both_directions_are_placed_alike(compiled: ModuleType) -> None:
    pool = compiled.StreamPool(Recorder())
    for src, dst, src_port, dst_port, _ in chance(100):
        one, other = pool._hash_of((src, dst, src_port, dst_port, 0)), pool._hash_of((dst, src, dst_port, src_port, 0))
        assert one ^ other == 1 << 31
        assert pool._hash_of((src, dst, src_port, dst_port, 2)) == one, "tunnels are compared, not hashed"


def test_keys_that_collide_under_one_secret_do_not_under_another(compiled: ModuleType) -> None:
    """Chosen by somebody who knew the first pool's: all begin at one of 16 places of 2**17."""
    known, other = compiled.StreamPool(Recorder()), compiled.StreamPool(Recorder())
    mask = (1 << 17) - 1
    chosen = [key for key in chance(400_000) if known._hash_of(key) & mask < 16]
    assert len(chosen) > 20
    most = Counter(other._hash_of(key) & mask for key in chosen).most_common(1)[0][1]
    assert most <= 2
    assert sum(other._hash_of(key) & mask < 16 for key in chosen) <= 2


@pytest.mark.parametrize("keys", [sequential, chance, alike])
@pytest.mark.parametrize("count", [98_304, 100_000])
def test_no_long_way_in_the_table(compiled: ModuleType, keys: Callable[[int], list[RawKey]], count: int) -> None:
    """98,304 is where a table of 2**17 is as full as it gets: three quarters. Linear probing over a random hash has its longest way then at
    about 100 (medians of many runs), far below what keys that lie together would make of it."""
    frames = syns(count)
    for row, (src, dst, src_port, dst_port, _) in zip(frames, keys(count)):
        row[26:38] = np.frombuffer(src + dst + src_port.to_bytes(2, "big") + dst_port.to_bytes(2, "big"), np.uint8)
    pool = compiled.StreamPool(compiled.ByteCountStream)
    assembler = compiled.Assembler(pool)
    assembler.assemble_batch(frames.tobytes(), np.arange(count) * 54, np.full(count, 54), np.arange(count))
    slots, filled, longest = pool._table()
    assert len(pool) == filled
    assert filled > count - 10
    assert longest <= (400 if slots == 1 << 17 else 64)
