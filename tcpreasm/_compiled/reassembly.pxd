"""One delivered piece: as the engine has it, and as an object. Objects are made from a freelist; their bytes stay where they are.

An object borrows its bytes from one of these owners, and keeps that one alive:
    a bytes object   in-order payload, lying in the frame as the caller handed it over (or a copy made by settle);
    a Block          in-order payload among a capture's other bytes, or a bytes object of many frames: `shared`;
    a LentPage       early payload; the page goes back to its cache when the piece dies or settles;
    nobody           an empty piece.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .pages cimport PageCache, page_s


cdef enum:
    PIECE_START = 1               # the piece comes with the SYN
    PIECE_END = 2                 # the stream ends with it
    PIECE_ACKED = 4               # peer_ack means something


cdef struct piece_s:              # one piece before anybody asked for an object; good during the call only
    const uint8_t *data           # size bytes
    page_s *page                  # the page that they lie in, or NULL: they lie in the packet at hand
    int64_t skip                  # missing bytes right before; -1 unknown; 0 none
    int64_t seen_ns               # capture time
    int64_t offset                # of data[0] in the decompressed capture file (or the batch's buffer); -1 unknown, and where size is 0
    int64_t packet                # number of the packet that brought data, or led to an empty piece; 0 none did; 0 too for a mark
    uint32_t seq                  # sequence number of data[0], or of what would come next
    uint32_t size
    uint32_t flags                # PIECE_
    uint32_t peer_ack             # the highest that the other side had acknowledged before the packet that brought data


# The other side had acknowledged that much.
cdef inline void note_acked(piece_s *piece, uint32_t peer_ack) noexcept nogil:
    piece.peer_ack = peer_ack
    piece.flags |= PIECE_ACKED


cdef class LentPage:              # what a piece owns whose bytes lie in a page: gives it back when it dies
    cdef page_s *page
    cdef PageCache cache          # that page's cache


# Without C methods, and as small as may be: it costs no table of them, and is zeroed by a few stores.
cdef class Reassembly:
    cdef const uint8_t *data        # `length` bytes; never NULL
    cdef Py_ssize_t length
    cdef int64_t seen_              # capture time, ns
    cdef int64_t offset_            # where data[0] stands in the capture; -1 unknown
    cdef int64_t packet_            # number of the packet that brought data
    cdef uint32_t seq_              # sequence number of data[0]
    cdef int views                  # memoryviews that look at data now: while there is one, data must not move
    cdef uint8_t flags              # PIECE_
    cdef uint8_t ready              # made: bytes, once there, stay
    cdef uint8_t shared             # nobody should keep the owner for this piece: other things lie in it too, or it is a page
    cdef uint32_t peer_ack_         # as in piece_s
    cdef object skip_               # an int: missing bytes right before this piece; -1 where their number is unknown
    cdef object owner               # what data lies in, or None
    cdef bytes made                 # the bytes object that .bytes gave out, or None


# Somebody keeps this piece beyond the callback: let go of a lent page or a shared owner and hold a copy instead, unless a view pins it.
cdef int settle_piece(Reassembly piece) except -1

# The piece as an object. A page in it is lent, and belongs to the object from then on: it is gone from the piece. Other bytes lie in the
# owner; None: in memory that its owner may change, so that they are copied.
cdef Reassembly piece_of(piece_s *piece, object owner, bint shared)

# The same into an object that is new or empty. The opposite, for one that nobody else has.
cdef int fill(Reassembly made, piece_s *piece, object owner, bint shared) except -1
cdef void empty(Reassembly piece) noexcept
