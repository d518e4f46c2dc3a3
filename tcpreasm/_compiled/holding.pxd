"""Keeps what arrives early: the C contract. Called for what is out of order, and where a limit or a time-out is asked for."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .clock cimport clock_s
from .connection cimport connection_s, key_s
from .origin cimport origin_s
from .pages cimport PageCache, cache_s, page_list_s, page_s
from .serving cimport Server
from .streams cimport memory_s


# Positions in counts: stats.COUNTERS, stats.DROP_REASONS, stats.EVICTION_REASONS, in their order.
cdef enum:
    SEGMENTS
    BYTES_CAPTURED
    BYTES_DELIVERED
    BYTES_SKIPPED
    HOLES_LIMITED
    HOLES_EXPIRED
    HOLES_ACKED
    HOLES_ENDED
    CONFLICTING
    RST_IGNORED
    FIN_IGNORED
    LATE_SYN
    SYN_REMEMBERED
    URGENT_SEGMENTS
    STREAMS_OPENED
    STREAMS_CLOSED
    RETRANSMITTED
    OVERLAPPING
    BEFORE_START
    OUT_OF_WINDOW
    AFTER_END
    AFTER_CLOSE
    NO_ACK_FLAG
    RST_TEXT
    UNCONFIRMED_SYN
    FACTORY_ERROR
    OUT_OF_BAND
    PAWS
    STOPPED
    EVICTED_CLOSED
    EVICTED_HALF_OPEN
    EVICTED_IDLE
    COUNTS

# Options, as numbers.
cdef enum:
    FIRST = 0                     # overlap
    LAST = 1
    BSD = 2
    LINUX = 3
    SOLARIS = 4
    OLD_LINUX = 5


# The text of the segment at hand. `data` lies in what `Server.packet` names.
cdef struct text_s:
    const uint8_t *data
    uint32_t seq                  # of its first byte
    uint32_t ack                  # whether there is one or not
    uint32_t size                 # bytes captured
    uint32_t wire                 # bytes that it had on the wire, at least size
    int64_t seen_ns
    int64_t offset                # of its first byte in the capture file; -1: unknown
    int64_t packet                # number of the packet
    uint16_t urgent               # urgent pointer
    uint8_t header                # bytes of the header, which lies right before data; 0: it is not at hand
    # By Engine._look_closer, before anything else of the engine.
    bint has_apart                # one byte is out of band:
    uint32_t apart                # its sequence number
    bint has_tsval                # it has a timestamp, and that is looked for
    uint32_t tsval

cdef struct conflict_s:           # a run of bytes in which the segment at hand and what is held differ
    uint32_t seq
    uint32_t size
    bint new_wins


cdef const uint8_t *NOTHING       # where text would be


cdef class Holder(Server):
    cdef PageCache cache
    # options, as numbers; -1: never; 0 for a limit: none
    cdef int64_t limit_total
    cdef int64_t limit_connection
    cdef int64_t limit_bytes_total
    cdef int64_t limit_bytes_connection
    cdef list limit_with          # page caches of the others that the limits in all are shared with,
    cdef cache_s **sharers        # and what they have
    cdef int sharer_count
    cdef int64_t closed_timeout_ns
    cdef uint8_t overlap
    cdef bint tells_conflicts
    cdef object on_conflict
    cdef memory_s conflicts       # found in the segment at hand, for on_conflict: conflict_s,
    cdef memory_s conflict_held   # and of all of them, one behind the other, the bytes that were held,
    cdef memory_s conflict_new    # and those that came,
    cdef object conflict_stream   # and the stream of what is held, where one is asked for
    cdef connection_s *at_work_on  # the connection that the segment at hand, or the last one, belongs to
    cdef origin_s *origin         # of the capture at hand, where what waits may lie there; or NULL
    cdef clock_s clock
    cdef uint64_t counts[COUNTS]
    cdef bint has_peer_ack        # the other side had acknowledged something before the segment at hand came, in pools that pair:
    cdef uint32_t peer_ack        # the highest of that

    # The time before which something is too old; of what closed connections leave behind.
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil
    cdef int64_t _forget_before(self) noexcept nogil

    # Early: into pages.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure, origin_s *origin) except -1 nogil
    cdef int _hold_over_many(self, page_list_s *pages, text_s *text, origin_s *origin) except -1 nogil
    cdef origin_s *_origin_for(self, connection_s *connection, text_s *text) noexcept nogil
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end, origin_s *origin
    ) except NULL nogil
    cdef int _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) except -1 nogil
    cdef int _count_conflicts(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil
    cdef int _note_conflict(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil
    cdef bint _tells_conflicts(self) noexcept nogil
    cdef int _tell_conflicts(self, const key_s *key) except -1

    # Whose bytes stay, under other policies than "first".
    cdef bint _wins(self, const text_s *text, page_s *page) noexcept nogil
    cdef int64_t _make_room(self, page_list_s *pages, page_s *page, uint32_t near, text_s *text) except -1 nogil
    cdef int _take_out(self, page_list_s *pages, page_s *page, uint32_t begin, uint32_t end) except -1 nogil

    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil
    cdef bint _are_all_at_limit(self) noexcept nogil
    cdef void _drop(self, page_list_s *pages, int reason) noexcept nogil
    cdef void _drop_successor(self, connection_s *connection) noexcept nogil


# Nothing is held from there on; counts what was.
cdef void cut_pages(page_list_s *pages, uint32_t end_seq, uint64_t *dropped) noexcept nogil
# From the first to the last byte held, were this segment held too; something is.
cdef int64_t span_with(page_list_s *pages, text_s *text) noexcept nogil
