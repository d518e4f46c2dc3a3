# cython: language_level=3
"""`Fragments`: the compiled twin of `_pure/fragments.py`. The contract is in fragments.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove

from .connection cimport KEY_BYTES, key_s
from .decode cimport FRAGMENT, LEVEL_IPV6, MAX_TUNNELS, decode_datagram, fragment_s, segment_s
from .pool cimport hash_of, table_s

__all__ = ["Fragments"]

cdef enum:
    MAX_DATAGRAM = 65_535         # bytes (RFC 791 3.1); IPv6 (RFC 8200 3) counts from behind its header
    WHOLE = -1                    # _add's: the datagram is whole
    FIRST_BUCKETS = 64

assert sizeof(datagram_s) + sizeof(joined_s) + 2 * sizeof(datagram_s *) + 3 * 16 <= DATAGRAM_BYTES


cdef class Fragments:
    """Puts fragmented IP datagrams together."""

    def __cinit__(self, int64_t timeout_ns, int64_t max_datagrams, int64_t max_bytes):
        self.timeout_ns = timeout_ns
        self.max_datagrams = max_datagrams
        self.max_bytes = max_bytes

    def __dealloc__(self):
        self.drop_all()

    def counters(self):
        """FRAGMENT_COUNTERS and FRAGMENT_DROP_REASONS, and how many fragments are held."""
        return [self.counts[i] for i in range(FRAGMENT_COUNTS)], self.held

    cdef int take(self, const table_s *table, int64_t now_ns, segment_s *out, joined_s **joined) noexcept nogil:
        cdef datagram_s *datagram
        cdef joined_s *memory = NULL
        cdef joined_s *before
        cdef fragment_s fragment
        cdef int verdict = FRAGMENT
        joined[0] = NULL
        # A datagram may carry a fragment of another one: each turn goes a tunnel deeper.
        while verdict == FRAGMENT and (<fragment_s *>out).data != NULL:
            fragment = (<fragment_s *>out)[0]
            if self._add(table, &fragment, now_ns, &datagram) != WHOLE:
                break
            before, memory, datagram.memory = memory, datagram.memory, NULL
            free(before)  # what the fragment lay in
            memcpy(<void *>out, &datagram.first, KEY_BYTES)
            verdict = decode_datagram(
                memory.data, min(datagram.cut_at, datagram.size), datagram.size, datagram.first.protocol, datagram.first.depth,
                datagram.first.flags, out
            )
            self._remove(datagram, FRAGMENTS_JOINED)
        if verdict == FRAGMENT or (verdict != 0 and verdict < 8):
            free(memory)
        else:
            joined[0] = memory
        return verdict

    cdef int _add(self, const table_s *table, const fragment_s *fragment, int64_t now_ns, datagram_s **whole) noexcept nogil:
        cdef uint32_t hash = hash_of(table, <const key_s *>fragment)
        cdef uint32_t end = fragment.offset + fragment.wire_length
        cdef datagram_s *datagram
        cdef bint beyond, ends_before
        cdef int why
        self.counts[FRAGMENTS] += 1
        while self.oldest != NULL and 0 <= self.timeout_ns < abs_ns(now_ns, self.oldest.since_ns):
            self._remove(self.oldest, TIMEOUT)
        if fragment.depth > MAX_TUNNELS or fragment.wire_length == 0 or (fragment.more and fragment.wire_length % 8):
            self.counts[MALFORMED] += 1
            return MALFORMED
        datagram = self._find(fragment, hash)
        if datagram == NULL:
            datagram = self._new(fragment, hash, now_ns)
            if datagram == NULL:
                self.counts[LIMIT] += 1
                return LIMIT
        if datagram.why:
            self.counts[datagram.why] += 1
            return datagram.why
        if end + fragment.before > MAX_DATAGRAM:
            self._give_up(datagram, TOO_LARGE)
            self.counts[TOO_LARGE] += 1
            return TOO_LARGE
        beyond = datagram.size != 0 and end > datagram.size
        ends_before = not fragment.more and end < (datagram.size or datagram.end)
        why = MALFORMED if beyond or ends_before else self._hold(datagram, fragment, end)
        if why != 0:
            if why == OVERLAP:
                self._give_up(datagram, OVERLAP)
            elif why == LIMIT:
                self._remove(datagram, LIMIT)
            elif datagram.fragments == 0:
                self._remove(datagram, why)
            self.counts[why] += 1
            return why
        if not fragment.more:
            datagram.size = end
        if fragment.offset == 0:
            datagram.first = fragment[0]
        datagram.fragments += 1
        self.held += 1
        if datagram.size == 0 or datagram.range_count != 1 or datagram.ranges[0].begin != 0 or datagram.ranges[0].end != datagram.size:
            return 0
        self.counts[DATAGRAMS] += 1
        whole[0] = datagram
        return WHOLE

    cdef datagram_s *_find(self, const fragment_s *fragment, uint32_t hash) noexcept nogil:
        cdef datagram_s *datagram
        if self.buckets == NULL:
            return NULL
        datagram = self.buckets[hash & self.mask]
        while datagram != NULL:
            # IPv6's protocol is told by the first fragment alone (RFC 8200 4.5).
            if memcmp(&datagram.first, fragment, KEY_BYTES) == 0 and (
                fragment.level & LEVEL_IPV6 or fragment.protocol == datagram.first.protocol
            ):
                return datagram
            datagram = datagram.chained
        return NULL

    # NULL: no memory.
    cdef datagram_s *_new(self, const fragment_s *fragment, uint32_t hash, int64_t now_ns) noexcept nogil:
        cdef datagram_s *datagram
        while self.oldest != NULL and self.count >= self.max_datagrams:
            self._remove(self.oldest, LIMIT)
        if not self._has_buckets() or not self._charge(NULL, DATAGRAM_BYTES):
            return NULL
        datagram = <datagram_s *>calloc(1, sizeof(datagram_s))
        if datagram == NULL:
            self.held_bytes -= DATAGRAM_BYTES
            return NULL
        datagram.first = fragment[0]
        datagram.since_ns = now_ns
        datagram.cut_at = MAX_DATAGRAM
        datagram.bytes = DATAGRAM_BYTES
        datagram.hash = hash
        datagram.chained, self.buckets[hash & self.mask] = self.buckets[hash & self.mask], datagram
        datagram.older = self.newest
        if self.newest != NULL:
            self.newest.newer = datagram
        else:
            self.oldest = datagram
        self.newest = datagram
        self.count += 1
        return datagram

    # False: no memory.
    cdef bint _has_buckets(self) noexcept nogil:
        cdef datagram_s *datagram = self.oldest
        cdef datagram_s **grown
        cdef uint32_t mask = FIRST_BUCKETS - 1 if self.buckets == NULL else 2 * self.mask + 1
        if self.buckets != NULL and self.count <= self.mask:
            return True
        grown = <datagram_s **>calloc(<size_t>mask + 1, sizeof(datagram_s *))
        if grown == NULL:
            return self.buckets != NULL
        while datagram != NULL:
            datagram.chained, grown[datagram.hash & mask] = grown[datagram.hash & mask], datagram
            datagram = datagram.newer
        free(self.buckets)
        self.buckets, self.mask = grown, mask
        return True

    # Bytes to their place, where none are yet. Returns 0, or why not: nothing was changed then.
    cdef int _hold(self, datagram_s *datagram, const fragment_s *fragment, uint32_t end) noexcept nogil:
        cdef uint32_t captured = fragment.offset + fragment.length
        cdef uint32_t begin = fragment.offset, at = 0, behind, there, until, stop
        cdef range_s *ranges
        while at < datagram.range_count and datagram.ranges[at].end < begin:
            at += 1
        # ranges[at:behind] touch the fragment or overlap it
        behind = at
        while behind < datagram.range_count and datagram.ranges[behind].begin <= end:
            behind += 1
        there = at
        while there < behind and datagram.ranges[there].end <= begin:
            there += 1
        if there < behind and datagram.ranges[there].begin < end:
            if datagram.ranges[there].begin <= begin and end <= datagram.ranges[there].end:
                until = min(min(end, captured), max(begin, datagram.cut_at))
                if not fragment.level & LEVEL_IPV6 or memcmp(datagram.memory.data + begin, fragment.data, until - begin) == 0:
                    return REPEATED
            if fragment.level & LEVEL_IPV6:  # RFC 5722 3
                return OVERLAP
        if not self._make_room(datagram, end):
            return LIMIT
        datagram.end = max(datagram.end, end)
        ranges = datagram.ranges
        until = begin
        for there in range(at, behind + 1):
            # the part that lies before the next range; copies of what is there already give way
            stop = max(until, min(end, ranges[there].begin)) if there < behind else max(until, end)
            if until < stop:
                if until < captured:
                    memcpy(datagram.memory.data + until, fragment.data + (until - begin), min(stop, captured) - until)
                if stop > captured:
                    datagram.cut_at = min(datagram.cut_at, max(until, captured))
            if there < behind:
                until = max(until, ranges[there].end)
        if at == behind:
            memmove(ranges + at + 1, ranges + at, (datagram.range_count - at) * sizeof(range_s))
            datagram.range_count += 1
            ranges[at].begin, ranges[at].end = begin, end
        else:
            ranges[at].begin = min(ranges[at].begin, begin)
            ranges[at].end = max(ranges[behind - 1].end, end)
            memmove(ranges + at + 1, ranges + behind, (datagram.range_count - behind) * sizeof(range_s))
            datagram.range_count -= behind - at - 1
        return 0

    # For payload up to `end`, and for another range. False: no room, which is a limit.
    cdef bint _make_room(self, datagram_s *datagram, uint32_t end) noexcept nogil:
        cdef uint32_t room = datagram.room, range_room = datagram.range_room
        cdef joined_s *memory
        cdef range_s *ranges
        while room < end:
            room = max(<uint32_t>FIRST_ROOM, 2 * room)
        if range_room == datagram.range_count:
            range_room = 2 * range_room + 4
        if not self._charge(datagram, room - datagram.room + (range_room - datagram.range_room) * <uint32_t>sizeof(range_s)):
            return False
        if room > datagram.room:
            memory = <joined_s *>realloc(datagram.memory, sizeof(joined_s) + room)
            if memory == NULL:
                return False
            datagram.memory, datagram.room = memory, room
        if range_room > datagram.range_room:
            ranges = <range_s *>realloc(datagram.ranges, range_room * sizeof(range_s))
            if ranges == NULL:
                return False
            datagram.ranges, datagram.range_room = ranges, range_room
        return True

    # So many bytes more, of that datagram, or of one to come (NULL). False: the older ones gave way, and even so they are too many.
    cdef bint _charge(self, datagram_s *datagram, uint32_t more) noexcept nogil:
        while <int64_t>(self.held_bytes + more) > self.max_bytes:
            if self.oldest == datagram:
                return False
            self._remove(self.oldest, LIMIT)
        self.held_bytes += more
        if datagram != NULL:
            datagram.bytes += more
        return True

    # It will not become whole, and its fragments to come are dropped as those that it had.
    cdef void _give_up(self, datagram_s *datagram, int why) noexcept nogil:
        self.counts[why] += datagram.fragments
        self.held -= datagram.fragments
        self.held_bytes -= datagram.bytes - DATAGRAM_BYTES
        datagram.bytes = DATAGRAM_BYTES
        datagram.fragments = 0
        free(datagram.memory)
        free(datagram.ranges)
        datagram.memory, datagram.ranges = NULL, NULL
        datagram.why = <uint8_t>why

    # `why`: what its fragments count as.
    cdef void _remove(self, datagram_s *datagram, int why) noexcept nogil:
        cdef datagram_s **link = &self.buckets[datagram.hash & self.mask]
        self._give_up(datagram, why)
        self.held_bytes -= DATAGRAM_BYTES
        while link[0] != datagram:
            link = &link[0].chained
        link[0] = datagram.chained
        if datagram.older != NULL:
            datagram.older.newer = datagram.newer
        else:
            self.oldest = datagram.newer
        if datagram.newer != NULL:
            datagram.newer.older = datagram.older
        else:
            self.newest = datagram.older
        self.count -= 1
        free(datagram)

    cdef void drop_all(self) noexcept nogil:
        while self.oldest != NULL:
            self._remove(self.oldest, INCOMPLETE)
        free(self.buckets)
        self.buckets = NULL

    def _table(self):
        """For tests: buckets, datagrams, and the most of them that lie in one bucket."""
        cdef datagram_s *datagram
        cdef uint32_t at, length, longest = 0
        if self.buckets == NULL:
            return 0, 0, 0
        for at in range(self.mask + 1):
            length = 0
            datagram = self.buckets[at]
            while datagram != NULL:
                length += 1
                datagram = datagram.chained
            longest = max(longest, length)
        return self.mask + 1, self.count, longest


cdef inline int64_t abs_ns(int64_t a, int64_t b) noexcept nogil:
    return a - b if a > b else b - a
