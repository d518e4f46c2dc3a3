"""`Pairer`: what the segment at hand means for both directions together, in pools that pair.

Lives here: the side that a connection has, what each of its segments tells about the conversation, what the other side has acknowledged.
Not here: what that leads to (settling.pyx). Called once for each segment that is not simply the next one; in other pools never.
"""

from libc.stdint cimport uint32_t

from .connection cimport CLOSED, HAS_ISN, HAS_START, OPEN, SYN_TEXT_HELD, connection_s, first_held, key_s, waits
from .conversation cimport (
    GIVES_UP,
    HAS_ACK,
    HAS_ACKED,
    PEER_WAITS,
    REFUSED,
    beside,
    beside_s,
    note,
    note_fin,
    note_rst,
    note_syn,
    peer_of,
    side_of,
    side_s,
)
from .decode cimport ACK, FIN, RST, SYN
from .holding cimport FACTORY_ERROR, Holder, text_s
from .pages cimport page_end
from .sequence cimport difference


cdef class Pairer(Holder):
    """The conversations of a pool, as the segments of one assembler tell of them."""

    cdef void _hold_at_hand(self, uint32_t flags, const text_s *text) noexcept nogil:
        self.is_noted = False
        self.at_hand.flags, self.at_hand.seq, self.at_hand.ack = flags, text.seq, text.ack
        self.at_hand.size, self.at_hand.seen_ns = text.size, text.seen_ns

    # A connection that begins gets its side of a conversation: with the segment at hand, or with a SYN that was remembered.
    cdef int _join(self, connection_s *connection, const at_hand_s *syn, bint remembered) except -1 nogil:
        cdef side_s *side = self.pairing.join(connection, syn.flags, syn.seq, syn.ack, self._forget_before())
        if side == NULL:
            self._drop(&connection.pages, FACTORY_ERROR)
            self.pool_.remove(connection)
            self.pool_.free_removed(connection)
            with gil:
                raise MemoryError()
        if syn.flags & SYN:
            note_syn(side, syn.flags, syn.seq, syn.ack, syn.seen_ns, not remembered)
        if remembered and syn.flags & ACK:
            side.ack = syn.ack
            side.is_what |= HAS_ACK
        self._note(connection, True)
        return 0

    # The segment at hand counts for this connection's side, unless it has done so already.
    cdef void _note(self, connection_s *connection, bint acknowledges) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        cdef side_s *side
        if not self.pairs or self.is_noted:
            return
        self.is_noted = True
        side = side_of(connection)
        self.has_peer_ack, self.peer_ack = peer_of(side).is_what & HAS_ACK, peer_of(side).ack
        if note(side, hand.flags if acknowledges else hand.flags & ~<uint32_t>ACK, hand.ack, hand.size, hand.seen_ns):
            if beside(peer_of(side)).connection != NULL:
                self._mark_acked(beside(peer_of(side)).connection)

    # It is the SYN of this connection.
    cdef void _note_syn(self, connection_s *connection) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        if self.pairs:
            self._note(connection, True)
            note_syn(side_of(connection), hand.flags, hand.seq, hand.ack, hand.seen_ns, True)

    # The segment at hand has no connection, but may belong to a conversation. True: it refuses that, by RFC 9293 3.10.7.3.
    cdef bint _note_beside(self, const key_s *key, uint32_t hash) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        cdef side_s *side = self.pairing.side_beside(key, hash, self._forget_before())
        cdef connection_s *peer
        cdef uint32_t behind_text
        if side == NULL:
            return False
        peer = beside(peer_of(side)).connection
        if note(side, hand.flags, hand.ack, hand.size, hand.seen_ns):
            self._mark_acked(peer)
        if (hand.flags & (FIN | ACK | RST)) == (FIN | ACK):
            note_fin(side)
            self.pairing.look_after(side.conversation)
        if (hand.flags & (ACK | RST)) != (ACK | RST) or peer.state == CLOSED or (side.is_what | peer_of(side).is_what) & HAS_ACK:
            return False
        behind_text = peer.next_seq
        if peer.key.more & SYN_TEXT_HELD and peer.pages.last != NULL:
            behind_text = page_end(peer.pages.last) + peer.pages.last.missing
        if not peer.has & HAS_ISN or (hand.ack != peer.isn + 1 and hand.ack != behind_text):
            return False
        note_rst(side, REFUSED)
        self.pairing.look_after(side.conversation)
        return True

    # The lowest hole ends at or before a number that the other side has acknowledged.
    cdef bint _is_acked(self, const connection_s *connection, uint32_t ack) noexcept nogil:
        if connection.state != OPEN or not connection.has & HAS_START or connection.key.more & SYN_TEXT_HELD:
            return False
        if not waits(<connection_s *>connection):
            return False
        return difference(first_held(<connection_s *>connection), ack) >= 0 and difference(connection.next_seq, ack) <= self.max_gap

    # Note since when the other side has had what is missing before the lowest thing held.
    cdef void _mark_acked(self, connection_s *connection) noexcept nogil:
        cdef side_s *side = side_of(connection)
        cdef side_s *peer
        cdef beside_s *rest
        if side == NULL:
            return
        rest, peer = beside(side), peer_of(side)
        if connection.state == OPEN and self.acked_timeout_ns >= 0 and waits(connection):
            peer.watched |= PEER_WAITS
        else:
            peer.watched &= ~PEER_WAITS
        if side.is_what & HAS_ACKED and self._is_acked(connection, rest.acked_to):
            return
        side.is_what &= ~HAS_ACKED
        if peer.is_what & HAS_ACK and self.acked_timeout_ns >= 0 and self._is_acked(connection, peer.ack):
            side.is_what |= HAS_ACKED
            rest.acked_ns, rest.acked_to = self.clock.now, peer.ack
            self.pairing.acked_bound = min(self.pairing.acked_bound, self.clock.now)
            if self.acked_timeout_ns == 0:
                side.conversation.is_what |= GIVES_UP
                self.pairing.look_after(side.conversation)
