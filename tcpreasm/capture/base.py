"""`Capture`: what every source of frames has in common, and `FileCapture`: what all capture files have.

Lives here: the account of what was read and what was wrong. Interfaces are in their own module, readers of file formats in the core.
Nothing here runs once a packet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType

from .._select import core
from ..frame import Frame
from .source import Source

__all__ = ["Capture", "FileCapture", "Frame"]


class Capture(ABC):
    """A source of frames. Iterate it once, from the beginning to the end; close it, or use it in a with-block.

    A second `iter()` goes on where the first one stopped. Iterating never raises for what a file contains: it ends at the
    damage, and `complete` and `problem` tell. Errors of the reading itself (OSError) pass through.
    """

    format: str
    """"pcap", "pcapng" or "live"."""
    source_name: str
    """The path, the interface, or words for a source that has no name."""
    packets: int = 0
    """Frames given out so far."""
    waits: bool = False
    """Frames come when they come: an interface, which is polled."""
    size: int | None
    """Bytes of the (compressed) file in all; None where that is not known beforehand."""

    def __init__(self, format_name: str, source_name: str, size: int | None) -> None:
        self.format = format_name
        self.source_name = source_name
        self.size = size
        self._ended = False
        self._fatal: str | None = None

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
        return self._fatal

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
        stream: where the bytes come from. Closed with this.
        records: the core's reader of them.
    """

    def __init__(self, format_name: str, stream: Source, records: core.PcapRecords | core.PcapngRecords) -> None:
        super().__init__(format_name, stream.name, stream.size)
        self._stream = stream
        self._closed = False
        self._records = records

    @property
    def records(self) -> core.PcapRecords | core.PcapngRecords:
        """The core's reader. ValueError once the capture was closed: its descriptor may be another file's by then."""
        if self._closed:
            raise ValueError(f"{self.source_name} was closed")
        return self._records

    @property
    def packets(self) -> int:  # type: ignore[override]  # counted where the frames are made
        return self._records.packets

    @property
    def position(self) -> int:
        return self._stream.position

    @property
    def length(self) -> int:
        """Bytes of the capture in all, decompressed; as far as they were read, where that is not known beforehand."""
        return self._stream.length

    @property
    def complete(self) -> bool:
        return self._records.ended and self._records.problem is None

    @property
    def problem(self) -> str | None:
        return self._records.problem

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.records)

    def close(self) -> None:
        self._closed = True
        self._records.close()
        self._stream.close()
