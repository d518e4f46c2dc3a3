"""What only somebody hostile, or a very long capture, does: each fault that a review of the engine found has its test here, by name.

Distances at which 32 bits fail, callbacks that tamper with what they are given, handles on memory that was given up, clocks that are set
ahead and back, finalisers that come in between. What a fault once brought down runs in a child process or in a thread that is waited for,
so that it fails one test and not all.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import (
    ENDS,
    FIN,
    RST,
    Call,
    Ends,
    RecordedStream,
    Recorder,
    Rig,
    complete,
    frame,
    got,
    key_of,
    new,
    number,
    piece,
    segment,
    to_ns,
)

GIB = 1 << 30
HALF = 1 << 31
WRAP = 1 << 32
ENDS6 = ("2001:db8::1", 1234, "2001:db8::2", 80)
LAST_NS = 2**62 - 1  # the latest time there is; the earliest is as far before 1970


class Bang(Exception):
    """Raised by the streams below."""


def opened(package: ModuleType, isn: int = 999, recorder: Recorder | None = None, **options: Any) -> Rig:
    rig = Rig(package, recorder, **options)
    assert rig.segment(isn, syn=True) == [new(), got(piece(start=True))]
    return rig


def started(package: ModuleType, seq: int = 1000, **options: Any) -> Rig:
    """A stream without a SYN, which has begun with the three bytes at seq."""
    rig = Rig(package, start_wait_segments=1, **options)
    assert rig.segment(seq, b"abc") == [new(), got(piece(b"abc", skip=-1))]
    return rig


def within(seconds: float, call: Callable[[], object]) -> None:
    """Runs call in a thread, and fails where it does not come back."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    for error in raised:
        raise error


def child(package: ModuleType, code: str) -> str:
    """What code prints, run by an interpreter of its own on the core at hand, as `t`: it may crash."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", f"import tcpreasm as t\n{code}"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(str(package.__file__)).parent.parent),
            "TCPREASM_IMPLEMENTATION": package.implementation,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- exactly half the sequence space away -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_gap", [1 << 27, None])
@pytest.mark.parametrize("expected", [0, 1000, HALF - 1, HALF, WRAP - 1])
def test_at_2_to_the_31_nothing_is_delivered(tcpreasm: ModuleType, expected: int, max_gap: int | None) -> None:
    """Neither ahead nor behind: out of the window, and no byte of memory beyond the packet is read."""
    rig = opened(tcpreasm, (expected - 1) % WRAP, max_gap=max_gap)
    for count in range(1, 4):
        assert rig.segment(expected + HALF, b"EVIL") == []
        assert rig.dropped == {"out_of_window": 4 * count}
    assert rig.segment(expected + HALF, b"", wire=1000) == []
    assert rig.segment(expected, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(expected + 3, fin=True) == [got(piece(end=True)), complete()]
    assert (rig.dropped, rig.assembler.stats.bytes_skipped) == ({"out_of_window": 12}, 0)


def test_at_2_to_the_31_a_fin_is_no_end(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, max_gap=None)
    assert rig.segment(1000 + HALF, fin=True) == []
    assert rig.segment(1000 + HALF - 4, b"EVIL", fin=True) == []
    assert (rig.assembler.stats.fin_ignored, rig.dropped) == (2, {"out_of_window": 4})
    assert rig.flush() == ((0, 0), [])
    assert rig.segment(1000, b"abc", fin=True) == [got(piece(b"abc", end=True)), complete()]


@pytest.mark.parametrize("payload", [b"EVIL", b"x" * 1400])
def test_at_2_to_the_31_in_a_frame(tcpreasm: ModuleType, payload: bytes) -> None:
    rig = Rig(tcpreasm)
    assert rig.frame(frame(999, flags=2)) == [new(), got(piece(start=True))]
    for _ in range(2):
        assert rig.frame(frame(1000 + HALF, payload)) == []
    assert rig.dropped == {"out_of_window": 2 * len(payload)}
    assert rig.frame(frame(1000, b"abc")) == [got(piece(b"abc"))]


def test_at_2_to_the_31_with_pages_held(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1003, b"held")
    assert rig.segment(1000 + HALF, b"EVIL") == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"held"))]
    assert rig.dropped == {"out_of_window": 4}


# -- nearly so far ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [1, 100, 1400, 60_000])
@pytest.mark.parametrize("max_gap", [1 << 27, None])
def test_a_page_nearly_2_to_the_31_ahead_and_a_retransmission(tcpreasm: ModuleType, below: int, max_gap: int | None) -> None:
    """From the retransmission's first byte to the page it is further than 32 bits with a sign can tell."""
    rig = opened(tcpreasm, max_gap=max_gap)
    assert rig.segment(1000, b"a" * below) == [got(piece(b"a" * below))]
    next_seq = 1000 + below
    far = next_seq + HALF - 2
    rig.segment(far, b"x")
    held = rig.segment(far, b"x")
    assert (held, rig.assembler.stats.bytes_held) == ([], 1)
    dropped = {"overlapping": 1} if max_gap is None else {"out_of_window": 1}  # the second one continues from the first
    assert rig.dropped == dropped
    assert rig.segment(1000, b"a" * below + b"new") == [got(piece(b"new"))]
    assert rig.segment(1000, b"a" * below) == []
    assert rig.dropped == {**dropped, "retransmitted": 2 * below}
    assert rig.flush() == ((1, 0), [got(piece(b"x", skip=far - next_seq - 3))])
    assert rig.segment(far + 1, b"!") == [got(piece(b"!"))]


def test_a_page_may_not_reach_beyond_2_to_the_31(tcpreasm: ModuleType) -> None:
    """Its end would compare as behind: what comes early after it must find its place nevertheless."""
    rig = opened(tcpreasm, 0)
    for _ in range(2):
        assert rig.segment(HALF, b"x" * 4000) == []
    assert rig.dropped == {"out_of_window": 8000}
    assert rig.segment(101, b"hello") == []
    assert rig.segment(1, b"a" * 100) == [got(piece(b"a" * 100), piece(b"hello"))]
    assert rig.segment(106, b"world") == [got(piece(b"world"))]
    assert rig.flush_all() == (1, [complete()])
    assert rig.assembler.stats.bytes_skipped == 0


@pytest.mark.parametrize("below", [1, 100, 60_000])
def test_a_fin_nearly_2_to_the_31_ahead_and_a_retransmission_with_new_bytes(tcpreasm: ModuleType, below: int) -> None:
    """The room before the FIN must not wrap: the new bytes are within it."""
    rig = opened(tcpreasm, 0, max_gap=None)
    rig.segment(1, b"a" * below)
    assert rig.segment(1 + below + HALF - 1, fin=True) == []
    assert rig.segment(1, b"a" * below + b"b" * 100) == [got(piece(b"b" * 100))]
    assert (rig.dropped, rig.assembler.stats.fin_ignored) == ({"retransmitted": below}, 0)
    assert rig.flush() == ((1, 1), [got(piece(skip=HALF - 101, end=True)), complete()])


def test_waiting_for_the_start_data_stays_within_reach(tcpreasm: ModuleType) -> None:
    """Four segments a GiB from each other, without a start: they cannot all be one stream, and no gap goes backwards."""
    rig = Rig(tcpreasm, max_gap=None)
    assert rig.segment(3 * GIB, b"C" * 10) == [new()]
    for seq, data in ((2 * GIB, b"B"), (GIB, b"A"), (7, b"0")):
        rig.segment(seq, data * 10)
    assert rig.dropped == {"out_of_window": 30}
    assert rig.flush_all() == (1, [got(piece(b"C" * 10, skip=-1)), complete()])


# -- beyond 2 GiB of one stream -----------------------------------------------------------------------------------------


def by_flushes(rig: Rig, seq: int, step: int) -> None:
    rig.segment(seq + step, b"xyz")
    assert rig.flush() == ((1, 0), [got(piece(b"xyz", skip=step))])


def by_cuts(rig: Rig, seq: int, step: int) -> None:
    for done in range(0, step, GIB):
        assert rig.segment(seq + done, wire=min(GIB, step - done)) == []
    assert rig.segment(seq + step, b"xyz") == [got(piece(b"xyz", skip=step))]


@pytest.mark.parametrize("way", [by_flushes, by_cuts])
@pytest.mark.parametrize(("steps", "step"), [(3, GIB), (2, HALF - 10), (10, 1 << 28), (16, 1 << 28), (5, GIB)])
def test_beyond_2_gib_a_retransmission_is_one(tcpreasm: ModuleType, steps: int, step: int, way: Callable[[Rig, int, int], None]) -> None:
    """However far the stream has gone, also round the whole sequence space: it is not taken for data before the start."""
    rig = started(tcpreasm, max_gap=None)
    seq = 1003
    for _ in range(steps):
        way(rig, seq, step)
        seq += step + 3
        assert rig.segment(seq - 3, b"xyz") == []
    assert rig.dropped == {"retransmitted": 3 * steps}
    assert rig.segment(seq, b"!", fin=True) == [got(piece(b"!", end=True)), complete()]


def test_near_its_start_data_before_it_is_told_from_a_retransmission(tcpreasm: ModuleType) -> None:
    rig = started(tcpreasm)
    assert rig.segment(990, b"0123456789abc") == []
    assert rig.dropped == {"before_start": 10, "retransmitted": 3}


@pytest.mark.parametrize(("steps", "step"), [(3, GIB), (2, HALF - 10), (4, GIB)])
@pytest.mark.parametrize("before", [0, 1000, (1 << 24) - 1])
def test_beyond_2_gib_a_syn_before_the_start_is_another_connections(tcpreasm: ModuleType, before: int, steps: int, step: int) -> None:
    rig = started(tcpreasm, max_gap=None)
    seq = 1003
    for _ in range(steps):
        by_flushes(rig, seq, step)
        seq += step + 3
    isn = 999 - before
    assert rig.segment(isn, syn=True) == []
    stats = rig.assembler.stats
    assert (stats.late_syn, stats.syn_remembered) == (0, 1)
    if abs((seq - isn + HALF) % WRAP - HALF) > 1 << 20:  # else the old stream might as well go on there
        assert rig.segment(isn + 1, b"new") == [complete(), new(), got(piece(start=True), piece(b"new"))]


@pytest.mark.parametrize("before", [0, 1000])
def test_near_its_start_a_late_syn_is_the_streams_own(tcpreasm: ModuleType, before: int) -> None:
    rig = started(tcpreasm)
    assert rig.segment(999 - before, syn=True) == []
    stats = rig.assembler.stats
    assert (stats.late_syn, stats.syn_remembered) == (1, 0)


# -- callbacks that tamper ----------------------------------------------------------------------------------------------


def of_bytes(pieces: list[Any]) -> None:
    pieces[:] = [r.bytes for r in pieces]


def of_none(pieces: list[Any]) -> None:
    pieces[0] = None
    pieces.append(pieces)


def longer(pieces: list[Any]) -> None:
    pieces.extend([b"z"] * 10_000)


TAMPER: dict[str, Callable[[list[Any]], Any]] = {
    "none": of_none,
    "clear": list.clear,
    "bytes": of_bytes,
    "pop": list.pop,
    "reverse": list.reverse,
    "longer": longer,
    "twice": lambda pieces: pieces.extend(pieces),
    "itself": lambda pieces: pieces.insert(0, pieces),
}


@pytest.mark.parametrize("how", TAMPER)
def test_callbacks_that_change_their_list(tcpreasm: ModuleType, how: str) -> None:
    """It is theirs: what was delivered counts as delivered, and the next call is right."""

    class Tamperer(RecordedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)
            TAMPER[how](reassemblies)

    rig = opened(tcpreasm, recorder=Recorder(stream=Tamperer))
    for seq in range(1000, 1080, 4):
        assert rig.segment(seq, b"abcd") == [got(piece(b"abcd"))]
    rig.segment(1084, b"early")
    rig.segment(1089, b"x" * 4000)
    assert rig.segment(1080, b"abcd") == [got(piece(b"abcd"), piece(b"early"), *(piece(b"x" * size) for size in (1900, 1900, 200)))]
    rig.segment(6000, b"held")
    rig.segment(70_000, b"new", syn=True)
    assert rig.segment(70_004, b"er") == [
        got(piece(b"held", skip=911)),
        complete(),
        new(),
        got(piece(start=True), piece(b"new"), piece(b"er")),
    ]
    rig.segment(70_010, b"", fin=True)
    assert rig.flush_all() == (1, [got(piece(skip=4, end=True)), complete()])


def deliver(rig: Rig) -> bytes:
    """Bytes from packets and from pages, much of it, and everything is kept. Returns what was sent."""
    for seq in range(1000, 101_000, 5000):
        rig.segment(seq + 2500, bytes([seq // 5000]) * 2500)
        rig.segment(seq, bytes([seq // 5000 + 100]) * 2500)
    return b"".join(bytes([seq // 5000 + 100]) * 2500 + bytes([seq // 5000]) * 2500 for seq in range(1000, 101_000, 5000))


@pytest.mark.parametrize("how", TAMPER)
def test_pieces_held_stay_valid_when_their_list_is_changed(tcpreasm: ModuleType, how: str) -> None:
    views: list[memoryview] = []

    class Tamperer(RecordedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)
            views.extend(memoryview(r) for r in reassemblies)
            TAMPER[how](reassemblies)

    recorder = Recorder(keep=True, stream=Tamperer)
    rig = opened(tcpreasm, recorder=recorder)
    sent = deliver(rig)
    rig.flush_all()
    again = opened(tcpreasm)
    deliver(again)
    assert b"".join(bytes(r) for r in recorder.kept) == b"".join(bytes(view) for view in views) == sent
    assert [r.skip for r in recorder.kept] == [0] * len(recorder.kept)


def test_a_list_held_stays_what_it_was(tcpreasm: ModuleType) -> None:
    """No call gets a list that another one had."""
    lists: list[list[Any]] = []

    class Keeper(RecordedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)
            lists.append(reassemblies)

    rig = opened(tcpreasm, recorder=Recorder(stream=Keeper))
    sent = deliver(rig)
    assert rig.flush_all() == (1, [complete()])
    assert len({id(pieces) for pieces in lists}) == 21
    assert [len(pieces) for pieces in lists] == [1] + [3] * 20  # what came late, and the two pages behind it
    assert b"".join(bytes(r) for pieces in lists for r in pieces) == sent


def test_a_reassembly_is_made_once(tcpreasm: ModuleType) -> None:
    """Made again, it would free the bytes that views of it look at. (In the reference it is what bytes are, and has no `__init__`.)"""
    recorder = Recorder(keep=True)
    rig = opened(tcpreasm, recorder=recorder)
    data = bytes(range(256)) * 1200
    rig.segment(1000 + len(data), data[:1900])  # held in a page
    rig.segment(1000, data)  # delivered from where it lies
    own = tcpreasm.Reassembly(data, 5, True, True, 7)
    pieces = [*recorder.kept[1:], own]
    assert [len(r) for r in pieces] == [len(data), 1900, len(data)]
    views = [memoryview(r) for r in pieces]
    expected = [data, data[:1900], data]
    del data
    rig.flush_all()
    for r in pieces:
        if tcpreasm.implementation == "compiled":
            with pytest.raises(TypeError, match="a Reassembly is made once"):
                r.__init__(b"")
        else:
            r.__init__(b"")
    junk = [b"Z" * 307_200 for _ in range(10)]
    assert [bytes(view) for view in views] == expected
    assert [bytes(r) for r in pieces] == [r.bytes for r in pieces] == expected
    assert (own.skip, own.start, own.end, own.seen_ns, len(junk)) == (5, True, True, 7, 10)


# -- forged objects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 17, 36, 4000, 1 << 20])
def test_a_connection_with_absurd_addresses(both: tuple[ModuleType, ModuleType], size: int) -> None:
    """They would be written over what lies behind the key. (The reference keeps what it is given.)"""
    connection = both[0].Connection()
    for src, dst in ((b"x" * size, b"y" * size), (bytes(4), b"y" * size), (b"x" * size, bytes(4)), (bytes(4), bytes(16))):
        with pytest.raises(ValueError, match="packed addresses have 4 or 16 bytes, not "):
            connection.reset((src, dst, 0, 0, 0), 0)
    connection.reset((bytes(4), bytes(4), 1, 2, 0), 3)
    assert (str(connection.key), connection.created_ns) == ("0.0.0.0:1->0.0.0.0:2", 3)


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        (b"x" * 100_000, None),
        (None, b"x" * 100_000),
        (b"x" * 100_000, b"y" * 100_000),
        (b"", b""),
        (b"12345", b"12345"),
        (None, bytes(16)),
        (7, 7),
        ("10.0.0.1", None),
        (bytearray(4), bytearray(4)),
    ],
    ids=["src", "dst", "both", "empty", "five", "mixed", "ports", "text", "writable"],
)
def test_a_forged_flow_is_refused(tcpreasm: ModuleType, src: Any, dst: Any) -> None:
    """As if it had not come: nothing is opened, nothing counted."""
    rig = Rig(tcpreasm)
    forged = tcpreasm.Flow("10.0.0.1", "10.0.0.2")
    for name, value in (("raw_src", src), ("raw_dst", dst)):
        if value is not None:
            object.__setattr__(forged, name, value)
    for flags in ({"syn": True}, {}, {"fin": True}):
        with pytest.raises((TypeError, ValueError)):
            rig.assembler.assemble(forged, segment(tcpreasm, 999, b"abc", **flags), timestamp_ns=0)
    assert rig.taken() == []
    assert (len(rig.pool), rig.assembler.stats.segments) == (0, 0)
    assert rig.segment(999, syn=True) == [new(), got(piece(start=True))]


# -- memory runs out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a hole is filled", "a flush", "begun anew", "evicted"])
def test_without_memory_no_page_goes_astray(both: tuple[ModuleType, ModuleType], how: str) -> None:
    """Any one of the next allocations fails while forty pages go out: MemoryError, and what is held then can all be given back. (The
    reference leaves that to the interpreter.)"""
    package = both[0]
    testcapi = pytest.importorskip("_testcapi")
    raised = 0
    for nth in range(60):
        rig = Rig(package, max_connections=1)
        rig.segment(999, syn=True)
        for i in range(40):
            rig.segment(1001 + (i if how == "a hole is filled" else 2 * i), b"x")
        rig.segment(70_000, b"text of a SYN", syn=True)
        calls: dict[str, tuple[Ends, int]] = {"a hole is filled": (ENDS, 1000), "begun anew": (ENDS, 70_014), "evicted": (number(1), 1000)}
        ends, seq = calls.get(how, (ENDS, 0))
        flow, tcp = package.Flow(ends[0], ends[2]), segment(package, seq, b"!", ends=ends)
        testcapi.set_nomemory(nth, nth + 1)
        try:
            if how == "a flush":
                rig.assembler.flush_ns(None, False)
            else:
                rig.assembler.assemble(flow, tcp, timestamp_ns=0)
        except MemoryError:
            raised += 1
        finally:
            testcapi.remove_mem_hooks()
        rig.assembler.flush_all()
        stats = rig.assembler.stats
        assert (stats.pages_used, stats.bytes_held, len(rig.pool)) == (0, 0, 0), nth
        rig.recorder.take()
        for at in (0, 3, 1, 2):
            rig.send(segment(package, 1000 + at, b"%d" % at, ends=number(2)), ends=number(2))
        rig.assembler.flush_all()
        assert rig.recorder.data(number(2)) == b"0123"
    assert raised > 10


# -- pages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [2**22 + 1])
def test_a_cache_of_too_many_pages(tcpreasm: ModuleType, initial: int) -> None:
    with pytest.raises(ValueError, match=f"a cache begins with 1 to 4194304 pages, not {initial}"):
        tcpreasm.PageCache(initial)


def test_a_cache_of_more_than_4_gib_at_its_last_page(both: tuple[ModuleType, ModuleType]) -> None:
    """Its bytes are further than 2**32 behind the first ones: 4.7 GB, of which the pages' headers and three pages are touched. (The
    reference has no such sum.)"""
    package = both[0]
    try:
        cache = package.PageCache(2_300_000)
    except MemoryError:
        pytest.skip("this machine does not give 4.7 GB of address space")
    pages = [cache.take(0) for _ in range(3)]  # the last one comes first
    for index, page in enumerate(pages):
        page.hold(bytes([index]) * 1900)
    assert [page.bytes for page in pages] == [bytes([index]) * 1900 for index in range(3)]
    assert (cache.size, cache.used, cache.held_bytes) == (2_300_000, 3, 5700)


def given_up(package: ModuleType, count: int = 3) -> tuple[Any, list[Any]]:
    """A cache that began with one page and has let go of the others, and the handles on all of them."""
    cache = package.PageCache(1)
    pages = [cache.take(0) for _ in range(count)]
    for page in pages:
        page.hold(b"x" * 1900)
    for page in pages:
        cache.give_back(page)
    assert cache.shrink() == count - 1
    return cache, pages


def test_a_page_given_back_twice(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(4)
    page = cache.take(0)
    cache.give_back(page)
    for _ in range(2):
        with pytest.raises(ValueError, match="this page is free already"):
            cache.give_back(page)
    assert cache.used == 0
    one, other = cache.take(0), cache.take(0)
    assert one != other
    assert (cache.used, cache.size) == (2, 4)


def test_handles_on_pages_that_were_let_go(tcpreasm: ModuleType) -> None:
    cache, pages = given_up(tcpreasm, 1 + 2 + 4 + 8)
    junk = [bytes(4096) for _ in range(1000)]
    for page in pages:
        with pytest.raises(ValueError, match="this page is free"):
            page.hold(b"Z" * 1900)
        with pytest.raises(ValueError, match="this page is free already"):
            cache.give_back(page)
        assert bytes(page.bytes) in (b"", b"x" * 1900)
    assert not any(map(any, junk))
    assert (cache.used, cache.held_bytes, cache.size) == (0, 0, 1)
    assert cache.take(0).bytes == b""


def test_pages_that_were_let_go_stay_out_of_every_list(both: tuple[ModuleType, ModuleType]) -> None:
    """The compiled core: what a caller does with a handle is checked. (The reference has nothing that it could damage.)"""
    _, pages = given_up(both[0])
    linked = both[0].PageList()
    for page in pages:
        with pytest.raises(ValueError, match="this page is free"):
            linked.push_between(None, None, page, page)
        for name, value in (("seq", 5), ("missing", 5), ("prev", None), ("next", None)):
            with pytest.raises(ValueError, match="this page is free"):
                setattr(page, name, value)
    assert len(linked) == 0


NEIGHBOURS = """
cache = t.PageCache(1)
pages = [cache.take(0) for _ in range(16383)]
for page in pages:
    cache.give_back(page)
print(cache.shrink())
for page in pages:
    for name in ("prev", "next"):
        try:
            getattr(page, name)
        except ValueError:
            pass
"""
NEIGHBOURS_OF_ANOTHER_CHUNK = """
cache = t.PageCache(4096)
pages = [cache.take(0) for _ in range(4097)]
for page in pages:
    cache.give_back(page)
print(cache.shrink())
pages = [cache.take(0) for _ in range(4097)]
try:
    page = page.prev or page
except ValueError:
    pass
page.bytes, page.seq, page.end
"""


@pytest.mark.parametrize(("code", "let_go"), [(NEIGHBOURS, 16382), (NEIGHBOURS_OF_ANOTHER_CHUNK, 8192)], ids=["all", "anew"])
def test_neighbours_of_pages_that_were_let_go(tcpreasm: ModuleType, code: str, let_go: int) -> None:
    """A handle keeps its own memory: asked for its neighbours it gives none, or valid ones, or refuses."""
    assert child(tcpreasm, code) == f"{let_go}\n"


# -- clocks -------------------------------------------------------------------------------------------------------------


def close_one(rig: Rig, ends: tuple[str, int, str, int], at: float) -> None:
    calls = rig.segment(0, b"data", syn=True, fin=True, at=at, ends=ends)
    assert calls == [new(ends), got(piece(b"data", start=True, end=True, at=at), ends=ends), complete(ends)]


def test_two_packets_two_hours_ahead_forget_no_closed_connection(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    close_one(rig, number(1), 1)
    rig.segment(0, syn=True, at=7300, ends=number(2))
    rig.segment(0, syn=True, at=7300.1, ends=number(2))
    assert rig.assembler.now_ns() == to_ns(7300)
    assert rig.segment(1, b"data", at=7300.2, ends=number(1)) == []
    assert rig.dropped == {"after_close": 4}
    for at in (7330, 7359):
        rig.segment(0, syn=True, at=at, ends=number(2))
        assert rig.segment(1, b"data", at=at, ends=number(1)) == []
    rig.segment(0, syn=True, at=7361, ends=number(2))  # the time-out's length after the change
    assert rig.segment(1, b"data", at=7361, ends=number(1)) == [new(number(1))]


def ahead_and_back(rig: Rig, year: float = 3.15e7) -> None:
    """A clock that was a year ahead for a few packets; number(3) was closed in that time. It is second 3 then."""
    for at in (1, year, year + 1):
        rig.segment(0, syn=True, at=at, ends=number(2))
    close_one(rig, number(3), year + 2)
    for at in (2, 3):
        rig.segment(0, syn=True, at=at, ends=number(2))
    assert rig.assembler.now_ns() == to_ns(3)


def test_a_connection_closed_while_the_clock_was_ahead_is_forgotten(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    ahead_and_back(rig)
    for at in (3, 30, 60, 63):
        rig.segment(0, syn=True, at=at, ends=number(2))
        assert rig.segment(1, b"late", at=at, ends=number(3)) == []
    rig.segment(0, syn=True, at=63.1, ends=number(2))
    assert rig.segment(1, b"late", at=63.1, ends=number(3)) == [new(number(3))]


def test_a_connection_closed_while_the_clock_was_ahead_keeps_no_others(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """1500 connections, closed a tenth of a second after each other: the pool's first 1024 are enough, since 600 are remembered."""
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        ahead_and_back(rig)
        for index in range(1500):
            close_one(rig, number(100 + index), 3 + 0.1 * index)
    grown = [record.getMessage() for record in caplog.records if "connections added" in record.getMessage()]
    assert grown == ["stream pool: 1024 connections added"]


@pytest.mark.parametrize("steps", [(-LAST_NS, LAST_NS), (LAST_NS, -LAST_NS)], ids=["ahead", "back"])
def test_times_at_both_ends(tcpreasm: ModuleType, steps: tuple[int, int]) -> None:
    """Differences of two times stay exact, and nothing expires by the setting of a clock."""
    one, other = steps
    rig = Rig(tcpreasm)
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")

    def send(seq: int, data: bytes, seen_ns: int, **flags: bool) -> list[Call]:
        rig.assembler.assemble(flow, segment(tcpreasm, seq, data, **flags), timestamp_ns=seen_ns)
        return rig.taken(one_segment=True)

    assert send(999, b"", one, syn=True) == [new(), ("reassembled", key_of(), [(b"", 0, True, False, one)])]
    assert send(1003, b"held", one) == []
    for _ in range(3):
        assert send(999, b"", other, syn=True) == []
        rig.assembler.expire()
        assert rig.taken() == []
    assert rig.assembler.now_ns() == other
    assert send(1000, b"abc", other) == [
        ("reassembled", key_of(), [(b"abc", 0, False, False, other), (b"held", 0, False, False, one)]),
    ]
    assert rig.assembler.assemble_frame(frame(1007, b"!"), timestamp_ns=one) == tcpreasm.Verdict.SEGMENT
    assert rig.taken() == [("reassembled", key_of(), [(b"!", 0, False, False, one)])]
    rig.recorder.keep = True
    send(1008, b"?", other)
    assert rig.recorder.kept[0].seen_ns == other
    assert rig.recorder.kept[0].seen == other / 1e9
    assert rig.flush_all() == (1, [complete()])


@pytest.mark.parametrize("beyond", [LAST_NS + 1, -LAST_NS - 1, 2**63, -(2**63), 2**64, 2**200, -(2**200)])
def test_times_beyond_both_ends(tcpreasm: ModuleType, beyond: int) -> None:
    rig = opened(tcpreasm)
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")
    calls: list[Callable[[], object]] = [
        lambda: rig.assembler.assemble(flow, segment(tcpreasm, 1000, b"abc"), timestamp_ns=beyond),
        lambda: rig.assembler.assemble_frame(frame(1000, b"abc"), timestamp_ns=beyond),
        lambda: rig.assembler.assemble(flow, segment(tcpreasm, 1000, b"abc"), beyond / 1e9 * 1.001),
        lambda: rig.assembler.flush_older_than(beyond / 1e9 * 1.001),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^(t|timestamp|timestamp_ns) lies less than 2\*\*62 ns from 1970"):
            call()
    assert rig.taken() == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]


def test_every_datetime_is_within_or_refused(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1010, b"held")
    utc = timezone.utc
    for moment in (datetime.min.replace(tzinfo=utc), datetime.max.replace(tzinfo=utc)):
        with pytest.raises(ValueError, match=r"^t lies less than 2\*\*62 ns from 1970"):
            rig.assembler.flush_older_than(moment)
    assert rig.flush_older_than(datetime(1830, 1, 1, tzinfo=utc)) == ((0, 0), [])
    assert rig.flush_older_than(datetime(2110, 1, 1, tzinfo=utc)) == ((1, 1), [got(piece(b"held", skip=10)), complete()])


@pytest.mark.parametrize("t", [None, "1", b"1", True, [], object()])
def test_flush_older_than_wants_a_time(tcpreasm: ModuleType, t: Any) -> None:
    """None is not: everything. It would close all that a caller who has no time yet still needs."""
    rig = opened(tcpreasm)
    rig.segment(1010, b"held")
    with pytest.raises(TypeError):
        rig.assembler.flush_older_than(t)
    assert rig.taken() == []
    assert rig.segment(1000, b"0123456789") == [got(piece(b"0123456789"), piece(b"held"))]


# -- callbacks and finalisers that come back ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flush_all", "flush_older_than", "close_all"])
def test_a_flush_from_a_callback_through_another_assembler_serves_all_other_connections(tcpreasm: ModuleType, how: str) -> None:
    rig = Rig(tcpreasm)
    rig.shared = True
    other = tcpreasm.Assembler(rig.pool)
    for index in range(1, 5):
        rig.segment(0, syn=True, ends=number(index))
        rig.segment(11, b"held", ends=number(index))
    rig.segment(101, b"more", ends=number(1))
    results: list[Any] = []
    flushes: dict[str, Callable[[], Any]] = {
        "flush_all": other.flush_all,
        "flush_older_than": lambda: other.flush_older_than(5),
        "close_all": lambda: other.flush_with_options(tcpreasm.FlushOptions(close_all=True)),
    }

    def once() -> None:
        del rig.recorder.plan["reassembled"]
        results.append(flushes[how]())

    rig.recorder.plan["reassembled"] = once
    rig.send(segment(tcpreasm, 1, b"0123456789", ends=number(1)), ends=number(1))
    expected = [got(piece(b"0123456789"), piece(b"held"), ends=number(1))]
    for index in range(2, 5):
        expected += [got(piece(b"held", skip=10), ends=number(index)), complete(number(index))]
    assert rig.recorder.take() == expected
    assert results == [3 if how == "flush_all" else (3, 3)]
    assert [str(key) for key in rig.pool.keys()] == [key_of(number(1))]  # noqa: SIM118
    assert rig.segment(15, b"!", ends=number(1)) == [got(piece(b"!"), ends=number(1))]
    assert rig.assembler.flush_all() == 1
    assert rig.recorder.take() == [got(piece(b"more", skip=85), ends=number(1)), complete(number(1))]
    stats = [rig.assembler.stats, other.stats]
    assert sum(s.bytes_captured for s in stats) == sum(s.bytes_delivered + s.bytes_dropped for s in stats) == 4 * 4 + 10 + 4 + 1
    assert [(s.bytes_held, s.pages_used) for s in stats] == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), ValueError()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("call", ["reassembled", "complete"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupt_during_a_flush_is_raised_when_all_others_are_served(
    tcpreasm: ModuleType, at: int, call: str, error: BaseException
) -> None:
    rig = Rig(tcpreasm)
    for index in range(3):
        rig.segment(0, syn=True, ends=number(index))
        rig.segment(5, b"early", ends=number(index))

    def interrupt() -> None:
        if rig.recorder.calls[-1][1] == key_of(number(at)):
            raise error

    rig.recorder.plan[call] = interrupt
    with pytest.raises(type(error)) as caught:
        rig.assembler.flush_all()
    assert caught.value is error
    expected: list[Call] = []
    for index in range(3):
        expected += [got(piece(b"early", skip=4), ends=number(index)), complete(number(index))]
    assert rig.taken() == expected
    stats = rig.assembler.stats
    assert (len(rig.pool), stats.bytes_held, stats.pages_used, stats.streams_closed) == (0, 0, 0, 3)


def test_of_two_interrupts_during_a_flush_the_first_is_raised(tcpreasm: ModuleType) -> None:
    class Loud(RecordedStream):
        def reassembly_complete(self) -> None:
            super().reassembly_complete()
            raise KeyboardInterrupt(self.key)

    rig = Rig(tcpreasm, Recorder(stream=Loud))
    for index in range(3):
        rig.segment(0, syn=True, ends=number(index))
    with pytest.raises(KeyboardInterrupt, match=key_of(number(0))):
        rig.assembler.flush_all()
    assert [call for call in rig.taken() if call[0] == "complete"] == [complete(number(index)) for index in range(3)]


@pytest.mark.parametrize("second", ["new", "reassembled", "complete"])
@pytest.mark.parametrize("first", ["reassembled", "complete"])
def test_old_and_new_stream_both_raise_in_one_call(tcpreasm: ModuleType, first: str, second: str) -> None:
    """The second is raised, the first is its context: neither is lost. All calls are made."""
    errors = Bang("of the old stream"), LookupError("of the new stream")

    class Loud(RecordedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)
            self.bang("reassembled")

        def reassembly_complete(self) -> None:
            super().reassembly_complete()
            self.bang("complete")

        def bang(self, call: str) -> None:
            index = self.recorder.streams.index(self)
            if armed and call == (first, second)[index]:
                raise errors[index]

    armed = False
    rig = opened(tcpreasm, recorder=Recorder(stream=Loud))
    rig.segment(1010, b"held")
    rig.segment(70_000, syn=True)
    armed = True
    if second == "new":
        rig.recorder.plan["new"] = errors[1]
    with pytest.raises(LookupError) as caught:
        rig.send(segment(tcpreasm, 70_001, b"new", fin=True))
    assert caught.value is errors[1]
    assert caught.value.__context__ is errors[0]
    served = [] if second == "new" else [got(piece(start=True), piece(b"new", end=True)), complete()]
    assert rig.taken() == [got(piece(b"held", skip=10)), complete(), new(), *served]
    assert len(rig.pool) == 0
    assert rig.dropped == ({"factory_error": 3} if second == "new" else {})


def test_old_and_new_stream_raise_the_same_exception(tcpreasm: ModuleType) -> None:
    """Which is not its own context."""
    error = Bang()

    class Loud(RecordedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)
            raise error

    rig = Rig(tcpreasm, Recorder(stream=Loud), start_wait_segments=None, start_wait=None)
    assert rig.segment(10**9, b"mid") == [new()]
    with pytest.raises(Bang) as caught:
        rig.send(segment(tcpreasm, 0, syn=True))
    assert caught.value is error
    assert error.__context__ is None
    assert rig.taken() == [got(piece(b"mid", skip=-1)), complete(), new(), got(piece(start=True))]


def test_a_stream_whose_finaliser_asks_the_pool_does_not_hang(tcpreasm: ModuleType) -> None:
    """The pool holds the last reference to a stream: it must not let go of it under its own lock."""
    asked: list[tuple[int, int]] = []

    class Asking:
        def __init__(self, net_flow: Any, transport_flow: Any) -> None: ...
        def reassembled(self, reassemblies: list[Any]) -> None: ...
        def reassembly_complete(self) -> None: ...
        def __del__(self) -> None:
            asked.append((len(pool), len(pool.keys())))

    pool = tcpreasm.StreamPool(Asking)
    assembler = tcpreasm.Assembler(pool)
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")

    def send(seq: int, data: bytes = b"", at: float = 0, **flags: bool) -> None:
        assembler.assemble(flow, segment(tcpreasm, seq, data, **flags), at)

    def work() -> None:
        send(0, syn=True)
        assembler.flush_all()  # removed
        send(0, b"x", syn=True, fin=True)  # closed, and remembered
        send(70_000, syn=True)  # opened again
        send(700_000, syn=True)
        send(700_001, b"x")  # begun anew
        assembler.close()

    within(20, work)
    assert len(asked) == 4
    assert asked[0] == (0, 0)


def test_finalisers_that_the_collector_runs_while_the_pool_grows(tcpreasm: ModuleType) -> None:
    """They ask the pool in the midst of its allocating."""
    asked: list[int] = []

    class Asking:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            asked.append(len(rig.pool.keys()) - len(rig.pool))

    rig = Rig(tcpreasm)

    def work() -> None:
        for index in range(2100):
            if index in (1023, 1024, 1025, 1537, 2047, 2048, 2049):
                Asking()
                gc.set_threshold(1, 1, 1)
            rig.segment(0, syn=True, ends=number(index))
            gc.set_threshold(*threshold)

    threshold = gc.get_threshold()
    try:
        within(20, work)
    finally:
        gc.set_threshold(*threshold)
    assert len(rig.pool) == 2100
    gc.collect()
    assert asked == [0] * 7


@pytest.mark.parametrize("at", range(1, 13))
def test_who_comes_in_while_the_pool_grows_makes_no_second_connection_for_a_key(tcpreasm: ModuleType, at: int) -> None:
    """A finaliser hands a segment to another assembler of the pool, at the `at`th collection while one is taken in by the first."""
    rig = Rig(tcpreasm)
    rig.shared = True
    other = tcpreasm.Assembler(rig.pool)
    flow = tcpreasm.Flow(number(5000)[0], number(5000)[2])
    for index in range(1024):
        rig.segment(0, syn=True, ends=number(index))
    mine, others = (segment(tcpreasm, 0, syn=True, ends=number(5000)) for _ in range(2))
    left = [at]

    def come_in(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                with contextlib.suppress(RuntimeError):  # refused while the very connection is being served
                    other.assemble(flow, others, timestamp_ns=0)

    threshold = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(come_in)
    gc.set_threshold(1, 1, 1)
    try:
        rig.assembler.assemble(flow, mine, timestamp_ns=0)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(come_in)
    assert [call for call in rig.recorder.take() if call[0] == "new"] == [new(number(5000))]
    assert len(rig.pool) == len(set(rig.pool.keys())) == 1025
    assert rig.assembler.flush_all() == 1025
    assert [stream.completed for stream in rig.recorder.streams] == [1] * 1025


# -- what the capture cut off -------------------------------------------------------------------------------------------


def test_a_remembered_syn_whose_text_was_cut_off_gives_the_gap_at_once(tcpreasm: ModuleType) -> None:
    """As the same SYN does that comes first."""
    rig = opened(tcpreasm, 0)
    assert rig.segment(1, b"old") == [got(piece(b"old"))]
    assert rig.segment(500_000_000, syn=True, wire=100) == []
    behind = [new(), got(piece(start=True), piece(b"behind the cut", skip=100))]
    assert rig.segment(500_000_101, b"behind the cut") == [complete(), *behind]
    assert (rig.assembler.stats.bytes_held, rig.assembler.stats.bytes_skipped) == (0, 100)
    first = Rig(tcpreasm)
    calls = first.segment(500_000_000, syn=True, wire=100) + first.segment(500_000_101, b"behind the cut")
    assert calls == [new(), got(piece(start=True)), got(piece(b"behind the cut", skip=100))]


def test_a_remembered_syn_whose_text_was_cut_off_in_the_middle(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, 0)
    assert rig.segment(500_000_000, b"0123456789", syn=True, wire=100) == []
    assert rig.segment(500_000_101, b"behind") == [
        complete(),
        new(),
        got(piece(start=True), piece(b"0123456789"), piece(b"behind", skip=90)),
    ]


def claiming(ends: tuple[str, int, str, int], seq: int, payload: bytes, more: int) -> bytes:
    """A frame whose IP header tells of more bytes than are there."""
    packet = bytearray(frame(seq, payload, ends=ends))
    at = 18 if ":" in ends[0] else 16
    packet[at : at + 2] = (int.from_bytes(packet[at : at + 2], "big") + more).to_bytes(2, "big")
    return bytes(packet)


IPS = pytest.mark.parametrize("ends", [number(1), ENDS6], ids=["IPv4", "IPv6"])


@IPS
@pytest.mark.parametrize("told", [True, False])
def test_an_ip_header_that_claims_more_than_the_frame_had_makes_no_gap(
    tcpreasm: ModuleType, ends: tuple[str, int, str, int], told: bool
) -> None:
    """Nothing was cut off: the bytes may still come, and those behind them wait."""
    rig = Rig(tcpreasm)
    rig.frame(frame(999, flags=2, ends=ends))
    packet = claiming(ends, 1000, b"abc", 50)
    assert rig.frame(packet, wire_length=len(packet) if told else None) == [got(piece(b"abc"), ends=ends)]
    assert rig.frame(frame(1053, b"behind", ends=ends)) == []
    assert rig.frame(frame(1003, b"-" * 50, ends=ends)) == [got(piece(b"-" * 50), piece(b"behind"), ends=ends)]
    assert (rig.dropped, rig.assembler.stats.bytes_skipped) == ({}, 0)


@IPS
def test_an_ip_header_that_claims_more_than_the_wire_had_is_a_gap_as_long_as_the_wire_tells(
    tcpreasm: ModuleType, ends: tuple[str, int, str, int]
) -> None:
    rig = Rig(tcpreasm)
    rig.frame(frame(999, flags=2, ends=ends))
    packet = claiming(ends, 1000, b"abc", 50)
    assert rig.frame(packet, wire_length=len(packet) + 20) == [got(piece(b"abc"), ends=ends)]
    assert rig.frame(frame(1023, b"behind", ends=ends)) == [got(piece(b"behind", skip=20), ends=ends)]


@IPS
@pytest.mark.parametrize("wire_more", [50, 60, 1000])
def test_what_the_capture_cut_off_is_a_gap_at_once(tcpreasm: ModuleType, ends: tuple[str, int, str, int], wire_more: int) -> None:
    rig = Rig(tcpreasm)
    rig.frame(frame(999, flags=2, ends=ends))
    packet = claiming(ends, 1000, b"abc", 50)
    assert rig.frame(packet, wire_length=len(packet) + wire_more) == [got(piece(b"abc"), ends=ends)]
    assert rig.frame(frame(1053, b"behind", ends=ends)) == [got(piece(b"behind", skip=50), ends=ends)]
    assert rig.assembler.stats.bytes_skipped == 50


def test_a_rst_before_the_start_behind_cut_payload(tcpreasm: ModuleType) -> None:
    """It stands behind what was sent, not behind what was captured."""
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"0123456789", wire=20) == [new()]
    for seq in (1000, 1009, 1010, 1011, 1019, 1021):
        assert rig.segment(seq, rst=True) == []
    assert rig.assembler.stats.rst_ignored == 6
    assert rig.segment(1020, rst=True) == [got(piece(b"0123456789", skip=-1), piece(skip=10, end=True)), complete()]
    assert (rig.assembler.stats.bytes_skipped, len(rig.pool)) == (10, 0)


def test_a_rst_before_the_start_behind_the_highest_of_several(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, b"0123456789", wire=40)
    rig.segment(1020, b"x")
    rig.segment(990, b"y")
    for seq in (991, 1010, 1021):
        assert rig.segment(seq, rst=True) == []
    assert rig.segment(1040, rst=True) == [
        got(piece(b"y", skip=-1)),
    ]
    assert rig.segment(991, b"-" * 9) == [
        got(piece(b"-" * 9), piece(b"0123456789"), piece(b"x", skip=10), piece(skip=19, end=True)),
        complete(),
    ]


def test_a_rst_before_the_start_in_frames_that_were_cut(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    packet = frame(1000, b"0" * 20)
    assert rig.frame(packet[:-10], wire_length=len(packet)) == [new()]
    assert rig.frame(frame(1010, flags=RST)) == []
    assert rig.frame(frame(1020, flags=RST)) == [got(piece(b"0" * 10, skip=-1), piece(skip=10, end=True)), complete()]


# -- ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isn", [999, 500_000, HALF + 490])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_pending_fin_below_a_syn_does_not_swallow_the_stream(tcpreasm: ModuleType, emptied: bool, isn: int) -> None:
    """It belongs to what was sent before: that is over, and the SYN begins anew."""
    rig = Rig(tcpreasm)
    if emptied:  # the FIN cuts off all that was held, and stands alone
        assert rig.segment(500, b"abc") == [new()]
        assert rig.segment(500, fin=True) == []
        old = [got(piece(skip=-1, end=True)), complete()]
    else:
        assert rig.segment(497, b"old", fin=True) == [new()]
        old = [got(piece(b"old", skip=-1, end=True)), complete()]
    assert rig.dropped == ({"after_end": 3} if emptied else {})
    assert rig.segment(isn, syn=True) == [*old, new(), got(piece(start=True))]
    assert rig.segment(isn + 1, b"the stream") == [got(piece(b"the stream"))]
    assert rig.segment(isn + 11, b"", fin=True) == [got(piece(end=True)), complete()]


@pytest.mark.parametrize("emptied", [False, True])
def test_a_pending_fin_above_a_syn_is_that_streams_end(tcpreasm: ModuleType, emptied: bool) -> None:
    rig = Rig(tcpreasm)
    rig.segment(500, b"abc")
    rig.segment(500 if emptied else 503, fin=True)
    assert rig.segment(489, syn=True) == [new(), got(piece(start=True))][1:]
    tail = [piece(b"0123456789", end=True)] if emptied else [piece(b"0123456789"), piece(b"abc", end=True)]
    assert rig.segment(490, b"0123456789") == [got(*tail), complete()]


def test_a_cut_over_a_fin_that_came_early(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1010, fin=True) == []
    assert rig.segment(1000, b"abc", wire=50) == [got(piece(b"abc"), piece(skip=7, end=True)), complete()]
    assert rig.assembler.stats.bytes_skipped == 7


def test_a_cut_of_held_bytes_over_a_fin_that_comes_later(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1005, b"x", wire=100) == []
    assert rig.segment(1020, fin=True) == []
    assert rig.segment(1000, b"01234") == [got(piece(b"01234"), piece(b"x"), piece(skip=14, end=True)), complete()]


@pytest.mark.parametrize("syn", [True, False])
def test_a_cut_that_reaches_over_other_held_bytes_and_a_fin(tcpreasm: ModuleType, syn: bool) -> None:
    """The FIN cuts what is held last; the cut stands on a page before that."""
    rig = opened(tcpreasm) if syn else Rig(tcpreasm)
    rig.segment(1005, b"x", wire=100)
    rig.segment(1008, b"y")
    assert rig.segment(1020, fin=True) == []
    tail = [piece(b"y", skip=2), piece(skip=11, end=True)]
    if syn:
        assert rig.segment(1000, b"01234") == [got(piece(b"01234"), piece(b"x"), *tail), complete()]
    else:
        assert rig.flush() == ((1, 1), [got(piece(b"x", skip=-1), *tail), complete()])
    assert rig.assembler.stats.bytes_skipped == 13


def test_a_cut_of_held_bytes_over_a_fin_within_what_was_captured(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1005, b"56789", wire=100) == []
    assert rig.segment(1008, fin=True) == []
    assert rig.dropped == {"after_end": 2}
    assert rig.segment(1000, b"01234") == [got(piece(b"01234"), piece(b"567", end=True)), complete()]


def test_a_cut_before_the_start_over_a_fin(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"abc", wire=50) == [new()]
    assert rig.segment(1010, fin=True) == []
    assert rig.flush() == ((1, 1), [got(piece(b"abc", skip=-1), piece(skip=7, end=True)), complete()])


def test_a_cut_over_a_fin_in_a_retransmission(tcpreasm: ModuleType) -> None:
    """What was delivered counts once, and the cut begins behind what was captured."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"0123")
    rig.segment(1010, fin=True)
    assert rig.segment(1000, b"012345", wire=5000) == [got(piece(b"45"), piece(skip=4, end=True)), complete()]
    assert rig.dropped == {"retransmitted": 4}


def test_a_cut_over_a_fin_in_frames(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.frame(frame(999, flags=2))
    assert rig.frame(frame(1010, flags=16 | FIN)) == []
    packet = frame(1000, b"0" * 40)
    assert rig.frame(packet[:-37], wire_length=len(packet)) == [got(piece(b"000"), piece(skip=7, end=True)), complete()]
