"""One traffic, perturbed by a seeded program in 20 ways, against what each capture still holds of it: on both cores and through every
way in.

The column `first` of the truth is the default's policy: the copy of a byte that was captured first wins.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from corpus_runs import EMPTY, Ends, Gaps, Told, assembled, check_three_ways, expected_files, extracted, opened_in_sight, sha256, told

CAPTURES = (
    "clip_head.pcap",
    "conflict_after.pcap",
    "drop3pct.pcap",
    "duplicate.pcap",
    "fmt_pcap_ns.pcap",
    "fmt_pcapng_3if.pcapng",
    "keepalive_garbage.pcap",
    "mix.pcap",
    "no_syn.pcap",
    "pk_gre.pcap",
    "pk_ipopt.pcap",
    "pk_sll2.pcap",
    "pk_vlan.pcap",
    "reorder.pcap",
    "resegment_overlap_same.pcap",
    "rst_injected.pcap",
    "snaplen200.pcap",
    "wrap32.pcap",
)
WITH_GAPS = {"clip_head.pcap": 84, "drop3pct.pcap": 74, "snaplen200.pcap": 1953}


class Held(NamedTuple):
    """What a capture holds of what one side's application wrote."""

    wrote: int
    length: int
    sha256: str
    gaps: Gaps


def truth(corpus: Path, name: str) -> dict[Ends, Held]:
    directions: dict[Ends, Held] = {}
    for connection in json.loads((corpus / "perturbed" / name).with_suffix(".json").read_text())["connections"]:
        client, server = tuple(connection["client"]), tuple(connection["server"])
        for ends, side in (((client, server), "c2s"), ((server, client), "s2c")):
            assert ends not in directions, "each pair of ends is used once"
            here = connection[side]
            gaps = tuple((offset, length) for offset, length in here["gaps"])
            directions[ends] = Held(here["len"], here["first"]["len"], here["first"]["sha256"], gaps)
    return directions


def expected_streams(held: dict[Ends, Held], opened: set[Ends]) -> dict[Ends, Told]:
    """The streams that a capture must give. Where it does not hold the SYN nothing counts from before the first byte that was
    captured, so a hole in front is not known; where it holds nothing at all of a direction there is no stream."""
    streams: dict[Ends, Told] = {}
    for ends, here in held.items():
        started = ends in opened
        gaps = here.gaps
        if not started:
            if not here.length:
                continue
            if gaps and gaps[0][0] == 0:
                gaps = tuple((offset - gaps[0][1], length) for offset, length in gaps[1:])
        streams[ends] = Told(ends, here.length, here.sha256, gaps, started)
    return streams


def test_every_capture_is_named(corpus: Path) -> None:
    there = {path.name for path in (corpus / "perturbed").glob("*.pcap*")}
    assert there == {*CAPTURES}


@pytest.mark.parametrize("name", CAPTURES)
def test_every_direction_gives_what_was_captured_first_and_the_gaps(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    run = assembled(tcpreasm, corpus / "perturbed" / name)
    held = truth(corpus, name)
    expected = expected_streams(held, opened_in_sight(tcpreasm, corpus / "perturbed" / name))
    streams = [told(stream) for stream in run.opened]
    # A direction of which no byte was captured may be a stream all the same, by its FIN: an empty one.
    streams = [stream for stream in streams if stream.ends in expected or stream.length or stream.gaps]
    assert sorted(streams) == sorted(expected.values())
    for here in held.values():
        assert here.length + sum(length for _, length in here.gaps) == here.wrote
    assert sum(len(here.gaps) for here in held.values()) == WITH_GAPS.get(name, 0)
    assert run.verdicts == {"SEGMENT": run.summary.packets}
    assert run.summary.complete


@pytest.mark.parametrize("name", CAPTURES)
def test_follow_and_extract_give_the_same(
    tcpreasm: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    check_three_ways(tcpreasm, corpus / "perturbed" / name, tmp_path, capsys)


@pytest.mark.parametrize("name", sorted(WITH_GAPS))
def test_zeros_for_gaps_keep_every_byte_at_its_place(
    tcpreasm: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = assembled(tcpreasm, corpus / "perturbed" / name)
    whole = assembled(tcpreasm, corpus / "perturbed" / "fmt_pcap_ns.pcap")  # the same traffic, unchanged
    written = {stream.ends: bytes(stream.data) for stream in whole.opened}
    held = truth(corpus, name)
    files = {file.name: file for file in extracted(tcpreasm, corpus / "perturbed" / name, tmp_path, capsys, "--fill-gaps")}
    for expected, stream in zip(expected_files(run), (stream for stream in run.completed if stream.data), strict=True):
        data = bytearray(written[stream.ends])
        assert sha256(data) != EMPTY
        for offset, length in held[stream.ends].gaps:
            data[offset : offset + length] = bytes(length)
        if not stream.started and held[stream.ends].gaps[:1] and held[stream.ends].gaps[0][0] == 0:
            del data[: held[stream.ends].gaps[0][1]]
        assert files.pop(expected.name).sha256 == sha256(data)
    assert not files


@pytest.mark.parametrize("name", CAPTURES)
def test_both_cores_call_alike(both: tuple[ModuleType, ModuleType], corpus: Path, name: str) -> None:
    compiled, pure = (assembled(package, corpus / "perturbed" / name) for package in both)
    assert compiled.calls == pure.calls
    assert compiled.verdicts == pure.verdicts
    assert compiled.stats.dropped == pure.stats.dropped


def test_what_each_perturbation_must_leave_in_the_counters(tcpreasm: ModuleType, corpus: Path) -> None:
    """Each kind of perturbation is told, so that the tests above cannot pass because a capture was not perturbed."""

    def stats(name: str) -> tuple[Any, dict[str, int]]:
        counted = assembled(tcpreasm, corpus / "perturbed" / name).stats
        return counted, dict(counted.dropped)

    plain, dropped = stats("fmt_pcap_ns.pcap")
    assert (dropped, plain.conflicting, plain.bytes_skipped, plain.rst_ignored) == ({}, 0, 0, 0)
    duplicated, dropped = stats("duplicate.pcap")
    assert duplicated.bytes_captured - plain.bytes_captured == sum(dropped.values()) > 0
    assert stats("conflict_after.pcap")[0].conflicting > 0
    resegmented, dropped = stats("resegment_overlap_same.pcap")
    assert dropped["retransmitted"] > 0
    assert resegmented.conflicting == 0
    assert stats("rst_injected.pcap")[0].rst_ignored == 4461 - 4244
    keepalives, dropped = stats("keepalive_garbage.pcap")
    assert keepalives.bytes_captured - plain.bytes_captured == sum(dropped.values()) == 4662 - 4244
    assert not any(stream.started for stream in assembled(tcpreasm, corpus / "perturbed" / "no_syn.pcap").opened)
    for name in ("drop3pct.pcap", "snaplen200.pcap"):
        missing = sum(length for here in truth(corpus, name).values() for _, length in here.gaps)
        unknown = sum(
            here.gaps[0][1]
            for ends, here in truth(corpus, name).items()
            if here.gaps and here.gaps[0][0] == 0 and ends not in opened_in_sight(tcpreasm, corpus / "perturbed" / name)
        )
        assert stats(name)[0].bytes_skipped == missing - unknown


def test_another_encapsulation_changes_nothing(tcpreasm: ModuleType, corpus: Path) -> None:
    plain = {told(stream) for stream in assembled(tcpreasm, corpus / "perturbed" / "fmt_pcap_ns.pcap").opened}
    assert len(plain) == 240
    for name in ("fmt_pcapng_3if.pcapng", "pk_gre.pcap", "pk_ipopt.pcap", "pk_sll2.pcap", "pk_vlan.pcap"):
        assert {told(stream) for stream in assembled(tcpreasm, corpus / "perturbed" / name).opened} == plain, name
