"""The connection of a segment, and room for a new one: the C contract. Called for each segment that is not simply the next one."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from .clock cimport clock_s
from .connection cimport connection_s, key_s
from .delivering cimport Deliverer


cdef class Evicter(Deliverer):
    cdef uint64_t limit_connections  # open ones and those remembered; the highest number: none
    cdef object on_evict          # or None
    cdef bint tells_evictions     # it is not None
    cdef object evicted           # the stream of the one that has made room, where one is asked for, until that is told
    cdef bint opens_on_data       # a stream is made for text or a FIN only, not for a SYN
    cdef clock_s clock_before     # of the packet at hand

    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil
    # There is room for a new one, unless user code runs for all there are. True: user code has run, without the lock: look again.
    cdef bint _evict_for_room(self) except -1 nogil
    cdef int _evict(self, connection_s *connection) except -1 nogil
    cdef int _tell_eviction(self, const key_s *key, int reason) except -1
