"""Ready-made streams, served without the GIL: they count, collect, digest, or note where in the capture the bytes lie.

Lives here: what the contract in the .pxd says, and the Python side of these classes. Not here: streams that write to files (files),
ReaderStream and streams in Python (tcpreasm/streams.py). `take` is called about once a packet, by the engine; `reassembled` by Python
code instead, with the same result. The docstrings of public classes begin with the signature, as CPython takes it: the one that Cython
would embed has the star in a wrong place, and names for values.
"""

from operator import index
from types import MethodType

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

from .reassembly cimport PIECE_ACKED, PIECE_END, PIECE_START, Reassembly, piece_s
from .sequence cimport difference

from ..flow import ConnectionKey
from ..options import check_bool, check_number
from ..provenance import not_there, rows_of
from ..spans import array_of, copy_to, read_rows
from ..stop import STOP

__all__ = ["ByteCountStream", "BytesStream", "DigestStream", "SpanStream"]

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef enum:
    PATIENCE = 64                 # tries before a waiting thread sleeps


# ---- locks, memory

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


# ---- pieces out of objects

@cython.final
@cython.no_gc
cdef class Pieces:
    """What `reassembled` was given, as the C side takes it, and pinned for the time of the call. Anything like a Reassembly will do."""

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
                out.packet, out.seq, out.peer_ack = piece.packet_, piece.seq_, piece.peer_ack_
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
                out.packet, out.seq = getattr(given, "packet_number", 0), getattr(given, "seq", 0)
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
    """ByteCountStream(net_flow=None, transport_flow=None, *, context=None)\n--\n\n\
Counts a stream's bytes and keeps none. A factory by itself: `StreamPool(ByteCountStream)`. The base of the streams below.

    Args:
        net_flow: the addresses; `key` needs both.
        transport_flow: the ports.
        context: whatever you like, for the attribute of that name.

    Attributes:
        context: as given; the stream does not look at it.
    """

    def __cinit__(self, *args, **keywords):
        self.ignores_bytes = True

    def __init__(self, net_flow=None, transport_flow=None, *, context=None):
        self.net_flow = net_flow
        self.transport_flow = transport_flow
        self.context = context

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
    def stopped(self):
        """It gets no more: `stop` was called."""
        return self.stops

    def stop(self):
        """Ends what comes here, from any thread. The next piece still does, since the assembler looks then; nothing behind it. A subclass
        with a `reassembled` of its own returns what its base's returns."""
        self.stops = True

    cdef object whether_to_stop(self):
        return STOP if self.stops else None

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
        """Counts the next pieces. STOP where that is enough, else None."""
        cdef Pieces pieces = Pieces(reassemblies)
        ByteCountStream.take(self, pieces.array, pieces.count)
        return self.whether_to_stop()

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

    def __cinit__(self, *args, **keywords):
        self.ignores_bytes = False

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
    """BytesStream(net_flow=None, transport_flow=None, *, max_bytes=None, on_limit='error', provenance=False, \
depth=None, context=None)\n--\n\n\
Collects a stream's bytes in memory; gaps are joined, and listed in `gaps`. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        max_bytes: the most that is kept. None: no limit.
        on_limit: what becomes of the rest: "drop" counts it in `dropped`, "error" raises BufferError, through the assembler, in the call
            that brought it (what fits is kept, and the stream goes on dropping).
        provenance: note what packet brought each byte that is kept, in 48 bytes a piece: `provenance`, `origin_of`.
        depth: bytes of the stream that it takes, the missing ones among them counted; then it stops. What the last piece has beyond
            is left out. None: all.
        context: as for ByteCountStream.
    """

    def __init__(
        self, net_flow=None, transport_flow=None, *, max_bytes=None, on_limit="error", provenance=False, depth=None, context=None
    ):
        ByteCountStream.__init__(self, net_flow, transport_flow, context=context)
        if depth is not None:
            check_number("depth", depth, "bytes")
        self.depth = depth
        self.most = INT64_MAX if depth is None else min(depth, INT64_MAX)
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, "bytes")
        if on_limit not in ("drop", "error"):
            raise ValueError(f"on_limit is 'drop' or 'error', not {on_limit!r}")
        self.max_bytes = max_bytes
        self.on_limit = on_limit
        self.limit = ENDLESS if max_bytes is None else min(max_bytes, ENDLESS)
        self.raises = on_limit == "error"
        check_bool("provenance", provenance)
        self.asks_origins = provenance

    def __dealloc__(self):
        free(self.kept.data)
        free(self.rows.data)

    @property
    def data(self):
        """The bytes so far: a copy."""
        return copy_of(&self.kept, &self.lock)

    @property
    def dropped(self):
        """Bytes beyond `max_bytes`. `length` counts them too."""
        return self.dropped_

    @property
    def provenance(self):
        """A numpy structured array, a copy, one row a piece of what is kept, in order: offset (of its first byte in the stream, missing
        bytes counted), length, seen_ns (capture time), packet_number, seq (sequence number of its first byte), and acked (the offset up
        to which the other side had acknowledged the stream before that packet; -1: it had not, or the pool does not pair). None where
        it was not asked for."""
        return rows_of(copy_of(&self.rows, &self.lock)) if self.asks_origins else None

    def origin_of(self, offset):
        """The row of `provenance` that brought the byte at that offset, which counts missing bytes. IndexError where it lies in a gap or
        beyond what is kept; ValueError where provenance was not asked for."""
        cdef provenance_s row
        cdef bint there
        if not self.asks_origins:
            raise ValueError("this stream was made without provenance=True")
        offset = index(offset)
        if not 0 <= offset < self.length_ + self.skipped_:
            raise not_there(offset)
        lock_with_gil(&self.lock)
        there = find_row(&self.rows, offset, &row)
        unlock(&self.lock)
        if not there:
            raise not_there(offset)
        return rows_of((<char *>&row)[:sizeof(row)])[0]

    cdef int take(self, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
        cdef const piece_s *piece
        cdef piece_s part
        cdef size_t size
        cdef Py_ssize_t number
        cdef int64_t left
        cdef bint over = False
        cdef bint there = True
        lock(&self.lock)
        for number in range(count):
            piece = &pieces[number]
            left = self.most - self.length_ - self.skipped_
            if max(<int64_t>0, piece.skip) + piece.size > left:
                if left <= 0:
                    break
                part = part_of(piece, left)
                piece = &part
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
                if self.asks_origins:
                    there = note_row(&self.rows, piece, self.length_ + self.skipped_ - piece.size, <int64_t>size) and there
            else:
                there = False
        if self.length_ + self.skipped_ >= self.most:
            self.stops = True
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
        shrink(&self.rows)
        unlock(&self.lock)
        return 0

    def reassembled(self, reassemblies):
        """Appends the next pieces. BufferError beyond `max_bytes`, if asked for. STOP where that is enough, else None."""
        cdef Pieces pieces = Pieces(reassemblies)
        BytesStream.take(self, pieces.array, pieces.count)
        return self.whether_to_stop()

    def reassembly_complete(self):
        """Marks the stream as complete."""
        BytesStream.finish(self)


# As much of a piece, with the gap before it, as takes so many bytes; the whole is more.
cdef piece_s part_of(const piece_s *piece, int64_t size) noexcept nogil:
    cdef piece_s part = piece[0]
    part.skip = min(piece.skip, size)
    part.size = <uint32_t>max(0, size - max(0, piece.skip))
    part.flags = piece.flags & ~PIECE_END
    return part


# Where the first `length` bytes of a piece came from, which stand at that offset of the stream; the lock is held. False: no memory.
cdef bint note_row(memory_s *rows, const piece_s *piece, int64_t offset, int64_t length) noexcept nogil:
    cdef provenance_s row
    memset(&row, 0, sizeof(row))
    row.offset = offset
    row.length = length
    row.seen_ns = piece.seen_ns
    row.packet_number = piece.packet
    row.seq = piece.seq
    row.acked = max(0, offset + difference(piece.seq, piece.peer_ack)) if piece.flags & PIECE_ACKED else -1
    if not reserve(rows, sizeof(row), ENDLESS):
        return False
    append(rows, &row, sizeof(row))
    return True


# The row that has the byte at that offset; the lock is held. False: none has.
cdef bint find_row(const memory_s *rows, int64_t offset, provenance_s *found) noexcept nogil:
    cdef const provenance_s *row = <const provenance_s *>rows.data
    cdef size_t size = rows.used // sizeof(provenance_s), half
    if size == 0:
        return False
    while size > 1:
        half = size // 2
        if row[half].offset <= offset:
            row += half
        size -= half
    found[0] = row[0]
    return row.offset <= offset < row.offset + row.length


cdef class DigestStream(ByteCountStream):
    """DigestStream(net_flow=None, transport_flow=None, *, algorithm='sha256', context=None)\n--\n\n\
Computes a digest of a stream's bytes and keeps none; gaps are left out, and counted. A factory by itself.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        algorithm: any name that `hashlib.new` takes. ValueError for others.
        context: as for ByteCountStream.
    """

    def __cinit__(self, *args, **keywords):
        self.ignores_bytes = False

    def __init__(self, net_flow=None, transport_flow=None, *, algorithm="sha256", context=None):
        ByteCountStream.__init__(self, net_flow, transport_flow, context=context)
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
        """Takes the next pieces into the digest. STOP where that is enough, else None."""
        cdef Pieces pieces = Pieces(reassemblies)
        DigestStream.take(self, pieces.array, pieces.count)
        return self.whether_to_stop()

    def reassembly_complete(self):
        """Marks the stream as complete."""
        DigestStream.finish(self)


cdef class SpanStream(ByteCountStream):
    """SpanStream(net_flow=None, transport_flow=None, *, context=None)\n--\n\n\
Notes where in the capture a stream's bytes lie, and keeps none of them: 32 bytes a piece. A factory by itself.

    The bytes are read when they are wanted, by `gather` or `write_to`, from the capture that was reassembled: a path, a seekable binary
    file (whose position moves), a buffer, or, where a list of captures was reassembled, a list of these in the same order. Compressed
    captures must be decompressed for that, since offsets count what comes out: `gather(gzip.open(path, "rb"))`, while the path by itself
    raises ValueError. After `Assembler.assemble_batch` it is the batch's buffer.
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
        """Notes the next pieces. STOP where that is enough, else None."""
        cdef Pieces pieces = Pieces(reassemblies)
        SpanStream.take(self, pieces.array, pieces.count)
        return self.whether_to_stop()

    def reassembly_complete(self):
        """Marks the stream as complete."""
        SpanStream.finish(self)


# ---- what the engine asks

cdef dict NATIVE = {
    cls: (cls.reassembled, cls.reassembly_complete)
    for cls in (ByteCountStream, BytesStream, DigestStream, SpanStream)
}


cdef int add_native(type cls) except -1:
    NATIVE[cls] = cls.reassembled, cls.reassembly_complete
    return 0


cdef bint serves_natively(object method):
    if not isinstance(method, MethodType) or not isinstance(method.__self__, NativeStream):
        return False
    for cls in type(method.__self__).__mro__:
        native = NATIVE.get(cls)
        if native is not None:    # the class that the object's C half is of
            return method.__func__ is native[0] or method.__func__ is native[1]
    return False
