"""Which two directions belong together, where both are looked at: for tables, pictures and the command line.

Lives here: pairing, by keys, of streams as the factory makes them, and what the two make together. Called once a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .flow import ConnectionKey
from .streams import ByteCountStream

__all__ = ["Pair", "Pairs"]

T = TypeVar("T")


class Pairs(Generic[T]):
    """Brings the two directions of a connection together: what the first one was given, the second one gets too.

    A third stream of the same endpoints begins another pair. Remembers the pairs of which one direction is missing.
    """

    def __init__(self, make: Callable[[ConnectionKey], T]) -> None:
        self._make = make
        self._waiting: dict[ConnectionKey, T] = {}  # by the key of the direction that is missing

    def join(self, key: ConnectionKey) -> T:
        """What the direction shares with the other one; made for the first of them, by its key."""
        if key in self._waiting:
            return self._waiting.pop(key)
        pair = self._waiting[key.reverse()] = self._make(key)
        return pair

    def forget(self, key: ConnectionKey) -> None:
        """The direction that is missing will not come: the key is that of the first one."""
        self._waiting.pop(key.reverse(), None)


S = TypeVar("S", bound=ByteCountStream)


class Pair(Generic[S]):
    """Both directions of a connection, as far as they were seen. The first one counts as the client's.

    Args:
        number: counted from 1, in the order in which they began.
        key: that of the direction that was seen first.
    """

    __slots__ = ("client", "key", "number", "server")

    def __init__(self, number: int, key: ConnectionKey) -> None:
        self.number = number
        self.key = key
        self.client: S | None = None
        self.server: S | None = None

    def add(self, stream: S) -> bool:
        """The next direction's stream. True for the first one."""
        first = self.client is None
        if first:
            self.client = stream
        else:
            self.server = stream
        return first

    @property
    def directions(self) -> list[S]:
        """One or two streams."""
        return [stream for stream in (self.client, self.server) if stream is not None]

    @property
    def finished(self) -> bool:
        """Nothing can come any more."""
        return self.client is not None and self.server is not None and self.client.complete and self.server.complete

    @property
    def sent(self) -> int:
        """Bytes from client to server, as far as captured."""
        return self.client.length if self.client else 0

    @property
    def received(self) -> int:
        """Bytes from server to client."""
        return self.server.length if self.server else 0

    @property
    def gap_count(self) -> int:
        """Holes in both directions."""
        return sum(stream.gap_count for stream in self.directions)

    @property
    def missing(self) -> int:
        """Bytes missing there."""
        return sum(stream.skipped for stream in self.directions)

    @property
    def first_seen_ns(self) -> int | None:
        """Capture time of the first packet that mattered; None where none did."""
        return min((stream.first_seen_ns for stream in self.directions if stream.first_seen_ns is not None), default=None)

    @property
    def last_seen_ns(self) -> int | None:
        """The same of the last one."""
        return max((stream.last_seen_ns for stream in self.directions if stream.last_seen_ns is not None), default=None)

    @property
    def state(self) -> str:
        """`closed` (both directions ended by FIN or RST), `half-closed` (one), `open`."""
        return ("open", "half-closed", "closed")[sum(stream.ended for stream in self.directions)]

    @property
    def started(self) -> bool:
        """The SYN of each direction that was seen was captured."""
        return all(stream.started for stream in self.directions)

    @property
    def state_text(self) -> str:
        """The state, and whether a start is missing."""
        return self.state if self.started else f"{self.state}, no start"
