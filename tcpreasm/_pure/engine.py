"""`Engine`: brings the segments of a connection into order.

Called once for each segment. Everything below it answers; here it is asked: what a segment is to its connection, by sequence numbers and
flags, and so what is done with its text. State is committed before user code runs, so that a callback that raises, or another thread that
comes in meanwhile, finds everything consistent.

The way of a segment, top to bottom: _take_in, _text, then _deliver (in order, delivering.py) or _hold_in (early, holding.py), _serve.
"""

from __future__ import annotations

from .._log import Log
from ..segment import ACK, FIN, RST, SYN
from .connection import Connection, Successor
from .evicting import Evicter
from .pages import PageList
from .sequence import add, difference

SYN_REACH = 1 << 24  # a SYN that comes late lies at most so many bytes before the data that overtook it
CONTINUES_WITHIN = 1 << 20  # what continues from a SYN lies at most so many bytes behind it
START_REACH = 1 << 30  # without a start, data within so many bytes of the first belongs together
SPAN_LIMIT = (1 << 31) - 1  # what is held lies within so many bytes of next_seq, so that comparing is exact
TSVAL_IDLE_NS = 24 * 86400 * 10**9  # a timestamp says nothing any more after so long a silence (RFC 7323 5.5)

# Options, as numbers.
URGENT_INLINE, URGENT_OOB, URGENT_OOB_LINUX = range(3)
SYN_DATA_DELIVERED, SYN_DATA_ACKED = range(2)

_log = Log("tcpreasm.assembly")


class Engine(Evicter):
    """The connections of a pool, as one assembler serves them, and what it was told to do with them."""

    # options; -1: never
    _start_wait_segments: int
    _start_wait_ns: int
    _opens_on_data: bool  # a stream is made for text or a FIN only, not for a SYN
    _urgent: int
    _paws: bool
    _syn_data_waits: bool
    _tsval: int | None  # timestamp of the segment at hand, where those are looked at

    # -- one segment --------------------------------------------------------------------------------------------------

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
            self._peer_ack = None  # what was acknowledged is of the stream that is open
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
            self._keep_error(raised)  # raised once the segment at hand is taken in
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

    # -- its text and FIN ---------------------------------------------------------------------------------------------

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
        if self._depth and wire and wire > (room := self._left(connection) - ahead):  # else what is left may lie behind the FIN
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
