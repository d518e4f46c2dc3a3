"""`Engine`: brings the segments of a connection into order.

Called once for each segment that is not simply the next one (see assembler.pyx for those). Everything else in this core answers; here it
is asked. State is committed before user code runs, so that a callback that raises, or another thread that comes in meanwhile, finds
everything consistent.

The way of a segment, top to bottom: _find, _take_in, _text, then _deliver (in order) or _hold_in (early), _serve.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memset

from .clock cimport ALWAYS_NS, NEVER_NS, clock_s
from .connection cimport (
    CLOSED,
    COUNTED,
    HALF_OPEN,
    HAS_END,
    HAS_FAR,
    HAS_ISN,
    HAS_START,
    HAS_TSVAL,
    NATIVE,
    NO_MORE,
    OPEN,
    PAST_START,
    PYTHON,
    SERVED,
    SYN_TEXT_HELD,
    begin_at,
    begin_tally,
    connection_s,
    ended,
    first_held,
    go_on_to,
    is_stopped,
    key_object,
    key_s,
    net_flow_of,
    note_past_start,
    owner_of,
    served_s,
    successor_s,
    tally_s,
    transport_flow_of,
    waits,
)
from .conversation cimport (
    COMPLETE_NOW,
    GIVES_UP,
    HAS_ACK,
    HAS_ACKED,
    OVER,
    PEER_WAITS,
    REFUSED,
    SIDE_ENDED,
    TAKEN,
    TOLD,
    WAS_RESET,
    ConversationState,
    beside,
    beside_s,
    conversation_s,
    let_go_of_conversation,
    note,
    note_fin,
    note_rst,
    note_syn,
    peer_of,
    side_of,
    side_s,
    state_of,
)
from .decode cimport timestamp_value
from .origin cimport origin_s
from .pages cimport (
    MARKS,
    PAGE_SIZE,
    UNIT,
    add_used,
    came_of,
    came_s,
    find_place,
    give_back_page,
    bytes_held,
    bytes_in_memory,
    cut_front,
    cut_page,
    drop_flat,
    flat_s,
    flatten,
    hold_bytes,
    lend_page,
    note_packet,
    packet_of,
    page_end,
    page_list_s,
    page_s,
    pop_first,
    pop_last,
    push_between,
    remove_page,
    take_mark,
    take_page_for,
)
from .pool cimport ENDLESS, find, listed_s
from .reassembly cimport PIECE_END, PIECE_START, piece_s
from .sequence cimport difference
from .serving cimport Server
from .streams cimport NativeStream, append, reserve

from .._log import Log
from ..errors import no_stream
from ..stats import COUNTERS, DROP_REASONS, EVICTION_REASONS, GAP_REASONS

cdef extern from *:
    const int64_t SPAN_LIMIT "INT64_C(0x7FFFFFFF)"  # what is held lies within so many bytes of next_seq, so that comparing is exact
    const int64_t TSVAL_IDLE_NS "(24 * 86400 * INT64_C(1000000000))"  # a timestamp says nothing after so long a silence (RFC 7323 5.5)

cdef enum:
    KEPT = 0                      # what becomes of a connection whose stream ends: it begins anew at once;
    REMEMBERED = 1                # it is closed, and remembered for a while;
    FORGOTTEN = 2                 # it is gone

cdef enum:
    SYN_REACH = 1 << 24           # a SYN that comes late lies at most so many bytes before the data that overtook it
    CONTINUES_WITHIN = 1 << 20    # what continues from a SYN lies at most so many bytes behind it
    START_REACH = 1 << 30         # without a start, data within so many bytes of the first belongs together
    FORGET_AT_ONCE = 16           # closed connections that a new one may erase: what has piled up delays no packet much
    FLAT_FROM = 1024              # bytes of a segment that may lie over many pages
    MARKED_FROM = 512             # bytes of a page. A mark saves little on fewer, and to compare with one is a read of the file

cdef const uint8_t *NOTHING = b""
cdef size_t ENDLESS_BYTES = ~<size_t>0

assert len(COUNTERS) + len(DROP_REASONS) + len(EVICTION_REASONS) == COUNTS

_log = Log("tcpreasm.assembly")

ctypedef bint (*asks_f)(void *stream) noexcept nogil
ctypedef int (*make_stream_f)(void *engine, connection_s *connection, uint32_t at_stake) except -1 nogil


cdef bint ignores_bytes_by_name(NativeStream stream) noexcept nogil:
    return stream.ignores_bytes


cdef bint asks_origins_by_name(NativeStream stream) noexcept nogil:
    return stream.asks_origins


cdef int make_stream_by_name(Engine engine, connection_s *connection, uint32_t at_stake) except -1:
    return engine._make_stream(connection, at_stake)


# The same for a borrowed pointer: without the GIL no reference can be counted.
cdef asks_f ignores_bytes = <asks_f>ignores_bytes_by_name
cdef asks_f asks_origins = <asks_f>asks_origins_by_name
# To be called right after _take_gil, as what serving.pyx calls then.
cdef make_stream_f make_stream = <make_stream_f>make_stream_by_name

cdef class Engine(Server):
    """The connections of a pool, as one assembler serves them, and what it was told to do with them."""

    def __dealloc__(self):
        PyMem_RawFree(self.sharers)
        free(self.gaps.data)
        free(self.conflicts.data)
        free(self.conflict_held.data)
        free(self.conflict_new.data)

    # -- time -------------------------------------------------------------------------------------------------------

    # The time before which something is too old. Nothing expires by the setting of a clock.
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil:
        cdef clock_s *clock = &self.clock
        if not clock.has_now or timeout_ns < 0 or (clock.has_changed and 0 <= clock.now - clock.changed < timeout_ns):
            return NEVER_NS
        return clock.now - timeout_ns

    cdef int64_t _forget_before(self) noexcept nogil:
        return self._expiry(self.closed_timeout_ns)

    # -- one segment ------------------------------------------------------------------------------------------------

    # The connection of the key, not served by anybody now; a new one without a stream where there is none and the segment opens one. *found
    # is what the look-up has given.
    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil:
        cdef connection_s *connection = found[0]
        cdef bint refused
        while True:
            if connection != NULL:
                if owner_of(connection) != 0:
                    refused = True
                    try:
                        self.pool_.wait_for(connection)
                        refused = False
                    finally:
                        if refused:
                            self.clock = self.clock_before  # as if it had not been called
                    connection = find(&self.pool_.table, key, hash)
                    continue
                if connection.state != CLOSED or not self.pool_.forget(connection, self._forget_before()):
                    break
            if not opens:
                connection = NULL
                break
            self.pool_.forget_closed_before(self._forget_before(), ENDLESS if self.pairs else FORGET_AT_ONCE)
            if self.pool_.table.filled >= self.limit_connections and self._evict_for_room():
                connection = find(&self.pool_.table, key, hash)
                continue
            if not self.pool_.is_ready():
                self.pool_.make_ready()
            connection = self.pool_.take(key, hash, seen_ns)
            if self.pool_.counts and not self.opens_on_data:
                self._open_stream(connection, 0)
            break
        found[0] = connection
        return 0

    cdef bint _evict_for_room(self) except -1 nogil:
        cdef connection_s *connection
        cdef bint user_code = False
        cdef int reason
        cdef key_s key
        while not user_code and self.pool_.table.filled >= self.limit_connections:
            connection = self.pool_.oldest_closed()
            if connection != NULL:
                if self.pool_.forget(connection, self._forget_before()):
                    continue
                reason, key = EVICTED_CLOSED, connection.key
                self.pool_.forget(connection, ALWAYS_NS)
            else:
                reason, connection = EVICTED_HALF_OPEN, self.pool_.oldest_half_open()
                if connection == NULL:
                    reason, connection = EVICTED_IDLE, self.pool_.idlest()
                if connection == NULL:
                    break
                key = connection.key
                user_code = (connection.has & SERVED) not in (0, COUNTED)
                self._evict(connection)
            self.counts[reason] += 1
            if self.tells_evictions or self.debug:
                user_code = True
                self._take_gil()
                with gil:
                    self._tell_eviction(&key, reason)
        return user_code

    # As `_close`, but that no stream is made for what it holds. What a stream raises is raised once the segment at hand is taken in.
    cdef int _evict(self, connection_s *connection) except -1 nogil:
        cdef uint8_t how = connection.has & SERVED
        if how == 0 or how == COUNTED:
            self._drop_unopened(connection)
            return self._close(connection)
        self._take_gil()
        try:
            with gil:
                try:
                    self._close(connection)
                except BaseException as raised:
                    if connection.state == OPEN:  # no memory
                        self.pool_.is_seen_kept = False
                        raise
                    self._keep_error(raised)
        finally:
            if self.out_count:
                self._drop_pieces()
        return 0

    cdef int _tell_eviction(self, const key_s *key, int reason) except -1:
        why = EVICTION_REASONS[reason - EVICTED_CLOSED]
        if self.debug:
            _log.debug("%s: evicted, %s", key_object(key), why)
        if self.tells_evictions:
            self.pool_.unlock()
            try:
                self.on_evict(net_flow_of(key), transport_flow_of(key), why)
            except BaseException as raised:
                self._keep_error(raised)
            finally:
                self.pool_.lock()
        return 0

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

    # Its stream is made, and told of its start where the SYN has come before.
    cdef int _open_late(self, connection_s *connection, uint32_t at_stake, int64_t packet) except -1 nogil:
        self._open_stream(connection, at_stake)
        if connection.has & HAS_START:
            self._emit_empty(connection, connection.end_ns, True, packet)
        return 0

    # It ends without a stream: what a SYN brought, and nothing confirmed, goes nowhere.
    cdef void _drop_unopened(self, connection_s *connection) noexcept nogil:
        if connection.key.more & SYN_TEXT_HELD and not connection.has & SERVED:
            self._drop(&connection.pages, UNCONFIRMED_SYN)
            connection.key.more &= ~SYN_TEXT_HELD
            connection.has &= ~HAS_END

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
        stream = None
        self.pool_.own(connection)
        try:
            try:
                if self.pairs:
                    stream = self.pairing._stream_for(self._state_of(side_of(connection).conversation), side_of(connection).index)
                else:
                    stream = self.pool_.new(net_flow_of(&connection.key), transport_flow_of(&connection.key))
                made = True
                reassembled, complete = stream.reassembled, stream.reassembly_complete
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
        self.pool_.set_stream(connection, stream, reassembled, complete)
        return 0

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
        if self.depth:
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
                and self.overlap == FIRST and not text.has_apart and not self.tells_conflicts  # whose runs come in order
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

    # -- what arrives in order --------------------------------------------------------------------------------------

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
        if self.tells_gaps and missing and connection.skip >= 0:
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
        return self._emit(
            connection, text.data + position, <uint32_t>(end - position), text.seen_ns, offset, start, text.packet,
            text.seq + <uint32_t>position
        )

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
            lend_page(page)
        else:
            self.counts[OUT_OF_BAND] += page.urgent
            give_back_page(page)
        return 0

    # -- what arrives early -----------------------------------------------------------------------------------------

    # Where the text may stay until the connection's stream is served, which does not look at it, or is given it without the GIL. NULL: it
    # must be copied.
    cdef origin_s *_origin_for(self, connection_s *connection, text_s *text) noexcept nogil:
        cdef uint8_t how = connection.has & SERVED
        if self.origin == NULL or text.offset < 0 or self.overlap > LAST:  # a mark has no came_s
            return NULL
        if how == COUNTED:
            return self.origin
        if how != NATIVE or asks_origins(connection.stream.served.stream):  # nor has it a packet's number
            return NULL
        return self.origin if self.origin.owner != NULL or ignores_bytes(connection.stream.served.stream) else NULL

    # Copy into pages what they do not hold yet, or mark it, one byte after the other; before that they lose what the policy says. Where
    # it is not sure that the bytes are the right ones, nothing is marked.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure, origin_s *origin) except -1 nogil:
        cdef int64_t size = text.size
        cdef int64_t position = 0, at, held, missing = <int64_t>text.wire - size
        cdef page_s *prev = find_place(pages, text.seq)
        cdef page_s *next_ = pages.first if prev == NULL else prev.next
        if self.overlap != FIRST and pages.count:
            missing = self._make_room(pages, next_ if prev == NULL else prev, text.seq, text)
            prev = find_place(pages, text.seq)
            next_ = pages.first if prev == NULL else prev.next
        if prev != NULL:
            held = difference(text.seq, page_end(prev))
            if held > 0:
                position = min(held, size)
                self._compare(prev, <uint32_t>(prev.length - held), text, 0, position, unsure)
        while True:
            at = size if next_ == NULL else min(size, <int64_t>difference(text.seq, next_.seq))
            if position < at:
                prev = self._push(pages, prev, next_, text, position, at, origin)
            if next_ == NULL or at >= size:
                break
            position = min(size, at + next_.length)
            self._compare(next_, 0, text, at, position, unsure)
            prev, next_ = next_, next_.next
        if missing:
            # Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one.
            if prev == NULL or (not size and difference(page_end(prev), text.seq) > 0):
                prev = self._push(pages, prev, next_, text, 0, 0, NULL)
            prev.missing = <uint32_t>max(<int64_t>prev.missing, <int64_t>difference(page_end(prev), <uint32_t>(text.seq + size + missing)))
        return 0

    # The same for a long text among many pages, nothing of it cut off. Where it repeats a stretch of small ones, as one who wants this to
    # be dear sends it, that is compared at once.
    cdef int _hold_over_many(self, page_list_s *pages, text_s *text, origin_s *origin) except -1 nogil:
        cdef flat_s *flat = &pages.index.flat
        cdef text_s part = text[0]
        cdef uint64_t before
        cdef int64_t size = text.size, begin = 0, end = 0, ahead   # begin to end: what the flat copy has of it
        cdef const uint8_t *held
        if flat.size:
            ahead = difference(text.seq, flat.begin)
            if ahead < size and ahead + flat.size > 0:
                begin, end = max(0, ahead), min(ahead + flat.size, size)
                held = flat.bytes + (begin - ahead)
                self.counts[OVERLAPPING] += end - begin
                if memcmp(held, text.data + begin, end - begin) != 0:
                    self._count_conflicts(text.seq + <uint32_t>begin, held, text.data + begin, <uint32_t>(end - begin), False)
                if end - begin > size // 2:
                    flat.passed = 0
        before = self.counts[OVERLAPPING]
        if begin > 0:
            part.size = part.wire = <uint32_t>begin
            self._hold_in(pages, &part, False, origin)
        if end < size:
            part.seq, part.data = text.seq + <uint32_t>end, text.data + end
            part.size = part.wire = <uint32_t>(size - end)
            part.offset = -1 if text.offset < 0 else text.offset + end
            self._hold_in(pages, &part, False, origin)
        if end - begin <= size // 2 and self.counts[OVERLAPPING] != before:
            flatten(pages, text.seq, text.size)
        return 0

    # The text's bytes from position to end, as a chain of pages, go in between two neighbours. Returns the last page.
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end, origin_s *origin
    ) except NULL nogil:
        cdef page_s *first = NULL
        cdef page_s *last = NULL
        cdef page_s *page
        cdef uint32_t size
        cdef int64_t apart = difference(text.seq, text.apart) if text.has_apart else -1
        cdef bint whole = False
        try:
            while not whole:
                size = <uint32_t>min(end - position, <int64_t>PAGE_SIZE)
                if position <= apart < position + size:
                    size = <uint32_t>max(1, apart - position)
                if origin != NULL and size >= MARKED_FROM:
                    page = take_mark(&self.cache.state, text.seen_ns, origin, text.offset + position, size)
                else:
                    page = take_page_for(
                        &self.cache.state, text.seen_ns, -1 if text.offset < 0 or size == 0 else text.offset + position, size
                    )
                    hold_bytes(page, text.data + position, size)
                    came_of(page).begin, came_of(page).behind = text.seq, text.seq + text.wire
                    note_packet(page, text.packet)
                page.seq = text.seq + <uint32_t>position
                page.urgent = position == apart and size != 0
                if last == NULL:
                    first = page
                else:
                    last.next, page.prev = page, last
                last = page
                position += size
                whole = position >= end
        finally:
            while not whole and first != NULL:  # no memory for the next one
                page, first = first, first.next
                give_back_page(page)
        push_between(pages, prev, next_, first, last)
        return last

    # Count the text's bytes from position to end as a copy of those that a page holds, and those of them that differ.
    cdef int _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) except -1 nogil:
        cdef uint8_t buffer[PAGE_SIZE]
        cdef const uint8_t *copy = text.data + position
        cdef const uint8_t *held = bytes_held(page, buffer)
        cdef uint32_t size = <uint32_t>(end - position)
        cdef bint gives_way
        self.counts[OVERLAPPING] += size
        if held == NULL or memcmp(held + offset, copy, size) == 0:
            return 0
        # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
        gives_way = unsure and page.length == 1 and page.prev == NULL
        self._count_conflicts(page.seq + offset, held + offset, copy, size, gives_way)
        if gives_way:
            hold_bytes(page, copy, 1)
            page.offset = -1 if text.offset < 0 else text.offset + position
            note_packet(page, text.packet)
            page.urgent = text.has_apart and text.apart == page.seq
        return 0

    # Two copies of the bytes from seq on; on_conflict will be told of each run of bytes that differ.
    cdef int _count_conflicts(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil:
        cdef uint32_t at, begin, count = 0
        for at in range(size):
            count += held[at] != new[at]
        self.counts[CONFLICTING] += count
        if not self.tells_conflicts:
            return 0
        at = 0
        while count:
            while held[at] == new[at]:
                at += 1
            begin = at
            while at < size and held[at] != new[at]:
                at += 1
            count -= at - begin
            self._note_conflict(seq + begin, held + begin, new + begin, at - begin, new_wins)
        return 0

    # A run of differing bytes. Where pages meet, it goes on from the last one.
    cdef int _note_conflict(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil:
        cdef conflict_s run
        cdef conflict_s *last
        if not (
            reserve(&self.conflicts, sizeof(run), ENDLESS_BYTES)
            and reserve(&self.conflict_held, size, ENDLESS_BYTES)
            and reserve(&self.conflict_new, size, ENDLESS_BYTES)
        ):
            with gil:
                raise MemoryError()
        append(&self.conflict_held, held, size)
        append(&self.conflict_new, new, size)
        if self.conflicts.used:
            last = <conflict_s *>(self.conflicts.data + self.conflicts.used) - 1
            if last.new_wins == new_wins and last.seq + last.size == seq:
                last.size += size
                return 0
        run.seq, run.size, run.new_wins = seq, size, new_wins
        append(&self.conflicts, &run, sizeof(run))
        return 0

    # To whoever asked for them, without the lock. An exception leaves the others untold.
    cdef int _tell_conflicts(self, const key_s *key) except -1:
        cdef const conflict_s *run = <const conflict_s *>self.conflicts.data
        cdef const char *held = <const char *>self.conflict_held.data
        cdef const char *new = <const char *>self.conflict_new.data
        cdef const conflict_s *behind = <const conflict_s *>(self.conflicts.data + self.conflicts.used)
        cdef list conflicts = []
        try:
            while run != behind:
                conflicts.append((
                    run.seq, PyBytes_FromStringAndSize(held, run.size), PyBytes_FromStringAndSize(new, run.size),
                    "new" if run.new_wins else "held"
                ))
                held, new, run = held + run.size, new + run.size, run + 1
        finally:
            self.conflicts.used = self.conflict_held.used = self.conflict_new.used = 0
        net_flow, transport_flow = net_flow_of(key), transport_flow_of(key)
        self.pool_.unlock()
        try:
            for seq, held_bytes, new_bytes, wins in conflicts:
                self.on_conflict(net_flow, transport_flow, seq, held_bytes, new_bytes, wins)
        finally:
            self.pool_.lock()
        return 0

    # -- whose bytes stay -------------------------------------------------------------------------------------------

    # A segment wins over the one that a page's bytes came with. Both cover some byte, and so lie close to each other.
    cdef bint _wins(self, const text_s *text, page_s *page) noexcept nogil:
        cdef came_s came
        cdef int32_t first, last
        if self.overlap == LAST:
            return True
        came = brought_by(page)
        first = difference(came.begin, text.seq)  # above 0: it begins behind the held one
        last = difference(came.behind, text.seq + text.wire)
        if self.overlap == SOLARIS:
            return last >= 0 if first <= 0 else last > 0
        if first == 0:
            return (self.overlap == LINUX and last > 0) or (self.overlap == OLD_LINUX and last >= 0)
        return first < 0

    # Pages from this one on lose the bytes over which the text at hand wins. `near` lies within 2**31 of the text and of them.
    #
    # Returns how many bytes right behind the text were cut off, as far as is known now: what a page knew of that is not lost with it.
    cdef int64_t _make_room(self, page_list_s *pages, page_s *page, uint32_t near, text_s *text) except -1 nogil:
        cdef uint8_t buffer[PAGE_SIZE]
        cdef const uint8_t *held
        cdef int64_t size = text.size, missing = <int64_t>text.wire - text.size
        cdef int64_t done = difference(text.seq, near)
        cdef int64_t at, first, end
        cdef page_s *next_
        while page != NULL:
            at = done + difference(near, page.seq)
            if at >= size:
                break
            next_ = page.next
            first, end = max(0, at), min(size, at + page.length)
            if first < end and self._wins(text, page):
                self.counts[OVERLAPPING] += end - first
                held = bytes_held(page, buffer)
                if held != NULL and memcmp(held + (first - at), text.data + first, end - first) != 0:
                    self._count_conflicts(
                        text.seq + <uint32_t>first, held + (first - at), text.data + first, <uint32_t>(end - first), True
                    )
                if end == at + page.length and page.missing:
                    missing = max(missing, end + page.missing - size)
                self._take_out(pages, page, <uint32_t>(first - at), <uint32_t>(end - at))
            page = next_
        return missing

    # Some of a page's bytes go. What is left behind them stands in a page of its own, where some are left before them too.
    cdef int _take_out(self, page_list_s *pages, page_s *page, uint32_t begin, uint32_t end) except -1 nogil:
        cdef uint32_t behind = page.length - end
        cdef int64_t offset = -1 if page.offset < 0 else page.offset + end
        cdef page_s *tail
        drop_flat(pages)  # which an assembler with another policy may have made
        if begin and behind:
            if page.cache.kind == MARKS:
                tail = take_mark(&self.cache.state, page.seen_ns, <origin_s *>page.bytes, offset, behind)
            else:
                tail = take_page_for(&self.cache.state, page.seen_ns, offset, behind)
                hold_bytes(tail, page.bytes + end, behind)
                if self.overlap > LAST:
                    came_of(tail)[0] = brought_by(page)
                note_packet(tail, packet_of(page))
            tail.seq = page.seq + end
            tail.missing = page.missing
            push_between(pages, page, page.next, tail, tail)
        if begin:
            cut_page(page, begin)
            page.missing = 0
        elif behind:
            cut_front(pages, page, end)
        else:
            remove_page(pages, page)
            give_back_page(page)
        return 0

    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil:
        return pages.count > 0 and (
            0 < self.limit_connection <= pages.count
            or 0 < self.limit_bytes_connection <= <int64_t>pages.units * UNIT
            or ((self.limit_total or self.limit_bytes_total) and self._are_all_at_limit())
        )

    # All that share the limits. What the others' threads have may be a few pages old.
    cdef bint _are_all_at_limit(self) noexcept nogil:
        cdef uint64_t pages = 0, units = 0
        cdef int i
        add_used(&self.cache.state, &pages, &units)
        for i in range(self.sharer_count):
            add_used(self.sharers[i], &pages, &units)
        return 0 < self.limit_total <= <int64_t>pages or 0 < self.limit_bytes_total <= <int64_t>units * UNIT

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
            if self.tells_gaps:
                self._note_gap(connection, target, -1, GAP_START)
            begin_at(connection, target)
            connection.skip = -1
        self._advance(connection)
        note_past_start(connection)
        return 0

    cdef void _drop_successor(self, connection_s *connection) noexcept nogil:
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)
            PyMem_RawFree(connection.successor)
            connection.successor = NULL

    cdef void _drop(self, page_list_s *pages, int reason) noexcept nogil:
        cdef page_s *page
        while pages.count:
            page = pop_first(pages)
            self.counts[reason] += page.length
            give_back_page(page)

    # -- its stream -------------------------------------------------------------------------------------------------

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

    # It has had all, but for being told of what is missing last.
    cdef int _end_at_depth(self, connection_s *connection) except -1 nogil:
        if connection.skip:
            self._emit_empty(connection, connection.last_seen_ns, False, 0)
        self._let_go(connection)
        return 0

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
        if not reserve(&self.gaps, sizeof(gap), ENDLESS_BYTES):
            with gil:
                raise MemoryError()
        gap.key, gap.seq, gap.missing, gap.why = connection.key, seq, missing, why
        append(&self.gaps, &gap, sizeof(gap))
        return 0

    # To whoever asked for them, without the lock. An exception leaves the others untold.
    cdef int _tell_gaps(self) except -1:
        cdef given_up_s *gap = <given_up_s *>self.gaps.data
        cdef given_up_s *behind = <given_up_s *>(self.gaps.data + self.gaps.used)
        cdef list gaps = []
        try:
            while gap != behind:
                why = GAP_REASONS[gap.why - HOLES_LIMITED]
                gaps.append((net_flow_of(&gap.key), transport_flow_of(&gap.key), gap.seq, gap.missing, why))
                gap += 1
        finally:
            self.gaps.used = 0
        self.pool_.unlock()
        try:
            for each in gaps:
                self.on_gap(*each)
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            self.pool_.lock()
        return 0

    # -- both directions together -----------------------------------------------------------------------------------

    cdef void _hold_at_hand(self, uint32_t flags, const text_s *text) noexcept nogil:
        self.is_noted = False
        self.at_hand.flags, self.at_hand.seq, self.at_hand.ack = flags, text.seq, text.ack
        self.at_hand.size, self.at_hand.seen_ns = text.size, text.seen_ns

    # A connection that begins gets its side of a conversation: with the segment at hand, or with a SYN that was remembered.
    cdef int _join(self, connection_s *connection, const at_hand_s *syn, bint remembered) except -1 nogil:
        cdef side_s *side = self.pairing.join(connection, syn.flags, syn.seq, syn.ack, self._forget_before())
        if side == NULL:
            self._drop(&connection.pages, FACTORY_ERROR)
            self.pool_.remove(connection)
            self.pool_.free_removed(connection)
            with gil:
                raise MemoryError()
        if syn.flags & SYN:
            note_syn(side, syn.flags, syn.seq, syn.ack, syn.seen_ns, not remembered)
        if remembered and syn.flags & ACK:
            side.ack = syn.ack
            side.is_what |= HAS_ACK
        self._note(connection, True)
        return 0

    # The segment at hand counts for this connection's side, unless it has done so already.
    cdef void _note(self, connection_s *connection, bint acknowledges) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        cdef side_s *side
        if not self.pairs or self.is_noted:
            return
        self.is_noted = True
        side = side_of(connection)
        if note(side, hand.flags if acknowledges else hand.flags & ~<uint32_t>ACK, hand.ack, hand.size, hand.seen_ns):
            if beside(peer_of(side)).connection != NULL:
                self._mark_acked(beside(peer_of(side)).connection)

    # It is the SYN of this connection.
    cdef void _note_syn(self, connection_s *connection) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        if self.pairs:
            self._note(connection, True)
            note_syn(side_of(connection), hand.flags, hand.seq, hand.ack, hand.seen_ns, True)

    # The segment at hand has no connection, but may belong to a conversation. True: it refuses that, by RFC 9293 3.10.7.3.
    cdef bint _note_beside(self, const key_s *key, uint32_t hash) noexcept nogil:
        cdef at_hand_s *hand = &self.at_hand
        cdef side_s *side = self.pairing.side_beside(key, hash, self._forget_before())
        cdef connection_s *peer
        cdef uint32_t behind_text
        if side == NULL:
            return False
        peer = beside(peer_of(side)).connection
        if note(side, hand.flags, hand.ack, hand.size, hand.seen_ns):
            self._mark_acked(peer)
        if (hand.flags & (FIN | ACK | RST)) == (FIN | ACK):
            note_fin(side)
            self.pairing.look_after(side.conversation)
        if (hand.flags & (ACK | RST)) != (ACK | RST) or peer.state == CLOSED or (side.is_what | peer_of(side).is_what) & HAS_ACK:
            return False
        behind_text = peer.next_seq
        if peer.key.more & SYN_TEXT_HELD and peer.pages.last != NULL:
            behind_text = page_end(peer.pages.last) + peer.pages.last.missing
        if not peer.has & HAS_ISN or (hand.ack != peer.isn + 1 and hand.ack != behind_text):
            return False
        note_rst(side, REFUSED)
        self.pairing.look_after(side.conversation)
        return True

    # The lowest hole ends at or before a number that the other side has acknowledged.
    cdef bint _is_acked(self, const connection_s *connection, uint32_t ack) noexcept nogil:
        if connection.state != OPEN or not connection.has & HAS_START or connection.key.more & SYN_TEXT_HELD:
            return False
        if not waits(<connection_s *>connection):
            return False
        return difference(first_held(<connection_s *>connection), ack) >= 0 and difference(connection.next_seq, ack) <= self.max_gap

    # Note since when the other side has had what is missing before the lowest thing held.
    cdef void _mark_acked(self, connection_s *connection) noexcept nogil:
        cdef side_s *side = side_of(connection)
        cdef side_s *peer
        cdef beside_s *rest
        if side == NULL:
            return
        rest, peer = beside(side), peer_of(side)
        if connection.state == OPEN and self.acked_timeout_ns >= 0 and waits(connection):
            peer.watched |= PEER_WAITS
        else:
            peer.watched &= ~PEER_WAITS
        if side.is_what & HAS_ACKED and self._is_acked(connection, rest.acked_to):
            return
        side.is_what &= ~HAS_ACKED
        if peer.is_what & HAS_ACK and self.acked_timeout_ns >= 0 and self._is_acked(connection, peer.ack):
            side.is_what |= HAS_ACKED
            rest.acked_ns, rest.acked_to = self.clock.now, peer.ack
            self.pairing.acked_bound = min(self.pairing.acked_bound, self.clock.now)
            if self.acked_timeout_ns == 0:
                side.conversation.is_what |= GIVES_UP
                self.pairing.look_after(side.conversation)

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
            if (conversation.is_what & (COMPLETE_NOW | TOLD)) == COMPLETE_NOW and conversation.has_object:
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
        cdef ConversationState state = self.pairing.objects.pop(<uintptr_t>conversation)
        conversation.is_what |= TOLD
        self.pool_.unlock()
        try:
            if state.conversation is not None:
                self.pairing._tell_complete(state)
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            state = None          # without the lock: what dies with it may be user code
            self.pool_.lock()
        return 0

    # The object that names a conversation.
    cdef ConversationState _state_of(self, conversation_s *conversation):
        state = self.pairing.objects.get(<uintptr_t>conversation)
        if state is None:
            state = self.pairing.objects.setdefault(<uintptr_t>conversation, state_of(conversation))
            conversation.has_object = True
        return state


cdef void start_at(connection_s *connection, uint32_t isn) noexcept nogil:
    connection.has |= HAS_ISN
    connection.isn = isn
    begin_at(connection, isn + 1)


# Bytes of a COUNTED stream, behind the gap that is to be reported now.
cdef void tally_piece(connection_s *connection, uint32_t size, int64_t seen_ns) noexcept nogil:
    cdef tally_s *tally = &connection.stream.tally
    tally.length += size
    tally.first_seen_ns = min(tally.first_seen_ns, seen_ns)
    tally.last_seen_ns = max(tally.last_seen_ns, seen_ns)
    if connection.skip > 0:
        connection.more.skipped += connection.skip
        connection.phase.after.gap_count += 1


# The segment that a page's bytes came with; where an assembler with another policy brought it, nothing is known but the page.
cdef came_s brought_by(page_s *page) noexcept nogil:
    cdef came_s came
    if page.cache.keeps_came:
        return came_of(page)[0]
    came.begin, came.behind = page.seq, page_end(page)
    return came


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


# From the first to the last byte held, were this segment held too.
cdef int64_t span_with(page_list_s *pages, text_s *text) noexcept nogil:
    cdef int64_t ahead = difference(pages.first.seq, text.seq)
    return max(<int64_t>difference(pages.first.seq, page_end(pages.last)), ahead + text.wire) - min(0, ahead)


cdef void note_cut(connection_s *connection, uint32_t cut_end) noexcept nogil:
    if connection.has & HAS_END and difference(connection.end_seq, cut_end) > 0:
        cut_end = connection.end_seq
    if difference(connection.next_seq, cut_end) > max(0, difference(connection.next_seq, connection.cut_end)):
        connection.cut_end = cut_end


# Nothing is held from there on; counts what was.
cdef void cut_pages(page_list_s *pages, uint32_t end_seq, uint64_t *dropped) noexcept nogil:
    cdef page_s *page
    cdef int64_t room
    drop_flat(pages)
    while pages.count:
        page = pages.last
        room = difference(page.seq, end_seq)
        page.missing = <uint32_t>max(0, min(<int64_t>page.missing, room - <int64_t>page.length))
        if room >= page.length and (page.length or page.missing):
            break
        if room > 0:
            dropped[0] += page.length - room
            cut_page(page, <uint32_t>room)
            break
        dropped[0] += page.length
        give_back_page(pop_last(pages))
