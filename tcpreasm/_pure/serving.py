"""`Server`: hands pieces to the streams. What is decided about a segment is done with before this begins.

Called once for each segment that brings something to a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..stop import STOP
from .connection import Connection, RawKey
from .pool import StreamPoolBase
from .reassembly import Reassembly


class Server:
    """What is on its way from connections to their streams in the call at hand."""

    _pool: StreamPoolBase
    _out: list[Reassembly]  # pieces for the connection at hand
    _gathers: bool  # the call at hand gives each stream its pieces at its end
    _gathered: list[tuple[Connection, RawKey, list[Reassembly]]]  # what it has put aside, in the order of the first pieces
    _late_error: BaseException | None  # what user code raised while there was still something to be done, to be raised after that

    def _stop(self, connection: Connection) -> None:
        """Its stream has returned STOP. The engine knows what that means."""
        raise NotImplementedError

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
        returned = None
        try:
            if pieces:
                returned = reassembled(pieces)
        finally:
            if complete is not None:
                complete()
        if returned is STOP and complete is None:
            self._stop(connection)

    def _gather(self, connection: Connection, pieces: list[Reassembly]) -> None:
        """Put aside with the connection, where everybody who serves the stream finds them, and noted to be given out by this one."""
        if connection.gathered is None:
            connection.gathered = pieces
        else:
            connection.gathered += pieces
        if connection.gatherer is not self:
            connection.gatherer = self
            self._gathered.append((connection, connection._key, connection.gathered))

    def _give_gathered(self) -> None:
        """What was put aside goes out, but where somebody else has given it out meanwhile.

        An exception of user code does not keep the other streams from being served: it is kept.
        """
        gathered, self._gathered = self._gathered, []
        for connection, key, pieces in gathered:
            with self._serving(connection, key) as is_open:
                if is_open and connection.gathered is pieces:
                    connection.gathered = connection.gatherer = None
                    if connection.reassembled(pieces) is STOP:
                        self._stop(connection)

    @contextmanager
    def _serving(self, connection: Connection, key: RawKey) -> Iterator[bool]:
        """Nobody else serves that connection meanwhile; False: it is no longer open under that key, or served by this very thread. What
        user code raises is kept."""
        is_open = self._pool.acquire_open(connection, key)
        try:
            yield is_open
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            if is_open:
                self._out = []
                self._pool.release(connection)

    def _keep_error(self, raised: BaseException) -> None:
        """What user code raised, to be raised later; the first of several."""
        self._late_error = self._late_error or raised

    def _raise_late(self) -> None:
        error, self._late_error = self._late_error, None
        if error is not None:
            raise error
