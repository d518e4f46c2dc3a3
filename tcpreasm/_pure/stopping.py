"""`Stopper`: what a stream gets no more of, because it has stopped or has had all that its depth leaves it; and gaps, for the
`on_gap` of streams and of the options.

Called where one of these is so; a connection that is stopped is followed by its sequence numbers, and that is all.
"""

from __future__ import annotations

from typing import Any

from .connection import Connection, RawKey, key_object
from .pairing import Pairer
from .pool import ON_GAP
from .sequence import add, difference


class Stopper(Pairer):
    """What is left out of the streams, and who is told of what is missing."""

    _depth: int  # bytes of each stream that it gets; 0: all
    _on_gap: Any
    _gaps: list[tuple[RawKey, Any, int, int, str]]  # given up since the last call of _settle, for on_gap, with the stream

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

    def _note_gap(self, connection: Connection, seq: int, missing: int, why: str) -> None:
        if self._on_gap is not None or self._pool._hooks & ON_GAP:
            self._gaps.append((connection._key, connection.stream, seq, missing, why))

    def _tell_gaps(self) -> None:
        """To whoever asked for them, each to its stream first. An exception leaves the others untold, and is kept."""
        gaps, self._gaps = self._gaps, []
        try:
            for key, stream, seq, missing, why in gaps:
                hook = self._pool._hook(stream, ON_GAP)
                if hook is not None:
                    hook(seq, missing, why)
                if self._on_gap is not None:
                    self._on_gap(*key_object(key), seq, missing, why)
        except BaseException as raised:
            self._keep_error(raised)
