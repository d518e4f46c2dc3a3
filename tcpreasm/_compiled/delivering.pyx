"""`Deliverer`: what the stream of a connection gets: its opening, its pieces in order, its end.

Lives here: making the stream, cutting pieces out of the segment at hand and the pages that go with it, giving up holes, closing. Not here:
what a segment means (engine.pyx), and the calls themselves (serving.pyx). Called once for each segment that is not simply the next one.
State is committed before user code runs, so that a callback that raises, or another thread that comes in meanwhile, finds everything
consistent.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .connection cimport (
    COUNTED,
    HAS_END,
    HAS_ISN,
    HAS_START,
    NATIVE,
    PAST_START,
    PYTHON,
    SERVED,
    SYN_TEXT_HELD,
    begin_at,
    begin_tally,
    connection_s,
    ended,
    first_held,
    is_stopped,
    key_object,
    key_s,
    net_flow_of,
    note_past_start,
    served_s,
    tally_s,
    transport_flow_of,
    waits,
)
from .conversation cimport SIDE_ENDED, TAKEN, side_of
from .holding cimport (
    AFTER_END,
    BEFORE_START,
    BYTES_DELIVERED,
    BYTES_SKIPPED,
    FACTORY_ERROR,
    FIRST,
    HOLES_ENDED,
    HOLES_LIMITED,
    NOTHING,
    OUT_OF_BAND,
    RETRANSMITTED,
    STREAMS_CLOSED,
    STREAMS_OPENED,
    UNCONFIRMED_SYN,
    text_s,
)
from .pages cimport bytes_in_memory, came_of, give_back_page, lend_page, packet_of, page_end, page_s, pop_first
from .reassembly cimport PIECE_END, PIECE_START, note_acked, piece_s
from .sequence cimport difference
from .stopping cimport GAP_CUT, GAP_START, Stopper

from .._log import Log
from ..errors import no_stream

_log = Log("tcpreasm.assembly")

ctypedef int (*make_stream_f)(void *deliverer, connection_s *connection, uint32_t at_stake) except -1 nogil


cdef int make_stream_by_name(Deliverer deliverer, connection_s *connection, uint32_t at_stake) except -1:
    return deliverer._make_stream(connection, at_stake)


# The same for a borrowed pointer, to be called right after _take_gil, as what serving.pyx calls then.
cdef make_stream_f make_stream = <make_stream_f>make_stream_by_name


cdef class Deliverer(Stopper):
    """The streams of an assembler's connections."""

    # -- opening ------------------------------------------------------------------------------------------------------

    # Its stream is made, and told of its start where the SYN has come before.
    cdef int _open_late(self, connection_s *connection, uint32_t at_stake, int64_t packet) except -1 nogil:
        self._open_stream(connection, at_stake)
        if connection.has & HAS_START:
            self._emit_empty(connection, connection.end_ns, True, packet)
        return 0

    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1 nogil:
        if self.pool_.counts:
            begin_tally(connection)
        else:
            self._take_gil()
            make_stream(<void *>self, connection, at_stake)
        self.counts[STREAMS_OPENED] += 1
        return 0

    cdef int _make_stream(self, connection_s *connection, uint32_t at_stake) except -1:
        cdef bint made = False
        cdef key_s key
        cdef int hooks
        stream = None
        self.pool_.own(connection)
        try:
            try:
                if self.pairs:
                    stream = self.pairing.stream_for(side_of(connection))
                else:
                    stream = self.pool_.new(net_flow_of(&connection.key), transport_flow_of(&connection.key))
                made = True
                reassembled, complete = stream.reassembled, stream.reassembly_complete
                hooks = self.pool_.hooks_of(stream)
            finally:
                self.pool_.disown(connection)
        except BaseException as error:
            key = connection.key
            self.counts[FACTORY_ERROR] += at_stake
            self._drop(&connection.pages, FACTORY_ERROR)
            self._drop_successor(connection)
            if self.pairs:
                side_of(connection).is_what &= ~TAKEN  # the next segment tries again
            self.pool_.remove(connection)
            self.pool_.free_removed(connection)
            if made and isinstance(error, AttributeError):
                raise no_stream(stream, key_object(&key)) from error
            raise
        self.pool_.hooks |= hooks
        self.pool_.set_stream(connection, stream, reassembled, complete)
        return 0

    # It ends without a stream: what a SYN brought, and nothing confirmed, goes nowhere.
    cdef void _drop_unopened(self, connection_s *connection) noexcept nogil:
        if connection.key.more & SYN_TEXT_HELD and not connection.has & SERVED:
            self._drop(&connection.pages, UNCONFIRMED_SYN)
            connection.key.more &= ~SYN_TEXT_HELD
            connection.has &= ~HAS_END

    # -- what arrives in order ----------------------------------------------------------------------------------------

    # A segment that begins at or before next_seq: what is new of it goes out, around pages that hold part of it already.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1 nogil:
        cdef int64_t size = text.size
        cdef uint32_t before = connection.next_seq
        cdef int64_t done = difference(text.seq, before)
        cdef int64_t position = min(done, size)
        cdef int64_t at, early, missing = <int64_t>text.wire - size
        cdef page_s *page = connection.pages.first
        if position:
            early = 0
            if not connection.has & PAST_START and (not connection.has & HAS_ISN or connection.isn + 1 != connection.first_seq):
                early = max(0, min(position, <int64_t>difference(text.seq, connection.first_seq)))
            self.counts[BEFORE_START] += early
            self.counts[RETRANSMITTED] += position - early
        if page != NULL:
            if self.overlap != FIRST:
                missing = self._make_room(&connection.pages, page, before, text)
                page = connection.pages.first
            if start and page != NULL and page.seq == text.seq:
                self._emit_empty(connection, text.seen_ns, True, text.packet)
                start = False
            while page != NULL and position < size:
                at = done + difference(before, page.seq)  # each of the two is exact; their sum may be too far for one
                if at >= size:
                    break
                if position < at:
                    self._emit_text(connection, text, position, at, start)
                    start = False
                self._compare(page, 0, text, at, min(size, at + page.length), False)
                position = max(position, at + page.length)
                connection.next_seq = page.seq
                self._emit_page(connection)
                page = connection.pages.first
        if position < size or start:
            self._emit_text(connection, text, position, size, start)
        if difference(connection.next_seq, text.seq + text.size) > 0:
            connection.next_seq = text.seq + text.size
        if missing:
            note_cut(connection, <uint32_t>(text.seq + size + missing))
        self._advance(connection)
        if (before ^ connection.next_seq) >> 30:
            note_past_start(connection)
        return 0

    # Everything that is contiguous with next_seq now, and over what the capture cut off.
    cdef int _advance(self, connection_s *connection) except -1 nogil:
        cdef page_s *page
        cdef int64_t cut
        if connection.key.more & SYN_TEXT_HELD:
            if not connection.has & SERVED:
                self._open_late(connection, 0, 0)
            connection.key.more &= ~SYN_TEXT_HELD
        if self.depth:
            self._keep_depth(connection)
        while not self.depth or self._left(connection):
            page = connection.pages.first
            if page != NULL and difference(connection.next_seq, page.seq) <= 0:
                self._emit_page(connection)
                continue
            cut = difference(connection.next_seq, connection.cut_end)
            if cut <= 0:
                break
            if page != NULL:
                cut = min(cut, <int64_t>difference(connection.next_seq, page.seq))
            if self.depth:
                cut = min(cut, self._left(connection))
            self._jump(connection, cut, GAP_CUT)
        if self.depth and not self._left(connection) and not ended(connection):
            self._end_at_depth(connection)
        connection.cut_end = connection.next_seq
        return 0

    # next_seq goes on over bytes that are missing.
    cdef int _jump(self, connection_s *connection, int64_t missing, int why) except -1 nogil:
        if missing and connection.skip >= 0:
            self._note_gap(connection, connection.next_seq, missing, why)
        connection.next_seq += <uint32_t>missing
        if connection.skip >= 0:  # else they belong to an unknown number anyway
            connection.skip += missing
            self.counts[BYTES_SKIPPED] += missing
            if self.pairs:
                side_of(connection).skipped += missing
        return 0

    # The bytes of the text from position to end, without what is out of band.
    cdef int _emit_text(self, connection_s *connection, text_s *text, int64_t position, int64_t end, bint start) except -1 nogil:
        cdef int64_t apart = difference(text.seq, text.apart) if text.has_apart else -1
        cdef int64_t offset
        if position <= apart < end:
            self.counts[OUT_OF_BAND] += 1
            if position < apart or start:
                self._emit_text(connection, text, position, apart, start)
                start = False
            position = apart + 1
            if position == end:
                return 0
        offset = -1 if text.offset < 0 or position == end else text.offset + position
        self._emit(
            connection, text.data + position, <uint32_t>(end - position), text.seen_ns, offset, start, text.packet,
            text.seq + <uint32_t>position
        )
        if self.has_peer_ack and self.out_count:
            note_acked(&self.out[self.out_count - 1], self.peer_ack)
        return 0

    cdef int _emit_empty(self, connection_s *connection, int64_t seen_ns, bint start, int64_t packet) except -1 nogil:
        return self._emit(connection, NOTHING, 0, seen_ns, -1, start, packet, connection.next_seq)

    cdef int _emit(
        self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, int64_t offset, bint start, int64_t packet,
        uint32_t seq
    ) except -1 nogil:
        cdef piece_s *piece
        if (connection.has & SERVED) == COUNTED:
            tally_piece(connection, size, seen_ns)
        elif connection.has & SERVED:  # else it is empty, and there is no stream that it could be told
            piece = self._new_piece()
            piece.data, piece.size, piece.page = data, size, NULL
            piece.skip, piece.seen_ns, piece.offset = connection.skip, seen_ns, offset
            piece.packet, piece.seq, piece.flags = packet, seq, PIECE_START if start else 0
            if self.pairs:
                side_of(connection).delivered += size
        self.counts[BYTES_DELIVERED] += size
        connection.skip = 0
        return 0

    # The first page goes out; it begins at or before next_seq. Without memory for a piece it stays where it is.
    cdef int _emit_page(self, connection_s *connection) except -1 nogil:
        cdef page_s *page = connection.pages.first
        cdef bint goes_out = page.length != 0 and not page.urgent
        if goes_out:
            self._emit(
                connection, bytes_in_memory(page), page.length, page.seen_ns, page.offset, False, packet_of(page), page.seq
            )
        pop_first(&connection.pages)
        connection.next_seq = page_end(page)
        if page.missing:
            note_cut(connection, page_end(page) + page.missing)
        if goes_out and (connection.has & SERVED) != COUNTED:
            self.out[self.out_count - 1].page = page
            if page.has_peer_ack:
                note_acked(&self.out[self.out_count - 1], came_of(page).peer_ack)
            lend_page(page)
        else:
            self.counts[OUT_OF_BAND] += page.urgent
            give_back_page(page)
        return 0

    # -- holes --------------------------------------------------------------------------------------------------------

    cdef int _keep_limits(self, connection_s *connection) except -1 nogil:
        while self._is_at_limit(&connection.pages):
            if self.debug:
                with gil:
                    _log.debug("%s: limit reached with %d pages", key_object(&connection.key), connection.pages.count)
            self._skip(connection, HOLES_LIMITED)
        return 0

    # Stop waiting for the lowest hole: over it, and on with what is contiguous then. It counts as a hole of that kind.
    cdef int _skip(self, connection_s *connection, int why) except -1 nogil:
        cdef uint32_t target = first_held(connection)
        cdef int64_t missing
        if connection.has & HAS_START:
            missing = difference(connection.next_seq, target)
            if self.depth:
                missing = min(missing, self._left(connection))
            self._jump(connection, missing, why)
            self.counts[why] += missing != 0
            connection.cut_end = connection.next_seq
        else:
            self._note_gap(connection, target, -1, GAP_START)
            begin_at(connection, target)
            connection.skip = -1
        self._advance(connection)
        note_past_start(connection)
        return 0

    # -- its stream ---------------------------------------------------------------------------------------------------

    # Commit what this call has led to, then tell the stream.
    cdef int _serve(self, connection_s *connection, int64_t packet) except -1 nogil:
        if not ended(connection):
            return self._hand_over(connection) if self.out_count else 0
        if not is_stopped(connection):
            if connection.skip or not self.out_count:
                self._emit_empty(connection, connection.end_ns, False, packet)
            if self.out_count:
                self.out[self.out_count - 1].flags |= PIECE_END
        self._drop(&connection.pages, AFTER_END)
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)  # its SYN is still remembered
        self.counts[STREAMS_CLOSED] += (connection.has & SERVED) != 0
        if self.pairs:
            side_of(connection).is_what |= SIDE_ENDED
        if self.debug:
            with gil:
                _log.debug("%s: ended", key_object(&connection.key))
        return self._end_stream(connection, REMEMBERED)

    # The end of a connection that nobody closed.
    cdef int _close(self, connection_s *connection) except -1 nogil:
        self._finish_pieces(connection)
        return self._end_stream(connection, FORGOTTEN)

    # Everything held goes out; a gap behind the last byte goes out as a piece of its own.
    cdef int _finish_pieces(self, connection_s *connection) except -1 nogil:
        cdef bint at_end
        while waits(connection):
            self._skip(connection, HOLES_ENDED)
        at_end = ended(connection)
        if not is_stopped(connection):
            if connection.skip or (at_end and not self.out_count):
                self._emit_empty(connection, connection.end_ns if at_end else connection.last_seen_ns, False, 0)
            if at_end and self.out_count:
                self.out[self.out_count - 1].flags |= PIECE_END
        if at_end and self.pairs:
            side_of(connection).is_what |= SIDE_ENDED
        self._drop_successor(connection)
        self.counts[STREAMS_CLOSED] += (connection.has & SERVED) != 0
        return 0

    # `out` goes to the stream, and it is told that this was all. State is changed before, as `after` says.
    cdef int _end_stream(self, connection_s *connection, int after) except -1 nogil:
        cdef uint8_t how = connection.has & SERVED
        cdef served_s served = connection.stream.served
        if after == REMEMBERED:
            self.pool_.close(connection, self.clock.now if self.clock.has_now else connection.last_seen_ns)
        elif after == FORGOTTEN:
            self.pool_.remove(connection)
        try:
            if how == NATIVE or how == PYTHON:
                self._finish_stream(connection, &served, how == NATIVE)
        finally:
            if self.pairs:
                self.pairing.end_side(side_of(connection))
            if after == FORGOTTEN:
                self.pool_.free_removed(connection)
        return 0

    # -- a stream that gets no more ---------------------------------------------------------------------------------

    # Where only a hole was before the FIN, that is the end.
    cdef int _stop(self, connection_s *connection) except -1 nogil:
        if is_stopped(connection):
            return 0
        self._let_go(connection)
        return self._serve(connection, 0) if ended(connection) else 0

    # It has had all, but for being told of what is missing last.
    cdef int _end_at_depth(self, connection_s *connection) except -1 nogil:
        if connection.skip:
            self._emit_empty(connection, connection.last_seen_ns, False, 0)
        self._let_go(connection)
        return 0


cdef void note_cut(connection_s *connection, uint32_t cut_end) noexcept nogil:
    if connection.has & HAS_END and difference(connection.end_seq, cut_end) > 0:
        cut_end = connection.end_seq
    if difference(connection.next_seq, cut_end) > max(0, difference(connection.next_seq, connection.cut_end)):
        connection.cut_end = cut_end


# Bytes of a COUNTED stream, behind the gap that is to be reported now.
cdef void tally_piece(connection_s *connection, uint32_t size, int64_t seen_ns) noexcept nogil:
    cdef tally_s *tally = &connection.stream.tally
    tally.length += size
    tally.first_seen_ns = min(tally.first_seen_ns, seen_ns)
    tally.last_seen_ns = max(tally.last_seen_ns, seen_ns)
    if connection.skip > 0:
        connection.more.skipped += connection.skip
        connection.phase.after.gap_count += 1
