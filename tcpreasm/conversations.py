"""Both directions of a TCP connection together: `ConversationPool` pairs them, `conversations` lists them.

Lives here: the pool as callers make it, what its handlers look like, and finished conversations as records. Not here: the pairing, the
counters, what callers see of a conversation, and who is called when (the core). This runs once a pool, and once a finished conversation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from ._select import core
from .api import Assembler, CaptureSource
from .follow import one_by_one, steps_of, unfrozen
from .options import AssemblerOptions, check_bool
from .provenance import origin_of, rows_of
from .streams import ByteCountStream, BytesStream, DigestStream, SpanStream, Stream

if TYPE_CHECKING:
    import numpy

    from .flow import ConnectionKey
    from .provenance import ProvenanceArray

__all__ = [
    "Conversation",
    "ConversationFactory",
    "ConversationHandler",
    "ConversationPool",
    "FinishedConversation",
    "FinishedSide",
    "Side",
    "SideStreams",
    "conversations",
]

Conversation = core.Conversation
Side = core.Side

ROLES = ("client", "server")
STATES = ("opening", "open", "half-closed", "closed", "reset", "refused")

_BY_FLOWS = (ByteCountStream, BytesStream, DigestStream, SpanStream)


class ConversationHandler(Protocol):
    """What a factory makes for each conversation. Each side's calls come from one thread at a time, and so do those of both, unless several
    assemblers in several threads share the pool.

    A method `side_complete(side)` is called too, where there is one: the stream of that side is over. So are methods `on_gap(side, seq,
    missing, why)`, `on_conflict(side, seq, held, new, wins)` and `on_evict(side, why)`, as those of a Stream: behind `side_complete` and
    `conversation_complete` where these have been called by then.
    """

    def reassembled(self, side: Side, reassemblies: list[core.Reassembly]) -> object:
        """The next pieces of what that side has sent, in order; those of both sides come in the order of the capture. (With `coalesce`,
        each side gets what a block brings in one call.) Returns `STOP` where no more of that side is needed: as with `Stream`, and the
        other side goes on."""

    def conversation_complete(self) -> None:
        """Nothing more will come. Called exactly once, last, but for what there is to tell of gaps and conflicts."""


class ConversationFactory(Protocol):
    """What a `ConversationPool` asks for handlers. Any callable of the same argument does as well."""

    def new(self, conversation: Conversation) -> ConversationHandler:
        """A handler for a new conversation."""


class SideStreams(Protocol):
    """What a `ConversationPool` asks for the streams of sides, where it has `streams`. Any callable of the same argument does as well.

    A method `conversation_complete(conversation)` is called too, where there is one: nothing more of that conversation comes.
    """

    def new(self, side: Side) -> Stream:
        """A stream for one side of a conversation."""


class ConversationPool(core.ConversationPoolBase):
    """The connections, both directions of each together, with a handler for each conversation, or a stream for each side. Stands in the
    place of a StreamPool.

    Args:
        factory: makes the handler of each conversation: an object with `new(conversation)`, or a callable of that, such as the class of the
            handlers itself. See ConversationHandler.
        streams: instead of it: makes the stream of each side: a callable of the Side, or an object with `new(side)`, whose method
            `conversation_complete(conversation)`, where it has one, is called last; or one of the classes ByteCountStream, BytesStream,
            DigestStream and SpanStream itself. The streams that this package brings are served in C.

    The factory is called when the first stream of a conversation is due, `streams` when that of each side is: see
    `AssemblerOptions.open_on`. TypeError for anything else than one callable or factory.

    Beyond what a StreamPool does: an exact RST of one side ends the other one too, and a RST in answer to a SYN that one. What is missing
    on one side and acknowledged by the other is waited for `acked_hole_timeout` only. A conversation is complete when both sides are over;
    or a RST has ended it; or one side is over, has been forgotten, and nothing came from the other one.

    `len(pool)` is the number of open connections (sides), `pool.keys()` lists them.
    """

    def __init__(
        self,
        factory: ConversationFactory | Callable[[Conversation], ConversationHandler] | None = None,
        *,
        streams: SideStreams | Callable[[Side], Stream] | type[ByteCountStream] | None = None,
    ) -> None:
        if (factory is None) == (streams is None):
            raise TypeError(f"a ConversationPool has a factory or streams=, not {'neither' if factory is None else 'both'}")
        if streams is None and not callable(getattr(factory, "new", factory)):
            raise TypeError(f"a conversation factory has a method new(conversation) or is callable, not {factory!r}")
        stream_of: Any = streams if isinstance(streams, type) else getattr(streams, "new", streams)
        if factory is None and not callable(stream_of):
            raise TypeError(f"streams is a callable of a Side, or has a method new(side), not {streams!r}")
        if streams is None:
            self._begin(factory, "conversation")
        elif streams in _BY_FLOWS:
            self._begin(streams, "flows")
        else:
            self._begin(stream_of, "side", getattr(streams, "conversation_complete", None))
        self.streams = streams

    def _begin(self, factory: Any, called_with: str, done: Callable[[Conversation], None] | None = None) -> None:
        super().__init__(factory, called_with, done)
        self._assemblers: WeakSet[Assembler] = WeakSet()  # that are open

    def _another(self) -> ConversationPool:
        """One of the same factory, without connections."""
        return ConversationPool(self.factory) if self.streams is None else ConversationPool(streams=self.streams)


# -- conversations, one after the other -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedSide:
    """What one side of a conversation has sent, complete.

    Attributes:
        key: who sent to whom, a ConnectionKey.
        data: the bytes that were captured, in order, gaps joined.
        gaps: (offset, length) of each hole. Offsets count the stream's bytes, the missing ones among them.
        started, ended, packets, bytes, delivered, skipped, acked, first_seen_ns, last_seen_ns: as in `Side`.
        gap_count: holes.
        missing: bytes in all gaps together.
        provenance: where each byte came from, as `BytesStream.provenance`; None where `conversations` was not asked for it.
    """

    key: ConnectionKey
    data: bytes = field(repr=False)
    gaps: tuple[tuple[int, int], ...]
    started: bool
    ended: bool
    packets: int
    bytes: int
    delivered: int
    skipped: int
    acked: int | None
    first_seen_ns: int | None
    last_seen_ns: int | None
    provenance: ProvenanceArray | None = field(default=None, repr=False, compare=False)

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
            raise ValueError("these conversations were listed without provenance=True")
        return origin_of(self.provenance, offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedConversation:
    """Both directions of one TCP connection, complete. `str()` gives one line.

    Attributes:
        client, server: what each has sent, a FinishedSide.
        guessed, handshake, syn_ns, syn_ack_ns, handshake_ack_ns, handshake_time, handshake_time_ns, closed_by, closed_how, state,
            first_seen_ns, last_seen_ns: as in `Conversation`.
        key: client to server.
    """

    client: FinishedSide
    server: FinishedSide
    guessed: bool
    handshake: bool
    syn_ns: int | None
    syn_ack_ns: int | None
    handshake_ack_ns: int | None
    handshake_time: float | None
    handshake_time_ns: int | None
    closed_by: str | None
    closed_how: str | None
    state: str
    first_seen_ns: int | None
    last_seen_ns: int | None

    @property
    def key(self) -> ConnectionKey:
        """Client to server."""
        return self.client.key

    def __str__(self) -> str:
        return f"{self.key} {len(self.client.data)} bytes and back {len(self.server.data)}, {self.state}"


class _Followed(ConversationPool):
    """Reports conversations that are complete."""

    def __init__(self, done: deque[Conversation], provenance: bool) -> None:
        self._begin(partial(BytesStream, provenance=True) if provenance else BytesStream, "flows", done.append)


def conversations(
    source: CaptureSource, options: AssemblerOptions | None = None, *, provenance: bool = False
) -> Iterator[FinishedConversation]:
    """The conversations of a capture, in the order in which they end, while the capture is read.

    Args:
        source: a path, "-" for standard input, a binary file object, bytes, an open capture (live ones too), an iterable of
            frames, or a list of these: see `Assembler.assemble_capture`.
        options: AssemblerOptions; the defaults where None.
        provenance: tell of each byte what packet brought it: `FinishedSide.provenance`.

    Holds the bytes of the conversations that are open, no others: what was yielded is the caller's. Those that are open at the end of the
    capture come last. Cut captures, Ctrl-C and errors: as with `follow`.

    >>> list(conversations([]))
    []
    """
    check_bool("provenance", provenance)
    done: deque[Conversation] = deque()
    return one_by_one(steps_of(Assembler(_Followed(done, provenance), options), source, partial(_finished, done, provenance)))


_UnfrozenConversation = unfrozen(FinishedConversation)
_UnfrozenSide = unfrozen(FinishedSide)


def _finished(done: deque[Conversation], provenance: bool) -> Iterator[FinishedConversation]:
    while done:
        conversation = done.popleft()
        finished = _UnfrozenConversation()
        finished.client = _finished_side(conversation.client, provenance)
        finished.server = _finished_side(conversation.server, provenance)
        finished.guessed = conversation.guessed
        finished.handshake = conversation.handshake
        finished.syn_ns = conversation.syn_ns
        finished.syn_ack_ns = conversation.syn_ack_ns
        finished.handshake_ack_ns = conversation.handshake_ack_ns
        finished.handshake_time = conversation.handshake_time
        finished.handshake_time_ns = conversation.handshake_time_ns
        finished.closed_by = conversation.closed_by
        finished.closed_how = conversation.closed_how
        finished.state = conversation.state
        finished.first_seen_ns = conversation.first_seen_ns
        finished.last_seen_ns = conversation.last_seen_ns
        finished.__class__ = FinishedConversation
        yield finished


def _finished_side(side: Side, provenance: bool) -> Any:
    stream = side.stream
    finished = _UnfrozenSide()
    finished.key = side.key
    if stream is None:
        finished.data, finished.gaps, finished.provenance = b"", (), rows_of(b"") if provenance else None
    else:
        finished.data, finished.gaps, finished.provenance = stream.data, stream.gaps, stream.provenance
    finished.started = side.started
    finished.ended = side.ended
    finished.packets = side.packets
    finished.bytes = side.bytes
    finished.delivered = side.delivered
    finished.skipped = side.skipped
    finished.acked = side.acked
    finished.first_seen_ns = side.first_seen_ns
    finished.last_seen_ns = side.last_seen_ns
    finished.__class__ = FinishedSide
    return finished
