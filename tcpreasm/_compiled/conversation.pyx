"""`ConversationState`: what is known of both directions of one TCP connection together. Touched by every packet, in pools that pair.

The functions work on side_s and conversation_s; the class opens them to Python callers.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memset

from .connection cimport HAS_ISN, key_object, key_s, reverse_key
from .decode cimport ACK, RST, SYN

__all__ = ["ConversationState"]

cdef enum:
    SYN_REACH = 1 << 24           # what acknowledges a SYN, and what came after it, lies at most so many bytes behind it
    SYN_TEXT = 1 << 16            # and what a SYN-ACK acknowledges, at most so many
    LINE = 64                     # a cache line

cdef extern from *:
    """
    #define tcpreasm_count_up(number) __atomic_add_fetch((number), 1, __ATOMIC_RELAXED)
    #define tcpreasm_count_down(number) __atomic_sub_fetch((number), 1, __ATOMIC_ACQ_REL)
    """
    int64_t count_up "tcpreasm_count_up"(int64_t *number) noexcept nogil
    int64_t count_down "tcpreasm_count_down"(int64_t *number) noexcept nogil


cdef bint note(side_s *side, uint32_t flags, uint32_t ack, uint32_t size, int64_t seen_ns) noexcept nogil:
    cdef conversation_s *conversation = side.conversation
    if side.packets == 0:
        side.first_seen_ns = side.last_seen_ns = seen_ns
    side.packets += 1
    side.bytes += size
    side.last_seen_ns = max(side.last_seen_ns, seen_ns)
    if (flags & (ACK | RST)) != ACK:
        return False
    if side.watched & AWAITED and not flags & SYN and 0 <= difference(conversation.awaited_ack, ack) <= SYN_REACH:
        conversation.handshake_ack_ns = seen_ns
        side.watched &= ~AWAITED
    if side.is_what & HAS_ACK and difference(side.ack, ack) <= 0:
        return False
    side.ack = ack
    side.is_what |= HAS_ACK
    return True


cdef void note_syn(side_s *side, uint32_t flags, uint32_t isn, uint32_t ack, int64_t seen_ns, bint awaits_ack) noexcept nogil:
    cdef conversation_s *conversation = side.conversation
    cdef side_s *peer = peer_of(side)
    side.is_what |= HAS_SYN
    if conversation.is_what & GUESSED:
        conversation.client = peer.index if flags & ACK else side.index
        conversation.is_what &= ~GUESSED
    if not flags & ACK:
        if beside(side).syn_ns == NO_TIME:
            beside(side).syn_ns = seen_ns
        return
    side.is_what |= HAS_ANSWERED
    beside(side).answered = ack
    if conversation.syn_ack_ns == NO_TIME:
        conversation.syn_ack_ns = seen_ns
        conversation.opener = peer.index
        conversation.awaited_ack = isn + 1
        # Else it has come already, unnoticed.
        if awaits_ack and (not peer.is_what & HAS_ACK or difference(conversation.awaited_ack, peer.ack) < 0):
            peer.watched |= AWAITED


cdef void note_close(side_s *side, bint by_rst) noexcept nogil:
    cdef conversation_s *conversation = side.conversation
    if conversation.closed_by == NOBODY:
        conversation.closed_by = side.index
        if by_rst:
            conversation.is_what |= CLOSED_BY_RST


cdef void note_fin(side_s *side) noexcept nogil:
    side.is_what |= HAS_FIN
    note_close(side, False)


cdef void note_rst(side_s *side, uint8_t what) noexcept nogil:
    side.is_what |= HAS_RST
    side.conversation.is_what |= what
    note_close(side, True)


cdef bint may_be_taken(side_s *side, uint32_t flags, uint32_t isn, uint32_t ack) noexcept nogil:
    cdef side_s *peer = peer_of(side)
    cdef connection_s *connection = beside(peer).connection
    if side.is_what & TAKEN or side.conversation.is_what & (WAS_RESET | REFUSED | COMPLETE_NOW):
        return False
    if not flags & SYN:
        return True
    if flags & ACK and connection != NULL and connection.has & HAS_ISN:
        return 0 <= difference(connection.isn + 1, ack) <= SYN_TEXT
    if not flags & ACK and peer.is_what & HAS_ANSWERED:
        return 0 <= difference(isn + 1, beside(peer).answered) <= SYN_TEXT
    if peer.is_what & OVER or flags & ACK:
        return not peer.is_what & OVER
    if not peer.is_what & HAS_ACK:
        return (peer.is_what & HAS_SYN) != 0
    return 0 <= difference(isn + 1, peer.ack) <= SYN_REACH


cdef bint is_over(conversation_s *conversation) noexcept nogil:
    cdef bint whole = True        # no side can come any more
    cdef int i
    for i in range(2):
        if (conversation.side[i].is_what & (TAKEN | OVER)) == TAKEN:
            return False
        whole = whole and (conversation.side[i].is_what & (TAKEN | HAS_FIN) or conversation.beside[1 - i].connection == NULL)
    return whole or (conversation.is_what & (WAS_RESET | REFUSED)) != 0


cdef conversation_s *new_conversation(const key_s *key) noexcept nogil:
    # The allocator is quick with small memory that is aligned as usual.
    cdef void *memory = PyMem_RawMalloc(sizeof(conversation_s) + LINE)
    cdef conversation_s *conversation
    cdef int i
    if memory == NULL:
        return NULL
    conversation = <conversation_s *>((<uintptr_t>memory + LINE - 1) & ~<uintptr_t>(LINE - 1))
    memset(conversation, 0, sizeof(conversation_s))
    conversation.memory = memory
    conversation.key = key[0]
    for i in range(2):
        conversation.side[i].conversation = conversation
        conversation.side[i].index = <uint8_t>i
        conversation.beside[i].syn_ns = NO_TIME
    conversation.syn_ack_ns = conversation.handshake_ack_ns = NO_TIME
    # Until a SYN tells: the server has the lower port; of equal ones, the client was seen first.
    conversation.client = key.src_port < key.dst_port
    conversation.is_what = GUESSED
    conversation.opener = conversation.closed_by = NOBODY
    return conversation


cdef void keep_conversation(conversation_s *conversation) noexcept nogil:
    count_up(&conversation.references)


cdef void let_go_of_conversation(conversation_s *conversation) noexcept nogil:
    if count_down(&conversation.references) == 0:
        PyMem_RawFree(conversation.memory)


cdef ConversationState state_of(conversation_s *conversation):
    cdef ConversationState state = ConversationState.__new__(ConversationState)
    keep_conversation(conversation)
    state.conversation_ = conversation
    return state


cdef object time_or_none(int64_t time_ns):
    return None if time_ns == NO_TIME else time_ns


cdef class ConversationState:
    """Both directions. `conversation` is what the pool's owner keeps with it."""

    def __dealloc__(self):
        if self.conversation_ != NULL:
            let_go_of_conversation(self.conversation_)

    @property
    def client(self):
        """Number of the client's side."""
        return self._of().client

    def facts(self):
        """Number of the client's side, guessed, complete, reset, refused; number of the side that closed or None, by RST; capture times of
        the handshake's SYN, SYN-ACK and ACK: nanoseconds or None."""
        cdef conversation_s *of = self._of()
        cdef uint8_t opener = of.client if of.opener == NOBODY else of.opener
        return (
            of.client,
            (of.is_what & GUESSED) != 0,
            (of.is_what & COMPLETE_NOW) != 0,
            (of.is_what & WAS_RESET) != 0,
            (of.is_what & REFUSED) != 0,
            None if of.closed_by == NOBODY else of.closed_by,
            (of.is_what & CLOSED_BY_RST) != 0,
            time_or_none(of.beside[opener].syn_ns),
            time_or_none(of.syn_ack_ns),
            time_or_none(of.handshake_ack_ns),
        )

    def side_facts(self, index):
        """Packets, bytes captured, delivered, skipped; highest acknowledgement number or None; SYN, FIN, end of the stream seen; capture
        time of the first and the last segment, nanoseconds or None."""
        cdef side_s *side = &self._of().side[1 if index else 0]
        return (
            side.packets,
            side.bytes,
            side.delivered,
            side.skipped,
            side.ack if side.is_what & HAS_ACK else None,
            (side.is_what & HAS_SYN) != 0,
            (side.is_what & HAS_FIN) != 0,
            (side.is_what & SIDE_ENDED) != 0,
            side.first_seen_ns if side.packets else None,
            side.last_seen_ns if side.packets else None,
        )

    def key_of(self, index):
        """The ConnectionKey of what side `index` sends."""
        cdef key_s key = self._of().key
        if index:
            key = reverse_key(&key)
        return key_object(&key)

    cdef conversation_s *_of(self) except NULL:
        if self.conversation_ == NULL:
            raise ValueError("a ConversationState is made by its pool")
        return self.conversation_
