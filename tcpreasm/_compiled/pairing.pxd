"""What a segment means for both directions together: the C contract. Called for what is not simply the next one, in pools that pair."""

from libc.stdint cimport int64_t, uint32_t

from .connection cimport connection_s, key_s
from .conversation cimport conversation_s
from .holding cimport Holder, text_s
from .pool cimport ConversationPoolBase


# The segment at hand, where the pool pairs; or a SYN that was remembered.
cdef struct at_hand_s:
    uint32_t flags
    uint32_t seq
    uint32_t ack
    uint32_t size
    int64_t seen_ns


cdef class Pairer(Holder):
    cdef int64_t max_gap
    cdef int64_t acked_timeout_ns
    cdef bint pairs               # the pool does:
    cdef ConversationPoolBase pairing  # it is this one; else None
    cdef at_hand_s at_hand
    cdef bint is_noted            # that counts for its side of a conversation already

    cdef void _hold_at_hand(self, uint32_t flags, const text_s *text) noexcept nogil
    cdef int _join(self, connection_s *connection, const at_hand_s *syn, bint remembered) except -1 nogil
    cdef void _note(self, connection_s *connection, bint acknowledges) noexcept nogil
    cdef void _note_syn(self, connection_s *connection) noexcept nogil
    cdef bint _note_beside(self, const key_s *key, uint32_t hash) noexcept nogil
    cdef bint _is_acked(self, const connection_s *connection, uint32_t ack) noexcept nogil
    cdef void _mark_acked(self, connection_s *connection) noexcept nogil
