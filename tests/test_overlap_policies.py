"""Overlapping segments under every policy of `overlap`, on both cores: whose bytes come out, and which never came.

What is held is what a policy decides about; what was delivered is never revised (test_promises, 7). So each battery stands behind a hole
until its last segment has come. Where the source tells what is held after each of its segments, that is asserted too.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import Rig

POLICIES = ("first", "last", "bsd", "linux", "windows", "solaris", "old-linux")
BATTERIES = ("novak", "before", "same", "after")
PAIRS = tuple(f"pair-{index:02}" for index in range(13))
ISNS = (0, 1, 2**32 - 1, 2**32 - 11)
# How many bytes stand for one of a battery's: with more than one its segments span pages, which must not show.
SCALES = (1, 1000)

Segments = list[tuple[int, bytes]]  # offset from the first data byte, data


@cache
def cases(corpus: Path) -> dict[str, dict[str, Any]]:
    listed = json.loads((corpus / "cases" / "overlap_policies.json").read_text())
    return {case["id"]: case for case in listed["batteries"] + listed["pairs"]}


def segments_of(case: dict[str, Any]) -> Segments:
    pairs = (list(segment.values()) if isinstance(segment, dict) else segment for segment in case["segments"])
    return [(offset, data.encode("ascii")) for offset, data in pairs]


def delivered(package: ModuleType, policy: str, segments: Segments, *, isn: int, hole: int = 1, scale: int = 1) -> bytes:
    """What comes out of segments behind a hole of so many bytes, one byte for each of the battery's; "." for one that never came."""
    rig = Rig(package, overlap=policy)
    calls = rig.segment(isn, syn=True)
    for offset, data in segments:
        text = b"".join(bytes([byte]) * scale for byte in data)
        calls += rig.segment(isn + 1 + (hole + offset) * scale, text)
    calls += rig.flush_all()[1]
    pieces = [piece for call in calls if call[0] == "reassembled" for piece in call[2]]
    whole = b"".join(b"." * skip + data for data, skip, *_ in pieces)
    for at in range(0, len(whole), scale):
        assert len(set(whole[at : at + scale])) == 1, at
    assert whole[: hole * scale] == b"." * (hole * scale)
    return whole[hole * scale :: scale]


def test_every_case_is_named(corpus: Path) -> None:
    assert tuple(cases(corpus)) == BATTERIES + PAIRS
    assert {isn for name in BATTERIES for isn in cases(corpus)[name]["isn_values_tested"]} == set(ISNS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("isn", ISNS)
@pytest.mark.parametrize("name", BATTERIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_battery(tcpreasm: ModuleType, corpus: Path, policy: str, name: str, isn: int, scale: int) -> None:
    case = cases(corpus)[name]
    wanted, segments = case["expected"][policy], segments_of(case)
    assert delivered(tcpreasm, policy, segments, isn=isn, scale=scale) == wanted["bytes"].encode("ascii")
    for count, held in enumerate(wanted.get("after_each_segment", []), start=1):
        assert delivered(tcpreasm, policy, segments[:count], isn=isn, scale=scale) == held.encode("ascii"), count


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("isn", ISNS)
@pytest.mark.parametrize("policy", POLICIES)
def test_pairs(tcpreasm: ModuleType, corpus: Path, policy: str, isn: int, scale: int) -> None:
    """Two segments, one in each of the 13 relations that two intervals can have."""
    for name in PAIRS:
        case = cases(corpus)[name]
        wanted = case["expected"][policy].encode("ascii")
        assert delivered(tcpreasm, policy, segments_of(case), isn=isn, scale=scale) == wanted, name


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_segment_brings_them_in_order(tcpreasm: ModuleType, corpus: Path, policy: str) -> None:
    """Those that begin with a hole and end with what fills it: nothing waits for the flush."""
    for name in ("novak", *PAIRS):
        case = cases(corpus)[name]
        wanted = case["expected"][policy]
        text = (wanted["bytes"] if isinstance(wanted, dict) else wanted).encode("ascii")
        assert delivered(tcpreasm, policy, segments_of(case), isn=2**32 - 11, hole=0) == text, name
