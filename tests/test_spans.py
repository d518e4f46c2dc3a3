"""The bytes of a SpanStream, read back from what was reassembled: paths, files, buffers, lists of these. The rows are made here."""

from __future__ import annotations

import array
import gzip
import io
import mmap
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONTENT = random.Random(1).randbytes(3_000_000)


def noted(tcpreasm: ModuleType, *places: tuple[int, int]) -> Any:
    """A SpanStream of those offsets and lengths."""
    stream = tcpreasm.SpanStream()
    stream.reassembled([tcpreasm.Reassembly(bytes(length), 0, False, False, 0, offset) for offset, length in places])
    return stream


def expected(*places: tuple[int, int]) -> bytes:
    return b"".join(CONTENT[offset : offset + length] for offset, length in places)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spans") / "capture"
    path.write_bytes(CONTENT)
    return path


KINDS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": lambda path: CONTENT,
    "bytearray": lambda path: bytearray(CONTENT),
    "memoryview": lambda path: memoryview(CONTENT).cast("H"),
    "array": lambda path: array.array("I", CONTENT),
    "BytesIO": lambda path: io.BytesIO(CONTENT),
    "buffered": lambda path: path.open("rb"),
    "raw": lambda path: path.open("rb", buffering=0),
    "list": lambda path: [path],
    "parts": lambda path: [CONTENT[:1000], b"", io.BytesIO(CONTENT[1000:1001]), (CONTENT[1001:2_000_000]), CONTENT[2_000_000:]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_spans_are_read_from(tcpreasm: ModuleType, file: Path, kind: str) -> None:
    chance = random.Random(2)
    near = [(at, 100) for at in range(500, 5000, 170)]
    far = [(chance.randrange(2_900_000), chance.choice([1, 3, 1448, 65_000])) for _ in range(100)]
    whole = [(0, 1_500_000), (1_500_000, 1_500_000)]
    places = [*near, *far, *reversed(near), *whole, (0, 1), (0, 1), (2_999_999, 1), (999, 3), (10, 0)]
    stream = noted(tcpreasm, *places)
    source = KINDS[kind](file)
    try:
        assert stream.gather(source) == expected(*places)
        out = io.BytesIO()
        assert stream.write_to(out, source) == len(expected(*places))
        assert out.getvalue() == expected(*places)
    finally:
        if hasattr(source, "close"):
            source.close()


def test_spans_are_read_from_a_mapped_file(tcpreasm: ModuleType, file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert noted(tcpreasm, (5, 10), (2_000_000, 10)).gather(mapped) == expected((5, 10), (2_000_000, 10))


def test_gaps_and_nothing_need_no_source(tcpreasm: ModuleType) -> None:
    stream = tcpreasm.SpanStream()
    assert stream.gather(b"") == b""
    stream.reassembled([tcpreasm.Reassembly(b"", 5), tcpreasm.Reassembly(b"", 0, True)])
    assert stream.gather(b"") == b""
    assert stream.gather([]) == b""
    assert stream.write_to(io.BytesIO(), b"") == 0


def test_bytes_that_the_source_has_not(tcpreasm: ModuleType, file: Path) -> None:
    for source in (b"0123456789", [b"01234", b"56789"], io.BytesIO(b"0123456789")):
        assert noted(tcpreasm, (3, 7)).gather(source) == b"3456789"
        for offset, length in ((3, 8), (10, 1), (11, 1), (2**62, 5)):
            with pytest.raises(ValueError, match=f"^the source has no bytes at {offset} to {offset + length}: it has 10 in all$"):
                noted(tcpreasm, (offset, length)).gather(source)
    with pytest.raises(ValueError, match="the source has no bytes at 0 to 1"):
        noted(tcpreasm, (0, 1)).gather([])
    with pytest.raises(ValueError, match="a span without an offset"):
        noted(tcpreasm, (0, 5), (-1, 5)).gather(file)


def test_a_compressed_source(tcpreasm: ModuleType, file: Path, tmp_path: Path) -> None:
    """Its own bytes are nobody's; what comes out is read."""
    places = [(5, 10), (2_000_000, 100)]
    stream = noted(tcpreasm, *places)
    for kind, packed in (("gzip", gzip.compress(CONTENT, 1)), ("zstd", b"\x28\xb5\x2f\xfd" + CONTENT)):
        path = tmp_path / kind
        path.write_bytes(packed)
        with path.open("rb") as opened:
            for source in (path, str(path), opened, [file, path], io.BytesIO(packed)):
                with pytest.raises(ValueError, match=f"is compressed with {kind}, .*: pass .*open\\(path") as caught:
                    stream.gather(source)
                assert isinstance(source, io.BytesIO) or str(path) in str(caught.value)
                with pytest.raises(ValueError, match="is compressed"):
                    stream.write_to(io.BytesIO(), source)
        assert stream.gather(packed + CONTENT) == packed[5:15] + (packed + CONTENT)[2_000_000:2_000_100]  # a buffer may be anything
    with gzip.open(tmp_path / "gzip", "rb") as decompressed:
        assert stream.gather(decompressed) == expected(*places)


def test_a_source_that_gives_less_than_it_has(tcpreasm: ModuleType) -> None:
    class Short(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() < 5 else b""

    with pytest.raises(ValueError, match=r"^the source gave 0 bytes at 6 to 9, not 3$"):
        noted(tcpreasm, (6, 3)).gather(Short(b"0123456789"))


def test_what_is_no_source(tcpreasm: ModuleType, file: Path, tmp_path: Path) -> None:
    stream = noted(tcpreasm, (0, 5))
    for wrong in (None, 5, object(), [5], {"a": 1}):
        with pytest.raises(TypeError, match="spans are read from a path, a seekable binary file, a buffer, or a list of these, not "):
            stream.gather(wrong)
    with pytest.raises(TypeError, match="mode 'rb'"), file.open(encoding="latin-1") as text:
        stream.gather(text)
    with pytest.raises(FileNotFoundError):
        stream.gather(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        stream.write_to(io.BytesIO(), [file, tmp_path / "nowhere"])


def test_writing_little_by_little(tcpreasm: ModuleType, file: Path) -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: Any) -> int:
            self.data += data[:1000]
            return min(len(data), 1000)

    class Plain:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> None:
            self.data += data

    places = [(7, 100_000), (200_000, 1448), (0, 2)]
    for out in (Slow(), Plain()):
        assert noted(tcpreasm, *places).write_to(out, file) == 101_450
        assert out.data == expected(*places)
