"""What segments have led to for conversations: the C contract. Called where that is something, in pools that pair."""

from libc.stdint cimport int64_t

from .connection cimport connection_s
from .conversation cimport conversation_s
from .engine cimport Engine


cdef class Settler(Engine):
    cdef bint _give_up_acked(self, connection_s *connection, int64_t before_ns) except -1 nogil
    # What user code raises there is kept as the late error.
    cdef int _settle(self) except -1 nogil
    cdef int _settle_with_gil(self) except -1
    cdef int _serve_sides(self, conversation_s *conversation, bint closes) except -1
    cdef int _tell_complete(self, conversation_s *conversation) except -1
