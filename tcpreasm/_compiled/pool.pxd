"""Finds the connection of a key, makes new ones, remembers closed ones: the C contract. Called once for each packet that counts.

The table is open addressing with linear probing over (hash, number of the connection) slots, at most 3/4 full. Its hash is keyed with
bytes of os.urandom, since whoever sends the packets chooses the keys, and symmetric, so that both directions lie side by side; the whole
key is compared.

Everything here is looked at and changed under the pool's lock, with or without the GIL. A thread may wait for the GIL while it holds
the lock; one that holds the GIL only tries to get the lock, and lets go of the GIL before it waits. User code runs without the lock:
meanwhile the connection that it is called for has an owner, and others wait until it is released.
"""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s


cdef struct slot_s:
    uint32_t hash
    uint32_t number               # of the connection, counted from 1; 0: empty


cdef struct list_s:               # of connections, linked by older and newer
    connection_s *oldest
    connection_s *newest
    uint32_t count


cdef struct listed_s:             # a connection that waited for something when it was last looked at
    connection_s *connection
    uint32_t serial


cdef enum:
    SLABS = 22                    # each twice as large as the one before: 2**32 connections in all


cdef class StreamPoolBase:
    cdef readonly object factory
    cdef object new               # factory.new, or the factory itself
    cdef bint counts              # the factory is ByteCountStream itself: streams are COUNTED
    cdef PyThread_type_lock mutex
    cdef unsigned long holder     # identity of the thread that holds it; 0: none
    cdef uint64_t secret0         # the hash's key
    cdef uint64_t secret1
    cdef slot_s *table
    cdef uint64_t mask            # number of slots - 1; a power of two - 1
    cdef uint64_t filled
    # What the connections lie in; C memory, since the garbage collector may empty a Python list too early. Memory that no connection
    # has used yet is not touched, and so takes no room.
    cdef uint8_t *slabs[SLABS]
    cdef void *slab_memory[SLABS]  # as allocated: slabs begin at cache lines
    cdef uint32_t slab_count
    cdef uint32_t room            # connections in all slabs
    cdef uint32_t made            # those that were ever used
    cdef uint32_t serial          # of the connection made last
    cdef connection_s *free       # stack of those that are free again; `older` keeps their number
    cdef list_s open              # in order of creation
    cdef list_s closed            # in order of closing
    cdef listed_s *listed         # those of the open ones that wait for something, and some that no longer do
    cdef size_t listed_count
    cdef size_t listed_room
    cdef int64_t seen_bound       # no open connection was last seen before this, as far as is known without looking
    cdef list streams             # by slot: the stream, or None
    cdef list reassembled         # its methods, looked up once; None for native ones
    cdef list complete
    cdef list gathered            # pieces put aside for it, until the call that does so ends; or None
    cdef list free_slots
    cdef void **caches            # page caches of the assembler that serve the pool; a reference to each
    cdef size_t cache_count
    cdef uint32_t assemblers      # that it ever had
    cdef uint64_t requests
    cdef int waiters              # threads that wait for a connection's owner
    cdef object condition         # what they wait on
    cdef bint log

    # The lock. The first where the GIL is held, the second where it is not.
    cdef int lock(self) except -1
    cdef void lock_without_gil(self) noexcept nogil
    cdef void unlock(self) noexcept nogil

    cdef uint32_t hash_of(self, const key_s *key) noexcept nogil
    cdef void prefetch_slot(self, uint32_t hash) noexcept nogil
    cdef void prefetch_connection(self, uint32_t hash) noexcept nogil
    cdef connection_s *find(self, const key_s *key, uint32_t hash) noexcept nogil
    # A new one without a stream; the key is in no connection of the table. Its room was made by make_ready, in the same hold of the lock.
    cdef connection_s *take(self, const key_s *key, uint32_t hash, int64_t seen_ns) noexcept nogil
    cdef bint is_ready(self) noexcept nogil
    cdef int make_ready(self) except -1 nogil
    # User code is going to run for it: unlocks. The opposite: locks again, and wakes who waits.
    cdef void own(self, connection_s *connection) noexcept nogil
    cdef int disown(self, connection_s *connection, bint holds_gil) except -1 nogil
    # Let go of the lock until the connection's owner may be done, and take it again: it may be another connection's memory then.
    # RuntimeError where this very thread owns it.
    cdef int wait_for(self, connection_s *connection) except -1 nogil
    # The stream of a connection, and its methods: with the GIL; the second needs no lock, and runs what user code there is in dying objects.
    cdef int set_stream(self, connection_s *connection, object stream, object reassembled, object complete) except -1
    cdef int free_slot(self, uint32_t slot) except -1
    # It waits for something: to be looked at when time passes.
    cdef int list_waiting(self, connection_s *connection) except -1 nogil
    # The opposite, for all that no longer do.
    cdef void unlist(self) noexcept nogil
    # Begin anew under the same key: the newest connection now, without a stream. Its page list is empty, its successor gone.
    cdef void reopen(self, connection_s *connection, int64_t seen_ns) noexcept nogil
    # From open to closed, and remembered; from open to removed; from closed to forgotten (all closed before before_ns).
    cdef void close(self, connection_s *connection, int64_t now_ns) noexcept nogil
    cdef void remove(self, connection_s *connection) noexcept nogil
    cdef void free_removed(self, connection_s *connection) noexcept nogil
    cdef bint forget(self, connection_s *connection, int64_t before_ns) noexcept nogil
    cdef void forget_closed_before(self, int64_t before_ns) noexcept nogil
    # The clock was set back: nothing was closed later than now.
    cdef void set_back(self, int64_t now_ns) noexcept nogil
    # A page cache whose pages may come to hang in the pool's connections. Returns the number of its assembler.
    cdef uint32_t adopt(self, object cache) except 0

    cdef void _open(self, connection_s *connection, int64_t seen_ns) noexcept nogil
    cdef connection_s *at(self, uint32_t number) noexcept nogil
    cdef int _grow(self) except -1 nogil
    cdef int _grow_table(self) except -1 nogil
    cdef void _insert(self, uint32_t number, uint32_t hash) noexcept nogil
    cdef uint32_t _erase(self, connection_s *connection) noexcept nogil
