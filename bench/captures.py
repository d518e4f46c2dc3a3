"""The captures of the workloads: makes them, keeps them, and tells what is in them.

    python -m bench.captures [--out DIR] [--scale F] [NAME...]      "ooo" stands for all that begin with it; no name: all

Lives here: names, sizes, files. Each capture is NAME.pcap, and NAME.json with the fields of `Capture`. They are made once and kept in
TCPREASM_BENCH_CACHE or the user's cache folder, a folder for each scale; all of them at full size are 4 GB, and take some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from .traffic import ARRIVALS, Traffic, bulk, bytes_in_order, directions, lossy, many_flows, out_of_order, small, web, write_pcap

__all__ = ["NAMES", "SHAPES", "WHERE_KEPT", "Capture", "cache_folder", "get", "load", "make", "select"]

GENERATION = 1  # of the generator: another one makes all captures anew

SHAPES: dict[str, Callable[[float], Traffic]] = {
    "bulk": bulk,
    "web": partial(web, count=16_000, rate=2000, median=10_000, sigma=1.2),
    "web100k": partial(web, count=100_000, rate=3000, median=1_400, sigma=1.15),
    "manyflows": many_flows,
    "small": small,
    "lossy": lossy,
}
for _arrival in ARRIVALS:
    for _window in (1_000, 10_000, 100_000):
        SHAPES[f"ooo-{_arrival}-{_window // 1000}k"] = partial(out_of_order, arrival=_arrival, window=_window)
NAMES = tuple(SHAPES)

WHERE_KEPT = (
    "Captures are made once and kept, about 4 GB of all workloads at full size, in $TCPREASM_BENCH_CACHE or the user's cache folder"
    " (~/.cache/tcpreasm-bench), a folder for each scale; delete them there."
)
"""For the help of whatever makes captures."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A capture file, and what a reassembler must get out of it."""

    path: Path
    name: str
    scale: float
    generation: int
    description: str
    file_bytes: int
    packets: int
    """All of them TCP segments."""
    data_packets: int
    """Those with payload."""
    payload_bytes: int
    """In all packets together, repeated ones as often as they come."""
    connections: int
    directions: int
    """Those of which the capture holds payload."""
    bytes_sent: int
    """By all applications."""
    bytes_present: int
    """Of those, what the capture holds: what a reassembler delivers."""
    bytes_in_order: int
    """Payload that begins where all earlier payload of its direction ends: what a loop gets that holds nothing back."""
    gaps: int
    """Holes in the streams that nothing in the capture fills."""
    digest_sum: str
    """Sum of the first 8 bytes (big-endian) of the SHA-256 of each of `directions`, gaps left out, modulo 2**64, as 16 hexadecimal digits:
    all bytes of all streams in one number, in whatever order the streams come."""

    @property
    def bytes_skipped(self) -> int:
        """Bytes of the streams that the capture does not hold: what a reassembler reports as missing."""
        return self.bytes_sent - self.bytes_present


def cache_folder(scale: float = 1.0) -> Path:
    """Where captures of that scale are kept."""
    named = os.environ.get("TCPREASM_BENCH_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tcpreasm-bench"
    return base / f"scale-{scale:g}"


def make(name: str, folder: Path, scale: float = 1.0) -> Capture:
    """Make one capture anew."""
    traffic = SHAPES[name](scale)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}.part"  # a name of its own: two processes may be making the same one
    try:
        file_bytes = write_pcap(part, traffic)
        path = folder / f"{name}.pcap"
        capture = _describe(name, scale, path, file_bytes, traffic)
        path.with_suffix(".json").unlink(missing_ok=True)
        part.replace(path)
        content = {key: value for key, value in asdict(capture).items() if key != "path"}
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path.with_suffix(".json"))  # last: where it stands, the capture is whole
    finally:
        part.unlink(missing_ok=True)
    return capture


def _describe(name: str, scale: float, path: Path, file_bytes: int, traffic: Traffic) -> Capture:
    present = sent = gaps = digest_sum = count = 0
    for direction in directions(traffic):
        sent += direction.sent
        gaps += len(direction.gaps)
        if direction.present:
            present += direction.present
            count += 1
            digest_sum += int.from_bytes(direction.sha256[:8], "big")
    size = traffic.packets["size"]
    return Capture(
        path=path,
        name=name,
        scale=scale,
        generation=GENERATION,
        description=traffic.description,
        file_bytes=file_bytes,
        packets=len(size),
        data_packets=int((size > 0).sum()),
        payload_bytes=int(size.sum()),
        connections=traffic.connections.count,
        directions=count,
        bytes_sent=sent,
        bytes_present=present,
        bytes_in_order=bytes_in_order(traffic),
        gaps=gaps,
        digest_sum=f"{digest_sum % 2**64:016x}",
    )


def load(path: Path) -> Capture:
    """The capture at a path, by the JSON beside it. FileNotFoundError without one."""
    content = json.loads(path.with_suffix(".json").read_text())
    known = {field.name for field in fields(Capture)} - {"path"}
    return Capture(path=path, **{key: value for key, value in content.items() if key in known})


def get(name: str, scale: float = 1.0, folder: Path | None = None) -> Capture:
    """The capture of that name; made where it is not there yet, in `folder` or the cache."""
    folder = cache_folder(scale) if folder is None else folder
    path = folder / f"{name}.pcap"
    try:
        capture = load(path)
        if (capture.generation, capture.scale, capture.file_bytes) == (GENERATION, scale, path.stat().st_size):
            return capture
    except (OSError, TypeError, ValueError):
        pass  # none, or one that an older generator left
    return make(name, folder, scale)


def select(names: Iterable[str]) -> list[str]:
    """Names as given on a command line, in their usual order: a group stands for its members, nothing for all. ValueError for others."""
    wanted = list(names)
    for name in wanted:
        if name != "ooo" and name not in SHAPES:
            raise ValueError(f"no workload is called {name!r}; there are {', '.join(NAMES)}, and ooo for all of those")
    return [name for name in NAMES if not wanted or name in wanted or ("ooo" in wanted and name.startswith("ooo-"))]


def main(arguments: list[str] | None = None) -> int:
    text = f"Makes the captures that are not there yet. {WHERE_KEPT}"
    parser = argparse.ArgumentParser(prog="python -m bench.captures", description=text)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the files (default: in the user's cache folder)")
    parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="how much of each workload (default 1)")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(NAMES[:6])}, ooo, or one of ooo's parts; default: all")
    given = parser.parse_args(arguments)
    try:
        names = select(given.names)
    except ValueError as error:
        parser.error(str(error))
    folder = cache_folder(given.scale) if given.out is None else given.out
    print(f"in {folder}")
    for name in names:
        begin = time.perf_counter()
        capture = get(name, given.scale, folder)
        print(
            f"{name:20} {capture.packets:>9,} packets {capture.connections:>8,} connections {capture.file_bytes / 1e6:>8,.1f} MB,"
            f" {capture.bytes_present / 1e6:>8,.1f} MB in streams, {capture.gaps} gaps, {capture.digest_sum}"
            f" ({time.perf_counter() - begin:.1f} s)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
