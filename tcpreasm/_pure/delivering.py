"""`Deliverer`: what the stream of a connection gets: its opening, its pieces in order, its end.

Lives here: making the stream, cutting pieces out of the segment at hand and the pages that go with it, giving up holes, closing. Not here:
what a segment means (engine.py), and the calls themselves (serving.py). Called once for each segment. State is committed before user code
runs, so that a callback that raises, or another thread that comes in meanwhile, finds everything consistent.
"""

from __future__ import annotations

from typing import Any

from .._log import Log
from ..errors import no_stream
from .connection import Connection
from .holding import FIRST
from .reassembly import Reassembly
from .sequence import add, difference
from .stopping import Stopper

_log = Log("tcpreasm.assembly")


class Deliverer(Stopper):
    """The streams of an assembler's connections."""

    _debug: bool

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open_late(self, connection: Connection, at_stake: int, packet: int) -> None:
        """Its stream is made, and told of its start where the SYN has come before."""
        self._open_stream(connection, at_stake)
        if connection.next_seq is not None:
            self._emit_empty(connection, connection.end_seen_ns, packet, True)

    def _open_stream(self, connection: Connection, at_stake: int) -> None:
        try:
            stream = self._pool._make(connection)
            try:
                reassembled, complete = stream.reassembled, stream.reassembly_complete
            except AttributeError as error:
                raise no_stream(stream, connection.key) from error
            self._pool._note_hooks(stream)
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

    def _drop_unopened(self, connection: Connection) -> None:
        """It ends without a stream: what a SYN brought, and nothing confirmed, goes nowhere."""
        if connection.syn_data and connection.stream is None:
            self._drop(connection.pages, "unconfirmed_syn")
            connection.syn_data = False
            connection.end_seq = None

    # -- what arrives in order ----------------------------------------------------------------------------------------

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
            if missing:
                self._note_gap(connection, before, missing, why)
            connection.skip += missing
            self._counts["bytes_skipped"] += missing
            if connection.side is not None:
                connection.side.skipped += missing

    def _emit_text(
        self, connection: Connection, seq: int, payload: bytes | memoryview, begin: int, end: int, seen_ns: int, start: bool
    ) -> None:
        """payload[begin:end], without what is out of band."""
        apart = -1 if self._out_of_band is None else difference(seq, self._out_of_band)
        if begin <= apart < end:
            self._counts["urgent"] += 1
            if begin < apart or start:
                self._emit_text(connection, seq, payload, begin, apart, seen_ns, start)
                start = False
            begin = apart + 1
            if begin == end:
                return
        self._emit(connection, payload[begin:end], seen_ns, start, self._offset(begin), self._packet, add(seq, begin), self._peer_ack)

    def _emit_empty(self, connection: Connection, seen_ns: int, packet: int, start: bool) -> None:
        """A piece without bytes, where the stream stands. packet: the one that led to it; 0: none did."""
        assert connection.next_seq is not None
        self._emit(connection, b"", seen_ns, start, -1, packet, connection.next_seq, None)

    def _emit(
        self,
        connection: Connection,
        data: bytes | memoryview,
        seen_ns: int,
        start: bool,
        offset: int,
        packet: int,
        seq: int,
        peer_ack: int | None,
    ) -> None:
        if connection.stream is not None:  # else it is empty, and there is no stream that it could be told
            piece = Reassembly(data, connection.skip, start, False, seen_ns, offset if len(data) else -1, packet, seq)
            piece._peer_ack = peer_ack
            self._out.append(piece)
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
            self._emit(connection, page.bytes, page.seen_ns, False, page.offset, page.packet, page.seq, page.peer_ack)
        connection.next_seq = page.end
        if page.missing:
            self._note_cut(connection, add(page.end, page.missing))
        self._cache.give_back(page)

    # -- holes --------------------------------------------------------------------------------------------------------

    def _keep_limits(self, connection: Connection) -> None:
        while self._is_at_limit(connection.pages):
            if self._debug:
                _log.debug("%s: limit reached with %d pages", connection.key, connection.pages.count)
            self._skip(connection, "holes_limited")

    def _skip(self, connection: Connection, why: str) -> None:
        """Stop waiting for the lowest hole: over it, and on with what is contiguous then. It counts as a hole of that kind."""
        target = connection.first_held()
        if connection.next_seq is None:
            connection.next_seq = connection.first_seq = connection.cut_end = target
            connection.skip = -1
            self._note_gap(connection, target, -1, "start")
        else:
            missing = difference(connection.next_seq, target)
            if self._depth:
                missing = min(missing, self._left(connection))
            self._counts[why] += missing != 0
            self._jump(connection, missing, why.removeprefix("holes_"))
            connection.cut_end = connection.next_seq
        self._advance(connection)
        connection.note_past_start()

    # -- its stream ---------------------------------------------------------------------------------------------------

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

    def _end_at_depth(self, connection: Connection) -> None:
        """It has had all, but for being told of what is missing last."""
        if connection.skip:
            self._emit_empty(connection, connection.last_seen_ns, 0, False)
        self._let_go(connection)
