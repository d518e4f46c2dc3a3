"""What the body of an HTTP message holds: content codings undone, its digest, and a file for it.

Lives here: RFC 9110 8.4 (Content-Encoding) and names that are safe whatever the message says. `write` is called about once a packet.

Nothing of a body stays in memory but the last pieces: what is decoded goes into the digest and, in portions, to the file, which is
open only while it is written to. A body may be made to decode to any size, so a limit ends it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from .common import make_folder
from .messages import Message

__all__ = ["DecodedBody", "Folder"]

_PORTION = 1 << 16  # bytes decoded, or written, at once
_SLICE = 256  # bytes given at once to a decoder that can't be told how much it may make of them
_MAX_CODINGS = 4  # one on top of the other
_MAX_WINDOW = 8 << 20  # bytes: what a decoder of zstd must support, and more than which no sender may use (RFC 9659)

_SUFFIXES = {
    b"application/gzip": ".gz",
    b"application/javascript": ".js",
    b"application/json": ".json",
    b"application/pdf": ".pdf",
    b"application/xml": ".xml",
    b"application/zip": ".zip",
    b"image/gif": ".gif",
    b"image/jpeg": ".jpg",
    b"image/png": ".png",
    b"image/svg+xml": ".svg",
    b"image/webp": ".webp",
    b"text/css": ".css",
    b"text/csv": ".csv",
    b"text/html": ".html",
    b"text/javascript": ".js",
    b"text/plain": ".txt",
    b"text/xml": ".xml",
}


class _Undecodable(Exception):
    """The rest of a body is left out; the text tells why."""


class Folder:
    """The files: numbered, with suffixes from a fixed list, so that no name comes out of a capture.

    Args:
        path: made where there is none.
        overwrite: files that exist are written over. Otherwise FileExistsError.
    """

    def __init__(self, path: str, overwrite: bool) -> None:
        make_folder(path)
        self._path = path
        self._mode = "wb" if overwrite else "xb"
        self._count = 0

    def create(self, message: Message) -> str:
        """The path of a new, empty file."""
        self._count += 1
        kind = "response" if message.method is None else "request"
        media_type = message.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        path = os.path.join(self._path, f"{self._count:06}-{kind}{_SUFFIXES.get(media_type, '.bin')}")
        with open(path, self._mode):
            return path


class DecodedBody:
    """The body of one message, decoded as far as that goes.

    Args:
        message: its headers tell the codings.
        limit: bytes, decoded, after which the rest is left out.
        folder: where its file is made, if it is to have one. A body without bytes makes none.
    """

    def __init__(self, message: Message, limit: int, folder: Folder | None = None) -> None:
        self._message = message
        self._limit = limit
        self._folder = folder
        self._digest = hashlib.sha256()
        self._unwritten = bytearray()
        self._decoders: list[_Decoder] = []
        self._ended = False
        self.length = 0
        """Bytes so far, decoded."""
        self.problem: str | None = None
        """Why that is not all that was sent."""
        self.path: str | None = None
        """Its file."""
        for coding in reversed(_codings(message)):
            decoder = _decoder(coding) if len(self._decoders) < _MAX_CODINGS else None
            if decoder is None:
                self.problem = f"{coding} is not decoded"
                break
            self._decoders.append(decoder)

    def write(self, data: bytes) -> None:
        """See `messages.Body`."""
        if self._ended:
            return
        try:
            for part in self._decode(data, 0):
                self._put(part)
        except _Undecodable as reason:
            self._end(str(reason))

    def lost(self, count: int) -> None:
        """See `messages.Body`. What is not encoded goes on behind the gap."""
        if self._decoders and not self._ended:
            self._end(f"decoded up to the first of the missing bytes only, {count} of them")

    def close(self) -> None:
        """See `messages.Body`."""
        if self._message.body_bytes and not self._ended and not all(decoder.is_at_end for decoder in self._decoders):
            self._end("its encoded data ends too early")
        self._decoders.clear()
        self._write_out()

    @property
    def sha256(self) -> str:
        """The digest of what was decoded, in hexadecimal digits."""
        return self._digest.hexdigest()

    def _decode(self, data: bytes, stage: int) -> Iterator[bytes]:
        if stage == len(self._decoders):
            yield data
        else:
            for part in self._decoders[stage].decode(data):
                yield from self._decode(part, stage + 1)

    def _put(self, data: bytes) -> None:
        kept = data[: self._limit - self.length]
        self.length += len(kept)
        self._digest.update(kept)
        if self._folder is not None and kept:
            if self.path is None:
                self.path = self._folder.create(self._message)
            self._unwritten += kept
            if len(self._unwritten) >= _PORTION:
                self._write_out()
        if len(kept) < len(data):
            raise _Undecodable(f"only its first {self._limit} bytes were taken")

    def _end(self, problem: str) -> None:
        self._ended = True
        self.problem = problem

    def _write_out(self) -> None:
        if self.path is not None and self._unwritten:
            with open(self.path, "ab") as file:
                file.write(self._unwritten)
            self._unwritten.clear()


def _codings(message: Message) -> list[str]:
    """In the order in which they were applied; chunks have been undone already."""
    named = b",".join(message.headers.get(name, b"") for name in (b"content-encoding", b"transfer-encoding"))
    codings = [coding.strip().lower().decode("ascii", "backslashreplace") for coding in named.split(b",")]
    return [coding for coding in codings if coding not in ("", "identity", "chunked")]


class _Decoder(Protocol):
    @property
    def is_at_end(self) -> bool:
        """Where the encoded data may end."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """In portions of bounded size. _Undecodable where data is wrong."""


class _Inflater:
    """gzip (RFC 1952), in several members too, and deflate (RFC 1950, and the bare RFC 1951 that some send)."""

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._inflate: Any = None

    @property
    def is_at_end(self) -> bool:
        return self._inflate is None or bool(self._inflate.eof)

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self.is_at_end:
                if self._inflate is not None and not (self._is_gzip and data[0] == 0x1F):
                    return  # what follows the end is none of the body's
                # The first byte of a zlib header tells the method, 8; a bare block does not begin like that.
                bits = 31 if self._is_gzip else 15 if data[0] & 15 == 8 else -15
                self._inflate = zlib.decompressobj(bits)
            part = b""
            while data or len(part) == _PORTION:  # a full one may not be all that is in the bits that were read
                try:
                    part = self._inflate.decompress(data, _PORTION)
                except zlib.error as error:
                    raise _Undecodable(f"its encoded data is broken: {error}") from None
                yield part
                data = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    data = self._inflate.unused_data
                    break


class _Zstandard:
    """RFC 8878, in several frames too."""

    def __init__(self, zstandard: Any) -> None:
        self._zstandard = zstandard
        self._frame: Any = None

    @property
    def is_at_end(self) -> bool:
        return self._frame is None or bool(self._frame.eof)

    def decode(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _SLICE):
            part = data[at : at + _SLICE]
            while part:
                if self.is_at_end:
                    self._frame = self._zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
                try:
                    yield self._frame.decompress(part)
                except self._zstandard.ZstdError as error:
                    raise _Undecodable(f"its encoded data is broken: {error}") from None
                part = self._frame.unused_data if self._frame.eof else b""


class _Brotli:
    """RFC 7932."""

    def __init__(self, brotli: Any) -> None:
        self._brotli = brotli
        self._decompressor = brotli.Decompressor()

    @property
    def is_at_end(self) -> bool:
        return bool(self._decompressor.is_finished())

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            yield self._decompressor.process(data, output_buffer_limit=_PORTION)
            while not self._decompressor.can_accept_more_data():
                yield self._decompressor.process(b"", output_buffer_limit=_PORTION)
        except self._brotli.error as error:
            raise _Undecodable(f"its encoded data is broken: {error}") from None


def _decoder(coding: str) -> _Decoder | None:
    """None: this coding is not known, or its library is not there."""
    if coding in ("gzip", "x-gzip", "deflate"):
        return _Inflater(coding != "deflate")
    try:
        if coding == "zstd":
            return _Zstandard(importlib.import_module("zstandard"))
        if coding == "br":
            brotli = importlib.import_module("brotli")
            # Older ones can't be told how much to decode at once.
            return _Brotli(brotli) if hasattr(brotli.Decompressor, "can_accept_more_data") else None
    except ImportError:
        pass
    return None
