"""`tcpreasm.aio`: captures on asyncio. Finished streams and readers, errors, cancellation, and that the thread never runs ahead.

Each test runs a loop of its own, and whatever hangs fails by LIMIT. That something is bounded is asserted while the consumer gives the
thread all the time it wants.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from conftest import DATA
from traffic import START_NS, Record, Talk, corpus_cases, frame, pcap

LIMIT = 60.0
TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own. Afterwards no thread is left."""
    try:
        return asyncio.run(asyncio.wait_for(work, LIMIT))
    finally:
        assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tcpreasm-aio"]


@pytest.fixture
def aio(tcpreasm: ModuleType) -> Any:
    return tcpreasm.aio


def frames(records: list[Record]) -> Iterator[tuple[float, bytes]]:
    for ns, data in records:
        yield ns / 1e9, data


def line_of_frames(count: int, size: int = 1000) -> Iterator[Record]:
    """One direction that goes on and on, and ends."""
    client, server, seq = ("10.0.0.1", 40000), ("10.0.0.2", 80), 1001
    yield START_NS, frame(client, server, 1000, flags=2)
    for number in range(count):
        yield START_NS + number * 1000, frame(client, server, seq, bytes([number % 251]) * size)
        seq += size
    yield START_NS + count * 1000, frame(client, server, seq, flags=17)


class Source:
    """Frames, counted as they are asked for."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self.asked = 0
        self.ended = False

    def __iter__(self) -> Iterator[tuple[float, bytes]]:
        for ns, data in self._records:
            self.asked += 1
            yield ns / 1e9, data
        self.ended = True


class Waiting:
    """Frames that come when the test gives them: until then whoever iterates waits."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._asked = 0

    def give(self, *records: Record) -> None:
        for record in records:
            self._queue.put(record)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[tuple[float, bytes]]:
        while True:
            self._asked += 1
            record = self._queue.get(timeout=LIMIT)
            if record is None:
                return
            yield record[0] / 1e9, record[1]

    async def is_waited_for(self, number: int) -> None:
        """Comes when somebody has asked for that many frames."""
        while self._asked < number:
            await asyncio.sleep(0.001)


async def collect(items: Any, into: list[Any]) -> None:
    """What comes before an error is there even so."""
    async for item in items:
        into.append(item)


async def others_run() -> None:
    """Time for the thread to do whatever it may."""
    for _ in range(5):
        await asyncio.sleep(0.01)


# ---- follow


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_follow_gives_what_follow_gives(aio: Any, tcpreasm: ModuleType, file: str) -> None:
    async def main() -> list[Any]:
        return [stream async for stream in aio.follow(DATA / file)]

    assert run(main()) == list(tcpreasm.follow(DATA / file))


def test_follow_tells_where_bytes_came_from(aio: Any, tcpreasm: ModuleType) -> None:
    async def main() -> list[Any]:
        return [stream.provenance.tobytes() async for stream in aio.follow(DATA / "missing.pcap", provenance=True)]

    assert run(main()) == [stream.provenance.tobytes() for stream in tcpreasm.follow(DATA / "missing.pcap", provenance=True)]


def test_streams_come_while_the_source_waits(aio: Any) -> None:
    """The loop goes on meanwhile: it is what feeds the source."""
    source = Waiting()

    async def main() -> list[bytes]:
        streams = aio.follow(source)
        got = []
        for number in range(3):
            source.give(*Talk(("10.0.0.1", number + 1)).open().say(0, b"%d" % number).close().records)
            got += [(await anext(streams)).data, (await anext(streams)).data]
        source.end()
        return got + [stream.data async for stream in streams]

    assert run(main()) == [b"0", b"", b"1", b"", b"2", b""]


@pytest.mark.parametrize("limit", [1, 5000])
def test_the_thread_waits_for_who_takes_the_streams(aio: Any, limit: int) -> None:
    records = [
        record
        for number in range(100)
        for record in Talk(("10.0.0.1", number + 1), start_ns=START_NS + number * 10**7).open().say(0, b"x" * 1000).close().records
    ]
    source = Source(iter(records))

    async def main() -> int:
        count = 0
        async for stream in aio.follow(source, limit=limit):
            assert len(stream.data) in (0, 1000)
            count += 1
            if count % 20 == 1:
                await others_run()
            assert source.asked <= 5 * (count // 2 + 2 + limit // 1024)
        return count

    assert run(main()) == 200
    assert source.ended


def test_errors_come_out_of_the_iteration(aio: Any, tcpreasm: ModuleType, tmp_path: Path) -> None:
    async def first(*arguments: Any, **more: Any) -> Any:
        return await anext(aio.follow(*arguments, **more))

    for error, arguments in (
        (FileNotFoundError, (tmp_path / "nothing",)),
        (tcpreasm.CaptureError, (b"no capture at all",)),
        (TypeError, (7,)),
        (TypeError, (b"", 7)),
        (StopAsyncIteration, ([],)),
    ):
        with pytest.raises(error):
            run(first(*arguments))
    with pytest.raises(ValueError, match="limit is 1 or more, not 0"):
        run(first(b"", limit=0))


def test_an_error_of_the_source_comes_behind_the_streams_before_it(aio: Any) -> None:
    def source() -> Iterator[tuple[float, bytes]]:
        yield from frames(Talk().open().say(0, b"hello").close().records)
        raise LookupError("no more")

    async def main() -> list[bytes]:
        got: list[Any] = []
        with pytest.raises(LookupError, match="no more"):
            await collect(aio.follow(source()), got)
        return [stream.data for stream in got]

    assert run(main()) == [b"hello", b""]


def test_a_cut_capture_gives_what_is_there_and_a_warning(aio: Any, caplog: pytest.LogCaptureFixture) -> None:
    capture = pcap(Talk().open().say(0, b"hello").say(0, b"world").records)[:-3]

    async def followed() -> list[bytes]:
        return sorted([stream.data async for stream in aio.follow(capture)])

    async def read() -> list[bytes]:
        return sorted([await reader.read() for reader in [reader async for reader in aio.readers(capture)]])

    for work in (followed, read):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert run(work()) == [b"", b"hello"]
        assert [record.levelname for record in caplog.records] == ["WARNING"]


# ---- leaving early


@pytest.mark.parametrize("name", ["follow", "readers"])
def test_leaving_early_stops_the_capture(aio: Any, tcpreasm: ModuleType, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(
        pcap([record for port in range(2000) for record in Talk(("10.0.0.1", port + 1)).open().say(0, b"x" * 999).close().records])
    )
    capture = tcpreasm.open_capture(path)

    async def main() -> None:
        async with aclosing(getattr(aio, name)(capture, limit=1000)) as streams:
            await anext(streams)
        assert threads() == []
        with pytest.raises(ValueError, match="closed"):
            list(capture)

    run(main())


@pytest.mark.parametrize("name", ["follow", "readers"])
def test_cancellation_stops_the_capture(aio: Any, name: str) -> None:
    """Where it waits for the next one: when the cancelled task has ended, so has the thread."""
    source = Waiting()

    async def consume() -> None:
        async for _ in getattr(aio, name)(source):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        source.give(*Talk().open().records)
        await source.is_waited_for(3)
        task.cancel()
        await others_run()
        assert not task.done()  # the thread waits for its source
        source.give(*Talk().open().records)  # and looks up
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads() == []

    run(main())


def test_a_second_cancellation_does_not_wait(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_LOOK", 0.01)
    source = Waiting()

    async def consume() -> None:
        async for _ in aio.follow(source):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await source.is_waited_for(1)
        task.cancel()
        await others_run()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        (thread,) = threads()
        source.end()
        await asyncio.to_thread(thread.join)

    run(main())


def test_cancellation_in_the_body(aio: Any) -> None:
    """The iterator is closed once nobody holds it: at the latest when the loop ends."""

    def source() -> Iterator[tuple[float, bytes]]:
        yield from frames(Talk().open().close().records)
        while True:  # slow, but not so slow that nobody would wait for it
            time.sleep(0.05)
            yield from frames(Talk(("10.0.0.1", 5)).open().records[:1])

    async def consume(inside: asyncio.Event) -> None:
        async for _ in aio.follow(source()):
            inside.set()
            await asyncio.sleep(LIMIT)

    async def main() -> None:
        task = asyncio.create_task(consume(inside := asyncio.Event()))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_a_loop_that_is_closed_ends_the_thread(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_LOOK", 0.01)
    loop = asyncio.new_event_loop()
    readers = aio.readers(Source(line_of_frames(3000)), limit=1000, timeout=None)
    reader = loop.run_until_complete(anext(readers))
    (thread,) = threads()
    loop.run_until_complete(others_run())  # it waits for room
    loop.close()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert reader.counts.length < 100_000
    with pytest.raises(StopIteration):  # it needs no loop any more
        readers.aclose().send(None)


# ---- readers


async def all_of(readers: Any, read: Callable[[Any], Coroutine[Any, Any, T]]) -> list[tuple[Any, T]]:
    """Each reader's key, and what came of reading it in a task of its own."""
    tasks = []
    async for reader in readers:
        tasks.append((reader.key, asyncio.create_task(read(reader))))
    return [(key, await task) for key, task in tasks]


async def in_parts(reader: Any) -> bytes:
    parts = []
    while part := await reader.read(700):
        assert len(part) <= 700
        parts.append(part)
    assert reader.at_eof()
    return b"".join(parts)


async def whole(reader: Any) -> bytes:
    return bytes(await reader.read())


async def by_lines(reader: Any) -> bytes:
    return b"".join([line async for line in reader])


@pytest.mark.parametrize("read", [whole, in_parts, by_lines])
@pytest.mark.parametrize("file", sorted(TRUTH))
def test_readers_give_what_follow_gives(aio: Any, tcpreasm: ModuleType, file: str, read: Callable[[Any], Any]) -> None:
    got = run(all_of(aio.readers(DATA / file), read))
    expected = [(stream.key, stream.data) for stream in tcpreasm.follow(DATA / file)]
    assert sorted((str(key), data) for key, data in got) == sorted((str(key), data) for key, data in expected)


def test_readers_of_the_corpus(aio: Any, tcpreasm: ModuleType, corpus: Path) -> None:
    async def with_losses(reader: Any) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        data, gaps, missing = b"", [], 0
        while True:
            try:
                part = await reader.read(4096)
            except tcpreasm.DataLost as lost:
                if lost.skip > 0:
                    gaps.append((len(data) + missing, lost.skip))
                    missing += lost.skip
                continue
            if not part:
                return data, tuple(gaps)
            data += part

    count = 0
    for capture, _ in [case for number, case in enumerate(corpus_cases(corpus)) if number % 3 == 0]:
        got = run(all_of(aio.readers(capture, loss_errors=True), with_losses))
        expected = [(str(stream.key), (stream.data, stream.gaps)) for stream in tcpreasm.follow(capture)]
        assert sorted((str(key), read) for key, read in got if any(read)) == sorted(pair for pair in expected if any(pair[1])), capture.name
        count += len(got)
    assert count > 300


def test_what_a_reader_can_do(aio: Any) -> None:
    source = Waiting()
    talk = Talk().open()

    async def main() -> None:
        readers = aio.readers(source)
        source.give(*talk.records)
        reader, other = await anext(readers), await anext(readers)
        assert (str(reader.key), str(other.key)) == ("10.0.0.1:40000->10.0.0.2:80", "10.0.0.2:80->10.0.0.1:40000")
        assert repr(reader) == "<Reader of 10.0.0.1:40000->10.0.0.2:80>"
        say = Talk()
        say.seqs[0] += 1
        source.give(*say.say(0, b"one\ntwo three;fo").records)
        assert await reader.readline() == b"one\n"
        assert await reader.readexactly(4) == b"two "
        assert await reader.readuntil(b";") == b"three;"
        assert await reader.read(100) == b"fo"
        assert await reader.read(0) == b""
        assert await reader.readexactly(0) == b""
        assert reader.counts.length == 16
        assert reader.counts.started
        assert not reader.at_eof()
        waiting = asyncio.create_task(reader.read(100))
        await others_run()
        assert not waiting.done()
        say.records.clear()
        source.give(*say.say(0, b"ur").close(0).records)
        assert await waiting == b"ur"
        with pytest.raises(asyncio.IncompleteReadError) as error:
            await reader.readexactly(1)
        assert error.value.partial == b""
        assert await reader.read() == b""
        assert [line async for line in reader] == []
        assert reader.at_eof()
        assert reader.counts.ended
        source.end()
        assert await other.readline() == b""
        assert [reader async for reader in readers] == []

    run(main())


def test_losses(aio: Any, tcpreasm: ModuleType) -> None:
    talk = Talk().open().say(0, b"abc\nde").say(0, b"12345", lost=True).say(0, b"fg\n").say(0, b"678", lost=True).say(0, b"hi")
    capture = pcap(talk.close(0).records)

    async def lines(reader: Any) -> list[Any]:
        got: list[Any] = []
        while not reader.at_eof():
            try:
                got.append(await reader.readline())
            except tcpreasm.DataLost as lost:
                got.append(lost.skip)
        return got

    async def exactly(reader: Any) -> list[Any]:
        got: list[Any] = []
        for size in (5, 3, 1, 2, 5, 1, 1, 5):
            try:
                got.append(await reader.readexactly(size))
            except asyncio.IncompleteReadError as error:
                got.append((error.partial, error.expected))
            except tcpreasm.DataLost as lost:
                got.append(lost.skip)
        return got

    async def everything(reader: Any) -> list[Any]:
        got: list[Any] = []
        for _ in range(6):
            try:
                got.append(await reader.read())
            except tcpreasm.DataLost as lost:
                got.append(lost.skip)
        return got

    def first(read: Callable[[Any], Coroutine[Any, Any, T]], **more: Any) -> T:
        return run(all_of(aio.readers(capture, **more), read))[0][1]

    assert first(lines, loss_errors=True) == [b"abc\n", b"de", 5, b"fg\n", 3, b"hi"]
    assert first(lines) == [b"abc\n", b"defg\n", b"hi"]
    assert first(exactly, loss_errors=True) == [b"abc\nd", (b"e", 3), 5, b"fg", (b"\n", 5), 3, b"h", (b"i", 5)]
    assert first(everything, loss_errors=True) == [b"abc\nde", 5, b"fg\n", 3, b"hi", b""]
    assert first(whole) == b"abc\ndefg\nhi"


def test_a_gap_ends_a_read_that_waits(aio: Any, tcpreasm: ModuleType) -> None:
    source = Waiting()
    talk = Talk().open().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"d").close(0)

    async def main() -> None:
        readers = aio.readers(source, loss_errors=True)
        source.give(*talk.records[:3])
        reader = await anext(readers)
        assert await reader.read(10) == b"abc"
        waiting = asyncio.create_task(reader.read(10))
        await others_run()
        assert not waiting.done()
        source.give(*talk.records[3:])
        source.end()
        with pytest.raises(tcpreasm.DataLost) as lost:
            await waiting
        assert lost.value.skip == 4
        assert await reader.read() == b"d"
        await readers.aclose()

    run(main())


def test_a_start_that_was_not_captured(aio: Any, tcpreasm: ModuleType) -> None:
    async def read(reader: Any) -> bytes:
        with pytest.raises(tcpreasm.DataLost) as lost:
            await reader.readexactly(1)
        assert lost.value.skip == -1
        return await whole(reader)

    capture = pcap(Talk().say(0, b"abc").close(0).records)
    assert [data for _, data in run(all_of(aio.readers(capture, loss_errors=True), read))] == [b"abc"]


# ---- bounded


@pytest.mark.parametrize("loss_errors", [False, True])
@pytest.mark.parametrize("limit", [2000, 20_000])
def test_the_thread_waits_for_the_slowest_reader(aio: Any, limit: int, loss_errors: bool) -> None:
    source = Source(line_of_frames(500))

    async def main() -> bytes:
        reader = await anext(readers := aio.readers(source, limit=limit, loss_errors=loss_errors, timeout=None))
        data = b""
        for number in range(500):
            if number % 50 == 0:
                await others_run()
            assert source.asked * 1000 - len(data) <= 4 * limit + 3000
            data += await reader.readexactly(1000)
        assert await reader.read() == b""
        await readers.aclose()
        return data

    assert run(main()) == b"".join(bytes([number % 251]) * 1000 for number in range(500))


def test_the_thread_waits_behind_gaps_too(aio: Any, tcpreasm: ModuleType) -> None:
    """What lies behind a gap that was not reported yet counts as well: here every second segment is missing."""
    records = [record for number, record in enumerate(line_of_frames(1000)) if number % 2 == 0 or not number]
    source = Source(iter(records))
    options = tcpreasm.AssemblerOptions(max_buffered_pages_per_connection=1)  # each hole is given up at once

    async def main() -> tuple[int, int]:
        reader = await anext(readers := aio.readers(source, options, limit=10_000, loss_errors=True, timeout=None))
        count = lost = 0
        while True:
            if count % 50 == 0:
                await others_run()
            assert source.asked - count <= (4 * 10_000 + 3000) // 1000
            try:
                data = await reader.read(1000)
            except tcpreasm.DataLost as error:
                lost += error.skip
                continue
            if not data:
                break
            assert len(data) == 1000
            count += 1
        await readers.aclose()
        return count, lost

    assert run(main()) == (500, 500_000)


def test_a_read_of_more_than_the_limit(aio: Any) -> None:
    async def read(reader: Any) -> int:
        size = len(await reader.readexactly(400_000))
        return size + len(await reader.read())

    assert [size for _, size in run(all_of(aio.readers(Source(line_of_frames(500)), limit=1000, timeout=None), read))] == [500_000]


def test_a_line_beyond_the_limit(aio: Any) -> None:
    async def read(reader: Any) -> bool:
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"never")
        with pytest.raises(ValueError, match=r"limit|Separator"):
            await reader.readline()
        reader.close()
        return True

    assert [told for _, told in run(all_of(aio.readers(Source(line_of_frames(500)), limit=1000), read))] == [True]


def two_talks(count: int) -> Iterator[Record]:
    """Two connections side by side, of which the first one says as much as the second."""
    talks = [Talk(("10.0.0.1", port)).open() for port in (1, 2)]
    for talk in talks:
        yield from talk.records
    for _ in range(count):
        for talk in talks:
            talk.records.clear()
            yield from talk.say(0, b"x" * 1000).records
    for talk in talks:
        talk.records.clear()
        yield from talk.close().records


@pytest.mark.parametrize("how", ["close", "with", "forget"])
def test_a_reader_that_is_closed_or_forgotten_makes_nothing_wait(aio: Any, how: str) -> None:
    async def main() -> int:
        size = 0
        async for reader in aio.readers(Source(two_talks(300)), limit=1000, timeout=None):
            if reader.key.transport_flow.src != 1:
                size += 1
                task = asyncio.create_task(whole(reader)) if reader.key.transport_flow.src == 2 else None
                if task is not None:
                    done = task
            elif how == "close":
                reader.close()
            elif how == "with":
                with reader:
                    pass
            del reader
            gc.collect()
        assert size == 3
        return len(await done)

    assert run(main()) == 300_000


def test_readers_that_nobody_keeps_make_nothing_wait(aio: Any) -> None:
    async def main() -> int:
        count = 0
        async for reader in aio.readers(Source(line_of_frames(300)), limit=1000, timeout=None):
            count += 1
            del reader
        return count

    assert run(main()) == 1


def test_closing_while_the_thread_waits(aio: Any) -> None:
    """For that reader, by close or because it is forgotten: it goes on."""
    for forget in (False, True):

        async def main(forget: bool = forget) -> int:
            readers = aio.readers(Source(two_talks(300)), limit=1000, timeout=None)
            kept = [await anext(readers), await anext(readers), await anext(readers)]
            task = asyncio.create_task(whole(kept[2]))
            await others_run()
            assert not task.done()
            if not forget:
                kept[0].close()
                kept[0].close()
                with pytest.raises(ValueError, match="closed"):
                    await kept[0].read(1)
            del kept[0]
            gc.collect()
            assert [str(reader.key) async for reader in readers] == ["10.0.0.2:80->10.0.0.1:2"]
            return len(await task)

        assert run(main()) == 300_000


def test_close_ends_a_read_that_waits(aio: Any) -> None:
    source = Waiting()

    async def main() -> None:
        readers = aio.readers(source)
        source.give(*Talk().open().records)
        reader = await anext(readers)
        waiting = asyncio.create_task(reader.read(1))
        await others_run()
        reader.close()
        with pytest.raises(ValueError, match="I/O operation on a closed Reader"):
            await waiting
        say = Talk()
        say.seqs[0] += 1
        source.give(*say.say(0, b"abc").records)
        source.end()
        assert [other.key.transport_flow.src async for other in readers] == [80]
        assert reader.discarded == reader.counts.length == 3

    run(main())


@pytest.mark.parametrize("loss_errors", [False, True])
def test_a_reader_that_is_not_read_stalls(aio: Any, tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture, loss_errors: bool) -> None:
    """After the time limit the others go on; what it could not take is counted, and told where it was."""

    async def main() -> None:
        kept, tasks = [], []
        async for reader in aio.readers(Source(two_talks(300)), limit=1000, timeout=0.05, loss_errors=loss_errors):
            if reader.key.transport_flow.src == 2:
                tasks.append(asyncio.create_task(whole(reader)))
            elif reader.key.transport_flow.src == 1:
                kept.append(reader)
            else:
                reader.close()
        assert [len(await task) for task in tasks] == [300_000]
        (slow,) = kept
        held = 300_000 - slow.discarded
        assert 0 < held <= 4 * 1000 + 1000
        if loss_errors:
            assert len(await slow.read()) == held
            with pytest.raises(tcpreasm.DataLost) as lost:
                await slow.read()
            assert lost.value.skip == slow.discarded
        else:
            assert len(await slow.read()) == held
        assert await slow.read() == b""
        assert slow.counts.skipped == 0

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "the reader of 10.0.0.1:1->10.0.0.2:80 is full and is not read: it discards what comes next"
    ]


def test_a_reader_that_stalled_goes_on_when_it_is_read(aio: Any) -> None:
    source = Waiting()
    records = list(line_of_frames(40))

    async def main() -> None:
        readers = aio.readers(source, limit=1000, timeout=0.0)
        source.give(*records[:31])
        reader = await anext(readers)
        while reader.counts.length < 30_000:
            await asyncio.sleep(0.01)
        held = b""
        while len(held) + reader.discarded < 30_000:
            held += await reader.read(1000)
        source.give(records[31])
        assert await reader.readexactly(1000) == bytes([30]) * 1000
        assert reader.discarded == 30_000 - len(held) > 20_000
        source.end()
        await readers.aclose()

    run(main())


def many_streams(count: int) -> Iterator[Record]:
    for number in range(count):
        yield from Talk(("10.0.0.1", number + 1), start_ns=START_NS + number).open().records[:1]


def test_the_thread_waits_until_readers_are_taken(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_BACKLOG", 10)
    source = Source(many_streams(500))

    async def main() -> int:
        count = 0
        async for _ in aio.readers(source, limit=1000, timeout=None):
            count += 1
            if count % 100 == 1:
                await others_run()
            assert source.asked - count <= 10 + 3 * 1000 // 128 + 3
        return count

    assert run(main()) == 500


def test_readers_that_are_not_taken_do_not_stop_those_that_read(
    aio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aio, "_BACKLOG", 10)
    records = list(line_of_frames(200))
    source = Source(iter([*records[:1], *(record for pair in zip(many_streams(200), records[1:]) for record in pair), records[-1]]))

    async def main() -> int:
        readers = aio.readers(source, timeout=0.01)
        reader = await anext(readers)
        size = len(await reader.read())  # all of it, before the next one is taken
        return size + len([reader async for reader in readers])

    with caplog.at_level(logging.WARNING):
        assert run(main()) == 200_200
    assert 1 <= len(caplog.records) <= 5  # when there are 10, 20, 40, 80 and 160
    assert all("readers wait to be taken, and more come" in record.getMessage() for record in caplog.records)


# ---- the capture ends before the stream


def test_readers_learn_that_the_capture_failed(aio: Any, tcpreasm: ModuleType) -> None:
    def source() -> Iterator[tuple[float, bytes]]:
        yield from frames(Talk().open().say(0, b"half a st").records)
        raise LookupError("the wire is cut")

    async def main() -> None:
        kept: list[Any] = []
        with pytest.raises(LookupError, match="the wire is cut"):
            await collect(aio.readers(source()), kept)
        client, server = kept
        assert await client.read(100) == b"half a st"
        for reader in (client, server, client):
            with pytest.raises(tcpreasm.CaptureError, match="the capture failed: the wire is cut") as error:
                await reader.read(1)
            assert isinstance(error.value.__cause__, LookupError)
        assert not client.at_eof()

    run(main())


def test_readers_learn_that_the_capture_was_given_up(aio: Any, tcpreasm: ModuleType) -> None:
    source = Waiting()

    async def main() -> None:
        readers = aio.readers(source)
        source.give(*Talk().open().say(0, b"abc").records)
        reader = await anext(readers)
        waiting = asyncio.create_task(reader.readexactly(5))
        await others_run()
        source.end()
        closing = asyncio.create_task(readers.aclose())
        with pytest.raises((asyncio.IncompleteReadError, tcpreasm.CaptureError)):
            await waiting
        await closing

    run(main())


def test_leaving_tells_the_readers(aio: Any, tcpreasm: ModuleType) -> None:
    async def main() -> None:
        readers = aio.readers(Source(line_of_frames(3000)), limit=1000, timeout=None)
        reader = await anext(readers)
        await reader.readexactly(1)
        await readers.aclose()
        assert threads() == []
        assert 0 < len(await reader.read()) < 10_000
        with pytest.raises(tcpreasm.CaptureError, match="the capture was given up before this stream ended"):
            await reader.read()

    run(main())


def test_wrong_arguments(aio: Any) -> None:
    async def first(**more: Any) -> Any:
        return await anext(aio.readers(b"", **more))

    for error, more in (
        (TypeError, {"loss_errors": 1}),
        (TypeError, {"limit": 1.5}),
        (ValueError, {"limit": 0}),
        (TypeError, {"timeout": "soon"}),
        (ValueError, {"timeout": -1}),
        (TypeError, {"options": 5}),
    ):
        with pytest.raises(error, match=next(iter(more))):
            run(first(**more))
