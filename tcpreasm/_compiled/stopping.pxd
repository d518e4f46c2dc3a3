"""What streams get no more of, and who is told of gaps: the C contract.

Called where a stream has stopped or has a depth, and where bytes are missing.
"""

from libc.stdint cimport int64_t, uint32_t

from .connection cimport connection_s, key_s
from .holding cimport HOLES_ENDED
from .pairing cimport Pairer
from .streams cimport memory_s


# Why missing bytes are given up: stats.GAP_REASONS, in their order, from HOLES_LIMITED on; two of them are no holes, and not counted.
cdef enum:
    GAP_CUT = HOLES_ENDED + 1
    GAP_START = HOLES_ENDED + 2


cdef struct given_up_s:           # missing bytes that are no longer waited for
    key_s key                     # of their connection
    uint32_t seq                  # of the first one
    int why                       # HOLES_LIMITED ... GAP_START
    int64_t missing               # -1: nobody knows
    Py_ssize_t stream             # its place in gap_streams; -1: it has none, or nobody asks for it


cdef class Stopper(Pairer):
    cdef int64_t depth            # bytes of each stream that it gets; 0: all
    cdef bint tells_gaps
    cdef object on_gap
    cdef memory_s gaps            # of given_up_s, since the last call of _settle, for on_gap,
    cdef list gap_streams         # and their streams, or None

    cdef void _let_go(self, connection_s *connection) noexcept nogil
    cdef int64_t _left(self, const connection_s *connection) noexcept nogil
    cdef int _keep_depth(self, connection_s *connection) except -1 nogil
    cdef int _note_gap(self, const connection_s *connection, uint32_t seq, int64_t missing, int why) except -1 nogil
    # What that raises is kept as the late error.
    cdef int _tell_gaps(self) except -1
