"""Brings the segments of a connection into order: the C contract. Called once for each segment that is not simply the next one."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .clock cimport clock_s
from .connection cimport connection_s, key_s, successor_s
from .conversation cimport ConversationState, conversation_s
from .origin cimport origin_s
from .pages cimport PageCache, cache_s, page_list_s, page_s
from .pool cimport ConversationPoolBase
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

# Why missing bytes are given up: stats.GAP_REASONS, in their order, from HOLES_LIMITED on; two of them are no holes, and not counted.
cdef enum:
    GAP_CUT = HOLES_ENDED + 1
    GAP_START = HOLES_ENDED + 2

cdef enum:
    FIN = 1                       # RFC 9293 3.1
    SYN = 2
    RST = 4
    ACK = 16
    URG = 32
    LONG_WAY = 256                # no flag of the header: the segment is to be looked at closely, even if it is simply the next one

# Options, as numbers.
cdef enum:
    FIRST = 0                     # overlap
    LAST = 1
    BSD = 2
    LINUX = 3
    SOLARIS = 4
    OLD_LINUX = 5

cdef enum:
    URGENT_INLINE = 0
    URGENT_OOB = 1
    URGENT_OOB_LINUX = 2


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


# The segment at hand, where the pool pairs; or a SYN that was remembered.
cdef struct at_hand_s:
    uint32_t flags
    uint32_t seq
    uint32_t ack
    uint32_t size
    int64_t seen_ns

cdef struct given_up_s:           # missing bytes that are no longer waited for
    key_s key                     # of their connection
    uint32_t seq                  # of the first one
    int why                       # HOLES_LIMITED ... GAP_START
    int64_t missing               # -1: nobody knows

cdef struct conflict_s:           # a run of bytes in which the segment at hand and what is held differ
    uint32_t seq
    uint32_t size
    bint new_wins


cdef class Engine(Server):
    cdef PageCache cache
    # options, as numbers; -1: never; 0 for a limit: none
    cdef int64_t limit_total
    cdef int64_t limit_connection
    cdef uint64_t limit_connections  # open ones and those remembered; the highest number: none
    cdef object on_evict          # or None
    cdef bint tells_evictions     # it is not None
    cdef bint opens_on_data       # a stream is made for text or a FIN only, not for a SYN
    cdef int64_t limit_bytes_total
    cdef int64_t limit_bytes_connection
    cdef list limit_with          # page caches of the others that the limits in all are shared with,
    cdef cache_s **sharers        # and what they have
    cdef int sharer_count
    cdef int64_t start_wait_segments
    cdef int64_t start_wait_ns
    cdef int64_t max_gap
    cdef int64_t hole_timeout_ns
    cdef int64_t acked_timeout_ns
    cdef int64_t idle_timeout_ns
    cdef int64_t closed_timeout_ns
    cdef uint8_t overlap
    cdef uint8_t urgent
    cdef bint paws
    cdef bint syn_data_waits
    cdef uint32_t long_way        # LONG_WAY where an option asks for a look at every segment, else 0
    cdef bint tells_conflicts
    cdef object on_conflict
    cdef memory_s conflicts       # found in the segment at hand, for on_conflict: conflict_s,
    cdef memory_s conflict_held   # and of all of them, one behind the other, the bytes that were held,
    cdef memory_s conflict_new    # and those that came
    cdef bint tells_gaps
    cdef object on_gap
    cdef memory_s gaps            # of given_up_s, since the last call of _settle, for on_gap
    cdef int64_t depth            # bytes of each stream that it gets; 0: all
    cdef origin_s *origin         # of the capture at hand, where what waits may lie there; or NULL
    cdef clock_s clock
    cdef clock_s clock_before     # of the packet at hand
    cdef int64_t packets          # given so far, those of the group at hand not counted
    cdef bint debug
    cdef uint64_t counts[COUNTS]
    cdef bint pairs               # the pool does:
    cdef ConversationPoolBase pairing  # it is this one; else None
    cdef at_hand_s at_hand
    cdef bint is_noted            # that counts for its side of a conversation already
    cdef int64_t acked_before     # in a walk over all connections: holes that were acknowledged before that are given up

    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil
    cdef int64_t _forget_before(self) noexcept nogil

    cdef void _look_closer(self, uint8_t flags, text_s *text) noexcept nogil
    # One segment, from the look-up of its connection to the calls of its stream.
    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil
    # There is room for a new one, unless user code runs for all there are. True: user code has run, without the lock: look again.
    cdef bint _evict_for_room(self) except -1 nogil
    cdef int _evict(self, connection_s *connection) except -1 nogil
    cdef int _tell_eviction(self, const key_s *key, int reason) except -1
    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef int _open_if_due(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil
    cdef bint _brings_data(self, connection_s *connection, uint8_t flags, const text_s *text) noexcept nogil
    cdef int _open_late(self, connection_s *connection, uint32_t at_stake, int64_t packet) except -1 nogil
    cdef void _drop_unopened(self, connection_s *connection) noexcept nogil
    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1 nogil
    cdef int _make_stream(self, connection_s *connection, uint32_t at_stake) except -1
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

    # Early: into pages.
    cdef origin_s *_origin_for(self, connection_s *connection, text_s *text) noexcept nogil
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure, origin_s *origin) except -1 nogil
    cdef int _hold_over_many(self, page_list_s *pages, text_s *text, origin_s *origin) except -1 nogil
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end, origin_s *origin
    ) except NULL nogil
    cdef int _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) except -1 nogil
    cdef int _count_conflicts(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil
    cdef int _note_conflict(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil
    cdef int _tell_conflicts(self, const key_s *key) except -1

    # Whose bytes stay, under other policies than "first".
    cdef bint _wins(self, const text_s *text, page_s *page) noexcept nogil
    cdef int64_t _make_room(self, page_list_s *pages, page_s *page, uint32_t near, text_s *text) except -1 nogil
    cdef int _take_out(self, page_list_s *pages, page_s *page, uint32_t begin, uint32_t end) except -1 nogil
    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil
    cdef bint _are_all_at_limit(self) noexcept nogil
    cdef int _keep_limits(self, connection_s *connection) except -1 nogil
    cdef int _skip(self, connection_s *connection, int why) except -1 nogil
    cdef void _drop(self, page_list_s *pages, int reason) noexcept nogil
    cdef void _drop_successor(self, connection_s *connection) noexcept nogil

    # What this has led to goes to the stream. packet: the one at hand; 0: there is none.
    cdef int _serve(self, connection_s *connection, int64_t packet) except -1 nogil
    cdef int _close(self, connection_s *connection) except -1 nogil
    cdef int _finish_pieces(self, connection_s *connection) except -1 nogil
    cdef int _end_stream(self, connection_s *connection, int after) except -1 nogil

    # A stream that gets no more.
    cdef int _stop(self, connection_s *connection) except -1 nogil
    cdef void _let_go(self, connection_s *connection) noexcept nogil
    cdef int _end_at_depth(self, connection_s *connection) except -1 nogil
    cdef int64_t _left(self, const connection_s *connection) noexcept nogil
    cdef int _keep_depth(self, connection_s *connection) except -1 nogil
    cdef int _note_gap(self, const connection_s *connection, uint32_t seq, int64_t missing, int why) except -1 nogil
    # What that raises is kept as the late error.
    cdef int _tell_gaps(self) except -1

    # Both directions together, in pools that pair.
    cdef void _hold_at_hand(self, uint32_t flags, const text_s *text) noexcept nogil
    cdef int _join(self, connection_s *connection, const at_hand_s *syn, bint remembered) except -1 nogil
    cdef void _note(self, connection_s *connection, bint acknowledges) noexcept nogil
    cdef void _note_syn(self, connection_s *connection) noexcept nogil
    cdef bint _note_beside(self, const key_s *key, uint32_t hash) noexcept nogil
    cdef bint _is_acked(self, const connection_s *connection, uint32_t ack) noexcept nogil
    cdef void _mark_acked(self, connection_s *connection) noexcept nogil
    cdef bint _give_up_acked(self, connection_s *connection, int64_t before_ns) except -1 nogil
    # What user code raises there is kept as the late error.
    cdef int _settle(self) except -1 nogil
    cdef int _settle_with_gil(self) except -1
    cdef int _serve_sides(self, conversation_s *conversation, bint closes) except -1
    cdef int _tell_complete(self, conversation_s *conversation) except -1
    cdef ConversationState _state_of(self, conversation_s *conversation)
