"""`Stopper`: what a stream gets no more of, because it has stopped or has had all that its depth leaves it; and gaps, for the
`on_gap` of streams and of the options.

Called where one of these is so; a connection that is stopped is followed by its sequence numbers, and that is all.
"""

from libc.stdint cimport SIZE_MAX, int64_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from .connection cimport NO_MORE, PAST_START, SYN_TEXT_HELD, connection_s, go_on_to, net_flow_of, transport_flow_of
from .conversation cimport side_of
from .holding cimport BYTES_SKIPPED, HOLES_LIMITED, NOTHING, STOPPED, cut_pages, text_s
from .pages cimport page_end, page_s
from .pairing cimport Pairer
from .pool cimport ON_GAP
from .sequence cimport difference
from .streams cimport append, reserve

from ..stats import COUNTERS, GAP_REASONS

assert COUNTERS[HOLES_LIMITED:GAP_CUT] == tuple("holes_" + why for why in GAP_REASONS[:GAP_CUT - HOLES_LIMITED])


cdef class Stopper(Pairer):
    """What is left out of the streams, and who is told of what is missing."""

    def __dealloc__(self):
        free(self.gaps.data)

    # From now on its segments are followed, and that is all. What is missing, and no piece has told, counts as if it had not been looked
    # for.
    cdef void _let_go(self, connection_s *connection) noexcept nogil:
        cdef page_s *last = connection.pages.last
        if connection.skip > 0:
            self.counts[BYTES_SKIPPED] -= connection.skip
            if self.pairs:
                side_of(connection).skipped -= connection.skip
        connection.skip = NO_MORE
        connection.key.more &= ~SYN_TEXT_HELD
        go_on_to(connection, connection.cut_end)
        if last != NULL:
            go_on_to(connection, page_end(last) + last.missing)
        self._drop(&connection.pages, STOPPED)

    # Bytes from next_seq on that its depth leaves it.
    cdef int64_t _left(self, const connection_s *connection) noexcept nogil:
        if connection.has & PAST_START:
            return 0
        return max(0, self.depth - difference(connection.first_seq, connection.next_seq))

    # What came before the start was known, or through another assembler, may reach too far. As `_text` has it with later text.
    cdef int _keep_depth(self, connection_s *connection) except -1 nogil:
        cdef page_s *last = connection.pages.last
        cdef text_s behind
        if last == NULL:
            return 0
        memset(&behind, 0, sizeof(behind))
        behind.data, behind.offset = NOTHING, -1
        behind.seq = connection.next_seq + <uint32_t>self._left(connection)
        if difference(behind.seq, page_end(last)) > 0:
            behind.wire, behind.seen_ns = difference(behind.seq, page_end(last)) + last.missing, last.seen_ns
            cut_pages(&connection.pages, behind.seq, &self.counts[STOPPED])
            self._hold_in(&connection.pages, &behind, False, NULL)
        return 0

    cdef int _note_gap(self, const connection_s *connection, uint32_t seq, int64_t missing, int why) except -1 nogil:
        cdef given_up_s gap
        if not self.tells_gaps and not self.pool_.hooks & ON_GAP:
            return 0
        gap.stream = -1
        if self.pool_.hooks & ON_GAP:
            with gil:
                stream = self.pool_.stream_of(connection)
                if stream is not None:
                    if self.gap_streams is None:
                        self.gap_streams = []
                    gap.stream = len(self.gap_streams)
                    self.gap_streams.append(stream)
        if not reserve(&self.gaps, sizeof(gap), SIZE_MAX):
            with gil:
                raise MemoryError()
        gap.key, gap.seq, gap.missing, gap.why = connection.key, seq, missing, why
        append(&self.gaps, &gap, sizeof(gap))
        return 0

    # To whoever asked for them, without the lock, each to its stream first. An exception leaves the others untold.
    cdef int _tell_gaps(self) except -1:
        cdef given_up_s *gap = <given_up_s *>self.gaps.data
        cdef given_up_s *behind = <given_up_s *>(self.gaps.data + self.gaps.used)
        cdef list gaps = [], streams = self.gap_streams
        self.gap_streams = None
        try:
            while gap != behind:
                why = GAP_REASONS[gap.why - HOLES_LIMITED]
                stream = None if gap.stream < 0 else streams[gap.stream]
                gaps.append((stream, net_flow_of(&gap.key), transport_flow_of(&gap.key), gap.seq, gap.missing, why))
                gap += 1
        finally:
            self.gaps.used = 0
        self.pool_.unlock()
        try:
            for stream, net_flow, transport_flow, seq, missing, why in gaps:
                hook = self.pool_.hook_of(stream, ON_GAP)
                if hook is not None:
                    hook(seq, missing, why)
                if self.tells_gaps:
                    self.on_gap(net_flow, transport_flow, seq, missing, why)
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            gaps = streams = stream = hook = None  # without the lock: what dies with it may be user code
            self.pool_.lock()
        return 0
