"""What time does to connections: the C contract. Once a second of capture time, and in flushes."""

from libc.stdint cimport int64_t

from .connection cimport connection_s
from .pool cimport listed_s
from .settling cimport Settler


cdef class Flusher(Settler):
    cdef int64_t hole_timeout_ns  # -1: never
    cdef int64_t idle_timeout_ns
    cdef bint has_ticked
    cdef int64_t ticked_ns        # capture time of the last tick that expired anything, and when the next one does
    cdef int64_t tick_ns
    cdef int64_t acked_before     # in a walk over all connections: holes that were acknowledged before that are given up

    cdef void _observe(self, int64_t seen_ns) noexcept nogil
    cdef int _tick(self) except -1 nogil
    cdef int _expire(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil

    # All connections; and those that are due.
    cdef int _walk_all(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil
    cdef int _walk_due(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil
    cdef bint _pick_idle(self, int64_t idle_ns, listed_s **picked, size_t *count, size_t room) noexcept nogil
    cdef int _walk(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil
    cdef int _walk_collecting(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1
    cdef int _walk_one(
        self, listed_s *picked, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil
    cdef bint _is_acked_before(self, connection_s *connection) noexcept nogil
    cdef int _raise_late(self) except -1 nogil
    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns, int why) except -1 nogil
