"""Capture files to frames: the C contract of the reader.

Lives here: pcap and pcapng, the blocks of bytes that frames lie in, the judgement where a file is damaged. Not here: opening and
decompressing (capture.source). `parse` is called once for some dozens of frames and needs no GIL; `refill` is called once a block
(512 KiB), with the GIL.

How a caller walks through a capture:

    while True:
        block = reader.block                      # a reference of its own: whatever user code does meanwhile, the frames stay good
        count = reader.parse(frames, room)        # without the GIL, if the caller holds the reader (hold)
        if count == 0:
            block = None                          # else the memory could not be used again
            if not reader.refill():
                break                             # the end, or damage: `ended`, `problem`
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .origin cimport origin_s


cdef enum:
    BLOCK_BYTES = 512 << 10     # read at once: it stays in the second-level cache until it is parsed and decoded
    DENSE_BYTES = 256           # records shorter than that on average: most of the cache lines are needed, and streaming them is faster
    UNREAD_MAX = 64             # frames that may be given back
    SLACK_BYTES = 64 << 10      # room before them, for the cut record that the last block ended with


# One captured packet. Plain data; good for as long as its block is neither refilled nor freed.
cdef struct frame_s:
    const uint8_t *data         # `length` bytes inside the block
    int64_t seen_ns             # within 2**62 of 1970
    int64_t offset              # of data[0] in the (decompressed) file
    uint32_t length             # bytes captured
    uint32_t wire_length        # bytes on the wire, >= length
    int32_t linktype            # LINKTYPE_ number
    uint32_t interface          # counted from 0 over the whole file


# Bytes at hand, and what keeps them alive. data[begin:end] are not parsed yet; begin <= end.
cdef class Block:
    cdef const uint8_t *data
    cdef size_t begin
    cdef size_t end
    cdef int64_t offset         # of data[0] in the (decompressed) file; below 0 where the slack at the file's beginning is empty
    cdef uint8_t *memory        # its own memory, == data, `capacity` bytes; NULL where data lies in the caller's
    cdef size_t capacity
    cdef object owner           # that bytes object or memoryview, or None

    # Room for `capacity` bytes in all, keeping what lies before `end`. For blocks with memory of their own.
    # -1: out of memory, nothing changed.
    cdef int grow(self, size_t capacity) noexcept nogil

    # Put `size` bytes right before data[begin] (what another block had left). Grows where the room before begin does not do: pointers into
    # the block are then stale. offset goes down by size. -1: out of memory, nothing changed.
    cdef int put_before(self, const uint8_t *data, size_t size) noexcept nogil


# An empty block of that capacity with memory of its own: begin == end == SLACK_BYTES (capacity, if that is less). MemoryError.
cdef Block new_block(size_t capacity=*)


# The reader, base of both formats. Not for two callers at once: see hold.
cdef class RecordReader:
    cdef Block block                # what the frames at hand lie in; never None
    cdef readonly int64_t packets   # frames that parse gave out
    cdef readonly int64_t offset    # of the last frame's first byte, where frames are iterated from Python; -1 before
    cdef readonly bint ended        # the end was reached, and why is known (`problem`)

    # Next frames of the block, up to `room`, in order. Fewer: the block has no more whole record, or there is damage, which refill tells.
    cdef int parse(self, frame_s *frames, int room) noexcept nogil

    # The opposite: the last `count` frames of what parse gave out were not used, and are given out again. Only before anything else.
    cdef void unread(self, const frame_s *frames, int count) noexcept nogil

    # The same on a block of the caller's; blocks of one file must come in order, each one's rest put before the next one's bytes.
    cdef int parse_block(self, Block block, frame_s *frames, int room) noexcept nogil

    # More bytes into `block`, so that parse can go on; that may still give no frame. False: the end, or damage (`ended` is set, `problem`
    # made). Frames given out before are stale then, unless somebody else holds a reference to the block: a new one takes its place.
    # Raises what the source raises, and ValueError where somebody else holds the reader.
    cdef bint refill(self) except -1

    # Who calls parse without the GIL holds the reader meanwhile (and releases it before refill, which holds it itself): iterating or
    # refilling it from elsewhere then raises ValueError, as it does for a generator that runs already.
    cdef int hold(self) except -1
    cdef void release(self) noexcept

    # Plain regular files only (can_read_at): blocks may be read in any order, by several threads, while the capture is open. What the
    # reader has at the beginning lies in `block`; from block.offset + block.end on it is up to them. The source's position stays behind.
    # Up to `size` bytes from that offset on; fewer only at the file's end. -1: an error, which raise_read_error raises.
    cdef bint can_read_at
    cdef Py_ssize_t read_at(self, uint8_t *memory, size_t size, int64_t offset) noexcept nogil
    cdef int raise_read_error(self) except -1
    # Where its bytes lie (and will still lie when all was read), with `base` added to their offsets; NULL where they do not stay anywhere.
    # Borrowed.
    cdef origin_s *origin_for(self, int64_t base)
    # Where blocks were read by read_at: the file ends with what `block` has left. Sets `ended` and makes `problem`, as refill does.
    cdef int finish(self, Block block) except -1

    # -- private
    cdef origin_s *origin           # a reference, or NULL
    cdef int64_t origin_base
    cdef frame_s again[UNREAD_MAX]  # what was given back,
    cdef int again_count
    cdef int again_at               # and what of it was given out again
    cdef object source
    cdef str thing                  # what the file is made of: "record", "block"
    cdef object fatal               # text of what ended it, or None
    cdef bytes piece                # what source.read gave, used up to piece_at
    cdef Py_ssize_t piece_at
    cdef bint in_place              # the block is the whole capture in the caller's memory; `end` moves on with what counts as read
    cdef bint held
    cdef bint over                  # nothing more will be read: the end, damage, or an error
    cdef int fd
    cdef int read_errno
    cdef int damage                 # DAMAGE_ number, set by parse; 0: none
    cdef int64_t damage_offset
    cdef uint64_t damage_value      # the number that the text names
    cdef uint64_t limit             # bytes that a record may claim
    cdef size_t need                # bytes from block.begin on that parse needs to go on
    cdef uint64_t skip              # bytes of a big unknown block still to be passed over, up to its last four
    cdef uint64_t skipped           # that block's size, 0 where there is none
    cdef int64_t skipped_offset
    cdef int64_t notes[2]           # packets left out, by NOTE_ number
    cdef int first_note             # which of them came first
    cdef bint big                   # big-endian
    cdef uint32_t header_bytes      # before a packet's bytes
    cdef size_t size_at             # where in a record its size stands,
    cdef size_t size_more           # and how many bytes more it has than that
    # Of a capture in place only:
    cdef size_t fetched             # up to where in the block what will be needed was asked for from memory,
    cdef size_t fetch_limit         # which has so many bytes, read or not;
    cdef size_t begin_before        # how far the parse was when that happened last,
    cdef int64_t packets_before     # and with how many packets

    # What looks like a record's beginning, the first one in the SEARCH_BYTES from p on; NULL: none. Only a guess, for what is asked for.
    cdef const uint8_t *find_record(self, const uint8_t *p) noexcept nogil
    cdef void let_go(self) noexcept     # of the origin
    cdef int harm(self, Block block, size_t at, int damage, uint64_t value) noexcept nogil
    cdef bint read_more(self) except -1
    cdef int make_room(self) except -1
    cdef Py_ssize_t fill(self, uint8_t *memory, size_t size) except -1
    cdef int stop(self, str text) except -1
    cdef str damage_text(self)


cdef class PcapRecords(RecordReader):
    cdef uint32_t unit              # nanoseconds per unit of the fraction
    cdef int32_t linktype
    cdef int lengths                # LENGTHS_ number: which of a record's lengths comes first


# What packets need to know of an Interface Description Block (4.2).
cdef struct interface_s:
    uint64_t fast_ticks             # below that many ticks: time = ticks * multiplier + base_ns, and no bound is near
    uint64_t multiplier
    int64_t base_ns
    int64_t offset_seconds
    uint32_t number                 # over the whole file
    uint32_t snaplen                # 0: no limit
    int32_t linktype
    uint8_t resolution              # if_tsresol as in the file


cdef class PcapngRecords(RecordReader):
    cdef interface_s *interfaces    # of this section
    cdef size_t interface_count     # in this section
    cdef size_t interface_room
    cdef uint32_t interfaces_before  # in the sections before it
    cdef int64_t last_ns            # for packets without a time

    cdef int add_interface(self, const uint8_t *body, size_t size, bint big) noexcept nogil
