"""The assembler, one segment at a time: the model's cases as behaviour. Exact calls, byte for byte.

What the model gets wrong is in test_faults.py, what is promised by number in test_promises.py.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import datetime, timezone
from types import ModuleType

import pytest
from capture_bytes import epb, idb, shb
from cores import submodule
from recorder import BACK, ENDS, NS, PSH, SYN, Rig, complete, frame, got, new, number, piece

WRAP = 2**32


# -- start --------------------------------------------------------------------------------------------------------------


def test_a_whole_connection(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(999, syn=True, at=1) == [new(), got(piece(start=True, at=1))]
    assert rig.segment(1000, at=2) == []
    assert rig.segment(1000, b"abc", at=3) == [got(piece(b"abc", at=3))]
    assert rig.segment(1003, b"def", psh=True, at=4) == [got(piece(b"def", at=4))]
    assert rig.segment(1006, fin=True, at=5) == [got(piece(end=True, at=5)), complete()]
    assert rig.flush_all() == (0, [])


def test_both_directions_are_streams_of_their_own(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(10, syn=True) == [new(), got(piece(start=True))]
    assert rig.segment(500, syn=True, ack=11, ends=BACK) == [new(BACK), got(piece(start=True), ends=BACK)]
    assert rig.segment(11, b"ask", ack=501) == [got(piece(b"ask"))]
    assert rig.segment(501, b"answer", ack=14, ends=BACK) == [got(piece(b"answer"), ends=BACK)]
    assert rig.segment(14, fin=True) == [got(piece(end=True)), complete()]
    assert rig.segment(507, b"more", ends=BACK) == [got(piece(b"more"), ends=BACK)]
    assert rig.flush_all() == (1, [complete(BACK)])


def test_data_in_the_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(999, b"abc", syn=True) == [new(), got(piece(b"abc", start=True))]
    assert rig.segment(1003, b"def") == [got(piece(b"def"))]


def test_data_with_the_fin(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    assert rig.segment(1000, b"abc", fin=True) == [got(piece(b"abc", end=True)), complete()]


def test_syn_fin_and_data_in_one(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(999, b"abc", syn=True, fin=True) == [new(), got(piece(b"abc", start=True, end=True)), complete()]
    assert rig.segment(99, syn=True, fin=True, ends=BACK) == [new(BACK), got(piece(start=True, end=True), ends=BACK), complete(BACK)]


def test_a_reset_ends_a_stream(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(1003, rst=True, at=2) == [got(piece(end=True, at=2)), complete()]


def test_data_before_the_syn(tcpreasm: ModuleType) -> None:
    """The SYN is overtaken by what it begins."""
    rig = Rig(tcpreasm)
    assert rig.segment(1003, b"def", at=0.1) == [new()]
    assert rig.segment(1000, b"abc", at=0.2) == []
    assert rig.segment(999, syn=True, at=0.3) == [got(piece(start=True, at=0.3), piece(b"abc", at=0.2), piece(b"def", at=0.1))]
    assert rig.segment(1006, b"ghi", at=0.4) == [got(piece(b"ghi", at=0.4))]


def test_the_fin_before_the_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1003, b"def", fin=True) == [new()]
    assert rig.segment(999, syn=True) == [got(piece(start=True))]
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"def", end=True)), complete()]


def test_a_syn_with_data_that_was_overtaken(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1003, b"def") == [new()]
    assert rig.segment(999, b"abc", syn=True) == [got(piece(b"abc", start=True), piece(b"def"))]


def test_never_a_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"abc", at=0.5) == [new()]
    assert rig.segment(1003, b"def", at=0.6) == []
    assert rig.flush_all() == (1, [got(piece(b"abc", skip=-1, at=0.5), piece(b"def", at=0.6)), complete()])


def test_the_syn_repeated(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    assert rig.segment(999, syn=True) == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(999, syn=True) == []
    assert rig.segment(1003, b"def") == [got(piece(b"def"))]


# -- reordering ---------------------------------------------------------------------------------------------------------


def test_reordering(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, syn=True)
    assert rig.segment(1007, b"ghi", at=1) == []
    assert rig.segment(1004, b"def", at=2) == []
    assert rig.segment(1010, b"jkl", at=3) == []
    assert rig.segment(1001, b"abc", at=4) == [
        got(piece(b"abc", at=4), piece(b"def", at=2), piece(b"ghi", at=1), piece(b"jkl", at=3)),
    ]
    assert rig.segment(1013, b"mno", at=5) == [got(piece(b"mno", at=5))]


def test_reordering_up_to_the_end(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, syn=True)
    assert rig.segment(1007, b"ghi", fin=True) == []
    assert rig.segment(1004, b"def") == []
    assert rig.segment(1001, b"abc") == [got(piece(b"abc"), piece(b"def"), piece(b"ghi", end=True)), complete()]


def test_a_bare_fin_that_comes_early(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, syn=True)
    assert rig.segment(1004, fin=True, at=1) == []
    assert rig.segment(1001, b"abc", at=2) == [got(piece(b"abc", end=True, at=2)), complete()]


def test_several_gaps(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1000, syn=True)
    for seq in (1004, 1010, 1016):
        assert rig.segment(seq, b"%d" % seq) == []
    assert rig.segment(1001, b"abc") == [got(piece(b"abc"), piece(b"1004"))]
    assert rig.segment(1008, b"xy") == [got(piece(b"xy"), piece(b"1010"))]
    assert rig.flush_all() == (1, [got(piece(b"1016", skip=2)), complete()])


def test_gaps_that_are_filled_bit_by_bit(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    assert rig.segment(11, b"klmno") == []
    assert rig.segment(4, b"de") == []
    assert rig.segment(7, b"gh") == []
    assert rig.segment(1, b"abc") == [got(piece(b"abc"), piece(b"de"))]
    assert rig.segment(9, b"ij") == []
    assert rig.segment(6, b"f") == [got(piece(b"f"), piece(b"gh"), piece(b"ij"), piece(b"klmno"))]


# -- retransmissions and overlaps ---------------------------------------------------------------------------------------


def test_retransmission_of_what_was_delivered(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    rig.segment(1000, b"abcdef")
    for seq, data in ((1000, b"abcdef"), (1000, b"a"), (1005, b"f"), (1002, b"cd")):
        assert rig.segment(seq, data) == []
    assert rig.dropped == {"retransmitted": 10}
    assert rig.segment(1006, b"g") == [got(piece(b"g"))]


def test_retransmission_with_something_new(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    rig.segment(1000, b"abcdef", at=1)
    assert rig.segment(1003, b"defghi", at=2) == [got(piece(b"ghi", at=2))]
    assert rig.segment(1008, b"ij", at=3) == [got(piece(b"j", at=3))]
    assert rig.dropped == {"retransmitted": 4}


def test_retransmission_of_what_is_held(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    for _ in range(3):
        assert rig.segment(1003, b"def") == []
    assert (rig.dropped, rig.assembler.stats.pages_used) == ({"overlapping": 6}, 1)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"def"))]


def test_retransmission_of_a_part_of_what_is_held(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    assert rig.segment(1010, b"0123456789") == []
    assert rig.segment(1012, b"23") == []
    assert rig.segment(1010, b"0") == []
    assert rig.segment(1019, b"9") == []
    assert (rig.dropped, rig.assembler.stats.pages_used) == ({"overlapping": 4}, 1)
    assert rig.segment(1000, b"..........") == [got(piece(b".........."), piece(b"0123456789"))]


def test_across_what_is_held(tcpreasm: ModuleType) -> None:
    """One segment fills the holes before, between and behind held ones; what was held is not taken twice."""
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    rig.segment(1010, b"kl", at=1)
    rig.segment(1015, b"pq", at=2)
    assert rig.segment(1008, b"ijKLmnoPQrs", at=3) == []
    assert (rig.dropped, rig.assembler.stats.conflicting) == ({"overlapping": 4}, 4)
    assert rig.segment(1000, b"abcdefgh", at=4) == [
        got(
            piece(b"abcdefgh", at=4),
            piece(b"ij", at=3),
            piece(b"kl", at=1),
            piece(b"mno", at=3),
            piece(b"pq", at=2),
            piece(b"rs", at=3),
        )
    ]


def test_in_order_across_what_is_held(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    rig.segment(1003, b"de", at=1)
    rig.segment(1007, b"h", at=2)
    assert rig.segment(1000, b"abcDEfgHij", at=3) == [
        got(piece(b"abc", at=3), piece(b"de", at=1), piece(b"fg", at=3), piece(b"h", at=2), piece(b"ij", at=3))
    ]
    assert (rig.dropped, rig.assembler.stats.conflicting) == ({"overlapping": 3}, 3)
    assert rig.segment(1010, b"k") == [got(piece(b"k"))]


@pytest.mark.parametrize(("seq", "data", "rest"), [(1000, b"abcd", b"ef"), (1000, b"abcdef", b"ef"), (999, b"?abc", b"def")])
def test_in_order_into_what_is_held(tcpreasm: ModuleType, seq: int, data: bytes, rest: bytes) -> None:
    rig = Rig(tcpreasm)
    rig.segment(999, syn=True)
    rig.segment(1003, b"def", at=1)
    assert rig.segment(seq, data, at=2) == [got(piece(b"abc", at=2), piece(b"def", at=1))]
    assert rig.segment(1006, b"g") == [got(piece(b"g"))]


# -- wrap-around --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isn", [WRAP - 1, WRAP - 2, WRAP - 4, WRAP - 5, WRAP - 10, 2**31 - 1, 2**31 - 5, 0])
def test_in_order_around_the_wrap(tcpreasm: ModuleType, isn: int) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(isn, syn=True) == [new(), got(piece(start=True))]
    for offset in range(1, 13, 3):
        assert rig.segment(isn + offset, b"%3d" % offset) == [got(piece(b"%3d" % offset))]
    assert rig.segment(isn + 1, b"  1") == []
    assert rig.segment(isn + 9, b"...xy") == [got(piece(b"y"))]
    assert rig.segment(isn + 14, fin=True) == [got(piece(end=True)), complete()]


@pytest.mark.parametrize("isn", [WRAP - 1, WRAP - 2, WRAP - 4, WRAP - 5, WRAP - 10, 2**31 - 1, 2**31 - 5, 0])
def test_out_of_order_around_the_wrap(tcpreasm: ModuleType, isn: int) -> None:
    rig = Rig(tcpreasm)
    rig.segment(isn, syn=True)
    for offset in (10, 4, 7):
        assert rig.segment(isn + offset, b"%3d" % offset) == []
    assert rig.segment(isn + 1, b"  1") == [got(piece(b"  1"), piece(b"  4"), piece(b"  7"), piece(b" 10"))]
    assert rig.segment(isn + 15, b"z") == []
    assert rig.flush_all() == (1, [got(piece(b"z", skip=2)), complete()])


def test_a_stream_longer_than_its_sequence_numbers(tcpreasm: ModuleType) -> None:
    """5 GiB, most of it cut off by the capture; four times around."""
    rig = Rig(tcpreasm)
    seq, step = 4_000_000_000, (1 << 30) - 1
    rig.segment(seq, syn=True)
    seq += 1
    for index in range(20):
        assert rig.segment(seq, b"%4d" % index, wire=step) == [got(piece(b"%4d" % index, skip=step - 4 if index else 0))]
        assert rig.segment(seq, b"%4d" % index, wire=step) == []
        seq += step
    assert rig.segment(seq + 1, b"b") == []
    assert rig.segment(seq, b"a") == [got(piece(b"a", skip=step - 4), piece(b"b"))]
    assert rig.segment(seq + 2, fin=True) == [got(piece(end=True)), complete()]


# -- big segments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1899, 1900, 1901, 3800, 3801, 5700, 65000])
def test_big_segments_span_pages(tcpreasm: ModuleType, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    assert rig.segment(2, data, at=1) == []
    pages = -(-size // 1900)
    assert (rig.assembler.stats.pages_used, rig.assembler.stats.bytes_held) == (pages, size)
    chunks = [piece(data[offset : offset + 1900], at=1) for offset in range(0, size, 1900)]
    assert len(chunks) == pages
    assert rig.segment(1, b"!", at=2) == [got(piece(b"!", at=2), *chunks)]
    assert rig.assembler.stats.pages_used == 0
    assert rig.segment(2 + size, b".", at=3) == [got(piece(b".", at=3))]


def test_big_segments_in_order_are_one_piece(tcpreasm: ModuleType) -> None:
    data = bytes(number % 251 for number in range(100_000))
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    assert rig.segment(1, data) == [got(piece(data))]
    assert rig.assembler.stats.page_requests == 0


def test_a_big_segment_between_big_segments(tcpreasm: ModuleType) -> None:
    data = bytes(number % 251 for number in range(30_000))
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(20_001, data[20_000:])
    rig.segment(10_001, data[10_000:20_500])
    rig.segment(5_001, data[5_000:12_000])
    (call,) = rig.segment(1, data[:9_000])
    assert b"".join(chunk for chunk, *_ in call[2]) == data
    assert rig.dropped == {"overlapping": 500 + 2_000 + 4_000}


# -- limits -------------------------------------------------------------------------------------------------------------


def test_limit_of_a_connection(tcpreasm: ModuleType) -> None:
    """Reaching it is what triggers: the lowest page goes out, with what is contiguous."""
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=4)
    rig.segment(0, syn=True)
    assert rig.segment(11, b"a") == []
    assert rig.segment(13, b"b") == []
    assert rig.segment(12, b"x") == []
    assert rig.segment(21, b"c") == [got(piece(b"a", skip=10), piece(b"x"), piece(b"b"))]
    assert rig.assembler.stats.pages_used == 1
    assert rig.segment(1, b"0123456789") == []
    assert rig.dropped == {"retransmitted": 10}
    assert rig.segment(14, b"4567890") == [got(piece(b"4567890"), piece(b"c"))]


def test_limit_of_a_connection_of_others_does_not_count(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=3)
    for index in range(5):
        rig.segment(0, syn=True, ends=number(index))
        assert rig.segment(11, b"a", ends=number(index)) == []
        assert rig.segment(21, b"b", ends=number(index)) == []
    assert rig.segment(31, b"c", ends=number(2)) == [got(piece(b"a", skip=10), ends=number(2))]


def test_limit_and_one_big_segment(tcpreasm: ModuleType) -> None:
    """More pages than allowed, all of one segment: they go out as one call."""
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=2)
    rig.segment(0, syn=True)
    data = bytes(number % 251 for number in range(5000))
    assert rig.segment(11, data) == [got(piece(data[:1900], skip=10), piece(data[1900:3800]), piece(data[3800:]))]


def test_limit_of_one_page_holds_nothing(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=1)
    rig.segment(0, syn=True)
    assert rig.segment(11, b"a") == [got(piece(b"a", skip=10))]
    assert rig.segment(13, b"b") == [got(piece(b"b", skip=1))]


def test_limit_before_the_start(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=3)
    assert rig.segment(1010, b"b") == [new()]
    assert rig.segment(1000, b"a") == []
    assert rig.segment(1020, b"c") == [got(piece(b"a", skip=-1))]
    assert rig.segment(1030, b"d") == [got(piece(b"b", skip=9))]


def test_limit_in_total(tcpreasm: ModuleType) -> None:
    """The connection at hand is the one that stops waiting."""
    rig = Rig(tcpreasm, max_buffered_pages_total=4)
    for index in range(3):
        rig.segment(0, syn=True, ends=number(index))
        assert rig.segment(11, b"a", ends=number(index)) == []
    assert rig.segment(13, b"b", ends=number(1)) == [got(piece(b"a", skip=10), ends=number(1))]
    assert rig.segment(15, b"c", ends=number(1)) == [got(piece(b"b", skip=1), ends=number(1))]
    assert rig.segment(1, b"0123456789", ends=number(0)) == [got(piece(b"0123456789"), piece(b"a"), ends=number(0))]
    assert rig.segment(17, b"d", ends=number(1)) == []
    assert rig.segment(19, b"e", ends=number(1)) == [got(piece(b"c", skip=1), ends=number(1))]


def test_both_limits(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_total=4, max_buffered_pages_per_connection=3)
    for index in range(2):
        rig.segment(0, syn=True, ends=number(index))
    assert rig.segment(11, b"a", ends=number(0)) == []
    assert rig.segment(21, b"b", ends=number(0)) == []
    assert rig.segment(31, b"c", ends=number(0)) == [got(piece(b"a", skip=10), ends=number(0))]
    assert rig.segment(11, b"a", ends=number(1)) == []
    assert rig.segment(21, b"b", ends=number(1)) == [got(piece(b"a", skip=10), ends=number(1))]


@pytest.mark.parametrize("limit", [0, 2**31 - 1])
def test_no_limit(tcpreasm: ModuleType, limit: int) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_total=limit, max_buffered_pages_per_connection=limit, start_wait_segments=None)
    rig.segment(0, syn=True)
    for seq in range(2, 12_002, 2):
        assert rig.segment(seq, b"x") == []
    assert rig.assembler.stats.pages_used == 6000
    _, calls = rig.flush_all()
    assert calls == [got(*[piece(b"x", skip=1)] * 6000), complete()]


def test_a_limit_that_cannot_be_reached(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_buffered_pages_total=2**31 - 1, max_buffered_pages_per_connection=2**31 - 1)
    rig.segment(0, syn=True)
    assert rig.segment(11, b"x") == []


def test_default_limits(tcpreasm: ModuleType) -> None:
    options = tcpreasm.DEFAULT_ASSEMBLER_OPTIONS
    assert (options.max_buffered_pages_per_connection, options.max_buffered_pages_total) == (16_384, 131_072)
    assert tcpreasm.Assembler(tcpreasm.StreamPool(lambda net, transport: None)).options is options


# -- flushing -----------------------------------------------------------------------------------------------------------


def test_flush_of_nothing(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.flush() == rig.flush(close_all=True) == rig.flush_older_than(5) == ((0, 0), [])
    assert rig.flush_all() == (0, [])


def test_flush_gives_out_what_is_old(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True, at=10)
    rig.segment(11, b"a", at=20)
    assert rig.flush(20) == ((0, 0), [])
    assert rig.flush(20.000000001) == ((1, 0), [got(piece(b"a", skip=10, at=20))])
    assert rig.flush(100) == ((0, 0), [])
    assert len(rig.pool) == 1


def test_flush_gives_out_what_is_contiguous_too(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(11, b"a", at=1)
    rig.segment(12, b"b", at=5)
    rig.segment(14, b"c", at=5)
    assert rig.flush(2) == ((1, 0), [got(piece(b"a", skip=10, at=1), piece(b"b", at=5))])
    assert rig.flush(6) == ((1, 0), [got(piece(b"c", skip=1, at=5))])


def test_flush_gives_out_several_islands_in_one_call(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    for seq, at in ((11, 1), (21, 2), (31, 3), (41, 9)):
        rig.segment(seq, b"x", at=at)
    assert rig.flush(4) == ((1, 0), [got(piece(b"x", skip=10, at=1), piece(b"x", skip=9, at=2), piece(b"x", skip=9, at=3))])
    assert rig.flush(4) == ((0, 0), [])


def test_flush_before_the_start(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(1011, b"b", at=1)
    rig.segment(1000, b"a", at=1.5)
    assert rig.flush(1) == ((0, 0), [])
    assert rig.flush(3) == ((1, 0), [got(piece(b"a", skip=-1, at=1.5), piece(b"b", skip=10, at=1))])
    assert rig.segment(1012, b"c", at=4) == [got(piece(b"c", at=4))]


def test_flush_reaches_a_fin(tcpreasm: ModuleType) -> None:
    """The end behind a hole: the stream ends, with the hole told; the return value counts it as closed."""
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(11, b"tail", fin=True, at=1)
    assert rig.flush(2) == ((1, 1), [got(piece(b"tail", skip=10, end=True, at=1)), complete()])
    assert len(rig.pool) == 0


def test_flush_reaches_a_bare_fin(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(11, fin=True, at=1)
    assert rig.flush(1) == ((0, 0), [])
    assert rig.flush(2) == ((1, 1), [got(piece(skip=10, end=True, at=1)), complete()])


def test_flush_closes_the_idle_only_if_asked(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True, at=1)
    rig.segment(0, syn=True, at=5, ends=BACK)
    assert rig.flush(3) == ((0, 0), [])
    assert rig.flush(1, close_all=True) == ((0, 0), [])
    assert rig.flush(3, close_all=True) == ((1, 1), [complete()])
    assert rig.flush(5, close_all=True) == ((0, 0), [])
    assert rig.flush(6, close_all=True) == ((1, 1), [complete(BACK)])


def test_flush_older_than_closes_the_idle(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True, at=1)
    rig.segment(11, b"a", at=2)
    rig.segment(0, syn=True, at=1, ends=BACK)
    rig.segment(11, b"a", at=2, ends=BACK)
    rig.segment(1, b"b", at=8, ends=BACK)
    assert rig.flush_older_than(2) == ((0, 0), [])
    assert rig.flush_older_than(3) == (
        (2, 1),
        [got(piece(b"a", skip=10, at=2)), complete(), got(piece(b"a", skip=9, at=2), ends=BACK)],
    )
    assert rig.flush_older_than(9) == ((1, 1), [complete(BACK)])


def test_flush_counts(tcpreasm: ModuleType) -> None:
    """(connections that gave something out or were closed, connections that were closed)"""
    rig = Rig(tcpreasm)
    for index in range(10):
        rig.segment(0, syn=True, at=1, ends=number(index))
    for index in range(4):
        rig.segment(11, b"a", at=2, ends=number(index))
        rig.segment(21, b"b", at=3, ends=number(index), fin=index < 1)
    for index in range(2, 5):
        rig.segment(1, b"x", at=9, ends=number(index))
    assert rig.flush(2.5)[0] == (4, 0)  # 0, 1, 2, 3 give out `a`
    assert rig.flush(3.5)[0] == (4, 1)  # and then `b`, behind which 0 ends
    assert rig.flush(3.5)[0] == (0, 0)
    assert rig.flush_older_than(5)[0] == (6, 6)  # 1, 5, 6, 7, 8, 9 are idle
    assert [str(key) for key in rig.pool.keys()] == [f"10.0.0.{index}:{1024 + index}->192.0.2.1:80" for index in (2, 3, 4)]  # noqa: SIM118
    assert rig.flush_all()[0] == 3


def test_flush_without_a_time_is_everything(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True, at=1)
    rig.segment(11, b"a", at=10**9)
    assert rig.flush() == ((1, 0), [got(piece(b"a", skip=10, at=10**9))])
    assert rig.flush(close_all=True) == ((1, 1), [complete()])


def test_flush_all(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for index in range(3):
        rig.segment(0, syn=True, at=index, ends=number(index))
    rig.segment(11, b"a", at=7, ends=number(1))
    rig.segment(15, fin=True, at=8, ends=number(1))
    assert rig.flush_all() == (
        3,
        [
            complete(number(0)),
            got(piece(b"a", skip=10, at=7), piece(skip=3, end=True, at=8), ends=number(1)),
            complete(number(1)),
            complete(number(2)),
        ],
    )
    assert rig.flush_all() == (0, [])


def test_after_a_flush_the_stream_goes_on(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(11, b"abc", at=1)
    rig.flush(2)
    assert rig.segment(14, b"def", at=3) == [got(piece(b"def", at=3))]
    assert rig.segment(1, b"0123456789abcdefgh", at=4) == [got(piece(b"gh", at=4))]
    assert rig.dropped == {"retransmitted": 16}


def test_after_a_flush_that_closed_a_new_stream_begins(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.flush_all()
    assert rig.segment(1, b"abc") == [new()]
    assert rig.flush_all() == (1, [got(piece(b"abc", skip=-1)), complete()])


def test_flush_with_a_datetime(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(11, b"a", at=1.5)
    at = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=timezone.utc)
    assert rig.flush_older_than(at)[0] == (0, 0)
    assert rig.flush_older_than(at.replace(microsecond=500_001))[0] == (1, 1)


# -- times --------------------------------------------------------------------------------------------------------------


def test_the_ways_to_give_a_time(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    flow, tcp = tcpreasm.Flow(ENDS[0], ENDS[2]), tcpreasm.TCPSegment(1234, 80, 0, syn=True)
    later = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)
    rig.assembler.assemble(flow, tcp, 12.5)
    rig.assembler.assemble(flow, tcpreasm.TCPSegment(1234, 80, 1, b"a"), timestamp_ns=13 * NS + 1)
    rig.assembler.assemble(flow, tcpreasm.TCPSegment(1234, 80, 2, b"b"), later)
    rig.assembler.assemble_with_timestamp(flow, tcpreasm.TCPSegment(1234, 80, 3, b"c"), 14)
    rig.assembler.assemble_frame(frame(4, b"d"), 15.25)
    seen = [call[2][0][4] for call in rig.taken()[1:]]
    assert seen == [12_500_000_000, 13_000_000_001, 1_714_979_289_123_456_000, 14 * NS, 15_250_000_000]


def test_without_a_time_it_is_now(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    before = time.time_ns()
    rig.assembler.assemble(tcpreasm.Flow(ENDS[0], ENDS[2]), tcpreasm.TCPSegment(1234, 80, 0, syn=True))
    rig.assembler.assemble_frame(frame(1, b"d"))
    first, second = (call[2][0][4] for call in rig.taken()[1:])
    assert before <= first <= second <= time.time_ns()


def test_seen_in_seconds(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.recorder.keep = True
    rig.segment(0, b"abc", syn=True, at=1.5)
    (kept,) = rig.recorder.kept
    assert (kept.seen, kept.seen_ns, kept.bytes, len(kept), bytes(memoryview(kept))) == (1.5, 1_500_000_000, b"abc", 3, b"abc")


# -- frames -------------------------------------------------------------------------------------------------------------


def test_frames(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.frame(frame(999, flags=SYN), at=1) == [new(), got(piece(start=True, at=1))]
    assert rig.frame(frame(1003, b"def", PSH | 16, padding=bytes(6)), at=2) == []
    assert rig.frame(frame(1000, b"abc"), at=3) == [got(piece(b"abc", at=3), piece(b"def", at=2))]
    assert rig.frame(frame(1006, b"", 17), at=4) == [got(piece(end=True, at=4)), complete()]


def test_frames_over_ipv6_and_without_a_link_layer(tcpreasm: ModuleType) -> None:
    ends = ("2001:db8::1", 5, "2001:db8::2", 6)
    rig = Rig(tcpreasm)
    assert rig.frame(frame(999, flags=SYN, ends=ends)) == [new(ends), got(piece(start=True), ends=ends)]
    assert rig.frame(frame(1000, b"abc", ends=ends, link=b""), linktype=101) == [got(piece(b"abc"), ends=ends)]


def test_what_a_frame_was(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    verdict = tcpreasm.Verdict
    assert rig.assembler.assemble_frame(frame(999, flags=SYN), 0) is verdict.SEGMENT
    assert rig.assembler.assemble_frame(bytes(60), 0) is verdict.NOT_IP
    assert rig.assembler.assemble_frame(b"", 0) is verdict.TRUNCATED
    assert rig.assembler.assemble_frame(frame(0), 0, linktype=9999) is verdict.UNKNOWN_LINKTYPE
    stats = rig.assembler.stats
    assert stats.frames == 4
    assert dict(stats.verdicts) == {verdict.SEGMENT: 1, verdict.UNKNOWN_LINKTYPE: 1, verdict.NOT_IP: 1, verdict.TRUNCATED: 1}


# -- memory -------------------------------------------------------------------------------------------------------------


def test_no_growth_out_of_order(tcpreasm: ModuleType) -> None:
    """Thousands of rounds of early segments and the ones that they wait for: the same pages, again and again."""
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    seq, rounds, early = 1, 3000, 10
    for _ in range(rounds):
        for index in range(early, 0, -1):
            rig.segment(seq + index * 100, bytes([index]) * 100)
        assert rig.segment(seq, bytes(100)) == [got(*(piece(bytes([index]) * 100) for index in range(early + 1)))]
        seq = (seq + (early + 1) * 100) % WRAP
    stats = rig.assembler.stats
    assert (stats.pages_allocated, stats.pages_used, stats.page_requests) == (2048, 0, rounds * early)  # 1024 of 1900 bytes, and of 432


def test_no_growth_with_many_connections(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for _ in range(30):
        for index in range(100):
            rig.segment(0, syn=True, ends=number(index))
            rig.segment(11, b"x" * 10_000, ends=number(index))
        assert rig.assembler.stats.pages_used == 600
        assert rig.flush_all()[0] == 100
    assert (rig.assembler.stats.pages_allocated, rig.assembler.stats.page_requests) == (1024, 30 * 600)


def test_pages_that_a_flood_took_are_given_back(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    for seq in range(2, 10_002, 2):
        rig.send(tcpreasm.TCPSegment(1234, 80, seq, b"x"))
    assert (rig.assembler.stats.pages_used, rig.assembler.stats.pages_allocated) == (5000, 1024 + 1024 + 2048 + 4096)
    rig.flush()
    assert (rig.assembler.stats.pages_used, rig.assembler.stats.pages_allocated) == (0, 1024 + 1024)


# -- logging ------------------------------------------------------------------------------------------------------------


def test_nothing_is_logged_unless_asked_for(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tcpreasm"):
        rig = Rig(tcpreasm)
        for seq in range(2, 4002, 2):
            rig.segment(seq, b"x")
        rig.flush_all()
    assert not caplog.records


def test_nobody_listens_without_logging(tcpreasm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    log = submodule(tcpreasm, "_log").Log("tcpreasm.assembly")
    logging.getLogger("tcpreasm.assembly").setLevel(logging.DEBUG)
    try:
        assert log.is_on() is True
        monkeypatch.delitem(sys.modules, "logging")
        assert log.is_on() is False
    finally:
        logging.getLogger("tcpreasm.assembly").setLevel(logging.NOTSET)


def test_the_memory_log(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        rig.segment(0, syn=True)
        for seq in range(2, 2052, 2):
            rig.segment(seq, b"x")
        rig.flush()
        for _ in range(0x10000 // 1000 + 1):
            for seq in range(10_000, 12_000, 2):
                rig.send(tcpreasm.TCPSegment(1234, 80, seq, b"x"))
            rig.assembler.flush_all()
            rig.send(tcpreasm.TCPSegment(1234, 80, 0, syn=True))
    assert {record.name for record in caplog.records} == {"tcpreasm.memory"}
    told = [record.getMessage() for record in caplog.records]
    assert told[:5] == [
        "stream pool: 1024 connections added",
        "page cache: 1024 pages of 1900 bytes added, 1024 in all",
        "page cache: 1024 pages of 16 bytes added, 1024 in all",
        "page cache: 2048 pages of 16 bytes added, 3072 in all",
        "page cache: 2048 pages of 16 bytes let go, 1024 in all",
    ]
    assert next(line for line in told if "requests" in line).startswith("page cache: 65536 requests of 16 bytes, ")


def test_the_assembly_log(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tcpreasm.assembly"):
        rig = Rig(tcpreasm, max_buffered_pages_per_connection=2)
        rig.segment(1000, fin=True)
        rig.segment(1000, syn=True)
        rig.segment(1011, b"early")
        rig.segment(1021, b"earlier")
        rig.segment(1001, b"0123456789")
        rig.segment(1016, b"12345")
        rig.segment(1028, fin=True)
    assert {record.name for record in caplog.records} == {"tcpreasm.assembly"}
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert told == [
        "nothing to open a stream with",
        "starts at 1000",
        "10 bytes ahead, held",
        "20 bytes ahead, held",
        "limit reached with 2 pages",
        "ended",
    ]
    assert all(record.getMessage().startswith("10.0.0.1:1234->10.0.0.2:80: ") for record in caplog.records)


def test_the_log_is_asked_for_when_an_assembler_is_made(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tcpreasm)
    with caplog.at_level(logging.DEBUG, "tcpreasm"):
        rig.segment(1000, syn=True)
    assert not caplog.records


def of_interfaces(linktypes: list[int], frames: int) -> bytes:
    """A pcapng capture of as many interfaces, with so many frames from each, in turn."""
    text = frame(0, b"text")
    blocks = [epb("<", interface, nth, text) for nth in range(frames) for interface in range(len(linktypes))]
    return b"".join([shb(), *(idb(linktype=linktype) for linktype in linktypes), *blocks])


@pytest.mark.parametrize("threads", [1, 2])
def test_unknown_link_types_are_told_once_each(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture, threads: int) -> None:
    """Whatever way the frames come, and however many they are; by one assembler, from call to call too."""
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream))
    with caplog.at_level(logging.WARNING, "tcpreasm.assembly"):
        for _ in range(2):
            summary = assembler.assemble_capture(of_interfaces([239, 1, 129, 239], 70), threads=threads)
    assert summary.verdicts == {tcpreasm.Verdict.SEGMENT: 70, tcpreasm.Verdict.UNKNOWN_LINKTYPE: 210}
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("tcpreasm.assembly", "link type 239 is not decoded: frames of it are left out"),
        ("tcpreasm.assembly", "link type 129 is not decoded: frames of it are left out"),
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tcpreasm.assembly"):
        assembler.assemble_capture([tcpreasm.Frame(bytes(60), 0, 60, 178), tcpreasm.Frame(bytes(60), 0, 60, 129)])
        assembler.assemble_capture([(0, bytes(60))], linktype=195)
        assembler.assemble_batch(bytes(60), [0], [60], [0], linktype=147)
        assembler.assemble_frame(bytes(60), 0, linktype=-7)
        assembler.assemble_frame(bytes(60), 0, linktype=2**70)
    told = [int(record.getMessage().split()[2]) for record in caplog.records]
    assert told == [178, 195, 147, -7, 2**31 - 1]


def test_a_capture_of_a_thousand_unknown_link_types_is_no_thousand_warnings(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream))
    with caplog.at_level(logging.WARNING, "tcpreasm.assembly"):
        summary = assembler.assemble_capture(of_interfaces([*range(1000, 2000)], 3))
    assert summary.verdicts == {tcpreasm.Verdict.UNKNOWN_LINKTYPE: 3000}
    assert [int(record.getMessage().split()[2]) for record in caplog.records] == [*range(1000, 1016)]
