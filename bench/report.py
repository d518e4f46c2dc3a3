"""What the programs print: minimum and median of measurements, tables, the machine.

Lives here: no measurement. Tables are Markdown, so that they can go into a README as they are.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

__all__ = ["number", "rounds", "say", "spread", "table", "versions", "write_json"]


def number(value: float | None) -> str:
    """With three digits or more, as people read it; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Minimum and median."""
    found = list(values)
    return min(found), statistics.median(found)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers and dashes to the right."""
    cells = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    sides = ["right" if all(set(row[at]) <= set("0123456789.,- e+") for row in cells) else "left" for at in range(len(head))]
    return tabulate(cells, head, tablefmt="github", colalign=sides, disable_numparse=True) if cells else ""


def say(text: str) -> None:
    """A word on what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


def rounds(count: int) -> Iterable[int]:
    """Counts rounds from 1 on, and says which one it is."""
    for number_ in range(1, count + 1):
        say(f"round {number_} of {count}")
        yield number_


def versions() -> dict[str, str]:
    """The machine and what runs on it."""
    return {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": _first_line(os.environ.get("CC", "cc"), "--version"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "none"


def write_json(path: Path, measurements: Sequence[Any]) -> None:
    """Everything that was measured, one by one, and where."""
    path.write_text(json.dumps({"machine": versions(), "measurements": list(measurements)}, indent=1) + "\n")
    say(f"every measurement is in {path}")
