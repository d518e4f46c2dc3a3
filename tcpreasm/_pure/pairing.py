"""`Pairer`: what the segment at hand means for both directions together, in pools that pair.

Lives here: the side that a connection has, what each of its segments tells about the conversation, what the other side has acknowledged.
Not here: what that leads to (settling.py). Called once for each segment; in other pools it does nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from ..segment import ACK, FIN, RST, SYN
from .connection import Connection, RawKey, Successor
from .holding import Holder
from .pool import ConversationPoolBase
from .sequence import add, difference


class AtHand(NamedTuple):
    """The segment at hand, where the pool pairs."""

    flags: int
    seq: int
    ack: int
    size: int
    seen_ns: int


class Pairer(Holder):
    """The conversations of a pool, as the segments of one assembler tell of them."""

    _max_gap: int
    _acked_timeout_ns: int  # -1: never
    _pairing: ConversationPoolBase | None  # the pool, where it pairs
    _at_hand: AtHand | None
    _is_noted: bool  # it counts for its side of a conversation already

    def _join(self, connection: Connection, successor: Successor | None) -> None:
        """A connection that begins gets its side of a conversation: with the segment at hand, or with the SYN that was remembered."""
        assert self._pairing is not None
        assert self._at_hand is not None
        flags, isn, ack, _, seen_ns = self._at_hand
        if successor is not None:
            flags, isn, ack = SYN if successor.ack is None else SYN | ACK, successor.isn, successor.ack or 0
            seen_ns = successor.seen_ns
        side = self._pairing.join(connection, flags, isn, ack, self._forget_before())
        if flags & SYN:
            side.note_syn(flags, isn, ack, seen_ns, successor is None)
        if successor is not None:
            side.ack = successor.ack
        self._note(connection)

    def _note(self, connection: Connection, acknowledges: bool = True) -> None:
        """The segment at hand counts for this connection's side, unless it has done so already."""
        side, at_hand = connection.side, self._at_hand
        if side is None or at_hand is None or self._is_noted:
            return
        self._is_noted = True
        self._peer_ack = side.peer.ack
        if side.note(at_hand.flags if acknowledges else at_hand.flags & ~ACK, at_hand.ack, at_hand.size, at_hand.seen_ns):
            peer = side.peer.connection
            if peer is not None:
                self._mark_acked(peer)

    def _note_syn(self, connection: Connection) -> None:
        """The segment at hand is the SYN of this connection."""
        self._note(connection)
        if connection.side is not None and self._at_hand is not None:
            flags, isn, ack, _, seen_ns = self._at_hand
            connection.side.note_syn(flags, isn, ack, seen_ns, True)

    def _note_beside(self, key: RawKey) -> bool:
        """The segment at hand has no connection, but may belong to a conversation. True: it refuses that, by RFC 9293 3.10.7.3."""
        at_hand = self._at_hand
        if at_hand is None or self._pairing is None:
            return False
        side = self._pairing.side_beside(key, self._forget_before())
        if side is None or side.peer.connection is None:
            return False
        flags, _, ack, size, seen_ns = at_hand
        peer = side.peer.connection
        if side.note(flags, ack, size, seen_ns):
            self._mark_acked(peer)
        if flags & (FIN | ACK | RST) == FIN | ACK:
            side.note_fin()
            self._pairing.look_after(side.conversation)
        if flags & (ACK | RST) != ACK | RST or peer.closed or peer.isn is None or side.ack is not None or side.peer.ack is not None:
            return False
        last = peer.pages.last if peer.syn_data else None
        if ack not in (add(peer.isn, 1), peer.next_seq if last is None else add(last.end, last.missing)):
            return False
        side.note_refusal()
        self._pairing.look_after(side.conversation)
        return True

    def _is_acked(self, connection: Connection, ack: int) -> bool:
        """The lowest hole ends at or before a number that the other side has acknowledged."""
        if connection.state != Connection.OPEN or connection.next_seq is None or connection.syn_data or not connection.waits():
            return False
        return difference(connection.first_held(), ack) >= 0 and difference(connection.next_seq, ack) <= self._max_gap

    def _mark_acked(self, connection: Connection) -> None:
        """Note since when the other side has had what is missing before the lowest thing held."""
        side = connection.side
        if side is None or self._pairing is None or (side.acked_ns is not None and self._is_acked(connection, side.acked_to)):
            return
        side.acked_ns = None
        ack = side.peer.ack
        if ack is not None and self._acked_timeout_ns >= 0 and self._is_acked(connection, ack):
            side.acked_ns, side.acked_to = self._clock.now_ns, ack
            side.conversation.gives_up = side.conversation.gives_up or self._acked_timeout_ns == 0
            self._pairing.look_after(side.conversation)
