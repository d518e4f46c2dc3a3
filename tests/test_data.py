"""The captures in tests/data against what the applications wrote when they were made, on both cores.

Not here: the corpus, which is many times larger and not part of the repository.
"""

from __future__ import annotations

import hashlib
import json
from types import ModuleType
from typing import Any

import pytest
from conftest import DATA

TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())
FILES = sorted(TRUTH)
Told = tuple[str, str, int, str, list[list[int]]]


class Recorder:
    """A stream that keeps what it is given."""

    def __init__(self, net_flow: Any, transport_flow: Any) -> None:
        self.ends = f"{net_flow.src} {transport_flow.src}", f"{net_flow.dst} {transport_flow.dst}"
        self.data = bytearray()
        self.length = 0
        self.gaps: list[list[int]] = []
        self.completed = 0

    def reassembled(self, reassemblies: list[Any]) -> None:
        assert not self.completed
        for piece in reassemblies:
            if piece.skip:
                assert piece.skip > 0, "the start of every connection was captured"
                self.gaps.append([self.length, piece.skip])
                self.length += piece.skip
            self.data += piece.bytes
            self.length += len(piece)

    def reassembly_complete(self) -> None:
        self.completed += 1

    def told(self) -> Told:
        return (*self.ends, self.length, hashlib.sha256(self.data).hexdigest(), self.gaps)


def reassemble(tcpreasm: ModuleType, source: object) -> tuple[list[Recorder], Any, Any]:
    """All streams of a capture, the summary, and the counters."""
    streams: list[Recorder] = []

    def factory(net_flow: Any, transport_flow: Any) -> Recorder:
        streams.append(Recorder(net_flow, transport_flow))
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        summary = assembler.assemble_capture(source)
        stats = assembler.stats
    return streams, summary, stats


def expected(file: str) -> list[Told]:
    told: list[Told] = []
    for connection in TRUTH[file]["connections"]:
        client, server = (f"{address} {port}" for address, port in (connection["client"], connection["server"]))
        for src, dst, name in ((client, server, "c2s"), (server, client, "s2c")):
            truth = connection[name]
            told.append((src, dst, truth["len"], truth["sha256"], truth.get("gaps", [])))
    return told


@pytest.mark.parametrize("file", FILES)
def test_every_direction_gives_what_was_written(tcpreasm: ModuleType, file: str) -> None:
    streams, summary, _ = reassemble(tcpreasm, DATA / file)
    # Of a direction without a byte it does not matter whether there was a stream.
    assert sorted(stream.told() for stream in streams if stream.length) == sorted(told for told in expected(file) if told[2])
    assert [stream.completed for stream in streams] == [1] * len(streams)
    assert summary.packets == summary.segments == TRUTH[file]["packets"]
    assert summary.complete


@pytest.mark.parametrize("file", FILES)
def test_every_byte_is_accounted_for(tcpreasm: ModuleType, file: str) -> None:
    streams, summary, _ = reassemble(tcpreasm, DATA / file)
    assert summary.bytes_delivered == sum(len(stream.data) for stream in streams)
    assert summary.bytes_skipped == sum(length for stream in streams for _, length in stream.gaps)


def test_a_path_a_text_a_file_and_bytes_are_the_same_source(tcpreasm: ModuleType) -> None:
    path = DATA / "http.pcap"
    by_path = [stream.told() for stream in reassemble(tcpreasm, path)[0]]
    assert [stream.told() for stream in reassemble(tcpreasm, str(path))[0]] == by_path
    assert [stream.told() for stream in reassemble(tcpreasm, path.read_bytes())[0]] == by_path
    with path.open("rb") as file:
        assert [stream.told() for stream in reassemble(tcpreasm, file)[0]] == by_path


def test_both_cores_call_alike(both: tuple[ModuleType, ModuleType]) -> None:
    for file in FILES:
        calls = []
        for package in both:
            streams, _, stats = reassemble(package, DATA / file)
            calls.append(([stream.told() for stream in streams], {verdict.name: count for verdict, count in stats.verdicts.items()}))
        assert calls[0] == calls[1], file


def test_the_files_are_small_and_told_of() -> None:
    captures = {path.name for path in DATA.iterdir() if ".pcap" in path.name}
    assert captures == set(TRUTH)
    assert [path.name for path in DATA.iterdir() if path.is_file() and path.stat().st_size > 60_000] == []


def test_the_truth_tells_the_http_exchanges() -> None:
    for file in ("http.pcap", "http6.pcapng"):
        connections = TRUTH[file]["connections"]
        assert [len(connection["exchanges"]) for connection in connections] == [5, 3, 1]
