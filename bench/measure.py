"""One process, one measurement, one line of JSON; and what runs such processes and checks their totals.

    python -m bench.measure WAY CAPTURE.pcap [--core compiled|pure]

Lives here: the ways of use of tcpreasm that are measured. A way does what a user would write; the clock runs from opening the capture
to the last stream's end, with the capture in the page cache. Not here: which are measured, how often, and how it is shown (run, compare).

A module that a measuring process imports is memory that it is blamed for: this one imports the standard library only.
"""

from __future__ import annotations

import argparse
import inspect
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .captures import Capture

__all__ = [
    "TOGETHER",
    "WAYS",
    "Job",
    "Measurement",
    "Missing",
    "Totals",
    "Way",
    "WrongTotals",
    "check",
    "peak_rss",
    "read_once",
    "run_process",
    "run_way",
]

REPOSITORY = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """Something that this revision, or this machine, does not have."""


class WrongTotals(Exception):
    """What came out is not what the capture holds: a measurement of nothing."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one process found. None: not known there."""

    name: str
    """The way of use, or the peer."""
    workload: str
    ns_per_packet: float
    packets: int | None = None
    bytes_delivered: int | None = None
    bytes_skipped: int | None = None
    streams: int | None = None
    digest_sum: str | None = None
    """As `Capture.digest_sum`."""
    peak_rss: int | None = None
    """Bytes: the most memory that the process ever had resident, with its interpreter and libraries."""

    def line(self) -> str:
        """As JSON, without what is None."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None})


def check(measurement: Measurement, capture: Capture) -> None:
    """WrongTotals where a number that the measurement knows is not the capture's."""
    expected = {
        "packets": capture.packets,
        "bytes_delivered": capture.bytes_present,
        "bytes_skipped": capture.bytes_skipped,
        "streams": 2 * capture.connections,
        "digest_sum": capture.digest_sum,
    }
    for name, value in expected.items():
        found = getattr(measurement, name)
        if found is not None and found != value:
            raise WrongTotals(f"{measurement.name} over {capture.name}: {name} is {found}, and the capture holds {value}")


# -- ways of use ----------------------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """What a way of use took, and what came out."""

    elapsed_ns: int
    packets: int | None
    bytes_delivered: int | None = None
    bytes_skipped: int | None = None
    streams: int | None = None
    digest_sum: str | None = None


@dataclass(frozen=True)
class Job:
    """What a way of use is given: the package, on whichever core, and a capture."""

    tcpreasm: ModuleType
    path: Path

    @property
    def options(self) -> Any:
        """The defaults, but for the captures that hold back more than those allow."""
        limits = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0} if self.path.stem.startswith("ooo-") else {}
        return self.tcpreasm.AssemblerOptions(**limits)

    def need(self, name: str) -> Any:
        """A public name of the package. Missing where this revision has none."""
        if not hasattr(self.tcpreasm, name):
            raise Missing(f"no {name}")
        return getattr(self.tcpreasm, name)

    def assemble(self, factory: Any, source: Any = None, **keywords: Any) -> Totals:
        """assemble_capture into a StreamPool, from the file unless there is another source."""
        return self.assemble_into(lambda: self.tcpreasm.StreamPool(factory), source, **keywords)

    def assemble_into(self, make_pool: Callable[[], Any], source: Any = None, **keywords: Any) -> Totals:
        """The same into any pool."""
        tcpreasm, options = self.tcpreasm, self.options
        known = inspect.signature(tcpreasm.Assembler.assemble_capture).parameters
        for keyword in keywords:
            if keyword not in known:
                raise Missing(f"no {keyword}=")
        begin = perf_counter_ns()
        with tcpreasm.Assembler(make_pool(), options) as assembler:
            summary = assembler.assemble_capture(str(self.path) if source is None else source, **keywords)
        elapsed = perf_counter_ns() - begin
        return Totals(elapsed, summary.packets, summary.bytes_delivered, summary.bytes_skipped, summary.streams)

    def assemble_frames(self, factory: Any) -> Totals:
        """assemble_frame, called from a loop over frames that are in memory."""
        tcpreasm = self.tcpreasm
        with tcpreasm.open_capture(str(self.path)) as capture:
            frames = [(frame.data, frame.timestamp_ns) for frame in capture]
        begin = perf_counter_ns()
        with tcpreasm.Assembler(tcpreasm.StreamPool(factory), self.options) as assembler:
            assemble_frame = assembler.assemble_frame
            for data, timestamp_ns in frames:
                assemble_frame(data, timestamp_ns=timestamp_ns)
            assembler.flush_all()
            elapsed = perf_counter_ns() - begin
            stats = assembler.stats
        return Totals(elapsed, stats.frames, stats.bytes_delivered, stats.bytes_skipped, stats.streams_opened)


class PythonStreams:
    """A factory of streams in plain Python, that count bytes and gaps, as a user would write them."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []  # of bytes and missing ones, one of each finished stream

    def new(self, net_flow: Any, transport_flow: Any) -> _PythonStream:
        return _PythonStream(self)

    def totals(self, totals: Totals) -> Totals:
        """With the streams' own counts."""
        delivered, skipped = (sum(column) for column in zip(*self.counts)) if self.counts else (0, 0)
        return totals._replace(bytes_delivered=delivered, bytes_skipped=skipped, streams=len(self.counts))


class _PythonStream:
    __slots__ = ("length", "skipped", "streams")

    def __init__(self, streams: PythonStreams) -> None:
        self.streams = streams
        self.length = 0
        self.skipped = 0

    def reassembled(self, reassemblies: list[Any]) -> None:
        for piece in reassemblies:
            self.length += len(piece)
            if piece.skip > 0:
                self.skipped += piece.skip

    def reassembly_complete(self) -> None:
        self.streams.counts.append((self.length, self.skipped))


class _PythonHandler:
    """Of a conversation: does for each side what such a stream does."""

    __slots__ = ("client", "length_back", "length_there", "skipped_back", "skipped_there", "streams")

    def __init__(self, streams: PythonStreams, conversation: Any) -> None:
        self.streams = streams
        self.client = conversation.client
        self.length_there = self.length_back = self.skipped_there = self.skipped_back = 0

    def reassembled(self, side: Any, reassemblies: list[Any]) -> None:
        if side is self.client:
            for piece in reassemblies:
                self.length_there += len(piece)
                if piece.skip > 0:
                    self.skipped_there += piece.skip
        else:
            for piece in reassemblies:
                self.length_back += len(piece)
                if piece.skip > 0:
                    self.skipped_back += piece.skip

    def conversation_complete(self) -> None:
        self.streams.counts += ((self.length_there, self.skipped_there), (self.length_back, self.skipped_back))


class Kept:
    """A factory that keeps the streams that it makes."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.streams: list[Any] = []

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        stream = self.make(net_flow, transport_flow)
        self.streams.append(stream)
        return stream


class Way(NamedTuple):
    """A way of use."""

    name: str
    text: str
    run: Callable[[Job], Totals]


WAYS: dict[str, Way] = {}
TOGETHER = (
    *("count-made", "conversations-count", "collect-memory", "conversations-collect", "python-memory", "conversations-python"),
    *("follow", "conversations"),
)
"""Both directions together, each behind what it is to be compared with: the same done to each direction by itself."""


def way(text: str) -> Callable[[Callable[[Job], Totals]], Callable[[Job], Totals]]:
    """Enters a function among the ways of use, under its name."""

    def enter(function: Callable[[Job], Totals]) -> Callable[[Job], Totals]:
        name = function.__name__.replace("_", "-")
        WAYS[name] = Way(name, text, function)
        return function

    return enter


@way("counting streams, from the file, one thread")
def count(job: Job) -> Totals:
    return job.assemble(job.tcpreasm.ByteCountStream)


@way("counting streams, from the file, two threads")
def count_threads(job: Job) -> Totals:
    return job.assemble(job.tcpreasm.ByteCountStream, threads=2)


@way("counting streams, the capture in memory")
def count_memory(job: Job) -> Totals:
    return job.assemble(job.tcpreasm.ByteCountStream, job.path.read_bytes())


@way("counting streams, the file mapped into memory")
def count_mapped(job: Job) -> Totals:
    with job.path.open("rb") as file:
        begin = perf_counter_ns()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            totals = job.assemble(job.tcpreasm.ByteCountStream, mapped)
        return totals._replace(elapsed_ns=perf_counter_ns() - begin)


@way("counting streams, assemble_batch over all frames in one buffer")
def count_batch(job: Job) -> Totals:
    import numpy as np

    tcpreasm = job.tcpreasm
    if not hasattr(tcpreasm.Assembler, "assemble_batch"):
        raise Missing("no assemble_batch")
    data = job.path.read_bytes()
    places, lengths, times = [], [], []
    at = 24
    view = memoryview(data)
    while at < len(data):
        seconds, microseconds, length, _ = view[at : at + 16].cast("I")
        places.append(at + 16)
        lengths.append(length)
        times.append(seconds * 1_000_000_000 + microseconds * 1000)
        at += 16 + length
    columns = [np.array(column, np.int64) for column in (places, lengths, times)]
    del places, lengths, times
    begin = perf_counter_ns()
    with tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), job.options) as assembler:
        assembler.assemble_batch(data, *columns)
        assembler.flush_all()
        elapsed = perf_counter_ns() - begin
        stats = assembler.stats
    return Totals(elapsed, stats.frames, stats.bytes_delivered, stats.bytes_skipped, stats.streams_opened)


@way("streams in Python, called once a packet, from the file")
def python(job: Job) -> Totals:
    streams = PythonStreams()
    return streams.totals(job.assemble(streams))


@way("streams in Python, coalesce=True, from the file")
def python_coalesced(job: Job) -> Totals:
    streams = PythonStreams()
    return streams.totals(job.assemble(streams, coalesce=True))


@way("streams in Python, from the file, two threads")
def python_threads(job: Job) -> Totals:
    streams = PythonStreams()
    return streams.totals(job.assemble(streams, threads=2))


@way("streams in Python, the capture in memory")
def python_memory(job: Job) -> Totals:
    streams = PythonStreams()
    return streams.totals(job.assemble(streams, job.path.read_bytes()))


@way("conversations, a handler in Python, the capture in memory")
def conversations_python(job: Job) -> Totals:
    make_pool = job.need("ConversationPool")
    streams = PythonStreams()
    return streams.totals(job.assemble_into(lambda: make_pool(partial(_PythonHandler, streams)), job.path.read_bytes()))


@way("counting streams, assemble_frame from a Python loop")
def frames(job: Job) -> Totals:
    return job.assemble_frames(job.tcpreasm.ByteCountStream)


@way("streams in Python, assemble_frame from a Python loop")
def frames_python(job: Job) -> Totals:
    streams = PythonStreams()
    return streams.totals(job.assemble_frames(streams))


@way("all bytes in memory (BytesStream)")
def collect(job: Job) -> Totals:
    streams = Kept(job.tcpreasm.BytesStream)
    totals = job.assemble(streams)
    return totals._replace(bytes_delivered=sum(len(stream.data) for stream in streams.streams))


@way("all bytes in memory (BytesStream), the capture too")
def collect_memory(job: Job) -> Totals:
    return _collected(job, lambda keep: job.tcpreasm.StreamPool(keep))


@way("conversations, all bytes of both sides in memory (BytesStream), the capture too")
def conversations_collect(job: Job) -> Totals:
    make_pool = job.need("ConversationPool")
    return _collected(job, lambda keep: make_pool(streams=lambda side: keep(side.net_flow, side.transport_flow)))


def _collected(job: Job, make_pool: Callable[[Callable[..., Any]], Any]) -> Totals:
    streams = Kept(job.tcpreasm.BytesStream)
    totals = job.assemble_into(lambda: make_pool(streams.new), job.path.read_bytes())
    return totals._replace(bytes_delivered=sum(len(stream.data) for stream in streams.streams))


@way("conversations, counting streams for both sides, the capture in memory")
def conversations_count(job: Job) -> Totals:
    make_pool = job.need("ConversationPool")
    count = job.tcpreasm.ByteCountStream
    return job.assemble_into(lambda: make_pool(streams=lambda side: count(side.net_flow, side.transport_flow)), job.path.read_bytes())


@way("counting streams, made one by one, the capture in memory")
def count_made(job: Job) -> Totals:
    count = job.tcpreasm.ByteCountStream
    return job.assemble(lambda net_flow, transport_flow: count(net_flow, transport_flow), job.path.read_bytes())


@way("a file for each stream (FileStream)")
def write_files(job: Job) -> Totals:
    tcpreasm = job.tcpreasm
    with tempfile.TemporaryDirectory(prefix="tcpreasm-bench-") as folder:
        number = iter(range(1 << 62))

        def factory(net_flow: Any, transport_flow: Any) -> Any:
            return tcpreasm.FileStream(net_flow, transport_flow, path=f"{folder}/{next(number)}", pool=pool)

        begin = perf_counter_ns()
        with tcpreasm.FilePool() as pool:
            totals = job.assemble(factory)
        elapsed = perf_counter_ns() - begin
        written = sum(entry.stat().st_size for entry in os.scandir(folder))
    return totals._replace(elapsed_ns=elapsed, bytes_delivered=written)


@way("SHA-256 of each stream (DigestStream)")
def digest(job: Job) -> Totals:
    streams = Kept(job.need("DigestStream"))
    totals = job.assemble(streams)
    whole = sum(int.from_bytes(stream.digest()[:8], "big") for stream in streams.streams if stream.length)
    return totals._replace(digest_sum=f"{whole % 2**64:016x}")


@way("where each stream's bytes lie in the file (SpanStream)")
def spans(job: Job) -> Totals:
    streams = Kept(job.need("SpanStream"))
    totals = job.assemble(streams)
    tables = [stream.spans for stream in streams.streams]
    skipped = sum(int(rows["skip"][rows["skip"] > 0].sum()) for rows in tables)
    return totals._replace(bytes_delivered=sum(int(rows["length"].sum()) for rows in tables), bytes_skipped=skipped)


@way("flows and gaps as tables (flow_table)")
def tables(job: Job) -> Totals:
    flow_table = job.need("flow_table")
    begin = perf_counter_ns()
    table = flow_table(str(job.path), job.options)
    elapsed = perf_counter_ns() - begin
    return Totals(elapsed, None, int(table.flows["bytes"].sum()), int(table.gaps["length"].sum()), len(table.flows))


@way("finished streams, one after the other (follow)")
def follow(job: Job) -> Totals:
    begin = perf_counter_ns()
    delivered = skipped = streams = 0
    for stream in job.tcpreasm.follow(str(job.path), job.options):
        delivered += len(stream.data)
        skipped += stream.missing
        streams += 1
    return Totals(perf_counter_ns() - begin, None, delivered, skipped, streams)


@way("finished conversations, one after the other (conversations)")
def conversations(job: Job) -> Totals:
    make = job.need("conversations")
    begin = perf_counter_ns()
    delivered = skipped = streams = 0
    for conversation in make(str(job.path), job.options):
        for side in (conversation.client, conversation.server):
            delivered += len(side.data)
            skipped += side.missing
            streams += 1
    return Totals(perf_counter_ns() - begin, None, delivered, skipped, streams)


@way("finished streams on asyncio (aio.follow)")
def follow_asyncio(job: Job) -> Totals:
    import asyncio

    aio = job.need("aio")

    async def main() -> Totals:
        begin = perf_counter_ns()
        delivered = skipped = streams = 0
        async for stream in aio.follow(str(job.path), job.options):
            delivered += len(stream.data)
            skipped += stream.missing
            streams += 1
        return Totals(perf_counter_ns() - begin, None, delivered, skipped, streams)

    return asyncio.run(main())


@way("a reader for each stream on asyncio (aio.readers), each in a task of its own")
def readers_asyncio(job: Job) -> Totals:
    import asyncio

    aio = job.need("aio")
    lengths: list[int] = []
    skipped: list[int] = []

    async def read(reader: Any) -> None:
        length = 0
        while part := await reader.read(1 << 16):
            length += len(part)
        lengths.append(length)
        skipped.append(reader.counts.skipped)

    async def main() -> int:
        begin = perf_counter_ns()
        tasks: set[asyncio.Task[None]] = set()
        async for reader in aio.readers(str(job.path), job.options):
            task = asyncio.create_task(read(reader))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return perf_counter_ns() - begin

    elapsed = asyncio.run(main())
    return Totals(elapsed, None, sum(lengths), sum(skipped), len(lengths))


@way("frames as Python objects, nothing else (open_capture)")
def read_frames(job: Job) -> Totals:
    packets = 0
    begin = perf_counter_ns()
    with job.tcpreasm.open_capture(str(job.path)) as capture:
        for _ in capture:
            packets += 1
    return Totals(perf_counter_ns() - begin, packets)


@way("the command: tcpreasm extract, the whole process")
def extract(job: Job) -> Totals:
    with tempfile.TemporaryDirectory(prefix="tcpreasm-bench-") as folder:
        begin = perf_counter_ns()
        subprocess.run(
            [sys.executable, "-m", "tcpreasm", "extract", job.path, "-o", folder, "--quiet"], check=True, stdout=subprocess.DEVNULL
        )
        elapsed = perf_counter_ns() - begin
        written = sum(entry.stat().st_size for entry in os.scandir(folder))
    return Totals(elapsed, None, written)


# -- processes ------------------------------------------------------------------------------------------------------------


def read_once(path: Path) -> None:
    """Bring a file into the page cache, without holding it."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 18)
        while file.readinto(buffer):
            pass


def peak_rss() -> int:
    """The most memory that this process ever had resident, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Elsewhere. On Linux this one would also count what the parent had resident when it started this process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_way(name: str, path: Path, packets: int, core: str = "compiled", tree: Path = REPOSITORY) -> Measurement:
    """Measure a way of use in a process of its own. packets: how many the capture has, for ways that do not tell.

    core: which one of tcpreasm. tree: the checkout that it is taken from, built in place. Missing where that does not have it.
    """
    command = [sys.executable, "-m", "bench.measure", name, str(path), "--core", core, "--packets", str(packets)]
    return run_process(command, cwd=tree, env={**os.environ, "TCPREASM_IMPLEMENTATION": core})


def run_process(command: list[str], **keywords: Any) -> Measurement:
    """Run a command that prints one measurement. Missing where it says so; RuntimeError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        raise Missing(found["missing"])
    return Measurement(**found)


def import_ns() -> int:
    """What `import tcpreasm` takes in a fresh process that has imported numpy."""
    code = "import time, numpy; t = time.perf_counter_ns(); import tcpreasm; print(time.perf_counter_ns() - t)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.measure", description="One measurement, as one line of JSON.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--core", choices=("compiled", "pure"), default="compiled")
    parser.add_argument("--packets", type=int, help="that the capture has, for ways that do not tell")
    given = parser.parse_args()
    os.environ["TCPREASM_IMPLEMENTATION"] = given.core
    import tcpreasm

    tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream)).close()  # loads numpy: part of starting the process
    read_once(given.capture)
    name = given.way if given.core == "compiled" else f"{given.way} (pure)"
    try:
        totals = WAYS[given.way].run(Job(tcpreasm, given.capture))
    except Missing as missing:
        print(json.dumps({"missing": str(missing)}))
        return 0
    memory = None if given.way == "extract" else peak_rss()  # which runs in a process of its own
    results = totals._asdict()
    packets = totals.packets or given.packets
    if not packets:
        parser.error(f"{given.way} does not tell the number of packets: give it with --packets")
    per_packet = results.pop("elapsed_ns") / packets
    print(Measurement(name=name, workload=given.capture.stem, ns_per_packet=per_packet, peak_rss=memory, **results).line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
