"""Where captured bytes lie outside of pages. Runs for packets that are out of order only."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl
from posix.unistd cimport close, pread

cdef extern from *:
    int64_t add "__atomic_add_fetch"(int64_t *number, int64_t step, int order) noexcept nogil
    enum:
        ACQ_REL "__ATOMIC_ACQ_REL"


cdef enum:
    MOST_FILES = 8                # that origins keep open at once, and
    MOST_MEMORIES = 2             # captures that they keep in memory: who sends the packets decides how long something in them waits

cdef int64_t files = 0, memories = 0              # touched by atomic operations alone


# None where there are as many of the kind already.
cdef origin_s *new_origin(int64_t start, int64_t *of_kind, int64_t most) noexcept:
    cdef origin_s *origin = NULL
    if add(of_kind, 1, ACQ_REL) <= most:
        origin = <origin_s *>PyMem_RawMalloc(sizeof(origin_s))
    if origin == NULL:
        add(of_kind, -1, ACQ_REL)
        return NULL
    origin.references, origin.start, origin.owner, origin.fd = 1, start, NULL, -1
    return origin


cdef void free_origin(origin_s *origin, int64_t *of_kind) noexcept nogil:
    PyMem_RawFree(origin)
    add(of_kind, -1, ACQ_REL)


cdef origin_s *origin_of_bytes(object owner, const uint8_t *first, int64_t first_offset):
    cdef origin_s *origin = new_origin(<int64_t>first - first_offset, &memories, MOST_MEMORIES)
    if origin != NULL:
        Py_INCREF(owner)
        origin.owner = <void *>owner
    return origin


cdef origin_s *origin_of_file(int fd, int64_t base) noexcept:
    cdef origin_s *origin = new_origin(-base, &files, MOST_FILES)
    if origin != NULL:
        origin.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)  # not one of those that belong to the terminal
        if origin.fd < 0:
            free_origin(origin, &files)
            origin = NULL
    return origin


cdef void keep_origin(origin_s *origin) noexcept nogil:
    add(&origin.references, 1, ACQ_REL)


cdef void let_go_of_origin(origin_s *origin) noexcept nogil:
    if add(&origin.references, -1, ACQ_REL) > 0:
        return
    if origin.owner != NULL:
        with gil:
            Py_DECREF(<object>origin.owner)
        free_origin(origin, &memories)
    else:
        close(origin.fd)
        free_origin(origin, &files)


cdef const uint8_t *bytes_in_origin(const origin_s *origin, int64_t offset, uint32_t size, uint8_t *buffer) noexcept nogil:
    cdef uint32_t have = 0
    cdef Py_ssize_t got
    if origin.owner != NULL:
        return <const uint8_t *>(origin.start + offset)
    while have < size:
        got = pread(origin.fd, buffer + have, size - have, origin.start + offset + have)
        if got > 0:
            have += <uint32_t>got
        elif got == 0 or errno != EINTR:
            return NULL
    return buffer
