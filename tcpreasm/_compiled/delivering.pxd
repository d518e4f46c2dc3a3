"""What the stream of a connection gets, from its opening to its end: the C contract. Called for each segment that is not simply the next
one."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .connection cimport connection_s
from .holding cimport text_s
from .stopping cimport Stopper


cdef enum:
    KEPT = 0                      # what becomes of a connection whose stream ends: it begins anew at once;
    REMEMBERED = 1                # it is closed, and remembered for a while;
    FORGOTTEN = 2                 # it is gone


cdef class Deliverer(Stopper):
    cdef bint debug

    cdef int _open_late(self, connection_s *connection, uint32_t at_stake, int64_t packet) except -1 nogil
    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1 nogil
    cdef int _make_stream(self, connection_s *connection, uint32_t at_stake) except -1
    cdef void _drop_unopened(self, connection_s *connection) noexcept nogil

    # In order: pieces go to `out`, next_seq goes on.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1 nogil
    cdef int _advance(self, connection_s *connection) except -1 nogil
    cdef int _jump(self, connection_s *connection, int64_t missing, int why) except -1 nogil
    cdef int _emit(
        self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, int64_t offset, bint start, int64_t packet,
        uint32_t seq
    ) except -1 nogil
    # Without bytes, where the stream stands. packet: the one that led to it; 0: none did.
    cdef int _emit_empty(self, connection_s *connection, int64_t seen_ns, bint start, int64_t packet) except -1 nogil
    cdef int _emit_text(self, connection_s *connection, text_s *text, int64_t position, int64_t end, bint start) except -1 nogil
    cdef int _emit_page(self, connection_s *connection) except -1 nogil

    cdef int _skip(self, connection_s *connection, int why) except -1 nogil
    cdef int _keep_limits(self, connection_s *connection) except -1 nogil

    # What this has led to goes to the stream. packet: the one at hand; 0: there is none.
    cdef int _serve(self, connection_s *connection, int64_t packet) except -1 nogil
    cdef int _close(self, connection_s *connection) except -1 nogil
    cdef int _finish_pieces(self, connection_s *connection) except -1 nogil
    cdef int _end_stream(self, connection_s *connection, int after) except -1 nogil

    # A stream that gets no more.
    cdef int _stop(self, connection_s *connection) except -1 nogil
    cdef int _end_at_depth(self, connection_s *connection) except -1 nogil
