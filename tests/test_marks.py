"""What arrives early and stays where it was captured, instead of being copied: same results, and nothing is held too long or too briefly.

Lives here: captures full of early data, held over the end of the capture and of its file; descriptors, references and memory that this
takes. The compiled core makes such marks for streams that ignore their bytes over plain files, and for all of its own streams over a bytes
object; everything else is copied. Which of the two it was must show in nothing but `pages_allocated`.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import itertools
import mmap
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from capture_bytes import epb, idb, shb, tsresol
from conftest import REPOSITORY
from cores import load
from hypothesis import given
from hypothesis import strategies as st
from recorder import ACK, FIN, NS, SYN, frame, number
from test_batch import START_NS, Captured, capture_of
from test_parity import Both, examples
from test_shared_pool import SHARES, WAIT, Native, by_batch, by_capture, check_counters, shares
from test_threads import together

SIZES = [1, 3, 500, 1448, 1900, 1901, 4000, 60_001]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"hole_timeout": None, "max_gap": None},
    {"max_buffered_pages_per_connection": 9},
    {"max_buffered_pages_total": 60, "hole_timeout": 0.05},
    {"max_buffered_bytes_per_connection": 9000},
    {"max_buffered_bytes_total": 60_000, "hole_timeout": 0.05},
    {"overlap": "last"},
    {"overlap": "bsd", "hole_timeout": 0.5},
]
_numbers = itertools.count()
FIELDS = ("length", "skipped", "gap_count", "started", "ended", "complete", "first_seen_ns", "last_seen_ns")


# -- captures -------------------------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0x5A for byte in data)


@cache
def early(seed: int, connections: int = 12, longest: int = 30_000) -> list[Captured]:
    """Connections whose beginning is missing for long, or for ever; much comes twice, and not always the same; a FIN lies before the end of
    some of what waits for it; some frames were cut by the capture."""
    rng = random.Random(seed)
    sent: list[tuple[float, Captured]] = []
    for which in range(connections):
        text = rng.randbytes(rng.choice([2000, longest, 2 * longest]))
        isn = rng.choice([0, 1000, 2**31 - 20, 2**32 - 10, 2**32 - 4000])
        size = rng.choice(SIZES[2:])
        segments = [(at, text[at : at + size], ACK) for at in range(0, len(text), size)]
        first = segments.pop(0)
        for _ in range(rng.randrange(12)):
            at = rng.randrange(len(text))
            again = text[at : at + rng.choice(SIZES)]
            cut = rng.randrange(len(again))
            segments.append((at, again if rng.random() < 0.5 else again[:cut] + flipped(again[cut:]), ACK))
        rng.shuffle(segments)
        segments.insert(rng.randrange(len(segments) + 1), (rng.choice([len(text), len(text) * 2 // 3]), b"", FIN | ACK))
        if rng.random() < 0.8:
            segments.append(first)
        place = 0.0
        for at, data, flags in [(-1, b"", SYN), *segments]:
            whole = frame(isn + 1 + at, data, flags, ends=number(which))
            kept = rng.randrange(54, len(whole)) if len(data) > 10 and rng.random() < 0.1 else len(whole)
            sent.append((place, Captured(0, whole[:kept], len(whole))))
            place += rng.uniform(0, 20)
    sent.sort(key=lambda item: item[0])
    return [Captured(START_NS + nth * 1_000_000, one.data, one.wire) for nth, (_, one) in enumerate(sent)]


def pcapng_of(frames: list[Captured]) -> bytes:
    parts = [shb(), idb(options=tsresol("<", 9))]
    return b"".join(parts + [epb("<", 0, one.seen_ns, one.data, one.wire) for one in frames])


def split(frames: list[Captured], parts: int) -> list[list[Captured]]:
    size = -(-len(frames) // parts)
    return [frames[at : at + size] for at in range(0, len(frames), size)]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def in_parts(folder: Path, frames: list[Captured]) -> list[Any]:
    """Three captures: two files with a bytes object between them."""
    first, second, third = map(capture_of, split(frames, 3))
    return [written(folder / "first", first), second, written(folder / "third", third)]


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


SOURCES: dict[str, Callable[[Path, list[Captured]], Any]] = {
    "path": lambda folder, frames: written(folder / "capture", capture_of(frames)),
    "bytes": lambda folder, frames: capture_of(frames),
    "file object": lambda folder, frames: io.BytesIO(capture_of(frames)),
    "opened file": lambda folder, frames: written(folder / "capture", capture_of(frames)).open("rb"),
    "gzip": lambda folder, frames: written(folder / "capture.gz", gzip.compress(capture_of(frames), 1)),
    "pcapng": lambda folder, frames: written(folder / "capture", pcapng_of(frames)),
    "pcapng in memory": lambda folder, frames: pcapng_of(frames),
    "mapped": lambda folder, frames: mapped(written(folder / "capture", capture_of(frames))),
    "several": in_parts,
}


def contents(source: Any) -> Any:
    """What the spans of that source are read from."""
    if isinstance(source, Path) and source.suffix == ".gz":
        return gzip.decompress(source.read_bytes())
    if isinstance(source, io.BufferedReader):
        return source.name
    return source


# -- streams --------------------------------------------------------------------------------------------------------------


class Made:
    """A factory of one kind of streams, or of all kinds in turn. It keeps them, and tells what each came to."""

    def __init__(self, package: ModuleType, kind: str, folder: Path) -> None:
        self.package = package
        self.kinds = [name for name in KINDS if name not in ("counted", "mixed")] if kind == "mixed" else [kind]
        self.folder = folder
        self.files = package.FilePool()
        self.streams: list[tuple[str, Any]] = []
        # Without a factory of its own, the pool keeps a tally and makes no streams at all.
        self.factory: Any = package.ByteCountStream if kind == "counted" else self.new
        self.raises = 0
        self.calls = 0
        self.also: Callable[[], Any] | None = None

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        kind = self.kinds[transport_flow.src % len(self.kinds)]
        key = f"{net_flow} {transport_flow} {len(self.streams)}"
        stream = KINDS[kind](self)(net_flow, transport_flow)
        self.streams.append((key, stream))
        return stream

    def called(self) -> None:
        self.calls += 1
        if self.also is not None:
            self.also()
        if self.raises and self.calls % self.raises == 0:
            raise Told

    def file(self, *flows: Any) -> Any:
        path = self.folder / f"stream {next(_numbers)}"
        return self.package.FileStream(*flows, path=path, pool=self.files, fill_gaps=True)

    def told(self, source: Any = None) -> list[Any]:
        """Of each stream, in the order in which they were made. The bytes of a SpanStream are read where there is a source."""
        self.files.close()
        return [
            (key, type(stream).__name__, *[getattr(stream, name) for name in FIELDS], self.rest(stream, source))
            for key, stream in self.streams
        ]

    def rest(self, stream: Any, source: Any) -> Any:
        package = self.package
        if isinstance(stream, package.SpanStream):
            spans = stream.spans
            return [spans[name].tolist() for name in ("length", "skip", "seen_ns")], None if source is None else stream.gather(source)
        if isinstance(stream, package.BytesStream):
            return stream.data, list(stream.gaps), getattr(stream, "pieces", None)
        if isinstance(stream, package.DigestStream):
            return stream.digest()
        if isinstance(stream, package.FileStream):
            return None if stream.path is None else Path(stream.path).read_bytes(), list(stream.gaps)
        return getattr(stream, "times", None)


class Told(Exception):
    pass


def overriding(made: Made) -> Any:
    """A subclass whose pieces come as objects."""

    class Overriding(made.package.BytesStream):  # type: ignore[name-defined,misc]  # known at run time
        def __init__(self, *flows: Any) -> None:
            super().__init__(*flows)
            self.pieces: list[tuple[Any, ...]] = []

        def reassembled(self, reassemblies: list[Any]) -> None:
            self.pieces += [(bytes(r), r.skip, r.start, r.end, r.seen_ns) for r in reassemblies]
            super().reassembled(reassemblies)
            made.called()

    return Overriding


def completing(made: Made) -> Any:
    """A subclass of which the core needs Python at the end only."""

    class Completing(made.package.ByteCountStream):  # type: ignore[name-defined,misc]  # known at run time
        times = 0

        def reassembly_complete(self) -> None:
            self.times += 1
            super().reassembly_complete()

    return Completing


def plain(name: str) -> Callable[[Made], Any]:
    """A subclass that changes nothing."""
    return lambda made: type(f"My{name}", (getattr(made.package, name),), {})


KINDS: dict[str, Callable[[Made], Any]] = {
    "counted": lambda made: made.package.ByteCountStream,
    "mixed": lambda made: made.new,
    "ByteCountStream": lambda made: made.package.ByteCountStream,
    "SpanStream": lambda made: made.package.SpanStream,
    "BytesStream": lambda made: made.package.BytesStream,
    "DigestStream": lambda made: made.package.DigestStream,
    "FileStream": lambda made: made.file,
    "subclass of SpanStream": plain("SpanStream"),
    "subclass of BytesStream": plain("BytesStream"),
    "overriding": overriding,
    "completing": completing,
}


class Run:
    """An assembler over streams of one kind."""

    def __init__(self, package: ModuleType, kind: str, folder: Path, **options: Any) -> None:
        self.made = Made(package, kind, folder)
        self.pool = package.StreamPool(self.made.factory)
        self.assembler = package.Assembler(self.pool, package.AssemblerOptions(**options))

    def frames(self, frames: list[Captured]) -> None:
        for one in frames:
            self.assembler.assemble_frame(one.data, timestamp_ns=one.seen_ns, wire_length=one.wire)
            self.assembler.tick()

    def state(self, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Every counter but pages_allocated: what a page takes is another matter than whether there is one."""
        stats = self.assembler.stats
        numbers = {one.name: getattr(stats, one.name) for one in fields(stats) if one.name not in ("pages_allocated", *without)}
        return numbers | {"verdicts": {int(verdict): n for verdict, n in stats.verdicts.items()}, "dropped": dict(stats.dropped)}

    def over(self) -> None:
        """Everything goes out, and nothing is left."""
        self.assembler.flush_all()
        stats = self.assembler.stats
        assert (stats.bytes_held, stats.pages_used, stats.connections) == (0, 0, 0)
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped


# -- the same results -----------------------------------------------------------------------------------------------------


def test_the_captures_have_what_they_are_for(both: Both, tmp_path: Path) -> None:
    """Or nothing would be shown by them."""
    for package in both:
        run = Run(package, "counted", tmp_path, **OPTIONS[1])
        run.assembler.assemble_capture(capture_of(early(1)))
        stats = run.assembler.stats
        assert min(stats.page_requests, stats.conflicting, stats.bytes_skipped, *map(stats.dropped.get, ("overlapping", "after_end"))) > 100
    frames = [one for seed in range(4) for one in early(seed)]
    assert max(len(one.data) for one in frames) > 60_000
    assert any(one.wire > len(one.data) for one in frames)


@cache
def expected(kind: str, seed: int, by_frame: bool, folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """Of the pure core."""
    run = Run(load("pure"), kind, folder, **OPTIONS[seed % len(OPTIONS)])
    if by_frame:
        run.frames(early(seed))
    else:
        run.assembler.assemble_capture(capture_of(early(seed)), flush=False)
    run.over()
    return run.made.told(), run.state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("expected")


def without_bytes(told: list[Any]) -> list[Any]:
    """Where spans were read, only what is known without their bytes."""
    return [(*one[:-1], (one[-1][0], None)) if "SpanStream" in one[1] else one for one in told]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_gives_what_its_frames_give_one_by_one(tmp_path: Path, folder: Path, kind: str, seed: int) -> None:
    """From each source, and on the pure core."""
    frames = early(seed)
    told, state = expected(kind, seed, True, folder)
    assert expected(kind, seed, False, folder) == (told, state)
    texts = bytes_of(seed, folder)
    for name, source_of in SOURCES.items():
        source = source_of(tmp_path, frames)
        for coalesce in (False, True):
            if name in ("file object", "opened file"):
                source.seek(0)
            run = Run(load("compiled"), kind, tmp_path, **OPTIONS[seed % len(OPTIONS)])
            run.assembler.assemble_capture(source, flush=False, coalesce=coalesce)
            run.over()
            mine = run.made.told(contents(source))
            assert without_bytes(mine) == told, name
            assert run.state() == state, name
            assert [one[-1][1] for one in mine if "SpanStream" in one[1]] == [texts[one[0]] for one in mine if "SpanStream" in one[1]], name
        if isinstance(source, io.BufferedReader):
            source.close()


@cache
def bytes_of(seed: int, folder: Path) -> dict[str, bytes]:
    return {one[0]: one[-1][0] for one in expected("BytesStream", seed, True, folder)[0]}


def test_bytes_of_a_class_of_their_own(tcpreasm: ModuleType, tmp_path: Path, folder: Path) -> None:
    """Nobody knows what such a class does: its objects are read as files are."""

    class Content(bytes):
        pass

    content = Content(capture_of(early(1)))
    before = sys.getrefcount(content)
    run = Run(tcpreasm, "mixed", tmp_path, **OPTIONS[1])
    run.assembler.assemble_capture(content, flush=False)
    assert sys.getrefcount(content) == before
    run.over()
    assert (without_bytes(run.made.told()), run.state()) == expected("mixed", 1, True, folder)


def by_key(told: list[Any]) -> list[Any]:
    """Threads make streams in any order."""
    return sorted((one[0].rsplit(" ", 1)[0], *one[1:]) for one in told)


@pytest.mark.parametrize("source", ["path", "bytes", "mapped", "gzip", "several"])
@pytest.mark.parametrize("kind", ["counted", "mixed", "SpanStream", "BytesStream"])
def test_threads_give_the_same(tmp_path: Path, folder: Path, kind: str, source: str) -> None:
    told, state = expected(kind, 1, True, folder)
    run = Run(load("compiled"), kind, tmp_path, **OPTIONS[1])
    run.assembler.assemble_capture(SOURCES[source](tmp_path, early(1)), threads=2)
    assert by_key(run.made.told()) == by_key(told)
    assert run.state() == state


SEGMENTS = st.tuples(
    st.integers(0, 9000), st.sampled_from(SIZES[:-1]), st.booleans(), st.sampled_from([0, 0, 0, 1, 700]), st.sampled_from([0, 0, 0, 0, FIN])
)
TEXT = random.Random(5).randbytes(16_000)


@examples(40)
@given(
    segments=st.lists(SEGMENTS, min_size=2, max_size=25),
    isn=st.sampled_from([0, 2**31 - 20, 2**32 - 4000]),
    limit=st.sampled_from([0, 0, 2, 7]),
    again_at=st.integers(0, 25),
)
def test_any_early_segments(
    both: Both,
    tmp_path_factory: pytest.TempPathFactory,
    segments: list[tuple[int, int, bool, int, int]],
    isn: int,
    limit: int,
    again_at: int,
) -> None:
    """The hole before all of them is filled at some time, by one byte."""
    sent = [(0, b"", SYN, 0)]
    for nth, (at, size, conflicts, cut, fin) in enumerate(segments):
        data = TEXT[at + 1 : at + 1 + size]
        sent.append((at + 2, flipped(data) if conflicts else data, ACK | fin, min(cut, size)))
        if nth == again_at:
            sent.append((1, TEXT[:1], ACK, 0))
    whole = [(frame(isn + at, data, flags), cut) for at, data, flags, cut in sent]
    frames = [Captured(START_NS + nth, data[: len(data) - cut], len(data)) for nth, (data, cut) in enumerate(whole)]
    folder = tmp_path_factory.mktemp("any")
    content = capture_of(frames)
    options = {"max_buffered_pages_per_connection": limit, "hole_timeout": None}
    compiled, pure = both
    for kind in ("counted", "SpanStream", "BytesStream"):
        single = Run(pure, kind, folder, **options)
        single.frames(frames)
        before = single.state()
        single.over()
        for source in (written(folder / "capture", content), content):
            run = Run(compiled, kind, folder, **options)
            run.assembler.assemble_capture(source, flush=False)
            assert run.state() == before
            run.over()
            assert run.made.told() == single.made.told()
            assert run.state() == single.state()


# -- held over the end of the capture ---------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(flipped(path.read_bytes()))
    assert path.stat().st_size == size


def replaced(path: Path) -> None:
    written(path.with_suffix(".new"), b"another").replace(path)


LOST: dict[str, tuple[Callable[[Path], None], bool]] = {  # and whether the bytes are there still
    "deleted": (Path.unlink, True),
    "replaced": (replaced, True),
    "truncated": (truncated, False),
    "overwritten": (overwritten, False),
}
NEXT: dict[str, Callable[[Run, list[Captured]], None]] = {
    "capture": lambda run, frames: run.assembler.assemble_capture(capture_of(frames), flush=False),
    "frames": lambda run, frames: run.frames(frames),
    "flush": lambda run, frames: None,
}


def halves(seed: int) -> tuple[list[Captured], list[Captured]]:
    """Much is held at the end of the first."""
    frames = early(seed, connections=8, longest=9000)
    return frames[: len(frames) // 2], frames[len(frames) // 2 :]


@pytest.mark.parametrize("after", NEXT)
@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("kind", ["counted", "mixed"])
def test_what_is_held_outlives_its_file(both: Both, tmp_path: Path, kind: str, lost: str, after: str) -> None:
    """Bytes come out right, and all is counted but conflicts with what cannot be read any more."""
    lose, is_there = LOST[lost]
    for seed in (1, 2):
        first, second = halves(seed)
        runs = [Run(package, kind, tmp_path, hole_timeout=None) for package in both]
        for run in runs:
            path = written(tmp_path / "capture", capture_of(first))
            run.assembler.assemble_capture(path, flush=False)
            assert run.assembler.stats.bytes_held > 1000
            lose(path)
            NEXT[after](run, second)
            run.over()
        compiled, pure = runs
        assert compiled.made.told() == pure.made.told()
        unsure = () if is_there or after == "flush" else ("conflicting",)
        assert compiled.state(unsure) == pure.state(unsure)
        if after != "flush":
            assert pure.assembler.stats.conflicting > 100


def held(seq: int = 101, data: bytes = TEXT[:5000]) -> list[Captured]:
    """A connection with a hole of a hundred bytes, and what waits behind it."""
    return [Captured(START_NS, frame(0, b"", SYN), 54), Captured(START_NS + 1, frame(seq, data), 54 + len(data))]


@pytest.mark.parametrize("source", ["path", "bytes"])
@pytest.mark.parametrize("kind", ["counted", "SpanStream", "BytesStream", "overriding"])
def test_conflicts_with_what_is_held(tcpreasm: ModuleType, tmp_path: Path, kind: str, source: str) -> None:
    """In front of it, within it, over several pages, behind its end, around all of it, the same again; then the hole is filled, and more.
    What was captured first is the stream's, and each byte that differs from it is counted."""
    run = Run(tcpreasm, kind, tmp_path, hole_timeout=None)
    run.assembler.assemble_capture(SOURCES[source](tmp_path, held()), flush=False)
    known = dict(enumerate(TEXT[:5000], 101))
    overlapping = conflicting = 0
    for seq, data in [
        (51, flipped(TEXT[:60])),
        (1000, flipped(TEXT[899:904])),
        (1500, TEXT[1399:2000] + flipped(TEXT[2000:4000]) + TEXT[4000:4399]),
        (5000, flipped(TEXT[4899:5099])),
        (41, bytes(7000)),
        (101, TEXT[:5000]),
        (1, flipped(TEXT[:300])),
    ]:
        part = [Captured(START_NS + 2, frame(seq, data), 54 + len(data))]
        if seq % 2:
            run.frames(part)
        else:
            run.assembler.assemble_capture(SOURCES[source](tmp_path / str(seq), part), flush=False)
        for place, byte in enumerate(data, seq):
            overlapping += place in known
            conflicting += known.setdefault(place, byte) != byte
        stats = run.assembler.stats
        assert (stats.dropped, stats.conflicting) == ({"overlapping": overlapping}, conflicting)
    run.over()
    assert conflicting > 7000
    assert sorted(known) == list(range(1, 7041))
    assert run.assembler.stats.bytes_delivered == 7040
    if kind in ("BytesStream", "overriding"):
        assert run.made.told()[0][-1][0] == bytes(known[place] for place in range(1, 7041))


@pytest.mark.parametrize(("lost", "conflicting"), [("deleted", 40), ("truncated", 0), ("overwritten", 60)])
def test_a_conflict_is_counted_where_the_file_can_be_read(tmp_path: Path, lost: str, conflicting: int) -> None:
    """Forty bytes differ from what was captured, sixty do not."""
    run = Run(load("compiled"), "SpanStream", tmp_path, hole_timeout=None)
    path = written(tmp_path / "capture", capture_of(held()))
    run.assembler.assemble_capture(path, flush=False)
    LOST[lost][0](path)
    again = frame(1101, flipped(TEXT[1000:1040]) + TEXT[1040:1100])
    run.frames([Captured(START_NS, again, len(again))])
    assert run.assembler.stats.conflicting == conflicting
    assert run.assembler.stats.dropped == {"overlapping": 100}
    run.over()
    assert run.assembler.stats.bytes_delivered == 5000


@pytest.mark.parametrize("after", NEXT)
@pytest.mark.parametrize("kind", ["counted", "mixed"])
def test_what_is_held_outlives_the_bytes_object(both: Both, tmp_path: Path, kind: str, after: str) -> None:
    for seed in (1, 2):
        first, second = halves(seed)
        runs = [Run(package, kind, tmp_path, hole_timeout=None) for package in both]
        for run in runs:
            content = capture_of(first)
            run.assembler.assemble_capture(content, flush=False)
            del content
            gc.collect()
            others = [b"\xaa" * len(capture_of(first)) for _ in range(3)]
            NEXT[after](run, second)
            run.over()
            del others
        compiled, pure = runs
        assert compiled.made.told() == pure.made.told()
        assert compiled.state() == pure.state()


# -- how long a capture is held ---------------------------------------------------------------------------------------------


def descriptors(path: Path) -> int:
    """How many of this process are on that file, or on those of that folder."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the folder's own
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(path))
    return count


ENDINGS: dict[str, Callable[[Run], None]] = {
    "flush": lambda run: run.over(),
    "close": lambda run: run.assembler.close(),
    "filled": lambda run: run.frames([Captured(START_NS, frame(1, bytes(100)), 154)]),
    "expired": lambda run: run.assembler.flush_older_than((START_NS + NS) / NS),
    "reset": lambda run: run.frames([Captured(START_NS, frame(1, b"", 4), 54)]),
    "ended": lambda run: run.frames([Captured(START_NS, frame(50, b"", FIN | ACK), 54)]),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["counted", "ByteCountStream", "SpanStream", "completing"])
def test_a_file_is_let_go_of_with_what_was_held(tmp_path: Path, kind: str, ending: str) -> None:
    """It takes one descriptor meanwhile, however much is held."""
    path = written(tmp_path / "capture", capture_of(held() + held(20_000, bytes(60_000))[1:]))
    run = Run(load("compiled"), kind, tmp_path, hole_timeout=None)
    run.assembler.assemble_capture(path, flush=False)
    assert descriptors(path) == 1
    ENDINGS[ending](run)
    if ending == "filled":
        assert descriptors(path) == 1
        run.assembler.flush_all()
    assert descriptors(path) == 0


def test_a_capture_that_is_closed_before_its_end_is_let_go_of(tmp_path: Path) -> None:
    tcpreasm = load("compiled")
    path = written(tmp_path / "capture", capture_of(held() + held(20_000, bytes(60_000))[1:]))
    run = Run(tcpreasm, "counted", tmp_path, hole_timeout=None)
    with tcpreasm.open_capture(path) as capture:
        assert run.assembler.assemble_records(capture.records, 2) == 2
        run.assembler.flush_all()
    assert descriptors(path) == 0


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["counted", "BytesStream", "DigestStream", "FileStream", "subclass of SpanStream"])
def test_a_bytes_object_is_let_go_of_with_what_was_held(tmp_path: Path, kind: str, ending: str) -> None:
    content = capture_of(held())
    before = sys.getrefcount(content)
    run = Run(load("compiled"), kind, tmp_path, hole_timeout=None)
    run.assembler.assemble_capture(content, flush=False)
    assert sys.getrefcount(content) == before + 1
    ENDINGS[ending](run)
    assert sys.getrefcount(content) == before


@pytest.mark.parametrize("kind", ["BytesStream", "DigestStream", "FileStream", "overriding"])
def test_streams_that_need_bytes_hold_no_file(tcpreasm: ModuleType, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "capture", capture_of(held()))
    run = Run(tcpreasm, kind, tmp_path, hole_timeout=None)
    run.assembler.assemble_capture(path, flush=False)
    assert descriptors(path) == 0
    truncated(path)
    run.over()
    assert run.assembler.stats.bytes_delivered == 5000


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("source", ["path", "bytes"])
def test_nothing_is_held_when_all_was_flushed(tmp_path: Path, source: str, threads: int) -> None:
    """The caller's closed capture may be there still."""
    content = capture_of(early(1))
    path = written(tmp_path / "capture", content)
    before = sys.getrefcount(content)
    run = Run(load("compiled"), "counted", tmp_path)
    with load("compiled").open_capture(path if source == "path" else content) as capture:
        run.assembler.assemble_capture(capture, threads=threads)
        assert run.assembler.stats.page_requests > 100
    assert descriptors(path) == 0
    del capture
    assert sys.getrefcount(content) == before


@pytest.mark.parametrize("order", [*itertools.permutations(["capture", "assembler", "pool"])])
@pytest.mark.parametrize("source", ["path", "bytes"])
def test_everything_is_let_go_of_in_any_order(tmp_path: Path, source: str, order: tuple[str, ...]) -> None:
    """The capture is in the middle, and nothing was flushed or closed."""
    package = load("compiled")
    content = capture_of(held() + early(2))
    path = written(tmp_path / "capture", content)
    before = sys.getrefcount(content)
    for kind in ("counted", "SpanStream"):
        run = Run(package, kind, tmp_path, hole_timeout=None)
        objects = {
            "capture": package.open_capture(path if source == "path" else content),
            "assembler": run.assembler,
            "pool": run.pool,
        }
        del run
        objects["assembler"].assemble_records(objects["capture"].records, 100)
        assert objects["assembler"].stats.pages_used > 10
        for name in order:
            assert sys.getrefcount(content) > before or descriptors(path) > 0
            del objects[name]
        assert descriptors(path) == 0
        assert sys.getrefcount(content) == before


def in_a_child(script: str, *arguments: str) -> str:
    """What a process of its own prints."""
    preamble = f"import sys; sys.path[:0] = [{str(REPOSITORY / 'tests')!r}]\nfrom cores import load\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(load("compiled").__file__ or "").parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_captures_in_memory_are_kept_at_the_most(tmp_path: Path) -> None:
    """From others what waits is copied: whoever sends the packets must not decide how much memory is held."""
    contents = [capture_of(held()) + bytes(index) for index in range(5)]
    runs = [Run(load("compiled"), "counted", tmp_path, hole_timeout=None) for _ in contents]

    def references() -> list[int]:
        return [sys.getrefcount(contents[index]) for index in range(5)]

    before = references()
    for index in range(5):
        runs[index].assembler.assemble_capture(contents[index], flush=False)
    kept = [now - then for now, then in zip(references(), before)]
    assert (kept, {run.assembler.stats.bytes_held for run in runs}) == ([1, 1, 0, 0, 0], {5000})
    for run in runs:
        run.assembler.flush_all()
    assert references() == before


def test_without_descriptors_bytes_are_copied(tmp_path: Path) -> None:
    """Marks keep eight files open at the most, so that the next captures can be opened; and where there is no descriptor, none."""
    written(tmp_path / "capture", capture_of(held()))
    script = """
        import os, resource
        from pathlib import Path
        tcpreasm = load("compiled")
        path = sys.argv[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        def run():
            pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream)
            return tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(hole_timeout=None))
        many = [run() for _ in range(200)]
        for assembler in many:
            assembler.assemble_capture(path, flush=False)
        used = len(os.listdir("/proc/self/fd"))
        assert used <= 5 + 8, used
        assert {assembler.stats.bytes_held for assembler in many} == {5000}
        last = run()
        capture = tcpreasm.open_capture(path)
        taken = []
        try:
            while True:
                taken.append(os.open(path, os.O_RDONLY))
        except OSError:
            pass
        last.assemble_capture(capture, flush=False)
        for assembler in [*many, last]:
            assert assembler.flush_all() == 1
            stats = assembler.stats
            assert (stats.bytes_delivered, stats.bytes_skipped, stats.pages_used) == (5000, 100, 0)
        for number in taken:
            os.close(number)
        print(len(os.listdir("/proc/self/fd")))
        """
    assert int(in_a_child(script, str(tmp_path / "capture"))) <= 5


def test_memory_that_waiting_takes(tmp_path: Path) -> None:
    """A file of a hundred megabytes, and all of it waits for the first byte."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer keeps what was freed: what a process holds at most says nothing under it")
    path = tmp_path / "capture"
    size = 60_000
    head = bytearray(capture_of([Captured(START_NS, frame(2, bytes(size)), 54 + size)])[24 : 24 + 16 + 54])
    with path.open("wb") as file:
        file.write(capture_of([Captured(START_NS, frame(0, b"", SYN), 54)]))
        for nth in range(1700):
            head[16 + 38 : 16 + 42] = (2 + nth * size).to_bytes(4, "big")
            file.write(head)
            file.seek(size, os.SEEK_CUR)  # zeros that take no room
        file.truncate()
    script = """
        tcpreasm = load("compiled")
        class Stream:
            def __init__(self, *flows): pass
            def reassembled(self, pieces): pass
            def reassembly_complete(self): pass
        factory = {"counted": tcpreasm.ByteCountStream, "spans": lambda *flows: tcpreasm.SpanStream(*flows)}.get(sys.argv[2], Stream)
        unlimited = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0}
        options = tcpreasm.AssemblerOptions(hole_timeout=None, max_gap=None, **unlimited)
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), options)
        def high():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        import numpy
        before = high()
        assembler.assemble_capture(sys.argv[1], flush=False)
        assert assembler.stats.bytes_held == 102_000_000
        assembler.flush_all()
        assert assembler.stats.bytes_delivered == 102_000_000
        print(high() - before)
        """
    copied, counted, spans = (int(in_a_child(script, str(path), kind)) for kind in ("python", "counted", "spans"))
    assert copied > 100_000
    assert max(counted, spans) < copied / 4


# -- limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["path", "bytes"])
@pytest.mark.parametrize("kind", ["counted", "SpanStream", "BytesStream"])
def test_limits_count_what_stays_in_the_capture(tcpreasm: ModuleType, tmp_path: Path, kind: str, source: str) -> None:
    """Two pages of the one connection, and with the second one's third page the limit in all is reached."""
    for options in ({"max_buffered_pages_total": 5}, {"max_buffered_pages_per_connection": 5}):
        run = Run(tcpreasm, kind, tmp_path, hole_timeout=None, **options)
        frames = held(data=TEXT[:3800])
        ends = number(1) if "max_buffered_pages_total" in options else None
        for seq, flags, data in ((0, SYN, b""), (8001, ACK, TEXT[:3800]), (16_001, ACK, TEXT[:100])):
            one = frame(seq, data, flags, ends=ends) if ends else frame(seq, data, flags)
            frames.append(Captured(START_NS + 2, one, len(one)))
        run.assembler.assemble_capture(SOURCES[source](tmp_path, frames[:-1]), flush=False)
        stats = run.assembler.stats
        assert (stats.pages_used, stats.bytes_held, stats.bytes_delivered, stats.bytes_skipped) == (4, 7600, 0, 0)
        run.assembler.assemble_capture(SOURCES[source](tmp_path, frames[-1:]), flush=False)
        stats = run.assembler.stats
        if ends:
            assert (stats.pages_used, stats.bytes_held, stats.bytes_delivered, stats.bytes_skipped) == (3, 3900, 3800, 8000)
        else:
            assert (stats.pages_used, stats.bytes_held, stats.bytes_delivered, stats.bytes_skipped) == (3, 3900, 3800, 100)
        run.over()
        assert run.assembler.stats.page_requests == 5


# -- several assemblers, exceptions, flushes in between ---------------------------------------------------------------------


@pytest.mark.parametrize("source", ["path", "bytes"])
@pytest.mark.parametrize("kind", ["counted", "mixed"])
def test_another_assembler_gives_out_what_one_holds(both: Both, tmp_path: Path, kind: str, source: str) -> None:
    """Which may be gone by then, with its capture."""
    first, second = halves(2)
    for gone in (False, True):
        results = []
        for package in both:
            run = Run(package, kind, tmp_path, hole_timeout=None)
            run.assembler.assemble_capture(SOURCES[source](tmp_path, first), flush=False)
            if source == "path":
                (tmp_path / "capture").unlink()
            kept = [] if gone else [run.assembler]
            del run.assembler
            other = run.assembler = package.Assembler(run.pool, package.AssemblerOptions(hole_timeout=None))
            run.frames(second)
            other.flush_all()
            results.append((run.made.told(), run.state(("bytes_held", "pages_used"))))
            assert other.stats.connections == 0
            assert [assembler.stats.pages_used for assembler in kept] == [0] * len(kept)
        assert results[0] == results[1]
        assert descriptors(tmp_path / "capture") == 0


def by_file(folder: Path) -> Callable[[Any, list[Captured], bool], None]:
    def feed(assembler: Any, frames: list[Captured], coalesce: bool) -> None:
        for nth, part in enumerate(split(frames, 3)):
            path = written(folder / f"part {nth}", capture_of(part))
            assembler.assemble_capture(path, flush=False, coalesce=coalesce)
            path.unlink()

    return feed


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("kind", ["counted", "ByteCountStream", "BytesStream", "DigestStream", "SpanStream"])
def test_a_file_memory_and_a_batch_at_once_over_one_pool(tcpreasm: ModuleType, tmp_path: Path, kind: str, coalesce: bool) -> None:
    texts, frames = shares(1000 if tcpreasm.implementation == "compiled" else 100, 6)
    factory = Native(getattr(tcpreasm, "ByteCountStream" if kind == "counted" else kind))
    pool = tcpreasm.StreamPool(tcpreasm.ByteCountStream if kind == "counted" else factory)
    assemblers = [tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(**WAIT)) for _ in range(SHARES)]
    ways = [by_file(tmp_path), by_capture, by_batch]

    def work(share: int) -> Callable[[], None]:
        return lambda: ways[share](assemblers[share], frames[share], coalesce)

    together(*map(work, range(SHARES)), deadline=60)
    together(assemblers[-1].flush_all)
    check_counters(pool, assemblers, texts, frames)
    assert descriptors(tmp_path) == 0
    for key, stream in factory.streams:
        assert (stream.length, stream.skipped, stream.complete) == (len(texts[key]), 0, True)
        if kind == "BytesStream":
            assert stream.data == texts[key]
        elif kind == "DigestStream":
            assert stream.digest() == hashlib.sha256(texts[key]).digest()


@contextmanager
def noting(errors: list[int], run: Run) -> Iterator[None]:
    try:
        yield
    except Told:
        errors.append(run.assembler.stats.frames)


@pytest.mark.parametrize("source", ["path", "bytes", "pcapng"])
@pytest.mark.parametrize("raises", [0, 1, 2])
def test_exceptions_and_flushes_in_the_middle(both: Both, tmp_path: Path, source: str, raises: int) -> None:
    """A few records at a time, with what is held flushed now and then, and a stream among the others that raises."""
    for seed in range(3):
        results = []
        for package in both:
            rng = random.Random(seed)
            run = Run(package, "mixed", tmp_path, hole_timeout=None)
            run.made.raises = raises
            errors: list[int] = []
            with package.open_capture(SOURCES[source](tmp_path, early(seed))) as capture:
                while not capture.complete:
                    with noting(errors, run):
                        run.assembler.assemble_records(capture.records, rng.choice([1, 7, 50]))
                    if rng.random() < 0.3:
                        with noting(errors, run):
                            run.assembler.flush_older_than((run.assembler.now_ns() - rng.choice([0, NS // 50])) / NS)
            del capture
            run.made.raises = 0
            run.over()
            results.append((run.made.told(), run.state(), errors))
            assert bool(errors) == bool(raises)
        assert results[0] == results[1]
        assert descriptors(tmp_path / "capture") == 0


@pytest.mark.parametrize("source", ["path", "bytes"])
def test_a_callback_flushes_what_the_assembler_at_work_holds(both: Both, tmp_path: Path, source: str) -> None:
    """By another assembler of the pool, in the middle of the capture."""
    results = []
    for package in both:
        run = Run(package, "mixed", tmp_path, hole_timeout=None)
        other = package.Assembler(run.pool)
        flushed: list[tuple[int, int]] = []

        def flush(run: Run = run, other: Any = other, flushed: list[tuple[int, int]] = flushed) -> None:
            run.made.also = None  # what it leads to calls back, too
            flushed.append(other.flush_older_than(START_NS / NS + 0.2))
            run.made.also = flush

        run.made.also = flush
        run.assembler.assemble_capture(SOURCES[source](tmp_path, early(1)), flush=False)
        run.made.also = None
        other.flush_all()
        assert sum(count for count, _ in flushed) > 3
        results.append((run.made.told(), run.state(("bytes_held", "pages_used")), flushed, other.stats.bytes_delivered))
    assert results[0] == results[1]
    assert descriptors(tmp_path) == 0
