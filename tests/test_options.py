"""What the options `urgent`, `paws`, `syn_data` and `on_conflict` do, by bytes, on both cores; `overlap` beyond the batteries.

Overlapping segments under every policy: test_overlap_policies, and byte by byte in test_model. Vectors of others: test_vectors.
"""

from __future__ import annotations

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
    RST,
    SYN,
    URG,
    Recorder,
    Rig,
    complete,
    frame,
    got,
    new,
    number,
    pcap,
    piece,
    segment,
    timestamps,
)


def opened(package: ModuleType, **options: Any) -> Rig:
    """A stream whose first byte has the number 1001."""
    rig = Rig(package, **options)
    assert rig.segment(1000, syn=True) == [new(), got(piece(start=True))]
    return rig


# -- urgent -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "pointer", "delivered"),
    [
        ("inline", 3, b"abXcd"),
        ("oob", 3, b"abcd"),
        ("oob", 1, b"bXcd"),
        ("oob", 5, b"abXc"),
        ("oob", 6, b"abXcd"),
        ("oob", 65535, b"abXcd"),
        ("oob", 0, b"abXcd"),
        ("oob-linux", 3, b"abcd"),
        ("oob-linux", 1, b"bXcd"),
        ("oob-linux", 0, b"bXcd"),
        ("oob-linux", 6, b"abXcd"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_the_byte_before_the_urgent_pointer(tcpreasm: ModuleType, mode: str, pointer: int, delivered: bytes, early: bool) -> None:
    """It takes up its number and leaves no gap, whether it comes in order or has to wait."""
    rig = opened(tcpreasm, urgent=mode)
    if early:
        assert rig.segment(1003, b"abXcd", urg=True, urgent=pointer) == []
        assert rig.assembler.stats.bytes_held == 5
        calls = rig.segment(1001, b"12")
    else:
        calls = rig.segment(1001, b"12") + rig.segment(1003, b"abXcd", urg=True, urgent=pointer)
    calls += rig.segment(1008, b"end")
    assert rig.recorder.calls == []
    pieces = [each for call in calls for each in call[2]]
    assert b"".join(data for data, *_ in pieces) == b"12" + delivered + b"end"
    assert {skip for _, skip, *_ in pieces} == {0}
    assert rig.dropped == ({"urgent": 1} if len(delivered) == 4 else {})
    assert rig.assembler.stats.urgent_segments == 1


def test_a_pointer_without_the_flag_means_nothing(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, urgent="oob-linux")
    assert rig.segment(1001, b"abc", urgent=2) == [got(piece(b"abc"))]
    assert rig.assembler.stats.urgent_segments == 0


def test_a_lone_urgent_byte_leads_to_no_call(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, urgent="oob")
    assert rig.segment(1001, b"X", urg=True, urgent=1) == []
    assert rig.segment(1002, b"abc") == [got(piece(b"abc"))]
    assert rig.segment(1001, b"X") == []
    assert rig.dropped == {"urgent": 1, "retransmitted": 1}


def test_an_urgent_byte_behind_a_gap(tcpreasm: ModuleType) -> None:
    """The gap before it is told with the next piece, and it is no part of that gap."""
    rig = opened(tcpreasm, urgent="oob")
    rig.segment(1005, b"Xab", urg=True, urgent=1)
    assert rig.flush()[1] == [got(piece(b"ab", skip=4))]
    assert rig.segment(1008, b"X", urg=True, urgent=1, fin=True) == [got(piece(end=True)), complete()]


def test_urgent_on_a_syn_counts_from_the_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, urgent="oob")
    assert rig.segment(1000, b"abXc", syn=True, urg=True, urgent=4) == [new(), got(piece(b"ab", start=True), piece(b"c"))]
    rig = Rig(tcpreasm, urgent="oob")
    assert rig.segment(1000, b"abXc", syn=True, urg=True, urgent=1) == [new(), got(piece(b"abXc", start=True))]


def test_urgent_bytes_overlap_as_others_do(tcpreasm: ModuleType) -> None:
    """A held one is a byte like others to a later copy without the flag: under "first" it stays out, under "last" the copy comes out."""
    for overlap, delivered in (("first", b"abc"), ("last", b"abYc")):
        rig = opened(tcpreasm, urgent="oob", overlap=overlap)
        rig.segment(1003, b"bXc", urg=True, urgent=2)
        rig.segment(1004, b"Y")
        (call,) = rig.segment(1001, b"-a")
        assert b"".join(data for data, *_ in call[2]) == b"-" + delivered
        assert rig.assembler.stats.conflicting == 1


def test_urgent_text_larger_than_a_page(tcpreasm: ModuleType) -> None:
    text = bytes(i % 251 for i in range(6000))
    for pointer in (1, 1900, 1901, 3801, 5999, 6000):
        rig = opened(tcpreasm, urgent="oob")
        rig.segment(1003, text, urg=True, urgent=pointer)
        (call,) = rig.segment(1001, b"12")
        assert b"".join(data for data, *_ in call[2]) == b"12" + text[: pointer - 1] + text[pointer:]


# -- paws ---------------------------------------------------------------------------------------------------------------


def stamped(rig: Rig, seq: int, text: bytes, value: int | None, flags: int = ACK, at: float = 0) -> list[Any]:
    return rig.frame(frame(seq, text, flags, options=b"" if value is None else timestamps(value)), at=at)


def test_paws_drops_what_is_older(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 100, SYN)
    assert stamped(rig, 1001, b"new", 101) == [got(piece(b"new"))]
    assert stamped(rig, 1004, b"old", 100) == []
    assert stamped(rig, 1004, b"", 100, ACK | FIN) == []
    assert stamped(rig, 1004, b"same", 101) == [got(piece(b"same"))]
    assert stamped(rig, 1008, b"none", None) == [got(piece(b"none"))]
    assert stamped(rig, 1012, b"", 5, RST | ACK) == [got(piece(end=True)), complete()]
    assert rig.dropped == {"paws": 3}


def test_paws_off_by_default(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    stamped(rig, 1000, b"", 100, SYN)
    assert stamped(rig, 1001, b"old", 99) == [got(piece(b"old"))]


def test_paws_compares_modulo_2_to_the_32(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 2**32 - 2, SYN)
    assert stamped(rig, 1001, b"a", 1) == [got(piece(b"a"))]
    assert stamped(rig, 1002, b"b", 2**32 - 1) == []
    assert stamped(rig, 1002, b"c", 1 + 2**31 - 1) == [got(piece(b"c"))]


def test_paws_reordering_loses_nothing(tcpreasm: ModuleType) -> None:
    """What comes early must not make old what fills the hole before it."""
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 100, SYN)
    assert stamped(rig, 1004, b"def", 105) == []
    assert stamped(rig, 1001, b"abc", 104) == [got(piece(b"abc"), piece(b"def"))]
    assert rig.dropped == {}


def test_paws_is_not_set_by_what_is_old_altogether(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 100, SYN)
    stamped(rig, 1001, b"abc", 101)
    assert stamped(rig, 1001, b"abc", 5000) == []
    assert stamped(rig, 1004, b"def", 102) == [got(piece(b"def"))]
    assert stamped(rig, 1007, b"", 103) == []
    assert stamped(rig, 1007, b"ghi", 102) == []
    assert rig.dropped == {"retransmitted": 3, "paws": 3}


def test_paws_after_24_days_of_silence(tcpreasm: ModuleType) -> None:
    days = 86400.0
    for silence, taken in ((23.9 * days, False), (24.1 * days, True)):
        rig = Rig(tcpreasm, paws=True)
        stamped(rig, 1000, b"", 100, SYN)
        stamped(rig, 1001, b"abc", 100, at=0)
        assert bool(stamped(rig, 1004, b"def", 50, at=silence)) == taken


def test_paws_of_the_next_stream_begins_with_its_syn(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 1000, SYN)
    stamped(rig, 1001, b"abc", 1000)
    assert stamped(rig, 500_000, b"", 20, SYN) == []
    assert stamped(rig, 500_001, b"next", 21)[-1] == got(piece(start=True), piece(b"next"))
    assert stamped(rig, 500_005, b"old", 19) == []
    assert rig.dropped == {"paws": 3}


@pytest.mark.parametrize(
    ("header", "dropped"),
    [
        (b"\x08\x0a\0\0\0\5\0\0\0\0\0\0", True),
        (b"\x02\x04\x05\xb4\x08\x0a\0\0\0\5\0\0\0\0\0\0", True),
        (b"\x05\x0a" + bytes(8) + b"\x08\x0a\0\0\0\5\0\0\0\0", True),
        (b"\x00\x01\x08\x0a\0\0\0\5\0\0\0\0", False),
        (b"\x63\x00\x08\x0a\0\0\0\5\0\0\0\0", False),
        (b"\x63\x01\x08\x0a\0\0\0\5\0\0\0\0", False),
        (b"\x63\x0d\x08\x0a\0\0\0\5\0\0\0\0", False),
        (b"\x08\x08\0\0\0\5\0\0\1\1\1\1", False),
        (b"\1\1\1\1\1\1\1\1\1\1\1\x08", False),
        (b"\1\1\1\1\1\1\1\1\1\1\x08\x0a", False),
    ],
)
def test_paws_looks_at_well_formed_options_only(tcpreasm: ModuleType, header: bytes, dropped: bool) -> None:
    """RFC 9293 3.2: an end of the list, padding, lengths that lead nowhere."""
    rig = Rig(tcpreasm, paws=True)
    stamped(rig, 1000, b"", 100, SYN)
    assert bool(rig.frame(frame(1001, b"abc", options=header))) == (not dropped)


# -- syn_data -----------------------------------------------------------------------------------------------------------


def fast_open(package: ModuleType, text: bytes = b"GET /", **options: Any) -> Rig:
    rig = Rig(package, syn_data="acked", **options)
    assert rig.segment(1000, text, syn=True) == [new(), got(piece(start=True))]
    assert rig.assembler.stats.bytes_held == len(text)
    return rig


def test_text_of_a_syn_goes_out_with_it_by_default(tcpreasm: ModuleType) -> None:
    assert Rig(tcpreasm).segment(1000, b"GET /", syn=True) == [new(), got(piece(b"GET /", start=True))]


def test_text_of_a_syn_was_accepted(tcpreasm: ModuleType) -> None:
    """An ACK without text that stands behind it is enough, and so is text, or a FIN, or a RST."""
    assert fast_open(tcpreasm).segment(1006) == [got(piece(b"GET /"))]
    assert fast_open(tcpreasm).segment(1006, b" more") == [got(piece(b"GET /"), piece(b" more"))]
    assert fast_open(tcpreasm).segment(1008, b"later") == [got(piece(b"GET /"))]
    assert fast_open(tcpreasm).segment(1006, fin=True) == [got(piece(b"GET /", end=True)), complete()]
    assert fast_open(tcpreasm).segment(1006, rst=True) == [got(piece(b"GET /", end=True)), complete()]


def test_text_of_a_syn_was_not_accepted(tcpreasm: ModuleType) -> None:
    rig = fast_open(tcpreasm)
    assert rig.segment(1001, b"PUT") == [got(piece(b"PUT"))]
    assert rig.segment(1004, b" it") == [got(piece(b" it"))]
    assert rig.dropped == {"unconfirmed_syn": 5}
    assert fast_open(tcpreasm).segment(1001, fin=True) == [got(piece(end=True)), complete()]


def test_part_of_the_text_of_a_syn_was_accepted(tcpreasm: ModuleType) -> None:
    rig = fast_open(tcpreasm)
    assert rig.segment(1003, b"ORGET") == [got(piece(b"GE"), piece(b"ORGET"))]
    assert rig.dropped == {"unconfirmed_syn": 3}


def test_what_tells_nothing_of_the_text_of_a_syn(tcpreasm: ModuleType) -> None:
    """A bare ACK at its first byte, a keep-alive, no ACK flag, a RST elsewhere, the same SYN again, the other direction."""
    rig = fast_open(tcpreasm)
    assert rig.segment(1001) == []
    assert rig.segment(1000, b"\0") == []
    assert rig.segment(1006, b"no", ack_flag=False) == []
    assert rig.segment(1010, rst=True) == []
    assert rig.segment(1000, b"GET /", syn=True) == []
    assert rig.segment(1006, ends=BACK) == []
    assert rig.dropped == {"retransmitted": 1, "no_ack_flag": 2, "overlapping": 5}
    assert rig.segment(1006) == [got(piece(b"GET /"))]


def test_text_of_a_syn_goes_out_when_nothing_is_waited_for(tcpreasm: ModuleType) -> None:
    assert fast_open(tcpreasm).flush()[1] == [got(piece(b"GET /"))]
    assert fast_open(tcpreasm).flush_all()[1] == [got(piece(b"GET /")), complete()]
    rig = Rig(tcpreasm, syn_data="acked", max_buffered_pages_per_connection=1)
    assert rig.segment(1000, b"GET /", syn=True) == [new(), got(piece(start=True), piece(b"GET /"))]


def test_text_of_a_syn_that_was_overtaken(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, syn_data="acked", start_wait=None)
    assert rig.segment(1006, b" more") == [new()]
    assert rig.segment(1000, b"GET /", syn=True) == [got(piece(b"GET /", start=True), piece(b" more"))]


def test_text_of_a_syn_that_is_remembered(tcpreasm: ModuleType) -> None:
    """What shows that the ports were used again shows what became of that SYN's text, too."""
    for seq, text, delivered in ((90_006, b"more", b"GET /more"), (90_001, b"PUT", b"PUT")):
        rig = Rig(tcpreasm, syn_data="acked")
        rig.segment(1000, syn=True)
        rig.segment(1001, b"abc")
        assert rig.segment(90_000, b"GET /", syn=True) == []
        (ended, made, served) = rig.segment(seq, text)
        assert (ended, made) == (complete(), new())
        assert b"".join(data for data, *_ in served[2]) == delivered


# -- on_conflict --------------------------------------------------------------------------------------------------------


class Conflicts:
    """An on_conflict that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None

    def __call__(self, net_flow: Any, transport_flow: Any, *conflict: Any) -> None:
        self.told.append(((str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst), *conflict))
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_a_run_over_pages_of_one_byte_is_told_once(tcpreasm: ModuleType, overlap: str) -> None:
    """Whichever copy stays, past 2**32 too; where the winner changes, another run begins, and so behind a byte that is the same."""
    isn = 2**32 - 2000
    conflicts = Conflicts()
    rig = Rig(tcpreasm, overlap=overlap, on_conflict=conflicts, max_buffered_pages_per_connection=0)
    rig.segment(isn, syn=True)
    held = bytes(i % 251 for i in range(4000))
    for i in range(4000):
        rig.send(segment(tcpreasm, isn + 100 + i, held[i : i + 1]))
    other = bytearray(byte ^ 1 for byte in held)
    other[3000] = held[3000]
    first = (isn + 100) % 2**32
    rig.segment(isn + 100, bytes(other))
    # Each page began where its byte is: "linux" has a segment win that begins before it, or there and ends behind it.
    wins = "held" if overlap == "first" else "new"
    assert conflicts.told == [
        (ENDS, first, held[:3000], bytes(other[:3000]), wins),
        (ENDS, (first + 3001) % 2**32, held[3001:], bytes(other[3001:]), wins),
    ]
    assert rig.assembler.stats.conflicting == 3999
    conflicts.told.clear()
    rig.segment(isn + 1, bytes(99))
    assert conflicts.told == []


def test_each_run_of_differing_bytes_is_told_once(tcpreasm: ModuleType) -> None:
    conflicts = Conflicts()
    rig = opened(tcpreasm, on_conflict=conflicts)
    rig.segment(1010, b"abcdefgh")
    rig.segment(1008, b"..aBCdefGH..")
    assert conflicts.told == [(ENDS, 1011, b"bc", b"BC", "held"), (ENDS, 1016, b"gh", b"GH", "held")]
    rig.segment(1010, b"abcdefgh")
    rig.segment(1001, b"deliver")
    rig.segment(1001, b"revised")
    assert len(conflicts.told) == 2
    assert rig.assembler.stats.conflicting == 4


def test_a_run_over_pages_is_told_in_one(tcpreasm: ModuleType) -> None:
    for overlap, wins in (("first", "held"), ("last", "new")):
        conflicts = Conflicts()
        rig = opened(tcpreasm, overlap=overlap, on_conflict=conflicts)
        rig.segment(1010, b"a" * 5000)
        rig.segment(1010, b"b" * 5000)
        assert conflicts.told == [(ENDS, 1010, b"a" * 5000, b"b" * 5000, wins)]


def test_it_is_called_after_the_stream(tcpreasm: ModuleType) -> None:
    order: list[Any] = []
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder, overlap="bsd", on_conflict=lambda *conflict: order.append((len(recorder.calls), conflict[2:])))
    rig.segment(1000, syn=True)
    rig.segment(1003, b"cd")
    assert rig.segment(1001, b"abXd") == [got(piece(b"abXd"))]
    assert order == [(1, (1003, b"c", b"X", "new"))]


def test_its_exception_passes_through(tcpreasm: ModuleType) -> None:
    """As one of a stream does: with the segment taken in, and everything going on."""
    conflicts = Conflicts()
    rig = opened(tcpreasm, on_conflict=conflicts)
    rig.segment(1005, b"ef")
    conflicts.error = error = KeyError("told")
    with pytest.raises(KeyError) as raised:
        rig.segment(1001, b"abcdEf")
    assert raised.value is error
    assert rig.taken() == [got(piece(b"abcd"), piece(b"ef"))]
    assert rig.segment(1007, b"g") == [got(piece(b"g"))]


def test_a_stream_that_raises_does_not_hide_it(tcpreasm: ModuleType) -> None:
    conflicts = Conflicts()
    rig = opened(tcpreasm, on_conflict=conflicts)
    rig.segment(1005, b"ef")
    rig.recorder.plan["reassembled"] = ValueError("stream")
    with pytest.raises(ValueError, match="stream"):
        rig.segment(1001, b"abcdEf")
    assert conflicts.told == [(ENDS, 1005, b"e", b"E", "held")]
    conflicts.error = KeyError("told")
    rig.segment(1010, b"x")
    rig.recorder.plan["reassembled"] = ValueError("stream")
    with pytest.raises(KeyError) as raised:
        rig.segment(1007, b"abcX")
    assert isinstance(raised.value.__context__, ValueError)


def test_it_may_call_another_assembler_of_the_pool(tcpreasm: ModuleType) -> None:
    """It runs without the pool's lock; its own assembler refuses, as from a stream."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    other = tcpreasm.Assembler(pool)
    errors: list[BaseException] = []

    def tell(*_: Any) -> None:
        other.flush_all()
        try:
            one.flush_all()
        except RuntimeError as error:
            errors.append(error)

    one = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(on_conflict=tell))
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    for seq, text in ((1000, b""), (1005, b"e"), (1005, b"E")):
        one.assemble(flow, tcpreasm.TCPSegment(ENDS[1], ENDS[3], seq, text, syn=not text), timestamp_ns=0)
    assert recorder.calls[-1] == complete()
    assert recorder.data() == b"e"
    assert len(errors) == 1


# -- overlap ------------------------------------------------------------------------------------------------------------


def test_a_page_cut_in_two_counts(tcpreasm: ModuleType) -> None:
    """ "last" may need a page more than there were; the limit is looked at afterwards."""
    rig = opened(tcpreasm, overlap="last", max_buffered_pages_per_connection=3)
    assert rig.segment(1011, b"aaaaaa") == []
    assert rig.assembler.stats.pages_used == 1
    assert rig.segment(1013, b"bb") == [got(piece(b"aa", skip=10), piece(b"bb"), piece(b"aa"))]
    rig = opened(tcpreasm, overlap="last", max_buffered_pages_per_connection=4)
    assert rig.segment(1011, b"aaaaaa") == rig.segment(1013, b"bb") == []
    assert rig.assembler.stats.pages_used == 3
    assert rig.dropped == {"overlapping": 2}


def test_what_the_capture_cut_off_stays_known(tcpreasm: ModuleType) -> None:
    """A page whose bytes give way knew that nothing comes behind them: the hole is not waited for."""
    rig = opened(tcpreasm, overlap="last")
    rig.segment(1005, b"old", wire=10)
    rig.segment(1004, b".new")
    rig.segment(1015, b"on")
    assert rig.segment(1001, b"abc") == [got(piece(b"abc"), piece(b".new"), piece(b"on", skip=7))]


def test_many_pages_lose_their_middle(tcpreasm: ModuleType) -> None:
    """With enough of them for the index beside the list: whole pages go, the first and the last one are shortened."""
    for count in (10, 40, 700):
        rig = opened(tcpreasm, overlap="last", max_buffered_pages_per_connection=0)
        for i in reversed(range(count)):
            rig.segment(1010 + 4 * i, b"abcd")
        rig.segment(1012, b"-" * (4 * count - 4))
        for i in range(0, count - 1, 2):
            rig.segment(1012 + 4 * i, b"efgh")
        (call,) = rig.segment(1001, b"123456789")
        whole = b"".join(data for data, *_ in call[2])
        middle = b"".join(b"----" if i % 2 else b"efgh" for i in range(count - 1))
        assert whole == b"123456789ab" + middle + b"cd"
        assert rig.assembler.stats.pages_used == 0


def test_assemblers_with_other_policies_share_a_pool(tcpreasm: ModuleType) -> None:
    """What an assembler with "first" has held is known by its page alone to one that asks where the segment began and ended."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    first, linux = (tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(overlap=overlap)) for overlap in ("first", "linux"))
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])

    def send(assembler: Any, seq: int, text: bytes) -> None:
        assembler.assemble(flow, tcpreasm.TCPSegment(ENDS[1], ENDS[3], seq, text, syn=not text), timestamp_ns=0)

    send(first, 1000, b"")
    send(first, 1005, b"aaaa")
    send(linux, 1005, b"bbbb")
    send(linux, 1003, b"ccc")
    send(first, 1005, b"ddd")
    send(linux, 1001, b"12")
    assert recorder.data() == b"12cccaaa"


@pytest.mark.parametrize("flags", [URG | ACK, URG | ACK | FIN])
def test_streams_that_count_take_the_same(tcpreasm: ModuleType, flags: int) -> None:
    """ByteCountStream, which no byte is handed to."""
    pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream)
    options = tcpreasm.AssemblerOptions(urgent="oob", paws=True, syn_data="acked", overlap="last")
    with tcpreasm.Assembler(pool, options) as assembler:
        for seq, text, flag, pointer in ((1000, b"abc", SYN, 0), (1006, b"gh", ACK, 0), (1006, b"XY", flags, 1), (1004, b"de", ACK, 0)):
            assembler.assemble_frame(frame(seq, text, flag, urgent=pointer, options=timestamps(5)), timestamp_ns=0)
        stats = assembler.stats
        assert (stats.bytes_delivered, dict(stats.dropped)) == (6, {"overlapping": 2, "urgent": 1})


@pytest.mark.parametrize("factory", ["ByteCountStream", "BytesStream", "python"])
@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_a_capture_tells_what_its_frames_tell(tcpreasm: ModuleType, tmp_path: Path, factory: str, overlap: str) -> None:
    """Of a file, of one in memory, with two threads; whether bytes wait in pages or in the capture."""
    frames: list[tuple[int, bytes]] = []
    for which in range(40):
        ends = number(which)
        frames.append((NS, frame(1000, b"", SYN, ends=ends)))
        frames.append((NS, frame(1500, bytes(1200), ends=ends)))
        frames.append((NS, frame(1400 + which, bytes(100) + bytes([which + 1]) * 700 + bytes(300), ends=ends)))
        frames.append((NS, frame(1001, b"\xff" * 600, ends=ends)))
    path = tmp_path / "conflicts.pcap"
    path.write_bytes(pcap(frames))
    seen: list[tuple[Any, ...]] = []
    for how in ("frames", "file", "memory", "threads"):
        conflicts = Conflicts()
        streams = getattr(tcpreasm, factory, None) or Recorder()
        options = tcpreasm.AssemblerOptions(overlap=overlap, on_conflict=conflicts)
        with tcpreasm.Assembler(tcpreasm.StreamPool(streams), options) as assembler:
            if how == "frames":
                for at, data in frames:
                    assembler.assemble_frame(data, timestamp_ns=at)
            elif how == "memory":
                assembler.assemble_capture(path.read_bytes())
            else:
                assembler.assemble_capture(path, threads=2 if how == "threads" else 1)
            seen.append((sorted(conflicts.told), assembler.stats.conflicting, assembler.stats.bytes_delivered))
    told, conflicting, delivered = seen[0]
    assert len(told) >= 80
    assert sum(len(held) for _, _, held, _, _ in told) == conflicting
    assert delivered == 40 * 1699
    assert seen[1:] == seen[:1] * 3
