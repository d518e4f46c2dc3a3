"""What is known of both directions of one TCP connection together: the C contract. Touched by every packet, in pools that pair.

Holds state only; the engine alone changes it, under the pool's lock. A connection has a side of a conversation from its first segment on,
until it begins anew or is forgotten; the conversation lives on with the other one, and with the Conversation that opens it to callers. What
such an object reads, without the lock, are numbers that may be one segment old.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s
from .sequence cimport difference


cdef enum:                        # of a side
    HAS_ACK = 1                   # ack means something
    HAS_SYN = 2                   # its SYN was seen, its FIN, its exact RST
    HAS_FIN = 4
    HAS_RST = 8
    SIDE_ENDED = 16               # its stream has reached that
    TAKEN = 32                    # a connection has it, or had it
    OVER = 64                     # and its stream has had its last call
    HAS_ACKED = 128               # acked_ns and acked_to mean something
    HAS_ANSWERED = 256            # answered means something

cdef enum:                        # why the next segment of a side is to be looked at, even if it is simply the next one
    AWAITED = 1                   # it may be the ACK of the handshake
    PEER_WAITS = 2                # the other side waits for something that this one may acknowledge

cdef enum:                        # of a conversation
    GUESSED = 1                   # no SYN has told who is client
    WAS_RESET = 2                 # by an exact RST
    REFUSED = 4                   # by a RST in answer to a SYN
    COMPLETE_NOW = 8              # nothing more comes,
    TOLD = 16                     # and that was told
    GIVES_UP = 32                 # a hole is to be given up at once, for it was acknowledged
    PENDING = 64                  # there is something to do, and the pool has noted that
    CLOSED_BY_RST = 128           # beside closed_by

cdef enum:
    NOBODY = 2                    # no number of a side

cdef extern from *:
    const int64_t NO_TIME "INT64_MIN"


# One cache line: all that a segment in order needs.
cdef struct side_s:
    conversation_s *conversation
    int64_t last_seen_ns
    uint64_t packets              # 0: first_seen_ns and last_seen_ns mean nothing
    uint64_t bytes                # of payload, captured
    uint64_t delivered
    uint64_t skipped
    int64_t first_seen_ns
    uint32_t ack                  # the highest acknowledgement number that it sent
    uint16_t is_what              # HAS_ACK ... HAS_ANSWERED
    uint8_t watched               # AWAITED, PEER_WAITS; 0: for nothing
    uint8_t index                 # 0, 1

cdef struct beside_s:             # the rest of a side
    connection_s *connection      # that has it now, or NULL
    int64_t syn_ns                # capture time of its first SYN without ACK, or NO_TIME
    int64_t acked_ns              # since when the other side is known to have what is missing here,
    uint32_t acked_to             # up to there
    uint32_t answered             # what its SYN-ACK acknowledged

cdef struct conversation_s:
    side_s side[2]
    beside_s beside[2]
    int64_t syn_ack_ns            # or NO_TIME
    int64_t handshake_ack_ns
    conversation_s *next          # that something is to be done for
    void *memory                  # what this lies in
    int64_t references            # connections, a Conversation: touched by atomic operations alone
    PyObject *object              # the Conversation that there is, borrowed, or NULL; set with the GIL
    uint32_t awaited_ack          # what acknowledges the SYN of the SYN-ACK
    uint8_t is_what               # GUESSED ... CLOSED_BY_RST
    uint8_t client                # number of the client's side
    uint8_t opener                # whose SYN the first SYN-ACK answers: the client's, unless both open at the same time; NOBODY: none yet
    uint8_t closed_by             # whose FIN or RST came first; NOBODY
    key_s key                     # that of side 0


cdef inline side_s *side_of(const connection_s *connection) noexcept nogil:
    return <side_s *>connection.more.side

# The next segment of it is not to be taken for one like the others.
cdef inline bint is_watched(const connection_s *connection) noexcept nogil:
    return connection.more.side == NULL or side_of(connection).watched != 0

cdef inline side_s *peer_of(side_s *side) noexcept nogil:
    return &side.conversation.side[1 - side.index]

cdef inline beside_s *beside(side_s *side) noexcept nogil:
    return &side.conversation.beside[side.index]

# A segment with ACK, text and nothing else, that was the next one and went out; watched is 0.
cdef inline void note_in_order(side_s *side, uint32_t ack, uint32_t size, int64_t seen_ns) noexcept nogil:
    side.packets += 1
    side.bytes += size
    side.delivered += size
    side.last_seen_ns = max(side.last_seen_ns, seen_ns)
    if difference(side.ack, ack) > 0 or not side.is_what & HAS_ACK:
        side.ack = ack
        side.is_what |= HAS_ACK

# One that came first, and may be no such: True if it acknowledges more than those before.
cdef bint note(side_s *side, uint32_t flags, uint32_t ack, uint32_t size, int64_t seen_ns) noexcept nogil
# The SYN that began its stream came, maybe once more. awaits_ack: the segment at hand is that SYN.
cdef void note_syn(side_s *side, uint32_t flags, uint32_t isn, uint32_t ack, int64_t seen_ns, bint awaits_ack) noexcept nogil
# Its FIN; its exact RST; its RST that has answered a SYN.
cdef void note_fin(side_s *side) noexcept nogil
cdef void note_rst(side_s *side, uint8_t what) noexcept nogil
# A connection that begins with such a segment is the other direction of what is here, and no later use of the same ports.
cdef bint may_be_taken(side_s *side, uint32_t flags, uint32_t isn, uint32_t ack) noexcept nogil
# Every side that was there is over, and the other one cannot come any more.
cdef bint is_over(conversation_s *conversation) noexcept nogil

# One that begins with that connection's side 0. NULL: there is no memory. It has no reference yet.
cdef conversation_s *new_conversation(const key_s *key) noexcept nogil
cdef void keep_conversation(conversation_s *conversation) noexcept nogil
cdef void let_go_of_conversation(conversation_s *conversation) noexcept nogil


# The key of what side `index` sends.
cdef key_s key_of(const conversation_s *conversation, int index) noexcept nogil


# What callers see. Made when the first stream is due; the pool keeps it until it is complete, and it keeps its sides so long. From then on
# nothing refers to itself: a side keeps its conversation, and that knows the sides that there are.
cdef class Conversation:
    cdef conversation_s *conversation_
    cdef PyObject *sides_[2]      # borrowed, or NULL
    cdef Side kept_0              # the same, as long as it is open
    cdef Side kept_1
    cdef object stream_0          # what `streams` made for them
    cdef object stream_1
    cdef size_t place             # in the pool's list
    cdef bint is_handled          # the pool has handlers,
    cdef bint has_handler         # and there is one
    cdef unsigned long maker      # identity of the thread in which the factory makes it now; 0: none
    cdef public object handler
    cdef public object context

    cdef conversation_s *_of(self) except NULL
    cdef Side side_at(self, int index)
    cdef bint _has_side(self, int index) noexcept

cdef Conversation open_to_callers(conversation_s *conversation, bint is_handled)


cdef class Side:
    cdef object __weakref__
    cdef readonly Conversation conversation
    cdef int index
    cdef object key_              # once it was asked for

    cdef side_s *_of(self) except NULL
