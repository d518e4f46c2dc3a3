"""`Frame`, one captured packet, and `Capture`, what every source of frames has in common.

Lives here: the record, the counters, the account of what was wrong. Formats and interfaces are in their own modules.
A Frame is made once a packet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from .source import Source

__all__ = ["Capture", "FileCapture", "Frame"]


class Frame(NamedTuple):
    """One packet as it was captured."""

    data: bytes
    """What was captured, from the link layer's header on."""
    timestamp_ns: int
    """When, in nanoseconds since 1970-01-01 UTC, within 2**62 of it."""
    wire_length: int
    """Bytes that the packet had on the wire: `len(data)`, or more where the capture cut it (snaplen)."""
    linktype: int
    """What data begins with: a LINKTYPE_ number, as registered at tcpdump.org (1: Ethernet)."""
    interface: int = 0
    """Which interface of the capture it came from, counted from 0 over the whole file."""


class Capture(ABC):
    """A source of frames. Iterate it once, from the beginning to the end; close it, or use it in a with-block.

    A second `iter()` goes on where the first one stopped. Iterating never raises for what a file contains: it ends at the
    damage, and `complete` and `problem` tell. Errors of the reading itself (OSError) pass through.
    """

    format: str
    """"pcap", "pcapng" or "live"."""
    source_name: str
    """The path, the interface, or words for a source that has no name."""
    packets: int
    """Frames given out so far."""
    size: int | None
    """Bytes of the (compressed) file in all; None where that is not known beforehand."""

    def __init__(self, format_name: str, source_name: str, size: int | None) -> None:
        self.format = format_name
        self.source_name = source_name
        self.size = size
        self.packets = 0
        self._ended = False
        self._fatal: str | None = None
        self._notes: dict[str, int] = {}

    @property
    @abstractmethod
    def position(self) -> int:
        """Bytes of the (compressed) file read so far. Blocks are read ahead, so it runs up to 1 MiB before the frames."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of the source. May be called again; iterating afterwards is a ValueError."""

    @property
    def complete(self) -> bool:
        """True once the end was reached and everything before it could be read."""
        return self._ended and self.problem is None

    @property
    def problem(self) -> str | None:
        """What was wrong, and where: None as long as nothing was. Offsets count in the decompressed bytes."""
        parts = [text if count == 1 else f"{text} ({count} times)" for text, count in self._notes.items()]
        if self._fatal is not None:
            parts.append(self._fatal)
        return "; ".join(parts) or None

    def _note(self, text: str) -> None:
        """Something that cost a packet, but not the rest of the capture."""
        self._notes[text] = self._notes.get(text, 0) + 1

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        problem = "" if self.problem is None else f": {self.problem}"
        return f"<{type(self).__name__} {self.source_name!r} {self.packets} packets{problem}>"


class FileCapture(Capture):
    """A capture that is a stream of bytes, in one of the file formats.

    Args:
        stream: where the rest comes from. Closed with this.
        head: what was read of it to tell the format.
    """

    _unit: str  # what the file is made of: "record", "block"

    def __init__(self, format_name: str, stream: Source, head: bytes) -> None:
        super().__init__(format_name, stream.name, stream.size)
        self._stream = stream
        self._closed = False
        self._frames = self._read(head)

    @abstractmethod
    def _read(self, buffer: bytes) -> Iterator[Frame]:
        """The frames, from the head of the file on. Ends by _stop or _damaged."""

    @property
    def position(self) -> int:
        return self._stream.position

    def __iter__(self) -> Iterator[Frame]:
        if self._closed:
            raise ValueError(f"{self.source_name} was closed")
        return self._frames

    def close(self) -> None:
        self._closed = True
        self._stream.close()

    def _stop(self, text: str | None) -> None:
        """The end, with what is wrong in the file itself. Damage to the compressed data around it is the cause, and goes first."""
        self._ended = True
        self._fatal = "; ".join(part for part in (self._stream.problem, text) if part) or None

    def _damaged(self, offset: int, text: str) -> None:
        self._stop(f"the file is damaged: the {self._unit} at byte {offset} {text}")
