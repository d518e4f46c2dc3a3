"""A capture in outline: every conversation as a row, the largest ones with a small curve, all of them together over time.

Lives here: what is kept of a conversation once it is over, and the sums. Costs some ten microseconds for each conversation, and nothing in
Python for a packet; holds 16 bytes for each, and about two thousand for each of those that are kept as rows.
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..conversations import STATES, Side
from ..numbered import Numbered, Numbering
from ..streams import SpanStream
from .series import Timeline, binned

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GRAPH_BINS", "Overview", "Row"]

GRAPH_BINS = 48
_BINS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One conversation that is over.

    Attributes:
        number: counted from 1 in the order in which they began.
        client, server: address:port.
        sent, received: bytes from client to server, and back.
        gap_count, missing: holes in both directions, and the bytes missing there.
        first_seen_ns, last_seen_ns: capture time; None where nothing came.
        handshake_ns: from the SYN to the client's ACK; None where that was not captured.
        state: of the connection; and whether a start is missing, and who is client a guess.
        graph: bytes of each of GRAPH_BINS equal parts of its time: a row for the client, one for the server.
        gap_places: the parts in which what lies behind a hole was captured.
    """

    number: int
    client: str
    server: str
    sent: int
    received: int
    gap_count: int
    missing: int
    first_seen_ns: int | None
    last_seen_ns: int | None
    handshake_ns: int | None
    state: str
    graph: NDArray[np.int64]
    gap_places: tuple[int, ...]


def _row(one: Numbered) -> Row:
    first_ns, last_ns = one.span_ns
    graph = np.zeros((2, GRAPH_BINS), np.int64)
    gap_places: set[int] = set()
    if first_ns is not None and last_ns is not None:
        for side, stream in enumerate((one.client, one.server)):
            if stream is not None:
                spans = stream.spans
                graph[side] = binned(spans["seen_ns"], spans["length"], first_ns, last_ns, GRAPH_BINS)
                behind = spans[spans["skip"] > 0]
                gap_places.update(np.flatnonzero(binned(behind["seen_ns"], behind["skip"], first_ns, last_ns, GRAPH_BINS)).tolist())
    return Row(
        number=one.number,
        client=one.key.src,
        server=one.key.dst,
        sent=one.sent,
        received=one.received,
        gap_count=one.gap_count,
        missing=one.missing,
        first_seen_ns=first_ns,
        last_seen_ns=last_ns,
        handshake_ns=one.conversation.handshake_time_ns,
        state=one.state_text,
        graph=graph,
        gap_places=tuple(sorted(gap_places)),
    )


def _spans(side: Side) -> SpanStream:
    return SpanStream()


class Overview:
    """Takes conversations in as they end. Call `finish` when all was read.

    Args:
        limit: rows that are kept: the conversations with the most bytes.
    """

    def __init__(self, limit: int) -> None:
        self.streams = Numbering(_spans, self._add)
        """For the ConversationPool."""
        self.timeline = Timeline(_BINS)
        """What all clients and all servers sent, by capture time."""
        self.sent = 0
        self.received = 0
        self.gap_count = 0
        self.missing = 0
        self.states = dict.fromkeys(STATES, 0)
        """Conversations by state."""
        self._limit = limit
        self._kept: list[tuple[int, int, Row]] = []  # a heap: the smallest one first, of equal ones the latest
        self._times = array("q")

    def _add(self, one: Numbered) -> None:
        sent, received = one.sent, one.received
        self.sent += sent
        self.received += received
        self.gap_count += one.gap_count
        self.missing += one.missing
        self.states[one.conversation.state] += 1
        for side, stream in enumerate((one.client, one.server)):
            if stream is not None and stream.length:
                spans = stream.spans
                self.timeline.add(side, spans["seen_ns"], spans["length"])
        first_ns, last_ns = one.span_ns
        if first_ns is not None and last_ns is not None:
            self._times.extend((first_ns, last_ns))
        rank = sent + received, -one.number
        if len(self._kept) < self._limit:
            heapq.heappush(self._kept, (*rank, _row(one)))
        elif rank > self._kept[0][:2]:
            heapq.heapreplace(self._kept, (*rank, _row(one)))

    def finish(self) -> None:
        """The captures are at their end."""
        ends = np.array([ns for ns in (self.first_seen_ns, self.last_seen_ns) if ns is not None], np.int64)
        self.timeline.add(0, ends, np.zeros(len(ends), np.int64))  # steps of the whole time, though nothing was said at its ends

    @property
    def count(self) -> int:
        """Conversations, kept or not."""
        return self.streams.count

    @property
    def largest(self) -> list[Row]:
        """The rows that are kept, those with the most bytes first."""
        return [row for _, _, row in sorted(self._kept, key=lambda one: one[:2], reverse=True)]

    @property
    def rows(self) -> list[Row]:
        """The same in the order in which the conversations began."""
        return sorted(self.largest, key=lambda row: row.number)

    @property
    def spans(self) -> NDArray[np.int64]:
        """First and last capture time of each conversation."""
        return np.array(self._times, np.int64).reshape(-1, 2)

    @property
    def first_seen_ns(self) -> int | None:
        """Of the first segment."""
        return int(self.spans[:, 0].min()) if len(self._times) else None

    @property
    def last_seen_ns(self) -> int | None:
        """Of the last one."""
        return int(self.spans[:, 1].max()) if len(self._times) else None
