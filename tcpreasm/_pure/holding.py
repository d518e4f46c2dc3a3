"""`Holder`: keeps what arrives early, and answers what is too much or too old.

Lives here: pages for bytes that are ahead, whose bytes stay where copies differ, the limits, the time-outs, dropping. Not here: what a
segment means, and when what is held goes out. Called for what is out of order; a limit or a time-out is asked for more often.
"""

from __future__ import annotations

from typing import Any

from .clock import NEVER_NS, Clock
from .connection import Connection, RawKey, key_object
from .pages import PAGE_BYTES, Page, PageCache, PageList
from .pool import ON_CONFLICT
from .sequence import add, difference
from .serving import Server

# An option, as numbers.
FIRST, LAST, BSD, LINUX, SOLARIS, OLD_LINUX = range(6)


class Holder(Server):
    """What an assembler holds, and what it was told about that."""

    _cache: PageCache
    _limit_with: list[PageCache]  # of the others that the limits in all are shared with
    # options; -1: never; 0 for a limit: none
    _limit_total: int
    _limit_connection: int
    _limit_bytes_total: int
    _limit_bytes_connection: int
    _closed_timeout_ns: int
    _overlap: int
    _on_conflict: Any
    _conflicts: list[tuple[int, bytearray, bytearray, str]]  # found in the segment at hand, for on_conflict,
    _conflict_stream: Any  # and in the stream of what is held, where there is one
    _at_work_on: Connection  # that the segment at hand, or the last one, belongs to
    _counts: dict[str, int]
    _clock: Clock
    _out_of_band: int | None  # sequence number of the byte that the segment at hand has out of band
    _text_offset: int  # where the text of the segment at hand stands in the file; -1 where that is not known
    _packet: int  # number of the packet at hand, or of the last one
    _peer_ack: int | None  # the highest that the other side had acknowledged before the segment at hand came, in pools that pair

    # -- time ---------------------------------------------------------------------------------------------------------

    def _expiry(self, timeout_ns: int) -> int:
        """The time before which something is too old. Nothing expires by the setting of a clock."""
        now, _, changed = self._clock
        if now is None or timeout_ns < 0 or (changed is not None and 0 <= now - changed < timeout_ns):
            return NEVER_NS
        return now - timeout_ns

    def _forget_before(self) -> int:
        return self._expiry(self._closed_timeout_ns)

    # -- what arrives early -------------------------------------------------------------------------------------------

    def _offset(self, position: int) -> int:
        """Where that byte of the text at hand stands in the file."""
        return -1 if self._text_offset < 0 else self._text_offset + position

    def _hold_in(self, pages: PageList, seq: int, payload: bytes | memoryview, missing: int, seen_ns: int, unsure: bool) -> None:
        """Copy into pages what they do not hold yet, one byte after the other; before that they lose what the policy says."""
        size = len(payload)
        wire = size + missing
        prev, next_ = pages.find(seq)
        if self._overlap != FIRST:
            missing = self._make_room(pages, next_ if prev is None else prev, seq, seq, payload, missing)
            prev, next_ = pages.find(seq)
        position = 0
        if prev is not None:
            held = difference(seq, prev.end)
            if held > 0:
                position = min(held, size)
                self._compare(prev, len(prev) - held, payload, 0, position, unsure)
        while True:
            at = size if next_ is None else min(size, difference(seq, next_.seq))
            if position < at:
                offset = self._offset(position)
                prev = self._push(pages, prev, next_, add(seq, position), payload[position:at], seen_ns, offset, seq, wire)
            if next_ is None or at >= size:
                break
            position = min(size, at + len(next_))
            self._compare(next_, 0, payload, at, position, unsure)
            prev, next_ = next_, next_.next
        if missing:
            self._hold_cut(pages, prev, next_, seq, size, missing, seen_ns)

    def _push(
        self,
        pages: PageList,
        prev: Page | None,
        next_: Page | None,
        seq: int,
        data: bytes | memoryview,
        seen_ns: int,
        offset: int,
        begin: int,
        wire: int,
    ) -> Page:
        """A chain of pages for data, from a segment that came as [begin, begin + wire), goes in between two neighbours. Returns its last
        page."""
        apart = -1 if self._out_of_band is None else difference(seq, self._out_of_band)
        first = last = None
        position = end = 0
        while last is None or end < len(data):
            position, end = end, min(len(data), end + PAGE_BYTES)
            out_of_band = position == apart
            if out_of_band:
                end = min(end, position + 1)
            elif position < apart < end:
                end = apart
            page = self._cache.take(seen_ns, end - position)
            page.urgent = out_of_band and len(data) > 0
            page.seq = add(seq, position)
            page.packet = self._packet
            page.peer_ack = self._peer_ack
            if self._overlap > LAST:
                page.came = begin, add(begin, wire)
            page.offset = -1 if offset < 0 else offset + position
            page.hold(data[position:end])
            if last is None:
                first = page
            else:
                last.next, page.prev = page, last
            last = page
        assert first is not None
        assert last is not None
        pages.push_between(prev, next_, first, last)
        return last

    def _hold_cut(self, pages: PageList, prev: Page | None, next_: Page | None, seq: int, size: int, missing: int, seen_ns: int) -> None:
        """Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one."""
        if prev is None or (not size and difference(prev.end, seq) > 0):
            prev = self._push(pages, prev, next_, seq, b"", seen_ns, -1, seq, size + missing)
        prev.missing = max(prev.missing, difference(prev.end, add(seq, size + missing)))

    def _span_with(self, connection: Connection, seq: int, wire: int) -> int:
        """From the first to the last byte held, were this segment held too."""
        first, last = connection.pages.first, connection.pages.last
        assert first is not None
        assert last is not None
        ahead = difference(first.seq, seq)
        return max(difference(first.seq, last.end), ahead + wire) - min(0, ahead)

    def _cut_pages(self, connection: Connection, end_seq: int, reason: str) -> None:
        """Nothing is held from there on."""
        pages = connection.pages
        while (page := pages.last) is not None:
            room = difference(page.seq, end_seq)
            page.missing = max(0, min(page.missing, room - len(page)))
            if room >= len(page) and (len(page) or page.missing):
                break
            if room > 0:
                self._counts[reason] += len(page) - room
                page.hold(page.bytes[:room])
                break
            self._counts[reason] += len(page)
            self._cache.give_back(pages.pop_last())

    def _compare(self, page: Page, place: int, payload: bytes | memoryview, begin: int, end: int, unsure: bool) -> None:
        """Count payload[begin:end] as a copy of bytes that a page holds from that place on, and those of them that differ."""
        copy = payload[begin:end]
        if not len(copy):
            return
        self._counts["overlapping"] += len(copy)
        held = page.bytes[place : place + len(copy)]
        if held == copy:
            return
        # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
        gives_way = unsure and len(page) == 1 and page.prev is None
        self._count_conflicts(add(page.seq, place), held, copy, gives_way)
        if gives_way:
            page.hold(copy)
            page.offset = self._offset(begin)
            page.packet = self._packet
            page.peer_ack = self._peer_ack
            page.urgent = self._out_of_band == page.seq

    def _count_conflicts(self, seq: int, held: bytes, new: bytes | memoryview, new_wins: bool) -> None:
        """Two copies of the bytes from seq on; on_conflict will be told of each run of bytes that differ."""
        begin = -1  # of a run
        for at in range(len(held) + 1):
            differs = at < len(held) and held[at] != new[at]
            self._counts["conflicting"] += differs
            if differs and begin < 0:
                begin = at
            elif not differs and begin >= 0:
                if self._on_conflict is not None or self._pool._hooks & ON_CONFLICT:
                    self._note_conflict(add(seq, begin), held[begin:at], new[begin:at], "new" if new_wins else "held")
                begin = -1

    def _note_conflict(self, seq: int, held: bytes, new: bytes | memoryview, wins: str) -> None:
        """A run of differing bytes. Where pages meet, it goes on from the last one."""
        if self._conflicts:
            first, held_before, new_before, winner = self._conflicts[-1]
            if winner == wins and add(first, len(held_before)) == seq:
                held_before += held
                new_before += new
                return
        self._conflicts.append((seq, bytearray(held), bytearray(new), wins))
        self._conflict_stream = self._at_work_on.stream

    def _tell_conflicts(self, key: RawKey) -> None:
        """To whoever asked for them, each to the stream first. An exception leaves the others untold."""
        conflicts, self._conflicts = self._conflicts, []
        stream, self._conflict_stream = self._conflict_stream, None
        net_flow, transport_flow = key_object(key)
        hook = self._pool._hook(stream, ON_CONFLICT)
        for seq, held, new, wins in conflicts:
            if hook is not None:
                hook(seq, bytes(held), bytes(new), wins)
            if self._on_conflict is not None:
                self._on_conflict(net_flow, transport_flow, seq, bytes(held), bytes(new), wins)

    # -- whose bytes stay ---------------------------------------------------------------------------------------------

    def _wins(self, begin: int, behind: int, page: Page) -> bool:
        """A segment that came as [begin, behind) wins over one that is held. Both cover some byte, and so lie close to each other."""
        if self._overlap == LAST:
            return True
        held_begin, held_behind = page.brought_by
        first = difference(held_begin, begin)  # above 0: it begins behind the held one
        last = difference(held_behind, behind)
        if self._overlap == SOLARIS:
            return last >= 0 if first <= 0 else last > 0
        if first == 0:
            return (self._overlap == LINUX and last > 0) or (self._overlap == OLD_LINUX and last >= 0)
        return first < 0

    def _make_room(self, pages: PageList, page: Page | None, near: int, seq: int, payload: bytes | memoryview, missing: int) -> int:
        """Pages from this one on lose the bytes over which the text at hand wins. `near` lies within 2**31 of the text and of them.

        Returns how many bytes right behind the text were cut off, as far as is known now: what a page knew of that is not lost with it.
        """
        size = len(payload)
        begin, behind = seq, add(seq, size + missing)
        done = difference(seq, near)
        while page is not None and (at := done + difference(near, page.seq)) < size:
            next_ = page.next
            first, end = max(0, at), min(size, at + len(page))
            if first < end and self._wins(begin, behind, page):
                self._counts["overlapping"] += end - first
                if page.bytes[first - at : end - at] != payload[first:end]:
                    self._count_conflicts(add(seq, first), page.bytes[first - at : end - at], payload[first:end], True)
                if end == at + len(page) and page.missing:
                    missing = max(missing, end + page.missing - size)
                self._take_out(pages, page, first - at, end - at)
            page = next_
        return missing

    def _take_out(self, pages: PageList, page: Page, begin: int, end: int) -> None:
        """Some of a page's bytes go. What is left behind them stands in a page of its own, where some are left before them too."""
        behind = page.bytes[end:]
        if begin and behind:
            tail = self._cache.take(page.seen_ns, len(behind))
            tail.seq = add(page.seq, end)
            tail.missing = page.missing
            tail.packet = page.packet
            tail.peer_ack = page.peer_ack
            tail.came = page.brought_by if self._overlap > LAST else None
            tail.offset = -1 if page.offset < 0 else page.offset + end
            tail.hold(behind)
            pages.push_between(page, page.next, tail, tail)
        if begin:
            page.hold(page.bytes[:begin])
            page.missing = 0
        elif behind:
            page.hold(behind)
            page.seq = add(page.seq, end)
            page.offset = -1 if page.offset < 0 else page.offset + end
        else:
            pages.remove(page)
            self._cache.give_back(page)

    # -- limits -------------------------------------------------------------------------------------------------------

    def _is_at_limit(self, pages: PageList) -> bool:
        if pages.count == 0:
            return False
        caches = [self._cache, *self._limit_with]
        return (
            0 < self._limit_connection <= pages.count
            or 0 < self._limit_bytes_connection <= pages.buffered_bytes
            or 0 < self._limit_total <= sum(cache.used for cache in caches)
            or 0 < self._limit_bytes_total <= sum(cache.buffered_bytes for cache in caches)
        )

    def _drop(self, pages: PageList, reason: str) -> None:
        while pages.count:
            page = pages.pop_first()
            self._counts[reason] += len(page)
            self._cache.give_back(page)

    def _drop_successor(self, connection: Connection) -> None:
        if connection.successor is not None:
            self._drop(connection.successor.pages, "unconfirmed_syn")
            connection.successor = None
