"""Finds the connection of a key, makes new ones, remembers closed ones: the C contract. Called once for each packet that counts.

The table is open addressing with linear probing over (hash, connection) slots, at most 3/4 full. Its hash is keyed with bytes of
os.urandom, since whoever sends the packets chooses the keys, and symmetric, so that both directions lie side by side; the whole key is
compared.

All of it runs under the GIL and is never interrupted but where user code is called; a connection's owner field is its lock.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s


cdef struct slot_s:
    connection_s *connection      # NULL: empty
    uint32_t hash


cdef struct slab_s:               # followed by connections
    slab_s *older


cdef struct list_s:               # of connections, linked by older and newer
    connection_s *oldest
    connection_s *newest
    uint32_t count


cdef class StreamPoolBase:
    cdef readonly object factory
    cdef object new               # factory.new, or the factory itself
    cdef uint64_t secret0         # the hash's key
    cdef uint64_t secret1
    cdef slot_s *table
    cdef uint64_t mask            # number of slots - 1; a power of two - 1
    cdef uint64_t filled
    cdef slab_s *slabs            # what the connections lie in; C memory, since the garbage collector may empty a Python list too early
    cdef connection_s *free       # stack
    cdef uint32_t next_grow       # connections that the next slab will have
    cdef uint32_t made            # connections in all slabs
    cdef list_s open              # in order of creation
    cdef list_s closed            # in order of closing
    cdef list streams             # by connection.index: the stream, or None
    cdef list reassembled         # its methods, looked up once
    cdef list complete
    cdef uint64_t requests
    cdef int waiters              # threads that wait for a connection's owner
    cdef object condition         # what they wait on
    cdef bint log

    cdef uint32_t hash_of(self, const key_s *key) noexcept nogil
    cdef connection_s *find(self, const key_s *key, uint32_t hash) noexcept nogil
    # The connection of the key, owned by this thread now; a new one without a stream where there is none and create says so; else NULL.
    # One that was closed before forget_ns counts as none. Raises RuntimeError where this thread owns it already.
    cdef connection_s *acquire(self, const key_s *key, bint create, int64_t seen_ns, int64_t forget_ns) except? NULL
    # Own a connection met in a walk; False if it is no longer the one of that generation, no longer open, or served by this very thread.
    cdef bint acquire_open(self, connection_s *connection, uint32_t generation) except -1
    # The opposite. A removed connection becomes a free one only now.
    cdef int release(self, connection_s *connection) except -1
    # Begin anew under the same key: the newest connection now. Its page list is empty, its successor gone.
    cdef int reopen(self, connection_s *connection, int64_t seen_ns) except -1
    # From open to closed, and remembered; from open to forgotten; from closed to forgotten (all closed before before_ns).
    cdef int close(self, connection_s *connection, int64_t now_ns) except -1
    cdef int remove(self, connection_s *connection) except -1
    cdef int forget_closed_before(self, int64_t before_ns) except -1
    # The clock was set back: nothing was closed later than now.
    cdef void set_back(self, int64_t now_ns) noexcept

    # The first of the two makes room and may run Python code; the second does not.
    cdef int _make_ready(self) except -1
    cdef connection_s *_take(self, const key_s *key, uint32_t hash, int64_t seen_ns) noexcept
    cdef int _wait(self, connection_s *connection) except -1
    cdef bint _forget(self, connection_s *connection, int64_t before_ns) except -1
    cdef int _grow(self) except -1
    cdef int _grow_table(self) except -1
    cdef void _insert(self, connection_s *connection, uint32_t hash) noexcept
    cdef void _erase(self, connection_s *connection) noexcept
    cdef int _clear_stream(self, connection_s *connection) except -1
