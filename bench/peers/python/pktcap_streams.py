"""pktcap's TCPReassembler, with room for all that the benchmark's captures hold."""

from __future__ import annotations

from outcome import Outcome, main
from pktcap import TCPReassembler, read_tcp_streams


def count(path: str) -> Outcome:
    reassembler = TCPReassembler(max_streams=1 << 20, max_buffered=1 << 30)
    delivered = 0
    seen = set()
    for run in read_tcp_streams(path, reassembler=reassembler):
        delivered += len(run.data)
        if run.data:
            seen.add((run.stream, run.source))
    stats = reassembler.stats
    return Outcome(-1, delivered, stats.missing, len(seen))


if __name__ == "__main__":
    main(count)
