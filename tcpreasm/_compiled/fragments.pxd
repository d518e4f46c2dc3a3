"""Fragments of IP datagrams, until they are whole: the C contract. Called once for each fragment, never for any other frame.

What one holds is bounded: so many datagrams, so many bytes, so long. Where a limit is reached, the oldest datagrams give way.
Nothing here needs the GIL. One thread at a time: whoever decides in packet order.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .decode cimport fragment_s, segment_s
from .pool cimport table_s


# Positions in Fragments.counts: stats.FRAGMENT_COUNTERS, then stats.FRAGMENT_DROP_REASONS, in their order.
cdef enum:
    FRAGMENTS
    FRAGMENTS_JOINED
    DATAGRAMS
    REPEATED
    OVERLAP
    MALFORMED
    TOO_LARGE
    TIMEOUT
    LIMIT
    INCOMPLETE
    FRAGMENT_COUNTS


cdef enum:                        # what counts for the limit
    DATAGRAM_BYTES = 256          # of a datagram: its record, its places in the table and what memory management adds to each piece
    FIRST_ROOM = 256              # of its payload: so much, or as many times twice that as its highest byte needs


# A datagram's payload that a segment lies in. Freed by whoever got it.
cdef struct joined_s:
    joined_s *next                # for its owner's use
    uint8_t data[8]               # and as much more as it needs


cdef struct range_s:              # of bytes of the payload that have come
    uint32_t begin
    uint32_t end


cdef struct datagram_s:
    fragment_s first              # the first fragment of the payload, or else the one that came first; its data means nothing
    datagram_s *chained           # with the same place in `buckets`
    datagram_s *older
    datagram_s *newer
    int64_t since_ns              # capture time, as it was believed, of the fragment that came first
    joined_s *memory              # what has come, at its place; NULL: it was given up, and its other fragments are dropped
    range_s *ranges               # ascending, none touching the next
    uint32_t range_count
    uint32_t range_room
    uint32_t room                 # of memory.data
    uint32_t end                  # behind the highest byte that came
    uint32_t size                 # of the whole payload, as soon as the last fragment tells; 0 before
    uint32_t cut_at               # the lowest byte that the capture cut off
    uint32_t fragments            # that it holds
    uint32_t hash
    uint32_t bytes                # of it that count for the limit: DATAGRAM_BYTES, room, range_room
    uint8_t why                   # it was given up: position in counts


cdef class Fragments:
    cdef datagram_s **buckets     # as many as datagrams, at least, so long as there is memory for that
    cdef uint32_t mask            # their number - 1; a power of two - 1
    cdef datagram_s *oldest
    cdef datagram_s *newest
    cdef uint32_t count           # of datagrams
    cdef uint64_t held_bytes      # the sum of their bytes
    cdef uint64_t held            # fragments
    cdef int64_t timeout_ns       # options; -1: never
    cdef int64_t max_datagrams
    cdef int64_t max_bytes
    cdef uint64_t counts[FRAGMENT_COUNTS]

    # Take in the fragment that `out` holds (as a fragment_s). Returns the verdict for its frame: FRAGMENT as long as its datagram is not
    # whole, then what decode_datagram says; where that has filled `out` with a segment, *joined is the memory that it lies in, else NULL.
    cdef int take(self, const table_s *table, int64_t now_ns, segment_s *out, joined_s **joined) noexcept nogil
    # What is held is given up, and counted as INCOMPLETE.
    cdef void drop_all(self) noexcept nogil

    # -- private
    cdef int _add(self, const table_s *table, const fragment_s *fragment, int64_t now_ns, datagram_s **whole) noexcept nogil
    cdef datagram_s *_find(self, const fragment_s *fragment, uint32_t hash) noexcept nogil
    cdef datagram_s *_new(self, const fragment_s *fragment, uint32_t hash, int64_t now_ns) noexcept nogil
    cdef int _hold(self, datagram_s *datagram, const fragment_s *fragment, uint32_t end) noexcept nogil
    cdef bint _make_room(self, datagram_s *datagram, uint32_t end) noexcept nogil
    cdef bint _charge(self, datagram_s *datagram, uint32_t more) noexcept nogil
    cdef bint _has_buckets(self) noexcept nogil
    cdef void _give_up(self, datagram_s *datagram, int why) noexcept nogil
    cdef void _remove(self, datagram_s *datagram, int why) noexcept nogil
