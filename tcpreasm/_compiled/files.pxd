"""Streams that write to files: the C contract."""

from libc.stdint cimport int64_t, uint8_t

from .reassembly cimport piece_s
from .streams cimport _GapStream, lock_s, memory_s

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
