"""`AssemblerBase`: the conductor. Takes segments, finds their connection, brings them into order, serves the stream.

Called once a packet. Everything else in this core answers; only this one asks. State is committed before user code runs, so that a
callback that raises, or another thread that comes in meanwhile, finds everything consistent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .._log import Log
from ..batch import batch_arrays, batch_buffer, check_linktype
from ..clock import NS, Timestamp, to_ns
from ..flow import Flow
from ..segment import ACK, FIN, RST, SYN, TCPSegment
from ..stats import COUNTERS, DROP_REASONS
from ..verdict import Verdict
from .connection import Connection, RawKey, Successor, key_object
from .decode import decode_frame
from .pages import PAGE_BYTES, Page, PageCache, PageList
from .pool import StreamPoolBase
from .reassembly import Reassembly
from .sequence import add, difference

__all__ = ["AssemblerBase"]

SYN_REACH = 1 << 24  # a SYN that comes late lies at most so many bytes before the data that overtook it
CONTINUES_WITHIN = 1 << 20  # what continues from a SYN lies at most so many bytes behind it
CLOCK_STEP_NS = 60_000_000_000  # a packet that is further from the last one's time needs a second one to be believed
CLOCK_CHANGE_NS = 3_600_000_000_000  # further ahead than this is a changed clock, not a quiet hour
START_REACH = 1 << 30  # without a start, data within so many bytes of the first belongs together
SPAN_LIMIT = (1 << 31) - 1  # what is held lies within so many bytes of next_seq, so that comparing is exact
ALWAYS_NS = (1 << 63) - 1  # every time lies before this one
NEVER_NS = -ALWAYS_NS  # and none before this one
EXPIRE_EVERY_NS = NS  # capture time between two walks over all connections

_log = Log("tcpreasm.assembly")


class Clock(NamedTuple):
    """Capture time. It follows the packets, but a far step only when a second packet confirms it."""

    now_ns: int | None  # as far as it is believed
    suspect_ns: int | None  # a time far from it, seen last
    changed_ns: int | None  # when the clock was last set ahead

    def observe(self, seen_ns: int) -> Clock:
        """The clock after a packet of that time."""
        now, suspect, changed = self
        if now is None:
            return Clock(seen_ns, None, None)
        step = seen_ns - now
        if abs(step) <= CLOCK_STEP_NS:
            return Clock(max(now, seen_ns), None, changed)
        if suspect is None or (suspect > now) != (step > 0):
            return Clock(now, seen_ns, changed)
        agreed = min(suspect, seen_ns) if step > 0 else max(suspect, seen_ns)  # two packets say: at least so far
        return Clock(
            agreed,
            seen_ns if abs(seen_ns - agreed) > CLOCK_STEP_NS else None,
            agreed if agreed - now > CLOCK_CHANGE_NS else changed,
        )


class AssemblerBase:
    """The engine beneath `Assembler`; see there for what the calls do."""

    def _setup(
        self,
        pool: StreamPoolBase,
        *,
        max_buffered_pages_total: int,
        max_buffered_pages_per_connection: int,
        verify_checksums: bool,
        start_wait_segments: int,
        start_wait_ns: int,
        max_gap: int,
        hole_timeout_ns: int,
        idle_timeout_ns: int,
        closed_timeout_ns: int,
    ) -> None:
        """Numbers only; -1 stands for: never, no limit."""
        self._pool = pool
        self._cache = PageCache()
        self._limit_with: list[PageCache] = []  # of the others that the total limit is shared with
        self._limit_total = max_buffered_pages_total
        self._limit_connection = max_buffered_pages_per_connection
        self._verify = verify_checksums
        self._start_wait_segments = start_wait_segments
        self._start_wait_ns = start_wait_ns
        self._max_gap = max_gap
        self._hole_timeout_ns = hole_timeout_ns
        self._idle_timeout_ns = idle_timeout_ns
        self._closed_timeout_ns = closed_timeout_ns
        self._counts = dict.fromkeys(COUNTERS + DROP_REASONS, 0)
        self._verdicts = [0] * len(Verdict)
        self._out: list[Reassembly] = []  # pieces for the connection at hand
        self._text_offset = -1  # where the text of the segment at hand stands in the file; -1 where that is not known
        self._gathers = False  # the call at hand gives each stream its pieces at its end
        self._gathered: list[tuple[Connection, RawKey, list[Reassembly]]] = []  # what it has put aside, in the order of the first pieces
        self._late_error: BaseException | None = None
        self._clock = Clock(None, None, None)
        self._clock_before = self._clock  # of the packet at hand
        self._ticked_ns: int | None = None  # capture time of the last tick that expired anything
        self._closed = False
        self._busy = threading.Lock()
        self._debug = _log.is_on()

    # -- the ways in ------------------------------------------------------------------------------------------------

    def assemble(self, net_flow: Flow, tcp: TCPSegment, timestamp: Timestamp | None = None, *, timestamp_ns: int | None = None) -> None:
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
        if len(net_flow.raw_src) != len(net_flow.raw_dst) or len(net_flow.raw_src) not in (4, 16):
            raise TypeError(f"net_flow is a Flow of two addresses, not {net_flow!r}")
        seen_ns = to_ns(timestamp, timestamp_ns)
        key = (net_flow.raw_src, net_flow.raw_dst, tcp.src_port, tcp.dst_port)
        self._enter()
        try:
            self._observe(seen_ns)
            self._segment(key, tcp.seq, tcp.flags, tcp.payload, tcp.wire_payload_length, seen_ns, -1, False)
        finally:
            self._busy.release()

    def assemble_with_timestamp(self, net_flow: Flow, tcp: TCPSegment, timestamp: Timestamp) -> None:
        """`assemble` with the time as a third argument, as in the model."""
        self.assemble(net_flow, tcp, timestamp)

    def assemble_frame(
        self,
        frame: bytes | bytearray | memoryview,
        timestamp: Timestamp | None = None,
        *,
        timestamp_ns: int | None = None,
        linktype: int = 1,
        wire_length: int | None = None,
    ) -> Verdict:
        """Decode one captured frame and take in the segment that it carries.

        Args:
            frame: the captured bytes. Payload is delivered from where it lies in a bytes object; a writable buffer is copied first.
            timestamp: capture time, seconds since 1970 or an aware datetime. Neither this nor timestamp_ns: now.
            timestamp_ns: the same in integer nanoseconds.
            linktype: LINKTYPE_ number of the capture, 1 for Ethernet.
            wire_length: bytes that the frame had on the wire, where the capture cut it. None: as captured.

        Returns what the frame was. Nothing in a frame raises. Calls of the factory and of streams as with `assemble`.
        """
        seen_ns = to_ns(timestamp, timestamp_ns)
        check_linktype(linktype)
        if wire_length is not None:
            if isinstance(wire_length, bool) or not isinstance(wire_length, int):
                raise TypeError(f"wire_length is an int or None, not {type(wire_length).__name__}: {wire_length!r}")
            if wire_length < 0:
                raise ValueError(f"wire_length is 0 or more, not {wire_length}")
        data = frame if type(frame) is bytes else bytes(memoryview(frame))
        self._enter()
        try:
            return self._frame(data, seen_ns, linktype, wire_length, -1)
        finally:
            self._busy.release()

    def assemble_records(self, records: Any, limit: int, coalesce: bool = False, base: int = 0) -> int:
        """Take in the next frames of a capture file, each as `assemble_frame` does, followed by `tick`.

        Args:
            records: the reader of the file (PcapRecords, PcapngRecords): an iterator of frames, whose `offset` is the place of the
                last one's bytes in the decompressed file.
            limit: so many frames at the most.
            coalesce: as for `assemble_batch`.
            base: what is added to the offsets of pieces: bytes of the captures before this one.

        Returns the number of frames taken, 0 at the end. An exception of a stream or of the factory passes through after the frame at
        hand was taken in; the next call goes on behind it. So does one of the reader.
        """
        frames = (
            (frame.data, frame.timestamp_ns, frame.linktype, frame.wire_length, base + records.offset) for frame in islice(records, limit)
        )
        return self._take(frames, coalesce, True)[0]

    def assemble_batch(
        self,
        buffer: Any,
        offsets: Any,
        lengths: Any,
        timestamps_ns: Any,
        wire_lengths: Any = None,
        linktype: int = 1,
        coalesce: bool = False,
    ) -> int:
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
        with batch_buffer(buffer) as view:
            arrays = batch_arrays(view.nbytes, offsets, lengths, timestamps_ns, wire_lengths)
            check_linktype(linktype)
            frames = (
                (bytes(view[start : start + length]), seen_ns, linktype, wire, start)
                for start, length, seen_ns, wire in zip(
                    arrays.offsets, arrays.lengths, arrays.timestamps_ns, arrays.wire_lengths or arrays.lengths
                )
            )
            return self._take(frames, coalesce, False)[1]

    def flush_ns(self, t_ns: int | None, close_all: bool) -> tuple[int, int]:
        """Give out what was held since before t_ns (None: all), and close what is idle since then if close_all."""
        before = ALWAYS_NS if t_ns is None else t_ns
        self._enter()
        try:
            return self._walk(before, before if close_all else NEVER_NS, NEVER_NS)
        finally:
            self._cache.shrink()
            self._busy.release()

    def expire(self) -> tuple[int, int]:
        """Flush by the time-outs of the options, on capture time as far as it is believed."""
        self._enter()
        try:
            return self._expire()
        finally:
            self._busy.release()

    def _expire(self) -> tuple[int, int]:
        try:
            self._pool.forget_closed(self._forget_before())
            return self._walk(self._expiry(self._hole_timeout_ns), self._expiry(self._idle_timeout_ns), self._expiry(self._start_wait_ns))
        finally:
            self._cache.shrink()

    def tick(self) -> None:
        """`expire`, where a second of capture time has passed since the last tick that did so, or the clock was set back behind it."""
        self._enter()
        try:
            self._tick()
        finally:
            self._busy.release()

    def _tick(self) -> None:
        now, ticked = self._clock.now_ns, self._ticked_ns
        if now is not None and (ticked is None or not ticked <= now < ticked + EXPIRE_EVERY_NS):
            self._ticked_ns = now
            self._expire()

    def finish(self) -> int:
        """Give out everything held and close everything. Returns the number of connections closed."""
        self._enter()
        try:
            return self._finish()
        finally:
            self._busy.release()

    def _finish(self) -> int:
        try:
            return self._walk(ALWAYS_NS, ALWAYS_NS, NEVER_NS)[1]
        finally:
            self._pool.forget_closed(ALWAYS_NS)
            self._cache.shrink()

    def shut(self, finish: bool) -> None:
        """No more calls from now on; before that, finish if asked to."""
        self._enter()
        try:
            if finish:
                self._finish()
        finally:
            self._closed = True
            self._busy.release()

    @property
    def closed(self) -> bool:
        """close() was called."""
        return self._closed

    def now_ns(self) -> int | None:
        """Capture time, as far as it is believed: one packet whose time is far from the others' does not move it."""
        return self._clock.now_ns

    def advance_clock(self, now_ns: int) -> None:
        """Time goes on without packets (live captures)."""
        seen_ns = to_ns(None, now_ns)
        self._enter()
        try:
            self._observe(seen_ns)
        finally:
            self._busy.release()

    def share_limit(self, assemblers: Sequence[AssemblerBase]) -> None:
        """The limit of pages in all is one for these together, of which this is one."""
        self._limit_with = [assembler._cache for assembler in assemblers if assembler is not self]

    def occupy(self) -> None:
        """Others work for it from now on: every call is refused, as in a call of its own. ValueError where it is closed, RuntimeError
        where it is at work."""
        self._enter()

    def vacate(self) -> None:
        """The opposite."""
        self._busy.release()

    def absorb(self, other: AssemblerBase) -> None:
        """What another assembler has counted counts here too, and its clock goes on here."""
        for name, count in other._counts.items():
            self._counts[name] += count
        for verdict, count in enumerate(other._verdicts):
            self._verdicts[verdict] += count
        self._cache.requests += other._cache.requests
        self._clock = other._clock

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
        """For AssemblerStats: COUNTERS and DROP_REASONS, frames by verdict, and what is so now."""
        return (
            tuple(self._counts.values()),
            tuple(self._verdicts),
            {
                "bytes_held": self._cache.held_bytes,
                "connections": len(self._pool),
                "pages_used": self._cache.used,
                "pages_allocated": self._cache.size,
                "page_requests": self._cache.requests,
            },
        )

    # -- time -------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this Assembler is at work already: called from a callback, or from two threads at once")
        if self._closed:
            self._busy.release()
            raise ValueError("this Assembler is closed")

    def _observe(self, seen_ns: int) -> None:
        before = self._clock_before = self._clock
        clock = self._clock = before.observe(seen_ns)
        if before.now_ns is not None and clock.now_ns is not None and clock.now_ns < before.now_ns:
            self._pool.set_back(clock.now_ns)

    def _expiry(self, timeout_ns: int) -> int:
        """The time before which something is too old. Nothing expires by the setting of a clock."""
        now, _, changed = self._clock
        if now is None or timeout_ns < 0 or (changed is not None and 0 <= now - changed < timeout_ns):
            return NEVER_NS
        return now - timeout_ns

    def _forget_before(self) -> int:
        return self._expiry(self._closed_timeout_ns)

    # -- many frames ------------------------------------------------------------------------------------------------

    def _take(self, frames: Iterable[tuple[bytes, int, int, int, int]], gather: bool, ticks: bool) -> tuple[int, int]:
        """The arguments of `_frame`, one after the other. Returns how many there were, and how many of them were segments."""
        taken = 0
        error: BaseException | None = None
        self._enter()
        try:
            segments_before = self._verdicts[Verdict.SEGMENT]
            self._gathers = bool(gather)
            try:
                for frame in frames:
                    taken += 1
                    self._frame(*frame)
                    if ticks:
                        self._tick()
            except BaseException as raised:
                error = raised
            self._gathers = False
            self._give_gathered(error)
            return taken, self._verdicts[Verdict.SEGMENT] - segments_before
        finally:
            self._busy.release()

    def _frame(self, data: bytes, seen_ns: int, linktype: int, wire_length: int | None, offset: int) -> Verdict:
        """One frame, which stands at that offset in the file; -1 where that is not known."""
        self._observe(seen_ns)
        verdict, segment = decode_frame(data, linktype, wire_length, self._verify)
        if segment is None:
            self._verdicts[verdict] += 1
        else:
            text = segment.payload_offset
            self._segment(
                (segment.src, segment.dst, segment.src_port, segment.dst_port),
                segment.seq,
                segment.flags,
                memoryview(data)[text : text + segment.payload_length],
                segment.wire_payload_length,
                seen_ns,
                -1 if offset < 0 else offset + text,
                True,
            )
        return verdict

    # -- one segment ------------------------------------------------------------------------------------------------

    def _segment(
        self, key: RawKey, seq: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int, offset: int, from_frame: bool
    ) -> None:
        counts = self._counts
        self._text_offset = offset
        opens = bool(flags & SYN or wire) and not flags & RST
        no_ack = not flags & (SYN | RST | ACK) and bool(wire or flags & FIN)
        try:
            connection = None if no_ack else self._pool.acquire(key, opens, seen_ns, self._forget_before())
        except RuntimeError:
            self._clock = self._clock_before  # refused: as if it had not been called
            raise
        self._verdicts[Verdict.SEGMENT] += from_frame
        counts["segments"] += 1
        counts["bytes_captured"] += len(payload)
        if no_ack:
            counts["no_ack_flag"] += len(payload)
            return
        if connection is None:
            if flags & RST:
                counts["rst_ignored"] += 1
                counts["rst_text"] += len(payload)
            if self._debug:
                _log.debug("%s: nothing to open a stream with", key_object(key))
            return
        try:
            if connection.closed:
                if not self._reopens(connection, seq, flags, wire):
                    counts["after_close"] += len(payload)
                    return
                self._restart(connection, connection.successor, len(payload), seen_ns)
            elif connection.stream is None:
                self._open_stream(connection, len(payload))
            connection.last_seen_ns = max(connection.last_seen_ns, seen_ns)
            if flags & RST:
                self._reset(connection, seq, len(payload), seen_ns)
            elif flags & SYN:
                self._syn(connection, seq, flags, payload, wire, seen_ns)
            elif wire or flags & FIN:
                self._continue(connection, seq, flags, payload, wire, seen_ns)
            self._serve(connection)
            if self._late_error is not None:
                raise self._late_error
        except BaseException as raised:
            if raised is not self._late_error and raised.__context__ is None:
                raised.__context__ = self._late_error
            raise
        finally:
            self._late_error = None
            self._out = []
            self._pool.release(connection)

    def _open_stream(self, connection: Connection, at_stake: int) -> None:
        net_flow, transport_flow = connection.key
        try:
            stream = self._pool._new(net_flow, transport_flow)
            reassembled, complete = stream.reassembled, stream.reassembly_complete
        except BaseException:
            self._counts["factory_error"] += at_stake
            self._drop(connection.pages, "factory_error")
            self._pool.remove(connection)
            raise
        self._counts["streams_opened"] += 1
        connection.stream, connection.reassembled, connection.reassembly_complete = stream, reassembled, complete

    def _reset(self, connection: Connection, seq: int, text: int, seen_ns: int) -> None:
        """RST: only at the exact sequence number expected (RFC 5961 3.2). Its text is not part of the stream."""
        self._counts["rst_text"] += text
        expected = connection.next_seq
        if expected is None and connection.waits():
            expected = connection.early_end if connection.end_seq is None else connection.end_seq
        if seq != expected:
            self._counts["rst_ignored"] += 1
            return
        connection.end_seq, connection.end_seen_ns = seq, seen_ns
        if connection.next_seq is None:
            self._skip(connection)

    def _is_own_syn(self, connection: Connection, seq: int) -> bool:
        """This SYN began the connection: the same again, or late where it was missed."""
        if connection.isn is not None:
            return seq == connection.isn
        return not connection.past_start and 0 <= difference(add(seq, 1), connection.first_seq) <= SYN_REACH

    def _syn(self, connection: Connection, isn: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int) -> None:
        text_seq = add(isn, 1)
        if connection.next_seq is None:
            if connection.waits() and not 0 <= difference(text_seq, connection.first_held()) <= SYN_REACH:
                self._begin_anew(connection, None, len(payload), seen_ns)
            if self._debug:
                _log.debug("%s: starts at %d", connection.key, isn)
            self._start(connection, isn)
            self._text(connection, text_seq, flags, payload, wire, seen_ns, True)
        elif self._is_own_syn(connection, isn):
            if connection.isn is None:
                connection.isn = isn
                self._counts["late_syn"] += 1
            self._text(connection, text_seq, flags, payload, wire, seen_ns, False)
        else:
            self._drop_successor(connection)
            self._counts["syn_remembered"] += 1
            connection.successor = Successor(isn, add(text_seq, wire), seen_ns, PageList())
            if wire:
                self._hold_in(connection.successor.pages, text_seq, payload, wire - len(payload), seen_ns, False)
                if self._is_at_limit(connection.successor.pages):
                    self._drop(connection.successor.pages, "unconfirmed_syn")

    def _continue(self, connection: Connection, seq: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int) -> None:
        successor = connection.successor
        if successor is not None and self._confirms(connection, successor, seq):
            connection.successor = None
            self._begin_anew(connection, successor, len(payload), seen_ns)
        self._text(connection, seq, flags, payload, wire, seen_ns, False)

    def _reopens(self, connection: Connection, seq: int, flags: int, wire: int) -> bool:
        """Whether a segment begins a closed connection anew: a SYN with another initial sequence number does at once, and what
        continues from one that came before the close."""
        if flags & RST:
            return False
        if flags & SYN:
            if self._is_own_syn(connection, seq):
                return False
            self._drop_successor(connection)
            return True
        successor = connection.successor
        return successor is not None and bool(wire or flags & FIN) and self._confirms(connection, successor, seq)

    def _start(self, connection: Connection, isn: int) -> None:
        connection.isn = isn
        connection.next_seq = connection.first_seq = connection.cut_end = add(isn, 1)

    def _confirms(self, connection: Connection, successor: Successor, seq: int) -> bool:
        """A segment continues from another SYN, and not from what is open."""
        if connection.next_seq is None or seq == connection.next_seq:
            return False
        ahead = difference(add(successor.isn, 1), seq)
        if ahead == 0 or seq == successor.next_seq:
            return True
        return 0 < ahead <= CONTINUES_WITHIN and abs(difference(connection.next_seq, seq)) > CONTINUES_WITHIN

    def _begin_anew(self, connection: Connection, successor: Successor | None, at_stake: int, seen_ns: int) -> None:
        """The stream at hand is over, with all that it holds; the same connection begins again."""
        reassembled, complete = connection.reassembled, connection.reassembly_complete
        self._finish_pieces(connection)
        pieces, self._out = self._out, []
        try:
            self._call(connection, reassembled, complete, pieces)
        except BaseException as raised:
            self._late_error = raised  # raised once the segment at hand is taken in
        self._restart(connection, successor, at_stake, seen_ns)

    def _restart(self, connection: Connection, successor: Successor | None, at_stake: int, seen_ns: int) -> None:
        """A new stream under the same key, from the SYN that was remembered, or from the one at hand."""
        self._pool.reopen(connection, seen_ns)
        if successor is not None:
            connection.pages = successor.pages
        self._open_stream(connection, at_stake)
        if successor is not None:
            self._start(connection, successor.isn)
            self._emit(connection, b"", successor.seen_ns, True)
            self._advance(connection)

    def _text(
        self, connection: Connection, seq: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int, start: bool
    ) -> None:
        """Text and FIN of one segment, seq being its first byte's."""
        if flags & FIN:
            self._note_end(connection, add(seq, wire), seen_ns)
        if connection.end_seq is not None:
            if connection.next_seq is None:
                room = difference(seq, connection.end_seq)
            else:  # each of the two is exact; their sum may be too far for one
                room = difference(seq, connection.next_seq) + difference(connection.next_seq, connection.end_seq)
            if wire > room:
                keep = max(0, min(room, len(payload)))
                self._counts["after_end"] += len(payload) - keep
                payload = payload[:keep]
                wire = max(0, room)
        missing = wire - len(payload)
        if connection.next_seq is None:
            self._wait_for_start(connection, seq, payload, missing, seen_ns)
            return
        ahead = difference(connection.next_seq, seq)
        if ahead == -1 - SPAN_LIMIT:  # neither ahead nor behind
            self._counts["out_of_window"] += len(payload)
        elif ahead <= 0:
            self._deliver(connection, seq, payload, missing, seen_ns, start)
        elif wire:
            if ahead + wire > SPAN_LIMIT or (ahead > self._max_gap and self._is_wild(connection, seq, wire)):
                self._counts["out_of_window"] += len(payload)
                return
            self._hold_in(connection.pages, seq, payload, missing, seen_ns, False)
            if self._debug:
                _log.debug("%s: %d bytes ahead, held", connection.key, ahead)
            self._keep_limits(connection)

    def _is_wild(self, connection: Connection, seq: int, wire: int) -> bool:
        """Further ahead than max_gap, and the last one that was so lay somewhere else."""
        wild = connection.far_next is None or abs(difference(connection.far_next, seq)) > CONTINUES_WITHIN
        connection.far_next = add(seq, wire)
        return wild

    def _note_end(self, connection: Connection, end_seq: int, seen_ns: int) -> None:
        """FIN counts when the stream reaches its place (RFC 9293 3.10.7.4, eighth check). The first one seen stays."""
        base = connection.next_seq
        if base is None and connection.pages.first is not None:
            base = connection.pages.first.seq
        reachable = base is None or 0 <= difference(base, end_seq) <= self._max_gap
        if not reachable or connection.end_seq not in (None, end_seq):
            self._counts["fin_ignored"] += 1
            return
        if connection.end_seq is None:
            connection.end_seq, connection.end_seen_ns = end_seq, seen_ns
            self._cut_pages(connection, end_seq)

    def _cut_pages(self, connection: Connection, end_seq: int) -> None:
        """Nothing is held beyond the end."""
        pages = connection.pages
        while (page := pages.last) is not None:
            room = difference(page.seq, end_seq)
            page.missing = max(0, min(page.missing, room - len(page)))
            if room >= len(page) and (len(page) or page.missing):
                break
            if room > 0:
                self._counts["after_end"] += len(page) - room
                page.hold(page.bytes[:room])
                break
            self._counts["after_end"] += len(page)
            self._cache.give_back(pages.pop_last())

    def _wait_for_start(self, connection: Connection, seq: int, payload: bytes | memoryview, missing: int, seen_ns: int) -> None:
        first = connection.pages.first
        if len(payload) or missing:
            reach = min(self._max_gap, START_REACH)
            if (first is not None and self._span_with(connection, seq, len(payload) + missing) > reach) or (
                connection.end_seq is not None and not 0 <= difference(seq, connection.end_seq) <= reach
            ):
                self._counts["out_of_window"] += len(payload)
                return
            self._hold_in(connection.pages, seq, payload, missing, seen_ns, True)
            end = add(seq, len(payload) + missing)
            if first is None or difference(connection.early_end, end) > 0:
                connection.early_end = end
        if not connection.waits():
            return
        connection.early_segments += 1
        if 0 <= self._start_wait_segments <= connection.early_segments or 0 <= self._start_wait_ns <= seen_ns - connection.created_ns:
            self._skip(connection)
        self._keep_limits(connection)

    def _span_with(self, connection: Connection, seq: int, wire: int) -> int:
        """From the first to the last byte held, were this segment held too."""
        first, last = connection.pages.first, connection.pages.last
        assert first is not None
        assert last is not None
        ahead = difference(first.seq, seq)
        return max(difference(first.seq, last.end), ahead + wire) - min(0, ahead)

    # -- what arrives in order --------------------------------------------------------------------------------------

    def _deliver(self, connection: Connection, seq: int, payload: bytes | memoryview, missing: int, seen_ns: int, start: bool) -> None:
        """A segment that begins at or before next_seq: what is new of it goes out, around pages that hold part of it already."""
        assert connection.next_seq is not None
        size = len(payload)
        before = connection.next_seq
        done = difference(seq, before)
        position = min(done, size)
        if position:
            early = 0
            if not connection.past_start and (connection.isn is None or add(connection.isn, 1) != connection.first_seq):
                early = max(0, min(position, difference(seq, connection.first_seq)))
            self._counts["before_start"] += early
            self._counts["retransmitted"] += position - early
        page = connection.pages.first
        if start and page is not None and page.seq == seq:
            self._emit(connection, b"", seen_ns, True)
            start = False
        while page is not None and position < size and (at := done + difference(before, page.seq)) < size:
            if position < at:
                self._emit(connection, payload[position:at], seen_ns, start, self._offset(position))
                start = False
            self._compare(page, 0, payload, at, at + len(page), False)
            position = max(position, at + len(page))
            connection.next_seq = page.seq
            self._emit_page(connection)
            page = connection.pages.first
        if position < size or start:
            self._emit(connection, payload[position:], seen_ns, start, self._offset(position))
        if difference(connection.next_seq, add(seq, size)) > 0:
            connection.next_seq = add(seq, size)
        if missing:
            self._note_cut(connection, add(seq, size + missing))
        self._advance(connection)
        if (before ^ connection.next_seq) >> 30:
            connection.note_past_start()

    def _note_cut(self, connection: Connection, cut_end: int) -> None:
        assert connection.next_seq is not None
        if connection.end_seq is not None and difference(connection.end_seq, cut_end) > 0:
            cut_end = connection.end_seq
        if difference(connection.next_seq, cut_end) > max(0, difference(connection.next_seq, connection.cut_end)):
            connection.cut_end = cut_end

    def _advance(self, connection: Connection) -> None:
        """Everything that is contiguous with next_seq now, and over what the capture cut off."""
        assert connection.next_seq is not None
        while True:
            page = connection.pages.first
            if page is not None and difference(connection.next_seq, page.seq) <= 0:
                self._emit_page(connection)
                continue
            cut = difference(connection.next_seq, connection.cut_end)
            if cut <= 0:
                break
            if page is not None:
                cut = min(cut, difference(connection.next_seq, page.seq))
            self._jump(connection, cut)
        connection.cut_end = connection.next_seq

    def _jump(self, connection: Connection, missing: int) -> None:
        """next_seq goes on over bytes that are missing."""
        assert connection.next_seq is not None
        connection.next_seq = add(connection.next_seq, missing)
        if connection.skip >= 0:  # else they belong to an unknown number anyway
            connection.skip += missing
            self._counts["bytes_skipped"] += missing

    def _offset(self, position: int) -> int:
        """Where that byte of the text at hand stands in the file."""
        return -1 if self._text_offset < 0 else self._text_offset + position

    def _emit(self, connection: Connection, data: bytes | memoryview, seen_ns: int, start: bool, offset: int = -1) -> None:
        self._out.append(Reassembly(data, connection.skip, start, False, seen_ns, offset if len(data) else -1))
        self._counts["bytes_delivered"] += len(data)
        connection.skip = 0

    def _emit_page(self, connection: Connection) -> None:
        """The first page goes out; it begins at or before next_seq."""
        assert connection.next_seq is not None
        page = connection.pages.pop_first()
        if len(page):
            self._emit(connection, page.bytes, page.seen_ns, False, page.offset)
        connection.next_seq = page.end
        if page.missing:
            self._note_cut(connection, add(page.end, page.missing))
        self._cache.give_back(page)

    # -- what arrives early -----------------------------------------------------------------------------------------

    def _hold_in(self, pages: PageList, seq: int, payload: bytes | memoryview, missing: int, seen_ns: int, unsure: bool) -> None:
        """Copy into pages what they do not hold yet: the bytes captured first win, one by one."""
        size = len(payload)
        prev, next_ = pages.find(seq)
        position = 0
        if prev is not None:
            held = difference(seq, prev.end)
            if held > 0:
                position = min(held, size)
                self._compare(prev, len(prev) - held, payload, 0, position, unsure)
        while True:
            at = size if next_ is None else min(size, difference(seq, next_.seq))
            if position < at:
                prev = self._push(pages, prev, next_, add(seq, position), payload[position:at], seen_ns, self._offset(position))
            if next_ is None or at >= size:
                break
            position = min(size, at + len(next_))
            self._compare(next_, 0, payload, at, position, unsure)
            prev, next_ = next_, next_.next
        if missing:
            self._hold_cut(pages, prev, next_, seq, size, missing, seen_ns)

    def _push(
        self, pages: PageList, prev: Page | None, next_: Page | None, seq: int, data: bytes | memoryview, seen_ns: int, offset: int
    ) -> Page:
        """A chain of pages for data goes in between two neighbours. Returns its last page."""
        first = last = None
        for position in range(0, max(len(data), 1), PAGE_BYTES):
            page = self._cache.take(seen_ns)
            page.seq = add(seq, position)
            page.offset = -1 if offset < 0 else offset + position
            page.hold(data[position : position + PAGE_BYTES])
            if last is None:
                first = page
            else:
                last.next, page.prev = page, last
            last = page
        assert first is not None
        assert last is not None
        pages.push_between(prev, next_, first, last)
        return last

    def _hold_cut(self, pages: PageList, prev: Page | None, next_: Page | None, seq: int, size: int, missing: int, seen_ns: int) -> None:
        """Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one."""
        if prev is None or (not size and difference(prev.end, seq) > 0):
            prev = self._push(pages, prev, next_, seq, b"", seen_ns, -1)
        prev.missing = max(prev.missing, difference(prev.end, add(seq, size + missing)))

    def _compare(self, page: Page, place: int, payload: bytes | memoryview, begin: int, end: int, unsure: bool) -> None:
        """Count payload[begin:end] as a copy of bytes that a page holds from that place on, and those of them that differ."""
        copy = payload[begin:end]
        if not len(copy):
            return
        self._counts["overlapping"] += len(copy)
        held = page.bytes[place : place + len(copy)]
        if held == copy:
            return
        self._counts["conflicting"] += sum(a != b for a, b in zip(held, copy))
        if unsure and len(page) == 1 and page.prev is None:
            # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
            page.hold(copy)
            page.offset = self._offset(begin)

    def _keep_limits(self, connection: Connection) -> None:
        while self._is_at_limit(connection.pages):
            if self._debug:
                _log.debug("%s: page limit reached with %d pages", connection.key, connection.pages.count)
            self._skip(connection)

    def _is_at_limit(self, pages: PageList) -> bool:
        if pages.count == 0:
            return False
        used = self._cache.used + sum(cache.used for cache in self._limit_with)
        return 0 < self._limit_connection <= pages.count or 0 < self._limit_total <= used

    def _skip(self, connection: Connection) -> None:
        """Stop waiting for the lowest hole: over it, and on with what is contiguous then."""
        target = connection.first_held()
        if connection.next_seq is None:
            connection.next_seq = connection.first_seq = connection.cut_end = target
            connection.skip = -1
        else:
            self._jump(connection, difference(connection.next_seq, target))
            connection.cut_end = connection.next_seq
        self._advance(connection)
        connection.note_past_start()

    def _drop_successor(self, connection: Connection) -> None:
        if connection.successor is not None:
            self._drop(connection.successor.pages, "unconfirmed_syn")
            connection.successor = None

    def _drop(self, pages: PageList, reason: str) -> None:
        while pages.count:
            page = pages.pop_first()
            self._counts[reason] += len(page)
            self._cache.give_back(page)

    # -- serving the stream -----------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        """Commit what this call has led to, then tell the stream."""
        reassembled, complete = connection.reassembled, None
        if connection.ended():
            complete = connection.reassembly_complete
            if connection.skip or not self._out:
                self._emit(connection, b"", connection.end_seen_ns, False)
            self._out[-1].end = True
            self._drop(connection.pages, "after_end")
            if connection.successor is not None:
                self._drop(connection.successor.pages, "unconfirmed_syn")  # its SYN is still remembered
            self._counts["streams_closed"] += 1
            now = self._clock.now_ns
            self._pool.close(connection, connection.last_seen_ns if now is None else now)
            if self._debug:
                _log.debug("%s: ended", connection.key)
        self._call(connection, reassembled, complete, self._out)

    def _close(self, connection: Connection) -> None:
        """The end of a connection that nobody closed."""
        reassembled, complete = connection.reassembled, connection.reassembly_complete
        self._finish_pieces(connection)
        self._pool.remove(connection)
        self._call(connection, reassembled, complete, self._out)

    def _finish_pieces(self, connection: Connection) -> None:
        """Everything held goes out; a gap behind the last byte goes out as a piece of its own."""
        while connection.waits():
            self._skip(connection)
        ended = connection.ended()
        if connection.skip or (ended and not self._out):
            self._emit(connection, b"", connection.end_seen_ns if ended else connection.last_seen_ns, False)
        if ended:
            self._out[-1].end = True
        self._drop_successor(connection)
        self._counts["streams_closed"] += 1

    def _call(self, connection: Connection, reassembled: Any, complete: Any, pieces: list[Reassembly]) -> None:
        """The stream gets these pieces, behind those that were put aside for it before; or they are put aside too, unless it ends."""
        if complete is None:
            if not pieces:
                return
            if self._gathers:
                self._gather(connection, pieces)
                return
        if connection.gathered is not None:
            pieces = connection.gathered + pieces
            connection.gathered = connection.gatherer = None
        try:
            if pieces:
                reassembled(pieces)
        finally:
            if complete is not None:
                complete()

    def _gather(self, connection: Connection, pieces: list[Reassembly]) -> None:
        """Put aside with the connection, where everybody who serves the stream finds them, and noted to be given out by this one."""
        if connection.gathered is None:
            connection.gathered = pieces
        else:
            connection.gathered += pieces
        if connection.gatherer is not self:
            connection.gatherer = self
            self._gathered.append((connection, connection._key, connection.gathered))

    def _give_gathered(self, error: BaseException | None) -> None:
        """What was put aside goes out, but where somebody else has given it out meanwhile.

        An exception of user code does not keep the other streams from being served; the first one, or `error`, is raised at the end.
        """
        gathered, self._gathered = self._gathered, []
        for connection, key, pieces in gathered:
            if not self._pool.acquire_open(connection, key):
                continue
            try:
                if connection.gathered is pieces:
                    connection.gathered = connection.gatherer = None
                    connection.reassembled(pieces)
            except BaseException as raised:
                error = error or raised
            finally:
                self._pool.release(connection)
        if error is not None:
            raise error

    # -- all connections --------------------------------------------------------------------------------------------

    def _walk(self, held_ns: int, idle_ns: int, start_ns: int) -> tuple[int, int]:
        """Every open connection, oldest first: give out what is held since before held_ns, start what waits for its start since
        before start_ns, close what has seen nothing since idle_ns.

        An exception of user code does not keep the other connections from being served; the first one is raised at the end.
        """
        flushed = closed = 0
        error: BaseException | None = None
        for connection, key in self._pool.walk(idle_ns):
            if not self._pool.acquire_open(connection, key):
                continue
            try:
                gave_out = self._give_out(connection, held_ns, start_ns)
                idle = connection.last_seen_ns < idle_ns and not connection.ended()
                flushed += gave_out or idle
                closed += idle or connection.ended()
                if idle:
                    self._close(connection)
                elif gave_out:
                    self._serve(connection)
            except BaseException as raised:
                error = error or raised
            finally:
                self._out = []
                self._pool.release(connection)
        if error is not None:
            raise error
        return flushed, closed

    def _give_out(self, connection: Connection, held_ns: int, start_ns: int) -> bool:
        target = connection.waits_until(held_ns)
        if target is None:
            if connection.next_seq is not None or connection.created_ns >= start_ns or not connection.waits():
                return False
            self._skip(connection)
            return True
        while connection.waits() and connection.is_ahead(target):
            self._skip(connection)
        return True
