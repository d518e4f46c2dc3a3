"""`Engine`: brings the segments of a connection into order.

Called once for each segment. Everything else in this core answers; here it is asked. State is committed before user code runs, so that a
callback that raises, or another thread that comes in meanwhile, finds everything consistent.

The way of a segment, top to bottom: _take_in, _text, then _deliver (in order) or _hold_in (early), _serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._log import Log
from ..errors import no_stream
from ..flow import Flow
from ..segment import ACK, FIN, RST, SYN
from .clock import ALWAYS_NS, NEVER_NS, Clock
from .connection import Connection, RawKey, Successor, key_object
from .conversation import ConversationState
from .pages import PAGE_BYTES, Page, PageCache, PageList
from .pool import ConversationPoolBase
from .reassembly import Reassembly
from .sequence import add, difference
from .serving import Server

SYN_REACH = 1 << 24  # a SYN that comes late lies at most so many bytes before the data that overtook it
CONTINUES_WITHIN = 1 << 20  # what continues from a SYN lies at most so many bytes behind it
START_REACH = 1 << 30  # without a start, data within so many bytes of the first belongs together
SPAN_LIMIT = (1 << 31) - 1  # what is held lies within so many bytes of next_seq, so that comparing is exact
TSVAL_IDLE_NS = 24 * 86400 * 10**9  # a timestamp says nothing any more after so long a silence (RFC 7323 5.5)

# Options, as numbers.
FIRST, LAST, BSD, LINUX, SOLARIS, OLD_LINUX = range(6)
URGENT_INLINE, URGENT_OOB, URGENT_OOB_LINUX = range(3)
SYN_DATA_DELIVERED, SYN_DATA_ACKED = range(2)

_log = Log("tcpreasm.assembly")


class AtHand(NamedTuple):
    """The segment at hand, where the pool pairs."""

    flags: int
    seq: int
    ack: int
    size: int
    seen_ns: int


class Engine(Server):
    """The connections of a pool, as one assembler serves them, and what it was told to do with them."""

    _cache: PageCache
    _limit_with: list[PageCache]  # of the others that the limits in all are shared with
    # options; -1: never; 0 for a limit: none
    _limit_total: int
    _limit_connection: int
    _limit_bytes_total: int
    _limit_bytes_connection: int
    _start_wait_segments: int
    _start_wait_ns: int
    _max_gap: int
    _hole_timeout_ns: int
    _acked_timeout_ns: int
    _idle_timeout_ns: int
    _closed_timeout_ns: int
    _limit_connections: int
    _opens_on_data: bool  # a stream is made for text or a FIN only, not for a SYN
    _on_evict: Callable[[Flow, Flow, str], object] | None
    _overlap: int
    _urgent: int
    _paws: bool
    _syn_data_waits: bool
    _on_conflict: Any
    _on_gap: Any
    _depth: int  # bytes of each stream that it gets; 0: all
    _pairing: ConversationPoolBase | None  # the pool, where it pairs
    _at_hand: AtHand | None
    _is_noted: bool  # it counts for its side of a conversation already
    _conflicts: list[tuple[int, bytearray, bytearray, str]]  # found in the segment at hand, for on_conflict
    _gaps: list[tuple[RawKey, int, int, str]]  # given up since the last call of _settle, for on_gap
    _counts: dict[str, int]
    _clock: Clock
    _clock_before: Clock  # of the packet at hand
    _out_of_band: int | None  # sequence number of the byte that the segment at hand has out of band
    _tsval: int | None  # its timestamp, where those are looked at
    _text_offset: int  # where the text of the segment at hand stands in the file; -1 where that is not known
    _packet: int  # number of the packet at hand, or of the last one
    _late_error: BaseException | None  # of a stream that ended while the segment still had to be taken in
    _debug: bool

    # -- time -------------------------------------------------------------------------------------------------------

    def _expiry(self, timeout_ns: int) -> int:
        """The time before which something is too old. Nothing expires by the setting of a clock."""
        now, _, changed = self._clock
        if now is None or timeout_ns < 0 or (changed is not None and 0 <= now - changed < timeout_ns):
            return NEVER_NS
        return now - timeout_ns

    def _forget_before(self) -> int:
        return self._expiry(self._closed_timeout_ns)

    # -- one segment ------------------------------------------------------------------------------------------------

    def _evict_for_room(self, key: RawKey) -> None:
        """There is room for a new connection, unless all there are are being served. What user code raises is raised once the segment at
        hand is taken in."""
        while self._limit_connections and (evicted := self._pool.evict(key, self._limit_connections, self._forget_before())):
            old_key, connection, reason = evicted
            self._counts["evicted_" + reason] += 1
            try:
                if connection is not None:
                    self._drop_unopened(connection)
                    self._close(connection)
            except BaseException as raised:
                self._late_error = self._late_error or raised
            finally:
                self._out = []
                if connection is not None:
                    self._pool.release(connection)
            if self._debug:
                _log.debug("%s: evicted, %s", key_object(old_key), reason)
            try:
                if self._on_evict is not None:
                    self._on_evict(*key_object(old_key), reason)
            except BaseException as raised:
                self._late_error = self._late_error or raised

    def _take_in(self, connection: Connection, seq: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int) -> None:
        if connection.closed:
            if not self._reopens(connection, seq, flags, wire):
                self._note(connection)
                self._counts["after_close"] += len(payload)
                return
            self._restart(connection, connection.successor, len(payload), seen_ns)
        elif connection.side is None and self._pairing is not None:
            self._join(connection, None)
        if connection.stream is None:
            self._open_if_due(connection, seq, flags, len(payload), wire)
        if flags & RST or not flags & SYN:
            connection.half_open = False
        elif connection.half_open and connection.end_seq is None:
            connection.end_seen_ns = max(connection.last_seen_ns, seen_ns)
        if seen_ns - connection.last_seen_ns > TSVAL_IDLE_NS:
            connection.tsval = None
        connection.last_seen_ns = max(connection.last_seen_ns, seen_ns)
        if flags & RST:
            self._reset(connection, seq, len(payload), seen_ns)
        elif flags & SYN:
            self._syn(connection, seq, flags, payload, wire, seen_ns)
        elif wire or flags & FIN:
            self._continue(connection, seq, flags, payload, wire, seen_ns)
        else:
            self._note(connection)
            if flags & ACK and not self._is_old(connection, seq, 0) and connection.syn_data:
                self._settle_syn_data(connection, seq, 0)
        self._serve(connection, self._packet)

    def _open_if_due(self, connection: Connection, seq: int, flags: int, size: int, wire: int) -> None:
        """Its stream is made, unless the segment brings nothing to it: to none at all, and that is waited for, or to the next one."""
        if self._opens_on_data and not self._brings_data(connection, seq, flags, wire):
            return
        if not self._follows_successor(connection, seq, flags, wire):
            self._open_late(connection, size, self._packet)

    def _brings_data(self, connection: Connection, seq: int, flags: int, wire: int) -> bool:
        """Text or a FIN, for a connection without a stream. What comes with a SYN and is only held until another segment confirms it is
        none."""
        if flags & RST or not (wire or flags & FIN):
            return False
        if not flags & SYN:
            return True
        if connection.next_seq is not None:
            return self._is_own_syn(connection, seq) and not connection.syn_data
        return not (self._syn_data_waits and wire)

    def _open_late(self, connection: Connection, at_stake: int, packet: int) -> None:
        """Its stream is made, and told of its start where the SYN has come before."""
        self._open_stream(connection, at_stake)
        if connection.next_seq is not None:
            self._emit_empty(connection, connection.end_seen_ns, packet, True)

    def _drop_unopened(self, connection: Connection) -> None:
        """It ends without a stream: what a SYN brought, and nothing confirmed, goes nowhere."""
        if connection.syn_data and connection.stream is None:
            self._drop(connection.pages, "unconfirmed_syn")
            connection.syn_data = False
            connection.end_seq = None

    def _open_stream(self, connection: Connection, at_stake: int) -> None:
        try:
            stream = self._pool._make(connection)
            try:
                reassembled, complete = stream.reassembled, stream.reassembly_complete
            except AttributeError as error:
                raise no_stream(stream, connection.key) from error
        except BaseException:
            self._counts["factory_error"] += at_stake
            self._drop(connection.pages, "factory_error")
            self._drop_successor(connection)
            if self._pairing is not None:
                self._pairing.give_back_side(connection)
            self._pool.remove(connection)
            raise
        self._counts["streams_opened"] += 1
        connection.stream, connection.reassembled, connection.reassembly_complete = stream, reassembled, complete

    def _reset(self, connection: Connection, seq: int, text: int, seen_ns: int) -> None:
        """RST: only at the exact sequence number expected (RFC 5961 3.2). Its text is not part of the stream."""
        self._note(connection)
        self._counts["rst_text"] += text
        last = connection.pages.last
        if connection.syn_data and last is not None and seq == add(last.end, last.missing):
            self._advance(connection)  # it was accepted
        expected = connection.next_seq
        if expected is None and connection.waits():
            expected = connection.early_end if connection.end_seq is None else connection.end_seq
        if seq != expected:
            self._counts["rst_ignored"] += 1
            return
        connection.end_seq, connection.end_seen_ns = seq, seen_ns
        if connection.side is not None and self._pairing is not None:
            connection.side.note_rst()
            self._pairing.look_after(connection.side.conversation)
        if connection.next_seq is None:
            self._skip(connection, "holes_ended")

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
                if connection.stream is None:
                    self._open_if_due(connection, isn, flags, len(payload), wire)
            self._note_syn(connection)
            if self._debug:
                _log.debug("%s: starts at %d", connection.key, isn)
            connection.half_open = not connection.waits()
            connection.syn_data = self._syn_data_waits and wire > 0 and connection.half_open
            self._start(connection, isn)
            if connection.end_seq is None:
                connection.end_seen_ns = connection.last_seen_ns
            connection.tsval = self._tsval
            if connection.syn_data:
                self._emit_empty(connection, seen_ns, self._packet, True)
            self._text(connection, text_seq, flags, payload, wire, seen_ns, not connection.syn_data)
        elif self._is_own_syn(connection, isn):
            self._note_syn(connection)
            if connection.isn is None:
                connection.isn = isn
                self._counts["late_syn"] += 1
            self._text(connection, text_seq, flags, payload, wire, seen_ns, False)
        else:
            self._drop_successor(connection)
            self._counts["syn_remembered"] += 1
            ack = None if self._at_hand is None or not flags & ACK else self._at_hand.ack
            self._note(connection, False)
            connection.successor = Successor(isn, add(text_seq, wire), seen_ns, self._packet, PageList(), self._tsval, ack)
            if wire:
                self._hold_in(connection.successor.pages, text_seq, payload, wire - len(payload), seen_ns, False)
                if self._is_at_limit(connection.successor.pages):
                    self._drop(connection.successor.pages, "unconfirmed_syn")

    def _continue(self, connection: Connection, seq: int, flags: int, payload: bytes | memoryview, wire: int, seen_ns: int) -> None:
        if self._follows_successor(connection, seq, flags, wire):
            successor, connection.successor = connection.successor, None
            self._begin_anew(connection, successor, len(payload), seen_ns)
        self._note(connection)
        if self._is_old(connection, seq, wire + (flags & FIN)):
            self._counts["paws"] += len(payload)
        elif connection.syn_data and not self._settle_syn_data(connection, seq, wire + (flags & FIN)):
            self._counts["retransmitted"] += len(payload)
            self._counts["fin_ignored"] += bool(flags & FIN)
        else:
            self._text(connection, seq, flags, payload, wire, seen_ns, False)

    def _is_old(self, connection: Connection, seq: int, size: int) -> bool:
        """PAWS (RFC 7323 5.3): its timestamp is older than the last one of a segment in order. One that is in order sets that.

        Behind a hole none is set: what fills the hole may have been sent before. Nor by what is old altogether: RFC 9293 3.10.7.4 has it
        refused before.
        """
        if self._tsval is None or connection.next_seq is None:
            return False
        if connection.tsval is not None and difference(connection.tsval, self._tsval) < 0:
            return True
        ahead = difference(connection.next_seq, seq)
        if ahead <= 0 and (ahead + size > 0 or ahead == size == 0):
            connection.tsval = self._tsval
        return False

    def _settle_syn_data(self, connection: Connection, seq: int, size: int) -> bool:
        """What becomes of a SYN's text, with the next segment of its direction: RFC 7413 4.2.2 has the sender go on behind what was
        acknowledged, and send the rest again. False where this one does not tell: it lies before that text."""
        ahead = difference(connection.first_seq, seq)
        if ahead <= 0 and ahead + size <= 0:
            return False
        if ahead > 0:
            self._cut_pages(connection, seq, "unconfirmed_syn")
            self._advance(connection)
        else:
            self._drop(connection.pages, "unconfirmed_syn")
        connection.syn_data = False
        return True

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
        return self._follows_successor(connection, seq, flags, wire)

    def _start(self, connection: Connection, isn: int) -> None:
        connection.isn = isn
        connection.next_seq = connection.first_seq = connection.cut_end = add(isn, 1)

    def _follows_successor(self, connection: Connection, seq: int, flags: int, wire: int) -> bool:
        """A segment continues from another SYN that was remembered, and not from what is open."""
        successor = connection.successor
        if successor is None or flags & (SYN | RST) or not (wire or flags & FIN):
            return False
        if connection.next_seq is None or seq == connection.next_seq:
            return False
        ahead = difference(add(successor.isn, 1), seq)
        if ahead == 0 or seq == successor.next_seq:
            return True
        return 0 < ahead <= CONTINUES_WITHIN and abs(difference(connection.next_seq, seq)) > CONTINUES_WITHIN

    def _begin_anew(self, connection: Connection, successor: Successor | None, at_stake: int, seen_ns: int) -> None:
        """The stream at hand is over, with all that it holds; the same connection begins again."""
        reassembled, complete = connection.reassembled, connection.reassembly_complete
        self._drop_unopened(connection)
        self._finish_pieces(connection)
        pieces, self._out = self._out, []
        try:
            self._call_last(connection, reassembled, complete, pieces)
        except BaseException as raised:
            self._late_error = self._late_error or raised  # raised once the segment at hand is taken in
        self._restart(connection, successor, at_stake, seen_ns)

    def _restart(self, connection: Connection, successor: Successor | None, at_stake: int, seen_ns: int) -> None:
        """A new stream under the same key, from the SYN that was remembered, or from the one at hand."""
        self._pool.reopen(connection, seen_ns)
        if self._pairing is not None:
            self._join(connection, successor)
        if successor is not None:
            connection.pages = successor.pages
        if successor is not None or not self._opens_on_data:
            self._open_stream(connection, at_stake)
        if successor is not None:
            self._start(connection, successor.isn)
            connection.tsval = successor.tsval
            self._emit_empty(connection, successor.seen_ns, successor.packet, True)
            connection.syn_data = self._syn_data_waits and connection.pages.count > 0
            if not connection.syn_data:
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
        if connection.next_seq is None:
            self._wait_for_start(connection, seq, payload, wire - len(payload), seen_ns)
            return
        ahead = difference(connection.next_seq, seq)
        if self._is_out_of_window(connection, ahead, seq, wire):
            self._counts["out_of_window"] += len(payload)
            return
        if self._depth and not connection.stopped and not self._left(connection):
            self._end_at_depth(connection)  # another assembler went on so far
        if connection.stopped:
            self._counts["stopped"] += len(payload)
            connection.go_on_to(add(seq, wire) if wire else connection.next_seq)
            return
        if self._depth and wire > (room := self._left(connection) - ahead):
            # Of what lies behind it, only where it ends is known from here on, as of what the capture cut off.
            keep = max(0, min(room, len(payload)))
            self._counts["stopped"] += len(payload) - keep
            payload = payload[:keep]
            seq, wire = add(seq, min(0, room)), wire - min(0, room)
        missing = wire - len(payload)
        if connection.syn_data:
            if wire:
                self._hold_in(connection.pages, seq, payload, missing, seen_ns, False)
                self._keep_limits(connection)
        elif ahead <= 0:
            self._deliver(connection, seq, payload, missing, seen_ns, start)
        elif wire:
            self._hold_in(connection.pages, seq, payload, missing, seen_ns, False)
            if self._debug:
                _log.debug("%s: %d bytes ahead, held", connection.key, ahead)
            self._keep_limits(connection)

    def _is_out_of_window(self, connection: Connection, ahead: int, seq: int, wire: int) -> bool:
        if ahead == -1 - SPAN_LIMIT:  # neither ahead nor behind
            return True
        if ahead <= 0 or not wire or connection.syn_data:
            return False
        return ahead + wire > SPAN_LIMIT or (ahead > self._max_gap and self._is_wild(connection, seq, wire))

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
            if connection.side is not None:
                connection.side.note_fin()
            self._cut_pages(connection, end_seq, "after_end")

    def _cut_pages(self, connection: Connection, end_seq: int, reason: str) -> None:
        """Nothing is held from there on."""
        pages = connection.pages
        while (page := pages.last) is not None:
            room = difference(page.seq, end_seq)
            page.missing = max(0, min(page.missing, room - len(page)))
            if room >= len(page) and (len(page) or page.missing):
                break
            if room > 0:
                self._counts[reason] += len(page) - room
                page.hold(page.bytes[:room])
                break
            self._counts[reason] += len(page)
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
            self._skip(connection, "holes_expired")
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
        if page is not None and self._overlap != FIRST:
            missing = self._make_room(connection.pages, page, before, seq, payload, missing)
            page = connection.pages.first
        if start and page is not None and page.seq == seq:
            self._emit_empty(connection, seen_ns, self._packet, True)
            start = False
        while page is not None and position < size and (at := done + difference(before, page.seq)) < size:
            if position < at:
                self._emit_text(connection, seq, payload, position, at, seen_ns, start)
                start = False
            self._compare(page, 0, payload, at, at + len(page), False)
            position = max(position, at + len(page))
            connection.next_seq = page.seq
            self._emit_page(connection)
            page = connection.pages.first
        if position < size or start:
            self._emit_text(connection, seq, payload, position, size, seen_ns, start)
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
        if connection.syn_data:
            if connection.stream is None:
                self._open_late(connection, 0, 0)
            connection.syn_data = False
        if self._depth:
            self._keep_depth(connection)
        while not self._depth or self._left(connection):
            page = connection.pages.first
            if page is not None and difference(connection.next_seq, page.seq) <= 0:
                self._emit_page(connection)
                continue
            cut = difference(connection.next_seq, connection.cut_end)
            if cut <= 0:
                break
            if page is not None:
                cut = min(cut, difference(connection.next_seq, page.seq))
            if self._depth:
                cut = min(cut, self._left(connection))
            self._jump(connection, cut, "cut")
        if self._depth and not self._left(connection) and not connection.ended():
            self._end_at_depth(connection)
        connection.cut_end = connection.next_seq

    def _jump(self, connection: Connection, missing: int, why: str) -> None:
        """next_seq goes on over bytes that are missing."""
        assert connection.next_seq is not None
        before = connection.next_seq
        connection.next_seq = add(before, missing)
        if connection.skip >= 0:  # else they belong to an unknown number anyway
            if missing and self._on_gap is not None:
                self._gaps.append((connection._key, before, missing, why))
            connection.skip += missing
            self._counts["bytes_skipped"] += missing
            if connection.side is not None:
                connection.side.skipped += missing

    def _offset(self, position: int) -> int:
        """Where that byte of the text at hand stands in the file."""
        return -1 if self._text_offset < 0 else self._text_offset + position

    def _emit_text(
        self, connection: Connection, seq: int, payload: bytes | memoryview, begin: int, end: int, seen_ns: int, start: bool
    ) -> None:
        """payload[begin:end], without what is out of band."""
        apart = -1 if self._out_of_band is None else difference(seq, self._out_of_band)
        if begin <= apart < end:
            self._counts["urgent"] += 1
            if begin < apart or start:
                self._emit(connection, payload[begin:apart], seen_ns, start, self._offset(begin), self._packet, add(seq, begin))
                start = False
            begin = apart + 1
            if begin == end:
                return
        self._emit(connection, payload[begin:end], seen_ns, start, self._offset(begin), self._packet, add(seq, begin))

    def _emit_empty(self, connection: Connection, seen_ns: int, packet: int, start: bool) -> None:
        """A piece without bytes, where the stream stands. packet: the one that led to it; 0: none did."""
        assert connection.next_seq is not None
        self._emit(connection, b"", seen_ns, start, -1, packet, connection.next_seq)

    def _emit(
        self, connection: Connection, data: bytes | memoryview, seen_ns: int, start: bool, offset: int, packet: int, seq: int
    ) -> None:
        if connection.stream is not None:  # else it is empty, and there is no stream that it could be told
            self._out.append(Reassembly(data, connection.skip, start, False, seen_ns, offset if len(data) else -1, packet, seq))
        self._counts["bytes_delivered"] += len(data)
        if connection.side is not None:
            connection.side.delivered += len(data)
        connection.skip = 0

    def _emit_page(self, connection: Connection) -> None:
        """The first page goes out; it begins at or before next_seq."""
        assert connection.next_seq is not None
        page = connection.pages.pop_first()
        if page.urgent:
            self._counts["urgent"] += 1
        elif len(page):
            self._emit(connection, page.bytes, page.seen_ns, False, page.offset, page.packet, page.seq)
        connection.next_seq = page.end
        if page.missing:
            self._note_cut(connection, add(page.end, page.missing))
        self._cache.give_back(page)

    # -- what arrives early -----------------------------------------------------------------------------------------

    def _hold_in(self, pages: PageList, seq: int, payload: bytes | memoryview, missing: int, seen_ns: int, unsure: bool) -> None:
        """Copy into pages what they do not hold yet, one byte after the other; before that they lose what the policy says."""
        size = len(payload)
        wire = size + missing
        prev, next_ = pages.find(seq)
        if self._overlap != FIRST:
            missing = self._make_room(pages, next_ if prev is None else prev, seq, seq, payload, missing)
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
                offset = self._offset(position)
                prev = self._push(pages, prev, next_, add(seq, position), payload[position:at], seen_ns, offset, seq, wire)
            if next_ is None or at >= size:
                break
            position = min(size, at + len(next_))
            self._compare(next_, 0, payload, at, position, unsure)
            prev, next_ = next_, next_.next
        if missing:
            self._hold_cut(pages, prev, next_, seq, size, missing, seen_ns)

    def _push(
        self,
        pages: PageList,
        prev: Page | None,
        next_: Page | None,
        seq: int,
        data: bytes | memoryview,
        seen_ns: int,
        offset: int,
        begin: int,
        wire: int,
    ) -> Page:
        """A chain of pages for data, from a segment that came as [begin, begin + wire), goes in between two neighbours. Returns its last
        page."""
        apart = -1 if self._out_of_band is None else difference(seq, self._out_of_band)
        first = last = None
        position = end = 0
        while last is None or end < len(data):
            position, end = end, min(len(data), end + PAGE_BYTES)
            out_of_band = position == apart
            if out_of_band:
                end = min(end, position + 1)
            elif position < apart < end:
                end = apart
            page = self._cache.take(seen_ns, end - position)
            page.urgent = out_of_band and len(data) > 0
            page.seq = add(seq, position)
            page.packet = self._packet
            if self._overlap > LAST:
                page.came = begin, add(begin, wire)
            page.offset = -1 if offset < 0 else offset + position
            page.hold(data[position:end])
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
            prev = self._push(pages, prev, next_, seq, b"", seen_ns, -1, seq, size + missing)
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
        # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
        gives_way = unsure and len(page) == 1 and page.prev is None
        self._count_conflicts(add(page.seq, place), held, copy, gives_way)
        if gives_way:
            page.hold(copy)
            page.offset = self._offset(begin)
            page.packet = self._packet
            page.urgent = self._out_of_band == page.seq

    def _count_conflicts(self, seq: int, held: bytes, new: bytes | memoryview, new_wins: bool) -> None:
        """Two copies of the bytes from seq on; on_conflict will be told of each run of bytes that differ."""
        begin = -1  # of a run
        for at in range(len(held) + 1):
            differs = at < len(held) and held[at] != new[at]
            self._counts["conflicting"] += differs
            if differs and begin < 0:
                begin = at
            elif not differs and begin >= 0:
                if self._on_conflict is not None:
                    self._note_conflict(add(seq, begin), held[begin:at], new[begin:at], "new" if new_wins else "held")
                begin = -1

    def _note_conflict(self, seq: int, held: bytes, new: bytes | memoryview, wins: str) -> None:
        """A run of differing bytes. Where pages meet, it goes on from the last one."""
        if self._conflicts:
            first, held_before, new_before, winner = self._conflicts[-1]
            if winner == wins and add(first, len(held_before)) == seq:
                held_before += held
                new_before += new
                return
        self._conflicts.append((seq, bytearray(held), bytearray(new), wins))

    # -- whose bytes stay -------------------------------------------------------------------------------------------

    def _wins(self, begin: int, behind: int, page: Page) -> bool:
        """A segment that came as [begin, behind) wins over one that is held. Both cover some byte, and so lie close to each other."""
        if self._overlap == LAST:
            return True
        held_begin, held_behind = page.brought_by
        first = difference(held_begin, begin)  # above 0: it begins behind the held one
        last = difference(held_behind, behind)
        if self._overlap == SOLARIS:
            return last >= 0 if first <= 0 else last > 0
        if first == 0:
            return (self._overlap == LINUX and last > 0) or (self._overlap == OLD_LINUX and last >= 0)
        return first < 0

    def _make_room(self, pages: PageList, page: Page | None, near: int, seq: int, payload: bytes | memoryview, missing: int) -> int:
        """Pages from this one on lose the bytes over which the text at hand wins. `near` lies within 2**31 of the text and of them.

        Returns how many bytes right behind the text were cut off, as far as is known now: what a page knew of that is not lost with it.
        """
        size = len(payload)
        begin, behind = seq, add(seq, size + missing)
        done = difference(seq, near)
        while page is not None and (at := done + difference(near, page.seq)) < size:
            next_ = page.next
            first, end = max(0, at), min(size, at + len(page))
            if first < end and self._wins(begin, behind, page):
                self._counts["overlapping"] += end - first
                if page.bytes[first - at : end - at] != payload[first:end]:
                    self._count_conflicts(add(seq, first), page.bytes[first - at : end - at], payload[first:end], True)
                if end == at + len(page) and page.missing:
                    missing = max(missing, end + page.missing - size)
                self._take_out(pages, page, first - at, end - at)
            page = next_
        return missing

    def _take_out(self, pages: PageList, page: Page, begin: int, end: int) -> None:
        """Some of a page's bytes go. What is left behind them stands in a page of its own, where some are left before them too."""
        behind = page.bytes[end:]
        if begin and behind:
            tail = self._cache.take(page.seen_ns, len(behind))
            tail.seq = add(page.seq, end)
            tail.missing = page.missing
            tail.packet = page.packet
            tail.came = page.brought_by if self._overlap > LAST else None
            tail.offset = -1 if page.offset < 0 else page.offset + end
            tail.hold(behind)
            pages.push_between(page, page.next, tail, tail)
        if begin:
            page.hold(page.bytes[:begin])
            page.missing = 0
        elif behind:
            page.hold(behind)
            page.seq = add(page.seq, end)
            page.offset = -1 if page.offset < 0 else page.offset + end
        else:
            pages.remove(page)
            self._cache.give_back(page)

    def _keep_limits(self, connection: Connection) -> None:
        while self._is_at_limit(connection.pages):
            if self._debug:
                _log.debug("%s: limit reached with %d pages", connection.key, connection.pages.count)
            self._skip(connection, "holes_limited")

    def _is_at_limit(self, pages: PageList) -> bool:
        if pages.count == 0:
            return False
        caches = [self._cache, *self._limit_with]
        return (
            0 < self._limit_connection <= pages.count
            or 0 < self._limit_bytes_connection <= pages.buffered_bytes
            or 0 < self._limit_total <= sum(cache.used for cache in caches)
            or 0 < self._limit_bytes_total <= sum(cache.buffered_bytes for cache in caches)
        )

    def _skip(self, connection: Connection, why: str) -> None:
        """Stop waiting for the lowest hole: over it, and on with what is contiguous then. It counts as a hole of that kind."""
        target = connection.first_held()
        if connection.next_seq is None:
            connection.next_seq = connection.first_seq = connection.cut_end = target
            connection.skip = -1
            if self._on_gap is not None:
                self._gaps.append((connection._key, target, -1, "start"))
        else:
            missing = difference(connection.next_seq, target)
            if self._depth:
                missing = min(missing, self._left(connection))
            self._counts[why] += missing != 0
            self._jump(connection, missing, why.removeprefix("holes_"))
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

    # -- its stream -------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection, packet: int) -> None:
        """Commit what this call has led to, then tell the stream. packet: the one at hand; 0: there is none."""
        reassembled, complete = connection.reassembled, None
        if connection.ended():
            complete = connection.reassembly_complete
            if not connection.stopped:
                if connection.skip or not self._out:
                    self._emit_empty(connection, connection.end_seen_ns, packet, False)
                if self._out:
                    self._out[-1].end = True
            self._drop(connection.pages, "after_end")
            if connection.successor is not None:
                self._drop(connection.successor.pages, "unconfirmed_syn")  # its SYN is still remembered
            self._counts["streams_closed"] += connection.stream is not None
            now = self._clock.now_ns
            if connection.side is not None:
                connection.side.ended = True
            self._pool.close(connection, connection.last_seen_ns if now is None else now)
            if self._debug:
                _log.debug("%s: ended", connection.key)
            self._call_last(connection, reassembled, complete, self._out)
        else:
            self._call(connection, reassembled, None, self._out)

    def _close(self, connection: Connection, remembers: bool = False) -> None:
        """The end of a connection that nobody closed; or the other side did, so that late packets are to be expected."""
        self._finish_pieces(connection)  # which may make the stream
        reassembled, complete = connection.reassembled, connection.reassembly_complete
        if remembers:
            now = self._clock.now_ns
            self._pool.close(connection, connection.last_seen_ns if now is None else now)
        else:
            self._pool.remove(connection)
        self._call_last(connection, reassembled, complete, self._out)

    def _call_last(self, connection: Connection, reassembled: Any, complete: Any, pieces: list[Reassembly]) -> None:
        """What there is for a stream that is over; then that counts for its conversation."""
        side = connection.side
        try:
            self._call(connection, reassembled, complete, pieces)
        finally:
            if side is not None and self._pairing is not None:
                self._pairing.end_side(side)

    def _finish_pieces(self, connection: Connection) -> None:
        """Everything held goes out; a gap behind the last byte goes out as a piece of its own."""
        while connection.waits():
            self._skip(connection, "holes_ended")
        ended = connection.ended()
        if not connection.stopped:
            if connection.skip or (ended and not self._out):
                self._emit_empty(connection, connection.end_seen_ns if ended else connection.last_seen_ns, 0, False)
            if ended and self._out:
                self._out[-1].end = True
        if ended and connection.side is not None:
            connection.side.ended = True
        self._drop_successor(connection)
        self._counts["streams_closed"] += connection.stream is not None

    # -- a stream that gets no more ---------------------------------------------------------------------------------

    def _stop(self, connection: Connection) -> None:
        """Its stream has returned STOP. Where only a hole was before the FIN, that is the end."""
        self._out = []
        if not connection.stopped:
            self._let_go(connection)
            if connection.ended():
                self._serve(connection, 0)

    def _let_go(self, connection: Connection) -> None:
        """From now on its segments are followed, and that is all. What is missing, and no piece has told, counts as if it had not been
        looked for."""
        last = connection.pages.last
        if connection.skip > 0:
            self._counts["bytes_skipped"] -= connection.skip
            if connection.side is not None:
                connection.side.skipped -= connection.skip
        connection.skip = 0
        connection.stopped = True
        connection.syn_data = False
        connection.go_on_to(connection.cut_end)
        if last is not None:
            connection.go_on_to(add(last.end, last.missing))
        self._drop(connection.pages, "stopped")

    def _end_at_depth(self, connection: Connection) -> None:
        """It has had all, but for being told of what is missing last."""
        if connection.skip:
            self._emit_empty(connection, connection.last_seen_ns, 0, False)
        self._let_go(connection)

    def _left(self, connection: Connection) -> int:
        """Bytes from next_seq on that its depth leaves it."""
        if connection.past_start or connection.next_seq is None:
            return 0
        return max(0, self._depth - difference(connection.first_seq, connection.next_seq))

    def _keep_depth(self, connection: Connection) -> None:
        """What came before the start was known, or through another assembler, may reach too far. As `_text` has it with later text."""
        pages, last = connection.pages, connection.pages.last
        assert connection.next_seq is not None
        if last is not None:
            end_seq = add(connection.next_seq, self._left(connection))
            if difference(end_seq, last.end) > 0:
                missing, seen_ns = difference(end_seq, last.end) + last.missing, last.seen_ns
                self._cut_pages(connection, end_seq, "stopped")
                self._hold_in(pages, end_seq, b"", missing, seen_ns, False)

    def _tell_gaps(self, error: BaseException | None) -> BaseException | None:
        """To whoever asked for them. An exception leaves the others untold. Returns the first one: `error`, or one from here."""
        gaps, self._gaps = self._gaps, []
        try:
            for key, seq, missing, why in gaps:
                self._on_gap(*key_object(key), seq, missing, why)
        except BaseException as raised:
            error = error or raised
        return error

    # -- both directions together -----------------------------------------------------------------------------------

    def _join(self, connection: Connection, successor: Successor | None) -> None:
        """A connection that begins gets its side of a conversation: with the segment at hand, or with the SYN that was remembered."""
        assert self._pairing is not None
        assert self._at_hand is not None
        flags, isn, ack, _, seen_ns = self._at_hand
        if successor is not None:
            flags, isn, ack = SYN if successor.ack is None else SYN | ACK, successor.isn, successor.ack or 0
            seen_ns = successor.seen_ns
        side = self._pairing.join(connection, flags, isn, ack, self._forget_before())
        if flags & SYN:
            side.note_syn(flags, isn, ack, seen_ns, successor is None)
        if successor is not None:
            side.ack = successor.ack
        self._note(connection)

    def _note(self, connection: Connection, acknowledges: bool = True) -> None:
        """The segment at hand counts for this connection's side, unless it has done so already."""
        side, at_hand = connection.side, self._at_hand
        if side is None or at_hand is None or self._is_noted:
            return
        self._is_noted = True
        if side.note(at_hand.flags if acknowledges else at_hand.flags & ~ACK, at_hand.ack, at_hand.size, at_hand.seen_ns):
            peer = side.peer.connection
            if peer is not None:
                self._mark_acked(peer)

    def _note_syn(self, connection: Connection) -> None:
        """The segment at hand is the SYN of this connection."""
        self._note(connection)
        if connection.side is not None and self._at_hand is not None:
            flags, isn, ack, _, seen_ns = self._at_hand
            connection.side.note_syn(flags, isn, ack, seen_ns, True)

    def _note_beside(self, key: RawKey) -> bool:
        """The segment at hand has no connection, but may belong to a conversation. True: it refuses that, by RFC 9293 3.10.7.3."""
        at_hand = self._at_hand
        if at_hand is None or self._pairing is None:
            return False
        side = self._pairing.side_beside(key, self._forget_before())
        if side is None or side.peer.connection is None:
            return False
        flags, _, ack, size, seen_ns = at_hand
        peer = side.peer.connection
        if side.note(flags, ack, size, seen_ns):
            self._mark_acked(peer)
        if flags & (FIN | ACK | RST) == FIN | ACK:
            side.note_fin()
            self._pairing.look_after(side.conversation)
        if flags & (ACK | RST) != ACK | RST or peer.closed or peer.isn is None or side.ack is not None or side.peer.ack is not None:
            return False
        last = peer.pages.last if peer.syn_data else None
        if ack not in (add(peer.isn, 1), peer.next_seq if last is None else add(last.end, last.missing)):
            return False
        side.note_refusal()
        self._pairing.look_after(side.conversation)
        return True

    def _is_acked(self, connection: Connection, ack: int) -> bool:
        """The lowest hole ends at or before a number that the other side has acknowledged."""
        if connection.state != Connection.OPEN or connection.next_seq is None or connection.syn_data or not connection.waits():
            return False
        return difference(connection.first_held(), ack) >= 0 and difference(connection.next_seq, ack) <= self._max_gap

    def _mark_acked(self, connection: Connection) -> None:
        """Note since when the other side has had what is missing before the lowest thing held."""
        side = connection.side
        if side is None or self._pairing is None or (side.acked_ns is not None and self._is_acked(connection, side.acked_to)):
            return
        side.acked_ns = None
        ack = side.peer.ack
        if ack is not None and self._acked_timeout_ns >= 0 and self._is_acked(connection, ack):
            side.acked_ns, side.acked_to = self._clock.now_ns, ack
            side.conversation.gives_up = side.conversation.gives_up or self._acked_timeout_ns == 0
            self._pairing.look_after(side.conversation)

    def _give_up_acked(self, connection: Connection, before_ns: int) -> bool:
        """Holes go that were acknowledged before that time, no others: who acknowledges has the bytes, and nobody sends them again."""
        side = connection.side
        if side is None or side.acked_ns is None or side.acked_ns >= before_ns:
            return False
        gives_up = self._is_acked(connection, side.acked_to)
        while self._is_acked(connection, side.acked_to):
            self._skip(connection, "holes_acked")
        side.acked_ns = None
        return gives_up

    def _settle(self, error: BaseException | None) -> BaseException | None:
        """What the last segments led to for conversations, and what of them was given up. Returns the first exception of user code:
        `error`, or one from here."""
        while self._pairing is not None and (conversation := self._pairing.next_pending()) is not None:
            gives_up, conversation.gives_up = conversation.gives_up, False
            if gives_up:
                error = self._serve_sides(conversation, False, error)
            if (conversation.reset or conversation.refused) and not conversation.complete:
                error = self._serve_sides(conversation, True, error)
            if conversation.complete and not conversation.told:
                conversation.told = True
                try:
                    if conversation.conversation is not None:
                        self._pairing._tell_complete(conversation)
                except BaseException as raised:
                    error = error or raised
        return self._tell_gaps(error) if self._gaps else error

    def _serve_sides(self, conversation: ConversationState, closes: bool, error: BaseException | None) -> BaseException | None:
        """Each side that is open: close it, or give up what was acknowledged. One that this very thread serves is left as it is."""
        for side in conversation.sides:
            connection = side.connection
            if connection is None or side.over or not self._pool.acquire_open(connection, connection._key):
                continue
            try:
                if closes:
                    self._drop_unopened(connection)
                    self._close(connection, True)
                elif self._give_up_acked(connection, ALWAYS_NS):
                    self._mark_acked(connection)
                    self._serve(connection, 0)
            except BaseException as raised:
                error = error or raised
            finally:
                self._out = []
                self._pool.release(connection)
        return error
