"""A stream under control: STOP, the option `depth`, on_gap, hooks of a stream, context. Both cores, by bytes, calls and counters.

A Rig checks after every call that each captured byte is accounted for, and a RecordedStream that nothing comes behind a STOP.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import (
    ACK,
    BACK,
    ENDS,
    FIN,
    NS,
    SYN,
    Call,
    Ends,
    HookedStream,
    Recorder,
    Rig,
    complete,
    frame,
    got,
    key_of,
    new,
    number,
    pcap,
    piece,
    segment,
)
from test_batch import KINDS, traffic
from test_conversations import CLIENT, SERVER, Handler, Talk
from test_promises import opened


def stopping(package: ModuleType, when: Callable[[], bool] = lambda: True, **options: Any) -> Rig:
    """An open stream at 1000, with the SYN's piece delivered, that returns STOP from the next call on for which `when` says so."""
    rig = opened(package, **options)
    rig.recorder.plan["reassembled"] = lambda: package.STOP if when() else None
    return rig


def stopped(package: ModuleType, **options: Any) -> Rig:
    """The same, with "abc" delivered, and STOP returned."""
    rig = stopping(package, **options)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    del rig.recorder.plan["reassembled"]
    return rig


def nothing_waits(rig: Rig) -> None:
    stats = rig.assembler.stats
    assert (stats.pages_used, stats.bytes_held, stats.buffered_bytes, stats.bytes_skipped) == (0, 0, 0, 0)
    assert (stats.holes_limited, stats.holes_expired, stats.holes_acked, stats.holes_ended) == (0, 0, 0, 0)


# -- STOP -----------------------------------------------------------------------------------------------------------------


def test_there_is_one_stop(tcpreasm: ModuleType) -> None:
    assert repr(tcpreasm.STOP) == "tcpreasm.STOP"
    assert copy.copy(tcpreasm.STOP) is copy.deepcopy(tcpreasm.STOP) is tcpreasm.STOP
    if tcpreasm.__name__ == "tcpreasm":
        assert pickle.loads(pickle.dumps(tcpreasm.STOP)) is tcpreasm.STOP


def test_nothing_comes_behind_a_stop(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm)
    assert rig.segment(1003, b"defgh") == []
    assert rig.segment(1003, b"de") == []
    assert rig.segment(5000, b"far") == []
    nothing_waits(rig)
    assert rig.dropped == {"stopped": 10}
    assert rig.flush_all() == (1, [complete()])
    nothing_waits(rig)
    assert (rig.assembler.stats.bytes_delivered, rig.assembler.stats.streams_closed) == (3, 1)


@pytest.mark.parametrize("returned", [True, False, 0, 1, "tcpreasm.STOP", object(), [], StopIteration])
def test_anything_else_that_is_returned_is_ignored(tcpreasm: ModuleType, returned: object) -> None:
    rig = opened(tcpreasm)
    rig.recorder.plan["reassembled"] = lambda: returned
    for at in range(3):
        assert rig.segment(1000 + at, b"x") == [got(piece(b"x"))]


def test_what_is_held_goes_at_once(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm)
    assert rig.segment(1010, bytes(4000)) == []
    assert rig.segment(9000, b"behind another hole") == []
    assert rig.assembler.stats.pages_used == 4
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    nothing_waits(rig)
    assert rig.dropped == {"stopped": 4019}
    assert rig.segment(1003, b"defghij") == []
    assert rig.flush() == ((0, 0), [])
    assert rig.segment(9019, rst=True) == [complete()]  # exact: behind all that came
    assert rig.dropped == {"stopped": 4026}


def test_of_a_call_with_many_pieces_all_were_delivered(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm)
    rig.segment(1003, b"def")
    rig.segment(1008, b"ij")
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"), piece(b"def"))]
    assert rig.dropped == {"stopped": 2}


def test_a_fin_that_waited_for_a_hole_is_the_end(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm)
    assert rig.segment(1010, b"xyz", fin=True) == []
    assert rig.segment(1000, b"abc") == [got(piece(b"abc")), complete()]
    nothing_waits(rig)
    assert rig.segment(1003, b"late") == []
    assert rig.dropped == {"stopped": 3, "after_close": 4}


def test_a_fin_ends_it_across_what_is_missing(tcpreasm: ModuleType) -> None:
    for text in (b"", b"text"):
        rig = stopped(tcpreasm)
        assert rig.segment(2000, text, fin=True) == [complete()]
        nothing_waits(rig)
        assert len(rig.pool) == 0


def test_a_fin_out_of_place_is_ignored(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm, max_gap=100)
    assert rig.segment(990, fin=True) == []
    assert rig.segment(1200, fin=True) == []
    assert rig.assembler.stats.fin_ignored == 2
    assert rig.segment(1003, fin=True) == [complete()]


def test_a_reset_counts_at_the_exact_number_only(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm)
    rig.segment(2000, b"12345")
    assert rig.segment(1003, rst=True) == []
    assert rig.assembler.stats.rst_ignored == 1
    assert rig.segment(2005, rst=True) == [complete()]


def test_a_wild_segment_moves_nothing(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm, max_gap=100)
    assert rig.segment(100_000, b"wild") == []
    assert rig.dropped == {"out_of_window": 4}
    assert rig.segment(100_004, b"goes on") == []  # from there: so it is no wild one
    assert rig.dropped == {"out_of_window": 4, "stopped": 7}
    assert rig.segment(100_011, rst=True) == [complete()]


def test_a_stopped_stream_across_4_gib(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm)
    for step in range(1, 42):
        assert rig.segment(1003 + step * 100_000_000, b"x") == []
    assert rig.dropped == {"stopped": 41}
    assert rig.segment(1004 + 41 * 100_000_000, rst=True) == [complete()]


def test_time_and_flushes_close_it_as_ever(tcpreasm: ModuleType) -> None:
    rig = stopped(tcpreasm, idle_timeout=10.0)
    rig.segment(5000, b"hole", at=5)
    rig.assembler.advance_clock(14 * NS)
    rig.assembler.expire()
    assert rig.taken() == []
    for second in (20, 21):
        rig.assembler.advance_clock(second * NS)
        rig.assembler.expire()
    assert rig.taken() == [complete()]
    nothing_waits(rig)


def test_the_same_ports_again_begin_anew(tcpreasm: ModuleType) -> None:
    """The next stream gets its data; the SYN's own text was remembered while the old one was stopped, or before it was."""
    rig = stopped(tcpreasm)
    assert rig.segment(700_000, b"hello", syn=True) == []
    assert rig.segment(700_006, b"world") == [
        complete(),
        new(),
        got(piece(start=True), piece(b"hello"), piece(b"world")),
    ]
    rig = stopping(tcpreasm)
    rig.segment(700_000, b"hello", syn=True)
    assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
    del rig.recorder.plan["reassembled"]
    assert rig.segment(700_006, b"world")[-1] == got(piece(start=True), piece(b"hello"), piece(b"world"))
    rig = stopped(tcpreasm)
    rig.segment(1003, fin=True)
    assert rig.segment(700_000, syn=True) == [new(), got(piece(start=True))]
    assert rig.segment(700_001, b"again") == [got(piece(b"again"))]


def test_an_exception_is_no_stop(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.recorder.plan["reassembled"] = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        rig.segment(1000, b"abc")
    rig.taken()
    assert rig.segment(1003, b"def") == [got(piece(b"def"))]


def test_stop_at_the_very_first_piece(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.recorder.plan["reassembled"] = lambda: tcpreasm.STOP
    assert rig.segment(999, b"text", syn=True) == [new(), got(piece(b"text", start=True))]
    assert rig.segment(1004, b"more") == []
    assert rig.segment(1008, fin=True) == [complete()]


def test_stop_before_the_text_of_a_syn_is_confirmed(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, syn_data="acked")
    rig.recorder.plan["reassembled"] = lambda: tcpreasm.STOP
    assert rig.segment(999, b"text", syn=True) == [new(), got(piece(start=True))]
    nothing_waits(rig)
    assert rig.segment(990, b"old") == []
    assert rig.dropped == {"stopped": 7}
    assert rig.segment(1004, b"more") == []
    assert rig.segment(1008, fin=True) == [complete()]


def test_stop_out_of_a_flush(tcpreasm: ModuleType) -> None:
    """The first hole is given up; the second one, and the FIN behind it, are not waited for any more."""
    rig = stopping(tcpreasm)
    rig.segment(1010, b"one", at=1)
    rig.segment(1020, b"two", at=5, fin=True)
    assert rig.flush(t=3) == ((1, 1), [got(piece(b"one", skip=10, at=1)), complete()])
    assert rig.dropped == {"stopped": 3}
    assert rig.assembler.stats.holes_expired == 1
    rig.skipped = 10
    assert rig.flush_all() == (0, [])


def test_stop_at_the_end_changes_nothing(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm)
    rig.segment(1010, b"one")
    rig.segment(1020, b"two")
    assert rig.flush_all() == (1, [got(piece(b"one", skip=10), piece(b"two", skip=7)), complete()])
    rig = stopping(tcpreasm)
    assert rig.segment(1000, b"x", fin=True) == [got(piece(b"x", end=True)), complete()]
    assert rig.dropped == {}


def test_stop_at_a_limit(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm, max_buffered_pages_per_connection=3)
    rig.segment(1010, b"a")
    rig.segment(1020, b"b")
    assert rig.segment(1030, b"c") == [got(piece(b"a", skip=10))]
    assert rig.dropped == {"stopped": 2}
    assert rig.assembler.stats.pages_used == 0


def test_what_the_capture_cut_off_right_before_a_stop_is_not_told_and_not_counted(tcpreasm: ModuleType) -> None:
    rig = stopping(tcpreasm)
    assert rig.segment(1000, b"abc", wire=10) == [got(piece(b"abc"))]
    nothing_waits(rig)
    assert rig.segment(1010, rst=True) == [complete()]


def test_a_stopped_stream_makes_room_as_any_other(tcpreasm: ModuleType) -> None:
    told: list[str] = []
    rig = stopped(tcpreasm, max_connections=1, on_evict=lambda net, transport, why: told.append(why))
    assert rig.segment(1, b"x", ends=number(1)) == [complete(), new(number(1))]
    assert told == ["idle"]


def test_stop_while_another_assembler_shares_the_pool(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    one = Rig(tcpreasm, recorder)
    two = Rig(tcpreasm, recorder, pool=one.pool)
    one.send(segment(tcpreasm, 999, syn=True))
    one.send(segment(tcpreasm, 1010, bytes(5000)))
    recorder.take()
    recorder.plan["reassembled"] = lambda: tcpreasm.STOP
    two.send(segment(tcpreasm, 1000, b"abc"))
    assert recorder.take() == [got(piece(b"abc"))]
    assert (one.assembler.stats.pages_used, one.assembler.stats.bytes_held) == (0, 0)
    assert dict(two.assembler.stats.dropped) == {"stopped": 5000}
    one.send(segment(tcpreasm, 1003, b"defghij"))
    assert recorder.take() == []
    assert dict(one.assembler.stats.dropped) == {"stopped": 7}


class FirstLine:
    """Stops at the first line end."""

    def __init__(self, package: ModuleType) -> None:
        self.package = package
        self.data = b""
        self.calls = 0
        self.complete = 0

    def reassembled(self, reassemblies: list[Any]) -> object:
        self.calls += 1
        self.data += b"".join(map(bytes, reassemblies))
        return self.package.STOP if b"\n" in self.data else None

    def reassembly_complete(self) -> None:
        self.complete += 1


def lines(count: int) -> bytes:
    """A capture of 8 connections, each with so many segments of ten bytes, in turns; the third one is what is looked for."""
    frames = [frame(999, b"", SYN, ends=number(i)) for i in range(8)]
    for at in range(count):
        text = b"0123456789" if at != 2 else b"found it\n\n"
        frames += [frame(1000 + 10 * at, text, ends=number(i)) for i in range(8)]
    frames += [frame(1000 + 10 * count, b"", ACK | FIN, ends=number(i)) for i in range(8)]
    return pcap((at * 1000, data) for at, data in enumerate(frames))


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_stop_in_whole_captures(tcpreasm: ModuleType, threads: int, coalesce: bool) -> None:
    """Without coalesce to the byte; with it, what a block brings comes in one call."""
    made: list[FirstLine] = []

    def factory(*flows: Any) -> FirstLine:
        made.append(FirstLine(tcpreasm))
        return made[-1]

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory))
    assembler.assemble_capture(lines(400), threads=threads, coalesce=coalesce)
    stats = assembler.stats
    assert [stream.complete for stream in made] == [1] * 8
    assert all(stream.data.startswith(b"0123456789" * 2 + b"found it\n\n") for stream in made)
    assert stats.bytes_delivered + stats.dropped["stopped"] == stats.bytes_captured == 8 * 4000
    assert stats.bytes_delivered == sum(len(stream.data) for stream in made)
    assert stats.bytes_delivered < 8 * 3000
    if not coalesce:
        assert [len(stream.data) for stream in made] == [30] * 8


def test_a_gathered_stream_that_stops_may_be_at_its_end(tcpreasm: ModuleType) -> None:
    """It holds a FIN behind a hole when what was put aside is given out: that is its end, and its conversation's."""
    frames = [frame(999, b"", SYN), frame(1, b"", SYN | ACK, ends=BACK, ack=1000), frame(1000, b"a\n"), frame(2, b"", ACK | FIN, ends=BACK)]
    frames += [frame(1010, b"held", ACK | FIN)]
    log: list[Any] = []

    class Stops(Handler):
        def reassembled(self, side: Any, pieces: list[Any]) -> object:
            super().reassembled(side, pieces)
            return tcpreasm.STOP if self.log[-1][1].endswith(b"\n") else None

    pool = tcpreasm.ConversationPool(lambda conversation: Stops(log, conversation))
    assembler = tcpreasm.Assembler(pool)
    offsets = [sum(map(len, frames[:at])) for at in range(len(frames))]
    assembler.assemble_batch(b"".join(frames), offsets, [*map(len, frames)], range(len(frames)), coalesce=True)
    assert log[1:] == [(SERVER, b"", 0), (SERVER, "complete"), (CLIENT, b"a\n", 0), (CLIENT, "complete"), ("over", "closed")]
    assert dict(assembler.stats.dropped) == {"stopped": 4}
    assert assembler.stats.pages_used == 0


# -- conversations --------------------------------------------------------------------------------------------------------


def one_sided(package: ModuleType, log: list[Any], **options: Any) -> tuple[Any, Talk]:
    """A conversation, with its handshake, whose client side stops at the first text. log: as Handler writes it."""

    class OnlyTheAnswer(Handler):
        def reassembled(self, side: Any, pieces: list[Any]) -> object:
            super().reassembled(side, pieces)
            return package.STOP if side.role == CLIENT and pieces[-1].bytes else None

    pool = package.ConversationPool(lambda conversation: OnlyTheAnswer(log, conversation))
    assembler = package.Assembler(pool, package.AssemblerOptions(**options))
    talk = Talk(package, assembler)
    talk.shake()
    log.clear()
    return assembler, talk


def test_one_side_of_a_conversation_stops_by_itself(tcpreasm: ModuleType) -> None:
    log: list[Any] = []
    assembler, talk = one_sided(tcpreasm, log)
    talk.say(CLIENT, b"GET /")
    talk.say(CLIENT, b" HTTP/1.1")
    talk.miss(CLIENT, 100)
    talk.say(SERVER, b"200")
    talk.say(CLIENT, b"more")
    talk.say(SERVER, b" OK", fin=True)
    talk.say(CLIENT, fin=True)
    assert log == [
        (CLIENT, b"GET /", 0),
        (SERVER, b"200", 0),
        (SERVER, b" OK", 0),
        (SERVER, "complete"),
        (CLIENT, "complete"),
        ("over", "closed"),
    ]
    assert dict(assembler.stats.dropped) == {"stopped": 13}
    assert assembler.stats.bytes_skipped == 0


def test_a_stopped_side_waits_for_nothing_that_was_acknowledged(tcpreasm: ModuleType) -> None:
    log: list[Any] = []
    assembler, talk = one_sided(tcpreasm, log, acked_hole_timeout=0)
    talk.send(CLIENT, 1020, b"held", ack=5001)
    talk.say(CLIENT, b"abc")
    talk.send(SERVER, 5001, ack=1024)
    stats = assembler.stats
    assert (stats.holes_acked, stats.bytes_skipped, stats.pages_used) == (0, 0, 0)
    assert log == [(CLIENT, b"abc", 0)]


# -- native streams -------------------------------------------------------------------------------------------------------

NATIVE = ["ByteCountStream", "BytesStream", "DigestStream", "SpanStream"]


def one_stream(package: ModuleType, stream: Any, **options: Any) -> Any:
    assembler = package.Assembler(package.StreamPool(lambda *flows: stream), package.AssemblerOptions(**options))
    feed(package, assembler, 999, syn=True)
    return assembler


def feed(package: ModuleType, assembler: Any, seq: int, payload: bytes = b"", **flags: Any) -> None:
    assembler.assemble(package.Flow(ENDS[0], ENDS[2]), segment(package, seq, payload, **flags), timestamp_ns=0)


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("name", NATIVE)
def test_stop_of_a_ready_made_stream_takes_effect_with_the_next_piece(tcpreasm: ModuleType, name: str, derived: bool) -> None:
    cls = getattr(tcpreasm, name)
    if derived:

        class Derived(cls):  # type: ignore[misc, valid-type]
            def reassembled(self, reassemblies: list[Any]) -> object:
                returned: object = super().reassembled(reassemblies)
                return returned

        cls = Derived
    stream = cls()
    assembler = one_stream(tcpreasm, stream)
    feed(tcpreasm, assembler, 1000, b"abc")
    feed(tcpreasm, assembler, 1010, b"held")
    assert not stream.stopped
    stream.stop()
    assert stream.stopped
    assert assembler.stats.bytes_held == 4
    feed(tcpreasm, assembler, 1003, b"defg")
    assert assembler.stats.bytes_held == 0
    feed(tcpreasm, assembler, 1007, b"hij")
    assert stream.length == 7
    assert dict(assembler.stats.dropped) == {"stopped": 7}
    assert not stream.complete
    feed(tcpreasm, assembler, 1014, fin=True)
    assert stream.complete
    assert (stream.gap_count, stream.skipped, stream.ended) == (0, 0, False)


def test_a_file_stream_stops(tcpreasm: ModuleType, tmp_path: Path) -> None:
    with tcpreasm.FilePool() as pool:
        stream = tcpreasm.FileStream(path=tmp_path / "it", pool=pool, context="mine")
        assembler = one_stream(tcpreasm, stream)
        feed(tcpreasm, assembler, 1000, b"abc")
        stream.stop()
        feed(tcpreasm, assembler, 1003, b"def")
        feed(tcpreasm, assembler, 1006, b"ghi", fin=True)
    assert (tmp_path / "it").read_bytes() == b"abcdef"
    assert stream.context == "mine"


def test_a_reader_that_closes_stops(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.ReaderStream()
    assembler = one_stream(tcpreasm, stream)
    feed(tcpreasm, assembler, 1000, b"one\ntwo\n")
    assert stream.readline() == b"one\n"
    stream.close()
    feed(tcpreasm, assembler, 1020, b"held")
    feed(tcpreasm, assembler, 1008, b"next")
    feed(tcpreasm, assembler, 1012, b"behind")
    assert (stream.counts.length, stream.discarded) == (12, 8)
    assert dict(assembler.stats.dropped) == {"stopped": 10}
    assert assembler.stats.bytes_held == 0


@pytest.mark.parametrize("size", [1, 7, 100])
def test_readers_that_close_in_threads_of_their_own(tcpreasm: ModuleType, size: int) -> None:
    """Each reads its first bytes and goes; nobody waits for anybody, with a buffer that is full at once."""
    heads: list[bytes] = []
    threads: list[threading.Thread] = []

    def read(stream: Any) -> None:
        with stream:
            head = b""
            while len(head) < size and (part := stream.read(size - len(head))):
                head += part
        heads.append(head)

    def factory(*flows: Any) -> Any:
        stream = tcpreasm.ReaderStream(max_buffered_bytes=10, timeout=None)
        threads.append(threading.Thread(target=read, args=(stream,)))
        threads[-1].start()
        return stream

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(lines(300))
    for thread in threads:
        thread.join()
    whole = b"0123456789" * 2 + b"found it\n\n" + b"0123456789" * 297
    assert heads == [whole[:size]] * 8


# -- depth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "calls", "dropped"),
    [
        (1, [got(piece(b"a"))], 7),
        (3, [got(piece(b"abc"))], 5),
        (4, [got(piece(b"abc")), got(piece(b"d"))], 4),
        (6, [got(piece(b"abc")), got(piece(b"def"))], 2),
        (7, [got(piece(b"abc")), got(piece(b"def")), got(piece(b"g"))], 1),
        (9, [got(piece(b"abc")), got(piece(b"def")), got(piece(b"gh"))], 0),
    ],
)
def test_the_first_bytes_of_a_stream(tcpreasm: ModuleType, depth: int, calls: list[Call], dropped: int) -> None:
    rig = opened(tcpreasm, depth=depth)
    came = [call for seq, text in ((1000, b"abc"), (1003, b"def"), (1006, b"gh")) for call in rig.segment(seq, text)]
    assert came == calls
    assert rig.dropped.get("stopped", 0) == dropped
    last = [] if depth < 9 else [got(piece(end=True))]
    assert rig.segment(1008, fin=True) == [*last, complete()]


def test_a_stream_as_long_as_the_depth_ends_as_ever(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, depth=6)
    assert rig.segment(1000, b"abcdef", fin=True) == [got(piece(b"abcdef", end=True)), complete()]
    assert rig.dropped == {}


def test_missing_bytes_count_for_the_depth(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, depth=10)
    assert rig.segment(1006, b"ghijkl") == []
    assert rig.segment(1020, b"beyond") == []
    assert rig.assembler.stats.bytes_held == 4
    assert rig.flush() == ((1, 0), [got(piece(b"ghij", skip=6))])
    assert rig.dropped == {"stopped": 8}
    assert rig.flush_all() == (1, [complete()])


@pytest.mark.parametrize("fin", [False, True])
def test_a_hole_is_missing_up_to_the_depth_only(tcpreasm: ModuleType, fin: bool) -> None:
    """It reaches beyond that; nothing held shows where it ends but the FIN, or what the capture cut off."""
    rig = opened(tcpreasm, depth=10)
    if fin:
        assert rig.segment(1000, b"abc") == [got(piece(b"abc"))]
        assert rig.segment(1500, b"", fin=True) == []
        assert rig.flush() == ((1, 1), [got(piece(skip=7)), complete()])
        assert rig.assembler.stats.holes_expired == 1
    else:
        assert rig.segment(1000, b"abc", wire=100) == [got(piece(b"abc"), piece(skip=7))]
        assert rig.segment(1100, rst=True) == [complete()]
    assert rig.assembler.stats.bytes_skipped == rig.skipped == 7


@pytest.mark.parametrize("beyond", [{"payload": b"xyz"}, {"payload": b"", "fin": True}])
def test_a_hole_up_to_the_depth_from_before_the_start(tcpreasm: ModuleType, beyond: dict[str, Any]) -> None:
    """What shows that there is one came when nobody knew where the depth ends."""
    rig = Rig(tcpreasm, depth=10, start_wait_segments=3)
    rig.segment(1000, b"abc")
    rig.segment(1500, **beyond)
    assert rig.segment(1003, b"d") == [got(piece(b"abc", skip=-1), piece(b"d"))]
    over = [complete()] if "fin" in beyond else []
    assert rig.flush() == ((1, len(over)), [got(piece(skip=6)), *over])
    assert rig.segment(1500 + len(beyond["payload"]), rst=True) == ([] if over else [complete()])


def test_depth_around_pages_that_are_held(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, depth=4000)
    rig.segment(1000 + 2000, b"b" * 3000)
    assert rig.assembler.stats.bytes_held == 2000
    calls = rig.segment(1000, b"a" * 2000)
    assert b"".join(data for data, *_ in calls[0][2]) == b"a" * 2000 + b"b" * 2000
    assert rig.dropped == {"stopped": 1000}
    assert rig.segment(1004, b"retransmitted") == []
    assert rig.dropped == {"stopped": 1013}


def test_depth_of_a_stream_that_starts_without_its_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, depth=5, start_wait_segments=2)
    assert rig.segment(1000, b"abc") == [new()]
    assert rig.segment(1003, b"defgh") == [got(piece(b"abc", skip=-1), piece(b"de"))]
    assert rig.dropped == {"stopped": 3}
    assert rig.segment(1010, rst=True) == []
    assert rig.segment(1008, b"x") == []
    assert rig.segment(1009, rst=True) == [complete()]


@pytest.mark.parametrize("beyond", [1, 5000])
def test_text_behind_the_fin_does_not_wait_at_the_depth(tcpreasm: ModuleType, beyond: int) -> None:
    """The FIN lies at the very depth, behind a hole, and what is behind it leaves nothing that could wait."""
    rig = opened(tcpreasm, depth=4)
    assert rig.segment(1004, fin=True) == []
    assert rig.segment(1004 + beyond, bytes(3000)) == []
    assert (rig.assembler.stats.pages_used, rig.dropped["after_end"]) == (0, 3000)
    assert rig.flush_all() == (1, [got(piece(skip=4, end=True)), complete()])


def test_the_segment_that_reaches_beyond_the_depth_moves_the_stream_on(tcpreasm: ModuleType) -> None:
    """Its end is where a RST is exact."""
    rig = opened(tcpreasm, depth=4)
    assert rig.segment(1000, b"abcdefgh") == [got(piece(b"abcd"))]
    assert rig.segment(1004, rst=True) == []
    assert rig.segment(1008, rst=True) == [complete()]


def test_depth_of_the_text_of_syns(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, depth=3)
    assert rig.segment(999, b"hello", syn=True) == [new(), got(piece(b"hel", start=True))]
    assert rig.segment(700_000, b"again", syn=True) == []
    assert rig.segment(700_006, b"!") == [complete(), new(), got(piece(start=True), piece(b"aga"))]
    assert rig.dropped == {"stopped": 5}
    rig = Rig(tcpreasm, depth=3, syn_data="acked")
    assert rig.segment(999, b"hello", syn=True) == [new(), got(piece(start=True))]
    assert rig.assembler.stats.bytes_held == 3
    assert rig.segment(1005, b"!") == [got(piece(b"hel"))]


def test_depth_where_another_assembler_of_the_pool_has_none(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    deep = Rig(tcpreasm, recorder)
    flat = Rig(tcpreasm, recorder, pool=deep.pool, depth=5)
    deep.send(segment(tcpreasm, 999, syn=True))
    deep.send(segment(tcpreasm, 1003, b"d" * 3000))
    recorder.take()
    flat.send(segment(tcpreasm, 1000, b"abc"))
    assert recorder.take() == [got(piece(b"abc"), piece(b"dd"))]
    deep.send(segment(tcpreasm, 999, syn=True, ends=BACK), ends=BACK)
    deep.send(segment(tcpreasm, 1000, b"longer than the depth", ends=BACK), ends=BACK)
    recorder.take()
    flat.send(segment(tcpreasm, 1021, b"!", ends=BACK), ends=BACK)
    deep.send(segment(tcpreasm, 1022, b"!", ends=BACK), ends=BACK)
    assert recorder.take() == []
    deep.send(segment(tcpreasm, 999, syn=True, ends=number(1)), ends=number(1))
    deep.send(segment(tcpreasm, 1000, b"longer", ends=number(1), wire=10), ends=number(1))
    recorder.take()
    flat.send(segment(tcpreasm, 1010, b"!", ends=number(1)), ends=number(1))
    assert recorder.take() == [got(piece(skip=4), ends=number(1))]
    assert (deep.assembler.stats.bytes_skipped, flat.assembler.stats.bytes_skipped) == (4, 0)


@pytest.mark.parametrize("wrong", [0, -1, 2**30 + 1, True, 1.5, "9"])
def test_a_depth_that_is_none(tcpreasm: ModuleType, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="depth"):
        tcpreasm.AssemblerOptions(depth=wrong)
    if wrong != 2**30 + 1:
        with pytest.raises((TypeError, ValueError), match="depth"):
            tcpreasm.BytesStream(depth=wrong)


@pytest.mark.parametrize("depth", [1, 9, 10, 25, 3999, 4000, 2**30])
@pytest.mark.parametrize("kind", ["BytesStream", "BytesStream of that depth", "ByteCountStream", "Python"])
def test_depth_of_whole_captures(tcpreasm: ModuleType, kind: str, depth: int) -> None:
    made: list[Any] = []
    options = tcpreasm.AssemblerOptions(depth=None if " " in kind else depth)

    def factory(*flows: Any) -> Any:
        if kind == "Python":
            made.append(Recorder().new(*flows))
        else:
            made.append(tcpreasm.BytesStream(*flows, depth=depth if " " in kind else None))
        return made[-1]

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream if kind == "ByteCountStream" else factory), options)
    assembler.assemble_capture(lines(400))
    stats = assembler.stats
    whole = b"0123456789" * 2 + b"found it\n\n" + b"0123456789" * 397
    if kind == "Python":
        assert [stream.recorder.data(ends) for ends, stream in zip(map(number, range(8)), made)] == [whole[:depth]] * 8
    else:
        assert [stream.data for stream in made] == [whole[:depth]] * len(made)
    if " " not in kind:
        assert stats.bytes_delivered == 8 * len(whole[:depth])
    assert stats.bytes_delivered + stats.dropped.get("stopped", 0) == stats.bytes_captured
    assert stats.streams_closed == 8


def tape(pieces: list[tuple[bytes, int]]) -> list[int]:
    """Its bytes, -1 for each missing one, -2 for a start that is missing."""
    out: list[int] = []
    for data, skip in pieces:
        out += [-2] if skip < 0 else [-1] * skip
        out += data
    return out


@pytest.mark.parametrize(
    "options", [{}, {"overlap": "last"}, {"overlap": "linux", "start_wait_segments": 1}, {"syn_data": "acked"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_the_beginning_of_what_comes_without(tcpreasm: ModuleType, kind: str, options: dict[str, Any]) -> None:
    """Of random traffic, in order or not, with bytes lost and copies that differ, at any depth: the first stream of each key, since
    where the next one begins is up to when the first ends."""
    frames = traffic(kind, 5, directions=12, size=4000)

    def tapes(depth: int | None) -> dict[str, list[int]]:
        out: dict[str, list[tuple[bytes, int]]] = {}
        over = set()
        rig = Rig(tcpreasm, depth=depth, **options)
        for seen_ns, data, wire in frames:
            rig.assembler.assemble_frame(data, timestamp_ns=seen_ns, wire_length=wire)
        rig.assembler.flush_all()
        for call in rig.taken():
            if call[0] == "complete":
                over.add(call[1])
            elif call[0] == "reassembled" and call[1] not in over:
                out.setdefault(call[1], []).extend((data, skip) for data, skip, *_ in call[2])
        return {key: tape(pieces) for key, pieces in out.items()}

    whole = tapes(None)
    lengths = set()
    for depth in (1, 2, 100, 333, 1000, 2999):
        for key, cut in tapes(depth).items():
            full = whole[key]
            start = full[:1] == [-2]
            assert cut == full[: depth + start], (key, depth)
            lengths.add(len(cut))
    assert len(lengths) > 6


def test_depth_of_one_bytes_stream_counts_its_gaps(tcpreasm: ModuleType) -> None:
    for depth, data, gaps in ((2, b"ab", ()), (5, b"abc", ((3, 2),)), (10, b"abc", ((3, 7),)), (12, b"abckl", ((3, 7),))):
        stream = tcpreasm.BytesStream(depth=depth, provenance=True)
        assembler = one_stream(tcpreasm, stream)
        feed(tcpreasm, assembler, 1000, b"abc")
        feed(tcpreasm, assembler, 1010, b"klmnop")
        assembler.flush_older_than(1)
        assert (stream.data, stream.gaps, stream.stopped, stream.depth) == (data, gaps, True, depth)
        assert [row["length"] for row in stream.provenance] == ([len(data)] if len(data) < 4 else [3, 2])
        feed(tcpreasm, assembler, 1016, b"q", fin=True)
        assert (stream.length, stream.complete) == (len(data), True)


# -- on_gap -----------------------------------------------------------------------------------------------------------------


class Gaps:
    """Writes down what on_gap is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, str]] = []
        self.keys: list[str] = []

    def __call__(self, net_flow: Any, transport_flow: Any, seq: int, missing: int, why: str) -> None:
        self.told.append((seq, missing, why))
        self.keys.append(f"{net_flow.src}:{transport_flow.src}")

    def take(self) -> list[tuple[int, int, str]]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def gaps() -> Gaps:
    return Gaps()


def test_why_a_gap_was_given_up(tcpreasm: ModuleType, gaps: Gaps) -> None:
    rig = opened(tcpreasm, on_gap=gaps, max_buffered_pages_per_connection=2)
    rig.segment(1010, b"a")
    assert gaps.take() == []
    rig.segment(1020, b"b")
    assert gaps.take() == [(1000, 10, "limited")]
    rig.flush()
    assert gaps.take() == [(1011, 9, "expired")]
    rig.segment(1021, b"c", wire=5)
    assert gaps.take() == [(1022, 4, "cut")]
    rig.segment(1030, b"d", at=1)
    rig.segment(1040, fin=True, at=2)
    assert gaps.take() == []
    rig.flush_all()
    assert gaps.take() == [(1026, 4, "ended"), (1031, 9, "ended")]
    assert gaps.keys == ["10.0.0.1:1234"] * 5


def test_a_start_that_was_not_seen(tcpreasm: ModuleType, gaps: Gaps) -> None:
    """What is missing right behind an unknown number belongs to that."""
    rig = Rig(tcpreasm, on_gap=gaps, start_wait_segments=1)
    rig.segment(2**32 - 2, b"abc")
    assert gaps.take() == [(2**32 - 2, -1, "start")]
    rig.segment(5, b"x")
    rig.flush()
    assert gaps.take() == [(1, 4, "expired")]


def test_gaps_of_what_was_acknowledged(tcpreasm: ModuleType, gaps: Gaps) -> None:
    pool = tcpreasm.ConversationPool(lambda conversation: Handler([], conversation))
    talk = Talk(tcpreasm, tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(on_gap=gaps, acked_hole_timeout=0)))
    talk.shake()
    talk.miss(CLIENT, 7)
    talk.say(CLIENT, b"x")
    assert gaps.take() == []
    talk.say(SERVER)
    assert gaps.take() == [(1001, 7, "acked")]
    talk.miss(SERVER, 3)
    talk.send(SERVER, 5004, b"y", ack=1001)
    talk.send(CLIENT, 1009, rst=True, ack=5001)
    assert gaps.take() == [(5001, 3, "ended")]
    assert gaps.keys[-1] == "10.0.0.2:80"


def test_a_gap_is_told_after_the_stream_was_served(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    order: list[int] = []
    rig = Rig(tcpreasm, recorder, on_gap=lambda *told: order.append(len(recorder.calls)), max_buffered_pages_per_connection=1)
    rig.segment(999, syn=True)
    assert rig.segment(1010, b"a", at=1) == [got(piece(b"a", skip=10, at=1))]
    assert order == [1]


@pytest.mark.parametrize("kind", ["Python", "BytesStream", "ByteCountStream"])
def test_gaps_are_what_bytes_skipped_counts(tcpreasm: ModuleType, gaps: Gaps, kind: str) -> None:
    """Of a capture with every seventh packet missing, and some cut; with every kind of stream."""
    factory = Recorder() if kind == "Python" else getattr(tcpreasm, kind)
    frames = [frame(999, b"", SYN, ends=number(i)) for i in range(30)]
    frames += [frame(1000 + 100 * at, bytes(100), ends=number(i)) for at in range(40) for i in range(30)]
    frames = [data for at, data in enumerate(frames) if at < 30 or at % 7]
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), tcpreasm.AssemblerOptions(on_gap=gaps, hole_timeout=None))
    for at, data in enumerate(frames):
        assembler.assemble_frame(data if at % 11 or at < 30 else data[:-9], timestamp_ns=at, wire_length=len(data))
    assembler.close()
    stats = assembler.stats
    told = gaps.take()
    assert {why for _, _, why in told} == {"cut", "ended"}
    assert sum(missing for _, missing, _ in told) == stats.bytes_skipped > 0
    assert sum(why == "ended" for _, _, why in told) == stats.holes_ended


def test_gaps_in_several_threads(tcpreasm: ModuleType, gaps: Gaps) -> None:
    frames = [frame(999 + 20 * at, bytes(10) if at else b"", ACK if at else SYN, ends=number(i)) for at in range(50) for i in range(40)]
    data = pcap((at, one) for at, one in enumerate(frames))
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.BytesStream), tcpreasm.AssemblerOptions(on_gap=gaps))
    assembler.assemble_capture(data, threads=3)
    assert sum(missing for _, missing, _ in gaps.told) == assembler.stats.bytes_skipped > 0
    assert len(gaps.told) == assembler.stats.holes_ended == 40 * 49


def test_what_on_gap_raises_comes_through(tcpreasm: ModuleType) -> None:
    told: list[int] = []

    def raises(net_flow: Any, transport_flow: Any, seq: int, missing: int, why: str) -> None:
        told.append(missing)
        raise KeyError(why)

    rig = opened(tcpreasm, on_gap=raises, max_buffered_pages_per_connection=3)
    with pytest.raises(KeyError, match="cut"):
        rig.segment(1000, b"a", wire=5)
    assert rig.taken() == [got(piece(b"a"))]
    rig.segment(1010, b"b")
    rig.segment(1020, b"c")
    with pytest.raises(KeyError, match="limited"):
        rig.segment(1030, b"d")
    rig.taken()
    assert told == [4, 5]
    with pytest.raises(KeyError, match="ended"):
        rig.assembler.flush_all()
    assert rig.taken()[-1] == complete()
    assert told == [4, 5, 9]  # an exception leaves the others untold
    assert len(rig.pool) == 0


def test_a_flush_goes_on_behind_an_exception_of_on_gap(tcpreasm: ModuleType) -> None:
    for factory in (tcpreasm.ByteCountStream, Recorder()):
        told: list[int] = []

        def raises(*what: Any, told: list[int] = told) -> None:
            told.append(what[2])
            raise KeyError(what[2])

        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), tcpreasm.AssemblerOptions(on_gap=raises))
        for index in range(5):
            ends = number(index)
            for tcp in (segment(tcpreasm, 999, ends=ends, syn=True), segment(tcpreasm, 1010 + index, b"x", ends=ends)):
                assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), tcp, timestamp_ns=0)
        with pytest.raises(KeyError, match="1000"):
            assembler.flush_all()
        assert told == [1000] * 5
        assert assembler.stats.streams_closed == 5


def test_on_gap_may_use_another_assembler(tcpreasm: ModuleType) -> None:
    """Nothing is locked, and the connection has no owner any more."""
    recorder = Recorder()
    two = Rig(tcpreasm, recorder)
    told: list[int] = []

    def hook(net_flow: Any, transport_flow: Any, seq: int, missing: int, why: str) -> None:
        told.append(missing)
        two.send(segment(tcpreasm, 1011, b"from the hook"))

    one = Rig(tcpreasm, recorder, pool=two.pool, on_gap=hook, max_buffered_pages_per_connection=1)
    one.send(segment(tcpreasm, 999, syn=True))
    one.send(segment(tcpreasm, 1010, b"a"))
    assert told == [10]
    assert recorder.take()[2:] == [got(piece(b"a", skip=10)), got(piece(b"from the hook"))]


# -- hooks of a stream ------------------------------------------------------------------------------------------------------


class HookedRig(Rig):
    """Over streams with all hooks, and hooks of the pool beside them, all of which write down what they are told, in one list."""

    def __init__(self, package: ModuleType, **options: Any) -> None:
        recorder = Recorder(stream=HookedStream)

        def pool_wide(kind: str) -> Callable[..., None]:
            return lambda net_flow, transport_flow, *what: recorder.calls.append((kind, key_of(ends_of(net_flow, transport_flow)), *what))

        hooks = {f"on_{kind}": pool_wide(kind) for kind in ("gap", "conflict", "evict")}
        super().__init__(package, recorder, **hooks, **options)

    def told(
        self, seq: int, payload: bytes = b"", *, at: float = 0, ends: Ends = ENDS, wire: int | None = None, **flags: Any
    ) -> list[Call]:
        """As `segment`, whose calls have none of the hooks among them."""
        self.send(segment(self.package, seq, payload, ends=ends, wire=wire, **flags), at=at, ends=ends)
        return self.taken()


def ends_of(net_flow: Any, transport_flow: Any) -> Ends:
    return str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst


def both(kind: str, *what: Any, ends: Ends = ENDS) -> list[Call]:
    """The stream is told, then whoever asked for the whole pool."""
    name = {"evict": "eviction"}.get(kind, kind)
    return [(f"{name} of", key_of(ends), *what), (kind, key_of(ends), *what)]


def test_a_stream_is_told_of_its_gaps(tcpreasm: ModuleType) -> None:
    rig = HookedRig(tcpreasm, max_buffered_pages_per_connection=2)
    assert rig.told(1010, b"a", ends=BACK) == [new(BACK)]
    assert rig.told(999, syn=True) == [new(), got(piece(start=True))]
    assert rig.told(1010, b"a") == []
    assert rig.told(1020, b"b") == [got(piece(b"a", skip=10)), *both("gap", 1000, 10, "limited")]
    assert rig.flush() == ((2, 0), [
        got(piece(b"a", skip=-1), ends=BACK), *both("gap", 1010, -1, "start", ends=BACK),
        got(piece(b"b", skip=9)), *both("gap", 1011, 9, "expired"),
    ])  # fmt: skip
    assert rig.told(1021, b"c", wire=5) == [got(piece(b"c")), *both("gap", 1022, 4, "cut")]


def test_a_stream_that_is_over_is_told_too(tcpreasm: ModuleType) -> None:
    """By the segment that ends it, by a flush, and by one that begins the connection anew: the old stream, not the new one."""
    rig = HookedRig(tcpreasm)
    assert rig.told(999, syn=True) == [new(), got(piece(start=True))]
    old = rig.recorder.streams[0]
    assert rig.told(1000, b"a", wire=5, fin=True) == [got(piece(b"a"), piece(skip=4, end=True)), complete(), *both("gap", 1001, 4, "cut")]
    assert rig.told(8999, syn=True, at=1) == [new(), got(piece(start=True, at=1))]
    assert rig.told(9010, b"x", at=1) == []
    assert rig.told(70_000, syn=True, at=2) == []
    old.key, rig.recorder.streams[1].key = "the first", "the second"
    assert rig.told(70_001, b"y", at=3) == [
        ("reassembled", "the second", [piece(b"x", skip=10, at=1)]),
        ("complete", "the second"),
        *(new(), got(piece(start=True, at=2), piece(b"y", at=3))),
        *(("gap of", "the second", 9000, 10, "ended"), ("gap", key_of(), 9000, 10, "ended")),
    ]
    assert rig.told(70_012, b"z", at=3) == []
    closed, calls = rig.flush_all()
    assert (closed, calls) == (1, [got(piece(b"z", skip=10, at=3)), complete(), *both("gap", 70_002, 10, "ended")])


def test_a_stream_is_told_of_its_conflicts(tcpreasm: ModuleType) -> None:
    """Of what a segment finds that ends the stream, too."""
    rig = HookedRig(tcpreasm)
    rig.told(999, syn=True)
    assert rig.told(1001, b"abc") == []
    assert rig.told(1001, b"aXc") == both("conflict", 1002, b"b", b"X", "held")
    assert rig.told(1004, fin=True) == []
    assert rig.told(1000, b".AbC") == [
        got(piece(b"."), piece(b"abc", end=True)), complete(),
        *both("conflict", 1001, b"a", b"A", "held"), *both("conflict", 1003, b"c", b"C", "held"),
    ]  # fmt: skip


def test_a_stream_is_told_that_it_made_room(tcpreasm: ModuleType) -> None:
    rig = HookedRig(tcpreasm, max_connections=1)
    rig.told(999, syn=True)
    rig.told(1000, b"a", at=1)
    ends = number(1)
    one, two = new(ends), got(piece(start=True, at=2), ends=ends)
    assert rig.told(999, syn=True, at=2, ends=ends) == [complete(), *both("evict", "idle"), one, two]
    assert rig.told(999, syn=True, at=3) == [complete(ends), *both("evict", "half_open", ends=ends), new(), got(piece(start=True, at=3))]
    assert rig.told(1000, fin=True, at=4) == [got(piece(end=True, at=4)), complete()]
    # There is no stream any more that could be told.
    assert rig.told(999, syn=True, at=5, ends=ends) == [("evict", key_of(), "closed"), one, got(piece(start=True, at=5), ends=ends)]


def test_what_a_hook_of_a_stream_raises_is_treated_as_the_pools(tcpreasm: ModuleType) -> None:
    """It comes through, and leaves the others untold."""
    rig = HookedRig(tcpreasm, max_connections=1)
    rig.told(999, syn=True)
    rig.recorder.plan["gap of"] = KeyError("gap")
    with pytest.raises(KeyError, match="gap"):
        rig.told(1000, b"a", wire=5)
    assert rig.taken() == [got(piece(b"a")), both("gap", 1001, 4, "cut")[0]]
    rig.told(1007, b"abc")
    rig.recorder.plan["conflict of"] = KeyError("conflict")
    with pytest.raises(KeyError, match="conflict"):
        rig.told(1007, b"AbC")
    assert rig.taken() == both("conflict", 1007, b"a", b"A", "held")[:1]
    rig.recorder.plan["eviction of"] = KeyError("eviction")
    ends = number(1)
    with pytest.raises(KeyError, match="eviction"):
        rig.told(999, syn=True, at=2, ends=ends)
    assert rig.taken() == [
        got(piece(b"abc", skip=6)), complete(), both("evict", "idle")[0],
        new(ends), got(piece(start=True, at=2), ends=ends), *both("gap", 1005, 2, "ended"),
    ]  # fmt: skip
    assert rig.told(1000, b"goes on", at=3, ends=ends) == [got(piece(b"goes on", at=3), ends=ends)]


def test_only_streams_whose_class_has_a_method_are_told(tcpreasm: ModuleType) -> None:
    """Also where another class of the same pool has one, and more classes than anybody remembers."""
    told: list[Any] = []

    class Silent:
        on_gap = None
        on_conflict = property(lambda self: told.append("asked"))

        def __init__(self) -> None:
            self.on_evict = told.append

        def reassembled(self, pieces: list[Any]) -> None:
            pass

        def reassembly_complete(self) -> None:
            pass

    def on_gap(self: Any, seq: int, missing: int, why: str) -> None:
        told.append((type(self).__name__, seq, missing, why))

    def new_stream(net_flow: Any, transport_flow: Any) -> Any:
        index = transport_flow.src - 1024
        return Silent() if index % 2 else type(f"Hooked{index}", (Silent,), {"on_gap": on_gap})()

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(new_stream))
    for index in range(200):
        ends = number(index)
        for tcp in (segment(tcpreasm, 1000, b"a", ends=ends, wire=3, syn=True), segment(tcpreasm, 1010 + index, b"b", ends=ends)):
            assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), tcp, timestamp_ns=index)
        for payload in (b"abc", b"xyz"):
            assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), segment(tcpreasm, 2000, payload, ends=ends), timestamp_ns=index)
    assert told == [(f"Hooked{index}", 1002, 2, "cut") for index in range(0, 200, 2)]
    del told[:]
    assembler.close()
    assert told == [(f"Hooked{i}", *hole) for i in range(0, 200, 2) for hole in ((1004, 6 + i, "ended"), (1011 + i, 989 - i, "ended"))]


@pytest.mark.parametrize("name", ["ByteCountStream", "BytesStream", "DigestStream", "SpanStream"])
def test_a_subclass_of_a_ready_made_stream_may_have_hooks(tcpreasm: ModuleType, name: str) -> None:
    told: list[Any] = []

    class Mine(getattr(tcpreasm, name)):  # type: ignore[misc]
        def on_gap(self, seq: int, missing: int, why: str) -> None:
            told.append((self.length, self.complete, seq, missing, why))

        def on_conflict(self, seq: int, held: bytes, new: bytes, wins: str) -> None:
            told.append((self.length, seq, held, new, wins))

        def on_evict(self, why: str) -> None:
            told.append((self.length, self.complete, why))

    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(Mine(net_flow, transport_flow))
        return streams[-1]

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), tcpreasm.AssemblerOptions(max_connections=1))
    for at, data in enumerate(
        (frame(999, b"", SYN), frame(1004, b"held"), frame(1004, b"hold"), frame(1000, b"a"), frame(999, b"", SYN, ends=BACK))
    ):
        assembler.assemble_frame(data, timestamp_ns=at)
    assert told == [(0, 1005, b"e", b"o", "held"), (5, True, "idle"), (5, True, 1001, 3, "ended")]
    assert [(stream.length, stream.skipped, stream.complete) for stream in streams] == [(5, 3, True), (0, 0, False)]


def test_a_handler_is_told_with_the_side(tcpreasm: ModuleType) -> None:
    log: list[Any] = []

    class Hooked(Handler):
        def on_gap(self, side: Any, seq: int, missing: int, why: str) -> None:
            assert side.conversation.handler is self
            self.log.append((side.role, "gap", seq, missing, why))

        def on_conflict(self, side: Any, seq: int, held: bytes, new: bytes, wins: str) -> None:
            self.log.append((side.role, "conflict", seq, held, new, wins))

        def on_evict(self, side: Any, why: str) -> None:
            self.log.append((side.role, "evict", why))

    pool = tcpreasm.ConversationPool(lambda conversation: Hooked(log, conversation))
    talk = Talk(tcpreasm, tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(acked_hole_timeout=0, max_connections=2)))
    talk.shake()
    talk.miss(CLIENT, 7)
    talk.say(CLIENT, b"x")
    talk.send(CLIENT, 1008, b"X", ack=5001)
    del log[:3]
    talk.say(SERVER)
    assert log == [(CLIENT, "conflict", 1008, b"x", b"X", "held"), (CLIENT, b"x", 7), (CLIENT, "gap", 1001, 7, "acked")]
    del log[:]
    talk.miss(SERVER, 3)
    talk.say(SERVER, b"y", at=1)
    other = Talk(tcpreasm, talk.assembler, ends=number(1))
    other.say(CLIENT, syn=True, at=2)
    assert log[:2] == [(CLIENT, "complete"), (CLIENT, "evict", "idle")]
    talk.assembler.close()
    assert (SERVER, "gap", 5001, 3, "ended") in log


def test_streams_of_sides_have_hooks_of_their_own(tcpreasm: ModuleType) -> None:
    recorder = Recorder(stream=HookedStream)
    pool = tcpreasm.ConversationPool(streams=lambda side: recorder.new(side.net_flow, side.transport_flow))
    talk = Talk(tcpreasm, tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions()))
    talk.shake()
    talk.miss(SERVER, 3)
    talk.say(SERVER, b"y")
    recorder.take()
    talk.say(CLIENT, rst=True)
    back = got(piece(b"y", skip=3), ends=BACK)
    assert recorder.take() == [got(piece(end=True)), complete(), back, complete(BACK), ("gap of", key_of(BACK), 5001, 3, "ended")]


def test_hooks_of_streams_in_several_threads(tcpreasm: ModuleType) -> None:
    told: list[int] = []

    class Mine(tcpreasm.BytesStream):  # type: ignore[misc,name-defined]
        def on_gap(self, seq: int, missing: int, why: str) -> None:
            told.append(missing)

    frames = [frame(999 + 20 * at, bytes(10) if at else b"", ACK if at else SYN, ends=number(i)) for at in range(50) for i in range(40)]
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(Mine))
    assembler.assemble_capture(pcap((at, one) for at, one in enumerate(frames)), threads=2)
    assert sum(told) == assembler.stats.bytes_skipped > 0
    assert len(told) == assembler.stats.holes_ended == 40 * 49


def test_a_hook_may_use_another_assembler_and_a_stream_that_was_told_may_die_with_it(tcpreasm: ModuleType) -> None:
    """Nothing is locked, neither while it is called nor when nobody but the call keeps the stream."""
    log: list[Any] = []

    class Mine:
        def reassembled(self, pieces: list[Any]) -> None:
            log.append(b"".join(map(bytes, pieces)))

        def reassembly_complete(self) -> None:
            pass

        def on_gap(self, seq: int, missing: int, why: str) -> None:
            log.append(missing)
            if missing == 4:
                other.assemble(tcpreasm.Flow(ENDS[0], ENDS[2]), segment(tcpreasm, 1005, b"from the hook"), timestamp_ns=0)

        def on_conflict(self, *what: Any) -> None:
            log.append(what)

        def on_evict(self, why: str) -> None:
            log.append(why)

        def __del__(self) -> None:
            log.append([str(key) for key in pool.keys()])  # noqa: SIM118

    pool = tcpreasm.StreamPool(lambda net_flow, transport_flow: Mine())
    one, other = (tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(max_connections=1)) for _ in range(2))

    def feed_one(seq: int, payload: bytes = b"", ends: Ends = ENDS, **options: Any) -> list[Any]:
        one.assemble(tcpreasm.Flow(ends[0], ends[2]), segment(tcpreasm, seq, payload, ends=ends, **options), timestamp_ns=0)
        calls = log[:]
        log.clear()
        return calls

    # Each stream dies once it was told, and finds the pool as it is then.
    assert feed_one(999, syn=True, ends=BACK) == [b""]
    assert feed_one(999, syn=True) == ["half_open", [], b""]
    assert feed_one(1000, b"a", wire=5) == [b"a", 4, b"from the hook"]
    assert feed_one(1020, b"b") == []
    assert feed_one(999, syn=True, ends=BACK) == [b"b", "idle", b"", 2, [key_of(BACK)]]
    assert feed_one(1000, b"a", wire=4, fin=True, ends=BACK) == [b"a", 3, []]
    assert feed_one(999, syn=True) == [b""]
    assert feed_one(1001, b"b", fin=True) == []
    assert feed_one(1000, b"aB") == [b"ab", (1001, b"b", b"B", "held"), []]


# -- context ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NATIVE, "ReaderStream"])
def test_ready_made_streams_have_a_context(tcpreasm: ModuleType, name: str) -> None:
    cls = getattr(tcpreasm, name)
    assert cls().context is None
    mine = object()
    stream = cls(context=mine)
    assert stream.context is mine
    stream.context = [stream]
    assert stream.context[0] is stream


def test_a_context_that_refers_to_its_stream_is_collected(tcpreasm: ModuleType) -> None:
    gone: list[int] = []

    class Mine:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __del__(self) -> None:
            gone.append(1)

    for name in NATIVE:
        stream = getattr(tcpreasm, name)()
        stream.context = Mine(stream)
        del stream
    gc.collect()
    assert gone == [1] * len(NATIVE)
