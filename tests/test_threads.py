"""Several assemblers in several threads over one pool: each stream is served serially, no byte goes astray, nothing hangs.

Lives here: what only shows when threads meet. All work is done in threads that the test joins with a deadline, so that a deadlock is a
failure with everybody's stack in it, and not a test that never ends. The interpreter is told to change threads as often as it can.
"""

from __future__ import annotations

import faulthandler
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import Ends, Recorder, key_of, number, segment
from traffic import Talk, pcap

DEADLINE = 20.0  # seconds
NOW = 1_700_000_000_000_000_000
WAIT_FOR_SYN = {"start_wait_segments": None, "start_wait": None}


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Threads take turns as often as they can; and where even the joining thread hangs, the process ends with its stacks."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    faulthandler.dump_traceback_later(8 * DEADLINE, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    sys.setswitchinterval(before)


def stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def together(*works: Callable[[], Any], deadline: float = DEADLINE) -> None:
    """Runs all at once, each in a thread. What one raises is raised here; who is not done in time is a failure."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> None:
        try:
            barrier.wait(deadline)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    until = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        pytest.fail(f"{sum(thread.is_alive() for thread in threads)} of {len(threads)} threads hang:\n{stacks()}", pytrace=False)
    if errors:
        raise errors[0]


class Serial:
    """A stream that notices when it is served by two threads at once, or after its end."""

    def __init__(self, book: Book, key: Ends) -> None:
        self.book = book
        self.key = key
        self.serving = False
        self.complete = 0
        self.pieces: list[tuple[bytes, int, bool, bool]] = []

    def enter(self) -> None:
        if self.serving:
            self.book.wrong.append(f"{self.key}: two threads at once")
        if self.complete:
            self.book.wrong.append(f"{self.key}: served after its end")
        self.serving = True
        self.book.pause()

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.enter()
        for piece in reassemblies:
            if self.pieces and (piece.start or piece.skip < 0):
                self.book.wrong.append(f"{self.key}: a start in the middle")
            if self.pieces and self.pieces[-1][3]:
                self.book.wrong.append(f"{self.key}: data behind the end")
            self.pieces.append((bytes(piece), piece.skip, piece.start, piece.end))
        self.serving = False

    def reassembly_complete(self) -> None:
        self.enter()
        self.complete += 1
        self.serving = False

    @property
    def data(self) -> bytes:
        return b"".join(data for data, *_ in self.pieces)


class Book:
    """A factory, called by any thread, that remembers every stream.

    Args:
        pause: called inside each callback.
    """

    def __init__(self, pause: Callable[[], None] = lambda: None) -> None:
        self.pause = pause
        self.streams: list[Serial] = []
        self.wrong: list[str] = []
        self.made = Counter[Ends]()
        self.lock = threading.Lock()

    def new(self, net_flow: Any, transport_flow: Any) -> Serial:
        key = str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst
        stream = Serial(self, key)
        with self.lock:
            self.streams.append(stream)
            self.made[key] += 1
        self.pause()
        return stream

    def check(self, pool: Any, assemblers: list[Any]) -> None:
        """After everything was flushed: every stream has had its end, nothing is held, every byte is accounted for (12)."""
        assert self.wrong == []
        assert [stream.key for stream in self.streams if stream.complete != 1] == []
        assert len(pool) == 0
        assert pool.keys() == []
        stats = [assembler.stats for assembler in assemblers]
        assert [(one.bytes_held, one.pages_used) for one in stats] == [(0, 0)] * len(stats), "pages go back to their owner"
        assert sum(one.bytes_captured for one in stats) == sum(one.bytes_delivered + one.bytes_dropped for one in stats)
        assert sum(one.bytes_delivered for one in stats) == sum(len(stream.data) for stream in self.streams)
        assert sum(one.streams_opened for one in stats) == sum(one.streams_closed for one in stats) == len(self.streams)


def now_and_then() -> None:
    """Lets the others in, and sometimes sleeps."""
    time.sleep(0 if random.random() < 0.95 else 0.0005)


Packet = tuple[Ends, int, bytes, dict[str, bool]]


def talk(ends: Ends, isn: int, text: bytes, size: int) -> list[Packet]:
    """One connection in order: SYN, text in segments of `size`, FIN."""
    packets: list[Packet] = [(ends, isn, b"", {"syn": True})]
    packets += [(ends, isn + 1 + off, text[off : off + size], {}) for off in range(0, len(text), size)]
    return [*packets, (ends, isn + 1 + len(text), b"", {"fin": True})]


def feeder(package: ModuleType, assembler: Any, packets: list[Packet]) -> Callable[[], None]:
    made = [(package.Flow(ends[0], ends[2]), segment(package, seq, payload, ends=ends, **flags)) for ends, seq, payload, flags in packets]

    def feed() -> None:
        for flow, tcp in made:
            assembler.assemble(flow, tcp, timestamp_ns=NOW)

    return feed


def assemblers_for(package: ModuleType, book: Book, count: int, **options: Any) -> tuple[Any, list[Any]]:
    pool = package.StreamPool(book)
    return pool, [package.Assembler(pool, package.AssemblerOptions(**options)) for _ in range(count)]


# -- all bytes, whoever brings them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_packets_of_all_connections_spread_over_threads(tcpreasm: ModuleType, seed: int) -> None:
    """Any thread gets any packet, with duplicates: all streams come out whole, each once."""
    rng = random.Random(seed)
    threads = 2 + seed
    book = Book(now_and_then if seed % 2 else lambda: None)
    pool, assemblers = assemblers_for(tcpreasm, book, threads, **WAIT_FOR_SYN)
    texts = {number(i): rng.randbytes(rng.choice([0, 1, 500, 4000])) for i in range(25)}
    packets = [
        packet
        for i, (ends, text) in enumerate(texts.items())
        for packet in talk(ends, rng.getrandbits(32), text, rng.choice([7, 100, 2500]))
    ]
    packets += rng.sample(packets, len(packets) // 3)
    rng.shuffle(packets)
    shares = [packets[i::threads] for i in range(threads)]
    together(*(feeder(tcpreasm, assembler, share) for assembler, share in zip(assemblers, shares)))
    together(assemblers[0].flush_all)
    book.check(pool, assemblers)
    assert {stream.key: stream.data for stream in book.streams} == texts
    assert set(book.made.values()) == {1}
    assert all(skip == 0 for stream in book.streams for _, skip, _, _ in stream.pieces)


def test_each_thread_its_own_connections(tcpreasm: ModuleType) -> None:
    """As shards work: no connection is shared, the pool is. More connections than the pool makes at first."""
    book = Book()
    pool, assemblers = assemblers_for(tcpreasm, book, 3)
    texts = {number(i): b"%06d" % i * 3 for i in range(1500)}
    shares: list[list[Packet]] = [[], [], []]
    for i, (ends, text) in enumerate(texts.items()):
        share = talk(ends, i << 20, text, 5)
        share[2], share[3] = share[3], share[2]
        shares[i % 3] += share if i % 2 else share[:-1]
    together(*(feeder(tcpreasm, assembler, share) for assembler, share in zip(assemblers, shares)))
    assert len(pool) == len(pool.keys()) == 750
    together(*(assembler.flush_all for assembler in assemblers))
    book.check(pool, assemblers)
    assert {stream.key: stream.data for stream in book.streams} == texts
    assert len(book.streams) == 1500


@pytest.mark.parametrize("already", [1024, 1023, 0])
def test_one_stream_for_a_connection_that_two_threads_open(tcpreasm: ModuleType, already: int) -> None:
    """The factory is called once a connection, also while the pool makes room for more."""
    for _ in range(25):
        book = Book()
        pool, assemblers = assemblers_for(tcpreasm, book, 2)
        feeder(tcpreasm, assemblers[0], [(number(i), 0, b"", {"syn": True}) for i in range(already)])()
        same: list[Packet] = [(number(i), 0, b"", {"syn": True}) for i in range(already, already + 20)]
        together(*(feeder(tcpreasm, assembler, same) for assembler in assemblers))
        assert book.made.most_common(1)[0][1] == 1
        assert len(pool) == already + 20
        assert len(set(pool.keys())) == already + 20
        together(assemblers[0].flush_all)
        book.check(pool, assemblers)


# -- closed in between ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "rst", "flush"])
@pytest.mark.parametrize("closed_timeout", [0, 60])
def test_opened_and_closed_by_several_threads(tcpreasm: ModuleType, how: str, closed_timeout: int) -> None:
    """The same few keys, opened and closed again and again: who finds a connection that is closed before it gets the lock looks again.

    Each round of each thread has its own initial sequence number and text, so that bytes that went to the wrong stream are seen.
    """
    book = Book()
    pool, assemblers = assemblers_for(tcpreasm, book, 3, closed_timeout=closed_timeout)

    def work(me: int) -> Callable[[], None]:
        rng = random.Random(me)
        assembler = assemblers[me]

        def run() -> None:
            for turn in range(120):
                ends = number(rng.randrange(3))
                isn = rng.getrandbits(32)
                mark = bytes([65 + me * 26 + turn % 26]) if me < 2 else bytes([128 + turn % 64])
                flow = tcpreasm.Flow(ends[0], ends[2])
                packets = talk(ends, isn, mark * 12, 4)
                if how == "rst":
                    packets[-1] = (ends, packets[-1][1], b"", {"rst": True})
                elif how == "flush":
                    packets.pop()
                if turn % 2:
                    packets[1], packets[2] = packets[2], packets[1]
                for step, (_, seq, payload, flags) in enumerate(packets):
                    assembler.assemble(flow, segment(tcpreasm, seq, payload, ends=ends, **flags), timestamp_ns=NOW + turn * 1000 + step)
                if how == "flush":
                    assembler.flush_all()

        return run

    together(*(work(me) for me in range(3)))
    together(assemblers[0].flush_all)
    book.check(pool, assemblers)
    assert len(book.streams) >= 120
    for stream in book.streams:
        assert len(stream.data) <= 12 * 120


def test_flushing_while_others_feed(tcpreasm: ModuleType) -> None:
    """One thread flushes, asks for keys and stats, without end; the others' streams come out in pieces but with every byte in place."""
    book = Book()
    pool, assemblers = assemblers_for(tcpreasm, book, 3)
    texts = {number(i): random.Random(i).randbytes(3000) for i in range(30)}
    shares: list[list[Packet]] = [[], []]
    for i, (ends, text) in enumerate(texts.items()):
        share = talk(ends, i << 27, text, 60)[:-1]
        shares[i % 2] += [packet for k in range(1, len(share) - 1, 2) for packet in (share[k + 1], share[k])]
        shares[i % 2].insert(len(shares[i % 2]) - len(share) + 2 - len(share) % 2, share[0])
    for share in shares:
        random.Random(5).shuffle(share)
    done = threading.Event()
    feeding = [feeder(tcpreasm, assembler, share) for assembler, share in zip(assemblers, shares)]
    left = [2]

    def feed(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            with book.lock:
                left[0] -= 1
                if not left[0]:
                    done.set()

    def flush() -> None:
        flusher = assemblers[2]
        while not done.is_set():
            flusher.flush_ns(None, False)
            flusher.expire()
            assert len(pool.keys()) <= 30
            assert all(one.stats.pages_used >= 0 for one in assemblers)
            flusher.flush_all()

    together(lambda: feed(feeding[0]), lambda: feed(feeding[1]), flush)
    together(assemblers[0].flush_all)
    book.check(pool, assemblers)
    for stream in book.streams:
        for data, *_ in stream.pieces:
            assert data in texts[stream.key]


def test_keys_while_others_open_and_close(tcpreasm: ModuleType) -> None:
    """A list of open connections, each once, whatever the others do meanwhile."""
    book = Book()
    pool, assemblers = assemblers_for(tcpreasm, book, 2)
    known = {key_of(number(i)) for i in range(40)}
    done = threading.Event()
    left = [2]

    def work(me: int) -> None:
        try:
            for turn in range(400):
                ends = number(turn % 20 * 2 + me)
                for packet in talk(ends, turn << 24, b"x", 1)[: 3 - turn % 2]:
                    feeder(tcpreasm, assemblers[me], [packet])()
                if turn % 16 == 0:
                    assemblers[me].flush_all()
        finally:
            with book.lock:
                left[0] -= 1
                if not left[0]:
                    done.set()

    def look() -> None:
        while not done.is_set():
            keys = [*map(str, pool.keys())]
            assert set(keys) <= known
            assert len(set(keys)) == len(keys)

    together(lambda: work(0), lambda: work(1), look)
    together(assemblers[0].flush_all)
    book.check(pool, assemblers)


# -- callbacks that take their time -----------------------------------------------------------------------------------------


class Gate:
    """A stream whose calls wait, those of the key with the given port only."""

    def __init__(self, inside: threading.Event, go_on: threading.Event, calls: list[str], waits: bool) -> None:
        self.inside, self.go_on, self.calls, self.waits = inside, go_on, calls, waits

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.calls.append("in")
        if self.waits:
            self.inside.set()
            assert self.go_on.wait(DEADLINE)
        self.calls.append("out")

    def reassembly_complete(self) -> None:
        self.calls.append("complete")


@pytest.fixture
def gate(tcpreasm: ModuleType) -> Any:
    """(pool, two assemblers, the event that says a callback waits, the one that lets it go on, the calls of the waiting key)."""
    inside, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def new(net_flow: Any, transport_flow: Any) -> Gate:
        waits = transport_flow.src == 1
        return Gate(inside, go_on, calls if waits else [], waits)

    pool = tcpreasm.StreamPool(new)
    yield pool, [tcpreasm.Assembler(pool) for _ in range(2)], inside, go_on, calls
    go_on.set()


def open_one(package: ModuleType, assembler: Any, port: int, seq: int = 0, payload: bytes = b"", **flags: bool) -> None:
    assembler.assemble(package.Flow("10.0.0.1", "10.0.0.2"), package.TCPSegment(port, 80, seq, payload, **flags), timestamp_ns=NOW)


def test_a_callback_that_waits_holds_up_its_own_stream_only(tcpreasm: ModuleType, gate: Any) -> None:
    pool, (one, two), inside, go_on, calls = gate
    order: list[str] = []

    def first() -> None:
        open_one(tcpreasm, one, 1, syn=True)
        order.append("first done")

    def second() -> None:
        assert inside.wait(DEADLINE)
        for port in range(2, 50):
            open_one(tcpreasm, two, port, syn=True)
            open_one(tcpreasm, two, port, 1, b"abc")
            open_one(tcpreasm, two, port, 4, fin=True)
        assert len(pool) == 1
        assert two.stats.streams_closed == 48
        with pytest.raises(RuntimeError, match="at work already"):
            open_one(tcpreasm, one, 60, syn=True)  # the first assembler, from another thread
        order.append("others done")
        threading.Timer(0.05, go_on.set).start()
        open_one(tcpreasm, two, 1, 1, b"abc")  # the same stream: has to wait
        order.append("second done")

    together(first, second)
    assert order[0] == "others done"
    assert set(order[1:]) == {"first done", "second done"}
    assert calls == ["in", "out", "in", "out"]
    together(one.flush_all)
    assert calls[4:] == ["complete"]


def test_a_flush_waits_for_the_stream_that_is_being_served(tcpreasm: ModuleType, gate: Any) -> None:
    _, (one, two), inside, go_on, calls = gate
    closed: list[int] = []

    def flush() -> None:
        assert inside.wait(DEADLINE)
        threading.Timer(0.05, go_on.set).start()
        closed.append(two.flush_all())

    together(lambda: open_one(tcpreasm, one, 1, syn=True), flush)
    assert closed == [1]
    assert calls == ["in", "out", "complete"]


def test_found_closed_after_waiting(tcpreasm: ModuleType, gate: Any) -> None:
    """A thread waits for a connection; its owner closes it by FIN; the packet that waited is late and opens nothing."""
    pool, (one, two), inside, go_on, calls = gate

    def close() -> None:
        open_one(tcpreasm, one, 1, syn=True, fin=True)

    def late() -> None:
        assert inside.wait(DEADLINE)
        threading.Timer(0.05, go_on.set).start()
        open_one(tcpreasm, two, 1, 1, b"late")

    together(close, late)
    assert calls == ["in", "out", "complete"]
    assert dict(two.stats.dropped) == {"after_close": 4}
    assert len(pool) == 0


# -- calling back in ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["new", "reassembled", "complete"])
@pytest.mark.parametrize("what", ["the same assembler", "the other one, same connection", "the other one, other connection", "keys"])
def test_calling_back_in(tcpreasm: ModuleType, where: str, what: str) -> None:
    """The assembler at work refuses, and so does the connection that is being served; all others are free. Nothing hangs or breaks."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    one, two = (tcpreasm.Assembler(pool) for _ in range(2))
    told: list[str] = []

    def call() -> None:
        recorder.plan.clear()
        try:
            if what == "keys":
                told.append(f"{len(pool)} {len(pool.keys())}")
            else:
                open_one(tcpreasm, one if what == "the same assembler" else two, 2 if what.endswith("other connection") else 1, 50, b"xyz")
                told.append("done")
        except RuntimeError as error:
            told.append(str(error))

    recorder.plan[where] = call

    def work() -> None:
        open_one(tcpreasm, one, 1, syn=True)
        open_one(tcpreasm, one, 1, 1, b"abc")
        open_one(tcpreasm, one, 1, 4, fin=True)
        one.flush_all()

    together(work)
    expected = {
        "the same assembler": "this Assembler is at work already: called from a callback, or from two threads at once",
        "the other one, same connection": "a stream's callback called back into its own connection",
        "the other one, other connection": "done",
        "keys": "0 0" if where == "complete" else "1 1",
    }
    assert told == [expected[what]]
    data = b"".join(piece[0] for kind, key, *rest in recorder.calls if kind == "reassembled" and ":1->" in key for piece in rest[0])
    assert data == b"abc"
    stats = [one.stats, two.stats]
    assert sum(each.bytes_captured for each in stats) == sum(each.bytes_delivered + each.bytes_dropped for each in stats)
    assert len(pool) == 0


@pytest.mark.parametrize("end", ["fin", "flush"])
@pytest.mark.parametrize("what", ["keys", "other connection"])
def test_calling_back_in_when_a_stream_is_let_go(tcpreasm: ModuleType, what: str, end: str) -> None:
    """A stream's finalizer runs while the pool lets go of it: what it calls must not wait for the pool for ever."""
    told: list[str] = []

    class Stream:
        def __init__(self, net_flow: Any, transport_flow: Any) -> None:
            self.port = transport_flow.src

        def reassembled(self, reassemblies: list[Any]) -> None:
            pass

        def reassembly_complete(self) -> None:
            pass

        def __del__(self) -> None:
            if self.port != 1:
                return
            if what == "keys":
                told.append(f"{len(pool.keys())} keys")
            else:
                open_one(tcpreasm, two, 2, syn=True)
                told.append("done")

    pool = tcpreasm.StreamPool(Stream)
    one, two = (tcpreasm.Assembler(pool) for _ in range(2))

    def work() -> None:
        open_one(tcpreasm, one, 1, syn=True)
        if end == "fin":
            open_one(tcpreasm, one, 1, 1, fin=True)
        one.flush_all()

    together(work, deadline=5)
    assert told == ["0 keys" if what == "keys" else "done"]
    together(one.flush_all)
    assert len(pool) == 0


def test_a_callback_that_raises_lets_go_of_its_connection(tcpreasm: ModuleType) -> None:
    """Exceptions in one thread leave nothing locked for the others."""
    book = Book()
    pool, assemblers = assemblers_for(tcpreasm, book, 2)
    raised = [0, 0]

    class Failing(ValueError):
        pass

    def pause() -> None:
        if random.random() < 0.3:
            for stream in book.streams:
                stream.serving = False
            raise Failing

    book.pause = pause

    def work(me: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(150):
                for step in range(3):
                    try:
                        open_one(tcpreasm, assemblers[me], turn % 4, turn * 100 + step, b"x", syn=step == 0)
                    except Failing:
                        raised[me] += 1
                try:
                    assemblers[me].flush_all()
                except Failing:
                    raised[me] += 1

        return run

    together(work(0), work(1))
    book.pause = lambda: None
    together(assemblers[0].flush_all)
    assert min(raised) > 0
    assert len(pool) == 0
    stats = [assembler.stats for assembler in assemblers]
    assert [(one.bytes_held, one.pages_used) for one in stats] == [(0, 0)] * 2
    assert sum(one.bytes_captured for one in stats) == sum(one.bytes_delivered + one.bytes_dropped for one in stats)
    assert sum(one.streams_opened for one in stats) == sum(one.streams_closed for one in stats)


def test_one_assembler_is_for_one_thread_at_a_time(tcpreasm: ModuleType) -> None:
    """Two threads in one assembler: one of them is refused, and what was taken in is right."""
    book = Book(now_and_then)
    pool, (assembler,) = assemblers_for(tcpreasm, book, 1)
    refused = [0, 0]
    taken = [0, 0]

    def work(me: int) -> Callable[[], None]:
        def run() -> None:
            for place in range(300):
                try:
                    open_one(tcpreasm, assembler, me, place, b"" if place == 0 else b"x", syn=place == 0)
                    taken[me] += place > 0
                except RuntimeError:
                    refused[me] += 1

        return run

    together(work(0), work(1))
    together(assembler.flush_all)
    book.check(pool, [assembler])
    assert sum(refused) > 0
    assert assembler.stats.bytes_captured == sum(taken)


def test_kept_pieces_outlive_everything_in_another_thread(tcpreasm: ModuleType) -> None:
    """Views of pages, kept and let go in another thread than the one that takes and gives pages: what is held stays what it was (11)."""
    kept: list[tuple[memoryview, bytes]] = []
    lock = threading.Lock()
    wrong: list[str] = []

    class Keeping:
        def __init__(self, *flows: Any) -> None:
            pass

        def reassembled(self, reassemblies: list[Any]) -> None:
            with lock:
                kept.extend((memoryview(piece), bytes(piece)) for piece in reassemblies[::2])

        def reassembly_complete(self) -> None:
            pass

    pool = tcpreasm.StreamPool(Keeping)
    assembler = tcpreasm.Assembler(pool)
    done = threading.Event()

    def feed() -> None:
        try:
            for turn in range(60):
                open_one(tcpreasm, assembler, 1, 0, syn=True)
                for place in range(40, 0, -1):
                    open_one(tcpreasm, assembler, 1, place * 50 - 49, bytes([turn ^ place]) * 50)
                assembler.flush_all()
        finally:
            done.set()

    def let_go() -> None:
        while not done.is_set() or kept:
            with lock:
                mine = [kept.pop(random.randrange(len(kept))) for _ in range(min(len(kept), 7))]
            wrong.extend("changed" for view, copy in mine if bytes(view) != copy)
            time.sleep(0)

    together(feed, let_go)
    assert wrong == []
    assert (assembler.stats.pages_used, assembler.stats.bytes_delivered) == (0, 60 * 2000)


def test_many_files_in_two_threads(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """Files that come and go in two threads, whose pool's lock and the interpreter's are never waited for crosswise."""
    talks = [Talk(client=("10.0.0.1", 1000 + number)).open() for number in range(1000)]
    for talk in talks:
        for _ in range(4):
            talk.say(0, b"q" * 300).say(1, b"a" * 1400)
        talk.close()
    # forty at a time, packet by packet in turn
    records = [record for at in range(0, 1000, 40) for row in zip(*(talk.records for talk in talks[at : at + 40])) for record in row]
    numbers = iter(range(10**6))

    def extract() -> None:
        with tcpreasm.FilePool() as files:

            def factory(net_flow: Any, transport_flow: Any) -> Any:
                return tcpreasm.FileStream(net_flow, transport_flow, path=lambda: tmp_path / str(next(numbers)), pool=files)

            for _ in range(3):
                tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(pcap(records), threads=2)

    together(extract)
    assert Counter(file.stat().st_size for file in tmp_path.iterdir()) == {1200: 3000, 5600: 3000}
