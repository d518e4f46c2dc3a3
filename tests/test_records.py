"""The readers of capture files, both cores side by side: the same frames, places, counts and words on every input, whole or damaged.

Lives here: that comparison, and what only the compiled reader has: blocks. What is right on a given file is told by test_capture_files.

TCPREASM_EXAMPLES multiplies the number of examples.
"""

from __future__ import annotations

import gc
import gzip
import io
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from capture_bytes import (
    NS,
    T0,
    Dribble,
    block,
    epb,
    idb,
    old_packet,
    option,
    payload,
    pcap_header,
    pcap_record,
    shb,
    small_pcap,
    small_pcapng,
    spb,
    tsoffset,
    tsresol,
)
from conftest import load, submodule
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TCPREASM_EXAMPLES", "1"))
BLOCK, SLACK, HOLD = 512 << 10, 64 << 10, 1 << 20  # of the compiled reader; an unknown block that is not held
Both = tuple[ModuleType, ModuleType]
Make = Callable[[], Any]


def examples(count: int) -> settings:
    return settings(max_examples=count * EXAMPLES, derandomize=EXAMPLES == 1, deadline=None)


class Odd(io.RawIOBase):
    """A stream that gives the pieces that it was told to, over and over."""

    def __init__(self, data: bytes, steps: list[int]) -> None:
        self.data, self.steps, self.at, self.turn = data, steps, 0, 0

    def read(self, size: int = -1) -> bytes:
        step = self.steps[self.turn % len(self.steps)]
        self.turn += 1
        piece = self.data[self.at : self.at + min(step, size)]
        self.at += len(piece)
        return piece


# ---- what one reader says


def told(package: ModuleType, source: Any) -> Iterator[Any]:
    """Everything that can be seen of a capture, step by step; the last item is the end."""
    try:
        capture = package.open_capture(source)
    except submodule(package, "errors").CaptureError as error:
        yield "refused", str(error)
        return
    with capture:
        records = capture.records
        yield "opened", capture.format, capture.packets, capture.complete, capture.problem, records.offset, records.ended
        for frame in capture:
            assert type(frame).__name__ == "Frame"
            assert type(frame.data) is bytes
            yield tuple(frame), records.offset, capture.packets, capture.problem, records.ended
        # At damage, how far it was read ahead is nobody's business.
        yield "end", capture.packets, capture.complete, capture.problem, records.ended, capture.complete and capture.position
        assert list(capture) == []


def alike(both: Both, make: Make) -> list[Any]:
    """What the compiled core says of the source, having made sure that the pure one says the same."""
    out = []
    for compiled, pure in zip_longest(told(both[0], make()), told(both[1], make())):
        assert compiled == pure
        out.append(compiled)
    return out


def frames(out: list[Any]) -> list[tuple[Any, ...]]:
    return [item[0] for item in out if isinstance(item[0], tuple)]


def check(both: Both, data: bytes, folder: Path | None = None, steps: tuple[int, ...] = (1, 3, 4096)) -> list[Any]:
    """The capture from memory, from a file, in pieces and compressed: the same on both cores and each way. What is said of it."""
    out = alike(both, lambda: data)
    ways: list[Make] = [lambda step=step: Dribble(data, step) for step in steps]  # type: ignore[misc]
    if folder is not None:
        path = folder / "capture"
        path.write_bytes(data)
        ways.append(lambda: path)
    for make in ways:
        other = alike(both, make)
        if out[0][0] != "refused":
            assert other == out
    if out[0][0] != "refused":
        packed = gzip.compress(data, 1)
        assert [item[:-1] for item in alike(both, lambda: packed)[:-1]] == [item[:-1] for item in out[:-1]]
        for frame, offset, *_ in (item for item in out if isinstance(item[0], tuple)):
            assert data[offset : offset + len(frame[0])] == frame[0]
    return out


# ---- files as they are


def test_the_captures_of_the_repository(both: Both, data: Path, tmp_path: Path) -> None:
    paths = [path for path in sorted(data.iterdir()) if ".pcap" in path.name]
    assert len(paths) >= 3
    for path in paths:
        raw = path.read_bytes()
        alike(both, lambda path=path: path)  # type: ignore[misc]
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        assert check(both, raw, tmp_path, (7, 65536))[0][0] == "opened"


def test_the_captures_of_the_corpus(both: Both, corpus: Path) -> None:
    count = 0
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        for make in (lambda path=path: path, lambda raw=raw: raw, lambda raw=raw: Odd(raw, [100_000, 17, 5000])):  # type: ignore[misc]
            last = None
            for compiled, pure in zip_longest(told(both[0], make()), told(both[1], make())):
                assert compiled == pure, path
                last = compiled
            count += last is not None and last[0] == "end"
    assert count > 300


# ---- every variant, whole and cut


def variants() -> list[bytes]:
    """Small captures of all kinds, one with each way to be special."""
    out = [small_pcap(order)[0] for order in "<>"] + [small_pcapng()[0]]
    for order in "<>":
        records = b"".join(pcap_record(order, T0 + i, 999_999, payload(7 * i, i), 7 * i + (i & 1)) for i in range(5))
        out += [pcap_header(order, magic, linktype=0xF4000000 | 276) + records for magic in (0xA1B23C4D, 0xA12B3C4D)]
        out += [pcap_header(order, version=version) + records for version in ((2, 2), (2, 3), (543, 0), (1, 2), (2, 5))]
        long_headers = b"".join(
            struct.pack(order + "IIIIIHBB", T0, i, 9 * i, 11 * i, 3, 0x0800, 0, 0) + payload(9 * i, i) for i in range(4)
        )
        out += [pcap_header(order, 0xA1B2CD34, version=version) + long_headers for version in ((2, 4), (2, 2))]
        out.append(pcap_header(order) + pcap_record(order, T0, 0, b"good") + bytes(40))
        out.append(
            shb(order)
            + spb(order, b"none")
            + idb(order, snaplen=6, options=tsresol(order, 0x94) + tsoffset(order, -T0))
            + idb(order, 101, options=tsresol(order, 12))
            + epb(order, 1, 10**19 + 1, b"picoseconds", 99)
            + epb(order, 0, 5 << 20, b"")
            + block(order, 6, struct.pack(order + "IIIII", 0, 0, 0, 21, 21) + bytes(20))
            + old_packet(order, 7, 0, b"no")
            + spb(order, payload(9), 50)
        )
    return out


def test_every_variant(both: Both, tmp_path: Path) -> None:
    for data in variants():
        assert len(frames(check(both, data, tmp_path, (1, 5, 16)))) >= 1


def test_cut_at_every_byte(both: Both) -> None:
    for data in variants():
        for cut in range(len(data)):
            part = data[:cut]
            out = alike(both, lambda part=part: part)  # type: ignore[misc]
            if out[0][0] != "refused":
                assert alike(both, lambda part=part: Dribble(part, 9)) == out  # type: ignore[misc]


def test_every_byte_changed(both: Both) -> None:
    for data in (small_pcap("<")[0], small_pcap(">")[0], small_pcapng()[0]):
        for at in range(len(data)):
            for value in {0, 0xFF, data[at] ^ 0x80, data[at] ^ 1, (data[at] + 4) & 0xFF}:
                changed = data[:at] + bytes([value]) + data[at + 1 :]
                alike(both, lambda changed=changed: changed)  # type: ignore[misc]


def test_compressed_and_damaged(both: Both) -> None:
    packed = bytearray(gzip.compress(b"".join(pcap_record("<", T0 + i, 0, payload(50, i)) for i in range(500)), 1))
    packed = bytearray(gzip.compress(pcap_header()) + packed)
    for cut in range(40, len(packed), 97):
        alike(both, lambda cut=cut: bytes(packed[:cut]))  # type: ignore[misc]
        changed = packed[:]
        changed[cut] ^= 0x55
        alike(both, lambda changed=changed: bytes(changed))  # type: ignore[misc]


# ---- anything


WORDS = (0, 1, 3, 4, 11, 12, 16, 20, 28, 32, 36, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF, 0x0A0D0D0A, 256 << 20)
SEEDS = variants()


@examples(1500)
@given(st.data())
def test_any_mutation(both: Both, data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed)))
        what = data.draw(st.sampled_from(("set", "word", "insert", "delete", "repeat")))
        if what == "set":
            changed[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif what == "word":
            changed[at & ~3 : (at & ~3) + 4] = struct.pack(data.draw(st.sampled_from("<>")) + "I", data.draw(st.sampled_from(WORDS)))
        elif what == "insert":
            changed[at:at] = data.draw(st.binary(max_size=40))
        elif what == "repeat":
            changed += changed[at : at + 60]
        else:
            del changed[at : at + data.draw(st.integers(1, 30))]
    raw = bytes(changed)
    steps = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    out = alike(both, lambda: raw)
    if out[0][0] != "refused":
        assert alike(both, lambda: Odd(raw, steps)) == out


ORDER = st.sampled_from("<>")
LENGTHS = st.one_of(st.integers(0, 70), st.sampled_from((0xFFFFFFFF, 1 << 20, (1 << 20) + 1)))


@st.composite
def pcaps(draw: st.DrawFn) -> bytes:
    """A pcap file of any variant; its records need not be whole."""
    order = draw(ORDER)
    magic = draw(st.sampled_from((0xA1B2C3D4, 0xA1B23C4D, 0xA12B3C4D, 0xA1B2CD34)))
    version = draw(st.sampled_from(((2, 4), (2, 4), (2, 3), (2, 0), (543, 0), (543, 9), (0, 0))))
    snaplen = draw(st.sampled_from((0, 68, 65535, 262144, 0x7FFFFFFF, 0xFFFFFFFF)))
    out = pcap_header(order, magic, snaplen=snaplen, version=version, linktype=draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(0, 8))):
        data = draw(st.binary(max_size=70))
        lengths = [draw(st.one_of(st.just(len(data)), LENGTHS)), draw(st.one_of(st.just(len(data)), LENGTHS))]
        times = draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)))
        out += struct.pack(order + "IIII", *times, *lengths) + bytes(8 * (magic == 0xA1B2CD34)) + data
    return out


OPTIONS = st.sampled_from((9, 14, 0, 2, 9, 14))


@st.composite
def pcapngs(draw: st.DrawFn) -> bytes:
    """A pcapng file of any blocks, mostly sound."""
    order = draw(ORDER)
    out = shb(order)
    ticks = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.just(T0 * 1_000_000))
    for _ in range(draw(st.integers(0, 10))):
        kind = draw(st.sampled_from(("idb", "idb", "epb", "epb", "epb", "spb", "old", "shb", "other", "raw")))
        if kind == "idb":
            options = b"".join(
                option(order, draw(OPTIONS), draw(st.one_of(st.binary(min_size=1, max_size=1), st.binary(min_size=8, max_size=8))))
                for _ in range(draw(st.integers(0, 3)))
            )
            out += idb(order, draw(st.integers(0, 65535)), draw(st.sampled_from((0, 5, 2**32 - 1))), options)
        elif kind == "epb":
            data = draw(st.binary(max_size=40))
            wire = draw(st.one_of(st.none(), st.integers(0, 2**32 - 1)))
            out += epb(order, draw(st.integers(0, 3)), draw(ticks), data, wire)
        elif kind == "old":
            out += old_packet(order, draw(st.integers(0, 3)), draw(ticks), draw(st.binary(max_size=40)))
        elif kind == "spb":
            data = draw(st.binary(max_size=40))
            out += spb(order, data, draw(st.one_of(st.none(), st.integers(0, 2**32 - 1))))
        elif kind == "shb":
            order = draw(ORDER)
            out += shb(order, version=draw(st.sampled_from(((1, 0), (1, 0), (1, 2), (2, 0)))))
        elif kind == "other":
            out += block(order, draw(st.sampled_from((0, 4, 5, 10, 0x0A0D0A0D, 0x80000001))), draw(st.binary(max_size=30)))
        else:
            out += block(order, draw(st.sampled_from((1, 2, 3, 6))), draw(st.binary(max_size=40)))
    return out


@examples(700)
@given(st.one_of(pcaps(), pcapngs()), st.lists(st.integers(1, 80), min_size=1, max_size=4), st.integers(0, 40))
def test_any_capture(both: Both, data: bytes, steps: list[int], cut: int) -> None:
    data = data[: len(data) - cut] if cut < 30 else data
    out = alike(both, lambda: data)
    if out[0][0] != "refused":
        assert alike(both, lambda: Odd(data, steps)) == out


# ---- times of pcapng: the pure reader's integers have no bounds, so it is the judge


@pytest.mark.parametrize("offset", [None, 0, 1, -1, T0, -T0, 2**31, 4_611_686_018, 4_611_686_019, -4_611_686_018, -4_611_686_019])
def test_times_of_every_resolution(both: Both, offset: int | None) -> None:
    edges = {0, 1, 999, 2**32 - 1, 2**32, 2**53, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, T0 * 1_000_000, T0 * NS, 12345678901234567}
    check_times(both, offset, edges)


@pytest.mark.parametrize(
    "offset", [-(2**63), -(2**63) + 1, 2**63 - 1, 2**62, -(2**62), 9_223_372_036, -9_223_372_037, 2_000_000_000, -2_000_000_001]
)
def test_times_at_the_ends(both: Both, offset: int) -> None:
    edges = {0, 1, 2**62, 2**63, 2**64 - 1} | {n for n in (abs(offset) + d for d in (-4_611_686_019, -1, 0, 1)) if 0 <= n < 2**64}
    check_times(both, offset, edges)


@examples(300)
@given(
    st.integers(0, 255),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5 * NS, 5 * NS)),
    st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 64).map(lambda n: 2**n - 1)), min_size=1, max_size=20),
)
def test_any_time(both: Both, resolution: int, offset: int, ticks: list[int]) -> None:
    data = shb() + idb(options=tsresol("<", resolution) + tsoffset("<", offset)) + b"".join(epb("<", 0, one, b"") for one in ticks)
    assert len(frames(alike(both, lambda: data))) == len(ticks)


def check_times(both: Both, offset: int | None, edges: set[int]) -> None:
    data = shb()
    for resolution in range(256):
        units = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        data += idb(options=tsresol("<", resolution) + (b"" if offset is None else tsoffset("<", offset)))
        near = {n for k in (1, T0, 4_611_686_018) for n in (k * units - 1, k * units, k * units + 1) if 0 <= n < 2**64}
        data += b"".join(epb("<", resolution, ticks, b"") for ticks in sorted(edges | near))
    assert len(frames(alike(both, lambda: data))) >= 256 * len(edges)


# ---- sizes around those of the blocks


@pytest.mark.parametrize("size", [SLACK, BLOCK, BLOCK + SLACK, HOLD, HOLD + BLOCK])
@pytest.mark.parametrize("more", [-28, -17, -16, -1, 0, 1, 16])
def test_records_as_large_as_a_block(both: Both, tmp_path: Path, size: int, more: int) -> None:
    big, small = payload(size + more), payload(300)
    small_ones = b"".join(pcap_record("<", T0, i, small) for i in range(1, 2000))
    out = check(both, pcap_header(snaplen=1 << 24) + 2 * (small_ones + pcap_record("<", 0, 0, big)) + small_ones, tmp_path, (70_001,))
    assert len(frames(out)) == 3 * 1999 + 2
    assert out[-1][2]


@pytest.mark.parametrize("kind", [0xBAD, 6])
@pytest.mark.parametrize("size", [SLACK, BLOCK, BLOCK + SLACK, HOLD - 4, HOLD, HOLD + 4, 3 * HOLD])
def test_blocks_as_large_as_a_block(both: Both, tmp_path: Path, size: int, kind: int) -> None:
    body = struct.pack("<IIIII", 0, 0, 9, size - 32, size) + bytes(size - 32)
    one = block("<", kind, body)
    assert len(one) == size
    head = shb() + idb() + epb("<", 0, 7, payload(1000))
    data = head + one + head + one + epb("<", 0, 8, b"last")
    path = tmp_path / "capture"
    for cut in (0, 1, 3, 4, 5, 36, 40, 41, 1100, size // 2 + 40, size + 38, size + 39, size + 40, size + 41, size + 44):
        part = data[: len(data) - cut]
        path.write_bytes(part)
        out = alike(both, lambda part=part: part)  # type: ignore[misc]
        assert alike(both, lambda: path) == out
        assert alike(both, lambda part=part: Odd(part, [size // 3 + 1, 900_000])) == out  # type: ignore[misc]
        assert out[-1][2] == (cut in (0, 36))
    broken = data[: -36 - 4] + b"\0\0\0\1" + data[-36:]
    assert "by its head, not by its tail" in alike(both, lambda: broken)[-1][3]
    assert alike(both, lambda: Dribble(broken, 99_991)) == alike(both, lambda: broken)


def test_a_claim_takes_no_memory(tcpreasm: ModuleType) -> None:
    """A damaged length is believed only as far as there are bytes."""
    data = pcap_header(snaplen=0xFFFFFFFF) + pcap_record("<", T0, 0, b"good") + struct.pack("<IIII", T0, 0, 200 << 20, 0) + bytes(1 << 20)
    for source in (data, Odd(data, [100_000])):
        tracemalloc.start()
        with tcpreasm.open_capture(source) as capture:
            assert len(list(capture)) == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
        assert "in the middle of a record at byte 44" in capture.problem


# ---- errors, and more than one who asks


def test_an_error_of_the_source_ends_it(both: Both) -> None:
    data = small_pcap()[0]

    class Failing(Odd):
        def read(self, size: int = -1) -> bytes:
            if self.at > 100:
                raise OSError(5, "the disk is broken")
            return super().read(size)

    seen = []
    for package in both:
        with package.open_capture(Failing(data, [40])) as capture:
            first = tuple(next(iter(capture)))
            with pytest.raises(OSError, match="the disk is broken"):
                list(capture)
            assert list(capture) == []
            seen.append((first, capture.packets, capture.complete, capture.problem))
    assert seen[0] == seen[1]
    assert seen[0][1:] == (2, False, None)


def test_a_source_that_asks_for_frames_itself(tcpreasm: ModuleType) -> None:
    data = small_pcap()[0]
    asked = []

    class Asking(Odd):
        def read(self, size: int = -1) -> bytes:
            if self.at >= 40:
                with pytest.raises(ValueError, match="generator already executing"):
                    next(capture.records)
                asked.append(self.at)
            return super().read(size)

    with tcpreasm.open_capture(Asking(data, [40])) as capture:
        assert len(list(capture)) == 5
        assert capture.complete
    assert asked


def test_two_threads_at_one_capture(tcpreasm: ModuleType) -> None:
    """Each frame goes to one of them; the other may be told that somebody is at it."""
    data = pcap_header() + b"".join(pcap_record("<", i, 0, payload(40, i)) for i in range(1, 3000))
    with tcpreasm.open_capture(Dribble(data, 3001)) as capture:
        records = capture.records
        got: list[list[int]] = [[], []]
        refused = set()
        done = threading.Event()

        def take(mine: list[int]) -> None:
            while not done.is_set():
                try:
                    mine.append(next(records).timestamp_ns // NS)
                except ValueError as error:
                    refused.add(str(error))
                except StopIteration:
                    done.set()

        threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got[0] + got[1]) == list(range(1, 3000))
        assert refused <= {"generator already executing"}
        assert capture.complete


def test_frames_are_frames(tcpreasm: ModuleType) -> None:
    """What a reader makes is equal to, and hashes like, what anybody else makes."""
    for data in (small_pcap()[0], small_pcapng()[0]):
        with tcpreasm.open_capture(data) as capture:
            for frame in capture:
                assert type(frame) is submodule(tcpreasm, "capture").Frame
                made = type(frame)(*frame)
                assert (frame, hash(frame), repr(frame)) == (made, hash(made), repr(made))
                assert gc.is_tracked(frame)


# ---- blocks: the compiled reader's own


def many(count: int) -> bytes:
    return pcap_header() + b"".join(pcap_record("<", i, 0, payload(1000, i)) for i in range(count))


def test_a_block_that_somebody_holds_is_left_alone(tmp_path: Path) -> None:
    data = many(4000)
    path = tmp_path / "capture"
    path.write_bytes(data)
    for source in (path, Odd(data, [90_000, 7, 300_000])):
        with load("compiled").open_capture(source) as capture:
            held: list[tuple[Any, bytes]] = []
            for index, frame in enumerate(capture):
                assert frame.data == payload(1000, index)
                last = held[-1] if held else None
                if last is None or last[0] is not capture.records._block:
                    held.append((capture.records._block, bytes(capture.records._block)))
                elif index % 100 == 0:
                    held[-1] = (last[0], bytes(last[0]))
            assert capture.complete
            assert len(held) > 4
            for one, content in held:
                assert bytes(one) == content


def test_a_block_that_nobody_holds_is_used_again(tmp_path: Path) -> None:
    data = many(5000)
    path = tmp_path / "capture"
    path.write_bytes(data)
    with load("compiled").open_capture(path) as capture:
        for _ in zip(range(1200), capture):  # past what was read to tell the format
            pass
        used = id(capture.records._block)
        for index, _ in enumerate(capture):
            if index % 100 == 0:
                assert id(capture.records._block) == used


def test_a_capture_in_memory_is_read_where_it_is() -> None:
    data = many(20_000)
    tracemalloc.start()
    with load("compiled").open_capture(data) as capture:
        positions = set()
        for _ in capture:
            positions.add(capture.position)
        assert capture.complete
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20
    assert len(positions) > 10  # and tells how far it is
    assert max(positions) == len(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ng", [False, True])
def test_what_is_fetched_ahead_has_no_say(both: Both, tmp_path: Path, order: str, ng: bool) -> None:
    """Of a capture in memory, what looks like a record is looked at beforehand: here most of it is none, or lies at what is damaged."""

    def one(index: int, data: bytes) -> bytes:
        return epb(order, 0, (T0 + index) * 1_000_000, data) if ng else pcap_record(order, T0 + index, index, data)

    head = shb(order) + idb(order) if ng else pcap_header(order)
    within = b"".join(one(i, payload(size)) for i, size in enumerate((4, 40, 0, 1000, 6000)))
    kinds = (payload(60), within, payload(1448), bytes(1448), head + within)
    sparse = b"".join(one(i, kinds[i % len(kinds)]) for i in range(400))
    dense = b"".join(one(i, payload(80)) for i in range(10_000))
    data = head + sparse + dense + sparse
    path = tmp_path / "capture"
    damaged = [(head + sparse + byte * 700_000, 400) for byte in (b"\0", b"\xff")]
    for part, count in [(data, 10_800), (data[:-3], 10_799), *damaged]:
        path.write_bytes(part)
        out = alike(both, lambda part=part: part)  # type: ignore[misc]
        assert len(frames(out)) == count
        assert alike(both, lambda: path) == out


def test_a_block_that_grew_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(pcap_header(snaplen=1 << 26) + pcap_record("<", 1, 0, bytes(30 << 20)) + many(2000)[24:])
    with load("compiled").open_capture(path) as capture:
        tracemalloc.start()
        for _ in zip(range(1500), capture):
            pass
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
        tracemalloc.stop()
        assert sum(len(frame.data) for frame in capture) == 501 * 1000
