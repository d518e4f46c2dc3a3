"""`AssemblerBase`: the conductor. Takes segments, finds their connection, brings them into order, serves the stream.

Called once a packet. Everything else in this core answers; only this one asks. State is committed before user code runs, so that a
callback that raises, or another thread that comes in meanwhile, finds everything consistent.

The path of a segment in order, top to bottom: assemble_frame, _segment, _take_in, _text, _deliver, _emit, _serve. It copies and
stores no payload, and makes two Python objects: the piece and the list that it is handed over in.
"""

import logging

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_CheckExact
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from .connection cimport (
    CLOSED,
    HAS_END,
    HAS_FAR,
    HAS_ISN,
    HAS_START,
    PAST_START,
    connection_s,
    ended,
    first_held,
    is_ahead,
    key_object,
    key_s,
    note_past_start,
    successor_s,
    waits,
    waits_until,
)
from .decode cimport decode, segment_s
from .pages cimport (
    PAGE_SIZE,
    PageCache,
    find_place,
    give_back_page,
    hold_bytes,
    page_end,
    page_list_s,
    page_s,
    pop_first,
    pop_last,
    push_between,
)
from .pool cimport StreamPoolBase
from .reassembly cimport Reassembly, piece_of_bytes, piece_of_page
from .sequence cimport difference

from ..clock import NS_LIMIT as CLOCK_NS_LIMIT
from ..clock import to_ns
from ..flow import Flow
from ..segment import TCPSegment
from ..stats import COUNTERS, DROP_REASONS
from ..verdict import Verdict

__all__ = ["AssemblerBase"]

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    PyObject *PyList_GET_ITEM(PyObject *list, Py_ssize_t i)

cdef enum:
    FIN = 1                       # RFC 9293 3.1
    SYN = 2
    RST = 4
    ACK = 16

cdef enum:
    SYN_REACH = 1 << 24           # a SYN that comes late lies at most so many bytes before the data that overtook it
    CONTINUES_WITHIN = 1 << 20    # what continues from a SYN lies at most so many bytes behind it
    START_REACH = 1 << 30         # without a start, data within so many bytes of the first belongs together

cdef int64_t SPAN_LIMIT = 0x7FFFFFFF               # what is held lies within so many bytes of next_seq, so that comparing is exact
cdef int64_t CLOCK_STEP_NS = 60_000_000_000        # a packet further from the last one's time needs a second one to be believed
cdef int64_t CLOCK_CHANGE_NS = 3_600_000_000_000   # further ahead than this is a changed clock, not a quiet hour
cdef int64_t ALWAYS_NS = 0x7FFFFFFFFFFFFFFF        # every time lies before this one
cdef int64_t NEVER_NS = -0x7FFFFFFFFFFFFFFF        # and none before this one
cdef int64_t NS_LIMIT = CLOCK_NS_LIMIT
cdef const uint8_t *NOTHING = b""

cdef tuple VERDICT_OF = tuple(Verdict)
assert len(VERDICT_OF) == VERDICTS and len(COUNTERS) + len(DROP_REASONS) == COUNTS

_log = logging.getLogger("tcpreasm.assembly")


cdef class AssemblerBase:
    """The engine beneath `Assembler`; see there for what the calls do."""

    def _setup(
        self,
        StreamPoolBase pool not None,
        *,
        max_buffered_pages_total,
        max_buffered_pages_per_connection,
        verify_checksums,
        start_wait_segments,
        start_wait_ns,
        max_gap,
        hole_timeout_ns,
        idle_timeout_ns,
        closed_timeout_ns,
    ):
        """Numbers only; -1 stands for: never, no limit."""
        self.pool_ = pool
        self.cache = PageCache()
        self.limit_total = min(max_buffered_pages_total, ALWAYS_NS)
        self.limit_connection = min(max_buffered_pages_per_connection, ALWAYS_NS)
        self.verify = verify_checksums
        self.start_wait_segments = -1 if start_wait_segments is None else min(start_wait_segments, ALWAYS_NS)
        self.start_wait_ns = start_wait_ns
        self.max_gap = max_gap
        self.hole_timeout_ns = hole_timeout_ns
        self.idle_timeout_ns = idle_timeout_ns
        self.closed_timeout_ns = closed_timeout_ns
        self.out = []
        self.debug = _log.isEnabledFor(logging.DEBUG)

    # -- the ways in ------------------------------------------------------------------------------------------------

    def assemble(self, net_flow, tcp, timestamp=None, *, timestamp_ns=None):
        """Take in one segment.

        Args:
            net_flow: the packet's addresses.
            tcp: the segment.
            timestamp: capture time, seconds since 1970 or an aware datetime. Neither this nor timestamp_ns: now.
            timestamp_ns: the same in integer nanoseconds.

        Results in, in this order: zero or one call of the factory, zero or one call of `reassembled` on one stream, zero or one call of
        `reassembly_complete` on the same stream. A segment that shows that the connection was opened anew (RFC 9293 3.6.1) ends
        the old stream first: zero or one `reassembled` and one `reassembly_complete` on that.
        """
        if not isinstance(net_flow, Flow) or not isinstance(net_flow.raw_src, bytes) or not isinstance(net_flow.raw_dst, bytes):
            raise TypeError(f"net_flow is a Flow of two addresses, not {net_flow!r}")
        if not isinstance(tcp, TCPSegment):
            raise TypeError(f"tcp is a TCPSegment, not {type(tcp).__name__}: {tcp!r}")
        cdef text_s text
        cdef key_s key
        cdef bytes src = net_flow.raw_src
        cdef bytes dst = net_flow.raw_dst
        cdef bytes payload = tcp.payload
        if PyBytes_GET_SIZE(src) != PyBytes_GET_SIZE(dst) or PyBytes_GET_SIZE(src) not in (4, 16):
            raise TypeError(f"net_flow is a Flow of two addresses, not {net_flow!r}")
        text.seen_ns = as_ns(timestamp, timestamp_ns)
        text.data = <const uint8_t *>PyBytes_AS_STRING(payload)
        text.size = <uint32_t>PyBytes_GET_SIZE(payload)
        text.seq, text.wire = tcp.seq, tcp.wire_payload_length
        memset(&key, 0, sizeof(key))
        memcpy(key.src, PyBytes_AS_STRING(src), PyBytes_GET_SIZE(src))
        memcpy(key.dst, PyBytes_AS_STRING(dst), PyBytes_GET_SIZE(dst))
        key.src_port, key.dst_port, key.is_ipv6 = tcp.src_port, tcp.dst_port, PyBytes_GET_SIZE(src) == 16
        cdef uint8_t flags = tcp.flags
        self._enter()
        try:
            self.packet = payload
            self._observe(text.seen_ns)
            self._segment(&key, flags, &text, False)
        finally:
            self.packet = None
            self.busy = False

    def assemble_with_timestamp(self, net_flow, tcp, timestamp):
        """`assemble` with the time as a third argument, as in the model."""
        self.assemble(net_flow, tcp, timestamp)

    def assemble_frame(self, frame, timestamp=None, *, timestamp_ns=None, linktype=1, wire_length=None):
        """Decode one captured frame and take in the segment that it carries.

        Args:
            frame: the captured bytes. Payload is delivered from where it lies in a bytes object; a writable buffer is copied first.
            timestamp: capture time, seconds since 1970 or an aware datetime. Neither this nor timestamp_ns: now.
            timestamp_ns: the same in integer nanoseconds.
            linktype: LINKTYPE_ number of the capture, 1 for Ethernet.
            wire_length: bytes that the frame had on the wire, where the capture cut it. None: as captured.

        Returns what the frame was. Nothing in a frame raises. Calls of the factory and of streams as with `assemble`.
        """
        cdef segment_s segment
        cdef text_s text
        cdef bytes data
        cdef size_t length, on_wire
        cdef int verdict, link
        text.seen_ns = as_ns(timestamp, timestamp_ns)
        link = <int>bounded_int("linktype", "an int", linktype)
        on_wire = 0
        if wire_length is not None:
            on_wire = <size_t>bounded_int("wire_length", "an int or None", wire_length)
            if wire_length < 0:
                raise ValueError(f"wire_length is 0 or more, not {wire_length}")
        data = <bytes>frame if PyBytes_CheckExact(frame) else bytes(memoryview(frame))
        length = <size_t>PyBytes_GET_SIZE(data)
        self._enter()
        try:
            self._observe(text.seen_ns)
            verdict = decode(<const uint8_t *>PyBytes_AS_STRING(data), length, on_wire, link, self.verify, &segment)
            if verdict != 0:
                self.verdicts[verdict] += 1
            else:
                self.packet = data
                text.data = segment.payload
                text.seq = segment.seq
                text.size = segment.payload_length
                text.wire = segment.wire_payload_length
                self._segment(<const key_s *>&segment, segment.flags, &text, True)
            return VERDICT_OF[verdict]
        finally:
            self.packet = None
            self.busy = False

    def flush_ns(self, t_ns, close_all):
        """Give out what was held since before t_ns (None: all), and close what is idle since then if close_all."""
        cdef int64_t before = ALWAYS_NS if t_ns is None else t_ns
        self._enter()
        try:
            return self._walk(before, before if close_all else NEVER_NS, NEVER_NS)
        finally:
            self.cache.shrink_now()
            self.busy = False

    def expire(self):
        """Flush by the time-outs of the options, on capture time as far as it is believed."""
        self._enter()
        try:
            self.pool_.forget_closed_before(self._forget_before())
            return self._walk(
                self._expiry(self.hole_timeout_ns), self._expiry(self.idle_timeout_ns), self._expiry(self.start_wait_ns)
            )
        finally:
            self.cache.shrink_now()
            self.busy = False

    def finish(self):
        """Give out everything held and close everything. Returns the number of connections closed."""
        self._enter()
        try:
            return self._finish()
        finally:
            self.busy = False

    cdef int _finish(self) except -1:
        try:
            return self._walk(ALWAYS_NS, ALWAYS_NS, NEVER_NS)[1]
        finally:
            self.pool_.forget_closed_before(ALWAYS_NS)
            self.cache.shrink_now()

    def shut(self, finish):
        """No more calls from now on; before that, finish if asked to."""
        self._enter()
        try:
            if finish:
                self._finish()
        finally:
            self.closed_ = True
            self.busy = False

    @property
    def closed(self):
        """close() was called."""
        return self.closed_

    def now_ns(self):
        """Capture time, as far as it is believed: one packet whose time is far from the others' does not move it."""
        return self.clock.now if self.clock.has_now else None

    def advance_clock(self, int64_t now_ns):
        """Time goes on without packets (live captures)."""
        self._enter()
        self._observe(now_ns)
        self.busy = False

    def counters(self):
        """For AssemblerStats: COUNTERS and DROP_REASONS, frames by verdict, and what is so now."""
        cdef int number
        if self.pool_ is None:
            raise AttributeError("this Assembler was not initialised: a subclass calls super().__init__(pool, options)")
        return (
            tuple([self.counts[number] for number in range(COUNTS)]),
            tuple([self.verdicts[number] for number in range(VERDICTS)]),
            {
                "bytes_held": self.cache.held_bytes,
                "connections": len(self.pool_),
                "pages_used": self.cache.used,
                "pages_allocated": self.cache.size,
                "page_requests": self.cache.requests,
            },
        )

    # -- time -------------------------------------------------------------------------------------------------------

    cdef int _enter(self) except -1:
        if self.pool_ is None:
            raise AttributeError("this Assembler was not initialised: a subclass calls super().__init__(pool, options)")
        if self.busy:
            raise RuntimeError("this Assembler is at work already: called from a callback, or from two threads at once")
        if self.closed_:
            raise ValueError("this Assembler is closed")
        self.busy = True
        return 0

    cdef void _observe(self, int64_t seen_ns) noexcept:
        self.clock_before = self.clock
        observe(&self.clock, seen_ns)
        if self.clock_before.has_now and self.clock.now < self.clock_before.now:
            self.pool_.set_back(self.clock.now)

    # The time before which something is too old. Nothing expires by the setting of a clock.
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept:
        cdef clock_s *clock = &self.clock
        if not clock.has_now or timeout_ns < 0 or (clock.has_changed and 0 <= clock.now - clock.changed < timeout_ns):
            return NEVER_NS
        return clock.now - timeout_ns

    cdef int64_t _forget_before(self) noexcept:
        return self._expiry(self.closed_timeout_ns)

    # -- one segment ------------------------------------------------------------------------------------------------

    cdef int _segment(self, const key_s *key, uint8_t flags, text_s *text, bint from_frame) except -1:
        cdef connection_s *connection = NULL
        cdef bint opens = (flags & SYN or text.wire) and not flags & RST
        cdef bint no_ack = not flags & (SYN | RST | ACK) and (text.wire or flags & FIN)
        if not no_ack:
            try:
                connection = self.pool_.acquire(key, opens, text.seen_ns, self._forget_before())
            except RuntimeError:
                self.clock = self.clock_before  # refused: as if it had not been called
                raise
        self.verdicts[0] += from_frame
        self.counts[SEGMENTS] += 1
        self.counts[BYTES_CAPTURED] += text.size
        if no_ack:
            self.counts[NO_ACK_FLAG] += text.size
            return 0
        if connection == NULL:
            if flags & RST:
                self.counts[RST_IGNORED] += 1
                self.counts[RST_TEXT] += text.size
            if self.debug:
                _log.debug("%s: nothing to open a stream with", key_object(key))
            return 0
        try:
            self._take_in(connection, flags, text)
            if self.late_error is not None:
                raise self.late_error
        except BaseException as raised:
            if raised is not self.late_error and raised.__context__ is None:
                raised.__context__ = self.late_error
            raise
        finally:
            self.late_error = None
            if self.out:
                self.out = []
            self.pool_.release(connection)
        return 0

    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1:
        if connection.state == CLOSED:
            if not self._reopens(connection, flags, text):
                self.counts[AFTER_CLOSE] += text.size
                return 0
            self._restart(connection, connection.successor, text.size, text.seen_ns)
        elif self.pool_.streams[connection.index] is None:
            self._open_stream(connection, text.size)
        connection.last_seen_ns = max(connection.last_seen_ns, text.seen_ns)
        if not flags & (SYN | RST):
            if text.wire or flags & FIN:
                self._continue(connection, flags, text)
        elif flags & RST:
            self._reset(connection, text)
        else:
            self._syn(connection, flags, text)
        return self._serve(connection)

    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1:
        net_flow, transport_flow = key_object(&connection.key)
        try:
            stream = self.pool_.new(net_flow, transport_flow)
            reassembled, complete = stream.reassembled, stream.reassembly_complete
        except BaseException:
            self.counts[FACTORY_ERROR] += at_stake
            self._drop(&connection.pages, FACTORY_ERROR)
            self.pool_.remove(connection)
            raise
        self.counts[STREAMS_OPENED] += 1
        self.pool_.streams[connection.index] = stream
        self.pool_.reassembled[connection.index] = reassembled
        self.pool_.complete[connection.index] = complete
        return 0

    # RST: only at the exact sequence number expected (RFC 5961 3.2). Its text is not part of the stream.
    cdef int _reset(self, connection_s *connection, text_s *text) except -1:
        cdef bint exact
        self.counts[RST_TEXT] += text.size
        if connection.has & HAS_START:
            exact = text.seq == connection.next_seq
        else:
            exact = waits(connection) and text.seq == (connection.end_seq if connection.has & HAS_END else connection.early_end)
        if not exact:
            self.counts[RST_IGNORED] += 1
            return 0
        connection.has |= HAS_END
        connection.end_seq, connection.end_seen_ns = text.seq, text.seen_ns
        if not connection.has & HAS_START:
            self._skip(connection)
        return 0

    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1:
        cdef uint32_t isn = text.seq
        text.seq += 1
        if not connection.has & HAS_START:
            if waits(connection) and not 0 <= difference(text.seq, first_held(connection)) <= SYN_REACH:
                self._begin_anew(connection, NULL, text.size, text.seen_ns)
            if self.debug:
                _log.debug("%s: starts at %d", key_object(&connection.key), isn)
            start_at(connection, isn)
            return self._text(connection, flags, text, True)
        if is_own_syn(connection, isn):
            if not connection.has & HAS_ISN:
                connection.has |= HAS_ISN
                connection.isn = isn
                self.counts[LATE_SYN] += 1
            return self._text(connection, flags, text, False)
        return self._remember(connection, text)

    # A SYN with another initial sequence number, on an open connection.
    cdef int _remember(self, connection_s *connection, text_s *text) except -1:
        cdef successor_s *successor
        self._drop_successor(connection)
        self.counts[SYN_REMEMBERED] += 1
        successor = <successor_s *>PyMem_RawCalloc(1, sizeof(successor_s))
        if successor == NULL:
            raise MemoryError()
        successor.isn = text.seq - 1
        successor.next_seq = text.seq + text.wire
        successor.seen_ns = text.seen_ns
        connection.successor = successor
        if text.wire:
            self._hold_in(&successor.pages, text, False)
            if self._is_at_limit(&successor.pages):
                self._drop(&successor.pages, UNCONFIRMED_SYN)
        return 0

    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1:
        cdef successor_s *successor = connection.successor
        if successor != NULL and confirms(connection, successor, text.seq):
            connection.successor = NULL
            self._begin_anew(connection, successor, text.size, text.seen_ns)
        return self._text(connection, flags, text, False)

    # Whether a segment begins a closed connection anew: a SYN with another initial sequence number does at once, and what
    # continues from one that came before the close.
    cdef bint _reopens(self, connection_s *connection, uint8_t flags, text_s *text) except -1:
        if flags & RST:
            return False
        if flags & SYN:
            if is_own_syn(connection, text.seq):
                return False
            self._drop_successor(connection)
            return True
        return (
            connection.successor != NULL
            and (text.wire or flags & FIN)
            and confirms(connection, connection.successor, text.seq)
        )

    # The stream at hand is over, with all that it holds; the same connection begins again. Frees the successor.
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1:
        reassembled = self.pool_.reassembled[connection.index]
        complete = self.pool_.complete[connection.index]
        self._finish_pieces(connection)
        try:
            self._call(reassembled, complete)
        except BaseException as raised:
            self.late_error = raised  # raised once the segment at hand is taken in
        return self._restart(connection, successor, at_stake, seen_ns)

    # A new stream under the same key, from the SYN that was remembered, or from the one at hand. Frees the successor.
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1:
        cdef uint32_t isn = 0
        cdef int64_t syn_seen_ns = 0
        self.pool_.reopen(connection, seen_ns)
        if successor != NULL:
            connection.pages = successor.pages
            isn, syn_seen_ns = successor.isn, successor.seen_ns
            PyMem_RawFree(successor)
        self._open_stream(connection, at_stake)
        if successor != NULL:
            start_at(connection, isn)
            self._emit(connection, NOTHING, 0, syn_seen_ns, True)
            self._advance(connection)
        return 0

    # Text and FIN of one segment.
    cdef int _text(self, connection_s *connection, uint8_t flags, text_s *text, bint start) except -1:
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
        if ahead == -1 - SPAN_LIMIT:  # neither ahead nor behind
            self.counts[OUT_OF_WINDOW] += text.size
            return 0
        if ahead <= 0:
            return self._deliver(connection, text, start)
        if text.wire:
            if ahead + text.wire > SPAN_LIMIT or (ahead > self.max_gap and self._is_wild(connection, text)):
                self.counts[OUT_OF_WINDOW] += text.size
                return 0
            self._hold_in(&connection.pages, text, False)
            if self.debug:
                _log.debug("%s: %d bytes ahead, held", key_object(&connection.key), ahead)
            self._keep_limits(connection)
        return 0

    # Further ahead than max_gap, and the last one that was so lay somewhere else.
    cdef bint _is_wild(self, connection_s *connection, text_s *text) noexcept:
        cdef int64_t step = difference(connection.far_next, text.seq)
        cdef bint wild = not connection.has & HAS_FAR or not -CONTINUES_WITHIN <= step <= CONTINUES_WITHIN
        connection.has |= HAS_FAR
        connection.far_next = text.seq + text.wire
        return wild

    # FIN counts when the stream reaches its place (RFC 9293 3.10.7.4, eighth check). The first one seen stays.
    cdef int _note_end(self, connection_s *connection, uint32_t end_seq, int64_t seen_ns) except -1:
        cdef uint32_t base = end_seq
        if connection.has & HAS_START:
            base = connection.next_seq
        elif connection.pages.first != NULL:
            base = connection.pages.first.seq
        if not 0 <= difference(base, end_seq) <= self.max_gap or (connection.has & HAS_END and connection.end_seq != end_seq):
            self.counts[FIN_IGNORED] += 1
        elif not connection.has & HAS_END:
            connection.has |= HAS_END
            connection.end_seq, connection.end_seen_ns = end_seq, seen_ns
            cut_pages(connection, self.counts)
        return 0

    cdef int _wait_for_start(self, connection_s *connection, text_s *text) except -1:
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
            self._hold_in(&connection.pages, text, True)
            if first or difference(connection.early_end, text.seq + text.wire) > 0:
                connection.early_end = text.seq + text.wire
        if not waits(connection):
            return 0
        connection.early_segments += 1
        if 0 <= self.start_wait_segments <= connection.early_segments or (
            0 <= self.start_wait_ns <= text.seen_ns - connection.created_ns
        ):
            self._skip(connection)
        return self._keep_limits(connection)

    # -- what arrives in order --------------------------------------------------------------------------------------

    # A segment that begins at or before next_seq: what is new of it goes out, around pages that hold part of it already.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1:
        cdef int64_t size = text.size
        cdef uint32_t before = connection.next_seq
        cdef int64_t done = difference(text.seq, before)
        cdef int64_t position = min(done, size)
        cdef int64_t at, early
        cdef page_s *page = connection.pages.first
        if position:
            early = 0
            if not connection.has & PAST_START and (not connection.has & HAS_ISN or connection.isn + 1 != connection.first_seq):
                early = max(0, min(position, <int64_t>difference(text.seq, connection.first_seq)))
            self.counts[BEFORE_START] += early
            self.counts[RETRANSMITTED] += position - early
        if page != NULL:
            if start and page.seq == text.seq:
                self._emit(connection, NOTHING, 0, text.seen_ns, True)
                start = False
            while page != NULL and position < size:
                at = done + difference(before, page.seq)  # each of the two is exact; their sum may be too far for one
                if at >= size:
                    break
                if position < at:
                    self._emit(connection, text.data + position, <uint32_t>(at - position), text.seen_ns, start)
                    start = False
                self._compare(page, 0, text.data + at, <uint32_t>min(size - at, <int64_t>page.length), False)
                position = max(position, at + page.length)
                connection.next_seq = page.seq
                self._emit_page(connection)
                page = connection.pages.first
        if position < size or start:
            self._emit(connection, text.data + position, <uint32_t>(size - position), text.seen_ns, start)
        if difference(connection.next_seq, text.seq + text.size) > 0:
            connection.next_seq = text.seq + text.size
        if text.wire > text.size:
            note_cut(connection, text.seq + text.wire)
        self._advance(connection)
        if (before ^ connection.next_seq) >> 30:
            note_past_start(connection)
        return 0

    # Everything that is contiguous with next_seq now, and over what the capture cut off.
    cdef int _advance(self, connection_s *connection) except -1:
        cdef page_s *page
        cdef int64_t cut
        while True:
            page = connection.pages.first
            if page != NULL and difference(connection.next_seq, page.seq) <= 0:
                self._emit_page(connection)
                continue
            cut = difference(connection.next_seq, connection.cut_end)
            if cut <= 0:
                break
            if page != NULL:
                cut = min(cut, <int64_t>difference(connection.next_seq, page.seq))
            self._jump(connection, cut)
        connection.cut_end = connection.next_seq
        return 0

    # next_seq goes on over bytes that are missing.
    cdef void _jump(self, connection_s *connection, int64_t missing) noexcept:
        connection.next_seq += <uint32_t>missing
        if connection.skip >= 0:  # else they belong to an unknown number anyway
            connection.skip += missing
            self.counts[BYTES_SKIPPED] += missing

    cdef int _emit(self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, bint start) except -1:
        self.out.append(piece_of_bytes(self.packet, data, size, connection.skip, start, seen_ns))
        self.counts[BYTES_DELIVERED] += size
        connection.skip = 0
        return 0

    # The first page goes out; it begins at or before next_seq.
    cdef int _emit_page(self, connection_s *connection) except -1:
        cdef page_s *page = pop_first(&connection.pages)
        connection.next_seq = page_end(page)
        if page.missing:
            note_cut(connection, page_end(page) + page.missing)
        if page.length:
            self.counts[BYTES_DELIVERED] += page.length
            self.out.append(piece_of_page(page, connection.skip))
            connection.skip = 0
        else:
            give_back_page(page)
        return 0

    # -- what arrives early -----------------------------------------------------------------------------------------

    # Copy into pages what they do not hold yet: the bytes captured first win, one by one.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure) except -1:
        cdef int64_t size = text.size
        cdef int64_t position = 0, at, held
        cdef page_s *prev = find_place(pages, text.seq)
        cdef page_s *next_ = pages.first if prev == NULL else prev.next
        if prev != NULL:
            held = difference(text.seq, page_end(prev))
            if held > 0:
                position = min(held, size)
                self._compare(prev, <uint32_t>(prev.length - held), text.data, <uint32_t>position, unsure)
        while True:
            at = size if next_ == NULL else min(size, <int64_t>difference(text.seq, next_.seq))
            if position < at:
                prev = self._push(
                    pages, prev, next_, text.seq + <uint32_t>position, text.data + position, <uint32_t>(at - position), text.seen_ns
                )
            if next_ == NULL or at >= size:
                break
            position = min(size, at + next_.length)
            self._compare(next_, 0, text.data + at, <uint32_t>(position - at), unsure)
            prev, next_ = next_, next_.next
        if text.wire > text.size:
            # Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one.
            if prev == NULL or (not size and difference(page_end(prev), text.seq) > 0):
                prev = self._push(pages, prev, next_, text.seq, NOTHING, 0, text.seen_ns)
            prev.missing = <uint32_t>max(<int64_t>prev.missing, <int64_t>difference(page_end(prev), text.seq + text.wire))
        return 0

    # A chain of pages for data goes in between two neighbours. Returns its last page.
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, uint32_t seq, const uint8_t *data, uint32_t size, int64_t seen_ns
    ) except NULL:
        cdef page_s *first = NULL
        cdef page_s *last = NULL
        cdef page_s *page
        cdef uint32_t offset = 0
        while True:
            page = self.cache.take_page(seen_ns)
            page.seq = seq + offset
            hold_bytes(page, data + offset, min(size - offset, <uint32_t>PAGE_SIZE))
            if last == NULL:
                first = page
            else:
                last.next, page.prev = page, last
            last = page
            offset += PAGE_SIZE
            if offset >= size:
                break
        push_between(pages, prev, next_, first, last)
        return last

    # Count a copy of bytes that a page holds, and those of them that differ.
    cdef void _compare(self, page_s *page, uint32_t offset, const uint8_t *copy, uint32_t size, bint unsure) noexcept:
        cdef uint32_t i
        self.counts[OVERLAPPING] += size
        if memcmp(page.bytes + offset, copy, size) == 0:
            return
        for i in range(size):
            self.counts[CONFLICTING] += page.bytes[offset + i] != copy[i]
        if unsure and page.length == 1 and page.prev == NULL:
            # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
            hold_bytes(page, copy, 1)

    cdef bint _is_at_limit(self, page_list_s *pages) noexcept:
        return pages.count > 0 and (
            0 < self.limit_connection <= pages.count or 0 < self.limit_total <= <int64_t>self.cache.used
        )

    cdef int _keep_limits(self, connection_s *connection) except -1:
        while self._is_at_limit(&connection.pages):
            if self.debug:
                _log.debug("%s: page limit reached with %d pages", key_object(&connection.key), connection.pages.count)
            self._skip(connection)
        return 0

    # Stop waiting for the lowest hole: over it, and on with what is contiguous then.
    cdef int _skip(self, connection_s *connection) except -1:
        cdef uint32_t target = first_held(connection)
        if connection.has & HAS_START:
            self._jump(connection, difference(connection.next_seq, target))
            connection.cut_end = connection.next_seq
        else:
            connection.has |= HAS_START
            connection.next_seq = connection.first_seq = connection.cut_end = target
            connection.skip = -1
        self._advance(connection)
        note_past_start(connection)
        return 0

    cdef void _drop_successor(self, connection_s *connection) noexcept:
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)
            PyMem_RawFree(connection.successor)
            connection.successor = NULL

    cdef void _drop(self, page_list_s *pages, int reason) noexcept:
        cdef page_s *page
        while pages.count:
            page = pop_first(pages)
            self.counts[reason] += page.length
            give_back_page(page)

    # -- serving the stream -----------------------------------------------------------------------------------------

    # Commit what this call has led to, then tell the stream.
    cdef int _serve(self, connection_s *connection) except -1:
        if not ended(connection):
            if self.out:
                self._call(self.pool_.reassembled[connection.index], None)
            return 0
        reassembled = self.pool_.reassembled[connection.index]
        complete = self.pool_.complete[connection.index]
        if connection.skip or not self.out:
            self._emit(connection, NOTHING, 0, connection.end_seen_ns, False)
        (<Reassembly>self.out[len(self.out) - 1]).end_ = True
        self._drop(&connection.pages, AFTER_END)
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)  # its SYN is still remembered
        self.counts[STREAMS_CLOSED] += 1
        self.pool_.close(connection, self.clock.now if self.clock.has_now else connection.last_seen_ns)
        if self.debug:
            _log.debug("%s: ended", key_object(&connection.key))
        return self._call(reassembled, complete)

    # The end of a connection that nobody closed.
    cdef int _close(self, connection_s *connection) except -1:
        reassembled = self.pool_.reassembled[connection.index]
        complete = self.pool_.complete[connection.index]
        self._finish_pieces(connection)
        self.pool_.remove(connection)
        return self._call(reassembled, complete)

    # Everything held goes out; a gap behind the last byte goes out as a piece of its own.
    cdef int _finish_pieces(self, connection_s *connection) except -1:
        cdef bint at_end
        while waits(connection):
            self._skip(connection)
        at_end = ended(connection)
        if connection.skip or (at_end and not self.out):
            self._emit(connection, NOTHING, 0, connection.end_seen_ns if at_end else connection.last_seen_ns, False)
        if at_end:
            (<Reassembly>self.out[len(self.out) - 1]).end_ = True
        self._drop_successor(connection)
        self.counts[STREAMS_CLOSED] += 1
        return 0

    # Hand over `out`. A piece that somebody keeps holds its own bytes from then on, not a page.
    cdef int _call(self, object reassembled, object complete) except -1:
        cdef list pieces = self.out
        cdef bint kept
        self.out = []
        try:
            if pieces:
                reassembled(pieces)
        finally:
            kept = Py_REFCNT(<PyObject *>pieces) > 1
            for i in range(len(pieces)):
                if (kept or Py_REFCNT(PyList_GET_ITEM(<PyObject *>pieces, i)) > 1) and type(pieces[i]) is Reassembly:
                    (<Reassembly>pieces[i]).settle()
            if complete is not None:
                complete()
        return 0

    # -- all connections --------------------------------------------------------------------------------------------

    # Every open connection, oldest first: give out what is held since before held_ns, start what waits for its start since
    # before start_ns, close what has seen nothing since idle_ns.
    #
    # An exception of user code does not keep the other connections from being served; the first one is raised at the end.
    # First those that need it are picked, without a call of user code, which could change the list.
    cdef tuple _walk(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns):
        cdef StreamPoolBase pool = self.pool_
        cdef connection_s *connection = pool.open.oldest
        cdef connection_s **picked
        cdef uint32_t *generations
        cdef uint32_t count = 0, i
        cdef Py_ssize_t flushed = 0, closed = 0
        cdef bint gave_out, idle
        if connection == NULL:
            return 0, 0
        picked = <connection_s **>PyMem_RawMalloc(pool.open.count * sizeof(connection_s *))
        generations = <uint32_t *>PyMem_RawMalloc(pool.open.count * sizeof(uint32_t))
        error = None
        try:
            if picked == NULL or generations == NULL:
                raise MemoryError()
            while connection != NULL:
                if waits(connection) or connection.last_seen_ns < idle_ns:
                    picked[count] = connection
                    generations[count] = connection.generation
                    count += 1
                connection = connection.newer
            for i in range(count):
                connection = picked[i]
                if not pool.acquire_open(connection, generations[i]):
                    continue
                try:
                    gave_out = self._give_out(connection, held_ns, start_ns)
                    idle = connection.last_seen_ns < idle_ns and not ended(connection)
                    flushed += gave_out or idle
                    closed += idle or ended(connection)
                    if idle:
                        self._close(connection)
                    elif gave_out:
                        self._serve(connection)
                except BaseException as raised:
                    error = error or raised
                finally:
                    if self.out:
                        self.out = []
                    pool.release(connection)
        finally:
            PyMem_RawFree(picked)
            PyMem_RawFree(generations)
        if error is not None:
            raise error
        return flushed, closed

    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns) except -1:
        cdef uint32_t target
        if not waits_until(connection, held_ns, &target):
            if connection.has & HAS_START or connection.created_ns >= start_ns or not waits(connection):
                return False
            self._skip(connection)
            return True
        while waits(connection) and is_ahead(connection, target):
            self._skip(connection)
        return True


cdef void observe(clock_s *clock, int64_t seen_ns) noexcept:
    cdef int64_t step = seen_ns - clock.now
    cdef int64_t agreed
    if not clock.has_now:
        clock.now, clock.has_now = seen_ns, True
    elif -CLOCK_STEP_NS <= step <= CLOCK_STEP_NS:
        clock.now, clock.has_suspect = max(clock.now, seen_ns), False
    elif not clock.has_suspect or (clock.suspect > clock.now) != (step > 0):
        clock.suspect, clock.has_suspect = seen_ns, True
    else:
        agreed = min(clock.suspect, seen_ns) if step > 0 else max(clock.suspect, seen_ns)  # two packets say: at least so far
        if agreed - clock.now > CLOCK_CHANGE_NS:
            clock.changed, clock.has_changed = agreed, True
        clock.now = agreed
        clock.suspect, clock.has_suspect = seen_ns, not -CLOCK_STEP_NS <= seen_ns - agreed <= CLOCK_STEP_NS


# clock.to_ns, short for integer nanoseconds.
cdef int64_t as_ns(object timestamp, object timestamp_ns) except? -1:
    cdef int overflow = 1
    cdef int64_t ns = 0
    if timestamp is None and PyLong_CheckExact(timestamp_ns):
        ns = PyLong_AsLongLongAndOverflow(timestamp_ns, &overflow)
    if not overflow and -NS_LIMIT <= ns <= NS_LIMIT:
        return ns
    return to_ns(timestamp, timestamp_ns)


# An int of any size; beyond 2**31 - 1 either way it stays there.
cdef int64_t bounded_int(str name, str kind, object value) except? -2:
    cdef int overflow = 0
    cdef int64_t number
    if not PyLong_Check(value) or PyBool_Check(value):
        raise TypeError(f"{name} is {kind}, not {type(value).__name__}: {value!r}")
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        number = SPAN_LIMIT * overflow
    return max(-SPAN_LIMIT, min(SPAN_LIMIT, number))


cdef void start_at(connection_s *connection, uint32_t isn) noexcept:
    connection.has |= HAS_START | HAS_ISN
    connection.isn = isn
    connection.next_seq = connection.first_seq = connection.cut_end = isn + 1


# This SYN began the connection: the same again, or late where it was missed.
cdef bint is_own_syn(connection_s *connection, uint32_t seq) noexcept:
    if connection.has & HAS_ISN:
        return seq == connection.isn
    return not connection.has & PAST_START and 0 <= difference(seq + 1, connection.first_seq) <= SYN_REACH


# A segment continues from another SYN, and not from what is open.
cdef bint confirms(connection_s *connection, successor_s *successor, uint32_t seq) noexcept:
    cdef int64_t ahead, away
    if not connection.has & HAS_START or seq == connection.next_seq:
        return False
    ahead = difference(successor.isn + 1, seq)
    if ahead == 0 or seq == successor.next_seq:
        return True
    away = difference(connection.next_seq, seq)
    return 0 < ahead <= CONTINUES_WITHIN and not -CONTINUES_WITHIN <= away <= CONTINUES_WITHIN


# From the first to the last byte held, were this segment held too.
cdef int64_t span_with(page_list_s *pages, text_s *text) noexcept:
    cdef int64_t ahead = difference(pages.first.seq, text.seq)
    return max(<int64_t>difference(pages.first.seq, page_end(pages.last)), ahead + text.wire) - min(0, ahead)


cdef void note_cut(connection_s *connection, uint32_t cut_end) noexcept:
    if connection.has & HAS_END and difference(connection.end_seq, cut_end) > 0:
        cut_end = connection.end_seq
    if difference(connection.next_seq, cut_end) > max(0, difference(connection.next_seq, connection.cut_end)):
        connection.cut_end = cut_end


# Nothing is held beyond the end.
cdef void cut_pages(connection_s *connection, uint64_t *counts) noexcept:
    cdef page_list_s *pages = &connection.pages
    cdef page_s *page
    cdef int64_t room
    while pages.count:
        page = pages.last
        room = difference(page.seq, connection.end_seq)
        page.missing = <uint32_t>max(0, min(<int64_t>page.missing, room - <int64_t>page.length))
        if room >= page.length and (page.length or page.missing):
            break
        if room > 0:
            counts[AFTER_END] += page.length - room
            hold_bytes(page, page.bytes, <uint32_t>room)
            break
        counts[AFTER_END] += page.length
        give_back_page(pop_last(pages))
