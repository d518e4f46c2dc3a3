"""What the package promises, by number: at least one test for each that fails when the promise is broken.

 1 sequence arithmetic          6 skip, start, end, seen      11 bytes stay what they were
 2 what changes nothing         7 overlaps                    12 every byte is accounted for
 3 no copy in order             8 ends and SYNs               13 nothing raises but the caller's errors
 4 order and cost               9 streams without a start     14 both cores do the same
 5 limits                      10 time is capture time        15 whole captures flush themselves

Promise 12 is checked after each call of every test that uses a Rig, here and in the other files.
"""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import NAMES, REPOSITORY
from recorder import BACK, ENDS, SYN, Call, Ends, Recorder, Rig, complete, frame, got, key_of, new, number, piece, segment, to_ns

GIB = 1 << 30
WRAP = 2**32


def opened(package: ModuleType, isn: int = 999, recorder: Recorder | None = None, **options: Any) -> Rig:
    rig = Rig(package, recorder, **options)
    assert rig.segment(isn, syn=True) == [new(), got(piece(start=True))]
    return rig


def flow(package: ModuleType, ends: Ends = ENDS) -> Any:
    return package.Flow(ends[0], ends[2])


# -- 1: sequence arithmetic is modulo 2**32 -----------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [1, 2**16, GIB - 1, GIB, GIB + 1, 2**31 - 2])
@pytest.mark.parametrize("expected", [0, 1, GIB, 2**31 - 1, 2**31, 3 * GIB, WRAP - 1])
def test_1_ahead_and_behind_at_every_distance(tcpreasm: ModuleType, expected: int, distance: int) -> None:
    rig = opened(tcpreasm, (expected - 1) % WRAP, max_gap=None)
    assert rig.segment(expected - distance, b"b") == []
    assert rig.dropped == {"retransmitted": 1}
    assert rig.segment(expected + distance, b"a") == []
    assert rig.flush() == ((1, 0), [got(piece(b"a", skip=distance))])


# -- 2: what changes nothing, what opens nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"psh": True}, {"urg": True, "urgent": 5}, {"ack_flag": False}, {"window": 5, "ack": 7}])
def test_2_without_flags_and_payload_nothing_changes(tcpreasm: ModuleType, flags: dict[str, Any]) -> None:
    rig = opened(tcpreasm)
    rig.segment(1010, b"held")
    before = rig.assembler.stats
    for seq in (0, 999, 1000, 1005, 1010, 1014, 5000, 1000 + 2**31):
        assert rig.segment(seq, **flags) == []
        assert rig.segment(seq, ends=BACK, **flags) == []
    after = rig.assembler.stats
    assert after.segments == before.segments + 16
    assert after.urgent_segments == before.urgent_segments + 16 * ("urg" in flags)
    for name in set(type(after).__slots__) - {"segments", "urgent_segments"}:
        assert getattr(after, name) == getattr(before, name), name
    assert rig.segment(1000, b"0123456789") == [got(piece(b"0123456789"), piece(b"held"))]


def test_2_without_syn_or_payload_no_stream_opens(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for flags in ({"fin": True}, {"rst": True}, {}, {"fin": True, "psh": True}):
        assert rig.segment(1000, **flags) == []  # type: ignore[arg-type]
    assert (len(rig.pool), rig.assembler.stats.streams_opened) == (0, 0)


# -- 3: no copy in order ------------------------------------------------------------------------------------------------


def address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


class Addresses:
    """A stream that notes where its bytes lie while it is served."""

    def __init__(self, net_flow: Any, transport_flow: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        streams.append(self)

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.seen += [(address(memoryview(r)), len(r)) for r in reassemblies if len(r)]

    def reassembly_complete(self) -> None:
        pass


streams: list[Addresses] = []


def test_3_payload_in_order_is_not_copied(both: tuple[ModuleType, ModuleType]) -> None:
    """The compiled core: what the stream sees lies within the very bytes object that was handed in. (The reference copies.)"""
    package = both[0]
    streams.clear()
    assembler = package.Assembler(package.StreamPool(Addresses))
    packets = [frame(999, flags=SYN)] + [frame(1000 + offset, bytes(100)) for offset in range(0, 1000, 100)]
    for packet in packets:
        assembler.assemble_frame(packet, 0)
    assert streams[0].seen == [(address(packet) + len(packet) - 100, 100) for packet in packets[1:]]
    payload = bytes(range(200))
    assembler.assemble(flow(package), segment(package, 2000, payload), 0)
    assembler.assemble(flow(package), segment(package, 2050, payload), 0)
    assert streams[0].seen[-2:] == [(address(payload), 200), (address(payload) + 150, 50)]


def test_3_payload_in_order_is_not_stored(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    for seq in range(1000, 201_000, 1000):
        rig.segment(seq, bytes(1000))
        rig.segment(seq, bytes(1000))
    stats = rig.assembler.stats
    assert (stats.page_requests, stats.pages_used, stats.bytes_held, stats.bytes_delivered) == (0, 0, 0, 200_000)


def test_3_only_what_arrives_early_takes_pages_of_1900_bytes(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    for size, pages in ((1, 1), (1900, 1), (1901, 2), (65_000, 35)):
        before = rig.assembler.stats.page_requests
        rig.segment(1_000_000 + before * 100_000, bytes(size))
        assert rig.assembler.stats.page_requests - before == pages


def test_3_writable_buffers_may_be_written_to_afterwards(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, recorder=Recorder(keep=True))
    packet = bytearray(frame(1000, b"abc"))
    rig.assembler.assemble_frame(packet, 0)
    text = bytearray(b"def")
    rig.send(segment(tcpreasm, 1003, memoryview(text)))  # type: ignore[arg-type]
    packet[:] = bytes(len(packet))
    text[:] = b"xyz"
    assert [bytes(r) for r in rig.recorder.kept] == [b"", b"abc", b"def"]


# -- 4: order (its cost: test_the_tree_stays_flat in test_pages.py) -------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_4_any_order_of_arrival_gives_the_order_of_sequence_numbers(tcpreasm: ModuleType, seed: int) -> None:
    offsets = list(range(1, 3000, 3))
    random.Random(seed).shuffle(offsets)
    rig = opened(tcpreasm, WRAP - 1000)
    for offset in offsets:
        assert rig.segment(WRAP - 999 + offset, b"%3d" % (offset % 1000)) == []
    assert rig.segment(WRAP - 999, b"!") == [got(piece(b"!"), *(piece(b"%3d" % (offset % 1000)) for offset in range(1, 3000, 3)))]


# -- 5: limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_5_a_connection_at_its_limit_stops_waiting(tcpreasm: ModuleType, limit: int) -> None:
    rig = opened(tcpreasm, 0, max_buffered_pages_per_connection=limit)
    for index in range(limit - 1):
        assert rig.segment(11 + 10 * index, b"x") == []
    assert rig.segment(11 + 10 * (limit - 1), b"x") == [got(piece(b"x", skip=10))]
    for index in range(limit, limit + 20):
        assert rig.segment(11 + 10 * index, b"x") == [got(piece(b"x", skip=9))]
        assert rig.assembler.stats.pages_used == limit - 1


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_5_pages_in_all_never_pass_their_limit(tcpreasm: ModuleType, limit: int) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_total=limit)
    generator = random.Random(limit)
    for _ in range(600):
        ends = number(generator.randrange(20))
        rig.segment(generator.randrange(1, 9) * 5000, bytes(generator.randrange(1, 4000)), ends=ends)
        assert rig.assembler.stats.pages_used < max(limit, 1)


def test_5_data_of_remembered_syns_is_within_the_limit_too(tcpreasm: ModuleType) -> None:
    """One forged SYN with data for each open connection must not get past the limit."""
    rig = Rig(tcpreasm, max_buffered_pages_total=10)
    for index in range(100):
        ends = number(index)
        rig.segment(0, syn=True, ends=ends)
        rig.segment(1, b"a", ends=ends)
        rig.segment(9_000_000, bytes(1400), syn=True, ends=ends)
        assert rig.assembler.stats.pages_used <= 10


@pytest.mark.parametrize("limit", [0, 2**31 - 1])
def test_5_no_limit(tcpreasm: ModuleType, limit: int) -> None:
    rig = opened(tcpreasm, 0, max_buffered_pages_total=limit, max_buffered_pages_per_connection=limit)
    for index in range(2000):
        assert rig.segment(11 + 10 * index, b"x") == []


def test_5_defaults(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, 0)
    for seq in range(2, 2 * 16_384, 2):
        rig.send(segment(tcpreasm, seq, b"x"))
    assert rig.taken() == []
    assert rig.segment(2 * 16_384, b"x") == [got(piece(b"x", skip=1))]
    assert tcpreasm.AssemblerOptions().max_buffered_pages_total == 131_072
    assert tcpreasm.AssemblerOptions().max_buffered_bytes_total == 131_072 * 1984
    assert tcpreasm.AssemblerOptions().max_buffered_bytes_per_connection is None


PAGE_MEMORY = [(1, 96), (16, 96), (17, 512), (432, 512), (433, 1984), (1900, 1984), (1901, 1984 + 96), (1900 + 17, 1984 + 512)]


@pytest.mark.parametrize(("size", "memory"), PAGE_MEMORY)
def test_5_memory_is_what_pages_take(tcpreasm: ModuleType, size: int, memory: int) -> None:
    rig = opened(tcpreasm, 0)
    assert rig.segment(11, bytes(size)) == []
    assert (rig.assembler.stats.bytes_held, rig.assembler.stats.buffered_bytes) == (size, memory)
    parts = [bytes(min(1900, size - at)) for at in range(0, size, 1900)]
    assert rig.segment(1, bytes(10)) == [got(piece(bytes(10)), *map(piece, parts))]
    assert (rig.assembler.stats.bytes_held, rig.assembler.stats.buffered_bytes) == (0, 0)


@pytest.mark.parametrize(("size", "memory"), PAGE_MEMORY)
@pytest.mark.parametrize("name", ["max_buffered_bytes_total", "max_buffered_bytes_per_connection"])
def test_5_memory_at_its_limit_stops_the_waiting(tcpreasm: ModuleType, name: str, size: int, memory: int) -> None:
    """Reaching it is what triggers, as with pages: one byte more would be no limit for what is here."""
    parts = [bytes(min(1900, size - at)) for at in range(0, size, 1900)]
    rig = opened(tcpreasm, 0, **{name: 2 * memory})
    assert rig.segment(11, bytes(size)) == []
    assert rig.segment(9000, bytes(size)) == [got(piece(parts[0], skip=10), *map(piece, parts[1:]))]
    assert rig.assembler.stats.buffered_bytes == memory
    rig = opened(tcpreasm, 0, **{name: 2 * memory + 1})
    assert rig.segment(11, bytes(size)) == []
    assert rig.segment(9000, bytes(size)) == []


@pytest.mark.parametrize("limit", [1, 1000, 40_000])
def test_5_memory_in_all_never_passes_its_limit(tcpreasm: ModuleType, limit: int) -> None:
    rig = Rig(tcpreasm, max_buffered_bytes_total=limit)
    generator = random.Random(limit)
    for _ in range(600):
        ends = number(generator.randrange(20))
        rig.segment(generator.randrange(1, 9) * 5000, bytes(generator.choice([1, 20, 300, 4000])), ends=ends)
        assert rig.assembler.stats.buffered_bytes < limit


def test_5_memory_of_one_connection_is_its_own(tcpreasm: ModuleType) -> None:
    """The one that floods stops waiting, the other one does not."""
    rig = Rig(tcpreasm, max_buffered_bytes_per_connection=960)
    for index in range(2):
        rig.segment(0, syn=True, ends=number(index))
    assert rig.segment(11, b"patient", ends=number(1)) == []
    for index in range(9):
        assert rig.segment(11 + 10 * index, b"x", ends=number(0)) == []
    assert rig.segment(200, b"x", ends=number(0)) == [got(piece(b"x", skip=10), ends=number(0))]
    assert rig.segment(1, b"0123456789", ends=number(1)) == [got(piece(b"0123456789"), piece(b"patient"), ends=number(1))]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_buffered_pages_total": 1},
        {"max_buffered_pages_per_connection": 1},
        {"max_buffered_bytes_total": 1},
        {"max_buffered_bytes_per_connection": 1},
    ],
)
def test_5_what_continues_the_stream_is_always_taken(tcpreasm: ModuleType, limits: dict[str, int]) -> None:
    """However little may be held, and whatever others hold: the next bytes go out."""
    rig = Rig(tcpreasm, max_buffered_pages_total=100)
    rig.segment(0, syn=True)
    for seq in range(11, 960, 10):
        assert rig.segment(seq, b"x") == []
    low = Rig(tcpreasm, rig.recorder, rig.pool, **limits)
    rig.shared = True
    low.segment(0, syn=True, ends=BACK)
    for seq in range(1, 200_000, 5000):
        assert low.segment(seq, bytes(5000), ends=BACK) == [got(piece(bytes(5000)), ends=BACK)]
    for seq in range(1, 11):
        calls = rig.segment(seq, b"y")
        assert calls == [got(piece(b"y"), *([piece(b"x")] if seq == 10 else []))]


@pytest.mark.parametrize("size", [1, 100, 1460])
def test_5_a_copy_of_what_is_held_takes_nothing(tcpreasm: ModuleType, size: int) -> None:
    rig = opened(tcpreasm, 0)
    rig.segment(11, b"x" * size)
    before = rig.assembler.stats
    for again in range(1, 1000):
        rig.send(segment(tcpreasm, 11, b"x" * size))
        stats = rig.assembler.stats
        assert stats.dropped == {"overlapping": again * size}
    assert (stats.pages_used, stats.page_requests, stats.buffered_bytes) == (1, 1, before.buffered_bytes)


# -- 6: skip, start, end, seen ------------------------------------------------------------------------------------------


def test_6_skip_start_end_and_seen(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(999, b"ab", syn=True, at=1) == [new(), got(piece(b"ab", start=True, at=1))]
    assert rig.segment(1002, b"c", at=2) == [got(piece(b"c", at=2))]
    assert rig.segment(1013, b"d", at=3) == []
    assert rig.segment(1018, b"e", at=4) == []
    assert rig.flush() == ((1, 0), [got(piece(b"d", skip=10, at=3), piece(b"e", skip=4, at=4))])
    assert rig.segment(1019, b"f", at=5, fin=True) == [got(piece(b"f", end=True, at=5)), complete()]


def test_6_skip_of_an_unknown_start(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, b"a")
    rig.segment(1005, b"b")
    assert rig.flush_all() == (1, [got(piece(b"a", skip=-1), piece(b"b", skip=4)), complete()])


def test_6_skip_of_an_unknown_start_and_bytes_that_were_cut(tcpreasm: ModuleType) -> None:
    """-1 says it all: an unknown number, and then some."""
    rig = Rig(tcpreasm)
    rig.segment(1000, wire=50)
    rig.segment(1050, b"abc")
    rig.segment(1060, b"d")
    assert rig.flush_all() == (1, [got(piece(b"abc", skip=-1), piece(b"d", skip=7)), complete()])
    assert rig.assembler.stats.bytes_skipped == 7


def test_6_what_the_capture_cut_off(tcpreasm: ModuleType) -> None:
    """The missing tail is the skip of the next piece, at once."""
    rig = opened(tcpreasm)
    assert rig.segment(1000, b"abc", wire=10) == [got(piece(b"abc"))]
    assert rig.segment(1010, b"", wire=10) == []
    assert rig.segment(1020, b"def", wire=5) == [got(piece(b"def", skip=17))]
    assert rig.segment(1025, fin=True, at=1) == [got(piece(skip=2, end=True, at=1)), complete()]


def test_6_what_the_capture_cut_off_of_early_segments(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1020, b"ghi", wire=10, at=1) == []
    assert rig.segment(1010, b"def", wire=10, at=2) == []
    assert rig.segment(1030, b"jkl", at=3) == []
    assert rig.segment(1000, b"abc", wire=10, at=4) == [
        got(piece(b"abc", at=4), piece(b"def", skip=7, at=2), piece(b"ghi", skip=7, at=1), piece(b"jkl", skip=7, at=3))
    ]


def test_6_a_retransmission_brings_what_was_cut(tcpreasm: ModuleType) -> None:
    """While it is still held: afterwards the hole was told already."""
    rig = opened(tcpreasm)
    rig.segment(1010, b"kl", wire=10, at=1)
    rig.segment(1012, b"mnop", at=2)
    assert rig.segment(1000, b"abcdefghij", at=3) == [got(piece(b"abcdefghij", at=3), piece(b"kl", at=1), piece(b"mnop", at=2))]
    assert rig.segment(1020, b"z", at=4) == [got(piece(b"z", skip=4, at=4))]


def test_6_a_gap_behind_the_last_byte(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc", wire=10, at=7)
    assert rig.flush_all() == (1, [got(piece(skip=7, at=7)), complete()])


# -- 7: overlaps --------------------------------------------------------------------------------------------------------


def test_7_the_bytes_captured_first_win_one_by_one(tcpreasm: ModuleType) -> None:
    generator = random.Random(7)
    for _ in range(30):
        rig = opened(tcpreasm, WRAP - 50)
        first: dict[int, int] = {}
        conflicting = overlapping = 0
        for _ in range(40):
            at, size = generator.randrange(1, 120), generator.randrange(1, 30)
            data = bytes(generator.choice(b"ab") for _ in range(size))
            rig.segment(WRAP - 49 + at, data)
            for place, byte in enumerate(data, at):
                overlapping += place in first
                conflicting += first.setdefault(place, byte) != byte
        assert (rig.dropped.get("overlapping", 0), rig.assembler.stats.conflicting) == (overlapping, conflicting)
        (call,) = rig.segment(WRAP - 49, b"!")[:1]
        rig.recorder.calls = [call, *rig.flush_all()[1]]
        assert rig.recorder.data() == b"!" + bytes(first[place] for place in sorted(first))


def test_7_what_was_delivered_is_never_revised(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    assert rig.segment(1000, b"XYZd") == [got(piece(b"d"))]
    assert rig.dropped == {"retransmitted": 3}


# -- 8: ends and SYNs ---------------------------------------------------------------------------------------------------


def test_8_fin_counts_when_the_stream_reaches_it(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1005, fin=True) == []
    assert rig.segment(1003, b"d") == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"d"))]
    assert rig.segment(1004, b"e") == [got(piece(b"e", end=True)), complete()]


def test_8_the_first_fin_stays(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1003, fin=True) == rig.segment(1002, fin=True) == rig.segment(1009, fin=True) == []
    assert rig.assembler.stats.fin_ignored == 2
    assert rig.segment(1000, b"abcdef") == [got(piece(b"abc", end=True)), complete()]
    assert rig.dropped == {"after_end": 3}


@pytest.mark.parametrize("away", [-GIB, -1, 1, 100, GIB])
def test_8_rst_closes_only_at_the_exact_number(tcpreasm: ModuleType, away: int) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    assert rig.segment(1003 + away, rst=True) == []
    assert rig.assembler.stats.rst_ignored == 1
    assert rig.segment(1003, b"text", rst=True) == [got(piece(end=True)), complete()]
    assert rig.dropped == {"rst_text": 4}


def test_8_data_and_fin_without_ack_are_ignored(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1000, b"abc", ack_flag=False) == []
    assert rig.segment(1000, fin=True, ack_flag=False) == []
    assert rig.dropped == {"no_ack_flag": 3}
    assert rig.segment(1000, b"def") == [got(piece(b"def"))]


def test_8_late_packets_open_no_ghost(tcpreasm: ModuleType) -> None:
    """For closed_timeout, 60 s of capture time."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc", fin=True)
    for at in (1, 30, 59):
        for seq, data in ((1000, b"abc"), (1003, b""), (1004, b"beyond"), (5000, b"far")):
            assert rig.segment(seq, data, fin=True, at=at) == []
            assert rig.segment(seq, data, at=at) == []
        assert rig.segment(999, syn=True, at=at) == []
        assert rig.segment(1004, rst=True, at=at) == []
    assert (len(rig.pool), rig.assembler.stats.streams_opened) == (0, 1)
    assert rig.segment(1000, b"abc", at=60.5) == [new()]


@pytest.mark.parametrize("after", ["fin", "rst"])
def test_8_after_a_close_another_syn_starts_at_once(tcpreasm: ModuleType, after: str) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, **{after: True})  # type: ignore[arg-type]
    assert rig.segment(70_000, b"new", syn=True, at=1) == [new(), got(piece(b"new", start=True, at=1))]
    assert rig.segment(70_004, b"!", at=1) == [got(piece(b"!", at=1))]


def test_8_keepalives_never_reach_the_stream(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    for index in range(5):
        assert rig.segment(999 + index, b"\0", at=10 * index) == []
        assert rig.segment(1000 + index, b"x", at=10 * index) == [got(piece(b"x", at=10 * index))]


def test_8_a_syn_is_remembered_until_packets_continue_from_it(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    rig.segment(1010, b"held", at=1)
    assert rig.segment(70_000, syn=True, at=2) == []
    assert rig.assembler.stats.syn_remembered == 1
    assert rig.segment(1003, b"def", at=3) == [got(piece(b"def", at=3))]
    assert rig.segment(70_001, b"new", at=4) == [
        got(piece(b"held", skip=4, at=1)),
        complete(),
        new(),
        got(piece(start=True, at=2), piece(b"new", at=4)),
    ]


def test_8_a_forged_syn_changes_nothing(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    for isn in (5, 70_000, 2**31, 998, 1000):
        assert rig.segment(isn, b"forged", syn=True) == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(1003, fin=True) == [got(piece(end=True)), complete()]
    assert rig.dropped == {"unconfirmed_syn": 30}


# -- 9: streams without a start -----------------------------------------------------------------------------------------


def test_9_after_16_segments(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for index in range(15):
        rig.segment(1000 + index, b"x")
    assert rig.recorder.calls == []
    assert rig.segment(1015, b"x") == [got(piece(b"x", skip=-1), *[piece(b"x")] * 15)]


def test_9_after_one_second_of_capture_time(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"abc", at=10) == [new()]
    assert rig.segment(1003, b"def", at=10.999) == []
    assert rig.segment(1006, b"ghi", at=11) == [got(piece(b"abc", skip=-1, at=10), piece(b"def", at=10.999), piece(b"ghi", at=11))]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"start_wait_segments": 1}, [new(), got(piece(b"abc", skip=-1))]),
        ({"start_wait": 0}, [new(), got(piece(b"abc", skip=-1))]),
        ({"start_wait": 0.0, "start_wait_segments": None}, [new(), got(piece(b"abc", skip=-1))]),
        ({"start_wait": None, "start_wait_segments": 2}, [new()]),
    ],
)
def test_9_as_told(tcpreasm: ModuleType, options: dict[str, Any], calls: list[Call]) -> None:
    assert Rig(tcpreasm, **options).segment(1000, b"abc") == calls


def test_9_never_unless_flushed(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, start_wait=None, start_wait_segments=None)
    for index in range(500):
        assert rig.segment(1000 + index, b"x", at=index) == ([] if index else [new()])
    assert rig.flush()[1] == [got(piece(b"x", skip=-1), *(piece(b"x", at=index) for index in range(1, 500)))]


def test_9_whole_captures_start_them_by_time(tcpreasm: ModuleType) -> None:
    """Also where nothing more comes from that stream."""
    other = number(5)
    packets = [(0.0, frame(1000, b"abc")), (0.0, frame(0, flags=SYN, ends=other))]
    packets += [(0.1 * index, frame(index, b"x", ends=other)) for index in range(1, 200)]
    rig = Rig(tcpreasm)
    rig.assembler.assemble_capture(packets, flush=False)
    assert got(piece(b"abc", skip=-1)) in rig.taken()


# -- 10: time is capture time -------------------------------------------------------------------------------------------


def capture(package: ModuleType, packets: list[tuple[float, bytes]], **options: Any) -> tuple[Rig, list[Call]]:
    """A whole capture of (seconds, frame), not flushed at its end."""
    rig = Rig(package, **options)
    rig.assembler.assemble_capture([package.Frame(data, to_ns(at), len(data), 1) for at, data in packets], flush=False)
    return rig, rig.taken()


OTHER = number(77)


def tick(at: float) -> tuple[float, bytes]:
    """A packet that only makes time go on."""
    return at, frame(1, ends=OTHER)


BEGUN = [(0.0, frame(999, flags=SYN)), (1.0, frame(1010, b"early"))]
EARLY = got(piece(b"early", skip=10, at=1))


@pytest.mark.parametrize("jump", [-(10**9), -4000, -61, 61, 4000, 10**9])
def test_10_one_packet_with_a_wrong_time_expires_nothing(tcpreasm: ModuleType, jump: float) -> None:
    packets = [*BEGUN, *(tick(1 + 0.01 * index) for index in range(200))]
    packets[100] = tick(2 + jump)
    _, calls = capture(tcpreasm, packets)
    assert calls == [new(), got(piece(start=True))]


@pytest.mark.parametrize("jump", [-(10**8), -7200, 7200, 10**8])
def test_10_a_clock_that_is_set_expires_nothing(tcpreasm: ModuleType, jump: float) -> None:
    """It goes on elsewhere; what waits does so for its time-out's length from there."""
    packets = [*BEGUN, *(tick(1 + 0.01 * index) for index in range(100))]
    packets += [tick(1 + jump + 0.2 * index) for index in range(400)]
    _, calls = capture(tcpreasm, packets, idle_timeout=600)
    assert calls == [new(), got(piece(start=True))]


def test_10_a_clock_that_was_set_ahead_goes_on_from_there(tcpreasm: ModuleType) -> None:
    packets = [*BEGUN, *(tick(10_000 + index) for index in range(300))]
    _, calls = capture(tcpreasm, packets)
    assert calls == [new(), got(piece(start=True)), EARLY]


def test_10_a_quiet_quarter_of_an_hour_is_no_jump(tcpreasm: ModuleType) -> None:
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(900 + 0.01 * index) for index in range(200))])
    assert calls == [new(), got(piece(start=True)), EARLY]


def test_10_packets_that_are_minutes_apart_make_time_go_on(tcpreasm: ModuleType) -> None:
    """A quiet link: each packet comes 100 s behind the last one, for hours. The hole is older than two minutes soon."""
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(100.0 * index) for index in range(1, 400))])
    assert EARLY in calls


def test_10_the_machine_s_clock_has_no_say(tcpreasm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    rig = opened(tcpreasm)
    rig.segment(1010, b"x", at=10**9)
    assert rig.flush_older_than(10**9) == ((0, 0), [])
    assert rig.flush_older_than(10**9 + 1) == ((1, 1), [got(piece(b"x", skip=10, at=10**9)), complete()])


def test_10_times_before_1970(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1010, b"x", ends=BACK, at=-5.5)
    assert rig.flush(-5)[1] == [got(piece(b"x", skip=-1, at=-5.5), ends=BACK)]


# -- 11: bytes stay what they were --------------------------------------------------------------------------------------


class Keeper:
    """A stream that keeps pieces, views of them, their bytes or only some of them, and what they were at the time."""

    kept: list[tuple[Any, bytes, tuple[Any, ...]]]

    def __init__(self, how: str) -> None:
        self.how = how
        self.kept = []
        self.lists: list[list[Any]] = []

    def new(self, net_flow: Any, transport_flow: Any) -> Keeper:
        return self

    def reassembled(self, reassemblies: list[Any]) -> None:
        for index, r in enumerate(reassemblies):
            told = (r.skip, r.start, r.end, r.seen_ns, len(r))
            view = memoryview(r)
            if self.how == "pieces":
                self.kept.append((r, bytes(view), told))
            elif self.how == "views":
                self.kept.append((view, bytes(view), told))
            elif self.how == "bytes":
                self.kept.append((r.bytes, bytes(view), told))
            elif self.how == "both":
                self.kept.append(((r, view, r.bytes), bytes(view), told))
            elif self.how == "slices":
                self.kept.append((view[1:-1], bytes(view)[1:-1], told))
            elif self.how == "some" and index % 2:
                self.kept.append((r, bytes(view), told))
            elif self.how == "lists" and not index:
                self.lists.append(reassemblies)
                self.kept.extend((each, bytes(memoryview(each)), ()) for each in reassemblies)

    def reassembly_complete(self) -> None:
        pass


@pytest.mark.parametrize("how", ["pieces", "views", "bytes", "both", "slices", "some", "lists"])
def test_11_what_is_kept_stays_what_it_was(tcpreasm: ModuleType, how: str) -> None:
    """Through thousands of further packets that use the same pages and buffers, and the end of the assembler."""
    keeper = Keeper(how)
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(keeper))
    generator = random.Random(11)
    seq, address_ = 1, flow(tcpreasm)
    assembler.assemble(address_, segment(tcpreasm, 0, syn=True), 0)
    for round_ in range(400):
        data = generator.randbytes(generator.randrange(3, 6000))
        cuts = sorted({0, len(data), *(generator.randrange(len(data)) for _ in range(4))})
        parts = [(seq + start, data[start:end]) for start, end in itertools.pairwise(cuts)]
        generator.shuffle(parts)
        for place, part in parts:
            if round_ % 2:
                assembler.assemble(address_, segment(tcpreasm, place, part), round_)
            else:
                assembler.assemble_frame(bytearray(frame(place, part)), round_)
        seq += len(data)
    assembler.close()
    del assembler
    gc.collect()
    garbage = [bytes([number_ & 255]) * 1900 for number_ in range(3000)]
    assert len(keeper.kept) > 300
    for kept, then, told in keeper.kept:
        for each in kept if isinstance(kept, tuple) else (kept,):
            assert bytes(each) == then
        if told and how in ("pieces", "some"):
            assert (kept.skip, kept.start, kept.end, kept.seen_ns, len(kept)) == told
            assert kept.bytes == then
    del garbage


class Holder:
    """A stream that leaves something behind in the middle of its calls, which bring one piece each."""

    def __init__(self, how: str, package: ModuleType) -> None:
        self.how = how
        self.package = package
        self.got: list[tuple[bytes, int, int]] = []  # of each piece: bytes, skip, capture time
        self.left: list[Any] = []

    def new(self, net_flow: Any, transport_flow: Any) -> Holder:
        return self

    def reassembled(self, reassemblies: list[Any]) -> None:
        (r,) = reassemblies
        self.got.append((bytes(memoryview(r)), r.skip, r.seen_ns))
        if len(self.got) % 3:
            return
        if self.how == "list":
            self.left.append(reassemblies)
        elif self.how == "iterator":
            self.left.append(iter(reassemblies))
        elif self.how == "piece":
            self.left.append(r)
        elif self.how == "view":
            self.left.append(memoryview(r))
        elif self.how == "bytes":
            self.left.append(r.bytes)
        elif self.how == "frame":
            self.left.append(sys._getframe())
        elif self.how == "cleared":
            reassemblies.clear()
        elif self.how == "longer":
            reassemblies.append("another")
        elif self.how == "replaced":
            reassemblies[0] = self.package.Reassembly(b"another", skip=7)
        elif self.how == "other type":
            reassemblies[0] = "another"
        elif self.how == "list with another":
            reassemblies[0] = self.package.Reassembly(b"another", skip=7)
            self.left.append(reassemblies)
        elif self.how == "piece, replaced":
            reassemblies[0] = "another"
            self.left.append(r)
        elif self.how == "raises":
            raise RuntimeError("the stream's")

    def reassembly_complete(self) -> None:
        pass


def holder_left(how: str, left: Any) -> Any:
    """The bytes of what a Holder left behind."""
    if how in ("list", "iterator", "list with another"):
        (left,) = left
    elif how == "frame":
        (left,) = left.f_locals["reassemblies"]
    elif how == "raises":
        while left.__traceback__.tb_next:
            left = left.with_traceback(left.__traceback__.tb_next)
        (left,) = left.__traceback__.tb_frame.f_locals["reassemblies"]
    return bytes(left)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        *("list", "iterator", "piece", "view", "bytes", "frame", "raises", "list with another", "piece, replaced"),
        *("cleared", "longer", "replaced", "other type", "nothing"),
    ],
)
def test_11_a_list_of_one_is_the_streams(tcpreasm: ModuleType, how: str, batched: bool) -> None:
    """Objects may serve again for the next call only where the stream has left nothing that tells: neither may what it keeps change, nor
    what it does to a list come back in a later one."""
    holder = Holder(how, tcpreasm)
    texts = [bytes([65 + index]) * (index + 1) for index in range(12)]
    frames, seq = [frame(999, flags=SYN)], 1000
    for index, text in enumerate(texts):
        seq += 5 if index == 6 else 0
        frames.append(frame(seq, text))
        seq += len(text)
    errors: list[BaseException] = []
    with tcpreasm.Assembler(tcpreasm.StreamPool(holder)) as assembler:
        for at, each in enumerate(frames):
            try:
                if batched:
                    assembler.assemble_batch(each, [0], [len(each)], [at])
                else:
                    assembler.assemble_frame(each, timestamp_ns=at)
                assembler.flush_with_options(tcpreasm.FlushOptions(t=None))
            except RuntimeError as error:
                errors.append(error)
    del frames, each
    gc.collect()
    assert holder.got == [(b"", 0, 0)] + [(text, 5 * (index == 6), index + 1) for index, text in enumerate(texts)]
    kept = errors if how == "raises" else holder.left
    if how in ("cleared", "longer", "replaced", "other type", "nothing"):
        assert kept == []
    else:
        assert [holder_left(how, left) for left in kept] == [b"another" if how == "list with another" else text for text in texts[1::3]]


def test_11_views_are_read_only(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, recorder=Recorder(keep=True))
    rig.segment(1003, b"early")
    rig.segment(1000, b"abc")
    for kept in rig.recorder.kept:
        view = memoryview(kept)
        assert view.readonly
        with pytest.raises(TypeError):
            view[:] = bytes(len(view))
    assert [bytes(r) for r in rig.recorder.kept] == [b"", b"abc", b"early"]


@pytest.mark.parametrize("how", ["list", "piece"])
def test_11_a_kept_piece_does_not_keep_the_batch(tcpreasm: ModuleType, how: str) -> None:
    holder = Holder(how, tcpreasm)
    first, second, third = frame(999, flags=SYN), frame(1000, b"abc"), frame(1003, b"def")
    buffer = first + second + third
    ends = list(itertools.accumulate([len(first), len(second), len(third)]))
    references = sys.getrefcount(buffer)
    with tcpreasm.Assembler(tcpreasm.StreamPool(holder)) as assembler:
        assembler.assemble_batch(buffer, [0, *ends[:-1]], [len(first), len(second), len(third)], [0, 0, 0])
        assert sys.getrefcount(buffer) == references
    assert len(holder.left) == 1


def test_11_kept_pieces_do_not_keep_pages_for_ever(tcpreasm: ModuleType) -> None:
    """A program that keeps every piece must not make the page cache grow without end."""
    rig = opened(tcpreasm, recorder=Recorder(keep=True))
    for seq in range(1000, 21_000, 2):
        rig.segment(seq + 1, b"b")
        rig.segment(seq, b"a")
    stats = rig.assembler.stats
    assert (stats.pages_allocated, stats.pages_used, len(rig.recorder.kept)) == (2 * 1024, 0, 20_001)


def test_11_packets_that_are_held_belong_to_nobody_else(tcpreasm: ModuleType) -> None:
    """What is held early is a copy: the caller's buffer can go."""
    rig = opened(tcpreasm)
    for index in range(50, 0, -1):
        buffer = bytearray(frame(1000 + 100 * index, bytes([index]) * 100))
        rig.assembler.assemble_frame(buffer, 0)
        buffer[:] = bytes(len(buffer))
        del buffer
    assert rig.segment(1000, bytes(100)) == [got(*(piece(bytes([index]) * 100) for index in range(51)))]


# -- 12: every byte is accounted for ------------------------------------------------------------------------------------


def storm(seed: int, count: int = 400) -> list[tuple[Ends, int, bytes, dict[str, Any]]]:
    """Segments of three connections as nobody would send them: overlaps, SYNs, FINs, RSTs, cut and wild ones, without ACK."""
    generator = random.Random(seed)
    base = [generator.randrange(WRAP) for _ in range(3)]
    segments = []
    at = 0.0
    for _ in range(count):
        which = generator.randrange(3)
        offset = generator.choice([generator.randrange(-5, 60), generator.randrange(-100, 6000), generator.randrange(WRAP)])
        data = generator.randbytes(generator.choice([0, 1, 1, generator.randrange(40), generator.randrange(5000)]))
        options: dict[str, Any] = {name: generator.random() < share for name, share in (("syn", 0.06), ("fin", 0.04), ("rst", 0.03))}
        if generator.random() < 0.05:
            options["ack_flag"] = False
        if generator.random() < 0.1:
            options["wire"] = len(data) + generator.randrange(1000)
        at += generator.choice([0, 0.001, 0.3, 20])
        segments.append((number(which), (base[which] + offset) % WRAP, data, {"at": round(at, 3), **options}))
    return segments


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_gap": None},
    {"max_buffered_pages_per_connection": 3},
    {"max_buffered_pages_total": 5, "start_wait_segments": 3},
    {"start_wait": None, "start_wait_segments": None, "closed_timeout": 1.0},
    {"max_gap": 1000},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_12_every_byte_is_accounted_for(tcpreasm: ModuleType, seed: int, options: dict[str, Any]) -> None:
    """delivered + dropped + held == captured, after every call (Rig.check), and skipped is what the pieces tell."""
    rig = Rig(tcpreasm, **options)
    captured = 0
    for index, (ends, seq, data, told) in enumerate(storm(seed)):
        rig.segment(seq, data, ends=ends, **told)
        captured += len(data)
        if index % 50 == 49:
            rig.flush_older_than(told["at"] - 10)
            rig.flush(told["at"] - 1)
    rig.flush_all()
    stats = rig.assembler.stats
    assert stats.bytes_captured == captured == stats.bytes_delivered + stats.bytes_dropped
    assert stats.bytes_delivered == rig.delivered
    assert stats.streams_opened == stats.streams_closed == len(rig.recorder.streams)
    assert all(stream.completed == 1 for stream in rig.recorder.streams)


def test_12_each_reason_has_its_counter(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"12")
    rig.segment(1000, b"1")
    assert rig.dropped == {"retransmitted": 1}
    rig.segment(1010, b"12")
    rig.segment(1011, b"2")
    rig.segment(GIB, b"123")
    rig.segment(1002, b"1234", ack_flag=False)
    rig.segment(7, b"12345", rst=True)
    rig.segment(70_000, b"123456", syn=True)
    rig.segment(1012, fin=True)
    rig.segment(1010, b"12" + b"1234567")
    rig.segment(1002, bytes(8))
    rig.segment(1012, b"12345678")
    rig.segment(5005, b"0", ends=BACK)
    rig.flush()
    rig.segment(4996, b"123456789", ends=BACK)
    rig.recorder.plan["new"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        rig.segment(1, b"1234567890", ends=OTHER)
    assert rig.dropped == {
        "retransmitted": 1,
        "overlapping": 3,
        "out_of_window": 3,
        "no_ack_flag": 4,
        "rst_text": 5,
        "unconfirmed_syn": 6,
        "after_end": 7,
        "after_close": 8,
        "before_start": 9,
        "factory_error": 10,
    }


# -- 13: nothing raises but the caller's errors -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_13_hostile_frames_never_raise(tcpreasm: ModuleType, seed: int) -> None:
    generator = random.Random(seed)
    rig = Rig(tcpreasm, max_buffered_pages_total=50)
    frames = [frame(generator.randrange(WRAP), generator.randbytes(30), generator.randrange(256)) for _ in range(20)]
    for _ in range(3000):
        data = bytearray(generator.choice(frames))
        for _ in range(generator.randrange(6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        del data[generator.randrange(len(data)) if generator.random() < 0.2 else len(data) :]
        wire = generator.choice([None, 0, len(data), len(data) + generator.randrange(70_000), 2**40])
        rig.frame(bytes(data), at=generator.choice([0, 1, 1e9, -1e9]), wire_length=wire, linktype=generator.choice([1, 1, 1, 101, 276, 9]))
    rig.flush_all()


def wrong_calls(package: Any) -> dict[str, tuple[type[Exception] | tuple[type[Exception], ...], Callable[[Any], Any]]]:
    """Errors of the caller: what they raise, and the call."""
    address_, tcp, data = flow(package), segment(package, 1000, b"abc"), frame(1000, b"abc")
    number_error = (TypeError, ValueError, OverflowError)

    def changed(**values: Any) -> Callable[[Any], Any]:
        def call(assembler: Any) -> Any:
            broken = segment(package, 1000, b"abc")
            for name, value in values.items():
                setattr(broken, name, value)
            return assembler.assemble(address_, broken, 0)

        return call

    return {
        "no flow": (TypeError, lambda a: a.assemble(None, tcp, 0)),
        "a flow of ports": (TypeError, lambda a: a.assemble(package.Flow(1, 2), tcp, 0)),
        "a tuple for a flow": (TypeError, lambda a: a.assemble(("10.0.0.1", "10.0.0.2"), tcp, 0)),
        "no segment": (TypeError, lambda a: a.assemble(address_, None, 0)),
        "bytes for a segment": (TypeError, lambda a: a.assemble(address_, b"abc", 0)),
        "a payload that became None": ((TypeError, AttributeError), changed(payload=None)),
        "a payload that became a number": ((TypeError, AttributeError), changed(payload=5)),
        "a sequence number that became negative": ((*number_error, AttributeError), changed(seq=-1)),
        "a sequence number that became text": ((*number_error, AttributeError), changed(seq="1")),
        "a time of text": (TypeError, lambda a: a.assemble(address_, tcp, "now")),
        "a time of bool": (TypeError, lambda a: a.assemble(address_, tcp, True)),
        "no finite time": (ValueError, lambda a: a.assemble(address_, tcp, float("nan"))),
        "an endless time": (ValueError, lambda a: a.assemble(address_, tcp, float("inf"))),
        "a time too far": (ValueError, lambda a: a.assemble(address_, tcp, timestamp_ns=2**63)),
        "nanoseconds of float": (TypeError, lambda a: a.assemble(address_, tcp, timestamp_ns=1.0)),
        "two times": (TypeError, lambda a: a.assemble(address_, tcp, 1, timestamp_ns=1)),
        "a time without a zone": (ValueError, lambda a: a.assemble(address_, tcp, datetime(2024, 1, 1))),
        "no time where it is the third argument": (TypeError, lambda a: a.assemble_with_timestamp(address_, tcp)),
        "no frame": (TypeError, lambda a: a.assemble_frame(None, 0)),
        "a number for a frame": (TypeError, lambda a: a.assemble_frame(60, 0)),
        "text for a frame": (TypeError, lambda a: a.assemble_frame("abc", 0)),
        "a frame with a time of text": (TypeError, lambda a: a.assemble_frame(data, "now")),
        "a frame with two times": (TypeError, lambda a: a.assemble_frame(data, 1, timestamp_ns=1)),
        "a negative wire length": (ValueError, lambda a: a.assemble_frame(data, 0, wire_length=-1)),
        "a wire length of text": (TypeError, lambda a: a.assemble_frame(data, 0, wire_length="100")),
        "a wire length of float": (TypeError, lambda a: a.assemble_frame(data, 0, wire_length=100.0)),
        "a link type of text": (TypeError, lambda a: a.assemble_frame(data, 0, linktype="1")),
        "no link type": (TypeError, lambda a: a.assemble_frame(data, 0, linktype=None)),
        "a link type of float": (TypeError, lambda a: a.assemble_frame(data, 0, linktype=1.0)),
        "a flush to a time of text": (TypeError, lambda a: a.flush_older_than("now")),
        "a flush to no finite time": (ValueError, lambda a: a.flush_older_than(float("nan"))),
        "flush options that are none": (TypeError, lambda a: a.flush_with_options(5)),
        "a capture that is none": (TypeError, lambda a: a.assemble_capture(5)),
        "frames that are none": (TypeError, lambda a: a.assemble_capture([1, 2, 3])),
    }


class Stub:
    """Stands for the package while the names of the wrong calls are listed."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **keywords: None


@pytest.mark.parametrize("wrong_call", list(wrong_calls(Stub())))
def test_13_the_caller_s_errors_leave_everything_as_it_was(tcpreasm: ModuleType, wrong_call: str) -> None:
    expected, call = wrong_calls(tcpreasm)[wrong_call]
    rig = opened(tcpreasm)
    rig.segment(1010, b"held", at=1)
    before = rig.assembler.stats, rig.assembler.now_ns()
    with pytest.raises(expected) as caught:
        call(rig.assembler)
    assert str(caught.value)
    assert (rig.assembler.stats, rig.assembler.now_ns()) == before
    assert rig.taken() == []
    assert rig.segment(1000, b"0123456789", at=2) == [got(piece(b"0123456789", at=2), piece(b"held", at=1))]


@pytest.mark.parametrize("linktype", [-1, 2**31, 2**40, -(2**70)])
def test_13_link_types_of_any_size(tcpreasm: ModuleType, linktype: int) -> None:
    assert Rig(tcpreasm).assembler.assemble_frame(frame(0), 0, linktype=linktype) is tcpreasm.Verdict.UNKNOWN_LINKTYPE


@pytest.mark.parametrize("wire_length", [2**32, 2**63, 2**70])
def test_13_wire_lengths_of_any_size(both: tuple[ModuleType, ModuleType], wire_length: int) -> None:
    """Both cores take them, or neither."""
    results = []
    for package in both:
        rig = opened(package)
        try:
            results.append((rig.frame(frame(1000, b"abc"), wire_length=wire_length), rig.flush_all()))
        except (ValueError, OverflowError) as error:
            results.append(type(error))  # type: ignore[arg-type]
    assert results[0] == results[1]


def test_13_use_after_close(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.assembler.close()
    assert rig.taken() == [complete()]
    before = rig.assembler.stats
    calls: list[Callable[[], Any]] = [
        lambda: rig.segment(1000, b"abc"),
        lambda: rig.frame(frame(1000, b"abc")),
        lambda: rig.flush(),
        lambda: rig.flush_older_than(5),
        lambda: rig.flush_all(),
        lambda: rig.assembler.assemble_capture([(0.0, frame(1000, b"abc"))]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="this Assembler is closed"):
            call()
    rig.assembler.close()
    assert (rig.assembler.closed, rig.assembler.stats, rig.taken()) == (True, before, [])


def test_13_a_closed_assembler_cannot_touch_a_shared_pool(tcpreasm: ModuleType) -> None:
    """A refused flush_all must not make the pool forget what was closed."""
    closed = opened(tcpreasm)
    closed.assembler.close()
    closed.taken()
    living = Rig(tcpreasm, closed.recorder, closed.pool)
    living.segment(999, b"abc", syn=True, fin=True)
    with pytest.raises(ValueError, match="this Assembler is closed"):
        closed.assembler.flush_all()
    assert living.segment(1000, b"abc", fin=True) == []


def test_8_flush_all_forgets_what_was_closed_before_it_and_nothing_else(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc", fin=True)
    rig.segment(999, b"old", syn=True, fin=True, ends=OTHER)
    rig.assembler.flush_all()
    rig.taken()
    assert rig.segment(999, b"new", syn=True, fin=True) == [new(), got(piece(b"new", start=True, end=True)), complete()]
    assert rig.segment(1000, b"new", fin=True) == []  # remembered
    assert rig.segment(1000, b"late", ends=OTHER)[:1] == [new(OTHER)]  # forgotten, so it is another stream
    assert rig.segment(1000, b"new", fin=True) == []


def test_8_a_stream_that_is_being_told_of_its_end_is_not_forgotten_by_a_flush(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    other = Rig(tcpreasm, rig.recorder, rig.pool)
    rig.segment(999, b"old", syn=True, fin=True, ends=OTHER)
    rig.recorder.plan["complete"] = other.assembler.flush_all
    rig.segment(1000, b"abc", fin=True)
    del rig.recorder.plan["complete"]
    rig.taken()
    assert rig.segment(1000, b"late") == []
    assert rig.segment(1000, b"late", ends=OTHER)[:1] == [new(OTHER)]


def inside_a_callback(rig: Rig, call: Callable[[], Any]) -> list[BaseException]:
    """Makes the call within `reassembled`; what it raised."""
    raised: list[BaseException] = []

    def attempt() -> None:
        del rig.recorder.plan["reassembled"]
        try:
            call()
        except BaseException as error:
            raised.append(error)

    rig.recorder.plan["reassembled"] = attempt
    assert rig.segment(999, syn=True, ends=BACK) == [new(BACK), got(piece(start=True), ends=BACK)]
    return raised


@pytest.mark.parametrize("where", ["assemble", "frame", "flush", "flush_older_than", "flush_all", "close", "capture"])
def test_13_calling_back_raises_and_changes_nothing(tcpreasm: ModuleType, where: str) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, fin=True)
    rig.segment(0, syn=True, ends=OTHER)
    rig.segment(11, b"held", ends=OTHER)
    assembler = rig.assembler
    calls: dict[str, Callable[[], Any]] = {
        "assemble": lambda: assembler.assemble(flow(tcpreasm), segment(tcpreasm, 5, b"abc"), 0),
        "frame": lambda: assembler.assemble_frame(frame(5, b"abc"), 0),
        "flush": lambda: assembler.flush_with_options(tcpreasm.FlushOptions(close_all=True)),
        "flush_older_than": lambda: assembler.flush_older_than(1e9),
        "flush_all": assembler.flush_all,
        "close": assembler.close,
        "capture": lambda: assembler.assemble_capture([(0.0, frame(1000, b"abc"))]),
    }
    captured = assembler.stats.bytes_captured
    (error,) = inside_a_callback(rig, calls[where])
    assert isinstance(error, RuntimeError)
    assert str(error) == "this Assembler is at work already: called from a callback, or from two threads at once"
    assert (assembler.closed, assembler.stats.bytes_captured, len(rig.pool)) == (False, captured, 2)
    assert rig.segment(1000, fin=True) == []  # what was closed is still known
    assert rig.segment(999, b"abc", syn=True) == []
    assert rig.segment(1, b"0123456789", ends=OTHER) == [got(piece(b"0123456789"), piece(b"held"), ends=OTHER)]
    assert rig.segment(1000, b"abc", ends=BACK) == [got(piece(b"abc"), ends=BACK)]


@pytest.mark.parametrize("call", ["new", "complete"])
def test_13_calling_back_from_elsewhere(tcpreasm: ModuleType, call: str) -> None:
    rig = Rig(tcpreasm)
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            rig.assembler.flush_with_options(tcpreasm.FlushOptions())
        except BaseException as error:
            raised.append(error)

    rig.recorder.plan[call] = attempt
    assert rig.segment(999, b"abc", syn=True, fin=True) == [new(), got(piece(b"abc", start=True, end=True)), complete()]
    assert [type(error) for error in raised] == [RuntimeError]


def test_13_calling_back_through_another_assembler(tcpreasm: ModuleType) -> None:
    """Into the connection that is being served: RuntimeError, and the other assembler has not seen the segment. Into others: goes well."""
    rig = Rig(tcpreasm)
    rig.shared = True
    other = tcpreasm.Assembler(rig.pool)
    before = other.stats
    (error,) = inside_a_callback(rig, lambda: other.assemble(flow(tcpreasm, BACK), segment(tcpreasm, 1, b"abc", ends=BACK), 7))
    assert isinstance(error, RuntimeError)
    assert (other.stats.segments, other.stats.bytes_captured, other.now_ns()) == (before.segments, before.bytes_captured, None)

    def reassembled() -> None:
        del rig.recorder.plan["reassembled"]
        other.assemble(flow(tcpreasm), segment(tcpreasm, 999, syn=True), 7)

    rig.recorder.plan["reassembled"] = reassembled
    rig.send(segment(tcpreasm, 1000, b"abc", ends=BACK), ends=BACK)
    assert rig.recorder.take() == [got(piece(b"abc"), ends=BACK), new(), got(piece(start=True, at=7))]


class Bang(Exception):
    """Raised by the streams below."""


@pytest.mark.parametrize("error", [Bang("a"), ValueError("b"), RuntimeError("c"), KeyboardInterrupt(), SystemExit(3), StopIteration()])
def test_13_exceptions_of_reassembled_pass_unchanged(tcpreasm: ModuleType, error: BaseException) -> None:
    rig = opened(tcpreasm)
    rig.segment(1003, b"def")
    rig.recorder.plan["reassembled"] = error
    with pytest.raises(type(error)) as caught:
        rig.segment(1000, b"abc")
    assert caught.value is error
    assert rig.taken() == [got(piece(b"abc"), piece(b"def"))]  # handed over is delivered
    assert rig.segment(1000, b"abcdefg") == [got(piece(b"g"))]
    assert rig.segment(1007, fin=True) == [got(piece(end=True)), complete()]
    assert rig.flush_all() == (0, [])


def test_13_exceptions_at_the_end(tcpreasm: ModuleType) -> None:
    """A stream that raises from `reassembled` still gets its end."""
    rig = opened(tcpreasm)
    rig.recorder.plan["reassembled"] = Bang()
    with pytest.raises(Bang):
        rig.segment(1000, b"abc", fin=True)
    assert rig.taken() == [got(piece(b"abc", end=True)), complete()]
    assert (len(rig.pool), rig.segment(1000, b"abc", fin=True)) == (0, [])


def test_13_exceptions_of_reassembly_complete(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.recorder.plan["complete"] = Bang()
    with pytest.raises(Bang):
        rig.segment(1000, b"abc", fin=True)
    assert rig.taken() == [got(piece(b"abc", end=True)), complete()]
    assert (len(rig.pool), rig.segment(1000, b"abc", fin=True)) == (0, [])


def test_13_exceptions_of_the_factory(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.recorder.plan["new"] = Bang()
    with pytest.raises(Bang):
        rig.segment(1000, b"abc")
    assert rig.taken() == [new()]
    assert (len(rig.pool), rig.dropped, rig.assembler.stats.streams_opened) == (0, {"factory_error": 3}, 0)
    assert rig.segment(999, syn=True) == [new(), got(piece(start=True))]
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]


@pytest.mark.parametrize("made", [None, 5, object()])
def test_13_a_factory_that_makes_no_streams(tcpreasm: ModuleType, made: Any) -> None:
    pool = tcpreasm.StreamPool(lambda net, transport: made)
    assembler = tcpreasm.Assembler(pool)
    with pytest.raises((AttributeError, TypeError)):
        assembler.assemble(flow(tcpreasm), segment(tcpreasm, 0, syn=True), 0)
    assert len(pool) == 0
    assert assembler.flush_all() == 0


def test_13_exceptions_of_the_factory_where_a_connection_begins_anew(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    rig.segment(70_000, b"xy", syn=True)
    rig.recorder.plan["new"] = Bang()
    with pytest.raises(Bang):
        rig.segment(70_003, b"new")
    assert rig.taken() == [complete(), new()]
    assert (len(rig.pool), rig.dropped, rig.assembler.stats.pages_used) == (0, {"factory_error": 5}, 0)
    assert rig.segment(70_000, syn=True) == [new(), got(piece(start=True))]


def test_13_exceptions_of_the_old_stream_where_a_connection_begins_anew(tcpreasm: ModuleType) -> None:
    """The new one still gets the segment at hand."""
    rig = opened(tcpreasm)
    rig.segment(1010, b"held")
    rig.segment(70_000, syn=True)
    rig.recorder.plan["reassembled"] = Bang()
    with pytest.raises(Bang):
        rig.segment(70_001, b"new")
    assert rig.taken() == [got(piece(b"held", skip=10)), complete(), new(), got(piece(start=True), piece(b"new"))]
    assert rig.segment(70_004, b"!") == [got(piece(b"!"))]


@pytest.mark.parametrize("call", ["reassembled", "complete"])
def test_13_exceptions_during_a_flush(tcpreasm: ModuleType, call: str) -> None:
    """All other connections are served; the first exception is raised at the end."""
    rig = Rig(tcpreasm)
    for index in range(5):
        rig.segment(0, syn=True, ends=number(index))
        rig.segment(11, b"x", ends=number(index))
    error = Bang()
    rig.recorder.plan[call] = error
    with pytest.raises(Bang) as caught:
        rig.assembler.flush_all()
    assert caught.value is error
    expected: list[Call] = []
    for index in range(5):
        expected += [got(piece(b"x", skip=10), ends=number(index)), complete(number(index))]
    assert rig.taken() == expected
    assert (len(rig.pool), rig.assembler.stats.pages_used, rig.flush_all()) == (0, 0, (0, []))


def test_13_ctrl_c_during_a_flush(tcpreasm: ModuleType) -> None:
    """Passes at once; a second flush serves the rest."""
    rig = Rig(tcpreasm)
    for index in range(3):
        rig.segment(0, syn=True, ends=number(index))
    rig.recorder.plan["complete"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        rig.assembler.flush_all()
    assert rig.taken()[:1] == [complete(number(0))]
    rig.flush_all()
    assert [stream.completed for stream in rig.recorder.streams] == [1, 1, 1]


def test_13_the_with_block(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.segment(1010, b"x")
    with pytest.raises(Bang), rig.assembler:
        raise Bang
    assert rig.taken() == [got(piece(b"x", skip=10)), complete()]
    assert rig.assembler.closed


FORGETFUL = """
class A(t.Assembler):
    def __init__(self): pass
class P(t.StreamPool):
    def __init__(self): pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "A().assemble(t.Flow('10.0.0.1', '10.0.0.2'), t.TCPSegment(1, 2, 3, b'x'), 0)",
        "A().assemble_frame(bytes(60), 0)",
        "A().flush_all()",
        "A().close()",
        "A().stats",
        "t.Assembler(P()).assemble(t.Flow('10.0.0.1', '10.0.0.2'), t.TCPSegment(1, 2, 3, b'x'), 0)",
        "t.Assembler(P()).flush_all()",
        "len(P()), P().keys()",
    ],
)
def test_13_a_class_that_forgets_to_call_init_does_not_crash(tcpreasm: ModuleType, code: str) -> None:
    """An exception at most, not a dead interpreter."""
    demand = f"import os\nos.environ['TCPREASM_IMPLEMENTATION'] = '{tcpreasm.implementation}'\nimport tcpreasm as t\n"
    child = subprocess.run(
        [sys.executable, "-c", demand + FORGETFUL + code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode in (0, 1), child.returncode


# -- 14: both cores do the same -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(10, 16))
def test_14_call_by_call(both: tuple[ModuleType, ModuleType], seed: int, options: dict[str, Any]) -> None:
    rigs = [Rig(package, **options) for package in both]
    for index, (ends, seq, data, told) in enumerate(storm(seed)):
        compiled, pure = (rig.segment(seq, data, ends=ends, **told) for rig in rigs)
        assert compiled == pure
        if index % 37 == 36:
            compiled_flush, pure_flush = (rig.flush(told["at"] - 5, close_all=index % 2 == 0) for rig in rigs)
            assert compiled_flush == pure_flush
        compared = [[getattr(rig.assembler.stats, name) for name in type(rig.assembler.stats).__slots__] for rig in rigs]
        assert compared[0] == compared[1]
    assert rigs[0].flush_all() == rigs[1].flush_all()


def test_14_the_names_of_the_cores(both: tuple[ModuleType, ModuleType]) -> None:
    assert [package.implementation for package in both] == ["compiled", "pure"]
    assert [package.__name__ for package in both] == list(NAMES.values())
    assert both[0].__all__ == both[1].__all__


# -- 15: whole captures flush themselves --------------------------------------------------------------------------------


def test_15_a_hole_is_given_up_after_two_minutes(tcpreasm: ModuleType) -> None:
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(float(at)) for at in range(2, 121))])
    assert calls == [new(), got(piece(start=True))]
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(float(at)) for at in range(2, 300))])
    assert calls == [new(), got(piece(start=True)), EARLY]


def test_15_what_comes_after_that_is_too_late(tcpreasm: ModuleType) -> None:
    packets = [*BEGUN, *(tick(float(at)) for at in range(2, 300)), (300.0, frame(1000, b"0123456789")), (301.0, frame(1015, b"!"))]
    rig, calls = capture(tcpreasm, packets)
    assert calls == [new(), got(piece(start=True)), EARLY, got(piece(b"!", at=301))]
    assert rig.dropped == {"retransmitted": 10}


@pytest.mark.parametrize("step", [1.0, 5.0, 30.0])
def test_15_however_few_the_packets_are(tcpreasm: ModuleType, step: float) -> None:
    """By capture time alone: not by the number of packets in between."""
    packets = [*BEGUN, *(tick(step * index) for index in range(1, int(600 / step))), (600.0, frame(1000, b"0123456789"))]
    rig, calls = capture(tcpreasm, packets)
    assert calls == [new(), got(piece(start=True)), EARLY]
    assert rig.dropped == {"retransmitted": 10}


@pytest.mark.parametrize(("timeout", "given_up"), [(10.0, True), (250.0, True), (350, False), (None, False)])
def test_15_hole_timeout(tcpreasm: ModuleType, timeout: float | None, given_up: bool) -> None:
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(float(at)) for at in range(2, 330))], hole_timeout=timeout)
    assert (EARLY in calls) == given_up


def test_15_an_idle_connection_is_closed_after_an_hour(tcpreasm: ModuleType) -> None:
    packets = [*BEGUN, *(tick(20.0 * index) for index in range(1, 180))]
    rig, calls = capture(tcpreasm, packets)
    assert (complete() in calls, len(rig.pool)) == (False, 1)
    packets += [tick(20.0 * index) for index in range(180, 260)]
    rig, calls = capture(tcpreasm, packets)
    assert calls == [new(), got(piece(start=True)), EARLY, complete()]
    assert len(rig.pool) == 0


@pytest.mark.parametrize(("timeout", "closed"), [(200, True), (0.0, True), (5000.0, False), (None, False)])
def test_15_idle_timeout(tcpreasm: ModuleType, timeout: float | None, closed: bool) -> None:
    _, calls = capture(tcpreasm, [*BEGUN, *(tick(10.0 * index) for index in range(1, 300))], idle_timeout=timeout)
    assert (complete() in calls) == closed


def test_15_acknowledgements_keep_a_connection_open(tcpreasm: ModuleType) -> None:
    packets = [*BEGUN, *((20.0 * index, frame(1000)) for index in range(1, 400))]
    rig, calls = capture(tcpreasm, packets)
    assert (complete() in calls, len(rig.pool)) == (False, 1)


def test_15_the_end_of_the_capture_gives_out_everything(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    summary = rig.assembler.assemble_capture([tcpreasm.Frame(data, to_ns(at), len(data), 1) for at, data in BEGUN])
    assert rig.taken() == [new(), got(piece(start=True)), EARLY, complete()]
    assert (summary.packets, summary.segments, summary.streams, summary.bytes_delivered, summary.bytes_skipped) == (2, 2, 1, 5, 10)
    assert (summary.complete, summary.problems) == (True, ())


def test_15_several_captures_with_the_state_kept(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.assembler.assemble_capture([BEGUN[:1], BEGUN[1:], [(3.0, frame(1000, b"0123456789"))]])
    assert rig.taken() == [new(), got(piece(start=True)), got(piece(b"0123456789", at=3), piece(b"early", at=1)), complete()]


def test_15_one_frame_at_a_time_nothing_is_flushed_by_itself(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for at, data in [*BEGUN, *(tick(20.0 * index) for index in range(1, 400))]:
        rig.frame(data, at=at)
    assert rig.assembler.stats.bytes_held == 5
    assert [str(key) for key in rig.pool.keys()] == [key_of()]  # noqa: SIM118


def test_15_the_state_between_the_files_is_that_of_one_file(tcpreasm: ModuleType) -> None:
    """However the packets are divided into captures, the calls are the same."""
    packets = [*BEGUN, *(tick(float(at)) for at in range(2, 260)), (260.0, frame(1000, b"0123456789"))]
    whole = capture(tcpreasm, packets)[1]
    for size in (1, 7, 100):
        rig = Rig(tcpreasm)
        rig.assembler.assemble_capture([packets[start : start + size] for start in range(0, len(packets), size)], flush=False)
        assert rig.taken() == whole
