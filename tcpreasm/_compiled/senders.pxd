"""Whose checksums can be verified, for verify_checksums="auto": the C contract. Called once a segment, in packet order, and only then.

The rule is in `_pure/senders.py`. Nothing here needs the GIL. One thread at a time.
"""

from libc.stdint cimport uint8_t, uint32_t

from .decode cimport segment_s
from .pool cimport table_s


cdef enum:
    JUDGED_SEGMENTS = 16          # of a sender, before it is decided upon
    MAX_SENDERS = 1 << 16         # that are remembered; of others every segment is verified


cdef struct sender_s:
    uint8_t address[16]
    uint8_t level                 # as in segment_s: of what it sends in a tunnel, another card may fill in the checksums
    uint8_t state                 # 0: the place is empty; UNDECIDED, VERIFIED, OFFLOADS
    uint8_t seen                  # segments so far, as long as it is undecided,
    uint8_t wrong                 # and how many of them had a wrong checksum


cdef class Senders:
    cdef sender_s *places         # open addressing, linear probing, at most half full
    cdef uint32_t mask
    cdef uint32_t count
    cdef readonly uint32_t offloading   # senders that were noticed

    # What becomes of a segment with such a checksum (RIGHT_, UNFILLED_, BAD_CHECKSUM): SEGMENT or BAD_CHECKSUM.
    cdef int judge(self, const table_s *table, const segment_s *segment, int checksum) noexcept nogil

    # -- private. NULL: it is not remembered, and there is no room for it.
    cdef sender_s *_find(self, const table_s *table, const segment_s *segment) noexcept nogil
    cdef bint _grow(self, const table_s *table) noexcept nogil
