"""What the suite shares: the package on either core, small captures, and a table of nanoseconds a packet.

Lives here: fixtures only. The captures are so small that the suite ends in a few minutes, and that the caches hold them: how a workload
behaves at full size is what bench.run tells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from cores import IMPLEMENTATIONS, load

from . import captures
from .captures import Capture
from .measure import Job
from .report import table

T = TypeVar("T")

PACKETS = 15_000  # about, in each capture
SCALES = {"bulk": 0.05, "web": 0.025, "web100k": 0.01, "manyflows": 0.005, "small": 0.005, "lossy": 0.03}

_results: list[tuple[str, str, str, float, float]] = []


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def tcpreasm(request: pytest.FixtureRequest) -> ModuleType:
    """The package, once on each core."""
    return load(request.param)


@pytest.fixture(scope="session")
def get_capture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Capture]:
    """`get_capture("web")`: a capture of that workload, small. Those of ooo have twice as many segments as are outstanding at once."""

    def get(name: str) -> Capture:
        scale = SCALES.get(name) or 2 * int(name.split("-")[-1].removesuffix("k")) / 200
        return captures.get(name, scale, folder / f"{scale:g}")

    folder = tmp_path_factory.mktemp("captures")
    return get


@pytest.fixture
def job(tcpreasm: ModuleType) -> Callable[[Path], Job]:
    """`job(path)`: what measure's ways of use are given, on the core at hand."""
    return lambda path: Job(tcpreasm, path)


@pytest.fixture
def measured(benchmark: Any, tcpreasm: ModuleType, request: pytest.FixtureRequest) -> Callable[[Callable[[], T], int], T]:
    """`measured(function, packets)`: runs it often enough, notes what it takes for each of so many packets, and gives its last result."""

    def run(function: Callable[[], T], packets: int) -> T:
        result: T = benchmark(function)
        benchmark.extra_info["packets"] = packets
        if benchmark.stats is not None:  # it is None with --benchmark-disable
            stats = benchmark.stats.stats
            name = (
                request.node.name.removeprefix("test_")
                .replace(f"{tcpreasm.implementation}-", "")
                .replace(f"[{tcpreasm.implementation}]", "")
            )
            _results.append((benchmark.group or "", name, tcpreasm.implementation, stats.min * 1e9 / packets, stats.median * 1e9 / packets))
        return result

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _results:
        terminalreporter.section("ns a packet")
        terminalreporter.line(table(("stage", "benchmark", "core", "min", "median"), sorted(_results)))
