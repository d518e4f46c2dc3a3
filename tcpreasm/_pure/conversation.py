"""What is known of both directions of one TCP connection together: `ConversationState`, touched by every packet in pools that pair, and
`Conversation` and `Side`, which open it to callers.

Holds state and answers questions about it; the engine alone changes it. A connection has a side of a conversation from its first segment
on, until it begins anew or is forgotten; the conversation lives on with the other one.
"""

from __future__ import annotations

import threading
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..flow import ConnectionKey, Flow
from ..segment import ACK, RST, SYN
from .sequence import add, difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import Connection, RawKey
    from .reassembly import Reassembly

__all__ = ["Conversation", "ConversationState", "Side", "SideState"]

ROLES = ("client", "server")

SYN_REACH = 1 << 24  # what acknowledges a SYN, and what came after it, lies at most so many bytes behind it
SYN_TEXT = 1 << 16  # and what a SYN-ACK acknowledges, at most so many


class SideState:
    """One direction of a conversation."""

    __slots__ = (
        "ack",
        "acked_ns",
        "acked_to",
        "answered",
        "bytes",
        "connection",
        "conversation",
        "delivered",
        "ended",
        "first_seen_ns",
        "has_fin",
        "has_rst",
        "has_syn",
        "index",
        "last_seen_ns",
        "over",
        "packets",
        "skipped",
        "syn_ns",
        "taken",
    )

    def __init__(self, conversation: ConversationState, index: int) -> None:
        self.conversation = conversation
        self.index = index
        self.connection: Connection | None = None  # that has this side now
        self.taken = False  # one has or had it
        self.over = False  # and its stream has had its last call
        self.packets = 0
        self.bytes = 0  # of payload, captured
        self.delivered = 0
        self.skipped = 0
        self.has_syn = False  # its SYN was seen, its FIN, its exact RST
        self.has_fin = False
        self.has_rst = False
        self.ended = False  # its stream has reached that
        self.ack: int | None = None  # the highest acknowledgement number that it sent
        self.syn_ns: int | None = None  # capture time of its first SYN without ACK
        self.answered: int | None = None  # what its SYN-ACK acknowledged
        self.acked_ns: int | None = None  # since when the other side is known to have what is missing here
        self.acked_to = 0  # up to there
        self.first_seen_ns: int | None = None
        self.last_seen_ns: int | None = None

    @property
    def peer(self) -> SideState:
        """The other one."""
        return self.conversation.sides[1 - self.index]

    def note(self, flags: int, ack: int, size: int, seen_ns: int) -> bool:
        """A segment came from this side. True: it acknowledges more than those before."""
        self.packets += 1
        self.bytes += size
        if self.first_seen_ns is None or self.last_seen_ns is None:
            self.first_seen_ns = self.last_seen_ns = seen_ns
        self.last_seen_ns = max(self.last_seen_ns, seen_ns)
        if flags & (ACK | RST) != ACK:
            return False
        conversation = self.conversation
        awaited = conversation.awaited_ack
        if awaited is not None and not flags & SYN and self.index == conversation.opener and 0 <= difference(awaited, ack) <= SYN_REACH:
            conversation.handshake_ack_ns = seen_ns
            conversation.awaited_ack = None
        if self.ack is not None and difference(self.ack, ack) <= 0:
            return False
        self.ack = ack
        return True

    def note_syn(self, flags: int, isn: int, ack: int, seen_ns: int, awaits_ack: bool) -> None:
        """The SYN that began its stream came, maybe once more. awaits_ack: the segment at hand is that SYN."""
        conversation = self.conversation
        self.has_syn = True
        if conversation.guessed:
            conversation.client = 1 - self.index if flags & ACK else self.index
            conversation.guessed = False
        if not flags & ACK:
            self.syn_ns = seen_ns if self.syn_ns is None else self.syn_ns
            return
        self.answered = ack
        if conversation.syn_ack_ns is None:
            conversation.syn_ack_ns = seen_ns
            conversation.opener = 1 - self.index
            awaited = add(isn, 1)
            if awaits_ack and (self.peer.ack is None or difference(awaited, self.peer.ack) < 0):  # else it has come already, unnoticed
                conversation.awaited_ack = awaited

    def note_fin(self) -> None:
        """Its FIN came."""
        self.has_fin = True
        self._note_close(False)

    def note_rst(self) -> None:
        """Its RST came, and is exact: nobody reads anything from then on."""
        self.has_rst = self.conversation.reset = True
        self._note_close(True)

    def note_refusal(self) -> None:
        """Its RST has answered a SYN."""
        self.has_rst = self.conversation.refused = True
        self._note_close(True)

    def _note_close(self, by_rst: bool) -> None:
        conversation = self.conversation
        if conversation.closed_by is None:
            conversation.closed_by, conversation.closed_by_rst = self.index, by_rst

    def may_be_taken(self, flags: int, isn: int, ack: int) -> bool:
        """A connection that begins with such a segment is the other direction of what is here, and no later use of the same ports."""
        conversation, peer = self.conversation, self.peer
        if self.taken or conversation.reset or conversation.refused or conversation.complete:
            return False
        if not flags & SYN:
            return True
        known = None if peer.connection is None else peer.connection.isn
        if flags & ACK and known is not None:
            return 0 <= difference(add(known, 1), ack) <= SYN_TEXT
        if not flags & ACK and peer.answered is not None:
            return 0 <= difference(add(isn, 1), peer.answered) <= SYN_TEXT
        if peer.over or flags & ACK:
            return not peer.over
        return peer.has_syn if peer.ack is None else 0 <= difference(add(isn, 1), peer.ack) <= SYN_REACH


class ConversationState:
    """Both directions. `conversation` is what callers see of it, if they do.

    Args:
        key: that of the direction seen first, which is side 0.
    """

    __slots__ = (
        "awaited_ack",
        "client",
        "closed_by",
        "closed_by_rst",
        "complete",
        "conversation",
        "gives_up",
        "guessed",
        "handshake_ack_ns",
        "key",
        "opener",
        "pending",
        "refused",
        "reset",
        "sides",
        "syn_ack_ns",
        "told",
    )

    def __init__(self, key: RawKey) -> None:
        self.key = key
        self.conversation: Conversation | None = None
        self.sides = (SideState(self, 0), SideState(self, 1))
        # Until a SYN tells: the server has the lower port; of equal ones, the client was seen first.
        self.client = 1 if key[2] < key[3] else 0
        self.guessed = True
        self.opener: int | None = None  # whose SYN the first SYN-ACK answers: the client's, unless both open at the same time
        self.syn_ack_ns: int | None = None
        self.handshake_ack_ns: int | None = None
        self.awaited_ack: int | None = None  # what acknowledges the SYN of the server; as long as that is waited for
        self.closed_by: int | None = None  # whose FIN or RST came first
        self.closed_by_rst = False
        self.reset = False
        self.refused = False
        self.complete = False  # nothing more comes
        self.told = False  # and that was told
        self.gives_up = False  # a hole is to be given up at once, for it was acknowledged
        self.pending = False  # there is something to do, and the pool has noted that

    def is_over(self) -> bool:
        """Every side that was there is over, and the other one cannot come any more."""
        if any(side.taken and not side.over for side in self.sides):
            return False
        return self.reset or self.refused or all(side.taken or side.has_fin or side.peer.connection is None for side in self.sides)

    @property
    def syn_ns(self) -> int | None:
        """Capture time of the handshake's SYN."""
        return self.sides[self.client if self.opener is None else self.opener].syn_ns

    def key_of(self, index: int) -> ConnectionKey:
        """That of what side `index` sends."""
        src, dst, src_port, dst_port, tunnels = self.key
        key = ConnectionKey(Flow(src, dst, tunnels), Flow(src_port, dst_port))
        return key.reverse() if index else key


class Side:
    """One direction of a conversation: what one of the two sends. Made by the pool.

    Attributes:
        conversation: the Conversation that it is a side of.

    Everything else is a property, and tells how things are when it is asked for.
    """

    __slots__ = ("__weakref__", "_index", "_key", "_state", "conversation")

    def __init__(self, conversation: Conversation, index: int) -> None:
        self.conversation = conversation
        self._index = index
        self._key: ConnectionKey | None = None
        self._state = conversation._state.sides[index]

    def __repr__(self) -> str:
        return f"<{self.role} {self.key}>"

    @property
    def peer(self) -> Side:
        """The other one."""
        return self.conversation._side(1 - self._index)

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
    def packets(self) -> int:
        """Segments of this side, acknowledgements and repeated ones among them, from the one on with which the conversation began."""
        return self._state.packets

    @property
    def bytes(self) -> int:
        """Bytes of payload in them, as captured, repeated ones among them."""
        return self._state.bytes

    @property
    def delivered(self) -> int:
        """Bytes given to its stream."""
        return self._state.delivered

    @property
    def skipped(self) -> int:
        """Bytes missing in it, as far as their number is known."""
        return self._state.skipped

    @property
    def acked(self) -> int | None:
        """The highest acknowledgement number that this side has sent (modulo 2**32). None: none yet."""
        return self._state.ack

    @property
    def started(self) -> bool:
        """Its SYN was captured."""
        return self._state.has_syn

    @property
    def ended(self) -> bool:
        """Its stream has reached its own FIN or RST. False for one that ended with the other side's RST."""
        return self._state.ended

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of its first segment, nanoseconds since 1970. None: it has sent nothing."""
        return self._state.first_seen_ns

    @property
    def last_seen_ns(self) -> int | None:
        """Capture time of its latest segment."""
        return self._state.last_seen_ns


class Conversation:
    """Both directions of one TCP connection. Made by the pool when the first of its streams is due.

    Attributes:
        handler: what the factory made. None in a pool with `streams`.
        context: whatever you put there.

    Everything else is a property, and tells how things are when it is asked for.
    """

    __slots__ = ("_lock", "_makes", "_sides", "_state", "_streams", "context", "handler")

    def __init__(self, state: ConversationState, handled: bool) -> None:
        self._state = state
        kind = _HandledSide if handled else Side
        self._sides: list[Side | ref[Side]] = [kind(self, 0), kind(self, 1)]  # when it is complete, weak references
        self._streams: list[Any] = [None, None]
        self._lock = threading.RLock() if handled else None  # until there is a handler
        self._makes = False
        self.handler: Any = None
        self.context: Any = None

    def __repr__(self) -> str:
        return f"<conversation {self.key}, {self.state}>"

    def _side(self, index: int) -> Side:
        kept = self._sides[index]
        if isinstance(kept, Side):
            return kept
        side = kept() or Side(self, index)
        self._sides[index] = ref(side)
        return side

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
        return self._state.guessed

    @property
    def key(self) -> ConnectionKey:
        """Client to server."""
        return self.client.key

    @property
    def handshake(self) -> bool:
        """SYN, SYN-ACK and the client's ACK were captured (RFC 9293 3.5)."""
        return None not in (self.syn_ns, self.syn_ack_ns, self.handshake_ack_ns)

    @property
    def syn_ns(self) -> int | None:
        """Capture time of the client's first SYN, nanoseconds since 1970. None: not seen. (Where both sides send a SYN at the same time: of
        the one that a SYN-ACK answers, so that the three times belong together.)"""
        return self._state.syn_ns

    @property
    def syn_ack_ns(self) -> int | None:
        """That of the first SYN-ACK."""
        return self._state.syn_ack_ns

    @property
    def handshake_ack_ns(self) -> int | None:
        """That of the first segment which acknowledges it."""
        return self._state.handshake_ack_ns

    @property
    def handshake_time_ns(self) -> int | None:
        """From the first SYN to the client's ACK, nanoseconds: what a round trip takes, wherever in between the capture was made."""
        syn_ns, ack_ns = self.syn_ns, self.handshake_ack_ns
        return None if syn_ns is None or ack_ns is None else ack_ns - syn_ns

    @property
    def handshake_time(self) -> float | None:
        """`handshake_time_ns` in seconds."""
        time_ns = self.handshake_time_ns
        return None if time_ns is None else time_ns / 1e9

    @property
    def closed_by(self) -> str | None:
        """Whose FIN or RST came first, "client" or "server". None: no one's."""
        closed_by = self._state.closed_by
        return None if closed_by is None else ROLES[closed_by != self._state.client]

    @property
    def closed_how(self) -> str | None:
        """What that was: "fin" or "rst"."""
        return None if self._state.closed_by is None else "rst" if self._state.closed_by_rst else "fin"

    @property
    def state(self) -> str:
        """One of "opening": a SYN, and nothing else yet; "open"; "half-closed": one FIN; "closed": both; "reset": an exact RST of either
        side (RFC 5961 3.2); "refused": a RST in answer to the SYN (RFC 9293 3.10.7.3)."""
        if self._state.reset or self._state.refused:
            return "reset" if self._state.reset else "refused"
        one, other = self._state.sides
        if one.has_fin or other.has_fin:
            return "closed" if one.has_fin and other.has_fin else "half-closed"
        return "opening" if one.ack is None and other.ack is None else "open"

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of the first segment of either side, nanoseconds since 1970."""
        return min((time for side in self._state.sides if (time := side.first_seen_ns) is not None), default=None)

    @property
    def last_seen_ns(self) -> int | None:
        """Capture time of the latest one."""
        return max((time for side in self._state.sides if (time := side.last_seen_ns) is not None), default=None)

    @property
    def complete(self) -> bool:
        """Nothing more comes."""
        return self._state.complete


class _HandledSide(Side):
    """A side that the core takes for a stream: its methods are the handler's, called with the side, and nothing lies in between."""

    __slots__ = ()

    @property
    def reassembled(self) -> Callable[[list[Reassembly]], None]:
        return MethodType(self.conversation.handler.reassembled, self)

    @property
    def reassembly_complete(self) -> Callable[[], None]:
        return MethodType(getattr(self.conversation.handler, "side_complete", _nothing), self)


def _nothing(side: Side) -> None:
    """What a handler does without a method side_complete."""
