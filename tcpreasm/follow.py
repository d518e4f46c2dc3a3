"""`follow`: the finished streams of a capture, one after the other, while it is read. The five-line use of the package.

Lives here: an iterator over the public API. Called by the user; costs what an Assembler with BytesStreams costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ._log import Log
from .api import STEP_FRAMES, Assembler, CaptureSource, StreamPool
from .flow import ConnectionKey, Flow
from .options import AssemblerOptions, check_bool
from .provenance import origin_of
from .streams import BytesStream

if TYPE_CHECKING:
    import numpy

    from .provenance import ProvenanceArray

__all__ = ["FinishedStream", "finished_steps", "follow", "one_by_one", "steps_of", "unfrozen"]

T = TypeVar("T")

_log = Log(__name__)

_Steps: TypeAlias = "Generator[Iterator[FinishedStream], None, None]"


def unfrozen(cls: Any) -> Any:
    """A class of the same slots. Its objects are filled by assignment, then become that frozen dataclass's by `__class__`: its constructor
    takes several times as long, as it asks object.__setattr__ for each field."""
    return type(cls.__name__, (), {"__slots__": cls.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStream:
    """One direction of one TCP connection, complete. `str()` gives one line.

    Attributes:
        key: who sent to whom, a ConnectionKey.
        data: the bytes that were captured, in order, gaps joined.
        gaps: (offset, length) of each hole. Offsets count the stream's bytes, the missing ones among them.
        started: the SYN was captured: the first byte is the stream's first. Else an unknown number of bytes is missing before it.
        ended: it was ended by FIN or RST. Else the capture ended, or the connection was silent for too long.
        first_seen_ns, last_seen_ns: capture time of the earliest and the latest packet that brought something, in nanoseconds since 1970.
        first_seen, last_seen: the same in seconds.
        gap_count: holes.
        missing: bytes in all gaps together.
        provenance: where each byte came from, as `BytesStream.provenance`; None where `follow` was not asked for it.
    """

    key: ConnectionKey
    data: bytes = field(repr=False)
    gaps: tuple[tuple[int, int], ...]
    started: bool
    ended: bool
    first_seen_ns: int
    last_seen_ns: int
    provenance: ProvenanceArray | None = field(default=None, repr=False, compare=False)

    @property
    def first_seen(self) -> float:
        """`first_seen_ns` in seconds."""
        return self.first_seen_ns / 1e9

    @property
    def last_seen(self) -> float:
        """`last_seen_ns` in seconds."""
        return self.last_seen_ns / 1e9

    @property
    def gap_count(self) -> int:
        """Holes in it."""
        return len(self.gaps)

    @property
    def missing(self) -> int:
        """Bytes in all gaps together."""
        return sum(length for _, length in self.gaps)

    def origin_of(self, offset: int) -> numpy.void:
        """The row of `provenance` that brought the byte at that offset, as `BytesStream.origin_of`."""
        if self.provenance is None:
            raise ValueError("this stream was followed without provenance=True")
        return origin_of(self.provenance, offset)

    def __str__(self) -> str:
        text = f"{self.key} {len(self.data)} bytes"
        if self.gaps:
            text += f", {len(self.gaps)} gap{'s' if len(self.gaps) > 1 else ''} ({self.missing} bytes missing)"
        if not self.started:
            text += ", start not captured"
        return text if self.ended else f"{text}, end not captured"


_Unfrozen = unfrozen(FinishedStream)


class _Followed(BytesStream):
    """Reports itself when it is complete."""

    __slots__ = ("_done",)

    def __init__(self, net_flow: Flow, transport_flow: Flow, done: deque[_Followed], provenance: bool) -> None:
        super().__init__(net_flow, transport_flow, provenance=provenance)
        self._done = done

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self._done.append(self)


def follow(source: CaptureSource, options: AssemblerOptions | None = None, *, provenance: bool = False) -> Iterator[FinishedStream]:
    """The streams of a capture, each direction by itself, in the order in which they end, while the capture is read.

    Args:
        source: a path, "-" for standard input, a binary file object, bytes, an open capture (live ones too), an iterable of
            frames, or a list of these: see `Assembler.assemble_capture`.
        options: AssemblerOptions; the defaults where None.
        provenance: tell of each byte what packet brought it: `FinishedStream.provenance`.

    Holds the bytes of the streams that are open, no others: what was yielded is the caller's. Streams that are open at the end of
    the capture come last. A capture that is cut in the middle gives what is there, and a logged warning. Ctrl-C while it waits for
    packets gives the open streams, then raises KeyboardInterrupt. OSError and CaptureError come with the first stream asked for.

    >>> list(follow([]))
    []
    """
    return one_by_one(finished_steps(source, options, provenance))


def one_by_one(steps: Iterator[Iterator[T]]) -> Iterator[T]:
    """What all of them give."""
    for finished in steps:
        yield from finished


def finished_steps(
    source: CaptureSource, options: AssemblerOptions | None = None, provenance: bool = False, *, step_frames: int = STEP_FRAMES
) -> _Steps:
    """`follow` in the steps of `Assembler.assemble_steps`: what has finished at each, which is to be taken before the next."""
    done: deque[_Followed] = deque()
    check_bool("provenance", provenance)
    pool = StreamPool(lambda net_flow, transport_flow: _Followed(net_flow, transport_flow, done, provenance))
    return steps_of(Assembler(pool, options), source, partial(_finished, done), step_frames)


def steps_of(
    assembler: Assembler, source: CaptureSource, finished: Callable[[], Iterator[T]], step_frames: int = STEP_FRAMES
) -> Generator[Iterator[T], None, None]:
    """What is finished at each step, while the assembler takes the source in: `finished` gives what was so since it was called last."""
    problems: list[str] = []
    try:
        for _ in assembler.assemble_steps(source, problems=problems, step_frames=step_frames):
            yield finished()
            while problems:
                _log.warning("%s", problems.pop())
    except KeyboardInterrupt:
        yield finished()
        raise


def _finished(done: deque[_Followed]) -> Iterator[FinishedStream]:
    while done:
        stream = done.popleft()
        if stream.first_seen_ns is None or stream.last_seen_ns is None:
            continue  # nothing ever came
        finished = _Unfrozen()
        finished.key = stream.key
        finished.data = stream.data
        finished.gaps = stream.gaps
        finished.started = stream.started
        finished.ended = stream.ended
        finished.first_seen_ns = stream.first_seen_ns
        finished.last_seen_ns = stream.last_seen_ns
        finished.provenance = stream.provenance
        finished.__class__ = FinishedStream
        yield finished
