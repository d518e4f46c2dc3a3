"""Captures of real Linux TCP against the bytes that the applications wrote, on both cores and through every way in.

Not here: the same traffic changed by a program (test_corpus_perturbed), captures of other people (test_corpus_real).
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from conftest import load
from corpus_runs import (
    Ends,
    Gaps,
    Run,
    Told,
    assembled,
    check_three_ways,
    expected_files,
    extracted,
    opened_in_sight,
    segments,
    sha256,
    told,
)

WHOLE = (
    "edge/edge.pcap",
    "http_python_v4_v6/http_python_v4_v6.pcap",
    "ipfrag/ipfrag_atA.pcap",
    "ipfrag/ipfrag_atB.pcap",
    "linktypes/any_sll.pcap",
    "linktypes/any_sll2.pcap",
    "linktypes/nano_ns.pcap",
    "lossy_3pct/lossy_3pct_atB.pcap",
    "mptcp/mptcp.pcap",
    "vxlan/vxlan_inner.pcap",
    "vxlan/vxlan_outer.pcap",
)
SNAP96, SNAP96_WHOLE = "linktypes/snap96.pcap", "linktypes/nano_ns.pcap"  # captured side by side, one of them cut
FRAGMENTS = {"ipfrag/ipfrag_atB.pcap": 2047}  # each full segment comes as three
NOT_TCP = {"vxlan/vxlan_outer.pcap": 11}  # ARP and ICMPv6 in the tunnel
NO_STREAM_IN_TRUTH = {"edge/edge.pcap": {(("10.99.0.1", 51890), ("10.99.0.2", 9099)): "the SYN of a connection that was refused"}}


class Written(NamedTuple):
    """What one side's application wrote on one connection."""

    length: int
    sha256: str


def truth(corpus: Path, name: str) -> dict[Ends, list[Written]]:
    """By who sent and who received, one connection after the other."""
    connections: list[dict[str, Any]] = json.loads((corpus / "kernel" / name).with_name("truth.json").read_text())["connections"]
    written: dict[Ends, list[Written]] = defaultdict(list)
    for connection in sorted(connections, key=lambda connection: connection.get("order", 0)):
        client, server = tuple(connection["client"]), tuple(connection["server"])
        for ends, side in (((client, server), "c2s"), ((server, client), "s2c")):
            written[ends].append(Written(connection[side]["len"], connection[side]["sha256"]))
    return written


def streams_by_ends(run: Run) -> dict[Ends, list[Told]]:
    streams: dict[Ends, list[Told]] = defaultdict(list)
    for stream in run.opened:
        streams[stream.ends].append(told(stream))
    return streams


def test_every_capture_is_named(corpus: Path) -> None:
    there = {path.relative_to(corpus / "kernel").as_posix() for path in (corpus / "kernel").glob("*/*.pcap*")}
    assert there == {*WHOLE, SNAP96}


@pytest.mark.parametrize("name", WHOLE)
def test_every_direction_gives_what_the_application_wrote(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    run = assembled(tcpreasm, corpus / "kernel" / name)
    written = truth(corpus, name)
    streams = streams_by_ends(run)
    for ends in NO_STREAM_IN_TRUTH.get(name, {}):
        assert [(stream.length, stream.gaps) for stream in streams.pop(ends)] == [(0, ())]
    assert streams == {
        ends: [Told(ends, one.length, one.sha256, gaps=(), started=True) for one in several] for ends, several in written.items()
    }
    assert run.summary.complete
    assert run.stats.fragments == FRAGMENTS.get(name, 0)
    held_back = run.stats.fragments - run.stats.datagrams  # all but the last one of each datagram
    other = {"FRAGMENT": held_back, "NOT_TCP": NOT_TCP.get(name, 0)}
    assert Counter(run.verdicts) == Counter(other | {"SEGMENT": run.summary.packets - sum(other.values())})
    assert run.stats.fragments_joined == run.stats.fragments
    assert run.stats.bytes_skipped == run.stats.conflicting == 0
    assert run.stats.bytes_delivered == sum(one.length for several in written.values() for one in several)
    assert set(run.stats.dropped) <= {"retransmitted", "overlapping"}


@pytest.mark.parametrize("name", [*WHOLE, SNAP96])
def test_follow_and_extract_give_the_same(
    tcpreasm: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    check_three_ways(tcpreasm, corpus / "kernel" / name, tmp_path, capsys)


@pytest.mark.parametrize("name", [*WHOLE, SNAP96])
def test_both_cores_call_alike(both: tuple[ModuleType, ModuleType], corpus: Path, name: str) -> None:
    compiled, pure = (assembled(package, corpus / "kernel" / name) for package in both)
    assert compiled.calls == pure.calls
    assert compiled.verdicts == pure.verdicts
    assert compiled.stats.dropped == pure.stats.dropped


# What the capture cut off.


def cut_of(tcpreasm: ModuleType, path: Path) -> dict[Ends, tuple[bytes, Gaps]]:
    """By direction: the bytes that the capture holds, and the holes that its cuts left. From the segments alone: bytes at their place
    behind the SYN, whatever the order."""
    isn: dict[Ends, int] = {}
    held: dict[Ends, dict[int, int]] = defaultdict(dict)
    length: Counter[Ends] = Counter()
    for segment in segments(tcpreasm, path):
        if segment.flags & 2:
            isn[segment.ends] = segment.seq
        at = (segment.seq - isn[segment.ends] - 1 + bool(segment.flags & 2)) % 2**32
        for offset, byte in enumerate(segment.payload, at):
            held[segment.ends].setdefault(offset, byte)
        if segment.wire_length:
            length[segment.ends] = max(length[segment.ends], at + segment.wire_length)
    result: dict[Ends, tuple[bytes, Gaps]] = {}
    for ends in isn:
        gaps: list[tuple[int, int]] = []
        for offset in range(length[ends]):
            if offset not in held[ends]:
                if gaps and sum(gaps[-1]) == offset:
                    gaps[-1] = gaps[-1][0], gaps[-1][1] + 1
                else:
                    gaps.append((offset, 1))
        result[ends] = bytes(held[ends][offset] for offset in sorted(held[ends])), tuple(gaps)
    return result


def test_a_cut_capture_gives_what_it_holds_and_each_cut_as_a_gap(tcpreasm: ModuleType, corpus: Path) -> None:
    run = assembled(tcpreasm, corpus / "kernel" / SNAP96)
    written = truth(corpus, SNAP96)
    cut = cut_of(tcpreasm, corpus / "kernel" / SNAP96)
    whole = {stream.ends: bytes(stream.data) for stream in assembled(tcpreasm, corpus / "kernel" / SNAP96_WHOLE).opened}
    assert len(run.opened) == len(written) == len(whole)
    for stream in run.opened:
        data, gaps = cut[stream.ends]
        (wrote,) = written[stream.ends]
        assert len(stream.data) + stream.missing == wrote.length, "the length holds"
        assert (bytes(stream.data), tuple(stream.gaps)) == (data, gaps)
        at, parts = 0, []
        for offset, missing in gaps:
            parts.append(whole[stream.ends][at:offset])
            at = offset + missing
        assert b"".join([*parts, whole[stream.ends][at:]]) == data, "and the bytes are those of the capture that was not cut"
        assert stream.started
        assert stream.ended
    assert sum(len(stream.gaps) for stream in run.opened) > 500
    assert run.verdicts == {"SEGMENT": run.summary.packets}


def test_zeros_for_gaps_keep_every_byte_at_its_place(
    tcpreasm: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = assembled(tcpreasm, corpus / "kernel" / SNAP96)
    files = extracted(tcpreasm, corpus / "kernel" / SNAP96, tmp_path, capsys, "--fill-gaps")
    whole = {stream.ends: bytes(stream.data) for stream in assembled(tcpreasm, corpus / "kernel" / SNAP96_WHOLE).opened}
    names = {file.name: stream for file, stream in zip(expected_files(run), (s for s in run.completed if s.data), strict=True)}
    assert sorted(names) == sorted(file.name for file in files)
    for file in files:
        stream = names[file.name]
        expected = bytearray(whole[stream.ends])
        for offset, missing in stream.gaps:
            expected[offset : offset + missing] = bytes(missing)
        assert file.sha256 == sha256(expected)


# Fragments and tunnels, switched off: nothing is guessed, everything is counted.


def test_fragments_that_are_left_out_are_counted_and_what_they_held_is_missing(tcpreasm: ModuleType, corpus: Path) -> None:
    path = corpus / "kernel" / "ipfrag" / "ipfrag_atB.pcap"
    fragments = 0
    with tcpreasm.open_capture(path) as capture:
        for frame in capture:
            fragments += bool(int.from_bytes(frame.data[20:22], "big") & 0x3FFF)  # IPv4: more fragments, or an offset
    assert fragments == FRAGMENTS["ipfrag/ipfrag_atB.pcap"]
    options = tcpreasm.AssemblerOptions(defragment=False)
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), options)
    summary = assembler.assemble_capture(path)
    verdict = tcpreasm.Verdict
    assert dict(summary.verdicts) == {verdict.SEGMENT: summary.packets - fragments, verdict.FRAGMENT: fragments}
    written = [one.length for several in truth(corpus, "ipfrag/ipfrag_atB.pcap").values() for one in several]
    assert summary.bytes_delivered + summary.bytes_skipped == sum(written)
    assert summary.bytes_skipped > 0


@pytest.mark.parametrize("order", ["as captured", "shuffled", "duplicated"])
def test_fragments_in_another_order_give_the_same(tcpreasm: ModuleType, corpus: Path, order: str) -> None:
    """Frames that lie close together change places, or come twice: every byte is there still."""
    name = "ipfrag/ipfrag_atB.pcap"
    with tcpreasm.open_capture(corpus / "kernel" / name) as capture:
        frames = list(capture)
    chance = random.Random(7)
    if order == "duplicated":
        frames = [frame for frame in frames for _ in range(1 + (chance.random() < 0.3))]
    if order == "shuffled":
        fragments = [n for n, frame in enumerate(frames) if int.from_bytes(frame.data[20:22], "big") & 0x3FFF]
        for n, m in zip(fragments[:-1:2], fragments[1::2]):
            if m == n + 1:
                frames[n], frames[m] = frames[m]._replace(timestamp_ns=frames[n].timestamp_ns), frames[n]
    streams: dict[Ends, Any] = {}

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        ends = (str(net_flow.src), transport_flow.src), (str(net_flow.dst), transport_flow.dst)
        streams[ends] = tcpreasm.BytesStream(net_flow, transport_flow)
        return streams[ends]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        assembler.assemble_capture(frames)
        stats = assembler.stats
    written = truth(corpus, name)
    assert {ends: (stream.length, sha256(stream.data)) for ends, stream in streams.items()} == {
        ends: (one.length, one.sha256) for ends, (one,) in written.items()
    }
    assert stats.datagrams >= FRAGMENTS[name] // 3
    assert (stats.fragments_dropped.get("repeated", 0) + stats.fragments_dropped.get("incomplete", 0) > 0) == (order == "duplicated")


def test_a_tunnel_that_is_not_opened_gives_no_stream(tcpreasm: ModuleType, corpus: Path) -> None:
    options = tcpreasm.AssemblerOptions(decapsulate=["gre"])
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), options)
    summary = assembler.assemble_capture(corpus / "kernel" / "vxlan" / "vxlan_outer.pcap")
    assert dict(summary.verdicts) == {tcpreasm.Verdict.NOT_TCP: summary.packets} == {tcpreasm.Verdict.NOT_TCP: 2475}
    assert summary.streams == 0


def test_every_syn_was_captured(corpus: Path) -> None:
    """What the tests above take for granted: the kernel's captures begin before their connections."""
    compiled = load("compiled")
    for name in WHOLE:
        assert set(truth(corpus, name)) <= opened_in_sight(compiled, corpus / "kernel" / name)
