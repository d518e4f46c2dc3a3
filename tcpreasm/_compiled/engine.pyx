"""`Engine`: brings the segments of a connection into order.

Called once for each segment that is not simply the next one (see assembler.pyx for those). Everything below it answers; here it is asked:
what a segment is to its connection, by sequence numbers and flags, and so what is done with its text. State is committed before user code
runs, so that a callback that raises, or another thread that comes in meanwhile, finds everything consistent.

The way of a segment, top to bottom: _find (evicting.pyx), _take_in, _text, then _deliver (in order, delivering.pyx) or _hold_in (early,
holding.pyx), _serve.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int64_t, uint8_t, uint32_t

from .connection cimport (
    CLOSED,
    COUNTED,
    HALF_OPEN,
    HAS_END,
    HAS_FAR,
    HAS_ISN,
    HAS_START,
    HAS_TSVAL,
    PAST_START,
    SERVED,
    SYN_TEXT_HELD,
    begin_at,
    connection_s,
    first_held,
    go_on_to,
    is_stopped,
    key_object,
    successor_s,
    waits,
)
from .conversation cimport WAS_RESET, note_fin, note_rst, side_of
from .decode cimport ACK, FIN, RST, SYN, URG, timestamp_value
from .delivering cimport KEPT
from .evicting cimport Evicter
from .holding cimport (
    AFTER_CLOSE,
    AFTER_END,
    FIN_IGNORED,
    FIRST,
    HOLES_ENDED,
    HOLES_EXPIRED,
    LATE_SYN,
    OUT_OF_WINDOW,
    PAWS,
    RETRANSMITTED,
    RST_IGNORED,
    RST_TEXT,
    STOPPED,
    SYN_REMEMBERED,
    UNCONFIRMED_SYN,
    cut_pages,
    span_with,
    text_s,
)
from .pages cimport page_end, page_s
from .pairing cimport at_hand_s
from .sequence cimport difference

from .._log import Log

cdef extern from *:
    const int64_t SPAN_LIMIT "INT64_C(0x7FFFFFFF)"  # what is held lies within so many bytes of next_seq, so that comparing is exact
    const int64_t TSVAL_IDLE_NS "(24 * 86400 * INT64_C(1000000000))"  # a timestamp says nothing after so long a silence (RFC 7323 5.5)

cdef enum:
    SYN_REACH = 1 << 24           # a SYN that comes late lies at most so many bytes before the data that overtook it
    CONTINUES_WITHIN = 1 << 20    # what continues from a SYN lies at most so many bytes behind it
    START_REACH = 1 << 30         # without a start, data within so many bytes of the first belongs together
    FLAT_FROM = 1024              # bytes of a segment that may lie over many pages

_log = Log("tcpreasm.assembly")


cdef class Engine(Evicter):
    """The connections of a pool, as one assembler serves them, and what it was told to do with them."""

    # -- one segment --------------------------------------------------------------------------------------------------

    # What options ask for beyond sequence numbers and bytes.
    cdef void _look_closer(self, uint8_t flags, text_s *text) noexcept nogil:
        text.has_apart = flags & URG and self.urgent != URGENT_INLINE and (text.urgent or self.urgent == URGENT_OOB_LINUX)
        text.apart = text.seq + max(0, <int>text.urgent - 1)
        text.has_tsval = self.paws and text.header > 20 and timestamp_value(text.data - text.header + 20, text.header - 20, &text.tsval)

    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        if connection.state == CLOSED:
            if not self._reopens(connection, flags, text):
                self._note(connection, True)
                self.counts[AFTER_CLOSE] += text.size
                return 0
            self._restart(connection, connection.successor, text.size, text.seen_ns)
        elif self.pairs and connection.more.side == NULL:
            self._join(connection, &self.at_hand, False)
        if not connection.has & SERVED:
            self._open_if_due(connection, flags, text)
        if (flags & (SYN | RST)) != SYN:
            connection.key.more &= ~HALF_OPEN
        elif connection.key.more & HALF_OPEN and not connection.has & HAS_END:
            connection.end_ns = max(connection.last_seen_ns, text.seen_ns)
        if connection.last_seen_ns < text.seen_ns - TSVAL_IDLE_NS:
            connection.key.more &= ~HAS_TSVAL
        connection.last_seen_ns = max(connection.last_seen_ns, text.seen_ns)
        if not flags & (SYN | RST):
            if text.wire or flags & FIN:
                self._continue(connection, flags, text)
            else:
                self._note(connection, True)
                if flags & ACK and not self._is_old(connection, text, 0) and connection.key.more & SYN_TEXT_HELD:
                    self._settle_syn_data(connection, text.seq, 0)
        elif flags & RST:
            self._reset(connection, text)
        else:
            self._syn(connection, flags, text)
        return self._serve(connection, text.packet)

    # Its stream is made, unless the segment brings nothing to it: to none at all, and that is waited for, or to the next one.
    cdef int _open_if_due(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        if (self.opens_on_data and not self._brings_data(connection, flags, text)) or follows_successor(connection, flags, text):
            return 0
        return self._open_late(connection, text.size, text.packet)

    # Text or a FIN, for a connection without a stream. What comes with a SYN and is only held until another segment confirms it is none.
    cdef bint _brings_data(self, connection_s *connection, uint8_t flags, const text_s *text) noexcept nogil:
        if flags & RST or not (text.wire or flags & FIN):
            return False
        if not flags & SYN:
            return True
        if connection.has & HAS_START:
            return is_own_syn(connection, text.seq) and not connection.key.more & SYN_TEXT_HELD
        return not (self.syn_data_waits and text.wire)

    # RST: only at the exact sequence number expected (RFC 5961 3.2). Its text is not part of the stream.
    cdef int _reset(self, connection_s *connection, text_s *text) except -1 nogil:
        cdef page_s *last = connection.pages.last
        cdef bint exact
        self._note(connection, True)
        self.counts[RST_TEXT] += text.size
        if connection.key.more & SYN_TEXT_HELD and last != NULL and text.seq == page_end(last) + last.missing:
            self._advance(connection)  # it was accepted
        if connection.has & HAS_START:
            exact = text.seq == connection.next_seq
        else:
            exact = waits(connection) and text.seq == (
                connection.end_seq if connection.has & HAS_END else connection.phase.before.early_end
            )
        if not exact:
            self.counts[RST_IGNORED] += 1
            return 0
        connection.has |= HAS_END
        connection.end_seq, connection.end_ns = text.seq, text.seen_ns
        if self.pairs:
            note_rst(side_of(connection), WAS_RESET)
            self.pairing.look_after(side_of(connection).conversation)
        if not connection.has & HAS_START:
            self._skip(connection, HOLES_ENDED)
        return 0

    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        cdef uint32_t isn = text.seq
        cdef bint waits_for_ack
        text.seq += 1
        if not connection.has & HAS_START:
            if waits(connection) and not 0 <= difference(text.seq, first_held(connection)) <= SYN_REACH:
                self._begin_anew(connection, NULL, text.size, text.seen_ns)
                if not connection.has & SERVED:
                    self._open_if_due(connection, flags, text)
            self._note_syn(connection)
            if self.debug:
                with gil:
                    _log.debug("%s: starts at %d", key_object(&connection.key), isn)
            waits_for_ack = self.syn_data_waits and text.wire > 0 and not waits(connection)
            if not waits(connection):
                connection.key.more |= HALF_OPEN
            start_at(connection, isn)
            if not connection.has & HAS_END:
                connection.end_ns = connection.last_seen_ns
            note_tsval(connection, text.has_tsval, text.tsval)
            if waits_for_ack:
                connection.key.more |= SYN_TEXT_HELD
                self._emit_empty(connection, text.seen_ns, True, text.packet)
            return self._text(connection, flags, text, not waits_for_ack)
        if is_own_syn(connection, isn):
            self._note_syn(connection)
            if not connection.has & HAS_ISN:
                connection.has |= HAS_ISN
                connection.isn = isn
                self.counts[LATE_SYN] += 1
            return self._text(connection, flags, text, False)
        return self._remember(connection, flags, text)

    # A SYN with another initial sequence number, on an open connection.
    cdef int _remember(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        cdef successor_s *successor
        self._note(connection, False)
        self.has_peer_ack = False  # what was acknowledged is of the stream that is open
        self._drop_successor(connection)
        self.counts[SYN_REMEMBERED] += 1
        successor = <successor_s *>PyMem_RawCalloc(1, sizeof(successor_s))
        if successor == NULL:
            with gil:
                raise MemoryError()
        successor.isn = text.seq - 1
        successor.next_seq = text.seq + text.wire
        successor.seen_ns, successor.packet = text.seen_ns, text.packet
        successor.has_tsval, successor.tsval = text.has_tsval, text.tsval
        successor.has_ack, successor.ack = flags & ACK, text.ack
        connection.successor = successor
        if text.wire:
            self._hold_in(&successor.pages, text, False, NULL)
            if self._is_at_limit(&successor.pages):
                self._drop(&successor.pages, UNCONFIRMED_SYN)
        return 0

    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        cdef successor_s *successor = connection.successor
        cdef int64_t size = <int64_t>text.wire + (flags & FIN)
        if follows_successor(connection, flags, text):
            connection.successor = NULL
            self._begin_anew(connection, successor, text.size, text.seen_ns)
        self._note(connection, True)
        if self._is_old(connection, text, size):
            self.counts[PAWS] += text.size
            return 0
        if connection.key.more & SYN_TEXT_HELD and not self._settle_syn_data(connection, text.seq, size):
            self.counts[RETRANSMITTED] += text.size
            self.counts[FIN_IGNORED] += flags & FIN
            return 0
        return self._text(connection, flags, text, False)

    # PAWS (RFC 7323 5.3): its timestamp is older than the last one of a segment in order. One that is in order sets that.
    #
    # Behind a hole none is set: what fills the hole may have been sent before. Nor by what is old altogether: RFC 9293 3.10.7.4 has it
    # refused before.
    cdef bint _is_old(self, connection_s *connection, const text_s *text, int64_t size) noexcept nogil:
        cdef int64_t ahead
        if not text.has_tsval or not connection.has & HAS_START:
            return False
        if connection.key.more & HAS_TSVAL and difference(connection.since.tsval, text.tsval) < 0:
            return True
        ahead = difference(connection.next_seq, text.seq)
        if ahead <= 0 and (ahead + size > 0 or (ahead == 0 and size == 0)):
            note_tsval(connection, True, text.tsval)
        return False

    # What becomes of a SYN's text, with the next segment of its direction: RFC 7413 4.2.2 has the sender go on behind what was
    # acknowledged, and send the rest again. False where this one does not tell: it lies before that text.
    cdef bint _settle_syn_data(self, connection_s *connection, uint32_t seq, int64_t size) except -1 nogil:
        cdef int64_t ahead = difference(connection.first_seq, seq)
        if ahead <= 0 and ahead + size <= 0:
            return False
        if ahead > 0:
            cut_pages(&connection.pages, seq, &self.counts[UNCONFIRMED_SYN])
            self._advance(connection)
        else:
            self._drop(&connection.pages, UNCONFIRMED_SYN)
        connection.key.more &= ~SYN_TEXT_HELD
        return True

    # Whether a segment begins a closed connection anew: a SYN with another initial sequence number does at once, and what
    # continues from one that came before the close.
    cdef bint _reopens(self, connection_s *connection, uint8_t flags, text_s *text) noexcept nogil:
        if flags & RST:
            return False
        if flags & SYN:
            if is_own_syn(connection, text.seq):
                return False
            self._drop_successor(connection)
            return True
        return follows_successor(connection, flags, text)

    # The stream at hand is over, with all that it holds; the same connection begins again. Frees the successor.
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil:
        cdef bint finished = False
        self._drop_unopened(connection)
        try:
            self._finish_pieces(connection)
            finished = True
        finally:
            if not finished:      # no memory
                connection.successor = successor
        if (connection.has & SERVED) != COUNTED:
            self._take_gil()
            with gil:
                try:
                    self._end_stream(connection, KEPT)
                except BaseException as raised:
                    self._keep_error(raised)
        return self._restart(connection, successor, at_stake, seen_ns)

    # A new stream under the same key, from the SYN that was remembered, or from the one at hand. Frees the successor.
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil:
        cdef uint32_t isn = 0
        cdef int64_t syn_seen_ns = 0, syn_packet = 0
        cdef uint32_t tsval = 0
        cdef bint has_tsval = False
        cdef at_hand_s syn = self.at_hand
        self.pool_.reopen(connection, seen_ns)
        if successor != NULL:
            connection.pages = successor.pages
            isn, syn_seen_ns, syn_packet = successor.isn, successor.seen_ns, successor.packet
            has_tsval, tsval = successor.has_tsval, successor.tsval
            syn.flags, syn.seq, syn.ack = SYN | ACK if successor.has_ack else SYN, isn, successor.ack
            syn.seen_ns = syn_seen_ns
            PyMem_RawFree(successor)
        if self.pairs:
            self._join(connection, &syn, successor != NULL)
        if successor != NULL or not self.opens_on_data:
            self._open_stream(connection, at_stake)
        if successor != NULL:
            start_at(connection, isn)
            note_tsval(connection, has_tsval, tsval)
            self._emit_empty(connection, syn_seen_ns, True, syn_packet)
            if self.syn_data_waits and connection.pages.count:
                connection.key.more |= SYN_TEXT_HELD
            else:
                self._advance(connection)
        return 0

    # -- its text and FIN ---------------------------------------------------------------------------------------------

    # Text and FIN of one segment.
    cdef int _text(self, connection_s *connection, uint8_t flags, text_s *text, bint start) except -1 nogil:
        cdef int64_t ahead, room
        cdef uint32_t keep
        if flags & FIN:
            self._note_end(connection, text.seq + text.wire, text.seen_ns)
        if connection.has & HAS_END:
            if connection.has & HAS_START:  # each of the two is exact; their sum may be too far for one
                room = <int64_t>difference(text.seq, connection.next_seq) + difference(connection.next_seq, connection.end_seq)
            else:
                room = difference(text.seq, connection.end_seq)
            if text.wire > room:
                keep = <uint32_t>max(0, min(room, <int64_t>text.size))
                self.counts[AFTER_END] += text.size - keep
                text.size = keep
                text.wire = <uint32_t>max(0, room)
        if not connection.has & HAS_START:
            return self._wait_for_start(connection, text)
        ahead = difference(connection.next_seq, text.seq)
        if self._is_out_of_window(connection, ahead, text):
            self.counts[OUT_OF_WINDOW] += text.size
            return 0
        if self.depth and not is_stopped(connection) and not self._left(connection):
            self._end_at_depth(connection)  # another assembler went on so far
        if is_stopped(connection):
            self.counts[STOPPED] += text.size
            go_on_to(connection, text.seq + text.wire if text.wire else connection.next_seq)
            return 0
        if self.depth and text.wire:  # else what is left of it may lie behind the FIN
            room = self._left(connection) - ahead
            if text.wire > room:
                # Of what lies behind it, only where it ends is known from here on, as of what the capture cut off.
                keep = <uint32_t>max(0, min(room, <int64_t>text.size))
                self.counts[STOPPED] += text.size - keep
                text.size = keep
                text.seq += <uint32_t>min(0, room)
                text.wire -= <uint32_t>min(0, room)
        if connection.key.more & SYN_TEXT_HELD:
            if text.wire:
                self.pool_.note_held(text.seen_ns)
                self._hold_in(&connection.pages, text, False, self._origin_for(connection, text))
                self._keep_limits(connection)
        elif ahead <= 0:
            self._deliver(connection, text, start)
        elif text.wire:
            self.pool_.note_held(text.seen_ns)
            if (
                text.size >= FLAT_FROM and connection.pages.index != NULL and text.wire == text.size
                and self.overlap == FIRST and not text.has_apart and not self._tells_conflicts()  # whose runs come in order
            ):
                self._hold_over_many(&connection.pages, text, self._origin_for(connection, text))
            else:
                self._hold_in(&connection.pages, text, False, self._origin_for(connection, text))
            if self.debug:
                with gil:
                    _log.debug("%s: %d bytes ahead, held", key_object(&connection.key), ahead)
            self._keep_limits(connection)
        return 0

    cdef bint _is_out_of_window(self, connection_s *connection, int64_t ahead, text_s *text) noexcept nogil:
        if ahead == -1 - SPAN_LIMIT:  # neither ahead nor behind
            return True
        if ahead <= 0 or text.wire == 0 or connection.key.more & SYN_TEXT_HELD:
            return False
        return ahead + text.wire > SPAN_LIMIT or (ahead > self.max_gap and self._is_wild(connection, text))

    # Further ahead than max_gap, and the last one that was so lay somewhere else.
    cdef bint _is_wild(self, connection_s *connection, text_s *text) noexcept nogil:
        cdef int64_t step = difference(connection.phase.after.far_next, text.seq)
        cdef bint wild = not connection.has & HAS_FAR or not -CONTINUES_WITHIN <= step <= CONTINUES_WITHIN
        connection.has |= HAS_FAR
        connection.phase.after.far_next = text.seq + text.wire
        return wild

    # FIN counts when the stream reaches its place (RFC 9293 3.10.7.4, eighth check). The first one seen stays.
    cdef int _note_end(self, connection_s *connection, uint32_t end_seq, int64_t seen_ns) except -1 nogil:
        cdef uint32_t base = end_seq
        if connection.has & HAS_START:
            base = connection.next_seq
        elif connection.pages.first != NULL:
            base = connection.pages.first.seq
        if not 0 <= difference(base, end_seq) <= self.max_gap or (connection.has & HAS_END and connection.end_seq != end_seq):
            self.counts[FIN_IGNORED] += 1
        elif not connection.has & HAS_END:
            connection.has |= HAS_END
            connection.end_seq, connection.end_ns = end_seq, seen_ns
            if self.pairs:
                note_fin(side_of(connection))
            self.pool_.note_held(seen_ns)
            cut_pages(&connection.pages, end_seq, &self.counts[AFTER_END])
        return 0

    cdef int _wait_for_start(self, connection_s *connection, text_s *text) except -1 nogil:
        cdef bint first
        cdef int64_t reach
        if text.wire:
            reach = min(self.max_gap, START_REACH)
            if (connection.pages.first != NULL and span_with(&connection.pages, text) > reach) or (
                connection.has & HAS_END and not 0 <= difference(text.seq, connection.end_seq) <= reach
            ):
                self.counts[OUT_OF_WINDOW] += text.size
                return 0
            first = connection.pages.first == NULL
            self.pool_.note_held(text.seen_ns)
            self._hold_in(&connection.pages, text, True, NULL)
            if first or difference(connection.phase.before.early_end, text.seq + text.wire) > 0:
                connection.phase.before.early_end = text.seq + text.wire
        if not waits(connection):
            return 0
        connection.phase.before.early_segments += 1
        if 0 <= self.start_wait_segments <= connection.phase.before.early_segments or (
            0 <= self.start_wait_ns <= text.seen_ns - connection.since.created_ns
        ):
            self._skip(connection, HOLES_EXPIRED)
        return self._keep_limits(connection)


cdef void start_at(connection_s *connection, uint32_t isn) noexcept nogil:
    connection.has |= HAS_ISN
    connection.isn = isn
    begin_at(connection, isn + 1)


cdef void note_tsval(connection_s *connection, bint has, uint32_t tsval) noexcept nogil:
    if has:
        connection.key.more |= HAS_TSVAL
        connection.since.tsval = tsval


# This SYN began the connection: the same again, or late where it was missed.
cdef bint is_own_syn(connection_s *connection, uint32_t seq) noexcept nogil:
    if connection.has & HAS_ISN:
        return seq == connection.isn
    return not connection.has & PAST_START and 0 <= difference(seq + 1, connection.first_seq) <= SYN_REACH


# A segment continues from another SYN that was remembered, and not from what is open.
cdef bint follows_successor(const connection_s *connection, uint8_t flags, const text_s *text) noexcept nogil:
    cdef const successor_s *successor = connection.successor
    cdef int64_t ahead, away
    if successor == NULL or flags & (SYN | RST) or not (text.wire or flags & FIN):
        return False
    if not connection.has & HAS_START or text.seq == connection.next_seq:
        return False
    ahead = difference(successor.isn + 1, text.seq)
    if ahead == 0 or text.seq == successor.next_seq:
        return True
    away = difference(connection.next_seq, text.seq)
    return 0 < ahead <= CONTINUES_WITHIN and not -CONTINUES_WITHIN <= away <= CONTINUES_WITHIN
