"""Streams that write to files: the C contract.

A pool that writes behind leaves what remains to do for the file of a complete stream (often all: to make, write and close it) to a thread
of its own. Streams that are complete faster than that do it themselves, the oldest first: neither files nor bytes pile up, and both
threads are busy. All writes of a file happen under its lock, in order; its stream is complete before it is due, so that nothing is
reordered. A new stream of a path waits until the older files of that path are done.
"""

from libc.stdint cimport int64_t, uint32_t

from .reassembly cimport piece_s
from .streams cimport _GapStream, lock_s, memory_s

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_t:
        pass

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass

cdef enum:
    BUFFERED = 0                  # lists of a pool, in order of use: files that have memory,
    OPEN = 1                      # files that are open,
    DUE = 2                       # and files whose streams are complete: to be written out and closed by whoever comes first
    LISTS = 3

cdef enum:
    NAMES = 1 << 13               # buckets of the hash of a path


cdef struct failure_s:            # the first thing that went wrong with a file; all zero: nothing
    int number                    # errno, or CLOSED
    char *path                    # malloc's, or NULL

cdef struct failed_s:             # one of many
    failure_s failure
    failed_s *next

cdef struct link_s:
    file_s *older
    file_s *newer
    bint linked

# One file, open or not. It may outlive its stream as long as it stands in a list: then the pool frees it (`orphan`).
# `lock` guards path to memory, and who holds it holds no other file's. links and orphan stand under the pool's lock, which is
# taken last; under it, other files' locks are only tried.
cdef struct file_s:
    pool_s *pool
    lock_s lock
    char *path                    # as the system takes it
    uint32_t name                 # its bucket
    int flags                     # with which it is opened first; then 0
    int64_t size                  # which it gets in the end; -1: what its bytes need
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
    bint interrupted              # close() was, by a signal: what is left may never be done
    int64_t files                 # that exist
    int64_t max_open
    int64_t open_count            # descriptors that are open, or about to be
    int64_t buffered              # bytes of memory in all files
    file_list_s lists[LISTS]
    # Only where it writes behind: a thread of its own, which never runs Python code and never asks for the GIL.
    bint behind
    int forks                     # of processes until it was made: a child has not got the thread
    bint started                  # the thread; or there is none to be had
    bint running
    bint idle                     # it waits for `wake`
    bint stopping
    pthread_t thread
    sem_t wake
    failed_s *failed              # what nobody raised yet, the first first: of that thread, or of other files than a call was about
    failed_s *last_failed         # good where there is a first one
    int64_t failed_count          # those and, beyond MOST_FAILED, those that are counted only
    uint32_t due                  # files in that list
    uint32_t due_names[NAMES]     # how many of them have a name of that bucket


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


cdef class FlowPaths:
    cdef object prefix            # the folder, with its separator
    cdef dict numbers             # of streams that had a name

    cdef object next(self, net_flow, transport_flow)
