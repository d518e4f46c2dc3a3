"""`StreamPoolBase`: finds the connection of a key, makes new ones, remembers closed ones. Called once for each packet that counts."""

import logging
import os
import threading

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy

from .connection cimport CLOSED, FREE, KEY_BYTES, OPEN, REMOVED, connection_s, key_object, key_s, reset
from .pages cimport give_back_page, pop_first

__all__ = ["StreamPoolBase"]

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Both halves of a 64 x 64 bit product, folded: one multiplication mixes all bits (as in wyhash). */
    static inline uint64_t tcpreasm_fold(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    static inline uint64_t tcpreasm_word(const uint8_t *bytes)
    {
        uint64_t word;
        memcpy(&word, bytes, 8);
        return word;
    }
    """
    uint64_t fold "tcpreasm_fold"(uint64_t a, uint64_t b) noexcept nogil
    uint64_t word "tcpreasm_word"(const uint8_t *data) noexcept nogil

cdef enum:
    INITIAL_CONNECTIONS = 1024
    INITIAL_SLOTS = 2048
    LINE = 64                     # connections begin at cache lines

_memory_log = logging.getLogger("tcpreasm.memory")


cdef class StreamPoolBase:
    """The connections that one or several assemblers serve. Keeps 1024 ready, doubles when they run out."""

    def __cinit__(self, *args, **keywords):
        self.secret0 = int.from_bytes(os.urandom(8), "little")
        self.secret1 = int.from_bytes(os.urandom(8), "little") | 1
        self.streams, self.reassembled, self.complete = [], [], []
        self.next_grow = INITIAL_CONNECTIONS
        self.condition = threading.Condition()
        self.log = _memory_log.isEnabledFor(logging.DEBUG)
        self.table = <slot_s *>PyMem_RawCalloc(INITIAL_SLOTS, sizeof(slot_s))
        if self.table == NULL:
            raise MemoryError()
        self.mask = INITIAL_SLOTS - 1
        self._grow()

    def __init__(self, factory):
        new = getattr(factory, "new", factory)
        if not callable(new):
            raise TypeError(f"a stream factory has a method new(net_flow, transport_flow) or is callable, not {factory!r}")
        self.factory = factory
        self.new = new

    def __dealloc__(self):
        cdef connection_s *connection
        cdef slab_s *slab
        cdef list_s lists[2]
        lists[0], lists[1] = self.open, self.closed
        for each in lists:
            connection = each.oldest
            while connection != NULL:
                while connection.pages.count:
                    give_back_page(pop_first(&connection.pages))
                if connection.successor != NULL:
                    while connection.successor.pages.count:
                        give_back_page(pop_first(&connection.successor.pages))
                    PyMem_RawFree(connection.successor)
                connection = connection.newer
        PyMem_RawFree(self.table)
        while self.slabs != NULL:
            slab, self.slabs = self.slabs, self.slabs.older
            PyMem_RawFree(slab)

    def __len__(self):
        """Open connections."""
        return self.open.count

    def keys(self):
        """The keys of the open connections, oldest first."""
        cdef connection_s *connection = self.open.oldest
        cdef key_s key
        raw = []
        while connection != NULL:  # no Python code runs here: the list stays as it is
            raw.append(PyBytes_FromStringAndSize(<const char *>&connection.key, sizeof(key_s)))
            connection = connection.newer
        keys = []
        for each in raw:
            memcpy(&key, <const char *>each, sizeof(key_s))
            keys.append(key_object(&key))
        return keys

    # -- the table --------------------------------------------------------------------------------------------------

    cdef uint32_t hash_of(self, const key_s *key) noexcept nogil:
        cdef uint64_t src, dst
        if key.is_ipv6:
            src = fold(word(&key.src[0]) ^ self.secret0, word(&key.src[8]) ^ self.secret1)
            dst = fold(word(&key.dst[0]) ^ self.secret0, word(&key.dst[8]) ^ self.secret1)
        else:
            src, dst = word(&key.src[0]), word(&key.dst[0])
        src = fold(src ^ self.secret0, self.secret1 ^ key.src_port)
        dst = fold(dst ^ self.secret0, self.secret1 ^ key.dst_port)
        return <uint32_t>(fold((src + dst) ^ self.secret1, self.secret0 | 1) >> 16)

    cdef connection_s *find(self, const key_s *key, uint32_t hash) noexcept nogil:
        cdef uint64_t place = hash & self.mask
        cdef slot_s *slot
        while True:
            slot = &self.table[place]
            if slot.connection == NULL:
                return NULL
            if slot.hash == hash and memcmp(&slot.connection.key, key, KEY_BYTES) == 0:
                return slot.connection
            place = (place + 1) & self.mask

    cdef void _insert(self, connection_s *connection, uint32_t hash) noexcept:
        cdef uint64_t place = hash & self.mask
        while self.table[place].connection != NULL:
            place = (place + 1) & self.mask
        self.table[place].connection = connection
        self.table[place].hash = hash

    # Empty its slot, and move back what probing would no longer find behind it.
    cdef void _erase(self, connection_s *connection) noexcept:
        cdef uint64_t hole = connection.slot_hash & self.mask
        cdef uint64_t place
        while self.table[hole].connection != connection:
            hole = (hole + 1) & self.mask
        place = hole
        while True:
            place = (place + 1) & self.mask
            if self.table[place].connection == NULL:
                break
            if ((place - self.table[place].hash) & self.mask) >= ((place - hole) & self.mask):
                self.table[hole] = self.table[place]
                hole = place
        self.table[hole].connection = NULL
        self.filled -= 1

    cdef int _grow_table(self) except -1:
        cdef slot_s *old = self.table
        cdef uint64_t slots = (self.mask + 1) * 2, place
        self.table = <slot_s *>PyMem_RawCalloc(slots, sizeof(slot_s))
        if self.table == NULL:
            self.table = old
            raise MemoryError()
        self.mask = slots - 1
        for place in range(slots // 2):
            if old[place].connection != NULL:
                self._insert(old[place].connection, old[place].hash)
        PyMem_RawFree(old)
        return 0

    # -- finding and making -----------------------------------------------------------------------------------------

    cdef connection_s *acquire(self, const key_s *key, bint create, int64_t seen_ns, int64_t forget_ns) except? NULL:
        cdef uint32_t hash = self.hash_of(key)
        cdef connection_s *connection
        while True:
            connection = self.find(key, hash)
            if connection != NULL and connection.state == CLOSED and self._forget(connection, forget_ns):
                connection = NULL
            if connection == NULL:
                if not create:
                    return NULL
                self.forget_closed_before(forget_ns)
                if self.free == NULL or (self.filled + 1) * 4 > (self.mask + 1) * 3 or (self.log and not (self.requests + 1) & 0x7FFF):
                    # This may run Python code, and another thread may make the connection meanwhile: look again.
                    self._make_ready()
                    continue
                connection = self._take(key, hash, seen_ns)
                connection.owner = PyThread_get_thread_ident()
                return connection
            if connection.owner == 0:
                connection.owner = PyThread_get_thread_ident()
                return connection
            self._wait(connection)

    cdef bint acquire_open(self, connection_s *connection, uint32_t generation) except -1:
        while connection.generation == generation and connection.state == OPEN:
            if connection.owner == 0:
                connection.owner = PyThread_get_thread_ident()
                return True
            if connection.owner == <unsigned long>PyThread_get_thread_ident():
                return False
            self._wait(connection)
        return False

    # Until its owner is done. It may be another connection's memory then: the caller looks again.
    cdef int _wait(self, connection_s *connection) except -1:
        if connection.owner == <unsigned long>PyThread_get_thread_ident():
            raise RuntimeError("a stream's callback called back into its own connection")
        self.waiters += 1
        try:
            with self.condition:
                if connection.owner != 0:
                    self.condition.wait(1)  # a wake-up may be lost to an exception of a signal handler
        finally:
            self.waiters -= 1
        return 0

    cdef int release(self, connection_s *connection) except -1:
        connection.owner = 0
        if connection.state == REMOVED:
            connection.state = FREE
            connection.newer = self.free
            self.free = connection
        if self.waiters:
            with self.condition:
                self.condition.notify_all()
        return 0

    cdef int _make_ready(self) except -1:
        if self.free == NULL:
            self._grow()
        if (self.filled + 1) * 4 > (self.mask + 1) * 3:
            self._grow_table()
        if self.log and not (self.requests + 1) & 0x7FFF:
            self.requests += 1
            _memory_log.debug("stream pool: %d requests, %d open, %d free", self.requests, self.open.count, self.made - self.open.count)
            self.requests += 1
        return 0

    cdef connection_s *_take(self, const key_s *key, uint32_t hash, int64_t seen_ns) noexcept:
        cdef connection_s *connection = self.free
        self.requests += 1
        self.free = connection.newer
        reset(connection, key, seen_ns)
        connection.generation += 1
        connection.slot_hash = hash
        self._insert(connection, hash)
        self.filled += 1
        connection.state = OPEN
        append(&self.open, connection)
        return connection

    cdef int _grow(self) except -1:
        cdef uint32_t count = self.next_grow, i
        cdef size_t stride = (sizeof(connection_s) + LINE - 1) // LINE * LINE
        cdef slab_s *slab = <slab_s *>PyMem_RawCalloc(1, sizeof(slab_s) + LINE + count * stride)
        cdef uint8_t *place = <uint8_t *>((<uintptr_t>(slab + 1) + LINE - 1) // LINE * LINE)
        cdef connection_s *connection
        if slab == NULL:
            raise MemoryError()
        slab.older, self.slabs = self.slabs, slab
        nothing = [None] * count
        for per_connection in (self.streams, self.reassembled, self.complete):
            per_connection.extend(nothing)
        for i in range(count):
            connection = <connection_s *>(place + i * stride)
            connection.index = self.made + i
            connection.newer = self.free
            self.free = connection
        self.made += count
        if self.log:
            _memory_log.debug("stream pool: %d connections added", count)
        self.next_grow = count * 2
        return 0

    # -- changes of state -------------------------------------------------------------------------------------------

    cdef int reopen(self, connection_s *connection, int64_t seen_ns) except -1:
        cdef key_s key = connection.key
        unlink(&self.closed if connection.state == CLOSED else &self.open, connection)
        reset(connection, &key, seen_ns)
        connection.generation += 1
        connection.state = OPEN
        append(&self.open, connection)
        return self._clear_stream(connection)

    cdef int close(self, connection_s *connection, int64_t now_ns) except -1:
        unlink(&self.open, connection)
        connection.state = CLOSED
        connection.closed_at_ns = now_ns
        append(&self.closed, connection)
        return self._clear_stream(connection)

    cdef int remove(self, connection_s *connection) except -1:
        unlink(&self.open, connection)
        self._erase(connection)
        connection.state = REMOVED
        return self._clear_stream(connection)

    cdef void set_back(self, int64_t now_ns) noexcept:
        cdef connection_s *connection = self.closed.oldest
        while connection != NULL:
            connection.closed_at_ns = min(connection.closed_at_ns, now_ns)
            connection = connection.newer

    cdef int forget_closed_before(self, int64_t before_ns) except -1:
        while self.closed.oldest != NULL and self._forget(self.closed.oldest, before_ns):
            pass
        return 0

    cdef bint _forget(self, connection_s *connection, int64_t before_ns) except -1:
        if connection.closed_at_ns >= before_ns or connection.owner != 0:
            return False
        unlink(&self.closed, connection)
        self._erase(connection)
        if connection.successor != NULL:
            PyMem_RawFree(connection.successor)
            connection.successor = NULL
        connection.state = FREE
        connection.newer = self.free
        self.free = connection
        return True

    cdef int _clear_stream(self, connection_s *connection) except -1:
        self.streams[connection.index] = None
        self.reassembled[connection.index] = None
        self.complete[connection.index] = None
        return 0

    def forget_closed(self, before_ns):
        """Connections that were closed before before_ns are forgotten. Looks at the oldest only."""
        self.forget_closed_before(before_ns)


cdef void append(list_s *connections, connection_s *connection) noexcept:
    connection.older = connections.newest
    connection.newer = NULL
    if connections.newest == NULL:
        connections.oldest = connection
    else:
        connections.newest.newer = connection
    connections.newest = connection
    connections.count += 1


cdef void unlink(list_s *connections, connection_s *connection) noexcept:
    if connection.older == NULL:
        connections.oldest = connection.newer
    else:
        connection.older.newer = connection.newer
    if connection.newer == NULL:
        connections.newest = connection.older
    else:
        connection.newer.older = connection.older
    connections.count -= 1
