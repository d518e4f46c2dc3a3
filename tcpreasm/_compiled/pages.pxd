"""Pages hold what arrived early: the C contract. Runs for packets that are out of order only.

A page is at the same time a node of a doubly linked list and of a search tree with random priorities over the same order (a treap:
Seidel and Aragon, "Randomized Search Trees", 1996), so that a place is found in O(log n) in any order of arrival.

A page is in one of three states:
    free    on its cache's free stack, or on the stack of returned ones (linked by next; prev is the page itself)
    used    taken; in a list, or about to be
    lent    no longer used, but its bytes are still looked at by a Reassembly that somebody keeps

Pages are taken and given back under the lock of the pool that their lists belong to, with or without the GIL. Only lent ones come back at
any moment, from any thread that holds the GIL: they go onto a stack of their own, by atomic operations.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    PAGE_SIZE = 1900              # payload bytes of a page, as in the model
    PAGE_STRIDE = 1920            # distance of two pages' bytes: whole cache lines


# The state of a PageCache, which it is a part of.
cdef struct cache_s:
    void *owner                   # the PageCache
    page_s *free                  # stack
    page_s *returned              # stack of lent pages that came back; touched by atomic operations alone
    uint64_t random               # state of the priorities' generator
    uint64_t size                 # pages that are allocated
    uint64_t used                 # pages that are taken
    uint64_t requests             # pages taken so far
    int64_t held_bytes            # payload in the taken pages
    uint32_t *chunk_out           # by chunk: its pages that are not on the free stack


cdef struct page_s:
    page_s *prev                  # list neighbours; NULL at the ends
    page_s *next
    page_s *parent                # tree; NULL at the root
    page_s *left
    page_s *right
    uint8_t *bytes                # PAGE_SIZE bytes within a numpy buffer of the cache; never moves
    cache_s *cache                # that the page belongs to (it lives while pages are used or lent)
    int64_t seen_ns               # capture time of the segment
    int64_t offset                # of the first byte in the capture file; -1: unknown
    uint32_t seq                  # sequence number of the first byte
    uint32_t length               # bytes held, 0 to PAGE_SIZE
    uint32_t missing              # bytes right behind these that the capture cut off: no use waiting for them
    uint32_t priority             # random; no child has a smaller one than its parent
    uint32_t chunk                # which of the cache's chunks it lies in


cdef struct page_list_s:          # all zero: an empty list
    page_s *first                 # lowest sequence number
    page_s *last
    page_s *root                  # of the tree
    uint32_t count


cdef class PageCache:
    cdef list chunks              # of (page headers, page bytes): numpy uint8 arrays; oldest first
    cdef list chunk_pages         # pages of each chunk
    cdef cache_s state
    cdef uint32_t next_grow       # pages that the next chunk will have
    cdef bint log

    cdef int _grow(self) except -1
    cdef int shrink_now(self) except -1
    cdef bint is_whole(self)        # every page is free, none used, none lent


# An empty page that stands in no list.
cdef page_s *take_page(cache_s *cache, int64_t seen_ns, int64_t offset) except NULL nogil


# used -> lent; the page is out of its list.
cdef void lend_page(page_s *page) noexcept nogil
# lent -> free, at any moment.
cdef void return_page(page_s *page) noexcept nogil
# used -> free: the opposite of take_page.
cdef void give_back_page(page_s *page) noexcept nogil
# Keep a copy of `length` bytes (at most PAGE_SIZE) instead of what the page held; data may lie in the page itself.
cdef void hold_bytes(page_s *page, const uint8_t *data, uint32_t length) noexcept nogil

cdef inline uint32_t page_end(page_s *page) noexcept nogil:
    return page.seq + page.length

# The last page that begins at or before seq; NULL where there is none. Looks from the end, then in the tree.
cdef page_s *find_place(page_list_s *pages, uint32_t seq) noexcept nogil
# Link the chain first ... last in between two neighbours (NULL: the end on that side).
cdef void push_between(page_list_s *pages, page_s *prev, page_s *next_, page_s *first, page_s *last) noexcept nogil
# Unlink the first or last page; the list is not empty.
cdef page_s *pop_first(page_list_s *pages) noexcept nogil
cdef page_s *pop_last(page_list_s *pages) noexcept nogil


cdef class Page:                  # a handle for callers and tests; the core works on page_s
    cdef page_s *page
    cdef PageCache owner          # kept as long as the handle
    cdef object memory            # the chunk that the page lies in: likewise

    cdef int check_used(self) except -1


cdef class PageList:              # likewise, over a list of its own
    cdef page_list_s pages
    cdef list owners              # the caches of its pages: kept as long as the list


cdef Page handle(page_s *page)
