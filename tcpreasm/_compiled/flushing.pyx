"""`Flusher`: what time does to connections: what waits too long goes out, what is idle too long ends.

Looks once a second of capture time, and in a flush that the user asks for; and only at what waits for something, and at what was idle for
too long when it was last looked at. A flush of everything looks at everything.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport qsort

from .clock cimport ALWAYS_NS, NEVER_NS, observe
from .connection cimport CLOSED, HAS_START, LISTED, OPEN, connection_s, ended, is_ahead, oldest_held, waits, waits_until
from .conversation cimport HAS_ACKED, beside, side_of, side_s
from .holding cimport HOLES_ENDED, HOLES_EXPIRED
from .pool cimport ENDLESS, hash_of, listed_s, prefetch, prefetch_slot
from .sequence cimport difference
from .serving cimport raise_late_error
from .settling cimport Settler

cdef enum:
    WALK_AHEAD = 16               # connections that are fetched from memory before they are served

cdef extern from *:
    const int64_t EXPIRE_EVERY_NS "TCPREASM_SECONDS"  # capture time between two looks at what waits


cdef class Flusher(Settler):
    """Walks over the connections of the pool."""

    cdef void _observe(self, int64_t seen_ns) noexcept nogil:
        self.clock_before = self.clock
        observe(&self.clock, seen_ns)
        if self.clock_before.has_now and self.clock.now < self.clock_before.now:
            self.pool_.set_back(self.clock.now)

    cdef int _tick(self) except -1 nogil:
        cdef Py_ssize_t flushed = 0, closed = 0
        if self.clock.has_now and not (self.has_ticked and self.ticked_ns <= self.clock.now < self.tick_ns):
            self.has_ticked = True
            self.ticked_ns = self.clock.now
            self.tick_ns = min(self.clock.now, ALWAYS_NS - EXPIRE_EVERY_NS) + EXPIRE_EVERY_NS
            self._expire(&flushed, &closed)
        return 0

    cdef int _expire(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef int64_t held_ns = self._expiry(self.hole_timeout_ns)
        cdef int64_t idle_ns = self._expiry(self.idle_timeout_ns)
        cdef int64_t start_ns = self._expiry(self.start_wait_ns)
        try:
            self.pool_.forget_closed_before(self._forget_before(), ENDLESS)
            self.acked_before = self._expiry(self.acked_timeout_ns) if self.pairs else NEVER_NS
            self._walk_due(held_ns, idle_ns, start_ns, flushed, closed)
        finally:
            self.acked_before = NEVER_NS
            with gil:
                self.cache.shrink_now()
        return 0

    # -- all connections --------------------------------------------------------------------------------------------

    # Of every open connection, oldest first: give out everything, and close it.
    cdef int _walk_all(self, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef connection_s *connection = self.pool_.open.oldest
        cdef listed_s *picked
        cdef size_t count = 0
        if self.pairs:
            self._settle()
            connection = self.pool_.open.oldest
        if connection == NULL:
            return self._raise_late()
        picked = <listed_s *>PyMem_RawMalloc(self.pool_.open.count * sizeof(listed_s))
        if picked == NULL:
            with gil:
                raise MemoryError()
        self.pool_.seen_bound = ALWAYS_NS
        while connection != NULL:
            picked[count].connection = connection
            picked[count].serial = connection.serial
            picked[count].oldest_ns = NEVER_NS
            count += 1
            connection = connection.newer
        self.pool_.looked_at += count
        return self._walk(picked, count, ALWAYS_NS, ALWAYS_NS, NEVER_NS, flushed, closed)

    # Of every open connection, oldest first: give out what is held since before held_ns, start what waits for its start since before
    # start_ns, close what has seen nothing since idle_ns. Looks at those only for which one of these may be so.
    cdef int _walk_due(self, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed) except -1 nogil:
        cdef connection_s *connection
        cdef listed_s *entry
        cdef listed_s *picked
        cdef size_t count = 0, kept = 0, room, i
        cdef uint32_t target
        cdef bint late = self.pool_.late_ns < held_ns
        cdef bint acked = self.pairs and self.pairing.acked_bound < self.acked_before
        if self.pairs:
            self._settle()
        if acked:
            self.pairing.acked_bound = ALWAYS_NS
        picked = <listed_s *>PyMem_RawMalloc(max(<size_t>1, self.pool_.listed_count) * sizeof(listed_s))
        if picked == NULL:
            with gil:
                raise MemoryError()
        room = max(<size_t>1, self.pool_.listed_count)
        if late:
            self.pool_.late_ns = ALWAYS_NS
        for i in range(self.pool_.listed_count):
            entry = &self.pool_.listed[i]
            if entry.oldest_ns < held_ns or entry.oldest_ns == NEVER_NS or late or acked:
                connection = entry.connection
                self.pool_.looked_at += 1
                if connection.serial != entry.serial or connection.state != OPEN:
                    continue
                if not waits(connection):
                    connection.has &= ~LISTED
                    continue
                if (
                    waits_until(connection, held_ns, &target)
                    or waits_for_start_since(connection, start_ns)
                    or (acked and self._is_acked_before(connection))
                ):
                    picked[count] = entry[0]
                    picked[count].oldest_ns = NEVER_NS
                    count += 1
                if connection.has & HAS_START:
                    entry.oldest_ns = oldest_held(connection)
                    self.pool_.listed_high = max(self.pool_.listed_high, entry.oldest_ns)
            self.pool_.listed[kept] = entry[0]
            kept += 1
        self.pool_.listed_count = kept
        if self.pool_.seen_bound < idle_ns and not self._pick_idle(idle_ns, &picked, &count, room):
            self.pool_.is_seen_kept = False
            PyMem_RawFree(picked)
            with gil:
                raise MemoryError()
        if count == 0:
            PyMem_RawFree(picked)
            return self._raise_late()
        qsort(picked, count, sizeof(listed_s), by_age)
        return self._walk(picked, count, held_ns, idle_ns, start_ns, flushed, closed)

    # The first time it looks at all, and begins to keep their order. They stay in that until they are closed: user code may run before,
    # and somebody may have to make room meanwhile. False: no memory.
    cdef bint _pick_idle(self, int64_t idle_ns, listed_s **picked, size_t *count, size_t room) noexcept nogil:
        cdef bint in_order = self.pool_.is_seen_kept
        cdef connection_s *connection = self.pool_.take_idle(idle_ns) if in_order else self.pool_.open.oldest
        cdef size_t first = count[0], i
        cdef listed_s *grown
        while connection != NULL:
            if count[0] == room:
                room *= 2
                grown = <listed_s *>PyMem_RawRealloc(picked[0], room * sizeof(listed_s))
                if grown == NULL:
                    return False
                picked[0] = grown
            if connection.last_seen_ns < idle_ns:
                picked[0][count[0]].connection = connection
                picked[0][count[0]].serial = connection.serial
                picked[0][count[0]].oldest_ns = NEVER_NS
                count[0] += 1
            self.pool_.looked_at += not in_order
            connection = self.pool_.take_idle(idle_ns) if in_order else connection.newer
        if not in_order and not self.pool_.keep_seen():
            return False
        self.pool_.seen_bound = self.pool_.by_seen.seen_ns if self.pool_.seen_count else ALWAYS_NS
        if in_order:
            for i in range(first, count[0]):
                self.pool_.note_seen(picked[0][i].connection)
        return True

    # Those that were picked, while no user code could change the lists. Frees `picked`.
    cdef int _walk(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil:
        cdef size_t i
        try:
            if self.pool_.counts and not self.tells_gaps:
                for i in range(count):
                    if i + WALK_AHEAD < count:
                        prefetch(picked[i + WALK_AHEAD].connection)
                    if i + WALK_AHEAD // 2 < count:
                        prefetch_slot(
                            &self.pool_.table, hash_of(&self.pool_.table, &picked[i + WALK_AHEAD // 2].connection.key)
                        )
                    self._walk_one(&picked[i], held_ns, idle_ns, start_ns, flushed, closed)
            else:
                self._take_gil()
                with gil:
                    self._walk_collecting(picked, count, held_ns, idle_ns, start_ns, flushed, closed)
        finally:
            PyMem_RawFree(picked)
        return 0

    # An exception of user code does not keep the other connections from being served; the first one is raised at the end.
    cdef int _walk_collecting(
        self, listed_s *picked, size_t count, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1:
        cdef bint kept = self.keeps_gil
        cdef size_t i
        error = self.late_error
        self.late_error, self.has_late_error = None, False
        self.keeps_gil = True
        for i in range(count):
            try:
                self._walk_one(&picked[i], held_ns, idle_ns, start_ns, flushed, closed)
            except BaseException as raised:
                error = error or raised
            if self.pairs or self.gaps.used:
                self._settle_with_gil()
                error = error or self.late_error
                self.late_error, self.has_late_error = None, False
        self.keeps_gil = kept
        if error is not None:
            raise error
        return 0

    cdef int _walk_one(
        self, listed_s *picked, int64_t held_ns, int64_t idle_ns, int64_t start_ns, Py_ssize_t *flushed, Py_ssize_t *closed
    ) except -1 nogil:
        cdef connection_s *connection = picked.connection
        cdef bint gave_out, idle, was_over
        try:
            if not self._acquire_open(picked):
                return 0
            idle = connection.last_seen_ns < idle_ns
            gave_out = self._give_out(connection, held_ns, start_ns, HOLES_ENDED if idle else HOLES_EXPIRED)
            if self.pairs:
                gave_out |= self._give_up_acked(connection, self.acked_before)
                if gave_out:
                    self._mark_acked(connection)
            was_over = ended(connection)
            idle = idle and not was_over
            flushed[0] += gave_out or idle
            closed[0] += idle or was_over
            if idle:
                self._close(connection)
            elif gave_out:
                self._serve(connection, 0)
                closed[0] += connection.state == CLOSED and not was_over
        finally:
            if self.out_count:
                self._drop_pieces()
        return 0

    # What was missing was acknowledged before `acked_before`. If not, but later on, that is noted.
    cdef bint _is_acked_before(self, connection_s *connection) noexcept nogil:
        cdef side_s *side = side_of(connection)
        if not side.is_what & HAS_ACKED:
            return False
        if beside(side).acked_ns < self.acked_before:
            return True
        self.pairing.acked_bound = min(self.pairing.acked_bound, beside(side).acked_ns)
        return False

    cdef int _raise_late(self) except -1 nogil:
        if self.has_late_error:
            with gil:
                raise_late_error(self)
        return 0

    cdef bint _give_out(self, connection_s *connection, int64_t held_ns, int64_t start_ns, int why) except -1 nogil:
        cdef uint32_t target
        if not waits_until(connection, held_ns, &target):
            if not waits_for_start_since(connection, start_ns):
                return False
            self._skip(connection, why)
            return True
        while waits(connection) and is_ahead(connection, target):
            self._skip(connection, why)
        return True


# It holds something, and its start has not come since that time.
cdef bint waits_for_start_since(connection_s *connection, int64_t start_ns) noexcept nogil:
    return not connection.has & HAS_START and connection.since.created_ns < start_ns and waits(connection)


# In order of creation. Serials are compared as sequence numbers are: they wrap around.
cdef int by_age(const void *a, const void *b) noexcept nogil:
    return -difference((<const listed_s *>a).serial, (<const listed_s *>b).serial)
