"""`Shards`: one capture, taken in by several assemblers at once, a thread for each. The hot work is theirs; this hands blocks around.

Called a few times for each block (512 KiB of a file, or some thousands of frames).
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memset

from .assembler cimport AssemblerBase, decode_frames, decoded_s, settle, tell_time, warn_of_offloading
from .decode cimport BAD_CHECKSUM, FRAGMENT
from .fragments cimport joined_s
from .records cimport BLOCK_BYTES, SLACK_BYTES, Block, RecordReader, frame_s, new_block

__all__ = ["MAX_THREADS", "Shards"]

MAX_THREADS = MAX_SHARDS

cdef enum:
    BLOCKS_A_SHARD = 4
    FIRST_ROOM = 1024             # frames
    STEP = 2048                   # frames of a block that is parsed where the capture lies

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_broadcast(pthread_cond_t *condition)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o) noexcept nogil

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <time.h>

    /* As pthread_cond_wait, for a tenth of a second at the most: signals are looked at in between. */
    static void tcpreasm_wait_a_little(pthread_cond_t *condition, pthread_mutex_t *mutex)
    {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec += 1;
        }
        pthread_cond_timedwait(condition, mutex, &until);
    }
    """
    void wait_a_little "tcpreasm_wait_a_little"(pthread_cond_t *condition, pthread_mutex_t *mutex) noexcept nogil


cdef class Shards:
    """One capture for several assemblers: each segment goes to the one that the symmetric hash of its connection tells.

    Args:
        assemblers: two or more, each over a pool of its own that has no connections. Their tables get the same hash.
        records: the reader of the capture.
        coalesce: as for `AssemblerBase.assemble_batch`; a batch is a block.
        base: as for `AssemblerBase.assemble_records`.

    `run(number)` is to be called once for each assembler, each in a thread of its own, the first one in the main thread if there are
    signals to be heard. Each returns when the capture was taken in, or something failed anywhere: `error` then has the exception.
    """

    def __cinit__(self, list assemblers not None, RecordReader records not None, coalesce=False, base=0):
        cdef AssemblerBase assembler
        cdef int i
        if not 2 <= len(assemblers) <= MAX_SHARDS:
            raise ValueError(f"shards are 2 to {MAX_SHARDS}, not {len(assemblers)}")
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.changed, NULL)
        self.assemblers = assemblers
        self.count = <int>len(assemblers)
        for i in range(self.count):
            assembler = assemblers[i]
            assembler.pool_.table.secret0 = (<AssemblerBase>assemblers[0]).pool_.table.secret0
            assembler.pool_.table.secret1 = (<AssemblerBase>assemblers[0]).pool_.table.secret1
            self.borrowed[i] = <void *>assembler
        self.records = records
        self.clock = (<AssemblerBase>assemblers[0]).clock
        self.packets = (<AssemblerBase>assemblers[0]).packets
        self.coalesce = coalesce
        self.base = base
        self.at_once = records.can_read_at
        self.by_first = not records.can_read_at and not records.in_place
        self.size = BLOCKS_A_SHARD * self.count
        self.last = -1
        self.position = self.read_from = records.block.offset + <int64_t>records.block.end
        for i in range(self.size):
            self.ring[i].number = -1

    def __dealloc__(self):
        cdef int i
        for i in range(self.size):
            Py_XDECREF(<PyObject *>self.ring[i].block)
            PyMem_RawFree(self.ring[i].frames)
            PyMem_RawFree(self.ring[i].decoded)
            PyMem_RawFree(self.ring[i].now_ns)
            PyMem_RawFree(self.ring[i].order)
            free_joined(&self.ring[i])
        pthread_cond_destroy(&self.changed)
        pthread_mutex_destroy(&self.mutex)

    def begin(self):
        """Before the first run: the reader is held for all of them."""
        self.records.hold()

    def end(self):
        """After the last run."""
        self.records.release()
        self.records.over = True
        try:
            if self.failed:
                self.records.raise_read_error()
        except OSError as raised:
            self.read_error = raised
        if self.error is None:
            self.error = self.read_error

    def run(self, int shard):
        """Take in what belongs to that assembler, in this thread. Closes nothing."""
        cdef AssemblerBase assembler = self.assemblers[shard]
        assembler._begin_batch(self.coalesce)
        assembler.base = self.base
        assembler._keep_origin(self.records.origin_for(self.base))
        error = None
        try:
            with nogil:
                self._work(shard)
        except BaseException as raised:
            error = raised
        try:
            assembler._end_batch(error)
        except BaseException as raised:
            error = raised
        if error is not None:
            self.stop(error)

    def stop(self, error not None):
        """Everybody is to return soon, because of that."""
        with nogil:
            pthread_mutex_lock(&self.mutex)
        if self.error is None:
            self.error = error
        self.stopped = True
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)

    cdef int _work(self, int shard) except -1 nogil:
        cdef entry_s *mine
        cdef entry_s *claimed
        cdef int64_t next_ = 0
        while True:
            if shard == 0:
                with gil:
                    PyErr_CheckSignals()
            pthread_mutex_lock(&self.mutex)
            while True:
                mine = &self.ring[next_ % self.size]
                claimed = &self.ring[self.claimed % self.size]
                if self.stopped or 0 <= self.last <= next_:
                    pthread_mutex_unlock(&self.mutex)
                    return 0
                if mine.number == next_ and mine.ready:
                    claimed = NULL
                    break
                if claimed.number < 0 and self.last < 0 and (shard == 0 or not self.by_first):
                    claimed.number = self.claimed
                    claimed.ready = False
                    claimed.left = self.count
                    self.claimed += 1
                    break
                self._wait(shard)
            pthread_mutex_unlock(&self.mutex)
            if claimed != NULL:
                self._prepare(claimed, shard)
                continue
            self._take_in(mine, shard)
            next_ += 1
            pthread_mutex_lock(&self.mutex)
            mine.left -= 1
            if mine.left == 0:
                mine.number = -1
                pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.mutex)

    # For something to change. The mutex is held before and after, but not where a signal raises.
    cdef int _wait(self, int shard) except -1 nogil:
        if shard != 0:
            pthread_cond_wait(&self.changed, &self.mutex)
            return 0
        wait_a_little(&self.changed, &self.mutex)
        pthread_mutex_unlock(&self.mutex)
        with gil:
            PyErr_CheckSignals()
        pthread_mutex_lock(&self.mutex)
        return 0

    # From claimed to ready.
    cdef int _prepare(self, entry_s *entry, int shard) except -1 nogil:
        cdef bint short = False, goes_on
        cdef Py_ssize_t got = 0
        if self.at_once and entry.number > 0:
            got = self._read(entry)
            short = got < BLOCK_BYTES
        pthread_mutex_lock(&self.mutex)
        while self.parsed != entry.number and not self.stopped:
            self._wait(shard)
        if self.stopped:
            pthread_mutex_unlock(&self.mutex)
            return 0
        goes_on = self.last < 0
        pthread_mutex_unlock(&self.mutex)
        entry.count = 0
        free_joined(entry)
        if got < 0:
            goes_on, self.failed = False, self.failed or goes_on
        elif goes_on:
            goes_on = self._parse_at_once(entry, short) if self.at_once else self._parse_next(entry)
        entry.plain = tell_time(&self.clock, entry.frames, entry.count, entry.now_ns)
        entry.packets = self.packets
        self.packets += entry.count
        pthread_mutex_lock(&self.mutex)
        self.parsed += 1
        if not goes_on and self.last < 0:
            self.last = self.parsed
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)
        if decode_frames(
            entry.frames, entry.count, (<AssemblerBase>self.borrowed[0]).flags, &(<AssemblerBase>self.borrowed[0]).pool_.table,
            entry.decoded, self.count
        ) and (<AssemblerBase>self.borrowed[0]).settles and not self._settle(entry, shard):
            return 0
        sort_by_shard(entry, self.count)
        pthread_mutex_lock(&self.mutex)
        entry.ready = True
        pthread_cond_broadcast(&self.changed)
        pthread_mutex_unlock(&self.mutex)
        return 0

    # In order: the blocks before it are ready. False: it was stopped.
    cdef bint _settle(self, entry_s *entry, int shard) except -1 nogil:
        cdef void *assembler = self.borrowed[0]
        cdef joined_s *joined
        cdef bint stopped
        cdef int i
        pthread_mutex_lock(&self.mutex)
        while not self.stopped and not self._is_first(entry.number):
            self._wait(shard)
        stopped = self.stopped
        pthread_mutex_unlock(&self.mutex)
        if stopped:
            return False
        for i in range(entry.count):
            if entry.decoded[i].verdict == FRAGMENT or entry.decoded[i].verdict >= BAD_CHECKSUM:
                if settle(<AssemblerBase>assembler, &entry.decoded[i], entry.now_ns[i], self.count, &joined):
                    warn_of_offloading(&entry.decoded[i])
                if joined != NULL:
                    joined.next, entry.joined = entry.joined, joined
        return True

    # Among those that are not ready.
    cdef bint _is_first(self, int64_t number) noexcept nogil:
        cdef int i
        for i in range(self.size):
            if 0 <= self.ring[i].number < number and not self.ring[i].ready:
                return False
        return True

    # Bytes of a plain file: where the block's number says. Below 0: an error, to be raised when everything before it was taken in.
    cdef Py_ssize_t _read(self, entry_s *entry) except -1 nogil:
        cdef int64_t offset = self.read_from + (entry.number - 1) * BLOCK_BYTES
        cdef Py_ssize_t got
        if entry.block == NULL or Py_REFCNT(<PyObject *>entry.block) > 1 or (<Block>entry.block).capacity != SLACK_BYTES + BLOCK_BYTES:
            with gil:
                hold_block(entry, new_block())
        got = self.records.read_at((<Block>entry.block).memory + SLACK_BYTES, BLOCK_BYTES, offset)
        (<Block>entry.block).begin = SLACK_BYTES
        (<Block>entry.block).end = SLACK_BYTES + max(<Py_ssize_t>0, got)
        (<Block>entry.block).offset = offset - SLACK_BYTES
        return got

    # Frames of the entry's block, and of the record that the block before it began. False: the capture ends here.
    cdef bint _parse_at_once(self, entry_s *entry, bint short) except -1 nogil:
        cdef size_t left, end
        cdef int count
        if entry.number == 0:
            with gil:
                hold_block(entry, self.records.block)
        else:
            end = (<Block>entry.block).end
            if self.position >= (<Block>entry.block).offset + <int64_t>end:  # a big record reached over all of this block,
                (<Block>entry.block).begin = end
                (<Block>entry.block).offset = self.position - <int64_t>end
            elif self.position > (<Block>entry.block).offset + SLACK_BYTES:  # or into it
                (<Block>entry.block).begin = <size_t>(self.position - (<Block>entry.block).offset)
            if self.left_in != NULL:
                left = (<Block>self.left_in).end - (<Block>self.left_in).begin
                if (<Block>entry.block).put_before((<Block>self.left_in).data + (<Block>self.left_in).begin, left) < 0:
                    with gil:
                        raise MemoryError()
        while True:
            if entry.count == entry.room:
                self._make_room(entry)
            if entry.number == 0:
                count = self.records.parse(entry.frames + entry.count, entry.room - entry.count)
            else:
                count = self.records.parse_block(<Block>entry.block, entry.frames + entry.count, entry.room - entry.count)
            entry.count += count
            if count:
                continue
            if self.records.damage:
                break
            left = (<Block>entry.block).end - (<Block>entry.block).begin
            # Nothing left: all of it was part of a record that began before it, or of a big block that is passed over.
            if entry.number == 0 or entry.count or short or left == 0 or left >= self.records.need:
                break
            # A record larger than a block: all of it here, lest it be carried from block to block.
            if not self._read_on(entry):
                short = True
        self.position = max(self.position, (<Block>entry.block).offset + <int64_t>(<Block>entry.block).end)
        self.left_in = entry.block if (<Block>entry.block).begin < (<Block>entry.block).end else NULL
        if short or self.records.damage:
            with gil:
                self.records.finish(<Block>entry.block)
            return False
        return True

    # More of the file, behind what the block has. False at the file's end.
    cdef bint _read_on(self, entry_s *entry) except -1 nogil:
        cdef size_t end = (<Block>entry.block).end, capacity = (<Block>entry.block).capacity
        cdef Py_ssize_t got
        if end == capacity:
            # Twice as much, so that a damaged length takes no more memory than the file has bytes.
            capacity = min(2 * capacity, (<Block>entry.block).begin + self.records.need)
            if (<Block>entry.block).grow(capacity) < 0:
                with gil:
                    raise MemoryError()
        got = self.records.read_at((<Block>entry.block).memory + end, capacity - end, (<Block>entry.block).offset + <int64_t>end)
        if got < 0:
            with gil:
                self.records.raise_read_error()
        (<Block>entry.block).end = end + got
        return got == <Py_ssize_t>(capacity - end)

    # The same where the reader reads by itself.
    cdef bint _parse_next(self, entry_s *entry) except -1 nogil:
        cdef int count
        while entry.count < STEP:
            if entry.count == entry.room:
                self._make_room(entry)
            count = self.records.parse(entry.frames + entry.count, min(STEP, entry.room) - entry.count)
            entry.count += count
            if count:
                continue
            if entry.count:
                break
            with gil:
                if not self._refill(entry):
                    return False
        with gil:
            hold_block(entry, self.records.block)
        return True

    cdef bint _refill(self, entry_s *entry) except -1:
        hold_block(entry, None)
        self.records.release()
        try:
            return self.records.refill()
        except Exception as raised:
            self.read_error = raised  # to be raised when everything before it was taken in
            return False
        finally:
            self.records.hold()

    cdef int _make_room(self, entry_s *entry) except -1 nogil:
        cdef int room = max(<int>FIRST_ROOM, 2 * entry.room)
        if (
            not grow(<void **>&entry.frames, room * sizeof(frame_s))
            or not grow(<void **>&entry.decoded, room * sizeof(decoded_s))
            or not grow(<void **>&entry.now_ns, room * sizeof(int64_t))
            or not grow(<void **>&entry.order, room * sizeof(int))
        ):
            with gil:
                raise MemoryError()
        entry.room = room
        return 0

    cdef int _take_in(self, entry_s *entry, int shard) except -1 nogil:
        cdef void *assembler = self.borrowed[shard]
        cdef bint has_objects = not (<AssemblerBase>assembler).pool_.counts
        cdef int first, done = 0
        if entry.count == 0:  # behind the end there may be no block
            return 0
        if has_objects:
            with gil:
                (<AssemblerBase>assembler).packet = <object>entry.block
        (<AssemblerBase>assembler).packets = entry.packets
        try:
            if entry.plain and not (<AssemblerBase>assembler).long_way:
                first = entry.first[shard]
                (<AssemblerBase>assembler)._walk_plain(
                    entry.frames, entry.decoded, entry.now_ns, entry.count, entry.order + first, entry.first[shard + 1] - first, True, &done
                )
            else:
                (<AssemblerBase>assembler)._walk_anyhow(entry.frames, entry.decoded, entry.count, shard, True, &done)
        finally:
            (<AssemblerBase>assembler).packets = entry.packets + done
        if has_objects:
            with gil:
                give_out(<AssemblerBase>assembler)
        return 0


cdef void free_joined(entry_s *entry) noexcept nogil:
    cdef joined_s *joined = entry.joined
    while joined != NULL:
        entry.joined = joined.next
        free(joined)
        joined = entry.joined


cdef bint grow(void **memory, size_t size) noexcept nogil:
    cdef void *grown = PyMem_RawRealloc(memory[0], size)
    if grown == NULL:
        return False
    memory[0] = grown
    return True


cdef void sort_by_shard(entry_s *entry, int shards) noexcept nogil:
    cdef int place[MAX_SHARDS]
    cdef int i, shard, before = 0
    memset(place, 0, sizeof(place))
    for i in range(entry.count):
        place[entry.decoded[i].shard] += 1
    for shard in range(shards):
        entry.first[shard] = before
        before += place[shard]
        place[shard] = entry.first[shard]
    entry.first[shards] = before
    for i in range(entry.count):
        shard = entry.decoded[i].shard
        entry.order[place[shard]] = i
        place[shard] += 1


cdef int hold_block(entry_s *entry, Block block) except -1:
    cdef void *before = entry.block
    if block is not None:
        Py_INCREF(block)
        entry.block = <void *>block
    else:
        entry.block = NULL
    Py_XDECREF(<PyObject *>before)
    return 0


# The end of a batch.
cdef int give_out(AssemblerBase assembler) except -1:
    cdef bint coalesce = assembler.coalesce
    assembler.packet = None
    if assembler.gathered_count:
        assembler.holds_gil, assembler.keeps_gil, assembler.coalesce = True, True, False
        try:
            assembler._give_all(None)
        finally:
            assembler.holds_gil, assembler.keeps_gil, assembler.coalesce = False, False, coalesce
    return 0
