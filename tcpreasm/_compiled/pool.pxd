"""Finds the connection of a key, makes new ones, remembers closed ones: the C contract. Called once for each packet that counts.

The table is open addressing with linear probing over (hash, number of the connection) slots, at most 3/4 full. Its hash is keyed with
bytes of os.urandom, since whoever sends the packets chooses the keys, and symmetric, so that both directions lie side by side; the whole
key is compared.

Everything here is looked at and changed under the pool's lock, with or without the GIL. A thread may wait for the GIL while it holds
the lock; one that holds the GIL only tries to get the lock, and lets go of the GIL before it waits. User code runs without the lock:
meanwhile the connection that it is called for has an owner, and others wait until it is released.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .connection cimport connection_s, key_s
from .conversation cimport Conversation, conversation_s, side_s
from .decode cimport LEVEL_IPV6


cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass


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
    int64_t oldest_ns             # nothing that it held when it was looked at was seen before this; the lowest number: look each time


cdef struct seen_s:               # an open connection, in the order of their last packets
    int64_t seen_ns               # when it was last looked at, this was its last packet
    uint32_t number
    uint32_t serial


# What the pool's list `served` has of a stream, one after the other: where its slot is n, from n * PER_STREAM on.
cdef enum:
    STREAM = 0                    # the stream
    REASSEMBLED = 1               # its two methods, looked up once; None for native ones
    COMPLETE = 2
    GATHERED = 3                  # pieces put aside for it, until the call that does so ends; or None
    PER_STREAM = 4


cdef enum:                        # what streams may have methods for: hooks.HOOKS, in their order
    ON_GAP = 1
    ON_CONFLICT = 2
    ON_EVICT = 4


cdef enum:
    SLABS = 21                    # each twice as large as the one before: 2**31 connections in all
    FIRST_SLAB = 1024             # connections
    FIRST_SLAB_BITS = 10
    BOTH_DIRECTIONS = 0x7FFFFFFF  # the bits of a hash that both directions of a conversation have in common
    ENDLESS = 0x7FFFFFFF


cdef struct table_s:
    uint64_t secret0              # the hash's key
    uint64_t secret1
    slot_s *slots
    uint64_t mask                 # number of slots - 1; a power of two - 1
    uint64_t filled
    # What the connections lie in; C memory, since the garbage collector may empty a Python list too early. Memory that no connection
    # has used yet is not touched, and so takes no room.
    uint8_t *slabs[SLABS]
    uint32_t slab_count
    uint32_t room                 # connections in all slabs
    uint32_t made                 # those that were ever used


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

    static inline uint64_t tcpreasm_half_word(const uint8_t *bytes)
    {
        uint32_t half;
        memcpy(&half, bytes, 4);
        return half;
    }

    static inline uint64_t tcpreasm_word(const uint8_t *bytes)
    {
        uint64_t word;
        memcpy(&word, bytes, 8);
        return word;
    }

    /* KEY_BYTES bytes in overlapping words. The last byte, `level`, tells the version, and what it leaves of IPv4 is zeros. */
    static inline int tcpreasm_same_key(const void *a, const void *b)
    {
        const uint8_t *p = a, *q = b;
        if (((tcpreasm_word(p) ^ tcpreasm_word(q)) | (tcpreasm_word(p + 16) ^ tcpreasm_word(q + 16))
             | (tcpreasm_word(p + 29) ^ tcpreasm_word(q + 29))) != 0)
            return 0;
        return !(p[36] & 1) || ((tcpreasm_word(p + 8) ^ tcpreasm_word(q + 8)) | (tcpreasm_word(p + 24) ^ tcpreasm_word(q + 24))) == 0;
    }
    """
    const uint64_t MIXER "UINT64_C(0x9E3779B97F4A7C15)"
    uint64_t fold "tcpreasm_fold"(uint64_t a, uint64_t b) noexcept nogil
    uint64_t half_word "tcpreasm_half_word"(const uint8_t *data) noexcept nogil
    uint64_t word "tcpreasm_word"(const uint8_t *data) noexcept nogil
    bint same_key "tcpreasm_same_key"(const void *a, const void *b) noexcept nogil
    int leading_zeros "__builtin_clz"(unsigned int number) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil


# Symmetric but for the highest bit, which tells one direction from the other. Tunnels do not count: few keys differ in nothing else.
cdef inline uint32_t hash_of(const table_s *table, const key_s *key) noexcept nogil:
    cdef uint64_t src, dst, both
    if key.level & LEVEL_IPV6:
        src = fold(word(&key.src[0]) ^ table.secret0, word(&key.src[8]) ^ table.secret1) + (<uint64_t>key.src_port << 32)
        dst = fold(word(&key.dst[0]) ^ table.secret0, word(&key.dst[8]) ^ table.secret1) + (<uint64_t>key.dst_port << 32)
    else:
        src = half_word(&key.src[0]) << 16 | key.src_port
        dst = half_word(&key.dst[0]) << 16 | key.dst_port
    # The second product: consecutive addresses and ports would lie at regular distances in one, and fill runs of slots.
    both = fold(min(src, dst) ^ table.secret0, max(src, dst) ^ table.secret1)
    return (<uint32_t>(fold(both ^ table.secret1, MIXER) >> 16) & BOTH_DIRECTIONS) | (<uint32_t>(src < dst) << 31)

cdef inline connection_s *connection_at(const table_s *table, uint32_t number) noexcept nogil:
    cdef uint32_t index = number - 1
    cdef uint32_t slab = 31 - leading_zeros((index >> FIRST_SLAB_BITS) + 1)
    return <connection_s *>table.slabs[slab] + (index - (((<uint32_t>1 << slab) - 1) << FIRST_SLAB_BITS))

# What find will look at, fetched from memory meanwhile: first the slot, then, under the lock, the connection, which is returned where
# there is one (it may be another one with the same hash); then the stream that it serves.
cdef inline void prefetch_slot(const table_s *table, uint32_t hash) noexcept nogil:
    prefetch(&table.slots[hash & table.mask])

cdef inline connection_s *prefetch_connection(const table_s *table, uint32_t hash) noexcept nogil:
    cdef uint64_t place = hash & table.mask
    cdef connection_s *connection
    while table.slots[place].number != 0:
        if table.slots[place].hash == hash:
            connection = connection_at(table, table.slots[place].number)
            prefetch(connection)
            prefetch(<const uint8_t *>connection + 64)
            return connection
        place = (place + 1) & table.mask
    return NULL

cdef inline connection_s *find(const table_s *table, const key_s *key, uint32_t hash) noexcept nogil:
    cdef uint64_t place = hash & table.mask
    cdef const slot_s *slot
    cdef connection_s *connection
    while True:
        slot = &table.slots[place]
        if slot.number == 0:
            return NULL
        if slot.hash == hash:
            connection = connection_at(table, slot.number)
            if same_key(&connection.key, key):
                return connection
        place = (place + 1) & table.mask


cdef class StreamPoolBase:
    cdef readonly object factory
    cdef object new               # factory.new, or the factory itself
    cdef object classes           # HooksOfClasses of the streams
    cdef object hookless          # the class of the last stream that had none, or None
    cdef uint8_t hooks            # ON_GAP ... ON_EVICT: streams with such methods were opened
    cdef bint counts              # the factory is ByteCountStream itself: streams are COUNTED
    cdef pthread_mutex_t mutex
    cdef unsigned long holder     # identity of the thread that holds it; 0: none
    cdef table_s table
    cdef uint32_t serial          # of the connection made last
    cdef connection_s *free       # stack of those that are free again; `older` keeps their number
    cdef list_s open              # in order of creation
    cdef connection_s *maybe_half_open  # on that list: none before this one is half-open; NULL: none at all
    cdef list_s closed            # in order of closing
    cdef bint has_forgotten       # those that were closed up to
    cdef uint32_t forgotten       # this serial number are forgotten, though some may still lie there
    cdef listed_s *listed         # those of the open ones that wait for something, and some that no longer do
    cdef size_t listed_count
    cdef size_t listed_room
    cdef int64_t listed_high      # the highest oldest_ns noted there
    cdef int64_t late_ns          # capture time of the oldest thing that was held since, and seen before listed_high
    cdef int64_t seen_bound       # no open connection was last seen before this, as far as is known without looking
    # The open ones in the order of their last packets: a heap, made when that is first asked for, and kept from then on (is_seen_kept). An
    # entry changes only when it comes to the top: what has been seen since goes down again. Some are no longer open.
    cdef seen_s *by_seen
    cdef size_t seen_count
    cdef size_t seen_room
    cdef bint is_seen_kept
    cdef uint64_t looked_at       # connections that flushes have looked at so far
    cdef list served              # PER_STREAM entries for each stream, which lie side by side; None in free slots
    cdef uint32_t *free_slots     # a stack; there is room for all slots
    cdef uint32_t free_slot_count
    cdef size_t free_slot_room
    cdef void **caches            # page caches of the assembler that serve the pool; a reference to each
    cdef size_t cache_count
    cdef uint32_t assemblers      # that it ever had
    cdef uint64_t requests
    cdef int waiters              # threads that wait for a connection's owner
    cdef uint32_t owned           # connections that have one
    cdef object condition         # what they wait on
    cdef bint log
    cdef bint pairs               # it is a ConversationPoolBase

    # The lock. The first where the GIL is held, the second where it is not.
    cdef int lock(self) except -1
    cdef void lock_without_gil(self) noexcept nogil
    cdef void unlock(self) noexcept nogil

    # A new one without a stream; the key is in no connection of the table. Its room was made by make_ready, in the same hold of the lock.
    cdef connection_s *take(self, const key_s *key, uint32_t hash, int64_t seen_ns) noexcept nogil
    cdef bint is_ready(self) noexcept nogil
    cdef int make_ready(self) except -1 nogil
    # User code is going to run for it: unlocks. The opposite, with and without the GIL: locks again, and wakes who waits.
    cdef void own(self, connection_s *connection) noexcept nogil
    cdef int disown(self, connection_s *connection) except -1
    cdef int disown_without_gil(self, connection_s *connection) except -1 nogil
    # Let go of the lock until the connection's owner may be done, and take it again: it may be another connection's memory then.
    # RuntimeError where this very thread owns it.
    cdef int wait_for(self, connection_s *connection) except -1 nogil
    # The stream of a connection, and its methods: with the GIL. The second needs no lock, and runs what user code there is in dying
    # objects.
    cdef int set_stream(self, connection_s *connection, object stream, object reassembled, object complete) except -1
    cdef int free_slot(self, uint32_t slot) except -1
    # The stream of a connection, or None: with the GIL. It may outlive the connection, and dies without the lock.
    cdef object stream_of(self, const connection_s *connection)
    # Without the lock. What a stream is to be told of, ON_GAP ... ON_EVICT; and what is called for that, None: nothing, or it is None.
    cdef int hooks_of(self, object stream) except -1
    cdef object hook_of(self, object stream, int which)
    # Whose class has the methods.
    cdef object _hooked(self, object stream)
    # It waits for something: to be looked at when time passes.
    cdef int list_waiting(self, connection_s *connection) except -1 nogil
    # It holds something new, seen at that time.
    cdef void note_held(self, int64_t seen_ns) noexcept nogil
    # The opposite, for all that no longer do.
    cdef void unlist(self) noexcept nogil
    # Begin anew under the same key: the newest connection now, without a stream. Its page list is empty, its successor gone.
    cdef void reopen(self, connection_s *connection, int64_t seen_ns) noexcept nogil
    # From open to closed, and remembered; from open to removed; from closed to forgotten (all closed before before_ns).
    cdef void close(self, connection_s *connection, int64_t now_ns) noexcept nogil
    cdef void remove(self, connection_s *connection) noexcept nogil
    cdef void free_removed(self, connection_s *connection) noexcept nogil
    cdef bint forget(self, connection_s *connection, int64_t before_ns) noexcept nogil
    # Of these, `most` at the most: the oldest.
    cdef void forget_closed_before(self, int64_t before_ns, uint32_t most) noexcept nogil
    # All of them but those that are being served. They count as forgotten at once, and are erased by and by.
    cdef void forget_all_closed(self) noexcept nogil
    cdef bint _is_forgotten(self, const connection_s *connection) noexcept nogil
    # Who makes room for a new one: nobody that user code runs for. The oldest of the closed ones, the oldest of those that are half-open,
    # the one whose last packet lies back furthest; or NULL. The last one is no longer in the order of last packets.
    cdef connection_s *oldest_closed(self) noexcept nogil
    cdef connection_s *oldest_half_open(self) noexcept nogil
    cdef connection_s *idlest(self) noexcept nogil
    # The order of last packets. The next one that has seen nothing since before_ns, or NULL; it is taken out. The opposite. From now on
    # kept: False where there is no memory.
    cdef connection_s *take_idle(self, int64_t before_ns) noexcept nogil
    cdef void note_seen(self, connection_s *connection) noexcept nogil
    cdef bint keep_seen(self) noexcept nogil
    # The clock was set back: nothing was closed later than now.
    cdef void set_back(self, int64_t now_ns) noexcept nogil
    # A page cache whose pages may come to hang in the pool's connections. Returns the number of its assembler.
    cdef uint32_t adopt(self, object cache) except 0
    # With the lock: the streams of some connections, or NULLs, are fetched from memory.
    cdef void prefetch_streams(self, connection_s **connections, int count) noexcept nogil

    cdef uint32_t _new_slot(self) except? 0
    cdef int _lock(self, unsigned long me) except -1
    cdef void _open(self, connection_s *connection, int64_t seen_ns) noexcept nogil
    cdef int _grow(self) except -1 nogil
    cdef int _grow_table(self) except -1 nogil
    cdef void _grow_seen(self) noexcept nogil
    cdef void _list_seen(self) noexcept nogil
    cdef uint32_t _number_of(self, const connection_s *connection) noexcept nogil
    cdef void _leave_open(self, connection_s *connection) noexcept nogil
    cdef void _insert(self, uint32_t number, uint32_t hash) noexcept nogil
    cdef uint32_t _erase(self, connection_s *connection) noexcept nogil


cdef class ConversationPoolBase(StreamPoolBase):
    cdef list objects             # the Conversation of each one that has had a stream and is not complete, in no order
    cdef str called_with          # what the factory is called with
    cdef object done              # what is called with each Conversation that is complete, where there are streams; or None
    cdef conversation_s *first_pending  # something is to be done for these
    cdef conversation_s *last_pending
    cdef int64_t acked_bound      # no side's acked_ns lies before this, as far as is known without looking

    # The side of a connection that begins with such a segment: of its other direction's conversation, or of a new one. NULL: no memory.
    cdef side_s *join(self, connection_s *connection, uint32_t flags, uint32_t isn, uint32_t ack, int64_t forget_ns) noexcept nogil
    # The opposite.
    cdef void leave(self, connection_s *connection) noexcept nogil
    # The side of a conversation that a segment without a connection comes from, or NULL.
    cdef side_s *side_beside(self, const key_s *key, uint32_t hash, int64_t forget_ns) noexcept nogil
    # What takes the pieces of a side. Without the lock: user code runs.
    cdef object stream_for(self, side_s *side)
    # Its stream has had its last call.
    cdef void end_side(self, side_s *side) noexcept nogil
    # Note what is to be done for it, if anything. The next one of those, or NULL.
    cdef void look_after(self, conversation_s *conversation) noexcept nogil
    cdef conversation_s *next_pending(self) noexcept nogil

    # It is complete, and nobody is told of it any more: out of `objects`. Then, without the lock: who is to know of that is called.
    cdef Conversation take_object(self, conversation_s *conversation)
    cdef int tell_complete(self, Conversation conversation) except -1

    cdef Conversation _object_of(self, conversation_s *conversation)
    cdef int _make_handler(self, Conversation conversation) except -1
    cdef connection_s *_peer(self, const key_s *key, uint32_t hash, int64_t forget_ns) noexcept nogil
