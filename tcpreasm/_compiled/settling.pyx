"""`Settler`: what segments have led to for conversations: sides end with the other one, holes that were acknowledged go, handlers are told.

Called after each segment, and in walks over connections, where something is pending; in pools that do not pair never.
"""

from libc.stdint cimport int64_t

from .clock cimport ALWAYS_NS
from .connection cimport connection_s
from .conversation cimport (
    COMPLETE_NOW,
    GIVES_UP,
    HAS_ACKED,
    OVER,
    REFUSED,
    TOLD,
    WAS_RESET,
    Conversation,
    beside,
    conversation_s,
    let_go_of_conversation,
    side_of,
    side_s,
)
from .delivering cimport REMEMBERED
from .engine cimport Engine
from .holding cimport HOLES_ACKED
from .pool cimport listed_s


cdef class Settler(Engine):
    """What is left to do for the conversations of a pool."""

    # Holes go that were acknowledged before that time, no others: who acknowledges has the bytes, and nobody sends them again.
    cdef bint _give_up_acked(self, connection_s *connection, int64_t before_ns) except -1 nogil:
        cdef side_s *side = side_of(connection)
        cdef bint gives_up = False
        if side == NULL or not side.is_what & HAS_ACKED or beside(side).acked_ns >= before_ns:
            return False
        while self._is_acked(connection, beside(side).acked_to):
            gives_up = True
            self._skip(connection, HOLES_ACKED)
        side.is_what &= ~HAS_ACKED
        return gives_up

    # What the last segments led to for conversations, and what of them was given up.
    cdef int _settle(self) except -1 nogil:
        if self.gaps.used or (self.pairs and self.pairing.first_pending != NULL):
            self._take_gil()
            with gil:
                self._settle_with_gil()
        return 0

    cdef int _settle_with_gil(self) except -1:
        cdef bint kept = self.keeps_gil
        cdef conversation_s *conversation = self.pairing.next_pending() if self.pairs else NULL
        cdef bint gives_up
        self.keeps_gil = True
        while conversation != NULL:
            gives_up = conversation.is_what & GIVES_UP
            conversation.is_what &= ~GIVES_UP
            if gives_up:
                self._serve_sides(conversation, False)
            if conversation.is_what & (WAS_RESET | REFUSED) and not conversation.is_what & COMPLETE_NOW:
                self._serve_sides(conversation, True)
            if (conversation.is_what & (COMPLETE_NOW | TOLD)) == COMPLETE_NOW and conversation.object != NULL:
                self._tell_complete(conversation)
            let_go_of_conversation(conversation)
            conversation = self.pairing.next_pending()
        if self.gaps.used:
            self._tell_gaps()
        self.keeps_gil = kept
        return 0

    # Each side that is open: close it, or give up what was acknowledged. One that this very thread serves is left as it is.
    cdef int _serve_sides(self, conversation_s *conversation, bint closes) except -1:
        cdef connection_s *connection
        cdef listed_s picked
        cdef int i
        for i in range(2):
            connection = conversation.beside[i].connection
            if connection == NULL or conversation.side[i].is_what & OVER:
                continue
            picked.connection, picked.serial = connection, connection.serial
            try:
                if not self._acquire_open(&picked):
                    continue
                if closes:
                    self._drop_unopened(connection)
                    self._finish_pieces(connection)
                    self._end_stream(connection, REMEMBERED)
                elif self._give_up_acked(connection, ALWAYS_NS):
                    self._mark_acked(connection)
                    self._serve(connection, 0)
            except BaseException as raised:
                self._keep_error(raised)
            finally:
                if self.out_count:
                    self._drop_pieces()
        return 0

    cdef int _tell_complete(self, conversation_s *conversation) except -1:
        cdef Conversation told = self.pairing.take_object(conversation)
        conversation.is_what |= TOLD
        self.pool_.unlock()
        try:
            self.pairing.tell_complete(told)
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            told = None           # without the lock: what dies with it may be user code
            self.pool_.lock()
        return 0
