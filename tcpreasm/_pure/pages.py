"""Pages hold what arrived early: `Page`, the `PageCache` they come from, the `PageList` of one connection.

Runs for packets that are out of order only. In-order payload never sees a page.

Why a treap: nearly all early segments belong at the end, where the search begins, but whoever sends the packets chooses the order. The
pages of a list are at the same time the nodes of a search tree with random priorities (Seidel and Aragon, "Randomized Search Trees",
1996), so that a place is found in O(log n) in any order, while first, last, next and prev stay what the model has.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

from .._log import Log
from .sequence import add, difference

__all__ = ["PAGE_BYTES", "Page", "PageCache", "PageList"]

PAGE_BYTES = 1900
_SIZES = ((16, 96), (432, 512), (PAGE_BYTES, 1984))  # payload bytes of a page, and the memory that it takes in the compiled core
INITIAL_PAGES = 1024
MAX_CHUNK_PAGES = 1 << 22  # doubling goes no further: 8 GB at once
_STEPS_FROM_END = 4  # nearly in order is found within so many steps, and without the tree

_memory_log = Log("tcpreasm.memory")


class Page:
    """Up to `room` bytes of one segment that arrived early.

    A node of the list (prev, next) and of the search tree beside it (parent, left, right, priority).

    Attributes:
        bytes: what it holds.
        seq: sequence number of the first byte.
        missing: bytes right behind these that the capture cut off: no use waiting for them.
        offset: where the first byte stands in the capture file; -1 where that is not known.
        seen_ns: capture time of the packet that brought it, in nanoseconds since 1970.
        prev, next: the pages before and behind it in its list, or None.
    """

    __slots__ = (
        "_cache",
        "_chunk",
        "_pile",
        "bytes",
        "came",
        "left",
        "missing",
        "next",
        "offset",
        "packet",
        "parent",
        "peer_ack",
        "prev",
        "priority",
        "right",
        "seen_ns",
        "seq",
        "urgent",
    )

    def __init__(self, cache: PageCache, pile: _Pile, chunk: int) -> None:
        self._cache = cache
        self._pile = pile
        self._chunk = chunk
        self._clear(0)

    def _clear(self, seen_ns: int) -> None:
        self.seq = 0
        self.bytes = b""
        self.missing = 0  # bytes right behind these that the capture cut off: no use waiting for them
        self.seen_ns = seen_ns
        self.offset = -1  # where the first of these bytes stands in the capture file; -1 where that is not known
        # The segment that brought them, as it came: its first sequence number, and the one behind its last; where the policy asks for it.
        self.came: tuple[int, int] | None = None
        self.packet = 0  # number of the packet that brought them
        self.peer_ack: int | None = None  # the highest that the other side had acknowledged before that
        self.urgent = False  # one byte, out of band
        self.priority = 0
        self.prev: Page | None = None
        self.next: Page | None = None
        self.parent: Page | None = None
        self.left: Page | None = None
        self.right: Page | None = None

    def hold(self, data: bytes | memoryview) -> None:
        """Keep a copy of data instead of what the page held. ValueError on a free page, and for more than it has room for."""
        if self.prev is self:
            raise ValueError("this page is free")
        if len(data) > self.room:
            raise ValueError(f"a page holds {self.room} bytes, not {len(data)}")
        with self._cache._lock:
            self._cache.held_bytes += len(data) - len(self.bytes)
        self.bytes = bytes(data)

    @property
    def brought_by(self) -> tuple[int, int]:
        """The segment that these bytes came with; where an assembler with another policy brought it, nothing is known but the page."""
        return (self.seq, self.end) if self.came is None else self.came

    def __len__(self) -> int:
        return len(self.bytes)

    def __bool__(self) -> bool:
        return True

    @property
    def room(self) -> int:
        """Bytes that the page can hold."""
        return self._pile.room

    @property
    def end(self) -> int:
        """Sequence number of the byte behind the last one."""
        return add(self.seq, len(self.bytes))


class _Pile:
    """The pages of one size in a cache, used and free."""

    def __init__(self, cache: PageCache, room: int, memory: int, initial: int) -> None:
        self.room = room  # payload bytes of a page
        self.memory = memory  # that a page counts for
        self.free: list[Page] = []
        self.chunk_pages: list[int] = []  # pages of each chunk, oldest chunk first
        self.next_grow = initial
        self.size = 0
        self.used = 0
        self.requests = 0
        self._cache = cache

    def grow(self) -> int:
        """Add a chunk of pages. Returns how many."""
        count, chunk = self.next_grow, len(self.chunk_pages)
        self.free.extend([Page(self._cache, self, chunk) for _ in range(count)])
        self.chunk_pages.append(count)
        self.size += count
        self.next_grow = min(count * 2, MAX_CHUNK_PAGES)
        return count

    def shrink(self) -> int:
        """Let go of the newest chunks as `PageCache.shrink` says. Returns the number of pages."""
        before = self.size
        while len(self.chunk_pages) > 1:
            chunk = len(self.chunk_pages) - 1
            count = self.chunk_pages[chunk]
            if self.used * 4 > self.size - count or sum(page._chunk == chunk for page in self.free) != count:
                break
            self.free = [page for page in self.free if page._chunk != chunk]
            self.chunk_pages.pop()
            self.size -= count
            self.next_grow = count
        return before - self.size


class PageCache:
    """All pages of one assembler, used and free. Pages are taken and given back without allocating; when none is free, as many are
    added as there were twice at the last time, beginning with 1024. Short pieces have pages of their own, of two sizes, and there the same
    holds; they are allocated when the first one is asked for.
    """

    def __init__(self, initial: int = INITIAL_PAGES) -> None:
        if not 1 <= initial <= MAX_CHUNK_PAGES:
            raise ValueError(f"a cache begins with 1 to {MAX_CHUNK_PAGES} pages, not {initial}")
        self._lock = threading.Lock()  # another assembler of the same pool may give pages back
        self._piles = [_Pile(self, room, memory, initial if room == PAGE_BYTES else INITIAL_PAGES) for room, memory in _SIZES]
        self.size = 0  # pages that are allocated
        self.used = 0  # pages that are taken
        self.requests = 0  # pages taken so far
        self.held_bytes = 0  # payload in the taken pages
        self.buffered_bytes = 0  # memory that the taken pages count for
        self._log = _memory_log.is_on()
        self._grow(self._piles[-1])

    def _grow(self, pile: _Pile) -> None:
        count = pile.grow()
        self.size += count
        if self._log:
            _memory_log.debug("page cache: %d pages of %d bytes added, %d in all", count, pile.room, pile.size)

    def take(self, seen_ns: int, size: int = PAGE_BYTES) -> Page:
        """An empty page that stands in no list, of the smallest kind with room for so many bytes. ValueError where none has."""
        if not 0 <= size <= PAGE_BYTES:
            raise ValueError(f"a page is taken for 0 to {PAGE_BYTES} bytes, not {size}")
        with self._lock:
            pile = next(pile for pile in self._piles if size <= pile.room)
            if not pile.free:
                self._grow(pile)
            page = pile.free.pop()
            pile.used += 1
            pile.requests += 1
            self.used += 1
            self.requests += 1
            self.buffered_bytes += pile.memory
        page._clear(seen_ns)
        page.priority = random.getrandbits(32)
        if self._log and not pile.requests & 0xFFFF:
            _memory_log.debug(
                "page cache: %d requests of %d bytes, %d used, %d free", pile.requests, pile.room, pile.used, pile.size - pile.used
            )
        return page

    def give_back(self, page: Page) -> None:
        """The opposite of take. The page goes to the cache that it came from, whichever assembler was done with it."""
        if page.prev is page:
            raise ValueError("this page is free already")
        page.hold(b"")
        page.prev = page  # marks it as free
        owner, pile = page._cache, page._pile
        with owner._lock:
            pile.free.append(page)
            pile.used -= 1
            owner.used -= 1
            owner.buffered_bytes -= pile.memory

    def shrink(self) -> int:
        """Let go of the newest chunks, as long as all their pages are free and less than a quarter of what stays is used.

        Returns the number of pages let go. Never goes below the first chunk.
        """
        before = self.size
        with self._lock:
            for pile in self._piles:
                gone = pile.shrink()
                self.size -= gone
                if self._log and gone:
                    _memory_log.debug("page cache: %d pages of %d bytes let go, %d in all", gone, pile.room, pile.size)
        return before - self.size


class PageList:
    """The early pages of one connection, ordered by sequence number, no two overlapping.

    All of them lie within 2**31 bytes, so that comparing any two is exact.

    Attributes:
        first, last: the pages with the lowest and the highest sequence number, or None.
        count: pages.
        buffered_bytes: memory of the pages: headers, payload and unused room.
    """

    __slots__ = ("_root", "buffered_bytes", "count", "first", "last")

    def __init__(self) -> None:
        self.first: Page | None = None
        self.last: Page | None = None
        self.count = 0
        self.buffered_bytes = 0  # memory that the pages count for
        self._root: Page | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Page]:
        page = self.first
        while page is not None:
            yield page
            page = page.next

    def depth(self) -> int:
        """Comparisons that finding a place takes, at the most: the levels of the search tree, about 3 times the binary logarithm of the
        number of pages, in any order."""
        level, depth = [self._root] if self._root is not None else [], 0
        while level:
            level = [child for node in level for child in (node.left, node.right) if child is not None]
            depth += 1
        return depth

    def find(self, seq: int) -> tuple[Page | None, Page | None]:
        """The place of a sequence number: the last page that begins at or before it, and the page after that."""
        prev = self.last
        for _ in range(_STEPS_FROM_END):
            if prev is None or difference(prev.seq, seq) >= 0:
                return prev, self.first if prev is None else prev.next
            prev = prev.prev
        node, prev = self._root, None
        while node is not None:
            if difference(node.seq, seq) >= 0:
                prev, node = node, node.right
            else:
                node = node.left
        return prev, self.first if prev is None else prev.next

    def push_between(self, prev: Page | None, next_: Page | None, first: Page, last: Page) -> None:
        """Link a chain of pages in between two neighbours.

        Args:
            prev, next_: the neighbours; None stands for the end on that side.
            first, last: the ends of the chain.
        """
        if prev is None:
            self.first = first
        else:
            prev.next = first
        first.prev = prev
        if next_ is None:
            self.last = last
        else:
            next_.prev = last
        last.next = next_
        page: Page = first
        while True:
            self._plant(page, next_)
            self.count += 1
            self.buffered_bytes += page._pile.memory
            if page is last or page.next is None:
                break
            page = page.next

    def pop_first(self) -> Page:
        """Unlink the first page. IndexError where there is none."""
        page = self.first
        if page is None:
            raise IndexError("the page list is empty")
        self._cut(page, page.right)
        self.first = page.next
        if self.first is None:
            self.last = None
        else:
            self.first.prev = None
        page.next = None
        self.count -= 1
        self.buffered_bytes -= page._pile.memory
        return page

    def pop_last(self) -> Page:
        """Unlink the last page. IndexError where there is none."""
        page = self.last
        if page is None:
            raise IndexError("the page list is empty")
        self._cut(page, page.left)
        self.last = page.prev
        if self.last is None:
            self.first = None
        else:
            self.last.next = None
        page.prev = None
        self.count -= 1
        self.buffered_bytes -= page._pile.memory
        return page

    def remove(self, page: Page) -> None:
        """Unlink any page."""
        while page.left is not None and page.right is not None:
            above = page.left if page.left.priority < page.right.priority else page.right
            self._rotate_up(above, page)
        self._cut(page, page.right if page.left is None else page.left)
        if page.prev is None:
            self.first = page.next
        else:
            page.prev.next = page.next
        if page.next is None:
            self.last = page.prev
        else:
            page.next.prev = page.prev
        page.prev = page.next = None
        self.count -= 1
        self.buffered_bytes -= page._pile.memory

    def _plant(self, page: Page, next_: Page | None) -> None:
        """Hang a page into the tree, between its prev and next_: of two neighbours exactly one has room on the inner side."""
        prev = page.prev
        if prev is not None and prev.right is None:
            prev.right = page
            page.parent = prev
        elif next_ is not None:
            next_.left = page
            page.parent = next_
        else:
            self._root = page
            page.parent = None
        while page.parent is not None and page.priority < page.parent.priority:
            self._rotate_up(page, page.parent)

    def _rotate_up(self, page: Page, parent: Page) -> None:
        if parent.left is page:
            parent.left = page.right
            if page.right is not None:
                page.right.parent = parent
            page.right = parent
        else:
            parent.right = page.left
            if page.left is not None:
                page.left.parent = parent
            page.left = parent
        self._replace_child(parent, page)
        parent.parent = page

    def _cut(self, page: Page, child: Page | None) -> None:
        """Take a page out of the tree that has no more than the one child."""
        self._replace_child(page, child)
        page.parent = page.left = page.right = None

    def _replace_child(self, old: Page, new: Page | None) -> None:
        above = old.parent
        if above is None:
            self._root = new
        elif above.left is old:
            above.left = new
        else:
            above.right = new
        if new is not None:
            new.parent = above
