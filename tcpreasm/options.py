"""What can be set, and what it is set to unless told otherwise.

Checked once, when they are made; the cores get plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clock import Timestamp, is_seconds, to_ns

if TYPE_CHECKING:
    from .flow import Flow

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


_NUMBERS = ("max_buffered_pages_total", "max_buffered_pages_per_connection", "max_connections")
_SECONDS = ("start_wait", "hole_timeout", "idle_timeout", "closed_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerOptions:
    """Limits and rules of one Assembler. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        max_buffered_pages_total: pages (1900 bytes of payload each) that all connections of the assembler together may hold, 0 to
            2**31 - 1; at so many the connection at hand stops waiting. 0: no limit. Default 131,072.
        max_buffered_pages_per_connection: pages that one direction of a connection may hold, 0 to 2**31 - 1; at so many its lowest hole
            is skipped. 0: no limit. Default 16,384.
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
        max_connections: connections (directions) that the pool may have at a time, open ones and closed ones that are remembered, 0 to
            2**31 - 1. A new one that finds so many takes the place of another, which makes room: the oldest closed one; where there is
            none, the oldest half-open one (nothing later than its SYN has come), then the one whose last packet lies back furthest, each
            flushed and completed as idle ones are, before anything else is done with the segment at hand. What user code runs for
            makes no room; where that is all there is, the limit is exceeded for the time. With several threads over one capture each
            has its part of it. 0: no limit. Default 2**21: about 440 MB, at some 210 bytes each without their streams, and twice the
            million directions of the largest workload that this package is measured with.
        open_on: what makes the factory be called. "syn" (default): the first segment of a connection. "data": the first one with
            payload or a FIN, so that connection attempts that nothing follows, as in a SYN flood, make no stream; the stream's first
            piece, the start, comes then, with the SYN's capture time.
        on_evict: called with the net flow, the transport flow and the reason ("closed", "half_open" or "idle") when a connection has
            made room for a new one, after its stream's reassembly_complete. What it raises comes as what a stream raises. None
            (default): not called.
    """

    max_buffered_pages_total: int = 131_072
    max_buffered_pages_per_connection: int = 16_384
    overlap: str = "first"
    verify_checksums: bool = False
    start_wait_segments: int | None = 16
    start_wait: float | None = 1.0
    max_gap: int | None = 1 << 27
    hole_timeout: float | None = 120.0
    idle_timeout: float | None = 3600.0
    closed_timeout: float = 60.0
    max_connections: int = 1 << 21
    open_on: str = "syn"
    on_evict: Callable[[Flow, Flow, str], object] | None = None

    def __post_init__(self) -> None:
        for name in (*_NUMBERS, "start_wait_segments", "max_gap"):
            value = getattr(self, name)
            optional = name not in _NUMBERS
            if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool)):
                continue
            raise TypeError(f"{name} is an int{' or None' if optional else ''}, not {type(value).__name__}: {value!r}")
        for name in _NUMBERS:
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 0 (no limit) to 2**31 - 1, not {getattr(self, name)}")
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
        if self.open_on not in ("syn", "data"):
            raise ValueError(f"open_on is 'syn' or 'data', not {self.open_on!r}")
        if self.on_evict is not None and not callable(self.on_evict):
            raise TypeError(f"on_evict is a callable or None, not {type(self.on_evict).__name__}: {self.on_evict!r:.80}")


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
