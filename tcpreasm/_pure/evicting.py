"""`Evicter`: room for the connection of a segment, where there is none and there are as many as there may be.

Called where a new connection may be too much.
"""

from __future__ import annotations

from collections.abc import Callable

from .._log import Log
from ..flow import Flow
from .connection import RawKey, key_object
from .delivering import Deliverer
from .pool import ON_EVICT

_log = Log("tcpreasm.assembly")


class Evicter(Deliverer):
    """How many connections an assembler's pool may have."""

    _limit_connections: int  # 0: none
    _on_evict: Callable[[Flow, Flow, str], object] | None

    def _evict_for_room(self, key: RawKey) -> None:
        """There is room for a new connection, unless all there are are being served. What user code raises is raised once the segment at
        hand is taken in."""
        while self._limit_connections and (evicted := self._pool.evict(key, self._limit_connections, self._forget_before())):
            old_key, connection, reason = evicted
            stream = None if connection is None else connection.stream
            self._counts["evicted_" + reason] += 1
            try:
                if connection is not None:
                    self._drop_unopened(connection)
                    self._close(connection)
            except BaseException as raised:
                self._keep_error(raised)
            finally:
                self._out = []
                if connection is not None:
                    self._pool.release(connection)
            if self._debug:
                _log.debug("%s: evicted, %s", key_object(old_key), reason)
            try:
                hook = self._pool._hook(stream, ON_EVICT)
                if hook is not None:
                    hook(reason)
                if self._on_evict is not None:
                    self._on_evict(*key_object(old_key), reason)
            except BaseException as raised:
                self._keep_error(raised)
