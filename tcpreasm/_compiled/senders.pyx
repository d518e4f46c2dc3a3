# cython: language_level=3
"""`Senders`: the compiled twin of `_pure/senders.py`. The contract is in senders.pxd."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from .connection cimport key_s
from .decode cimport BAD_CHECKSUM, RIGHT_CHECKSUM, SEGMENT, UNFILLED_CHECKSUM, segment_s
from .pool cimport hash_of, table_s

__all__ = ["Senders"]

cdef enum:
    FIRST_PLACES = 64
    UNDECIDED = 1
    VERIFIED = 2
    OFFLOADS = 3


cdef class Senders:
    """Notices senders whose checksums the network card fills in behind the capture."""

    def __dealloc__(self):
        free(self.places)

    cdef int judge(self, const table_s *table, const segment_s *segment, int checksum) noexcept nogil:
        cdef sender_s *sender = self._find(table, segment)
        cdef int verdict = SEGMENT if checksum == RIGHT_CHECKSUM else BAD_CHECKSUM
        if sender == NULL or sender.state == VERIFIED:
            return verdict
        if sender.state == OFFLOADS:
            return SEGMENT
        if checksum == UNFILLED_CHECKSUM and sender.wrong == sender.seen:
            sender.wrong = JUDGED_SEGMENTS
        sender.seen += 1
        sender.wrong += verdict != SEGMENT
        if sender.wrong > JUDGED_SEGMENTS // 2:
            sender.state = OFFLOADS
            self.offloading += 1
            return SEGMENT
        if sender.seen == JUDGED_SEGMENTS:
            sender.state = VERIFIED
        return verdict

    cdef sender_s *_find(self, const table_s *table, const segment_s *segment) noexcept nogil:
        cdef sender_s *place
        cdef uint32_t at
        if 2 * self.count >= self.mask and not self._grow(table):
            return NULL
        at = hash_of_sender(table, segment.src, segment.level)
        while True:
            place = &self.places[at & self.mask]
            if place.state == 0:
                break
            if place.level == segment.level and memcmp(place.address, segment.src, 16) == 0:
                return place
            at += 1
        if self.count == MAX_SENDERS:
            return NULL
        self.count += 1
        memcpy(place.address, segment.src, 16)
        place.level, place.state = segment.level, UNDECIDED
        return place

    # False: no memory.
    cdef bint _grow(self, const table_s *table) noexcept nogil:
        cdef uint32_t mask = max(<uint32_t>FIRST_PLACES, 2 * (self.mask + 1)) - 1, i, at
        cdef sender_s *places = <sender_s *>calloc(<size_t>mask + 1, sizeof(sender_s))
        if places == NULL:
            return False
        if self.places != NULL:
            for i in range(self.mask + 1):
                if self.places[i].state != 0:
                    at = hash_of_sender(table, self.places[i].address, self.places[i].level)
                    while places[at & mask].state != 0:
                        at += 1
                    places[at & mask] = self.places[i]
        free(self.places)
        self.places, self.mask = places, mask
        return True


cdef uint32_t hash_of_sender(const table_s *table, const uint8_t *address, uint8_t level) noexcept nogil:
    cdef key_s key
    memset(&key, 0, sizeof(key))
    memcpy(key.src, address, 16)
    key.level = level
    return hash_of(table, &key)
