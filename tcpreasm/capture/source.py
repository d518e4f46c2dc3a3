"""Bytes in big pieces, out of whatever the caller names: a path, standard input, a file object, memory; decompressed.

Lives here: opening, reading, gzip and zstd. What the bytes mean is the business of the format's module.
Called once per block (1 MiB), never per packet.
"""

from __future__ import annotations

import importlib
import io
import mmap
import os
import stat
import sys
import zlib
from typing import Any, Protocol

from ..errors import CaptureError

__all__ = ["BLOCK_BYTES", "BinaryReader", "CaptureSource", "Compressed", "Source", "compression_of", "open_source"]

BLOCK_BYTES = 1 << 20
WINDOW_BYTES = 4 << 20
WINDOWS = 4  # so many of a mapped capture stay: threads may still be at work behind what was read last
_MADV_POPULATE_READ = 22  # <linux/mman.h>, since 5.14; the module has no name for it


class BinaryReader(Protocol):
    """The least that a file object must be able to do."""

    def read(self, size: int, /) -> bytes | None: ...


CaptureSource = str | os.PathLike[str] | os.PathLike[bytes] | BinaryReader | bytes | bytearray | memoryview | mmap.mmap


class Source:
    """Bytes as they lie in the file.

    Args:
        file: anything with read(n), or read1(n), which is preferred: it hands over what a pipe holds instead of waiting for n.
        name: for messages.
        size: bytes to come, None where unknown.
        owned: close the file with this.

    What `read` does is enough for every reader of captures; where more is there, they may save themselves the copy.
    """

    data: bytes | memoryview | None = None
    """All of it, where it lies in memory anyhow, and nobody has closed this: see `advance`."""
    is_plain = False
    """A regular file from its beginning: `readinto` and `fileno` are there, and its bytes are the capture's."""

    def __init__(self, file: Any, name: str, size: int | None, owned: bool) -> None:
        self.name = name
        self.size = size
        self.problem: str | None = None
        self._position = 0
        self._file = file
        self._owned = owned
        self._read = getattr(file, "read1", None) or file.read

    @property
    def position(self) -> int:
        """Bytes read so far; of a compressed file, its own bytes."""
        return self._position

    @property
    def length(self) -> int:
        """Bytes of the capture in all, decompressed; as far as they were read, where that is not known beforehand."""
        return self._position if self.size is None else self.size

    def read(self) -> bytes:
        """The next piece; b"" at the end. About BLOCK_BYTES long at most."""
        piece = self._read(BLOCK_BYTES)
        if piece is None:
            raise BlockingIOError(f"{self.name} is in non-blocking mode and has no data at the moment")
        if not isinstance(piece, bytes):
            if isinstance(piece, str):
                raise TypeError(f"{self.name} gives text: open it in binary mode")
            piece = bytes(piece)
        self._position += len(piece)
        return piece

    def read_to(self, buffer: bytes, length: int) -> bytes:
        """The buffer with more bytes behind it, until it has the length or the source ends."""
        have = len(buffer)
        if have >= length:
            return buffer
        parts = [buffer] if have else []
        while have < length:
            piece = self.read()
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def close(self) -> None:
        if self._owned:
            self._file.close()


class _InMemory(Source):
    """A capture that lies in memory, and a file object that reads it."""

    def __init__(self, data: bytes | memoryview, file: Any, kind: str, owned: bool) -> None:
        super().__init__(file, f"<{len(data)} bytes {kind}>", len(data), owned)
        self.data = data

    def advance(self) -> int:
        """Count the next piece as read, for a reader that finds it in `data`. Returns its length, 0 at the end."""
        length = min(BLOCK_BYTES, len(self.data or b"") - self._position)
        self._file.seek(self._position + length)
        self._position += length
        return length


class _Mapped(_InMemory):
    """A capture that the caller has mapped into memory. However long it is, a few windows of it are there at a time.

    Each comes whole and before it is needed, for two reasons: where the kernel keeps the file in huge pages it maps them as such, at a
    tenth of the cost; and what is asked for beforehand comes only where it is mapped.
    """

    def __init__(self, mapped: mmap.mmap) -> None:
        mapped.seek(0)
        super().__init__(memoryview(mapped).toreadonly(), mapped, "mapped", False)
        self._slides = True
        self._end = 0
        """Of what was asked for."""

    def advance(self) -> int:
        if self.data is None:
            raise ValueError(f"{self.name} was closed")
        if self._slides and self._end < len(self.data) and self._end <= self._position + BLOCK_BYTES:
            self._slide(self._file, len(self.data))
        return super().advance()

    def _slide(self, mapped: mmap.mmap, size: int) -> None:
        behind = self._end - WINDOWS * WINDOW_BYTES
        try:
            mapped.madvise(_MADV_POPULATE_READ, self._end, min(WINDOW_BYTES, size - self._end))
            if behind >= 0:
                mapped.madvise(mmap.MADV_DONTNEED, behind, WINDOW_BYTES)
            self._end += WINDOW_BYTES
        except (AttributeError, OSError):  # another system, or an older kernel: each page comes when it is touched
            self._slides = False

    def close(self) -> None:
        self.data = None  # else the caller could not close what is his


class _Plain(Source):
    """A regular file, opened by its path."""

    is_plain = True

    def readinto(self, memory: memoryview) -> int:
        """The next bytes, as many as there are and fit. Returns their number, 0 at the end."""
        length: int = self._file.readinto(memory)
        self._position += length
        return length

    def fileno(self) -> int:
        """The descriptor, good until `close`."""
        number: int = self._file.fileno()
        return number


class _Decompressor(Protocol):
    """What zlib, compression.zstd and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd_module(name: str) -> tuple[Any, type[Exception]]:
    """A maker of zstd decompressors, and the error that they raise."""
    try:
        module = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        pass
    else:
        return module.ZstdDecompressor, module.ZstdError
    try:
        module = importlib.import_module("zstandard")
    except ImportError as error:
        raise CaptureError(
            f"{name} is compressed with zstd; reading it takes Python 3.14 or the package zstandard: pip install 'tcpreasm[zstd]'"
        ) from error
    return (lambda: module.ZstdDecompressor().decompressobj()), module.ZstdError


_ZLIB = type(zlib.decompressobj())


def _new_gzip() -> Any:
    return zlib.decompressobj(31)  # 15 bits of window, and 16 for the gzip format


def compression_of(head: bytes) -> str | None:
    """ "gzip", "zstd" or None, from the first four bytes (RFC 1952 2.3.1, RFC 8878 3.1.1)."""
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    return None


class Compressed(Source):
    """Bytes that another source holds compressed: any number of gzip members or zstd frames, one behind the other.

    Input goes to the decompressor in small steps, so that a decompression bomb cannot make much memory out of one step
    (gzip grows at most 1032-fold: 8 MiB; a zstd block of 4 bytes becomes 128 KiB: 16 MiB).
    """

    def __init__(self, outer: Source, kind: str, head: bytes) -> None:
        super().__init__(outer, outer.name, outer.size, True)
        self._outer = outer
        self._kind = kind
        self._input = head
        self._input_at = 0  # what of the input was used
        self._used = 0  # bytes of earlier inputs
        self._between = True  # no member has begun, or the last one is over
        self._members = 0
        self._ended = False
        self._length = 0
        self._error: type[Exception] = zlib.error
        self._step = 8192
        if kind == "zstd":
            self._new, self._error = _zstd_module(outer.name)
            self._step = 512
        else:
            self._new = _new_gzip
        self._member: _Decompressor = self._new()

    @property
    def position(self) -> int:
        return self._outer.position

    @property
    def length(self) -> int:
        return self._length

    def _stop(self, problem: str | None) -> None:
        self._ended = True
        self.problem = problem

    def _at(self) -> int:
        return self._used + self._input_at

    def _salvage(self, member: Any, data: bytes) -> bytes:
        """What comes out of a member before the byte at which it breaks."""
        parts = []
        try:
            for at in range(len(data)):
                parts += [member.decompress(data[at : at + 1])]
        except self._error:
            pass
        return b"".join(parts)

    def _next(self) -> bytes:
        """What the next step of input becomes; b"" is not the end."""
        data = self._input[self._input_at : self._input_at + self._step]
        if self._between:
            if self._members and self._kind == "gzip" and not self._input[self._input_at :].strip(b"\0"):
                # Zeros behind the last member pad it to a tape's or disk's block.
                self._input_at = len(self._input)
                return b""
            self._between = False
            self._members += 1
            self._member = self._new()
        # zlib keeps nothing of the output of a call that fails: a copy of its state is what the good part comes from.
        before = self._member.copy() if isinstance(self._member, _ZLIB) else None
        try:
            out = self._member.decompress(data)
        except self._error as error:
            self._stop(f"the {self._kind} data is damaged around byte {self._at()} of the compressed file ({error})")
            return b"" if before is None else self._salvage(before, data)
        self._input_at += len(data)
        if self._member.eof:
            self._input_at -= len(self._member.unused_data)
            self._between = True
        return out

    def read(self) -> bytes:
        parts = []
        have = 0
        while have < BLOCK_BYTES and not self._ended:
            if self._input_at >= len(self._input):
                if have:
                    break  # what a pipe has given so far is not held back
                self._used += len(self._input)
                self._input_at = 0
                self._input = self._outer.read()
                if not self._input:
                    text = f"the {self._kind} data is cut short after byte {self._used} of the compressed file"
                    self._stop(None if self._between else text)
                    break
            out = self._next()
            if out:
                parts.append(out)
                have += len(out)
        self._length += have
        return b"".join(parts)


def _rest_of(file: Any) -> int | None:
    """Bytes between the file object's position and its end; None where it cannot be told."""
    try:
        if not file.seekable():
            return None
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
        return max(0, int(end) - int(here))
    except (AttributeError, OSError, TypeError, ValueError):
        return None


def open_source(source: CaptureSource) -> Source:
    """Open what `open_capture` was given. TypeError for what is none of it, OSError where opening fails."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = source if type(source) is bytes else bytes(source)
        return _InMemory(data, io.BytesIO(data), "in memory", True)
    if isinstance(source, mmap.mmap):
        return _Mapped(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if path == "-" and isinstance(source, str):
            if sys.stdin is None:
                raise CaptureError("standard input is not open")
            return Source(sys.stdin.buffer, "standard input", None, False)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 -- the Source closes it
        status = os.fstat(file.fileno())
        return _Plain(file, path, status.st_size, True) if stat.S_ISREG(status.st_mode) else Source(file, path, None, True)
    other: Any = source
    if isinstance(other, io.TextIOBase):
        raise TypeError(f"a capture is read from a binary file; open it with mode 'rb': {source!r}")
    if not callable(getattr(other, "read", None)):
        raise TypeError(f"a capture is a path, '-', a binary file object, bytes or an mmap, not {type(source).__name__}: {source!r}"[:500])
    name = getattr(other, "name", None)
    return Source(other, name if isinstance(name, str) else f"<{type(source).__name__}>", _rest_of(source), False)
