"""Pages hold what arrived early: `Page`, the `PageCache` they come from, the `PageList` of one connection.

Runs for packets that are out of order only. The functions work on page_s; the classes at the end open them to Python callers.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove

from .origin cimport bytes_in_origin, keep_origin, let_go_of_origin, origin_s
from .sequence cimport difference

from .._log import Log

__all__ = ["PAGE_BYTES", "Page", "PageCache", "PageList"]

PAGE_BYTES = PAGE_SIZE

# By kind. What is not the header of 64 bytes is the stride; a mark counts as the page that it spares.
cdef uint32_t[KINDS] ROOM = [16, 432, PAGE_SIZE, PAGE_SIZE]
cdef uint32_t[KINDS] STRIDE = [32, 448, 0, 1920]
cdef uint32_t[KINDS] UNITS = [96 // UNIT, 512 // UNIT, 1984 // UNIT, 1984 // UNIT]

cdef enum:
    INITIAL_PAGES = 1024
    MAX_CHUNK_PAGES = 1 << 22     # doubling goes no further: 8 GB at once
    STEPS_FROM_END = 4            # nearly in order is found within so many steps, and without the index
    FEW = 16                      # pages that need no index
    AHEAD = 8                     # pages are fetched so long before they are popped

_memory_log = Log("tcpreasm.memory")


# -- page cache -----------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    /* A stack that several threads push onto at any moment, and that one of them takes as a whole: no ABA. */
    static inline void tcpreasm_push(void **stack, void *item, void **next_of_item)
    {
        void *top = __atomic_load_n(stack, __ATOMIC_RELAXED);
        do
            *next_of_item = top;
        while (!__atomic_compare_exchange_n(stack, &top, item, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    }

    static inline void *tcpreasm_take_all(void **stack)
    {
        return __atomic_exchange_n(stack, (void *)0, __ATOMIC_ACQUIRE);
    }
    """
    void push "tcpreasm_push"(void **stack, void *item, void **next_of_item) noexcept nogil
    void *take_all "tcpreasm_take_all"(void **stack) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil


cdef class PageCache:
    """PageCache(initial=1024)\n--\n\n\
All pages of one assembler, used and free. Pages are taken and given back without allocating; when none is free, as many are
    added as there were twice at the last time, beginning with 1024.
    """

    def __cinit__(self, initial=INITIAL_PAGES, *, _kind=LARGE):
        if not 1 <= initial <= MAX_CHUNK_PAGES:
            raise ValueError(f"a cache begins with 1 to {MAX_CHUNK_PAGES} pages, not {initial}")
        self.memory = []
        self.next_grow = initial
        self.state.owner = <void *>self
        self.state.kind = _kind
        self.state.room, self.state.stride, self.state.units = ROOM[self.state.kind], STRIDE[self.state.kind], UNITS[self.state.kind]
        self.others = [None] * LARGE
        self.log = _memory_log.is_on()
        self._grow()

    def __dealloc__(self):
        PyMem_RawFree(self.state.chunks)

    cdef int _grow(self) except -1:
        import numpy as np        # not before there are buffers to allocate: it takes longer to load than all the rest

        cdef cache_s *state = &self.state
        cdef uint32_t count = self.next_grow
        cdef chunk_s *chunk
        cdef chunk_s *chunks = <chunk_s *>PyMem_RawRealloc(state.chunks, (state.chunk_count + 1) * sizeof(chunk_s))
        if chunks == NULL:
            raise MemoryError()
        state.chunks = chunks
        headers = np.empty(<size_t>count * sizeof(page_s) + CACHE_LINE, np.uint8)
        buffers = np.empty(<size_t>count * state.stride + CACHE_LINE, np.uint8) if state.stride else None
        chunk = &chunks[state.chunk_count]
        chunk.pages = <page_s *>aligned(headers.ctypes.data)
        chunk.bytes = NULL if buffers is None else <uint8_t *>aligned(buffers.ctypes.data)
        chunk.free, chunk.count, chunk.made, chunk.out = NULL, count, 0, 0
        self.memory.append((headers, buffers))  # no Python code runs from here on
        state.current = state.chunk_count
        state.chunk_count += 1
        state.size += count
        self.next_grow = min(count * 2, <uint32_t>MAX_CHUNK_PAGES)
        if self.log:
            _memory_log.debug("page cache: %d pages of %d bytes added, %d in all", count, state.room, state.size)
        return 0

    cdef page_counts_s count(self) noexcept:
        cdef page_counts_s counts
        cdef const cache_s *other
        cdef int kind
        counts.size, counts.used = self.state.size, self.state.used
        counts.requests, counts.held_bytes = self.state.requests, self.state.held_bytes
        counts.units = self.state.used * self.state.units
        for kind in range(LARGE):
            other = self.state.others[kind]
            if other != NULL:
                counts.size += other.size
                counts.used += other.used
                counts.requests += other.requests
                counts.held_bytes += other.held_bytes
                counts.units += other.used * other.units
        return counts

    cdef int _make_other(self, int kind) except -1:
        cdef PageCache other = PageCache(_kind=kind)
        other.state.keeps_came = self.state.keeps_came
        self.others[kind] = other
        self.state.others[kind] = &other.state
        return 0

    cdef bint is_whole(self):
        cdef uint32_t i
        cdef PageCache other
        for other in self.others:
            if other is not None and not other.is_whole():
                return False
        free_returned(&self.state)
        for i in range(self.state.chunk_count):
            if self.state.chunks[i].out != 0:
                return False
        return True

    cdef int shrink_now(self) except -1:
        cdef cache_s *state = &self.state
        cdef uint64_t before = state.size
        cdef chunk_s *chunk
        cdef PageCache other
        cdef int gone = 0
        for other in self.others:
            if other is not None:
                gone += other.shrink_now()
        if state.chunk_count == 1:
            return gone
        free_returned(state)
        while state.chunk_count > 1:
            chunk = &state.chunks[state.chunk_count - 1]
            if state.used * 4 > state.size - chunk.count or chunk.out != 0:
                break
            self.next_grow = chunk.count
            state.size -= chunk.count
            state.chunk_count -= 1
            state.current = min(state.current, state.chunk_count - 1)
            self.memory.pop()
        if self.log and state.size != before:
            _memory_log.debug("page cache: %d pages of %d bytes let go, %d in all", before - state.size, state.room, state.size)
        return gone + <int>(before - state.size)

    @property
    def size(self):
        """Pages that are allocated."""
        return self.count().size

    @property
    def used(self):
        """Pages that are taken."""
        return self.count().used

    @property
    def requests(self):
        """Pages taken so far."""
        return self.count().requests

    @property
    def held_bytes(self):
        """Payload in the taken pages."""
        return self.count().held_bytes

    @property
    def buffered_bytes(self):
        """Memory of the taken pages: headers, payload and unused room."""
        return self.count().units * UNIT

    def take(self, seen_ns, size=PAGE_BYTES):
        """An empty page that stands in no list, of the smallest kind with room for so many bytes. ValueError where none has."""
        if not 0 <= size <= PAGE_SIZE:
            raise ValueError(f"a page is taken for 0 to {PAGE_SIZE} bytes, not {size}")
        return handle(take_page_for(&self.state, seen_ns, -1, size))

    def give_back(self, Page page not None):
        """The opposite of take. The page goes to the cache that it came from, whichever assembler was done with it."""
        if page.page.prev == page.page:
            raise ValueError("this page is free already")
        give_back_page(page.page)

    def shrink(self):
        """Let go of the newest chunks, as long as all their pages are free and less than a quarter of what stays is used.

        Returns the number of pages let go. Never goes below the first chunk.
        """
        return self.shrink_now()


cdef void *aligned(uintptr_t address) noexcept:
    return <void *>((address + CACHE_LINE - 1) & ~<uintptr_t>(CACHE_LINE - 1))


# All that came back, onto the stacks of their chunks.
cdef void free_returned(cache_s *cache) noexcept nogil:
    cdef page_s *page = <page_s *>take_all(<void **>&cache.returned)
    cdef page_s *rest
    while page != NULL:
        rest = page.next
        put_back(page)
        page = rest


cdef void put_back(page_s *page) noexcept nogil:
    cdef cache_s *cache = page.cache
    cdef chunk_s *chunk = &cache.chunks[page.chunk]
    page.next = chunk.free
    chunk.free = page
    chunk.out -= 1
    cache.current = min(cache.current, page.chunk)


# The current chunk has no page: on to the next one, back to what came back, or to new ones.
cdef int next_chunk(cache_s *cache) except -1 nogil:
    if cache.current + 1 < cache.chunk_count:
        cache.current += 1
        return 0
    free_returned(cache)
    if cache.current + 1 == cache.chunk_count and cache.chunks[cache.current].free == NULL:
        with gil:
            (<PageCache>cache.owner)._grow()
    return 0


cdef page_s *take_page(cache_s *cache, int64_t seen_ns, int64_t offset) except NULL nogil:
    cdef chunk_s *chunk = &cache.chunks[cache.current]
    cdef page_s *page
    while chunk.free == NULL and chunk.made == chunk.count:
        next_chunk(cache)
        chunk = &cache.chunks[cache.current]
    if chunk.free != NULL:
        page = chunk.free
        chunk.free = page.next
        if page.next != NULL:     # what the next call takes, and where that finds the one after it
            prefetch(page.next)
            prefetch(page.next.bytes)
    else:
        page = chunk.pages + chunk.made
        page.bytes = NULL if chunk.bytes == NULL else chunk.bytes + <size_t>chunk.made * cache.stride
        page.cache = cache
        page.chunk = <uint16_t>cache.current
        chunk.made += 1
    chunk.out += 1
    page.prev = page.next = NULL
    page.seen_ns = seen_ns
    page.offset = offset
    page.seq = page.length = page.missing = page.urgent = page.has_peer_ack = 0
    cache.used += 1
    cache.requests += 1
    if not cache.requests & 0xFFFF:
        with gil:
            if (<PageCache>cache.owner).log:
                _memory_log.debug(
                    "page cache: %d requests of %d bytes, %d used, %d free", cache.requests, cache.room, cache.used, cache.size - cache.used
                )
    return page


cdef page_s *take_page_for(cache_s *cache, int64_t seen_ns, int64_t offset, uint32_t size) except NULL nogil:
    if size > ROOM[MEDIUM]:
        return take_page(cache, seen_ns, offset)
    return take_page(other_cache(cache, SMALL if size <= ROOM[SMALL] else MEDIUM), seen_ns, offset)


cdef cache_s *other_cache(cache_s *cache, int kind) except NULL nogil:
    if cache.others[kind] == NULL:
        with gil:
            (<PageCache>cache.owner)._make_other(kind)
    return cache.others[kind]


cdef void lend_page(page_s *page) noexcept nogil:
    page.cache.used -= 1
    page.cache.held_bytes -= page.length


cdef void return_page(page_s *page) noexcept nogil:
    page.prev = page  # marks it as free
    if page.cache.kind == MARKS:
        let_go_of_origin(<origin_s *>page.bytes)
    push(<void **>&page.cache.returned, page, <void **>&page.next)


cdef void give_back_page(page_s *page) noexcept nogil:
    lend_page(page)
    page.prev = page
    if page.cache.kind == MARKS:
        let_go_of_origin(<origin_s *>page.bytes)
    put_back(page)


cdef page_s *take_mark(cache_s *cache, int64_t seen_ns, origin_s *origin, int64_t offset, uint32_t length) except NULL nogil:
    cdef page_s *page = take_page(other_cache(cache, MARKS), seen_ns, offset)
    keep_origin(origin)
    page.bytes = <uint8_t *>origin
    page.length = length
    page.cache.held_bytes += length
    return page


cdef const uint8_t *bytes_held(const page_s *page, uint8_t *buffer) noexcept nogil:
    if page.cache.kind == MARKS:
        return bytes_in_origin(<const origin_s *>page.bytes, page.offset, page.length, buffer)
    return page.bytes


cdef const uint8_t *bytes_in_memory(const page_s *page) noexcept nogil:
    if page.cache.kind == MARKS and (<const origin_s *>page.bytes).owner == NULL:
        return NULL
    return bytes_held(page, NULL)


cdef void cut_page(page_s *page, uint32_t length) noexcept nogil:
    page.cache.held_bytes -= <int64_t>page.length - <int64_t>length
    page.length = length


cdef void hold_bytes(page_s *page, const uint8_t *data, uint32_t length) noexcept nogil:
    page.cache.held_bytes += <int64_t>length - <int64_t>page.length
    memmove(page.bytes, data, length)
    page.length = length


# -- page list --------------------------------------------------------------------------------------------------------------

cdef page_s *find_place(page_list_s *pages, uint32_t seq) noexcept nogil:
    cdef page_s *prev = pages.last
    cdef int steps = 0
    while prev != NULL and difference(prev.seq, seq) < 0:
        if steps == STEPS_FROM_END and pages.index != NULL:
            return find_entry(pages, seq)
        prev = prev.prev
        steps += 1
    return prev


cdef void push_between(page_list_s *pages, page_s *prev, page_s *next_, page_s *first, page_s *last) noexcept nogil:
    cdef page_s *page = first
    if prev == NULL:
        pages.first = first
    else:
        prev.next = first
    first.prev = prev
    if next_ == NULL:
        pages.last = last
    else:
        next_.prev = last
    last.next = next_
    while True:
        pages.count += 1
        pages.units += page.cache.units
        if pages.index != NULL:
            enter(pages, page)
        if page == last:
            break
        page = page.next
    if pages.index == NULL and pages.count > FEW:
        make_index(pages)


cdef page_s *pop_first(page_list_s *pages) noexcept nogil:
    cdef page_s *page = pages.first
    if pages.index != NULL:
        forget_first(pages)
    pages.first = page.next
    if pages.first == NULL:
        pages.last = NULL
    else:
        pages.first.prev = NULL
    page.next = NULL
    pages.count -= 1
    pages.units -= page.cache.units
    return page


cdef page_s *pop_last(page_list_s *pages) noexcept nogil:
    cdef page_s *page = pages.last
    if pages.index != NULL:
        forget_last(pages)
    pages.last = page.prev
    if pages.last == NULL:
        pages.first = NULL
    else:
        pages.last.next = NULL
    page.prev = NULL
    pages.count -= 1
    pages.units -= page.cache.units
    return page


cdef void remove_page(page_list_s *pages, page_s *page) noexcept nogil:
    if pages.index != NULL:
        forget(pages, page)
    if page.prev == NULL:
        pages.first = page.next
    else:
        page.prev.next = page.next
    if page.next == NULL:
        pages.last = page.prev
    else:
        page.next.prev = page.prev
    page.prev = page.next = NULL
    pages.count -= 1
    pages.units -= page.cache.units


cdef void cut_front(page_list_s *pages, page_s *page, uint32_t count) noexcept nogil:
    if pages.index != NULL:
        renumber(pages, page, page.seq + count)
    page.seq += count
    if page.offset >= 0:
        page.offset += count
    if page.cache.kind == MARKS:
        cut_page(page, page.length - count)
    else:
        hold_bytes(page, page.bytes + count, page.length - count)


# -- index ------------------------------------------------------------------------------------------------------------------
# Sequence numbers are compared by how far they lie ahead of the list's first one, which orders them as plain numbers: less than 2**31.

cdef void make_index(page_list_s *pages) noexcept nogil:
    cdef page_s *page = pages.first
    pages.index = <index_s *>calloc(1, sizeof(index_s))
    while page != NULL and pages.index != NULL:
        enter(pages, page)
        page = page.next


cdef void drop_index(page_list_s *pages) noexcept nogil:
    cdef index_s *index = pages.index
    cdef uint32_t i
    for i in range(index.count):
        free(index.leaves[i])
    free(index.leaves)
    free(index.firsts)
    free(index.flat.bytes)
    free(index)
    pages.index = NULL


# The last page that begins at or before seq, or NULL.
cdef page_s *find_entry(page_list_s *pages, uint32_t seq) noexcept nogil:
    cdef index_s *index = pages.index
    cdef uint32_t base = pages.first.seq
    cdef uint32_t ahead = seq - base
    cdef uint32_t at = 0
    cdef uint32_t size = index.count
    cdef uint32_t half
    cdef leaf_s *leaf
    if difference(base, seq) < 0:
        return NULL
    while size > 1:               # nobody can tell which way it goes: no branch
        half = size // 2
        at += half & -<uint32_t>(index.firsts[at + half] - base <= ahead)
        size -= half
    index.at_leaf = at
    leaf = index.leaves[at]
    at, size = leaf.begin, leaf.end - leaf.begin
    while size > 1:
        half = size // 2
        at += half & -<uint32_t>(leaf.seqs[at + half] - base <= ahead)
        size -= half
    index.at_entry = at
    if at + 1 < leaf.end:         # the caller looks at both neighbours
        prefetch(leaf.pages[at + 1])
    return leaf.pages[at]


# Makes a page of the list the one found last. False where it is not entered: a caller from Python has changed its number.
cdef bint find_page(page_list_s *pages, page_s *page) noexcept nogil:
    cdef index_s *index = pages.index
    cdef leaf_s *leaf
    if index.at_leaf < index.count:
        leaf = index.leaves[index.at_leaf]
        if leaf.begin <= index.at_entry < leaf.end and leaf.pages[index.at_entry] == page:
            return True
    if find_entry(pages, page.seq) == NULL:
        return False
    while index.leaves[index.at_leaf].pages[index.at_entry] != page:    # several at one place: empty ones before the one with bytes
        if index.at_entry == index.leaves[index.at_leaf].begin:
            if index.at_leaf == 0:
                return False
            index.at_leaf -= 1
            index.at_entry = index.leaves[index.at_leaf].end
        index.at_entry -= 1
    return True


# An empty leaf at that place, with its entries' place at `begin`; NULL where there is no memory.
cdef leaf_s *new_leaf(index_s *index, uint32_t at, uint32_t begin) noexcept nogil:
    cdef leaf_s *leaf
    cdef uint32_t room
    cdef void *grown
    if index.count == index.room:
        room = max(<uint32_t>8, index.room * 2)
        grown = realloc(index.leaves, room * sizeof(leaf_s *))
        if grown == NULL:
            return NULL
        index.leaves = <leaf_s **>grown
        grown = realloc(index.firsts, room * sizeof(uint32_t))
        if grown == NULL:
            return NULL
        index.firsts = <uint32_t *>grown
        index.room = room
    leaf = <leaf_s *>malloc(sizeof(leaf_s))
    if leaf == NULL:
        return NULL
    memmove(index.leaves + at + 1, index.leaves + at, (index.count - at) * sizeof(leaf_s *))
    memmove(index.firsts + at + 1, index.firsts + at, (index.count - at) * sizeof(uint32_t))
    leaf.begin = leaf.end = begin
    index.leaves[at] = leaf
    index.count += 1
    return leaf


cdef void remove_leaf(page_list_s *pages, uint32_t at) noexcept nogil:
    cdef index_s *index = pages.index
    free(index.leaves[at])
    index.count -= 1
    if index.count == 0:
        drop_index(pages)
        return
    memmove(index.leaves + at, index.leaves + at + 1, (index.count - at) * sizeof(leaf_s *))
    memmove(index.firsts + at, index.firsts + at + 1, (index.count - at) * sizeof(uint32_t))


# The upper half of a full leaf becomes a leaf of its own.
cdef leaf_s *split(index_s *index, uint32_t at) noexcept nogil:
    cdef leaf_s *upper = new_leaf(index, at + 1, 0)
    cdef leaf_s *leaf = index.leaves[at]
    if upper != NULL:
        upper.end = LEAF // 2
        leaf.end -= LEAF // 2
        memmove(upper.seqs, leaf.seqs + leaf.end, LEAF // 2 * sizeof(uint32_t))
        memmove(upper.pages, leaf.pages + leaf.end, LEAF // 2 * sizeof(page_s *))
        index.firsts[at + 1] = upper.seqs[0]
    return upper


# Enters a page that is in the list, behind its prev, which has been entered. Without memory there is no index any more.
cdef void enter(page_list_s *pages, page_s *page) noexcept nogil:
    cdef index_s *index = pages.index
    cdef leaf_s *leaf = NULL
    cdef uint32_t at = 0          # leaf
    cdef uint32_t entry           # becomes the page's
    if page.prev != NULL:
        if not find_page(pages, page.prev):
            drop_index(pages)
            return
        at = index.at_leaf
        entry = index.at_entry + 1
    elif index.count:
        entry = index.leaves[0].begin
    else:
        entry = 0
        leaf = new_leaf(index, 0, 0)
    if index.count:
        leaf = index.leaves[at]
        if leaf.end - leaf.begin == LEAF:
            if entry == LEAF and at == index.count - 1:      # in order: full leaves
                at += 1
                entry = 0
                leaf = new_leaf(index, at, 0)
            elif page.prev == NULL:
                index.firsts[0] = leaf.seqs[leaf.begin]  # that of the first leaf was not kept up, and it becomes the second one
                entry = LEAF
                leaf = new_leaf(index, 0, LEAF)
            elif entry > LEAF // 2:
                at += 1
                entry -= LEAF // 2
                leaf = split(index, at - 1)
            elif split(index, at) == NULL:
                leaf = NULL
    if leaf == NULL:
        drop_index(pages)
        return
    if leaf.begin > 0 and (entry - leaf.begin <= leaf.end - entry or leaf.end == LEAF):
        memmove(leaf.seqs + leaf.begin - 1, leaf.seqs + leaf.begin, (entry - leaf.begin) * sizeof(uint32_t))
        memmove(leaf.pages + leaf.begin - 1, leaf.pages + leaf.begin, (entry - leaf.begin) * sizeof(page_s *))
        leaf.begin -= 1
        entry -= 1
    else:
        memmove(leaf.seqs + entry + 1, leaf.seqs + entry, (leaf.end - entry) * sizeof(uint32_t))
        memmove(leaf.pages + entry + 1, leaf.pages + entry, (leaf.end - entry) * sizeof(page_s *))
        leaf.end += 1
    leaf.seqs[entry] = page.seq
    leaf.pages[entry] = page
    if entry == leaf.begin:
        index.firsts[at] = page.seq
    index.at_leaf, index.at_entry = at, entry


cdef void forget_first(page_list_s *pages) noexcept nogil:
    cdef leaf_s *leaf = pages.index.leaves[0]
    cdef flat_s *flat = &pages.index.flat
    if flat.size and difference(flat.begin + flat.size, page_end(pages.first)) >= 0:
        drop_flat(pages)
    leaf.begin += 1
    if leaf.begin + AHEAD < leaf.end:
        prefetch(leaf.pages[leaf.begin + AHEAD])
    if leaf.begin == leaf.end:
        remove_leaf(pages, 0)


cdef void forget_last(page_list_s *pages) noexcept nogil:
    cdef uint32_t at = pages.index.count - 1
    cdef leaf_s *leaf = pages.index.leaves[at]
    leaf.end -= 1
    if leaf.begin == leaf.end:
        remove_leaf(pages, at)


# Any page. It is in the list still.
cdef void forget(page_list_s *pages, page_s *page) noexcept nogil:
    cdef index_s *index = pages.index
    cdef leaf_s *leaf
    cdef uint32_t at, entry
    if not find_page(pages, page):
        drop_index(pages)
        return
    at, entry = index.at_leaf, index.at_entry
    leaf = index.leaves[at]
    memmove(leaf.seqs + entry, leaf.seqs + entry + 1, (leaf.end - entry - 1) * sizeof(uint32_t))
    memmove(leaf.pages + entry, leaf.pages + entry + 1, (leaf.end - entry - 1) * sizeof(page_s *))
    leaf.end -= 1
    if leaf.begin == leaf.end:
        remove_leaf(pages, at)
    elif entry == leaf.begin:
        index.firsts[at] = leaf.seqs[entry]


# A page's number becomes a higher one, below that of the next page.
cdef void renumber(page_list_s *pages, page_s *page, uint32_t seq) noexcept nogil:
    cdef index_s *index = pages.index
    cdef leaf_s *leaf
    if not find_page(pages, page):
        drop_index(pages)
        return
    leaf = index.leaves[index.at_leaf]
    leaf.seqs[index.at_entry] = seq
    if index.at_entry == leaf.begin:
        index.firsts[index.at_leaf] = seq
# -- flat copy --------------------------------------------------------------------------------------------------------------

cdef void flatten(page_list_s *pages, uint32_t seq, uint32_t size) noexcept nogil:
    cdef uint8_t buffer[PAGE_SIZE]
    cdef const uint8_t *held
    cdef flat_s *flat
    cdef page_s *first = find_place(pages, seq)
    cdef page_s *page = first
    cdef uint32_t end = seq + size
    cdef uint32_t at = seq
    cdef uint32_t count = 0, offset, part
    if pages.index == NULL:
        return
    flat = &pages.index.flat
    if flat.size and flat.passed == 0:
        flat.passed = 1
        return
    while difference(at, end) > 0:
        if page == NULL or difference(page.seq, at) < 0:
            return                # a hole
        count += 1
        at = page_end(page)
        page = page.next
    if <uint64_t>count * FLAT_PER_PAGE < size:
        return
    drop_flat(pages)
    flat.bytes = <uint8_t *>malloc(size)
    if flat.bytes == NULL:
        return
    at, page = seq, first
    while difference(at, end) > 0:
        offset = at - page.seq
        part = min(page.length - offset, end - at)
        held = bytes_held(page, buffer)
        if held == NULL:
            drop_flat(pages)
            return
        memcpy(flat.bytes + (at - seq), held + offset, part)
        at += part
        page = page.next
    flat.begin, flat.size = seq, size


cdef void drop_flat(page_list_s *pages) noexcept nogil:
    cdef flat_s *flat
    if pages.index != NULL:
        flat = &pages.index.flat
        free(flat.bytes)
        flat.bytes = NULL
        flat.size = flat.passed = 0


# -- for callers and tests --------------------------------------------------------------------------------------------------

cdef Page handle(page_s *page):
    if page == NULL:
        return None
    cdef Page made = Page.__new__(Page)
    made.page = page
    made.owner = <PageCache>page.cache.owner
    made.memory = made.owner.memory[page.chunk]
    return made


cdef class Page:
    """Page()\n--\n\n\
Up to `room` bytes of one segment that arrived early; made by `PageCache.take`."""

    def __init__(self):
        raise TypeError("a Page comes from PageCache.take")

    cdef int check_used(self) except -1:
        if self.page.prev == self.page:
            raise ValueError("this page is free")
        return 0

    def hold(self, data):
        """Keep a copy of data instead of what the page held. ValueError on a free page, and for more than it has room for."""
        cdef bytes copy = bytes(data)
        self.check_used()
        if len(copy) > self.page.cache.room:
            raise ValueError(f"a page holds {self.page.cache.room} bytes, not {len(copy)}")
        hold_bytes(self.page, <const uint8_t *>PyBytes_AS_STRING(copy), <uint32_t>len(copy))

    @property
    def room(self):
        """Bytes that the page can hold."""
        return self.page.cache.room

    @property
    def bytes(self):
        """What it holds."""
        return PyBytes_FromStringAndSize(<const char *>self.page.bytes, self.page.length)

    @property
    def seq(self):
        """Sequence number of the first byte."""
        return self.page.seq

    @seq.setter
    def seq(self, value):
        self.check_used()
        self.page.seq = value

    @property
    def missing(self):
        """Bytes right behind these that the capture cut off: no use waiting for them."""
        return self.page.missing

    @missing.setter
    def missing(self, value):
        self.check_used()
        self.page.missing = value

    @property
    def offset(self):
        """Where the first byte stands in the capture file; -1 where that is not known."""
        return self.page.offset

    @offset.setter
    def offset(self, value):
        self.check_used()
        self.page.offset = value

    @property
    def seen_ns(self):
        """Capture time of the packet that brought it, in nanoseconds since 1970."""
        return self.page.seen_ns

    @property
    def end(self):
        """Sequence number of the byte behind the last one."""
        return page_end(self.page)

    @property
    def prev(self):
        """The page before it in its list, or None."""
        return None if self.page.prev == self.page else handle(self.page.prev)

    @prev.setter
    def prev(self, Page other):
        self.check_used()
        self.page.prev = NULL if other is None else other.page

    @property
    def next(self):
        """The page behind it, or None."""
        return None if self.page.prev == self.page else handle(self.page.next)

    @next.setter
    def next(self, Page other):
        self.check_used()
        self.page.next = NULL if other is None else other.page

    def __len__(self):
        return self.page.length

    def __bool__(self):
        return True

    def __eq__(self, other):
        return isinstance(other, Page) and (<Page>other).page == self.page

    def __hash__(self):
        return hash(<uintptr_t>self.page)


@cython.no_gc_clear  # the owners must be there still when the pages go back
cdef class PageList:
    """PageList()\n--\n\n\
The early pages of one connection, ordered by sequence number, no two overlapping.

    All of them lie within 2**31 bytes, so that comparing any two is exact.
    """

    def __cinit__(self):
        self.owners = []

    def __dealloc__(self):
        while self.pages.count:
            give_back_page(pop_first(&self.pages))

    @property
    def first(self):
        """The page with the lowest sequence number, or None."""
        return handle(self.pages.first)

    @property
    def last(self):
        """The one with the highest, or None."""
        return handle(self.pages.last)

    @property
    def count(self):
        """Pages."""
        return self.pages.count

    @property
    def buffered_bytes(self):
        """Memory of the pages: headers, payload and unused room."""
        return self.pages.units * <int64_t>UNIT

    def __len__(self):
        return self.pages.count

    def __iter__(self):
        page = self.first
        while page is not None:
            yield page
            page = page.next

    def depth(self):
        """Comparisons that finding a place takes, at the most: about the binary logarithm of the number of pages, in any order."""
        cdef uint32_t i
        if self.pages.index == NULL:
            return self.pages.count
        largest = max([self.pages.index.leaves[i].end - self.pages.index.leaves[i].begin for i in range(self.pages.index.count)])
        return int(self.pages.index.count).bit_length() + int(largest).bit_length()

    def find(self, seq):
        """The place of a sequence number: the last page that begins at or before it, and the page after that."""
        cdef page_s *prev = find_place(&self.pages, seq)
        return handle(prev), handle(self.pages.first if prev == NULL else prev.next)

    def push_between(self, Page prev, Page next_, Page first not None, Page last not None):
        """Link a chain of pages in between two neighbours.

        Args:
            prev, next_: the neighbours; None stands for the end on that side.
            first, last: the ends of the chain.
        """
        first.check_used()
        last.check_used()
        cdef page_s *page = first.page
        while page != NULL:
            if <PageCache>page.cache.owner not in self.owners:
                self.owners.append(<PageCache>page.cache.owner)
            page = NULL if page == last.page else page.next
        push_between(&self.pages, NULL if prev is None else prev.page, NULL if next_ is None else next_.page, first.page, last.page)

    def pop_first(self):
        """Unlink the first page. IndexError where there is none."""
        if self.pages.count == 0:
            raise IndexError("the page list is empty")
        return handle(pop_first(&self.pages))

    def pop_last(self):
        """Unlink the last page. IndexError where there is none."""
        if self.pages.count == 0:
            raise IndexError("the page list is empty")
        return handle(pop_last(&self.pages))
