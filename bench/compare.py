"""This tree, as it stands, against another revision.

    python -m bench.compare REVISION [--scale F] [--rounds N] [--way WAY]... [--json FILE] [NAME...]

Both are copied into a temporary folder and built there, so that neither this tree nor its build is touched, and both are measured by
this tree's bench. Each round runs every case once on each of them, in fresh processes, the one that begins alternating; the totals
of both are checked. A ratio below 1 means that this tree is faster; what differs by less than the rounds of one side do among
themselves is noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .captures import WHERE_KEPT, get, select
from .measure import REPOSITORY, WAYS, Measurement, Missing, check, run_way
from .report import rounds, say, spread, table, versions, write_json

__all__ = ["build", "copy_revision", "copy_tree"]

HERE = "this tree"
DEFAULT_WAYS = ("count", "count-threads", "count-memory", "python", "frames-python")
DEFAULT_NAMES = ("bulk", "web", "web100k", "manyflows", "small", "lossy", "ooo-random-1k", "ooo-random-100k")


def copy_revision(revision: str, folder: Path) -> None:
    """The files of a revision. ValueError where git does not know it."""
    found = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
    if found.returncode:
        raise ValueError(f"git knows no revision {revision}")
    folder.mkdir()
    archive = subprocess.Popen(["git", "archive", found.stdout.strip()], cwd=REPOSITORY, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
    if archive.wait():
        raise RuntimeError(f"git archive of {revision} failed")


def copy_tree(folder: Path) -> None:
    """The files of this tree, those that are not committed yet among them, and none that git ignores."""
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0"):
        if name and (REPOSITORY / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)


def _git(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, check=check, capture_output=True, text=True)


def build(folder: Path) -> None:
    """Build the compiled core in place, with this interpreter's Cython and setuptools. RuntimeError with the last lines where it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("TCPREASM_PURE", "TCPREASM_DEBUG")}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder.name} does not build:\n" + "\n".join(done.stdout.splitlines()[-20:]))


def _lines(found: Sequence[Measurement], revision: str) -> list[tuple[str | float | None, ...]]:
    """A row for each workload and way: minimum and median of both, and the ratios of the minima and medians."""
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for measurement in found:
        side, name = measurement.name.split(": ", 1)
        times.setdefault((measurement.workload, name), {}).setdefault(side, []).append(measurement.ns_per_packet)
    rows: list[tuple[str | float | None, ...]] = []
    for (workload, name), sides in times.items():
        new, old = (spread(sides[side]) if side in sides else None for side in (HERE, revision))
        ratios = (None, None) if new is None or old is None else (new[0] / old[0], new[1] / old[1])
        rows.append((workload, name, *(new or (None, None)), *(old or (None, None)), *ratios))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=f"Compares this tree with another revision. {WHERE_KEPT}")
    parser.add_argument("revision", metavar="REVISION", help="anything that git takes for a commit")
    parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="how much of each workload (default 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--way", metavar="WAY", action="append", choices=WAYS, help=f"default: {', '.join(DEFAULT_WAYS)}")
    parser.add_argument("--core", choices=("compiled", "pure"), default="compiled")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single measurement there")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"workloads; default: {', '.join(DEFAULT_NAMES)}")
    given = parser.parse_intermixed_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds is 1 or more, not {given.rounds}")
    try:
        captures = [get(name, given.scale) for name in select(given.names or DEFAULT_NAMES)]
    except ValueError as error:
        parser.error(str(error))

    found: list[Measurement] = []
    left_out: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="tcpreasm-compare-") as base:
        trees = {HERE: Path(base, "here"), given.revision: Path(base, "there")}
        copy_tree(trees[HERE])
        try:
            copy_revision(given.revision, trees[given.revision])
        except ValueError as error:
            parser.error(str(error))
        shutil.copytree(trees[HERE] / "bench", trees[given.revision] / "bench", dirs_exist_ok=True)
        for side, folder in trees.items():
            say(f"building {side}")
            build(folder)
        for round_ in rounds(given.rounds):
            for capture in captures:
                for way in given.way or DEFAULT_WAYS:
                    if way != "count" and capture.name.startswith("ooo-"):
                        continue
                    for side in sorted(trees, reverse=round_ % 2 == 0):
                        try:
                            measurement = run_way(way, capture.path, capture.packets, given.core, trees[side])
                        except Missing as missing:
                            left_out.add(f"left out: {way} in {side}: {missing}")
                            continue
                        check(measurement, capture)
                        found.append(replace(measurement, name=f"{side}: {measurement.name}"))

    head = ("workload", "way", f"{HERE}: min", "median", f"{given.revision}: min", "median", "ratio of min", "of median")
    print(table(head, _lines(found, given.revision)))
    print(f"\nns a packet; {given.rounds} rounds, a fresh process each; scale {given.scale:g}; " + "; ".join(versions().values()))
    for line in sorted(left_out):
        print(line)
    if given.json is not None:
        write_json(given.json, [asdict(measurement) for measurement in found])
    return 0


if __name__ == "__main__":
    sys.exit(main())
