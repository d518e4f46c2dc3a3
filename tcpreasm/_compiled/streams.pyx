"""Ready-made streams, served without the GIL: they count, collect, digest, write to files, or note where in the capture the bytes lie.

Lives here: what the contract in the .pxd says, and the Python side of these classes. Not here: ReaderStream and streams in Python
(tcpreasm/streams.py). `take` is called about once a packet, by the engine; `reassembled` by Python code instead, with the same result.
"""

import os
import sys
from types import MethodType

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ
from libc.errno cimport EINTR, EMFILE, ENFILE, ESPIPE, errno
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, strdup
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_TRUNC, O_WRONLY, open as c_open
from posix.unistd cimport close as c_close, ftruncate, pwrite, usleep, write as c_write

from .reassembly cimport PIECE_END, PIECE_START, Reassembly, piece_s

from ..flow import ConnectionKey
from ..options import DEFAULT_MAX_OPEN_FILES, check_number
from ..spans import array_of, copy_to, read_rows

__all__ = ["ByteCountStream", "BytesStream", "DigestStream", "FilePool", "FileStream", "SpanStream"]

cdef extern from *:
    """
    #include <sched.h>
    #define tcpreasm_try_lock(flag) (!__atomic_exchange_n((flag), 1, __ATOMIC_ACQUIRE))
    #define tcpreasm_unlock(flag) __atomic_store_n((flag), 0, __ATOMIC_RELEASE)
    """
    bint try_lock "tcpreasm_try_lock"(lock_s *flag) noexcept nogil
    void unlock "tcpreasm_unlock"(lock_s *flag) noexcept nogil
    int sched_yield() noexcept nogil

cdef enum:
    GATHERED = 1 << 16            # bytes that a stream gathers before they are written or hashed
    BUFFERED_TOTAL = 1 << 25      # bytes of memory that all files of a pool may have; beyond, the longest unused are written out
    CLOSED = -1                   # no errno: the pool is closed
    PATIENCE = 64                 # tries before a waiting thread sleeps

cdef size_t ENDLESS = <size_t>-1 >> 1


# ---- locks, memory, failures

cdef void wait(int tries) noexcept nogil:
    if tries < PATIENCE:
        sched_yield()
    else:
        usleep(50)


cdef void lock(lock_s *flag) noexcept nogil:
    cdef int tries = 0
    while not try_lock(flag):
        wait(tries)
        tries += 1


# Tries with the GIL and waits without it: who got the lock without the GIL would have to ask for that with the lock in hand.
cdef void lock_with_gil(lock_s *flag) noexcept:
    cdef int tries = 0
    while not try_lock(flag):
        with nogil:
            wait(tries)
        tries += 1


# Room for `more` bytes. Grows by half, since most streams are short, and never beyond `most`, which has the room.
cdef bint reserve(memory_s *memory, size_t more, size_t most) noexcept nogil:
    cdef size_t needed = memory.used + more
    cdef size_t grown
    cdef uint8_t *data
    if needed <= memory.capacity:
        return True
    grown = memory.capacity + memory.capacity // 2
    if grown < needed:
        grown = needed
    grown = (grown + 63) & ~<size_t>63
    if grown > most:
        grown = most
    data = <uint8_t *>realloc(memory.data, grown)
    if data == NULL:
        return False
    memory.data = data
    memory.capacity = grown
    return True


cdef void append(memory_s *memory, const void *data, size_t size) noexcept nogil:
    memcpy(memory.data + memory.used, data, size)
    memory.used += size


# Gives back what is not used.
cdef void shrink(memory_s *memory) noexcept nogil:
    cdef uint8_t *data
    if memory.used == 0:
        free(memory.data)
        memory.data = NULL
        memory.capacity = 0
    elif memory.used < memory.capacity:
        data = <uint8_t *>realloc(memory.data, memory.used)
        if data != NULL:
            memory.data = data
            memory.capacity = memory.used


# What it holds, as bytes. They are made before the lock is taken: see the rules in the .pxd.
cdef bytes copy_of(memory_s *memory, lock_s *flag):
    cdef bytes made
    cdef size_t size
    cdef bint there
    while True:
        size = memory.used
        if size == 0:
            return b""
        made = PyBytes_FromStringAndSize(NULL, size)
        lock_with_gil(flag)
        there = memory.used >= size
        if there:
            memcpy(PyBytes_AS_STRING(made), memory.data, size)
        unlock(flag)
        if there:
            return made


cdef struct failure_s:            # the first thing that went wrong in a call; all zero: nothing
    int number                    # errno, or CLOSED
    char *path                    # malloc's, or NULL


cdef void note(failure_s *failure, int number, const char *path) noexcept nogil:
    if failure.number == 0:
        failure.number = number
        failure.path = NULL if path == NULL else strdup(path)


cdef int raise_noted(failure_s *failure) except -1:
    cdef int number = failure.number
    path = None if failure.path == NULL else os.fsdecode(<bytes>failure.path)
    free(failure.path)
    failure.path = NULL
    failure.number = 0
    if number == CLOSED:
        raise ValueError("this FilePool is closed")
    raise OSError(number, os.strerror(number), path)


# ---- pieces out of objects

@cython.final
@cython.no_gc
cdef class Pieces:
    """What `reassembled` was given, as the C side takes it, and pinned for the time of the call. Anything like a Reassembly will do."""

    cdef piece_s one              # where there is only one
    cdef piece_s *array
    cdef Py_ssize_t count
    cdef list held                # for each: the Reassembly, or a bytes object

    def __cinit__(self, reassemblies):
        cdef Reassembly piece
        cdef piece_s *out
        cdef bytes data
        self.held = list(reassemblies)
        self.array = &self.one
        if len(self.held) > 1:
            self.array = <piece_s *>malloc(len(self.held) * sizeof(piece_s))
            if self.array == NULL:
                raise MemoryError
        for number, given in enumerate(self.held):
            out = &self.array[number]
            out.page = NULL
            out.flags = 0
            if type(given) is Reassembly:
                piece = <Reassembly>given
                if piece.length > UINT32_MAX:
                    raise OverflowError("a piece of 4 GiB and more")
                out.data = piece.data
                out.size = <uint32_t>piece.length
                out.skip = piece.skip_
                out.seen_ns = piece.seen_
                out.offset = piece.offset_
                out.flags = piece.flags
                piece.views += 1
            else:
                data = bytes(given.bytes)
                if len(data) > UINT32_MAX:
                    raise OverflowError("a piece of 4 GiB and more")
                out.size = <uint32_t>len(data)
                out.skip = given.skip
                out.seen_ns = given.seen_ns
                out.offset = getattr(given, "offset", -1)
                out.flags = (PIECE_START if given.start else 0) | (PIECE_END if given.end else 0)
                out.data = <const uint8_t *>PyBytes_AS_STRING(data)
                self.held[number] = data
            self.count = number + 1

    def __dealloc__(self):
        cdef Py_ssize_t number
        for number in range(self.count):
            given = self.held[number]
            if type(given) is Reassembly:
                (<Reassembly>given).views -= 1
        if self.array != &self.one:
            free(self.array)


# ---- counting

cdef class NativeStream:
    """What the engine serves without the GIL."""

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        return 0

    cdef int finish(self) except -1 nogil:
        return 0


cdef void count_piece(ByteCountStream stream, const piece_s *piece) noexcept nogil:
    cdef int64_t seen_ns = piece.seen_ns    # pieces come in the stream's order, not in that of their times
    if not stream.has_seen:
        stream.first_seen_ = stream.last_seen_ = seen_ns
        stream.has_seen = True
    elif seen_ns < stream.first_seen_:
        stream.first_seen_ = seen_ns
    elif seen_ns > stream.last_seen_:
        stream.last_seen_ = seen_ns
    if piece.skip > 0:
        stream.gap_count_ += 1
        stream.skipped_ += piece.skip
    stream.length_ += piece.size
    if piece.flags:
        if piece.flags & PIECE_START:
            stream.started_ = True
        if piece.flags & PIECE_END:
            stream.ended_ = True


cdef class ByteCountStream(NativeStream):
    """Counts a stream's bytes and keeps none. A factory by itself: `StreamPool(ByteCountStream)`. The base of the streams below.

    Args:
        net_flow: the addresses; `key` needs both.
        transport_flow: the ports.
    """

    def __init__(self, net_flow=None, transport_flow=None):
        self.net_flow = net_flow
        self.transport_flow = transport_flow

    @property
    def first_seen_ns(self):
        """Capture time of the earliest packet that brought something, in nanoseconds since 1970; None before any did."""
        return self.first_seen_ if self.has_seen else None

    @property
    def last_seen_ns(self):
        """The same of the latest packet."""
        return self.last_seen_ if self.has_seen else None

    @property
    def length(self):
        """Bytes that came."""
        return self.length_

    @property
    def skipped(self):
        """Bytes that are missing between those; an unknown start counts as none."""
        return self.skipped_

    @property
    def gap_count(self):
        """Holes with a known length."""
        return self.gap_count_

    @property
    def started(self):
        """The SYN was captured: the first byte is the stream's first."""
        return self.started_

    @property
    def ended(self):
        """A FIN or RST was reached. False where the stream was closed for another reason (idleness, the end of the capture)."""
        return self.ended_

    @property
    def complete(self):
        """Nothing more will come."""
        return self.complete_

    @property
    def key(self):
        """Who sends to whom. ValueError where the stream was made without flows."""
        if self.net_flow is None or self.transport_flow is None:
            raise ValueError("this stream was made without flows")
        return ConnectionKey(self.net_flow, self.transport_flow)

    @property
    def first_seen(self):
        """`first_seen_ns` in seconds."""
        return self.first_seen_ / 1e9 if self.has_seen else None

    @property
    def last_seen(self):
        """`last_seen_ns` in seconds."""
        return self.last_seen_ / 1e9 if self.has_seen else None

    cdef str name(self):
        return "" if self.net_flow is None or self.transport_flow is None else str(self.key)

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef Py_ssize_t number
        for number in range(count):
            count_piece(self, &pieces[number])
        return 0

    cdef int finish(self) except -1 nogil:
        self.complete_ = True
        return 0

    def reassembled(self, reassemblies):
        """Counts the next pieces."""
        cdef Pieces pieces = Pieces(reassemblies)
        ByteCountStream.take(self, pieces.array, pieces.count)

    def reassembly_complete(self):
        """Marks the stream as complete."""
        ByteCountStream.finish(self)


# Counts the piece and notes its gap; the lock is held. False where there is no memory for that.
cdef bint count_gap(_GapStream stream, const piece_s *piece) noexcept nogil:
    cdef gap_s gap
    cdef bint there = True
    if piece.skip > 0:
        gap.offset = stream.length_ + stream.skipped_
        gap.length = piece.skip
        there = reserve(&stream.gaps_, sizeof(gap_s), ENDLESS)
        if there:
            append(&stream.gaps_, &gap, sizeof(gap_s))
    count_piece(stream, piece)
    return there


cdef class _GapStream(ByteCountStream):
    """A stream that knows where its gaps are."""

    def __dealloc__(self):
        free(self.gaps_.data)

    @property
    def gaps(self):
        """(offset, length) of each hole, in order. Offsets count the stream's bytes, the missing ones among them."""
        cdef bytes copy = copy_of(&self.gaps_, &self.lock)
        cdef const gap_s *gaps = <const gap_s *>PyBytes_AS_STRING(copy)
        cdef Py_ssize_t number
        return tuple([(gaps[number].offset, gaps[number].length) for number in range(len(copy) // <Py_ssize_t>sizeof(gap_s))])


# ---- collecting

cdef class BytesStream(_GapStream):
    """Collects a stream's bytes in memory; gaps are joined, and listed in `gaps`. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        max_bytes: the most that is kept. None: no limit.
        on_limit: what becomes of the rest: "drop" counts it in `dropped`, "error" raises BufferError, through the assembler, in the call
            that brought it (what fits is kept, and the stream goes on dropping).
    """

    def __init__(self, net_flow=None, transport_flow=None, *, max_bytes=None, on_limit="error"):
        ByteCountStream.__init__(self, net_flow, transport_flow)
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, "bytes")
        if on_limit not in ("drop", "error"):
            raise ValueError(f"on_limit is 'drop' or 'error', not {on_limit!r}")
        self.max_bytes = max_bytes
        self.on_limit = on_limit
        self.limit = ENDLESS if max_bytes is None else min(max_bytes, ENDLESS)
        self.raises = on_limit == "error"

    def __dealloc__(self):
        free(self.kept.data)

    @property
    def data(self):
        """The bytes so far: a copy."""
        return copy_of(&self.kept, &self.lock)

    @property
    def dropped(self):
        """Bytes beyond `max_bytes`. `length` counts them too."""
        return self.dropped_

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef const piece_s *piece
        cdef size_t size
        cdef Py_ssize_t number
        cdef bint over = False
        cdef bint there = True
        lock(&self.lock)
        for number in range(count):
            piece = &pieces[number]
            there = count_gap(self, piece) and there
            size = piece.size
            if size > self.limit - self.kept.used:
                over = over or self.dropped_ == 0
                size = self.limit - self.kept.used
                self.dropped_ += piece.size - size
            if size == 0:
                continue
            if reserve(&self.kept, size, self.limit):
                append(&self.kept, piece.data, size)
            else:
                there = False
        unlock(&self.lock)
        if not there:
            with gil:
                raise MemoryError
        if over and self.raises:
            with gil:
                raise BufferError(f"the stream {self.name()} is longer than the {self.max_bytes} bytes that may be kept")
        return 0

    cdef int finish(self) except -1 nogil:
        self.complete_ = True
        lock(&self.lock)
        shrink(&self.kept)
        unlock(&self.lock)
        return 0

    def reassembled(self, reassemblies):
        """Appends the next pieces. BufferError beyond `max_bytes`, if asked for."""
        cdef Pieces pieces = Pieces(reassemblies)
        BytesStream.take(self, pieces.array, pieces.count)

    def reassembly_complete(self):
        """Marks the stream as complete."""
        BytesStream.finish(self)


cdef class DigestStream(ByteCountStream):
    """Computes a digest of a stream's bytes and keeps none; gaps are left out, and counted. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        algorithm: any name that `hashlib.new` takes. ValueError for others.
    """

    def __init__(self, net_flow=None, transport_flow=None, *, algorithm="sha256"):
        ByteCountStream.__init__(self, net_flow, transport_flow)
        import hashlib            # a while to load, and most programs do without

        self.hash = hashlib.new(algorithm)
        self.algorithm = algorithm

    def __dealloc__(self):
        free(self.gathered.data)

    def digest(self, length=None):
        """The digest of the bytes so far. `length`: bytes of digest that are wanted, for shake_128 and shake_256, which need it."""
        made = self.copy()
        return made.digest() if length is None else made.digest(length)

    def hexdigest(self, length=None):
        """The same as text."""
        made = self.copy()
        return made.hexdigest() if length is None else made.hexdigest(length)

    # The hash with what waits to be hashed. `turns` is odd while the assembler's thread hashes what was gathered: the copy then has all of
    # that, or nothing.
    cdef object copy(self):
        cdef int64_t turns
        cdef bytes waiting
        while True:
            turns = self.turns
            made = self.hash.copy()
            waiting = b"" if turns & 1 else copy_of(&self.gathered, &self.lock)
            if turns == self.turns:
                break
        made.update(waiting)
        return made

    # Hashes all that was gathered, then the piece at hand, if there is one.
    cdef int hash_gathered(self, const piece_s *piece) except -1:
        cdef memory_s taken
        lock_with_gil(&self.lock)
        taken = self.gathered
        self.gathered.data = NULL
        self.gathered.used = self.gathered.capacity = 0
        self.turns += 1
        unlock(&self.lock)
        try:
            if taken.used:
                self.hash.update(PyMemoryView_FromMemory(<char *>taken.data, taken.used, PyBUF_READ))
            if piece != NULL:
                self.hash.update(PyMemoryView_FromMemory(<char *>piece.data, piece.size, PyBUF_READ))
        finally:
            taken.used = 0
            lock_with_gil(&self.lock)
            self.turns += 1
            if self.gathered.data == NULL and not self.complete_:
                self.gathered = taken
                taken.data = NULL
            unlock(&self.lock)
            free(taken.data)
        return 0

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef const piece_s *piece
        cdef Py_ssize_t number
        cdef bint fits
        for number in range(count):
            count_piece(self, &pieces[number])
        for number in range(count):
            piece = &pieces[number]
            if piece.size == 0:
                continue
            lock(&self.lock)
            fits = self.gathered.used + piece.size <= GATHERED and reserve(&self.gathered, piece.size, GATHERED)
            if fits:
                append(&self.gathered, piece.data, piece.size)
            unlock(&self.lock)
            if not fits:
                with gil:
                    self.hash_gathered(piece)
        return 0

    cdef int finish(self) except -1 nogil:
        self.complete_ = True
        if self.gathered.data != NULL:
            with gil:
                self.hash_gathered(NULL)
        return 0

    def reassembled(self, reassemblies):
        """Takes the next pieces into the digest."""
        cdef Pieces pieces = Pieces(reassemblies)
        DigestStream.take(self, pieces.array, pieces.count)

    def reassembly_complete(self):
        """Marks the stream as complete."""
        DigestStream.finish(self)


cdef class SpanStream(ByteCountStream):
    """Notes where in the capture a stream's bytes lie, and keeps none of them: 32 bytes a piece. A factory by itself.

    The bytes are read when they are wanted, by `gather` or `write_to`, from the capture that was reassembled: a path, a seekable binary
    file (whose position moves), a buffer, or, where a list of captures was reassembled, a list of these in the same order. Compressed
    captures must be decompressed for that: offsets count what comes out. After `Assembler.assemble_batch` it is the batch's buffer.
    """

    def __dealloc__(self):
        free(self.rows.data)

    @property
    def spans(self):
        """A numpy structured array, a copy, one row a piece that has bytes or stands behind a gap: offset (-1: no bytes, or unknown
        place), length, skip (missing bytes before it; -1: unknown number) and seen_ns (capture time)."""
        return array_of(copy_of(&self.rows, &self.lock))

    def gather(self, source):
        """The stream's bytes, gaps left out. ValueError where the source has no such bytes, or the stream's place is unknown (it was not
        reassembled from a capture file or a batch); TypeError for what is no source; OSError where reading fails."""
        return b"".join(read_rows(memoryview(copy_of(&self.rows, &self.lock)).cast("q"), source))

    def write_to(self, file, source):
        """Writes the same to a binary file, without holding it all, and gives the number of bytes."""
        return copy_to(file, memoryview(copy_of(&self.rows, &self.lock)).cast("q"), source)

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef const piece_s *piece
        cdef Py_ssize_t number
        cdef span_s row
        cdef bint there = True
        lock(&self.lock)
        for number in range(count):
            piece = &pieces[number]
            count_piece(self, piece)
            if piece.size == 0 and piece.skip == 0:
                continue
            row.offset = piece.offset
            row.length = piece.size
            row.skip = piece.skip
            row.seen_ns = piece.seen_ns
            if reserve(&self.rows, sizeof(span_s), ENDLESS):
                append(&self.rows, &row, sizeof(span_s))
            else:
                there = False
        unlock(&self.lock)
        if not there:
            with gil:
                raise MemoryError
        return 0

    cdef int finish(self) except -1 nogil:
        self.complete_ = True
        lock(&self.lock)
        shrink(&self.rows)
        unlock(&self.lock)
        return 0

    def reassembled(self, reassemblies):
        """Notes the next pieces."""
        cdef Pieces pieces = Pieces(reassemblies)
        SpanStream.take(self, pieces.array, pieces.count)

    def reassembly_complete(self):
        """Marks the stream as complete."""
        SpanStream.finish(self)


# ---- files: the C half. Functions give 0, EINTR (nothing is lost: call again) or CLOSED; other errors they note.

cdef void unlink(file_s *file, int which) noexcept nogil:
    cdef file_list_s *files = &file.pool.lists[which]
    cdef link_s *link = &file.links[which]
    if link.older != NULL:
        link.older.links[which].newer = link.newer
    else:
        files.oldest = link.newer
    if link.newer != NULL:
        link.newer.links[which].older = link.older
    else:
        files.newest = link.older
    link.linked = False


# Puts the file to the new end of a list.
cdef void use(file_s *file, int which) noexcept nogil:
    cdef file_list_s *files = &file.pool.lists[which]
    cdef link_s *link = &file.links[which]
    if link.linked:
        unlink(file, which)
    link.older = files.newest
    link.newer = NULL
    link.linked = True
    if files.newest != NULL:
        files.newest.links[which].newer = file
    else:
        files.oldest = file
    files.newest = file


cdef file_s *new_file(pool_s *pool, const char *path) noexcept nogil:
    cdef file_s *file = <file_s *>calloc(1, sizeof(file_s))
    if file == NULL:
        return NULL
    file.path = strdup(path)
    if file.path == NULL:
        free(file)
        return NULL
    file.pool = pool
    file.fd = -1
    lock(&pool.lock)
    pool.files += 1
    unlock(&pool.lock)
    return file


# The pool's lock is held, the file stands in no list.
cdef void free_file(file_s *file) noexcept nogil:
    file.pool.files -= 1
    free(file.path)
    free(file.memory.data)
    free(file)


# Out of a list: closes the descriptor, or frees the memory. Both locks are held. The number of the error of closing, or 0.
cdef int leave(file_s *file, int which) noexcept nogil:
    cdef pool_s *pool = file.pool
    cdef int number = 0
    unlink(file, which)
    if which == OPEN:
        if c_close(file.fd) < 0:
            number = errno
        file.fd = -1
        pool.open_count -= 1
    else:
        pool.buffered -= file.memory.capacity
        free(file.memory.data)
        file.memory.data = NULL
        file.memory.used = file.memory.capacity = 0
    return 0 if number == EINTR else number


# Both locks are held, and the file's is let go: within the pool's, since whoever owns the file may free it from then on.
cdef void let_go(file_s *file) noexcept nogil:
    unlock(&file.lock)
    if file.orphan and not file.links[OPEN].linked and not file.links[BUFFERED].linked:
        free_file(file)


# The least recently used file of a list that nobody works on, locked; NULL where there is none. The pool's lock is held.
cdef file_s *lock_oldest(pool_s *pool, int which) noexcept nogil:
    cdef file_s *file = pool.lists[which].oldest
    while file != NULL and not try_lock(&file.lock):
        file = file.links[which].newer
    return file


# The file's descriptor is there afterwards, or the pool is closed, or an error is noted. The file's lock is held.
# `last`: it is close() that asks.
cdef int open_file(file_s *file, int flags, bint last, failure_s *failure) noexcept nogil:
    cdef pool_s *pool = file.pool
    cdef file_s *oldest
    cdef int number
    cdef int tries = 0
    cdef int fd = -1
    lock(&pool.lock)
    while file.fd < 0:
        if pool.closed and not last:
            unlock(&pool.lock)
            return CLOSED
        if pool.open_count >= pool.max_open:
            oldest = lock_oldest(pool, OPEN)
            if oldest != NULL:
                number = leave(oldest, OPEN)
                if number:
                    note(failure, number, oldest.path)
                let_go(oldest)
            else:                 # others work on all of them, and none of those waits for a descriptor
                unlock(&pool.lock)
                wait(tries)
                tries += 1
                lock(&pool.lock)
            continue
        pool.open_count += 1
        unlock(&pool.lock)
        fd = c_open(file.path, flags | O_WRONLY | O_CLOEXEC, 0o666)
        number = errno if fd < 0 else 0
        lock(&pool.lock)
        if fd >= 0 and pool.closed and not last:
            c_close(fd)           # close() may have been here already
            number = CLOSED
        elif fd >= 0:
            file.fd = fd
            break
        pool.open_count -= 1
        if (number == EMFILE or number == ENFILE) and pool.open_count > 0:
            pool.max_open = pool.open_count    # the system allows no more
            continue
        unlock(&pool.lock)
        if number != EINTR and number != CLOSED:
            note(failure, number, file.path)
        return number
    use(file, OPEN)
    if file.links[BUFFERED].linked:
        use(file, BUFFERED)
    unlock(&pool.lock)
    return 0


# Moves on over what was written. 0 or errno.
cdef int write_at(int fd, const uint8_t **data, size_t *size, int64_t *offset) noexcept nogil:
    cdef Py_ssize_t written
    while size[0]:
        written = pwrite(fd, data[0], size[0], offset[0])
        if written < 0 and errno == ESPIPE:
            written = c_write(fd, data[0], size[0])    # a pipe: bytes only ever follow each other
        if written < 0:
            return errno
        data[0] += written
        size[0] -= written
        offset[0] += written
    return 0


# Writes out the memory. Bytes that the system refuses are lost, and noted; their place stays empty. The file's lock is held.
cdef int write_out(file_s *file, bint last, failure_s *failure) noexcept nogil:
    cdef const uint8_t *data = file.memory.data
    cdef size_t size = file.memory.used
    cdef int number
    if size == 0:
        return 0
    number = open_file(file, 0, last, failure)
    if number == 0:
        number = write_at(file.fd, &data, &size, &file.offset)
        if number != 0 and number != EINTR:
            note(failure, number, file.path)
    if number == EINTR or number == CLOSED:
        memmove(file.memory.data, data, size)
        file.memory.used = size
        return number
    file.offset += size
    file.memory.used = 0
    return 0


# More memory for the file, within the pool's account. The file's lock is held. False: there is none to be had, or the pool is closed.
cdef bint grow(file_s *file, size_t more) noexcept nogil:
    cdef pool_s *pool = file.pool
    cdef size_t before = file.memory.capacity
    cdef bint there = False
    lock(&pool.lock)
    if not pool.closed and reserve(&file.memory, more, GATHERED):
        there = True
        pool.buffered += file.memory.capacity - before
        use(file, BUFFERED)
    unlock(&pool.lock)
    return there


# Bytes for the file, `hole` bytes behind what it has. Pieces smaller than what is gathered wait in memory. Moves on over what was taken.
cdef int put(file_s *file, int64_t *hole, const uint8_t **data, size_t *size, failure_s *failure) noexcept nogil:
    cdef int number = 0
    lock(&file.lock)
    if hole[0] != 0 or file.memory.used + size[0] > GATHERED:
        number = write_out(file, False, failure)
    if number == 0:
        file.offset += hole[0]
        hole[0] = 0
        if file.memory.used + size[0] <= GATHERED and (file.memory.used + size[0] <= file.memory.capacity or grow(file, size[0])):
            append(&file.memory, data[0], size[0])
        else:
            number = write_out(file, False, failure)
            if number == 0:
                number = open_file(file, 0, False, failure)
            if number == 0:
                number = write_at(file.fd, data, size, &file.offset)
                if number != 0 and number != EINTR:
                    note(failure, number, file.path)
            if number != EINTR and number != CLOSED:
                file.offset += size[0]
                number = 0
    unlock(&file.lock)
    return number


# Writes out the longest unused files where all together have too much memory. No file's lock is held.
cdef void shed(pool_s *pool, failure_s *failure) noexcept nogil:
    cdef file_s *file
    cdef int number
    while pool.buffered > BUFFERED_TOTAL:
        lock(&pool.lock)
        file = lock_oldest(pool, BUFFERED)
        unlock(&pool.lock)
        if file == NULL:
            return
        number = write_out(file, False, failure)
        lock(&pool.lock)
        if number == 0:
            leave(file, BUFFERED)
        let_go(file)
        unlock(&pool.lock)
        if number != 0:
            return                # a signal waits, or close() does it all


# Writes out and closes a file; cuts it or extends it to `size` unless that is negative.
cdef int finish_file(file_s *file, int64_t size, failure_s *failure) noexcept nogil:
    cdef pool_s *pool = file.pool
    cdef int number
    lock(&file.lock)
    number = write_out(file, False, failure)
    if number == 0 and size >= 0:
        number = open_file(file, 0, False, failure)
        if number == 0 and ftruncate(file.fd, size) < 0:
            number = errno
            if number != EINTR:
                note(failure, number, file.path)
    lock(&pool.lock)
    if number != EINTR:
        if file.links[OPEN].linked:
            size = leave(file, OPEN)
            if size:
                note(failure, <int>size, file.path)
        if file.links[BUFFERED].linked and file.memory.used == 0:
            leave(file, BUFFERED)
    let_go(file)
    unlock(&pool.lock)
    return number if number == EINTR or number == CLOSED else 0


cdef void close_pool(pool_s *pool, failure_s *failure) noexcept nogil:
    cdef file_s *file
    cdef int which
    cdef int number
    cdef int tries = 0
    lock(&pool.lock)
    pool.closed = True
    for which in range(LISTS):    # memory first: writing it out opens files
        while pool.lists[which].oldest != NULL:
            file = lock_oldest(pool, which)
            unlock(&pool.lock)
            if file == NULL:
                wait(tries)
                tries += 1
                lock(&pool.lock)
                continue
            if which == BUFFERED:
                while write_out(file, True, failure) == EINTR:
                    pass
            lock(&pool.lock)
            number = leave(file, which)
            if number:
                note(failure, number, file.path)
            let_go(file)
    unlock(&pool.lock)


# The file's owner goes. With the GIL.
cdef void release_file(file_s *file) noexcept:
    cdef pool_s *pool = file.pool
    cdef bint last
    lock_with_gil(&pool.lock)
    if file.links[OPEN].linked or file.links[BUFFERED].linked:
        file.orphan = True
    else:
        free_file(file)
    last = pool.abandoned and pool.files == 0
    unlock(&pool.lock)
    if last:
        free(pool)


# Handles the signals that interrupted something; where a handler raises, nobody needs what was noted any more.
cdef int handle_signals(failure_s *failure) except -1 nogil:
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException:
            free(failure.path)
            raise
    return 0


# put() to its end, and shed() where that is due.
cdef int put_whole(file_s *file, int64_t *hole, const uint8_t *data, size_t size, failure_s *failure) except -1 nogil:
    cdef int number = put(file, hole, &data, &size, failure)
    while number == EINTR:
        handle_signals(failure)
        number = put(file, hole, &data, &size, failure)
    if number == CLOSED:
        note(failure, CLOSED, NULL)
    if file.pool.buffered > BUFFERED_TOTAL:
        shed(file.pool, failure)
    return 0


# finish_file() to its end.
cdef int finish_whole(file_s *file, int64_t size) except -1 nogil:
    cdef failure_s failure
    cdef int number
    failure.number = 0
    failure.path = NULL
    number = finish_file(file, size, &failure)
    while number == EINTR:
        handle_signals(&failure)
        number = finish_file(file, size, &failure)
    if number == CLOSED:
        note(&failure, CLOSED, NULL)
    if failure.number:
        with gil:
            raise_noted(&failure)
    return 0


# A file of that pool with its descriptor open: a new one if flags say so.
cdef file_s *opened_file(pool_s *pool, object path, int flags) except NULL:
    cdef bytes encoded = os.fsencode(path)
    cdef const char *text = PyBytes_AS_STRING(encoded)
    cdef failure_s failure
    cdef file_s *file
    cdef int number
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    sys.audit("open", path, None, flags | O_WRONLY | O_CLOEXEC)
    failure.number = 0
    failure.path = NULL
    with nogil:
        file = new_file(pool, text)
    if file == NULL:
        raise MemoryError
    try:
        while True:
            with nogil:
                lock(&file.lock)
                number = open_file(file, flags, False, &failure)
                unlock(&file.lock)
            if number == CLOSED:
                note(&failure, CLOSED, NULL)
            if number != EINTR:
                break
            handle_signals(&failure)
        if failure.number:
            raise_noted(&failure)
    except BaseException:
        release_file(file)
        raise
    return file


cdef class NamedFile:
    """A file that a FilePool was asked for by name."""

    def __dealloc__(self):
        if self.file != NULL:
            release_file(self.file)


cdef class FilePool:
    """The open files of many FileStreams: the least recently written one is closed when too many are open, and opened again when
    its stream goes on.

    Args:
        max_open: files that may be open at once. Where the system allows fewer, fewer it is.

    Small writes are gathered, up to 64 KiB a file and 32 MiB in all. What the system refuses to write is lost, and raises OSError in the
    call that found out.

    Made to be closed, best by a `with` block: only then all is on disk. Safe to share between threads.
    """

    def __cinit__(self):
        self.named = {}
        self.pool = <pool_s *>calloc(1, sizeof(pool_s))
        if self.pool == NULL:
            raise MemoryError
        self.pool.max_open = DEFAULT_MAX_OPEN_FILES    # for a subclass that does not call __init__

    def __init__(self, max_open=DEFAULT_MAX_OPEN_FILES):
        check_number("max_open", max_open, "files")
        self.pool.max_open = min(max_open, ENDLESS)

    def __dealloc__(self):
        cdef failure_s failure
        cdef bint last
        if self.pool == NULL:
            return
        failure.number = 0
        failure.path = NULL
        with nogil:
            close_pool(self.pool, &failure)
            free(failure.path)
            lock(&self.pool.lock)
            self.pool.abandoned = True
            last = self.pool.files == 0
            unlock(&self.pool.lock)
        if last:
            free(self.pool)

    def __len__(self):
        return self.pool.open_count

    @property
    def max_open(self):
        """Files that may be open at once: as given, or fewer since the system refused more."""
        return self.pool.max_open

    def create(self, path, *, overwrite=False):
        """Makes an empty file and keeps it open. FileExistsError where there is one, unless overwrite is set."""
        cdef NamedFile named = NamedFile.__new__(NamedFile)
        self.finish(path)         # where it was created before
        named.file = opened_file(self.pool, path, O_CREAT | (O_TRUNC if overwrite else O_EXCL))
        self.named[path] = named

    def write(self, path, offset, data):
        """Writes at an offset of a file that `create` made. An offset beyond the end leaves a hole, which reads as zeros."""
        cdef NamedFile named = self.find(path)
        cdef bytes held = bytes(data)
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(held)
        cdef size_t size = len(held)
        cdef failure_s failure
        cdef int64_t to = offset
        cdef int64_t hole
        failure.number = 0
        failure.path = NULL
        with nogil:
            lock(&named.file.lock)
            hole = to - (named.file.offset + <int64_t>named.file.memory.used)
            unlock(&named.file.lock)
            put_whole(named.file, &hole, at, size, &failure)
        if failure.number:
            raise_noted(&failure)

    cdef NamedFile find(self, path):
        cdef NamedFile named = self.named.get(path)
        if named is None:
            named = NamedFile.__new__(NamedFile)
            named.file = opened_file(self.pool, path, 0)
            self.named[path] = named
        return named

    def finish(self, path, size=None):
        """Closes a file. It gets the given size, where one is given: a hole at its end needs no bytes."""
        cdef NamedFile named
        cdef int64_t at_end
        if size is None and path not in self.named:
            return
        named = self.find(path)
        del self.named[path]
        at_end = -1 if size is None else size
        with nogil:
            finish_whole(named.file, at_end)

    def close(self):
        """Closes all files. Later writes raise ValueError."""
        cdef failure_s failure
        failure.number = 0
        failure.path = NULL
        with nogil:
            close_pool(self.pool, &failure)
        self.named.clear()
        if failure.number:
            raise_noted(&failure)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


cdef class FileStream(_GapStream):
    """Writes a stream to a file as it comes. The file is made with the first byte: a stream without bytes leaves none.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        path: the file's path, or a callable that gives it when it is needed.
        pool: the FilePool that bounds the number of open files; many streams share one, and its owner closes it.
        overwrite: replace a file that exists. Else FileExistsError, through the assembler.
        fill_gaps: leave holes, which read as zeros, where bytes are missing, so that offsets are the stream's. Else what is there is
            joined.
    """

    def __cinit__(self, *args, **keywords):
        self.calls_out = True     # the path

    def __init__(self, net_flow=None, transport_flow=None, *, path, pool, overwrite=False, fill_gaps=False):
        ByteCountStream.__init__(self, net_flow, transport_flow)
        if not isinstance(pool, FilePool):
            raise TypeError(f"pool is a FilePool, not {type(pool).__name__}: {pool!r}")
        self.pool = pool
        self.overwrite = bool(overwrite)
        self.fill_gaps = bool(fill_gaps)
        self.make_path = path

    def __dealloc__(self):
        if self.file != NULL:
            release_file(self.file)

    @property
    def path(self):
        """Where the bytes are; None as long as there were none."""
        return self.made_path

    # With the GIL, and without any lock: the path is the user's code.
    cdef int create(self) except -1:
        cdef file_s *file
        path = os.fspath(self.make_path() if callable(self.make_path) else self.make_path)
        file = opened_file(self.pool.pool, path, O_CREAT | (O_TRUNC if self.overwrite else O_EXCL))
        if self.file != NULL:     # that code fed this stream
            release_file(self.file)
        self.file = file
        self.made_path = path
        return 0

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef const piece_s *piece
        cdef Py_ssize_t number
        cdef bint there = True
        cdef failure_s failure
        failure.number = 0
        failure.path = NULL
        lock(&self.lock)
        for number in range(count):
            there = count_gap(self, &pieces[number]) and there
        unlock(&self.lock)
        for number in range(count):
            piece = &pieces[number]
            if self.fill_gaps and piece.skip > 0:
                self.hole += piece.skip
            if piece.size == 0:
                continue
            if self.file == NULL:
                with gil:
                    try:
                        self.create()
                    except BaseException:
                        if self.fill_gaps:
                            self.leave_out(&pieces[number], count - number)
                        raise
            put_whole(self.file, &self.hole, piece.data, piece.size, &failure)
        if failure.number:
            with gil:
                raise_noted(&failure)
        if not there:
            with gil:
                raise MemoryError
        return 0

    # The place of pieces that cannot be written. The first one's gap is accounted for.
    cdef void leave_out(self, const piece_s *pieces, Py_ssize_t count) noexcept:
        cdef Py_ssize_t number
        for number in range(count):
            if number and pieces[number].skip > 0:
                self.hole += pieces[number].skip
            self.hole += pieces[number].size

    cdef int finish(self) except -1 nogil:
        cdef int64_t size = -1
        self.complete_ = True
        if self.file == NULL:
            return 0
        if self.fill_gaps:
            lock(&self.file.lock)
            size = self.file.offset + <int64_t>self.file.memory.used + self.hole
            unlock(&self.file.lock)
        return finish_whole(self.file, size)

    def reassembled(self, reassemblies):
        """Writes the next pieces. OSError where the system refuses."""
        cdef Pieces pieces = Pieces(reassemblies)
        with nogil:
            FileStream.take(self, pieces.array, pieces.count)

    def reassembly_complete(self):
        """Closes the file."""
        with nogil:
            FileStream.finish(self)


# ---- what the engine asks

cdef dict NATIVE = {
    cls: (cls.reassembled, cls.reassembly_complete)
    for cls in (ByteCountStream, BytesStream, DigestStream, FileStream, SpanStream)
}


cdef bint serves_natively(object method):
    if not isinstance(method, MethodType) or not isinstance(method.__self__, NativeStream):
        return False
    for cls in type(method.__self__).__mro__:
        native = NATIVE.get(cls)
        if native is not None:    # the class that the object's C half is of
            return method.__func__ is native[0] or method.__func__ is native[1]
    return False
