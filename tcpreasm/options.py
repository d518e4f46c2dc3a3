"""What can be set, and what it is set to unless told otherwise.

Checked once, when they are made; the cores get plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .clock import Timestamp, is_seconds, to_ns

__all__ = ["DEFAULT_ASSEMBLER_OPTIONS", "DEFAULT_MAX_OPEN_FILES", "AssemblerOptions", "FlushOptions", "check_bool", "check_number"]

DEFAULT_MAX_OPEN_FILES = 256


def check_number(name: str, value: object, unit: str) -> None:
    """TypeError and ValueError unless the value is an int, 1 or more. `unit`: what it counts, for the message."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a number of {unit}, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} is 1 or more, not {value}")


def check_bool(name: str, value: object) -> None:
    """TypeError for what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a bool, not {type(value).__name__}: {value!r:.80}")


_PAGES = ("max_buffered_pages_total", "max_buffered_pages_per_connection")
_BYTES = ("max_buffered_bytes_total", "max_buffered_bytes_per_connection")
_SECONDS = ("start_wait", "hole_timeout", "idle_timeout", "closed_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerOptions:
    """Limits and rules of one Assembler. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        max_buffered_pages_total: pages (up to 1900 bytes of payload each) that all connections of the assembler together may hold, 0 to
            2**31 - 1; at so many the connection at hand stops waiting. 0: no limit. Default 131,072.
        max_buffered_pages_per_connection: pages that one direction of a connection may hold, 0 to 2**31 - 1; at so many its lowest hole
            is skipped. 0: no limit. Default 16,384.
        max_buffered_bytes_total: memory in bytes that the pages of all connections of the assembler together may take, headers and unused
            room included, 1 to 2**62; at so much the connection at hand stops waiting. A page takes 96 bytes where it holds up to 24,
            512 up to 440, else 1984. None: no limit. Default 131,072 * 1984 = 260,046,848, what so many full pages take.
        max_buffered_bytes_per_connection: the same for one direction of a connection, 1 to 2**62; at so much its lowest hole is skipped.
            None, the default: no limit.
        overlap: whose bytes win where held segments differ. "first", the only value: those captured first, byte by byte.
        verify_checksums: refuse segments whose TCP checksum is wrong. Default False.
        start_wait_segments: a stream whose SYN was not captured starts after so many segments, 1 or more. None: their number does not
            start it. Default 16.
        start_wait: ... or after so many seconds of capture time, 0 to 1e9. None: time does not start it. Default 1.
        max_gap: bytes that a segment may lie ahead of its stream, 1 to 2**31 - 1. One that is farther off is dropped and counted, unless
            packets continue from it. None: 2**31 - 1. Default 2**27.
        hole_timeout: seconds of capture time for which a hole is waited for, 0 to 1e9; in whole captures and on live interfaces. None:
            until the end. Default 120.
        idle_timeout: seconds of capture time without a packet after which a connection is closed, 0 to 1e9; in whole captures and on live
            interfaces. None: never. Default 3600.
        closed_timeout: seconds of capture time for which a closed connection is remembered, 0 to 1e9, so that late packets open no new
            stream. 0: it is forgotten as soon as capture time goes on. Default 60.
    """

    max_buffered_pages_total: int = 131_072
    max_buffered_pages_per_connection: int = 16_384
    max_buffered_bytes_total: int | None = 131_072 * 1984
    max_buffered_bytes_per_connection: int | None = None
    overlap: str = "first"
    verify_checksums: bool = False
    start_wait_segments: int | None = 16
    start_wait: float | None = 1.0
    max_gap: int | None = 1 << 27
    hole_timeout: float | None = 120.0
    idle_timeout: float | None = 3600.0
    closed_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in (*_PAGES, *_BYTES, "start_wait_segments", "max_gap"):
            value = getattr(self, name)
            optional = name not in _PAGES
            if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool)):
                continue
            raise TypeError(f"{name} is an int{' or None' if optional else ''}, not {type(value).__name__}: {value!r}")
        for name in _PAGES:
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 0 (no limit) to 2**31 - 1, not {getattr(self, name)}")
        for name in _BYTES:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 2**62:
                raise ValueError(f"{name} is from 1 to 2**62, or None, not {value}")
        if self.start_wait_segments is not None and self.start_wait_segments < 1:
            raise ValueError(f"start_wait_segments is 1 or more, or None, not {self.start_wait_segments}")
        if self.max_gap is not None and not 0 < self.max_gap < 2**31:
            raise ValueError(f"max_gap is from 1 to 2**31 - 1, or None, not {self.max_gap}")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is None and name != "closed_timeout":
                continue
            if not is_seconds(value):
                raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}: {value!r}")
            if not 0 <= value <= 1e9:
                raise ValueError(f"{name} is from 0 to 1e9 seconds, not {value!r}")
        if self.overlap != "first":
            raise ValueError(f"overlap is 'first', not {self.overlap!r}")
        check_bool("verify_checksums", self.verify_checksums)


DEFAULT_ASSEMBLER_OPTIONS = AssemblerOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class FlushOptions:
    """What `Assembler.flush_with_options` gives out and closes. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        t: capture time before which something counts as old: seconds since 1970 or an aware datetime. None (default): everything is old.
        close_all: also close connections that hold nothing and have seen nothing since t. Default False.
    """

    t: Timestamp | None = None
    close_all: bool = False

    def __post_init__(self) -> None:
        if self.t is not None:
            to_ns(self.t, name="t")
        check_bool("close_all", self.close_all)
