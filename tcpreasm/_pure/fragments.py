"""`Fragments`: fragments of IP datagrams, until they are whole (RFC 791 3.2, RFC 8200 4.5).

What one holds is bounded: so many datagrams, so many bytes, so long. Where a limit is reached, the oldest datagrams give way.
Called once for each fragment, in packet order, never for any other frame. A datagram that cannot become whole any more (overlap in IPv6,
too large) stays until its time is over, without its bytes, so that the rest of its fragments starts no other one.
"""

from __future__ import annotations

from ..decoded import Segment
from ..stats import FRAGMENT_COUNTERS, FRAGMENT_DROP_REASONS
from ..verdict import Verdict
from .decode import MAX_TUNNELS, Fragment, decode_datagram

__all__ = ["Fragments"]

MAX_DATAGRAM = 65_535  # bytes (RFC 791 3.1); IPv6 (RFC 8200 3) counts from behind its header
# What counts for the limit: what the compiled core allocates.
DATAGRAM_BYTES = 256  # of a datagram
FIRST_ROOM = 256  # of its payload: so much, or as many times twice that as its highest byte needs
RANGE_BYTES = 8  # of each range of bytes that has come, or that there is room for

Key = tuple[bytes, bytes, int, int, int]


class Datagram:
    """The payload of one datagram, as far as it came."""

    def __init__(self, first: Fragment, since_ns: int) -> None:
        self.first = first  # the first fragment of the payload, or else the one that came first
        self.since_ns = since_ns  # capture time, as it was believed, of the fragment that came first
        self.data = bytearray()  # each byte at its place
        self.ranges: list[tuple[int, int]] = []  # of bytes that have come: ascending, none touching the next
        self.size: int | None = None  # of the whole, as soon as the last fragment tells
        self.cut_at = MAX_DATAGRAM  # the lowest byte that the capture cut off
        self.fragments = 0  # that it holds
        self.room = 0  # for payload
        self.range_room = 0  # for ranges
        self.bytes = 0  # that count for the limit
        self.why: str | None = None  # it was given up

    def is_whole(self) -> bool:
        return self.size is not None and self.ranges == [(0, self.size)]


class Fragments:
    """Puts fragmented IP datagrams together.

    Args:
        timeout_ns: capture time for which a datagram's fragments are kept; -1: for ever.
        max_datagrams: of which fragments are kept.
        max_bytes: for all of them.
    """

    def __init__(self, timeout_ns: int, max_datagrams: int, max_bytes: int) -> None:
        self._timeout_ns = timeout_ns
        self._max_datagrams = max_datagrams
        self._max_bytes = max_bytes
        self._datagrams: dict[Key, Datagram] = {}  # the oldest one first
        self._held_bytes = 0  # the sum of their bytes
        self._counts = dict.fromkeys(FRAGMENT_COUNTERS + FRAGMENT_DROP_REASONS, 0)

    def counters(self) -> tuple[list[int], int]:
        """FRAGMENT_COUNTERS and FRAGMENT_DROP_REASONS, and how many fragments are held."""
        return [*self._counts.values()], sum(datagram.fragments for datagram in self._datagrams.values())

    def take(self, fragment: Fragment, now_ns: int, tunnels: int) -> tuple[int, Segment | None, bytes]:
        """Take in one fragment. Returns what `decode` says of its frame: FRAGMENT as long as its datagram is not whole, then what the
        datagram is; the segment where it holds one; and the bytes that the segment lies in."""
        while True:  # a datagram may carry a fragment of another one: each turn goes a tunnel deeper
            datagram = self._add(fragment, now_ns)
            if datagram is None or datagram.size is None:
                return Verdict.FRAGMENT, None, b""
            data = bytes(datagram.data[: min(datagram.cut_at, datagram.size)])
            verdict, result = decode_datagram(data, datagram.first, datagram.size, tunnels)
            if not isinstance(result, Fragment):
                return verdict, result, data
            fragment = result

    def drop_all(self) -> None:
        """What is held is given up, and counted as incomplete."""
        while self._datagrams:
            self._remove_oldest("incomplete")

    def _add(self, fragment: Fragment, now_ns: int) -> Datagram | None:
        """Returns its datagram, taken out, where that is whole now."""
        counts = self._counts
        counts["fragments"] += 1
        while self._datagrams and 0 <= self._timeout_ns < abs(now_ns - next(iter(self._datagrams.values())).since_ns):
            self._remove_oldest("timeout")
        if fragment.depth > MAX_TUNNELS or fragment.wire_length == 0 or (fragment.more and fragment.wire_length % 8):
            counts["malformed"] += 1
            return None
        # IPv6's protocol is told by the first fragment alone (RFC 8200 4.5).
        key = fragment.src, fragment.dst, fragment.id, fragment.level, fragment.protocol if len(fragment.src) == 4 else -1
        datagram = self._datagrams.get(key)
        if datagram is None:
            while len(self._datagrams) >= self._max_datagrams:
                self._remove_oldest("limit")
            datagram = Datagram(fragment, now_ns)
            if not self._charge(datagram, DATAGRAM_BYTES):
                counts["limit"] += 1
                return None
            self._datagrams[key] = datagram
        if datagram.why is not None:
            counts[datagram.why] += 1
            return None
        end = fragment.offset + fragment.wire_length
        if end + fragment.before > MAX_DATAGRAM:
            self._give_up(datagram, "too_large")
            counts["too_large"] += 1
            return None
        beyond = datagram.size is not None and end > datagram.size
        ends_before = not fragment.more and end < (datagram.size or len(datagram.data))
        why = "malformed" if beyond or ends_before else self._hold(datagram, fragment, end)
        if why:
            if why == "overlap":
                self._give_up(datagram, why)
            elif why == "limit" or datagram.fragments == 0:
                self._remove(key, why)
            counts[why] += 1
            return None
        if not fragment.more:
            datagram.size = end
        if fragment.offset == 0:
            datagram.first = fragment
        datagram.fragments += 1
        if not datagram.is_whole():
            return None
        counts["datagrams"] += 1
        data = datagram.data
        self._remove(key, "fragments_joined")
        datagram.data = data
        return datagram

    def _hold(self, datagram: Datagram, fragment: Fragment, end: int) -> str:
        """Bytes to their place, where none are yet. Returns "", or why not: nothing of this datagram was changed then."""
        begin, data = fragment.offset, fragment.data
        captured = begin + len(data)
        is_ipv6 = len(fragment.src) == 16
        for from_, to in datagram.ranges:
            if from_ <= begin and end <= to:
                known = max(begin, min(end, captured, datagram.cut_at))
                if not is_ipv6 or datagram.data[begin:known] == data[: known - begin]:
                    return "repeated"
            if is_ipv6 and from_ < end and begin < to:  # RFC 5722 3
                return "overlap"
        if not self._make_room(datagram, end):
            return "limit"
        datagram.data += bytes(max(0, end - len(datagram.data)))
        touched = [range_ for range_ in datagram.ranges if range_[0] <= end and begin <= range_[1]]
        at = begin
        for from_, to in [*touched, (end, end)]:
            stop = max(at, min(end, from_))  # the part that lies before it; copies of what is there already give way
            if at < stop:
                there = data[at - begin : stop - begin]
                datagram.data[at : at + len(there)] = there
                if stop > captured:
                    datagram.cut_at = min(datagram.cut_at, max(at, captured))
            at = max(at, to)
        union = min([begin, *(from_ for from_, _ in touched)]), max([end, *(to for _, to in touched)])
        datagram.ranges = sorted([*(range_ for range_ in datagram.ranges if range_ not in touched), union])
        return ""

    def _make_room(self, datagram: Datagram, end: int) -> bool:
        """For payload up to `end`, and for another range. False: no room, which is a limit."""
        room, range_room = datagram.room, datagram.range_room
        while room < end:
            room = max(FIRST_ROOM, 2 * room)
        if range_room == len(datagram.ranges):
            range_room = 2 * range_room + 4
        if not self._charge(datagram, room - datagram.room + (range_room - datagram.range_room) * RANGE_BYTES):
            return False
        datagram.room, datagram.range_room = room, range_room
        return True

    def _charge(self, datagram: Datagram, more: int) -> bool:
        """So many bytes more, of that datagram. False: the older ones gave way, and even so they are too many."""
        while self._held_bytes + more > self._max_bytes:
            if next(iter(self._datagrams.values()), datagram) is datagram:
                return False
            self._remove_oldest("limit")
        self._held_bytes += more
        datagram.bytes += more
        return True

    def _give_up(self, datagram: Datagram, why: str) -> None:
        """It will not become whole, and its fragments to come are dropped as those that it had."""
        self._counts[why] += datagram.fragments
        self._held_bytes -= datagram.bytes - DATAGRAM_BYTES
        datagram.bytes = DATAGRAM_BYTES
        datagram.fragments, datagram.data, datagram.ranges, datagram.why = 0, bytearray(), [], why

    def _remove(self, key: Key, why: str) -> None:
        """`why`: what its fragments count as."""
        self._give_up(self._datagrams.pop(key), why)
        self._held_bytes -= DATAGRAM_BYTES

    def _remove_oldest(self, why: str) -> None:
        self._remove(next(iter(self._datagrams)), why)
