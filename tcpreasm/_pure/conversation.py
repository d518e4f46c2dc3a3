"""`ConversationState`: what is known of both directions of one TCP connection together. Touched by every packet, in pools that pair.

Holds state and answers questions about it; the engine alone changes it. A connection has a side of a conversation from its first segment
on, until it begins anew or is forgotten; the conversation lives on with the other one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..flow import ConnectionKey, Flow
from ..segment import ACK, RST, SYN
from .sequence import add, difference

if TYPE_CHECKING:
    from .connection import Connection, RawKey

__all__ = ["ConversationState", "SideState"]

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
    """Both directions. `conversation` is what the pool's owner keeps with it.

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
        self.conversation: Any = None
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

    def facts(self) -> tuple[Any, ...]:
        """Number of the client's side, guessed, complete, reset, refused; number of the side that closed or None, by RST; capture times of
        the handshake's SYN, SYN-ACK and ACK: nanoseconds or None."""
        syn_ns = self.sides[self.client if self.opener is None else self.opener].syn_ns
        return (
            *(self.client, self.guessed, self.complete, self.reset, self.refused, self.closed_by, self.closed_by_rst),
            *(syn_ns, self.syn_ack_ns, self.handshake_ack_ns),
        )

    def side_facts(self, index: int) -> tuple[Any, ...]:
        """Packets, bytes captured, delivered, skipped; highest acknowledgement number or None; SYN, FIN, end of the stream seen; capture
        time of the first and the last segment, nanoseconds or None."""
        side = self.sides[index]
        return (
            *(side.packets, side.bytes, side.delivered, side.skipped, side.ack),
            *(side.has_syn, side.has_fin, side.ended, side.first_seen_ns, side.last_seen_ns),
        )

    def key_of(self, index: int) -> ConnectionKey:
        """That of what side `index` sends."""
        src, dst, src_port, dst_port, tunnels = self.key
        key = ConnectionKey(Flow(src, dst, tunnels), Flow(src_port, dst_port))
        return key.reverse() if index else key
