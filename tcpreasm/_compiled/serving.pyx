"""`Server`: hands pieces to the streams. What is decided about a segment is done with before this begins.

Called once for each segment that brings something to a stream. In-order payload is neither copied nor stored. Runs under the pool's lock;
the GIL is taken only where a Python object is touched, and the lock is let go of while user code runs.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject

from .connection cimport NATIVE, OPEN, SERVED, connection_s, owner_of, served_s
from .pages cimport return_page
from .pool cimport COMPLETE, GATHERED, PER_STREAM, REASSEMBLED, listed_s
from .reassembly cimport Reassembly, empty, fill, piece_of, piece_s, settle_piece
from .streams cimport NativeStream

from ..stop import STOP

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    unsigned long PyThread_get_thread_ident() noexcept nogil
    PyObject *PyList_GET_ITEM(PyObject *list, Py_ssize_t i)
    Py_ssize_t PyList_GET_SIZE(PyObject *list)
    const size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_Vectorcall(object function, PyObject **arguments, size_t count, PyObject *names)
    ctypedef struct PyThreadState
    PyThreadState *PyGILState_GetThisThreadState() noexcept nogil
    void PyEval_RestoreThread(PyThreadState *state) noexcept nogil
    PyThreadState *PyEval_SaveThread() noexcept nogil

ctypedef int (*take_f)(void *stream, const piece_s *pieces, Py_ssize_t count) except -1 nogil
ctypedef int (*finish_f)(void *stream) except -1 nogil
ctypedef bint (*calls_out_f)(void *stream) noexcept nogil
ctypedef int (*serve_f)(void *server, connection_s *connection) except -1 nogil
ctypedef int (*finish_with_gil_f)(void *server, connection_s *connection, const served_s *served, bint native) except -1 nogil


cdef object STOPS = STOP          # where C finds it without a look-up

# 1: it needs no more.
cdef int take_by_name(NativeStream stream, const piece_s *pieces, Py_ssize_t count) except -1 nogil:
    stream.take(pieces, count)
    return stream.stops


cdef int finish_by_name(NativeStream stream) except -1 nogil:
    return stream.finish()


cdef bint calls_out_by_name(NativeStream stream) noexcept nogil:
    return stream.calls_out


# The same for a borrowed pointer: without the GIL no reference can be counted.
cdef take_f take = <take_f>take_by_name
cdef finish_f finish = <finish_f>finish_by_name
cdef calls_out_f calls_out = <calls_out_f>calls_out_by_name


cdef int hand_to_python_by_name(Server server, connection_s *connection) except -1:
    return server._hand_to_python(connection)


cdef int finish_with_gil_by_name(Server server, connection_s *connection, const served_s *served, bint native) except -1:
    return server._finish_with_gil(connection, served, native)


# To be called right after _take_gil: `with gil` would look up what is known then.
cdef serve_f hand_to_python = <serve_f>hand_to_python_by_name
cdef finish_with_gil_f finish_with_gil = <finish_with_gil_f>finish_with_gil_by_name


cdef class Server:
    """What is on its way from connections to their streams in the call at hand."""

    def __cinit__(self):
        self.gathered = []
        self.holds_gil = self.keeps_gil = True

    def __dealloc__(self):
        PyMem_RawFree(self.out)
        PyMem_RawFree(self.gathered_for)

    # -- pieces -----------------------------------------------------------------------------------------------------

    cdef piece_s *_new_piece(self) except NULL nogil:
        cdef Py_ssize_t room
        cdef piece_s *grown
        if self.out_count == self.out_room:
            room = max(<Py_ssize_t>16, self.out_room * 2)
            grown = <piece_s *>PyMem_RawRealloc(self.out, room * sizeof(piece_s))
            if grown == NULL:
                with gil:
                    raise MemoryError()
            self.out, self.out_room = grown, room
        self.out_count += 1
        return &self.out[self.out_count - 1]

    # They were taken in, or nobody takes them any more.
    cdef void _drop_pieces(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.out_count):
            if self.out[i].page != NULL:
                return_page(self.out[i].page)
        self.out_count = 0

    # `out` as objects; the pages in it are lent. A piece of memory that its owner may change gets bytes of its own.
    cdef list _piece_objects(self):
        cdef list pieces
        cdef Py_ssize_t i
        owner = None if self.fleeting else self.packet
        if self.out_count == 1:
            pieces = [piece_of(&self.out[0], owner, self.shared)]
        else:
            pieces = []
            for i in range(self.out_count):
                pieces.append(piece_of(&self.out[i], owner, self.shared))
        self.out_count = 0
        return pieces

    cdef void _keep_error(self, object raised) noexcept:
        if not self.has_late_error:
            self.late_error, self.has_late_error = raised, True

    # -- the GIL ----------------------------------------------------------------------------------------------------

    cdef void _take_gil(self) noexcept nogil:
        if not self.holds_gil:
            PyEval_RestoreThread(PyGILState_GetThisThreadState())
            self.holds_gil = True

    cdef void _drop_gil(self) noexcept nogil:
        if self.holds_gil:
            self.holds_gil = False
            PyEval_SaveThread()

    # -- calls ------------------------------------------------------------------------------------------------------

    # `out` goes to the stream, which goes on.
    cdef int _hand_over(self, connection_s *connection) except -1 nogil:
        cdef served_s *served = &connection.stream.served
        cdef bint alone, held, stops = False
        if (connection.has & SERVED) == NATIVE:
            alone = calls_out(served.stream)
            held = self.holds_gil
            self._drop_gil()  # streams have locks of their own, which a thread that waits for the GIL may hold
            if alone:
                self.pool_.own(connection)
            try:
                stops = take(served.stream, self.out, self.out_count)
            finally:
                if alone:
                    self.pool_.disown_without_gil(connection)
                self._drop_pieces()
                if held and self.keeps_gil:
                    self._take_gil()
            return self._stop(connection) if stops else 0
        self._take_gil()
        return hand_to_python(<void *>self, connection)

    cdef int _hand_to_python(self, connection_s *connection) except -1:
        cdef served_s *served = &connection.stream.served
        cdef bint stops = False
        try:
            if self.coalesce:
                return self._gather(connection)
            served.gatherer = 0
            self.pool_.own(connection)
            try:
                if self.out_count == 1 and self.out.page == NULL and not has_gathered(self, served):
                    stops = call_with_one(self, served)
                else:
                    stops = self._call(served, False)
            finally:
                self.pool_.disown(connection)
        finally:
            if self.out_count:
                self._drop_pieces()  # those that no object could be made for
        return self._stop(connection) if stops else 0

    cdef int _stop(self, connection_s *connection) except -1 nogil:
        return 0

    # `out` goes to a stream that its connection has let go of, and it is told that this was all.
    cdef int _finish_stream(self, connection_s *connection, const served_s *served, bint native) except -1 nogil:
        self._take_gil()
        try:
            finish_with_gil(<void *>self, connection, served, native)
        finally:
            self._drop_pieces()
        return 0

    cdef int _finish_with_gil(self, connection_s *connection, const served_s *served, bint native) except -1:
        self.pool_.own(connection)
        try:
            if native:
                self._finish_native(served)
            else:
                self._call(served, True)
        finally:
            self.pool_.disown(connection)
        return 0

    cdef int _finish_native(self, const served_s *served) except -1:
        try:
            with nogil:
                if self.out_count:
                    take(served.stream, self.out, self.out_count)
        finally:
            self._complete(served, True)
        return 0

    # The stream's last call. Its objects are let go of.
    cdef int _complete(self, const served_s *served, bint native) except -1:
        complete = self.pool_.served[<size_t>served.slot * PER_STREAM + COMPLETE]
        try:
            if complete is None:
                with nogil:
                    finish(served.stream)
            elif native or served.stream == NULL:
                complete()
            else:
                complete(<object>served.stream)
        finally:
            self.pool_.free_slot(served.slot)
        return 0

    # Without the lock: a Python stream gets what was put aside for it, and `out`. Whoever keeps a piece gets its bytes, not a page.
    cdef int _call(self, const served_s *served, bint last) except -1:
        cdef size_t at = <size_t>served.slot * PER_STREAM
        cdef list pieces = self._piece_objects()
        cdef list gathered = self.pool_.served[at + GATHERED]
        cdef bint stops = False
        if gathered is not None:
            self.pool_.served[at + GATHERED] = None
            gathered.extend(pieces)
            pieces = gathered
            gathered = None
        try:
            if pieces:
                stops = call_reassembled(self, served, pieces)
        finally:
            settle(pieces)
            if last:
                self._complete(served, False)
        return stops

    # -- what is put aside ------------------------------------------------------------------------------------------

    # `out` is put aside with the stream, where everybody who serves it finds it, and noted to be given out by this assembler.
    cdef int _gather(self, connection_s *connection) except -1:
        cdef served_s *served = &connection.stream.served
        cdef listed_s *grown
        cdef size_t room
        cdef list pieces = self._piece_objects()
        cdef size_t at = <size_t>served.slot * PER_STREAM + GATHERED
        cdef list gathered = self.pool_.served[at]
        if gathered is None:
            gathered = self.pool_.served[at] = pieces
        else:
            gathered.extend(pieces)
        if served.gatherer != self.number:
            served.gatherer = self.number
            if self.gathered_count == self.gathered_room:
                room = max(<size_t>64, self.gathered_room * 2)
                grown = <listed_s *>PyMem_RawRealloc(self.gathered_for, room * sizeof(listed_s))
                if grown == NULL:
                    raise MemoryError()
                self.gathered_for, self.gathered_room = grown, room
            self.gathered_for[self.gathered_count].connection = connection
            self.gathered_for[self.gathered_count].serial = connection.serial
            self.gathered_count += 1
            self.gathered.append(gathered)
        return 0

    # What was put aside goes out, but where somebody else has given it out meanwhile.
    #
    # An exception of user code does not keep the other streams from being served. Returns the first one: `error`, or one from here.
    cdef object _give_gathered(self, object error):
        cdef connection_s *connection
        cdef size_t count = self.gathered_count, i
        cdef list gathered = self.gathered
        self.gathered, self.gathered_count = [], 0
        for i in range(count):
            connection = self.gathered_for[i].connection
            try:
                self.pool_.lock()
                try:
                    if not self._acquire_open(&self.gathered_for[i]):
                        continue
                    is_there = self.pool_.served[<size_t>connection.stream.served.slot * PER_STREAM + GATHERED] is gathered[i]
                    gathered[i] = None  # else every piece would count as kept by somebody
                    if is_there:
                        self._hand_over(connection)
                finally:
                    self.pool_.unlock()
            except BaseException as raised:
                error = error or raised
        return error

    # Nobody serves it now. False if it is no longer the one that was picked, no longer open, or served by this very thread.
    cdef bint _acquire_open(self, const listed_s *picked) except -1 nogil:
        cdef connection_s *connection = picked.connection
        while connection.serial == picked.serial and connection.state == OPEN:
            if owner_of(connection) == 0:
                return True
            if owner_of(connection) == PyThread_get_thread_ident():
                self.pool_.seen_bound = min(self.pool_.seen_bound, connection.last_seen_ns)  # it may be idle, and stays
                return False
            self.pool_.wait_for(connection)
        return False


cdef inline bint has_gathered(Server self, const served_s *served) noexcept:
    return PyList_GET_ITEM(<PyObject *>self.pool_.served, <size_t>served.slot * PER_STREAM + GATHERED) != <PyObject *>None


# 1: the stream returned STOP.
cdef inline int call_reassembled(Server self, const served_s *served, list pieces) except -1:
    cdef PyObject *arguments[3]
    cdef size_t count = 1 + (served.stream != NULL)
    reassembled = <object>PyList_GET_ITEM(<PyObject *>self.pool_.served, <size_t>served.slot * PER_STREAM + REASSEMBLED)
    arguments[0], arguments[1], arguments[2] = NULL, <PyObject *>served.stream, <PyObject *>pieces
    return PyObject_Vectorcall(reassembled, arguments + 3 - count, count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL) is STOPS


# _call for a single piece that lies in the packet, which is what nearly every segment brings: the list and the piece of the last such
# call serve again, unless somebody keeps one of them or the list was changed.
cdef inline int call_with_one(Server self, const served_s *served) except -1:
    cdef Reassembly piece
    cdef bint stops = False
    self.out_count = 0
    if self.single is None:
        self.single = [Reassembly.__new__(Reassembly)]
    cdef list pieces = self.single
    piece = <Reassembly>PyList_GET_ITEM(<PyObject *>pieces, 0)
    try:
        fill(piece, self.out, None if self.fleeting else self.packet, self.shared)
        stops = call_reassembled(self, served, pieces)
    finally:
        if (
            Py_REFCNT(<PyObject *>pieces) == 2
            and PyList_GET_SIZE(<PyObject *>pieces) == 1
            and PyList_GET_ITEM(<PyObject *>pieces, 0) == <PyObject *>piece
            and Py_REFCNT(<PyObject *>piece) == 2
        ):
            empty(piece)
        else:
            self.single = piece = None  # neither counts as kept
            settle(pieces)
    return stops


# A piece that somebody keeps holds its own bytes from then on, not a page or a part of something bigger.
cdef int settle(list pieces) except -1:
    cdef bint kept = Py_REFCNT(<PyObject *>pieces) > 1
    cdef Py_ssize_t i
    for i in range(len(pieces)):
        if kept or Py_REFCNT(PyList_GET_ITEM(<PyObject *>pieces, i)) > 1:
            piece = pieces[i]
            if type(piece) is Reassembly:
                settle_piece(<Reassembly>piece)
    return 0


# What a stream raised when it ended early is raised once the segment at hand is taken in; where that raises too, it becomes its context.
cdef int raise_late_error(Server server) except -1:
    error = server.late_error
    server.late_error, server.has_late_error = None, False
    raise error


cdef int join_late_error(Server server, object raised) except -1:
    if server.has_late_error:
        if raised is not server.late_error and raised.__context__ is None:
            raised.__context__ = server.late_error
        server.late_error, server.has_late_error = None, False
    return 0
