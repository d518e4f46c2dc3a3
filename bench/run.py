"""tcpreasm alone: every workload in every way of use, with the floor beside it.

    python -m bench.run [--scale F] [--rounds N] [--json FILE] [--way WAY]... [NAME...]

Each measurement is a fresh process over a capture in the page cache, its totals are checked, and rounds go over all of them, so that
whatever else the machine does meets all alike. The full set takes about half an hour at full size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from . import floor
from .captures import WHERE_KEPT, Capture, get, select
from .measure import TOGETHER, WAYS, Measurement, Missing, check, import_ns, run_way
from .report import number, rounds, say, spread, table, versions, write_json

__all__ = ["Case", "Results", "cases"]

Case = tuple[str, str, str]
"""Way of use, core, workload."""

EVERYWHERE = (
    "count",
    "count-threads",
    "count-memory",
    "count-batch",
    "python",
    "python-coalesced",
    "frames",
    "frames-python",
    "read-frames",
)
ON_SOME = ("python-threads", "collect", "write-files", "digest", "spans", "extract")
SOME = ("bulk", "web")
PAIRED = (*SOME, "small")  # for TOGETHER
PURE = ("count", "python")


def cases(workloads: Iterable[str], ways: Iterable[str]) -> list[Case]:
    """What is measured of these. Out-of-order captures are for the counting streams alone; the pure core and what depends on the disk
    for two workloads, both directions together for three."""
    found: list[Case] = []
    for workload in workloads:
        for way in ways:
            if (way in ON_SOME and workload not in SOME) or (way in TOGETHER and workload not in PAIRED):
                continue
            if way != "count" and workload.startswith("ooo-"):
                continue
            found.append((way, "compiled", workload))
            if way in PURE and workload in SOME:
                found.append((way, "pure", workload))
    return found


class Results:
    """Measurements of the same cases, round by round."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []
        self.missing: dict[str, str] = {}  # by way

    def add(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)

    def times(self, name: str, workload: str) -> list[float]:
        """Nanoseconds a packet."""
        return [found.ns_per_packet for found in self.measurements if (found.name, found.workload) == (name, workload)]

    def memory(self, name: str, workload: str) -> list[int]:
        """Peak resident bytes."""
        return [found.peak_rss for found in self.measurements if (found.name, found.workload) == (name, workload) and found.peak_rss]

    def show(self, names: Iterable[str], workloads: list[str]) -> str:
        """A row for each way, "min / median" for each workload, or a dash."""
        rows = []
        for name in names:
            times = [self.times(name, workload) for workload in workloads]
            if any(times):
                rows.append((name, *(" / ".join(map(number, spread(found))) if found else "-" for found in times)))
        return table(("ns a packet: min / median", *workloads), rows)

    def show_memory(self, names: Iterable[str], workloads: list[str]) -> str:
        """The same of the peak resident memory, in MB, the highest of all rounds."""
        rows = []
        for name in names:
            peaks = [self.memory(name, workload) for workload in workloads]
            if any(peaks):
                rows.append((name, *(number(max(found) / 1e6) if found else "-" for found in peaks)))
        return table(("peak resident memory, MB", *workloads), rows)

    def show_out_of_order(self, workloads: list[str]) -> str:
        """A row for each workload: the counting streams' cost and memory."""
        rows = []
        for workload in workloads:
            found, peaks = self.times("count", workload), self.memory("count", workload)
            if found:
                rows.append((workload, *spread(self.times("floor-file", workload)), *spread(found), max(peaks) / 1e6))
        return table(("ns a packet", "floor-file: min", "median", "count: min", "median", "peak memory, MB"), rows)


def measure_all(todo: list[Case], captures: dict[str, Capture], results: Results) -> None:
    """One round."""
    for capture in captures.values():
        for where in floor.WAYS:
            results.add(floor.measure(where, capture))
    for way, core, workload in todo:
        if way in results.missing:
            continue
        try:
            measurement = run_way(way, captures[workload].path, captures[workload].packets, core)
        except Missing as missing:
            results.missing[way] = str(missing)
            say(f"{way} is left out: {missing}")
            continue
        check(measurement, captures[workload])
        results.add(measurement)
    results.add(Measurement(name="import", workload="-", ns_per_packet=import_ns()))


def main(arguments: list[str] | None = None) -> int:
    text = "Measures tcpreasm. Ways of use:\n" + "\n".join(f"  {way.name:18}{way.text}" for way in WAYS.values())
    text += "\n\n" + fill(WHERE_KEPT)
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="how much of each workload (default 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single measurement there")
    parser.add_argument(
        "--way", metavar="WAY", action="append", choices=[*EVERYWHERE, *ON_SOME, *TOGETHER], help="only this way; may be repeated"
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads; default: all")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds is 1 or more, not {given.rounds}")
    try:
        workloads = select(given.names)
    except ValueError as error:
        parser.error(str(error))
    captures = {name: get(name, given.scale) for name in workloads}
    todo = cases(workloads, given.way or [*EVERYWHERE, *ON_SOME, *TOGETHER])
    results = Results()
    for _ in rounds(given.rounds):
        measure_all(todo, captures, results)

    names = [f"floor-{where}" for where in floor.WAYS]
    names += [f"{way}{' (pure)' if core == 'pure' else ''}" for way in WAYS for core in ("compiled", "pure")]
    in_order = [name for name in workloads if not name.startswith("ooo-")]
    if in_order:
        print(results.show(names, in_order), end="\n\n")
        print(results.show_memory(names, in_order), end="\n\n")
    out_of_order = [name for name in workloads if name.startswith("ooo-")]
    if out_of_order:
        print(results.show_out_of_order(out_of_order), end="\n\n")
    best, median = spread(results.times("import", "-"))
    print(f"import tcpreasm, numpy being there: {best / 1e6:.1f} ms (median {median / 1e6:.1f})")
    print(f"{given.rounds} rounds, a fresh process each; scale {given.scale:g}; " + "; ".join(versions().values()))
    for way, why in results.missing.items():
        print(f"left out: {way}: {why}")
    if given.json is not None:
        write_json(given.json, [asdict(measurement) for measurement in results.measurements])
    return 0


if __name__ == "__main__":
    sys.exit(main())
