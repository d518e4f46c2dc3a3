"""The floor: floor.c over a capture, built when it is first needed. What it does, and what not, is said at its head.

python -m bench.floor [--scale F] [--rounds N] [NAME...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from .captures import Capture, cache_folder, get, select
from .measure import Measurement, WrongTotals, read_once
from .report import rounds, spread, table

__all__ = ["WAYS", "build", "compiler", "measure"]

SOURCE = Path(__file__).with_name("floor.c")
WAYS = ("file", "memory")


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def compiler() -> str:
    """The program that builds it: CC or cc."""
    return _compiler()[0]


def build() -> Path:
    """The program, compiled by CC or cc into the cache folder. RuntimeError where there is no compiler."""
    command = [*_compiler(), "-O3", "-Wall"]
    name = hashlib.sha256(SOURCE.read_bytes() + repr(command).encode()).hexdigest()[:16]
    program = cache_folder().parent / f"floor-{name}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        part = program.with_suffix(f".{os.getpid()}")
        try:
            subprocess.run([*command, "-o", str(part), str(SOURCE)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"the floor needs a C compiler, and {command[0]} is none that does: {error}") from error
        part.replace(program)
    return program


def measure(way: str, capture: Capture) -> Measurement:
    """Run it once in a process of its own, and check its totals. way: "file" or "memory"."""
    slots = 1 << (4 * capture.connections - 1).bit_length()
    read_once(capture.path)
    output = subprocess.run([build(), capture.path, str(slots), way], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    expected = (capture.packets, capture.packets, 2 * capture.connections, capture.bytes_in_order, capture.payload_bytes)
    payload = found["bytes_in_order"] + found["bytes_out_of_order"]
    got = (found["packets"], found["segments"], found["directions"], found["bytes_in_order"], payload)
    if got != expected:
        raise WrongTotals(f"floor over {capture.name}: packets, segments, directions, bytes in order and in all are {got}, not {expected}")
    return Measurement(
        name=f"floor-{way}",
        workload=capture.name,
        packets=capture.packets,
        ns_per_packet=found["elapsed_ns"] / capture.packets,
        bytes_delivered=found["bytes_in_order"],
        streams=found["directions"],
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description="A bare C loop over the captures, ns a packet.")
    parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="how much of each workload (default 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads; default: all")
    given = parser.parse_args(arguments)
    try:
        captures = [get(name, given.scale) for name in select(given.names)]
    except ValueError as error:
        parser.error(str(error))
    found: dict[tuple[str, str], list[float]] = {}
    for _ in rounds(given.rounds):
        for capture in captures:
            for way in WAYS:
                found.setdefault((capture.name, way), []).append(measure(way, capture).ns_per_packet)
    rows = [(capture.name, *(value for way in WAYS for value in spread(found[capture.name, way]))) for capture in captures]
    print(table(("ns a packet", "file: min", "median", "memory: min", "median"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
