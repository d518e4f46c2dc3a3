"""One conversation in a picture: its two directions, and what they come to together.

Lives here: sums over two streams. Which two belong together is told by `Pairs`.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ..flow import ConnectionKey
from ..streams import ByteCountStream

__all__ = ["Pair"]

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
