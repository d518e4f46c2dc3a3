"""Brings the segments of a connection into order: the C contract. Called once for each segment that is not simply the next one."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .connection cimport connection_s, successor_s
from .evicting cimport Evicter
from .holding cimport text_s


cdef enum:
    LONG_WAY = 256                # no flag of the header: the segment is to be looked at closely, even if it is simply the next one

cdef enum:                        # an option, as numbers
    URGENT_INLINE = 0
    URGENT_OOB = 1
    URGENT_OOB_LINUX = 2


cdef class Engine(Evicter):
    # options, as numbers; -1: never
    cdef int64_t start_wait_segments
    cdef int64_t start_wait_ns
    cdef uint8_t urgent
    cdef bint paws
    cdef bint syn_data_waits
    cdef uint32_t long_way        # LONG_WAY where an option asks for a look at every segment, else 0

    cdef void _look_closer(self, uint8_t flags, text_s *text) noexcept nogil
    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef int _open_if_due(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef bint _brings_data(self, connection_s *connection, uint8_t flags, const text_s *text) noexcept nogil
    cdef int _reset(self, connection_s *connection, text_s *text) except -1 nogil
    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef bint _reopens(self, connection_s *connection, uint8_t flags, text_s *text) noexcept nogil
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil
    cdef int _remember(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil

    cdef bint _is_old(self, connection_s *connection, const text_s *text, int64_t size) noexcept nogil
    cdef bint _settle_syn_data(self, connection_s *connection, uint32_t seq, int64_t size) except -1 nogil

    # Text and FIN.
    cdef int _text(self, connection_s *connection, uint8_t flags, text_s *text, bint start) except -1 nogil
    cdef bint _is_out_of_window(self, connection_s *connection, int64_t ahead, text_s *text) noexcept nogil
    cdef bint _is_wild(self, connection_s *connection, text_s *text) noexcept nogil
    cdef int _note_end(self, connection_s *connection, uint32_t end_seq, int64_t seen_ns) except -1 nogil
    cdef int _wait_for_start(self, connection_s *connection, text_s *text) except -1 nogil
