"""Pages hold what arrived early: the C contract. Runs for packets that are out of order only.

Pages are nodes of a doubly linked list. A list of many pages has an index beside it, so that a place is found in O(log n) in any order of
arrival: the sequence numbers of the pages, in order, in leaves of up to 128, and the leaves' first ones in one array.

Why not a tree of the pages themselves: with 100,000 of them waiting, each step down such a tree is a cache miss (about 20, three times
what the rest of a packet costs), and so are the children of a page that is taken out. Here the two binary searches go through 5 KB that
stay in the first-level cache and 512 bytes of one leaf, and whoever takes out the first pages finds the next ones' places side by side,
early enough to fetch them. The price: moving half a leaf for a page in its middle, 700 bytes at the most; one in about 100 insertions
splits a leaf and moves the array behind it, which is noticed from millions of pages on.

A page is in one of three states:
    free    never taken; or on its chunk's stack, or on the stack of returned ones (linked by next; prev is the page itself)
    used    taken; in a list, or about to be
    lent    no longer used, but its bytes are still looked at: by a Reassembly that somebody keeps, or by a compiled stream in its call

Pages come in sizes, so that a short piece takes little room: header and bytes of a SMALL one are 96 bytes, and with its place in the index
(24 at the most) less than 128. A MEDIUM one has 512 bytes: most of what is short but not tiny (requests, ends of answers), in a quarter of
the room. Each size is a cache of its own kind behind the one that everybody knows; a page knows its own.

A mark is a page without bytes of its own: they lie in the capture that it names, at its offset. Where a limit is kept it counts as much as
a page with a copy of the bytes, so that nothing that a stream gets depends on where they lie.

Pages are taken and given back under the lock of the pool that their lists belong to, with or without the GIL. Only lent ones come back at
any moment, from any thread that holds the GIL: they go onto a stack of their own, by atomic operations.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .origin cimport origin_s


cdef enum:
    PAGE_SIZE = 1900              # payload bytes of a page, as in the model
    CACHE_LINE = 64
    UNIT = 32                     # bytes in which a page's memory is counted: header, bytes and unused room
    LEAF = 128                    # entries of a leaf
    FLAT_PER_PAGE = 16
    CAME_BYTES = 16               # of a page's room, behind its bytes: a came_s


# Kinds of pages. A cache is of one kind; the first one of an assembler is LARGE, and has the others behind it.
cdef enum:
    SMALL = 0
    MEDIUM = 1
    MARKS = 2
    LARGE = 3
    KINDS = 4


cdef struct chunk_s:              # pages that were allocated together
    page_s *pages
    uint8_t *bytes                # cache_s.stride for each; NULL: marks
    page_s *free                  # stack of those that were given back
    uint32_t count
    uint32_t made                 # those that were ever taken; the others are not touched, and so take no room
    uint32_t out                  # of these, those that are not on the stack


# The state of a PageCache, which it is a part of.
cdef struct cache_s:
    void *owner                   # the PageCache
    cache_s *others[LARGE]        # LARGE: the caches of the other kinds; NULL as long as there are none
    int kind
    uint32_t room                 # payload bytes of a page
    uint32_t stride               # distance of two pages' bytes, at least room + CAME_BYTES; 0: marks
    uint32_t units                # memory that a page counts for
    bint keeps_came               # begin and behind of each page's came_s mean something
    chunk_s *chunks               # oldest first
    uint32_t chunk_count
    uint32_t current              # the next page is taken from there; those before it have none
    page_s *returned              # stack of lent pages that came back and still count as out; touched by atomic operations alone
    uint64_t size                 # pages that are allocated
    uint64_t used                 # pages that are taken
    uint64_t requests             # pages taken so far
    int64_t held_bytes            # payload in the taken pages
    int64_t newest_packet         # the highest number of a packet that brought a page's bytes


cdef struct page_s:               # a cache line, and aligned to one
    page_s *prev                  # list neighbours; NULL at the ends
    page_s *next
    uint8_t *bytes                # cache.room bytes within a numpy buffer of the cache; never moves. In a mark: origin_s *, a reference
    cache_s *cache                # that the page belongs to, of its kind (it lives while pages are used or lent)
    int64_t seen_ns               # capture time of the segment
    int64_t offset                # of the first byte in the capture file; -1: unknown
    uint32_t seq                  # sequence number of the first byte
    uint32_t length               # bytes held, 0 to cache.room
    uint32_t missing              # bytes right behind these that the capture cut off: no use waiting for them
    uint16_t chunk                # which of the cache's chunks it lies in
    uint8_t urgent                # one byte, out of band
    uint8_t has_peer_ack          # came_s.peer_ack means something


# The segment that brought a page's bytes, as it came. Lies behind them; a mark has none.
cdef struct came_s:
    uint32_t begin                # its first sequence number, where the policy asks for it: cache_s.keeps_came
    uint32_t behind               # and the one behind its last
    uint32_t packet               # low half of its packet's number
    uint32_t peer_ack             # the highest that the other side had acknowledged before; where has_peer_ack says so

cdef inline came_s *came_of(const page_s *page) noexcept nogil:
    return <came_s *>(page.bytes + page.cache.stride - CAME_BYTES)

# The number of the packet that brought a page's bytes. No page is held for 2**32 packets, so that low halves do; a mark has none: 0.
cdef inline void note_packet(page_s *page, int64_t packet) noexcept nogil:
    came_of(page).packet = <uint32_t>packet
    page.cache.newest_packet = max(page.cache.newest_packet, packet)

cdef inline int64_t packet_of(const page_s *page) noexcept nogil:
    cdef int64_t newest = page.cache.newest_packet
    return 0 if page.cache.kind == MARKS else newest - <uint32_t>(<uint32_t>newest - came_of(page).packet)


# What the other side had acknowledged before it, if anything; of a mark that is not known.
cdef inline void note_peer_ack(page_s *page, bint has, uint32_t peer_ack) noexcept nogil:
    page.has_peer_ack = has
    came_of(page).peer_ack = peer_ack


cdef struct page_list_s:          # all zero: an empty list
    page_s *first                 # lowest sequence number
    page_s *last
    index_s *index                # NULL: few pages, or no memory for one; then a place is found by walking
    uint32_t count
    uint32_t units                # memory that these pages count for


cdef struct leaf_s:               # pages that follow each other in the list; never empty
    uint32_t begin, end           # of the entries in use
    uint32_t seqs[LEAF]
    page_s *pages[LEAF]

# What many small pages hold in one stretch, side by side: a segment that repeats it is compared at once, not page by page. Taken where
# pages have at most FLAT_PER_PAGE bytes on average, so that it adds a sixth to their memory at the most. Never revised: to be made and
# asked for only where bytes that are held stay what they are.
cdef struct flat_s:
    uint8_t *bytes
    uint32_t begin                # sequence number
    uint32_t size                 # 0: there is none
    uint32_t passed               # stretches that could have had one since this one was last of use


# The leaves in order, and the first sequence number of each; the first leaf's is not kept up and not asked for.
cdef struct index_s:
    uint32_t *firsts
    leaf_s **leaves
    uint32_t count
    uint32_t room                 # of the two arrays
    uint32_t at_leaf, at_entry    # what was found or entered last, if it is still there
    flat_s flat


cdef struct page_counts_s:        # of a cache, with those behind it
    uint64_t size
    uint64_t used
    uint64_t requests
    int64_t held_bytes
    uint64_t units                # memory that the pages used count for


cdef class PageCache:
    cdef list others              # what state.others lie in: PageCache or None
    cdef list memory              # of (page headers, page bytes), numpy uint8 arrays: what the chunks lie in
    cdef cache_s state
    cdef uint32_t next_grow       # pages that the next chunk will have
    cdef bint log

    cdef int _grow(self) except -1
    cdef int _make_other(self, int kind) except -1
    cdef page_counts_s count(self) noexcept
    cdef int shrink_now(self) except -1
    cdef bint is_whole(self)        # every page is free, none used, none lent


# An empty page that stands in no list: of the cache's own kind, and one that has room for `size` bytes (PAGE_SIZE at the most).
cdef page_s *take_page(cache_s *cache, int64_t seen_ns, int64_t offset) except NULL nogil
cdef page_s *take_page_for(cache_s *cache, int64_t seen_ns, int64_t offset, uint32_t size) except NULL nogil

# used -> lent; the page is out of its list.
cdef void lend_page(page_s *page) noexcept nogil
# lent -> free, at any moment.
cdef void return_page(page_s *page) noexcept nogil
# used -> free: the opposite of take_page.
cdef void give_back_page(page_s *page) noexcept nogil
# Shorten it; or take so many bytes off the front of one that is in the list.
cdef void cut_page(page_s *page, uint32_t length) noexcept nogil
cdef void cut_front(page_list_s *pages, page_s *page, uint32_t count) noexcept nogil
# A mark on `length` bytes at that offset.
cdef page_s *take_mark(cache_s *cache, int64_t seen_ns, origin_s *origin, int64_t offset, uint32_t length) except NULL nogil
# The bytes that a page holds, which may be read into `buffer`, PAGE_SIZE bytes. NULL: a mark on a file that cannot be read there any more.
cdef const uint8_t *bytes_held(const page_s *page, uint8_t *buffer) noexcept nogil
# The same in memory, where a mark is not on a file; there it is NULL.
cdef const uint8_t *bytes_in_memory(const page_s *page) noexcept nogil
# Keep a copy of `length` bytes (at most the page's room) instead of what the page held; data may lie in the page itself.
cdef void hold_bytes(page_s *page, const uint8_t *data, uint32_t length) noexcept nogil

# Adds what a cache has in use, with those behind it: pages, and the memory that they count for.
cdef inline void add_used(const cache_s *cache, uint64_t *pages, uint64_t *units) noexcept nogil:
    cdef int kind
    cdef const cache_s *one
    for kind in range(KINDS):
        one = cache if kind == LARGE else cache.others[kind]
        if one != NULL:
            pages[0] += one.used
            units[0] += one.used * one.units

cdef inline uint32_t page_end(page_s *page) noexcept nogil:
    return page.seq + page.length

# The last page that begins at or before seq; NULL where there is none. Looks from the end, then in the index.
cdef page_s *find_place(page_list_s *pages, uint32_t seq) noexcept nogil
# Link the chain first ... last in between two neighbours (NULL: the end on that side).
cdef void push_between(page_list_s *pages, page_s *prev, page_s *next_, page_s *first, page_s *last) noexcept nogil
# Make a flat copy of that stretch if all of it is held, in many pages; and if there is one of another stretch, only the second time.
cdef void flatten(page_list_s *pages, uint32_t seq, uint32_t size) noexcept nogil
# It is not asked for any more.
cdef void drop_flat(page_list_s *pages) noexcept nogil
# Unlink the first or last page; the list is not empty.
cdef page_s *pop_first(page_list_s *pages) noexcept nogil
cdef page_s *pop_last(page_list_s *pages) noexcept nogil
# Unlink any page of the list.
cdef void remove_page(page_list_s *pages, page_s *page) noexcept nogil


cdef class Page:                  # a handle for callers and tests; the core works on page_s
    cdef page_s *page
    cdef PageCache owner          # kept as long as the handle
    cdef object memory            # the chunk that the page lies in: likewise

    cdef int check_used(self) except -1


cdef class PageList:              # likewise, over a list of its own
    cdef page_list_s pages
    cdef list owners              # the caches of its pages: kept as long as the list


cdef Page handle(page_s *page)
