"""The conductor: the C contract. Takes segments, finds their connection, brings them into order, serves the stream.

Everything from _segment on runs under the pool's lock, and without the GIL where the caller has let go of it: `with gil` stands only
where a Python object is touched. The lock is released while user code runs.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s, served_s, successor_s
from .decode cimport segment_s
from .pages cimport PageCache, cache_s, page_list_s, page_s
from .pool cimport StreamPoolBase, listed_s, table_s
from .reassembly cimport piece_s
from .records cimport RecordReader, frame_s


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


# The text of the segment at hand. `data` lies in what `AssemblerBase.packet` names.
cdef struct text_s:
    const uint8_t *data
    uint32_t seq                  # of its first byte
    uint32_t size                 # bytes captured
    uint32_t wire                 # bytes that it had on the wire, at least size
    int64_t seen_ns
    int64_t offset                # of its first byte in the capture file; -1: unknown


# Capture time. It follows the packets, but a far step only when a second packet confirms it.
cdef struct clock_s:
    int64_t now                   # as far as it is believed
    int64_t suspect               # a time far from it, seen last
    int64_t changed               # when the clock was last set ahead
    bint has_now
    bint has_suspect
    bint has_changed


# A packet was seen at that time.
cdef void observe(clock_s *clock, int64_t seen_ns) noexcept nogil


cdef enum:
    GROUP = 64                    # frames that are walked through together: their connections are fetched meanwhile


# What a frame was. Of what is no segment only the verdict means something, and shard 0 counts it.
cdef struct decoded_s:
    segment_s segment
    uint32_t hash
    uint8_t verdict
    uint8_t shard                 # which of several assemblers takes it in


# With no state but the table's secrets.
cdef void decode_frames(
    const frame_s *frames, int count, bint verify_checksums, const table_s *table, decoded_s *decoded, int shards
) noexcept nogil


cdef class AssemblerBase:
    cdef StreamPoolBase pool_
    cdef PageCache cache
    # options, as numbers; -1: never; 0 for a page limit: none
    cdef int64_t limit_total
    cdef int64_t limit_connection
    cdef list limit_with          # page caches of the others that limit_total is shared with,
    cdef cache_s **sharers        # and what they have
    cdef int sharer_count
    cdef bint verify
    cdef int64_t start_wait_segments
    cdef int64_t start_wait_ns
    cdef int64_t max_gap
    cdef int64_t hole_timeout_ns
    cdef int64_t idle_timeout_ns
    cdef int64_t closed_timeout_ns
    # the call at hand
    cdef bint busy                # a call is under way: no other may begin
    cdef bint holds_gil           # the call at hand has the GIL now,
    cdef bint keeps_gil           # and must have it back whenever it lets go of it
    cdef bint coalesce
    cdef int64_t base             # of the offsets in the capture at hand: bytes of those before it
    cdef object packet            # what the text at hand lies in: bytes, or a Block; None: memory that the caller may change
    cdef bint shared              # the packet is more than one frame: whoever keeps a piece gets a copy
    cdef piece_s *out             # pieces for the connection at hand; pages in them are lent
    cdef Py_ssize_t out_count
    cdef Py_ssize_t out_room
    cdef list gathered            # lists of pieces put aside for streams in the call at hand,
    cdef listed_s *gathered_for   # and for whom
    cdef size_t gathered_count
    cdef size_t gathered_room
    cdef uint32_t number          # among the assemblers that the pool has had, from 1
    cdef object late_error        # an exception of a stream that ended while the segment still had to be taken in, or None
    cdef bint has_late_error
    # the rest
    cdef clock_s clock
    cdef clock_s clock_before     # of the packet at hand
    cdef bint has_ticked
    cdef int64_t ticked_ns        # capture time of the last tick that expired anything, and when the next one does
    cdef int64_t tick_ns
    cdef bint closed_             # no more calls
    cdef bint debug
    cdef uint64_t counts[COUNTS]
    cdef uint64_t verdicts[VERDICTS]

    # A call begins, with the GIL and the lock; and is over.
    cdef int _enter(self) except -1
    cdef int _leave(self) except -1
    cdef int _check_open(self) except -1
    cdef int _finish(self, Py_ssize_t *closed) except -1
    cdef int _begin_batch(self, bint coalesce) except -1
    cdef int _end_batch(self, object error) except -1
    cdef void _observe(self, int64_t seen_ns) noexcept nogil
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil
    cdef int64_t _forget_before(self) noexcept nogil

    # Many frames. *taken and *done: how many were, also where it raises.
    cdef int _walk_records(self, RecordReader records, Py_ssize_t limit, Py_ssize_t *taken) except -1 nogil
    cdef bint _refill(self, RecordReader records) except -1
    cdef int _walk_batch(
        self, const uint8_t *data, const int64_t[::1] at, const int64_t[::1] sizes, const int64_t[::1] times,
        const int64_t[::1] on_wire, int linktype
    ) except -1 nogil
    cdef int _walk_frames(self, const frame_s *frames, int count, bint ticks, int *done) except -1 nogil
    cdef int _walk_decoded(
        self, const frame_s *frames, const decoded_s *decoded, int count, bint ticks, int shard, int *done
    ) except -1 nogil
    # Those of them that `order` numbers, where time only goes on in small steps, and not as far as to the next tick.
    cdef int _walk_some(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, const int *order, int count
    ) except -1 nogil
    cdef int _decoded(self, const frame_s *frame, const decoded_s *decoded) except -1 nogil
    cdef int _tick(self) except -1 nogil
    cdef int _expire(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil

    # One segment, from the look-up of its connection to the calls of its stream.
    cdef int _segment(self, const key_s *key, uint32_t hash, uint8_t flags, text_s *text, bint from_frame) except -1 nogil
    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil
    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1 nogil
    cdef int _make_stream(self, connection_s *connection, uint32_t at_stake) except -1
    cdef int _reset(self, connection_s *connection, text_s *text) except -1 nogil
    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef bint _reopens(self, connection_s *connection, uint8_t flags, text_s *text) noexcept nogil
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil
    cdef int _remember(self, connection_s *connection, text_s *text) except -1 nogil

    # Text and FIN.
    cdef int _text(self, connection_s *connection, uint8_t flags, text_s *text, bint start) except -1 nogil
    cdef bint _is_wild(self, connection_s *connection, text_s *text) noexcept nogil
    cdef int _note_end(self, connection_s *connection, uint32_t end_seq, int64_t seen_ns) except -1 nogil
    cdef int _wait_for_start(self, connection_s *connection, text_s *text) except -1 nogil

    # In order: pieces go to `out`, next_seq goes on.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1 nogil
    cdef int _advance(self, connection_s *connection) except -1 nogil
    cdef void _jump(self, connection_s *connection, int64_t missing) noexcept nogil
    cdef int _emit(
        self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, int64_t offset, bint start
    ) except -1 nogil
    cdef int _emit_text(self, connection_s *connection, text_s *text, int64_t position, int64_t end, bint start) except -1 nogil
    cdef int _emit_page(self, connection_s *connection) except -1 nogil
    cdef piece_s *_new_piece(self) except NULL nogil
    cdef void _drop_pieces(self) noexcept nogil

    # Early: into pages.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure) except -1 nogil
    cdef page_s *_push(self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end) except NULL nogil
    cdef void _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) noexcept nogil
    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil
    cdef int64_t _pages_used(self) noexcept nogil
    cdef int _keep_limits(self, connection_s *connection) except -1 nogil
    cdef int _skip(self, connection_s *connection) except -1 nogil
    cdef void _drop(self, page_list_s *pages, int reason) noexcept nogil
    cdef void _drop_successor(self, connection_s *connection) noexcept nogil

    # Serving the stream.
    cdef int _serve(self, connection_s *connection) except -1 nogil
    cdef int _hand_over(self, connection_s *connection) except -1 nogil
    cdef int _end_stream(self, connection_s *connection, int after) except -1 nogil
    cdef int _close(self, connection_s *connection) except -1 nogil
    cdef int _finish_pieces(self, connection_s *connection) except -1 nogil
    cdef int _finish_with_gil(self, connection_s *connection, const served_s *served, bint native) except -1
    cdef int _finish_native(self, const served_s *served) except -1
    cdef int _complete(self, const served_s *served, bint native) except -1
    cdef void _take_gil(self) noexcept nogil
    cdef void _drop_gil(self) noexcept nogil
    cdef int _hand_to_python(self, connection_s *connection) except -1
    cdef list _piece_objects(self)
    cdef int _call(self, const served_s *served, bint last) except -1

    # coalesce
    cdef int _gather(self, connection_s *connection) except -1
    cdef int _give_gathered(self, object error) except -1

    # All connections.
    cdef int _walk_all(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil
    cdef int _walk_listed(self, int64_t held_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil
    cdef int _walk(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil
    cdef int _walk_collecting(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1
    cdef int _walk_one(
        self, listed_s *picked, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil
    cdef bint _acquire_open(self, const listed_s *picked) except -1 nogil
    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns) except -1 nogil
