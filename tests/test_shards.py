"""`assemble_capture(threads=N)`: the same streams, bytes, gaps, counters and problems as with one thread, whatever the capture.

Lives here: one thread is what everything is compared with; what one thread gives is right is asked elsewhere. Besides: what is refused,
exceptions and Ctrl-C in the middle of it, and that nothing is left behind.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from capture_bytes import ReadOnly, block, epb, idb, pcap_header, shb, us
from conftest import NAMES, REPOSITORY
from recorder import ACK, NS, SYN, frame, number, pcap
from test_batch import KINDS, START_NS, Captured, capture_of, captures, traffic
from test_bench import OOO_SCALE, SCALES
from test_bench import captures as bench_captures
from test_threads import together

THREADS = (2, 3, 5)
HEAD, BLOCK = 1 << 20, 512 << 10  # what the compiled core reads of a file: first what the format is told by, then this at once
ALL = {"start_wait": None, "start_wait_segments": None, "hole_timeout": None, "idle_timeout": None}

Source = Callable[[], Any]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# -- what came out --------------------------------------------------------------------------------------------------------


class Noted:
    """A stream that writes down each call, and in which thread it came."""

    def __init__(self, key: str, book: Book) -> None:
        self.book = book
        self.key = key
        self.calls: list[list[tuple[Any, ...]]] = []
        self.threads = {threading.current_thread().name}
        self.complete = 0

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.threads.add(threading.current_thread().name)
        self.calls.append([(bytes(r), r.skip, r.start, r.end, r.seen_ns, r.offset) for r in reassemblies])
        self.book.called(self, "reassembled")

    def reassembly_complete(self) -> None:
        self.complete += 1
        self.book.called(self, "complete")

    @property
    def pieces(self) -> list[tuple[Any, ...]]:
        return [piece for call in self.calls for piece in call]

    @property
    def data(self) -> bytes:
        return b"".join(piece[0] for piece in self.pieces)


class Book:
    """A factory, whose streams are kept by key. `called` may be replaced."""

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        self.make = make
        self.streams: dict[str, list[Any]] = defaultdict(list)

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        key = f"{net_flow.src} {transport_flow.src} {net_flow.dst} {transport_flow.dst}"
        stream = Noted(key, self) if self.make is None else self.make(net_flow, transport_flow)
        self.streams[key].append(stream)
        self.called(stream, "new")
        return stream

    def called(self, stream: Any, call: str) -> None:
        pass


def counted(stream: Any) -> tuple[Any, ...]:
    return (
        stream.length,
        stream.skipped,
        stream.gap_count,
        stream.started,
        stream.ended,
        stream.complete,
        stream.first_seen_ns,
        stream.last_seen_ns,
    )


TOLD: dict[str, Callable[[Any], Any]] = {
    "python": lambda stream: (stream.calls, stream.complete),
    "coalesced": lambda stream: (stream.pieces, stream.complete),
    "BytesStream": lambda stream: (*counted(stream), stream.data, stream.gaps),
    "SpanStream": lambda stream: (*counted(stream), stream.spans.tolist()),
    "DigestStream": lambda stream: (*counted(stream), stream.hexdigest()),
    "ByteCountStream": counted,
    "counted": lambda stream: stream,
}


def numbers(assembler: Any) -> dict[str, Any]:
    """All counters but pages_allocated, which depends on who holds what at the same time."""
    stats = assembler.stats
    told = {field.name: getattr(stats, field.name) for field in fields(stats) if field.name != "pages_allocated"}
    return told | {"verdicts": {int(v): n for v, n in stats.verdicts.items()}, "dropped": dict(stats.dropped), "now": assembler.now_ns()}


def run(package: ModuleType, source: Source, threads: int, kind: str = "python", **options: Any) -> dict[str, Any]:
    """All that can be seen of one run: streams by key and order, the summary, the counters."""
    book = Book(None if kind in ("python", "coalesced") else getattr(package, "ByteCountStream" if kind == "counted" else kind))
    pool = package.StreamPool(package.ByteCountStream if kind == "counted" else book)
    assembler = package.Assembler(pool, package.AssemblerOptions(**options))
    summary = assembler.assemble_capture(source(), threads=threads, coalesce=kind == "coalesced")
    assert len(pool) == 0
    told = {field.name: getattr(summary, field.name) for field in fields(summary)}
    if kind == "python" and package.implementation == "compiled":  # the pure core takes everything in in one thread
        served: dict[frozenset[str], set[str]] = defaultdict(set)
        for streams in book.streams.values():
            for stream in streams:
                src, src_port, dst, dst_port = stream.key.split()
                served[frozenset((f"{src} {src_port}", f"{dst} {dst_port}"))] |= stream.threads
        assert all(len(names) == 1 for names in served.values()), "both directions in one thread"
    assert assembler.stats.bytes_captured == assembler.stats.bytes_delivered + assembler.stats.bytes_dropped
    return {
        "streams": {key: [TOLD[kind](stream) for stream in streams] for key, streams in book.streams.items()},
        "summary": told,
        "numbers": numbers(assembler),
    }


def same(package: ModuleType, source: Source, threads: int, kind: str = "python", **options: Any) -> dict[str, Any]:
    """What one thread gives, after the assertion that several give the same."""
    one, several = (run(package, source, count, kind, **options) for count in (1, threads))
    assert several["summary"] == one["summary"]
    assert several["streams"].keys() == one["streams"].keys()
    for key in one["streams"]:
        assert several["streams"][key] == one["streams"][key], key
    assert several["numbers"] == one["numbers"]
    return one


# -- captures -------------------------------------------------------------------------------------------------------------


def sources_of(content: bytes, path: Path) -> dict[str, Source]:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(content, 1))
    path.write_bytes(content)
    return {
        "path": lambda: path,
        "bytes": lambda: content,
        "file object": lambda: io.BytesIO(content),
        "the least": lambda: ReadOnly(content),
        "gzip": lambda: packed,
    }


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("kind", TOLD)
def test_captures_of_this_repository(tcpreasm: ModuleType, data: Path, tmp_path: Path, kind: str, threads: int) -> None:
    for nth, path in enumerate(captures(data)):
        sources = [*sources_of(path.read_bytes(), tmp_path / path.name).values()]
        for source in (sources[nth % 5], sources[(nth + threads) % 5]):
            assert same(tcpreasm, source, threads, kind)["summary"]["segments"]


@pytest.mark.parametrize("name", ["lossy", "web", "manyflows", "ooo-random-1k"])
def test_generated_captures(tcpreasm: ModuleType, tmp_path: Path, name: str) -> None:
    path = bench_captures.get(name, SCALES.get(name, OOO_SCALE), tmp_path).path
    kinds = [*TOLD][:: 1 if tcpreasm.implementation == "compiled" else 3]
    for threads, kind in zip((2, 3, 5, 2, 3, 5, 2), kinds):
        assert same(tcpreasm, lambda: path, threads, kind)["summary"]["complete"]
    same(tcpreasm, lambda: path.read_bytes(), 2, "coalesced")
    same(tcpreasm, lambda: io.BytesIO(path.read_bytes()), 3, "SpanStream", hole_timeout=0.01, idle_timeout=0.05)


def test_kernel_captures(tcpreasm: ModuleType, corpus: Path) -> None:
    for nth, path in enumerate(captures(corpus / "kernel")):
        same(tcpreasm, lambda path=path: path, THREADS[nth % 3], ("SpanStream", "BytesStream", "coalesced")[nth // 3 % 3])


def test_perturbed_captures(tcpreasm: ModuleType, corpus: Path) -> None:
    for nth, path in enumerate(captures(corpus / "perturbed")[:: 1 if tcpreasm.implementation == "compiled" else 3]):
        same(tcpreasm, lambda path=path: path, THREADS[nth % 3], ("python", "DigestStream", "coalesced", "SpanStream")[nth % 4])


def test_real_captures(tcpreasm: ModuleType, corpus: Path) -> None:
    """Damaged ones and compressed ones among them."""
    with open(corpus / "real" / "MANIFEST.tsv", encoding="utf-8") as file:
        paths = [corpus / line.split("\t")[0] for line in list(file)[1:]]
    if tcpreasm.implementation == "pure":
        paths = [path for path in paths if path.stat().st_size < 200_000]
    incomplete = 0
    for nth, path in enumerate(paths):
        one = same(tcpreasm, lambda path=path: path, THREADS[nth % 3], [*TOLD][nth % len(TOLD)])
        incomplete += not one["summary"]["complete"]
    assert len(paths) > 100
    assert incomplete > 1


# -- several captures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("kind", ["python", "coalesced", "SpanStream", "ByteCountStream"])
def test_connections_through_a_list_of_captures(tcpreasm: ModuleType, tmp_path: Path, kind: str, threads: int) -> None:
    """The state is kept from one to the next, and offsets count on."""
    frames = traffic("lossy", 5, directions=30)
    third = len(frames) // 3
    parts = [capture_of(frames[:third]), capture_of(frames[third : 2 * third]), capture_of(frames[2 * third :])]
    packed = tmp_path / "second.pcap.gz"
    packed.write_bytes(gzip.compress(parts[1]))
    last = tmp_path / "third.pcap"
    last.write_bytes(parts[2])
    one = same(tcpreasm, lambda: [parts[0], packed, [io.BytesIO(parts[2])]], threads, kind)
    assert one["summary"]["packets"] == len(frames)
    same(tcpreasm, lambda: [last, parts[0], last, packed], threads, kind)
    book = Book(tcpreasm.SpanStream)
    tcpreasm.Assembler(tcpreasm.StreamPool(book)).assemble_capture([parts[0], packed, last], threads=threads)
    whole = run(tcpreasm, lambda: parts, 1, "BytesStream")["streams"]
    for key, streams in book.streams.items():
        assert [stream.gather(parts) for stream in streams] == [told[-2] for told in whole[key]]


def test_a_problem_of_each_capture_is_told(tcpreasm: ModuleType, tmp_path: Path) -> None:
    whole = capture_of(traffic("in order", 1))
    path = tmp_path / "cut.pcap"
    path.write_bytes(whole[:-7])
    one = same(tcpreasm, lambda: [path, whole, path], 2)
    assert len(one["summary"]["problems"]) == 2
    assert not one["summary"]["complete"]


# -- where blocks end -----------------------------------------------------------------------------------------------------


def talk(rng: random.Random, sizes: list[int], connections: int = 7) -> list[tuple[int, bytes]]:
    """A frame of each of these sizes in some connections, in order: text in front, and padding behind it that is no text."""
    places = [1] * connections
    opened: set[int] = set()
    frames = []
    for size in sizes:
        which = rng.randrange(connections)
        if which not in opened:
            opened.add(which)
            data = frame(0, b"", SYN, ends=number(which))
        else:
            text = rng.randbytes(min(max(0, size - 54), rng.choice([1, 100, 1400])))
            data = frame(places[which], text, ends=number(which))
            places[which] += len(text)
        frames.append((START_NS + len(frames) * 1_000_000, data + bytes(max(0, size - len(data)))))
    return frames


def pcapng_of(frames: list[tuple[int, bytes]], between: Callable[[int], bytes] = lambda nth: b"") -> bytes:
    out = [shb(), idb(snaplen=0)]
    for nth, (ns, data) in enumerate(frames):
        out += [between(nth), epb("<", 0, us(ns // NS) + ns % NS // 1000, data)]
    return b"".join(out)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards") / "capture"


def check_file(package: ModuleType, path: Path, content: bytes, threads: int, kind: str = "coalesced", **options: Any) -> dict[str, Any]:
    path.write_bytes(content)
    return same(package, lambda: path, threads, kind, **options)


@pytest.mark.parametrize("format_name", ["pcap", "pcapng"])
def test_every_place_of_a_record_at_a_block_border(tcpreasm: ModuleType, path: Path, format_name: str) -> None:
    """Of a small record, that is its header, its text, and the border between two. Also where the file ends there."""
    tail = 90 + (-90) % 4
    for shift in range(0, 130, 3 if format_name == "pcap" else 8):
        rng = random.Random(shift)
        head, record = (24, 16) if format_name == "pcap" else (28 + 20, 32)
        first = HEAD + shift % 2 * BLOCK
        sizes = [1000] * 7 + [first // 5 - 8000 & ~3] * 4
        used = head + sum(record + size for size in sizes)
        sizes += [first - used - record - shift, tail, tail, 5000, BLOCK + 5000]
        frames = talk(rng, sizes)
        content = pcap(frames) if format_name == "pcap" else pcapng_of(frames)
        assert check_file(tcpreasm, path, content, THREADS[shift % 3])["summary"]["packets"] == len(sizes)
        if shift % 5 == 0:
            for cut in (first - 1, first, first + 1, first + 20):
                check_file(tcpreasm, path, content[:cut], 2, "ByteCountStream")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("format_name", ["pcap", "pcapng"])
def test_records_of_all_sizes(tcpreasm: ModuleType, path: Path, format_name: str, seed: int) -> None:
    """Small ones and large ones between each other: blocks that one record fills, and that hold its end and others."""
    rng = random.Random(seed)
    most = 1_040_000 if format_name == "pcap" else 3_000_000
    sizes = [rng.choice([60, 60, 1500, 9000, 65000, BLOCK - 16, BLOCK, BLOCK + 1, rng.randrange(most), most]) for _ in range(25)]
    frames = talk(rng, sizes)
    content = pcap(frames) if format_name == "pcap" else pcapng_of(frames)
    one = check_file(tcpreasm, path, content, THREADS[seed % 3], ("coalesced", "SpanStream", "python")[seed % 3])
    assert one["summary"]["packets"] == 25
    for _ in range(6):
        one = check_file(tcpreasm, path, content[: rng.randrange(len(content))], THREADS[seed % 3], "ByteCountStream")
        assert len(one["summary"]["problems"]) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_big_unknown_blocks(tcpreasm: ModuleType, path: Path, seed: int) -> None:
    """They are passed over, and may reach over many of the reader's blocks, and end anywhere in one."""
    rng = random.Random(seed)
    frames = talk(rng, [rng.choice([60, 1500, 65000]) for _ in range(40)])

    def between(nth: int) -> bytes:
        if nth % 7 != seed:
            return b""
        size = rng.choice([1000, BLOCK, 1 << 20, 3_000_000, rng.randrange(2_500_000)])
        return block("<", 0x40000BAD, bytes(size))

    content = pcapng_of(frames, between)
    assert check_file(tcpreasm, path, content, 2 + seed)["summary"]["packets"] == 40
    places = [content.index(struct.pack("<I", 0x40000BAD), at) for at in (0, len(content) // 2)]
    for place in places:
        size = struct.unpack_from("<I", content, place + 4)[0]
        for cut in (place + 8, place + size // 2, place + size - 4, place + size - 1):
            check_file(tcpreasm, path, content[:cut], 2 + seed, "ByteCountStream")
        harmed = bytearray(content)
        harmed[place + size - 4] ^= 4
        one = check_file(tcpreasm, path, bytes(harmed), 2, "ByteCountStream")
        assert "by its tail" in one["summary"]["problems"][0] or "not by its" in one["summary"]["problems"][0]


@pytest.mark.parametrize("format_name", ["pcap", "pcapng"])
def test_damage_in_the_middle(tcpreasm: ModuleType, path: Path, format_name: str) -> None:
    """Everything before it comes out, and the same is said of it."""
    rng = random.Random(format_name)
    frames = talk(rng, [rng.choice([60, 1500, 60000]) for _ in range(90)])
    content = pcap(frames) if format_name == "pcap" else pcapng_of(frames)
    problems = set()
    for seed in range(20):
        harmed = bytearray(content)
        for _ in range(rng.choice([1, 1, 3])):
            place = rng.choice([rng.randrange(len(content)), content.index(frames[rng.randrange(90)][1][:60]) - rng.randrange(1, 28)])
            harmed[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), rng.randbytes(4)])[: len(content) - place]
        one = check_file(tcpreasm, path, bytes(harmed), THREADS[seed % 3], "ByteCountStream")
        problems |= set(one["summary"]["problems"])
    assert len(problems) > 2


def test_only_a_header_and_less(tcpreasm: ModuleType, path: Path) -> None:
    for content in (pcap_header(), pcap_header()[:23], pcap_header()[:4], shb(), shb()[:12], shb()[:5], shb() + idb()):
        one = check_file(tcpreasm, path, content, 3)
        assert one["summary"]["packets"] == 0


def test_errors_of_the_source_pass_through(tcpreasm: ModuleType) -> None:
    content = capture_of(traffic("in order", 1, size=60_000))

    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if self.tell() > len(content) // 2:
                raise OSError(errno.EIO, "the disk is gone")
            return super().read1(1000)

    delivered = []
    for threads in (1, 3):
        book = Book()
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
        with pytest.raises(OSError, match="the disk is gone"):
            assembler.assemble_capture(Broken(content), threads=threads)
        assembler.flush_all()
        delivered.append({key: [stream.data for stream in streams] for key, streams in book.streams.items()})
    assert delivered[0] == delivered[1]
    assert any(data for data, *_ in delivered[0].values())


# -- time -----------------------------------------------------------------------------------------------------------------

TIMES: list[dict[str, Any]] = [
    {"hole_timeout": 0.5, "idle_timeout": 3.0, "closed_timeout": 1.0},
    {"hole_timeout": 0.05, "idle_timeout": 0.3, "start_wait": 0.0, "max_gap": 9000},
    {"hole_timeout": 2.0, "idle_timeout": None, "max_buffered_pages_per_connection": 3},
    {"hole_timeout": 2.0, "max_buffered_bytes_per_connection": 3000},
    {"hole_timeout": None, "idle_timeout": 1.0, "start_wait_segments": None, "start_wait": 1.0},
    {"hole_timeout": 0.5, "idle_timeout": 3.0, "overlap": "solaris", "paws": True, "syn_data": "acked"},
    {"hole_timeout": 0.5, "idle_timeout": 3.0, "depth": 9000},
]


@pytest.mark.parametrize("pace", [1, 30, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_what_expires_with_one_thread_expires_with_several(tcpreasm: ModuleType, path: Path, kind: str, pace: int) -> None:
    """Holes and idle connections, on a capture time that all shards have in common: the same pieces in the same calls.

    The captures reach over several blocks, of some minutes each, or some dozens of milliseconds, or anything between.
    """
    skipped = 0
    for seed, options in enumerate(TIMES):
        frames = traffic(kind, seed, directions=100, size=30_000)
        frames = [Captured(START_NS + (seen_ns - START_NS) // pace, data, wire) for seen_ns, data, wire in frames]
        content = capture_of(frames)
        assert len(content) > 2 * BLOCK
        one = check_file(tcpreasm, path, content, THREADS[seed % 3], "python", **options)
        same(tcpreasm, lambda content=content: content, 2, "coalesced", **options)
        skipped += one["summary"]["bytes_skipped"]
    assert skipped or kind in ("in order", "overlapping")


@pytest.mark.parametrize("seed", range(4))
def test_clocks_that_jump(tcpreasm: ModuleType, path: Path, seed: int) -> None:
    """Back, ahead, for one packet or for good, anywhere in a block."""
    rng = random.Random(seed)
    offset, frames = 0, []
    for seen_ns, data, wire in traffic("lossy", seed, directions=60, size=30_000):
        if rng.random() < 0.02:
            offset += rng.choice([-1, 1]) * rng.choice([1, 59, 61, 3599, 3700, 86400]) * NS
        once = rng.choice([0] * 60 + [NS, -NS, 100 * NS, -100 * NS, 9999 * NS])
        frames.append(Captured(START_NS + (seen_ns - START_NS) // 20 + offset + once, data, wire))
    check_file(tcpreasm, path, capture_of(frames), THREADS[seed % 3], "python", **TIMES[seed])


# -- limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", ["pages", "bytes"])
def test_one_limit_for_all(tcpreasm: ModuleType, path: Path, counted: str) -> None:
    """What the threads hold together stays below it. Which of them gets a page first is left to chance."""
    limit, connections = 40, 200
    options = {"max_buffered_pages_total": limit} if counted == "pages" else {"max_buffered_bytes_total": limit * 96}
    first = [frame(0, b"", SYN, ends=number(which)) for which in range(connections)]
    early = [frame(11, b"late", ends=number(which)) for which in range(connections)]
    filling = [frame(1, b"0123456789", ends=number(which)) for which in range(connections)]
    # No thread is further ahead of another than some blocks (the compiled core), or some thousands of frames (the pure one).
    pause = [bytes(65_000)] * 180 + [bytes(60)] * 2100
    frames = pause * 2 + first + pause + early + pause + filling
    path.write_bytes(pcap((START_NS + nth, data) for nth, data in enumerate(frames)))
    for threads in (2, 3, 5):
        book = Book()
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book), tcpreasm.AssemblerOptions(**options))
        assembler.assemble_capture(path, threads=threads)
        whole = [stream for (stream,) in book.streams.values() if stream.data == b"0123456789late"]
        cut = [stream for (stream,) in book.streams.values() if stream.data == b"late"]
        assert len(whole) + len(cut) == connections
        assert limit - 1 <= len(whole) + threads
        assert len(whole) <= limit - 1 + threads  # each may ask before it sees the others' last page
        assert assembler.stats.pages_used == 0


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"threads": 0}, ValueError, r"threads is from 1 to 64, not 0"),
        ({"threads": -1}, ValueError, r"threads is from 1 to 64, not -1"),
        ({"threads": 65}, ValueError, r"threads is from 1 to 64, not 65"),
        ({"threads": 1 << 70}, ValueError, r"threads is from 1 to 64, not 1180591620717411303424"),
        ({"threads": True}, TypeError, r"threads is a number, not bool: True"),
        ({"threads": 1.5}, TypeError, r"threads is a number, not float: 1.5"),
        ({"threads": "2"}, TypeError, r"threads is a number, not str: '2'"),
        ({"threads": None}, TypeError, r"threads is a number, not NoneType: None"),
        ({"threads": 2, "flush": False}, ValueError, r"threads=2 keeps nothing for what comes next: flush is True"),
        ({"threads": 2, "source": iter([])}, ValueError, r"threads=2 takes captures in files, not list_iterator"),
        ({"threads": 2, "source": [(1.0, b"")]}, ValueError, r"threads=2 takes captures in files, not list"),
        ({"threads": 2, "source": 7}, TypeError, r"a capture is a path, .* not int: 7"),
        ({"threads": 2, "source": b""}, None, r"<0 bytes in memory> is empty"),
        ({"threads": 2, "source": "/nowhere/at/all"}, FileNotFoundError, r"/nowhere/at/all"),
    ],
    ids=range(14),
)
def test_what_is_refused(tcpreasm: ModuleType, keywords: dict[str, Any], error: type[Exception] | None, text: str) -> None:
    book = Book()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
    before = numbers(assembler)
    content = capture_of(traffic("in order", 1))
    arguments = {"source": content} | keywords
    with pytest.raises(error or tcpreasm.CaptureError, match=text):
        assembler.assemble_capture(arguments.pop("source"), **arguments)
    assert numbers(assembler) == before
    assert not book.streams
    assembler.assemble_capture(content, threads=2)
    assert book.streams


def test_a_pool_with_connections_is_refused(tcpreasm: ModuleType) -> None:
    book = Book()
    pool = tcpreasm.StreamPool(book)
    assembler = tcpreasm.Assembler(pool)
    assembler.assemble_frame(frame(0, b"", SYN), timestamp_ns=START_NS)
    before = numbers(assembler)
    with pytest.raises(ValueError, match=r"^threads=2 takes a pool without connections, and this one has 1$"):
        assembler.assemble_capture(capture_of(traffic("in order", 1)), threads=2)
    assert numbers(assembler) == before
    assert (len(pool), len(book.streams)) == (1, 1)
    assembler.flush_all()
    assembler.assemble_capture(capture_of(traffic("in order", 1)), threads=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_closed_assembler_and_a_closed_capture_are_refused(tcpreasm: ModuleType, data: Path, threads: int) -> None:
    path = data / "http.pcap"
    book = Book()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
    for source in (path, path.read_bytes()):
        capture = tcpreasm.open_capture(source)
        capture.close()
        with pytest.raises(ValueError, match=r"was closed$"):
            assembler.assemble_capture(capture, threads=threads)
    assert assembler.stats.frames == 0
    assembler.close()
    with pytest.raises(ValueError, match=r"^this Assembler is closed$"):
        assembler.assemble_capture(path, threads=threads)
    assert not book.streams


@pytest.mark.parametrize("outer", [1, 2])
@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_calls_from_callbacks_are_refused(tcpreasm: ModuleType, data: Path, call: str, inner: int, outer: int) -> None:
    """With several threads as with one: the assembler is at work, whoever does it."""
    texts: list[str] = []
    calls: list[Callable[[], Any]] = [
        lambda: assembler.assemble_frame(frame(0, b"x"), timestamp_ns=START_NS),
        lambda: assembler.assemble_capture(data / "http.pcap", threads=inner),
        lambda: assembler.flush_all(),
        lambda: assembler.close(),
    ]

    def called(stream: Any, name: str) -> None:
        if name == call:
            for each in calls:
                with pytest.raises(RuntimeError) as caught:
                    each()
                texts.append(str(caught.value))

    book = Book()
    book.called = called  # type: ignore[method-assign]
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
    packets = assembler.assemble_capture(data / "http.pcap", threads=outer).packets
    assert assembler.stats.frames == packets
    assert set(texts) == {"this Assembler is at work already: called from a callback, or from two threads at once"}
    assembler.close()


def test_an_open_capture_goes_on_where_it_is(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """Frames that were taken out of it before are not given again; what is left of the first block is."""
    frames = traffic("lossy", 3, directions=40, size=30_000)
    content = capture_of(frames)
    path = tmp_path / "capture"
    path.write_bytes(content)
    for source in (path, content, tmp_path / "capture.gz"):
        (tmp_path / "capture.gz").write_bytes(gzip.compress(content, 1))
        for taken in (0, 1, 50, len(frames) - 1, len(frames)):
            told = []
            for threads in (1, 3):
                book = Book()
                assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
                capture = tcpreasm.open_capture(source)
                for _ in range(taken):
                    next(iter(capture))
                summary = assembler.assemble_capture(capture, threads=threads)
                assert (summary.packets, capture.packets, capture.complete) == (len(frames) - taken, len(frames), True)
                told.append({key: [stream.calls for stream in streams] for key, streams in book.streams.items()})
            assert told[0] == told[1]


def test_twice_with_the_same_assembler(tcpreasm: ModuleType, data: Path) -> None:
    """Counters add up, and a summary has its own part of them. In between one thread may do it."""
    book = Book()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
    path = data / "http.pcap"
    summaries = [assembler.assemble_capture(path, threads=threads) for threads in (2, 1, 3, 5)]
    assert len(set(map(repr, summaries))) == 1
    assert assembler.stats.frames == 4 * summaries[0].packets
    assert {len(streams) for streams in book.streams.values()} == {4}
    assert all(stream.calls == streams[0].calls for streams in book.streams.values() for stream in streams)


def test_progress_is_told(tcpreasm: ModuleType, data: Path) -> None:
    seen: list[Any] = []
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(Book()))
    paths = [data / "http.pcap", data / "http6.pcapng"]
    assembler.assemble_capture(paths, threads=2, progress=lambda capture: seen.append((capture.source_name, capture.packets)))
    assert dict(seen).keys() == {*map(str, paths)}
    assert sum(dict(seen).values()) == assembler.stats.frames

    def stop(capture: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        assembler.assemble_capture(paths, threads=2, progress=stop)
    assert assembler.stats.streams_opened == assembler.stats.streams_closed


# -- exceptions -----------------------------------------------------------------------------------------------------------


class Told(Exception):
    pass


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("kind", ["path", "bytes"])
@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_an_exception_in_one_thread(tcpreasm: ModuleType, tmp_path: Path, call: str, kind: str, coalesce: bool) -> None:
    """It is raised once; all streams are closed, and have the beginning of what they had got without it."""
    frames = traffic("lossy", 2, directions=60, size=30_000)
    content = capture_of(frames)
    path = tmp_path / "capture"
    path.write_bytes(content)
    source: Any = path if kind == "path" else content
    whole = run(tcpreasm, lambda: content, 1)["streams"]
    last_ns = frames[-1].seen_ns - frames[0].seen_ns + 2 * NS  # capture time goes on from call to call, in a step that is believed at once
    later = capture_of([each._replace(seen_ns=each.seen_ns + last_ns) for each in frames])
    assert last_ns < 60 * NS
    whole_later = run(tcpreasm, lambda: later, 1)["streams"]
    for threads in THREADS:
        for nth in (1, 59):
            book = Book()
            counts = [0, 0]
            lock = threading.Lock()

            def called(stream: Any, name: str, counts: list[int] = counts, lock: threading.Lock = lock, nth: int = nth) -> None:
                if name == call:
                    with lock:
                        counts[0] += 1
                        mine = counts[0] == nth
                    if mine:
                        counts[1] += 1
                        raise Told

            book.called = called  # type: ignore[method-assign]
            pool = tcpreasm.StreamPool(book)
            assembler = tcpreasm.Assembler(pool)
            with pytest.raises(Told):
                assembler.assemble_capture(source, threads=threads, coalesce=coalesce)
            assert counts[1] == 1
            assert len(pool) == 0
            stats = assembler.stats
            assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped
            assert stats.streams_opened == stats.streams_closed
            streams = [(key, stream) for key, several in book.streams.items() for stream in several]
            assert sum(stream.complete != 1 for _, stream in streams) == (call == "new")  # the one that nobody got
            assert stats.streams_opened == len(streams) - (call == "new")
            assert stats.bytes_delivered == sum(len(stream.data) for _, stream in streams)
            for key, stream in streams:
                begun = [b"".join(piece[0] for each in calls for piece in each) for calls, _ in whole[key]]
                assert not stream.calls or any(stream.calls[0][0][0] in data for data in begun)
            # and goes on working
            book.streams.clear()
            book.called = lambda stream, name: None  # type: ignore[method-assign]
            path.write_bytes(later)
            assembler.assemble_capture(path if kind == "path" else later, threads=threads)
            assert {key: [(s.calls, s.complete) for s in several] for key, several in book.streams.items()} == whole_later
            path.write_bytes(content)


def test_exceptions_in_all_threads_at_once(tcpreasm: ModuleType) -> None:
    """One of them comes out, and nobody waits for ever."""
    content = capture_of(traffic("lossy", 2, directions=60, size=30_000))
    book = Book()

    def called(stream: Any, name: str) -> None:
        raise Told(name)

    book.called = called  # type: ignore[method-assign]
    for threads in THREADS:
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))

        def work(assembler: Any = assembler, threads: int = threads) -> None:
            with pytest.raises(Told, match=r"^new$"):
                assembler.assemble_capture(content, threads=threads)

        together(work)
        assert assembler.stats.bytes_captured == assembler.stats.bytes_dropped


def test_exceptions_of_what_is_given_out_at_the_end(tcpreasm: ModuleType) -> None:
    """The capture was taken in; the others get what is held for them, too."""
    content = pcap((START_NS + which, frame(1, b"held %3d" % which, ends=number(which))) for which in range(100))
    book = Book()

    def called(stream: Any, name: str) -> None:
        if name == "reassembled" and b"7" in stream.data:
            raise Told

    book.called = called  # type: ignore[method-assign]
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
    with pytest.raises(Told):
        assembler.assemble_capture(content, threads=3)
    assert sorted(stream.data for (stream,) in book.streams.values()) == sorted(b"held %3d" % which for which in range(100))
    assert {stream.complete for (stream,) in book.streams.values()} == {1}


def test_where_no_thread_can_be_started(tcpreasm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes out, and nobody waits for the shard that has no thread."""
    content = capture_of(traffic("lossy", 2, directions=60, size=30_000))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "tcpreasm-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    book = Book()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))

    def work() -> None:
        with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
            assembler.assemble_capture(content, threads=4)

    together(work)
    assert assembler.stats.streams_opened == assembler.stats.streams_closed
    assert {stream.complete for streams in book.streams.values() for stream in streams} <= {1}
    monkeypatch.undo()
    assembler.assemble_capture(content, threads=4)


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------------


def child(implementation: str, script: str, *arguments: str) -> tuple[int, str]:
    """A process that is interrupted once it has said that it is ready. Its exit status and what it said."""
    prologue = f"""
        import sys, threading, time
        sys.path[:0] = [{str(REPOSITORY / "tests")!r}]
        from cores import load
        tcpreasm = load({implementation!r})
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prologue) + textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(sys.modules["tcpreasm"].__file__ or "").parent.parent)},
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said == "ready\n", said + process.stdout.read()
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=30)[0]
        finally:
            process.kill()
        return process.returncode, told


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("streams", ["counted", "python"])
def test_ctrl_c_in_a_long_run(data: Path, implementation: str, streams: str) -> None:
    """Everything is given out and closed, then it is raised; no thread is left."""
    script = """
        opened, closed = [], []
        class Stream:
            def __init__(self, *flows): opened.append(1)
            def reassembled(self, pieces): pass
            def reassembly_complete(self): closed.append(1)
        pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream if sys.argv[2] == "counted" else Stream)
        assembler = tcpreasm.Assembler(pool)
        said = []
        def progress(capture):
            if not said:
                said.append(print("ready", flush=True))
        try:
            assembler.assemble_capture([sys.argv[1]] * 1_000_000, threads=3, progress=progress)
        except KeyboardInterrupt:
            stats = assembler.stats
            assert stats.frames > 0
            assert stats.streams_opened == stats.streams_closed > 0, stats
            assert len(opened) == len(closed) and bool(opened) == (sys.argv[2] == "python")
            assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped, stats
            until = time.monotonic() + 10  # one that was about to start has nothing to do, and ends
            while threading.active_count() > 1 and time.monotonic() < until:
                time.sleep(0.01)
            assert threading.active_count() == 1
            assert len(pool) == 0
            print("interrupted")
    """
    status, told = child(implementation, script, str(data / "http.pcap"), streams)
    assert (status, told) == (0, "interrupted\n"), told


@pytest.mark.parametrize("size", [10, 500])
def test_ctrl_c_while_others_are_in_callbacks(tmp_path: Path, size: int) -> None:
    """On the compiled core. The main thread has nothing left to do, or waits for blocks, while another one is in a long callback: that
    is waited for."""
    path = tmp_path / "capture.pcap"
    frames = [frame(1, b"x" * 20, ends=number(which)) for which in range(400)] + [bytes(60_000)] * size
    path.write_bytes(pcap((START_NS + nth, data) for nth, data in enumerate(frames)))
    script = """
        main, inside, done = threading.main_thread(), [], []
        class Stream:
            def __init__(self, *flows):
                if not inside and threading.current_thread() is not main:
                    inside.append(1)
                    until = time.monotonic() + 1.5
                    print("ready", flush=True)
                    try:
                        while time.monotonic() < until:
                            time.sleep(0.01)
                    finally:
                        done.append(1)
            def reassembled(self, pieces): pass
            def reassembly_complete(self): pass
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(Stream))
        try:
            assembler.assemble_capture(sys.argv[1], threads=2)
        except KeyboardInterrupt:
            assert done
            stats = assembler.stats
            assert stats.streams_opened == stats.streams_closed > 0, stats
            assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped, stats
            assert threading.active_count() == 1
            print("interrupted")
    """
    status, told = child("compiled", script, str(path))
    assert (status, told) == (0, "interrupted\n"), told


@pytest.mark.parametrize("implementation", NAMES)
def test_ctrl_c_while_a_pipe_is_silent(data: Path, implementation: str) -> None:
    """What had come through it is given out."""
    script = """
        import os
        source, sink = os.pipe()
        content = open(sys.argv[1], "rb").read()
        assert os.write(sink, content) == len(content)
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream))
        threading.Timer(0.5, print, ("ready",), {"flush": True}).start()
        try:
            assembler.assemble_capture(os.fdopen(source, "rb"), threads=2)
        except KeyboardInterrupt:
            assert assembler.stats.streams_opened == assembler.stats.streams_closed > 0, assembler.stats
            print("interrupted")
    """
    status, told = child(implementation, script, str(data / "http.pcap"))
    assert (status, told) == (0, "interrupted\n"), told


# -- the core's Shards themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 65])
def test_so_many_shards_there_are_not(tcpreasm: ModuleType, core: Callable[[str], ModuleType], data: Path, count: int) -> None:
    assemblers = [tcpreasm.Assembler(tcpreasm.StreamPool(Book())) for _ in range(count)]
    with (
        tcpreasm.open_capture(data / "http.pcap") as capture,
        pytest.raises(ValueError, match=rf"^shards are 2 to 64, not {count}$"),
    ):
        core("shards").Shards(assemblers, capture.records)


def test_as_many_threads_as_there_may_be(tcpreasm: ModuleType, data: Path) -> None:
    same(tcpreasm, lambda: data / "http.pcap", 64)


def test_pieces_without_text(tcpreasm: ModuleType) -> None:
    """Frames that no shard has as its own, and none at all."""
    content = pcap((START_NS + nth, bytes(60) if nth % 3 else frame(5, b"", ACK, ends=number(nth))) for nth in range(5000))
    one = same(tcpreasm, lambda: content, 3)
    assert one["summary"]["packets"] == 5000
    assert not one["streams"]


# -- from call to call --------------------------------------------------------------------------------------------------------


def halves(whole: bytes, *, at: int = 24) -> tuple[bytes, bytes]:
    """The two fragments of an Ethernet frame's IPv4 datagram."""
    ip, data = whole[14:34], whole[34:]
    first = ip[:2] + struct.pack("!HHH", 20 + at, 77, 0x2000) + ip[8:]
    second = ip[:2] + struct.pack("!HHH", 20 + len(data) - at, 77, at // 8) + ip[8:]
    return whole[:14] + first + data[:at], whole[:14] + second + data[at:]


def called(package: ModuleType, captures: list[bytes], threads: int, **options: Any) -> list[Any]:
    """What each of several calls of one assembler leads to."""
    book = Book()
    assembler = package.Assembler(package.StreamPool(book), package.AssemblerOptions(**options))
    out = []
    for content in captures:
        book.streams.clear()
        summary = assembler.assemble_capture(content, threads=threads)
        streams = {key: [(stream.calls, stream.complete) for stream in streams] for key, streams in book.streams.items()}
        out.append((streams, {field.name: getattr(summary, field.name) for field in fields(summary)}, numbers(assembler)))
    return out


@pytest.mark.parametrize("threads", THREADS)
def test_a_fragment_times_out_by_the_time_of_the_call_before(tcpreasm: ModuleType, threads: int) -> None:
    """A far step of capture time is believed with its second packet: until then the first fragment is as old as the call before.

    Where the clock began anew, the datagram would become whole.
    """
    syn, text = frame(0, b"", SYN), frame(1, b"in two pieces of a datagram")
    first, second = halves(text)
    captures = [
        pcap([(START_NS, syn), (START_NS + NS, frame(1, b"", ACK))]),
        pcap([(START_NS + 80 * NS, first), (START_NS + 81 * NS, second), (START_NS + 82 * NS, syn)]),
    ]
    one = called(tcpreasm, captures, 1)
    assert called(tcpreasm, captures, threads) == one
    assert one[1][2]["fragments_dropped"] == {"timeout": 1, "incomplete": 1}
    alone = called(tcpreasm, captures[1:], threads)
    assert alone == called(tcpreasm, captures[1:], 1)
    assert alone[0][2]["datagrams"] == 1


@pytest.mark.parametrize("threads", THREADS)
def test_holes_and_idle_connections_expire_as_if_the_calls_were_one(tcpreasm: ModuleType, threads: int) -> None:
    """When it is looked at what waits, and when a far step of time was believed, goes on from call to call too."""
    rng = random.Random(threads)
    captures = []
    start_ns = START_NS
    for gap_ns in (0, NS // 3, 20 * NS, 100 * NS, 7200 * NS, -5 * NS, -500 * NS, NS // 7):
        start_ns += gap_ns
        frames = [(start_ns + ns, data) for ns, data in waiting(rng, 40)]
        captures.append(pcap(frames))
        start_ns = frames[-1][0]
    options = {"hole_timeout": 0.9, "idle_timeout": 1.7, "start_wait": 0.4}
    one = called(tcpreasm, captures, 1, **options)
    assert called(tcpreasm, captures, threads, **options) == one
    assert one[-1][2]["holes_expired"] > 20


def waiting(rng: random.Random, connections: int) -> Iterator[tuple[int, bytes]]:
    """Holes that nothing fills, in a random rhythm."""
    ns = 0
    for which in range(connections):
        for seq, text, flags in ((0, b"", SYN), (1, b"text", ACK), (9, b"behind a hole", ACK)):
            ns += rng.randrange(NS // 8)
            yield ns, frame(seq, text, flags, ends=number(which))


def test_the_time_after_an_exception_is_that_of_who_got_furthest(tcpreasm: ModuleType) -> None:
    """A thread that has nothing to do sees all the time there is, and the numbers; another one stops in the midst."""
    content = pcap((START_NS + which * NS, frame(0, b"text", SYN, ends=number(which))) for which in range(30))
    book = Book()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))

    def fails(stream: Any, name: str) -> None:
        raise Told

    book.called = fails  # type: ignore[method-assign]
    with pytest.raises(Told):
        assembler.assemble_capture(content, threads=2)
    assert assembler.packets_given > 0
    assert assembler.now_ns() == START_NS + (assembler.packets_given - 1) * NS
