# cython: language_level=3
"""Capture files to frames: the compiled twin of `_pure/records.py`. The contract is in records.pxd.

Lives here: pcap and pcapng, their old variants, the judgement where a file is damaged, and the blocks of bytes that frames lie in.
Not here: opening, reading and decompressing (capture.source), and telling which format it is (capture.files).
`parse_block` runs once for some dozens of frames, its loops once per record; all else once per block of 512 KiB, or once per interface.

Where the next record begins is known only when this one's length is there: a chain of memory accesses, each as slow as the memory. What
was read from a file just now lies in the cache. Of a capture that lies in memory, each piece is gone through beforehand by several walks
at once (`fetch_headers`), so that their waiting overlaps; not where the packets are so short that most of the bytes are needed, which who
decodes them asks for. It has no say in what is parsed.

Multi-byte fields are put together from bytes: right at any alignment and byte order, and one load to the compiler.
Source: draft-ietf-opsawg-pcap, and libpcap's sf-pcap.c for the variants; draft-ietf-opsawg-pcapng, section numbers of version 02.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove
from posix.stdlib cimport posix_memalign
from posix.unistd cimport pread

import os

from .origin cimport let_go_of_origin, origin_of_bytes, origin_of_file, origin_s

from ..frame import PCAP_MAGICS, Frame
from ..frame import HOLD_BYTES as _HOLD_BYTES
from ..frame import MAX_RECORD_BYTES as _MAX_RECORD_BYTES

__all__ = ["PcapRecords", "PcapngRecords"]


cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define tcpreasm_prefetch(address) __builtin_prefetch(address)
    #else
    #define tcpreasm_prefetch(address) ((void)(address))
    #endif

    /* A tuple keeps its hash from Python 3.14 on; tp_alloc leaves it 0, which would be taken for one. */
    #if PY_VERSION_HEX >= 0x030E0000
    #define tcpreasm_no_hash_yet(tuple) (((PyTupleObject *)(tuple))->ob_hash = -1)
    #else
    #define tcpreasm_no_hash_yet(tuple) ((void)0)
    #endif
    """
    void prefetch "tcpreasm_prefetch"(const void *address) noexcept nogil
    void no_hash_yet "tcpreasm_no_hash_yet"(object made)

cdef extern from "Python.h":
    ctypedef struct type_s "PyTypeObject":
        object (*tp_alloc)(type_s *kind, Py_ssize_t size)
    Py_ssize_t reference_count "Py_REFCNT"(PyObject *one)  # of a pointer: to pass an object would be a reference more


cdef enum:
    PAGE_BYTES = 4096
    USUAL_BYTES = SLACK_BYTES + BLOCK_BYTES  # a usual block's capacity
    USUAL_SNAPLEN = 262_144  # what tcpdump and Wireshark take as "everything"
    SNAPLEN_SLACK = 4  # writers exist that record more than the snaplen they state; a damaged length is mostly far beyond

cdef enum:
    FETCH_BYTES = 512 << 10  # gone through beforehand at once: what is fetched of them stays in the second-level cache
    FETCH_LEAD = 128 << 10  # the parse is still so far from them at least: more than one call of parse goes
    WALKS = 16
    SEARCH_BYTES = 2048  # how far from its place a walk looks for a record to begin with: more than an Ethernet frame
    SEARCH_FETCH = 1024  # what of that is asked for beforehand
    HEADERS_BYTES = 54  # Ethernet, IPv4 and TCP

cdef enum:
    NS = 1_000_000_000

cdef enum:  # damage to the file; each has its text in damage_text
    HEADER_CUT = 1
    TOO_LONG = 2
    ZEROS = 3
    NO_ORDER = 4
    NO_SIZE = 5
    OTHER_TAIL = 6
    TOO_SHORT = 7
    NO_VERSION = 8
    NO_MEMORY = 9  # none of the file's: refill raises MemoryError

cdef enum:  # LENGTHS_
    STRAIGHT = 0  # captured, wire
    SWAPPED = 1
    EITHER = 2  # it depends on the writer

cdef enum:  # NOTE_
    NO_INTERFACE = 0
    NO_ROOM = 1

cdef enum:  # block types
    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    PACKET = 2
    SIMPLE = 3
    ENHANCED = 6

cdef enum:  # options
    OPTION_END = 0
    OPTION_TSRESOL = 9
    OPTION_TSOFFSET = 14

cdef uint64_t MAX_RECORD_BYTES = _MAX_RECORD_BYTES
cdef uint64_t HOLD_BYTES = _HOLD_BYTES
cdef int64_t NS_LIMIT = (<int64_t>1 << 62) - 1  # the farthest time that the package knows; what lies beyond is damaged anyway
cdef uint64_t SECONDS_LIMIT = 4_611_686_019  # whole seconds that are beyond NS_LIMIT
cdef int64_t USUAL_OFFSET = 2_000_000_000  # seconds; times that far off are still far from the limit

cdef tuple _NOTES = (
    "a packet was left out: it names an interface that the file does not describe",
    "a packet was left out: it claims more bytes than its block has",
)


cdef inline uint32_t read32(const uint8_t *p, bint big) noexcept nogil:
    if big:
        return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]
    return (<uint32_t>p[3] << 24) | (<uint32_t>p[2] << 16) | (<uint32_t>p[1] << 8) | p[0]


cdef inline uint32_t read16(const uint8_t *p, bint big) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1] if big else (<uint32_t>p[1] << 8) | p[0]


cdef inline uint64_t read64(const uint8_t *p, bint big) noexcept nogil:
    if big:
        return (<uint64_t>read32(p, True) << 32) | read32(p + 4, True)
    return (<uint64_t>read32(p + 4, False) << 32) | read32(p, False)


# ---- blocks

cdef class Block:
    """Bytes at hand, and what keeps them alive."""

    def __init__(self):
        raise TypeError("a Block comes from a reader")

    def __dealloc__(self):
        free(self.memory)

    def __bytes__(self):
        """All of it, parsed or not; for tests."""
        return PyBytes_FromStringAndSize(<const char *>self.data, self.end)

    cdef int grow(self, size_t capacity) noexcept nogil:
        # At a page's beginning: where the distance between a file's bytes and their copy is a few bytes more than whole pages, a
        # processor mistakes what was just stored for what is to be loaded next, and the kernel copies at a third of its speed.
        cdef void *memory = NULL
        if posix_memalign(&memory, PAGE_BYTES, capacity) != 0:
            return -1
        if self.memory != NULL:
            memcpy(memory, self.memory, min(self.end, capacity))
            free(self.memory)
        self.memory = <uint8_t *>memory
        self.data = self.memory
        self.capacity = capacity
        return 0

    cdef int put_before(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef size_t begin
        if size > self.begin:
            begin = self.begin
            if self.grow(self.capacity + size - begin) < 0:
                return -1
            memmove(self.memory + size, self.memory + begin, self.end - begin)
            self.begin = size
            self.end += size - begin
            self.offset -= <int64_t>(size - begin)
        self.begin -= size
        memcpy(self.memory + self.begin, data, size)
        return 0


cdef Block new_block(size_t capacity=USUAL_BYTES):
    cdef Block block = Block.__new__(Block)
    if block.grow(capacity) < 0:
        raise MemoryError
    block.begin = block.end = SLACK_BYTES if SLACK_BYTES < capacity else capacity
    return block


cdef Block block_of(object owner, size_t length):
    # The first `length` bytes of it, where they are: a bytes object, or a memoryview, which keeps them there.
    cdef Block block = Block.__new__(Block)
    cdef Py_buffer view
    PyObject_GetBuffer(owner, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    block.owner = owner
    block.data = <const uint8_t *>view.buf
    block.end = length
    return block


# ---- frames as Python sees them

cdef type_s *_frame_type = <type_s *>Frame


cdef object frame_of(const frame_s *frame):
    # As tuple.__new__(Frame, ...), without the tuple in between.
    data = PyBytes_FromStringAndSize(<const char *>frame.data, frame.length)
    seen_ns = <object>frame.seen_ns
    wire_length = <object>frame.wire_length
    linktype = <object>frame.linktype
    interface = <object>frame.interface
    made = _frame_type.tp_alloc(_frame_type, 5)
    no_hash_yet(made)
    Py_INCREF(data)
    PyTuple_SET_ITEM(made, 0, data)
    Py_INCREF(seen_ns)
    PyTuple_SET_ITEM(made, 1, seen_ns)
    Py_INCREF(wire_length)
    PyTuple_SET_ITEM(made, 2, wire_length)
    Py_INCREF(linktype)
    PyTuple_SET_ITEM(made, 3, linktype)
    Py_INCREF(interface)
    PyTuple_SET_ITEM(made, 4, interface)
    return made


# ---- what both formats have in common

cdef class RecordReader:
    """The frames of a capture file, an iterator.

    Args:
        source: where the rest comes from.
        head: what was read of it to tell the format.

    Iterating never raises for what a file contains: it ends at the damage, and `problem` tells. Errors of the reading itself
    pass through, and end it too.
    """

    def __cinit__(self, source, bytes head not None):
        self.source = source
        self.offset = -1
        self.fd = -1
        self.piece = b""
        self.limit = MAX_RECORD_BYTES
        self.need = 1
        if source.data is not None and source.position == len(head):
            self.in_place = True
            self.fetch_limit = len(source.data)
            self.block = block_of(source.data, len(head))
        else:
            self.block = block_of(head, len(head))
        if source.is_plain:
            self.can_read_at = True
            self.fd = source.fileno()

    def __dealloc__(self):
        self.let_go()

    def close(self):
        """Nobody will ask for more. What waits in the capture has a hold of its own on it."""
        self.let_go()
        if self.in_place and not self.held:
            self.block = block_of(b"", 0)

    def __iter__(self):
        return self

    def __next__(self):
        cdef frame_s frame
        if self.held:
            self.hold()
        while self.parse(&frame, 1) == 0:
            if not self.refill():
                raise StopIteration
        self.offset = frame.offset
        return frame_of(&frame)

    @property
    def problem(self):
        """What was wrong, and where: None as long as nothing was. Offsets count in the decompressed bytes."""
        parts = []
        for which in (self.first_note, 1 - self.first_note):
            count = self.notes[which]
            if count:
                parts.append(_NOTES[which] if count == 1 else f"{_NOTES[which]} ({count} times)")
        if self.fatal is not None:
            parts.append(self.fatal)
        return "; ".join(parts) or None

    @property
    def _block(self):
        """The block at hand; for tests."""
        return self.block

    cdef int hold(self) except -1:
        if self.held:
            raise ValueError("generator already executing")
        self.held = True
        return 0

    cdef void release(self) noexcept:
        self.held = False
        if self.ended:            # whoever looks at it after the end does not keep its file open
            self.let_go()

    cdef void let_go(self) noexcept:
        if self.origin != NULL:
            let_go_of_origin(self.origin)
            self.origin = NULL

    cdef int parse(self, frame_s *frames, int room) noexcept nogil:
        cdef int count = self.again_count - self.again_at
        if count == 0:
            if self.in_place and self.block.begin + FETCH_LEAD > self.fetched:
                fetch_ahead(self)
            return self.parse_block(self.block, frames, room)
        count = min(count, room)
        memcpy(frames, &self.again[self.again_at], count * sizeof(frame_s))
        self.again_at += count
        self.packets += count
        return count

    cdef void unread(self, const frame_s *frames, int count) noexcept nogil:
        # What was given out again, and comes back once more, lies right before what is left of it.
        if self.again_at < self.again_count:
            self.again_at -= count
        else:
            memcpy(self.again, frames, count * sizeof(frame_s))
            self.again_at, self.again_count = 0, count
        self.packets -= count

    cdef int parse_block(self, Block block, frame_s *frames, int room) noexcept nogil:
        return 0

    cdef bint refill(self) except -1:
        self.hold()
        try:
            if self.over:
                return False
            self.over = True  # also where it raises, as that ends a generator
            self.over = not self.read_more()
            return not self.over
        finally:
            self.held = False

    cdef bint read_more(self) except -1:
        # `need` bytes, or the end.
        cdef Block block
        cdef Py_ssize_t got
        if self.damage:
            self.finish(self.block)
            return False
        if not self.in_place:
            self.make_room()
        block = self.block
        while block.end - block.begin < self.need:
            if self.in_place:
                got = self.source.advance()
            else:
                if block.end == block.capacity:
                    # Twice as much, so that a damaged length takes no more memory than the file has bytes.
                    if block.grow(min(2 * block.capacity, block.begin + self.need)) < 0:
                        raise MemoryError
                got = self.fill(block.memory + block.end, block.capacity - block.end)
            if got == 0:
                self.finish(block)
                return False
            block.end += <size_t>got
        return True

    cdef const uint8_t *find_record(self, const uint8_t *p) noexcept nogil:
        return NULL  # both formats have one of their own

    cdef int make_room(self) except -1:
        # What is left goes to the end of the slack, in a block that nobody else looks at.
        cdef Block fresh
        cdef size_t left = self.block.end - self.block.begin
        cdef size_t begin = SLACK_BYTES - left if left < SLACK_BYTES else 0
        if self.block.capacity != USUAL_BYTES or left >= USUAL_BYTES or reference_count(<PyObject *>self.block) > 1:
            fresh = new_block(USUAL_BYTES if left < USUAL_BYTES else left + BLOCK_BYTES)
        else:
            fresh = self.block
        memmove(fresh.memory + begin, self.block.data + self.block.begin, left)
        fresh.offset = self.block.offset + <int64_t>self.block.begin - <int64_t>begin
        fresh.begin = begin
        fresh.end = begin + left
        self.block = fresh
        return 0

    cdef Py_ssize_t fill(self, uint8_t *memory, size_t size) except -1:
        # The next bytes of the source, some at least; 0 at its end.
        cdef Py_ssize_t count
        if self.can_read_at:
            return self.source.readinto(PyMemoryView_FromMemory(<char *>memory, <Py_ssize_t>size, PyBUF_WRITE))
        if self.piece_at == len(self.piece):
            self.piece_at = 0
            self.piece = self.source.read()
        count = min(<Py_ssize_t>size, len(self.piece) - self.piece_at)
        memcpy(memory, PyBytes_AS_STRING(self.piece) + self.piece_at, count)
        self.piece_at += count
        return count

    cdef Py_ssize_t read_at(self, uint8_t *memory, size_t size, int64_t offset) noexcept nogil:
        cdef size_t have = 0
        cdef Py_ssize_t got
        while have < size:
            got = pread(self.fd, memory + have, size - have, offset + <int64_t>have)
            if got == 0:
                break
            if got > 0:
                have += <size_t>got
            elif errno != EINTR:
                self.read_errno = errno
                return -1
        return <Py_ssize_t>have

    cdef origin_s *origin_for(self, int64_t base):
        if self.origin_base != base:
            self.let_go()
        if self.origin == NULL:
            self.origin_base = base
            if self.in_place:
                self.origin = origin_of_bytes(self.block.owner, self.block.data, base + self.block.offset)
            elif self.can_read_at:
                self.origin = origin_of_file(self.fd, base)
        return self.origin

    cdef int raise_read_error(self) except -1:
        raise OSError(self.read_errno, os.strerror(self.read_errno))

    cdef int harm(self, Block block, size_t at, int damage, uint64_t value) noexcept nogil:
        self.damage = damage
        self.damage_offset = block.offset + <int64_t>at
        self.damage_value = value
        return 0

    cdef int finish(self, Block block) except -1:
        cdef size_t have = block.end - block.begin
        cdef int64_t offset = block.offset + <int64_t>block.begin
        if self.damage == NO_MEMORY:
            raise MemoryError
        elif self.damage == HEADER_CUT:
            self.stop(f"the file ends in the middle of its header: {self.damage_value} of 24 bytes are there")
        elif self.damage:
            self.stop(f"the file is damaged: the {self.thing} at byte {self.damage_offset} {self.damage_text()}")
        elif self.skipped:
            self.stop(f"the file ends in the middle of a block at byte {self.skipped_offset}, which has {self.skipped} bytes")
        elif have:
            self.stop(f"the file ends in the middle of a {self.thing} at byte {offset}: {have} of {self.need} bytes are there")
        else:
            self.stop(None)
        return 0

    cdef str damage_text(self):
        if self.damage == TOO_LONG:
            return f"claims {self.damage_value} bytes, more than the {self.limit} that are possible"
        if self.damage == ZEROS:
            return "is all zeros, as where a file was never written to its end"
        if self.damage == NO_ORDER:
            return "names no byte order"
        if self.damage == NO_SIZE:
            return f"claims {self.damage_value} bytes, which no block can have"
        if self.damage == OTHER_TAIL:
            return f"has {self.damage_value} bytes by its head, not by its tail"
        if self.damage == TOO_SHORT:
            return f"has {self.damage_value} bytes, fewer than it needs"
        return f"begins a section of version {self.damage_value}, which is none"

    cdef int stop(self, str text) except -1:
        # The end. Damage to the compressed data around it is the cause, and goes first.
        self.ended = True
        self.fatal = "; ".join([part for part in (self.source.problem, text) if part]) or None
        return 0


# ---- fetching ahead, of a capture in memory

cdef void fetch_ahead(RecordReader self) noexcept nogil:
    # The next FETCH_BYTES: once, behind what was fetched before. How dense the packets lie is taken from what was parsed meanwhile.
    cdef size_t at = self.block.begin
    cdef bint dense = (self.packets - self.packets_before) * DENSE_BYTES > <int64_t>(at - self.begin_before)
    self.packets_before, self.begin_before = self.packets, at
    at = max(at, self.fetched)
    self.fetched = at + FETCH_BYTES
    if not dense and at + FETCH_LEAD <= self.fetch_limit:  # a smaller rest is not worth it
        fetch_headers(self, self.block.data + at, min(<size_t>FETCH_BYTES, self.fetch_limit - at - SEARCH_BYTES))


cdef void fetch_headers(RecordReader self, const uint8_t *begin, size_t size) noexcept nogil:
    # The headers of the records in those bytes, and of the frames in them, come into the cache. SEARCH_BYTES more can be read.
    # What was taken for a record and is none does no harm: a walk ends where the next one began, or before.
    cdef const uint8_t *walks[WALKS]
    cdef const uint8_t *stops[WALKS]
    cdef const uint8_t *end = begin + size
    cdef const uint8_t *p
    cdef size_t part = size // WALKS & ~<size_t>3  # blocks of pcapng are aligned
    cdef size_t at, step
    cdef size_t size_at = self.size_at, header_bytes = self.header_bytes, size_more = self.size_more
    cdef int count = 0
    cdef int i
    cdef bint big = self.big
    for i in range(1, WALKS):
        for at in range(0, SEARCH_FETCH, 64):
            prefetch(begin + i * part + at)
    for i in range(WALKS):
        p = self.find_record(begin + i * part)
        if p != NULL:
            walks[count] = p
            stops[count] = end
            if count:
                stops[count - 1] = p
            count += 1
    while count:
        i = 0
        while i < count:
            p = walks[i]
            prefetch(p)
            prefetch(p + header_bytes + HEADERS_BYTES - 1)
            step = size_more + read32(p + size_at, big)
            if step < 12 or step >= <size_t>(stops[i] - p):
                count -= 1
                walks[i], stops[i] = walks[count], stops[count]
            else:
                walks[i] = p + step
                i += 1


# ---- pcap

cdef class PcapRecords(RecordReader):
    """The frames of a pcap file: one header, then one record per packet.

    Args:
        source: where the rest comes from.
        head: what was read of it: at least the 24 bytes of the file's header, or all there is.
    """

    def __cinit__(self, source, bytes head not None):
        cdef const uint8_t *p = self.block.data
        cdef uint32_t major, minor, snaplen
        order, self.unit, self.header_bytes = PCAP_MAGICS[head[:4]]
        self.thing = "record"
        self.big = order == ">"
        if len(head) < 24:
            self.harm(self.block, 0, HEADER_CUT, len(head))
            return
        self.block.begin = 24
        major, minor = read16(p + 4, self.big), read16(p + 6, self.big)
        snaplen = read32(p + 16, self.big)
        # libpcap's habit: the upper bits tell of frame check sequences, the lower 26 are the link type.
        self.linktype = <int32_t>(read32(p + 20, self.big) & 0x03FF_FFFF)
        self.limit = <uint64_t>max(snaplen, <uint32_t>USUAL_SNAPLEN) * SNAPLEN_SLACK
        if self.limit > MAX_RECORD_BYTES:
            self.limit = MAX_RECORD_BYTES
        # Before version 2.3 the two lengths stood the other way round; in 2.3 and 543.0 it depends on the writer.
        if major == 2 and minor < 3:
            self.lengths = SWAPPED
        elif (major == 2 and minor == 3) or major == 543:
            self.lengths = EITHER
        self.size_at, self.size_more = 8, self.header_bytes

    cdef const uint8_t *find_record(self, const uint8_t *p) noexcept nogil:
        # A time that differs from the next record's in its lower 16 bits only (18 hours), and a length below 64 KiB that is not 0.
        cdef const uint8_t *like = self.block.data + self.block.begin
        cdef size_t high = 0 if self.big else 2
        cdef size_t low = 2 - high
        cdef const uint8_t *stop = p + SEARCH_BYTES
        cdef size_t i
        cdef uint16_t hours
        memcpy(&hours, like + high, 2)
        while p < stop:
            if may_begin(p, high, low, hours) | may_begin(p + 1, high, low, hours):
                for i in range(64):
                    if (
                        read32(p + i, self.big) >> 16 == read32(like, self.big) >> 16
                        and 0 < read32(p + i + 8, self.big) <= read32(p + i + 12, self.big) <= self.limit
                    ):
                        return p + i
            p += 64
        return NULL

    cdef int parse_block(self, Block block, frame_s *frames, int room) noexcept nogil:
        # The usual formats each get a loop of their own, with what differs between them settled when it is compiled.
        if self.damage:
            return 0
        if self.lengths != STRAIGHT or self.header_bytes != 16:
            return walk_pcap(self, block, frames, room, self.big, self.lengths, self.header_bytes)
        if self.big:
            return walk_pcap(self, block, frames, room, True, STRAIGHT, 16)
        return walk_pcap(self, block, frames, room, False, STRAIGHT, 16)


cdef inline uint16_t may_begin(const uint8_t *p, size_t high, size_t low, uint16_t hours) noexcept nogil:
    # Whether a record may begin at one of p, p + 2, ... p + 62: without branches, so that the compiler makes vectors of it.
    # `high` and `low` are where the upper and the lower half of a 32-bit field stand in it.
    cdef uint16_t some = 0
    cdef uint16_t time, length, length_high
    cdef size_t i
    for i in range(0, 64, 2):
        memcpy(&time, p + i + high, 2)
        memcpy(&length, p + i + 8 + low, 2)
        memcpy(&length_high, p + i + 8 + high, 2)
        some |= <uint16_t>(time == hours) & <uint16_t>(length_high == 0) & <uint16_t>(length != 0)
    return some


cdef inline int walk_pcap(
    PcapRecords self, Block block, frame_s *frames, int room, bint big, int lengths, uint32_t header_bytes
) noexcept nogil:
    cdef const uint8_t *data = block.data
    cdef const uint8_t *p
    cdef size_t at = block.begin
    cdef size_t end = block.end
    cdef size_t step
    cdef uint32_t seconds, fraction, length, wire_length
    cdef uint64_t limit = self.limit
    cdef uint64_t unit = self.unit
    cdef int32_t linktype = self.linktype
    cdef int64_t offset = block.offset + header_bytes
    cdef frame_s *frame = frames
    cdef frame_s *last = frames + room
    while frame != last:
        if end - at < header_bytes:
            self.need = header_bytes
            break
        p = data + at
        seconds = read32(p, big)
        fraction = read32(p + 4, big)
        length = read32(p + 8, big)
        wire_length = read32(p + 12, big)
        if lengths == SWAPPED or (lengths == EITHER and length > wire_length):
            length, wire_length = wire_length, length
        if length > limit:
            self.harm(block, at, TOO_LONG, length)
            break
        step = <size_t>header_bytes + length
        if end - at < step:
            self.need = step
            break
        if (seconds | fraction | length | wire_length) == 0:
            self.harm(block, at, ZEROS, 0)
            break
        frame.data = p + header_bytes
        frame.seen_ns = <int64_t>(<uint64_t>seconds * NS + fraction * unit)
        frame.offset = offset + <int64_t>at
        frame.length = length
        frame.wire_length = wire_length if wire_length > length else length
        frame.linktype = linktype
        frame.interface = 0
        frame += 1
        at += step
    block.begin = at
    self.packets += frame - frames
    return <int>(frame - frames)


# ---- pcapng

cdef class PcapngRecords(RecordReader):
    """The frames of a pcapng file: blocks, in sections, from several interfaces.

    Args:
        source: where the rest comes from.
        head: what was read of it: at least the first 12 bytes, or all there is.
    """

    def __cinit__(self, source, bytes head not None):
        self.thing = "block"
        self.size_at, self.header_bytes = 4, 28

    cdef const uint8_t *find_record(self, const uint8_t *p) noexcept nogil:
        # An Enhanced Packet Block of less than 64 KiB, whose size stands at its end too.
        cdef uint32_t size
        cdef const uint8_t *stop = p + SEARCH_BYTES
        cdef const uint8_t *end = self.block.data + self.fetch_limit
        while p < stop:
            if read32(p, self.big) == ENHANCED:
                size = read32(p + 4, self.big)
                if 32 <= size < 65536 and size <= <size_t>(end - p) and read32(p + size - 4, self.big) == size:
                    return p
            p += 4
        return NULL

    def __dealloc__(self):
        PyMem_RawFree(self.interfaces)

    cdef int parse_block(self, Block block, frame_s *frames, int room) noexcept nogil:
        cdef size_t step
        cdef int count = 0
        cdef bint big
        if self.damage:
            return 0
        if self.skipped:
            step = min(self.skip, <uint64_t>(block.end - block.begin))
            block.begin += step
            self.skip -= step
            if self.skip or block.end - block.begin < 4:
                self.need = 1 if self.skip else 4
                return 0
            if read32(block.data + block.begin, self.big) != self.skipped:
                self.harm(block, block.begin, OTHER_TAIL, self.skipped)
                self.damage_offset = self.skipped_offset
                return 0
            self.skipped = 0
            block.begin += 4
        while True:  # again where a section changes the byte order
            big = self.big
            if big:
                count += walk_pcapng(self, block, frames + count, room - count, True)
            else:
                count += walk_pcapng(self, block, frames + count, room - count, False)
            if self.big == big or self.damage:
                break
        self.packets += count
        return count

    cdef int add_interface(self, const uint8_t *body, size_t size, bint big) noexcept nogil:
        cdef interface_s *interface
        cdef size_t at = 8
        cdef size_t room, length
        cdef uint32_t code
        if self.interface_count == self.interface_room:
            room = 2 * self.interface_room + 8
            interface = <interface_s *>PyMem_RawRealloc(self.interfaces, room * sizeof(interface_s))
            if interface == NULL:
                return -1
            self.interfaces = interface
            self.interface_room = room
        interface = &self.interfaces[self.interface_count]
        interface.number = self.interfaces_before + <uint32_t>self.interface_count
        interface.linktype = <int32_t>read16(body, big)
        interface.snaplen = read32(body + 4, big)
        interface.resolution = 6
        interface.offset_seconds = 0
        while at + 4 <= size:  # the options (3.5), as far as they are well-formed
            code = read16(body + at, big)
            length = read16(body + at + 2, big)
            at += 4
            if code == OPTION_END or length > size - at:
                break
            if code == OPTION_TSRESOL and length == 1:
                interface.resolution = body[at]
            elif code == OPTION_TSOFFSET and length == 8:
                interface.offset_seconds = <int64_t>read64(body + at, big)
            at += (length + 3) & ~<size_t>3
        prepare_times(interface)
        self.interface_count += 1
        return 0


cdef inline bint is_read(uint32_t kind) noexcept nogil:
    return kind == ENHANCED or kind == SIMPLE or kind == PACKET or kind == INTERFACE or kind == SECTION


cdef inline void note(PcapngRecords self, int which) noexcept nogil:
    if self.notes[0] + self.notes[1] == 0:
        self.first_note = which
    self.notes[which] += 1


cdef inline int walk_pcapng(PcapngRecords self, Block block, frame_s *frames, int room, bint big) noexcept nogil:
    cdef const uint8_t *data = block.data
    cdef const uint8_t *p
    cdef size_t at = block.begin
    cdef size_t end = block.end
    cdef uint32_t kind, size, number, length, wire_length
    cdef uint32_t version
    cdef uint64_t ticks
    cdef int64_t offset = block.offset
    cdef interface_s *interface
    cdef frame_s *frame = frames
    cdef frame_s *last = frames + room
    cdef bint section_big = big
    while frame != last and section_big == big:
        if end - at < 12:
            self.need = 12
            break
        p = data + at
        kind = read32(p, big)
        size = read32(p + 4, big)
        if kind == SECTION:
            if read32(p + 8, False) == 0x1A2B3C4D:
                section_big = False
            elif read32(p + 8, True) == 0x1A2B3C4D:
                section_big = True
            else:
                self.harm(block, at, NO_ORDER, 0)
                break
            size = read32(p + 4, section_big)
        if size < 12 or size & 3:
            self.harm(block, at, NO_SIZE, size)
            break
        if size > end - at:
            self.need = size
            if is_read(kind):
                if size > MAX_RECORD_BYTES:
                    self.harm(block, at, TOO_LONG, size)
            elif size > HOLD_BYTES:
                # Unknown and big: passed over, and only its last four bytes looked at.
                self.need = 1
                self.skip = size - 4
                self.skipped = size
                self.skipped_offset = offset + <int64_t>at
            break
        if read32(p + size - 4, section_big) != size:
            self.harm(block, at, OTHER_TAIL, size)
            break
        if kind == ENHANCED or kind == PACKET:
            if size < 32:
                self.harm(block, at, TOO_SHORT, size)
                break
            number = read32(p + 8, big) if kind == ENHANCED else read16(p + 8, big)
            length = read32(p + 20, big)
            wire_length = read32(p + 24, big)
            if number >= self.interface_count:
                note(self, NO_INTERFACE)
            elif length > size - 32:
                note(self, NO_ROOM)
            else:
                interface = &self.interfaces[number]
                ticks = (<uint64_t>read32(p + 12, big) << 32) | read32(p + 16, big)
                if ticks < interface.fast_ticks:
                    self.last_ns = <int64_t>(ticks * interface.multiplier) + interface.base_ns
                else:
                    self.last_ns = time_of(interface, ticks)
                frame.data = p + 28
                frame.seen_ns = self.last_ns
                frame.offset = offset + <int64_t>at + 28
                frame.length = length
                frame.wire_length = wire_length if wire_length > length else length
                frame.linktype = interface.linktype
                frame.interface = interface.number
                frame += 1
        elif kind == SIMPLE:
            if size < 16:
                self.harm(block, at, TOO_SHORT, size)
                break
            if self.interface_count == 0:
                note(self, NO_INTERFACE)
            else:
                interface = self.interfaces
                wire_length = read32(p + 8, big)
                length = min(wire_length, size - 16)
                if interface.snaplen and length > interface.snaplen:
                    length = interface.snaplen
                frame.data = p + 12
                frame.seen_ns = self.last_ns
                frame.offset = offset + <int64_t>at + 12
                frame.length = length
                frame.wire_length = wire_length
                frame.linktype = interface.linktype
                frame.interface = interface.number
                frame += 1
        elif kind == INTERFACE:
            if size < 20:
                self.harm(block, at, TOO_SHORT, size)
                break
            if self.add_interface(p + 8, size - 12, big) < 0:
                self.harm(block, at, NO_MEMORY, 0)
                break
        elif kind == SECTION:
            self.big = section_big
            self.interfaces_before += <uint32_t>self.interface_count
            self.interface_count = 0
            version = read16(p + 12, section_big) if size >= 28 else 0
            if version != 1:
                self.harm(block, at, NO_VERSION, version)
                break
        at += size
    block.begin = at
    return <int>(frame - frames)


# ---- times of pcapng

cdef uint64_t ten_to(uint32_t exponent) noexcept nogil:
    # Up to 10**19, the last one that 64 bits hold.
    cdef uint64_t power = 1
    while exponent:
        power *= 10
        exponent -= 1
    return power


cdef void prepare_times(interface_s *interface) noexcept nogil:
    # Whether the usual short way to a time is exact for this interface, and for how many ticks.
    cdef uint32_t exponent = interface.resolution & 0x7F
    interface.fast_ticks = 0
    interface.multiplier = 0
    interface.base_ns = 0
    if exponent <= 9 and -USUAL_OFFSET <= interface.offset_seconds <= USUAL_OFFSET:
        interface.multiplier = NS >> exponent if interface.resolution & 0x80 else ten_to(9 - exponent)
        interface.base_ns = interface.offset_seconds * <int64_t>NS
        interface.fast_ticks = <uint64_t>(NS_LIMIT - max(interface.base_ns, 0)) // interface.multiplier


cdef int64_t time_of(const interface_s *interface, uint64_t ticks) noexcept nogil:
    # ticks * 10**9 // units + offset, exactly, held within NS_LIMIT: whole seconds and the rest by themselves, so that 64 bits do.
    cdef uint32_t exponent = interface.resolution & 0x7F
    cdef uint64_t seconds = 0
    cdef uint64_t rest = ticks
    cdef uint64_t units, back
    cdef int64_t time
    if interface.resolution & 0x80:
        if exponent < 64:
            seconds = ticks >> exponent
            rest = ticks & ((<uint64_t>1 << exponent) - 1)
        if exponent <= 34:
            rest = rest * NS >> exponent
        elif exponent < 96:
            rest = ((rest >> 32) * NS + (<uint64_t><uint32_t>rest * NS >> 32)) >> (exponent - 32)
        else:  # a whole second is more ticks than 64 bits can count, a nanosecond too
            rest = 0
    else:
        if exponent <= 19:
            units = ten_to(exponent)
            seconds = ticks // units
            rest = ticks % units
        if exponent <= 9:
            rest *= ten_to(9 - exponent)
        elif exponent <= 28:
            rest //= ten_to(exponent - 9)
        else:
            rest = 0
    if interface.offset_seconds >= 0:
        back = <uint64_t>interface.offset_seconds
        if back > SECONDS_LIMIT or seconds > SECONDS_LIMIT or seconds + back > SECONDS_LIMIT:
            return NS_LIMIT
        time = <int64_t>((seconds + back) * NS + rest)
    else:
        back = 0 - <uint64_t>interface.offset_seconds
        if seconds >= back:
            if seconds - back > SECONDS_LIMIT:
                return NS_LIMIT
            time = <int64_t>((seconds - back) * NS + rest)
        else:
            if back - seconds > SECONDS_LIMIT:
                return -NS_LIMIT
            time = <int64_t>rest - <int64_t>((back - seconds) * NS)
    if time > NS_LIMIT:
        return NS_LIMIT
    return time if time > -NS_LIMIT else -NS_LIMIT
