"""Where gopacket's tcpassembly goes wrong, seen by running it: a test for each, named as the list of those faults names it.

A docstring says in a few words what the model does; the test asserts what is right. Chunks are [bytes skip start end].

Not here, because they need what is built later:
    35_rst_from_peer      a RST that ends the other direction as well: needs both directions in one place
    pcap/fragments        IPv4 fragments: need defragmentation
    pcap/gre              two tunnelled connections under one outer address pair: need decapsulation
Not here, because there is nothing to assert: two packages that register the same command-line flags.
The rows 06, 10 and 40 to 43 of the model's bidirectional sibling are asserted for one direction.
"""

from __future__ import annotations

import struct
import threading
from types import ModuleType
from typing import Any

import pytest
from recorder import FIN, SYN, Recorder, Rig, complete, frame, got, new, number, piece, segment

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def rig(tcpreasm: ModuleType) -> Rig:
    return Rig(tcpreasm)


def opened(package: ModuleType, isn: int = 999, **options: Any) -> Rig:
    """A stream that expects isn + 1."""
    rig = Rig(package, **options)
    assert rig.segment(isn, syn=True) == [new(), got(piece(start=True))]
    return rig


# -- ends ---------------------------------------------------------------------------------------------------------------


def test_01_fin_retransmit_with_data(tcpreasm: ModuleType) -> None:
    """The model: the retransmitted FIN segment opens a second stream, which delivers its data again."""
    rig = opened(tcpreasm)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(1003, b"def", fin=True) == [got(piece(b"def", end=True)), complete()]
    assert rig.segment(1003, b"def", fin=True, at=1) == []
    assert (len(rig.pool), rig.dropped) == (0, {"after_close": 3})
    assert rig.flush_all() == (0, [])


def test_02_data_after_fin(tcpreasm: ModuleType) -> None:
    """The model: the same for retransmitted data without FIN; it holds a page until a flush."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    rig.segment(1003, fin=True)
    assert rig.segment(1000, b"abc", at=1) == []
    assert (rig.assembler.stats.pages_used, rig.dropped) == (0, {"after_close": 3})
    assert rig.flush_all() == (0, [])


def test_03_old_fin_closes(tcpreasm: ModuleType) -> None:
    """The model: a FIN below what was delivered ends the stream, and the live data becomes another one."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"abcdefg")
    assert rig.segment(1001, fin=True) == []
    assert rig.segment(1001, b"bcd", fin=True) == []
    assert rig.assembler.stats.fin_ignored == 2
    assert rig.segment(1007, b"hij") == [got(piece(b"hij"))]
    assert rig.segment(1010, fin=True) == [got(piece(end=True)), complete()]


def test_03_fin_counts_only_at_its_own_place(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1003, fin=True) == []
    assert rig.segment(1000, b"ab") == [got(piece(b"ab"))]
    assert rig.segment(1002, b"c", at=4) == [got(piece(b"c", end=True, at=4)), complete()]


def test_04_rst_wild_seq_below(tcpreasm: ModuleType) -> None:
    """The model: a RST with sequence number 5 ends a stream that expects 1000004."""
    rig = opened(tcpreasm, 1_000_000)
    rig.segment(1_000_001, b"abc")
    for seq in (5, 1_000_003, 1_000_005, 0, 2**32 - 1, 1_000_004 + 2**31):
        assert rig.segment(seq, rst=True) == []
    assert rig.assembler.stats.rst_ignored == 6
    assert rig.segment(1_000_004, b"def") == [got(piece(b"def"))]
    assert rig.segment(1_000_007, rst=True) == [got(piece(end=True)), complete()]


def test_05_rst_wild_seq_above(tcpreasm: ModuleType) -> None:
    """The model: kept as a page; the next flush skips a gigabyte and closes."""
    rig = opened(tcpreasm, 1_000_000)
    rig.segment(1_000_001, b"abc", at=1)
    assert rig.segment(1_000_004 + 10**9, rst=True, at=2) == []
    assert (rig.assembler.stats.rst_ignored, rig.assembler.stats.pages_used) == (1, 0)
    assert rig.flush(3) == ((0, 0), [])
    assert rig.segment(1_000_004, b"def", at=4) == [got(piece(b"def", at=4))]


def test_16_end_not_last(tcpreasm: ModuleType) -> None:
    """The model: [abc][def end][0]: the end is not last, so nothing is closed."""
    rig = opened(tcpreasm)
    assert rig.segment(1003, b"def", fin=True, at=1) == []
    assert rig.segment(1004, b"e", at=2) == []
    assert rig.segment(1005, b"f", at=2) == []
    assert rig.segment(1000, b"abc", at=3) == [got(piece(b"abc", at=3), piece(b"def", end=True, at=1)), complete()]
    assert rig.dropped == {"overlapping": 2}


def test_17_data_beyond_fin(tcpreasm: ModuleType) -> None:
    """The model: bytes beyond the FIN are delivered after the end and keep the stream open."""
    rig = opened(tcpreasm)
    assert rig.segment(1003, b"def", fin=True) == []
    assert rig.segment(1006, b"XXX") == []
    assert rig.segment(1004, b"efXX") == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"def", end=True)), complete()]
    assert rig.dropped == {"after_end": 5, "overlapping": 2}
    assert rig.segment(1006, b"XXX") == []
    assert rig.flush_all() == (0, [])


def test_17_data_beyond_fin_that_came_before_it(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    assert rig.segment(1008, b"XX") == []
    assert rig.segment(1004, b"efXX") == []
    assert rig.segment(1003, b"def", fin=True) == []
    assert rig.dropped == {"after_end": 4, "overlapping": 2}
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"d"), piece(b"ef", end=True)), complete()]


def test_24_rst_payload_is_data(tcpreasm: ModuleType) -> None:
    """The model: the text in a RST is delivered as stream bytes."""
    rig = opened(tcpreasm)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(1003, b"connection refused", rst=True) == [got(piece(end=True)), complete()]
    assert rig.dropped == {"rst_text": 18}


def test_25_syn_fin_loses_fin(rig: Rig) -> None:
    """The model: SYN, FIN and data in one: no end, and the stream stays open."""
    assert rig.segment(999, b"abc", syn=True, fin=True) == [new(), got(piece(b"abc", start=True, end=True)), complete()]
    assert len(rig.pool) == 0


def test_34_bare_fin_rst_unknown(rig: Rig) -> None:
    """The model is right here."""
    assert rig.segment(999, fin=True) == []
    assert rig.segment(999, rst=True) == []
    assert rig.segment(999) == []
    assert (len(rig.pool), rig.flush_all()) == (0, (0, []))


# -- another SYN --------------------------------------------------------------------------------------------------------


def test_06_syn_reuse_lower_isn(tcpreasm: ModuleType) -> None:
    """The model: the whole new connection is given as empty chunks, lost, without a sign."""
    rig = opened(tcpreasm, 900_000)
    assert rig.segment(900_001, b"old") == [got(piece(b"old"))]
    assert rig.segment(999, syn=True, at=10) == []
    assert rig.segment(1000, b"new", at=11) == [complete(), new(), got(piece(start=True, at=10), piece(b"new", at=11))]
    assert rig.segment(1003, b"new2", at=12) == [got(piece(b"new2", at=12))]
    assert rig.segment(1007, fin=True, at=13) == [got(piece(end=True, at=13)), complete()]


def test_06_syn_reuse_after_the_close(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, 900_000)
    assert rig.segment(900_001, b"old", fin=True) == [got(piece(b"old", end=True)), complete()]
    assert rig.segment(999, syn=True, at=1) == [new(), got(piece(start=True, at=1))]
    assert rig.segment(1000, b"new", at=2) == [got(piece(b"new", at=2))]


def test_06_overlap_statistics(tcpreasm: ModuleType) -> None:
    """The bidirectional sibling: counts 1798003 overlapped bytes for 7."""
    rig = opened(tcpreasm, 900_000)
    rig.segment(900_001, b"old")
    rig.segment(999, syn=True)
    rig.segment(1000, b"new")
    rig.segment(1003, b"new2")
    stats = rig.assembler.stats
    assert (rig.dropped, stats.conflicting, stats.bytes_skipped, stats.bytes_delivered) == ({}, 0, 0, 10)


def test_07_syn_reuse_higher_isn(tcpreasm: ModuleType) -> None:
    """The model: [0 skip=898996] [new skip=1] in the old stream, no start, held until a flush."""
    rig = opened(tcpreasm, 999)
    assert rig.segment(1000, b"old") == [got(piece(b"old"))]
    assert rig.segment(900_000, syn=True, at=10) == []
    assert rig.segment(900_001, b"new", at=11) == [complete(), new(), got(piece(start=True, at=10), piece(b"new", at=11))]
    assert rig.segment(900_004, b"new2", at=12) == [got(piece(b"new2", at=12))]


def test_07_a_forged_syn_cuts_nothing(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, 999)
    rig.segment(1000, b"old")
    assert rig.segment(900_000, b"forged", syn=True) == []
    assert rig.segment(1003, b" goes on") == [got(piece(b" goes on"))]
    assert rig.segment(1011, fin=True) == [got(piece(end=True)), complete()]
    assert rig.dropped == {"unconfirmed_syn": 6}


def test_08_syn_reuse_with_data(tcpreasm: ModuleType) -> None:
    """The model: a SYN's data is stored at its own number, not one behind: a false skip of 1 follows."""
    rig = opened(tcpreasm, 900_000)
    rig.segment(900_001, b"old")
    assert rig.segment(999, b"abc", syn=True, at=1) == []
    assert rig.segment(1003, b"def", at=2) == [complete(), new(), got(piece(start=True, at=1), piece(b"abc", at=1), piece(b"def", at=2))]


def test_09_syn_repeated_with_data(tcpreasm: ModuleType) -> None:
    """The model: delivers `bc`, then `cdef`, for `abcdef`."""
    rig = opened(tcpreasm, 999)
    assert rig.segment(999, b"abc", syn=True) == [got(piece(b"abc"))]
    assert rig.segment(1000, b"abcdef") == [got(piece(b"def"))]
    assert rig.dropped == {"retransmitted": 3}


def test_10_syn_while_waiting(rig: Rig) -> None:
    """The model: data that waits is trimmed to nothing by a SYN with a higher number (its sibling: skip -895004, and old behind new)."""
    assert rig.segment(5000, b"olddata", at=0.1) == [new()]
    assert rig.segment(900_000, syn=True, at=0.2) == [
        got(piece(b"olddata", skip=-1, at=0.1)),
        complete(),
        new(),
        got(piece(start=True, at=0.2)),
    ]
    assert rig.segment(900_001, b"newdata", at=0.3) == [got(piece(b"newdata", at=0.3))]
    assert rig.dropped == {}


# -- overlaps -----------------------------------------------------------------------------------------------------------


def test_11_conflict_lower_seq_wins(tcpreasm: ModuleType) -> None:
    """The model: of two held copies the one with the lower sequence number wins. Here the first captured, and the conflict is told."""
    rig = opened(tcpreasm)
    assert rig.segment(1005, b"FIRST", at=1) == []
    assert rig.segment(1003, b"..second..", at=2) == []
    assert rig.segment(1000, b"abc", at=3) == [
        got(piece(b"abc", at=3), piece(b"..", at=2), piece(b"FIRST", at=1), piece(b"d..", at=2)),
    ]
    assert (rig.dropped, rig.assembler.stats.conflicting) == ({"overlapping": 5}, 5)


def test_12_conflict_first_wins(tcpreasm: ModuleType) -> None:
    """The model: at equal sequence numbers the first come wins, without a sign of the conflict."""
    rig = opened(tcpreasm)
    assert rig.segment(1003, b"FIRST") == []
    assert rig.segment(1003, b"FORST") == []
    assert (rig.dropped, rig.assembler.stats.conflicting) == ({"overlapping": 5}, 1)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"FIRST"))]


def test_43_bidi_new_data_overwrites(tcpreasm: ModuleType) -> None:
    """The bidirectional sibling: the later of two held copies wins. Here the first, also against what comes in order."""
    rig = opened(tcpreasm)
    rig.segment(1003, b"def", at=1)
    rig.segment(1003, b"DEF", at=2)
    assert rig.segment(1000, b"abcXYZ", at=3) == [got(piece(b"abc", at=3), piece(b"def", at=1))]
    assert (rig.dropped, rig.assembler.stats.conflicting) == ({"overlapping": 6}, 6)


def test_29_duplicate_gives_empty_call(tcpreasm: ModuleType) -> None:
    """The model: each duplicate calls the stream with one empty chunk."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc")
    for seq, data in ((1000, b"abc"), (1001, b"b"), (500, b"old")):
        assert rig.segment(seq, data) == []
    assert rig.segment(999, syn=True) == []


# -- arithmetic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seq", "skip"), [(0, GIB), (1, GIB + 1), (2**32 - 1, GIB - 1)])
def test_13_wrap_exactly_a_quarter(tcpreasm: ModuleType, seq: int, skip: int) -> None:
    """The model: at exactly 0xC0000000 a segment at 0 is old, one at 0xC0000001 ahead."""
    rig = opened(tcpreasm, 0xBFFFFFFF, max_gap=None)
    assert rig.segment(seq, b"far") == []
    assert rig.flush() == ((1, 0), [got(piece(b"far", skip=skip))])


def test_14_difference_not_modular(tcpreasm: ModuleType) -> None:
    """The model: a segment 1.5 GiB behind is taken for one 2684354558 bytes ahead."""
    rig = opened(tcpreasm, 0x20000000, max_gap=None)
    assert rig.segment(0xBFFFFFFF, b"old") == []
    assert (rig.dropped, rig.flush()) == ({"retransmitted": 3}, ((0, 0), []))


def test_40_bidi_wrap_off_by_one(tcpreasm: ModuleType) -> None:
    """The bidirectional sibling: a retransmission across the wrap gives one byte twice and loses another."""
    data = bytes(range(0x40))
    for begin in range(len(data)):
        isn = 2**32 - 1 - begin
        rig = opened(tcpreasm, isn)
        (delivered,) = rig.segment(isn + 1, data[:0x20])
        assert delivered == got(piece(data[:0x20]))
        assert rig.segment(isn + 1 + 0x13, data[0x13:0x30]) == [got(piece(data[0x20:0x30]))]
        assert rig.segment(isn + 1 + 0x38, data[0x38:]) == []
        assert rig.segment(isn + 1 + 0x2E, data[0x2E:0x3A]) == [got(piece(data[0x30:0x38]), piece(data[0x38:]))]


# -- the start ----------------------------------------------------------------------------------------------------------


def test_23_no_syn_waits_for_ever(rig: Rig) -> None:
    """The model: without a SYN nothing is delivered until a flush. Here after 16 segments, or 1 second."""
    for index in range(15):
        assert rig.segment(1000 + index, b"%X" % index, at=0.01 * index) == ([] if index else [new()])
    assert rig.segment(1015, b"F", at=0.15) == [
        got(*(piece(b"%X" % index, skip=0 if index else -1, at=0.01 * index) for index in range(16))),
    ]
    assert rig.segment(1016, b"more", at=0.2) == [got(piece(b"more", at=0.2))]


def test_23_no_syn_waits_a_second(rig: Rig) -> None:
    assert rig.segment(1003, b"def", at=5) == [new()]
    assert rig.segment(1000, b"abc", at=5.999999999) == []
    assert rig.segment(1006, b"ghi", at=6) == [got(piece(b"abc", skip=-1, at=5.999999999), piece(b"def", at=5), piece(b"ghi", at=6))]


def test_32_late_syn_no_start(rig: Rig) -> None:
    """The model: a SYN after its flushed data: the start is never reported. Here skip -1 says that it was missed, and it is counted."""
    assert rig.segment(1000, b"abc", at=1) == [new()]
    assert rig.flush() == ((1, 0), [got(piece(b"abc", skip=-1, at=1))])
    assert rig.segment(999, syn=True, at=2) == []
    assert rig.assembler.stats.late_syn == 1
    assert rig.segment(1003, b"def", at=3) == [got(piece(b"def", at=3))]


@pytest.mark.parametrize("syn", [False, True])
def test_33_limit_before_start(tcpreasm: ModuleType, syn: bool) -> None:
    """The model: under a limit the lowest held segment becomes the start, and what comes before it is lost. So here, but counted."""
    rig = Rig(tcpreasm, max_buffered_pages_per_connection=2)
    assert rig.segment(1010, b"klm") == [new()]
    assert rig.segment(1005, b"fg") == [got(piece(b"fg", skip=-1))]
    if syn:
        assert rig.segment(999, syn=True) == []
    assert rig.segment(1000, b"abcdefghij") == [got(piece(b"hij"), piece(b"klm"))]
    assert rig.dropped == {"before_start": 5, "retransmitted": 2}


# -- memory and limits --------------------------------------------------------------------------------------------------


def test_18_page_cache_never_shrinks(tcpreasm: ModuleType) -> None:
    """The model: 3000 one-byte segments take 3072 pages for ever."""
    rig = opened(tcpreasm, 0)
    for seq in range(2, 6002, 2):
        assert rig.segment(seq, b"x") == []
    assert rig.assembler.stats.pages_used == 3000
    rig.flush()
    assert (rig.assembler.stats.pages_used, rig.assembler.stats.pages_allocated) == (0, 2 * 1024)  # of 1900 bytes, and of 24


def test_18_one_byte_segments_are_bounded(tcpreasm: ModuleType) -> None:
    """The model: 300 000 one-byte segments take 523 264 pages. Here the default limit holds."""
    rig = opened(tcpreasm, 0)
    for seq in range(2, 40_002, 2):
        rig.send(segment(tcpreasm, seq, b"x"))
    stats = rig.assembler.stats
    assert stats.pages_used == 16_383
    assert stats.pages_allocated <= 2 * 16_384


def test_19_max_pages_off_by_one(tcpreasm: ModuleType) -> None:
    """The model: a limit of N holds N - 1 pages, undocumented. Here it is documented: reaching N is what triggers."""
    for limit in range(1, 6):
        rig = opened(tcpreasm, 0, max_buffered_pages_per_connection=limit)
        for index in range(limit - 1):
            assert rig.segment(11 + 10 * index, b"x") == []
        assert rig.segment(11 + 10 * (limit - 1), b"x") == [got(piece(b"x", skip=10))]
        assert rig.assembler.stats.pages_used == limit - 1


def test_20_max_total_punishes_others(tcpreasm: ModuleType) -> None:
    """The model: a stream that holds pages for ever makes all others skip. At the limit the connection at hand stops waiting here too,
    but whole captures give up on a hole by capture time, and then the others may wait again."""
    frames = [(0, frame(0, flags=SYN)), (0, frame(11, b"aaa")), (0, frame(21, b"bbb"))]
    frames += [(second, frame(second, flags=SYN, ends=number(second))) for second in range(1, 200)]
    frames += [(200, frame(11, b"late", ends=number(199))), (201, frame(200, b"0", ends=number(199)))]
    rig = Rig(tcpreasm, max_buffered_pages_total=3)
    packets = [tcpreasm.Frame(data, second * 10**9, len(data), 1) for second, data in frames]
    rig.assembler.assemble_capture(packets, flush=False)
    calls = rig.taken()
    assert got(piece(b"aaa", skip=10), piece(b"bbb", skip=7)) in calls


def test_31_shared_pool_page_counts(tcpreasm: ModuleType) -> None:
    """The model: pages go to the cache of the one that flushes; used is 3 and -3 for ever, and the total limit fails."""
    one = Rig(tcpreasm)
    one.shared = True
    two = Rig(tcpreasm, one.recorder, one.pool, max_buffered_pages_total=3)
    one.segment(0, syn=True)
    for seq in (11, 21, 31):
        one.segment(seq, b"x")
    assert (one.assembler.stats.pages_used, two.assembler.stats.pages_used) == (3, 0)
    assert two.flush()[1] == [got(piece(b"x", skip=10), piece(b"x", skip=9), piece(b"x", skip=9))]
    assert (one.assembler.stats.pages_used, two.assembler.stats.pages_used) == (0, 0)
    assert two.segment(41, b"a") == two.segment(51, b"b") == []
    assert two.segment(61, b"c") == [got(piece(b"a", skip=9))]
    assert one.flush()[1] == [got(piece(b"b", skip=9), piece(b"c", skip=9))]
    assert (one.assembler.stats.pages_used, two.assembler.stats.pages_used) == (0, 0)
    assert one.assembler.stats.bytes_held == two.assembler.stats.bytes_held == 0


def test_30_wild_segment_poisons(tcpreasm: ModuleType) -> None:
    """The model: one forged byte 512 MiB ahead and one flush, and all genuine data is old."""
    rig = opened(tcpreasm, 0)
    rig.segment(1, b"abc")
    assert rig.segment(512 * MIB, b"!") == []
    assert rig.dropped == {"out_of_window": 1}
    assert rig.flush() == ((0, 0), [])
    assert rig.segment(4, b"def") == [got(piece(b"def"))]


def test_30_a_real_gap_is_followed(tcpreasm: ModuleType) -> None:
    """What is further ahead than max_gap is believed once packets continue from it."""
    rig = opened(tcpreasm, 0)
    rig.segment(1, b"abc")
    assert rig.segment(512 * MIB, b"one") == []
    assert rig.segment(512 * MIB + 3, b"two") == []
    assert rig.dropped == {"out_of_window": 3}
    assert rig.flush() == ((1, 0), [got(piece(b"two", skip=512 * MIB - 1))])
    assert rig.segment(512 * MIB + 6, b"three") == [got(piece(b"three"))]


# -- time and flushing --------------------------------------------------------------------------------------------------


def test_15_recycled_last_seen(tcpreasm: ModuleType) -> None:
    """The model: a new stream in a reused connection keeps the older one's later time."""
    rig = Rig(tcpreasm)
    for index in range(1024):
        rig.segment(0, syn=True, at=1000, ends=number(index))
    rig.flush_all()
    rig.segment(0, syn=True, at=5)
    assert rig.flush_older_than(100) == ((1, 1), [complete()])


def test_22_pure_ack_is_no_activity(tcpreasm: ModuleType) -> None:
    """The model: a living stream that only acknowledges is closed, and its next data waits for a start that never comes."""
    rig = opened(tcpreasm)
    for second in range(1, 10):
        assert rig.segment(1000, ack=second, at=second) == []
    assert rig.flush_older_than(8) == ((0, 0), [])
    assert rig.segment(1000, b"abc", at=10) == [got(piece(b"abc", at=10))]


def test_26_flush_zero_time(tcpreasm: ModuleType) -> None:
    """The model: no time flushes nothing, though its comment reads as everything. Here None is everything, and 0 is 1970."""
    rig = opened(tcpreasm)
    rig.segment(1010, b"x", at=1)
    assert rig.flush(0) == rig.flush(0, close_all=True) == ((0, 0), [])
    assert rig.flush(None) == ((1, 0), [got(piece(b"x", skip=10, at=1))])
    assert rig.flush(None, close_all=True) == ((1, 1), [complete()])


def test_27_stale_not_closed(tcpreasm: ModuleType) -> None:
    """The model: its comment says that stale connections are closed in any case; they are not. Here close_all says which, and says so."""
    rig = opened(tcpreasm)
    assert rig.flush(100, close_all=False) == ((0, 0), [])
    assert len(rig.pool) == 1
    assert rig.flush(100, close_all=True) == ((1, 1), [complete()])
    assert "close" in tcpreasm.Assembler.flush_with_options.__doc__


def test_28_flush_looks_at_first_page_only(tcpreasm: ModuleType) -> None:
    """The model: a page that waits since 1 is held back by a younger one before it."""
    rig = opened(tcpreasm)
    rig.segment(1020, b"old", at=1)
    rig.segment(1010, b"young", at=50)
    rig.segment(1030, b"younger", at=51)
    assert rig.flush(2) == ((1, 0), [got(piece(b"young", skip=10, at=50), piece(b"old", skip=5, at=1))])
    assert rig.flush(52) == ((1, 0), [got(piece(b"younger", skip=7, at=51))])


# -- keep-alives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"", b"\0", b"?"])
def test_21_keepalive_garbage(tcpreasm: ModuleType, garbage: bytes) -> None:
    """The model: an empty call."""
    rig = opened(tcpreasm)
    assert rig.segment(999, garbage, at=1) == []
    assert rig.segment(1000, b"abc", at=2) == [got(piece(b"abc", at=2))]
    for second in range(3, 6):
        assert rig.segment(1002, garbage, at=second) == []
    assert rig.segment(1003, b"def", at=7) == [got(piece(b"def", at=7))]


def test_21_keepalive_garbage_on_an_unknown_stream(rig: Rig) -> None:
    """The model: the stream's first byte is the garbage. Where its place is seen again with another byte, that one is the right one."""
    assert rig.segment(1000, b"\0", at=0.1) == [new()]
    assert rig.segment(1000, b"abc", at=0.2) == []
    assert rig.flush_all() == (1, [got(piece(b"a", skip=-1, at=0.1), piece(b"bc", at=0.2)), complete()])


# -- captures -----------------------------------------------------------------------------------------------------------


def test_pcap_snaplen60(tcpreasm: ModuleType) -> None:
    """The model: every segment behind a cut one looks early and is held until a flush."""
    rig = Rig(tcpreasm)
    assert rig.frame(frame(999, flags=SYN)) == [new(), got(piece(start=True))]
    data = bytes(range(100))
    for index, seq in enumerate(range(1000, 1500, 100)):
        whole = frame(seq, data)
        assert rig.frame(whole[:60], at=index, wire_length=len(whole)) == [got(piece(data[:6], skip=94 if index else 0, at=index))]
    assert rig.frame(frame(1500, flags=FIN | 16), at=9) == [got(piece(skip=94, end=True, at=9)), complete()]
    assert rig.assembler.stats.bytes_skipped == 5 * 94


def test_pcap_badchecksum(tcpreasm: ModuleType) -> None:
    """The model: forged bytes are delivered, the right ones dropped as a duplicate."""
    rig = Rig(tcpreasm, verify_checksums=True)
    rig.frame(frame(999, flags=SYN))
    forged = bytearray(frame(1000, b"0123456789"))
    forged[-3] ^= 1
    assert rig.frame(bytes(forged)) == []
    assert rig.frame(frame(1000, b"0123456789")) == [got(piece(b"0123456789"))]
    assert dict(rig.assembler.stats.verdicts) == {tcpreasm.Verdict.SEGMENT: 2, tcpreasm.Verdict.BAD_CHECKSUM: 1}
    unchecked = Rig(tcpreasm)
    unchecked.frame(frame(999, flags=SYN))
    assert unchecked.frame(bytes(forged)) == [got(piece(b"0123456689"))]


@pytest.mark.parametrize("ends", [("10.0.0.1", 1, "10.0.0.2", 2), ("2001:db8::1", 1, "2001:db8::2", 2)])
def test_linktypes_any_sll2(tcpreasm: ModuleType, ends: Any) -> None:
    """The model: LINUX_SLL2 is unknown, all packets are lost."""
    rig = Rig(tcpreasm)
    link = struct.pack("!HHIHBB8s", 0x86DD if ":" in ends[0] else 0x0800, 0, 1, 1, 0, 6, bytes(8))
    assert rig.frame(frame(999, flags=SYN, ends=ends, link=link), linktype=276) == [new(ends), got(piece(start=True), ends=ends)]
    assert rig.frame(frame(1000, b"abc", ends=ends, link=link), linktype=276) == [got(piece(b"abc"), ends=ends)]


# -- the model's bidirectional sibling ----------------------------------------------------------------------------------


def test_41_bidi_ghost_after_close(tcpreasm: ModuleType) -> None:
    """The last ACK of a normal close opens a second, empty stream that lives until a flush."""
    rig = opened(tcpreasm)
    rig.segment(1000, b"abc", fin=True)
    assert rig.segment(1004, ack=77, at=1) == []
    assert rig.segment(1003, fin=True, at=1) == []
    assert rig.segment(1004, rst=True, at=1) == []
    assert rig.segment(999, syn=True, at=1) == []
    assert (len(rig.pool), rig.assembler.stats.streams_opened, rig.flush_all()) == (0, 1, (0, []))


def test_42_bidi_early_bare_fin_lost(tcpreasm: ModuleType) -> None:
    """A FIN without data that comes early is forgotten: the stream never ends, the gap before it is never told."""
    rig = opened(tcpreasm)
    assert rig.segment(1006, fin=True, at=1) == []
    assert rig.segment(1000, b"abc", at=2) == [got(piece(b"abc", at=2))]
    assert rig.flush(3) == ((1, 1), [got(piece(skip=3, end=True, at=1)), complete()])


# -- threads ------------------------------------------------------------------------------------------------------------


def test_two_assemblers_that_meet_on_one_new_flow(tcpreasm: ModuleType) -> None:
    """The model: two streams, one of which never gets its end, and a connection is lost."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")
    inside, go_on = threading.Event(), threading.Event()

    def linger() -> None:
        inside.set()
        assert go_on.wait(20)

    recorder.plan["new"] = linger
    one, two = tcpreasm.Assembler(pool), tcpreasm.Assembler(pool)
    first = threading.Thread(target=one.assemble, args=(flow, segment(tcpreasm, 999, syn=True)), kwargs={"timestamp_ns": 0})
    second = threading.Thread(target=two.assemble, args=(flow, segment(tcpreasm, 1000, b"abc")), kwargs={"timestamp_ns": 0})
    first.start()
    assert inside.wait(20)
    second.start()
    second.join(0.2)
    go_on.set()
    first.join(20)
    second.join(20)
    assert not first.is_alive()
    assert not second.is_alive()
    assert recorder.take() == [new(), got(piece(start=True)), got(piece(b"abc"))]
    assert (len(pool), two.flush_all(), recorder.take()) == (1, 1, [complete()])
