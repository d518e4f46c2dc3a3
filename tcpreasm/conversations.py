"""Both directions of a TCP connection together: `ConversationPool` pairs them, `conversations` lists them.

Lives here: what callers see of a conversation, and who gets its pieces. Not here: the pairing, the counters and the rules (the core), which
run once a packet. This runs when a conversation begins, when one of its streams does, at its end, and when an attribute is asked for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from weakref import WeakSet, ref

from ._select import core
from .api import Assembler, CaptureSource
from .errors import no_handler
from .flow import ConnectionKey, Flow
from .follow import one_by_one, steps_of
from .options import AssemblerOptions, check_bool
from .streams import BytesStream, Stream

if TYPE_CHECKING:
    from .provenance import ProvenanceArray

__all__ = [
    "Conversation",
    "ConversationFactory",
    "ConversationHandler",
    "ConversationPool",
    "FinishedConversation",
    "FinishedSide",
    "Side",
    "conversations",
]

ROLES = ("client", "server")


class _Facts(NamedTuple):
    """`ConversationState.facts()`."""

    client: int
    guessed: bool
    complete: bool
    reset: bool
    refused: bool
    closed_by: int | None
    closed_by_rst: bool
    syn_ns: int | None
    syn_ack_ns: int | None
    handshake_ack_ns: int | None


class _SideFacts(NamedTuple):
    """`ConversationState.side_facts()`."""

    packets: int
    bytes: int
    delivered: int
    skipped: int
    acked: int | None
    started: bool
    finished: bool
    ended: bool
    first_seen_ns: int | None
    last_seen_ns: int | None


class Side:
    """One direction of a conversation: what one of the two sends. Made by the pool.

    Attributes:
        conversation: the Conversation that it is a side of.

    Everything else is a property, and tells how things are when it is asked for.
    """

    __slots__ = ("__weakref__", "_index", "_key", "conversation")

    def __init__(self, conversation: Conversation, index: int) -> None:
        self.conversation = conversation
        self._index = index
        self._key: ConnectionKey | None = None

    def __repr__(self) -> str:
        return f"<{self.role} {self.key}>"

    @property
    def peer(self) -> Side:
        """The other one."""
        return self.conversation.sides[self.role == "client"]

    @property
    def role(self) -> str:
        """Which of the two it is, "client" or "server"; see `Conversation.guessed`."""
        return ROLES[self._index != self.conversation._state.client]

    @property
    def stream(self) -> Any:
        """What `streams` made for it. None: nothing yet, or the pool has handlers."""
        return self.conversation._streams[self._index]

    @property
    def key(self) -> ConnectionKey:
        """Who sends to whom."""
        key = self._key
        if key is None:
            key = self._key = self.conversation._state.key_of(self._index)
        return key

    @property
    def net_flow(self) -> Flow:
        """The addresses, the sender's as `src`."""
        return self.key.net_flow

    @property
    def transport_flow(self) -> Flow:
        """The ports, the sender's as `src`."""
        return self.key.transport_flow

    @property
    def _facts(self) -> _SideFacts:
        return _SideFacts._make(self.conversation._state.side_facts(self._index))

    @property
    def packets(self) -> int:
        """Segments of this side, acknowledgements and repeated ones among them, from the one on with which the conversation began."""
        return self._facts.packets

    @property
    def bytes(self) -> int:
        """Bytes of payload in them, as captured, repeated ones among them."""
        return self._facts.bytes

    @property
    def delivered(self) -> int:
        """Bytes given to its stream."""
        return self._facts.delivered

    @property
    def skipped(self) -> int:
        """Bytes missing in it, as far as their number is known."""
        return self._facts.skipped

    @property
    def acked(self) -> int | None:
        """The highest acknowledgement number that this side has sent (modulo 2**32). None: none yet."""
        return self._facts.acked

    @property
    def started(self) -> bool:
        """Its SYN was captured."""
        return self._facts.started

    @property
    def ended(self) -> bool:
        """Its stream has reached its own FIN or RST. False for one that ended with the other side's RST."""
        return self._facts.ended

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of its first segment, nanoseconds since 1970. None: it has sent nothing."""
        return self._facts.first_seen_ns

    @property
    def last_seen_ns(self) -> int | None:
        """Capture time of its latest segment."""
        return self._facts.last_seen_ns


class Conversation:
    """Both directions of one TCP connection. Made by the pool when the first of its streams is due.

    Attributes:
        handler: what the factory made. None in a pool with `streams`.
        context: whatever you put there.

    Everything else is a property, and tells how things are when it is asked for.
    """

    __slots__ = ("_lock", "_makes", "_sides", "_state", "_streams", "context", "handler")

    def __init__(self, state: core.ConversationState, handled: bool) -> None:
        self._state = state
        kind = _HandledSide if handled else Side
        self._sides: list[Any] = [kind(self, 0), kind(self, 1)]  # when it is complete, weak references
        self._streams: list[Any] = [None, None]
        self._lock = threading.RLock() if handled else None  # until there is a handler
        self._makes = False
        self.handler: Any = None
        self.context: Any = None

    def __repr__(self) -> str:
        return f"<conversation {self.key}, {self.state}>"

    @property
    def _facts(self) -> _Facts:
        return _Facts._make(self._state.facts())

    def _side(self, index: int) -> Side:
        side = self._sides[index]
        if isinstance(side, ref):
            side = side() or Side(self, index)
            self._sides[index] = ref(side)
        return cast("Side", side)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Client and server."""
        client = self._state.client
        return self._side(client), self._side(1 - client)

    @property
    def client(self) -> Side:
        """Who sent the SYN, or was answered with a SYN-ACK; else see `guessed`."""
        return self._side(self._state.client)

    @property
    def server(self) -> Side:
        """The other one."""
        return self._side(1 - self._state.client)

    @property
    def guessed(self) -> bool:
        """No SYN has told who is client: who has the lower port is taken for the server, and where both are equal, who was seen first for
        the client. A SYN that comes late corrects it."""
        return self._facts.guessed

    @property
    def key(self) -> ConnectionKey:
        """Client to server."""
        return self.client.key

    @property
    def handshake(self) -> bool:
        """SYN, SYN-ACK and the client's ACK were captured (RFC 9293 3.5)."""
        facts = self._facts
        return None not in (facts.syn_ns, facts.syn_ack_ns, facts.handshake_ack_ns)

    @property
    def syn_ns(self) -> int | None:
        """Capture time of the client's first SYN, nanoseconds since 1970. None: not seen. (Where both sides send a SYN at the same time: of
        the one that a SYN-ACK answers, so that the three times belong together.)"""
        return self._facts.syn_ns

    @property
    def syn_ack_ns(self) -> int | None:
        """That of the first SYN-ACK."""
        return self._facts.syn_ack_ns

    @property
    def handshake_ack_ns(self) -> int | None:
        """That of the first segment which acknowledges it."""
        return self._facts.handshake_ack_ns

    @property
    def handshake_time_ns(self) -> int | None:
        """From the first SYN to the client's ACK, nanoseconds: what a round trip takes, wherever in between the capture was made."""
        facts = self._facts
        return None if facts.syn_ns is None or facts.handshake_ack_ns is None else facts.handshake_ack_ns - facts.syn_ns

    @property
    def handshake_time(self) -> float | None:
        """`handshake_time_ns` in seconds."""
        time_ns = self.handshake_time_ns
        return None if time_ns is None else time_ns / 1e9

    @property
    def closed_by(self) -> str | None:
        """Whose FIN or RST came first, "client" or "server". None: no one's."""
        facts = self._facts
        return None if facts.closed_by is None else ROLES[facts.closed_by != facts.client]

    @property
    def closed_how(self) -> str | None:
        """What that was: "fin" or "rst"."""
        facts = self._facts
        return None if facts.closed_by is None else "rst" if facts.closed_by_rst else "fin"

    @property
    def state(self) -> str:
        """One of "opening": a SYN, and nothing else yet; "open"; "half-closed": one FIN; "closed": both; "reset": an exact RST of either
        side (RFC 5961 3.2); "refused": a RST in answer to the SYN (RFC 9293 3.10.7.3)."""
        facts = self._facts
        if facts.reset or facts.refused:
            return "reset" if facts.reset else "refused"
        one, other = (side._facts for side in self.sides)
        if one.finished or other.finished:
            return "closed" if one.finished and other.finished else "half-closed"
        return "opening" if one.acked is None and other.acked is None else "open"

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of the first segment of either side, nanoseconds since 1970."""
        return min((time for side in self.sides if (time := side.first_seen_ns) is not None), default=None)

    @property
    def last_seen_ns(self) -> int | None:
        """Capture time of the latest one."""
        return max((time for side in self.sides if (time := side.last_seen_ns) is not None), default=None)

    @property
    def complete(self) -> bool:
        """Nothing more comes."""
        return self._facts.complete


class ConversationHandler(Protocol):
    """What a factory makes for each conversation. Each side's calls come from one thread at a time, and so do those of both, unless several
    assemblers in several threads share the pool.

    A method `side_complete(side)` is called too, where there is one: the stream of that side is over.
    """

    def reassembled(self, side: Side, reassemblies: list[core.Reassembly]) -> object:
        """The next pieces of what that side has sent, in order; those of both sides come in the order of the capture. (With `coalesce`,
        each side gets what a block brings in one call.) Returns `STOP` where no more of that side is needed: as with `Stream`, and the
        other side goes on."""

    def conversation_complete(self) -> None:
        """Nothing more will come. Called exactly once, last."""


class ConversationFactory(Protocol):
    """What a `ConversationPool` asks for handlers. Any callable of the same argument does as well."""

    def new(self, conversation: Conversation) -> ConversationHandler:
        """A handler for a new conversation."""


class _HandledSide(Side):
    """A side that the core takes for a stream: its methods are the handler's, called with the side, and nothing lies in between."""

    __slots__ = ()

    @property
    def reassembled(self) -> Callable[[list[core.Reassembly]], object]:
        return MethodType(self.conversation.handler.reassembled, self)

    @property
    def reassembly_complete(self) -> Callable[[], None]:
        return MethodType(getattr(self.conversation.handler, "side_complete", _nothing), self)


def _nothing(side: Side) -> None:
    """What a handler does without a method side_complete."""


class ConversationPool(core.ConversationPoolBase):
    """The connections, both directions of each together, with a handler for each conversation, or a stream for each side. Stands in the
    place of a StreamPool.

    Args:
        factory: makes the handler of each conversation: an object with `new(conversation)`, or a callable of that, such as the class of the
            handlers itself. See ConversationHandler.
        streams: instead of it: makes the stream of each side, called with the Side. The streams that this package brings are served in C.

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
        streams: Callable[[Side], Stream] | None = None,
    ) -> None:
        if (factory is None) == (streams is None):
            raise TypeError("a ConversationPool has a factory, or streams=, and not both")
        new: Any = getattr(factory, "new", factory)
        if streams is None and not callable(new):
            raise TypeError(f"a conversation factory has a method new(conversation) or is callable, not {factory!r}")
        if factory is None and not callable(streams):
            raise TypeError(f"streams is a callable of a Side, not {streams!r}")
        super().__init__(streams if factory is None else factory)
        self.streams = streams
        self._handler_of = new
        self._objects = threading.Lock()
        self._assemblers: WeakSet[Assembler] = WeakSet()  # that are open

    def _another(self) -> ConversationPool:
        """One of the same factory, without connections."""
        return ConversationPool(self.factory) if self.streams is None else ConversationPool(streams=self.streams)

    def _stream_for(self, state: core.ConversationState, index: int) -> Any:
        conversation = state.conversation
        if conversation is None:
            with self._objects:  # the two sides may begin in two threads
                conversation = state.conversation
                if conversation is None:
                    conversation = state.conversation = Conversation(state, self.streams is None)
        side = conversation._side(index)
        if self.streams is not None:
            stream = conversation._streams[index] = self.streams(side)
            return stream
        if conversation._lock is not None:
            self._make_handler(conversation, conversation._lock)
        return side

    def _make_handler(self, conversation: Conversation, lock: threading.RLock) -> None:
        with lock:
            if conversation._makes:
                raise RuntimeError("a conversation's factory called back into its own conversation")
            if conversation._lock is None:
                return
            conversation._makes = True
            try:
                handler = self._handler_of(conversation)
                if not (callable(getattr(handler, "reassembled", None)) and callable(getattr(handler, "conversation_complete", None))):
                    raise no_handler(handler, conversation.key)
            finally:
                conversation._makes = False
            conversation.handler, conversation._lock = handler, None

    def _tell_complete(self, state: core.ConversationState) -> None:
        conversation, state.conversation = state.conversation, None
        try:
            self._end(conversation)
        finally:
            conversation._sides = [ref(side) for side in conversation._sides]  # else all would wait for the garbage collector

    def _end(self, conversation: Conversation) -> None:
        if conversation.handler is not None:
            conversation.handler.conversation_complete()


# -- conversations, one after the other -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedSide:
    """What one side of a conversation has sent, complete.

    Attributes:
        key: who sent to whom, a ConnectionKey.
        data: the bytes that were captured, in order, gaps joined.
        gaps: (offset, length) of each hole. Offsets count the stream's bytes, the missing ones among them.
        started, ended, packets, bytes, delivered, skipped, acked, first_seen_ns, last_seen_ns: as in `Side`.
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
    def missing(self) -> int:
        """Bytes in all gaps together."""
        return sum(length for _, length in self.gaps)


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
        super().__init__(streams=lambda side: BytesStream(side.net_flow, side.transport_flow, provenance=provenance))
        self._done = done

    def _end(self, conversation: Conversation) -> None:
        self._done.append(conversation)


_SAME_OF_CONVERSATION = [one.name for one in fields(FinishedConversation) if one.name not in ROLES]
_SAME_OF_SIDE = [one.name for one in fields(FinishedSide) if one.name in _SideFacts._fields]


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
    return one_by_one(steps_of(Assembler(_Followed(done, provenance), options), source, partial(_finished, done)))


def _finished(done: deque[Conversation]) -> Iterator[FinishedConversation]:
    while done:
        conversation = done.popleft()
        same: dict[str, Any] = {name: getattr(conversation, name) for name in _SAME_OF_CONVERSATION}
        yield FinishedConversation(client=_finished_side(conversation.client), server=_finished_side(conversation.server), **same)


def _finished_side(side: Side) -> FinishedSide:
    stream = side.stream
    data, gaps, provenance = (b"", (), None) if stream is None else (stream.data, stream.gaps, stream.provenance)
    facts = side._facts
    same: dict[str, Any] = {name: getattr(facts, name) for name in _SAME_OF_SIDE}
    return FinishedSide(key=side.key, data=data, gaps=gaps, provenance=provenance, **same)
