"""`Holder`: keeps what arrives early, and answers what is too much or too old.

Lives here: pages and marks for bytes that are ahead, whose bytes stay where copies differ, the limits, the time-outs, dropping. Not here:
what a segment means, and when what is held goes out. Called for what is out of order; a limit or a time-out is asked for more often.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree
from libc.stdint cimport SIZE_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from .clock cimport NEVER_NS, clock_s
from .connection cimport COUNTED, NATIVE, SERVED, connection_s, key_s, net_flow_of, transport_flow_of
from .origin cimport origin_s
from .pages cimport (
    MARKS,
    PAGE_SIZE,
    UNIT,
    add_used,
    bytes_held,
    came_of,
    came_s,
    cut_front,
    cut_page,
    drop_flat,
    find_place,
    flat_s,
    flatten,
    give_back_page,
    hold_bytes,
    note_packet,
    note_peer_ack,
    packet_of,
    page_end,
    page_list_s,
    page_s,
    pop_first,
    pop_last,
    push_between,
    remove_page,
    take_mark,
    take_page_for,
)
from .pool cimport ON_CONFLICT
from .sequence cimport difference
from .serving cimport Server
from .streams cimport NativeStream, append, reserve

from ..stats import COUNTERS, DROP_REASONS, EVICTION_REASONS

cdef enum:
    MARKED_FROM = 512             # bytes of a page. A mark saves little on fewer, and to compare with one is a read of the file

cdef const uint8_t *NOTHING = b""

assert len(COUNTERS) + len(DROP_REASONS) + len(EVICTION_REASONS) == COUNTS

ctypedef bint (*asks_f)(void *stream) noexcept nogil


cdef bint ignores_bytes_by_name(NativeStream stream) noexcept nogil:
    return stream.ignores_bytes


cdef bint asks_origins_by_name(NativeStream stream) noexcept nogil:
    return stream.asks_origins


# The same for a borrowed pointer: without the GIL no reference can be counted.
cdef asks_f ignores_bytes = <asks_f>ignores_bytes_by_name
cdef asks_f asks_origins = <asks_f>asks_origins_by_name


cdef class Holder(Server):
    """What an assembler holds, and what it was told about that."""

    def __dealloc__(self):
        PyMem_RawFree(self.sharers)
        free(self.conflicts.data)
        free(self.conflict_held.data)
        free(self.conflict_new.data)

    # -- time ---------------------------------------------------------------------------------------------------------

    # The time before which something is too old. Nothing expires by the setting of a clock.
    cdef int64_t _expiry(self, int64_t timeout_ns) noexcept nogil:
        cdef clock_s *clock = &self.clock
        if not clock.has_now or timeout_ns < 0 or (clock.has_changed and 0 <= clock.now - clock.changed < timeout_ns):
            return NEVER_NS
        return clock.now - timeout_ns

    cdef int64_t _forget_before(self) noexcept nogil:
        return self._expiry(self.closed_timeout_ns)

    # -- what arrives early -------------------------------------------------------------------------------------------

    # Where the text may stay until the connection's stream is served, which does not look at it, or is given it without the GIL. NULL: it
    # must be copied.
    cdef origin_s *_origin_for(self, connection_s *connection, text_s *text) noexcept nogil:
        cdef uint8_t how = connection.has & SERVED
        if self.origin == NULL or text.offset < 0 or self.overlap > LAST:  # a mark has no came_s
            return NULL
        if how == COUNTED:
            return self.origin
        if how != NATIVE or asks_origins(connection.stream.served.stream):  # nor has it a packet's number
            return NULL
        return self.origin if self.origin.owner != NULL or ignores_bytes(connection.stream.served.stream) else NULL

    # Copy into pages what they do not hold yet, or mark it, one byte after the other; before that they lose what the policy says. Where
    # it is not sure that the bytes are the right ones, nothing is marked.
    cdef int _hold_in(self, page_list_s *pages, text_s *text, bint unsure, origin_s *origin) except -1 nogil:
        cdef int64_t size = text.size
        cdef int64_t position = 0, at, held, missing = <int64_t>text.wire - size
        cdef page_s *prev = find_place(pages, text.seq)
        cdef page_s *next_ = pages.first if prev == NULL else prev.next
        if self.overlap != FIRST and pages.count:
            missing = self._make_room(pages, next_ if prev == NULL else prev, text.seq, text)
            prev = find_place(pages, text.seq)
            next_ = pages.first if prev == NULL else prev.next
        if prev != NULL:
            held = difference(text.seq, page_end(prev))
            if held > 0:
                position = min(held, size)
                self._compare(prev, <uint32_t>(prev.length - held), text, 0, position, unsure)
        while True:
            at = size if next_ == NULL else min(size, <int64_t>difference(text.seq, next_.seq))
            if position < at:
                prev = self._push(pages, prev, next_, text, position, at, origin)
            if next_ == NULL or at >= size:
                break
            position = min(size, at + next_.length)
            self._compare(next_, 0, text, at, position, unsure)
            prev, next_ = next_, next_.next
        if missing:
            # Note on the page before them that so many bytes were cut off by the capture; where there is none, on an empty one.
            if prev == NULL or (not size and difference(page_end(prev), text.seq) > 0):
                prev = self._push(pages, prev, next_, text, 0, 0, NULL)
            prev.missing = <uint32_t>max(<int64_t>prev.missing, <int64_t>difference(page_end(prev), <uint32_t>(text.seq + size + missing)))
        return 0

    # The same for a long text among many pages, nothing of it cut off. Where it repeats a stretch of small ones, as one who wants this to
    # be dear sends it, that is compared at once.
    cdef int _hold_over_many(self, page_list_s *pages, text_s *text, origin_s *origin) except -1 nogil:
        cdef flat_s *flat = &pages.index.flat
        cdef text_s part = text[0]
        cdef uint64_t before
        cdef int64_t size = text.size, begin = 0, end = 0, ahead   # begin to end: what the flat copy has of it
        cdef const uint8_t *held
        if flat.size:
            ahead = difference(text.seq, flat.begin)
            if ahead < size and ahead + flat.size > 0:
                begin, end = max(0, ahead), min(ahead + flat.size, size)
                held = flat.bytes + (begin - ahead)
                self.counts[OVERLAPPING] += end - begin
                if memcmp(held, text.data + begin, end - begin) != 0:
                    self._count_conflicts(text.seq + <uint32_t>begin, held, text.data + begin, <uint32_t>(end - begin), False)
                if end - begin > size // 2:
                    flat.passed = 0
        before = self.counts[OVERLAPPING]
        if begin > 0:
            part.size = part.wire = <uint32_t>begin
            self._hold_in(pages, &part, False, origin)
        if end < size:
            part.seq, part.data = text.seq + <uint32_t>end, text.data + end
            part.size = part.wire = <uint32_t>(size - end)
            part.offset = -1 if text.offset < 0 else text.offset + end
            self._hold_in(pages, &part, False, origin)
        if end - begin <= size // 2 and self.counts[OVERLAPPING] != before:
            flatten(pages, text.seq, text.size)
        return 0

    # The text's bytes from position to end, as a chain of pages, go in between two neighbours. Returns the last page.
    cdef page_s *_push(
        self, page_list_s *pages, page_s *prev, page_s *next_, text_s *text, int64_t position, int64_t end, origin_s *origin
    ) except NULL nogil:
        cdef page_s *first = NULL
        cdef page_s *last = NULL
        cdef page_s *page
        cdef uint32_t size
        cdef int64_t apart = difference(text.seq, text.apart) if text.has_apart else -1
        cdef bint whole = False
        try:
            while not whole:
                size = <uint32_t>min(end - position, <int64_t>PAGE_SIZE)
                if position <= apart < position + size:
                    size = <uint32_t>max(1, apart - position)
                if origin != NULL and size >= MARKED_FROM:
                    page = take_mark(&self.cache.state, text.seen_ns, origin, text.offset + position, size)
                else:
                    page = take_page_for(
                        &self.cache.state, text.seen_ns, -1 if text.offset < 0 or size == 0 else text.offset + position, size
                    )
                    hold_bytes(page, text.data + position, size)
                    came_of(page).begin, came_of(page).behind = text.seq, text.seq + text.wire
                    note_packet(page, text.packet)
                    note_peer_ack(page, self.has_peer_ack, self.peer_ack)
                page.seq = text.seq + <uint32_t>position
                page.urgent = position == apart and size != 0
                if last == NULL:
                    first = page
                else:
                    last.next, page.prev = page, last
                last = page
                position += size
                whole = position >= end
        finally:
            while not whole and first != NULL:  # no memory for the next one
                page, first = first, first.next
                give_back_page(page)
        push_between(pages, prev, next_, first, last)
        return last

    # Count the text's bytes from position to end as a copy of those that a page holds, and those of them that differ.
    cdef int _compare(self, page_s *page, uint32_t offset, text_s *text, int64_t position, int64_t end, bint unsure) except -1 nogil:
        cdef uint8_t buffer[PAGE_SIZE]
        cdef const uint8_t *copy = text.data + position
        cdef const uint8_t *held = bytes_held(page, buffer)
        cdef uint32_t size = <uint32_t>(end - position)
        cdef bint gives_way
        self.counts[OVERLAPPING] += size
        if held == NULL or memcmp(held + offset, copy, size) == 0:
            return 0
        # A lone byte at the start may be the garbage of a keep-alive (RFC 9293 3.8.4): the later one is the likelier.
        gives_way = unsure and page.length == 1 and page.prev == NULL
        self._count_conflicts(page.seq + offset, held + offset, copy, size, gives_way)
        if gives_way:
            hold_bytes(page, copy, 1)
            page.offset = -1 if text.offset < 0 else text.offset + position
            note_packet(page, text.packet)
            note_peer_ack(page, self.has_peer_ack, self.peer_ack)
            page.urgent = text.has_apart and text.apart == page.seq
        return 0

    # Two copies of the bytes from seq on; on_conflict will be told of each run of bytes that differ.
    cdef int _count_conflicts(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil:
        cdef uint32_t at, begin, count = 0
        for at in range(size):
            count += held[at] != new[at]
        self.counts[CONFLICTING] += count
        if not self._tells_conflicts():
            return 0
        at = 0
        while count:
            while held[at] == new[at]:
                at += 1
            begin = at
            while at < size and held[at] != new[at]:
                at += 1
            count -= at - begin
            self._note_conflict(seq + begin, held + begin, new + begin, at - begin, new_wins)
        return 0

    cdef bint _tells_conflicts(self) noexcept nogil:
        return self.tells_conflicts or self.pool_.hooks & ON_CONFLICT

    # A run of differing bytes. Where pages meet, it goes on from the last one.
    cdef int _note_conflict(self, uint32_t seq, const uint8_t *held, const uint8_t *new, uint32_t size, bint new_wins) except -1 nogil:
        cdef conflict_s run
        cdef conflict_s *last
        if not (
            reserve(&self.conflicts, sizeof(run), SIZE_MAX)
            and reserve(&self.conflict_held, size, SIZE_MAX)
            and reserve(&self.conflict_new, size, SIZE_MAX)
        ):
            with gil:
                raise MemoryError()
        append(&self.conflict_held, held, size)
        append(&self.conflict_new, new, size)
        if self.conflicts.used:
            last = <conflict_s *>(self.conflicts.data + self.conflicts.used) - 1
            if last.new_wins == new_wins and last.seq + last.size == seq:
                last.size += size
                return 0
        run.seq, run.size, run.new_wins = seq, size, new_wins
        append(&self.conflicts, &run, sizeof(run))
        if self.pool_.hooks & ON_CONFLICT:
            with gil:
                self.conflict_stream = self.pool_.stream_of(self.at_work_on)
        return 0

    # To whoever asked for them, without the lock, each to the stream first. An exception leaves the others untold.
    cdef int _tell_conflicts(self, const key_s *key) except -1:
        cdef const conflict_s *run = <const conflict_s *>self.conflicts.data
        cdef const char *held = <const char *>self.conflict_held.data
        cdef const char *new = <const char *>self.conflict_new.data
        cdef const conflict_s *behind = <const conflict_s *>(self.conflicts.data + self.conflicts.used)
        cdef list conflicts = []
        try:
            while run != behind:
                conflicts.append((
                    run.seq, PyBytes_FromStringAndSize(held, run.size), PyBytes_FromStringAndSize(new, run.size),
                    "new" if run.new_wins else "held"
                ))
                held, new, run = held + run.size, new + run.size, run + 1
        finally:
            self.conflicts.used = self.conflict_held.used = self.conflict_new.used = 0
        net_flow, transport_flow = net_flow_of(key), transport_flow_of(key)
        stream, self.conflict_stream = self.conflict_stream, None
        self.pool_.unlock()
        try:
            hook = self.pool_.hook_of(stream, ON_CONFLICT)
            for seq, held_bytes, new_bytes, wins in conflicts:
                if hook is not None:
                    hook(seq, held_bytes, new_bytes, wins)
                if self.tells_conflicts:
                    self.on_conflict(net_flow, transport_flow, seq, held_bytes, new_bytes, wins)
        finally:
            stream = hook = None  # without the lock: what dies with it may be user code
            self.pool_.lock()
        return 0

    # -- whose bytes stay ---------------------------------------------------------------------------------------------

    # A segment wins over the one that a page's bytes came with. Both cover some byte, and so lie close to each other.
    cdef bint _wins(self, const text_s *text, page_s *page) noexcept nogil:
        cdef came_s came
        cdef int32_t first, last
        if self.overlap == LAST:
            return True
        came = brought_by(page)
        first = difference(came.begin, text.seq)  # above 0: it begins behind the held one
        last = difference(came.behind, text.seq + text.wire)
        if self.overlap == SOLARIS:
            return last >= 0 if first <= 0 else last > 0
        if first == 0:
            return (self.overlap == LINUX and last > 0) or (self.overlap == OLD_LINUX and last >= 0)
        return first < 0

    # Pages from this one on lose the bytes over which the text at hand wins. `near` lies within 2**31 of the text and of them.
    #
    # Returns how many bytes right behind the text were cut off, as far as is known now: what a page knew of that is not lost with it.
    cdef int64_t _make_room(self, page_list_s *pages, page_s *page, uint32_t near, text_s *text) except -1 nogil:
        cdef uint8_t buffer[PAGE_SIZE]
        cdef const uint8_t *held
        cdef int64_t size = text.size, missing = <int64_t>text.wire - text.size
        cdef int64_t done = difference(text.seq, near)
        cdef int64_t at, first, end
        cdef page_s *next_
        while page != NULL:
            at = done + difference(near, page.seq)
            if at >= size:
                break
            next_ = page.next
            first, end = max(0, at), min(size, at + page.length)
            if first < end and self._wins(text, page):
                self.counts[OVERLAPPING] += end - first
                held = bytes_held(page, buffer)
                if held != NULL and memcmp(held + (first - at), text.data + first, end - first) != 0:
                    self._count_conflicts(
                        text.seq + <uint32_t>first, held + (first - at), text.data + first, <uint32_t>(end - first), True
                    )
                if end == at + page.length and page.missing:
                    missing = max(missing, end + page.missing - size)
                self._take_out(pages, page, <uint32_t>(first - at), <uint32_t>(end - at))
            page = next_
        return missing

    # Some of a page's bytes go. What is left behind them stands in a page of its own, where some are left before them too.
    cdef int _take_out(self, page_list_s *pages, page_s *page, uint32_t begin, uint32_t end) except -1 nogil:
        cdef uint32_t behind = page.length - end
        cdef int64_t offset = -1 if page.offset < 0 else page.offset + end
        cdef page_s *tail
        drop_flat(pages)  # which an assembler with another policy may have made
        if begin and behind:
            if page.cache.kind == MARKS:
                tail = take_mark(&self.cache.state, page.seen_ns, <origin_s *>page.bytes, offset, behind)
            else:
                tail = take_page_for(&self.cache.state, page.seen_ns, offset, behind)
                hold_bytes(tail, page.bytes + end, behind)
                if self.overlap > LAST:
                    came_of(tail)[0] = brought_by(page)
                note_packet(tail, packet_of(page))
                note_peer_ack(tail, page.has_peer_ack, came_of(page).peer_ack)
            tail.seq = page.seq + end
            tail.missing = page.missing
            push_between(pages, page, page.next, tail, tail)
        if begin:
            cut_page(page, begin)
            page.missing = 0
        elif behind:
            cut_front(pages, page, end)
        else:
            remove_page(pages, page)
            give_back_page(page)
        return 0

    # -- limits -------------------------------------------------------------------------------------------------------

    cdef bint _is_at_limit(self, page_list_s *pages) noexcept nogil:
        return pages.count > 0 and (
            0 < self.limit_connection <= pages.count
            or 0 < self.limit_bytes_connection <= <int64_t>pages.units * UNIT
            or ((self.limit_total or self.limit_bytes_total) and self._are_all_at_limit())
        )

    # All that share the limits. What the others' threads have may be a few pages old.
    cdef bint _are_all_at_limit(self) noexcept nogil:
        cdef uint64_t pages = 0, units = 0
        cdef int i
        add_used(&self.cache.state, &pages, &units)
        for i in range(self.sharer_count):
            add_used(self.sharers[i], &pages, &units)
        return 0 < self.limit_total <= <int64_t>pages or 0 < self.limit_bytes_total <= <int64_t>units * UNIT

    cdef void _drop(self, page_list_s *pages, int reason) noexcept nogil:
        cdef page_s *page
        while pages.count:
            page = pop_first(pages)
            self.counts[reason] += page.length
            give_back_page(page)

    cdef void _drop_successor(self, connection_s *connection) noexcept nogil:
        if connection.successor != NULL:
            self._drop(&connection.successor.pages, UNCONFIRMED_SYN)
            PyMem_RawFree(connection.successor)
            connection.successor = NULL


# The segment that a page's bytes came with; where an assembler with another policy brought it, nothing is known but the page.
cdef came_s brought_by(page_s *page) noexcept nogil:
    cdef came_s came
    if page.cache.keeps_came:
        return came_of(page)[0]
    came.begin, came.behind = page.seq, page_end(page)
    return came


cdef int64_t span_with(page_list_s *pages, text_s *text) noexcept nogil:
    cdef int64_t ahead = difference(pages.first.seq, text.seq)
    return max(<int64_t>difference(pages.first.seq, page_end(pages.last)), ahead + text.wire) - min(0, ahead)


cdef void cut_pages(page_list_s *pages, uint32_t end_seq, uint64_t *dropped) noexcept nogil:
    cdef page_s *page
    cdef int64_t room
    drop_flat(pages)
    while pages.count:
        page = pages.last
        room = difference(page.seq, end_seq)
        page.missing = <uint32_t>max(0, min(<int64_t>page.missing, room - <int64_t>page.length))
        if room >= page.length and (page.length or page.missing):
            break
        if room > 0:
            dropped[0] += page.length - room
            cut_page(page, <uint32_t>room)
            break
        dropped[0] += page.length
        give_back_page(pop_last(pages))
