"""`Reassembly`: one piece of a stream, as the assembler hands it to `reassembled`. Made once for each delivered piece."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t

from .pages cimport PageCache, return_page

__all__ = ["Reassembly"]

cdef extern from *:
    """
    #include <structmember.h>

    #define tcpreasm_skip_offset(piece) ((char *)&(piece)->skip_ - (char *)(piece))
    """
    ctypedef struct PyMemberDef:
        const char *name
        int type
        Py_ssize_t offset
        int flags
        const char *doc
    ctypedef struct PyTypeObject:
        PyObject *tp_dict
    int T_OBJECT_EX, READONLY
    Py_ssize_t skip_offset "tcpreasm_skip_offset"(Reassembly piece)
    object PyDescr_NewMember(type cls, PyMemberDef *member)
    int PyDict_SetItemString(object names, const char *name, object value) except -1
    void PyType_Modified(type cls)

cdef const uint8_t *NOTHING = b""
cdef object NO_SKIP = 0           # of nearly every piece
cdef PyMemberDef SKIP             # as long as its descriptor lives


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class LentPage:
    def __dealloc__(self):
        if self.page != NULL:
            return_page(self.page)


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Reassembly:
    """Reassembly(data=b"", skip=0, start=False, end=False, seen_ns=0, offset=-1, packet_number=0, seq=0)\n--\n\n\
A contiguous piece of a stream, possibly empty.

    Its bytes stay what they are for as long as anybody holds the piece or a view of it. `len(r)` is their number,
    `memoryview(r)` a read-only view without a copy.

    Attributes:
        bytes: the bytes, as a bytes object.
        skip: missing bytes right before this piece: exact, or -1 where the stream's start was never seen, or 0.
        start: this piece comes with the SYN.
        end: the stream ends with this piece, by FIN or RST.
        seen_ns: capture time of the packet that brought these bytes, in nanoseconds since 1970.
        seen: the same in seconds.
        offset: where the first byte stands: in the capture file as it reads decompressed (through a list of captures it counts on over
            all of them), or in the buffer of a batch. -1 where that is unknown, and for a piece without bytes.
        packet_number: number of the packet that brought these bytes. An assembler counts what it is given, frames of every kind and
            segments, from 1, and through a list of captures it counts on. Without bytes: that of the packet that led to the piece;
            0 where none did.
        seq: sequence number of the first byte (RFC 9293 3.4), or of the one that would come next.

    Both cores have these, and nothing else is promised. In the pure core a piece happens to be a bytes object, in the compiled one it is
    none: ask for `bytes` or `memoryview(r)`, and rely on neither slices nor comparisons of the piece itself.
    """

    def __cinit__(self):
        self.data = NOTHING
        self.offset_ = -1
        self.skip_ = NO_SKIP

    def __init__(self, data=b"", skip=0, start=False, end=False, seen_ns=0, offset=-1, packet_number=0, seq=0):
        if self.ready:
            raise TypeError("a Reassembly is made once")
        self.ready = True
        self.owner = bytes(data)
        self.data = <const uint8_t *>PyBytes_AS_STRING(self.owner)
        self.length = len(self.owner)
        self.skip_ = <int64_t>skip
        self.flags = (PIECE_START if start else 0) | (PIECE_END if end else 0)
        self.seen_ = seen_ns
        self.offset_ = offset
        self.packet_ = packet_number
        self.seq_ = seq

    @property
    def bytes(self):
        """The bytes, as a bytes object."""
        return bytes_of(self)

    @property
    def start(self):
        """This piece comes with the SYN."""
        return (self.flags & PIECE_START) != 0

    @property
    def end(self):
        """The stream ends with this piece, by FIN or RST."""
        return (self.flags & PIECE_END) != 0

    @property
    def seen_ns(self):
        """Capture time of the packet that brought these bytes, in nanoseconds since 1970."""
        return self.seen_

    @property
    def seen(self):
        """Capture time of the packet that brought these bytes, in seconds since 1970."""
        return self.seen_ / 1e9

    @property
    def offset(self):
        """Where the first byte stands: in the capture file as it reads decompressed (through a list of captures it counts on over all of
        them), or in the buffer of a batch. -1 where that is unknown, and for a piece without bytes."""
        return self.offset_

    @property
    def packet_number(self):
        """Number of the packet that brought these bytes. An assembler counts what it is given, frames of every kind and segments, from 1,
        and through a list of captures it counts on. Without bytes: that of the packet that led to the piece; 0 where none did."""
        return self.packet_

    @property
    def seq(self):
        """Sequence number of the first byte (RFC 9293 3.4), or of the one that would come next."""
        return self.seq_

    def __len__(self):
        return self.length

    def __bool__(self):
        return self.length != 0

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, self.length, 1, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.views -= 1

    def __repr__(self):
        return f"Reassembly({bytes_of(self)!r}, skip={self.skip_}, start={self.start}, end={self.end}, seen_ns={self.seen_})"


# `skip`, which streams read of every piece, is a slot that holds an object: the interpreter reads those without a call.
cdef int add_skip() except -1:
    cdef Reassembly any_piece = Reassembly()
    SKIP.name = b"skip"
    SKIP.type = T_OBJECT_EX
    SKIP.offset = skip_offset(any_piece)
    SKIP.flags = READONLY
    SKIP.doc = b"Missing bytes right before this piece: exact, or -1 where the stream's start was never seen, or 0."
    PyDict_SetItemString(<object>(<PyTypeObject *>Reassembly).tp_dict, SKIP.name, PyDescr_NewMember(Reassembly, &SKIP))
    PyType_Modified(Reassembly)
    return 0


add_skip()


# Made when they are asked for, once.
cdef bytes bytes_of(Reassembly piece):
    if piece.made is None:
        piece.made = PyBytes_FromStringAndSize(<const char *>piece.data, piece.length)
    return piece.made


cdef int settle_piece(Reassembly piece) except -1:
    if piece.shared and piece.views == 0:
        piece.owner = bytes_of(piece)
        piece.shared = False
        piece.data = <const uint8_t *>PyBytes_AS_STRING(piece.owner)
    return 0


cdef Reassembly piece_of(piece_s *piece, object owner, bint shared):
    cdef Reassembly made = Reassembly.__new__(Reassembly)
    fill(made, piece, owner, shared)
    return made


cdef int fill(Reassembly made, piece_s *piece, object owner, bint shared) except -1:
    cdef LentPage lent
    made.ready = True
    made.data = piece.data
    made.length = piece.size
    if piece.skip != 0 or made.skip_ is not NO_SKIP:
        made.skip_ = piece.skip
    made.seen_ = piece.seen_ns
    made.offset_ = piece.offset
    made.packet_ = piece.packet
    made.seq_ = piece.seq
    made.peer_ack_ = piece.peer_ack
    made.flags = <uint8_t>piece.flags
    if piece.page != NULL:
        lent = LentPage.__new__(LentPage)
        lent.page, piece.page = piece.page, NULL
        lent.cache = <PageCache>lent.page.cache.owner
        made.owner, made.shared = lent, True
    elif piece.size:
        if owner is None:
            made.owner = bytes_of(made)
            made.data = <const uint8_t *>PyBytes_AS_STRING(made.owner)
        else:
            made.owner = owner
            made.shared = shared
    return 0


cdef void empty(Reassembly piece) noexcept:
    piece.data, piece.length, piece.shared = NOTHING, 0, False
    piece.owner = piece.made = None
