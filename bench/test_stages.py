"""Each stage alone, as far as its front door is public: what one packet costs there."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from . import traffic
from .captures import Capture
from .measure import Job, PythonStreams

Measured = Callable[[Callable[[], Any], int], Any]
GetCapture = Callable[[str], Capture]
Frames = list[tuple[bytes, int]]


def frames_of(tcpreasm: ModuleType, path: Path) -> Frames:
    """Frames and their times."""
    with tcpreasm.open_capture(path) as capture:
        return [(frame.data, frame.timestamp_ns) for frame in capture]


def counting(tcpreasm: ModuleType, **options: Any) -> Any:
    """An Assembler over counting streams."""
    return tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), tcpreasm.AssemblerOptions(**options))


def feed(assembler: Any, frames: Frames) -> None:
    """assemble_frame on each."""
    assemble_frame = assembler.assemble_frame
    for data, timestamp_ns in frames:
        assemble_frame(data, timestamp_ns=timestamp_ns)


@pytest.mark.benchmark(group="1 reader")
@pytest.mark.parametrize("source", ["file", "memory", "gzip"])
@pytest.mark.parametrize("workload", ["bulk", "small"])
def test_read(tcpreasm: ModuleType, measured: Measured, get_capture: GetCapture, tmp_path: Path, workload: str, source: str) -> None:
    """The frames of a capture as Python objects."""
    capture = get_capture(workload)
    opened: Any = capture.path
    if source == "memory":
        opened = capture.path.read_bytes()
    elif source == "gzip":
        opened = tmp_path / "capture.pcap.gz"
        opened.write_bytes(gzip.compress(capture.path.read_bytes(), 1))

    def read() -> tuple[int, int]:
        packets = size = 0
        with tcpreasm.open_capture(opened) as records:
            for frame in records:
                packets += 1
                size += frame.wire_length
        return packets, size

    assert measured(read, capture.packets) == (capture.packets, capture.file_bytes - 24 - 16 * capture.packets)


@pytest.mark.benchmark(group="2 decode")
@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize("workload", ["bulk", "small"])
def test_decode(tcpreasm: ModuleType, measured: Measured, get_capture: GetCapture, workload: str, checksums: bool) -> None:
    """decode_frame: addresses, ports, flags, and where the payload lies."""
    capture = get_capture(workload)
    frames = [data for data, _ in frames_of(tcpreasm, capture.path)]
    decode_frame = tcpreasm._select.core.decode.decode_frame

    def decode() -> int:
        size = 0
        for frame in frames:
            _, segment = decode_frame(frame, 1, None, checksums)
            size += segment.payload_length
        return size

    assert measured(decode, capture.packets) == capture.payload_bytes


@pytest.mark.benchmark(group="3 look-up")
@pytest.mark.parametrize("count", [100, 10_000, 100_000])
def test_look_up(tcpreasm: ModuleType, measured: Measured, tmp_path: Path, count: int) -> None:
    """Bare ACKs, in random order, of so many open connections: decoded, found, and nothing else."""
    rng = np.random.default_rng(1)
    connections, trace = traffic.Connections(count, rng), traffic.Trace()
    acks = 20_000
    trace.add(np.zeros(count), np.arange(count), traffic.CLIENT, -1, 0, traffic.SYN)
    trace.add(np.ones(acks), rng.integers(0, count, acks), traffic.CLIENT)
    path = tmp_path / "acks.pcap"
    traffic.write_pcap(path, traffic.Traffic("", connections, trace.packets(), np.zeros((2, count), np.int64)))
    frames = frames_of(tcpreasm, path)
    with counting(tcpreasm) as assembler:
        feed(assembler, frames[:count])
        measured(lambda: feed(assembler, frames[count:]), acks)
        assert len(assembler.pool) == assembler.stats.streams_opened == count
        assert (assembler.stats.segments - count) % acks == 0


@pytest.mark.benchmark(group="4 in order")
@pytest.mark.parametrize("workload", ["bulk", "small"])
def test_in_order(tcpreasm: ModuleType, measured: Measured, get_capture: GetCapture, workload: str) -> None:
    """assemble_frame where every segment continues its stream."""
    capture = get_capture(workload)
    frames = frames_of(tcpreasm, capture.path)

    def assemble() -> tuple[int, int]:
        with counting(tcpreasm) as assembler:
            feed(assembler, frames)
            return assembler.stats.bytes_delivered, assembler.stats.pages_used

    assert measured(assemble, capture.packets) == (capture.bytes_present, 0)


@pytest.mark.benchmark(group="5 insertion")
@pytest.mark.parametrize("count", [1_000, 10_000])
@pytest.mark.parametrize("arrival", traffic.ARRIVALS)
def test_insert_pages(tcpreasm: ModuleType, measured: Measured, arrival: str, count: int) -> None:
    """The list of pages by itself: a place is found, the page linked there; then all are taken from the front."""
    seqs = (traffic.arrival_order(arrival, count, count, np.random.default_rng(1)) * 256).tolist()

    def insert() -> list[int]:
        cache, pages = tcpreasm.PageCache(count), tcpreasm.PageList()
        for seq in seqs:
            page = cache.take(0)
            page.seq = seq
            page.hold(b"x")
            prev, next_ = pages.find(seq)
            pages.push_between(prev, next_, page, page)
        popped = [pages.pop_first() for _ in range(count)]
        order = [page.seq for page in popped]
        for page in popped:
            cache.give_back(page)
        return order

    assert measured(insert, count) == list(range(0, count * 256, 256))


@pytest.mark.benchmark(group="5 insertion")
@pytest.mark.parametrize("window", ["1k", "10k"])
@pytest.mark.parametrize("arrival", traffic.ARRIVALS)
def test_insert_segments(tcpreasm: ModuleType, measured: Measured, get_capture: GetCapture, arrival: str, window: str) -> None:
    """assemble_frame where segments come out of order, with so many outstanding."""
    capture = get_capture(f"ooo-{arrival}-{window}")
    frames = frames_of(tcpreasm, capture.path)

    def assemble() -> tuple[int, int]:
        with counting(tcpreasm, max_buffered_pages_total=0, max_buffered_pages_per_connection=0) as assembler:
            feed(assembler, frames)
            return assembler.stats.bytes_delivered, assembler.stats.bytes_skipped

    assert measured(assemble, capture.packets) == (capture.bytes_present, 0)


@pytest.mark.benchmark(group="5 insertion")
@pytest.mark.parametrize("count", [1_000, 10_000, 100_000])
@pytest.mark.parametrize("arrival", ["reverse", "random", "islands"])
def test_insert_bytes(tcpreasm: ModuleType, measured: Measured, tmp_path: Path, arrival: str, count: int) -> None:
    """A capture in memory of segments of one byte, all held until the first byte comes as the last one; islands stay for themselves, with a
    hole between any two. What a packet costs may grow as the logarithm of their number."""
    rng = np.random.default_rng(1)
    connections, trace = traffic.Connections(1, rng), traffic.Trace()
    offsets = 1 + traffic.arrival_order(arrival.replace("islands", "random"), count, count, rng)
    if arrival == "islands":
        offsets *= 2
    trace.handshake(np.zeros(1, np.int64), np.zeros(1), np.full(1, 1e-3))
    trace.add(0.01 + np.arange(count) * 1e-6, 0, traffic.CLIENT, offsets, 0, traffic.ACK, 1)
    trace.add(np.ones(1), 0, traffic.CLIENT, 0, 0, traffic.ACK, 1)
    path = tmp_path / "bytes.pcap"
    traffic.write_pcap(path, traffic.Traffic("", connections, trace.packets(), np.zeros((2, 1), np.int64)))
    data = path.read_bytes()
    no_limits = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0, "max_buffered_bytes_total": None}

    def assemble() -> tuple[int, int]:
        with counting(tcpreasm, **no_limits) as assembler:
            assembler.assemble_capture(data)
            return assembler.stats.bytes_delivered, assembler.stats.bytes_skipped

    assert measured(assemble, count + 1) == (count + 1, count if arrival == "islands" else 0)


@pytest.mark.benchmark(group="5 insertion")
@pytest.mark.parametrize("islands", [1_000, 8_000, 32_000])
def test_repeat_over_islands(tcpreasm: ModuleType, measured: Measured, islands: int) -> None:
    """A long segment, again and again, over as many islands of one byte and what it filled between them."""
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")
    order = 2 + 2 * np.random.default_rng(1).permutation(islands)
    long = tcpreasm.TCPSegment(1234, 80, 2, bytes(2 * islands))
    times = 100 if tcpreasm.implementation == "compiled" else 2
    with counting(tcpreasm, max_buffered_pages_per_connection=0) as assembler:
        assembler.assemble(flow, tcpreasm.TCPSegment(1234, 80, 0, syn=True), 0)
        for seq in order.tolist():
            assembler.assemble(flow, tcpreasm.TCPSegment(1234, 80, seq, b"\0"), 0)
        assembler.assemble(flow, long, 0)

        def repeat() -> int:
            for _ in range(times):
                assembler.assemble(flow, long, 0)
            return int(assembler.stats.pages_used)

        assert measured(repeat, times) == 2 * islands
        assert assembler.stats.conflicting == 0


class Reader(PythonStreams):
    """Streams in Python that look at the bytes in one of the ways there are."""

    def __init__(self, look: Callable[[Any], int]) -> None:
        super().__init__()
        self.look = look
        self.size = 0

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        return self

    def reassembled(self, reassemblies: list[Any]) -> None:
        for piece in reassemblies:
            self.size += self.look(piece)

    def reassembly_complete(self) -> None:
        pass


@pytest.mark.benchmark(group="6 delivery")
@pytest.mark.parametrize(
    "look", [len, lambda piece: len(piece.bytes), lambda piece: memoryview(piece).nbytes], ids=["len", "bytes", "memoryview"]
)
@pytest.mark.parametrize("workload", ["bulk", "small"])
def test_deliver(
    tcpreasm: ModuleType, measured: Measured, get_capture: GetCapture, job: Callable[[Path], Job], workload: str, look: Callable[[Any], int]
) -> None:
    """A Python stream that is called for each packet of a capture in memory, and takes its length, its bytes or a view of them."""
    capture = get_capture(workload)
    data = capture.path.read_bytes()

    def assemble() -> tuple[int, int]:
        reader = Reader(look)
        return job(capture.path).assemble(reader, data).bytes_delivered or 0, reader.size

    assert measured(assemble, capture.packets) == (capture.bytes_present, capture.bytes_present)
