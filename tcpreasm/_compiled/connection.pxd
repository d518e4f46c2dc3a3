"""What is remembered of one direction of one TCP connection: the C contract. Touched by every packet.

Holds state only; the assembler alone changes it, under the pool's lock. Connections lie in slabs that never move, so that a pointer stays
good. Three cache lines: the first finds the connection, the first two are all that a segment in order needs.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .pages cimport page_list_s
from .sequence cimport difference


cdef enum connection_state_e:
    FREE = 0                      # on the pool's free stack
    OPEN = 1                      # in the table, on the list of open ones, has a stream (or is about to get one)
    CLOSED = 2                    # in the table, on the list of closed ones: ended by FIN or RST, and remembered for a while
    REMOVED = 3                   # in no table any more, but still being served; FREE once that is over

cdef enum:
    HAS_START = 1                 # next_seq and first_seq mean something
    HAS_ISN = 2                   # isn means something: the SYN was seen
    HAS_END = 4                   # end_seq means something: a FIN (or an exact RST) was seen
    HAS_FAR = 8                   # phase.after.far_next means something
    PAST_START = 16               # so far from first_seq that it cannot be compared with any more
    COUNTED = 32                  # its stream is a tally, inside the connection itself
    NATIVE = 64                   # its stream is served in C
    PYTHON = 96                   # its stream is served by calls of Python methods
    SERVED = 96                   # one of the three; none: it has no stream yet
    LISTED = 128                  # stands on the pool's list of those that wait for something

cdef enum:
    SYN_TEXT_HELD = 1             # in key.more: what is held is the SYN's text, and nothing has shown yet that it was accepted
    HAS_TSVAL = 2                 # since.tsval means something
    HALF_OPEN = 4                 # nothing but SYNs has come, the first one before all else

cdef extern from *:
    const int64_t NO_MORE "INT64_MIN"  # in skip

cdef enum:
    KEY_BYTES = 37                # src .. level, without a hole


# As in segment_s: the run of KEY_BYTES bytes is compared and hashed as one.
cdef struct key_s:
    uint8_t src[16]
    uint8_t dst[16]
    uint16_t src_port
    uint16_t dst_port
    uint8_t level                 # LEVEL_IPV6, and LEVEL_TUNNEL for each tunnel around
    uint8_t more                  # no part of the key. In a connection: SYN_TEXT_HELD, HAS_TSVAL, HALF_OPEN


# A SYN with another initial sequence number, seen while the connection is open: its next stream, if packets continue from it.
cdef struct successor_s:
    uint32_t isn
    uint32_t next_seq             # behind the SYN and its data
    int64_t seen_ns               # its capture time
    int64_t packet                # and number
    page_list_s pages             # that data
    uint32_t tsval                # its timestamp,
    bint has_tsval                # where there is one, and it is looked for
    uint32_t ack                  # what it acknowledged,
    bint has_ack                  # if anything


# COUNTED: what a ByteCountStream would have counted; with connection_s.skipped and phase.after.gap_count.
cdef struct tally_s:
    int64_t length                # bytes that came
    int64_t first_seen_ns         # of all that came; above last_seen_ns as long as nothing did
    int64_t last_seen_ns

# NATIVE, PYTHON, or no stream yet.
cdef struct served_s:
    void *stream                  # borrowed from the pool's list. PYTHON: what the functions there are called with; NULL: they are bound
    unsigned long owner           # identity of the thread in which user code runs for this connection now; 0: none
    uint32_t slot                 # of the stream in the pool's lists
    uint32_t gatherer             # number of the assembler that has put pieces aside for it, and is to give them out; 0: none

cdef union stream_u:
    tally_s tally
    served_s served


# As long as it waits for its start (no HAS_START), and from then on.
cdef struct before_start_s:
    uint32_t early_end            # the highest sequence number behind a segment that waits for the start
    uint32_t early_segments       # segments since the connection was made that wait for its start

cdef struct after_start_s:
    uint32_t far_next             # where the last segment ended that was further ahead than max_gap
    uint32_t gap_count            # COUNTED: holes with a known length

cdef union phase_u:
    before_start_s before
    after_start_s after

cdef union since_u:
    int64_t created_ns            # capture time of the first segment; as long as it waits for its start
    uint32_t tsval                # timestamp of what came in order last; from the start on


# Streams are COUNTED in no pool that pairs.
cdef union more_u:
    int64_t skipped               # COUNTED: missing bytes so far, as far as known
    void *side                    # in pools that pair: the side_s of its conversation; NULL: none yet


cdef struct connection_s:
    key_s key
    uint8_t state                 # connection_state_e
    uint8_t has                   # HAS_ and PAST_ flags; how it is SERVED; LISTED
    uint32_t next_seq             # sequence number expected next
    uint32_t cut_end              # up to here the capture cut bytes off, where ahead of next_seq: no use waiting for them
    uint32_t isn                  # sequence number of the SYN
    uint32_t serial               # of this use of this piece of memory; grows through the pool: the order of creation, or of closing
    int64_t last_seen_ns          # latest capture time of a segment
    # -- second line
    page_list_s pages             # what arrived early
    # Missing bytes that the next piece will report; -1 for an unknown number. NO_MORE: its stream gets no more, nothing is held, waited for
    # or told; as with the others, what is in order is to be looked at closely, which spares that a test of its own.
    int64_t skip
    stream_u stream
    # -- third line: streams out of order, opening and closing
    successor_s *successor        # or NULL
    connection_s *older           # neighbours on the list that state tells
    connection_s *newer           # FREE: links the stack
    int64_t end_ns                # OPEN: capture time of the FIN, before that of the last SYN; CLOSED: believed capture time of closing
    since_u since
    more_u more
    uint32_t first_seq            # sequence number of the stream's first byte
    uint32_t end_seq              # sequence number at which the FIN stands
    phase_u phase


# There is something to come that a hole holds back.
cdef inline bint waits(connection_s *connection) noexcept nogil:
    return connection.pages.count > 0 or (
        (connection.has & HAS_END) != 0
        and not ((connection.has & HAS_START) != 0 and connection.end_seq == connection.next_seq)
    )

# The sequence number at which what waits begins.
cdef inline uint32_t first_held(connection_s *connection) noexcept nogil:
    return connection.end_seq if connection.pages.first == NULL else connection.pages.first.seq

# The stream begins at seq.
cdef inline void begin_at(connection_s *connection, uint32_t seq) noexcept nogil:
    connection.has |= HAS_START
    connection.next_seq = connection.first_seq = connection.cut_end = seq
    connection.phase.after.far_next = connection.phase.after.gap_count = 0

# Its stream has stopped, or has had all that its depth leaves it.
cdef inline bint is_stopped(const connection_s *connection) noexcept nogil:
    return connection.skip == NO_MORE

# To be called whenever next_seq has moved over a multiple of 2**30.
cdef inline void note_past_start(connection_s *connection) noexcept nogil:
    if not 0 <= difference(connection.first_seq, connection.next_seq) <= 1 << 30:
        connection.has |= PAST_START

# The stream has reached its FIN or RST.
cdef inline bint ended(connection_s *connection) noexcept nogil:
    return (connection.has & (HAS_END | HAS_START)) == (HAS_END | HAS_START) and connection.end_seq == connection.next_seq

# For a stream that gets no more: what lies before seq is behind it, and so is what lies before the FIN.
cdef inline void go_on_to(connection_s *connection, uint32_t seq) noexcept nogil:
    if difference(connection.next_seq, seq) > 0:
        connection.next_seq = seq
    if connection.has & HAS_END:
        connection.next_seq = connection.end_seq
    connection.cut_end = connection.next_seq
    note_past_start(connection)

# seq has not been reached.
cdef inline bint is_ahead(connection_s *connection, uint32_t seq) noexcept nogil:
    return not connection.has & HAS_START or difference(connection.next_seq, seq) >= 0

# COUNTED from now on; it had no stream.
cdef inline void begin_tally(connection_s *connection) noexcept nogil:
    connection.has |= COUNTED
    connection.stream.tally.length = 0
    connection.stream.tally.first_seen_ns = 0x7FFFFFFFFFFFFFFF
    connection.stream.tally.last_seen_ns = -0x7FFFFFFFFFFFFFFF

# User code runs for it in a thread: which; 0: in none.
cdef inline unsigned long owner_of(connection_s *connection) noexcept nogil:
    return 0 if (connection.has & SERVED) == COUNTED else connection.stream.served.owner

# Forget everything but where it lies, last_seen_ns too. The page list must be empty and the successor gone, as closing leaves them.
cdef void reset(connection_s *connection, const key_s *key, int64_t seen_ns) noexcept nogil

# The sequence number of the last thing held that was seen before t_ns goes to *seq. False where there is none.
# Looks at every page: flushes only.
cdef bint waits_until(connection_s *connection, int64_t t_ns, uint32_t *seq) noexcept nogil

# The capture time of the oldest thing held, its FIN among them. Looks at every page.
cdef int64_t oldest_held(connection_s *connection) noexcept nogil

# That of the other direction.
cdef inline key_s reverse_key(const key_s *key) noexcept nogil:
    cdef key_s back = key[0]
    memcpy(back.src, key.dst, sizeof(back.src))
    memcpy(back.dst, key.src, sizeof(back.dst))
    back.src_port, back.dst_port = key.dst_port, key.src_port
    return back

# The two flows, as Python objects, and both in one.
cdef object net_flow_of(const key_s *key)
cdef object transport_flow_of(const key_s *key)
cdef object key_object(const key_s *key)
# The opposite of packed source and destination address, source and destination port, tunnels around.
cdef key_s raw_key(object key) except *


cdef class Connection:            # a handle on one connection of its own, for callers and tests
    cdef connection_s connection
