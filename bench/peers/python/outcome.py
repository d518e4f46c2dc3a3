"""What the peers written in Python share: a script here counts a capture's bytes its way, and says so in one line of JSON.

Standard library only: each runs by itself in the peers' own environment, not in this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """What was read out of one capture. -1: this peer can't tell."""

    packets: int
    bytes_delivered: int
    bytes_skipped: int
    streams: int
    """Directions that delivered bytes."""


def main(count: Callable[[str], Outcome]) -> None:
    """Times `count` on the capture named on the command line: from opening the file to the last byte."""
    begin = time.perf_counter_ns()
    outcome = count(sys.argv[1])
    ns = time.perf_counter_ns() - begin
    print(json.dumps({"ns": ns, **outcome._asdict()}))
