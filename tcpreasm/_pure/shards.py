"""`Shards`: one capture for several assemblers, as the compiled core does it with threads. Here one thread serves all of them in turn.

Called once for each step of STEP frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ..decoded import Segment
from ..frame import Frame
from ..verdict import Verdict
from .assembler import AssemblerBase

__all__ = ["MAX_THREADS", "Shards"]

MAX_THREADS = 64
STEP = 2048  # frames that are handed around together


class Decoded(NamedTuple):
    """One frame, and what it leads to."""

    verdict: Verdict
    segment: Segment | None
    data: bytes
    """What the segment lies in."""
    seen_ns: int
    offset: int
    """Of data in the file; -1: it lies in no one place there."""
    shard: int
    packet: int
    """Its number."""


class Shards:
    """One capture for several assemblers: each segment goes to the one that the symmetric hash of its connection tells.

    Args:
        assemblers: two or more, each over a pool of its own that has no connections.
        records: the reader of the capture.
        coalesce: as for `AssemblerBase.assemble_batch`; a batch is a step.
        base: as for `AssemblerBase.assemble_records`.

    `run(number)` is to be called once for each assembler, each in a thread of its own, the first one in the main thread if there are
    signals to be heard. Each returns when the capture was taken in, or something failed anywhere: `error` then has the exception.
    """

    def __init__(self, assemblers: Sequence[AssemblerBase], records: Any, coalesce: bool = False, base: int = 0) -> None:
        if not 2 <= len(assemblers) <= MAX_THREADS:
            raise ValueError(f"shards are 2 to {MAX_THREADS}, not {len(assemblers)}")
        self._assemblers = assemblers
        self._records = records
        self._coalesce = coalesce
        self._base = base
        self._clock = assemblers[0]._clock  # as it is with the frames that were read
        self._packets = assemblers[0]._packet  # so many were read
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Before the first run: the reader is held for all of them."""

    def end(self) -> None:
        """After the last run."""

    def run(self, shard: int) -> None:
        """Take in what belongs to that assembler, in this thread. Closes nothing."""
        if shard != 0:
            return  # the first one does it all
        try:
            while step := self._step():
                for number, assembler in enumerate(self._assemblers):
                    assembler._take_all(self._own(assembler, number, step), self._coalesce, True)
        except BaseException as raised:
            self.stop(raised)

    def _step(self) -> list[Decoded]:
        """The next frames. An error of the reader ends the capture: what was read before it is taken in."""
        step: list[Decoded] = []
        if self.error is None:
            try:
                step.extend(self._decode(frame, self._base + self._records.offset) for frame in islice(self._records, STEP))
            except BaseException as raised:
                self.stop(raised)
        return step

    def _decode(self, frame: Frame, offset: int) -> Decoded:
        """By the first assembler, in packet order: only all fragments of a datagram together tell its ports, and so its shard."""
        self._clock = self._clock.observe(frame.timestamp_ns)
        self._packets += 1
        now_ns = self._clock.now_ns or 0
        verdict, segment, data = self._assemblers[0]._decode(frame.data, frame.linktype, frame.wire_length, now_ns)
        place = -1 if data is not frame.data else offset
        return Decoded(verdict, segment, data, frame.timestamp_ns, place, self._shard(segment), self._packets)

    def stop(self, error: BaseException) -> None:
        """Everybody is to return soon, because of that."""
        self.error = self.error or error

    def _own(self, assembler: AssemblerBase, number: int, step: list[Decoded]) -> Iterator[Callable[[], object]]:
        """What takes in the frames of one shard. Capture time goes on with the others too."""
        for one in step:
            assembler._observe(one.seen_ns)
            assembler._packet = one.packet
            if one.shard == number:
                yield partial(assembler._decoded, *one[:5])
            else:
                assembler._tick()

    def _shard(self, segment: Segment | None) -> int:
        if segment is None:
            return 0
        ends = sorted(((segment.src, segment.src_port), (segment.dst, segment.dst_port)))
        return hash((*ends[0], *ends[1])) % len(self._assemblers)
