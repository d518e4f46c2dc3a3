"""Pages, the cache that they come from, and the list that keeps them in order: each by itself, without an assembler."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

Core = Callable[[str], ModuleType]
FIRST_CHUNK = 1024


def page_at(cache: Any, seq: int, data: bytes | memoryview = b"x", seen_ns: int = 0) -> Any:
    page = cache.take(seen_ns)
    page.seq = seq % 2**32
    page.hold(data)
    return page


def insert(pages: Any, *chain: Any) -> None:
    """Where `find` says, the pages linked to each other first."""
    for one, other in itertools.pairwise(chain):
        one.next, other.prev = other, one
    prev, next_ = pages.find(chain[0].seq)
    pages.push_between(prev, next_, chain[0], chain[-1])


def seqs(pages: Any) -> list[int]:
    """The list's sequence numbers; both directions, both ends and the count must tell the same."""
    forward = [page.seq for page in pages]
    backward = []
    page = pages.last
    while page is not None:
        backward.append(page.seq)
        page = page.prev
    assert forward == backward[::-1]
    assert pages.count == len(pages) == len(forward)
    assert (pages.first is None, pages.last is None) == (not forward, not forward)
    if forward:
        assert (pages.first.seq, pages.last.seq) == (forward[0], forward[-1])
        assert pages.first.prev is None
        assert pages.last.next is None
    return forward


# -- Page ---------------------------------------------------------------------------------------------------------------


def test_a_page_taken_is_empty(tcpreasm: ModuleType) -> None:
    page = tcpreasm.PageCache().take(17)
    assert (page.seq, page.bytes, page.missing, page.seen_ns, page.prev, page.next, len(page), page.end) == (
        0,
        b"",
        0,
        17,
        None,
        None,
        0,
        0,
    )
    assert bool(page) or len(page) == 0


def test_a_page_holds_a_copy(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache()
    data = bytearray(b"abc")
    page = page_at(cache, 2**32 - 1, memoryview(data))
    data[:] = b"xyz"
    assert (page.bytes, len(page), page.end, cache.held_bytes) == (b"abc", 3, 2, 3)
    page.hold(b"d" * tcpreasm.PAGE_BYTES)
    assert (page.bytes, page.end, cache.held_bytes) == (b"d" * 1900, 1899, 1900)
    page.hold(page.bytes[5:9])
    assert (page.bytes, cache.held_bytes) == (b"dddd", 4)


def test_a_page_has_1900_bytes(tcpreasm: ModuleType) -> None:
    assert tcpreasm.PAGE_BYTES == 1900


@pytest.mark.parametrize(
    ("size", "room", "memory"),
    [(0, 16, 96), (1, 16, 96), (16, 16, 96), (17, 432, 512), (432, 432, 512), (433, 1900, 1984), (1900, 1900, 1984)],
)
def test_a_page_is_of_the_smallest_kind_that_fits(tcpreasm: ModuleType, size: int, room: int, memory: int) -> None:
    cache = tcpreasm.PageCache()
    page = cache.take(5, size)
    assert (page.room, page.seen_ns, cache.used, cache.buffered_bytes) == (room, 5, 1, memory)
    page.hold(b"x" * room)
    assert page.bytes == b"x" * room
    with pytest.raises(ValueError, match=f"a page holds {room} bytes, not {room + 1}"):
        page.hold(bytes(room + 1))
    assert (page.bytes, cache.held_bytes) == (b"x" * room, room)
    cache.give_back(page)
    assert (cache.used, cache.held_bytes, cache.buffered_bytes) == (0, 0, 0)
    assert cache.take(0, size) == page
    assert cache.take(0).room == 1900


@pytest.mark.parametrize("size", [-1, 1901, 2**40])
def test_a_page_for_more_than_a_page_holds(tcpreasm: ModuleType, size: int) -> None:
    cache = tcpreasm.PageCache()
    with pytest.raises(ValueError, match=f"a page is taken for 0 to 1900 bytes, not {size}"):
        cache.take(0, size)
    assert (cache.used, cache.size) == (0, FIRST_CHUNK)


def test_nothing_is_left_of_a_page_s_last_use(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache()
    pages = tcpreasm.PageList()
    chain = [page_at(cache, seq, b"old", 5) for seq in (1, 10, 20)]
    chain[1].missing = 7
    insert(pages, *chain)
    cache.give_back(pages.pop_first())
    used = pages.pop_first()
    cache.give_back(used)
    again = cache.take(6)
    assert again == used
    assert (again.seq, again.bytes, again.missing, again.seen_ns, again.prev, again.next, len(again)) == (0, b"", 0, 6, None, None, 0)
    assert seqs(pages) == [20]


# -- PageCache ----------------------------------------------------------------------------------------------------------


def test_a_cache_begins_with_1024_pages(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache()
    assert (cache.size, cache.used, cache.requests, cache.held_bytes) == (FIRST_CHUNK, 0, 0, 0)


def test_a_cache_doubles_what_it_adds(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache()
    sizes = []
    for _ in range(1024 + 2048 + 4096 + 1):
        cache.take(0)
        if cache.size not in sizes:
            sizes.append(cache.size)
    assert sizes == [1024, 1024 + 2048, 1024 + 2048 + 4096, 1024 + 2048 + 4096 + 8192]
    assert cache.used == cache.requests == 7169


@pytest.mark.parametrize("initial", [1, 2, 3, 100])
def test_a_cache_begins_with_what_it_is_told(tcpreasm: ModuleType, initial: int) -> None:
    cache = tcpreasm.PageCache(initial)
    assert cache.size == initial
    for _ in range(initial + 1):
        cache.take(0)
    assert cache.size == 3 * initial


@pytest.mark.parametrize("initial", [0, -1, 2**22 + 1])
def test_a_cache_of_no_pages(tcpreasm: ModuleType, initial: int) -> None:
    with pytest.raises(ValueError, match=f"begins with 1 to 4194304 pages, not {initial}"):
        tcpreasm.PageCache(initial)


def test_the_page_given_back_last_is_taken_first(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(4)
    a, b, c, d = (cache.take(0) for _ in range(4))
    assert len({a, b, c, d}) == 4
    for page in (b, d, a):
        cache.give_back(page)
    assert [cache.take(0) for _ in range(3)] == [a, d, b]
    assert (cache.size, cache.used, cache.requests) == (4, 4, 7)
    assert c not in (a, b, d)


def test_taking_and_giving_back_allocates_nothing(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache()
    taken = [page_at(cache, 1) for _ in range(FIRST_CHUNK)]
    everything = set(taken)
    for round_ in range(20):
        random.Random(round_).shuffle(taken)
        for page in taken:
            cache.give_back(page)
        assert (cache.used, cache.held_bytes) == (0, 0)
        taken = [page_at(cache, 1) for _ in range(FIRST_CHUNK)]
        assert set(taken) == everything
    assert (cache.size, cache.used, cache.requests, cache.held_bytes) == (1024, 1024, 21 * 1024, 1024)


def test_bytes_of_two_pages_never_touch(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(3)
    pages = [page_at(cache, 0, bytes([number]) * 1900) for number in range(9)]
    for number, page in enumerate(pages):
        assert page.bytes == bytes([number]) * 1900


def test_a_cache_shrinks_when_it_is_idle(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(100)
    taken = [cache.take(0) for _ in range(700)]  # 100 + 200 + 400
    assert (cache.size, cache.shrink(), cache.size) == (700, 0, 700)
    for page in taken[1:]:
        cache.give_back(page)
    kept = taken[0]
    kept.hold(b"kept")
    assert cache.shrink() in (0, 400, 600)  # whichever chunk the kept page lies in stays
    assert kept.bytes == b"kept"
    cache.give_back(kept)
    cache.shrink()
    assert (cache.size, cache.used, cache.shrink()) == (100, 0, 0)  # never below the first chunk
    again = [page_at(cache, 0, bytes([number % 251]) * 1900) for number in range(700)]
    assert cache.size == 700  # and it grows again as it grew before
    assert [page.bytes[:1] for page in again] == [bytes([number % 251]) for number in range(700)]


@pytest.mark.parametrize("size", [1, 100])
def test_pages_of_every_kind_are_let_go(tcpreasm: ModuleType, size: int) -> None:
    """Each kind has chunks of its own; a page used of one keeps no chunk of another."""
    cache = tcpreasm.PageCache(10)
    kept = cache.take(0)
    taken = [cache.take(0, size) for _ in range(1024 + 2048 + 1)]
    assert (cache.size, cache.used, cache.shrink()) == (10 + 1024 + 2048 + 4096, 3074, 0)
    for number, page in enumerate(taken):
        page.hold(number.to_bytes(2, "big")[-size:])
    assert [page.bytes for page in taken] == [number.to_bytes(2, "big")[-size:] for number in range(3073)]
    for page in taken:
        cache.give_back(page)
    assert (cache.shrink(), cache.size, cache.used, cache.buffered_bytes) == (2048 + 4096, 10 + 1024, 1, 1984)
    cache.give_back(kept)


def test_a_chunk_goes_only_when_all_its_pages_are_free(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(10)
    first = [cache.take(0) for _ in range(10)]
    last = [cache.take(0) for _ in range(20)]
    for page in first + last[1:]:
        cache.give_back(page)
    assert (cache.shrink(), cache.size) == (0, 30)
    cache.give_back(last[0])
    assert (cache.shrink(), cache.size) == (20, 10)


def test_a_chunk_stays_while_a_quarter_of_the_others_is_used(tcpreasm: ModuleType) -> None:
    cache = tcpreasm.PageCache(100)
    first = [cache.take(0) for _ in range(100)]
    last = [cache.take(0) for _ in range(200)]
    for page in last + first[26:]:
        cache.give_back(page)
    assert (cache.used, cache.shrink(), cache.size) == (26, 0, 300)
    cache.give_back(first[25])
    assert (cache.used, cache.shrink(), cache.size) == (25, 200, 100)


@given(st.lists(st.tuples(st.sampled_from(["take", "give_back", "shrink"]), st.integers(0, 1 << 16)), max_size=400))
@settings(deadline=None)
def test_counters_of_a_cache(tcpreasm: ModuleType, steps: list[tuple[str, int]]) -> None:
    cache = tcpreasm.PageCache(2)
    taken: list[tuple[Any, bytes]] = []
    requests = 0
    for what, pick in steps:
        if what == "take":
            data = pick.to_bytes(3, "big") * (pick % 600)
            room = len(data) if pick % 2 else 1900
            page = cache.take(0, room)
            page.hold(data)
            taken.append((page, data))
            requests += 1
        elif what == "give_back" and taken:
            cache.give_back(taken.pop(pick % len(taken))[0])
        elif what == "shrink":
            size = cache.size
            assert cache.shrink() == size - cache.size
        assert (cache.used, cache.requests) == (len(taken), requests)
        assert cache.held_bytes == sum(len(data) for _, data in taken)
        assert cache.buffered_bytes == sum({16: 96, 432: 512, 1900: 1984}[page.room] for page, _ in taken)
        assert cache.used <= cache.size
        assert cache.size % 1024 in [2**n * 2 - 2 for n in range(1, 10)]
    assert [page.bytes for page, _ in taken] == [data for _, data in taken]
    assert len({page for page, _ in taken}) == len(taken)


def test_a_page_goes_back_to_where_it_came_from(tcpreasm: ModuleType) -> None:
    mine, yours = tcpreasm.PageCache(4), tcpreasm.PageCache(4)
    page = page_at(mine, 1, b"abc")
    yours.give_back(page)
    assert (mine.used, mine.held_bytes, yours.used, yours.held_bytes) == (0, 0, 0, 0)
    assert mine.take(0) == page


# -- PageList -----------------------------------------------------------------------------------------------------------


def test_an_empty_list(tcpreasm: ModuleType) -> None:
    pages = tcpreasm.PageList()
    assert seqs(pages) == []
    assert pages.find(5) == (None, None)
    for pop in (pages.pop_first, pages.pop_last):
        with pytest.raises(IndexError, match="the page list is empty"):
            pop()


@pytest.mark.parametrize("base", [0, 10**6, 2**31 - 300, 2**32 - 300])
@pytest.mark.parametrize("order", ["ascending", "descending", "inside out", "shuffled"])
def test_order_by_sequence_number(tcpreasm: ModuleType, order: str, base: int) -> None:
    offsets = list(range(0, 600, 10))
    if order == "descending":
        offsets.reverse()
    elif order == "inside out":
        offsets = [offset for pair in zip(offsets[:30], reversed(offsets[30:])) for offset in pair]
    elif order == "shuffled":
        random.Random(1).shuffle(offsets)
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    for offset in offsets:
        insert(pages, page_at(cache, base + offset))
    assert seqs(pages) == [(base + offset) % 2**32 for offset in range(0, 600, 10)]


def test_find(tcpreasm: ModuleType) -> None:
    """The last page that begins at or before, and the one after it: near the end by steps, elsewhere by a search."""
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    starts = list(range(100, 2100, 100))
    for seq in starts:
        insert(pages, page_at(cache, seq))
    for seq in range(2200):
        prev, next_ = pages.find(seq)
        place = bisect.bisect_right(starts, seq)
        assert (prev and prev.seq) == (starts[place - 1] if place else None)
        assert (next_ and next_.seq) == (starts[place] if place < len(starts) else None)


@pytest.mark.parametrize("place", range(8))
def test_a_chain_goes_in_between_two_neighbours(tcpreasm: ModuleType, place: int) -> None:
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    for seq in range(1000, 8000, 1000):
        insert(pages, page_at(cache, seq))
    chain = [page_at(cache, place * 1000 + 100 + n) for n in range(5)]
    insert(pages, *chain)
    assert seqs(pages) == sorted([*range(1000, 8000, 1000), *(page.seq for page in chain)])
    for seq in range(0, 8200, 50):
        prev, _ = pages.find(seq)
        assert (prev.seq if prev else None) == max((s for s in seqs(pages) if s <= seq), default=None)


def test_a_chain_into_an_empty_list(tcpreasm: ModuleType) -> None:
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    insert(pages, *(page_at(cache, seq) for seq in (1, 2, 3)))
    assert seqs(pages) == [1, 2, 3]


def test_a_list_knows_the_memory_of_its_pages(tcpreasm: ModuleType) -> None:
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    for seq, size in ((10, 1), (20, 100), (30, 1000), (40, 16)):
        page = cache.take(0, size)
        page.seq = seq
        insert(pages, page)
    told = [pages.buffered_bytes]
    for pop in (pages.pop_first, pages.pop_last, pages.pop_first, pages.pop_last):
        cache.give_back(pop())
        told.append(pages.buffered_bytes)
    assert told == [96 + 512 + 1984 + 96, 512 + 1984 + 96, 512 + 1984, 1984, 0]


def test_popping_from_both_ends(tcpreasm: ModuleType) -> None:
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    for seq in (3, 1, 2, 5, 4):
        insert(pages, page_at(cache, seq))
    first, last = pages.pop_first(), pages.pop_last()
    assert (first.seq, last.seq, seqs(pages)) == (1, 5, [2, 3, 4])
    assert (first.prev, first.next, last.prev, last.next) == (None, None, None, None)
    assert [pages.pop_last().seq, pages.pop_first().seq, pages.pop_first().seq] == [4, 2, 3]
    assert seqs(pages) == []
    insert(pages, first)
    assert seqs(pages) == [1]
    assert pages.pop_last() == first
    with pytest.raises(IndexError):
        pages.pop_last()


def test_a_list_that_goes_away_leaves_the_cache_whole(tcpreasm: ModuleType) -> None:
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    for seq in range(10):
        insert(pages, page_at(cache, seq))
    while len(pages) > 5:
        cache.give_back(pages.pop_first())
    assert cache.used == 5
    while len(pages):
        cache.give_back(pages.pop_last())
    assert (cache.used, cache.held_bytes, cache.size) == (0, 0, 1024)


class PageListMachine(RuleBasedStateMachine):
    """Any sequence of insertions and removals, against a sorted list of numbers."""

    package: ModuleType

    @initialize(base=st.sampled_from([0, 1000, 2**31 - 500, 2**32 - 500]))
    def begin(self, base: int) -> None:
        self.base = base
        self.cache = self.package.PageCache(8)
        self.pages = self.package.PageList()
        self.model: list[int] = []

    def _page(self, offset: int) -> Any:
        return page_at(self.cache, self.base + offset, offset.to_bytes(2, "big"))

    @rule(offset=st.integers(0, 1000))
    def insert_one(self, offset: int) -> None:
        if offset not in self.model:
            insert(self.pages, self._page(offset))
            bisect.insort(self.model, offset)

    @rule(start=st.integers(0, 1000), step=st.integers(1, 40), length=st.integers(2, 8))
    def insert_chain(self, start: int, step: int, length: int) -> None:
        chain = range(start, start + step * length, step)
        if not any(chain[0] <= offset <= chain[-1] for offset in self.model):
            insert(self.pages, *(self._page(offset) for offset in chain))
            self.model = sorted([*self.model, *chain])

    @precondition(lambda self: self.model)
    @rule()
    def pop_first(self) -> None:
        page = self.pages.pop_first()
        assert page.bytes == self.model.pop(0).to_bytes(2, "big")
        self.cache.give_back(page)

    @precondition(lambda self: self.model)
    @rule()
    def pop_last(self) -> None:
        page = self.pages.pop_last()
        assert page.bytes == self.model.pop().to_bytes(2, "big")
        self.cache.give_back(page)

    @rule(offset=st.integers(-5, 1400))
    def find(self, offset: int) -> None:
        prev, next_ = self.pages.find((self.base + offset) % 2**32)
        place = bisect.bisect_right(self.model, offset)
        assert (prev.bytes if prev else None) == (self.model[place - 1].to_bytes(2, "big") if place else None)
        assert (next_.bytes if next_ else None) == (self.model[place].to_bytes(2, "big") if place < len(self.model) else None)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "model"):
            assert seqs(self.pages) == [(self.base + offset) % 2**32 for offset in self.model]
            assert self.cache.used == len(self.model)
            check_tree(self.pages)


def check_tree(pages: Any) -> None:
    """The pure list's search tree: the same order as the list, no child above its parent by priority, the depth that it says."""
    root = getattr(pages, "_root", None)
    if root is None:
        return
    order, depth = [], 0
    todo: list[tuple[Any, int, bool]] = [(root, 1, False)]
    assert root.parent is None
    while todo:
        node, level, open_ = todo.pop()
        depth = max(depth, level)
        if open_:
            order.append(node)
            continue
        for child in (node.left, node.right):
            if child is not None:
                assert child.parent is node
                assert child.priority >= node.priority
        todo += [(child, level + 1, False) for child in (node.right,) if child is not None]
        todo.append((node, level, True))
        todo += [(child, level + 1, False) for child in (node.left,) if child is not None]
    assert order == list(pages)
    assert depth == pages.depth()


def test_any_sequence_of_insertions_and_removals(tcpreasm: ModuleType) -> None:
    machine = type("Machine", (PageListMachine,), {"package": tcpreasm})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=60, deadline=None))


@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_pages(tcpreasm: ModuleType, seed: int) -> None:
    """Long lists that grow and go at both ends and in their middle, again and again, some pages without bytes at the place of others."""
    chance = random.Random(seed)
    base = chance.choice([0, 2**31 - 20_000, 2**32 - 20_000])
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    model: list[int] = []
    free = list(range(40_000))
    for round_ in range(30):
        middle = chance.randrange(40_000)
        chance.shuffle(free)
        if round_ % 3 == 0:
            free.sort(key=lambda offset: abs(offset - middle), reverse=bool(round_ % 2))
        for _ in range(chance.choice([10, 100, 700])):
            offset = free.pop()
            insert(pages, page_at(cache, base + offset))
            bisect.insort(model, offset)
            if chance.random() < 0.02:  # goes behind the page that begins there
                insert(pages, page_at(cache, base + offset, b""))
                bisect.insort(model, offset)
        for _ in range(chance.choice([0, 50, 500, len(model)])):
            if model:
                at = chance.choice([0, -1])
                page = pages.pop_last() if at else pages.pop_first()
                offset = model.pop(at)
                assert page.seq == (base + offset) % 2**32
                if offset not in (model[:1] + model[-1:]):
                    free.append(offset)
                cache.give_back(page)
        assert seqs(pages) == [(base + offset) % 2**32 for offset in model]
        for offset in chance.sample(range(-10, 40_010), 200):
            prev, next_ = pages.find((base + offset) % 2**32)
            place = bisect.bisect_right(model, offset)
            assert (prev and prev.seq) == ((base + model[place - 1]) % 2**32 if place else None)
            assert (next_ and next_.seq) == ((base + model[place]) % 2**32 if place < len(model) else None)
        assert cache.used == len(model)
        check_tree(pages)


# -- cost ---------------------------------------------------------------------------------------------------------------


def orders(count: int) -> dict[str, list[int]]:
    """Orders of arrival that a sender may choose, to hurt a list or a plain search tree."""
    ends = [offset for pair in zip(range(count // 2), range(count - 1, count // 2 - 1, -1)) for offset in pair]
    shuffled = list(range(count))
    random.Random(2).shuffle(shuffled)
    return {
        "ascending": list(range(count)),
        "descending": list(range(count - 1, -1, -1)),
        "from both ends to the middle": ends,
        "from the middle to both ends": ends[::-1],
        "shuffled": shuffled,
        "every second one, then those between": [*range(0, count, 2), *range(1, count, 2)],
    }


@pytest.mark.parametrize("order", list(orders(2)))
def test_the_tree_stays_flat(tcpreasm: ModuleType, order: str) -> None:
    """The comparisons of a search (in the pure core: the depth of its tree) grow as log n in any order."""
    count = 20_000
    cache, pages = tcpreasm.PageCache(), tcpreasm.PageList()
    assert pages.depth() == 0
    for offset in orders(count)[order]:
        insert(pages, page_at(cache, offset * 10))
    assert math.log2(count) < pages.depth() <= 5 * math.log2(count)  # 71; a random tree of this size is about 38 deep (Devroye 1986)
    check_tree(pages)
    for _ in range(count // 2):
        pages.pop_first()
    assert pages.depth() <= 5 * math.log2(count)
    check_tree(pages)
