"""Ready-made streams: the C contract. `take` is called about once a packet, by the engine, without the GIL.

The engine serves a stream from one thread at a time, and different streams from several at once. Whoever holds the GIL may look at
a stream meanwhile: counters are plain numbers, while memory that grows stands under a lock of one byte (`lock_s`). Two rules keep these
locks from hanging anything: who holds one never asks for the GIL (so no Python object is made, freed or called under it, and memory is
malloc's, which no tracer looks at), and who holds the GIL only tries, else gives the GIL up and waits without it (`lock_with_gil`). Only
the lock of one stream's own memory may be waited for with the GIL, by Python code that feeds the stream: it is held for a copy at most.
"""

from libc.stdint cimport int64_t, uint8_t

from .reassembly cimport piece_s


ctypedef uint8_t lock_s           # 0: free

cdef struct memory_s:             # bytes that grow; all zero: none
    uint8_t *data
    size_t used
    size_t capacity

cdef struct gap_s:
    int64_t offset                # counts the stream's bytes, the missing ones among them
    int64_t length

cdef struct span_s:               # a row of SPAN_DTYPE
    int64_t offset
    int64_t length
    int64_t skip
    int64_t seen_ns


# ---- what streams are

cdef class NativeStream:          # what the engine serves without the GIL; a borrowed PyObject * can be cast and called without it
    cdef bint calls_out           # take may run user code: the engine lets go of its lock before
    cdef bint ignores_bytes       # take looks at everything of a piece but its data, which may be NULL then
    # The next pieces, in order: at least one. They are good during the call only. Everything is taken in before it raises.
    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil
    # Nothing more will come.
    cdef int finish(self) except -1 nogil


cdef class ByteCountStream(NativeStream):
    cdef readonly object net_flow
    cdef readonly object transport_flow
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


cdef class _GapStream(ByteCountStream):
    cdef memory_s gaps_           # of gap_s


cdef class BytesStream(_GapStream):
    cdef memory_s kept
    cdef size_t limit             # bytes that may be kept
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


cdef class FileStream(_GapStream):
    cdef readonly FilePool pool
    cdef readonly bint overwrite
    cdef readonly bint fill_gaps
    cdef object made_path
    cdef object make_path
    cdef file_s *file             # NULL as long as there were no bytes
    cdef int64_t hole             # bytes to leave open before the next one

    cdef int create(self) except -1
    cdef void leave_out(self, const piece_s *pieces, Py_ssize_t count) noexcept


# ---- files

cdef enum:
    BUFFERED = 0                  # lists of a pool, in order of use: files that have memory,
    OPEN = 1                      # and files that are open
    LISTS = 2


cdef struct link_s:
    file_s *older
    file_s *newer
    bint linked

# One file, open or not. It may outlive its stream as long as it stands in a list: then the pool frees it (`orphan`).
# `lock` guards path to offset, and who holds it holds no other file's. links and orphan stand under the pool's lock, which is
# taken last; under it, other files' locks are only tried.
cdef struct file_s:
    pool_s *pool
    lock_s lock
    char *path                    # as the system takes it
    int fd                        # -1: not open
    int64_t offset                # in the file: where the bytes in memory begin
    memory_s memory               # bytes that are not written yet
    link_s links[LISTS]
    bint orphan

cdef struct file_list_s:
    file_s *oldest
    file_s *newest

# The C half of a FilePool: freed with its last file, or with the FilePool.
cdef struct pool_s:
    lock_s lock
    bint closed
    bint abandoned                # the FilePool is gone
    int64_t files                 # that exist
    int64_t max_open
    int64_t open_count            # descriptors that are open, or about to be
    int64_t buffered              # bytes of memory in all files
    file_list_s lists[LISTS]


cdef class FilePool:
    cdef pool_s *pool
    cdef dict named               # the files that were asked for by name: NamedFile

    cdef NamedFile find(self, path)


cdef class NamedFile:
    cdef file_s *file


# A bound method `stream.reassembled` or `stream.reassembly_complete` that is the native class's own: neither a subclass nor the object
# itself has another one, so that `take` or `finish` do the same.
cdef bint serves_natively(object method)
