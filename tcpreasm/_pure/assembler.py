"""`AssemblerBase`: the conductor. Decodes frames, finds the connection of each segment, and has the engine take it in.

Called once a packet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, SupportsIndex

from .._log import Log
from ..batch import batch_arrays, batch_buffer, check_linktype
from ..clock import Timestamp, to_ns
from ..decoded import Segment
from ..flow import Flow
from ..packets import plain_frame
from ..segment import ACK, FIN, RST, SYN, URG, TCPSegment
from ..stats import COUNTERS, DROP_REASONS, EVICTION_REASONS
from ..verdict import Verdict
from .clock import ALWAYS_NS, NEVER_NS, Clock
from .connection import RawKey, key_object
from .decode import JUDGE, Fragment, decode, timestamp_value
from .engine import SYN_DATA_ACKED, URGENT_OOB, URGENT_OOB_LINUX
from .flushing import Flusher
from .fragments import Fragments
from .pages import PageCache
from .pairing import AtHand
from .pool import ConversationPoolBase, StreamPoolBase
from .senders import Senders
from .sequence import add

__all__ = ["AssemblerBase"]

LENGTH_LIMIT = 0x7FFFFFFF  # of numbers that C holds in 32 bits
MAX_LINKTYPES_TOLD = 16  # a capture may have thousands of interfaces

_log = Log("tcpreasm.assembly")


class AssemblerBase(Flusher):
    """The engine beneath `Assembler`; see there for what the calls do."""

    def _setup(
        self,
        pool: StreamPoolBase,
        *,
        max_buffered_pages_total: int,
        max_buffered_pages_per_connection: int,
        overlap: int,
        on_conflict: Any,
        urgent: int,
        paws: bool,
        syn_data: int,
        max_buffered_bytes_total: int,
        max_buffered_bytes_per_connection: int,
        verify_checksums: int,
        tunnels: int,
        defragment: bool,
        fragment_timeout_ns: int,
        max_fragmented_datagrams: int,
        max_fragment_bytes: int,
        start_wait_segments: int,
        start_wait_ns: int,
        max_gap: int,
        hole_timeout_ns: int,
        acked_timeout_ns: int,
        idle_timeout_ns: int,
        closed_timeout_ns: int,
        max_connections: int,
        opens_on_data: bool,
        on_evict: Callable[[Flow, Flow, str], object] | None,
        on_gap: Callable[[Flow, Flow, int, int, str], object] | None,
        depth: int,
    ) -> None:
        """Numbers only; -1 stands for: never, no limit; 0 for a limit of what is held, or a depth: none. verify_checksums: 2 for "auto";
        tunnels: as for decode_frame."""
        self._pool = pool
        self._pairing = pool if isinstance(pool, ConversationPoolBase) else None
        self._at_hand = None
        self._is_noted = False
        self._peer_ack = None
        self._cache = PageCache()
        self._limit_with = []
        self._limit_total = max_buffered_pages_total
        self._limit_connection = max_buffered_pages_per_connection
        self._overlap = overlap
        self._on_conflict = on_conflict
        self._conflicts = []
        self._conflict_stream = None
        self._urgent = urgent
        self._paws = paws
        self._syn_data_waits = syn_data == SYN_DATA_ACKED
        self._limit_bytes_total = max_buffered_bytes_total
        self._limit_bytes_connection = max_buffered_bytes_per_connection
        self._checksums = verify_checksums
        self._tunnels = tunnels
        self._defragments = defragment
        self._fragments = Fragments(fragment_timeout_ns, max_fragmented_datagrams, max_fragment_bytes)
        self._senders = Senders()
        self._unknown_linktypes: set[int] = set()  # that were warned of
        self._start_wait_segments = start_wait_segments
        self._start_wait_ns = start_wait_ns
        self._max_gap = max_gap
        self._hole_timeout_ns = hole_timeout_ns
        self._acked_timeout_ns = acked_timeout_ns
        self._idle_timeout_ns = idle_timeout_ns
        self._closed_timeout_ns = closed_timeout_ns
        self._limit_connections = max_connections
        self._opens_on_data = opens_on_data
        self._on_evict = on_evict
        self._on_gap = on_gap
        self._gaps = []
        self._depth = depth
        self._counts = dict.fromkeys((*COUNTERS, *DROP_REASONS, *("evicted_" + reason for reason in EVICTION_REASONS)), 0)
        self._verdicts = [0] * len(Verdict)
        self._out = []
        self._text_offset = -1
        self._packet = 0
        self._out_of_band = None
        self._tsval = None
        self._gathers = False
        self._gathered = []
        self._late_error = None
        self._clock = Clock(None, None, None)
        self._clock_before = self._clock
        self._ticked_ns = None
        self._closed = False
        self._busy = threading.Lock()
        self._debug = _log.is_on()

    # -- the ways in ------------------------------------------------------------------------------------------------

    def assemble(
        self, net_flow: Flow, tcp: TCPSegment, timestamp: Timestamp | None = None, *, timestamp_ns: SupportsIndex | None = None
    ) -> None:
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
        if len(net_flow.raw_src) != len(net_flow.raw_dst) or len(net_flow.raw_src) not in (4, 16):
            raise TypeError(f"net_flow is a Flow of two addresses, not {net_flow!r}")
        seen_ns = to_ns(timestamp, timestamp_ns)
        key = (net_flow.raw_src, net_flow.raw_dst, tcp.src_port, tcp.dst_port, 0)
        self._enter()
        try:
            self._packet += 1
            self._observe(seen_ns)
            self._segment(key, tcp.seq, tcp.ack, tcp.flags, tcp.payload, tcp.wire_payload_length, seen_ns, tcp.urgent, None, -1, False)
        finally:
            self._busy.release()

    def assemble_with_timestamp(self, net_flow: Flow, tcp: TCPSegment, timestamp: Timestamp) -> None:
        """`assemble` with the time as a third argument, as in the model.

        Args:
            net_flow, tcp, timestamp: as for `assemble`.
        """
        self.assemble(net_flow, tcp, timestamp)

    def assemble_frame(
        self,
        frame: Any,
        timestamp: Timestamp | None = None,
        *,
        timestamp_ns: SupportsIndex | None = None,
        linktype: int = 1,
        wire_length: int | None = None,
    ) -> Verdict:
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
        if type(frame) is not bytes:
            frame, timestamp, linktype, wire_length = plain_frame(frame, timestamp, timestamp_ns, linktype, wire_length)
        seen_ns = to_ns(timestamp, timestamp_ns)
        check_linktype(linktype)
        if wire_length is not None:
            if isinstance(wire_length, bool) or not isinstance(wire_length, int):
                raise TypeError(f"wire_length is an int or None, not {type(wire_length).__name__}: {wire_length!r}")
            if wire_length < 0:
                raise ValueError(f"wire_length is 0 or more, not {wire_length}")
        self._enter()
        try:
            return self._frame(frame, seen_ns, linktype, wire_length, -1)
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

    def tick(self) -> None:
        """`expire`, where a second of capture time has passed since the last tick that did so, or the clock was set back behind it."""
        self._enter()
        try:
            self._tick()
        finally:
            self._busy.release()

    def finish(self) -> int:
        """Give out everything held and close everything. Returns the number of connections closed."""
        self._enter()
        try:
            return self._finish()
        finally:
            self._busy.release()

    def _finish(self) -> int:
        closed = 0
        try:
            closed = self._walk(ALWAYS_NS, ALWAYS_NS, NEVER_NS)[1]
        except BaseException as raised:
            self._keep_error(raised)
        self._fragments.drop_all()
        self._pool.forget_closed(ALWAYS_NS)
        self._cache.shrink()
        self._settle()
        self._raise_late()
        return closed

    def shut(self, finish: bool) -> None:
        """No more calls from now on; before that, finish if asked to."""
        self._enter()
        try:
            if finish:
                self._finish()
        finally:
            self._fragments.drop_all()
            self._closed = True
            self._busy.release()

    @property
    def closed(self) -> bool:
        """close() was called."""
        return self._closed

    def now_ns(self) -> int | None:
        """Capture time, as far as it is believed: one packet whose time is far from the others' does not move it."""
        return self._clock.now_ns

    @property
    def packets_given(self) -> int:
        """Frames and segments that came in so far, between calls: `Reassembly.packet_number` of what the last one brought."""
        return self._packet

    def _number_from(self, packets: int) -> None:
        """What comes next has the number after that many."""
        self._enter()
        self._packet = packets
        self._busy.release()

    def advance_clock(self, now_ns: int) -> None:
        """Time goes on without packets (live captures)."""
        seen_ns = to_ns(None, now_ns)
        self._enter()
        try:
            self._observe(seen_ns)
        finally:
            self._busy.release()

    def _share_limit(self, assemblers: Sequence[AssemblerBase]) -> None:
        """The limits of what is held in all are one for these together, of which this is one. Of that of connections each gets its part."""
        self._limit_with = [assembler._cache for assembler in assemblers if assembler is not self]
        if self._limit_connections:
            self._limit_connections = max(1, self._limit_connections // len(assemblers))

    def _occupy(self) -> None:
        """Others work for it from now on: every call is refused, as in a call of its own. ValueError where it is closed, RuntimeError
        where it is at work."""
        self._enter()

    def _vacate(self) -> None:
        """The opposite."""
        self._busy.release()

    def _stand_in(self, other: AssemblerBase) -> None:
        """Settle fragments and senders by what another one holds and knows of them, which does nothing itself meanwhile (_occupy). One at a
        time, over a pool of its own that has no connections yet."""
        self._fragments, self._senders, self._unknown_linktypes = other._fragments, other._senders, other._unknown_linktypes

    def _take_time_of(self, other: AssemblerBase) -> None:
        """Capture time goes on here where another one has it: as far as it is believed, and when the next look is due at what waits."""
        self._clock, self._ticked_ns = other._clock, other._ticked_ns

    def _absorb(self, other: AssemblerBase) -> None:
        """What another assembler has counted counts here too, but of fragments and senders. Of several the numbers of packets, and the
        time, go on here behind the one that was given most of them."""
        for name, count in other._counts.items():
            self._counts[name] += count
        for verdict, count in enumerate(other._verdicts):
            self._verdicts[verdict] += count
        self._cache.requests += other._cache.requests
        if other._packet >= self._packet:
            self._packet = other._packet
            self._take_time_of(other)

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, int]]:
        """For AssemblerStats: COUNTERS, DROP_REASONS and EVICTION_REASONS, frames by verdict, FRAGMENT_COUNTERS and
        FRAGMENT_DROP_REASONS, and what is so now."""
        fragment_counts, fragments_held = self._fragments.counters()
        return (
            tuple(self._counts.values()),
            tuple(self._verdicts),
            tuple(fragment_counts),
            {
                "fragments_held": fragments_held,
                "offloading_senders": self._senders.offloading,
                "bytes_held": self._cache.held_bytes,
                "connections": len(self._pool),
                "pages_used": self._cache.used,
                "buffered_bytes": self._cache.buffered_bytes,
                "pages_allocated": self._cache.size,
                "page_requests": self._cache.requests,
            },
        )

    # -- a call -----------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this Assembler is at work already: called from a callback, or from two threads at once")
        if self._closed:
            self._busy.release()
            raise ValueError("this Assembler is closed")

    # -- many frames ------------------------------------------------------------------------------------------------

    def _take(self, frames: Iterable[tuple[bytes, int, int, int, int]], gather: bool, ticks: bool) -> tuple[int, int]:
        """The arguments of `_frame`, one after the other. Returns how many there were, and how many of them were segments."""
        return self._take_all((partial(self._frame, *frame) for frame in frames), gather, ticks)

    def _take_all(self, frames: Iterable[Callable[[], object]], gather: bool, ticks: bool) -> tuple[int, int]:
        """The same; each takes in a frame when it is called."""
        taken = 0
        self._enter()
        try:
            segments_before = self._verdicts[Verdict.SEGMENT]
            self._gathers = bool(gather)
            try:
                for frame in frames:
                    taken += 1
                    frame()
                    if ticks:
                        self._tick()
            except BaseException as raised:
                self._keep_error(raised)
            self._gathers = False
            self._give_gathered()
            self._settle()
            self._raise_late()
            return taken, self._verdicts[Verdict.SEGMENT] - segments_before
        finally:
            self._busy.release()

    def _frame(self, data: bytes, seen_ns: int, linktype: int, wire_length: int | None, offset: int) -> Verdict:
        """One frame, which stands at that offset in the file; -1 where that is not known."""
        self._packet += 1
        self._observe(seen_ns)
        verdict, segment, lies_in = self._decode(data, linktype, wire_length, self._clock.now_ns or 0)
        return self._decoded(verdict, segment, lies_in, seen_ns, -1 if lies_in is not data else offset)

    def _decode(self, data: bytes, linktype: int, wire_length: int | None, now_ns: int) -> tuple[Verdict, Segment | None, bytes]:
        """What a frame leads to, by the fragments that are held and the senders that are known: in packet order. The segment, if there is
        one to take in, and what it lies in: other bytes than the frame's where it came in fragments."""
        verdict, result = decode(data, linktype, wire_length, self._checksums, self._tunnels)
        if verdict is Verdict.SEGMENT and isinstance(result, Segment):  # what nearly every frame is
            return Verdict.SEGMENT, result, data
        if verdict == Verdict.UNKNOWN_LINKTYPE:
            self._tell_linktype(linktype)
        if isinstance(result, Fragment):
            if not self._defragments:
                return Verdict.FRAGMENT, None, data
            verdict, result, data = self._fragments.take(result, now_ns, self._tunnels)
        if self._checksums == JUDGE and verdict >= Verdict.BAD_CHECKSUM and result is not None:
            noticed = self._senders.offloading
            verdict = self._senders.judge((result.src, result.tunnels), verdict)
            if self._senders.offloading > noticed == 0:
                _log.warning("checksums of %s are left to its network card: not verified", Flow(result.src, result.dst).src)
        return Verdict(verdict), result if verdict == Verdict.SEGMENT else None, data

    def _tell_linktype(self, linktype: int) -> None:
        told = self._unknown_linktypes
        if linktype not in told and len(told) < MAX_LINKTYPES_TOLD:
            told.add(linktype)
            _log.warning("link type %d is not decoded: frames of it are left out", max(-LENGTH_LIMIT, min(LENGTH_LIMIT, linktype)))

    def _decoded(self, verdict: Verdict, segment: Segment | None, data: bytes, seen_ns: int, offset: int) -> Verdict:
        """What `_decode` says of one frame, whose data stands at that offset in the file."""
        if segment is None:
            self._verdicts[verdict] += 1
        else:
            text = segment.payload_offset
            self._segment(
                (segment.src, segment.dst, segment.src_port, segment.dst_port, segment.tunnels),
                segment.seq,
                segment.ack,
                segment.flags,
                memoryview(data)[text : text + segment.payload_length],
                segment.wire_payload_length,
                seen_ns,
                segment.urgent,
                timestamp_value(data[text - segment.header_length + 20 : text]) if self._paws else None,
                -1 if offset < 0 else offset + text,
                True,
            )
        return verdict

    # -- one segment ------------------------------------------------------------------------------------------------

    def _segment(
        self,
        key: RawKey,
        seq: int,
        ack: int,
        flags: int,
        payload: bytes | memoryview,
        wire: int,
        seen_ns: int,
        urgent: int,
        tsval: int | None,
        offset: int,
        from_frame: bool,
    ) -> None:
        counts = self._counts
        self._text_offset = offset
        self._tsval = tsval
        self._out_of_band = None
        if flags & URG and (urgent if self._urgent == URGENT_OOB else self._urgent == URGENT_OOB_LINUX):
            self._out_of_band = add(seq, max(0, urgent - 1))
        opens = bool(flags & SYN or wire) and not flags & RST
        no_ack = not flags & (SYN | RST | ACK) and bool(wire or flags & FIN)
        if opens and not no_ack and self._pool.may_be_full(self._limit_connections):
            self._evict_for_room(key)
        try:
            connection = None if no_ack else self._pool.acquire(key, opens, seen_ns, self._forget_before())
        except RuntimeError:
            self._clock = self._clock_before  # refused: as if it had not been called
            raise
        self._verdicts[Verdict.SEGMENT] += from_frame
        counts["segments"] += 1
        counts["urgent_segments"] += bool(flags & URG)
        counts["bytes_captured"] += len(payload)
        if no_ack:
            counts["no_ack_flag"] += len(payload)
            return
        if self._pairing is not None:
            self._at_hand = AtHand(flags, seq, ack, len(payload), seen_ns)
            self._is_noted = False
        if connection is None:
            refuses = self._note_beside(key)
            if flags & RST:
                counts["rst_ignored"] += not refuses
                counts["rst_text"] += len(payload)
            if self._debug:
                _log.debug("%s: nothing to open a stream with", key_object(key))
            self._settle()
            self._raise_late()
            return
        try:
            self._at_work_on = connection
            try:
                self._take_in(connection, seq, flags, payload, wire, seen_ns)
            finally:
                self._mark_acked(connection)
                self._out = []
                self._pool.release(connection)
                self._settle()
            if self._late_error is not None:
                raise self._late_error
        except BaseException as raised:
            if raised is not self._late_error and raised.__context__ is None:
                raised.__context__ = self._late_error
            raise
        finally:
            self._late_error = None
            if self._conflicts:
                self._tell_conflicts(key)
