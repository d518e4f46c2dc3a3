"""Memory over tens of millions of packets without a single FIN: what is forgotten must be, and what was allocated must serve again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import load

MILLIONS = 30

SCRIPT = """
    import sys
    import numpy as np
    import tcpreasm

    rounds, kept = int(sys.argv[1]), {}
    size, flows = 100_000, 10_000
    one = bytearray(bytes(12) + b"\\x08\\x00" + bytes.fromhex("4500003c0000000040060000") + bytes(8) + bytes(20) + bytes(20))
    frames = np.tile(np.frombuffer(bytes(one), np.uint8), (size, 1))
    frames[:, 46] = 0x50                                   # TCP header of 20 bytes
    frames[:, 47] = 0x10                                   # ACK
    which = np.arange(size) % flows
    order = np.arange(size) // flows                       # ten segments of each flow: a SYN, and nine, of which one is lost and two swap
    place = order.copy()
    place[order == 5], place[order == 6] = 6, 5
    lost = order == 8
    frames[order == 0, 47] = 2
    lengths = np.where(order == 0, 54, 74).astype(np.int64)
    frames[order == 0, 16:18] = (0, 40)
    seq = np.where(order == 0, 0, 1 + (place - 1) * 20).astype(">u4")
    frames[:, 38:42] = seq.view(np.uint8).reshape(size, 4)
    frames[lost, 23] = 17                                  # UDP, so that TCP misses it
    offsets = np.arange(size, dtype=np.int64) * frames.shape[1]
    now = 1_700_000_000_000_000_000

    def resident():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))

    options = tcpreasm.AssemblerOptions(hole_timeout=2.0, idle_timeout=4.0)
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), options)
    for number in range(rounds):
        ends = (which + number * flows).astype(">u4")      # other clients each time
        frames[:, 26:30] = ends.view(np.uint8).reshape(size, 4)
        frames[:, 30:34] = (192, 0, 2, 1)
        frames[:, 34:38] = (4, 210, 0, 80)
        times = now + number * 1_000_000_000 + np.arange(size, dtype=np.int64) * 10_000
        assembler.assemble_batch(frames.tobytes(), offsets, lengths, times)
        assembler.tick()
        if number + 1 in (rounds // 3, rounds):
            kept[number + 1] = resident()
    stats = assembler.stats
    assert stats.frames == rounds * size
    assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_held + stats.bytes_dropped
    print(*kept.values(), stats.streams_opened, stats.streams_closed, len(assembler.pool), stats.bytes_held, stats.bytes_skipped)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps freed memory: nothing to learn of it")
def test_memory_stays_flat_without_a_fin() -> None:
    """300 rounds of 10,000 new connections each, with a hole in each: after a third of them memory grows no more."""
    rounds = MILLIONS * 10
    environment = {**os.environ, "PYTHONPATH": str(Path(load("compiled").__file__ or "").parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(rounds)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    early, late, opened, closed, alive, held, skipped = map(int, done.stdout.split())
    assert opened == rounds * 10_000
    assert opened - closed == alive <= 60_000
    assert held <= alive * 20
    assert skipped > (rounds - 6) * 10_000 * 20 * 0.99
    assert late - early <= 4096, f"{early} KiB after a third of the rounds, {late} at the end"
