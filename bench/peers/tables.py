"""What a run of the peers showed: tables in Markdown, a chart, JSON.

Lives here: no measurement. A row is one peer, or several ways of one, of which the fastest on each workload stands there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..report import number, table
from ..report import versions as machine
from .registry import PEERS, versions
from .run import Result

__all__ = ["chart", "in_words", "write_json"]

RATIOS = (
    ("counting stream, file, one thread", "tcpreasm", "gopacket tcpassembly"),
    ("the same, two threads", "tcpreasm, two threads", "gopacket tcpassembly, two goroutines"),
    ("the same, the file mapped", "tcpreasm, mapped", "gopacket tcpassembly"),
    ("counting stream, in memory", "tcpreasm, in memory", "gopacket tcpassembly, in memory"),
    ("Python stream, file, one thread", "tcpreasm, Python stream", "gopacket tcpassembly"),
    ("extract, against tcpflow", "tcpreasm extract", "tcpflow"),
)
"""What is compared, which row, with which row."""

OVER_FLOOR = (
    ("counting stream, file, one thread", "tcpreasm", "floor"),
    ("the same, two threads", "tcpreasm, two threads", "floor"),
    ("counting stream, in memory", "tcpreasm, in memory", "floor, in memory"),
)
"""The same against the floor, the other way round: how many times its cost."""


class Grid:
    """Results by row and workload."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.workloads = list(dict.fromkeys(result.sample.workload for result in results))
        self.rows = [row for row in dict.fromkeys(peer.row for peer in PEERS) if any(result.peer.row == row for result in results)]
        self._best: dict[tuple[str, str], Result] = {}
        for result in results:
            place = result.peer.row, result.sample.workload
            if result.runs and (place not in self._best or result.minimum < self._best[place].minimum):
                self._best[place] = result

    def best(self, row: str, workload: str) -> Result | None:
        return self._best.get((row, workload))


def _off(result: Result) -> str:
    """What is wrong with its bytes; nothing: they are right."""
    if not result.checked:
        return "bytes not checked"
    if not result.wrong:
        return ""
    percent = abs(result.wrong) * 100
    amount = f"{percent:.1f} %" if percent >= 0.05 else "under 0.1 %"
    return f"loses {amount}" if result.wrong < 0 else f"{amount} too many"


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    note = _off(result) if result.checked else ""
    part = "*" if result.sample.part else ""
    return f"{number(result.minimum)} / {number(result.median)}{part}" + (f" ({note})" if note else "")


def in_words(results: Sequence[Result], skipped: Sequence[tuple[str, str]]) -> str:
    """The tables, and what was run."""
    grid = Grid(results)
    head = ["", *grid.workloads]
    ratios = _ratios(grid, RATIOS, lambda ours, theirs: theirs / ours)
    over_floor = _ratios(grid, OVER_FLOOR, lambda ours, theirs: ours / theirs)
    parts = [
        "## Nanoseconds a packet: minimum / median (*: of a part of the capture)",
        table(head, [[row, *(_cell(grid.best(row, workload)) for workload in grid.workloads)] for row in grid.rows]),
        *(["## Times as fast as the peer (minimum against minimum)", table(["", "against", *grid.workloads], ratios)] if ratios else []),
        *(
            ["## Times the floor's cost (minimum against minimum)", table(["", "against", *grid.workloads], over_floor)]
            if over_floor
            else []
        ),
        "## Peak resident memory of the whole process, MB",
        table(head, _memory(grid)),
        "## What was run",
        "\n".join(f"- {name}: {text}" for name, text in _said(grid)),
    ]
    if skipped:
        parts += ["## Left out", "\n".join(f"- {name}: {why}" for name, why in skipped)]
    troubled = [f"- {result.peer.name}, {result.sample.workload}: {result.trouble}" for result in results if result.trouble]
    if troubled:
        parts += ["## Did not finish", "\n".join(troubled)]
    parts += ["## Where", "\n".join(f"- {name}: {text}" for name, text in (machine() | versions()).items())]
    return "\n\n".join(part for part in parts if part)


def _ratios(grid: Grid, pairs: Iterable[tuple[str, str, str]], ratio: Callable[[float, float], float]) -> list[list[str]]:
    rows = []
    for text, ours, theirs in pairs:
        cells = []
        for workload in grid.workloads:
            one, other = grid.best(ours, workload), grid.best(theirs, workload)
            cells.append(f"{ratio(one.minimum, other.minimum):.2f}" if one and other else "-")
        if any(cell != "-" for cell in cells):
            rows.append([text, theirs, *cells])
    return rows


def _memory(grid: Grid) -> list[list[str]]:
    rows = []
    for row in grid.rows:
        found = [grid.best(row, workload) for workload in grid.workloads]
        rows.append([row, *(number(result.peak_rss / 1e6) if result and result.peak_rss else "-" for result in found)])
    return rows


def _said(grid: Grid) -> list[tuple[str, str]]:
    said = []
    for peer in dict.fromkeys(result.peer for result in grid.results):
        fastest = [name for name in grid.workloads if (best := grid.best(peer.row, name)) and best.peer is peer]
        parts = dict.fromkeys(result.sample.part for result in grid.results if result.peer is peer and result.sample.part)
        text = peer.text
        if sum(other.row == peer.row for other in dict.fromkeys(result.peer for result in grid.results)) > 1:
            text += f"; the fastest on {', '.join(fastest) or 'none'}"
        if parts:
            text += f"; of larger captures {', or '.join(parts)}"
        said.append((f"{peer.row} ({peer.name})", text))
    return said


def write_json(path: Path, results: Sequence[Result], skipped: Sequence[tuple[str, str]]) -> None:
    """Every run, the totals it should have had, the machine and all versions."""
    content = {
        "machine": machine(),
        "versions": versions(),
        "left_out": dict(skipped),
        "results": [
            {
                "peer": result.peer.name,
                "row": result.peer.row,
                "ran": result.peer.text,
                "workload": result.sample.workload,
                "part": result.sample.part or "whole",
                "packets": result.sample.packets,
                "bytes_present": result.sample.bytes_present,
                "minimum_ns": result.minimum if result.runs else None,
                "median_ns": result.median if result.runs else None,
                "bytes_wrong": result.wrong if result.runs and result.checked else None,
                "trouble": result.trouble,
                "runs": [asdict(run) for run in result.runs],
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def chart(path: Path, results: Sequence[Result]) -> None:
    """Bars of the minimum, a panel for each workload, in one logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    grid = Grid(results)
    columns = min(3, len(grid.workloads))
    lines = -(-len(grid.workloads) // columns)
    figure = Figure(figsize=(1.6 + 4.6 * columns, 1.3 + lines * (0.5 + 0.27 * len(grid.rows))), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    places = range(len(grid.rows))
    for panel, workload in zip(panels, grid.workloads):
        for place, row in zip(places, grid.rows):
            result = grid.best(row, workload)
            if result is None:
                continue
            ours = row.startswith("tcpreasm")
            panel.barh(place, result.minimum, color="#1f6f8b" if ours else "#b8b8b8" if not result.wrong else "#e0b4a8", height=0.72)
            note = number(result.minimum) + (f"  {_off(result)}" if result.wrong else "")
            panel.annotate(note, (result.minimum, place), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        panel.set_title(workload, fontsize=11, loc="left", fontweight="bold")
        panel.set_xscale("log")
        panel.set_yticks(places, grid.rows, fontsize=8.5)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.tick_params(axis="x", labelsize=8, labelbottom=True)
        panel.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.margins(y=0.01)
        panel.spines[["top", "right"]].set_visible(False)
    found = [result.minimum for result in results if result.runs]
    panels[0].set_xlim(min(found) / 2, max(found) * 25)
    panels[0].invert_yaxis()
    for panel in panels[len(grid.workloads) :]:
        panel.set_visible(False)
    where = machine()
    figure.suptitle("Nanoseconds a packet, minimum of the runs, logarithmic: shorter is faster", fontsize=12, fontweight="bold")
    machine_said = ", ".join(where[name] for name in ("processor", "cores", "system"))
    figure.supxlabel(f"{machine_said}; red: loses bytes, or delivers too many", fontsize=8)
    figure.savefig(path, dpi=130)
