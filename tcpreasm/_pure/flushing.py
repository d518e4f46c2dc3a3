"""`Flusher`: what time does to connections: what waits too long goes out, what is idle too long ends.

Looks once a second of capture time, and in a flush that the user asks for.
"""

from __future__ import annotations

from ..clock import NS
from .clock import NEVER_NS, Clock
from .connection import Connection
from .settling import Settler

EXPIRE_EVERY_NS = NS  # capture time between two walks over all connections


class Flusher(Settler):
    """Walks over the connections of the pool."""

    _hole_timeout_ns: int  # -1: never
    _idle_timeout_ns: int
    _clock_before: Clock  # of the packet at hand
    _ticked_ns: int | None  # capture time of the last tick that expired anything

    def _observe(self, seen_ns: int) -> None:
        before = self._clock_before = self._clock
        clock = self._clock = before.observe(seen_ns)
        if before.now_ns is not None and clock.now_ns is not None and clock.now_ns < before.now_ns:
            self._pool.set_back(clock.now_ns)

    def _tick(self) -> None:
        now, ticked = self._clock.now_ns, self._ticked_ns
        if now is not None and (ticked is None or not ticked <= now < ticked + EXPIRE_EVERY_NS):
            self._ticked_ns = now
            self._expire()

    def _expire(self) -> tuple[int, int]:
        try:
            self._pool.forget_closed(self._forget_before())
            return self._walk(
                self._expiry(self._hole_timeout_ns),
                self._expiry(self._idle_timeout_ns),
                self._expiry(self._start_wait_ns),
                self._expiry(self._acked_timeout_ns),
            )
        finally:
            self._cache.shrink()

    # -- all connections --------------------------------------------------------------------------------------------

    def _walk(self, held_ns: int, idle_ns: int, start_ns: int, acked_ns: int = NEVER_NS) -> tuple[int, int]:
        """Every open connection, oldest first: give out what is held since before held_ns, start what waits for its start since
        before start_ns, give up what was acknowledged before acked_ns, close what has seen nothing since idle_ns.

        An exception of user code does not keep the other connections from being served; the first one is raised at the end.
        """
        flushed = closed = 0
        self._settle()
        for connection, key in self._pool.walk(idle_ns):
            with self._serving(connection, key) as is_open:
                if not is_open:
                    continue
                idle = connection.last_seen_ns < idle_ns
                gave_out = self._give_out(connection, held_ns, start_ns, "holes_ended" if idle else "holes_expired")
                gave_out |= self._give_up_acked(connection, acked_ns)
                if gave_out:
                    self._mark_acked(connection)
                was_over = connection.ended()
                idle = idle and not was_over
                flushed += gave_out or idle
                closed += idle or was_over
                if idle:
                    self._close(connection)
                elif gave_out:
                    self._serve(connection, 0)
                    closed += connection.closed and not was_over
            self._settle()
        self._raise_late()
        return flushed, closed

    def _give_out(self, connection: Connection, held_ns: int, start_ns: int, why: str) -> bool:
        target = connection.waits_until(held_ns)
        if target is None:
            if connection.next_seq is not None or connection.created_ns >= start_ns or not connection.waits():
                return False
            self._skip(connection, why)
            return True
        while connection.waits() and connection.is_ahead(target):
            self._skip(connection, why)
        return True
