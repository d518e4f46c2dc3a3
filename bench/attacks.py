"""What hostile traffic costs: `python -m bench.attacks [--rounds N]`. Prints a table; everything is checked in the same run.

Lives here: packets that a sender chooses to exhaust whoever reads along, each kind in three sizes, so that a cost which grows with the
number of packets shows: nanoseconds a packet through assemble_batch, minimum of the rounds, and the memory that is held at most. Not here:
that the bytes come out right whatever is sent (tests), and ordinary traffic (run, peers).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tcpreasm

__all__ = ["ATTACKS", "main", "measure"]

SIZES = (1_000, 10_000, 100_000)
START_NS = 1_700_000_000_000_000_000
ACK, SYN, RST = 16, 2, 4
NO_LIMITS: dict[str, Any] = {
    "max_buffered_pages_total": 0,
    "max_buffered_pages_per_connection": 0,
    "max_buffered_bytes_total": None,
    "hole_timeout": None,
}
Array = NDArray[Any]


@dataclass
class Packets:
    """As assemble_batch takes them."""

    frames: Array  # a row of bytes each
    options: dict[str, Any]
    held: int  # bytes of payload that must be held at the end
    delivered: int  # bytes that must have come out once all is flushed


def tcp_frames(count: int, payload: int = 0) -> Array:
    """Frames over IPv4, all alike, with the ACK flag and so much payload."""
    head = (
        bytes(12)
        + b"\x08\x00"
        + bytes([0x45, 0])
        + (40 + payload).to_bytes(2, "big")
        + bytes([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
    )
    tcp = bytes([4, 210, 0, 80]) + bytes(8) + bytes([0x50, ACK, 32, 0, 0, 0, 0, 0])
    return np.tile(np.frombuffer(head + tcp + bytes(payload), np.uint8), (count, 1))


def put(frames: Array, at: int, values: Array) -> None:
    """Numbers of 32 bits into a field of every frame."""
    frames[:, at : at + 4] = values.astype(">u4").view(np.uint8).reshape(-1, 4)


def begun(frames: Array) -> Array:
    """With a SYN (sequence number 0) before them."""
    first = frames[:1].copy()
    first[0, 16:18], first[0, 38:42], first[0, 47] = (0, 40), 0, SYN
    return np.concatenate([first, frames])


def one_byte(order: Array, hole: int) -> Packets:
    """A SYN, then segments of one byte in that order, of which none is next: `hole` bytes are never sent."""
    frames = tcp_frames(len(order), 1)
    put(frames, 38, 1 + hole + order)
    frames[:, 54] = order % 251
    return Packets(begun(frames), NO_LIMITS, len(order), len(order))


def reverse(count: int) -> Packets:
    return one_byte(np.arange(count)[::-1], 1)


def random(count: int) -> Packets:
    return one_byte(np.random.default_rng(1).permutation(count), 1)


def islands(count: int) -> Packets:
    return one_byte(2 * np.random.default_rng(1).permutation(count), 1)


def duplicates(count: int) -> Packets:
    """The same early segment again and again."""
    frames = tcp_frames(count, 1000)
    put(frames, 38, np.full(count, 100))
    return Packets(begun(frames), NO_LIMITS, 1000, 1000)


def conflicts(count: int) -> Packets:
    """Early segments of 100 bytes that overlap at random, each with other bytes, under a policy that compares them."""
    rng = np.random.default_rng(1)
    frames = tcp_frames(count, 100)
    places = rng.integers(0, 50 * count, count)
    put(frames, 38, 2 + places)
    frames[:, 54:] = rng.integers(0, 256, (count, 100), np.uint8)
    covered = np.zeros(50 * count + 100, bool)
    for at in range(100):
        covered[places + at] = True
    total = int(covered.sum())
    return Packets(begun(frames), {**NO_LIMITS, "overlap": "linux"}, total, total)


def told(count: int) -> Packets:
    """A hundred held bytes, a page each; then segments over all of them that differ everywhere, which is told of."""
    frames = tcp_frames(100 + count, 100)
    frames[:100, 16:18] = 0, 41
    put(frames, 38, 100 + np.where(np.arange(100 + count) < 100, np.arange(100 + count), 0))
    frames[100:, 54:] = 255
    return Packets(begun(frames), {**NO_LIMITS, "on_conflict": lambda *conflict: None}, 100, 100)


def resets(count: int) -> Packets:
    """RSTs, none at the exact number."""
    frames = tcp_frames(count)
    put(frames, 38, 2 + np.arange(count))
    frames[:, 47] = RST
    return Packets(begun(frames), {}, 0, 0)


def syn_flood(count: int) -> Packets:
    """SYNs from ever other addresses, ten times as many as may be remembered."""
    frames = tcp_frames(count)
    put(frames, 26, 7919 * np.arange(count))
    frames[:, 47] = SYN
    return Packets(frames, {"max_connections": max(2, count // 10)}, 0, 0)


def fragment_flood(count: int) -> Packets:
    """First fragments of datagrams of which nothing else comes."""
    frames = tcp_frames(count, 12)
    put(frames, 26, 7919 * np.arange(count))
    frames[:, 20] = 0x20  # more fragments
    return Packets(frames, {}, 0, 0)


ATTACKS: dict[str, tuple[str, Callable[[int], Packets]]] = {
    "reverse": ("one-byte segments, the last first", reverse),
    "random": ("one-byte segments in random order", random),
    "islands": ("every other byte, in random order", islands),
    "duplicates": ("one early segment of 1000 bytes, again and again", duplicates),
    "conflicts": ("segments that overlap at random and differ, overlap='linux'", conflicts),
    "conflicts-told": ("100 bytes that differ from as many pages of one byte, on_conflict", told),
    "resets": ("RSTs in the window", resets),
    "syn-flood": ("SYNs, ten times max_connections", syn_flood),
    "fragment-flood": ("first fragments only", fragment_flood),
}


@dataclass
class Found:
    ns_per_packet: float
    buffered_bytes: int  # memory of the pages that hold early bytes


def measure(packets: Packets) -> Found:
    """Once. AssertionError where something else comes out than the packets hold."""
    count, width = packets.frames.shape
    data = packets.frames.tobytes()
    lengths = 14 + 256 * packets.frames[:, 16].astype(np.int64) + packets.frames[:, 17]
    offsets = np.arange(count, dtype=np.int64) * width
    times = START_NS + 1000 * np.arange(count, dtype=np.int64)
    with tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), tcpreasm.AssemblerOptions(**packets.options)) as assembler:
        gc.collect()
        begin = perf_counter_ns()
        assembler.assemble_batch(data, offsets, lengths, times)
        elapsed = perf_counter_ns() - begin
        stats = assembler.stats
        assert stats.frames == count
        assert stats.bytes_held == packets.held, stats
        assembler.flush_all()
        assert assembler.stats.bytes_delivered == packets.delivered
    return Found(elapsed / count, stats.buffered_bytes)


def rows(rounds: int) -> Iterator[list[str]]:
    for name, (text, make) in ATTACKS.items():
        best: dict[int, Found] = {}
        made = {size: make(size) for size in SIZES}
        for _ in range(rounds):
            for size, packets in made.items():
                found = measure(packets)
                if size not in best or found.ns_per_packet < best[size].ns_per_packet:
                    best[size] = found
        most = best[SIZES[-1]]
        held = made[SIZES[-1]].held
        yield [
            name,
            text,
            *(f"{best[size].ns_per_packet:,.0f}" for size in SIZES),
            f"{most.ns_per_packet / best[SIZES[0]].ns_per_packet:.1f}",
            f"{most.buffered_bytes / held:.1f}" if held else "-",
        ]


def resident() -> int:
    """Bytes of this process in memory now. Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status[status.index("VmRSS:") + 6 :].split()[0]) * 1024


def half_open(count: int = 1_000_000) -> tuple[float, float]:
    """SYNs from so many addresses, none of which is forgotten: nanoseconds a SYN, and bytes of memory a connection."""
    frames = tcp_frames(count)
    put(frames, 26, 7919 * np.arange(count))
    frames[:, 47] = SYN
    data = frames.tobytes()
    del frames
    offsets = np.arange(count, dtype=np.int64) * 54
    times = START_NS + 1000 * np.arange(count, dtype=np.int64)
    lengths = np.full(count, 54)
    pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream)
    with tcpreasm.Assembler(pool) as assembler:
        assembler.assemble_batch(data[:54], offsets[:1], lengths[:1], times[:1])
        before = resident()
        begin = perf_counter_ns()
        assembler.assemble_batch(data, offsets, lengths, times)
        elapsed = perf_counter_ns() - begin
        grown = resident() - before
        assert len(pool) == count
    return elapsed / count, grown / count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description="What hostile traffic costs, packet by packet.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    from .report import table  # needs the extra bench, which measuring does not

    ns, each = half_open()  # first: what others let go of would serve again
    heads = ["", "packets", *(f"{size:,}: ns" for size in SIZES), "times", "memory a held byte"]
    print(table(heads, list(rows(given.rounds))))
    print(f"\na million half-open connections: {ns:,.0f} ns a SYN, {each:,.0f} bytes each")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
