"""Hands pieces to the streams: the C contract. Called once for each segment that brings something to a stream.

Runs under the pool's lock, and without the GIL where the caller has let go of it: `with gil` stands only where a Python object is
touched. The lock is released while user code runs.
"""

from libc.stdint cimport uint32_t

from .connection cimport connection_s, served_s
from .pool cimport StreamPoolBase, listed_s
from .reassembly cimport piece_s


cdef class Server:
    cdef StreamPoolBase pool_
    cdef bint holds_gil           # the call at hand has the GIL now,
    cdef bint keeps_gil           # and must have it back whenever it lets go of it
    cdef bint coalesce
    cdef object packet            # what the text at hand lies in: bytes, or a Block; None: memory that the caller may change
    cdef bint fleeting            # the text at hand lies in memory that is freed when it was taken in, and not in `packet`
    cdef bint shared              # the packet is more than one frame: whoever keeps a piece gets a copy
    cdef piece_s *out             # pieces for the connection at hand; pages in them are lent
    cdef Py_ssize_t out_count
    cdef Py_ssize_t out_room
    cdef list single              # a piece by itself, empty between two calls, for call_with_one; or None
    cdef list gathered            # lists of pieces put aside for streams in the call at hand,
    cdef listed_s *gathered_for   # and for whom
    cdef size_t gathered_count
    cdef size_t gathered_room
    cdef uint32_t number          # among the assemblers that the pool has had, from 1
    cdef object late_error        # an exception of a stream that ended while the segment still had to be taken in, or None
    cdef bint has_late_error

    # What user code raised, to be raised later; the first of several.
    cdef void _keep_error(self, object raised) noexcept

    cdef piece_s *_new_piece(self) except NULL nogil
    cdef void _drop_pieces(self) noexcept nogil
    cdef list _piece_objects(self)
    cdef void _take_gil(self) noexcept nogil
    cdef void _drop_gil(self) noexcept nogil

    # `out` goes to the stream of an open connection; or to one that its connection has let go of, and this is the last of it.
    cdef int _hand_over(self, connection_s *connection) except -1 nogil
    # Its stream has returned STOP. The engine knows what that means.
    cdef int _stop(self, connection_s *connection) except -1 nogil
    cdef int _finish_stream(self, connection_s *connection, const served_s *served, bint native) except -1 nogil
    cdef int _hand_to_python(self, connection_s *connection) except -1
    cdef int _finish_with_gil(self, connection_s *connection, const served_s *served, bint native) except -1
    cdef int _finish_native(self, const served_s *served) except -1
    cdef int _complete(self, const served_s *served, bint native) except -1
    cdef int _call(self, const served_s *served, bint last) except -1  # 1: the stream returned STOP

    # coalesce
    cdef int _gather(self, connection_s *connection) except -1
    cdef object _give_gathered(self, object error)
    # Nobody serves it now. False if it is no longer the one that was picked, no longer open, or served by this very thread.
    cdef bint _acquire_open(self, const listed_s *picked) except -1 nogil


# An exception of a stream that ended early, once the segment is taken in; and where that raises too, as its context.
cdef int raise_late_error(Server server) except -1
cdef int join_late_error(Server server, object raised) except -1
