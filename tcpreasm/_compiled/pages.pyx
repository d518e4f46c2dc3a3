"""Pages hold what arrived early: `Page`, the `PageCache` they come from, the `PageList` of one connection.

Runs for packets that are out of order only. The functions work on page_s; the classes at the end open them to Python callers.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove

from .sequence cimport difference

from .._log import Log

__all__ = ["PAGE_BYTES", "Page", "PageCache", "PageList"]

PAGE_BYTES = PAGE_SIZE
cdef enum:
    INITIAL_PAGES = 1024
    MAX_CHUNK_PAGES = 1 << 22     # doubling goes no further: 8 GB at once
    STEPS_FROM_END = 4            # nearly in order is found within so many steps, and without the tree

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


cdef class PageCache:
    """All pages of one assembler, used and free. Pages are taken and given back without allocating; when none is free, as many are
    added as there were twice at the last time, beginning with 1024.
    """

    def __cinit__(self, initial=INITIAL_PAGES):
        if not 1 <= initial <= MAX_CHUNK_PAGES:
            raise ValueError(f"a cache begins with 1 to {MAX_CHUNK_PAGES} pages, not {initial}")
        self.chunks = []
        self.chunk_pages = []
        self.next_grow = initial
        self.state.owner = <void *>self
        self.state.random = int.from_bytes(os.urandom(8), "little") | 1
        self.log = _memory_log.is_on()
        self._grow()

    def __dealloc__(self):
        PyMem_RawFree(self.state.chunk_out)

    cdef int _grow(self) except -1:
        import numpy as np        # not before there are buffers to allocate: it takes longer to load than all the rest

        cdef uint32_t count = self.next_grow, i
        cdef size_t chunks = len(self.chunks) + 1
        cdef uint32_t *chunk_out = <uint32_t *>PyMem_RawRealloc(self.state.chunk_out, chunks * sizeof(uint32_t))
        if chunk_out == NULL:
            raise MemoryError()
        self.state.chunk_out = chunk_out
        chunk_out[chunks - 1] = 0
        headers = np.empty(<size_t>count * sizeof(page_s), np.uint8)
        buffers = np.empty(<size_t>count * PAGE_STRIDE, np.uint8)
        cdef page_s *page = <page_s *><uintptr_t>headers.ctypes.data
        cdef uint8_t *data = <uint8_t *><uintptr_t>buffers.ctypes.data
        for i in range(count):
            page.bytes = data + <size_t>i * PAGE_STRIDE
            page.cache = &self.state
            page.chunk = <uint32_t>len(self.chunks)
            page.prev = page
            page.next = self.state.free
            self.state.free = page
            page += 1
        self.chunks.append((headers, buffers))
        self.chunk_pages.append(count)
        self.state.size += count
        self.next_grow = min(count * 2, <uint32_t>MAX_CHUNK_PAGES)
        if self.log:
            _memory_log.debug("page cache: %d pages added, %d in all", count, self.state.size)
        return 0

    cdef bint is_whole(self):
        cdef size_t chunk
        collect_returned(&self.state)
        for chunk in range(<size_t>len(self.chunks)):
            if self.state.chunk_out[chunk] != 0:
                return False
        return True

    cdef int shrink_now(self) except -1:
        cdef cache_s *state = &self.state
        cdef uint64_t before = state.size
        cdef uint32_t chunk
        if len(self.chunk_pages) == 1:
            return 0
        collect_returned(state)
        while len(self.chunk_pages) > 1:
            chunk = <uint32_t>(len(self.chunk_pages) - 1)
            count = self.chunk_pages[chunk]
            if state.used * 4 > state.size - count or state.chunk_out[chunk] != 0:
                break
            state.free = without_chunk(state.free, chunk)
            self.chunk_pages.pop()
            self.chunks.pop()
            state.size -= count
            self.next_grow = count
        if self.log and state.size != before:
            _memory_log.debug("page cache: %d pages let go, %d in all", before - state.size, state.size)
        return <int>(before - state.size)

    @property
    def size(self):
        """Pages that are allocated."""
        return self.state.size

    @property
    def used(self):
        """Pages that are taken."""
        return self.state.used

    @property
    def requests(self):
        """Pages taken so far."""
        return self.state.requests

    @property
    def held_bytes(self):
        """Payload in the taken pages."""
        return self.state.held_bytes

    def take(self, seen_ns):
        """An empty page that stands in no list."""
        return handle(take_page(&self.state, seen_ns, -1))

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


cdef page_s *without_chunk(page_s *page, uint32_t chunk) noexcept:
    cdef page_s *first = NULL
    cdef page_s **link = &first
    while page != NULL:
        if page.chunk != chunk:
            link[0] = page
            link = &page.next
        page = page.next
    link[0] = NULL
    return first


# Behind those that are free already.
cdef void collect_returned(cache_s *cache) noexcept nogil:
    cdef page_s *first = <page_s *>take_all(<void **>&cache.returned)
    cdef page_s *last = first
    if first != NULL:
        cache.chunk_out[last.chunk] -= 1
        while last.next != NULL:
            last = last.next
            cache.chunk_out[last.chunk] -= 1
        last.next = cache.free
        cache.free = first


cdef page_s *take_page(cache_s *cache, int64_t seen_ns, int64_t offset) except NULL nogil:
    cdef page_s *page
    if cache.free == NULL:
        collect_returned(cache)
        if cache.free == NULL:
            with gil:
                (<PageCache>cache.owner)._grow()
    page = cache.free
    cache.free = page.next
    cache.chunk_out[page.chunk] += 1
    page.prev = page.next = page.parent = page.left = page.right = NULL
    page.seen_ns = seen_ns
    page.offset = offset
    page.seq = page.length = page.missing = 0
    cache.random ^= cache.random << 13
    cache.random ^= cache.random >> 7
    cache.random ^= cache.random << 17
    page.priority = <uint32_t>(cache.random >> 32)
    cache.used += 1
    cache.requests += 1
    if not cache.requests & 0xFFFF:
        with gil:
            if (<PageCache>cache.owner).log:
                _memory_log.debug("page cache: %d requests, %d used, %d free", cache.requests, cache.used, cache.size - cache.used)
    return page


cdef void lend_page(page_s *page) noexcept nogil:
    page.cache.used -= 1
    page.cache.held_bytes -= page.length


cdef void return_page(page_s *page) noexcept nogil:
    page.prev = page  # marks it as free
    push(<void **>&page.cache.returned, page, <void **>&page.next)


cdef void give_back_page(page_s *page) noexcept nogil:
    lend_page(page)
    page.prev = page
    page.next = page.cache.free
    page.cache.free = page
    page.cache.chunk_out[page.chunk] -= 1


cdef void hold_bytes(page_s *page, const uint8_t *data, uint32_t length) noexcept nogil:
    page.cache.held_bytes += <int64_t>length - <int64_t>page.length
    memmove(page.bytes, data, length)
    page.length = length


# -- page list --------------------------------------------------------------------------------------------------------------

cdef page_s *find_place(page_list_s *pages, uint32_t seq) noexcept nogil:
    cdef page_s *prev = pages.last
    cdef page_s *node
    cdef int _step
    for _step in range(STEPS_FROM_END):
        if prev == NULL or difference(prev.seq, seq) >= 0:
            return prev
        prev = prev.prev
    node, prev = pages.root, NULL
    while node != NULL:
        if difference(node.seq, seq) >= 0:
            prev, node = node, node.right
        else:
            node = node.left
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
        plant(pages, page, next_)
        pages.count += 1
        if page == last:
            break
        page = page.next


cdef page_s *pop_first(page_list_s *pages) noexcept nogil:
    cdef page_s *page = pages.first
    cut(pages, page, page.right)
    pages.first = page.next
    if pages.first == NULL:
        pages.last = NULL
    else:
        pages.first.prev = NULL
    page.next = NULL
    pages.count -= 1
    return page


cdef page_s *pop_last(page_list_s *pages) noexcept nogil:
    cdef page_s *page = pages.last
    cut(pages, page, page.left)
    pages.last = page.prev
    if pages.last == NULL:
        pages.first = NULL
    else:
        pages.last.next = NULL
    page.prev = NULL
    pages.count -= 1
    return page


# Hang a page into the tree, between its prev and next_: of two neighbours exactly one has room on the inner side.
cdef void plant(page_list_s *pages, page_s *page, page_s *next_) noexcept nogil:
    if page.prev != NULL and page.prev.right == NULL:
        page.prev.right = page
        page.parent = page.prev
    elif next_ != NULL:
        next_.left = page
        page.parent = next_
    else:
        pages.root = page
        page.parent = NULL
    while page.parent != NULL and page.priority < page.parent.priority:
        rotate_up(pages, page, page.parent)


cdef void rotate_up(page_list_s *pages, page_s *page, page_s *parent) noexcept nogil:
    if parent.left == page:
        parent.left = page.right
        if page.right != NULL:
            page.right.parent = parent
        page.right = parent
    else:
        parent.right = page.left
        if page.left != NULL:
            page.left.parent = parent
        page.left = parent
    replace_child(pages, parent, page)
    parent.parent = page


# Take the first or last page out of the tree; it has no more than the one child.
cdef void cut(page_list_s *pages, page_s *page, page_s *child) noexcept nogil:
    replace_child(pages, page, child)
    page.parent = page.left = page.right = NULL


cdef void replace_child(page_list_s *pages, page_s *old, page_s *new) noexcept nogil:
    cdef page_s *above = old.parent
    if above == NULL:
        pages.root = new
    elif above.left == old:
        above.left = new
    else:
        above.right = new
    if new != NULL:
        new.parent = above


# -- for callers and tests --------------------------------------------------------------------------------------------------

cdef Page handle(page_s *page):
    if page == NULL:
        return None
    cdef Page made = Page.__new__(Page)
    made.page = page
    made.owner = <PageCache>page.cache.owner
    made.memory = made.owner.chunks[page.chunk]
    return made


cdef class Page:
    """Up to PAGE_BYTES bytes of one segment that arrived early; made by `PageCache.take`."""

    def __init__(self):
        raise TypeError("a Page comes from PageCache.take")

    cdef int check_used(self) except -1:
        if self.page.prev == self.page:
            raise ValueError("this page is free")
        return 0

    def hold(self, data):
        """Keep a copy of data instead of what the page held. ValueError on a free page, and for more than PAGE_BYTES."""
        cdef bytes copy = bytes(data)
        self.check_used()
        if len(copy) > PAGE_SIZE:
            raise ValueError(f"a page holds {PAGE_SIZE} bytes, not {len(copy)}")
        hold_bytes(self.page, <const uint8_t *>PyBytes_AS_STRING(copy), <uint32_t>len(copy))

    @property
    def bytes(self):
        return PyBytes_FromStringAndSize(<const char *>self.page.bytes, self.page.length)

    @property
    def seq(self):
        return self.page.seq

    @seq.setter
    def seq(self, value):
        self.check_used()
        self.page.seq = value

    @property
    def missing(self):
        return self.page.missing

    @missing.setter
    def missing(self, value):
        self.check_used()
        self.page.missing = value

    @property
    def offset(self):
        return self.page.offset

    @offset.setter
    def offset(self, value):
        self.check_used()
        self.page.offset = value

    @property
    def seen_ns(self):
        return self.page.seen_ns

    @property
    def end(self):
        """Sequence number of the byte behind the last one."""
        return page_end(self.page)

    @property
    def prev(self):
        return None if self.page.prev == self.page else handle(self.page.prev)

    @prev.setter
    def prev(self, Page other):
        self.check_used()
        self.page.prev = NULL if other is None else other.page

    @property
    def next(self):
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
    """The early pages of one connection, ordered by sequence number, no two overlapping.

    All of them lie within 2**31 bytes, so that comparing any two is exact.
    """

    def __cinit__(self):
        self.owners = []

    def __dealloc__(self):
        while self.pages.count:
            give_back_page(pop_first(&self.pages))

    @property
    def first(self):
        return handle(self.pages.first)

    @property
    def last(self):
        return handle(self.pages.last)

    @property
    def count(self):
        return self.pages.count

    def __len__(self):
        return self.pages.count

    def __iter__(self):
        page = self.first
        while page is not None:
            yield page
            page = page.next

    def depth(self):
        """Levels of the search tree: about 3 times the binary logarithm of the number of pages, at the most, in any order."""
        level, depth = [], 0
        if self.pages.root != NULL:
            level.append(<uintptr_t>self.pages.root)
        while level:
            below = []
            for node in level:
                for child in (<uintptr_t>(<page_s *><uintptr_t>node).left, <uintptr_t>(<page_s *><uintptr_t>node).right):
                    if child:
                        below.append(child)
            level = below
            depth += 1
        return depth

    def find(self, seq):
        """The place of a sequence number: the last page that begins at or before it, and the page after that."""
        cdef page_s *prev = find_place(&self.pages, seq)
        return handle(prev), handle(self.pages.first if prev == NULL else prev.next)

    def push_between(self, Page prev, Page next_, Page first not None, Page last not None):
        """Link the chain first ... last in between two neighbours; None stands for the end on that side."""
        first.check_used()
        last.check_used()
        if first.owner not in self.owners:
            self.owners.append(first.owner)
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
