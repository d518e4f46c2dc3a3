"""`AssemblerBase`: the conductor. Decodes frames, finds the connection of each segment, and takes in at once what most of them are: the
next bytes of a stream. Everything else goes to the engine (engine.pyx).

Called once a packet. The path of a segment in order, top to bottom: _walk_frames (or assemble_frame), _segment, take_in_order, and
_hand_over (serving.pyx) where its stream is not a count. It copies and stores no payload.
"""

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from .clock cimport ALWAYS_NS, NEVER_NS, clock_s, observe
from .connection cimport (
    COUNTED,
    HALF_OPEN,
    HAS_END,
    HAS_START,
    LISTED,
    OPEN,
    SERVED,
    SYN_TEXT_HELD,
    connection_s,
    key_object,
    key_s,
    note_past_start,
    tally_s,
    waits,
)
from .conversation cimport HAS_ACK, is_watched, note_in_order, peer_of, side_of, side_s
from .decode cimport (
    ACK,
    BAD_CHECKSUM,
    FIN,
    FRAGMENT,
    JUDGE_CHECKSUMS,
    LEVEL_IPV6,
    RST,
    SEGMENT,
    SYN,
    TUNNEL_BITS,
    UNKNOWN_LINKTYPE,
    URG,
    VERIFY_CHECKSUMS,
    decode,
    fragment_s,
    segment_s,
)
from .engine cimport LONG_WAY
from .flushing cimport Flusher
from .fragments cimport Fragments, joined_s
from .holding cimport (
    BYTES_CAPTURED,
    BYTES_DELIVERED,
    COUNTS,
    LAST,
    NO_ACK_FLAG,
    RST_IGNORED,
    RST_TEXT,
    SEGMENTS,
    URGENT_SEGMENTS,
    text_s,
)
from .origin cimport keep_origin, let_go_of_origin, origin_s
from .pages cimport UNIT, PageCache, cache_s, page_counts_s
from .pool cimport (
    BOTH_DIRECTIONS,
    ConversationPoolBase,
    StreamPoolBase,
    find,
    hash_of,
    prefetch,
    prefetch_connection,
    prefetch_slot,
    same_key,
    table_s,
)
from .reassembly cimport note_acked, piece_s
from .records cimport DENSE_BYTES, RecordReader, frame_s
from .senders cimport Senders
from .serving cimport join_late_error, raise_late_error

from .._log import Log
from ..batch import batch_arrays, batch_buffer, check_linktype
from ..clock import NS_LIMIT as CLOCK_NS_LIMIT
from ..clock import to_ns
from ..flow import Flow
from ..packets import plain_frame
from ..segment import TCPSegment
from ..verdict import Verdict

__all__ = ["AssemblerBase"]

cdef int64_t LENGTH_LIMIT = 0x7FFFFFFF  # of lengths: more than any frame has
cdef int64_t NS_LIMIT = CLOCK_NS_LIMIT
cdef uint64_t NO_LIMIT = 0xFFFFFFFFFFFFFFFF  # of connections

cdef enum:
    MAX_LINKTYPES_TOLD = 16       # a capture may have thousands of interfaces

cdef object ETHERNET = 1          # the link type of nearly every frame, as the compiler's and the interpreter's small int

cdef int[GROUP] IN_ORDER
cdef int position
for position in range(GROUP):
    IN_ORDER[position] = position

cdef tuple VERDICT_OF = tuple(Verdict)
assert len(VERDICT_OF) == VERDICTS

_log = Log("tcpreasm.assembly")


cdef class AssemblerBase(Flusher):
    """The engine beneath `Assembler`; see there for what the calls do."""

    def _setup(
        self,
        StreamPoolBase pool not None,
        *,
        max_buffered_pages_total,
        max_buffered_pages_per_connection,
        overlap,
        on_conflict,
        urgent,
        paws,
        syn_data,
        max_buffered_bytes_total,
        max_buffered_bytes_per_connection,
        verify_checksums,
        tunnels,
        defragment,
        fragment_timeout_ns,
        max_fragmented_datagrams,
        max_fragment_bytes,
        start_wait_segments,
        start_wait_ns,
        max_gap,
        hole_timeout_ns,
        acked_timeout_ns,
        idle_timeout_ns,
        closed_timeout_ns,
        max_connections,
        opens_on_data,
        on_evict,
        on_gap,
        depth,
    ):
        """Numbers only; -1 stands for: never, no limit; 0 for a limit of what is held, or a depth: none. verify_checksums: 2 for "auto";
        tunnels: as for decode_frame."""
        self.cache = PageCache()
        self.limit_total = max_buffered_pages_total
        self.limit_connection = max_buffered_pages_per_connection
        self.overlap = overlap
        self.cache.state.keeps_came = self.overlap > LAST
        self.on_conflict, self.tells_conflicts = on_conflict, on_conflict is not None
        self.urgent = urgent
        self.paws = paws
        self.syn_data_waits = syn_data
        self.long_way = LONG_WAY if paws or syn_data or depth else 0
        self.limit_bytes_total = max_buffered_bytes_total
        self.limit_bytes_connection = max_buffered_bytes_per_connection
        self.flags = (<uint32_t>tunnels << TUNNEL_BITS) | (0, VERIFY_CHECKSUMS, JUDGE_CHECKSUMS)[verify_checksums]
        self.defragments = defragment
        self.judges = verify_checksums == 2
        self.settles = self.defragments or self.judges
        self.fragments = Fragments(fragment_timeout_ns, max_fragmented_datagrams, max_fragment_bytes)
        self.senders = Senders()
        self.unknown_linktypes = set()
        self.start_wait_segments = -1 if start_wait_segments is None else min(start_wait_segments, ALWAYS_NS)
        self.start_wait_ns = start_wait_ns
        self.max_gap = max_gap
        self.hole_timeout_ns = hole_timeout_ns
        self.acked_timeout_ns = acked_timeout_ns
        self.idle_timeout_ns = idle_timeout_ns
        self.closed_timeout_ns = closed_timeout_ns
        self.limit_connections = max_connections or NO_LIMIT
        self.opens_on_data = opens_on_data
        self.on_evict = on_evict
        self.tells_evictions = on_evict is not None
        self.on_gap, self.tells_gaps = on_gap, on_gap is not None
        self.depth = depth
        self.debug = _log.is_on()
        pool.lock()
        try:
            self.number = pool.adopt(self.cache)
        finally:
            pool.unlock()
        self.pool_ = pool
        self.pairs = pool.pairs
        self.pairing = <ConversationPoolBase>pool if self.pairs else None
        self.acked_before = NEVER_NS

    # -- the ways in ------------------------------------------------------------------------------------------------

    def assemble(self, net_flow, tcp, timestamp=None, *, timestamp_ns=None):
        """Take in one segment.

        Args:
            net_flow: the packet's addresses; its `tunnels` are not looked at: it is in none.
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
        text.seq, text.ack, text.wire, text.offset = tcp.seq, tcp.ack, tcp.wire_payload_length, -1
        text.urgent, text.header = tcp.urgent, 0
        memset(&key, 0, sizeof(key))
        memcpy(key.src, PyBytes_AS_STRING(src), PyBytes_GET_SIZE(src))
        memcpy(key.dst, PyBytes_AS_STRING(dst), PyBytes_GET_SIZE(dst))
        key.src_port, key.dst_port, key.level = tcp.src_port, tcp.dst_port, LEVEL_IPV6 if PyBytes_GET_SIZE(src) == 16 else 0
        cdef uint32_t flags = tcp.flags
        self._enter()
        try:
            self.packet = payload
            self.packets += 1
            text.packet = self.packets
            self._observe(text.seen_ns)
            self._segment(&key, hash_of(&self.pool_.table, &key), flags | self.long_way, &text, False)
        except BaseException as raised:
            join_late_error(self, raised)
            raise
        finally:
            self._leave()

    def assemble_with_timestamp(self, net_flow, tcp, timestamp):
        """`assemble` with the time as a third argument, as in the model.

        Args:
            net_flow, tcp, timestamp: as for `assemble`.
        """
        self.assemble(net_flow, tcp, timestamp)

    def assemble_frame(self, frame, timestamp=None, *, timestamp_ns=None, linktype=1, wire_length=None):
        """Decode one captured frame and take in the segment that it carries.

        Args:
            frame: the captured bytes. Payload is delivered from where it lies in a bytes object; a writable buffer is copied first. Or a
                packet of scapy or dpkt: one that begins with a link layer or IP, TypeError else.
            timestamp: capture time, seconds since 1970 or an aware datetime. Neither this nor timestamp_ns: that of a packet of scapy,
                else now.
            timestamp_ns: the same in integer nanoseconds.
            linktype: LINKTYPE_ number of the capture, 1 for Ethernet; with a packet, 1 stands for what that begins with.
            wire_length: bytes that the frame had on the wire, where the capture cut it. None: as captured, or as a packet of scapy tells.

        Returns what the frame was. Nothing in captured bytes raises. Calls of the factory and of streams as with `assemble`.
        """
        cdef decoded_s decoded
        cdef segment_s *segment = &decoded.segment
        cdef text_s text
        cdef bytes data
        cdef size_t length, on_wire
        cdef int verdict, link
        if not PyBytes_CheckExact(frame):
            frame, timestamp, linktype, wire_length = plain_frame(frame, timestamp, timestamp_ns, linktype, wire_length)
        text.seen_ns = as_ns(timestamp, timestamp_ns)
        link = 1 if linktype is ETHERNET else <int>bounded_int("linktype", "an int", linktype)
        on_wire = 0
        if wire_length is not None:
            on_wire = <size_t>bounded_int("wire_length", "an int or None", wire_length)
            if wire_length < 0:
                raise ValueError(f"wire_length is 0 or more, not {wire_length}")
        data = <bytes>frame
        length = <size_t>PyBytes_GET_SIZE(data)
        self._enter()
        try:
            self.packets += 1
            self._observe(text.seen_ns)
            self.packet = data
            verdict = decode(<const uint8_t *>PyBytes_AS_STRING(data), length, on_wire, link, self.flags, segment)
            if verdict != 0:
                if verdict == UNKNOWN_LINKTYPE:
                    self._tell_linktype(link)
                decoded.verdict = <uint8_t>verdict
                verdict = self._unusual(NULL, text.seen_ns, &decoded, self.packets)
            else:
                text_of(segment, &text, -1, self.packets)
                self._segment(
                    <const key_s *>segment, hash_of(&self.pool_.table, <const key_s *>segment), segment.flags | self.long_way, &text, True
                )
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
                self._keep_origin(records.origin_for(bytes_before))
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

    cdef void _keep_origin(self, origin_s *origin) noexcept:
        if origin != NULL:
            keep_origin(origin)
        self.origin = origin

    # Raises the error, once everybody has got what was put aside.
    cdef int _end_batch(self, object error) except -1:
        self.holds_gil = self.keeps_gil = True
        self.coalesce = False
        try:
            if error is not None:
                join_late_error(self, error)
            self._give_all(error)
        finally:
            if self.origin != NULL:
                let_go_of_origin(self.origin)
                self.origin = NULL
            self.packet = None
            self.shared = self.busy = False
        return 0

    # What was put aside, and what that leads to: a stream that stops may be at its end. Raises the first exception.
    cdef int _give_all(self, object error) except -1:
        error = self._give_gathered(error)
        if self.pairs:
            self.pool_.lock()
            try:
                self._settle_with_gil()
            finally:
                self.pool_.unlock()
            error = error or self.late_error
            self.late_error, self.has_late_error = None, False
        if error is not None:
            raise error
        return 0

    def flush_ns(self, t_ns, close_all):
        """Give out what was held since before t_ns (None: all), and close what is idle since then if close_all."""
        cdef int64_t before = ALWAYS_NS if t_ns is None else t_ns
        cdef Py_ssize_t flushed = 0, closed = 0
        self._enter()
        try:
            if close_all and before == ALWAYS_NS:
                self._walk_all(&flushed, &closed)
            else:
                self._walk_due(before, before if close_all else NEVER_NS, NEVER_NS, &flushed, &closed)
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
                    self._walk_all(&flushed, closed)
                finally:
                    self._drop_gil()
        except BaseException as raised:
            self._keep_error(raised)
        self.holds_gil = self.keeps_gil = True
        self.fragments.drop_all()
        self.pool_.forget_all_closed()
        self.cache.shrink_now()
        if self.pairs:
            self._settle_with_gil()
        if self.has_late_error:
            raise_late_error(self)
        return 0

    def shut(self, finish):
        """No more calls from now on; before that, finish if asked to."""
        cdef Py_ssize_t closed = 0
        self._enter()
        try:
            if finish:
                self._finish(&closed)
        finally:
            self.fragments.drop_all()
            self.closed_ = True
            self._leave()

    @property
    def closed(self):
        """close() was called."""
        return self.closed_

    def now_ns(self):
        """Capture time, as far as it is believed: one packet whose time is far from the others' does not move it."""
        return self.clock.now if self.clock.has_now else None

    @property
    def packets_given(self):
        """Frames and segments that came in so far, between calls: `Reassembly.packet_number` of what the last one brought."""
        return self.packets

    def _number_from(self, int64_t packets):
        """What comes next has the number after that many."""
        self._enter()
        self.packets = packets
        self._leave()

    def advance_clock(self, now_ns):
        """Time goes on without packets (live captures)."""
        cdef int64_t seen_ns = as_ns(None, now_ns)
        self._enter()
        self._observe(seen_ns)
        self._leave()

    def _share_limit(self, list assemblers not None):
        """The limits of what is held in all are one for these together, of which this is one. Of that of connections each gets its part."""
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
        if self.limit_connections != NO_LIMIT:
            self.limit_connections = max(<uint64_t>1, self.limit_connections // <uint64_t>len(assemblers))

    def _occupy(self):
        """Others work for it from now on: every call is refused, as in a call of its own. ValueError where it is closed, RuntimeError
        where it is at work."""
        self._check_open()
        self.busy = True

    def _vacate(self):
        """The opposite."""
        self.busy = False

    def _stand_in(self, AssemblerBase other not None):
        """Settle fragments and senders by what another one holds and knows of them, which does nothing itself meanwhile (_occupy). One at a
        time, over a pool of its own that has no connections yet."""
        self.fragments, self.senders, self.unknown_linktypes = other.fragments, other.senders, other.unknown_linktypes
        # They lie where that one's hash tells.
        self.pool_.table.secret0, self.pool_.table.secret1 = other.pool_.table.secret0, other.pool_.table.secret1

    def _take_time_of(self, AssemblerBase other not None):
        """Capture time goes on here where another one has it: as far as it is believed, and when the next look is due at what waits."""
        self.clock = other.clock
        self.has_ticked, self.ticked_ns, self.tick_ns = other.has_ticked, other.ticked_ns, other.tick_ns

    def _absorb(self, AssemblerBase other not None):
        """What another assembler has counted counts here too, but of fragments and senders. Of several the numbers of packets, and the
        time, go on here behind the one that was given most of them."""
        cdef int number
        for number in range(COUNTS):
            self.counts[number] += other.counts[number]
        for number in range(VERDICTS):
            self.verdicts[number] += other.verdicts[number]
        self.cache.state.requests += other.cache.count().requests
        if other.packets >= self.packets:
            self.packets = other.packets
            self._take_time_of(other)

    def counters(self):
        """For AssemblerStats: COUNTERS, DROP_REASONS and EVICTION_REASONS, frames by verdict, FRAGMENT_COUNTERS and
        FRAGMENT_DROP_REASONS, and what is so now."""
        cdef int number
        cdef page_counts_s pages
        if self.pool_ is None:
            raise AttributeError("this Assembler was not initialised: a subclass calls super().__init__(pool, options)")
        pages = self.cache.count()
        fragment_counts, fragments_held = self.fragments.counters()
        return (
            tuple([self.counts[number] for number in range(COUNTS)]),
            tuple([self.verdicts[number] for number in range(VERDICTS)]),
            tuple(fragment_counts),
            {
                "fragments_held": fragments_held,
                "offloading_senders": self.senders.offloading,
                "bytes_held": pages.held_bytes,
                "connections": len(self.pool_),
                "pages_used": pages.used,
                "buffered_bytes": pages.units * UNIT,
                "pages_allocated": pages.size,
                "page_requests": pages.requests,
            },
        )

    def _fragment_table(self):
        """For tests: buckets of the table of datagrams, datagrams, and the most of them that lie in one bucket."""
        return self.fragments._table()

    # -- a call -----------------------------------------------------------------------------------------------------

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
                self.packets += done
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
                frames[i].length = <uint32_t>min(LENGTH_LIMIT, sizes[first + i])
                frames[i].wire_length = <uint32_t>min(LENGTH_LIMIT, on_wire[first + i])
                frames[i].linktype = linktype
            done = 0
            try:
                self._walk_frames(frames, count, False, &done)
            finally:
                self.packets += done
            first += count
        return 0

    # Up to GROUP frames.
    cdef int _walk_frames(self, const frame_s *frames, int count, bint ticks, int *done) except -1 nogil:
        cdef decoded_s decoded[GROUP]
        cdef int64_t now_ns[GROUP]
        cdef clock_s clock = self.clock
        decode_frames(frames, count, self.flags, &self.pool_.table, decoded, 1)
        if tell_time(&clock, frames, count, now_ns) and not self.long_way:
            return self._walk_plain(frames, decoded, now_ns, count, IN_ORDER, count, ticks, done)
        return self._walk_anyhow(frames, decoded, count, 0, ticks, done)

    # In groups from tick to tick: between them nothing but the frames themselves changes anything.
    cdef int _walk_plain(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, int count,
        const int *ours, int our_count, bint ticks, int *done
    ) except -1 nogil:
        cdef int at = 0, until, begin = 0, end
        while at < count:
            until = self._next_tick(now_ns, at, count) if ticks else count
            while begin < our_count and ours[begin] < until:
                end = begin + 1
                while end < our_count and end - begin < GROUP and ours[end] < until:
                    end += 1
                self._take_group(frames, decoded, now_ns, ours + begin, end - begin, done)
                begin = end
            at = until
            if at < count:
                self._set_clock(now_ns, at)
                done[0] = at + 1
                self._frame_and_tick(
                    &frames[at], &decoded[at] if begin < our_count and ours[begin] == at else NULL, self.packets + at + 1, True
                )
                begin += begin < our_count and ours[begin] == at
                at += 1
        self.clock.now = now_ns[count - 1]
        done[0] = count
        return 0

    # Between two frames it was as of the last one.
    cdef void _set_clock(self, const int64_t *now_ns, int at) noexcept nogil:
        if at > 0:
            self.clock.now = now_ns[at - 1]
        self.clock_before = self.clock
        self.clock.now = now_ns[at]

    # The frame from `at` on with which a tick is due; `count`: none.
    cdef int _next_tick(self, const int64_t *now_ns, int at, int count) noexcept nogil:
        if not self.has_ticked or now_ns[at] < self.ticked_ns:
            return at
        if now_ns[count - 1] < self.tick_ns:
            return count
        while now_ns[at] < self.tick_ns:
            at += 1
        return at

    # Where the time of some frames is doubtful, one by one.
    cdef int _walk_anyhow(
        self, const frame_s *frames, const decoded_s *decoded, int count, int shard, bint ticks, int *done
    ) except -1 nogil:
        cdef int i
        for i in range(count):
            self._observe(frames[i].seen_ns)
            done[0] = i + 1
            self._frame_and_tick(&frames[i], &decoded[i] if decoded[i].shard == shard else NULL, self.packets + i + 1, ticks)
        return 0

    # With the clock set. decoded is NULL for what others take in.
    cdef int _frame_and_tick(self, const frame_s *frame, const decoded_s *decoded, int64_t packet, bint ticks) except -1 nogil:
        self.pool_.lock_without_gil()
        try:
            if decoded != NULL:
                self._decoded(frame, decoded, packet)
            if ticks:
                self._tick()
        finally:
            self.pool_.unlock()
            self._drop_gil()
        return 0

    # The hot loop: up to GROUP frames, which `ours` numbers, and no tick. Their connections are fetched from memory, all at once; then most
    # of the segments need nothing but the first lines of theirs.
    cdef int _take_group(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, const int *ours, int count, int *done
    ) except -1 nogil:
        cdef connection_s *likely_ones[GROUP]
        cdef const decoded_s *one
        cdef const frame_s *frame
        cdef uint64_t segments = 0, size = 0   # taken in at once, and not yet counted
        cdef bint pairs = self.pairs
        cdef int i
        for i in range(count):
            if decoded[ours[i]].verdict == 0:
                prefetch_slot(&self.pool_.table, decoded[ours[i]].hash)
        self.pool_.lock_without_gil()
        try:
            for i in range(count):
                likely_ones[i] = NULL
                if decoded[ours[i]].verdict == 0:
                    likely_ones[i] = prefetch_connection(&self.pool_.table, decoded[ours[i]].hash)
                    if pairs and likely_ones[i] != NULL:
                        prefetch(&likely_ones[i].more)
            if not self.pool_.counts:
                self.pool_.prefetch_streams(likely_ones, count)
            for i in range(count):
                frame, one = &frames[ours[i]], &decoded[ours[i]]
                # The table may have changed since: whoever is open under that key is the one.
                if likely_ones[i] != NULL and same_key(&likely_ones[i].key, &one.segment) and not (
                    pairs and is_watched(likely_ones[i])
                ) and take_in_order(
                    self, likely_ones[i], one.segment.flags, one.segment.seq, one.segment.payload, one.segment.payload_length,
                    one.segment.wire_payload_length, frame.seen_ns, frame.offset + self.base - <int64_t>frame.data,
                    self.packets + ours[i] + 1
                ):
                    if pairs:
                        note_both(self, likely_ones[i], one.segment.ack, one.segment.payload_length, frame.seen_ns)
                    segments += 1
                    size += one.segment.payload_length
                    if self.out_count == 0:
                        continue
                self._count_in_order(segments, size, segments)
                segments = size = 0
                self._set_clock(now_ns, ours[i])
                done[0] = ours[i] + 1
                if self.out_count:
                    self._hand_over(likely_ones[i])
                else:
                    self._decoded(frame, one, self.packets + ours[i] + 1)
        finally:
            self._count_in_order(segments, size, segments)
            self.pool_.unlock()
            self._drop_gil()
        return 0

    # `frames` of them were decoded here.
    cdef void _count_in_order(self, uint64_t segments, uint64_t size, uint64_t frames) noexcept nogil:
        self.verdicts[0] += frames
        self.counts[SEGMENTS] += segments
        self.counts[BYTES_CAPTURED] += size
        self.counts[BYTES_DELIVERED] += size

    # One frame, with the clock set.
    cdef int _decoded(self, const frame_s *frame, const decoded_s *decoded, int64_t packet) except -1 nogil:
        cdef const segment_s *segment = &decoded.segment
        cdef text_s text
        if decoded.verdict != 0:
            if decoded.verdict == UNKNOWN_LINKTYPE:
                self._tell_linktype(frame.linktype)
            self._unusual(frame, frame.seen_ns, decoded, packet)
            return 0
        text.seen_ns = frame.seen_ns
        text_of(segment, &text, self.base + frame.offset + (segment.payload - frame.data), packet)
        return self._segment(<const key_s *>segment, decoded.hash, segment.flags | self.long_way, &text, True)

    cdef int _tell_linktype(self, int linktype) except -1 nogil:
        if self.has_unknown_linktype and linktype == self.unknown_linktype:
            return 0
        self.has_unknown_linktype, self.unknown_linktype = True, linktype
        with gil:
            if linktype not in self.unknown_linktypes and len(self.unknown_linktypes) < MAX_LINKTYPES_TOLD:
                self.unknown_linktypes.add(linktype)
                _log.warning("link type %d is not decoded: frames of it are left out", linktype)
        return 0

    cdef int _unusual(self, const frame_s *frame, int64_t seen_ns, const decoded_s *decoded, int64_t packet) except -1 nogil:
        cdef decoded_s settled
        cdef joined_s *joined = NULL
        cdef text_s text
        cdef int verdict
        cdef int64_t offset = -1
        if self.settles and not decoded.verdict & SETTLED:
            settled = decoded[0]
            decoded = &settled
            if settle(self, &settled, self.clock.now, 1, &joined):
                warn_of_offloading(decoded)
        verdict = decoded.verdict & ~SETTLED
        if verdict != 0:
            self.verdicts[verdict] += 1
            return verdict
        self.fleeting = (decoded.verdict & SETTLED) != 0
        if frame != NULL and not self.fleeting:
            offset = self.base + frame.offset + (decoded.segment.payload - frame.data)
        text.seen_ns = seen_ns
        text_of(&decoded.segment, &text, offset, packet)
        try:
            self._segment(<const key_s *>&decoded.segment, decoded.hash, decoded.segment.flags | self.long_way, &text, True)
        finally:
            self.fleeting = False
            free(joined)
        return 0

    # -- one segment ------------------------------------------------------------------------------------------------

    cdef int _segment(self, const key_s *key, uint32_t hash, uint32_t flags, text_s *text, bint from_frame) except -1 nogil:
        cdef connection_s *connection = find(&self.pool_.table, key, hash)
        cdef bint opens, no_ack, refuses
        if connection != NULL and not (self.pairs and is_watched(connection)) and take_in_order(
            self, connection, flags, text.seq, text.data, text.size, text.wire, text.seen_ns, text.offset - <int64_t>text.data, text.packet
        ):
            if self.pairs:
                note_both(self, connection, text.ack, text.size, text.seen_ns)
            self._count_in_order(1, text.size, from_frame)
            return self._hand_over(connection) if self.out_count else 0
        opens = (flags & SYN or text.wire) and not flags & RST
        no_ack = not flags & (SYN | RST | ACK) and (text.wire or flags & FIN)
        if not no_ack:
            self._find(key, hash, opens, text.seen_ns, &connection)
        self.verdicts[0] += from_frame
        self.counts[SEGMENTS] += 1
        self.counts[BYTES_CAPTURED] += text.size
        self.counts[URGENT_SEGMENTS] += (flags & URG) != 0
        if no_ack:
            self.counts[NO_ACK_FLAG] += text.size
            return 0
        if self.pairs:
            self._hold_at_hand(flags, text)
        if connection == NULL:
            refuses = self.pairs and self._note_beside(key, hash)
            if flags & RST:
                self.counts[RST_IGNORED] += not refuses
                self.counts[RST_TEXT] += text.size
            if self.debug:
                with gil:
                    _log.debug("%s: nothing to open a stream with", key_object(key))
            if self.pairs:
                self._settle()
            return self._raise_late()
        try:
            self._look_closer(<uint8_t>flags, text)
            self.at_work_on = connection
            self._take_in(connection, <uint8_t>flags, text)
        finally:
            if self.out_count:
                self._drop_pieces()
            if self.pairs:
                self._mark_acked(connection)
            if connection.state == OPEN and not connection.has & LISTED and waits(connection):
                self.pool_.list_waiting(connection)
            if self.pairs or self.gaps.used:
                self._settle()
            if self.conflicts.used:
                with gil:
                    self._tell_conflicts(key)
        return self._raise_late()


# What nearly every segment is: the next bytes, with nothing held; or no bytes at all. What is to be handed over goes to `out`. False: it
# is something else, or the connection has an owner, and nothing was done. data's address plus `offset` is its offset in the capture.
cdef inline bint take_in_order(
    AssemblerBase self, connection_s *connection, uint32_t flags, uint32_t seq, const uint8_t *data, uint32_t size, uint32_t wire,
    int64_t seen_ns, int64_t offset, int64_t packet
) noexcept nogil:
    cdef tally_s *tally = &connection.stream.tally
    cdef piece_s *piece
    cdef uint32_t before = connection.next_seq
    cdef uint8_t how = connection.has & SERVED
    if (
        connection.state != OPEN
        or how == 0
        or (flags & (FIN | SYN | RST | ACK | URG | LONG_WAY)) != ACK
        or (how != COUNTED and connection.stream.served.owner != 0)
    ):
        return False
    if wire:
        if (
            (connection.has & (HAS_START | HAS_END)) != HAS_START
            or seq != before
            or size != wire
            or connection.pages.count
            or connection.skip
        ):
            return False
        if how == COUNTED:
            tally.length += size
            tally.first_seen_ns = min(tally.first_seen_ns, seen_ns)
            tally.last_seen_ns = max(tally.last_seen_ns, seen_ns)
        elif self.out_room == 0:
            return False
        else:
            piece = self.out
            piece.data, piece.size, piece.page = data, size, NULL
            piece.skip, piece.seen_ns, piece.offset, piece.flags = 0, seen_ns, offset + <int64_t>data, 0
            piece.packet, piece.seq = packet, seq
            self.out_count = 1
        connection.next_seq = connection.cut_end = before + size
        if (before ^ connection.next_seq) >> 30:
            note_past_start(connection)
    elif connection.key.more & SYN_TEXT_HELD:  # by an assembler that waits for this
        return False
    if connection.key.more & HALF_OPEN:
        connection.key.more &= ~HALF_OPEN
    connection.last_seen_ns = max(connection.last_seen_ns, seen_ns)
    return True


# The same segment, in pools that pair: for its side, and what the other one had acknowledged for its piece.
cdef inline void note_both(
    AssemblerBase self, const connection_s *connection, uint32_t ack, uint32_t size, int64_t seen_ns
) noexcept nogil:
    cdef side_s *side = side_of(connection)
    note_in_order(side, ack, size, seen_ns)
    if self.out_count and peer_of(side).is_what & HAS_ACK:
        note_acked(self.out, peer_of(side).ack)


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
        number = LENGTH_LIMIT * overflow
    return max(-LENGTH_LIMIT, min(LENGTH_LIMIT, number))


cdef bint decode_frames(
    const frame_s *frames, int count, uint32_t flags, const table_s *table, decoded_s *decoded, int shards
) noexcept nogil:
    cdef int64_t span = frames[count - 1].data - frames[0].data if count else 0
    cdef bint unsettled = False
    cdef int i
    for i in range(count):
        if span < DENSE_BYTES * GROUP:  # most of what lies there is needed: the next group's part of it comes meanwhile
            prefetch(frames[i].data + span + 64)
            prefetch(frames[i].data + span + 128)
            prefetch(frames[i].data + span + 192)
        decoded[i].verdict = decode(
            frames[i].data, frames[i].length, frames[i].wire_length, frames[i].linktype, flags, &decoded[i].segment
        )
        decoded[i].shard = 0
        if decoded[i].verdict == 0:
            place(&decoded[i], table, shards)
        elif decoded[i].verdict == FRAGMENT or decoded[i].verdict >= BAD_CHECKSUM:
            unsettled = True
    return unsettled


cdef inline void place(decoded_s *decoded, const table_s *table, int shards) noexcept nogil:
    decoded.hash = hash_of(table, <const key_s *>&decoded.segment)
    if shards > 1:
        decoded.shard = <uint8_t>((<uint64_t>(decoded.hash & BOTH_DIRECTIONS) * shards) >> 31)


cdef bint settle(AssemblerBase assembler, decoded_s *decoded, int64_t now_ns, int shards, joined_s **joined) noexcept nogil:
    cdef const table_s *table = &assembler.pool_.table
    cdef bint noticed = assembler.senders.offloading != 0
    cdef int verdict = decoded.verdict
    joined[0] = NULL
    if verdict == FRAGMENT and assembler.defragments and (<fragment_s *>&decoded.segment).data != NULL:
        verdict = assembler.fragments.take(table, now_ns, &decoded.segment, joined)
    if verdict >= BAD_CHECKSUM and assembler.judges:
        verdict = assembler.senders.judge(table, &decoded.segment, verdict)
    decoded.verdict = <uint8_t>verdict
    if verdict == SEGMENT:
        place(decoded, table, shards)
        if joined[0] == NULL:
            return not noticed and assembler.senders.offloading != 0
    else:
        free(joined[0])
        joined[0] = NULL
    decoded.verdict |= SETTLED
    return not noticed and assembler.senders.offloading != 0


cdef int warn_of_offloading(const decoded_s *decoded) except -1 nogil:
    with gil:
        src, dst = (<const char *>decoded.segment.src)[:16], (<const char *>decoded.segment.dst)[:16]
        size = 16 if decoded.segment.level & LEVEL_IPV6 else 4
        _log.warning("checksums of %s are left to its network card: not verified", Flow(src[:size], dst[:size]).src)
    return 0


cdef bint tell_time(clock_s *clock, const frame_s *frames, int count, int64_t *now_ns) noexcept nogil:
    cdef bint plain = clock.has_now and not clock.has_suspect
    cdef int64_t before = clock.now
    cdef int i
    for i in range(count):
        observe(clock, frames[i].seen_ns)
        plain = plain and not clock.has_suspect and clock.now >= before
        before = now_ns[i] = clock.now
    return plain


cdef void text_of(const segment_s *segment, text_s *text, int64_t offset, int64_t packet) noexcept nogil:
    text.data = segment.payload
    text.seq = segment.seq
    text.ack = segment.ack
    text.size = segment.payload_length
    text.wire = segment.wire_payload_length
    text.offset = offset
    text.packet = packet
    text.urgent = segment.urgent
    text.header = segment.header


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
