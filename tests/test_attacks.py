"""What the memory of held data comes to where the sender chooses segments to make it dear: bytes, not times.

Named after the attacks that the corpus lists (cases/attacks.json, A01 to A05), whose criteria these are; what comes out is checked to
the byte. The costs in time stand in bench/test_stages.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import ACK, SYN, Rig, frame, got, number, pcap, piece, segment
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


def in_a_small_thread(work: Callable[[], None], stack: int) -> None:
    """Runs it in a thread with a stack of so many bytes. One that needs more ends the process."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(stack)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    if raised:
        raise raised[0]


def test_a05_the_stack_does_not_grow_with_the_islands(tcpreasm: ModuleType) -> None:
    """32,768 islands and the largest segments there are over them, in a stack of 256 KiB."""
    count, size, times = 32_768, 65_495, 4
    content = b"".join(map(byte_of, range(2 * count + 2)))
    islands = [frame(at, content[at : at + 1]) for at in range(2, 2 * count + 2, 2)]
    big = frame(2, content[2 : 2 + size])
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
        return streams[-1]

    def work() -> None:
        options = tcpreasm.AssemblerOptions(max_buffered_pages_per_connection=0)
        with tcpreasm.Assembler(tcpreasm.StreamPool(factory), options) as assembler:
            assembler.assemble_frame(frame(0, b"", SYN), 1)
            lengths = [len(one) for one in islands]
            assembler.assemble_batch(b"".join(islands), list(range(0, sum(lengths), lengths[0])), lengths, [10**9] * count)
            assert assembler.stats.bytes_held == assembler.stats.pages_used == count
            for _ in range(times):
                assembler.assemble_frame(big, 1)
            stats = assembler.stats
            assert stats.dropped == {"overlapping": (size + 1) // 2 + (times - 1) * size}
            assert (stats.bytes_held, stats.conflicting) == (count + size // 2, 0)
            assembler.assemble_frame(frame(1, content[1:2]), 1)
            assert streams[0].data == content[1 : 2 + size]

    in_a_small_thread(work, 256 << 10)
    beyond = range(size + 3, 2 * count + 2, 2)
    assert streams[0].data == content[1 : 2 + size] + bytes(content[at] for at in beyond)
    assert len(streams[0].gaps) == len(beyond)


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


def test_a06_far_apart_memory_is_for_bytes_and_not_for_their_distance(tcpreasm: ModuleType) -> None:
    """A byte every 256 KiB, then every 1 MiB, up to nearly half of the sequence numbers: gaps are exact."""
    places = [*range(1 << 18, 1 << 26, 1 << 18), *range(1 << 26, (1 << 31) - (1 << 21), 1 << 20)]
    options = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0, "max_gap": None, "start_wait_segments": None}
    rig = opened(tcpreasm, 0, **options)
    for place in places:
        rig.send(segment(tcpreasm, 1 + place, b"x"))
    stats = rig.assembler.stats
    assert stats.bytes_held == stats.pages_used == len(places)
    assert stats.buffered_bytes == 96 * len(places)
    _, (call,) = rig.flush()
    assert [(len(data), skip) for data, skip, *_ in call[2]] == [
        (1, place - behind) for behind, place in zip([0, *(place + 1 for place in places)], places)
    ]


def test_a07_many_connections_at_the_limit_of_all_together(tcpreasm: ModuleType) -> None:
    """Memory never passes it, each byte is somewhere, and those that behave get all of theirs."""
    limit, flows = 80_000, 60
    rig = unlimited_but(tcpreasm, max_buffered_bytes_total=limit)
    good = number(flows)
    rig.send(segment(tcpreasm, 0, ends=good, syn=True), ends=good)
    sent = b""
    for turn in range(20):
        for which in range(flows):
            ends = number(which)
            if turn == 0:
                rig.send(segment(tcpreasm, 0, ends=ends, syn=True), ends=ends)
            rig.send(segment(tcpreasm, 100 + 3000 * turn, b"y" * 1000, ends=ends), ends=ends)
            assert rig.assembler.stats.buffered_bytes < limit
        text = bytes([turn]) * 700
        rig.send(segment(tcpreasm, 1 + len(sent), text, ends=good), ends=good)
        sent += text
        stats = rig.assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
    assert stats.bytes_captured == flows * 20 * 1000 + len(sent)
    mine = str(tcpreasm.ConnectionKey(tcpreasm.Flow(good[0], good[2]), tcpreasm.Flow(good[1], good[3])))
    pieces = [one for call in rig.taken() if call[0] == "reassembled" and call[1] == mine for one in call[2]]
    assert b"".join(data for data, *_ in pieces) == sent
    assert {skip for _, skip, *_ in pieces} == {0}


def unlimited_but(package: ModuleType, **options: Any) -> Rig:
    return Rig(package, max_buffered_pages_total=0, max_buffered_pages_per_connection=0, start_wait_segments=None, **options)


def test_a12_resets_at_every_place_but_the_exact_one(tcpreasm: ModuleType) -> None:
    """64 between two segments: the stream goes on, and each is counted."""
    rig = opened(tcpreasm, 0)
    assert rig.segment(1, b"before ") == [got(piece(b"before "))]
    rng = random.Random(4)
    far = [8 + distance * sign for distance in (1, 2, 100, 65_535, 1 << 20, 1 << 30, (1 << 31) - 1) for sign in (1, -1)]
    seqs = far + [8 + rng.choice([1, -1]) * rng.randrange(1, 1 << 31) for _ in range(64 - len(far))]
    for seq in seqs:
        assert rig.segment(seq, rst=True, ack_flag=rng.random() < 0.5) == []
    assert rig.assembler.stats.rst_ignored == 64
    assert rig.segment(8, b"and after") == [got(piece(b"and after"))]


ELSEWHERE = {
    "A08": [
        "test_promises.test_5_what_continues_the_stream_is_always_taken",
        "test_promises.test_5_a_connection_at_its_limit_stops_waiting",
    ],
    "A09": [
        "test_bounds.test_a_half_open_connection_takes_at_most_256_bytes",
        "test_bounds.test_open_on_data_calls_no_factory_for_a_syn",
        "test_bounds.test_no_more_than_max_connections",
        "test_bounds.test_the_oldest_half_open_one_first",
        "test_bounds.test_real_connections_in_a_flood_are_unharmed",
        "test_bounds.test_a_flush_looks_at_what_it_expires",
    ],
    "A10": ["test_bounds.test_two_processes_place_the_same_keys_differently", "test_bounds.test_no_long_way_in_the_table"],
    "A11": ["test_bounds.test_three_incarnations_in_a_row", "test_promises.test_8_late_packets_open_no_ghost"],
    "A13": ["test_promises.test_8_fin_counts_when_the_stream_reaches_it", "test_faults.test_03_fin_counts_only_at_its_own_place"],
    "A14": ["test_promises.test_10_one_packet_with_a_wrong_time_expires_nothing", "test_promises.test_10_times_before_1970"],
    "A15": ["test_sequence.test_difference", "test_promises.test_1_ahead_and_behind_at_every_distance", "test_vectors.test_vector"],
    "A19": ["test_promises.test_13_exceptions_of_reassembled_pass_unchanged", "test_promises.test_11_what_is_kept_stays_what_it_was"],
    "A20": ["test_promises.test_13_the_caller_s_errors_leave_everything_as_it_was", "test_parity.test_numbers_of_any_size"],
    "A21": ["test_options.test_the_byte_before_the_urgent_pointer", "test_vectors.test_vector"],
    "A22": ["test_fragments.test_offloading_is_noticed", "test_decode.test_checksum"],
    "A23": ["test_bounds.test_many_short_connections_take_the_memory_of_those_alive", "test_soak.test_memory_stays_flat_without_a_fin"],
    "A24": ["test_fuzz.test_seeds_and_what_is_near_them", "test_model.test_any_traffic"],
    "A25": ["test_overlap_policies.test_battery", "test_overlap_policies.test_pairs", "test_model.test_every_policy_byte_by_byte"],
}
"""Attacks whose tests stand with what they are tests of."""

OTHERWISE = {
    "A04": "a piece tells the time of the packet that brought it, so a new byte takes a small page of its own: 96 bytes, not 1.2",
    "A10": "linear probing with both directions side by side: ways of up to 200 slots at a load of 0.75, and below 64 at 0.5",
    "A16": "a StreamPool waits for a hole that the other side acknowledged past as for any other; a ConversationPool for a second",
    "A17": "a hole is waited for 120 seconds or 16,384 pages, not 1 second or 1 MiB: captures are read after the event as well",
    "A18": "the first 16 segments or 1 second decide, not 8 or 0.1 second; `start_wait` and `start_wait_segments` change it",
    "A24": "fuzzed for hours of one processor, not for a day",
}
"""Where a criterion of the list is not met, or was decided otherwise: why."""


def test_every_attack_of_the_list_has_its_test() -> None:
    here = {name[5:8].upper() for name in globals() if name.startswith("test_a") and name[6:8].isdigit()}
    assert here | set(ELSEWHERE) | set(OTHERWISE) == {f"A{number:02}" for number in range(1, 26)}
    folder = Path(__file__).parent
    for names in ELSEWHERE.values():
        for name in names:
            module, function = name.split(".")
            assert f"\ndef {function}(" in (folder / f"{module}.py").read_text(), name
