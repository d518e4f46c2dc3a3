"""Several assemblers over one capture, each in a thread and with a pool of its own: the C contract.

A capture is cut into blocks, which stand in a ring. Each block passes through these stages:

    claimed    by one thread: it has the block for itself until it is ready
    read       from a plain file by several threads at once; from any other source in the next stage
    parsed     in order, since where a record begins only the one before it tells, and what time it is
    decoded    by several threads at once
    settled    in order, where it has fragments (whose datagrams' ports, and so their shards, only all of them together tell) or senders
               whose checksums are to be judged; by the first shard's assembler
    sorted     by shard: `ready`
    taken in   by each shard's thread, in order
    free       when all shards are through with it

`mutex` guards the numbers, which tell which thread may touch a block's content. No thread waits for it, or for the condition, while it
holds the GIL; one that holds neither may wait for the GIL.
"""

from libc.stdint cimport int64_t

from .assembler cimport decoded_s
from .clock cimport clock_s
from .fragments cimport joined_s
from .records cimport RecordReader, frame_s


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef enum:
    MAX_SHARDS = 64
    MAX_RING = 4 * MAX_SHARDS


cdef struct entry_s:
    int64_t number                # of the block that it holds, from 0; -1: free
    void *block                   # the Block (a reference), or NULL
    frame_s *frames
    decoded_s *decoded
    int64_t *now_ns               # capture time as it is believed with each frame
    bint plain                    # it only went on, in small steps
    joined_s *joined              # memory of datagrams that came in fragments: for its segments
    int *order                    # the frames' numbers, shard by shard
    int first[MAX_SHARDS + 1]     # where each shard's begin in `order`
    int count                     # of frames
    int64_t packets               # that came before these
    int room
    int left                      # shards that are not through with it
    bint ready


cdef class Shards:
    cdef list assemblers
    cdef void *borrowed[MAX_SHARDS]    # the same
    cdef int count
    cdef RecordReader records
    cdef int64_t base             # of offsets
    cdef bint coalesce
    cdef bint at_once             # blocks are read by several threads
    cdef bint by_first            # all reading is the first one's: a pipe may be silent, and signals are heard in the main thread
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed   # anything below
    cdef entry_s ring[MAX_RING]
    cdef int size                 # of the ring
    cdef int64_t claimed          # blocks that were ever claimed
    cdef int64_t parsed           # and parsed: whose turn it is
    cdef int64_t last             # their number, once it is known; -1
    cdef bint stopped             # something failed: everybody is to return
    cdef readonly object error    # the exception that stopped everything, or None
    # in turn only
    cdef int64_t read_from        # offset in the file at which block 1 begins
    cdef int64_t position         # offset in the file behind all that was parsed or left over
    cdef clock_s clock
    cdef int64_t packets          # that were parsed
    cdef bint failed              # read_at did, behind everything parsed so far
    cdef object read_error        # or the source
    cdef void *left_in            # the Block that has a cut record at its end, or NULL (borrowed)

    cdef int _work(self, int shard) except -1 nogil
    cdef int _wait(self, int shard) except -1 nogil
    cdef int _prepare(self, entry_s *entry, int shard) except -1 nogil
    cdef bint _settle(self, entry_s *entry, int shard) except -1 nogil
    cdef bint _is_first(self, int64_t number) noexcept nogil
    cdef Py_ssize_t _read(self, entry_s *entry) except -1 nogil
    cdef bint _parse_at_once(self, entry_s *entry, bint short) except -1 nogil
    cdef bint _parse_next(self, entry_s *entry) except -1 nogil
    cdef bint _read_on(self, entry_s *entry) except -1 nogil
    cdef bint _refill(self, entry_s *entry) except -1
    cdef int _make_room(self, entry_s *entry) except -1 nogil
    cdef int _take_in(self, entry_s *entry, int shard) except -1 nogil
