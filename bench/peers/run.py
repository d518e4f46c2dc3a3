"""The rounds: every peer once over a capture, then all of them once more, so that whatever else the machine does meets them all alike.

Lives here: order, and what is kept of each run. Each round begins with another peer. The captures are in the page cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..captures import Capture
from ..measure import Measurement, Missing, read_once
from ..report import rounds, say, spread
from .cuts import Sample, cut, whole
from .registry import Peer

__all__ = ["Result", "run"]


@dataclass
class Result:
    """What one peer did with one workload."""

    peer: Peer
    sample: Sample
    runs: list[Measurement] = field(default_factory=list)
    trouble: str = ""
    """Why there are no more runs."""

    @property
    def minimum(self) -> float:
        """Nanoseconds a packet, of the sample."""
        return spread(run.ns_per_packet for run in self.runs)[0]

    @property
    def median(self) -> float:
        return spread(run.ns_per_packet for run in self.runs)[1]

    @property
    def peak_rss(self) -> int | None:
        """Bytes: the least that any run needed."""
        return min((run.peak_rss for run in self.runs if run.peak_rss is not None), default=None)

    @property
    def wrong(self) -> float:
        """Bytes that it delivered too many, or too few (negative), as a part of those that the capture holds; 0: right, or not known.

        Files may have holes: those count as right where they are not longer than what was sent."""
        delivered = self.runs[-1].bytes_delivered
        most = self.sample.bytes_sent if getattr(self.peer, "writes", "") == "files" else self.sample.bytes_present
        if delivered is None or self.sample.bytes_present <= delivered <= most:
            return 0.0
        return (delivered - self.sample.bytes_present) / self.sample.bytes_present

    @property
    def checked(self) -> bool:
        """It says how many bytes it delivered."""
        return self.runs[-1].bytes_delivered is not None


def run(peers: Sequence[Peer], captures: Iterable[Capture], count: int) -> list[Result]:
    """All peers over all captures, `count` rounds each. A peer that fails on a capture is left out of that one's further rounds."""
    results = []
    for capture in captures:
        say(f"{capture.name}: {capture.packets:,} packets")
        here = [Result(peer, _sample(peer, capture)) for peer in peers]
        for path in {result.sample.path for result in here}:
            read_once(path)
        for number in rounds(count):
            first = number % len(here)
            for result in here[first:] + here[:first]:
                if not result.trouble and (not result.peer.most_rounds or number <= result.peer.most_rounds):
                    _once(result)
        results += here
    return results


def _sample(peer: Peer, capture: Capture) -> Sample:
    most = peer.most_packets_of.get(capture.name, peer.most_packets)
    return cut(capture, most) if most else whole(capture)


def _once(result: Result) -> None:
    try:
        measurement = result.peer.run(result.sample)
    except (Missing, RuntimeError) as error:
        result.trouble = str(error)
        say(f"{result.peer.name}, {result.sample.workload}: {error}")
        return
    if result.runs and result.runs[-1].bytes_delivered != measurement.bytes_delivered:
        result.trouble = f"delivered {measurement.bytes_delivered} bytes, and {result.runs[-1].bytes_delivered} before"
        say(f"{result.peer.name}, {result.sample.workload}: {result.trouble}")
    result.runs.append(measurement)
