"""A capture that the caller has mapped: its bytes are looked at where they are, and no more of it is there than is needed.

That it gives the same streams as the file itself is asked in test_marks and test_capture_files, with all other sources.
"""

from __future__ import annotations

import mmap
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import load
from recorder import SYN, frame, pcap

WINDOW = 4 << 20


class Watched(mmap.mmap):
    """Tells what advice it was given: what, where, how much."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.advice: list[tuple[int, int, int]] = []

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        super().madvise(option, start, length)
        self.advice.append((option, start, length))


class Deaf(Watched):
    """An older kernel's: takes no such advice."""

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        self.advice.append((option, start, length))
        raise OSError(22, "Invalid argument")


def mapped(folder: Path, kind: type[Watched], pieces: int, first: int = 1) -> tuple[Watched, bytes]:
    """One stream in so many segments of 60,000 bytes, the capture of it mapped; and the stream's bytes."""
    text = random.Random(pieces).randbytes(60_000)
    path = folder / "capture.pcap"
    frames = [frame(0, flags=SYN), *(frame(first + i * len(text), text) for i in range(pieces))]
    path.write_bytes(pcap((i, data) for i, data in enumerate(frames)))
    with path.open("rb") as file:
        return kind(file.fileno(), 0, access=mmap.ACCESS_READ), text * pieces


def read(tcpreasm: ModuleType, source: Any, **keywords: Any) -> list[bytes]:
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow, max_bytes=None))
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        assert assembler.assemble_capture(source, **keywords).complete
    return [stream.data for stream in streams]


@pytest.mark.skipif(sys.platform != "linux", reason="the advice is Linux's")
@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_there_by_windows(tmp_path: Path, threads: int) -> None:
    """Each is asked for once, in order; and is let go of when four more were asked for."""
    source, text = mapped(tmp_path, Watched, 500)
    assert read(load("compiled"), source, threads=threads) == [text]
    windows = range(0, len(source), WINDOW)
    asked = [(start, length) for option, start, length in source.advice if option != mmap.MADV_DONTNEED]
    assert asked == [(start, min(WINDOW, len(source) - start)) for start in windows]
    gone = [(start, length) for option, start, length in source.advice if option == mmap.MADV_DONTNEED]
    assert gone == [(start, WINDOW) for start in windows[: len(windows) - 4]]
    assert len(gone) > 2


def test_without_advice(tcpreasm: ModuleType, tmp_path: Path) -> None:
    source, text = mapped(tmp_path, Deaf, 100)
    assert read(tcpreasm, source) == [text]
    assert len(source.advice) <= 1  # it is not asked again


def test_the_caller_may_close_it_afterwards(tcpreasm: ModuleType, tmp_path: Path) -> None:
    source, text = mapped(tmp_path, Watched, 3)
    with source:
        assert read(tcpreasm, source) == [text]
        with tcpreasm.open_capture(source) as capture:
            assert len(list(capture)) == 4
    assert source.closed
    with pytest.raises(ValueError, match="closed"):
        list(capture)


def test_it_cannot_be_closed_while_something_in_it_waits(tmp_path: Path) -> None:
    """What comes early is not copied: it stays where it is."""
    tcpreasm = load("compiled")
    source, text = mapped(tmp_path, Watched, 3, first=2)
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        assembler.assemble_capture(source, flush=False)
        with pytest.raises(BufferError):
            source.close()
        assembler.flush_all()
        source.close()
    assert [stream.data for stream in streams] == [text]
