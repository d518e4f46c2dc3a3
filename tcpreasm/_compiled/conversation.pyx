"""What is known of both directions of one TCP connection together: `conversation_s`, touched by every packet in pools that pair, and
`Conversation` and `Side`, which open it to callers.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memset

from .connection cimport HAS_ISN, key_object, key_s, net_flow_of, reverse_key, transport_flow_of
from .decode cimport ACK, RST, SYN

__all__ = ["Conversation", "Side"]

cdef enum:
    SYN_REACH = 1 << 24           # what acknowledges a SYN, and what came after it, lies at most so many bytes behind it
    SYN_TEXT = 1 << 16            # and what a SYN-ACK acknowledges, at most so many
    LINE = 64                     # a cache line

cdef extern from "Python.h":
    object PyMethod_New(object function, object instance)
    Py_ssize_t Py_REFCNT(PyObject *object) noexcept

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


cdef key_s key_of(const conversation_s *conversation, int index) noexcept nogil:
    return reverse_key(&conversation.key) if index else conversation.key


# Capture time of the handshake's SYN.
cdef int64_t syn_time(const conversation_s *conversation) noexcept nogil:
    return conversation.beside[conversation.client if conversation.opener == NOBODY else conversation.opener].syn_ns


cdef int64_t handshake_time(const conversation_s *conversation) noexcept nogil:
    cdef int64_t syn_ns = syn_time(conversation)
    return NO_TIME if NO_TIME in (syn_ns, conversation.handshake_ack_ns) else conversation.handshake_ack_ns - syn_ns


cdef object time_or_none(int64_t time_ns):
    return None if time_ns == NO_TIME else time_ns


cdef str role_of(const conversation_s *conversation, int index):
    return "client" if index == conversation.client else "server"


cdef Conversation open_to_callers(conversation_s *conversation, bint is_handled):
    cdef Conversation made = Conversation.__new__(Conversation)
    keep_conversation(conversation)
    made.conversation_ = conversation
    made.is_handled = is_handled
    return made


@cython.freelist(64)
cdef class Conversation:
    """Conversation()\n--\n\n\
Both directions of one TCP connection. Made by the pool when the first of its streams is due.

    Attributes:
        handler: what the factory made. None in a pool with `streams`.
        context: whatever you put there.

    Everything else is a property, and tells how things are when it is asked for.
    """

    def __init__(self):
        raise TypeError("a Conversation is made by its pool")

    def __dealloc__(self):
        if self.conversation_ != NULL:
            if self.conversation_.object == <PyObject *>self:
                self.conversation_.object = NULL
            let_go_of_conversation(self.conversation_)

    def __repr__(self):
        return f"<conversation {self.key}, {self.state}>"

    cdef conversation_s *_of(self) except NULL:
        if self.conversation_ == NULL:
            raise ValueError("a Conversation is made by its pool")
        return self.conversation_

    cdef Side side_at(self, int index):
        cdef Side made
        self._of()
        if not self._has_side(index):
            made = HandledSide.__new__(HandledSide) if self.is_handled else Side.__new__(Side)
            if not self._has_side(index):  # the garbage collector may have let others in
                made.conversation, made.index = self, index
                self.sides_[index] = <PyObject *>made
                if self.conversation_.object == <PyObject *>self:
                    if index:
                        self.kept_1 = made
                    else:
                        self.kept_0 = made
        return <Side>self.sides_[index]

    # One that dies is still noted while its weak references are told; it cannot be had any more.
    cdef bint _has_side(self, int index) noexcept:
        return self.sides_[index] != NULL and Py_REFCNT(self.sides_[index]) != 0

    @property
    def sides(self):
        """Client and server."""
        return self.client, self.server

    @property
    def client(self):
        """Who sent the SYN, or was answered with a SYN-ACK; else see `guessed`."""
        return self.side_at(self._of().client)

    @property
    def server(self):
        """The other one."""
        return self.side_at(1 - self._of().client)

    @property
    def guessed(self):
        """No SYN has told who is client: who has the lower port is taken for the server, and where both are equal, who was seen first for
        the client. A SYN that comes late corrects it."""
        return (self._of().is_what & GUESSED) != 0

    @property
    def key(self):
        """Client to server."""
        return self.client.key

    @property
    def handshake(self):
        """SYN, SYN-ACK and the client's ACK were captured (RFC 9293 3.5)."""
        cdef conversation_s *of = self._of()
        return handshake_time(of) != NO_TIME and of.syn_ack_ns != NO_TIME

    @property
    def syn_ns(self):
        """Capture time of the client's first SYN, nanoseconds since 1970. None: not seen. (Where both sides send a SYN at the same time: of
        the one that a SYN-ACK answers, so that the three times belong together.)"""
        return time_or_none(syn_time(self._of()))

    @property
    def syn_ack_ns(self):
        """That of the first SYN-ACK."""
        return time_or_none(self._of().syn_ack_ns)

    @property
    def handshake_ack_ns(self):
        """That of the first segment which acknowledges it."""
        return time_or_none(self._of().handshake_ack_ns)

    @property
    def handshake_time_ns(self):
        """From the first SYN to the client's ACK, nanoseconds: what a round trip takes, wherever in between the capture was made."""
        return time_or_none(handshake_time(self._of()))

    @property
    def handshake_time(self):
        """`handshake_time_ns` in seconds."""
        cdef int64_t time_ns = handshake_time(self._of())
        return None if time_ns == NO_TIME else time_ns / 1e9

    @property
    def closed_by(self):
        """Whose FIN or RST came first, "client" or "server". None: no one's."""
        cdef conversation_s *of = self._of()
        return None if of.closed_by == NOBODY else role_of(of, of.closed_by)

    @property
    def closed_how(self):
        """What that was: "fin" or "rst"."""
        cdef conversation_s *of = self._of()
        return None if of.closed_by == NOBODY else "rst" if of.is_what & CLOSED_BY_RST else "fin"

    @property
    def state(self):
        """One of "opening": a SYN, and nothing else yet; "open"; "half-closed": one FIN; "closed": both; "reset": an exact RST of either
        side (RFC 5961 3.2); "refused": a RST in answer to the SYN (RFC 9293 3.10.7.3)."""
        cdef conversation_s *of = self._of()
        cdef uint32_t both = of.side[0].is_what & of.side[1].is_what
        cdef uint32_t either = of.side[0].is_what | of.side[1].is_what
        if of.is_what & (WAS_RESET | REFUSED):
            return "reset" if of.is_what & WAS_RESET else "refused"
        if either & HAS_FIN:
            return "closed" if both & HAS_FIN else "half-closed"
        return "open" if either & HAS_ACK else "opening"

    @property
    def first_seen_ns(self):
        """Capture time of the first segment of either side, nanoseconds since 1970."""
        cdef side_s *one = &self._of().side[0]
        cdef side_s *other = peer_of(one)
        if not one.packets or not other.packets:
            return one.first_seen_ns if one.packets else other.first_seen_ns if other.packets else None
        return min(one.first_seen_ns, other.first_seen_ns)

    @property
    def last_seen_ns(self):
        """Capture time of the latest one."""
        cdef side_s *one = &self._of().side[0]
        cdef side_s *other = peer_of(one)
        if not one.packets or not other.packets:
            return one.last_seen_ns if one.packets else other.last_seen_ns if other.packets else None
        return max(one.last_seen_ns, other.last_seen_ns)

    @property
    def complete(self):
        """Nothing more comes."""
        return (self._of().is_what & COMPLETE_NOW) != 0


# No cycle lies in what it refers to but through its conversation, which the garbage collector may clear; and it must take itself out there.
@cython.freelist(64)
@cython.no_gc_clear
cdef class Side:
    """Side()\n--\n\n\
One direction of a conversation: what one of the two sends. Made by the pool.

    Attributes:
        conversation: the Conversation that it is a side of.

    Everything else is a property, and tells how things are when it is asked for.
    """

    def __init__(self):
        raise TypeError("a Side is made by its pool")

    def __dealloc__(self):
        if self.conversation is not None and self.conversation.sides_[self.index] == <PyObject *>self:
            self.conversation.sides_[self.index] = NULL

    def __repr__(self):
        return f"<{self.role} {self.key}>"

    cdef side_s *_of(self) except NULL:
        if self.conversation is None:
            raise ValueError("a Side is made by its pool")
        return &self.conversation.conversation_.side[self.index]

    @property
    def peer(self):
        """The other one."""
        return self.conversation.side_at(1 - self._of().index)

    @property
    def role(self):
        """Which of the two it is, "client" or "server"; see `Conversation.guessed`."""
        return role_of(self._of().conversation, self.index)

    @property
    def stream(self):
        """What `streams` made for it. None: nothing yet, or the pool has handlers."""
        self._of()
        return self.conversation.stream_1 if self.index else self.conversation.stream_0

    @property
    def key(self):
        """Who sends to whom."""
        cdef key_s key
        if self.key_ is None:
            key = key_of(self._of().conversation, self.index)
            self.key_ = key_object(&key)
        return self.key_

    @property
    def net_flow(self):
        """The addresses, the sender's as `src`."""
        cdef key_s key = key_of(self._of().conversation, self.index)
        return net_flow_of(&key) if self.key_ is None else self.key_.net_flow

    @property
    def transport_flow(self):
        """The ports, the sender's as `src`."""
        cdef key_s key = key_of(self._of().conversation, self.index)
        return transport_flow_of(&key) if self.key_ is None else self.key_.transport_flow

    @property
    def packets(self):
        """Segments of this side, acknowledgements and repeated ones among them, from the one on with which the conversation began."""
        return self._of().packets

    @property
    def bytes(self):
        """Bytes of payload in them, as captured, repeated ones among them."""
        return self._of().bytes

    @property
    def delivered(self):
        """Bytes given to its stream."""
        return self._of().delivered

    @property
    def skipped(self):
        """Bytes missing in it, as far as their number is known."""
        return self._of().skipped

    @property
    def acked(self):
        """The highest acknowledgement number that this side has sent (modulo 2**32). None: none yet."""
        cdef side_s *of = self._of()
        return of.ack if of.is_what & HAS_ACK else None

    @property
    def started(self):
        """Its SYN was captured."""
        return (self._of().is_what & HAS_SYN) != 0

    @property
    def ended(self):
        """Its stream has reached its own FIN or RST. False for one that ended with the other side's RST."""
        return (self._of().is_what & SIDE_ENDED) != 0

    @property
    def first_seen_ns(self):
        """Capture time of its first segment, nanoseconds since 1970. None: it has sent nothing."""
        cdef side_s *of = self._of()
        return of.first_seen_ns if of.packets else None

    @property
    def last_seen_ns(self):
        """Capture time of its latest segment."""
        cdef side_s *of = self._of()
        return of.last_seen_ns if of.packets else None


@cython.freelist(64)
@cython.no_gc_clear
cdef class HandledSide(Side):
    """A side that the core takes for a stream: its methods are the handler's, called with the side, and nothing lies in between."""

    @property
    def reassembled(self):
        self._of()
        return PyMethod_New(self.conversation.handler.reassembled, self)

    @property
    def reassembly_complete(self):
        self._of()
        return PyMethod_New(getattr(self.conversation.handler, "side_complete", nothing), self)


def nothing(side):
    """What a handler does without a method side_complete."""
