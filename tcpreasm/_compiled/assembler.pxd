"""The conductor: the C contract. Decodes frames, finds the connection of each segment, takes in what is simply the next one."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .clock cimport clock_s
from .connection cimport key_s
from .decode cimport segment_s
from .flushing cimport Flusher
from .fragments cimport Fragments, joined_s
from .holding cimport text_s
from .pool cimport table_s
from .origin cimport origin_s
from .records cimport RecordReader, frame_s
from .senders cimport Senders


cdef enum:
    VERDICTS = 9                  # members of Verdict

cdef enum:
    GROUP = 64                    # frames that are walked through together: their connections are fetched meanwhile


cdef enum:
    SETTLED = 16                  # beside a verdict: nothing is left to find out. With SEGMENT: of a datagram that came in fragments


# What a frame was. Of what is no segment only the verdict means something, and shard 0 counts it.
#
# A fragment, and with verify_checksums="auto" any segment, is no matter of its frame alone: `settle` finds out what it leads to, in packet
# order. Only then the verdict is one of those that are counted.
cdef struct decoded_s:
    segment_s segment
    uint32_t hash
    uint8_t verdict
    uint8_t shard                 # which of several assemblers takes it in


# With no state but the table's secrets. True: some are left to settle.
cdef bint decode_frames(
    const frame_s *frames, int count, uint32_t flags, const table_s *table, decoded_s *decoded, int shards
) noexcept nogil

# By the fragments that the assembler holds and the senders that it knows. *joined: the memory that the segment lies in, where it came in
# fragments: to be freed once it was taken in; else NULL. True: a sender was noticed for its checksums, the first one.
cdef bint settle(AssemblerBase assembler, decoded_s *decoded, int64_t now_ns, int shards, joined_s **joined) noexcept nogil

# Of that.
cdef int warn_of_offloading(const decoded_s *decoded) except -1 nogil

# Capture time as it is believed with each of these frames, and the clock after them. False: it did not only go on, in small steps.
cdef bint tell_time(clock_s *clock, const frame_s *frames, int count, int64_t *now_ns) noexcept nogil


cdef class AssemblerBase(Flusher):
    cdef uint32_t flags           # decode's
    cdef bint settles             # some verdicts ask for `settle`:
    cdef bint defragments
    cdef bint judges
    cdef Fragments fragments
    cdef Senders senders
    cdef set unknown_linktypes    # that were warned of
    cdef bint has_unknown_linktype
    cdef int unknown_linktype     # the last one seen, among many frames of one kind
    # the call at hand
    cdef int64_t packets          # given so far, those of the group at hand not counted
    cdef bint busy                # a call is under way: no other may begin
    cdef int64_t base             # of the offsets in the capture at hand: bytes of those before it
    # the rest
    cdef bint closed_             # no more calls
    cdef uint64_t verdicts[VERDICTS]

    # A call begins, with the GIL and the lock; and is over.
    cdef int _enter(self) except -1
    cdef int _leave(self) except -1
    cdef int _check_open(self) except -1
    cdef int _finish(self, Py_ssize_t *closed) except -1
    cdef int _begin_batch(self, bint coalesce) except -1
    cdef void _keep_origin(self, origin_s *origin) noexcept
    cdef int _end_batch(self, object error) except -1
    cdef int _give_all(self, object error) except -1

    # Many frames. *taken and *done: how many were, also where it raises.
    cdef int _walk_records(self, RecordReader records, Py_ssize_t limit, Py_ssize_t *taken) except -1 nogil
    cdef bint _refill(self, RecordReader records) except -1
    cdef int _walk_batch(
        self, const uint8_t *data, const int64_t[::1] at, const int64_t[::1] sizes, const int64_t[::1] times,
        const int64_t[::1] on_wire, int linktype
    ) except -1 nogil
    cdef int _walk_frames(self, const frame_s *frames, int count, bint ticks, int *done) except -1 nogil
    # Those of them that `ours` numbers, in ascending order, where time only goes on, in small steps: now_ns, as tell_time says. The first
    # of `frames` is packet number packets + 1, here and below; whoever calls adds those that were done.
    cdef int _walk_plain(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, int count,
        const int *ours, int our_count, bint ticks, int *done
    ) except -1 nogil
    # Those of them that are that shard's, whatever their time.
    cdef int _walk_anyhow(
        self, const frame_s *frames, const decoded_s *decoded, int count, int shard, bint ticks, int *done
    ) except -1 nogil
    cdef int _take_group(
        self, const frame_s *frames, const decoded_s *decoded, const int64_t *now_ns, const int *ours, int count, int *done
    ) except -1 nogil
    cdef int _frame_and_tick(self, const frame_s *frame, const decoded_s *decoded, int64_t packet, bint ticks) except -1 nogil
    cdef int _decoded(self, const frame_s *frame, const decoded_s *decoded, int64_t packet) except -1 nogil
    cdef int _tell_linktype(self, int linktype) except -1 nogil
    # What is no plain segment. frame: NULL where it has no place in a capture. Returns the Verdict.
    cdef int _unusual(self, const frame_s *frame, int64_t seen_ns, const decoded_s *decoded, int64_t packet) except -1 nogil
    cdef int _next_tick(self, const int64_t *now_ns, int at, int count) noexcept nogil
    cdef void _set_clock(self, const int64_t *now_ns, int at) noexcept nogil
    cdef void _count_in_order(self, uint64_t segments, uint64_t size, uint64_t frames) noexcept nogil

    cdef int _segment(self, const key_s *key, uint32_t hash, uint32_t flags, text_s *text, bint from_frame) except -1 nogil
