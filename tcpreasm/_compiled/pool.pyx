"""`StreamPoolBase`: finds the connection of a key, makes new ones, remembers closed ones. Called once for each packet that counts."""

import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from .connection cimport (
    CLOSED,
    FREE,
    HALF_OPEN,
    HAS_START,
    LISTED,
    NATIVE,
    OPEN,
    PYTHON,
    REMOVED,
    SERVED,
    connection_s,
    key_object,
    key_s,
    net_flow_of,
    owner_of,
    raw_key,
    reset,
    reverse_key,
    served_s,
    transport_flow_of,
    waits,
)
from .conversation cimport (
    COMPLETE_NOW,
    GIVES_UP,
    OVER,
    PENDING,
    REFUSED,
    TAKEN,
    TOLD,
    WAS_RESET,
    beside,
    is_over,
    Conversation,
    Side,
    conversation_s,
    keep_conversation,
    key_of,
    let_go_of_conversation,
    may_be_taken,
    new_conversation,
    open_to_callers,
    peer_of,
    side_of,
)
from .pages cimport PageCache, give_back_page, pop_first
from .sequence cimport difference
from .streams cimport NativeStream, serves_natively

from .._log import Log
from ..errors import no_handler
from ..hooks import HOOKS, HooksOfClasses
from .streams import ByteCountStream

__all__ = ["ConversationPoolBase", "StreamPoolBase"]

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    unsigned long PyThread_get_thread_ident() noexcept nogil
    bint PyMethod_Check(object o)
    object PyMethod_New(object function, object instance)
    PyObject *PyMethod_GET_FUNCTION(object method)
    PyObject *PyMethod_GET_SELF(object method)
    ctypedef struct PyListObject:
        PyObject **ob_item

# Not a PyThread lock: that one reads the clock and makes a semaphore's calls each time.
cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutexattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    INITIAL_SLOTS = 2048
    STEPS_PAST_OWNED = 64         # connections that are looked at behind one that user code runs for, when a half-open one is wanted
    PUT_ASIDE = 16                # connections that user code runs for, which `idlest` passes over

cdef int64_t UNKNOWN_BOUND = 0x7FFFFFFFFFFFFFFF

cdef extern from *:
    """
    #include <stdlib.h>
    #include <sys/mman.h>

    /* Zeroed memory that begins at a cache line, at least; what is never touched takes no room. Where it is large, in huge pages: a walk
       through the table and the connections at random misses the TLB at each step otherwise. */
    #define TCPREASM_HUGE ((size_t)2 << 20)

    static void *tcpreasm_allocate_big(size_t size)
    {
        uint8_t *memory, *begin;
        size_t reserved = size + TCPREASM_HUGE;

        if (size < TCPREASM_HUGE) {
            void *small = aligned_alloc(64, (size + 63) / 64 * 64);
            return small ? memset(small, 0, size) : small;
        }
        memory = mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        begin = (uint8_t *)(((uintptr_t)memory + TCPREASM_HUGE - 1) & ~(uintptr_t)(TCPREASM_HUGE - 1));
        if (begin > memory)
            munmap(memory, begin - memory);
        if (memory + reserved > begin + size)
            munmap(begin + (size + 4095) / 4096 * 4096, memory + reserved - (begin + (size + 4095) / 4096 * 4096));
    #ifdef MADV_HUGEPAGE
        madvise(begin, size, MADV_HUGEPAGE);
    #endif
        return begin;
    }

    static void tcpreasm_free_big(void *memory, size_t size)
    {
        if (size < TCPREASM_HUGE)
            free(memory);
        else
            munmap(memory, size);
    }
    """
    void *allocate_big "tcpreasm_allocate_big"(size_t size) noexcept nogil
    void free_big "tcpreasm_free_big"(void *memory, size_t size) noexcept nogil

cdef tuple NO_STREAM = (None,) * PER_STREAM
cdef tuple HOOK_NAMES = HOOKS

assert HOOKS == ("on_gap", "on_conflict", "on_evict") and ON_EVICT == 1 << len(HOOKS) - 1

_memory_log = Log("tcpreasm.memory")


@cython.no_gc_clear  # the caches must be there still when the pages go back
cdef class StreamPoolBase:
    """The connections that one or several assemblers serve. Has room for 1024, and for twice as many more when they run out."""

    def __cinit__(self, *args, **keywords):
        self.table.secret0 = int.from_bytes(os.urandom(8), "little")
        self.table.secret1 = int.from_bytes(os.urandom(8), "little") | 1
        self.served = []
        self.classes = HooksOfClasses()
        self.condition = threading.Condition()
        self.seen_bound = self.late_ns = UNKNOWN_BOUND
        self.listed_high = -UNKNOWN_BOUND
        self.log = _memory_log.is_on()
        pthread_mutex_init(&self.mutex, NULL)
        self.table.slots = <slot_s *>allocate_big(INITIAL_SLOTS * sizeof(slot_s))
        if self.table.slots == NULL:
            raise MemoryError()
        self.table.mask = INITIAL_SLOTS - 1
        self._grow()

    def __init__(self, factory):
        new = getattr(factory, "new", factory)
        if not callable(new):
            raise TypeError(f"a stream factory has a method new(net_flow, transport_flow) or is callable, not {factory!r}")
        self.factory = factory
        self.new = new
        self.counts = new is ByteCountStream

    def __dealloc__(self):
        cdef connection_s *connection
        cdef uint32_t number
        cdef size_t i
        for number in range(1, self.table.made + 1):  # as they lie in memory: along the lists each would be waited for
            connection = connection_at(&self.table, number)
            while connection.pages.count:
                give_back_page(pop_first(&connection.pages))
            if connection.successor != NULL:
                while connection.successor.pages.count:
                    give_back_page(pop_first(&connection.successor.pages))
                PyMem_RawFree(connection.successor)
            if self.pairs and connection.more.side != NULL:
                beside(side_of(connection)).connection = NULL
                let_go_of_conversation(side_of(connection).conversation)
        for i in range(self.cache_count):
            Py_DECREF(<object>self.caches[i])
        PyMem_RawFree(self.caches)
        PyMem_RawFree(self.listed)
        PyMem_RawFree(self.by_seen)
        PyMem_RawFree(self.free_slots)
        if self.table.slots != NULL:
            free_big(self.table.slots, (self.table.mask + 1) * sizeof(slot_s))
        for i in range(self.table.slab_count):
            free_big(self.table.slabs[i], slab_bytes(<uint32_t>i))
        pthread_mutex_destroy(&self.mutex)

    def __len__(self):
        """Open connections."""
        return self.open.count

    def keys(self):
        """The keys of the open connections, oldest first. Two may be equal: then their `net_flow.tunnels` differ."""
        cdef connection_s *connection
        cdef uint32_t count = 0
        cdef bytes raw
        cdef key_s *keys
        self.lock()
        try:
            raw = PyBytes_FromStringAndSize(NULL, self.open.count * sizeof(key_s))  # allocates nothing that could run Python code
            keys = <key_s *><char *>raw
            connection = self.open.oldest
            while connection != NULL:
                keys[count] = connection.key
                count += 1
                connection = connection.newer
        finally:
            self.unlock()
        return [key_object(&keys[i]) for i in range(count)]

    # -- the lock ---------------------------------------------------------------------------------------------------

    cdef int lock(self) except -1:
        return self._lock(PyThread_get_thread_ident())

    cdef int _lock(self, unsigned long me) except -1:
        if pthread_mutex_trylock(&self.mutex) != 0:
            if self.holder == me:
                raise RuntimeError("a StreamPool was called while this thread changes it: from a finalizer")
            with nogil:
                pthread_mutex_lock(&self.mutex)
        self.holder = me
        return 0

    cdef void lock_without_gil(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)
        self.holder = PyThread_get_thread_ident()

    cdef void unlock(self) noexcept nogil:
        self.holder = 0
        pthread_mutex_unlock(&self.mutex)

    cdef void own(self, connection_s *connection) noexcept nogil:
        connection.stream.served.owner = self.holder
        self.owned += 1
        self.unlock()

    cdef int disown(self, connection_s *connection) except -1:
        self._lock(connection.stream.served.owner)
        connection.stream.served.owner = 0
        self.owned -= 1
        if self.waiters:
            with self.condition:
                self.condition.notify_all()
        return 0

    cdef int disown_without_gil(self, connection_s *connection) except -1 nogil:
        self.lock_without_gil()
        connection.stream.served.owner = 0
        self.owned -= 1
        if self.waiters:
            with gil, self.condition:
                self.condition.notify_all()
        return 0

    cdef int wait_for(self, connection_s *connection) except -1 nogil:
        with gil:
            if connection.stream.served.owner == PyThread_get_thread_ident():
                raise RuntimeError("a stream's callback called back into its own connection")
            self.waiters += 1
            self.unlock()
            try:
                with self.condition:
                    if owner_of(connection) != 0:
                        self.condition.wait(1)  # a wake-up may be lost to an exception of a signal handler
            finally:
                self.lock()
                self.waiters -= 1
        return 0

    # -- the table --------------------------------------------------------------------------------------------------

    cdef void _insert(self, uint32_t number, uint32_t hash) noexcept nogil:
        cdef uint64_t place = hash & self.table.mask
        while self.table.slots[place].number != 0:
            place = (place + 1) & self.table.mask
        self.table.slots[place].number = number
        self.table.slots[place].hash = hash

    # Empty its slot, and move back what probing would no longer find behind it. Returns its number.
    cdef uint32_t _erase(self, connection_s *connection) noexcept nogil:
        cdef uint64_t hole = hash_of(&self.table, &connection.key) & self.table.mask
        cdef uint64_t place
        cdef uint32_t number
        while connection_at(&self.table, self.table.slots[hole].number) != connection:
            hole = (hole + 1) & self.table.mask
        number = self.table.slots[hole].number
        place = hole
        while True:
            place = (place + 1) & self.table.mask
            if self.table.slots[place].number == 0:
                break
            if ((place - self.table.slots[place].hash) & self.table.mask) >= ((place - hole) & self.table.mask):
                self.table.slots[hole] = self.table.slots[place]
                hole = place
        self.table.slots[hole].number = 0
        self.table.filled -= 1
        return number

    cdef int _grow_table(self) except -1 nogil:
        cdef slot_s *old = self.table.slots
        cdef uint64_t slots = (self.table.mask + 1) * 2, place
        self.table.slots = <slot_s *>allocate_big(slots * sizeof(slot_s))
        if self.table.slots == NULL:
            self.table.slots = old
            with gil:
                raise MemoryError()
        self.table.mask = slots - 1
        for place in range(slots // 2):
            if old[place].number != 0:
                self._insert(old[place].number, old[place].hash)
        free_big(old, slots // 2 * sizeof(slot_s))
        return 0

    # -- making -----------------------------------------------------------------------------------------------------

    cdef bint is_ready(self) noexcept nogil:
        return (
            (self.free != NULL or self.table.made < self.table.room)
            and (self.table.filled + 1) * 4 <= (self.table.mask + 1) * 3
            and (not self.is_seen_kept or self.seen_count < self.seen_room)
        )

    cdef int make_ready(self) except -1 nogil:
        if self.free == NULL and self.table.made == self.table.room:
            self._grow()
        if (self.table.filled + 1) * 4 > (self.table.mask + 1) * 3:
            self._grow_table()
        if self.is_seen_kept and self.seen_count == self.seen_room:
            self._grow_seen()
        return 0

    cdef connection_s *take(self, const key_s *key, uint32_t hash, int64_t seen_ns) noexcept nogil:
        cdef connection_s *connection = self.free
        cdef uint32_t number
        if connection != NULL:
            number = <uint32_t><uintptr_t>connection.older
            self.free = connection.newer
        else:
            self.table.made += 1
            number = self.table.made
            connection = connection_at(&self.table, number)
        self.requests += 1
        if self.log and not self.requests & 0x7FFF:
            with gil:
                _memory_log.debug(
                    "stream pool: %d requests, %d open, %d free", self.requests, self.open.count, self.table.room - self.table.filled
                )
        reset(connection, key, seen_ns)
        self._insert(number, hash)
        self.table.filled += 1
        self._open(connection, seen_ns)
        if self.is_seen_kept:
            push_seen(self.by_seen, self.seen_count, seen_ns, number, connection.serial)
            self.seen_count += 1
        return connection

    cdef int _grow(self) except -1 nogil:
        cdef uint32_t count = FIRST_SLAB << self.table.slab_count
        cdef uint8_t *slab = NULL
        if self.table.slab_count < SLABS:
            slab = <uint8_t *>allocate_big(slab_bytes(self.table.slab_count))
        if slab == NULL:
            with gil:
                raise MemoryError()
        self.table.slabs[self.table.slab_count] = slab
        self.table.slab_count += 1
        self.table.room += count
        if self.log:
            with gil:
                _memory_log.debug("stream pool: %d connections added", count)
        return 0

    # -- changes of state -------------------------------------------------------------------------------------------

    # As the newest one.
    cdef void _open(self, connection_s *connection, int64_t seen_ns) noexcept nogil:
        self.serial += 1
        connection.serial = self.serial
        connection.state = OPEN
        leave_stream(connection)
        self.seen_bound = min(self.seen_bound, seen_ns)
        append(&self.open, connection)
        if self.maybe_half_open == NULL:
            self.maybe_half_open = connection

    cdef void _leave_open(self, connection_s *connection) noexcept nogil:
        if self.maybe_half_open == connection:
            self.maybe_half_open = connection.newer
        unlink(&self.open, connection)

    cdef int set_stream(self, connection_s *connection, object stream, object reassembled, object complete) except -1:
        cdef bint native = isinstance(stream, NativeStream) and serves_natively(reassembled) and is_method_of(stream, reassembled)
        cdef bint own_methods = not native and is_method_of(stream, reassembled) and is_method_of(stream, complete)
        cdef list served = self.served
        cdef uint32_t slot
        cdef size_t at
        if self.free_slot_count:
            self.free_slot_count -= 1
            slot = self.free_slots[self.free_slot_count]
        else:
            slot = self._new_slot()
        at = <size_t>slot * PER_STREAM
        served[at + STREAM] = stream
        if native:
            if not serves_natively(complete):
                served[at + COMPLETE] = complete
        elif own_methods:  # the functions, which all streams of a class share: bound methods would be two more objects for each
            served[at + REASSEMBLED] = <object>PyMethod_GET_FUNCTION(reassembled)
            served[at + COMPLETE] = <object>PyMethod_GET_FUNCTION(complete)
        else:
            served[at + REASSEMBLED] = reassembled
            served[at + COMPLETE] = complete
        connection.stream.served.slot = slot
        connection.stream.served.stream = <void *>stream if native or own_methods else NULL
        connection.has |= NATIVE if native else PYTHON
        return 0

    cdef object stream_of(self, const connection_s *connection):
        if (connection.has & SERVED) not in (NATIVE, PYTHON):
            return None
        return self.served[<size_t>connection.stream.served.slot * PER_STREAM + STREAM]

    cdef object _hooked(self, object stream):
        return stream

    cdef int hooks_of(self, object stream) except -1:
        cdef int hooks
        cls = type(self._hooked(stream))
        if cls is self.hookless:
            return 0
        hooks = self.classes.of(cls)
        if hooks == 0:
            self.hookless = cls
        return hooks

    cdef object hook_of(self, object stream, int which):
        cdef int at = 0
        if stream is None or not self.hooks_of(stream) & which:
            return None
        while which != 1 << at:
            at += 1
        hooked = self._hooked(stream)
        bound = getattr(hooked, HOOK_NAMES[at])
        return bound if hooked is stream else PyMethod_New(bound, stream)

    # With room for it among the free ones.
    cdef uint32_t _new_slot(self) except? 0:
        cdef uint32_t slot = <uint32_t>(len(self.served) // PER_STREAM)
        cdef size_t room = max(<size_t>64, <size_t>slot * 2)
        cdef uint32_t *grown
        if slot == self.free_slot_room:
            grown = <uint32_t *>PyMem_RawRealloc(self.free_slots, room * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError()
            self.free_slots, self.free_slot_room = grown, room
        self.served.extend(NO_STREAM)
        return slot

    cdef int free_slot(self, uint32_t slot) except -1:
        cdef size_t at = <size_t>slot * PER_STREAM
        cdef size_t i
        for i in range(PER_STREAM):
            self.served[at + i] = None
        self.free_slots[self.free_slot_count] = slot
        self.free_slot_count += 1
        return 0

    cdef int list_waiting(self, connection_s *connection) except -1 nogil:
        cdef size_t room
        cdef listed_s *grown
        if self.listed_count == self.listed_room:
            self.unlist()
            if self.listed_count * 2 >= self.listed_room:
                room = max(<size_t>64, self.listed_room * 2)
                grown = <listed_s *>PyMem_RawRealloc(self.listed, room * sizeof(listed_s))
                if grown == NULL:
                    with gil:
                        raise MemoryError()
                self.listed, self.listed_room = grown, room
        self.listed[self.listed_count].connection = connection
        self.listed[self.listed_count].serial = connection.serial
        self.listed[self.listed_count].oldest_ns = -UNKNOWN_BOUND
        self.listed_count += 1
        connection.has |= LISTED
        return 0

    cdef void note_held(self, int64_t seen_ns) noexcept nogil:
        if seen_ns < self.listed_high:
            self.late_ns = min(self.late_ns, seen_ns)

    cdef void unlist(self) noexcept nogil:
        cdef connection_s *connection
        cdef size_t i, kept = 0
        for i in range(self.listed_count):
            connection = self.listed[i].connection
            if connection.serial != self.listed[i].serial or connection.state != OPEN:
                continue
            if waits(connection):
                self.listed[kept] = self.listed[i]
                kept += 1
            else:
                connection.has &= ~LISTED
        self.listed_count = kept

    cdef void reopen(self, connection_s *connection, int64_t seen_ns) noexcept nogil:
        cdef key_s key = connection.key
        if connection.state == CLOSED:
            unlink(&self.closed, connection)
        else:
            self._leave_open(connection)
        if self.pairs:
            (<ConversationPoolBase>self).leave(connection)
        reset(connection, &key, seen_ns)
        self._open(connection, seen_ns)
        self.note_seen(connection)

    cdef void close(self, connection_s *connection, int64_t now_ns) noexcept nogil:
        self._leave_open(connection)
        leave_stream(connection)
        connection.state = CLOSED
        self.serial += 1
        connection.serial = self.serial
        connection.end_ns = now_ns
        append(&self.closed, connection)

    cdef void remove(self, connection_s *connection) noexcept nogil:
        self._leave_open(connection)
        leave_stream(connection)
        connection.older = <connection_s *><uintptr_t>self._erase(connection)
        connection.state = REMOVED

    cdef void free_removed(self, connection_s *connection) noexcept nogil:
        if self.pairs:
            (<ConversationPoolBase>self).leave(connection)
        connection.state = FREE
        connection.newer = self.free
        self.free = connection

    cdef void set_back(self, int64_t now_ns) noexcept nogil:
        cdef connection_s *connection = self.closed.oldest
        while connection != NULL:
            connection.end_ns = min(connection.end_ns, now_ns)
            connection = connection.newer

    cdef void forget_all_closed(self) noexcept nogil:
        if self.owned or self.pairs:  # one that is being served may be closed already, and stays; a conversation may end with each
            self.forget_closed_before(UNKNOWN_BOUND, ENDLESS)
        else:
            self.has_forgotten, self.forgotten = True, self.serial

    cdef void forget_closed_before(self, int64_t before_ns, uint32_t most) noexcept nogil:
        while most and self.closed.oldest != NULL and self.forget(self.closed.oldest, before_ns):
            most -= 1
        if self.closed.oldest == NULL or not self._is_forgotten(self.closed.oldest):
            self.has_forgotten = False  # before the numbers wrap around

    cdef bint _is_forgotten(self, const connection_s *connection) noexcept nogil:
        return self.has_forgotten and difference(connection.serial, self.forgotten) >= 0

    cdef bint forget(self, connection_s *connection, int64_t before_ns) noexcept nogil:
        if owner_of(connection) != 0 or (connection.end_ns >= before_ns and not self._is_forgotten(connection)):
            return False
        unlink(&self.closed, connection)
        connection.older = <connection_s *><uintptr_t>self._erase(connection)
        if connection.successor != NULL:
            PyMem_RawFree(connection.successor)
            connection.successor = NULL
        self.free_removed(connection)
        return True

    # -- who makes room for a new one -------------------------------------------------------------------------------

    cdef connection_s *oldest_closed(self) noexcept nogil:
        return oldest_at_rest(&self.closed)

    # Each connection is passed once in its life, since none becomes half-open later on; but where user code runs for one that may be it
    # then.
    cdef connection_s *oldest_half_open(self) noexcept nogil:
        cdef connection_s *connection = self.maybe_half_open
        cdef bint passes = True
        cdef int steps = STEPS_PAST_OWNED
        while connection != NULL and steps:
            if owner_of(connection) == 0:
                if connection.key.more & HALF_OPEN:
                    break
            elif connection.key.more & HALF_OPEN or not connection.has & HAS_START:
                passes = False
            connection = connection.newer
            if passes:
                self.maybe_half_open = connection
            else:
                steps -= 1
        return connection if steps else NULL

    cdef connection_s *idlest(self) noexcept nogil:
        cdef connection_s *aside[PUT_ASIDE]
        cdef connection_s *connection = NULL
        cdef int count = 0
        if not self.is_seen_kept and not self.keep_seen():
            return oldest_at_rest(&self.open)
        while count < PUT_ASIDE:
            connection = self.take_idle(UNKNOWN_BOUND)
            if connection == NULL or owner_of(connection) == 0:
                break
            aside[count] = connection
            connection = NULL
            count += 1
        while count:
            count -= 1
            self.note_seen(aside[count])
        if connection == NULL:    # as many as could be put aside
            return oldest_at_rest(&self.open)
        return connection

    cdef connection_s *take_idle(self, int64_t before_ns) noexcept nogil:
        cdef seen_s *top = self.by_seen
        cdef connection_s *connection
        while self.seen_count and top.seen_ns < before_ns:
            connection = connection_at(&self.table, top.number)
            if connection.serial == top.serial and connection.state == OPEN:
                self.looked_at += 1
                if connection.last_seen_ns != top.seen_ns:
                    top.seen_ns = connection.last_seen_ns
                    sift_down(self.by_seen, self.seen_count)
                    continue
            else:
                connection = NULL
            self.seen_count -= 1
            top[0] = self.by_seen[self.seen_count]
            sift_down(self.by_seen, self.seen_count)
            if connection != NULL:
                return connection
        return NULL

    cdef void note_seen(self, connection_s *connection) noexcept nogil:
        self.seen_bound = min(self.seen_bound, connection.last_seen_ns)
        if not self.is_seen_kept:
            return
        if self.seen_count == self.seen_room:
            self._grow_seen()
        if self.is_seen_kept:
            push_seen(self.by_seen, self.seen_count, connection.last_seen_ns, self._number_of(connection), connection.serial)
            self.seen_count += 1

    cdef bint keep_seen(self) noexcept nogil:
        cdef size_t room = max(<size_t>64, <size_t>self.open.count * 2)
        cdef seen_s *grown
        if self.seen_room < room:
            grown = <seen_s *>PyMem_RawRealloc(self.by_seen, room * sizeof(seen_s))
            if grown == NULL:
                return False
            self.by_seen, self.seen_room = grown, room
        self.is_seen_kept = True
        self._list_seen()
        return True

    # There is room for one more; or no order is kept any more, until it is asked for again.
    cdef void _grow_seen(self) noexcept nogil:
        cdef seen_s *grown
        cdef seen_s one
        cdef size_t kept = 0, i
        if self.seen_count > <size_t>self.open.count * 2:  # the rest is no longer open. The table may be far larger than these
            self.looked_at += self.seen_count
            for i in range(self.seen_count):
                one = self.by_seen[i]
                if connection_at(&self.table, one.number).serial == one.serial and connection_at(&self.table, one.number).state == OPEN:
                    push_seen(self.by_seen, kept, one.seen_ns, one.number, one.serial)
                    kept += 1
            self.seen_count = kept
            return
        grown = <seen_s *>PyMem_RawRealloc(self.by_seen, self.seen_room * 2 * sizeof(seen_s))
        if grown == NULL:
            self.is_seen_kept = False
            return
        self.by_seen, self.seen_room = grown, self.seen_room * 2

    # As they lie in memory: along the list each would be waited for.
    cdef void _list_seen(self) noexcept nogil:
        cdef connection_s *connection
        cdef uint32_t number
        self.looked_at += self.table.made
        self.seen_count = 0
        for number in range(1, self.table.made + 1):
            connection = connection_at(&self.table, number)
            if connection.state == OPEN:
                push_seen(self.by_seen, self.seen_count, connection.last_seen_ns, number, connection.serial)
                self.seen_count += 1

    cdef uint32_t _number_of(self, const connection_s *connection) noexcept nogil:
        cdef uint64_t place = hash_of(&self.table, &connection.key) & self.table.mask
        while connection_at(&self.table, self.table.slots[place].number) != connection:
            place = (place + 1) & self.table.mask
        return self.table.slots[place].number

    cdef void prefetch_streams(self, connection_s **connections, int count) noexcept nogil:
        cdef PyObject **served = (<PyListObject *>self.served).ob_item  # changes under the lock only
        cdef const served_s *of
        cdef int i
        if self.pairs:
            for i in range(count):
                if connections[i] != NULL:
                    prefetch(connections[i].more.side)
        for i in range(count):
            if connections[i] != NULL and (connections[i].has & SERVED) in (NATIVE, PYTHON):
                of = &connections[i].stream.served
                prefetch(of.stream)
                prefetch(served + <size_t>of.slot * PER_STREAM)

    cdef uint32_t adopt(self, object cache) except 0:
        cdef size_t i, kept = 0
        cdef void **grown
        for i in range(self.cache_count):
            if Py_REFCNT(<PyObject *>self.caches[i]) == 1 and (<PageCache>self.caches[i]).is_whole():
                Py_DECREF(<object>self.caches[i])  # its assembler is gone, and no page of it is left, here or in pieces on their way
            else:
                self.caches[kept] = self.caches[i]
                kept += 1
        self.cache_count = kept
        grown = <void **>PyMem_RawRealloc(self.caches, (kept + 1) * sizeof(void *))
        if grown == NULL:
            raise MemoryError()
        self.caches = grown
        Py_INCREF(cache)
        self.caches[kept] = <void *>cache
        self.cache_count += 1
        self.assemblers += 1
        return self.assemblers

    def forget_closed(self, before_ns):
        """Connections that were closed before before_ns are forgotten. Looks at the oldest only."""
        self.lock()
        self.forget_closed_before(before_ns, ENDLESS)
        self.unlock()

    # -- for tests --------------------------------------------------------------------------------------------------

    def _hash_of(self, key):
        """Where the table begins to look for a key (as in raw_key); before the mask."""
        cdef key_s raw = raw_key(key)
        return hash_of(&self.table, &raw)

    def _table(self):
        """Slots of the table, those that are filled, and the longest way from where a connection is looked for to where it is found."""
        cdef uint64_t place, longest = 0
        self.lock()
        try:
            for place in range(self.table.mask + 1):
                if self.table.slots[place].number != 0:
                    longest = max(longest, (place - self.table.slots[place].hash) & self.table.mask)
            return self.table.mask + 1, self.table.filled, longest
        finally:
            self.unlock()

    def _connections_made(self):
        """So many connections there was ever room for at a time, open, closed, or free again."""
        return self.table.made

    def _looked_at(self):
        """Connections that flushes have looked at so far."""
        return self.looked_at


cdef class ConversationPoolBase(StreamPoolBase):
    """The same, with the two directions of each connection paired.

    Args:
        factory: makes the handler of each conversation, or the stream of each side.
        called_with: which of the two, and of what: "conversation"; or "side", or "flows", the two of that side.
        done: called with each Conversation that is complete, where there are streams; or None.
    """

    def __cinit__(self, *args, **keywords):
        self.pairs = True
        self.objects = []
        self.acked_bound = UNKNOWN_BOUND

    def __init__(self, factory, called_with="conversation", done=None):
        StreamPoolBase.__init__(self, factory)
        if called_with != "conversation":
            self.new = factory
        self.counts = False       # a tally has no room for what tells its side
        self.called_with = called_with
        self.done = done

    # -- who is called ----------------------------------------------------------------------------------------------

    cdef object stream_for(self, side_s *side):
        cdef Conversation conversation = self._object_of(side.conversation)
        cdef key_s key
        if self.called_with == "conversation":
            if not conversation.has_handler:
                self._make_handler(conversation)
            return conversation.side_at(side.index)
        if self.called_with == "flows":
            key = key_of(side.conversation, side.index)
            made = self.new(net_flow_of(&key), transport_flow_of(&key))
        else:
            made = self.new(conversation.side_at(side.index))
        if side.index:
            conversation.stream_1 = made
        else:
            conversation.stream_0 = made
        return made

    cdef object _hooked(self, object stream):
        return (<Side>stream).conversation.handler if self.called_with == "conversation" else stream

    cdef Conversation _object_of(self, conversation_s *conversation):
        cdef Conversation made
        if conversation.object == NULL:
            made = open_to_callers(conversation, self.called_with == "conversation")
            if conversation.object == NULL:  # the garbage collector may have let others in
                made.place = len(self.objects)
                self.objects.append(made)
                conversation.object = <PyObject *>made
        return <Conversation>conversation.object

    # The two sides may begin in two threads: one makes the handler, the other waits.
    cdef int _make_handler(self, Conversation conversation) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        while conversation.maker != 0:
            if conversation.maker == me:
                raise RuntimeError("a conversation's factory called back into its own conversation")
            self.waiters += 1
            try:
                with self.condition:
                    if conversation.maker != 0:
                        self.condition.wait(1)  # as in wait_for
            finally:
                self.waiters -= 1
        if conversation.has_handler:
            return 0
        conversation.maker = me
        try:
            handler = self.new(conversation)
            if not (callable(getattr(handler, "reassembled", None)) and callable(getattr(handler, "conversation_complete", None))):
                raise no_handler(handler, conversation.key)
            conversation.handler, conversation.has_handler = handler, True
        finally:
            conversation.maker = 0
            if self.waiters:
                with self.condition:
                    self.condition.notify_all()
        return 0

    cdef Conversation take_object(self, conversation_s *conversation):
        cdef Conversation taken = <Conversation>conversation.object
        cdef Conversation last = self.objects.pop()
        if last is not taken:
            self.objects[taken.place] = last
            last.place = taken.place
        conversation.object = NULL
        return taken

    cdef int tell_complete(self, Conversation conversation) except -1:
        try:
            if self.called_with != "conversation":
                if self.done is not None:
                    self.done(conversation)
            elif conversation.handler is not None:
                conversation.handler.conversation_complete()
        finally:
            conversation.kept_0 = conversation.kept_1 = None  # else all would wait for the garbage collector
        return 0

    # -- pairs ------------------------------------------------------------------------------------------------------

    cdef connection_s *_peer(self, const key_s *key, uint32_t hash, int64_t forget_ns) noexcept nogil:
        cdef connection_s *peer
        cdef key_s back = reverse_key(key)
        peer = find(&self.table, &back, hash ^ ~<uint32_t>BOTH_DIRECTIONS)
        return NULL if peer != NULL and peer.state == CLOSED and self.forget(peer, forget_ns) else peer

    cdef side_s *side_beside(self, const key_s *key, uint32_t hash, int64_t forget_ns) noexcept nogil:
        cdef connection_s *peer = self._peer(key, hash, forget_ns)
        cdef side_s *side
        if peer == NULL or peer.more.side == NULL:
            return NULL
        side = peer_of(side_of(peer))
        return side if beside(side).connection == NULL else NULL

    cdef side_s *join(self, connection_s *connection, uint32_t flags, uint32_t isn, uint32_t ack, int64_t forget_ns) noexcept nogil:
        cdef connection_s *peer = self._peer(&connection.key, hash_of(&self.table, &connection.key), forget_ns)
        cdef side_s *side = NULL
        cdef conversation_s *conversation
        if peer != NULL and peer.more.side != NULL:
            side = peer_of(side_of(peer))
        if side == NULL or not may_be_taken(side, flags, isn, ack):
            conversation = new_conversation(&connection.key)
            if conversation == NULL:
                return NULL
            side = &conversation.side[0]
        keep_conversation(side.conversation)
        side.is_what |= TAKEN
        beside(side).connection = connection
        connection.more.side = side
        return side

    cdef void leave(self, connection_s *connection) noexcept nogil:
        cdef side_s *side = side_of(connection)
        if side == NULL:
            return
        connection.more.side = NULL
        beside(side).connection = NULL
        self.look_after(side.conversation)
        let_go_of_conversation(side.conversation)

    cdef void end_side(self, side_s *side) noexcept nogil:
        side.is_what |= OVER
        self.look_after(side.conversation)

    cdef void look_after(self, conversation_s *conversation) noexcept nogil:
        cdef bint ends_other, tells
        if not conversation.is_what & COMPLETE_NOW and is_over(conversation):
            conversation.is_what |= COMPLETE_NOW
        ends_other = conversation.is_what & (WAS_RESET | REFUSED) and not conversation.is_what & COMPLETE_NOW
        tells = (conversation.is_what & (COMPLETE_NOW | TOLD)) == COMPLETE_NOW and conversation.object != NULL
        if (ends_other or tells or conversation.is_what & GIVES_UP) and not conversation.is_what & PENDING:
            conversation.is_what |= PENDING
            keep_conversation(conversation)
            conversation.next = NULL
            if self.first_pending == NULL:
                self.first_pending = conversation
            else:
                self.last_pending.next = conversation
            self.last_pending = conversation

    cdef conversation_s *next_pending(self) noexcept nogil:
        cdef conversation_s *conversation = self.first_pending
        if conversation != NULL:
            self.first_pending = conversation.next
            conversation.is_what &= ~PENDING
        return conversation

    def __dealloc__(self):
        cdef conversation_s *conversation = self.next_pending()
        while conversation != NULL:
            let_go_of_conversation(conversation)
            conversation = self.next_pending()


cdef bint is_method_of(object stream, object method):
    return PyMethod_Check(method) and PyMethod_GET_SELF(method) == <PyObject *>stream


# Of that list; one that user code does not run for.
cdef connection_s *oldest_at_rest(const list_s *connections) noexcept nogil:
    cdef connection_s *connection = connections.oldest
    while connection != NULL and owner_of(connection) != 0:
        connection = connection.newer
    return connection


cdef size_t slab_bytes(uint32_t slab) noexcept nogil:
    return (<size_t>FIRST_SLAB << slab) * sizeof(connection_s)


cdef void leave_stream(connection_s *connection) noexcept nogil:
    connection.has &= ~SERVED
    connection.stream.served.stream = NULL
    connection.stream.served.owner = 0
    connection.stream.served.gatherer = 0


cdef bint seen_before(const seen_s *one, const seen_s *other) noexcept nogil:
    return one.seen_ns < other.seen_ns or (one.seen_ns == other.seen_ns and difference(one.serial, other.serial) > 0)


# Behind the last of `count` entries of a heap.
cdef void push_seen(seen_s *heap, size_t count, int64_t seen_ns, uint32_t number, uint32_t serial) noexcept nogil:
    cdef seen_s entry
    cdef size_t at = count
    entry.seen_ns, entry.number, entry.serial = seen_ns, number, serial
    while at and seen_before(&entry, &heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = entry


# The top one goes to where it belongs.
cdef void sift_down(seen_s *heap, size_t count) noexcept nogil:
    cdef seen_s entry
    cdef size_t at = 0, below = 1
    if count == 0:
        return
    entry = heap[0]
    while below < count:
        if below + 1 < count and seen_before(&heap[below + 1], &heap[below]):
            below += 1
        if not seen_before(&heap[below], &entry):
            break
        heap[at] = heap[below]
        at, below = below, 2 * below + 1
    heap[at] = entry


cdef void append(list_s *connections, connection_s *connection) noexcept nogil:
    connection.older = connections.newest
    connection.newer = NULL
    if connections.newest == NULL:
        connections.oldest = connection
    else:
        connections.newest.newer = connection
    connections.newest = connection
    connections.count += 1


cdef void unlink(list_s *connections, connection_s *connection) noexcept nogil:
    if connection.older == NULL:
        connections.oldest = connection.newer
    else:
        connection.older.newer = connection.newer
    if connection.newer == NULL:
        connections.newest = connection.older
    else:
        connection.newer.older = connection.older
    connections.count -= 1
