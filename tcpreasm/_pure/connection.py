"""`Connection`: what is remembered of one direction of one TCP connection. Touched by every packet.

Holds state and answers questions about it; the assembler alone changes it.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from ..flow import ConnectionKey, Flow
from .conversation import SideState
from .pages import PageList
from .reassembly import Reassembly
from .sequence import difference

__all__ = ["Connection", "RawKey", "Successor", "key_object"]

RawKey = tuple[bytes, bytes, int, int, int]  # packed source and destination address, source and destination port, tunnels around


def key_object(key: RawKey) -> ConnectionKey:
    """The two flows."""
    src, dst, src_port, dst_port, tunnels = key
    return ConnectionKey(Flow(src, dst, tunnels), Flow(src_port, dst_port))


class Successor(NamedTuple):
    """A SYN with another initial sequence number, seen while the connection is open: its next stream, if packets continue from it."""

    isn: int
    next_seq: int  # behind the SYN and its data
    seen_ns: int
    packet: int  # its number
    pages: PageList  # that data
    tsval: int | None  # its timestamp, where one is looked for
    ack: int | None  # what it acknowledged, if anything


class Connection:
    """One direction of one connection. Made in advance, reset for each use.

    The lock is held by whoever serves the stream, so that a stream is always served serially.

    Attributes:
        next_seq: sequence number of the next byte to deliver; None before the start.
        end_seq: that of the FIN or RST; None while there is none.
        created_ns: capture time of the first segment, in nanoseconds since 1970.
        last_seen_ns: the same of the latest one.
        skip: missing bytes before what is delivered next; -1: an unknown number.
    """

    __slots__ = (
        "_key",
        "created_ns",
        "cut_end",
        "early_end",
        "early_segments",
        "end_seen_ns",
        "end_seq",
        "far_next",
        "first_seq",
        "gathered",
        "gatherer",
        "half_open",
        "isn",
        "last_seen_ns",
        "lock",
        "next_seq",
        "owner",
        "pages",
        "past_start",
        "reassembled",
        "reassembly_complete",
        "side",
        "skip",
        "state",
        "stopped",
        "stream",
        "successor",
        "syn_data",
        "tsval",
    )

    FREE, OPEN, CLOSED, REMOVED = range(4)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = 0  # identity of the thread that holds the lock
        self.pages = PageList()
        self.state = self.FREE
        self.reset((b"", b"", 0, 0, 0), 0)

    def reset(self, key: RawKey, seen_ns: int) -> None:
        """Forget everything, last_seen_ns too. Nothing may be held or put aside, as closing leaves it."""
        assert not self.pages.count
        self._key = key
        self.next_seq: int | None = None  # sequence number expected next; None until the stream has started
        self.isn: int | None = None  # sequence number of the SYN, where one was seen
        self.first_seq = 0  # sequence number of the stream's first byte, once it has started
        self.past_start = False  # so far from first_seq that it cannot be compared with any more
        self.end_seq: int | None = None  # sequence number at which the FIN stands, once one was seen
        self.end_seen_ns = 0  # capture time of the FIN, before that of the last SYN
        self.cut_end = 0  # up to here the capture cut bytes off, where that is ahead of next_seq: no use waiting for them
        self.far_next: int | None = None  # where the last segment ended that was further ahead than max_gap
        self.skip = 0  # missing bytes that the next piece will report; -1 for an unknown number
        self.early_end = 0  # the highest sequence number behind a segment that waits for the start
        self.early_segments = 0  # segments since the connection was made that wait for its start
        self.created_ns = seen_ns
        self.last_seen_ns = seen_ns
        self.half_open = False  # nothing but SYNs has come, the first one before all else
        self.successor: Successor | None = None
        self.syn_data = False  # what is held is the SYN's text, and nothing has shown yet that it was accepted
        self.tsval: int | None = None  # timestamp of what came in order last, where timestamps are looked at
        self.stopped = False  # its stream gets no more: nothing is held, waited for or told
        self.stream: Any = None
        self.reassembled: Any = None  # the stream's methods, looked up once
        self.reassembly_complete: Any = None
        self.gathered: list[Reassembly] | None = None  # pieces put aside for the stream, until the call that does so ends
        self.gatherer: Any = None  # the assembler that was the last to put some there
        self.side: SideState | None = None  # of its conversation, in pools that pair

    @property
    def key(self) -> ConnectionKey:
        """Both flows."""
        return key_object(self._key)

    @property
    def closed(self) -> bool:
        """Ended by FIN or RST, and remembered for a while."""
        return self.state == self.CLOSED

    def waits(self) -> bool:
        """There is something to come that a hole holds back."""
        return self.pages.count > 0 or (self.end_seq is not None and self.end_seq != self.next_seq)

    def first_held(self) -> int:
        """The sequence number at which what waits begins."""
        first = self.pages.first
        if first is not None:
            return first.seq
        assert self.end_seq is not None
        return self.end_seq

    def go_on_to(self, seq: int) -> None:
        """For a stream that gets no more: what lies before that is behind it, and so is what lies before the FIN."""
        assert self.next_seq is not None
        if difference(self.next_seq, seq) > 0:
            self.next_seq = seq
        if self.end_seq is not None:
            self.next_seq = self.end_seq
        self.cut_end = self.next_seq
        self.note_past_start()

    def note_past_start(self) -> None:
        """To be called whenever next_seq has moved over a multiple of 2**30."""
        if self.next_seq is not None and not 0 <= difference(self.first_seq, self.next_seq) <= 1 << 30:
            self.past_start = True

    def ended(self) -> bool:
        """The stream has reached its FIN or RST."""
        return self.end_seq is not None and self.end_seq == self.next_seq

    def waits_until(self, t_ns: int) -> int | None:
        """The sequence number of the last thing held that was seen before t_ns, or None. Looks at every page: flushes only."""
        if self.end_seq is not None and self.end_seq != self.next_seq and self.end_seen_ns < t_ns:
            return self.end_seq
        page = self.pages.last
        while page is not None:
            if page.seen_ns < t_ns:
                return page.seq
            page = page.prev
        return None

    def is_ahead(self, seq: int) -> bool:
        """seq has not been reached."""
        return self.next_seq is None or difference(self.next_seq, seq) >= 0
