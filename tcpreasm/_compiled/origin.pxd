"""Where captured bytes lie outside of pages: the C contract. Touched for packets that are out of order only.

Bytes that arrived early need not be copied as long as the capture that they came from is at hand: a page can name it instead (a mark). It
may be memory that nobody changes, or a plain file, for streams that are served without their bytes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t


# Of one capture. Lives as long as somebody has a reference: the reader, the call at hand, each mark.
cdef struct origin_s:
    int64_t references            # touched by atomic operations alone
    int64_t start                 # what is added to an offset in the capture: an address, or the place in the file
    void *owner                   # the bytes object that the memory belongs to (a reference); NULL: a file
    int fd                        # its own, on that file


# NULL where some captures are kept already, or the system has no more memory or file descriptors: then bytes are copied.
cdef origin_s *origin_of_bytes(object owner, const uint8_t *first, int64_t first_offset)
cdef origin_s *origin_of_file(int fd, int64_t base) noexcept

cdef void keep_origin(origin_s *origin) noexcept nogil
cdef void let_go_of_origin(origin_s *origin) noexcept nogil

# `size` bytes that lie at that offset in the capture, in `buffer` or where they are. NULL: the file cannot be read there any more.
cdef const uint8_t *bytes_in_origin(const origin_s *origin, int64_t offset, uint32_t size, uint8_t *buffer) noexcept nogil
