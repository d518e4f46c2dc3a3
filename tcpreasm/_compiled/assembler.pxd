"""The conductor: the C contract. Takes segments, finds their connection, brings them into order, serves the stream."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s, successor_s
from .pages cimport PageCache, page_list_s, page_s
from .pool cimport StreamPoolBase


# Positions in counts: stats.COUNTERS, then stats.DROP_REASONS, in their order.
cdef enum:
    SEGMENTS
    BYTES_CAPTURED
    BYTES_DELIVERED
    BYTES_SKIPPED
    CONFLICTING
    RST_IGNORED
    FIN_IGNORED
    LATE_SYN
    SYN_REMEMBERED
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
    COUNTS

cdef enum:
    VERDICTS = 9                  # members of Verdict


# The text of the segment at hand. `data` lies in `AssemblerBase.packet`.
cdef struct text_s:
    const uint8_t *data
    uint32_t seq                  # of its first byte
    uint32_t size                 # bytes captured
    uint32_t wire                 # bytes that it had on the wire, at least size
    int64_t seen_ns


# Capture time. It follows the packets, but a far step only when a second packet confirms it.
cdef struct clock_s:
    int64_t now                   # as far as it is believed
    int64_t suspect               # a time far from it, seen last
    int64_t changed               # when the clock was last set ahead
    bint has_now
    bint has_suspect
    bint has_changed


cdef class AssemblerBase:
    cdef StreamPoolBase pool_
    cdef PageCache cache
    # options, as numbers; -1: never; 0 for a page limit: none
    cdef int64_t limit_total
    cdef int64_t limit_connection
    cdef bint verify
    cdef int64_t start_wait_segments
    cdef int64_t start_wait_ns
    cdef int64_t max_gap
    cdef int64_t hole_timeout_ns
    cdef int64_t idle_timeout_ns
    cdef int64_t closed_timeout_ns
    # the call at hand
    cdef bint busy                # a call is under way: no other may begin
    cdef bytes packet             # what the text at hand lies in
    cdef list out                 # pieces for the connection at hand
    cdef object late_error        # an exception of a stream that ended while the segment still had to be taken in, or None
    # the rest
    cdef clock_s clock
    cdef clock_s clock_before     # of the packet at hand
    cdef bint closed_             # no more calls
    cdef bint debug
    cdef uint64_t counts[COUNTS]
    cdef uint64_t verdicts[VERDICTS]

    cdef int _enter(self) except -1
    cdef int _finish(self) except -1
    cdef void _observe(self, int64_t seen_ns) noexcept
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept
    cdef int64_t _forget_before(self) noexcept

    # One segment, from the look-up of its connection to the calls of its stream.
    cdef int _segment(self, const key_s *key, uint8_t flags, text_s *text, bint from_frame) except -1
    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1
    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1
    cdef int _reset(self, connection_s *connection, text_s *text) except -1
    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1
    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1
    cdef bint _reopens(self, connection_s *connection, uint8_t flags, text_s *text) except -1
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1
    cdef int _remember(self, connection_s *connection, text_s *text) except -1

    # Text and FIN.
    cdef int _text(self, connection_s *connection, uint8_t flags, text_s *text, bint start) except -1
    cdef bint _is_wild(self, connection_s *connection, text_s *text) noexcept
    cdef int _note_end(self, connection_s *connection, uint32_t end_seq, int64_t seen_ns) except -1
    cdef int _wait_for_start(self, connection_s *connection, text_s *text) except -1

    # In order: pieces go to `out`, next_seq goes on.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1
    cdef int _advance(self, connection_s *connection) except -1
    cdef void _jump(self, connection_s *connection, int64_t missing) noexcept
    cdef int _emit(self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, bint start) except -1
    cdef int _emit_page(self, connection_s *connection) except -1

    # Early: into pages.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure) except -1
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, uint32_t seq, const uint8_t *data, uint32_t size, int64_t seen_ns
    ) except NULL
    cdef void _compare(self, page_s *page, uint32_t offset, const uint8_t *copy, uint32_t size, bint unsure) noexcept
    cdef bint _is_at_limit(self, page_list_s *pages) noexcept
    cdef int _keep_limits(self, connection_s *connection) except -1
    cdef int _skip(self, connection_s *connection) except -1
    cdef void _drop(self, page_list_s *pages, int reason) noexcept
    cdef void _drop_successor(self, connection_s *connection) noexcept

    # Serving the stream.
    cdef int _serve(self, connection_s *connection) except -1
    cdef int _close(self, connection_s *connection) except -1
    cdef int _finish_pieces(self, connection_s *connection) except -1
    cdef int _call(self, object reassembled, object complete) except -1

    # All connections.
    cdef tuple _walk(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns)
    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns) except -1
