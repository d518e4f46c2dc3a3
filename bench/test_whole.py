"""The whole way, from the capture file to what the streams hold: `assemble_capture` for each workload and kind of stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .captures import Capture
from .conftest import SCALES
from .measure import WAYS, Job, Totals

Measured = Callable[[Callable[[], Any], int], Any]


def expected(capture: Capture) -> tuple[int, int, int, int]:
    """Packets, bytes, missing bytes, streams."""
    return capture.packets, capture.bytes_present, capture.bytes_skipped, 2 * capture.connections


def found(totals: Totals) -> tuple[int | None, ...]:
    return totals.packets, totals.bytes_delivered, totals.bytes_skipped, totals.streams


@pytest.mark.parametrize("way", ["count", "python"])
@pytest.mark.parametrize("workload", SCALES)
def test_whole(
    tcpreasm: ModuleType,
    benchmark: Any,
    measured: Measured,
    get_capture: Callable[[str], Capture],
    job: Callable[[Path], Job],
    workload: str,
    way: str,
) -> None:
    """Counting: inside the core, and in streams in Python."""
    benchmark.group = "7 whole way: counting"
    capture = get_capture(workload)
    assert found(measured(lambda: WAYS[way].run(job(capture.path)), capture.packets)) == expected(capture)


@pytest.mark.parametrize("way", ["count-memory", "count-batch", "python-coalesced", "collect", "write-files", "digest", "spans"])
def test_ways(
    tcpreasm: ModuleType, benchmark: Any, measured: Measured, get_capture: Callable[[str], Capture], job: Callable[[Path], Job], way: str
) -> None:
    """One workload in all other ways; what a way makes ready, and how it looks at what came out, is measured too."""
    benchmark.group = "8 whole way: web"
    capture = get_capture("web")
    totals = measured(lambda: WAYS[way].run(job(capture.path)), capture.packets)
    assert found(totals) == expected(capture)
    assert totals.digest_sum in (None, capture.digest_sum)
