"""Ready-made streams: the C contract. `take` is called about once a packet, by the engine, without the GIL.

The engine serves a stream from one thread at a time, and different streams from several at once. Whoever holds the GIL may look at
a stream meanwhile: counters are plain numbers, while memory that grows stands under a lock of one byte (`lock_s`). Two rules keep these
locks from hanging anything: who holds one never asks for the GIL (so no Python object is made, freed or called under it, and memory is
malloc's, which no tracer looks at), and who holds the GIL only tries, else gives the GIL up and waits without it (`lock_with_gil`). Only
the lock of one stream's own memory may be waited for with the GIL, by Python code that feeds the stream: it is held for a copy at most.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .reassembly cimport piece_s


ctypedef uint8_t lock_s           # 0: free

cdef extern from *:
    """
    #define tcpreasm_try_lock(flag) (!__atomic_exchange_n((flag), 1, __ATOMIC_ACQUIRE))
    #define tcpreasm_unlock(flag) __atomic_store_n((flag), 0, __ATOMIC_RELEASE)
    """
    bint try_lock "tcpreasm_try_lock"(lock_s *flag) noexcept nogil
    void unlock "tcpreasm_unlock"(lock_s *flag) noexcept nogil
    const size_t ENDLESS "(SIZE_MAX >> 1)"

cdef void wait(int tries) noexcept nogil    # a moment, before the next try
cdef void lock(lock_s *flag) noexcept nogil
cdef void lock_with_gil(lock_s *flag) noexcept


# ---- memory

cdef enum:
    GATHERED = 1 << 16            # bytes that a stream gathers before they are written or hashed

cdef struct memory_s:             # bytes that grow; all zero: none
    uint8_t *data
    size_t used
    size_t capacity

cdef bint reserve(memory_s *memory, size_t more, size_t most) noexcept nogil    # False: there is no memory
cdef void append(memory_s *memory, const void *data, size_t size) noexcept nogil

cdef struct gap_s:
    int64_t offset                # counts the stream's bytes, the missing ones among them
    int64_t length

cdef struct span_s:               # a row of SPAN_DTYPE
    int64_t offset
    int64_t length
    int64_t skip
    int64_t seen_ns

cdef struct provenance_s:         # a row of PROVENANCE_FIELDS
    int64_t offset
    int64_t length
    int64_t seen_ns
    int64_t packet_number
    uint32_t seq
    int64_t acked


# ---- what streams are

cdef class Pieces:
    cdef piece_s one              # where there is only one
    cdef piece_s *array
    cdef Py_ssize_t count
    cdef list held                # for each: the Reassembly, or a bytes object


cdef class NativeStream:          # what the engine serves without the GIL; a borrowed PyObject * can be cast and called without it
    cdef bint calls_out           # take may run user code: the engine lets go of its lock before
    cdef bint ignores_bytes       # take looks at everything of a piece but its data, which may be NULL then
    cdef bint asks_origins        # take looks at the packet of a piece: else that may be 0
    cdef bint stops               # it needs no more: looked at after each take
    # The next pieces, in order: at least one. They are good during the call only. Everything is taken in before it raises.
    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil
    # Nothing more will come.
    cdef int finish(self) except -1 nogil


cdef class ByteCountStream(NativeStream):
    cdef readonly object net_flow
    cdef readonly object transport_flow
    cdef public object context    # the caller's
    cdef int64_t length_
    cdef int64_t skipped_
    cdef int64_t gap_count_
    cdef int64_t first_seen_      # ns; good where has_seen
    cdef int64_t last_seen_
    cdef bint has_seen
    cdef bint started_
    cdef bint ended_
    cdef bint complete_
    cdef lock_s lock              # of the memory that subclasses have

    cdef str name(self)           # for messages
    cdef object whether_to_stop(self)  # what `reassembled` returns


cdef class _GapStream(ByteCountStream):
    cdef memory_s gaps_           # of gap_s


cdef bint count_gap(_GapStream stream, const piece_s *piece) noexcept nogil


cdef class BytesStream(_GapStream):
    cdef memory_s kept
    cdef memory_s rows            # of provenance_s, where asks_origins says so
    cdef size_t limit             # bytes that may be kept
    cdef int64_t most             # bytes of the stream that are taken
    cdef readonly object depth
    cdef int64_t dropped_
    cdef bint raises              # on_limit is "error"
    cdef readonly object max_bytes
    cdef readonly object on_limit


cdef class DigestStream(ByteCountStream):
    cdef readonly object algorithm
    cdef object hash              # of all but what was gathered
    cdef memory_s gathered        # what came since
    cdef int64_t turns            # counts the beginnings and the ends of hashing

    cdef object copy(self)
    cdef int hash_gathered(self, const piece_s *piece) except -1


cdef class SpanStream(ByteCountStream):
    cdef memory_s rows            # of span_s


# ---- what the engine asks

# A bound method `stream.reassembled` or `stream.reassembly_complete` that is the native class's own: neither a subclass nor the object
# itself has another one, so that `take` or `finish` do the same.
cdef bint serves_natively(object method)

# A class outside of this module whose `take` and `finish` do what its methods do.
cdef int add_native(type cls) except -1
