"""What the memory of held data comes to where the sender chooses segments to make it dear: bytes, not times.

Named after the attacks that the corpus lists (cases/attacks.json, A01 to A05), whose criteria these are; what comes out is checked to
the byte. The costs in time stand in bench/test_stages.py.
"""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import ACK, SYN, Rig, frame, got, pcap, piece, segment
from test_promises import opened

INDEX_ENTRY = 25  # bytes that a page's place in the compiled core's index takes at the most: 1544 for each 64, and 12 for those


def unlimited(package: ModuleType) -> Rig:
    return opened(
        package, 0, max_buffered_pages_total=0, max_buffered_pages_per_connection=0, max_buffered_bytes_total=None, start_wait_segments=None
    )


def byte_of(seq: int) -> bytes:
    return bytes([seq * 7 % 251])


def delivered(rig: Rig) -> bytes:
    """What went out, all of it in order and without a gap."""
    pieces = [one for call in rig.taken() for one in call[2]]
    assert {skip for _, skip, *_ in pieces} <= {0}
    return b"".join(data for data, *_ in pieces)


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_a01_one_byte_segments_in_any_order(tcpreasm: ModuleType, order: str) -> None:
    """128 bytes for each at the most, and all of them come out."""
    count = 3000
    seqs = list(range(count, 1, -1))
    if order == "random":
        random.Random(1).shuffle(seqs)
    rig = unlimited(tcpreasm)
    for seq in seqs:
        rig.send(segment(tcpreasm, seq, byte_of(seq)))
    stats = rig.assembler.stats
    assert stats.bytes_held == count - 1
    assert stats.buffered_bytes + INDEX_ENTRY * stats.pages_used <= 128 * (count - 1)
    rig.send(segment(tcpreasm, 1, byte_of(1)))
    assert delivered(rig) == b"".join(map(byte_of, range(1, count + 1)))
    assert rig.assembler.stats.buffered_bytes == 0


def test_a02_one_byte_islands(tcpreasm: ModuleType) -> None:
    """128 bytes beyond the payload for each, and a limit in bytes is one of the memory that they take."""
    count = 3000
    seqs = [2 + 2 * index for index in range(count)]
    random.Random(2).shuffle(seqs)
    rig = unlimited(tcpreasm)
    for seq in seqs:
        rig.send(segment(tcpreasm, seq, byte_of(seq)))
    stats = rig.assembler.stats
    assert stats.bytes_held == stats.pages_used == count
    assert stats.buffered_bytes + INDEX_ENTRY * stats.pages_used <= 129 * count
    rig.flush()
    assert rig.assembler.stats.bytes_delivered == rig.assembler.stats.bytes_skipped == count

    limited = opened(tcpreasm, 0, max_buffered_bytes_total=96 * 1000, max_buffered_pages_per_connection=0)
    for seq in seqs:
        limited.send(segment(tcpreasm, seq, byte_of(seq)))
        assert limited.assembler.stats.buffered_bytes < 96 * 1000
    assert limited.assembler.stats.pages_used == 999


@pytest.mark.parametrize("size", [1, 100, 1460])
def test_a03_the_same_segment_again_and_again(tcpreasm: ModuleType, size: int) -> None:
    """One page, however many; each copy is counted."""
    rig = unlimited(tcpreasm)
    for _ in range(3000):
        rig.send(segment(tcpreasm, 2, b"x" * size))
    stats = rig.assembler.stats
    assert (stats.pages_used, stats.page_requests, stats.bytes_held, stats.conflicting) == (1, 1, size, 0)
    assert stats.dropped == {"overlapping": 2999 * size}


def test_a04_each_segment_reaches_one_byte_further(tcpreasm: ModuleType) -> None:
    """A small page for each new byte. It can't go into the page before: `seen` of a piece is the time of the packet that brought it."""
    count = 1000
    content = b"".join(map(byte_of, range(1460 + count)))
    rig = unlimited(tcpreasm)
    for at in range(count):
        rig.send(segment(tcpreasm, 2 + at, content[at : at + 1460]), at=at)
    stats = rig.assembler.stats
    assert (stats.bytes_held, stats.pages_used, stats.conflicting) == (1459 + count, count, 0)
    assert stats.buffered_bytes == 1984 + 96 * (count - 1)
    assert rig.segment(1, b"!", at=count) == [
        got(
            piece(b"!", at=count),
            piece(content[:1460], at=0),
            *(piece(content[1459 + at : 1460 + at], at=at) for at in range(1, count)),
        )
    ]


@pytest.mark.parametrize("conflicting", [False, True])
def test_a05_big_segments_over_islands(tcpreasm: ModuleType, conflicting: bool) -> None:
    """The first fills the holes; those after it take nothing, and are compared and counted, byte by byte."""
    count = 2000
    rig = unlimited(tcpreasm)
    seqs = [2 + 2 * index for index in range(count)]
    random.Random(3).shuffle(seqs)
    for seq in seqs:
        rig.send(segment(tcpreasm, seq, byte_of(seq)))
    content = b"".join(map(byte_of, range(2, 2 + 2 * count)))
    rig.send(segment(tcpreasm, 2, content))
    stats = rig.assembler.stats
    assert (stats.bytes_held, stats.pages_used, stats.buffered_bytes) == (2 * count, 2 * count, 96 * 2 * count)
    assert stats.dropped == {"overlapping": count}
    again = bytes(byte ^ 1 for byte in content) if conflicting else content
    for times in range(1, 6):
        rig.send(segment(tcpreasm, 2, again))
        stats = rig.assembler.stats
        assert (stats.bytes_held, stats.pages_used, stats.buffered_bytes) == (2 * count, 2 * count, 96 * 2 * count)
        assert stats.dropped == {"overlapping": count + times * 2 * count}
        assert stats.conflicting == (times * 2 * count if conflicting else 0)
    rig.send(segment(tcpreasm, 1, byte_of(1)))
    assert delivered(rig) == byte_of(1) + content


@pytest.mark.parametrize("behind", [-700, -1, 0, 1, 1200])
@pytest.mark.parametrize("before", [-700, -1, 0, 1, 1200])
def test_a05_a_long_segment_that_reaches_beyond_the_stretch(tcpreasm: ModuleType, before: int, behind: int) -> None:
    """Each byte counted once: as a copy within the stretch that is held, as new outside it."""
    content = b"".join(map(byte_of, range(8000)))
    begin, end = 3000, 5000
    rig = unlimited(tcpreasm)
    for seq in range(begin, end, 2):
        rig.send(segment(tcpreasm, seq, content[seq : seq + 1]))
    for _ in range(3):
        rig.send(segment(tcpreasm, begin, content[begin:end]))
    copies = 1000 + 2 * 2000
    assert rig.dropped == {"overlapping": copies}
    low, high = begin - before, end + behind
    other = bytes(byte ^ 255 for byte in content[low:high])
    for again in range(1, 4):
        rig.send(segment(tcpreasm, low, other))
        new = max(0, before) + max(0, behind)
        copies += high - low - (new if again == 1 else 0)
        conflicting = again * (min(high, end) - max(low, begin))
        stats = rig.assembler.stats
        assert (stats.bytes_held, stats.dropped["overlapping"], stats.conflicting) == (2000 + new, copies, conflicting)
    first = min(low, begin)
    rig.send(segment(tcpreasm, 1, content[1:first]))
    held = bytes(content[at] if begin <= at < end else other[at - low] for at in range(first, max(high, end)))
    assert delivered(rig) == content[1:first] + held


@pytest.mark.parametrize("isn", [0, 2**31 - 3000, 2**32 - 3000])
@pytest.mark.parametrize("seed", range(8))
def test_a05_long_segments_among_many_small_ones(both: tuple[ModuleType, ModuleType], seed: int, isn: int) -> None:
    """Stretches of small pages are met again: whole, in part, from before and behind, with other bytes, delivered or cut at the FIN
    meanwhile. The reference compares page by page; the compiled core, which need not, says the same after each segment."""
    chance = random.Random(seed)
    rigs = [opened(package, isn, **options_of(seed)) for package in both]
    sides = [bytes((at * 7 + at // 251 + variant) & 255 for at in range(40_000)) for variant in range(2)]
    low, begin, size = 1, 2000, 3000

    def both_say_the_same(at: int, length: int, variant: int = 0, **flags: bool) -> None:
        parts = sides[variant][at : at + length]
        if variant and chance.random() < 0.5:  # differs at one end only
            parts = parts[: length // 8] + sides[0][at + length // 8 : at + length]
        calls = [rig.segment(isn + 1 + at, parts, **flags) for rig in rigs]
        told = [{one.name: getattr(rig.assembler.stats, one.name) for one in fields(rig.assembler.stats)} for rig in rigs]
        assert calls[0] == calls[1]
        assert told[0] == told[1]

    for step in range(60):
        what = chance.choice(["islands", "long", "again", "again", "again", "beside", "in order", "elsewhere", "flush", "fin"])
        if what == "islands":
            for _ in range(chance.choice([20, 80, 200])):
                both_say_the_same(low + chance.randrange(1, 7000), chance.choice([1, 1, 1, 2, 30]))
        elif what == "long":
            begin, size = low + chance.randrange(1, 4000), chance.choice([1024, 3000, 5000])
            both_say_the_same(begin, size)
        elif what == "again":
            both_say_the_same(begin, size, chance.choice([0, 0, 1]))
        elif what == "beside":
            both_say_the_same(
                max(low + 1, begin + chance.randrange(-1500, 1500)), size + chance.randrange(-20, 1500), chance.choice([0, 1])
            )
        elif what == "elsewhere":
            both_say_the_same(low + chance.randrange(1, 9000), 2000, chance.choice([0, 1]))
        elif what == "in order" and step % 3 == 0:
            length = chance.choice([1, 500, 3000])
            both_say_the_same(low, length)
        elif what == "flush" and step % 5 == 0:
            assert rigs[0].flush() == rigs[1].flush()
        elif what == "fin" and step > 50:
            both_say_the_same(low + 6000, 0, fin=True)
        delivered_so_far = rigs[0].assembler.stats.bytes_delivered + rigs[0].assembler.stats.bytes_skipped
        low = max(low, delivered_so_far)
        begin = max(begin, low + 1)
    assert rigs[0].flush_all() == rigs[1].flush_all()


@pytest.mark.parametrize("source", ["file", "memory"])
def test_a05_places_in_the_capture(tcpreasm: ModuleType, tmp_path: Path, source: str) -> None:
    """What a stream that keeps places only is told of long segments beside a stretch that they repeat: the first copy's place in the
    capture, whether it was copied or left there."""
    content = b"".join(map(byte_of, range(20_000)))
    order = list(range(3001, 7001, 2))
    random.Random(4).shuffle(order)
    sent = [(0, b"", SYN)] + [(at, content[at : at + 1], ACK) for at in order]
    sent += [(at, content[at : at + size], ACK) for at, size in ((3001, 4000), (3001, 4000), (2000, 5500), (1500, 9000), (1, 1499))]
    capture = pcap((number, frame(at, data, flags)) for number, (at, data, flags) in enumerate(sent))
    (tmp_path / "capture").write_bytes(capture)
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.SpanStream())
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        assembler.assemble_capture(tmp_path / "capture" if source == "file" else capture)
        assert assembler.stats.dropped == {"overlapping": 2000 + 4000 + 4000 + 5500}
        assert assembler.stats.conflicting == 0
    (stream,) = streams
    assert stream.gather(capture) == content[1:10_500]


def options_of(seed: int) -> dict[str, int | None]:
    limits: list[dict[str, int | None]] = [{}, {"max_buffered_bytes_per_connection": 200_000}, {"max_buffered_pages_total": 1500}]
    return limits[seed % 3]
