"""python -m bench.peers: the command line."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

from ..captures import WHERE_KEPT, cache_folder, get, select
from ..report import say
from .registry import PEERS
from .run import run
from .tables import chart, in_words, write_json

WORKLOADS = ("bulk", "web", "web100k", "lossy", "small", "manyflows")


def main(arguments: list[str] | None = None) -> int:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description="The same captures through tcpreasm and through real peers, interleaved, every run a process of its own.",
        epilog=f"peers: {', '.join(names)}. bench/peers/install.sh installs them; those that are missing are left out. {WHERE_KEPT}",
    )
    parser.add_argument("names", metavar="WORKLOAD", nargs="*", help=f"of bench.captures; default: {', '.join(WORKLOADS)}")
    parser.add_argument(
        "--captures", metavar="DIR", type=Path, help="where the captures are, or are made (default: the user's cache folder)"
    )
    parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="how much of each workload (default 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="runs of each peer over each capture (default 5)")
    parser.add_argument("--only", metavar="PEER,...", help="only those; * stands for the rest of a name")
    parser.add_argument("--json", metavar="FILE", type=Path, help="every run, with the machine and all versions")
    parser.add_argument("--png", metavar="FILE", type=Path, help="a chart (needs matplotlib)")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds is 1 or more, not {given.rounds}")
    wanted = given.only.split(",") if given.only else names
    for name in wanted:
        if not fnmatch.filter(names, name):
            parser.error(f"no peer is called {name!r}; there are {', '.join(names)}")
    try:
        workloads = select(given.names or WORKLOADS)
    except ValueError as error:
        parser.error(str(error))

    chosen = [peer for peer in PEERS if any(fnmatch.fnmatchcase(peer.name, name) for name in wanted)]
    skipped = [(peer.name, why) for peer in chosen if (why := peer.missing())]
    for name, why in skipped:
        say(f"left out: {name}: {why}")
    present = [peer for peer in chosen if not peer.missing()]
    if not present:
        parser.error("none of those can be run here")
    folder = (given.captures or cache_folder(given.scale)).resolve()
    results = run(present, (get(name, given.scale, folder) for name in workloads), given.rounds)
    if not any(result.runs for result in results):
        say("nothing was measured")
        return 1
    print(in_words(results, skipped))
    if given.json:
        write_json(given.json, results, skipped)
    if given.png:
        chart(given.png, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
