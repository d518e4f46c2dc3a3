"""Where each byte came from: numbers of packets and sequence numbers of pieces through every way in, `provenance`, `origin_of`.

What is expected is written down by hand, or read from the capture by dpkt, which knows nothing of streams.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import dpkt
import numpy as np
import pytest
from conftest import DATA
from recorder import ACK, ENDS, FIN, RST, SYN, URG, Ends, frame, pcap, segment
from test_corpus_perturbed import CAPTURES

import tcpreasm as tcpreasm_package

Noted = tuple[bytes, int, int, int]  # bytes, skip, packet_number, seq
NO_LIMITS: dict[str, Any] = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0, "max_buffered_bytes_total": None}
ARP = bytes(12) + b"\x08\x06" + bytes(28)
OTHER: Ends = ("10.9.9.9", 999, "10.0.0.2", 80)
COLUMNS = ("offset", "length", "seen_ns", "packet_number", "seq", "acked")


class Noter:
    """A factory; its streams note of each piece what this is about."""

    def __init__(self) -> None:
        self.by_key: dict[str, list[Noted]] = {}

    def __call__(self, net_flow: Any, transport_flow: Any) -> Any:
        return NotedStream(self.by_key.setdefault(f"{net_flow.src}:{transport_flow.src}", []))

    @property
    def pieces(self) -> list[Noted]:
        return self.by_key["10.0.0.1:1234"]


class NotedStream:
    def __init__(self, pieces: list[Noted]) -> None:
        self.pieces = pieces

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.pieces += [(bytes(piece), piece.skip, piece.packet_number, piece.seq) for piece in reassemblies]

    def reassembly_complete(self) -> None:
        pass


def noting(package: ModuleType, **options: Any) -> tuple[Any, Noter]:
    noter = Noter()
    return package.Assembler(package.StreamPool(noter), package.AssemblerOptions(**options)), noter


def rows_of(stream: Any) -> list[tuple[int, ...]]:
    rows = stream.provenance
    assert rows.dtype.names == COLUMNS
    return [tuple(int(value) for value in row) for row in rows]


# -- every way in -------------------------------------------------------------------------------------------------------

# Numbered from 1.
FRAMES = [
    frame(999, flags=SYN),
    ARP,
    frame(1006, b"world"),
    frame(50, b"of another one", ends=OTHER),
    frame(1001, b"hell"),  # behind the first byte of the stream: held too
    b"",
    frame(1000, b"*"),
    frame(1011, b"in order"),
    frame(1005, b"o"),
    frame(1019, b"in order too"),
    frame(1041, b"behind a hole"),
    frame(1054, flags=ACK | FIN),
]
PIECES: list[Noted] = [
    (b"", 0, 1, 1000),
    (b"*", 0, 7, 1000),
    (b"hell", 0, 5, 1001),
    (b"o", 0, 9, 1005),
    (b"world", 0, 3, 1006),
    (b"in order", 0, 8, 1011),
    (b"in order too", 0, 10, 1019),
    (b"behind a hole", 10, 11, 1041),
]
CAPTURE = pcap((i * 1000, data) for i, data in enumerate(FRAMES))


def by_frame(package: ModuleType, options: dict[str, Any]) -> Noter:
    assembler, noter = noting(package, **options)
    for i, data in enumerate(FRAMES):
        assembler.assemble_frame(data, timestamp_ns=i * 1000)
    assembler.close()
    return noter


def by_batch(package: ModuleType, options: dict[str, Any], *, coalesce: bool = False, parts: int = 1) -> Noter:
    assembler, noter = noting(package, **options)
    lengths = np.array([len(data) for data in FRAMES])
    offsets = np.cumsum(lengths) - lengths
    for part in np.array_split(np.arange(len(FRAMES)), parts):
        assembler.assemble_batch(b"".join(FRAMES), offsets[part], lengths[part], part * 1000, coalesce=coalesce)
    assembler.close()
    return noter


def by_capture(package: ModuleType, options: dict[str, Any], **how: Any) -> Noter:
    assembler, noter = noting(package, **options)
    summary = assembler.assemble_capture(CAPTURE, **how)
    assert (summary.packets, assembler.packets_given) == (len(FRAMES), len(FRAMES))
    return noter


def by_list(package: ModuleType, options: dict[str, Any], **how: Any) -> Noter:
    """Captures with some frames each, one with none among them."""
    assembler, noter = noting(package, **options)
    numbered = [(i * 1000, data) for i, data in enumerate(FRAMES)]
    assembler.assemble_capture([pcap(numbered[:4]), pcap([]), pcap(numbered[4:5]), pcap(numbered[5:])], **how)
    assert assembler.packets_given == len(FRAMES)
    return noter


def by_pairs(package: ModuleType, options: dict[str, Any]) -> Noter:
    assembler, noter = noting(package, **options)
    assembler.assemble_capture([(i / 1e6, data) for i, data in enumerate(FRAMES)])
    return noter


WAYS: dict[str, Callable[[ModuleType, dict[str, Any]], Noter]] = {
    "frames": by_frame,
    "batch": by_batch,
    "batches": lambda package, options: by_batch(package, options, parts=5),
    "coalesced batch": lambda package, options: by_batch(package, options, coalesce=True),
    "capture": by_capture,
    "coalesced capture": lambda package, options: by_capture(package, options, coalesce=True),
    "threads": lambda package, options: by_capture(package, options, threads=2),
    "three coalesced threads": lambda package, options: by_capture(package, options, threads=3, coalesce=True),
    "list": by_list,
    "list with threads": lambda package, options: by_list(package, options, threads=2),
    "pairs": by_pairs,
}


@pytest.mark.parametrize("options", [{}, {"paws": True}, {"overlap": "linux"}, {"verify_checksums": "auto"}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_pieces_have_the_numbers_of_their_packets(tcpreasm: ModuleType, way: str, options: dict[str, Any]) -> None:
    noter = WAYS[way](tcpreasm, options)
    assert noter.pieces == PIECES
    assert noter.by_key["10.9.9.9:999"] == [(b"of another one", -1, 4, 50)]


def test_segments_count_as_frames_do(tcpreasm: ModuleType) -> None:
    assembler, noter = noting(tcpreasm)
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    assembler.assemble(flow, segment(tcpreasm, 2**32 - 2, b"", syn=True), timestamp_ns=0)
    assembler.assemble_frame(ARP, timestamp_ns=0)
    assembler.assemble(flow, segment(tcpreasm, 1, b"cd"), timestamp_ns=0)
    assembler.assemble_with_timestamp(flow, segment(tcpreasm, 2**32 - 1, b"ab"), 0)
    assembler.assemble_frame(frame(3, b"e"), timestamp_ns=0)
    assert noter.pieces == [(b"", 0, 1, 2**32 - 1), (b"ab", 0, 4, 2**32 - 1), (b"cd", 0, 3, 1), (b"e", 0, 5, 3)]
    assert assembler.packets_given == 5


def test_a_capture_goes_on_counting_where_the_last_call_ended(tcpreasm: ModuleType) -> None:
    assembler, noter = noting(tcpreasm)
    for _ in range(3):
        assembler.assemble_frame(ARP, timestamp_ns=0)
    assembler.assemble_capture(CAPTURE, threads=2)
    assembler.assemble_capture(pcap([(0, ARP), (1, frame(77, b"once more", ends=OTHER))]), threads=2)
    assembler.assemble_capture(pcap([(0, ARP), (1, frame(7, b"again", ends=("10.7.7.7", 7, "10.0.0.2", 80)))]))
    assert noter.pieces == [(data, skip, number + 3, seq) for data, skip, number, seq in PIECES]
    assert noter.by_key["10.9.9.9:999"][1:] == [(b"once more", -1, 3 + len(FRAMES) + 2, 77)]
    assert noter.by_key["10.7.7.7:7"] == [(b"again", -1, 3 + len(FRAMES) + 4, 7)]


@pytest.mark.parametrize("way", ["capture", "batch"])
def test_an_exception_loses_no_count(tcpreasm: ModuleType, way: str) -> None:
    """More frames than are walked through together; the stream raises at the first one of the third piece."""
    numbers: list[int] = []

    class Raising(NotedStream):
        def reassembled(self, reassemblies: list[Any]) -> None:
            numbers.extend(piece.packet_number for piece in reassemblies)
            if len(numbers) in (3, 100):
                raise LookupError

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(lambda *flows: Raising([])))
    frames = [frame(999, flags=SYN), *(frame(1000 + i, b"x") for i in range(200))]
    if way == "capture":
        with tcpreasm.open_capture(pcap((i, data) for i, data in enumerate(frames))) as capture:
            for error in (True, True, False):
                if error:
                    with pytest.raises(LookupError):
                        assembler.assemble_capture(capture, flush=False)
                else:
                    assembler.assemble_capture(capture, flush=False)
        assert (numbers, assembler.packets_given) == ([*range(1, 202)], 201)
    else:
        lengths = np.array([len(data) for data in frames])
        offsets = np.cumsum(lengths) - lengths
        taken = 0
        for error in (True, True, False):
            arguments = (b"".join(frames), offsets[taken:], lengths[taken:], np.arange(taken, len(frames)))
            if error:
                with pytest.raises(LookupError):
                    assembler.assemble_batch(*arguments)
            else:
                assembler.assemble_batch(*arguments)
            taken = assembler.packets_given
        assert (numbers, taken) == ([*range(1, 202)], 201)


def test_a_datagram_in_fragments_has_the_number_of_the_last_one(tcpreasm: ModuleType) -> None:
    whole = frame(1000, bytes(range(200)))
    ip = whole[14:]

    def part(begin: int, end: int, more: bool) -> bytes:
        header = bytearray(ip[:20])
        struct.pack_into("!HHH", header, 2, 20 + end - begin, 7, (0x2000 if more else 0) | begin // 8)
        return whole[:14] + bytes(header) + ip[20 + begin : 20 + end]

    frames = [frame(999, flags=SYN), part(0, 104, True), ARP, part(104, 220, False), frame(1200, b"x")]
    for how in ({}, {"threads": 2}):
        assembler, noter = noting(tcpreasm)
        assembler.assemble_capture(pcap((i, data) for i, data in enumerate(frames)), **how)
        assert noter.pieces == [(b"", 0, 1, 1000), (bytes(range(200)), 0, 4, 1000), (b"x", 0, 5, 1200)]


# -- pieces without bytes -----------------------------------------------------------------------------------------------


def fed(package: ModuleType, *packets: tuple[int, bytes, int], **options: Any) -> tuple[Any, Noter]:
    assembler, noter = noting(package, **options)
    for i, (seq, data, flags) in enumerate(packets):
        assembler.assemble_frame(frame(seq, data, flags), timestamp_ns=i)
    return assembler, noter


def test_an_end_has_the_number_of_the_packet_that_led_to_it(tcpreasm: ModuleType) -> None:
    _, noter = fed(tcpreasm, (999, b"", SYN), (1000, b"a", ACK), (1001, b"", ACK), (1001, b"", ACK | FIN))
    assert noter.pieces == [(b"", 0, 1, 1000), (b"a", 0, 2, 1000), (b"", 0, 4, 1001)]
    _, noter = fed(tcpreasm, (999, b"", SYN), (1000, b"", RST))
    assert noter.pieces == [(b"", 0, 1, 1000), (b"", 0, 2, 1000)]


def test_what_only_a_flush_led_to_has_no_packet(tcpreasm: ModuleType) -> None:
    assembler, noter = fed(tcpreasm, (999, b"", SYN), (1010, b"", ACK | FIN))
    assembler.flush_all()
    assert noter.pieces == [(b"", 0, 1, 1000), (b"", 10, 0, 1010)]
    assembler, noter = fed(tcpreasm, (999, b"", SYN), (1010, b"late", ACK))
    assembler.flush_older_than(1)
    assert noter.pieces == [(b"", 0, 1, 1000), (b"late", 10, 2, 1010)]


def test_a_gap_behind_the_last_byte_has_no_packet(tcpreasm: ModuleType) -> None:
    """The capture cut the last segment short: what is missing is told at the end."""
    assembler, noter = noting(tcpreasm)
    assembler.assemble_frame(frame(999, flags=SYN), timestamp_ns=0)
    whole = frame(1000, b"abcdef")
    assembler.assemble_frame(whole[:-4], timestamp_ns=1, wire_length=len(whole))
    assembler.close()
    assert noter.pieces == [(b"", 0, 1, 1000), (b"ab", 0, 2, 1000), (b"", 4, 0, 1006)]


def test_a_stream_that_opens_with_data_starts_by_that_packet(tcpreasm: ModuleType) -> None:
    _, noter = fed(tcpreasm, (999, b"", SYN), (1000, b"a", ACK), open_on="data")
    assert noter.pieces == [(b"", 0, 2, 1000), (b"a", 0, 2, 1000)]


def test_a_connection_that_begins_anew_starts_by_its_syn(tcpreasm: ModuleType) -> None:
    """The second SYN brings text, and is remembered until a packet continues from it."""
    _, noter = fed(tcpreasm, (999, b"", SYN), (1000, b"old", ACK), (5 << 24, b"text", SYN), (2000, b"", ACK), ((5 << 24) + 5, b"new", ACK))
    assert noter.pieces == [
        *((b"", 0, 1, 1000), (b"old", 0, 2, 1000)),
        *((b"", 0, 3, (5 << 24) + 1), (b"text", 0, 3, (5 << 24) + 1), (b"new", 0, 5, (5 << 24) + 5)),
    ]


def test_the_text_of_a_syn_has_its_number(tcpreasm: ModuleType) -> None:
    for how in ("deliver", "acked"):
        _, noter = fed(tcpreasm, (999, b"text", SYN), (1004, b"", ACK), (1004, b"more", ACK), syn_data=how)
        pieces = [piece for piece in noter.pieces if piece[0]]
        assert pieces == [(b"text", 0, 1, 1000), (b"more", 0, 3, 1004)]


# -- parts of a segment -------------------------------------------------------------------------------------------------


def test_what_is_new_of_a_segment_begins_where_it_does(tcpreasm: ModuleType) -> None:
    """It begins before what is expected, and has a page in its midst."""
    packets = [(2**32 - 4, b"", SYN), (2**32 - 3, b"ab", ACK), (1, b"ef", ACK), (2**32 - 3, b"abcdefghij", ACK)]
    _, noter = fed(tcpreasm, *packets)
    first = 2**32 - 3
    assert noter.pieces == [
        *((b"", 0, 1, first), (b"ab", 0, 2, first), (b"cd", 0, 4, 2**32 - 1)),
        *((b"ef", 0, 3, 1), (b"ghij", 0, 4, 3)),
    ]


@pytest.mark.parametrize("early", [False, True])
def test_an_urgent_byte_is_left_out_and_counted_on_over(tcpreasm: ModuleType, early: bool) -> None:
    assembler, noter = noting(tcpreasm, urgent="oob")
    assembler.assemble_frame(frame(999, flags=SYN), timestamp_ns=0)
    assembler.assemble_frame(frame(1000 + early, b"abcdef", ACK | URG, urgent=3), timestamp_ns=1)
    if early:
        assembler.assemble_frame(frame(1000, b"!"), timestamp_ns=2)
    filler = [(b"!", 0, 3, 1000)] if early else []
    assert noter.pieces[1:] == [*filler, (b"ab", 0, 2, 1000 + early), (b"def", 0, 2, 1003 + early)]


# -- what is held -------------------------------------------------------------------------------------------------------

SIZES = (1, 15, 16, 17, 24, 25, 431, 432, 433, 440, 441, 1899, 1900, 1901, 3800, 5000)


@pytest.mark.parametrize("overlap", ["first", "last", "bsd", "linux", "solaris", "old-linux"])
def test_pages_of_all_sizes_keep_numbers(tcpreasm: ModuleType, overlap: str) -> None:
    """Held from the last to the first; each page's bytes up to its very end stay what they are beside its number."""
    packets, seq, expected = [], 1001, [(b"", 0, 1, 1000), (b"!", 0, 2 + len(SIZES), 1000)]
    for i, size in enumerate(SIZES):
        packets.append((seq, random.Random(size).randbytes(size), 1 + len(SIZES) - i))
        seq += size
    for first, data, number in packets:
        expected += [(data[at : at + 1900], 0, number, first + at) for at in range(0, len(data), 1900)]
    early = [(first, data, ACK) for first, data, _ in reversed(packets)]
    _, noter = fed(tcpreasm, (999, b"", SYN), *early, (1000, b"!", ACK), overlap=overlap, **NO_LIMITS)
    assert noter.pieces == expected


@pytest.mark.parametrize("shared", [False, True], ids=["one", "two on a pool"])
def test_what_an_overlap_leaves_of_a_page_keeps_its_number(tcpreasm: ModuleType, shared: bool) -> None:
    """A copy wins in the midst of a held segment: what is left before and behind it."""
    noter = Noter()
    pool = tcpreasm.StreamPool(noter)
    one = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(overlap="first" if shared else "bsd"))
    two = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(overlap="last")) if shared else one
    two._number_from(two.packets_given + 100 * shared)
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    one.assemble(flow, segment(tcpreasm, 999, syn=True), timestamp_ns=0)
    one.assemble(flow, segment(tcpreasm, 1010, b"a" * 40), timestamp_ns=0)
    two.assemble(flow, segment(tcpreasm, 1020, b"b" * 10), timestamp_ns=0)
    two.assemble(flow, segment(tcpreasm, 1005, b"c" * 10), timestamp_ns=0)
    one.assemble(flow, segment(tcpreasm, 1000, b"d" * 5), timestamp_ns=0)
    first = [(b"", 0, 1, 1000), (b"ddddd", 0, 3 if shared else 5, 1000)]
    if shared:
        held = [(b"c" * 10, 0, 102, 1005), (b"a" * 5, 0, 2, 1015), (b"b" * 10, 0, 101, 1020), (b"a" * 20, 0, 2, 1030)]
    else:
        held = [(b"c" * 10, 0, 4, 1005), (b"a" * 35, 0, 2, 1015)]
    assert noter.pieces == [*first, *held]


@pytest.mark.parametrize("size", [12, 400, 1800])
def test_what_is_split_has_its_number_beyond_32_bits(tcpreasm: ModuleType, size: int) -> None:
    """The part behind is held in a page of another size than the one that had the whole, which has seen no such number yet."""
    assembler, noter = noting(tcpreasm, overlap="last")
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    assembler.assemble(flow, segment(tcpreasm, 999, syn=True), timestamp_ns=0)
    assembler.assemble(flow, segment(tcpreasm, 5000, b"x" * size), timestamp_ns=0)
    assembler._number_from(2**32 - 2)
    behind = 2901 - size
    for at, text in ((1001, b"a" * 1900), (behind - 10, b"b" * 10), (1000, b"!")):
        assembler.assemble(flow, segment(tcpreasm, at, text), timestamp_ns=0)
    assembler.flush_all()
    assert noter.pieces[1:] == [
        *((b"!", 0, 2**32 + 1, 1000), (b"a" * (1890 - size), 0, 2**32 - 1, 1001)),
        *((b"b" * 10, 0, 2**32, behind - 10), (b"a" * size, 0, 2**32 - 1, behind), (b"x" * size, 2099, 2, 5000)),
    ]


def test_a_byte_that_gives_way_takes_the_number_of_the_other(tcpreasm: ModuleType) -> None:
    """Before the start is known, a lone byte may be a keep-alive's."""
    _, noter = fed(tcpreasm, (1000, b"?", ACK), (1000, b"a", ACK), (999, b"", SYN))
    assert noter.pieces == [(b"", 0, 3, 1000), (b"a", 0, 2, 1000)]


@pytest.mark.parametrize("before", [0, 2**32 - 4, 2**32 - 2, 2**32 - 1, 2**32, 2**40 - 3, 2**31 - 2])
@pytest.mark.parametrize("way", ["frames", "capture", "threads"])
def test_numbers_beyond_32_bits(tcpreasm: ModuleType, before: int, way: str) -> None:
    assembler, noter = noting(tcpreasm)
    assembler._number_from(before)
    if way == "frames":
        for i, data in enumerate(FRAMES):
            assembler.assemble_frame(data, timestamp_ns=i)
        assembler.close()
    else:
        assembler.assemble_capture(CAPTURE, threads=1 + (way == "threads"))
    assert noter.pieces == [(data, skip, number + before, seq) for data, skip, number, seq in PIECES]


def test_a_page_that_another_assembler_gives_out_has_the_number_of_its_own(tcpreasm: ModuleType) -> None:
    """That of the assembler that was given its packet."""
    noter = Noter()
    pool = tcpreasm.StreamPool(noter)
    one, two = tcpreasm.Assembler(pool), tcpreasm.Assembler(pool)
    one._number_from(70_000_000)
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    two.assemble(flow, segment(tcpreasm, 999, syn=True), timestamp_ns=0)
    one.assemble(flow, segment(tcpreasm, 1001, b"b"), timestamp_ns=0)
    two.assemble(flow, segment(tcpreasm, 1000, b"a"), timestamp_ns=0)
    assert noter.pieces == [(b"", 0, 1, 1000), (b"a", 0, 2, 1000), (b"b", 0, 70_000_001, 1001)]


# -- provenance ---------------------------------------------------------------------------------------------------------


def kept(package: ModuleType, made: list[Any], **keywords: Any) -> Any:
    def factory(net_flow: Any, transport_flow: Any) -> Any:
        made.append(package.BytesStream(net_flow, transport_flow, provenance=True, **keywords))
        return made[-1]

    return package.StreamPool(factory)


def test_rows_and_look_ups(tcpreasm: ModuleType) -> None:
    made: list[Any] = []
    tcpreasm.Assembler(kept(tcpreasm, made)).assemble_capture(CAPTURE)
    stream = made[0]
    rows = [
        (0, 1, 6000, 7, 1000, -1),
        (1, 4, 4000, 5, 1001, -1),
        (5, 1, 8000, 9, 1005, -1),
        (6, 5, 2000, 3, 1006, -1),
        (11, 8, 7000, 8, 1011, -1),
        (19, 12, 9000, 10, 1019, -1),
        (41, 13, 10000, 11, 1041, -1),
    ]
    assert rows_of(stream) == rows
    assert stream.gaps == ((31, 10),)
    for offset in range(54):
        expected = [row for row in rows if row[0] <= offset < row[0] + row[1]]
        if expected:
            found = stream.origin_of(offset)
            assert [found[name] for name in COLUMNS] == [*expected[0]]
        else:
            with pytest.raises(IndexError, match=f"at offset {offset}:"):
                stream.origin_of(offset)
    for offset in (-1, 54, 10**6, 2**63 - 1, 2**63, 10**30, -(10**30)):
        with pytest.raises(IndexError, match=f"no byte of the stream is kept at offset {offset}: it lies in a gap, or outside of"):
            stream.origin_of(offset)
    with pytest.raises(TypeError):
        stream.origin_of("1")
    assert stream.origin_of(np.int32(6))["packet_number"] == 3


def test_follow_gives_the_same(tcpreasm: ModuleType) -> None:
    followed = [*tcpreasm.follow(CAPTURE, provenance=True)]
    made: list[Any] = []
    tcpreasm.Assembler(kept(tcpreasm, made)).assemble_capture(CAPTURE)
    by_key = {str(stream.key): stream for stream in made}
    assert len(followed) == len(made) == 2
    for stream in followed:
        other = by_key[str(stream.key)]
        assert stream.provenance.tobytes() == other.provenance.tobytes()
        assert stream.origin_of(3).tolist() == other.origin_of(3).tolist()
        for offset in (-1, 32, 10**30):
            with pytest.raises(IndexError, match=f"at offset {offset}:"):
                stream.origin_of(offset)
    assert followed == [*tcpreasm.follow(CAPTURE)], "streams are compared by what they are, not by where it came from"


def test_off_there_is_none(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.BytesStream()
    assert stream.provenance is None
    with pytest.raises(ValueError, match="made without provenance=True"):
        stream.origin_of(0)
    followed = next(tcpreasm.follow(CAPTURE))
    assert followed.provenance is None
    with pytest.raises(ValueError, match="followed without provenance=True"):
        followed.origin_of(0)
    for make in (tcpreasm.BytesStream, lambda **keywords: tcpreasm.follow(CAPTURE, **keywords)):
        with pytest.raises(TypeError, match="provenance"):
            make(provenance=1)


def test_an_empty_stream_has_no_rows(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.BytesStream(provenance=True)
    assert rows_of(stream) == []
    for offset in (0, -1, 5):
        with pytest.raises(IndexError, match=f"at offset {offset}:"):
            stream.origin_of(offset)


def test_the_limit_of_bytes_bounds_rows(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.BytesStream(max_bytes=7, on_limit="drop", provenance=True)
    pieces = [(b"abc", 0, 3, 100), (b"", 5, 4, 108), (b"defghi", 0, 5, 108), (b"j", 0, 6, 114)]
    for data, skip, number, seq in pieces:
        stream.reassembled([tcpreasm.Reassembly(data, skip, False, False, number * 10, -1, number, seq)])
    assert (stream.data, stream.dropped) == (b"abcdefg", 3)
    assert rows_of(stream) == [(0, 3, 30, 3, 100, -1), (8, 4, 50, 5, 108, -1)]
    for offset in (3, 7, 12, 14, 15):
        with pytest.raises(IndexError, match=f"at offset {offset}:"):
            stream.origin_of(offset)


def test_pieces_of_any_class(tcpreasm: ModuleType) -> None:
    """What looks like a Reassembly, with and without the two."""

    class Plain:
        bytes, skip, start, end, seen_ns = b"ab", 0, False, False, 5

    class Whole(Plain):
        packet_number, seq = 2**40, 2**32 - 1

    stream = tcpreasm.BytesStream(provenance=True)
    if tcpreasm.implementation == "compiled":  # the pure one takes what has a length
        stream.reassembled([Whole(), Plain()])
        assert rows_of(stream) == [(0, 2, 5, 2**40, 2**32 - 1, -1), (2, 2, 5, 0, 0, -1)]
    made = tcpreasm.Reassembly(b"x", packet_number=9, seq=2**32 - 1)
    assert (made.packet_number, made.seq) == (9, 2**32 - 1)
    assert (tcpreasm.Reassembly().packet_number, tcpreasm.Reassembly().seq) == (0, 0)


@pytest.mark.parametrize("source", ["bytes", "file", "threads"])
def test_a_stream_that_asks_gets_the_numbers_of_what_waited_in_the_capture(tcpreasm: ModuleType, tmp_path: Path, source: str) -> None:
    """Without the question, bytes of an early packet stay in the capture, and nothing else of it is kept."""
    texts = [random.Random(i).randbytes(3000) for i in range(6)]
    order = (3, 5, 1, 4, 2, 0)
    capture = pcap((i, data) for i, data in enumerate([frame(999, flags=SYN), *(frame(1000 + 3000 * i, texts[i]) for i in order)]))
    path = tmp_path / "capture"
    path.write_bytes(capture)
    made: list[Any] = []
    tcpreasm.Assembler(kept(tcpreasm, made)).assemble_capture(path if source == "file" else capture, threads=1 + (source == "threads"))
    assert made[0].data == b"".join(texts)
    parts = [(0, 3000)]
    parts += [(3000 * i + at, size) for i in range(1, 6) for at, size in ((0, 1900), (1900, 1100))]
    assert [row[:2] for row in rows_of(made[0])] == parts
    for offset, _, seen_ns, number, seq, _ in rows_of(made[0]):
        assert (seen_ns, number, seq) == (number - 1, 2 + order.index(offset // 3000), 1000 + offset)


def test_a_subclass_and_one_that_is_served_in_python_are_the_same(tcpreasm: ModuleType) -> None:
    class Served(tcpreasm.BytesStream):  # type: ignore[misc,name-defined]
        def reassembled(self, reassemblies: list[Any]) -> None:
            super().reassembled(reassemblies)

    class Plain(tcpreasm.BytesStream):  # type: ignore[misc,name-defined]
        pass

    told = []
    for cls in (tcpreasm.BytesStream, Served, Plain):
        made: list[Any] = []

        def factory(*flows: Any, cls: Any = cls, made: list[Any] = made) -> Any:
            made.append(cls(*flows, provenance=True))
            return made[-1]

        tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(DATA / "http.pcap")
        told.append({str(stream.key): rows_of(stream) for stream in made})
    assert told[0] == told[1] == told[2]
    assert sum(map(len, told[0].values())) > 10


# -- what the other side had acknowledged -------------------------------------------------------------------------------

CLIENT, SERVER = ENDS, (ENDS[2], ENDS[3], ENDS[0], ENDS[1])
Packet = tuple[Ends, int, bytes, int, int]  # who sends, sequence number, text, flags, acknowledgement number
TOP = 2**32 - 3  # the server's SYN: its text goes over zero

# Numbered from 1. Behind each one with text: what of the stream its sender knew the other one to have.
TALK: list[Packet] = [
    (CLIENT, 1000, b"", SYN, 0),
    (SERVER, TOP, b"", SYN | ACK, 1001),
    (CLIENT, 1001, b"", ACK, TOP + 1),
    (CLIENT, 1001, b"abcd", ACK, TOP + 1),  # 0
    (CLIENT, 1005, b"ef", ACK, TOP + 1),  # 0
    (SERVER, TOP + 1, b"", ACK, 1005),
    (CLIENT, 1007, b"gh", ACK, TOP + 1),  # 4
    (SERVER, TOP + 1, b"XY", ACK, 1007),  # 0
    (CLIENT, 1011, b"kl", ACK, 0),  # 6, held
    (SERVER, 0, b"", ACK, 1009),
    (CLIENT, 1013, b"mn", ACK, 0),  # 8, held
    (SERVER, 0, b"", ACK, 1011),
    (CLIENT, 1009, b"ij", ACK, 0),  # 10, once more: the first one was not captured
    (CLIENT, 1007, b"ghij", ACK, 0),  # and that was known
    (CLIENT, 1013, b"mnop", ACK, 0),  # 10, of which two bytes are new
    (SERVER, 0, b"", ACK, 1000),  # late: it takes nothing back
    (CLIENT, 1017, b"q", ACK, 0),  # 10
    (SERVER, 0, b"Z", ACK, 1018),  # 2
]
CLIENT_ROWS = [(4, 0), (5, 0), (7, 4), (13, 10), (9, 6), (11, 8), (15, 10), (17, 10)]  # packet, acked
SERVER_ROWS = [(8, 0), (18, 2)]


def framed(packets: list[Packet]) -> list[bytes]:
    return [frame(seq, text, flags, ends=ends, ack=ack & 0xFFFFFFFF) for ends, seq, text, flags, ack in packets]


class Sides:
    """A ConversationPool, and what its sides collect."""

    def __init__(self, package: ModuleType, way: str = "") -> None:
        self.package = package
        self.streams: dict[str, Any] = {}

        class Served(package.BytesStream):  # type: ignore[misc,name-defined]
            def reassembled(self, reassemblies: list[Any]) -> None:
                super().reassembled(reassemblies)

        self.cls = Served if way == "in Python" else package.BytesStream
        self.pool = package.ConversationPool(self.handler) if way == "by a handler" else package.ConversationPool(streams=self.stream)

    def stream(self, side: Any) -> Any:
        return self.streams.setdefault(str(side.key), self.cls(provenance=True))

    def handler(self, conversation: Any) -> Any:
        class Handler:
            def reassembled(_, side: Any, pieces: list[Any]) -> None:  # noqa: N805
                self.stream(side).reassembled(pieces)

            def conversation_complete(self) -> None:
                pass

        return Handler()

    def acked(self, ends: Ends = CLIENT) -> list[tuple[int, int]]:
        """Of each row of that sender: packet number, acked."""
        rows = rows_of(
            self.streams[str(self.package.ConnectionKey(self.package.Flow(ends[0], ends[2]), self.package.Flow(ends[1], ends[3])))]
        )
        return [(number, acked) for _, _, _, number, _, acked in rows]


def sides_fed(package: ModuleType, packets: list[Packet], **options: Any) -> Sides:
    sides = Sides(package)
    with package.Assembler(sides.pool, package.AssemblerOptions(**options)) as assembler:
        for at, data in enumerate(framed(packets)):
            assembler.assemble_frame(data, timestamp_ns=at)
    return sides


@pytest.mark.parametrize("way", ["natively", "in Python", "by a handler"])
@pytest.mark.parametrize("source", ["segments", "frames", "batch", "capture", "coalesced", "file", "threads"])
def test_acked_is_what_the_other_side_had_acknowledged_before(tcpreasm: ModuleType, tmp_path: Path, source: str, way: str) -> None:
    sides = Sides(tcpreasm, way)
    assembler = tcpreasm.Assembler(sides.pool)
    frames = framed(TALK)
    if source == "segments":
        for at, (ends, seq, text, flags, ack) in enumerate(TALK):
            tcp = segment(tcpreasm, seq, text, ends=ends, ack=ack & 0xFFFFFFFF, syn=bool(flags & SYN), ack_flag=bool(flags & ACK))
            assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), tcp, timestamp_ns=at)
    elif source == "frames":
        for at, data in enumerate(frames):
            assembler.assemble_frame(data, timestamp_ns=at)
    elif source == "batch":
        sizes = [len(data) for data in frames]
        assembler.assemble_batch(b"".join(frames), [0, *itertools.accumulate(sizes)][:-1], sizes, [*range(len(frames))])
    else:
        capture = pcap(enumerate(frames))
        (tmp_path / "capture").write_bytes(capture)
        source_of = tmp_path / "capture" if source == "file" else capture
        assembler.assemble_capture(source_of, threads=1 + (source == "threads"), coalesce=source == "coalesced")
    assembler.close()
    assert (sides.acked(CLIENT), sides.acked(SERVER)) == (CLIENT_ROWS, SERVER_ROWS)


def test_acked_is_told_of_the_conversations_of_a_capture(tcpreasm: ModuleType) -> None:
    (talk,) = tcpreasm.conversations(pcap(enumerate(framed(TALK))), provenance=True)
    assert [*zip(*(talk.client.provenance[name].tolist() for name in ("packet_number", "acked")), strict=True)] == CLIENT_ROWS
    assert [*zip(*(talk.server.provenance[name].tolist() for name in ("packet_number", "acked")), strict=True)] == SERVER_ROWS
    for side in (talk.client, talk.server):
        offsets = range(sum(side.provenance["length"].tolist()))
        assert [side.origin_of(offset) for offset in offsets] == [row for row in side.provenance for _ in range(row["length"])]
        with pytest.raises(IndexError, match=f"at offset {len(offsets)}"):
            side.origin_of(len(offsets))


def test_a_side_that_has_sent_nothing_has_no_rows(tcpreasm: ModuleType) -> None:
    syn = pcap(enumerate(framed([(CLIENT, 999, b"", SYN, 0)])))
    (talk,) = tcpreasm.conversations(syn, provenance=True)
    assert (talk.server.data, talk.server.gap_count, len(talk.client.provenance), len(talk.server.provenance)) == (b"", 0, 0, 0)
    (talk,) = tcpreasm.conversations(syn)
    with pytest.raises(ValueError, match="listed without provenance=True"):
        talk.client.origin_of(0)


def test_acked_is_unknown_in_a_pool_that_does_not_pair(tcpreasm: ModuleType) -> None:
    followed = {str(stream.key): stream for stream in tcpreasm.follow(pcap(enumerate(framed(TALK))), provenance=True)}
    assert [{row[5] for row in rows_of(stream)} for stream in followed.values()] == [{-1}, {-1}]


@pytest.mark.parametrize("early", [False, True], ids=["in order", "held"])
def test_acked_is_unknown_until_the_other_side_has_said_something(tcpreasm: ModuleType, early: bool) -> None:
    """And nothing, where that lies before what was seen of the stream."""
    packets: list[Packet] = [
        *((CLIENT, 5000 + 2 * at, b"ab", ACK, 1) for at in range(3)),
        (SERVER, 1, b"", ACK, 4000),
        (CLIENT, 5006, b"cd", ACK, 1),
        (SERVER, 1, b"", ACK, 5003),
        (CLIENT, 5008, b"ef", ACK, 1),
    ]
    sides = sides_fed(tcpreasm, packets, start_wait_segments=None if early else 1)
    assert sides.acked() == [(1, -1), (2, -1), (3, -1), (5, 0), (7, 3)]


def test_acked_of_what_a_policy_leaves_of_a_page(tcpreasm: ModuleType) -> None:
    packets: list[Packet] = [
        (CLIENT, 1000, b"", SYN, 0),
        (SERVER, 70, b"", SYN | ACK, 1001),
        (CLIENT, 1003, b"cdefgh", ACK, 71),
        (SERVER, 71, b"", ACK, 1002),
        (CLIENT, 1005, b"EF", ACK, 71),
        (SERVER, 71, b"", ACK, 1003),
        (CLIENT, 1001, b"ab", ACK, 71),
    ]
    for overlap in ("last", "bsd"):
        rows = [(7, 2), (3, 0), (5, 1), (3, 0)] if overlap == "last" else [(7, 2), (3, 0)]
        assert sides_fed(tcpreasm, packets, overlap=overlap).acked() == rows


def test_acked_of_a_byte_that_gives_way(tcpreasm: ModuleType) -> None:
    packets: list[Packet] = [
        (CLIENT, 1001, b"?", ACK, 71),
        (SERVER, 71, b"", ACK, 1001),
        (CLIENT, 1001, b"a", ACK, 71),
        (CLIENT, 1000, b"", SYN, 0),
    ]
    assert sides_fed(tcpreasm, packets).acked() == [(3, 0)]


def test_acked_of_text_that_a_remembered_syn_brought(tcpreasm: ModuleType) -> None:
    """It is of the next stream, of which nobody has acknowledged anything yet."""
    packets: list[Packet] = [
        (CLIENT, 1000, b"", SYN, 0),
        (SERVER, 71, b"", ACK, 1001),
        (CLIENT, 1001, b"old", ACK, 71),
        (SERVER, 71, b"", ACK, 1004),
        (CLIENT, 900_000, b"new", SYN, 0),
        (CLIENT, 900_004, b"er", ACK, 500),
        (SERVER, 499, b"", SYN | ACK, 900_004),
        (CLIENT, 900_006, b"est", ACK, 500),
    ]
    made: list[Any] = []
    sides = Sides(tcpreasm)
    sides.pool = tcpreasm.ConversationPool(streams=lambda side: made.append((side, tcpreasm.BytesStream(provenance=True))) or made[-1][1])
    with tcpreasm.Assembler(sides.pool) as assembler:
        for at, data in enumerate(framed(packets)):
            assembler.assemble_frame(data, timestamp_ns=at)
    sent = [rows_of(stream) for side, stream in made if side.role == "client"]
    assert [[(row[3], row[5]) for row in rows] for rows in sent] == [[(3, 0)], [(5, -1), (6, -1), (8, 3)]]


# -- against the captures themselves ------------------------------------------------------------------------------------


LINKS = {
    1: dpkt.ethernet.Ethernet,
    101: lambda data: (dpkt.ip6.IP6 if data[0] >> 4 == 6 else dpkt.ip.IP)(data),
    276: dpkt.sll2.SLL2,
}


@cache
def packets_of(path: Path) -> tuple[tuple[int, bytes], ...]:
    """Of each frame, in order: sequence number and payload of its TCP segment."""
    if path.suffix == ".pcapng":  # dpkt takes all interfaces to be of one kind
        return tuple(decoded(link, data) for link, data in enhanced_packets(path.read_bytes()))
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        return tuple(decoded(reader.datalink(), data) for _, data in reader)


def enhanced_packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Link type and bytes of each frame of a little-endian pcapng file with one section."""
    links: list[int] = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 1:
            links.append(*struct.unpack_from("<H", data, at + 8))
        elif kind == 6:
            interface, _, _, length = struct.unpack_from("<4I", data, at + 8)
            yield links[interface], data[at + 28 : at + 28 + length]
        at += size


def decoded(link: int, data: bytes) -> tuple[int, bytes]:
    packet: Any = LINKS[link](data)
    while not isinstance(packet, dpkt.tcp.TCP):
        packet = packet.data
        assert not isinstance(packet, bytes)
    return packet.seq, packet.data


@cache
def times_of(path: Path) -> list[int]:
    return [frame.timestamp_ns for frame in tcpreasm_package.open_capture(path)]


def checked(path: Path, stream: Any) -> Iterator[int]:
    """Every byte of the stream against the packet that its row names. The numbers of the packets."""
    packets, times, data, at, gaps = packets_of(path), times_of(path), stream.data, 0, dict(stream.gaps)
    behind = 0
    for offset, length, seen_ns, number, seq, acked in rows_of(stream):
        behind += gaps.get(behind, 0)
        assert (offset, acked) == (behind, -1)
        first, payload = packets[number - 1]
        assert times[number - 1] == seen_ns
        begin = (seq - first) & 0xFFFFFFFF
        assert payload[begin : begin + length] == data[at : at + length]
        at += length
        behind += length
        yield number
    assert at == len(data)


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
@pytest.mark.parametrize("name", CAPTURES)
def test_every_byte_lies_in_the_packet_that_it_names(tcpreasm: ModuleType, corpus: Path, name: str, overlap: str) -> None:
    path = corpus / "perturbed" / name
    made: list[Any] = []
    tcpreasm.Assembler(kept(tcpreasm, made), tcpreasm.AssemblerOptions(overlap=overlap)).assemble_capture(path)
    numbers = {number for stream in made for number in checked(path, stream)}
    assert len(numbers) > 100
    assert sum(len(stream.data) for stream in made) > 100_000
    # and the captures of a list count on
    again: list[Any] = []
    tcpreasm.Assembler(kept(tcpreasm, again), tcpreasm.AssemblerOptions(overlap=overlap)).assemble_capture([DATA / "http.pcap", path])
    before = sum(1 for _ in tcpreasm.open_capture(DATA / "http.pcap"))
    ports = {str(stream.key) for stream in made}
    of_path = {str(stream.key): rows_of(stream) for stream in again if str(stream.key) in ports}
    for stream in made:
        assert [(*row[:3], row[3] - before, *row[4:]) for row in of_path[str(stream.key)]] == rows_of(stream)


def acked_before(path: Path) -> list[int]:
    """Of each packet: the highest acknowledgement number of what its sender sends, before it; -1: none."""
    highest: dict[tuple[bytes, int, bytes, int], int] = {}
    before = []
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        for _, data in reader:
            ip: Any = LINKS[reader.datalink()](data).data
            tcp = ip.data
            before.append(highest.get((ip.src, tcp.sport, ip.dst, tcp.dport), -1))
            if tcp.flags & (ACK | RST) == ACK:
                back = ip.dst, tcp.dport, ip.src, tcp.sport
                if back not in highest or 0 < (tcp.ack - highest[back]) & 0xFFFFFFFF < 2**31:
                    highest[back] = tcp.ack
    return before


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["lossy_3pct/lossy_3pct_atB.pcap", "http_python_v4_v6/http_python_v4_v6.pcap"])
def test_acked_is_what_the_packets_of_a_kernel_say(tcpreasm: ModuleType, corpus: Path, name: str, threads: int) -> None:
    path = corpus / "kernel" / name
    before, sides = acked_before(path), Sides(tcpreasm)
    tcpreasm.Assembler(sides.pool).assemble_capture(path, threads=threads)
    told = late = 0
    for stream in sides.streams.values():
        rows = rows_of(stream)
        for offset, _, _, number, seq, acked in rows:
            known, first = before[number - 1], seq - offset
            assert acked == (-1 if known < 0 else max(0, (known - first + 2**31) % 2**32 - 2**31))
        numbers = [row[3] for row in rows]
        told += len({row[5] for row in rows})
        late += sum(one > other for one, other in itertools.pairwise(numbers))
    assert told > 100
    assert late > 100 or "lossy" not in name


@pytest.mark.parametrize("name", ["mix.pcap", "fmt_pcapng_3if.pcapng", "pk_gre.pcap"])
def test_threads_give_the_same_rows(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    told = []
    for threads, coalesce in itertools.product((1, 2, 3), (False, True)):
        made: list[Any] = []
        tcpreasm.Assembler(kept(tcpreasm, made)).assemble_capture(corpus / "perturbed" / name, threads=threads, coalesce=coalesce)
        told.append(sorted((str(stream.key), rows_of(stream)) for stream in made))
    assert all(one == told[0] for one in told[1:])


def test_both_cores_give_the_same_rows(both: tuple[ModuleType, ModuleType], corpus: Path) -> None:
    for path in sorted((corpus / "real").rglob("*.pcap*"))[:40]:
        told = []
        for package in both:
            made: list[Any] = []
            package.Assembler(kept(package, made)).assemble_capture(path)
            told.append([(str(stream.key), stream.provenance.tobytes()) for stream in made])
        assert told[0] == told[1]


def test_one_byte_segments_in_random_order(tcpreasm: ModuleType) -> None:
    """So many pages that they have an index: each keeps its number."""
    assembler, noter = noting(tcpreasm, **NO_LIMITS)
    flow = tcpreasm.Flow(ENDS[0], ENDS[2])
    places = [*range(1, 2000)]
    random.Random(5).shuffle(places)
    for place in (-1, *places, 0):
        assembler.assemble(flow, segment(tcpreasm, 2**32 - 1000 + place, b"p" * (place >= 0), syn=place < 0), timestamp_ns=0)
    number = {place: i + 2 for i, place in enumerate((*places, 0))}
    assert noter.pieces[1:] == [(b"p", 0, number[place], (2**32 - 1000 + place) % 2**32) for place in range(2000)]
