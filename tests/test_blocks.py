"""What a reader's blocks are while somebody looks at pieces of them; and a capture that is gone on with after an exception.

Lives here: pieces and views that a stream keeps over the reading of a file, with one thread and with several, and the memory that this
takes; `assemble_capture` with an open capture, again and again. Blocks by themselves: test_records.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import NAMES, REPOSITORY
from cores import load
from recorder import SYN, frame, number, pcap
from test_batch import START_NS, capture_of, traffic


def large(size: int, seed: int = 0, connections: int = 9) -> bytes:
    """A capture of that many bytes, at least: some connections in order, with text that is never the same twice; some segments late."""
    rng = random.Random(seed)
    places = [1] * connections
    frames = [frame(0, b"", SYN, ends=number(which)) for which in range(connections)]
    while size > 0:
        which = rng.randrange(connections)
        text = rng.randbytes(rng.choice([1, 500, 1400, 9000, 60000]))
        parts = [(places[which], text)]
        if rng.random() < 0.1 and len(text) > 1000:
            parts = [(places[which] + 700, text[700:]), (places[which], text[:700])]
        frames += [frame(seq, data, ends=number(which)) for seq, data in parts]
        places[which] += len(text)
        size -= len(text)
    return pcap((START_NS + nth * 1_000_000, data) for nth, data in enumerate(frames))


def opened(content: bytes, folder: Path) -> dict[str, Callable[[], Any]]:
    path, packed = folder / "capture", folder / "capture.gz"
    path.write_bytes(content)
    packed.write_bytes(gzip.compress(content, 1))
    return {"path": lambda: path, "bytes": lambda: content, "file object": lambda: io.BytesIO(content), "gzip": lambda: packed}


# -- what is kept ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["path", "bytes", "file object", "gzip"])
def test_what_a_stream_keeps_stays_what_it_was(tcpreasm: ModuleType, tmp_path: Path, kind: str, threads: int, coalesce: bool) -> None:
    """Pieces, views of them, and views of views, some for good and some for a while, over all blocks of the file (promise 11)."""
    kept: list[tuple[Any, bytes]] = []
    wrong: list[str] = []

    class Keeping:
        def __init__(self, *flows: Any) -> None:
            self.rng = random.Random(str(flows))
            self.mine: list[tuple[Any, bytes]] = []

        def reassembled(self, reassemblies: list[Any]) -> None:
            for piece in reassemblies:
                digest = hashlib.sha256(bytes(piece)).digest()
                how = self.rng.randrange(6)
                if how == 0:
                    self.mine.append((piece, digest))
                elif how == 1:
                    self.mine.append((memoryview(piece), digest))
                elif how == 2:
                    self.mine.append((memoryview(memoryview(piece)[:]), digest))
                elif how == 3 and self.mine:
                    self.look(*self.mine.pop(self.rng.randrange(len(self.mine))))

        def look(self, what: Any, digest: bytes) -> None:
            if hashlib.sha256(bytes(what)).digest() != digest:
                wrong.append("changed")

        def reassembly_complete(self) -> None:
            kept.extend(self.mine)

    source = opened(large(3_000_000), tmp_path)[kind]()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(Keeping))
    summary = assembler.assemble_capture(source, threads=threads, coalesce=coalesce)
    assert summary.bytes_delivered > 3_000_000
    assert wrong == []
    assert len(kept) > 40
    assembler.assemble_capture(opened(large(1_500_000, 1), tmp_path)[kind](), threads=threads)
    assert [type(what) for what, digest in kept if hashlib.sha256(bytes(what)).digest() != digest] == []


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", ["nothing", "pieces", "counted", "native"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, implementation: str, threads: int, what: str) -> None:
    """Nor with what is kept of it, where that is little: a piece that somebody keeps has its own bytes, and not the block."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer keeps what was freed: what a process holds at most says nothing under it")
    path = tmp_path / "capture"
    head = frame(1, b"")
    frames = ((START_NS + nth, frame(1 + 10 * nth, b"0123456789", padding=bytes(60_000 - len(head)))) for nth in range(700))
    path.write_bytes(pcap(frames))
    script = f"""
        import sys
        sys.path[:0] = [{str(REPOSITORY / "tests")!r}]
        from cores import load
        tcpreasm = load({implementation!r})
        path, what, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
        kept = []
        class Stream:
            def __init__(self, *flows): pass
            def reassembled(self, pieces):
                if what == "pieces":
                    kept.extend(pieces)
            def reassembly_complete(self): pass
        factory = {{"counted": tcpreasm.ByteCountStream, "native": lambda *flows: tcpreasm.BytesStream(*flows)}}.get(what, Stream)
        def high():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        def run(source):
            return tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(source, threads=threads)
        run(open(path, "rb").read(3_000_000))
        before = high()
        assert run(path).bytes_delivered == 7000
        assert what != "pieces" or b"".join(map(bytes, kept))[-7000:] == b"0123456789" * 700
        print(high() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path), what, str(threads)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(load(implementation).__file__ or "").parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    # The pure core holds a step of 2,048 frames for all of its shards.
    assert int(done.stdout) < (16_000 if implementation == "compiled" or threads == 1 else 50_000)


# -- going on -------------------------------------------------------------------------------------------------------------


class Told(Exception):
    pass


class Book:
    """A factory whose streams raise now and then, behind what they have written down.

    Args:
        every: each such call raises.
        call: which calls.
    """

    def __init__(self, every: int = 0, call: str = "reassembled") -> None:
        self.every = every
        self.call = call
        self.calls = count(1)
        self.streams: dict[str, list[Noted]] = defaultdict(list)

    def new(self, net_flow: Any, transport_flow: Any) -> Noted:
        key = f"{net_flow.src} {transport_flow.src} {net_flow.dst} {transport_flow.dst}"
        self.streams[key].append(Noted(self))
        return self.streams[key][-1]

    def called(self, call: str) -> None:
        if call == self.call and self.every and next(self.calls) % self.every == 0:
            raise Told

    def told(self) -> dict[str, Any]:
        return {key: [(stream.pieces, stream.complete) for stream in streams] for key, streams in self.streams.items()}


class Noted:
    def __init__(self, book: Book) -> None:
        self.book = book
        self.pieces: list[tuple[Any, ...]] = []
        self.complete = 0

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.pieces += [(bytes(r), r.skip, r.start, r.end, r.seen_ns, r.offset) for r in reassemblies]
        self.book.called("reassembled")

    def reassembly_complete(self) -> None:
        self.complete += 1
        self.book.called("complete")


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("call", ["reassembled", "complete"])
@pytest.mark.parametrize("kind", ["path", "bytes", "file object", "gzip"])
def test_an_open_capture_goes_on_behind_an_exception(tcpreasm: ModuleType, tmp_path: Path, kind: str, call: str, coalesce: bool) -> None:
    """Nothing is lost and nothing comes twice, whatever is done with the capture in between."""
    frames = traffic("lossy", 7, directions=40, size=20_000)
    content = capture_of(frames)
    source = opened(content, tmp_path)[kind]
    whole = Book()
    tcpreasm.Assembler(tcpreasm.StreamPool(whole)).assemble_capture(content)
    errors = 0
    for every in (1, 2, 7, 64):
        book = Book(every, call)
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
        rng = random.Random(every)
        with tcpreasm.open_capture(source()) as capture:
            while True:
                before = capture.packets
                assert before == assembler.stats.frames
                way = rng.randrange(4)
                try:
                    if way == 0:
                        for one in capture:
                            assembler.assemble_frame(
                                one.data, timestamp_ns=one.timestamp_ns, linktype=one.linktype, wire_length=one.wire_length
                            )
                            assembler.tick()
                            if rng.random() < 0.3:
                                break
                    elif way == 1:
                        assembler.assemble_records(capture.records, rng.choice([1, 5, 200]), coalesce)
                    else:
                        assembler.assemble_capture(capture, flush=False, coalesce=coalesce)
                        break
                except Told:
                    errors += 1
            assert capture.packets == assembler.stats.frames == len(frames)
            assert capture.complete
        book.every = 0
        assembler.flush_all()
        for key, streams in whole.told().items():
            mine = book.told()[key]
            assert [[piece[:5] for piece in pieces] for pieces, _ in mine] == [[piece[:5] for piece in pieces] for pieces, _ in streams]
            assert [complete for _, complete in mine] == [complete for _, complete in streams]
            places = [piece[5] for pieces, _ in mine for piece in pieces]  # assemble_frame does not know them
            assert all(place in (-1, told) for place, told in zip(places, [p[5] for pieces, _ in streams for p in pieces], strict=True))
        stats = assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped
    assert errors > 10


def test_a_capture_that_was_opened_for_it_is_closed(tcpreasm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's stays open where something raises, and is closed at its end; what assemble_capture opened is closed either way."""
    path = opened(capture_of(traffic("in order", 1)), tmp_path)["path"]()
    api = sys.modules[f"{tcpreasm.__name__}.api"]
    seen: list[Any] = []

    def open_and_tell(source: Any) -> Any:
        seen.append(tcpreasm.open_capture(source))
        return seen[-1]

    monkeypatch.setattr(api, "open_capture", open_and_tell)
    for threads in (1, 2):
        book = Book(3)
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(book))
        with pytest.raises(Told):
            assembler.assemble_capture(path, threads=threads)
        with pytest.raises(ValueError, match="was closed"):
            iter(seen[-1])
        book.every = 0
        assembler.flush_all()
        book.every = 3
        capture = tcpreasm.open_capture(path)
        with pytest.raises(Told):
            assembler.assemble_capture(capture, threads=threads)
        iter(capture)
        book.every = 0
        assembler.flush_all()
        assembler.assemble_capture(capture, threads=threads)
        with pytest.raises(ValueError, match="was closed"):
            iter(capture)
