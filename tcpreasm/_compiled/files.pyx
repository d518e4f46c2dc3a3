"""Streams that write to files: FileStream, and the FilePool that bounds the number of open files and writes behind its streams.

Lives here: what the contract in the .pxd says about files, and the Python side of these classes. `put` is called about once a packet,
the rest about once a file. What is made here for a file exists as long as it has bytes to write, a descriptor, or a stream.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.errno cimport EEXIST, EINTR, EIO, EMFILE, ENFILE, ENOENT, ESPIPE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove, strdup
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_TRUNC, O_WRONLY, open as c_open
from posix.signal cimport SIG_SETMASK, sigfillset, sigset_t
from posix.stat cimport lstat, struct_stat
from posix.unistd cimport close as c_close, ftruncate, pwrite, usleep, write as c_write

from .reassembly cimport piece_s
from .streams cimport (
    ENDLESS, GATHERED, ByteCountStream, Pieces, add_native, append, count_gap, lock, lock_with_gil, reserve, try_lock, unlock, wait
)

from ..options import DEFAULT_MAX_OPEN_FILES, check_number

__all__ = ["FilePool", "FileStream", "FlowPaths", "flow_name"]

cdef extern from "Python.h":
    int PySys_Audit(const char *event, const char *format, ...) except -1
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeASCII(const char *text, Py_ssize_t size, const char *errors)

cdef extern from "pthread.h" nogil:
    int pthread_create(pthread_t *thread, void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_detach(pthread_t thread)
    int pthread_join(pthread_t thread, void **result)
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)

cdef extern from "semaphore.h" nogil:
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_destroy(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    int sem_wait(sem_t *semaphore)

cdef enum:
    BUFFERED_TOTAL = 1 << 25      # bytes of memory that all files of a pool may have; beyond, the longest unused are written out
    CLOSED = -1                   # no errno: the pool is closed
    MOST_DUE = 256                # files; with more, streams that are complete write out and close files themselves
    PATIENCE = 128                # tries (milliseconds) after which who waits for a file lets signals be handled
    MOST_FAILED = 1000            # files whose paths are kept for an error
    LINGER = 1000                 # microseconds that the thread sleeps without being woken, since waking costs its waker


# ---- failures

cdef void note(failure_s *failure, int number, const char *path) noexcept nogil:
    if number != 0 and failure.number == 0:
        failure.number = number
        failure.path = NULL if path == NULL else strdup(path)


# `others`: further files that the error is to tell of.
cdef int raise_noted(failure_s *failure, int64_t others=0) except -1:
    cdef int number = failure.number
    path = None if failure.path == NULL else os.fsdecode(<bytes>failure.path)
    free(failure.path)
    failure.path = NULL
    failure.number = 0
    if number == CLOSED:
        raise ValueError("this FilePool is closed")
    raise OSError(number, os.strerror(number) + (f" (and {others} more errors of files of this pool)" if others else ""), path)


# What was noted becomes the pool's, whose lock is held.
cdef void add_failed(pool_s *pool, failure_s *failure) noexcept nogil:
    cdef failed_s *failed = NULL
    if failure.number == 0:
        return
    pool.failed_count += 1
    if pool.failed_count <= MOST_FAILED:
        failed = <failed_s *>malloc(sizeof(failed_s))
    if failed == NULL:
        free(failure.path)
    else:
        failed.failure = failure[0]
        failed.next = NULL
        if pool.failed == NULL:
            pool.failed = failed
        else:
            pool.last_failed.next = failed
        pool.last_failed = failed
    failure.number = 0
    failure.path = NULL


cdef void hand_over(pool_s *pool, failure_s *failure) noexcept nogil:
    if failure.number:
        lock(&pool.lock)
        add_failed(pool, failure)
        unlock(&pool.lock)


# The first of the pool's failures becomes the caller's, unless that has one.
cdef void take_over(pool_s *pool, failure_s *failure) noexcept nogil:
    cdef failed_s *failed
    if pool.failed == NULL or failure.number:
        return
    lock(&pool.lock)
    failed = pool.failed
    if failed != NULL:
        failure[0] = failed.failure
        pool.failed = failed.next
        pool.failed_count -= 1
        free(failed)
    unlock(&pool.lock)


# Forgets all, and gives the number.
cdef int64_t forget_failed(pool_s *pool) noexcept nogil:
    cdef failed_s *failed
    cdef int64_t count
    lock(&pool.lock)
    count = pool.failed_count
    pool.failed_count = 0
    while pool.failed != NULL:
        failed = pool.failed
        pool.failed = failed.next
        free(failed.failure.path)
        free(failed)
    unlock(&pool.lock)
    return count


# ---- files: the C half. Functions give 0, EINTR (nothing is lost: handle signals and call again) or CLOSED; other errors they note.

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
    file.size = -1
    lock(&pool.lock)
    pool.files += 1
    unlock(&pool.lock)
    return file


cdef bint is_listed(file_s *file) noexcept nogil:
    return file.links[BUFFERED].linked or file.links[OPEN].linked or file.links[DUE].linked


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
    if file.orphan and not is_listed(file):
        free_file(file)


# What went wrong with another file than the caller's. The pool's lock is held.
cdef void note_of(file_s *file, int number) noexcept nogil:
    cdef failure_s failure
    failure.number = 0
    failure.path = NULL
    note(&failure, number, file.path)
    add_failed(file.pool, &failure)


# The least recently used file of a list that nobody works on, locked; NULL where there is none. The pool's lock is held.
cdef file_s *lock_oldest(pool_s *pool, int which) noexcept nogil:
    cdef file_s *file = pool.lists[which].oldest
    while file != NULL and not try_lock(&file.lock):
        file = file.links[which].newer
    return file


# EINTR where somebody else works on the file for long.
cdef int lock_file(file_s *file) noexcept nogil:
    cdef int tries = 0
    while not try_lock(&file.lock):
        if tries == PATIENCE:
            return EINTR
        wait(tries)
        tries += 1
    return 0


# The file's descriptor is there afterwards, or the pool is closed, or an error is noted. The file's lock is held.
# `last`: close() asks, or waits for that.
cdef int open_file(file_s *file, bint last, failure_s *failure) noexcept nogil:
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
                note_of(oldest, leave(oldest, OPEN))
                let_go(oldest)
            else:                 # others work on all of them, and none of those waits for a descriptor
                unlock(&pool.lock)
                if tries == PATIENCE:
                    return EINTR
                wait(tries)
                tries += 1
                lock(&pool.lock)
            continue
        pool.open_count += 1
        unlock(&pool.lock)
        fd = c_open(file.path, file.flags | O_WRONLY | O_CLOEXEC, 0o666)
        number = errno if fd < 0 else 0
        lock(&pool.lock)
        if fd >= 0 and pool.closed and not last:
            c_close(fd)           # close() may have been here already
            number = CLOSED
        elif fd >= 0:
            file.fd = fd
            file.flags = 0
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
    number = open_file(file, last, failure)
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
    cdef int number = lock_file(file)
    if number:
        return number
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
                number = open_file(file, False, failure)
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
cdef void shed(pool_s *pool) noexcept nogil:
    cdef file_s *file
    cdef failure_s failure
    cdef int number
    failure.number = 0
    failure.path = NULL
    while pool.buffered > BUFFERED_TOTAL:
        lock(&pool.lock)
        file = lock_oldest(pool, BUFFERED)
        unlock(&pool.lock)
        if file == NULL:
            return
        number = write_out(file, False, &failure)
        lock(&pool.lock)
        add_failed(pool, &failure)
        if number == 0:
            leave(file, BUFFERED)
        let_go(file)
        unlock(&pool.lock)
        if number != 0:
            return                # a signal waits, or close() does it all


# Writes out and closes a file, whose lock is held, and lets go of it.
cdef int settle(file_s *file, bint last, failure_s *failure) noexcept nogil:
    cdef pool_s *pool = file.pool
    cdef int number = write_out(file, last, failure)
    cdef int at_closing
    if number == 0 and file.size >= 0:
        number = open_file(file, last, failure)
        if number == 0 and ftruncate(file.fd, file.size) < 0:
            number = errno
            if number != EINTR:
                note(failure, number, file.path)
    lock(&pool.lock)
    if number != EINTR:
        if file.links[OPEN].linked:
            at_closing = leave(file, OPEN)
            if at_closing:
                note(failure, at_closing, file.path)
        if file.links[BUFFERED].linked and file.memory.used == 0:
            leave(file, BUFFERED)
        if file.links[DUE].linked:
            unlink(file, DUE)
            pool.due -= 1
            pool.due_names[file.name] -= 1
    let_go(file)
    unlock(&pool.lock)
    return number if number == EINTR or number == CLOSED else 0


# ---- writing behind

# The thread's whole life. All signals are blocked in it: they interrupt those who can handle them.
cdef void *work(void *given) noexcept nogil:
    cdef pool_s *pool = <pool_s *>given
    cdef file_s *file
    cdef failure_s failure
    cdef bint rested = False
    failure.number = 0
    failure.path = NULL
    while True:
        lock(&pool.lock)
        file = lock_oldest(pool, DUE)
        if file == NULL and pool.stopping:
            unlock(&pool.lock)
            return NULL
        pool.idle = file == NULL and rested
        unlock(&pool.lock)
        if file != NULL:
            rested = False
            settle(file, True, &failure)
            hand_over(pool, &failure)
        elif rested:
            sem_wait(&pool.wake)
            rested = False
        else:
            usleep(LINGER)
            rested = True


# The pool's lock is held. Where no thread is to be had, streams do it all.
cdef void start(pool_s *pool) noexcept nogil:
    cdef sigset_t every
    cdef sigset_t before
    pool.started = True
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    pool.running = pthread_create(&pool.thread, NULL, work, pool) == 0
    pthread_sigmask(SIG_SETMASK, &before, NULL)


# Under the pool's lock, which is let go: wakes the thread where that is due.
cdef void wake_and_unlock(pool_s *pool) noexcept nogil:
    cdef bint idle = pool.idle
    pool.idle = False
    unlock(&pool.lock)
    if idle:
        sem_post(&pool.wake)


# Has the file written out and closed by whoever comes first. False: the pool is closed.
cdef bint put_due(file_s *file) noexcept nogil:
    cdef pool_s *pool = file.pool
    lock(&pool.lock)
    if pool.closed:
        unlock(&pool.lock)
        return False
    if not file.links[DUE].linked:
        use(file, DUE)
        pool.due += 1
        pool.due_names[file.name] += 1
    if not pool.started:
        start(pool)
    wake_and_unlock(pool)
    return True


# Works off due files, the oldest first: until there are MOST_DUE at most, or, of those with names of that bucket, none (-1: all names).
cdef int relieve(pool_s *pool, int64_t name) except -1 nogil:
    cdef file_s *file
    cdef failure_s failure
    cdef int number
    cdef int tries = 0
    failure.number = 0
    failure.path = NULL
    while pool.due_names[name] > 0 if name >= 0 else pool.due > MOST_DUE:
        lock(&pool.lock)
        file = pool.lists[DUE].oldest
        while file != NULL and ((name >= 0 and file.name != name) or not try_lock(&file.lock)):
            file = file.links[DUE].newer
        unlock(&pool.lock)
        if file == NULL:
            wait(tries)
            tries += 1
            if tries % PATIENCE == 0:
                handle_signals(pool, &failure)
            continue
        number = settle(file, True, &failure)
        hand_over(pool, &failure)
        if number == EINTR:
            handle_signals(pool, &failure)
    return 0


cdef int forks = 0                # of which this process is the child


def _count_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)


# In a child that fork() made the thread is not there, and it may have left any lock behind.
cdef bint is_foreign(pool_s *pool) noexcept nogil:
    return pool.behind and pool.forks != forks


cdef int check_own(pool_s *pool) except -1 nogil:
    if is_foreign(pool):
        with gil:
            raise RuntimeError("this FilePool writes behind, and was used before fork(): the child needs one of its own")
    return 0


# In a child: a pool that was not used yet may be taken over.
cdef void adopt(pool_s *pool) noexcept nogil:
    if is_foreign(pool) and not pool.started and pool.files == 0:
        unlock(&pool.lock)
        pool.forks = forks


# ---- files: to the end

# `raising`: signals are handled, and where a handler raises it may be called again. Else they wait.
cdef int close_pool(pool_s *pool, bint raising) except -1 nogil:
    cdef file_s *file
    cdef failure_s failure
    cdef int which
    cdef int number
    cdef int tries = 0
    cdef bint running
    failure.number = 0
    failure.path = NULL
    lock(&pool.lock)
    pool.closed = True
    pool.interrupted = raising
    while pool.lists[DUE].oldest != NULL:
        file = lock_oldest(pool, DUE)
        unlock(&pool.lock)
        number = 0
        if file != NULL:
            number = settle(file, True, &failure)    # interrupted: it is still due
            hand_over(pool, &failure)
        else:
            wait(tries)
            tries += 1
        if raising and (number == EINTR or (file == NULL and tries % PATIENCE == 0)):
            handle_signals(pool, &failure)
        lock(&pool.lock)
    for which in range(DUE):      # memory first: writing it out opens files
        while pool.lists[which].oldest != NULL:
            file = lock_oldest(pool, which)
            unlock(&pool.lock)
            number = 0
            if file == NULL:
                wait(tries)
                tries += 1
            elif which == BUFFERED:
                number = write_out(file, True, &failure)
            lock(&pool.lock)
            if file != NULL:
                if number != EINTR:
                    note(&failure, leave(file, which), file.path)
                add_failed(pool, &failure)
                let_go(file)
            if raising and (number == EINTR or (file == NULL and tries % PATIENCE == 0)):
                unlock(&pool.lock)
                handle_signals(pool, &failure)
                lock(&pool.lock)
    running = pool.running
    pool.running = False
    pool.stopping = True
    pool.interrupted = False
    wake_and_unlock(pool)
    if running:
        pthread_join(pool.thread, NULL)
    return 0


# Closing was interrupted: the FilePool goes without waiting for anything, and the pool's memory stays for who may still be at work.
cdef void give_up(pool_s *pool) noexcept nogil:
    cdef bint running
    lock(&pool.lock)
    running = pool.running
    pool.running = False
    pool.stopping = True
    wake_and_unlock(pool)
    if running:
        pthread_detach(pool.thread)


# The file's owner goes. With the GIL.
cdef void release_file(file_s *file) noexcept:
    cdef pool_s *pool = file.pool
    cdef bint last
    if is_foreign(pool):
        return
    lock_with_gil(&pool.lock)
    if is_listed(file):
        file.orphan = True
    else:
        free_file(file)
    last = pool.abandoned and pool.files == 0
    unlock(&pool.lock)
    if last:
        free_pool(pool)


cdef void free_pool(pool_s *pool) noexcept nogil:
    sem_destroy(&pool.wake)
    free(pool)


# Handles the signals that interrupted something; where a handler raises, a later call tells what was noted.
cdef int handle_signals(pool_s *pool, failure_s *failure) except -1 nogil:
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException:
            with nogil:
                hand_over(pool, failure)
            raise
    return 0


# The file's lock, however long that takes.
cdef int lock_whole(file_s *file) except -1 nogil:
    cdef failure_s failure
    failure.number = 0
    failure.path = NULL
    check_own(file.pool)
    while lock_file(file) == EINTR:
        handle_signals(file.pool, &failure)
    return 0


# put() to its end, and shed() where that is due.
cdef int put_whole(file_s *file, int64_t *hole, const uint8_t *data, size_t size, failure_s *failure) except -1 nogil:
    cdef int number
    check_own(file.pool)
    number = put(file, hole, &data, &size, failure)
    while number == EINTR:
        handle_signals(file.pool, failure)
        number = put(file, hole, &data, &size, failure)
    if number == CLOSED:
        note(failure, CLOSED, NULL)
    if file.pool.buffered > BUFFERED_TOTAL:
        shed(file.pool)
    take_over(file.pool, failure)
    return 0


# Writes out and closes a file, which gets that size unless it is negative: at once, or `behind`.
cdef int finish_whole(file_s *file, int64_t size, bint behind) except -1 nogil:
    cdef pool_s *pool = file.pool
    cdef failure_s failure
    cdef int number
    failure.number = 0
    failure.path = NULL
    lock_whole(file)
    file.size = size
    unlock(&file.lock)
    if behind and put_due(file):
        relieve(pool, -1)
    else:
        while True:
            number = lock_file(file)
            if number == 0:
                number = settle(file, False, &failure)
            if number != EINTR:
                break
            handle_signals(pool, &failure)
        if number == CLOSED:
            note(&failure, CLOSED, NULL)
    take_over(pool, &failure)
    if failure.number:
        with gil:
            raise_noted(&failure)
    return 0


# A file of that pool, not open yet; opening it is what makes it, if flags say so.
cdef file_s *file_of(pool_s *pool, object path, int flags) except NULL:
    cdef bytes encoded = PyUnicode_EncodeFSDefault(path) if isinstance(path, str) else os.fsencode(path)
    cdef const char *text = PyBytes_AS_STRING(encoded)
    cdef uint32_t name = <uint32_t>hash(encoded) % NAMES
    cdef file_s *file
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    adopt(pool)
    check_own(pool)
    PySys_Audit("open", "OOi", <PyObject *>path, <PyObject *>None, flags | O_WRONLY | O_CLOEXEC)
    with nogil:
        relieve(pool, name)
        file = new_file(pool, text)
    if file == NULL:
        raise MemoryError
    file.name = name
    file.flags = flags
    return file


# The same, to be made when its first bytes are written. What can be told before is raised here; O_EXCL sees to the rest.
cdef file_s *later_file(pool_s *pool, object path, int flags) except NULL:
    cdef file_s *file = file_of(pool, path, flags)
    cdef struct_stat found
    cdef failure_s failure
    failure.number = 0
    failure.path = NULL
    if flags & O_EXCL:
        with nogil:
            if lstat(file.path, &found) == 0:
                note(&failure, EEXIST, file.path)
            elif errno != ENOENT:
                note(&failure, errno, file.path)
        if failure.number:
            release_file(file)
            raise_noted(&failure)
    return file


# The same, open.
cdef file_s *opened_file(pool_s *pool, object path, int flags) except NULL:
    cdef file_s *file = file_of(pool, path, flags)
    cdef failure_s failure
    cdef int number
    failure.number = 0
    failure.path = NULL
    try:
        while True:
            with nogil:
                lock(&file.lock)
                number = open_file(file, False, &failure)
                unlock(&file.lock)
            if number == CLOSED:
                note(&failure, CLOSED, NULL)
            if number != EINTR:
                break
            handle_signals(pool, &failure)
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
    """FilePool(max_open=256, *, write_behind=False)\n--\n\n\
The open files of many FileStreams: the least recently written one is closed when too many are open, and opened again when
    its stream goes on.

    Args:
        max_open: files that may be open at once. Where the system allows fewer, fewer it is.
        write_behind: the files of streams may be made when their bytes are written, and written and closed by a thread of the pool's
            own, after `reassembly_complete`: faster where streams are many and short. Then an OSError is raised, with the file's name,
            by a later call of any of the pool's streams, one by each call, and `close` raises one for all that are left, with their
            number; files are there after `close`. (A file that exists and may not be overwritten is found at once, unless it comes in
            the meantime.) Streams of one path must follow one another: who begins before the former is complete may find its file or
            not. Not for a child that fork() makes meanwhile: once it was used, `close` does nothing there, and the rest raises
            RuntimeError. (The pure core has no such thread, and does all at once.)

    Small writes are gathered, up to 64 KiB a file and 32 MiB in all. What the system refuses to write is lost, and raises OSError in the
    call that found out.

    Made to be closed, best by a `with` block: only then all is on disk. (Where the block ends by an exception, that passes, and not the
    OSError of files that could not be written.) Safe to share between threads.
    """

    def __cinit__(self):
        self.named = {}
        self.pool = <pool_s *>calloc(1, sizeof(pool_s))
        if self.pool == NULL:
            raise MemoryError
        sem_init(&self.pool.wake, 0, 0)
        self.pool.forks = forks
        self.pool.max_open = DEFAULT_MAX_OPEN_FILES    # for a subclass that does not call __init__

    def __init__(self, max_open=DEFAULT_MAX_OPEN_FILES, *, write_behind=False):
        check_number("max_open", max_open, "files")
        self.pool.max_open = min(max_open, ENDLESS)
        self.pool.behind = bool(write_behind)

    def __dealloc__(self):
        cdef bint last
        if self.pool == NULL or is_foreign(self.pool):
            return
        if self.pool.interrupted:
            with nogil:
                give_up(self.pool)
            return
        with nogil:
            close_pool(self.pool, False)
            forget_failed(self.pool)
            lock(&self.pool.lock)
            self.pool.abandoned = True
            last = self.pool.files == 0
            unlock(&self.pool.lock)
        if last:
            free_pool(self.pool)

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
            lock_whole(named.file)
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
            finish_whole(named.file, at_end, False)

    def close(self):
        """Closes all files. Later writes raise ValueError. One OSError tells of all files that could not be written, and were not told of
        before: it names the first one, and says how many errors there are besides. Where the handler of a signal raises (Ctrl-C, while
        a file system does not answer), it may be called again; what is left is lost if it is not."""
        cdef failure_s failure
        cdef int64_t others
        failure.number = 0
        failure.path = NULL
        if is_foreign(self.pool):
            self.pool.closed = True
            return
        with nogil:
            close_pool(self.pool, True)
            take_over(self.pool, &failure)
            others = forget_failed(self.pool)
        self.named.clear()
        if others and failure.number == 0:
            failure.number = EIO  # there was no memory for more
        if failure.number:
            raise_noted(&failure, others)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        try:
            self.close()
        except OSError:
            if not exc_info or exc_info[0] is None:    # else the block's own error says more
                raise


# ---- names

cdef char *put_octets(char *at, const uint8_t *octets, Py_ssize_t count) noexcept:
    cdef Py_ssize_t number
    cdef const char *digits = "0123456789abcdef"
    for number in range(count):
        if count == 4:
            at[0] = digits[octets[number] // 100]
            at[1] = digits[octets[number] // 10 % 10]
            at[2] = digits[octets[number] % 10]
            at += 3
        else:
            at[0] = digits[octets[number] >> 4]
            at[1] = digits[octets[number] & 15]
            at += 2
        if count == 4 or number & 1:
            at[0] = c"."
            at += 1
    return at


cdef char *put_port(char *at, unsigned int port) noexcept:
    cdef int place
    for place in range(4, -1, -1):
        at[place] = c"0" + port % 10
        port //= 10
    return at + 5


def flow_name(net_flow, transport_flow):
    """tcpflow's name for what the flows' source sends: 010.000.000.001.09999-010.000.000.002.36559. TypeError for other flows than
    those of TCP over IP."""
    cdef char text[2 * (8 * 5 + 5) + 1]
    cdef char *at = text
    src, dst = net_flow.raw_src, net_flow.raw_dst
    src_port, dst_port = transport_flow.raw_src, transport_flow.raw_dst
    if type(src) is not bytes or type(dst) is not bytes or len(src) != len(dst) or len(src) not in (4, 16):
        raise TypeError(f"a file's name takes two addresses of 4 or of 16 bytes, not {src!r:.80} and {dst!r:.80}")
    for port in (src_port, dst_port):
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise TypeError(f"a file's name takes ports, 0 to 65535, not {port!r:.80}")
    at = put_port(put_octets(at, <const uint8_t *>PyBytes_AS_STRING(src), len(src)), src_port)
    at[0] = c"-"
    at = put_port(put_octets(at + 1, <const uint8_t *>PyBytes_AS_STRING(dst), len(dst)), dst_port)
    return PyUnicode_DecodeASCII(text, at - text, NULL)


cdef class FlowPaths:
    """FlowPaths(folder)\n--\n\n\
Names files in a folder as tcpflow does; a later stream of the same flows gets a suffix: c1, c2, ... Called with two flows, it gives
    the next path for them. For the `path` of many FileStreams.

    Args:
        folder: a str. It is not made.
    """

    def __init__(self, folder):
        self.prefix = os.path.join(folder, "")
        self.numbers = {}

    def __call__(self, net_flow, transport_flow):
        return self.next(net_flow, transport_flow)

    cdef object next(self, net_flow, transport_flow):
        name = flow_name(net_flow, transport_flow)
        number = self.numbers.get(name, 0)
        self.numbers[name] = number + 1
        return f"{self.prefix}{name}c{number}" if number else self.prefix + name


cdef class FileStream(_GapStream):
    """FileStream(net_flow=None, transport_flow=None, *, path, pool, overwrite=False, fill_gaps=False, context=None)\n--\n\n\
Writes a stream to a file as it comes. The file is made with the first byte, or with the first write where the pool writes behind: a
    stream without bytes leaves none.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        path: the file's path, or a callable that gives it when it is needed, or the tcpreasm.streams.FlowPaths that names it after the
            flows.
        pool: the FilePool that bounds the number of open files; many streams share one, and its owner closes it.
        overwrite: replace a file that exists. Else FileExistsError, through the assembler.
        fill_gaps: leave holes, which read as zeros, where bytes are missing, so that offsets are the stream's. Else what is there is
            joined.
        context: as for ByteCountStream.
    """

    def __cinit__(self, *args, **keywords):
        self.calls_out = True     # the path

    def __init__(self, net_flow=None, transport_flow=None, *, path, pool, overwrite=False, fill_gaps=False, context=None):
        ByteCountStream.__init__(self, net_flow, transport_flow, context=context)
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
        path = self.make_path
        if isinstance(path, FlowPaths):
            path = (<FlowPaths>path).next(self.net_flow, self.transport_flow)
        else:
            path = os.fspath(path() if callable(path) else path)
        flags = O_CREAT | (O_TRUNC if self.overwrite else O_EXCL)
        file = later_file(self.pool.pool, path, flags) if self.pool.pool.behind else opened_file(self.pool.pool, path, flags)
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
            lock_whole(self.file)
            size = self.file.offset + <int64_t>self.file.memory.used + self.hole
            unlock(&self.file.lock)
        return finish_whole(self.file, size, self.file.pool.behind)

    def reassembled(self, reassemblies):
        """Writes the next pieces. OSError where the system refuses. STOP where that is enough, else None."""
        cdef Pieces pieces = Pieces(reassemblies)
        with nogil:
            FileStream.take(self, pieces.array, pieces.count)
        return self.whether_to_stop()

    def reassembly_complete(self):
        """Closes the file."""
        with nogil:
            FileStream.finish(self)


add_native(FileStream)
