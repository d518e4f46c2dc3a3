"""`AssemblerBase`: the conductor. Takes segments, finds their connection, brings them into order, serves the stream.

Called once a packet. Everything else in this core answers; only this one asks. State is committed before user code runs, so that a
callback that raises, or another thread that comes in meanwhile, finds everything consistent.

The path of a segment in order, top to bottom: _walk_frames (or assemble_frame), _segment, _take_in, _text, _deliver, _emit, _serve. It
copies and stores no payload. What most segments in order need is done at once, by take_in_order.
"""

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_CheckExact
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset

from .connection cimport (
    CLOSED,
    COUNTED,
    HAS_END,
    HAS_FAR,
    HAS_ISN,
    HAS_START,
    LISTED,
    NATIVE,
    OPEN,
    PAST_START,
    SERVED,
    begin_at,
    connection_s,
    ended,
    first_held,
    is_ahead,
    key_object,
    key_s,
    net_flow_of,
    note_past_start,
    oldest_held,
    owner_of,
    served_s,
    successor_s,
    tally_s,
    transport_flow_of,
    waits,
    waits_until,
)
from .decode cimport decode, segment_s
from .pages cimport (
    PAGE_SIZE,
    PageCache,
    cache_s,
    find_place,
    give_back_page,
    hold_bytes,
    lend_page,
    page_end,
    page_list_s,
    page_s,
    pop_first,
    pop_last,
    push_between,
    return_page,
    take_page,
)
from .pool cimport (
    BOTH_DIRECTIONS,
    COMPLETE,
    GATHERED,
    PER_STREAM,
    REASSEMBLED,
    StreamPoolBase,
    find,
    hash_of,
    listed_s,
    prefetch_connection,
    prefetch_slot,
    table_s,
)
from .reassembly cimport PIECE_END, PIECE_START, Reassembly, piece_of, piece_s, settle_piece
from .records cimport RecordReader, frame_s
from .sequence cimport difference
from .streams cimport NativeStream

from .._log import Log
from ..batch import batch_arrays, batch_buffer, check_linktype
from ..clock import NS_LIMIT as CLOCK_NS_LIMIT
from ..clock import to_ns
from ..flow import Flow
from ..segment import TCPSegment
from ..stats import COUNTERS, DROP_REASONS
from ..verdict import Verdict

__all__ = ["AssemblerBase"]

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    unsigned long PyThread_get_thread_ident() noexcept nogil
    PyObject *PyList_GET_ITEM(PyObject *list, Py_ssize_t i)
    ctypedef struct PyThreadState
    PyThreadState *PyGILState_GetThisThreadState() noexcept nogil
    void PyEval_RestoreThread(PyThreadState *state) noexcept nogil
    PyThreadState *PyEval_SaveThread() noexcept nogil

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil
    bint likely "__builtin_expect"(bint condition, bint value) noexcept nogil

ctypedef int (*take_f)(void *stream, const piece_s *pieces, Py_ssize_t count) except -1 nogil
ctypedef int (*finish_f)(void *stream) except -1 nogil
ctypedef bint (*calls_out_f)(void *stream) noexcept nogil
ctypedef int (*serve_f)(void *assembler, connection_s *connection) except -1 nogil
ctypedef int (*finish_with_gil_f)(void *assembler, connection_s *connection, const served_s *served, bint native) except -1 nogil

cdef enum:
    FIN = 1                       # RFC 9293 3.1
    SYN = 2
    RST = 4
    ACK = 16

cdef enum:
    KEPT = 0                      # what becomes of a connection whose stream ends: it begins anew at once;
    REMEMBERED = 1                # it is closed, and remembered for a while;
    FORGOTTEN = 2                 # it is gone

cdef enum:
    WALK_AHEAD = 16               # connections that are fetched from memory before they are served
    SYN_REACH = 1 << 24           # a SYN that comes late lies at most so many bytes before the data that overtook it
    CONTINUES_WITHIN = 1 << 20    # what continues from a SYN lies at most so many bytes behind it
    START_REACH = 1 << 30         # without a start, data within so many bytes of the first belongs together

cdef int64_t SPAN_LIMIT = 0x7FFFFFFF               # what is held lies within so many bytes of next_seq, so that comparing is exact
cdef int64_t CLOCK_STEP_NS = 60_000_000_000        # a packet further from the last one's time needs a second one to be believed
cdef int64_t CLOCK_CHANGE_NS = 3_600_000_000_000   # further ahead than this is a changed clock, not a quiet hour
cdef int64_t EXPIRE_EVERY_NS = 1_000_000_000       # capture time between two looks at what waits
cdef int64_t ALWAYS_NS = 0x7FFFFFFFFFFFFFFF        # every time lies before this one
cdef int64_t NEVER_NS = -0x7FFFFFFFFFFFFFFF        # and none before this one
cdef int64_t NS_LIMIT = CLOCK_NS_LIMIT
cdef const uint8_t *NOTHING = b""

cdef tuple VERDICT_OF = tuple(Verdict)
assert len(VERDICT_OF) == VERDICTS and len(COUNTERS) + len(DROP_REASONS) == COUNTS

_log = Log("tcpreasm.assembly")


cdef int take_by_name(NativeStream stream, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
    return stream.take(pieces, count)


cdef int finish_by_name(NativeStream stream) except -1 nogil:
    return stream.finish()


cdef bint calls_out_by_name(NativeStream stream) noexcept nogil:
    return stream.calls_out


# The same for a borrowed pointer: without the GIL no reference can be counted.
cdef take_f take = <take_f>take_by_name
cdef finish_f finish = <finish_f>finish_by_name
cdef calls_out_f calls_out = <calls_out_f>calls_out_by_name


cdef int hand_to_python_by_name(AssemblerBase assembler, connection_s *connection) except -1:
    return assembler._hand_to_python(connection)


cdef int finish_with_gil_by_name(AssemblerBase assembler, connection_s *connection, const served_s *served, bint native) except -1:
    return assembler._finish_with_gil(connection, served, native)


# To be called right after _take_gil: `with gil` would look up what is known then.
cdef serve_f hand_to_python = <serve_f>hand_to_python_by_name
cdef finish_with_gil_f finish_with_gil = <finish_with_gil_f>finish_with_gil_by_name


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
        self.gathered = []
        self.holds_gil = self.keeps_gil = True
        self.debug = _log.is_on()
        pool.lock()
        try:
            self.number = pool.adopt(self.cache)
        finally:
            pool.unlock()
        self.pool_ = pool

    def __dealloc__(self):
        PyMem_RawFree(self.out)
        PyMem_RawFree(self.gathered_for)
        PyMem_RawFree(self.sharers)

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
        text.seq, text.wire, text.offset = tcp.seq, tcp.wire_payload_length, -1
        memset(&key, 0, sizeof(key))
        memcpy(key.src, PyBytes_AS_STRING(src), PyBytes_GET_SIZE(src))
        memcpy(key.dst, PyBytes_AS_STRING(dst), PyBytes_GET_SIZE(dst))
        key.src_port, key.dst_port, key.is_ipv6 = tcp.src_port, tcp.dst_port, PyBytes_GET_SIZE(src) == 16
        cdef uint8_t flags = tcp.flags
        self._enter()
        try:
            self.packet = payload
            self._observe(text.seen_ns)
            self._segment(&key, hash_of(&self.pool_.table, &key), flags, &text, False)
        except BaseException as raised:
            join_late_error(self, raised)
            raise
        finally:
            self._leave()

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
                text_of(&segment, &text, -1)
                self._segment(<const key_s *>&segment, hash_of(&self.pool_.table, <const key_s *>&segment), segment.flags, &text, True)
            return VERDICT_OF[verdict]
        except BaseException as raised:
            join_late_error(self, raised)
            raise
        finally:
            self._leave()

    def assemble_records(self, RecordReader records not None, Py_ssize_t limit, coalesce=False, base=0):
        """Take in the next frames of a capture file, each as `assemble_frame` does, followed by `tick`.

        Args:
            records: the reader of the file (PcapRecords, PcapngRecords).
            limit: so many frames at the most.
            coalesce: as for `assemble_batch`.
            base: what is added to the offsets of pieces: bytes of the captures before this one.

        Returns the number of frames taken, 0 at the end. An exception of a stream or of the factory passes through after the frame at
        hand was taken in; the next call goes on behind it. So does one of the reader.
        """
        cdef Py_ssize_t taken = 0
        cdef int64_t bytes_before = base
        self._begin_batch(coalesce)
        self.base = bytes_before
        error = None
        try:
            records.hold()
            self.packet = records.block
            try:
                with nogil:
                    self._walk_records(records, limit, &taken)
            finally:
                self.holds_gil = self.keeps_gil = True
                records.release()
        except BaseException as raised:
            error = raised
        self._end_batch(error)
        return taken

    def assemble_batch(self, buffer, offsets, lengths, timestamps_ns, wire_lengths=None, linktype=1, coalesce=False):
        """Take in many frames that lie in one buffer, in order, each as `assemble_frame` does. Flushes nothing by itself.

        Args:
            buffer: the captured bytes: bytes, or another one-dimensional, C-contiguous buffer of bytes. Nobody may change it during
                the call; what its owner does with it afterwards changes no piece.
            offsets: where each frame begins in it: a sequence of ints, or a one-dimensional array of an integer type.
            lengths: bytes captured of each frame.
            timestamps_ns: capture time of each frame, in nanoseconds since 1970.
            wire_lengths: bytes that each frame had on the wire. None: as captured.
            linktype: LINKTYPE_ number of all frames, 1 for Ethernet.
            coalesce: all that one stream gets goes out in one `reassembled` call at the end, streams in the order of their first
                piece. A stream that ends gets its pieces at once, before `reassembly_complete`.

        Returns how many of the frames were TCP segments. The offset of each piece is its place in the buffer.

        TypeError and ValueError for arguments that cannot be right (batch_arrays), before the first frame is touched. An exception of
        a stream or of the factory passes through after the frame at hand was taken in, and the frames behind that are not
        (`stats.frames` tells how many were). What was put aside goes out even then; of several exceptions the first one is raised.
        """
        cdef const int64_t[::1] at, sizes, times, on_wire
        cdef const uint8_t *data
        cdef uint64_t before
        cdef int link
        with batch_buffer(buffer) as view:
            arrays = plain_arrays(offsets, lengths, timestamps_ns, wire_lengths)
            if arrays is None or not is_sound(arrays[0], arrays[1], arrays[2], arrays[3], view.nbytes):
                arrays = batch_arrays(view.nbytes, offsets, lengths, timestamps_ns, wire_lengths)
            at, sizes, times = arrays[0], arrays[1], arrays[2]
            on_wire = sizes if arrays[3] is None else arrays[3]
            check_linktype(linktype)
            link = <int>bounded_int("linktype", "an int", linktype)
            data = bytes_of(view)
            self._begin_batch(coalesce)
            self.base = 0
            if PyBytes_CheckExact(buffer):
                self.packet = buffer
            before = self.verdicts[0]
            error = None
            try:
                with nogil:
                    self._walk_batch(data, at, sizes, times, on_wire, link)
            except BaseException as raised:
                error = raised
            self._end_batch(error)
            return self.verdicts[0] - before

    cdef int _begin_batch(self, bint coalesce) except -1:
        self._check_open()
        self.busy = True
        self.coalesce = coalesce
        self.shared = True
        self.holds_gil = self.keeps_gil = False
        return 0

    # Raises the error, once everybody has got what was put aside.
    cdef int _end_batch(self, object error) except -1:
        self.holds_gil = self.keeps_gil = True
        self.coalesce = False
        try:
            if error is not None:
                join_late_error(self, error)
            self._give_gathered(error)
        finally:
            self.packet = None
            self.shared = self.busy = False
        return 0

    def flush_ns(self, t_ns, close_all):
        """Give out what was held since before t_ns (None: all), and close what is idle since then if close_all."""
        cdef int64_t before = ALWAYS_NS if t_ns is None else t_ns
        cdef Py_ssize_t flushed = 0, closed = 0
        self._enter()
        try:
            self._walk_all(before, before if close_all else NEVER_NS, NEVER_NS, &flushed, &closed)
            return flushed, closed
        finally:
            self.cache.shrink_now()
            self._leave()

    def expire(self):
        """Flush by the time-outs of the options, on capture time as far as it is believed."""
        cdef Py_ssize_t flushed = 0, closed = 0
        self._enter()
        try:
            self._expire(&flushed, &closed)
            return flushed, closed
        finally:
            self._leave()

    def tick(self):
        """`expire`, where a second of capture time has passed since the last tick that did so, or the clock was set back behind it."""
        self._enter()
        try:
            self._tick()
        finally:
            self._leave()

    def finish(self):
        """Give out everything held and close everything. Returns the number of connections closed."""
        cdef Py_ssize_t closed = 0
        self._enter()
        try:
            self._finish(&closed)
            return closed
        finally:
            self._leave()

    cdef int _finish(self, Py_ssize_t *closed) except -1:
        cdef Py_ssize_t flushed = 0
        self.holds_gil = self.keeps_gil = False
        try:
            with nogil:
                try:
                    self._walk_all(ALWAYS_NS, ALWAYS_NS, NEVER_NS, &flushed, closed)
                finally:
                    self._drop_gil()
        finally:
            self.holds_gil = self.keeps_gil = True
            self.pool_.forget_closed_before(ALWAYS_NS)
            self.cache.shrink_now()
        return 0

    def shut(self, finish):
        """No more calls from now on; before that, finish if asked to."""
        cdef Py_ssize_t closed = 0
        self._enter()
        try:
            if finish:
                self._finish(&closed)
        finally:
            self.closed_ = True
            self._leave()

    @property
    def closed(self):
        """close() was called."""
        return self.closed_

    def now_ns(self):
        """Capture time, as far as it is believed: one packet whose time is far from the others' does not move it."""
        return self.clock.now if self.clock.has_now else None

    def advance_clock(self, now_ns):
        """Time goes on without packets (live captures)."""
        cdef int64_t seen_ns = as_ns(None, now_ns)
        self._enter()
        self._observe(seen_ns)
        self._leave()

    def share_limit(self, list assemblers not None):
        """The limit of pages in all is one for these together, of which this is one."""
        cdef int i
        self.limit_with = [(<AssemblerBase>assembler).cache for assembler in assemblers if assembler is not self]
        PyMem_RawFree(self.sharers)
        self.sharer_count = 0
        self.sharers = <cache_s **>PyMem_RawMalloc(max(1, len(self.limit_with)) * sizeof(cache_s *))
        if self.sharers == NULL:
            raise MemoryError()
        for i in range(len(self.limit_with)):
            self.sharers[i] = &(<PageCache>self.limit_with[i]).state
        self.sharer_count = <int>len(self.limit_with)

    def occupy(self):
        """Others work for it from now on: every call is refused, as in a call of its own. ValueError where it is closed, RuntimeError
        where it is at work."""
        self._check_open()
        self.busy = True

    def vacate(self):
        """The opposite."""
        self.busy = False

    def absorb(self, AssemblerBase other not None):
        """What another assembler has counted counts here too, and its clock goes on here."""
        cdef int number
        for number in range(COUNTS):
            self.counts[number] += other.counts[number]
        for number in range(VERDICTS):
            self.verdicts[number] += other.verdicts[number]
        self.cache.state.requests += other.cache.state.requests
        self.clock = other.clock

    def counters(self):
        """For AssemblerStats: COUNTERS and DROP_REASONS, frames by verdict, and what is so now."""
        cdef int number
        if self.pool_ is None:
            raise AttributeError("this Assembler was not initialised: a subclass calls super().__init__(pool, options)")
        return (
            tuple([self.counts[number] for number in range(COUNTS)]),
            tuple([self.verdicts[number] for number in range(VERDICTS)]),
            {
                "bytes_held": self.cache.state.held_bytes,
                "connections": len(self.pool_),
                "pages_used": self.cache.state.used,
                "pages_allocated": self.cache.state.size,
                "page_requests": self.cache.state.requests,
            },
        )

    # -- time -------------------------------------------------------------------------------------------------------

    cdef int _check_open(self) except -1:
        if self.pool_ is None:
            raise AttributeError("this Assembler was not initialised: a subclass calls super().__init__(pool, options)")
        if self.busy:
            raise RuntimeError("this Assembler is at work already: called from a callback, or from two threads at once")
        if self.closed_:
            raise ValueError("this Assembler is closed")
        return 0

    cdef int _enter(self) except -1:
        self._check_open()
        self.busy = True
        try:
            self.pool_.lock()
        except BaseException:
            self.busy = False
            raise
        return 0

    cdef int _leave(self) except -1:
        self.pool_.unlock()
        self.packet = None
        self.busy = False
        return 0

    cdef void _observe(self, int64_t seen_ns) noexcept nogil:
        self.clock_before = self.clock
        observe(&self.clock, seen_ns)
        if self.clock_before.has_now and self.clock.now < self.clock_before.now:
            self.pool_.set_back(self.clock.now)

    # The time before which something is too old. Nothing expires by the setting of a clock.
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil:
        cdef clock_s *clock = &self.clock
        if not clock.has_now or timeout_ns < 0 or (clock.has_changed and 0 <= clock.now - clock.changed < timeout_ns):
            return NEVER_NS
        return clock.now - timeout_ns

    cdef int64_t _forget_before(self) noexcept nogil:
        return self._expiry(self.closed_timeout_ns)

    cdef int _tick(self) except -1 nogil:
        cdef Py_ssize_t flushed = 0, closed = 0
        if self.clock.has_now and not (self.has_ticked and self.ticked_ns <= self.clock.now < self.tick_ns):
            self.has_ticked = True
            self.ticked_ns = self.clock.now
            self.tick_ns = min(self.clock.now, ALWAYS_NS - EXPIRE_EVERY_NS) + EXPIRE_EVERY_NS
            self._expire(&flushed, &closed)
        return 0

    # Looks at the connections that wait for something; at all of them only where one may be idle for too long.
    cdef int _expire(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef int64_t held_ns = self._expiry(self.hole_timeout_ns)
        cdef int64_t idle_ns = self._expiry(self.idle_timeout_ns)
        cdef int64_t start_ns = self._expiry(self.start_wait_ns)
        try:
            self.pool_.forget_closed_before(self._forget_before())
            if self.pool_.seen_bound < idle_ns:
                self._walk_all(held_ns, idle_ns, start_ns, flushed, closed)
            else:
                self._walk_listed(held_ns, start_ns, flushed, closed)
        finally:
            with gil:
                self.cache.shrink_now()
        return 0

    # -- many frames ------------------------------------------------------------------------------------------------

    cdef int _walk_records(self, RecordReader records, Py_ssize_t limit, Py_ssize_t *taken) except -1 nogil:
        cdef frame_s frames[GROUP]
        cdef int count, done
        while taken[0] < limit:
            count = records.parse(frames, <int>min(<Py_ssize_t>GROUP, limit - taken[0]))
            if count == 0:
                with gil:
                    if not self._refill(records):
                        return 0
                continue
            done = 0
            try:
                self._walk_frames(frames, count, True, &done)
            finally:
                taken[0] += done
                if done < count:
                    records.unread(frames + done, count - done)
        return 0

    cdef bint _refill(self, RecordReader records) except -1:
        self.packet = None  # else the block could not be used again
        records.release()
        try:
            return records.refill()
        finally:
            records.hold()
            self.packet = records.block

    cdef int _walk_batch(
        self, const uint8_t *data, const int64_t[::1] at, const int64_t[::1] sizes, const int64_t[::1] times,
        const int64_t[::1] on_wire, int linktype
    ) except -1 nogil:
        cdef frame_s frames[GROUP]
        cdef Py_ssize_t first = 0, i
        cdef int count, done
        while first < at.shape[0]:
            count = <int>min(<Py_ssize_t>GROUP, at.shape[0] - first)
            for i in range(count):
                frames[i].data = data + at[first + i]
                frames[i].seen_ns = times[first + i]
                frames[i].offset = at[first + i]
                frames[i].length = <uint32_t>min(SPAN_LIMIT, sizes[first + i])
                frames[i].wire_length = <uint32_t>min(SPAN_LIMIT, on_wire[first + i])
                frames[i].linktype = linktype
            done = 0
            self._walk_frames(frames, count, False, &done)
            first += count
        return 0

    # Up to GROUP frames.
    cdef int _walk_frames(self, const frame_s *frames, int count, bint ticks, int *done) except -1 nogil:
        cdef decoded_s decoded[GROUP]
        decode_frames(frames, count, self.verify, &self.pool_.table, decoded, 1)
        return self._walk_decoded(frames, decoded, count, ticks, 0, done)

    # Up to GROUP decoded frames, of which only those of that shard are ours: what they need is fetched from memory, then each is taken in.
    cdef int _walk_decoded(
        self, const frame_s *frames, const decoded_s *decoded, int count, bint ticks, int shard, int *done
    ) except -1 nogil:
        cdef connection_s *likely_ones[GROUP]
        cdef int64_t step
        cdef bint plain = False       # clock_before differs from clock in nothing but `now`
        cdef int i, found = 0
        for i in range(count):
            if decoded[i].shard == shard and decoded[i].verdict == 0:
                prefetch_slot(&self.pool_.table, decoded[i].hash)
        self.pool_.lock_without_gil()
        try:
            for i in range(count):
                if decoded[i].shard == shard and decoded[i].verdict == 0:
                    likely_ones[found] = prefetch_connection(&self.pool_.table, decoded[i].hash)
                    found += 1
            if not self.pool_.counts:
                self.pool_.prefetch_streams(likely_ones, found)
            for i in range(count):
                done[0] += 1
                step = frames[i].seen_ns - self.clock.now
                if 0 <= step <= CLOCK_STEP_NS and self.clock.has_now and not self.clock.has_suspect:
                    if plain:
                        self.clock_before.now = self.clock.now
                    else:
                        self.clock_before, plain = self.clock, True
                    self.clock.now = frames[i].seen_ns
                else:
                    self._observe(frames[i].seen_ns)
                    plain = False
                if decoded[i].shard == shard:
                    self._decoded(&frames[i], &decoded[i])
                if ticks and not (self.has_ticked and self.ticked_ns <= self.clock.now < self.tick_ns):
                    self._tick()
        finally:
            self.pool_.unlock()
            self._drop_gil()
        return 0

    cdef int _walk_some(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, const int *order, int count
    ) except -1 nogil:
        cdef connection_s *likely_ones[GROUP]
        cdef int i, found = 0
        self.clock_before = self.clock
        for i in range(count):
            if decoded[order[i]].verdict == 0:
                prefetch_slot(&self.pool_.table, decoded[order[i]].hash)
        self.pool_.lock_without_gil()
        try:
            for i in range(count):
                if decoded[order[i]].verdict == 0:
                    likely_ones[found] = prefetch_connection(&self.pool_.table, decoded[order[i]].hash)
                    found += 1
            if not self.pool_.counts:
                self.pool_.prefetch_streams(likely_ones, found)
            for i in range(count):
                self.clock.now = now_ns[order[i]]
                self._decoded(&frames[order[i]], &decoded[order[i]])
        finally:
            self.pool_.unlock()
            self._drop_gil()
        return 0

    # One frame, with the clock set.
    cdef int _decoded(self, const frame_s *frame, const decoded_s *decoded) except -1 nogil:
        cdef const segment_s *segment = &decoded.segment
        cdef text_s text
        if decoded.verdict != 0:
            self.verdicts[decoded.verdict] += 1
            return 0
        text.seen_ns = frame.seen_ns
        text_of(segment, &text, self.base + frame.offset + (segment.payload - frame.data))
        return self._segment(<const key_s *>segment, decoded.hash, segment.flags, &text, True)

    cdef void _drop_gil(self) noexcept nogil:
        if self.holds_gil:
            self.holds_gil = False
            PyEval_SaveThread()

    # -- one segment ------------------------------------------------------------------------------------------------

    cdef int _segment(self, const key_s *key, uint32_t hash, uint8_t flags, text_s *text, bint from_frame) except -1 nogil:
        cdef connection_s *connection = find(&self.pool_.table, key, hash)
        cdef bint opens, no_ack
        if connection != NULL and take_in_order(self, connection, flags, text):
            self.verdicts[0] += from_frame
            self.counts[SEGMENTS] += 1
            self.counts[BYTES_CAPTURED] += text.size
            return self._hand_over(connection) if self.out_count else 0
        opens = (flags & SYN or text.wire) and not flags & RST
        no_ack = not flags & (SYN | RST | ACK) and (text.wire or flags & FIN)
        connection = NULL
        if not no_ack:
            self._find(key, hash, opens, text.seen_ns, &connection)
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
                with gil:
                    _log.debug("%s: nothing to open a stream with", key_object(key))
            return 0
        try:
            self._take_in(connection, flags, text)
        finally:
            if self.out_count:
                self._drop_pieces()
            if connection.state == OPEN and not connection.has & LISTED and waits(connection):
                self.pool_.list_waiting(connection)
        if self.has_late_error:
            with gil:
                raise_late_error(self)
        return 0

    # The connection of the key, not served by anybody now; a new one without a stream where there is none and the segment opens one.
    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil:
        cdef connection_s *connection
        cdef bint refused
        while True:
            connection = find(&self.pool_.table, key, hash)
            if connection != NULL:
                if owner_of(connection) != 0:
                    refused = True
                    try:
                        self.pool_.wait_for(connection)
                        refused = False
                    finally:
                        if refused:
                            self.clock = self.clock_before  # as if it had not been called
                    continue
                if connection.state != CLOSED or not self.pool_.forget(connection, self._forget_before()):
                    break
            if not opens:
                connection = NULL
                break
            self.pool_.forget_closed_before(self._forget_before())
            if not self.pool_.is_ready():
                self.pool_.make_ready()
            connection = self.pool_.take(key, hash, seen_ns)
            self.counts[STREAMS_OPENED] += self.pool_.counts  # whose streams need no opening
            break
        found[0] = connection
        return 0

    cdef int _take_in(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        if connection.state == CLOSED:
            if not self._reopens(connection, flags, text):
                self.counts[AFTER_CLOSE] += text.size
                return 0
            self._restart(connection, connection.successor, text.size, text.seen_ns)
        elif not connection.has & SERVED:
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

    cdef int _open_stream(self, connection_s *connection, uint32_t at_stake) except -1 nogil:
        if not self.pool_.counts:
            self._take_gil()
            with gil:
                self._make_stream(connection, at_stake)
        self.counts[STREAMS_OPENED] += 1
        return 0

    cdef int _make_stream(self, connection_s *connection, uint32_t at_stake) except -1:
        self.pool_.own(connection)
        try:
            try:
                stream = self.pool_.new(net_flow_of(&connection.key), transport_flow_of(&connection.key))
                reassembled, complete = stream.reassembled, stream.reassembly_complete
            finally:
                self.pool_.disown(connection)
        except BaseException:
            self.counts[FACTORY_ERROR] += at_stake
            self._drop(&connection.pages, FACTORY_ERROR)
            self.pool_.remove(connection)
            self.pool_.free_removed(connection)
            raise
        self.pool_.set_stream(connection, stream, reassembled, complete)
        return 0

    # RST: only at the exact sequence number expected (RFC 5961 3.2). Its text is not part of the stream.
    cdef int _reset(self, connection_s *connection, text_s *text) except -1 nogil:
        cdef bint exact
        self.counts[RST_TEXT] += text.size
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
        if not connection.has & HAS_START:
            self._skip(connection)
        return 0

    cdef int _syn(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        cdef uint32_t isn = text.seq
        text.seq += 1
        if not connection.has & HAS_START:
            if waits(connection) and not 0 <= difference(text.seq, first_held(connection)) <= SYN_REACH:
                self._begin_anew(connection, NULL, text.size, text.seen_ns)
            if self.debug:
                with gil:
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
    cdef int _remember(self, connection_s *connection, text_s *text) except -1 nogil:
        cdef successor_s *successor
        self._drop_successor(connection)
        self.counts[SYN_REMEMBERED] += 1
        successor = <successor_s *>PyMem_RawCalloc(1, sizeof(successor_s))
        if successor == NULL:
            with gil:
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

    cdef int _continue(self, connection_s *connection, uint8_t flags, text_s *text) except -1 nogil:
        cdef successor_s *successor = connection.successor
        if successor != NULL and confirms(connection, successor, text.seq):
            connection.successor = NULL
            self._begin_anew(connection, successor, text.size, text.seen_ns)
        return self._text(connection, flags, text, False)

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
        return (
            connection.successor != NULL
            and (text.wire or flags & FIN)
            and confirms(connection, connection.successor, text.seq)
        )

    # The stream at hand is over, with all that it holds; the same connection begins again. Frees the successor.
    cdef int _begin_anew(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil:
        self._finish_pieces(connection)
        if (connection.has & SERVED) != COUNTED:
            self._take_gil()
            with gil:
                try:
                    self._end_stream(connection, KEPT)
                except BaseException as raised:
                    self.late_error, self.has_late_error = raised, True  # raised once the segment at hand is taken in
        return self._restart(connection, successor, at_stake, seen_ns)

    # A new stream under the same key, from the SYN that was remembered, or from the one at hand. Frees the successor.
    cdef int _restart(self, connection_s *connection, successor_s *successor, uint32_t at_stake, int64_t seen_ns) except -1 nogil:
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
            self._emit(connection, NOTHING, 0, syn_seen_ns, -1, True)
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
        if ahead == -1 - SPAN_LIMIT:  # neither ahead nor behind
            self.counts[OUT_OF_WINDOW] += text.size
            return 0
        if ahead <= 0:
            return self._deliver(connection, text, start)
        if text.wire:
            if ahead + text.wire > SPAN_LIMIT or (ahead > self.max_gap and self._is_wild(connection, text)):
                self.counts[OUT_OF_WINDOW] += text.size
                return 0
            self.pool_.note_held(text.seen_ns)
            self._hold_in(&connection.pages, text, False)
            if self.debug:
                with gil:
                    _log.debug("%s: %d bytes ahead, held", key_object(&connection.key), ahead)
            self._keep_limits(connection)
        return 0

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
            self.pool_.note_held(seen_ns)
            cut_pages(connection, self.counts)
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
            self._hold_in(&connection.pages, text, True)
            if first or difference(connection.phase.before.early_end, text.seq + text.wire) > 0:
                connection.phase.before.early_end = text.seq + text.wire
        if not waits(connection):
            return 0
        connection.phase.before.early_segments += 1
        if 0 <= self.start_wait_segments <= connection.phase.before.early_segments or (
            0 <= self.start_wait_ns <= text.seen_ns - connection.created_ns
        ):
            self._skip(connection)
        return self._keep_limits(connection)

    # -- what arrives in order --------------------------------------------------------------------------------------

    # A segment that begins at or before next_seq: what is new of it goes out, around pages that hold part of it already.
    cdef int _deliver(self, connection_s *connection, text_s *text, bint start) except -1 nogil:
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
                self._emit(connection, NOTHING, 0, text.seen_ns, -1, True)
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
        if text.wire > text.size:
            note_cut(connection, text.seq + text.wire)
        self._advance(connection)
        if (before ^ connection.next_seq) >> 30:
            note_past_start(connection)
        return 0

    # Everything that is contiguous with next_seq now, and over what the capture cut off.
    cdef int _advance(self, connection_s *connection) except -1 nogil:
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
    cdef void _jump(self, connection_s *connection, int64_t missing) noexcept nogil:
        connection.next_seq += <uint32_t>missing
        if connection.skip >= 0:  # else they belong to an unknown number anyway
            connection.skip += missing
            self.counts[BYTES_SKIPPED] += missing

    # The bytes of the text from position to end.
    cdef int _emit_text(self, connection_s *connection, text_s *text, int64_t position, int64_t end, bint start) except -1 nogil:
        cdef int64_t offset = -1 if text.offset < 0 or position == end else text.offset + position
        return self._emit(connection, text.data + position, <uint32_t>(end - position), text.seen_ns, offset, start)

    cdef int _emit(
        self, connection_s *connection, const uint8_t *data, uint32_t size, int64_t seen_ns, int64_t offset, bint start
    ) except -1 nogil:
        cdef piece_s *piece
        self.counts[BYTES_DELIVERED] += size
        if (connection.has & SERVED) == COUNTED:
            tally_piece(connection, size, seen_ns)
        else:
            piece = self._new_piece()
            piece.data, piece.size, piece.page = data, size, NULL
            piece.skip, piece.seen_ns, piece.offset = connection.skip, seen_ns, offset
            piece.flags = PIECE_START if start else 0
        connection.skip = 0
        return 0

    # The first page goes out; it begins at or before next_seq.
    cdef int _emit_page(self, connection_s *connection) except -1 nogil:
        cdef page_s *page = pop_first(&connection.pages)
        connection.next_seq = page_end(page)
        if page.missing:
            note_cut(connection, page_end(page) + page.missing)
        if page.length == 0:
            give_back_page(page)
            return 0
        self._emit(connection, page.bytes, page.length, page.seen_ns, page.offset, False)
        if (connection.has & SERVED) == COUNTED:
            give_back_page(page)
        else:
            self.out[self.out_count - 1].page = page
            lend_page(page)
        return 0

    cdef piece_s *_new_piece(self) except NULL nogil:
        cdef Py_ssize_t room
        cdef piece_s *grown
        if self.out_count == self.out_room:
            room = max(<Py_ssize_t>16, self.out_room * 2)
            grown = <piece_s *>PyMem_RawRealloc(self.out, room * sizeof(piece_s))
            if grown == NULL:
                with gil:
                    raise MemoryError()
            self.out, self.out_room = grown, room
        self.out_count += 1
        return &self.out[self.out_count - 1]

    # They were taken in, or nobody takes them any more.
    cdef void _drop_pieces(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.out_count):
            if self.out[i].page != NULL:
                return_page(self.out[i].page)
        self.out_count = 0

    # -- what arrives early -----------------------------------------------------------------------------------------

    # Copy into pages what they do not hold yet: the bytes captured first win, one by one.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure) except -1 nogil:
        cdef int64_t size = text.size
        cdef int64_t position = 0, at, held
        cdef page_s *prev = find_place(pages, text.seq)
        cdef page_s *next_ = pages.first if prev == NULL else prev.next
        if prev != NULL:
            held = difference(text.seq, page_end(prev))
            if held > 0:
                position = min(held, size)
                self._compare(prev, <uint32_t>(prev.length - held), text, 0, position, unsure)
        while True:
            at = size if next_ == NULL else min(size, <int64_t>difference(text.seq, next_.seq))
            if position < at:
                prev = self._push(pages, prev, next_, text, position, at)
            if next_ == NULL or at >= size:
                break
            position = min(size, at + next_.length)
            self._compare(next_, 0, text, at, position, unsure)
            prev, next_ = next_, next_.next
        if text.wire > text.size:
            # Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one.
            if prev == NULL or (not size and difference(page_end(prev), text.seq) > 0):
                prev = self._push(pages, prev, next_, text, 0, 0)
            prev.missing = <uint32_t>max(<int64_t>prev.missing, <int64_t>difference(page_end(prev), text.seq + text.wire))
        return 0

    # The text's bytes from position to end, as a chain of pages, go in between two neighbours. Returns the last page.
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end
    ) except NULL nogil:
        cdef page_s *first = NULL
        cdef page_s *last = NULL
        cdef page_s *page
        while True:
            page = take_page(&self.cache.state, text.seen_ns, -1 if text.offset < 0 or position == end else text.offset + position)
            page.seq = text.seq + <uint32_t>position
            hold_bytes(page, text.data + position, <uint32_t>min(end - position, <int64_t>PAGE_SIZE))
            if last == NULL:
                first = page
            else:
                last.next, page.prev = page, last
            last = page
            position += PAGE_SIZE
            if position >= end:
                break
        push_between(pages, prev, next_, first, last)
        return last

    # Count the text's bytes from position to end as a copy of those that a page holds, and those of them that differ.
    cdef void _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) noexcept nogil:
        cdef const uint8_t *copy = text.data + position
        cdef uint32_t size = <uint32_t>(end - position), i
        self.counts[OVERLAPPING] += size
        if memcmp(page.bytes + offset, copy, size) == 0:
            return
        for i in range(size):
            self.counts[CONFLICTING] += page.bytes[offset + i] != copy[i]
        if unsure and page.length == 1 and page.prev == NULL:
            # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
            hold_bytes(page, copy, 1)
            page.offset = -1 if text.offset < 0 else text.offset + position

    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil:
        return pages.count > 0 and (0 < self.limit_connection <= pages.count or 0 < self.limit_total <= self._pages_used())

    # By all that share the limit. What the others' threads have may be a few pages old.
    cdef int64_t _pages_used(self) noexcept nogil:
        cdef int64_t used = self.cache.state.used
        cdef int i
        for i in range(self.sharer_count):
            used += self.sharers[i].used
        return used

    cdef int _keep_limits(self, connection_s *connection) except -1 nogil:
        while self._is_at_limit(&connection.pages):
            if self.debug:
                with gil:
                    _log.debug("%s: page limit reached with %d pages", key_object(&connection.key), connection.pages.count)
            self._skip(connection)
        return 0

    # Stop waiting for the lowest hole: over it, and on with what is contiguous then.
    cdef int _skip(self, connection_s *connection) except -1 nogil:
        cdef uint32_t target = first_held(connection)
        if connection.has & HAS_START:
            self._jump(connection, difference(connection.next_seq, target))
            connection.cut_end = connection.next_seq
        else:
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

    # -- serving the stream -----------------------------------------------------------------------------------------

    # Commit what this call has led to, then tell the stream.
    cdef int _serve(self, connection_s *connection) except -1 nogil:
        if not ended(connection):
            return self._hand_over(connection) if self.out_count else 0
        if connection.skip or not self.out_count:
            self._emit(connection, NOTHING, 0, connection.end_ns, -1, False)
        if self.out_count:
            self.out[self.out_count - 1].flags |= PIECE_END
        self._drop(&connection.pages, AFTER_END)
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)  # its SYN is still remembered
        self.counts[STREAMS_CLOSED] += 1
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
            self._skip(connection)
        at_end = ended(connection)
        if connection.skip or (at_end and not self.out_count):
            self._emit(connection, NOTHING, 0, connection.end_ns if at_end else connection.last_seen_ns, -1, False)
        if at_end and self.out_count:
            self.out[self.out_count - 1].flags |= PIECE_END
        self._drop_successor(connection)
        self.counts[STREAMS_CLOSED] += 1
        return 0

    # `out` goes to the stream, which goes on.
    cdef int _hand_over(self, connection_s *connection) except -1 nogil:
        cdef served_s *served = &connection.stream.served
        cdef bint alone, held
        if (connection.has & SERVED) == NATIVE:
            alone = calls_out(served.stream)
            held = self.holds_gil
            self._drop_gil()  # streams have locks of their own, which a thread that waits for the GIL may hold
            if alone:
                self.pool_.own(connection)
            try:
                take(served.stream, self.out, self.out_count)
            finally:
                if alone:
                    self.pool_.disown_without_gil(connection)
                self._drop_pieces()
                if held and self.keeps_gil:
                    self._take_gil()
            return 0
        self._take_gil()
        return hand_to_python(<void *>self, connection)

    cdef int _hand_to_python(self, connection_s *connection) except -1:
        cdef served_s *served = &connection.stream.served
        try:
            if self.coalesce:
                return self._gather(connection)
            served.gatherer = 0
            self.pool_.own(connection)
            try:
                self._call(served, False)
            finally:
                self.pool_.disown(connection)
        finally:
            self._drop_pieces()  # those that no object could be made for
        return 0

    # `out` goes to the stream, and it is told that this was all. State is changed before, as `after` says.
    cdef int _end_stream(self, connection_s *connection, int after) except -1 nogil:
        cdef uint8_t how = connection.has & SERVED
        cdef served_s served = connection.stream.served
        if after == REMEMBERED:
            self.pool_.close(connection, self.clock.now if self.clock.has_now else connection.last_seen_ns)
        elif after == FORGOTTEN:
            self.pool_.remove(connection)
        if how == COUNTED:
            if after == FORGOTTEN:
                self.pool_.free_removed(connection)
            return 0
        self._take_gil()
        try:
            finish_with_gil(<void *>self, connection, &served, how == NATIVE)
        finally:
            self._drop_pieces()
            if after == FORGOTTEN:
                self.pool_.free_removed(connection)
        return 0

    cdef int _finish_with_gil(self, connection_s *connection, const served_s *served, bint native) except -1:
        self.pool_.own(connection)
        try:
            if native:
                self._finish_native(served)
            else:
                self._call(served, True)
        finally:
            self.pool_.disown(connection)
        return 0

    cdef int _finish_native(self, const served_s *served) except -1:
        try:
            with nogil:
                if self.out_count:
                    take(served.stream, self.out, self.out_count)
        finally:
            self._complete(served, True)
        return 0

    # The stream's last call. Its objects are let go of.
    cdef int _complete(self, const served_s *served, bint native) except -1:
        complete = self.pool_.served[<size_t>served.slot * PER_STREAM + COMPLETE]
        try:
            if complete is None:
                with nogil:
                    finish(served.stream)
            elif native or served.stream == NULL:
                complete()
            else:
                complete(<object>served.stream)
        finally:
            self.pool_.free_slot(served.slot)
        return 0

    cdef void _take_gil(self) noexcept nogil:
        if not self.holds_gil:
            PyEval_RestoreThread(PyGILState_GetThisThreadState())
            self.holds_gil = True

    # `out` as objects; the pages in it are lent. A piece of memory that its owner may change gets bytes of its own.
    cdef list _piece_objects(self):
        cdef list pieces
        cdef Py_ssize_t i
        if self.out_count == 1:
            pieces = [piece_of(&self.out[0], self.packet, self.shared)]
        else:
            pieces = []
            for i in range(self.out_count):
                pieces.append(piece_of(&self.out[i], self.packet, self.shared))
        self.out_count = 0
        return pieces

    # Without the lock: a Python stream gets what was put aside for it, and `out`. Whoever keeps a piece gets its bytes, not a page.
    cdef int _call(self, const served_s *served, bint last) except -1:
        cdef size_t at = <size_t>served.slot * PER_STREAM
        cdef list pieces = self._piece_objects()
        cdef list gathered = self.pool_.served[at + GATHERED]
        if gathered is not None:
            self.pool_.served[at + GATHERED] = None
            gathered.extend(pieces)
            pieces = gathered
            gathered = None
        try:
            if pieces:
                reassembled = self.pool_.served[at + REASSEMBLED]
                if served.stream != NULL:
                    reassembled(<object>served.stream, pieces)
                else:
                    reassembled(pieces)
        finally:
            settle(pieces)
            if last:
                self._complete(served, False)
        return 0

    # -- what is put aside ------------------------------------------------------------------------------------------

    # `out` is put aside with the stream, where everybody who serves it finds it, and noted to be given out by this assembler.
    cdef int _gather(self, connection_s *connection) except -1:
        cdef served_s *served = &connection.stream.served
        cdef listed_s *grown
        cdef size_t room
        cdef list pieces = self._piece_objects()
        cdef size_t at = <size_t>served.slot * PER_STREAM + GATHERED
        cdef list gathered = self.pool_.served[at]
        if gathered is None:
            gathered = self.pool_.served[at] = pieces
        else:
            gathered.extend(pieces)
        if served.gatherer != self.number:
            served.gatherer = self.number
            if self.gathered_count == self.gathered_room:
                room = max(<size_t>64, self.gathered_room * 2)
                grown = <listed_s *>PyMem_RawRealloc(self.gathered_for, room * sizeof(listed_s))
                if grown == NULL:
                    raise MemoryError()
                self.gathered_for, self.gathered_room = grown, room
            self.gathered_for[self.gathered_count].connection = connection
            self.gathered_for[self.gathered_count].serial = connection.serial
            self.gathered_count += 1
            self.gathered.append(gathered)
        return 0

    # What was put aside goes out, but where somebody else has given it out meanwhile.
    #
    # An exception of user code does not keep the other streams from being served; the first one, or `error`, is raised at the end.
    cdef int _give_gathered(self, object error) except -1:
        cdef connection_s *connection
        cdef size_t count = self.gathered_count, i
        cdef list gathered = self.gathered
        self.gathered, self.gathered_count = [], 0
        for i in range(count):
            connection = self.gathered_for[i].connection
            try:
                self.pool_.lock()
                try:
                    if not self._acquire_open(&self.gathered_for[i]):
                        continue
                    is_there = self.pool_.served[<size_t>connection.stream.served.slot * PER_STREAM + GATHERED] is gathered[i]
                    gathered[i] = None  # else every piece would count as kept by somebody
                    if is_there:
                        self._hand_over(connection)
                finally:
                    self.pool_.unlock()
            except BaseException as raised:
                error = error or raised
        if error is not None:
            raise error
        return 0

    # -- all connections --------------------------------------------------------------------------------------------

    # Of every open connection, oldest first: give out what is held since before held_ns, start what waits for its start since
    # before start_ns, close what has seen nothing since idle_ns.
    cdef int _walk_all(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef connection_s *connection = self.pool_.open.oldest
        cdef listed_s *picked
        cdef size_t count = 0
        if connection == NULL:
            return 0
        picked = <listed_s *>PyMem_RawMalloc(self.pool_.open.count * sizeof(listed_s))
        if picked == NULL:
            with gil:
                raise MemoryError()
        self.pool_.seen_bound = ALWAYS_NS
        while connection != NULL:
            if waits(connection) or connection.last_seen_ns < idle_ns:
                picked[count].connection = connection
                picked[count].serial = connection.serial
                count += 1
            if connection.last_seen_ns >= idle_ns:
                self.pool_.seen_bound = min(self.pool_.seen_bound, connection.last_seen_ns)
            connection = connection.newer
        return self._walk(picked, count, held_ns, idle_ns, start_ns, flushed, closed)

    # The same, where none is idle: only those that wait are looked at, and of those only what may be due.
    cdef int _walk_listed(self, int64_t held_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef connection_s *connection
        cdef listed_s *entry
        cdef listed_s *picked
        cdef size_t count = 0, kept = 0, i
        cdef uint32_t target
        cdef bint late = self.pool_.late_ns < held_ns
        picked = <listed_s *>PyMem_RawMalloc(max(<size_t>1, self.pool_.listed_count) * sizeof(listed_s))
        if picked == NULL:
            with gil:
                raise MemoryError()
        if late:
            self.pool_.late_ns = ALWAYS_NS
        for i in range(self.pool_.listed_count):
            entry = &self.pool_.listed[i]
            if entry.oldest_ns < held_ns or entry.oldest_ns == NEVER_NS or late:
                connection = entry.connection
                if connection.serial != entry.serial or connection.state != OPEN:
                    continue
                if not waits(connection):
                    connection.has &= ~LISTED
                    continue
                if waits_until(connection, held_ns, &target) or waits_for_start_since(connection, start_ns):
                    picked[count] = entry[0]
                    count += 1
                if connection.has & HAS_START:
                    entry.oldest_ns = oldest_held(connection)
                    self.pool_.listed_high = max(self.pool_.listed_high, entry.oldest_ns)
            self.pool_.listed[kept] = entry[0]
            kept += 1
        self.pool_.listed_count = kept
        if count == 0:
            PyMem_RawFree(picked)
            return 0
        qsort(picked, count, sizeof(listed_s), by_age)
        return self._walk(picked, count, held_ns, NEVER_NS, start_ns, flushed, closed)

    # Those that were picked, while no user code could change the lists. Frees `picked`.
    cdef int _walk(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil:
        cdef size_t i
        try:
            if self.pool_.counts:
                for i in range(count):
                    if i + WALK_AHEAD < count:
                        prefetch(picked[i + WALK_AHEAD].connection)
                    if i + WALK_AHEAD // 2 < count:
                        prefetch_slot(
                            &self.pool_.table, hash_of(&self.pool_.table, &picked[i + WALK_AHEAD // 2].connection.key)
                        )
                    self._walk_one(&picked[i], held_ns, idle_ns, start_ns, flushed, closed)
            else:
                self._take_gil()
                with gil:
                    self._walk_collecting(picked, count, held_ns, idle_ns, start_ns, flushed, closed)
        finally:
            PyMem_RawFree(picked)
        return 0

    # An exception of user code does not keep the other connections from being served; the first one is raised at the end.
    cdef int _walk_collecting(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1:
        cdef bint kept = self.keeps_gil
        cdef size_t i
        error = None
        self.keeps_gil = True
        for i in range(count):
            try:
                self._walk_one(&picked[i], held_ns, idle_ns, start_ns, flushed, closed)
            except BaseException as raised:
                error = error or raised
        self.keeps_gil = kept
        if error is not None:
            raise error
        return 0

    cdef int _walk_one(
        self, listed_s *picked, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil:
        cdef connection_s *connection = picked.connection
        cdef bint gave_out, idle
        if not self._acquire_open(picked):
            return 0
        try:
            gave_out = self._give_out(connection, held_ns, start_ns)
            idle = connection.last_seen_ns < idle_ns and not ended(connection)
            flushed[0] += gave_out or idle
            closed[0] += idle or ended(connection)
            if idle:
                self._close(connection)
            elif gave_out:
                self._serve(connection)
        finally:
            if self.out_count:
                self._drop_pieces()
        return 0

    # Nobody serves it now. False if it is no longer the one that was picked, no longer open, or served by this very thread.
    cdef bint _acquire_open(self, const listed_s *picked) except -1 nogil:
        cdef connection_s *connection = picked.connection
        while connection.serial == picked.serial and connection.state == OPEN:
            if owner_of(connection) == 0:
                return True
            if owner_of(connection) == PyThread_get_thread_ident():
                self.pool_.seen_bound = min(self.pool_.seen_bound, connection.last_seen_ns)  # it may be idle, and stays
                return False
            self.pool_.wait_for(connection)
        return False

    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns) except -1 nogil:
        cdef uint32_t target
        if not waits_until(connection, held_ns, &target):
            if not waits_for_start_since(connection, start_ns):
                return False
            self._skip(connection)
            return True
        while waits(connection) and is_ahead(connection, target):
            self._skip(connection)
        return True


# What nearly every segment is: the next bytes, with nothing held; or no bytes at all. What is to be handed over goes to `out`. False: it
# is something else, or the connection has an owner, and nothing was done.
cdef inline bint take_in_order(AssemblerBase self, connection_s *connection, uint8_t flags, const text_s *text) noexcept nogil:
    cdef tally_s *tally = &connection.stream.tally
    cdef piece_s *piece
    cdef uint32_t before = connection.next_seq
    cdef uint8_t how = connection.has & SERVED
    if (
        connection.state != OPEN
        or how == 0
        or (flags & (FIN | SYN | RST | ACK)) != ACK
        or (how != COUNTED and connection.stream.served.owner != 0)
    ):
        return False
    if text.wire:
        if (
            (connection.has & (HAS_START | HAS_END)) != HAS_START
            or text.seq != before
            or text.size != text.wire
            or connection.pages.count
            or connection.skip
        ):
            return False
        if how == COUNTED:
            tally.length += text.size
            tally.first_seen_ns = min(tally.first_seen_ns, text.seen_ns)
            tally.last_seen_ns = max(tally.last_seen_ns, text.seen_ns)
        elif self.out_room == 0:
            return False
        else:
            piece = self.out
            piece.data, piece.size, piece.page = text.data, text.size, NULL
            piece.skip, piece.seen_ns, piece.offset, piece.flags = 0, text.seen_ns, text.offset, 0
            self.out_count = 1
        connection.next_seq = connection.cut_end = before + text.size
        self.counts[BYTES_DELIVERED] += text.size
        if (before ^ connection.next_seq) >> 30:
            note_past_start(connection)
    connection.last_seen_ns = max(connection.last_seen_ns, text.seen_ns)
    return True


cdef void observe(clock_s *clock, int64_t seen_ns) noexcept nogil:
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


cdef void start_at(connection_s *connection, uint32_t isn) noexcept nogil:
    connection.has |= HAS_ISN
    connection.isn = isn
    begin_at(connection, isn + 1)


# It holds something, and its start has not come since that time.
cdef bint waits_for_start_since(connection_s *connection, int64_t start_ns) noexcept nogil:
    return not connection.has & HAS_START and connection.created_ns < start_ns and waits(connection)


# In order of creation. Serials are compared as sequence numbers are: they wrap around.
cdef int by_age(const void *a, const void *b) noexcept nogil:
    return -difference((<const listed_s *>a).serial, (<const listed_s *>b).serial)


# Bytes of a COUNTED stream, behind the gap that is to be reported now.
cdef void tally_piece(connection_s *connection, uint32_t size, int64_t seen_ns) noexcept nogil:
    cdef tally_s *tally = &connection.stream.tally
    tally.length += size
    tally.first_seen_ns = min(tally.first_seen_ns, seen_ns)
    tally.last_seen_ns = max(tally.last_seen_ns, seen_ns)
    if connection.skip > 0:
        connection.skipped += connection.skip
        connection.phase.after.gap_count += 1


cdef void decode_frames(
    const frame_s *frames, int count, bint verify_checksums, const table_s *table, decoded_s *decoded, int shards
) noexcept nogil:
    cdef int i
    for i in range(count):
        decoded[i].verdict = decode(
            frames[i].data, frames[i].length, frames[i].wire_length, frames[i].linktype, verify_checksums, &decoded[i].segment
        )
        decoded[i].shard = 0
        if decoded[i].verdict == 0:
            decoded[i].hash = hash_of(table, <const key_s *>&decoded[i].segment)
            if shards > 1:
                decoded[i].shard = <uint8_t>((<uint64_t>(decoded[i].hash & BOTH_DIRECTIONS) * shards) >> 31)


cdef void text_of(const segment_s *segment, text_s *text, int64_t offset) noexcept nogil:
    text.data = segment.payload
    text.seq = segment.seq
    text.size = segment.payload_length
    text.wire = segment.wire_payload_length
    text.offset = offset


# A piece that somebody keeps holds its own bytes from then on, not a page or a part of something bigger.
cdef int settle(list pieces) except -1:
    cdef bint kept = Py_REFCNT(<PyObject *>pieces) > 1
    cdef Py_ssize_t i
    for i in range(len(pieces)):
        if kept or Py_REFCNT(PyList_GET_ITEM(<PyObject *>pieces, i)) > 1:
            piece = pieces[i]
            if type(piece) is Reassembly:
                settle_piece(<Reassembly>piece)
    return 0


# What a stream raised when it ended early is raised once the segment at hand is taken in; where that raises too, it becomes its context.
cdef int raise_late_error(AssemblerBase assembler) except -1:
    error = assembler.late_error
    assembler.late_error, assembler.has_late_error = None, False
    raise error


cdef int join_late_error(AssemblerBase assembler, object raised) except -1:
    if assembler.has_late_error:
        if raised is not assembler.late_error and raised.__context__ is None:
            raised.__context__ = assembler.late_error
        assembler.late_error, assembler.has_late_error = None, False
    return 0


# Copies of a batch's arguments, where they are int64 arrays already: user code could change them. None where one is something else.
cdef tuple plain_arrays(object offsets, object lengths, object timestamps_ns, object wire_lengths):
    import numpy as np            # loaded by the first PageCache

    for each in (offsets, lengths, timestamps_ns, wire_lengths):
        if each is not None and not (type(each) is np.ndarray and each.ndim == 1 and each.dtype == np.int64 and each.flags.c_contiguous):
            return None
    if offsets is None or not len(offsets) == len(lengths) == len(timestamps_ns):
        return None
    if wire_lengths is not None and len(wire_lengths) != len(offsets):
        return None
    return offsets.copy(), lengths.copy(), timestamps_ns.copy(), None if wire_lengths is None else wire_lengths.copy()


# batch_arrays would not refuse them.
cdef bint is_sound(const int64_t[::1] at, const int64_t[::1] sizes, const int64_t[::1] times, object wire_lengths, int64_t size) except -1:
    cdef const int64_t[::1] on_wire = sizes if wire_lengths is None else wire_lengths
    cdef Py_ssize_t i
    for i in range(at.shape[0]):
        if at[i] < 0 or sizes[i] < 0 or at[i] > size - sizes[i] or not -NS_LIMIT <= times[i] <= NS_LIMIT or on_wire[i] < 0:
            return False
    return True


cdef const uint8_t *bytes_of(object view) except? NULL:
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)  # the view itself keeps the memory where it is
    return <const uint8_t *>buffer.buf

# This SYN began the connection: the same again, or late where it was missed.
cdef bint is_own_syn(connection_s *connection, uint32_t seq) noexcept nogil:
    if connection.has & HAS_ISN:
        return seq == connection.isn
    return not connection.has & PAST_START and 0 <= difference(seq + 1, connection.first_seq) <= SYN_REACH


# A segment continues from another SYN, and not from what is open.
cdef bint confirms(connection_s *connection, successor_s *successor, uint32_t seq) noexcept nogil:
    cdef int64_t ahead, away
    if not connection.has & HAS_START or seq == connection.next_seq:
        return False
    ahead = difference(successor.isn + 1, seq)
    if ahead == 0 or seq == successor.next_seq:
        return True
    away = difference(connection.next_seq, seq)
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


# Nothing is held beyond the end.
cdef void cut_pages(connection_s *connection, uint64_t *counts) noexcept nogil:
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
